#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proxy/io.h"
#include "proxy/ring.h"

/*
 * ring.c against the real kernel.  What must hold, must hold in every one of
 * these ways to run it; the first is the product's.
 */
struct way {
	const char *about;
	struct ring_tuning tuning;
};

#define ALL_GIVEN                                                              \
	{                                                                      \
		1024, 32, 16, 256                                              \
	}

/* clang-format off */
static const struct way ways[] = {
	{ "as in the product",
	  { 1024, 16384, ALL_GIVEN, UINT_MAX, 16, false, false, true, true } },
	{ "receives that stand, as in Linux 6.17",
	  { 1024, 16384, ALL_GIVEN, UINT_MAX, 64, true, true, true, true } },
	{ "Linux 6.1: no bundles either, iowait counted",
	  { 1024, 16384, ALL_GIVEN, UINT_MAX, 64, false, false, false, false } },
	{ "credit without bundles",
	  { 1024, 16384, ALL_GIVEN, UINT_MAX, 64, true, false, true, true } },
	{ "queues that are always full",
	  { 4, 16, ALL_GIVEN, UINT_MAX, 64, true, true, true, true } },
	{ "hardly a buffer with the kernel",
	  { 64, 256, { 2, 2, 2, 2 }, UINT_MAX, 1, true, true, true, true } },
	{ "sends cut short",
	  { 64, 256, ALL_GIVEN, 1000, 0, true, true, true, false } },
	{ "all of it at once",
	  { 4, 16, { 1, 1, 1, 1 }, 777, 2, false, false, false, true } },
};
/* clang-format on */

enum {
	WAYS = sizeof(ways) / sizeof(ways[0]),
	SOCKETS = 600,
	BUFFERS = 64,
	PATIENCE_MS = 20000, /* a test that waits longer has failed */
	BULK = 3 << 20,
};

static const struct io_config standard_config = {
	.sockets_max = SOCKETS,
	.buffers = { 2048, BUFFERS, 16, 2048 },
};

static struct io *open_io(const struct way *way, const struct io_config *config)
{
	char error[IO_ERROR_SIZE] = "";
	struct io *io = ring_open(config, &way->tuning, error);

	print_message("  %s\n", way->about);
	if (io == NULL)
		fail_msg("ring_open: %s", error);
	return io;
}

/* Every buffer must be home again when a test is over. */
static void close_io(struct io *io)
{
	for (int i = 0; i < IO_POOLS; i++) {
		struct ring_pool *p = &io->pools[i];

		assert_int_equal(p->free_count + p->given, p->total);
		assert_int_equal(io_buf_free(io, (enum io_pool)i),
				 p->free_count * 8 / p->total);
		assert_true(io_buf_free(io, (enum io_pool)i) >= 4);
	}
	io_free(&io);
	assert_null(io);
}

/* The next event, whatever it is. */
static struct io_event next(struct io *io)
{
	struct io_event event;
	int64_t deadline_ms = io_now_ms(io) + PATIENCE_MS;

	while (!io_next(io, &event)) {
		assert_true(io_now_ms(io) < deadline_ms);
		assert_int_equal(io_wait(io, io_now_ms(io) + 100), 0);
	}
	return event;
}

static struct io_event expect(struct io *io, enum io_kind kind,
			      io_handle socket)
{
	struct io_event event = next(io);

	assert_int_equal(event.kind, kind);
	if (kind == IO_ACCEPTED)
		assert_true(event.socket != socket);
	else
		assert_true(event.socket == socket);
	return event;
}

/* Nothing is to come: not after a turn with all that the kernel has. */
static void expect_silence(struct io *io)
{
	struct io_event event;

	for (int i = 0; i < 5; i++) {
		assert_false(io_next(io, &event));
		assert_int_equal(io_wait(io, io_now_ms(io) + 5), 0);
	}
	assert_false(io_next(io, &event));
}

static int fd_of(const struct io *io, io_handle socket)
{
	return io->slots[(uint32_t)socket].fd;
}

static struct sockaddr_in loopback(uint16_t port)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
}

static const struct sockaddr *name(const struct sockaddr_in *addr)
{
	return (const struct sockaddr *)addr;
}

/* A listener on some port of 127.0.0.1. */
static io_handle listen_on(struct io *io, void *owner, struct sockaddr_in *addr)
{
	io_handle listener = 0;
	socklen_t len = sizeof(*addr);

	*addr = loopback(0);
	assert_int_equal(io_listen(io, name(addr), 0, owner, &listener), 0);
	assert_int_equal(
		getsockname(fd_of(io, listener), (struct sockaddr *)addr, &len),
		0);
	return listener;
}

static int raw_connect(const struct sockaddr_in *addr)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, name(addr), sizeof(*addr)), 0);
	return fd;
}

/* One connection: a socket of io's, and the other end in our hands. */
static io_handle pair_up(struct io *io, int *raw)
{
	struct sockaddr_in addr;
	io_handle listener = listen_on(io, NULL, &addr);

	*raw = raw_connect(&addr);
	struct io_event event = expect(io, IO_ACCEPTED, 0);

	assert_int_equal(event.result, 0);
	io_close(io, listener);
	expect(io, IO_CLOSED, listener);
	return event.socket;
}

static void raw_write(int fd, const void *data, size_t len)
{
	assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), len);
}

/* Read until the end of the stream; returns octets, or -errno. */
static ssize_t raw_drain(int fd)
{
	char data[2048];
	ssize_t sum = 0;

	for (;;) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };

		assert_int_equal(poll(&wait, 1, PATIENCE_MS), 1);
		ssize_t n = recv(fd, data, sizeof(data), 0);

		if (n < 0)
			return -errno;
		if (n == 0)
			return sum;
		sum += n;
	}
}

static struct io_buf *text(struct io *io, const char *words)
{
	struct io_buf *buf = io_buf_get(io, IO_SMALL);
	size_t len = strlen(words);

	assert_non_null(buf);
	assert_int_equal(buf->len, 0);
	assert_int_equal(buf->room, IO_SMALL_SIZE);
	memcpy(buf->data, words, len);
	buf->len = (uint32_t)len;
	buf->room -= (uint32_t)len;
	return buf;
}

static void close_both(struct io *io, io_handle socket, int raw)
{
	io_close(io, socket);
	expect(io, IO_CLOSED, socket);
	assert_int_equal(close(raw), 0);
}

static void the_kernel_does_all_that_is_asked(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		const struct ring_tuning *asked = &ways[w].tuning;
		struct io *io = open_io(&ways[w], &standard_config);

		/* What is not asked for must not be used. */
		assert_true(asked->use_credit || !io->tuning.use_credit);
		assert_true(asked->use_bundle || !io->tuning.use_bundle);
		assert_true(asked->use_no_iowait || !io->tuning.use_no_iowait);
		/* Where messages should work, they do. */
		assert_int_equal(io->tuning.use_message,
				 asked->use_message && (io->ring.features &
							RING_FEAT_MIN_TIMEOUT));
		close_io(io);
	}
}

static void both_ends_talk_and_know_each_other(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct sockaddr_in addr, source = loopback(0);
		struct sockaddr_storage peer;
		const struct sockaddr_in *in =
			(const struct sockaddr_in *)&peer;
		int owner[3];
		io_handle listener = listen_on(io, &owner[0], &addr);
		io_handle client = 0;

		source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 7);
		assert_int_equal(io_connect(io, name(&addr), name(&source),
					    false, &owner[1], &client),
				 0);
		struct io_event event = next(io);
		struct io_event other = next(io);

		if (event.kind == IO_ACCEPTED) {
			struct io_event swap = event;

			event = other;
			other = swap;
		}
		assert_int_equal(event.kind, IO_CONNECTED);
		assert_int_equal(event.result, 0);
		assert_true(event.socket == client);
		assert_ptr_equal(event.owner, &owner[1]);
		assert_int_equal(other.kind, IO_ACCEPTED);
		assert_ptr_equal(other.owner, &owner[0]);
		io_handle server = other.socket;

		io_adopt(io, server, &owner[2]);
		assert_int_equal(io_peer(io, server, (struct sockaddr *)&peer,
					 sizeof(peer)),
				 0);
		assert_int_equal(ntohl(in->sin_addr.s_addr),
				 INADDR_LOOPBACK + 7);
		assert_int_equal(io_local(io, client, (struct sockaddr *)&peer,
					  sizeof(peer)),
				 0);
		assert_int_equal(ntohl(in->sin_addr.s_addr),
				 INADDR_LOOPBACK + 7);
		int nodelay = 0;
		socklen_t len = sizeof(nodelay);

		assert_int_equal(getsockopt(fd_of(io, server), IPPROTO_TCP,
					    TCP_NODELAY, &nodelay, &len),
				 0);
		assert_true(nodelay != 0);

		io_recv(io, server, IO_SMALL, 1000);
		io_send(io, client, text(io, "EHLO there\r\n"));
		assert_int_equal(io_unsent(io, client), 12);
		event = next(io);
		if (event.kind == IO_SENT) {
			assert_int_equal(event.result, 12);
			assert_int_equal(io_unsent(io, client), 0);
			event = next(io);
		} else {
			expect(io, IO_SENT, client);
		}
		assert_int_equal(event.kind, IO_RECEIVED);
		assert_ptr_equal(event.owner, &owner[2]);
		assert_int_equal(event.result, 12);
		assert_int_equal(event.buf->len, 12);
		assert_int_equal(event.buf->room, IO_SMALL_SIZE - 12);
		assert_memory_equal(event.buf->data, "EHLO there\r\n", 12);
		assert_true(event.more);
		io_buf_put(io, event.buf);
		io_close(io, server);
		io_close(io, client);
		io_close(io, listener);
		for (int i = 0; i < 3; i++)
			assert_int_equal(next(io).kind, IO_CLOSED);
		expect_silence(io);
		close_io(io);
	}
}

