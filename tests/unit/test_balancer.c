#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "balancer/balancer.h"

enum {
	START_MS = 1000000,
	THREADS = 4,
	ROUNDS = 20000,
};

static struct farm farm; /* large */
static struct backend_change change;
static const struct balancer_need anything;
static uint64_t seed;

static unsigned count_ejected(void);

/* A fixed sequence: each test draws the same numbers in every run. */
static uint64_t draw(void)
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return seed ^ seed >> 33;
}

static int setup(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	seed = 42;
	farm_init(&farm, &policy);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	farm_fini(&farm);
	return 0;
}

static struct backend *add(uint32_t max_sessions, uint32_t weight)
{
	char name[16];
	uint16_t index;
	struct backend_settings s = {
		.name = name,
		.address = "127.0.0.1:25",
		.max_sessions = max_sessions,
		.weight = weight,
	};

	snprintf(name, sizeof(name), "b%u", (unsigned)farm_size(&farm));
	assert_int_equal(farm_add(&farm, &s, START_MS, &index), FARM_OK);
	return &farm.backends[index];
}

/* Bring it up, by a probe that learned ext and size. */
static void probe_as(struct backend *b, enum probe_outcome outcome,
		     unsigned ext, uint64_t size, int64_t now)
{
	struct balancer_slot slot;
	struct probe_report report = {
		.outcome = outcome,
		.failed = outcome == PROBE_OK ? PROBE_STEP_DONE
					      : PROBE_STEP_CONNECT,
		.class = outcome == PROBE_OK ? BUSY_OK : BUSY_MAYBE,
		.ehlo_known = outcome == PROBE_OK,
		.ext = ext,
		.size = size,
	};

	/* The others' turns come, too: give those back. */
	for (;;) {
		assert_true(balancer_probe_claim(&farm, now, &slot));
		if (slot.index == b->index)
			break;
		struct probe_report none = { .outcome = PROBE_ABANDONED };
		struct backend_change ignored;

		balancer_probe_done(&farm, &slot, &none, now, draw(), &ignored);
	}
	balancer_probe_done(&farm, &slot, &report, now, draw(), &change);
}

static struct backend *add_up(uint32_t max_sessions, uint32_t weight)
{
	struct backend *b = add(max_sessions, weight);

	probe_as(b, PROBE_OK, SMTP_EXT_8BITMIME, 0, START_MS);
	assert_int_equal(backend_state(b), HEALTH_UP);
	return b;
}

static struct balancer_slot reserve_at(int64_t now)
{
	struct balancer_slot slot;

	assert_int_equal(
		balancer_reserve(&farm, &anything, now, draw(), &slot, &change),
		BALANCER_PICKED);
	return slot;
}

static struct balancer_slot reserve(void)
{
	return reserve_at(START_MS);
}

/* A slot of this very backend: all others were tried. */
static struct balancer_slot reserve_of(const struct backend *b, int64_t now)
{
	struct balancer_need need = { 0 };
	struct balancer_slot slot;

	for (uint16_t i = 0; i < farm_size(&farm); i++) {
		if (i != b->index)
			need.tried[need.tried_count++] = i;
	}
	assert_int_equal(
		balancer_reserve(&farm, &need, now, draw(), &slot, &change),
		BALANCER_PICKED);
	assert_int_equal(slot.index, b->index);
	return slot;
}

static enum balancer_verdict refused(const struct balancer_need *need,
				     int64_t now)
{
	struct balancer_slot slot;

	return balancer_reserve(&farm, need, now, draw(), &slot, &change);
}

static void note(struct balancer_slot *slot, enum busy_class class,
		 enum busy_stage stage, uint64_t source, int64_t now)
{
	struct balancer_outcome o = {
		.failure = BALANCER_REPLIED,
		.class = class,
		.stage = stage,
		.source = source,
	};

	balancer_note(&farm, slot, &o, now, draw(), &change);
}

/* 220, after 20 ms. */
static void greet(struct balancer_slot *slot, int64_t now)
{
	struct balancer_outcome o = {
		.failure = BALANCER_REPLIED,
		.class = BUSY_OK,
		.stage = BUSY_STAGE_GREET,
		.greet_ms = 20,
	};

	balancer_note(&farm, slot, &o, now, draw(), &change);
}

static void note_failure(struct balancer_slot *slot,
			 enum balancer_failure failure, enum busy_stage stage,
			 int64_t now)
{
	struct balancer_outcome o = {
		.failure = failure,
		.class = BUSY_MAYBE,
		.stage = stage,
	};

	balancer_note(&farm, slot, &o, now, draw(), &change);
}

/* One session that comes to nothing. */
static void fail_at(struct backend *b, enum balancer_failure failure,
		    enum busy_stage stage, int64_t now)
{
	struct balancer_slot slot = reserve_of(b, now);

	note_failure(&slot, failure, stage, now);
	balancer_release(&farm, &slot);
}

static void says(struct balancer_slot *slot, enum busy_class class,
		 enum busy_stage stage, uint64_t source, int64_t now)
{
	note(slot, class, stage, source, now);
	balancer_release(&farm, slot);
}

static void said(struct backend *b, enum busy_class class,
		 enum busy_stage stage, uint64_t source, int64_t now)
{
	struct balancer_slot slot = reserve_of(b, now);

	says(&slot, class, stage, source, now);
}

static void eject(struct backend *b, int64_t now)
{
	for (int i = 0; i < 3; i++)
		fail_at(b, BALANCER_TIMEOUT, BUSY_STAGE_TCP, now);
}

/* --- the choice --- */

static void load_is_shared_by_room_and_weight(void **state)
{
	(void)state;
	struct backend *small = add_up(10, 1);
	struct backend *large = add_up(30, 1);
	struct backend *heavy = add_up(10, 3);

	for (int i = 0; i < 35; i++)
		reserve();
	assert_in_range(atomic_load(&small->inflight), 5, 6);
	assert_in_range(atomic_load(&large->inflight), 14, 20);
	assert_int_equal(atomic_load(&heavy->inflight), 10);
}

