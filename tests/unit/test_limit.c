#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "balancer/limit.h"

/*
 * The rules, one by one: what stands, what happens, what stands then.  In all
 * tables the jitter factor is exactly one and it is NOW.
 */

#define NOW    1000000
#define RANDOM ((uint64_t)1 << 63)

static const struct limit_policy policy = {
	.retry_ms = 500,
	.retry_max_ms = 10000,
	.start = 4,
};

enum happens {
	GREETED,       /* an ordinary one, quickly */
	GREETED_PROBE, /* a probe, quickly */
	LATE,          /* an ordinary one, slowly */
	LATE_PROBE,
	BUSY, /* an ordinary one */
	BUSY_PROBE,
	BUSY_AFTER, /* one that was greeted */
	CAP,
	CAP_PROBE,
	CAP_AFTER,
	GONE,
	GONE_PROBE,
	CLOSED,
	OUT_GREETED, /* events that do not fit */
	OUT_BUSY,
	OUT_MAYBE,
	OUT_GONE,
	GREETED_AGAIN,
	COOL,
	RETURN,
};

struct stand {
	double l, wall;
	uint32_t n, p, pp, burst;
	unsigned strikes;
	int64_t back, next; /* next: from NOW */
};

struct rule {
	const char *about;
	enum happens happens;
	int64_t since_cut;
	struct stand before, after;
};

