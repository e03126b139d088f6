#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session.h"

/*
 * mode = tcp: the search for a backend, and what is said when it fails.  Each
 * case is a row of events; what the plans say is written down as words.
 */

enum { EVENTS_MAX = 8, WORDS_MAX = 512 };

static struct config config; /* too large for the stack */
static struct config_listener *const listener = &config.listeners[0];
static struct stats stats;
static struct session_env env;
static struct session session;
static struct session_plan plan;
static char line[SESSION_LINE_MAX], mail[SESSION_MAIL_MAX];
static char words[WORDS_MAX];

static int set_up(void **state)
{
	(void)state;
	memset(&config, 0, sizeof(config));
	memset(&stats, 0, sizeof(stats));
	(void)snprintf(config.weir.hostname, sizeof(config.weir.hostname),
		       "weir.test");
	listener->mode = CONFIG_MODE_TCP;
	listener->early_talkers = CONFIG_EARLY_REJECT;
	listener->greeting_delay_ms = 5000;
	config.listener_count = 1;
	config.farm.tries = 3;
	config.farm.budget_ms = 20000;
	config.room.size = 10;
	config.room.wait_ms = 30000;
	config.timeouts.session_ms = 3600000;
	env = (struct session_env){
		.config = &config,
		.stats = &stats,
		.now_ms = 1000,
	};
	session_init(&session, listener, line, mail, env.now_ms);
	words[0] = '\0';
	return 0;
}

static void put(const char *text, size_t len)
{
	size_t had = strlen(words);

	assert_true(had + len + 3 <= sizeof(words));
	if (had > 0) {
		memcpy(words + had, "; ", 2);
		had += 2;
	}
	memcpy(words + had, text, len);
	words[had + len] = '\0';
}

static void put_plan(void)
{
	for (unsigned i = 0; i < plan.count; i++) {
		const struct session_act *act = &plan.acts[i];
		char text[64];

		switch (act->what) {
		case SESSION_DO_SAY:
			put(act->text, act->len - 2);
			break;
		case SESSION_DO_BIND:
			put("bind", 4);
			break;
		case SESSION_DO_QUIT:
			put("quit", 4);
			break;
		case SESSION_DO_RESET:
			put("reset", 5);
			break;
		case SESSION_DO_CLOSE:
		case SESSION_DO_ABORT:
			(void)snprintf(text, sizeof(text), "%s %s",
				       act->what == SESSION_DO_CLOSE ? "close"
								     : "abort",
				       stats_close_name(act->reason));
			put(text, strlen(text));
			break;
		case SESSION_DO_RELAY:
		case SESSION_DO_COMMAND:
		case SESSION_DO_STARTTLS:
		case SESSION_DO_BODY:
		case SESSION_DO_KEEP:
		case SESSION_DO_HOLD:
		case SESSION_DO_MARK:
		case SESSION_DO_PARK:
		case SESSION_DO_REPLAY:
		case SESSION_DO_TRACE:
		case SESSION_DO_SEND:
		case SESSION_DO_LOG:
			fail_msg("act %d has no place here", (int)act->what);
		}
	}
}

static void tell(const struct session_event *ev)
{
	session_step(&session, &env, ev, &plan);
	put_plan();
}

static const struct session_event admitted = { .kind = SESSION_IN_ADMITTED };
static const struct session_event bound = { .kind = SESSION_IN_BOUND };
static const struct session_event busy = {
	.kind = SESSION_IN_UNBOUND,
	.stage = BUSY_STAGE_GREET,
	.class = BUSY_BUSY,
	.more = true,
};
static const struct session_event sick = {
	.kind = SESSION_IN_UNBOUND,
	.stage = BUSY_STAGE_TCP,
	.class = BUSY_SICK,
	.more = true,
};
static const struct session_event none = {
	.kind = SESSION_IN_UNBOUND,
	.stage = BUSY_STAGE_TCP,
	.class = BUSY_BUSY,
};
static const struct session_event verdict = {
	.kind = SESSION_IN_UNBOUND,
	.stage = BUSY_STAGE_GREET,
	.class = BUSY_POLICY,
	.code = 554,
	.data = "5.7.1 Your kind is not served here",
	.len = 34,
};
static const struct session_event gone = { .kind = SESSION_IN_GONE };
static const struct session_event eof = { .kind = SESSION_IN_EOF };
static const struct session_event timeout = { .kind = SESSION_IN_TIMEOUT };
static const struct session_event drain = { .kind = SESSION_IN_DRAIN };
static const struct session_event lost = { .kind = SESSION_IN_LOST };
static const struct session_event octets = {
	.kind = SESSION_IN_OCTETS,
	.data = "EHLO x\r\n",
	.len = 8,
};

#define ALL_BUSY                                                               \
	"421 4.3.2 All mail servers are busy, please try again later; "        \
	"quit; close unavailable"

struct dialogue {
	const char *about;
	const struct session_event *events[EVENTS_MAX];
	const char *words;
	enum session_state state;
};

