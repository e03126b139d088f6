#ifndef BALANCER_ROOM_H
#define BALANCER_ROOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/balancer.h"

/*
 * The waiting room: sessions that need a slot while there is none.
 *
 * Served round-robin by source: a source with many waiters has one turn, as
 * has one with a single waiter; within a source, first come first served.
 *
 * Pure: no I/O, no clock, no allocation; the caller gives the memory.  Shared
 * by all workers, behind a mutex of its own; any thread may call anything.
 *
 * A waiter's way:
 *
 *	room_enter()               it waits; the ticket is its name
 *	room_next(), room_grant()  whoever has a slot for it leaves it there
 *	room_called()              its own worker finds the slot, and the
 *	                           ticket is void
 *	room_leave()               or it gives up: void too
 */

struct room;

enum {
	ROOM_SIZE_MAX = 1 << 16,
	ROOM_WORKERS_MAX = 64,
	/* Sources that room_next() may pass over for the sake of one that
	 * waits on the worker that asks.  None is passed over twice (but by
	 * workers that ask at the very same time). */
	ROOM_LOOKAHEAD = 8,
};

struct room_policy {
	uint32_t size;       /* places, 0..ROOM_SIZE_MAX; 0: nobody waits */
	uint32_t per_source; /* places of one source, 1 or more */
	/* Of the places, rounded down: for good sources only. */
	uint32_t reserve_percent;
	int64_t wait_ms; /* the longest wait; for room_pressure() */
	/* Saturation begins when the pressure has been at or above
	 * high_percent for saturated_after_ms without a break, and ends when
	 * it has fallen to low_percent. */
	uint32_t high_percent;
	uint32_t low_percent;
	int64_t saturated_after_ms;
};

/* A place in the room; 0 is never valid. */
typedef uint64_t room_ticket;

struct room_guest {
	uint64_t source;           /* hash of the client's network */
	bool good;                 /* may use the reserve */
	unsigned worker;           /* which worker it belongs to */
	void *who;                 /* the worker's own; never looked into */
	struct balancer_need need; /* copied */
};

enum room_verdict {
	ROOM_ENTERED,
	ROOM_FULL,        /* every place it may use is taken */
	ROOM_SOURCE_FULL, /* its source has per_source waiting */
};

/* Octets of memory, aligned to 64, for a room of up to size places. */
size_t room_size(uint32_t size);
struct room *room_init(void *memory, uint32_t size,
		       const struct room_policy *policy);
void room_fini(struct room *room);

/*
 * A reload: who is inside stays, and nobody enters until there are fewer than
 * the new bounds allow.  A size above that of room_init() is taken as that;
 * memory for ROOM_SIZE_MAX costs little, for what is not used is not touched.
 * Values that make no sense are taken for the nearest that do.
 */
void room_set_policy(struct room *room, const struct room_policy *policy);

/*
 * How many wait and have not been called.  Lock-free.  Nobody is forgotten if
 * who enters asks balancer_reserve() once more afterwards, and who gives a
 * slot back asks this afterwards: one of the two sees the other.
 */
uint32_t room_waiting(const struct room *room);

enum room_verdict room_enter(struct room *room, const struct room_guest *guest,
			     int64_t now_ms, room_ticket *ticket);

/*
 * Whose turn it is: the ticket and what it needs.  prefer: a worker, whose
 * waiters may go first as ROOM_LOOKAHEAD says; -1: none.  skip: how many
 * turns to look past (those for whom no backend fits): counting up from 0, as
 * long as nobody comes or goes, gives each source's first waiter once.  Takes
 * time in proportion to skip.  False: there is nobody.  Changes nothing: the
 * turn is taken by room_grant().
 */
struct room_turn {
	room_ticket ticket;
	unsigned worker;
	void *who;
	struct balancer_need need;
};
bool room_next(struct room *room, int prefer, unsigned skip,
	       struct room_turn *turn);

/*
 * Leave it a slot: it waits no more, and its source goes to the end of the
 * round.  False: it had left or was called meanwhile; the slot is still the
 * caller's.
 */
bool room_grant(struct room *room, room_ticket ticket,
		const struct balancer_slot *slot, int64_t now_ms);

/*
 * The next of this worker's waiters that were called, with their slots.
 * False: there is none.  To be asked until then whenever it is woken.
 */
bool room_called(struct room *room, unsigned worker, void **who,
		 struct balancer_slot *slot);
/* Does any wait to be told?  Lock-free. */
bool room_has_called(const struct room *room, unsigned worker);

/*
 * It gives up.  True: it had been called already and *slot is what was left
 * for it: give that back.  False: nothing was; a void ticket does no harm.
 */
bool room_leave(struct room *room, room_ticket ticket, int64_t now_ms,
		struct balancer_slot *slot);

/*
 * How near the room is to turning people away, in percent, 0..100: the larger
 * of its fill (all who are inside, against the places that are open to all),
 * and how long the source whose turn is next has waited for its turn, against
 * wait_ms.  Neither a source that is loud nor one that no backend fits raises
 * it by itself while others are served.
 */
uint32_t room_pressure(struct room *room, int64_t now_ms);

/*
 * Saturated?  To be asked at each newcomer and now and then.  *changed (may
 * be NULL): it has begun or ended since anybody was told so, for one line in
 * the log.
 */
bool room_saturated(struct room *room, int64_t now_ms, bool *changed);

/*	COUNTER(name, unit, help): they only grow */
#define ROOM_COUNTERS(COUNTER)                                                 \
	COUNTER(entered, sessions, "came to wait for a slot")                  \
	COUNTER(served, sessions, "got one")                                   \
	COUNTER(left, sessions, "gave up: the wait or the client ended")       \
	COUNTER(refused_full, sessions, "found the room full")                 \
	COUNTER(refused_source, sessions,                                      \
		"found that many of their source waiting")                     \
	COUNTER(wait_ms, milliseconds, "waited by those who were served")      \
	COUNTER(saturations, times, "the room has been saturated")

#define ROOM_COUNTER_INDEX(name, unit, help) ROOM_COUNT_##name,
enum room_counter { ROOM_COUNTERS(ROOM_COUNTER_INDEX) ROOM_COUNTER_COUNT };
#undef ROOM_COUNTER_INDEX

struct room_row {
	const char *name;
	const char *unit;
	const char *help;
};
extern const struct room_row room_counter_rows[ROOM_COUNTER_COUNT];

/* For `show room`.  entered = served + left + waiting + called. */
struct room_view {
	struct room_policy policy;
	uint32_t waiting;
	uint32_t sources;  /* that have waiters */
	uint32_t called;   /* have a slot and are about to be told */
	uint32_t pressure; /* percent */
	int64_t oldest_ms; /* how long the longest has waited; 0: none */
	bool saturated;
	int64_t saturated_since_ms; /* of now_ms's clock; 0: not */
	/* The waits of the last 1024 served; 0 if there were none. */
	uint32_t wait_p50_ms, wait_p99_ms;
	uint64_t counters[ROOM_COUNTER_COUNT];
};
void room_look(struct room *room, int64_t now_ms, struct room_view *view);

const char *room_verdict_name(enum room_verdict verdict);

#endif
