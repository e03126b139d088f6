#include "tests/sim/sim_net.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
	CONNECT_TIMEOUT_US = 127 * SIM_SECOND, /* Linux, tcp_syn_retries 6 */
	NO_ROUTE_US = 3 * SIM_SECOND,          /* Linux gives up ARP */
	VIOLATION_MAX = 1024,
	PORT_FIRST = 1024,
	PORT_LAST = 60000,
};

/* A stretch of the stream that arrives at one time. */
struct segment {
	int64_t at_us;
	uint64_t upto; /* octets of the stream that have arrived with it */
	bool fin;
	bool rst;
};

/* One direction of a connection. */
struct pipe {
	struct sim_conn *conn;
	unsigned to;      /* the side that reads */
	uint8_t *ring;    /* window octets */
	uint32_t window;  /* octets under way and unread, at most */
	uint64_t put;     /* octets of the stream put in so far */
	uint64_t arrived; /* ... that the reader could have */
	uint64_t taken;   /* ... that it has */
	bool fin_put;     /* the writer ended its stream */
	bool fin_arrived;
	bool writer_waits;        /* it found no room */
	struct segment *segments; /* first..first+count of segments_max */
	size_t first, count, segments_max;
	struct sim_timer arrival;
	struct sim_timer room;
};

struct sim_end {
	struct sim_conn *conn;
	unsigned side;
	sim_end_fn *fn;
	void *owner;
	bool gone;       /* its owner gave it up */
	bool reset;      /* a reset has arrived */
	bool fin_wanted; /* behind what waits */
	uint8_t *wait;   /* wait_from..wait_len waits for room */
	size_t wait_from, wait_len, wait_max;
};

enum conn_state { CONN_ASKED, CONN_ANSWERED, CONN_OPEN, CONN_DEAD };

struct sim_conn {
	struct sim *sim;
	struct sim_conn *next, *prev;
	enum conn_state state;
	unsigned number;
	int failure; /* what connecting came to */
	bool faulted;
	bool muted;
	uint32_t latency_us;
	union sim_addr addr[2];
	struct sim_end end[2];
	struct pipe pipe[2]; /* pipe[n] leads to end[n] */
	struct sim_timer opening;
	struct sim_timer reaper;
	struct sim_timer fault;
	bool fault_mutes;
};

struct sim_listener {
	struct sim_listener *next, *prev;
	union sim_addr addr;
	sim_accept_fn *fn;
	void *owner;
};

struct sim {
	struct sim_faults faults;
	uint64_t chance[4];
	uint64_t hash;
	int64_t now_us;
	uint64_t seq;
	struct sim_timer **heap; /* from 1 */
	size_t heap_len, heap_max;
	struct sim_conn conns;         /* list head */
	struct sim_listener listeners; /* list head */
	unsigned conns_made;
	uint16_t port_next;
	FILE *trace;
	bool failed;
	bool starved;
	char violation[VIOLATION_MAX];
};

/* --- memory --- */

/*
 * Allocations under way that are our own.  Volatile, since compilers believe
 * that no allocator looks at it.
 */
static volatile unsigned excused;

void *sim_grow(void *old, size_t size)
{
	excused++;
	void *p = realloc(old, size);
	excused--;
	if (p == NULL) {
		fputs("weir-sim: out of memory\n", stderr);
		abort();
	}
	return p;
}

void *sim_zeroed(size_t size)
{
	return memset(sim_grow(NULL, size), 0, size);
}

bool sim_allocates(void)
{
	return excused > 0;
}

/* --- chance: xoshiro256** (Blackman, Vigna), seeded by splitmix64 --- */

static uint64_t rotate(uint64_t x, int by)
{
	return (x << by) | (x >> (64 - by));
}

uint64_t sim_random(struct sim *sim)
{
	uint64_t *s = sim->chance;
	uint64_t result = rotate(s[1] * 5, 7) * 9;
	uint64_t t = s[1] << 17;

	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = rotate(s[3], 45);
	return result;
}

static void seed_chance(struct sim *sim, uint64_t seed)
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t z = seed += 0x9e3779b97f4a7c15;

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
		z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
		sim->chance[i] = z ^ (z >> 31);
	}
}

