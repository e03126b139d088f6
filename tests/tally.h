#ifndef TESTS_TALLY_H
#define TESTS_TALLY_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What weir-sink stored and what weir-load saw acknowledged, as one number
 * that does not depend on the order, so that both ends can be compared.
 *
 * A message's *mark* is SHA-256 of its X-Test-Id, one NUL, and the SHA-256 of
 * its body (what follows the first empty line, so that fields which a server
 * adds to the header do not matter).  The tally is the sum of the marks,
 * modulo 2^256: unlike with XOR, a message counted twice does not vanish.
 */

enum {
	TALLY_SHA_OCTETS = 32,
	TALLY_HEX_SIZE = 65, /* 64 digits and a NUL */
};

struct tally {
	uint64_t count;
	uint64_t sum[4]; /* least significant word first */
	EVP_MD *md;      /* owned */
	EVP_MD_CTX *ctx; /* owned */
};

/* Exits if libcrypto has no SHA-256 or memory runs out. */
void tally_init(struct tally *t);
void tally_free(struct tally *t);

/* Compute the mark of a message into mark[]. */
void tally_mark(struct tally *t, const char *id, size_t id_len,
		const uint8_t body_sha[TALLY_SHA_OCTETS],
		uint8_t mark[TALLY_SHA_OCTETS]);

/* Count a message by its mark. */
void tally_add(struct tally *t, const uint8_t mark[TALLY_SHA_OCTETS]);

/* The sum as 64 hexadecimal digits. */
void tally_hex(const struct tally *t, char hex[TALLY_HEX_SIZE]);

/* Any SHA-256 as 64 hexadecimal digits. */
void tally_sha_hex(const uint8_t sha[TALLY_SHA_OCTETS],
		   char hex[TALLY_HEX_SIZE]);

#endif
