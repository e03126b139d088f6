#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "proxy/logger.h"

enum {
	/* The cancels of a receive, a send, and a splice's two polls. */
	ENTRIES_PER_SLOT = 4,
	NS_PER_MS = 1000 * 1000,
	OVERFLOW_SAY_MS = 60 * 1000,
	/* No wait is longer (eleven days), so that sums stay in range. */
	WAIT_MAX_MS = 1000 * 1000 * 1000,
	FREE_TRIES = 100, /* of 10 ms: what io_free() waits for the kernel */
};

/*
 * About 340 KiB of locked memory.  What is with the kernel at a time is what
 * the working set turns over: 16 big buffers are 256 KiB and stay in a core's
 * second-level cache, with what is decoded out of them.  With TLS 32 cost 8 %
 * more; in the clear the same; 256 half as much again.
 *
 * No receive stands for more than one buffer (use_credit): on Linux 6.18 a
 * reset that comes right behind octets is then never told.  Of 4000
 * connections ended so, 1170 to 2218 were left open; of those received from
 * one buffer at a time, none.  For small messages that costs nothing, for
 * large ones an eighth more CPU.
 */
const struct ring_tuning ring_standard = {
	.sq_entries = 1024,
	.cq_entries = 16384,
	.given_max = { [IO_SMALL] = 1024,
		       [IO_BIG] = 16,
		       [IO_RESERVE] = 16,
		       [IO_REPLY] = 256 },
	.send_max = UINT_MAX,
	.pipes_max = 16,
	.use_credit = false,
	.use_bundle = false,
	.use_no_iowait = true,
	.use_message = true,
};

/* --- clocks and chance --- */

