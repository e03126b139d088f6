#include "balancer/backend.h"

#include <assert.h>
#include <string.h>

#include "proxy/smtp.h"

static_assert(BACKEND_ERROR_ONE >> 3 <= UINT16_MAX,
	      "a vote keeps the step it took");

#define BACKEND_ROW(name, unit, help) { #name, #unit, help },
const struct backend_row backend_counter_rows[BACKEND_COUNTER_COUNT] = {
	BACKEND_COUNTERS(BACKEND_ROW)
};
const struct backend_row backend_gauge_rows[BACKEND_GAUGE_COUNT] = {
	BACKEND_GAUGES(BACKEND_ROW)
};
#undef BACKEND_ROW

/* --- the farm --- */

void farm_init(struct farm *farm, const struct health_policy *policy)
{
	assert(policy->rise >= 1 && policy->rise <= HEALTH_HISTORY_MAX);
	assert(policy->fall >= 1 && policy->fall <= HEALTH_HISTORY_MAX);
	assert(policy->passive_fall >= 1);
	assert(policy->max_ejected_percent <= 100);
	assert(policy->interval_ms > 0 && policy->down_interval_ms > 0);

	const struct limit_policy limits = limit_policy_default();

	memset(farm, 0, sizeof(*farm));
	farm->policy = *policy;
	pthread_mutex_init(&farm->mutex, NULL);
	for (size_t i = 0; i < FARM_BACKENDS_MAX; i++) {
		struct backend *b = &farm->backends[i];

		b->farm = farm;
		b->index = (uint16_t)i;
		pthread_mutex_init(&b->mutex, NULL);
		atomic_store(&b->place, BACKEND_FREE);
		atomic_store(&b->generation, 1);
	}
	atomic_store(&farm->none_since_ms, -1);
	farm_set_limits(farm, &limits, false);
}

void farm_fini(struct farm *farm)
{
	for (size_t i = 0; i < FARM_BACKENDS_MAX; i++)
		pthread_mutex_destroy(&farm->backends[i].mutex);
	pthread_mutex_destroy(&farm->mutex);
}

struct limit_policy farm_limits(const struct farm *farm)
{
	struct limit_policy policy = {
		.retry_ms = atomic_load(&farm->retry_ms),
		.retry_max_ms = atomic_load(&farm->retry_max_ms),
		.start = atomic_load(&farm->start),
	};

	/* The one may be of before a change, the other of after it. */
	if (policy.retry_ms > policy.retry_max_ms)
		policy.retry_ms = policy.retry_max_ms;
	return policy;
}

bool farm_observes(const struct farm *farm)
{
	return atomic_load(&farm->observe);
}

void farm_set_limits(struct farm *farm, const struct limit_policy *policy,
		     bool observe)
{
	atomic_store(&farm->retry_ms, policy->retry_ms);
	atomic_store(&farm->retry_max_ms, policy->retry_max_ms);
	atomic_store(&farm->start, policy->start);
	atomic_store(&farm->observe, observe);
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = &farm->backends[i];

		pthread_mutex_lock(&b->mutex);
		limit_set_start(&b->limit, policy);
		backend_publish_slots(b);
		pthread_mutex_unlock(&b->mutex);
	}
}

/* --- who relays for strangers --- */

/* Let a probe be due at once.  Behind b->mutex. */
static void ask_soon(struct backend *b)
{
	health_probe_soon(&b->health, b->seen_ms);
	backend_publish(b);
}

static void forget_relay(struct backend *b)
{
	atomic_store(&b->relay, BACKEND_RELAY_UNKNOWN);
	atomic_store(&b->relay_checked_ms, -1);
	atomic_store(&b->guard_at_ms, 0);
}

