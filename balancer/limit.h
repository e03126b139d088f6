#ifndef BALANCER_LIMIT_H
#define BALANCER_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * How many sessions a backend takes from us: learned from what it accepts and
 * refuses.
 *
 * A refusal is an exact measurement.  When a backend refuses one session
 * more, the sessions that it has greeted and that are not yet closed (n) are
 * our share of it at that moment.  So the limit goes to n, not to a fraction
 * of itself, and any number of refusals at once say the same.  It grows only
 * when more than it allows were accepted, one careful probe at a time: a
 * session above the limit, sent when no backend has an ordinary slot free.
 *
 * Pure: no I/O, no clock, no allocation, no lock.  One owner: the backend it
 * is embedded in, behind that backend's mutex.  now_ms is monotonic and never
 * negative; random is 64 fresh random bits.
 */

/* What each session that was dispatched is to the limit; the caller keeps it. */
enum limit_phase {
	LIMIT_OUT,     /* not counted: refused, failed or closed */
	LIMIT_PENDING, /* dispatched, no verdict yet */
	LIMIT_PROBE,   /* the same, above the limit */
	LIMIT_GREETED, /* 220 was read */
};

struct limit_policy {
	int64_t retry_ms;     /* after the first failed probe, about; 1.. */
	int64_t retry_max_ms; /* after many; retry_ms or more */
	uint32_t start;       /* the limit of a backend with no ceiling; 1.. */
};

/* 0.5 s, 10 s, 4. */
struct limit_policy limit_policy_default(void);

/*	EVENT(NAME, name, help): what moved the limit last */
#define LIMIT_EVENTS(EVENT)                                                    \
	EVENT(START, start, "nothing yet: as it began")                        \
	EVENT(GREW, grew, "it accepted more than the limit")                   \
	EVENT(REFUSED, refused, "it refused a session within the limit")       \
	EVENT(MEASURED, measured,                                              \
	      "refused three times, or named a cap: the sessions it has")      \
	EVENT(PROBE_REFUSED, probe_refused,                                    \
	      "it refused one above the limit: that is its size")              \
	EVENT(SLOW, slow, "it greeted late, as one that queues")               \
	EVENT(RECOVERED, recovered,                                            \
	      "quick again after late greetings: back to what it had")         \
	EVENT(COOLED, cooled, "short of resources at MAIL or after a body")    \
	EVENT(RETURNED, returned, "back in service: a quarter of what it had") \
	EVENT(CEILING, ceiling, "max_sessions was set")

#define LIMIT_EVENT_ENUM(NAME, name, help) LIMIT_##NAME,
enum limit_event { LIMIT_EVENTS(LIMIT_EVENT_ENUM) LIMIT_EVENT_COUNT };
#undef LIMIT_EVENT_ENUM

enum {
	LIMIT_STRIKES = 3, /* refusals without an accept between: believed */
	LIMIT_KNOCK_MS = 1000, /* between tries of one that refuses us all */
	LIMIT_EPOCH_MS = 1000,
	LIMIT_COOL_MS = 5000,  /* a cooldown cuts once in this */
	LIMIT_BASE_SLOTS = 10, /* minutes that the baseline looks back */
	LIMIT_BASE_BUCKETS = 24,
	LIMIT_BASE_MIN = 5,       /* greetings, before there is a baseline */
	LIMIT_ALARM_REFUSED = 10, /* at least, before an alarm */
	LIMIT_DOUBT_MS = 500,     /* in which an accept belies a refusal */
	LIMIT_DOUBTS = 8,
	LIMIT_MAX = 1 << 20,
};

/* A refusal that an accept may yet belie; size 0: none, or belied. */
struct limit_doubt {
	uint32_t size; /* sessions that it had at most, and that one */
	int64_t at_ms;
};

/* Read freely (behind the mutex); write only by the functions below. */
struct limit {
	double l;         /* the limit, 1 or more */
	double wall;      /* where the last refusal stood */
	uint32_t n;       /* greeted, not closed */
	uint32_t p;       /* pending, probes among them */
	uint32_t pp;      /* pending probes */
	uint32_t burst;   /* probes allowed at a time */
	uint32_t ceiling; /* max_sessions; LIMIT_MAX: none */
	unsigned strikes; /* refusals with no quick accept between */
	int64_t back_ms;
	int64_t next_probe_ms; /* no probe before this */
	int64_t last_cut_ms;
	int64_t last_cool_ms;
	double cool_from;    /* l before the last cooldown; 0: it moved since */
	unsigned cool_votes; /* for that cooldown, not taken back */
	double measured;     /* n at the last refusal; 0: none yet */
	bool slowed;         /* below that, for late greetings */
	bool shut; /* had none of ours when it refused LIMIT_STRIKES in a row */
	bool half; /* one half-weight refusal is noted */

	/* for `show limits` */
	enum limit_event last; /* what moved l last */
	int64_t last_ms;       /* and when */
	uint64_t accepted, slow, refused, probes, probes_refused, gone;

