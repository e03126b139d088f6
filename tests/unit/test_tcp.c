#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proxy/tcp.h"

/*
 * A stream is a list of what each side says in turn.  Whatever is written for
 * it is found whole, cut in two at any octet, and one octet at a time.
 */

enum { TURNS_MAX = 14, WORDS_MAX = 1024 };

struct turn {
	char side; /* 'C' or 'S'; 0: the end */
	const char *octets;
};

struct stream {
	const char *about;
	struct turn turns[TURNS_MAX];
	/* Each reply as "STAGE CODE;", then what ended it. */
	const char *replies;
	enum tcp_opaque why;
	unsigned messages, transactions, recipients;
	bool idle; /* at the end */
};

#define HELLO                                                                  \
	{ 'S', "220 mx ESMTP\r\n" }, { 'C', "EHLO c.test\r\n" },               \
	{                                                                      \
		'S', "250-mx\r\n250 STARTTLS\r\n"                              \
	}
#define HELLO_REPLIES "GREET 220;EHLO 250;"
#define TO_DATA                                                                \
	HELLO, { 'C', "MAIL FROM:<a@b>\r\n" }, { 'S', "250 ok\r\n" },          \
		{ 'C', "RCPT TO:<c@d>\r\n" }, { 'S', "250 ok\r\n" },           \
		{ 'C', "DATA\r\n" },                                           \
	{                                                                      \
		'S', "354 go\r\n"                                              \
	}
#define TO_DATA_REPLIES HELLO_REPLIES "MAIL 250;RCPT 250;DATA 354;"

