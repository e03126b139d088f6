#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "balancer/backend.h"

static struct farm farm; /* large */

static int setup(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	farm_init(&farm, &policy);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	farm_fini(&farm);
	return 0;
}

static enum farm_result add(const char *name, uint16_t *index)
{
	struct busy_rule rules[2] = { { .code_min = 450 },
				      { .code_min = 451 } };
	struct backend_settings s = {
		.name = name,
		.address = "[2001:db8::1]:25",
		.peer = { .ss_family = AF_INET6 },
		.peer_len = 28,
		.max_sessions = 50,
		.weight = 2,
		.admin = BACKEND_ADMIN_DRAIN,
		.rules = rules,
		.rule_count = 2,
	};

	return farm_add(&farm, &s, 1000, index);
}

static void a_backend_is_what_its_settings_say(void **state)
{
	(void)state;
	uint16_t index = 99;
	struct backend_view view;

	assert_int_equal(add("mx-1.example", &index), FARM_OK);
	assert_int_equal(index, 0);
	assert_int_equal(farm_size(&farm), 1);
	struct backend *b = farm_find(&farm, "mx-1.example", 12);

	assert_ptr_equal(b, farm_at(&farm, 0));
	assert_string_equal(b->name, "mx-1.example");
	assert_string_equal(b->address, "[2001:db8::1]:25");
	assert_int_equal(b->peer.ss_family, AF_INET6);
	assert_int_equal(b->source_len, 0);
	assert_int_equal(b->rule_count, 2);
	assert_int_equal(b->rules[1].code_min, 451);
	assert_int_equal(backend_limit(b), 50);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_weight, 1000), 2);
	assert_int_equal(backend_admin_state(b), BACKEND_ADMIN_DRAIN);
	assert_int_equal(backend_state(b), HEALTH_UNKNOWN);
	backend_look(b, &view);
	assert_int_equal(view.health.why, HEALTH_WHY_START);
	assert_int_equal(view.health.probe_at_ms, 1000);
	assert_int_equal(view.report.outcome, PROBE_NONE);
}

static void names_are_found_whole_and_only_once(void **state)
{
	(void)state;
	uint16_t index;

	assert_int_equal(add("mx1", &index), FARM_OK);
	assert_int_equal(add("mx1", &index), FARM_TAKEN);
	assert_int_equal(add("mx10", &index), FARM_OK);
	assert_null(farm_find(&farm, "mx", 2));
	assert_null(farm_find(&farm, "mx100", 5));
	assert_null(farm_find(&farm, "MX1", 3));
	assert_null(farm_find(&farm, "", 0));
	assert_int_equal(farm_find(&farm, "mx10 and more", 4)->index, 1);
	assert_int_equal(farm_find(&farm, "mx10", 3)->index, 0);
}

static void a_farm_has_room_for_its_maximum(void **state)
{
	(void)state;
	char name[16];
	uint16_t index;

	for (unsigned i = 0; i < FARM_BACKENDS_MAX; i++) {
		snprintf(name, sizeof(name), "b%u", i);
		assert_int_equal(add(name, &index), FARM_OK);
		assert_int_equal(index, i);
	}
	assert_int_equal(add("one-more", &index), FARM_FULL);
	assert_int_equal(add("b7", &index), FARM_TAKEN);
	assert_int_equal(farm_remove(&farm, 7), FARM_OK);
	assert_int_equal(add("one-more", &index), FARM_OK);
	assert_int_equal(index, 7);
	assert_int_equal(farm_find(&farm, "b8", 2)->index, 8); /* unmoved */
}

static void only_an_unused_backend_out_of_service_is_removed(void **state)
{
	(void)state;
	uint16_t index;

	assert_int_equal(farm_remove(&farm, 0), FARM_NO_SUCH);
	add("mx1", &index);
	struct backend *b = farm_at(&farm, index);
	uint32_t generation = atomic_load(&b->generation);

	backend_set_admin(b, BACKEND_READY, NULL);
	assert_int_equal(farm_remove(&farm, index), FARM_READY);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	atomic_store(&b->inflight, 1);
	assert_int_equal(farm_remove(&farm, index), FARM_IN_USE);
	assert_ptr_equal(farm_at(&farm, index), b); /* as it was */
	atomic_store(&b->inflight, 0);
	assert_int_equal(farm_remove(&farm, index), FARM_OK);
	assert_null(farm_at(&farm, index));
	assert_null(farm_find(&farm, "mx1", 3));
	assert_int_equal(atomic_load(&b->generation), generation + 1);
	assert_int_equal(farm_remove(&farm, index), FARM_NO_SUCH);
}

static void a_place_that_is_used_again_remembers_nothing(void **state)
{
	(void)state;
	uint16_t index;
	struct backend_change change = { 0 };

	add("old", &index);
	struct backend *b = farm_at(&farm, index);

	backend_count(b, BACKEND_COUNT_messages, 5);
	backend_error_up(b, 3, 1000);
	atomic_store(&b->ext_known, true);
	atomic_store(&b->size, 77);
	b->report.outcome = PROBE_REFUSED;
	b->limit.l = 7;
	b->limit.refused = 3;
	health_note_success(&b->health, 1, 1000);
	backend_settle(b, HEALTH_UNKNOWN, 0, &change);
	assert_int_equal(backend_state(b), HEALTH_UP);
	farm_remove(&farm, index);
	assert_int_equal(add("new", &index), FARM_OK);
	assert_ptr_equal(farm_at(&farm, index), b);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_messages), 0);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_state_changes), 0);
	assert_int_equal(backend_error(b, 1000), 0);
	assert_false(atomic_load(&b->ext_known));
	assert_int_equal(backend_state(b), HEALTH_UNKNOWN);
	assert_int_equal(b->report.outcome, PROBE_NONE);
	assert_int_equal(b->limit.refused, 0);
	assert_int_equal(backend_limit(b), 50);
}

