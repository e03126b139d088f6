#ifndef PROXY_TLS_CONTEXT_H
#define PROXY_TLS_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/tls.h"

/*
 * What TLS connections have in common: certificates, keys, rules.
 *
 * All of these are counted: made with one reference, which is the maker's;
 * connections and contexts hold their own.  A context never changes, so a
 * reload makes a new one and lets go of the old, which lives until its last
 * connection ends; one that cannot be made leaves the old one as it is.  Any
 * thread may use any of them.
 *
 * Octets come in from memory; tls_load.h reads files.  Whatever is given is
 * copied.  Errors are one line for an operator: where, what is wrong, and
 * what would be right.
 */

struct tls_context;
struct tls_tickets;
struct tls_trust;

enum { TLS_ERROR_SIZE = 512, TLS_PIN_SIZE = 32 };

enum tls_version {
	TLS_VERSION_DEFAULT, /* from 1.2 to 1.3 */
	TLS_VERSION_1_0,     /* 1.0 and 1.1 also want "...@SECLEVEL=0" */
	TLS_VERSION_1_1,
	TLS_VERSION_1_2,
	TLS_VERSION_1_3,
};

/* NULL and 0 are the defaults, which are Mozilla's "intermediate". */
struct tls_protocol {
	enum tls_version min, max;
	const char *ciphers; /* of TLS 1.2, as OpenSSL writes lists */
	const char *suites;  /* of TLS 1.3 */
	const char *groups;
};

/* A certificate and its key; names are for messages: paths, as a rule. */
struct tls_pair {
	const char *cert_name, *key_name, *ocsp_name;
	struct tls_span cert; /* PEM: its own first, then the chain */
	struct tls_span key;  /* PEM, not encrypted; may be cert as well */
	struct tls_span ocsp; /* DER, as it goes to clients; len 0: none */
};

/* ---- CA certificates ---- */

/* NULL: *error says why. */
struct tls_trust *tls_trust_new(struct tls_span pem, const char *name,
				char error[TLS_ERROR_SIZE]);
void tls_trust_unref(struct tls_trust **trust);

/* ---- session tickets ---- */

/* Fill buf with octets fit for keys; false if that is not possible. */
typedef bool tls_random(void *arg, uint8_t *buf, size_t len);

/*
 * The keys of session tickets: one for new ones, and that of the period
 * before.  A ticket is good for period_s from when it was made (OpenSSL
 * looks at the clock for that).  Shared by all contexts of one service, also
 * across reloads; whatever shares it must ask for client certificates alike,
 * or sessions are not resumed.  now_s may be of any clock that does not go
 * back.  NULL: no memory, or no random octets.
 */
struct tls_tickets *tls_tickets_new(tls_random *source, void *arg,
				    int64_t period_s, int64_t now_s);
void tls_tickets_unref(struct tls_tickets **tickets);

/*
 * To be called now and then: once a period has passed, there is a new key,
 * and that of before the last is gone.  After two periods both are.  False:
 * there was no random octet, and all stays as it is.
 */
bool tls_tickets_rotate(struct tls_tickets *tickets, int64_t now_s);

/* ---- servers ---- */

enum tls_ask {
	TLS_ASK_NONE,
	TLS_ASK_LOG,     /* any certificate will do, or none; see tls_info */
	TLS_ASK_REQUIRE, /* one that trust vouches for, or no connection */
};

struct tls_server_settings {
	/* One or more.  A client that names a host gets the certificate for
	 * it (exact, else "*." for its first label), the first of each kind
	 * of key; one that names none or another: that for the first name
	 * of the first pair. */
	const struct tls_pair *pairs;
	size_t pair_count;
	struct tls_protocol protocol;
	enum tls_ask ask;
	struct tls_trust *trust;     /* REQUIRE: not NULL */
	struct tls_tickets *tickets; /* NULL: sessions are not resumed */
	int64_t now_s; /* what is expired, or will be valid only later, is
			  refused; 0: that is not looked at */
};

struct tls_context *tls_context_server(const struct tls_server_settings *set,
				       char error[TLS_ERROR_SIZE]);

/* The first notAfter of its certificates (seconds since 1970 UTC). */
int64_t tls_context_expires_s(const struct tls_context *context);

/* ---- clients ---- */

enum tls_check {
	TLS_CHECK_NOTHING, /* against those who only listen */
	TLS_CHECK_NAME,    /* trust vouches for it, and it is for name */
	TLS_CHECK_PIN,     /* its public key is one of pins; no more */
};

/* Of SubjectPublicKeyInfo, in DER (RFC 7858, section 4.2). */
struct tls_pin {
	uint8_t sha256[TLS_PIN_SIZE];
};

struct tls_client_settings {
	/* A host name (sent as SNI) or an address (not sent); may be NULL
	 * unless it is to be checked. */
	const char *name;
	struct tls_protocol protocol;
	enum tls_check check;
	struct tls_trust *trust; /* CHECK_NAME: not NULL */
	const struct tls_pin *pins;
	size_t pin_count;
	const struct tls_pair *pair; /* ours, if it asks; NULL: none */
	int64_t now_s;               /* for pair, as above */
};

struct tls_context *tls_context_client(const struct tls_client_settings *set,
				       char error[TLS_ERROR_SIZE]);

struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context **context);

#endif