/* clang-format off */
static const struct stream streams[] = {
	{ "a message, and QUIT",
	  { TO_DATA, { 'C', "hi\r\n.\r\n" }, { 'S', "250 queued\r\n" },
	    { 'C', "QUIT\r\n" }, { 'S', "221 bye\r\n" } },
	  TO_DATA_REPLIES "EOD 250;IDLE 221;", TCP_CLEAR, 1, 1, 1, true },
	{ "lines of a body are no commands, and dots in it no end",
	  { TO_DATA, { 'C', "QUIT\r\n..\r\nSTARTTLS\r\n\n.\n" },
	    { 'C', "XCLIENT ADDR=1.2.3.4\r\n.\r\n" }, { 'S', "250 q\r\n" } },
	  TO_DATA_REPLIES "EOD 250;", TCP_CLEAR, 1, 1, 1, true },
	{ "a refused message does not count",
	  { TO_DATA, { 'C', ".\r\n" }, { 'S', "452 4.3.1 full\r\n" } },
	  TO_DATA_REPLIES "EOD 452;", TCP_CLEAR, 0, 1, 1, true },
	{ "a group, its replies in one piece",
	  { HELLO,
	    { 'C', "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"
		   "DATA\r\n" },
	    { 'S', "250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n" },
	    { 'C', "x\r\n.\r\nRSET\r\n" },
	    { 'S', "250 one\r\n250 reset\r\n" } },
	  HELLO_REPLIES "MAIL 250;RCPT 250;RCPT 550;DATA 354;EOD 250;IDLE 250;",
	  TCP_CLEAR, 1, 1, 1, true },
	{ "DATA is refused, and commands go on",
	  { HELLO, { 'C', "MAIL FROM:<a@b>\r\n" }, { 'S', "421 busy\r\n" },
	    { 'C', "DATA\r\n" }, { 'S', "503 no\r\n" }, { 'C', "NOOP\r\n" },
	    { 'S', "250 ok\r\n" } },
	  HELLO_REPLIES "MAIL 421;DATA 503;IDLE 250;", TCP_CLEAR, 0, 0, 0,
	  true },
	{ "BDAT: octets of chunks are no commands",
	  { HELLO, { 'C', "MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 6\r\nQUIT\r\n"
			  "BDAT 8 LAST\r\nRSET\r\n\n\n" },
	    { 'S', "250 a\r\n250 b\r\n250 c\r\n250 d\r\n" } },
	  HELLO_REPLIES "MAIL 250;RCPT 250;DATA 250;EOD 250;", TCP_CLEAR, 1, 1,
	  1, true },
	{ "BDAT 0 LAST ends a message",
	  { HELLO, { 'C', "BDAT 0 LAST\r\nNOOP\r\n" },
	    { 'S', "250 d\r\n250 e\r\n" } },
	  HELLO_REPLIES "EOD 250;IDLE 250;", TCP_CLEAR, 1, 0, 0, true },
	{ "BDAT refused before its octets are there",
	  { HELLO, { 'C', "BDAT 4 LAST\r\nab" }, { 'S', "503 no\r\n" },
	    { 'C', "cdNOOP\r\n" }, { 'S', "250 ok\r\n" } },
	  HELLO_REPLIES "EOD 503;IDLE 250;", TCP_CLEAR, 0, 0, 0, true },
	{ "a BDAT whose size cannot be read",
	  { HELLO, { 'C', "BDAT x LAST\r\nQUIT\r\n" }, { 'S', "250 ok\r\n" } },
	  HELLO_REPLIES, TCP_STRANGE, 0, 0, 0, false },
	{ "STARTTLS: behind its 220 nothing is understood",
	  { HELLO, { 'C', "STARTTLS\r\n" }, { 'S', "220 go\r\n250 x\r\n" },
	    { 'C', "\x16\x03\x01" "XCLIENT A=B\r\n" }, { 'S', "250 y\r\n" } },
	  HELLO_REPLIES, TCP_STARTTLS, 0, 0, 0, false },
	{ "STARTTLS refused: it goes on in clear",
	  { HELLO, { 'C', "STARTTLS\r\n" }, { 'S', "454 later\r\n" },
	    { 'C', "NOOP\r\n" }, { 'S', "250 ok\r\n" } },
	  HELLO_REPLIES "STARTTLS 454;IDLE 250;", TCP_CLEAR, 0, 0, 0, true },
	{ "the client begins with TLS",
	  { { 'C', "\x16\x03\x01\x02" }, { 'S', "\x16\x03\x03" } },
	  "", TCP_TLS, 0, 0, 0, false },
	{ "a ClientHello behind the greeting is no command",
	  { { 'S', "220 mx\r\n" }, { 'C', "\x16\x03\x01\x02" } },
	  "GREET 220;", TCP_STRANGE, 0, 0, 0, false },
	{ "AUTH PLAIN with its response",
	  { HELLO, { 'C', "AUTH PLAIN AGEAYg==\r\n" }, { 'S', "235 ok\r\n" } },
	  HELLO_REPLIES "AUTH 235;", TCP_CLEAR, 0, 0, 0, true },
	{ "AUTH LOGIN: answers are no commands, whatever they look like",
	  { HELLO, { 'C', "AUTH LOGIN\r\n" }, { 'S', "334 VXNlcg==\r\n" },
	    { 'C', "QUIT\r\n" }, { 'S', "334 UGFzcw==\r\n" },
	    { 'C', "STARTTLS\r\n" }, { 'S', "535 no\r\n" },
	    { 'C', "NOOP\r\n" }, { 'S', "250 ok\r\n" } },
	  HELLO_REPLIES "AUTH 334;AUTH 334;AUTH 535;IDLE 250;", TCP_CLEAR, 0,
	  0, 0, true },
	{ "a challenge behind which the client has spoken already",
	  { HELLO, { 'C', "AUTH LOGIN\r\nRSET\r\n" },
	    { 'S', "334 VXNlcg==\r\n" } },
	  HELLO_REPLIES, TCP_STRANGE, 0, 0, 0, false },
	{ "a body that does not wait for 354",
	  { HELLO, { 'C', "DATA\r\nhi\r\n.\r\n" }, { 'S', "354 go\r\n" } },
	  HELLO_REPLIES, TCP_STRANGE, 0, 0, 0, false },
	{ "421 that nobody asked for",
	  { HELLO, { 'S', "421 4.4.2 timeout\r\n" } },
	  HELLO_REPLIES "IDLE 421;", TCP_CLEAR, 0, 0, 0, true },
	{ "2xx that nobody asked for",
	  { HELLO, { 'S', "250 surprise\r\n" } },
	  HELLO_REPLIES, TCP_STRANGE, 0, 0, 0, false },
	{ "a reply in the middle of a body",
	  { TO_DATA, { 'C', "hi\r\n" }, { 'S', "552 too big\r\n" },
	    { 'C', ".\r\nQUIT\r\n" }, { 'S', "221 bye\r\n" } },
	  TO_DATA_REPLIES, TCP_STRANGE, 0, 1, 1, false },
	{ "no SMTP server",
	  { { 'S', "HTTP/1.1 400 Bad\r\n" } }, "", TCP_STRANGE, 0, 0, 0,
	  false },
	{ "a client that talks before the greeting",
	  { { 'C', "EHLO c\r\nQUIT\r\n" }, { 'S', "220 mx\r\n250 hi\r\n" },
	    { 'S', "221 bye\r\n" } },
	  "GREET 220;EHLO 250;IDLE 221;", TCP_CLEAR, 0, 0, 0, true },
	{ "a refusing greeting",
	  { { 'S', "554-no\r\n554 go away\r\n" } }, "GREET 554;", TCP_CLEAR, 0,
	  0, 0, true },
	{ "half a command, half a reply",
	  { HELLO, { 'C', "NOOP\r\nNO" }, { 'S', "250 ok\r\n25" } },
	  HELLO_REPLIES "IDLE 250;", TCP_CLEAR, 0, 0, 0, false },
	{ "lines that end in a bare LF, as some servers take them",
	  { HELLO, { 'C', "NOOP\nRSET\n" }, { 'S', "250 a\r\n250 b\r\n" } },
	  HELLO_REPLIES "IDLE 250;IDLE 250;", TCP_CLEAR, 0, 0, 0, true },
	{ "XCLIENT stops the relay",
	  { HELLO, { 'C', "NOOP\r\nxclient addr=127.0.0.1\r\nNOOP\r\n" } },
	  HELLO_REPLIES "forbidden", TCP_CLEAR, 0, 0, 0, false },
	{ "XFORWARD as well",
	  { HELLO, { 'C', "XFORWARD ADDR=127.0.0.1\r\n" } },
	  HELLO_REPLIES "forbidden", TCP_CLEAR, 0, 0, 0, true },
};
/* clang-format on */

