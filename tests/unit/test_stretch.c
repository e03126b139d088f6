#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tests/stretch.h"

static void what_is_appended_stays_in_order(void **state)
{
	enum { PIECES = 1000 };
	char *buf = NULL;
	size_t cap = 0, used = 0, moves = 0;

	(void)state;
	for (size_t i = 0; i < PIECES; i++) {
		size_t before = cap, len = i % 7;
		char *at = stretch(&buf, &cap, used, len + 1);

		assert_ptr_equal(at, buf + used);
		assert_in_range(used + len + 1, 1, cap);
		memset(at, 'a' + (int)len, len + 1);
		used += len + 1;
		moves += cap != before;
	}
	/* It grows by its own size, and so not often. */
	assert_in_range(moves, 1, 12);
	used = 0;
	for (size_t i = 0; i < PIECES; i++) {
		size_t len = i % 7;

		for (size_t k = 0; k <= len; k++)
			assert_int_equal(buf[used + k], 'a' + (int)len);
		used += len + 1;
	}
	free(buf);
}

static void what_fits_moves_nothing(void **state)
{
	char *buf = NULL;
	size_t cap = 0;

	(void)state;
	(void)stretch(&buf, &cap, 0, 10);

	char *old = buf;
	size_t all = cap;

	assert_in_range(all, 10, SIZE_MAX);
	assert_ptr_equal(stretch(&buf, &cap, 0, all), old);
	assert_ptr_equal(stretch(&buf, &cap, all, 0), old + all);
	assert_int_equal(cap, all);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_appended_stays_in_order),
		cmocka_unit_test(what_fits_moves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
