#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <string.h>

#include "tests/unit/session_model.h"

/*
 * bare_newline = bdat: what DATA brings goes to the backend as chunks that are
 * counted here.  Whatever the octets are and however they come, the chunks
 * together are the body without its dots, and one message.
 */

#define BDAT HOW(.bare = CONFIG_BARE_BDAT)
#define COUNTED(title, ...)                                                    \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = BDAT, .whole_only = true                              \
	}
#define COUNTED_WITH(title, how, ...)                                          \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = how, .whole_only = true                               \
	}
#define TO_BODY TO_RCPT, C("DATA\r\n"), STOP
#define TO_TRACED                                                              \
	HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_TRACED, R(MAIL, OK, 250),       \
		C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), STOP
#define TO_POOR                                                                \
	HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_POOR, R(MAIL, OK, 250),         \
		C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), STOP
#define CHUNK R(DATA, OK, 250)
#define DONE  R(EOD, OK, 250)

/* ---- DATA ---- */

static const struct talk datas[] = {
	TALK_WITH("weir says 354", BDAT, TO_RCPT, C("DATA\r\n"), X("say 354")),
	TALK_WITH("when no reply is due any more", BDAT, TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
		  X("RCPT TO:<c@d>; RCPT TO:<e@f>"), R(RCPT, OK, 250),
		  X("relay 250"), R(RCPT, POLICY, 550),
		  X("relay 550; say 354")),
	TALK_WITH("with no recipient the backend answers", BDAT, TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), R(RCPT, POLICY, 550), STOP,
		  R(DATA, POLICY, 554),
		  X("relay 554; quit; log DATA policy 554")),
	TALK_WITH("and if it says 354, its body may not be anything", BDAT,
		  TO_MAIL, C("RCPT TO:<c@d>\r\nDATA\r\n"), R(RCPT, POLICY, 550),
		  STOP, R(DATA, OK, 354), X("relay 354"), C("x\n.\r\n"),
		  X("reset"), C("\r\n.\r\n"),
		  X("say 550 5.6.11; log EOD ok 550")),
	COUNTED("a body that did not wait", TO_MAIL,
		C("RCPT TO:<c@d>\r\nDATA\r\nx"), R(RCPT, OK, 250),
		X("RCPT TO:<c@d>; relay 250; say 554 5.5.0; quit; "
		  "log DATA ok 554; close sync")),
	TALK_WITH("lost before 354", BDAT, TO_MAIL,
		  C("RCPT TO:<c@d>\r\nDATA\r\n"), STOP, LOST,
		  X("say 451 4.3.0 x2; log DATA sick 451")),
	TALK_WITH("it needs CHUNKING, whatever the client knows", BDAT, HELLO,
		  C("MAIL FROM:<a@b>\r\n"), STOP,
		  DO_WITH(BOUND, .ext = SMTP_EXT_8BITMIME | SMTP_EXT_DSN,
			  .pipelining = true),
		  X("quit; bind")),
	TALK_WITH("also if the farm does not offer it",
		  HOW(.bare = CONFIG_BARE_BDAT, .offer = SMTP_EXT_8BITMIME),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), STOP,
		  DO_WITH(BOUND, .ext = SMTP_EXT_8BITMIME), X("quit; bind"),
		  DO_WITH(BOUND, .ext = SMTP_EXT_8BITMIME | SMTP_EXT_CHUNKING),
		  X("MAIL FROM:<a@b>")),
	TALK_AHEAD_WITH("DATA is not sent ahead", BDAT, HELLO,
			C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"),
			BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
			R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
			X("relay 250; say 354")),
	TALK_WITH("the client's own BDAT is its own", BDAT, TO_RCPT,
		  C("BDAT 3\r\nx\ny"), X("BDAT 3"), CHUNK, X("relay 250"),
		  C("BDAT 0 LAST\r\n"), X("BDAT 0 LAST"), DONE,
		  X("relay 250; keep; log EOD ok 250")),
};

static void the_354_is_weirs_own(void **state)
{
	(void)state;
	RUN(datas);
}

/* ---- chunks ---- */

