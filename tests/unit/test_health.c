#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "health/health.h"

/*
 * Cases are scripts: each word is one thing that happens, at a time that
 * +N moves on by N ms.
 *
 *	p b d m f    a probe: passed, busy, drain, misconf, failed
 *	S<n>         a live success at depth n
 *	F<n>  X<n>   a hard failure at depth n; X: the farm cannot spare it
 *	R V W C      refused; busy by votes, strong; cooldown
 *	D M Q<n>     live: drain, misconf, sick
 *	t            the clock ticks
 */
struct script {
	const char *about;
	const char *words;
	enum health_state state;
	enum health_why why;
	int64_t until_ms; /* from the start; 0: none */
};

enum { START_MS = 1000000, MIDDLE = 1 << 15 }; /* no jitter */

static void one(struct health *h, const struct health_policy *policy,
		const char *word, int64_t *now)
{
	unsigned n = word[0] != '\0' && word[1] >= '0' && word[1] <= '9'
			     ? (unsigned)(word[1] - '0')
			     : 0;

	switch (word[0]) {
	case '+':
		*now += (int64_t)strtoul(word + 1, NULL, 10);
		break;
	case 'p':
		health_note_probe(h, policy, HEALTH_PROBE_PASSED, *now, MIDDLE);
		break;
	case 'b':
		health_note_probe(h, policy, HEALTH_PROBE_BUSY, *now, MIDDLE);
		break;
	case 'd':
		health_note_probe(h, policy, HEALTH_PROBE_DRAIN, *now, MIDDLE);
		break;
	case 'm':
		health_note_probe(h, policy, HEALTH_PROBE_MISCONF, *now,
				  MIDDLE);
		break;
	case 'f':
		health_note_probe(h, policy, HEALTH_PROBE_FAILED, *now, MIDDLE);
		break;
	case 'S':
		health_note_success(h, n, *now);
		break;
	case 'F':
	case 'X':
		health_note_failure(h, policy, n, word[0] == 'F', *now, MIDDLE);
		break;
	case 'R':
		health_note_refused(h, policy, *now);
		break;
	case 'V':
		health_note_busy(h, policy, HEALTH_WHY_BUSY_VOTES, *now);
		break;
	case 'W':
		health_note_busy(h, policy, HEALTH_WHY_BUSY_STRONG, *now);
		break;
	case 'C':
		health_note_busy(h, policy, HEALTH_WHY_RESOURCES, *now);
		break;
	case 'D':
		health_note_drain(h, policy, *now);
		break;
	case 'M':
		health_note_misconf(h, policy, *now);
		break;
	case 'Q':
		health_note_sick(h, policy, n, *now, MIDDLE);
		break;
	case 't':
		health_tick(h, *now);
		break;
	default:
		fail_msg("unknown word %s", word);
	}
}

static int64_t play(struct health *h, const struct health_policy *policy,
		    const char *words)
{
	char copy[512];
	char *save = NULL;
	int64_t now = START_MS;

	snprintf(copy, sizeof(copy), "%s", words);
	for (char *w = strtok_r(copy, " ", &save); w != NULL;
	     w = strtok_r(NULL, " ", &save))
		one(h, policy, w, &now);
	return now;
}

#define S(state) HEALTH_##state
#define W(why)   HEALTH_WHY_##why

