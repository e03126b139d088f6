#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * From the kernel's completions to events: io_next().  What a completion
 * calls for is noted in the slot; io_wait() performs it.
 */

static bool emit(const struct io *io, const struct ring_slot *slot,
		 enum io_kind kind, int result, struct io_event *event)
{
	*event = (struct io_event){
		.kind = kind,
		.result = result,
		.socket = ring_slot_handle(io, slot),
		.owner = slot->owner,
	};
	return true;
}

static void rest(struct io *io, struct ring_slot *slot)
{
	slot->rest_until_ms = io->now_ms + RING_REST_MS;
	ring_list_append(io, &io->resting, slot);
}

static bool on_accept(struct io *io, struct ring_slot *slot,
		      const struct io_uring_cqe *cqe, struct io_event *event)
{
	bool ended = !(cqe->flags & IORING_CQE_F_MORE);
	int fd = cqe->res;

	if (ended)
		slot->held_open = false;
	if (slot->closing) {
		if (fd >= 0)
			(void)close(fd);
		return false;
	}
	/* The peer went before it was accepted; that is no failure of ours. */
	bool gone = fd == -ECONNABORTED || fd == -EINTR || fd == -EAGAIN;

	if (ended && (fd >= 0 || gone))
		ring_slot_want(io, slot, RING_WANT_ACCEPT);
	else if (ended)
		rest(io, slot);
	if (gone)
		return false;
	emit(io, slot, IO_ACCEPTED, 0, event);
	event->more = true;
	event->socket = 0;
	struct ring_slot *accepted = NULL;

	if (fd < 0) {
		event->result = fd;
		return true;
	}
	accepted = ring_slot_take(io, fd, NULL);
	if (accepted == NULL) {
		(void)close(fd);
		event->result = -ENFILE;
		return true;
	}
	event->socket = ring_slot_handle(io, accepted);
	return true;
}

static bool on_connect(struct io *io, struct ring_slot *slot, int result,
		       struct io_event *event)
{
	slot->held_open = false;
	if (slot->closing)
		return false;
	slot->connecting = false;
	return emit(io, slot, IO_CONNECTED, result < 0 ? result : 0, event);
}

/* The receive found no buffer: it stands, and waits for one to come back. */
static void starve(struct io *io, struct ring_slot *slot)
{
	ring_list_append(io, &io->pools[slot->pool].starved, slot);
}

/* One event, for as much of the bundle as one buffer holds. */
static bool next_of_bundle(struct io *io, struct io_event *event)
{
	struct ring_bundle *bundle = &io->bundle;
	struct ring_pool *pool = bundle->pool;
	struct ring_slot *slot = &io->slots[(uint32_t)bundle->socket];
	uint32_t len = ring_pool_room(pool, bundle->place);

	if (len > bundle->left)
		len = bundle->left;
	struct io_buf *buf = ring_pool_take(pool, bundle->place, len);

	bundle->left -= len;
	bundle->place = (uint16_t)((bundle->place + 1) & (pool->entries - 1));
	/* Closed (and perhaps used again) since the first part was pulled. */
	if (ring_slot_handle(io, slot) != bundle->socket || slot->closing) {
		ring_pool_put(pool, buf);
		return false;
	}
	emit(io, slot, IO_RECEIVED, (int)len, event);
	event->buf = buf;
	event->more = bundle->left > 0 || bundle->more;
	return true;
}