uint32_t sim_below(struct sim *sim, uint32_t n)
{
	assert(n > 0);
	return (uint32_t)((sim_random(sim) >> 32) * n >> 32);
}

uint32_t sim_between(struct sim *sim, uint32_t low, uint32_t high)
{
	assert(low <= high);
	return low + sim_below(sim, high - low + 1);
}

bool sim_chance(struct sim *sim, unsigned per_mille)
{
	return per_mille > 0 && sim_below(sim, 1000) < per_mille;
}

/* --- time: a binary heap by (at_us, seq) --- */

static bool before(const struct sim_timer *a, const struct sim_timer *b)
{
	return a->at_us != b->at_us ? a->at_us < b->at_us : a->seq < b->seq;
}

static void heap_place(struct sim *sim, size_t at, struct sim_timer *t)
{
	sim->heap[at] = t;
	t->index = at;
}

static void heap_sift(struct sim *sim, size_t at, struct sim_timer *t)
{
	while (at > 1 && before(t, sim->heap[at / 2])) {
		heap_place(sim, at, sim->heap[at / 2]);
		at /= 2;
	}
	for (;;) {
		size_t child = 2 * at;

		if (child > sim->heap_len)
			break;
		if (child < sim->heap_len &&
		    before(sim->heap[child + 1], sim->heap[child]))
			child++;
		if (!before(sim->heap[child], t))
			break;
		heap_place(sim, at, sim->heap[child]);
		at = child;
	}
	heap_place(sim, at, t);
}

void sim_timer_clear(struct sim *sim, struct sim_timer *timer)
{
	size_t at = timer->index;

	if (at == 0)
		return;
	assert(sim->heap[at] == timer);
	timer->index = 0;
	struct sim_timer *last = sim->heap[sim->heap_len--];
	if (last != timer)
		heap_sift(sim, at, last);
}

void sim_timer_set(struct sim *sim, struct sim_timer *timer, int64_t at_us)
{
	assert(timer->fire != NULL);
	sim_timer_clear(sim, timer);
	timer->at_us = at_us > sim->now_us ? at_us : sim->now_us;
	timer->seq = sim->seq++;
	if (sim->heap_len + 2 > sim->heap_max) {
		sim->heap_max = sim->heap_max == 0 ? 256 : sim->heap_max * 2;
		sim->heap = sim_grow(
			sim->heap, sim->heap_max * sizeof(struct sim_timer *));
	}
	sim->heap_len++;
	heap_sift(sim, sim->heap_len, timer);
}

int64_t sim_now_us(const struct sim *sim)
{
	return sim->now_us;
}

int64_t sim_next_us(const struct sim *sim)
{
	return sim->heap_len > 0 ? sim->heap[1]->at_us : INT64_MAX;
}

void sim_pass(struct sim *sim, int64_t until_us)
{
	if (sim_next_us(sim) > until_us) {
		if (until_us > sim->now_us)
			sim->now_us = until_us;
		return;
	}
	struct sim_timer *t = sim->heap[1];
	if (t->at_us > sim->now_us)
		sim->now_us = t->at_us;
	sim_timer_clear(sim, t);
	t->fire(t->owner);
}

/* --- the trace --- */

void sim_mix(struct sim *sim, uint64_t value)
{
	uint64_t h = (sim->hash ^ value) * 0x9fb21c651e98df25;

	sim->hash = h ^ (h >> 32);
}

void sim_mix_octets(struct sim *sim, const void *data, size_t len)
{
	const uint8_t *p = data;

	sim_mix(sim, len);
	for (; len >= 8; len -= 8, p += 8) {
		uint64_t word;

		memcpy(&word, p, 8);
		sim_mix(sim, word);
	}
	uint64_t rest = 0;
	memcpy(&rest, p, len);
	sim_mix(sim, rest);
}

uint64_t sim_hash(const struct sim *sim)
{
	return sim->hash;
}

void sim_trace_to(struct sim *sim, FILE *out)
{
	sim->trace = out;
}

bool sim_traced(const struct sim *sim)
{
	return sim->trace != NULL;
}