void backend_ask_relay(struct backend *b)
{
	if (farm_guard(b->farm) == FARM_GUARD_OFF ||
	    !backend_identity_hides(backend_identity(b)) ||
	    backend_relay(b) == BACKEND_RELAY_CLOSED)
		return;
	pthread_mutex_lock(&b->mutex);
	atomic_store(&b->guard_at_ms, 0);
	ask_soon(b);
	pthread_mutex_unlock(&b->mutex);
}

/* So that nothing is counted on that was learned while nobody asked. */
void farm_set_guard(struct farm *farm, enum farm_guard guard)
{
	enum farm_guard before = (enum farm_guard)atomic_load(&farm->guard);

	assert(guard <= FARM_GUARD_ENFORCE);
	if (before == FARM_GUARD_OFF && guard != FARM_GUARD_OFF) {
		for (uint16_t i = 0; i < farm_size(farm); i++) {
			struct backend *b = &farm->backends[i];

			pthread_mutex_lock(&b->mutex);
			forget_relay(b);
			if (backend_identity_hides(backend_identity(b)))
				ask_soon(b);
			pthread_mutex_unlock(&b->mutex);
		}
	}
	atomic_store(&farm->guard, (uint8_t)guard);
}

enum farm_guard farm_guard(const struct farm *farm)
{
	return (enum farm_guard)atomic_load(&farm->guard);
}

enum backend_relay backend_relay(const struct backend *b)
{
	return (enum backend_relay)atomic_load(&b->relay);
}

enum backend_relay backend_bars(const struct backend *b)
{
	if (farm_guard(b->farm) != FARM_GUARD_ENFORCE ||
	    !backend_identity_hides(backend_identity(b)))
		return BACKEND_RELAY_CLOSED;
	return backend_relay(b);
}

/* --- places --- */

struct backend *farm_at(struct farm *farm, uint16_t index)
{
	assert(index < FARM_BACKENDS_MAX);

	struct backend *b = &farm->backends[index];

	return atomic_load(&b->place) == BACKEND_LIVE ? b : NULL;
}

struct backend *farm_find(struct farm *farm, const char *name, size_t len)
{
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b != NULL && strlen(b->name) == len &&
		    memcmp(b->name, name, len) == 0)
			return b;
	}
	return NULL;
}

/* Cut to fit, always with a NUL. */
static void copy_text(char *to, size_t cap, const char *from)
{
	size_t len = strnlen(from, cap - 1);

	memcpy(to, from, len);
	to[len] = '\0';
}

static void copy_settings(struct backend *b, const struct backend_settings *s)
{
	copy_text(b->name, sizeof(b->name), s->name);
	copy_text(b->address, sizeof(b->address), s->address);
	b->peer = s->peer;
	b->peer_len = s->peer_len;
	b->source = s->source;
	b->source_len = s->source_len;
	b->rule_count = s->rule_count;
	for (unsigned i = 0; i < s->rule_count; i++)
		b->rules[i] = s->rules[i];
	atomic_store(&b->admin, (uint8_t)s->admin);
	atomic_store(&b->max_sessions, s->max_sessions);
	atomic_store(&b->weight, s->weight);
	atomic_store(&b->identity, (uint8_t)s->identity);
	atomic_store(&b->tls, (uint8_t)s->tls);
	atomic_store(&b->tls_implicit, s->tls_implicit);
	atomic_store(&b->reuse, s->reuse);
}

static void forget_tls(struct backend *b)
{
	atomic_store(&b->clear_until_ms, 0);
	atomic_store(&b->cert_until_ms, INT64_MAX);
	atomic_store(&b->tls_seen, false);
	b->cert_told_ms = -1;
}