/* --- bulk, through a relay --- */

static uint8_t octet_at(size_t at)
{
	return (uint8_t)(at * 31 + (at >> 8) * 7 + (at >> 16));
}

struct bulk {
	int in, out; /* our ends */
	size_t written, read;
	bool ended;
};

static void bulk_write(struct bulk *b)
{
	static uint8_t data[5000];
	size_t len = sizeof(data);

	if (len > BULK - b->written)
		len = BULK - b->written;
	for (size_t i = 0; i < len; i++)
		data[i] = octet_at(b->written + i);
	ssize_t n = send(b->in, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		assert_int_equal(errno, EAGAIN);
	else
		b->written += (size_t)n;
	if (b->written == BULK)
		assert_int_equal(shutdown(b->in, SHUT_WR), 0);
}

static void bulk_read(struct bulk *b)
{
	static uint8_t data[7000];
	ssize_t n = recv(b->out, data, sizeof(data), MSG_DONTWAIT);

	if (n < 0) {
		assert_int_equal(errno, EAGAIN);
		return;
	}
	b->ended = n == 0;
	for (size_t i = 0; i < (size_t)n; i++) {
		if (data[i] != octet_at(b->read + i))
			fail_msg("octet %zu is wrong", b->read + i);
	}
	b->read += (size_t)n;
}

static void relay(struct io *io, struct bulk *b, enum io_pool pool,
		  io_handle in, io_handle out)
{
	const uint32_t window = 40000;
	struct io_event event;
	bool standing = true;
	bool end = false;

	io_recv(io, in, pool, window);
	while (!b->ended) {
		if (b->written < BULK)
			bulk_write(b);
		bulk_read(b);
		assert_int_equal(io_wait(io, io_now_ms(io)), 0);
		while (io_next(io, &event)) {
			if (event.kind == IO_SENT) {
				assert_true(event.result > 0);
				continue;
			}
			assert_int_equal(event.kind, IO_RECEIVED);
			assert_true(event.result >= 0);
			assert_true(standing);
			standing = event.more;
			end = event.result == 0;
			if (end)
				io_shutdown(io, out);
			else
				io_send(io, out, event.buf);
		}
		if (!standing && !end && io_unsent(io, out) < window) {
			io_recv(io, in, pool, window);
			standing = true;
		}
	}
	assert_int_equal(b->read, BULK);
	assert_int_equal(io_unsent(io, out), 0);
}

static void bulk_passes_unaltered(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		for (int pool = 0; pool < IO_POOLS; pool++) {
			struct io *io = open_io(&ways[w], &standard_config);
			struct bulk b = { 0 };
			const int small = 20000;
			io_handle in = pair_up(io, &b.in);
			io_handle out = pair_up(io, &b.out);

			assert_int_equal(setsockopt(fd_of(io, out), SOL_SOCKET,
						    SO_SNDBUF, &small,
						    sizeof(small)),
					 0);
			relay(io, &b, (enum io_pool)pool, in, out);
			close_both(io, in, b.in);
			close_both(io, out, b.out);
			close_io(io);
		}
	}
}

/* --- credit, ends and errors --- */

static uint32_t receive_all_of(struct io *io, io_handle socket,
			       enum io_pool pool, uint32_t credit)
{
	uint32_t sum = 0;

	io_recv(io, socket, pool, credit);
	for (;;) {
		struct io_event event = expect(io, IO_RECEIVED, socket);

		assert_true(event.result > 0);
		sum += (uint32_t)event.result;
		io_buf_put(io, event.buf);
		if (!event.more)
			return sum;
	}
}

static void a_receive_ends_with_its_credit(void **state)
{
	static uint8_t octets[100000];

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		int raw = -1;
		io_handle socket = pair_up(io, &raw);
		static const uint32_t credits[] = { 1,     100,   4096, 5000,
						    16384, 20000, 1 };
		size_t got = 0;

		raw_write(raw, octets, sizeof(octets));
		for (size_t i = 0; i < sizeof(credits) / 4; i++) {
			enum io_pool pool = i % 2 == 0 ? IO_BIG : IO_SMALL;
			uint32_t n = receive_all_of(io, socket, pool,
						    credits[i]);

			assert_true(n >= credits[i]);
			assert_true(n < credits[i] + IO_BIG_SIZE);
			expect_silence(io); /* no credit, no octets */
			got += n;
		}
		assert_true(got < sizeof(octets));
		assert_int_equal(shutdown(raw, SHUT_WR), 0);
		io_recv(io, socket, IO_SMALL, 1 << 20);
		struct io_event event = expect(io, IO_RECEIVED, socket);

		while (event.result > 0) {
			assert_true(event.more);
			got += (size_t)event.result;
			io_buf_put(io, event.buf);
			event = expect(io, IO_RECEIVED, socket);
		}
		assert_int_equal(event.result, 0);
		assert_null(event.buf);
		assert_false(event.more);
		assert_int_equal(got, sizeof(octets));
		expect_silence(io);
		close_both(io, socket, raw);
		close_io(io);
	}
}

static void a_reset_is_told_to_who_receives_and_who_sends(void **state)
{
	const struct linger reset = { 1, 0 };

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		int raw = -1;
		io_handle socket = pair_up(io, &raw);

		io_recv(io, socket, IO_SMALL, 100);
		assert_int_equal(io_wait(io, 0), 0);
		assert_int_equal(setsockopt(raw, SOL_SOCKET, SO_LINGER, &reset,
					    sizeof(reset)),
				 0);
		assert_int_equal(close(raw), 0);
		struct io_event event = expect(io, IO_RECEIVED, socket);

		assert_int_equal(event.result, -ECONNRESET);
		assert_false(event.more);
		struct io_buf *first = text(io, "nobody ");

		first->next = text(io, "hears this");
		io_send(io, socket, first);
		event = expect(io, IO_SENT, socket);
		assert_int_equal(event.result, -EPIPE);
		assert_int_equal(io_unsent(io, socket), 0);
		io_shutdown(io, socket);
		expect_silence(io);
		io_close(io, socket);
		expect(io, IO_CLOSED, socket);
		close_io(io);
	}
}

/* Connections that end in a reset right behind their last octets. */
enum { HASTY = 600 };

static void *be_hasty(void *arg)
{
	static const char octets[2000];
	const struct linger reset = { 1, 0 };

	for (int i = 0; i < HASTY; i++) {
		int fd = raw_connect(arg);

		for (int k = i % 4; k >= 0; k--)
			raw_write(fd, octets, sizeof(octets) / (1U << k % 3));
		assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset,
					    sizeof(reset)),
				 0);
		assert_int_equal(close(fd), 0);
	}
	return NULL;
}

static void a_reset_right_behind_octets_is_told(void **state)
{
	(void)state;
	assert_false(ring_standard.use_credit);
	for (size_t w = 0; w < WAYS; w++) {
		struct sockaddr_in addr;
		pthread_t thread;
		unsigned ended = 0;

		if (ways[w].tuning.use_credit)
			continue; /* where they stand, it is not */

		struct io *io = open_io(&ways[w], &standard_config);
		io_handle listener = listen_on(io, NULL, &addr);

		assert_int_equal(pthread_create(&thread, NULL, be_hasty, &addr),
				 0);
		while (ended < HASTY) {
			struct io_event event = next(io);

			if (event.kind == IO_ACCEPTED) {
				io_recv(io, event.socket, IO_SMALL, 8192);
			} else if (event.kind == IO_CLOSED) {
				ended++;
			} else if (event.result <= 0) {
				io_close(io, event.socket);
			} else {
				io_buf_put(io, event.buf);
				if (!event.more)
					io_recv(io, event.socket, IO_SMALL,
						8192);
			}
		}
		assert_int_equal(pthread_join(thread, NULL), 0);
		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		close_io(io);
	}
}

