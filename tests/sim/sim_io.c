#include "tests/sim/sim_io.h"

#include <assert.h>
#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

enum {
	BACKLOG = 128,
	REST_US = 100 * SIM_MS, /* io.h, IO_ACCEPTED */
	RECEIVES_A_BATCH = 3,   /* of one socket */
	BUFFERS_A_SEND = 32,
	SPLICE_A_BATCH = 256 * 1024, /* io.h, io_splice() */
	SPLICE_HELD_MAX = 65536,
	CLOSE_BATCHES_MAX = 3,
	FREED = 0xDB, /* what a buffer in its pool is filled with */
	WALL_BASE_S = 1750000000,
};

static const uint32_t buffer_size[IO_POOLS] = {
	[IO_SMALL] = IO_SMALL_SIZE,
	[IO_BIG] = IO_BIG_SIZE,
	[IO_RESERVE] = IO_SMALL_SIZE,
	[IO_REPLY] = IO_SMALL_SIZE,
};

/* In the simulation, a logger is a place to keep lines. */
struct logger {
	struct sim *sim;
	sim_log_fn *fn;
	void *owner;
};

enum buf_state { BUF_FREE, BUF_HELD, BUF_QUEUED };

struct buf {
	struct io_buf pub;
	uint8_t *base;
	enum buf_state state;
};

struct pool {
	struct buf *bufs;
	uint8_t *slab;
	struct io_buf *free;
	unsigned count, free_count;
};

enum sock_state {
	SOCK_FREE,
	SOCK_LISTENING,
	SOCK_CONNECTING,
	SOCK_OPEN,
	SOCK_CLOSING,
};

struct sock {
	struct io *io;
	uint32_t generation;
	enum sock_state state;
	bool dirty;   /* on the list of those to look at */
	bool starved; /* a receive waits for a buffer */
	void *owner;
	struct sim_end *end; /* connections */
	union sim_addr peer; /* whom we asked, even when end is gone */
	struct sim_listener *listener; /* listeners */
	struct sim_end *backlog[BACKLOG];
	unsigned backlog_len;
	struct sim_timer rest;
	bool connect_due;
	int connect_result;
	bool receiving;
	enum io_pool pool;
	uint32_t credit;
	struct io_buf *out, *out_last; /* what is queued */
	size_t unsent;                 /* no IO_SENT has told of these */
	size_t sending;                /* octets of the send under way */
	size_t sending_left;
	bool fin_wanted, fin_done;
	struct sock *splice_to, *spliced_from; /* or NULL */
	uint8_t *held;            /* taken from here, on its way there */
	size_t held_at, held_len; /* held[held_at..held_len) */
	bool splice_over;         /* its end is in the batch */
	uint32_t splice_serial;   /* of events that are not stale */
	unsigned close_in;        /* batches until IO_CLOSED, 0: it was told */
	bool accepted, greeted, ended, spoke;
	int64_t quiet_since_us;
};

struct entry {
	struct io_event event;
	uint32_t at;
	uint32_t generation;
	size_t octets;          /* IO_SENT: those it tells of */
	uint32_t splice_serial; /* IO_SPLICED */
};

struct io {
	struct sim *sim;
	struct logger *logger;
	unsigned worker;
	struct pool pools[IO_POOLS];
	struct sock *socks;
	uint32_t socks_max;
	uint32_t socks_used; /* those behind it were never used */
	uint32_t *free_socks;
	uint32_t free_len;
	uint32_t *dirty;
	uint32_t dirty_len;
	struct entry *batch;
	size_t batch_len, batch_max, batch_at;
	int64_t now_ms;
	int64_t deadline_ms;
	int64_t wall_off_ms;
	bool timed_out; /* the deadline had come at the last io_wait() */
	uint64_t changes;
	uint32_t starved; /* sockets whose receive waits for a buffer */
	bool woken;
	struct sim_io_bugs bugs;
	struct entry last_closed;
};

static io_handle handle_of(const struct sock *s)
{
	uint32_t at = (uint32_t)(s - s->io->socks);

	return (io_handle)s->generation << 32 | (at + 1);
}

/* The socket of a handle, whatever its state; NULL: there is none. */
static struct sock *sock_find(const struct io *io, io_handle handle)
{
	uint32_t at = (uint32_t)(handle & UINT32_MAX);

	if (at == 0 || at > io->socks_max)
		return NULL;
	struct sock *s = &io->socks[at - 1];
	if (s->generation != (uint32_t)(handle >> 32) || s->state == SOCK_FREE)
		return NULL;
	return s;
}

/* The socket a call is for; NULL, and a violation, if it is given up. */
static struct sock *sock_of(const struct io *io, io_handle handle,
			    const char *call)
{
	struct sock *s = sock_find(io, handle);

	if (s == NULL || s->state == SOCK_CLOSING) {
		sim_violation(io->sim, "%s on a handle that is %s", call,
			      s == NULL ? "dead" : "given up");
		return NULL;
	}
	return s;
}

static void touch(struct sock *s)
{
	struct io *io = s->io;

	if (s->dirty)
		return;
	s->dirty = true;
	io->dirty[io->dirty_len++] = (uint32_t)(s - io->socks);
}

/* --- buffers --- */

