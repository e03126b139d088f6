#include "balancer/limit.h"

#include <assert.h>

struct words {
	const char *name;
	const char *help;
};

#define LIMIT_WORDS(NAME, name, help) { #name, help },
static const struct words event_words[] = { LIMIT_EVENTS(LIMIT_WORDS) };
#undef LIMIT_WORDS

#define CUT         0.9  /* of a refusal that is not believed yet */
#define COOL        0.7  /* of a shortage of resources */
#define SLOW_BACK   0.1  /* of the limit, a second, after late greetings */
#define FORGIVEN    1e-9 /* a limit that is almost a whole number, is one */
#define ALARM_SHARE 0.1

enum {
	MINUTE_MS = 60000,
	SLOW_FACTOR = 4, /* of the baseline, but */
	SLOW_MORE_MS = 100,
	PATIENCE_FACTOR = 4, /* of what is slow, but */
	PATIENCE_MIN_MS = 1000,
};

/* A greeting that took at most so long stands in the bucket; the last: more. */
static const uint16_t bucket_ms[LIMIT_BASE_BUCKETS - 1] = {
	1,  2,   3,   4,   6,   8,   12,  16,   24,   32,   48,   64,
	96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096,
};
enum { BUCKET_OVER_MS = 8192 };

struct limit_policy limit_policy_default(void)
{
	return (struct limit_policy){
		.retry_ms = 500,
		.retry_max_ms = 10000,
		.start = 4,
	};
}

static double greater(double a, double b)
{
	return a > b ? a : b;
}

static double lesser(double a, double b)
{
	return a < b ? a : b;
}

/* Of a number that is not negative and far below 2^32. */
static uint32_t whole(double x)
{
	assert(x >= 0);
	return (uint32_t)(x + FORGIVEN);
}

/* ms, times 0.5 to 1.5. */
static int64_t jittered(int64_t ms, uint64_t random)
{
	double part = (double)(random >> 11) / (double)((uint64_t)1 << 53);

	return (int64_t)((double)ms * (0.5 + part));
}

/* Every change of the limit goes through here. */
static void move(struct limit *l, double to, enum limit_event why,
		 int64_t now_ms)
{
	l->l = greater(1, lesser(to, l->ceiling));
	l->cool_from = 0;
	l->last = why;
	l->last_ms = now_ms;
}

static double start_of(const struct limit_policy *policy, uint32_t ceiling)
{
	return ceiling < LIMIT_MAX ? ceiling : policy->start;
}

static void check_policy(const struct limit_policy *policy)
{
	assert(policy->retry_ms >= 1);
	assert(policy->retry_max_ms >= policy->retry_ms);
	assert(policy->start >= 1 && policy->start <= LIMIT_MAX);
}

void limit_begin(struct limit *l, const struct limit_policy *policy,
		 uint32_t ceiling, int64_t now_ms)
{
	check_policy(policy);
	assert(ceiling >= 1 && ceiling <= LIMIT_MAX);
	*l = (struct limit){
		.l = start_of(policy, ceiling),
		.burst = 1,
		.ceiling = ceiling,
		.back_ms = policy->retry_ms,
		.last_cut_ms = INT64_MIN / 2,
		.last_cool_ms = INT64_MIN / 2,
		.last = LIMIT_START,
		.last_ms = now_ms,
	};
}

void limit_set_ceiling(struct limit *l, const struct limit_policy *policy,
		       uint32_t ceiling, int64_t now_ms)
{
	check_policy(policy);
	assert(ceiling >= 1 && ceiling <= LIMIT_MAX);

	bool free = l->last == LIMIT_START || l->l >= l->ceiling;

	if (ceiling == l->ceiling)
		return;
	l->ceiling = ceiling;
	l->wall = lesser(l->wall, ceiling);
	if (l->last == LIMIT_START)
		l->l = start_of(policy, ceiling);
	else if (l->l > ceiling || (free && ceiling < LIMIT_MAX))
		move(l, ceiling, LIMIT_CEILING, now_ms);
}

