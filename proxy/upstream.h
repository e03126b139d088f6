#ifndef PROXY_UPSTREAM_H
#define PROXY_UPSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "proxy/smtp.h"
#include "proxy/xclient.h"

/*
 * One conversation with a backend, from the greeting to QUIT: which reply
 * belongs to what, and how long it may take.
 *
 *	CONNECTING > [TLS] > GREETING > EHLO [> HELO]
 *		> [STARTTLS > TLS > EHLO] > [XCLIENT > EHLO]
 *		> READY [> XCLIENT > EHLO > READY]... > QUITTING
 *
 * It knows nothing of clients, but whom XCLIENT names.  In READY, whoever
 * drives it says what was sent (upstream_sent()), and each reply comes back
 * with its stage, in order (RFC 2920, section 3.2).  A reply too many, or one
 * that is no SMTP, makes the connection useless: replies that have shifted by
 * one would give one message's 250 to another.
 *
 * Pure: octets and time in, verdicts out.  The handshake itself is the
 * driver's.
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
	UPSTREAM_TLS, /* a handshake is under way: nothing may be fed */
	UPSTREAM_GREETING,
	UPSTREAM_EHLO,
	UPSTREAM_HELO,
	UPSTREAM_STARTTLS, /* said, its reply is awaited */
	UPSTREAM_XCLIENT,  /* the same */
	UPSTREAM_READY,
	UPSTREAM_QUITTING,
};

/* Milliseconds to wait for each reply; RFC 5321, section 4.5.3.2. */
struct upstream_timeouts {
	int64_t connect_ms, greeting_ms, helo_ms;
	int64_t tls_ms; /* for a whole handshake */
	int64_t mail_ms, rcpt_ms, data_ms, final_ms, quit_ms;
};

/* How far STARTTLS is wanted. */
enum upstream_tls {
	UPSTREAM_CLEAR,
	/* If EHLO offers it; else, or if it is refused, in clear. */
	UPSTREAM_TLS_IF_OFFERED,
	UPSTREAM_TLS_MUST,
};

/* What is wanted of a connection. */
struct upstream_order {
	/* Said in EHLO: 1..SMTP_DOMAIN_MAX octets, as smtp_command_parse()
	   accepts them. */
	const char *name;
	size_t name_len;
	enum upstream_tls tls;
	/* TLS from the first octet on; tls means nothing then. */
	bool implicit;
	/*
	 * For a client that speaks to the backend itself: the greeting makes
	 * it ready, and no EHLO is said.  tls is CLEAR and who NULL then.
	 */
	bool tcp;
	/* To be told by XCLIENT before anything else; NULL: nobody. */
	const struct xclient *who;
};

/* Demanded, but not offered. */
enum upstream_unfit {
	UPSTREAM_NO_STARTTLS,
	UPSTREAM_NO_XCLIENT, /* nor one that takes ADDR */
};

enum upstream_said {
	UPSTREAM_MORE,      /* all consumed, nothing to do yet */
	UPSTREAM_SAY,       /* send .say, then feed what is left */
	UPSTREAM_HANDSHAKE, /* begin TLS now, then upstream_secured().  What was
			       received beyond what was fed is not of it: then
			       the connection is of no use (RFC 3207, 6) */
	UPSTREAM_IS_READY,  /* ready, again after upstream_introduce(): .ehlo
			       is known; with .tcp, .raw is the greeting and
			       there is no .ehlo */
	UPSTREAM_UNFIT,     /* see .unfit; QUIT may be said, and no more */
	UPSTREAM_REFUSED,   /* 4xx or 5xx to what .stage says, GREET to
			       STARTTLS: the connection is of no more use */
	UPSTREAM_REPLY,     /* the reply to .stage is in .raw and .reply */
	UPSTREAM_EARLY,     /* a reply that began before it was asked for */
	UPSTREAM_GARBAGE,   /* not SMTP (.reply.bad), too long, a code that
			       means nothing there, or more than was asked for
			       before READY */
	UPSTREAM_BYE,       /* QUIT was answered */
};

