#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/smtp.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* A literal with its length: NUL may be in it. */
#define S(literal) (literal), (sizeof(literal) - 1)

/* ---- lines ---- */

struct scan_case {
	const char *about;
	const char *input;
	size_t len;
	enum smtp_scan result;
	size_t text_len, eaten;
};

static const struct scan_case scans[] = {
	{ "a plain verb", S("QUIT\r\n"), SMTP_SCAN_LINE, 4, 6 },
	{ "an empty line", S("\r\n"), SMTP_SCAN_LINE, 0, 2 },
	{ "only the first line", S("DATA\r\nQUIT\r\n"), SMTP_SCAN_LINE, 4, 6 },
	{ "nothing yet", S(""), SMTP_SCAN_MORE, 0, 0 },
	{ "no line end yet", S("NOOP"), SMTP_SCAN_MORE, 0, 0 },
	{ "the LF is on its way", S("NOOP\r"), SMTP_SCAN_MORE, 0, 0 },
	{ "a bare LF (smuggling)", S("NOOP\nRSET\r\n"), SMTP_SCAN_BAD, 0, 5 },
	{ "a lone LF", S("\n"), SMTP_SCAN_BAD, 0, 1 },
	{ "a bare CR is bad only when its line is whole", S("NOOP\rRSET"),
	  SMTP_SCAN_MORE, 0, 0 },
	{ "a bare CR", S("NOOP\rRSET\r\nQUIT\r\n"), SMTP_SCAN_BAD, 0, 11 },
	{ "CR CR LF", S("NOOP\r\r\n"), SMTP_SCAN_BAD, 0, 7 },
	{ "NUL (V31b)", S("NOOP\0\r\n"), SMTP_SCAN_BAD, 0, 7 },
	{ "NUL between CR and LF", S("NOOP\r\0\n"), SMTP_SCAN_BAD, 0, 7 },
};

/* Feed one octet at a time: a split must never change the answer. */
static enum smtp_scan scan_trickled(const char *input, size_t len, size_t max,
				    struct smtp_line *line)
{
	for (size_t n = 0; n <= len; n++) {
		enum smtp_scan got = smtp_line_scan(input, n, max, line);

		if (got != SMTP_SCAN_MORE)
			return got;
	}
	return SMTP_SCAN_MORE;
}

static void line_scan_answers_alike_whole_and_trickled(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(scans); i++) {
		const struct scan_case *c = &scans[i];
		struct smtp_line whole = { 0 }, parts = { 0 };

		print_message("  %s\n", c->about);
		assert_int_equal(smtp_line_scan(c->input, c->len, 512, &whole),
				 c->result);
		assert_int_equal(scan_trickled(c->input, c->len, 512, &parts),
				 c->result);
		assert_int_equal(whole.eaten, c->eaten);
		assert_int_equal(parts.eaten, c->eaten);
		if (c->result != SMTP_SCAN_LINE)
			continue;
		assert_int_equal(whole.len, c->text_len);
		assert_int_equal(parts.len, c->text_len);
		assert_ptr_equal(whole.text, c->input);
	}
}

/* V32a: 512 octets are a line, 513 are not, CRLF included. */
static void line_of_the_limit_is_read_and_one_octet_more_is_not(void **state)
{
	char buf[SMTP_COMMAND_LINE_MAX + 1];
	struct smtp_line line;

	(void)state;
	memset(buf, 'x', sizeof(buf));
	memcpy(buf + SMTP_COMMAND_LINE_MAX - 2, "\r\n", 2);
	assert_int_equal(
		smtp_line_scan(buf, sizeof(buf), SMTP_COMMAND_LINE_MAX, &line),
		SMTP_SCAN_LINE);
	assert_int_equal(line.eaten, SMTP_COMMAND_LINE_MAX);

	memset(buf, 'x', sizeof(buf));
	memcpy(buf + SMTP_COMMAND_LINE_MAX - 1, "\r\n", 2);
	assert_int_equal(
		smtp_line_scan(buf, sizeof(buf), SMTP_COMMAND_LINE_MAX, &line),
		SMTP_SCAN_LONG);
	assert_int_equal(
		scan_trickled(buf, sizeof(buf), SMTP_COMMAND_LINE_MAX, &line),
		SMTP_SCAN_LONG);
	assert_int_equal(smtp_line_scan(buf, SMTP_COMMAND_LINE_MAX,
					SMTP_COMMAND_LINE_MAX, &line),
			 SMTP_SCAN_LONG);
	assert_int_equal(smtp_line_scan(buf, SMTP_COMMAND_LINE_MAX - 1,
					SMTP_COMMAND_LINE_MAX, &line),
			 SMTP_SCAN_MORE);
}

/* V32c: the end of 64 kB without an LF is no command. */
static void line_too_long_is_skipped_to_its_end_at_any_split(void **state)
{
	enum { LONG = 65536 };
	static const char after[] = "RSET\r\nQUIT\r\n";
	char *buf = malloc(LONG + sizeof(after) - 1);
	size_t len = LONG + sizeof(after) - 1;
	bool ended;

	(void)state;
	assert_non_null(buf);
	memset(buf, 'A', LONG);
	memcpy(buf + LONG, after, sizeof(after) - 1);
	assert_int_equal(smtp_line_skip(buf, LONG + 5, &ended), LONG + 5);
	assert_false(ended);
	assert_int_equal(smtp_line_skip(buf, len, &ended), LONG + 6);
	assert_true(ended);

	size_t dropped = 0;
	for (ended = false; !ended; dropped++)
		assert_int_equal(smtp_line_skip(buf + dropped, 1, &ended), 1);
	assert_int_equal(dropped, LONG + 6);
	assert_int_equal(smtp_line_skip(buf, 0, &ended), 0);
	assert_false(ended);
	free(buf);
}

static void line_limit_follows_the_verb(void **state)
{
	(void)state;
	assert_int_equal(smtp_line_max(S("MAIL FROM:<")), SMTP_PATH_LINE_MAX);
	assert_int_equal(smtp_line_max(S("rcpt\tTO")), SMTP_PATH_LINE_MAX);
	assert_int_equal(smtp_line_max(S("Auth PLAIN")), SMTP_AUTH_LINE_MAX);
	assert_int_equal(smtp_line_max(S("MAILX ")), SMTP_COMMAND_LINE_MAX);
	assert_int_equal(smtp_line_max(S("EHLO x")), SMTP_COMMAND_LINE_MAX);
	assert_int_equal(smtp_line_max(S("MAIL")), SMTP_COMMAND_LINE_MAX);
	assert_int_equal(smtp_line_max(NULL, 0), SMTP_COMMAND_LINE_MAX);
}

static void binary_openings_are_told_from_commands(void **state)
{
	(void)state;
	assert_true(smtp_line_is_binary(S("\026\003\001"))); /* P2a */
	assert_true(smtp_line_is_binary(S("\0")));
	assert_true(smtp_line_is_binary(S("\344")));
	assert_false(smtp_line_is_binary(S("EHLO")));
	assert_false(smtp_line_is_binary(S("\r\n")));
	assert_false(smtp_line_is_binary(S(" QUIT")));
	assert_false(smtp_line_is_binary(NULL, 0));
}

/* ---- commands ---- */

struct command_case {
	const char *about;
	const char *text;
	size_t len;
	enum smtp_verb verb;
	enum smtp_syntax syntax;
	const char *arg;
};

