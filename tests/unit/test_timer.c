#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "proxy/timer.h"

/*
 * The model is an array of deadlines.  After any operations the wheel must
 * agree with it: nothing early, nothing later than a tick, nothing twice,
 * nothing forgotten, and timer_next_ms() never so late that something would
 * be missed.
 */

enum { TIMERS = 200 };

static struct timer_wheel wheel;
static struct timer timers[TIMERS];
static int64_t model[TIMERS]; /* TIMER_NEVER: not set */
static uint64_t seed;

/* xorshift64* (Marsaglia; Vigna). */
static uint64_t draw(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return seed * UINT64_C(2685821657736338717);
}

static void begin(int64_t now_ms)
{
	timer_wheel_init(&wheel, now_ms);
	for (size_t i = 0; i < TIMERS; i++) {
		timer_init(&timers[i]);
		model[i] = TIMER_NEVER;
	}
}

static void set(size_t i, int64_t at_ms)
{
	timer_set(&wheel, &timers[i], at_ms);
	model[i] = at_ms;
}

/* The earliest in the model, or TIMER_NEVER. */
static int64_t earliest(void)
{
	int64_t at_ms = TIMER_NEVER;

	for (size_t i = 0; i < TIMERS; i++) {
		if (model[i] < at_ms)
			at_ms = model[i];
	}
	return at_ms;
}

static void pull(int64_t now_ms)
{
	struct timer *timer;

	while ((timer = timer_due(&wheel, now_ms)) != NULL) {
		size_t i = (size_t)(timer - timers);

		assert_true(i < TIMERS);
		if (model[i] > now_ms)
			fail_msg("timer %zu came %lld ms early, or twice", i,
				 (long long)(model[i] - now_ms));
		assert_true(timer->at_ms == TIMER_NEVER);
		model[i] = TIMER_NEVER;
	}
	/* A tick has begun at most TIMER_TICK_MS - 1 ago. */
	for (size_t i = 0; i < TIMERS; i++) {
		if (model[i] <= now_ms - TIMER_TICK_MS)
			fail_msg("timer %zu is %lld ms late", i,
				 (long long)(now_ms - model[i]));
	}

	int64_t first = earliest();
	int64_t next = timer_next_ms(&wheel);

	if (first != TIMER_NEVER && next > first + TIMER_TICK_MS)
		fail_msg("next is %lld ms too late",
			 (long long)(next - first - TIMER_TICK_MS));
}

/* From now: mostly near, sometimes far, sometimes past. */
static int64_t some_time(int64_t now_ms)
{
	static const int64_t reach[] = {
		1,        TIMER_TICK_MS, 6400,       409600,
		26214400, 1677721600,    5000000000,
	};
	int64_t far = reach[draw() % (sizeof(reach) / sizeof(reach[0]))];
	int64_t at_ms = now_ms + (int64_t)(draw() % (uint64_t)far);

	if (draw() % 16 == 0)
		return now_ms - (int64_t)(draw() % 1000) % now_ms;
	return at_ms;
}

static void operate(int64_t now_ms)
{
	for (unsigned n = (unsigned)(draw() % 20); n > 0; n--) {
		size_t i = draw() % TIMERS;

		switch (draw() % 8) {
		case 0:
			timer_clear(&timers[i]);
			model[i] = TIMER_NEVER;
			break;
		case 1:
			set(i, TIMER_NEVER);
			break;
		default:
			set(i, some_time(now_ms));
			break;
		}
	}
}

static void the_wheel_agrees_with_a_naive_model(void **state)
{
	(void)state;
	for (uint64_t s = 1; s <= 300; s++) {
		int64_t now_ms = (int64_t)(1 + s * 7919 % 100000);

		seed = s * UINT64_C(0x9e3779b97f4a7c15);
		begin(now_ms);
		for (unsigned step = 0; step < 400; step++) {
			operate(now_ms);
			pull(now_ms);
			/* As the worker does, as others' events do, or late
			 * after a long stop. */
			int64_t next = timer_next_ms(&wheel);

			if (draw() % 2 == 0 && next != TIMER_NEVER &&
			    next > now_ms)
				now_ms = next;
			else if (draw() % 64 == 0)
				now_ms += (int64_t)(draw() % 100000000);
			else
				now_ms += (int64_t)(draw() % 300);
		}
	}
}

