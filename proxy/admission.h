#ifndef PROXY_ADMISSION_H
#define PROXY_ADMISSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/cidr.h"

/*
 * Who may come in: lists, bans, counts and rates per source and in all.
 *
 * Pure: no I/O, no clock, no allocation.  The caller gives the memory, the
 * time (now_ms: monotonic milliseconds, never negative) and the hash key.
 *
 * One table is shared by all workers; every function but admission_init and
 * admission_fini may be called by any thread at any time.  The table is cut
 * into shards, each behind a small mutex; a session holds two of them at most
 * (in ascending order), only while it is counted.
 *
 * A source is a network (IPv4 /32, IPv6 /64 by default); so is the wider
 * aggregate around it (/24, /48).  Each has an entry in the table while it
 * has sessions, and afterwards until the room is needed: the longest unused
 * entry goes first, and its rates and counters are forgotten with it.
 * Entries are found by SipHash under a secret key, so that nobody can aim at
 * a shard.
 *
 * Limits are exact: at no instant do more sessions exist than a limit allows,
 * however many threads open and close.  When no entry can be had for a source
 * because all are held by live sessions, the session is charged to its
 * aggregate only, and all such sessions of one aggregate share the limits and
 * rates of one source: stricter, never looser.  No entry for the aggregate
 * either: ADMISSION_TABLE_FULL.  A table_size of 4 * max_sessions makes both
 * a matter of theory.
 *
 * Which rule wins, first to last: bans; the allow list; the deny list; the
 * limits.  An allow-listed source is held to max_sessions and nothing else,
 * and its sessions are not charged to its aggregate.
 */

struct admission;

enum {
	ADMISSION_ALIGN = 64, /* of the memory given to admission_init */
	ADMISSION_KEY_LEN = 16,
	ADMISSION_BANS_MAX = 4096,
	ADMISSION_TABLE_MIN = 16,
	ADMISSION_TABLE_MAX = 1 << 24,
	ADMISSION_SESSIONS_MAX = 1 << 24,

	/* Good standing: what a message earns, and how much one may have. */
	ADMISSION_GOOD_MS = 10 * 60 * 1000,
	ADMISSION_GOOD_MAX_MS = 60 * 60 * 1000,
};

/* A ban without end. */
#define ADMISSION_FOREVER INT64_MAX

enum admission_verdict {
	ADMISSION_ACCEPT,
	ADMISSION_DENIED,             /* on the deny list */
	ADMISSION_BANNED,             /* by an operator, at run time */
	ADMISSION_SOURCE_SESSIONS,    /* max_per_source */
	ADMISSION_AGGREGATE_SESSIONS, /* max_per_aggregate */
	ADMISSION_SOURCE_SHARE,       /* max_percent_per_source */
	ADMISSION_SOURCE_RATE,        /* session_rate */
	ADMISSION_GLOBAL,             /* max_sessions */
	ADMISSION_TABLE_FULL,         /* every entry is held by a session */
};

enum admission_rate {
	ADMISSION_RATE_SESSION,
	ADMISSION_RATE_MESSAGE,
	ADMISSION_RATE_RECIPIENT,
	ADMISSION_RATE_LOGIN, /* failed ones */
};

enum {
	ADMISSION_VERDICTS = ADMISSION_TABLE_FULL + 1,
	ADMISSION_RATES = ADMISSION_RATE_LOGIN + 1,
};

enum admission_kind {
	ADMISSION_KIND_SOURCE,
	ADMISSION_KIND_AGGREGATE,
};

/*
 * count events in period_ms, evenly: after a burst of `burst` at once, one
 * more every period_ms / count (GCRA, ITU-T I.371; what is refused does not
 * count).  burst 0 means count.  count 0 means no limit.
 */
struct admission_rate_limit {
	uint32_t count;
	uint32_t period_ms; /* 1 or more if count is */
	uint32_t burst;
};

struct admission_config {
	uint32_t max_sessions;      /* 1..ADMISSION_SESSIONS_MAX */
	uint32_t max_per_source;    /* 0: no limit */
	uint32_t max_per_aggregate; /* 0: no limit */

