#ifndef HEALTH_HEALTH_H
#define HEALTH_HEALTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The verdict on one backend, from the outcomes of its probes and of live
 * sessions.
 *
 * Pure: no I/O, no clock, no allocation, no lock.  One owner: the backend it
 * is embedded in, behind that backend's mutex.  now_ms is monotonic and never
 * negative; random is 64 fresh random bits.
 *
 *	            probe passed, or accepted
 *	UNKNOWN ------------------------------------------> UP
 *	UP -- `fall` probes failed in a row --------------> DOWN
 *	DOWN, MISCONF -- `rise` probes passed in a row ---> UP
 *	any -- it says that we are misconfigured ---------> MISCONF
 *	UP -- it says that it is going away --------------> DRAIN
 *	DRAIN -- a probe passed --------------------------> UP
 *	UP -- busy: 3 sources or one strong sign; refused > BUSY
 *	BUSY -- until_ms is over -------------------------> UP
 *	UP -- `passive_fall` hard failures in a row ------> EJECTED
 *	UP -- sicker than its peers ----------------------> EJECTED
 *	EJECTED -- until_ms is over ----------------------> HALF_OPEN
 *	HALF_OPEN -- a session succeeded, or 2 probes ----> UP
 *	HALF_OPEN -- a hard failure ----------------------> EJECTED, longer
 *
 * Busy is alive: a probe that is answered "busy" is never a failure.  UNKNOWN
 * takes sessions, and one failed probe is enough to bring it DOWN: nothing
 * vouches for it yet.  Without probes (policy.probe false), DOWN is never
 * entered, and DRAIN and MISCONF end as EJECTED does.
 */

/*	STATE(NAME, name, help) */
#define HEALTH_STATES(STATE)                                                   \
	STATE(UNKNOWN, unknown, "not yet asked; takes sessions")               \
	STATE(UP, up, "takes sessions")                                        \
	STATE(BUSY, busy, "alive; takes none until the hold-off is over")      \
	STATE(HALF_OPEN, half_open, "back after an ejection: one at a time")   \
	STATE(DRAIN, drain,                                                    \
	      "it says it is going away; none until a probe passes")           \
	STATE(EJECTED, ejected, "failed live sessions; none for a time")       \
	STATE(DOWN, down, "fails its probes")                                  \
	STATE(MISCONF, misconf,                                                \
	      "it refuses weir itself: look at both configurations")

#define HEALTH_STATE_ENUM(NAME, name, help) HEALTH_##NAME,
enum health_state { HEALTH_STATES(HEALTH_STATE_ENUM) HEALTH_STATE_COUNT };
#undef HEALTH_STATE_ENUM

/*	WHY(NAME, name, help): the reason of a change */
#define HEALTH_WHYS(WHY)                                                       \
	WHY(START, start, "just added")                                        \
	WHY(ADMIN, admin, "an operator said so")                               \
	WHY(PROBE_OK, probe_ok, "enough probes passed")                        \
	WHY(PROBE_FAILED, probe_failed, "too many probes failed in a row")     \
	WHY(ACCEPTED, accepted, "a session succeeded")                         \
	WHY(BUSY_VOTES, busy_votes, "busy to three sources")                   \
	WHY(BUSY_STRONG, busy_strong, "busy in words that leave no doubt")     \
	WHY(RESOURCES, resources, "short of disk or memory for mail")          \
	WHY(REFUSED, refused, "refused a connection")                          \
	WHY(SAID_DRAIN, said_drain, "says it is going away")                   \
	WHY(SAID_MISCONF, said_misconf, "refuses weir itself")                 \
	WHY(FAILURES, failures, "hard failures in a row")                      \
	WHY(SICK, sick, "more local faults than its peers")                    \
	WHY(TRIAL_FAILED, trial_failed, "failed again at its first session")   \
	WHY(TIME, time, "its time is over")

#define HEALTH_WHY_ENUM(NAME, name, help) HEALTH_WHY_##NAME,
enum health_why { HEALTH_WHYS(HEALTH_WHY_ENUM) HEALTH_WHY_COUNT };
#undef HEALTH_WHY_ENUM

/* All in ms unless their names say otherwise. */
struct health_policy {
	bool probe; /* false: passive verdicts only */
	int64_t interval_ms;
	int64_t down_interval_ms; /* of one that is not UP */
	unsigned rise;            /* probes in a row, 1..64 */
	unsigned fall;            /* probes in a row, 1..64 */
	unsigned passive_fall;    /* hard failures in a row, 1 or more */
	int64_t eject_ms;         /* the first time; doubles */
	int64_t eject_max_ms;
	unsigned max_ejected_percent; /* of the farm, 0..100 */
	int64_t busy_hold_ms;         /* the first time; doubles */
	int64_t busy_hold_max_ms;
	int64_t cooldown_ms; /* short of resources; doubles */
	int64_t cooldown_max_ms;
};

/*
 * 10 s, 2 s, rise 2, fall 3, passive_fall 3, 5 s to 300 s, 50 %, 1 s to 15 s,
 * 5 s to 60 s; with probes.
 */
struct health_policy health_policy_default(void);