static void ties_are_broken_at_random(void **state)
{
	(void)state;
	int won[5] = { 0 };

	for (int i = 0; i < 5; i++)
		add_up(100, 1);
	for (int i = 0; i < 10000; i++) {
		struct balancer_slot slot = reserve();

		won[slot.index]++;
		balancer_release(&farm, &slot);
	}
	for (int i = 0; i < 5; i++)
		assert_in_range(won[i], 1800, 2200);
}

static void the_same_random_bits_make_the_same_choice(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++)
		add_up(100, 1);
	for (uint64_t r = 0; r < 50; r++) {
		struct balancer_slot a, b;

		balancer_reserve(&farm, &anything, START_MS, r, &a, &change);
		balancer_release(&farm, &a);
		balancer_reserve(&farm, &anything, START_MS, r, &b, &change);
		balancer_release(&farm, &b);
		assert_int_equal(a.index, b.index);
	}
}

static void a_large_farm_fills_to_the_last_slot(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++)
		add_up(2, 1);
	for (int i = 0; i < 200; i++)
		reserve();
	assert_int_equal(refused(&anything, START_MS), BALANCER_ALL_FULL);
	for (uint16_t i = 0; i < 100; i++)
		assert_int_equal(atomic_load(&farm.backends[i].inflight), 2);
}

/* One of ten answers 451 at once to nine of ten sessions; each of the others
   holds a session for 50 turns. */
static void a_backend_that_fails_fast_does_not_draw_the_load(void **state)
{
	(void)state;
	enum { TURNS = 20000, HOLD = 50 };
	struct balancer_slot held[HOLD];
	bool holds[HOLD] = { false };
	int failed = 0;
	struct backend *bad = NULL;

	for (int i = 0; i < 10; i++)
		bad = add_up(10, 1);
	/* Half the farm is ejected at most; this one is not even sick. */
	for (int t = 0; t < TURNS; t++) {
		int64_t now = START_MS + t * 10;
		int at = t % HOLD;

		if (holds[at])
			balancer_release(&farm, &held[at]);
		holds[at] = false;
		struct balancer_slot slot = reserve_at(now);

		if (slot.index == bad->index && draw() % 10 != 0) {
			note(&slot, BUSY_MAYBE, BUSY_STAGE_GREET, draw(), now);
			balancer_release(&farm, &slot);
			failed++;
			continue;
		}
		note(&slot, BUSY_OK, BUSY_STAGE_EOD, draw(), now);
		held[at] = slot;
		holds[at] = true;
	}
	print_message("  %d of %d failed\n", failed, TURNS);
	assert_in_range(failed, 1, TURNS / 100);
	assert_int_equal(backend_state(bad), HEALTH_UP);
}

static void a_shunned_backend_gets_another_chance(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct backend *b = add_up(10, 1);

	for (uint64_t i = 0; i < 30; i++)
		(void)backend_error_up(a, 4, START_MS);
	for (int i = 0; i < 5; i++) {
		struct balancer_slot slot = reserve();

		assert_int_equal(slot.index, b->index);
		balancer_release(&farm, &slot);
	}
	uint32_t error = backend_error(a, START_MS);
	uint32_t later = backend_error(a, START_MS + 30000);

	assert_in_range(later, error / 2 - 1, error / 2 + 1);
	int64_t now = START_MS + 30 * 17 * 1000;
	int won = 0;

	assert_int_equal(backend_error(a, now), 0);
	for (int i = 0; i < 100; i++) {
		struct balancer_slot slot = reserve_at(now);

		won += slot.index == a->index;
		balancer_release(&farm, &slot);
	}
	assert_in_range(won, 25, 75);
}

/* --- why there is none --- */

static void an_empty_farm_says_so(void **state)
{
	(void)state;
	assert_int_equal(refused(&anything, START_MS), BALANCER_EMPTY);
}