enum { STREAMS = sizeof(streams) / sizeof(streams[0]) };

struct heard {
	struct tcp_watch watch;
	char words[WORDS_MAX];
	bool forbidden;
};

static struct heard heard; /* too large for the stack */

static void put(const char *text)
{
	size_t len = strlen(heard.words);

	assert_true(len + strlen(text) < sizeof(heard.words));
	(void)snprintf(heard.words + len, sizeof(heard.words) - len, "%s",
		       text);
}

static void server_says(const uint8_t *octets, size_t len)
{
	while (len > 0) {
		size_t used = 0;
		enum tcp_seen seen = tcp_server_said(&heard.watch, octets, len,
						     &used);
		char word[64];

		assert_true(used > 0);
		assert_true(used <= len);
		octets += used;
		len -= used;
		if (seen == TCP_BLIND)
			assert_int_equal(len, 0);
		if (seen != TCP_REPLY)
			continue;
		(void)snprintf(word, sizeof(word), "%s %u;",
			       busy_stage_name(heard.watch.stage),
			       heard.watch.reply.code);
		put(word);
	}
}

static void client_says(const uint8_t *octets, size_t len)
{
	if (heard.forbidden || len == 0)
		return;
	if (tcp_client_said(&heard.watch, octets, len) == TCP_FORBIDDEN) {
		heard.forbidden = true;
		put("forbidden");
	}
}

static void say(char side, const void *octets, size_t len)
{
	/* A copy of its own, so that a sanitizer sees what is read beyond. */
	uint8_t copy[512];

	assert_true(len <= sizeof(copy));
	memcpy(copy + sizeof(copy) - len, octets, len);
	if (side == 'S')
		server_says(copy + sizeof(copy) - len, len);
	else
		client_says(copy + sizeof(copy) - len, len);
}

