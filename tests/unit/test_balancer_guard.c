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

/*
 * Who may have which backend: strangers and backends that relay for them,
 * AUTH, TLS; and what probes tell of all that.
 */

enum {
	START_MS = 1000000,
	HOUR_MS = BACKEND_GUARD_MS,
	DAY_S = 86400,
	THREADS = 4,
	ROUNDS = 5000,
};

static struct farm farm; /* large */
static struct backend_change change;
static const struct balancer_need anything;
static const struct balancer_need stranger = { .stranger = true };
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
	farm_set_guard(&farm, FARM_GUARD_ENFORCE);
	return 0;
}

static int setup_unprobed(void **state)
{
	(void)state;
	struct health_policy policy = health_policy_default();

	policy.probe = false;
	seed = 42;
	farm_init(&farm, &policy);
	farm_set_guard(&farm, FARM_GUARD_ENFORCE);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	farm_fini(&farm);
	return 0;
}

static struct backend *add_as(enum backend_identity identity,
			      enum backend_tls tls)
{
	char name[16];
	uint16_t index;
	struct backend_settings s = {
		.name = name,
		.address = "127.0.0.1:25",
		.max_sessions = 10,
		.weight = 1,
		.identity = identity,
		.tls = tls,
	};

	(void)snprintf(name, sizeof(name), "b%u", (unsigned)farm_size(&farm));
	assert_int_equal(farm_add(&farm, &s, START_MS, &index), FARM_OK);
	return &farm.backends[index];
}

static struct backend *add(void)
{
	return add_as(BACKEND_IDENTITY_NONE, BACKEND_TLS_NONE);
}

static struct probe_report passed(enum probe_relay relay)
{
	return (struct probe_report){
		.outcome = PROBE_OK,
		.failed = PROBE_STEP_DONE,
		.class = BUSY_OK,
		.ehlo_known = true,
		.ext = SMTP_EXT_8BITMIME,
		.greet_ms = 20,
		.relay = relay,
	};
}

/* The next probe of b; those of others are put off. */
static struct balancer_slot claim(struct backend *b, int64_t now)
{
	struct balancer_slot slot;
	struct backend_change ignored;
	const struct probe_report none = { .outcome = PROBE_ABANDONED };

	for (;;) {
		assert_true(balancer_probe_claim(&farm, now, &slot));
		if (slot.index == b->index)
			return slot;
		balancer_probe_done(&farm, &slot, &none, now, draw(), &ignored);
	}
}

static void done(const struct balancer_slot *slot,
		 const struct probe_report *report, int64_t now)
{
	balancer_probe_done(&farm, slot, report, now, draw(), &change);
}

/* As soon as the next is due, from now on: when that was. */
static int64_t due_of(const struct backend *b, int64_t now)
{
	int64_t due = atomic_load(&b->probe_at_ms);

	return due > now ? due : now;
}

/* One probe, by which it is found to be so. */
static int64_t probe_as(struct backend *b, enum probe_relay relay, int64_t now)
{
	int64_t at = due_of(b, now);
	struct balancer_slot slot = claim(b, at);
	struct probe_report report = passed(slot.guard ? relay
						       : PROBE_RELAY_UNASKED);

	done(&slot, &report, at);
	return at;
}

static enum balancer_verdict asked(const struct balancer_need *need,
				   int64_t now)
{
	struct balancer_slot slot;
	struct backend_change mine;
	enum balancer_verdict verdict = balancer_reserve(&farm, need, now,
							 draw(), &slot, &mine);

	if (verdict == BALANCER_PICKED)
		balancer_release(&farm, &slot);
	assert_int_equal(balancer_foresee(&farm, need, now), verdict);
	return verdict;
}

/* --- who is given what --- */

struct bar {
	const char *about;
	enum farm_guard guard;
	enum backend_identity identity;
	enum probe_relay relay;
	enum balancer_verdict strangers;
};

static const struct bar bars[] = {
	{ "nobody knows yet", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_INCONCLUSIVE, BALANCER_UNCHECKED },
	{ "nothing was proven", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_UNPROVEN, BALANCER_UNCHECKED },
	{ "it relays", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_OPEN, BALANCER_ALL_OPEN },
	{ "it does not", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_CLOSED, BALANCER_PICKED },
	{ "a trace field is no identity", FARM_GUARD_ENFORCE,
	  BACKEND_IDENTITY_HEADER, PROBE_RELAY_OPEN, BALANCER_ALL_OPEN },
	{ "only a warning", FARM_GUARD_WARN, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_OPEN, BALANCER_PICKED },
	{ "only a warning, nobody knows", FARM_GUARD_WARN,
	  BACKEND_IDENTITY_NONE, PROBE_RELAY_INCONCLUSIVE, BALANCER_PICKED },
	{ "no guard", FARM_GUARD_OFF, BACKEND_IDENTITY_NONE,
	  PROBE_RELAY_UNASKED, BALANCER_PICKED },
	{ "PROXY v1 tells", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_PROXY_V1,
	  PROBE_RELAY_UNASKED, BALANCER_PICKED },
	{ "PROXY v2 tells", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_PROXY_V2,
	  PROBE_RELAY_UNASKED, BALANCER_PICKED },
	{ "XCLIENT tells", FARM_GUARD_ENFORCE, BACKEND_IDENTITY_XCLIENT,
	  PROBE_RELAY_UNASKED, BALANCER_PICKED },
	{ "the source address tells", FARM_GUARD_ENFORCE,
	  BACKEND_IDENTITY_TRANSPARENT, PROBE_RELAY_UNASKED, BALANCER_PICKED },
};

