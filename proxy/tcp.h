#ifndef PROXY_TCP_H
#define PROXY_TCP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "proxy/smtp.h"

/*
 * An SMTP stream that is relayed as it comes (mode = tcp), watched from the
 * side: what replies mean, how many messages went, and whether there is still
 * something to be understood.
 *
 *	GREETING -> COMMAND <-> BODY, CHUNK, ANSWER
 *	any -> OPAQUE
 *
 * Nothing is altered, kept or held up.  Whatever cannot be followed makes the
 * stream opaque, for good: after that nobody looks at it, so a wrong guess
 * costs a count and nothing else.  Each side's octets are to be shown before
 * they are sent on, in the order they came.
 *
 * Pure: octets in, findings out.  All input is hostile.
 */

enum {
	/* Commands not answered yet: more than any client has on its way. */
	TCP_PIPELINE_MAX = 128,
	/* Of a command line, enough for EHLO with the longest name. */
	TCP_HEAD_MAX = 5 + SMTP_DOMAIN_MAX,
};

enum tcp_state {
	TCP_COMMAND, /* the client's next octets are commands */
	TCP_ANSWER,  /* the next line is an answer to 334 (RFC 4954) */
	TCP_BODY,    /* behind 354 */
	TCP_CHUNK,   /* of a BDAT */
	TCP_OPAQUE,
};

/* Why it is opaque. */
enum tcp_opaque {
	TCP_CLEAR,    /* it is not */
	TCP_STARTTLS, /* 220 to STARTTLS went by */
	TCP_TLS,      /* the client began with TLS */
	TCP_STRANGE,  /* no SMTP, or none that we can follow */
};

enum tcp_seen {
	TCP_NOTHING,   /* all octets were looked at */
	TCP_REPLY,     /* a reply has ended: .stage, .reply */
	TCP_BLIND,     /* opaque, now or before */
	TCP_FORBIDDEN, /* XCLIENT or XFORWARD: who relays it lends the client
			  weir's own standing.  The end of it must not go on */
};

/* Read freely; write only by the functions below. */
struct tcp_watch {
	enum tcp_state state;
	enum tcp_opaque why;
	bool greeted;          /* the greeting has been read whole */
	bool quit;             /* the client has said QUIT */
	bool reading;          /* a reply has begun */
	bool challenged;       /* the last reply was 334 to AUTH */
	enum busy_stage stage; /* of the last REPLY; GREET, or IDLE if
				      nobody asked, or for what says nothing */
	unsigned due;          /* commands not answered yet */
	unsigned first;        /* private: ring of their kinds */
	unsigned transactions; /* 2xx to MAIL */
	unsigned recipients;   /* 2xx to RCPT */
	unsigned messages;     /* 2xx to the end of data */
	uint64_t body_octets;  /* of the body or chunk under way */
	uint64_t chunk_left;   /* private: octets */
	uint32_t line_len;     /* private: octets of the line so far */
	uint16_t head_len;     /* private */
	uint16_t helo_len;     /* 0: none was read */
	bool chunks;           /* the client has said BDAT */
	bool offered;          /* .ext is what the last EHLO was answered */
	unsigned ext;          /* enum smtp_ext bits */
	bool chunk_last;       /* private */
	struct smtp_body body; /* private */
	uint8_t kinds[TCP_PIPELINE_MAX];
	struct smtp_reply_parser reply; /* whole after REPLY */
	char head[TCP_HEAD_MAX];
	char helo[SMTP_DOMAIN_MAX];
};

void tcp_begin(struct tcp_watch *t);

/*
 * Octets from the server.  *used says how many were looked at: all but for
 * REPLY, after which the rest is to be given again.
 */
enum tcp_seen tcp_server_said(struct tcp_watch *t, const void *buf, size_t len,
			      size_t *used);

/* Octets from the client, all of them; never REPLY. */
enum tcp_seen tcp_client_said(struct tcp_watch *t, const void *buf, size_t len);

/* Does a stream that starts so start with TLS (RFC 8446, section 5.1)? */
bool tcp_is_hello(const void *buf, size_t len);

/*
 * Neither side is in the middle of anything, and no reply is due: here weir
 * itself may say 421 (RFC 5321, section 3.8), and close.
 */
bool tcp_is_idle(const struct tcp_watch *t);

/* What the reply due next answers; IDLE if none is. */
enum busy_stage tcp_awaits(const struct tcp_watch *t);

/* "no", "starttls", "tls", "strange".  Never NULL. */
const char *tcp_opaque_name(enum tcp_opaque why);

#endif