static int64_t now_ns(void)
{
	struct timespec ts;
	int r = clock_gettime(CLOCK_MONOTONIC, &ts);

	assert(r == 0);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void read_clock(struct io *io)
{
	int64_t ms = now_ns() / NS_PER_MS;

	io->now_ms = ms > 0 ? ms : 1;
}

int64_t io_now_ms(const struct io *io)
{
	return io->now_ms;
}

int64_t io_wall_ms(const struct io *io)
{
	struct timespec ts;
	int r = clock_gettime(CLOCK_REALTIME, &ts);

	(void)io;
	assert(r == 0);
	return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / NS_PER_MS;
}

static uint64_t rotate(uint64_t x, unsigned bits)
{
	return x << bits | x >> (64 - bits);
}

/* xoroshiro128+ (Blackman and Vigna, 2018). */
uint64_t io_random(struct io *io)
{
	uint64_t a = io->seed[0];
	uint64_t b = io->seed[1];
	uint64_t result = a + b;

	b ^= a;
	io->seed[0] = rotate(a, 24) ^ b ^ (b << 16);
	io->seed[1] = rotate(b, 37);
	return result;
}

/* --- the log --- */

void io_log(struct io *io, int level, const char *line, size_t len)
{
	/* Dropped lines are counted by the logger. */
	if (io->logger != NULL)
		(void)logger_write(io->logger, level, line, len);
}

uint64_t io_log_dropped(const struct io *io)
{
	return io->logger != NULL ? logger_dropped(io->logger) : 0;
}

/* --- what is to be sent --- */

void ring_queue_drop(struct io *io, struct ring_slot *slot)
{
	while (slot->head != NULL) {
		struct io_buf *buf = slot->head;

		slot->head = buf->next;
		io_buf_put(io, buf);
	}
	slot->unsent = 0;
	slot->sending = 0;
	slot->sent = 0;
}

static void append(struct io *io, struct ring_slot *slot, struct io_buf *buf)
{
	buf->next = NULL;
	if (buf->len == 0) {
		io_buf_put(io, buf);
		return;
	}
	if (slot->head != NULL)
		slot->tail->next = buf;
	else
		slot->head = buf;
	slot->tail = buf;
	slot->unsent += buf->len;
}

void io_send(struct io *io, io_handle socket, struct io_buf *chain)
{
	struct ring_slot *slot = ring_slot_of(io, socket);

	assert(!slot->listening);
	assert(!slot->connecting);
	assert(!slot->spliced);
	assert(!slot->fin || slot->closing);
	while (chain != NULL) {
		struct io_buf *buf = chain;

		chain = buf->next;
		if (slot->closing)
			io_buf_put(io, buf);
		else
			append(io, slot, buf);
	}
	if (slot->head != NULL && !slot->held_send && !slot->closing)
		ring_slot_want(io, slot, RING_WANT_SEND);
}

size_t io_unsent(const struct io *io, io_handle socket)
{
	const struct ring_slot *slot = ring_slot_of(io, socket);

	return slot->unsent + slot->sent;
}

void io_shutdown(struct io *io, io_handle socket)
{
	struct ring_slot *slot = ring_slot_of(io, socket);

	assert(!slot->listening);
	assert(!slot->spliced);
	if (slot->closing || slot->fin)
		return;
	slot->fin = true;
	/* Fails when the peer has reset the connection; a receive tells. */
	if (slot->head == NULL)
		(void)shutdown(slot->fd, SHUT_WR);
}

/* --- sockets --- */

int io_listen(struct io *io, const struct sockaddr *addr, unsigned mode,
	      void *owner, io_handle *listener)
{
	assert(addr != NULL);
	assert(listener != NULL);
	int fd = ring_socket_listen(addr, mode);

	if (fd < 0)
		return fd;
	struct ring_slot *slot = ring_slot_take(io, fd, owner);

	if (slot == NULL) {
		(void)close(fd);
		return -ENFILE;
	}
	slot->listening = true;
	ring_slot_want(io, slot, RING_WANT_ACCEPT);
	*listener = ring_slot_handle(io, slot);
	return 0;
}

int io_connect(struct io *io, const struct sockaddr *addr,
	       const struct sockaddr *source, bool transparent, void *owner,
	       io_handle *socket)
{
	assert(addr != NULL);
	assert(source != NULL || !transparent);
	assert(socket != NULL);
	int fd = ring_socket_connect(addr, source, transparent);

	if (fd < 0)
		return fd;
	struct ring_slot *slot = ring_slot_take(io, fd, owner);

	if (slot == NULL) {
		(void)close(fd);
		return -ENFILE;
	}
	slot->connecting = true;
	memcpy(&io->addresses[ring_slot_index(io, slot)], addr,
	       ring_socket_len(addr));
	ring_slot_want(io, slot, RING_WANT_CONNECT);
	*socket = ring_slot_handle(io, slot);
	return 0;
}

void io_adopt(struct io *io, io_handle socket, void *owner)
{
	ring_slot_of(io, socket)->owner = owner;
}

int io_peer(struct io *io, io_handle socket, struct sockaddr *addr, size_t size)
{
	socklen_t len = (socklen_t)size;

	assert(size >= sizeof(struct sockaddr_storage));
	memset(addr, 0, size);
	if (getpeername(ring_slot_of(io, socket)->fd, addr, &len) != 0)
		return -errno;
	return 0;
}

int io_local(struct io *io, io_handle socket, struct sockaddr *addr,
	     size_t size)
{
	socklen_t len = (socklen_t)size;

	assert(size >= sizeof(struct sockaddr_storage));
	memset(addr, 0, size);
	if (getsockname(ring_slot_of(io, socket)->fd, addr, &len) != 0)
		return -errno;
	return 0;
}

void io_recv(struct io *io, io_handle socket, enum io_pool pool,
	     uint32_t credit)
{
	struct ring_slot *slot = ring_slot_of(io, socket);

	assert(pool < IO_POOLS);
	assert(credit > 0);
	assert(!slot->listening);
	assert(!slot->connecting);
	if (slot->closing)
		return;
	assert(!slot->receiving);
	assert(!slot->splicing);
	slot->receiving = true;
	slot->pool = (uint8_t)pool;
	slot->credit = credit <= INT_MAX ? credit : INT_MAX;
	ring_slot_want(io, slot, RING_WANT_RECV);
}

/* The kernel holds nothing of it any more. */
void ring_close_finish(struct io *io, struct ring_slot *slot)
{
	assert(slot->closing);
	assert(slot->in_flight == 0);
	ring_queue_drop(io, slot);
	/* The descriptor is gone whatever close() says (Linux). */
	(void)close(slot->fd);
	ring_list_append(io, &io->closed, slot);
}

static void give_up(struct io *io, struct ring_slot *slot, bool reset)
{
	const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

	assert(!slot->closing);
	ring_splice_end(io, slot);
	slot->closing = true;
	slot->wants = 0;
	if (slot->on != NULL)
		ring_list_remove(io, slot);
	/* A socket that is no longer connected has nothing to reset. */
	if (reset && !slot->listening)
		(void)setsockopt(slot->fd, SOL_SOCKET, SO_LINGER, &at_once,
				 sizeof(at_once));
	if (slot->in_flight == 0) {
		ring_close_finish(io, slot);
		return;
	}
	/*
	 * shutdown() ends a receive and a send that the kernel holds, and the
	 * FIN goes out at once.  Where there must be no FIN, or where there is
	 * no stream to end, the requests are cancelled.
	 */
	if (reset || slot->held_open || shutdown(slot->fd, SHUT_RDWR) != 0)
		ring_slot_want(io, slot, RING_WANT_CANCEL);
}

void io_close(struct io *io, io_handle socket)
{
	give_up(io, ring_slot_of(io, socket), false);
}

void io_abort(struct io *io, io_handle socket)
{
	give_up(io, ring_slot_of(io, socket), true);
}

/* --- from wants to entries of the submission queue --- */

static struct io_uring_sqe *entry(struct io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	assert(sqe != NULL); /* flush() has made room */
	return sqe;
}

static void tag(struct io *io, struct ring_slot *slot, struct io_uring_sqe *sqe,
		enum ring_op op)
{
	sqe->user_data = (uint64_t)op << RING_OP_SHIFT |
			 ring_slot_handle(io, slot);
	slot->in_flight++;
	io->in_flight++;
}

static void prepare_accept(struct io *io, struct ring_slot *slot)
{
	struct io_uring_sqe *sqe = entry(io);

	assert(slot->listening);
	assert(!slot->held_open);
	io_uring_prep_multishot_accept(sqe, slot->fd, NULL, NULL, SOCK_CLOEXEC);
	tag(io, slot, sqe, RING_ACCEPT);
	slot->held_open = true;
}

static void prepare_connect(struct io *io, struct ring_slot *slot)
{
	struct io_uring_sqe *sqe = entry(io);
	const struct sockaddr_storage *addr =
		&io->addresses[ring_slot_index(io, slot)];
	const struct sockaddr *name = (const struct sockaddr *)addr;

	assert(slot->connecting);
	assert(!slot->held_open);
	io_uring_prep_connect(sqe, slot->fd, name, ring_socket_len(name));
	tag(io, slot, sqe, RING_CONNECT);
	slot->held_open = true;
}

/*
 * With a credit the kernel ends the receive by itself.  Where it cannot, each
 * receive is for one buffer (or one bundle), and the credit is counted here.
 * Octets that nobody has announced are waited for, not tried for; that also
 * keeps a receive waiting which would find no buffer (-ENOBUFS at once).
 */
static void prepare_recv(struct io *io, struct ring_slot *slot)
{
	struct io_uring_sqe *sqe = entry(io);
	bool bundle = slot->pool == IO_BIG && io->tuning.use_bundle;

	assert(slot->receiving);
	assert(!slot->held_recv);
	assert(slot->credit > 0);
	/*
	 * A UNIX stream tells a standing receive of its end only if that comes
	 * apart from the last octets (Linux 6.18): what operators and probes
	 * receive is asked for anew each time.
	 */
	if (io->tuning.use_credit && slot->pool != IO_RESERVE) {
		io_uring_prep_recv_multishot(sqe, slot->fd, NULL, 0, 0);
		sqe->file_index = slot->credit; /* optlen */
	} else {
		io_uring_prep_recv(sqe, slot->fd, NULL, slot->credit, 0);
	}
	if (bundle)
		sqe->ioprio |= RING_RECVSEND_BUNDLE;
	if (!slot->readable)
		sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = slot->pool;
	tag(io, slot, sqe, RING_RECV);
	slot->held_recv = true;
}

/* Describe at most max octets of the queue; returns how many. */
static uint32_t gather(const struct io_buf *buf, uint32_t max,
		       struct ring_vector *vector)
{
	uint32_t sum = 0;
	size_t count = 0;

	while (buf != NULL && sum < max && count < RING_SEND_BUFFERS) {
		uint32_t len = buf->len;

		if (len > max - sum)
			len = max - sum;
		vector->iov[count].iov_base = buf->data;
		vector->iov[count].iov_len = len;
		sum += len;
		count++;
		buf = buf->next;
	}
	vector->msg = (struct msghdr){ .msg_iov = vector->iov,
				       .msg_iovlen = count };
	return sum;
}

/*
 * MSG_WAITALL: the kernel goes on by itself where it can.  MSG_MORE: our FIN
 * follows at once, and goes in the same segment as the last octets.
 */
static void prepare_send(struct io *io, struct ring_slot *slot)
{
	struct io_uring_sqe *sqe = entry(io);
	int flags = MSG_NOSIGNAL | MSG_WAITALL;

	assert(slot->head != NULL);
	assert(!slot->held_send);
	struct ring_vector *vector = &io->vectors[io->vectors_used];
	uint32_t max = slot->sending > 0 ? slot->sending : INT_MAX;
	uint32_t sum = gather(slot->head, max, vector);

	if (slot->sending == 0)
		slot->sending = sum;
	if (sum > io->tuning.send_max)
		sum = gather(slot->head, io->tuning.send_max, vector);
	if (slot->fin && sum == slot->unsent)
		flags |= MSG_MORE;
	if (vector->msg.msg_iovlen == 1) {
		io_uring_prep_send(sqe, slot->fd, slot->head->data, sum, flags);
	} else {
		io_uring_prep_sendmsg(sqe, slot->fd, &vector->msg,
				      (unsigned)flags);
		io->vectors_used++;
	}
	tag(io, slot, sqe, RING_SEND);
	slot->held_send = true;
}

static void prepare_poll(struct io *io, struct ring_slot *slot, enum ring_op op)
{
	struct io_uring_sqe *sqe = entry(io);

	io_uring_prep_poll_add(sqe, slot->fd,
			       op == RING_POLL_IN ? POLLIN : POLLOUT);
	tag(io, slot, sqe, op);
	if (op == RING_POLL_IN)
		slot->held_in = true;
	else
		slot->held_out = true;
}

static void cancel(struct io *io, struct ring_slot *slot, enum ring_op op)
{
	struct io_uring_sqe *sqe = entry(io);

	io_uring_prep_cancel64(
		sqe, (uint64_t)op << RING_OP_SHIFT | ring_slot_handle(io, slot),
		0);
	tag(io, slot, sqe, RING_CANCEL);
}

static void prepare_cancel(struct io *io, struct ring_slot *slot)
{
	if (slot->held_open)
		cancel(io, slot, slot->listening ? RING_ACCEPT : RING_CONNECT);
	if (slot->held_recv)
		cancel(io, slot, RING_RECV);
	if (slot->held_send)
		cancel(io, slot, RING_SEND);
	if (slot->held_in)
		cancel(io, slot, RING_POLL_IN);
	if (slot->held_out)
		cancel(io, slot, RING_POLL_OUT);
}

static void prepare(struct io *io, struct ring_slot *slot)
{
	unsigned wants = slot->wants;

	slot->wants = 0;
	if (wants & RING_WANT_ACCEPT)
		prepare_accept(io, slot);
	if (wants & RING_WANT_CONNECT)
		prepare_connect(io, slot);
	if (wants & RING_WANT_RECV)
		prepare_recv(io, slot);
	if (wants & RING_WANT_SEND)
		prepare_send(io, slot);
	if (wants & RING_WANT_CANCEL)
		prepare_cancel(io, slot);
	if (wants & RING_WANT_POLL_IN)
		prepare_poll(io, slot, RING_POLL_IN);
	if (wants & RING_WANT_POLL_OUT)
		prepare_poll(io, slot, RING_POLL_OUT);
}

static void prepare_wake(struct io *io)
{
	struct io_uring_sqe *sqe = entry(io);

	assert(!io->held_wake);
	io_uring_prep_read(sqe, io->wake_fd, &io->wake_value,
			   sizeof(io->wake_value), 0);
	sqe->user_data = (uint64_t)RING_WAKE << RING_OP_SHIFT;
	io->held_wake = true;
	io->in_flight++;
}

/* Success needs no completion here: the other ring has one. */
static void prepare_tell(struct io *io)
{
	struct io_uring_sqe *sqe = entry(io);

	assert(io->tells != 0);
	unsigned peer = (unsigned)__builtin_ctzll(io->tells);

	assert(peer < io->peers_used);
	io->tells &= io->tells - 1;
	io_uring_prep_msg_ring(sqe, io->peers[peer]->ring.ring_fd, 0,
			       (uint64_t)RING_TOLD << RING_OP_SHIFT, 0);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = (uint64_t)RING_TELL << RING_OP_SHIFT | peer;
}

static int enter(struct io *io, unsigned wait, unsigned flags,
		 const struct __kernel_timespec *timeout)
{
	struct io_uring_sq *sq = &io->ring.sq;
	struct io_uring_getevents_arg arg = {
		.sigmask_sz = _NSIG / 8,
		.ts = (uint64_t)(uintptr_t)timeout,
	};

	sq->sqe_head = sq->sqe_tail;
	io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
	unsigned submit = io_uring_sq_ready(&io->ring);

	if (io->tuning.use_no_iowait)
		flags |= RING_ENTER_NO_IOWAIT;
	int r = io_uring_enter2((unsigned)io->ring.ring_fd, submit, wait,
				flags | IORING_ENTER_EXT_ARG,
				(sigset_t *)(void *)&arg, sizeof(arg));

	if (io_uring_sq_ready(&io->ring) == 0)
		io->vectors_used = 0;
	return r;
}

int ring_enter(struct io *io, unsigned wait,
	       const struct __kernel_timespec *timeout)
{
	return enter(io, wait, IORING_ENTER_GETEVENTS, timeout);
}

/* What a wait may come back with and go on. */
static bool transient(int result)
{
	return result >= 0 || result == -ETIME || result == -EINTR ||
	       result == -EBUSY || result == -EAGAIN;
}

static bool has_room(struct io *io)
{
	return io_uring_sq_space_left(&io->ring) >= ENTRIES_PER_SLOT &&
	       io->vectors_used < io->tuning.sq_entries;
}

/* Something waits to become an entry. */
static bool has_wants(const struct io *io)
{
	return io->todo_first != RING_NOBODY || io->tells != 0;
}

/*
 * Make entries of all wants.  What does not fit into the queue is submitted
 * at once; when the kernel takes no more now (-EBUSY: it wants completions
 * reaped first), the rest waits for the next turn.
 */
static int flush(struct io *io)
{
	if (!io->held_wake && has_room(io))
		prepare_wake(io);
	while (has_wants(io)) {
		if (!has_room(io)) {
			int r = enter(io, 0, 0, NULL);

			if (!transient(r))
				return r;
			if (!has_room(io))
				return 0;
		}
		if (io->tells != 0) {
			prepare_tell(io);
			continue;
		}
		struct ring_slot *slot = &io->slots[io->todo_first];

		assert(slot->queued);
		io->todo_first = slot->todo_next;
		if (io->todo_first == RING_NOBODY)
			io->todo_last = RING_NOBODY;
		slot->queued = false;
		prepare(io, slot);
	}
	return 0;
}

/* --- the wait --- */

/*
 * As many receives are tried again as there are buffers with the kernel: then
 * each either finds one or waits for octets, and none comes back at once.
 */
static void revive(struct io *io, struct ring_pool *pool)
{
	ring_pool_top_up(pool);
	for (uint32_t n = pool->given; n > 0; n--) {
		struct ring_slot *slot = ring_list_first(io, &pool->starved);

		if (slot == NULL)
			return;
		ring_list_remove(io, slot);
		slot->readable = false; /* POLL_FIRST */
		ring_slot_want(io, slot, RING_WANT_RECV);
	}
}

static void wake_resting(struct io *io, int64_t now_ms)
{
	struct ring_slot *slot = ring_list_first(io, &io->resting);

	while (slot != NULL && slot->rest_until_ms <= now_ms) {
		ring_list_remove(io, slot);
		ring_slot_want(io, slot, RING_WANT_ACCEPT);
		slot = ring_list_first(io, &io->resting);
	}
}

static bool overflown(const struct io *io)
{
	return (IO_URING_READ_ONCE(*io->ring.sq.kflags) &
		IORING_SQ_CQ_OVERFLOW) != 0;
}

/* Nothing is lost, but it is slow, and should not happen: count, and say. */
static void note_overflow(struct io *io, bool now)
{
	bool begins = now && !io->overflowing;
	char line[128];

	io->overflowing = now;
	if (!begins)
		return;
	io->overflows++;
	if (io->overflow_said_ms != 0 &&
	    io->now_ms - io->overflow_said_ms < OVERFLOW_SAY_MS)
		return;
	io->overflow_said_ms = io->now_ms;
	int len = snprintf(line, sizeof(line),
			   "io: worker=%u completion queue overflown, "
			   "times=%" PRIu64,
			   io->worker, io->overflows);

	assert(len > 0);
	assert((size_t)len < sizeof(line));
	io_log(io, LOG_WARNING, line, (size_t)len);
}

/* Returns false when there is no deadline. */
static bool timeout_of(const struct io *io, int64_t deadline_ms, int64_t now,
		       struct __kernel_timespec *timeout)
{
	if (io->resting.first != RING_NOBODY) {
		int64_t rest = io->slots[io->resting.first].rest_until_ms;

		if (rest < deadline_ms)
			deadline_ms = rest;
	}
	if (deadline_ms == INT64_MAX)
		return false;
	int64_t max_ms = now / NS_PER_MS + WAIT_MAX_MS;

	if (deadline_ms > max_ms)
		deadline_ms = max_ms;
	int64_t ns = 0;

	if (deadline_ms > now / NS_PER_MS)
		ns = deadline_ms * NS_PER_MS - now;
	timeout->tv_sec = ns / INT64_C(1000000000);
	timeout->tv_nsec = ns % INT64_C(1000000000);
	return true;
}

/* Events that io_next() has without asking the kernel. */
static bool has_events(const struct io *io)
{
	return io->bundle.left > 0 || io->closed.first != RING_NOBODY ||
	       io->spliced.first != RING_NOBODY ||
	       io_uring_cq_ready(&io->ring) > 0;
}

int io_wait(struct io *io, int64_t deadline_ms)
{
	struct __kernel_timespec timeout = { 0 };
	int64_t now = now_ns();

	if (io->resting.first != RING_NOBODY)
		wake_resting(io, now / NS_PER_MS);
	for (int i = 0; i < IO_POOLS; i++)
		revive(io, &io->pools[i]);
	int r = flush(io);

	if (r < 0)
		return r;
	bool limited = timeout_of(io, deadline_ms, now, &timeout);
	bool at_once = has_events(io) || has_wants(io) ||
		       (limited && timeout.tv_sec == 0 && timeout.tv_nsec == 0);
	bool overflow = overflown(io);

	r = ring_enter(io, at_once ? 0 : 1, limited ? &timeout : NULL);
	read_clock(io);
	note_overflow(io, overflow || overflown(io));
	io->batch_end = io_uring_smp_load_acquire(io->ring.cq.ktail);
	/* No memory for requests: let somebody else give some back. */
	if (r == -EAGAIN && !has_events(io))
		(void)poll(NULL, 0, 1);
	return transient(r) ? 0 : r;
}

/* --- opening and freeing --- */

static bool allocate(struct io *io)
{
	io->slots_size = io->sockets_max * sizeof(*io->slots);
	io->splices_size = io->sockets_max * sizeof(*io->splices);
	io->addresses_size = io->sockets_max * sizeof(*io->addresses);
	io->vectors_size = io->tuning.sq_entries * sizeof(*io->vectors);
	io->slots = ring_map(io->slots_size);
	io->splices = ring_map(io->splices_size);
	io->scratch = ring_map(RING_SCRATCH_SIZE);
	io->addresses = ring_map(io->addresses_size);
	io->vectors = ring_map(io->vectors_size);
	return io->slots != NULL && io->splices != NULL &&
	       io->scratch != NULL && io->addresses != NULL &&
	       io->vectors != NULL;
}

static void unmap(void *memory, size_t size)
{
	if (memory != NULL)
		(void)munmap(memory, size);
}

/* All but the ring, the sockets and the pools. */
static void free_rest(struct io *io)
{
	if (io->wake_fd >= 0)
		(void)close(io->wake_fd);
	ring_splice_free_pipes(io);
	unmap(io->slots, io->slots_size);
	unmap(io->splices, io->splices_size);
	unmap(io->scratch, RING_SCRATCH_SIZE);
	unmap(io->addresses, io->addresses_size);
	unmap(io->vectors, io->vectors_size);
	free(io);
}

static int open_pools(struct io *io, const struct io_config *config,
		      char error[IO_ERROR_SIZE])
{
	for (int i = 0; i < IO_POOLS; i++) {
		int r = ring_pool_open(&io->pools[i], &io->ring,
				       (enum io_pool)i, config->buffers[i],
				       io->tuning.given_max[i]);

		if (r < 0) {
			ring_probe_explain(io, "buffers", r, error);
			return r;
		}
		ring_pool_top_up(&io->pools[i]);
	}
	return 0;
}

static void seed(struct io *io)
{
	/* A seed of zeros would stay so; and getrandom() may be forbidden. */
	io->seed[0] = (uint64_t)now_ns();
	io->seed[1] = (uint64_t)(uintptr_t)io | 1;
	(void)!getrandom(io->seed, sizeof(io->seed), GRND_NONBLOCK);
	io->seed[1] |= 1;
}

struct io *ring_open(const struct io_config *config,
		     const struct ring_tuning *tuning,
		     char error[IO_ERROR_SIZE])
{
	static const struct ring_list empty = { RING_NOBODY, RING_NOBODY };

	assert(config->sockets_max > 0);
	assert(tuning->sq_entries >= ENTRIES_PER_SLOT);
	struct io *io = calloc(1, sizeof(*io));

	if (io == NULL) {
		(void)snprintf(error, IO_ERROR_SIZE, "out of memory");
		return NULL;
	}
	io->tuning = *tuning;
	io->sockets_max = config->sockets_max;
	io->worker = config->worker;
	io->logger = config->logger;
	io->closed = empty;
	io->spliced = empty;
	io->unused = empty;
	io->resting = empty;
	io->todo_first = RING_NOBODY;
	io->todo_last = RING_NOBODY;
	seed(io);
	io->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (io->wake_fd < 0 || !allocate(io)) {
		(void)snprintf(error, IO_ERROR_SIZE,
			       "no memory or descriptors for %u sockets: %s",
			       io->sockets_max, strerror(errno));
		free_rest(io);
		return NULL;
	}
	if (ring_probe_setup(io, error) < 0) {
		free_rest(io);
		return NULL;
	}
	read_clock(io);
	io->batch_end = *io->ring.cq.khead; /* no batch yet */
	if (open_pools(io, config, error) < 0) {
		io_free(&io);
		return NULL;
	}
	return io;
}

struct io *io_open(const struct io_config *config, char error[IO_ERROR_SIZE])
{
	return ring_open(config, &ring_standard, error);
}

/* Cancel all; false when the kernel did not let everything go in time. */
static bool let_go(struct io *io)
{
	struct __kernel_timespec timeout = { .tv_nsec = 10LL * NS_PER_MS };

	for (int i = 0; i < FREE_TRIES && io->in_flight > 0; i++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
		struct io_event event;

		if (sqe != NULL) {
			io_uring_prep_cancel64(sqe, 0, 0);
			sqe->cancel_flags = IORING_ASYNC_CANCEL_ANY |
					    IORING_ASYNC_CANCEL_ALL;
			sqe->user_data = (uint64_t)RING_WAKE << RING_OP_SHIFT;
			io->in_flight++;
		}
		(void)ring_enter(io, 1, &timeout);
		io->batch_end = io_uring_smp_load_acquire(io->ring.cq.ktail);
		while (io_next(io, &event))
			;
	}
	return io->in_flight == 0;
}

void io_free(struct io **io)
{
	assert(io != NULL);
	struct io *x = *io;

	if (x == NULL)
		return;
	x->freeing = true;
	for (uint32_t i = 0; i < x->slots_fresh; i++) {
		if (x->slots[i].fd >= 0 && !x->slots[i].closing)
			give_up(x, &x->slots[i], false);
	}
	bool all = let_go(x);

	/*
	 * What the kernel still holds it may still write to: rather than let
	 * it write into somebody else's memory, keep the buffers.
	 */
	for (int i = 0; i < IO_POOLS && all; i++)
		ring_pool_close(&x->pools[i], &x->ring);
	io_uring_queue_exit(&x->ring);
	free_rest(x);
	*io = NULL;
}