static void pool_init(struct pool *pool, enum io_pool which, unsigned count)
{
	uint32_t size = buffer_size[which];

	pool->count = pool->free_count = count;
	pool->bufs = sim_zeroed(count * sizeof(*pool->bufs));
	pool->slab = sim_grow(NULL, (size_t)count * size);
	memset(pool->slab, FREED, (size_t)count * size);
	for (unsigned i = count; i-- > 0;) {
		struct buf *b = &pool->bufs[i];

		b->base = pool->slab + (size_t)i * size;
		b->pub.pool = which;
		b->pub.next = pool->free;
		pool->free = &b->pub;
	}
	ASAN_POISON_MEMORY_REGION(pool->slab, (size_t)count * size);
}

static void pool_free(struct pool *pool, enum io_pool which)
{
	ASAN_UNPOISON_MEMORY_REGION(pool->slab,
				    (size_t)pool->count * buffer_size[which]);
	free(pool->slab);
	free(pool->bufs);
}

/* The buffer behind the public face, or NULL: it is none of ours. */
static struct buf *buf_of(const struct io *io, const struct io_buf *pub)
{
	for (unsigned i = 0; i < IO_POOLS; i++) {
		const struct pool *pool = &io->pools[i];
		const struct buf *b = (const struct buf *)(const void *)pub;

		if (b >= pool->bufs && b < pool->bufs + pool->count)
			return &pool->bufs[b - pool->bufs];
	}
	return NULL;
}

static struct io_buf *buf_take(struct io *io, enum io_pool which)
{
	struct pool *pool = &io->pools[which];
	struct io_buf *pub = pool->free;
	struct buf *b = buf_of(io, pub);

	assert(b != NULL);
	assert(b->state == BUF_FREE);
	pool->free = pub->next;
	pool->free_count--;
	ASAN_UNPOISON_MEMORY_REGION(b->base, buffer_size[which]);
	/* All octets equal the first one, and that is as it should be. */
	if (b->base[0] != FREED ||
	    memcmp(b->base, b->base + 1, buffer_size[which] - 1) != 0)
		sim_violation(io->sim, "a buffer was written after it was "
				       "put back");
	b->state = BUF_HELD;
	pub->next = NULL;
	pub->data = b->base;
	pub->len = 0;
	pub->room = buffer_size[which];
	return pub;
}

static void starve(struct sock *s, bool starved)
{
	if (s->starved == starved)
		return;
	s->starved = starved;
	if (starved)
		s->io->starved++;
	else
		s->io->starved--;
}

/* A buffer is back: receives that wait for one may try again. */
static void feed_starved(struct io *io, enum io_pool which)
{
	for (uint32_t i = 0; io->starved > 0 && i < io->socks_used; i++) {
		struct sock *s = &io->socks[i];

		if (s->starved && s->pool == which) {
			starve(s, false);
			touch(s);
		}
	}
}

static void buf_home(struct io *io, struct buf *b)
{
	enum io_pool which = b->pub.pool;
	struct pool *pool = &io->pools[which];

	ASAN_UNPOISON_MEMORY_REGION(b->base, buffer_size[which]);
	memset(b->base, FREED, buffer_size[which]);
	ASAN_POISON_MEMORY_REGION(b->base, buffer_size[which]);
	b->state = BUF_FREE;
	b->pub.next = pool->free;
	pool->free = &b->pub;
	pool->free_count++;
	feed_starved(io, which);
}

static bool buf_is_sound(const struct io *io, const struct buf *b)
{
	const uint8_t *end = b->base + buffer_size[b->pub.pool];

	if (b->pub.data >= b->base && b->pub.data + b->pub.len <= end)
		return true;
	sim_violation(io->sim, "a buffer's data is outside of it");
	return false;
}

struct io_buf *io_buf_get(struct io *io, enum io_pool pool)
{
	if (io->pools[pool].free_count == 0 ||
	    sim_chance(io->sim, sim_faults(io->sim)->no_buffer)) {
		sim_trace(io->sim, "io%u: no buffer", io->worker);
		sim_starve(io->sim);
		return NULL;
	}
	return buf_take(io, pool);
}

void io_buf_put(struct io *io, struct io_buf *buf)
{
	struct buf *b = buf_of(io, buf);

	if (b == NULL || b->state != BUF_HELD) {
		sim_violation(io->sim, "io_buf_put of a buffer that is %s",
			      b == NULL              ? "not ours"
			      : b->state == BUF_FREE ? "free already"
						     : "being sent");
		return;
	}
	buf_home(io, b);
}

unsigned io_buf_free(const struct io *io, enum io_pool pool)
{
	return io->pools[pool].free_count * 8 / io->pools[pool].count;
}

/* --- opening and freeing --- */

static void rest_is_over(void *owner)
{
	touch(owner);
}

struct io *io_open(const struct io_config *config, char error[IO_ERROR_SIZE])
{
	struct io *io = sim_zeroed(sizeof(*io));

