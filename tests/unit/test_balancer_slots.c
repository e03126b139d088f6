#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "balancer/balancer.h"

/* How the balancer feeds the learned limits, and goes by them. */

enum {
	START_MS = 1000000,
	HELD_MAX = 64,
	THREADS = 4,
	ROUNDS = 20000,
};

static struct farm farm; /* large */
static struct backend_change change;
static const struct balancer_need anything;
static uint64_t seed;

static uint64_t draw(void)
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return seed ^ seed >> 33;
}

static int setup(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	seed = 42;
	farm_init(&farm, &policy);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	farm_fini(&farm);
	return 0;
}

static const struct probe_report passed = {
	.outcome = PROBE_OK,
	.failed = PROBE_STEP_DONE,
	.class = BUSY_OK,
	.ehlo_known = true,
	.ext = SMTP_EXT_8BITMIME,
	.greet_ms = 20,
};

/* Up; LIMIT_MAX: the limit starts at four. */
static struct backend *add(uint32_t max_sessions)
{
	char name[16];
	uint16_t index;
	struct balancer_slot slot;
	struct backend_settings s = {
		.name = name,
		.address = "127.0.0.1:25",
		.max_sessions = max_sessions,
		.weight = 1,
	};

	snprintf(name, sizeof(name), "b%u", (unsigned)farm_size(&farm));
	assert_int_equal(farm_add(&farm, &s, START_MS, &index), FARM_OK);
	assert_true(balancer_probe_claim(&farm, START_MS, &slot));
	assert_int_equal(slot.index, index);
	balancer_probe_greeted(&farm, &slot, 20, START_MS);
	balancer_probe_done(&farm, &slot, &passed, START_MS, 0, &change);
	assert_int_equal(change.to, HEALTH_UP);
	assert_string_equal(change.name, name);
	return &farm.backends[index];
}

static enum balancer_verdict reserve(struct balancer_slot *slot, int64_t now)
{
	return balancer_reserve(&farm, &anything, now, draw(), slot, &change);
}

static struct balancer_need all_but(const struct backend *b)
{
	struct balancer_need need = { 0 };

	for (uint16_t i = 0; i < farm_size(&farm); i++) {
		if (i != b->index)
			need.tried[need.tried_count++] = i;
	}
	return need;
}

static enum balancer_verdict reserve_of(const struct backend *b,
					struct balancer_slot *slot, int64_t now)
{
	struct balancer_need need = all_but(b);

	return balancer_reserve(&farm, &need, now, draw(), slot, &change);
}

static void tell(struct balancer_slot *slot, enum busy_class class,
		 enum busy_stage stage, uint64_t source, int64_t now)
{
	struct balancer_outcome o = {
		.failure = BALANCER_REPLIED,
		.class = class,
		.stage = stage,
		.source = source,
		.greet_ms = 20,
	};

	balancer_note(&farm, slot, &o, now, draw(), &change);
}

static void fail_by(struct balancer_slot *slot, enum balancer_failure failure,
		    int64_t now)
{
	struct balancer_outcome o = {
		.failure = failure,
		.class = BUSY_MAYBE,
		.stage = BUSY_STAGE_GREET,
	};

	balancer_note(&farm, slot, &o, now, draw(), &change);
}

static struct balancer_slot greeted(struct backend *b, int64_t now)
{
	struct balancer_slot slot;

	assert_int_equal(reserve_of(b, &slot, now), BALANCER_PICKED);
	tell(&slot, BUSY_OK, BUSY_STAGE_GREET, 1, now);
	assert_int_equal(slot.phase, LIMIT_GREETED);
	return slot;
}

/* count of them. */
static void fill(struct backend *b, struct balancer_slot *slots, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		slots[i] = greeted(b, START_MS);
}

static void drop(struct balancer_slot *slots, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		balancer_release(&farm, &slots[i]);
}

static struct limit limit_of(struct backend *b)
{
	struct backend_view view;

	backend_look(b, &view);
	return view.limit;
}

static void assert_empty(struct backend *b)
{
	struct limit l = limit_of(b);

	assert_int_equal(l.n, 0);
	assert_int_equal(l.p, 0);
	assert_int_equal(l.pp, 0);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_sessions, 0), 0);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_sessions_idle, 0), 0);
}

