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
 * Sessions, but for those whose bodies are held (test_session_hold.c): the
 * dialogues of session_model.h.
 */

/* ---- order of commands ---- */

static const struct talk good[] = {
	TALK("a message from greeting to QUIT", ADMIT, X("say 220"),
	     C("EHLO c.test\r\n"), X("say 250"), C("MAIL FROM:<a@b>\r\n"),
	     X("bind"), BOUND, X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250"), C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250),
	     X("RCPT TO:<c@d>; relay 250"), C("DATA\r\n"), R(DATA, OK, 354),
	     X("DATA; relay 354"), C("hi\r\n.\r\n"), X("end"), B("hi\r\n.\r\n"),
	     R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250"),
	     C("QUIT\r\n"), X("say 221 2.0.0; close quit")),
	TALK("one group, with QUIT behind it, stays in order", GROUP, X(""),
	     R(RCPT, OK, 250), R(RCPT, POLICY, 550), R(DATA, OK, 354),
	     X("relay 250; relay 550; relay 354"), C("x\r\n.\r\nQUIT\r\n"),
	     X("end"), B("x\r\n.\r\n"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; say 221 2.0.0; close quit")),
	TALK("the next MAIL may stand right behind the final dot", TO_DATA,
	     C(".\r\nMAIL FROM:<x@y>\r\n"), X("end"), B(".\r\n"),
	     R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250; bind"),
	     BOUND_AGAIN, X("MAIL FROM:<x@y>")),
	TALK("P6: all RCPTs refused, DATA refused, text behind it never runs",
	     HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<no@d>\r\nDATA\r\n"
	       "MAIL FROM:<c@d>\r\n.\r\n"),
	     BOUND, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, POLICY, 550),
	     R(DATA, POLICY, 554),
	     X("relay 550; relay 554; quit; log DATA policy 554; "
	       "say 554 5.5.0; close sync")),
	TALK("P7: RCPT refused, yet 354: a body that did not wait is refused",
	     HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<no@d>\r\nDATA\r\nbody\r\n"
	       ".\r\n"),
	     BOUND, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, POLICY, 550),
	     R(DATA, OK, 354),
	     X("relay 550; say 554 5.5.0; reset; log DATA ok 554; "
	       "close sync"),
	     B("")),
	TALK("P4: a command behind DATA is neither command nor body", TO_RCPT,
	     C("DATA\r\nRSET\r\n"), R(DATA, OK, 354),
	     X("DATA; say 554 5.5.0; reset; log DATA ok 554; close sync")),
	TALK_WHOLE("text behind a DATA that we refuse is not run", TO_MAIL,
		   C("DATA\r\nRSET\r\n.\r\n"),
		   X("say 503 5.5.1; say 554 5.5.0; quit; log DATA ok 554; "
		     "close sync")),
	TALK("a DATA that we refuse, with nothing behind it", TO_MAIL,
	     C("DATA\r\n"), X("say 503 5.5.1"), C("RCPT TO:<c@d>\r\n"),
	     X("RCPT TO:<c@d>")),
	TALK("P8: nothing is run behind QUIT", HELLO,
	     C("MAIL FROM:<a@b>\r\nQUIT\r\nRCPT TO:<b@c>\r\n"), BOUND,
	     R(MAIL, OK, 250),
	     X("bind; MAIL FROM:<a@b>; relay 250; quit; log IDLE ok 0; "
	       "say 221 2.0.0; close quit")),
	TALK_AHEAD("P9: pipelining that HELO did not offer", ADMIT,
		   C("HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"),
		   X("say 220; say 250; bind"), BOUND, R(MAIL, OK, 250),
		   X("MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 250")),
	TALK("NOOP waits for the replies before it", GROUP, LOST,
	     X("say 451 4.3.0 x3; log DATA sick 451"), C("NOOP\r\n"),
	     X("say 250 2.0.0")),
	TALK("NOOP and RSET in a group are answered in their turn", TO_MAIL,
	     C("RCPT TO:<a@b>\r\nNOOP\r\nRCPT TO:<c@d>\r\nRSET\r\n"),
	     X("RCPT TO:<a@b>"), R(RCPT, OK, 250),
	     X("relay 250; say 250 2.0.0; RCPT TO:<c@d>"), R(RCPT, BUSY, 452),
	     X("relay 452; quit; log IDLE ok 0; say 250 2.0.0")),
	TALK("without PIPELINING the backend gets one command at a time", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"
	       "DATA\r\n"),
	     BOUND_POOR, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, OK, 250),
	     X("relay 250; RCPT TO:<e@f>"), R(RCPT, OK, 250),
	     X("relay 250; DATA"), R(DATA, OK, 354), X("relay 354")),
	TALK("a second MAIL is an error, the first stands", TO_MAIL,
	     C("MAIL FROM:<x@y>\r\nRCPT TO:<c@d>\r\n"),
	     X("say 503 5.5.1; RCPT TO:<c@d>")),
	TALK("EHLO in a transaction forgets it", TO_RCPT, C("EHLO d\r\n"),
	     X("quit; log IDLE ok 0; say 250"), C("RCPT TO:<c@d>\r\n"),
	     X("say 503 5.5.1")),
	TALK("MAIL after DATA was refused begins anew", TO_RCPT, C("DATA\r\n"),
	     R(DATA, POLICY, 554),
	     X("DATA; relay 554; quit; log DATA policy 554"),
	     C("MAIL FROM:<x@y>\r\n"), X("bind")),
	TALK("who gave up after all its RCPTs were refused is logged so",
	     TO_MAIL, C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550),
	     C("RSET\r\n"),
	     X("RCPT TO:<c@d>; relay 550; quit; log RCPT policy 550; "
	       "say 250 2.0.0")),
	TALK("commands out of order", ADMIT, { .kind = SKIP },
	     C("MAIL FROM:<a@b>\r\n"), X("say 503 5.5.1"), C("EHLO c\r\n"),
	     X("say 250"), C("RCPT TO:<a@b>\r\n"), X("say 503 5.5.1"),
	     C("DATA\r\n"), X("say 503 5.5.1"), C("VRFY x\r\n"),
	     X("say 252 2.5.0"), C("HELP\r\n"), X("say 214 2.0.0"),
	     C("EXPN x\r\n"), X("say 502 5.5.1"), C("STARTTLS\r\n"),
	     X("say 502 5.5.1")),
};

static void replies_keep_their_order(void **state)
{
	(void)state;
	RUN(good);
}

static const struct talk in_mail = TALK("", TO_MAIL);

