#ifndef TESTS_UNIT_TLS_TALK_H
#define TESTS_UNIT_TLS_TALK_H

#include <openssl/ssl.h>

#include "proxy/tls.h"

/*
 * Two ends of a TLS connection in one program, and the wire between them.
 */

struct talk_bytes {
	uint8_t *data;
	size_t at, len, room; /* data[at..len) is left */
};

void talk_append(struct talk_bytes *b, const void *data, size_t len);

struct talk_end {
	struct tls *tls;
	struct talk_bytes in;  /* came over the wire, not decoded yet */
	struct talk_bytes got; /* plaintext */
	struct talk_bytes say; /* plaintext, not encoded yet */
};

/* How large spans and rooms are: always max, or 1..max by the seed. */
struct talk_cut {
	size_t max;
	uint64_t seed; /* 0: always max */
};

struct talk {
	struct talk_end server, client;
	struct talk_cut cut;
};

/* Begin both ends; the client with session, or NULL. */
void talk_begin(struct talk *t, struct tls_context *server,
		struct tls_context *client, const struct tls_session *session);
void talk_free(struct talk *t);

/* From one end to the other, once; false: nothing moved. */
bool talk_move(struct talk *t, struct talk_end *from, struct talk_end *to);

/* What one end has to say is put on the wire, but not decoded. */
void talk_send(struct talk *t, struct talk_end *from, struct talk_end *to);

/* Both ways, until nothing moves. */
void talk_run(struct talk *t);

void talk_say(struct talk_end *end, const void *data, size_t len);

/* An end that is OpenSSL's own, with as little of ours as can be. */
struct tls_made;

struct raw {
	SSL_CTX *ctx;
	SSL *ssl;
	BIO *in, *out;
};

/* A server with this certificate; NULL: a client. */
void raw_begin(struct raw *raw, const struct tls_made *made);
void raw_free(struct raw *raw);

/* The handshake of both, until nothing moves. */
void raw_run(struct raw *raw, struct tls *t);

/* What raw has said, to t; what t has to say, to raw.  False: none. */
bool raw_up(struct raw *raw, struct tls *t);
bool raw_down(struct raw *raw, struct tls *t);

/* Octets by a seed. */
uint64_t talk_random(uint64_t *seed);

#endif