static void each_reason_for_none_has_its_own_word(void **state)
{
	(void)state;
	struct backend *a = add_up(1, 1);
	struct backend *b = add_up(1, 1);
	struct balancer_need utf8 = { .ext = SMTP_EXT_SMTPUTF8 };
	struct balancer_need both = { .tried_count = 2, .tried = { 0, 1 } };
	struct balancer_need first = { .tried_count = 1, .tried = { 0 } };
	enum balancer_verdict why;

	assert_int_equal(refused(&utf8, START_MS), BALANCER_NO_EXTENSION);
	assert_int_equal(refused(&both, START_MS), BALANCER_ALL_TRIED);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_int_equal(refused(&first, START_MS), BALANCER_ALL_TRIED);
	assert_true(balancer_available(&farm, START_MS, &why, NULL));
	assert_int_equal(why, BALANCER_PICKED);
	backend_set_admin(a, BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(refused(&anything, START_MS), BALANCER_ALL_DOWN);
	assert_false(balancer_available(&farm, START_MS, &why, NULL));
	assert_int_equal(why, BALANCER_ALL_DOWN);
	backend_set_admin(a, BACKEND_READY, NULL);
	struct balancer_slot slot = reserve();

	assert_int_equal(refused(&anything, START_MS), BALANCER_ALL_FULL);
	assert_false(balancer_available(&farm, START_MS, &why, NULL));
	assert_int_equal(why, BALANCER_ALL_FULL);
	balancer_release(&farm, &slot);
	assert_true(balancer_available(&farm, START_MS, NULL, NULL));
}

static void it_is_known_since_when_there_has_been_no_room(void **state)
{
	(void)state;
	struct backend *a = add_up(1, 1);
	int64_t since;

	assert_true(balancer_available(&farm, START_MS, NULL, &since));
	assert_int_equal(since, START_MS);
	struct balancer_slot slot = reserve();

	assert_false(balancer_available(&farm, START_MS + 5, NULL, &since));
	assert_int_equal(since, START_MS + 5);
	refused(&anything, START_MS + 6);
	assert_false(balancer_available(&farm, START_MS + 9, NULL, &since));
	assert_int_equal(since, START_MS + 5);
	balancer_release(&farm, &slot);
	slot = reserve_of(a, START_MS + 10); /* room again */
	assert_false(balancer_available(&farm, START_MS + 11, NULL, &since));
	assert_int_equal(since, START_MS + 11);
	balancer_release(&farm, &slot);
}

static void only_who_offers_what_is_needed_is_chosen(void **state)
{
	(void)state;
	struct backend *plain = add(10, 1);
	struct backend *rich = add(10, 1);
	struct balancer_need utf8 = { .ext = SMTP_EXT_SMTPUTF8 };
	struct balancer_need big = { .ext = SMTP_EXT_SIZE, .size = 1001 };
	struct balancer_need fits = { .ext = SMTP_EXT_SIZE, .size = 1000 };

	assert_int_equal(refused(&utf8, START_MS), BALANCER_NO_EXTENSION);
	probe_as(plain, PROBE_OK, SMTP_EXT_SIZE, 1000, START_MS);
	probe_as(rich, PROBE_OK, SMTP_EXT_SMTPUTF8, 0, START_MS + 30000);
	for (int i = 0; i < 5; i++) {
		struct balancer_slot slot;

		balancer_reserve(&farm, &utf8, START_MS, draw(), &slot,
				 &change);
		assert_int_equal(slot.index, rich->index);
		balancer_reserve(&farm, &fits, START_MS, draw(), &slot,
				 &change);
		assert_int_equal(slot.index, plain->index);
	}
	assert_int_equal(refused(&big, START_MS), BALANCER_NO_EXTENSION);
}

static void the_offer_is_what_all_in_use_offer(void **state)
{
	(void)state;
	struct backend *a = add(10, 1);
	struct backend *b = add(10, 1);

	add(10, 1); /* never asked */
	assert_int_equal(balancer_offer(&farm).ext, 0);
	probe_as(a, PROBE_OK,
		 SMTP_EXT_SIZE | SMTP_EXT_DSN | SMTP_EXT_XCLIENT |
			 SMTP_EXT_STARTTLS,
		 5000, START_MS);
	assert_int_equal(balancer_offer(&farm).ext,
			 SMTP_EXT_SIZE | SMTP_EXT_DSN);
	assert_int_equal(balancer_offer(&farm).size, 5000);
	probe_as(b, PROBE_OK, SMTP_EXT_SIZE | SMTP_EXT_CHUNKING, 0,
		 START_MS + 30000);
	assert_int_equal(balancer_offer(&farm).ext, SMTP_EXT_SIZE);
	assert_int_equal(balancer_offer(&farm).size, 5000);
	probe_as(b, PROBE_OK, SMTP_EXT_SIZE | SMTP_EXT_DSN, 4000,
		 START_MS + 60000);
	assert_int_equal(balancer_offer(&farm).size, 4000);
	backend_set_admin(a, BACKEND_ADMIN_MAINT, NULL);
	probe_as(b, PROBE_OK, 0, 0, START_MS + 90000);
	assert_int_equal(balancer_offer(&farm).ext, 0);
	backend_set_admin(b, BACKEND_ADMIN_MAINT, NULL);
	backend_set_admin(a, BACKEND_ADMIN_DRAIN, NULL); /* still in use */
	assert_int_equal(balancer_offer(&farm).ext,
			 SMTP_EXT_SIZE | SMTP_EXT_DSN);
}

/* --- exact counts, with threads --- */

struct contest {
	_Atomic uint64_t taken, full;
	_Atomic uint32_t held[8]; /* as the threads themselves count */
	_Atomic bool over_limit;
};
static struct contest contest;

static void run_threads(void *(*run)(void *))
{
	pthread_t threads[THREADS];
	uint64_t seeds[THREADS];

	for (size_t i = 0; i < THREADS; i++) {
		seeds[i] = draw();
		assert_int_equal(
			pthread_create(&threads[i], NULL, run, &seeds[i]), 0);
	}
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void *contend(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;

	for (int i = 0; i < ROUNDS; i++) {
		struct balancer_slot slots[3];
		unsigned n = 0;

		while (n < 3) {
			random = random * 6364136223846793005ULL + 1;
			if (balancer_reserve(&farm, &anything, START_MS, random,
					     &slots[n],
					     &mine) != BALANCER_PICKED)
				break;
			uint16_t at = slots[n].index;

			if (atomic_fetch_add(&contest.held[at], 1) + 1 >
			    at + 1U)
				atomic_store(&contest.over_limit, true);
			n++;
		}
		atomic_fetch_add(&contest.taken, n);
		atomic_fetch_add(&contest.full, n < 3);
		while (n > 0) {
			struct balancer_outcome ok = {
				.class = BUSY_OK,
				.stage = BUSY_STAGE_EOD,
			};

			n--;
			balancer_note(&farm, &slots[n], &ok, START_MS, random,
				      &mine);
			atomic_fetch_sub(&contest.held[slots[n].index], 1);
			balancer_release(&farm, &slots[n]);
		}
	}
	return NULL;
}

static void no_interleaving_takes_a_slot_too_many(void **state)
{
	(void)state;
	uint64_t tried = 0;

	memset(&contest, 0, sizeof(contest));
	for (uint32_t i = 0; i < 3; i++)
		add_up(i + 1, 1); /* 6 slots for 12 wishes */
	run_threads(contend);
	assert_false(atomic_load(&contest.over_limit));
	for (uint32_t i = 0; i < 3; i++) {
		struct backend *b = &farm.backends[i];

		assert_int_equal(atomic_load(&b->inflight), 0);
		assert_true(atomic_load(&b->inflight_peak) <= i + 1);
		tried += backend_counter(b, BACKEND_COUNT_tried);
	}
	assert_int_equal(tried, atomic_load(&contest.taken));
	assert_true(tried >= ROUNDS);
}

static void *try_again(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;

	for (int i = 0; i < ROUNDS; i++) {
		struct balancer_slot slot;

		if (balancer_reserve(&farm, &anything, START_MS + 9000,
				     random++, &slot, &mine) != BALANCER_PICKED)
			continue;
		if (!slot.trial || atomic_fetch_add(&contest.held[0], 1) > 0)
			atomic_store(&contest.over_limit, true);
		atomic_fetch_add(&contest.taken, 1);
		atomic_fetch_sub(&contest.held[0], 1);
		balancer_release(&farm, &slot);
	}
	return NULL;
}

static void no_interleaving_makes_two_trials_at_once(void **state)
{
	(void)state;
	struct backend *a = add_up(100, 1);

	memset(&contest, 0, sizeof(contest));
	add_up(100, 1);
	eject(a, START_MS);
	backend_set_admin(&farm.backends[1], BACKEND_ADMIN_DRAIN, NULL);
	run_threads(try_again);
	assert_false(atomic_load(&contest.over_limit));
	assert_true(atomic_load(&contest.taken) > 0);
	assert_int_equal(backend_state(a), HEALTH_HALF_OPEN);
	assert_int_equal(atomic_load(&a->inflight), 0);
}

static void *quarrel(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;

	for (int i = 0; i < ROUNDS / 10; i++) {
		struct balancer_slot slot;
		int64_t now = START_MS + i * 10;

		random = random * 6364136223846793005ULL + 12345;
		if (balancer_reserve(&farm, &anything, now, random >> 8, &slot,
				     &mine) == BALANCER_PICKED) {
			struct balancer_outcome o = {
				.failure = random >> 40 & 1 ? BALANCER_LOST
							    : BALANCER_REPLIED,
				.class = (enum busy_class)(random >> 41 &
							   0xff) %
					 BUSY_CLASSES,
				.stage = BUSY_STAGE_MAIL,
				.source = random >> 50,
			};

			balancer_note(&farm, &slot, &o, now, random >> 8,
				      &mine);
			balancer_release(&farm, &slot);
		}
		if (balancer_probe_claim(&farm, now, &slot)) {
			struct probe_report r = {
				.outcome = random >> 33 & 1 ? PROBE_OK
							    : PROBE_REFUSED,
			};

			balancer_probe_done(&farm, &slot, &r, now, random,
					    &mine);
		}
		(void)balancer_offer(&farm);
		(void)balancer_due_ms(&farm);
		while (balancer_tick(&farm, now, &mine))
			;
		/* Ejections happen behind this mutex: the count is exact. */
		pthread_mutex_lock(&farm.mutex);
		unsigned ejected = count_ejected();

		pthread_mutex_unlock(&farm.mutex);
		if (ejected > farm_size(&farm) / 2)
			atomic_store(&contest.over_limit, true);
	}
	return NULL;
}

static void threads_that_note_all_kinds_of_things_get_along(void **state)
{
	(void)state;
	uint64_t changes = 0;

	memset(&contest, 0, sizeof(contest));
	for (int i = 0; i < 5; i++)
		add_up(3, 1);
	run_threads(quarrel);
	assert_false(atomic_load(&contest.over_limit));
	for (int i = 0; i < 5; i++) {
		assert_int_equal(atomic_load(&farm.backends[i].inflight), 0);
		changes += backend_counter(&farm.backends[i],
					   BACKEND_COUNT_state_changes);
	}
	assert_true(changes > 5);
}

/* --- busy --- */

static void busy_to_one_source_changes_no_state(void **state)
{
	(void)state;
	struct backend *a = add_up(100, 1);

	add_up(100, 1);
	struct balancer_slot slots[50];

	for (int i = 0; i < 50; i++)
		slots[i] = reserve_of(a, START_MS);
	for (int i = 0; i < 50; i++) {
		says(&slots[i], BUSY_BUSY, BUSY_STAGE_GREET, 7,
		     START_MS + i * 100);
		assert_false(change.changed);
	}
	assert_int_equal(backend_state(a), HEALTH_UP);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_class_busy), 50);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_votes_dropped), 49);
	/* One vote's worth of error, though, so that others come first. */
	assert_in_range(backend_error(a, START_MS + 5000), 1,
			BACKEND_ERROR_ONE / 8);
}

