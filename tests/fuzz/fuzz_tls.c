#include "proxy/tls.h"

#include <stdlib.h>
#include <string.h>

#include "proxy/tls_context.h"
#include "tests/unit/tls_certs.h"
#include "tests/unit/tls_talk.h"

/*
 * Two ends talk, and the input is what happens to them: in what pieces octets
 * go, what is said, and what a stranger puts between or changes.  As long as
 * nobody interferes, all arrives; whatever happens, each end gets only a
 * front part of what the other said, and a stranger never makes a clean end.
 * Also: the input alone, as a peer of either kind.
 */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tls_made made;
static struct tls_context *servers[2], *clients[2];
static struct tls_tickets *tickets;
static struct tls_session *session;

static void check(bool holds)
{
	if (!holds)
		abort();
}

static bool draw(void *arg, uint8_t *buf, size_t len)
{
	(void)arg;
	memset(buf, 7, len);
	return true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	char error[TLS_ERROR_SIZE];
	const struct tls_wish wish = { .subject = "mx",
				       .names = "DNS:mx.example" };

	(void)argc;
	(void)argv;
	tls_made_new(&made, &wish);
	tickets = tls_tickets_new(draw, NULL, 3600, 0);
	check(tickets != NULL);
	for (unsigned i = 0; i < 2; i++) {
		const struct tls_server_settings set = {
			.pairs = &made.pair,
			.pair_count = 1,
			.tickets = tickets,
			.ask = i == 0 ? TLS_ASK_NONE : TLS_ASK_LOG,
		};
		const struct tls_client_settings want = {
			.name = "mx.example",
			.protocol.max = i == 0 ? TLS_VERSION_1_3
					       : TLS_VERSION_1_2,
			.pair = i == 0 ? NULL : &made.pair,
		};

		servers[i] = tls_context_server(&set, error);
		clients[i] = tls_context_client(&want, error);
		check(servers[i] != NULL);
		check(clients[i] != NULL);
	}
	return 0;
}

/* The input alone: garbage, or records of a corpus; cut in pieces. */
static void feed_alone(struct tls_context *context, const uint8_t *data,
		       size_t size, size_t piece)
{
	struct tls *t = tls_begin(context, NULL, MADE_NOW_S);
	static uint8_t buf[512];

	check(t != NULL);
	for (size_t at = 0; at < size; at += piece) {
		size_t len = piece < size - at ? piece : size - at;
		uint8_t *copy = malloc(len);
		struct tls_span in = { .data = copy, .len = len };
		struct tls_span none = { 0 };
		struct tls_room out = { .data = buf, .len = sizeof(buf) };

		check(copy != NULL);
		memcpy(copy, data + at, len);
		(void)tls_decode(t, &in, &out);
		/* Nobody knows the keys: nothing can be read. */
		check(out.len == sizeof(buf));
		check(tls_state(t) == TLS_HANDSHAKE ||
		      tls_state(t) == TLS_FAILED);
		check(in.len == 0 || tls_unsent(t) > 0);
		(void)tls_encode(t, &none, &out);
		check((tls_state(t) == TLS_FAILED) ==
		      (tls_reason(t)[0] != '\0'));
		free(copy);
	}
	check(tls_end_of_stream(t) == TLS_FAILED);
	tls_free(&t);
}

/* What an end got is a front part of what the other said. */
static void check_front(const struct talk_end *end, const struct talk_end *of)
{
	check(end->got.len <= of->say.at);
	check(end->got.len == 0 ||
	      memcmp(end->got.data, of->say.data, end->got.len) == 0);
}

/* One act of the input; true: somebody has interfered. */
static bool act(struct talk *t, uint8_t what, uint8_t by)
{
	struct talk_end *from = what & 1 ? &t->client : &t->server;
	struct talk_end *to = what & 1 ? &t->server : &t->client;
	uint8_t text[256];

	t->cut.max = (size_t)by * by + 1;
	t->cut.seed = what & 2 ? by + 1U : 0;
	switch (what >> 2 & 7) {
	case 0:
	case 1:
	case 2:
		(void)talk_move(t, from, to);
		return false;
	case 3:
		memset(text, by, sizeof(text));
		talk_say(from, text, by);
		return false;
	case 4:
		talk_run(t);
		return false;
	case 5:
		tls_close(from->tls);
		return false;
	case 6: /* put something between */
		memset(text, what, sizeof(text));
		talk_append(&to->in, text, by % 16U);
		return by % 16 > 0;
	case 7: /* change something */
		if (to->in.at == to->in.len)
			return false;
		to->in.data[to->in.at + by % (to->in.len - to->in.at)] ^=
			(uint8_t)(1U << (what & 7));
		return true;
	}
	return false;
}

static void converse(const uint8_t *data, size_t size, unsigned kind)
{
	struct talk t = { 0 };
	bool interfered = false;
	struct tls_session *fresh;

	talk_begin(&t, servers[kind >> 1 & 1], clients[kind & 1],
		   kind & 4 ? session : NULL);
	for (size_t i = 0; i + 1 < size && i < 256; i += 2) {
		interfered = act(&t, data[i], data[i + 1]) || interfered;
		check_front(&t.server, &t.client);
		check_front(&t.client, &t.server);
		check(interfered || tls_state(t.server.tls) != TLS_FAILED);
		check(interfered || tls_state(t.client.tls) != TLS_FAILED);
	}
	t.cut = (struct talk_cut){ .max = 5000 };
	talk_run(&t);
	check_front(&t.server, &t.client);
	check_front(&t.client, &t.server);
	if (!interfered) {
		check(t.server.got.len == t.client.say.at);
		check(t.client.got.len == t.server.say.at);
	}
	/* Kept for later inputs: the first that came, so that it is the same
	 * whatever those bring. */
	fresh = tls_take_session(t.client.tls);
	if (session == NULL)
		session = fresh;
	else
		tls_session_free(&fresh);
	talk_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned kind;

	if (size < 2)
		return 0;
	kind = data[0];
	if (kind & 128) {
		struct tls_context *context = kind & 1 ? servers[kind >> 1 & 1]
						       : clients[kind >> 1 & 1];

		feed_alone(context, data + 2, size - 2, (size_t)data[1] + 1);
	} else {
		converse(data + 1, size - 1, kind);
	}
	return 0;
}
