#ifndef PROXY_RING_H
#define PROXY_RING_H

#include <liburing.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "proxy/io.h"

/*
 * io.h on io_uring: what ring.c (requests and the wait), ring_event.c
 * (completions), ring_slot.c, ring_pool.c, ring_probe.c, ring_socket.c and
 * ring_splice.c share, and what test_ring.c looks at.  Nothing else includes
 * this: the rest of the program knows io.h only.
 *
 * A slot is one socket.  The kernel's requests carry the slot's handle and
 * the kind of request; a slot is used again only when the kernel holds
 * nothing of it, so that a completion always finds the slot that asked.
 *
 * Requests are first noted in the slot ("wants") and become entries of the
 * submission queue in io_wait().  So what is wanted and given up in one turn
 * costs nothing, several io_send() are one send, and a full queue is nobody's
 * concern but io_wait()'s.
 */

/*
 * The kernel interface that liburing 2.3 does not name.  Our own names, so
 * that a later liburing does not clash.
 */
enum {
	RING_RECVSEND_BUNDLE = 1U << 4,   /* sqe->ioprio, Linux 6.10 */
	RING_ENTER_NO_IOWAIT = 1U << 7,   /* io_uring_enter(2), Linux 6.15 */
	RING_FEAT_MIN_TIMEOUT = 1U << 15, /* Linux 6.12 */
	RING_FEAT_NO_IOWAIT = 1U << 17,
};

enum {
	RING_NONE = UINT16_MAX, /* no entry of a buffer ring */
	RING_SEND_BUFFERS = 16, /* in one sendmsg */
	RING_REST_MS = 100,     /* a listener out of descriptors */
	RING_PEERS_MAX = 64,    /* other rings that get messages */
	RING_PIPES_IDLE = 4,    /* kept for the next splice */
	RING_SCRATCH_SIZE = 16384,
};

/* The end of a list of slots. */
#define RING_NOBODY UINT32_MAX

/*
 * user_data: the request's kind, 8 bits; generation, 24; index, 32.  That of
 * RING_TELL: the kind, and the peer's index.
 */
enum {
	RING_OP_SHIFT = 56,
	RING_GENERATION_SHIFT = 32,
	RING_GENERATION_MAX = (1 << 24) - 1,
};
#define RING_HANDLE_MASK ((UINT64_C(1) << RING_OP_SHIFT) - 1)

enum ring_op {
	RING_ACCEPT = 1,
	RING_CONNECT,
	RING_RECV,
	RING_SEND,
	RING_CANCEL,
	RING_WAKE,
	RING_TELL, /* a message to another ring: only its failure is told */
	RING_TOLD, /* a message from another ring */
	RING_POLL_IN,
	RING_POLL_OUT,
};

/* What a slot wants of the kernel at the next io_wait(). */
enum ring_want {
	RING_WANT_ACCEPT = 1 << 0,
	RING_WANT_CONNECT = 1 << 1,
	RING_WANT_RECV = 1 << 2,
	RING_WANT_SEND = 1 << 3,
	RING_WANT_CANCEL = 1 << 4, /* of all that the kernel holds */
	RING_WANT_POLL_IN = 1 << 5,
	RING_WANT_POLL_OUT = 1 << 6,
};

/* A doubly linked list of slots, by index; a slot is on one at most. */
struct ring_list {
	uint32_t first;
	uint32_t last;
};

struct ring_slot {
	void *owner;
	struct ring_list *on;  /* NULL: on none */
	struct io_buf *head;   /* to be sent; owned */
	struct io_buf *tail;   /* valid when head is not NULL */
	size_t unsent;         /* octets from head on */
	int64_t rest_until_ms; /* a resting listener */
	uint32_t sending;      /* octets of the send under way, still due */
	uint32_t sent;         /* octets of it that are done */
	uint32_t credit;       /* octets the receive may still bring */
	uint32_t generation;   /* 1..2^24-1; 0: never used */
	uint32_t prev, next;   /* on the list */
	uint32_t todo_next;    /* valid while queued */
	int fd;                /* -1: the slot is free */
	uint16_t in_flight;    /* requests that the kernel holds */
	uint8_t wants;         /* enum ring_want */
	uint8_t pool;          /* enum io_pool, of the receive */
	bool queued : 1;       /* on the todo list */
	bool listening : 1;    /* a listener */
	bool connecting : 1;   /* IO_CONNECTED is still to come */
	bool receiving : 1;    /* a receive stands */
	bool held_recv : 1;    /* the kernel has the receive */
	bool held_send : 1;    /* the kernel has a send */
	bool held_open : 1;    /* the kernel has the accept or connect */
	bool readable : 1;     /* the last receive left octets behind */
	bool closing : 1;      /* given up */
	bool fin : 1;          /* FIN once all is sent */
	bool splicing : 1;     /* a splice leads from here */
	bool spliced : 1;      /* a splice leads to here */
	bool held_in : 1;      /* the kernel has a poll for reading */
	bool held_out : 1;     /* the kernel has a poll for writing */
};

