#include <err.h>
#include <stdlib.h>

#include "tests/load.h"
#include "tests/secure.h"

/*
 * A session that could be resumed: a copy of the last one is kept, and copies
 * of that are used.  OpenSSL takes a session of TLS 1.3 out of use when it was
 * resumed once, and any whose connection fails.  0: its owner keeps it.
 */
static int keep_ticket(SSL *ssl, SSL_SESSION *session)
{
	struct load *load = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
	SSL_SESSION *copy = SSL_SESSION_dup(session);

	if (copy == NULL)
		err(1, "out of memory");
	SSL_SESSION_free(load->ticket);
	load->ticket = copy;
	return 0;
}

static void resume(const struct load *load, SSL *ssl)
{
	SSL_SESSION *copy = SSL_SESSION_dup(load->ticket);

	if (copy == NULL || SSL_set_session(ssl, copy) != 1)
		err(1, "out of memory");
	SSL_SESSION_free(copy);
}

void load_tls_prepare(struct load *load)
{
	const struct load_options *o = &load->options;
	SSL_CTX *ctx = secure_client_new();

	load->record = malloc(SECURE_RECORD_MAX);
	if (load->record == NULL || SSL_CTX_set_app_data(ctx, load) != 1)
		err(1, "out of memory");
	if (o->tls_version != 0 &&
	    (SSL_CTX_set_min_proto_version(ctx, o->tls_version) != 1 ||
	     SSL_CTX_set_max_proto_version(ctx, o->tls_version) != 1))
		errx(1, "--tls-version: this OpenSSL does not know it");
	if (o->resume_percent > 0) {
		(void)SSL_CTX_set_session_cache_mode(
			ctx,
			SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
		SSL_CTX_sess_set_new_cb(ctx, keep_ticket);
	}
	load->tls = ctx;
}

void load_tls_free(struct load *load)
{
	SSL_SESSION_free(load->ticket);
	SSL_CTX_free(load->tls);
	free(load->record);
}

SSL *load_tls_new(struct load *load, int fd)
{
	const struct load_options *o = &load->options;
	SSL *ssl = secure_new(load->tls, fd);

	SSL_set_connect_state(ssl);
	if (o->sni != NULL && SSL_set_tlsext_host_name(ssl, o->sni) != 1)
		errx(1, "--sni: \"%s\" is no name", o->sni);
	if (load->ticket != NULL && !load->priming &&
	    load_chance(load, o->resume_percent))
		resume(load, ssl);
	return ssl;
}

/* "" where there was none: an earlier session of TLS 1.2 goes on. */
static const char *group_of(SSL *ssl)
{
	const char *name = SSL_group_to_name(
		ssl, (int)SSL_get_negotiated_group(ssl));

	return name == NULL ? "" : name;
}

void load_tls_count(struct load *load, SSL *ssl)
{
	struct load_stats *st = load->stats;

	st->handshakes[SSL_session_reused(ssl) == 1]++;
	st->tls_version = SSL_get_version(ssl);
	st->tls_cipher = SSL_get_cipher_name(ssl);
	st->tls_group = group_of(ssl);
}
