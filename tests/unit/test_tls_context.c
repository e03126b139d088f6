#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy/tls_context.h"
#include "proxy/tls_load.h"
#include "tests/unit/tls_certs.h"
#include "tests/unit/tls_talk.h"

enum { DAY_S = 86400, PERIOD_S = 3600 };

static struct tls_made ca, other_ca, ec, rsa, star, address, nameless, weak;
static struct tls_made expired, future, client_cert;
static struct tls_trust *trust, *other_trust;
static char error[TLS_ERROR_SIZE];

static bool draw(void *arg, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)talk_random(arg);
	return true;
}

static bool draw_nothing(void *arg, uint8_t *buf, size_t len)
{
	(void)arg;
	memset(buf, 0, len);
	return false;
}

static void make(struct tls_made *made, const char *subject, const char *names,
		 enum tls_made_key key, const struct tls_made *issuer)
{
	const struct tls_wish wish = { .subject = subject,
				       .names = names,
				       .key = key,
				       .ca = issuer == NULL,
				       .issuer = issuer };

	tls_made_new(made, &wish);
}

static struct tls_trust *trust_in(const struct tls_made *made)
{
	struct tls_span pem = tls_made_pem(made);
	struct tls_trust *made_trust = tls_trust_new(pem, "ca", error);

	tls_made_free_span(&pem);
	assert_non_null(made_trust);
	return made_trust;
}

static int set_up(void **state)
{
	(void)state;
	make(&ca, "Test CA", NULL, MADE_EC, NULL);
	make(&other_ca, "Other CA", NULL, MADE_EC, NULL);
	make(&ec, "ec", "DNS:mx.example,DNS:MAIL.example", MADE_EC, &ca);
	make(&rsa, "rsa", "DNS:mx.example", MADE_RSA, &ca);
	make(&star, "star", "DNS:*.farm.example,IP:192.0.2.1", MADE_EC, &ca);
	make(&address, "address", "IP:192.0.2.1", MADE_EC, &ca);
	make(&nameless, "nameless", NULL, MADE_EC, &ca);
	make(&weak, "weak", "DNS:mx.example", MADE_RSA_1024, &ca);
	make(&client_cert, "client \r\n \xc3\xa4,O=x", "DNS:client.example",
	     MADE_EC, &ca);
	tls_made_new(&expired,
		     &(struct tls_wish){ .subject = "expired",
					 .names = "DNS:mx.example",
					 .from_s = MADE_NOW_S - 20 * DAY_S,
					 .until_s = MADE_NOW_S - 10 * DAY_S,
					 .issuer = &ca });
	tls_made_new(&future, &(struct tls_wish){ .subject = "future",
						  .names = "DNS:mx.example",
						  .from_s = MADE_NOW_S + DAY_S,
						  .issuer = &ca });
	trust = trust_in(&ca);
	other_trust = trust_in(&other_ca);
	return 0;
}

static int tear_down(void **state)
{
	struct tls_made *const all[] = { &ca,       &other_ca,   &ec,
					 &rsa,      &star,       &address,
					 &nameless, &weak,       &expired,
					 &future,   &client_cert };

	(void)state;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		tls_made_free(all[i]);
	tls_trust_unref(&trust);
	tls_trust_unref(&other_trust);
	return 0;
}

static struct tls_context *server_of(const struct tls_server_settings *set)
{
	struct tls_context *c = tls_context_server(set, error);

	if (c == NULL)
		print_message("%s\n", error);
	assert_non_null(c);
	return c;
}

static struct tls_context *client_of(const struct tls_client_settings *set)
{
	struct tls_context *c = tls_context_client(set, error);

	if (c == NULL)
		print_message("%s\n", error);
	assert_non_null(c);
	return c;
}

/* Shake hands; and say a word each way, so that tickets have come. */
static void meet(struct talk *t, struct tls_context *server,
		 struct tls_context *client, const struct tls_session *session)
{
	*t = (struct talk){ 0 };
	talk_begin(t, server, client, session);
	talk_say(&t->client, "EHLO a\r\n", 8);
	talk_say(&t->server, "250 b\r\n", 7);
	talk_run(t);
}

static void assert_open(const struct talk *t)
{
	if (tls_state(t->server.tls) != TLS_OPEN ||
	    tls_state(t->client.tls) != TLS_OPEN)
		print_message("server: %s, client: %s\n",
			      tls_reason(t->server.tls),
			      tls_reason(t->client.tls));
	assert_int_equal(tls_state(t->server.tls), TLS_OPEN);
	assert_int_equal(tls_state(t->client.tls), TLS_OPEN);
	assert_int_equal(t->server.got.len, 8);
	assert_int_equal(t->client.got.len, 7);
}

