#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "balancer/room.h"

static const struct room_policy plain = {
	.size = 1000,
	.per_source = 10,
	.wait_ms = 15000,
	.high_percent = 90,
	.low_percent = 50,
	.saturated_after_ms = 5000,
};

static struct room *make(uint32_t size, const struct room_policy *policy)
{
	void *memory = aligned_alloc(64, room_size(size));

	assert_non_null(memory);
	/* Memory as it comes: not zeroed. */
	memset(memory, 0x5a, room_size(size));
	return room_init(memory, size, policy);
}

static void unmake(struct room *room)
{
	room_fini(room);
	free(room);
}

static struct balancer_slot slot_of(uint32_t n)
{
	return (struct balancer_slot){ .index = (uint16_t)n, .epoch = n };
}

/* Enter on worker 0; the ticket, or 0. */
static room_ticket enter(struct room *room, uint64_t source, int64_t now_ms)
{
	struct room_guest guest = { .source = source };
	room_ticket ticket = 0;
	enum room_verdict verdict = room_enter(room, &guest, now_ms, &ticket);

	assert_int_equal(verdict == ROOM_ENTERED, ticket != 0);
	return ticket;
}

static room_ticket enter_on(struct room *room, uint64_t source, unsigned worker)
{
	struct room_guest guest = { .source = source, .worker = worker };
	room_ticket ticket = 0;

	assert_int_equal(room_enter(room, &guest, 0, &ticket), ROOM_ENTERED);
	return ticket;
}

static room_ticket next_of(struct room *room, int prefer, unsigned skip)
{
	struct room_turn turn = { 0 };

	return room_next(room, prefer, skip, &turn) ? turn.ticket : 0;
}

/* Grant whose turn it is and let it be told; its ticket, or 0. */
static room_ticket serve(struct room *room, int64_t now_ms)
{
	struct balancer_slot slot = slot_of(7);
	struct room_turn turn;
	void *who;

	if (!room_next(room, -1, 0, &turn))
		return 0;
	assert_true(room_grant(room, turn.ticket, &slot, now_ms));
	assert_true(room_called(room, turn.worker, &who, &slot));
	return turn.ticket;
}

static struct room_view look(struct room *room, int64_t now_ms)
{
	struct room_view view;

	room_look(room, now_ms, &view);
	return view;
}

/* --- order --- */

static void an_empty_room_has_no_turn(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);
	struct balancer_slot slot;
	struct room_turn turn;
	void *who;

	assert_false(room_next(room, -1, 0, &turn));
	assert_false(room_next(room, 0, 5, &turn));
	assert_false(room_called(room, 0, &who, &slot));
	assert_false(room_has_called(room, 0));
	assert_int_equal(room_waiting(room), 0);
	assert_int_equal(room_pressure(room, 1000), 0);
	unmake(room);
}

static void a_guest_comes_out_as_it_went_in(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);
	int mine = 0;
	struct room_guest guest = {
		.source = 5,
		.worker = 3,
		.who = &mine,
		.need = { .ext = 9,
			  .size = 1234,
			  .tried_count = 2,
			  .tried = { 4, 8 } },
	};
	struct balancer_slot slot = { .index = 6,
				      .trial = true,
				      .phase = 2,
				      .generation = 77,
				      .epoch = 88 };
	struct balancer_slot got = { 0 };
	struct room_turn turn;
	room_ticket ticket;
	void *who = NULL;

	assert_int_equal(room_enter(room, &guest, 10, &ticket), ROOM_ENTERED);
	assert_true(room_next(room, -1, 0, &turn));
	assert_int_equal(turn.ticket, ticket);
	assert_int_equal(turn.worker, 3);
	assert_ptr_equal(turn.who, &mine);
	assert_int_equal(turn.need.ext, 9);
	assert_int_equal(turn.need.size, 1234);
	assert_int_equal(turn.need.tried_count, 2);
	assert_int_equal(turn.need.tried[0], 4);
	assert_int_equal(turn.need.tried[1], 8);

	assert_true(room_grant(room, ticket, &slot, 20));
	assert_int_equal(room_waiting(room), 0);
	assert_false(room_next(room, -1, 0, &turn));
	assert_true(room_has_called(room, 3));
	assert_false(room_has_called(room, 2));
	assert_false(room_called(room, 2, &who, &got));
	assert_true(room_called(room, 3, &who, &got));
	assert_ptr_equal(who, &mine);
	assert_int_equal(got.index, 6);
	assert_true(got.trial);
	assert_int_equal(got.phase, 2);
	assert_int_equal(got.generation, 77);
	assert_int_equal(got.epoch, 88);
	assert_false(room_has_called(room, 3));
	unmake(room);
}

static void turns_go_round_by_source_and_in_line_within_one(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);
	room_ticket a1 = enter(room, 'a', 0), a2 = enter(room, 'a', 0);
	room_ticket a3 = enter(room, 'a', 0), b1 = enter(room, 'b', 0);
	room_ticket b2 = enter(room, 'b', 0), c1 = enter(room, 'c', 0);

	assert_int_equal(serve(room, 0), a1);
	assert_int_equal(serve(room, 0), b1);
	/* A newcomer is behind all who have not had their turn. */
	room_ticket d1 = enter(room, 'd', 0);

	assert_int_equal(serve(room, 0), c1);
	assert_int_equal(serve(room, 0), a2);
	assert_int_equal(serve(room, 0), b2);
	assert_int_equal(serve(room, 0), d1);
	assert_int_equal(serve(room, 0), a3);
	assert_int_equal(serve(room, 0), 0);
	unmake(room);
}