/* cut: where each turn is cut in two; SIZE_MAX: after each octet. */
static void hear(const struct stream *s, size_t cut)
{
	memset(&heard, 0, sizeof(heard));
	tcp_begin(&heard.watch);
	assert_int_equal(tcp_awaits(&heard.watch), BUSY_STAGE_GREET);
	for (const struct turn *t = s->turns; t->side != 0; t++) {
		size_t len = strlen(t->octets);

		if (cut == SIZE_MAX) {
			for (size_t i = 0; i < len; i++)
				say(t->side, t->octets + i, 1);
			continue;
		}
		size_t first = cut < len ? cut : len;

		say(t->side, t->octets, first);
		say(t->side, t->octets + first, len - first);
	}
}

static void expect_of(const struct stream *s)
{
	const struct tcp_watch *t = &heard.watch;

	assert_string_equal(heard.words, s->replies);
	assert_int_equal(t->why, s->why);
	assert_int_equal(t->state == TCP_OPAQUE, s->why != TCP_CLEAR);
	assert_int_equal(t->messages, s->messages);
	assert_int_equal(t->transactions, s->transactions);
	assert_int_equal(t->recipients, s->recipients);
	assert_int_equal(tcp_is_idle(t), s->idle);
}

static void streams_are_followed_however_they_are_cut(void **state)
{
	(void)state;
	for (size_t i = 0; i < STREAMS; i++) {
		print_message("  %s\n", streams[i].about);
		for (size_t cut = 0; cut < 40; cut++) {
			hear(&streams[i], cut);
			expect_of(&streams[i]);
		}
		hear(&streams[i], SIZE_MAX);
		expect_of(&streams[i]);
	}
}

static void a_tls_hello_is_known_by_its_first_octet(void **state)
{
	(void)state;
	assert_true(tcp_is_hello("\x16\x03\x01", 3));
	assert_true(tcp_is_hello("\x16", 1));
	assert_false(tcp_is_hello("\x15\x03", 2));
	assert_false(tcp_is_hello("EHLO", 4));
	assert_false(tcp_is_hello("", 0));
}

static void the_client_s_name_and_its_quit_are_read(void **state)
{
	(void)state;
	hear(&streams[0], 3);
	assert_int_equal(heard.watch.helo_len, 6);
	assert_memory_equal(heard.watch.helo, "c.test", 6);
	assert_true(heard.watch.quit);
	assert_int_equal(heard.watch.body_octets, 7);
}

static void what_a_reply_answers_is_known_before_it_comes(void **state)
{
	struct tcp_watch *t = &heard.watch;

	(void)state;
	memset(&heard, 0, sizeof(heard));
	tcp_begin(t);
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_GREET);
	say('S', "220 mx\r\n", 8);
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_IDLE);
	say('C', "MAIL FROM:<>\r\nDATA\r\n", 20);
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_MAIL);
	say('S', "250 ok\r\n354 go\r\n", 16);
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_IDLE);
	say('C', "x\r\n.\r\n", 6);
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_EOD);
}

static void too_many_commands_at_once_are_not_followed(void **state)
{
	struct tcp_watch *t = &heard.watch;

	(void)state;
	memset(&heard, 0, sizeof(heard));
	tcp_begin(t);
	say('S', "220 mx\r\n", 8);
	for (unsigned i = 0; i < TCP_PIPELINE_MAX; i++)
		say('C', "NOOP\r\n", 6);
	assert_int_equal(t->state, TCP_COMMAND);
	assert_int_equal(t->due, TCP_PIPELINE_MAX);
	say('S', "250 ok\r\n", 8);
	say('C', "NOOP\r\n", 6);
	assert_int_equal(t->state, TCP_COMMAND);
	say('C', "NOOP\r\n", 6);
	assert_int_equal(t->why, TCP_STRANGE);
}

static void a_line_without_end_is_not_followed(void **state)
{
	struct tcp_watch *t = &heard.watch;
	char text[400];

	(void)state;
	memset(&heard, 0, sizeof(heard));
	memset(text, 'a', sizeof(text));
	tcp_begin(t);
	say('S', "220 mx\r\n", 8);
	for (size_t len = 0; len + sizeof(text) <= SMTP_AUTH_LINE_MAX;
	     len += sizeof(text))
		say('C', text, sizeof(text));
	assert_int_equal(t->state, TCP_COMMAND);
	say('C', text, sizeof(text));
	assert_int_equal(t->why, TCP_STRANGE);
}

