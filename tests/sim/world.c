#include "tests/sim/world.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "balancer/balancer.h"
#include "health/health.h"
#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "tests/sim/sim_heap.h"
#include "tests/sim/sim_tls.h"

enum {
	IDLE_TURNS_MAX = 2000,             /* in a row, without an event */
	TURN_US_MAX = 60,                  /* what a turn takes */
	REFUSED_SPARE = WORLD_CLIENTS_MAX, /* places for who is being refused */
	OPERATORS = 16,
	WALL_BASE_S = 1750000000, /* when worlds begin; sim_io.c */
};

static struct farm *make_farm_memory(void)
{
	struct farm *farm = calloc(1, sizeof(*farm));

	if (farm == NULL)
		abort();
	return farm;
}

static bool make_farm(struct house *h)
{
	const struct config_health *health = &h->config->health;
	struct health_policy policy = health_policy_default();

	policy.probe = health->probe;
	policy.interval_ms = health->interval_ms;
	policy.down_interval_ms = health->down_interval_ms;
	policy.rise = health->rise;
	policy.fall = health->fall;
	policy.passive_fall = health->passive_fall;
	policy.eject_ms = health->eject_ms;
	policy.eject_max_ms = health->eject_max_ms;
	policy.max_ejected_percent = health->max_ejected_percent;
	policy.busy_hold_ms = health->busy_hold_ms;
	h->weir.farm = make_farm_memory();
	farm_init(h->weir.farm, &policy);
	weir_set_limits(h->weir.farm, h->config);
	weir_set_guard(h->weir.farm, h->config);
	h->limits.backends = h->backend_limits;
	h->limits.backend_count = h->config->backend_count;
	assert(h->config->backend_count <= WORLD_BACKENDS_MAX);
	for (unsigned i = 0; i < h->config->backend_count; i++) {
		const struct config_backend *b = &h->config->backends[i];

		h->backend_limits[i] = (struct check_backend_limit){
			.addr = &h->world->backend_addrs[i].sa,
			.max_sessions = b->max_sessions,
		};
		char error[WEIR_BACKEND_ERROR_SIZE];

		if (!weir_join_backend(&h->weir, b, &h->config->tls, 1,
				       WALL_BASE_S, error)) {
			sim_violation(h->world->sim, "backend %s: %s", b->name,
				      error);
			return false;
		}
	}
	return true;
}

/* Read the certificates that it names.  False: the world says why. */
static bool load_tls(struct house *h, const struct config *config)
{
	struct config_report *report = config_report_new();

	if (report == NULL)
		abort();
	bool good = tls_store_load(h->weir.tls, config, WALL_BASE_S, report);
	if (!good)
		sim_violation(h->world->sim, "certificates: %s",
			      report->errors[0].text);
	config_report_free(&report);
	return good;
}

static void make_admission(struct house *h)
{
	static const uint8_t key[ADMISSION_KEY_LEN] = { 1, 2, 3 };
	const struct admission_config *limits = &h->config->admission.limits;
	size_t size = admission_size(limits);

	size = (size + ADMISSION_ALIGN - 1) / ADMISSION_ALIGN * ADMISSION_ALIGN;
	h->admission_memory = aligned_alloc(ADMISSION_ALIGN, size);
	if (h->admission_memory == NULL)
		abort();
	h->weir.admission = admission_init(h->admission_memory, limits, key);
	h->limits.max_sessions = limits->max_sessions;
	h->limits.max_per_source = limits->max_per_source;
}

static void on_log(void *owner, unsigned worker, int level, const char *text,
		   size_t len)
{
	struct house *h = owner;
	struct world *w = h->world;

	check_log(w->check, text, len);
	if (w->log_fn != NULL)
		w->log_fn(w->log_owner, worker, level, text, len);
}

static bool make_workers(struct house *h, unsigned workers)
{
	char error[WEIR_ERROR_SIZE];
	struct weir *weir = &h->weir;

	weir->config = h->config;
	weir->worker_count = workers;
	weir->sessions_max = h->config->admission.limits.max_sessions +
			     REFUSED_SPARE;
	weir->servers_max = weir->sessions_max;
	weir->sockets_max = workers * (weir->sessions_max + weir->servers_max);
	for (unsigned i = 0; i < workers; i++) {
		struct io_config config = {
			.sockets_max = weir->sessions_max + weir->servers_max +
				       2 * OPERATORS + h->config->backend_count,
			.buffers = { h->config->weir.small_buffers,
				     h->config->weir.big_buffers, 32, 32 },
			.worker = i,
			.logger = h->logger,
		};

		h->ios[i] = io_open(&config, error);
		weir->workers[i] = worker_new(weir, i, h->ios[i], error);
		if (weir->workers[i] == NULL) {
			sim_violation(h->world->sim, "worker_new: %s", error);
			return false;
		}
	}
	h->slots = (struct sim_slots){
		.sim = h->world->sim,
		.farm = weir->farm,
		.room = weir->room,
		.ios = h->ios,
		.io_count = workers,
	};
	h->running = workers;
	return true;
}

