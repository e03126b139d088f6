#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/upstream.h"
#include "tests/unit/session_model.h"

/*
 * Sessions whose bodies are held (slot = body): the dialogues of
 * session_model.h.  HOLD and MARK are not among their words, for how often
 * they come depends on how octets come; the model checks them.
 */

#define TALK_HELD(title, ...) TALK_WITH(title, HOW(.hold = true), __VA_ARGS__)
#define TALK_SMALL(title, octets, ...)                                         \
	TALK_WITH(title, HOW(.hold = true, .buffer = (octets)), __VA_ARGS__)
#define TO_HOLD     TO_RCPT, C("DATA\r\n"), STOP
#define TO_PARK     TO_HOLD, AFTER(1000), STOP
#define WHOLE       C("hi\r\n.\r\n")
#define TO_HANDOVER TO_HOLD, WHOLE, STOP
#define TO_BIND     TO_PARK, WHOLE, STOP
#define TO_REPLAY   TO_BIND, BOUND, STOP
#define REPLAYED    R(MAIL, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354)
#define TO_FINAL    TO_HANDOVER, R(DATA, OK, 354), STOP
#define TO_SPILL    TO_HOLD, C("0123456789"), STOP
#define TO_RETRY    TO_FINAL, R(EOD, BUSY, 452), STOP
#define NO_DSN      DO_WITH(BOUND, .ext = ALL_EXT & ~(unsigned)SMTP_EXT_DSN)

/* ---- our own 354 ---- */

static const struct talk datas[] = {
	TALK_HELD("a message that is whole at once keeps its slot", ADMIT,
		  X("say 220"), C("EHLO c.test\r\n"), X("say 250"),
		  C("MAIL FROM:<a@b>\r\n"), X("bind"), BOUND, R(MAIL, OK, 250),
		  X("MAIL FROM:<a@b>; relay 250"), C("RCPT TO:<c@d>\r\n"),
		  R(RCPT, OK, 250), X("RCPT TO:<c@d>; relay 250"),
		  C("DATA\r\n"), X("say 354"), C("hi\r\n"), X(""), C(".\r\n"),
		  X("DATA"), B(""), R(DATA, OK, 354), X("send end"),
		  B("hi\r\n.\r\n"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250"), C("QUIT\r\n"),
		  X("say 221 2.0.0; close quit")),
	TALK_HELD("one of no octets", TO_HOLD, C(".\r\n"), X("DATA"),
		  R(DATA, OK, 354), X("send end"), B(".\r\n")),
	TALK_AHEAD_WITH("a group: DATA is never sent ahead", HOW(.hold = true),
			HELLO, C(ENVELOPE), BOUND, R(MAIL, OK, 250),
			X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; "
			  "RCPT TO:<e@f>; relay 250"),
			R(RCPT, OK, 250), X("relay 250"), R(RCPT, OK, 250),
			X("relay 250; say 354"), WHOLE, X("DATA"),
			R(DATA, OK, 354), X("send end"), B("hi\r\n.\r\n")),
	TALK_AHEAD_WITH(
		"a group for another backend: its envelope alone counts",
		HOW(.hold = true), HELLO, C(ENVELOPE), BOUND,
		R(MAIL, BUSY, 452), BOUND, R(MAIL, OK, 250), R(RCPT, OK, 250),
		R(RCPT, POLICY, 550), STOP, AFTER(1000), X("park"), WHOLE,
		X("bind"), BOUND, X("replay 1"), REPLAYED, X("send end")),
	TALK_HELD("a group from a backend without PIPELINING", HELLO,
		  C(ENVELOPE), BOUND_POOR, R(MAIL, OK, 250), STOP,
		  R(RCPT, OK, 250), X("relay 250; RCPT TO:<e@f>"),
		  R(RCPT, OK, 250), X("relay 250; say 354")),
	TALK_HELD("DATA waits for the replies before it", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
		  X("RCPT TO:<c@d>; RCPT TO:<e@f>"), R(RCPT, OK, 250),
		  X("relay 250"), R(RCPT, POLICY, 550),
		  X("relay 550; say 354")),
	TALK_HELD("no RCPT was good: the answer to DATA is the backend's",
		  TO_MAIL, C("RCPT TO:<c@d>\r\nDATA\r\n"), R(RCPT, POLICY, 550),
		  X("RCPT TO:<c@d>; relay 550; DATA"), R(DATA, POLICY, 554),
		  X("relay 554; quit; log DATA policy 554")),
	TALK_HELD("and if that is 354, the body goes on as it comes", TO_MAIL,
		  C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550), STOP,
		  C("DATA\r\n"), X("DATA"), R(DATA, OK, 354), X("relay 354"),
		  C("x\r\n.\r\n"), X("end"), B("x\r\n.\r\n")),
	TALK_HELD("no RCPT was good, and text came behind DATA", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\nx"), R(RCPT, POLICY, 550),
		  R(DATA, POLICY, 554),
		  X("RCPT TO:<c@d>; relay 550; DATA; relay 554; quit; "
		    "log DATA policy 554; say 554 5.5.0; close sync")),
	TALK_HELD("text behind DATA, before its reply, is no body", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\nx"), R(RCPT, OK, 250),
		  X("RCPT TO:<c@d>; relay 250; say 554 5.5.0; quit; "
		    "log DATA ok 554; close sync"),
		  B("")),
	{ .name = "nor is it, if no reply was due",
	  .moves = (const struct move[]){ TO_RCPT,
					  C("DATA\r\nRSET\r\n"),
					  X("say 554 5.5.0; quit; "
					    "log DATA ok 554; close sync"),
					  { .kind = END } },
	  .knobs = { .hold = true },
	  .whole_only = true },
	TALK_HELD("lost while DATA waits: it has a reply too", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
		  R(RCPT, OK, 250), STOP, LOST,
		  X("say 451 4.3.0 x2; log DATA sick 451"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("421 to RCPT while DATA waits", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"), STOP,
		  R(RCPT, DRAIN, 421),
		  X("relay 451; reset; say 451 4.3.0 x2; log DATA drain 451")),
	TALK_HELD("421 about the client to RCPT while DATA waits", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), STOP, R(RCPT, POLICY, 421),
		  X("relay 421; quit; log RCPT policy 421; "
		    "close backend_421")),
	TALK_HELD("354 to a RCPT, while DATA waits, is nonsense", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), STOP, R(RCPT, OK, 354),
		  X("reset; say 451 4.3.0 x2; log DATA ok 451")),
	TALK_HELD("an envelope that could not be held: DATA goes straight on",
		  TO_RCPT, { .kind = UNHELD }, C("DATA\r\n"), X("DATA"),
		  R(DATA, OK, 354), X("relay 354"), WHOLE, X("end"),
		  R(EOD, BUSY, 452), X("relay 452; quit; log EOD busy 452"),
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),
		  C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), STOP, C("DATA\r\n"),
		  X("say 354")),
	TALK_HELD("DATA in a broken transaction", TO_RCPT, LOST, C("DATA\r\n"),
		  X("say 451 4.3.0; log TCP sick 451")),
	TALK_HELD("DATA out of order", HELLO, C("DATA\r\n"), X("say 503 5.5.1"),
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250), STOP,
		  C("DATA\r\n"), X("say 503 5.5.1")),
	TALK_HELD("chunks are not offered, nor taken", TO_RCPT,
		  C("BDAT 2 LAST\r\nab"),
		  X("say 502 5.5.1; quit; log DATA ok 502"), B(""),
		  C("MAIL FROM:<a@b> BODY=BINARYMIME\r\n"), X("say 555 5.5.4")),
	TALK_HELD("two messages in one session", TO_FINAL, R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250"),
		  C("MAIL FROM:<x@y>\r\n"), BOUND_AGAIN, R(MAIL, OK, 250),
		  C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550),
		  C("RCPT TO:<e@f>\r\n"), R(RCPT, OK, 250), STOP, C("DATA\r\n"),
		  X("say 354"), AFTER(1000), X("park"), C("two\r\n.\r\n"),
		  X("bind"), BOUND, X("replay 1"), REPLAYED, X("send end"),
		  R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250")),
	TALK_HELD("the next MAIL stands right behind the final dot", TO_HOLD,
		  C("x\r\n.\r\nMAIL FROM:<x@y>\r\n"), X("DATA"),
		  R(DATA, OK, 354), X("send end"), B("x\r\n.\r\n"),
		  R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250; bind"),
		  BOUND_AGAIN, X("MAIL FROM:<x@y>")),
};