	/* greeting times, as a histogram of each of the last ten minutes */
	int64_t base_minute;
	uint16_t base[LIMIT_BASE_SLOTS][LIMIT_BASE_BUCKETS];
	uint32_t baseline_ms; /* their tenth percentile; 0: too few yet */

	/* attempts, and refusals below its size, of the minute that runs and
	   the one before; the latest refusals, which may turn out to be such */
	int64_t under_minute;
	uint32_t under[2], under_refused[2];
	struct limit_doubt doubts[LIMIT_DOUBTS];
	unsigned doubt_next;
};

/*
 * ceiling: 1..LIMIT_MAX.  The limit starts there, as the operator vouches for
 * it; with no ceiling (LIMIT_MAX) at policy->start.  Nothing is out.
 */
void limit_begin(struct limit *l, const struct limit_policy *policy,
		 uint32_t ceiling, int64_t now_ms);

/*
 * max_sessions changed.  What is above it comes down; a limit that stood at
 * the old one, or has learned nothing yet, begins at the new one.
 */
void limit_set_ceiling(struct limit *l, const struct limit_policy *policy,
		       uint32_t ceiling, int64_t now_ms);

/* policy->start changed: one that has learned nothing yet begins there. */
void limit_set_start(struct limit *l, const struct limit_policy *policy);

/* Ordinary sessions it takes now: 1 up to the ceiling. */
uint32_t limit_slots(const struct limit *l);

/*
 * Would it take one more, as an ordinary one?  As a probe (the farm being
 * full)?  In all, with n + p below the ceiling.  One that had none of our
 * sessions when it refused LIMIT_STRIKES in a row takes no ordinary ones,
 * whatever its limit, until it takes a probe: every LIMIT_KNOCK_MS or so.
 */
bool limit_admits(const struct limit *l);
bool limit_admits_probe(const struct limit *l, int64_t now_ms);

/* One was sent there; returns its phase: PENDING or PROBE. */
enum limit_phase limit_dispatched(struct limit *l, bool probe);

/*
 * Each returns the session's new phase.  phase is what it had.
 *
 * greeted: 220 after ms milliseconds (from the dispatch; -1: the time is not
 * to be judged); whether that was slow, is decided here.  busy: refused; at once: believed without waiting
 * for strikes (a cap that the backend named).  maybe: refused without a
 * reason: every second one is a refusal, the others only make the next probe
 * wait, if they were one.  gone: it ended without a verdict,
 * or is closed.  An event that does not fit the phase does nothing.
 */
enum limit_phase limit_greeted(struct limit *l,
			       const struct limit_policy *policy,
			       enum limit_phase phase, int64_t ms,
			       int64_t now_ms, uint64_t random);
enum limit_phase limit_busy(struct limit *l, const struct limit_policy *policy,
			    enum limit_phase phase, bool at_once,
			    int64_t now_ms, uint64_t random);
/* As busy, by silence: a queue, that says little of how many it takes. */
enum limit_phase limit_silent(struct limit *l,
			      const struct limit_policy *policy,
			      enum limit_phase phase, int64_t now_ms,
			      uint64_t random);
enum limit_phase limit_maybe(struct limit *l, const struct limit_policy *policy,
			     enum limit_phase phase, int64_t now_ms,
			     uint64_t random);
enum limit_phase limit_gone(struct limit *l, enum limit_phase phase);

/*
 * Short of resources: down to 0.7, once in LIMIT_COOL_MS.  Taken back: if
 * nothing moved the limit since, and each of those who said so took it back.
 */
void limit_cool(struct limit *l, int64_t now_ms);
void limit_uncool(struct limit *l, int64_t now_ms);

/* Back from an ejection or a failure: a quarter, the old limit as the wall. */
void limit_return(struct limit *l, const struct limit_policy *policy,
		  int64_t now_ms);

/* A health check was greeted after ms: seeds the baseline. */
void limit_seed(struct limit *l, int64_t ms, int64_t now_ms);

/*
 * How long to wait for a greeting before the attempt is given up as refused:
 * well beyond what is usual for this backend, 1 s at least, most_ms at most;
 * most_ms while nothing is known, or nothing else is greeted there.
 */
int64_t limit_patience_ms(const struct limit *l, int64_t most_ms);

/* Of the last minutes, one or two: attempts, and those that were refused well
 * below what it has taken. */
struct limit_below {
	uint64_t all, refused;
};
struct limit_below limit_below(const struct limit *l, int64_t now_ms);

/*
 * It refuses more than a tenth of what it is sent, and takes more than it had
 * then right after: slots are not its trouble, and a limit no help.  For
 * people.
 */
bool limit_is_alarmed(const struct limit *l, int64_t now_ms);

/* Words.  NUL-terminated, never NULL. */
const char *limit_event_name(enum limit_event event);
const char *limit_event_help(enum limit_event event);

#endif
