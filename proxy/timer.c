#include "proxy/timer.h"

#include <assert.h>
#include <stdbool.h>

enum { SLOT_BITS = 6, SLOT_MASK = TIMER_SLOTS - 1 };

static_assert(TIMER_SLOTS == 1 << SLOT_BITS, "slots are a power of two");

void timer_wheel_init(struct timer_wheel *wheel, int64_t now_ms)
{
	wheel->tick = 0;
	wheel->zero_ms = now_ms;
	for (unsigned l = 0; l < TIMER_LEVELS; l++) {
		wheel->filled[l] = 0;
		for (unsigned s = 0; s < TIMER_SLOTS; s++) {
			struct timer *head = &wheel->slots[l][s];

			head->next = head->prev = head;
		}
	}
}

void timer_init(struct timer *timer)
{
	timer->next = timer->prev = NULL;
	timer->at_ms = TIMER_NEVER;
}

void timer_clear(struct timer *timer)
{
	timer->at_ms = TIMER_NEVER;
	if (timer->next == NULL)
		return;
	timer->next->prev = timer->prev;
	timer->prev->next = timer->next;
	timer->next = timer->prev = NULL;
	/* The slot's bit stays: an empty slot is noticed when it comes up. */
}

/* The first tick that begins at or after at_ms: never early. */
static uint32_t tick_of(const struct timer_wheel *wheel, int64_t at_ms)
{
	const int64_t last = (int64_t)1 << (SLOT_BITS * TIMER_LEVELS);
	int64_t tick = 0;

	if (at_ms > wheel->zero_ms)
		tick = (at_ms - wheel->zero_ms + TIMER_TICK_MS - 1) /
		       TIMER_TICK_MS;
	if (tick < wheel->tick)
		return wheel->tick;
	if (tick - wheel->tick >= last)
		return wheel->tick + (uint32_t)last - 1;
	return (uint32_t)tick;
}

/* Put a timer that is not filed where its tick is, as seen from now. */
static void file(struct timer_wheel *wheel, struct timer *timer)
{
	uint32_t ahead = timer->tick - wheel->tick;
	unsigned level = 0;

	while (level + 1 < TIMER_LEVELS && ahead >> (SLOT_BITS * (level + 1)))
		level++;

	unsigned slot = timer->tick >> (SLOT_BITS * level) & SLOT_MASK;
	struct timer *head = &wheel->slots[level][slot];

	timer->next = head;
	timer->prev = head->prev;
	head->prev->next = timer;
	head->prev = timer;
	wheel->filled[level] |= UINT64_C(1) << slot;
}

void timer_set(struct timer_wheel *wheel, struct timer *timer, int64_t at_ms)
{
	if (at_ms == TIMER_NEVER) {
		timer_clear(timer);
		return;
	}

	uint32_t tick = tick_of(wheel, at_ms);

	if (timer->next != NULL && (int32_t)(tick - timer->tick) >= 0) {
		timer->at_ms = at_ms; /* filed anew when that tick comes */
		return;
	}
	timer_clear(timer);
	timer->at_ms = at_ms;
	timer->tick = tick;
	file(wheel, timer);
}

/* File again what stands in a slot of a higher level: it has come near. */
static void cascade(struct timer_wheel *wheel, unsigned level)
{
	unsigned slot = wheel->tick >> (SLOT_BITS * level) & SLOT_MASK;
	struct timer *head = &wheel->slots[level][slot];
	struct timer *timer = head->next;

	wheel->filled[level] &= ~(UINT64_C(1) << slot);
	if (timer == head)
		return;
	head->prev->next = NULL;
	head->next = head->prev = head;
	while (timer != NULL) {
		struct timer *next = timer->next;

		timer->tick = tick_of(wheel, timer->at_ms);
		file(wheel, timer);
		timer = next;
	}
}

/* The next tick at which a slot comes up that may hold something. */
static bool next_tick(const struct timer_wheel *wheel, uint32_t *tick)
{
	bool found = false;

	for (unsigned l = 0; l < TIMER_LEVELS; l++) {
		unsigned shift = SLOT_BITS * l;
		uint32_t here = wheel->tick >> shift;
		uint32_t low = wheel->tick & ((UINT32_C(1) << shift) - 1);

		if (wheel->filled[l] == 0)
			continue;
		/* Level 0 looks at this slot too, the others at what follows
		 * unless they stand right at its beginning. */
		for (uint32_t k = low == 0 ? 0 : 1; k <= TIMER_SLOTS; k++) {
			if (!(wheel->filled[l] >> ((here + k) & SLOT_MASK) & 1))
				continue;
			uint32_t at = (here + k) << shift;

			if (!found || (int32_t)(at - *tick) < 0)
				*tick = at;
			found = true;
			break;
		}
	}
	return found;
}

/* Bring down what the levels above hold for the tick that now begins. */
static void enter_tick(struct timer_wheel *wheel)
{
	for (unsigned l = TIMER_LEVELS - 1; l > 0; l--) {
		uint32_t low = (UINT32_C(1) << (SLOT_BITS * l)) - 1;

		if ((wheel->tick & low) == 0)
			cascade(wheel, l);
	}
}

struct timer *timer_due(struct timer_wheel *wheel, int64_t now_ms)
{
	uint32_t until = (uint32_t)((now_ms - wheel->zero_ms) / TIMER_TICK_MS);
	uint32_t tick = 0;

	while (next_tick(wheel, &tick) && (int32_t)(until - tick) >= 0) {
		wheel->tick = tick;
		enter_tick(wheel);

		unsigned slot = tick & SLOT_MASK;
		struct timer *head = &wheel->slots[0][slot];

		while (head->next != head) {
			struct timer *timer = head->next;
			int64_t at_ms = timer->at_ms;

			timer_clear(timer);
			if (at_ms <= now_ms)
				return timer;
			timer_set(wheel, timer, at_ms);
		}
		wheel->filled[0] &= ~(UINT64_C(1) << slot);
	}
	if ((int32_t)(until - wheel->tick) > 0)
		wheel->tick = until;
	return NULL;
}

int64_t timer_next_ms(const struct timer_wheel *wheel)
{
	uint32_t tick = 0;

	if (!next_tick(wheel, &tick))
		return TIMER_NEVER;
	return wheel->zero_ms + (int64_t)tick * TIMER_TICK_MS;
}