/* ---- what an operator reads ---- */

static void an_unusable_pair_is_refused_with_the_reason(void **state)
{
	const struct tls_span none = { .data = (const uint8_t *)"x\n",
				       .len = 2 };
	struct tls_span sealed = tls_made_encrypted(&ec);
	struct tls_span stale = tls_made_ocsp(&ec, &ca, MADE_NOW_S - 1);
	struct tls_span alien = tls_made_ocsp(&rsa, &ca, MADE_NOW_S + DAY_S);
	struct tls_made turned = { 0 };
	const struct {
		const char *about;
		struct tls_span cert, key, ocsp;
		const char *why;
	} cases[] = {
		{ "no certificate",
		  none,
		  ec.pair.key,
		  { 0 },
		  "C: no certificate in it" },
		{ "a key where the certificate should be",
		  ec.pair.key,
		  ec.pair.key,
		  { 0 },
		  "C: no certificate in it" },
		{ "no key",
		  ec.pair.cert,
		  none,
		  { 0 },
		  "K: no private key in it" },
		{ "a certificate where the key should be",
		  ec.pair.cert,
		  ec.pair.cert,
		  { 0 },
		  "K: no private key in it" },
		{ "an encrypted key",
		  ec.pair.cert,
		  sealed,
		  { 0 },
		  "K: the key is encrypted" },
		{ "the key of another",
		  ec.pair.cert,
		  rsa.pair.key,
		  { 0 },
		  "K: the key is not that of the certificate in C" },
		{ "expired",
		  expired.pair.cert,
		  expired.pair.key,
		  { 0 },
		  "C: the certificate expired on 2027-01-05" },
		{ "not valid yet",
		  future.pair.cert,
		  future.pair.key,
		  { 0 },
		  "C: the certificate is valid only from 2027-01-16 on" },
		{ "for nobody",
		  nameless.pair.cert,
		  nameless.pair.key,
		  { 0 },
		  "C: the certificate names no host" },
		{ "too short a key",
		  weak.pair.cert,
		  weak.pair.key,
		  { 0 },
		  "C: OpenSSL refuses the certificate: ee key too small" },
		{ "no OCSP response", ec.pair.cert, ec.pair.key, none,
		  "O: no successful OCSP response in it" },
		{ "an OCSP response of yesterday", ec.pair.cert, ec.pair.key,
		  stale, "O: the OCSP response was good until 2027-01-15" },
		{ "an OCSP response for another", ec.pair.cert, ec.pair.key,
		  alien, "O: the OCSP response is about another certificate" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct tls_pair pair = { .cert_name = "C",
					       .key_name = "K",
					       .ocsp_name = "O",
					       .cert = cases[i].cert,
					       .key = cases[i].key,
					       .ocsp = cases[i].ocsp };
		const struct tls_server_settings set = { .pairs = &pair,
							 .pair_count = 1,
							 .now_s = MADE_NOW_S };

		error[0] = '\0';
		assert_null(tls_context_server(&set, error));
		print_message("  %s: %s\n", cases[i].about, error);
		assert_memory_equal(error, cases[i].why, strlen(cases[i].why));
		assert_null(strchr(error, '\n'));
	}
	/* The chain the wrong way round. */
	make(&turned, "turned", "DNS:mx.example", MADE_EC, &ca);
	tls_made_free_span(&turned.pair.key);
	turned.pair.key = (struct tls_span){ 0 };
	tls_made_chain(&turned, &ec);
	turned.pair.key = ec.pair.key;

	const struct tls_server_settings set = { .pairs = &turned.pair,
						 .pair_count = 1 };

	assert_null(tls_context_server(&set, error));
	assert_non_null(strstr(error, "certificate number 2 in it is that of "
				      "the key"));
	turned.pair.key = (struct tls_span){ 0 };
	tls_made_free(&turned);
	tls_made_free_span(&sealed);
	tls_made_free_span(&stale);
	tls_made_free_span(&alien);
}

static void settings_that_cannot_be_are_refused(void **state)
{
	const struct tls_server_settings servers[] = {
		{ .pair_count = 0 },
		{ .pairs = &ec.pair, .pair_count = 1, .ask = TLS_ASK_REQUIRE },
		{ .pairs = &ec.pair,
		  .pair_count = 1,
		  .protocol.ciphers = "NONSENSE" },
		{ .pairs = &ec.pair,
		  .pair_count = 1,
		  .protocol.suites = "NONSENSE" },
		{ .pairs = &ec.pair,
		  .pair_count = 1,
		  .protocol.groups = "NONSENSE" },
		{ .pairs = &ec.pair,
		  .pair_count = 1,
		  .protocol = { .min = TLS_VERSION_1_3,
				.max = TLS_VERSION_1_2 } },
	};
	static const char *const why[] = {
		"a certificate and its key are needed",
		"client certificates are required, but no CA",
		"ciphers \"NONSENSE\": OpenSSL knows none",
		"cipher suites \"NONSENSE\": OpenSSL does not know",
		"groups \"NONSENSE\": OpenSSL does not know",
		"the lowest version of TLS is above the highest",
	};
	const struct tls_client_settings clients[] = {
		{ .check = TLS_CHECK_NAME, .name = "mx.example" },
		{ .check = TLS_CHECK_NAME, .trust = trust },
		{ .check = TLS_CHECK_NAME, .trust = trust, .name = "" },
		{ .check = TLS_CHECK_PIN },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(servers) / sizeof(servers[0]); i++) {
		assert_null(tls_context_server(&servers[i], error));
		assert_memory_equal(error, why[i], strlen(why[i]));
	}
	for (size_t i = 0; i < sizeof(clients) / sizeof(clients[0]); i++) {
		assert_null(tls_context_client(&clients[i], error));
		assert_non_null(strstr(error, "needed"));
	}
}

static void time_is_not_looked_at_unless_it_is_given(void **state)
{
	const struct tls_pair pairs[] = { ec.pair, expired.pair };
	const struct tls_server_settings set = { .pairs = pairs,
						 .pair_count = 2 };
	struct tls_context *c = server_of(&set);

	(void)state;
	assert_int_equal(tls_context_expires_s(c), MADE_NOW_S - 10 * DAY_S);
	tls_context_unref(&c);
}

/* Write a file, and forget how: these are for the loader alone. */
static void put_file(char *path, struct tls_span span)
{
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, span.data, span.len), span.len);
	assert_int_equal(close(fd), 0);
}