static void no_more_is_pipelined_than_the_backend_conversation_holds(void **v)
{
	const struct session_event ok = { .kind = SESSION_IN_REPLY,
					  .stage = BUSY_STAGE_RCPT,
					  .code = 250,
					  .data = "250 ok\r\n",
					  .len = 8 };
	unsigned sent = 0;

	(void)v;
	model_open(&in_mail);
	for (const struct move *m = in_mail.moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	for (unsigned i = 0; i < 500; i++)
		model_feed("RCPT TO:<c@d>\r\n", 15);
	assert_int_equal(w->s.due, UPSTREAM_PIPELINE_MAX);
	while (w->s.due > 0) {
		model_tell(&ok);
		sent++;
	}
	assert_int_equal(sent, 500);
	assert_int_equal(w->s.message.rcpts_ok, 500);
	model_close();
}

/* ---- BDAT ---- */

static const struct talk chunks[] = {
	TALK_WITH("no DATA behind a chunk that was refused", HOW(.size = 5),
		  TO_RCPT, C("BDAT 9\r\n123456789DATA\r\n"),
		  X("say 552 5.3.4; say 503 5.5.1")),
	TALK("chunks that are pipelined behind RCPT", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 3\r\nabcBDAT 4 LAST\r\n.\r\n.RSET\r\n"),
	     X("RCPT TO:<c@d>; BDAT 3; BDAT 4 LAST"), B("abc.\r\n."),
	     R(RCPT, OK, 250), R(DATA, OK, 250), R(EOD, OK, 250),
	     X("relay 250; relay 250; relay 250; keep; log EOD ok 250; "
	       "say 250 2.0.0")),
	TALK("BDAT 0 LAST ends a message", TO_RCPT, C("BDAT 0 LAST\r\n"),
	     X("BDAT 0 LAST"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250")),
	TALK("a chunk holds anything: only the count ends it", TO_RCPT,
	     C("BDAT 37 LAST\r\n\r\n.\r\nMAIL FROM:<a@example.test>\r\nRSET"),
	     X("BDAT 37 LAST"),
	     B("\r\n.\r\nMAIL FROM:<a@example.test>\r\nRSET"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250")),
	TALK("BDAT before MAIL: refused, its octets are no commands", HELLO,
	     C("BDAT 6\r\nRSET\r\nNOOP\r\n"),
	     X("say 503 5.5.1; say 250 2.0.0")),
	TALK("BDAT before RCPT: refused, and the next one too", TO_MAIL,
	     C("BDAT 6\r\nRSET\r\nBDAT 2 LAST\r\nxy"),
	     X("say 503 5.5.1; say 503 5.5.1; quit; log DATA ok 503"), B("")),
	TALK("no RCPT was good: no chunk goes to the backend", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550),
	     C("BDAT 2 LAST\r\nxy"),
	     X("RCPT TO:<c@d>; relay 550; say 503 5.5.1; quit; "
	       "log DATA ok 503"),
	     B("")),
	TALK("a refused chunk stops those behind it", TO_RCPT,
	     C("BDAT 2\r\nxyBDAT 6\r\nQUIT\r\n"), X("BDAT 2; BDAT 6"),
	     R(DATA, POLICY, 552), R(DATA, OK, 250), X("relay 552; relay 250"),
	     C("BDAT 4 LAST\r\nlast"),
	     X("say 503 5.5.1; quit; log DATA ok 503"), C("RSET\r\n"),
	     X("say 250 2.0.0")),
	TALK("refused while the last one comes: its end never leaves", TO_RCPT,
	     C("BDAT 2\r\nxyBDAT 4 LAST\r\nla"), X("BDAT 2; BDAT 4 LAST"),
	     R(DATA, POLICY, 552), X("relay 552; reset"), C("stNOOP\r\n"),
	     X("say 503 5.5.1; log DATA policy 503; say 250 2.0.0")),
	TALK("the last one taken though one before it was refused: no 250",
	     TO_RCPT, C("BDAT 2\r\nxyBDAT 1 LAST\r\nz"), { .kind = SKIP },
	     R(DATA, POLICY, 552), R(EOD, OK, 250),
	     X("relay 552; reset; say 451 4.4.2; log EOD ok 451")),
	TALK("a chunk refused in its middle: the client hears at its end",
	     TO_RCPT, C("BDAT 4 LAST\r\nab"), { .kind = SKIP },
	     R2(EOD, POLICY, 552), X("reset"), C("cdNOOP\r\n"),
	     X("say 552; log EOD policy 552; say 250 2.0.0")),
	TALK("a 250 in the middle of a chunk is no reply to it", TO_RCPT,
	     C("BDAT 4 LAST\r\nab"), { .kind = SKIP }, R(EOD, OK, 250),
	     X("reset"), C("cd"), X("say 451 4.3.0; log EOD ok 451")),
	TALK("421 in the middle of a chunk, for itself", TO_RCPT,
	     C("BDAT 4\r\nab"), { .kind = SKIP }, R(DATA, DRAIN, 421),
	     X("reset"), C("cd"), X("say 451"), C("RSET\r\n"),
	     X("log EOD drain 451; say 250 2.0.0")),
	TALK("421 for an earlier command in the middle of a chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nBDAT 4\r\nab"),
	     { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.3.0"), C("cdRSET\r\n"),
	     X("say 451 4.3.0; log EOD drain 451; say 250 2.0.0")),
	TALK("421 about the client in the middle of a chunk is obeyed", TO_RCPT,
	     C("BDAT 4\r\nab"), { .kind = SKIP }, R(DATA, POLICY, 421),
	     X("reset"), C("cdRSET\r\n"),
	     X("say 421; log EOD policy 421; close backend_421")),
	TALK("the backend is lost in the middle of a chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 4\r\nab"), { .kind = SKIP }, LOST,
	     X("say 451 4.3.0"), C("cd"), X("say 451 4.3.0"),
	     C("BDAT 1\r\nxBDAT 1 LAST\r\ny"),
	     X("say 451 4.3.0; say 451 4.3.0; log EOD sick 451")),
	TALK("the backend is lost between chunks", TO_RCPT, C("BDAT 2\r\nab"),
	     R(DATA, OK, 250), { .kind = SKIP }, LOST, X(""),
	     C("BDAT 1 LAST\r\ny"), X("say 451 4.3.0; log TCP sick 451")),
	TALK("the backend is lost behind the last chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\ny"), { .kind = SKIP }, LOST,
	     X("say 451 4.4.2 x2; log EOD sick 451")),
	TALK("BDAT and DATA do not mix", TO_RCPT, C("BDAT 1\r\nx"),
	     R(DATA, OK, 250), { .kind = SKIP }, C("DATA\r\n"),
	     X("say 503 5.5.1"), C("RCPT TO:<x@y>\r\n"), X("say 503 5.5.1"),
	     C("BDAT 1 LAST\r\nx"), X("BDAT 1 LAST")),
	TALK("BINARYMIME wants BDAT", HELLO,
	     C("MAIL FROM:<a@b> BODY=BINARYMIME\r\n"), BOUND, R(MAIL, OK, 250),
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), { .kind = SKIP },
	     C("DATA\r\n"), X("say 503 5.5.1")),
	TALK("a size of more than 64 bits", TO_RCPT,
	     C("BDAT 18446744073709551616\r\n"),
	     X("say 501 5.5.4; quit; log IDLE ok 0; close lost_count")),
	TALK("a negative size", HELLO, C("BDAT -1\r\nRSET\r\n"),
	     X("say 501 5.5.4; close lost_count")),
	TALK("the greatest of sizes, and the end", TO_RCPT,
	     C("BDAT 18446744073709551615\r\nabc"), OVER,
	     X("BDAT 18446744073709551615; reset; log EOD ok 0; "
	       "abort client_closed"),
	     B("abc")),
	TALK_WITH("sizes that add up to more than allowed", HOW(.size = 5),
		  TO_RCPT, C("BDAT 3\r\nabc"), R(DATA, OK, 250),
		  { .kind = SKIP }, C("BDAT 18446744073709551615\r\nabc"),
		  X(""), GONE, X("reset; log DATA ok 552; abort client_reset")),
	TALK_WITH("a chunk too many, swallowed", HOW(.size = 5), TO_RCPT,
		  C("BDAT 3\r\nabcBDAT 3 LAST\r\ndef"), X("BDAT 3"),
		  R(DATA, OK, 250),
		  X("relay 250; say 552 5.3.4; quit; log DATA ok 552"),
		  B("abc")),
	TALK("the backend is lost while a refused chunk goes by", TO_MAIL,
	     C("BDAT 2\r\nx"), LOST, X(""), C("yRSET\r\n"),
	     X("say 503 5.5.1; log DATA ok 503; say 250 2.0.0")),
	TALK("V28c: four of five octets, then the end", TO_RCPT,
	     C("BDAT 5 LAST\r\nabcd"), OVER,
	     X("BDAT 5 LAST; reset; log EOD ok 0; abort client_closed")),
	TALK_WITH("CHUNKING that was not offered",
		  HOW(.offer = SMTP_EXT_8BITMIME | SMTP_EXT_BINARYMIME), HELLO,
		  C("BDAT 2\r\nxy"), X("say 502 5.5.1"),
		  C("MAIL FROM:<> BODY=BINARYMIME\r\n"), X("say 555 5.5.4")),
	TALK("a backend without PIPELINING gets chunks in turn", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1\r\nx"
	       "BDAT 1 LAST\r\ny"),
	     BOUND_POOR, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, OK, 250),
	     X("relay 250; BDAT 1"), R(DATA, OK, 250),
	     X("relay 250; BDAT 1 LAST"), B("xy")),
	TALK_WITH("refused chunks are errors, and they are counted",
		  HOW(.max_errors = 1), HELLO, C("BDAT 1\r\nxBDAT 1\r\ny"),
		  X("say 503 5.5.1; say 421 4.7.0; close errors")),
};

static void chunks_are_counted_relayed_or_swallowed(void **state)
{
	(void)state;
	RUN(chunks);
}

/* ---- DATA ---- */

