#include "tests/sim/sim_tls.h"

#include <assert.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/tls_certs.h"

enum {
	WALL_BASE_S = 1750000000, /* as io.h of the simulation has it */
	MAKING_SEED = 20260101,
	ABOUT_MAX = 200,
	PIN_TEXT = 65,
};

/* Certificates are good long before and after whatever the worlds' clocks
 * may say. */
#define GOOD_FROM_S  INT64_C(1000000000)
#define GOOD_UNTIL_S INT64_C(4000000000)

struct sim_tls {
	SSL *ssl;
	BIO *in, *out; /* the SSL's */
	enum sim_tls_state state;
	unsigned drawer;
	size_t record;
	bool server, notified;
	char about[ABOUT_MAX];
};

/* One world at a time. */
static struct {
	struct sim *sim; /* whose time it is; NULL: the kernel's */
	uint64_t stream; /* of random octets */
	SSL_SESSION *drawers[SIM_TLS_DRAWERS];
} here;

/* Made once in a process, and not changed by whoever uses them. */
static struct {
	bool made;
	struct tls_made ca;
	struct tls_made papers[SIM_TLS_PAPERS];
	char pins[SIM_TLS_PAPERS][PIN_TEXT];
	struct tls_span ca_pem;
	SSL_CTX *client, *carded, *farm, *wrong;
} kept;

static void need(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "sim_tls: %s failed\n", what);
	abort();
}

/* --- time and chance --- */

/*
 * The C library's, for all who are linked with this: OpenSSL puts the time
 * into tickets, and a run would differ from the next.
 */
/* NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name) */
time_t time(time_t *at)
{
	struct timespec now;
	time_t s;

	if (here.sim != NULL) {
		s = (time_t)(WALL_BASE_S + sim_now_us(here.sim) / SIM_SECOND);
	} else {
		(void)clock_gettime(CLOCK_REALTIME, &now);
		s = now.tv_sec;
	}
	if (at != NULL)
		*at = s;
	return s;
}

/* Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014. */
static uint64_t draw(void)
{
	uint64_t z = here.stream += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static int rand_octets(unsigned char *buf, int num)
{
	uint64_t bits = 0;

	for (int i = 0; i < num; i++, bits >>= 8) {
		if (i % 8 == 0)
			bits = draw();
		buf[i] = (unsigned char)(bits & 255);
	}
	return 1;
}

static int rand_status(void)
{
	return 1;
}

/* The C library's as well: weir asks it for the keys of tickets. */
/* NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name) */
ssize_t getrandom(void *buf, size_t len, unsigned flags)
{
	if (here.sim == NULL)
		return syscall(SYS_getrandom, buf, len, flags);
	(void)rand_octets(buf, (int)len);
	return (ssize_t)len;
}

/* It is deprecated, and the one way to make OpenSSL repeat itself. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void set_random(void)
{
	static const RAND_METHOD method = {
		.bytes = rand_octets,
		.pseudorand = rand_octets,
		.status = rand_status,
	};

	need(RAND_set_rand_method(&method) == 1, "RAND_set_rand_method");
}
#pragma GCC diagnostic pop

/* --- certificates --- */

static void make_paper(enum sim_tls_paper which, const char *subject,
		       const char *names)
{
	const struct tls_wish wish = {
		.subject = subject,
		.names = names,
		.key = MADE_EC,
		.from_s = GOOD_FROM_S,
		.until_s = GOOD_UNTIL_S,
		.issuer = which == SIM_TLS_WRONG ? NULL : &kept.ca,
	};
	unsigned char *der = NULL, digest[EVP_MAX_MD_SIZE];
	unsigned len = 0;

	tls_made_new(&kept.papers[which], &wish);
	int der_len = i2d_PUBKEY(kept.papers[which].key, &der);
	need(der_len > 0 && EVP_Digest(der, (size_t)der_len, digest, &len,
				       EVP_sha256(), NULL) == 1,
	     "the pin");
	OPENSSL_free(der);
	for (unsigned i = 0; i < len; i++)
		snprintf(kept.pins[which] + (size_t)2 * i, 3, "%02x",
			 digest[i]);
}

static void make_papers(void)
{
	const struct tls_wish ca = {
		.subject = "ca.test",
		.key = MADE_EC,
		.ca = true,
		.from_s = GOOD_FROM_S,
		.until_s = GOOD_UNTIL_S,
	};

	tls_made_new(&kept.ca, &ca);
	kept.ca_pem = tls_made_pem(&kept.ca);
	make_paper(SIM_TLS_MX, "mx.test", "DNS:mx.test,DNS:mx2.test");
	make_paper(SIM_TLS_FARM, "b.farm.test",
		   "DNS:b.farm.test,IP:10.0.0.1,IP:10.0.0.2,IP:10.0.0.3,"
		   "IP:10.0.0.4,IP:10.0.0.5,IP:10.0.0.6,IP:10.0.0.7,"
		   "IP:10.0.0.8");
	make_paper(SIM_TLS_WRONG, "somebody.test", "DNS:somebody.test");
	make_paper(SIM_TLS_CLIENT, "c.client.test", "DNS:c.client.test");
	make_paper(SIM_TLS_PROXY, "proxy.test", "DNS:proxy.test");
}

const struct tls_pair *sim_tls_paper(enum sim_tls_paper paper)
{
	assert(kept.made);
	return &kept.papers[paper].pair;
}

struct tls_span sim_tls_ca(void)
{
	assert(kept.made);
	return kept.ca_pem;
}

const char *sim_tls_pin(enum sim_tls_paper paper)
{
	assert(kept.made);
	return kept.pins[paper];
}

/* --- what connections have in common --- */

static int on_session(SSL *ssl, SSL_SESSION *session)
{
	const struct sim_tls *t = SSL_get_app_data(ssl);

	if (t->drawer == 0)
		return 0;
	SSL_SESSION_free(here.drawers[t->drawer]);
	here.drawers[t->drawer] = session;
	return 1;
}

static SSL_CTX *make_context(bool server, const struct tls_made *paper)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method()
					  : TLS_client_method());

	need(ctx != NULL, "SSL_CTX_new");
	if (paper != NULL) {
		need(SSL_CTX_use_certificate(ctx, paper->cert) == 1 &&
			     SSL_CTX_use_PrivateKey(ctx, paper->key) == 1,
		     "a certificate");
	}
	/* What is kept in memory on a server would outlive a world. */
	SSL_CTX_set_session_cache_mode(
		ctx,
		server ? SSL_SESS_CACHE_OFF
		       : SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	if (!server)
		SSL_CTX_sess_set_new_cb(ctx, on_session);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY);
	return ctx;
}