static void pairs_and_cas_are_read_from_files(void **state)
{
	char cert[] = "/tmp/test-tls-cert-XXXXXX";
	char key[] = "/tmp/test-tls-key-XXXXXX";
	char nothing[] = "/tmp/test-tls-empty-XXXXXX";
	struct tls_trust *read;
	struct tls_pair pair;

	(void)state;
	put_file(cert, ec.pair.cert);
	put_file(key, ec.pair.key);
	put_file(nothing, (struct tls_span){ .data = (const uint8_t *)"" });
	assert_true(tls_pair_load(&pair, cert, key, NULL, error));
	assert_string_equal(pair.key_name, key);
	assert_int_equal(pair.key.len, ec.pair.key.len);
	assert_memory_equal(pair.key.data, ec.pair.key.data, pair.key.len);

	const struct tls_server_settings set = { .pairs = &pair,
						 .pair_count = 1 };
	struct tls_context *c = server_of(&set);

	/* A context lives on without what it was made of. */
	tls_pair_unload(&pair);
	assert_null(pair.key.data);
	assert_int_equal(tls_context_expires_s(c), MADE_NOW_S + 90 * DAY_S);
	tls_context_unref(&c);

	assert_false(
		tls_pair_load(&pair, "/nonexistent/c.pem", key, NULL, error));
	assert_string_equal(error, "/nonexistent/c.pem: cannot be read: No "
				   "such file or directory");
	assert_false(tls_pair_load(&pair, cert, nothing, NULL, error));
	assert_non_null(strstr(error, "is empty"));
	assert_false(tls_pair_load(&pair, cert, key, "/", error));
	assert_non_null(strstr(error, "/: cannot be read"));
	assert_false(tls_pair_load(&pair, cert, "/dev/zero", NULL, error));
	assert_string_equal(error, "/dev/zero: is larger than 4 MiB");
	assert_null(pair.cert.data);
	/* One that nobody writes to is not waited for. */
	(void)unlink(nothing);
	assert_int_equal(mkfifo(nothing, 0600), 0);
	assert_false(tls_pair_load(&pair, nothing, NULL, NULL, error));
	assert_non_null(strstr(error, "is empty"));

	read = tls_trust_load(cert, error);
	assert_non_null(read);
	tls_trust_unref(&read);
	assert_null(tls_trust_load(key, error));
	assert_non_null(strstr(error, "no CA certificate in it"));
	(void)unlink(cert);
	(void)unlink(key);
	(void)unlink(nothing);
}

/* ---- which certificate ---- */

