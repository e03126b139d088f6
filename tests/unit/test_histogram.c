#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/histogram.h"

/* 19 KB: too large for a stack. */
static struct histogram h;

static void clear(void)
{
	h = (struct histogram){ 0 };
}

static void an_empty_histogram_answers_nought(void **state)
{
	(void)state;
	clear();
	assert_int_equal(histogram_percentile(&h, 50), 0);
	assert_int_equal(histogram_percentile(&h, 100), 0);
}

static void values_below_64_are_exact(void **state)
{
	(void)state;
	clear();
	for (uint64_t value = 1; value <= 50; value++)
		histogram_add(&h, value);
	assert_int_equal(h.count, 50);
	assert_int_equal(h.min, 1);
	assert_int_equal(h.max, 50);
	assert_int_equal(h.sum, 1275);
	assert_int_equal(histogram_percentile(&h, 0), 1);
	assert_int_equal(histogram_percentile(&h, 50), 25);
	assert_int_equal(histogram_percentile(&h, 90), 45);
	assert_int_equal(histogram_percentile(&h, 99), 50);
	assert_int_equal(histogram_percentile(&h, 100), 50);
}

/* Alone in front of a larger one, a value is never understated, and
 * overstated by less than 1/64. */
static void large_values_are_known_to_a_64th(void **state)
{
	(void)state;
	for (uint64_t value = 64; value < UINT64_C(1) << 40;
	     value += value / 3 + 1) {
		clear();
		histogram_add(&h, value);
		histogram_add(&h, value * 4);
		uint64_t got = histogram_percentile(&h, 50);

		assert_true(got >= value);
		assert_true(got - value <= value / 64);
	}
}

static void a_percentile_never_exceeds_the_maximum(void **state)
{
	(void)state;
	clear();
	histogram_add(&h, 1000001);
	assert_int_equal(histogram_percentile(&h, 50), 1000001);
	assert_int_equal(histogram_percentile(&h, 99.9), 1000001);
}

static void what_is_beyond_all_buckets_is_counted_in_the_last(void **state)
{
	(void)state;
	clear();
	histogram_add(&h, UINT64_MAX);
	histogram_add(&h, 1);
	assert_int_equal(h.buckets[HISTOGRAM_BUCKETS - 1], 1);
	assert_true(h.max == UINT64_MAX);
	assert_int_equal(histogram_percentile(&h, 50), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_histogram_answers_nought),
		cmocka_unit_test(values_below_64_are_exact),
		cmocka_unit_test(large_values_are_known_to_a_64th),
		cmocka_unit_test(a_percentile_never_exceeds_the_maximum),
		cmocka_unit_test(
			what_is_beyond_all_buckets_is_counted_in_the_last),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