static void take_out(struct backend *b)
{
	backend_set_admin(b, BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(farm_remove(&farm, b->index), FARM_OK);
}

/* --- what outcomes do --- */

/* One more session when it has four of ten; what becomes of it, three times. */
struct lesson {
	const char *about;
	enum balancer_failure failure;
	enum busy_class class;
	enum busy_stage stage;
	bool greeted, same_source;
	unsigned limit;
	enum limit_phase phase;
};

/* clang-format off */
static const struct lesson lessons[] = {
	{ "busy in place of the greeting",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_GREET, false, false,
	  4, LIMIT_OUT },
	{ "the greeting is refused to a client as often as to three",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_GREET, false, true,
	  4, LIMIT_OUT },
	{ "busy to EHLO",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_EHLO, true, false,
	  4, LIMIT_OUT },
	{ "busy to EHLO, to one client only: one vote",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_EHLO, true, true,
	  9, LIMIT_OUT },
	{ "perhaps busy: every second one",
	  BALANCER_REPLIED, BUSY_MAYBE, BUSY_STAGE_GREET, false, false,
	  9, LIMIT_OUT },
	{ "a cap on our address",
	  BALANCER_REPLIED, BUSY_CAP, BUSY_STAGE_GREET, false, false,
	  4, LIMIT_OUT },
	{ "a cap at MAIL",
	  BALANCER_REPLIED, BUSY_CAP, BUSY_STAGE_MAIL, true, false,
	  4, LIMIT_OUT },
	{ "a cap behind MAIL is about something else",
	  BALANCER_REPLIED, BUSY_CAP, BUSY_STAGE_RCPT, true, false,
	  10, LIMIT_GREETED },
	{ "busy at MAIL cools, once",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_MAIL, true, false,
	  7, LIMIT_GREETED },
	{ "busy behind the message cools as well",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_EOD, true, false,
	  7, LIMIT_GREETED },
	{ "busy on an idle connection",
	  BALANCER_REPLIED, BUSY_BUSY, BUSY_STAGE_IDLE, true, false,
	  10, LIMIT_GREETED },
	{ "a verdict on the client",
	  BALANCER_REPLIED, BUSY_POLICY, BUSY_STAGE_MAIL, true, false,
	  10, LIMIT_GREETED },
	{ "a refused client",
	  BALANCER_REPLIED, BUSY_POLICY, BUSY_STAGE_GREET, false, false,
	  10, LIMIT_PENDING },
	{ "a local fault",
	  BALANCER_REPLIED, BUSY_SICK, BUSY_STAGE_EHLO, true, false,
	  10, LIMIT_GREETED },
	{ "about this connection only",
	  BALANCER_REPLIED, BUSY_SESSION, BUSY_STAGE_RCPT, true, false,
	  10, LIMIT_GREETED },
	{ "no greeting",
	  BALANCER_SILENT, BUSY_BUSY, BUSY_STAGE_GREET, false, false,
	  4, LIMIT_OUT },
	{ "no answer to the connect",
	  BALANCER_TIMEOUT, BUSY_MAYBE, BUSY_STAGE_TCP, false, false,
	  4, LIMIT_OUT },
	{ "closed before the greeting: every second one",
	  BALANCER_CLOSED, BUSY_MAYBE, BUSY_STAGE_GREET, false, false,
	  9, LIMIT_OUT },
	{ "a refused connection",
	  BALANCER_REFUSED, BUSY_MAYBE, BUSY_STAGE_TCP, false, false,
	  10, LIMIT_OUT },
	{ "a connection that breaks",
	  BALANCER_LOST, BUSY_SICK, BUSY_STAGE_DATA, true, false,
	  10, LIMIT_GREETED },
};
/* clang-format on */

static void each_outcome_teaches_what_it_says(void **state)
{
	(void)state;
	struct balancer_slot has[4];

	for (size_t i = 0; i < sizeof(lessons) / sizeof(lessons[0]); i++) {
		const struct lesson *t = &lessons[i];
		struct backend *b = add(10);
		struct balancer_slot slots[3];

		print_message("  %s\n", t->about);
		fill(b, has, 4);
		for (unsigned k = 0; k < 3; k++) {
			if (t->greeted)
				slots[k] = greeted(b, START_MS);
			else
				assert_int_equal(
					reserve_of(b, &slots[k], START_MS),
					BALANCER_PICKED);
		}
		for (unsigned k = 0; k < 3; k++) {
			struct balancer_outcome o = {
				.failure = t->failure,
				.class = t->class,
				.stage = t->stage,
				.source = t->same_source ? 7 : 7 + k,
			};

			balancer_note(&farm, &slots[k], &o, START_MS, draw(),
				      &change);
			/* Of one client, the first vote counts. */
			bool counts = !t->greeted || !t->same_source || k == 0;

			assert_int_equal(slots[k].phase,
					 counts ? t->phase : LIMIT_GREETED);
			balancer_release(&farm, &slots[k]);
		}
		assert_int_equal(backend_limit(b), t->limit);
		drop(has, 4);
		assert_empty(b);
		take_out(b);
	}
}

static void with_sessions_of_ours_busy_is_no_reason_to_hold_off(void **state)
{
	(void)state;
	struct backend *b = add(10);
	struct balancer_slot has = greeted(b, START_MS);

	for (unsigned i = 0; i < 5; i++) {
		struct balancer_slot slot;

		if (reserve(&slot, START_MS) != BALANCER_PICKED)
			break;
		tell(&slot, BUSY_BUSY, BUSY_STAGE_GREET, i, START_MS);
		assert_int_equal(slot.phase, LIMIT_OUT);
		balancer_release(&farm, &slot);
		assert_int_equal(backend_state(b), HEALTH_UP);
	}
	assert_int_equal(backend_error(b, START_MS), 0);
	assert_int_equal(backend_limit(b), 1);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_limit_refused), 3);
	balancer_release(&farm, &has);
}