void sim_trace(struct sim *sim, const char *format, ...)
{
	va_list args;

	if (sim->trace == NULL)
		return;
	fprintf(sim->trace, "%10.3f ", (double)sim->now_us / SIM_MS);
	va_start(args, format);
	vfprintf(sim->trace, format, args);
	va_end(args);
	fputc('\n', sim->trace);
}

void sim_trace_octets(struct sim *sim, const char *about, const void *data,
		      size_t len)
{
	const uint8_t *p = data;
	enum { SHOWN_MAX = 160 };

	if (sim->trace == NULL)
		return;
	fprintf(sim->trace, "%10.3f %s %zu \"", (double)sim->now_us / SIM_MS,
		about, len);
	for (size_t i = 0; i < len && i < SHOWN_MAX; i++) {
		if (p[i] == '\r')
			fputs("\\r", sim->trace);
		else if (p[i] == '\n')
			fputs("\\n", sim->trace);
		else if (p[i] < 0x20 || p[i] > 0x7e)
			fprintf(sim->trace, "\\x%02x", p[i]);
		else
			fputc(p[i], sim->trace);
	}
	fputs(len > SHOWN_MAX ? "\"...\n" : "\"\n", sim->trace);
}

void sim_violation(struct sim *sim, const char *format, ...)
{
	va_list args;
	char text[VIOLATION_MAX - 400];

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	sim_trace(sim, "VIOLATION: %s", text);
	if (sim->failed)
		return;
	sim->failed = true;
	snprintf(sim->violation, sizeof(sim->violation), "at %.3f ms: %s",
		 (double)sim->now_us / SIM_MS, text);
}

const char *sim_failed(const struct sim *sim)
{
	return sim->failed ? sim->violation : NULL;
}

void sim_starve(struct sim *sim)
{
	sim->starved = true;
}

bool sim_is_starved(const struct sim *sim)
{
	return sim->starved;
}

/* --- addresses --- */

union sim_addr sim_addr_make(const char *host, uint16_t port)
{
	union sim_addr a = { 0 };

	if (host[0] == '/') {
		a.un.sun_family = AF_UNIX;
		snprintf(a.un.sun_path, sizeof(a.un.sun_path), "%s", host);
	} else if (inet_pton(AF_INET, host, &a.in.sin_addr) == 1) {
		a.in.sin_family = AF_INET;
		a.in.sin_port = htons(port);
	} else {
		int ok = inet_pton(AF_INET6, host, &a.in6.sin6_addr);

		assert(ok == 1);
		a.in6.sin6_family = AF_INET6;
		a.in6.sin6_port = htons(port);
	}
	return a;
}

/* A sockaddr of whatever length its family has, as a value. */
static union sim_addr addr_copy(const struct sockaddr *addr)
{
	union sim_addr a = { 0 };

	if (addr->sa_family == AF_INET)
		memcpy(&a.in, addr, sizeof(a.in));
	else if (addr->sa_family == AF_INET6)
		memcpy(&a.in6, addr, sizeof(a.in6));
	else if (addr->sa_family == AF_UNIX)
		memcpy(&a.un, addr, sizeof(a.un));
	return a;
}

bool sim_addr_equal(const struct sockaddr *a, const struct sockaddr *b)
{
	union sim_addr x = addr_copy(a), y = addr_copy(b);

	if (x.sa.sa_family != y.sa.sa_family)
		return false;
	if (x.sa.sa_family == AF_INET)
		return x.in.sin_port == y.in.sin_port &&
		       x.in.sin_addr.s_addr == y.in.sin_addr.s_addr;
	if (x.sa.sa_family == AF_INET6)
		return x.in6.sin6_port == y.in6.sin6_port &&
		       memcmp(&x.in6.sin6_addr, &y.in6.sin6_addr, 16) == 0;
	return strncmp(x.un.sun_path, y.un.sun_path, sizeof(x.un.sun_path)) ==
	       0;
}