static void the_name_a_client_asks_for_chooses_the_certificate(void **state)
{
	static const char *const only_rsa = "ECDHE-RSA-AES128-GCM-SHA256";
	static const struct {
		const char *name;
		bool rsa;
		const char *subject; /* NULL: no certificate for that */
	} cases[] = {
		{ "mx.example", false, "CN=ec" },
		{ "mx.example", true, "CN=rsa" },
		{ "MX.Example", true, "CN=rsa" },
		{ "mail.example", false, "CN=ec" },
		{ "mail.example", true, NULL }, /* there is but an EC one */
		{ "a.farm.example", false, "CN=star" },
		{ "A.FARM.example", false, "CN=star" },
		{ "a.b.farm.example", false, "CN=ec" }, /* first pair's */
		{ "farm.example", false, "CN=ec" },
		{ "unknown.example", true, "CN=rsa" },
		{ "192.0.2.1", false, "CN=ec" }, /* not sent */
		{ NULL, false, "CN=ec" },
		{ NULL, true, "CN=rsa" },
	};
	const struct tls_pair pairs[] = { ec.pair, star.pair, rsa.pair };
	const struct tls_server_settings set = { .pairs = pairs,
						 .pair_count = 3 };
	struct tls_context *server = server_of(&set);

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct tls_client_settings want = {
			.name = cases[i].name,
			.protocol.max = cases[i].rsa ? TLS_VERSION_1_2
						     : TLS_VERSION_DEFAULT,
			.protocol.ciphers = cases[i].rsa ? only_rsa : NULL,
		};
		struct tls_context *client = client_of(&want);
		struct tls_info info;
		struct talk t;

		print_message("  %s\n", cases[i].name ? cases[i].name : "-");
		meet(&t, server, client, NULL);
		if (cases[i].subject == NULL) {
			assert_string_equal(tls_reason(t.server.tls),
					    "handshake: no shared cipher");
		} else {
			assert_open(&t);
			tls_describe(t.client.tls, &info);
			assert_string_equal(info.subject, cases[i].subject);
			tls_describe(t.server.tls, &info);
			if (cases[i].name == NULL || i == 10)
				assert_string_equal(info.name, "");
			else
				assert_string_equal(info.name, cases[i].name);
		}
		talk_free(&t);
		tls_context_unref(&client);
	}
	tls_context_unref(&server);
}

static void a_certificate_for_an_address_may_come_first(void **state)
{
	const struct tls_pair pairs[] = { address.pair, rsa.pair, star.pair };
	const struct tls_server_settings set = { .pairs = pairs,
						 .pair_count = 3 };
	static const char *const names[] = { "192.0.2.1", "mx.example",
					     "a.farm.example", "b.example" };
	static const char *const subjects[] = { "CN=address", "CN=rsa",
						"CN=star", "CN=address" };
	struct tls_context *server = server_of(&set);

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		const struct tls_client_settings want = { .name = names[i] };
		struct tls_context *client = client_of(&want);
		struct tls_info info;
		struct talk t;

		meet(&t, server, client, NULL);
		assert_open(&t);
		tls_describe(t.client.tls, &info);
		assert_string_equal(info.subject, subjects[i]);
		talk_free(&t);
		tls_context_unref(&client);
	}
	tls_context_unref(&server);
}

/* ---- what a client checks ---- */

static void pin_of(const struct tls_made *made, uint8_t pin[TLS_PIN_SIZE])
{
	unsigned char *der = NULL;
	int len = i2d_PUBKEY(made->key, &der);

	assert_true(len > 0);
	(void)SHA256(der, (size_t)len, pin);
	OPENSSL_free(der);
}

/* A server of OpenSSL's own: ours would not serve all of these. */
static void check_server(const struct tls_made *made,
			 struct tls_client_settings set,
			 enum tls_version version, const char *why)
{
	struct tls_context *client;
	struct tls_info info;
	struct raw raw;
	struct tls *t;

	set.protocol.max = version;
	client = client_of(&set);
	t = tls_begin(client, NULL, MADE_NOW_S);
	raw_begin(&raw, made);
	raw_run(&raw, t);
	if (why != NULL) {
		assert_int_equal(tls_state(t), TLS_FAILED);
		assert_string_equal(tls_reason(t), why);
		/* It was told, before it could take this for good. */
		assert_false(SSL_is_init_finished(raw.ssl));
	} else {
		assert_int_equal(tls_state(t), TLS_OPEN);
		tls_describe(t, &info);
		assert_int_equal(info.verified, set.check != TLS_CHECK_NOTHING);
	}
	raw_free(&raw);
	tls_free(&t);
	tls_context_unref(&client);
}

