#include "proxy/tls_context.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/tls_own.h"

/*
 * Contexts: what was set is turned into SSL_CTXs once, so that a connection
 * only refers to it.
 */

/*
 * Mozilla's "intermediate", without its DHE ciphers: nothing that sends mail
 * needs them today, and each such handshake costs as much as ten others.
 */
static const char ciphers_default[] = "ECDHE-ECDSA-AES128-GCM-SHA256:"
				      "ECDHE-RSA-AES128-GCM-SHA256:"
				      "ECDHE-ECDSA-AES256-GCM-SHA384:"
				      "ECDHE-RSA-AES256-GCM-SHA384:"
				      "ECDHE-ECDSA-CHACHA20-POLY1305:"
				      "ECDHE-RSA-CHACHA20-POLY1305";
static const char suites_default[] = "TLS_AES_128_GCM_SHA256:"
				     "TLS_AES_256_GCM_SHA384:"
				     "TLS_CHACHA20_POLY1305_SHA256";
static const char groups_default[] = "X25519:P-256:P-384";

/* ---- protocol ---- */

static int version_of(enum tls_version version, int standard)
{
	switch (version) {
	case TLS_VERSION_DEFAULT:
		return standard;
	case TLS_VERSION_1_0:
		return TLS1_VERSION;
	case TLS_VERSION_1_1:
		return TLS1_1_VERSION;
	case TLS_VERSION_1_2:
		return TLS1_2_VERSION;
	case TLS_VERSION_1_3:
		return TLS1_3_VERSION;
	}
	return standard;
}

static bool set_protocol(SSL_CTX *ssl, const struct tls_protocol *p,
			 char error[TLS_ERROR_SIZE])
{
	const char *ciphers = p->ciphers != NULL ? p->ciphers : ciphers_default;
	const char *suites = p->suites != NULL ? p->suites : suites_default;
	char groups[256]; /* OpenSSL's macro wants it writable */
	int groups_len = snprintf(groups, sizeof(groups), "%s",
				  p->groups != NULL ? p->groups
						    : groups_default);
	int min = version_of(p->min, TLS1_2_VERSION);
	int max = version_of(p->max, TLS1_3_VERSION);

	if (min > max)
		return tls_complain(error, "the lowest version of TLS is above "
					   "the highest");
	if (SSL_CTX_set_min_proto_version(ssl, min) != 1 ||
	    SSL_CTX_set_max_proto_version(ssl, max) != 1)
		return tls_complain(error, "OpenSSL has not these versions of "
					   "TLS");
	if (SSL_CTX_set_cipher_list(ssl, ciphers) != 1) {
		return tls_complain(error,
				    "ciphers \"%s\": OpenSSL knows none of "
				    "them (openssl ciphers -s lists those it "
				    "knows)",
				    ciphers);
	}
	if (SSL_CTX_set_ciphersuites(ssl, suites) != 1) {
		return tls_complain(error,
				    "cipher suites \"%s\": OpenSSL does not "
				    "know them all (openssl ciphers -s "
				    "-tls1_3 lists those it knows)",
				    suites);
	}
	if (groups_len >= (int)sizeof(groups) ||
	    SSL_CTX_set1_groups_list(ssl, groups) != 1) {
		return tls_complain(error,
				    "groups \"%s\": OpenSSL does not know "
				    "them all (X25519, P-256, P-384 ... it "
				    "knows)",
				    groups);
	}
	return true;
}

static SSL_CTX *ssl_new(struct tls_context *c, const struct tls_protocol *p,
			char error[TLS_ERROR_SIZE])
{
	SSL_CTX *ssl = SSL_CTX_new(c->server ? TLS_server_method()
					     : TLS_client_method());

	if (ssl == NULL) {
		(void)tls_complain(error, "OpenSSL: %s", tls_openssl_error());
		return NULL;
	}
	/* The server chooses, AES-128 being the cheapest here; but a client
	 * that puts ChaCha20 first, for want of AES instructions, gets it. */
	(void)SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION |
					       SSL_OP_NO_COMPRESSION |
					       SSL_OP_CIPHER_SERVER_PREFERENCE |
					       SSL_OP_PRIORITIZE_CHACHA);
	(void)SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS |
					    SSL_MODE_NO_AUTO_CHAIN);
	(void)SSL_CTX_set_dh_auto(ssl, 1); /* if `ciphers` has DHE */
	SSL_CTX_set_cert_verify_callback(ssl, tls_verify, c);
	if (!set_protocol(ssl, p, error)) {
		SSL_CTX_free(ssl);
		return NULL;
	}
	return ssl;
}