static void a_cooldown_is_taken_back_with_its_vote(void **state)
{
	(void)state;
	struct backend *b = add(10);
	struct balancer_slot slot = greeted(b, START_MS);
	struct balancer_outcome o = {
		.class = BUSY_BUSY,
		.stage = BUSY_STAGE_MAIL,
		.source = 3,
	};

	balancer_note(&farm, &slot, &o, START_MS, draw(), &change);
	assert_int_equal(backend_limit(b), 7);
	balancer_unnote(&farm, &slot, &o, START_MS + 5);
	assert_int_equal(backend_limit(b), 10);
	balancer_release(&farm, &slot);
}

static void late_greetings_are_counted_and_lower_the_limit(void **state)
{
	(void)state;
	struct backend *b = add(10);
	struct balancer_slot has[8];
	struct balancer_outcome o = {
		.class = BUSY_OK,
		.stage = BUSY_STAGE_GREET,
		.greet_ms = 3000,
	};
	struct balancer_slot late;

	fill(b, has, 8);
	assert_int_equal(reserve_of(b, &late, START_MS), BALANCER_PICKED);
	assert_int_equal(balancer_patience_ms(&farm, &late, 30000), 1000);
	balancer_note(&farm, &late, &o, START_MS, draw(), &change);
	assert_int_equal(late.phase, LIMIT_GREETED);
	assert_int_equal(backend_limit(b), 9);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_limit_slow), 1);
	balancer_release(&farm, &late);
	drop(has, 8);
	assert_int_equal(reserve_of(b, &late, START_MS), BALANCER_PICKED);
	assert_int_equal(balancer_patience_ms(&farm, &late, 30000), 30000);
	balancer_release(&farm, &late);
}

static void back_from_an_ejection_it_begins_at_a_quarter(void **state)
{
	(void)state;
	struct backend *b = add(40);
	struct balancer_slot slot = greeted(b, START_MS);

	add(40);
	balancer_release(&farm, &slot);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(reserve_of(b, &slot, START_MS),
				 BALANCER_PICKED);
		fail_by(&slot, BALANCER_RESET, START_MS);
		balancer_release(&farm, &slot);
	}
	assert_int_equal(backend_state(b), HEALTH_EJECTED);
	int64_t back = change.until_ms;

	assert_int_equal(backend_limit(b), 40);
	assert_int_equal(reserve_of(b, &slot, back), BALANCER_PICKED);
	assert_true(slot.trial);
	assert_int_equal(backend_limit(b), 40);
	tell(&slot, BUSY_OK, BUSY_STAGE_GREET, 1, back);
	assert_int_equal(backend_state(b), HEALTH_UP);
	assert_int_equal(backend_limit(b), 10);
	assert_int_equal((int)limit_of(b).wall, 40);
	balancer_release(&farm, &slot);
}

