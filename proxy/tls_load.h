#ifndef PROXY_TLS_LOAD_H
#define PROXY_TLS_LOAD_H

#include "proxy/tls_context.h"

/*
 * The files of TLS, read into memory: at the start and at reloads, never
 * while a connection waits.
 */

enum { TLS_FILE_MAX = 4 << 20 }; /* a bundle of CAs is about 220 KB */

/* What `trust = system` means on Debian. */
#define TLS_SYSTEM_TRUST "/etc/ssl/certs/ca-certificates.crt"

/*
 * Read a pair; key_path may be NULL (it stands behind the certificate), and
 * so may ocsp_path.  The names in *pair are the paths, which must live as
 * long.  False: error says why, and *pair is empty.
 */
bool tls_pair_load(struct tls_pair *pair, const char *cert_path,
		   const char *key_path, const char *ocsp_path,
		   char error[TLS_ERROR_SIZE]);

/* Forget what was read, the key without a trace; once a context has it. */
void tls_pair_unload(struct tls_pair *pair);

/* NULL: error says why. */
struct tls_trust *tls_trust_load(const char *path, char error[TLS_ERROR_SIZE]);

#endif
