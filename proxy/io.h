#ifndef PROXY_IO_H
#define PROXY_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The only door to the kernel.
 *
 * Requests go in; completions come out in batches and are pulled one by one.
 * ring.c implements this with io_uring, tests/sim/sim_io.c with a seeded
 * simulation; a program is linked with one or the other.  Nothing above this
 * header makes a system call, reads a clock, draws a random number, or names
 * liburing.
 *
 * Three rules carry the whole design:
 *
 *  - IO_CLOSED is the last event of a socket.  After io_close() or io_abort()
 *    nothing but IO_CLOSED is delivered for it, whatever was in flight or
 *    already waiting in the batch, so no caller ever handles a completion for
 *    something it has given up.
 *
 *  - A buffer has one owner.  IO_RECEIVED hands one to the caller; io_send()
 *    or io_buf_put() takes it back.  None is copied and none is freed.
 *
 *  - Receiving is on credit.  io_recv() asks for so many octets; when they
 *    have come, the receive ends by itself, so that back-pressure needs no
 *    cancel.
 *
 * A struct io belongs to one thread; only io_wake() may be called by others.
 * No function calls back, and none is re-entrant.
 */

struct io;
struct logger;
struct sockaddr;

/* A socket: index and generation.  0 is never valid. */
typedef uint64_t io_handle;

enum io_pool {
	IO_SMALL,   /* commands and replies; also what weir itself says */
	IO_BIG,     /* bodies in bulk */
	IO_RESERVE, /* probes and operators: no flood of mail can take these */
	IO_REPLY,   /* backends' replies: read at once, so that clients who
		       wait for them cannot keep them from coming */
	IO_POOLS,
};

/*
 * A buffer.  data moves forward as the front is consumed; data[0..len) is in
 * use, room octets behind it are free.  next is the owner's, to queue with.
 */
struct io_buf {
	struct io_buf *next;
	uint8_t *data;
	uint32_t len;
	uint32_t room;
	enum io_pool pool;
};

enum io_kind {
	IO_ACCEPTED,  /* .socket is new, or 0 and .result is -errno: the kernel
			 refused (EMFILE, ENFILE, ENOBUFS, ENOMEM); the
			 listener rests 100 ms and goes on by itself */
	IO_CONNECTED, /* .result is 0 or -errno */
	IO_RECEIVED,  /* .result is octets in .buf, 0 at end of stream, or
			 -errno; .more says whether the receive still stands */
	IO_SENT,      /* .result is octets of one send that is complete, or
			 -errno: then all that was queued is gone */
	IO_SPLICED,   /* io_splice(): .socket is its from, .result is octets
			 that went since the last one; 0: from's stream ended,
			 and all of it went; -errno: broken, .by_to says where.
			 The splice is over with 0 or -errno */
	IO_CLOSED,    /* the handle is dead */
	IO_WOKEN,     /* io_wake() or io_wake_from() was called, once or more
			 often */
};

struct io_event {
	enum io_kind kind;
	bool more;
	bool by_to; /* IO_SPLICED with -errno: to broke, not from */
	int result;
	io_handle socket;   /* IO_WOKEN: 0 */
	void *owner;        /* as given; IO_ACCEPTED: the listener's */
	struct io_buf *buf; /* IO_RECEIVED with .result > 0, else NULL */
};

struct io_config {
	unsigned sockets_max; /* all sockets at a time, listeners included */
	unsigned buffers[IO_POOLS]; /* how many of each pool, 16 or more */
	unsigned worker;            /* for messages: which worker this is */
	struct logger *logger;      /* where io_log() writes; may be NULL */
};

enum {
	IO_SMALL_SIZE = 4096,
	IO_BIG_SIZE = 16384,
	IO_ERROR_SIZE = 512,
};

/*
 * Open the door, in the thread that will use it.  NULL when the kernel does
 * not let us: then error says in one line what is wrong and what to change.
 */
struct io *io_open(const struct io_config *config, char error[IO_ERROR_SIZE]);

/* Close all that is open and free everything.  *io becomes NULL. */
void io_free(struct io **io);

/*
 * Submit what is queued and wait until a completion has come or now reaches
 * deadline_ms (INT64_MAX: no deadline; one in the past: do not wait).
 * Returns 0, or -errno when the ring is beyond repair.
 */
int io_wait(struct io *io, int64_t deadline_ms);

/* The next event of the batch; false when the batch is used up. */
bool io_next(struct io *io, struct io_event *event);

/* Monotonic milliseconds, read once per io_wait(); never 0, never back. */
int64_t io_now_ms(const struct io *io);

/* Milliseconds since 1970 UTC, for logs only: it may jump. */
int64_t io_wall_ms(const struct io *io);

/* 64 random bits.  Not for keys. */
uint64_t io_random(struct io *io);

/*
 * Let io_wait() return in the thread that owns io, with IO_WOKEN.  The only
 * function that other threads may call.
 */
void io_wake(struct io *io);

