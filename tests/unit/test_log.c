#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "proxy/log.h"

static struct log_line line;

static void expect(const char *text)
{
	log_end(&line);
	if (line.len != strlen(text) || memcmp(line.text, text, line.len) != 0)
		fail_msg("expected: %s\ngot: %.*s", text, (int)line.len,
			 line.text);
}

static void a_line_is_keys_and_values_in_their_order(void **state)
{
	(void)state;
	log_begin(&line, false, "session", 0);
	log_word(&line, "client", "192.0.2.1:4711");
	log_text(&line, "helo", "a bXXX", 3);
	log_number(&line, "ms", -5);
	expect("event=session client=192.0.2.1:4711 helo=\"a b\" ms=-5");

	log_begin(&line, true, "session", 0);
	log_word(&line, "client", "192.0.2.1:4711");
	log_text(&line, "helo", "a bXXX", 3);
	log_number(&line, "ms", INT64_MIN);
	expect("{\"event\":\"session\",\"client\":\"192.0.2.1:4711\","
	       "\"helo\":\"a b\",\"ms\":-9223372036854775808}");
}

static void the_time_is_utc_to_the_millisecond(void **state)
{
	/* clang-format off */
	static const struct {
		int64_t wall_ms;
		const char *text, *why;
	} cases[] = {
		{ 1, "1970-01-01T00:00:00.001Z", "the first" },
		{ 86399999, "1970-01-01T23:59:59.999Z", "the end of a day" },
		{ 951782400000, "2000-02-29T00:00:00.000Z", "a leap day" },
		{ 951868800000, "2000-03-01T00:00:00.000Z", "and after" },
		{ 1795329227123, "2026-11-22T06:33:47.123Z", "any day" },
		{ 4107542400000, "2100-03-01T00:00:00.000Z",
		  "no leap day in 2100" },
		{ 253402300799999, "9999-12-31T23:59:59.999Z", "the last" },
	};
	/* clang-format on */

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[64] = "time=";

		log_begin(&line, false, "x", cases[i].wall_ms);
		log_end(&line);
		memcpy(text + 5, cases[i].text, strlen(cases[i].text));
		if (line.len < strlen(text) ||
		    memcmp(line.text, text, strlen(text)) != 0)
			fail_msg("%s: %.*s", cases[i].why, (int)line.len,
				 line.text);
	}
}

static void a_value_that_could_mislead_is_quoted_and_escaped(void **state)
{
	/* clang-format off */
	static const struct {
		const char *in;
		size_t len;
		const char *kv, *json, *why;
	} cases[] = {
		{ "plain", 5, "plain", "\"plain\"", "as it is" },
		{ "", 0, "\"\"", "\"\"", "empty" },
		{ "a b", 3, "\"a b\"", "\"a b\"", "a blank" },
		{ "a=b", 3, "\"a=b\"", "\"a=b\"", "looks like a field" },
		{ "a\"b", 3, "\"a\\\"b\"", "\"a\\\"b\"", "a quote" },
		{ "a\\b", 3, "\"a\\\\b\"", "\"a\\\\b\"", "a backslash" },
		{ "a\r\nb", 4, "\"a\\r\\nb\"", "\"a\\r\\nb\"", "a new line" },
		{ "\t", 1, "\"\\t\"", "\"\\t\"", "a tab" },
		{ "\0x", 2, "\"\\x00x\"", "\"\\u0000x\"", "a NUL" },
		{ "\x1b[2J", 4, "\"\\x1b[2J\"", "\"\\u001b[2J\"",
		  "a terminal's escape" },
		{ "\x7f", 1, "\"\\x7f\"", "\"\\u007f\"", "DEL" },
		{ "\xc3\xa4", 2, "\"\\xc3\\xa4\"", "\"\\u00c3\\u00a4\"",
		  "not ASCII" },
		{ "<a@b>", 5, "<a@b>", "\"<a@b>\"", "a path" },
	};
	/* clang-format on */
	char text[128];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		log_begin(&line, false, "x", 0);
		log_text(&line, "v", cases[i].in, cases[i].len);
		(void)snprintf(text, sizeof(text), "event=x v=%s", cases[i].kv);
		expect(text);
		log_begin(&line, true, "x", 0);
		log_text(&line, "v", cases[i].in, cases[i].len);
		(void)snprintf(text, sizeof(text), "{\"event\":\"x\",\"v\":%s}",
			       cases[i].json);
		expect(text);
	}
}

static void every_octet_comes_out_printable(void **state)
{
	(void)state;
	for (int json = 0; json < 2; json++) {
		for (unsigned c = 0; c < 256; c++) {
			char in = (char)c;
			char out[8];
			size_t n = log_escape(out, sizeof(out), json, &in, 1);

			assert_in_range(n, 1, 6);
			for (size_t i = 0; i < n; i++)
				assert_in_range((unsigned char)out[i], 0x20,
						0x7e);
		}
	}
}

static void an_escape_is_written_whole_or_not_at_all(void **state)
{
	char out[16];

	(void)state;
	memset(out, '~', sizeof(out));
	assert_int_equal(log_escape(out, 4, false, "a\x01z", 3), 1);
	assert_int_equal(out[1], '~');
	assert_int_equal(log_escape(out, 5, false, "a\x01z", 3), 5);
	assert_int_equal(out[5], '~');
	assert_int_equal(log_escape(out, 6, true, "a\x01z", 3), 1);
	assert_int_equal(log_escape(out, 7, true, "a\x01z", 3), 7);
	assert_int_equal(log_escape(out, 0, false, "a", 1), 0);
}

static void a_value_is_cut_at_its_limit(void **state)
{
	static char huge[LOG_LINE_MAX * 2];

	(void)state;
	memset(huge, 'h', sizeof(huge));
	log_begin(&line, false, "x", 0);
	log_text(&line, "v", huge, sizeof(huge));
	log_end(&line);
	assert_int_equal(line.len, strlen("event=x v=") + LOG_VALUE_MAX);
	assert_false(line.cut);
}

static void fill(bool json, size_t size)
{
	static const char octets[LOG_VALUE_MAX] = { 1, 'a', 2, '"' };
	const size_t enough = (size_t)LOG_LINE_MAX * 2;

	log_begin(&line, json, "x", 0);
	for (size_t sum = 0; sum < enough; sum += size) {
		log_text(&line, "k", octets, size);
		log_number(&line, "n", (int64_t)sum);
	}
	log_end(&line);
}

/* Fields of every size, so that the end of the line comes at every place. */
static void what_does_not_fit_is_left_out_and_said(void **state)
{
	(void)state;
	for (size_t size = 2; size < (size_t)LOG_VALUE_MAX * 2; size++) {
		bool json = size % 2 == 0;
		const char *tail = json ? ",\"cut\":true}" : " cut=true";
		size_t n = strlen(tail);

		fill(json, size / 2);
		assert_true(line.cut);
		assert_in_range(line.len, n, LOG_LINE_MAX);
		assert_memory_equal(line.text + line.len - n, tail, n);
		for (size_t i = 0; i < line.len; i++)
			assert_in_range((unsigned char)line.text[i], 0x20,
					0x7e);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_is_keys_and_values_in_their_order),
		cmocka_unit_test(the_time_is_utc_to_the_millisecond),
		cmocka_unit_test(
			a_value_that_could_mislead_is_quoted_and_escaped),
		cmocka_unit_test(every_octet_comes_out_printable),
		cmocka_unit_test(an_escape_is_written_whole_or_not_at_all),
		cmocka_unit_test(a_value_is_cut_at_its_limit),
		cmocka_unit_test(what_does_not_fit_is_left_out_and_said),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