static void one_that_never_took_any_has_nothing_to_come_back_to(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();
	struct backend_settings s = {
		.name = "late",
		.address = "127.0.0.1:25",
		.max_sessions = 40,
		.weight = 1,
	};
	struct probe_report down = {
		.outcome = PROBE_REFUSED,
		.failed = PROBE_STEP_CONNECT,
		.class = BUSY_MAYBE,
		.greet_ms = -1,
	};
	struct balancer_slot slot;
	uint16_t index;
	int64_t now = START_MS;

	assert_int_equal(farm_add(&farm, &s, now, &index), FARM_OK);
	for (unsigned i = 0; i <= policy.rise; i++) {
		assert_true(balancer_probe_claim(&farm, now, &slot));
		balancer_probe_done(&farm, &slot, i == 0 ? &down : &passed, now,
				    0, &change);
		now += 10000;
	}
	assert_int_equal(change.to, HEALTH_UP);
	assert_int_equal(backend_limit(&farm.backends[index]), 40);
}

/* --- sessions above the limit --- */

static void above_the_limits_one_at_a_time_is_tried(void **state)
{
	(void)state;
	struct backend *a = add(LIMIT_MAX);
	struct backend *b = add(LIMIT_MAX);
	struct balancer_slot slots[8], first, second, third;

	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(reserve(&slots[i], START_MS), BALANCER_PICKED);
		assert_int_equal(slots[i].phase, LIMIT_PENDING);
		tell(&slots[i], BUSY_OK, BUSY_STAGE_GREET, 1, START_MS);
	}
	assert_true(balancer_available(&farm, START_MS, NULL, NULL));
	assert_int_equal(reserve(&first, START_MS), BALANCER_PICKED);
	assert_int_equal(reserve(&second, START_MS), BALANCER_PICKED);
	assert_int_equal(first.phase, LIMIT_PROBE);
	assert_int_equal(second.phase, LIMIT_PROBE);
	assert_int_not_equal(first.index, second.index);
	assert_int_equal(reserve(&third, START_MS), BALANCER_ALL_FULL);
	assert_false(balancer_available(&farm, START_MS, NULL, NULL));

	tell(&first, BUSY_OK, BUSY_STAGE_GREET, 1, START_MS);
	tell(&second, BUSY_BUSY, BUSY_STAGE_GREET, 1, START_MS);
	assert_int_equal(backend_limit(&farm.backends[first.index]), 5);
	assert_int_equal(backend_limit(&farm.backends[second.index]), 4);
	assert_int_equal(backend_counter(&farm.backends[second.index],
					 BACKEND_COUNT_limit_probes_refused),
			 1);
	assert_int_equal(backend_counter(a, BACKEND_COUNT_limit_probes) +
				 backend_counter(b, BACKEND_COUNT_limit_probes),
			 2);
	balancer_release(&farm, &second);
	balancer_release(&farm, &first);
	drop(slots, 8);
	assert_empty(a);
	assert_empty(b);
}

static void none_goes_above_a_limit_while_another_has_room(void **state)
{
	(void)state;
	struct backend *a = add(LIMIT_MAX);
	struct backend *b = add(LIMIT_MAX);
	struct balancer_slot has[4], other[3], slot;

	fill(a, has, 4);
	/* b has room, though it was tried. */
	assert_int_equal(reserve_of(a, &slot, START_MS), BALANCER_ALL_FULL);
	fill(b, other, 3);
	assert_int_equal(reserve_of(a, &slot, START_MS), BALANCER_ALL_FULL);
	struct balancer_slot last = greeted(b, START_MS);

	assert_int_equal(reserve_of(a, &slot, START_MS), BALANCER_PICKED);
	assert_int_equal(slot.phase, LIMIT_PROBE);
	balancer_release(&farm, &slot);
	balancer_release(&farm, &last);
	assert_int_equal(reserve_of(a, &slot, START_MS), BALANCER_ALL_FULL);

	/* Unless the other is out, or is no help for this message. */
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_int_equal(reserve_of(a, &slot, START_MS), BALANCER_PICKED);
	balancer_release(&farm, &slot);
	backend_set_admin(b, BACKEND_READY, NULL);
	atomic_store(&b->size, 1000);
	struct balancer_need large = { .size = 2000 };

	assert_int_equal(balancer_reserve(&farm, &large, START_MS, draw(),
					  &slot, &change),
			 BALANCER_PICKED);
	assert_int_equal(slot.index, a->index);
	balancer_release(&farm, &slot);
	drop(has, 4);
	drop(other, 3);
}

