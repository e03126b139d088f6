#include "balancer/balancer.h"

#include <assert.h>

struct words {
	const char *name;
	const char *help;
};

#define BALANCER_WORDS(NAME, name, help) { #name, help },
static const struct words verdict_words[] = { BALANCER_VERDICTS(
	BALANCER_WORDS) };
#undef BALANCER_WORDS

static const char *const failure_words[] = {
	[BALANCER_REPLIED] = "replied",
	[BALANCER_REFUSED] = "refused",
	[BALANCER_TIMEOUT] = "connect timeout",
	[BALANCER_RESET] = "reset",
	[BALANCER_UNREACHABLE] = "unreachable",
	[BALANCER_SILENT] = "silent",
	[BALANCER_CLOSED] = "closed before the greeting",
	[BALANCER_LOST] = "lost",
	[BALANCER_STALLED] = "stalled",
	[BALANCER_GARBLED] = "not SMTP",
	[BALANCER_INSECURE] = "TLS failed",
};
static_assert(sizeof(failure_words) / sizeof(failure_words[0]) ==
		      BALANCER_FAILURE_COUNT,
	      "every failure has a name");

enum {
	SAMPLES = 3,
	WORDS = FARM_BACKENDS_MAX / 64,
	SCORE_SHIFT = 20,
	UP_SHIFT = 3,      /* an error moves the average by an eighth */
	UP_SHIFT_HALF = 4, /* BUSY? by half of that */
	/* A backend below this has too few errors to be an outlier. */
	SICK_ERROR_MIN = BACKEND_ERROR_ONE / 4,
};

/* inflight * (one + 50 errors), shifted, has to fit 64 bits. */
static_assert((uint64_t)BACKEND_SESSIONS_MAX * BACKEND_ERROR_ONE *
			      (1 + BALANCER_PENALTY) <
		      (uint64_t)1 << (64 - SCORE_SHIFT),
	      "the score fits");

/* The probes' vote, beside those of clients. */
#define PROBE_SOURCE UINT64_MAX

/* splitmix64, of Steele, Lea and Flood: many draws from one word. */
static uint64_t draw(uint64_t *random)
{
	uint64_t z = *random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* --- who may be chosen --- */

/* How one backend stands to what is needed. */
enum standing {
	STANDS_ABSENT, /* not LIVE */
	STANDS_TRIED,
	STANDS_OUT,       /* by its operator or its health */
	STANDS_LACKS,     /* an extension, or the size */
	STANDS_OPEN,      /* to strangers, and this is one */
	STANDS_UNCHECKED, /* whether it is */
	STANDS_FULL,      /* or held off as busy: alive, no room now */
	STANDS_FIT,
	STANDS_COUNT,
};

static bool is_over(const struct backend *b, int64_t now_ms)
{
	int64_t until = atomic_load(&b->until_ms);

	return until != 0 && now_ms >= until;
}

static bool trial_is_out(const struct backend *b)
{
	uint32_t trial = atomic_load(&b->trial);

	return trial != 0 && trial == atomic_load(&b->epoch);
}

/* By health alone. */
static enum standing health_stands(const struct backend *b, bool emergency,
				   int64_t now_ms)
{
	switch (backend_state(b)) {
	case HEALTH_UNKNOWN:
	case HEALTH_UP:
		return STANDS_FIT;
	case HEALTH_BUSY:
		return is_over(b, now_ms) ? STANDS_FIT : STANDS_FULL;
	case HEALTH_HALF_OPEN:
		return trial_is_out(b) ? STANDS_FULL : STANDS_FIT;
	case HEALTH_EJECTED:
		return emergency || is_over(b, now_ms) ? STANDS_FIT
						       : STANDS_OUT;
	case HEALTH_DRAIN:
	case HEALTH_MISCONF:
		return is_over(b, now_ms) ? STANDS_FIT : STANDS_OUT;
	case HEALTH_DOWN:
	case HEALTH_STATE_COUNT:
		break;
	}
	return STANDS_OUT;
}

static bool offers(const struct backend *b, const struct balancer_need *need)
{
	if (!atomic_load(&b->ext_known))
		return need->ext == 0 && need->auth == 0;
	if ((need->ext & ~atomic_load(&b->ext)) != 0 ||
	    (need->auth & ~atomic_load(&b->auth)) != 0)
		return false;

	uint64_t size = atomic_load(&b->size);

	return size == 0 || need->size <= size;
}

/* FIT, if it offers what is needed and the client may have it. */
static enum standing suits(const struct backend *b,
			   const struct balancer_need *need)
{
	if (!offers(b, need))
		return STANDS_LACKS;
	if (!need->stranger)
		return STANDS_FIT;
	/* It would take weir for the client, and was never asked whether it
	 * relays for that one. */
	if (need->untold && farm_guard(b->farm) == FARM_GUARD_ENFORCE &&
	    backend_identity(b) == BACKEND_IDENTITY_XCLIENT)
		return STANDS_UNCHECKED;
	switch (backend_bars(b)) {
	case BACKEND_RELAY_UNKNOWN:
		return STANDS_UNCHECKED;
	case BACKEND_RELAY_OPEN:
		return STANDS_OPEN;
	case BACKEND_RELAY_CLOSED:
		break;
	}
	return STANDS_FIT;
}

static bool was_tried(const struct balancer_need *need, uint16_t index)
{
	for (unsigned i = 0; i < need->tried_count; i++) {
		if (need->tried[i] == index)
			return true;
	}
	return false;
}

/* May one above the limit go out? */
static bool may_probe(const struct backend *b, int64_t now_ms)
{
	return now_ms >= atomic_load(&b->above_ms);
}

/* inflight: with the session that is to come. */
static uint64_t score(const struct backend *b, uint64_t inflight,
		      int64_t now_ms)
{
	uint64_t share = (uint64_t)atomic_load(&b->weight) * backend_limit(b);
	uint64_t error = backend_error(b, now_ms);

	if (inflight > BACKEND_SESSIONS_MAX)
		inflight = BACKEND_SESSIONS_MAX;
	return (inflight * (BACKEND_ERROR_ONE + BALANCER_PENALTY * error)
		<< SCORE_SHIFT) /
	       share;
}

/* --- the search --- */

struct search {
	struct farm *farm;
	const struct balancer_need *need;
	int64_t now_ms;
	uint64_t random;
	bool emergency;       /* take ejected ones too */
	bool above;           /* the limit, where no other is free */
	uint64_t lost[WORDS]; /* bit per index: the race for it was lost */
	struct backend *best; /* so far, or NULL */
	uint64_t best_score;
	unsigned ties;
	unsigned tally[STANDS_COUNT];
	unsigned spare; /* with an ordinary slot free, tried or not */
};

static bool is_lost(const struct search *s, uint16_t index)
{
	return s->lost[index / 64] >> (index % 64) & 1;
}

static enum standing stands(struct search *s, const struct backend *b)
{
	if (atomic_load(&b->place) != BACKEND_LIVE)
		return STANDS_ABSENT;

	bool tried = was_tried(s->need, b->index);

	if (backend_admin_state(b) != BACKEND_READY)
		return tried ? STANDS_TRIED : STANDS_OUT;

	enum standing standing = health_stands(b, s->emergency, s->now_ms);

	if (standing == STANDS_OUT)
		return tried ? STANDS_TRIED : STANDS_OUT;

	enum standing suited = suits(b, s->need);

	if (suited != STANDS_FIT)
		return tried ? STANDS_TRIED : suited;

	bool room = !is_lost(s, b->index) && atomic_load(&b->room);

	s->spare += room && standing == STANDS_FIT;
	if (tried)
		return STANDS_TRIED;
	if (is_lost(s, b->index) ||
	    (!room && !(s->above && may_probe(b, s->now_ms))))
		return STANDS_FULL;
	return standing;
}

static void consider(struct search *s, uint16_t index)
{
	struct backend *b = &s->farm->backends[index];
	enum standing standing = stands(s, b);

	s->tally[standing]++;
	if (standing != STANDS_FIT)
		return;

	uint64_t sc = score(b, (uint64_t)atomic_load(&b->inflight) + 1,
			    s->now_ms);

	if (s->best == NULL || sc < s->best_score) {
		s->best = b;
		s->best_score = sc;
		s->ties = 1;
		return;
	}
	if (sc > s->best_score || b == s->best)
		return;
	/* The n-th of equals wins with 1/n: all have the same chance. */
	s->ties++;
	if (draw(&s->random) % s->ties == 0)
		s->best = b;
}

static void begin_search(struct search *s)
{
	s->best = NULL;
	s->spare = 0;
	for (size_t i = 0; i < STANDS_COUNT; i++)
		s->tally[i] = 0;
}

static void scan_all(struct search *s)
{
	uint16_t n = farm_size(s->farm);

	begin_search(s);
	for (uint16_t i = 0; i < n; i++)
		consider(s, i);
}

/* The best of all; of many, the best of a few, unless none of those fits. */
static void find_best(struct search *s, bool few)
{
	uint16_t n = farm_size(s->farm);

	if (few && n > BALANCER_SCAN_MAX) {
		begin_search(s);
		for (int i = 0; i < SAMPLES; i++)
			consider(s, (uint16_t)(draw(&s->random) % n));
		if (s->best != NULL)
			return;
	}
	scan_all(s);
}

/* Why there is none, from a scan of all. */
static enum balancer_verdict why_none(const unsigned tally[STANDS_COUNT])
{
	if (tally[STANDS_FULL] > 0)
		return BALANCER_ALL_FULL;
	if (tally[STANDS_TRIED] > 0)
		return BALANCER_ALL_TRIED;
	if (tally[STANDS_UNCHECKED] > 0)
		return BALANCER_UNCHECKED;
	if (tally[STANDS_OPEN] > 0)
		return BALANCER_ALL_OPEN;
	if (tally[STANDS_LACKS] > 0)
		return BALANCER_NO_EXTENSION;
	if (tally[STANDS_OUT] > 0)
		return BALANCER_ALL_DOWN;
	return BALANCER_EMPTY;
}

/* --- farm-wide rules --- */

/* The backends that an operator wants to work, by their state. */
struct roll {
	unsigned wanted;
	unsigned healthy; /* in rotation */
	unsigned ejected; /* by passive signs, HALF_OPEN included */
};

static struct roll call_roll(const struct farm *farm)
{
	struct roll roll = { 0 };
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];
		enum health_state state = backend_state(b);

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    backend_admin_state(b) != BACKEND_READY)
			continue;
		roll.wanted++;
		roll.healthy += health_in_rotation(state);
		roll.ejected += state == HEALTH_EJECTED ||
				state == HEALTH_HALF_OPEN;
	}
	return roll;
}

