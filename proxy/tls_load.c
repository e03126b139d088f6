#include "proxy/tls_load.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proxy/tls_own.h"

/* A FIFO that nobody writes to must not hold up a reload, nor the end. */
static FILE *open_at_once(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;

	if (fd >= 0 && file == NULL) {
		int error = errno;

		(void)close(fd); /* was not read */
		errno = error;
	}
	return file;
}

/* Read all of it; what was read is span's. */
static bool load(struct tls_span *span, const char *path,
		 char error[TLS_ERROR_SIZE])
{
	FILE *file = open_at_once(path);
	uint8_t *data;
	size_t len;
	bool good;

	*span = (struct tls_span){ 0 };
	if (file == NULL)
		return tls_complain(error, "%s: cannot be read: %s", path,
				    strerror(errno));
	/* Keys pass through here: stdio is not to keep a copy. */
	(void)setvbuf(file, NULL, _IONBF, 0);
	data = OPENSSL_malloc(TLS_FILE_MAX + 1);
	len = data != NULL ? fread(data, 1, TLS_FILE_MAX + 1, file) : 0;
	good = data != NULL && ferror(file) == 0;
	(void)fclose(file);
	if (!good || len == 0 || len > TLS_FILE_MAX) {
		OPENSSL_clear_free(data, len);
		if (!good)
			return tls_complain(error, "%s: cannot be read", path);
		if (len == 0)
			return tls_complain(error, "%s: is empty", path);
		return tls_complain(error, "%s: is larger than %d MiB", path,
				    TLS_FILE_MAX >> 20);
	}
	/* A copy of its size; this one leaves no trace. */
	span->data = OPENSSL_memdup(data, len);
	span->len = len;
	OPENSSL_clear_free(data, len);
	if (span->data == NULL)
		return tls_complain(error, "%s: out of memory", path);
	return true;
}

static void unload(struct tls_span *span)
{
	union {
		const uint8_t *given;
		uint8_t *own;
	} data = { .given = span->data };

	OPENSSL_clear_free(data.own, span->len);
	*span = (struct tls_span){ 0 };
}

bool tls_pair_load(struct tls_pair *pair, const char *cert_path,
		   const char *key_path, const char *ocsp_path,
		   char error[TLS_ERROR_SIZE])
{
	*pair = (struct tls_pair){ .cert_name = cert_path,
				   .key_name = key_path != NULL ? key_path
								: cert_path,
				   .ocsp_name = ocsp_path };
	if (load(&pair->cert, pair->cert_name, error) &&
	    load(&pair->key, pair->key_name, error) &&
	    (ocsp_path == NULL || load(&pair->ocsp, ocsp_path, error)))
		return true;
	tls_pair_unload(pair);
	return false;
}

void tls_pair_unload(struct tls_pair *pair)
{
	unload(&pair->cert);
	unload(&pair->key);
	unload(&pair->ocsp);
	*pair = (struct tls_pair){ 0 };
}

struct tls_trust *tls_trust_load(const char *path, char error[TLS_ERROR_SIZE])
{
	struct tls_trust *trust;
	struct tls_span pem;

	if (!load(&pem, path, error))
		return NULL;
	trust = tls_trust_new(pem, path, error);
	unload(&pem);
	return trust;
}
