#ifndef PROXY_UPSTREAM_H
#define PROXY_UPSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "proxy/smtp.h"

/*
 * One conversation with a backend, from the greeting to QUIT: which reply
 * belongs to what, and how long it may take.
 *
 *	CONNECTING -> GREETING -> EHLO [-> HELO] -> READY -> QUITTING
 *
 * It knows nothing of clients.  In READY, whoever drives it says what was
 * sent (upstream_sent()), and each reply comes back with its stage, in order
 * (RFC 2920, section 3.2).  A reply too many, or one that is no SMTP, makes
 * the connection useless: replies that have shifted by one would give one
 * message's 250 to another.
 *
 * Pure: octets and time in, verdicts out.
 */

enum {
	/* Commands sent and not yet answered, in one connection. */
	UPSTREAM_PIPELINE_MAX = 128,
	/*
	 * Octets of one reply that is relayed.  Real ones have a few lines;
	 * EHLO's and the greeting's are read on the fly and not kept.
	 */
	UPSTREAM_REPLY_MAX = 16384,
};

enum upstream_state {
	UPSTREAM_CONNECTING,
	UPSTREAM_GREETING,
	UPSTREAM_EHLO,
	UPSTREAM_HELO,
	UPSTREAM_READY,
	UPSTREAM_QUITTING,
};

/* Milliseconds to wait for each reply; RFC 5321, section 4.5.3.2. */
struct upstream_timeouts {
	int64_t connect_ms, greeting_ms, helo_ms;
	int64_t mail_ms, rcpt_ms, data_ms, final_ms, quit_ms;
};

enum upstream_said {
	UPSTREAM_MORE,     /* all consumed, nothing to do yet */
	UPSTREAM_SAY,      /* send .say, then feed what is left */
	UPSTREAM_IS_READY, /* the greeting and EHLO are done: .ehlo is known */
	UPSTREAM_REFUSED,  /* a greeting or EHLO of 4xx or 5xx */
	UPSTREAM_REPLY,    /* the reply to .stage is in .raw and .reply */
	UPSTREAM_EARLY,    /* a reply that began before it was asked for */
	UPSTREAM_GARBAGE,  /* not SMTP (.reply.bad), too long, or more than
			      was asked for before READY */
	UPSTREAM_BYE,      /* QUIT was answered */
};

struct upstream {
	enum upstream_state state;
	enum busy_stage stage; /* of the last REPLY, REFUSED or EARLY */
	bool reading;          /* a reply has begun */
	bool unasked;          /* and nothing was due when it did */
	bool surplus;          /* octets came behind the last reply due */
	bool chunk_open;       /* see upstream_chunk() */
	struct smtp_ehlo ehlo; /* what it offers, from READY on */
	int64_t deadline_ms;   /* for what is awaited now; INT64_MAX: none */
	unsigned due;          /* commands sent and not yet answered */
	unsigned first;        /* private: ring of stages */
	uint8_t stages[UPSTREAM_PIPELINE_MAX];
	const struct upstream_timeouts *timeouts;
	const char *say; /* UPSTREAM_SAY, QUIT; valid until next call */
	uint16_t say_len;
	uint32_t raw_len;
	struct smtp_reply_parser reply;
	char name[SMTP_DOMAIN_MAX + 1]; /* said in EHLO */
	char line[SMTP_DOMAIN_MAX + 8];
	char raw[UPSTREAM_REPLY_MAX]; /* the reply, octet for octet */
};

/*
 * Begin, with a connect under way.  name (1..SMTP_DOMAIN_MAX octets, as
 * smtp_command_parse() accepts it) is what EHLO will say; timeouts must
 * outlive *u.
 */
void upstream_begin(struct upstream *u, const char *name, size_t name_len,
		    const struct upstream_timeouts *timeouts, int64_t now_ms);

/* The connection stands: the greeting is awaited now. */
void upstream_connected(struct upstream *u, int64_t now_ms);

/*
 * Feed octets.  *used says how many were consumed; call again with the rest
 * while the answer is not MORE, GARBAGE or BYE.  What was kept of the
 * previous reply (.raw, .reply) is valid until then.
 */
enum upstream_said upstream_feed(struct upstream *u, const uint8_t *buf,
				 size_t len, int64_t now_ms, size_t *used);

/*
 * A command was sent, READY only; its reply will come as one of stage MAIL,
 * RCPT, DATA (also each BDAT but the last) or EOD (the end of the data, BDAT
 * LAST).  upstream_room() says how many more may be sent now: without
 * PIPELINING one at a time.
 */
void upstream_sent(struct upstream *u, enum busy_stage stage, int64_t now_ms);
unsigned upstream_room(const struct upstream *u);

/*
 * Whether octets of the chunk whose BDAT was sent last are still to come from
 * the client: its reply cannot, so the backend's time does not run if it is
 * the only one awaited.
 */
void upstream_chunk(struct upstream *u, bool open, int64_t now_ms);

/*
 * Octets have gone out to it: it still reads, so time for the reply that is
 * awaited runs from now.  (That it stops reading is the driver's to notice.)
 */
void upstream_moved(struct upstream *u, int64_t now_ms);

/* The stage whose reply is awaited next; IDLE when none is. */
enum busy_stage upstream_awaits(const struct upstream *u);

/* Say QUIT: .say is set.  Not before the greeting. */
void upstream_quit(struct upstream *u, int64_t now_ms);

#endif
