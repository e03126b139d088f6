#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/tcp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * A stream of which both sides are the input: lines that begin with 0x01 are
 * the server's, all else is the client's.  However it is cut, the same is seen
 * of it; once it is opaque, nothing is.
 */

struct seen {
	struct tcp_watch *watch;
	bool forbidden;
	uint64_t replies; /* a hash of all: stage and code */
	unsigned count;
};

/* Private copies, so that reads beyond them are seen. */
static uint8_t *copy_of(const uint8_t *octets, size_t len)
{
	uint8_t *copy = malloc(len);

	if (copy == NULL)
		abort();
	memcpy(copy, octets, len);
	return copy;
}

static void check(const struct tcp_watch *t)
{
	assert(t->due <= TCP_PIPELINE_MAX);
	assert((t->state == TCP_OPAQUE) == (t->why != TCP_CLEAR));
	assert(t->helo_len <= sizeof(t->helo));
	if (tcp_is_idle(t))
		assert(tcp_awaits(t) == BUSY_STAGE_IDLE);
}

static void server_says(struct seen *s, const uint8_t *octets, size_t len)
{
	struct tcp_watch *t = s->watch;

	while (len > 0) {
		uint8_t *copy = copy_of(octets, len);
		size_t used = 0;
		unsigned before = t->messages;
		enum tcp_seen seen = tcp_server_said(t, copy, len, &used);

		free(copy);
		assert(used > 0 && used <= len);
		octets += used;
		len -= used;
		check(t);
		assert(seen != TCP_FORBIDDEN);
		assert((seen == TCP_BLIND) == (t->state == TCP_OPAQUE));
		assert(seen == TCP_REPLY || len == 0);
		/* A message is delivered by 2xx to its end, and not else. */
		if (t->messages != before) {
			assert(t->messages == before + 1);
			assert(seen == TCP_REPLY);
			assert(t->stage == BUSY_STAGE_EOD);
			assert(t->reply.code / 100 == 2);
		}
		if (seen != TCP_REPLY)
			continue;
		s->count++;
		s->replies = (s->replies ^ t->reply.code ^
			      (uint64_t)t->stage << 32) *
			     UINT64_C(1099511628211);
	}
}

static void client_says(struct seen *s, const uint8_t *octets, size_t len)
{
	if (s->forbidden || len == 0)
		return;

	uint8_t *copy = copy_of(octets, len);
	enum tcp_seen seen = tcp_client_said(s->watch, copy, len);

	free(copy);
	check(s->watch);
	assert(seen != TCP_REPLY);
	assert(seen != TCP_BLIND || s->watch->state == TCP_OPAQUE);
	s->forbidden = seen == TCP_FORBIDDEN;
}

static void say(struct seen *s, bool server, const uint8_t *octets, size_t len,
		size_t piece)
{
	while (len > 0) {
		size_t n = len < piece ? len : piece;

		if (server)
			server_says(s, octets, n);
		else
			client_says(s, octets, n);
		octets += n;
		len -= n;
	}
}

static struct seen watch(const uint8_t *data, size_t size, size_t piece)
{
	struct seen s = { .watch = malloc(sizeof(struct tcp_watch)) };

	if (s.watch == NULL)
		abort();
	memset(s.watch, 0x5a, sizeof(*s.watch));
	tcp_begin(s.watch);
	while (size > 0) {
		bool server = data[0] == 1;
		const uint8_t *lf;
		size_t len;

		data += server;
		size -= server;
		lf = size > 0 ? memchr(data, '\n', size) : NULL;
		len = lf != NULL ? (size_t)(lf - data) + 1 : size;
		say(&s, server, data, len, piece);
		data += len;
		size -= len;
	}
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seen a = watch(data, size, SIZE_MAX);
	struct seen b = watch(data, size, 1);
	struct seen c = watch(data, size, 3);

	assert(a.count == b.count && a.count == c.count);
	assert(a.replies == b.replies && a.replies == c.replies);
	assert(a.forbidden == b.forbidden && a.forbidden == c.forbidden);
	assert(a.watch->why == b.watch->why && a.watch->why == c.watch->why);
	assert(a.watch->messages == b.watch->messages);
	assert(a.watch->messages == c.watch->messages);
	free(a.watch);
	free(b.watch);
	free(c.watch);
	return 0;
}
