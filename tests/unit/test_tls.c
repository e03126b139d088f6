#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include <malloc.h>
#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/tls.h"
#include "proxy/tls_context.h"
#include "tests/unit/tls_certs.h"
#include "tests/unit/tls_talk.h"

/* ---- what OpenSSL and we allocate, counted ---- */

static _Atomic size_t allocated;

static void *counted_malloc(size_t size, const char *file, int line)
{
	void *p = malloc(size);

	(void)file;
	(void)line;
	if (p != NULL)
		allocated += malloc_usable_size(p);
	return p;
}

static void counted_free(void *p, const char *file, int line)
{
	(void)file;
	(void)line;
	if (p != NULL)
		allocated -= malloc_usable_size(p);
	free(p);
}

static void *counted_realloc(void *p, size_t size, const char *file, int line)
{
	size_t had = p != NULL ? malloc_usable_size(p) : 0;
	void *more = realloc(p, size);

	(void)file;
	(void)line;
	if (more != NULL)
		allocated += malloc_usable_size(more) - had;
	return more;
}

/* ---- what all tests share ---- */

static struct tls_made ca, other_ca, ec, rsa, expired, client_cert;
static struct tls_trust *trust;
static char error[TLS_ERROR_SIZE];

static bool draw(void *arg, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)talk_random(arg);
	return true;
}

static void make(struct tls_made *made, const char *subject, const char *names,
		 enum tls_made_key key, const struct tls_made *issuer)
{
	const struct tls_wish wish = { .subject = subject,
				       .names = names,
				       .key = key,
				       .issuer = issuer };

	tls_made_new(made, &wish);
}