const char *sim_addr_text(const struct sockaddr *addr, char *buf, size_t size)
{
	union sim_addr a = addr_copy(addr);
	char host[INET6_ADDRSTRLEN] = "";

	if (a.sa.sa_family == AF_INET) {
		inet_ntop(AF_INET, &a.in.sin_addr, host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(a.in.sin_port));
	} else if (a.sa.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof(host));
		snprintf(buf, size, "[%s]:%u", host, ntohs(a.in6.sin6_port));
	} else {
		snprintf(buf, size, "%.60s", a.un.sun_path);
	}
	return buf;
}

/* --- pipes --- */

static void tell(struct sim_end *end, enum sim_what what, int err)
{
	if (!end->gone && end->fn != NULL)
		end->fn(end->owner, end, what, err);
}

static void conn_free(void *owner)
{
	struct sim_conn *c = owner;
	struct sim *sim = c->sim;

	for (unsigned i = 0; i < 2; i++) {
		sim_timer_clear(sim, &c->pipe[i].arrival);
		sim_timer_clear(sim, &c->pipe[i].room);
		free(c->pipe[i].ring);
		free(c->pipe[i].segments);
		free(c->end[i].wait);
	}
	sim_timer_clear(sim, &c->opening);
	sim_timer_clear(sim, &c->fault);
	sim_timer_clear(sim, &c->reaper);
	c->prev->next = c->next;
	c->next->prev = c->prev;
	free(c);
}

/*
 * Free the connection once nobody holds it and nothing is under way; by a
 * timer, because callers up the stack may still look at it.
 */
static void conn_reap(struct sim_conn *c)
{
	bool busy = c->end[0].wait_from < c->end[0].wait_len ||
		    c->end[1].wait_from < c->end[1].wait_len ||
		    c->pipe[0].count > 0 || c->pipe[1].count > 0 ||
		    c->opening.index != 0;

	if (!c->end[0].gone || !c->end[1].gone || c->reaper.index != 0)
		return;
	if (busy && c->state != CONN_DEAD && !c->muted)
		return;
	sim_timer_set(c->sim, &c->reaper, c->sim->now_us);
}

static struct segment *segment_add(struct pipe *p)
{
	if (p->first + p->count == p->segments_max) {
		if (p->first > p->segments_max / 2) {
			memmove(p->segments, p->segments + p->first,
				p->count * sizeof(*p->segments));
		} else {
			p->segments_max = p->segments_max == 0
						  ? 16
						  : p->segments_max * 2;
			struct segment *grown = sim_zeroed(
				p->segments_max * sizeof(*p->segments));

			if (p->count > 0)
				memcpy(grown, p->segments + p->first,
				       p->count * sizeof(*grown));
			free(p->segments);
			p->segments = grown;
		}
		p->first = 0;
	}
	return &p->segments[p->first + p->count++];
}

static void segment_send(struct pipe *p, bool fin, bool rst)
{
	struct sim *sim = p->conn->sim;
	uint32_t jitter = p->conn->latency_us / 4;
	int64_t at = sim->now_us + p->conn->latency_us +
		     (jitter > 0 ? sim_below(sim, jitter) : 0);

	if (p->count > 0) {
		const struct segment *last =
			&p->segments[p->first + p->count - 1];

		if (at < last->at_us)
			at = last->at_us;
	}
	*segment_add(p) = (struct segment){
		.at_us = at,
		.upto = p->put,
		.fin = fin,
		.rst = rst,
	};
	if (p->arrival.index == 0)
		sim_timer_set(sim, &p->arrival, p->segments[p->first].at_us);
}

static void ring_write(struct pipe *p, const uint8_t *data, size_t len)
{
	size_t at = p->put % p->window;
	size_t run = p->window - at < len ? p->window - at : len;

	memcpy(p->ring + at, data, run);
	memcpy(p->ring, data + run, len - run);
	p->put += len;
}

static void ring_read(struct pipe *p, uint8_t *buf, size_t len)
{
	size_t at = p->taken % p->window;
	size_t run = p->window - at < len ? p->window - at : len;

	memcpy(buf, p->ring + at, run);
	memcpy(buf + run, p->ring, len - run);
	p->taken += len;
}

