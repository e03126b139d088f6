#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/load_limit.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

enum { MS = 1000, STEPS = 10 };

static const struct load_limit_config usual = {
	.sessions_max = 1000,
	.band_factor = 4,
	.band_extra_us = 100 * MS,
};

/* --- one step --- */

struct step_case {
	const char *about;
	uint64_t failed, ended, late, p99_us;
	bool again;
	enum load_limit_verdict verdict;
};

/* Of 8 sessions, where one alone takes 50 ms: the band ends at 300 ms. */
static const struct step_case steps[] = {
	{ "all is well", 0, 100, 0, 60 * MS, false, LOAD_LIMIT_TAKEN },
	{ "at the band's edge", 0, 100, 0, 300 * MS, false, LOAD_LIMIT_TAKEN },
	{ "three refusals are no chance", 3, 100, 0, 60 * MS, false,
	  LOAD_LIMIT_REFUSED },
	{ "not one session ends", 0, 0, 0, 0, false, LOAD_LIMIT_SLOW },
	{ "one refusal may be chance", 1, 100, 0, 60 * MS, false,
	  LOAD_LIMIT_DOUBTFUL },
	{ "two as well", 2, 100, 0, 60 * MS, false, LOAD_LIMIT_DOUBTFUL },
	{ "one refusal, for the second time", 1, 100, 0, 60 * MS, true,
	  LOAD_LIMIT_REFUSED },
	{ "beyond the band", 0, 100, 0, 301 * MS, false, LOAD_LIMIT_DOUBTFUL },
	{ "beyond the band, for the second time", 0, 100, 0, 301 * MS, true,
	  LOAD_LIMIT_SLOW },
	{ "well, at the second time", 0, 100, 0, 60 * MS, true,
	  LOAD_LIMIT_TAKEN },
	{ "one session hangs", 0, 100, 1, 60 * MS, false, LOAD_LIMIT_DOUBTFUL },
	{ "one session hangs, for the second time", 0, 100, 1, 60 * MS, true,
	  LOAD_LIMIT_SLOW },
	{ "refusals say more than slowness", 3, 100, 0, 900 * MS, false,
	  LOAD_LIMIT_REFUSED },
};

static void each_step_gets_its_verdict(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(steps); i++) {
		const struct step_case *c = &steps[i];
		struct load_limit limit;
		struct load_limit_sample sample = {
			.sessions = 8,
			.ended = c->ended,
			.failed = c->failed,
			.late = c->late,
			.p50_us = c->p99_us / 2,
			.p99_us = c->p99_us,
		};

		print_message("  %s\n", c->about);
		load_limit_init(&limit, &usual);
		limit.offer = 8;
		limit.good = 4;
		limit.band_us = 300 * MS;
		limit.again = c->again;
		assert_int_equal(load_limit_note(&limit, &sample), c->verdict);
		assert_int_equal(limit.again,
				 c->verdict == LOAD_LIMIT_DOUBTFUL);
		assert_int_equal(limit.good,
				 c->verdict == LOAD_LIMIT_TAKEN ? 8 : 4);
	}
}

/* --- whole searches --- */

/* A server that is made up. */
struct server {
	const char *about;
	uint64_t refuses_from;  /* 0: never */
	uint64_t slow_from;     /* 0: never */
	uint64_t most;          /* --max-sessions */
	uint64_t offers[STEPS]; /* the first ones, 0 at the end */
	uint64_t good;
	uint64_t bad;
	enum load_limit_verdict why;
};

static const struct server servers[] = {
	{ "takes 45, refuses 46",
	  46,
	  0,
	  1000,
	  { 1, 2, 4, 8, 16, 32, 64, 48, 40, 44 },
	  45,
	  46,
	  LOAD_LIMIT_REFUSED },
	{ "takes one", 2, 0, 1000, { 1, 2 }, 1, 2, LOAD_LIMIT_REFUSED },
	{ "takes none", 1, 0, 1000, { 1 }, 0, 1, LOAD_LIMIT_REFUSED },
	{ "takes all that is allowed",
	  0,
	  0,
	  20,
	  { 1, 2, 4, 8, 16, 20 },
	  20,
	  0,
	  LOAD_LIMIT_DOUBTFUL },
	{ "one session is all that is allowed",
	  0,
	  0,
	  1,
	  { 1 },
	  1,
	  0,
	  LOAD_LIMIT_DOUBTFUL },
	{ "a slow step is tried twice",
	  0,
	  3,
	  1000,
	  { 1, 2, 4, 4, 3, 3 },
	  2,
	  3,
	  LOAD_LIMIT_SLOW },
	{ "a large limit is found to one part in 64",
	  700,
	  0,
	  100000,
	  { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 },
	  696,
	  704,
	  LOAD_LIMIT_REFUSED },
	{ "where it gets slow, to one in 16",
	  0,
	  321,
	  1000,
	  { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 },
	  320,
	  336,
	  LOAD_LIMIT_SLOW },
	{ "refusals below slowness win",
	  30,
	  60,
	  1000,
	  { 1, 2, 4, 8, 16, 32, 24, 28, 30, 29 },
	  29,
	  30,
	  LOAD_LIMIT_REFUSED },
	{ "the largest search ends",
	  1000000,
	  0,
	  LOAD_LIMIT_SESSIONS_MAX,
	  { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 },
	  985134,
	  1000000,
	  LOAD_LIMIT_REFUSED },
};

static struct load_limit_sample answer_of(const struct server *server,
					  uint64_t sessions)
{
	bool slow = server->slow_from > 0 && sessions >= server->slow_from;
	bool refuses = server->refuses_from > 0 &&
		       sessions >= server->refuses_from;

	return (struct load_limit_sample){
		.sessions = sessions,
		.ended = 100,
		.failed = refuses ? 3 : 0,
		.p50_us = 50 * MS,
		.p99_us = slow ? 5000 * MS : 60 * MS,
	};
}

