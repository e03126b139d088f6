#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "proxy/report.h"

enum { CAP = 64 * 1024 };

static char buf[CAP];
static struct report report;

static const struct report_column columns[] = {
	{ "name", REPORT_LEFT, REPORT_ALL },
	{ "age", REPORT_RIGHT, REPORT_PEOPLE },
	{ "age_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "why", REPORT_LEFT, REPORT_ALL },
};

static void begin(enum report_format format)
{
	memset(buf, '~', sizeof(buf));
	report_init(&report, format, buf, sizeof(buf));
	report_table(&report, "things", "# ", columns, 4);
}

static void row(const char *name, int64_t age, const char *why, size_t why_len)
{
	report_word(&report, name);
	report_number(&report, age);
	report_number(&report, age * 1000);
	report_text(&report, why, why_len);
}

static void expect(const char *text)
{
	report_end(&report);
	if (report.len != strlen(text) || memcmp(buf, text, report.len) != 0)
		fail_msg("expected:\n%sgot:\n%.*s", text, (int)report.len, buf);
}

static void two_rows(enum report_format format)
{
	begin(format);
	row("a", 7, "well", 4);
	row("longer", 12345, "", 0);
}

static void a_text_table_is_aligned(void **state)
{
	(void)state;
	two_rows(REPORT_TEXT);
	expect("name      age  why\n"
	       "a           7  well\n"
	       "longer  12345  -\n");
}

static void csv_has_a_head_and_machine_columns(void **state)
{
	(void)state;
	two_rows(REPORT_CSV);
	expect("# name,age_ms,why\n"
	       "a,7000,well\n"
	       "longer,12345000,\n");
}

static void json_is_one_object(void **state)
{
	(void)state;
	two_rows(REPORT_JSON);
	expect("{\"things\":[\n"
	       "{\"name\":\"a\",\"age_ms\":7000,\"why\":\"well\"},\n"
	       "{\"name\":\"longer\",\"age_ms\":12345000,\"why\":null}\n"
	       "],\"more\":0}\n");
}

static void a_table_without_rows_is_whole(void **state)
{
	(void)state;
	begin(REPORT_TEXT);
	expect("name  age  why\n");
	begin(REPORT_CSV);
	expect("# name,age_ms,why\n");
	begin(REPORT_JSON);
	expect("{\"things\":[\n],\"more\":0}\n");
}

static void a_peers_octets_do_no_harm(void **state)
{
	static const char evil[] = "a,\"b\"\n\x1b\x1c\x1e\x1f\xff";

	(void)state;
	begin(REPORT_TEXT);
	row("x", 1, evil, sizeof(evil) - 1);
	expect("name  age  why\n"
	       "x       1  a,\\\"b\\\"\\n\\x1b\\x1c\\x1e\\x1f\\xff\n");
	begin(REPORT_CSV);
	row("x", 1, evil, sizeof(evil) - 1);
	expect("# name,age_ms,why\n"
	       "x,1000,\"a,\"\"b\"\"\\n\\x1b\\x1c\\x1e\\x1f\\xff\"\n");
	begin(REPORT_JSON);
	row("x", 1, evil, sizeof(evil) - 1);
	expect("{\"things\":[\n{\"name\":\"x\",\"age_ms\":1000,\"why\":"
	       "\"a,\\\"b\\\"\\n\\u001b\\u001c\\u001e\\u001f\\u00ff\"}\n"
	       "],\"more\":0}\n");
}

static void rows_not_tried_are_counted(void **state)
{
	(void)state;
	begin(REPORT_TEXT);
	row("a", 1, "w", 1);
	report_more(&report, 41);
	report_more(&report, 1);
	expect("name  age  why\n"
	       "a       1  w\n"
	       "... 42 more not shown\n");
	begin(REPORT_CSV);
	report_more(&report, 2);
	expect("# name,age_ms,why\n"
	       "# 2 more not shown\n");
	begin(REPORT_JSON);
	report_more(&report, 2);
	expect("{\"things\":[\n],\"more\":2}\n");
}

/* The number behind "more", or 0. */
static unsigned long said_more(enum report_format format)
{
	const char *word = format == REPORT_JSON  ? "\"more\":"
			   : format == REPORT_CSV ? "# "
						  : "... ";
	const char *at = NULL;
	char *text = buf;

	assert_true(report.len < sizeof(buf));
	buf[report.len] = '\0';
	for (char *p = strstr(text, word); p != NULL; p = strstr(p + 1, word))
		at = p;
	return at != NULL ? strtoul(at + strlen(word), NULL, 10) : 0;
}

static void what_does_not_fit_is_left_out_row_by_row(void **state)
{
	static const enum report_format formats[] = { REPORT_TEXT, REPORT_CSV,
						      REPORT_JSON };
	enum { ROWS = 3000 };

	(void)state;
	for (size_t f = 0; f < 3; f++) {
		/* Of every size, so that the end comes at every place. */
		for (size_t cap = REPORT_SIZE_MIN; cap < REPORT_SIZE_MIN + 300;
		     cap++) {
			size_t lines = 0;

			memset(buf, '~', sizeof(buf));
			report_init(&report, formats[f], buf, cap);
			report_table(&report, "things", "# ", columns, 4);
			for (int i = 0; i < ROWS; i++)
				row("some", i, "a reason", 8);
			report_end(&report);
			assert_in_range(report.len, cap / 4, cap);
			assert_int_equal(buf[report.len - 1], '\n');
			for (size_t i = cap; i < cap + 100; i++)
				assert_int_equal(buf[i], '~');
			for (size_t i = 0; i < report.len; i++)
				lines += buf[i] == '\n';
			/* head and note; JSON: head and end */
			assert_int_equal(lines - 2 + said_more(formats[f]),
					 ROWS);
		}
	}
}

static void a_huge_cell_is_cut_and_does_not_widen_its_column(void **state)
{
	static char huge[4000];
	const char *line;

	(void)state;
	memset(huge, 'h', sizeof(huge));
	begin(REPORT_TEXT);
	report_text(&report, huge, sizeof(huge));
	report_number(&report, 1);
	report_number(&report, 1);
	report_word(&report, "w");
	report_end(&report);
	buf[report.len] = '\0';
	line = strchr(buf, '\n');
	assert_non_null(line);
	assert_in_range((size_t)(line - buf), 40, 70);
	assert_in_range(strlen(line + 1), 512, 540);
}

static void a_list_is_keys_and_values(void **state)
{
	static const struct {
		enum report_format format;
		const char *text;
	} cases[] = {
		{ REPORT_TEXT, "name: weir\nopen: 12\nwords: a \\\"b\\\"\n" },
		{ REPORT_CSV,
		  "key,value\nname,weir\nopen,12\nwords,\"a \"\"b\"\"\"\n" },
		{ REPORT_JSON, "{\n\"name\":\"weir\",\n\"open\":12,\n"
			       "\"words\":\"a \\\"b\\\"\",\n\"more\":0}\n" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		report_init(&report, cases[i].format, buf, sizeof(buf));
		report_list(&report);
		report_key_word(&report, "name", "weir");
		report_key_number(&report, "open", 12);
		report_key_word(&report, "words", "a \"b\"");
		expect(cases[i].text);
	}
}

static void a_list_that_does_not_fit_says_so(void **state)
{
	(void)state;
	report_init(&report, REPORT_TEXT, buf, REPORT_SIZE_MIN);
	report_list(&report);
	for (int i = 0; i < 5000; i++)
		report_key_number(&report, "key", i);
	report_end(&report);
	assert_true(report.len <= REPORT_SIZE_MIN);
	assert_true(said_more(REPORT_TEXT) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_text_table_is_aligned),
		cmocka_unit_test(csv_has_a_head_and_machine_columns),
		cmocka_unit_test(json_is_one_object),
		cmocka_unit_test(a_table_without_rows_is_whole),
		cmocka_unit_test(a_peers_octets_do_no_harm),
		cmocka_unit_test(rows_not_tried_are_counted),
		cmocka_unit_test(what_does_not_fit_is_left_out_row_by_row),
		cmocka_unit_test(
			a_huge_cell_is_cut_and_does_not_widen_its_column),
		cmocka_unit_test(a_list_is_keys_and_values),
		cmocka_unit_test(a_list_that_does_not_fit_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