/* A client that is asked may show a certificate: a server looks at none. */
static int anybody(X509_STORE_CTX *chain, void *arg)
{
	(void)arg;
	X509_STORE_CTX_set_error(chain, X509_V_OK);
	return 1;
}

static void make_all(void)
{
	here.stream = MAKING_SEED;
	make_papers();
	kept.client = make_context(false, NULL);
	kept.carded = make_context(false, &kept.papers[SIM_TLS_CLIENT]);
	kept.farm = make_context(true, &kept.papers[SIM_TLS_FARM]);
	kept.wrong = make_context(true, &kept.papers[SIM_TLS_WRONG]);
	SSL_CTX_set_verify(kept.farm, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(kept.farm, anybody, NULL);
	need(SSL_CTX_set_session_id_context(
		     kept.farm, (const unsigned char *)"sim", 3) == 1,
	     "SSL_CTX_set_session_id_context");
	kept.made = true;
}

static void empty_drawers(void)
{
	for (unsigned i = 0; i < SIM_TLS_DRAWERS; i++) {
		SSL_SESSION_free(here.drawers[i]);
		here.drawers[i] = NULL;
	}
}

void sim_tls_enter(struct sim *sim, uint64_t seed)
{
	set_random();
	if (!kept.made)
		make_all();
	empty_drawers();
	here.sim = sim;
	here.stream = seed;
}

void sim_tls_leave(void)
{
	empty_drawers();
	here.sim = NULL;
}

/* --- one connection --- */

static SSL_CTX *context_of(const struct sim_tls_wish *wish)
{
	if (wish->server)
		return wish->wrong ? kept.wrong : kept.farm;
	return wish->card ? kept.carded : kept.client;
}

/* OpenSSL spoils a session of TLS 1.3 by using it; a copy is as good. */
static void offer(struct sim_tls *t)
{
	SSL_SESSION *copy;

	if (here.drawers[t->drawer] == NULL)
		return;
	copy = SSL_SESSION_dup(here.drawers[t->drawer]);
	need(copy != NULL && SSL_set_session(t->ssl, copy) == 1, "a session");
	SSL_SESSION_free(copy);
}

static void ask_for(struct sim_tls *t, const char *name)
{
	char host[TLS_NAME_MAX];

	if (name == NULL)
		return;
	snprintf(host, sizeof(host), "%s", name);
	need(SSL_set_tlsext_host_name(t->ssl, host) == 1, "a name");
}

struct sim_tls *sim_tls_new(const struct sim_tls_wish *wish)
{
	struct sim_tls *t = sim_zeroed(sizeof(*t));

	assert(kept.made);
	assert(wish->drawer < SIM_TLS_DRAWERS);
	t->ssl = SSL_new(context_of(wish));
	t->in = BIO_new(BIO_s_mem());
	t->out = BIO_new(BIO_s_mem());
	need(t->ssl != NULL && t->in != NULL && t->out != NULL, "SSL_new");
	(void)BIO_set_mem_eof_return(t->in, -1);
	SSL_set_bio(t->ssl, t->in, t->out);
	need(SSL_set_app_data(t->ssl, t) == 1, "SSL_set_app_data");
	t->server = wish->server;
	t->drawer = wish->server ? 0 : wish->drawer;
	t->record = wish->record;
	if (wish->old)
		(void)SSL_set_max_proto_version(t->ssl, TLS1_2_VERSION);
	if (wish->server) {
		SSL_set_accept_state(t->ssl);
	} else {
		ask_for(t, wish->name);
		offer(t);
		SSL_set_connect_state(t->ssl);
	}
	return t;
}

void sim_tls_free(struct sim_tls **tp)
{
	struct sim_tls *t = *tp;

	if (t == NULL)
		return;
	/* Or OpenSSL takes the session for one that was cut. */
	SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(t->ssl);
	free(t);
	*tp = NULL;
}

static void fail(struct sim_tls *t)
{
	const char *text = ERR_reason_error_string(ERR_peek_error());

	snprintf(t->about, sizeof(t->about), "%s",
		 text != NULL ? text : "it has ended");
	t->state = SIM_TLS_FAILED;
	ERR_clear_error();
}

void sim_tls_take(struct sim_tls *t, const void *data, size_t len)
{
	if (t->state == SIM_TLS_FAILED || t->state == SIM_TLS_CLOSED)
		return;
	need(BIO_write(t->in, data, (int)len) == (int)len, "BIO_write");
}

/* False: the world is to go on. */
static bool may_go_on(struct sim_tls *t, int result)
{
	switch (SSL_get_error(t->ssl, result)) {
	case SSL_ERROR_NONE:
		return true;
	case SSL_ERROR_WANT_READ:
		return false;
	case SSL_ERROR_ZERO_RETURN:
		t->state = SIM_TLS_CLOSED;
		return false;
	default:
		fail(t);
		return false;
	}
}

size_t sim_tls_read(struct sim_tls *t, void *buf, size_t len)
{
	size_t n = 0;

	ERR_clear_error();
	if (t->state == SIM_TLS_SHAKING) {
		if (!may_go_on(t, SSL_do_handshake(t->ssl)))
			return 0;
		t->state = SIM_TLS_OPEN;
	}
	if (t->state != SIM_TLS_OPEN)
		return 0;
	if (!may_go_on(t, SSL_read_ex(t->ssl, buf, len, &n)))
		return 0;
	return n;
}

void sim_tls_write(struct sim_tls *t, const void *data, size_t len)
{
	const uint8_t *at = data;

	while (len > 0 && !t->notified &&
	       (t->state == SIM_TLS_OPEN || t->state == SIM_TLS_CLOSED)) {
		size_t n = t->record > 0 && len > t->record ? t->record : len;
		size_t done = 0;

		ERR_clear_error();
		if (SSL_write_ex(t->ssl, at, n, &done) != 1) {
			fail(t);
			return;
		}
		at += done;
		len -= done;
	}
}

size_t sim_tls_give(struct sim_tls *t, void *buf, size_t len)
{
	int n = BIO_read(t->out, buf, (int)len);

	return n > 0 ? (size_t)n : 0;
}

enum sim_tls_state sim_tls_state(const struct sim_tls *t)
{
	return t->state;
}

const char *sim_tls_about(struct sim_tls *t)
{
	const char *name;

	if (t->state == SIM_TLS_FAILED)
		return t->about;
	name = SSL_get_servername(t->ssl, TLSEXT_NAMETYPE_host_name);
	snprintf(t->about, sizeof(t->about), "%s %s%s %s",
		 SSL_get_version(t->ssl),
		 sim_tls_is_resumed(t) ? "resumed" : "full",
		 sim_tls_is_carded(t) ? " carded" : "",
		 name != NULL ? name : "-");
	return t->about;
}

bool sim_tls_is_resumed(const struct sim_tls *t)
{
	return SSL_session_reused(t->ssl) == 1;
}

bool sim_tls_is_carded(const struct sim_tls *t)
{
	return SSL_get0_peer_certificate(t->ssl) != NULL;
}

void sim_tls_record(struct sim_tls *t, size_t octets)
{
	t->record = octets;
}

void sim_tls_notify(struct sim_tls *t)
{
	if (t->notified || t->state == SIM_TLS_SHAKING ||
	    t->state == SIM_TLS_FAILED)
		return;
	t->notified = true;
	ERR_clear_error();
	(void)SSL_shutdown(t->ssl); /* whether the other side did, too */
	ERR_clear_error();
}

void sim_tls_rekey(struct sim_tls *t)
{
	if (SSL_version(t->ssl) != TLS1_3_VERSION)
		return;
	ERR_clear_error();
	if (SSL_key_update(t->ssl, SSL_KEY_UPDATE_REQUESTED) != 1 ||
	    SSL_do_handshake(t->ssl) != 1)
		fail(t);
}

void sim_tls_renegotiate(struct sim_tls *t)
{
	ERR_clear_error();
	if (SSL_renegotiate(t->ssl) != 1) {
		fail(t);
		return;
	}
	(void)SSL_do_handshake(t->ssl); /* the answer is still to come */
	ERR_clear_error();
}