static const struct talk chunks[] = {
	COUNTED("one for each buffer, their replies are nobody's", TO_BODY,
		C("x\n.\r\n"), X("BDAT 5"), C("y"), X("BDAT 1"), CHUNK, X(""),
		C("\r\n.\r\nNOOP\r\n"), X("BDAT 2 LAST"), CHUNK, X(""), DONE,
		X("relay 250; keep; log EOD ok 250; say 250 2.0.0"),
		B("x\n.\r\ny\r\n")),
	COUNTED("the end alone", TO_BODY, C("x\r\n"), X("BDAT 3"), C(".\r\n"),
		X("BDAT 0 LAST"), CHUNK, DONE,
		X("relay 250; keep; log EOD ok 250")),
	COUNTED("no body at all", TO_BODY, C(".\r\n"), X("BDAT 0 LAST"), DONE,
		X("relay 250; keep; log EOD ok 250"), B("")),
	COUNTED("dots", TO_BODY, C("..\r\n.x\r\n...\r\n.\r\n"),
		X("BDAT 10 LAST"), B(".\r\nx\r\n..\r\n")),
	COUNTED("a CR is owed", TO_BODY, C(".\r"), X(""), C("x"),
		X("BDAT 2+CR"), C("\r\n.\r"), X("BDAT 2"), C("\n"),
		X("BDAT 0 LAST"), B("\rx\r\n")),
	COUNTED("a CR is owed and nothing else goes", TO_BODY, C("\r\n.\r"),
		X("BDAT 2"), C("\r"), X("BDAT 2+CR"), C("\n.\r\n"),
		X("BDAT 1 LAST"), B("\r\n\r\r\n")),
	COUNTED("the trace field is counted once", TO_TRACED, C("x"),
		X("BDAT 101; trace"), C("y\r\n.\r\n"), X("BDAT 3 LAST"),
		B("xy\r\n")),
	COUNTED("the trace field alone", TO_TRACED, C("."),
		X("BDAT 100; trace"), C("\r\n"), X("BDAT 0 LAST"), B("")),
	COUNTED("the trace field and all of the body", TO_TRACED,
		C("x\r\n.\r\n"), X("BDAT 103 LAST; trace")),
	COUNTED("the trace field and a CR that is owed", TO_TRACED, C(".\r"),
		X("BDAT 100; trace"), C("\r"), X("BDAT 2+CR"), C("\n.\r\n"),
		X("BDAT 1 LAST"), B("\r\r\n")),
	COUNTED("no words of the client's in the trace field", TO_TRACED,
		C(" x\r\n"), X("reset"), C(".\r\n"),
		X("say 550 5.6.0; log EOD ok 550")),
	COUNTED("not behind a dot either", TO_TRACED, C("."),
		X("BDAT 100; trace"), C("\tx\r\n"), X("reset"), C(".\r\n"),
		X("say 550 5.6.0; log EOD ok 550")),
	COUNTED_WITH("a body as large as allowed",
		     HOW(.bare = CONFIG_BARE_BDAT, .size = 7), TO_BODY,
		     C("1234\n\r\n.\r\n"), X("BDAT 7 LAST")),
	COUNTED_WITH("an octet more", HOW(.bare = CONFIG_BARE_BDAT, .size = 7),
		     TO_BODY, C("12345\n"), X("BDAT 6"), C("\r\n.\r\nNOOP\r\n"),
		     X("reset; say 552 5.3.4; log EOD ok 552; say 250 2.0.0")),
	COUNTED("without PIPELINING one at a time", TO_POOR, C("a"),
		X("BDAT 1"), C("b"), C("c"), X(""), CHUNK, X("BDAT 1"), CHUNK,
		X("BDAT 1"), C("\r\n.\r\n"), X(""), CHUNK, X("BDAT 2 LAST"),
		DONE, X("relay 250; keep; log EOD ok 250"), B("abc\r\n")),
	COUNTED("and its time is not the client's", TO_POOR, C("a"), STOP,
		AFTER(1000000), X(""), CHUNK, AFTER(179999), X(""), AFTER(1),
		X("say 421 4.4.2; reset; log EOD ok 0; "
		  "close client_timeout")),
	COUNTED("another message behind it", TO_BODY, C("x\n\r\n.\r\n"), DONE,
		STOP, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),
		C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"), STOP,
		C("y\r\n.\r\n"), X("BDAT 3 LAST"), DONE,
		X("relay 250; keep; log EOD ok 250")),
	COUNTED_WITH("a pinned backend",
		     HOW(.bare = CONFIG_BARE_BDAT, .auth = CONFIG_AUTH_ALWAYS),
		     TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), R(MAIL, OK, 250),
		     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"),
		     STOP, C("x\n"), C("\r\n.\r\n"), X("BDAT 2; BDAT 2 LAST"),
		     CHUNK, DONE, X("relay 250; log EOD ok 250"),
		     C("MAIL FROM:<a@b>\r\n"), X("MAIL FROM:<a@b>")),
};

static void each_buffer_is_a_chunk(void **state)
{
	(void)state;
	RUN(chunks);
}

