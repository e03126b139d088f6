#ifndef BALANCER_BACKEND_H
#define BALANCER_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "balancer/busy.h"
#include "balancer/limit.h"
#include "health/health.h"
#include "health/probe.h"

/*
 * A backend, and the farm: what all workers know of the servers behind weir.
 *
 * Pure: no I/O, no clock, no allocation.  The caller owns the memory (a
 * struct farm is large: not on the stack).
 *
 * A farm is a fixed array; a backend's index is its name among threads and
 * never moves.  Places are FREE, LIVE or LEAVING:
 *
 *	FREE -- farm_add --> LIVE -- farm_remove --> FREE, generation + 1
 *
 * LEAVING is passed through inside farm_remove(): whoever sees it, leaves the
 * backend alone.
 *
 * Who may touch what:
 *  - `fixed` fields are written by farm_add() before the place is LIVE.  They
 *    may be read by whoever holds a slot of the backend, and by the thread
 *    that adds and removes (one thread does: the one of the control socket);
 *  - atomics may be read by anyone, and written by this module and balancer.c;
 *  - `health`, `limit` and `report` are behind `mutex`: backend_look() copies
 *    them.  Slots are taken and given back behind it too, so that the counts
 *    are exact; who searches reads what is published of them.
 *    Order of locks: a backend's mutex, then the farm's.
 */

enum {
	FARM_BACKENDS_MAX = 256,
	BACKEND_NAME_MAX = 64,    /* octets, the NUL included */
	BACKEND_ADDRESS_MAX = 64, /* text with port, the NUL included */
	BACKEND_RULES_MAX = 16,
	BACKEND_SESSIONS_MAX = LIMIT_MAX, /* this many: no ceiling */
	BACKEND_WEIGHT_MAX = 1000,
	BACKEND_ERROR_ONE = 1 << 16, /* an error average of 1.0 */
	BACKEND_ERROR_HALF_S = 30,
	BACKEND_CLEAR_MS = 600000,  /* in clear after TLS has failed */
	BACKEND_GUARD_MS = 3600000, /* between questions of the relay guard */
	BACKEND_CERT_DAYS = 14,     /* fewer left: that deserves a line, */
	BACKEND_CERT_MS = 86400000, /* once in so long */
};

/* A gauge that has no value now; people see "-". */
#define BACKEND_GAUGE_NONE UINT64_MAX

enum backend_place { BACKEND_FREE, BACKEND_LIVE, BACKEND_LEAVING };

/* What an operator wants of it. */
enum backend_admin {
	BACKEND_READY,
	BACKEND_ADMIN_DRAIN, /* no new sessions; probed */
	BACKEND_ADMIN_MAINT, /* no new sessions; left alone */
	BACKEND_ADMIN_COUNT,
};

/* How it is told who the client is. */
enum backend_identity {
	BACKEND_IDENTITY_NONE,
	BACKEND_IDENTITY_HEADER,   /* a trace field in front of each message */
	BACKEND_IDENTITY_PROXY_V1, /* a PROXY header in front of all else */
	BACKEND_IDENTITY_PROXY_V2,
	BACKEND_IDENTITY_XCLIENT,     /* Postfix's XCLIENT, behind EHLO */
	BACKEND_IDENTITY_TRANSPARENT, /* connects come from its address */
};

/* Does a PROXY header go out in front of all else? */
static inline bool backend_identity_heads(enum backend_identity identity)
{
	return identity == BACKEND_IDENTITY_PROXY_V1 ||
	       identity == BACKEND_IDENTITY_PROXY_V2;
}

/*
 * Does the backend take weir for the client?  What it trusts weir's address
 * with, it then trusts every client with; and a limit per client is one on
 * weir.
 */
static inline bool backend_identity_hides(enum backend_identity identity)
{
	return identity == BACKEND_IDENTITY_NONE ||
	       identity == BACKEND_IDENTITY_HEADER;
}

/* Does a connection to it speak for one client, and no other, all its life? */
static inline bool backend_identity_binds(enum backend_identity identity)
{
	return !backend_identity_hides(identity);
}

/* Whether connections to it are encrypted. */
enum backend_tls {
	BACKEND_TLS_NONE,
	BACKEND_TLS_OPPORTUNISTIC, /* where it can; unchecked */
	BACKEND_TLS_REQUIRED,      /* or no session; unchecked */
	BACKEND_TLS_VERIFY,        /* and only with a good certificate */
};