static void a_client_checks_the_server_and_says_what_is_wrong(void **state)
{
	struct tls_pin pins[2] = { 0 };
	const struct {
		const char *about;
		const struct tls_made *made;
		struct tls_client_settings set;
		const char *why; /* NULL: nothing */
	} cases[] = {
		{ "the right name",
		  &ec,
		  { .check = TLS_CHECK_NAME,
		    .name = "mx.example",
		    .trust = trust },
		  NULL },
		{ "a name under a star",
		  &star,
		  { .check = TLS_CHECK_NAME,
		    .name = "b1.farm.example",
		    .trust = trust },
		  NULL },
		{ "the right address",
		  &star,
		  { .check = TLS_CHECK_NAME,
		    .name = "192.0.2.1",
		    .trust = trust },
		  NULL },
		{ "another address",
		  &star,
		  { .check = TLS_CHECK_NAME,
		    .name = "192.0.2.2",
		    .trust = trust },
		  "the certificate is for *.farm.example, not for "
		  "192.0.2.2" },
		{ "another name",
		  &ec,
		  { .check = TLS_CHECK_NAME,
		    .name = "b1.farm.example",
		    .trust = trust },
		  "the certificate is for mx.example, MAIL.example, "
		  "not for b1.farm.example" },
		{ "no common name counts",
		  &nameless,
		  { .check = TLS_CHECK_NAME,
		    .name = "nameless",
		    .trust = trust },
		  "the certificate is for nobody, not for nameless" },
		{ "another CA",
		  &ec,
		  { .check = TLS_CHECK_NAME,
		    .name = "mx.example",
		    .trust = other_trust },
		  "the certificate of CN=ec: unable to get local "
		  "issuer certificate" },
		{ "signed by itself",
		  &other_ca,
		  { .check = TLS_CHECK_NAME,
		    .name = "mx.example",
		    .trust = trust },
		  "the certificate of CN=Other CA: self-signed "
		  "certificate" },
		{ "expired",
		  &expired,
		  { .check = TLS_CHECK_NAME,
		    .name = "mx.example",
		    .trust = trust },
		  "the certificate of CN=expired expired on "
		  "2027-01-05" },
		{ "not valid yet",
		  &future,
		  { .check = TLS_CHECK_NAME,
		    .name = "mx.example",
		    .trust = trust },
		  "the certificate of CN=future: certificate is not "
		  "yet valid" },
		{ "one of the pinned keys, expired",
		  &expired,
		  { .check = TLS_CHECK_PIN, .pins = pins, .pin_count = 2 },
		  NULL },
		{ "no pinned key",
		  &ec,
		  { .check = TLS_CHECK_PIN, .pins = pins, .pin_count = 2 },
		  "the public key of the certificate is none of "
		  "those pinned" },
		{ "nothing is checked",
		  &expired,
		  { .name = "x.example" },
		  NULL },
	};

	(void)state;
	pin_of(&expired, pins[1].sha256);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		print_message("  %s\n", cases[i].about);
		for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3;
		     v++)
			check_server(cases[i].made, cases[i].set, v,
				     cases[i].why);
	}
}

static void the_chain_that_is_given_is_sent(void **state)
{
	const struct tls_wish wish = { .subject = "between",
				       .ca = true,
				       .issuer = &ca };
	const struct tls_client_settings want = { .check = TLS_CHECK_NAME,
						  .name = "mx.example",
						  .trust = trust };
	struct tls_context *client = client_of(&want);
	struct tls_made between, leaf;

	(void)state;
	tls_made_new(&between, &wish);
	make(&leaf, "leaf", "DNS:mx.example", MADE_EC, &between);
	for (unsigned whole = 0; whole < 2; whole++) {
		const struct tls_server_settings set = { .pairs = &leaf.pair,
							 .pair_count = 1 };
		struct tls_context *server;
		struct talk t;

		if (whole)
			tls_made_chain(&leaf, &between);
		server = server_of(&set);
		meet(&t, server, client, NULL);
		if (whole)
			assert_open(&t);
		else
			assert_string_equal(tls_reason(t.client.tls),
					    "the certificate of CN=leaf: "
					    "unable to get local issuer "
					    "certificate");
		talk_free(&t);
		tls_context_unref(&server);
	}
	tls_made_free(&between);
	tls_made_free(&leaf);
	tls_context_unref(&client);
}

/* ---- what a server asks of clients ---- */