static struct config *parse(struct sim *sim, const char *text)
{
	struct config_report *report = config_report_new();

	if (report == NULL)
		abort();
	struct config *config = config_parse_text(text, strlen(text), "sim",
						  report);
	if (config == NULL)
		sim_violation(sim, "configuration: %s", report->errors[0].text);
	config_report_free(&report);
	return config;
}

bool world_add_weir(struct world *w, const char *config_text, unsigned workers)
{
	assert(workers >= 1);
	assert(workers <= WORLD_WORKERS_MAX);
	assert(w->house_count < WORLD_WEIRS_MAX);
	struct house *h = &w->houses[w->house_count];
	*h = (struct house){ .world = w, .index = w->house_count++ };
	h->logger = sim_logger_new(w->sim, on_log, h);
	h->config = parse(w->sim, config_text);
	if (h->config == NULL)
		return false;
	h->weir.tls = tls_store_new();
	if (h->weir.tls == NULL)
		abort();
	if (!load_tls(h, h->config))
		return false;
	make_admission(h);
	if (h->config->backend_count > w->backend_count)
		w->backend_count = h->config->backend_count;
	return make_farm(h) && weir_open_room(&h->weir, h->config) &&
	       make_workers(h, workers);
}

bool world_start(struct world *w, uint64_t seed,
		 const struct sim_faults *faults, const char *config_text,
		 unsigned workers, FILE *trace)
{
	*w = (struct world){ .sim = sim_new(seed, faults) };
	sim_trace_to(w->sim, trace);
	sim_tls_enter(w->sim, seed);
	w->check = check_new(w->sim);
	for (unsigned i = 0; i < WORLD_BACKENDS_MAX; i++)
		w->backend_addrs[i] = world_backend_addr(i);
	return world_add_weir(w, config_text, workers);
}

static void house_free(struct house *h)
{
	weir_close_room(&h->weir);
	/*
	 * A worker that has not ended still has sessions: it is left to the
	 * end of the process.
	 */
	for (unsigned i = 0; i < h->weir.worker_count; i++) {
		if (h->ended[i] && h->weir.workers[i] != NULL)
			worker_free(&h->weir.workers[i]);
		io_free(&h->ios[i]);
	}
	if (h->weir.farm != NULL)
		farm_fini(h->weir.farm);
	free(h->weir.farm);
	tls_store_free(&h->weir.tls);
	if (h->weir.admission != NULL)
		admission_fini(h->weir.admission);
	free(h->admission_memory);
	config_free(&h->config);
	config_free(&h->config_before);
	sim_logger_free(&h->logger);
}

void world_free(struct world *w)
{
	for (unsigned i = 0; i < w->client_count; i++)
		sim_client_free(&w->clients[i]);
	for (unsigned i = 0; i < WORLD_BACKENDS_MAX; i++)
		sim_backend_free(&w->backends[i]);
	for (unsigned i = 0; i < w->house_count; i++)
		house_free(&w->houses[i]);
	check_free(&w->check);
	sim_tls_leave();
	sim_free(&w->sim);
}

union sim_addr world_backend_addr(unsigned index)
{
	char host[32];

	snprintf(host, sizeof(host), "10.0.0.%u", index + 1);
	return sim_addr_make(host, 25);
}

union sim_addr world_listen_addr(unsigned weir)
{
	char host[32];

	snprintf(host, sizeof(host), "192.0.2.%u", weir + 1);
	return sim_addr_make(host, 25);
}

/* --- time --- */

static void pass(struct world *w, int64_t until_us)
{
	while (sim_next_us(w->sim) <= until_us && sim_failed(w->sim) == NULL)
		sim_pass(w->sim, until_us);
	sim_pass(w->sim, until_us);
}

/* One worker of one weir. */
struct place {
	struct house *house;
	unsigned worker;
};

/* A worker that has something to do, any of them; false: none has. */
static bool ready_worker(struct world *w, struct place *place)
{
	int64_t now_us = sim_now_us(w->sim);
	struct place ready[WORLD_WEIRS_MAX * WORLD_WORKERS_MAX];
	uint32_t count = 0;

	for (unsigned k = 0; k < w->house_count; k++) {
		struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++) {
			if (!h->ended[i] && sim_io_due_us(h->ios[i]) <= now_us)
				ready[count++] = (struct place){ h, i };
		}
	}
	if (count == 0)
		return false;
	*place = ready[sim_below(w->sim, count)];
	return true;
}

