#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/session_model.h"

/*
 * AUTH: dialogues that are relayed and never read, and the one backend that
 * the session is tied to afterwards.  The model sees to it that no credential
 * (SECRET) is in anything but a command that is marked as secret.
 */

#define ALWAYS   HOW(.auth = CONFIG_AUTH_ALWAYS)
#define PLAIN    C("AUTH PLAIN " SECRET "\r\n")
#define LINE     C(SECRET "\r\n")
#define YES      R(AUTH, OK, 235)
#define NO       R(AUTH, POLICY, 535)
#define TO_ASKED HELLO, C("AUTH LOGIN\r\n"), BOUND, CHALLENGE, STOP
#define AGAIN                                                                  \
	C("MAIL FROM:<a@b>\r\n"), X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),      \
		X("relay 250")
#define LOGIN(title, ...) TALK_WITH(title, ALWAYS, __VA_ARGS__)

/* ---- dialogues ---- */

static const struct talk dialogues[] = {
	LOGIN("PLAIN with its initial response", HELLO, PLAIN, X("bind"), BOUND,
	      X("AUTH PLAIN " SECRET), YES, X("relay 235"),
	      C("MAIL FROM:<a@b>\r\n"), X("MAIL FROM:<a@b>")),
	LOGIN("PLAIN without", HELLO, C("AUTH PLAIN\r\n"), BOUND,
	      X("bind; AUTH PLAIN"), CHALLENGE, X("relay 334"), LINE, X(SECRET),
	      YES, X("relay 235")),
	LOGIN("LOGIN, name and password", HELLO, C("AUTH LOGIN\r\n"), BOUND,
	      X("bind; AUTH LOGIN"), CHALLENGE, X("relay 334"),
	      C("bmFtZQ==\r\n"), X("bmFtZQ=="), CHALLENGE, X("relay 334"), LINE,
	      X(SECRET), YES, X("relay 235")),
	LOGIN("LOGIN with the name at once", HELLO,
	      C("AUTH LOGIN bmFtZQ==\r\n"), BOUND,
	      X("bind; AUTH LOGIN bmFtZQ=="), CHALLENGE, X("relay 334"), LINE,
	      X(SECRET), YES, X("relay 235")),
	LOGIN("XOAUTH2, refused with its reason", HELLO,
	      C("AUTH XOAUTH2 " SECRET "\r\n"), BOUND, STOP, CHALLENGE,
	      X("relay 334"), C("\r\n"), X(""), NO, X("relay 535; quit")),
	LOGIN("OAUTHBEARER, refused with its reason", HELLO,
	      C("AUTH OAUTHBEARER " SECRET "\r\n"), BOUND, STOP, CHALLENGE,
	      X("relay 334"), C("AQ==\r\n"), X("AQ=="), NO,
	      X("relay 535; quit")),
	LOGIN("CRAM-MD5", HELLO, C("AUTH CRAM-MD5\r\n"), BOUND,
	      X("bind; AUTH CRAM-MD5"), CHALLENGE, X("relay 334"), LINE,
	      X(SECRET), YES, X("relay 235")),
	LOGIN("SCRAM-SHA-1", HELLO, C("AUTH SCRAM-SHA-1 " SECRET "\r\n"), BOUND,
	      STOP, CHALLENGE, X("relay 334"), LINE, X(SECRET), CHALLENGE,
	      X("relay 334"), C("\r\n"), X(""), YES, X("relay 235")),
	LOGIN("SCRAM-SHA-256, its last word in 235's place", HELLO,
	      C("auth scram-sha-256 =\r\n"), BOUND,
	      X("bind; auth scram-sha-256 ="), CHALLENGE, X("relay 334"), LINE,
	      X(SECRET), YES, X("relay 235")),
	LOGIN("a reply of two lines", HELLO, PLAIN, BOUND, STOP,
	      R2(AUTH, OK, 235), X("relay 235")),
	LOGIN("cancelled: the backend hears it", TO_ASKED, C("*\r\n"), X("*"),
	      R(AUTH, POLICY, 501), X("relay 501; quit"), C("AUTH LOGIN\r\n"),
	      X("bind")),
	LOGIN("refused, and mail goes on without it", HELLO, PLAIN, BOUND, STOP,
	      NO, X("relay 535; quit"), C("MAIL FROM:<a@b>\r\n"), X("bind"),
	      BOUND, X("MAIL FROM:<a@b>"), R(MAIL, OK, 250), X("relay 250"),
	      C("RSET\r\n"), X("quit; log IDLE ok 0; say 250 2.0.0")),
	LOGIN("later, says the backend", HELLO, PLAIN, BOUND, STOP,
	      R(AUTH, POLICY, 454), X("relay 454; quit"), PLAIN, X("bind")),
	LOGIN("what stands behind waits for its turn", HELLO,
	      C("AUTH LOGIN\r\n" SECRET "\r\n" SECRET "\r\nNOOP\r\n"), BOUND,
	      X("bind; AUTH LOGIN"), CHALLENGE, X("relay 334; " SECRET),
	      CHALLENGE, X("relay 334; " SECRET), YES,
	      X("relay 235; say 250 2.0.0")),
	LOGIN("what stands behind a login is commands", HELLO,
	      C("AUTH PLAIN " SECRET "\r\nNOOP\r\nQUIT\r\n"), BOUND,
	      X("bind; AUTH PLAIN " SECRET), YES,
	      X("relay 235; say 250 2.0.0; say 221 2.0.0; quit; close quit")),
	LOGIN("and behind one refused as well", HELLO,
	      C("AUTH PLAIN " SECRET "\r\nNOOP\r\n"), BOUND, STOP, NO,
	      X("relay 535; quit; say 250 2.0.0")),
};