	assert(config->logger != NULL);
	error[0] = '\0';
	io->logger = config->logger;
	io->sim = config->logger->sim;
	io->worker = config->worker;
	io->socks_max = config->sockets_max;
	io->socks = sim_zeroed(io->socks_max * sizeof(*io->socks));
	io->free_socks = sim_zeroed(io->socks_max * sizeof(uint32_t));
	io->dirty = sim_zeroed(io->socks_max * sizeof(uint32_t));
	for (uint32_t i = io->socks_max; i-- > 0;) {
		struct sock *s = &io->socks[i];

		s->io = io;
		s->generation = 1;
		s->rest = (struct sim_timer){ .fire = rest_is_over,
					      .owner = s };
		io->free_socks[io->free_len++] = i;
	}
	for (unsigned i = 0; i < IO_POOLS; i++)
		pool_init(&io->pools[i], (enum io_pool)i, config->buffers[i]);
	io->now_ms = sim_now_us(io->sim) / SIM_MS + 1;
	io->deadline_ms = INT64_MAX;
	io->timed_out = true; /* its owner has not asked yet */
	return io;
}

static void out_drop(struct sock *s)
{
	while (s->out != NULL) {
		struct io_buf *pub = s->out;

		s->out = pub->next;
		buf_home(s->io, buf_of(s->io, pub));
	}
	s->out_last = NULL;
	s->sending = s->sending_left = 0;
}

/* The splice that leads from here is over. */
static void splice_dissolve(struct sock *from)
{
	assert(from->splice_to->spliced_from == from);
	from->splice_to->spliced_from = NULL;
	from->splice_to = NULL;
	from->splice_over = false;
	from->splice_serial++;
	free(from->held);
	from->held = NULL;
	from->held_at = from->held_len = 0;
}

/* Let go of everything a socket has in the world. */
static void sock_release(struct sock *s, bool reset)
{
	struct sim *sim = s->io->sim;

	if (s->listener != NULL)
		sim_unlisten(sim, s->listener);
	s->listener = NULL;
	if (s->splice_to != NULL)
		splice_dissolve(s);
	if (s->spliced_from != NULL)
		splice_dissolve(s->spliced_from);
	for (unsigned i = 0; i < s->backlog_len; i++)
		sim_end_reset(s->backlog[i]);
	s->backlog_len = 0;
	sim_timer_clear(sim, &s->rest);
	if (s->end != NULL && reset)
		sim_end_reset(s->end);
	else if (s->end != NULL)
		sim_end_close(s->end);
	s->end = NULL;
	starve(s, false);
	s->receiving = false;
	out_drop(s);
}

void io_free(struct io **iop)
{
	struct io *io = *iop;

	if (io == NULL)
		return;
	for (uint32_t i = 0; i < io->socks_max; i++)
		sock_release(&io->socks[i], true);
	for (unsigned i = 0; i < IO_POOLS; i++)
		pool_free(&io->pools[i], (enum io_pool)i);
	free(io->socks);
	free(io->free_socks);
	free(io->dirty);
	free(io->batch);
	free(io);
	*iop = NULL;
}

static struct sock *sock_new(struct io *io, enum sock_state state, void *owner)
{
	if (io->free_len == 0)
		return NULL;
	struct sock *s = &io->socks[io->free_socks[--io->free_len]];

	assert(s->state == SOCK_FREE);
	if (s - io->socks >= io->socks_used)
		io->socks_used = (uint32_t)(s - io->socks) + 1;
	*s = (struct sock){
		.io = io,
		.generation = s->generation,
		.state = state,
		.dirty = s->dirty,
		.owner = owner,
		.rest = s->rest,
		.quiet_since_us = sim_now_us(io->sim),
	};
	io->changes++;
	return s;
}

static void sock_free(struct sock *s)
{
	struct io *io = s->io;

	assert(s->end == NULL);
	s->state = SOCK_FREE;
	s->generation++;
	io->free_socks[io->free_len++] = (uint32_t)(s - io->socks);
	io->changes++;
}

/* --- the clock, chance, the log --- */

int64_t io_now_ms(const struct io *io)
{
	return io->now_ms;
}

int64_t io_wall_ms(const struct io *io)
{
	return (int64_t)WALL_BASE_S * 1000 + io->now_ms + io->wall_off_ms;
}

uint64_t io_random(struct io *io)
{
	return sim_random(io->sim);
}

void io_wake(struct io *io)
{
	io->woken = true;
}

void io_wake_from(struct io *from, struct io *to)
{
	(void)from;
	io_wake(to);
}

void io_log(struct io *io, int level, const char *line, size_t len)
{
	struct logger *logger = io->logger;

	sim_mix_octets(io->sim, line, len);
	if (sim_traced(io->sim))
		sim_trace_octets(io->sim, "log:", line, len);
	if (logger->fn != NULL)
		logger->fn(logger->owner, io->worker, level, line, len);
}

uint64_t io_log_dropped(const struct io *io)
{
	(void)io; /* this one keeps up */
	return 0;
}

struct logger *sim_logger_new(struct sim *sim, sim_log_fn *fn, void *owner)
{
	struct logger *logger = sim_zeroed(sizeof(*logger));

	logger->sim = sim;
	logger->fn = fn;
	logger->owner = owner;
	return logger;
}

void sim_logger_free(struct logger **logger)
{
	free(*logger);
	*logger = NULL;
}

/* --- sockets --- */