/* clang-format off */
static const struct script scripts[] = {
	{ "nothing is known at first", "", S(UNKNOWN), W(START), 0 },
	{ "one good probe brings it up", "p", S(UP), W(PROBE_OK), 0 },
	{ "busy is alive", "b", S(UP), W(PROBE_OK), 0 },
	{ "a live success does, too", "S1", S(UP), W(ACCEPTED), 0 },
	{ "nothing vouches for one that fails its first probe", "f", S(DOWN), W(PROBE_FAILED), 0 },
	{ "two failures of three change nothing", "p f f", S(UP), W(PROBE_OK), 0 },
	{ "three in a row do", "p f f f", S(DOWN), W(PROBE_FAILED), 0 },
	{ "three not in a row do not", "p f f p f f", S(UP), W(PROBE_OK), 0 },
	{ "busy breaks the row", "p f f b f f", S(UP), W(PROBE_OK), 0 },
	{ "busy for ever is never down", "p b b b b b b b b", S(UP), W(PROBE_OK), 0 },
	{ "one good probe does not bring it back", "f p", S(DOWN), W(PROBE_FAILED), 0 },
	{ "two do", "f p p", S(UP), W(PROBE_OK), 0 },
	{ "good probes count in a row", "f p f p", S(DOWN), W(PROBE_FAILED), 0 },
	{ "a busy one brings it back as well", "f b b", S(UP), W(PROBE_OK), 0 },
	{ "a live success does not end DOWN", "f S9", S(DOWN), W(PROBE_FAILED), 0 },

	{ "drain lasts until a probe passes", "p D", S(DRAIN), W(SAID_DRAIN), 0 },
	{ "busy is not passing", "p D b b", S(DRAIN), W(SAID_DRAIN), 0 },
	{ "it passed", "p D p", S(UP), W(PROBE_OK), 0 },
	{ "a probe may be told of the drain", "p d", S(DRAIN), W(SAID_DRAIN), 0 },
	{ "sessions it has do not end it", "p D S8", S(DRAIN), W(SAID_DRAIN), 0 },
	{ "it drained and is gone", "p D f f f", S(DOWN), W(PROBE_FAILED), 0 },
	{ "who is down does not drain", "f D", S(DOWN), W(PROBE_FAILED), 0 },
	{ "time does not end a drain", "p D +999999 t", S(DRAIN), W(SAID_DRAIN), 0 },

	{ "misconfigured, at once", "p M", S(MISCONF), W(SAID_MISCONF), 0 },
	{ "by a probe", "p m", S(MISCONF), W(SAID_MISCONF), 0 },
	{ "even while it is down", "f m", S(MISCONF), W(SAID_MISCONF), 0 },
	{ "one good probe is not enough", "p M p", S(MISCONF), W(SAID_MISCONF), 0 },
	{ "two are", "p M p p", S(UP), W(PROBE_OK), 0 },
	{ "busy is no proof of it", "p M b b b", S(MISCONF), W(SAID_MISCONF), 0 },

	{ "busy holds it off", "p V", S(BUSY), W(BUSY_VOTES), 1000 },
	{ "until its time is over", "p V +999 t", S(BUSY), W(BUSY_VOTES), 1000 },
	{ "and no longer", "p V +1000 t", S(UP), W(TIME), 0 },
	{ "again at once: twice as long", "p W +1000 t W", S(BUSY), W(BUSY_STRONG), 3000 },
	{ "and so on", "p W +1000 t W +2000 t W", S(BUSY), W(BUSY_STRONG), 7000 },
	{ "to 15 s", "p W +1000 t W +2000 t W +4000 t W +8000 t W +15000 t W", S(BUSY), W(BUSY_STRONG), 45000 },
	{ "after a rest: from the start", "p W +1000 t +2001 W", S(BUSY), W(BUSY_STRONG), 4001 },
	{ "no longer for signs meanwhile", "p W +500 W V C R", S(BUSY), W(BUSY_STRONG), 1000 },
	{ "a cooldown is longer", "p C", S(BUSY), W(RESOURCES), 5000 },
	{ "and doubles", "p C +5000 t C", S(BUSY), W(RESOURCES), 15000 },
	{ "to a minute", "p C +5000 t C +10000 t C +20000 t C +40000 t C +60000 t C", S(BUSY), W(RESOURCES), 195000 },
	{ "the two do not add up", "p W +1000 t C", S(BUSY), W(RESOURCES), 6000 },
	{ "refused: the same hold-off", "p R", S(BUSY), W(REFUSED), 1000 },
	{ "who is out is not held off", "f V W C R", S(DOWN), W(PROBE_FAILED), 0 },
	{ "probes find it alive meanwhile", "p W p b", S(BUSY), W(BUSY_STRONG), 1000 },
	{ "or dead", "p W f f f", S(DOWN), W(PROBE_FAILED), 0 },

	{ "two failures are none", "p F0 F0", S(UP), W(PROBE_OK), 0 },
	{ "three eject", "p F0 F0 F0", S(EJECTED), W(FAILURES), 5000 },
	{ "a success clears the row", "p F0 F0 S1 F0 F0", S(UP), W(PROBE_OK), 0 },
	{ "one before the broken point does not", "p F5 S1 F5 S1 F5", S(EJECTED), W(FAILURES), 5000 },
	{ "one at it does", "p F5 F5 S5 F5", S(UP), W(PROBE_OK), 0 },
	{ "a hold-off does not stop the count", "p F0 R +1000 t F0 R +2000 t F0 R", S(EJECTED), W(FAILURES), 8000 },
	{ "the farm cannot spare it", "p X0 X0 X0 X0 X0", S(UP), W(PROBE_OK), 0 },
	{ "now it can", "p X0 X0 X0 X0 F0", S(EJECTED), W(FAILURES), 5000 },
	{ "old failures do not make it longer", "p F0 F0 F0 F0 F0 F0 F0", S(EJECTED), W(FAILURES), 5000 },
	{ "not a moment early", "p F0 F0 F0 +4999 t", S(EJECTED), W(FAILURES), 5000 },
	{ "back with one session", "p F0 F0 F0 +5000 t", S(HALF_OPEN), W(TIME), 0 },
	{ "which succeeds", "p F0 F0 F0 +5000 t S0", S(UP), W(ACCEPTED), 0 },
	{ "not by less than what failed", "p F5 F5 F5 +5000 t S1", S(HALF_OPEN), W(TIME), 0 },
	{ "or two good probes", "p F0 F0 F0 +5000 t p", S(HALF_OPEN), W(TIME), 0 },
	{ "in a row", "p F0 F0 F0 +5000 t p p", S(UP), W(PROBE_OK), 0 },
	{ "that came after its time", "p F0 F0 F0 p p p +5000 t p", S(HALF_OPEN), W(TIME), 0 },
	{ "which fails: twice as long", "p F0 F0 F0 +5000 t F0", S(EJECTED), W(TRIAL_FAILED), 15000 },
	{ "even if the farm is short", "p F0 F0 F0 +5000 t X0", S(EJECTED), W(TRIAL_FAILED), 15000 },
	{ "and so on", "p F0 F0 F0 +5000 t F0 +10000 t F0 +20000 t F0", S(EJECTED), W(TRIAL_FAILED), 75000 },
	{ "to 300 s", "p F0 F0 F0 +5000 t F0 +10000 t F0 +20000 t F0 +40000 t F0 +80000 t F0 +160000 t F0 +300000 t F0", S(EJECTED), W(TRIAL_FAILED), 915000 },
	{ "a good moment forgives nothing", "p F0 F0 F0 +5000 t S0 F0 F0 F0", S(EJECTED), W(FAILURES), 15000 },
	{ "300 s of service do", "p F0 F0 F0 +5000 t S0 +300000 F0 F0 F0", S(EJECTED), W(FAILURES), 310000 },
	{ "busy at its trial is alive", "p F0 F0 F0 +5000 t W +1000 t", S(UP), W(TIME), 0 },
	{ "dead while ejected", "p F0 F0 F0 f f f", S(DOWN), W(PROBE_FAILED), 0 },
	{ "used in an emergency, and well", "p F0 F0 F0 S0", S(UP), W(ACCEPTED), 0 },

	{ "sicker than its peers", "p Q5", S(EJECTED), W(SICK), 5000 },
	{ "cured by what it was sick of", "p Q5 +5000 t S4", S(HALF_OPEN), W(TIME), 0 },
	{ "that is", "p Q5 +5000 t S5", S(UP), W(ACCEPTED), 0 },
};
/* clang-format on */