/* ---- what goes wrong ---- */

static const struct talk faults[] = {
	COUNTED("a chunk is refused: the rest goes nowhere", TO_BODY, C("x\n"),
		STOP, R2(DATA, POLICY, 552), X("reset"), C("y\r\n.\r\n"),
		X("say 552; log EOD policy 552")),
	COUNTED("several had been sent", TO_BODY, C("x"), C("y"), C("z"), STOP,
		CHUNK, R(DATA, BUSY, 452), X("reset"), C("\r\n.\r\n"),
		X("say 452; log EOD busy 452")),
	COUNTED("421: 451 for the client", TO_BODY, C("x"), STOP,
		R(DATA, DRAIN, 421), X("reset"), C("\r\n.\r\n"),
		X("say 451; log EOD drain 451")),
	COUNTED("421 about the client: it is obeyed", TO_BODY, C("x"), STOP,
		R(DATA, POLICY, 421), X("reset"), C("\r\n.\r\n"),
		X("say 421; log EOD policy 421; close backend_421")),
	COUNTED("refused when all was sent: its own words", TO_BODY, C("x"),
		C("\r\n.\r\n"), STOP, R(DATA, POLICY, 552), X(""),
		R(EOD, SESSION, 503), X("say 552; quit; log EOD policy 552")),
	COUNTED("the first refusal counts", TO_BODY, C("x"), C("y"),
		C("\r\n.\r\n"), STOP, R(DATA, POLICY, 552),
		R(DATA, SESSION, 503), R(EOD, SESSION, 503),
		X("say 552; quit; log EOD policy 552")),
	COUNTED("a part was refused, and it took the message", TO_BODY, C("x"),
		C("\r\n.\r\n"), STOP, R(DATA, POLICY, 552), DONE,
		X("reset; say 451 4.4.2; log EOD ok 451")),
	COUNTED("a part was refused, and then it was lost", TO_BODY, C("x"),
		C("\r\n.\r\n"), STOP, R(DATA, POLICY, 552), LOST,
		X("say 552; log EOD policy 552")),
	COUNTED("the last is refused", TO_BODY, C("x"), C("\r\n.\r\n"), STOP,
		CHUNK, R(EOD, POLICY, 550),
		X("relay 550; quit; log EOD policy 550")),
	COUNTED("lost in the body", TO_BODY, C("x"), C("y"), STOP, LOST, X(""),
		C("\r\n.\r\n"), X("say 451 4.3.0; log EOD sick 451")),
	COUNTED("lost while it was its turn", TO_POOR, C("x"), STOP, LOST,
		AFTER(179999), X(""), AFTER(1),
		X("say 421 4.4.2; log EOD ok 0; close client_timeout")),
	COUNTED("lost at the end: one reply, whatever is due", TO_BODY, C("x"),
		C("y"), C("\r\n.\r\n"), STOP, LOST,
		X("say 451 4.4.2; log EOD sick 451")),
	COUNTED("354 to a chunk is out of step", TO_BODY, C("x"), STOP,
		R(DATA, OK, 354), X("reset"), C("\r\n.\r\n"),
		X("say 451 4.3.0; log EOD ok 451")),
	COUNTED("a final reply in the middle is out of step", TO_BODY, C("x"),
		STOP, DONE, X("reset"), C("\r\n.\r\n"),
		X("say 451 4.3.0; log EOD ok 451")),
	COUNTED("it speaks when nothing was asked", TO_BODY, C("x"), CHUNK,
		STOP, EARLY(POLICY, 550), X("reset"), C("\r\n.\r\n"),
		X("say 550; log EOD policy 550")),
	COUNTED("the client breaks: never the last chunk", TO_BODY, C("x\r\n."),
		STOP, GONE, X("reset; log EOD ok 0; abort client_reset")),
	COUNTED("the client ends: never the last chunk", TO_BODY, C("x\n.\n"),
		STOP, OVER, X("reset; log EOD ok 0; abort client_closed")),
	COUNTED("the client is silent", TO_BODY, C("x"), STOP, AFTER(180000),
		X("say 421 4.4.2; reset; log EOD ok 0; "
		  "close client_timeout")),
	COUNTED_WITH("pinned: the end of it",
		     HOW(.bare = CONFIG_BARE_BDAT, .auth = CONFIG_AUTH_ALWAYS),
		     TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), R(MAIL, OK, 250),
		     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"),
		     C("x"), STOP, R(DATA, POLICY, 552), X("reset"),
		     C("\r\n.\r\n"),
		     X("say 552; log EOD policy 552; say 421 4.4.2; "
		       "close backend_lost")),
	COUNTED_WITH("pinned, refused when all was sent: it is cleared",
		     HOW(.bare = CONFIG_BARE_BDAT, .auth = CONFIG_AUTH_ALWAYS),
		     TO_LOGIN, C("MAIL FROM:<a@b>\r\n"), R(MAIL, OK, 250),
		     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("DATA\r\n"),
		     C("x"), C("\r\n.\r\n"), STOP, R(DATA, POLICY, 552),
		     R(EOD, SESSION, 503),
		     X("say 552; RSET; log EOD policy 552"), R(IDLE, OK, 250),
		     C("MAIL FROM:<a@b>\r\n"), X("MAIL FROM:<a@b>")),
};