static void a_source_that_comes_back_is_behind_the_others(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);
	room_ticket a = enter(room, 'a', 0), b = enter(room, 'b', 0);

	assert_int_equal(serve(room, 0), a);
	room_ticket again = enter(room, 'a', 0);

	assert_int_equal(serve(room, 0), b);
	assert_int_equal(serve(room, 0), again);
	unmake(room);
}

static void who_leaves_makes_way(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);
	struct balancer_slot slot;
	room_ticket a1 = enter(room, 'a', 0), a2 = enter(room, 'a', 0);
	room_ticket a3 = enter(room, 'a', 0), b = enter(room, 'b', 0);
	room_ticket c = enter(room, 'c', 0);

	assert_false(room_leave(room, a2, 0, &slot)); /* in the middle */
	assert_false(room_leave(room, b, 0, &slot));  /* a whole source */
	assert_int_equal(room_waiting(room), 3);
	assert_int_equal(look(room, 0).sources, 2);
	assert_int_equal(serve(room, 0), a1);
	assert_int_equal(serve(room, 0), c);
	assert_int_equal(serve(room, 0), a3);
	assert_int_equal(look(room, 0).counters[ROOM_COUNT_left], 2);
	unmake(room);
}

static void two_hundred_quiet_sources_and_a_loud_one_take_turns(void **state)
{
	(void)state;
	enum { QUIET = 200, LOUD = 10, ROUNDS = 50 };
	struct room *room = make(1000, &plain);
	unsigned served[QUIET + 1] = { 0 };
	struct balancer_slot slot = slot_of(1);
	static uint64_t sources[QUIET + 1];
	struct room_turn turn;
	void *who;

	for (unsigned s = 0; s <= QUIET; s++)
		sources[s] = s * 0x10001;
	/* The loud one comes first, with all it may have. */
	for (unsigned s = 0; s <= QUIET; s++) {
		struct room_guest guest = { .source = sources[s],
					    .who = &sources[s] };

		for (unsigned i = 0; i < (s == 0 ? LOUD : 1); i++)
			assert_int_equal(
				room_enter(room, &guest, 0, &turn.ticket),
				ROOM_ENTERED);
		if (s == 0)
			assert_int_equal(
				room_enter(room, &guest, 0, &turn.ticket),
				ROOM_SOURCE_FULL);
	}
	/* Whoever was served comes back at once: demand never ends. */
	for (unsigned round = 1; round <= ROUNDS; round++) {
		for (unsigned i = 0; i <= QUIET; i++) {
			assert_true(room_next(room, -1, 0, &turn));
			assert_true(room_grant(room, turn.ticket, &slot, 0));
			assert_true(room_called(room, 0, &who, &slot));
			uint64_t *source = who;
			struct room_guest guest = { .source = *source,
						    .who = source };

			served[source - sources]++;
			assert_int_equal(
				room_enter(room, &guest, 0, &turn.ticket),
				ROOM_ENTERED);
		}
		for (unsigned s = 0; s <= QUIET; s++)
			assert_int_equal(served[s], round);
	}
	assert_int_equal(room_waiting(room), QUIET + LOUD);
	unmake(room);
}

/* --- prefer and skip --- */

static void a_worker_prefers_its_own_within_the_lookahead(void **state)
{
	(void)state;
	struct room *room = make(40, &plain);
	room_ticket tickets[20];

	/* Source 8 is the last one that may be looked at, then 9. */
	for (unsigned s = 0; s < 20; s++)
		tickets[s] = enter_on(room, s,
				      s == ROOM_LOOKAHEAD       ? 1
				      : s == ROOM_LOOKAHEAD + 1 ? 2
								: 0);
	assert_int_equal(next_of(room, 1, 0), tickets[ROOM_LOOKAHEAD]);
	assert_int_equal(next_of(room, 2, 0), tickets[0]); /* too far */
	assert_int_equal(next_of(room, 3, 0), tickets[0]); /* has none */
	assert_int_equal(next_of(room, 0, 0), tickets[0]);
	assert_int_equal(next_of(room, -1, 0), tickets[0]);
	unmake(room);
}

static void nobody_is_passed_over_twice(void **state)
{
	(void)state;
	struct room *room = make(40, &plain);
	struct balancer_slot slot = slot_of(1);
	room_ticket a = enter_on(room, 'a', 0), b = enter_on(room, 'b', 1);
	room_ticket c = enter_on(room, 'c', 1);

	assert_int_equal(next_of(room, 1, 0), b);
	assert_true(room_grant(room, b, &slot, 0));
	/* Now it is the turn of a, whoever asks. */
	assert_int_equal(next_of(room, 1, 0), a);
	assert_true(room_grant(room, a, &slot, 0));
	assert_int_equal(next_of(room, 1, 0), c);
	/* With its turn, what it suffered is forgotten. */
	room_ticket d = enter_on(room, 'd', 1);

	(void)enter_on(room, 'a', 0);
	assert_true(room_grant(room, c, &slot, 0));
	assert_true(room_grant(room, d, &slot, 0));
	b = enter_on(room, 'b', 1);
	assert_int_equal(next_of(room, 1, 0), b);
	unmake(room);
}

static void skipping_gives_each_source_once(void **state)
{
	(void)state;
	struct room *room = make(100, &plain);
	enum { SOURCES = 30 };
	room_ticket tickets[SOURCES];

	for (unsigned s = 0; s < SOURCES; s++)
		tickets[s] = enter_on(room, s, s == 5 ? 1 : 0);
	for (unsigned s = 0; s < SOURCES; s++)
		assert_int_equal(next_of(room, -1, s), tickets[s]);
	assert_int_equal(next_of(room, -1, SOURCES), 0);
	/* The preferred one is first, the others as they stand. */
	assert_int_equal(next_of(room, 1, 0), tickets[5]);
	for (unsigned s = 0; s < 5; s++)
		assert_int_equal(next_of(room, 1, s + 1), tickets[s]);
	for (unsigned s = 6; s < SOURCES; s++)
		assert_int_equal(next_of(room, 1, s), tickets[s]);
	assert_int_equal(next_of(room, 1, SOURCES), 0);
	assert_int_equal(next_of(room, 1, UINT32_MAX), 0);
	unmake(room);
}

