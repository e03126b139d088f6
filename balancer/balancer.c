#include "balancer/balancer.h"

#include <assert.h>

struct words {
	const char *name;
	const char *help;
};

#define BALANCER_WORDS(NAME, name, help) { #name, help },
static const struct words verdict_words[] = { BALANCER_VERDICTS(
	BALANCER_WORDS) };
#undef BALANCER_WORDS

static const char *const failure_words[] = {
	[BALANCER_REPLIED] = "replied",
	[BALANCER_REFUSED] = "refused",
	[BALANCER_TIMEOUT] = "connect timeout",
	[BALANCER_RESET] = "reset",
	[BALANCER_UNREACHABLE] = "unreachable",
	[BALANCER_SILENT] = "silent",
	[BALANCER_CLOSED] = "closed before the greeting",
	[BALANCER_LOST] = "lost",
	[BALANCER_STALLED] = "stalled",
	[BALANCER_GARBLED] = "not SMTP",
};
static_assert(sizeof(failure_words) / sizeof(failure_words[0]) ==
		      BALANCER_FAILURE_COUNT,
	      "every failure has a name");

enum {
	SAMPLES = 3,
	WORDS = FARM_BACKENDS_MAX / 64,
	SCORE_SHIFT = 20,
	UP_SHIFT = 3,      /* an error moves the average by an eighth */
	UP_SHIFT_HALF = 4, /* BUSY? by half of that */
	/* A backend below this has too few errors to be an outlier. */
	SICK_ERROR_MIN = BACKEND_ERROR_ONE / 4,
};

/* (inflight + 1) * (one + 50 errors), shifted, has to fit 64 bits. */
static_assert((uint64_t)BACKEND_SESSIONS_MAX * BACKEND_ERROR_ONE *
			      (1 + BALANCER_PENALTY) <
		      (uint64_t)1 << (64 - SCORE_SHIFT),
	      "the score fits");

/* The probes' vote, beside those of clients. */
#define PROBE_SOURCE UINT64_MAX