static void a_refused_connect_is_told(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct sockaddr_in addr;
		io_handle listener = listen_on(io, NULL, &addr);
		io_handle client = 0;

		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		assert_int_equal(
			io_connect(io, name(&addr), NULL, false, NULL, &client),
			0);
		struct io_event event = expect(io, IO_CONNECTED, client);

		assert_int_equal(event.result, -ECONNREFUSED);
		io_close(io, client);
		expect(io, IO_CLOSED, client);
		close_io(io);
	}
}

static void what_is_queued_is_sent_before_the_fin(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		int raw = -1;
		io_handle socket = pair_up(io, &raw);
		int sent = 0;

		for (int i = 0; i < 40; i++)
			io_send(io, socket, text(io, "220 one line of many\n"));
		struct io_buf *empty = io_buf_get(io, IO_BIG);

		assert_non_null(empty);
		io_send(io, socket, empty);
		io_shutdown(io, socket);
		assert_int_equal(io_unsent(io, socket), 40 * 21);
		while (sent < 40 * 21) {
			struct io_event event = expect(io, IO_SENT, socket);

			assert_true(event.result > 0);
			sent += event.result;
			assert_int_equal(io_unsent(io, socket), 40 * 21 - sent);
		}
		assert_int_equal(raw_drain(raw), 40 * 21);
		/* The other direction still stands. */
		raw_write(raw, "QUIT", 4);
		assert_int_equal(receive_all_of(io, socket, IO_SMALL, 4), 4);
		close_both(io, socket, raw);
		close_io(io);
	}
}

/* --- giving up --- */

static void nothing_but_closed_comes_after_a_close(void **state)
{
	enum { COUNT = 6 };

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		io_handle sockets[COUNT];
		int raws[COUNT];

		for (int i = 0; i < COUNT; i++) {
			sockets[i] = pair_up(io, &raws[i]);
			io_recv(io, sockets[i], IO_BIG, 100000);
			assert_int_equal(io_wait(io, 0), 0);
		}
		for (int i = 0; i < COUNT; i++) {
			static const uint8_t octets[50000];

			raw_write(raws[i], octets, sizeof(octets));
			io_send(io, sockets[i], text(io, "some words"));
		}
		/* The first that comes closes all, in all manners. */
		struct io_event event = next(io);
		int closed = 0;

		assert_true(event.kind == IO_RECEIVED || event.kind == IO_SENT);
		if (event.buf != NULL)
			io_buf_put(io, event.buf);
		for (int i = 0; i < COUNT; i++) {
			if (i % 2 == 0)
				io_close(io, sockets[i]);
			else
				io_abort(io, sockets[i]);
			io_send(io, sockets[i], text(io, "put back"));
		}
		while (closed < COUNT) {
			event = next(io);
			assert_int_equal(event.kind, IO_CLOSED);
			closed++;
		}
		expect_silence(io);
		for (int i = 0; i < COUNT; i++)
			assert_int_equal(close(raws[i]), 0);
		close_io(io);
	}
}

static void close_ends_the_stream_and_abort_resets_it(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);

		for (int abort = 0; abort < 2; abort++) {
			for (int armed = 0; armed < 2; armed++) {
				int raw = -1;
				io_handle socket = pair_up(io, &raw);

				if (armed)
					io_recv(io, socket, IO_SMALL, 100);
				io_send(io, socket, text(io, "hello"));
				expect(io, IO_SENT, socket);
				if (abort)
					io_abort(io, socket);
				else
					io_close(io, socket);
				expect(io, IO_CLOSED, socket);
				/* The reset takes what was not yet read. */
				assert_int_equal(raw_drain(raw),
						 abort ? -ECONNRESET : 5);
				assert_int_equal(close(raw), 0);
			}
		}
		close_io(io);
	}
}

static void a_send_that_is_stuck_does_not_hold_a_close(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);

		for (int abort = 0; abort < 2; abort++) {
			int raw = -1;
			io_handle socket = pair_up(io, &raw);
			struct io_event event;
			bool sending = true;

			/* Until the peer's window is full. */
			while (sending) {
				struct io_buf *buf = io_buf_get(io, IO_BIG);

				if (buf != NULL) {
					buf->len = buf->room;
					buf->room = 0;
					memset(buf->data, 'x', buf->len);
					io_send(io, socket, buf);
				}
				assert_int_equal(io_wait(io, io_now_ms(io) + 1),
						 0);
				while (io_next(io, &event))
					assert_int_equal(event.kind, IO_SENT);
				sending = buf != NULL;
			}
			assert_true(io_unsent(io, socket) > 0);
			if (abort)
				io_abort(io, socket);
			else
				io_close(io, socket);
			expect(io, IO_CLOSED, socket);
			assert_true(io_buf_free(io, IO_BIG) >= 4);
			if (abort)
				assert_int_equal(raw_drain(raw), -ECONNRESET);
			assert_int_equal(close(raw), 0);
		}
		close_io(io);
	}
}

/* A listener whose backlog is full leaves a connect waiting. */
static void a_connect_under_way_can_be_given_up(void **state)
{
	struct sockaddr_in addr = loopback(0);
	socklen_t len = sizeof(addr);
	int full = socket(AF_INET, SOCK_STREAM, 0);
	int fill[4];

	(void)state;
	assert_int_equal(bind(full, name(&addr), sizeof(addr)), 0);
	assert_int_equal(listen(full, 0), 0);
	assert_int_equal(getsockname(full, (struct sockaddr *)&addr, &len), 0);
	for (int i = 0; i < 4; i++) {
		fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)connect(fill[i], name(&addr), sizeof(addr));
	}
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		io_handle sockets[3];

		for (int i = 0; i < 3; i++) {
			assert_int_equal(io_connect(io, name(&addr), NULL,
						    false, NULL, &sockets[i]),
					 0);
			if (i < 2)
				expect_silence(io);
		}
		io_close(io, sockets[0]);
		io_abort(io, sockets[1]);
		io_close(io, sockets[2]); /* the kernel never saw it */
		for (int i = 0; i < 3; i++)
			assert_int_equal(next(io).kind, IO_CLOSED);
		expect_silence(io);
		close_io(io);
	}
	for (int i = 0; i < 4; i++)
		assert_int_equal(close(fill[i]), 0);
	assert_int_equal(close(full), 0);
}

static void a_closed_listener_accepts_no_more(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct sockaddr_in addr;
		io_handle listener = listen_on(io, NULL, &addr);
		int raw = raw_connect(&addr);
		struct io_event event = expect(io, IO_ACCEPTED, 0);
		int late = raw_connect(&addr);

		close_both(io, event.socket, raw);
		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		expect_silence(io);
		assert_true(raw_drain(late) <= 0);
		assert_int_equal(close(late), 0);
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		assert_int_equal(connect(fd, name(&addr), sizeof(addr)), -1);
		assert_int_equal(errno, ECONNREFUSED);
		assert_int_equal(close(fd), 0);
		close_io(io);
	}
}

static void a_handle_is_never_the_same_again(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	io_handle last = 0;

	(void)state;
	for (int i = 0; i < 20; i++) {
		int raw = -1;
		io_handle socket = pair_up(io, &raw);

		assert_true(socket != 0);
		assert_true(socket != last);
		last = socket;
		close_both(io, socket, raw);
	}
	close_io(io);
}

/* --- running out --- */

static void receives_outlive_an_empty_pool(void **state)
{
	enum { COUNT = 40 };
	const struct io_config config = {
		.sockets_max = SOCKETS,
		.buffers = { 16, 16, 16, 16 },
	};

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &config);
		io_handle sockets[COUNT];
		int raws[COUNT];
		bool seen[COUNT] = { false };
		struct io_buf *held = NULL;
		int holding = 0;

		for (int i = 0; i < COUNT; i++) {
			sockets[i] = pair_up(io, &raws[i]);
			io_recv(io, sockets[i], IO_SMALL, 100);
		}
		for (int i = 0; i < COUNT; i++)
			raw_write(raws[i], "one line", 8);
		for (int got = 0; got < COUNT; got++) {
			struct io_event event;

			/* All that there is; then nothing, and no error. */
			while (holding < 14 && got + holding < COUNT) {
				event = next(io);
				assert_int_equal(event.kind, IO_RECEIVED);
				assert_int_equal(event.result, 8);
				assert_true(event.more);
				event.buf->next = held;
				held = event.buf;
				holding++;
				for (int i = 0; i < COUNT; i++) {
					if (sockets[i] == event.socket) {
						assert_false(seen[i]);
						seen[i] = true;
					}
				}
			}
			if (got == 0) {
				expect_silence(io);
				assert_int_equal(io_buf_free(io, IO_SMALL), 1);
				struct io_buf *ours = io_buf_get(io, IO_SMALL);

				assert_non_null(ours); /* the last eighth */
				io_buf_put(io, ours);
			}
			struct io_buf *put = held;

			assert_non_null(put);
			held = put->next;
			io_buf_put(io, put);
			holding--;
		}
		for (int i = 0; i < COUNT; i++) {
			assert_true(seen[i]);
			close_both(io, sockets[i], raws[i]);
		}
		close_io(io);
	}
}