/*
 * Fewer than half are healthy: what made backends fail may lie outside them
 * all, and passive signs are no reason to leave one out.
 */
static bool is_emergency(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy * 2 < roll.wanted;
}

/* Behind the farm's mutex, until the change is published. */
static bool may_eject(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy * 2 >= roll.wanted &&
	       (roll.ejected + 1) * 100 <=
		       roll.wanted * farm->policy.max_ejected_percent;
}

/* The same for those that answer: half, rounded up, stays in rotation. */
static bool may_quarantine(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy >= (roll.wanted + 1) / 2 + 1 && may_eject(farm);
}

/* Has it clearly more errors than the others on the average? */
static bool is_outlier(const struct farm *farm, const struct backend *self,
		       int64_t now_ms)
{
	uint64_t sum = 0;
	uint64_t peers = 0;
	uint64_t error = backend_error(self, now_ms);
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];

		if (b == self || atomic_load(&b->place) != BACKEND_LIVE ||
		    !health_in_rotation(backend_state(b)))
			continue;
		sum += backend_error(b, now_ms);
		peers++;
	}
	return peers > 0 && error >= SICK_ERROR_MIN && error * peers > 2 * sum;
}

/* --- reserve and release --- */

static void peak(struct backend *b, uint32_t inflight)
{
	uint32_t was = atomic_load(&b->inflight_peak);

	while (inflight > was &&
	       !atomic_compare_exchange_weak(&b->inflight_peak, &was, inflight))
		;
}

/* --- slots: all behind b->mutex --- */

static void give_back(struct backend *b, const struct balancer_slot *slot)
{
	uint32_t inflight = atomic_load(&b->inflight);

	assert(inflight > 0);
	(void)limit_gone(&b->limit, (enum limit_phase)slot->phase);
	if (slot->kept) {
		assert(atomic_load(&b->kept) > 0);
		atomic_fetch_sub(&b->kept, 1);
	}
	atomic_store(&b->inflight, inflight - 1);
	backend_publish_slots(b);
}

/*
 * One slot, unless there is none: exact whatever other threads do.  above: one
 * above the limit will do.
 */
static bool take_slot(struct backend *b, bool above, int64_t now_ms,
		      struct balancer_slot *slot)
{
	struct limit *l = &b->limit;
	uint32_t inflight = atomic_load(&b->inflight);
	bool ordinary = limit_admits(l);

	/* It may have been removed meanwhile: see farm_remove(). */
	if (atomic_load(&b->place) != BACKEND_LIVE ||
	    inflight >= atomic_load(&b->max_sessions))
		return false;
	if (!ordinary && !farm_observes(b->farm) &&
	    !(above && limit_admits_probe(l, now_ms)))
		return false;

