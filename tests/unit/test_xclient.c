#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proxy/xclient.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

enum {
	ALL = (1 << SMTP_XCLIENT_BITS) - 1,
	/* Exim 4.97 and KumoMTA */
	FEW = SMTP_XCLIENT_ADDR | SMTP_XCLIENT_PORT | SMTP_XCLIENT_DESTADDR |
	      SMTP_XCLIENT_DESTPORT,
};

struct line_case {
	const char *about;
	unsigned attributes;
	bool local, smtp;   /* smtp: it said HELO */
	const char *addr;   /* "": unknown */
	unsigned port;      /* 0: unknown */
	const char *dest;   /* "": unknown */
	unsigned dest_port; /* 0: unknown */
	const char *helo;   /* "": unknown */
	const char *want;   /* without CRLF; "": nothing */
};

/* clang-format off */
static const struct line_case lines[] = {
	{ "Postfix: all of its nine, each with a value",
	  ALL, false, false, "192.0.2.50", 4711, "203.0.113.1", 25, "client.test",
	  "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.50 PORT=4711 PROTO=ESMTP "
	  "HELO=client.test LOGIN=[UNAVAILABLE] DESTADDR=203.0.113.1 "
	  "DESTPORT=25 REVERSE_NAME=[UNAVAILABLE]" },
	{ "the next client leaves none of them to the one before",
	  ALL, false, true, "192.0.2.91", 1, "", 0, "",
	  "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.91 PORT=1 PROTO=SMTP "
	  "HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE] DESTADDR=[UNAVAILABLE] "
	  "DESTPORT=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]" },
	{ "IPv6 in either place",
	  ALL, false, false, "2001:db8::1", 65535, "2001:db8::25", 587, "c",
	  "XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=65535 "
	  "PROTO=ESMTP HELO=c LOGIN=[UNAVAILABLE] "
	  "DESTADDR=IPV6:2001:db8::25 DESTPORT=587 "
	  "REVERSE_NAME=[UNAVAILABLE]" },
	{ "IPv4 in IPv6 is IPv4",
	  FEW, false, false, "::ffff:192.0.2.50", 4711, "::ffff:10.0.0.1", 25, "c",
	  "XCLIENT ADDR=192.0.2.50 PORT=4711 DESTADDR=10.0.0.1 DESTPORT=25" },
	{ "what is not offered is not said: 501 it would be",
	  FEW, false, false, "192.0.2.50", 4711, "203.0.113.1", 25, "client.test",
	  "XCLIENT ADDR=192.0.2.50 PORT=4711 DESTADDR=203.0.113.1 DESTPORT=25" },
	{ "ADDR alone",
	  SMTP_XCLIENT_ADDR, false, false, "192.0.2.50", 1, "", 0, "c",
	  "XCLIENT ADDR=192.0.2.50" },
	{ "without ADDR nobody is introduced",
	  ALL & ~SMTP_XCLIENT_ADDR, false, false, "192.0.2.50", 1, "", 0, "c", "" },
	{ "nothing offered", 0, false, false, "192.0.2.50", 1, "", 0, "c", "" },
	{ "a probe is nobody, whatever stands beside it",
	  ALL, true, true, "192.0.2.50", 1, "203.0.113.1", 25, "c",
	  "XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] "
	  "PROTO=ESMTP HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE] "
	  "DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE] "
	  "REVERSE_NAME=[UNAVAILABLE]" },
	{ "an address literal stands for itself",
	  SMTP_XCLIENT_ADDR | SMTP_XCLIENT_HELO, false, false, "192.0.2.1", 1, "", 0,
	  "[IPv6:2001:db8::1]",
	  "XCLIENT ADDR=192.0.2.1 HELO=[IPv6:2001:db8::1]" },
	{ "+ and = are xtext",
	  SMTP_XCLIENT_ADDR | SMTP_XCLIENT_HELO, false, false, "192.0.2.1", 1, "", 0,
	  "[a+b=c]", "XCLIENT ADDR=192.0.2.1 HELO=[a+2Bb+3Dc]" },
	{ "blanks, controls and eighth bits too: no second attribute, no CRLF",
	  SMTP_XCLIENT_ADDR | SMTP_XCLIENT_HELO, false, false, "192.0.2.1", 1, "", 0,
	  "x ADDR=1\r\n\177\344",
	  "XCLIENT ADDR=192.0.2.1 HELO=x+20ADDR+3D1+0D+0A+7F+E4" },
};
/* clang-format on */

static struct cidr_addr address(const char *text)
{
	struct cidr_addr addr = { { 0 } };

