#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/stats.h"

static struct stats stats;

static void a_counter_is_what_was_added(void **state)
{
	(void)state;
	stats_add(&stats.messages, 3);
	stats_add(&stats.messages, UINT64_C(1) << 40);
	assert_true(stats_get(&stats, STATS_messages) ==
		    (UINT64_C(1) << 40) + 3);
	assert_true(stats_get(&stats, STATS_recipients) == 0);
}

static void each_index_reads_its_own_field(void **state)
{
	static struct stats all;
	uint64_t n = 0;

	(void)state;
#define FILL(name, unit, help) stats_add(&all.name, 100 + STATS_##name);
	STATS_COUNTERS(FILL)
#undef FILL
	for (unsigned i = 0; i < STATS_COUNT; i++) {
		assert_true(stats_get(&all, (enum stats_index)i) == 100 + i);
		n++;
	}
	assert_int_equal(n, STATS_COUNT);
}

/* What is a key in reports and in logs. */
static void assert_key(const char *name)
{
	size_t len = strlen(name);

	assert_in_range(len, 2, 32);
	assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789"),
			 len);
}

static void counters_have_names_units_and_help(void **state)
{
	(void)state;
	assert_string_equal(stats_counters[STATS_connections].name,
			    "connections");
	assert_string_equal(stats_counters[STATS_no_buffers].name,
			    "no_buffers");
	for (unsigned i = 0; i < STATS_COUNT; i++) {
		assert_key(stats_counters[i].name);
		assert_key(stats_counters[i].unit);
		assert_true(strlen(stats_counters[i].help) > 5);
		for (unsigned k = 0; k < i; k++)
			assert_string_not_equal(stats_counters[i].name,
						stats_counters[k].name);
	}
}

static void reasons_to_close_have_names_and_help(void **state)
{
	(void)state;
	assert_string_equal(stats_close_name(STATS_CLOSE_QUIT), "quit");
	assert_string_equal(stats_close_name(STATS_CLOSE_NO_BUFFERS),
			    "no_buffers");
	for (unsigned i = 0; i < STATS_CLOSE_COUNT; i++) {
		enum stats_close reason = (enum stats_close)i;

		assert_key(stats_close_name(reason));
		assert_true(strlen(stats_close_help(reason)) > 5);
		for (unsigned k = 0; k < i; k++) {
			assert_string_not_equal(
				stats_close_name(reason),
				stats_close_name((enum stats_close)k));
		}
	}
}

/* NUL at its end; the caller frees. */
static char *read_file(const char *path)
{
	enum { SIZE = 1 << 17 };
	FILE *file = fopen(path, "r");
	char *text = malloc(SIZE);
	size_t len;

	assert_non_null(file);
	assert_non_null(text);
	len = fread(text, 1, SIZE - 1, file);
	assert_in_range(len, 1, SIZE - 2);
	text[len] = '\0';
	assert_int_equal(fclose(file), 0);
	return text;
}

/* Is it an item of a list: ".It Cm name", or one of several there? */
static bool is_item(const char *text, const char *name)
{
	size_t len = strlen(name);

	for (const char *at = strstr(text, "\n.It Cm "); at != NULL;
	     at = strstr(at + 1, "\n.It Cm ")) {
		const char *end = strchr(at + 1, '\n');

		for (const char *word = strstr(at, name);
		     word != NULL && word < end;
		     word = strstr(word + 1, name)) {
			if (word[-1] == ' ' &&
			    (word[len] == '\n' || word[len] == ' '))
				return true;
		}
	}
	return false;
}

static void the_manual_has_every_counter_and_reason(void **state)
{
	char *text = read_file("proxy/weirctl.8");

	(void)state;
	const char *counters = strstr(text, "\n.Sh COUNTERS");

	assert_non_null(counters);
	const char *reasons = strstr(counters, "\n.Cm backend_connections");

	assert_non_null(reasons);
	for (unsigned i = 0; i < STATS_COUNT; i++) {
		if (!is_item(counters, stats_counters[i].name))
			fail_msg("weirctl.8 lacks the counter %s",
				 stats_counters[i].name);
	}
	for (unsigned i = 0; i < STATS_CLOSE_COUNT; i++) {
		const char *name = stats_close_name((enum stats_close)i);

		if (!is_item(reasons, name))
			fail_msg("weirctl.8 lacks the reason %s", name);
	}
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_counter_is_what_was_added),
		cmocka_unit_test(each_index_reads_its_own_field),
		cmocka_unit_test(counters_have_names_units_and_help),
		cmocka_unit_test(reasons_to_close_have_names_and_help),
		cmocka_unit_test(the_manual_has_every_counter_and_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