/* All that a backend learned in its life begins anew. */
static void forget(struct backend *b, int64_t now_ms)
{
	const struct limit_policy limits = farm_limits(b->farm);

	atomic_store(&b->ext_known, false);
	atomic_store(&b->ext, 0);
	atomic_store(&b->auth, 0);
	atomic_store(&b->size, 0);
	atomic_store(&b->trial, 0);
	atomic_store(&b->inflight_peak, 0);
	atomic_store(&b->error, 0);
	atomic_store(&b->answered_ms, -1);
	for (size_t i = 0; i < BACKEND_COUNTER_COUNT; i++)
		atomic_store(&b->counters[i], 0);
	atomic_store(&b->kept, 0);
	forget_relay(b);
	forget_tls(b);
	b->report = (struct probe_report){ 0 };
	b->seen_ms = now_ms;
	health_begin(&b->health, now_ms);
	limit_begin(&b->limit, &limits, atomic_load(&b->max_sessions), now_ms);
}

static struct backend *free_place(struct farm *farm)
{
	for (size_t i = 0; i < FARM_BACKENDS_MAX; i++) {
		struct backend *b = &farm->backends[i];

		if (atomic_load(&b->place) == BACKEND_FREE)
			return b;
	}
	return NULL;
}

enum farm_result farm_add(struct farm *farm,
			  const struct backend_settings *settings,
			  int64_t now_ms, uint16_t *index)
{
	assert(settings->max_sessions >= 1);
	assert(settings->max_sessions <= BACKEND_SESSIONS_MAX);
	assert(settings->weight >= 1);
	assert(settings->weight <= BACKEND_WEIGHT_MAX);
	assert(settings->admin < BACKEND_ADMIN_COUNT);
	assert(settings->rule_count <= BACKEND_RULES_MAX);
	assert(strlen(settings->name) < BACKEND_NAME_MAX);

	if (farm_find(farm, settings->name, strlen(settings->name)) != NULL)
		return FARM_TAKEN;

	/* One thread adds, so nobody else takes the place meanwhile. */
	struct backend *b = free_place(farm);

	if (b == NULL)
		return FARM_FULL;
	pthread_mutex_lock(&b->mutex);
	copy_settings(b, settings);
	forget(b, now_ms);
	backend_publish(b);
	pthread_mutex_unlock(&b->mutex);
	if (b->index >= atomic_load(&farm->count))
		atomic_store(&farm->count, b->index + 1U);
	atomic_store(&b->place, BACKEND_LIVE);
	*index = b->index;
	return FARM_OK;
}

/*
 * LEAVING is written before the mutex is taken, and balancer_reserve() reads
 * the place behind it: one of the two always sees the other.
 */
enum farm_result farm_remove(struct farm *farm, uint16_t index)
{
	struct backend *b = farm_at(farm, index);

	if (b == NULL)
		return FARM_NO_SUCH;
	if (atomic_load(&b->admin) == BACKEND_READY)
		return FARM_READY;
	atomic_store(&b->place, BACKEND_LEAVING);
	pthread_mutex_lock(&b->mutex);
	bool used = atomic_load(&b->inflight) != 0;

	pthread_mutex_unlock(&b->mutex);
	if (used) {
		atomic_store(&b->place, BACKEND_LIVE);
		return FARM_IN_USE;
	}
	atomic_fetch_add(&b->generation, 1);
	atomic_store(&b->place, BACKEND_FREE);
	return FARM_OK;
}

/* --- one backend --- */

void backend_publish_slots(struct backend *b)
{
	const struct limit *l = &b->limit;
	uint32_t max = atomic_load(&b->max_sessions);
	bool below = atomic_load(&b->inflight) < max;
	bool observe = farm_observes(b->farm);
	bool above = below && !observe && l->pp < l->burst;

	atomic_store(&b->greeted, l->n);
	atomic_store(&b->pending, l->p);
	atomic_store(&b->slots, observe ? max : limit_slots(l));
	atomic_store(&b->above_ms, above ? l->next_probe_ms : INT64_MAX);
	atomic_store(&b->room, below && (observe || limit_admits(l)));
}