static bool use_certificate(SSL_CTX *ssl, const struct tls_certificate *c,
			    const char *name, char error[TLS_ERROR_SIZE])
{
	if (SSL_CTX_use_cert_and_key(ssl, c->cert, c->key, c->chain, 1) == 1)
		return true;
	return tls_complain(error, "%s: OpenSSL refuses the certificate: %s",
			    name, tls_openssl_error());
}

/* ---- both roles ---- */

static struct tls_context *context_new(bool server, char error[TLS_ERROR_SIZE])
{
	struct tls_context *c = OPENSSL_zalloc(sizeof(*c));

	if (c != NULL) {
		atomic_init(&c->refs, 1);
		c->server = server;
		c->bio = tls_bio_method();
	}
	if (c == NULL || c->bio == NULL) {
		tls_context_unref(&c);
		(void)tls_complain(error, "out of memory");
	}
	return c;
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
	unsigned had = atomic_fetch_add(&context->refs, 1);

	assert(had > 0);
	return context;
}

void tls_context_unref(struct tls_context **context)
{
	struct tls_context *c = *context;

	*context = NULL;
	if (c == NULL || atomic_fetch_sub(&c->refs, 1) > 1)
		return;
	for (size_t i = 0; i < c->site_count; i++)
		SSL_CTX_free(c->sites[i].ssl);
	for (size_t i = 0; i < c->cert_count; i++)
		tls_certificate_free(&c->certs[i]);
	OPENSSL_free(c->sites);
	OPENSSL_free(c->certs);
	tls_hosts_free(&c->hosts);
	tls_trust_unref(&c->trust);
	tls_tickets_unref(&c->tickets);
	OPENSSL_free(c->name);
	OPENSSL_free(c->pins);
	BIO_meth_free(c->bio);
	OPENSSL_free(c);
}

/* What sessions of this context depend on, in one number. */
static bool set_policy(struct tls_context *c)
{
	const uint8_t rules[] = { c->server, (uint8_t)c->ask,
				  (uint8_t)c->check };
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	bool good = md != NULL &&
		    EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1 &&
		    EVP_DigestUpdate(md, rules, sizeof(rules)) == 1;

	if (good && c->trust != NULL)
		good = EVP_DigestUpdate(md, c->trust->id,
					sizeof(c->trust->id)) == 1;
	if (good && c->name != NULL)
		good = EVP_DigestUpdate(md, c->name, strlen(c->name) + 1) == 1;
	if (good && c->pin_count > 0)
		good = EVP_DigestUpdate(md, c->pins,
					c->pin_count * sizeof(c->pins[0])) == 1;
	good = good && EVP_DigestFinal_ex(md, c->policy, NULL) == 1;
	EVP_MD_CTX_free(md);
	return good;
}

/* ---- servers: which certificate for which name ---- */

static int by_name(const void *left, const void *right)
{
	const struct tls_host *a = left;
	const struct tls_host *b = right;
	int order = strcmp(a->name, b->name);

	if (order != 0)
		return order;
	return a->at < b->at ? -1 : a->at > b->at;
}

static int name_is(const void *key, const void *host)
{
	return strcmp(key, ((const struct tls_host *)host)->name);
}

static const struct tls_host *find_host(const struct tls_hosts *hosts,
					const char *name)
{
	if (hosts->count == 0)
		return NULL;
	return bsearch(name, hosts->list, hosts->count, sizeof(*hosts->list),
		       name_is);
}

/* The SSL_CTX for the name a client asked for; NULL: none is for it. */
static SSL_CTX *site_for(const struct tls_context *c, const char *asked)
{
	const struct tls_host *host;
	char name[TLS_NAME_MAX];
	size_t len = strlen(asked);
	char *dot;

	if (len == 0 || len >= sizeof(name))
		return NULL;
	for (size_t i = 0; i <= len; i++)
		name[i] = (char)tolower((unsigned char)asked[i]);
	host = find_host(&c->hosts, name);
	dot = strchr(name, '.');
	/* RFC 9525, section 6.3: the star is for the whole first label. */
	if (host == NULL && dot != NULL && dot > name) {
		dot[-1] = '*';
		host = find_host(&c->hosts, dot - 1);
	}
	return host != NULL ? c->sites[host->at].ssl : NULL;
}