static void client_certificates_are_asked_for_and_told_of(void **state)
{
	static const struct {
		const char *about;
		enum tls_ask ask;
		bool trusted, shown;
		bool open, seen, verified;
	} cases[] = {
		{ "not asked for", TLS_ASK_NONE, false, true, true, false,
		  false },
		{ "asked for, none there", TLS_ASK_LOG, false, false, true,
		  false, false },
		{ "asked for, no CA", TLS_ASK_LOG, false, true, true, true,
		  false },
		{ "asked for, good", TLS_ASK_LOG, true, true, true, true,
		  true },
		{ "required, none there", TLS_ASK_REQUIRE, true, false, false,
		  false, false },
		{ "required, good", TLS_ASK_REQUIRE, true, true, true, true,
		  true },
	};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
		size_t at = i / 2;
		enum tls_version max = i % 2 == 0 ? TLS_VERSION_1_2
						  : TLS_VERSION_1_3;
		const struct tls_server_settings set = {
			.pairs = &ec.pair,
			.pair_count = 1,
			.ask = cases[at].ask,
			.trust = cases[at].trusted ? trust : NULL,
		};
		const struct tls_client_settings want = {
			.pair = cases[at].shown ? &client_cert.pair : NULL,
			.protocol.max = max,
		};
		struct tls_context *server = server_of(&set);
		struct tls_context *client = client_of(&want);
		struct tls_info info;
		struct talk t;

		print_message("  %s\n", cases[at].about);
		meet(&t, server, client, NULL);
		if (cases[at].open) {
			assert_open(&t);
			tls_describe(t.server.tls, &info);
			assert_string_equal(info.subject,
					    cases[at].seen
						    ? "CN=client \\0D\\0A "
						      "\\C3\\A4\\,O=x"
						    : "");
			assert_int_equal(strlen(info.fingerprint),
					 cases[at].seen ? 64 : 0);
			assert_int_equal(info.verified, cases[at].verified);
		} else {
			assert_string_equal(tls_reason(t.server.tls),
					    "handshake: peer did not return a "
					    "certificate");
			assert_int_equal(tls_state(t.client.tls), TLS_FAILED);
			assert_int_equal(t.server.got.len, 0);
		}
		talk_free(&t);
		tls_context_unref(&server);
		tls_context_unref(&client);
	}
}

static void a_client_certificate_of_another_ca_is_judged(void **state)
{
	const struct tls_client_settings want = { .pair = &client_cert.pair };
	struct tls_context *client = client_of(&want);

	(void)state;
	for (enum tls_ask ask = TLS_ASK_LOG; ask <= TLS_ASK_REQUIRE; ask++) {
		const struct tls_server_settings set = {
			.pairs = &ec.pair,
			.pair_count = 1,
			.ask = ask,
			.trust = other_trust,
		};
		struct tls_context *server = server_of(&set);
		struct tls_info info;
		struct talk t;

		meet(&t, server, client, NULL);
		if (ask == TLS_ASK_LOG) {
			assert_open(&t);
			tls_describe(t.server.tls, &info);
			assert_true(info.subject[0] != '\0');
			assert_false(info.verified);
		} else {
			assert_non_null(strstr(tls_reason(t.server.tls),
					       "unable to get local issuer"));
			assert_int_equal(tls_state(t.client.tls), TLS_FAILED);
		}
		talk_free(&t);
		tls_context_unref(&server);
	}
	tls_context_unref(&client);
}

/* ---- tickets ---- */

static bool is_resumed(struct tls_context *server, struct tls_context *client,
		       struct tls_session **session)
{
	struct tls_session *fresh;
	struct tls_info up, down;
	struct talk t;

	meet(&t, server, client, *session);
	assert_open(&t);
	tls_describe(t.server.tls, &up);
	tls_describe(t.client.tls, &down);
	assert_int_equal(up.resumed, down.resumed);
	/* What is known of the server does not get lost. */
	assert_string_equal(down.subject, "CN=ec");
	assert_string_equal(up.name, "mx.example");
	fresh = tls_take_session(t.client.tls);
	assert_null(tls_take_session(t.client.tls));
	/* So that those who use a ticket once only have another. */
	assert_true(fresh != NULL || !up.resumed);
	if (fresh != NULL) {
		tls_session_free(session);
		*session = fresh;
	}
	talk_free(&t);

	return up.resumed;
}

/* Without taking a new session. */
static bool is_resumed_once_more(struct tls_context *server,
				 struct tls_context *client,
				 const struct tls_session *session)
{
	struct tls_info info;
	struct talk t;

	meet(&t, server, client, session);
	assert_open(&t);
	tls_describe(t.client.tls, &info);
	talk_free(&t);
	return info.resumed;
}