static void a_message_is_whole_or_it_is_not(void **state)
{
	(void)state;
	RUN(faults);
}

/* ---- how far it goes ahead ---- */

static const struct talk in_body = TALK_WITH("", BDAT, TO_BODY);
static const struct talk in_traced = TALK_WITH("", BDAT, TO_TRACED);
static const struct move chunk = CHUNK;
static const struct move done = DONE;

static void no_more_chunks_are_sent_than_may_be_due(void **state)
{
	(void)state;
	model_go_to(&in_body);
	for (unsigned i = 0; i < 3 * SESSION_CHUNKS_MAX; i++) {
		model_feed("\n", 1);
		assert_true(w->s.due <= SESSION_CHUNKS_MAX);
		assert_int_equal(session_wants(&w->s),
				 i + 1 < SESSION_CHUNKS_MAX);
	}
	assert_int_equal(w->s.due, SESSION_CHUNKS_MAX);
	assert_int_equal(w->body_len, SESSION_CHUNKS_MAX);
	for (unsigned i = 0; i < 3 * SESSION_CHUNKS_MAX; i++)
		model_move(&chunk, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.due, 0);
	assert_int_equal(w->body_len, 3 * SESSION_CHUNKS_MAX);
	assert_int_equal(w->s.state, SESSION_BODY);
	model_close();
}

/* ---- every body, however it comes ---- */

struct expected {
	char body[64];
	size_t len;
	size_t taken; /* octets through the end; 0: there is none */
};

/*
 * RFC 5321, section 4.5.2, said as plainly as it can be: of the whole body at
 * once, with no state to get wrong.
 */
static struct expected expect_of(const char *text, size_t len)
{
	struct expected e = { .len = 0 };
	bool begins = true;

	for (size_t i = 0; i < len; i++) {
		bool dot = begins && text[i] == '.';

		if (dot && i + 2 < len && memcmp(text + i, ".\r\n", 3) == 0) {
			e.taken = i + 3;
			return e;
		}
		begins = i > 0 && text[i - 1] == '\r' && text[i] == '\n';
		if (!dot)
			e.body[e.len++] = text[i];
	}
	return e;
}

/* The client's octets in two pieces, or one by one; what came of them. */
static void carry(const struct talk *place, const char *text, size_t len,
		  long cut)
{
	const struct move all = { .kind = CLIENT, .text = text, .len = len };
	const struct expected want = expect_of(text, len);
	bool flawed;

	assert_true(want.taken > 0);
	model_go_to(place);
	model_move(&all, cut, &(size_t){ 0 });
	for (unsigned i = 0; i < len && w->s.state == SESSION_BODY; i++)
		model_move(&chunk, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.state, SESSION_FINAL);
	assert_int_equal(w->ends_sent, 1);
	while (w->s.due > 1)
		model_move(&chunk, CUT_NOWHERE, &(size_t){ 0 });
	flawed = w->s.message.flaws != 0;
	assert_int_equal(w->s.message.octets, want.taken);
	assert_true(w->s.message.counted);
	assert_int_equal(w->body_len, want.len);
	assert_memory_equal(w->body, want.body, want.len);
	model_move(&done, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->ends_good, 1);
	assert_int_equal(w->logged, 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages_smuggled), 0);
	assert_int_equal(stats_get(&w->stats, STATS_messages_counted), flawed);
	model_close();
}

static void carry_every_way(const char *text, size_t len)
{
	for (long cut = CUT_EVERYWHERE; cut < (long)len; cut++) {
		carry(&in_body, text, len, cut);
		if (text[0] != ' ')
			carry(&in_traced, text, len, cut);
	}
}