/* --- bounds --- */

static void the_places_are_bounded_and_some_are_reserved(void **state)
{
	(void)state;
	static const struct {
		const char *why;
		uint32_t size, reserve, open;
	} cases[] = {
		{ "no reserve", 20, 0, 20 },
		{ "a twentieth", 20, 5, 19 },
		{ "rounded down", 19, 5, 19 },
		{ "half", 20, 50, 10 },
		{ "all", 20, 100, 0 },
		{ "no place at all", 0, 0, 0 },
		{ "one", 1, 5, 1 },
	};

	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		struct room_policy policy = plain;
		struct room_guest guest = { 0 };
		room_ticket ticket;

		print_message("  %s\n", cases[c].why);
		policy.size = cases[c].size;
		policy.reserve_percent = cases[c].reserve;
		struct room *room = make(policy.size, &policy);

		for (uint32_t i = 0; i < cases[c].open; i++)
			assert_int_not_equal(enter(room, i, 0), 0);
		assert_int_equal(enter(room, 1000, 0), 0);
		guest.good = true;
		for (uint32_t i = cases[c].open; i < cases[c].size; i++) {
			guest.source = 2000 + i;
			assert_int_equal(room_enter(room, &guest, 0, &ticket),
					 ROOM_ENTERED);
		}
		guest.source = 3000;
		assert_int_equal(room_enter(room, &guest, 0, &ticket),
				 ROOM_FULL);
		assert_int_equal(room_waiting(room), cases[c].size);
		assert_int_equal(
			look(room, 0).counters[ROOM_COUNT_refused_full], 2);
		unmake(room);
	}
}

static void one_source_has_so_many_places_and_no_more(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	struct room_guest guest = { .source = 1, .good = true };
	struct balancer_slot slot = slot_of(1);
	room_ticket ticket;

	policy.per_source = 3;
	struct room *room = make(1000, &policy);
	room_ticket first = enter(room, 1, 0);

	assert_int_not_equal(enter(room, 1, 0), 0);
	assert_int_not_equal(enter(room, 1, 0), 0);
	/* However good it is. */
	assert_int_equal(room_enter(room, &guest, 0, &ticket),
			 ROOM_SOURCE_FULL);
	assert_int_not_equal(enter(room, 2, 0), 0);
	/* Who was called waits no more. */
	assert_true(room_grant(room, first, &slot, 0));
	assert_int_not_equal(enter(room, 1, 0), 0);
	assert_int_equal(enter(room, 1, 0), 0);
	assert_int_equal(look(room, 0).counters[ROOM_COUNT_refused_source], 2);
	unmake(room);
}

static void who_is_called_keeps_its_place_until_told(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	struct balancer_slot slot = slot_of(1);
	void *who;

	policy.size = 2;
	struct room *room = make(2, &policy);
	room_ticket a = enter(room, 'a', 0);

	assert_int_not_equal(enter(room, 'b', 0), 0);
	assert_true(room_grant(room, a, &slot, 0));
	assert_int_equal(enter(room, 'c', 0), 0);
	assert_true(room_called(room, 0, &who, &slot));
	assert_int_not_equal(enter(room, 'c', 0), 0);
	unmake(room);
}

static void a_reload_changes_the_bounds_and_drops_nobody(void **state)
{
	(void)state;
	struct room_policy policy = plain;

	policy.size = 5;
	struct room *room = make(100, &policy);

	for (uint64_t s = 0; s < 5; s++)
		assert_int_not_equal(enter(room, s, 0), 0);
	assert_int_equal(enter(room, 9, 0), 0);
	policy.size = 6;
	room_set_policy(room, &policy);
	assert_int_not_equal(enter(room, 9, 0), 0);
	assert_int_equal(enter(room, 10, 0), 0);

	policy.size = 2;
	room_set_policy(room, &policy);
	assert_int_equal(room_waiting(room), 6);
	assert_int_equal(room_pressure(room, 0), 100);
	for (uint64_t s = 0; s < 4; s++) {
		assert_int_equal(enter(room, 10, 0), 0);
		assert_int_not_equal(serve(room, 0), 0);
	}
	assert_int_equal(enter(room, 10, 0), 0);
	assert_int_not_equal(serve(room, 0), 0);
	assert_int_not_equal(enter(room, 10, 0), 0);

	/* More than there is memory for: as many as there is. */
	policy.size = ROOM_SIZE_MAX;
	policy.per_source = 0; /* and no sense: the nearest */
	room_set_policy(room, &policy);
	assert_int_equal(look(room, 0).policy.size, 100);
	assert_int_equal(look(room, 0).policy.per_source, 1);
	for (uint64_t s = 100; s < 198; s++)
		assert_int_not_equal(enter(room, s, 0), 0);
	assert_int_equal(enter(room, 300, 0), 0);
	unmake(room);
}

static void the_largest_room_can_be_filled(void **state)
{
	(void)state;
	struct room_policy policy = plain;

	policy.size = ROOM_SIZE_MAX;
	struct room *room = make(ROOM_SIZE_MAX, &policy);

	for (uint64_t s = 0; s < ROOM_SIZE_MAX; s++)
		assert_int_not_equal(enter(room, s, 0), 0);
	assert_int_equal(enter(room, UINT64_MAX, 0), 0);
	assert_int_equal(look(room, 0).sources, ROOM_SIZE_MAX);
	for (uint64_t s = 0; s < ROOM_SIZE_MAX; s++)
		assert_int_not_equal(serve(room, 0), 0);
	assert_int_equal(look(room, 0).sources, 0);
	unmake(room);
}

