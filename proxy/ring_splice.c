#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

/*
 * io_splice(): octets go from socket to socket without being seen.  The ring
 * says when a socket is ready (a poll each time); the octets are then moved
 * at once, by splice(2) that does not wait: the ring's own splice always goes
 * to another thread.
 *
 * Both sockets become O_NONBLOCK, for splice() has no flag of its own for
 * them; nor has it one against SIGPIPE, which the program must ignore.  The
 * ring's receives and sends wait on such a socket all the same;
 * only its accepts and connects would not.
 */
enum {
	TURN_MAX = 256 * 1024, /* of one direction, then others have theirs */
	PIPE_SIZE = 256 * 1024,
};

static struct ring_splice *splice_of(const struct io *io,
				     const struct ring_slot *from)
{
	return &io->splices[ring_slot_index(io, from)];
}

/* --- pipes --- */

static void close_pipe(struct io *io, const struct ring_pipe *pipe)
{
	(void)close(pipe->read);
	(void)close(pipe->write);
	assert(io->pipes.open > 0);
	io->pipes.open--;
}

/* An empty pipe; false when there is none to be had. */
static bool take_pipe(struct io *io, struct ring_pipe *pipe)
{
	struct ring_pipes *pipes = &io->pipes;
	int fds[2];

	if (pipes->idle_count > 0) {
		*pipe = pipes->idle[--pipes->idle_count];
		return true;
	}
	if (pipes->open >= io->tuning.pipes_max ||
	    pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0)
		return false;
	pipes->open++;
	*pipe = (struct ring_pipe){ .read = fds[0], .write = fds[1] };
	/* Refused to who has many pipes: a small one does it too. */
	(void)fcntl(fds[0], F_SETPIPE_SZ, PIPE_SIZE);
	return true;
}

/* One with octets left in it must never serve another stream. */
static void put_pipe(struct io *io, struct ring_splice *joint)
{
	struct ring_pipes *pipes = &io->pipes;

	if (!joint->has_pipe)
		return;
	joint->has_pipe = false;
	if (joint->held == 0 && pipes->idle_count < RING_PIPES_IDLE)
		pipes->idle[pipes->idle_count++] = joint->pipe;
	else
		close_pipe(io, &joint->pipe);
	joint->held = 0;
}

void ring_splice_free_pipes(struct io *io)
{
	while (io->pipes.idle_count > 0)
		close_pipe(io, &io->pipes.idle[--io->pipes.idle_count]);
	assert(io->pipes.open == 0);
}

/* --- a splice begins and ends --- */