static void strangers_get_what_does_not_relay_for_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(bars) / sizeof(bars[0]); i++) {
		const struct bar *c = &bars[i];

		print_message("  %s\n", c->about);
		farm_fini(&farm);
		setup(NULL);
		farm_set_guard(&farm, c->guard);
		struct backend *b = add_as(c->identity, BACKEND_TLS_NONE);
		struct balancer_slot slot = claim(b, START_MS);
		struct probe_report report = passed(c->relay);

		assert_int_equal(slot.guard, c->relay != PROBE_RELAY_UNASKED);
		assert_int_equal(asked(&stranger, START_MS),
				 slot.guard && c->guard == FARM_GUARD_ENFORCE
					 ? BALANCER_UNCHECKED
					 : BALANCER_PICKED);
		done(&slot, &report, START_MS);
		assert_int_equal(asked(&stranger, START_MS), c->strangers);
		/* Those that may relay always may. */
		assert_int_equal(asked(&anything, START_MS), BALANCER_PICKED);
	}
}

static void who_speaks_for_himself_is_not_told_of_by_xclient(void **state)
{
	(void)state;
	static const struct {
		enum farm_guard guard;
		enum backend_identity identity;
		bool stranger;
		enum balancer_verdict verdict;
	} cases[] = {
		{ FARM_GUARD_ENFORCE, BACKEND_IDENTITY_XCLIENT, true,
		  BALANCER_UNCHECKED },
		{ FARM_GUARD_ENFORCE, BACKEND_IDENTITY_XCLIENT, false,
		  BALANCER_PICKED },
		{ FARM_GUARD_WARN, BACKEND_IDENTITY_XCLIENT, true,
		  BALANCER_PICKED },
		{ FARM_GUARD_ENFORCE, BACKEND_IDENTITY_PROXY_V2, true,
		  BALANCER_PICKED },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct balancer_need need = {
			.stranger = cases[i].stranger,
			.untold = true,
		};

		farm_fini(&farm);
		setup(NULL);
		farm_set_guard(&farm, cases[i].guard);
		(void)add_as(cases[i].identity, BACKEND_TLS_NONE);
		assert_int_equal(asked(&need, START_MS), cases[i].verdict);
	}
}

static void of_several_backends_strangers_get_the_closed_ones(void **state)
{
	(void)state;
	struct backend *open = add();
	struct backend *closed = add();
	struct balancer_slot slots[10];
	struct backend_change mine;

	probe_as(open, PROBE_RELAY_OPEN, START_MS);
	probe_as(closed, PROBE_RELAY_CLOSED, START_MS + 30000);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(balancer_reserve(&farm, &stranger, START_MS,
						  draw(), &slots[i], &mine),
				 BALANCER_PICKED);
		assert_int_equal(slots[i].index, closed->index);
	}
	assert_int_equal(asked(&anything, START_MS), BALANCER_PICKED);
	/* Full, not open: a slot may come free. */
	assert_int_equal(asked(&stranger, START_MS), BALANCER_ALL_FULL);
	/* The others' want of room is not counted from a stranger's. */
	int64_t since;

	backend_set_admin(open, BACKEND_ADMIN_DRAIN, NULL);
	assert_false(balancer_available(&farm, START_MS + 9000, NULL, &since));
	assert_int_equal(since, START_MS + 9000);
	for (int i = 0; i < 10; i++)
		balancer_release(&farm, &slots[i]);
}

