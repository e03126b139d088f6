#ifndef SIM_CHECK_H
#define SIM_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/io.h"
#include "tests/sim/sim_net.h"

/*
 * The ledger: what scripted clients sent and read, what scripted backends
 * took and answered, and whether the two agree with weir's promises.
 *
 * Each message has a mark, "c12.m3", which stands in its sender, in its
 * recipients, in its body and in each reply of a backend about it.  So
 * whoever reads something can tell whose it is.
 */

enum {
	CHECK_RCPTS_MAX = 16,
	CHECK_MARK_MAX = 24, /* octets, the NUL included */
};

struct check;

struct check_message {
	struct check_message *next;
	unsigned client, number;
	char mark[CHECK_MARK_MAX];

	/* The client's side. */
	uint8_t *body; /* as it goes over the wire, end of data included */
	size_t body_len;
	bool chunked; /* BDAT */
	/* weir may count it itself: then it goes by BDAT, as this: without the
	 * end of data and the dots that it was stuffed with; or NULL. */
	uint8_t *plain;
	size_t plain_len;
	bool null_sender;
	bool authenticated; /* the client had been, when it said MAIL */
	bool flawed;        /* no backend may ever be given its end */
	bool whole;         /* the end of the data was sent */
	/* It was sent before the replies to what precedes it were read; in TLS
	 * that cannot be seen if a record was cut. */
	bool hasty;
	unsigned rcpts;    /* said */
	unsigned rcpts_ok; /* bit k: the client read 2xx for recipient k */
	unsigned code;     /* what the client read for the end of data */

	/* The backends' side. */
	unsigned ends;     /* how often the end of data reached a backend */
	unsigned accepts;  /* how often a backend said 2xx to that */
	unsigned refusals; /* how often a whole 4xx */
	unsigned welcome;  /* bit k: some backend said 2xx to recipient k */
	unsigned taken;    /* the same of the last one */
	bool lied;         /* a backend said more than it was asked */
};

struct check_totals {
	unsigned clients, connected, greeted, refused, messages, acknowledged,
		ended, accepted, deeds;
	/* of weirs' own counters */
	unsigned waited, saturated, reused, parked, replayed, spilled,
		final_retries;
	/* handshakes that came to something, of clients and at backends;
	 * XCLIENTs and AUTHs that were taken */
	unsigned secured, secured_farm, introduced, authenticated;
};

struct check *check_new(struct sim *sim);
void check_free(struct check **check);
struct check_totals *check_totals(struct check *check);

/* --- messages --- */

/* A message about to be sent; the ledger owns it and its body. */
struct check_message *check_message_new(struct check *check, unsigned client,
					unsigned number);
/* The message whose mark stands in text; NULL: there is none. */
struct check_message *check_message_find(struct check *check, const char *text,
					 size_t len);
/* The mark in text[0..len): false if there is none. */
bool check_mark_read(const char *text, size_t len, unsigned *client,
		     unsigned *number);

/* Write m->plain. */
void check_message_count(struct check_message *m);

/* --- what backends tell --- */

struct check_octets {
	const uint8_t *data;
	size_t len;
};

/* Octets of a body at offset `at`; of DATA, its end is among them. */
void check_body(struct check *check, const struct check_message *m,
		unsigned backend, size_t at, bool chunked,
		struct check_octets o);
/* The end of the data has come, behind len octets in all. */
void check_body_end(struct check *check, struct check_message *m,
		    unsigned backend, size_t len, bool chunked, unsigned taken);
/* The final reply has been sent; refusal: it was a whole one of 4xx. */
void check_final(struct check *check, struct check_message *m, unsigned code,
		 bool refusal);
/* A trace field stood in front of the body; m may be NULL. */
void check_trace(struct check *check, const struct check_message *m,
		 unsigned backend, const char *field, size_t len);
/* This address, and port if not 0, was named for the connection it came by. */
void check_named(struct check *check, const struct check_message *m,
		 unsigned backend, const union sim_addr *named);

/* May this be shown or told to whoever reads `where`?  No credentials may. */
void check_shown(struct check *check, const char *where, const char *text,
		 size_t len);

/* --- what clients tell --- */

/* Where a client comes from; number: CHECK_CLIENTS_MAX - 1 at most. */
enum { CHECK_CLIENTS_MAX = 1 << 20 };
void check_client(struct check *check, unsigned number,
		  const union sim_addr *addr);

/* A reply to the end of data was read. */
void check_answered(struct check *check, struct check_message *m,
		    unsigned code);

/* --- the network's view of limits --- */

struct check_backend_limit {
	const struct sockaddr *addr;
	unsigned max_sessions;
};

struct check_limits {
	unsigned max_sessions;
	unsigned max_per_source; /* 0: none */
	union sim_addr allowed;  /* a source without that limit, or none */
	const struct check_backend_limit *backends;
	unsigned backend_count;
};

/* After each batch of one of the weirs; which: 0 and up. */
enum { CHECK_WEIRS_MAX = 4 };
void check_limits(struct check *check, unsigned which, struct io *const *ios,
		  unsigned io_count, const struct check_limits *limits);

/* --- the log --- */

/* A line; those that tell of a session's end are counted by client. */
void check_log(struct check *check, const char *text, size_t len);
/* How many sessions the log has told the end of; of one client's address. */
unsigned check_log_sessions(const struct check *check);
unsigned check_log_client(const struct check *check,
			  const union sim_addr *client);
/* Why its session ended; "" as long as the log has not told. */
const char *check_log_reason(const struct check *check,
			     const union sim_addr *client);

#endif
