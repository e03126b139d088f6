#include "proxy/tls.h"

#include <assert.h>
#include <malloc.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proxy/tls_own.h"

enum {
	RECORD_MAX = 16384, /* of plaintext: RFC 8446, section 5.1 */
	/* In a room too small for this, a record of this size is begun. */
	RECORD_SMALL = 512,
	/* Nothing is read while so much waits to be sent. */
	SPILL_ENOUGH = 16384,
	SPILL_FIRST = 1024,
};

/* ---- errors ---- */

const char *tls_openssl_error(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_error());

	return text != NULL ? text : "out of memory";
}

void tls_set_reason(struct tls *t, const char *format, ...)
{
	char text[TLS_ERROR_SIZE];
	va_list args;

	if (t->reason != NULL)
		return;
	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	t->reason = OPENSSL_strdup(text); /* NULL: see tls_reason() */
}

static void fail(struct tls *t)
{
	const char *when = t->state == TLS_HANDSHAKE ? "handshake: " : "";
	unsigned long error = ERR_peek_error();
	int reason = ERR_GET_REASON(error);

	if (ERR_GET_LIB(error) == ERR_LIB_SSL &&
	    reason > SSL_AD_REASON_OFFSET) {
		tls_set_reason(t, "%sthe peer sent the alert \"%s\"", when,
			       SSL_alert_desc_string_long(
				       reason - SSL_AD_REASON_OFFSET));
	} else {
		tls_set_reason(t, "%s%s", when, tls_openssl_error());
	}
	t->state = TLS_FAILED;
	ERR_clear_error();
}

/* ---- the BIO: a window to read, a room and a spill to write ---- */

static int bio_read(BIO *bio, char *data, size_t len, size_t *got)
{
	struct tls *t = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	*got = 0;
	if (t->window.len == 0 || t->spill_len >= SPILL_ENOUGH) {
		BIO_set_retry_read(bio);
		return 0;
	}
	if (len > t->window.len)
		len = t->window.len;
	memcpy(data, t->window.data, len);
	t->window.data += len;
	t->window.len -= len;
	*got = len;
	return 1;
}

static size_t put(struct tls_room *out, const void *data, size_t len)
{
	if (len > out->len)
		len = out->len;
	if (len == 0)
		return 0;
	memcpy(out->data, data, len);
	out->data += len;
	out->len -= len;
	return len;
}

static bool spill(struct tls *t, const char *data, size_t len)
{
	size_t end = t->spill_at + t->spill_len;

	if (len > t->spill_room - end) {
		size_t room = t->spill_room > 0 ? t->spill_room : SPILL_FIRST;
		uint8_t *more;

		while (room < end + len)
			room *= 2;
		more = OPENSSL_realloc(t->spill, room);
		if (more == NULL)
			return false;
		t->spill = more;
		t->spill_room = room;
	}
	memcpy(t->spill + end, data, len);
	t->spill_len += len;
	return true;
}

static int bio_write(BIO *bio, const char *data, size_t len, size_t *written)
{
	struct tls *t = BIO_get_data(bio);
	size_t direct = 0;

	BIO_clear_retry_flags(bio);
	*written = 0;
	if (t->out != NULL && t->spill_len == 0)
		direct = put(t->out, data, len);
	if (direct < len && !spill(t, data + direct, len - direct))
		return 0;
	*written = len;
	return 1;
}

static long bio_ctrl(BIO *bio, int what, long number, void *pointer)
{
	(void)bio;
	(void)number;
	(void)pointer;
	return what == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO_METHOD *tls_bio_method(void)
{
	BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "weir");

	if (method == NULL)
		return NULL;
	if (BIO_meth_set_read_ex(method, bio_read) != 1 ||
	    BIO_meth_set_write_ex(method, bio_write) != 1 ||
	    BIO_meth_set_ctrl(method, bio_ctrl) != 1) {
		BIO_meth_free(method);
		return NULL;
	}
	return method;
}