struct ring_pipe {
	int read;
	int write;
};

/*
 * A slot's splices, in an array of their own since few have any.  A pipe is
 * there only while octets are in it: idle splices hold none.
 */
struct ring_splice {
	uint32_t to;   /* the slot that this one's octets go to: .splicing */
	uint32_t from; /* the slot whose octets come to this one: .spliced */
	uint32_t held; /* octets in the pipe, on their way from here */
	int result;    /* once ended: what to tell */
	struct ring_pipe pipe;
	bool has_pipe : 1;
	bool blocked : 1; /* to takes no more now */
	bool ended : 1;   /* nothing more will go */
	bool by_to : 1;
};

struct ring_pipes {
	struct ring_pipe idle[RING_PIPES_IDLE]; /* empty ones */
	unsigned idle_count;
	unsigned open; /* the idle ones included */
};

/*
 * One pool.  Free buffers are on a list, last in first out, or have never
 * been touched; some are given to the kernel, in a buffer ring in which a
 * buffer's id is its place, so that a bundle is a run of places.
 */
struct ring_pool {
	struct io_uring_buf_ring *ring;
	struct io_buf **given_at; /* by place; NULL: not with the kernel */
	struct io_buf *bufs;
	struct io_buf *free;
	uint8_t *memory;
	struct ring_list starved; /* receives that found the ring empty */
	size_t memory_size;
	size_t ring_size;
	uint32_t size; /* octets of one buffer */
	uint32_t total;
	uint32_t fresh;      /* bufs[fresh..total) were never used */
	uint32_t free_count; /* fresh ones included */
	uint32_t reserve;    /* left to io_buf_get() */
	uint32_t given;      /* with the kernel, as far as we have seen */
	uint32_t given_max;
	uint16_t entries; /* of the buffer ring, a power of two */
	uint16_t place;   /* where the next one goes */
	enum io_pool pool;
};

/* One sendmsg; the kernel has read it when its entry is submitted. */
struct ring_vector {
	struct msghdr msg;
	struct iovec iov[RING_SEND_BUFFERS];
};

/* What is left of a bundle that was received: several events of one CQE. */
struct ring_bundle {
	io_handle socket;
	struct ring_pool *pool;
	uint32_t left; /* octets; 0: no bundle */
	uint16_t place;
	bool more; /* after the last one */
};

/* Sizes, and what may be used.  Tests make them small and few. */
struct ring_tuning {
	unsigned sq_entries;
	unsigned cq_entries;
	unsigned given_max[IO_POOLS]; /* to the kernel at a time */
	unsigned send_max;            /* octets asked for in one send */
	unsigned pipes_max;           /* two descriptors each */
	bool use_credit; /* receives stand, with optlen: Linux 6.17; see ring.c */
	bool use_bundle;
	bool use_no_iowait;
	bool use_message; /* io_wake_from() by IORING_OP_MSG_RING */
};

struct io {
	struct io_uring ring;
	struct ring_pool pools[IO_POOLS];
	struct ring_tuning tuning; /* use_*: and the kernel can */
	struct ring_bundle bundle;
	struct ring_slot *slots;
	struct ring_splice *splices;        /* by slot */
	struct sockaddr_storage *addresses; /* a connect's, by slot */
	uint8_t *scratch; /* octets that are copied without a pipe */
	struct ring_vector *vectors;
	struct logger *logger;
	struct ring_pipes pipes;
	struct ring_list closed;  /* IO_CLOSED is due */
	struct ring_list spliced; /* an IO_SPLICED is due: the end */
	struct ring_list unused;  /* slots below slots_fresh that are free */
	struct ring_list resting; /* listeners, the first to wake first */
	size_t slots_size, splices_size, addresses_size, vectors_size;
	int64_t now_ms;
	int64_t overflow_said_ms;
	uint64_t overflows; /* turns that found the CQ overflown */
	uint64_t seed[2];   /* of io_random() */
	uint64_t wake_value;
	uint64_t in_flight; /* of all slots, and the wake-up's read */
	uint32_t todo_first, todo_last;
	uint32_t sockets_max;
	uint32_t slots_fresh; /* slots[slots_fresh..) were never used */
	struct io *peers[RING_PEERS_MAX]; /* that were ever told */
	uint64_t tells;                   /* a bit for each to be told now */
	unsigned peers_used;
	unsigned vectors_used;
	unsigned batch_end; /* the CQ's tail when the batch came */
	unsigned worker;
	int wake_fd;
	bool held_wake; /* the kernel has the wake-up's read */
	bool overflowing;
	bool freeing; /* others may be gone */
	atomic_bool woken;
};