static const struct talk bodies[] = {
	TALK("an early 452 is told at the body's end", TO_DATA, C("some\r\n"),
	     EARLY(BUSY, 452), X("reset"), C("more\r\n.\r\nNOOP\r\n"),
	     X("say 452; log EOD busy 452; say 250 2.0.0")),
	TALK("an early 421 is 451 to the client, on each line", TO_DATA,
	     C("some\r\n"), SAID(EARLY, IDLE, DRAIN, 421, "421-a\r\n421 b\r\n"),
	     X("reset"), C("more\r\n.\r\n"), X("say 451; log EOD drain 451")),
	TALK("an early 421 about the client is passed and obeyed", TO_DATA,
	     C("some\r\n"), EARLY(POLICY, 421), C(".\r\n"),
	     X("reset; say 421; log EOD policy 421; close backend_421")),
	TALK("an early 250 is no reply to the body", TO_DATA, C("some\r\n"),
	     EARLY(OK, 250), X("reset"), C("more\r\n.\r\n"),
	     X("say 451 4.3.0; log EOD ok 451")),
	TALK("the backend is lost in mid-body", TO_DATA, C("some\r\n"), LOST,
	     X(""), C("more\r\n.\r\nRSET\r\n"),
	     X("say 451 4.3.0; log EOD sick 451; say 250 2.0.0")),
	TALK("the backend is lost after the end: nobody knows", TO_DATA,
	     C("x\r\n.\r\n"), LOST, X("end; say 451 4.4.2; log EOD sick 451")),
	TALK("the backend is lost before 354", TO_RCPT, C("DATA\r\n"), LOST,
	     X("DATA; say 451 4.3.0; log DATA sick 451")),
	TALK("lost before 354, and the body did not wait", TO_RCPT,
	     C("DATA\r\nx\r\n"), LOST,
	     X("DATA; say 451 4.3.0; log DATA sick 451; say 554 5.5.0; "
	       "close sync")),
	TALK("2xx to DATA is out of step", TO_RCPT, C("DATA\r\n"),
	     R(DATA, OK, 250),
	     X("DATA; reset; say 451 4.3.0; log DATA ok 451")),
	TALK("354 to the end of data is out of step", TO_DATA, C(".\r\n"),
	     R(EOD, OK, 354), X("end; reset; say 451 4.4.2; log EOD ok 451")),
	TALK("354 to RCPT is out of step", GROUP, { .kind = SKIP },
	     R(RCPT, OK, 354), X("reset; say 451 4.3.0 x3; log DATA ok 451")),
	TALK("the final reply is passed word for word", TO_DATA, C(".\r\n"),
	     R2(EOD, POLICY, 554),
	     X("end; relay 554; keep; log EOD policy 554")),
	TALK("busy at the end: passed, and the connection goes", TO_DATA,
	     C(".\r\n"), R(EOD, BUSY, 452),
	     X("end; relay 452; quit; log EOD busy 452")),
	TALK("421 at the end, of a backend that leaves", TO_DATA, C(".\r\n"),
	     R(EOD, DRAIN, 421), X("end; relay 451; quit; log EOD drain 451")),
	TALK("421 at the end, about the client", TO_DATA, C(".\r\n"),
	     R(EOD, SESSION, 421),
	     X("end; relay 421; quit; log EOD session 421; "
	       "close backend_421")),
	TALK("the client ends in mid-body: nothing is stored", TO_DATA,
	     C("x\r\n"), OVER, X("reset; log EOD ok 0; abort client_closed")),
	TALK("the client resets in mid-body", TO_DATA, C("x\r\n."), GONE,
	     X("reset; log EOD ok 0; abort client_reset")),
	TALK("half closed after the dot: it reads its reply", TO_DATA,
	     C(".\r\n"), OVER, X("end"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; close client_closed")),
	TALK("half closed after QUIT after the dot", TO_DATA,
	     C(".\r\nQUIT\r\n"), OVER, R(EOD, OK, 250),
	     X("end; relay 250; keep; log EOD ok 250; say 221 2.0.0; "
	       "close quit")),
	TALK("gone after the dot: the answer is awaited all the same", TO_DATA,
	     C(".\r\n"), GONE, X("end"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; close client_reset")),
	TALK("gone after the dot, and the backend lost", TO_DATA, C(".\r\n"),
	     GONE, LOST,
	     X("end; say 451 4.4.2; log EOD sick 451; close client_reset")),
	TALK("the client ends before 354", TO_RCPT, C("DATA\r\n"), OVER,
	     X("DATA; reset; log DATA ok 0; close client_closed")),
	TALK("the client ends while MAIL waits", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), OVER,
	     X("bind; quit; log TCP ok 0; close client_closed")),
	TALK("the client is gone while MAIL is answered", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, GONE,
	     X("bind; MAIL FROM:<a@b>; quit; log MAIL ok 0; "
	       "abort client_reset")),
	TALK("the client ends with half a line", HELLO, C("NOO"), OVER,
	     X("close client_closed")),
	TALK("the client ends in a transaction", TO_RCPT, OVER,
	     X("quit; log IDLE ok 0; close client_closed")),
	TALK("gone with replies due and no PIPELINING: reset", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND_POOR,
	     R(MAIL, OK, 250), { .kind = SKIP }, GONE,
	     X("reset; log IDLE ok 0; abort client_reset")),
	TALK_WITH("a body as large as allowed", HOW(.size = 7), TO_DATA,
		  C("12345\r\n.\r\n"), X("end")),
	TALK_WITH("an octet more", HOW(.size = 7), TO_DATA,
		  C("123456\r\n.\r\nNOOP\r\n"),
		  X("reset; say 552 5.3.4; log EOD ok 552; say 250 2.0.0")),
	TALK_WITH("SIZE too large is refused early, and no error",
		  HOW(.size = 7, .max_errors = 1), HELLO,
		  C("MAIL FROM:<> SIZE=8\r\nMAIL FROM:<> SIZE=8\r\n"
		    "MAIL FROM:<> SIZE=8\r\nMAIL FROM:<> SIZE=7\r\n"),
		  X("say 552 5.3.4; say 552 5.3.4; say 552 5.3.4; bind")),
	TALK("timeouts in mid-body", TO_DATA, C("x"), AFTER(179999), X(""),
	     AFTER(1),
	     X("say 421 4.4.2; reset; log EOD ok 0; "
	       "close client_timeout")),
};

static void bodies_arrive_whole_or_not_at_all(void **state)
{
	(void)state;
	RUN(bodies);
}

/* ---- tests/data/smuggling.tsv ---- */

static const struct talk in_data = TALK("", TO_DATA);
static const struct talk in_hold = TALK_WITH("", HOW(.hold = true), TO_RCPT,
					     C("DATA\r\n"), STOP);

static void smuggle(const struct talk *place, const struct vector *v, long cut)
{
	const struct move last = { .kind = CLIENT,
				   .text = "\r\n.\r\n",
				   .len = 5 };
	const struct move noop = { .kind = CLIENT,
				   .text = "NOOP\r\n",
				   .len = 6 };
	const struct move go_on = R(DATA, OK, 354);
	const char *heard = place->knobs.hold
				    ? "quit; say 550 5.6.11; log EOD ok 550"
				    : "reset; say 550 5.6.11; log EOD ok 550";
	size_t said = 0;

	model_go_to(place);
	w->name = v->id;
	model_feed("body", 4);
	model_move(&v->octets, cut, &said);
	if (!v->ends)
		model_move(&last, cut, &said);
	if (v->refused) {
		assert_int_equal(w->ends_sent, 0);
		model_expect(&(struct move){ .text = heard }, cut);
		model_move(&noop, cut, &said);
		model_expect(&(struct move){ .text = "say 250 2.0.0" }, cut);
	} else {
		if (place->knobs.hold)
			model_move(&go_on, cut, &said);
		assert_int_equal(w->ends_sent, 1);
		assert_int_equal(w->s.state, SESSION_FINAL);
	}
	assert_int_equal(w->surprises, 0);
	model_close();
}

static void smuggle_every_way(const struct vector *v)
{
	long len = (long)v->octets.len;

	for (long cut = CUT_EVERYWHERE; cut < len + 5; cut++) {
		smuggle(&in_data, v, cut);
		smuggle(&in_hold, v, cut);
	}
}

static void smuggling_vectors_reach_no_backend_as_a_message(void **state)
{
	(void)state;
	assert_int_equal(model_vectors(smuggle_every_way), 22);
}

/* ---- the trace field ---- */

#define TO_TRACED                                                              \
	HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_TRACED, R(MAIL, OK, 250),       \
		C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), STOP

static const struct talk traces[] = {
	TALK("in front of a body, when it comes", TO_TRACED, C("DATA\r\n"),
	     R(DATA, OK, 354), X("DATA; relay 354"), C("hi"), X("trace"),
	     C("\r\n.\r\n"), X("end"), B("hi\r\n.\r\n")),
	TALK("in the first chunk, which is announced as that much larger",
	     TO_TRACED, C("bdat 3\r\nabcBDAT 0\r\nBDAT 2 LAST\r\nde"),
	     X("BDAT 103; trace; BDAT 0; BDAT 2 LAST"), B("abcde"),
	     R(DATA, OK, 250), R(DATA, OK, 250), R(EOD, OK, 250),
	     X("relay 250; relay 250; relay 250; keep; log EOD ok 250")),
	TALK("in the only chunk, which is empty", TO_TRACED,
	     C("BDAT 0 last\r\n"), X("BDAT 100 LAST; trace"), B(""),
	     R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250")),
	TALK("in the first chunk that goes out", TO_MAIL, C("RSET\r\n"), STOP,
	     C("MAIL FROM:<a@b>\r\n"), BOUND_TRACED, R(MAIL, OK, 250), STOP,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx"),
	     X("RCPT TO:<c@d>; BDAT 101 LAST; trace"), B("x")),
	TALK_WITH("a chunk too large by itself is still refused",
		  HOW(.size = 50), TO_TRACED, C("BDAT 50\r\n"),
		  X("BDAT 150; trace")),
	TALK("a chunk that no count could hold with it", TO_TRACED,
	     C("BDAT 18446744073709551600\r\nx"), X(""), OVER,
	     X("reset; log DATA ok 552; abort client_closed")),
	TALK("for the backend that has the MAIL, and once", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 452), BOUND_TRACED,
	     R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), STOP,
	     C("DATA\r\n"), R(DATA, OK, 354), C("x\r\n.\r\n"),
	     X("DATA; relay 354; trace; end")),
	TALK("for each message over a kept connection", TO_TRACED,
	     C("BDAT 1 LAST\r\nx"), R(EOD, OK, 250),
	     X("BDAT 101 LAST; trace; relay 250; keep; log EOD ok 250"),
	     C("MAIL FROM:<a@b>\r\n"),
	     DO_WITH(BOUND, .ext = ALL_EXT, .pipelining = true, .reused = true,
		     .trace_len = 7),
	     R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), STOP,
	     C("BDAT 1 LAST\r\nx"), X("BDAT 8 LAST; trace"), B("x")),
	TALK("a body that would continue it is refused", TO_TRACED,
	     C("DATA\r\n"), R(DATA, OK, 354), STOP, C(" by me; today\r\n"),
	     X("reset"), C(".\r\n"), X("say 550 5.6.0; log EOD ok 550"),
	     C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK("a chunk that would continue it ends the session", TO_TRACED,
	     C("BDAT 9 LAST\r\n"), STOP, C("\tby me\r\n\r\n"),
	     X("say 550 5.6.0; reset; log EOD ok 550; close sync"), B("")),
	TALK("white space behind the first line is nobody's business",
	     TO_TRACED, C("BDAT 4\r\na\r\nbBDAT 2 LAST\r\n c"),
	     X("BDAT 104; trace; BDAT 2 LAST"), B("a\r\nb c")),
	TALK("without a field any line may be the first", TO_RCPT,
	     C("DATA\r\n"), R(DATA, OK, 354), STOP, C(" x\r\n.\r\n"), X("end"),
	     B(" x\r\n.\r\n")),
	TALK("a body refused at its first octets goes without", TO_TRACED,
	     C("DATA\r\n"), R(DATA, OK, 354), STOP, C("\n.\r\n"), OVER,
	     X("reset; log EOD ok 0; abort client_closed"), B("")),
};

static void the_trace_field_is_sent_once_a_message_and_counted(void **state)
{
	(void)state;
	RUN(traces);
}

/* ---- failover ---- */

#define TWO_BUSY   UNBOUND(GREET, BUSY), UNBOUND(TCP, MAYBE)
#define EIGHT_BUSY TWO_BUSY, TWO_BUSY, TWO_BUSY, TWO_BUSY

static const struct talk failovers[] = {
	TALK("a busy greeting, then another backend", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), UNBOUND(GREET, BUSY), BOUND,
	     R(MAIL, OK, 250), X("bind; bind; MAIL FROM:<a@b>; relay 250")),
	TALK("three tries and no more", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     UNBOUND(GREET, SICK), UNBOUND(EHLO, MISCONF), UNBOUND(TCP, SICK),
	     X("bind; bind; bind; say 451 4.3.2; log TCP sick 451"),
	     C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK_WITH("who has no slot is none of the tries", HOW(.tries = 1),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), UNBOUND(GREET, BUSY),
		  UNBOUND(TCP, MAYBE), UNBOUND(GREET, CAP),
		  UNBOUND(GREET, DRAIN), X("bind; bind; bind; bind; bind"),
		  UNBOUND(GREET, SICK), X("say 451 4.3.2; log GREET sick 451")),
	TALK("not even those are tried for ever", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), EIGHT_BUSY, EIGHT_BUSY, EIGHT_BUSY,
	     EIGHT_BUSY, STOP, C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK("nor beyond the budget, where there is no room to wait", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), AFTER(19999), UNBOUND(GREET, BUSY),
	     X("bind; bind"), AFTER(1),
	     X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK_WITH("the room's time comes on top of it",
		  HOW(.room_wait_ms = 15000), HELLO, C("MAIL FROM:<a@b>\r\n"),
		  AFTER(34999), X("bind"), AFTER(1),
		  X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK_WITH("busy ones are tried as long as one may wait in it",
		  HOW(.room_wait_ms = 60000), HELLO, C("MAIL FROM:<a@b>\r\n"),
		  AFTER(59999), UNBOUND(GREET, BUSY), X("bind; bind"), AFTER(1),
		  UNBOUND(GREET, BUSY), X("say 451 4.3.2; log GREET busy 451")),
	TALK_WITH("a fault is not, behind the budget",
		  HOW(.room_wait_ms = 60000), HELLO, C("MAIL FROM:<a@b>\r\n"),
		  AFTER(20000), UNBOUND(GREET, SICK),
		  X("bind; say 451 4.3.2; log GREET sick 451")),
	TALK("none to be had", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     GIVEN_UP(TCP, BUSY), X("bind; say 451 4.3.2; log TCP busy 451")),
	TALK("the budget, while one connects", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     AFTER(19999), X("bind"), AFTER(1),
	     X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK("the budget is for all tries together", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), AFTER(15000), UNBOUND(TCP, SICK),
	     AFTER(4999), X("bind; bind"), AFTER(1),
	     X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK("a verdict in the greeting is passed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(POLICY, 554),
	     X("bind; say 554; log GREET policy 554")),
	TALK("a busy one is not, when it was the last", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(BUSY, 421),
	     X("bind; say 451 4.3.2; log GREET busy 451")),
	TALK("421 about the client in the greeting is passed and obeyed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(POLICY, 421),
	     X("bind; say 421; log GREET policy 421; close backend_421")),
	TALK("a backend that offers less than the client uses", HELLO,
	     C("MAIL FROM:<a@b> SMTPUTF8\r\n"),
	     DO_WITH(BOUND, .ext = SMTP_EXT_PIPELINING), X("bind; quit; bind")),
	TALK("BUSY to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, BUSY, 452), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("MAYBE to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, MAYBE, 451), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("CAP to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, CAP, 421), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("DRAIN to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, DRAIN, 421), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("MISCONF to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, R(MAIL, MISCONF, 530),
	     X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("SICK to MAIL is passed", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, SICK, 451),
	     X("bind; MAIL FROM:<a@b>; relay 451; quit; log MAIL sick 451")),
	TALK("POLICY to MAIL is passed, the backend is clean", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, POLICY, 550),
	     X("bind; MAIL FROM:<a@b>; relay 550; keep; "
	       "log MAIL policy 550")),
	TALK("421 about the client to MAIL is passed and obeyed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, SESSION, 421),
	     X("bind; MAIL FROM:<a@b>; relay 421; quit; "
	       "log MAIL session 421; close backend_421")),
	TALK_WITH("busy, and none left to try: its own words", HOW(.tries = 1),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 452),
		  X("bind; MAIL FROM:<a@b>; relay 452; quit; "
		    "log MAIL busy 452")),
	TALK_WITH("421 of a busy one, none left", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R2(MAIL, BUSY, 421),
		  X("bind; MAIL FROM:<a@b>; relay 451; quit; "
		    "log MAIL busy 451")),
	TALK_WITH("busy is never for ever", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 552),
		  X("bind; MAIL FROM:<a@b>; quit; say 451 4.3.2; "
		    "log MAIL busy 451")),
	TALK_WITH("MISCONF, none left: our own words", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, MISCONF, 530),
		  X("bind; MAIL FROM:<a@b>; quit; say 451 4.3.2; "
		    "log MAIL misconf 451")),
	TALK("lost at MAIL: another one", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, LOST, BOUND, LOST, BOUND, LOST,
	     X("bind; MAIL FROM:<a@b>; bind; MAIL FROM:<a@b>; bind; "
	       "MAIL FROM:<a@b>; say 451 4.3.2; log MAIL sick 451")),
	TALK_WITH("a kept connection that is lost costs no try",
		  HOW(.tries = 1), HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN,
		  LOST, BOUND, R(MAIL, OK, 250),
		  X("bind; MAIL FROM:<a@b>; bind; MAIL FROM:<a@b>; "
		    "relay 250")),
	TALK_WITH("a kept connection that has served enough", HOW(.tries = 1),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN,
		  R(MAIL, SESSION, 421), BOUND,
		  X("bind; MAIL FROM:<a@b>; quit; bind; MAIL FROM:<a@b>")),
	TALK("354 to MAIL is no reply at all", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, R(MAIL, OK, 354), X("bind; MAIL FROM:<a@b>; reset; bind")),
	TALK("words before the reply to MAIL", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, EARLY(OK, 250), X("bind; MAIL FROM:<a@b>; reset; bind")),
	TALK("never after RCPT: 451 until the client begins anew", TO_RCPT,
	     LOST, X(""), C("RCPT TO:<e@f>\r\nNOOP\r\nDATA\r\n"),
	     X("say 451 4.3.0; say 250 2.0.0; say 451 4.3.0; "
	       "log TCP sick 451"),
	     C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK("MAIL after a broken transaction", TO_RCPT, LOST,
	     C("MAIL FROM:<a@b>\r\n"), X("log TCP sick 451; bind")),
	TALK("lost after MAIL: DATA draws 451 as its RCPT did", TO_MAIL, LOST,
	     C("RCPT TO:<c@d>\r\n"), X("say 451 4.3.0"), C("DATA\r\n"),
	     X("say 451 4.3.0; log TCP sick 451")),
	TALK("421 at TO_RCPT, of a backend that leaves", GROUP,
	     { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.3.0 x2; log DATA drain 451"),
	     C("RSET\r\n"), X("say 250 2.0.0")),
	TALK("421 at RCPT alone", TO_MAIL, C("RCPT TO:<c@d>\r\n"),
	     R(RCPT, BUSY, 421), X("RCPT TO:<c@d>; relay 451; reset"),
	     C("RSET\r\n"), X("log RCPT busy 451; say 250 2.0.0")),
	TALK("421 about the client at RCPT is passed and obeyed", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 421),
	     X("RCPT TO:<c@d>; relay 421; quit; log RCPT policy 421; "
	       "close backend_421")),
	TALK("421 at DATA", TO_RCPT, C("DATA\r\n"), R(DATA, DRAIN, 421),
	     X("DATA; relay 451; quit; log DATA drain 451")),
	TALK("421 about the client at DATA", TO_RCPT, C("DATA\r\n"),
	     R(DATA, SESSION, 421),
	     X("DATA; relay 421; reset; log DATA session 421; "
	       "close backend_421")),
	TALK("421 between commands breaks the transaction", TO_RCPT,
	     EARLY(DRAIN, 421), X("reset"), C("DATA\r\n"),
	     X("say 451 4.3.0; log IDLE drain 451")),
};