static void no_probe_passes_the_ceiling(void **state)
{
	(void)state;
	struct backend *b = add(4);
	struct balancer_slot has[4], slot;

	fill(b, has, 4);
	assert_int_equal(reserve(&slot, START_MS + 99999), BALANCER_ALL_FULL);
	drop(has, 4);
}

static void time_alone_brings_the_next_try(void **state)
{
	(void)state;
	struct backend *b = add(LIMIT_MAX);
	struct balancer_slot has[4], slot;

	fill(b, has, 4);
	assert_int_equal(reserve(&slot, START_MS), BALANCER_PICKED);
	assert_int_equal(reserve(&has[0], START_MS), BALANCER_ALL_FULL);
	assert_int_equal(balancer_retry_ms(&farm, START_MS), INT64_MAX);
	tell(&slot, BUSY_BUSY, BUSY_STAGE_GREET, 1, START_MS);
	balancer_release(&farm, &slot);
	int64_t next = limit_of(b).next_probe_ms;

	assert_in_range(next, START_MS + 250, START_MS + 750);
	assert_int_equal(balancer_retry_ms(&farm, START_MS), next);
	assert_int_equal(reserve(&slot, next - 1), BALANCER_ALL_FULL);
	assert_int_equal(reserve(&slot, next), BALANCER_PICKED);
	assert_int_equal(slot.phase, LIMIT_PROBE);
	balancer_release(&farm, &slot);
	drop(has, 4);
}

static void the_end_of_a_hold_off_is_worth_a_try_too(void **state)
{
	(void)state;
	struct backend *b = add(LIMIT_MAX);
	struct balancer_slot slot;

	assert_int_equal(reserve(&slot, START_MS), BALANCER_PICKED);
	fail_by(&slot, BALANCER_REFUSED, START_MS);
	assert_int_equal(slot.phase, LIMIT_OUT);
	balancer_release(&farm, &slot);
	assert_int_equal(backend_state(b), HEALTH_BUSY);
	assert_int_equal(reserve(&slot, START_MS), BALANCER_ALL_FULL);
	assert_int_equal(balancer_retry_ms(&farm, START_MS), START_MS + 1000);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_int_equal(balancer_retry_ms(&farm, START_MS), INT64_MAX);
}

static void one_refused_still_has_its_connection(void **state)
{
	(void)state;
	struct backend *b = add(4);
	struct balancer_slot has[3], slot, next;

	fill(b, has, 3);
	assert_int_equal(reserve(&slot, START_MS), BALANCER_PICKED);
	fail_by(&slot, BALANCER_REFUSED, START_MS);
	/* The limit has room, the ceiling has not, until it is closed. */
	assert_int_equal(reserve(&next, START_MS + 5000), BALANCER_ALL_FULL);
	balancer_release(&farm, &slot);
	assert_int_equal(reserve(&next, START_MS + 5000), BALANCER_PICKED);
	balancer_release(&farm, &next);
	drop(has, 3);
	assert_empty(b);
}

/* --- health checks --- */

static void a_health_check_counts_as_any_session(void **state)
{
	(void)state;
	struct backend *b = add(LIMIT_MAX);
	struct balancer_slot has[4], check;
	int64_t now = START_MS + 20000;

	fill(b, has, 4);
	assert_false(balancer_probe_claim(&farm, now, &check));
	balancer_release(&farm, &has[3]);
	now += 20000;
	assert_true(balancer_probe_claim(&farm, now, &check));
	assert_int_equal(limit_of(b).p, 1);
	balancer_probe_greeted(&farm, &check, 30, now);
	assert_int_equal(check.phase, LIMIT_GREETED);
	assert_int_equal(limit_of(b).n, 4);
	balancer_probe_done(&farm, &check, &passed, now, 0, &change);
	assert_int_equal(limit_of(b).n, 3);
	assert_int_equal(limit_of(b).p, 0);
	drop(has, 3);
}

struct check {
	const char *about;
	enum probe_outcome outcome;
	enum busy_class class;
	unsigned has, limit;
};