static void set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	assert(flags >= 0);
	if (!(flags & O_NONBLOCK))
		(void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

void io_splice(struct io *io, io_handle from, io_handle to)
{
	struct ring_slot *source = ring_slot_of(io, from);
	struct ring_slot *sink = ring_slot_of(io, to);

	assert(source != sink);
	assert(!source->listening && !source->connecting);
	assert(!sink->listening && !sink->connecting);
	if (source->closing || sink->closing)
		return;
	assert(!source->receiving && !source->splicing);
	assert(sink->head == NULL && !sink->held_send);
	assert(!sink->fin && !sink->spliced);
	set_nonblocking(source->fd);
	set_nonblocking(sink->fd);
	source->splicing = true;
	sink->spliced = true;
	*splice_of(io, source) = (struct ring_splice){
		.to = ring_slot_index(io, sink),
		.from = splice_of(io, source)->from,
	};
	splice_of(io, sink)->from = ring_slot_index(io, source);
	if (!source->held_in)
		ring_slot_want(io, source, RING_WANT_POLL_IN);
}

/* A poll that the kernel has stays: it finds nothing to do, or the next. */
static void dissolve(struct io *io, struct ring_slot *source)
{
	struct ring_splice *joint = splice_of(io, source);
	struct ring_slot *sink = &io->slots[joint->to];

	assert(source->splicing);
	assert(sink->spliced);
	put_pipe(io, joint);
	if (source->on == &io->spliced)
		ring_list_remove(io, source);
	source->splicing = false;
	source->wants &= (uint8_t)~RING_WANT_POLL_IN;
	sink->spliced = false;
	sink->wants &= (uint8_t)~RING_WANT_POLL_OUT;
}

void ring_splice_end(struct io *io, struct ring_slot *slot)
{
	if (slot->splicing)
		dissolve(io, slot);
	if (slot->spliced)
		dissolve(io, &io->slots[splice_of(io, slot)->from]);
}

/* --- moving octets --- */

/* What moved so far in this turn, and why it goes no further. */
struct go {
	struct ring_splice *joint;
	int from_fd;
	int to_fd;
	uint32_t taken; /* from the one */
	uint32_t moved; /* into the other */
};

/* Not now, but later: EAGAIN, or a signal. */
static bool later(int error)
{
	return error == EAGAIN || error == EINTR;
}

static void broken(struct ring_splice *joint, int error, bool by_to)
{
	joint->ended = true;
	joint->by_to = by_to;
	joint->result = -error;
}

static bool wrote(struct go *go, ssize_t n)
{
	if (n > 0) {
		go->moved += (uint32_t)n;
		return true;
	}
	/* Nothing taken of what there is: as good as no room. */
	if (n == 0 || later(errno))
		go->joint->blocked = true;
	else
		broken(go->joint, errno, true);
	return false;
}

/* From the pipe; true if it can go on. */
static bool drain(struct go *go)
{
	struct ring_splice *joint = go->joint;
	ssize_t n = splice(joint->pipe.read, NULL, go->to_fd, NULL, joint->held,
			   SPLICE_F_NONBLOCK | SPLICE_F_MOVE);

	if (!wrote(go, n))
		return false;
	assert((uint32_t)n <= joint->held);
	joint->held -= (uint32_t)n;
	return true;
}

/* Take away what was peeked at and has been sent. */
static bool discard(const struct io *io, struct go *go, size_t len)
{
	while (len > 0) {
		ssize_t n = recv(go->from_fd, io->scratch, len, MSG_DONTWAIT);

		if (n <= 0) {
			broken(go->joint, n == 0 ? ECONNRESET : errno, false);
			return false;
		}
		len -= (size_t)n;
	}
	return true;
}

/*
 * Without a pipe: only as much is taken as went, so nothing is held between
 * two turns, and no stream waits for another one's pipe.  It also gets over
 * urgent data, of which splice() says that there is nothing or that the stream
 * has ended, while a poll says that there is something to read.
 */
static bool copy(struct io *io, struct go *go)
{
	ssize_t n = recv(go->from_fd, io->scratch, RING_SCRATCH_SIZE,
			 MSG_PEEK | MSG_DONTWAIT);

	if (n == 0) {
		go->joint->ended = true;
		return false;
	}
	if (n < 0) {
		if (!later(errno))
			broken(go->joint, errno, false);
		return false;
	}
	n = send(go->to_fd, io->scratch, (size_t)n,
		 MSG_DONTWAIT | MSG_NOSIGNAL);
	if (!wrote(go, n))
		return false;
	go->taken += (uint32_t)n;
	return discard(io, go, (size_t)n);
}

/* Into the pipe, which is empty; true if it can go on. */
static bool fill(struct io *io, struct go *go)
{
	struct ring_splice *joint = go->joint;

	if (!joint->has_pipe)
		joint->has_pipe = take_pipe(io, &joint->pipe);
	if (!joint->has_pipe)
		return copy(io, go);
	ssize_t n = splice(go->from_fd, NULL, joint->pipe.write, NULL,
			   TURN_MAX - go->taken,
			   SPLICE_F_NONBLOCK | SPLICE_F_MOVE);

	if (n > 0) {
		joint->held = (uint32_t)n;
		go->taken += (uint32_t)n;
		return true;
	}
	if (n == 0 || (later(errno) && go->taken == 0))
		return copy(io, go);
	if (!later(errno))
		broken(joint, errno, false);
	return false;
}

static uint32_t move(struct io *io, const struct ring_slot *source)
{
	struct ring_splice *joint = splice_of(io, source);
	struct go go = {
		.joint = joint,
		.from_fd = source->fd,
		.to_fd = io->slots[joint->to].fd,
	};
	bool more = true;

	joint->blocked = false;
	while (more) {
		if (joint->held > 0)
			more = drain(&go);
		else
			more = go.taken < TURN_MAX && fill(io, &go);
	}
	if (joint->held == 0)
		put_pipe(io, joint);
	return go.moved;
}

/* Wait for the side that holds it up. */
static void wait_again(struct io *io, struct ring_slot *source)
{
	const struct ring_splice *joint = splice_of(io, source);
	struct ring_slot *sink = &io->slots[joint->to];

	if (joint->blocked && !sink->held_out)
		ring_slot_want(io, sink, RING_WANT_POLL_OUT);
	else if (!joint->blocked && !source->held_in)
		ring_slot_want(io, source, RING_WANT_POLL_IN);
}

static bool emit(const struct io *io, const struct ring_slot *source,
		 int result, struct io_event *event)
{
	*event = (struct io_event){
		.kind = IO_SPLICED,
		.result = result,
		.by_to = result < 0 && splice_of(io, source)->by_to,
		.socket = ring_slot_handle(io, source),
		.owner = source->owner,
	};
	return true;
}

static bool tell_end(struct io *io, struct ring_slot *source,
		     struct io_event *event)
{
	(void)emit(io, source, splice_of(io, source)->result, event);
	dissolve(io, source);
	return true;
}

bool ring_splice_due(struct io *io, struct io_event *event)
{
	struct ring_slot *source = ring_list_first(io, &io->spliced);

	return source != NULL && tell_end(io, source, event);
}

static bool go_on(struct io *io, struct ring_slot *source,
		  struct io_event *event)
{
	uint32_t moved = move(io, source);
	const struct ring_splice *joint = splice_of(io, source);

	if (joint->ended && moved == 0)
		return tell_end(io, source, event);
	/* The end is told behind the octets, and before anything else. */
	if (joint->ended)
		ring_list_append(io, &io->spliced, source);
	else
		wait_again(io, source);
	return moved > 0 && emit(io, source, (int)moved, event);
}

bool ring_splice_readable(struct io *io, struct ring_slot *slot,
			  struct io_event *event)
{
	slot->held_in = false;
	if (slot->closing || !slot->splicing || slot->on == &io->spliced)
		return false;
	return go_on(io, slot, event);
}

bool ring_splice_writable(struct io *io, struct ring_slot *slot,
			  struct io_event *event)
{
	slot->held_out = false;
	if (slot->closing || !slot->spliced)
		return false;
	struct ring_slot *source = &io->slots[splice_of(io, slot)->from];

	if (source->on == &io->spliced)
		return false;
	return go_on(io, source, event);
}