	/*
	 * One source may hold this share of what is *left* of max_sessions
	 * (0..100; 0: off), but percent_floor sessions in any case (0 is
	 * taken as 1).
	 */
	uint32_t max_percent_per_source;
	uint32_t percent_floor;

	/* Per source.  In the order of enum admission_rate. */
	struct admission_rate_limit rates[ADMISSION_RATES];

	/* Prefix lengths; an aggregate's is no longer than its source's. */
	uint8_t source_v4_bits;    /* 0..32 */
	uint8_t source_v6_bits;    /* 0..128 */
	uint8_t aggregate_v4_bits; /* 0..32 */
	uint8_t aggregate_v6_bits; /* 0..128 */

	uint32_t table_size; /* entries; ADMISSION_TABLE_MIN..MAX */

	/*
	 * Stress begins at this share of max_sessions and ends at that one
	 * (0..100 each, low <= high; high 0: never under stress).
	 */
	uint32_t stress_high_percent;
	uint32_t stress_low_percent;

	const struct cidr_set *allow; /* sealed, or NULL; not owned */
	const struct cidr_set *deny;  /* sealed, or NULL; not owned */
};

/* What a session holds.  Belongs to the session; zeroed = holds nothing. */
struct admission_ticket {
	uint32_t source;    /* entry, or none */
	uint32_t aggregate; /* entry, or none */
	bool held;          /* counted: admission_close is due */
	bool exempt;        /* allow-listed: no rates */
};

/* One entry, for `show sources`. */
struct admission_row {
	struct cidr net;
	uint32_t sessions;       /* live */
	uint64_t accepted;       /* sessions let in since the entry exists */
	uint64_t refused;        /* sessions refused, for any limit */
	uint64_t limited;        /* messages, recipients, logins refused */
	uint64_t errors;         /* see admission_error */
	int64_t last_seen_ms;    /* last attempt */
	int64_t last_refused_ms; /* -1: never */
	int64_t good_until_ms;   /* see admission_good; past: it is not */
};

/* One ban, for `show bans`. */
struct admission_ban {
	struct cidr net;
	int64_t until_ms; /* or ADMISSION_FOREVER */
	uint64_t refused; /* sessions it kept out */
};

/* Octets that admission_init needs for this configuration. */
size_t admission_size(const struct admission_config *config);

/*
 * Make a table in mem, which has admission_size octets, is aligned to
 * ADMISSION_ALIGN, and outlives it.  key is secret and random.
 */
struct admission *admission_init(void *mem,
				 const struct admission_config *config,
				 const uint8_t key[ADMISSION_KEY_LEN]);

/* The end: no other thread uses the table any more.  Does not free. */
void admission_fini(struct admission *adm);

/*
 * New limits, rates, marks and lists at run time; prefixes and table_size
 * stay as they were.  What is open stays open; a rate that changes begins
 * anew for every source.  An open that begins after
 * this returns obeys the new limits.  The old lists may be in use by threads
 * that were inside admission_open: keep them until each worker has come round
 * its loop once.  One thread at a time.
 */
void admission_configure(struct admission *adm,
			 const struct admission_config *config);

/*
 * May a session from addr begin?  ADMISSION_ACCEPT: it is counted and
 * *ticket holds it until admission_close.  Otherwise nothing is held.
 */
enum admission_verdict admission_open(struct admission *adm,
				      const struct cidr_addr *addr,
				      int64_t now_ms,
				      struct admission_ticket *ticket);

/* The session is over.  The ticket is held; afterwards it holds nothing. */
void admission_close(struct admission *adm, struct admission_ticket *ticket);

/*
 * May the session begin another message, name another recipient?  True: it
 * was counted against the source's rate.  The ticket is held.
 */
bool admission_message(struct admission *adm,
		       const struct admission_ticket *ticket, int64_t now_ms);
bool admission_recipient(struct admission *adm,
			 const struct admission_ticket *ticket, int64_t now_ms);

/*
 * May the session try to log in?  Nothing is counted unless the answer is no:
 * it is failures that cost.  Each is charged by admission_login_failed(), also
 * above the rate: whoever asks many times at once has to wait the longer.  The
 * ticket is held.
 */
