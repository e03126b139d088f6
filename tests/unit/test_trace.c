#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proxy/trace.h"

static const struct trace plain = {
	.helo = "helo.example",
	.helo_len = 12,
	.address = "192.0.2.50",
	.by = "weir.example",
	.with = "ESMTP",
	.id = "1a2b3c4d-5e",
	.wall_ms = 1795340313000, /* Sun, 22 Nov 2026 09:38:33 UTC */
};

/* What is written, with a NUL behind it. */
static const char *written(const struct trace *trace)
{
	static char buf[TRACE_MAX + 1];

	memset(buf, 0x5a, sizeof(buf));
	size_t len = trace_write(buf, trace);

	assert_true(len <= TRACE_MAX);
	buf[len] = '\0';
	assert_int_equal(strlen(buf), len); /* no NUL in it */
	return buf;
}

static void the_field_is_as_the_header_says(void **state)
{
	(void)state;
	assert_string_equal(written(&plain),
			    "Received: from helo.example ([192.0.2.50])\r\n"
			    "\tby weir.example with ESMTP id 1a2b3c4d-5e;\r\n"
			    "\tSun, 22 Nov 2026 09:38:33 +0000\r\n");
}

static void the_same_trace_gives_the_same_octets(void **state)
{
	(void)state;
	char first[TRACE_MAX], second[TRACE_MAX];

	memset(first, 1, sizeof(first));
	memset(second, 2, sizeof(second));
	size_t len = trace_write(first, &plain);

	assert_int_equal(trace_write(second, &plain), len);
	assert_memory_equal(first, second, len);
	/* And nothing behind it is touched. */
	assert_int_equal(first[len], 1);
}

static void an_address_is_a_literal_of_its_kind(void **state)
{
	(void)state;
	static const struct {
		const char *address, *expected;
	} cases[] = {
		{ "192.0.2.50", "([192.0.2.50])" },
		{ "0.0.0.0", "([0.0.0.0])" },
		{ "2001:db8::1", "([IPv6:2001:db8::1])" },
		{ "::", "([IPv6:::])" },
		{ "::ffff:192.0.2.1", "([IPv6:::ffff:192.0.2.1])" },
		{ "2001:db8:1111:2222:3333:4444:5555:6666",
		  "([IPv6:2001:db8:1111:2222:3333:4444:5555:6666])" },
		/* Not an address: no literal is made of it. */
		{ "", "(unknown)" },
		{ "fe80::1%eth0", "(unknown)" },
		{ "unix:/run/weir", "(unknown)" },
		{ "1.2.3.4) by evil (", "(unknown)" },
	};

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		struct trace trace = plain;
		char expected[128];

		trace.address = cases[c].address;
		(void)snprintf(expected, sizeof(expected),
			       "Received: from helo.example %s\r\n",
			       cases[c].expected);
		assert_memory_equal(written(&trace), expected,
				    strlen(expected));
	}
}

/* The name that is written for this HELO. */
static void check_helo(const char *helo, size_t len, const char *expected,
		       const char *why)
{
	struct trace trace = plain;
	char line[TRACE_MAX];

	trace.helo = helo;
	trace.helo_len = len;
	int line_len = snprintf(line, sizeof(line),
				"Received: from %s ([192.0.2.50])\r\n"
				"\tby weir.example",
				expected);

	print_message("  %s\n", why);
	assert_true(line_len > 0);
	assert_memory_equal(written(&trace), line, (size_t)line_len);
}

#define L63 "abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabc"