static void the_reason_for_none_is_what_may_change_first(void **state)
{
	(void)state;
	struct backend *a = add();
	struct backend *b = add();
	struct balancer_need utf8 = stranger;

	utf8.ext = SMTP_EXT_SMTPUTF8;
	probe_as(a, PROBE_RELAY_OPEN, START_MS);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_UNCHECKED);
	assert_int_equal(asked(&utf8, START_MS), BALANCER_NO_EXTENSION);
	probe_as(b, PROBE_RELAY_OPEN, START_MS + 30000);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_ALL_OPEN);
	backend_set_admin(a, BACKEND_ADMIN_DRAIN, NULL);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_ALL_OPEN);
	backend_set_admin(b, BACKEND_ADMIN_DRAIN, NULL);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_ALL_DOWN);
	backend_set_admin(b, BACKEND_READY, NULL);
	struct balancer_need tried = stranger;

	tried.tried[tried.tried_count++] = b->index;
	assert_int_equal(asked(&tried, START_MS), BALANCER_ALL_TRIED);
}

static void a_farm_that_bars_strangers_is_not_out(void **state)
{
	(void)state;
	struct backend *b = add();
	enum balancer_verdict why;
	int64_t since;

	probe_as(b, PROBE_RELAY_OPEN, START_MS);
	for (int i = 1; i <= 3; i++) {
		int64_t now = START_MS + i * 1000;

		assert_int_equal(asked(&stranger, now), BALANCER_ALL_OPEN);
		assert_true(balancer_available(&farm, now, &why, &since));
		assert_int_equal(why, BALANCER_PICKED);
		assert_int_equal(since, now);
	}
	/* The others' want of room is not counted from a stranger's. */
	struct backend *down = add();

	backend_set_admin(down, BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(asked(&stranger, START_MS + 4000), BALANCER_ALL_OPEN);
	backend_set_admin(b, BACKEND_ADMIN_MAINT, NULL);
	assert_false(balancer_available(&farm, START_MS + 9000, &why, &since));
	assert_int_equal(since, START_MS + 9000);
}

static void a_connection_that_stands_suits_as_a_new_one_would(void **state)
{
	(void)state;
	struct backend *b = add();
	struct balancer_slot slot;
	struct balancer_need plain = { .auth = SMTP_AUTH_PLAIN };
	int64_t now = START_MS;

	now = probe_as(b, PROBE_RELAY_CLOSED, now);
	assert_int_equal(
		balancer_reserve(&farm, &stranger, now, draw(), &slot, &change),
		BALANCER_PICKED);
	assert_true(balancer_suits(&farm, &slot, &stranger));
	assert_false(balancer_suits(&farm, &slot, &plain));
	assert_true(balancer_score(&farm, &slot, &stranger, now) != UINT64_MAX);
	now = probe_as(b, PROBE_RELAY_OPEN, now + HOUR_MS);
	assert_false(balancer_suits(&farm, &slot, &stranger));
	assert_true(balancer_suits(&farm, &slot, &anything));
	assert_true(balancer_score(&farm, &slot, &stranger, now) == UINT64_MAX);
	assert_true(balancer_score(&farm, &slot, &anything, now) != UINT64_MAX);
	farm_set_guard(&farm, FARM_GUARD_WARN);
	assert_true(balancer_suits(&farm, &slot, &stranger));
	balancer_release(&farm, &slot);
}

/* --- AUTH --- */

static void only_who_offers_the_mechanism_is_chosen(void **state)
{
	(void)state;
	static const struct {
		unsigned need;
		int chosen; /* -1: none */
	} cases[] = {
		{ SMTP_AUTH_CRAM_MD5, 0 },
		{ SMTP_AUTH_XOAUTH2, 1 },
		{ SMTP_AUTH_PLAIN | SMTP_AUTH_XOAUTH2, 1 },
		{ SMTP_AUTH_CRAM_MD5 | SMTP_AUTH_XOAUTH2, -1 },
		{ SMTP_AUTH_SCRAM_SHA_1, -1 },
	};
	static const unsigned offers[] = {
		SMTP_AUTH_PLAIN | SMTP_AUTH_CRAM_MD5,
		SMTP_AUTH_PLAIN | SMTP_AUTH_XOAUTH2,
	};
	struct balancer_need plain = { .auth = SMTP_AUTH_PLAIN };

	assert_int_equal(balancer_offer(&farm).auth, 0);
	for (int i = 0; i < 2; i++)
		add();
	/* Not asked yet: nothing is promised. */
	assert_int_equal(asked(&plain, START_MS), BALANCER_NO_EXTENSION);
	assert_int_equal(asked(&anything, START_MS), BALANCER_PICKED);
	for (int i = 0; i < 2; i++) {
		struct backend *b = &farm.backends[i];
		int64_t now = START_MS + i * (int64_t)30000;
		struct balancer_slot slot = claim(b, now);
		struct probe_report report = passed(PROBE_RELAY_CLOSED);

		report.auth = offers[i];
		done(&slot, &report, now);
		assert_int_equal(atomic_load(&b->auth), offers[i]);
	}
	assert_int_equal(balancer_offer(&farm).auth, SMTP_AUTH_PLAIN);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct balancer_need need = { .auth = cases[i].need };
		struct balancer_slot slot;
		enum balancer_verdict verdict = balancer_reserve(
			&farm, &need, START_MS, draw(), &slot, &change);

		if (cases[i].chosen < 0) {
			assert_int_equal(verdict, BALANCER_NO_EXTENSION);
			continue;
		}
		assert_int_equal(verdict, BALANCER_PICKED);
		assert_int_equal(slot.index, cases[i].chosen);
		balancer_release(&farm, &slot);
	}
	backend_set_admin(&farm.backends[0], BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(balancer_offer(&farm).auth, offers[1]);
}

/* --- when the guard asks --- */

static void an_answer_is_good_for_an_hour(void **state)
{
	(void)state;
	static const enum probe_relay answers[] = { PROBE_RELAY_CLOSED,
						    PROBE_RELAY_OPEN,
						    PROBE_RELAY_UNPROVEN };
	struct backend *b = add();
	int64_t now = START_MS;

	for (size_t i = 0; i < 3; i++) {
		int64_t answered = probe_as(b, answers[i], now);
		unsigned quiet = 0;

		for (;;) {
			now = due_of(b, now);
			struct balancer_slot slot = claim(b, now);
			struct probe_report report = passed(
				PROBE_RELAY_UNASKED);

			if (slot.guard) {
				/* Its answer is lost: it will be asked again. */
				assert_true(now >= answered + HOUR_MS);
				done(&slot, &report, now);
				break;
			}
			assert_true(now < answered + HOUR_MS);
			done(&slot, &report, now);
			quiet++;
		}
		assert_in_range(quiet, 300, 420); /* one in about 10 s */
		now = due_of(b, now);
	}
}

static void an_operator_has_it_asked_at_once_unless_it_is_closed(void **state)
{
	(void)state;
	static const struct {
		enum probe_relay answer;
		bool asked;
	} cases[] = {
		{ PROBE_RELAY_OPEN, true },
		{ PROBE_RELAY_UNPROVEN, true },
		{ PROBE_RELAY_CLOSED, false },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		farm_fini(&farm);
		setup(NULL);
		struct backend *b = add();
		int64_t now = probe_as(b, cases[i].answer, START_MS) + 1;
		struct balancer_slot slot;
		enum backend_relay before = backend_relay(b);

		backend_ask_relay(b);
		assert_int_equal(backend_relay(b), before);
		assert_int_equal(balancer_probe_claim(&farm, now, &slot),
				 cases[i].asked);
		if (!cases[i].asked)
			continue;
		assert_true(slot.guard);
		struct probe_report report = passed(PROBE_RELAY_CLOSED);

		done(&slot, &report, now);
		assert_int_equal(backend_relay(b), BACKEND_RELAY_CLOSED);
	}
}

static void without_an_answer_every_probe_asks(void **state)
{
	(void)state;
	static const enum probe_relay none[] = { PROBE_RELAY_INCONCLUSIVE,
						 PROBE_RELAY_UNASKED,
						 PROBE_RELAY_INCONCLUSIVE };
	struct backend *b = add();
	int64_t now = START_MS;

	for (size_t i = 0; i < 3; i++) {
		now = due_of(b, now);
		struct balancer_slot slot = claim(b, now);
		struct probe_report report = passed(none[i]);

		assert_true(slot.guard);
		done(&slot, &report, now);
		assert_false(change.news.relay_told);
		assert_int_equal(asked(&stranger, now), BALANCER_UNCHECKED);
	}
	/* What was known before goes on to hold. */
	now = probe_as(b, PROBE_RELAY_CLOSED, now) + HOUR_MS;
	now = probe_as(b, PROBE_RELAY_INCONCLUSIVE, now);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	now = due_of(b, now);
	struct balancer_slot slot = claim(b, now);

	assert_true(slot.guard);
	balancer_release(&farm, &slot);
}

static void an_abandoned_probe_has_asked_nothing(void **state)
{
	(void)state;
	struct backend *b = add();
	struct balancer_slot slot = claim(b, START_MS);
	struct probe_report report = passed(PROBE_RELAY_CLOSED);

	report.outcome = PROBE_ABANDONED;
	done(&slot, &report, START_MS);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_UNCHECKED);
}