/* A socket that is closed while it waits for a buffer must not come back. */
static void a_starved_receive_can_be_given_up(void **state)
{
	const struct io_config config = {
		.sockets_max = SOCKETS,
		.buffers = { 16, 16, 16, 16 },
	};

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &config);
		struct io_buf *held[16];
		int raws[3];
		io_handle sockets[3];

		for (int i = 0; i < 3; i++)
			sockets[i] = pair_up(io, &raws[i]);
		int holding = 0;

		io_recv(io, sockets[0], IO_SMALL, 1 << 20);
		while (holding < 14) {
			raw_write(raws[0], "x", 1);
			held[holding++] =
				expect(io, IO_RECEIVED, sockets[0]).buf;
		}
		for (int i = 1; i < 3; i++) {
			io_recv(io, sockets[i], IO_SMALL, 100);
			raw_write(raws[i], "y", 1);
		}
		expect_silence(io);
		close_both(io, sockets[1], raws[1]);
		while (holding > 0)
			io_buf_put(io, held[--holding]);
		io_buf_put(io, expect(io, IO_RECEIVED, sockets[2]).buf);
		expect_silence(io);
		close_both(io, sockets[0], raws[0]);
		close_both(io, sockets[2], raws[2]);
		close_io(io);
	}
}

/* valgrind keeps such a limit to itself: the kernel never hears of it. */
static bool kernel_knows_limits(void)
{
	struct rlimit limit;
	FILE *in = fopen("/proc/self/limits", "r");
	char line[256];
	unsigned long soft = 0;

	assert_non_null(in);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	struct rlimit less = limit;

	less.rlim_cur = limit.rlim_cur - 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &less), 0);
	while (fgets(line, sizeof(line), in) != NULL)
		(void)sscanf(line, "Max open files %lu", &soft);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(fclose(in), 0);
	return soft == less.rlim_cur;
}

static void a_listener_without_descriptors_rests_and_goes_on(void **state)
{
	struct rlimit limit;

	(void)state;
	if (!kernel_knows_limits())
		skip();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct sockaddr_in addr;
		int owner = 0;
		io_handle listener = listen_on(io, &owner, &addr);
		int raw = socket(AF_INET, SOCK_STREAM, 0);
		struct rlimit none = limit;

		/* The kernel takes the limit when the accept is asked for. */
		none.rlim_cur = (rlim_t)raw + 1;
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
		assert_int_equal(connect(raw, name(&addr), sizeof(addr)), 0);
		/* It rests and tries again, by itself. */
		for (int i = 0; i < 2; i++) {
			struct io_event event = next(io);

			assert_int_equal(event.kind, IO_ACCEPTED);
			assert_true(event.socket == 0);
			assert_int_equal(event.result, -EMFILE);
			assert_ptr_equal(event.owner, &owner);
		}
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
		struct io_event event = next(io);

		while (event.result == -EMFILE)
			event = next(io);
		assert_int_equal(event.kind, IO_ACCEPTED);
		assert_true(event.socket != 0);
		close_both(io, event.socket, raw);
		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		close_io(io);
	}
}

static void a_resting_listener_can_be_closed(void **state)
{
	struct rlimit limit;

	(void)state;
	if (!kernel_knows_limits())
		skip();
	struct io *io = open_io(&ways[0], &standard_config);
	struct sockaddr_in addr;
	io_handle listener = listen_on(io, NULL, &addr);
	int raw = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	struct rlimit none = limit;

	none.rlim_cur = (rlim_t)raw + 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(connect(raw, name(&addr), sizeof(addr)), 0);
	assert_int_equal(next(io).result, -EMFILE);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	io_close(io, listener);
	expect(io, IO_CLOSED, listener);
	assert_int_equal(io_wait(io, io_now_ms(io) + RING_REST_MS + 1), 0);
	expect_silence(io);
	assert_int_equal(close(raw), 0);
	close_io(io);
}

static void one_socket_too_many_is_closed_and_told(void **state)
{
	const struct io_config config = {
		.sockets_max = 3,
		.buffers = { 16, 16, 16, 16 },
	};

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &config);
		struct sockaddr_in addr;
		io_handle listener = listen_on(io, NULL, &addr);
		int raws[3];
		io_handle first = 0;

		for (int i = 0; i < 3; i++) {
			raws[i] = raw_connect(&addr);
			struct io_event event = next(io);

			assert_int_equal(event.kind, IO_ACCEPTED);
			assert_int_equal(event.result, i < 2 ? 0 : -ENFILE);
			assert_true((event.socket == 0) == (i == 2));
			if (i == 0)
				first = event.socket;
		}
		assert_int_equal(raw_drain(raws[2]), 0);
		io_handle none = 0;

		assert_int_equal(
			io_connect(io, name(&addr), NULL, false, NULL, &none),
			-ENFILE);
		close_both(io, first, raws[0]);
		assert_int_equal(close(raws[2]), 0);
		raws[2] = raw_connect(&addr);
		assert_true(expect(io, IO_ACCEPTED, 0).socket != first);
		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		io_free(&io);
		assert_int_equal(close(raws[1]), 0);
		assert_int_equal(close(raws[2]), 0);
	}
}

/* Far more completions at a time than a queue of 16 holds. */
static void a_crowd_overflows_the_queues_and_loses_nothing(void **state)
{
	enum { COUNT = 250 };

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		static io_handle sockets[COUNT];
		static int raws[COUNT];
		struct sockaddr_in addr;
		io_handle listener = listen_on(io, NULL, &addr);

		assert_int_equal(io_wait(io, 0), 0);
		for (int i = 0; i < COUNT; i++)
			raws[i] = raw_connect(&addr);
		for (int i = 0; i < COUNT; i++) {
			struct io_event event = expect(io, IO_ACCEPTED, 0);

			assert_int_equal(event.result, 0);
			sockets[i] = event.socket;
		}
		for (int i = 0; i < COUNT; i++)
			io_recv(io, sockets[i], IO_SMALL, 64);
		assert_int_equal(io_wait(io, 0), 0);
		for (int i = 0; i < COUNT; i++)
			raw_write(raws[i], "hello", 5);
		int received = 0;
		int sent = 0;

		while (received < COUNT || sent < COUNT) {
			struct io_event event = next(io);

			assert_int_equal(event.result, 5);
			if (event.kind == IO_SENT) {
				sent++;
				continue;
			}
			assert_int_equal(event.kind, IO_RECEIVED);
			received++;
			io_send(io, event.socket, event.buf);
		}
		for (int i = 0; i < COUNT; i++)
			close_both(io, sockets[i], raws[i]);
		io_close(io, listener);
		expect(io, IO_CLOSED, listener);
		if (ways[w].tuning.cq_entries == 16)
			assert_true(io->overflows > 0);
		close_io(io);
	}
}

/* --- time, wake-ups and chance --- */

static void a_wait_ends_at_its_deadline(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct io_event event;

	(void)state;
	assert_true(io_now_ms(io) > 0);
	for (int i = 0; i < 20; i++) {
		int64_t deadline_ms = io_now_ms(io) + i;
		int64_t before_ms = io_now_ms(io);

		assert_int_equal(io_wait(io, deadline_ms), 0);
		assert_true(io_now_ms(io) >= deadline_ms);
		assert_true(io_now_ms(io) >= before_ms);
		assert_false(io_next(io, &event));
	}
	assert_int_equal(io_wait(io, INT64_MIN), 0);
	assert_int_equal(io_wait(io, -1), 0);
	assert_true(io_wall_ms(io) > INT64_C(1600000000000));
	close_io(io);
}

static void *wake_often(void *arg)
{
	struct io *io = arg;

	for (int i = 0; i < 1000; i++)
		io_wake(io);
	return NULL;
}

static void other_threads_wake_the_owner(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		pthread_t thread;
		struct io_event event;

		for (int i = 0; i < 10; i++) {
			assert_int_equal(
				pthread_create(&thread, NULL, wake_often, io),
				0);
			/* valgrind lets nobody run during an endless wait. */
			event = next(io);
			assert_int_equal(event.kind, IO_WOKEN);
			assert_true(event.socket == 0);
			assert_int_equal(pthread_join(thread, NULL), 0);
			while (io_wait(io, 0) == 0 && io_next(io, &event))
				assert_int_equal(event.kind, IO_WOKEN);
			expect_silence(io);
		}
		close_io(io);
	}
}