	enum limit_phase phase = limit_dispatched(l, !ordinary);

	*slot = (struct balancer_slot){
		.index = b->index,
		.phase = (uint8_t)phase,
		.generation = atomic_load(&b->generation),
		.epoch = b->health.epoch,
	};
	if (!ordinary)
		backend_count(b, BACKEND_COUNT_limit_probes, 1);
	atomic_store(&b->inflight, inflight + 1);
	peak(b, inflight + 1);
	backend_publish_slots(b);
	return true;
}

/*
 * What time has ended, ends now; the one session of a HALF_OPEN backend is
 * claimed.  False: it takes none after all.
 */
static bool open_gate(struct search *s, struct backend *b, bool *trial,
		      struct backend_change *change)
{
	enum health_state before = b->health.state;

	*trial = false;
	if (before == HEALTH_UP || before == HEALTH_UNKNOWN)
		return true;
	health_tick(&b->health, s->now_ms);
	if (b->health.state != before)
		backend_settle(b, before, s->now_ms, change);
	*trial = b->health.state == HEALTH_HALF_OPEN;
	if (*trial)
		return !trial_is_out(b);
	return health_admits(b->health.state) ||
	       (s->emergency && b->health.state == HEALTH_EJECTED);
}

static void close_trial(struct backend *b, uint32_t epoch)
{
	/* Unless a later trial has taken its place. */
	atomic_compare_exchange_strong(&b->trial, &epoch, 0);
}

static bool take(struct search *s, struct backend *b,
		 struct balancer_slot *slot, struct backend_change *change)
{
	bool trial = false;

	pthread_mutex_lock(&b->mutex);
	b->seen_ms = s->now_ms;
	bool taken = open_gate(s, b, &trial, change) &&
		     take_slot(b, s->above, s->now_ms, slot);

	if (taken && trial) {
		slot->trial = true;
		atomic_store(&b->trial, slot->epoch);
	}
	pthread_mutex_unlock(&b->mutex);
	if (taken)
		backend_count(b, BACKEND_COUNT_tried, 1);
	return taken;
}

/* Lost a race: the next best.  Each round rules one backend out. */
static bool take_best(struct search *s, struct balancer_slot *slot,
		      struct backend_change *change)
{
	for (size_t i = 0; i < WORDS; i++)
		s->lost[i] = 0;
	for (unsigned round = 0; round <= FARM_BACKENDS_MAX; round++) {
		find_best(s, round == 0);
		if (s->best == NULL)
			return false;
		if (take(s, s->best, slot, change))
			return true;
		s->lost[s->best->index / 64] |= (uint64_t)1
						<< (s->best->index % 64);
	}
	return false;
}

/* Remember since when nothing could be had. */
static int64_t note_room(struct farm *farm, bool room, int64_t now_ms)
{
	int64_t since = atomic_load(&farm->none_since_ms);

	if (room) {
		if (since != -1)
			atomic_store(&farm->none_since_ms, -1);
		return now_ms;
	}
	if (since == -1 && atomic_compare_exchange_strong(&farm->none_since_ms,
							  &since, now_ms))
		return now_ms;
	return since == -1 ? now_ms : since;
}

/*
 * First an ordinary slot; then, if too few are healthy, one of those that were
 * ejected; then, if the whole farm has none, one above a limit.
 */
static enum balancer_verdict search_all(struct search *s,
					struct balancer_slot *slot,
					struct backend_change *change)
{
	if (take_best(s, slot, change))
		return BALANCER_PICKED;

	enum balancer_verdict why = why_none(s->tally);

	if (is_emergency(s->farm)) {
		s->emergency = true;
		if (take_best(s, slot, change))
			return BALANCER_PICKED;
	}
	if (s->spare == 0) {
		s->above = true;
		if (take_best(s, slot, change))
			return BALANCER_PICKED;
	}
	return why;
}

/* Does it tell of the farm, and not of this one session? */
static bool is_of_all(const struct search *s, enum balancer_verdict verdict)
{
	switch (verdict) {
	case BALANCER_PICKED:
		return true;
	case BALANCER_ALL_FULL:
	case BALANCER_ALL_DOWN:
	case BALANCER_EMPTY:
		return s->tally[STANDS_OPEN] + s->tally[STANDS_UNCHECKED] == 0;
	case BALANCER_ALL_TRIED:
	case BALANCER_NO_EXTENSION:
	case BALANCER_UNCHECKED:
	case BALANCER_ALL_OPEN:
	case BALANCER_VERDICT_COUNT:
		break;
	}
	return false;
}

enum balancer_verdict balancer_reserve(struct farm *farm,
				       const struct balancer_need *need,
				       int64_t now_ms, uint64_t random,
				       struct balancer_slot *slot,
				       struct backend_change *change)
{
	assert(need->tried_count <= BALANCER_TRIED_MAX);

	struct search s = {
		.farm = farm,
		.need = need,
		.now_ms = now_ms,
		.random = random,
	};

	change->changed = false;
	enum balancer_verdict verdict = search_all(&s, slot, change);

	if (is_of_all(&s, verdict))
		(void)note_room(farm, verdict == BALANCER_PICKED, now_ms);
	return verdict;
}

static struct backend *backend_of(struct farm *farm,
				  const struct balancer_slot *slot)
{
	assert(slot->index < FARM_BACKENDS_MAX);

	struct backend *b = &farm->backends[slot->index];

	/* A slot in use keeps its backend from being removed. */
	assert(atomic_load(&b->generation) == slot->generation);
	assert(atomic_load(&b->inflight) > 0);
	return b;
}

void balancer_release(struct farm *farm, const struct balancer_slot *slot)
{
	struct backend *b = backend_of(farm, slot);

	if (slot->trial)
		close_trial(b, slot->epoch);
	pthread_mutex_lock(&b->mutex);
	give_back(b, slot);
	pthread_mutex_unlock(&b->mutex);
}

/* Is there one, in an emergency among the ejected?  Why not, of the others. */
static enum balancer_verdict look(struct search *s)
{
	scan_all(s);

	enum balancer_verdict why = why_none(s->tally);

	if (s->best == NULL && is_emergency(s->farm)) {
		s->emergency = true;
		scan_all(s);
	}
	return s->best != NULL ? BALANCER_PICKED : why;
}

enum balancer_verdict balancer_foresee(struct farm *farm,
				       const struct balancer_need *need,
				       int64_t now_ms)
{
	struct search s = { .farm = farm, .need = need, .now_ms = now_ms };

	return look(&s);
}

bool balancer_available(struct farm *farm, int64_t now_ms,
			enum balancer_verdict *why, int64_t *since_ms)
{
	static const struct balancer_need nothing;
	struct search s = {
		.farm = farm,
		.need = &nothing,
		.now_ms = now_ms,
		.above = true,
	};

