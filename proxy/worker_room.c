#include <assert.h>
#include <stdlib.h>

#include "proxy/config.h"
#include "proxy/work.h"

/*
 * The waiting room, as workers use it: whoever has freed a slot gives it to
 * whose turn it is, on whatever worker that is, before its turn ends.
 */

/* Backends that a waiter may find unreachable, one after the other. */
enum { ROUNDS = 8 };

static struct room_policy policy_of(const struct config_room *config)
{
	return (struct room_policy){
		.size = config->size,
		.per_source = config->per_source,
		.reserve_percent = config->reserve_percent,
		.wait_ms = config->wait_ms,
		.high_percent = config->high_percent,
		.low_percent = config->low_percent,
		.saturated_after_ms = config->saturated_after_ms,
	};
}

bool weir_open_room(struct weir *weir, const struct config *config)
{
	const struct room_policy policy = policy_of(&config->room);
	size_t size = (room_size(policy.size) + 63) / 64 * 64;
	void *memory = aligned_alloc(64, size);

	if (memory == NULL)
		return false;
	weir->room = room_init(memory, policy.size, &policy);
	weir->room_memory = memory;
	return true;
}

void weir_close_room(struct weir *weir)
{
	if (weir->room != NULL)
		room_fini(weir->room);
	weir->room = NULL;
	free(weir->room_memory);
	weir->room_memory = NULL;
}

void weir_change_room(struct weir *weir, const struct config *config)
{
	const struct room_policy policy = policy_of(&config->room);

	room_set_policy(weir->room, &policy);
}

/* ---- a client waits ---- */

int64_t room_wait_ends(const struct worker *w, const struct client *c)
{
	if (c->ticket == 0)
		return INT64_MAX;
	return c->session.binding_ms + w->config->room.wait_ms;
}

bool room_wait(struct worker *w, struct client *c)
{
	struct room_guest guest = {
		.source = c->source,
		.worker = w->index,
		.who = c,
	};
	int64_t ends_ms = c->session.binding_ms + w->config->room.wait_ms;

	assert(c->ticket == 0);
	/* By its turn, whoever refused it may have room: it may ask again. */
	c->need.tried_count = 0;
	guest.need = c->need;
	if (w->now_ms >= ends_ms)
		return false;
	guest.good = admission_good(w->weir->admission, &c->session.ticket,
				    w->now_ms);
	if (room_enter(w->weir->room, &guest, w->now_ms, &c->ticket) !=
	    ROOM_ENTERED) {
		c->ticket = 0;
		return false;
	}
	c->ticket_ms = w->now_ms;
	w->waiters++;
	w->newcomers = true;
	if (!c->waited)
		stats_add(&w->stats->waited, 1);
	c->waited = true;
	return true;
}

static void end_wait(struct worker *w, struct client *c)
{
	assert(c->ticket != 0);
	assert(w->waiters > 0);
	c->waited_ms += w->now_ms - c->ticket_ms;
	c->ticket = 0;
	w->waiters--;
}

void room_give_up(struct worker *w, struct client *c)
{
	struct balancer_slot slot;

	if (c->ticket == 0)
		return;
	if (room_leave(w->weir->room, c->ticket, w->now_ms, &slot))
		balancer_release(w->weir->farm, &slot);
	end_wait(w, c);
}

/* ---- and is called ---- */

static void connect_called(struct worker *w)
{
	struct balancer_slot slot;
	struct session_event event;
	void *who;

	while (room_called(w->weir->room, w->index, &who, &slot)) {
		struct client *c = who;
		struct server *gift = c->gift;

		end_wait(w, c);
		c->gift = NULL;
		assert(session_is_binding(&c->session));
		assert(c->server == NULL);
		if (gift != NULL ? bind_take_kept(w, c, gift, &event)
				 : bind_slot(w, c, &slot, &event))
			continue;
		client_tell(w, c, &event);
	}
}

/* A kept connection of ours for a waiter of ours. */
static bool give_kept(struct worker *w, const struct room_turn *turn)
{
	struct client *c = turn->who;
	struct server *v;

	if (turn->worker != w->index || session_is_tcp(&c->session))
		return false;
	v = bind_find_kept(w, &turn->need);
	if (v == NULL)
		return false;
	/* It is this waiter's: others who are called may look for one. */
	bind_set_aside(w, v);
	if (room_grant(w->weir->room, turn->ticket, &v->slot, w->now_ms))
		c->gift = v;
	else
		bind_put_back(w, v); /* called meanwhile, with another slot */
	connect_called(w);
	return true;
}

static void wake(struct worker *w, unsigned other)
{
	struct io *io = w->weir->workers[other]->io;

	/* This turn may be our last: then no message goes out any more. */
	if (w->draining)
		io_wake(io);
	else
		io_wake_from(w->io, io);
}

static void call(struct worker *w, const struct room_turn *turn,
		 const struct balancer_slot *slot)
{
	if (!room_grant(w->weir->room, turn->ticket, slot, w->now_ms)) {
		balancer_release(w->weir->farm, slot);
		return;
	}
	if (turn->worker != w->index)
		wake(w, turn->worker);
}