static const struct talk asked = LOGIN("asked", HELLO, C("AUTH LOGIN\r\n"),
				       BOUND, CHALLENGE);

static const struct talk greeted = LOGIN("greeted", HELLO);

static const struct session_event bound = { .kind = SESSION_IN_BOUND,
					    .ext = ALL_EXT,
					    .auth = ALL_AUTH };

static void lines_may_be_as_long_as_rfc_4954_has_them(void **state)
{
	static const size_t cuts[] = { 0, 1, 4000, SMTP_AUTH_LINE_MAX - 2,
				       SMTP_AUTH_LINE_MAX - 1 };
	char *line = malloc(SMTP_AUTH_LINE_MAX);

	(void)state;
	assert_non_null(line);
	for (size_t i = 0; i < 2 * sizeof(cuts) / sizeof(cuts[0]); i++) {
		size_t cut = cuts[i / 2];
		bool first = i % 2 == 0;

		memset(line, 'a', SMTP_AUTH_LINE_MAX);
		if (first)
			memcpy(line, "AUTH PLAIN ", 11);
		memcpy(line + SMTP_AUTH_LINE_MAX - 2, "\r\n", 2);
		model_go_to(first ? &greeted : &asked);
		model_feed(line, cut);
		model_feed(line + cut, SMTP_AUTH_LINE_MAX - cut);
		if (first)
			model_tell(&bound);
		assert_int_equal(w->s.state, SESSION_AUTH);
		assert_int_equal(w->s.due, 1);
		/* "; " is behind each act. */
		assert_int_equal(w->acts_len,
				 SMTP_AUTH_LINE_MAX + (first ? 6 : 0));
		assert_memory_equal(w->acts + (first ? 6 : 0), line,
				    SMTP_AUTH_LINE_MAX - 2);
		model_close();
	}
	free(line);
}

static void dialogues_are_relayed_line_by_line(void **state)
{
	(void)state;
	RUN(dialogues);
}

/* ---- refused before any backend is asked ---- */

static const struct talk refusals[] = {
	TALK("auth = none knows no such command", HELLO, PLAIN,
	     X("say 502 5.5.1")),
	TALK_WITH("not in the clear, but TLS can be had",
		  HOW(.auth = CONFIG_AUTH_TLS, .tls = CONFIG_TLS_STARTTLS),
		  HELLO, PLAIN, X("say 538 5.7.11")),
	TALK_WITH("not in the clear, and there is no TLS",
		  HOW(.auth = CONFIG_AUTH_TLS), HELLO, PLAIN,
		  X("say 502 5.5.1")),
	TALK_WITH("under TLS",
		  HOW(.auth = CONFIG_AUTH_TLS, .tls = CONFIG_TLS_STARTTLS),
		  TO_TLS, PLAIN, X("bind")),
	TALK_WITH("under implicit TLS",
		  HOW(.auth = CONFIG_AUTH_TLS, .tls = CONFIG_TLS_IMPLICIT),
		  SECURED, HELLO, PLAIN, X("bind")),
	LOGIN("before EHLO", ADMIT, STOP, PLAIN, X("say 503 5.5.1")),
	LOGIN("after HELO", ADMIT, C("HELO c\r\n"), STOP, PLAIN,
	      X("say 503 5.5.1")),
	LOGIN("in a transaction", TO_RCPT, PLAIN, X("say 503 5.5.1"),
	      C("DATA\r\n"), X("DATA")),
	LOGIN("in a transaction that is lost", TO_RCPT, LOST, PLAIN,
	      X("say 503 5.5.1")),
	LOGIN("a second time", TO_LOGIN, PLAIN, X("say 503 5.5.1"), AGAIN),
	LOGIN("a mechanism that nobody knows", HELLO, C("AUTH MAGIC\r\n"),
	      X("say 504 5.5.4")),
	LOGIN("one that binds to a channel", HELLO,
	      C("AUTH SCRAM-SHA-256-PLUS\r\n"), X("say 504 5.5.4")),
	TALK_WITH(
		"one that the farm does not have",
		HOW(.auth = CONFIG_AUTH_ALWAYS, .offer_auth = SMTP_AUTH_PLAIN),
		HELLO, C("AUTH LOGIN\r\n"), X("say 504 5.5.4"), PLAIN,
		X("bind")),
	LOGIN("none named", HELLO, C("AUTH\r\n"), X("say 501 5.5.4")),
	LOGIN("no base64", HELLO, C("AUTH PLAIN <secret>\r\n"),
	      X("say 501 5.5.4")),
	LOGIN("three words", HELLO, C("AUTH PLAIN YQ== YQ==\r\n"),
	      X("say 501 5.5.4")),
	LOGIN("a line with a bare LF", HELLO, C("AUTH PLAIN\nYQ==\r\n"),
	      X("say 500 5.5.2; say 500 5.5.1")),
	LOGIN("a line that is too long", HELLO, C("AUTH PLAIN " A4000),
	      C(A4000), C(A4000), C(A500 "\r\nNOOP\r\n"),
	      X("say 500 5.5.2; say 250 2.0.0")),
	TALK_WITH("each is a mistake",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .max_errors = 1), HELLO,
		  C("AUTH MAGIC\r\nAUTH MAGIC\r\n"),
		  X("say 504 5.5.4; say 421 4.7.0; close errors")),
};