void limit_set_start(struct limit *l, const struct limit_policy *policy)
{
	check_policy(policy);
	if (l->last == LIMIT_START)
		l->l = start_of(policy, l->ceiling);
}

uint32_t limit_slots(const struct limit *l)
{
	uint32_t slots = whole(l->l);

	return slots < l->ceiling ? slots : l->ceiling;
}

bool limit_admits(const struct limit *l)
{
	return l->n + l->p - l->pp < limit_slots(l) &&
	       l->n + l->p < l->ceiling && !l->shut;
}

bool limit_admits_probe(const struct limit *l, int64_t now_ms)
{
	return now_ms >= l->next_probe_ms && l->pp < l->burst &&
	       l->n + l->p < l->ceiling;
}

enum limit_phase limit_dispatched(struct limit *l, bool probe)
{
	assert(l->p < LIMIT_MAX);
	l->p++;
	if (!probe)
		return LIMIT_PENDING;
	l->pp++;
	l->probes++;
	return LIMIT_PROBE;
}

static bool is_pending(enum limit_phase phase)
{
	return phase == LIMIT_PENDING || phase == LIMIT_PROBE;
}

/* It is out of the count, whatever it was. */
static void leave(struct limit *l, enum limit_phase phase)
{
	if (phase == LIMIT_GREETED) {
		assert(l->n > 0);
		l->n--;
	} else if (is_pending(phase)) {
		assert(l->p > 0);
		l->p--;
	}
	if (phase == LIMIT_PROBE) {
		assert(l->pp > 0);
		l->pp--;
	}
	assert(l->pp <= l->p);
}

/* --- how long greetings take --- */

static unsigned bucket_of(int64_t ms)
{
	unsigned i = 0;

	while (i < LIMIT_BASE_BUCKETS - 1 && ms > bucket_ms[i])
		i++;
	return i;
}

/* Empty the minutes that have passed since the last greeting. */
static void turn_minutes(struct limit *l, int64_t minute)
{
	int64_t passed = minute - l->base_minute;

	if (passed > LIMIT_BASE_SLOTS)
		passed = LIMIT_BASE_SLOTS;
	for (int64_t i = 0; i < passed; i++) {
		uint16_t *base = l->base[(minute - i) % LIMIT_BASE_SLOTS];

		for (unsigned j = 0; j < LIMIT_BASE_BUCKETS; j++)
			base[j] = 0;
	}
	if (passed > 0)
		l->base_minute = minute;
}

static uint32_t tenth_percentile(const struct limit *l)
{
	uint32_t sum[LIMIT_BASE_BUCKETS] = { 0 };
	uint32_t all = 0, seen = 0;

	for (unsigned i = 0; i < LIMIT_BASE_SLOTS; i++) {
		for (unsigned j = 0; j < LIMIT_BASE_BUCKETS; j++)
			sum[j] += l->base[i][j];
	}
	for (unsigned j = 0; j < LIMIT_BASE_BUCKETS; j++)
		all += sum[j];
	if (all < LIMIT_BASE_MIN)
		return 0;
	for (unsigned j = 0; j < LIMIT_BASE_BUCKETS - 1; j++) {
		seen += sum[j];
		if (seen * 10 >= all)
			return bucket_ms[j];
	}
	return BUCKET_OVER_MS;
}

void limit_seed(struct limit *l, int64_t ms, int64_t now_ms)
{
	assert(now_ms >= 0);
	turn_minutes(l, now_ms / MINUTE_MS);

	uint16_t *base = l->base[l->base_minute % LIMIT_BASE_SLOTS];
	unsigned bucket = bucket_of(ms);

	/* Shares are what counts: halving all of a minute keeps them. */
	if (base[bucket] == UINT16_MAX) {
		for (unsigned j = 0; j < LIMIT_BASE_BUCKETS; j++)
			base[j] /= 2;
	}
	base[bucket]++;
	l->baseline_ms = tenth_percentile(l);
}