/*
 * The same, from the thread that owns `from`: cheaper where the kernel can
 * (no system call of its own), and as good as io_wake() where it cannot.  It
 * goes out with the next io_wait(from, ...): who will not wait again uses
 * io_wake().  `to` stays open until that io_wait() has returned, and one more.
 */
void io_wake_from(struct io *from, struct io *to);

/*
 * One whole line of log, without the newline, at a syslog level (0..7,
 * RFC 5424, section 6.2.1).  Copied; never blocks; when the log cannot keep
 * up, the line is dropped and counted.
 */
void io_log(struct io *io, int level, const char *line, size_t len);
uint64_t io_log_dropped(const struct io *io);

/*
 * Listen.  A TCP address is opened with SO_REUSEPORT, so that each worker has
 * its own; an AF_UNIX path is made with the permission bits mode, and a stale
 * socket of that name is replaced (one that somebody still answers is not:
 * -EADDRINUSE; nor is a file of another kind: -ENOTSOCK).  Returns 0 and the handle, or -errno.
 */
int io_listen(struct io *io, const struct sockaddr *addr, unsigned mode,
	      void *owner, io_handle *listener);

/*
 * Connect, from source if that is not NULL.  IO_CONNECTED tells the outcome;
 * a deadline is the caller's business.  Returns 0 and the handle, or -errno
 * when not even a socket could be had.
 *
 * transparent: source may be an address that is none of this machine's; it is
 * of addr's family (-EAFNOSUPPORT if not), and its port is not looked at: the
 * kernel chooses one.  -EPERM: it takes CAP_NET_ADMIN.  What the peer answers
 * must be routed back to this machine, or the connect times out.
 */
int io_connect(struct io *io, const struct sockaddr *addr,
	       const struct sockaddr *source, bool transparent, void *owner,
	       io_handle *socket);

/* Whom events of this socket are for.  An accepted one starts without. */
void io_adopt(struct io *io, io_handle socket, void *owner);

/* The other end's address (size: 128).  Returns 0 or -errno. */
int io_peer(struct io *io, io_handle socket, struct sockaddr *addr,
	    size_t size);

/* Our end's address of a connection, likewise. */
int io_local(struct io *io, io_handle socket, struct sockaddr *addr,
	     size_t size);

/*
 * Receive up to credit octets (1 or more) into buffers of this pool.  Ends
 * (.more is false) when the credit is used up (by at most one buffer more),
 * at the end of the stream, or by an error.  Only when none stands.
 */
void io_recv(struct io *io, io_handle socket, enum io_pool pool,
	     uint32_t credit);

/*
 * Append a buffer (or a chain, by next) to what is to be sent; an empty one
 * is just put back.  Ownership passes in any case.  What is queued goes out
 * in as few sends as the kernel allows; each complete one is an IO_SENT.
 */
void io_send(struct io *io, io_handle socket, struct io_buf *chain);

/* Octets given to io_send() of which no IO_SENT has told yet. */
size_t io_unsent(const struct io *io, io_handle socket);

/*
 * Join two connections in one direction: from now on what comes from the one
 * goes to the other, by itself, in order and unseen.  When to takes no more,
 * nothing more is taken from from; no direction has more than 256 KiB of a
 * turn.  Only while no receive stands on from, nothing is unsent on to and it
 * was not shut down, and neither is in another splice of that direction.
 *
 * While it stands: no io_recv() of from; no io_send() to to and no
 * io_shutdown() of it.  The other direction is free, to be spliced or not.
 *
 * IO_SPLICED goes to from's owner: at most one with octets in each batch, and
 * one last when it is over.  At the end of the stream (0) the FIN is the
 * caller's to pass on, by io_shutdown(to).  io_close() or io_abort() of either
 * ends the splice in silence, and with it what was under way; the other
 * socket may then be used as before.  Of a connection that is joined both
 * ways and breaks, the first IO_SPLICED says why; a second one may say 0.
 */
void io_splice(struct io *io, io_handle from, io_handle to);

/* End our side of the stream (FIN) once all that is queued is sent. */
void io_shutdown(struct io *io, io_handle socket);

/*
 * Give the socket up; what is not yet sent is dropped.  io_abort() resets the
 * connection (RST), so that the peer cannot take what it has for the whole.
 * Both may be called once, for listeners too.
 */
void io_close(struct io *io, io_handle socket);
void io_abort(struct io *io, io_handle socket);

/*
 * A buffer to write into: len is 0.  NULL when the pool is empty.  Up to half
 * of a pool stands where the kernel receives; of the other half receiving
 * takes all but an eighth of the pool, which is left to this function.
 */
struct io_buf *io_buf_get(struct io *io, enum io_pool pool);

/* Give one buffer back (not a chain). */
void io_buf_put(struct io *io, struct io_buf *buf);

/*
 * How much of the pool io_buf_get() could give now, in eighths (0..8); when
 * all is quiet about half, the other half being where the kernel receives.
 */
unsigned io_buf_free(const struct io *io, enum io_pool pool);

#endif