/* No deadline: only the wake-up ends these waits. */
static void a_wake_up_before_the_wait_is_not_lost(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct io_event event;

	(void)state;
	for (int i = 0; i < 10; i++) {
		io_wake(io);
		io_wake(io);
		do {
			assert_int_equal(io_wait(io, INT64_MAX), 0);
		} while (!io_next(io, &event));
		assert_int_equal(event.kind, IO_WOKEN);
		assert_false(io_next(io, &event));
	}
	close_io(io);
}

/* Two workers, each in its own thread; only the other's wake-up goes on. */
struct pair {
	const struct way *way;
	struct io *ios[2];
	pthread_barrier_t both;
	int rounds;
};

struct half {
	struct pair *pair;
	int which;
	int woken;   /* rounds that came */
	bool failed; /* an event of another kind, or none in time */
};

static bool await_woken(struct io *io)
{
	int64_t deadline_ms = io_now_ms(io) + PATIENCE_MS;
	struct io_event event;

	while (!io_next(io, &event)) {
		if (io_wait(io, deadline_ms) != 0 ||
		    io_now_ms(io) >= deadline_ms)
			return false;
	}
	return event.kind == IO_WOKEN;
}

static void *wake_in_turn(void *arg)
{
	struct half *half = arg;
	struct pair *pair = half->pair;
	char error[IO_ERROR_SIZE];
	struct io *io = ring_open(&standard_config, &pair->way->tuning, error);

	pair->ios[half->which] = io;
	half->failed = io == NULL;
	(void)pthread_barrier_wait(&pair->both);
	struct io *other = pair->ios[1 - half->which];

	if (io == NULL || other == NULL)
		return NULL;
	for (int i = 0; i < pair->rounds && !half->failed; i++) {
		if (half->which == 0)
			io_wake_from(io, other);
		half->failed = !await_woken(io);
		half->woken += !half->failed;
		if (half->which == 1)
			io_wake_from(io, other);
	}
	/* What is queued goes out with a wait. */
	half->failed |= io_wait(io, 0) != 0;
	(void)pthread_barrier_wait(&pair->both);
	io_free(&io);
	return NULL;
}

static void workers_wake_each_other(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct pair pair = { .way = &ways[w], .rounds = 2000 };
		struct half halves[2] = { { &pair, 0, 0, false },
					  { &pair, 1, 0, false } };
		pthread_t threads[2];

		print_message("  %s\n", ways[w].about);
		assert_int_equal(pthread_barrier_init(&pair.both, NULL, 2), 0);
		for (int i = 0; i < 2; i++)
			assert_int_equal(pthread_create(&threads[i], NULL,
							wake_in_turn,
							&halves[i]),
					 0);
		for (int i = 0; i < 2; i++)
			assert_int_equal(pthread_join(threads[i], NULL), 0);
		for (int i = 0; i < 2; i++) {
			assert_false(halves[i].failed);
			assert_int_equal(halves[i].woken, pair.rounds);
		}
		(void)pthread_barrier_destroy(&pair.both);
	}
}

/* More workers than there is place for, and each more than once. */
static void every_worker_is_woken_once_a_turn(void **state)
{
	enum { PLACES = 8, OTHERS = PLACES + 3 };

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		const struct io_config small = { .sockets_max = 4,
						 .buffers = { 16, 16, 16,
							      16 } };
		struct io *io = open_io(&ways[w], &small);
		struct io *others[OTHERS];
		char error[IO_ERROR_SIZE];
		struct io_event event;

		for (int i = 0; i < OTHERS; i++) {
			others[i] = ring_open(&small, &ways[4].tuning, error);
			assert_non_null(others[i]);
		}
		/* As if that many had been told already. */
		io->peers_used = RING_PEERS_MAX - PLACES;
		for (int i = 0; i < 3 * OTHERS; i++) {
			io_wake_from(io, others[i % OTHERS]);
			io_wake_from(io, io);
		}
		/* No system call for as many as there are places. */
		for (int i = 0; i < OTHERS; i++)
			assert_int_equal(atomic_load(&others[i]->woken),
					 i >= PLACES ||
						 !io->tuning.use_message);
		assert_int_equal(io_wait(io, 0), 0);
		for (int i = 0; i < OTHERS; i++) {
			expect(others[i], IO_WOKEN, 0);
			assert_false(atomic_load(&others[i]->woken));
			assert_int_equal(io_wait(others[i], 0), 0);
			assert_false(io_next(others[i], &event));
			close_io(others[i]);
		}
		expect(io, IO_WOKEN, 0);
		expect_silence(io);
		close_io(io);
	}
}

static void a_message_that_fails_wakes_in_the_other_way(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct io *other = open_io(&ways[0], &standard_config);
	int ring_fd = other->ring.ring_fd;

	(void)state;
	/* No ring at all: the kernel refuses it (-EBADFD). */
	other->ring.ring_fd = other->wake_fd;
	io_wake_from(io, other);
	for (int i = 0; i < 5; i++)
		expect_silence(io);
	other->ring.ring_fd = ring_fd;
	expect(other, IO_WOKEN, 0);
	expect_silence(other);

	/* Who goes wakes nobody any more: the other may have gone before. */
	if (io->tuning.use_message) {
		other->ring.ring_fd = other->wake_fd;
		io_wake_from(io, other);
		assert_int_equal(io_wait(io, 0), 0);
		other->ring.ring_fd = ring_fd;
	}
	close_io(other);
	close_io(io);
}

static void random_numbers_differ(void **state)
{
	struct io *a = open_io(&ways[0], &standard_config);
	struct io *b = open_io(&ways[0], &standard_config);
	uint64_t ones = 0;

	(void)state;
	for (int i = 0; i < 100; i++) {
		uint64_t x = io_random(a);

		assert_true(x != io_random(a));
		assert_true(x != io_random(b));
		ones |= x;
	}
	assert_true(ones == UINT64_MAX);
	close_io(a);
	close_io(b);
}

/* --- other kinds of address --- */

static void a_stream_goes_over(struct io *io, const struct sockaddr *addr,
			       io_handle listener)
{
	io_handle client = 0;

	assert_int_equal(io_connect(io, addr, NULL, false, NULL, &client), 0);
	struct io_event one = next(io);
	struct io_event two = next(io);

	assert_int_equal(one.result, 0);
	assert_int_equal(two.result, 0);
	io_handle server = one.kind == IO_ACCEPTED ? one.socket : two.socket;

	assert_true(server != client);
	io_send(io, client, text(io, "abc"));
	io_shutdown(io, client);
	expect(io, IO_SENT, client);
	assert_int_equal(receive_all_of(io, server, IO_RESERVE, 3), 3);
	io_recv(io, server, IO_RESERVE, 3);
	assert_int_equal(expect(io, IO_RECEIVED, server).result, 0);
	io_abort(io, server);
	expect(io, IO_CLOSED, server);
	io_close(io, client);
	expect(io, IO_CLOSED, client);
	io_close(io, listener);
	expect(io, IO_CLOSED, listener);
}

static void ipv6_is_spoken_and_leaves_ipv4_alone(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct sockaddr_in6 six = { .sin6_family = AF_INET6,
				    .sin6_addr = IN6ADDR_ANY_INIT };
	struct sockaddr_in four = loopback(0);
	socklen_t len = sizeof(six);
	io_handle listener = 0;
	io_handle other = 0;
	const struct sockaddr *addr = (const struct sockaddr *)&six;

	(void)state;
	assert_int_equal(io_listen(io, addr, 0, NULL, &listener), 0);
	assert_int_equal(
		getsockname(fd_of(io, listener), (struct sockaddr *)&six, &len),
		0);
	four.sin_port = six.sin6_port;
	assert_int_equal(io_listen(io, name(&four), 0, NULL, &other), 0);
	io_close(io, other);
	expect(io, IO_CLOSED, other);
	six.sin6_addr = in6addr_loopback;
	a_stream_goes_over(io, addr, listener);
	close_io(io);
}

static void two_workers_listen_on_one_port(void **state)
{
	struct io *a = open_io(&ways[0], &standard_config);
	struct io *b = open_io(&ways[0], &standard_config);
	struct sockaddr_in addr;
	io_handle listener = 0;

	(void)state;
	(void)listen_on(a, NULL, &addr);
	assert_int_equal(io_listen(b, name(&addr), 0, NULL, &listener), 0);
	io_free(&a);
	io_free(&b);
}