static void weir_says_354_itself_where_a_recipient_is_good(void **state)
{
	(void)state;
	RUN(datas);
}

/* ---- the slot ---- */

#define CROWD DO(CROWDED)

static const struct talk parks[] = {
	TALK_HELD("a body that is not whole in time gives its slot back",
		  TO_HOLD, C("h"), AFTER(999), X(""), AFTER(1), X("park"),
		  C("i\r\n.\r\n"), X("bind"), B(""), BOUND, X("replay 1"),
		  R(MAIL, OK, 250), R(RCPT, OK, 250), X(""), B(""),
		  R(DATA, OK, 354), X("send end"), B("hi\r\n.\r\n"),
		  R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250"),
		  C("QUIT\r\n"), X("say 221 2.0.0; close quit")),
	TALK_HELD("octets that come do not put it off", TO_HOLD, AFTER(900),
		  C("x"), AFTER(99), C("y"), X(""), AFTER(1), X("park")),
	TALK_HELD("if others wait, as soon as a nimble client is late", TO_HOLD,
		  CROWD, X(""), AFTER(4), CROWD, X(""), AFTER(1), CROWD,
		  X("park"), CROWD, X("")),
	TALK_HELD("others wait no more", TO_HOLD, AFTER(999), X(""), AFTER(1),
		  X("park")),
	TALK_HELD("a client is given two of its round trips", ADMIT, AFTER(30),
		  C("EHLO c.test\r\n"), AFTER(20), C("MAIL FROM:<a@b>\r\n"),
		  BOUND, R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"),
		  R(RCPT, OK, 250), C("DATA\r\n"), STOP, AFTER(44), CROWD,
		  X(""), AFTER(1), CROWD, X("park")),
	TALK_HELD("of the fastest ones", ADMIT, AFTER(20), C("EHLO c.test\r\n"),
		  AFTER(40), C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),
		  C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), STOP,
		  AFTER(44), CROWD, X(""), AFTER(1), CROWD, X("park")),
	TALK_HELD("but not of what may have been on its way already", ADMIT,
		  AFTER(30), C("EHLO c.test\r\n"), AFTER(30),
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),
		  C("RSET\r\n"), C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN,
		  R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250),
		  C("DATA\r\n"), STOP, AFTER(64), CROWD, X(""), AFTER(1), CROWD,
		  X("park")),
	TALK_HELD("a client is given 100 ms at most", ADMIT, AFTER(300),
		  C("EHLO c.test\r\n"), AFTER(200), C("MAIL FROM:<a@b>\r\n"),
		  BOUND, R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"),
		  R(RCPT, OK, 250), C("DATA\r\n"), STOP, AFTER(99), CROWD,
		  X(""), AFTER(1), CROWD, X("park")),
	TALK_HELD("nothing is asked back of who holds no slot", TO_PARK, CROWD,
		  X(""), WHOLE, CROWD, X("bind"), BOUND, CROWD, X("replay 1")),
	TALK_WITH("a listener that waits for no body",
		  HOW(.hold = true, .body_wait_ms = -1), TO_RCPT, C("DATA\r\n"),
		  X("say 354; park"), WHOLE, X("bind"), BOUND, X("replay 1")),
	TALK_WITH("one that waits for 30 ms",
		  HOW(.hold = true, .body_wait_ms = 30), TO_HOLD, AFTER(29),
		  X(""), AFTER(1), X("park")),
	TALK_HELD("parked, its client's time runs on", TO_HOLD, AFTER(1000),
		  X("park"), AFTER(178999), C("x"), AFTER(179999), X(""),
		  AFTER(1),
		  X("say 421 4.4.2; log EOD ok 0; close client_timeout")),
	TALK_HELD("silent since 354", TO_PARK, AFTER(178999), X(""), AFTER(1),
		  X("say 421 4.4.2; log EOD ok 0; close client_timeout")),
	TALK_WITH("the session's time is over, in its slot",
		  HOW(.hold = true, .session_ms = 500), TO_HOLD, AFTER(500),
		  X("say 421 4.4.2; quit; log EOD ok 0; close session_time")),
	TALK_WITH("the session's time is over when its slot's is",
		  HOW(.hold = true, .session_ms = 1000), TO_HOLD, AFTER(1000),
		  X("say 421 4.4.2; quit; log EOD ok 0; close session_time")),
	TALK_HELD("good recipients alone are said again", TO_MAIL,
		  C("RCPT TO:<1@d>\r\nRCPT TO:<2@d>\r\nRCPT TO:<3@d>\r\n"),
		  R(RCPT, OK, 250), R(RCPT, POLICY, 550), R(RCPT, OK, 251),
		  STOP, C("DATA\r\n"), AFTER(1000), WHOLE, BOUND,
		  X("say 354; park; bind; replay 2"), R(MAIL, OK, 250),
		  R(RCPT, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354),
		  X("send end")),
	TALK_HELD("its backend ends meanwhile: another will do", TO_HOLD,
		  C("h"), LOST, X(""), AFTER(1000), X(""), C("i\r\n.\r\n"),
		  X("bind"), BOUND, X("replay 1"), REPLAYED, X("send end"),
		  B("hi\r\n.\r\n")),
	TALK_HELD("its backend says goodbye meanwhile", TO_HOLD,
		  EARLY(SESSION, 421), X("reset"), WHOLE, X("bind")),
	TALK_HELD("even about the client: the next one will tell", TO_HOLD,
		  EARLY(POLICY, 421), X("reset"), WHOLE, X("bind"),
		  GIVEN_UP(GREET, POLICY),
		  X("say 451 4.3.2; log GREET policy 451")),
};