/* The connection is no more: nothing arrives, nothing can be written. */
static void conn_kill(struct sim_conn *c)
{
	c->state = CONN_DEAD;
	for (unsigned i = 0; i < 2; i++) {
		sim_timer_clear(c->sim, &c->pipe[i].arrival);
		sim_timer_clear(c->sim, &c->pipe[i].room);
		c->pipe[i].count = 0;
		c->end[i].wait_from = c->end[i].wait_len = 0;
	}
	sim_timer_clear(c->sim, &c->fault);
}

static void reset_arrives(struct sim_end *end)
{
	struct sim_conn *c = end->conn;
	struct pipe *p = &c->pipe[end->side];

	conn_kill(c);
	end->reset = true;
	if (sim_chance(c->sim, c->sim->faults.rst_loses))
		p->taken = p->arrived;
	if (sim_traced(c->sim))
		sim_trace(c->sim, "net: conn %u RST reaches side %u", c->number,
			  end->side);
	tell(end, SIM_RST, ECONNRESET);
}

/* Something came for an end that is gone: TCP answers with a reset. */
static void reset_back(struct sim_conn *c, unsigned from)
{
	struct pipe *back = &c->pipe[!from];

	if (c->end[!from].gone) {
		conn_kill(c);
		return;
	}
	segment_send(back, false, true);
}

static void pipe_arrival(void *owner)
{
	struct pipe *p = owner;
	struct sim_conn *c = p->conn;
	struct sim_end *end = &c->end[p->to];
	struct segment seg = p->segments[p->first];

	assert(p->count > 0);
	p->first++;
	p->count--;
	if (p->count > 0)
		sim_timer_set(c->sim, &p->arrival, p->segments[p->first].at_us);
	if (c->muted)
		return;
	bool more = seg.upto > p->arrived;
	p->arrived = seg.upto;
	if (seg.rst) {
		reset_arrives(end);
	} else if (end->gone) {
		p->taken = p->arrived;
		if (more)
			reset_back(c, p->to);
	} else {
		if (seg.fin)
			p->fin_arrived = true;
		tell(end, seg.fin ? SIM_FIN : SIM_DATA, 0);
	}
	conn_reap(c);
}

/* What waits goes out as the window opens; FIN behind it. */
static void end_pump(struct sim_end *end)
{
	struct sim_conn *c = end->conn;
	struct pipe *p = &c->pipe[!end->side];

	if (c->state != CONN_OPEN)
		return;
	if (end->wait_from < end->wait_len) {
		end->wait_from += sim_end_write(end, end->wait + end->wait_from,
						end->wait_len - end->wait_from);
		if (end->wait_from < end->wait_len)
			return;
		end->wait_from = end->wait_len = 0;
	}
	if (end->fin_wanted && !p->fin_put) {
		p->fin_put = true;
		segment_send(p, true, false);
	}
}

static void pipe_room(void *owner)
{
	struct pipe *p = owner;
	struct sim_conn *c = p->conn;
	struct sim_end *writer = &c->end[!p->to];

	if (c->muted)
		return;
	p->writer_waits = false;
	end_pump(writer);
	tell(writer, SIM_ROOM, 0);
	conn_reap(c);
}

static void fault_strikes(void *owner)
{
	struct sim_conn *c = owner;

	if (c->fault_mutes)
		sim_end_mute(&c->end[0]);
	else
		sim_end_break(&c->end[0]);
}

/* --- connecting --- */

static bool addr_is_any(const union sim_addr *a)
{
	if (a->sa.sa_family == AF_INET)
		return a->in.sin_addr.s_addr == INADDR_ANY;
	return a->sa.sa_family == AF_INET6 &&
	       memcmp(&a->in6.sin6_addr, &in6addr_any, 16) == 0;
}

static bool listener_matches(const struct sim_listener *l,
			     const union sim_addr *a)
{
	union sim_addr probe = *a;

	if (addr_is_any(&l->addr) && l->addr.sa.sa_family == a->sa.sa_family) {
		if (a->sa.sa_family == AF_INET)
			probe.in.sin_addr = l->addr.in.sin_addr;
		else
			probe.in6.sin6_addr = l->addr.in6.sin6_addr;
	}
	return sim_addr_equal(&l->addr.sa, &probe.sa);
}