/* splitmix64, of Steele, Lea and Flood: many draws from one word. */
static uint64_t draw(uint64_t *random)
{
	uint64_t z = *random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* --- who may be chosen --- */

/* How one backend stands to what is needed. */
enum standing {
	STANDS_ABSENT, /* not LIVE */
	STANDS_TRIED,
	STANDS_OUT,   /* by its operator or its health */
	STANDS_LACKS, /* an extension, or the size */
	STANDS_FULL,  /* or held off as busy: alive, no room now */
	STANDS_FIT,
	STANDS_COUNT,
};

static bool is_over(const struct backend *b, int64_t now_ms)
{
	int64_t until = atomic_load(&b->until_ms);

	return until != 0 && now_ms >= until;
}

static bool trial_is_out(const struct backend *b)
{
	uint32_t trial = atomic_load(&b->trial);

	return trial != 0 && trial == atomic_load(&b->epoch);
}

/* By health alone. */
static enum standing health_stands(const struct backend *b, bool emergency,
				   int64_t now_ms)
{
	switch (backend_state(b)) {
	case HEALTH_UNKNOWN:
	case HEALTH_UP:
		return STANDS_FIT;
	case HEALTH_BUSY:
		return is_over(b, now_ms) ? STANDS_FIT : STANDS_FULL;
	case HEALTH_HALF_OPEN:
		return trial_is_out(b) ? STANDS_FULL : STANDS_FIT;
	case HEALTH_EJECTED:
		return emergency || is_over(b, now_ms) ? STANDS_FIT
						       : STANDS_OUT;
	case HEALTH_DRAIN:
	case HEALTH_MISCONF:
		return is_over(b, now_ms) ? STANDS_FIT : STANDS_OUT;
	case HEALTH_DOWN:
	case HEALTH_STATE_COUNT:
		break;
	}
	return STANDS_OUT;
}

static bool offers(const struct backend *b, const struct balancer_need *need)
{
	if (!atomic_load(&b->ext_known))
		return need->ext == 0;
	if ((need->ext & ~atomic_load(&b->ext)) != 0)
		return false;

	uint64_t size = atomic_load(&b->size);

	return size == 0 || need->size <= size;
}

static bool was_tried(const struct balancer_need *need, uint16_t index)
{
	for (unsigned i = 0; i < need->tried_count; i++) {
		if (need->tried[i] == index)
			return true;
	}
	return false;
}

static enum standing stands(const struct backend *b,
			    const struct balancer_need *need, bool emergency,
			    int64_t now_ms)
{
	if (atomic_load(&b->place) != BACKEND_LIVE)
		return STANDS_ABSENT;
	if (was_tried(need, b->index))
		return STANDS_TRIED;
	if (backend_admin_state(b) != BACKEND_READY)
		return STANDS_OUT;

	enum standing standing = health_stands(b, emergency, now_ms);

	if (standing == STANDS_OUT)
		return STANDS_OUT;
	if (!offers(b, need))
		return STANDS_LACKS;
	if (atomic_load(&b->inflight) >= backend_limit(b))
		return STANDS_FULL;
	return standing;
}

static uint64_t score(const struct backend *b, int64_t now_ms)
{
	uint64_t inflight = atomic_load(&b->inflight);
	uint64_t share = (uint64_t)atomic_load(&b->weight) * backend_limit(b);
	uint64_t error = backend_error(b, now_ms);

	if (inflight >= BACKEND_SESSIONS_MAX)
		inflight = BACKEND_SESSIONS_MAX - 1;
	return ((inflight + 1) * (BACKEND_ERROR_ONE + BALANCER_PENALTY * error)
		<< SCORE_SHIFT) /
	       share;
}

/* --- the search --- */

struct search {
	struct farm *farm;
	const struct balancer_need *need;
	int64_t now_ms;
	uint64_t random;
	bool emergency;       /* take ejected ones too */
	uint64_t lost[WORDS]; /* bit per index: the race for it was lost */
	struct backend *best; /* so far, or NULL */
	uint64_t best_score;
	unsigned ties;
	unsigned tally[STANDS_COUNT];
};

static bool is_lost(const struct search *s, uint16_t index)
{
	return s->lost[index / 64] >> (index % 64) & 1;
}

static void consider(struct search *s, uint16_t index)
{
	struct backend *b = &s->farm->backends[index];
	enum standing standing = is_lost(s, index)
					 ? STANDS_FULL
					 : stands(b, s->need, s->emergency,
						  s->now_ms);

	s->tally[standing]++;
	if (standing != STANDS_FIT)
		return;

	uint64_t sc = score(b, s->now_ms);

	if (s->best == NULL || sc < s->best_score) {
		s->best = b;
		s->best_score = sc;
		s->ties = 1;
		return;
	}
	if (sc > s->best_score || b == s->best)
		return;
	/* The n-th of equals wins with 1/n: all have the same chance. */
	s->ties++;
	if (draw(&s->random) % s->ties == 0)
		s->best = b;
}

static void begin_search(struct search *s)
{
	s->best = NULL;
	for (size_t i = 0; i < STANDS_COUNT; i++)
		s->tally[i] = 0;
}

static void scan_all(struct search *s)
{
	uint16_t n = farm_size(s->farm);

	begin_search(s);
	for (uint16_t i = 0; i < n; i++)
		consider(s, i);
}

/* The best of all; of many, the best of a few, unless none of those fits. */
static void find_best(struct search *s, bool few)
{
	uint16_t n = farm_size(s->farm);

	if (few && n > BALANCER_SCAN_MAX) {
		begin_search(s);
		for (int i = 0; i < SAMPLES; i++)
			consider(s, (uint16_t)(draw(&s->random) % n));
		if (s->best != NULL)
			return;
	}
	scan_all(s);
}

/* Why there is none, from a scan of all. */
static enum balancer_verdict why_none(const unsigned tally[STANDS_COUNT])
{
	if (tally[STANDS_FULL] > 0)
		return BALANCER_ALL_FULL;
	if (tally[STANDS_TRIED] > 0)
		return BALANCER_ALL_TRIED;
	if (tally[STANDS_LACKS] > 0)
		return BALANCER_NO_EXTENSION;
	if (tally[STANDS_OUT] > 0)
		return BALANCER_ALL_DOWN;
	return BALANCER_EMPTY;
}

/* --- farm-wide rules --- */

/* The backends that an operator wants to work, by their state. */
struct roll {
	unsigned wanted;
	unsigned healthy; /* in rotation */
	unsigned ejected; /* by passive signs, HALF_OPEN included */
};

static struct roll call_roll(const struct farm *farm)
{
	struct roll roll = { 0 };
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];
		enum health_state state = backend_state(b);

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    backend_admin_state(b) != BACKEND_READY)
			continue;
		roll.wanted++;
		roll.healthy += health_in_rotation(state);
		roll.ejected += state == HEALTH_EJECTED ||
				state == HEALTH_HALF_OPEN;
	}
	return roll;
}