static void another_identity_is_asked_anew_at_once(void **state)
{
	(void)state;
	struct backend *b = add();
	int64_t now = probe_as(b, PROBE_RELAY_CLOSED, START_MS) + 1000;
	struct balancer_slot slot;

	/* As seen by the last who told. */
	backend_set_identity(b, BACKEND_IDENTITY_NONE); /* no change */
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	assert_false(balancer_probe_claim(&farm, now, &slot));
	backend_set_identity(b, BACKEND_IDENTITY_PROXY_V2);
	assert_int_equal(backend_relay(b), BACKEND_RELAY_UNKNOWN);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	slot = claim(b, now);
	assert_false(slot.guard);
	/* Back, while a probe by the other identity is under way. */
	backend_set_identity(b, BACKEND_IDENTITY_HEADER);
	assert_int_equal(asked(&stranger, now), BALANCER_UNCHECKED);
	struct probe_report report = passed(PROBE_RELAY_CLOSED);

	done(&slot, &report, now);
	assert_int_equal(asked(&stranger, now), BALANCER_UNCHECKED);
	slot = claim(b, now);
	assert_true(slot.guard);
	done(&slot, &report, now);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	/* Other TLS may be another server. */
	backend_set_tls(b, BACKEND_TLS_REQUIRED, true);
	assert_int_equal(asked(&stranger, now), BALANCER_UNCHECKED);
	slot = claim(b, now);
	assert_true(slot.guard);
	done(&slot, &report, now);
	backend_set_tls(b, BACKEND_TLS_REQUIRED, true); /* no change */
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
}

