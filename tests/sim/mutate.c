#include "tests/sim/mutate.h"

#include <string.h>

#include "balancer/balancer.h"
#include "balancer/limit.h"
#include "balancer/room.h"
#include "proxy/config.h"
#include "proxy/session.h"
#include "proxy/work.h"

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/*
 * The linker sends calls of these functions here (-Wl,--wrap=NAME), and
 * __real_NAME is the function itself.
 */
void __real_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan);
void __wrap_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan);
void __real_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot);
void __wrap_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot);
void __real_io_buf_put(struct io *io, struct io_buf *buf);
void __wrap_io_buf_put(struct io *io, struct io_buf *buf);
void __real_bind_park(struct worker *w, struct server *v);
void __wrap_bind_park(struct worker *w, struct server *v);
bool __real_room_next(struct room *room, int prefer, unsigned skip,
		      struct room_turn *turn);
bool __wrap_room_next(struct room *room, int prefer, unsigned skip,
		      struct room_turn *turn);
void __real_io_wake(struct io *io);
void __wrap_io_wake(struct io *io);
void __real_io_wake_from(struct io *from, struct io *to);
void __wrap_io_wake_from(struct io *from, struct io *to);
enum limit_phase __real_limit_greeted(struct limit *l,
				      const struct limit_policy *policy,
				      enum limit_phase phase, int64_t ms,
				      int64_t now_ms, uint64_t random);
enum limit_phase __wrap_limit_greeted(struct limit *l,
				      const struct limit_policy *policy,
				      enum limit_phase phase, int64_t ms,
				      int64_t now_ms, uint64_t random);
bool __real_cidr_set_has(const struct cidr_set *set,
			 const struct cidr_addr *addr);
bool __wrap_cidr_set_has(const struct cidr_set *set,
			 const struct cidr_addr *addr);
void __real_server_detach(struct worker *w, struct server *v);
void __wrap_server_detach(struct worker *w, struct server *v);
enum balancer_verdict __real_balancer_reserve(struct farm *farm,
					      const struct balancer_need *need,
					      int64_t now_ms, uint64_t random,
					      struct balancer_slot *slot,
					      struct backend_change *change);
enum balancer_verdict __wrap_balancer_reserve(struct farm *farm,
					      const struct balancer_need *need,
					      int64_t now_ms, uint64_t random,
					      struct balancer_slot *slot,
					      struct backend_change *change);

enum {
	SURVIVORS_MAX = 256, /* octets behind a STARTTLS that are kept */
	RECORD_MAX = 60000,  /* octets of a conversation kept for a replay */
	EVERY_RELEASE = 7,
	EVERY_PUT = 40,
	ENOUGH_BODY = 700,
	EVERY_WAITER = 4,
	EVERY_GREETING = 5,
	EVERY_CLOSED = 3,
};

/* One run has one bug; there is one run at a time. */
static struct {
	unsigned bug;
	unsigned count;
	unsigned calls;
	bool within;
	struct world *world;
	/* a conversation with a backend, to be said again to another */
	unsigned number;
	size_t len;
	bool ended;
	struct sim_end *ghost;
	char octets[RECORD_MAX];
	/* what came behind a STARTTLS, and whose it is; NULL: nobody's */
	const struct session *survives;
	size_t survivors_len;
	char survivors[SURVIVORS_MAX];
} now;

static const char *const names[MUTATE_BUGS] = {
	[MUTATE_NONE] = "none",
	[MUTATE_EARLY_250] = "early-250",
	[MUTATE_REPLAY] = "replay",
	[MUTATE_LOST_SLOT] = "lost-slot",
	[MUTATE_WRONG_SESSION] = "wrong-session",
	[MUTATE_STALE_EVENT] = "stale-event",
	[MUTATE_ALTERED] = "altered-octet",
	[MUTATE_LEAK] = "leaked-buffer",
	[MUTATE_REPLAY_AGAIN] = "replay-unanswered",
	[MUTATE_CARRIED_OVER] = "carried-over",
	[MUTATE_FORGOTTEN] = "forgotten-waiter",
	[MUTATE_LOST_WAKE_UP] = "lost-wake-up",
	[MUTATE_ABOVE_CEILING] = "above-ceiling",
	[MUTATE_STRANGER] = "believed-stranger",
	[MUTATE_SURVIVOR] = "survived-starttls",
	[MUTATE_LOGGED] = "logged-credentials",
	[MUTATE_UNINTRODUCED] = "skipped-xclient",
	[MUTATE_UNGUARDED] = "ignored-guard",
};