static void out_of_place_it_is_refused_by_weir_itself(void **state)
{
	(void)state;
	RUN(refusals);
}

/* ---- lines that are none ---- */

static const struct talk nonsense[] = {
	LOGIN("a bare LF", TO_ASKED, C("YQ\n"), X("reset; say 500 5.5.2"),
	      C("NOOP\r\n"), X("say 250 2.0.0")),
	LOGIN("a bare CR", TO_ASKED, C("YQ\rYQ\r\n"),
	      X("reset; say 500 5.5.2")),
	LOGIN("a NUL", TO_ASKED, C("YQ\0==\r\n"), X("reset; say 500 5.5.2")),
	LOGIN("too long", TO_ASKED, C(A4000), C(A4000), C(A4000),
	      C(A500 "\r\nNOOP\r\n"), X("reset; say 500 5.5.2; say 250 2.0.0")),
	LOGIN("no base64", TO_ASKED, C("RCPT TO:<a@b>\r\n"),
	      X("reset; say 501 5.5.2"), C("NOOP\r\n"), X("say 250 2.0.0")),
	LOGIN("eight bits", TO_ASKED, C("\377\r\n"), X("reset; say 501 5.5.2")),
	TALK_WITH("once too often",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .max_errors = 1), TO_ASKED,
		  C("?\r\n"), X("reset; say 501 5.5.2"), C("AUTH LOGIN\r\n"),
		  BOUND, CHALLENGE, STOP, C("?\r\n"),
		  X("reset; say 421 4.7.0; close errors")),
	TALK_WITH("and the tarpit holds it",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .tarpit_ms = 1000), TO_ASKED,
		  C("?\r\nNOOP\r\n"), X("reset; say 501 5.5.2"), AFTER(1000),
		  X("say 250 2.0.0")),
};

static void a_line_that_is_none_ends_the_dialogue(void **state)
{
	(void)state;
	RUN(nonsense);
}

/* ---- backends that come and go ---- */

static const struct talk backends[] = {
	LOGIN("none can be had", HELLO, PLAIN, STOP, GIVEN_UP(TCP, MAYBE),
	      X("say 454 4.7.0"), C("NOOP\r\n"), X("say 250 2.0.0")),
	LOGIN("the greeting's refusal is not passed", HELLO, PLAIN, STOP,
	      GREETED(POLICY, 554), X("say 454 4.7.0")),
	LOGIN("refused before, another is tried", HELLO, PLAIN, STOP,
	      UNBOUND(GREET, SICK), X("bind"), BOUND, X("AUTH PLAIN " SECRET),
	      YES, X("relay 235")),
	TALK_WITH("tries are counted",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .tries = 1), HELLO, PLAIN,
		  STOP, UNBOUND(GREET, SICK), X("say 454 4.7.0")),
	LOGIN("nobody answers in time", HELLO, PLAIN, STOP, AFTER(20000),
	      X("quit; say 454 4.7.0")),
	LOGIN("it lacks the mechanism", HELLO, PLAIN, STOP,
	      DO_WITH(BOUND, .ext = ALL_EXT, .auth = SMTP_AUTH_LOGIN,
		      .pipelining = true),
	      X("quit; bind"), BOUND, X("AUTH PLAIN " SECRET)),
	LOGIN("it lacks an extension that was offered", HELLO, PLAIN, STOP,
	      DO_WITH(BOUND, .ext = ALL_EXT & ~(unsigned)SMTP_EXT_DSN,
		      .auth = ALL_AUTH, .pipelining = true),
	      X("quit; bind")),
	LOGIN("busy at once: another one, unseen", HELLO, PLAIN, BOUND, STOP,
	      R(AUTH, BUSY, 421), X("quit; bind"), BOUND,
	      X("AUTH PLAIN " SECRET), YES, X("relay 235")),
	LOGIN("busy behind 334: the client hears it", TO_ASKED, LINE, STOP,
	      R(AUTH, BUSY, 421), X("relay 454; quit"), C("NOOP\r\n"),
	      X("say 250 2.0.0")),
	LOGIN("busy behind 334, in its own words", TO_ASKED, LINE, STOP,
	      R(AUTH, BUSY, 454), X("relay 454; quit")),
	LOGIN("421 about the client is obeyed", TO_ASKED, LINE, STOP,
	      R(AUTH, POLICY, 421), X("relay 421; quit; close backend_421")),
	LOGIN("lost at AUTH: another one, unseen", HELLO, PLAIN, BOUND, STOP,
	      LOST, X("bind"), BOUND, X("AUTH PLAIN " SECRET), YES,
	      X("relay 235")),
	LOGIN("a kept one that was at its end is no try", HELLO, PLAIN,
	      BOUND_AGAIN, STOP, LOST, X("bind"), BOUND_AGAIN, LOST,
	      BOUND_AGAIN, LOST, BOUND_AGAIN, LOST, STOP, BOUND,
	      X("AUTH PLAIN " SECRET)),
	LOGIN("a kept one that says so is no try", HELLO, PLAIN, BOUND_AGAIN,
	      STOP, R(AUTH, SESSION, 421), X("quit; bind")),
	LOGIN("lost while the client is at its line", TO_ASKED, LOST, X(""),
	      LINE, X("say 454 4.7.0"), C("NOOP\r\n"), X("say 250 2.0.0")),
	LOGIN("that line may be anything", TO_ASKED, LOST, C("?\n"),
	      X("say 500 5.5.2")),
	LOGIN("lost at its line's answer", TO_ASKED, LINE, STOP, LOST,
	      X("say 454 4.7.0"), PLAIN, X("bind")),
	LOGIN("lost at the second line", TO_ASKED, LINE, CHALLENGE, LINE, STOP,
	      LOST, X("say 454 4.7.0")),
	LOGIN("it speaks out of turn", TO_ASKED, EARLY(DRAIN, 421), X("reset"),
	      LINE, X("say 454 4.7.0")),
	LOGIN("a 2xx that is not 235 is none", HELLO, PLAIN, BOUND, STOP,
	      R(AUTH, OK, 250), X("reset; bind")),
	LOGIN("354 is no challenge", TO_ASKED, LINE, STOP, R(AUTH, OK, 354),
	      X("reset; say 454 4.7.0")),
	LOGIN("a reply to something else", HELLO, PLAIN, BOUND, STOP,
	      R(MAIL, OK, 235), X("reset; bind")),
};

