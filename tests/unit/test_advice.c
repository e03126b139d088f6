#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "proxy/advice.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { BACKENDS_MAX = 6, CERTS_MAX = 3 };

struct case_of_advice {
	const char *about;
	struct advice_backend backends[BACKENDS_MAX]; /* up to no name */
	struct advice_room room;
	bool observe, guarded;
	struct advice_cert certs[CERTS_MAX]; /* up to no listener */
	enum advice_mood mood;               /* of the first line */
	const char *lines;                   /* each with a line feed */
};

#define SERVES(n, u, l, c)                                                     \
	{                                                                      \
		.name = (n), .state = "up", .place = ADVICE_SERVING,           \
		.used = (u), .limit = (l), .ceiling = (c), .measured = true    \
	}
#define GROWS(n, u, l)                                                         \
	{                                                                      \
		.name = (n), .state = "up", .place = ADVICE_SERVING,           \
		.used = (u), .limit = (l)                                      \
	}
#define OTHER(n, s, p)                                                         \
	{                                                                      \
		.name = (n), .state = (s), .place = (p), .limit = 20           \
	}

#define RELAYS(n, p, r)                                                        \
	{                                                                      \
		.name = (n), .state = "up", .place = (p), .used = 1,           \
		.limit = 20, .measured = true, .relay = (r)                    \
	}
#define LASTS(n, d)                                                            \
	{                                                                      \
		.name = (n), .state = "up", .place = ADVICE_SERVING,           \
		.limit = 20, .measured = true, .cert_known = true,             \
		.cert_days = (d)                                               \
	}

#define EMPTY                                                                  \
	{                                                                      \
		.size = 1000                                                   \
	}
#define WAITING(n, p99)                                                        \
	{                                                                      \
		.size = 1000, .waiting = (n), .oldest_ms = 4000,               \
		.wait_p99_ms = (p99)                                           \
	}