static int set_up(void **state)
{
	struct tls_span pem;

	(void)state;
	tls_made_new(&ca, &(struct tls_wish){ .subject = "Test CA",
					      .key = MADE_EC,
					      .ca = true });
	tls_made_new(&other_ca, &(struct tls_wish){ .subject = "Other CA",
						    .key = MADE_EC,
						    .ca = true });
	make(&ec, "ec", "DNS:mx.example,DNS:*.farm.example,IP:192.0.2.1",
	     MADE_EC, &ca);
	make(&rsa, "rsa", "DNS:mx.example", MADE_RSA, &ca);
	make(&client_cert, "client \r\n \xc3\xa4", "DNS:client.example",
	     MADE_EC, &ca);
	tls_made_new(&expired,
		     &(struct tls_wish){ .subject = "expired",
					 .names = "DNS:mx.example",
					 .key = MADE_EC,
					 .from_s = MADE_NOW_S - 20 * 86400,
					 .until_s = MADE_NOW_S - 10 * 86400,
					 .issuer = &ca });
	pem = tls_made_pem(&ca);
	trust = tls_trust_new(pem, "ca", error);
	tls_made_free_span(&pem);
	return trust != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	tls_trust_unref(&trust);
	tls_made_free(&ca);
	tls_made_free(&other_ca);
	tls_made_free(&ec);
	tls_made_free(&rsa);
	tls_made_free(&expired);
	tls_made_free(&client_cert);
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

/* A server with one certificate, and a client that checks nothing. */
static struct tls_context *simple_server(const struct tls_made *made)
{
	const struct tls_server_settings set = { .pairs = &made->pair,
						 .pair_count = 1 };

	return server_of(&set);
}

static struct tls_context *simple_client(void)
{
	const struct tls_client_settings set = { .name = "mx.example" };

	return client_of(&set);
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
	assert_string_equal(tls_reason(t->server.tls), "");
	assert_int_equal(tls_unsent(t->server.tls), 0);
	assert_int_equal(tls_unsent(t->client.tls), 0);
}

static void assert_got(const struct talk_end *end, const void *data, size_t len)
{
	assert_int_equal(end->got.len, len);
	assert_memory_equal(end->got.data, data, len);
}

/* ---- versions and ciphers ---- */

static void versions_and_kinds_of_key_are_agreed_on(void **state)
{
	static const struct {
		const char *about;
		enum tls_version max;
		bool rsa;
		const char *version, *cipher;
	} cases[] = {
		{ "1.3 with ECDSA", TLS_VERSION_DEFAULT, false, "TLSv1.3",
		  "TLS_AES_128_GCM_SHA256" },
		{ "1.3 with RSA", TLS_VERSION_1_3, true, "TLSv1.3",
		  "TLS_AES_128_GCM_SHA256" },
		{ "1.2 with ECDSA", TLS_VERSION_1_2, false, "TLSv1.2",
		  "ECDHE-ECDSA-AES128-GCM-SHA256" },
		{ "1.2 with RSA", TLS_VERSION_1_2, true, "TLSv1.2",
		  "ECDHE-RSA-AES128-GCM-SHA256" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct tls_client_settings set = {
			.name = "mx.example",
			.protocol.max = cases[i].max
		};
		struct tls_context *server = simple_server(cases[i].rsa ? &rsa
									: &ec);
		struct tls_context *client = client_of(&set);
		struct tls_info info;
		struct talk t = { 0 };

		print_message("  %s\n", cases[i].about);
		talk_begin(&t, server, client, NULL);
		talk_say(&t.client, "EHLO a\r\n", 8);
		talk_say(&t.server, "250 b\r\n", 7);
		talk_run(&t);
		assert_open(&t);
		assert_got(&t.server, "EHLO a\r\n", 8);
		assert_got(&t.client, "250 b\r\n", 7);
		tls_describe(t.server.tls, &info);
		assert_string_equal(info.version, cases[i].version);
		assert_string_equal(info.cipher, cases[i].cipher);
		assert_int_equal(info.bits, 128);
		assert_string_equal(info.name, "mx.example");
		assert_false(info.resumed);
		assert_false(info.verified);
		assert_string_equal(info.subject, "");
		tls_describe(t.client.tls, &info);
		assert_string_equal(info.subject,
				    cases[i].rsa ? "CN=rsa" : "CN=ec");
		assert_int_equal(strlen(info.fingerprint), 64);
		assert_int_equal(info.expires_s, MADE_NOW_S + 90 * 86400);
		assert_false(info.verified);
		talk_free(&t);
		tls_context_unref(&server);
		tls_context_unref(&client);
	}
}

static void nothing_in_common_fails_on_both_ends_with_the_reason(void **state)
{
	const struct tls_client_settings old = {
		.protocol = { .min = TLS_VERSION_1_1,
			      .max = TLS_VERSION_1_1,
			      .ciphers = "ALL@SECLEVEL=0" },
	};
	const struct tls_client_settings odd = {
		.protocol = { .max = TLS_VERSION_1_2,
			      .ciphers = "DHE-RSA-AES128-SHA" },
	};
	const struct tls_client_settings *const sets[] = { &old, &odd };
	static const char *const reasons[] = {
		"handshake: unsupported protocol",
		"handshake: no shared cipher",
	};
	static const char *const alerts[] = {
		"handshake: the peer sent the alert \"protocol version\"",
		"handshake: the peer sent the alert \"handshake failure\"",
	};
	struct tls_context *server = simple_server(&ec);

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct tls_context *client = client_of(sets[i]);
		struct talk t = { 0 };

		talk_begin(&t, server, client, NULL);
		talk_run(&t);
		assert_int_equal(tls_state(t.server.tls), TLS_FAILED);
		assert_int_equal(tls_state(t.client.tls), TLS_FAILED);
		assert_string_equal(tls_reason(t.server.tls), reasons[i]);
		assert_string_equal(tls_reason(t.client.tls), alerts[i]);
		talk_free(&t);
		tls_context_unref(&client);
	}
	tls_context_unref(&server);
}

/* ---- cuts ---- */

static void every_size_of_span_and_room_gives_the_same(void **state)
{
	static const size_t sizes[] = { 1,   2,   3,    5,     17,   100,
					541, 542, 4096, 16384, 20000 };
	struct tls_context *server = simple_server(&ec);
	char text[3000];

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "DATA\r\n", 6);
	for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3; v++) {
		const struct tls_client_settings set = { .protocol.max = v };
		struct tls_context *client = client_of(&set);

		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			struct talk t = { .cut.max = sizes[i] };

			talk_begin(&t, server, client, NULL);
			talk_say(&t.client, text, sizeof(text));
			talk_say(&t.server, text, sizeof(text) / 2);
			talk_run(&t);
			assert_open(&t);
			assert_got(&t.server, text, sizeof(text));
			assert_got(&t.client, text, sizeof(text) / 2);
			tls_close(t.client.tls);
			talk_run(&t);
			assert_int_equal(tls_state(t.server.tls), TLS_CLOSED);
			talk_free(&t);
		}
		tls_context_unref(&client);
	}
	tls_context_unref(&server);
}