static void a_backend_is_replaced_until_it_has_asked(void **state)
{
	(void)state;
	RUN(backends);
}

/* ---- the client's time and end ---- */

static const struct talk ends[] = {
	LOGIN("silence at its line", TO_ASKED, AFTER(300000),
	      X("say 421 4.4.2; reset; close client_timeout")),
	LOGIN("under stress, sooner", TO_ASKED, { .kind = STRESS, .ms = 1 },
	      AFTER(10000), X("say 421 4.4.2; reset; close client_timeout")),
	LOGIN("the backend's time is not the client's", HELLO, PLAIN, BOUND,
	      STOP, AFTER(1000000), X(""), YES, X("relay 235")),
	LOGIN("it ends while a backend is sought", HELLO, PLAIN, STOP, OVER,
	      X("quit; close client_closed")),
	LOGIN("it ends at its line", TO_ASKED, OVER,
	      X("reset; close client_closed")),
	LOGIN("it breaks at its line", TO_ASKED, GONE,
	      X("reset; abort client_reset")),
	LOGIN("it breaks while the backend thinks", HELLO, PLAIN, BOUND, STOP,
	      GONE, X("reset; abort client_reset")),
	LOGIN("its TLS breaks", TO_ASKED, INSECURE, X("reset; abort tls")),
	LOGIN("weir shuts down: the dialogue ends first", TO_ASKED,
	      { .kind = DRAINING }, DO(DRAIN), X(""), LINE, X(SECRET), YES,
	      X("relay 235; say 421 4.3.2; quit; close drain")),
	LOGIN("weir shuts down, and it failed", TO_ASKED, { .kind = DRAINING },
	      LINE, STOP, NO, X("relay 535; quit; say 421 4.3.2; close drain")),
};

static void a_dialogue_has_its_time_and_its_ends(void **state)
{
	(void)state;
	RUN(ends);
}

/* ---- failures are counted ---- */

static const struct talk failures[] = {
	TALK_WITH("above the rate nobody is asked",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .login_rate = 2), HELLO,
		  PLAIN, BOUND, NO, PLAIN, BOUND, NO, STOP, PLAIN,
		  X("say 454 4.7.0"), C("AUTH LOGIN\r\n"), X("say 454 4.7.0"),
		  C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK_WITH("logins that succeed cost nothing",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .login_rate = 1), HELLO,
		  PLAIN, BOUND, YES,
		  X("bind; AUTH PLAIN " SECRET "; relay 235")),
	TALK_WITH("nor do these: no verdict on credentials",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .login_rate = 1), HELLO,
		  PLAIN, BOUND, R(AUTH, POLICY, 454), PLAIN, BOUND,
		  R(AUTH, POLICY, 501), PLAIN, BOUND, R(AUTH, POLICY, 504),
		  PLAIN, BOUND, R(AUTH, POLICY, 534), PLAIN, BOUND,
		  R(AUTH, POLICY, 538), STOP, PLAIN, X("bind")),
	TALK_WITH("550 and 554 are, as some say it",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .login_rate = 2), HELLO,
		  PLAIN, BOUND, R(AUTH, POLICY, 550), PLAIN, BOUND,
		  R(AUTH, POLICY, 554), STOP, PLAIN, X("say 454 4.7.0")),
	TALK_WITH("each is a mistake of the session's",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .max_errors = 1), HELLO,
		  PLAIN, BOUND, NO, STOP, PLAIN, BOUND, STOP, NO,
		  X("relay 535; quit; say 421 4.7.0; close errors")),
	TALK_WITH("and it rests in the tarpit",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .tarpit_ms = 1000), HELLO,
		  C("AUTH PLAIN " SECRET "\r\nNOOP\r\n"), BOUND, STOP, NO,
		  X("relay 535; quit"), AFTER(1000), X("say 250 2.0.0")),
};