void backend_publish(struct backend *b)
{
	const struct health *h = &b->health;

	atomic_store(&b->calm, health_is_calm(h));
	atomic_store(&b->until_ms, h->until_ms);
	atomic_store(&b->epoch, h->epoch);
	atomic_store(&b->probe_at_ms, h->probing ? INT64_MAX : h->probe_at_ms);
	backend_publish_slots(b);
	atomic_store(&b->state, (uint8_t)h->state);
}

/* Out because it failed. */
static bool is_out(enum health_state state)
{
	return state == HEALTH_EJECTED || state == HEALTH_HALF_OPEN ||
	       state == HEALTH_DOWN;
}

/* One that never took a session has nothing that it could be back with. */
static bool is_back(const struct backend *b, enum health_state before)
{
	return is_out(before) && health_in_rotation(b->health.state) &&
	       b->limit.accepted + b->limit.slow > 0;
}

void backend_name_change(const struct backend *b, struct backend_change *change)
{
	change->index = b->index;
	copy_text(change->name, sizeof(change->name), b->name);
}

void backend_settle(struct backend *b, enum health_state before, int64_t now_ms,
		    struct backend_change *change)
{
	const struct limit_policy limits = farm_limits(b->farm);

	if (is_back(b, before))
		limit_return(&b->limit, &limits, now_ms);
	backend_publish(b);
	if (b->health.state == before)
		return;

	enum backend_admin admin = backend_admin_state(b);

	backend_count(b, BACKEND_COUNT_state_changes, 1);
	if (b->health.state == HEALTH_EJECTED)
		backend_count(b, BACKEND_COUNT_ejected, 1);
	*change = (struct backend_change){
		.changed = true,
		.admin_from = admin,
		.admin_to = admin,
		.from = before,
		.to = b->health.state,
		.why = b->health.why,
		.until_ms = b->health.until_ms,
	};
	backend_name_change(b, change);
}

void backend_set_admin(struct backend *b, enum backend_admin admin,
		       struct backend_change *change)
{
	assert(admin < BACKEND_ADMIN_COUNT);

	enum backend_admin before = (enum backend_admin)atomic_exchange(
		&b->admin, (uint8_t)admin);
	enum health_state state = backend_state(b);

	if (change == NULL)
		return;
	*change = (struct backend_change){
		.changed = before != admin,
		.admin_from = before,
		.admin_to = admin,
		.from = state,
		.to = state,
		.why = HEALTH_WHY_ADMIN,
	};
	backend_name_change(b, change);
}

void backend_set_weight(struct backend *b, uint32_t weight)
{
	assert(weight >= 1);
	assert(weight <= BACKEND_WEIGHT_MAX);
	atomic_store(&b->weight, weight);
}

void backend_set_max_sessions(struct backend *b, uint32_t max_sessions)
{
	assert(max_sessions >= 1);
	assert(max_sessions <= BACKEND_SESSIONS_MAX);

	const struct limit_policy limits = farm_limits(b->farm);

	pthread_mutex_lock(&b->mutex);
	atomic_store(&b->max_sessions, max_sessions);
	limit_set_ceiling(&b->limit, &limits, max_sessions, b->seen_ms);
	backend_publish_slots(b);
	pthread_mutex_unlock(&b->mutex);
}

/* A probe that is under way will tell of what no longer is. */
static void reintroduce(struct backend *b)
{
	b->introduction++;
	forget_relay(b);
	ask_soon(b);
}

void backend_set_identity(struct backend *b, enum backend_identity identity)
{
	pthread_mutex_lock(&b->mutex);
	if (backend_identity(b) != identity) {
		/* First nobody knows, then strangers are looked at so. */
		reintroduce(b);
		atomic_store(&b->identity, (uint8_t)identity);
	}
	pthread_mutex_unlock(&b->mutex);
}

