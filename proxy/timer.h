#ifndef PROXY_TIMER_H
#define PROXY_TIMER_H

#include <stddef.h>
#include <stdint.h>

/*
 * Deadlines: a hierarchical wheel of 100 ms ticks.
 *
 * A timer is never early, and late by at most one tick.  Setting one that is
 * already set to a later time costs nothing: it is filed anew when its old
 * place comes up.  There is no work, and no wake-up, but for timers that are
 * due or that move one level down.
 *
 * Pure.  A timer is embedded in what it wakes and must not move in memory;
 * the wheel owns the links, the embedding struct the memory.
 */

enum {
	TIMER_TICK_MS = 100,
	TIMER_SLOTS = 64,
	TIMER_LEVELS = 4, /* 64^4 ticks: 19 days; what is later waits there */
};

/* No deadline. */
#define TIMER_NEVER INT64_MAX

struct timer {
	struct timer *next, *prev; /* NULL: not filed */
	int64_t at_ms;             /* TIMER_NEVER: not set */
	uint32_t tick;             /* where it is filed */
};

struct timer_wheel {
	uint32_t tick; /* all before this one has been looked at */
	int64_t zero_ms;
	uint64_t filled[TIMER_LEVELS]; /* a bit for each slot with timers */
	struct timer slots[TIMER_LEVELS][TIMER_SLOTS]; /* list heads */
};

void timer_wheel_init(struct timer_wheel *wheel, int64_t now_ms);

/* Not set, not filed. */
void timer_init(struct timer *timer);

/* Set, move or (TIMER_NEVER) forget a deadline. */
void timer_set(struct timer_wheel *wheel, struct timer *timer, int64_t at_ms);

/* Take it out of the wheel: before its memory goes to other use. */
void timer_clear(struct timer *timer);

/*
 * One timer that is due at now_ms, no longer set; NULL: no more are due.
 * Call until NULL.  What was due first need not come first.
 */
struct timer *timer_due(struct timer_wheel *wheel, int64_t now_ms);

/* When to look again: never later than the earliest timer + one tick. */
int64_t timer_next_ms(const struct timer_wheel *wheel);

#endif