static void failover_is_hidden_and_never_after_a_reply(void **state)
{
	(void)state;
	RUN(failovers);
}

/* ---- behind MAIL ---- */

static const struct talk aheads[] = {
	TALK_AHEAD("an envelope in one burst", HELLO, C(ENVELOPE), X("bind"),
		   BOUND, X(SENT), R(MAIL, OK, 250), X("relay 250"),
		   R(RCPT, OK, 250), R(RCPT, POLICY, 550), R(DATA, OK, 354),
		   X("relay 250; relay 550; relay 354"), C("hi\r\n.\r\n"),
		   X("end"), B("hi\r\n.\r\n"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250")),
	TALK_AHEAD("the next message's envelope behind the final dot", TO_DATA,
		   C(".\r\n" ENVELOPE), X("end"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250; bind"), BOUND_AGAIN,
		   X(SENT), R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
		   R(RCPT, OK, 250), R(DATA, OK, 354), STOP, C(".\r\n"),
		   X("end")),
	TALK_AHEAD("MAIL refused: what went ahead is answered here, in order",
		   HELLO, C(ENVELOPE), BOUND, X("bind; " SENT),
		   R(MAIL, POLICY, 550),
		   X("relay 550; reset; log MAIL policy 550; say 503 5.5.1; "
		     "say 503 5.5.1; say 503 5.5.1"),
		   C("NOOP\r\n"), X("say 250 2.0.0"), C("MAIL FROM:<a@b>\r\n"),
		   X("bind")),
	TALK_AHEAD_WHOLE("MAIL refused: a body that did not wait is not run",
			 HELLO, C(ENVELOPE "RSET\r\n.\r\n"), BOUND,
			 X("bind; " SENT), R(MAIL, POLICY, 550),
			 X("relay 550; reset; log MAIL policy 550; "
			   "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1; "
			   "say 554 5.5.0; close sync")),
	TALK_AHEAD("MAIL refused and no DATA went ahead: parted in good order",
		   HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND,
		   R(MAIL, POLICY, 550),
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 550; quit; "
		     "log MAIL policy 550; say 503 5.5.1")),
	TALK_AHEAD_WITH("the answers to a refused envelope are no errors",
			HOW(.max_errors = 2), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, POLICY, 550),
			X("bind; " SENT "; relay 550; reset; "
			  "log MAIL policy 550; say 503 5.5.1; say 503 5.5.1; "
			  "say 503 5.5.1"),
			C("RCPT TO:<c@d>\r\n"), X("say 503 5.5.1")),
	TALK_AHEAD_WITH("but what comes behind a command of its own is one",
			HOW(.max_errors = 2), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, POLICY, 550), { .kind = SKIP }, C("NOOP\r\n"),
			X("say 250 2.0.0"), C("DATA\r\n"), X("say 503 5.5.1"),
			C("DATA\r\n"), X("say 503 5.5.1"), C("DATA\r\n"),
			X("say 421 4.7.0; close errors")),
	TALK_AHEAD("421 about the client to MAIL is passed and obeyed", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, SESSION, 421),
		   X("bind; " SENT "; relay 421; reset; log MAIL session 421; "
		     "close backend_421")),
	TALK_AHEAD_WITH("another backend gets it all anew, counted once",
			HOW(.recipient_rate = 2), HELLO, C(ENVELOPE), BOUND,
			X("bind; " SENT), R(MAIL, BUSY, 452), X("reset; bind"),
			BOUND, X(SENT), R(MAIL, OK, 250), X("relay 250"),
			R(RCPT, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354),
			C(".\r\n"), R(EOD, OK, 250),
			X("relay 250; relay 250; relay 354; end; relay 250; "
			  "keep; log EOD ok 250"),
			C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND_AGAIN,
			R(MAIL, OK, 250),
			X("bind; MAIL FROM:<a@b>; relay 250; say 450 4.7.1")),
	TALK_AHEAD("another backend, without PIPELINING: one by one", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, BUSY, 452),
		   X("bind; " SENT "; reset; bind"), BOUND_POOR,
		   X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),
		   X("relay 250; RCPT TO:<c@d>"), R(RCPT, OK, 250),
		   X("relay 250; RCPT TO:<e@f>"), R(RCPT, OK, 250),
		   X("relay 250; DATA"), R(DATA, OK, 354), X("relay 354")),
	TALK_AHEAD("the second one has PIPELINING, the first has not", HELLO,
		   C(ENVELOPE), BOUND_POOR, X("bind; MAIL FROM:<a@b>"),
		   R(MAIL, BUSY, 452), X("quit; bind"), BOUND, X(SENT),
		   R(MAIL, OK, 250), X("relay 250")),
	TALK_AHEAD_WITH("busy, and none left to try: its own words",
			HOW(.tries = 1), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, BUSY, 452),
			X("bind; " SENT "; relay 452; reset; "
			  "log MAIL busy 452; say 503 5.5.1; say 503 5.5.1; "
			  "say 503 5.5.1")),
	TALK_AHEAD("lost before MAIL's reply, each of them", HELLO, C(ENVELOPE),
		   BOUND, LOST, X("bind; " SENT "; bind"), BOUND, LOST, BOUND,
		   LOST,
		   X(SENT "; bind; " SENT "; say 451 4.3.2; log MAIL sick 451; "
			  "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1")),
	TALK_AHEAD("lost when the budget is used up", HELLO, C(ENVELOPE), BOUND,
		   AFTER(20000), LOST,
		   X("bind; " SENT "; say 451 4.3.2; log MAIL sick 451; "
		     "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1")),
	TALK_AHEAD("lost right after MAIL's reply: 451 for each line", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, OK, 250), LOST,
		   X("bind; " SENT "; relay 250; say 451 4.3.0 x3; "
		     "log DATA sick 451"),
		   C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_AHEAD_WITH("a kept connection that is lost costs no try",
			HOW(.tries = 1, .recipient_rate = 2), HELLO,
			C(ENVELOPE), BOUND_AGAIN, LOST,
			X("bind; " SENT "; bind"), BOUND, R(MAIL, OK, 250),
			X(SENT "; relay 250")),
	TALK_AHEAD_WITH("a kept connection that has served enough",
			HOW(.tries = 1), HELLO, C(ENVELOPE), BOUND_AGAIN,
			R(MAIL, SESSION, 421), X("bind; " SENT "; reset; bind"),
			BOUND, R(MAIL, OK, 250), X(SENT "; relay 250")),
	TALK_AHEAD("words before MAIL's reply", HELLO, C(ENVELOPE), BOUND,
		   EARLY(OK, 250), X("bind; " SENT "; reset; bind"), BOUND,
		   R(MAIL, OK, 354), X(SENT "; reset; bind")),
	TALK_AHEAD("the reply to a line ahead, but none to MAIL", HELLO,
		   C(ENVELOPE), BOUND, R(RCPT, OK, 250),
		   X("bind; " SENT "; reset; bind")),
	TALK_AHEAD("the client ends its side behind DATA", HELLO, C(ENVELOPE),
		   BOUND, OVER, X("bind; " SENT), R(MAIL, OK, 250),
		   X("relay 250; reset; log DATA ok 0; close client_closed")),
	TALK_AHEAD("the client ends its side behind RCPT, MAIL is refused",
		   HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND,
		   OVER, R(MAIL, POLICY, 550),
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 550; quit; "
		     "log MAIL policy 550; say 503 5.5.1; "
		     "close client_closed")),
	TALK_AHEAD("the client resets behind DATA", HELLO, C(ENVELOPE), BOUND,
		   GONE,
		   X("bind; " SENT "; reset; log MAIL ok 0; "
		     "abort client_reset")),
	TALK_AHEAD("the client resets behind RCPT", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND, GONE,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; quit; "
		     "log MAIL ok 0; abort client_reset")),
	TALK_AHEAD_WITH("no client's time runs while MAIL is answered",
			HOW(.session_ms = 1000), HELLO, C(ENVELOPE), BOUND,
			AFTER(9999999), X("bind; " SENT), R(MAIL, OK, 250),
			R(RCPT, OK, 250), R(RCPT, OK, 250), AFTER(1),
			X("relay 250; relay 250; relay 250"), R(DATA, OK, 354),
			AFTER(0),
			X("relay 354; say 421 4.4.2; reset; log EOD ok 0; "
			  "close session_time")),
	TALK_AHEAD("drained: the message ends first", HELLO, C(ENVELOPE), BOUND,
		   { .kind = DRAINING }, DO(DRAIN), X("bind; " SENT),
		   R(MAIL, OK, 250), R(RCPT, OK, 250), R(RCPT, OK, 250),
		   R(DATA, OK, 354), C(".\r\n"), STOP, R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250; say 421 4.3.2; "
		     "close drain")),
	TALK_AHEAD("drained, and MAIL refused", HELLO, C(ENVELOPE), BOUND,
		   { .kind = DRAINING }, DO(DRAIN), R(MAIL, POLICY, 550),
		   X("bind; " SENT "; relay 550; reset; log MAIL policy 550; "
		     "say 421 4.3.2; close drain")),
	TALK_AHEAD_WITH("no more recipients than allowed",
			HOW(.max_recipients = 1), HELLO, C(ENVELOPE), BOUND,
			X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
			R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
			X("relay 250; say 452 4.5.3; DATA"), R(DATA, OK, 354),
			X("relay 354")),
	TALK_AHEAD_WITH("no more recipients than the rate allows",
			HOW(.recipient_rate = 1), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, BUSY, 452),
			X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; quit; bind"),
			BOUND, R(MAIL, OK, 250),
			X("MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 250"),
			R(RCPT, OK, 250), X("relay 250; say 450 4.7.1; DATA")),
	TALK_AHEAD("8 bits without SMTPUTF8 stop it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
		     "RCPT TO:<\303\244@b>\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
		   X("relay 250; say 553 5.6.7; DATA")),
	TALK_AHEAD("8 bits with SMTPUTF8 do not", HELLO,
		   C("MAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<\303\244@b>\r\n"),
		   BOUND,
		   X("bind; MAIL FROM:<a@b> SMTPUTF8; RCPT TO:<\303\244@b>"),
		   R(MAIL, OK, 250), X("relay 250")),
	TALK_AHEAD_WITH("a parameter that was not offered stops it",
			HOW(.offer = SMTP_EXT_8BITMIME), HELLO,
			C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
			  "RCPT TO:<e@f> NOTIFY=NEVER\r\nDATA\r\n"),
			BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
			R(MAIL, OK, 250), R(RCPT, OK, 250),
			X("relay 250; relay 250; say 555 5.5.4; DATA")),
	TALK_AHEAD("a parameter that nobody knows stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
		     "RCPT TO:<e@f> X=1\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 555 5.5.4; DATA")),
	TALK_AHEAD("DATA with an argument stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA x\r\n"), BOUND,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"), R(MAIL, OK, 250),
		   R(RCPT, OK, 250), X("relay 250; relay 250; say 501 5.5.4")),
	TALK_AHEAD("a bare LF stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\n"
		     "DATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 500 5.5.2; DATA")),
	TALK_AHEAD("a line too long stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n" A500 A500
		     "\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 500 5.5.2; DATA")),
	TALK_AHEAD("NOOP behind RCPT stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNOOP\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 250 2.0.0; DATA")),
	TALK_AHEAD("BDAT behind RCPT stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 6 LAST\r\n"
		     "DATA\r\nQUIT\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"), B(""),
		   R(MAIL, OK, 250), X("relay 250; BDAT 6 LAST"), B("DATA\r\n"),
		   R(RCPT, OK, 250), R(EOD, OK, 250),
		   X("relay 250; relay 250; keep; log EOD ok 250; "
		     "say 221 2.0.0; close quit")),
	TALK_AHEAD("BINARYMIME: DATA stops it", HELLO,
		   C("MAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\n"
		     "DATA\r\n"),
		   BOUND,
		   X("bind; MAIL FROM:<a@b> BODY=BINARYMIME; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 503 5.5.1")),
	TALK_AHEAD("a line that is cut waits for MAIL's reply", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO"), BOUND,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   C(":<e@f>\r\nDATA\r\n"), X(""), R(MAIL, OK, 250),
		   X("relay 250; RCPT TO:<e@f>; DATA")),
	TALK_AHEAD("lines that come while MAIL is answered", HELLO,
		   C("MAIL FROM:<a@b>\r\n"), BOUND, X("bind; MAIL FROM:<a@b>"),
		   C("RCPT TO:<c@d>\r\n"), X("RCPT TO:<c@d>"), C("DATA\r\n"),
		   X(""), R(MAIL, OK, 250), X("relay 250; DATA")),
	TALK_AHEAD("a body that did not wait for the 354", HELLO,
		   C(ENVELOPE "RSET\r\n.\r\n"), BOUND, R(MAIL, OK, 250),
		   X("bind; " SENT "; relay 250"), R(RCPT, OK, 250),
		   R(RCPT, OK, 250), R(DATA, OK, 354),
		   X("relay 250; relay 250; say 554 5.5.0; reset; "
		     "log DATA ok 554; close sync"),
		   B("")),
	TALK_AHEAD("a body that came in time before MAIL's reply alone", HELLO,
		   C(ENVELOPE), BOUND, C("x\r\n"), R(MAIL, OK, 250),
		   R(RCPT, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354),
		   X("bind; " SENT "; relay 250; relay 250; relay 250; "
		     "say 554 5.5.0; reset; log DATA ok 554; close sync"),
		   B("")),
	TALK_AHEAD_WHOLE(
		"one that did not wait is no fault of the next message", HELLO,
		C(ENVELOPE "NOOP\r\n"), BOUND, R(MAIL, BUSY, 452), BOUND_POOR,
		R(MAIL, OK, 250), R(RCPT, OK, 250), R(RCPT, OK, 250), STOP,
		R(DATA, OK, 354),
		X("say 554 5.5.0; reset; log DATA ok 554; "
		  "close sync")),
	TALK("NOOP behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nNOOP\r\nRCPT TO:<c@d>\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 250 2.0.0; RCPT TO:<c@d>")),
	TALK("BDAT behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nBDAT 15\r\nRCPT TO:<c@d>\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1"), B("")),
	TALK("DATA behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nDATA\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1")),
	TALK("MAIL behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nMAIL FROM:<x@y>\r\nRCPT TO:<c@d>\r\n"),
	     BOUND, X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1; RCPT TO:<c@d>")),
	TALK("without PIPELINING nothing goes ahead", HELLO, C(ENVELOPE),
	     BOUND_POOR, X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; RCPT TO:<c@d>")),
};