/* clang-format off */
static const struct rule rules[] = {
	/* accepted */
	{ "an accept below the limit moves nothing but the counts",
	  GREETED, 9999,
	  { 8, 6, 3, 2, 0, 1, 0, 500, 0 }, { 8, 6, 4, 1, 0, 1, 0, 500, 0 } },
	{ "an accept ends a row of refusals",
	  GREETED, 9999,
	  { 8, 6, 3, 1, 0, 1, 2, 500, 0 }, { 8, 6, 4, 0, 0, 1, 0, 500, 0 } },
	{ "more accepted than the limit: it is the limit",
	  GREETED, 9999,
	  { 4, 0, 4, 1, 0, 1, 0, 500, 0 }, { 5, 0, 5, 0, 0, 1, 0, 500, 0 } },
	{ "a fraction above counts as more",
	  GREETED, 9999,
	  { 4.5, 0, 4, 1, 0, 1, 0, 500, 0 }, { 5, 0, 5, 0, 0, 1, 0, 500, 0 } },
	{ "a probe past the wall moves it, and the back-off starts anew",
	  GREETED_PROBE, 9999,
	  { 8, 8, 8, 1, 1, 1, 0, 4000, 0 }, { 9, 9, 9, 0, 0, 2, 0, 500, 0 } },
	{ "past the wall, probes at a time grow to a quarter of the limit",
	  GREETED_PROBE, 9999,
	  { 8, 8, 8, 3, 2, 2, 0, 500, 0 }, { 9, 9, 9, 2, 1, 2, 0, 500, 0 } },
	{ "a small limit allows one probe at a time",
	  GREETED_PROBE, 9999,
	  { 4, 0, 4, 1, 1, 1, 0, 500, 0 }, { 5, 5, 5, 0, 0, 1, 0, 500, 0 } },
	{ "below the wall, probes at a time grow",
	  GREETED_PROBE, 9999,
	  { 20, 40, 20, 1, 1, 3, 0, 2000, 0 },
	  { 21, 40, 21, 0, 0, 4, 0, 2000, 0 } },
	{ "near the wall, no more of them than there is room to it",
	  GREETED_PROBE, 9999,
	  { 36, 40, 36, 1, 1, 5, 0, 500, 0 },
	  { 37, 40, 37, 0, 0, 3, 0, 500, 0 } },
	{ "at the wall, a probe is no news",
	  GREETED_PROBE, 9999,
	  { 39, 40, 39, 1, 1, 2, 0, 4000, 0 },
	  { 40, 40, 40, 0, 0, 2, 0, 4000, 0 } },
	{ "within half of the wall, it is no news either",
	  GREETED_PROBE, 9999,
	  { 39.5, 40.5, 40, 2, 1, 2, 0, 4000, 0 },
	  { 41, 40.5, 41, 1, 0, 2, 0, 4000, 0 } },
	{ "a probe that comes out below the limit raises nothing",
	  GREETED_PROBE, 9999,
	  { 9, 9, 6, 1, 1, 1, 1, 1000, 0 }, { 9, 9, 7, 0, 0, 1, 0, 1000, 0 } },

	/* refused: a probe */
	{ "a refused probe is the wall; the next one waits, twice as long each",
	  BUSY_PROBE, 9999,
	  { 8, 4, 8, 1, 1, 2, 0, 500, 0 },
	  { 8, 8, 8, 0, 0, 1, 1, 1000, 500 } },
	{ "the back-off has a most",
	  BUSY_PROBE, 9999,
	  { 8, 8, 8, 1, 1, 1, 1, 8000, 0 },
	  { 8, 8, 8, 0, 0, 1, 2, 10000, 8000 } },
	{ "the wall is at what it has, if that is more",
	  BUSY_PROBE, 9999,
	  { 8, 8, 10, 1, 1, 1, 0, 500, 0 },
	  { 8, 10, 10, 0, 0, 1, 1, 1000, 500 } },
	{ "two in a row do not lower the limit",
	  BUSY_PROBE, 9999,
	  { 8, 8, 5, 1, 1, 1, 1, 500, 0 },
	  { 8, 8, 5, 0, 0, 1, 2, 1000, 500 } },
	{ "the third does: what it has, is the limit",
	  BUSY_PROBE, 0,
	  { 8, 8, 5, 1, 1, 1, 2, 500, 0 },
	  { 5, 8, 5, 0, 0, 1, 3, 1000, 500 } },
	{ "the third with nothing there: the limit stays at one",
	  BUSY_PROBE, 9999,
	  { 8, 8, 0, 1, 1, 1, 2, 500, 0 },
	  { 1, 8, 0, 0, 0, 1, 3, 1000, 500 } },

	/* refused: an ordinary one */
	{ "the first refusal cuts a tenth, moves the wall, postpones probes",
	  BUSY, 1000,
	  { 20, 30, 10, 2, 0, 3, 0, 500, 0 },
	  { 18, 24, 10, 1, 0, 1, 1, 500, 500 } },
	{ "not below what it has",
	  BUSY, 1000,
	  { 20, 20, 19, 1, 0, 1, 0, 500, 0 },
	  { 19, 19.5, 19, 0, 0, 1, 1, 500, 500 } },
	{ "within a second of the last cut: nothing, two times",
	  BUSY, 999,
	  { 20, 30, 10, 2, 0, 3, 1, 500, 0 },
	  { 20, 30, 10, 1, 0, 1, 2, 500, 0 } },
	{ "the third is believed at once, but postpones nothing then",
	  BUSY, 999,
	  { 20, 30, 10, 2, 0, 3, 2, 500, 0 },
	  { 10, 20, 10, 1, 0, 1, 3, 500, 0 } },
	{ "the third, a second after the last cut",
	  BUSY, 1000,
	  { 20, 30, 10, 2, 0, 3, 2, 500, 0 },
	  { 10, 20, 10, 1, 0, 1, 3, 500, 500 } },
	{ "a probe that is postponed further already, stays so",
	  BUSY, 1000,
	  { 20, 30, 10, 2, 0, 3, 2, 500, 7000 },
	  { 10, 20, 10, 1, 0, 1, 3, 500, 7000 } },
	{ "a wall below the new limit comes up to it",
	  BUSY, 1000,
	  { 20, 0, 10, 1, 0, 1, 0, 500, 0 },
	  { 18, 18, 10, 0, 0, 1, 1, 500, 500 } },
	{ "refused at the limit: it is right as it is",
	  BUSY, 9999,
	  { 10, 12, 10, 1, 0, 1, 3, 500, 0 },
	  { 10, 12, 10, 0, 0, 1, 3, 500, 0 } },
	{ "never below one; and with nothing there the next one waits",
	  BUSY, 9999,
	  { 1, 2, 0, 1, 0, 1, 2, 500, 0 },
	  { 1, 1, 0, 0, 0, 1, 3, 1000, 500 } },
	{ "a second at most, however often it was refused",
	  BUSY, 0,
	  { 1, 1, 0, 1, 0, 1, 3, 8000, 0 },
	  { 1, 0.5, 0, 0, 0, 1, 3, 2000, 1000 } },
	{ "as a probe too",
	  BUSY_PROBE, 0,
	  { 1, 1, 0, 1, 1, 1, 3, 8000, 0 },
	  { 1, 1, 0, 0, 0, 1, 3, 2000, 1000 } },
	{ "refused after the greeting: it is not one of those it has",
	  BUSY_AFTER, 999,
	  { 20, 20, 10, 3, 1, 1, 2, 500, 0 },
	  { 9, 14.5, 9, 3, 1, 1, 3, 500, 0 } },

	/* a cap that it named */
	{ "a cap is believed at once",
	  CAP, 0,
	  { 20, 20, 10, 1, 0, 1, 0, 500, 0 },
	  { 10, 15, 10, 0, 0, 1, 3, 500, 0 } },
	{ "a cap for a probe too",
	  CAP_PROBE, 0,
	  { 20, 20, 10, 1, 1, 1, 0, 500, 0 },
	  { 10, 20, 10, 0, 0, 1, 3, 1000, 500 } },
	{ "a cap at MAIL: what it has without that one",
	  CAP_AFTER, 0,
	  { 20, 20, 11, 1, 0, 1, 0, 500, 0 },
	  { 10, 15, 10, 1, 0, 1, 3, 500, 0 } },

	/* slow: the baseline is 24 ms here, the greeting took 200 */
	{ "a late greeting takes one off what it has",
	  LATE, 1000,
	  { 20, 30, 19, 1, 0, 1, 2, 500, 0 },
	  { 19, 24.5, 20, 0, 0, 1, 2, 500, 0 } },
	{ "or a tenth, if that is less",
	  LATE, 1000,
	  { 20, 10, 5, 1, 0, 3, 0, 500, 0 },
	  { 18, 18, 6, 0, 0, 3, 0, 500, 0 } },
	{ "a late greeting above the limit does not raise it",
	  LATE, 999,
	  { 20, 30, 22, 1, 0, 1, 0, 500, 0 },
	  { 20, 30, 23, 0, 0, 1, 0, 500, 0 } },
	{ "what it has beyond the limit is no reason to raise it",
	  LATE, 1000,
	  { 20, 30, 25, 1, 0, 1, 0, 500, 0 },
	  { 20, 25, 26, 0, 0, 1, 0, 500, 0 } },
	{ "a late probe has failed",
	  LATE_PROBE, 999,
	  { 20, 30, 20, 1, 1, 4, 1, 500, 0 },
	  { 20, 20, 21, 0, 0, 1, 1, 1000, 500 } },
	{ "a late probe cuts once in a second, as any",
	  LATE_PROBE, 1000,
	  { 20, 30, 18, 1, 1, 4, 0, 500, 0 },
	  { 18, 19, 19, 0, 0, 1, 0, 1000, 500 } },

	/* no verdict */
	{ "an attempt that came to nothing",
	  GONE, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 1, 1, 2, 2, 500, 0 } },
	{ "a probe that came to nothing",
	  GONE_PROBE, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 1, 0, 2, 2, 500, 0 } },
	{ "a session that ends moves no limit",
	  CLOSED, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 2, 2, 1, 2, 2, 500, 0 } },
	{ "a greeting of one that is out is none",
	  OUT_GREETED, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 2, 1, 2, 2, 500, 0 } },
	{ "one that is out cannot be refused",
	  OUT_BUSY, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 2, 1, 2, 2, 500, 0 } },
	{ "not even perhaps",
	  OUT_MAYBE, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 2, 1, 2, 2, 500, 0 } },
	{ "nor be gone once more",
	  OUT_GONE, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 2, 1, 2, 2, 500, 0 } },
	{ "one that was greeted is not greeted again",
	  GREETED_AGAIN, 9999,
	  { 8, 8, 3, 2, 1, 2, 2, 500, 0 }, { 8, 8, 3, 2, 1, 2, 2, 500, 0 } },

	/* not about slots */
	{ "short of resources: down to 0.7",
	  COOL, 0,
	  { 20, 20, 15, 1, 0, 2, 2, 500, 0 },
	  { 14, 20, 15, 1, 0, 2, 2, 500, 0 } },
	{ "never below one",
	  COOL, 0,
	  { 1.2, 20, 1, 1, 0, 1, 0, 500, 0 },
	  { 1, 20, 1, 1, 0, 1, 0, 500, 0 } },
	{ "back from an ejection: a quarter, the old limit is the wall",
	  RETURN, 0,
	  { 20, 31, 0, 1, 0, 4, 2, 8000, 9000 },
	  { 5, 20, 0, 1, 0, 1, 0, 500, 0 } },
	{ "a quarter of little is one",
	  RETURN, 0,
	  { 3, 3, 0, 0, 0, 1, 0, 500, 0 },
	  { 1, 3, 0, 0, 0, 1, 0, 500, 0 } },
};
/* clang-format on */

