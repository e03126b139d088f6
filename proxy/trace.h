#ifndef PROXY_TRACE_H
#define PROXY_TRACE_H

#include <stddef.h>
#include <stdint.h>

/*
 * The one field that weir adds to a message, where a backend's `identity` is
 * `header`: who the client is, as RFC 5321, section 4.4 has it.
 *
 *	Received: from helo.example ([192.0.2.50])
 *		by weir.example with ESMTP id 1a2b3c4d-5e;
 *		Sun, 22 Nov 2026 09:38:33 +0000
 *
 * Pure.
 */

enum { TRACE_MAX = 1024 }; /* octets: longer than any that can be written */

struct trace {
	const char *helo; /* as the client said it, peer's octets; helo_len 0:
			     none */
	size_t helo_len;
	const char *address; /* "192.0.2.50", "2001:db8::1"; NUL-terminated */
	const char *by;      /* weir's hostname, up to 255 octets */
	const char *with;    /* "SMTP", "ESMTP", "ESMTPS", ... RFC 3848 */
	const char *id;      /* the session's, up to 64 octets */
	int64_t wall_ms;     /* milliseconds since 1970 UTC; what is before, or
				after 9999, is taken as the nearest */
};

/*
 * Write the field, each line ending in CRLF; returns its length.  The same
 * trace gives the same octets.  What a client said in HELO is written only if
 * it is a domain or an address literal (RFC 5321, section 4.1.2), else
 * "unknown" stands in its place (as for an address that is none): nothing of
 * a peer's can end the line or the field, or pass for another part of it.
 */
size_t trace_write(char buf[TRACE_MAX], const struct trace *trace);

#endif