static void an_address_we_do_not_have_is_refused(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct sockaddr_in there = loopback(2525);
	struct sockaddr_in nowhere = loopback(0);
	struct sockaddr strange = { .sa_family = AF_PACKET };
	io_handle handle = 0;

	(void)state;
	nowhere.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, RFC 5737 */
	assert_int_equal(io_listen(io, name(&nowhere), 0, NULL, &handle),
			 -EADDRNOTAVAIL);
	assert_int_equal(io_connect(io, name(&there), name(&nowhere), false,
				    NULL, &handle),
			 -EADDRNOTAVAIL);
	assert_int_equal(io_listen(io, &strange, 0, NULL, &handle),
			 -EAFNOSUPPORT);
	assert_int_equal(io_connect(io, &strange, NULL, false, NULL, &handle),
			 -EAFNOSUPPORT);
	close_io(io);
}

/* Take these capabilities away, or bring them back; which were there. */
static uint32_t set_capabilities(uint32_t effective)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	assert_int_equal(syscall(SYS_capget, &header, data), 0);
	uint32_t before = data[0].effective;

	data[0].effective = effective & data[0].permitted;
	assert_int_equal(syscall(SYS_capset, &header, data), 0);
	return before;
}

static void another_ones_address_takes_a_capability(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct sockaddr_in there = loopback(2525);
	struct sockaddr_in other = loopback(2526);
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	const struct sockaddr *strange = (const struct sockaddr *)&six;
	const uint32_t enough = 1U << CAP_NET_ADMIN | 1U << CAP_NET_RAW;
	io_handle handle = 0;

	(void)state;
	other.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, RFC 5737 */
	uint32_t all = set_capabilities(0);

	assert_int_equal(
		io_connect(io, name(&there), name(&other), true, NULL, &handle),
		-EPERM);
	(void)set_capabilities(all);
	if (all & enough) {
		struct sockaddr_in from = { 0 };

		assert_int_equal(io_connect(io, name(&there), strange, true,
					    NULL, &handle),
				 -EAFNOSUPPORT);
		assert_int_equal(io_connect(io, name(&there), name(&other),
					    true, NULL, &handle),
				 0);
		socklen_t len = sizeof(from);

		assert_int_equal(getsockname(fd_of(io, handle),
					     (struct sockaddr *)&from, &len),
				 0);
		assert_int_equal(from.sin_addr.s_addr, other.sin_addr.s_addr);
		assert_int_equal(from.sin_port, 0);
		io_close(io, handle);
		expect(io, IO_CLOSED, handle);
	}
	close_io(io);
}

static void a_unix_listener_takes_over_stale_names_only(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const struct sockaddr *unix_name = (const struct sockaddr *)&addr;
	char dir[] = "/tmp/test_ring.XXXXXX";
	io_handle listener = 0, other = 0;
	struct stat st;

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/socket", dir);
	mode_t mask = umask(077);

	assert_int_equal(io_listen(io, unix_name, 0660, NULL, &listener), 0);
	(void)umask(mask);
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0660);
	assert_int_equal(io_listen(io, unix_name, 0600, NULL, &other),
			 -EADDRINUSE);
	/* That one asked whether somebody answers. */
	other = expect(io, IO_ACCEPTED, 0).socket;
	io_close(io, other);
	expect(io, IO_CLOSED, other);
	a_stream_goes_over(io, unix_name, listener);

	/* The name is still there, and nobody answers. */
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(io_listen(io, unix_name, 0600, NULL, &listener), 0);
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	a_stream_goes_over(io, unix_name, listener);
	assert_int_equal(unlink(addr.sun_path), 0);

	/* A file of another kind is nobody's to remove. */
	int fd = open(addr.sun_path, O_CREAT | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(close(fd), 0);
	assert_int_equal(io_listen(io, unix_name, 0600, NULL, &listener),
			 -ENOTSOCK);
	assert_int_equal(unlink(addr.sun_path), 0);
	assert_int_equal(rmdir(dir), 0);
	memset(addr.sun_path, 'x', sizeof(addr.sun_path));
	assert_int_equal(io_listen(io, unix_name, 0600, NULL, &listener),
			 -EINVAL);
	close_io(io);
}

/* --- the end --- */

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		count++;
	assert_int_equal(closedir(dir), 0);
	return count;
}

/* --- splices --- */

/*
 * Two connections, joined by weir: what side 0 says comes out at side 1, and
 * the other way round.  The stream of a direction is a formula of the place.
 */
enum { SPLICE_CHUNK = 65536 };

struct joined {
	struct io *io;
	io_handle socket[2];
	int raw[2];
	uint64_t said[2]; /* by this raw side */
	uint64_t read[2]; /* by this raw side */
	uint64_t told[2]; /* IO_SPLICED of this side's octets */
	uint64_t now[2];  /* and of those in this turn */
	int ends[2];      /* IO_SPLICED that told of an end */
	int result[2];    /* of the last of those */
	bool by_to[2];
	int first;   /* whose end was told first */
	bool fin[2]; /* read by this raw side */
};

static uint8_t octet_of(int side, uint64_t place)
{
	return (uint8_t)((place * 31 + place / 251) ^ (side ? 0x5a : 0));
}

static void join(struct joined *j, struct io *io)
{
	*j = (struct joined){ .io = io };
	for (int i = 0; i < 2; i++) {
		j->socket[i] = pair_up(io, &j->raw[i]);
		io_adopt(io, j->socket[i], j);
		assert_int_equal(fcntl(j->raw[i], F_SETFL, O_NONBLOCK), 0);
	}
	io_splice(io, j->socket[0], j->socket[1]);
	io_splice(io, j->socket[1], j->socket[0]);
}

/* Say up to len octets; how many the socket took. */
static size_t say(struct joined *j, int side, size_t len)
{
	static uint8_t data[SPLICE_CHUNK];

	if (len > sizeof(data))
		len = sizeof(data);
	for (size_t i = 0; i < len; i++)
		data[i] = octet_of(side, j->said[side] + i);
	ssize_t n = send(j->raw[side], data, len, MSG_NOSIGNAL);

	if (n < 0)
		return 0;
	j->said[side] += (uint64_t)n;
	return (size_t)n;
}

/* Read what is there, and compare; how many octets it was. */
static size_t hear(struct joined *j, int side)
{
	static uint8_t data[SPLICE_CHUNK];
	ssize_t n = recv(j->raw[side], data, sizeof(data), 0);

	if (n == 0)
		j->fin[side] = true;
	if (n <= 0)
		return 0;
	for (ssize_t i = 0; i < n; i++) {
		uint64_t place = j->read[side] + (uint64_t)i;

		if (data[i] != octet_of(!side, place))
			fail_msg("octet %llu of side %d is altered",
				 (unsigned long long)place, !side);
	}
	j->read[side] += (uint64_t)n;
	return (size_t)n;
}

static void spliced(struct joined *j, const struct io_event *event)
{
	int side = event->socket == j->socket[1];

	assert_int_equal(event->kind, IO_SPLICED);
	assert_true(event->socket == j->socket[side]);
	assert_int_equal(j->ends[side], 0);
	if (event->result > 0) {
		assert_int_equal(j->now[side], 0); /* one each batch */
		assert_true(event->result <= 2 * 256 * 1024);
		j->now[side] = (uint64_t)event->result;
		j->told[side] += j->now[side];
		return;
	}
	if (j->ends[!side] == 0)
		j->first = side;
	j->ends[side]++;
	j->result[side] = event->result;
	j->by_to[side] = event->by_to;
	if (event->result == 0)
		io_shutdown(j->io, j->socket[!side]);
}

/* One turn of weir; returns the octets that it told of for this one. */
static uint64_t turn(struct joined *j)
{
	struct io_event event;

	assert_int_equal(io_wait(j->io, io_now_ms(j->io) + 1), 0);
	j->now[0] = j->now[1] = 0;
	while (io_next(j->io, &event)) {
		struct joined *other = event.owner;

		if (other != j)
			other->now[0] = other->now[1] = 0;
		spliced(other, &event);
	}
	return j->now[0] + j->now[1];
}

/* Give one side up, while others may go on. */
static void give_up_side(struct joined *j, int side)
{
	io_handle socket = j->socket[side];
	struct io_event event;

	io_close(j->io, socket);
	for (event = next(j->io); event.kind != IO_CLOSED;
	     event = next(j->io)) {
		struct joined *other = event.owner;

		other->now[0] = other->now[1] = 0;
		spliced(other, &event);
	}
	assert_true(event.socket == socket);
	j->socket[side] = 0;
}

static void part(struct joined *j)
{
	for (int i = 0; i < 2; i++) {
		if (j->socket[i] != 0)
			give_up_side(j, i);
		if (j->raw[i] >= 0)
			assert_int_equal(close(j->raw[i]), 0);
	}
}