/* Auto, and a baseline of 24 ms, minutes before now. */
static struct limit fresh(void)
{
	struct limit l;

	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned i = 0; i < 100; i++)
		limit_seed(&l, 20, NOW - 60000);
	assert_int_equal(l.baseline_ms, 24);
	return l;
}

static struct limit limit_as(const struct stand *s, int64_t since_cut)
{
	struct limit l = fresh();

	l.l = s->l;
	l.wall = s->wall;
	l.n = s->n;
	l.p = s->p;
	l.pp = s->pp;
	l.burst = s->burst;
	l.strikes = s->strikes;
	l.back_ms = s->back;
	l.next_probe_ms = NOW + s->next;
	l.last_cut_ms = NOW - since_cut;
	return l;
}

/* What each is done with; ms: greeted. */
static const struct {
	enum { GREET, REFUSE, REFUSE_AT_ONCE, PERHAPS, END, OTHER } how;
	enum limit_phase phase, then;
	int64_t ms;
} happenings[] = {
	[GREETED] = { GREET, LIMIT_PENDING, LIMIT_GREETED, 20 },
	[GREETED_PROBE] = { GREET, LIMIT_PROBE, LIMIT_GREETED, 20 },
	[LATE] = { GREET, LIMIT_PENDING, LIMIT_GREETED, 200 },
	[LATE_PROBE] = { GREET, LIMIT_PROBE, LIMIT_GREETED, 200 },
	[BUSY] = { REFUSE, LIMIT_PENDING, LIMIT_OUT, 0 },
	[BUSY_PROBE] = { REFUSE, LIMIT_PROBE, LIMIT_OUT, 0 },
	[BUSY_AFTER] = { REFUSE, LIMIT_GREETED, LIMIT_OUT, 0 },
	[CAP] = { REFUSE_AT_ONCE, LIMIT_PENDING, LIMIT_OUT, 0 },
	[CAP_PROBE] = { REFUSE_AT_ONCE, LIMIT_PROBE, LIMIT_OUT, 0 },
	[CAP_AFTER] = { REFUSE_AT_ONCE, LIMIT_GREETED, LIMIT_OUT, 0 },
	[GONE] = { END, LIMIT_PENDING, LIMIT_OUT, 0 },
	[GONE_PROBE] = { END, LIMIT_PROBE, LIMIT_OUT, 0 },
	[CLOSED] = { END, LIMIT_GREETED, LIMIT_OUT, 0 },
	[OUT_GREETED] = { GREET, LIMIT_OUT, LIMIT_OUT, 20 },
	[OUT_BUSY] = { REFUSE, LIMIT_OUT, LIMIT_OUT, 0 },
	[OUT_MAYBE] = { PERHAPS, LIMIT_OUT, LIMIT_OUT, 0 },
	[OUT_GONE] = { END, LIMIT_OUT, LIMIT_OUT, 0 },
	[GREETED_AGAIN] = { GREET, LIMIT_GREETED, LIMIT_GREETED, 20 },
	[COOL] = { OTHER, LIMIT_OUT, LIMIT_OUT, 0 },
	[RETURN] = { OTHER, LIMIT_OUT, LIMIT_OUT, 0 },
};