/* Give out one slot, if there is one.  False: that was all. */
static bool serve(struct worker *w, unsigned *skip, bool *full)
{
	bool kept = w->kept.next != &w->kept;
	struct backend_change change = { 0 };
	struct balancer_slot slot;
	struct room_turn turn;
	enum balancer_verdict verdict;

	if (!room_next(w->weir->room, kept ? (int)w->index : -1, *skip, &turn))
		return false;
	if (kept && give_kept(w, &turn))
		return true;
	verdict = balancer_reserve(w->weir->farm, &turn.need, w->now_ms,
				   io_random(w->io), &slot, &change);
	work_log_change(w, &change);
	switch (verdict) {
	case BALANCER_PICKED:
		call(w, &turn, &slot);
		return true;
	case BALANCER_ALL_FULL:
		*full = true;
		/* Where there is room, what this one needs may be lacking. */
		if (turn.need.ext == 0 && turn.need.size == 0)
			return false;
		break;
	case BALANCER_ALL_TRIED:
	case BALANCER_ALL_DOWN:
	case BALANCER_NO_EXTENSION:
	case BALANCER_UNCHECKED:
	case BALANCER_ALL_OPEN:
	case BALANCER_EMPTY:
	case BALANCER_VERDICT_COUNT:
		break;
	}
	/* None fits this one; perhaps the next. */
	return ++*skip < ROOM_LOOKAHEAD;
}

/* Are there waiters for whom no slot is on its way yet? */
static bool is_wanted(const struct worker *w)
{
	return atomic_load(&w->weir->yielding) < room_waiting(w->weir->room);
}

/* Idle connections have slots that are wanted now: ours, and others'. */
static void yield(struct worker *w)
{
	struct weir *weir = w->weir;

	while (is_wanted(w) && bind_make_room(w))
		;
	/* The others look again by themselves whenever a slot of theirs moves;
	 * of new waiters they must be told. */
	if (!is_wanted(w) || !w->newcomers)
		return;
	w->newcomers = false;
	for (unsigned i = 0; i < weir->worker_count; i++) {
		if (i != w->index && weir->workers[i] != NULL &&
		    atomic_load(&weir->idle[i]) > 0)
			wake(w, i);
	}
}

/* Ask its slot back; it comes when the backend has said goodbye to us. */
static void ask_back(struct worker *w, struct client *c)
{
	const struct session_event crowded = { .kind = SESSION_IN_CROWDED };
	struct server *v = c->server;

	assert(v != NULL);
	client_tell(w, c, &crowded);
	if (v->client == NULL)
		server_yield(w, v);
}

/*
 * So have those whose body takes its time; the oldest first, and no more than
 * there are waiters.
 */
static void hurry_holders(struct worker *w)
{
	struct client *c = w->holders.next_holder;
	struct client *next;

	for (unsigned seen = 0;
	     c != &w->holders && is_wanted(w) && seen < WORK_HOLDERS_SCAN;
	     seen++, c = next) {
		next = c->next_holder;
		if (w->now_ms < session_park_ms(&c->session))
			continue;
		ask_back(w, c);
		seen = 0;
	}
}

/*
 * When the next of them may be asked.  Those that could have been asked and
 * were not, are not needed: what changes that is an event, and no time.
 */
static int64_t holders_due_ms(const struct worker *w)
{
	const struct client *c = w->holders.next_holder;
	int64_t at_ms = INT64_MAX;

	for (unsigned seen = 0; c != &w->holders && seen < WORK_HOLDERS_SCAN;
	     seen++, c = c->next_holder) {
		int64_t park_ms = session_park_ms(&c->session);

		if (park_ms > w->now_ms && park_ms < at_ms)
			at_ms = park_ms;
	}
	return at_ms;
}

/* Slots for those who wait, as long as there are any. */
static bool serve_all(struct worker *w)
{
	unsigned skip = 0;
	bool full = false;

	while (serve(w, &skip, &full))
		;
	return full;
}

void room_turn(struct worker *w)
{
	struct room *room = w->weir->room;
	bool full = false;

	if (room_has_called(room, w->index))
		connect_called(w);
	/* Who was called and could not even connect, waits again: it is to be
	 * served now as well, for nobody else will think of it. */
	for (unsigned round = 0; room_waiting(room) > 0 && round < ROUNDS;
	     round++) {
		full = serve_all(w);
		if (!room_has_called(room, w->index))
			break;
		connect_called(w);
	}
	if (full && room_waiting(room) > 0) {
		yield(w);
		hurry_holders(w);
	}
}

int64_t room_due_ms(const struct worker *w)
{
	int64_t at_ms = INT64_MAX;
	int64_t park_ms = holders_due_ms(w);

	if (w->waiters > 0) {
		at_ms = balancer_retry_ms(w->weir->farm, w->now_ms);
		/* It was asked for in this turn, and in vain. */
		if (at_ms < w->now_ms + TIMER_TICK_MS)
			at_ms = w->now_ms + TIMER_TICK_MS;
	}
	return park_ms < at_ms ? park_ms : at_ms;
}

bool room_is_closed(struct worker *w, const struct client *c)
{
	bool changed = false;
	bool saturated = room_saturated(w->weir->room, w->now_ms, &changed);

	if (changed) {
		work_log_begin(w, "room");
		log_word(&w->log, "state", saturated ? "saturated" : "normal");
		log_number(&w->log, "waiting", room_waiting(w->weir->room));
		work_log(w, saturated ? LOG_LEVEL_WARNING : LOG_LEVEL_NOTICE);
	}
	return saturated && !admission_good(w->weir->admission,
					    &c->session.ticket, w->now_ms);
}
