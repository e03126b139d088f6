#ifndef PROXY_XCLIENT_H
#define PROXY_XCLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/cidr.h"
#include "proxy/smtp.h"

/*
 * XCLIENT, as Postfix's XCLIENT_README has it: weir tells a backend whom it
 * speaks for.
 *
 * All attributes that a server knows are said each time, "[UNAVAILABLE]"
 * where weir does not know: what is left out keeps the value that it had of
 * the client before.
 *
 * Pure: no I/O, no clock, no allocation.
 */

enum {
	/* Octets, CRLF included: RFC 5321, section 4.5.3.1.4. */
	XCLIENT_LINE_MAX = 512,
	/* Octets of one value, as it is written. */
	XCLIENT_VALUE_MAX = 255,
};

/* Whom to speak for. */
struct xclient {
	/* weir itself: a probe.  The rest means nothing then. */
	bool local;
	bool esmtp;            /* it said EHLO, not HELO */
	uint16_t port;         /* 0: not known */
	uint16_t dest_port;    /* 0: not known */
	struct cidr_addr addr; /* all zero: not known */
	struct cidr_addr dest; /* what it connected to; the same */
	uint16_t helo_len;     /* 0: not known */
	char helo[SMTP_DOMAIN_MAX];
};

/*
 * Write the line, CRLF included, with every one of the attributes (enum
 * smtp_xclient bits) that the server offers.  Values are xtext (RFC 3461,
 * section 4); one that gets longer by that than XCLIENT_VALUE_MAX is
 * "[UNAVAILABLE]".  So are NAME and REVERSE_NAME, since weir asks no DNS, and
 * LOGIN always.  PROTO is ESMTP if weir speaks for itself.
 *
 * Returns octets, at most XCLIENT_LINE_MAX; no NUL.  0, and nothing is
 * written, if ADDR is not among the attributes: nobody is introduced then.
 */
size_t xclient_write(char buf[static XCLIENT_LINE_MAX], unsigned attributes,
		     const struct xclient *who);

#endif