extern const struct ring_tuning ring_standard;

/* io_open() with other sizes than the standard ones. */
struct io *ring_open(const struct io_config *config,
		     const struct ring_tuning *tuning,
		     char error[IO_ERROR_SIZE]);

/*
 * Submit what is in the queue, run the kernel's deferred work, and wait for
 * `wait` completions or the timeout (NULL: none).  Returns 0 or more, or
 * -errno; -ETIME when the time is over.
 */
int ring_enter(struct io *io, unsigned wait,
	       const struct __kernel_timespec *timeout);

/* Put back all that is queued to be sent. */
void ring_queue_drop(struct io *io, struct ring_slot *slot);

/* The kernel holds nothing of a slot that is closing: IO_CLOSED is due. */
void ring_close_finish(struct io *io, struct ring_slot *slot);

/* --- ring_slot.c --- */

uint32_t ring_slot_index(const struct io *io, const struct ring_slot *slot);
io_handle ring_slot_handle(const struct io *io, const struct ring_slot *slot);

/* A handle that is dead, or never was, is the caller's mistake. */
struct ring_slot *ring_slot_of(const struct io *io, io_handle handle);

/* A slot for this descriptor; NULL when all are used. */
struct ring_slot *ring_slot_take(struct io *io, int fd, void *owner);

/* The handle is dead from here. */
void ring_slot_free(struct io *io, struct ring_slot *slot);

/* Note what the slot wants; io_wait() makes entries of it. */
void ring_slot_want(struct io *io, struct ring_slot *slot, enum ring_want what);

void ring_list_append(struct io *io, struct ring_list *list,
		      struct ring_slot *slot);
void ring_list_remove(struct io *io, struct ring_slot *slot);
struct ring_slot *ring_list_first(struct io *io, const struct ring_list *list);

/* --- ring_probe.c --- */

/*
 * Set the ring up and find out what the kernel can; what it cannot is
 * switched off in io->tuning.  Returns 0, or -errno with a line in error.
 */
int ring_probe_setup(struct io *io, char error[IO_ERROR_SIZE]);

/* Say in one line why the ring cannot be had, and what to change. */
void ring_probe_explain(const struct io *io, const char *what, int result,
			char error[IO_ERROR_SIZE]);

/* --- ring_pool.c --- */

/* Returns 0 or -errno; ring_pool_close() in any case. */
int ring_pool_open(struct ring_pool *pool, struct io_uring *ring,
		   enum io_pool which, unsigned total, unsigned given_max);
void ring_pool_close(struct ring_pool *pool, struct io_uring *ring);

/* Give buffers to the kernel, until it has enough or only the reserve is. */
void ring_pool_top_up(struct ring_pool *pool);

/* Octets that the kernel may put into the buffer at this place. */
uint32_t ring_pool_room(const struct ring_pool *pool, uint16_t place);

/* The buffer at this place, with len octets in it, is ours again. */
struct io_buf *ring_pool_take(struct ring_pool *pool, uint16_t place,
			      uint32_t len);
void ring_pool_put(struct ring_pool *pool, struct io_buf *buf);

/* Anonymous memory, zero, not touched yet.  NULL when there is none. */
void *ring_map(size_t size);

/* --- ring_splice.c --- */

/* The slot is given up: no splice leads from it or to it any more. */
void ring_splice_end(struct io *io, struct ring_slot *slot);

/* A poll has come back.  True: there is an event. */
bool ring_splice_readable(struct io *io, struct ring_slot *slot,
			  struct io_event *event);
bool ring_splice_writable(struct io *io, struct ring_slot *slot,
			  struct io_event *event);

/* An event that is due since the last one; false: there is none. */
bool ring_splice_due(struct io *io, struct io_event *event);

/* When no splice stands any more. */
void ring_splice_free_pipes(struct io *io);

/* --- ring_socket.c: descriptors, before the ring knows them --- */

/* All return a descriptor, or -errno. */
int ring_socket_listen(const struct sockaddr *addr, unsigned mode);
int ring_socket_connect(const struct sockaddr *addr,
			const struct sockaddr *source, bool transparent);

/* The octets of an address of this family; 0: a family we do not know. */
socklen_t ring_socket_len(const struct sockaddr *addr);

#endif