static void search(const struct server *server)
{
	struct load_limit_config config = usual;
	struct load_limit limit;
	unsigned count = 0;

	config.sessions_max = server->most;
	load_limit_init(&limit, &config);
	while (limit.offer > 0) {
		struct load_limit_sample sample = answer_of(server,
							    limit.offer);

		assert_true(limit.offer <= server->most);
		if (count < STEPS)
			assert_int_equal(limit.offer, server->offers[count]);
		(void)load_limit_note(&limit, &sample);
		count++;
		assert_true(count <= LOAD_LIMIT_STEPS_MAX);
	}
	if (count < STEPS)
		assert_int_equal(server->offers[count], 0);
	assert_int_equal(limit.bad, server->bad);
	assert_int_equal(limit.good, server->good);
	if (limit.bad > 0)
		assert_int_equal(limit.why, server->why);
}

static void a_search_finds_the_limit(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(servers); i++) {
		print_message("  %s\n", servers[i].about);
		search(&servers[i]);
	}
}

/* Whatever the limit, it is found, and nobody is pushed far beyond it. */
static void every_limit_is_found(void **state)
{
	(void)state;
	for (uint64_t taken = 1; taken < 400; taken++) {
		struct server server = { .refuses_from = taken + 1 };
		struct load_limit limit;

		load_limit_init(&limit, &usual);
		while (limit.offer > 0) {
			struct load_limit_sample sample = answer_of(
				&server, limit.offer);

			assert_true(limit.offer <= 2 * taken);
			(void)load_limit_note(&limit, &sample);
		}
		assert_true(limit.good <= taken);
		assert_true(limit.bad > taken);
		assert_true(limit.bad - limit.good <= 1 + taken / 64);
	}
}

static void the_first_step_makes_the_band(void **state)
{
	struct load_limit limit;
	struct load_limit_sample sample = {
		.sessions = 1,
		.ended = 20,
		.p50_us = 50 * MS,
		.p99_us = 2000 * MS, /* an outlier, alone */
	};

	(void)state;
	load_limit_init(&limit, &usual);
	assert_int_equal(load_limit_note(&limit, &sample), LOAD_LIMIT_TAKEN);
	assert_int_equal(limit.alone_us, 50 * MS);
	assert_int_equal(limit.band_us, 300 * MS + 1);
	assert_int_equal(limit.offer, 2);
}

/* --- when a step may end --- */

static void a_step_ends_early_only_when_it_is_sure(void **state)
{
	struct load_limit_sample sample = { .sessions = 40, .ended = 79 };

	(void)state;
	assert_false(load_limit_is_sure(&sample));
	assert_false(load_limit_is_enough(&sample)); /* not two each */
	sample.ended = 80;
	assert_true(load_limit_is_enough(&sample));
	sample.sessions = 1;
	sample.ended = 49;
	assert_false(load_limit_is_enough(&sample));
	sample.ended = 50;
	assert_true(load_limit_is_enough(&sample));
	sample.failed = 2;
	assert_false(load_limit_is_sure(&sample));
	sample.failed = 3;
	assert_true(load_limit_is_sure(&sample));
}

/* --- the knee --- */

static void beyond_the_knee_more_sessions_bring_no_more(void **state)
{
	static const struct load_limit_sample samples[] = {
		{ .sessions = 1, .rate = 20 },
		{ .sessions = 8, .rate = 160 },
		{ .sessions = 64, .rate = 400 },
		{ .sessions = 16, .rate = 310 },
		{ .sessions = 32, .rate = 390 },
		{ .sessions = 99, .rate = 900 },
	};

	(void)state;
	assert_int_equal(load_limit_knee(samples, COUNT(samples), 64), 32);
	assert_int_equal(load_limit_knee(samples, COUNT(samples), 99), 99);
	assert_int_equal(load_limit_knee(samples, COUNT(samples), 1), 1);
	assert_int_equal(load_limit_knee(samples, 0, 64), 0);
	assert_int_equal(load_limit_knee(samples, COUNT(samples), 0), 0);
}

/* 450 a second that take 100 ms alone: 45 at work, whatever waits. */
static void those_at_work_are_told_from_those_that_wait(void **state)
{
	static const struct load_limit_sample samples[] = {
		{ .sessions = 1, .rate = 10 },
		{ .sessions = 64, .rate = 440 },
		{ .sessions = 128, .rate = 450 },
		{ .sessions = 256, .rate = 900 }, /* beyond the limit */
	};
	struct load_limit limit = { .good = 128, .alone_us = 100 * MS };

	(void)state;
	assert_int_equal(load_limit_at_work(samples, COUNT(samples), &limit, 1),
			 45);
	/* Five messages a session: a fifth of the sessions a second. */
	assert_int_equal(load_limit_at_work(samples, COUNT(samples), &limit, 5),
			 9);
	limit.good = 1;
	assert_int_equal(load_limit_at_work(samples, COUNT(samples), &limit, 1),
			 1);
	limit.good = 0;
	assert_int_equal(load_limit_at_work(samples, COUNT(samples), &limit, 1),
			 0);
	assert_int_equal(load_limit_at_work(samples, 0, &limit, 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_step_gets_its_verdict),
		cmocka_unit_test(a_search_finds_the_limit),
		cmocka_unit_test(every_limit_is_found),
		cmocka_unit_test(the_first_step_makes_the_band),
		cmocka_unit_test(a_step_ends_early_only_when_it_is_sure),
		cmocka_unit_test(beyond_the_knee_more_sessions_bring_no_more),
		cmocka_unit_test(those_at_work_are_told_from_those_that_wait),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