static void carry_vector(const struct vector *v)
{
	char text[64] = "body";
	size_t len = 4 + v->octets.len;

	assert_true(len + 5 <= sizeof(text));
	memcpy(text + 4, v->octets.text, v->octets.len);
	if (!v->ends) {
		memcpy(text + len, "\r\n.\r\n", 5);
		len += 5;
	}
	carry_every_way(text, len);
}

static void every_smuggling_vector_is_one_message(void **state)
{
	(void)state;
	assert_int_equal(model_vectors(carry_vector), 22);
}

/* All bodies of up to five octets, of those that matter. */
static void every_short_body_is_one_message(void **state)
{
	enum { LEN_MAX = 5, KINDS = 4 };
	static const char kinds[KINDS] = "\r\n.x";

	(void)state;
	for (unsigned len = 0; len <= LEN_MAX; len++) {
		for (unsigned n = 0; n < 1u << 2 * len; n++) {
			char text[LEN_MAX + 5];

			for (unsigned i = 0; i < len; i++)
				text[i] = kinds[n >> 2 * i & 3];
			memcpy(text + len, "\r\n.\r\n", 5);
			carry_every_way(text, len + 5);
		}
	}
}

static void what_stands_behind_the_end_is_commands(void **state)
{
	static const char text[] = "x\n\r\n.\r\nNOOP\r\n";

	(void)state;
	model_go_to(&in_body);
	model_feed(text, sizeof(text) - 1);
	w->acts_len = 0;
	model_move(&done, CUT_NOWHERE, &(size_t){ 0 });
	model_expect(&(struct move){ .text = "relay 250; keep; log EOD ok 250; "
					     "say 250 2.0.0" },
		     CUT_NOWHERE);
	assert_int_equal(w->surprises, 0);
	model_close();
}

/* ---- all of it ---- */

static const struct talk places[] = {
	TALK_WITH("data", BDAT, TO_MAIL, C("RCPT TO:<c@d>\r\nDATA\r\n")),
	TALK_WITH("body", BDAT, TO_BODY),
	TALK_WITH("body, a chunk due", BDAT, TO_BODY, C("x\n")),
	TALK_WITH("body, a CR owed", BDAT, TO_BODY, C("x\r\n.\r")),
	TALK_WITH("body, as many as may be due", BDAT, TO_POOR, C("x"), C("y")),
	TALK_WITH("body, swallowed", BDAT, TO_BODY, C("x"),
		  R(DATA, POLICY, 552)),
	TALK_WITH("body, traced", BDAT, TO_TRACED, C("x")),
	TALK_WITH("final", BDAT, TO_BODY, C(".\r\n")),
	TALK_WITH("final, a chunk due", BDAT, TO_BODY, C("x"), C("\r\n.\r\n")),
	TALK_WITH("final, a chunk refused", BDAT, TO_BODY, C("x"),
		  C("\r\n.\r\n"), R(DATA, POLICY, 552)),
	TALK_WITH("the client's own chunk", BDAT, TO_RCPT, C("BDAT 3\r\nx")),
};

static void every_event_is_defined_in_a_counted_body(void **state)
{
	unsigned seen = model_every_event(places,
					  sizeof(places) / sizeof(places[0]));

	(void)state;
	assert_true(seen & 1u << SESSION_BODY);
	assert_true(seen & 1u << SESSION_FINAL);
}

static void a_random_walk_with_counted_bodies_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .max_errors = 1000, .bare = CONFIG_BARE_BDAT },
		{ .max_errors = 1000,
		  .bare = CONFIG_BARE_BDAT,
		  .auth = CONFIG_AUTH_ALWAYS },
		{ .max_errors = 1000, .bare = CONFIG_BARE_BDAT, .size = 20 },
	};
	struct walked all = model_walk(ways, 3, 4000);

	(void)state;
	assert_true(all.counts[STATS_messages] > 500);
	assert_true(all.counts[STATS_messages_counted] > 20);
	assert_true(all.counts[STATS_messages_refused] > 100);
	assert_true(all.longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_354_is_weirs_own),
		cmocka_unit_test(each_buffer_is_a_chunk),
		cmocka_unit_test(a_message_is_whole_or_it_is_not),
		cmocka_unit_test(no_more_chunks_are_sent_than_may_be_due),
		cmocka_unit_test(every_smuggling_vector_is_one_message),
		cmocka_unit_test(every_short_body_is_one_message),
		cmocka_unit_test(what_stands_behind_the_end_is_commands),
		cmocka_unit_test(every_event_is_defined_in_a_counted_body),
		cmocka_unit_test(
			a_random_walk_with_counted_bodies_breaks_no_rule),
	};
	int failed;

	if (!model_begin())
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	model_end();
	return failed;
}