/* --- tickets --- */

static void a_void_ticket_is_harmless(void **state)
{
	(void)state;
	struct room *room = make(4, &plain);
	struct balancer_slot slot = slot_of(3), got;
	room_ticket old = enter(room, 'a', 0);
	void *who;

	assert_true(room_grant(room, old, &slot, 0));
	assert_false(room_grant(room, old, &slot, 0)); /* twice */
	assert_true(room_called(room, 0, &who, &got));
	assert_false(room_grant(room, old, &slot, 0));
	assert_false(room_leave(room, old, 0, &got));

	/* Its seat is another's now: that one is not touched. */
	room_ticket fresh = enter(room, 'b', 0);

	assert_int_not_equal(fresh, old);
	assert_int_equal((uint32_t)fresh, (uint32_t)old);
	assert_false(room_grant(room, old, &slot, 0));
	assert_false(room_leave(room, old, 0, &got));
	assert_int_equal(room_waiting(room), 1);

	static const room_ticket wild[] = { 0, 1, UINT64_MAX, 1ULL << 63,
					    5ULL << 32 | 0xffff };

	for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
		assert_false(room_grant(room, wild[i], &slot, 0));
		assert_false(room_leave(room, wild[i], 0, &got));
	}
	assert_int_equal(serve(room, 0), fresh);
	unmake(room);
}

static void who_leaves_after_the_call_hands_the_slot_back(void **state)
{
	(void)state;
	struct room *room = make(4, &plain);
	struct balancer_slot slot = slot_of(1), got = { 0 };
	room_ticket a = enter(room, 'a', 0), b = enter(room, 'b', 0);
	room_ticket c = enter(room, 'c', 0);
	void *who;

	assert_true(room_grant(room, a, &slot, 0));
	slot = slot_of(2);
	assert_true(room_grant(room, b, &slot, 0));
	slot = slot_of(3);
	assert_true(room_grant(room, c, &slot, 0));
	assert_true(room_leave(room, b, 0, &got));
	assert_int_equal(got.epoch, 2);
	assert_false(room_leave(room, b, 0, &got));
	/* The others are told in the order in which they were called. */
	assert_true(room_called(room, 0, &who, &got));
	assert_int_equal(got.epoch, 1);
	assert_true(room_called(room, 0, &who, &got));
	assert_int_equal(got.epoch, 3);
	assert_false(room_called(room, 0, &who, &got));

	struct room_view view = look(room, 0);

	assert_int_equal(view.counters[ROOM_COUNT_entered], 3);
	assert_int_equal(view.counters[ROOM_COUNT_served], 2);
	assert_int_equal(view.counters[ROOM_COUNT_left], 1);
	unmake(room);
}

/* --- pressure and saturation --- */

static void pressure_is_the_fill_or_the_wait_for_a_turn(void **state)
{
	(void)state;
	struct room_policy policy = plain;

	policy.size = 20;
	policy.reserve_percent = 50;
	policy.wait_ms = 1000;
	struct room *room = make(20, &policy);

	assert_int_equal(room_pressure(room, 5000), 0);
	(void)enter(room, 1, 5000);
	assert_int_equal(room_pressure(room, 5000), 10); /* of ten */
	assert_int_equal(room_pressure(room, 5500), 50);
	assert_int_equal(room_pressure(room, 9999), 100);
	assert_int_equal(room_pressure(room, 4000), 10); /* another's clock */
	for (uint64_t s = 2; s <= 10; s++)
		(void)enter(room, s, 5000);
	assert_int_equal(room_pressure(room, 5000), 100);
	unmake(room);
}

static void a_loud_source_alone_makes_no_pressure(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	int64_t now_ms = 0;

	policy.wait_ms = 1000;
	struct room *room = make(1000, &policy);

	/* Ten in line, one served every 200 ms, and it comes again: each
	 * waits 2 s, but its source has its turn every 200 ms. */
	for (unsigned i = 0; i < 10; i++)
		assert_int_not_equal(enter(room, 1, now_ms), 0);
	for (unsigned i = 0; i < 100; i++) {
		now_ms += 200;
		assert_true(room_pressure(room, now_ms) <= 20);
		assert_int_not_equal(serve(room, now_ms), 0);
		assert_int_not_equal(enter(room, 1, now_ms), 0);
	}
	assert_int_equal(look(room, now_ms).oldest_ms, 1800);
	assert_false(room_saturated(room, now_ms, NULL));
	unmake(room);
}

static void one_whom_nobody_can_serve_makes_no_pressure(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	struct balancer_slot slot = slot_of(1);
	int64_t now_ms = 0;
	void *who;

	policy.wait_ms = 1000;
	struct room *room = make(1000, &policy);

	(void)enter(room, 1, now_ms);
	for (unsigned i = 0; i < 50; i++) {
		room_ticket other = enter(room, 2, now_ms);

		now_ms += 100;
		assert_int_equal(next_of(room, -1, 1), other);
		assert_true(room_grant(room, other, &slot, now_ms));
		assert_true(room_called(room, 0, &who, &slot));
		assert_true(room_pressure(room, now_ms) <= 20);
	}
	/* But if nobody at all is served, it is pressure. */
	assert_int_equal(room_pressure(room, now_ms + 1000), 100);
	unmake(room);
}