static struct sim_listener *listener_find(struct sim *sim,
					  const union sim_addr *a)
{
	struct sim_listener *found = NULL;
	unsigned seen = 0;

	for (struct sim_listener *l = sim->listeners.next; l != &sim->listeners;
	     l = l->next) {
		if (!listener_matches(l, a))
			continue;
		seen++;
		/* SO_REUSEPORT: any of them, with the same chance. */
		if (seen == 1 || sim_below(sim, seen) == 0)
			found = l;
	}
	return found;
}

static void conn_fault_plan(struct sim_conn *c)
{
	struct sim *sim = c->sim;
	bool breaks = sim_chance(sim, sim->faults.reset);
	bool mutes = sim_chance(sim, sim->faults.blackhole);

	if (c->addr[1].sa.sa_family == AF_UNIX || (!breaks && !mutes))
		return;
	c->fault_mutes = !breaks;
	sim_timer_set(sim, &c->fault,
		      sim->now_us + sim_below(sim, 2 * SIM_SECOND));
}

static void conn_asks(struct sim_conn *c)
{
	struct sim *sim = c->sim;
	struct sim_listener *l = listener_find(sim, &c->addr[1]);
	enum sim_answer answer = l == NULL ? SIM_REFUSE
					   : l->fn(l->owner, &c->end[1]);
	int64_t at = sim->now_us + c->latency_us;

	c->state = CONN_ANSWERED;
	switch (answer) {
	case SIM_TAKE:
		c->failure = 0;
		c->state = CONN_OPEN;
		conn_fault_plan(c);
		break;
	case SIM_REFUSE:
		c->failure = ECONNREFUSED;
		break;
	case SIM_DROP:
		c->failure = ETIMEDOUT;
		at = sim->now_us + CONNECT_TIMEOUT_US;
		break;
	case SIM_NO_ROUTE:
		c->failure = EHOSTUNREACH;
		at = sim->now_us + NO_ROUTE_US;
		break;
	}
	if (c->failure != 0)
		c->end[1].gone = true;
	sim_timer_set(sim, &c->opening, at);
}

static void conn_opening(void *owner)
{
	struct sim_conn *c = owner;

	if (c->state == CONN_ASKED) {
		if (c->end[0].gone) { /* its caller has lost patience */
			c->end[1].gone = true;
			conn_kill(c);
			conn_reap(c);
			return;
		}
		conn_asks(c);
		return;
	}
	if (c->failure == 0) {
		tell(&c->end[0], SIM_OPEN, 0);
		if (!c->end[0].gone)
			end_pump(&c->end[0]);
	} else {
		c->state = CONN_DEAD;
		struct sim_end *end = &c->end[0];

		if (!end->gone) {
			end->reset = true;
			tell(end, SIM_FAILED, c->failure);
			end->gone = true;
		}
	}
	conn_reap(c);
}

static void conn_init_pipe(struct sim_conn *c, unsigned to)
{
	struct sim *sim = c->sim;
	struct pipe *p = &c->pipe[to];

	p->conn = c;
	p->to = to;
	p->window = sim_between(sim, sim->faults.window_min,
				sim->faults.window_max);
	p->ring = sim_grow(NULL, p->window);
	p->arrival = (struct sim_timer){ .fire = pipe_arrival, .owner = p };
	p->room = (struct sim_timer){ .fire = pipe_room, .owner = p };
	c->end[to].conn = c;
	c->end[to].side = to;
}