/*
 * Fewer than half are healthy: what made backends fail may lie outside them
 * all, and passive signs are no reason to leave one out.
 */
static bool is_emergency(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy * 2 < roll.wanted;
}

/* Behind the farm's mutex, until the change is published. */
static bool may_eject(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy * 2 >= roll.wanted &&
	       (roll.ejected + 1) * 100 <=
		       roll.wanted * farm->policy.max_ejected_percent;
}

/* The same for those that answer: half, rounded up, stays in rotation. */
static bool may_quarantine(const struct farm *farm)
{
	struct roll roll = call_roll(farm);

	return roll.healthy >= (roll.wanted + 1) / 2 + 1 && may_eject(farm);
}

/* Has it clearly more errors than the others on the average? */
static bool is_outlier(const struct farm *farm, const struct backend *self,
		       int64_t now_ms)
{
	uint64_t sum = 0;
	uint64_t peers = 0;
	uint64_t error = backend_error(self, now_ms);
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];

		if (b == self || atomic_load(&b->place) != BACKEND_LIVE ||
		    !health_in_rotation(backend_state(b)))
			continue;
		sum += backend_error(b, now_ms);
		peers++;
	}
	return peers > 0 && error >= SICK_ERROR_MIN && error * peers > 2 * sum;
}

/* --- reserve and release --- */

static void peak(struct backend *b, uint32_t inflight)
{
	uint32_t was = atomic_load(&b->inflight_peak);

	while (inflight > was &&
	       !atomic_compare_exchange_weak(&b->inflight_peak, &was, inflight))
		;
}

static void give_back(struct backend *b)
{
	uint32_t was = atomic_fetch_sub(&b->inflight, 1);

	assert(was > 0);
}

/* One slot, unless there is none: exact whatever other threads do. */
static bool take_slot(struct backend *b)
{
	uint32_t was = atomic_load(&b->inflight);

	do {
		if (was >= backend_limit(b))
			return false;
	} while (!atomic_compare_exchange_weak(&b->inflight, &was, was + 1));
	/* It may have been removed meanwhile: see farm_remove(). */
	if (atomic_load(&b->place) != BACKEND_LIVE) {
		give_back(b);
		return false;
	}
	peak(b, was + 1);
	return true;
}

/*
 * What time has ended, ends now; the one session of a HALF_OPEN backend is
 * claimed.  False: it takes none after all.
 */
static bool open_gate(struct search *s, struct backend *b, bool *trial,
		      struct backend_change *change)
{
	enum health_state state = backend_state(b);

	*trial = false;
	if (state == HEALTH_UP || state == HEALTH_UNKNOWN)
		return true;

	pthread_mutex_lock(&b->mutex);
	enum health_state before = b->health.state;

	health_tick(&b->health, s->now_ms);
	backend_settle(b, before, change);
	state = b->health.state;
	bool open = health_admits(state) ||
		    (s->emergency && state == HEALTH_EJECTED);

	if (open && state == HEALTH_HALF_OPEN) {
		open = !trial_is_out(b);
		*trial = open;
		if (open)
			atomic_store(&b->trial, b->health.epoch);
	}
	pthread_mutex_unlock(&b->mutex);
	return open;
}

static void close_trial(struct backend *b, uint32_t epoch)
{
	/* Unless a later trial has taken its place. */
	atomic_compare_exchange_strong(&b->trial, &epoch, 0);
}

static bool take(struct search *s, struct backend *b,
		 struct balancer_slot *slot, struct backend_change *change)
{
	bool trial;

	if (!open_gate(s, b, &trial, change))
		return false;

	uint32_t epoch = atomic_load(&b->epoch);

	if (!take_slot(b)) {
		if (trial)
			close_trial(b, epoch);
		return false;
	}
	*slot = (struct balancer_slot){
		.index = b->index,
		.trial = trial,
		.generation = atomic_load(&b->generation),
		.epoch = epoch,
	};
	backend_count(b, BACKEND_COUNT_tried, 1);
	return true;
}

