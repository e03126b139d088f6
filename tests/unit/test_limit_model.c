#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "balancer/limit.h"

/*
 * The learned limit against backends whose number of slots it does not know:
 * a model over virtual time drives the module as it is.
 *
 * One backend has `slots`; one or more nodes, each with a limit of its own,
 * send it sessions.  Arrivals are Poisson, so many that `demand` times the
 * slots would be in use if none were refused; sessions are lognormal, 5 s in
 * the mean, sigma 1.2; a round trip takes 20 ms, and a close is known to both
 * sides at once.  A node lets 200 wait; a refused attempt waits again.  Hidden clients are no node's: they take a free
 * slot or leave.  What is measured begins after the warm-up.
 */

#define NOBODY    UINT32_MAX
#define SECOND    INT64_C(1000000)
#define TRIP_US   (SECOND / 50)
#define MEAN_S    5.0
#define SIGMA     1.2
#define CUT_SHORT 0.85 /* of what is available: a limit that is too low */

enum {
	SEEDS = 3,
	NODES_MAX = 4,
	WAITING_MAX = 200,
	WARM_S = 300,
	SILENT_MS = 1000, /* a greeting that is not there by then, is refused */
	CYCLE_S = 200,    /* slots are taken away, and given back half-way */
	FALL_S = 15,
	RECOVER_S = 25,
	BUCKETS = 2000, /* of greeting times, in ms */
};

struct scenario {
	const char *name;
	uint32_t slots;
	unsigned nodes;
	double demand;
	double hidden;  /* mean number of hidden clients that want one */
	double refused; /* share of attempts refused at random */
	bool falls;     /* 60 % of the slots go, and come back */
	bool silent;    /* who is too many waits for the greeting */
	bool one_knows; /* the first node starts with all slots */
	unsigned seconds;
};

struct seen {
	double used;        /* of the slots not held by hidden clients */
	double per_attempt; /* refusals */
	double per_second;  /* refusals, of a node */
	double fairness;    /* Jain's index over the nodes' slots in use */
	double short_share; /* of the time in which the limit was too low */
	double short_s;     /* the longest of those times */
	double recover_s;   /* the longest until 90 % were used again */
	double served;      /* of the sessions that arrived */
	double alarmed;     /* share of the time */
	unsigned p50_ms, p99_ms;
};

/* --- the event heap --- */

enum kind {
	ARRIVE,
	RETRY,
	REACH,
	VERDICT,
	GIVE_UP,
	CLOSE,
	HIDDEN_ARRIVE,
	HIDDEN_END,
	TAKE_AWAY,
	GIVE_BACK,
	SAMPLE,
};

struct event {
	int64_t at;
	uint64_t order; /* of those at the same time, the first one made */
	enum kind kind;
	uint32_t who;
};

/* One session of a node, from its dispatch to its close. */
struct attempt {
	enum limit_phase phase;
	unsigned node;
	int64_t sent;
	bool taken; /* it has a slot */
	bool gave_up;
	uint32_t next; /* in the queue of the backend, or of the free */
};

struct node {
	struct limit limit;
	unsigned waiting;
	int64_t retry_at; /* an event is under way; 0: none */
	double used;      /* slots times microseconds */
	uint32_t held;
};

struct model {
	const struct scenario *scenario;
	uint64_t random;
	int64_t now, measured_from;

	struct event *heap;
	size_t count, room;
	uint64_t order;

	struct attempt *attempts;
	uint32_t free, attempt_count;

	struct node nodes[NODES_MAX];
	uint32_t used, hidden; /* slots */
	uint32_t wanted_away;  /* taken as they come free */
	uint32_t first, last;  /* waiting for a greeting */

	double used_sum, available_sum;
	uint64_t arrived, lost, attempts_made, refused, done;
	double short_time, falls_time, stretch, worst_stretch;
	int64_t given_back; /* not yet used again; 0: it is */
	double recover_s;
	bool away;
	unsigned samples, alarms;
	uint64_t greeted[BUCKETS + 1], greetings;
};

static const struct limit_policy policy = {
	.retry_ms = 500,
	.retry_max_ms = 10000,
	.start = 4,
};

