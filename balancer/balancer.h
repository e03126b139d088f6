#ifndef BALANCER_BALANCER_H
#define BALANCER_BALANCER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/backend.h"
#include "balancer/busy.h"
#include "proxy/smtp.h"

/*
 * The choice of a backend, and what is learned from the outcome.
 *
 * Pure: no I/O, no clock.  Any thread may call anything here at any time.
 * Slots are counted exactly: no interleaving of threads lets a backend have
 * more than max_sessions, or take an ordinary session beyond its limit.  now_ms is monotonic; random is 64 fresh random bits.
 *
 * A session's way:
 *
 *	balancer_reserve()  takes a slot
 *	balancer_note()     once for each outcome worth knowing, any number
 *	balancer_release()  gives the slot back, always, exactly once
 *
 * Score of a backend with room (the least wins, ties at random):
 *
 *	(inflight + 1) / (weight * limit) * (1 + 50 * error)
 *
 * limit being what was learned of the backend (limit.h).  When no backend has
 * an ordinary slot free, one that may be probed takes a session above its
 * limit: that is how limits grow, unseen by clients.
 *
 * error is the moving average of failed outcomes.  A backend that fails fast
 * looks idle; without the penalty it would draw all the load.
 */

enum {
	BALANCER_TRIED_MAX = 16, /* backends one transaction may have tried */
	BALANCER_SCAN_MAX = 64,  /* above: best of three at random */
	BALANCER_PENALTY = 50,
};

/* A slot in use: the session keeps it from reserve to release. */
struct balancer_slot {
	uint16_t index;
	bool trial;    /* the one session of a HALF_OPEN backend */
	uint8_t phase; /* enum limit_phase: balancer_note() moves it */
	bool kept;     /* idle: see balancer_keep() */
	bool guard;    /* of a probe: it is to ask whether the backend relays
			  for strangers */
	uint16_t introduction; /* of a probe: the backend's, when it began */
	uint32_t generation;
	uint32_t epoch;
};

/* What the transaction needs. */
struct balancer_need {
	unsigned ext;  /* enum smtp_ext bits of MAIL's parameters */
	unsigned auth; /* enum smtp_auth bits of the mechanisms wanted */
	uint64_t size; /* of SIZE=; 0: not said */
	bool stranger; /* nobody said that it may relay: see farm_guard */
	bool untold;   /* nobody can say XCLIENT: the client speaks itself */
	unsigned tried_count;
	uint16_t tried[BALANCER_TRIED_MAX]; /* indices, not to be tried again */
};

/*	VERDICT(NAME, name, help) */
#define BALANCER_VERDICTS(VERDICT)                                             \
	VERDICT(PICKED, picked, "a slot was taken")                            \
	VERDICT(ALL_TRIED, all_tried, "every backend that could was tried")    \
	VERDICT(ALL_FULL, all_full,                                            \
		"all slots are in use, or held off as busy")                   \
	VERDICT(ALL_DOWN, all_down, "no backend is in service")                \
	VERDICT(NO_EXTENSION, no_extension,                                    \
		"none offers what the message needs")                          \
	VERDICT(UNCHECKED, unchecked,                                          \
		"not yet known whether a backend relays for strangers")        \
	VERDICT(ALL_OPEN, all_open,                                            \
		"every backend that could relays for strangers")               \
	VERDICT(EMPTY, empty, "the farm has no backend")

#define BALANCER_VERDICT_ENUM(NAME, name, help) BALANCER_##NAME,
enum balancer_verdict {
	BALANCER_VERDICTS(BALANCER_VERDICT_ENUM) BALANCER_VERDICT_COUNT
};
#undef BALANCER_VERDICT_ENUM