/* Lost a race: the next best.  Each round rules one backend out. */
static bool take_best(struct search *s, struct balancer_slot *slot,
		      struct backend_change *change)
{
	for (unsigned round = 0; round <= FARM_BACKENDS_MAX; round++) {
		find_best(s, round == 0);
		if (s->best == NULL)
			return false;
		if (take(s, s->best, slot, change))
			return true;
		s->lost[s->best->index / 64] |= (uint64_t)1
						<< (s->best->index % 64);
	}
	return false;
}

/* Remember since when nothing could be had. */
static int64_t note_room(struct farm *farm, bool room, int64_t now_ms)
{
	int64_t since = atomic_load(&farm->none_since_ms);

	if (room) {
		if (since != -1)
			atomic_store(&farm->none_since_ms, -1);
		return now_ms;
	}
	if (since == -1 && atomic_compare_exchange_strong(&farm->none_since_ms,
							  &since, now_ms))
		return now_ms;
	return since == -1 ? now_ms : since;
}

enum balancer_verdict balancer_reserve(struct farm *farm,
				       const struct balancer_need *need,
				       int64_t now_ms, uint64_t random,
				       struct balancer_slot *slot,
				       struct backend_change *change)
{
	assert(need->tried_count <= BALANCER_TRIED_MAX);

	struct search s = {
		.farm = farm,
		.need = need,
		.now_ms = now_ms,
		.random = random,
	};

	change->changed = false;
	if (take_best(&s, slot, change)) {
		(void)note_room(farm, true, now_ms);
		return BALANCER_PICKED;
	}

	enum balancer_verdict why = why_none(s.tally);

	s.emergency = true;
	if (is_emergency(farm) && take_best(&s, slot, change)) {
		(void)note_room(farm, true, now_ms);
		return BALANCER_PICKED;
	}
	if (why != BALANCER_ALL_TRIED && why != BALANCER_NO_EXTENSION)
		(void)note_room(farm, false, now_ms);
	return why;
}

static struct backend *backend_of(struct farm *farm,
				  const struct balancer_slot *slot)
{
	assert(slot->index < FARM_BACKENDS_MAX);

	struct backend *b = &farm->backends[slot->index];

	/* A slot in use keeps its backend from being removed. */
	assert(atomic_load(&b->generation) == slot->generation);
	assert(atomic_load(&b->inflight) > 0);
	return b;
}

void balancer_release(struct farm *farm, const struct balancer_slot *slot)
{
	struct backend *b = backend_of(farm, slot);

	if (slot->trial)
		close_trial(b, slot->epoch);
	give_back(b);
}

bool balancer_available(struct farm *farm, int64_t now_ms,
			enum balancer_verdict *why, int64_t *since_ms)
{
	static const struct balancer_need nothing;
	struct search s = {
		.farm = farm,
		.need = &nothing,
		.now_ms = now_ms,
	};

	scan_all(&s);
	enum balancer_verdict verdict = s.best != NULL ? BALANCER_PICKED
						       : why_none(s.tally);

	if (s.best == NULL && is_emergency(farm)) {
		s.emergency = true;
		scan_all(&s);
		if (s.best != NULL)
			verdict = BALANCER_PICKED;
	}
	int64_t since = note_room(farm, s.best != NULL, now_ms);

	if (why != NULL)
		*why = verdict;
	if (since_ms != NULL)
		*since_ms = since;
	return verdict == BALANCER_PICKED;
}

struct smtp_ehlo balancer_offer(const struct farm *farm)
{
	struct smtp_ehlo offer = { .ext = 0, .size = 0 };
	bool any = false;
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    backend_admin_state(b) == BACKEND_ADMIN_MAINT ||
		    !atomic_load(&b->ext_known))
			continue;

		uint64_t size = atomic_load(&b->size);

		offer.ext = any ? offer.ext & atomic_load(&b->ext)
				: atomic_load(&b->ext);
		if (size != 0 && (offer.size == 0 || size < offer.size))
			offer.size = size;
		any = true;
	}
	offer.ext &= SMTP_EXT_RELAYED;
	return offer;
}

/* --- what is learned --- */