/* Does it take a stranger's mail for a stranger, if that comes from weir? */
enum backend_relay {
	BACKEND_RELAY_UNKNOWN, /* not asked yet, not to be asked, or it gave
				  no answer that proves anything */
	BACKEND_RELAY_CLOSED,
	BACKEND_RELAY_OPEN,
};

/* What follows for strangers, at a backend that takes weir for the client. */
enum farm_guard {
	FARM_GUARD_OFF, /* nobody asks */
	FARM_GUARD_WARN,
	FARM_GUARD_ENFORCE, /* none of theirs go there, unless it is CLOSED */
};

/*
 * Every counter of a backend, once.  They only grow.  The balancer counts
 * what it is told of in balancer_note() and in probes, and what came of each
 * slot; `messages` to `unknown` are the worker's, by backend_count().
 *
 *	COUNTER(name, unit, help)
 */
#define BACKEND_COUNTERS(COUNTER)                                              \
	COUNTER(tried, sessions, "slots taken for clients")                    \
	COUNTER(accepted, sessions, "greeted with 220")                        \
	COUNTER(connect_refused, attempts, "connection refused")               \
	COUNTER(connect_timeout, attempts, "no answer to the connect")         \
	COUNTER(connect_reset, attempts, "reset while connecting")             \
	COUNTER(connect_unreachable, attempts, "no route, or another error")   \
	COUNTER(greeting_refused, attempts, "greeted with 4xx or 5xx")         \
	COUNTER(greeting_silent, attempts, "no greeting: timeout or close")    \
	COUNTER(class_ok, replies, "noted as OK")                              \
	COUNTER(class_busy, replies, "noted as BUSY")                          \
	COUNTER(class_maybe_busy, replies, "noted as BUSY?")                   \
	COUNTER(class_cap, replies, "noted as CAP: a limit on weir's address") \
	COUNTER(class_drain, replies, "noted as DRAIN")                        \
	COUNTER(class_sick, replies, "noted as SICK")                          \
	COUNTER(class_misconf, replies, "noted as MISCONF")                    \
	COUNTER(class_session, replies, "noted as SESSION")                    \
	COUNTER(class_policy, replies, "noted as POLICY")                      \
	COUNTER(votes_dropped, replies, "one source too often; no effect")     \
	COUNTER(ejected, times, "taken out for failing live sessions")         \
	COUNTER(eject_spared, times,                                           \
		"not ejected: too much of the farm is out")                    \
	COUNTER(state_changes, changes, "of the verdict of health")            \
	COUNTER(probes_ok, probes, "passed, or busy")                          \
	COUNTER(probes_failed, probes, "failed")                               \
	COUNTER(limit_refused, attempts, "refused as one too many")            \
	COUNTER(limit_slow, attempts, "greeted late, as by one that queues")   \
	COUNTER(limit_probes, attempts, "sent above the learned limit")        \
	COUNTER(limit_probes_refused, attempts, "of those, refused")           \
	COUNTER(reused, sessions, "served by a connection that was kept")      \
	COUNTER(messages, messages, "2xx to the end of data")                  \
	COUNTER(rcpts, recipients, "2xx to RCPT")                              \
	COUNTER(octets_in, octets, "received from it")                         \
	COUNTER(octets_out, octets, "sent to it")                              \
	COUNTER(retried_away, attempts, "replaced unseen by the client")       \
	COUNTER(lost, transactions, "connection lost in mid-transaction")      \
	COUNTER(unknown, messages, "no final reply to the end of data")

#define BACKEND_COUNTER_INDEX(name, unit, help) BACKEND_COUNT_##name,
enum backend_counter {
	BACKEND_COUNTERS(BACKEND_COUNTER_INDEX) BACKEND_COUNTER_COUNT
};
#undef BACKEND_COUNTER_INDEX

/* What is so now; the second half of a row of `show backends`. */
#define BACKEND_GAUGES(GAUGE)                                                  \
	GAUGE(sessions, sessions, "slots in use")                              \
	GAUGE(sessions_peak, sessions, "most slots in use at once")            \
	GAUGE(sessions_greeted, sessions, "of those, greeted")                 \
	GAUGE(sessions_pending, sessions, "of those, without a verdict yet")   \
	GAUGE(sessions_idle, sessions, "of those, kept for the next client")   \
	GAUGE(limit, sessions, "learned: slots it takes now")                  \
	GAUGE(max_sessions, sessions, "slots it may have")                     \
	GAUGE(weight, shares, "of the load")                                   \
	GAUGE(errors_permille, permille, "average of failed outcomes")         \
	GAUGE(tls, flag, "1: the last probe went over TLS")                    \
	GAUGE(cert_days, days, "left of the certificate; 0: it has expired")   \
	GAUGE(relay_open, flag, "1: it relays for strangers")