static void a_domain_or_a_literal_is_written(void **state)
{
	(void)state;
	static const struct {
		const char *why, *helo;
	} cases[] = {
		{ "one label", "localhost" },
		{ "one letter", "x" },
		{ "digits first", "3com.example" },
		{ "all digits", "12345" },
		{ "case is kept", "Mail.Example.ORG" },
		{ "hyphens inside", "a-b--c.x-y" },
		{ "punycode", "xn--bcher-kva.example" },
		{ "underscores", "_my_host.example" },
		{ "the longest label", L63 ".example" },
		{ "the longest domain", L63 "." L63 "." L63 "." L63 },
		{ "IPv4", "[192.0.2.1]" },
		{ "IPv6", "[IPv6:2001:db8::1]" },
		{ "IPv6 in another case", "[ipv6:::1]" },
		{ "the longest IPv6",
		  "[IPv6:1111:2222:3333:4444:5555:6666:123.123.123.123]" },
	};

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
		check_helo(cases[c].helo, strlen(cases[c].helo), cases[c].helo,
			   cases[c].why);
}

static void anything_else_is_unknown(void **state)
{
	(void)state;
	/* clang-format off */
#define CASE(why, text) { why, text, sizeof(text) - 1 }
	static const struct {
		const char *why, *helo;
		size_t len;
	} cases[] = {
		CASE("nothing", ""),
		CASE("a dot", "."),
		CASE("a dot first", ".example"),
		CASE("a dot last", "example."),
		CASE("two dots", "a..b"),
		CASE("a hyphen first", "-a.b"),
		CASE("a hyphen last", "a.b-"),
		CASE("a hyphen before a dot", "a-.b"),
		CASE("a hyphen after a dot", "a.-b"),
		CASE("a label too long", L63 "x.example"),
		CASE("a domain too long", L63 "." L63 "." L63 "." L63 ".x"),
		CASE("a space", "a b"),
		CASE("a tab", "a\tb"),
		CASE("another clause", "a by evil.example"),
		CASE("a comment", "a(b)"),
		CASE("half a comment", "a("),
		CASE("the other half", "a) (b"),
		CASE("quotes", "\"a\""),
		CASE("a backslash", "a\\b"),
		CASE("a semicolon", "a;b"),
		CASE("a bare CR", "a\rb"),
		CASE("a bare LF", "a\nb"),
		CASE("another field", "a\r\nX-Evil: yes"),
		CASE("a NUL inside", "a\0b"),
		CASE("a NUL last", "a\0"),
		CASE("a DEL", "a\x7f"),
		CASE("an ESC", "\x1b[31m"),
		CASE("Latin-1", "b\xfc" "cher.example"),
		CASE("UTF-8", "b\xc3\xbc" "cher.example"),
		CASE("an angle", "<a>"),
		CASE("an at", "a@b"),
		CASE("a colon", "a:b"),
		CASE("an address, not a literal", "2001:db8::1"),
		CASE("brackets", "[]"),
		CASE("one bracket", "["),
		CASE("the other", "]"),
		CASE("an open literal", "[192.0.2.1"),
		CASE("a name in brackets", "[a.example]"),
		CASE("three numbers", "[192.0.2]"),
		CASE("a number too large", "[192.0.2.256]"),
		CASE("IPv6 without its tag", "[2001:db8::1]"),
		CASE("another tag", "[IPv7:2001:db8::1]"),
		CASE("a tag and nothing", "[IPv6:]"),
		CASE("a zone", "[IPv6:fe80::1%25eth0]"),
		CASE("a NUL in a literal", "[192.0.2.1\0]"),
		CASE("a CRLF in a literal", "[192.0.2.1\r\n]"),
		CASE("a second literal", "[192.0.2.1] [192.0.2.2]"),
		CASE("a literal too long", "[IPv6:1111:2222:3333:4444:5555:6666:123.123.123.1230]"),
	};
#undef CASE
	/* clang-format on */

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
		check_helo(cases[c].helo, cases[c].len, "unknown",
			   cases[c].why);
	check_helo(NULL, 0, "unknown", "no HELO at all");
}

