#include <assert.h>
#include <errno.h>
#include <openssl/x509.h>
#include <string.h>

#include "tests/cert.h"
#include "tests/secure.h"
#include "tests/sink_session.h"

enum { SUBJECT_MAX = 256 };

/* Whatever a client shows is good enough to be told of. */
static int accept_any(int ok, X509_STORE_CTX *ctx)
{
	(void)ok;
	(void)ctx;
	return 1;
}

/* One for all MTAs that were given none. */
static bool use_own(struct sink *sink, SSL_CTX *ctx)
{
	if (sink->cert == NULL)
		cert_make(CERT_NAMES, &sink->cert, &sink->key);
	return SSL_CTX_use_certificate(ctx, sink->cert) == 1 &&
	       SSL_CTX_use_PrivateKey(ctx, sink->key) == 1;
}

bool sink_tls_prepare(struct sink_mta *mta, char *error, size_t error_size)
{
	char reason[SECURE_TEXT_MAX] = "own certificate";

	if (mta->tls == SINK_TLS_NONE || mta->tls_ctx != NULL)
		return true;
	SSL_CTX *ctx = secure_server_new();
	bool ok = mta->cert == NULL
			  ? use_own(mta->sink, ctx)
			  : secure_use_files(ctx, mta->cert,
					     mta->key == NULL ? mta->cert
							      : mta->key,
					     reason);

	if (!ok) {
		snprintf(error, error_size, "cert = \"%s\": %s",
			 mta->cert == NULL ? "" : mta->cert, reason);
		SSL_CTX_free(ctx);
		return false;
	}
	if (mta->tls_ask)
		SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, accept_any);
	mta->tls_ctx = ctx;
	return true;
}

void sink_tls_forget(struct sink_mta *mta)
{
	SSL_CTX_free(mta->tls_ctx);
	mta->tls_ctx = NULL;
}

void sink_tls_command(struct sink_session *s, const char *arg, size_t len)
{
	enum sink_tls tls = s->mta->tls;

	(void)arg;
	if (tls == SINK_TLS_NONE || s->mta->tls_ctx == NULL) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
	} else if (len > 0) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: STARTTLS");
	} else if (s->tls != NULL) {
		sink_smtp_error(s, SINK_ERR_SEQUENCE);
		sink_smtp_say(s, "503 5.5.1 Error: TLS is active");
	} else if (s->message != NULL) {
		sink_smtp_error(s, SINK_ERR_SEQUENCE);
		sink_smtp_say(s, "503 5.5.1 Error: in a mail transaction");
	} else if (sink_smtp_answer(s, SINK_STARTTLS,
				    "220 2.0.0 Ready to start TLS")) {
		s->secure = SINK_AGREED;
	}
}

void sink_tls_begin(struct sink_session *s)
{
	assert(s->tls == NULL);
	if (s->mta->tls_ctx == NULL) { /* a setting at run time took it away */
		sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
	s->tls = secure_new(s->mta->tls_ctx, s->fd);
	SSL_set_accept_state(s->tls);
	s->secure = SINK_SHAKING;
}

bool sink_tls_shake(struct sink_session *s)
{
	struct sink_stats *st = &s->mta->stats;

	assert(s->secure == SINK_SHAKING);
	switch (secure_handshake(s->tls)) {
	case SECURE_AGAIN:
		return false;
	case SECURE_FAILED:
		st->handshakes[SINK_HANDSHAKE_FAILED]++;
		sink_session_kill(s, SINK_HOW_CLOSE);
		return false;
	case SECURE_DONE:
		break;
	}
	st->handshakes[SSL_session_reused(s->tls) == 1 ? SINK_HANDSHAKE_RESUMED
						       : SINK_HANDSHAKE_FULL]++;
	s->secure = SINK_SECURE;
	sink_smtp_forget(s);
	return true;
}

ssize_t sink_tls_recv(struct sink_session *s, char *buf, size_t len)
{
	assert(s->secure != SINK_SHAKING);
	return s->tls != NULL ? secure_recv(s->tls, buf, len)
			      : recv(s->fd, buf, len, 0);
}

ssize_t sink_tls_send(struct sink_session *s, const char *buf, size_t len)
{
	assert(s->secure != SINK_SHAKING);
	return s->tls != NULL ? secure_send(s->tls, buf, len)
			      : send(s->fd, buf, len, MSG_NOSIGNAL);
}

static void put_member(FILE *out, const char *name, const char *text)
{
	fprintf(out, ", \"%s\": ", name);
	sink_message_put_json(out, text, strlen(text));
}

void sink_tls_print(const struct sink_session *s, FILE *out)
{
	char subject[SUBJECT_MAX];

	if (s->secure != SINK_SECURE)
		return;
	const char *sni = SSL_get_servername(s->tls, TLSEXT_NAMETYPE_host_name);
	const X509 *peer = SSL_get0_peer_certificate(s->tls);

	put_member(out, "tls", SSL_get_version(s->tls));
	put_member(out, "cipher", SSL_get_cipher_name(s->tls));
	fprintf(out, ", \"resumed\": %s",
		SSL_session_reused(s->tls) == 1 ? "true" : "false");
	if (sni != NULL)
		put_member(out, "sni", sni);
	if (peer != NULL && X509_NAME_oneline(X509_get_subject_name(peer),
					      subject, sizeof(subject)) != NULL)
		put_member(out, "client_cert", subject);
}