/* splitmix64, of Steele, Lea and Flood */
static uint64_t draw(struct model *m)
{
	uint64_t z = m->random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* 0 < x < 1 */
static double uniform(struct model *m)
{
	return ((double)(draw(m) >> 11) + 0.5) / 9007199254740992.0;
}

static int64_t pause_us(struct model *m, double per_second)
{
	return (int64_t)(-log(uniform(m)) / per_second * (double)SECOND);
}

static int64_t session_us(struct model *m)
{
	double normal = sqrt(-2 * log(uniform(m))) *
			cos(2 * 3.14159265358979323846 * uniform(m));

	return (int64_t)(MEAN_S * exp(SIGMA * normal - SIGMA * SIGMA / 2) *
			 (double)SECOND);
}

static bool is_before(const struct event *a, const struct event *b)
{
	return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void push(struct model *m, int64_t in, enum kind kind, uint32_t who)
{
	struct event e = { m->now + in, m->order++, kind, who };
	size_t i;

	if (m->count == m->room) {
		m->room = m->room * 2 + 64;
		m->heap = realloc(m->heap, m->room * sizeof(*m->heap));
		assert_non_null(m->heap);
	}
	for (i = m->count++; i > 0 && is_before(&e, &m->heap[(i - 1) / 2]);
	     i = (i - 1) / 2)
		m->heap[i] = m->heap[(i - 1) / 2];
	m->heap[i] = e;
}

static struct event pop(struct model *m)
{
	struct event top = m->heap[0];
	struct event e = m->heap[--m->count];
	size_t i = 0;

	for (;;) {
		size_t child = 2 * i + 1;

		if (child >= m->count)
			break;
		if (child + 1 < m->count &&
		    is_before(&m->heap[child + 1], &m->heap[child]))
			child++;
		if (!is_before(&m->heap[child], &e))
			break;
		m->heap[i] = m->heap[child];
		i = child;
	}
	m->heap[i] = e;
	return top;
}

/* --- attempts: kept until their last event --- */

static uint32_t new_attempt(struct model *m, unsigned node)
{
	uint32_t who = m->free;

	if (who == NOBODY) {
		uint32_t was = m->attempt_count;

		m->attempt_count = was * 2 + 64;
		m->attempts = realloc(m->attempts,
				      m->attempt_count * sizeof(*m->attempts));
		assert_non_null(m->attempts);
		for (uint32_t i = was; i < m->attempt_count; i++)
			m->attempts[i] = (struct attempt){
				.next = i + 1 < m->attempt_count ? i + 1
								 : NOBODY,
			};
		who = was;
	}
	struct attempt *a = &m->attempts[who];

	m->free = a->next;
	*a = (struct attempt){ .node = node, .sent = m->now, .next = NOBODY };
	return who;
}

static void forget(struct model *m, uint32_t who)
{
	m->attempts[who].next = m->free;
	m->free = who;
}

/* --- a node --- */

static void dispatch(struct model *m, unsigned which)
{
	struct node *node = &m->nodes[which];
	int64_t now_ms = m->now / 1000;

	while (node->waiting > 0) {
		bool ordinary = limit_admits(&node->limit);

		if (!ordinary && !limit_admits_probe(&node->limit, now_ms))
			break;

		uint32_t who = new_attempt(m, which);

		m->attempts[who].phase = limit_dispatched(&node->limit,
							  !ordinary);
		node->waiting--;
		m->attempts_made += m->now >= m->measured_from;
		push(m, TRIP_US / 2, REACH, who);
		if (m->scenario->silent)
			push(m, SILENT_MS * 1000, GIVE_UP, who);
	}
	/* Nothing but time is wanted: come back then. */
	int64_t retry = node->limit.next_probe_ms * 1000;

	if (node->waiting > 0 && node->limit.pp < node->limit.burst &&
	    retry > m->now && node->retry_at != retry) {
		node->retry_at = retry;
		push(m, retry - m->now, RETRY, which);
	}
}

static void arrive(struct model *m, unsigned which)
{
	const struct scenario *s = m->scenario;
	struct node *node = &m->nodes[which];
	bool counts = m->now >= m->measured_from;

	push(m, pause_us(m, s->demand * s->slots / MEAN_S / (double)s->nodes),
	     ARRIVE, which);
	m->arrived += counts;
	if (node->waiting < WAITING_MAX)
		node->waiting++;
	else
		m->lost += counts;
	dispatch(m, which);
}

static void was_refused(struct model *m, struct attempt *a)
{
	struct node *node = &m->nodes[a->node];

	m->refused += m->now >= m->measured_from;
	if (m->scenario->silent)
		a->phase = limit_silent(&node->limit, &policy, a->phase,
					m->now / 1000, draw(m));
	else
		a->phase = limit_busy(&node->limit, &policy, a->phase, false,
				      m->now / 1000, draw(m));
	node->waiting++;
}

static void verdict(struct model *m, uint32_t who)
{
	struct attempt *a = &m->attempts[who];
	unsigned which = a->node;
	struct node *node = &m->nodes[which];

	if (!a->taken) {
		was_refused(m, a);
		forget(m, who);
		dispatch(m, which);
		return;
	}
	int64_t ms = (m->now - a->sent) / 1000;

	a->phase = limit_greeted(&node->limit, &policy, a->phase, ms,
				 m->now / 1000, draw(m));
	if (m->now >= m->measured_from) {
		m->greeted[ms < BUCKETS ? ms : BUCKETS]++;
		m->greetings++;
	}
	push(m, session_us(m), CLOSE, who);
	dispatch(m, which);
}

/* --- the backend --- */

static uint32_t free_slots(const struct model *m)
{
	return m->scenario->slots - m->used - m->hidden;
}

static void take(struct model *m, uint32_t who)
{
	struct attempt *a = &m->attempts[who];

	assert(free_slots(m) > 0);
	m->used++;
	m->nodes[a->node].held++;
	a->taken = true;
	push(m, TRIP_US / 2, VERDICT, who);
}

/* Somebody left: the next one is greeted, if others do not come first. */
static void serve(struct model *m)
{
	while (m->hidden < m->wanted_away && free_slots(m) > 0)
		m->hidden++;
	while (m->first != NOBODY && free_slots(m) > 0) {
		uint32_t who = m->first;
		struct attempt *a = &m->attempts[who];

		m->first = a->next;
		if (m->first == NOBODY)
			m->last = NOBODY;
		a->next = NOBODY;
		if (a->gave_up)
			forget(m, who);
		else
			take(m, who);
	}
}

static void reach(struct model *m, uint32_t who)
{
	bool refused = m->scenario->refused > 0 &&
		       uniform(m) < m->scenario->refused;

	if (!refused && free_slots(m) > 0 && m->first == NOBODY) {
		take(m, who);
		return;
	}
	if (!m->scenario->silent) {
		push(m, TRIP_US / 2, VERDICT, who);
		return;
	}
	if (m->first == NOBODY)
		m->first = who;
	else
		m->attempts[m->last].next = who;
	m->last = who;
}

/* Its patience is over, unless a greeting is there or on its way. */
static void give_up(struct model *m, uint32_t who, int64_t sent)
{
	struct attempt *a = &m->attempts[who];
	unsigned which = a->node;

	if (a->sent != sent || a->taken || a->gave_up ||
	    (a->phase != LIMIT_PENDING && a->phase != LIMIT_PROBE))
		return;
	a->gave_up = true;
	was_refused(m, a);
	dispatch(m, which);
}

static void close_it(struct model *m, uint32_t who)
{
	struct attempt *a = &m->attempts[who];
	unsigned which = a->node;

	assert(m->used > 0);
	m->used--;
	m->nodes[which].held--;
	serve(m);
	m->done += m->now >= m->measured_from;
	limit_gone(&m->nodes[which].limit, a->phase);
	forget(m, who);
	dispatch(m, which);
}

/* --- others --- */

static void hidden_arrive(struct model *m)
{
	push(m, pause_us(m, m->scenario->hidden / MEAN_S), HIDDEN_ARRIVE, 0);
	if (free_slots(m) == 0)
		return;
	m->hidden++;
	push(m, session_us(m), HIDDEN_END, 0);
}

/* One more slot is to go; the last one, and they all come back later. */
static void take_away(struct model *m)
{
	uint32_t all = m->scenario->slots * 6 / 10;

	m->away = true;
	m->wanted_away++;
	serve(m);
	if (m->wanted_away < all)
		push(m, FALL_S * SECOND / all, TAKE_AWAY, 0);
	else
		push(m, (CYCLE_S / 2 - FALL_S) * SECOND, GIVE_BACK, 0);
}

static void give_back(struct model *m)
{
	m->away = false;
	m->hidden = m->wanted_away = 0;
	m->given_back = m->now;
	m->stretch = 0;
	push(m, CYCLE_S / 2 * SECOND, TAKE_AWAY, 0);
	serve(m);
}

/* --- what is seen --- */

static void watch_limit(struct model *m, double us)
{
	double available = m->scenario->slots - m->hidden;

	m->falls_time += us;
	if (m->nodes[0].limit.l >= CUT_SHORT * available) {
		m->stretch = 0;
		return;
	}
	m->short_time += us;
	m->stretch += us;
	if (m->stretch > m->worst_stretch)
		m->worst_stretch = m->stretch;
}

/* Once in a second. */
static void sample(struct model *m)
{
	push(m, SECOND, SAMPLE, 0);
	if (m->now < m->measured_from)
		return;
	m->samples += m->scenario->nodes;
	for (unsigned i = 0; i < m->scenario->nodes; i++)
		m->alarms += limit_is_alarmed(&m->nodes[i].limit,
					      m->now / 1000);
}

/* From now to at, all stays as it is. */
static void pass(struct model *m, int64_t at)
{
	double us = (double)(at - m->now);
	uint32_t available = m->scenario->slots - m->hidden;

	if (m->given_back != 0 && m->used * 10 >= available * 9) {
		double s = (double)(m->now - m->given_back) / SECOND;

		m->recover_s = fmax(m->recover_s, s);
		m->given_back = 0;
	}
	if (m->now >= m->measured_from) {
		m->used_sum += us * m->used;
		m->available_sum += us * available;
		for (unsigned i = 0; i < m->scenario->nodes; i++)
			m->nodes[i].used += us * m->nodes[i].held;
		if (m->away)
			watch_limit(m, us);
	}
	m->now = at;
}

static unsigned percentile_ms(const struct model *m, double share)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i <= BUCKETS; i++) {
		sum += m->greeted[i];
		if ((double)sum >= share * (double)m->greetings)
			return i;
	}
	return BUCKETS;
}

