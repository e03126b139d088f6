#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/quantity.h"

struct quantity_case {
	const char *about;
	const char *text;
	int64_t value; /* -1: it is to be refused */
};

static const struct quantity_case durations[] = {
	{ "milliseconds without a unit", "500", 500 },
	{ "milliseconds with one", "20ms", 20 },
	{ "seconds", "2s", 2000 },
	{ "a fraction", "1.5s", 1500 },
	{ "minutes", "3m", 180000 },
	{ "hours", "1h", 3600000 },
	{ "nought", "0", 0 },
	{ "the longest", "168h", 604800000 },
	{ "longer than a week", "169h", -1 },
	{ "nothing", "", -1 },
	{ "a sign", "-1", -1 },
	{ "a unit of size", "1K", -1 },
	{ "words behind it", "1s!", -1 },
	{ "two points", "1.2.3s", -1 },
	{ "a point in front", ".5s", -1 },
	{ "an exponent", "1e3", -1 },
	{ "more digits than fit", "11111111111111111111111111111111111", -1 },
};

static const struct quantity_case sizes[] = {
	{ "octets", "512", 512 },
	{ "kilobytes", "4K", 4096 },
	{ "small letters too", "4k", 4096 },
	{ "megabytes", "20M", 20971520 },
	{ "the largest", "4G", INT64_C(4294967296) },
	{ "larger than that", "5G", -1 },
	{ "a unit of time", "5s", -1 },
	{ "a blank", "5 K", -1 },
};

static const struct quantity_case counts[] = {
	{ "digits", "1000", 1000 },
	{ "nought", "0", 0 },
	{ "one too many", "1001", -1 },
	{ "nothing", "", -1 },
	{ "a sign", "+1", -1 },
	{ "a letter", "1x", -1 },
	{ "more than 64 bits", "18446744073709551616", -1 },
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static void durations_are_read_as_people_write_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(durations); i++) {
		const struct quantity_case *c = &durations[i];
		int64_t value = -1;

		print_message("  %s\n", c->about);
		assert_int_equal(quantity_duration(c->text, &value),
				 c->value >= 0);
		assert_int_equal(value, c->value);
	}
}

static void sizes_are_read_as_people_write_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		const struct quantity_case *c = &sizes[i];
		uint64_t value = UINT64_MAX;

		print_message("  %s\n", c->about);
		assert_int_equal(quantity_size(c->text, &value), c->value >= 0);
		assert_int_equal((int64_t)value, c->value);
	}
}

static void counts_have_a_limit(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(counts); i++) {
		const struct quantity_case *c = &counts[i];
		uint64_t value = UINT64_MAX;

		print_message("  %s\n", c->about);
		assert_int_equal(quantity_count(c->text, 1000, &value),
				 c->value >= 0);
		assert_int_equal((int64_t)value, c->value);
	}
}

static void ranges_rise(void **state)
{
	(void)state;
	int64_t low = 0, high = 0;
	uint64_t small = 0, large = 0;

	assert_true(quantity_duration_range("100ms-2s", &low, &high));
	assert_int_equal(low, 100);
	assert_int_equal(high, 2000);
	assert_true(quantity_duration_range("7", &low, &high));
	assert_int_equal(low, 7);
	assert_int_equal(high, 7);
	assert_false(quantity_duration_range("2s-1s", &low, &high));
	assert_false(quantity_duration_range("1s-", &low, &high));
	assert_false(quantity_duration_range("-1s", &low, &high));
	assert_true(quantity_size_range("1K-100K", &small, &large));
	assert_int_equal(small, 1024);
	assert_int_equal(large, 102400);
	assert_false(quantity_size_range("2K-1K", &small, &large));
}

static void percentages_end_at_100(void **state)
{
	(void)state;
	double value = -1;

	assert_true(quantity_percent("2.5", &value));
	assert_true(value > 2.49 && value < 2.51);
	assert_true(quantity_percent("5%", &value));
	assert_true(value > 4.99 && value < 5.01);
	assert_true(quantity_percent("100", &value));
	assert_false(quantity_percent("101", &value));
	assert_false(quantity_percent("5s", &value));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(durations_are_read_as_people_write_them),
		cmocka_unit_test(sizes_are_read_as_people_write_them),
		cmocka_unit_test(counts_have_a_limit),
		cmocka_unit_test(ranges_rise),
		cmocka_unit_test(percentages_end_at_100),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