static void an_operators_change_is_told(void **state)
{
	(void)state;
	uint16_t index;
	struct backend_change change;

	add("mx1", &index);
	struct backend *b = farm_at(&farm, index);

	backend_set_admin(b, BACKEND_ADMIN_MAINT, &change);
	assert_true(change.changed);
	assert_string_equal(change.name, "mx1");
	assert_int_equal(change.admin_from, BACKEND_ADMIN_DRAIN);
	assert_int_equal(change.admin_to, BACKEND_ADMIN_MAINT);
	assert_int_equal(change.from, change.to);
	assert_int_equal(change.why, HEALTH_WHY_ADMIN);
	backend_set_admin(b, BACKEND_ADMIN_MAINT, &change);
	assert_false(change.changed);
	backend_set_max_sessions(b, 3);
	backend_set_weight(b, 1000);
	assert_int_equal(backend_limit(b), 3);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_max_sessions, 0), 3);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_weight, 0), 1000);
}

static void a_change_of_health_is_published_counted_and_told(void **state)
{
	(void)state;
	uint16_t index;
	struct backend_change change = { 0 };

	add("mx1", &index);
	struct backend *b = farm_at(&farm, index);

	backend_settle(b, b->health.state, 0, &change);
	assert_false(change.changed);
	enum health_state before = b->health.state;

	health_note_busy(&b->health, &farm.policy, HEALTH_WHY_RESOURCES, 2000);
	backend_settle(b, before, 0, &change);
	assert_true(change.changed);
	assert_int_equal(change.index, index);
	assert_string_equal(change.name, "mx1");
	assert_int_equal(change.from, HEALTH_UNKNOWN);
	assert_int_equal(change.to, HEALTH_BUSY);
	assert_int_equal(change.why, HEALTH_WHY_RESOURCES);
	assert_int_equal(change.until_ms, 7000);
	assert_int_equal(backend_state(b), HEALTH_BUSY);
	assert_int_equal(atomic_load(&b->until_ms), 7000);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_state_changes), 1);
}

static void the_error_average_rises_falls_and_fades(void **state)
{
	(void)state;
	uint16_t index;

	add("mx1", &index);
	struct backend *b = farm_at(&farm, index);

	assert_int_equal(backend_error_up(b, 3, 1000), BACKEND_ERROR_ONE / 8);
	assert_int_equal(backend_error(b, 1000), BACKEND_ERROR_ONE / 8);
	for (int i = 0; i < 200; i++) {
		backend_error_up(b, 3, 1000);
		assert_true(backend_error(b, 1000) <= BACKEND_ERROR_ONE);
	}
	assert_true(backend_error(b, 1000) > BACKEND_ERROR_ONE * 99 / 100);
	assert_in_range(backend_gauge(b, BACKEND_GAUGE_errors_permille, 1000),
			990, 1000);
	uint32_t last = BACKEND_ERROR_ONE;

	for (int64_t now = 1000; now < 600000; now += 1000) {
		uint32_t error = backend_error(b, now);

		assert_true(error <= last);
		last = error;
	}
	assert_int_equal(last, 0);
	backend_error_up(b, 3, 700000);
	for (int i = 0; i < 100; i++)
		backend_error_down(b, 700000);
	assert_int_equal(backend_error(b, 700000), 0);
	uint32_t step = backend_error_up(b, 3, 700000);

	backend_error_up(b, 3, 700000);
	backend_error_undo(b, step, 700000);
	assert_in_range(backend_error(b, 700000), 1, BACKEND_ERROR_ONE / 8);
	backend_error_undo(b, BACKEND_ERROR_ONE, 700000);
	assert_int_equal(backend_error(b, 700000), 0);
}

static void every_row_has_a_name_a_unit_and_a_help(void **state)
{
	(void)state;
	const struct backend_row
		*rows[BACKEND_COUNTER_COUNT + BACKEND_GAUGE_COUNT];
	size_t n = 0;

	for (size_t i = 0; i < BACKEND_COUNTER_COUNT; i++)
		rows[n++] = &backend_counter_rows[i];
	for (size_t i = 0; i < BACKEND_GAUGE_COUNT; i++)
		rows[n++] = &backend_gauge_rows[i];
	for (size_t i = 0; i < n; i++) {
		assert_true(strlen(rows[i]->name) > 0);
		assert_true(strlen(rows[i]->unit) > 0);
		assert_true(strlen(rows[i]->help) > 0);
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(rows[i]->name, rows[j]->name);
	}
	assert_string_equal(backend_counter_rows[BACKEND_COUNT_unknown].name,
			    "unknown");
	assert_string_equal(backend_admin_name(BACKEND_ADMIN_MAINT), "maint");
	for (unsigned i = FARM_OK; i <= FARM_NO_SUCH; i++)
		assert_true(strlen(farm_result_name((enum farm_result)i)) > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_backend_is_what_its_settings_say),
		TEST(names_are_found_whole_and_only_once),
		TEST(a_farm_has_room_for_its_maximum),
		TEST(only_an_unused_backend_out_of_service_is_removed),
		TEST(a_place_that_is_used_again_remembers_nothing),
		TEST(an_operators_change_is_told),
		TEST(a_change_of_health_is_published_counted_and_told),
		TEST(the_error_average_rises_falls_and_fades),
		TEST(every_row_has_a_name_a_unit_and_a_help),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