void backend_set_tls(struct backend *b, enum backend_tls tls, bool implicit)
{
	pthread_mutex_lock(&b->mutex);
	if (backend_tls(b) != tls || backend_tls_implicit(b) != implicit) {
		forget_tls(b);
		atomic_store(&b->tls, (uint8_t)tls);
		atomic_store(&b->tls_implicit, implicit);
		reintroduce(b);
	}
	pthread_mutex_unlock(&b->mutex);
}

enum backend_tls backend_tls(const struct backend *b)
{
	return (enum backend_tls)atomic_load(&b->tls);
}

bool backend_tls_implicit(const struct backend *b)
{
	return atomic_load(&b->tls_implicit);
}

bool backend_wants_tls(const struct backend *b, int64_t now_ms)
{
	switch (backend_tls(b)) {
	case BACKEND_TLS_NONE:
		return false;
	case BACKEND_TLS_OPPORTUNISTIC:
		return now_ms >= atomic_load(&b->clear_until_ms);
	case BACKEND_TLS_REQUIRED:
	case BACKEND_TLS_VERIFY:
		break;
	}
	return true;
}

void backend_tls_failed(struct backend *b, int64_t now_ms)
{
	atomic_store(&b->clear_until_ms, now_ms + BACKEND_CLEAR_MS);
}

enum backend_identity backend_identity(const struct backend *b)
{
	return (enum backend_identity)atomic_load(&b->identity);
}

void backend_set_reuse(struct backend *b, bool reuse)
{
	atomic_store(&b->reuse, reuse);
}

uint32_t backend_limit(const struct backend *b)
{
	return atomic_load(&b->slots);
}

bool backend_alarmed(struct backend *b, int64_t now_ms)
{
	pthread_mutex_lock(&b->mutex);
	bool alarmed = limit_is_alarmed(&b->limit, now_ms);

	pthread_mutex_unlock(&b->mutex);
	return alarmed;
}

void backend_look(struct backend *b, struct backend_view *view)
{
	pthread_mutex_lock(&b->mutex);
	view->health = b->health;
	view->limit = b->limit;
	view->report = b->report;
	pthread_mutex_unlock(&b->mutex);
}

enum health_state backend_state(const struct backend *b)
{
	return (enum health_state)atomic_load(&b->state);
}

enum backend_admin backend_admin_state(const struct backend *b)
{
	return (enum backend_admin)atomic_load(&b->admin);
}

uint64_t backend_counter(const struct backend *b, enum backend_counter which)
{
	assert(which < BACKEND_COUNTER_COUNT);
	return atomic_load_explicit(&b->counters[which], memory_order_relaxed);
}

static uint64_t cert_days(const struct backend *b, int64_t now_ms)
{
	int64_t until = atomic_load(&b->cert_until_ms);

	if (until == INT64_MAX)
		return BACKEND_GAUGE_NONE;
	return until > now_ms ? (uint64_t)(until - now_ms) / BACKEND_CERT_MS
			      : 0;
}

uint64_t backend_gauge(const struct backend *b, enum backend_gauge which,
		       int64_t now_ms)
{
	switch (which) {
	case BACKEND_GAUGE_sessions:
		return atomic_load(&b->inflight);
	case BACKEND_GAUGE_sessions_peak:
		return atomic_load(&b->inflight_peak);
	case BACKEND_GAUGE_sessions_greeted:
		return atomic_load(&b->greeted);
	case BACKEND_GAUGE_sessions_pending:
		return atomic_load(&b->pending);
	case BACKEND_GAUGE_sessions_idle:
		return atomic_load(&b->kept);
	case BACKEND_GAUGE_limit:
		return backend_limit(b);
	case BACKEND_GAUGE_max_sessions:
		return atomic_load(&b->max_sessions);
	case BACKEND_GAUGE_weight:
		return atomic_load(&b->weight);
	case BACKEND_GAUGE_errors_permille:
		return (uint64_t)backend_error(b, now_ms) * 1000 /
		       BACKEND_ERROR_ONE;
	case BACKEND_GAUGE_tls:
		return atomic_load(&b->tls_seen);
	case BACKEND_GAUGE_cert_days:
		return cert_days(b, now_ms);
	case BACKEND_GAUGE_relay_open:
		return backend_relay(b) == BACKEND_RELAY_OPEN;
	case BACKEND_GAUGE_COUNT:
		break;
	}
	assert(false && "no such gauge");
	return 0;
}