static const struct check checks[] = {
	{ "busy", PROBE_GREETING_BUSY, BUSY_BUSY, 4, 9 },
	{ "a cap", PROBE_GREETING_BUSY, BUSY_CAP, 4, 4 },
	{ "busy to EHLO", PROBE_EHLO_BUSY, BUSY_BUSY, 4, 9 },
	{ "short of disk", PROBE_MAIL_BUSY, BUSY_BUSY, 4, 7 },
	{ "perhaps busy, once", PROBE_GREETING_BUSY, BUSY_MAYBE, 4, 10 },
	{ "a local fault", PROBE_GREETING_BUSY, BUSY_SICK, 4, 10 },
	{ "silent beside sessions", PROBE_SILENT, BUSY_BUSY, 4, 9 },
	{ "silent without any", PROBE_SILENT, BUSY_BUSY, 0, 10 },
	{ "refused", PROBE_REFUSED, BUSY_MAYBE, 4, 10 },
};

static void a_health_check_that_is_refused_teaches_the_limit(void **state)
{
	(void)state;
	int64_t now = START_MS;

	for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		const struct check *c = &checks[i];
		struct probe_report report = {
			.outcome = c->outcome,
			.failed = PROBE_STEP_GREETING,
			.class = c->class,
			.code = 421,
			.greet_ms = -1,
		};
		struct balancer_slot has[4], slot;
		struct backend *b = add(10);

		print_message("  %s\n", c->about);
		fill(b, has, c->has);
		now = START_MS + 20000;
		assert_true(balancer_probe_claim(&farm, now, &slot));
		balancer_probe_done(&farm, &slot, &report, now, 0, &change);
		assert_int_equal(backend_limit(b), c->limit);
		drop(has, c->has);
		assert_empty(b);
		take_out(b);
	}
}

/* --- shadow mode --- */

static void who_observes_learns_and_does_nothing(void **state)
{
	(void)state;
	const struct limit_policy policy = limit_policy_default();
	struct backend *b = add(8);
	struct balancer_slot slots[8], over;

	farm_set_limits(&farm, &policy, true);
	fill(b, slots, 2);
	for (unsigned i = 0; i < 4; i++) {
		struct balancer_slot slot;

		assert_int_equal(reserve(&slot, START_MS), BALANCER_PICKED);
		tell(&slot, BUSY_BUSY, BUSY_STAGE_GREET, i, START_MS);
		balancer_release(&farm, &slot);
	}
	assert_int_equal(limit_slots(&(struct limit){ .l = limit_of(b).l,
						      .ceiling = 8 }),
			 2);
	assert_int_equal(backend_limit(b), 8);
	assert_int_equal(backend_state(b), HEALTH_UP);
	assert_int_equal(backend_error(b, START_MS), 0);
	assert_int_equal(balancer_patience_ms(&farm, &slots[0], 30000), 30000);

	for (unsigned i = 2; i < 8; i++) {
		assert_int_equal(reserve(&slots[i], START_MS), BALANCER_PICKED);
		tell(&slots[i], BUSY_OK, BUSY_STAGE_GREET, 1, START_MS);
	}
	assert_int_equal((int)limit_of(b).l, 8);
	assert_int_equal(reserve(&over, START_MS), BALANCER_ALL_FULL);
	assert_int_equal(balancer_retry_ms(&farm, START_MS), INT64_MAX);
	for (unsigned i = 0; i < 3; i++) {
		tell(&slots[i], BUSY_BUSY, BUSY_STAGE_MAIL, 10 + i, START_MS);
		assert_int_equal(backend_state(b), HEALTH_UP);
	}
	assert_int_equal(backend_limit(b), 8);

	/* Acting again: what was learned, holds at once. */
	farm_set_limits(&farm, &policy, false);
	assert_int_equal(backend_limit(b), 5);
	drop(slots, 8);
	assert_empty(b);
}