static uint16_t place_of(const struct io_uring_cqe *cqe)
{
	return (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
}

/* Octets have come.  Returns whether the receive still stands. */
static bool count_credit(struct io *io, struct ring_slot *slot, uint32_t len)
{
	slot->credit -= len < slot->credit ? len : slot->credit;
	if (slot->held_recv)
		return true;
	if (slot->credit > 0) {
		ring_slot_want(io, slot, RING_WANT_RECV);
		return true;
	}
	slot->receiving = false;
	return false;
}

static bool on_recv(struct io *io, struct ring_slot *slot,
		    const struct io_uring_cqe *cqe, struct io_event *event)
{
	struct ring_pool *pool = &io->pools[slot->pool];
	bool buffer = (cqe->flags & IORING_CQE_F_BUFFER) != 0;
	int res = cqe->res;

	if (!(cqe->flags & IORING_CQE_F_MORE))
		slot->held_recv = false;
	slot->readable = (cqe->flags & IORING_CQE_F_SOCK_NONEMPTY) != 0;
	if (buffer && res <= 0)
		ring_pool_put(pool, ring_pool_take(pool, place_of(cqe), 0));
	if (res > 0) {
		assert(buffer);
		assert(io->bundle.left == 0);
		io->bundle = (struct ring_bundle){
			.socket = ring_slot_handle(io, slot),
			.pool = pool,
			.left = (uint32_t)res,
			.place = place_of(cqe),
		};
		if (!slot->closing)
			io->bundle.more = count_credit(io, slot, (uint32_t)res);
		return false; /* io_next() goes on with the bundle */
	}
	if (slot->closing || slot->held_recv)
		return false;
	if (res == -ENOBUFS) {
		starve(io, slot);
		return false;
	}
	if (res == -EINTR || res == -EAGAIN) {
		ring_slot_want(io, slot, RING_WANT_RECV);
		return false;
	}
	slot->receiving = false;
	return emit(io, slot, IO_RECEIVED, res, event);
}

/* The first len octets of the queue are sent. */
static void consume(struct io *io, struct ring_slot *slot, uint32_t len)
{
	assert(len <= slot->sending);
	slot->sending -= len;
	slot->sent += len;
	slot->unsent -= len;
	while (len > 0) {
		struct io_buf *buf = slot->head;

		assert(buf != NULL);
		if (len < buf->len) {
			buf->data += len;
			buf->len -= len;
			return;
		}
		len -= buf->len;
		slot->head = buf->next;
		io_buf_put(io, buf);
	}
}

/*
 * A send may be cut short.  The rest is asked for again here, so that above
 * this file IO_SENT always means all of it.
 */
static bool on_send(struct io *io, struct ring_slot *slot, int res,
		    struct io_event *event)
{
	slot->held_send = false;
	if (slot->closing)
		return false; /* ring_close_finish() drops the queue */
	if (res > 0)
		consume(io, slot, (uint32_t)res);
	if (slot->sending > 0 && (res > 0 || res == -EINTR || res == -EAGAIN)) {
		ring_slot_want(io, slot, RING_WANT_SEND);
		return false;
	}
	int result = res > 0 ? (int)slot->sent : res;

	if (res <= 0) {
		assert(res < 0); /* nothing was asked for, or nothing told */
		ring_queue_drop(io, slot);
	}
	slot->sent = 0;
	if (slot->head != NULL)
		ring_slot_want(io, slot, RING_WANT_SEND);
	else if (slot->fin)
		(void)shutdown(slot->fd, SHUT_WR);
	return emit(io, slot, IO_SENT, result, event);
}

void io_wake(struct io *io)
{
	const uint64_t one = 1;

	/* Who finds it set knows that the owner has not yet looked. */
	if (atomic_exchange(&io->woken, true))
		return;
	/* Cannot be full: the counter goes to 1 and back to 0. */
	ssize_t r = write(io->wake_fd, &one, sizeof(one));

	assert(r == sizeof(one));
}

/* Its index; RING_PEERS_MAX if there is no place for it. */
static unsigned peer_of(struct io *io, struct io *peer)
{
	for (unsigned i = 0; i < io->peers_used; i++) {
		if (io->peers[i] == peer)
			return i;
	}
	if (io->peers_used == RING_PEERS_MAX)
		return RING_PEERS_MAX;
	io->peers[io->peers_used] = peer;
	return io->peers_used++;
}

void io_wake_from(struct io *from, struct io *to)
{
	unsigned peer = RING_PEERS_MAX;

	if (from != to && from->tuning.use_message)
		peer = peer_of(from, to);
	if (peer == RING_PEERS_MAX)
		io_wake(to);
	else
		from->tells |= UINT64_C(1) << peer;
}

/* It could not be told (its queue is full, say): then in the other way. */
static void on_tell(const struct io *io, const struct io_uring_cqe *cqe)
{
	uint64_t peer = cqe->user_data & RING_HANDLE_MASK;

	assert(cqe->res < 0);
	assert(peer < io->peers_used);
	if (!io->freeing)
		io_wake(io->peers[peer]);
}

static bool on_wake(struct io *io, int res, struct io_event *event)
{
	io->in_flight--;
	io->held_wake = false; /* flush() asks again */
	if (res < 0)
		return false;
	atomic_store(&io->woken, false);
	*event = (struct io_event){ .kind = IO_WOKEN };
	return true;
}

/* One completion, at most one event. */
static bool complete(struct io *io, const struct io_uring_cqe *cqe,
		     struct io_event *event)
{
	enum ring_op op = (enum ring_op)(cqe->user_data >> RING_OP_SHIFT);

	if (op == RING_WAKE)
		return on_wake(io, cqe->res, event);
	if (op == RING_TELL) {
		on_tell(io, cqe);
		return false;
	}
	if (op == RING_TOLD) {
		*event = (struct io_event){ .kind = IO_WOKEN };
		return true;
	}
	struct ring_slot *slot = ring_slot_of(io, cqe->user_data &
							  RING_HANDLE_MASK);
	bool any = false;

	assert(slot->in_flight > 0);
	if (!(cqe->flags & IORING_CQE_F_MORE)) {
		slot->in_flight--;
		io->in_flight--;
	}
	switch (op) {
	case RING_ACCEPT:
		any = on_accept(io, slot, cqe, event);
		break;
	case RING_CONNECT:
		any = on_connect(io, slot, cqe->res, event);
		break;
	case RING_RECV:
		any = on_recv(io, slot, cqe, event);
		break;
	case RING_SEND:
		any = on_send(io, slot, cqe->res, event);
		break;
	case RING_POLL_IN:
		any = ring_splice_readable(io, slot, event);
		break;
	case RING_POLL_OUT:
		any = ring_splice_writable(io, slot, event);
		break;
	case RING_CANCEL: /* what was cancelled tells of itself */
	case RING_WAKE:
	case RING_TELL:
	case RING_TOLD:
		break;
	}
	if (slot->closing && slot->in_flight == 0)
		ring_close_finish(io, slot);
	return any;
}

bool io_next(struct io *io, struct io_event *event)
{
	struct io_uring_cq *cq = &io->ring.cq;

	for (;;) {
		if (ring_splice_due(io, event))
			return true;
		while (io->bundle.left > 0) {
			if (next_of_bundle(io, event))
				return true;
		}
		unsigned head = *cq->khead;

		if (head == io->batch_end)
			break;
		struct io_uring_cqe cqe = cq->cqes[head & *cq->kring_mask];

		io_uring_smp_store_release(cq->khead, head + 1);
		if (complete(io, &cqe, event))
			return true;
	}
	struct ring_slot *slot = ring_list_first(io, &io->closed);

	if (slot == NULL)
		return false;
	ring_list_remove(io, slot);
	emit(io, slot, IO_CLOSED, 0, event);
	ring_slot_free(io, slot);
	return true;
}