static void failed_logins_are_counted(void **state)
{
	(void)state;
	RUN(failures);
}

/* ---- pinned ---- */

#define MESSAGE                                                                \
	C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), R(MAIL, OK, 250),           \
		R(RCPT, OK, 250), C("DATA\r\n"), R(DATA, OK, 354),             \
		C("x\r\n.\r\n"), R(EOD, OK, 250)
#define PIN_RCPT                                                               \
	TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), R(MAIL, OK, 250),                  \
		C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), STOP
#define PIN_DATA PIN_RCPT, C("DATA\r\n"), R(DATA, OK, 354), STOP
#define CLEARED  R(IDLE, OK, 250)
#define LOST_421 "say 421 4.4.2; close backend_lost"

static const struct talk pinned[] = {
	LOGIN("messages go to the one backend", TO_LOGIN, MESSAGE,
	      X("MAIL FROM:<a@b>; relay 250; RCPT TO:<c@d>; relay 250; DATA; "
		"relay 354; end; relay 250; log EOD ok 250"),
	      MESSAGE, STOP, MESSAGE, STOP, C("QUIT\r\n"),
	      X("say 221 2.0.0; quit; close quit")),
	LOGIN("nothing is sent ahead of MAIL's reply", TO_LOGIN,
	      C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"),
	      X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	      X("relay 250; RCPT TO:<c@d>; DATA"), R(RCPT, OK, 250),
	      R(DATA, OK, 354), X("relay 250; relay 354")),
	LOGIN("a MAIL that is refused", TO_LOGIN, C("MAIL FROM:<a@b>\r\n"),
	      STOP, R(MAIL, POLICY, 550), X("relay 550; log MAIL policy 550"),
	      AGAIN),
	LOGIN("busy: there is no other, and its words are passed", TO_LOGIN,
	      C("MAIL FROM:<a@b>\r\n"), STOP, R(MAIL, BUSY, 452),
	      X("relay 452; log MAIL busy 452"), AGAIN),
	LOGIN("421 at MAIL: 451, and the end", TO_LOGIN,
	      C("MAIL FROM:<a@b>\r\n"), STOP, R(MAIL, DRAIN, 421),
	      X("relay 451; quit; log MAIL drain 451; " LOST_421)),
	LOGIN("421 about the client", TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), STOP,
	      R(MAIL, POLICY, 421),
	      X("relay 421; quit; log MAIL policy 421; close backend_421")),
	LOGIN("RSET between messages is weir's", TO_LOGIN, C("RSET\r\n"),
	      X("say 250 2.0.0"), AGAIN),
	LOGIN("RSET in a transaction is the backend's too", PIN_RCPT,
	      C("RSET\r\n"), X("log IDLE ok 0; RSET"), CLEARED,
	      X("say 250 2.0.0"), AGAIN),
	LOGIN("what stands behind RSET waits", PIN_RCPT,
	      C("RSET\r\nMAIL FROM:<a@b>\r\n"), X("log IDLE ok 0; RSET"),
	      CLEARED, X("say 250 2.0.0; MAIL FROM:<a@b>")),
	LOGIN("EHLO in a transaction as well", PIN_RCPT, C("EHLO c\r\n"),
	      X("log IDLE ok 0; RSET"), CLEARED, X("say 250"), AGAIN),
	LOGIN("QUIT in a transaction", PIN_RCPT, C("QUIT\r\n"),
	      X("quit; log IDLE ok 0; say 221 2.0.0; close quit")),
	LOGIN("DATA refused: the transaction is cleared", PIN_RCPT,
	      C("DATA\r\n"), STOP, R(DATA, POLICY, 554),
	      X("relay 554; RSET; log DATA policy 554"), CLEARED, X(""), AGAIN),
	LOGIN("the message refused: the backend is clean", PIN_DATA, C(".\r\n"),
	      STOP, R(EOD, POLICY, 550), X("relay 550; log EOD policy 550"),
	      AGAIN),
	LOGIN("421 at the end of data: 451, and the end", PIN_DATA, C(".\r\n"),
	      STOP, R(EOD, DRAIN, 421),
	      X("relay 451; quit; log EOD drain 451; " LOST_421)),
	LOGIN("a last chunk refused: it is cleared", PIN_RCPT,
	      C("BDAT 1 LAST\r\nx"), STOP, R(EOD, POLICY, 550),
	      X("relay 550; RSET; log EOD policy 550"), CLEARED, AGAIN),
	LOGIN("chunks", PIN_RCPT, C("BDAT 1\r\nxBDAT 1 LAST\r\ny"),
	      R(DATA, OK, 250), R(EOD, OK, 250),
	      X("BDAT 1; BDAT 1 LAST; relay 250; relay 250; "
		"log EOD ok 250"),
	      AGAIN),
	TALK_WITH("a last chunk too large: it is cleared",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .size = 5), PIN_RCPT,
		  C("BDAT 9 LAST\r\nxxxxxxxxx"),
		  X("say 552 5.3.4; RSET; log DATA ok 552"), CLEARED, AGAIN),
	LOGIN("no slot to hold a body in", TO_LOGIN, AGAIN,
	      C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"),
	      X("RCPT TO:<c@d>; relay 250; DATA")),
	TALK_WITH("slot = body is for those who did not log in",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .hold = true), PIN_RCPT,
		  C("DATA\r\n"), X("DATA"), R(DATA, OK, 354), X("relay 354"),
		  C("x\r\n.\r\n"), X("end"), R(EOD, OK, 250),
		  X("relay 250; log EOD ok 250"), AGAIN),
	LOGIN("the trace field goes with each message", HELLO, PLAIN,
	      BOUND_TRACED, YES, STOP, MESSAGE,
	      X("MAIL FROM:<a@b>; relay 250; RCPT TO:<c@d>; relay 250; DATA; "
		"relay 354; trace; end; relay 250; log EOD ok 250"),
	      MESSAGE,
	      X("MAIL FROM:<a@b>; relay 250; RCPT TO:<c@d>; relay 250; DATA; "
		"relay 354; trace; end; relay 250; log EOD ok 250")),
	TALK_WITH("messages are counted",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .max_messages = 1), TO_LOGIN,
		  MESSAGE, STOP, C("MAIL FROM:<a@b>\r\n"),
		  X("say 421 4.7.0; quit; close messages")),
	TALK_WITH("message rates hold",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .message_rate = 1), TO_LOGIN,
		  MESSAGE, STOP, C("MAIL FROM:<a@b>\r\n"), X("say 450 4.7.1")),
	LOGIN("MAIL with AUTH=", TO_LOGIN, C("MAIL FROM:<a@b> AUTH=<>\r\n"),
	      X("MAIL FROM:<a@b> AUTH=<>")),
};