/* clang-format off */
static const struct case_of_advice cases[] = {
	{ .about = "nothing is wrong",
	  .backends = { SERVES("a", 4, 20, 0), SERVES("b", 8, 40, 0) },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 12 of 60 slots in use.\n" },
	{ .about = "nothing at all",
	  .backends = { GROWS("a", 0, 4) },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 0 of 4 slots in use.\n" },
	{ .about = "a few wait for the blink in which slots change hands",
	  .backends = { SERVES("a", 15, 20, 0) },
	  .room = { .size = 1000, .waiting = 1, .oldest_ms = 40 },
	  .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 15 of 20 slots in use.\n" },

	{ .about = "full: one backend is smaller than its peers",
	  .backends = { SERVES("mx1", 20, 20, 0), SERVES("mx2", 10, 10, 0),
			SERVES("mx3", 15, 15, 0), SERVES("mx4", 20, 20, 0) },
	  .room = WAITING(120, 3210), .mood = ADVICE_WARN,
	  .lines = "All 65 slots that the farm offers are in use and 120 "
		   "sessions wait (p99 3.2 s): add a backend, or raise the "
		   "limit of mx2, which takes 10 sessions while its peers "
		   "take 20.\n" },
	{ .about = "full: all are alike",
	  .backends = { SERVES("a", 20, 20, 0), SERVES("b", 19, 19, 0) },
	  .room = WAITING(1, 240), .mood = ADVICE_WARN,
	  .lines = "All 39 slots that the farm offers are in use and 1 "
		   "session waits (p99 240 ms): add a backend.\n" },
	{ .about = "full: nobody was served yet",
	  .backends = { SERVES("a", 1, 1, 0) },
	  .room = WAITING(7, 0), .mood = ADVICE_WARN,
	  .lines = "The only slot that the farm offers is in use and 7 "
		   "sessions wait (4.0 s so far): add a backend.\n" },
	{ .about = "full, but for a slot that is changing hands",
	  .backends = { SERVES("a", 58, 60, 0) },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "58 of the 60 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): add a backend.\n" },
	{ .about = "full: weir's own max_sessions is what stops one",
	  .backends = { SERVES("a", 20, 20, 0), SERVES("b", 10, 10, 10) },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "All 30 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): raise max_sessions of b, which "
		   "it has reached, or add a backend.\n" },
	{ .about = "full: max_sessions stops all, too many to name",
	  .backends = { SERVES("a", 5, 5, 5), SERVES("b", 5, 5, 5),
			SERVES("c", 5, 5, 5), SERVES("d", 5, 5, 5) },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "All 20 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): raise max_sessions of a, b "
		   "and 2 more, which they have reached, or add a "
		   "backend.\n" },
	{ .about = "full because others are not there",
	  .backends = { SERVES("a", 20, 20, 0),
			OTHER("b", "down", ADVICE_FAILING),
			OTHER("c", "misconf", ADVICE_FAILING) },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "All 20 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): bring back b (down) and c "
		   "(misconf), or add a backend.\n" },
	{ .about = "full: who rests or is set aside offers nothing",
	  .backends = { SERVES("a", 20, 20, 0),
			OTHER("b", "busy", ADVICE_RESTING),
			OTHER("c", "up", ADVICE_ASIDE) },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "All 20 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): add a backend.\n" },
	{ .about = "saturated",
	  .backends = { SERVES("a", 20, 20, 0) },
	  .room = { .size = 1000, .waiting = 990, .oldest_ms = 15000,
		    .wait_p99_ms = 14900, .saturated = true,
		    .saturated_ms = 130000 },
	  .mood = ADVICE_BAD,
	  .lines = "All 20 slots that the farm offers are in use and 990 "
		   "sessions wait (p99 14.9 s): add a backend.  For 2 min new "
		   "clients have been turned away (421).\n" },

	{ .about = "they wait while a limit is learned",
	  .backends = { GROWS("a", 8, 8), SERVES("b", 20, 20, 0) },
	  .room = { .size = 1000, .waiting = 30, .oldest_ms = 300 },
	  .mood = ADVICE_GOOD,
	  .lines = "30 sessions wait (300 ms so far) while weir learns what a "
		   "takes: it has refused nothing yet, and its limit grows "
		   "with each session that it accepts.\n" },
	{ .about = "they wait, and the limits do not grow",
	  .backends = { GROWS("a", 8, 8), GROWS("b", 4, 4) },
	  .room = { .size = 1000, .waiting = 30, .oldest_ms = 9000 },
	  .mood = ADVICE_WARN,
	  .lines = "30 sessions wait (9.0 s so far) while weir learns what a "
		   "and b take: they have refused nothing yet, and their "
		   "limits grow with each session that they accept.  If this "
		   "lasts, they greet slowly: \"weirctl show limits\".\n" },
	{ .about = "they wait for what only a full backend offers",
	  .backends = { SERVES("a", 10, 10, 0), SERVES("b", 2, 20, 0) },
	  .room = WAITING(3, 100), .mood = ADVICE_WARN,
	  .lines = "3 sessions wait (p99 100 ms) although only 12 of 30 slots "
		   "are in use: those backends have refused them before, or do "
		   "not offer what they need (a large SIZE, SMTPUTF8 and so "
		   "on: \"weirctl show health\").\n" },

	{ .about = "just enough",
	  .backends = { SERVES("a", 20, 20, 0), SERVES("b", 19, 20, 0) },
	  .room = EMPTY, .mood = ADVICE_WARN,
	  .lines = "39 of 40 slots in use and nobody waits, but there is "
		   "nothing to spare: add a backend.\n" },
	{ .about = "just enough, and more if it were needed",
	  .backends = { GROWS("a", 4, 4), SERVES("b", 20, 20, 0) },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "24 of 24 slots in use and nobody waits; a has refused "
		   "nothing yet, so there is more: how much, is learned when "
		   "it is needed.\n" },
	{ .about = "nobody may wait",
	  .backends = { SERVES("a", 20, 20, 0) },
	  .room = { .size = 0 }, .mood = ADVICE_WARN,
	  .lines = "20 of 20 slots in use and nobody waits ([room] size = 0), "
		   "who finds no slot reads 451: add a backend.\n" },

	{ .about = "one has another trouble than slots",
	  .backends = { SERVES("a", 4, 20, 0),
			{ .name = "mx3", .state = "up",
			  .place = ADVICE_SERVING, .used = 1, .limit = 10,
			  .measured = true, .alarmed = true, .below = 64,
			  .below_refused = 9 } },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 5 of 30 slots in use.\n"
		   "mx3 refuses 14 % of the sessions well below its size: not "
		   "a question of slots; look at its log.\n" },
	{ .about = "full: who refuses below its size is not to be raised",
	  .backends = { SERVES("a", 20, 20, 0), SERVES("b", 20, 20, 0),
			{ .name = "c", .state = "up",
			  .place = ADVICE_SERVING, .used = 2, .limit = 2,
			  .measured = true, .alarmed = true } },
	  .room = WAITING(9, 100), .mood = ADVICE_WARN,
	  .lines = "All 42 slots that the farm offers are in use and 9 "
		   "sessions wait (p99 100 ms): add a backend.\n"
		   "c refuses sessions well below its size: not a question of "
		   "slots; look at its log.\n" },
	{ .about = "an alarm of one that is down says nothing new",
	  .backends = { SERVES("a", 4, 20, 0),
			{ .name = "b", .state = "down",
			  .place = ADVICE_FAILING, .limit = 10,
			  .alarmed = true } },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 4 of 20 slots in use.\n" },
	{ .about = "only observing",
	  .backends = { SERVES("a", 4, 20, 0) },
	  .room = EMPTY, .observe = true, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 4 of 20 slots in use.\n"
		   "weir only observes ([farm] busy = observe): limits are "
		   "learned and not kept, and busy replies may reach clients.\n" },

	{ .about = "one relays for strangers, who do not get there",
	  .backends = { RELAYS("mx1", ADVICE_SERVING, ADVICE_RELAY_OPEN),
			RELAYS("mx2", ADVICE_SERVING, ADVICE_RELAY_CLOSED) },
	  .room = EMPTY, .guarded = true, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 2 of 40 slots in use.\n"
		   "mx1 would relay anybody's mail to anybody, for it trusts "
		   "weir's address; until that ends, only clients in "
		   "relay_from get there.  Take weir's address out of what it "
		   "trusts, or tell it who the client is (identity).\n" },
	{ .about = "two do, and strangers get there; one is set aside",
	  .backends = { RELAYS("a", ADVICE_SERVING, ADVICE_RELAY_OPEN),
			RELAYS("b", ADVICE_RESTING, ADVICE_RELAY_OPEN),
			RELAYS("c", ADVICE_ASIDE, ADVICE_RELAY_OPEN) },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 1 of 20 slots in use.\n"
		   "a and b would relay anybody's mail to anybody, for they "
		   "trust weir's address; and with relay_guard = warn "
		   "strangers get there: spammers will find out.  Take weir's "
		   "address out of what they trust, or tell them who the "
		   "client is (identity).\n" },
	{ .about = "nobody knows whether it relays",
	  .backends = { RELAYS("a", ADVICE_SERVING, ADVICE_RELAY_UNKNOWN),
			RELAYS("b", ADVICE_FAILING, ADVICE_RELAY_UNKNOWN) },
	  .room = EMPTY, .guarded = true, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 1 of 20 slots in use.\n"
		   "a gets no mail of strangers yet: whether it would relay "
		   "it to strangers is not known.  \"weirctl show health "
		   "json\" has what it answered.\n" },
	{ .about = "which nobody minds",
	  .backends = { RELAYS("a", ADVICE_SERVING, ADVICE_RELAY_UNKNOWN) },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 1 of 20 slots in use.\n" },
	{ .about = "certificates last",
	  .backends = { LASTS("a", 14) },
	  .certs = { { "smtp", "mx.example", 14 } },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 0 of 20 slots in use.\n" },
	{ .about = "certificates expire",
	  .backends = { LASTS("a", 1), LASTS("b", 200) },
	  .certs = { { "smtp", "mx.example", 13 }, { "smtps", "x", 90 } },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 0 of 40 slots in use.\n"
		   "The certificate of [listener smtp] for mx.example expires "
		   "in 13 days: have it renewed, and then \"weirctl "
		   "reload\".\n"
		   "The certificate of a expires in 1 day.\n" },
	{ .about = "many do, the first today",
	  .backends = { LASTS("a", 9), LASTS("b", 0), LASTS("c", 13) },
	  .certs = { { "smtp", "a.example", 3 }, { "smtps", "b.example", 0 } },
	  .room = EMPTY, .mood = ADVICE_GOOD,
	  .lines = "Room to spare: 0 of 60 slots in use.\n"
		   "The certificate of [listener smtps] for b.example has "
		   "expired, or will today, and 1 more will soon: have them "
		   "renewed, and then \"weirctl reload\".\n"
		   "The certificate of b has expired, or will today; a, b and "
		   "c have less than 14 days left.\n" },

	{ .about = "no backend",
	  .room = EMPTY, .mood = ADVICE_BAD,
	  .lines = "There is no backend: add one by \"weirctl add backend "
		   "NAME address=ADDR:25\".\n" },
	{ .about = "all are down",
	  .backends = { OTHER("a", "down", ADVICE_FAILING),
			OTHER("b", "ejected", ADVICE_FAILING),
			OTHER("c", "busy", ADVICE_RESTING) },
	  .room = EMPTY, .mood = ADVICE_BAD,
	  .lines = "No backend takes mail now, clients are told to come again "
		   "(4xx): repair a (down) and b (ejected).\n" },
	{ .about = "all rest",
	  .backends = { OTHER("a", "busy", ADVICE_RESTING) },
	  .room = EMPTY, .mood = ADVICE_BAD,
	  .lines = "No backend takes mail now, clients are told to come again "
		   "(4xx): a (busy) will be tried again in a moment.\n" },
	{ .about = "all are set aside",
	  .backends = { OTHER("a", "drain", ADVICE_ASIDE),
			OTHER("b", "maint", ADVICE_ASIDE) },
	  .room = EMPTY, .mood = ADVICE_BAD,
	  .lines = "No backend takes mail: a (drain) and b (maint) are set so "
		   "by an operator; \"weirctl set backend NAME ready\" ends "
		   "that.\n" },
};
/* clang-format on */

static struct advice advice;

static unsigned backends_of(const struct case_of_advice *c)
{
	unsigned n = 0;

	while (n < BACKENDS_MAX && c->backends[n].name != NULL)
		n++;
	return n;
}

static unsigned certs_of(const struct case_of_advice *c)
{
	unsigned n = 0;

	while (n < CERTS_MAX && c->certs[n].listener != NULL)
		n++;
	return n;
}

static void the_verdict_fits_the_figures(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		const struct case_of_advice *c = &cases[i];
		const struct advice_farm farm = {
			.backends = c->backends,
			.count = backends_of(c),
			.room = c->room,
			.observe = c->observe,
			.guarded = c->guarded,
			.certs = c->certs,
			.cert_count = certs_of(c),
		};
		static char all[ADVICE_LINES_MAX * ADVICE_TEXT_MAX];
		size_t len = 0;

		print_message("  %s\n", c->about);
		advice_give(&farm, &advice);
		assert_in_range(advice.count, 1, ADVICE_LINES_MAX);
		for (unsigned j = 0; j < advice.count; j++)
			len += (size_t)snprintf(all + len, sizeof(all) - len,
						"%s\n", advice.lines[j].text);
		assert_string_equal(all, c->lines);
		assert_int_equal(advice.lines[0].mood, c->mood);
	}
}

static void a_long_story_is_cut_and_never_overflows(void **state)
{
	(void)state;
	enum { MANY = 40 };
	static struct advice_backend many[MANY];
	static char name[ADVICE_TEXT_MAX];
	struct advice_farm farm = { .backends = many, .count = MANY };

	memset(name, 'x', sizeof(name) - 1);
	for (unsigned i = 0; i < MANY; i++) {
		many[i] = (struct advice_backend)SERVES(name, 5, 5, 5);
		many[i].alarmed = true;
	}
	farm.room = (struct advice_room)WAITING(UINT32_MAX, INT64_MAX);
	advice_give(&farm, &advice);
	assert_int_equal(advice.count, ADVICE_LINES_MAX);
	for (unsigned i = 0; i < advice.count; i++)
		assert_in_range(strnlen(advice.lines[i].text, ADVICE_TEXT_MAX),
				1, ADVICE_TEXT_MAX - 1);
}

static void times_are_short(void **state)
{
	(void)state;
	static const struct {
		int64_t ms;
		const char *text;
	} times[] = {
		{ -1, "0 ms" },         { 0, "0 ms" },       { 999, "999 ms" },
		{ 1000, "1.0 s" },      { 59999, "59.9 s" }, { 60000, "1 min" },
		{ 7199999, "119 min" }, { 7200000, "2 h" },
	};

	for (size_t i = 0; i < COUNT(times); i++) {
		char text[ADVICE_TIME_MAX];

		assert_int_equal(advice_time(times[i].ms, text),
				 strlen(times[i].text));
		assert_string_equal(text, times[i].text);
	}
}

static void bars_have_one_scale(void **state)
{
	(void)state;
	static const struct {
		const char *about;
		struct advice_backend backend;
		const char *bar;
	} bars[] = {
		{ "full", SERVES("a", 20, 20, 0), "##########" },
		{ "half", SERVES("a", 10, 20, 0), "#####....." },
		{ "small, and full", SERVES("a", 10, 10, 0), "#####     " },
		{ "one in use is seen", SERVES("a", 1, 20, 0), "#........." },
		{ "not quite full is seen", SERVES("a", 999, 1000, 0),
		  "#########." },
		{ "empty", SERVES("a", 0, 4, 0), "..        " },
		{ "where max_sessions ends it", SERVES("a", 4, 10, 16),
		  "##...  |  " },
		{ "at max_sessions", SERVES("a", 4, 10, 10), "##...     " },
		{ "more than the limit, which fell", SERVES("a", 18, 6, 0),
		  "######### " },
		{ "a limit beyond the scale", SERVES("a", 90, 90, 0),
		  "##########" },
	};

	for (size_t i = 0; i < COUNT(bars); i++) {
		char text[11];

		print_message("  %s\n", bars[i].about);
		advice_bar(&bars[i].backend, 20, 10, text);
		assert_string_equal(text, bars[i].bar);
	}
}

static void the_scale_is_the_largest_limit_or_a_near_ceiling(void **state)
{
	(void)state;
	struct advice_backend b[] = { SERVES("a", 3, 20, 0),
				      SERVES("b", 30, 10, 0) };
	const struct advice_farm farm = { .backends = b, .count = 2 };
	const struct advice_farm none = { .backends = b, .count = 0 };

	assert_int_equal(advice_scale(&none), 1);
	assert_int_equal(advice_scale(&farm), 30);
	b[0].ceiling = 60;
	assert_int_equal(advice_scale(&farm), 60);
	b[0].ceiling = 65535;
	assert_int_equal(advice_scale(&farm), 30);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_verdict_fits_the_figures),
		cmocka_unit_test(a_long_story_is_cut_and_never_overflows),
		cmocka_unit_test(times_are_short),
		cmocka_unit_test(bars_have_one_scale),
		cmocka_unit_test(
			the_scale_is_the_largest_limit_or_a_near_ceiling),
	};

	return cmocka_run_group_tests_name("advice", tests, NULL, NULL);
}