static void on_end(void *owner, struct sim_end *end, enum sim_what what,
		   int err)
{
	struct sock *s = owner;

	switch (what) {
	case SIM_OPEN:
	case SIM_FAILED:
		s->connect_due = true;
		s->connect_result = -err;
		if (what == SIM_FAILED && s->end == end)
			s->end = NULL; /* it is gone with this call */
		break;
	case SIM_DATA:
	case SIM_FIN:
		s->quiet_since_us = sim_now_us(s->io->sim);
		break;
	case SIM_ROOM:
	case SIM_RST:
		break;
	}
	touch(s);
	if (s->spliced_from != NULL)
		touch(s->spliced_from);
}

static enum sim_answer on_accept(void *owner, struct sim_end *end)
{
	struct sock *s = owner;

	if (s->backlog_len == BACKLOG)
		return SIM_DROP;
	sim_end_adopt(end, NULL, NULL);
	s->backlog[s->backlog_len++] = end;
	touch(s);
	return SIM_TAKE;
}

int io_listen(struct io *io, const struct sockaddr *addr, unsigned mode,
	      void *owner, io_handle *listener)
{
	(void)mode; /* nobody else lives here */
	if (addr->sa_family == AF_UNIX && sim_listens(io->sim, addr))
		return -EADDRINUSE;
	struct sock *s = sock_new(io, SOCK_LISTENING, owner);
	if (s == NULL)
		return -EMFILE;
	s->listener = sim_listen(io->sim, addr, on_accept, s);
	*listener = handle_of(s);
	return 0;
}

int io_connect(struct io *io, const struct sockaddr *addr,
	       const struct sockaddr *source, bool transparent, void *owner,
	       io_handle *socket)
{
	assert(source != NULL || !transparent);
	if (transparent && source->sa_family != addr->sa_family)
		return -EAFNOSUPPORT;
	if (sim_chance(io->sim, sim_faults(io->sim)->connect_error))
		return -EADDRNOTAVAIL;
	struct sock *s = sock_new(io, SOCK_CONNECTING, owner);
	if (s == NULL)
		return -EMFILE;
	s->end = sim_connect(io->sim, addr, source, on_end, s);
	s->peer = *sim_end_addr(s->end, 1);
	*socket = handle_of(s);
	if (sim_traced(io->sim)) {
		char text[80];

		sim_trace(io->sim, "io%u: connects to %s, conn %u", io->worker,
			  sim_addr_text(addr, text, sizeof(text)),
			  sim_end_number(s->end));
	}
	return 0;
}

void io_adopt(struct io *io, io_handle socket, void *owner)
{
	struct sock *s = sock_of(io, socket, "io_adopt");

	if (s != NULL)
		s->owner = owner;
}

/* side 0 connected, side 1 accepted. */
static int end_addr(const struct sock *s, unsigned side, struct sockaddr *addr,
		    size_t size)
{
	assert(size >= sizeof(union sim_addr));
	if (s == NULL)
		return -EBADF;
	if (s->end == NULL)
		return -ENOTCONN;
	memcpy(addr, sim_end_addr(s->end, side), sizeof(union sim_addr));
	return 0;
}

int io_peer(struct io *io, io_handle socket, struct sockaddr *addr, size_t size)
{
	const struct sock *s = sock_of(io, socket, "io_peer");

	return end_addr(s, s != NULL && s->accepted ? 0 : 1, addr, size);
}

int io_local(struct io *io, io_handle socket, struct sockaddr *addr,
	     size_t size)
{
	const struct sock *s = sock_of(io, socket, "io_local");

	return end_addr(s, s != NULL && s->accepted ? 1 : 0, addr, size);
}

void io_recv(struct io *io, io_handle socket, enum io_pool pool,
	     uint32_t credit)
{
	struct sock *s = sock_of(io, socket, "io_recv");

	if (s == NULL)
		return;
	if (s->receiving || s->splice_to != NULL || credit == 0 ||
	    s->state != SOCK_OPEN) {
		sim_violation(io->sim, "io_recv %s",
			      s->receiving           ? "while one stands"
			      : s->splice_to != NULL ? "of a spliced socket"
			      : credit == 0          ? "without credit"
					    : "before the connection stands");
		return;
	}
	s->receiving = true;
	s->pool = pool;
	s->credit = credit;
	touch(s);
}

static void queue_buf(struct sock *s, struct io_buf *pub)
{
	pub->next = NULL;
	if (s->out_last == NULL)
		s->out = pub;
	else
		s->out_last->next = pub;
	s->out_last = pub;
	s->unsent += pub->len;
}

static void row_fill(const struct sock *s, struct sim_io_row *row)
{
	*row = (struct sim_io_row){
		.accepted = s->accepted,
		.adopted = s->owner != NULL,
		.ended = s->ended,
		.greeted = s->greeted,
		.stuck = s->unsent > 0 ||
			 (s->spliced_from != NULL &&
			  s->spliced_from->held_at < s->spliced_from->held_len),
		.quiet_since_us = s->quiet_since_us,
	};
	if (s->end != NULL) {
		row->number = sim_end_number(s->end);
		row->peer = sim_end_addr(s->end, s->accepted ? 0 : 1);
		row->local = sim_end_addr(s->end, s->accepted ? 1 : 0);
	} else if (s->peer.sa.sa_family != AF_UNSPEC) {
		row->peer = &s->peer;
	}
}

/* The first words to a client tell whether it was let in. */
static void note_greeting(struct sock *s, const struct io_buf *pub)
{
	if (!s->accepted || s->spoke || pub->len < 3)
		return;
	s->spoke = true;
	s->greeted = memcmp(pub->data, "220", 3) == 0;
	s->io->changes++;
}

