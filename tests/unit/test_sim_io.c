#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "tests/sim/sim_io.h"

/*
 * The simulation's own door, driven by the smallest of workers: one that
 * echoes, with back-pressure by credit, and ends when its client does.
 */

enum { CREDIT = 5000, UNSENT_MAX = 20000, BODY_LEN = 90000 };

static const struct sim_faults calm = {
	.latency_us_max = 1000,
	.window_min = 65536,
	.window_max = 65536,
};

static const struct sim_faults rough = {
	.cut = 600,
	.skip = 300,
	.no_buffer = 100,
	.accept_error = 200,
	.latency_us_max = 30000,
	.window_min = 1,
	.window_max = 3000,
};

struct echo {
	struct sim *sim;
	struct logger *logger;
	struct io *io;
	io_handle listener;
	bool receiving;
	unsigned accepted, closed, errors;
};

struct client {
	struct sim_end *end;
	uint8_t got[BODY_LEN + 1];
	size_t got_len;
	bool open, fin, rst;
	int failed;
};

static void echo_open(struct echo *e, uint64_t seed,
		      const struct sim_faults *faults)
{
	char error[IO_ERROR_SIZE];
	union sim_addr addr = sim_addr_make("192.0.2.1", 25);

	*e = (struct echo){ .sim = sim_new(seed, faults) };
	e->logger = sim_logger_new(e->sim, NULL, NULL);
	struct io_config config = {
		.sockets_max = 16,
		.buffers = { 16, 16, 16, 16 },
		.logger = e->logger,
	};
	e->io = io_open(&config, error);
	assert_non_null(e->io);
	assert_int_equal(io_listen(e->io, &addr.sa, 0, e, &e->listener), 0);
}

static void echo_free(struct echo *e)
{
	io_free(&e->io);
	sim_logger_free(&e->logger);
	sim_free(&e->sim);
}

/* Receive again once most of what came has gone. */
static void echo_refill(struct echo *e, io_handle socket)
{
	if (e->receiving || io_unsent(e->io, socket) > UNSENT_MAX)
		return;
	io_recv(e->io, socket, IO_SMALL, CREDIT);
	e->receiving = true;
}

static void echo_received(struct echo *e, const struct io_event *ev)
{
	e->receiving = ev->more;
	if (ev->result < 0) {
		e->errors++;
		io_close(e->io, ev->socket);
	} else if (ev->result == 0) {
		io_shutdown(e->io, ev->socket);
		if (io_unsent(e->io, ev->socket) == 0)
			io_close(e->io, ev->socket);
		e->receiving = true; /* never again */
	} else {
		io_send(e->io, ev->socket, ev->buf);
		echo_refill(e, ev->socket);
	}
}

static void echo_event(struct echo *e, const struct io_event *ev)
{
	switch (ev->kind) {
	case IO_ACCEPTED:
		if (ev->result != 0)
			return;
		e->accepted++;
		io_adopt(e->io, ev->socket, e);
		io_recv(e->io, ev->socket, IO_SMALL, CREDIT);
		e->receiving = true;
		return;
	case IO_RECEIVED:
		echo_received(e, ev);
		return;
	case IO_SENT:
		if (ev->result < 0) {
			e->errors++;
			io_close(e->io, ev->socket);
		} else {
			echo_refill(e, ev->socket);
		}
		return;
	case IO_CLOSED:
		e->closed++;
		return;
	case IO_CONNECTED:
	case IO_SPLICED:
	case IO_WOKEN:
		return;
	}
}

/* Virtual time, turn by turn, until nothing is left to happen. */
static void echo_run(struct echo *e, int64_t until_us)
{
	struct io_event ev;

	while (sim_failed(e->sim) == NULL) {
		while (sim_io_due_us(e->io) <= sim_now_us(e->sim)) {
			assert_int_equal(io_wait(e->io, INT64_MAX), 0);
			while (io_next(e->io, &ev))
				echo_event(e, &ev);
		}
		if (sim_next_us(e->sim) > until_us)
			break;
		sim_pass(e->sim, until_us);
	}
}