/* Idle splices hold nothing. */
static void expect_no_pipe_in_use(const struct io *io)
{
	assert_int_equal(io->pipes.open, io->pipes.idle_count);
	assert_true(io->pipes.open <= RING_PIPES_IDLE);
}

/* Until `side` has heard all that the other side said so far. */
static void hear_all(struct joined *j, int side)
{
	int64_t deadline_ms = io_now_ms(j->io) + PATIENCE_MS;

	while (j->read[side] < j->said[!side]) {
		(void)turn(j);
		(void)hear(j, side);
		assert_true(io_now_ms(j->io) < deadline_ms);
	}
}

static void a_splice_passes_bulk_both_ways_and_each_fin(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct joined j;
		int64_t deadline_ms = io_now_ms(io) + PATIENCE_MS;

		join(&j, io);
		while (j.read[0] < BULK || j.read[1] < BULK) {
			for (int i = 0; i < 2; i++) {
				(void)say(&j, i, BULK - j.said[i]);
				(void)hear(&j, i);
			}
			(void)turn(&j);
			assert_true(io_now_ms(io) < deadline_ms);
		}
		expect_no_pipe_in_use(io);
		/* One side ends; the other one may go on. */
		assert_int_equal(shutdown(j.raw[0], SHUT_WR), 0);
		while (!j.fin[1]) {
			(void)turn(&j);
			(void)hear(&j, 1);
			assert_true(io_now_ms(io) < deadline_ms);
		}
		assert_int_equal(j.ends[0], 1);
		assert_int_equal(j.result[0], 0);
		assert_int_equal(j.ends[1], 0);
		(void)say(&j, 1, 5000);
		hear_all(&j, 0);
		assert_false(j.fin[0]);
		(void)say(&j, 1, 5000);
		assert_int_equal(shutdown(j.raw[1], SHUT_WR), 0);
		while (!j.fin[0]) {
			(void)turn(&j);
			(void)hear(&j, 0);
			assert_true(io_now_ms(io) < deadline_ms);
		}
		for (int i = 0; i < 2; i++) {
			assert_int_equal(j.ends[i], 1);
			assert_int_equal(j.result[i], 0);
			assert_true(j.told[i] == j.said[i]);
			assert_true(j.read[!i] == j.said[i]);
		}
		expect_silence(io);
		expect_no_pipe_in_use(io);
		part(&j);
		close_io(io);
	}
}

/* Say all that fits on the way; returns when ten turns moved nothing. */
static void stuff(struct joined *j, int side)
{
	for (int still = 0; still < 10;) {
		uint64_t moved = turn(j);

		still = say(j, side, SPLICE_CHUNK) > 0 || moved > 0 ? 0
								    : still + 1;
	}
}

/* Buffers that do not grow, so that a way is soon full. */
static void narrow(struct joined *j)
{
	const int size = 16384;

	for (int i = 0; i < 2; i++) {
		int ours = fd_of(j->io, j->socket[i]);

		assert_int_equal(setsockopt(j->raw[i], SOL_SOCKET, SO_SNDBUF,
					    &size, sizeof(size)),
				 0);
		assert_int_equal(setsockopt(j->raw[i], SOL_SOCKET, SO_RCVBUF,
					    &size, sizeof(size)),
				 0);
		assert_int_equal(setsockopt(ours, SOL_SOCKET, SO_SNDBUF, &size,
					    sizeof(size)),
				 0);
		assert_int_equal(setsockopt(ours, SOL_SOCKET, SO_RCVBUF, &size,
					    sizeof(size)),
				 0);
	}
}

static void a_splice_takes_no_more_than_a_slow_reader_does(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct joined j[4];

		/* More of them than there are pipes, in some of the ways. */
		for (int i = 0; i < 4; i++)
			join(&j[i], io);
		for (int i = 0; i < 4; i++) {
			narrow(&j[i]);
			stuff(&j[i], 0);
			assert_true(j[i].said[0] > j[i].told[0]);
		}
		assert_true(io->pipes.open <= io->tuning.pipes_max);
		/* The other way is as free as ever. */
		for (int i = 0; i < 4; i++) {
			(void)say(&j[i], 1, 1000);
			hear_all(&j[i], 0);
		}
		/* The end waits behind what is stuck. */
		assert_int_equal(shutdown(j[3].raw[0], SHUT_WR), 0);
		(void)turn(&j[3]);
		assert_int_equal(j[3].ends[0], 0);
		for (int i = 0; i < 4; i++)
			hear_all(&j[i], 1);
		while (!j[3].fin[1]) {
			(void)turn(&j[3]);
			(void)hear(&j[3], 1);
		}
		assert_int_equal(j[3].result[0], 0);
		expect_no_pipe_in_use(io);
		for (int i = 0; i < 4; i++) {
			assert_true(j[i].told[0] == j[i].said[0]);
			part(&j[i]);
		}
		close_io(io);
	}
}

static void reset_now(int fd)
{
	const struct linger at_once = { .l_onoff = 1 };

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once,
				    sizeof(at_once)),
			 0);
	assert_int_equal(close(fd), 0);
}

static void a_reset_of_either_side_breaks_a_splice(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);

		/* side: who resets; busy: while the other one speaks to it. */
		for (int i = 0; i < 4; i++) {
			int side = i & 1;
			bool busy = i & 2;
			struct joined j;

			join(&j, io);
			narrow(&j);
			if (busy)
				stuff(&j, !side);
			reset_now(j.raw[side]);
			j.raw[side] = -1;
			int64_t deadline_ms = io_now_ms(io) + PATIENCE_MS;

			while (j.ends[0] == 0 && j.ends[1] == 0) {
				(void)turn(&j);
				assert_true(io_now_ms(io) < deadline_ms);
			}
			/* As the from of one, or as the to of the other: the
			 * first to be told hears why. */
			int teller = j.first;

			assert_true(j.result[teller] == -ECONNRESET ||
				    j.result[teller] == -EPIPE);
			assert_int_equal(j.by_to[teller], teller != side);
			part(&j);
		}
		expect_no_pipe_in_use(io);
		close_io(io);
	}
}

static void a_close_ends_a_splice_in_silence(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct joined j;

		join(&j, io);
		narrow(&j);
		stuff(&j, 0);
		/* The way out goes; the way in is a socket as any other. */
		io_abort(io, j.socket[1]);
		expect(io, IO_CLOSED, j.socket[1]);
		j.socket[1] = 0;
		assert_int_equal(raw_drain(j.raw[1]), -ECONNRESET);
		expect_silence(io);
		io_recv(io, j.socket[0], IO_SMALL, 1);
		struct io_event event = expect(io, IO_RECEIVED, j.socket[0]);

		assert_true(event.result > 0);
		io_buf_put(io, event.buf);
		io_send(io, j.socket[0], text(io, "so long\r\n"));
		expect(io, IO_SENT, j.socket[0]);
		part(&j);
		/* And the way in. */
		join(&j, io);
		narrow(&j);
		stuff(&j, 0);
		io_close(io, j.socket[0]);
		expect(io, IO_CLOSED, j.socket[0]);
		j.socket[0] = 0;
		expect_silence(io);
		io_recv(io, j.socket[1], IO_SMALL, 1);
		assert_int_equal(shutdown(j.raw[1], SHUT_WR), 0);
		event = expect(io, IO_RECEIVED, j.socket[1]);
		assert_int_equal(event.result, 0);
		part(&j);
		/* Nothing of what was under way comes out elsewhere. */
		expect_no_pipe_in_use(io);
		join(&j, io);
		(void)say(&j, 0, SPLICE_CHUNK);
		hear_all(&j, 1);
		part(&j);
		close_io(io);
	}
}

static void a_splice_can_change_its_way(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct joined j;
		int raw = -1;
		io_handle third = pair_up(io, &raw);

		join(&j, io);
		(void)say(&j, 0, 100);
		hear_all(&j, 1);
		io_close(io, j.socket[1]);
		expect(io, IO_CLOSED, j.socket[1]);
		assert_int_equal(close(j.raw[1]), 0);
		j.socket[1] = third;
		j.raw[1] = raw;
		assert_int_equal(fcntl(raw, F_SETFL, O_NONBLOCK), 0);
		io_splice(io, j.socket[0], third);
		(void)say(&j, 0, 100);
		hear_all(&j, 1);
		part(&j);
		close_io(io);
	}
}

static void urgent_data_ends_no_splice(void **state)
{
	struct io *io = open_io(&ways[0], &standard_config);
	struct joined j;

	(void)state;
	join(&j, io);
	(void)say(&j, 0, 1000);
	hear_all(&j, 1);
	assert_int_equal(send(j.raw[0], "!", 1, MSG_OOB | MSG_NOSIGNAL), 1);
	for (int i = 0; i < 5; i++)
		(void)turn(&j);
	assert_int_equal(j.ends[0], 0);
	(void)say(&j, 0, 1000);
	hear_all(&j, 1);
	assert_int_equal(shutdown(j.raw[0], SHUT_WR), 0);
	while (!j.fin[1]) {
		(void)turn(&j);
		(void)hear(&j, 1);
	}
	part(&j);
	close_io(io);
}