/* --- the error average: its second in the upper half, in one word --- */

static uint64_t packed(uint32_t error, int64_t now_ms)
{
	assert(error <= BACKEND_ERROR_ONE);
	return (uint64_t)(uint32_t)(now_ms / 1000) << 32 | error;
}

static uint32_t decayed(uint64_t word, int64_t now_ms)
{
	int64_t seconds = now_ms / 1000 - (int64_t)(word >> 32);
	uint32_t error = (uint32_t)word;

	if (seconds <= 0)
		return error;
	if (seconds >= (int64_t)BACKEND_ERROR_HALF_S * 17)
		return 0;
	error >>= seconds / BACKEND_ERROR_HALF_S;
	return error - error * (uint32_t)(seconds % BACKEND_ERROR_HALF_S) /
			       (2 * BACKEND_ERROR_HALF_S);
}

uint32_t backend_error(const struct backend *b, int64_t now_ms)
{
	return decayed(atomic_load(&b->error), now_ms);
}

uint32_t backend_error_up(struct backend *b, unsigned shift, int64_t now_ms)
{
	assert(shift >= 1 && shift <= 16);

	uint64_t was = atomic_load(&b->error);
	uint32_t error, step;

	do {
		error = decayed(was, now_ms);
		step = (BACKEND_ERROR_ONE - error) >> shift;
	} while (!atomic_compare_exchange_weak(&b->error, &was,
					       packed(error + step, now_ms)));
	return step;
}

static void lower(struct backend *b, unsigned shift, uint32_t step,
		  int64_t now_ms)
{
	uint64_t was = atomic_load(&b->error);
	uint32_t error, less;

	do {
		error = decayed(was, now_ms);
		less = step + (shift > 0 ? (error >> shift) + 1 : 0);
		error = error > less ? error - less : 0;
	} while (!atomic_compare_exchange_weak(&b->error, &was,
					       packed(error, now_ms)));
}

void backend_error_down(struct backend *b, int64_t now_ms)
{
	if ((uint32_t)atomic_load_explicit(&b->error, memory_order_relaxed) !=
	    0)
		lower(b, 3, 0, now_ms);
}

void backend_error_undo(struct backend *b, uint32_t step, int64_t now_ms)
{
	lower(b, 0, step, now_ms);
}

/* --- words --- */

const char *backend_admin_name(enum backend_admin admin)
{
	switch (admin) {
	case BACKEND_READY:
		return "ready";
	case BACKEND_ADMIN_DRAIN:
		return "drain";
	case BACKEND_ADMIN_MAINT:
		return "maint";
	case BACKEND_ADMIN_COUNT:
		break;
	}
	assert(false && "no such state");
	return "";
}

const char *backend_relay_name(enum backend_relay relay)
{
	switch (relay) {
	case BACKEND_RELAY_UNKNOWN:
		return "unknown";
	case BACKEND_RELAY_CLOSED:
		return "closed";
	case BACKEND_RELAY_OPEN:
		return "open";
	}
	assert(false && "no such answer");
	return "";
}

const char *farm_result_name(enum farm_result result)
{
	switch (result) {
	case FARM_OK:
		return "done";
	case FARM_FULL:
		return "the farm is full";
	case FARM_TAKEN:
		return "there is a backend of this name";
	case FARM_READY:
		return "it is in service: set it to drain or maint first";
	case FARM_IN_USE:
		return "it has sessions yet";
	case FARM_NO_SUCH:
		return "there is no such backend";
	}
	assert(false && "no such result");
	return "";
}