static int64_t slow_ms(const struct limit *l)
{
	int64_t base = l->baseline_ms;

	return base * SLOW_FACTOR > base + SLOW_MORE_MS ? base * SLOW_FACTOR
							: base + SLOW_MORE_MS;
}

int64_t limit_patience_ms(const struct limit *l, int64_t most_ms)
{
	int64_t ms = slow_ms(l) * PATIENCE_FACTOR;

	if (l->baseline_ms == 0 || l->n == 0)
		return most_ms;
	if (ms < PATIENCE_MIN_MS)
		ms = PATIENCE_MIN_MS;
	return ms < most_ms ? ms : most_ms;
}

/* --- the alarm --- */

static void turn_under(struct limit *l, int64_t minute)
{
	if (minute <= l->under_minute)
		return;

	bool next = minute == l->under_minute + 1;

	l->under[1] = next ? l->under[0] : 0;
	l->under_refused[1] = next ? l->under_refused[0] : 0;
	l->under[0] = 0;
	l->under_refused[0] = 0;
	l->under_minute = minute;
}

static void note_attempt(struct limit *l, int64_t now_ms)
{
	turn_under(l, now_ms / MINUTE_MS);
	if (l->under[0] < UINT32_MAX)
		l->under[0]++;
}

/* Those under way may have been taken before it, though that is told later. */
static void doubt(struct limit *l, int64_t now_ms)
{
	l->doubts[l->doubt_next] = (struct limit_doubt){
		.size = l->n + l->p + 1,
		.at_ms = now_ms,
	};
	l->doubt_next = (l->doubt_next + 1) % LIMIT_DOUBTS;
}

/* It takes one more: more than it had when it refused? */
static void belie(struct limit *l, int64_t now_ms)
{
	turn_under(l, now_ms / MINUTE_MS);
	for (unsigned i = 0; i < LIMIT_DOUBTS; i++) {
		struct limit_doubt *d = &l->doubts[i];

		if (d->size == 0 || now_ms - d->at_ms > LIMIT_DOUBT_MS ||
		    l->n < d->size)
			continue;
		l->under_refused[0]++;
		d->size = 0;
	}
}

struct limit_below limit_below(const struct limit *l, int64_t now_ms)
{
	int64_t age = now_ms / MINUTE_MS - l->under_minute;
	struct limit_below below = { 0 };

	/* Who notes and who asks may have read their clocks a moment apart. */
	if (age < 0)
		age = 0;
	/* The one that runs is now the one before, or older than that. */
	for (int64_t i = 0; i < 2 - age; i++) {
		below.all += l->under[i];
		below.refused += l->under_refused[i];
	}
	return below;
}

bool limit_is_alarmed(const struct limit *l, int64_t now_ms)
{
	struct limit_below below = limit_below(l, now_ms);

	return below.refused >= LIMIT_ALARM_REFUSED &&
	       (double)below.refused > (double)below.all * ALARM_SHARE;
}

/* --- what came of a session --- */

static void postpone(struct limit *l, const struct limit_policy *policy,
		     int64_t now_ms, uint64_t random)
{
	l->next_probe_ms = now_ms + jittered(l->back_ms, random);
	l->back_ms *= 2;
	if (l->back_ms > policy->retry_max_ms)
		l->back_ms = policy->retry_max_ms;
}

/* A second; where a handshake takes longer than half of one, two of those. */
static bool is_due(const struct limit *l, int64_t now_ms)
{
	int64_t epoch = (int64_t)l->baseline_ms * 2;

	if (epoch < LIMIT_EPOCH_MS)
		epoch = LIMIT_EPOCH_MS;
	return now_ms - l->last_cut_ms >= epoch;
}

static void widen(struct limit *l, uint32_t most)
{
	if (most < 1)
		most = 1;
	l->burst = l->burst < most ? l->burst + 1 : most;
}