static void a_splice_without_descriptors_goes_on(void **state)
{
	struct rlimit limit;

	(void)state;
	if (!kernel_knows_limits())
		skip();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	struct io *io = open_io(&ways[0], &standard_config);
	struct joined j;
	struct rlimit none = limit;

	join(&j, io);
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	for (int i = 0; i < 40; i++) {
		(void)say(&j, 0, SPLICE_CHUNK);
		(void)say(&j, 1, SPLICE_CHUNK);
		hear_all(&j, 1);
		hear_all(&j, 0);
	}
	assert_int_equal(io->pipes.open, 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	(void)say(&j, 0, SPLICE_CHUNK);
	hear_all(&j, 1);
	assert_int_equal(io->pipes.open, 1);
	part(&j);
	close_io(io);
}

static void splices_leave_no_descriptor(void **state)
{
	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		int before = count_fds();
		struct io *io = open_io(&ways[w], &standard_config);
		struct joined j[6];

		for (int i = 0; i < 6; i++)
			join(&j[i], io);
		for (int i = 0; i < 6; i++) {
			narrow(&j[i]);
			stuff(&j[i], i & 1);
		}
		/* The rest goes with the door. */
		for (int i = 0; i < 3; i++)
			part(&j[i]);
		io_free(&io);
		for (int i = 3; i < 6; i++) {
			assert_int_equal(close(j[i].raw[0]), 0);
			assert_int_equal(close(j[i].raw[1]), 0);
		}
		assert_int_equal(count_fds(), before);
	}
}

static void freeing_closes_all_whatever_is_under_way(void **state)
{
	int before = count_fds();

	(void)state;
	for (size_t w = 0; w < WAYS; w++) {
		struct io *io = open_io(&ways[w], &standard_config);
		struct sockaddr_in addr;
		io_handle sockets[20];
		int raws[20];

		for (int i = 0; i < 20; i++)
			sockets[i] = pair_up(io, &raws[i]);
		for (int i = 0; i < 20; i++) {
			io_handle socket = sockets[i];

			io_recv(io, socket, IO_BIG, 1 << 20);
			io_send(io, socket, text(io, "unread"));
			if (i % 3 == 0)
				assert_int_equal(io_wait(io, 0), 0);
			if (i % 4 == 0)
				raw_write(raws[i], "unread", 6);
			if (i % 5 == 0)
				io_close(io, socket);
		}
		(void)listen_on(io, NULL, &addr);
		io_free(&io);
		assert_null(io);
		io_free(&io);
		for (int i = 0; i < 20; i++)
			assert_int_equal(close(raws[i]), 0);
	}
	assert_int_equal(count_fds(), before);
}

/* --- why there is no ring --- */

static void each_reason_is_said_with_its_remedy(void **state)
{
	/* clang-format off */
	static const struct {
		int result;
		const char *words[3];
	} cases[] = {
		{ -EPERM, { "EPERM", "io_uring_disabled", "io_uring_setup" } },
		{ -EACCES, { "EACCES", "seccomp", "setup" } },
		{ -ENOMEM, { "ENOMEM", "RLIMIT_MEMLOCK", "LimitMEMLOCK" } },
		{ -EINVAL, { "EINVAL", "Linux 6.1", "this is" } },
		{ -EMFILE, { "EMFILE", "RLIMIT_NOFILE", "LimitNOFILE" } },
		{ -EIO, { "EIO", "setup", "error" } },
		{ -12345, { "unknown error", "setup", "12345" } },
	};
	/* clang-format on */
	struct io *io = open_io(&ways[0], &standard_config);

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char error[IO_ERROR_SIZE];

		ring_probe_explain(io, "setup", cases[i].result, error);
		for (int word = 0; word < 3; word++) {
			if (strstr(error, cases[i].words[word]) == NULL)
				fail_msg("no \"%s\" in: %s",
					 cases[i].words[word], error);
		}
		assert_null(strchr(error, '\n'));
	}
	close_io(io);
}

/* The child's exit status: did io_open() fail, with this word? */
static void open_and_exit(const char *word)
{
	char error[IO_ERROR_SIZE] = "";
	struct io *io = io_open(&standard_config, error);

	if (io != NULL)
		_exit(1);
	if (strstr(error, word) == NULL)
		_exit(2);
	_exit(0);
}

static void expect_child(pid_t child)
{
	int status = 0;

	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_seccomp_filter_is_recognized(void **state)
{
	static struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {
		.len = sizeof(filter) / sizeof(filter[0]),
		.filter = filter,
	};
	pid_t child = fork();

	(void)state;
	if (child == 0) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
		    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
			_exit(3);
		open_and_exit("seccomp");
	}
	expect_child(child);
}

/* Locked memory is not counted for root, so the child is somebody else. */
static void a_memory_limit_is_recognized(void **state)
{
	const struct rlimit limit = { 64 << 10, 64 << 10 };

	(void)state;
	if (geteuid() != 0)
		skip();
	pid_t child = fork();

	if (child == 0) {
		if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 ||
		    setresuid(65531, 65531, 65531) != 0)
			_exit(3);
		open_and_exit("RLIMIT_MEMLOCK");
	}
	expect_child(child);
}

int main(void)
{
	(void)signal(SIGPIPE, SIG_IGN); /* splice() cannot be told */
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_kernel_does_all_that_is_asked),
		cmocka_unit_test(both_ends_talk_and_know_each_other),
		cmocka_unit_test(bulk_passes_unaltered),
		cmocka_unit_test(a_receive_ends_with_its_credit),
		cmocka_unit_test(a_reset_is_told_to_who_receives_and_who_sends),
		cmocka_unit_test(a_reset_right_behind_octets_is_told),
		cmocka_unit_test(a_refused_connect_is_told),
		cmocka_unit_test(what_is_queued_is_sent_before_the_fin),
		cmocka_unit_test(nothing_but_closed_comes_after_a_close),
		cmocka_unit_test(close_ends_the_stream_and_abort_resets_it),
		cmocka_unit_test(a_send_that_is_stuck_does_not_hold_a_close),
		cmocka_unit_test(a_connect_under_way_can_be_given_up),
		cmocka_unit_test(a_closed_listener_accepts_no_more),
		cmocka_unit_test(a_handle_is_never_the_same_again),
		cmocka_unit_test(receives_outlive_an_empty_pool),
		cmocka_unit_test(a_starved_receive_can_be_given_up),
		cmocka_unit_test(
			a_listener_without_descriptors_rests_and_goes_on),
		cmocka_unit_test(a_resting_listener_can_be_closed),
		cmocka_unit_test(one_socket_too_many_is_closed_and_told),
		cmocka_unit_test(
			a_crowd_overflows_the_queues_and_loses_nothing),
		cmocka_unit_test(a_wait_ends_at_its_deadline),
		cmocka_unit_test(other_threads_wake_the_owner),
		cmocka_unit_test(a_wake_up_before_the_wait_is_not_lost),
		cmocka_unit_test(workers_wake_each_other),
		cmocka_unit_test(every_worker_is_woken_once_a_turn),
		cmocka_unit_test(a_message_that_fails_wakes_in_the_other_way),
		cmocka_unit_test(random_numbers_differ),
		cmocka_unit_test(ipv6_is_spoken_and_leaves_ipv4_alone),
		cmocka_unit_test(two_workers_listen_on_one_port),
		cmocka_unit_test(an_address_we_do_not_have_is_refused),
		cmocka_unit_test(another_ones_address_takes_a_capability),
		cmocka_unit_test(a_unix_listener_takes_over_stale_names_only),
		cmocka_unit_test(a_splice_passes_bulk_both_ways_and_each_fin),
		cmocka_unit_test(
			a_splice_takes_no_more_than_a_slow_reader_does),
		cmocka_unit_test(a_reset_of_either_side_breaks_a_splice),
		cmocka_unit_test(a_close_ends_a_splice_in_silence),
		cmocka_unit_test(a_splice_can_change_its_way),
		cmocka_unit_test(urgent_data_ends_no_splice),
		cmocka_unit_test(a_splice_without_descriptors_goes_on),
		cmocka_unit_test(splices_leave_no_descriptor),
		cmocka_unit_test(freeing_closes_all_whatever_is_under_way),
		cmocka_unit_test(each_reason_is_said_with_its_remedy),
		cmocka_unit_test(a_seccomp_filter_is_recognized),
		cmocka_unit_test(a_memory_limit_is_recognized),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