static void client_event(void *owner, struct sim_end *end, enum sim_what what,
			 int err)
{
	struct client *c = owner;

	switch (what) {
	case SIM_OPEN:
		c->open = true;
		break;
	case SIM_FAILED:
		c->failed = err;
		c->end = NULL;
		return;
	case SIM_RST:
		c->rst = true;
		break;
	case SIM_DATA:
	case SIM_ROOM:
	case SIM_FIN:
		break;
	}
	c->got_len += sim_end_read(end, c->got + c->got_len,
				   sizeof(c->got) - c->got_len);
	c->fin = sim_end_at_fin(end);
}

static void client_connect(struct client *c, struct echo *e, uint16_t port)
{
	union sim_addr addr = sim_addr_make("192.0.2.1", port);
	union sim_addr from = sim_addr_make("198.51.100.7", 0);

	*c = (struct client){ 0 };
	c->end = sim_connect(e->sim, &addr.sa, &from.sa, client_event, c);
}

static struct client client; /* too large for the stack */
static uint8_t body[BODY_LEN];

static uint64_t echo_once(uint64_t seed, const struct sim_faults *faults)
{
	struct echo e;

	for (size_t i = 0; i < BODY_LEN; i++)
		body[i] = (uint8_t)(i * 7 + i / 251);
	echo_open(&e, seed, faults);
	client_connect(&client, &e, 25);
	sim_end_say(client.end, body, BODY_LEN);
	sim_end_fin(client.end);
	echo_run(&e, INT64_MAX - 1);

	assert_null(sim_failed(e.sim));
	assert_true(client.fin);
	assert_int_equal(client.got_len, BODY_LEN);
	assert_memory_equal(client.got, body, BODY_LEN);
	assert_int_equal(sim_io_buffers_out(e.io), 0);
	uint64_t hash = sim_hash(e.sim);
	echo_free(&e);
	return hash;
}

static void octets_come_back_unchanged_however_rough_the_net(void **state)
{
	(void)state;
	echo_once(1, &calm);
	for (uint64_t seed = 1; seed <= 40; seed++)
		echo_once(seed, &rough);
}

static void a_seed_decides_everything(void **state)
{
	(void)state;
	assert_true(echo_once(7, &rough) == echo_once(7, &rough));
	assert_true(echo_once(7, &rough) != echo_once(8, &rough));
}

/* One batch of a worker that closes what it has just accepted. */
static unsigned close_at_once(struct echo *e, io_handle *socket)
{
	struct io_event ev;
	unsigned after = 0;

	io_wait(e->io, INT64_MAX);
	while (io_next(e->io, &ev)) {
		if (*socket != 0 && ev.socket == *socket)
			after += ev.kind != IO_CLOSED;
		e->closed += ev.kind == IO_CLOSED;
		if (ev.kind != IO_ACCEPTED)
			continue;
		*socket = ev.socket;
		io_recv(e->io, *socket, IO_SMALL, CREDIT);
		io_close(e->io, *socket);
	}
	return after;
}

static void nothing_but_closed_follows_a_close(void **state)
{
	struct echo e;
	unsigned after = 0;
	io_handle socket = 0;

	(void)state;
	echo_open(&e, 3, &calm);
	client_connect(&client, &e, 25);
	sim_end_say(client.end, "hello", 5);
	while (e.closed == 0 && sim_now_us(e.sim) < SIM_SECOND) {
		after += close_at_once(&e, &socket);
		sim_pass(e.sim, sim_now_us(e.sim) + SIM_MS);
	}
	assert_int_equal(e.closed, 1);
	assert_int_equal(after, 0);
	assert_null(sim_failed(e.sim));
	echo_free(&e);
}

static void a_call_for_a_dead_handle_is_a_violation(void **state)
{
	struct echo e;

	(void)state;
	echo_open(&e, 3, &calm);
	client_connect(&client, &e, 25);
	sim_end_fin(client.end);
	echo_run(&e, SIM_SECOND);
	assert_int_equal(e.closed, 1);
	assert_null(sim_failed(e.sim));
	io_recv(e.io, (io_handle)1 << 32 | 2, IO_SMALL, CREDIT);
	assert_non_null(sim_failed(e.sim));
	echo_free(&e);
}

