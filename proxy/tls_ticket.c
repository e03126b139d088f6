#include <assert.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>

#include "proxy/tls_own.h"

/*
 * Session tickets (RFC 5077, section 4; RFC 8446, section 4.6.1): sealed
 * with keys that all workers share, so that any of them resumes a session.
 */

enum {
	NAME_SIZE = 16, /* as OpenSSL has it */
	IV_SIZE = 16,
};

struct ticket_key {
	uint8_t name[NAME_SIZE];
	uint8_t cipher[32]; /* AES-256 */
	uint8_t mac[32];    /* HMAC-SHA-256 */
};

struct tls_tickets {
	_Atomic unsigned refs;
	tls_random *source;
	void *arg;
	int64_t period_s;
	EVP_CIPHER *cipher; /* looked up once: that is slow */

	pthread_mutex_t mutex; /* for what follows */
	struct ticket_key now, before;
	bool has_before;
	int64_t since_s; /* when `now` was made */
};

struct tls_tickets *tls_tickets_new(tls_random *source, void *arg,
				    int64_t period_s, int64_t now_s)
{
	struct tls_tickets *t = OPENSSL_zalloc(sizeof(*t));

	assert(source != NULL);
	assert(period_s > 0);
	if (t == NULL)
		return NULL;
	t->source = source;
	t->arg = arg;
	t->period_s = period_s;
	t->since_s = now_s;
	t->cipher = EVP_CIPHER_fetch(NULL, "AES-256-CBC", NULL);
	if (t->cipher == NULL ||
	    !source(arg, (uint8_t *)&t->now, sizeof(t->now)) ||
	    pthread_mutex_init(&t->mutex, NULL) != 0) {
		EVP_CIPHER_free(t->cipher);
		OPENSSL_clear_free(t, sizeof(*t));
		return NULL;
	}
	atomic_init(&t->refs, 1);
	return t;
}

struct tls_tickets *tls_tickets_ref(struct tls_tickets *tickets)
{
	unsigned had = atomic_fetch_add(&tickets->refs, 1);

	assert(had > 0);
	return tickets;
}

void tls_tickets_unref(struct tls_tickets **tickets)
{
	struct tls_tickets *t = *tickets;

	*tickets = NULL;
	if (t == NULL || atomic_fetch_sub(&t->refs, 1) > 1)
		return;
	(void)pthread_mutex_destroy(&t->mutex);
	EVP_CIPHER_free(t->cipher);
	OPENSSL_clear_free(t, sizeof(*t));
}

bool tls_tickets_rotate(struct tls_tickets *t, int64_t now_s)
{
	struct ticket_key fresh;
	bool done = true;

	pthread_mutex_lock(&t->mutex);
	if (now_s - t->since_s >= t->period_s) {
		done = t->source(t->arg, (uint8_t *)&fresh, sizeof(fresh));
		if (done) {
			t->before = t->now;
			t->has_before = now_s - t->since_s < 2 * t->period_s;
			t->now = fresh;
			t->since_s = now_s;
		}
		if (!t->has_before)
			OPENSSL_cleanse(&t->before, sizeof(t->before));
	}
	pthread_mutex_unlock(&t->mutex);
	OPENSSL_cleanse(&fresh, sizeof(fresh));
	return done;
}

/* 0: no such key; 1: that of now; 2: that of before. */
static int find_key(struct tls_tickets *t, const uint8_t *name,
		    struct ticket_key *key)
{
	int found = 0;

	pthread_mutex_lock(&t->mutex);
	if (name == NULL || memcmp(name, t->now.name, NAME_SIZE) == 0)
		found = 1;
	else if (t->has_before && memcmp(name, t->before.name, NAME_SIZE) == 0)
		found = 2;
	*key = found == 2 ? t->before : t->now;
	pthread_mutex_unlock(&t->mutex);
	return found;
}

static int set_keys(const struct tls_tickets *t, struct ticket_key *key,
		    const uint8_t *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
		    int sealing)
{
	char digest[] = "SHA256";
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key->mac,
						  sizeof(key->mac)),
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest,
						 0),
		OSSL_PARAM_construct_end(),
	};

	return EVP_CipherInit_ex2(cipher, t->cipher, key->cipher, iv, sealing,
				  NULL) == 1 &&
	       EVP_MAC_CTX_set_params(mac, params) == 1;
}

/*
 * As SSL_CTX_set_tlsext_ticket_key_evp_cb(3) wants it: -1 failed, 0 unknown,
 * 1 good, 2 good, but to be renewed.
 */
static int ticket_key(SSL *ssl, unsigned char *name, unsigned char *iv,
		      EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac, int sealing)
{
	const struct tls *conn = SSL_get_app_data(ssl);
	struct tls_tickets *t = conn->context->tickets;
	struct ticket_key key;
	int found = find_key(t, sealing ? NULL : name, &key);

	/* Whoever uses a ticket but once is to have another one (RFC 8446,
	 * appendix C.4). */
	if (found == 1 && !sealing && SSL_version(ssl) >= TLS1_3_VERSION)
		found = 2;

	if (sealing) {
		memcpy(name, key.name, NAME_SIZE);
		if (RAND_bytes(iv, IV_SIZE) != 1)
			found = -1;
	}
	if (found > 0 && !set_keys(t, &key, iv, cipher, mac, sealing))
		found = -1;
	OPENSSL_cleanse(&key, sizeof(key));
	return found;
}

bool tls_tickets_use(struct tls_tickets *tickets, SSL_CTX *ssl)
{
	long period_s = tickets->period_s < INT32_MAX ? (long)tickets->period_s
						      : INT32_MAX;

	(void)SSL_CTX_set_timeout(ssl, period_s);
	/* Two are the default; MTAs seldom come back for more than one. */
	return SSL_CTX_set_num_tickets(ssl, 1) == 1 &&
	       SSL_CTX_set_tlsext_ticket_key_evp_cb(ssl, ticket_key) == 1;
}
