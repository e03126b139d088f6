#ifndef PROXY_TLS_H
#define PROXY_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One TLS connection as a codec: octets in, octets out.  OpenSSL does the
 * cryptography over a BIO of ours; there is no file, no socket and no clock
 * in here, and nothing waits.
 *
 *	peer's octets -> tls_decode() -> plaintext to read
 *	plaintext to say, and what TLS itself has to say -> tls_encode()
 *
 *	HANDSHAKE -> OPEN -> CLOSED
 *	HANDSHAKE, OPEN -> FAILED
 *
 * Octets move out of spans into rooms, both of any size; a span's front is
 * cut by what was taken, a room's by what was put there.  What TLS wants to
 * say by itself (handshake, tickets, alerts) is kept here until tls_encode()
 * asks for it.  While much of it is kept, nothing more is decoded: a peer
 * that asks without reading cannot make it grow.
 *
 * What was received before the handshake has no way in: tls_begin() takes no
 * octets.  The caller must throw them away, in every buffer (RFC 3207,
 * section 6; CVE-2011-0411).
 *
 * A struct tls belongs to one thread.  Contexts and what is in them:
 * tls_context.h.
 */

struct tls;
struct tls_context;
struct tls_session;

/* Octets to take: the front moves as they are taken. */
struct tls_span {
	const uint8_t *data;
	size_t len;
};

/* Where to put octets: the front moves as they are put. */
struct tls_room {
	uint8_t *data;
	size_t len;
};

enum tls_state {
	TLS_HANDSHAKE, /* takes no plaintext and has none */
	TLS_OPEN,
	TLS_CLOSED, /* the peer's close_notify: nothing more comes, and that
		       is all it meant to say; we may still say something */
	TLS_FAILED, /* tls_reason() says why; an alert may be left to send */
	TLS_STATES,
};

enum {
	TLS_NAME_MAX = 256,    /* host names, octets with the NUL */
	TLS_SUBJECT_MAX = 256, /* a longer one is cut */
	TLS_FINGERPRINT_MAX = 65,
	/* Octets that a record may be longer than its plaintext, with the
	 * ciphers of today: rooms a bit larger than this waste nothing. */
	TLS_RECORD_EXTRA = 29,
};

/*
 * Begin.  A server waits for octets; a client has some to send at once.
 * now_s (seconds since 1970 UTC, above 0) is what certificates are checked
 * against; a handshake does not outlive it by much.  A client may give the
 * session of an earlier connection, which stays the caller's; it is not used
 * if that was made under other rules than context's, or has expired.  NULL:
 * no memory.
 */
struct tls *tls_begin(struct tls_context *context,
		      const struct tls_session *session, int64_t now_s);

/* Free it, without a word to the peer.  *t becomes NULL; may be NULL. */
void tls_free(struct tls **t);

/*
 * Take the peer's octets from *in and put plaintext into *out; either may be
 * empty.  Returns the state.  If octets are left in *in, *out is full or
 * there is something to send: come again after that.  And tls_is_holding()
 * says whether there is plaintext although *in is empty.  When CLOSED or
 * FAILED, all of *in is taken and dropped (RFC 8446, section 6.1).
 */
enum tls_state tls_decode(struct tls *t, struct tls_span *in,
			  struct tls_room *out);

/*
 * Put what TLS has to say into *out, then take plaintext from *in and put its
 * records there.  Plaintext is taken when OPEN or CLOSED, until tls_close().
 * Records are made to fit *out; what does not fit is kept, and comes first
 * next time.  What was taken from *in is taken: it is never given twice.
 * All is out when *in is empty (or may not be taken) and tls_unsent() is 0;
 * until then, come again with another room.  Returns the state.
 */
enum tls_state tls_encode(struct tls *t, struct tls_span *in,
			  struct tls_room *out);

/* Plaintext is held here, for which there was no room. */
bool tls_is_holding(const struct tls *t);

/* Octets kept here that tls_encode() would put out. */
size_t tls_unsent(const struct tls *t);

/* Say close_notify after all that was encoded; no plaintext after that. */
void tls_close(struct tls *t);

/*
 * The peer's stream has ended (FIN).  When CLOSED, nothing happens; else it
 * was cut, by the peer or by somebody between, and the state is FAILED
 * (RFC 8446, section 6.1).  What is decoded stays good.
 */
enum tls_state tls_end_of_stream(struct tls *t);

enum tls_state tls_state(const struct tls *t);

/*
 * Could the peer's next octets make us do public-key work?  True until the
 * handshake has none left, whatever they are; false costs only symmetric
 * work.  One handshake was paid for when this goes from true to false.
 */
bool tls_is_costly(const struct tls *t);

/* Why it FAILED, one line, with peer's octets escaped; else "". */
const char *tls_reason(const struct tls *t);

/* What was agreed on, for logs and trace fields. */
struct tls_info {
	const char *version; /* "TLSv1.3"; static storage */
	const char *cipher;  /* "TLS_AES_256_GCM_SHA384"; static storage */
	int bits;            /* of the cipher's key */
	bool resumed;
	bool verified; /* the peer's certificate was checked, and good */
	/* The name that a client asked for (lives as long as t; peer's
	 * octets, no NUL among them); a client: that it asked for.  "": none.
	 */
	const char *name;
	/* The peer's certificate; all of it empty when there is none. */
	char subject[TLS_SUBJECT_MAX];         /* RFC 2253, escaped */
	char fingerprint[TLS_FINGERPRINT_MAX]; /* SHA-256, hexadecimal */
	int64_t expires_s;                     /* notAfter; 0: unknown */
};

/* When OPEN or CLOSED. */
void tls_describe(const struct tls *t, struct tls_info *info);

/*
 * A client: the newest session that the server has given, the caller's from
 * now on; NULL: none has come since.  They come when OPEN, with TLS 1.3 after
 * the first octets.  For the thread of this connection only.
 */
struct tls_session *tls_take_session(struct tls *t);
void tls_session_free(struct tls_session **session);

/*
 * A handshake takes some 60 KiB for a moment, and leaves them as holes in the
 * heap between what stays: give those back to the system.  It looks through
 * the whole heap, which takes milliseconds: for quiet times.
 */
void tls_trim(void);

#endif