static void a_buffer_put_twice_or_written_later_is_a_violation(void **state)
{
	struct echo e;

	(void)state;
	echo_open(&e, 3, &calm);
	struct io_buf *buf = io_buf_get(e.io, IO_SMALL);
	assert_int_equal(buf->len, 0);
	assert_int_equal(buf->room, IO_SMALL_SIZE);
	assert_int_equal(sim_io_buffers_out(e.io), 1);
	io_buf_put(e.io, buf);
	assert_null(sim_failed(e.sim));
	io_buf_put(e.io, buf);
	assert_non_null(sim_failed(e.sim));
	echo_free(&e);
}

static void a_close_with_octets_unread_resets(void **state)
{
	struct echo e;
	struct io_event ev;

	(void)state;
	echo_open(&e, 3, &calm);
	client_connect(&client, &e, 25);
	sim_end_say(client.end, "unread", 6);
	sim_pass(e.sim, SIM_SECOND);
	while (sim_now_us(e.sim) < SIM_SECOND)
		sim_pass(e.sim, SIM_SECOND);
	io_wait(e.io, INT64_MAX);
	assert_true(io_next(e.io, &ev));
	assert_int_equal(ev.kind, IO_ACCEPTED);
	io_close(e.io, ev.socket);
	echo_run(&e, sim_now_us(e.sim) + SIM_SECOND);
	assert_true(client.rst);
	echo_free(&e);
}

static void a_connect_to_nobody_is_refused(void **state)
{
	struct echo e;
	struct io_event ev = { .kind = IO_WOKEN };
	io_handle socket;
	union sim_addr addr = sim_addr_make("192.0.2.1", 26);

	(void)state;
	echo_open(&e, 3, &calm);
	assert_int_equal(io_connect(e.io, &addr.sa, NULL, false, &e, &socket),
			 0);
	for (unsigned i = 0; i < 100 && ev.kind != IO_CONNECTED; i++) {
		sim_pass(e.sim, sim_now_us(e.sim) + SIM_MS);
		io_wait(e.io, INT64_MAX);
		io_next(e.io, &ev);
	}
	assert_int_equal(ev.kind, IO_CONNECTED);
	assert_int_equal(ev.result, -ECONNREFUSED);
	io_close(e.io, socket);
	assert_null(sim_failed(e.sim));
	echo_free(&e);
}

static void receiving_leaves_the_last_eighth_of_a_pool(void **state)
{
	struct echo e;

	(void)state;
	echo_open(&e, 3, &calm);
	for (unsigned i = 0; i < 14; i++)
		assert_non_null(io_buf_get(e.io, IO_SMALL));
	client_connect(&client, &e, 25);
	sim_end_say(client.end, "hello", 5);
	echo_run(&e, SIM_SECOND);
	assert_int_equal(e.accepted, 1);
	assert_int_equal(client.got_len, 0);
	assert_int_equal(io_buf_free(e.io, IO_SMALL), 1);
	assert_non_null(io_buf_get(e.io, IO_SMALL));
	assert_non_null(io_buf_get(e.io, IO_SMALL));
	assert_null(io_buf_get(e.io, IO_SMALL));
	echo_free(&e);
}

/* --- splices: a client and a server, with weir between them --- */

struct bridge {
	struct sim *sim;
	struct logger *logger;
	struct io *io;
	struct sim_listener *there;
	io_handle listener, ends[2]; /* of the client, of the server */
	uint64_t told[2];
	bool over[2];
	int result[2];
	bool by_to[2];
};

static struct client server; /* as a client: what it got */

static enum sim_answer take_server(void *owner, struct sim_end *end)
{
	(void)owner;
	server = (struct client){ .end = end, .open = true };
	sim_end_adopt(end, client_event, &server);
	return SIM_TAKE;
}