/* Decode len octets of *b at once, with as much room as there may be. */
static void feed(struct talk_end *end, size_t len)
{
	static uint8_t buf[20000];
	struct tls_span in = { .data = end->in.data + end->in.at, .len = len };
	struct tls_room out = { .data = buf, .len = sizeof(buf) };

	assert_true(len <= end->in.len - end->in.at);
	(void)tls_decode(end->tls, &in, &out);
	assert_int_equal(in.len, 0);
	end->in.at += len;
	talk_append(&end->got, buf, sizeof(buf) - out.len);
}

/* Each flight in two pieces, cut at every octet. */
static void a_flight_may_be_cut_at_every_octet(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();
	bool more = true;

	(void)state;
	for (size_t cut = 0; more; cut++) {
		struct talk t = { .cut.max = 20000 };

		talk_begin(&t, server, client, NULL);
		more = false;
		for (unsigned flight = 0; flight < 6; flight++) {
			bool up = flight % 2 == 0;
			struct talk_end *from = up ? &t.client : &t.server;
			struct talk_end *to = up ? &t.server : &t.client;
			size_t len, first;

			if (flight >= 2 && flight < 4)
				talk_say(from, "QUIT\r\n", 6);
			talk_send(&t, from, to);
			len = to->in.len - to->in.at;
			first = cut < len ? cut : len;
			more = more || cut < len;
			feed(to, first);
			feed(to, len - first);
		}
		assert_open(&t);
		assert_got(&t.server, "QUIT\r\n", 6);
		assert_got(&t.client, "QUIT\r\n", 6);
		talk_free(&t);
	}
	tls_context_unref(&server);
	tls_context_unref(&client);
}