static const struct command_case commands[] = {
	{ "a verb alone", S("QUIT"), SMTP_VERB_QUIT, SMTP_SYNTAX_OK, "" },
	{ "verbs ignore case", S("eHlO mx.example"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_OK, "mx.example" },
	{ "blanks around are cut", S("  RSET  \t"), SMTP_VERB_RSET,
	  SMTP_SYNTAX_OK, "" },
	{ "a prefix is not a verb", S("DATAX"), SMTP_VERB_OTHER,
	  SMTP_SYNTAX_UNKNOWN, "" },
	{ "an abbreviation is not a verb", S("QUI"), SMTP_VERB_OTHER,
	  SMTP_SYNTAX_UNKNOWN, "" },
	{ "nothing", S(""), SMTP_VERB_OTHER, SMTP_SYNTAX_EMPTY, "" },
	{ "blanks only", S(" \t "), SMTP_VERB_OTHER, SMTP_SYNTAX_EMPTY, "" },
	{ "NOOP takes anything", S("NOOP a b"), SMTP_VERB_NOOP, SMTP_SYNTAX_OK,
	  "a b" },
	{ "HELP alone", S("HELP"), SMTP_VERB_HELP, SMTP_SYNTAX_OK, "" },
	{ "DATA takes nothing", S("DATA now"), SMTP_VERB_DATA,
	  SMTP_SYNTAX_ARG_UNWANTED, "now" },
	{ "STARTTLS takes nothing (T5)", S("STARTTLS now"), SMTP_VERB_STARTTLS,
	  SMTP_SYNTAX_ARG_UNWANTED, "now" },
	{ "VRFY wants somebody", S("VRFY"), SMTP_VERB_VRFY,
	  SMTP_SYNTAX_ARG_MISSING, "" },
	{ "AUTH wants a mechanism", S("AUTH"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_MISSING, "" },
	{ "a mechanism alone", S("AUTH LOGIN"), SMTP_VERB_AUTH, SMTP_SYNTAX_OK,
	  "LOGIN" },
	{ "a mechanism is a word of its letters", S("AUTH PL/AIN"),
	  SMTP_VERB_AUTH, SMTP_SYNTAX_ARG_BAD, "PL/AIN" },
	{ "a response is one word", S("AUTH PLAIN AGE AGI"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_BAD, "PLAIN AGE AGI" },
	{ "and base64", S("AUTH PLAIN a.b"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_BAD, "PLAIN a.b" },
	{ "with no more than it is filled up with", S("AUTH PLAIN AA==="),
	  SMTP_VERB_AUTH, SMTP_SYNTAX_ARG_BAD, "PLAIN AA===" },
	{ "at its end", S("AUTH PLAIN A=AA"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_BAD, "PLAIN A=AA" },
	{ "giving up is no initial response", S("AUTH PLAIN *"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_BAD, "PLAIN *" },
	{ "nor are eighth bits", S("AUTH PLAIN \344\344"), SMTP_VERB_AUTH,
	  SMTP_SYNTAX_ARG_BAD, "PLAIN \344\344" },
	{ "XCLIENT is known, to be refused", S("XCLIENT ADDR=127.0.0.1"),
	  SMTP_VERB_XCLIENT, SMTP_SYNTAX_OK, "ADDR=127.0.0.1" },
	{ "XFORWARD too", S("XFORWARD NAME=x"), SMTP_VERB_XFORWARD,
	  SMTP_SYNTAX_OK, "NAME=x" },
	{ "a stray PROXY header (P2b)",
	  S("PROXY TCP4 192.0.2.1 192.0.2.2 1025 25"), SMTP_VERB_PROXY,
	  SMTP_SYNTAX_OK, "TCP4 192.0.2.1 192.0.2.2 1025 25" },
	{ "HTTP (P3)", S("GET / HTTP/1.1"), SMTP_VERB_FOREIGN,
	  SMTP_SYNTAX_UNKNOWN, "/ HTTP/1.1" },
	{ "HTTP POST", S("post / HTTP/1.1"), SMTP_VERB_FOREIGN,
	  SMTP_SYNTAX_UNKNOWN, "/ HTTP/1.1" },
	{ "CONNECT", S("CONNECT a:25 HTTP/1.0"), SMTP_VERB_FOREIGN,
	  SMTP_SYNTAX_UNKNOWN, "a:25 HTTP/1.0" },
	{ "a header field (P3)", S("Host: mx.example.test"), SMTP_VERB_FOREIGN,
	  SMTP_SYNTAX_UNKNOWN, "mx.example.test" },
	{ "no letter first", S("{json}"), SMTP_VERB_FOREIGN,
	  SMTP_SYNTAX_UNKNOWN, "" },

	{ "EHLO wants a name", S("EHLO"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_ARG_MISSING, "" },
	{ "an IPv4 literal", S("EHLO [192.0.2.1]"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_OK, "[192.0.2.1]" },
	{ "an IPv6 literal", S("EHLO [IPv6:2001:db8::1]"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_OK, "[IPv6:2001:db8::1]" },
	{ "a bare address", S("HELO 2001:db8::1"), SMTP_VERB_HELO,
	  SMTP_SYNTAX_OK, "2001:db8::1" },
	{ "underscores and a final dot", S("EHLO my_pc.example."),
	  SMTP_VERB_EHLO, SMTP_SYNTAX_OK, "my_pc.example." },
	{ "two words are no name", S("EHLO a b"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "a b" },
	{ "a control is no name", S("EHLO a\001b"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "a\001b" },
	{ "eighth bits are no name", S("EHLO m\303\244x"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "m\303\244x" },
	{ "a bracket left open", S("EHLO [192.0.2.1"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "[192.0.2.1" },
	{ "an empty literal", S("EHLO []"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "[]" },
	{ "markup is no name", S("EHLO <script>"), SMTP_VERB_EHLO,
	  SMTP_SYNTAX_HOST_BAD, "<script>" },
};

static void commands_are_told_apart_with_their_form_judged(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(commands); i++) {
		const struct command_case *c = &commands[i];
		struct smtp_command got = smtp_command_parse(c->text, c->len);

		print_message("  %s\n", c->about);
		assert_int_equal(got.verb, c->verb);
		assert_int_equal(got.syntax, c->syntax);
		assert_int_equal(got.arg_len, strlen(c->arg));
		assert_memory_equal(got.arg, c->arg, got.arg_len);
	}
}

static void span_equal(const char *at, size_t len, const char *want)
{
	if (want == NULL) {
		assert_null(at);
		assert_int_equal(len, 0);
		return;
	}
	assert_int_equal(len, strlen(want));
	assert_memory_equal(at, want, len);
}

struct auth_case {
	const char *about;
	const char *text;
	unsigned auth;
	const char *initial; /* NULL: none */
};

static const struct auth_case auths[] = {
	{ "no initial response", "AUTH PLAIN", SMTP_AUTH_PLAIN, NULL },
	{ "with one", "AUTH PLAIN AGEAYg==", SMTP_AUTH_PLAIN, "AGEAYg==" },
	{ "an empty one (RFC 4954)", "AUTH PLAIN =", SMTP_AUTH_PLAIN, "=" },
	{ "in any case", "auth login YQ==", SMTP_AUTH_LOGIN, "YQ==" },
	{ "blanks between", "AUTH   XOAUTH2 \t dXNlcj1h/+  ", SMTP_AUTH_XOAUTH2,
	  "dXNlcj1h/+" },
	{ "CRAM-MD5", "AUTH CRAM-MD5", SMTP_AUTH_CRAM_MD5, NULL },
	{ "OAUTHBEARER", "AUTH OAUTHBEARER bg==", SMTP_AUTH_OAUTHBEARER,
	  "bg==" },
	{ "SCRAM-SHA-1", "AUTH SCRAM-SHA-1 bg", SMTP_AUTH_SCRAM_SHA_1, "bg" },
	{ "SCRAM-SHA-256", "AUTH SCRAM-SHA-256", SMTP_AUTH_SCRAM_SHA_256,
	  NULL },
	{ "what binds to a channel is not known", "AUTH SCRAM-SHA-256-PLUS", 0,
	  NULL },
	{ "nor is what nobody relays", "AUTH NTLM TlRM", 0, "TlRM" },
	{ "a prefix is no mechanism", "AUTH PLAI", 0, NULL },
};

static void auth_tells_the_mechanism_and_its_first_word(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(auths); i++) {
		const struct auth_case *c = &auths[i];
		struct smtp_command got = smtp_command_parse(c->text,
							     strlen(c->text));

		print_message("  %s\n", c->about);
		assert_int_equal(got.syntax, SMTP_SYNTAX_OK);
		assert_int_equal(got.auth, c->auth);
		span_equal(got.initial, got.initial_len, c->initial);
	}
	for (unsigned i = 0; i < SMTP_AUTH_BITS; i++) {
		const char *mechanism = smtp_auth_name(
			(enum smtp_auth)(1U << i));
		char text[64];
		int len = snprintf(text, sizeof(text), "AUTH %s", mechanism);

		assert_int_equal(smtp_command_parse(text, (size_t)len).auth,
				 1U << i);
	}
}

static void answer_to_334_is_base64_or_gives_up(void **state)
{
	(void)state;
	assert_true(smtp_auth_line_fits(S("dXNlcg==")));
	assert_true(smtp_auth_line_fits(S("*")));
	assert_true(smtp_auth_line_fits(S("=")));
	assert_true(smtp_auth_line_fits(S("")));
	assert_true(smtp_auth_line_fits(NULL, 0));
	assert_false(smtp_auth_line_fits(S("**")));
	assert_false(smtp_auth_line_fits(S("QUIT now")));
	assert_false(smtp_auth_line_fits(S("YQ==\001")));
	assert_false(smtp_auth_line_fits(S("YQ\0\0")));
	assert_false(smtp_auth_line_fits(S("===")));
}

static void ehlo_name_may_not_be_longer_than_a_domain(void **state)
{
	char text[5 + SMTP_DOMAIN_MAX + 1];

	(void)state;
	memset(text, 'a', sizeof(text));
	memcpy(text, "EHLO ", 5);
	assert_int_equal(smtp_command_parse(text, 5 + SMTP_DOMAIN_MAX).syntax,
			 SMTP_SYNTAX_OK);
	assert_int_equal(smtp_command_parse(text, sizeof(text)).syntax,
			 SMTP_SYNTAX_HOST_BAD);
}

struct path_case {
	const char *about;
	const char *text;
	enum smtp_syntax syntax;
	const char *path;   /* NULL: none is told */
	const char *domain; /* NULL: none */
	const char *params;
};

static const struct path_case paths[] = {
	{ "the plain form", "MAIL FROM:<a@b.test>", SMTP_SYNTAX_OK, "a@b.test",
	  "b.test", "" },
	{ "a blank behind the colon", "MAIL FROM: <a@b>", SMTP_SYNTAX_OK, "a@b",
	  "b", "" },
	{ "many blanks", "mail  from:  \t<a@b>  ", SMTP_SYNTAX_OK, "a@b", "b",
	  "" },
	{ "no brackets", "MAIL FROM:a@b SIZE=3", SMTP_SYNTAX_OK, "a@b", "b",
	  "SIZE=3" },
	{ "the null sender", "MAIL FROM:<>", SMTP_SYNTAX_OK, "", NULL, "" },
	{ "the null sender with a parameter", "MAIL FROM:<> BODY=7BIT",
	  SMTP_SYNTAX_OK, "", NULL, "BODY=7BIT" },
	{ "a source route is read over", "MAIL FROM:<@x.test,@y.test:a@b>",
	  SMTP_SYNTAX_OK, "a@b", "b", "" },
	{ "a source route alone", "MAIL FROM:<@x.test:>",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "postmaster", "RCPT TO:<postmaster>", SMTP_SYNTAX_OK, "postmaster",
	  NULL, "" },
	{ "a quoted local part", "RCPT TO:<\"a b>c\\\"d@e\"@f.test>",
	  SMTP_SYNTAX_OK, "\"a b>c\\\"d@e\"@f.test", "f.test", "" },
	{ "an address literal", "RCPT TO:<a@[IPv6:2001:db8::1]>",
	  SMTP_SYNTAX_OK, "a@[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]", "" },
	{ "underscore and final dot", "RCPT TO:<a@my_host.test.>",
	  SMTP_SYNTAX_OK, "a@my_host.test.", "my_host.test.", "" },
	{ "odd but common local parts", "RCPT TO:<x+y=z#{1}.a..b@c.test>",
	  SMTP_SYNTAX_OK, "x+y=z#{1}.a..b@c.test", "c.test", "" },
	{ "no null recipient", "RCPT TO:<>", SMTP_SYNTAX_RECIPIENT_BAD, NULL,
	  NULL, "" },
	{ "no colon", "MAIL FROM <a@b>", SMTP_SYNTAX_ARG_BAD, NULL, NULL, "" },
	{ "the wrong word", "MAIL TO:<a@b>", SMTP_SYNTAX_ARG_BAD, NULL, NULL,
	  "" },
	{ "nothing at all", "MAIL", SMTP_SYNTAX_ARG_MISSING, NULL, NULL, "" },
	{ "no path", "MAIL FROM:", SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "no path but a parameter", "RCPT TO: ", SMTP_SYNTAX_RECIPIENT_BAD,
	  NULL, NULL, "" },
	{ "no closing bracket", "MAIL FROM:<a@b", SMTP_SYNTAX_SENDER_BAD, NULL,
	  NULL, "" },
	{ "an open quote", "MAIL FROM:<\"a@b>", SMTP_SYNTAX_SENDER_BAD, NULL,
	  NULL, "" },
	{ "a backslash at the very end", "MAIL FROM:<\"a\\",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "no domain", "MAIL FROM:<a@>", SMTP_SYNTAX_SENDER_BAD, NULL, NULL,
	  "" },
	{ "no local part", "MAIL FROM:<@b>", SMTP_SYNTAX_SENDER_BAD, NULL, NULL,
	  "" },
	{ "a bracket inside", "RCPT TO:<a<b@c>", SMTP_SYNTAX_RECIPIENT_BAD,
	  NULL, NULL, "" },
	{ "a blank inside", "RCPT TO:<a b@c>", SMTP_SYNTAX_RECIPIENT_BAD, NULL,
	  NULL, "" },
	{ "a control inside", "RCPT TO:<a\001b@c>", SMTP_SYNTAX_RECIPIENT_BAD,
	  NULL, NULL, "" },
	{ "a control in a quoted part", "RCPT TO:<\"a\tb\"@c>",
	  SMTP_SYNTAX_RECIPIENT_BAD, NULL, NULL, "" },
	{ "an odd domain", "RCPT TO:<a@b/c>", SMTP_SYNTAX_RECIPIENT_BAD, NULL,
	  NULL, "" },
	{ "something sticks to the path", "MAIL FROM:<a@b>SIZE=1",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "something in front of the path", "MAIL FROM:A <a@b>",
	  SMTP_SYNTAX_PARAM_UNKNOWN, "A", NULL, "<a@b>" },
	{ "UTF-8", "RCPT TO:<j\303\266rg@m\303\274ller.test>", SMTP_SYNTAX_OK,
	  "j\303\266rg@m\303\274ller.test", "m\303\274ller.test", "" },
	{ "Latin-1 (V31a)", "MAIL FROM:<\344@example.test>",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "an overlong form", "MAIL FROM:<\300\257@b>", SMTP_SYNTAX_SENDER_BAD,
	  NULL, NULL, "" },
	{ "a surrogate", "MAIL FROM:<\355\240\200@b>", SMTP_SYNTAX_SENDER_BAD,
	  NULL, NULL, "" },
	{ "an overlong form of three", "MAIL FROM:<\340\200\257@b>",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "an overlong form of four", "MAIL FROM:<\360\200\200\257@b>",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "beyond U+10FFFF", "MAIL FROM:<\364\220\200\200@b>",
	  SMTP_SYNTAX_SENDER_BAD, NULL, NULL, "" },
	{ "UTF-8 of three and four",
	  "MAIL FROM:<\342\202\254\360\237\222\251@b>", SMTP_SYNTAX_OK,
	  "\342\202\254\360\237\222\251@b", "b", "" },
	{ "UTF-8 cut short", "MAIL FROM:<a@b\303", SMTP_SYNTAX_SENDER_BAD, NULL,
	  NULL, "" },
};

static void paths_are_read_as_real_clients_write_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(paths); i++) {
		const struct path_case *c = &paths[i];
		struct smtp_command got = smtp_command_parse(c->text,
							     strlen(c->text));

		print_message("  %s\n", c->about);
		assert_int_equal(got.syntax, c->syntax);
		span_equal(got.path, got.path_len, c->path);
		span_equal(got.domain, got.domain_len, c->domain);
		if (c->path != NULL)
			span_equal(got.params, got.params_len, c->params);
	}
}

static void eighth_bits_in_path_or_parameters_are_flagged(void **state)
{
	static const char utf8[] = "MAIL FROM:<\303\244@b> SMTPUTF8";
	static const char param[] = "RCPT TO:<a@b> ORCPT=utf-8;\303\244@b";
	static const char plain[] = "MAIL FROM:<a@b> SMTPUTF8";

	(void)state;
	assert_true(smtp_command_parse(S(utf8)).has_8bit);
	assert_true(smtp_command_parse(S(param)).has_8bit);
	assert_int_equal(smtp_command_parse(S(param)).syntax, SMTP_SYNTAX_OK);
	assert_false(smtp_command_parse(S(plain)).has_8bit);
}

struct param_case {
	const char *text;
	enum smtp_syntax syntax;
	unsigned ext;
};

static const struct param_case params[] = {
	{ "MAIL FROM:<a@b> SIZE=100", SMTP_SYNTAX_OK, SMTP_EXT_SIZE },
	{ "MAIL FROM:<a@b> size=18446744073709551615", SMTP_SYNTAX_OK,
	  SMTP_EXT_SIZE },
	{ "MAIL FROM:<a@b> SIZE=18446744073709551616", SMTP_SYNTAX_PARAM_BAD,
	  0 },
	{ "MAIL FROM:<a@b> SIZE=-1", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> SIZE=", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> SIZE", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> SIZE=1 SIZE=1", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> BODY=7BIT", SMTP_SYNTAX_OK, SMTP_EXT_8BITMIME },
	{ "MAIL FROM:<a@b> BODY=8bitmime", SMTP_SYNTAX_OK, SMTP_EXT_8BITMIME },
	{ "MAIL FROM:<a@b> BODY=BINARYMIME", SMTP_SYNTAX_OK,
	  SMTP_EXT_BINARYMIME | SMTP_EXT_CHUNKING },
	{ "MAIL FROM:<a@b> BODY=9BIT", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> SMTPUTF8 SIZE=1", SMTP_SYNTAX_OK,
	  SMTP_EXT_SMTPUTF8 | SMTP_EXT_SIZE },
	{ "MAIL FROM:<a@b> SMTPUTF8=", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> RET=HDRS ENVID=QQ314159", SMTP_SYNTAX_OK,
	  SMTP_EXT_DSN },
	{ "MAIL FROM:<a@b> RET=ALL", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> BY=120;R", SMTP_SYNTAX_OK, SMTP_EXT_DELIVERBY },
	{ "MAIL FROM:<a@b> MT-PRIORITY=-3", SMTP_SYNTAX_OK,
	  SMTP_EXT_MT_PRIORITY },
	{ "MAIL FROM:<a@b> MT-PRIORITY=12", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> REQUIRETLS", SMTP_SYNTAX_OK, SMTP_EXT_REQUIRETLS },
	{ "MAIL FROM:<a@b> AUTH=<>", SMTP_SYNTAX_OK, SMTP_EXT_AUTH },
	{ "MAIL FROM:<a@b> AUTH=e+3Dmc2@example.com", SMTP_SYNTAX_OK,
	  SMTP_EXT_AUTH },
	{ "MAIL FROM:<a@b> auth=a+2b@b SIZE=1", SMTP_SYNTAX_OK,
	  SMTP_EXT_AUTH | SMTP_EXT_SIZE },
	{ "MAIL FROM:<a@b> AUTH=a=b", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=a+3", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=a+", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=a+3G", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=<> AUTH=<>", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> AUTH=a\001b", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "MAIL FROM:<a@b> NOTIFY=NEVER", SMTP_SYNTAX_PARAM_UNKNOWN, 0 },
	{ "MAIL FROM:<a@b> XOORG=x", SMTP_SYNTAX_PARAM_UNKNOWN, 0 },
	{ "MAIL FROM:<a@b> =5", SMTP_SYNTAX_PARAM_UNKNOWN, 0 },
	{ "RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b", SMTP_SYNTAX_OK,
	  SMTP_EXT_DSN },
	{ "RCPT TO:<a@b> NOTIFY=NEVER", SMTP_SYNTAX_OK, SMTP_EXT_DSN },
	{ "RCPT TO:<a@b> NOTIFY=NEVER,DELAY", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "RCPT TO:<a@b> NOTIFY=DELAY,", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "RCPT TO:<a@b> NOTIFY=", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "RCPT TO:<a@b> ORCPT=a\001b", SMTP_SYNTAX_PARAM_BAD, 0 },
	{ "RCPT TO:<a@b> SIZE=1", SMTP_SYNTAX_PARAM_UNKNOWN, 0 },
};

static void parameters_tell_the_extensions_in_use(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(params); i++) {
		const struct param_case *c = &params[i];
		struct smtp_command got = smtp_command_parse(c->text,
							     strlen(c->text));

		print_message("  %s\n", c->text);
		assert_int_equal(got.syntax, c->syntax);
		if (c->syntax == SMTP_SYNTAX_OK)
			assert_int_equal(got.ext, c->ext);
	}

	struct smtp_command mail = smtp_command_parse(
		S("MAIL FROM:<> SIZE=4711 BODY=BINARYMIME"));
	assert_int_equal(mail.size, 4711);
	assert_int_equal(mail.body, SMTP_BODY_BINARYMIME);
}

struct bdat_case {
	const char *text;
	enum smtp_syntax syntax;
	bool size_known;
	uint64_t size;
	bool last;
};

static const struct bdat_case bdats[] = {
	{ "BDAT 0 LAST", SMTP_SYNTAX_OK, true, 0, true }, /* V28d */
	{ "bdat 86 last", SMTP_SYNTAX_OK, true, 86, true },
	{ "BDAT 18446744073709551615", SMTP_SYNTAX_OK, true, UINT64_MAX,
	  false },
	{ "BDAT 18446744073709551616", SMTP_SYNTAX_ARG_BAD, false, 0,
	  false },                                           /* V28a */
	{ "BDAT -1", SMTP_SYNTAX_ARG_BAD, false, 0, false }, /* V28b */
	{ "BDAT +1", SMTP_SYNTAX_ARG_BAD, false, 0, false },
	{ "BDAT 0x10", SMTP_SYNTAX_ARG_BAD, false, 0, false },
	{ "BDAT", SMTP_SYNTAX_ARG_MISSING, false, 0, false },
	{ "BDAT LAST", SMTP_SYNTAX_ARG_BAD, false, 0, false },
	/* the octets follow all the same: they must be swallowed */
	{ "BDAT 6 FIRST", SMTP_SYNTAX_ARG_BAD, true, 6, false },
	{ "BDAT 6 LAST LAST", SMTP_SYNTAX_ARG_BAD, true, 6, false },
};

static void bdat_sizes_are_read_in_64_bits_or_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(bdats); i++) {
		const struct bdat_case *c = &bdats[i];
		struct smtp_command got = smtp_command_parse(c->text,
							     strlen(c->text));

		print_message("  %s\n", c->text);
		assert_int_equal(got.verb, SMTP_VERB_BDAT);
		assert_int_equal(got.syntax, c->syntax);
		assert_int_equal(got.size_known, c->size_known);
		assert_true(got.size == c->size);
		assert_int_equal(got.bdat_last, c->last);
	}
}

static void every_verdict_but_ok_has_a_reply_of_class_5(void **state)
{
	(void)state;
	assert_null(smtp_syntax_reply(SMTP_SYNTAX_OK));
	for (int s = SMTP_SYNTAX_OK + 1; s <= SMTP_SYNTAX_PARAM_UNKNOWN; s++) {
		const char *reply = smtp_syntax_reply((enum smtp_syntax)s);
		struct smtp_reply_parser r;
		size_t used;

		assert_non_null(reply);
		smtp_reply_begin(&r, false);
		assert_int_equal(
			smtp_reply_feed(&r, reply, strlen(reply), &used),
			SMTP_REPLY_WHOLE);
		assert_int_equal(used, strlen(reply));
		assert_in_range(r.code, 500, 555);
	}
	for (int v = SMTP_VERB_OTHER; v <= SMTP_VERB_FOREIGN; v++)
		assert_non_null(smtp_verb_name((enum smtp_verb)v));
}

/* ---- replies ---- */

struct reply_case {
	const char *about;
	const char *input;
	size_t len;
	enum smtp_reply_fed result;
	enum smtp_reply_bad bad;
	size_t used;
	unsigned code, lines;
	const char *text, *head;
};

#define WHOLE    SMTP_REPLY_WHOLE, SMTP_REPLY_GOOD
#define BAD(why) SMTP_REPLY_BAD, SMTP_REPLY_BAD_##why

static const struct reply_case replies[] = {
	{ "one line", S("250 2.0.0 Ok\r\n"), WHOLE, 14, 250, 1, "2.0.0 Ok",
	  "2.0.0 Ok" },
	{ "three lines", S("220-a\r\n220-b b\r\n220 c\r\n"), WHOLE, 23, 220, 3,
	  "a b b c", "c" },
	{ "a code alone", S("250\r\n"), WHOLE, 5, 250, 1, "", "" },
	{ "a code and a blank", S("354 \r\n"), WHOLE, 6, 354, 1, "", "" },
	{ "what follows is left", S("220 ready\r\n250-evil\r\n"), WHOLE, 11,
	  220, 1, "ready", "ready" }, /* T3 */
	{ "not yet whole", S("250-a\r\n250 b\r"), SMTP_REPLY_MORE,
	  SMTP_REPLY_GOOD, 13, 250, 2, "a b", "b" },
	{ "no octet yet", S(""), SMTP_REPLY_MORE, SMTP_REPLY_GOOD, 0, 0, 0, "",
	  "" },
	{ "words only", S("hello\r\n"), BAD(CODE), 1, 0, 0, "", "" },
	{ "1yz is not of SMTP", S("150 x\r\n"), BAD(CODE), 1, 0, 0, "", "" },
	{ "6yz is of nobody", S("650 x\r\n"), BAD(CODE), 1, 0, 0, "", "" },
	{ "an empty line", S("\r\n"), BAD(CODE), 1, 0, 0, "", "" },
	{ "two digits", S("25 x\r\n"), BAD(CODE), 3, 0, 1, "", "" },
	{ "four digits", S("2500 x\r\n"), BAD(FORM), 4, 250, 1, "", "" },
	{ "no mark", S("250x\r\n"), BAD(FORM), 4, 250, 1, "", "" },
	{ "two codes", S("250-a\r\n251 b\r\n"), BAD(MIXED), 10, 250, 2, "a",
	  "" },
	{ "a bare LF", S("250 a\n"), BAD(BARE_LF), 6, 250, 1, "a", "a" },
	{ "a bare LF instead of a code", S("\n"), BAD(BARE_LF), 1, 0, 0, "",
	  "" },
	{ "a bare CR", S("250 a\rb\r\n"), BAD(BARE_CR), 7, 250, 1, "a", "a" },
	{ "CR CR LF", S("250 a\r\r\n"), BAD(BARE_CR), 7, 250, 1, "a", "a" },
	{ "NUL", S("250 a\0b\r\n"), BAD(NUL), 6, 250, 1, "a", "a" },
	{ "NUL instead of LF", S("250 a\r\0\n"), BAD(NUL), 7, 250, 1, "a",
	  "a" },
};

static enum smtp_reply_fed feed_trickled(struct smtp_reply_parser *r,
					 const char *input, size_t len,
					 size_t *used)
{
	*used = 0;
	for (size_t i = 0; i < len; i++) {
		size_t one;
		enum smtp_reply_fed got = smtp_reply_feed(r, input + i, 1,
							  &one);

		*used += one;
		if (got != SMTP_REPLY_MORE)
			return got;
	}
	return SMTP_REPLY_MORE;
}

static void reply_check(const struct smtp_reply_parser *r,
			const struct reply_case *c)
{
	assert_int_equal(r->bad, c->bad);
	assert_int_equal(r->code, c->code);
	assert_int_equal(r->lines, c->lines);
	assert_int_equal(r->octets, c->used);
	assert_false(r->truncated);
	if (c->result == SMTP_REPLY_BAD)
		return;
	assert_int_equal(r->text_len, strlen(c->text));
	assert_memory_equal(r->text, c->text, r->text_len);
	assert_int_equal(r->head_len, strlen(c->head));
	assert_memory_equal(r->head, c->head, r->head_len);
}

static void replies_read_alike_whole_trickled_and_split_anywhere(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(replies); i++) {
		const struct reply_case *c = &replies[i];
		struct smtp_reply_parser r;
		size_t used, more;

		print_message("  %s\n", c->about);
		smtp_reply_begin(&r, false);
		assert_int_equal(smtp_reply_feed(&r, c->input, c->len, &used),
				 c->result);
		assert_int_equal(used, c->used);
		reply_check(&r, c);

		smtp_reply_begin(&r, false);
		assert_int_equal(feed_trickled(&r, c->input, c->len, &used),
				 c->result);
		assert_int_equal(used, c->used);
		reply_check(&r, c);

		for (size_t at = 0; at < c->used; at++) {
			smtp_reply_begin(&r, false);
			assert_int_equal(
				smtp_reply_feed(&r, c->input, at, &used),
				SMTP_REPLY_MORE);
			assert_int_equal(used, at);
			assert_int_equal(smtp_reply_feed(&r, c->input + at,
							 c->len - at, &more),
					 c->result);
			assert_int_equal(used + more, c->used);
			reply_check(&r, c);
		}
	}
}

static void reply_line_of_the_limit_is_read_and_one_more_is_bad(void **state)
{
	char buf[SMTP_REPLY_LINE_MAX + 1];
	struct smtp_reply_parser r;
	size_t used;

	(void)state;
	memset(buf, 'x', sizeof(buf));
	memcpy(buf, "250 ", 4);
	memcpy(buf + SMTP_REPLY_LINE_MAX - 2, "\r\n", 2);
	smtp_reply_begin(&r, false);
	assert_int_equal(smtp_reply_feed(&r, buf, SMTP_REPLY_LINE_MAX, &used),
			 SMTP_REPLY_WHOLE);
	assert_true(r.truncated);
	assert_int_equal(r.text_len, SMTP_REPLY_TEXT_MAX);
	assert_int_equal(r.head_len, SMTP_REPLY_HEAD_MAX);

	memcpy(buf + SMTP_REPLY_LINE_MAX - 2, "x\r\n", 3);
	smtp_reply_begin(&r, false);
	assert_int_equal(smtp_reply_feed(&r, buf, sizeof(buf), &used),
			 SMTP_REPLY_BAD);
	assert_int_equal(r.bad, SMTP_REPLY_BAD_LONG);
	assert_int_equal(used, sizeof(buf));
}

static void reply_of_too_many_lines_is_bad(void **state)
{
	struct smtp_reply_parser r;
	size_t used;

	(void)state;
	smtp_reply_begin(&r, false);
	for (int i = 0; i < SMTP_REPLY_LINES_MAX; i++)
		assert_int_equal(smtp_reply_feed(&r, S("220-x\r\n"), &used),
				 SMTP_REPLY_MORE);
	assert_int_equal(smtp_reply_feed(&r, S("220 x\r\n"), &used),
			 SMTP_REPLY_BAD);
	assert_int_equal(r.bad, SMTP_REPLY_BAD_LINES);
	assert_int_equal(r.lines, SMTP_REPLY_LINES_MAX);
	for (int b = SMTP_REPLY_GOOD; b <= SMTP_REPLY_BAD_LINES; b++)
		assert_non_null(smtp_reply_bad_name((enum smtp_reply_bad)b));
}

static void ehlo_reply_tells_what_is_offered(void **state)
{
	static const char offer[] =
		"250-SIZE 1\r\n" /* a server of this name offers nothing */
		"250-size 52428800\r\n"
		"250-PIPELINING\r\n250-8BITMIME\r\n250-X-UNKNOWN yes\r\n"
		"250-AUTH=LOGIN PLAIN\r\n250-XCLIENT NAME ADDR\r\n"
		"250-DSNX\r\n250 CHUNKING\r\n";
	struct smtp_reply_parser r;
	size_t used;

	(void)state;
	smtp_reply_begin(&r, true);
	assert_int_equal(feed_trickled(&r, S(offer), &used), SMTP_REPLY_WHOLE);
	assert_int_equal(r.ehlo.ext, SMTP_EXT_SIZE | SMTP_EXT_PIPELINING |
					     SMTP_EXT_8BITMIME | SMTP_EXT_AUTH |
					     SMTP_EXT_XCLIENT |
					     SMTP_EXT_CHUNKING);
	assert_int_equal(r.ehlo.size, 52428800);
	assert_int_equal(r.ehlo.auth, SMTP_AUTH_LOGIN | SMTP_AUTH_PLAIN);
	assert_int_equal(r.ehlo.xclient, SMTP_XCLIENT_NAME | SMTP_XCLIENT_ADDR);

	smtp_reply_begin(&r, true);
	assert_int_equal(smtp_reply_feed(&r, S("250 SIZE 1\r\n"), &used),
			 SMTP_REPLY_WHOLE);
	assert_int_equal(r.ehlo.ext, 0);
	smtp_reply_begin(&r, true);
	assert_int_equal(smtp_reply_feed(&r, S("550-no\r\n550 DSN\r\n"), &used),
			 SMTP_REPLY_WHOLE);
	assert_int_equal(r.ehlo.ext, 0);
	smtp_reply_begin(&r, false);
	assert_int_equal(smtp_reply_feed(&r, S(offer), &used),
			 SMTP_REPLY_WHOLE);
	assert_int_equal(r.ehlo.ext, 0);
}

static void ehlo_size_without_a_number_means_no_limit(void **state)
{
	struct smtp_ehlo ehlo = { .size = 7 };

	(void)state;
	assert_int_equal(smtp_ehlo_keyword(S("SIZE"), &ehlo), SMTP_EXT_SIZE);
	assert_int_equal(ehlo.size, 0);
	ehlo.size = 7;
	assert_int_equal(
		smtp_ehlo_keyword(S("SIZE 18446744073709551616"), &ehlo),
		SMTP_EXT_SIZE);
	assert_int_equal(ehlo.size, 0);
	assert_int_equal(smtp_ehlo_keyword(S("SIZE 0"), &ehlo), SMTP_EXT_SIZE);
	assert_int_equal(ehlo.size, 0);
	assert_int_equal(smtp_ehlo_keyword(S(""), &ehlo), 0);
	assert_int_equal(smtp_ehlo_keyword(NULL, 0, &ehlo), 0);
}

struct offer_case {
	const char *line;
	unsigned ext, auth, xclient;
};

#define XCLIENT_ALL ((1U << SMTP_XCLIENT_BITS) - 1)

static const struct offer_case offers[] = {
	{ "AUTH PLAIN LOGIN", SMTP_EXT_AUTH, SMTP_AUTH_PLAIN | SMTP_AUTH_LOGIN,
	  0 },
	{ "AUTH=PLAIN LOGIN", SMTP_EXT_AUTH, SMTP_AUTH_PLAIN | SMTP_AUTH_LOGIN,
	  0 },
	{ "AUTH= PLAIN", SMTP_EXT_AUTH, SMTP_AUTH_PLAIN, 0 },
	{ "auth\tcram-md5  xoauth2 ", SMTP_EXT_AUTH,
	  SMTP_AUTH_CRAM_MD5 | SMTP_AUTH_XOAUTH2, 0 },
	{ "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-1", SMTP_EXT_AUTH,
	  SMTP_AUTH_SCRAM_SHA_1, 0 },
	{ "AUTH SCRAM-SHA-256 OAUTHBEARER GSSAPI NTLM", SMTP_EXT_AUTH,
	  SMTP_AUTH_SCRAM_SHA_256 | SMTP_AUTH_OAUTHBEARER, 0 },
	{ "AUTH", SMTP_EXT_AUTH, 0, 0 },
	{ "AUTH=", SMTP_EXT_AUTH, 0, 0 },
	{ "AUTHX PLAIN", 0, 0, 0 },
	{ "STARTTLS", SMTP_EXT_STARTTLS, 0, 0 },
	/* Postfix 3.7 */
	{ "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR "
	  "DESTPORT",
	  SMTP_EXT_XCLIENT, 0, XCLIENT_ALL },
	/* KumoMTA */
	{ "XCLIENT ADDR PORT DESTADDR DESTPORT", SMTP_EXT_XCLIENT, 0,
	  SMTP_XCLIENT_ADDR | SMTP_XCLIENT_PORT | SMTP_XCLIENT_DESTADDR |
		  SMTP_XCLIENT_DESTPORT },
	/* Dovecot: what it alone knows is not ours to say */
	{ "xclient addr port proto helo login session ttl timeout forward",
	  SMTP_EXT_XCLIENT, 0,
	  SMTP_XCLIENT_ADDR | SMTP_XCLIENT_PORT | SMTP_XCLIENT_PROTO |
		  SMTP_XCLIENT_HELO | SMTP_XCLIENT_LOGIN },
	{ "XCLIENT", SMTP_EXT_XCLIENT, 0, 0 },
	{ "XFORWARD NAME ADDR", SMTP_EXT_XFORWARD, 0, 0 },
};

static void ehlo_lines_tell_mechanisms_and_attributes(void **state)
{
	struct smtp_ehlo all = { 0 };

	(void)state;
	for (size_t i = 0; i < COUNT(offers); i++) {
		const struct offer_case *c = &offers[i];
		struct smtp_ehlo ehlo = { 0 };

		print_message("  %s\n", c->line);
		assert_int_equal(
			smtp_ehlo_keyword(c->line, strlen(c->line), &ehlo),
			c->ext);
		assert_int_equal(ehlo.ext, c->ext);
		assert_int_equal(ehlo.auth, c->auth);
		assert_int_equal(ehlo.xclient, c->xclient);
	}
	/* Many servers have a line of either form. */
	(void)smtp_ehlo_keyword(S("AUTH PLAIN"), &all);
	(void)smtp_ehlo_keyword(S("AUTH=LOGIN"), &all);
	assert_int_equal(all.auth, SMTP_AUTH_PLAIN | SMTP_AUTH_LOGIN);
	for (unsigned i = 0; i < SMTP_XCLIENT_BITS; i++) {
		struct smtp_ehlo ehlo = { 0 };
		char text[64];
		int len = snprintf(
			text, sizeof(text), "XCLIENT %s",
			smtp_xclient_name((enum smtp_xclient)(1U << i)));

		(void)smtp_ehlo_keyword(text, (size_t)len, &ehlo);
		assert_int_equal(ehlo.xclient, 1U << i);
	}
}

struct esc_case {
	const char *line;
	unsigned class, subject, detail; /* class 0: none */
};

static const struct esc_case escs[] = {
	{ "4.3.2 Service not available", 4, 3, 2 },
	{ "2.0.0", 2, 0, 0 },
	{ " 4.7.650 The mail server", 4, 7, 650 },
	{ "out of memory (#4.3.0)", 4, 3, 0 },
	{ "be1 (#x) then (#5.1.1) and (#4.0.0)", 5, 1, 1 },
	{ "4.3.1 first (#5.5.5)", 4, 3, 1 },
	{ "4.3.2.1 is an address", 0, 0, 0 },
	{ "4.3.2, yes", 4, 3, 2 },
	{ "4.3.2.", 4, 3, 2 },
	{ "3.3.2 no such class", 0, 0, 0 },
	{ "4.3 is half", 0, 0, 0 },
	{ "4.3.", 0, 0, 0 },
	{ "4..3", 0, 0, 0 },
	{ "4.1234.1", 0, 0, 0 },
	{ "4.1.1234", 0, 0, 0 },
	{ "says 4.3.2 later", 0, 0, 0 },
	{ "(#4.3.0", 0, 0, 0 },
	{ "(#", 0, 0, 0 },
	{ "", 0, 0, 0 },
};

static void enhanced_codes_are_found_where_servers_put_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(escs); i++) {
		const struct esc_case *c = &escs[i];
		struct smtp_esc esc;

		print_message("  %s\n", c->line);
		assert_int_equal(smtp_reply_esc(c->line, strlen(c->line), &esc),
				 c->class != 0);
		assert_int_equal(esc.class, c->class);
		assert_int_equal(esc.subject, c->subject);
		assert_int_equal(esc.detail, c->detail);
	}
}

struct id_case {
	const char *line;
	const char *id; /* "": none */
};

static const struct id_case ids[] = {
	{ "2.0.0 Ok: queued as 4XYZab1234z9", "4XYZab1234z9" },
	{ "2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as A1",
	  "A1" },
	{ "OK id=1abcDE-000FGH-2J", "1abcDE-000FGH-2J" },
	{ "2.0.0 5a6b7c8d Message accepted for delivery", "5a6b7c8d" },
	{ "2.0.0 45M1aBcD012345 Message accepted for delivery",
	  "45M1aBcD012345" },
	{ "2.6.0 <00af@ex01.corp.test> [InternalId=1234, Hostname=ex01] "
	  "1521 bytes in 0.1, 9 KB/sec Queued mail for delivery",
	  "00af@ex01.corp.test" },
	{ "Message Queued (9D2C-11E9.1)", "9D2C-11E9.1" },
	{ "ok 1066409422 qp 12345", "12345" },
	{ "Ok: queued as ABC.", "ABC" },
	{ "Message accepted for delivery", "" },
	{ "2.0.0 Message accepted for delivery", "" },
	{ "2.0.0 Ok: queued as \"x\"", "" },
	{ "2.0.0 Ok: queued as ", "" },
	{ "2.0.0 Ok", "" },
	{ "queued as a\001b", "a" },
	{ "", "" },
};

static void queue_ids_are_read_from_the_words_of_known_servers(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(ids); i++) {
		const struct id_case *c = &ids[i];
		size_t start = 0;
		size_t len = smtp_reply_queue_id(c->line, strlen(c->line),
						 &start);

		print_message("  %s\n", c->line);
		assert_int_equal(len, strlen(c->id));
		assert_memory_equal(c->line + start, c->id, len);
	}

	char line[SMTP_QUEUE_ID_MAX + 64] = "queued as ";
	size_t start = 0;

	memset(line + 10, 'x', sizeof(line) - 10);
	assert_int_equal(smtp_reply_queue_id(line, sizeof(line), &start),
			 SMTP_QUEUE_ID_MAX);
	assert_int_equal(start, 10);
}

/* ---- our own words ---- */

static void our_ehlo_reply_reads_back_as_what_was_offered(void **state)
{
	char buf[SMTP_EHLO_REPLY_MAX], name[SMTP_DOMAIN_MAX + 1];
	const unsigned own = SMTP_EXT_PIPELINING | SMTP_EXT_ENHANCED;

	(void)state;
	memset(name, 'm', SMTP_DOMAIN_MAX);
	name[SMTP_DOMAIN_MAX] = '\0';
	for (unsigned ext = 0; ext < 1U << SMTP_EXT_BITS; ext++) {
		const struct smtp_ehlo offer = {
			.ext = ext,
			.auth = ext & ((1U << SMTP_AUTH_BITS) - 1),
			.xclient = XCLIENT_ALL,
			.size = UINT64_MAX,
		};
		struct smtp_reply_parser r;
		size_t len = smtp_ehlo_write(buf, sizeof(buf), name, &offer);
		unsigned want = (ext & ((unsigned)SMTP_EXT_RELAYED |
					SMTP_EXT_STARTTLS | SMTP_EXT_AUTH)) |
				own;
		size_t used;

		if ((ext & SMTP_EXT_CHUNKING) == 0)
			want &= ~(unsigned)SMTP_EXT_BINARYMIME;
		if (offer.auth == 0)
			want &= ~(unsigned)SMTP_EXT_AUTH;
		smtp_reply_begin(&r, true);
		assert_int_equal(smtp_reply_feed(&r, buf, len, &used),
				 SMTP_REPLY_WHOLE);
		assert_int_equal(used, len);
		assert_int_equal(r.code, 250);
		assert_int_equal(r.ehlo.ext, want);
		assert_int_equal(r.ehlo.auth,
				 want & SMTP_EXT_AUTH ? offer.auth : 0);
		assert_int_equal(r.ehlo.xclient, 0);
		if ((ext & SMTP_EXT_SIZE) != 0)
			assert_true(r.ehlo.size == UINT64_MAX);
	}
}

static void our_ehlo_reply_is_written_out_as_the_rfc_has_it(void **state)
{
	static const char want[] =
		"250-mx.test\r\n250-SIZE\r\n250-8BITMIME\r\n"
		"250-AUTH PLAIN LOGIN SCRAM-SHA-256\r\n"
		"250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n"
		"250 STARTTLS\r\n";
	static const struct smtp_ehlo offer = {
		.ext = SMTP_EXT_SIZE | SMTP_EXT_8BITMIME | SMTP_EXT_XCLIENT |
		       SMTP_EXT_STARTTLS | SMTP_EXT_AUTH,
		.auth = SMTP_AUTH_SCRAM_SHA_256 | SMTP_AUTH_PLAIN |
			SMTP_AUTH_LOGIN,
	};
	char buf[SMTP_EHLO_REPLY_MAX];
	size_t len = smtp_ehlo_write(buf, sizeof(buf), "mx.test", &offer);

	(void)state;
	assert_int_equal(len, sizeof(want) - 1);
	assert_memory_equal(buf, want, len);
	assert_string_equal(smtp_ext_name(SMTP_EXT_MT_PRIORITY), "MT-PRIORITY");
}

/* ---- bodies ---- */

/*
 * The slow, plain reading of RFC 5321 section 4.1.1.4, octet by octet with
 * all of the body at hand, to compare the scanner with.  Returns octets.
 */
static size_t plain_body(const char *text, size_t len, bool *ended,
			 unsigned *flaws)
{
	*ended = false;
	*flaws = 0;
	for (size_t i = 0; i < len; i++) {
		char before = i > 0 ? text[i - 1] : '\0';

		if (text[i] == '\0')
			*flaws |= SMTP_FLAW_NUL;
		if (text[i] == '\n' && before != '\r')
			*flaws |= SMTP_FLAW_BARE_LF;
		if (before == '\r' && text[i] != '\n')
			*flaws |= SMTP_FLAW_BARE_CR;
		if ((i == 2 && memcmp(text, ".\r\n", 3) == 0) ||
		    (i >= 4 && memcmp(text + i - 4, "\r\n.\r\n", 5) == 0)) {
			*ended = true;
			return i + 1;
		}
	}
	return len;
}

/* Scan in two pieces, cut at `cut`; or octet by octet if cut > len. */
static void body_scan_cut(struct smtp_body *b, const char *text, size_t len,
			  size_t cut)
{
	size_t at = 0;

	smtp_body_begin(b);
	while (at < len && !b->ended) {
		size_t piece = len - at;

		if (cut > len)
			piece = 1;
		else if (at < cut)
			piece = cut - at;

		size_t taken = smtp_body_scan(b, text + at, piece);

		assert_true(taken == piece || b->ended);
		at += taken;
		assert_int_equal(b->octets, at);
	}
}

static void body_check(const char *text, size_t len)
{
	bool ended;
	unsigned flaws;
	size_t taken = plain_body(text, len, &ended, &flaws);

	for (size_t cut = 0; cut <= len + 1; cut++) {
		struct smtp_body b;

		body_scan_cut(&b, text, len, cut);
		assert_int_equal(b.ended, ended);
		assert_int_equal(b.flaws, flaws);
		assert_int_equal(b.octets, taken);
	}
}

/* Turn \r \n \t \NNN of a table's cell into octets.  Returns how many. */
static size_t unescape(const char *cell, char *out, size_t cap)
{
	size_t len = 0;

	while (*cell != '\0') {
		char c = *cell++;

		if (c == '\\' && *cell == 'r') {
			c = '\r';
			cell++;
		} else if (c == '\\' && *cell == 'n') {
			c = '\n';
			cell++;
		} else if (c == '\\' && *cell == 't') {
			c = '\t';
			cell++;
		} else if (c == '\\') {
			char *rest;
			char digits[4] = { 0 };

			memcpy(digits, cell, 3);
			c = (char)strtoul(digits, &rest, 8);
			assert_ptr_equal(rest, digits + 3);
			cell += 3;
		}
		assert_true(len < cap);
		out[len++] = c;
	}
	return len;
}

struct vector {
	char id[8];
	char must[128];
	char bytes[256];
	size_t len;
};

/* The next row of the table of vectors that has octets.  False at the end. */
static bool vector_next(FILE *in, struct vector *v)
{
	char row[1024];

	while (fgets(row, sizeof(row), in) != NULL) {
		char *bytes = strchr(row, '\t');

		assert_non_null(strchr(row, '\n'));
		if (row[0] == '#' || bytes == NULL)
			continue;
		*bytes++ = '\0';

		char *must = strchr(bytes, '\t');

		assert_non_null(must);
		*must++ = '\0';
		if (strcmp(bytes, "-") == 0)
			continue;
		v->len = unescape(bytes, v->bytes, sizeof(v->bytes));
		must[strcspn(must, "\t\n")] = '\0';
		assert_true(strlen(row) < sizeof(v->id));
		assert_true(strlen(must) < sizeof(v->must));
		memcpy(v->id, row, strlen(row) + 1);
		memcpy(v->must, must, strlen(must) + 1);
		return true;
	}
	return false;
}

static FILE *vectors_open(void)
{
	const char *path = getenv("WEIR_SMUGGLING");
	FILE *in = fopen(path != NULL ? path : "tests/data/smuggling.tsv", "r");

	assert_non_null(in);
	return in;
}

/* Rows V01 to V26 but V23, which is the cutting itself. */
static void smuggling_vectors_end_and_flaw_bodies_as_they_must(void **state)
{
	FILE *in = vectors_open();
	struct vector v;
	unsigned rows = 0;

	(void)state;
	while (vector_next(in, &v)) {
		char text[512] = "body";
		size_t len = 4;
		struct smtp_body b;

		if (v.id[0] != 'V' || atol(v.id + 1) > 26)
			continue;
		if (strcmp(v.id, "V25") == 0)
			len = 0; /* right behind 354 */
		memcpy(text + len, v.bytes, v.len);
		len += v.len;
		print_message("  %s: %s\n", v.id, v.must);
		body_check(text, len);

		/* A CR at the very end is bare only once something follows. */
		if (strncmp(v.must, "end", 3) != 0) {
			memcpy(text + len, "x", 1);
			len++;
		}
		smtp_body_begin(&b);

		size_t taken = smtp_body_scan(&b, text, len);

		assert_int_equal(b.ended, strncmp(v.must, "end", 3) == 0);
		assert_int_equal(b.flaws != 0,
				 strstr(v.must, "refuse") != NULL);
		if (strcmp(v.id, "V14") == 0)
			assert_int_equal(text[taken], '\0');
		else if (strcmp(v.id, "V26") == 0)
			assert_memory_equal(text + taken, "MAIL FROM:", 10);
		else
			assert_int_equal(taken, len);
		rows++;
	}
	assert_int_equal(rows, 25);
	assert_int_equal(fclose(in), 0);
}

struct vector_answer {
	const char *id;
	enum smtp_scan scan;
	enum smtp_verb verb;
	enum smtp_syntax syntax;
};

/* What the first line of each vector that is a command must come out as. */
static const struct vector_answer answers[] = {
	{ "V28a", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_ARG_BAD },
	{ "V28b", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_ARG_BAD },
	{ "V28c", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_OK },
	{ "V28d", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_OK },
	{ "V28e", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_OK },
	{ "V28f", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_OK },
	{ "V29", SMTP_SCAN_LINE, SMTP_VERB_BDAT, SMTP_SYNTAX_OK },
	{ "V30", SMTP_SCAN_LINE, SMTP_VERB_DATA, SMTP_SYNTAX_OK },
	{ "V31a", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_SENDER_BAD },
	{ "V31b", SMTP_SCAN_BAD, SMTP_VERB_OTHER, SMTP_SYNTAX_OK },
	{ "T1", SMTP_SCAN_LINE, SMTP_VERB_STARTTLS, SMTP_SYNTAX_OK },
	{ "T4", SMTP_SCAN_LINE, SMTP_VERB_STARTTLS, SMTP_SYNTAX_OK },
	{ "T5", SMTP_SCAN_LINE, SMTP_VERB_STARTTLS, SMTP_SYNTAX_ARG_UNWANTED },
	{ "T6", SMTP_SCAN_LINE, SMTP_VERB_STARTTLS, SMTP_SYNTAX_OK },
	{ "P1", SMTP_SCAN_LINE, SMTP_VERB_EHLO, SMTP_SYNTAX_OK },
	{ "P2a", SMTP_SCAN_MORE, SMTP_VERB_OTHER, SMTP_SYNTAX_OK },
	{ "P2b", SMTP_SCAN_LINE, SMTP_VERB_PROXY, SMTP_SYNTAX_OK },
	{ "P3", SMTP_SCAN_LINE, SMTP_VERB_FOREIGN, SMTP_SYNTAX_UNKNOWN },
	{ "P4", SMTP_SCAN_LINE, SMTP_VERB_DATA, SMTP_SYNTAX_OK },
	{ "P5", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_OK },
	{ "P6", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_OK },
	{ "P7", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_OK },
	{ "P8", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_OK },
	{ "P9", SMTP_SCAN_LINE, SMTP_VERB_MAIL, SMTP_SYNTAX_OK },
};

static void vector_check(const struct vector *v, const struct vector_answer *a)
{
	struct smtp_line line = { 0 }, parts = { 0 };
	enum smtp_scan got = smtp_line_scan(
		v->bytes, v->len, smtp_line_max(v->bytes, v->len), &line);

	print_message("  %s: %s\n", v->id, v->must);
	assert_int_equal(got, a->scan);
	assert_int_equal(scan_trickled(v->bytes, v->len,
				       smtp_line_max(v->bytes, v->len), &parts),
			 got);
	assert_int_equal(parts.eaten, line.eaten);
	assert_int_equal(parts.len, line.len);
	if (got != SMTP_SCAN_LINE)
		return;

	struct smtp_command cmd = smtp_command_parse(line.text, line.len);

	assert_int_equal(cmd.verb, a->verb);
	assert_int_equal(cmd.syntax, a->syntax);
	/* V29: the chunk is 37 octets and all the rest, whatever is in it. */
	if (strcmp(v->id, "V29") == 0)
		assert_int_equal(line.eaten + cmd.size, v->len);
}

static void smuggling_vectors_of_commands_read_as_they_must(void **state)
{
	FILE *in = vectors_open();
	struct vector v;
	unsigned rows = 0;

	(void)state;
	while (vector_next(in, &v)) {
		for (size_t i = 0; i < COUNT(answers); i++) {
			if (strcmp(answers[i].id, v.id) != 0)
				continue;
			vector_check(&v, &answers[i]);
			rows++;
		}
	}
	assert_int_equal(rows, COUNT(answers));
	assert_int_equal(fclose(in), 0);
}

/* V32b */
static void auth_line_of_4_kb_is_read(void **state)
{
	static char buf[4096];
	struct smtp_line line;

	(void)state;
	memset(buf, 'A', sizeof(buf));
	memcpy(buf, "AUTH PLAIN ", 11);
	memcpy(buf + sizeof(buf) - 2, "\r\n", 2);
	assert_int_equal(smtp_line_scan(buf, sizeof(buf),
					smtp_line_max(buf, sizeof(buf)), &line),
			 SMTP_SCAN_LINE);
	assert_int_equal(smtp_command_parse(line.text, line.len).verb,
			 SMTP_VERB_AUTH);
}

/* ---- bodies without their dots ---- */

enum { UNDOT_MAX = 600 };

/*
 * What a chunk must carry for text[0..len), the slow way: all of it at hand,
 * by RFC 5321 section 4.5.2.  Returns octets; *taken is where the body stops.
 */
static size_t plain_undot(const char *text, size_t len, char *out,
			  size_t *taken, bool *ended)
{
	size_t n = 0, stop;
	unsigned flaws;

	*taken = plain_body(text, len, ended, &flaws);
	stop = *ended ? *taken - 3 : *taken;
	for (size_t i = 0; i < stop; i++) {
		bool bol = i == 0 ||
			   (i >= 2 && memcmp(text + i - 2, "\r\n", 2) == 0);

		if (!bol || text[i] != '.') {
			out[n++] = text[i];
			continue;
		}
		/* ".\r" last of all: nobody knows yet what it is */
		if (i + 2 == stop && !*ended && text[i + 1] == '\r')
			break;
	}
	return n;
}

/* Both workers over one window; true: the body ended in it. */
static bool undot_window(struct smtp_undot *counter, struct smtp_undot *maker,
			 const char *text, size_t len, char *out, size_t *n,
			 size_t *at)
{
	char window[UNDOT_MAX];
	struct smtp_reframed r = smtp_reframe(counter, text, len);

	memcpy(window, text, len);

	size_t kept = smtp_undot(maker, window, len);

	assert_int_equal(r.octets, kept + r.owes_cr);
	assert_int_equal(r.ended, counter->ended);
	assert_int_equal(r.ended, maker->ended);
	assert_true(r.taken == len || r.ended);
	if (r.owes_cr)
		out[(*n)++] = '\r';
	memcpy(out + *n, window, kept);
	*n += kept;
	*at += r.taken;
	return r.ended;
}

/* Whole, octet by octet, and in three pieces cut at every two places. */
static void undot_check(const char *text, size_t len)
{
	char want[UNDOT_MAX], got[UNDOT_MAX + 1];
	size_t taken;
	bool ended;
	size_t want_len = plain_undot(text, len, want, &taken, &ended);

	assert_true(len <= UNDOT_MAX);
	for (size_t first = 0; first <= len; first++) {
		for (size_t second = first; second <= len + 1; second++) {
			struct smtp_undot counter, maker;
			size_t at = 0, n = 0;
			bool done = false;

			smtp_undot_begin(&counter);
			smtp_undot_begin(&maker);
			while (at < len && !done) {
				size_t to = at < first    ? first
					    : at < second ? second
							  : len;

				if (second > len)
					to = at + 1;
				if (to > len)
					to = len;
				done = undot_window(&counter, &maker, text + at,
						    to - at, got, &n, &at);
			}
			assert_int_equal(done, ended);
			assert_int_equal(at, taken);
			assert_int_equal(n, want_len);
			assert_memory_equal(got, want, n);
		}
	}
}

struct undot_case {
	const char *about;
	const char *body;
	size_t body_len;
	const char *want;
	size_t want_len;
	bool ended;
};

static const struct undot_case undots[] = {
	{ "an empty message", S(".\r\n"), S(""), true },
	{ "the end's CRLF is the last line's", S("a\r\n.\r\n"), S("a\r\n"),
	  true },
	{ "a stuffed dot goes, its line stays", S("a\r\n..\r\n.\r\n"),
	  S("a\r\n.\r\n"), true },
	{ "at the begin of the body as well", S("..a\r\n.\r\n"), S(".a\r\n"),
	  true },
	{ "one dot of a line goes, whatever follows", S(".a\r\n.\r\n"),
	  S("a\r\n"), true },
	{ "only the first", S("...\r\n.\r\n"), S("..\r\n"), true },
	{ "a bare LF begins no line (V01)", S("a\n.\nb\r\n.\r\n"),
	  S("a\n.\nb\r\n"), true },
	{ "nor does a bare CR (V05)", S("a\r.\r\n.\r\n"), S("a\r.\r\n"), true },
	{ "a dot before a bare LF goes, the LF stays (V03)",
	  S("a\r\n.\nb\r\n.\r\n"), S("a\r\n\nb\r\n"), true },
	{ "behind the dot a CR that ends nothing stays (V06)",
	  S("a\r\n.\rb\r\n.\r\n"), S("a\r\n\rb\r\n"), true },
	{ "and CR CR LF is a CR and a line end (V16)", S("a\r\n.\r\r\n.\r\n"),
	  S("a\r\n\r\r\n"), true },
	{ "a NUL between them is a NUL (V13)", S("a\r\n.\r\0\n.\r\n"),
	  S("a\r\n\r\0\n.\r\n"), false },
	{ "what follows the end is not the body's", S(".\r\nMAIL"), S(""),
	  true },
	{ "a dot at the very end goes", S("a\r\n."), S("a\r\n"), false },
	{ "its CR waits", S("a\r\n.\r"), S("a\r\n"), false },
	{ "no other CR does", S("a\r\na\r"), S("a\r\na\r"), false },
};

static void dots_are_taken_out_of_a_body_at_any_split(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(undots); i++) {
		const struct undot_case *c = &undots[i];
		char want[UNDOT_MAX];
		size_t taken;
		bool ended;

		print_message("  %s\n", c->about);
		assert_int_equal(
			plain_undot(c->body, c->body_len, want, &taken, &ended),
			c->want_len);
		assert_memory_equal(want, c->want, c->want_len);
		assert_int_equal(ended, c->ended);
		undot_check(c->body, c->body_len);
	}
}

static void cr_behind_a_dot_is_owed_to_the_next_window(void **state)
{
	struct smtp_undot u;
	struct smtp_reframed r;

	(void)state;
	smtp_undot_begin(&u);
	r = smtp_reframe(&u, S("a\r\n.\r"));
	assert_int_equal(r.taken, 5);
	assert_int_equal(r.octets, 3);
	assert_int_equal(r.stuffed, 1);
	assert_false(r.owes_cr);
	r = smtp_reframe(&u, S(""));
	assert_int_equal(r.octets, 0);
	assert_false(r.owes_cr);
	r = smtp_reframe(&u, S("x"));
	assert_int_equal(r.taken, 1);
	assert_int_equal(r.octets, 2);
	assert_true(r.owes_cr);
	assert_false(r.ended);
	r = smtp_reframe(&u, S("\r\n."));
	assert_int_equal(r.octets, 2);
	assert_int_equal(r.stuffed, 1);
	assert_false(r.owes_cr);
	(void)smtp_reframe(&u, S("\r"));
	r = smtp_reframe(&u, S("\nQUIT"));
	assert_int_equal(r.taken, 1);
	assert_int_equal(r.octets, 0);
	assert_false(r.owes_cr);
	assert_true(r.ended);
}

/* Each at the places of a block where its octets meet a border. */
static void smuggling_vectors_lose_their_dots_as_the_rfc_says(void **state)
{
	FILE *in = vectors_open();
	struct vector v;
	unsigned rows = 0;

	(void)state;
	while (vector_next(in, &v)) {
		char text[256];

		if (v.id[0] != 'V' || atol(v.id + 1) > 26)
			continue;
		print_message("  %s\n", v.id);
		for (size_t before = 0; before <= 70; before++) {
			/* all of a line, then what is cut off the block */
			if (before > 4 && before < 56)
				continue;
			memset(text, 'x', sizeof(text));
			memcpy(text + before, v.bytes, v.len);
			memcpy(text + before + v.len, "y\r\n.\r\n", 6);
			undot_check(text, before + v.len + 6);
		}
		rows++;
	}
	assert_int_equal(rows, 25);
	assert_int_equal(fclose(in), 0);
}

/* Every text of six of the octets that matter, cut at every place. */
static void every_short_body_is_read_as_the_rfc_reads_it(void **state)
{
	static const char octets[] = { '\r', '\n', '.', 'x', '\0' };
	enum { LEN = 6 };
	size_t total = 1;

	(void)state;
	for (int i = 0; i < LEN; i++)
		total *= sizeof(octets);
	for (size_t n = 0; n < total; n++) {
		char text[LEN];
		size_t rest = n;

		for (int i = 0; i < LEN; i++) {
			text[i] = octets[rest % sizeof(octets)];
			rest /= sizeof(octets);
		}
		body_check(text, LEN);
		undot_check(text, LEN);
	}
}

/* V27 */
static void body_of_one_line_of_a_million_octets_passes(void **state)
{
	enum { LONG = 1000000 };
	char *text = malloc(LONG + 5);
	struct smtp_body b;

	(void)state;
	assert_non_null(text);
	memset(text, 'x', LONG);
	memcpy(text + LONG, "\r\n.\r\n", 5);
	smtp_body_begin(&b);
	assert_int_equal(smtp_body_scan(&b, NULL, 0), 0);
	assert_int_equal(smtp_body_scan(&b, text, LONG + 5), LONG + 5);
	assert_true(b.ended);
	assert_int_equal(b.flaws, 0);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(line_scan_answers_alike_whole_and_trickled),
		cmocka_unit_test(
			line_of_the_limit_is_read_and_one_octet_more_is_not),
		cmocka_unit_test(
			line_too_long_is_skipped_to_its_end_at_any_split),
		cmocka_unit_test(line_limit_follows_the_verb),
		cmocka_unit_test(binary_openings_are_told_from_commands),
		cmocka_unit_test(
			commands_are_told_apart_with_their_form_judged),
		cmocka_unit_test(auth_tells_the_mechanism_and_its_first_word),
		cmocka_unit_test(answer_to_334_is_base64_or_gives_up),
		cmocka_unit_test(ehlo_name_may_not_be_longer_than_a_domain),
		cmocka_unit_test(paths_are_read_as_real_clients_write_them),
		cmocka_unit_test(eighth_bits_in_path_or_parameters_are_flagged),
		cmocka_unit_test(parameters_tell_the_extensions_in_use),
		cmocka_unit_test(bdat_sizes_are_read_in_64_bits_or_refused),
		cmocka_unit_test(every_verdict_but_ok_has_a_reply_of_class_5),
		cmocka_unit_test(
			replies_read_alike_whole_trickled_and_split_anywhere),
		cmocka_unit_test(
			reply_line_of_the_limit_is_read_and_one_more_is_bad),
		cmocka_unit_test(reply_of_too_many_lines_is_bad),
		cmocka_unit_test(ehlo_reply_tells_what_is_offered),
		cmocka_unit_test(ehlo_size_without_a_number_means_no_limit),
		cmocka_unit_test(ehlo_lines_tell_mechanisms_and_attributes),
		cmocka_unit_test(
			enhanced_codes_are_found_where_servers_put_them),
		cmocka_unit_test(
			queue_ids_are_read_from_the_words_of_known_servers),
		cmocka_unit_test(our_ehlo_reply_reads_back_as_what_was_offered),
		cmocka_unit_test(
			our_ehlo_reply_is_written_out_as_the_rfc_has_it),
		cmocka_unit_test(
			smuggling_vectors_end_and_flaw_bodies_as_they_must),
		cmocka_unit_test(
			smuggling_vectors_of_commands_read_as_they_must),
		cmocka_unit_test(auth_line_of_4_kb_is_read),
		cmocka_unit_test(dots_are_taken_out_of_a_body_at_any_split),
		cmocka_unit_test(cr_behind_a_dot_is_owed_to_the_next_window),
		cmocka_unit_test(
			smuggling_vectors_lose_their_dots_as_the_rfc_says),
		cmocka_unit_test(every_short_body_is_read_as_the_rfc_reads_it),
		cmocka_unit_test(body_of_one_line_of_a_million_octets_passes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