static bool is_hard(const struct balancer_outcome *o)
{
	return o->failure != BALANCER_REPLIED;
}

static enum backend_counter counter_of_class(enum busy_class class)
{
	switch (class) {
	case BUSY_OK:
		return BACKEND_COUNT_class_ok;
	case BUSY_BUSY:
		return BACKEND_COUNT_class_busy;
	case BUSY_MAYBE:
		return BACKEND_COUNT_class_maybe_busy;
	case BUSY_CAP:
		return BACKEND_COUNT_class_cap;
	case BUSY_DRAIN:
		return BACKEND_COUNT_class_drain;
	case BUSY_SICK:
		return BACKEND_COUNT_class_sick;
	case BUSY_MISCONF:
		return BACKEND_COUNT_class_misconf;
	case BUSY_SESSION:
		return BACKEND_COUNT_class_session;
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	assert(class == BUSY_POLICY);
	return BACKEND_COUNT_class_policy;
}

static void count_failure(struct backend *b, enum balancer_failure failure)
{
	switch (failure) {
	case BALANCER_REFUSED:
		backend_count(b, BACKEND_COUNT_connect_refused, 1);
		return;
	case BALANCER_TIMEOUT:
		backend_count(b, BACKEND_COUNT_connect_timeout, 1);
		return;
	case BALANCER_RESET:
		backend_count(b, BACKEND_COUNT_connect_reset, 1);
		return;
	case BALANCER_UNREACHABLE:
		backend_count(b, BACKEND_COUNT_connect_unreachable, 1);
		return;
	case BALANCER_SILENT:
	case BALANCER_CLOSED:
		backend_count(b, BACKEND_COUNT_greeting_silent, 1);
		return;
	case BALANCER_REPLIED:
	case BALANCER_LOST:
	case BALANCER_STALLED:
	case BALANCER_GARBLED:
	case BALANCER_FAILURE_COUNT:
		return; /* the worker counts what was lost with it */
	}
}

static void count(struct backend *b, const struct balancer_outcome *o)
{
	count_failure(b, o->failure);
	backend_count(b, counter_of_class(o->class), 1);
	if (is_hard(o) || o->stage != BUSY_STAGE_GREET)
		return;
	if (o->class == BUSY_OK)
		backend_count(b, BACKEND_COUNT_accepted, 1);
	else
		backend_count(b, BACKEND_COUNT_greeting_refused, 1);
}

/* A backend that answers, whatever it thinks of the message. */
static void note_good(struct backend *b, const struct balancer_slot *slot,
		      const struct balancer_outcome *o, int64_t now_ms,
		      struct backend_change *change)
{
	atomic_store(&b->answered_ms, now_ms);
	/* Once or twice in a transaction: a client that says RCPT a thousand
	   times must not forgive what others suffer. */
	if (o->stage == BUSY_STAGE_MAIL || o->stage == BUSY_STAGE_EOD)
		backend_error_down(b, now_ms);
	if (atomic_load(&b->calm))
		return;

	pthread_mutex_lock(&b->mutex);
	enum health_state before = b->health.state;