static void a_pinned_session_keeps_its_backend(void **state)
{
	(void)state;
	RUN(pinned);
}

static const struct talk losses[] = {
	LOGIN("between messages", TO_LOGIN, LOST, X(LOST_421)),
	LOGIN("it says 421 itself", TO_LOGIN, EARLY(DRAIN, 421),
	      X("reset; " LOST_421)),
	LOGIN("at MAIL", TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), STOP, LOST,
	      X("log MAIL sick 421; " LOST_421)),
	LOGIN("at RCPT", TO_LOGIN, AGAIN, C("RCPT TO:<c@d>\r\n"), STOP, LOST,
	      X("say 451 4.3.0"), C("RCPT TO:<e@f>\r\nDATA\r\n"),
	      X("say 451 4.3.0; say 451 4.3.0; log TCP sick 451; " LOST_421)),
	LOGIN("in a transaction, then RSET", PIN_RCPT, LOST, X(""),
	      C("RSET\r\n"), X("log TCP sick 451; say 250 2.0.0; " LOST_421)),
	LOGIN("in a transaction, then MAIL", PIN_RCPT, LOST, X(""),
	      C("MAIL FROM:<a@b>\r\n"), X("log TCP sick 451; " LOST_421)),
	LOGIN("in a transaction, then EHLO", PIN_RCPT, LOST, X(""),
	      C("EHLO c\r\n"), X("log TCP sick 451; say 250; " LOST_421)),
	LOGIN("at RSET", PIN_RCPT, C("RSET\r\n"), STOP, LOST, X(LOST_421)),
	LOGIN("RSET is refused", PIN_RCPT, C("RSET\r\n"), STOP,
	      R(IDLE, SICK, 451), X("reset; " LOST_421)),
	LOGIN("at DATA", PIN_RCPT, C("DATA\r\n"), STOP, LOST,
	      X("say 451 4.3.0; log DATA sick 451; " LOST_421)),
	LOGIN("in the body: at its end", PIN_DATA, C("x\r\n"), LOST, X(""),
	      C(".\r\n"), X("say 451 4.3.0; log EOD sick 451; " LOST_421)),
	LOGIN("a body that may not go on: at its end", PIN_DATA, C("x\n"),
	      X("reset"), C("\r\n.\r\n"),
	      X("say 550 5.6.11; log EOD ok 550; " LOST_421)),
	LOGIN("the backend refuses it in the middle", PIN_DATA, C("x\r\n"),
	      EARLY(POLICY, 552), X("reset"), C(".\r\n"),
	      X("say 552; log EOD policy 552; " LOST_421)),
	LOGIN("in a chunk", PIN_RCPT, C("BDAT 2 LAST\r\nx"), STOP, LOST, C("y"),
	      X("say 451 4.3.0; log EOD sick 451; " LOST_421)),
	LOGIN("at the end of data", PIN_DATA, C(".\r\n"), STOP, LOST,
	      X("say 451 4.4.2; log EOD sick 451; " LOST_421)),
	LOGIN("the client is gone as well", PIN_DATA, C(".\r\n"), STOP, GONE,
	      LOST, X("say 451 4.4.2; log EOD sick 451; close client_reset")),
};

static void its_loss_is_the_sessions_end(void **state)
{
	(void)state;
	RUN(losses);
}

