#include "tests/sim/world.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "balancer/balancer.h"
#include "health/health.h"
#include "proxy/config.h"
#include "tests/sim/sim_heap.h"

enum {
	IDLE_TURNS_MAX = 2000, /* in a row, without an event */
	TURN_US_MAX = 60,      /* what a turn takes */
	REFUSED_SPARE = 24,    /* places for those who are being refused */
	OPERATORS = 16,
};

static bool make_farm(struct world *w)
{
	const struct config_health *h = &w->config->health;
	struct health_policy policy = health_policy_default();

	policy.probe = h->probe;
	policy.interval_ms = h->interval_ms;
	policy.down_interval_ms = h->down_interval_ms;
	policy.rise = h->rise;
	policy.fall = h->fall;
	policy.passive_fall = h->passive_fall;
	policy.eject_ms = h->eject_ms;
	policy.eject_max_ms = h->eject_max_ms;
	policy.max_ejected_percent = h->max_ejected_percent;
	policy.busy_hold_ms = h->busy_hold_ms;
	w->weir.farm = calloc(1, sizeof(*w->weir.farm));
	if (w->weir.farm == NULL)
		abort();
	farm_init(w->weir.farm, &policy);
	w->limits.backends = w->backend_limits;
	w->limits.backend_count = w->config->backend_count;
	for (unsigned i = 0; i < w->config->backend_count; i++) {
		const struct config_backend *b = &w->config->backends[i];

		w->backend_addrs[i] = world_backend_addr(i);
		w->backend_limits[i] = (struct check_backend_limit){
			.addr = &w->backend_addrs[i].sa,
			.max_sessions = b->max_sessions,
		};
		if (weir_add_backend(w->weir.farm, b, 1) != FARM_OK)
			return false;
	}
	return true;
}

static void make_admission(struct world *w)
{
	static const uint8_t key[ADMISSION_KEY_LEN] = { 1, 2, 3 };
	const struct admission_config *limits = &w->config->admission.limits;
	size_t size = admission_size(limits);

	size = (size + ADMISSION_ALIGN - 1) / ADMISSION_ALIGN * ADMISSION_ALIGN;
	w->admission_memory = aligned_alloc(ADMISSION_ALIGN, size);
	if (w->admission_memory == NULL)
		abort();
	w->weir.admission = admission_init(w->admission_memory, limits, key);
	w->limits.max_sessions = limits->max_sessions;
	w->limits.max_per_source = limits->max_per_source;
}

static void on_log(void *owner, unsigned worker, int level, const char *text,
		   size_t len)
{
	struct world *w = owner;

	check_log(w->check, text, len);
	if (w->log_fn != NULL)
		w->log_fn(w->log_owner, worker, level, text, len);
}

