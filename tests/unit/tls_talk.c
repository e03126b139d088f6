#include "tests/unit/tls_talk.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/tls_certs.h"

static void need(bool holds)
{
	if (!holds)
		abort();
}

/* xorshift64*: any seed but 0. */
uint64_t talk_random(uint64_t *seed)
{
	*seed ^= *seed >> 12;
	*seed ^= *seed << 25;
	*seed ^= *seed >> 27;
	return *seed * UINT64_C(2685821657736338717);
}

void talk_append(struct talk_bytes *b, const void *data, size_t len)
{
	if (len == 0)
		return;
	if (b->len + len > b->room) {
		b->room = 2 * (b->len + len);
		b->data = realloc(b->data, b->room);
		need(b->data != NULL);
	}
	memcpy(b->data + b->len, data, len);
	b->len += len;
}

static size_t cut_of(struct talk_cut *cut)
{
	return cut->seed == 0
		       ? cut->max
		       : 1 + (size_t)(talk_random(&cut->seed) % cut->max);
}

void talk_begin(struct talk *t, struct tls_context *server,
		struct tls_context *client, const struct tls_session *session)
{
	struct talk_cut cut = t->cut.max > 0 ? t->cut
					     : (struct talk_cut){ .max = 4096 };

	*t = (struct talk){ .cut = cut };
	t->server.tls = tls_begin(server, NULL, MADE_NOW_S);
	t->client.tls = tls_begin(client, session, MADE_NOW_S);
	need(t->server.tls != NULL);
	need(t->client.tls != NULL);
}

static void end_free(struct talk_end *end)
{
	tls_free(&end->tls);
	free(end->in.data);
	free(end->got.data);
	free(end->say.data);
	*end = (struct talk_end){ 0 };
}

void talk_free(struct talk *t)
{
	end_free(&t->server);
	end_free(&t->client);
}

void talk_say(struct talk_end *end, const void *data, size_t len)
{
	talk_append(&end->say, data, len);
}

/* A part of what is left, in memory of its own: to read past it is found. */
static struct tls_span front(const struct talk_bytes *b, size_t len,
			     uint8_t **copy)
{
	if (len > b->len - b->at)
		len = b->len - b->at;
	*copy = malloc(len > 0 ? len : 1);
	need(*copy != NULL);
	if (len > 0)
		memcpy(*copy, b->data + b->at, len);
	return (struct tls_span){ .data = *copy, .len = len };
}

static bool encode(struct talk *t, struct talk_end *from, struct talk_end *to)
{
	size_t size = cut_of(&t->cut);
	uint8_t *copy;
	struct tls_span in = front(&from->say, cut_of(&t->cut), &copy);
	size_t len = in.len;
	uint8_t *buf = malloc(size);
	struct tls_room out = { .data = buf, .len = size };

	need(buf != NULL);
	(void)tls_encode(from->tls, &in, &out);
	from->say.at += len - in.len;
	talk_append(&to->in, buf, size - out.len);
	free(copy);
	free(buf);
	return len > in.len || out.len < size;
}

static bool decode(struct talk *t, struct talk_end *end)
{
	size_t size = cut_of(&t->cut);
	uint8_t *copy;
	struct tls_span in = front(&end->in, cut_of(&t->cut), &copy);
	size_t len = in.len;
	uint8_t *buf = malloc(size);
	struct tls_room out = { .data = buf, .len = size };

	need(buf != NULL);
	(void)tls_decode(end->tls, &in, &out);
	/* What is left was left for a reason. */
	need(in.len == 0 || out.len == 0 || tls_unsent(end->tls) > 0);
	need(!tls_is_holding(end->tls) || out.len == 0);
	end->in.at += len - in.len;
	talk_append(&end->got, buf, size - out.len);
	free(copy);
	free(buf);
	return len > in.len || out.len < size;
}

void talk_send(struct talk *t, struct talk_end *from, struct talk_end *to)
{
	while (encode(t, from, to))
		;
}

bool talk_move(struct talk *t, struct talk_end *from, struct talk_end *to)
{
	bool sent = encode(t, from, to);

	return decode(t, to) || sent;
}

void talk_run(struct talk *t)
{
	bool up = true;
	bool down = true;

	while (up || down) {
		up = talk_move(t, &t->client, &t->server);
		down = talk_move(t, &t->server, &t->client);
	}
}

void raw_begin(struct raw *raw, const struct tls_made *made)
{
	raw->ctx = SSL_CTX_new(made != NULL ? TLS_server_method()
					    : TLS_client_method());
	need(raw->ctx != NULL);
	need(made == NULL || SSL_CTX_use_cert_and_key(raw->ctx, made->cert,
						      made->key, NULL, 1) == 1);
	raw->ssl = SSL_new(raw->ctx);
	raw->in = BIO_new(BIO_s_mem());
	raw->out = BIO_new(BIO_s_mem());
	need(raw->ssl != NULL && raw->in != NULL && raw->out != NULL);
	(void)BIO_set_mem_eof_return(raw->in, -1);
	SSL_set_bio(raw->ssl, raw->in, raw->out);
	if (made != NULL)
		SSL_set_accept_state(raw->ssl);
	else
		SSL_set_connect_state(raw->ssl);
}

void raw_free(struct raw *raw)
{
	SSL_free(raw->ssl);
	SSL_CTX_free(raw->ctx);
}

bool raw_up(struct raw *raw, struct tls *t)
{
	static uint8_t plain[4096];
	struct tls_room none = { .data = plain, .len = sizeof(plain) };
	char *data;
	size_t len = (size_t)BIO_get_mem_data(raw->out, &data);
	struct tls_span in = { .data = (const uint8_t *)data, .len = len };
	size_t took;

	if (len == 0)
		return false;
	(void)tls_decode(t, &in, &none);
	took = len - in.len;
	while (took > 0) {
		int n = took < sizeof(plain) ? (int)took : (int)sizeof(plain);

		n = BIO_read(raw->out, plain, n);
		need(n > 0);
		took -= (size_t)n;
	}
	return in.len < len;
}

bool raw_down(struct raw *raw, struct tls *t)
{
	static uint8_t buf[8192];
	struct tls_room out = { .data = buf, .len = sizeof(buf) };
	struct tls_span none = { 0 };
	int len;

	(void)tls_encode(t, &none, &out);
	len = (int)(sizeof(buf) - out.len);
	need(len == 0 || BIO_write(raw->in, buf, len) == len);
	return len > 0;
}

void raw_run(struct raw *raw, struct tls *t)
{
	bool up = true;
	bool down = true;

	while (up || down) {
		down = raw_down(raw, t);
		(void)SSL_do_handshake(raw->ssl);
		up = raw_up(raw, t);
	}
}