static void config_retire(struct house *h)
{
	if (h->config_before == NULL)
		return;
	for (unsigned i = 0; i < h->weir.worker_count; i++) {
		if (!h->ended[i] &&
		    worker_config_seen(h->weir.workers[i]) != h->config)
			return;
	}
	config_free(&h->config_before);
}

static void turn(struct world *w, struct place place)
{
	struct house *h = place.house;
	unsigned i = place.worker;
	uint64_t allocations = sim_heap_count();

	sim_heap_watch(true);
	bool goes_on = worker_turn(h->weir.workers[i]);
	sim_heap_watch(false);
	if (!goes_on) {
		h->ended[i] = true;
		h->running--;
	}
	if (sim_heap_count() != allocations)
		sim_violation(w->sim, "worker %u allocates while it runs", i);
	w->turns++;
	if (sim_io_delivered(h->ios[i]) > 0)
		h->idle_turns[i] = 0;
	else if (++h->idle_turns[i] > IDLE_TURNS_MAX) {
		sim_violation(w->sim,
			      "worker %u spins: %u turns without an event", i,
			      h->idle_turns[i]);
	}
	if (!w->hushed) {
		check_limits(w->check, h->index, h->ios, h->weir.worker_count,
			     &h->limits);
		sim_slots_check(&h->slots, h->weir.draining);
	}
	config_retire(h);
	pass(w, sim_now_us(w->sim) + 1 + sim_below(w->sim, TURN_US_MAX));
}

/* When a worker of this weir has something to do. */
static int64_t house_due_us(struct house *h)
{
	int64_t next_us = INT64_MAX;

	for (unsigned i = 0; i < h->weir.worker_count; i++) {
		h->idle_turns[i] = 0;
		if (h->ended[i])
			continue;
		int64_t due_us = sim_io_due_us(h->ios[i]);
		next_us = due_us < next_us ? due_us : next_us;
	}
	return next_us;
}

/* One step of the world; false: nothing is left to happen before until_us. */
static bool step(struct world *w, int64_t until_us)
{
	struct place place;

	if (ready_worker(w, &place)) {
		turn(w, place);
		return true;
	}
	int64_t next_us = sim_next_us(w->sim);
	for (unsigned k = 0; k < w->house_count; k++) {
		int64_t due_us = house_due_us(&w->houses[k]);

		next_us = due_us < next_us ? due_us : next_us;
	}
	if (next_us > until_us) {
		pass(w, until_us);
		return false;
	}
	sim_pass(w->sim, next_us);
	return true;
}

bool world_run_until(struct world *w, int64_t until_us,
		     bool (*ask)(struct world *w))
{
	while (sim_failed(w->sim) == NULL && sim_now_us(w->sim) < until_us) {
		if (ask != NULL && ask(w))
			return true;
		if (!step(w, until_us))
			break;
	}
	return ask == NULL || ask(w);
}

void world_run(struct world *w, int64_t until_us)
{
	(void)world_run_until(w, until_us, NULL);
}

/* --- questions --- */

bool world_clients_done(struct world *w)
{
	for (unsigned i = 0; i < w->client_count; i++) {
		if (!sim_client_done(w->clients[i]))
			return false;
	}
	return true;
}

/* What is not home yet, of all weirs. */
struct unrest {
	size_t sockets;
	unsigned slots, buffers, sessions, running;
	unsigned uncounted; /* weirs whose books are not empty */
};

static unsigned slots_out(struct farm *farm)
{
	unsigned slots = 0;

	for (uint16_t i = 0; i < farm_size(farm); i++) {
		const struct backend *b = farm_at(farm, i);

		if (b != NULL)
			slots += b->inflight;
	}
	return slots;
}

static struct unrest unrest_of(const struct world *w)
{
	struct unrest u = { 0 };

	for (unsigned k = 0; k < w->house_count; k++) {
		const struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++) {
			u.sockets += sim_io_connections(h->ios[i]);
			u.buffers += sim_io_buffers_out(h->ios[i]);
		}
		u.slots += slots_out(h->weir.farm);
		u.sessions += admission_sessions(h->weir.admission);
		u.running += h->running;
		u.uncounted += !sim_slots_are_home(&h->slots);
	}
	return u;
}

bool world_is_quiet(struct world *w)
{
	struct unrest u = unrest_of(w);

	return world_clients_done(w) && u.sockets == 0 && u.slots == 0 &&
	       u.buffers == 0 && u.sessions == 0 && u.uncounted == 0;
}

const char *world_unrest(struct world *w)
{
	struct unrest u = unrest_of(w);
	unsigned left = 0;

	for (unsigned i = 0; i < w->client_count; i++)
		left += !sim_client_done(w->clients[i]);
	snprintf(w->unrest, sizeof(w->unrest),
		 "%u clients, %zu sockets, %u slots, %u buffers, %u sessions, "
		 "%u workers",
		 left, u.sockets, u.slots, u.buffers, u.sessions, u.running);
	return w->unrest;
}