static void sessions_are_resumed_on_all_contexts_with_the_keys(void **state)
{
	uint64_t seed = 5;

	(void)state;
	for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3; v++) {
		struct tls_tickets *tickets = tls_tickets_new(draw, &seed,
							      PERIOD_S, 100);
		const struct tls_server_settings set = {
			.pairs = &ec.pair,
			.pair_count = 1,
			.tickets = tickets,
		};
		const struct tls_client_settings want = {
			.name = "mx.example",
			.protocol.max = v,
			.check = TLS_CHECK_NAME,
			.trust = trust,
		};
		struct tls_context *one = server_of(&set);
		struct tls_context *two = server_of(&set);
		struct tls_context *client = client_of(&want);
		struct tls_session *session = NULL;

		/* As at a reload: the keys outlive a context. */
		assert_false(is_resumed(one, client, &session));
		assert_non_null(session);
		assert_true(is_resumed(one, client, &session));
		tls_context_unref(&one);
		assert_non_null(session);
		assert_true(is_resumed(two, client, &session));

		/* A server may give no new one: that of before goes on. */
		assert_true(is_resumed_once_more(two, client, session));
		assert_true(is_resumed_once_more(two, client, session));

		/* Too early: nothing changes. */
		assert_true(tls_tickets_rotate(tickets, 100 + PERIOD_S - 1));
		assert_true(is_resumed(two, client, &session));
		/* The key of before counts, and is renewed. */
		assert_true(tls_tickets_rotate(tickets, 100 + PERIOD_S));
		assert_true(is_resumed(two, client, &session));
		assert_true(tls_tickets_rotate(tickets, 100 + 2 * PERIOD_S));
		assert_true(is_resumed(two, client, &session));
		/* Two periods at once: both keys are gone. */
		assert_true(tls_tickets_rotate(tickets, 100 + 4 * PERIOD_S));
		assert_false(is_resumed(two, client, &session));
		/* Two rotations: that of before the last is gone. */
		assert_true(tls_tickets_rotate(tickets, 100 + 5 * PERIOD_S));
		assert_true(tls_tickets_rotate(tickets, 100 + 6 * PERIOD_S));
		assert_false(is_resumed(two, client, &session));

		tls_session_free(&session);
		tls_context_unref(&two);
		tls_context_unref(&client);
		tls_tickets_unref(&tickets);
	}
}

static void sessions_are_not_resumed_where_rules_differ(void **state)
{
	uint64_t seed = 6;
	struct tls_tickets *tickets = tls_tickets_new(draw, &seed, PERIOD_S,
						      100);
	struct tls_tickets *others = tls_tickets_new(draw, &seed, PERIOD_S,
						     100);
	const struct tls_server_settings sets[] = {
		{ .pairs = &ec.pair, .pair_count = 1, .tickets = tickets },
		{ .pairs = &ec.pair, .pair_count = 1 },
		{ .pairs = &ec.pair, .pair_count = 1, .tickets = others },
		{ .pairs = &ec.pair,
		  .pair_count = 1,
		  .tickets = tickets,
		  .ask = TLS_ASK_LOG },
	};

	(void)state;
	for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3; v++) {
		const struct tls_client_settings want = { .name = "mx.example",
							  .protocol.max = v };
		const struct tls_client_settings strict = {
			.name = "mx.example",
			.protocol.max = v,
			.check = TLS_CHECK_NAME,
			.trust = trust,
		};
		struct tls_context *client = client_of(&want);
		struct tls_context *checking = client_of(&strict);
		struct tls_context *first = server_of(&sets[0]);
		struct tls_session *session = NULL;

		for (size_t i = 1; i < sizeof(sets) / sizeof(sets[0]); i++) {
			struct tls_context *other = server_of(&sets[i]);

			print_message("  server %zu\n", i);
			tls_session_free(&session);
			assert_false(is_resumed(first, client, &session));
			assert_false(is_resumed(other, client, &session));
			tls_context_unref(&other);
		}
		/* Unchecked once is not checked for ever. */
		tls_session_free(&session);
		assert_false(is_resumed(first, client, &session));
		assert_false(is_resumed(first, checking, &session));
		assert_true(is_resumed(first, checking, &session));
		tls_session_free(&session);
		tls_context_unref(&first);
		tls_context_unref(&client);
		tls_context_unref(&checking);
	}
	tls_tickets_unref(&tickets);
	tls_tickets_unref(&others);
}

static void a_session_ends_with_the_certificate_it_rests_on(void **state)
{
	uint64_t seed = 8;
	struct tls_tickets *tickets = tls_tickets_new(draw, &seed, PERIOD_S,
						      100);
	const struct tls_server_settings set = { .pairs = &ec.pair,
						 .pair_count = 1,
						 .tickets = tickets };
	const struct tls_client_settings want = { .name = "mx.example",
						  .check = TLS_CHECK_NAME,
						  .trust = trust };
	struct tls_context *server = server_of(&set);
	struct tls_context *client = client_of(&want);
	struct tls_session *session = NULL;
	struct talk t = { 0 };

	(void)state;
	assert_false(is_resumed(server, client, &session));
	talk_begin(&t, server, client, NULL);
	tls_free(&t.client.tls);
	t.client.tls = tls_begin(client, session, MADE_NOW_S + 91 * DAY_S);
	talk_run(&t);
	assert_string_equal(tls_reason(t.client.tls),
			    "the certificate of CN=Test CA expired on "
			    "2027-04-15");
	talk_free(&t);
	tls_session_free(&session);
	tls_context_unref(&server);
	tls_context_unref(&client);
	tls_tickets_unref(&tickets);
}