/* How an attempt failed when no reply came of it. */
enum balancer_failure {
	BALANCER_REPLIED,     /* it did not: a reply was read, .class says */
	BALANCER_REFUSED,     /* the connect */
	BALANCER_TIMEOUT,     /* the connect */
	BALANCER_RESET,       /* the connect, or before the greeting */
	BALANCER_UNREACHABLE, /* the connect: no route, or any other error */
	BALANCER_SILENT,      /* connected, no greeting in time */
	BALANCER_CLOSED,      /* end of stream before the greeting */
	BALANCER_LOST,        /* end of stream or reset in mid-dialogue */
	BALANCER_STALLED,     /* no reply in time in mid-dialogue */
	BALANCER_GARBLED,     /* what came is no SMTP reply */
	BALANCER_INSECURE,    /* the TLS handshake failed */
	BALANCER_FAILURE_COUNT,
};

/* What was seen of a backend. */
struct balancer_outcome {
	enum balancer_failure failure;
	enum busy_class class
		; /* of the reply; without one, what silence means */
	enum busy_stage stage;
	bool strong;      /* X.3.1, or out of resources by rule R6: one is
			    enough (not if the client declared a SIZE above
			    a quarter of the backend's).
			    A silent greeting is so without being told */
	uint64_t source;  /* a hash of the client's /32 or /64 */
	int64_t greet_ms; /* GREET and OK: from the connect's begin to 220; -1:
			     the client is in it, its name is looked up */
};

/*
 * Take a slot of the best backend that is LIVE, ready, healthy, has room,
 * offers what is needed, is not kept from strangers if this is one, and was
 * not tried.  PICKED: *slot is to be given
 * back by balancer_release().  Anything else: why there is none, *slot is
 * untouched.  A change that the passing of time brought is told in *change
 * (never NULL).
 */
enum balancer_verdict balancer_reserve(struct farm *farm,
				       const struct balancer_need *need,
				       int64_t now_ms, uint64_t random,
				       struct balancer_slot *slot,
				       struct backend_change *change);

/*
 * What balancer_reserve() would say now, PICKED for a slot that could be had
 * within the limits; nothing is taken.
 */
enum balancer_verdict balancer_foresee(struct farm *farm,
				       const struct balancer_need *need,
				       int64_t now_ms);

/* Give the slot back, when the connection is gone.  Notes come before. */
void balancer_release(struct farm *farm, const struct balancer_slot *slot);

/*
 * How long to wait for this backend's greeting before the attempt is given up
 * as refused (note it as SILENT); at most most_ms.
 */
int64_t balancer_patience_ms(struct farm *farm,
			     const struct balancer_slot *slot, int64_t most_ms);

/*
 * After balancer_reserve() found no slot at now_ms: when the passing of time
 * alone may change that (a probe above a limit is due, a hold-off ends), which
 * is later than now_ms; INT64_MAX: never.
 */
int64_t balancer_retry_ms(struct farm *farm, int64_t now_ms);

/*
 * Kept connections: a slot whose session is over and whose connection stays
 * open for the next one.  keep: true, and it counts as idle; false: so much of
 * its backend's slots (percent, 0..100, of the learned limit, rounded up) is
 * idle already, or it may take no session.
 * resume: it serves again.  Releasing a kept slot ends its being kept.
 */
bool balancer_keep(struct farm *farm, struct balancer_slot *slot,
		   uint32_t percent);
void balancer_resume(struct farm *farm, struct balancer_slot *slot);

/*
 * Does this slot's backend offer what is needed, and may this client have it?
 * For a session that has a connection and begins another transaction.
 */
bool balancer_suits(struct farm *farm, const struct balancer_slot *slot,
		    const struct balancer_need *need);

/*
 * May this slot's backend take such a session on a connection that stands
 * (LIVE, ready, healthy, suited, not tried)?  Then its score, the least being
 * the best; else UINT64_MAX.
 */
uint64_t balancer_score(struct farm *farm, const struct balancer_slot *slot,
			const struct balancer_need *need, int64_t now_ms);