static void busy_to_three_sources_holds_off(void **state)
{
	(void)state;
	struct backend *a = add_up(100, 1);

	said(a, BUSY_BUSY, BUSY_STAGE_GREET, 1, START_MS);
	said(a, BUSY_BUSY, BUSY_STAGE_EHLO, 2, START_MS + 20);
	assert_int_equal(backend_state(a), HEALTH_UP);
	said(a, BUSY_BUSY, BUSY_STAGE_GREET, 3, START_MS + 40);
	assert_true(change.changed);
	assert_int_equal(change.from, HEALTH_UP);
	assert_int_equal(change.to, HEALTH_BUSY);
	assert_int_equal(change.why, HEALTH_WHY_BUSY_VOTES);
	assert_int_equal(change.until_ms, START_MS + 1040);
	assert_int_equal(balancer_due_ms(&farm), START_MS + 1040);
	/* Busy is alive: full, not down. */
	assert_int_equal(refused(&anything, START_MS + 1039),
			 BALANCER_ALL_FULL);
	struct balancer_slot slot = reserve_at(START_MS + 1040);

	assert_true(change.changed);
	assert_int_equal(change.from, HEALTH_BUSY);
	assert_int_equal(change.to, HEALTH_UP);
	balancer_release(&farm, &slot);
}

