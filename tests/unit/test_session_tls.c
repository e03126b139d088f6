#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <string.h>

#include "tests/unit/session_model.h"

/*
 * STARTTLS and what comes before it, as the session sees them.  T1 to T8 are
 * the ways to slip octets past the handshake.
 */

#define OFFERED  HOW(.tls = CONFIG_TLS_STARTTLS)
#define REQUIRED HOW(.tls = CONFIG_TLS_REQUIRED, .auth = CONFIG_AUTH_TLS)
#define IMPLICIT HOW(.tls = CONFIG_TLS_IMPLICIT)
#define BEGUN    "say 220 2.0.0; starttls"

static const struct talk begun[] = {
	TALK("tls = none knows no such command", HELLO, C("STARTTLS\r\n"),
	     X("say 502 5.5.1"), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_WITH("220, then the handshake, then commands", OFFERED, HELLO,
		  C("STARTTLS\r\n"), X(BEGUN), SECURED, X(""), C("EHLO c\r\n"),
		  X("say 250"), C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK_WITH("no EHLO is needed for it", OFFERED, ADMIT, X("say 220"),
		  C("starttls\r\n"), X(BEGUN)),
	TALK_WITH("T4: a second time", OFFERED, TO_TLS, C("STARTTLS\r\n"),
		  X("say 503 5.5.1"), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_WITH("T5: with a parameter", OFFERED, HELLO, C("STARTTLS now\r\n"),
		  X("say 501 5.5.4"), C("STARTTLS\r\n"), X(BEGUN)),
	TALK_WITH("T6: in a transaction", OFFERED, TO_RCPT, C("STARTTLS\r\n"),
		  X("say 503 5.5.1"), C("DATA\r\n"), X("DATA")),
	TALK_WITH("T6: in one whose backend is lost", OFFERED, TO_RCPT, LOST,
		  C("STARTTLS\r\n"), X("say 503 5.5.1")),
	TALK_WITH("after the transaction", OFFERED, TO_RCPT, C("RSET\r\n"),
		  STOP, C("STARTTLS\r\n"), X(BEGUN)),
	TALK_WITH("it waits for the replies before it", OFFERED, TO_MAIL,
		  C("RCPT TO:<c@d>\r\nSTARTTLS\r\n"), X("RCPT TO:<c@d>"),
		  R(RCPT, OK, 250), X("relay 250; say 503 5.5.1")),
	TALK_WITH("behind a MAIL that was refused", OFFERED, HELLO,
		  C("MAIL FROM:<a@b>\r\nSTARTTLS\r\nRSET\r\n"), BOUND, STOP,
		  R(MAIL, POLICY, 550),
		  X("relay 550; keep; log MAIL policy 550; " BEGUN), SECURED,
		  X("")),
	TALK_WITH("after a login it would change who is who",
		  HOW(.tls = CONFIG_TLS_STARTTLS, .auth = CONFIG_AUTH_ALWAYS),
		  TO_LOGIN, C("STARTTLS\r\n"), X("say 503 5.5.1"),
		  C("QUIT\r\n"), X("say 221 2.0.0; quit; close quit")),
	TALK_WITH("implicit TLS is TLS already", IMPLICIT, SECURED, X(""),
		  ADMIT, X("say 220"), C("STARTTLS\r\n"), X("say 503 5.5.1")),
};

static void starttls_is_answered_once_and_in_its_place(void **state)
{
	(void)state;
	RUN(begun);
}

static const struct talk injected[] = {
	TALK_WITH("T1: a command in the same segment", OFFERED, HELLO,
		  C("STARTTLS\r\nRSET\r\n"), X(BEGUN), SECURED, X(""),
		  C("QUIT\r\n"), X("say 221 2.0.0; close quit")),
	TALK_WITH("T1: and half of one, that TLS would complete", OFFERED,
		  HELLO, C("STARTTLS\r\nEHLO e"), X(BEGUN), SECURED, X(""),
		  C("vil\r\n"), X("say 500 5.5.1")),
	TALK_WITH("T1: a whole message", OFFERED, HELLO,
		  C("STARTTLS\r\n" ENVELOPE "x\r\n.\r\n"), X(BEGUN), SECURED,
		  X(""), C("MAIL FROM:<x@y>\r\n"), X("say 503 5.5.1")),
	TALK_WITH("T1: a line that is too long, to its end", OFFERED, HELLO,
		  C("STARTTLS\r\n" A500 A500), X(BEGUN), SECURED, X(""),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_WITH("T2: octets between 220 and ClientHello", OFFERED, HELLO,
		  C("STARTTLS\r\n"), C("RSET\r\n"), C("NOOP\r\n"), X(BEGUN),
		  SECURED, X("")),
	TALK_WITH("T7: EHLO is forgotten", OFFERED, HELLO, C("STARTTLS\r\n"),
		  STOP, SECURED, C("MAIL FROM:<a@b>\r\n"), X("say 503 5.5.1")),
	TALK_WITH("T7: and what it offered",
		  HOW(.tls = CONFIG_TLS_STARTTLS, .auth = CONFIG_AUTH_ALWAYS),
		  HELLO, C("STARTTLS\r\n"), STOP, SECURED,
		  C("AUTH PLAIN " SECRET "\r\n"), X("say 503 5.5.1"),
		  C("HELO c\r\nMAIL FROM:<a@b> SIZE=1\r\n"),
		  X("say 250; say 555 5.5.4")),
	TALK_WITH("T8: EHLO, STARTTLS and ClientHello at once", OFFERED, ADMIT,
		  STOP, C("EHLO c\r\nSTARTTLS\r\n\026\003\001\002"),
		  X("say 250; " BEGUN), SECURED, X(""), C("EHLO c\r\n"),
		  X("say 250")),
	TALK("and ClientHello without STARTTLS is foreign", HELLO,
	     C("\026\003\001"), X("say 500 5.5.2; close foreign")),
};

static void nothing_said_in_the_clear_is_obeyed_behind_it(void **state)
{
	(void)state;
	RUN(injected);
}

static const struct talk kept_on[] = {
	TALK_WITH("mistakes", HOW(.tls = CONFIG_TLS_STARTTLS, .max_errors = 2),
		  HELLO, C("X\r\nX\r\nSTARTTLS\r\n"), STOP, SECURED, C("X\r\n"),
		  X("say 421 4.7.0; close errors")),
	TALK_WITH("messages",
		  HOW(.tls = CONFIG_TLS_STARTTLS, .max_messages = 1), TO_DATA,
		  C(".\r\n"), R(EOD, OK, 250), C("STARTTLS\r\n"), STOP, SECURED,
		  C("EHLO c\r\nMAIL FROM:<a@b>\r\n"),
		  X("say 250; say 421 4.7.0; close messages")),
};

static void mistakes_and_messages_are_not_forgotten(void **state)
{
	(void)state;
	RUN(kept_on);
}

static const struct talk handshakes[] = {
	TALK_WITH("time", OFFERED, HELLO, C("STARTTLS\r\n"), STOP, AFTER(29999),
		  X(""), AFTER(1), X("abort tls")),
	TALK_WITH("the session's time is shorter",
		  HOW(.tls = CONFIG_TLS_STARTTLS, .session_ms = 1000), HELLO,
		  C("STARTTLS\r\n"), STOP, AFTER(1000),
		  X("abort session_time")),
	TALK_WITH("the command's time begins behind it", OFFERED, HELLO,
		  C("STARTTLS\r\n"), STOP, AFTER(29999), SECURED, AFTER(299999),
		  X(""), AFTER(1), X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("it fails", OFFERED, HELLO, C("STARTTLS\r\n"), STOP, INSECURE,
		  X("abort tls")),
	TALK_WITH("the client ends", OFFERED, HELLO, C("STARTTLS\r\n"), STOP,
		  OVER, X("close client_closed")),
	TALK_WITH("the client breaks", OFFERED, HELLO, C("STARTTLS\r\n"), STOP,
		  GONE, X("abort client_reset")),
	TALK_WITH("weir shuts down: it is said under TLS", OFFERED, HELLO,
		  C("STARTTLS\r\n"), STOP, { .kind = DRAINING }, DO(DRAIN),
		  X(""), SECURED, X("say 421 4.3.2; close drain")),
};

static void a_handshake_has_its_time_and_its_ends(void **state)
{
	(void)state;
	RUN(handshakes);
}

static const struct talk broken[] = {
	TALK_WITH("between commands", OFFERED, TO_TLS, INSECURE,
		  X("abort tls")),
	TALK_WITH("in an envelope", OFFERED, TO_RCPT, INSECURE,
		  X("quit; log IDLE ok 0; abort tls")),
	TALK_WITH("in a body", OFFERED, TO_DATA, C("x\r\n"), INSECURE,
		  X("reset; log EOD ok 0; abort tls")),
	TALK_WITH("at the end, which is the backend's", OFFERED, TO_DATA,
		  C(".\r\n"), X("end"), INSECURE, X(""), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250; close tls")),
};

static void a_stream_that_breaks_is_a_client_that_is_gone(void **state)
{
	(void)state;
	RUN(broken);
}

static const struct talk required[] = {
	TALK_WITH("MAIL", REQUIRED, HELLO, C("MAIL FROM:<a@b>\r\n"),
		  X("say 530 5.7.0")),
	TALK_WITH("an envelope", REQUIRED, HELLO,
		  C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"),
		  X("say 530 5.7.0; say 530 5.7.0; say 530 5.7.0")),
	TALK_WITH("a chunk, octets and all", REQUIRED, HELLO,
		  C("BDAT 6 LAST\r\nRSET\r\nNOOP\r\n"),
		  X("say 530 5.7.0; say 250 2.0.0")),
	TALK_WITH("AUTH", REQUIRED, HELLO, C("AUTH PLAIN " SECRET "\r\n"),
		  X("say 530 5.7.0")),
	TALK_WITH("VRFY", REQUIRED, HELLO, C("VRFY a\r\n"), X("say 530 5.7.0")),
	TALK_WITH("not these", REQUIRED, HELLO,
		  C("NOOP\r\nRSET\r\nHELP\r\nHELO c\r\nQUIT\r\n"),
		  X("say 250 2.0.0; say 250 2.0.0; say 214 2.0.0; "
		    "say 250; say 221 2.0.0; close quit")),
	TALK_WITH("it counts as a mistake",
		  HOW(.tls = CONFIG_TLS_REQUIRED, .max_errors = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n"),
		  X("say 530 5.7.0; say 421 4.7.0; close errors")),
	TALK_WITH("then all is as ever", REQUIRED, TO_TLS,
		  C("VRFY a\r\nMAIL FROM:<a@b>\r\n"), X("say 252 2.5.0; bind")),
	{ .name = "a body that did not wait is not run as commands",
	  .moves = (const struct move[]){ HELLO,
					  C("DATA\r\nRSET\r\n"),
					  X("say 530 5.7.0; "
					    "say 554 5.5.0; "
					    "close sync"),
					  { .kind = END } },
	  .knobs = REQUIRED,
	  .whole_only = true },
};

static void required_means_before_all_that_matters(void **state)
{
	(void)state;
	RUN(required);
}

static const struct talk deaf[] = {
	TALK_WITH("refused", IMPLICIT,
		  DO_WITH(REFUSED, .reason = STATS_CLOSE_FULL,
			  .data = "421 4.3.2 no\r\n", .len = 14),
		  X("close full")),
	TALK_WITH("refused behind it", IMPLICIT, SECURED,
		  DO_WITH(REFUSED, .reason = STATS_CLOSE_FULL,
			  .data = "421 4.3.2 no\r\n", .len = 14),
		  X("say 421 4.3.2; close full")),
	TALK_WITH("weir shuts down", IMPLICIT, DO(DRAIN), X("close drain")),
	TALK_WITH("weir shuts down behind it", IMPLICIT, SECURED, DO(DRAIN),
		  X("say 421 4.3.2; close drain")),
	TALK_WITH("the handshake fails", IMPLICIT, INSECURE, X("abort tls")),
	TALK_WITH("early talk is talk under TLS",
		  HOW(.tls = CONFIG_TLS_IMPLICIT, .delay_ms = 1000), SECURED,
		  ADMIT, X(""), C("EHLO c\r\n"),
		  X("say 554 5.5.0; close early_talker")),
};

static void before_implicit_tls_nothing_is_said(void **state)
{
	(void)state;
	RUN(deaf);
}

/* ---- what EHLO says ---- */

static bool said(const char *words)
{
	const struct session_act *act = &w->plan.acts[0];

	assert_int_equal(w->plan.count, 1);
	assert_int_equal(act->what, SESSION_DO_SAY);
	return memmem(act->text, act->len, words, strlen(words)) != NULL;
}

static void ehlo_offers_what_can_be_had(void **state)
{
	static const struct {
		const char *why;
		enum config_tls tls;
		enum config_auth auth;
		unsigned mechanisms;
		bool secured, starttls, mail, login;
	} cases[] = {
		{ "nothing", CONFIG_TLS_NONE, CONFIG_AUTH_NONE, 0, false, false,
		  true, false },
		{ "TLS", CONFIG_TLS_STARTTLS, CONFIG_AUTH_NONE, 0, false, true,
		  true, false },
		{ "no TLS in TLS", CONFIG_TLS_STARTTLS, CONFIG_AUTH_NONE, 0,
		  true, false, true, false },
		{ "no TLS in implicit TLS", CONFIG_TLS_IMPLICIT,
		  CONFIG_AUTH_NONE, 0, true, false, true, false },
		{ "logins always", CONFIG_TLS_STARTTLS, CONFIG_AUTH_ALWAYS, 0,
		  false, true, true, true },
		{ "logins only under TLS, and it is not", CONFIG_TLS_STARTTLS,
		  CONFIG_AUTH_TLS, 0, false, true, true, false },
		{ "logins only under TLS, and it is", CONFIG_TLS_STARTTLS,
		  CONFIG_AUTH_TLS, 0, true, false, true, true },
		{ "logins under implicit TLS", CONFIG_TLS_IMPLICIT,
		  CONFIG_AUTH_TLS, 0, true, false, true, true },
		{ "required: logins are refused as well", CONFIG_TLS_REQUIRED,
		  CONFIG_AUTH_ALWAYS, 0, false, true, true, false },
		{ "required, and there", CONFIG_TLS_REQUIRED,
		  CONFIG_AUTH_ALWAYS, 0, true, false, true, true },
		{ "what the farm knows", CONFIG_TLS_NONE, CONFIG_AUTH_ALWAYS,
		  SMTP_AUTH_SCRAM_SHA_256, false, false, true, false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct talk t = {
			.name = cases[i].why,
			.knobs = { .tls = cases[i].tls,
				   .auth = cases[i].auth,
				   .offer_auth = cases[i].mechanisms },
		};

		model_open(&t);
		if (cases[i].secured)
			model_tell(&(struct session_event){
				.kind = SESSION_IN_SECURED });
		model_tell(
			&(struct session_event){ .kind = SESSION_IN_ADMITTED });
		model_feed("EHLO c\r\n", 8);
		assert_int_equal(said("STARTTLS"), cases[i].starttls);
		assert_int_equal(said("AUTH PLAIN LOGIN"), cases[i].login);
		assert_int_equal(said("SCRAM-SHA-256"),
				 cases[i].login || cases[i].mechanisms != 0);
		assert_false(said("-PLUS"));
		assert_int_equal(said("PIPELINING"), cases[i].mail);
		model_feed("HELO c\r\n", 8);
		assert_false(said("STARTTLS"));
		model_close();
	}
}

/* ---- all of it ---- */

static const struct talk places[] = {
	{ .name = "greeting",
	  .moves = (const struct move[]){ { .kind = END } },
	  .knobs = IMPLICIT },
	TALK_WITH("clear", REQUIRED, HELLO),
	TALK_WITH("handshake", REQUIRED, HELLO, C("STARTTLS\r\n")),
	TALK_WITH("secured", REQUIRED, HELLO, C("STARTTLS\r\n"), SECURED),
	TALK_WITH("command", REQUIRED, TO_TLS),
	TALK_WITH("chunk swallowed", REQUIRED, HELLO, C("BDAT 9\r\nx")),
};

static void every_event_is_defined_in_a_handshake(void **state)
{
	unsigned seen = model_every_event(places,
					  sizeof(places) / sizeof(places[0]));

	(void)state;
	assert_true(seen & 1u << SESSION_HANDSHAKE);
}

static void a_random_walk_with_tls_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .max_errors = 1000,
		  .tls = CONFIG_TLS_REQUIRED,
		  .auth = CONFIG_AUTH_TLS },
		{ .max_errors = 1000, .tls = CONFIG_TLS_STARTTLS },
	};
	struct walked all = model_walk(ways, 2, 2000);

	(void)state;
	assert_true(all.counts[STATS_starttls] > 500);
	assert_true(all.counts[STATS_messages] > 100);
	assert_true(all.longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(starttls_is_answered_once_and_in_its_place),
		cmocka_unit_test(nothing_said_in_the_clear_is_obeyed_behind_it),
		cmocka_unit_test(mistakes_and_messages_are_not_forgotten),
		cmocka_unit_test(a_handshake_has_its_time_and_its_ends),
		cmocka_unit_test(a_stream_that_breaks_is_a_client_that_is_gone),
		cmocka_unit_test(required_means_before_all_that_matters),
		cmocka_unit_test(before_implicit_tls_nothing_is_said),
		cmocka_unit_test(ehlo_offers_what_can_be_had),
		cmocka_unit_test(every_event_is_defined_in_a_handshake),
		cmocka_unit_test(a_random_walk_with_tls_breaks_no_rule),
	};
	int failed;

	if (!model_begin())
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	model_end();
	return failed;
}