static void a_slow_body_gives_its_slot_back(void **state)
{
	(void)state;
	RUN(parks);
}

/* ---- flaws and sizes ---- */

static const struct talk refusals[] = {
	TALK_HELD("a bare LF, found while it is held", TO_HOLD, C("x\ny\r\n"),
		  X("quit"), C(".\r\n"), X("say 550 5.6.11; log EOD ok 550"),
		  B(""), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_HELD("the same without a slot", TO_PARK, C("x\ny\r\n"), X(""),
		  C(".\r\n"), X("say 550 5.6.11; log EOD ok 550"), B("")),
	TALK_WITH("a body as large as it may be", HOW(.hold = true, .size = 5),
		  TO_HOLD, C("123\r\n.\r\n"), X("DATA")),
	TALK_WITH("one octet more", HOW(.hold = true, .size = 5), TO_HOLD,
		  C("1234\r\n.\r\n"), X("quit; say 552 5.3.4; log EOD ok 552"),
		  B(""), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_WITH("one octet more, in no slot", HOW(.hold = true, .size = 5),
		  TO_PARK, C("1234\r\n.\r\n"),
		  X("say 552 5.3.4; log EOD ok 552")),
	TALK_WITH("too large for the memory, and for the listener",
		  HOW(.hold = true, .size = 20, .buffer = 8), TO_SPILL,
		  R(DATA, OK, 354), X("send"), C("0123456789abcdef\r\n.\r\n"),
		  X("reset; say 552 5.3.4; log EOD ok 552")),
};

static void what_may_not_pass_is_refused_at_its_end(void **state)
{
	(void)state;
	RUN(refusals);
}

/* ---- handed over in its slot ---- */

static const struct talk handovers[] = {
	TALK_HELD("busy at DATA: another one gets it all", TO_HANDOVER,
		  R(DATA, BUSY, 452), X("quit; bind"), BOUND, X("replay 1"),
		  REPLAYED, X("send end"), B("hi\r\n.\r\n"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250")),
	TALK_HELD("going away at DATA", TO_HANDOVER, R(DATA, DRAIN, 421),
		  X("quit; bind")),
	TALK_HELD("sick at DATA", TO_HANDOVER, R(DATA, SICK, 451),
		  X("quit; bind")),
	TALK_HELD("tired of the connection at DATA", TO_HANDOVER,
		  R(DATA, SESSION, 421), X("quit; bind")),
	TALK_HELD("lost at DATA", TO_HANDOVER, LOST, X("bind"), BOUND,
		  X("replay 1")),
	TALK_HELD("a verdict at DATA is the final reply", TO_HANDOVER,
		  R2(DATA, POLICY, 554),
		  X("relay 554; quit; log DATA policy 554"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("one for now too", TO_HANDOVER, R(DATA, POLICY, 450),
		  X("relay 450; quit; log DATA policy 450")),
	TALK_HELD("5xx of one that is sick is a verdict", TO_HANDOVER,
		  R(DATA, SICK, 554), X("relay 554; quit; log DATA sick 554")),
	TALK_HELD("5xx of one that is busy is not", TO_HANDOVER,
		  R(DATA, BUSY, 554), X("quit; bind")),
	TALK_HELD("421 about the client at DATA is obeyed", TO_HANDOVER,
		  R(DATA, POLICY, 421),
		  X("relay 421; quit; log DATA policy 421; "
		    "close backend_421")),
	TALK_HELD("2xx to DATA is no reply at all", TO_HANDOVER,
		  R(DATA, OK, 250), X("reset; bind")),
	TALK_HELD("a reply to something else", TO_HANDOVER, R(RCPT, OK, 250),
		  X("reset; bind")),
	TALK_HELD("words before the reply to DATA", TO_HANDOVER, EARLY(OK, 250),
		  X("reset; bind")),
	TALK_HELD("busy at DATA, and no other: 451", TO_HANDOVER,
		  R(DATA, BUSY, 452), GIVEN_UP(TCP, BUSY),
		  X("quit; bind; say 451 4.3.2; log TCP busy 451"),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_WITH("busy at DATA with one try: that was for MAIL",
		  HOW(.hold = true, .tries = 1), TO_HANDOVER,
		  R(DATA, BUSY, 452), X("quit; bind"), BOUND,
		  R(MAIL, BUSY, 452),
		  X("replay 1; reset; say 451 4.3.2; log MAIL busy 451")),
	TALK_HELD("time does not run while the backend's does", TO_HANDOVER,
		  AFTER(900000), X(""), R(DATA, OK, 354), X("send end"),
		  AFTER(900000), X("")),
};

static void a_whole_body_goes_by_data_to_the_backend_at_hand(void **state)
{
	(void)state;
	RUN(handovers);
}

/* ---- replayed ---- */

static const struct talk replays[] = {
	TALK_HELD("RCPT is refused now: nothing is delivered", TO_REPLAY,
		  R(MAIL, OK, 250), R(RCPT, POLICY, 550),
		  X("reset; say 451 4.3.0; log RCPT policy 451"), B(""),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_HELD("for now, too", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, POLICY, 450),
		  X("reset; say 451 4.3.0; log RCPT policy 451")),
	TALK_HELD("354 behind a refused RCPT is followed by no body", TO_REPLAY,
		  R(MAIL, OK, 250), R(RCPT, POLICY, 550), STOP,
		  R(DATA, OK, 354), X(""), B(""), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("nor behind one that was refused for no fault of ours",
		  TO_REPLAY, R(MAIL, OK, 250), R(RCPT, SICK, 451),
		  R(DATA, OK, 354), X("reset; bind"), B(""), BOUND, REPLAYED,
		  X("replay 1; send end"), B("hi\r\n.\r\n")),
	TALK_HELD("MAIL is refused now", TO_REPLAY, R(MAIL, POLICY, 550),
		  X("reset; say 451 4.3.0; log MAIL policy 451")),
	TALK_HELD("MAIL: 421 about the client", TO_REPLAY, R(MAIL, POLICY, 421),
		  X("reset; say 451 4.3.0; log MAIL policy 451"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("DATA is refused now", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, OK, 250), R(DATA, POLICY, 554),
		  X("quit; say 451 4.3.0; log DATA policy 451")),
	TALK_HELD("one RCPT of two is refused now", TO_MAIL,
		  C("RCPT TO:<1@d>\r\nRCPT TO:<2@d>\r\n"), R(RCPT, OK, 250),
		  R(RCPT, OK, 250), C("DATA\r\n"), AFTER(1000), WHOLE, BOUND,
		  STOP, R(MAIL, OK, 250), R(RCPT, OK, 250),
		  R(RCPT, POLICY, 550), R(DATA, OK, 354),
		  X("reset; say 451 4.3.0; log RCPT policy 451"), B("")),
	TALK_HELD("busy at MAIL: another one", TO_REPLAY, R(MAIL, BUSY, 452),
		  X("reset; bind"), BOUND, X("replay 1"), REPLAYED,
		  X("send end")),
	TALK_HELD("sick at MAIL: another one", TO_REPLAY, R(MAIL, SICK, 451),
		  X("reset; bind")),
	TALK_HELD("a cap at MAIL: another one", TO_REPLAY, R(MAIL, CAP, 421),
		  X("reset; bind")),
	TALK_HELD("set up wrongly: another one", TO_REPLAY,
		  R(MAIL, MISCONF, 451), X("reset; bind")),
	TALK_HELD("busy at RCPT: another one", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, BUSY, 452), X("reset; bind")),
	TALK_HELD("busy at DATA: another one", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, OK, 250), R(DATA, BUSY, 452), X("quit; bind")),
	TALK_HELD("2xx to DATA is no reply at all", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, OK, 250), R(DATA, OK, 250), X("reset; bind")),
	TALK_HELD("354 to MAIL is no reply at all", TO_REPLAY, R(MAIL, OK, 354),
		  X("reset; bind")),
	TALK_HELD("354 to RCPT is no reply at all", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, OK, 354), X("reset; bind")),
	TALK_HELD("words that nobody asked for", TO_REPLAY, EARLY(OK, 250),
		  X("reset; bind")),
	TALK_HELD("lost: another one, three times in all", TO_REPLAY, LOST,
		  BOUND, R(MAIL, OK, 250), LOST, BOUND, R(MAIL, OK, 250),
		  R(RCPT, OK, 250), LOST,
		  X("bind; replay 1; bind; replay 1; say 451 4.3.2; "
		    "log TCP sick 451")),
	TALK_WITH("kept connections that are lost cost no try",
		  HOW(.hold = true, .tries = 1), TO_BIND, BOUND_AGAIN, LOST,
		  BOUND_AGAIN, R(MAIL, SESSION, 421), BOUND, REPLAYED,
		  X("replay 1; bind; replay 1; reset; bind; replay 1; "
		    "send end")),
	TALK_HELD("the other one offers less than the message needs", TO_BIND,
		  NO_DSN, X("quit; bind"), NO_DSN, NO_DSN,
		  X("quit; bind; quit; say 451 4.3.2; log EHLO misconf 451")),
	TALK_HELD("who has no slot is none of the tries", TO_BIND,
		  UNBOUND(GREET, BUSY), UNBOUND(TCP, MAYBE),
		  UNBOUND(GREET, CAP), UNBOUND(GREET, DRAIN), BOUND,
		  X("bind; bind; bind; bind; replay 1")),
	TALK_WITH("none takes a message of that size: no use to try again",
		  HOW(.hold = true, .offer_size = 3), TO_BIND,
		  GIVEN_UP(EHLO, MISCONF),
		  X("say 552 5.3.4; log EHLO misconf 552"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_WITH("none offers what it needs",
		  HOW(.hold = true, .offer_size = 4), TO_BIND,
		  GIVEN_UP(EHLO, MISCONF),
		  X("say 451 4.3.2; log EHLO misconf 451")),
	TALK_HELD("faults are", TO_BIND, UNBOUND(GREET, SICK),
		  UNBOUND(GREET, SICK), UNBOUND(GREET, SICK),
		  X("bind; bind; say 451 4.3.2; log GREET sick 451")),
	TALK_HELD("none to be had", TO_BIND, GIVEN_UP(TCP, BUSY),
		  X("say 451 4.3.2; log TCP busy 451"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("a verdict in the greeting is worse than what was read",
		  TO_BIND, GREETED(POLICY, 554),
		  X("say 451 4.3.2; log GREET policy 451")),
	TALK_HELD("one has 20 s for it", TO_BIND, AFTER(19999), X(""), AFTER(1),
		  X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK_WITH("and the room's time on top",
		  HOW(.hold = true, .room_wait_ms = 15000), TO_BIND,
		  AFTER(34999), X(""), AFTER(1),
		  X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK_HELD("from when it was whole, not from MAIL", TO_HOLD,
		  AFTER(60000), C("x"), AFTER(60000), STOP, C("\r\n.\r\n"),
		  X("bind"), AFTER(19999), X(""), BOUND, X("replay 1")),
	TALK_HELD("lost at the end of the data: nobody knows", TO_REPLAY,
		  REPLAYED, STOP, LOST, X("say 451 4.4.2; log EOD sick 451"),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
};

static void a_replay_keeps_every_promise_or_delivers_nothing(void **state)
{
	(void)state;
	RUN(replays);
}

/* ---- too large ---- */

static const struct talk spills[] = {
	TALK_SMALL("exactly what the buffer takes", 15, TO_HOLD,
		   C("0123456789\r\n.\r\n"), X("DATA"), R(DATA, OK, 354),
		   X("send end"), B("0123456789\r\n.\r\n")),
	TALK_SMALL("one octet more streams", 14, TO_HOLD,
		   C("0123456789\r\n.\r\n"), X("DATA"), R(DATA, OK, 354),
		   X("send; end"), B("0123456789\r\n.\r\n"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250")),
	TALK_SMALL("held, then streamed for long", 8, TO_HOLD, C("01234"),
		   X(""), C("56789"), X("DATA"), C("abc"), X(""),
		   R(DATA, OK, 354), X("send"), B("0123456789abc"), C("def"),
		   C("\r\n.\r\n"), X("end"), B("def\r\n.\r\n"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250")),
	TALK_HELD("no memory at all", { .kind = MEMORY }, TO_HOLD, C("x"),
		  X("DATA"), R(DATA, OK, 354), X("send"), C("\r\n.\r\n"),
		  X("end"), B("x\r\n.\r\n")),
	TALK_HELD("memory that is full in the middle", TO_HOLD, C("012"),
		  { .kind = MEMORY, .ms = 3 }, C("3"), X("DATA"),
		  R(DATA, OK, 354), X("send"), B("0123")),
	TALK_SMALL("parked: it takes a slot then", 8, TO_PARK, C("0123456789"),
		   X("bind"), BOUND, X("replay 1"), REPLAYED, X("send"),
		   B("0123456789"), C("\r\n.\r\n"), X("end"), B("\r\n.\r\n"),
		   R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250")),
	TALK_SMALL("DATA busy: another one", 8, TO_SPILL, R(DATA, BUSY, 452),
		   X("quit; bind"), BOUND, X("replay 1"), REPLAYED, X("send"),
		   B("0123456789")),
	TALK_SMALL("no backend: the client reads it at the end", 8, TO_SPILL,
		   LOST, X("bind"), GIVEN_UP(TCP, BUSY), X(""), C("ab\r\n"),
		   X(""), C(".\r\n"), X("say 451 4.3.2; log TCP busy 451"),
		   B(""), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_SMALL("in no time: the same", 8, TO_SPILL, LOST, AFTER(20000),
		   X("bind; quit"), C("\r\n.\r\n"),
		   X("say 451 4.3.2; log TCP maybe-busy 451")),
	TALK_SMALL("a verdict at DATA waits for the end", 8, TO_SPILL,
		   R(DATA, POLICY, 554), X("quit"), C("\r\n.\r\n"),
		   X("say 554; log DATA policy 554"), B("")),
	TALK_SMALL("421 about the client at DATA, too", 8, TO_SPILL,
		   R(DATA, POLICY, 421), X("quit"), C("\r\n.\r\n"),
		   X("say 421; log DATA policy 421; close backend_421")),
	TALK_SMALL("a replay that is refused, too", 8, TO_PARK, C("0123456789"),
		   BOUND, R(MAIL, OK, 250), R(RCPT, POLICY, 550),
		   X("bind; replay 1; reset"), C("\r\n.\r\n"),
		   X("say 451 4.3.0; log RCPT policy 451"), B("")),
	TALK_SMALL("lost in the middle of what streams", 8, TO_SPILL,
		   R(DATA, OK, 354), STOP, LOST, X(""), C("\r\n.\r\n"),
		   X("say 451 4.3.0; log EOD sick 451"), B("")),
	TALK_SMALL("lost at the end: nobody knows", 8, TO_SPILL,
		   R(DATA, OK, 354), C("\r\n.\r\n"), STOP, LOST,
		   X("say 451 4.4.2; log EOD sick 451")),
	TALK_SMALL("busy at the end: a part of it is gone", 8, TO_SPILL,
		   R(DATA, OK, 354), C("\r\n.\r\n"), STOP, R(EOD, BUSY, 452),
		   X("relay 452; quit; log EOD busy 452")),
	TALK_SMALL("a bare LF in what streams", 8, TO_SPILL, R(DATA, OK, 354),
		   STOP, C("x\ny\r\n.\r\n"),
		   X("reset; say 550 5.6.11; log EOD ok 550")),
	TALK_SMALL("a bare LF where it would be too large: it is held no more",
		   8, TO_HOLD, C("012345\nabc\r\n.\r\n"),
		   X("quit; say 550 5.6.11; log EOD ok 550")),
	TALK_SMALL("the client's time runs again when it streams", 8, TO_SPILL,
		   AFTER(500000), R(DATA, OK, 354), STOP, AFTER(179999), X(""),
		   AFTER(1),
		   X("say 421 4.4.2; reset; log EOD ok 0; "
		     "close client_timeout")),
	TALK_SMALL("the client goes while DATA is answered", 8, TO_SPILL, GONE,
		   X("reset; log EOD ok 0; abort client_reset")),
	TALK_SMALL("the client goes while a backend is sought", 8, TO_SPILL,
		   LOST, GONE,
		   X("bind; quit; log EOD ok 0; abort client_reset")),
	TALK_SMALL("the client ends it in the middle", 8, TO_SPILL, OVER, X(""),
		   R(DATA, OK, 354),
		   X("send; reset; log EOD ok 0; abort client_closed")),
};

static void a_body_too_large_to_be_held_streams(void **state)
{
	(void)state;
	RUN(spills);
}

/* ---- the final reply ---- */

static const struct talk finals[] = {
	TALK_HELD("busy at the end of the data: once more, elsewhere", TO_FINAL,
		  B(""), R(EOD, BUSY, 452), X("quit; bind"), BOUND,
		  X("replay 1"), REPLAYED, X("send end"), B("hi\r\n.\r\n"),
		  R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250"),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_HELD("421 of a busy one, too", TO_FINAL, R(EOD, BUSY, 421),
		  X("quit; bind")),
	TALK_HELD("after a park, too", TO_REPLAY, REPLAYED, STOP,
		  R(EOD, BUSY, 452), X("quit; bind"), BOUND, REPLAYED,
		  X("replay 1; send end"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250")),
	TALK_HELD("once only", TO_RETRY, BOUND, REPLAYED, STOP,
		  R(EOD, BUSY, 452), X("relay 452; quit; log EOD busy 452")),
	TALK_HELD("no other: its own words", TO_RETRY, GIVEN_UP(TCP, BUSY),
		  X("say 452; log EOD busy 452"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("no other in time: its own words", TO_RETRY, AFTER(20000),
		  X("quit; say 452; log EOD busy 452")),
	TALK_HELD("no other: 421 is for the backend's connection", TO_FINAL,
		  R2(EOD, BUSY, 421), GIVEN_UP(TCP, BUSY),
		  X("quit; bind; say 451; log EOD busy 451"), C("NOOP\r\n"),
		  X("say 250 2.0.0")),
	TALK_HELD("the other refuses RCPT: the first one's words", TO_RETRY,
		  BOUND, R(MAIL, OK, 250), R(RCPT, POLICY, 550),
		  X("replay 1; reset; say 452; log EOD busy 452")),
	TALK_HELD("the other is lost before 354: a third", TO_RETRY, BOUND,
		  LOST, X("replay 1; bind")),
	TALK_HELD("the other is lost at the end: nobody knows", TO_RETRY, BOUND,
		  REPLAYED, STOP, LOST, X("say 451 4.4.2; log EOD sick 451")),
	TALK_HELD("the other refuses the message: relayed", TO_RETRY, BOUND,
		  REPLAYED, STOP, R(EOD, POLICY, 550),
		  X("relay 550; keep; log EOD policy 550")),
	TALK_HELD("no reply is never tried elsewhere", TO_FINAL, LOST,
		  X("say 451 4.4.2; log EOD sick 451")),
	TALK_HELD("nor one to something else", TO_FINAL, R(RCPT, BUSY, 452),
		  X("reset; say 451 4.4.2; log EOD busy 451")),
	TALK_HELD("nor words that nobody asked for", TO_FINAL, EARLY(OK, 250),
		  X("reset; say 451 4.4.2; log EOD ok 451")),
	TALK_HELD("a refusal before its end is one", TO_FINAL,
		  EARLY(POLICY, 552), X("reset; say 552; log EOD policy 552"),
		  C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_HELD("a busy one too: who knows what was read", TO_FINAL,
		  EARLY(BUSY, 421), X("reset; say 451; log EOD busy 451")),
	TALK_HELD("421 about the client before its end is obeyed", TO_FINAL,
		  EARLY(POLICY, 421),
		  X("reset; say 421; log EOD policy 421; "
		    "close backend_421")),
	TALK_HELD("nor a sick one's reply", TO_FINAL, R(EOD, SICK, 451),
		  X("relay 451; quit; log EOD sick 451")),
	TALK_HELD("nor a verdict", TO_FINAL, R(EOD, POLICY, 450),
		  X("relay 450; keep; log EOD policy 450")),
	TALK_HELD("nor what is said for ever", TO_FINAL, R(EOD, BUSY, 552),
		  X("relay 552; quit; log EOD busy 552")),
	TALK_HELD("nor what comes when the client may soon give up", TO_FINAL,
		  AFTER(60000), R(EOD, BUSY, 452),
		  X("relay 452; quit; log EOD busy 452")),
	TALK_HELD("nor for a client that is gone", TO_FINAL, GONE,
		  R(EOD, BUSY, 452),
		  X("relay 452; quit; log EOD busy 452; close client_reset")),
	TALK_HELD("but for one that has ended its side", TO_FINAL, OVER,
		  R(EOD, BUSY, 452), X("quit; bind"), BOUND, REPLAYED,
		  R(EOD, OK, 250),
		  X("replay 1; send end; relay 250; keep; log EOD ok 250; "
		    "close client_closed")),
	TALK_HELD("who goes before it is sent again has nothing delivered",
		  TO_RETRY, BOUND, GONE,
		  X("replay 1; reset; log EOD ok 0; abort client_reset")),
	{ .name = "a stream was not held: busy is passed",
	  .moves = (const struct move[]){ TO_DATA,
					  C(".\r\n"),
					  STOP,
					  R(EOD, BUSY, 452),
					  X("relay 452; quit; "
					    "log EOD busy 452"),
					  { .kind = END } } },
	{ .name = "nor is a word before its end known to be about it",
	  .moves = (const struct move[]){ TO_DATA,
					  C(".\r\n"),
					  STOP,
					  EARLY(BUSY, 421),
					  X("reset; say 451 4.4.2; "
					    "log EOD busy 451"),
					  { .kind = END } } },
};

static void busy_at_the_end_is_tried_elsewhere_once(void **state)
{
	(void)state;
	RUN(finals);
}

/* ---- the client goes, weir goes ---- */

static const struct talk ends[] = {
	TALK_HELD("gone while DATA waits", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), STOP, GONE,
		  X("quit; log DATA ok 0; abort client_reset")),
	TALK_HELD("over while DATA waits", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), STOP, OVER,
		  X("quit; log DATA ok 0; close client_closed")),
	TALK_HELD("gone in the body: the backend had an envelope", TO_HOLD,
		  C("x"), GONE, X("quit; log EOD ok 0; abort client_reset"),
		  B("")),
	TALK_HELD("over in the body", TO_HOLD, C("x"), OVER,
		  X("quit; log EOD ok 0; abort client_closed"), B("")),
	TALK_HELD("gone in the body, parked", TO_PARK, C("x"), GONE,
		  X("log EOD ok 0; abort client_reset")),
	TALK_HELD("gone while a backend is sought", TO_BIND, GONE,
		  X("quit; log EOD ok 0; abort client_reset")),
	TALK_HELD("gone while DATA is answered", TO_HANDOVER, GONE,
		  X("reset; log EOD ok 0; abort client_reset")),
	TALK_HELD("gone in the replay", TO_REPLAY, R(MAIL, OK, 250), GONE,
		  X("reset; log EOD ok 0; abort client_reset")),
	TALK_HELD("gone behind the end: the message counts", TO_FINAL, GONE,
		  X(""), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250; close client_reset")),
	TALK_HELD("over while a backend is sought: it is delivered", TO_BIND,
		  OVER, X(""), BOUND, REPLAYED, X("replay 1; send end"),
		  R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250; close client_closed")),
	TALK_HELD("over while DATA is answered: it is delivered", TO_HANDOVER,
		  OVER, X(""), R(DATA, OK, 354), X("send end"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250; close client_closed")),
	TALK_HELD("over, and it cannot be delivered", TO_BIND, OVER,
		  GIVEN_UP(TCP, BUSY),
		  X("say 451 4.3.2; log TCP busy 451; close client_closed")),
	TALK_HELD("over, then gone", TO_BIND, OVER, GONE,
		  X("quit; log EOD ok 0; abort client_reset")),
	TALK_HELD("drained in the body", TO_HOLD, { .kind = DRAINING },
		  DO(DRAIN), X(""), WHOLE, X("DATA"), R(DATA, OK, 354),
		  X("send end"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250; say 421 4.3.2; "
		    "close drain")),
	TALK_HELD("drained while parked", TO_PARK, { .kind = DRAINING },
		  DO(DRAIN), X(""), WHOLE, BOUND, REPLAYED, R(EOD, OK, 250),
		  X("bind; replay 1; send end; relay 250; keep; "
		    "log EOD ok 250; say 421 4.3.2; close drain")),
	TALK_HELD("drained while a backend is sought", TO_BIND,
		  { .kind = DRAINING }, DO(DRAIN), X(""), GIVEN_UP(TCP, BUSY),
		  X("say 451 4.3.2; log TCP busy 451; say 421 4.3.2; "
		    "close drain")),
	TALK_HELD("drained in the replay", TO_REPLAY, { .kind = DRAINING },
		  DO(DRAIN), X(""), R(MAIL, POLICY, 550),
		  X("reset; say 451 4.3.0; log MAIL policy 451; "
		    "say 421 4.3.2; close drain")),
};

static void who_goes_leaves_nothing_half_said(void **state)
{
	(void)state;
	RUN(ends);
}

/* ---- the trace field ---- */

static const struct talk traces[] = {
	TALK_HELD("in front of a held body", HELLO, C("MAIL FROM:<a@b>\r\n"),
		  BOUND_TRACED, R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"),
		  R(RCPT, OK, 250), C("DATA\r\n"), STOP, WHOLE,
		  R(DATA, OK, 354), X("DATA; trace; send end"),
		  B("hi\r\n.\r\n")),
	TALK_HELD("for the backend that wants it, and no other", TO_BIND,
		  BOUND_TRACED, REPLAYED, X("replay 1; trace; send end"),
		  R(EOD, BUSY, 452), BOUND, REPLAYED,
		  X("quit; bind; replay 1; send end"), R(EOD, OK, 250),
		  X("relay 250; keep; log EOD ok 250")),
	TALK_HELD("again for the next one that wants it", TO_BIND, BOUND_TRACED,
		  REPLAYED, R(EOD, BUSY, 452), BOUND_TRACED, REPLAYED,
		  X("replay 1; trace; send end; quit; bind; replay 1; trace; "
		    "send end")),
	TALK_HELD("not in front of what would continue it", TO_PARK,
		  C(" hi\r\n.\r\n"), BOUND_TRACED, REPLAYED,
		  X("bind; replay 1; reset; say 550 5.6.0; log EOD ok 550")),
	TALK_SMALL("in front of one that is too large", 8, TO_PARK,
		   C("0123456789"), BOUND_TRACED, REPLAYED, C("\r\n.\r\n"),
		   X("bind; replay 1; trace; send; end")),
};

static void the_trace_field_goes_in_front_of_what_is_held(void **state)
{
	(void)state;
	RUN(traces);
}

/* ---- what the worker and the log are told ---- */

static const struct talk at_hold = TALK_HELD("", TO_HOLD);
static const struct talk at_bind = TALK_HELD("", TO_BIND);
static const struct talk at_retry = TALK_HELD("", TO_BIND, BOUND, REPLAYED,
					      R(EOD, BUSY, 452));
static const struct talk at_data_retry = TALK_HELD("", TO_HANDOVER,
						   R(DATA, BUSY, 452));
static const struct talk at_spill = TALK_SMALL("", 8, TO_SPILL);

static void the_log_has_the_ways_of_a_message(void **state)
{
	static const struct move rest[] = { BOUND,
					    REPLAYED,
					    R(EOD, OK, 250),
					    { .kind = END } };

	(void)state;
	model_go_to(&at_retry);
	for (const struct move *m = rest; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	assert_true(w->s.message.held);
	assert_true(w->s.message.parked);
	assert_true(w->s.message.final_retried);
	assert_int_equal(w->s.message.replays, 2);
	assert_int_equal(w->s.message.tries, 3);
	assert_int_equal(w->s.message.octets, 7);
	assert_int_equal(w->s.messages, 1);
	assert_int_equal(w->s.transactions, 1);
	assert_int_equal(stats_get(&w->stats, STATS_parked), 1);
	assert_int_equal(stats_get(&w->stats, STATS_replayed), 1);
	assert_int_equal(stats_get(&w->stats, STATS_final_retries), 1);
	assert_int_equal(stats_get(&w->stats, STATS_spilled), 0);
	assert_int_equal(stats_get(&w->stats, STATS_messages), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages_refused), 0);
	assert_int_equal(stats_get(&w->stats, STATS_recipients), 1);
	model_close();
	model_go_to(&at_spill);
	assert_int_equal(stats_get(&w->stats, STATS_spilled), 1);
	assert_int_equal(stats_get(&w->stats, STATS_parked), 0);
	assert_true(w->s.message.held);
	assert_int_equal(w->s.message.replays, 0);
	model_close();
}

static void the_search_knows_what_it_may_try_and_for_how_much(void **state)
{
	(void)state;
	model_go_to(&at_bind);
	assert_true(session_is_binding(&w->s));
	assert_true(w->s.afresh);
	assert_int_equal(w->s.tries, 1);
	assert_int_equal(w->s.size_said, 4); /* "hi" and its line end */
	model_tell(&(struct session_event){ .kind = SESSION_IN_UNBOUND,
					    .class = BUSY_BUSY,
					    .more = true });
	assert_false(w->s.afresh);
	model_close();
	model_go_to(&at_retry);
	assert_true(session_is_binding(&w->s));
	assert_false(w->s.afresh);
	model_close();
	model_go_to(&at_data_retry);
	assert_true(session_is_binding(&w->s));
	assert_false(w->s.afresh);
	model_close();
}

static void the_words_of_the_first_are_no_want_of_backends(void **state)
{
	static const struct move none = GIVEN_UP(TCP, BUSY);

	(void)state;
	model_go_to(&at_retry);
	model_move(&none, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(stats_get(&w->stats, STATS_unavailable), 0);
	assert_int_equal(stats_get(&w->stats, STATS_messages_refused), 1);
	model_close();
	model_go_to(&at_bind);
	model_move(&none, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(stats_get(&w->stats, STATS_unavailable), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages_refused), 1);
	model_close();
}

static const struct talk at_kept_data = TALK_HELD(
	"", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN, R(MAIL, OK, 250),
	C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), WHOLE, LOST);

static void a_kept_connection_that_took_the_mail_was_a_try(void **state)
{
	(void)state;
	model_go_to(&at_kept_data);
	assert_int_equal(w->s.state, SESSION_HANDOVER);
	assert_int_equal(w->s.message.tries, 2);
	model_close();
}

static void an_end_in_the_middle_aborts_whatever_is_under_way(void **state)
{
	(void)state;
	model_go_to(&at_spill);
	model_step(&(struct session_event){ .kind = SESSION_IN_EOF });
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->s.reason, STATS_CLOSE_CLIENT_CLOSED);
	assert_int_equal(w->ends_sent, 0);
	assert_int_equal(stats_get(&w->stats, STATS_messages_aborted), 1);
	model_close();
}

static const struct talk said = TALK_HELD(
	"", HELLO, C("MAIL FROM:<a@b> SIZE=500\r\n"), BOUND, R(MAIL, OK, 250),
	C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), WHOLE);

static void a_size_that_was_said_is_not_made_smaller(void **state)
{
	(void)state;
	model_go_to(&said);
	assert_int_equal(w->s.state, SESSION_HANDOVER);
	assert_int_equal(w->s.size_said, 500);
	model_close();
}

static void unread_octets_do_not_put_off_a_park(void **state)
{
	(void)state;
	model_go_to(&at_hold);
	w->env.now_ms += 1000;
	assert_false(session_defer(&w->s, &w->env));
	model_tell(&(struct session_event){ .kind = SESSION_IN_TIMEOUT });
	assert_memory_equal(w->acts, "park; ", 6);
	assert_int_equal(w->acts_len, 6);
	/* What comes then is the client's time. */
	w->env.now_ms += 180000;
	assert_true(session_defer(&w->s, &w->env));
	assert_int_equal(w->s.deadline_ms, w->env.now_ms + 180000);
	model_close();
}

static void chunks_are_left_out_of_what_is_offered(void **state)
{
	(void)state;
	model_go_to(&at_hold);
	assert_int_equal(w->s.offered,
			 SMTP_EXT_RELAYED &
				 ~(SMTP_EXT_CHUNKING | SMTP_EXT_BINARYMIME));
	assert_int_equal(w->s.need & SMTP_EXT_CHUNKING, 0);
	model_close();
}

static const struct {
	struct talk place;
	enum session_do first;
} kills[] = {
	{ TALK_HELD("", TO_HOLD), SESSION_DO_QUIT },
	{ TALK_HELD("", TO_PARK), SESSION_DO_LOG },
	{ TALK_HELD("", TO_HANDOVER), SESSION_DO_RESET },
	{ TALK_HELD("", TO_BIND), SESSION_DO_QUIT },
	{ TALK_HELD("", TO_REPLAY), SESSION_DO_RESET },
	{ TALK_HELD("", TO_RETRY), SESSION_DO_QUIT },
};

static void a_kill_before_the_end_of_data_leaves_nothing_unknown(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(kills) / sizeof(kills[0]); i++) {
		model_go_to(&kills[i].place);
		session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
		assert_int_equal(w->s.state, SESSION_CLOSED);
		assert_int_equal(w->plan.acts[0].what, kills[i].first);
		assert_false(w->s.message.unknown);
		model_close();
	}
}

/* ---- a long envelope ---- */

enum { CROWD_SIZE = 300 };

static const struct talk in_mail = TALK_HELD("", TO_MAIL);

static void an_envelope_longer_than_a_pipeline_is_replayed(void **state)
{
	static const struct move park = AFTER(1000);
	static const struct move bound = BOUND;
	static const struct move mail_taken = R(MAIL, OK, 250);
	static const struct move rcpt_taken = R(RCPT, OK, 250);
	static const struct move rcpt_refused = R(RCPT, POLICY, 550);
	static const struct move data_taken = R(DATA, OK, 354);
	unsigned good = 0;

	(void)state;
	model_go_to(&in_mail);
	for (unsigned i = 0; i < CROWD_SIZE; i++)
		model_feed("RCPT TO:<c@d>\r\n", 15);
	model_feed("DATA\r\n", 6);
	for (unsigned i = 0; i < CROWD_SIZE; i++) {
		good += i % 3 != 0;
		model_move(i % 3 == 0 ? &rcpt_refused : &rcpt_taken,
			   CUT_NOWHERE, &(size_t){ 0 });
	}
	assert_int_equal(w->s.state, SESSION_BODY);
	model_move(&park, CUT_NOWHERE, &(size_t){ 0 });
	model_feed("x\r\n.\r\n", 6);
	model_move(&bound, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.due, good + 2);
	model_move(&mail_taken, CUT_NOWHERE, &(size_t){ 0 });
	for (unsigned i = 0; i < good; i++)
		model_move(&rcpt_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->ends_sent, 0);
	model_move(&data_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->ends_sent, 1);
	model_close();
}

/* ---- every event in every state ---- */

static const struct talk places[] = {
	TALK_HELD("mail, RCPT ahead", HELLO, C(ENVELOPE), BOUND),
	TALK_HELD("rcpt due", TO_MAIL, C("RCPT TO:<c@d>\r\nNOOP\r\n")),
	TALK_HELD("DATA waits", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n")),
	TALK_HELD("DATA waits, premature", TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\nx")),
	TALK_HELD("DATA forwarded", TO_MAIL, C("RCPT TO:<c@d>\r\n"),
		  R(RCPT, POLICY, 550), C("DATA\r\n")),
	TALK_HELD("holding", TO_HOLD, C("x\r\n")),
	TALK_HELD("holding, time to park", CROWD, TO_HOLD),
	TALK_HELD("parked", TO_PARK, C("x\r\n")),
	TALK_HELD("swallowed", TO_HOLD, C("x\n")),
	TALK_HELD("handover", TO_HANDOVER),
	TALK_HELD("handover, half closed", TO_HANDOVER, OVER),
	TALK_HELD("handover, sought", TO_BIND),
	TALK_HELD("handover, sought behind faults", TO_BIND, UNBOUND(TCP, SICK),
		  UNBOUND(TCP, SICK)),
	TALK_HELD("replay", TO_REPLAY),
	TALK_HELD("replay of a kept one", TO_BIND, BOUND_AGAIN),
	TALK_HELD("replay, RCPT due", TO_REPLAY, R(MAIL, OK, 250)),
	TALK_HELD("replay, DATA due", TO_REPLAY, R(MAIL, OK, 250),
		  R(RCPT, OK, 250)),
	TALK_SMALL("spilled, DATA sent", 8, TO_SPILL),
	TALK_SMALL("spilled, sought", 8, TO_SPILL, LOST),
	TALK_SMALL("spilled, replay", 8, TO_SPILL, LOST, BOUND),
	TALK_SMALL("spilled, streaming", 8, TO_SPILL, R(DATA, OK, 354)),
	TALK_SMALL("spilled, refused", 8, TO_SPILL, R(DATA, POLICY, 554)),
	TALK_HELD("final", TO_FINAL),
	TALK_HELD("final, gone", TO_FINAL, GONE),
	TALK_HELD("retry", TO_RETRY),
	TALK_HELD("retry, replay", TO_RETRY, BOUND),
	TALK_HELD("retry, final", TO_RETRY, BOUND, REPLAYED),
};

static void every_event_is_defined_in_every_state(void **state)
{
	const unsigned all = 1u << SESSION_MAIL | 1u << SESSION_COMMAND |
			     1u << SESSION_DATA | 1u << SESSION_BODY |
			     1u << SESSION_HANDOVER | 1u << SESSION_FINAL;

	(void)state;
	assert_int_equal(
		model_every_event(places, sizeof(places) / sizeof(places[0])),
		all);
}

static void a_random_walk_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .hold = true, .max_errors = 1000 },
		{ .hold = true, .max_errors = 1000, .buffer = 7 },
		{ .hold = true, .max_errors = 1000, .body_wait_ms = -1 },
		{ .hold = true,
		  .max_errors = 1000,
		  .body_wait_ms = 100,
		  .size = 20,
		  .tries = 1,
		  .room_wait_ms = 15000 },
	};
	struct walked all = model_walk(ways, 4, 4000);

	(void)state;
	/* The walk came far enough to mean something. */
	assert_true(all.counts[STATS_messages] > 500);
	assert_true(all.counts[STATS_parked] > 500);
	assert_true(all.counts[STATS_replayed] > 500);
	assert_true(all.counts[STATS_spilled] > 100);
	assert_true(all.counts[STATS_final_retries] > 50);
	assert_true(all.longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			weir_says_354_itself_where_a_recipient_is_good),
		cmocka_unit_test(a_slow_body_gives_its_slot_back),
		cmocka_unit_test(what_may_not_pass_is_refused_at_its_end),
		cmocka_unit_test(
			a_whole_body_goes_by_data_to_the_backend_at_hand),
		cmocka_unit_test(
			a_replay_keeps_every_promise_or_delivers_nothing),
		cmocka_unit_test(a_body_too_large_to_be_held_streams),
		cmocka_unit_test(busy_at_the_end_is_tried_elsewhere_once),
		cmocka_unit_test(who_goes_leaves_nothing_half_said),
		cmocka_unit_test(the_trace_field_goes_in_front_of_what_is_held),
		cmocka_unit_test(the_log_has_the_ways_of_a_message),
		cmocka_unit_test(
			the_search_knows_what_it_may_try_and_for_how_much),
		cmocka_unit_test(
			the_words_of_the_first_are_no_want_of_backends),
		cmocka_unit_test(
			a_kept_connection_that_took_the_mail_was_a_try),
		cmocka_unit_test(
			an_end_in_the_middle_aborts_whatever_is_under_way),
		cmocka_unit_test(a_size_that_was_said_is_not_made_smaller),
		cmocka_unit_test(unread_octets_do_not_put_off_a_park),
		cmocka_unit_test(chunks_are_left_out_of_what_is_offered),
		cmocka_unit_test(
			a_kill_before_the_end_of_data_leaves_nothing_unknown),
		cmocka_unit_test(
			an_envelope_longer_than_a_pipeline_is_replayed),
		cmocka_unit_test(every_event_is_defined_in_every_state),
		cmocka_unit_test(a_random_walk_breaks_no_rule),
	};
	int failed;

	if (!model_begin())
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	model_end();
	return failed;
}