static void without_random_octets_there_are_no_keys(void **state)
{
	(void)state;
	assert_null(tls_tickets_new(draw_nothing, NULL, PERIOD_S, 0));
}

/* ---- reload ---- */

static void connections_keep_the_context_they_began_with(void **state)
{
	struct tls_server_settings set = { .pairs = &ec.pair, .pair_count = 1 };
	const struct tls_client_settings want = { .name = "mx.example" };
	struct tls_context *server = server_of(&set);
	struct tls_context *client = client_of(&want);
	struct talk t = { 0 };
	struct talk later;
	struct tls_info info;

	(void)state;
	talk_begin(&t, server, client, NULL);
	tls_context_unref(&server);
	assert_null(server);
	set.pairs = &rsa.pair;
	server = server_of(&set);
	meet(&later, server, client, NULL);
	talk_say(&t.client, "EHLO a\r\n", 8);
	talk_say(&t.server, "250 b\r\n", 7);
	talk_run(&t);
	assert_open(&t);
	assert_open(&later);
	tls_describe(t.client.tls, &info);
	assert_string_equal(info.subject, "CN=ec");
	tls_describe(later.client.tls, &info);
	assert_string_equal(info.subject, "CN=rsa");
	talk_free(&t);
	talk_free(&later);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

/* ---- OCSP ---- */

/* Ask as OpenSSL's own client; returns the length of what is stapled. */
static long stapled(struct tls_context *server, int64_t now_s,
		    const unsigned char **response)
{
	struct tls *t = tls_begin(server, NULL, now_s);
	static uint8_t copy[4096];
	struct raw raw;
	long len;

	raw_begin(&raw, NULL);
	assert_int_equal(
		SSL_set_tlsext_status_type(raw.ssl, TLSEXT_STATUSTYPE_ocsp), 1);
	raw_run(&raw, t);
	assert_int_equal(tls_state(t), TLS_OPEN);
	len = SSL_get_tlsext_status_ocsp_resp(raw.ssl, response);
	if (len > 0) {
		assert_true((size_t)len <= sizeof(copy));
		memcpy(copy, *response, (size_t)len);
		*response = copy;
	}
	raw_free(&raw);
	tls_free(&t);
	return len;
}

static void an_ocsp_response_is_stapled_while_it_is_good(void **state)
{
	struct tls_span ocsp = tls_made_ocsp(&ec, &ca, MADE_NOW_S + DAY_S);
	struct tls_pair pair = ec.pair;
	const struct tls_server_settings set = { .pairs = &pair,
						 .pair_count = 1,
						 .now_s = MADE_NOW_S };
	const unsigned char *response = NULL;
	struct tls_context *server;

	(void)state;
	pair.ocsp = ocsp;
	server = server_of(&set);
	assert_int_equal(stapled(server, MADE_NOW_S, &response), ocsp.len);
	assert_memory_equal(response, ocsp.data, ocsp.len);
	assert_int_equal(stapled(server, MADE_NOW_S + DAY_S, &response), -1);
	tls_context_unref(&server);
	pair.ocsp = (struct tls_span){ 0 };
	server = server_of(&set);
	assert_int_equal(stapled(server, MADE_NOW_S, &response), -1);
	tls_context_unref(&server);
	tls_made_free_span(&ocsp);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_unusable_pair_is_refused_with_the_reason),
		cmocka_unit_test(settings_that_cannot_be_are_refused),
		cmocka_unit_test(time_is_not_looked_at_unless_it_is_given),
		cmocka_unit_test(pairs_and_cas_are_read_from_files),
		cmocka_unit_test(
			the_name_a_client_asks_for_chooses_the_certificate),
		cmocka_unit_test(a_certificate_for_an_address_may_come_first),
		cmocka_unit_test(
			a_client_checks_the_server_and_says_what_is_wrong),
		cmocka_unit_test(the_chain_that_is_given_is_sent),
		cmocka_unit_test(client_certificates_are_asked_for_and_told_of),
		cmocka_unit_test(a_client_certificate_of_another_ca_is_judged),
		cmocka_unit_test(
			sessions_are_resumed_on_all_contexts_with_the_keys),
		cmocka_unit_test(sessions_are_not_resumed_where_rules_differ),
		cmocka_unit_test(
			a_session_ends_with_the_certificate_it_rests_on),
		cmocka_unit_test(without_random_octets_there_are_no_keys),
		cmocka_unit_test(connections_keep_the_context_they_began_with),
		cmocka_unit_test(an_ocsp_response_is_stapled_while_it_is_good),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
