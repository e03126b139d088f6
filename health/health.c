#include "health/health.h"

#include <assert.h>

struct words {
	const char *name;
	const char *help;
};

#define HEALTH_WORDS(NAME, name, help) { #name, help },
static const struct words state_words[] = { HEALTH_STATES(HEALTH_WORDS) };
static const struct words why_words[] = { HEALTH_WHYS(HEALTH_WORDS) };
#undef HEALTH_WORDS

enum {
	LEVEL_MAX = 30, /* of doublings; the policy's maximum comes sooner */
	JITTER_ONE = 1 << 16,
};

struct health_policy health_policy_default(void)
{
	return (struct health_policy){
		.probe = true,
		.interval_ms = 10000,
		.down_interval_ms = 2000,
		.rise = 2,
		.fall = 3,
		.passive_fall = 3,
		.eject_ms = 5000,
		.eject_max_ms = 300000,
		.max_ejected_percent = 50,
		.busy_hold_ms = 1000,
		.busy_hold_max_ms = 15000,
		.cooldown_ms = 5000,
		.cooldown_max_ms = 60000,
	};
}

static int64_t least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* first * 2^level, at most max. */
static int64_t doubled(int64_t first, unsigned level, int64_t max)
{
	assert(first >= 0);
	assert(level <= LEVEL_MAX);

	int64_t ms = first;

	for (unsigned i = 0; i < level && ms < max; i++)
		ms *= 2;
	return least(ms, max);
}

/* ms, more or less by up to ms * part / JITTER_ONE. */
static int64_t jittered(int64_t ms, unsigned part, uint64_t random)
{
	int64_t spread = ms * (int64_t)part / JITTER_ONE;
	int64_t r = (int64_t)(random % JITTER_ONE);

	return ms - spread + 2 * spread * r / JITTER_ONE;
}

/*
 * What a session learned before an ejection or a fall is no news after it.
 * Being busy, and being found alive for the first time, change nothing of
 * what older sessions can tell.
 */
static bool outdates(enum health_state from, enum health_state to)
{
	bool was_in = from == HEALTH_UNKNOWN || from == HEALTH_UP ||
		      from == HEALTH_BUSY;
	bool is_in = to == HEALTH_UP || to == HEALTH_BUSY;

	return !(was_in && is_in);
}

/* Every change of state goes through here. */
static void enter(struct health *h, enum health_state state,
		  enum health_why why, int64_t until_ms, int64_t now_ms)
{
	assert(state != h->state);
	assert(until_ms == 0 || until_ms >= now_ms);

	if (outdates(h->state, state)) {
		h->epoch++;
		if (h->epoch == 0)
			h->epoch = 1;
		h->probe_passes = 0;
	}
	if (state == HEALTH_UP && h->state != HEALTH_BUSY) {
		h->fails = 0;
		h->fail_depth = 0;
		h->back_ms = now_ms;
	}
	h->state = state;
	h->why = why;
	h->since_ms = now_ms;
	h->until_ms = until_ms;
}

void health_begin(struct health *h, int64_t now_ms)
{
	*h = (struct health){
		.state = HEALTH_UNKNOWN,
		.why = HEALTH_WHY_START,
		.since_ms = now_ms,
		.epoch = 1,
		.probe_at_ms = now_ms,
		.back_ms = now_ms,
	};
}

bool health_admits(enum health_state state)
{
	return state == HEALTH_UNKNOWN || state == HEALTH_UP ||
	       state == HEALTH_HALF_OPEN;
}

bool health_in_rotation(enum health_state state)
{
	return state == HEALTH_UNKNOWN || state == HEALTH_UP ||
	       state == HEALTH_BUSY;
}

bool health_is_calm(const struct health *h)
{
	return h->state == HEALTH_UP && h->fails == 0;
}

void health_tick(struct health *h, int64_t now_ms)
{
	if (h->until_ms == 0 || now_ms < h->until_ms)
		return;
	switch (h->state) {
	case HEALTH_BUSY:
		enter(h, HEALTH_UP, HEALTH_WHY_TIME, 0, now_ms);
		return;
	case HEALTH_EJECTED:
	case HEALTH_DRAIN: /* these two only where nothing is probed */
	case HEALTH_MISCONF:
		enter(h, HEALTH_HALF_OPEN, HEALTH_WHY_TIME, 0, now_ms);
		return;
	case HEALTH_UNKNOWN:
	case HEALTH_UP:
	case HEALTH_HALF_OPEN:
	case HEALTH_DOWN:
	case HEALTH_STATE_COUNT:
		return; /* these have no end of their own */
	}
}