#define BACKEND_GAUGE_INDEX(name, unit, help) BACKEND_GAUGE_##name,
enum backend_gauge { BACKEND_GAUGES(BACKEND_GAUGE_INDEX) BACKEND_GAUGE_COUNT };
#undef BACKEND_GAUGE_INDEX

struct backend_row {
	const char *name;
	const char *unit;
	const char *help;
};

/* In the order of the enums. */
extern const struct backend_row backend_counter_rows[BACKEND_COUNTER_COUNT];
extern const struct backend_row backend_gauge_rows[BACKEND_GAUGE_COUNT];

/* What a new backend is to be.  Copied. */
struct backend_settings {
	const char *name;    /* NUL-terminated; [A-Za-z0-9._-], 1 or more */
	const char *address; /* text for people, "[2001:db8::1]:25" */
	struct sockaddr_storage peer;
	socklen_t peer_len;
	struct sockaddr_storage source; /* to connect from; unused if len 0 */
	socklen_t source_len;
	uint32_t max_sessions; /* 1..BACKEND_SESSIONS_MAX: no ceiling */
	uint32_t weight;       /* 1..BACKEND_WEIGHT_MAX */
	enum backend_admin admin;
	enum backend_identity identity;
	enum backend_tls tls;
	bool tls_implicit; /* from the first octet, without STARTTLS */
	bool reuse; /* its connections are kept for other clients; not if the
		       identity binds */
	const struct busy_rule *rules;
	unsigned rule_count; /* 0..BACKEND_RULES_MAX */
};

struct backend {
	_Atomic uint8_t place; /* enum backend_place */
	_Atomic uint8_t admin; /* enum backend_admin */
	_Atomic uint8_t state; /* enum health_state, as published */
	_Atomic bool calm;     /* a success would change nothing */
	_Atomic bool ext_known;
	_Atomic uint8_t identity; /* enum backend_identity */
	_Atomic uint8_t tls;      /* enum backend_tls */
	_Atomic bool tls_implicit;
	_Atomic uint8_t relay; /* enum backend_relay */
	_Atomic bool tls_seen; /* the last probe went over TLS */
	_Atomic bool reuse;
	_Atomic uint32_t trial;    /* HALF_OPEN: epoch in which its one session
				   went out; 0: it did not */
	_Atomic uint32_t inflight; /* slots in use, probes included; exact */
	_Atomic uint32_t inflight_peak;
	_Atomic uint32_t kept;    /* of those, idle */
	_Atomic uint32_t greeted; /* of those, as the limit counts them */
	_Atomic uint32_t pending;
	_Atomic uint32_t slots;   /* ordinary ones that it takes now */
	_Atomic bool room;        /* an ordinary one is free */
	_Atomic int64_t above_ms; /* when one above the limit may go out;
				   INT64_MAX: not before some event */
	_Atomic uint32_t max_sessions;
	_Atomic uint32_t weight;
	_Atomic uint64_t error; /* private: average and its second */
	_Atomic uint32_t generation;
	_Atomic uint32_t epoch;
	_Atomic unsigned ext;  /* enum smtp_ext bits, if ext_known */
	_Atomic unsigned auth; /* enum smtp_auth bits, if ext_known */
	_Atomic uint64_t size;
	_Atomic int64_t until_ms;         /* end of the state; 0: none */
	_Atomic int64_t probe_at_ms;      /* INT64_MAX: none, or under way */
	_Atomic int64_t answered_ms;      /* its last OK or POLICY; -1: never */
	_Atomic int64_t clear_until_ms;   /* no TLS until then, if that is
					     opportunistic; 0: none failed */
	_Atomic int64_t cert_until_ms;    /* its certificate expires; INT64_MAX:
					     none is known */
	_Atomic int64_t relay_checked_ms; /* relay was learned; -1: never */
	_Atomic int64_t guard_at_ms;      /* when to ask again */
	_Atomic uint64_t counters[BACKEND_COUNTER_COUNT];