static void lines_behind_mail_are_sent_ahead_and_undone(void **state)
{
	(void)state;
	RUN(aheads);
}

enum { CROWD = 300, CROWD_LINE = 17 };

static const struct talk in_hello = TALK("", HELLO);
static const struct move bound_well = BOUND;
static const struct move mail_taken = R(MAIL, OK, 250);
static const struct move mail_refused = R(MAIL, BUSY, 452);
static const struct move rcpt_taken = R(RCPT, OK, 250);
static const struct move data_taken = R(DATA, OK, 354);

/* Write CROWD_LINE octets, without a NUL. */
static void put_rcpt(char *at, unsigned i, const char *end)
{
	char line[40];

	(void)snprintf(line, sizeof(line), "RCPT TO:<%03u@d>%s", i, end);
	assert_int_equal(strlen(line), CROWD_LINE);
	memcpy(at, line, CROWD_LINE);
}

static void a_long_envelope_is_sent_ahead_as_far_as_there_is_room(void **state)
{
	static char text[17 + CROWD * CROWD_LINE + 6 + 1];
	static char want[sizeof(text) + CROWD];
	size_t len = 17;
	size_t want_len = 0;

	(void)state;
	(void)snprintf(text, sizeof(text), "MAIL FROM:<a@b>\r\n");
	for (unsigned i = 0; i < CROWD; i++) {
		put_rcpt(text + len, i, "\r\n");
		len += CROWD_LINE;
		if (i < UPSTREAM_PIPELINE_MAX - 1) {
			put_rcpt(want + want_len, i, "; ");
			want_len += CROWD_LINE;
		}
	}
	(void)snprintf(text + len, sizeof(text) - len, "DATA\r\n");
	len += 6;
	model_go_to(&in_hello);
	model_feed(text, len);
	for (unsigned tries = 0; tries < 2; tries++) {
		w->acts_len = 0;
		model_move(&bound_well, CUT_NOWHERE, &(size_t){ 0 });
		assert_int_equal(w->due, UPSTREAM_PIPELINE_MAX);
		assert_int_equal(w->s.due, 1);
		assert_int_equal(w->s.ahead_rcpts, UPSTREAM_PIPELINE_MAX - 1);
		assert_memory_equal(w->acts, "MAIL FROM:<a@b>; ", 17);
		assert_int_equal(w->acts_len, 17 + want_len);
		assert_memory_equal(w->acts + 17, want, want_len);
		model_move(tries == 0 ? &mail_refused : &mail_taken,
			   CUT_NOWHERE, &(size_t){ 0 });
	}
	assert_int_equal(w->due, UPSTREAM_PIPELINE_MAX);
	for (unsigned i = 0; i < CROWD; i++)
		model_move(&rcpt_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.state, SESSION_DATA);
	assert_int_equal(w->s.message.rcpts, CROWD);
	assert_int_equal(w->s.message.rcpts_ok, CROWD);
	/* All of them, MAIL and DATA; EHLO came before. */
	assert_int_equal(stats_get(&w->stats, STATS_commands), CROWD + 3);
	model_move(&data_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.state, SESSION_BODY);
	model_close();
}