static void make_happen(struct limit *l, enum happens happens)
{
	enum limit_phase phase = happenings[happens].phase;

	switch (happenings[happens].how) {
	case GREET:
		phase = limit_greeted(l, &policy, phase, happenings[happens].ms,
				      NOW, RANDOM);
		break;
	case REFUSE:
		phase = limit_busy(l, &policy, phase, false, NOW, RANDOM);
		break;
	case REFUSE_AT_ONCE:
		phase = limit_busy(l, &policy, phase, true, NOW, RANDOM);
		break;
	case PERHAPS:
		phase = limit_maybe(l, &policy, phase, NOW, RANDOM);
		break;
	case END:
		phase = limit_gone(l, phase);
		break;
	case OTHER:
		if (happens == COOL)
			limit_cool(l, NOW);
		else
			limit_return(l, &policy, NOW);
		break;
	}
	assert_int_equal(phase, happenings[happens].then);
}

static void assert_near(double a, double b)
{
	if (fabs(a - b) > 1e-6)
		fail_msg("%.7f is not %.7f", a, b);
}

static void every_rule_moves_what_it_says(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		const struct rule *r = &rules[i];
		const struct stand *after = &r->after;
		struct limit l = limit_as(&r->before, r->since_cut);

		print_message("  %s\n", r->about);
		make_happen(&l, r->happens);
		assert_near(l.l, after->l);
		assert_near(l.wall, after->wall);
		assert_int_equal(l.n, after->n);
		assert_int_equal(l.p, after->p);
		assert_int_equal(l.pp, after->pp);
		assert_int_equal(l.burst, after->burst);
		assert_int_equal(l.strikes, after->strikes);
		assert_int_equal(l.back_ms, after->back);
		assert_int_equal(l.next_probe_ms, NOW + after->next);
	}
}

struct admission {
	const char *about;
	double l;
	uint32_t ceiling, n, p, pp, burst;
	int64_t next; /* from NOW */
	bool ordinary, probe;
};

static const struct admission admissions[] = {
	{ "empty", 4, LIMIT_MAX, 0, 0, 0, 1, 0, true, true },
	{ "one free", 4, LIMIT_MAX, 2, 1, 0, 1, 0, true, true },
	{ "greeted and pending fill it", 4, LIMIT_MAX, 2, 2, 0, 1, 0, false,
	  true },
	{ "a probe under way takes no ordinary place", 4, LIMIT_MAX, 3, 1, 1, 2,
	  0, true, true },
	{ "one probe at a time", 4, LIMIT_MAX, 4, 1, 1, 1, 0, false, false },
	{ "or as many as the burst", 8, LIMIT_MAX, 8, 1, 1, 2, 0, false, true },
	{ "not before its time", 4, LIMIT_MAX, 4, 0, 0, 1, 1, false, false },
	{ "fractions do not count", 4.9, LIMIT_MAX, 4, 0, 0, 1, 1, false,
	  false },
	{ "unless it is almost whole", 5 - 1e-10, LIMIT_MAX, 4, 0, 0, 1, 1,
	  true, false },
	{ "one is always allowed", 1, LIMIT_MAX, 0, 0, 0, 1, 1, true, false },
	{ "no probe past the ceiling", 4, 4, 4, 0, 0, 1, 0, false, false },
	{ "probes count towards the ceiling", 4, 4, 3, 1, 1, 2, 0, false,
	  false },
	{ "what is above the limit fills it", 4, LIMIT_MAX, 9, 0, 0, 1, 0,
	  false, true },
};