static void saturation_has_two_marks_and_takes_its_time(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	bool changed = false;

	policy.size = 100;
	policy.per_source = 100;
	policy.wait_ms = INT64_MAX / 1000; /* only the fill counts here */
	struct room *room = make(100, &policy);

	for (unsigned i = 0; i < 89; i++)
		(void)enter(room, 1, 0);
	assert_false(room_saturated(room, 60000, &changed));
	assert_false(changed);
	/* The high mark is reached at 60 s, and held for not quite 5 s. */
	room_ticket last = enter(room, 1, 60000);
	struct balancer_slot slot;

	assert_false(room_saturated(room, 64999, &changed));
	assert_false(room_leave(room, last, 64999, &slot));
	(void)enter(room, 1, 65000);
	/* A break, however short and unseen, begins the time anew. */
	assert_false(room_saturated(room, 69999, &changed));
	assert_true(room_saturated(room, 70000, NULL));
	assert_true(room_saturated(room, 70001, &changed));
	assert_true(changed); /* who does not log does not take the news */
	assert_true(room_saturated(room, 70002, &changed));
	assert_false(changed);

	struct room_view view = look(room, 70003);

	assert_true(view.saturated);
	assert_int_equal(view.saturated_since_ms, 70000);
	assert_int_equal(view.counters[ROOM_COUNT_saturations], 1);

	for (unsigned i = 0; i < 39; i++)
		(void)serve(room, 80000);
	assert_int_equal(room_pressure(room, 80000), 51);
	assert_true(room_saturated(room, 80000, &changed));
	(void)serve(room, 80000);
	assert_false(room_saturated(room, 80000, &changed));
	assert_true(changed);
	assert_false(room_saturated(room, 80001, &changed));
	assert_false(changed);
	assert_int_equal(look(room, 80001).saturated_since_ms, 0);

	/* From below it must climb to the high mark again. */
	for (unsigned i = 0; i < 39; i++)
		(void)enter(room, 1, 90000);
	assert_false(room_saturated(room, 99999, &changed));
	(void)enter(room, 1, 100000);
	assert_true(room_saturated(room, 105000, &changed));
	assert_int_equal(look(room, 105000).counters[ROOM_COUNT_saturations],
			 2);
	unmake(room);
}

static void no_turn_for_as_long_as_anyone_waits_is_saturation(void **state)
{
	(void)state;
	struct room *room = make(1000, &plain);
	bool changed;

	(void)enter(room, 1, 1000);
	/* 90 % of 15 s is 13.5 s; then 5 s more. */
	assert_false(room_saturated(room, 1000 + 13499, &changed));
	assert_false(room_saturated(room, 1000 + 13500, &changed));
	assert_false(room_saturated(room, 1000 + 18499, &changed));
	assert_true(room_saturated(room, 1000 + 18500, &changed));
	(void)serve(room, 20000);
	assert_false(room_saturated(room, 20000, &changed));
	unmake(room);
}

static void percentiles_are_those_of_the_last_served(void **state)
{
	(void)state;
	struct room *room = make(10, &plain);

	assert_int_equal(look(room, 0).wait_p50_ms, 0);
	assert_int_equal(look(room, 0).wait_p99_ms, 0);
	for (int64_t i = 1; i <= 100; i++) {
		(void)enter(room, 1, 1000);
		(void)serve(room, 1000 + i);
	}
	assert_int_equal(look(room, 0).wait_p50_ms, 50);
	assert_int_equal(look(room, 0).wait_p99_ms, 99);
	assert_int_equal(look(room, 0).counters[ROOM_COUNT_wait_ms], 5050);
	/* 1024 others: the first hundred are forgotten. */
	for (int64_t i = 1; i <= 1024; i++) {
		(void)enter(room, 1, 10000);
		(void)serve(room, i == 1024 ? INT64_MAX : 10000);
	}
	assert_int_equal(look(room, 0).wait_p50_ms, 0);
	assert_int_equal(look(room, 0).wait_p99_ms, 0);
	for (unsigned i = 0; i < 1013; i++) {
		(void)enter(room, 1, 10000);
		(void)serve(room, 10000 + 777);
	}
	assert_int_equal(look(room, 0).wait_p50_ms, 777);
	assert_int_equal(look(room, 0).wait_p99_ms, 777);
	for (unsigned i = 0; i < 11; i++) {
		(void)enter(room, 1, 0);
		(void)serve(room, INT64_MAX);
	}
	assert_int_equal(look(room, 0).wait_p99_ms, UINT32_MAX);
	unmake(room);
}

static void every_name_and_counter_has_words(void **state)
{
	(void)state;
	assert_string_equal(room_verdict_name(ROOM_ENTERED), "entered");
	assert_string_equal(room_verdict_name(ROOM_FULL), "full");
	assert_string_equal(room_verdict_name(ROOM_SOURCE_FULL), "source_full");
	for (unsigned i = 0; i < ROOM_COUNTER_COUNT; i++) {
		assert_true(strlen(room_counter_rows[i].name) > 0);
		assert_true(strlen(room_counter_rows[i].unit) > 0);
		assert_true(strlen(room_counter_rows[i].help) > 0);
	}
	assert_string_equal(room_counter_rows[ROOM_COUNT_served].name,
			    "served");
}

/* --- a naive model: arrays, and every question answered by searching --- */

enum { MODEL_MAX = 40, MODEL_SOURCES = 12, MODEL_WORKERS = 3 };

enum model_state { GONE, WAITS, CALLED };

struct model_guest {
	enum model_state state;
	room_ticket ticket;
	unsigned source, worker;
	uint64_t order; /* of entering; CALLED: of being called */
	int64_t entered_ms;
	uint32_t slot;
};