static void bridge_open(struct bridge *b, uint64_t seed,
			const struct sim_faults *faults)
{
	char error[IO_ERROR_SIZE];
	union sim_addr here = sim_addr_make("192.0.2.1", 25);
	union sim_addr there = sim_addr_make("192.0.2.2", 25);
	union sim_addr from = sim_addr_make("198.51.100.7", 0);

	*b = (struct bridge){ .sim = sim_new(seed, faults) };
	b->logger = sim_logger_new(b->sim, NULL, NULL);
	struct io_config config = {
		.sockets_max = 16,
		.buffers = { 16, 16, 16, 16 },
		.logger = b->logger,
	};
	b->io = io_open(&config, error);
	b->there = sim_listen(b->sim, &there.sa, take_server, b);
	assert_int_equal(io_listen(b->io, &here.sa, 0, b, &b->listener), 0);
	client = (struct client){ 0 };
	client.end = sim_connect(b->sim, &here.sa, &from.sa, client_event,
				 &client);
	assert_int_equal(
		io_connect(b->io, &there.sa, NULL, false, b, &b->ends[1]), 0);
}

static void bridge_free(struct bridge *b)
{
	io_free(&b->io);
	sim_unlisten(b->sim, b->there);
	sim_logger_free(&b->logger);
	sim_free(&b->sim);
}

static void bridge_spliced(struct bridge *b, const struct io_event *ev)
{
	int side = ev->socket == b->ends[1];

	assert_true(ev->socket == b->ends[side]);
	assert_false(b->over[side]);
	if (ev->result > 0) {
		b->told[side] += (uint64_t)ev->result;
		return;
	}
	b->over[side] = true;
	b->result[side] = ev->result;
	b->by_to[side] = ev->by_to;
	if (ev->result == 0)
		io_shutdown(b->io, b->ends[!side]);
}

/* All that happens until until_us; once both stand, they are joined. */
static void bridge_run(struct bridge *b, int64_t until_us)
{
	struct io_event ev;
	unsigned standing = 0;

	while (sim_failed(b->sim) == NULL) {
		while (sim_io_due_us(b->io) <= sim_now_us(b->sim)) {
			assert_int_equal(io_wait(b->io, INT64_MAX), 0);
			while (io_next(b->io, &ev)) {
				if (ev.kind == IO_ACCEPTED && ev.result == 0) {
					b->ends[0] = ev.socket;
					io_adopt(b->io, ev.socket, b);
				}
				standing += ev.kind == IO_CONNECTED ||
					    (ev.kind == IO_ACCEPTED &&
					     ev.result == 0);
				if (ev.kind == IO_SPLICED)
					bridge_spliced(b, &ev);
			}
			if (standing < 2)
				continue;
			standing = 0;
			io_splice(b->io, b->ends[0], b->ends[1]);
			io_splice(b->io, b->ends[1], b->ends[0]);
		}
		if (sim_next_us(b->sim) > until_us)
			break;
		sim_pass(b->sim, until_us);
	}
}

static void bridge_once(uint64_t seed, const struct sim_faults *faults)
{
	struct bridge b;

	for (size_t i = 0; i < BODY_LEN; i++)
		body[i] = (uint8_t)(i * 7 + i / 251);
	bridge_open(&b, seed, faults);
	sim_end_say(client.end, body, BODY_LEN);
	sim_end_fin(client.end);
	bridge_run(&b, INT64_MAX - 1);
	/* The one side has ended, the other has not yet begun. */
	assert_null(sim_failed(b.sim));
	assert_true(server.fin);
	assert_true(b.over[0]);
	assert_false(b.over[1]);
	assert_false(client.fin);
	assert_int_equal(server.got_len, BODY_LEN);
	assert_memory_equal(server.got, body, BODY_LEN);
	sim_end_say(server.end, body + 1, BODY_LEN - 1);
	sim_end_fin(server.end);
	bridge_run(&b, INT64_MAX - 1);
	assert_null(sim_failed(b.sim));
	assert_true(client.fin);
	assert_int_equal(client.got_len, BODY_LEN - 1);
	assert_memory_equal(client.got, body + 1, BODY_LEN - 1);
	assert_int_equal(b.told[0], BODY_LEN);
	assert_int_equal(b.told[1], BODY_LEN - 1);
	assert_int_equal(b.result[0], 0);
	assert_int_equal(b.result[1], 0);
	assert_int_equal(sim_io_buffers_out(b.io), 0);
	bridge_free(&b);
}