/* An EHLO whose name is too long for us is a command all the same. */
static void a_name_too_long_is_left_out(void **state)
{
	struct tcp_watch *t = &heard.watch;
	char text[400];

	(void)state;
	memset(&heard, 0, sizeof(heard));
	tcp_begin(t);
	say('S', "220 mx\r\n", 8);
	memset(text, 'a', sizeof(text));
	memcpy(text, "EHLO ", 5);
	memcpy(text + sizeof(text) - 2, "\r\n", 2);
	say('C', text, sizeof(text));
	assert_int_equal(tcp_awaits(t), BUSY_STAGE_EHLO);
	assert_true(t->helo_len <= SMTP_DOMAIN_MAX);
}

/* What of an AUTH dialogue could lie in memory, does not. */
static void answers_are_forgotten(void **state)
{
	static const char secret[] = "c2VjcmV0";

	(void)state;
	memset(&heard, 0, sizeof(heard));
	tcp_begin(&heard.watch);
	say('S', "220 mx\r\n", 8);
	say('C', "AUTH LOGIN\r\n", 12);
	say('S', "334 x\r\n", 7);
	say('C', "c2VjcmV0\r\n", 10);
	assert_null(memmem(&heard.watch, sizeof(heard.watch), secret, 8));
	say('S', "235 ok\r\n", 8);
	say('C', "AUTH PLAIN c2VjcmV0\r\n", 21);
	assert_null(memmem(&heard.watch, sizeof(heard.watch), secret, 8));
}

static void every_reason_has_a_name(void **state)
{
	(void)state;
	assert_string_equal(tcp_opaque_name(TCP_CLEAR), "no");
	assert_string_equal(tcp_opaque_name(TCP_STARTTLS), "starttls");
	assert_string_equal(tcp_opaque_name(TCP_TLS), "tls");
	assert_string_equal(tcp_opaque_name(TCP_STRANGE), "strange");
}

/* Any octets from either side, in pieces of any size: no assert, no overrun. */
static void nonsense_is_survived(void **state)
{
	static const char *const words[] = {
		"220 x\r\n",      "250 ok\r\n",   "354 go\r\n",
		"334 x\r\n",      "421 no\r\n",   "MAIL FROM:<>\r\n",
		"DATA\r\n",       "BDAT 5\r\n",   "BDAT 0 LAST\r\n",
		"AUTH LOGIN\r\n", "STARTTLS\r\n", "QUIT\r\n",
		".\r\n",          "\r\n",         "\n",
		"\x16\x03",       "250-",         "EHLO a",
	};
	uint32_t seed = 1;

	(void)state;
	for (unsigned walk = 0; walk < 20000; walk++) {
		memset(&heard, 0, sizeof(heard));
		tcp_begin(&heard.watch);
		if (walk % 4 != 0)
			say('S', "220 x\r\n", 7);
		for (unsigned i = 0; i < 30; i++) {
			seed = seed * 1664525 + 1013904223;
			const char *word =
				words[(seed >> 16) %
				      (sizeof(words) / sizeof(words[0]))];
			size_t len = strlen(word);

			if ((seed >> 28) == 0)
				len = 1;
			heard.words[0] = '\0';
			say(seed >> 31 ? 'S' : 'C', word, len);
			assert_true(heard.watch.due <= TCP_PIPELINE_MAX);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(streams_are_followed_however_they_are_cut),
		cmocka_unit_test(a_tls_hello_is_known_by_its_first_octet),
		cmocka_unit_test(the_client_s_name_and_its_quit_are_read),
		cmocka_unit_test(what_a_reply_answers_is_known_before_it_comes),
		cmocka_unit_test(too_many_commands_at_once_are_not_followed),
		cmocka_unit_test(a_line_without_end_is_not_followed),
		cmocka_unit_test(a_name_too_long_is_left_out),
		cmocka_unit_test(answers_are_forgotten),
		cmocka_unit_test(every_reason_has_a_name),
		cmocka_unit_test(nonsense_is_survived),
	};

	return cmocka_run_group_tests_name("tcp", tests, NULL, NULL);
}