unsigned world_running(const struct world *w)
{
	return unrest_of(w).running;
}

/* --- operators --- */

bool world_reload(struct world *w, const char *config_text)
{
	struct house *h = &w->houses[0];

	if (h->config_before != NULL)
		return false; /* one at a time */
	struct config *config = parse(w->sim, config_text);
	if (config == NULL)
		return false;
	if (!load_tls(h, config)) {
		config_free(&config);
		return false;
	}
	const struct admission_config *limits = &config->admission.limits;
	/* Who is in stays in: the checkers allow the larger of the two. */
	if (limits->max_sessions > h->limits.max_sessions)
		h->limits.max_sessions = limits->max_sessions;
	if (limits->max_per_source == 0 || h->limits.max_per_source == 0)
		h->limits.max_per_source = 0;
	else if (limits->max_per_source > h->limits.max_per_source)
		h->limits.max_per_source = limits->max_per_source;
	h->config_before = h->config;
	h->config = config;
	worker_reload(h->weir.workers[0], config);
	return true;
}

static bool all_ended(struct world *w)
{
	return world_running(w) == 0;
}

void world_drain_begin(struct world *w)
{
	for (unsigned k = 0; k < w->house_count; k++) {
		struct house *h = &w->houses[k];

		h->weir.draining = true;
		for (unsigned i = 0; i < h->weir.worker_count; i++)
			io_wake(h->ios[i]);
	}
}

void world_stop(struct world *w)
{
	sim_starve(w->sim);
	for (unsigned k = 0; k < w->house_count; k++)
		w->houses[k].weir.stopping = true;
	world_drain_begin(w);
}

bool world_drain(struct world *w, int64_t within_us)
{
	world_drain_begin(w);
	return world_run_until(w, sim_now_us(w->sim) + within_us, all_ended);
}

/* --- the books --- */

static unsigned counted(const struct world *w, enum stats_index which)
{
	uint64_t sum = 0;

	for (unsigned k = 0; k < w->house_count; k++) {
		const struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++)
			sum += stats_get(&h->weir.stats[i], which);
	}
	return (unsigned)sum;
}

void world_count(struct world *w)
{
	struct check_totals *t = check_totals(w->check);

	t->waited += counted(w, STATS_waited);
	t->saturated += counted(w, STATS_saturated);
	t->reused += counted(w, STATS_reused);
	t->parked += counted(w, STATS_parked);
	t->replayed += counted(w, STATS_replayed);
	t->spilled += counted(w, STATS_spilled);
	t->final_retries += counted(w, STATS_final_retries);
}

static uint64_t opened_by(const struct house *h)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < h->weir.worker_count; i++)
		sum += stats_get(&h->weir.stats[i], STATS_connections);
	return sum;
}

static uint64_t closed_by(const struct house *h)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < h->weir.worker_count; i++) {
		for (unsigned k = 0; k < STATS_CLOSE_COUNT; k++)
			sum += h->weir.stats[i].closed[k];
	}
	return sum;
}

static void check_counts(struct world *w)
{
	uint64_t opened = 0;

	for (unsigned k = 0; k < w->house_count; k++) {
		const struct house *h = &w->houses[k];

		opened += opened_by(h);
		if (opened_by(h) != closed_by(h)) {
			sim_violation(w->sim,
				      "%lu connections opened, %lu closed",
				      (unsigned long)opened_by(h),
				      (unsigned long)closed_by(h));
		}
	}
	if (opened != check_log_sessions(w->check)) {
		sim_violation(w->sim, "%lu connections opened, %u logged",
			      (unsigned long)opened,
			      check_log_sessions(w->check));
	}
}

void world_check_books(struct world *w)
{
	struct unrest u = unrest_of(w);

	check_counts(w);
	if (u.uncounted != 0)
		sim_violation(w->sim, "at the end a limit still counts "
				      "sessions, or somebody waits");
	if (u.slots != 0 || u.buffers != 0 || u.sockets != 0 ||
	    u.sessions != 0) {
		sim_violation(w->sim,
			      "at the end %u slots, %u buffers, %zu sockets "
			      "and %u sessions are not home",
			      u.slots, u.buffers, u.sockets, u.sessions);
	}
	for (unsigned i = 0; i < w->client_count; i++) {
		unsigned lines = sim_client_logged(w->clients[i]);

		sim_client_complain(w->clients[i]);
		if (lines > 1 ||
		    (lines == 0 && sim_client_heard(w->clients[i]))) {
			sim_violation(w->sim,
				      "client %u has %u lines in the log", i,
				      lines);
		}
	}
}