struct model {
	struct room_policy policy;
	struct model_guest guests[MODEL_MAX];
	unsigned turn[MODEL_SOURCES]; /* in the order of their turns */
	unsigned turns;
	bool passed[MODEL_SOURCES];
	uint64_t orders, served, left, entered, refused;
	room_ticket stale[64];
	unsigned stale_count;
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static unsigned model_count(const struct model *m, enum model_state state,
			    int source)
{
	unsigned count = 0;

	for (unsigned i = 0; i < MODEL_MAX; i++)
		count += m->guests[i].state == state &&
			 (source < 0 ||
			  m->guests[i].source == (unsigned)source);
	return count;
}

/* The oldest of a state and source (or worker, if source is -1). */
static struct model_guest *model_oldest(struct model *m, enum model_state state,
					int source, int worker)
{
	struct model_guest *oldest = NULL;

	for (unsigned i = 0; i < MODEL_MAX; i++) {
		struct model_guest *g = &m->guests[i];

		if (g->state != state ||
		    (source >= 0 && g->source != (unsigned)source) ||
		    (worker >= 0 && g->worker != (unsigned)worker))
			continue;
		if (oldest == NULL || g->order < oldest->order)
			oldest = g;
	}
	return oldest;
}

static void model_turn_drop(struct model *m, unsigned source)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < m->turns; i++)
		if (m->turn[i] != source)
			m->turn[kept++] = m->turn[i];
	m->turns = kept;
}

static void model_turn_last(struct model *m, unsigned source)
{
	model_turn_drop(m, source);
	m->turn[m->turns++] = source;
	m->passed[source] = false;
}

static struct model_guest *model_next(struct model *m, int prefer,
				      unsigned skip)
{
	unsigned order[MODEL_SOURCES], count = 0;
	unsigned first = m->turns;

	for (unsigned i = 0; prefer >= 0 && i < m->turns; i++) {
		bool blocked = i > ROOM_LOOKAHEAD;

		for (unsigned k = 0; k < i; k++)
			blocked |= m->passed[m->turn[k]];
		if (!blocked && first == m->turns &&
		    model_oldest(m, WAITS, (int)m->turn[i], -1)->worker ==
			    (unsigned)prefer)
			first = i;
	}
	if (first < m->turns)
		order[count++] = m->turn[first];
	for (unsigned i = 0; i < m->turns; i++)
		if (i != first)
			order[count++] = m->turn[i];
	return skip < count ? model_oldest(m, WAITS, (int)order[skip], -1)
			    : NULL;
}

static struct model_guest *model_any(struct model *m, uint64_t random,
				     bool gone)
{
	for (unsigned i = 0; i < MODEL_MAX; i++) {
		struct model_guest *g = &m->guests[(random + i) % MODEL_MAX];

		if ((g->state == GONE) == gone)
			return g;
	}
	return NULL;
}

static void model_gone(struct model *m, struct model_guest *g)
{
	m->stale[m->stale_count++ % 64] = g->ticket;
	if (g->state == WAITS && model_count(m, WAITS, (int)g->source) == 1)
		model_turn_drop(m, g->source);
	g->state = GONE;
}

static void try_enter(struct room *room, struct model *m, uint64_t random,
		      int64_t now_ms)
{
	struct model_guest *g = model_any(m, random >> 32, true);
	unsigned source = (unsigned)(random % MODEL_SOURCES);
	struct room_guest guest = { .source = source * 0x1234567ULL,
				    .good = (random >> 8) % 4 == 0,
				    .worker = (unsigned)(random >> 12) %
					      MODEL_WORKERS,
				    .who = g };
	uint32_t inside = model_count(m, WAITS, -1) +
			  model_count(m, CALLED, -1);
	uint32_t reserve = m->policy.size * m->policy.reserve_percent / 100;
	enum room_verdict expected = ROOM_ENTERED;
	room_ticket ticket = 0;

	if (inside >= m->policy.size - (guest.good ? 0 : reserve))
		expected = ROOM_FULL;
	if (model_count(m, WAITS, (int)source) >= m->policy.per_source)
		expected = ROOM_SOURCE_FULL;
	if (g == NULL)
		return;
	assert_int_equal(room_enter(room, &guest, now_ms, &ticket), expected);
	if (expected != ROOM_ENTERED) {
		m->refused++;
		return;
	}
	if (model_count(m, WAITS, (int)source) == 0)
		model_turn_last(m, source);
	*g = (struct model_guest){
		.state = WAITS,
		.ticket = ticket,
		.source = source,
		.worker = guest.worker,
		.order = m->orders++,
		.entered_ms = now_ms,
	};
	m->entered++;
}

static void try_serve(struct room *room, struct model *m, uint64_t random,
		      int64_t now_ms)
{
	int prefer = (int)(random % (MODEL_WORKERS + 1)) - 1;
	unsigned skip = random & 16 ? 0 : (unsigned)(random >> 8) % 14;
	struct model_guest *g = model_next(m, prefer, skip);
	struct room_turn turn;

	assert_int_equal(room_next(room, prefer, skip, &turn), g != NULL);
	if (g == NULL)
		return;
	assert_int_equal(turn.ticket, g->ticket);
	assert_ptr_equal(turn.who, g);
	assert_int_equal(turn.worker, g->worker);

	uint32_t name = (uint32_t)m->orders;
	struct balancer_slot slot = slot_of(name);

	assert_true(room_grant(room, turn.ticket, &slot, now_ms));
	for (unsigned i = 0; i <= ROOM_LOOKAHEAD && m->turn[i] != g->source;
	     i++)
		m->passed[m->turn[i]] = true;
	g->state = CALLED;
	g->slot = name;
	g->order = m->orders++;
	model_turn_drop(m, g->source);
	if (model_count(m, WAITS, (int)g->source) > 0)
		model_turn_last(m, g->source);
}