struct upstream {
	enum upstream_state state;
	enum busy_stage stage;     /* of the last REPLY, REFUSED or EARLY */
	enum upstream_unfit unfit; /* of UNFIT */
	bool reading;              /* a reply has begun */
	bool unasked;              /* and nothing was due when it did */
	bool surplus;              /* octets came behind the last reply due */
	bool chunk_open;           /* see upstream_chunk() */
	bool secured;              /* TLS stands */
	bool tls_refused;          /* and goes without, since STARTTLS failed */
	bool introduce;            /* private: XCLIENT is still to be said */
	bool greeted;              /* private */
	bool implicit, tcp;        /* as ordered */
	enum upstream_tls tls;     /* as ordered */
	struct smtp_ehlo ehlo;     /* what it offers now, from READY on */
	int64_t deadline_ms; /* for what is awaited now; INT64_MAX: none */
	unsigned due;        /* commands sent and not yet answered */
	unsigned first;      /* private: ring of stages */
	uint8_t stages[UPSTREAM_PIPELINE_MAX];
	const struct upstream_timeouts *timeouts;
	const char *say; /* UPSTREAM_SAY, QUIT; valid until next call */
	uint16_t say_len;
	uint32_t raw_len;
	struct xclient who;
	struct smtp_reply_parser reply;
	char name[SMTP_DOMAIN_MAX + 1]; /* said in EHLO */
	char line[XCLIENT_LINE_MAX];
	char raw[UPSTREAM_REPLY_MAX]; /* the reply, octet for octet */
};

/*
 * Begin, with a connect under way.  The order, and whom it points to, is
 * copied; timeouts must outlive *u.
 */
void upstream_begin(struct upstream *u, const struct upstream_order *order,
		    const struct upstream_timeouts *timeouts, int64_t now_ms);

/*
 * The connection stands: the greeting is awaited now.  If TLS is implicit,
 * .state is UPSTREAM_TLS instead: begin the handshake, then
 * upstream_secured().
 */
void upstream_connected(struct upstream *u, int64_t now_ms);

/*
 * The handshake is done and the peer is whom it should be.  MORE: the
 * greeting is awaited; or SAY: EHLO again, what it offered in clear being
 * forgotten (RFC 3207, section 4.2).
 */
enum upstream_said upstream_secured(struct upstream *u, int64_t now_ms);

/*
 * A connection that is READY, with nothing due, shall serve another client:
 * SAY is XCLIENT, EHLO with its name, if that is known, will follow, then
 * IS_READY comes again.  UNFIT: it offers no XCLIENT any more.  GARBAGE: it
 * has begun to say what nobody asked for.
 */
enum upstream_said upstream_introduce(struct upstream *u,
				      const struct xclient *who,
				      int64_t now_ms);

/*
 * Feed octets; not while CONNECTING, nor in TLS.  *used says how many were
 * consumed; call again with the rest while the answer is not MORE, HANDSHAKE,
 * UNFIT, REFUSED, GARBAGE or BYE.  What was kept of the previous reply (.raw,
 * .reply) is valid until then.
 */
enum upstream_said upstream_feed(struct upstream *u, const uint8_t *buf,
				 size_t len, int64_t now_ms, size_t *used);

/*
 * A command was sent, READY only; its reply will come as one of stage MAIL,
 * RCPT, DATA (also each BDAT but the last) or EOD (the end of the data, BDAT
 * LAST).  upstream_room() says how many more may be sent now: without
 * PIPELINING one at a time.
 *
 * AUTH, and each line of the client's in its dialogue, is of stage AUTH: only
 * when nothing is due, and there is no room until it is answered (RFC 4954,
 * section 4).
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

/*
 * The stage whose reply is awaited next; IDLE when none is.  A handshake is
 * of STARTTLS, the implicit one as well.
 */
enum busy_stage upstream_awaits(const struct upstream *u);

/* Say QUIT: .say is set.  Neither before the greeting nor in a handshake. */
void upstream_quit(struct upstream *u, int64_t now_ms);

#endif