void io_send(struct io *io, io_handle socket, struct io_buf *chain)
{
	struct sock *s = sock_of(io, socket, "io_send");

	if (s != NULL && (s->state != SOCK_OPEN || s->fin_wanted ||
			  s->spliced_from != NULL)) {
		sim_violation(io->sim, "io_send %s",
			      s->fin_wanted ? "after io_shutdown"
			      : s->spliced_from != NULL
				      ? "to a spliced socket"
				      : "before the connection stands");
		s = NULL;
	}
	for (struct io_buf *pub = chain, *next; pub != NULL; pub = next) {
		struct buf *b = buf_of(io, pub);

		if (b == NULL || b->state != BUF_HELD || !buf_is_sound(io, b)) {
			sim_violation(io->sim, "io_send of a buffer that its "
					       "caller does not own");
			return;
		}
		next = pub->next;
		if (s == NULL || pub->len == 0) {
			buf_home(io, b);
			continue;
		}
		if (io->bugs.sending != NULL) {
			struct sim_io_row row;

			row_fill(s, &row);
			io->bugs.sending(io->bugs.owner, io, socket, &row, pub);
		}
		note_greeting(s, pub);
		b->state = BUF_QUEUED;
		queue_buf(s, pub);
		ASAN_POISON_MEMORY_REGION(b->base, buffer_size[pub->pool]);
	}
	if (s != NULL)
		touch(s);
}

size_t io_unsent(const struct io *io, io_handle socket)
{
	const struct sock *s = sock_of(io, socket, "io_unsent");

	return s == NULL ? 0 : s->unsent;
}

static void note_end(struct sock *s)
{
	if (!s->ended)
		s->io->changes++;
	s->ended = true;
}

void io_shutdown(struct io *io, io_handle socket)
{
	struct sock *s = sock_of(io, socket, "io_shutdown");

	if (s == NULL)
		return;
	if (s->state != SOCK_OPEN || s->spliced_from != NULL) {
		sim_violation(io->sim, "io_shutdown %s",
			      s->spliced_from != NULL
				      ? "of what a splice leads to"
				      : "before the connection stands");
		return;
	}
	s->fin_wanted = true;
	note_end(s);
	touch(s);
}

/* What keeps these two from being joined; NULL: nothing. */
static const char *splice_fault(const struct sock *from, const struct sock *to)
{
	if (from == to)
		return "of a socket to itself";
	if (from->state != SOCK_OPEN || to->state != SOCK_OPEN ||
	    from->end == NULL || to->end == NULL)
		return "before the connections stand";
	if (from->receiving)
		return "while a receive stands";
	if (to->unsent > 0)
		return "while something is unsent";
	if (to->fin_wanted)
		return "after io_shutdown";
	if (from->splice_to != NULL || to->spliced_from != NULL)
		return "of what is spliced already";
	return NULL;
}

void io_splice(struct io *io, io_handle from, io_handle to)
{
	struct sock *source = sock_of(io, from, "io_splice");
	struct sock *sink = sock_of(io, to, "io_splice");

	if (source == NULL || sink == NULL)
		return;
	const char *fault = splice_fault(source, sink);

	if (fault != NULL) {
		sim_violation(io->sim, "io_splice %s", fault);
		return;
	}
	source->splice_to = sink;
	sink->spliced_from = source;
	source->held = sim_grow(NULL, SPLICE_HELD_MAX);
	touch(source);
}

static void give_up(struct io *io, io_handle socket, bool reset,
		    const char *call)
{
	struct sock *s = sock_of(io, socket, call);

	if (s == NULL)
		return;
	if (s->end != NULL)
		sim_trace(io->sim, "io%u: %s of conn %u", io->worker, call,
			  sim_end_number(s->end));
	note_end(s);
	sock_release(s, reset);
	s->state = SOCK_CLOSING;
	s->close_in = sim_between(io->sim, 1, CLOSE_BATCHES_MAX);
	touch(s);
}

void io_close(struct io *io, io_handle socket)
{
	give_up(io, socket, false, "io_close");
}

void io_abort(struct io *io, io_handle socket)
{
	give_up(io, socket, true, "io_abort");
}

/* --- completions --- */

static struct entry *emit(struct sock *s, enum io_kind kind, int result)
{
	struct io *io = s->io;

	if (io->batch_len == io->batch_max) {
		io->batch_max = io->batch_max == 0 ? 64 : io->batch_max * 2;
		io->batch = sim_grow(io->batch,
				     io->batch_max * sizeof(*io->batch));
	}
	struct entry *e = &io->batch[io->batch_len++];
	*e = (struct entry){
		.event = { .kind = kind, .result = result },
		.at = (uint32_t)(s - io->socks),
		.generation = s->generation,
	};
	e->event.socket = handle_of(s);
	return e;
}

static int accept_failure(struct sock *s)
{
	if (s->io->free_len == 0)
		return -EMFILE;
	if (s->backlog[0] == NULL ||
	    !sim_chance(s->io->sim, sim_faults(s->io->sim)->accept_error))
		return 0;
	static const int errors[] = { EMFILE, ENFILE, ENOBUFS, ENOMEM };
	return -errors[sim_below(s->io->sim, 4)];
}