static void it_admits_by_the_limit_and_probes_by_the_clock(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(admissions) / sizeof(admissions[0]);
	     i++) {
		const struct admission *a = &admissions[i];
		struct limit l;

		print_message("  %s\n", a->about);
		limit_begin(&l, &policy, a->ceiling, 0);
		l.l = a->l;
		l.n = a->n;
		l.p = a->p;
		l.pp = a->pp;
		l.burst = a->burst;
		l.next_probe_ms = NOW + a->next;
		assert_int_equal(limit_admits(&l), a->ordinary);
		assert_int_equal(limit_admits_probe(&l, NOW), a->probe);
	}
}

static void one_that_refuses_all_of_us_is_only_probed(void **state)
{
	struct limit l;
	enum limit_phase phase = LIMIT_OUT;

	(void)state;
	limit_begin(&l, &policy, 50, 0);
	for (unsigned i = 0; i < LIMIT_STRIKES; i++) {
		assert_true(limit_admits(&l));
		phase = limit_dispatched(&l, false);
		phase = limit_busy(&l, &policy, phase, false, NOW, RANDOM);
		assert_int_equal(phase, LIMIT_OUT);
	}
	assert_false(limit_admits(&l));
	assert_false(limit_admits_probe(&l, NOW));
	assert_true(limit_admits_probe(&l, NOW + 2 * LIMIT_KNOCK_MS));
	/* Until it takes one. */
	phase = limit_dispatched(&l, true);
	phase = limit_greeted(&l, &policy, phase, 20, NOW, RANDOM);
	assert_int_equal(limit_gone(&l, phase), LIMIT_OUT);
	assert_int_equal(l.n, 0);
	assert_true(limit_admits(&l));
}

static void it_starts_at_the_ceiling_or_where_the_policy_says(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, NOW);
	assert_int_equal(limit_slots(&l), 4);
	assert_int_equal(l.last, LIMIT_START);
	limit_begin(&l, &policy, 50, NOW);
	assert_int_equal(limit_slots(&l), 50);
	limit_begin(&l, &policy, 1, NOW);
	assert_int_equal(limit_slots(&l), 1);
	assert_true(limit_admits(&l));
}

static void dispatching_counts_and_names_the_phase(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, NOW);
	assert_int_equal(limit_dispatched(&l, false), LIMIT_PENDING);
	assert_int_equal(limit_dispatched(&l, true), LIMIT_PROBE);
	assert_int_equal(l.n, 0);
	assert_int_equal(l.p, 2);
	assert_int_equal(l.pp, 1);
}

/* 100 refusals at once, some of probes, some of such as were greeted. */
static void any_number_of_refusals_at_once_say_the_same(void **state)
{
	static const uint32_t greeted[] = { 0, 1, 7, 40, 50 };

	(void)state;
	for (size_t i = 0; i < sizeof(greeted) / sizeof(greeted[0]); i++) {
		for (unsigned order = 0; order < 64; order++) {
			struct limit l = fresh();

			l.l = l.wall = 50;
			l.n = greeted[i];
			for (unsigned k = 0; k < 100; k++)
				limit_dispatched(&l, (k + order) % 7 == 0);
			for (unsigned k = 0; k < 100; k++) {
				unsigned nth = (k * 37 + order) % 100;
				enum limit_phase phase =
					(nth + order) % 7 == 0 ? LIMIT_PROBE
							       : LIMIT_PENDING;

				limit_busy(&l, &policy, phase, false, NOW,
					   RANDOM * k);
			}
			assert_near(l.l, greeted[i] < 1 ? 1 : greeted[i]);
			assert_int_equal(l.p, 0);
			assert_int_equal(l.pp, 0);
		}
	}
}

static void every_second_refusal_without_a_reason_counts(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = l.wall = 20;
	l.n = 10;
	l.p = 4;
	for (unsigned i = 1; i <= 4; i++) {
		assert_int_equal(
			limit_maybe(&l, &policy, LIMIT_PENDING, NOW, RANDOM),
			LIMIT_OUT);
		assert_int_equal(l.strikes, i / 2);
		assert_int_equal(l.p, 4 - i);
	}
	assert_near(l.l, 18);
}

static void a_probe_refused_without_a_reason_is_not_repeated_at_once(
	void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = l.wall = l.n = 20;
	for (unsigned i = 1; i <= 2; i++) {
		int64_t now = NOW + i * 5000;

		assert_true(limit_admits_probe(&l, now));
		limit_maybe(&l, &policy, limit_dispatched(&l, true), now,
			    RANDOM);
		assert_int_equal(l.strikes, i / 2);
		assert_int_equal(l.next_probe_ms, now + 500 * i);
		assert_int_equal(l.pp, 0);
	}
	assert_near(l.l, 20);
}

static void a_cooldown_cuts_once_in_five_seconds(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = 100;
	limit_cool(&l, NOW);
	limit_cool(&l, NOW + 4999);
	assert_near(l.l, 70);
	limit_cool(&l, NOW + 5000);
	assert_near(l.l, 49);
}