static void one_strong_sign_is_enough(void **state)
{
	(void)state;
	static const struct {
		const char *about;
		struct balancer_outcome outcome;
		enum health_why why;
		int64_t ms;
	} cases[] = {
		{ "X.3.1 before MAIL",
		  { BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_GREET, true, 1, 0 },
		  HEALTH_WHY_BUSY_STRONG,
		  1000 },
		{ "452 4.3.1 at MAIL: a cooldown",
		  { BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_MAIL, true, 1, 0 },
		  HEALTH_WHY_RESOURCES,
		  5000 },
		{ "452 4.3.1 at the end of data",
		  { BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_EOD, true, 1, 0 },
		  HEALTH_WHY_RESOURCES,
		  5000 },
		{ "a silent greeting",
		  { BALANCER_SILENT, BUSY_BUSY, BUSY_STAGE_GREET, false, 1, 0 },
		  HEALTH_WHY_BUSY_STRONG,
		  1000 },
		{ "a refused connection",
		  { BALANCER_REFUSED, BUSY_MAYBE, BUSY_STAGE_TCP, false, 1, 0 },
		  HEALTH_WHY_REFUSED,
		  1000 },
	};

	for (uint64_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct backend *b = add_up(10, 1);
		struct balancer_slot slot = reserve_of(b, START_MS);

		print_message("  %s\n", cases[i].about);
		balancer_note(&farm, &slot, &cases[i].outcome, START_MS, 0,
			      &change);
		assert_true(change.changed);
		assert_int_equal(change.to, HEALTH_BUSY);
		assert_int_equal(change.why, cases[i].why);
		assert_int_equal(change.until_ms - START_MS, cases[i].ms);
		balancer_release(&farm, &slot);
	}
}

static void verdicts_on_the_client_move_nothing(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct backend *b = add_up(10, 1);
	static struct backend_view before, after; /* large */

	said(a, BUSY_SICK, BUSY_STAGE_MAIL, 9, START_MS);
	uint32_t error = backend_error(a, START_MS);

	backend_look(a, &before);
	struct balancer_slot slot = reserve_of(a, START_MS);

	for (int i = 0; i < 1000; i++) {
		note(&slot, BUSY_POLICY, BUSY_STAGE_RCPT, 1, START_MS);
		assert_false(change.changed);
	}
	for (int i = 0; i < 1000; i++)
		note(&slot, BUSY_SESSION, BUSY_STAGE_RCPT, 1, START_MS);
	balancer_release(&farm, &slot);
	backend_look(a, &after);
	assert_memory_equal(&before.health, &after.health,
			    sizeof(before.health));
	assert_int_equal(backend_error(a, START_MS), error);
	assert_int_equal(backend_error(b, START_MS), 0);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_class_policy), 1000);
}

static void a_cap_on_our_address_is_never_unhealthy(void **state)
{
	(void)state;
	struct backend *a = add_up(200, 1);
	struct balancer_slot slots[200];

	for (int i = 0; i < 200; i++)
		slots[i] = reserve_of(a, START_MS);
	for (uint64_t i = 0; i < 100; i++) {
		says(&slots[i], BUSY_CAP, BUSY_STAGE_GREET, i, START_MS);
		says(&slots[i + 100], BUSY_MAYBE, BUSY_STAGE_GREET, i,
		     START_MS);
	}
	assert_int_equal(backend_state(a), HEALTH_UP);
	assert_true(backend_error(a, START_MS) > BACKEND_ERROR_ONE / 2);
}

static void a_vote_is_taken_back_when_the_second_says_the_same(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_outcome o = {
		.class = BUSY_BUSY,
		.stage = BUSY_STAGE_GREET,
		.source = 3,
	};
	struct balancer_slot slot = reserve_of(a, START_MS);

	said(a, BUSY_BUSY, BUSY_STAGE_GREET, 1, START_MS);
	said(a, BUSY_BUSY, BUSY_STAGE_GREET, 2, START_MS);
	uint32_t error = backend_error(a, START_MS);

	o.source = 2;
	balancer_unnote(&farm, &slot, &o, START_MS);
	assert_in_range(backend_error(a, START_MS), 1, error - 1);
	said(a, BUSY_BUSY, BUSY_STAGE_GREET, 4, START_MS);
	assert_int_equal(backend_state(a), HEALTH_UP); /* two, not three */
	balancer_release(&farm, &slot);
}

/* --- drain, misconf, sick --- */

static void a_draining_backend_waits_for_its_probe(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_slot slot = reserve();

	note(&slot, BUSY_DRAIN, BUSY_STAGE_IDLE, 1, START_MS);
	assert_int_equal(change.to, HEALTH_DRAIN);
	assert_int_equal(refused(&anything, START_MS + 99999),
			 BALANCER_ALL_DOWN);
	note(&slot, BUSY_OK, BUSY_STAGE_EOD, 1, START_MS);
	assert_int_equal(backend_state(a), HEALTH_DRAIN);
	balancer_release(&farm, &slot);
	probe_as(a, PROBE_OK, 0, 0, START_MS + 3000);
	assert_int_equal(change.to, HEALTH_UP);
}

static void misconfiguration_at_the_greeting_is_believed(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);

	add_up(10, 1);
	said(a, BUSY_MISCONF, BUSY_STAGE_GREET, 1, START_MS);
	assert_int_equal(change.to, HEALTH_MISCONF);
}

static void misconfiguration_at_ehlo_is_left_to_the_probe(void **state)
{
	(void)state;
	struct backend *a = add_up(100, 1);

	/* Any client can choose a name that a backend will not have. */
	for (uint64_t i = 0; i < 100; i++)
		said(a, BUSY_MISCONF, BUSY_STAGE_EHLO, i, START_MS + 1);
	assert_int_equal(backend_state(a), HEALTH_UP);
	assert_int_equal(balancer_due_ms(&farm), START_MS + 1);
}