/* What stands before, behind and for the name is always weir's. */
static void check_shape(const char *field)
{
	static const char begin[] = "Received: from ";
	static const char end[] =
		" ([192.0.2.50])\r\n"
		"\tby weir.example with ESMTP id 1a2b3c4d-5e;\r\n"
		"\tSun, 22 Nov 2026 09:38:33 +0000\r\n";
	size_t len = strlen(field);

	assert_true(len >= sizeof(begin) - 1 + 1 + sizeof(end) - 1);
	assert_memory_equal(field, begin, sizeof(begin) - 1);
	assert_memory_equal(field + len - (sizeof(end) - 1), end,
			    sizeof(end) - 1);
	for (size_t i = sizeof(begin) - 1; i < len - (sizeof(end) - 1); i++)
		assert_non_null(strchr("abcdefghijklmnopqrstuvwxyz"
				       "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				       "0123456789-_.[]:",
				       field[i]));
}

static void no_octets_of_a_peer_change_the_shape(void **state)
{
	(void)state;
	uint64_t seed = 4202611220958;
	unsigned unknown = 0;

	for (unsigned octet = 0; octet < 256; octet++) {
		for (size_t at = 0; at < 5; at++) {
			char helo[5] = { 'a', '.', 'b', 'c', 'd' };
			struct trace trace = plain;

			helo[at] = (char)octet;
			trace.helo = helo;
			trace.helo_len = sizeof(helo);
			check_shape(written(&trace));
		}
	}
	for (unsigned i = 0; i < 20000; i++) {
		char helo[300];
		struct trace trace = plain;
		static const char often[] = "a-._[]:6IPv1() \r\n\"\\;";

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		trace.helo = helo;
		trace.helo_len = i % 3 == 0 ? seed % sizeof(helo) : seed % 4;
		for (size_t k = 0; k < trace.helo_len; k++) {
			seed = seed * 6364136223846793005 + 1442695040888963407;
			helo[k] = seed >> 60 ? often[(seed >> 40) %
						     (sizeof(often) - 1)]
					     : (char)(seed >> 32);
		}
		const char *field = written(&trace);

		check_shape(field);
		unknown += strstr(field, "unknown") != NULL;
	}
	assert_true(unknown > 1000);
	assert_true(unknown < 19900); /* and some were names */
}

static void lines_are_short_and_folded(void **state)
{
	(void)state;
	struct trace trace = plain;
	size_t lines = 0;

	/* The longest that can be. */
	trace.helo = L63 "." L63 "." L63 "." L63;
	trace.helo_len = 255;
	trace.address = "1111:2222:3333:4444:5555:6666:123.123.123.123";
	trace.by = L63 "." L63 "." L63 "." L63;
	trace.with = "UTF8LMTPSA";
	trace.id = "0123456789012345678901234567890123456789012345678901234567"
		   "890123";
	const char *at = written(&trace);

	while (*at != '\0') {
		const char *end = strstr(at, "\r\n");

		assert_non_null(end);
		assert_true(end - at <= 998); /* RFC 5322, section 2.1.1 */
		assert_null(memchr(at, '\n', (size_t)(end - at)));
		/* Folded, and not a line of blanks only. */
		if (lines > 0)
			assert_true(at[0] == '\t' && at[1] > ' ');
		lines++;
		at = end + 2;
	}
	assert_int_equal(lines, 3);
}

/* The last line, without the tab and CRLF. */
static const char *date_of(int64_t wall_ms)
{
	static char date[64];
	struct trace trace = plain;

	trace.wall_ms = wall_ms;
	const char *field = written(&trace);
	const char *at = strstr(field, ";\r\n\t");

	assert_non_null(at);
	at += 4;
	size_t len = strcspn(at, "\r");

	assert_string_equal(at + len, "\r\n");
	assert_true(len < sizeof(date));
	memcpy(date, at, len);
	date[len] = '\0';
	return date;
}