static void a_cooldown_is_taken_back_when_nobody_stands_by_it(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = 100;
	limit_cool(&l, NOW);
	limit_uncool(&l, NOW + 10);
	assert_near(l.l, 100);
	limit_uncool(&l, NOW + 10);
	assert_near(l.l, 100);

	/* The next one is not held to have been cut for already. */
	limit_cool(&l, NOW + 20);
	limit_cool(&l, NOW + 30);
	limit_uncool(&l, NOW + 40);
	assert_near(l.l, 70);
	limit_uncool(&l, NOW + 50);
	assert_near(l.l, 100);

	/* What was learned since, stays. */
	limit_cool(&l, NOW + 60);
	l.n = 30;
	l.p = 1;
	l.strikes = 2;
	limit_busy(&l, &policy, LIMIT_PENDING, false, NOW + 70, RANDOM);
	limit_uncool(&l, NOW + 80);
	assert_near(l.l, 30);
}

static void ceilings_come_and_go(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	limit_set_ceiling(&l, &policy, 50, NOW);
	assert_int_equal(limit_slots(&l), 50); /* nothing was learned yet */
	limit_set_ceiling(&l, &policy, LIMIT_MAX, NOW);
	assert_int_equal(limit_slots(&l), 4);
	limit_set_ceiling(&l, &policy, 50, NOW);

	l.n = 10;
	limit_busy(&l, &policy, limit_dispatched(&l, false), true, NOW, RANDOM);
	assert_int_equal(limit_slots(&l), 10);
	limit_set_ceiling(&l, &policy, 60, NOW);
	assert_int_equal(limit_slots(&l), 10); /* what was learned, stays */
	limit_set_ceiling(&l, &policy, 5, NOW);
	assert_int_equal(limit_slots(&l), 5);
	assert_int_equal(l.last, LIMIT_CEILING);
	assert_true(l.wall <= 5);
	limit_set_ceiling(&l, &policy, 20, NOW);
	assert_int_equal(limit_slots(&l), 20); /* it stood at the old one */
	limit_set_ceiling(&l, &policy, LIMIT_MAX, NOW);
	assert_int_equal(limit_slots(&l), 20);
}

static void the_limit_never_passes_the_ceiling(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, 8, 0);
	l.n = 8;
	limit_set_ceiling(&l, &policy, 3, NOW);
	l.p = 1;
	limit_greeted(&l, &policy, LIMIT_PENDING, 20, NOW, RANDOM);
	assert_int_equal(l.n, 9);
	assert_near(l.l, 3);
}

/* --- greeting times --- */

static void without_a_baseline_nothing_is_slow(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned i = 0; i < LIMIT_BASE_MIN; i++) {
		assert_int_equal(l.baseline_ms, 0);
		limit_dispatched(&l, false);
		limit_greeted(&l, &policy, LIMIT_PENDING, 5000, NOW, RANDOM);
	}
	assert_int_equal(l.slow, 0);
	assert_int_equal(l.accepted, LIMIT_BASE_MIN);
	assert_true(l.baseline_ms >= 5000);
}

struct greeting {
	const char *about;
	int64_t usual, ms;
	bool slow;
};

static const struct greeting greetings[] = {
	{ "as usual", 20, 20, false },
	{ "100 ms above a quick baseline of 24", 20, 124, false },
	{ "one more", 20, 125, true },
	{ "four times a slow baseline of 256", 200, 1024, false },
	{ "one more", 200, 1025, true },
	{ "at once", 0, 101, false },
	{ "beyond the last bucket nothing is slow", 9000, 30000, false },
};

static void slow_is_by_what_is_usual(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(greetings) / sizeof(greetings[0]); i++) {
		const struct greeting *g = &greetings[i];
		struct limit l;

		print_message("  %s\n", g->about);
		limit_begin(&l, &policy, LIMIT_MAX, 0);
		for (unsigned k = 0; k < 50; k++)
			limit_seed(&l, g->usual, NOW);
		limit_dispatched(&l, false);
		limit_greeted(&l, &policy, LIMIT_PENDING, g->ms, NOW, RANDOM);
		assert_int_equal(l.slow, g->slow);
	}
}

/* One greeting, at that time. */
static void greets(struct limit *l, int64_t ms, int64_t now_ms)
{
	enum limit_phase phase = limit_dispatched(l, false);

	(void)limit_greeted(l, &policy, phase, ms, now_ms, RANDOM);
	l->n--;
}

static void what_was_measured_comes_back_after_late_greetings(void **state)
{
	struct limit l;
	int64_t now = NOW;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned k = 0; k < 50; k++)
		limit_seed(&l, 20, now);
	l.l = 20;
	l.n = 20;
	(void)limit_busy(&l, &policy, limit_dispatched(&l, true), false, now,
			 RANDOM);
	l.n = 15;
	for (unsigned k = 0; k < 3; k++) {
		now += LIMIT_EPOCH_MS;
		greets(&l, 500, now);
	}
	assert_true(l.l < 20);
	assert_int_equal(l.last, LIMIT_SLOW);
	/* A tenth a second, and no more than the refusal said. */
	greets(&l, 20, now);
	assert_true(l.l < 20);
	for (unsigned k = 0; k < 5; k++) {
		now += LIMIT_EPOCH_MS;
		greets(&l, 20, now);
	}
	assert_near(l.l, 20);
	assert_int_equal(l.last, LIMIT_RECOVERED);
}