static double fairness(const struct model *m)
{
	double sum = 0, squares = 0;

	for (unsigned i = 0; i < m->scenario->nodes; i++) {
		sum += m->nodes[i].used;
		squares += m->nodes[i].used * m->nodes[i].used;
	}
	return sum * sum / (m->scenario->nodes * squares);
}

/* The counts of each limit against the attempts themselves. */
static void check_counts(const struct model *m)
{
	uint32_t n[NODES_MAX] = { 0 }, p[NODES_MAX] = { 0 };
	bool *is_free = calloc(m->attempt_count, sizeof(*is_free));

	assert_non_null(is_free);
	for (uint32_t i = m->free; i != NOBODY; i = m->attempts[i].next)
		is_free[i] = true;
	for (uint32_t i = 0; i < m->attempt_count; i++) {
		const struct attempt *a = &m->attempts[i];

		if (is_free[i])
			continue;
		n[a->node] += a->phase == LIMIT_GREETED;
		p[a->node] += a->phase == LIMIT_PENDING ||
			      a->phase == LIMIT_PROBE;
	}
	free(is_free);
	for (unsigned i = 0; i < m->scenario->nodes; i++) {
		assert_int_equal(m->nodes[i].limit.n, n[i]);
		assert_int_equal(m->nodes[i].limit.p, p[i]);
	}
}