	/* fixed */
	const struct farm *farm;
	uint16_t index;
	char name[BACKEND_NAME_MAX];
	char address[BACKEND_ADDRESS_MAX];
	struct sockaddr_storage peer;
	socklen_t peer_len;
	struct sockaddr_storage source;
	socklen_t source_len; /* 0: the kernel chooses */
	unsigned rule_count;
	struct busy_rule rules[BACKEND_RULES_MAX];

	pthread_mutex_t mutex;
	struct health health;
	struct limit limit;
	int64_t seen_ms;       /* the latest time that anybody told */
	uint16_t introduction; /* grows with each change of identity or TLS: a
				  probe from before tells of another backend */
	int64_t cert_told_ms;  /* in the log; -1: never */
	struct probe_report report; /* the last probe's */
};

struct farm {
	pthread_mutex_t
		mutex; /* held from asking who may be ejected to doing */
	struct health_policy policy;
	_Atomic uint32_t count; /* places ever used: indices are below it */
	_Atomic int64_t none_since_ms; /* see balancer_available(); -1: room */
	_Atomic bool observe;          /* as farm_set_limits() says */
	_Atomic uint8_t guard;         /* enum farm_guard */
	_Atomic int64_t retry_ms, retry_max_ms;
	_Atomic uint32_t start;
	struct backend backends[FARM_BACKENDS_MAX];
};

enum farm_result {
	FARM_OK,
	FARM_FULL,    /* FARM_BACKENDS_MAX are in it */
	FARM_TAKEN,   /* the name is */
	FARM_READY,   /* remove: first drain or maint */
	FARM_IN_USE,  /* remove: it has sessions yet */
	FARM_NO_SUCH, /* remove: not there */
};

/* What else a probe found out that deserves a line in the log. */
struct backend_news {
	bool relay_told; /* the first answer, another one, or it is open or
			    unproven still: hourly.  The report has the reply */
	enum backend_relay relay;
	bool cert_told; /* cert_days are few: daily */
	int64_t cert_days;
};

/* One change, for one line in the log.  from == to: the admin state changed. */
struct backend_change {
	bool changed;
	uint16_t index;
	char name[BACKEND_NAME_MAX]; /* of the backend: its place may be
				     another's when this is read */
	enum backend_admin admin_from, admin_to;
	enum health_state from, to;
	enum health_why why;
	int64_t until_ms;         /* when the new state ends; 0: open */
	struct backend_news news; /* of balancer_probe_done() alone, whether
				     changed or not; .name is told as well */
};

/* A copy of what is behind the mutex. */
struct backend_view {
	struct health health;
	struct limit limit;
	struct probe_report report;
};

/* Before and after all else; the policy is copied. */
void farm_init(struct farm *farm, const struct health_policy *policy);
void farm_fini(struct farm *farm);

/*
 * How limits are learned; at any time.  observe: busy replies are classified,
 * counted and learned from, and nothing is done about them: max_sessions alone
 * is the limit, and no backend is held off.  Without this call: the defaults
 * of weir.ini(5).  policy->start is for those that have learned nothing yet.
 */
void farm_set_limits(struct farm *farm, const struct limit_policy *policy,
		     bool observe);

/*
 * What to do about backends that relay for strangers; at any time.  Without
 * this call: FARM_GUARD_OFF.
 */
void farm_set_guard(struct farm *farm, enum farm_guard guard);
enum farm_guard farm_guard(const struct farm *farm);

/* As they are now. */
struct limit_policy farm_limits(const struct farm *farm);
bool farm_observes(const struct farm *farm);

/*
 * Add a backend; state UNKNOWN, first probe due at once.  On FARM_OK *index
 * is its place.  FARM_FULL and FARM_TAKEN change nothing.
 */
enum farm_result farm_add(struct farm *farm,
			  const struct backend_settings *settings,
			  int64_t now_ms, uint16_t *index);

/* Remove it: only in drain or maint, and when no slot is in use. */
enum farm_result farm_remove(struct farm *farm, uint16_t index);

/* The LIVE backend of this name (need not end in NUL), or NULL. */
struct backend *farm_find(struct farm *farm, const char *name, size_t len);

/* The backend at a place, or NULL unless LIVE: to walk 0..farm_size(). */
struct backend *farm_at(struct farm *farm, uint16_t index);
static inline uint16_t farm_size(const struct farm *farm)
{
	return (uint16_t)atomic_load(&farm->count);
}