	enum balancer_verdict verdict = look(&s);
	int64_t since = note_room(farm, verdict == BALANCER_PICKED, now_ms);

	if (why != NULL)
		*why = verdict;
	if (since_ms != NULL)
		*since_ms = since;
	return verdict == BALANCER_PICKED;
}

int64_t balancer_patience_ms(struct farm *farm,
			     const struct balancer_slot *slot, int64_t most_ms)
{
	struct backend *b = backend_of(farm, slot);

	if (farm_observes(farm))
		return most_ms;
	pthread_mutex_lock(&b->mutex);
	int64_t ms = limit_patience_ms(&b->limit, most_ms);

	pthread_mutex_unlock(&b->mutex);
	return ms;
}

/* When this backend may take a session that it does not take now. */
static int64_t opens_ms(const struct backend *b, bool emergency, int64_t now_ms)
{
	int64_t until = atomic_load(&b->until_ms);
	int64_t above = atomic_load(&b->above_ms);

	if (atomic_load(&b->place) != BACKEND_LIVE ||
	    backend_admin_state(b) != BACKEND_READY)
		return INT64_MAX;
	if (health_stands(b, emergency, now_ms) != STANDS_FIT)
		return until > now_ms ? until : INT64_MAX;
	return above > now_ms ? above : INT64_MAX;
}

int64_t balancer_retry_ms(struct farm *farm, int64_t now_ms)
{
	int64_t at_ms = INT64_MAX;
	bool emergency = is_emergency(farm);
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		int64_t opens = opens_ms(&farm->backends[i], emergency, now_ms);

		if (opens < at_ms)
			at_ms = opens;
	}
	return at_ms;
}

/* --- kept connections --- */

/* One may go on on a connection that stands. */
static bool goes_on(const struct backend *b, int64_t now_ms)
{
	enum health_state state = backend_state(b);

	return atomic_load(&b->place) == BACKEND_LIVE &&
	       backend_admin_state(b) == BACKEND_READY &&
	       (state == HEALTH_UNKNOWN || state == HEALTH_UP ||
		(state == HEALTH_BUSY && is_over(b, now_ms)));
}

bool balancer_keep(struct farm *farm, struct balancer_slot *slot,
		   uint32_t percent)
{
	struct backend *b = backend_of(farm, slot);

	assert(!slot->kept);
	assert(percent <= 100);
	pthread_mutex_lock(&b->mutex);
	uint64_t kept = atomic_load(&b->kept);

	/* Any share of the slots above none is one of them at least. */
	slot->kept = slot->phase == LIMIT_GREETED && goes_on(b, b->seen_ms) &&
		     kept * 100 < (uint64_t)backend_limit(b) * percent;
	if (slot->kept)
		atomic_fetch_add(&b->kept, 1);
	pthread_mutex_unlock(&b->mutex);
	return slot->kept;
}

void balancer_resume(struct farm *farm, struct balancer_slot *slot)
{
	struct backend *b = backend_of(farm, slot);

	assert(slot->kept);
	pthread_mutex_lock(&b->mutex);
	assert(atomic_load(&b->kept) > 0);
	atomic_fetch_sub(&b->kept, 1);
	slot->kept = false;
	pthread_mutex_unlock(&b->mutex);
	backend_count(b, BACKEND_COUNT_reused, 1);
}

bool balancer_suits(struct farm *farm, const struct balancer_slot *slot,
		    const struct balancer_need *need)
{
	return suits(backend_of(farm, slot), need) == STANDS_FIT;
}

uint64_t balancer_score(struct farm *farm, const struct balancer_slot *slot,
			const struct balancer_need *need, int64_t now_ms)
{
	const struct backend *b = backend_of(farm, slot);

	if (!goes_on(b, now_ms) || was_tried(need, b->index) ||
	    suits(b, need) != STANDS_FIT)
		return UINT64_MAX;
	return score(b, atomic_load(&b->inflight), now_ms);
}

struct smtp_ehlo balancer_offer(const struct farm *farm)
{
	struct smtp_ehlo offer = { .ext = 0, .size = 0 };
	bool any = false;
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    backend_admin_state(b) == BACKEND_ADMIN_MAINT ||
		    !atomic_load(&b->ext_known))
			continue;

		uint64_t size = atomic_load(&b->size);

		offer.ext = any ? offer.ext & atomic_load(&b->ext)
				: atomic_load(&b->ext);
		if (size != 0 && (offer.size == 0 || size < offer.size))
			offer.size = size;
		offer.auth = any ? offer.auth & atomic_load(&b->auth)
				 : atomic_load(&b->auth);
		any = true;
	}
	offer.ext &= SMTP_EXT_RELAYED;
	return offer;
}

/* --- what is learned --- */

static bool is_hard(const struct balancer_outcome *o)
{
	return o->failure != BALANCER_REPLIED;
}

static enum backend_counter counter_of_class(enum busy_class class)
{
	switch (class) {
	case BUSY_OK:
		return BACKEND_COUNT_class_ok;
	case BUSY_BUSY:
		return BACKEND_COUNT_class_busy;
	case BUSY_MAYBE:
		return BACKEND_COUNT_class_maybe_busy;
	case BUSY_CAP:
		return BACKEND_COUNT_class_cap;
	case BUSY_DRAIN:
		return BACKEND_COUNT_class_drain;
	case BUSY_SICK:
		return BACKEND_COUNT_class_sick;
	case BUSY_MISCONF:
		return BACKEND_COUNT_class_misconf;
	case BUSY_SESSION:
		return BACKEND_COUNT_class_session;
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	assert(class == BUSY_POLICY);
	return BACKEND_COUNT_class_policy;
}

static void count_failure(struct backend *b, enum balancer_failure failure)
{
	switch (failure) {
	case BALANCER_REFUSED:
		backend_count(b, BACKEND_COUNT_connect_refused, 1);
		return;
	case BALANCER_TIMEOUT:
		backend_count(b, BACKEND_COUNT_connect_timeout, 1);
		return;
	case BALANCER_RESET:
		backend_count(b, BACKEND_COUNT_connect_reset, 1);
		return;
	case BALANCER_UNREACHABLE:
		backend_count(b, BACKEND_COUNT_connect_unreachable, 1);
		return;
	case BALANCER_SILENT:
	case BALANCER_CLOSED:
		backend_count(b, BACKEND_COUNT_greeting_silent, 1);
		return;
	case BALANCER_REPLIED:
	case BALANCER_LOST:
	case BALANCER_STALLED:
	case BALANCER_GARBLED:
	case BALANCER_INSECURE:
	case BALANCER_FAILURE_COUNT:
		return; /* the worker counts what was lost with it */
	}
}

static void count(struct backend *b, const struct balancer_outcome *o)
{
	count_failure(b, o->failure);
	backend_count(b, counter_of_class(o->class), 1);
	if (is_hard(o) || o->stage != BUSY_STAGE_GREET)
		return;
	if (o->class == BUSY_OK)
		backend_count(b, BACKEND_COUNT_accepted, 1);
	else
		backend_count(b, BACKEND_COUNT_greeting_refused, 1);
}

/* --- the limit: all behind b->mutex --- */

static void learn_greeting(struct backend *b, struct balancer_slot *slot,
			   int64_t ms, int64_t now_ms, uint64_t random)
{
	const struct limit_policy limits = farm_limits(b->farm);
	uint64_t slow = b->limit.slow;

	enum limit_phase phase = limit_greeted(&b->limit, &limits,
					       (enum limit_phase)slot->phase,
					       ms, now_ms, random);

	slot->phase = (uint8_t)phase;
	backend_count(b, BACKEND_COUNT_limit_slow, b->limit.slow - slow);
}

/* What an outcome says of slots. */
enum lesson {
	LESSON_NONE,
	LESSON_GONE, /* no verdict on slots, and no connection */
	LESSON_MAYBE,
	LESSON_BUSY,
	LESSON_SILENT, /* no greeting beside those that it has greeted */
	LESSON_CAP,
	LESSON_COOL, /* not about slots, but short of resources */
};

/*
 * Silence is a sign of being full only where sessions of ours were greeted;
 * else of being dead.
 */
static enum lesson lesson_of_failure(const struct backend *b,
				     enum balancer_failure failure)
{
	bool dead = b->limit.n == 0;