static void each_event_leads_where_the_drawing_says(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
		const struct script *s = &scripts[i];
		struct health h;

		print_message("  %s: %s\n", s->words, s->about);
		health_begin(&h, START_MS);
		play(&h, &policy, s->words);
		assert_string_equal(health_state_name(h.state),
				    health_state_name(s->state));
		assert_string_equal(health_why_name(h.why),
				    health_why_name(s->why));
		assert_int_equal(h.until_ms,
				 s->until_ms == 0 ? 0 : START_MS + s->until_ms);
	}
}

static void without_probes_everything_ends_by_time(void **state)
{
	(void)state;
	/* clang-format off */
	static const struct script cases[] = {
		{ "drain", "S1 D", S(DRAIN), W(SAID_DRAIN), 5000 },
		{ "its end", "S1 D +5000 t", S(HALF_OPEN), W(TIME), 0 },
		{ "misconf", "S1 M", S(MISCONF), W(SAID_MISCONF), 300000 },
		{ "its end", "S1 M +300000 t S1", S(UP), W(ACCEPTED), 0 },
	};
	/* clang-format on */
	struct health_policy policy = health_policy_default();

	policy.probe = false;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct health h;

		print_message("  %s\n", cases[i].words);
		health_begin(&h, START_MS);
		assert_false(health_probe_claim(&h, &policy, START_MS));
		play(&h, &policy, cases[i].words);
		assert_int_equal(h.state, cases[i].state);
		assert_int_equal(h.until_ms,
				 cases[i].until_ms == 0
					 ? 0
					 : START_MS + cases[i].until_ms);
	}
}

