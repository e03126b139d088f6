#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "proxy/hold.h"

/* What a block of HOLD_BLOCK_SIZE holds: one pointer less. */
enum { PAYLOAD = HOLD_BLOCK_SIZE - sizeof(void *) };

static struct hold_area make(uint32_t blocks)
{
	struct hold_area area;
	size_t size = hold_area_size(blocks);
	void *memory = size > 0 ? aligned_alloc(64, size) : NULL;

	if (size > 0) {
		assert_non_null(memory);
		/* Memory as it comes: not zeroed. */
		memset(memory, 0xa5, size);
	}
	hold_area_init(&area, memory, blocks);
	return area;
}

static void unmake(struct hold_area *area)
{
	free(area->memory);
}

/* The octet that stands at `at` of text number `seed`. */
static uint8_t octet_at(unsigned seed, size_t at)
{
	return (uint8_t)((at * 31 + at / 251 + seed * 7) & 0xff);
}

static bool append_pattern(struct hold_area *area, struct hold_text *text,
			   unsigned seed, size_t len)
{
	uint8_t *octets = malloc(len + 1);

	assert_non_null(octets);
	for (size_t i = 0; i < len; i++)
		octets[i] = octet_at(seed, text->len + i);
	bool done = hold_append(area, text, octets, len);

	free(octets);
	return done;
}

/* Read on to the end, at most `step` octets at a time. */
static void read_on(const struct hold_text *text, struct hold_place *place,
		    unsigned seed, size_t step)
{
	const uint8_t *octets;
	size_t len;

	while ((len = hold_peek(text, place, &octets)) > 0) {
		assert_non_null(octets);
		len = len < step ? len : step;
		for (size_t i = 0; i < len; i++)
			assert_int_equal(octets[i],
					 octet_at(seed, place->done + i));
		hold_skip(text, place, len);
	}
	assert_null(octets);
	assert_int_equal(place->done, text->len);
}

static void read_whole(const struct hold_text *text, unsigned seed, size_t step)
{
	struct hold_place place = { 0 };

	read_on(text, &place, seed, step);
}

static void what_is_appended_is_read_back(void **state)
{
	(void)state;
	static const struct {
		const char *why;
		size_t len;
		size_t step;
	} cases[] = {
		{ "nothing", 0, 1 },
		{ "one octet", 1, 1 },
		{ "one less than a block", PAYLOAD - 1, 1000 },
		{ "a block", PAYLOAD, 1 },
		{ "one more than a block", PAYLOAD + 1, SIZE_MAX },
		{ "two blocks", 2 * PAYLOAD, 4096 },
		{ "many blocks, small steps", 20 * PAYLOAD + 17, 3 },
		{ "many blocks, whole runs", 20 * PAYLOAD + 17, SIZE_MAX },
	};

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		struct hold_area area = make(21);
		struct hold_text text = { 0 };

		print_message("  %s\n", cases[c].why);
		assert_true(append_pattern(&area, &text, 1, cases[c].len));
		assert_int_equal(text.len, cases[c].len);
		assert_int_equal(area.taken,
				 (cases[c].len + PAYLOAD - 1) / PAYLOAD);
		read_whole(&text, 1, cases[c].step);
		hold_drop(&area, &text);
		assert_int_equal(area.taken, 0);
		unmake(&area);
	}
}

static void appends_of_any_size_join_without_a_seam(void **state)
{
	(void)state;
	struct hold_area area = make(40);
	struct hold_text text = { 0 };

	/* 1, 2, 3 ... octets: block ends fall everywhere in an append. */
	for (size_t len = 0; hold_room(&area, &text) >= len; len++)
		assert_true(append_pattern(&area, &text, 2, len));
	assert_true(text.len > 38 * PAYLOAD);
	read_whole(&text, 2, SIZE_MAX);
	read_whole(&text, 2, 7);
	hold_drop(&area, &text);
	unmake(&area);
}

static void the_room_told_is_the_room_there_is(void **state)
{
	(void)state;
	struct hold_area area = make(4);
	struct hold_text text = { 0 }, other = { 0 };

	assert_int_equal(hold_room(&area, &text), 4 * PAYLOAD);
	assert_true(append_pattern(&area, &text, 3, 10));
	assert_int_equal(hold_room(&area, &text), 4 * PAYLOAD - 10);
	assert_int_equal(hold_room(&area, &other), 3 * PAYLOAD);
	assert_true(append_pattern(&area, &other, 4, PAYLOAD));
	assert_int_equal(hold_room(&area, &other), 2 * PAYLOAD);
	assert_int_equal(hold_room(&area, &text), 3 * PAYLOAD - 10);

	assert_true(append_pattern(&area, &text, 3, 3 * PAYLOAD - 10));
	assert_int_equal(hold_room(&area, &text), 0);
	assert_int_equal(hold_room(&area, &other), 0);
	read_whole(&text, 3, SIZE_MAX);
	read_whole(&other, 4, SIZE_MAX);

	hold_drop(&area, &other);
	assert_int_equal(hold_room(&area, &text), PAYLOAD);
	hold_drop(&area, &text);
	unmake(&area);
}