static void a_guard_that_is_set_up_later_asks_at_once(void **state)
{
	(void)state;
	struct backend *b = add();
	struct balancer_slot slot;
	int64_t now = START_MS;

	farm_set_guard(&farm, FARM_GUARD_OFF);
	now = probe_as(b, PROBE_RELAY_CLOSED, now);
	assert_int_equal(backend_relay(b), BACKEND_RELAY_UNKNOWN);
	assert_false(balancer_probe_claim(&farm, now, &slot));
	farm_set_guard(&farm, FARM_GUARD_ENFORCE);
	assert_int_equal(farm_guard(&farm), FARM_GUARD_ENFORCE);
	assert_int_equal(asked(&stranger, now), BALANCER_UNCHECKED);
	now = probe_as(b, PROBE_RELAY_CLOSED, now);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	/* Between the two that ask, what is known stays known. */
	farm_set_guard(&farm, FARM_GUARD_WARN);
	farm_set_guard(&farm, FARM_GUARD_ENFORCE);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
}

static void a_place_that_is_used_again_is_asked_again(void **state)
{
	(void)state;
	struct backend *b = add();
	uint16_t index = b->index;

	probe_as(b, PROBE_RELAY_CLOSED, START_MS);
	backend_set_admin(b, BACKEND_ADMIN_MAINT, NULL);
	assert_int_equal(farm_remove(&farm, index), FARM_OK);
	assert_ptr_equal(add(), b);
	assert_int_equal(asked(&stranger, START_MS), BALANCER_UNCHECKED);
}

static void a_farm_without_probes_is_asked_by_its_guard_alone(void **state)
{
	(void)state;
	struct backend *b = add();
	struct backend *told = add_as(BACKEND_IDENTITY_PROXY_V1,
				      BACKEND_TLS_NONE);
	struct balancer_slot slot;
	struct probe_report report = passed(PROBE_RELAY_INCONCLUSIVE);
	int64_t now = START_MS;

	assert_int_equal(balancer_due_ms(&farm), START_MS);
	slot = claim(b, now);
	assert_true(slot.guard);
	assert_false(balancer_probe_claim(&farm, now, &slot)); /* not told */
	slot.index = b->index;
	slot.generation = atomic_load(&b->generation);
	report.outcome = PROBE_TIMEOUT;
	report.failed = PROBE_STEP_EHLO;
	done(&slot, &report, now);
	/* Health learns nothing of it. */
	assert_int_equal(backend_state(b), HEALTH_UNKNOWN);
	assert_int_equal(backend_state(told), HEALTH_UNKNOWN);
	assert_false(balancer_probe_claim(&farm, now, &slot));
	now = balancer_due_ms(&farm);
	assert_in_range(now, START_MS + 1, START_MS + 10000);
	slot = claim(b, now);
	report = passed(PROBE_RELAY_CLOSED);
	done(&slot, &report, now);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
	assert_int_equal(balancer_due_ms(&farm), now + HOUR_MS);
	assert_false(balancer_probe_claim(&farm, now + HOUR_MS - 1, &slot));
	assert_true(balancer_probe_claim(&farm, now + HOUR_MS, &slot));
	assert_true(slot.guard);
	done(&slot, &report, now + HOUR_MS);
	farm_set_guard(&farm, FARM_GUARD_OFF);
	assert_int_equal(balancer_due_ms(&farm), INT64_MAX);
}

/* --- news --- */

