#ifndef TESTS_UNIT_TLS_CERTS_H
#define TESTS_UNIT_TLS_CERTS_H

#include <openssl/x509.h>
#include <stdbool.h>
#include <stdint.h>

#include "proxy/tls_context.h"

/*
 * Certificates and keys made while a test runs: there are none in any file.
 * Whatever fails here ends the program.
 */

enum tls_made_key { MADE_EC, MADE_RSA, MADE_RSA_1024 };

struct tls_wish {
	const char *subject; /* common name */
	const char *names;   /* "DNS:a.example,IP:::1"; NULL: no extension */
	enum tls_made_key key;
	bool ca;
	int64_t from_s, until_s; /* 0: from MADE_NOW_S - 1 day; + 90 days */
	const struct tls_made *issuer; /* NULL: signed by itself */
};

struct tls_made {
	X509 *cert;
	EVP_PKEY *key;
	struct tls_pair pair; /* PEM of both; names "NAME.cert", ".key" */
};

/* What the tests take for now: certificates do not look at the clock. */
#define MADE_NOW_S INT64_C(1800000000)

void tls_made_new(struct tls_made *made, const struct tls_wish *wish);
void tls_made_free(struct tls_made *made);

/* PEM of a certificate alone, for tls_trust_new(). */
struct tls_span tls_made_pem(const struct tls_made *made);

/* The certificate of `with` put behind that of made, as a chain. */
void tls_made_chain(struct tls_made *made, const struct tls_made *with);

/* Its key once more, encrypted with a password. */
struct tls_span tls_made_encrypted(const struct tls_made *made);

/* An OCSP response "good" for made, by issuer, until until_s. */
struct tls_span tls_made_ocsp(const struct tls_made *made,
			      const struct tls_made *issuer, int64_t until_s);

void tls_made_free_span(struct tls_span *span);

#endif