static void dates_are_those_of_the_calendar(void **state)
{
	(void)state;
	static const struct {
		int64_t wall_s;
		const char *date;
	} cases[] = {
		{ 0, "Thu, 01 Jan 1970 00:00:00 +0000" },
		{ 86399, "Thu, 01 Jan 1970 23:59:59 +0000" },
		{ 86400, "Fri, 02 Jan 1970 00:00:00 +0000" },
		{ 68169599, "Mon, 28 Feb 1972 23:59:59 +0000" },
		{ 68169600, "Tue, 29 Feb 1972 00:00:00 +0000" },
		{ 951782400, "Tue, 29 Feb 2000 00:00:00 +0000" },
		{ 951868800, "Wed, 01 Mar 2000 00:00:00 +0000" },
		{ 1709164800, "Thu, 29 Feb 2024 00:00:00 +0000" },
		{ 1735689599, "Tue, 31 Dec 2024 23:59:59 +0000" },
		{ 1735689600, "Wed, 01 Jan 2025 00:00:00 +0000" },
		{ 2147483648, "Tue, 19 Jan 2038 03:14:08 +0000" },
		/* 2100 has no 29 February. */
		{ 4107542399, "Sun, 28 Feb 2100 23:59:59 +0000" },
		{ 4107542400, "Mon, 01 Mar 2100 00:00:00 +0000" },
		{ 253402300799, "Fri, 31 Dec 9999 23:59:59 +0000" },
	};

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		assert_string_equal(date_of(cases[c].wall_s * 1000),
				    cases[c].date);
		/* Part of a second does not round up. */
		assert_string_equal(date_of(cases[c].wall_s * 1000 + 999),
				    cases[c].date);
	}
}

static void absurd_times_are_the_nearest_that_can_be_written(void **state)
{
	(void)state;
	static const char first[] = "Thu, 01 Jan 1970 00:00:00 +0000";
	static const char last[] = "Fri, 31 Dec 9999 23:59:59 +0000";

	assert_string_equal(date_of(-1), first);
	assert_string_equal(date_of(-1000), first);
	assert_string_equal(date_of(INT64_MIN), first);
	assert_string_equal(date_of(253402300800000), last);
	assert_string_equal(date_of(INT64_MAX), last);
}

static void every_week_until_2101_agrees_with_the_c_library(void **state)
{
	(void)state;
	static const char *const days[] = { "Sun", "Mon", "Tue", "Wed",
					    "Thu", "Fri", "Sat" };
	static const char *const months[] = { "Jan", "Feb", "Mar", "Apr",
					      "May", "Jun", "Jul", "Aug",
					      "Sep", "Oct", "Nov", "Dec" };

	/* Not quite six days, so that each hour comes by. */
	for (time_t at = 0; at < 4133980800; at += 500003) {
		struct tm tm;
		char date[128];

		assert_non_null(gmtime_r(&at, &tm));
		(void)snprintf(date, sizeof(date),
			       "%s, %02d %s %04d %02d:%02d:%02d +0000",
			       days[tm.tm_wday], tm.tm_mday, months[tm.tm_mon],
			       tm.tm_year + 1900, tm.tm_hour, tm.tm_min,
			       tm.tm_sec);
		assert_string_equal(date_of((int64_t)at * 1000), date);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_field_is_as_the_header_says),
		cmocka_unit_test(the_same_trace_gives_the_same_octets),
		cmocka_unit_test(an_address_is_a_literal_of_its_kind),
		cmocka_unit_test(a_domain_or_a_literal_is_written),
		cmocka_unit_test(anything_else_is_unknown),
		cmocka_unit_test(no_octets_of_a_peer_change_the_shape),
		cmocka_unit_test(lines_are_short_and_folded),
		cmocka_unit_test(dates_are_those_of_the_calendar),
		cmocka_unit_test(
			absurd_times_are_the_nearest_that_can_be_written),
		cmocka_unit_test(
			every_week_until_2101_agrees_with_the_c_library),
	};

	return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