static void changes_and_what_stays_bad_are_told(void **state)
{
	(void)state;
	static const struct {
		const char *about;
		enum probe_relay answer;
		bool told;
		enum backend_relay relay;
	} cases[] = {
		{ "no answer", PROBE_RELAY_INCONCLUSIVE, false,
		  BACKEND_RELAY_UNKNOWN },
		{ "the first", PROBE_RELAY_CLOSED, true, BACKEND_RELAY_CLOSED },
		{ "the same", PROBE_RELAY_CLOSED, false, BACKEND_RELAY_CLOSED },
		{ "another", PROBE_RELAY_OPEN, true, BACKEND_RELAY_OPEN },
		{ "open still", PROBE_RELAY_OPEN, true, BACKEND_RELAY_OPEN },
		{ "no answer", PROBE_RELAY_INCONCLUSIVE, false,
		  BACKEND_RELAY_OPEN },
		{ "closed again", PROBE_RELAY_CLOSED, true,
		  BACKEND_RELAY_CLOSED },
		{ "no proof", PROBE_RELAY_UNPROVEN, true,
		  BACKEND_RELAY_UNKNOWN },
		{ "no proof still", PROBE_RELAY_UNPROVEN, true,
		  BACKEND_RELAY_UNKNOWN },
		{ "proof", PROBE_RELAY_CLOSED, true, BACKEND_RELAY_CLOSED },
	};
	struct backend *b = add();
	int64_t now = START_MS;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		print_message("  %s\n", cases[i].about);
		now = due_of(b, now);
		probe_as(b, cases[i].answer, now);
		assert_int_equal(change.news.relay_told, cases[i].told);
		if (cases[i].told)
			assert_int_equal(change.news.relay, cases[i].relay);
		assert_string_equal(change.name, b->name);
		assert_int_equal(change.index, b->index);
		assert_int_equal(backend_relay(b), cases[i].relay);
		assert_int_equal(
			backend_gauge(b, BACKEND_GAUGE_relay_open, now),
			cases[i].relay == BACKEND_RELAY_OPEN);
		now += HOUR_MS;
	}
	for (unsigned i = 0; i <= BACKEND_RELAY_OPEN; i++)
		assert_true(strlen(backend_relay_name((enum backend_relay)i)) >
			    0);
}

/* A probe over TLS, with a certificate that is good for so long; 0: none. */
static void probe_tls(struct backend *b, int64_t left_s, int64_t now)
{
	struct balancer_slot slot = claim(b, now);
	struct probe_report report = passed(PROBE_RELAY_CLOSED);

	report.tls = true;
	report.expires_s = left_s != 0 ? 1800000000 + left_s : 0;
	report.left_s = left_s;
	done(&slot, &report, now);
}

static void a_certificate_that_ends_soon_is_told_once_a_day(void **state)
{
	(void)state;
	enum { FIRST = 20 };
	struct backend *b = add_as(BACKEND_IDENTITY_NONE, BACKEND_TLS_REQUIRED);
	int64_t now = START_MS;
	int64_t last_told = 0;
	unsigned told = 0;

	/* To its end and three days beyond, a probe every hour or so. */
	for (int hour = 0; hour < (FIRST + 3) * 24; hour++) {
		int64_t left_s = FIRST * (int64_t)DAY_S - hour * (int64_t)3600;

		now = START_MS + hour * (int64_t)3600000;
		now = due_of(b, now);
		probe_tls(b, left_s == 0 ? -1 : left_s, now);
		if (!change.news.cert_told)
			continue;
		assert_true(left_s < BACKEND_CERT_DAYS * (int64_t)DAY_S);
		assert_int_equal(change.news.cert_days,
				 (left_s == 0 ? -1 : left_s) / DAY_S);
		if (told > 0)
			assert_true(now - last_told >= BACKEND_CERT_MS);
		last_told = now;
		told++;
	}
	assert_in_range(told, BACKEND_CERT_DAYS, BACKEND_CERT_DAYS + 3);
	/* Renewed, and then near its end again. */
	now = due_of(b, now + 1);
	probe_tls(b, 90 * (int64_t)DAY_S, now);
	assert_false(change.news.cert_told);
	now = due_of(b, now + 1);
	probe_tls(b, DAY_S, now);
	assert_true(change.news.cert_told);
}