static void without_a_refusal_late_greetings_are_the_limit(void **state)
{
	struct limit l;
	int64_t now = NOW;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned k = 0; k < 50; k++)
		limit_seed(&l, 20, now);
	l.l = 20;
	l.n = 20;
	(void)limit_silent(&l, &policy, limit_dispatched(&l, true), now,
			   RANDOM);
	l.n = 15;
	greets(&l, 500, now + LIMIT_EPOCH_MS);

	double limit = l.l;

	assert_true(limit < 20);
	l.n = 10;
	for (unsigned k = 2; k < 9; k++)
		greets(&l, 20, now + k * LIMIT_EPOCH_MS);
	assert_near(l.l, limit);
}

static void a_time_that_says_nothing_teaches_nothing(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned i = 0; i < 2 * LIMIT_BASE_MIN; i++) {
		limit_dispatched(&l, false);
		limit_greeted(&l, &policy, LIMIT_PENDING, -1, NOW, RANDOM);
	}
	assert_int_equal(l.baseline_ms, 0);
	assert_int_equal(l.n, 2 * LIMIT_BASE_MIN);
	assert_int_equal(l.slow, 0);
}

static void the_baseline_is_the_tenth_percentile_of_ten_minutes(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	/* One in nine is quick: more than a tenth.  One in eleven: less. */
	for (unsigned i = 0; i < 90; i++)
		limit_seed(&l, i % 9 == 0 ? 10 : 900, NOW);
	assert_int_equal(l.baseline_ms, 12);
	for (unsigned i = 0; i < 40; i++)
		limit_seed(&l, 900, NOW + 60000);
	assert_int_equal(l.baseline_ms, 1024);

	/* Nine minutes on the first minute still counts, then no more. */
	for (unsigned i = 0; i < 5; i++)
		limit_seed(&l, 10, NOW + 9 * 60000);
	assert_int_equal(l.baseline_ms, 12);
	limit_seed(&l, 900, NOW + 10 * 60000);
	assert_int_equal(l.baseline_ms, 12);
	for (unsigned i = 0; i < 10; i++)
		limit_seed(&l, 900, NOW + 10 * 60000);
	assert_int_equal(l.baseline_ms, 1024);

	/* A long silence forgets all. */
	limit_seed(&l, 10, NOW + 100 * 60000);
	assert_int_equal(l.baseline_ms, 0);
}

static void many_greetings_in_a_minute_keep_their_shares(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned i = 0; i < 300000; i++)
		limit_seed(&l, i % 8 == 0 ? 10 : 900, NOW);
	assert_int_equal(l.baseline_ms, 12);
}

/* A cut once in two handshakes, if those take longer than a second. */
static void the_epoch_is_two_handshakes_at_least(void **state)
{
	struct limit l;

	(void)state;
	limit_begin(&l, &policy, LIMIT_MAX, 0);
	for (unsigned i = 0; i < 50; i++)
		limit_seed(&l, 1000, NOW);
	assert_int_equal(l.baseline_ms, 1024);
	l.l = 100;
	for (unsigned i = 0; i < 2; i++) {
		limit_dispatched(&l, false);
		limit_busy(&l, &policy, LIMIT_PENDING, false,
			   NOW + 2047 * (int64_t)i, RANDOM);
	}
	assert_near(l.l, 90);
	l.strikes = 0;
	limit_dispatched(&l, false);
	limit_busy(&l, &policy, LIMIT_PENDING, false, NOW + 2048, RANDOM);
	assert_near(l.l, 81);
}

struct patience {
	const char *about;
	int64_t usual;
	uint32_t n;
	int64_t ms;
};

static const struct patience patiences[] = {
	{ "nothing is known", -1, 5, 30000 },
	{ "nothing is there: it cannot be full", 20, 0, 30000 },
	{ "a second at least", 20, 1, 1000 },
	{ "well beyond what is usual", 200, 1, 4096 },
	{ "no more than it may be", 4000, 1, 30000 },
};

static void patience_is_by_what_is_usual(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(patiences) / sizeof(patiences[0]); i++) {
		const struct patience *c = &patiences[i];
		struct limit l;

		print_message("  %s\n", c->about);
		limit_begin(&l, &policy, LIMIT_MAX, 0);
		for (unsigned k = 0; k < 50 && c->usual >= 0; k++)
			limit_seed(&l, c->usual, NOW);
		l.n = c->n;
		assert_int_equal(limit_patience_ms(&l, 30000), c->ms);
	}
	assert_int_equal(
		limit_patience_ms(&(struct limit){ .baseline_ms = 24, .n = 9 },
				  300),
		300);
}

/* --- the alarm --- */

static void refuse_one_in(struct limit *l, unsigned each, unsigned times,
			  int64_t now_ms)
{
	for (unsigned i = 1; i <= times; i++) {
		enum limit_phase phase = limit_dispatched(l, false);

		if (i % each == 0)
			phase = limit_busy(l, &policy, phase, false, now_ms,
					   RANDOM);
		else
			phase = limit_greeted(l, &policy, phase, 20, now_ms,
					      RANDOM);
		limit_gone(l, phase);
	}
}