static void gather_accepts(struct sock *s)
{
	struct io *io = s->io;

	while (s->backlog_len > 0 && s->rest.index == 0) {
		int failure = accept_failure(s);

		if (failure != 0) {
			emit(s, IO_ACCEPTED, failure)->event.socket = 0;
			sim_timer_set(io->sim, &s->rest,
				      sim_now_us(io->sim) + REST_US);
			return;
		}
		struct sock *fresh = sock_new(io, SOCK_OPEN, NULL);
		fresh->end = s->backlog[0];
		fresh->accepted = true;
		memmove(s->backlog, s->backlog + 1,
			--s->backlog_len * sizeof(struct sim_end *));
		sim_end_adopt(fresh->end, on_end, fresh);
		sim_trace(io->sim, "io%u: accepts conn %u as socket %u",
			  io->worker, sim_end_number(fresh->end),
			  (unsigned)(handle_of(fresh) & UINT32_MAX));
		emit(s, IO_ACCEPTED, 0)->event.socket = handle_of(fresh);
	}
}

static bool gather_receive(struct sock *s)
{
	struct io *io = s->io;
	struct sim *sim = io->sim;
	size_t can = sim_end_readable(s->end);
	struct pool *pool = &io->pools[s->pool];

	if (can == 0) {
		if (!sim_end_at_fin(s->end) && !sim_end_is_reset(s->end))
			return false;
		s->receiving = false;
		emit(s, IO_RECEIVED,
		     sim_end_is_reset(s->end) ? -ECONNRESET : 0);
		return false;
	}
	if (pool->free_count <= pool->count / 8) {
		starve(s, true);
		return false;
	}
	struct io_buf *pub = buf_take(io, s->pool);
	if (can > pub->room)
		can = pub->room;
	if (sim_chance(sim, sim_faults(sim)->cut))
		can = sim_between(sim, 1, (uint32_t)can);
	pub->len = (uint32_t)sim_end_read(s->end, pub->data, can);
	pub->room -= pub->len;
	s->credit -= pub->len < s->credit ? pub->len : s->credit;
	s->receiving = s->credit > 0;
	struct entry *e = emit(s, IO_RECEIVED, (int)pub->len);
	e->event.buf = pub;
	e->event.more = s->receiving;
	return s->receiving;
}

/* A new send: a few of the buffers, as one vector. */
static void send_begin(struct sock *s)
{
	unsigned left = sim_between(s->io->sim, 1, BUFFERS_A_SEND);

	for (struct io_buf *pub = s->out; pub != NULL && left > 0; left--) {
		s->sending += pub->len;
		pub = pub->next;
	}
	s->sending_left = s->sending;
}

/* What is queued is gone. */
static void send_failed(struct sock *s)
{
	size_t lost = 0;

	for (const struct io_buf *pub = s->out; pub != NULL; pub = pub->next)
		lost += pub->len;
	lost += s->sending - s->sending_left;
	out_drop(s);
	emit(s, IO_SENT, sim_chance(s->io->sim, 500) ? -EPIPE : -ECONNRESET)
		->octets = lost;
}

/* Move octets of the send under way; true: the window still takes some. */
static bool send_move(struct sock *s)
{
	struct io *io = s->io;
	struct io_buf *pub = s->out;
	struct buf *b = buf_of(io, pub);
	uint32_t want = pub->len;

	if (want > s->sending_left)
		want = (uint32_t)s->sending_left;
	if (want > 1 && sim_chance(io->sim, sim_faults(io->sim)->cut))
		want = sim_between(io->sim, 1, want);
	ASAN_UNPOISON_MEMORY_REGION(b->base, buffer_size[pub->pool]);
	size_t sent = sim_end_write(s->end, pub->data, want);
	ASAN_POISON_MEMORY_REGION(b->base, buffer_size[pub->pool]);
	if (sent > 0)
		s->quiet_since_us = sim_now_us(io->sim);
	pub->data += sent;
	pub->len -= (uint32_t)sent;
	s->sending_left -= sent;
	if (pub->len == 0) {
		s->out = pub->next;
		if (s->out == NULL)
			s->out_last = NULL;
		buf_home(io, b);
	}
	return sent > 0;
}

/* Returns whether the send goes on by itself in the next batch. */
static bool gather_send(struct sock *s)
{
	struct sim *sim = s->io->sim;

	if (s->out != NULL && sim_end_is_reset(s->end)) {
		send_failed(s);
		return false;
	}
	if (s->out != NULL && s->sending == 0)
		send_begin(s);
	while (s->sending_left > 0) {
		if (!send_move(s))
			return false;
		/* A short send: the rest is asked for again. */
		if (s->sending_left > 0 &&
		    sim_chance(sim, sim_faults(sim)->cut))
			return true;
	}
	if (s->sending > 0) {
		emit(s, IO_SENT, (int)s->sending)->octets = s->sending;
		s->sending = 0;
		return true;
	}
	if (s->fin_wanted && !s->fin_done && s->out == NULL) {
		s->fin_done = true;
		if (!sim_end_is_reset(s->end))
			sim_end_fin(s->end);
	}
	return false;
}