static void one_that_is_sicker_than_its_peers_is_taken_out(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);

	add_up(10, 1);
	add_up(10, 1);
	for (uint64_t i = 0; i < 2; i++)
		said(a, BUSY_SICK, BUSY_STAGE_MAIL, i, START_MS);
	assert_int_equal(backend_state(a), HEALTH_UP);
	for (uint64_t i = 2; i < 10 && backend_state(a) == HEALTH_UP; i++)
		said(a, BUSY_SICK, BUSY_STAGE_MAIL, i, START_MS);
	assert_int_equal(change.to, HEALTH_EJECTED);
	assert_int_equal(change.why, HEALTH_WHY_SICK);
}

static void a_farm_that_is_sick_alike_stays(void **state)
{
	(void)state;
	struct backend *b[4];

	for (int i = 0; i < 4; i++)
		b[i] = add_up(10, 1);
	for (uint64_t i = 0; i < 200; i++)
		said(b[i % 4], BUSY_SICK, BUSY_STAGE_MAIL, i,
		     START_MS + (int64_t)i);
	for (int i = 0; i < 4; i++)
		assert_int_equal(backend_state(b[i]), HEALTH_UP);
}

static void make_sick(struct backend *b)
{
	for (uint64_t s = 0; s < 60; s++) {
		if (backend_state(b) == HEALTH_UP)
			said(b, BUSY_SICK, BUSY_STAGE_MAIL, s, START_MS);
	}
}

static unsigned count_ejected(void)
{
	unsigned out = 0;

	for (uint16_t i = 0; i < farm_size(&farm); i++)
		out += backend_state(&farm.backends[i]) == HEALTH_EJECTED;
	return out;
}

static void half_the_farm_rounded_up_stays_however_sick(void **state)
{
	for (unsigned n = 1; n <= 9; n++) {
		teardown(state);
		setup(state);
		for (unsigned i = 0; i < n; i++)
			add_up(10, 1);
		/* One after the other, so that each is worse than the rest. */
		for (unsigned i = 0; i < n; i++)
			make_sick(&farm.backends[i]);
		assert_true(n - count_ejected() >= (n + 1) / 2);
		assert_true(n < 2 || count_ejected() > 0);
	}
}

/* --- failures --- */

static void three_failures_in_a_row_eject_and_one_session_tries_again(
	void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_need only_a = { .tried_count = 1, .tried = { 1 } };

	add_up(10, 1);
	fail_at(a, BALANCER_TIMEOUT, BUSY_STAGE_TCP, START_MS);
	fail_at(a, BALANCER_RESET, BUSY_STAGE_TCP, START_MS);
	assert_false(change.changed);
	fail_at(a, BALANCER_UNREACHABLE, BUSY_STAGE_TCP, START_MS);
	assert_int_equal(change.to, HEALTH_EJECTED);
	assert_int_equal(change.why, HEALTH_WHY_FAILURES);
	int64_t back = change.until_ms;

	assert_in_range(back - START_MS, 2500, 7500);
	assert_int_equal(refused(&only_a, back - 1), BALANCER_ALL_TRIED);
	struct balancer_slot trial = reserve_of(a, back);

	assert_int_equal(change.to, HEALTH_HALF_OPEN);
	assert_true(trial.trial);
	/* One at a time, until it is over, however it ends. */
	assert_int_equal(refused(&only_a, back), BALANCER_ALL_FULL);
	balancer_release(&farm, &trial);
	trial = reserve_of(a, back);
	note_failure(&trial, BALANCER_TIMEOUT, BUSY_STAGE_TCP, back);
	assert_int_equal(change.to, HEALTH_EJECTED);
	assert_int_equal(change.why, HEALTH_WHY_TRIAL_FAILED);
	assert_in_range(change.until_ms - back, 5000, 15000);
	balancer_release(&farm, &trial);
	back = change.until_ms;
	trial = reserve_of(a, back);
	note(&trial, BUSY_OK, BUSY_STAGE_GREET, 1, back);
	assert_int_equal(change.to, HEALTH_UP);
	struct balancer_slot next = reserve_of(a, back);

	assert_false(next.trial);
	balancer_release(&farm, &trial);
	balancer_release(&farm, &next);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_ejected), 2);
}

static void a_late_release_does_not_end_another_ones_trial(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_need only_a = { .tried_count = 1, .tried = { 1 } };

	add_up(10, 1);
	eject(a, START_MS);
	int64_t back = change.until_ms;
	struct balancer_slot first = reserve_of(a, back);

	note_failure(&first, BALANCER_LOST, BUSY_STAGE_DATA, back);
	back = change.until_ms;
	struct balancer_slot second = reserve_of(a, back);

	balancer_release(&farm, &first);
	assert_int_equal(refused(&only_a, back), BALANCER_ALL_FULL);
	balancer_release(&farm, &second);
}

static void sessions_of_before_do_not_eject_again(void **state)
{
	(void)state;
	struct backend *a = add_up(20, 1);
	struct balancer_slot old[10];

	add_up(20, 1);
	for (int i = 0; i < 10; i++)
		old[i] = reserve_of(a, START_MS);
	for (int i = 0; i < 6; i++)
		note_failure(&old[i], BALANCER_TIMEOUT, BUSY_STAGE_TCP,
			     START_MS);
	struct backend_view view;

	backend_look(a, &view);
	assert_int_equal(view.health.ejections, 1);
	int64_t back = view.health.until_ms;
	struct balancer_slot trial = reserve_of(a, back);

	for (int i = 6; i < 10; i++) /* their timeouts come only now */
		note_failure(&old[i], BALANCER_TIMEOUT, BUSY_STAGE_TCP, back);
	assert_int_equal(backend_state(a), HEALTH_HALF_OPEN);
	note(&trial, BUSY_OK, BUSY_STAGE_GREET, 1, back);
	assert_int_equal(backend_state(a), HEALTH_UP);
}

static void at_most_half_of_the_farm_is_ejected(void **state)
{
	for (unsigned n = 1; n <= 10; n++) {
		teardown(state);
		setup(state);
		for (unsigned i = 0; i < n; i++)
			add_up(10, 1);
		for (unsigned i = 0; i < n; i++)
			eject(&farm.backends[i], START_MS);
		assert_int_equal(count_ejected(), n / 2);
		assert_true(balancer_available(&farm, START_MS, NULL, NULL));
	}
}