static void try_called(struct room *room, struct model *m, uint64_t random)
{
	unsigned worker = (unsigned)(random % MODEL_WORKERS);
	struct model_guest *g = model_oldest(m, CALLED, -1, (int)worker);
	struct balancer_slot slot;
	void *who;

	assert_int_equal(room_has_called(room, worker), g != NULL);
	assert_int_equal(room_called(room, worker, &who, &slot), g != NULL);
	if (g == NULL)
		return;
	assert_ptr_equal(who, g);
	assert_int_equal(slot.epoch, g->slot);
	m->served++;
	model_gone(m, g);
}

static void try_leave(struct room *room, struct model *m, uint64_t random,
		      int64_t now_ms)
{
	struct model_guest *g = model_any(m, random, false);
	struct balancer_slot slot = { 0 };

	if (g == NULL)
		return;
	assert_int_equal(room_leave(room, g->ticket, now_ms, &slot),
			 g->state == CALLED);
	if (g->state == CALLED)
		assert_int_equal(slot.epoch, g->slot);
	m->left++;
	model_gone(m, g);
}

static void try_stale(struct room *room, struct model *m, uint64_t random,
		      int64_t now_ms)
{
	struct balancer_slot slot = slot_of(0);

	if (m->stale_count < 64)
		return;
	assert_false(room_grant(room, m->stale[random % 64], &slot, now_ms));
	assert_false(room_leave(room, m->stale[random % 64], now_ms, &slot));
}

static void new_policy(struct room *room, struct model *m, uint64_t random)
{
	m->policy.size = (uint32_t)(random % (MODEL_MAX + 1));
	m->policy.per_source = 1 + (uint32_t)(random >> 8) % 8;
	m->policy.reserve_percent = (uint32_t)(random >> 16) % 101;
	room_set_policy(room, &m->policy);
}

static void compare(struct room *room, struct model *m, int64_t now_ms)
{
	struct room_view view = look(room, now_ms);
	int64_t oldest_ms = 0;
	unsigned sources = 0;

	for (unsigned i = 0; i < MODEL_MAX; i++)
		if (m->guests[i].state == WAITS &&
		    now_ms - m->guests[i].entered_ms > oldest_ms)
			oldest_ms = now_ms - m->guests[i].entered_ms;
	for (int s = 0; s < MODEL_SOURCES; s++)
		sources += model_count(m, WAITS, s) > 0;
	assert_int_equal(sources, m->turns);
	assert_int_equal(view.waiting, model_count(m, WAITS, -1));
	assert_int_equal(room_waiting(room), view.waiting);
	assert_int_equal(view.called, model_count(m, CALLED, -1));
	assert_int_equal(view.sources, sources);
	assert_int_equal(view.oldest_ms, oldest_ms);
	assert_true(view.pressure <= 100);
	assert_int_equal(view.counters[ROOM_COUNT_entered], m->entered);
	assert_int_equal(view.counters[ROOM_COUNT_served], m->served);
	assert_int_equal(view.counters[ROOM_COUNT_left], m->left);
	assert_int_equal(view.counters[ROOM_COUNT_refused_full] +
				 view.counters[ROOM_COUNT_refused_source],
			 m->refused);
	assert_int_equal(view.counters[ROOM_COUNT_entered],
			 view.counters[ROOM_COUNT_served] +
				 view.counters[ROOM_COUNT_left] + view.waiting +
				 view.called);
}

static void random_lives_follow_the_naive_model(void **state)
{
	(void)state;
	uint64_t seed = 3202611220958, served = 0, refused = 0;

	for (unsigned run = 0; run < 10; run++) {
		struct model m = { .policy = plain };
		int64_t now_ms = 1;

		m.policy.size = MODEL_MAX;
		m.policy.per_source = 4;
		struct room *room = make(MODEL_MAX, &m.policy);

		for (unsigned i = 0; i < 5000; i++) {
			uint64_t dice = next_random(&seed) % 32;
			uint64_t random = next_random(&seed);

			now_ms += (int64_t)(random % 50);
			if (dice < 14)
				try_enter(room, &m, random, now_ms);
			else if (dice < 22)
				try_serve(room, &m, random, now_ms);
			else if (dice < 28)
				try_called(room, &m, random);
			else if (dice < 30)
				try_leave(room, &m, random, now_ms);
			else if (dice < 31)
				try_stale(room, &m, random, now_ms);
			else if (random % 20 == 0)
				new_policy(room, &m, random >> 5);
			compare(room, &m, now_ms);
		}
		served += m.served;
		refused += m.refused;
		unmake(room);
	}
	/* It was neither empty nor full all the time. */
	assert_true(served > 5000);
	assert_true(refused > 5000);
}

/* --- threads --- */

enum { THREADS = 2, THREAD_GUESTS = 64, THREAD_ROUNDS = 20000 };

struct thread_guest {
	room_ticket ticket; /* 0: not inside */
};

struct shared {
	struct room *room;
	_Atomic uint32_t slots_made, slots_back;
	_Atomic uint64_t told_wrong, entered;
	_Atomic uint8_t slot_seen[THREADS * THREAD_ROUNDS + 1];
};

struct worker {
	struct shared *shared;
	unsigned number;
	uint64_t seed;
	struct thread_guest guests[THREAD_GUESTS];
};

static void slot_back(struct worker *w, const struct balancer_slot *slot)
{
	(void)atomic_fetch_add(&w->shared->slots_back, 1);
	(void)atomic_fetch_add(&w->shared->slot_seen[slot->epoch], 1);
}

static void worker_grant(struct worker *w, int64_t now_ms)
{
	struct room_turn turn;

	if (!room_next(w->shared->room, (int)w->number, 0, &turn))
		return;
	uint32_t name = atomic_fetch_add(&w->shared->slots_made, 1) + 1;
	struct balancer_slot slot = { .epoch = name };

	if (!room_grant(w->shared->room, turn.ticket, &slot, now_ms))
		slot_back(w, &slot);
}

