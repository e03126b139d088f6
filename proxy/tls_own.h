#ifndef PROXY_TLS_OWN_H
#define PROXY_TLS_OWN_H

#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/tls_context.h"

/* What the files of tls share; nobody else includes this. */

enum tls_key {
	TLS_KEY_EC,
	TLS_KEY_RSA,
	TLS_KEY_ED, /* Ed25519, Ed448 */
	TLS_KEYS,
};

struct tls_certificate {
	X509 *cert;
	EVP_PKEY *key;
	STACK_OF(X509) * chain; /* may be empty */
	enum tls_key kind;
	int64_t expires_s;
	uint8_t *ocsp; /* or NULL */
	size_t ocsp_len;
	int64_t ocsp_until_s; /* not stapled from then on; INT64_MAX: no end */
};

/* One set of certificates, one of each kind of key, or -1. */
struct tls_site {
	SSL_CTX *ssl;
	int of[TLS_KEYS];
};

struct tls_host {
	char *name;  /* lower case; may begin with "*." */
	unsigned at; /* a certificate; then, in a context, a site */
};

struct tls_hosts {
	struct tls_host *list;
	size_t count, room;
};

struct tls_trust {
	_Atomic unsigned refs;
	X509_STORE *store;
	STACK_OF(X509_NAME) * names;
	uint8_t id[32]; /* SHA-256 of what it was made of */
};

struct tls_context {
	_Atomic unsigned refs;
	bool server;
	BIO_METHOD *bio;
	struct tls_certificate *certs;
	size_t cert_count;
	struct tls_hosts hosts; /* by name */
	struct tls_site *sites; /* the first: when no name is known */
	size_t site_count;
	struct tls_trust *trust;     /* or NULL */
	struct tls_tickets *tickets; /* or NULL */
	enum tls_ask ask;
	enum tls_check check;
	char *name; /* or NULL */
	bool name_is_address;
	struct tls_pin *pins;
	size_t pin_count;
	/* Sessions made under the same rules have the same. */
	uint8_t policy[32];
};

struct tls {
	SSL *ssl;
	struct tls_context *context;
	enum tls_state state;
	bool closing; /* close_notify was said */
	/* While OpenSSL is at work: what it may read, where it may write. */
	struct tls_span window;
	struct tls_room *out; /* or NULL */
	/* What it said when there was no room: spill[spill_at..+spill_len). */
	uint8_t *spill;
	size_t spill_at, spill_len, spill_room;
	int64_t now_s;
	char *reason;        /* or NULL */
	SSL_SESSION *newest; /* a client's, or NULL */
};

struct tls_session {
	SSL_SESSION *ssl;
	uint8_t policy[32];
};

/* Write *error; returns false, and forgets OpenSSL's own errors. */
bool tls_complain(char error[TLS_ERROR_SIZE], const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* The first of OpenSSL's errors of this thread, in words. */
const char *tls_openssl_error(void);

/* Note why it failed, unless that is known already. */
void tls_set_reason(struct tls *t, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* ---- tls_pair.c ---- */

/* Parse and check; hosts gets the names, for certificate number at. */
bool tls_certificate_parse(struct tls_certificate *c,
			   const struct tls_pair *pair, int64_t now_s,
			   char error[TLS_ERROR_SIZE]);
bool tls_certificate_names(const struct tls_certificate *c, unsigned at,
			   struct tls_hosts *hosts);
void tls_certificate_free(struct tls_certificate *c);
void tls_hosts_free(struct tls_hosts *hosts);
int64_t tls_time_s(const ASN1_TIME *time); /* INT64_MAX: cannot be told */

/* "2026-11-22"; INT64_MAX: "never". */
enum { TLS_DATE_SIZE = 24 };
void tls_date(char date[TLS_DATE_SIZE], int64_t time_s);

/* ---- tls_verify.c ---- */

/* For SSL_CTX_set_cert_verify_callback(); arg is the context. */
int tls_verify(X509_STORE_CTX *chain, void *arg);
void tls_subject(const X509 *cert, char subject[TLS_SUBJECT_MAX]);
struct tls_trust *tls_trust_ref(struct tls_trust *trust);

/* ---- tls_ticket.c ---- */

/* Tickets of ssl are made with these keys, and good for their period. */
bool tls_tickets_use(struct tls_tickets *tickets, SSL_CTX *ssl);
struct tls_tickets *tls_tickets_ref(struct tls_tickets *tickets);

/* ---- tls.c ---- */

BIO_METHOD *tls_bio_method(void);
/* For SSL_CTX_sess_set_new_cb(). */
int tls_new_session(SSL *ssl, SSL_SESSION *session);

#endif