static void with_less_than_half_healthy_nothing_more_is_ejected(void **state)
{
	(void)state;
	struct backend *b[5];

	for (int i = 0; i < 5; i++)
		b[i] = add_up(10, 1);
	for (int i = 0; i < 3; i++) {
		for (int64_t k = 1; k <= 3; k++)
			probe_as(b[i], PROBE_REFUSED, 0, 0,
				 START_MS + k * 20000 + i);
		assert_int_equal(backend_state(b[i]), HEALTH_DOWN);
	}
	eject(b[3], START_MS + 70000);
	assert_int_equal(backend_state(b[3]), HEALTH_UP);
	assert_true(backend_counter(b[3], BACKEND_COUNT_eject_spared) > 0);
}

static void in_an_emergency_ejected_ones_are_used(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct backend *b = add_up(10, 1);
	struct backend *c = add_up(10, 1);

	eject(a, START_MS);
	assert_int_equal(backend_state(a), HEALTH_EJECTED);
	backend_set_max_sessions(b, 1);
	struct balancer_slot slot = reserve_of(b, START_MS);

	/* Two of three are well: no emergency, though one is full. */
	assert_true(balancer_available(&farm, START_MS, NULL, NULL));
	note(&slot, BUSY_MISCONF, BUSY_STAGE_GREET, 1, START_MS);
	said(c, BUSY_MISCONF, BUSY_STAGE_GREET, 1, START_MS);
	/* None is well: better one that failed than none. */
	assert_true(balancer_available(&farm, START_MS + 1, NULL, NULL));
	slot = reserve_at(START_MS + 1);
	assert_int_equal(slot.index, a->index);
	assert_false(slot.trial);
	note(&slot, BUSY_OK, BUSY_STAGE_GREET, 1, START_MS + 1);
	assert_int_equal(change.from, HEALTH_EJECTED);
	assert_int_equal(change.to, HEALTH_UP);
}

static void a_refused_connection_holds_off_and_then_ejects(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	int64_t now = START_MS;
	static const int64_t holds[] = { 1000, 2000 };

	add_up(10, 1);
	for (int i = 0; i < 2; i++) {
		fail_at(a, BALANCER_REFUSED, BUSY_STAGE_TCP, now);
		assert_int_equal(change.to, HEALTH_BUSY);
		assert_int_equal(change.until_ms - now, holds[i]);
		now = change.until_ms;
	}
	fail_at(a, BALANCER_REFUSED, BUSY_STAGE_TCP, now);
	assert_int_equal(change.to, HEALTH_EJECTED);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_connect_refused), 3);
}

static void silence_with_sessions_is_full_and_without_is_dead(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_need only_a = { .tried_count = 1, .tried = { 1 } };
	int64_t now = START_MS;

	/* One that is full, so that the first is asked though it is too. */
	struct backend *full = add_up(1, 1);
	struct balancer_slot its = reserve_of(full, now);
	struct balancer_slot other = reserve_of(a, now);

	greet(&its, now);

	greet(&other, now);
	for (int i = 0; i < 3; i++) {
		fail_at(a, BALANCER_SILENT, BUSY_STAGE_GREET, now);
		assert_int_equal(backend_state(a), HEALTH_UP);
	}
	/* It has one of ours, and that is what it takes. */
	assert_int_equal(backend_limit(a), 1);
	assert_int_equal(refused(&only_a, now), BALANCER_ALL_FULL);
	balancer_release(&farm, &other);
	now += 2 * LIMIT_KNOCK_MS;
	for (int i = 0; i < 2; i++) {
		fail_at(a, BALANCER_SILENT, BUSY_STAGE_GREET, now);
		assert_int_equal(backend_state(a), HEALTH_BUSY);
		now = change.until_ms + 2 * LIMIT_KNOCK_MS;
	}
	fail_at(a, BALANCER_SILENT, BUSY_STAGE_GREET, now);
	assert_int_equal(backend_state(a), HEALTH_EJECTED);
}

static void an_idle_connection_may_be_closed(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);

	add_up(10, 1);
	for (int i = 0; i < 10; i++)
		fail_at(a, BALANCER_LOST, BUSY_STAGE_IDLE, START_MS);
	assert_int_equal(backend_state(a), HEALTH_UP);
	assert_int_equal(backend_error(a, START_MS), 0);
	for (int i = 0; i < 3; i++)
		fail_at(a, BALANCER_LOST, BUSY_STAGE_DATA, START_MS);
	assert_int_equal(backend_state(a), HEALTH_EJECTED);
}

/* --- probes --- */