enum {
	HEALTH_VOTES_MAX = 16,
	HEALTH_VOTE_MS = 10000, /* one vote per source and kind in this */
	HEALTH_VOTE_WINDOW_MS = 60000, /* votes count for so long */
	HEALTH_VOTERS = 3,             /* sources that change a state */
	HEALTH_HISTORY_MAX = 64,
	HEALTH_HALF_OPEN_RISE = 2, /* probes that end HALF_OPEN */
};

/* What one probe has shown. */
enum health_probe {
	HEALTH_PROBE_PASSED,
	HEALTH_PROBE_BUSY, /* alive */
	HEALTH_PROBE_DRAIN,
	HEALTH_PROBE_MISCONF,
	HEALTH_PROBE_FAILED,
};

/* A vote of one source; step is what it added to the error average. */
struct health_vote {
	int64_t at_ms;
	uint64_t source;
	uint8_t kind; /* the caller's, not 0; 0: an empty place */
	uint16_t step;
};

/* Read freely (behind the mutex); write only by the functions below. */
struct health {
	enum health_state state;
	enum health_why why; /* of the last change */
	int64_t since_ms;    /* the last change */
	int64_t until_ms;    /* BUSY, EJECTED, ...: its end; else 0 */
	uint32_t epoch;      /* grows when older sessions stop counting */

	/* probes */
	uint64_t history;      /* 1: alive; bit 0 is the newest */
	unsigned seen;         /* valid bits in history */
	unsigned probe_passes; /* in a row */
	unsigned probe_fails;  /* in a row */
	bool probing;          /* one is under way */
	int64_t probe_at_ms;   /* when the next is due */

	/* live sessions */
	unsigned fails;      /* hard failures in a row */
	unsigned fail_depth; /* the deepest stage of those */
	unsigned ejections;  /* k of eject_ms * 2^k, for the next time */
	int64_t back_ms;     /* when it last came back into service */
	unsigned hold_level; /* of busy_hold_ms * 2^level, the last one */
	unsigned cool_level;
	int64_t hold_end_ms;
	int64_t cool_end_ms;
	struct health_vote votes[HEALTH_VOTES_MAX];
	unsigned vote_next;
};

/* UNKNOWN; the first probe is due at once. */
void health_begin(struct health *h, int64_t now_ms);

/* End what is over: BUSY, EJECTED.  Call before asking for the state. */
void health_tick(struct health *h, int64_t now_ms);

/* Does this state take a session (HALF_OPEN: one)? */
bool health_admits(enum health_state state);

/* Is it of full use to the farm: UNKNOWN, UP or BUSY? */
bool health_in_rotation(enum health_state state);

/*
 * Is a probe due?  If so it counts as under way, until health_note_probe() or
 * health_probe_cancel().
 */
bool health_probe_claim(struct health *h, const struct health_policy *policy,
			int64_t now_ms);
/* Not done after all: due again after interval_ms. */
void health_probe_cancel(struct health *h, const struct health_policy *policy,
			 int64_t now_ms);

/* Something looks wrong: let the next probe be due at once. */
void health_probe_soon(struct health *h, int64_t now_ms);

/* A probe ended. */
void health_note_probe(struct health *h, const struct health_policy *policy,
		       enum health_probe outcome, int64_t now_ms,
		       uint64_t random);

/*
 * A live session succeeded at a stage of this depth (deeper: larger).  It
 * clears failures at its own depth and above; of deeper ones it says nothing.
 */
void health_note_success(struct health *h, unsigned depth, int64_t now_ms);

/*
 * A hard failure: no connection, or one that broke without a reply.
 * may_eject: the farm can do without (balancer.h).  random: for the jitter.
 */
void health_note_failure(struct health *h, const struct health_policy *policy,
			 unsigned depth, bool may_eject, int64_t now_ms,
			 uint64_t random);

/* It refused a connection: hold it off (after health_note_failure()). */
void health_note_refused(struct health *h, const struct health_policy *policy,
			 int64_t now_ms);

/* Busy; why is BUSY_VOTES, BUSY_STRONG or, for a cooldown, RESOURCES. */
void health_note_busy(struct health *h, const struct health_policy *policy,
		      enum health_why why, int64_t now_ms);

/* It is going away. */
void health_note_drain(struct health *h, const struct health_policy *policy,
		       int64_t now_ms);

/* It refuses weir itself. */
void health_note_misconf(struct health *h, const struct health_policy *policy,
			 int64_t now_ms);

/* More local faults than its peers, and the farm can do without it. */
void health_note_sick(struct health *h, const struct health_policy *policy,
		      unsigned depth, int64_t now_ms, uint64_t random);

/*
 * One vote of a source (a hash of the client's prefix) of one kind (not 0).
 * Returns 0 if that source cast one of this kind within HEALTH_VOTE_MS: it
 * does not count.  Else how many different sources did within
 * HEALTH_VOTE_WINDOW_MS, this one included.
 */
unsigned health_vote(struct health *h, uint8_t kind, uint64_t source,
		     uint16_t step, int64_t now_ms);

/* Take back the newest vote of this source and kind: its step, or 0. */
uint16_t health_unvote(struct health *h, uint8_t kind, uint64_t source);

/* True if health_note_success() would change nothing at any depth. */
bool health_is_calm(const struct health *h);

/* Words.  NUL-terminated, never NULL. */
const char *health_state_name(enum health_state state);
const char *health_state_help(enum health_state state);
const char *health_why_name(enum health_why why);
const char *health_why_help(enum health_why why);

#endif