static const struct talk closings[] = {
	LOGIN("the client's end", TO_LOGIN, OVER,
	      X("quit; close client_closed")),
	LOGIN("the client breaks", TO_LOGIN, GONE,
	      X("quit; abort client_reset")),
	LOGIN("the client breaks in a body", PIN_DATA, C("x"), GONE,
	      X("reset; log EOD ok 0; abort client_reset")),
	LOGIN("the client is silent", TO_LOGIN, AFTER(300000),
	      X("say 421 4.4.2; quit; close client_timeout")),
	LOGIN("weir shuts down between messages", TO_LOGIN,
	      { .kind = DRAINING }, DO(DRAIN),
	      X("say 421 4.3.2; quit; close drain")),
	LOGIN("weir shuts down in a transaction", PIN_DATA,
	      { .kind = DRAINING }, DO(DRAIN), X(""), C(".\r\n"), STOP,
	      R(EOD, OK, 250),
	      X("relay 250; log EOD ok 250; say 421 4.3.2; quit; "
		"close drain")),
	LOGIN("weir shuts down while RSET is due", PIN_RCPT, C("RSET\r\n"),
	      STOP, { .kind = DRAINING }, DO(DRAIN), X(""), CLEARED,
	      X("say 421 4.3.2; quit; close drain")),
	LOGIN("the client ends while RSET is due", PIN_RCPT, C("DATA\r\n"),
	      STOP, R(DATA, POLICY, 554), STOP, OVER,
	      X("quit; close client_closed")),
	TALK_WITH("too many errors",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .max_errors = 1), TO_LOGIN,
		  C("X\r\nX\r\n"),
		  X("say 500 5.5.1; say 421 4.7.0; quit; close errors")),
};

static void a_pinned_session_ends_in_good_order(void **state)
{
	(void)state;
	RUN(closings);
}

/* ---- what stays of it ---- */

static const struct move yes = YES, no = NO, gone = GONE;

static void nothing_of_a_dialogue_stays_in_memory(void **state)
{
	static const struct {
		const char *name;
		const struct move *end;
		bool authed;
	} cases[] = {
		{ "yes", &yes, true },
		{ "no", &no, false },
		{ "gone", &gone, false },
	};
	static const char line[] = SECRET "\r\n";

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		model_go_to(&asked);
		/* In pieces, so that it is gathered. */
		model_feed(line, 3);
		model_feed(line + 3, sizeof(line) - 1 - 3);
		assert_non_null(memmem(w->line, SESSION_LINE_MAX, SECRET,
				       sizeof(SECRET) - 1));
		model_move(cases[i].end, CUT_NOWHERE, &(size_t){ 0 });
		assert_null(memmem(w->line, SESSION_LINE_MAX, SECRET,
				   sizeof(SECRET) - 1));
		assert_null(memmem(&w->s, sizeof(w->s), SECRET,
				   sizeof(SECRET) - 1));
		assert_int_equal(w->s.authed, cases[i].authed);
		model_close();
	}
}

static const struct talk three = TALK_WITH(
	"three", HOW(.auth = CONFIG_AUTH_ALWAYS, .login_rate = 1), HELLO, PLAIN,
	BOUND, R(AUTH, POLICY, 454), PLAIN, BOUND, NO, PLAIN);

static const struct talk one = LOGIN("one", TO_LOGIN, MESSAGE);

static void logins_are_counted_by_what_came_of_them(void **state)
{
	(void)state;
	model_go_to(&three);
	assert_int_equal(stats_get(&w->stats, STATS_logins), 0);
	assert_int_equal(stats_get(&w->stats, STATS_logins_failed), 1);
	assert_int_equal(stats_get(&w->stats, STATS_logins_limited), 1);
	assert_int_equal(admission_limited(w->admission, ADMISSION_RATE_LOGIN),
			 1);
	assert_int_equal(w->s.errors, 1);
	assert_false(w->s.authed);
	model_close();
	model_go_to(&one);
	assert_int_equal(stats_get(&w->stats, STATS_logins), 1);
	assert_int_equal(stats_get(&w->stats, STATS_transactions), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages), 1);
	assert_int_equal(w->s.message.tries, 1);
	assert_true(w->s.authed);
	model_close();
}

static const struct talk sought = TALK_WITH(
	"sought",
	HOW(.auth = CONFIG_AUTH_ALWAYS, .bare = CONFIG_BARE_BDAT,
	    .offer = SMTP_EXT_8BITMIME | SMTP_EXT_SIZE),
	HELLO, C("AUTH SCRAM-SHA-1\r\n"));

static void the_worker_knows_what_a_login_needs(void **state)
{
	(void)state;
	model_go_to(&sought);
	assert_true(session_is_binding(&w->s));
	assert_int_equal(w->s.need_auth, SMTP_AUTH_SCRAM_SHA_1);
	assert_int_equal(w->s.need, SMTP_EXT_8BITMIME | SMTP_EXT_SIZE |
					    SMTP_EXT_AUTH | SMTP_EXT_CHUNKING);
	model_tell(&(struct session_event){ .kind = SESSION_IN_UNBOUND });
	model_feed("MAIL FROM:<a@b>\r\n", 17);
	assert_int_equal(w->s.need_auth, 0);
	model_close();
}

/* Pinned to a backend that offers little. */
static const struct talk pinned_poor = TALK_WITH(
	"poor", HOW(.auth = CONFIG_AUTH_ALWAYS, .offer = SMTP_EXT_8BITMIME),
	HELLO, PLAIN,
	DO_WITH(BOUND, .ext = SMTP_EXT_8BITMIME | SMTP_EXT_AUTH,
		.auth = ALL_AUTH),
	YES);