/* clang-format off */
static const struct dialogue dialogues[] = {
	{ "a backend is sought at once, without a greeting of our own",
	  { &admitted, &bound }, "bind", SESSION_RELAY },
	{ "who speaks early is let be",
	  { &octets, &admitted, &octets, &bound }, "bind", SESSION_RELAY },
	{ "busy ones are replaced, more often than [farm] tries",
	  { &admitted, &busy, &busy, &busy, &busy, &bound },
	  "bind; bind; bind; bind; bind", SESSION_RELAY },
	{ "failing ones are replaced as often as [farm] tries",
	  { &admitted, &sick, &sick, &sick },
	  "bind; bind; bind; " ALL_BUSY, SESSION_CLOSED },
	{ "there is none", { &admitted, &none }, "bind; " ALL_BUSY,
	  SESSION_CLOSED },
	{ "a verdict on the client is passed on",
	  { &admitted, &verdict },
	  "bind; 554 5.7.1 Your kind is not served here; "
	  "quit; close backend_closed", SESSION_CLOSED },
	{ "the client goes while one is sought", { &admitted, &gone },
	  "bind; quit; abort client_reset", SESSION_CLOSED },
	{ "the client ends its side", { &admitted, &eof },
	  "bind; quit; close client_closed", SESSION_CLOSED },
	{ "a drain while one is sought", { &admitted, &drain },
	  "bind; 421 4.3.2 Service shutting down; quit; close drain",
	  SESSION_CLOSED },
	{ "a drain before", { &drain },
	  "421 4.3.2 Service shutting down; close drain", SESSION_CLOSED },
	{ "in a relay the session says nothing",
	  { &admitted, &bound, &octets, &eof, &gone, &lost, &drain, &timeout },
	  "bind", SESSION_RELAY },
};
/* clang-format on */

static void dialogues_go_as_they_should(void **state)
{
	for (size_t i = 0; i < sizeof(dialogues) / sizeof(dialogues[0]); i++) {
		const struct dialogue *d = &dialogues[i];

		print_message("  %s\n", d->about);
		assert_int_equal(set_up(state), 0);
		for (unsigned n = 0; n < EVENTS_MAX; n++) {
			if (d->events[n] != NULL)
				tell(d->events[n]);
		}
		assert_string_equal(words, d->words);
		assert_int_equal(session.state, d->state);
	}
}

static void the_search_ends_with_its_time(void **state)
{
	(void)state;
	tell(&admitted);
	assert_int_equal(session.deadline_ms, 1000 + 20000 + 30000);
	assert_true(session_is_binding(&session));
	env.now_ms = session.deadline_ms;
	tell(&timeout);
	assert_string_equal(words, "bind; quit; " ALL_BUSY);
}

static void a_relay_has_the_time_that_it_is_given(void **state)
{
	(void)state;
	tell(&admitted);
	tell(&bound);
	assert_int_equal(session.deadline_ms, INT64_MAX);
	session_relay_moved(&session, &env, 300000);
	assert_int_equal(session.deadline_ms, 301000);
	/* But the whole session has a time as well. */
	env.now_ms = 3500000;
	session_relay_moved(&session, &env, 300000);
	assert_int_equal(session.deadline_ms, 1000 + 3600000);
}

static void a_relay_ends_with_a_word_or_without(void **state)
{
	(void)state;
	tell(&admitted);
	tell(&bound);
	session_relay_count(&session, 3, 2);
	session_relay_over(&session, &plan, STATS_CLOSE_DRAIN,
			   "421 4.3.2 Bye\r\n");
	put_plan();
	assert_string_equal(words, "bind; 421 4.3.2 Bye; quit; close drain");
	assert_int_equal(session.state, SESSION_CLOSED);
	assert_int_equal(session.messages, 2);
	assert_int_equal(session.transactions, 3);

	assert_int_equal(set_up(state), 0);
	tell(&admitted);
	tell(&bound);
	session_relay_over(&session, &plan, STATS_CLOSE_QUIT, NULL);
	put_plan();
	assert_string_equal(words, "bind; quit; close quit");
}

/* What is half said must not be taken for the whole. */
static void a_relay_that_is_killed_is_reset(void **state)
{
	(void)state;
	tell(&admitted);
	tell(&bound);
	session_kill(&session, &plan, STATS_CLOSE_KILLED);
	put_plan();
	assert_string_equal(words, "bind; reset; abort killed");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(dialogues_go_as_they_should, set_up),
		cmocka_unit_test_setup(the_search_ends_with_its_time, set_up),
		cmocka_unit_test_setup(a_relay_has_the_time_that_it_is_given,
				       set_up),
		cmocka_unit_test_setup(a_relay_ends_with_a_word_or_without,
				       set_up),
		cmocka_unit_test_setup(a_relay_that_is_killed_is_reset, set_up),
	};

	return cmocka_run_group_tests_name("session_tcp", tests, NULL, NULL);
}