	if (text[0] != '\0')
		assert_true(cidr_addr_parse(text, strlen(text), &addr));
	return addr;
}

static struct xclient who_of(const struct line_case *c)
{
	struct xclient who = {
		.local = c->local,
		.esmtp = !c->smtp,
		.port = (uint16_t)c->port,
		.dest_port = (uint16_t)c->dest_port,
		.addr = address(c->addr),
		.dest = address(c->dest),
		.helo_len = (uint16_t)strlen(c->helo),
	};

	memcpy(who.helo, c->helo, strlen(c->helo));
	return who;
}

static void clients_are_told_with_all_that_the_server_takes(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(lines); i++) {
		const struct line_case *c = &lines[i];
		struct xclient who = who_of(c);
		char buf[XCLIENT_LINE_MAX];
		size_t len = xclient_write(buf, c->attributes, &who);
		size_t want = strlen(c->want);

		print_message("  %s\n", c->about);
		if (want == 0) {
			assert_int_equal(len, 0);
			continue;
		}
		assert_int_equal(len, want + 2);
		assert_memory_equal(buf, c->want, want);
		assert_memory_equal(buf + want, "\r\n", 2);
	}
}

/* The value behind name=, up to the next blank or CR.  Returns its length. */
static size_t value_of(const char *line, size_t len, const char *name,
		       const char **value)
{
	char key[32];
	const char *at;
	size_t n = 0;

	(void)snprintf(key, sizeof(key), " %s=", name);
	at = memmem(line, len, key, strlen(key));
	assert_non_null(at);
	*value = at + strlen(key);
	while ((*value)[n] != ' ' && (*value)[n] != '\r')
		n++;
	return n;
}

/* Every set of attributes, with the longest that there is of each value. */
static void every_line_is_whole_and_no_longer_than_a_command(void **state)
{
	struct xclient who = {
		.esmtp = true,
		.port = 65535,
		.dest_port = 65535,
		.addr = address("2001:db8:1111:2222:3333:4444:5555:6666"),
		.dest = address("2001:db8:1111:2222:3333:4444:5555:7777"),
		.helo_len = SMTP_DOMAIN_MAX,
	};
	size_t longest = 0;

	(void)state;
	memset(who.helo, 'h', sizeof(who.helo));
	for (unsigned set = 0; set <= ALL; set++) {
		char buf[XCLIENT_LINE_MAX];
		size_t len = xclient_write(buf, set, &who);

		assert_int_equal(len > 0, (set & SMTP_XCLIENT_ADDR) != 0);
		if (len == 0)
			continue;
		longest = len > longest ? len : longest;
		assert_memory_equal(buf + len - 2, "\r\n", 2);
		assert_ptr_equal(memchr(buf, '\r', len), buf + len - 2);
		for (unsigned i = 0; i < SMTP_XCLIENT_BITS; i++) {
			const char *name = smtp_xclient_name(
				(enum smtp_xclient)(1U << i));
			const char *value;
			char key[32];

			(void)snprintf(key, sizeof(key), " %s=", name);
			if ((set & 1U << i) != 0)
				assert_true(value_of(buf, len, name, &value) >
					    0);
			else
				assert_null(memmem(buf, len, key, strlen(key)));
		}
	}
	assert_true(longest > SMTP_DOMAIN_MAX + 150);
	assert_true(longest <= XCLIENT_LINE_MAX);
}

static void name_that_grows_too_long_is_not_told(void **state)
{
	(void)state;
	for (size_t odd = 0; odd <= SMTP_DOMAIN_MAX; odd++) {
		struct xclient who = {
			.addr = address("192.0.2.1"),
			.helo_len = SMTP_DOMAIN_MAX,
		};
		char buf[XCLIENT_LINE_MAX];
		const char *value;

		/* Each of these takes three octets. */
		for (size_t len = odd; len <= SMTP_DOMAIN_MAX; len++) {
			size_t written = len + 2 * odd;

			memset(who.helo, 'h', sizeof(who.helo));
			memset(who.helo + len - odd, '+', odd);
			who.helo_len = (uint16_t)len;

			size_t n = xclient_write(buf, ALL, &who);
			size_t got = value_of(buf, n, "HELO", &value);

			if (len == 0 || written > XCLIENT_VALUE_MAX)
				assert_memory_equal(value, "[UNAVAILABLE] ",
						    14);
			else
				assert_int_equal(got, written);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			clients_are_told_with_all_that_the_server_takes),
		cmocka_unit_test(
			every_line_is_whole_and_no_longer_than_a_command),
		cmocka_unit_test(name_that_grows_too_long_is_not_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