static void what_the_farm_learns_is_not_the_pinned_backends(void **state)
{
	(void)state;
	model_go_to(&pinned_poor);
	w->env.offer_ext = SMTP_EXT_RELAYED;
	model_feed("EHLO c\r\n", 8);
	assert_int_equal(w->s.offered, SMTP_EXT_8BITMIME | SMTP_EXT_AUTH);
	assert_null(memmem(w->plan.scratch, w->plan.acts[0].len, "DSN", 3));
	model_close();
}

static void a_reload_asks_no_chunks_of_who_has_none(void **state)
{
	static const struct {
		const struct talk *place;
		bool counted;
	} cases[] = { { &pinned_poor, false }, { &one, true } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		model_go_to(cases[i].place);
		w->listener.bare_newline = CONFIG_BARE_BDAT;
		model_feed("MAIL FROM:<a@b>\r\n", 17);
		assert_int_equal(w->s.state, SESSION_MAIL);
		assert_int_equal(w->s.counts, cases[i].counted);
		model_close();
	}
}

/* ---- all of it ---- */

static const struct talk places[] = {
	LOGIN("binding", HELLO, PLAIN),
	LOGIN("binding, pipelined", HELLO,
	      C("AUTH PLAIN " SECRET "\r\n" ENVELOPE)),
	LOGIN("asked the backend", HELLO, PLAIN, BOUND),
	LOGIN("asked one that has served", HELLO, PLAIN, BOUND_AGAIN),
	LOGIN("asked the client", TO_ASKED),
	LOGIN("asked the client, half a line", TO_ASKED, C("c2V")),
	LOGIN("asked both", TO_ASKED, LINE),
	LOGIN("lost", TO_ASKED, LOST),
	LOGIN("pinned", TO_LOGIN),
	LOGIN("pinned, MAIL", TO_LOGIN, C(ENVELOPE)),
	LOGIN("pinned, transaction", PIN_RCPT),
	LOGIN("pinned, broken", PIN_RCPT, LOST),
	LOGIN("pinned, clearing", PIN_RCPT, C("RSET\r\n")),
	LOGIN("pinned, clearing after DATA", PIN_RCPT, C("DATA\r\n"),
	      R(DATA, POLICY, 554)),
	LOGIN("pinned, data", PIN_RCPT, C("DATA\r\n")),
	LOGIN("pinned, body", PIN_DATA, C("x")),
	LOGIN("pinned, body swallowed", PIN_DATA, C("x\n")),
	LOGIN("pinned, chunk", PIN_RCPT, C("BDAT 3\r\nx")),
	LOGIN("pinned, chunk swallowed", PIN_RCPT, C("BDAT 3\r\nx"),
	      R(DATA, POLICY, 550)),
	LOGIN("pinned, final", PIN_DATA, C(".\r\n")),
	TALK_WITH("pinned, slot = body",
		  HOW(.auth = CONFIG_AUTH_ALWAYS, .hold = true), PIN_DATA),
};

static void every_event_is_defined_in_a_login(void **state)
{
	unsigned seen = model_every_event(places,
					  sizeof(places) / sizeof(places[0]));

	(void)state;
	assert_true(seen & 1u << SESSION_AUTH);
	assert_true(seen & 1u << SESSION_MAIL);
	assert_true(seen & 1u << SESSION_FINAL);
}

static void a_random_walk_with_logins_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .max_errors = 1000, .auth = CONFIG_AUTH_ALWAYS },
		{ .max_errors = 1000,
		  .auth = CONFIG_AUTH_ALWAYS,
		  .tls = CONFIG_TLS_STARTTLS,
		  .login_rate = 1 },
		{ .max_errors = 1000,
		  .auth = CONFIG_AUTH_ALWAYS,
		  .hold = true,
		  .size = 20 },
	};
	struct walked all = model_walk(ways, 3, 4000);

	(void)state;
	assert_true(all.counts[STATS_logins] > 500);
	assert_true(all.counts[STATS_logins_failed] > 100);
	assert_true(all.counts[STATS_logins_limited] > 5);
	assert_true(all.counts[STATS_messages] > 500);
	assert_true(all.longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dialogues_are_relayed_line_by_line),
		cmocka_unit_test(lines_may_be_as_long_as_rfc_4954_has_them),
		cmocka_unit_test(out_of_place_it_is_refused_by_weir_itself),
		cmocka_unit_test(a_line_that_is_none_ends_the_dialogue),
		cmocka_unit_test(a_backend_is_replaced_until_it_has_asked),
		cmocka_unit_test(a_dialogue_has_its_time_and_its_ends),
		cmocka_unit_test(failed_logins_are_counted),
		cmocka_unit_test(a_pinned_session_keeps_its_backend),
		cmocka_unit_test(its_loss_is_the_sessions_end),
		cmocka_unit_test(a_pinned_session_ends_in_good_order),
		cmocka_unit_test(nothing_of_a_dialogue_stays_in_memory),
		cmocka_unit_test(logins_are_counted_by_what_came_of_them),
		cmocka_unit_test(the_worker_knows_what_a_login_needs),
		cmocka_unit_test(
			what_the_farm_learns_is_not_the_pinned_backends),
		cmocka_unit_test(a_reload_asks_no_chunks_of_who_has_none),
		cmocka_unit_test(every_event_is_defined_in_a_login),
		cmocka_unit_test(a_random_walk_with_logins_breaks_no_rule),
	};
	int failed;

	if (!model_begin())
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	model_end();
	return failed;
}