static void refusals_below_its_size_raise_an_alarm(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = l.wall = 50;
	l.n = 20;
	refuse_one_in(&l, 5, 49, NOW);
	assert_false(limit_is_alarmed(&l, NOW)); /* too few to say */
	refuse_one_in(&l, 5, 10, NOW);
	assert_true(limit_is_alarmed(&l, NOW));
	assert_true(limit_is_alarmed(&l, NOW + 60000));
	assert_false(limit_is_alarmed(&l, NOW + 120000));

	/* One in ten is not more than a tenth. */
	refuse_one_in(&l, 10, 200, NOW + 300000);
	assert_false(limit_is_alarmed(&l, NOW + 300000));
}

/* A close, an accept, and one too many: as often as it likes. */
static void refusals_at_its_size_raise_none(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = l.wall = 50;
	l.n = 40;
	for (unsigned i = 0; i < 100; i++) {
		limit_gone(&l, LIMIT_GREETED);
		limit_greeted(&l, &policy, limit_dispatched(&l, false), 20, NOW,
			      RANDOM);
		limit_busy(&l, &policy, limit_dispatched(&l, true), false, NOW,
			   RANDOM);
	}
	assert_int_equal(l.n, 40);
	assert_false(limit_is_alarmed(&l, NOW));
}

/* Of many at once, some are refused sooner than others are greeted. */
static void refusals_that_overtake_greetings_raise_none(void **state)
{
	struct limit l = fresh();

	(void)state;
	l.l = l.wall = 100;
	for (unsigned i = 0; i < 100; i++)
		limit_dispatched(&l, false);
	for (unsigned i = 0; i < 50; i++)
		limit_busy(&l, &policy, LIMIT_PENDING, false, NOW, RANDOM);
	for (unsigned i = 0; i < 50; i++)
		limit_greeted(&l, &policy, LIMIT_PENDING, 20, NOW + 9, RANDOM);
	assert_false(limit_is_alarmed(&l, NOW + 9));
}

/* Somebody else may have left since. */
static void refusals_of_a_while_ago_raise_none(void **state)
{
	struct limit l = fresh();
	int64_t now = NOW;

	(void)state;
	l.l = l.wall = 100;
	l.n = 10;
	for (unsigned i = 0; i < 50; i++) {
		limit_busy(&l, &policy, limit_dispatched(&l, false), false, now,
			   RANDOM);
		now += LIMIT_DOUBT_MS + 1;
		limit_greeted(&l, &policy, limit_dispatched(&l, false), 20, now,
			      RANDOM);
	}
	assert_false(limit_is_alarmed(&l, now));
}

static void events_have_words(void **state)
{
	(void)state;
	for (int i = 0; i < LIMIT_EVENT_COUNT; i++) {
		enum limit_event event = (enum limit_event)i;

		assert_true(limit_event_name(event)[0] != '\0');
		assert_true(limit_event_help(event)[0] != '\0');
	}
	assert_string_equal(limit_event_name(LIMIT_MEASURED), "measured");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_rule_moves_what_it_says),
		cmocka_unit_test(
			it_admits_by_the_limit_and_probes_by_the_clock),
		cmocka_unit_test(one_that_refuses_all_of_us_is_only_probed),
		cmocka_unit_test(
			it_starts_at_the_ceiling_or_where_the_policy_says),
		cmocka_unit_test(dispatching_counts_and_names_the_phase),
		cmocka_unit_test(any_number_of_refusals_at_once_say_the_same),
		cmocka_unit_test(every_second_refusal_without_a_reason_counts),
		cmocka_unit_test(
			a_probe_refused_without_a_reason_is_not_repeated_at_once),
		cmocka_unit_test(a_cooldown_cuts_once_in_five_seconds),
		cmocka_unit_test(
			a_cooldown_is_taken_back_when_nobody_stands_by_it),
		cmocka_unit_test(ceilings_come_and_go),
		cmocka_unit_test(the_limit_never_passes_the_ceiling),
		cmocka_unit_test(without_a_baseline_nothing_is_slow),
		cmocka_unit_test(slow_is_by_what_is_usual),
		cmocka_unit_test(
			what_was_measured_comes_back_after_late_greetings),
		cmocka_unit_test(
			without_a_refusal_late_greetings_are_the_limit),
		cmocka_unit_test(a_time_that_says_nothing_teaches_nothing),
		cmocka_unit_test(
			the_baseline_is_the_tenth_percentile_of_ten_minutes),
		cmocka_unit_test(many_greetings_in_a_minute_keep_their_shares),
		cmocka_unit_test(the_epoch_is_two_handshakes_at_least),
		cmocka_unit_test(patience_is_by_what_is_usual),
		cmocka_unit_test(refusals_below_its_size_raise_an_alarm),
		cmocka_unit_test(refusals_at_its_size_raise_none),
		cmocka_unit_test(refusals_that_overtake_greetings_raise_none),
		cmocka_unit_test(refusals_of_a_while_ago_raise_none),
		cmocka_unit_test(events_have_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