static void a_probe_takes_a_slot_and_has_one_owner(void **state)
{
	(void)state;
	struct backend *a = add(1, 1);
	struct balancer_slot probe, second;
	struct probe_report ok = { .outcome = PROBE_OK };

	assert_int_equal(balancer_due_ms(&farm), START_MS);
	assert_true(balancer_probe_claim(&farm, START_MS, &probe));
	assert_false(balancer_probe_claim(&farm, START_MS, &second));
	assert_int_equal(balancer_due_ms(&farm), INT64_MAX);
	assert_int_equal(atomic_load(&a->inflight), 1);
	assert_int_equal(refused(&anything, START_MS), BALANCER_ALL_FULL);
	backend_set_admin(a, BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(farm_remove(&farm, a->index), FARM_IN_USE);
	balancer_probe_done(&farm, &probe, &ok, START_MS + 5, draw(), &change);
	assert_int_equal(change.to, HEALTH_UP);
	assert_int_equal(atomic_load(&a->inflight), 0);
	/* Left alone in maint, asked in drain. */
	assert_false(balancer_probe_claim(&farm, START_MS + 20000, &probe));
	backend_set_admin(a, BACKEND_ADMIN_DRAIN, NULL);
	assert_true(balancer_probe_claim(&farm, START_MS + 20000, &probe));
	balancer_probe_done(&farm, &probe, &ok, START_MS, draw(), &change);
}

static void a_backend_full_of_our_sessions_is_not_probed(void **state)
{
	(void)state;
	struct backend *a = add_up(1, 1);
	struct balancer_slot slot = reserve_of(a, START_MS);
	struct balancer_slot probe;

	assert_false(balancer_probe_claim(&farm, START_MS + 20000, &probe));
	assert_true(balancer_due_ms(&farm) > START_MS + 20000);
	balancer_release(&farm, &slot);
	assert_true(balancer_probe_claim(&farm, START_MS + 40000, &probe));
}

static void refusing_a_probe_while_sessions_are_answered_is_full(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct balancer_slot slot = reserve_of(a, START_MS);

	for (int64_t i = 1; i <= 5; i++) {
		int64_t now = START_MS + i * 20000;

		note(&slot, BUSY_OK, BUSY_STAGE_EOD, 1, now - 50);
		probe_as(a, PROBE_REFUSED, 0, 0, now);
		assert_int_equal(backend_state(a), HEALTH_UP);
	}
	for (int64_t i = 6; i <= 8; i++)
		probe_as(a, PROBE_REFUSED, 0, 0, START_MS + i * 20000);
	assert_int_equal(backend_state(a), HEALTH_DOWN);
	balancer_release(&farm, &slot);
}

static void refusing_a_probe_without_any_session_is_down(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);

	for (int64_t i = 1; i <= 3; i++) {
		int64_t now = START_MS + i * 20000;

		said(a, BUSY_OK, BUSY_STAGE_EOD, 1, now - 50);
		probe_as(a, PROBE_REFUSED, 0, 0, now);
	}
	assert_int_equal(backend_state(a), HEALTH_DOWN);
}

static void time_ends_each_hold_once(void **state)
{
	(void)state;
	struct backend *a = add_up(10, 1);
	struct backend *b = add_up(10, 1);

	fail_at(a, BALANCER_REFUSED, BUSY_STAGE_TCP, START_MS);
	fail_at(b, BALANCER_REFUSED, BUSY_STAGE_TCP, START_MS);
	assert_int_equal(balancer_due_ms(&farm), START_MS + 1000);
	assert_false(balancer_tick(&farm, START_MS + 999, &change));
	assert_true(balancer_tick(&farm, START_MS + 1000, &change));
	assert_int_equal(change.index, a->index);
	assert_true(balancer_tick(&farm, START_MS + 1000, &change));
	assert_int_equal(change.index, b->index);
	assert_int_equal(change.to, HEALTH_UP);
	assert_false(balancer_tick(&farm, START_MS + 1000, &change));
	assert_true(balancer_due_ms(&farm) > START_MS + 1000);
}

static void every_verdict_has_its_words(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BALANCER_VERDICT_COUNT; i++) {
		enum balancer_verdict v = (enum balancer_verdict)i;

		assert_true(strlen(balancer_verdict_name(v)) > 0);
		assert_true(strlen(balancer_verdict_help(v)) > 0);
	}
	for (unsigned i = 0; i < BALANCER_FAILURE_COUNT; i++)
		assert_true(strlen(balancer_failure_name(
				    (enum balancer_failure)i)) > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(load_is_shared_by_room_and_weight),
		TEST(ties_are_broken_at_random),
		TEST(the_same_random_bits_make_the_same_choice),
		TEST(a_large_farm_fills_to_the_last_slot),
		TEST(a_backend_that_fails_fast_does_not_draw_the_load),
		TEST(a_shunned_backend_gets_another_chance),
		TEST(an_empty_farm_says_so),
		TEST(each_reason_for_none_has_its_own_word),
		TEST(it_is_known_since_when_there_has_been_no_room),
		TEST(only_who_offers_what_is_needed_is_chosen),
		TEST(the_offer_is_what_all_in_use_offer),
		TEST(no_interleaving_takes_a_slot_too_many),
		TEST(no_interleaving_makes_two_trials_at_once),
		TEST(threads_that_note_all_kinds_of_things_get_along),
		TEST(busy_to_one_source_changes_no_state),
		TEST(busy_to_three_sources_holds_off),
		TEST(one_strong_sign_is_enough),
		TEST(verdicts_on_the_client_move_nothing),
		TEST(a_cap_on_our_address_is_never_unhealthy),
		TEST(a_vote_is_taken_back_when_the_second_says_the_same),
		TEST(a_draining_backend_waits_for_its_probe),
		TEST(misconfiguration_at_the_greeting_is_believed),
		TEST(misconfiguration_at_ehlo_is_left_to_the_probe),
		TEST(one_that_is_sicker_than_its_peers_is_taken_out),
		TEST(a_farm_that_is_sick_alike_stays),
		TEST(half_the_farm_rounded_up_stays_however_sick),
		TEST(three_failures_in_a_row_eject_and_one_session_tries_again),
		TEST(a_late_release_does_not_end_another_ones_trial),
		TEST(sessions_of_before_do_not_eject_again),
		TEST(at_most_half_of_the_farm_is_ejected),
		TEST(with_less_than_half_healthy_nothing_more_is_ejected),
		TEST(in_an_emergency_ejected_ones_are_used),
		TEST(a_refused_connection_holds_off_and_then_ejects),
		TEST(silence_with_sessions_is_full_and_without_is_dead),
		TEST(an_idle_connection_may_be_closed),
		TEST(a_probe_takes_a_slot_and_has_one_owner),
		TEST(a_backend_full_of_our_sessions_is_not_probed),
		TEST(refusing_a_probe_while_sessions_are_answered_is_full),
		TEST(refusing_a_probe_without_any_session_is_down),
		TEST(time_ends_each_hold_once),
		TEST(every_verdict_has_its_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