/* Every event in every state: it must stand, and stay within its states. */
static void every_event_is_defined_in_every_state(void **state)
{
	(void)state;
	static const char *const roads[HEALTH_STATE_COUNT] = {
		[HEALTH_UNKNOWN] = "",
		[HEALTH_UP] = "p",
		[HEALTH_BUSY] = "p W",
		[HEALTH_HALF_OPEN] = "p F0 F0 F0 +5000 t",
		[HEALTH_DRAIN] = "p D",
		[HEALTH_EJECTED] = "p F0 F0 F0",
		[HEALTH_DOWN] = "f",
		[HEALTH_MISCONF] = "M",
	};
	static const char *const events[] = { "p",  "b",  "d",  "m",  "f",
					      "S0", "S9", "F0", "F9", "X0",
					      "R",  "V",  "W",  "C",  "D",
					      "M",  "Q5", "t" };
	struct health_policy policy = health_policy_default();

	for (size_t i = 0; i < HEALTH_STATE_COUNT; i++) {
		for (size_t j = 0; j < sizeof(events) / sizeof(events[0]);
		     j++) {
			struct health h;

			health_begin(&h, START_MS);
			int64_t now = play(&h, &policy, roads[i]);

			assert_int_equal(h.state, i);
			uint32_t epoch = h.epoch;

			one(&h, &policy, events[j], &now);
			assert_true(h.state < HEALTH_STATE_COUNT);
			assert_true(h.until_ms == 0 || h.until_ms > now);
			assert_true(h.epoch >= epoch);
			if (h.state == HEALTH_EJECTED || h.state == HEALTH_BUSY)
				assert_true(h.until_ms != 0);
			if (h.state == HEALTH_UP || h.state == HEALTH_DOWN)
				assert_true(h.until_ms == 0);
		}
	}
}

static void ejections_spread_by_half_and_keep_the_maximum(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	int64_t low = INT64_MAX;
	int64_t high = 0;

	policy.passive_fall = 1;
	for (uint64_t r = 0; r < 65536; r += 97) {
		struct health h;

		health_begin(&h, 0);
		health_note_failure(&h, &policy, 0, true, 100, r);
		int64_t ms = h.until_ms - 100;

		assert_in_range(ms, 2500, 7500);
		low = ms < low ? ms : low;
		high = ms > high ? ms : high;
		h.ejections = 9;
		health_tick(&h, h.until_ms);
		health_note_failure(&h, &policy, 0, true, 100000, r);
		assert_in_range(h.until_ms - 100000, 150000, 300000);
	}
	assert_true(low < 2600);
	assert_true(high > 7400);
}

static void probes_come_at_their_interval_give_or_take_a_tenth(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	for (uint64_t r = 0; r < 65536; r += 97) {
		struct health h;

		health_begin(&h, 50);
		assert_true(health_probe_claim(&h, &policy, 50));
		assert_false(health_probe_claim(&h, &policy, 50)); /* once */
		health_note_probe(&h, &policy, HEALTH_PROBE_PASSED, 60, r);
		assert_in_range(h.probe_at_ms, 60 + 9000, 60 + 11000);
		assert_false(health_probe_claim(&h, &policy, 9059));
		assert_true(health_probe_claim(&h, &policy, 11060));
		health_note_probe(&h, &policy, HEALTH_PROBE_MISCONF, 11100, r);
		assert_in_range(h.probe_at_ms, 11100 + 1800, 11100 + 2200);
		assert_true(health_probe_claim(&h, &policy, 20000));
		health_probe_cancel(&h, &policy, 20000);
		assert_false(health_probe_claim(&h, &policy, 21999));
		assert_true(health_probe_claim(&h, &policy, 22000));
	}
}

static void trouble_does_not_wait_for_the_end_of_the_interval(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	static const char *const words[] = { "D", "M", "F0 F0 F0" };

	for (size_t i = 0; i < 3; i++) {
		struct health h;

		health_begin(&h, START_MS);
		play(&h, &policy, "p");
		play(&h, &policy, words[i]);
		assert_int_equal(h.probe_at_ms, START_MS + 2000);
		health_probe_soon(&h, START_MS + 5);
		assert_int_equal(h.probe_at_ms, START_MS + 5);
	}
}

static void history_is_bits_with_the_newest_lowest(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	struct health h;

	health_begin(&h, START_MS);
	play(&h, &policy, "p f b m d p");
	assert_int_equal(h.history, 0x29); /* 101001 */
	assert_int_equal(h.seen, 6);
	for (int i = 0; i < 70; i++)
		play(&h, &policy, "p");
	assert_true(h.history == UINT64_MAX);
	assert_int_equal(h.seen, 64);
}

