#ifndef SIM_NET_H
#define SIM_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * The world below io.h: virtual time, a seeded source of chance, and one
 * network of octet pipes with latency and windows.
 *
 * Everything that happens is a timer, and timers fire in the order of their
 * time and of their setting, so a seed decides all.  Whatever passes is mixed
 * into one hash, the trace.  Nothing here knows SMTP or io.h.
 *
 * One thread.  Callbacks may call back into this header.
 */

struct sim;
struct sim_end;
struct sim_listener;

enum { SIM_MS = 1000, SIM_SECOND = 1000 * 1000 };

/* How rough the world is.  Chances are per mille. */
struct sim_faults {
	unsigned cut;            /* a receive gets less than there is */
	unsigned skip;           /* a completion comes a batch later */
	unsigned no_buffer;      /* io_buf_get() finds nothing */
	unsigned accept_error;   /* the kernel refuses an accept */
	unsigned connect_error;  /* io_connect() fails at once */
	unsigned reset;          /* a connection breaks at some time */
	unsigned blackhole;      /* a connection falls silent at some time */
	unsigned rst_loses;      /* a reset takes unread octets with it */
	unsigned wall_jump;      /* the wall clock jumps at an io_wait() */
	uint32_t latency_us_max; /* one way, 0 or more */
	uint32_t window_min;     /* octets under way and unread, 1 or more */
	uint32_t window_max;
};

struct sim_timer {
	int64_t at_us;
	uint64_t seq;
	size_t index; /* place in the heap, 0: not set */
	void (*fire)(void *owner);
	void *owner;
};

union sim_addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
};

struct sim *sim_new(uint64_t seed, const struct sim_faults *faults);
void sim_free(struct sim **sim);
const struct sim_faults *sim_faults(const struct sim *sim);
void sim_faults_set(struct sim *sim, const struct sim_faults *faults);

/* --- memory of the simulation's own: no allocation of the product's --- */

void *sim_grow(void *old, size_t size);
void *sim_zeroed(size_t size);
/* Is one of those two at work? */
bool sim_allocates(void);

/* --- chance: the seed's, or (aside) one that leaves the seed's alone --- */

uint64_t sim_random(struct sim *sim);
/* 0..n-1; n is 1 or more. */
uint32_t sim_below(struct sim *sim, uint32_t n);
/* low..high, both included. */
uint32_t sim_between(struct sim *sim, uint32_t low, uint32_t high);
bool sim_chance(struct sim *sim, unsigned per_mille);

/* --- time --- */

int64_t sim_now_us(const struct sim *sim);
void sim_timer_set(struct sim *sim, struct sim_timer *timer, int64_t at_us);
void sim_timer_clear(struct sim *sim, struct sim_timer *timer);
/* When the next timer is due; INT64_MAX: there is none. */
int64_t sim_next_us(const struct sim *sim);
/* Let time pass until until_us and fire what is due, one timer at most. */
void sim_pass(struct sim *sim, int64_t until_us);

/* --- the trace, and what went wrong --- */

void sim_mix(struct sim *sim, uint64_t value);
void sim_mix_octets(struct sim *sim, const void *data, size_t len);
uint64_t sim_hash(const struct sim *sim);
/* Where a readable trace goes, or NULL. */
void sim_trace_to(struct sim *sim, FILE *out);
bool sim_traced(const struct sim *sim);
void sim_trace(struct sim *sim, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void sim_trace_octets(struct sim *sim, const char *about, const void *data,
		      size_t len);
/* A checker speaks.  The first violation is kept; the run should end. */
void sim_violation(struct sim *sim, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* NULL: nothing went wrong. */
const char *sim_failed(const struct sim *sim);

/* Has something once been wanted of the world that it did not have? */
void sim_starve(struct sim *sim);
bool sim_is_starved(const struct sim *sim);

/* --- the network --- */

enum sim_what {
	SIM_OPEN,   /* the connection stands (for who connected) */
	SIM_FAILED, /* it does not: err; the end is gone */
	SIM_DATA,   /* there is more to read */
	SIM_ROOM,   /* there is room to write again */
	SIM_FIN,    /* the other side ended its stream */
	SIM_RST,    /* the connection is reset; only close is left to do */
};
typedef void sim_end_fn(void *owner, struct sim_end *end, enum sim_what what,
			int err);

enum sim_answer {
	SIM_TAKE,    /* the connection stands; the end is the listener's */
	SIM_REFUSE,  /* ECONNREFUSED */
	SIM_DROP,    /* silence; ETIMEDOUT in the end */
	SIM_NO_ROUTE /* EHOSTUNREACH */
};
/* A connection asks to come in.  TAKE: adopt the end within the call. */
typedef enum sim_answer sim_accept_fn(void *owner, struct sim_end *end);

/* Several listeners may share an address: each connection goes to one. */
struct sim_listener *sim_listen(struct sim *sim, const struct sockaddr *addr,
				sim_accept_fn *fn, void *owner);
void sim_unlisten(struct sim *sim, struct sim_listener *listener);
/* Does somebody listen at exactly this address? */
bool sim_listens(const struct sim *sim, const struct sockaddr *addr);

/* source may be NULL.  The answer comes as SIM_OPEN or SIM_FAILED. */
struct sim_end *sim_connect(struct sim *sim, const struct sockaddr *addr,
			    const struct sockaddr *source, sim_end_fn *fn,
			    void *owner);
void sim_end_adopt(struct sim_end *end, sim_end_fn *fn, void *owner);

/* Octets that can be read now. */
size_t sim_end_readable(const struct sim_end *end);
/* Has the stream ended, with all of it read?  Has it been reset? */
bool sim_end_at_fin(const struct sim_end *end);
bool sim_end_is_reset(const struct sim_end *end);
size_t sim_end_read(struct sim_end *end, void *buf, size_t len);
/* As much as the window takes: 0 when it is full or nobody listens. */
size_t sim_end_write(struct sim_end *end, const void *data, size_t len);
/* All of it: what the window does not take waits in the end. */
void sim_end_say(struct sim_end *end, const void *data, size_t len);
size_t sim_end_waiting(const struct sim_end *end);
/* End our stream, behind what waits. */
void sim_end_fin(struct sim_end *end);
/*
 * Both give the end up.  Closing sends what waits, then FIN; if something is
 * unread, or comes later, a reset, as TCP does (RFC 2525, section 2.17).
 */
void sim_end_close(struct sim_end *end);
void sim_end_reset(struct sim_end *end);
/* Break the connection now, or let it fall silent, for both ends. */
void sim_end_break(struct sim_end *end);
void sim_end_mute(struct sim_end *end);
/* Was this connection broken or muted by the network? */
bool sim_end_faulted(const struct sim_end *end);
/* Whom it connects: who asked (0) and who was asked (1). */
const union sim_addr *sim_end_addr(const struct sim_end *end, unsigned side);
/* A number of the connection, for traces. */
unsigned sim_end_number(const struct sim_end *end);

/* --- addresses --- */

/* "192.0.2.1", 25 or "2001:db8::1", 25 or "/run/weir.sock". */
union sim_addr sim_addr_make(const char *host, uint16_t port);
bool sim_addr_equal(const struct sockaddr *a, const struct sockaddr *b);
/* Text, NUL at its end; size 64 or more.  Returns buf. */
const char *sim_addr_text(const struct sockaddr *addr, char *buf, size_t size);

#endif