/* ---- begin and end ---- */

/* May this session be offered?  A certificate must still be good. */
static bool is_usable(const struct tls *t, const struct tls_session *session)
{
	const struct tls_context *c = t->context;
	const X509 *peer = SSL_SESSION_get0_peer(session->ssl);

	if (c->server ||
	    memcmp(session->policy, c->policy, sizeof(c->policy)) != 0)
		return false;
	if (c->check != TLS_CHECK_NAME)
		return true;
	return peer != NULL && tls_time_s(X509_get0_notAfter(peer)) > t->now_s;
}

/*
 * A copy, since OpenSSL spoils a session of TLS 1.3 by using it, for the sake
 * of clients that would not be recognized; weir wants to be.
 */
static bool offer(SSL *ssl, const SSL_SESSION *session)
{
	SSL_SESSION *copy = SSL_SESSION_dup(session);
	bool good = copy != NULL && SSL_set_session(ssl, copy) == 1;

	SSL_SESSION_free(copy);
	return good;
}

static bool set_name(const struct tls *t)
{
	const struct tls_context *c = t->context;
	X509_VERIFY_PARAM *param = SSL_get0_param(t->ssl);

	X509_VERIFY_PARAM_set_time(param, (time_t)t->now_s);
	if (c->server || c->name == NULL)
		return true;
	if (c->name_is_address)
		return X509_VERIFY_PARAM_set1_ip_asc(param, c->name) == 1;
	/* RFC 9525, sections 6.3 and 2: no common name, no half wildcards. */
	X509_VERIFY_PARAM_set_hostflags(
		param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS |
			       X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
	return X509_VERIFY_PARAM_set1_host(param, c->name, 0) == 1 &&
	       SSL_set_tlsext_host_name(t->ssl, c->name) == 1;
}

static bool set_up(struct tls *t, const struct tls_session *session)
{
	BIO *bio;

	t->ssl = SSL_new(t->context->sites[0].ssl);
	if (t->ssl == NULL)
		return false;
	bio = BIO_new(t->context->bio);
	if (bio == NULL)
		return false;
	BIO_set_data(bio, t);
	BIO_set_init(bio, 1);
	SSL_set_bio(t->ssl, bio, bio);
	if (SSL_set_app_data(t->ssl, t) != 1 || !set_name(t))
		return false;
	if (session != NULL && is_usable(t, session) &&
	    !offer(t->ssl, session->ssl))
		return false;
	if (t->context->server)
		SSL_set_accept_state(t->ssl);
	else
		SSL_set_connect_state(t->ssl);
	return true;
}

static void shake_hands(struct tls *t)
{
	int result;

	assert(t->state == TLS_HANDSHAKE);
	ERR_clear_error();
	result = SSL_do_handshake(t->ssl);
	if (result == 1) {
		t->state = TLS_OPEN;
		/* Up to TLS 1.2, OpenSSL does not call us for a ticket that
		 * was renewed. */
		if (!t->context->server && t->newest == NULL &&
		    SSL_version(t->ssl) < TLS1_3_VERSION)
			t->newest = SSL_get1_session(t->ssl);
	} else if (SSL_get_error(t->ssl, result) != SSL_ERROR_WANT_READ) {
		fail(t);
	}
}

struct tls *tls_begin(struct tls_context *context,
		      const struct tls_session *session, int64_t now_s)
{
	struct tls *t = OPENSSL_zalloc(sizeof(*t));

	assert(now_s > 0);
	if (t == NULL)
		return NULL;
	t->context = tls_context_ref(context);
	t->now_s = now_s;
	t->state = TLS_HANDSHAKE;
	if (!set_up(t, session)) {
		ERR_clear_error();
		tls_free(&t);
		return NULL;
	}
	if (!context->server)
		shake_hands(t);
	return t;
}

void tls_free(struct tls **t)
{
	struct tls *old = *t;

	*t = NULL;
	if (old == NULL)
		return;
	/* OpenSSL spoils a session whose connection it believes was cut;
	 * one that failed is spoilt rightly. */
	if (old->ssl != NULL && old->state != TLS_FAILED)
		SSL_set_shutdown(old->ssl,
				 SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(old->ssl);
	SSL_SESSION_free(old->newest);
	tls_context_unref(&old->context);
	OPENSSL_clear_free(old->spill, old->spill_room);
	OPENSSL_free(old->reason);
	OPENSSL_free(old);
}

/* ---- in ---- */

/* False: no more comes for now. */
static bool read_record(struct tls *t, struct tls_room *out)
{
	size_t n = 0;
	int result, error;

	ERR_clear_error();
	result = SSL_read_ex(t->ssl, out->data, out->len, &n);
	if (result == 1) {
		assert(n <= out->len);
		out->data += n;
		out->len -= n;
		return true;
	}
	error = SSL_get_error(t->ssl, result);
	if (error == SSL_ERROR_ZERO_RETURN)
		t->state = TLS_CLOSED;
	else if (error != SSL_ERROR_WANT_READ)
		fail(t);
	return false;
}

static void read_records(struct tls *t, struct tls_room *out)
{
	bool more = true;

	assert(t->state == TLS_OPEN);
	/* With nothing to read OpenSSL would get a buffer only to free it. */
	while (more && out->len > 0 &&
	       (t->window.len > 0 || SSL_pending(t->ssl) > 0))
		more = read_record(t, out);
}

enum tls_state tls_decode(struct tls *t, struct tls_span *in,
			  struct tls_room *out)
{
	assert(t->out == NULL);
	t->window = *in;
	if (t->state == TLS_HANDSHAKE && in->len > 0)
		shake_hands(t);
	if (t->state == TLS_OPEN)
		read_records(t, out);
	if (t->state == TLS_CLOSED || t->state == TLS_FAILED) {
		t->window.data += t->window.len;
		t->window.len = 0;
	}
	*in = t->window;
	t->window = (struct tls_span){ 0 };
	return t->state;
}

bool tls_is_holding(const struct tls *t)
{
	return t->state == TLS_OPEN && SSL_pending(t->ssl) > 0;
}

enum tls_state tls_end_of_stream(struct tls *t)
{
	if (t->state == TLS_HANDSHAKE)
		tls_set_reason(t, "handshake: the connection ended in it");
	else if (t->state == TLS_OPEN)
		tls_set_reason(t, "the connection ended without close_notify");
	if (t->state != TLS_CLOSED)
		t->state = TLS_FAILED;
	return t->state;
}

/* ---- out ---- */

static void drain(struct tls *t, struct tls_room *out)
{
	size_t n;

	if (t->spill_len == 0)
		return;
	n = put(out, t->spill + t->spill_at, t->spill_len);
	t->spill_at += n;
	t->spill_len -= n;
	if (t->spill_len > 0)
		return;
	OPENSSL_free(t->spill);
	t->spill = NULL;
	t->spill_at = t->spill_room = 0;
}

/* How much to put into one record: as much as fits, but not a crumb. */
static size_t record_len(size_t len, size_t room)
{
	size_t fits = RECORD_SMALL;

	if (room > RECORD_SMALL + TLS_RECORD_EXTRA)
		fits = room - TLS_RECORD_EXTRA;
	if (fits > RECORD_MAX)
		fits = RECORD_MAX;
	return len < fits ? len : fits;
}

static bool is_writable(const struct tls *t)
{
	return !t->closing && (t->state == TLS_OPEN || t->state == TLS_CLOSED);
}

enum tls_state tls_encode(struct tls *t, struct tls_span *in,
			  struct tls_room *out)
{
	size_t room = out->len;

	assert(t->window.len == 0);
	drain(t, out);
	while (in->len > 0 && out->len > 0 && is_writable(t)) {
		size_t len = record_len(in->len, out->len);
		size_t n = 0;

		/* A record that must be cut begins in the next room. */
		if (out->len < room && out->len < len + TLS_RECORD_EXTRA)
			break;
		assert(t->spill_len == 0);
		ERR_clear_error();
		t->out = out;
		if (SSL_write_ex(t->ssl, in->data, len, &n) != 1)
			fail(t);
		t->out = NULL;
		assert(n <= len);
		in->data += n;
		in->len -= n;
	}
	return t->state;
}

size_t tls_unsent(const struct tls *t)
{
	return t->spill_len;
}

void tls_close(struct tls *t)
{
	if (is_writable(t)) {
		ERR_clear_error();
		/* 0 or 1: said, and whether the peer has, too. */
		if (SSL_shutdown(t->ssl) < 0)
			ERR_clear_error();
	}
	t->closing = true;
}

/* ---- what is known of it ---- */

enum tls_state tls_state(const struct tls *t)
{
	return t->state;
}

bool tls_is_costly(const struct tls *t)
{
	char none;

	if (t->state != TLS_HANDSHAKE)
		return false;
	/* Once a server's Finished is out, only a client's certificate is
	 * left to check. */
	return !t->context->server || t->context->ask != TLS_ASK_NONE ||
	       SSL_get_finished(t->ssl, &none, 0) == 0;
}

const char *tls_reason(const struct tls *t)
{
	if (t->reason != NULL)
		return t->reason;
	return t->state == TLS_FAILED ? "out of memory" : "";
}

static void describe_peer(const struct tls *t, struct tls_info *info,
			  const X509 *peer)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned len = 0;
	int64_t expires_s = tls_time_s(X509_get0_notAfter(peer));

	tls_subject(peer, info->subject);
	if (X509_digest(peer, EVP_sha256(), digest, &len) != 1)
		len = 0;
	for (unsigned i = 0; i < len; i++)
		(void)snprintf(info->fingerprint + (size_t)2 * i, 3, "%02x",
			       digest[i]);
	info->expires_s = expires_s == INT64_MAX ? 0 : expires_s;
	info->verified = t->context->trust != NULL ||
			 t->context->check != TLS_CHECK_NOTHING;
	if (SSL_get_verify_result(t->ssl) != X509_V_OK)
		info->verified = false;
}

void tls_describe(const struct tls *t, struct tls_info *info)
{
	const X509 *peer = SSL_get0_peer_certificate(t->ssl);
	const char *name = SSL_get_servername(t->ssl,
					      TLSEXT_NAMETYPE_host_name);

	memset(info, 0, sizeof(*info));
	info->version = SSL_get_version(t->ssl);
	info->cipher = SSL_get_cipher_name(t->ssl);
	info->bits = SSL_get_cipher_bits(t->ssl, NULL);
	info->resumed = SSL_session_reused(t->ssl) == 1;
	info->name = name != NULL ? name : "";
	if (peer != NULL)
		describe_peer(t, info, peer);
	ERR_clear_error();
}

/* ---- sessions ---- */

int tls_new_session(SSL *ssl, SSL_SESSION *session)
{
	struct tls *t = SSL_get_app_data(ssl);

	SSL_SESSION_free(t->newest);
	t->newest = session; /* and its reference */
	return 1;
}

struct tls_session *tls_take_session(struct tls *t)
{
	struct tls_session *session;

	if (t->newest == NULL || t->state == TLS_FAILED)
		return NULL;
	session = OPENSSL_zalloc(sizeof(*session));
	if (session == NULL)
		return NULL;
	session->ssl = t->newest;
	t->newest = NULL;
	memcpy(session->policy, t->context->policy, sizeof(session->policy));
	return session;
}

void tls_session_free(struct tls_session **session)
{
	struct tls_session *old = *session;

	*session = NULL;
	if (old == NULL)
		return;
	SSL_SESSION_free(old->ssl);
	OPENSSL_free(old);
}

void tls_trim(void)
{
	(void)malloc_trim(0);
}