static const struct talk data_ahead = TALK("", HELLO, C(ENVELOPE "x"), BOUND,
					   STOP);
static const struct talk rcpt_ahead = TALK(
	"", HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND, STOP);

/* The worker may be short of buffers, and read nothing between replies. */
static void a_body_that_did_not_wait_is_known_before_it_is_read(void **state)
{
	(void)state;
	model_go_to(&data_ahead);
	model_step(&mail_taken.event);
	assert_int_equal(w->s.state, SESSION_DATA);
	assert_int_equal(w->lens[w->first], 1);
	model_step(&rcpt_taken.event);
	model_step(&rcpt_taken.event);
	model_step(&data_taken.event);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->s.reason, STATS_CLOSE_SYNC);
	model_close();
}

static void a_kill_with_lines_ahead_forgets_them(void **state)
{
	(void)state;
	model_go_to(&data_ahead);
	assert_int_equal(w->s.ahead_rcpts, 2);
	assert_true(w->s.ahead_data);
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->s.ahead, 0);
	assert_int_equal(w->plan.consumed, 0);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_RESET);
	assert_int_equal(w->plan.acts[1].what, SESSION_DO_LOG);
	assert_int_equal(w->plan.acts[2].what, SESSION_DO_ABORT);
	assert_false(w->s.message.unknown);
	model_close();
	model_go_to(&rcpt_ahead);
	assert_int_equal(w->s.ahead_rcpts, 1);
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.ahead, 0);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_QUIT);
	model_close();
}

/* ---- nonsense ---- */

#define TEN(text) text text text text text text text text text text

