#ifndef TESTS_SECURE_H
#define TESTS_SECURE_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * TLS for weir-sink and weir-load: OpenSSL right upon their non-blocking
 * sockets, so that a connection reads and writes as recv(2) and send(2) do.
 *
 * It shares no code with weir.  Nothing is verified: who sends test mail
 * knows where to.  SIGPIPE must be ignored: OpenSSL writes without
 * MSG_NOSIGNAL.
 */

enum {
	SECURE_RECORD_MAX = 16384, /* octets of a record: RFC 8446, 5.1 */
	SECURE_TEXT_MAX = 160,
};

enum secure_step { SECURE_DONE, SECURE_AGAIN, SECURE_FAILED };

/*
 * A context for servers, or for clients.  Both exit if memory runs out; they
 * are the caller's, to SSL_CTX_free().
 */
SSL_CTX *secure_server_new(void);
SSL_CTX *secure_client_new(void);

/* The certificate and key of PEM files; false: error[] says why. */
bool secure_use_files(SSL_CTX *ctx, const char *cert, const char *key,
		      char error[SECURE_TEXT_MAX]);

/* A connection upon fd, not yet begun; exits if memory runs out. */
SSL *secure_new(SSL_CTX *ctx, int fd);

/*
 * Go on with the handshake; SSL_set_connect_state() or _accept_state() has
 * said which.  SECURE_FAILED: secure_reason() says why.
 */
enum secure_step secure_handshake(SSL *ssl);

/*
 * As recv(2) and send(2).  -1 and EAGAIN: epoll will tell.  A call takes or
 * gives one record at most: go on until EAGAIN.  What could not be sent must
 * be the start of what is sent next.
 */
ssize_t secure_recv(SSL *ssl, void *buf, size_t len);
ssize_t secure_send(SSL *ssl, const void *buf, size_t len);

/* Say that nothing more comes; what the socket does not take is dropped. */
void secure_finish(SSL *ssl);

/* Forget it, *ssl may be NULL; its session stays good for resumption. */
void secure_free(SSL **ssl);

/* Why OpenSSL's last call failed: its first error, or that of errno. */
void secure_reason(char text[SECURE_TEXT_MAX]);

#endif