	switch (failure) {
	case BALANCER_REFUSED:
	case BALANCER_RESET:
	case BALANCER_UNREACHABLE:
		return LESSON_GONE;
	case BALANCER_TIMEOUT: /* down, or its backlog is full */
	case BALANCER_SILENT:
		return dead ? LESSON_GONE : LESSON_SILENT;
	case BALANCER_CLOSED:
		return dead ? LESSON_GONE : LESSON_MAYBE;
	case BALANCER_REPLIED:
	case BALANCER_LOST:
	case BALANCER_STALLED:
	case BALANCER_GARBLED:
	case BALANCER_INSECURE:
	case BALANCER_FAILURE_COUNT:
		break;
	}
	return LESSON_NONE;
}

static bool is_late(const struct balancer_outcome *o)
{
	return o->stage >= BUSY_STAGE_MAIL && o->stage < BUSY_STAGE_IDLE;
}

/* voters: 0, a vote that does not count; which matters from EHLO on only. */
static enum lesson lesson_of(const struct backend *b,
			     const struct balancer_outcome *o, unsigned voters)
{
	if (o->failure != BALANCER_REPLIED)
		return lesson_of_failure(b, o->failure);
	if (o->stage > BUSY_STAGE_GREET && voters == 0)
		return LESSON_NONE;
	switch (o->class) {
	case BUSY_BUSY:
		if (is_late(o))
			return LESSON_COOL;
		return o->stage == BUSY_STAGE_IDLE ? LESSON_NONE : LESSON_BUSY;
	case BUSY_CAP: /* behind MAIL the session goes on: not about slots */
		return o->stage <= BUSY_STAGE_MAIL ? LESSON_CAP : LESSON_NONE;
	case BUSY_MAYBE:
		return o->stage <= BUSY_STAGE_GREET ? LESSON_MAYBE
						    : LESSON_NONE;
	case BUSY_OK:
	case BUSY_DRAIN:
	case BUSY_SICK:
	case BUSY_MISCONF:
	case BUSY_SESSION:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	return LESSON_NONE;
}

static void learn(struct backend *b, struct balancer_slot *slot,
		  enum lesson lesson, int64_t now_ms, uint64_t random)
{
	const struct limit_policy limits = farm_limits(b->farm);
	struct limit *l = &b->limit;
	enum limit_phase phase = (enum limit_phase)slot->phase;
	uint64_t refused = l->refused, probes_refused = l->probes_refused;

	switch (lesson) {
	case LESSON_NONE:
		return;
	case LESSON_COOL:
		limit_cool(l, now_ms);
		return;
	case LESSON_GONE:
		phase = limit_gone(l, phase);
		break;
	case LESSON_MAYBE:
		phase = limit_maybe(l, &limits, phase, now_ms, random);
		break;
	case LESSON_SILENT:
		phase = limit_silent(l, &limits, phase, now_ms, random);
		break;
	case LESSON_BUSY:
	case LESSON_CAP:
		phase = limit_busy(l, &limits, phase, lesson == LESSON_CAP,
				   now_ms, random);
		break;
	}
	slot->phase = (uint8_t)phase;
	backend_count(b, BACKEND_COUNT_limit_refused, l->refused - refused);
	backend_count(b, BACKEND_COUNT_limit_probes_refused,
		      l->probes_refused - probes_refused);
}

/*
 * A backend that answers, whatever it thinks of the message.  The greeting is
 * what its limit is learned from.
 */
static void note_good(struct backend *b, struct balancer_slot *slot,
		      const struct balancer_outcome *o, int64_t now_ms,
		      uint64_t random, struct backend_change *change)
{
	bool greeting = o->stage == BUSY_STAGE_GREET && o->class == BUSY_OK;

	atomic_store(&b->answered_ms, now_ms);
	/* Once or twice in a transaction: a client that says RCPT a thousand
	   times must not forgive what others suffer. */
	if (o->stage == BUSY_STAGE_MAIL || o->stage == BUSY_STAGE_EOD)
		backend_error_down(b, now_ms);
	if (!greeting && atomic_load(&b->calm))
		return;

	pthread_mutex_lock(&b->mutex);
	enum health_state before = b->health.state;

	if (greeting)
		learn_greeting(b, slot, o->greet_ms, now_ms, random);
	if (slot->epoch == b->health.epoch)
		health_note_success(&b->health, (unsigned)o->stage, now_ms);
	backend_settle(b, before, now_ms, change);
	pthread_mutex_unlock(&b->mutex);
}

/* A backend that has greeted sessions of ours and is silent to one more, is
 * full. */
static bool counts_as_failure(const struct backend *b,
			      const struct balancer_outcome *o)
{
	if (o->failure == BALANCER_SILENT || o->failure == BALANCER_CLOSED)
		return b->limit.n == 0;
	return true;
}

/* No connection, or one that broke.  Behind b->mutex and the farm's. */
static void apply_failure(struct farm *farm, struct backend *b,
			  const struct balancer_outcome *o, int64_t now_ms,
			  uint64_t random)
{
	const struct health_policy *policy = &farm->policy;

	if (counts_as_failure(b, o)) {
		bool may = may_eject(farm);

		health_note_failure(&b->health, policy, (unsigned)o->stage, may,
				    now_ms, random);
		if (!may && b->health.fails >= policy->passive_fall)
			backend_count(b, BACKEND_COUNT_eject_spared, 1);
	}
	if (farm_observes(farm))
		return;
	if (o->failure == BALANCER_REFUSED)
		health_note_refused(&b->health, policy, now_ms);
	if (o->failure == BALANCER_SILENT && b->limit.n == 0)
		health_note_busy(&b->health, policy, HEALTH_WHY_BUSY_STRONG,
				 now_ms);
}

/*
 * While it has sessions of ours, a refusal is about the number of them, and
 * its limit is the answer.
 */
static void apply_busy(struct farm *farm, struct backend *b,
		       const struct balancer_outcome *o, unsigned voters,
		       int64_t now_ms)
{
	bool late = is_late(o);
	enum health_why why = o->strong ? HEALTH_WHY_BUSY_STRONG
					: HEALTH_WHY_BUSY_VOTES;

	if (farm_observes(farm) || (!late && b->limit.n > 0) ||
	    (!o->strong && voters < HEALTH_VOTERS))
		return;
	health_note_busy(&b->health, &farm->policy,
			 late ? HEALTH_WHY_RESOURCES : why, now_ms);
}

static void apply_sick(struct farm *farm, struct backend *b,
		       const struct balancer_outcome *o, unsigned voters,
		       int64_t now_ms, uint64_t random)
{
	if (voters < HEALTH_VOTERS || !is_outlier(farm, b, now_ms))
		return;
	if (!may_quarantine(farm)) {
		backend_count(b, BACKEND_COUNT_eject_spared, 1);
		return;
	}
	health_note_sick(&b->health, &farm->policy, (unsigned)o->stage, now_ms,
			 random);
}

/*
 * Before the greeting, weir has said nothing and it is about weir.  After it,
 * the reply may be to the client's EHLO name: the probe, which says weir's
 * own, shall tell.
 */
static void apply_misconf(struct farm *farm, struct backend *b,
			  const struct balancer_outcome *o, unsigned voters,
			  int64_t now_ms)
{
	if (o->stage <= BUSY_STAGE_GREET ||
	    (!farm->policy.probe && voters >= HEALTH_VOTERS))
		health_note_misconf(&b->health, &farm->policy, now_ms);
	else
		health_probe_soon(&b->health, now_ms);
}

/* What the average of errors is raised by; 0: it is not. */
static unsigned error_shift(const struct backend *b,
			    const struct balancer_outcome *o)
{
	if (is_hard(o))
		return UP_SHIFT;
	/* Refused as one too many, by one that has sessions of ours. */
	if (busy_is_about_slots(o->class) && o->stage < BUSY_STAGE_MAIL &&
	    b->limit.n > 0)
		return 0;
	if (busy_is_about_slots(o->class) && farm_observes(b->farm))
		return 0;
	switch (o->class) {
	case BUSY_BUSY:
	case BUSY_CAP:
	case BUSY_SICK:
		return UP_SHIFT;
	case BUSY_MAYBE:
		return UP_SHIFT_HALF;
	case BUSY_OK:
	case BUSY_DRAIN:
	case BUSY_MISCONF:
	case BUSY_SESSION:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	return 0;
}

static uint8_t vote_kind(enum busy_class class)
{
	return (uint8_t)(class + 1);
}

/*
 * Raise the error average, by a vote where a client may be the cause.
 * Returns how many sources have voted so, or 0 if this vote does not count.
 */
static unsigned blame(struct backend *b, const struct balancer_outcome *o,
		      int64_t now_ms)
{
	unsigned shift = error_shift(b, o);
	unsigned voters = 1;

	if (!is_hard(o)) {
		uint32_t error = backend_error(b, now_ms);
		uint32_t step = shift > 0 ? (BACKEND_ERROR_ONE - error) >> shift
					  : 0;

		voters = health_vote(&b->health, vote_kind(o->class), o->source,
				     (uint16_t)step, now_ms);
	}
	if (voters == 0)
		backend_count(b, BACKEND_COUNT_votes_dropped, 1);
	else if (shift > 0)
		(void)backend_error_up(b, shift, now_ms);
	return voters;
}

/* Behind both mutexes. */
static void apply(struct farm *farm, struct backend *b,
		  const struct balancer_outcome *o, unsigned voters,
		  int64_t now_ms, uint64_t random)
{
	if (is_hard(o)) {
		apply_failure(farm, b, o, now_ms, random);
		return;
	}
	switch (o->class) {
	case BUSY_BUSY:
		apply_busy(farm, b, o, voters, now_ms);
		return;
	case BUSY_DRAIN:
		health_note_drain(&b->health, &farm->policy, now_ms);
		return;
	case BUSY_SICK:
		apply_sick(farm, b, o, voters, now_ms, random);
		return;
	case BUSY_MISCONF:
		apply_misconf(farm, b, o, voters, now_ms);
		return;
	case BUSY_MAYBE:
	case BUSY_CAP: /* for the limit alone */
	case BUSY_OK:
	case BUSY_SESSION:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		return;
	}
}

/* An answer that says nothing bad of the backend. */
static bool is_good(const struct balancer_outcome *o)
{
	return !is_hard(o) && (o->class == BUSY_OK || o->class == BUSY_POLICY);
}

/* One that says nothing at all: a backend may close an idle connection. */
static bool is_moot(const struct balancer_outcome *o)
{
	if (is_hard(o))
		return o->stage == BUSY_STAGE_IDLE;
	return o->class == BUSY_SESSION;
}

void balancer_note(struct farm *farm, struct balancer_slot *slot,
		   const struct balancer_outcome *outcome, int64_t now_ms,
		   uint64_t random, struct backend_change *change)
{
	struct backend *b = backend_of(farm, slot);

	assert(outcome->failure < BALANCER_FAILURE_COUNT);
	assert(outcome->class < BUSY_CLASSES);
	assert(outcome->stage < BUSY_STAGES);

	change->changed = false;
	count(b, outcome);
	if (is_moot(outcome))
		return;
	if (is_good(outcome)) {
		note_good(b, slot, outcome, now_ms, random, change);
		return;
	}
	pthread_mutex_lock(&b->mutex);
	pthread_mutex_lock(&farm->mutex);
	enum health_state before = b->health.state;

	b->seen_ms = now_ms;
	health_tick(&b->health, now_ms);
	unsigned voters = blame(b, outcome, now_ms);

	learn(b, slot, lesson_of(b, outcome, voters), now_ms, random);
	if (slot->epoch == b->health.epoch)
		apply(farm, b, outcome, voters, now_ms, random);
	backend_settle(b, before, now_ms, change);
	pthread_mutex_unlock(&farm->mutex);
	pthread_mutex_unlock(&b->mutex);
}

void balancer_unnote(struct farm *farm, const struct balancer_slot *slot,
		     const struct balancer_outcome *outcome, int64_t now_ms)
{
	assert(slot->index < FARM_BACKENDS_MAX);

	struct backend *b = &farm->backends[slot->index];

	if (is_hard(outcome))
		return; /* no client's doing */
	pthread_mutex_lock(&b->mutex);
	if (atomic_load(&b->generation) == slot->generation) {
		uint16_t step = health_unvote(
			&b->health, vote_kind(outcome->class), outcome->source);

		backend_error_undo(b, step, now_ms);
		if (step > 0 && outcome->class == BUSY_BUSY &&
		    is_late(outcome)) {
			limit_uncool(&b->limit, now_ms);
			backend_publish_slots(b);
		}
	}
	pthread_mutex_unlock(&b->mutex);
}

/* --- probes and time --- */

static bool is_probed(const struct backend *b)
{
	return atomic_load(&b->place) == BACKEND_LIVE &&
	       backend_admin_state(b) != BACKEND_ADMIN_MAINT;
}

/* When the relay guard has something to ask it; INT64_MAX: never. */
static int64_t guard_ms(const struct backend *b)
{
	if (farm_guard(b->farm) == FARM_GUARD_OFF ||
	    !backend_identity_hides(backend_identity(b)))
		return INT64_MAX;
	return atomic_load(&b->guard_at_ms);
}

/* When it is to be probed; INT64_MAX: never, or one is under way. */
static int64_t probe_ms(const struct farm *farm, const struct backend *b)
{
	int64_t probe = atomic_load(&b->probe_at_ms);
	int64_t guard = guard_ms(b);

	if (!is_probed(b))
		return INT64_MAX;
	return farm->policy.probe || probe > guard ? probe : guard;
}

static bool claim(struct farm *farm, struct backend *b, int64_t now_ms,
		  struct balancer_slot *slot)
{
	struct health_policy policy = farm->policy;
	bool claimed = false;

	policy.probe = true; /* or for the guard alone */
	pthread_mutex_lock(&b->mutex);
	if (now_ms >= probe_ms(farm, b) &&
	    health_probe_claim(&b->health, &policy, now_ms)) {
		claimed = take_slot(b, false, now_ms, slot);
		if (claimed) {
			slot->guard = now_ms >= guard_ms(b);
			slot->introduction = b->introduction;
		} else {
			health_probe_cancel(&b->health, &policy, now_ms);
		}
	}
	backend_publish(b);
	pthread_mutex_unlock(&b->mutex);
	return claimed;
}

bool balancer_probe_claim(struct farm *farm, int64_t now_ms,
			  struct balancer_slot *slot)
{
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		struct backend *b = &farm->backends[i];

		if (now_ms >= probe_ms(farm, b) && claim(farm, b, now_ms, slot))
			return true;
	}
	return false;
}

/* It got no greeting: with sessions that are answered it is full, not dead. */
static bool is_full_rather(const struct farm *farm, const struct backend *b,
			   const struct probe_report *report, int64_t now_ms)
{
	int64_t answered = atomic_load(&b->answered_ms);

	return (report->failed == PROBE_STEP_CONNECT ||
		report->failed == PROBE_STEP_GREETING ||
		report->outcome == PROBE_SILENT ||
		report->outcome == PROBE_CLOSED_EARLY) &&
	       report->outcome != PROBE_NOT_SMTP &&
	       atomic_load(&b->inflight) > 1 && answered != -1 &&
	       now_ms - answered <= farm->policy.interval_ms;
}

void balancer_probe_greeted(struct farm *farm, struct balancer_slot *slot,
			    int64_t greet_ms, int64_t now_ms)
{
	struct backend *b = backend_of(farm, slot);

	pthread_mutex_lock(&b->mutex);
	/* It is no probe of the limit: nothing is drawn for it. */
	learn_greeting(b, slot, greet_ms, now_ms, 0);
	backend_publish_slots(b);
	pthread_mutex_unlock(&b->mutex);
}

/* What a probe's outcome is to the limit.  A dead backend is not full. */
static enum lesson lesson_of_probe(const struct backend *b,
				   const struct probe_report *report)
{
	bool early = report->outcome == PROBE_GREETING_BUSY ||
		     report->outcome == PROBE_EHLO_BUSY ||
		     report->outcome == PROBE_TLS_REFUSED ||
		     report->outcome == PROBE_XCLIENT_REFUSED;

	if (early && report->class == BUSY_BUSY)
		return LESSON_BUSY;
	if (early && report->class == BUSY_CAP)
		return LESSON_CAP;
	if (early && report->class == BUSY_MAYBE)
		return LESSON_MAYBE;
	if (b->limit.n == 0)
		return LESSON_NONE;
	if (report->outcome == PROBE_SILENT ||
	    report->outcome == PROBE_CONNECT_TIMEOUT)
		return LESSON_SILENT;
	return report->outcome == PROBE_CLOSED_EARLY ? LESSON_MAYBE
						     : LESSON_NONE;
}

static void learn_ext(struct backend *b, const struct probe_report *report)
{
	if (!report->ehlo_known)
		return;
	atomic_store(&b->ext, report->ext);
	atomic_store(&b->auth, report->auth);
	atomic_store(&b->size, report->size);
	atomic_store(&b->ext_known, true);
}

/* Its certificate is good for few days more, or no longer. */
static void tell_cert(struct backend *b, int64_t days, int64_t now_ms,
		      struct backend_news *news)
{
	news->cert_days = days;
	if (b->cert_told_ms != -1 && now_ms - b->cert_told_ms < BACKEND_CERT_MS)
		return;
	b->cert_told_ms = now_ms;
	news->cert_told = true;
}

/* Whether it went over TLS, and the certificate that was seen. */
static void learn_tls(struct backend *b, const struct probe_report *report,
		      int64_t now_ms, struct backend_news *news)
{
	const int64_t day_s = BACKEND_CERT_MS / 1000;
	int64_t left_s = report->left_s;

	if (report->tls || report->ehlo_known)
		atomic_store(&b->tls_seen, report->tls);
	if (!report->tls)
		return;
	if (report->expires_s == 0) {
		atomic_store(&b->cert_until_ms, INT64_MAX);
		return;
	}
	/* No certificate can name a year behind 9999 (RFC 5280). */
	assert(left_s < INT64_MAX / 10000);
	assert(left_s > INT64_MIN / 10000);
	atomic_store(&b->cert_until_ms, now_ms + left_s * 1000);
	if (left_s < BACKEND_CERT_DAYS * day_s)
		tell_cert(b, left_s / day_s, now_ms, news);
	else
		b->cert_told_ms = -1;
}

static void set_relay(struct backend *b, enum backend_relay relay,
		      int64_t now_ms, struct backend_news *news)
{
	bool changed = backend_relay(b) != relay;

	atomic_store(&b->relay_checked_ms, now_ms);
	atomic_store(&b->relay, (uint8_t)relay);
	atomic_store(&b->guard_at_ms, now_ms + BACKEND_GUARD_MS);
	news->relay_told = changed || relay != BACKEND_RELAY_CLOSED;
	news->relay = relay;
}

/* What the guard was answered.  Without an answer, the last one stands. */
static void learn_relay(struct backend *b, const struct probe_report *report,
			int64_t now_ms, struct backend_news *news)
{
	switch (report->relay) {
	case PROBE_RELAY_UNASKED:
	case PROBE_RELAY_INCONCLUSIVE:
		return; /* due at the next probe */
	case PROBE_RELAY_UNPROVEN:
		set_relay(b, BACKEND_RELAY_UNKNOWN, now_ms, news);
		return;
	case PROBE_RELAY_CLOSED:
		set_relay(b, BACKEND_RELAY_CLOSED, now_ms, news);
		return;
	case PROBE_RELAY_OPEN:
		set_relay(b, BACKEND_RELAY_OPEN, now_ms, news);
		return;
	}
}

/* What a probe was told counts as one source's vote. */
static void apply_probe_vote(struct farm *farm, struct backend *b,
			     struct balancer_slot *slot,
			     const struct probe_report *report, int64_t now_ms,
			     uint64_t random)
{
	struct balancer_outcome o = {
		.failure = BALANCER_REPLIED,
		.class = report->class,
		.stage = report->outcome == PROBE_MAIL_BUSY ? BUSY_STAGE_MAIL
							    : BUSY_STAGE_EHLO,
		.source = PROBE_SOURCE,
	};

	if (report->code < 400 || (o.class != BUSY_BUSY &&
				   o.class != BUSY_CAP && o.class != BUSY_SICK))
		return;

	unsigned voters = blame(b, &o, now_ms);

	if (is_late(&o))
		learn(b, slot, lesson_of(b, &o, voters), now_ms, random);
	apply(farm, b, &o, voters, now_ms, random);
}

/* Behind both mutexes: what it is to health. */
static void judge_probe(struct farm *farm, struct backend *b,
			struct balancer_slot *slot,
			const struct probe_report *report, int64_t now_ms,
			uint64_t random)
{
	enum health_probe verdict = probe_verdict(report);

	if (verdict == HEALTH_PROBE_FAILED &&
	    is_full_rather(farm, b, report, now_ms))
		verdict = HEALTH_PROBE_BUSY;
	learn(b, slot, lesson_of_probe(b, report), now_ms, random);
	backend_count(b,
		      verdict == HEALTH_PROBE_PASSED ||
				      verdict == HEALTH_PROBE_BUSY
			      ? BACKEND_COUNT_probes_ok
			      : BACKEND_COUNT_probes_failed,
		      1);
	if (!farm->policy.probe) { /* it went out for the guard */
		health_probe_cancel(&b->health, &farm->policy, now_ms);
		return;
	}
	health_note_probe(&b->health, &farm->policy, verdict, now_ms, random);
	apply_probe_vote(farm, b, slot, report, now_ms, random);
}

/* Behind both mutexes. */
static void end_probe(struct farm *farm, struct backend *b,
		      struct balancer_slot *slot,
		      const struct probe_report *report, int64_t now_ms,
		      uint64_t random)
{
	if (report->outcome == PROBE_ABANDONED) {
		health_probe_cancel(&b->health, &farm->policy, now_ms);
	} else if (report->tls_failed) {
		b->report = *report;
		backend_tls_failed(b, now_ms);
		health_probe_cancel(&b->health, &farm->policy, now_ms);
		health_probe_soon(&b->health, now_ms);
	} else {
		b->report = *report;
		judge_probe(farm, b, slot, report, now_ms, random);
	}
}

void balancer_probe_done(struct farm *farm, const struct balancer_slot *slot,
			 const struct probe_report *report, int64_t now_ms,
			 uint64_t random, struct backend_change *change)
{
	struct backend *b = backend_of(farm, slot);
	struct balancer_slot own = *slot;
	struct backend_news news = { 0 };

	change->changed = false;
	pthread_mutex_lock(&b->mutex);
	pthread_mutex_lock(&farm->mutex);
	enum health_state before = b->health.state;

	b->seen_ms = now_ms;
	health_tick(&b->health, now_ms);
	end_probe(farm, b, &own, report, now_ms, random);
	if (slot->introduction != b->introduction) {
		/* It was led by what no longer is so. */
		health_probe_soon(&b->health, now_ms);
	} else if (report->outcome != PROBE_ABANDONED) {
		learn_ext(b, report);
		learn_tls(b, report, now_ms, &news);
		learn_relay(b, report, now_ms, &news);
	}
	give_back(b, &own);
	backend_settle(b, before, now_ms, change);
	backend_name_change(b, change);
	change->news = news;
	pthread_mutex_unlock(&farm->mutex);
	pthread_mutex_unlock(&b->mutex);
}

int64_t balancer_due_ms(const struct farm *farm)
{
	int64_t due = INT64_MAX;
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];
		int64_t until = atomic_load(&b->until_ms);
		int64_t probe = probe_ms(farm, b);

		if (atomic_load(&b->place) != BACKEND_LIVE)
			continue;
		if (until != 0 && until < due)
			due = until;
		if (probe < due)
			due = probe;
	}
	return due;
}

bool balancer_tick(struct farm *farm, int64_t now_ms,
		   struct backend_change *change)
{
	uint16_t n = farm_size(farm);

	change->changed = false;
	for (uint16_t i = 0; i < n && !change->changed; i++) {
		struct backend *b = &farm->backends[i];

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    !is_over(b, now_ms))
			continue;
		pthread_mutex_lock(&b->mutex);
		enum health_state before = b->health.state;

		health_tick(&b->health, now_ms);
		backend_settle(b, before, now_ms, change);
		pthread_mutex_unlock(&b->mutex);
	}
	return change->changed;
}

/* --- words --- */

const char *balancer_verdict_name(enum balancer_verdict verdict)
{
	assert(verdict < BALANCER_VERDICT_COUNT);
	return verdict_words[verdict].name;
}

const char *balancer_verdict_help(enum balancer_verdict verdict)
{
	assert(verdict < BALANCER_VERDICT_COUNT);
	return verdict_words[verdict].help;
}

const char *balancer_failure_name(enum balancer_failure failure)
{
	assert(failure < BALANCER_FAILURE_COUNT);
	return failure_words[failure];
}