static void splice_tell(struct sock *s, int result, bool by_to)
{
	struct entry *e = emit(s, IO_SPLICED, result);

	e->event.by_to = by_to;
	e->splice_serial = s->splice_serial;
	if (result <= 0)
		s->splice_over = true;
}

/* Into the other socket; returns octets, fewer than there are if it is full. */
static size_t splice_drain(struct sock *s)
{
	struct sock *to = s->splice_to;
	size_t sent = sim_end_write(to->end, s->held + s->held_at,
				    s->held_len - s->held_at);

	s->held_at += sent;
	if (sent > 0)
		to->quiet_since_us = sim_now_us(s->io->sim);
	return sent;
}

static void splice_fill(struct sock *s)
{
	struct sim *sim = s->io->sim;
	size_t can = sim_end_readable(s->end);

	if (can > SPLICE_HELD_MAX)
		can = SPLICE_HELD_MAX;
	if (can > 0 && sim_chance(sim, sim_faults(sim)->cut))
		can = sim_between(sim, 1, (uint32_t)can);
	s->held_at = 0;
	s->held_len = sim_end_read(s->end, s->held, can);
}

/* Nothing moves any more: because it is over?  A reset to is told at once. */
static void splice_ends(struct sock *s, bool left)
{
	if (left && sim_end_is_reset(s->splice_to->end))
		splice_tell(s, -EPIPE, true);
	else if (!left && sim_end_is_reset(s->end))
		splice_tell(s, -ECONNRESET, false);
	else if (!left && sim_end_at_fin(s->end))
		splice_tell(s, 0, false);
}

/* Returns whether there is more to do in the next batch. */
static bool gather_splice(struct sock *s)
{
	size_t moved = 0;
	bool more = true;

	if (sim_chance(s->io->sim, sim_faults(s->io->sim)->skip))
		return true;
	while (more && moved < SPLICE_A_BATCH) {
		if (s->held_at == s->held_len)
			splice_fill(s);
		size_t sent = splice_drain(s);

		moved += sent;
		more = sent > 0 && s->held_at == s->held_len;
	}
	if (moved > 0)
		splice_tell(s, (int)moved, false);
	if (!more)
		splice_ends(s, s->held_at < s->held_len);
	return more;
}

/* True: this socket is to be looked at again in the next batch. */
static bool gather_open(struct sock *s)
{
	struct sim *sim = s->io->sim;
	bool again = false;

	if (s->end == NULL)
		return false;
	if (sim_chance(sim, 500))
		again = gather_send(s);
	for (unsigned i = 0; s->receiving && i < RECEIVES_A_BATCH; i++) {
		if (sim_chance(sim, sim_faults(sim)->skip))
			again = true;
		else if (!gather_receive(s))
			break;
	}
	if (s->receiving && !s->starved &&
	    (sim_end_readable(s->end) > 0 || sim_end_at_fin(s->end) ||
	     sim_end_is_reset(s->end)))
		again = true;
	if (s->splice_to != NULL && !s->splice_over && gather_splice(s))
		again = true;
	return gather_send(s) || again;
}

static bool gather(struct sock *s)
{
	switch (s->state) {
	case SOCK_FREE:
		return false;
	case SOCK_LISTENING:
		gather_accepts(s);
		return false;
	case SOCK_CONNECTING:
		if (!s->connect_due)
			return false;
		emit(s, IO_CONNECTED, s->connect_result);
		s->state = SOCK_OPEN;
		return s->end != NULL;
	case SOCK_OPEN:
		return gather_open(s);
	case SOCK_CLOSING:
		if (s->close_in > 1) {
			s->close_in--;
			return true;
		}
		if (s->close_in == 1)
			emit(s, IO_CLOSED, 0);
		s->close_in = 0;
		return false;
	}
	return false;
}

/* Look at each socket that something happened to, in any order. */
static void gather_all(struct io *io)
{
	struct sim *sim = io->sim;
	uint32_t count = io->dirty_len;

	for (uint32_t i = count; i > 1; i--) {
		uint32_t j = sim_below(sim, i);
		uint32_t swap = io->dirty[i - 1];

		io->dirty[i - 1] = io->dirty[j];
		io->dirty[j] = swap;
	}
	uint32_t kept = 0;
	for (uint32_t i = 0; i < count; i++) {
		struct sock *s = &io->socks[io->dirty[i]];

		if (sim_chance(sim, sim_faults(sim)->skip) || gather(s))
			io->dirty[kept++] = io->dirty[i];
		else
			s->dirty = false;
	}
	/* Those touched meanwhile stand behind. */
	for (uint32_t i = count; i < io->dirty_len; i++)
		io->dirty[kept++] = io->dirty[i];
	io->dirty_len = kept;
}

int io_wait(struct io *io, int64_t deadline_ms)
{
	struct sim *sim = io->sim;

	if (io->batch_at < io->batch_len)
		sim_violation(sim, "io_wait with %zu events not pulled",
			      io->batch_len - io->batch_at);
	io->batch_len = io->batch_at = 0;
	io->now_ms = sim_now_us(sim) / SIM_MS + 1;
	io->deadline_ms = deadline_ms;
	io->timed_out = io->now_ms >= deadline_ms;
	if (sim_chance(sim, sim_faults(sim)->wall_jump))
		io->wall_off_ms = (int64_t)sim_below(sim, 172800000) - 86400000;
	if (io->woken) {
		io->woken = false;
		struct entry *e = emit(&io->socks[0], IO_WOKEN, 0);
		e->event.socket = 0;
	}
	gather_all(io);
	return 0;
}