/*
 * Tell what came of it: each final reply of the backend, the greeting and
 * EHLO included, and the end of a connection that was not asked for.  Does
 * for health what the class of the reply asks for:
 *
 *  - the limit: OK at the greeting (greet_ms); BUSY, CAP and BUSY? before
 *    MAIL, CAP at MAIL; no answer to the connect and no greeting, if others
 *    were greeted.  BUSY at MAIL or later cools.  slot->phase moves;
 *  - error average: up for hard failures, SICK, BUSY, CAP, BUSY? (half), but
 *    not for these before MAIL from a backend that has sessions of ours: it is
 *    full; down for OK and POLICY at MAIL and at the end of data;
 *  - BUSY at MAIL or later is a cooldown, at 3 sources or one strong sign;
 *    before it, these hold off a backend that has greeted none of ours;
 *    refused connections hold off at once;
 *  - DRAIN at once; MISCONF at the greeting at once, later only by a probe
 *    (what it says then may be due to the client's EHLO name); SICK by 3
 *    sources, if it is worse than its peers; hard failures in a row.
 *
 * One vote per source and class in 10 s (the limit takes every one of before
 * the greeting was read); POLICY never counts against it.
 * Ejections leave at least half of the farm, rounded up, in rotation.
 * Sessions that were reserved before the last ejection or fall change no state:
 * only counters and the average.  *change (never NULL) says what changed.
 */
void balancer_note(struct farm *farm, struct balancer_slot *slot,
		   const struct balancer_outcome *outcome, int64_t now_ms,
		   uint64_t random, struct backend_change *change);

/*
 * The second backend said the same to the same client: it was not the first
 * one's fault.  Takes the vote and its penalty back, and what it cooled.
 */
void balancer_unnote(struct farm *farm, const struct balancer_slot *slot,
		     const struct balancer_outcome *outcome, int64_t now_ms);

/*
 * Could a session be given to any backend now, were it of no stranger?  *why
 * (may be NULL) says what balancer_reserve() would.  *since_ms (may be NULL):
 * since when there has been no room without a break, as far as anybody asked;
 * or now_ms.
 */
bool balancer_available(struct farm *farm, int64_t now_ms,
			enum balancer_verdict *why, int64_t *since_ms);

/*
 * What weir may offer in EHLO: the extensions that every backend in use
 * offers (LIVE and not in maint; those not asked yet don't count), the
 * mechanisms of AUTH likewise, and the smallest SIZE.  Nothing if nothing is
 * known.
 */
struct smtp_ehlo balancer_offer(const struct farm *farm);

/*
 * A backend whose probe is due, if any: it is claimed for the caller, and one
 * of its ordinary slots is taken.  Ends by balancer_probe_done(), always,
 * exactly once; that gives the slot back.  A backend without a free slot is
 * not probed: its sessions vouch for it.
 *
 * slot->guard: the probe is to ask whether the backend relays for strangers
 * (probe_order.guard).  That is when the backend takes weir for the client and
 * the farm has a guard: until there is an answer, then hourly.  For that alone
 * a farm is probed that is not probed otherwise; health then learns nothing.
 */
bool balancer_probe_claim(struct farm *farm, int64_t now_ms,
			  struct balancer_slot *slot);

/* It was greeted, greet_ms after the connect's begin; at most once. */
void balancer_probe_greeted(struct farm *farm, struct balancer_slot *slot,
			    int64_t greet_ms, int64_t now_ms);

/*
 * The probe ended.  PROBE_ABANDONED: without a verdict.  report->tls_failed:
 * without one as well; TLS is let be for a time, and the next probe is due at
 * once, in clear.  change->news is always written.
 */
void balancer_probe_done(struct farm *farm, const struct balancer_slot *slot,
			 const struct probe_report *report, int64_t now_ms,
			 uint64_t random, struct backend_change *change);

/*
 * The next time at which balancer_tick() or balancer_probe_claim() has
 * something to do; INT64_MAX if none.
 */
int64_t balancer_due_ms(const struct farm *farm);

/*
 * End one hold-off or ejection whose time is over; false if there is none.
 * To be called until false, so that each change gets its line.
 * balancer_reserve() does not depend on it.
 */
bool balancer_tick(struct farm *farm, int64_t now_ms,
		   struct backend_change *change);

/* Words.  NUL-terminated, never NULL. */
const char *balancer_verdict_name(enum balancer_verdict verdict);
const char *balancer_verdict_help(enum balancer_verdict verdict);
const char *balancer_failure_name(enum balancer_failure failure);

#endif
