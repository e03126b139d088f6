#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/worker.h"
#include "tests/sim/sim_backend.h"
#include "tests/sim/sim_check.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_io.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_slots.h"

/*
 * A whole weir in a bottle, or several: their workers, unchanged, each over
 * its own simulated io, all in one thread, which of them is next decided by
 * the seed; the farm behind them; and the checkers that look after every
 * batch.
 *
 * storm.c fills it with whatever a seed brings, cases.c with one scripted
 * scene each, limits.c with more load than the farm can take.
 */

enum {
	WORLD_WEIRS_MAX = 4,
	WORLD_WORKERS_MAX = 3, /* of each weir */
	WORLD_BACKENDS_MAX = 8,
	WORLD_CLIENTS_MAX = 128,
	WORLD_CONFIG_MAX = 6000,
	WORLD_WHY_MAX = 1200,
};

/* Of the first weir; the others have their own, see world_listen_addr(). */
#define WORLD_LISTEN  "192.0.2.1"
#define WORLD_CONTROL "/run/weir-sim.sock"

struct world;

/* One weir: all that its workers share, and what is known of them. */
struct house {
	struct world *world;
	unsigned index;
	struct logger *logger;
	struct config *config;
	struct config *config_before; /* until all workers have left it */
	struct weir weir;
	void *admission_memory;
	struct io *ios[WORLD_WORKERS_MAX];
	unsigned idle_turns[WORLD_WORKERS_MAX];
	unsigned running; /* workers that have not ended */
	bool ended[WORLD_WORKERS_MAX];
	struct check_backend_limit backend_limits[WORLD_BACKENDS_MAX];
	struct check_limits limits;
	struct sim_slots slots;
};

struct world {
	struct sim *sim;
	struct check *check;
	struct house houses[WORLD_WEIRS_MAX];
	unsigned house_count;
	bool hushed; /* the limits are not to be checked: a case's own */
	struct sim_backend *backends[WORLD_BACKENDS_MAX];
	union sim_addr backend_addrs[WORLD_BACKENDS_MAX];
	unsigned backend_count;
	struct sim_client *clients[WORLD_CLIENTS_MAX];
	unsigned client_count;
	uint64_t turns;
	char unrest[160];
	/* A second pair of ears for the log; may be NULL. */
	sim_log_fn *log_fn;
	void *log_owner;
};

/*
 * Start weir.  config_text is a whole weir.ini; its backends are those at
 * world_backend_addr(), in that order.  Its certificates are those of
 * sim_tls_load.c: /sim/mx.pem, /sim/ca.pem.  False: the world says why.
 */
bool world_start(struct world *w, uint64_t seed,
		 const struct sim_faults *faults, const char *config_text,
		 unsigned workers, FILE *trace);
/*
 * One more weir before the same backends, with a config_text of its own.
 * Before the world turns.
 */
bool world_add_weir(struct world *w, const char *config_text, unsigned workers);
void world_free(struct world *w);

/* "10.0.0.1", port 25, and so on. */
union sim_addr world_backend_addr(unsigned index);
/* Where the weir of that number listens: "192.0.2.1", port 25, and so on. */
union sim_addr world_listen_addr(unsigned weir);

/* Let the world turn until that time, or until something is wrong. */
void world_run(struct world *w, int64_t until_us);
/* The same, until the question is answered with yes; false: it never was. */
bool world_run_until(struct world *w, int64_t until_us,
		     bool (*ask)(struct world *w));

/* Nobody talks to weir, and all that it holds is home. */
bool world_is_quiet(struct world *w);
/* What is not; words for a report. */
const char *world_unrest(struct world *w);
/* All clients have come to their end. */
bool world_clients_done(struct world *w);

/* Workers that have not ended, of all weirs. */
unsigned world_running(const struct world *w);

/* A new configuration of the first weir, as at a reload.  False: it is
 * refused. */
bool world_reload(struct world *w, const char *config_text);
/* As SIGTERM does, to all weirs. */
void world_drain_begin(struct world *w);
/* At once: nobody is told anything. */
void world_stop(struct world *w);
/* Drain; true: all weirs ended in time. */
bool world_drain(struct world *w, int64_t within_us);

/* Add what weirs have counted to the totals of the checkers. */
void world_count(struct world *w);

/* The books must balance: at the end, when all workers have ended. */
void world_check_books(struct world *w);

#endif
