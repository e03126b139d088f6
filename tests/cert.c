#include "tests/cert.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	DAY_S = 86400,
	LIFE_S = 3650 * DAY_S,
	NAME_MAX_OCTETS = 64, /* of a common name: X.520, ub-common-name */
};

static void need(bool holds, const char *what)
{
	if (!holds)
		errx(1, "cannot make a certificate: %s", what);
}

static bool is_address(const char *name)
{
	struct in6_addr room;

	return inet_pton(AF_INET, name, &room) == 1 ||
	       inet_pton(AF_INET6, name, &room) == 1;
}

static void add_extension(X509 *cert, int nid, const char *value)
{
	X509V3_CTX ctx;

	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, cert, cert, NULL, NULL, 0);
	X509_EXTENSION *made = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);

	need(made != NULL && X509_add_ext(cert, made, -1) == 1, value);
	X509_EXTENSION_free(made);
}

/* "DNS:localhost,IP:127.0.0.1" of "localhost,127.0.0.1". */
static void add_names(X509 *cert, const char *names)
{
	char *all = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&all, &size);

	need(out != NULL, "memory");
	for (const char *at = names; *at != '\0'; at += *at == ',') {
		size_t len = strcspn(at, ",");
		char *name = strndup(at, len);

		need(name != NULL, "memory");
		fprintf(out, "%s%s:%s", at > names ? "," : "",
			is_address(name) ? "IP" : "DNS", name);
		free(name);
		at += len;
	}
	need(fclose(out) == 0, "memory");
	add_extension(cert, NID_subject_alt_name, all);
	free(all);
}

static void set_subject(X509 *cert, const char *names)
{
	size_t len = strcspn(names, ",");
	unsigned char text[NAME_MAX_OCTETS];
	X509_NAME *subject = X509_get_subject_name(cert);

	if (len > sizeof(text))
		len = sizeof(text);
	memcpy(text, names, len);
	need(len > 0 &&
		     X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
						text, (int)len, -1, 0) == 1 &&
		     X509_set_issuer_name(cert, subject) == 1,
	     names);
}

void cert_make(const char *names, X509 **cert, EVP_PKEY **key)
{
	uint64_t serial = 0;
	X509 *made = X509_new();

	*key = EVP_EC_gen("P-256");
	need(made != NULL && *key != NULL, "key");
	need(RAND_bytes((unsigned char *)&serial, sizeof(serial)) == 1 &&
		     ASN1_INTEGER_set_uint64(X509_get_serialNumber(made),
					     serial >> 1) == 1,
	     "serial number");
	need(X509_set_version(made, X509_VERSION_3) == 1 &&
		     X509_gmtime_adj(X509_getm_notBefore(made), -DAY_S) !=
			     NULL &&
		     X509_gmtime_adj(X509_getm_notAfter(made), LIFE_S) !=
			     NULL &&
		     X509_set_pubkey(made, *key) == 1,
	     "fields");
	set_subject(made, names);
	add_extension(made, NID_basic_constraints, "critical,CA:TRUE");
	add_extension(made, NID_subject_key_identifier, "hash");
	add_names(made, names);
	need(X509_sign(made, *key, EVP_sha256()) > 0, "signature");
	*cert = made;
}

int cert_write(const char *path, X509 *cert, EVP_PKEY *key)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	/* It may have been there, and open to all. */
	FILE *out = fchmod(fd, 0600) == 0 ? fdopen(fd, "w") : NULL;

	if (out == NULL) {
		int error = errno;

		(void)close(fd);
		return -error;
	}
	bool ok = PEM_write_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL) ==
			  1 &&
		  PEM_write_X509(out, cert) == 1;

	if (fclose(out) != 0)
		return -errno;
	return ok ? 0 : -EIO;
}