struct sim_end *sim_connect(struct sim *sim, const struct sockaddr *addr,
			    const struct sockaddr *source, sim_end_fn *fn,
			    void *owner)
{
	struct sim_conn *c = sim_zeroed(sizeof(*c));
	uint16_t port = sim->port_next++;

	if (sim->port_next == PORT_LAST)
		sim->port_next = PORT_FIRST;
	c->sim = sim;
	c->number = ++sim->conns_made;
	c->latency_us = sim->faults.latency_us_max > 0
				? sim_below(sim, sim->faults.latency_us_max)
				: 0;
	c->addr[1] = addr_copy(addr);
	if (source != NULL)
		c->addr[0] = addr_copy(source);
	else if (addr->sa_family != AF_UNIX) {
		c->addr[0] = sim_addr_make(
			addr->sa_family == AF_INET ? "10.0.0.9" : "fd00::9", 0);
	} else {
		c->addr[0].sa.sa_family = AF_UNIX;
	}
	if (c->addr[0].sa.sa_family == AF_INET)
		c->addr[0].in.sin_port = htons(port);
	else if (c->addr[0].sa.sa_family == AF_INET6)
		c->addr[0].in6.sin6_port = htons(port);
	conn_init_pipe(c, 0);
	conn_init_pipe(c, 1);
	c->end[0].fn = fn;
	c->end[0].owner = owner;
	c->opening = (struct sim_timer){ .fire = conn_opening, .owner = c };
	c->fault = (struct sim_timer){ .fire = fault_strikes, .owner = c };
	c->reaper = (struct sim_timer){ .fire = conn_free, .owner = c };
	c->next = &sim->conns;
	c->prev = sim->conns.prev;
	c->prev->next = c->next->prev = c;
	sim_timer_set(sim, &c->opening, sim->now_us + c->latency_us);
	return &c->end[0];
}

struct sim_listener *sim_listen(struct sim *sim, const struct sockaddr *addr,
				sim_accept_fn *fn, void *owner)
{
	struct sim_listener *l = sim_zeroed(sizeof(*l));

	l->addr = addr_copy(addr);
	l->fn = fn;
	l->owner = owner;
	l->next = &sim->listeners;
	l->prev = sim->listeners.prev;
	l->prev->next = l->next->prev = l;
	return l;
}

void sim_unlisten(struct sim *sim, struct sim_listener *l)
{
	(void)sim; /* the list knows its head */
	l->prev->next = l->next;
	l->next->prev = l->prev;
	free(l);
}

bool sim_listens(const struct sim *sim, const struct sockaddr *addr)
{
	for (const struct sim_listener *l = sim->listeners.next;
	     l != &sim->listeners; l = l->next) {
		if (sim_addr_equal(&l->addr.sa, addr))
			return true;
	}
	return false;
}

/* --- ends --- */

void sim_end_adopt(struct sim_end *end, sim_end_fn *fn, void *owner)
{
	end->fn = fn;
	end->owner = owner;
}

size_t sim_end_readable(const struct sim_end *end)
{
	const struct pipe *p = &end->conn->pipe[end->side];

	return (size_t)(p->arrived - p->taken);
}

bool sim_end_at_fin(const struct sim_end *end)
{
	return end->conn->pipe[end->side].fin_arrived &&
	       sim_end_readable(end) == 0;
}

bool sim_end_is_reset(const struct sim_end *end)
{
	return end->reset;
}

size_t sim_end_read(struct sim_end *end, void *buf, size_t len)
{
	struct sim_conn *c = end->conn;
	struct pipe *p = &c->pipe[end->side];
	size_t can = sim_end_readable(end);

	assert(!end->gone);
	if (len > can)
		len = can;
	if (len == 0)
		return 0;
	ring_read(p, buf, len);
	if (p->writer_waits && p->room.index == 0 && c->state == CONN_OPEN)
		sim_timer_set(c->sim, &p->room, c->sim->now_us + c->latency_us);
	return len;
}

size_t sim_end_write(struct sim_end *end, const void *data, size_t len)
{
	struct sim_conn *c = end->conn;
	struct pipe *p = &c->pipe[!end->side];

	assert(!p->fin_put);
	if (c->state != CONN_OPEN)
		return 0;
	size_t room = p->window - (size_t)(p->put - p->taken);
	if (len > room) {
		len = room;
		p->writer_waits = true;
	}
	if (len == 0)
		return 0;
	ring_write(p, data, len);
	segment_send(p, false, false);
	sim_mix(c->sim, c->number);
	sim_mix_octets(c->sim, data, len);
	if (sim_traced(c->sim)) {
		char about[48];

		snprintf(about, sizeof(about), "net: conn %u %s", c->number,
			 end->side == 0 ? "-->" : "<--");
		sim_trace_octets(c->sim, about, data, len);
	}
	return len;
}