static void a_splice_passes_all_and_each_fin_however_rough(void **state)
{
	(void)state;
	bridge_once(1, &calm);
	for (uint64_t seed = 1; seed <= 40; seed++)
		bridge_once(seed, &rough);
}

static void a_reset_of_either_side_breaks_a_splice(void **state)
{
	struct bridge b;

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		bool resets = seed & 1; /* the server, or the client */

		bridge_open(&b, seed, seed & 2 ? &rough : &calm);
		bridge_run(&b, SIM_SECOND);
		sim_end_reset(resets ? server.end : client.end);
		bridge_run(&b, 2 * SIM_SECOND);
		assert_null(sim_failed(b.sim));
		assert_true(b.over[resets]);
		assert_int_equal(b.result[resets], -ECONNRESET);
		assert_false(b.by_to[resets]);
		/* Who speaks to the one that is gone hears it too. */
		sim_end_say(resets ? client.end : server.end, "hello", 5);
		bridge_run(&b, 3 * SIM_SECOND);
		assert_true(b.over[!resets]);
		assert_int_equal(b.result[!resets], -EPIPE);
		assert_true(b.by_to[!resets]);
		bridge_free(&b);
	}
}

static void a_close_ends_a_splice_in_silence(void **state)
{
	static const struct sim_faults narrow = {
		.latency_us_max = 1000,
		.window_min = 500,
		.window_max = 500,
	};
	struct bridge b;

	(void)state;
	for (int side = 0; side < 2; side++) {
		bridge_open(&b, 5, &narrow);
		sim_end_say(client.end, body, BODY_LEN);
		bridge_run(&b, 20 * SIM_MS);
		io_abort(b.io, b.ends[side]);
		uint64_t told = b.told[0];

		bridge_run(&b, SIM_SECOND);
		assert_null(sim_failed(b.sim));
		assert_false(b.over[0] || b.over[1]);
		assert_true(b.told[0] == told);
		/* The other one is a socket as any other. */
		io_recv(b.io, b.ends[!side], IO_SMALL, 10);
		io_shutdown(b.io, b.ends[!side]);
		bridge_run(&b, 2 * SIM_SECOND);
		assert_null(sim_failed(b.sim));
		bridge_free(&b);
	}
}

static void misuse_of_a_splice_is_a_violation(void **state)
{
	(void)state;
	for (int how = 0; how < 5; how++) {
		struct bridge b;

		bridge_open(&b, 5, &calm);
		bridge_run(&b, SIM_SECOND);
		assert_null(sim_failed(b.sim));
		struct io_buf *buf = io_buf_get(b.io, IO_SMALL);

		buf->data[0] = 'x';
		buf->len = 1;
		if (how == 0)
			io_recv(b.io, b.ends[0], IO_SMALL, 1);
		else if (how == 1)
			io_send(b.io, b.ends[0], buf);
		else if (how == 2)
			io_shutdown(b.io, b.ends[1]);
		else if (how == 3)
			io_splice(b.io, b.ends[0], b.ends[1]);
		else
			io_splice(b.io, b.ends[0], b.ends[0]);
		assert_non_null(sim_failed(b.sim));
		bridge_free(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			octets_come_back_unchanged_however_rough_the_net),
		cmocka_unit_test(a_seed_decides_everything),
		cmocka_unit_test(nothing_but_closed_follows_a_close),
		cmocka_unit_test(a_call_for_a_dead_handle_is_a_violation),
		cmocka_unit_test(
			a_buffer_put_twice_or_written_later_is_a_violation),
		cmocka_unit_test(a_close_with_octets_unread_resets),
		cmocka_unit_test(a_connect_to_nobody_is_refused),
		cmocka_unit_test(receiving_leaves_the_last_eighth_of_a_pool),
		cmocka_unit_test(
			a_splice_passes_all_and_each_fin_however_rough),
		cmocka_unit_test(a_reset_of_either_side_breaks_a_splice),
		cmocka_unit_test(a_close_ends_a_splice_in_silence),
		cmocka_unit_test(misuse_of_a_splice_is_a_violation),
	};
	return cmocka_run_group_tests_name("sim_io", tests, NULL, NULL);
}