static void begin(struct model *m, const struct scenario *s, uint64_t seed)
{
	*m = (struct model){
		.scenario = s,
		.random = seed,
		.measured_from = WARM_S * SECOND,
		.free = NOBODY,
		.first = NOBODY,
		.last = NOBODY,
	};
	for (unsigned i = 0; i < s->nodes; i++) {
		struct limit *l = &m->nodes[i].limit;

		limit_begin(l, &policy, LIMIT_MAX, 0);
		if (s->one_knows && i == 0)
			l->l = s->slots;
		/* As health checks of a quiet farm would. */
		for (unsigned k = 0; k < LIMIT_BASE_MIN; k++)
			limit_seed(l, TRIP_US / 1000, 0);
		push(m, (int64_t)(uniform(m) * SECOND), ARRIVE, i);
	}
	push(m, 0, SAMPLE, 0);
	if (s->hidden > 0)
		push(m, 0, HIDDEN_ARRIVE, 0);
	if (s->falls)
		push(m, WARM_S * SECOND, TAKE_AWAY, 0);
}

static void happen(struct model *m, const struct event *e)
{
	switch (e->kind) {
	case ARRIVE:
		arrive(m, e->who);
		return;
	case RETRY:
		if (m->nodes[e->who].retry_at == e->at)
			m->nodes[e->who].retry_at = 0;
		dispatch(m, e->who);
		return;
	case REACH:
		reach(m, e->who);
		return;
	case VERDICT:
		verdict(m, e->who);
		return;
	case GIVE_UP:
		give_up(m, e->who, e->at - SILENT_MS * 1000);
		return;
	case CLOSE:
		close_it(m, e->who);
		return;
	case HIDDEN_ARRIVE:
		hidden_arrive(m);
		return;
	case HIDDEN_END:
		m->hidden--;
		serve(m);
		return;
	case TAKE_AWAY:
		take_away(m);
		return;
	case GIVE_BACK:
		give_back(m);
		return;
	case SAMPLE:
		sample(m);
		return;
	}
}