	if (slot->epoch == b->health.epoch)
		health_note_success(&b->health, (unsigned)o->stage, now_ms);
	backend_settle(b, before, change);
	pthread_mutex_unlock(&b->mutex);
}

/* A backend that has sessions of ours and is silent to one more, is full. */
static bool counts_as_failure(const struct backend *b,
			      const struct balancer_outcome *o)
{
	if (o->failure == BALANCER_SILENT || o->failure == BALANCER_CLOSED)
		return atomic_load(&b->inflight) <= 1;
	return true;
}

/* No connection, or one that broke.  Behind b->mutex and the farm's. */
static void apply_failure(struct farm *farm, struct backend *b,
			  const struct balancer_outcome *o, int64_t now_ms,
			  uint64_t random)
{
	const struct health_policy *policy = &farm->policy;

	if (counts_as_failure(b, o)) {
		bool may = may_eject(farm);

		health_note_failure(&b->health, policy, (unsigned)o->stage, may,
				    now_ms, random);
		if (!may && b->health.fails >= policy->passive_fall)
			backend_count(b, BACKEND_COUNT_eject_spared, 1);
	}
	if (o->failure == BALANCER_REFUSED)
		health_note_refused(&b->health, policy, now_ms);
	if (o->failure == BALANCER_SILENT)
		health_note_busy(&b->health, policy, HEALTH_WHY_BUSY_STRONG,
				 now_ms);
}

static void apply_busy(struct farm *farm, struct backend *b,
		       const struct balancer_outcome *o, unsigned voters,
		       int64_t now_ms)
{
	bool late = o->stage >= BUSY_STAGE_MAIL && o->stage < BUSY_STAGE_IDLE;
	enum health_why why = o->strong ? HEALTH_WHY_BUSY_STRONG
					: HEALTH_WHY_BUSY_VOTES;

	if (!o->strong && voters < HEALTH_VOTERS)
		return;
	health_note_busy(&b->health, &farm->policy,
			 late ? HEALTH_WHY_RESOURCES : why, now_ms);
}

static void apply_sick(struct farm *farm, struct backend *b,
		       const struct balancer_outcome *o, unsigned voters,
		       int64_t now_ms, uint64_t random)
{
	if (voters < HEALTH_VOTERS || !is_outlier(farm, b, now_ms))
		return;
	if (!may_quarantine(farm)) {
		backend_count(b, BACKEND_COUNT_eject_spared, 1);
		return;
	}
	health_note_sick(&b->health, &farm->policy, (unsigned)o->stage, now_ms,
			 random);
}

/*
 * Before the greeting, weir has said nothing and it is about weir.  After it,
 * the reply may be to the client's EHLO name: the probe, which says weir's
 * own, shall tell.
 */
static void apply_misconf(struct farm *farm, struct backend *b,
			  const struct balancer_outcome *o, unsigned voters,
			  int64_t now_ms)
{
	if (o->stage <= BUSY_STAGE_GREET ||
	    (!farm->policy.probe && voters >= HEALTH_VOTERS))
		health_note_misconf(&b->health, &farm->policy, now_ms);
	else
		health_probe_soon(&b->health, now_ms);
}

/* What the average of errors is raised by; 0: it is not. */
static unsigned error_shift(const struct balancer_outcome *o)
{
	if (is_hard(o))
		return UP_SHIFT;
	switch (o->class) {
	case BUSY_BUSY:
	case BUSY_CAP:
	case BUSY_SICK:
		return UP_SHIFT;
	case BUSY_MAYBE:
		return UP_SHIFT_HALF;
	case BUSY_OK:
	case BUSY_DRAIN:
	case BUSY_MISCONF:
	case BUSY_SESSION:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	return 0;
}

static uint8_t vote_kind(enum busy_class class)
{
	return (uint8_t)(class + 1);
}

/*
 * Raise the error average, by a vote where a client may be the cause.
 * Returns how many sources have voted so, or 0 if this vote does not count.
 */
static unsigned blame(struct backend *b, const struct balancer_outcome *o,
		      int64_t now_ms)
{
	unsigned shift = error_shift(o);
	unsigned voters = 1;

	if (!is_hard(o)) {
		uint32_t error = backend_error(b, now_ms);
		uint32_t step = shift > 0 ? (BACKEND_ERROR_ONE - error) >> shift
					  : 0;

		voters = health_vote(&b->health, vote_kind(o->class), o->source,
				     (uint16_t)step, now_ms);
	}
	if (voters == 0)
		backend_count(b, BACKEND_COUNT_votes_dropped, 1);
	else if (shift > 0)
		(void)backend_error_up(b, shift, now_ms);
	return voters;
}

/* Behind both mutexes. */
static void apply(struct farm *farm, struct backend *b,
		  const struct balancer_outcome *o, unsigned voters,
		  int64_t now_ms, uint64_t random)
{
	if (is_hard(o)) {
		apply_failure(farm, b, o, now_ms, random);
		return;
	}
	switch (o->class) {
	case BUSY_BUSY:
		apply_busy(farm, b, o, voters, now_ms);
		return;
	case BUSY_DRAIN:
		health_note_drain(&b->health, &farm->policy, now_ms);
		return;
	case BUSY_SICK:
		apply_sick(farm, b, o, voters, now_ms, random);
		return;
	case BUSY_MISCONF:
		apply_misconf(farm, b, o, voters, now_ms);
		return;
	case BUSY_MAYBE:
	case BUSY_CAP: /* for the learner of limits, when there is one */
	case BUSY_OK:
	case BUSY_SESSION:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		return;
	}
}

/* An answer that says nothing bad of the backend. */
static bool is_good(const struct balancer_outcome *o)
{
	return !is_hard(o) && (o->class == BUSY_OK || o->class == BUSY_POLICY);
}

/* One that says nothing at all: a backend may close an idle connection. */
static bool is_moot(const struct balancer_outcome *o)
{
	if (is_hard(o))
		return o->stage == BUSY_STAGE_IDLE;
	return o->class == BUSY_SESSION;
}

void balancer_note(struct farm *farm, struct balancer_slot *slot,
		   const struct balancer_outcome *outcome, int64_t now_ms,
		   uint64_t random, struct backend_change *change)
{
	struct backend *b = backend_of(farm, slot);

	assert(outcome->failure < BALANCER_FAILURE_COUNT);
	assert(outcome->class < BUSY_CLASSES);
	assert(outcome->stage < BUSY_STAGES);

	change->changed = false;
	count(b, outcome);
	if (is_moot(outcome))
		return;
	if (is_good(outcome)) {
		note_good(b, slot, outcome, now_ms, change);
		return;
	}
	pthread_mutex_lock(&b->mutex);
	pthread_mutex_lock(&farm->mutex);
	enum health_state before = b->health.state;

	health_tick(&b->health, now_ms);
	unsigned voters = blame(b, outcome, now_ms);

	if (slot->epoch == b->health.epoch)
		apply(farm, b, outcome, voters, now_ms, random);
	backend_settle(b, before, change);
	pthread_mutex_unlock(&farm->mutex);
	pthread_mutex_unlock(&b->mutex);
}

void balancer_unnote(struct farm *farm, const struct balancer_slot *slot,
		     const struct balancer_outcome *outcome, int64_t now_ms)
{
	assert(slot->index < FARM_BACKENDS_MAX);

	struct backend *b = &farm->backends[slot->index];

	if (is_hard(outcome))
		return; /* no client's doing */
	pthread_mutex_lock(&b->mutex);
	if (atomic_load(&b->generation) == slot->generation) {
		uint16_t step = health_unvote(
			&b->health, vote_kind(outcome->class), outcome->source);

		backend_error_undo(b, step, now_ms);
	}
	pthread_mutex_unlock(&b->mutex);
}

/* --- probes and time --- */

static bool is_probed(const struct backend *b)
{
	return atomic_load(&b->place) == BACKEND_LIVE &&
	       backend_admin_state(b) != BACKEND_ADMIN_MAINT;
}

static bool claim(struct farm *farm, struct backend *b, int64_t now_ms)
{
	bool claimed = false;

	pthread_mutex_lock(&b->mutex);
	if (health_probe_claim(&b->health, &farm->policy, now_ms)) {
		claimed = take_slot(b);
		if (!claimed)
			health_probe_cancel(&b->health, &farm->policy, now_ms);
	}
	backend_publish(b);
	pthread_mutex_unlock(&b->mutex);
	return claimed;
}

bool balancer_probe_claim(struct farm *farm, int64_t now_ms,
			  struct balancer_slot *slot)
{
	uint16_t n = farm_size(farm);

	if (!farm->policy.probe)
		return false;
	for (uint16_t i = 0; i < n; i++) {
		struct backend *b = &farm->backends[i];

		if (!is_probed(b) || now_ms < atomic_load(&b->probe_at_ms))
			continue;
		if (!claim(farm, b, now_ms))
			continue;
		*slot = (struct balancer_slot){
			.index = i,
			.generation = atomic_load(&b->generation),
			.epoch = atomic_load(&b->epoch),
		};
		return true;
	}
	return false;
}

/* It got no greeting: with sessions that are answered it is full, not dead. */
static bool is_full_rather(const struct farm *farm, const struct backend *b,
			   const struct probe_report *report, int64_t now_ms)
{
	int64_t answered = atomic_load(&b->answered_ms);

	return (report->failed == PROBE_STEP_CONNECT ||
		report->failed == PROBE_STEP_GREETING) &&
	       report->outcome != PROBE_NOT_SMTP &&
	       atomic_load(&b->inflight) > 1 && answered != -1 &&
	       now_ms - answered <= farm->policy.interval_ms;
}

static void learn_ext(struct backend *b, const struct probe_report *report)
{
	if (!report->ehlo_known)
		return;
	atomic_store(&b->ext, report->ext);
	atomic_store(&b->size, report->size);
	atomic_store(&b->ext_known, true);
}

/* What a probe was told counts as one source's vote. */
static void apply_probe_vote(struct farm *farm, struct backend *b,
			     const struct probe_report *report, int64_t now_ms,
			     uint64_t random)
{
	struct balancer_outcome o = {
		.failure = BALANCER_REPLIED,
		.class = report->class,
		.stage = report->outcome == PROBE_MAIL_BUSY ? BUSY_STAGE_MAIL
							    : BUSY_STAGE_EHLO,
		.source = PROBE_SOURCE,
	};

	if (report->code < 400 || (o.class != BUSY_BUSY &&
				   o.class != BUSY_CAP && o.class != BUSY_SICK))
		return;
	apply(farm, b, &o, blame(b, &o, now_ms), now_ms, random);
}

void balancer_probe_done(struct farm *farm, const struct balancer_slot *slot,
			 const struct probe_report *report, int64_t now_ms,
			 uint64_t random, struct backend_change *change)
{
	struct backend *b = backend_of(farm, slot);

	change->changed = false;
	pthread_mutex_lock(&b->mutex);
	pthread_mutex_lock(&farm->mutex);
	enum health_state before = b->health.state;

	health_tick(&b->health, now_ms);
	if (report->outcome == PROBE_ABANDONED) {
		health_probe_cancel(&b->health, &farm->policy, now_ms);
	} else {
		enum health_probe verdict = probe_verdict(report);

		if (verdict == HEALTH_PROBE_FAILED &&
		    is_full_rather(farm, b, report, now_ms))
			verdict = HEALTH_PROBE_BUSY;
		b->report = *report;
		learn_ext(b, report);
		backend_count(b,
			      verdict == HEALTH_PROBE_PASSED ||
					      verdict == HEALTH_PROBE_BUSY
				      ? BACKEND_COUNT_probes_ok
				      : BACKEND_COUNT_probes_failed,
			      1);
		health_note_probe(&b->health, &farm->policy, verdict, now_ms,
				  random);
		apply_probe_vote(farm, b, report, now_ms, random);
	}
	backend_settle(b, before, change);
	pthread_mutex_unlock(&farm->mutex);
	pthread_mutex_unlock(&b->mutex);
	give_back(b);
}

int64_t balancer_due_ms(const struct farm *farm)
{
	int64_t due = INT64_MAX;
	uint16_t n = farm_size(farm);

	for (uint16_t i = 0; i < n; i++) {
		const struct backend *b = &farm->backends[i];
		int64_t until = atomic_load(&b->until_ms);
		int64_t probe = atomic_load(&b->probe_at_ms);

		if (atomic_load(&b->place) != BACKEND_LIVE)
			continue;
		if (until != 0 && until < due)
			due = until;
		if (farm->policy.probe && is_probed(b) && probe < due)
			due = probe;
	}
	return due;
}

bool balancer_tick(struct farm *farm, int64_t now_ms,
		   struct backend_change *change)
{
	uint16_t n = farm_size(farm);

	change->changed = false;
	for (uint16_t i = 0; i < n && !change->changed; i++) {
		struct backend *b = &farm->backends[i];

		if (atomic_load(&b->place) != BACKEND_LIVE ||
		    !is_over(b, now_ms))
			continue;
		pthread_mutex_lock(&b->mutex);
		enum health_state before = b->health.state;

		health_tick(&b->health, now_ms);
		backend_settle(b, before, change);
		pthread_mutex_unlock(&b->mutex);
	}
	return change->changed;
}

/* --- words --- */

const char *balancer_verdict_name(enum balancer_verdict verdict)
{
	assert(verdict < BALANCER_VERDICT_COUNT);
	return verdict_words[verdict].name;
}

const char *balancer_verdict_help(enum balancer_verdict verdict)
{
	assert(verdict < BALANCER_VERDICT_COUNT);
	return verdict_words[verdict].help;
}

const char *balancer_failure_name(enum balancer_failure failure)
{
	assert(failure < BALANCER_FAILURE_COUNT);
	return failure_words[failure];
}