/* May this event be delivered, and whom is it for? */
static bool deliver(struct io *io, struct entry *e)
{
	struct sock *s = &io->socks[e->at];

	if (e->event.kind == IO_WOKEN)
		return true;
	if (s->generation != e->generation)
		return false;
	if (s->state == SOCK_CLOSING && e->event.kind != IO_CLOSED)
		return false;
	if (e->event.kind == IO_SPLICED &&
	    (s->splice_to == NULL || s->splice_serial != e->splice_serial))
		return false;
	e->event.owner = s->owner;
	if (e->event.kind == IO_SPLICED && e->event.result <= 0)
		splice_dissolve(s);
	if (e->event.kind == IO_SENT) {
		assert(s->unsent >= e->octets);
		s->unsent -= e->octets;
	}
	if (e->event.kind == IO_CLOSED) {
		io->last_closed = *e;
		sock_free(s);
	}
	return true;
}

/* Nobody wants it any more. */
static void discard(struct io *io, struct entry *e)
{
	if (e->event.buf != NULL)
		io_buf_put(io, e->event.buf);
	if (e->event.kind != IO_ACCEPTED || e->event.socket == 0)
		return;
	struct sock *fresh = sock_find(io, e->event.socket);
	assert(fresh != NULL);
	sock_release(fresh, true);
	sock_free(fresh);
}

static void mix_event(struct io *io, const struct io_event *event)
{
	static const char *const names[] = {
		[IO_ACCEPTED] = "accepted", [IO_CONNECTED] = "connected",
		[IO_RECEIVED] = "received", [IO_SENT] = "sent",
		[IO_SPLICED] = "spliced",   [IO_CLOSED] = "closed",
		[IO_WOKEN] = "woken",
	};

	sim_mix(io->sim, (uint64_t)io->worker << 40 |
				 (uint64_t)event->kind << 32 |
				 (uint32_t)event->result);
	sim_mix(io->sim, event->socket);
	if (sim_traced(io->sim)) {
		sim_trace(io->sim, "io%u: %s socket %u.%u result %d%s",
			  io->worker, names[event->kind],
			  (unsigned)(event->socket & UINT32_MAX),
			  (unsigned)(event->socket >> 32), event->result,
			  event->more ? " more" : "");
	}
}

bool io_next(struct io *io, struct io_event *event)
{
	while (io->batch_at < io->batch_len) {
		struct entry *e = &io->batch[io->batch_at++];

		if (deliver(io, e)) {
			*event = e->event;
			mix_event(io, event);
			return true;
		}
		discard(io, e);
	}
	if (io->bugs.again != NULL && io->last_closed.event.socket != 0 &&
	    io->bugs.again(io->bugs.owner, io)) {
		*event = io->last_closed.event;
		event->kind = IO_RECEIVED;
		event->result = -ECONNRESET;
		io->last_closed.event.socket = 0;
		return true;
	}
	return false;
}

/* --- the simulation's side --- */

int64_t sim_io_due_us(const struct io *io)
{
	int64_t now_us = sim_now_us(io->sim);

	/* Behind a batch or a deadline, the next deadline is not known. */
	if (io->dirty_len > 0 || io->woken || io->batch_len > 0 ||
	    io->timed_out)
		return now_us;
	if (io->deadline_ms == INT64_MAX)
		return INT64_MAX;
	int64_t due_us = (io->deadline_ms - 1) * SIM_MS;
	return due_us > now_us ? due_us : now_us;
}

size_t sim_io_rows(const struct io *io, struct sim_io_row *rows,
		   size_t rows_max)
{
	size_t count = 0;

	for (uint32_t i = 0; i < io->socks_used; i++) {
		const struct sock *s = &io->socks[i];

		if (s->state == SOCK_FREE)
			continue;
		if (count < rows_max)
			row_fill(s, &rows[count]);
		count++;
	}
	return count;
}

uint64_t sim_io_changes(const struct io *io)
{
	return io->changes;
}

unsigned sim_io_buffers_out(const struct io *io)
{
	unsigned out = 0;

	for (unsigned i = 0; i < IO_POOLS; i++)
		out += io->pools[i].count - io->pools[i].free_count;
	return out;
}

size_t sim_io_connections(const struct io *io)
{
	size_t count = 0;

	for (uint32_t i = 0; i < io->socks_used; i++)
		count += io->socks[i].state == SOCK_CONNECTING ||
			 io->socks[i].state == SOCK_OPEN;
	return count;
}

size_t sim_io_delivered(const struct io *io)
{
	return io->batch_len;
}

void sim_io_bugs_set(struct io *io, const struct sim_io_bugs *bugs)
{
	io->bugs = *bugs;
}

io_handle sim_io_other(struct io *io, io_handle socket, bool accepted)
{
	for (uint32_t i = 0; i < io->socks_used; i++) {
		const struct sock *s = &io->socks[i];

		if (s->state == SOCK_OPEN && s->accepted == accepted &&
		    s->end != NULL && !s->fin_wanted && handle_of(s) != socket)
			return handle_of(s);
	}
	return 0;
}