static void gauges_show_tls_and_the_days_that_are_left(void **state)
{
	(void)state;
	static const struct {
		int64_t left_s;
		uint64_t days;
	} cases[] = {
		{ 90 * (int64_t)DAY_S, 90 },
		{ 90 * (int64_t)DAY_S - 1, 89 },
		{ DAY_S - 1, 0 },
		{ -5 * (int64_t)DAY_S, 0 },
		{ 0, BACKEND_GAUGE_NONE },
	};
	struct backend *b = add_as(BACKEND_IDENTITY_NONE,
				   BACKEND_TLS_OPPORTUNISTIC);
	int64_t now = START_MS;

	assert_true(backend_gauge(b, BACKEND_GAUGE_cert_days, now) ==
		    BACKEND_GAUGE_NONE);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_tls, now), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		now = due_of(b, now);
		probe_tls(b, cases[i].left_s, now);
		assert_true(backend_gauge(b, BACKEND_GAUGE_cert_days, now) ==
			    cases[i].days);
		assert_int_equal(backend_gauge(b, BACKEND_GAUGE_tls, now), 1);
	}
	/* Days pass by themselves. */
	now = due_of(b, now);
	probe_tls(b, 10 * (int64_t)DAY_S, now);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_cert_days,
				       now + 3 * (int64_t)BACKEND_CERT_MS),
			 7);
	/* A probe that gets nowhere has seen nothing else. */
	now = due_of(b, now);
	struct balancer_slot slot = claim(b, now);
	struct probe_report report = { .outcome = PROBE_REFUSED };

	done(&slot, &report, now);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_tls, now), 1);
	/* Nor has one that went in clear seen another certificate. */
	now = due_of(b, now);
	probe_as(b, PROBE_RELAY_CLOSED, now);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_tls, now), 0);
	assert_int_equal(backend_gauge(b, BACKEND_GAUGE_cert_days, now), 9);
	backend_set_tls(b, BACKEND_TLS_NONE, false);
	assert_true(backend_gauge(b, BACKEND_GAUGE_cert_days, now) ==
		    BACKEND_GAUGE_NONE);
}

/* --- TLS that is only tried --- */

static void tls_that_fails_is_let_be_only_where_it_is_opportunistic(
	void **state)
{
	(void)state;
	static const struct {
		enum backend_tls tls;
		bool wants, after;
	} cases[] = {
		{ BACKEND_TLS_NONE, false, false },
		{ BACKEND_TLS_OPPORTUNISTIC, true, false },
		{ BACKEND_TLS_REQUIRED, true, true },
		{ BACKEND_TLS_VERIFY, true, true },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct backend *b = add_as(BACKEND_IDENTITY_NONE, cases[i].tls);
		int64_t back = START_MS + BACKEND_CLEAR_MS;

		assert_int_equal(backend_wants_tls(b, START_MS),
				 cases[i].wants);
		backend_tls_failed(b, START_MS);
		assert_int_equal(backend_wants_tls(b, START_MS),
				 cases[i].after);
		assert_int_equal(backend_wants_tls(b, back - 1),
				 cases[i].after);
		assert_int_equal(backend_wants_tls(b, back), cases[i].wants);
	}
	/* Other settings begin anew. */
	struct backend *b = &farm.backends[1];

	assert_false(backend_wants_tls(b, START_MS));
	backend_set_tls(b, BACKEND_TLS_OPPORTUNISTIC, true);
	assert_true(backend_wants_tls(b, START_MS));
	assert_true(backend_tls_implicit(b));
}

static void a_handshake_that_was_only_tried_says_nothing_of_health(void **state)
{
	(void)state;
	struct backend *b = add_as(BACKEND_IDENTITY_NONE,
				   BACKEND_TLS_OPPORTUNISTIC);
	const struct probe_report tried = {
		.outcome = PROBE_TLS_FAILED,
		.failed = PROBE_STEP_HANDSHAKE,
		.class = BUSY_SICK,
		.tls_failed = true,
	};
	struct backend_view view;
	int64_t now = START_MS;

	assert_int_equal(probe_verdict(&tried), HEALTH_PROBE_BUSY);
	for (int i = 0; i < 5; i++) {
		struct balancer_slot slot = claim(b, now);

		done(&slot, &tried, now);
		assert_false(change.changed);
		assert_int_equal(backend_state(b), HEALTH_UNKNOWN);
		assert_false(backend_wants_tls(b, now));
		/* The next one goes at once, in clear. */
		assert_int_equal(balancer_due_ms(&farm), now);
	}
	backend_look(b, &view);
	assert_int_equal(view.health.seen, 0);
	assert_int_equal(view.report.outcome, PROBE_TLS_FAILED);
	probe_as(b, PROBE_RELAY_CLOSED, now);
	assert_int_equal(backend_state(b), HEALTH_UP);
	assert_int_equal(asked(&stranger, now), BALANCER_PICKED);
}