static void sessions_from_before_a_fall_are_told_by_their_epoch(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	struct health h;

	health_begin(&h, START_MS);
	uint32_t first = h.epoch;

	play(&h, &policy, "p W +1000 t");
	assert_int_equal(h.epoch, first); /* busy makes nothing old */
	play(&h, &policy, "F0 F0 F0");
	assert_int_equal(h.epoch, first + 1);
	play(&h, &policy, "+9000 t");
	assert_int_equal(h.epoch, first + 2);
	play(&h, &policy, "S9");
	assert_int_equal(h.epoch, first + 3);
}

static void one_source_has_one_vote_of_a_kind_in_ten_seconds(void **state)
{
	(void)state;
	struct health h;

	health_begin(&h, 0);
	assert_int_equal(health_vote(&h, 1, 100, 7, 0), 1);
	assert_int_equal(health_vote(&h, 1, 100, 7, 1), 0);
	assert_int_equal(health_vote(&h, 1, 100, 7, 9999), 0);
	assert_int_equal(health_vote(&h, 2, 100, 7, 9999), 1);  /* other kind */
	assert_int_equal(health_vote(&h, 1, 100, 7, 10000), 1); /* again, one */
	assert_int_equal(health_vote(&h, 1, 200, 7, 10001), 2);
	assert_int_equal(health_vote(&h, 1, 300, 7, 10002), 3);
	/* A minute later all of that is forgotten. */
	assert_int_equal(health_vote(&h, 1, 400, 7, 70002), 1);
}

static void votes_are_spent_by_the_change_they_brought(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	struct health h;

	health_begin(&h, 0);
	health_note_success(&h, 1, 0);
	assert_int_equal(health_vote(&h, 1, 1, 0, 10), 1);
	assert_int_equal(health_vote(&h, 1, 2, 0, 11), 2);
	assert_int_equal(health_vote(&h, 1, 3, 0, 12), 3);
	health_note_busy(&h, &policy, HEALTH_WHY_BUSY_VOTES, 13);
	health_tick(&h, 1013);
	assert_int_equal(health_vote(&h, 1, 4, 0, 1014), 1);
	assert_int_equal(health_vote(&h, 1, 1, 0, 1015), 0); /* yet limited */
}

static void a_vote_can_be_taken_back(void **state)
{
	(void)state;
	struct health h;

	health_begin(&h, 0);
	assert_int_equal(health_unvote(&h, 1, 100), 0);
	health_vote(&h, 1, 100, 77, 5);
	health_vote(&h, 1, 200, 88, 6);
	assert_int_equal(health_unvote(&h, 1, 100), 77);
	assert_int_equal(health_unvote(&h, 1, 100), 0);
	assert_int_equal(health_vote(&h, 1, 300, 99, 7), 2);
	for (uint64_t s = 1000; s < 1100; s++) /* the ring goes round */
		health_vote(&h, 3, s, 1, 8);
	assert_int_equal(health_unvote(&h, 1, 200), 0);
	assert_int_equal(health_unvote(&h, 3, 1099), 1);
}

static void every_word_is_said_once(void **state)
{
	(void)state;
	for (unsigned i = 0; i < HEALTH_STATE_COUNT; i++) {
		const char *name = health_state_name((enum health_state)i);

		assert_true(strlen(name) > 0);
		assert_true(strlen(health_state_help((enum health_state)i)) >
			    0);
		for (unsigned j = 0; j < i; j++)
			assert_string_not_equal(
				name, health_state_name((enum health_state)j));
	}
	for (unsigned i = 0; i < HEALTH_WHY_COUNT; i++) {
		const char *name = health_why_name((enum health_why)i);

		assert_true(strlen(name) > 0);
		assert_true(strlen(health_why_help((enum health_why)i)) > 0);
		for (unsigned j = 0; j < i; j++)
			assert_string_not_equal(
				name, health_why_name((enum health_why)j));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_event_leads_where_the_drawing_says),
		cmocka_unit_test(without_probes_everything_ends_by_time),
		cmocka_unit_test(every_event_is_defined_in_every_state),
		cmocka_unit_test(ejections_spread_by_half_and_keep_the_maximum),
		cmocka_unit_test(
			probes_come_at_their_interval_give_or_take_a_tenth),
		cmocka_unit_test(
			trouble_does_not_wait_for_the_end_of_the_interval),
		cmocka_unit_test(history_is_bits_with_the_newest_lowest),
		cmocka_unit_test(
			sessions_from_before_a_fall_are_told_by_their_epoch),
		cmocka_unit_test(
			one_source_has_one_vote_of_a_kind_in_ten_seconds),
		cmocka_unit_test(votes_are_spent_by_the_change_they_brought),
		cmocka_unit_test(a_vote_can_be_taken_back),
		cmocka_unit_test(every_word_is_said_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