static bool make_workers(struct world *w, unsigned workers)
{
	char error[WEIR_ERROR_SIZE];

	w->weir.config = w->config;
	w->weir.worker_count = workers;
	w->weir.sessions_max = w->config->admission.limits.max_sessions +
			       REFUSED_SPARE;
	for (unsigned i = 0; i < w->config->backend_count; i++)
		w->weir.servers_max += w->config->backends[i].max_sessions + 2;
	for (unsigned i = 0; i < workers; i++) {
		struct io_config config = {
			.sockets_max = w->weir.sessions_max +
				       w->weir.servers_max + 2 * OPERATORS +
				       w->config->backend_count,
			.buffers = { w->config->weir.small_buffers,
				     w->config->weir.big_buffers, 32, 32 },
			.worker = i,
			.logger = w->logger,
		};

		w->ios[i] = io_open(&config, error);
		w->weir.workers[i] = worker_new(&w->weir, i, w->ios[i], error);
		if (w->weir.workers[i] == NULL) {
			sim_violation(w->sim, "worker_new: %s", error);
			return false;
		}
	}
	w->running = workers;
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

bool world_start(struct world *w, uint64_t seed,
		 const struct sim_faults *faults, const char *config_text,
		 unsigned workers, FILE *trace)
{
	assert(workers >= 1);
	assert(workers <= WORLD_WORKERS_MAX);
	*w = (struct world){ .sim = sim_new(seed, faults) };
	sim_trace_to(w->sim, trace);
	w->check = check_new(w->sim);
	w->logger = sim_logger_new(w->sim, on_log, w);
	w->config = parse(w->sim, config_text);
	if (w->config == NULL)
		return false;
	make_admission(w);
	return make_farm(w) && make_workers(w, workers);
}

void world_free(struct world *w)
{
	for (unsigned i = 0; i < w->client_count; i++)
		sim_client_free(&w->clients[i]);
	/*
	 * A worker that has not ended still has sessions: it is left to the
	 * end of the process.
	 */
	for (unsigned i = 0; i < w->weir.worker_count; i++) {
		if (w->ended[i] && w->weir.workers[i] != NULL)
			worker_free(&w->weir.workers[i]);
		io_free(&w->ios[i]);
	}
	for (unsigned i = 0; i < WORLD_BACKENDS_MAX; i++)
		sim_backend_free(&w->backends[i]);
	if (w->weir.farm != NULL)
		farm_fini(w->weir.farm);
	free(w->weir.farm);
	if (w->weir.admission != NULL)
		admission_fini(w->weir.admission);
	free(w->admission_memory);
	config_free(&w->config);
	config_free(&w->config_before);
	sim_logger_free(&w->logger);
	check_free(&w->check);
	sim_free(&w->sim);
}

union sim_addr world_backend_addr(unsigned index)
{
	char host[32];

	snprintf(host, sizeof(host), "10.0.0.%u", index + 1);
	return sim_addr_make(host, 25);
}

/* --- time --- */

static void pass(struct world *w, int64_t until_us)
{
	while (sim_next_us(w->sim) <= until_us && sim_failed(w->sim) == NULL)
		sim_pass(w->sim, until_us);
	sim_pass(w->sim, until_us);
}

/* A worker that has something to do, any of them; -1: none has. */
static int ready_worker(struct world *w)
{
	int64_t now_us = sim_now_us(w->sim);
	unsigned ready[WORLD_WORKERS_MAX], count = 0;

	for (unsigned i = 0; i < w->weir.worker_count; i++) {
		if (!w->ended[i] && sim_io_due_us(w->ios[i]) <= now_us)
			ready[count++] = i;
	}
	return count == 0 ? -1 : (int)ready[sim_below(w->sim, count)];
}

static void config_retire(struct world *w)
{
	if (w->config_before == NULL)
		return;
	for (unsigned i = 0; i < w->weir.worker_count; i++) {
		if (!w->ended[i] &&
		    worker_config_seen(w->weir.workers[i]) != w->config)
			return;
	}
	config_free(&w->config_before);
}

static void turn(struct world *w, unsigned i)
{
	uint64_t allocations = sim_heap_count();

	sim_heap_watch(true);
	bool goes_on = worker_turn(w->weir.workers[i]);
	sim_heap_watch(false);
	if (!goes_on) {
		w->ended[i] = true;
		w->running--;
	}
	if (sim_heap_count() != allocations)
		sim_violation(w->sim, "worker %u allocates while it runs", i);
	w->turns++;
	if (sim_io_delivered(w->ios[i]) > 0)
		w->idle_turns[i] = 0;
	else if (++w->idle_turns[i] > IDLE_TURNS_MAX) {
		sim_violation(w->sim,
			      "worker %u spins: %u turns without an event", i,
			      w->idle_turns[i]);
	}
	if (!w->hushed)
		check_limits(w->check, w->ios, w->weir.worker_count,
			     &w->limits);
	config_retire(w);
	pass(w, sim_now_us(w->sim) + 1 + sim_below(w->sim, TURN_US_MAX));
}

/* One step of the world; false: nothing is left to happen before until_us. */
static bool step(struct world *w, int64_t until_us)
{
	int i = ready_worker(w);

	if (i >= 0) {
		turn(w, (unsigned)i);
		return true;
	}
	int64_t next_us = sim_next_us(w->sim);
	for (unsigned k = 0; k < w->weir.worker_count; k++) {
		w->idle_turns[k] = 0;
		if (w->ended[k])
			continue;
		int64_t due_us = sim_io_due_us(w->ios[k]);
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

static size_t sockets_open(struct world *w)
{
	size_t open = 0;

	for (unsigned i = 0; i < w->weir.worker_count; i++)
		open += sim_io_connections(w->ios[i]);
	return open;
}

static unsigned slots_out(struct world *w)
{
	unsigned slots = 0;

	for (uint16_t i = 0; i < farm_size(w->weir.farm); i++) {
		const struct backend *b = farm_at(w->weir.farm, i);

		if (b != NULL)
			slots += b->inflight;
	}
	return slots;
}

static unsigned buffers_out(struct world *w)
{
	unsigned out = 0;

	for (unsigned i = 0; i < w->weir.worker_count; i++)
		out += sim_io_buffers_out(w->ios[i]);
	return out;
}

bool world_is_quiet(struct world *w)
{
	return world_clients_done(w) && sockets_open(w) == 0 &&
	       slots_out(w) == 0 && buffers_out(w) == 0 &&
	       admission_sessions(w->weir.admission) == 0;
}

const char *world_unrest(struct world *w)
{
	unsigned left = 0;

	for (unsigned i = 0; i < w->client_count; i++)
		left += !sim_client_done(w->clients[i]);
	snprintf(w->unrest, sizeof(w->unrest),
		 "%u clients, %zu sockets, %u slots, %u buffers, %u sessions, "
		 "%u workers",
		 left, sockets_open(w), slots_out(w), buffers_out(w),
		 admission_sessions(w->weir.admission), w->running);
	return w->unrest;
}

/* --- operators --- */

static void wake_all(struct world *w)
{
	for (unsigned i = 0; i < w->weir.worker_count; i++)
		io_wake(w->ios[i]);
}

bool world_reload(struct world *w, const char *config_text)
{
	if (w->config_before != NULL)
		return false; /* one at a time */
	struct config *config = parse(w->sim, config_text);
	if (config == NULL)
		return false;
	const struct admission_config *limits = &config->admission.limits;
	/* Who is in stays in: the checkers allow the larger of the two. */
	if (limits->max_sessions > w->limits.max_sessions)
		w->limits.max_sessions = limits->max_sessions;
	if (limits->max_per_source == 0 || w->limits.max_per_source == 0)
		w->limits.max_per_source = 0;
	else if (limits->max_per_source > w->limits.max_per_source)
		w->limits.max_per_source = limits->max_per_source;
	w->config_before = w->config;
	w->config = config;
	worker_reload(w->weir.workers[0], config);
	return true;
}

static bool all_ended(struct world *w)
{
	return w->running == 0;
}

void world_drain_begin(struct world *w)
{
	w->weir.draining = true;
	wake_all(w);
}

bool world_drain(struct world *w, int64_t within_us)
{
	world_drain_begin(w);
	return world_run_until(w, sim_now_us(w->sim) + within_us, all_ended);
}

static uint64_t counted(const struct world *w, enum stats_index which)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < w->weir.worker_count; i++)
		sum += stats_get(&w->weir.stats[i], which);
	return sum;
}

void world_check_books(struct world *w)
{
	uint64_t closed = 0;
	uint64_t opened = counted(w, STATS_connections);

	for (unsigned i = 0; i < w->weir.worker_count; i++) {
		for (unsigned k = 0; k < STATS_CLOSE_COUNT; k++)
			closed += w->weir.stats[i].closed[k];
	}
	if (opened != closed)
		sim_violation(w->sim, "%lu connections opened, %lu closed",
			      (unsigned long)opened, (unsigned long)closed);
	if (opened != check_log_sessions(w->check)) {
		sim_violation(w->sim, "%lu connections opened, %u logged",
			      (unsigned long)opened,
			      check_log_sessions(w->check));
	}
	if (slots_out(w) != 0 || buffers_out(w) != 0 || sockets_open(w) != 0 ||
	    admission_sessions(w->weir.admission) != 0) {
		sim_violation(w->sim,
			      "at the end %u slots, %u buffers, %zu sockets "
			      "and %u sessions are not home",
			      slots_out(w), buffers_out(w), sockets_open(w),
			      admission_sessions(w->weir.admission));
	}
	for (unsigned i = 0; i < w->client_count; i++) {
		const union sim_addr *addr = sim_client_addr(w->clients[i]);
		unsigned lines = check_log_client(w->check, addr);

		sim_client_complain(w->clients[i]);
		if (lines > 1 ||
		    (lines == 0 && sim_client_heard(w->clients[i]))) {
			sim_violation(w->sim,
				      "client %u has %u lines in the log", i,
				      lines);
		}
	}
}