const char *mutate_name(unsigned bug)
{
	return bug < MUTATE_BUGS ? names[bug] : NULL;
}

unsigned mutate_find(const char *name)
{
	for (unsigned i = 1; i < MUTATE_BUGS; i++) {
		if (strcmp(names[i], name) == 0)
			return i;
	}
	return MUTATE_NONE;
}

unsigned mutate_count(void)
{
	return now.count;
}

/* --- between the modules --- */

static void early_250(struct session_plan *plan)
{
	static const char early[] = "250 2.0.0 Ok: queued\r\n";

	for (unsigned i = 0; i < plan->count; i++) {
		const struct session_act *act = &plan->acts[i];

		if (act->what != SESSION_DO_BODY ||
		    act->stage != BUSY_STAGE_EOD ||
		    plan->count == SESSION_ACTS_MAX)
			continue;
		plan->acts[plan->count++] = (struct session_act){
			.what = SESSION_DO_SAY,
			.text = early,
			.len = sizeof(early) - 1,
		};
		now.count++;
		return;
	}
}

/* No reply to the end of what was held: taken for "not now". */
static bool again(struct session *s, const struct session_env *env,
		  const struct session_event *event, struct session_plan *plan)
{
	static const char busy[] = "452 4.3.1 Insufficient storage\r\n";
	struct session_event refused = {
		.kind = SESSION_IN_REPLY,
		.stage = BUSY_STAGE_EOD,
		.class = BUSY_BUSY,
		.code = 452,
		.data = busy,
		.len = sizeof(busy) - 1,
	};
	unsigned kept = 0;

	if (event->kind != SESSION_IN_LOST || s->state != SESSION_FINAL ||
	    s->listener->slot != CONFIG_SLOT_BODY)
		return false;
	__real_session_step(s, env, &refused, plan);
	/* Its connection is gone already. */
	for (unsigned i = 0; i < plan->count; i++) {
		if (plan->acts[i].what != SESSION_DO_QUIT)
			plan->acts[kept++] = plan->acts[i];
	}
	plan->count = kept;
	now.count++;
	return true;
}

static bool does(const struct session_plan *plan, enum session_do what)
{
	for (unsigned i = 0; i < plan->count; i++) {
		if (plan->acts[i].what == what)
			return true;
	}
	return false;
}

static void keep_survivors(const struct session *s,
			   const struct session_event *event)
{
	static const char verb[] = "STARTTLS\r\n";
	const char *at = memmem(event->data, event->len, verb,
				sizeof(verb) - 1);

	if (at == NULL)
		return;
	at += sizeof(verb) - 1;
	size_t len = (size_t)(event->data + event->len - at);
	if (len == 0)
		return;
	len = len < SURVIVORS_MAX ? len : SURVIVORS_MAX;
	memcpy(now.survivors, at, len);
	now.survivors_len = len;
	now.survives = s;
}

/* What came behind STARTTLS is kept, and read once there is TLS. */
static void survive(struct session *s, const struct session_env *env,
		    const struct session_event *event,
		    struct session_plan *plan)
{
	if (event->kind == SESSION_IN_OCTETS && now.survives == NULL &&
	    does(plan, SESSION_DO_STARTTLS))
		keep_survivors(s, event);
	if (event->kind != SESSION_IN_SECURED || now.survives != s ||
	    plan->count > 0)
		return;
	const struct session_event more = {
		.kind = SESSION_IN_OCTETS,
		.data = now.survivors,
		.len = now.survivors_len,
	};
	__real_session_step(s, env, &more, plan);
	plan->consumed = 0;
	now.survives = NULL;
	now.count++;
}

static void tell_the_log(const struct session_plan *plan)
{
	for (unsigned i = 0; i < plan->count; i++) {
		const struct session_act *act = &plan->acts[i];

		if (act->what != SESSION_DO_COMMAND || !act->secret)
			continue;
		io_log(now.world->houses[0].ios[0], LOG_LEVEL_DEBUG, act->text,
		       act->len - strlen("\r\n"));
		now.count++;
	}
}