static const struct talk nonsense[] = {
	TALK("20 errors, then 421", HELLO, C(TEN("X\r\n")), C(TEN("X\r\n")),
	     { .kind = SKIP }, C("NOOP\r\n"), X("say 250 2.0.0"),
	     C("X\r\nQUIT\r\n"), X("say 421 4.7.0; close errors")),
	TALK("the errors end a transaction too", TO_RCPT, C(TEN("X\r\n")),
	     C(TEN("X\r\n")), { .kind = SKIP }, C("X\r\n"),
	     X("say 421 4.7.0; quit; log IDLE ok 0; close errors")),
	TALK_WITH("an error and its rest", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\nNOOP\r\n"), X("say 500 5.5.1"), AFTER(4999), X(""),
		  AFTER(1), X("say 250 2.0.0"), AFTER(299999), X(""), AFTER(1),
		  X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("the end while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), OVER, X("say 500 5.5.1; close client_closed")),
	TALK_WITH("drained while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), DO(DRAIN),
		  X("say 500 5.5.1; say 421 4.3.2; close drain")),
	TALK_WITH("stress while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), { .kind = STRESS, .ms = 1 }, AFTER(5000),
		  X("say 500 5.5.1"), AFTER(9999), X(""), AFTER(1),
		  X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("the backend is lost while it rests", HOW(.tarpit_ms = 5000),
		  TO_RCPT, C("X\r\nNOOP\r\n"), LOST, X("say 500 5.5.1"),
		  AFTER(5000), X("say 250 2.0.0")),
	TALK_WITH("a rest is no longer than the session may be",
		  HOW(.tarpit_ms = 5000, .session_ms = 3000), HELLO, C("X\r\n"),
		  AFTER(3000),
		  X("say 500 5.5.1; say 421 4.4.2; close session_time")),
	TALK("512 octets are a line", HELLO, C("NOOP " A500 "aaaaa\r\n"),
	     X("say 250 2.0.0")),
	TALK("513 are one too long, and one reply", HELLO,
	     C("NOOP " A500 "aaaaaa\r\nNOOP\r\n"),
	     X("say 500 5.5.2; say 250 2.0.0")),
	TALK("the rest of a long line is no command", HELLO,
	     C(A500 A500 "MAIL FROM:<a@b>\r\n"), X("say 500 5.5.2")),
	TALK("a long line waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n" A500 A500 "\r\nNOOP\r\n"),
	     X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2; say 250 2.0.0")),
	TALK("the end within a long line", HELLO, C(A500 A500), OVER,
	     X("say 500 5.5.2; close client_closed")),
	TALK("a long line without end is dropped as it comes", HELLO, C(A4000),
	     C(A4000), C(A4000), C(A4000), X("say 500 5.5.2"),
	     C("\r\nNOOP\r\n"), X("say 250 2.0.0")),
	TALK("bare LF, bare CR, NUL", HELLO, C("NOOP\n"), X("say 500 5.5.2"),
	     C("NOOP\rNOOP\r\n"), X("say 500 5.5.2"), C("NOOP\0\r\n"),
	     X("say 500 5.5.2"), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK("a bare LF behind RCPT waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nNOOP\n"), X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2")),
	TALK("8 bits in an address without SMTPUTF8", HELLO,
	     C("MAIL FROM:<\303\244@b>\r\n"), X("say 553 5.6.7"),
	     C("MAIL FROM:<\344@b>\r\n"), X("say 501 5.1.7")),
	TALK("8 bits in RCPT without SMTPUTF8 at MAIL", TO_MAIL,
	     C("RCPT TO:<\303\244@b>\r\n"), X("say 553 5.6.7")),
	TALK("8 bits with SMTPUTF8", HELLO,
	     C("MAIL FROM:<\303\244@b> SMTPUTF8\r\n"), BOUND, R(MAIL, OK, 250),
	     { .kind = SKIP }, C("RCPT TO:<\303\244@b>\r\n"),
	     X("RCPT TO:<\303\244@b>")),
	TALK("an empty line, an empty name", HELLO, C("\r\n"),
	     X("say 500 5.5.2"), C("EHLO\r\n"), X("say 501 5.5.4")),
	TALK("AUTH of 4 kB is a line, and not offered", HELLO,
	     C("AUTH PLAIN " A4000 "\r\nNOOP\r\n"),
	     X("say 502 5.5.1; say 250 2.0.0")),
	TALK("HTTP", HELLO, C("GET / HTTP/1.1\r\nHost: x\r\n"),
	     X("say 500 5.5.2; close foreign")),
	TALK("a TLS hello", HELLO, C("\026\003\001\002\0\001\0"),
	     X("say 500 5.5.2; close foreign")),
	TALK("a TLS hello behind a group waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n\026\003\001"), X("RCPT TO:<c@d>"),
	     R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2; quit; log IDLE ok 0; "
	       "close foreign")),
	TALK("PROXY", HELLO, C("PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"),
	     X("say 500 5.5.2; close foreign")),
	TALK("XCLIENT and XFORWARD, however spelled", HELLO,
	     C("XCLIENT ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("xClIeNt\tADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("  XCLIENT  ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("XCLIENT\r\n"), X("say 550 5.7.1"),
	     C("XFORWARD NAME=x ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("xforward\t\r\n"), X("say 550 5.7.1")),
	TALK("XCLIENT within a transaction goes nowhere", TO_RCPT,
	     C("XCLIENT ADDR=127.0.0.1\r\n"), X("say 550 5.7.1")),
	TALK_WITH("a parameter that was not offered",
		  HOW(.offer = SMTP_EXT_8BITMIME, .size = 99), HELLO,
		  C("MAIL FROM:<> SIZE=3\r\n"), X("say 555 5.5.4"),
		  C("MAIL FROM:<> BODY=8BITMIME\r\n"), X("bind")),
	TALK_WITH("talk before the greeting is refused", HOW(.delay_ms = 2000),
		  ADMIT, X(""), C("EHLO x\r\n"),
		  X("say 554 5.5.0; close early_talker")),
	TALK_WITH("or noted", HOW(.delay_ms = 2000, .early = CONFIG_EARLY_LOG),
		  ADMIT, C("EHLO x\r\n"), X(""), AFTER(2000),
		  X("say 220; say 250")),
	TALK_WITH("or let be", HOW(.delay_ms = 2000, .early = CONFIG_EARLY_OFF),
		  ADMIT, C("EHLO x\r\n"), X(""), AFTER(2000),
		  X("say 220; say 250")),
	TALK_WITH("the end before the greeting", HOW(.delay_ms = 2000), ADMIT,
		  OVER, X("close client_closed")),
	TALK("refused at the door",
	     SAID(REFUSED, TCP, OK, 0, "421 4.7.0 no\r\n"),
	     X("say 421 4.7.0; close quit")),
};

static void nonsense_is_answered_and_bounded(void **state)
{
	(void)state;
	RUN(nonsense);
}

/* ---- limits and time ---- */

static const struct talk times[] = {
	TALK("silence after the greeting", ADMIT, AFTER(299999), X("say 220"),
	     AFTER(1), X("say 421 4.4.2; close client_timeout")),
	TALK("half a line does not gain time", HELLO, AFTER(200000), C("NOO"),
	     AFTER(100000),
	     X("say 421 4.4.2; "
	       "close client_timeout")),
	TALK("silence in a transaction", TO_RCPT, AFTER(300000),
	     X("say 421 4.4.2; quit; log IDLE ok 0; close client_timeout")),
	TALK("while the backend is awaited no client's time runs", TO_RCPT,
	     C("RCPT TO:<e@f>\r\n"), AFTER(9999999), X("RCPT TO:<e@f>"),
	     R(RCPT, OK, 250), AFTER(299999), X("relay 250"), AFTER(1),
	     X("say 421 4.4.2; quit; log IDLE ok 0; close client_timeout")),
	TALK("nor at TO_MAIL, DATA or the end", GROUP, AFTER(9999999),
	     R(RCPT, OK, 250), R(RCPT, OK, 250), AFTER(9999999),
	     R(DATA, OK, 354), { .kind = SKIP }, C(".\r\n"), AFTER(9999999),
	     X("end")),
	TALK("silence in a chunk", TO_RCPT, C("BDAT 5\r\nx"), AFTER(180000),
	     X("BDAT 5; say 421 4.4.2; reset; log EOD ok 0; "
	       "close client_timeout")),
	TALK("each octet of a chunk gains time", TO_RCPT, C("BDAT 5\r\nx"),
	     AFTER(179999), C("y"), AFTER(179999), X("BDAT 5")),
	TALK("silence in a chunk that goes nowhere", HELLO, C("BDAT 5\r\nx"),
	     AFTER(180000), X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("a session has its time", HOW(.session_ms = 1000), HELLO,
		  AFTER(999), C("NOOP\r\n"), AFTER(1),
		  X("say 250 2.0.0; say 421 4.4.2; close session_time")),
	TALK_WITH("its time is over once the backend has answered",
		  HOW(.session_ms = 1000), TO_RCPT, C("RCPT TO:<e@f>\r\n"),
		  AFTER(5000), X("RCPT TO:<e@f>"), R(RCPT, OK, 250), AFTER(0),
		  X("relay 250; say 421 4.4.2; quit; log IDLE ok 0; "
		    "close session_time")),
	TALK("stress shortens the time of those who wait already", HELLO,
	     AFTER(5000), { .kind = STRESS, .ms = 1 }, AFTER(4999), X(""),
	     AFTER(1), X("say 421 4.4.2; close client_timeout")),
	TALK("its end gives it back", HELLO, { .kind = STRESS, .ms = 1 },
	     AFTER(5000), { .kind = STRESS }, AFTER(294999), X(""), AFTER(1),
	     X("say 421 4.4.2; close client_timeout")),
	TALK("stress does not touch a body", TO_DATA,
	     { .kind = STRESS, .ms = 1 }, AFTER(100000), X(""), C(".\r\n"),
	     X("end")),
	TALK_WITH("messages of one session", HOW(.max_messages = 1), TO_DATA,
		  C(".\r\n"), R(EOD, OK, 250), { .kind = SKIP },
		  C("MAIL FROM:<a@b>\r\n"), X("say 421 4.7.0; close messages")),
	TALK_WITH("a refused message does not count", HOW(.max_messages = 1),
		  TO_DATA, C(".\r\n"), R(EOD, POLICY, 550), { .kind = SKIP },
		  C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK_WITH("recipients of one message", HOW(.max_recipients = 1),
		  TO_MAIL, C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
		  X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
		  X("relay 250; say 452 4.5.3; DATA")),
	TALK_WITH("the rate of messages", HOW(.message_rate = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, POLICY, 550),
		  { .kind = SKIP }, C("MAIL FROM:<a@b>\r\n"),
		  X("say 450 4.7.1")),
	TALK_WITH("the rate of recipients", HOW(.recipient_rate = 1), TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"), X("RCPT TO:<c@d>"),
		  R(RCPT, OK, 250), X("relay 250; say 450 4.7.1")),
	TALK_WITH("drained before the greeting", HOW(.delay_ms = 2000), ADMIT,
		  DO(DRAIN), X("say 421 4.3.2; close drain")),
	TALK("drained between commands", HELLO, C("NO"), DO(DRAIN),
	     X("say 421 4.3.2; close drain")),
	TALK("drained in a transaction: it ends first", GROUP,
	     { .kind = DRAINING }, DO(DRAIN), X(""), R(RCPT, OK, 250),
	     R(RCPT, OK, 250), R(DATA, OK, 354), C(".\r\n"), { .kind = SKIP },
	     R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; say 421 4.3.2; "
	       "close drain")),
	TALK("drained while MAIL waits", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     { .kind = DRAINING }, DO(DRAIN), BOUND, R(MAIL, OK, 250),
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("RSET\r\n"),
	     X("bind; MAIL FROM:<a@b>; relay 250; RCPT TO:<c@d>; relay 250; "
	       "quit; log IDLE ok 0; say 250 2.0.0; say 421 4.3.2; "
	       "close drain")),
	TALK("drained, then its transaction breaks", TO_RCPT,
	     { .kind = DRAINING }, DO(DRAIN), X(""), LOST,
	     X("say 421 4.3.2; log TCP sick 451; close drain")),
	TALK("drained in a chunk", TO_RCPT, C("BDAT 2 LAST\r\nx"),
	     { .kind = DRAINING }, DO(DRAIN), C("y"), R(EOD, OK, 250),
	     X("BDAT 2 LAST; relay 250; keep; log EOD ok 250; "
	       "say 421 4.3.2; close drain")),
	TALK("drained, and 421 in an envelope behind its last chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx"), { .kind = DRAINING },
	     DO(DRAIN), { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.4.2; log EOD drain 451; "
	       "say 421 4.3.2; close drain")),
};

static void time_and_limits_are_kept(void **state)
{
	(void)state;
	RUN(times);
}

/* ---- the log's figures ---- */

static const struct talk failed_over = TALK(
	"", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 452), BOUND,
	R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"),
	R(RCPT, OK, 250), R(RCPT, POLICY, 550), C("DATA\r\n"), R(DATA, OK, 354),
	C("hi\r\n.\r\n"), R(EOD, OK, 250));

static void a_failover_is_one_transaction_with_two_tries(void **state)
{
	(void)state;
	model_open(&failed_over);
	for (const struct move *m = failed_over.moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.transactions, 1);
	assert_int_equal(w->s.messages, 1);
	assert_int_equal(w->s.message.tries, 2);
	assert_int_equal(w->s.message.rcpts, 2);
	assert_int_equal(w->s.message.rcpts_ok, 1);
	assert_int_equal(w->s.message.octets, 7);
	assert_false(w->s.message.unknown);
	assert_int_equal(stats_get(&w->stats, STATS_failovers), 1);
	assert_int_equal(stats_get(&w->stats, STATS_transactions), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages), 1);
	assert_int_equal(stats_get(&w->stats, STATS_recipients), 1);
	model_close();
}

static const struct talk at_final = TALK("", TO_DATA, C(".\r\n"));

static void a_kill_behind_the_end_of_data_leaves_it_unknown(void **state)
{
	(void)state;
	model_open(&at_final);
	for (const struct move *m = at_final.moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_true(w->s.message.unknown);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_RESET);
	assert_int_equal(w->plan.acts[1].what, SESSION_DO_LOG);
	assert_int_equal(w->plan.acts[2].what, SESSION_DO_ABORT);
	model_close();
}

static void time_that_the_backend_took_is_not_the_clients(void **state)
{
	(void)state;
	model_open(&in_data);
	for (const struct move *m = in_data.moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	w->env.now_ms = w->s.deadline_ms;
	assert_true(session_defer(&w->s, &w->env));
	assert_int_equal(w->s.deadline_ms, w->env.now_ms + 180000);
	config->timeouts.session_ms = 1000;
	assert_false(session_defer(&w->s, &w->env));
	model_close();
	model_open(&at_final);
	for (const struct move *m = at_final.moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	assert_false(session_defer(&w->s, &w->env));
	model_close();
}

/* ---- every event in every state ---- */

static const struct talk places[] = {
	TALK_WITH("greeting", HOW(.delay_ms = 2000), ADMIT),
	TALK("command", HELLO),
	TALK("half a line", HELLO, C("NOO")),
	TALK("skipping", HELLO, C(A500 A500)),
	TALK_WITH("resting", HOW(.tarpit_ms = 5000), HELLO, C("X\r\nNOOP\r\n")),
	TALK("binding", HELLO, C("MAIL FROM:<a@b>\r\n")),
	TALK("mail", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND),
	TALK("mail on a kept one", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND_AGAIN),
	TALK("mail, RCPT ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNO"), BOUND),
	TALK("mail, DATA ahead", HELLO, C(ENVELOPE), BOUND),
	TALK("mail on a kept one, DATA ahead and more", HELLO,
	     C(ENVELOPE "x\r\n"), BOUND_AGAIN),
	TALK("transaction", TO_RCPT),
	TALK("rcpt due", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nNOOP\r\n")),
	TALK("rcpt due, the next line in pieces", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nNO"), C("OP\r\n")),
	TALK("broken", TO_RCPT, LOST),
	TALK("data", GROUP),
	TALK("data, premature", TO_RCPT, C("DATA\r\nx")),
	TALK("body", TO_DATA, C("x\r\n")),
	TALK("body swallowed", TO_DATA, C("x\n")),
	TALK("body swallowed with a reply", TO_DATA, EARLY(POLICY, 421)),
	TALK("chunk", TO_MAIL, C("RCPT TO:<c@d>\r\nBDAT 3\r\nx")),
	TALK("last chunk", TO_RCPT, C("BDAT 3 LAST\r\nx")),
	TALK("chunk swallowed", TO_MAIL, C("BDAT 3\r\nx")),
	TALK("chunk swallowed without MAIL", HELLO, C("BDAT 3 LAST\r\nx")),
	TALK("chunk lost", TO_RCPT, C("BDAT 3 LAST\r\nx"), LOST),
	TALK("chunk due", TO_RCPT, C("BDAT 1\r\nx")),
	TALK("final", TO_DATA, C(".\r\n")),
	TALK("final of chunks", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx")),
	TALK("final, half closed", TO_DATA, C(".\r\n"), OVER),
	TALK("final, gone", TO_DATA, C(".\r\n"), GONE),
	TALK("closed", HELLO, C("QUIT\r\n")),
};

static void every_event_is_defined_in_every_state(void **state)
{
	/* The others have tests of their own. */
	unsigned all = ((1u << SESSION_STATES) - 1) &
		       ~(1u << SESSION_HANDOVER | 1u << SESSION_HANDSHAKE |
			 1u << SESSION_AUTH | 1u << SESSION_RELAY);

	(void)state;
	assert_int_equal(
		model_every_event(places, sizeof(places) / sizeof(places[0])),
		all);
}

static void a_random_walk_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .max_errors = 1000 },
		{ .tarpit_ms = 1000, .max_errors = 5 },
		{ .max_errors = 1000, .size = 20, .max_recipients = 2 },
		{ .max_errors = 1000, .session_ms = 500000, .tries = 1 },
	};
	struct walked all = model_walk(ways, 4, 4000);

	(void)state;
	/* The walk came far enough to mean something. */
	assert_true(all.counts[STATS_messages] > 500);
	assert_true(all.ahead > 500);
	assert_true(all.longest >= 5);
	assert_true(all.longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replies_keep_their_order),
		cmocka_unit_test(
			no_more_is_pipelined_than_the_backend_conversation_holds),
		cmocka_unit_test(chunks_are_counted_relayed_or_swallowed),
		cmocka_unit_test(bodies_arrive_whole_or_not_at_all),
		cmocka_unit_test(
			smuggling_vectors_reach_no_backend_as_a_message),
		cmocka_unit_test(
			the_trace_field_is_sent_once_a_message_and_counted),
		cmocka_unit_test(failover_is_hidden_and_never_after_a_reply),
		cmocka_unit_test(lines_behind_mail_are_sent_ahead_and_undone),
		cmocka_unit_test(
			a_long_envelope_is_sent_ahead_as_far_as_there_is_room),
		cmocka_unit_test(
			a_body_that_did_not_wait_is_known_before_it_is_read),
		cmocka_unit_test(a_kill_with_lines_ahead_forgets_them),
		cmocka_unit_test(nonsense_is_answered_and_bounded),
		cmocka_unit_test(time_and_limits_are_kept),
		cmocka_unit_test(a_failover_is_one_transaction_with_two_tries),
		cmocka_unit_test(
			a_kill_behind_the_end_of_data_leaves_it_unknown),
		cmocka_unit_test(time_that_the_backend_took_is_not_the_clients),
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