static struct model model; /* large */

static struct seen run_once(const struct scenario *s, uint64_t seed)
{
	struct model *m = &model;
	int64_t end = s->seconds * SECOND;

	begin(m, s, seed);
	while (m->count > 0 && m->heap[0].at < end) {
		struct event e = pop(m);

		pass(m, e.at);
		happen(m, &e);
	}
	pass(m, end);
	check_counts(m);
	/* What did not come back by the end of the run, counts as well. */
	if (m->given_back != 0)
		m->recover_s = fmax(m->recover_s,
				    (double)(end - m->given_back) / SECOND);

	double seconds = (double)(end - m->measured_from) / SECOND;
	struct seen seen = {
		.used = m->used_sum / m->available_sum,
		.per_attempt = (double)m->refused / (double)m->attempts_made,
		.per_second = (double)m->refused / seconds / s->nodes,
		.fairness = fairness(m),
		.short_share = m->falls_time > 0 ? m->short_time / m->falls_time
						 : 0,
		.short_s = m->worst_stretch / SECOND,
		.recover_s = m->recover_s,
		.alarmed = (double)m->alarms / m->samples,
		.served = (double)m->done / (double)m->arrived,
		.p50_ms = percentile_ms(m, 0.5),
		.p99_ms = percentile_ms(m, 0.99),
	};

	free(m->heap);
	free(m->attempts);
	return seen;
}

static void at_least(double seen, double bar, const char *what)
{
	if (!(seen >= bar))
		fail_msg("%s: %.4f, and at least %.4f is wanted", what, seen,
			 bar);
}

static void at_most(double seen, double bar, const char *what)
{
	if (!(seen <= bar))
		fail_msg("%s: %.4f, and at most %.4f is wanted", what, seen,
			 bar);
}

/*
 * The mean of all seeds; of times, the worst.  None but random refusals is a
 * reason for an alarm.
 */
static struct seen run(const struct scenario *s)
{
	struct seen all = { 0 };

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct seen one = run_once(s, seed * 1000003);

		all.used += one.used / SEEDS;
		all.per_attempt += one.per_attempt / SEEDS;
		all.per_second += one.per_second / SEEDS;
		all.fairness += one.fairness / SEEDS;
		all.short_share = fmax(all.short_share, one.short_share);
		all.short_s = fmax(all.short_s, one.short_s);
		all.recover_s = fmax(all.recover_s, one.recover_s);
		all.served += one.served / SEEDS;
		all.alarmed += one.alarmed / SEEDS;
		all.p50_ms = one.p50_ms > all.p50_ms ? one.p50_ms : all.p50_ms;
		all.p99_ms = one.p99_ms > all.p99_ms ? one.p99_ms : all.p99_ms;
	}
	print_message("  %-26s used %.4f, refused %.4f of attempts, %.3f/s, "
		      "alarmed %.3f\n",
		      s->name, all.used, all.per_attempt, all.per_second,
		      all.alarmed);
	if (s->refused < 0.1)
		at_most(all.alarmed, 0.01, "time alarmed");
	return all;
}

/* --- the properties --- */

static void under_steady_overload_all_slots_are_used(void **state)
{
	static const struct scenario scenarios[] = {
		{ .name = "5 slots",
		  .slots = 5,
		  .nodes = 1,
		  .demand = 1.5,
		  .seconds = 2000 },
		{ .name = "20 slots",
		  .slots = 20,
		  .nodes = 1,
		  .demand = 1.5,
		  .seconds = 2000 },
		{ .name = "50 slots",
		  .slots = 50,
		  .nodes = 1,
		  .demand = 1.5,
		  .seconds = 2000 },
	};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct seen seen = run(&scenarios[i]);

		at_least(seen.used, 0.98, "used");
		at_most(seen.per_second, 0.15, "refused a second");
	}
}