static void what_tls_and_xclient_come_to_is_health(void **state)
{
	(void)state;
	static const struct {
		const char *about;
		enum probe_outcome outcome;
		enum probe_step_name failed;
		uint16_t code;
		enum busy_class class;
		enum health_state state;
	} cases[] = {
		{ "no STARTTLS", PROBE_TLS_REFUSED, PROBE_STEP_EHLO, 250,
		  BUSY_OK, HEALTH_DOWN },
		{ "the handshake", PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, 0,
		  BUSY_SICK, HEALTH_DOWN },
		{ "no XCLIENT", PROBE_XCLIENT_REFUSED, PROBE_STEP_EHLO, 250,
		  BUSY_OK, HEALTH_MISCONF },
		{ "not for us", PROBE_XCLIENT_REFUSED, PROBE_STEP_XCLIENT, 550,
		  BUSY_MISCONF, HEALTH_MISCONF },
		{ "busy", PROBE_XCLIENT_REFUSED, PROBE_STEP_XCLIENT, 421,
		  BUSY_BUSY, HEALTH_UP },
		{ "leaving", PROBE_TLS_REFUSED, PROBE_STEP_STARTTLS, 421,
		  BUSY_DRAIN, HEALTH_DRAIN },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct backend *b = add();
		struct probe_report report = {
			.outcome = cases[i].outcome,
			.failed = cases[i].failed,
			.code = cases[i].code,
			.class = cases[i].class,
		};

		print_message("  %s\n", cases[i].about);
		/* One that is busy has no slot for a second one. */
		for (int n = 0; n < (cases[i].code == 421 ? 1 : 4); n++) {
			int64_t now = due_of(b, START_MS + n * 20000);
			struct balancer_slot slot = claim(b, now);

			done(&slot, &report, now);
		}
		assert_int_equal(backend_state(b), cases[i].state);
	}
}

/* --- with threads --- */

static _Atomic bool wrong;

/* Flips what one may be told, and takes; nobody may get what is barred. */
static void *quarrel(void *arg)
{
	uint64_t random = *(const uint64_t *)arg;
	struct backend_change mine;
	struct balancer_slot slot;

	for (int i = 0; i < ROUNDS; i++) {
		int64_t now = START_MS + i * (int64_t)10000;

		random = random * 6364136223846793005ULL + 12345;
		if (balancer_reserve(&farm, &stranger, now, random >> 8, &slot,
				     &mine) == BALANCER_PICKED) {
			/* The second is open, and never anything else. */
			if (slot.index == 1)
				atomic_store(&wrong, true);
			balancer_release(&farm, &slot);
		}
		if (balancer_probe_claim(&farm, now, &slot)) {
			struct probe_report r = passed(
				!slot.guard       ? PROBE_RELAY_UNASKED
				: slot.index == 1 ? PROBE_RELAY_OPEN
						  : PROBE_RELAY_CLOSED);

			balancer_probe_done(&farm, &slot, &r, now, random,
					    &mine);
		}
		if (random >> 60 == 0)
			backend_set_identity(
				&farm.backends[0],
				random >> 59 & 1 ? BACKEND_IDENTITY_NONE
						 : BACKEND_IDENTITY_XCLIENT);
		if (random >> 60 == 1)
			backend_set_tls(&farm.backends[1],
					(enum backend_tls)(random >> 50 & 3),
					random >> 49 & 1);
	}
	return NULL;
}

static void no_interleaving_lets_a_stranger_through(void **state)
{
	(void)state;
	pthread_t threads[THREADS];
	uint64_t seeds[THREADS];

	add();
	add();
	atomic_store(&wrong, false);
	for (size_t i = 0; i < THREADS; i++) {
		seeds[i] = draw();
		assert_int_equal(
			pthread_create(&threads[i], NULL, quarrel, &seeds[i]),
			0);
	}
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_false(atomic_load(&wrong));
	for (int i = 0; i < 2; i++)
		assert_int_equal(atomic_load(&farm.backends[i].inflight), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(strangers_get_what_does_not_relay_for_them),
		TEST(who_speaks_for_himself_is_not_told_of_by_xclient),
		TEST(of_several_backends_strangers_get_the_closed_ones),
		TEST(the_reason_for_none_is_what_may_change_first),
		TEST(a_farm_that_bars_strangers_is_not_out),
		TEST(a_connection_that_stands_suits_as_a_new_one_would),
		TEST(only_who_offers_the_mechanism_is_chosen),
		TEST(an_answer_is_good_for_an_hour),
		TEST(an_operator_has_it_asked_at_once_unless_it_is_closed),
		TEST(without_an_answer_every_probe_asks),
		TEST(an_abandoned_probe_has_asked_nothing),
		TEST(another_identity_is_asked_anew_at_once),
		TEST(a_guard_that_is_set_up_later_asks_at_once),
		TEST(a_place_that_is_used_again_is_asked_again),
		cmocka_unit_test_setup_teardown(
			a_farm_without_probes_is_asked_by_its_guard_alone,
			setup_unprobed, teardown),
		TEST(changes_and_what_stays_bad_are_told),
		TEST(a_certificate_that_ends_soon_is_told_once_a_day),
		TEST(gauges_show_tls_and_the_days_that_are_left),
		TEST(tls_that_fails_is_let_be_only_where_it_is_opportunistic),
		TEST(a_handshake_that_was_only_tried_says_nothing_of_health),
		TEST(what_tls_and_xclient_come_to_is_health),
		TEST(no_interleaving_lets_a_stranger_through),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