static void probe_accepted(struct limit *l, const struct limit_policy *policy)
{
	uint32_t quarter = whole(l->l / 4);

	if (l->l > l->wall + 0.5) {
		l->wall = l->l;
		l->back_ms = policy->retry_ms;
		widen(l, quarter);
	} else if (l->l < l->wall - 0.5) {
		uint32_t gap = whole(l->wall - l->l);

		widen(l, gap < quarter ? gap : quarter);
	}
	/* At the wall: only going past it is news. */
}

/*
 * A late greeting took some of what a refusal had measured: when it greets
 * quickly again, that comes back a tenth a second, and needs no probes.  All
 * of a host may have been late, ourselves among them.
 */
static void recover(struct limit *l, int64_t now_ms)
{
	if (!l->slowed || !is_due(l, now_ms))
		return;
	if (l->l < l->measured) {
		double to = l->l + greater(1, SLOW_BACK * l->l);

		move(l, lesser(to, l->measured), LIMIT_RECOVERED, now_ms);
		l->wall = greater(l->wall, l->l);
		l->last_cut_ms = now_ms;
	}
	l->slowed = l->l < l->measured;
}

static void accepted(struct limit *l, const struct limit_policy *policy,
		     bool probe, int64_t now_ms)
{
	l->accepted++;
	l->strikes = 0;
	recover(l, now_ms);
	if ((double)l->n > l->l && l->l < l->ceiling)
		move(l, l->n, LIMIT_GREW, now_ms);
	if (probe)
		probe_accepted(l, policy);
}

static void slow(struct limit *l, const struct limit_policy *policy, bool probe,
		 int64_t now_ms, uint64_t random)
{
	l->slow++;
	if (probe) {
		l->burst = 1;
		l->wall = l->l;
		postpone(l, policy, now_ms, random);
	}
	if (!is_due(l, now_ms))
		return;

	double to = lesser(l->l, greater(l->n - 1, CUT * l->l));

	l->last_cut_ms = now_ms;
	if (to < l->l) {
		move(l, to, LIMIT_SLOW, now_ms);
		l->slowed = true;
	}
	l->wall = greater(l->l, (l->wall + l->l) / 2);
}

enum limit_phase limit_greeted(struct limit *l,
			       const struct limit_policy *policy,
			       enum limit_phase phase, int64_t ms,
			       int64_t now_ms, uint64_t random)
{
	if (!is_pending(phase))
		return phase;
	note_attempt(l, now_ms);

	bool late = l->baseline_ms != 0 && ms > slow_ms(l);

	if (ms >= 0)
		limit_seed(l, ms, now_ms);
	leave(l, phase);
	l->n++;
	l->shut = false;
	belie(l, now_ms);
	if (late)
		slow(l, policy, phase == LIMIT_PROBE, now_ms, random);
	else
		accepted(l, policy, phase == LIMIT_PROBE, now_ms);
	return LIMIT_GREETED;
}

static void probe_refused(struct limit *l, const struct limit_policy *policy,
			  int64_t now_ms, uint64_t random)
{
	l->probes_refused++;
	l->wall = greater(l->n, l->l);
	postpone(l, policy, now_ms, random);
	if (l->strikes >= LIMIT_STRIKES && l->n < l->l && l->l > 1) {
		move(l, l->n, LIMIT_MEASURED, now_ms);
		return;
	}
	l->last = LIMIT_PROBE_REFUSED;
	l->last_ms = now_ms;
}

static void refused(struct limit *l, const struct limit_policy *policy,
		    int64_t now_ms, uint64_t random)
{
	bool believed = l->strikes >= LIMIT_STRIKES;
	double target = believed ? l->n : greater(l->n, CUT * l->l);
	bool due = is_due(l, now_ms);

	if (target >= l->l)
		return;
	if (believed || due) {
		l->wall = greater(target, (l->wall + target) / 2);
		move(l, target, believed ? LIMIT_MEASURED : LIMIT_REFUSED,
		     now_ms);
	}
	if (due) {
		int64_t next = now_ms + jittered(policy->retry_ms, random);

		if (next > l->next_probe_ms)
			l->next_probe_ms = next;
		l->last_cut_ms = now_ms;
	}
}