static void what_does_not_fit_changes_nothing(void **state)
{
	(void)state;
	struct hold_area area = make(3);
	struct hold_text text = { 0 };

	assert_false(append_pattern(&area, &text, 5, 3 * PAYLOAD + 1));
	assert_int_equal(text.len, 0);
	assert_int_equal(area.taken, 0);
	assert_int_equal(area.used, 0);

	assert_true(append_pattern(&area, &text, 5, 2 * PAYLOAD + 1));
	assert_false(append_pattern(&area, &text, 5, PAYLOAD));
	assert_int_equal(text.len, 2 * PAYLOAD + 1);
	read_whole(&text, 5, SIZE_MAX);

	assert_true(append_pattern(&area, &text, 5, PAYLOAD - 1));
	assert_false(append_pattern(&area, &text, 5, 1));
	assert_true(append_pattern(&area, &text, 5, 0));
	read_whole(&text, 5, SIZE_MAX);
	hold_drop(&area, &text);
	unmake(&area);
}

static void an_area_without_blocks_holds_nothing(void **state)
{
	(void)state;
	struct hold_area area = make(0);
	struct hold_text text = { 0 };
	struct hold_place place = { 0 };
	const uint8_t *octets;

	assert_int_equal(hold_area_size(0), 0);
	assert_int_equal(hold_room(&area, &text), 0);
	assert_false(hold_append(&area, &text, "x", 1));
	assert_true(hold_append(&area, &text, NULL, 0));
	assert_int_equal(hold_peek(&text, &place, &octets), 0);
	hold_drop(&area, &text);
}

static void a_place_goes_on_when_the_text_grows(void **state)
{
	(void)state;
	/* Read to the end, append, read on: at every distance to the end of
	 * a block, and from a place that was made before the first octet. */
	static const size_t firsts[] = {
		0,           1,           PAYLOAD - 1,    PAYLOAD,
		PAYLOAD + 1, 2 * PAYLOAD, 2 * PAYLOAD + 1
	};

	for (size_t c = 0; c < sizeof(firsts) / sizeof(firsts[0]); c++) {
		struct hold_area area = make(8);
		struct hold_text text = { 0 };
		struct hold_place place = { 0 };

		assert_true(append_pattern(&area, &text, 6, firsts[c]));
		read_on(&text, &place, 6, SIZE_MAX);
		assert_true(append_pattern(&area, &text, 6, 1));
		read_on(&text, &place, 6, SIZE_MAX);
		assert_true(append_pattern(&area, &text, 6, 2 * PAYLOAD));
		read_on(&text, &place, 6, 5);
		hold_drop(&area, &text);
		unmake(&area);
	}
}

static void a_place_skips_over_blocks(void **state)
{
	(void)state;
	struct hold_area area = make(8);
	struct hold_text text = { 0 };

	assert_true(append_pattern(&area, &text, 7, 6 * PAYLOAD + 5));
	for (size_t at = 0; at <= text.len; at += 997) {
		struct hold_place place = { 0 };

		hold_skip(&text, &place, at);
		assert_int_equal(place.done, at);
		hold_skip(&text, &place, 0);
		read_on(&text, &place, 7, SIZE_MAX);
	}
	struct hold_place end = { 0 };

	hold_skip(&text, &end, text.len);
	read_on(&text, &end, 7, SIZE_MAX);
	hold_drop(&area, &text);
	unmake(&area);
}

static void two_places_read_one_text(void **state)
{
	(void)state;
	struct hold_area area = make(4);
	struct hold_text text = { 0 };
	struct hold_place slow = { 0 }, fast = { 0 };

	assert_true(append_pattern(&area, &text, 8, 3 * PAYLOAD));
	hold_skip(&text, &slow, 10);
	read_on(&text, &fast, 8, SIZE_MAX);
	read_on(&text, &slow, 8, 100);
	hold_drop(&area, &text);
	unmake(&area);
}