void sim_end_say(struct sim_end *end, const void *data, size_t len)
{
	assert(!end->gone);
	assert(!end->fin_wanted);
	if (end->conn->state == CONN_DEAD || len == 0)
		return;
	if (end->wait_len + len > end->wait_max) {
		end->wait_max = 2 * (end->wait_len + len);
		end->wait = sim_grow(end->wait, end->wait_max);
	}
	memcpy(end->wait + end->wait_len, data, len);
	end->wait_len += len;
	end_pump(end);
}

size_t sim_end_waiting(const struct sim_end *end)
{
	return end->wait_len - end->wait_from;
}

void sim_end_fin(struct sim_end *end)
{
	assert(!end->gone);
	end->fin_wanted = true;
	end_pump(end);
}

void sim_end_close(struct sim_end *end)
{
	struct sim_conn *c = end->conn;

	assert(!end->gone);
	if (c->state == CONN_OPEN && sim_end_readable(end) > 0) {
		sim_end_reset(end);
		return;
	}
	if (c->state == CONN_OPEN)
		sim_end_fin(end);
	end->gone = true;
	conn_reap(c);
}

void sim_end_reset(struct sim_end *end)
{
	struct sim_conn *c = end->conn;

	assert(!end->gone);
	end->gone = true;
	end->wait_from = end->wait_len = 0;
	end->fin_wanted = false;
	if (c->state == CONN_OPEN) {
		if (c->end[!end->side].gone)
			conn_kill(c);
		else
			segment_send(&c->pipe[!end->side], false, true);
	}
	conn_reap(c);
}

void sim_end_break(struct sim_end *end)
{
	struct sim_conn *c = end->conn;

	if (c->state != CONN_OPEN)
		return;
	c->faulted = true;
	sim_trace(c->sim, "net: conn %u breaks", c->number);
	conn_kill(c);
	c->end[0].reset = c->end[1].reset = true;
	tell(&c->end[0], SIM_RST, ECONNRESET);
	tell(&c->end[1], SIM_RST, ECONNRESET);
	conn_reap(c);
}

void sim_end_mute(struct sim_end *end)
{
	struct sim_conn *c = end->conn;

	if (c->state != CONN_OPEN)
		return;
	c->faulted = true;
	c->muted = true;
	sim_trace(c->sim, "net: conn %u falls silent", c->number);
	conn_reap(c);
}

bool sim_end_faulted(const struct sim_end *end)
{
	return end->conn->faulted;
}

const union sim_addr *sim_end_addr(const struct sim_end *end, unsigned side)
{
	assert(side < 2);
	return &end->conn->addr[side];
}

unsigned sim_end_number(const struct sim_end *end)
{
	return end->conn->number;
}

/* --- the world --- */

struct sim *sim_new(uint64_t seed, const struct sim_faults *faults)
{
	struct sim *sim = sim_zeroed(sizeof(*sim));

	assert(faults->window_min > 0);
	assert(faults->window_min <= faults->window_max);
	sim->faults = *faults;
	sim->conns.next = sim->conns.prev = &sim->conns;
	sim->listeners.next = sim->listeners.prev = &sim->listeners;
	sim->port_next = PORT_FIRST;
	sim->hash = seed;
	seed_chance(sim, seed);
	return sim;
}

void sim_free(struct sim **simp)
{
	struct sim *sim = *simp;

	if (sim == NULL)
		return;
	for (struct sim_conn *c = sim->conns.next, *next; c != &sim->conns;
	     c = next) {
		next = c->next;
		conn_free(c);
	}
	for (struct sim_listener *l = sim->listeners.next, *next;
	     l != &sim->listeners; l = next) {
		next = l->next;
		sim_unlisten(sim, l);
	}
	free(sim->heap);
	free(sim);
	*simp = NULL;
}

const struct sim_faults *sim_faults(const struct sim *sim)
{
	return &sim->faults;
}

void sim_faults_set(struct sim *sim, const struct sim_faults *faults)
{
	sim->faults = *faults;
}
