#include "tests/secure.h"

#include <assert.h>
#include <err.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static SSL_CTX *context_new(const SSL_METHOD *method)
{
	SSL_CTX *ctx = SSL_CTX_new(method);

	if (ctx == NULL)
		errx(1, "TLS does not start");
	/* An end without close_notify is an end: SMTP has its QUIT. */
	(void)SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF |
					       SSL_OP_NO_RENEGOTIATION);
	(void)SSL_CTX_set_mode(ctx,
			       SSL_MODE_ENABLE_PARTIAL_WRITE |
				       SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				       SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_read_ahead(ctx, 1);
	return ctx;
}

SSL_CTX *secure_server_new(void)
{
	static const unsigned char name[] = "weir-sink";
	SSL_CTX *ctx = context_new(TLS_server_method());

	/* Without a name of its own it resumes nobody whom it has asked. */
	if (SSL_CTX_set_session_id_context(ctx, name, sizeof(name) - 1) != 1)
		errx(1, "TLS does not start");
	return ctx;
}

SSL_CTX *secure_client_new(void)
{
	SSL_CTX *ctx = context_new(TLS_client_method());

	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	return ctx;
}

void secure_reason(char text[SECURE_TEXT_MAX])
{
	int error = errno;
	unsigned long code = ERR_peek_error();
	const char *reason = ERR_reason_error_string(code);

	if (code != 0 && reason == NULL) { /* it is one of the system */
		ERR_error_string_n(code, text, SECURE_TEXT_MAX);
		ERR_clear_error();
		return;
	}
	if (code == 0)
		reason = error == 0 ? "closed" : strerror(error);
	snprintf(text, SECURE_TEXT_MAX, "%s", reason);
	ERR_clear_error();
}

bool secure_use_files(SSL_CTX *ctx, const char *cert, const char *key,
		      char error[SECURE_TEXT_MAX])
{
	ERR_clear_error();
	if (SSL_CTX_use_certificate_chain_file(ctx, cert) == 1 &&
	    SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) == 1 &&
	    SSL_CTX_check_private_key(ctx) == 1)
		return true;
	secure_reason(error);
	return false;
}

SSL *secure_new(SSL_CTX *ctx, int fd)
{
	SSL *ssl = SSL_new(ctx);
	int on = 1;

	/*
	 * A flight is more than one write here: Nagle's delay would be ours,
	 * not the peer's.  If it stays that is nothing worse.
	 */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (ssl == NULL || SSL_set_fd(ssl, fd) != 1)
		errx(1, "out of memory");
	return ssl;
}

/* -1 with errno as of a socket, or 0 if the peer has ended. */
static ssize_t failed(SSL *ssl, int result)
{
	int error = errno;

	switch (SSL_get_error(ssl, result)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		errno = EAGAIN;
		return -1;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	case SSL_ERROR_SYSCALL:
		errno = error == 0 || error == EAGAIN ? ECONNRESET : error;
		return -1;
	default:
		errno = EPROTO;
		return -1;
	}
}

static int some(size_t len)
{
	return len > INT_MAX ? INT_MAX : (int)len;
}

enum secure_step secure_handshake(SSL *ssl)
{
	ERR_clear_error();
	errno = 0;
	int result = SSL_do_handshake(ssl);

	if (result == 1)
		return SECURE_DONE;
	int error = SSL_get_error(ssl, result);

	return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE
		       ? SECURE_AGAIN
		       : SECURE_FAILED;
}

ssize_t secure_recv(SSL *ssl, void *buf, size_t len)
{
	ERR_clear_error();
	errno = 0;
	int n = SSL_read(ssl, buf, some(len));

	return n > 0 ? n : failed(ssl, n);
}

ssize_t secure_send(SSL *ssl, const void *buf, size_t len)
{
	assert(len > 0);
	ERR_clear_error();
	errno = 0;
	int n = SSL_write(ssl, buf, some(len));

	if (n > 0)
		return n;
	ssize_t result = failed(ssl, n);

	if (result == 0) { /* its end is no reason to send nothing */
		errno = EPIPE;
		result = -1;
	}
	return result;
}

void secure_finish(SSL *ssl)
{
	ERR_clear_error();
	if (SSL_is_init_finished(ssl) == 1)
		(void)SSL_shutdown(ssl);
	ERR_clear_error();
}

void secure_free(SSL **ssl)
{
	if (*ssl == NULL)
		return;
	/* OpenSSL resumes no session whose end it takes for a failure. */
	SSL_set_shutdown(*ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(*ssl);
	*ssl = NULL;
	ERR_clear_error();
}
