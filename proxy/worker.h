#ifndef PROXY_WORKER_H
#define PROXY_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "balancer/backend.h"
#include "balancer/room.h"
#include "proxy/admission.h"
#include "proxy/stats.h"

/*
 * The one place that performs: events in from io.h, the pure parts asked,
 * requests out.
 *
 * One worker is one thread, one struct io and its own sessions.  What workers
 * share hangs off struct weir; each part's header says how it may be shared.
 * Worker 0 also probes the backends and serves the control socket.
 *
 *	worker.c          the loop, listeners, timers, draining
 *	worker_client.c   clients: accept, feed the session, do its plans
 *	worker_server.c   backend connections
 *	worker_bind.c     which one a session gets: new, kept, or to wait
 *	worker_room.c     the waiting room: who is next
 *	worker_hold.c     bodies held in memory, and given to a backend
 *	worker_tcp.c      mode = tcp: client and backend joined
 *	worker_tls.c      TLS between a socket and a conversation
 *	worker_proxy.c    PROXY headers and XCLIENT: who a client is
 *	worker_probe.c    health probes, changes of state
 *	worker_control.c  the control socket
 *	worker_reload.c   the farm as the configuration says
 *	worker_queue.c    octets waiting to be sent or read
 *	work.h            what these share
 */

struct config;
struct config_address;
struct config_backend;
struct config_tls_rules;
struct io;
struct tls_store;
struct worker;

enum {
	WEIR_WORKERS_MAX = 64,
	WEIR_ERROR_SIZE = 512,
	WEIR_BACKEND_ERROR_SIZE = 1024,
};

/* What all workers share; made by main (or the simulation), before them. */
struct weir {
	/*
	 * The configuration in force.  Replaced whole at a reload; the old
	 * one lives until every worker has `seen` the new one.
	 */
	const struct config *_Atomic config;
	struct farm *farm;
	struct admission *admission;
	struct room *room;
	void *room_memory;
	/* Contexts of listeners and backends; NULL: there is no TLS at all. */
	struct tls_store *tls;
	/* Of each worker: connections that nobody uses, and slots that are held
	 * while a body comes.  Whoever waits for a slot may have those. */
	_Atomic unsigned idle[WEIR_WORKERS_MAX];
	/* Connections, of all workers, that were parted from for their slots,
	 * which are not free yet: no more are than sessions wait. */
	_Atomic unsigned yielding;
	/* Grows when an operator has taken a backend out of service: then no
	 * worker keeps idle connections to it. */
	_Atomic unsigned retired;
	unsigned worker_count;
	struct worker *workers[WEIR_WORKERS_MAX]; /* set before any runs */
	struct stats stats[WEIR_WORKERS_MAX];     /* each worker its own */
	int64_t started_wall_ms;

	/*
	 * Pool sizes of each worker: sessions and backend connections at a
	 * time.  sessions is more than max_sessions, for those who are being
	 * refused.
	 */
	unsigned sessions_max;
	unsigned servers_max;

	/*
	 * Clients' connections and those to backends, of all workers.  Fewer
	 * than there are descriptors: probes, and above all an operator who
	 * wants to know what is going on, find some left.
	 */
	unsigned sockets_max;
	_Atomic unsigned sockets;

	_Atomic bool draining; /* set once; finish what is begun, then end */
	_Atomic bool stopping; /* set once: cut everything now */
	_Atomic bool failed;   /* a worker's ring broke: exit 1 */
	/* Set by a control command, acted on by main. */
	_Atomic bool reload_wanted;
};

/*
 * Make a worker and open its listeners (and for worker 0 the control socket).
 * NULL: error holds one line that says what is wrong and what to change.
 * The worker owns nothing of *weir, and does not own io.
 */
struct worker *worker_new(struct weir *weir, unsigned index, struct io *io,
			  char error[WEIR_ERROR_SIZE]);

/*
 * Wait for events, once, and deal with all of them.  False when the worker
 * has ended: weir is draining or stopping and its last session is gone, or
 * the ring broke (logged).
 */
bool worker_turn(struct worker *w);

/* Every session must be gone: worker_turn() said false.  *w becomes NULL. */
void worker_free(struct worker **w);

/* How limits are learned; before backends are added, and at a reload. */
void weir_set_limits(struct farm *farm, const struct config *config);

/*
 * What becomes of backends that relay for strangers; before the workers, and
 * at a reload.
 */
void weir_set_guard(struct farm *farm, const struct config *config);

/*
 * The waiting room as the configuration has it; before the workers.  False:
 * no memory.
 */
bool weir_open_room(struct weir *weir, const struct config *config);
void weir_close_room(struct weir *weir);
/* A reload.  More places than at the start want a restart. */
void weir_change_room(struct weir *weir, const struct config *config);

/* To wake it: the only use that others may make of it. */
struct io *worker_io(const struct worker *w);

/*
 * A new configuration with the same listeners, for worker 0, from any thread
 * but the workers': limits and backends change, and weir->config is the new
 * one.  The old one and its lists are free once each worker has seen the new.
 */
void worker_reload(struct worker *w, const struct config *config);

/*
 * Add a backend as the configuration has it; who adds one with TLS gives
 * weir->tls its context.
 */
enum farm_result weir_add_backend(struct farm *farm,
				  const struct config_backend *from,
				  int64_t now_ms);

/*
 * The same with its files: no session gets there before the context is in
 * force.  now_s is seconds since 1970 UTC.  False: error says why, and there
 * is no such backend.
 */
bool weir_join_backend(struct weir *weir, const struct config_backend *from,
		       const struct config_tls_rules *rules, int64_t now_ms,
		       int64_t now_s, char error[WEIR_BACKEND_ERROR_SIZE]);

/* farm_remove(), and its context goes too. */
enum farm_result weir_part_backend(struct weir *weir, uint16_t index);

/* "192.0.2.1:25", "[2001:db8::1]:25"; size: BACKEND_ADDRESS_MAX. */
void weir_address_text(const struct config_address *address, char *text,
		       size_t size);

/* The configuration that this worker's current turn uses. */
const struct config *worker_config_seen(const struct worker *w);

#endif