static void a_mebibyte_both_ways_with_random_cuts_arrives_whole(void **state)
{
	enum { SIZE = 1 << 20 };
	uint64_t seed = 7;
	uint8_t *up = malloc(SIZE);
	uint8_t *down = malloc(SIZE);
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();

	(void)state;
	assert_non_null(up);
	assert_non_null(down);
	(void)draw(&seed, up, SIZE);
	(void)draw(&seed, down, SIZE);
	for (uint64_t run = 1; run <= 3; run++) {
		struct talk t = { .cut = { .max = 40000, .seed = run } };

		talk_begin(&t, server, client, NULL);
		talk_say(&t.client, up, SIZE);
		talk_say(&t.server, down, SIZE);
		talk_run(&t);
		assert_open(&t);
		assert_got(&t.server, up, SIZE);
		assert_got(&t.client, down, SIZE);
		talk_free(&t);
	}
	free(up);
	free(down);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

static void records_fill_the_room_they_are_given(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();
	static const uint8_t text[65536];
	struct talk t = { 0 };

	(void)state;
	talk_begin(&t, server, client, NULL);
	talk_run(&t);
	for (size_t size = 4096; size <= 16384; size += 4096) {
		static uint8_t buf[16384];
		struct tls_span in = { .data = text, .len = sizeof(text) };
		struct tls_room out = { .data = buf, .len = size };

		assert_int_equal(tls_encode(t.client.tls, &in, &out), TLS_OPEN);
		assert_true(out.len < TLS_RECORD_EXTRA);
		assert_int_equal(tls_unsent(t.client.tls), 0);
		assert_int_equal(sizeof(text) - in.len,
				 size - TLS_RECORD_EXTRA);
	}
	talk_free(&t);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

/* ---- what is not TLS, and what is cut ---- */

static void what_is_no_tls_fails_with_a_reason_and_is_not_read(void **state)
{
	static const char *const garbage[] = {
		"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\n",
		"GET / HTTP/1.1\r\nHost: mx.example\r\n\r\n",
		"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", /* too large */
		"\x16\x03\x01\xff\xff\x01\x00\x00\x00",
		"\x80\x0c\x01\x03\x01\x00\x15\x00\x00\x00\x10\x01\x00\x80",
		"\x15\x03\x03\x00\x02\x02\x28", /* an alert at once */
	};
	static const size_t lens[] = { 45, 36, 10, 9, 14, 7 };
	struct tls_context *server = simple_server(&ec);

	(void)state;
	for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
		struct tls *t = tls_begin(server, NULL, MADE_NOW_S);
		const uint8_t *data = (const uint8_t *)garbage[i];
		uint8_t buf[100];
		struct tls_room out = { .data = buf, .len = sizeof(buf) };
		struct tls_span in = { .data = data, .len = lens[i] };

		assert_int_equal(tls_decode(t, &in, &out), TLS_FAILED);
		print_message("  %s\n", tls_reason(t));
		assert_int_equal(in.len, 0);
		assert_int_equal(out.len, sizeof(buf));
		assert_true(strlen(tls_reason(t)) > strlen("handshake: "));
		assert_false(tls_is_holding(t));
		/* Nothing can be said any more, but for an alert. */
		in = (struct tls_span){ .data = data, .len = lens[i] };
		assert_int_equal(tls_encode(t, &in, &out), TLS_FAILED);
		assert_int_equal(in.len, lens[i]);
		tls_free(&t);
		assert_null(t);
	}
	tls_context_unref(&server);
}

static void a_changed_octet_is_found_and_answered_with_an_alert(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();
	struct talk t = { 0 };

	(void)state;
	talk_begin(&t, server, client, NULL);
	talk_run(&t);
	talk_say(&t.client, "NOOP\r\n", 6);
	talk_send(&t, &t.client, &t.server);
	t.server.in.data[t.server.in.len - 3] ^= 1;
	talk_run(&t);
	assert_int_equal(tls_state(t.server.tls), TLS_FAILED);
	assert_int_equal(t.server.got.len, 0);
	assert_string_equal(tls_reason(t.server.tls),
			    "decryption failed or bad record mac");
	assert_string_equal(tls_reason(t.client.tls),
			    "the peer sent the alert \"bad record mac\"");
	talk_free(&t);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

static void close_notify_is_a_clean_end_and_a_reply_may_follow(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();
	struct talk t = { 0 };

	(void)state;
	talk_begin(&t, server, client, NULL);
	talk_say(&t.client, ".\r\n", 3);
	talk_run(&t);
	tls_close(t.client.tls);
	talk_say(&t.client, "late", 4);
	talk_run(&t);
	assert_int_equal(t.client.say.at, 3);
	assert_int_equal(tls_state(t.server.tls), TLS_CLOSED);
	assert_int_equal(tls_end_of_stream(t.server.tls), TLS_CLOSED);
	assert_got(&t.server, ".\r\n", 3);
	/* As with a FIN after the final dot: the reply is still read. */
	talk_say(&t.server, "250 OK\r\n", 8);
	talk_run(&t);
	assert_got(&t.client, "250 OK\r\n", 8);
	tls_close(t.server.tls);
	talk_run(&t);
	assert_int_equal(tls_state(t.client.tls), TLS_CLOSED);
	/* After the end nothing counts. */
	talk_append(&t.server.in, "anything", 8);
	talk_run(&t);
	assert_int_equal(t.server.in.at, t.server.in.len);
	assert_int_equal(tls_state(t.server.tls), TLS_CLOSED);
	assert_int_equal(t.server.got.len, 3);
	talk_free(&t);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

static void a_stream_that_is_cut_is_not_a_clean_end(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls_context *client = simple_client();
	struct talk t = { 0 };

	(void)state;
	talk_begin(&t, server, client, NULL);
	assert_int_equal(tls_end_of_stream(t.server.tls), TLS_FAILED);
	assert_string_equal(tls_reason(t.server.tls),
			    "handshake: the connection ended in it");
	talk_free(&t);
	talk_begin(&t, server, client, NULL);
	talk_say(&t.client, "text\r\n.\r\n", 9);
	talk_run(&t);
	assert_int_equal(tls_end_of_stream(t.server.tls), TLS_FAILED);
	assert_string_equal(tls_reason(t.server.tls),
			    "the connection ended without close_notify");
	assert_got(&t.server, "text\r\n.\r\n", 9);
	talk_free(&t);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

/* ---- cost ---- */

static void a_handshake_is_costly_until_its_key_work_is_done(void **state)
{
	struct tls_context *server = simple_server(&ec);

	(void)state;
	for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3; v++) {
		const struct tls_client_settings set = { .protocol.max = v };
		struct tls_context *client = client_of(&set);
		struct talk t = { .cut.max = 20000 };

		talk_begin(&t, server, client, NULL);
		assert_true(tls_is_costly(t.server.tls));
		assert_true(tls_is_costly(t.client.tls));
		(void)talk_move(&t, &t.client, &t.server);
		/* With 1.2 the client's share is still to come. */
		assert_int_equal(tls_is_costly(t.server.tls),
				 v == TLS_VERSION_1_2);
		talk_run(&t);
		assert_open(&t);
		assert_false(tls_is_costly(t.server.tls));
		assert_false(tls_is_costly(t.client.tls));
		talk_free(&t);
		tls_context_unref(&client);
	}
	tls_context_unref(&server);
}

/* Ask for a KeyUpdate again and again, and read nothing. */
static void a_peer_that_asks_without_reading_cannot_make_it_grow(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls *t = tls_begin(server, NULL, MADE_NOW_S);
	bool taken = true;
	size_t kept;
	struct raw raw;

	(void)state;
	raw_begin(&raw, NULL);
	raw_run(&raw, t);
	assert_int_equal(tls_state(t), TLS_OPEN);
	for (unsigned i = 0; i < 3000 && taken; i++) {
		assert_int_equal(
			SSL_key_update(raw.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
		assert_int_equal(SSL_do_handshake(raw.ssl), 1);
		taken = raw_up(&raw, t);
	}
	kept = tls_unsent(t);
	print_message("  %zu octets were kept\n", kept);
	assert_false(taken);
	assert_true(kept >= 16384);
	assert_true(kept < 16384 + 100);
	/* Once that is sent, it goes on where it was. */
	while (raw_down(&raw, t))
		;
	assert_int_equal(tls_unsent(t), 0);
	assert_true(raw_up(&raw, t));
	assert_int_equal(tls_state(t), TLS_OPEN);
	raw_free(&raw);
	tls_free(&t);
	tls_context_unref(&server);
}

static void a_client_cannot_have_the_handshake_done_again(void **state)
{
	struct tls_context *server = simple_server(&ec);
	struct tls *t = tls_begin(server, NULL, MADE_NOW_S);
	struct raw raw;

	(void)state;
	raw_begin(&raw, NULL);
	assert_int_equal(SSL_set_max_proto_version(raw.ssl, TLS1_2_VERSION), 1);
	raw_run(&raw, t);
	assert_int_equal(tls_state(t), TLS_OPEN);
	assert_int_equal(SSL_renegotiate(raw.ssl), 1);
	(void)SSL_do_handshake(raw.ssl);
	assert_true(raw_up(&raw, t));
	assert_false(tls_is_costly(t));
	assert_int_equal(tls_state(t), TLS_OPEN);
	/* An alert is the whole answer: header, sequence, tag and 2 octets. */
	assert_int_equal(tls_unsent(t), 5 + 8 + 16 + 2);
	assert_true(raw_down(&raw, t));
	assert_int_equal(SSL_do_handshake(raw.ssl), -1);
	raw_free(&raw);
	tls_free(&t);
	tls_context_unref(&server);
}

/* ---- memory ---- */

static void an_idle_connection_takes_little_memory(void **state)
{
	enum { COUNT = 64, MAX = 13926 }; /* 13.6 KiB */
	struct tls_context *client = simple_client();
	uint64_t seed = 3;
	struct tls_tickets *tickets = tls_tickets_new(draw, &seed, 3600, 0);
	const struct tls_server_settings set = { .pairs = &ec.pair,
						 .pair_count = 1,
						 .tickets = tickets };
	struct tls_context *server = server_of(&set);

	(void)state;
	for (enum tls_version v = TLS_VERSION_1_2; v <= TLS_VERSION_1_3; v++) {
		const struct tls_client_settings old = { .name = "mx.example",
							 .protocol.max = v };
		struct tls_context *c = client_of(&old);
		static struct tls *idle[COUNT];
		size_t before = 0;
		size_t each;

		/* One for what is only allocated once. */
		for (size_t i = 0; i < COUNT; i++) {
			struct talk t = { 0 };

			if (i == 1)
				before = allocated;
			talk_begin(&t, server, c, NULL);
			talk_say(&t.client, "EHLO a\r\n", 8);
			talk_say(&t.server, "250 b\r\n", 7);
			talk_run(&t);
			assert_open(&t);
			idle[i] = t.server.tls;
			t.server.tls = NULL;
			talk_free(&t);
		}
		each = (allocated - before) / (COUNT - 1);
		print_message("  %s: %zu octets (%zu.%zu KiB)\n",
			      v == TLS_VERSION_1_2 ? "TLS 1.2" : "TLS 1.3",
			      each, each / 1024, each % 1024 * 10 / 1024);
		assert_true(each > 1024);
		assert_true(each <= MAX);
		for (size_t i = 0; i < COUNT; i++)
			tls_free(&idle[i]);
		tls_context_unref(&c);
	}
	tls_context_unref(&server);
	tls_context_unref(&client);
	tls_tickets_unref(&tickets);
}

/* ---- threads ---- */

struct worker {
	struct tls_context *server, *client;
	unsigned done;
};

static void *handshakes(void *arg)
{
	struct worker *w = arg;
	struct tls_session *session = NULL;

	for (unsigned i = 0; i < 50; i++) {
		struct talk t = { 0 };

		talk_begin(&t, w->server, w->client, session);
		talk_say(&t.client, "QUIT\r\n", 6);
		talk_run(&t);
		w->done += tls_state(t.server.tls) == TLS_OPEN &&
			   t.server.got.len == 6;
		tls_session_free(&session);
		session = tls_take_session(t.client.tls);
		talk_free(&t);
	}
	tls_session_free(&session);
	return NULL;
}

static void threads_share_contexts_and_tickets(void **state)
{
	uint64_t seed = 11;
	struct tls_tickets *tickets = tls_tickets_new(draw, &seed, 10, 0);
	const struct tls_server_settings set = { .pairs = &ec.pair,
						 .pair_count = 1,
						 .tickets = tickets };
	struct tls_context *server = server_of(&set);
	struct tls_context *client = simple_client();
	struct worker workers[2] = { { server, client, 0 },
				     { server, client, 0 } };
	pthread_t threads[2];

	(void)state;
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, handshakes,
						&workers[i]),
				 0);
	for (int64_t now_s = 0; now_s < 1000; now_s++)
		assert_true(tls_tickets_rotate(tickets, now_s));
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(workers[i].done, 50);
	}
	tls_context_unref(&server);
	tls_context_unref(&client);
	tls_tickets_unref(&tickets);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(versions_and_kinds_of_key_are_agreed_on),
		cmocka_unit_test(
			nothing_in_common_fails_on_both_ends_with_the_reason),
		cmocka_unit_test(every_size_of_span_and_room_gives_the_same),
		cmocka_unit_test(a_flight_may_be_cut_at_every_octet),
		cmocka_unit_test(
			a_mebibyte_both_ways_with_random_cuts_arrives_whole),
		cmocka_unit_test(records_fill_the_room_they_are_given),
		cmocka_unit_test(
			what_is_no_tls_fails_with_a_reason_and_is_not_read),
		cmocka_unit_test(
			a_changed_octet_is_found_and_answered_with_an_alert),
		cmocka_unit_test(
			close_notify_is_a_clean_end_and_a_reply_may_follow),
		cmocka_unit_test(a_stream_that_is_cut_is_not_a_clean_end),
		cmocka_unit_test(
			a_handshake_is_costly_until_its_key_work_is_done),
		cmocka_unit_test(
			a_peer_that_asks_without_reading_cannot_make_it_grow),
		cmocka_unit_test(a_client_cannot_have_the_handshake_done_again),
		cmocka_unit_test(an_idle_connection_takes_little_memory),
		cmocka_unit_test(threads_share_contexts_and_tickets),
	};

	/* Before OpenSSL allocates anything. */
	if (CRYPTO_set_mem_functions(counted_malloc, counted_realloc,
				     counted_free) != 1)
		return 1;
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