static int on_name(SSL *ssl, int *alert, void *arg)
{
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	SSL_CTX *site = name != NULL ? site_for(arg, name) : NULL;

	if (site == NULL)
		return SSL_TLSEXT_ERR_NOACK;
	if (SSL_set_SSL_CTX(ssl, site) != NULL)
		return SSL_TLSEXT_ERR_OK;
	*alert = SSL_AD_INTERNAL_ERROR;
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* A client wants to know whether the certificate was revoked. */
static int on_status(SSL *ssl, void *arg)
{
	const struct tls_context *c = arg;
	const struct tls *t = SSL_get_app_data(ssl);
	const X509 *used = SSL_get_certificate(ssl);
	uint8_t *copy;

	for (size_t i = 0; i < c->cert_count; i++) {
		const struct tls_certificate *cert = &c->certs[i];

		if (cert->cert != used)
			continue;
		if (cert->ocsp == NULL || cert->ocsp_until_s <= t->now_s)
			return SSL_TLSEXT_ERR_NOACK;
		copy = OPENSSL_memdup(cert->ocsp, cert->ocsp_len);
		if (copy == NULL)
			return SSL_TLSEXT_ERR_NOACK;
		(void)SSL_set_tlsext_status_ocsp_resp(ssl, copy,
						      (long)cert->ocsp_len);
		return SSL_TLSEXT_ERR_OK; /* the copy is ssl's now */
	}
	return SSL_TLSEXT_ERR_NOACK;
}

/* ---- servers: making one ---- */

static bool site_set_up(struct tls_context *c, struct tls_site *site,
			const struct tls_server_settings *set,
			char error[TLS_ERROR_SIZE])
{
	SSL_CTX *ssl = ssl_new(c, &set->protocol, error);
	int ask = SSL_VERIFY_NONE;

	site->ssl = ssl;
	if (ssl == NULL)
		return false;
	for (unsigned kind = 0; kind < TLS_KEYS; kind++) {
		int at = site->of[kind];

		if (at >= 0 &&
		    !use_certificate(ssl, &c->certs[at],
				     set->pairs[at].cert_name, error))
			return false;
	}
	(void)SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
	(void)SSL_CTX_set_tlsext_servername_callback(ssl, on_name);
	(void)SSL_CTX_set_tlsext_servername_arg(ssl, c);
	(void)SSL_CTX_set_tlsext_status_cb(ssl, on_status);
	(void)SSL_CTX_set_tlsext_status_arg(ssl, c);
	if (c->ask != TLS_ASK_NONE)
		ask = SSL_VERIFY_PEER;
	if (c->ask == TLS_ASK_REQUIRE)
		ask |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
	SSL_CTX_set_verify(ssl, ask, NULL);
	if (c->trust != NULL) {
		SSL_CTX_set1_cert_store(ssl, c->trust->store);
		SSL_CTX_set_client_CA_list(ssl,
					   SSL_dup_CA_list(c->trust->names));
	}
	/* Where client certificates are asked for in another way, a session
	 * of here does not count. */
	if (SSL_CTX_set_session_id_context(ssl, c->policy, sizeof(c->policy)) !=
	    1)
		return tls_complain(error, "OpenSSL: %s", tls_openssl_error());
	if (c->tickets == NULL) {
		(void)SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET);
		if (SSL_CTX_set_num_tickets(ssl, 0) == 1)
			return true;
	} else if (tls_tickets_use(c->tickets, ssl)) {
		return true;
	}
	return tls_complain(error, "OpenSSL: %s", tls_openssl_error());
}

/* The site with these certificates, made if there is none; -1: no memory. */
static int site_find(struct tls_context *c, const int of[TLS_KEYS])
{
	struct tls_site *more;

	for (size_t i = 0; i < c->site_count; i++) {
		if (memcmp(c->sites[i].of, of, sizeof(c->sites[i].of)) == 0)
			return (int)i;
	}
	more = OPENSSL_realloc(c->sites,
			       (c->site_count + 1) * sizeof(*c->sites));
	if (more == NULL)
		return -1;
	c->sites = more;
	more[c->site_count] = (struct tls_site){ 0 };
	memcpy(more[c->site_count].of, of, sizeof(more->of));
	return (int)c->site_count++;
}