void __wrap_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan)
{
	if (now.bug == MUTATE_REPLAY_AGAIN && again(s, env, event, plan))
		return;
	__real_session_step(s, env, event, plan);
	if (now.bug == MUTATE_EARLY_250)
		early_250(plan);
	if (now.bug == MUTATE_SURVIVOR)
		survive(s, env, event, plan);
	if (now.bug == MUTATE_LOGGED)
		tell_the_log(plan);
}

/* Is this the list of those whose headers are believed? */
static bool is_of_proxies(const struct cidr_set *set)
{
	for (unsigned k = 0; k < now.world->house_count; k++) {
		const struct house *h = &now.world->houses[k];

		for (unsigned i = 0; i < h->config->listener_count; i++) {
			if (set == &h->config->listeners[i].proxy_from)
				return true;
		}
	}
	return false;
}

bool __wrap_cidr_set_has(const struct cidr_set *set,
			 const struct cidr_addr *addr)
{
	static const uint8_t forger[4] = { SIM_CLIENT_FORGER_OCTETS };

	if (now.bug != MUTATE_STRANGER || !is_of_proxies(set) ||
	    memcmp(addr->octets + 12, forger, 4) != 0)
		return __real_cidr_set_has(set, addr);
	now.count++;
	return true;
}

/* A kept connection, which is nobody's: as if nobody had to be introduced. */
void __wrap_server_detach(struct worker *w, struct server *v)
{
	if (now.bug == MUTATE_UNINTRODUCED && v->client == NULL &&
	    v->identity == BACKEND_IDENTITY_XCLIENT) {
		v->identity = BACKEND_IDENTITY_NONE;
		now.count++;
	}
	__real_server_detach(w, v);
}

enum balancer_verdict __wrap_balancer_reserve(struct farm *farm,
					      const struct balancer_need *need,
					      int64_t now_ms, uint64_t random,
					      struct balancer_slot *slot,
					      struct backend_change *change)
{
	struct balancer_need any = *need;

	if (now.bug == MUTATE_UNGUARDED) {
		now.count += any.stranger;
		any.stranger = false;
	}
	return __real_balancer_reserve(farm, &any, now_ms, random, slot,
				       change);
}

/* RSET is not said. */
void __wrap_bind_park(struct worker *w, struct server *v)
{
	if (now.bug != MUTATE_CARRIED_OVER) {
		__real_bind_park(w, v);
		return;
	}
	now.count++;
	bind_keep(w, v);
}

bool __wrap_room_next(struct room *room, int prefer, unsigned skip,
		      struct room_turn *turn)
{
	bool found = __real_room_next(room, prefer, skip, turn);

	if (!found || now.bug != MUTATE_FORGOTTEN || sim_slots_are_looking() ||
	    turn->ticket % EVERY_WAITER != 0)
		return found;
	now.count++;
	return false;
}

/* Has this worker somebody to be told? */
static bool has_called(const struct io *io)
{
	const struct world *w = now.world;

	for (unsigned k = 0; k < w->house_count; k++) {
		const struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++) {
			if (h->ios[i] == io)
				return room_has_called(h->weir.room, i);
		}
	}
	return false;
}

void __wrap_io_wake(struct io *io)
{
	if (now.bug == MUTATE_LOST_WAKE_UP && has_called(io))
		now.count++;
	else
		__real_io_wake(io);
}

void __wrap_io_wake_from(struct io *from, struct io *to)
{
	if (now.bug == MUTATE_LOST_WAKE_UP && has_called(to))
		now.count++;
	else
		__real_io_wake_from(from, to);
}

enum limit_phase __wrap_limit_greeted(struct limit *l,
				      const struct limit_policy *policy,
				      enum limit_phase phase, int64_t ms,
				      int64_t now_ms, uint64_t random)
{
	enum limit_phase to = __real_limit_greeted(l, policy, phase, ms, now_ms,
						   random);

	if (now.bug == MUTATE_ABOVE_CEILING && l->n + 1 >= l->ceiling &&
	    ++now.calls % EVERY_GREETING == 0) {
		l->l = (double)l->ceiling + 1;
		now.count++;
	}
	return to;
}