/* --- probes --- */

static int64_t pause_ms(const struct health *h,
			const struct health_policy *policy)
{
	if (h->state == HEALTH_UP || h->state == HEALTH_BUSY)
		return policy->interval_ms;
	return policy->down_interval_ms;
}

/* It got worse: do not wait for the end of a long interval. */
static void hurry(struct health *h, const struct health_policy *policy,
		  int64_t now_ms)
{
	h->probe_at_ms = least(h->probe_at_ms, now_ms + pause_ms(h, policy));
}

bool health_probe_claim(struct health *h, const struct health_policy *policy,
			int64_t now_ms)
{
	if (!policy->probe || h->probing || now_ms < h->probe_at_ms)
		return false;
	h->probing = true;
	return true;
}

void health_probe_cancel(struct health *h, const struct health_policy *policy,
			 int64_t now_ms)
{
	h->probing = false;
	h->probe_at_ms = now_ms + pause_ms(h, policy);
}

void health_probe_soon(struct health *h, int64_t now_ms)
{
	h->probe_at_ms = least(h->probe_at_ms, now_ms);
}

static void probe_passed(struct health *h, const struct health_policy *policy,
			 int64_t now_ms)
{
	unsigned need = 1;

	switch (h->state) {
	case HEALTH_UP:
	case HEALTH_BUSY:
	case HEALTH_EJECTED: /* its time runs; a probe does less than mail */
	case HEALTH_STATE_COUNT:
		return;
	case HEALTH_UNKNOWN:
	case HEALTH_DRAIN:
		break;
	case HEALTH_HALF_OPEN:
		need = HEALTH_HALF_OPEN_RISE;
		break;
	case HEALTH_DOWN:
	case HEALTH_MISCONF:
		need = policy->rise;
		break;
	}
	if (h->probe_passes >= need)
		enter(h, HEALTH_UP, HEALTH_WHY_PROBE_OK, 0, now_ms);
}

/* Alive, though not at its best: no failure, and an end to being DOWN. */
static void probe_busy(struct health *h, const struct health_policy *policy,
		       int64_t now_ms)
{
	if (h->state == HEALTH_UNKNOWN ||
	    (h->state == HEALTH_DOWN && h->probe_passes >= policy->rise))
		enter(h, HEALTH_UP, HEALTH_WHY_PROBE_OK, 0, now_ms);
}

static void probe_failed(struct health *h, const struct health_policy *policy,
			 int64_t now_ms)
{
	unsigned need = h->state == HEALTH_UNKNOWN ? 1 : policy->fall;

	if (h->state != HEALTH_DOWN && h->probe_fails >= need)
		enter(h, HEALTH_DOWN, HEALTH_WHY_PROBE_FAILED, 0, now_ms);
}

void health_note_probe(struct health *h, const struct health_policy *policy,
		       enum health_probe outcome, int64_t now_ms,
		       uint64_t random)
{
	bool alive = outcome == HEALTH_PROBE_PASSED ||
		     outcome == HEALTH_PROBE_BUSY;

	h->history = h->history << 1 | (uint64_t)alive;
	if (h->seen < HEALTH_HISTORY_MAX)
		h->seen++;
	h->probe_passes = alive ? h->probe_passes + 1 : 0;
	h->probe_fails = outcome == HEALTH_PROBE_FAILED ? h->probe_fails + 1
							: 0;
	h->probing = false;

	switch (outcome) {
	case HEALTH_PROBE_PASSED:
		probe_passed(h, policy, now_ms);
		break;
	case HEALTH_PROBE_BUSY:
		probe_busy(h, policy, now_ms);
		break;
	case HEALTH_PROBE_DRAIN:
		health_note_drain(h, policy, now_ms);
		break;
	case HEALTH_PROBE_MISCONF:
		health_note_misconf(h, policy, now_ms);
		break;
	case HEALTH_PROBE_FAILED:
		probe_failed(h, policy, now_ms);
		break;
	}
	/* A tenth either way, so that a farm's probes drift apart. */
	h->probe_at_ms = now_ms +
			 jittered(pause_ms(h, policy), JITTER_ONE / 10, random);
}

