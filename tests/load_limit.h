#ifndef TESTS_LOAD_LIMIT_H
#define TESTS_LOAD_LIMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * How many sessions at once does a server take?  What --find-limit of
 * weir-load offers next, and what it makes of what it saw.
 *
 * Pure.  The search doubles from one session until the server refuses or is
 * slow, then halves the gap between what it takes and what it does not.  A
 * single failure or one slow step may be chance: it is offered once more.
 *
 *   first ok  -> band is known -> double
 *   taken     -> double, or halve the gap
 *   doubtful  -> the same once more; twice doubtful is a no
 *   no        -> halve the gap
 *   gap small enough, or the most that is allowed is taken -> over
 */

enum {
	/* Failures of one step after which more would only do harm. */
	LOAD_LIMIT_SURE = 3,
	/* The gap may be so small a part of what is taken. */
	LOAD_LIMIT_REFUSED_PART = 64,
	LOAD_LIMIT_SLOW_PART = 16, /* latencies differ from step to step */
	/* The most steps of any search: 20 doublings, 20 halvings, twice. */
	LOAD_LIMIT_STEPS_MAX = 84,
	LOAD_LIMIT_SESSIONS_MAX = 1000000,
	LOAD_LIMIT_SAMPLES = 50, /* sessions a step should see, or 2 each */
};

enum load_limit_verdict {
	LOAD_LIMIT_DOUBTFUL, /* is offered once more */
	LOAD_LIMIT_TAKEN,
	LOAD_LIMIT_REFUSED, /* or cut, or not answered */
	LOAD_LIMIT_SLOW,
};

struct load_limit_config {
	uint64_t sessions_max; /* 1..LOAD_LIMIT_SESSIONS_MAX */
	/* p99 may be so many times the median of one session alone ... */
	double band_factor;     /* 1 or more */
	uint64_t band_extra_us; /* ... and so much more */
};

/* What was seen while so many sessions were open at once. */
struct load_limit_sample {
	uint64_t sessions;
	uint64_t ended; /* in good order */
	uint64_t failed;
	uint64_t late;   /* open beyond the band, and all the step long */
	uint64_t p50_us; /* of those that ended in good order */
	uint64_t p99_us;
	double rate; /* messages a second */
};

struct load_limit {
	struct load_limit_config config;
	uint64_t offer; /* sessions to be tried now; 0: the search is over */
	bool again;     /* they were tried before, with a doubtful result */
	uint64_t good;  /* the most that were taken; 0: not one */
	uint64_t bad;   /* the fewest that were not; 0: none yet */
	enum load_limit_verdict why; /* bad is not 0: REFUSED or SLOW */
	uint64_t alone_us; /* the median of one session alone; 0: unknown */
	uint64_t band_us;  /* 0: not yet known */
};

void load_limit_init(struct load_limit *limit,
		     const struct load_limit_config *config);

/* True if a step need not go on: the answer is no. */
bool load_limit_is_sure(const struct load_limit_sample *sample);

/* True if it has seen enough sessions for its percentiles to mean something. */
bool load_limit_is_enough(const struct load_limit_sample *sample);

/* Judge a step of limit->offer sessions, and choose the next offer. */
enum load_limit_verdict load_limit_note(struct load_limit *limit,
					const struct load_limit_sample *sample);

/*
 * The fewest sessions that bring at least 95 % of the best rate among the
 * samples up to `good` sessions: beyond it they wait.  0 if there is none.
 */
uint64_t load_limit_knee(const struct load_limit_sample *samples, size_t count,
			 uint64_t good);

/*
 * How many sessions the server works on at once, when up to `good` are open:
 * the best rate, in sessions a second, times what one alone takes (Little's
 * law); what is open beyond that waits.  At least 1, or 0 if nothing is known.
 */
uint64_t load_limit_at_work(const struct load_limit_sample *samples,
			    size_t count, const struct load_limit *limit,
			    uint64_t messages);

#endif