void __wrap_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot)
{
	if (now.bug == MUTATE_LOST_SLOT && ++now.calls % EVERY_RELEASE == 0) {
		now.count++;
		return;
	}
	__real_balancer_release(farm, slot);
}

void __wrap_io_buf_put(struct io *io, struct io_buf *buf)
{
	if (now.bug == MUTATE_LEAK && ++now.calls % EVERY_PUT == 0) {
		now.count++;
		return;
	}
	__real_io_buf_put(io, buf);
}

/* --- in the io --- */

static void to_another(struct io *io, io_handle socket,
		       const struct sim_io_row *row, const struct io_buf *buf)
{
	io_handle other = sim_io_other(io, socket, row->accepted);
	struct io_buf *copy;

	if (other == 0 || buf->len < 30 || now.calls++ % 9 != 0)
		return;
	copy = io_buf_get(io, buf->pool);
	if (copy == NULL)
		return;
	memcpy(copy->data, buf->data, buf->len);
	copy->len = buf->len;
	copy->room -= buf->len;
	now.within = true;
	now.count++;
	io_send(io, other, copy);
	now.within = false;
}

static void on_ghost(void *owner, struct sim_end *end, enum sim_what what,
		     int err)
{
	char buf[512];

	(void)owner;
	(void)err; /* no ghost complains */
	if (what == SIM_FAILED) {
		now.ghost = NULL;
		return;
	}
	if (what != SIM_DATA)
		return;
	while (sim_end_read(end, buf, sizeof(buf)) > 0)
		;
	if (now.len > 0)
		sim_end_say(end, now.octets, now.len);
	now.len = 0;
}

/* Keep what one backend is told; after its end of data tell another. */
static void record(struct io *io, const struct sim_io_row *row,
		   const struct io_buf *buf)
{
	static const char end[] = "\r\n.\r\n";
	struct world *w = now.world;

	(void)io;
	if (now.ended || now.ghost != NULL || row->number == 0)
		return;
	if (row->number != now.number) {
		if (buf->len < 4 || memcmp(buf->data, "EHLO c", 6) != 0)
			return;
		now.number = row->number;
		now.len = 0;
	}
	if (now.len + buf->len > RECORD_MAX)
		return;
	memcpy(now.octets + now.len, buf->data, buf->len);
	now.len += buf->len;
	if (now.len < 5 || memcmp(now.octets + now.len - 5, end, 5) != 0)
		return;
	for (unsigned i = 0; i < w->backend_count; i++) {
		if (sim_addr_equal(&row->peer->sa, &w->backend_addrs[i].sa))
			continue;
		now.ended = true;
		now.count++;
		now.ghost = sim_connect(w->sim, &w->backend_addrs[i].sa, NULL,
					on_ghost, NULL);
		return;
	}
}

static void on_sending(void *owner, struct io *io, io_handle socket,
		       const struct sim_io_row *row, struct io_buf *buf)
{
	(void)owner;
	if (now.within)
		return;
	if (now.bug == MUTATE_WRONG_SESSION)
		to_another(io, socket, row, buf);
	if (now.bug == MUTATE_REPLAY && !row->accepted)
		record(io, row, buf);
	if (now.bug == MUTATE_ALTERED && !row->accepted &&
	    buf->len > ENOUGH_BODY) {
		buf->data[buf->len / 2] ^= 1;
		now.count++;
	}
}

static bool on_again(void *owner, struct io *io)
{
	(void)owner;
	(void)io;
	if (++now.calls % EVERY_CLOSED != 0)
		return false;
	now.count++;
	return true;
}

void mutate_plant(struct world *w, unsigned bug)
{
	struct sim_io_bugs bugs = { .sending = on_sending };

	memset(&now, 0, sizeof(now));
	now.bug = bug;
	now.world = w;
	if (bug == MUTATE_NONE)
		return;
	if (bug == MUTATE_STALE_EVENT)
		bugs.again = on_again;
	for (unsigned k = 0; k < w->house_count; k++) {
		struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++)
			sim_io_bugs_set(h->ios[i], &bugs);
	}
}

/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