/* A wheel that says "later" must really sleep: no turn without work. */
static void sleeping_until_next_reaches_every_deadline(void **state)
{
	(void)state;
	for (uint64_t s = 1; s <= 50; s++) {
		int64_t now_ms = 12345;
		unsigned turns = 0;

		seed = s * 77;
		begin(now_ms);
		for (size_t i = 0; i < TIMERS; i++)
			set(i, some_time(now_ms));
		while (earliest() != TIMER_NEVER) {
			int64_t next = timer_next_ms(&wheel);

			assert_true(next != TIMER_NEVER);
			if (next > now_ms)
				now_ms = next;
			pull(now_ms);
			turns++;
			/* Each deadline, and each level on its way down; what
			 * is beyond the wheel goes round once more. */
			assert_in_range(turns, 1, TIMERS * (TIMER_LEVELS + 8));
		}
		assert_null(timer_due(&wheel, now_ms + 1000000000));
	}
}

static void a_timer_is_never_early(void **state)
{
	(void)state;
	for (int64_t ms = 1; ms < INT64_C(3) * TIMER_TICK_MS; ms++) {
		begin(1000);
		set(0, 1000 + ms);
		assert_null(timer_due(&wheel, 1000 + ms - 1));
		assert_ptr_equal(timer_due(&wheel, 1000 + ms + TIMER_TICK_MS),
				 &timers[0]);
		assert_null(timer_due(&wheel, 1000 + ms + TIMER_TICK_MS));
	}
}

static void a_later_deadline_replaces_an_earlier_one(void **state)
{
	(void)state;
	begin(1000);
	set(0, 2000);
	set(0, 500000);
	assert_null(timer_due(&wheel, 499999));
	assert_ptr_equal(timer_due(&wheel, 500100), &timers[0]);
	set(0, 900000);
	set(0, 600000);
	assert_ptr_equal(timer_due(&wheel, 600100), &timers[0]);
}

static void a_timer_cleared_or_never_set_does_not_come(void **state)
{
	(void)state;
	begin(1000);
	assert_true(timer_next_ms(&wheel) == TIMER_NEVER);
	set(0, 2000);
	timer_clear(&timers[0]);
	timer_clear(&timers[0]);
	timer_clear(&timers[1]);
	set(2, TIMER_NEVER);
	assert_null(timer_due(&wheel, 1000000));
	assert_true(timers[0].at_ms == TIMER_NEVER);
}

static void what_is_past_is_due_at_once(void **state)
{
	(void)state;
	begin(50000);
	set(0, 1);
	set(1, 50000);
	assert_non_null(timer_due(&wheel, 50000));
	assert_non_null(timer_due(&wheel, 50000));
	assert_null(timer_due(&wheel, 50000));
}

/* 19 days is the wheel's reach; a month waits at its rim and goes on. */
static void beyond_the_wheel_it_is_still_exact(void **state)
{
	const int64_t month_ms = INT64_C(30) * 86400 * 1000;
	int64_t now_ms = 5000;

	(void)state;
	begin(now_ms);
	set(0, now_ms + month_ms);
	while (timer_next_ms(&wheel) < 5000 + month_ms) {
		now_ms = timer_next_ms(&wheel);
		assert_null(timer_due(&wheel, now_ms));
	}
	assert_ptr_equal(timer_due(&wheel, 5000 + month_ms + TIMER_TICK_MS),
			 &timers[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_wheel_agrees_with_a_naive_model),
		cmocka_unit_test(sleeping_until_next_reaches_every_deadline),
		cmocka_unit_test(a_timer_is_never_early),
		cmocka_unit_test(a_later_deadline_replaces_an_earlier_one),
		cmocka_unit_test(a_timer_cleared_or_never_set_does_not_come),
		cmocka_unit_test(what_is_past_is_due_at_once),
		cmocka_unit_test(beyond_the_wheel_it_is_still_exact),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