/*
 * The hosts of one name are those of its certificates; the first is left,
 * and its `at` becomes the site.  Returns how many there were; 0: no memory.
 */
static size_t host_merge(struct tls_context *c, size_t first)
{
	struct tls_host *host = &c->hosts.list[first];
	int of[TLS_KEYS] = { -1, -1, -1 };
	size_t count = 0;
	int site;

	while (first + count < c->hosts.count &&
	       strcmp(host[count].name, host->name) == 0) {
		unsigned at = host[count].at;
		enum tls_key kind = c->certs[at].kind;

		if (of[kind] < 0)
			of[kind] = (int)at;
		count++;
	}
	site = site_find(c, of);
	if (site < 0)
		return 0;
	host->at = (unsigned)site;
	return count;
}

static bool hosts_merge(struct tls_context *c)
{
	size_t kept = 0;
	size_t count;

	for (size_t i = 0; i < c->hosts.count; i += count) {
		struct tls_host host;

		count = host_merge(c, i);
		if (count == 0)
			return false;
		for (size_t k = 1; k < count; k++) {
			OPENSSL_free(c->hosts.list[i + k].name);
			c->hosts.list[i + k].name = NULL;
		}
		host = c->hosts.list[i];
		c->hosts.list[i].name = NULL;
		c->hosts.list[kept++] = host;
	}
	c->hosts.count = kept;
	return true;
}

/* Find all sites; that for who names no host comes first. */
static bool find_sites(struct tls_context *c, char error[TLS_ERROR_SIZE])
{
	int alone[TLS_KEYS] = { -1, -1, -1 };
	const struct tls_host *host = NULL;
	char name[TLS_NAME_MAX] = "";
	struct tls_site first;

	if (c->hosts.count > 0 && c->hosts.list[0].at == 0)
		memcpy(name, c->hosts.list[0].name,
		       strlen(c->hosts.list[0].name) + 1);
	if (c->hosts.count > 0)
		qsort(c->hosts.list, c->hosts.count, sizeof(*c->hosts.list),
		      by_name);
	/* The first certificate may be for an address only. */
	alone[c->certs[0].kind] = 0;
	if (name[0] == '\0' && site_find(c, alone) < 0)
		return tls_complain(error, "out of memory");
	if (!hosts_merge(c))
		return tls_complain(error, "out of memory");
	host = find_host(&c->hosts, name);
	if (host == NULL || host->at == 0)
		return true;
	first = c->sites[0];
	c->sites[0] = c->sites[host->at];
	c->sites[host->at] = first;
	for (size_t i = 0, was = host->at; i < c->hosts.count; i++) {
		if (c->hosts.list[i].at == was)
			c->hosts.list[i].at = 0;
		else if (c->hosts.list[i].at == 0)
			c->hosts.list[i].at = (unsigned)was;
	}
	return true;
}

static bool read_pairs(struct tls_context *c, const struct tls_pair *pairs,
		       size_t count, int64_t now_s, char error[TLS_ERROR_SIZE])
{
	c->certs = OPENSSL_zalloc(count * sizeof(*c->certs));
	if (c->certs == NULL)
		return tls_complain(error, "out of memory");
	for (size_t i = 0; i < count; i++) {
		c->cert_count = i + 1;
		if (!tls_certificate_parse(&c->certs[i], &pairs[i], now_s,
					   error))
			return false;
		/* Clients look at nothing else (RFC 9525, section 2). */
		if (c->server &&
		    !tls_certificate_names(&c->certs[i], (unsigned)i,
					   &c->hosts)) {
			return tls_complain(error,
					    "%s: the certificate names no "
					    "host: need one with a "
					    "subjectAltName",
					    pairs[i].cert_name);
		}
	}
	return true;
}