/*
 * Operator's orders, at once for new sessions; running ones go on.  `change`
 * may be NULL.
 */
void backend_set_admin(struct backend *b, enum backend_admin admin,
		       struct backend_change *change);
void backend_set_weight(struct backend *b, uint32_t weight);
void backend_set_max_sessions(struct backend *b, uint32_t max_sessions);

/*
 * An operator has seen to it: whether it relays for strangers is asked again
 * at once, unless it is known not to.  The last answer stands until then.
 */
void backend_ask_relay(struct backend *b);

/*
 * As in backend_settings; for connections that begin from now on.  Another
 * identity or TLS makes it another backend to the relay guard and to what is
 * known of its certificate: a probe is due at once.
 */
void backend_set_identity(struct backend *b, enum backend_identity identity);
void backend_set_tls(struct backend *b, enum backend_tls tls, bool implicit);
void backend_set_reuse(struct backend *b, bool reuse);

/*
 * Shall a connection that begins now try TLS?  Not for so long after it failed
 * where it is opportunistic.  backend_tls_failed(): it did; nothing, where
 * TLS is more than that.
 */
bool backend_wants_tls(const struct backend *b, int64_t now_ms);
void backend_tls_failed(struct backend *b, int64_t now_ms);

/*
 * Is it kept from strangers, and why?  CLOSED: it is not; OPEN: it is, for it
 * relays for them; UNKNOWN: it is, for nobody knows yet.
 */
enum backend_relay backend_bars(const struct backend *b);

/*
 * Ordinary slots that it takes now: what was learned of it, at most the
 * ceiling that the operator set; in a farm that only observes, the ceiling.
 */
uint32_t backend_limit(const struct backend *b);

/* limit_is_alarmed(): it refuses sessions, and not for want of slots. */
bool backend_alarmed(struct backend *b, int64_t now_ms);

/* Copy health, limit and the last probe's report. */
void backend_look(struct backend *b, struct backend_view *view);

enum health_state backend_state(const struct backend *b);
enum backend_admin backend_admin_state(const struct backend *b);
enum backend_identity backend_identity(const struct backend *b);
enum backend_tls backend_tls(const struct backend *b);
bool backend_tls_implicit(const struct backend *b);
enum backend_relay backend_relay(const struct backend *b);
uint64_t backend_counter(const struct backend *b, enum backend_counter which);
/* BACKEND_GAUGE_NONE: there is no value. */
uint64_t backend_gauge(const struct backend *b, enum backend_gauge which,
		       int64_t now_ms);

/*
 * The moving average of failed outcomes, 0..BACKEND_ERROR_ONE.  It halves in
 * BACKEND_ERROR_HALF_S when nothing happens: a backend that is shunned for it
 * gets another chance.
 */
uint32_t backend_error(const struct backend *b, int64_t now_ms);
/* Up by 2^-shift of what is left to one; returns the step. */
uint32_t backend_error_up(struct backend *b, unsigned shift, int64_t now_ms);
/* Down by an eighth; or by a step that is taken back. */
void backend_error_down(struct backend *b, int64_t now_ms);
void backend_error_undo(struct backend *b, uint32_t step, int64_t now_ms);

static inline void backend_count(struct backend *b, enum backend_counter which,
				 uint64_t n)
{
	atomic_fetch_add_explicit(&b->counters[which], n, memory_order_relaxed);
}

/*
 * The one place where a change of health becomes visible, to other threads
 * and in *change.  Behind b->mutex, after health_*() and limit_*() calls;
 * before is b->health.state as it was before those.  *change is only written
 * if the state differs: clear it first.  One that is back in service after a
 * failure begins at a quarter of its limit.
 */
void backend_settle(struct backend *b, enum health_state before, int64_t now_ms,
		    struct backend_change *change);

/* Say whose change it is. */
void backend_name_change(const struct backend *b,
			 struct backend_change *change);

/* The same where no state can have changed. */
void backend_publish(struct backend *b);
/* Where only the limit and the slots have. */
void backend_publish_slots(struct backend *b);

/* Words.  NUL-terminated, never NULL. */
const char *backend_admin_name(enum backend_admin admin);
const char *backend_relay_name(enum backend_relay relay);
const char *farm_result_name(enum farm_result result);

#endif