static void where_limits_start_is_for_those_that_know_nothing(void **state)
{
	(void)state;
	const struct limit_policy policy = {
		.retry_ms = 500,
		.retry_max_ms = 30000,
		.start = 9,
	};
	struct backend *fresh = add(LIMIT_MAX);
	struct backend *fixed = add(50);
	struct backend *learned = add(50);
	struct balancer_slot has = greeted(learned, START_MS);
	struct balancer_slot slot;

	assert_int_equal(reserve_of(learned, &slot, START_MS), BALANCER_PICKED);
	tell(&slot, BUSY_CAP, BUSY_STAGE_GREET, 1, START_MS);
	balancer_release(&farm, &slot);
	farm_set_limits(&farm, &policy, false);
	assert_int_equal(backend_limit(fresh), 9);
	assert_int_equal(backend_limit(fixed), 50);
	assert_int_equal(backend_limit(learned), 1);
	assert_int_equal(farm_limits(&farm).retry_max_ms, 30000);
	backend_set_max_sessions(fresh, 20);
	assert_int_equal(backend_limit(fresh), 20);
	balancer_release(&farm, &has);
}

/* --- kept connections --- */

static void idle_connections_are_a_share_of_the_slots(void **state)
{
	(void)state;
	struct backend *b = add(15);
	struct balancer_slot slots[5];

	fill(b, slots, 5);
	assert_false(balancer_keep(&farm, &slots[0], 0));
	assert_true(balancer_keep(&farm, &slots[0], 10));
	assert_true(balancer_keep(&farm, &slots[1], 10)); /* rounded up */
	assert_false(balancer_keep(&farm, &slots[2], 10));
	assert_false(slots[2].kept);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_sessions_idle, 0), 2);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_sessions, 0), 5);
	assert_int_equal(limit_of(b).n, 5);

	balancer_resume(&farm, &slots[0]);
	assert_int_equal(backend_counter(b, BACKEND_COUNT_reused), 1);
	assert_true(balancer_keep(&farm, &slots[2], 10));
	balancer_release(&farm, &slots[1]);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_sessions_idle, 0), 1);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_false(balancer_keep(&farm, &slots[3], 100));
	balancer_release(&farm, &slots[0]);
	drop(&slots[2], 3);
	assert_empty(b);
}

static void of_kept_connections_the_best_is_known_by_its_score(void **state)
{
	(void)state;
	struct backend *a = add(10);
	struct backend *b = add(20);
	struct balancer_slot sa = greeted(a, START_MS);
	struct balancer_slot sb = greeted(b, START_MS);
	struct balancer_need tried_a = { .tried_count = 1,
					 .tried = { a->index } };
	struct balancer_need strange = { .ext = SMTP_EXT_SMTPUTF8 };

	assert_true(balancer_keep(&farm, &sa, 100));
	assert_true(balancer_keep(&farm, &sb, 100));
	assert_true(balancer_score(&farm, &sa, &anything, START_MS) >
		    balancer_score(&farm, &sb, &anything, START_MS));
	assert_true(balancer_score(&farm, &sa, &anything, START_MS) <
		    UINT64_MAX);
	assert_true(balancer_score(&farm, &sa, &tried_a, START_MS) ==
		    UINT64_MAX);
	assert_true(balancer_score(&farm, &sa, &strange, START_MS) ==
		    UINT64_MAX);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_true(balancer_score(&farm, &sb, &anything, START_MS) ==
		    UINT64_MAX);

	/* In a cooldown no transaction begins. */
	balancer_resume(&farm, &sa);
	struct balancer_outcome o = {
		.class = BUSY_BUSY,
		.stage = BUSY_STAGE_MAIL,
		.strong = true,
	};

	balancer_note(&farm, &sa, &o, START_MS, draw(), &change);
	assert_int_equal(change.why, HEALTH_WHY_RESOURCES);
	assert_true(balancer_score(&farm, &sa, &anything, START_MS + 4999) ==
		    UINT64_MAX);
	assert_true(balancer_score(&farm, &sa, &anything, START_MS + 5000) <
		    UINT64_MAX);
	balancer_release(&farm, &sa);
	balancer_release(&farm, &sb);
}

/* --- threads --- */

static struct {
	_Atomic unsigned ordinary, all;
	_Atomic bool over;
} contest;