/* --- live sessions --- */

void health_note_success(struct health *h, unsigned depth, int64_t now_ms)
{
	if (depth < h->fail_depth && h->state != HEALTH_UNKNOWN)
		return; /* it has failed behind this point */
	switch (h->state) {
	case HEALTH_UNKNOWN:
	case HEALTH_HALF_OPEN:
	case HEALTH_EJECTED: /* tried all the same, in an emergency */
		enter(h, HEALTH_UP, HEALTH_WHY_ACCEPTED, 0, now_ms);
		return;
	case HEALTH_UP:
	case HEALTH_BUSY:
		h->fails = 0;
		h->fail_depth = 0;
		return;
	case HEALTH_DRAIN:
	case HEALTH_DOWN:
	case HEALTH_MISCONF:
	case HEALTH_STATE_COUNT:
		return; /* only a probe ends these */
	}
}

static void eject(struct health *h, const struct health_policy *policy,
		  enum health_why why, int64_t now_ms, uint64_t random)
{
	/* Long in service: what was before is forgiven. */
	if (h->state != HEALTH_HALF_OPEN &&
	    now_ms - h->back_ms >= policy->eject_max_ms)
		h->ejections = 0;

	int64_t ms = doubled(policy->eject_ms, h->ejections,
			     policy->eject_max_ms);

	ms = least(jittered(ms, JITTER_ONE / 2, random), policy->eject_max_ms);
	if (h->ejections < LEVEL_MAX)
		h->ejections++;
	enter(h, HEALTH_EJECTED, why, now_ms + ms, now_ms);
	hurry(h, policy, now_ms);
}

void health_note_failure(struct health *h, const struct health_policy *policy,
			 unsigned depth, bool may_eject, int64_t now_ms,
			 uint64_t random)
{
	switch (h->state) {
	case HEALTH_DRAIN:
	case HEALTH_EJECTED:
	case HEALTH_DOWN:
	case HEALTH_MISCONF:
	case HEALTH_STATE_COUNT:
		return; /* out already */
	case HEALTH_HALF_OPEN:
		/* Out of rotation as it is: the farm loses nothing. */
		h->fail_depth = depth;
		eject(h, policy, HEALTH_WHY_TRIAL_FAILED, now_ms, random);
		return;
	case HEALTH_UNKNOWN:
	case HEALTH_UP:
	case HEALTH_BUSY:
		break;
	}
	if (h->fails < policy->passive_fall)
		h->fails++;
	if (depth > h->fail_depth)
		h->fail_depth = depth;
	if (h->fails >= policy->passive_fall && may_eject)
		eject(h, policy, HEALTH_WHY_FAILURES, now_ms, random);
}

void health_note_sick(struct health *h, const struct health_policy *policy,
		      unsigned depth, int64_t now_ms, uint64_t random)
{
	if (!health_in_rotation(h->state))
		return;
	if (depth > h->fail_depth)
		h->fail_depth = depth;
	eject(h, policy, HEALTH_WHY_SICK, now_ms, random);
}

/*
 * The length of the next hold-off: twice the last one's if that ended no
 * longer ago than twice its own length, else from the start.  Successes do
 * not count here: those of sessions that it has would always forgive it.
 */
static int64_t next_hold(unsigned *level, int64_t *end_ms, int64_t first_ms,
			 int64_t max_ms, int64_t now_ms)
{
	int64_t last = doubled(first_ms, *level, max_ms);

	if (*end_ms != 0 && now_ms - *end_ms <= 2 * last) {
		if (*level < LEVEL_MAX)
			(*level)++;
	} else {
		*level = 0;
	}

	int64_t ms = doubled(first_ms, *level, max_ms);

	*end_ms = now_ms + ms;
	return ms;
}

static void hold_off(struct health *h, const struct health_policy *policy,
		     enum health_why why, int64_t now_ms)
{
	int64_t ms;

	if (why == HEALTH_WHY_RESOURCES) {
		ms = next_hold(&h->cool_level, &h->cool_end_ms,
			       policy->cooldown_ms, policy->cooldown_max_ms,
			       now_ms);
	} else {
		ms = next_hold(&h->hold_level, &h->hold_end_ms,
			       policy->busy_hold_ms, policy->busy_hold_max_ms,
			       now_ms);
	}
	enter(h, HEALTH_BUSY, why, now_ms + ms, now_ms);
}