static void many_slots_are_found_and_used(void **state)
{
	static const struct scenario scenarios[] = {
		{ .name = "500 slots",
		  .slots = 500,
		  .nodes = 1,
		  .demand = 1.5,
		  .seconds = 2000 },
		{ .name = "5000 slots",
		  .slots = 5000,
		  .nodes = 1,
		  .demand = 1.5,
		  .seconds = 400 },
	};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct seen seen = run(&scenarios[i]);

		at_least(seen.used, 0.98, "used");
		at_most(seen.per_second, 0.5, "refused a second");
	}
}

static void hidden_clients_are_made_room_for(void **state)
{
	static const struct scenario one = {
		.name = "25 hidden",
		.slots = 50,
		.nodes = 1,
		.demand = 1.0,
		.hidden = 25,
		.seconds = 2000,
	};
	static const struct scenario four = {
		.name = "20 hidden, 4 nodes",
		.slots = 50,
		.nodes = 4,
		.demand = 1.0,
		.hidden = 20,
		.seconds = 2000,
	};

	(void)state;
	struct seen seen = run(&one);

	at_least(seen.used, 0.95, "used");
	at_most(seen.per_attempt, 0.08, "refused of attempts");
	seen = run(&four);
	at_least(seen.used, 0.97, "used");
	at_most(seen.per_attempt, 0.15, "refused of attempts");
}

static void slots_that_go_and_come_back_are_followed(void **state)
{
	static const struct scenario falls = {
		.name = "50 fall to 20, and back",
		.slots = 50,
		.nodes = 1,
		.demand = 1.2,
		.falls = true,
		.seconds = 2000,
	};

	(void)state;
	struct seen seen = run(&falls);

	print_message("  %-26s too low %.2f %% of the time, %.2f s at most; "
		      "used again in %.1f s\n",
		      "", 100 * seen.short_share, seen.short_s, seen.recover_s);
	at_most(seen.short_share, 0.02, "share of time too low");
	at_most(seen.short_s, 2, "seconds too low");
	at_most(seen.recover_s, RECOVER_S, "seconds to recover");
}

static void four_nodes_share_alike_wherever_they_begin(void **state)
{
	static const struct scenario unequal = {
		.name = "4 nodes, one knows",
		.slots = 50,
		.nodes = 4,
		.demand = 1.5,
		.one_knows = true,
		.seconds = 2000,
	};

	(void)state;
	struct seen seen = run(&unequal);

	print_message("  %-26s fairness %.3f\n", "", seen.fairness);
	at_least(seen.used, 0.98, "used");
	at_most(seen.per_attempt, 0.07, "refused of attempts");
	at_least(seen.fairness, 0.9, "fairness");
}

static void random_refusals_do_not_starve_it(void **state)
{
	static const struct scenario some = {
		.name = "5 % refused at random",
		.slots = 50,
		.nodes = 1,
		.demand = 1.5,
		.refused = 0.05,
		.seconds = 2000,
	};
	static const struct scenario many = {
		.name = "25 % refused at random",
		.slots = 50,
		.nodes = 1,
		.demand = 1.5,
		.refused = 0.25,
		.seconds = 2000,
	};

	(void)state;
	at_least(run(&some).used, 0.94, "used");
	struct seen seen = run(&many);

	at_least(seen.used, 0.7, "used");
	at_least(seen.alarmed, 0.9, "time alarmed");
}

static void with_room_to_spare_nothing_is_refused_or_lost(void **state)
{
	static const struct scenario quiet = {
		.name = "60 % wanted",
		.slots = 50,
		.nodes = 1,
		.demand = 0.6,
		.seconds = 2000,
	};

	(void)state;
	struct seen seen = run(&quiet);

	print_message("  %-26s %.4f served\n", "", seen.served);
	at_most(seen.per_attempt, 0.001, "refused of attempts");
	at_least(seen.served, 0.995, "served");
}

static void a_queue_without_words_is_kept_short(void **state)
{
	static const struct scenario one = {
		.name = "silent queue",
		.slots = 50,
		.nodes = 1,
		.demand = 1.5,
		.silent = true,
		.seconds = 2000,
	};
	static const struct scenario four = {
		.name = "silent queue, 4 nodes",
		.slots = 50,
		.nodes = 4,
		.demand = 1.5,
		.silent = true,
		.seconds = 2000,
	};
	const struct scenario *const scenarios[] = { &one, &four };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct seen seen = run(scenarios[i]);

		print_message("  %-26s greeted in %u ms, p99 %u ms\n", "",
			      seen.p50_ms, seen.p99_ms);
		at_most(seen.p50_ms, 1.5 * TRIP_US / 1000, "p50 of greetings");
		at_most(seen.per_attempt, 0.01, "refused of attempts");
	}
}

