#ifndef PROXY_TLS_STORE_H
#define PROXY_TLS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/tls_context.h"

/*
 * The TLS contexts in force, shared by all workers: one for each listener and
 * one for each backend that has TLS, and the keys of session tickets.
 *
 * Listeners go by their place in config.listeners[], which no reload changes;
 * backends by their place in the farm.  A context is replaced whole: whoever
 * got the old one keeps it until its last connection ends.
 *
 * Not pure: it reads files (only where that is said) and asks the system for
 * random octets.  Any thread may call any of these, on one store; who reads
 * files makes only others who do wait.
 */

struct config;
struct config_backend;
struct config_report;
struct config_tls_rules;
struct tls_store;

enum { TLS_STORE_ERROR_SIZE = 1024 };

/* Without any context.  NULL: no memory. */
struct tls_store *tls_store_new(void);

/* Frees and nulls; may be NULL.  Contexts live on while somebody has them. */
void tls_store_free(struct tls_store **store);

/*
 * Read and check all files that a configuration names: the contexts of
 * listeners are in force at once, those of backends by tls_store_set_backend.
 * now_s is seconds since 1970 UTC.
 *
 * False: something cannot be used; the report has a line for each, appended:
 * where, what is wrong, what would be right.  What had a context keeps that
 * one.  If tls_store_serves() then says false, something never had one:
 * nothing was changed at all, and the configuration cannot be used.
 */
bool tls_store_load(struct tls_store *store, const struct config *config,
		    int64_t now_s, struct config_report *report);
bool tls_store_serves(const struct tls_store *store);

/*
 * The context of listener config_at, or of the backend at a place of the
 * farm; the caller unrefs it.  NULL: it has none.
 */
struct tls_context *tls_store_listener(struct tls_store *store,
				       unsigned config_at);
struct tls_context *tls_store_backend(struct tls_store *store, uint16_t place);

/*
 * Read the files of a backend and have its context in force at that place;
 * one without TLS has none.  False: error says why, and all is as before.
 */
bool tls_store_set_backend(struct tls_store *store, uint16_t place,
			   const struct config_backend *backend,
			   const struct config_tls_rules *rules, int64_t now_s,
			   char error[TLS_STORE_ERROR_SIZE]);

/* The same without a place, to see whether it would do. */
bool tls_store_try_backend(struct tls_store *store,
			   const struct config_backend *backend,
			   const struct config_tls_rules *rules, int64_t now_s,
			   char error[TLS_STORE_ERROR_SIZE]);

/* The place is somebody else's from now on, or nobody's. */
void tls_store_drop_backend(struct tls_store *store, uint16_t place);

/*
 * A context that was made elsewhere, without any file.  The reference is the
 * store's from now on; NULL: none.
 */
void tls_store_put_listener(struct tls_store *store, unsigned config_at,
			    struct tls_context *context);
void tls_store_put_backend(struct tls_store *store, uint16_t place,
			   struct tls_context *context);

/*
 * New keys for tickets when it is time, to be called now and then (each
 * minute is often enough).  False: there were no random octets.
 */
bool tls_store_rotate(struct tls_store *store, int64_t now_s);

/* ---- for operators ---- */

enum {
	TLS_STORE_FILE_MAX = 200,   /* CONFIG_TEXT_MAX */
	TLS_STORE_NAMES_MAX = 128,  /* of one certificate; more are cut off */
	TLS_STORE_EXPIRY_DAYS = 14, /* fewer left: that deserves a line */
};

struct tls_store_cert {
	char file[TLS_STORE_FILE_MAX];   /* ""; it came from memory */
	char names[TLS_STORE_NAMES_MAX]; /* "mx.example,*.example" */
	const char *kind;                /* "ECDSA"; static storage */
	int64_t expires_s;               /* notAfter */
};

/* Certificate at of listener config_at, from 0; false: it has not as many. */
bool tls_store_cert(struct tls_store *store, unsigned config_at, unsigned at,
		    struct tls_store_cert *cert);

/* The first notAfter of a listener; INT64_MAX: it has no certificate. */
int64_t tls_store_expires_s(struct tls_store *store, unsigned config_at);

/*
 * Whole days until then, not below 0; UINT64_MAX: expires_s is INT64_MAX.
 */
uint64_t tls_store_days(int64_t expires_s, int64_t now_s);

/* A line for each listener's certificate that expires soon. */
void tls_store_warn(struct tls_store *store, const struct config *config,
		    int64_t now_s, struct config_report *report);

#endif
