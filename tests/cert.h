#ifndef TESTS_CERT_H
#define TESTS_CERT_H

#include <openssl/evp.h>
#include <openssl/x509.h>

/*
 * Certificates that sign themselves, for weir-sink and for whoever has no
 * openssl(1) at hand.  P-256, SHA-256, valid for ten years from yesterday.
 */

/* The names of one that was not told any. */
#define CERT_NAMES "localhost,127.0.0.1,::1"

/*
 * Make one for these names, host names and IP addresses with commas between
 * them; the first one is its subject.  Both are the caller's, to free.
 * Exits if it cannot.
 */
void cert_make(const char *names, X509 **cert, EVP_PKEY **key);

/*
 * Write key and certificate as PEM into one file, which nobody else may read.
 * 0 or -errno.
 */
int cert_write(const char *path, X509 *cert, EVP_PKEY *key);

#endif