/* --- any order of events --- */

enum { LEDGER_MAX = 64 };

/* What the sockets are, counted by themselves. */
static void check_ledger(const struct limit *l,
			 const enum limit_phase phases[LEDGER_MAX])
{
	uint32_t n = 0, p = 0, pp = 0;

	for (unsigned i = 0; i < LEDGER_MAX; i++) {
		n += phases[i] == LIMIT_GREETED;
		p += phases[i] == LIMIT_PENDING || phases[i] == LIMIT_PROBE;
		pp += phases[i] == LIMIT_PROBE;
	}
	assert_int_equal(l->n, n);
	assert_int_equal(l->p, p);
	assert_int_equal(l->pp, pp);
	assert_true(l->l >= 1 && l->l <= l->ceiling);
	assert_true(limit_slots(l) >= 1 && limit_slots(l) <= l->ceiling);
	assert_true(l->burst >= 1);
	assert_true(l->back_ms >= policy.retry_ms &&
		    l->back_ms <= policy.retry_max_ms);
}

/* One event, on one of the sessions. */
static void befall(struct limit *l, enum limit_phase *phase, uint64_t r,
		   int64_t now)
{
	unsigned what = r >> 40 & 15;

	if (what < 5 && *phase == LIMIT_OUT) {
		if (limit_admits(l))
			*phase = limit_dispatched(l, false);
		else if (limit_admits_probe(l, now))
			*phase = limit_dispatched(l, true);
	} else if (what < 9) {
		*phase = limit_greeted(l, &policy, *phase,
				       (int64_t)(r >> 50 & 511), now, r);
	} else if (what == 9) {
		*phase = limit_busy(l, &policy, *phase, r >> 60 & 1, now, r);
	} else if (what == 10) {
		*phase = limit_maybe(l, &policy, *phase, now, r);
	} else {
		*phase = limit_gone(l, *phase);
	}
}

/* One that is not about a session. */
static void befall_all(struct limit *l, uint64_t r, int64_t now)
{
	switch (r >> 58 & 15) {
	case 0:
		limit_return(l, &policy, now);
		return;
	case 1:
		limit_set_ceiling(l, &policy, (uint32_t)(r >> 50 & 31) + 1,
				  now);
		return;
	case 2:
		limit_set_ceiling(l, &policy, LIMIT_MAX, now);
		return;
	case 3:
		limit_set_start(l, &policy);
		return;
	case 4:
	case 5:
		limit_uncool(l, now);
		return;
	default:
		limit_cool(l, now);
		return;
	}
}

static void any_order_of_events_leaves_the_counts_true(void **state)
{
	struct model *m = &model;
	unsigned rounds = 200;

	(void)state;
	m->random = 7;
	for (unsigned round = 0; round < rounds; round++) {
		enum limit_phase phases[LEDGER_MAX] = { LIMIT_OUT };
		uint32_t ceiling = round % 3 == 0 ? LIMIT_MAX : 1 + round % 40;
		struct limit l;
		int64_t now = 0;

		limit_begin(&l, &policy, ceiling, 0);
		for (unsigned i = 0; i < 5000; i++) {
			uint64_t r = draw(m);

			now += (int64_t)(r >> 32 & 63);
			if ((r >> 20 & 31) == 0)
				befall_all(&l, r, now);
			else
				befall(&l, &phases[r % LEDGER_MAX], r, now);
			check_ledger(&l, phases);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(under_steady_overload_all_slots_are_used),
		cmocka_unit_test(many_slots_are_found_and_used),
		cmocka_unit_test(hidden_clients_are_made_room_for),
		cmocka_unit_test(slots_that_go_and_come_back_are_followed),
		cmocka_unit_test(four_nodes_share_alike_wherever_they_begin),
		cmocka_unit_test(random_refusals_do_not_starve_it),
		cmocka_unit_test(with_room_to_spare_nothing_is_refused_or_lost),
		cmocka_unit_test(a_queue_without_words_is_kept_short),
		cmocka_unit_test(any_order_of_events_leaves_the_counts_true),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