/* Nothing is refused, so the limit stays at four, and five with probes. */
static void *contend(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;

	for (int i = 0; i < ROUNDS; i++) {
		struct balancer_slot slots[3];
		unsigned n = 0;

		while (n < 3 &&
		       balancer_reserve(&farm, &anything, START_MS, random++,
					&slots[n], &mine) == BALANCER_PICKED) {
			bool ordinary = slots[n].phase == LIMIT_PENDING;

			if (atomic_fetch_add(&contest.ordinary, ordinary) +
					    ordinary >
				    4 ||
			    atomic_fetch_add(&contest.all, 1) + 1 > 5)
				atomic_store(&contest.over, true);
			n++;
		}
		while (n > 0) {
			bool ordinary = slots[--n].phase == LIMIT_PENDING;

			atomic_fetch_sub(&contest.ordinary, ordinary);
			atomic_fetch_sub(&contest.all, 1);
			balancer_release(&farm, &slots[n]);
		}
	}
	return NULL;
}

static void *quarrel(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;
	struct balancer_slot held[HELD_MAX];
	unsigned n = 0;

	for (int i = 0; i < ROUNDS; i++) {
		random = random * 6364136223846793005ULL + 1442695040888963407;
		int64_t now = START_MS + i / 8;
		struct balancer_outcome o = {
			.class = random >> 40 & 3 ? BUSY_OK : BUSY_BUSY,
			.stage = BUSY_STAGE_GREET,
			.source = random >> 50,
			.greet_ms = (int64_t)(random >> 45 & 255),
		};

		if (n < HELD_MAX && random >> 62 != 0 &&
		    balancer_reserve(&farm, &anything, now, random, &held[n],
				     &mine) == BALANCER_PICKED) {
			balancer_note(&farm, &held[n], &o, now, random, &mine);
			n++;
		} else if (n > 0) {
			struct balancer_slot *s = &held[n - 1];

			if (random >> 60 & 1 && balancer_keep(&farm, s, 50) &&
			    random >> 59 & 1)
				balancer_resume(&farm, s);
			balancer_release(&farm, &held[--n]);
		}
	}
	while (n > 0)
		balancer_release(&farm, &held[--n]);
	return NULL;
}

static void run_threads(void *(*run)(void *))
{
	pthread_t threads[THREADS];
	uint64_t seeds[THREADS];

	for (size_t i = 0; i < THREADS; i++) {
		seeds[i] = draw();
		assert_int_equal(
			pthread_create(&threads[i], NULL, run, &seeds[i]), 0);
	}
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void no_interleaving_takes_more_than_the_limit_and_its_probe(
	void **state)
{
	(void)state;
	struct backend *b = add(LIMIT_MAX);

	memset(&contest, 0, sizeof(contest));
	run_threads(contend);
	assert_false(atomic_load(&contest.over));
	assert_true(backend_counter(b, BACKEND_COUNT_tried) >= ROUNDS);
	assert_int_equal(backend_limit(b), 4);
	assert_empty(b);
}

static void threads_leave_the_counts_in_order(void **state)
{
	(void)state;

	for (unsigned i = 0; i < 3; i++)
		add(i == 0 ? 10 : LIMIT_MAX);
	run_threads(quarrel);
	for (uint16_t i = 0; i < 3; i++) {
		struct backend *b = &farm.backends[i];

		assert_empty(b);
		assert_true(backend_limit(b) >= 1);
		assert_true(atomic_load(&b->inflight_peak) <=
			    atomic_load(&b->max_sessions));
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_outcome_teaches_what_it_says),
		TEST(with_sessions_of_ours_busy_is_no_reason_to_hold_off),
		TEST(a_cooldown_is_taken_back_with_its_vote),
		TEST(late_greetings_are_counted_and_lower_the_limit),
		TEST(back_from_an_ejection_it_begins_at_a_quarter),
		TEST(one_that_never_took_any_has_nothing_to_come_back_to),
		TEST(above_the_limits_one_at_a_time_is_tried),
		TEST(none_goes_above_a_limit_while_another_has_room),
		TEST(no_probe_passes_the_ceiling),
		TEST(time_alone_brings_the_next_try),
		TEST(the_end_of_a_hold_off_is_worth_a_try_too),
		TEST(one_refused_still_has_its_connection),
		TEST(a_health_check_counts_as_any_session),
		TEST(a_health_check_that_is_refused_teaches_the_limit),
		TEST(who_observes_learns_and_does_nothing),
		TEST(where_limits_start_is_for_those_that_know_nothing),
		TEST(idle_connections_are_a_share_of_the_slots),
		TEST(of_kept_connections_the_best_is_known_by_its_score),
		TEST(no_interleaving_takes_more_than_the_limit_and_its_probe),
		TEST(threads_leave_the_counts_in_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