static void worker_called(struct worker *w)
{
	struct balancer_slot slot;
	void *who;

	while (room_called(w->shared->room, w->number, &who, &slot)) {
		struct thread_guest *g = who;

		if (g < w->guests || g >= w->guests + THREAD_GUESTS ||
		    g->ticket == 0)
			(void)atomic_fetch_add(&w->shared->told_wrong, 1);
		g->ticket = 0;
		slot_back(w, &slot);
	}
}

static void worker_move(struct worker *w, int64_t now_ms)
{
	uint64_t random = next_random(&w->seed);
	struct thread_guest *g = &w->guests[random % THREAD_GUESTS];
	struct room_guest guest = { .source = (random >> 8) % 16,
				    .worker = w->number,
				    .who = g };
	struct balancer_slot slot;

	if (g->ticket == 0) {
		if (room_enter(w->shared->room, &guest, now_ms, &g->ticket) ==
		    ROOM_ENTERED)
			(void)atomic_fetch_add(&w->shared->entered, 1);
	} else if ((random >> 16) % 4 == 0) {
		if (room_leave(w->shared->room, g->ticket, now_ms, &slot))
			slot_back(w, &slot);
		g->ticket = 0;
	}
}

static void *worker_run(void *argument)
{
	struct worker *w = argument;
	bool changed;

	for (unsigned i = 0; i < THREAD_ROUNDS; i++) {
		worker_move(w, i);
		if (room_waiting(w->shared->room) > 0)
			worker_grant(w, i);
		if (room_has_called(w->shared->room, w->number))
			worker_called(w);
		if (i % 64 == 0)
			(void)room_saturated(w->shared->room, i, &changed);
	}
	return NULL;
}

static void threads_lose_no_waiter_and_no_slot(void **state)
{
	(void)state;
	struct room_policy policy = plain;
	struct shared *shared = calloc(1, sizeof(*shared));
	struct worker *workers = calloc(THREADS, sizeof(*workers));
	pthread_t threads[THREADS];

	assert_non_null(shared);
	assert_non_null(workers);
	policy.size = 100;
	shared->room = make(100, &policy);
	for (unsigned t = 0; t < THREADS; t++) {
		workers[t].shared = shared;
		workers[t].number = t;
		workers[t].seed = 77 + t;
		assert_int_equal(pthread_create(&threads[t], NULL, worker_run,
						&workers[t]),
				 0);
	}
	for (unsigned t = 0; t < THREADS; t++)
		assert_int_equal(pthread_join(threads[t], NULL), 0);
	for (unsigned t = 0; t < THREADS; t++)
		worker_called(&workers[t]);

	struct room_view view = look(shared->room, THREAD_ROUNDS);
	uint32_t inside = 0;

	for (unsigned t = 0; t < THREADS; t++)
		for (unsigned i = 0; i < THREAD_GUESTS; i++)
			inside += workers[t].guests[i].ticket != 0;
	assert_int_equal(shared->told_wrong, 0);
	assert_int_equal(view.called, 0);
	assert_int_equal(view.waiting, inside);
	assert_int_equal(view.counters[ROOM_COUNT_entered], shared->entered);
	assert_int_equal(shared->entered,
			 view.counters[ROOM_COUNT_served] +
				 view.counters[ROOM_COUNT_left] + inside);
	/* Each slot came back to exactly one. */
	assert_int_equal(shared->slots_made, shared->slots_back);
	for (uint32_t i = 1; i <= shared->slots_made; i++)
		assert_int_equal(shared->slot_seen[i], 1);
	assert_true(view.counters[ROOM_COUNT_served] > 100);
	unmake(shared->room);
	free(workers);
	free(shared);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_room_has_no_turn),
		cmocka_unit_test(a_guest_comes_out_as_it_went_in),
		cmocka_unit_test(
			turns_go_round_by_source_and_in_line_within_one),
		cmocka_unit_test(a_source_that_comes_back_is_behind_the_others),
		cmocka_unit_test(who_leaves_makes_way),
		cmocka_unit_test(
			two_hundred_quiet_sources_and_a_loud_one_take_turns),
		cmocka_unit_test(a_worker_prefers_its_own_within_the_lookahead),
		cmocka_unit_test(nobody_is_passed_over_twice),
		cmocka_unit_test(skipping_gives_each_source_once),
		cmocka_unit_test(the_places_are_bounded_and_some_are_reserved),
		cmocka_unit_test(one_source_has_so_many_places_and_no_more),
		cmocka_unit_test(who_is_called_keeps_its_place_until_told),
		cmocka_unit_test(a_reload_changes_the_bounds_and_drops_nobody),
		cmocka_unit_test(the_largest_room_can_be_filled),
		cmocka_unit_test(a_void_ticket_is_harmless),
		cmocka_unit_test(who_leaves_after_the_call_hands_the_slot_back),
		cmocka_unit_test(pressure_is_the_fill_or_the_wait_for_a_turn),
		cmocka_unit_test(a_loud_source_alone_makes_no_pressure),
		cmocka_unit_test(one_whom_nobody_can_serve_makes_no_pressure),
		cmocka_unit_test(saturation_has_two_marks_and_takes_its_time),
		cmocka_unit_test(
			no_turn_for_as_long_as_anyone_waits_is_saturation),
		cmocka_unit_test(percentiles_are_those_of_the_last_served),
		cmocka_unit_test(every_name_and_counter_has_words),
		cmocka_unit_test(random_lives_follow_the_naive_model),
		cmocka_unit_test(threads_lose_no_waiter_and_no_slot),
	};

	return cmocka_run_group_tests_name("room", tests, NULL, NULL);
}