bool admission_login(struct admission *adm,
		     const struct admission_ticket *ticket, int64_t now_ms);
void admission_login_failed(struct admission *adm,
			    const struct admission_ticket *ticket,
			    int64_t now_ms);

/*
 * The session's client made a mistake: counted for its source, which loses as
 * much good standing as a message earns.
 */
void admission_error(struct admission *adm,
		     const struct admission_ticket *ticket);

/*
 * A message of the session was accepted (2xx to the end of its data): its
 * source is in good standing for ADMISSION_GOOD_MS more, but never for longer
 * than ADMISSION_GOOD_MAX_MS from now.  So a single message lasts for ten
 * minutes, and to keep the full hour takes one every ten minutes, and more
 * messages than mistakes.
 */
void admission_praise(struct admission *adm,
		      const struct admission_ticket *ticket, int64_t now_ms);

/*
 * May it use what is reserved for good sources?  Yes if it is allow-listed,
 * or in good standing.  A source that has no entry of its own is not: it has
 * no name that praise could stick to.
 */
bool admission_good(struct admission *adm,
		    const struct admission_ticket *ticket, int64_t now_ms);

/* Sessions open now, all workers together. */
uint32_t admission_sessions(const struct admission *adm);

/* max_sessions as it is in force. */
uint32_t admission_sessions_max(const struct admission *adm);

/*
 * Under stress?  True from stress_high_percent up, until sessions are below
 * it and down to stress_low_percent.
 */
bool admission_stressed(struct admission *adm);

/* How often admission_open gave this verdict. */
uint64_t admission_count(const struct admission *adm,
			 enum admission_verdict verdict);

/* How often this rate refused: a session, a message, a recipient, a login. */
uint64_t admission_limited(const struct admission *adm,
			   enum admission_rate rate);

/* How often a session was charged to its aggregate only. */
uint64_t admission_aggregate_only(const struct admission *adm);

/*
 * Copy at most rows_max entries of one kind: most live sessions first, then
 * most recently refused, then most recently seen.  Returns how many.  Holds
 * one shard at a time, so the rows are of slightly different instants.
 */
size_t admission_top(struct admission *adm, enum admission_kind kind,
		     struct admission_row *rows, size_t rows_max);

/*
 * Refuse new sessions from net until until_ms (ADMISSION_FOREVER: no end);
 * replaces an older ban of the same network.  Open sessions stay.  False if
 * ADMISSION_BANS_MAX others are in force.  Bans outlive admission_configure.
 */
bool admission_ban(struct admission *adm, const struct cidr *net,
		   int64_t until_ms, int64_t now_ms);

/* Lift the ban of exactly this network.  False if there is none in force. */
bool admission_unban(struct admission *adm, const struct cidr *net,
		     int64_t now_ms);

/* Copy at most rows_max bans in force.  Returns how many, in no order. */
size_t admission_bans(struct admission *adm, struct admission_ban *rows,
		      size_t rows_max, int64_t now_ms);

/* --- words; never NULL --- */

/* For logs and counters: "source_sessions". */
const char *admission_verdict_name(enum admission_verdict verdict);

/*
 * The whole reply, no CRLF: "421 4.7.0 ...".  Empty for ADMISSION_ACCEPT.
 * RFC 5321, sections 3.1 (554) and 3.8 (421); RFC 3463, section 3.
 */
const char *admission_verdict_reply(enum admission_verdict verdict);

/* For operators: what happened, and which key says so. */
const char *admission_verdict_help(enum admission_verdict verdict);

/* "session", "message", "recipient", "login". */
const char *admission_rate_name(enum admission_rate rate);

/*
 * The whole reply, no CRLF: 421 for a session, 454 for a login, otherwise
 * "450 4.7.1 ...".
 */
const char *admission_rate_reply(enum admission_rate rate);

/*
 * SipHash-2-4 (Aumasson, Bernstein, 2012).  Public because its official
 * vectors are in the unit test.
 */
uint64_t admission_hash(const uint8_t key[ADMISSION_KEY_LEN],
			const uint8_t *data, size_t len);

#endif