static bool server_set_up(struct tls_context *c,
			  const struct tls_server_settings *set,
			  char error[TLS_ERROR_SIZE])
{
	c->ask = set->ask;
	c->trust = set->trust != NULL ? tls_trust_ref(set->trust) : NULL;
	c->tickets = set->tickets != NULL ? tls_tickets_ref(set->tickets)
					  : NULL;
	if (c->ask == TLS_ASK_REQUIRE && c->trust == NULL) {
		return tls_complain(error, "client certificates are required, "
					   "but no CA is given to check them "
					   "with");
	}
	if (set->pair_count == 0)
		return tls_complain(error, "a certificate and its key are "
					   "needed");
	if (!set_policy(c))
		return tls_complain(error, "OpenSSL: %s", tls_openssl_error());
	if (!read_pairs(c, set->pairs, set->pair_count, set->now_s, error) ||
	    !find_sites(c, error))
		return false;
	for (size_t i = 0; i < c->site_count; i++) {
		if (!site_set_up(c, &c->sites[i], set, error))
			return false;
	}
	return true;
}

struct tls_context *tls_context_server(const struct tls_server_settings *set,
				       char error[TLS_ERROR_SIZE])
{
	struct tls_context *c = context_new(true, error);

	ERR_clear_error();
	if (c != NULL && !server_set_up(c, set, error))
		tls_context_unref(&c);
	ERR_clear_error();
	return c;
}

int64_t tls_context_expires_s(const struct tls_context *context)
{
	int64_t first_s = INT64_MAX;

	for (size_t i = 0; i < context->cert_count; i++) {
		if (context->certs[i].expires_s < first_s)
			first_s = context->certs[i].expires_s;
	}
	return first_s;
}

/* ---- clients ---- */

static bool is_address(const char *name)
{
	struct in6_addr addr;

	return inet_pton(AF_INET, name, &addr) == 1 ||
	       inet_pton(AF_INET6, name, &addr) == 1;
}

static bool client_copy(struct tls_context *c,
			const struct tls_client_settings *set)
{
	c->check = set->check;
	if (set->trust != NULL && set->check == TLS_CHECK_NAME)
		c->trust = tls_trust_ref(set->trust);
	if (set->name != NULL && set->name[0] != '\0') {
		c->name = OPENSSL_strdup(set->name);
		c->name_is_address = is_address(set->name);
		if (c->name == NULL)
			return false;
	}
	if (set->pin_count > 0) {
		c->pins = OPENSSL_memdup(set->pins,
					 set->pin_count * sizeof(*c->pins));
		c->pin_count = set->pin_count;
		if (c->pins == NULL)
			return false;
	}
	c->sites = OPENSSL_zalloc(sizeof(*c->sites));
	c->site_count = c->sites != NULL ? 1 : 0;
	return c->sites != NULL && set_policy(c);
}

static bool client_set_up(struct tls_context *c,
			  const struct tls_client_settings *set,
			  char error[TLS_ERROR_SIZE])
{
	SSL_CTX *ssl;

	if (set->name != NULL && strlen(set->name) >= TLS_NAME_MAX)
		return tls_complain(error, "the server's name is longer than "
					   "255 octets");
	if (set->check == TLS_CHECK_NAME &&
	    (set->trust == NULL || set->name == NULL || set->name[0] == '\0'))
		return tls_complain(error, "to check a server's certificate "
					   "its name and the CAs are needed");
	if (set->check == TLS_CHECK_PIN && set->pin_count == 0)
		return tls_complain(error, "to check a server's public key its "
					   "SHA-256 is needed");
	if (!client_copy(c, set))
		return tls_complain(error, "out of memory");
	ssl = ssl_new(c, &set->protocol, error);
	c->sites[0].ssl = ssl;
	if (ssl == NULL)
		return false;
	SSL_CTX_set_verify(ssl,
			   c->check == TLS_CHECK_NOTHING ? SSL_VERIFY_NONE
							 : SSL_VERIFY_PEER,
			   NULL);
	if (c->trust != NULL)
		SSL_CTX_set1_cert_store(ssl, c->trust->store);
	/* Callers keep sessions; OpenSSL is not to. */
	(void)SSL_CTX_set_session_cache_mode(
		ssl, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(ssl, tls_new_session);
	if (set->pair == NULL)
		return true;
	return read_pairs(c, set->pair, 1, set->now_s, error) &&
	       use_certificate(ssl, &c->certs[0], set->pair->cert_name, error);
}

struct tls_context *tls_context_client(const struct tls_client_settings *set,
				       char error[TLS_ERROR_SIZE])
{
	struct tls_context *c = context_new(false, error);

	ERR_clear_error();
	if (c != NULL && !client_set_up(c, set, error))
		tls_context_unref(&c);
	ERR_clear_error();
	return c;
}