static void one_octet_can_be_changed(void **state)
{
	(void)state;
	static const size_t places[] = { 0,           1,
					 PAYLOAD - 1, PAYLOAD,
					 PAYLOAD + 1, 3 * PAYLOAD - 1,
					 3 * PAYLOAD, 4 * PAYLOAD + 8 };
	struct hold_area area = make(5);
	struct hold_text text = { 0 };

	assert_true(append_pattern(&area, &text, 9, 4 * PAYLOAD + 9));
	for (size_t c = 0; c < sizeof(places) / sizeof(places[0]); c++) {
		uint8_t was = octet_at(9, places[c]);
		struct hold_place place = { 0 };
		const uint8_t *octets;

		hold_set(&text, places[c], (uint8_t)(was ^ 0xff));
		hold_skip(&text, &place, places[c]);
		assert_true(hold_peek(&text, &place, &octets) > 0);
		assert_int_equal(octets[0], was ^ 0xff);
		hold_set(&text, places[c], was);
		/* And none but that one. */
		read_whole(&text, 9, SIZE_MAX);
	}
	hold_drop(&area, &text);
	unmake(&area);
}

static void blocks_that_came_back_go_first(void **state)
{
	(void)state;
	struct hold_area area = make(100);

	for (unsigned round = 0; round < 1000; round++) {
		struct hold_text a = { 0 }, b = { 0 };

		assert_true(append_pattern(&area, &a, round, 3 * PAYLOAD));
		assert_true(append_pattern(&area, &b, round + 1, PAYLOAD + 1));
		read_whole(&a, round, SIZE_MAX);
		hold_drop(&area, &a);
		read_whole(&b, round + 1, SIZE_MAX);
		hold_drop(&area, &b);
	}
	/* No more pages were touched than were ever in use at once. */
	assert_int_equal(area.used, 5);
	assert_int_equal(area.taken_peak, 5);
	assert_int_equal(area.taken, 0);
	for (size_t i = (size_t)5 * HOLD_BLOCK_SIZE; i < hold_area_size(100);
	     i++)
		assert_int_equal(area.memory[i], 0xa5);
	unmake(&area);
}

/* xorshift64: the same run each time. */
static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void many_texts_never_share_an_octet(void **state)
{
	(void)state;
	enum { TEXTS = 24, BLOCKS = 64 };
	struct hold_area area = make(BLOCKS);
	struct hold_text texts[TEXTS] = { 0 };
	struct hold_place places[TEXTS] = { 0 };
	uint64_t seed = 20261122;
	unsigned refused = 0;

	for (unsigned i = 0; i < 20000; i++) {
		unsigned t = (unsigned)(next_random(&seed) % TEXTS);
		size_t len = next_random(&seed) % 5000;
		size_t room = hold_room(&area, &texts[t]);
		uint32_t taken = 0;

		switch (next_random(&seed) % 8) {
		case 0:
			read_whole(&texts[t], t, SIZE_MAX);
			hold_drop(&area, &texts[t]);
			places[t] = (struct hold_place){ 0 };
			break;
		case 1:
			read_on(&texts[t], &places[t], t, 1 + len);
			break;
		default:
			assert_int_equal(
				append_pattern(&area, &texts[t], t, len),
				len <= room);
			refused += len > room;
			break;
		}
		for (unsigned k = 0; k < TEXTS; k++)
			taken += (uint32_t)((texts[k].len + PAYLOAD - 1) /
					    PAYLOAD);
		assert_int_equal(area.taken, taken);
		assert_true(area.taken <= area.used);
		assert_true(area.used <= BLOCKS);
	}
	assert_true(refused > 100); /* it was full often enough */
	for (unsigned t = 0; t < TEXTS; t++) {
		read_whole(&texts[t], t, SIZE_MAX);
		hold_drop(&area, &texts[t]);
	}
	assert_int_equal(area.taken, 0);
	unmake(&area);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_appended_is_read_back),
		cmocka_unit_test(appends_of_any_size_join_without_a_seam),
		cmocka_unit_test(the_room_told_is_the_room_there_is),
		cmocka_unit_test(what_does_not_fit_changes_nothing),
		cmocka_unit_test(an_area_without_blocks_holds_nothing),
		cmocka_unit_test(a_place_goes_on_when_the_text_grows),
		cmocka_unit_test(a_place_skips_over_blocks),
		cmocka_unit_test(two_places_read_one_text),
		cmocka_unit_test(one_octet_can_be_changed),
		cmocka_unit_test(blocks_that_came_back_go_first),
		cmocka_unit_test(many_texts_never_share_an_octet),
	};

	return cmocka_run_group_tests_name("hold", tests, NULL, NULL);
}