void health_note_refused(struct health *h, const struct health_policy *policy,
			 int64_t now_ms)
{
	if (h->state == HEALTH_UNKNOWN || h->state == HEALTH_UP)
		hold_off(h, policy, HEALTH_WHY_REFUSED, now_ms);
}

void health_note_busy(struct health *h, const struct health_policy *policy,
		      enum health_why why, int64_t now_ms)
{
	assert(why == HEALTH_WHY_BUSY_VOTES || why == HEALTH_WHY_BUSY_STRONG ||
	       why == HEALTH_WHY_RESOURCES);

	if (health_admits(h->state))
		hold_off(h, policy, why, now_ms);
}

void health_note_drain(struct health *h, const struct health_policy *policy,
		       int64_t now_ms)
{
	if (!health_in_rotation(h->state) && h->state != HEALTH_HALF_OPEN)
		return;
	enter(h, HEALTH_DRAIN, HEALTH_WHY_SAID_DRAIN,
	      policy->probe ? 0 : now_ms + policy->eject_ms, now_ms);
	hurry(h, policy, now_ms);
}

void health_note_misconf(struct health *h, const struct health_policy *policy,
			 int64_t now_ms)
{
	if (h->state == HEALTH_MISCONF)
		return;
	enter(h, HEALTH_MISCONF, HEALTH_WHY_SAID_MISCONF,
	      policy->probe ? 0 : now_ms + policy->eject_max_ms, now_ms);
	hurry(h, policy, now_ms);
}

/* --- votes --- */

static bool is_vote(const struct health_vote *v, uint8_t kind, uint64_t source)
{
	return v->kind == kind && v->source == source;
}

/* Votes that led to the last change are spent. */
static bool counts(const struct health *h, const struct health_vote *v,
		   uint8_t kind, int64_t now_ms)
{
	return v->kind == kind && v->at_ms >= h->since_ms &&
	       now_ms - v->at_ms < HEALTH_VOTE_WINDOW_MS;
}

/* Different sources with a vote of this kind that counts. */
static unsigned voters(const struct health *h, uint8_t kind, int64_t now_ms)
{
	unsigned n = 0;

	for (unsigned i = 0; i < HEALTH_VOTES_MAX; i++) {
		bool again = !counts(h, &h->votes[i], kind, now_ms);

		for (unsigned j = 0; j < i && !again; j++)
			again = counts(h, &h->votes[j], kind, now_ms) &&
				h->votes[j].source == h->votes[i].source;
		n += !again;
	}
	return n;
}

unsigned health_vote(struct health *h, uint8_t kind, uint64_t source,
		     uint16_t step, int64_t now_ms)
{
	assert(kind != 0);

	for (unsigned i = 0; i < HEALTH_VOTES_MAX; i++) {
		const struct health_vote *v = &h->votes[i];

		if (is_vote(v, kind, source) &&
		    now_ms - v->at_ms < HEALTH_VOTE_MS)
			return 0;
	}
	h->votes[h->vote_next] = (struct health_vote){
		.at_ms = now_ms,
		.source = source,
		.kind = kind,
		.step = step,
	};
	h->vote_next = (h->vote_next + 1) % HEALTH_VOTES_MAX;
	return voters(h, kind, now_ms);
}

uint16_t health_unvote(struct health *h, uint8_t kind, uint64_t source)
{
	assert(kind != 0);

	for (unsigned i = 1; i <= HEALTH_VOTES_MAX; i++) {
		struct health_vote *v =
			&h->votes[(h->vote_next + HEALTH_VOTES_MAX - i) %
				  HEALTH_VOTES_MAX];

		if (is_vote(v, kind, source)) {
			v->kind = 0;
			return v->step;
		}
	}
	return 0;
}

/* --- words --- */

const char *health_state_name(enum health_state state)
{
	assert(state < HEALTH_STATE_COUNT);
	return state_words[state].name;
}

const char *health_state_help(enum health_state state)
{
	assert(state < HEALTH_STATE_COUNT);
	return state_words[state].help;
}

const char *health_why_name(enum health_why why)
{
	assert(why < HEALTH_WHY_COUNT);
	return why_words[why].name;
}

const char *health_why_help(enum health_why why)
{
	assert(why < HEALTH_WHY_COUNT);
	return why_words[why].help;
}