enum limit_phase limit_busy(struct limit *l, const struct limit_policy *policy,
			    enum limit_phase phase, bool at_once,
			    int64_t now_ms, uint64_t random)
{
	if (phase == LIMIT_OUT)
		return LIMIT_OUT;
	leave(l, phase);
	if (is_pending(phase))
		note_attempt(l, now_ms);
	doubt(l, now_ms);
	l->refused++;
	l->measured = l->n;
	l->slowed = false;
	if (l->strikes < LIMIT_STRIKES)
		l->strikes = at_once ? LIMIT_STRIKES : l->strikes + 1;
	l->burst = 1;
	/*
	 * It has none of ours, and refuses us again and again: others have all
	 * of it.  The limit of one would let a session through at once after
	 * each refusal.
	 */
	l->shut = l->n == 0 && l->strikes >= LIMIT_STRIKES;
	if (l->shut && l->back_ms > LIMIT_KNOCK_MS)
		l->back_ms = LIMIT_KNOCK_MS;
	if (phase == LIMIT_PROBE) {
		probe_refused(l, policy, now_ms, random);
		return LIMIT_OUT;
	}
	refused(l, policy, now_ms, random);
	if (l->shut)
		postpone(l, policy, now_ms, random);
	return LIMIT_OUT;
}

enum limit_phase limit_silent(struct limit *l,
			      const struct limit_policy *policy,
			      enum limit_phase phase, int64_t now_ms,
			      uint64_t random)
{
	phase = limit_busy(l, policy, phase, false, now_ms, random);
	l->measured = 0;
	return phase;
}

enum limit_phase limit_gone(struct limit *l, enum limit_phase phase)
{
	leave(l, phase);
	l->gone += is_pending(phase);
	return LIMIT_OUT;
}

enum limit_phase limit_maybe(struct limit *l, const struct limit_policy *policy,
			     enum limit_phase phase, int64_t now_ms,
			     uint64_t random)
{
	if (phase == LIMIT_OUT)
		return LIMIT_OUT;
	l->half = !l->half;
	if (l->half) {
		/* Believed or not: the next probe need not come at once. */
		if (phase == LIMIT_PROBE)
			postpone(l, policy, now_ms, random);
		return limit_gone(l, phase);
	}
	return limit_busy(l, policy, phase, false, now_ms, random);
}

/* --- what is not about slots --- */

void limit_cool(struct limit *l, int64_t now_ms)
{
	double from = l->l;

	if (now_ms - l->last_cool_ms < LIMIT_COOL_MS) {
		l->cool_votes++;
		return;
	}
	l->last_cool_ms = now_ms;
	l->cool_votes = 1;
	move(l, COOL * from, LIMIT_COOLED, now_ms);
	l->cool_from = from;
}

void limit_uncool(struct limit *l, int64_t now_ms)
{
	if (l->cool_votes == 0 || --l->cool_votes > 0 || l->cool_from <= 0)
		return;
	move(l, l->cool_from, LIMIT_COOLED, now_ms);
	l->last_cool_ms = INT64_MIN / 2;
}

void limit_return(struct limit *l, const struct limit_policy *policy,
		  int64_t now_ms)
{
	l->wall = l->l;
	l->burst = 1;
	l->strikes = 0;
	l->shut = false;
	l->slowed = false;
	l->back_ms = policy->retry_ms;
	l->next_probe_ms = now_ms;
	move(l, l->l / 4, LIMIT_RETURNED, now_ms);
}

/* --- words --- */

const char *limit_event_name(enum limit_event event)
{
	assert(event < LIMIT_EVENT_COUNT);
	return event_words[event].name;
}

const char *limit_event_help(enum limit_event event)
{
	assert(event < LIMIT_EVENT_COUNT);
	return event_words[event].help;
}
