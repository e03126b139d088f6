#include "tests/sim/limits.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "balancer/backend.h"
#include "tests/sim/sim_crowd.h"
#include "tests/sim/world.h"

enum {
	SAMPLE_US = 50 * SIM_MS,
	LATENCY_US = 10 * SIM_MS, /* one way */
	BASE_MS = 40,             /* a connect and a greeting */
	G_MS = 1000, /* for a greeting, in a queue that is silent */
	SOURCES = 2000,
	CROWD_NET = 18,
	CROWD_NUMBERS = 100000, /* of each crowd's clients */
	LOW_S = 60,             /* how long capacity stays low, or high */
	FALL_S = 15,            /* and how long it takes to fall */
	RETURN_S = 25,          /* and that weir may take to see it is back */
	DRAIN_US = 300 * SIM_SECOND,
	WARM_S = 100,
	SECONDS = 600,
};

#define MEAN_S 5.0
#define SIGMA  1.2

struct limit_scene {
	const char *name;
	const char *about;
	const char *full_text;
	const char *room; /* of weir.ini; NULL: one that is hard to fill */
	double demand;    /* what weirs' clients want, of the slots */
	double hidden;    /* slots that others want */
	double mean_s;    /* that a text takes; 0: MEAN_S */
	double sigma;     /* of that time; 0: SIGMA */
	struct {
		double used;      /* of slots that others do not have, least */
		double refused_s; /* per second and weir, most */
		double refused;   /* of attempts, most */
		double fairness;  /* Jain's, of messages by weir, least */
		double put_off;   /* read a 4xx, most */
		double wait_ms;   /* of 99 in 100 for a slot, most */
	} bars;                   /* 0: none */
	unsigned weirs;
	unsigned workers; /* of each; 0: one */
	unsigned slots;   /* that the server has */
	unsigned moody;   /* per mille refused for no reason */
	unsigned loud;    /* connections that one more source has at once */
	unsigned seconds; /* the warm-up included; 0: SECONDS */
	enum sim_deed_kind full; /* NONE: BYE */
	bool falls;              /* to 40 % and back, again and again */
	bool vouched;            /* one weir is told of all the slots */
};

/*
 * The bars of balancer/limit.c, where nothing is said.  What ten seeds showed
 * is close to what the module alone does.
 */
static const struct limit_scene scenes[] = {
	{ .name = "steady-5",
	  .about = "5 slots, 1.5 times as much wanted",
	  .weirs = 1,
	  .slots = 5,
	  .demand = 1.5,
	  .bars = { .used = .98, .refused_s = .15 } },
	{ .name = "steady-20",
	  .about = "20 slots, 1.5 times as much wanted",
	  .weirs = 1,
	  .workers = 2,
	  .slots = 20,
	  .demand = 1.5,
	  .bars = { .used = .98, .refused_s = .15 } },
	{ .name = "steady-50",
	  .about = "50 slots, 1.5 times as much wanted",
	  .weirs = 1,
	  .workers = 3,
	  .slots = 50,
	  .demand = 1.5,
	  .bars = { .used = .98, .refused_s = .15 } },
	/*
	 * A slot and a quarter for each weir: one of them has none at any
	 * time, and as nobody's limit is below 1, it asks, and is refused,
	 * until hold-offs or the others make room.
	 */
	{ .name = "steady-5-by-4",
	  .about = "4 weirs share 5 slots",
	  .weirs = 4,
	  .slots = 5,
	  .demand = 1.5,
	  .bars = { .used = .96, .refused_s = .5 } },
	{ .name = "steady-20-by-4",
	  .about = "4 weirs share 20 slots",
	  .weirs = 4,
	  .slots = 20,
	  .demand = 1.5,
	  .bars = { .used = .98, .refused_s = .15 } },
	{ .name = "steady-50-by-4",
	  .about = "4 weirs share 50 slots",
	  .weirs = 4,
	  .slots = 50,
	  .demand = 1.5,
	  .bars = { .used = .98, .refused_s = .2, .refused = .07 } },
	{ .name = "cap",
	  .about = "20 slots, refused as too many of one address",
	  .weirs = 1,
	  .slots = 20,
	  .demand = 1.5,
	  .full_text = "421 4.7.0 b0.test Error: too many connections from "
		       "10.1.0.1\r\n",
	  .bars = { .used = .98, .refused_s = .15 } },
	/* Each second one counts, so there are twice as many. */
	{ .name = "end-of-stream",
	  .about = "20 slots, refused without a word",
	  .weirs = 1,
	  .slots = 20,
	  .demand = 1.5,
	  .full = SIM_DEED_FIN,
	  .bars = { .used = .98, .refused_s = .3 } },
	/*
	 * A tenth more than the module alone: a handshake takes one and a
	 * half round trips more, in which others take the slot.
	 */
	{ .name = "hidden",
	  .about = "others take and leave half of 50 slots",
	  .weirs = 1,
	  .workers = 2,
	  .slots = 50,
	  .demand = 1.0,
	  .hidden = 25,
	  .bars = { .used = .95, .refused = .09 } },
	{ .name = "hidden-by-4",
	  .about = "4 weirs, others take 20 of 50",
	  .weirs = 4,
	  .slots = 50,
	  .demand = 1.0,
	  .hidden = 20,
	  .bars = { .used = .97, .refused = .165 } },
	{ .name = "falls",
	  .about = "50 slots become 20, and 50 again",
	  .weirs = 1,
	  .slots = 50,
	  .demand = 1.5,
	  .falls = true },
	{ .name = "fair-by-4",
	  .about = "4 weirs, one told of all 50 slots",
	  .weirs = 4,
	  .slots = 50,
	  .demand = 1.5,
	  .vouched = true,
	  .bars = { .used = .98, .refused = .07, .fairness = .9 } },
	{ .name = "moody-5%",
	  .about = "one in 20 is refused for no reason",
	  .weirs = 1,
	  .slots = 50,
	  .demand = 1.5,
	  .moody = 50,
	  .bars = { .used = .94 } },
	{ .name = "moody-25%",
	  .about = "one in 4 is refused for no reason",
	  .weirs = 1,
	  .slots = 50,
	  .demand = 1.5,
	  .moody = 250,
	  .bars = { .used = .7 } },
	{ .name = "under-load",
	  .about = "60 % of 50 slots are wanted",
	  .weirs = 1,
	  .slots = 50,
	  .demand = .6,
	  .bars = { .refused = .001 } },
	/*
	 * 2000 polite sources want 95 % of the slots, the loud one all of them, many
	 * times over; it gets what is left.  So near to all of the capacity
	 * a wait is as much chance as fairness: seeds show 1.2 s to 2.1 s.
	 */
	{ .name = "loud",
	  .about = "one source with 400 connections at once",
	  .weirs = 1,
	  .workers = 3,
	  .slots = 60,
	  .demand = .856, /* of the text; with all that is said, .95 */
	  .loud = 400,
	  .seconds = 300,
	  .mean_s = 1,
	  .sigma = .3,
	  .room = "size = 1000\n",
	  .bars = { .used = .95, .put_off = .01, .wait_ms = 2500 } },
	{ .name = "silent",
	  .about = "50 slots, who is too many waits in silence",
	  .weirs = 1,
	  .slots = 50,
	  .demand = 1.5,
	  .full = SIM_DEED_SLOW,
	  .bars = { .refused = .01 } },
	{ .name = "silent-by-4",
	  .about = "4 weirs, too many wait in silence",
	  .weirs = 4,
	  .slots = 50,
	  .demand = 1.5,
	  .full = SIM_DEED_SLOW,
	  .bars = { .refused = .01 } },
};

/* How long the limit was far below what there was. */
struct lag {
	int64_t watched_us, below_us, stretch_us, longest_us;
};

struct run {
	struct world world;
	const struct limit_scene *scene;
	struct sim_crowd *crowds[WORLD_WEIRS_MAX];
	struct sim_crowd *loud;
	struct sim_timer sample, hidden;
	struct sim_backend_use before;  /* at the end of the warm-up */
	unsigned done[WORLD_WEIRS_MAX]; /* messages, likewise */
	int64_t started_us;             /* and when that was */
	struct lag lag;
	int64_t back_us;    /* capacity came back then */
	int64_t slowest_us; /* to use 90 % of what came back */
	unsigned returns;
	bool returned;  /* it is used again, or never was taken */
	unsigned slots; /* now */
	char config[WORLD_CONFIG_MAX];
};

/* Somebody else's session. */
struct other {
	struct run *run;
	struct sim_timer timer;
};

static const struct sim_faults smooth = {
	.latency_us_max = 0,
	.window_min = 65536,
	.window_max = 65536,
};

static void write_config(struct run *r, unsigned weir)
{
	int n = snprintf(
		r->config, sizeof(r->config),
		"[weir]\nhostname = mx.test\nlog_level = info\n"
		"control_socket = /run/weir-sim-%u.sock\n"
		"small_buffers = 2000\nbig_buffers = 64\n"
		"[listener in]\nlisten = 192.0.2.%u:25\n"
		"[admission]\nmax_sessions = 900\nmax_per_source = 0\n"
		"max_per_aggregate = 0\ntable_size = 10000\n"
		"[timeouts]\ndata = 1h\nbackend_greeting = %ums\n"
		"[farm]\nrelay_guard = off\nlinger = 0\n"
		"[room]\n%s"
		"[backend b0]\naddress = 10.0.0.1:25\nsource = 10.1.0.%u\n"
		"max_sessions = %s\n",
		weir, weir + 1,
		r->scene->full == SIM_DEED_SLOW ? (unsigned)G_MS : 30000U,
		r->scene->room != NULL
			? r->scene->room
			: "size = 200\nper_source = 100\nwait = 4m\n",
		weir + 1, r->scene->vouched && weir == 0 ? "50" : "auto");

	assert(n > 0);
	assert((size_t)n < sizeof(r->config));
}

/* --- others, who take slots and leave --- */

static void other_leaves(void *owner)
{
	struct other *o = owner;

	sim_backend_give(o->run->world.backends[0]);
	free(o);
}

static void other_comes(void *owner)
{
	struct run *r = owner;
	struct sim *sim = r->world.sim;
	int64_t now_us = sim_now_us(sim);

	sim_timer_set(sim, &r->hidden,
		      now_us + 1 +
			      (int64_t)(SIM_SECOND *
					sim_until_next_s(sim, r->scene->hidden /
								      MEAN_S)));
	if (!sim_backend_take(r->world.backends[0]))
		return;
	struct other *o = calloc(1, sizeof(*o));
	if (o == NULL)
		abort();
	o->run = r;
	o->timer = (struct sim_timer){ .fire = other_leaves, .owner = o };
	sim_timer_set(sim, &o->timer,
		      now_us + 1 +
			      (int64_t)(SIM_SECOND *
					sim_lognormal_s(sim, MEAN_S, SIGMA)));
}

/* --- what is looked at again and again --- */

/* What all weirs think that the server takes. */
static double learned(struct run *r)
{
	double sum = 0;

	for (unsigned i = 0; i < r->world.house_count; i++)
		sum += farm_at(r->world.houses[i].weir.farm, 0)->limit.l;
	return sum;
}

static unsigned used_now(struct run *r)
{
	return sim_backend_open(r->world.backends[0]);
}

static void watch_fall(struct run *r)
{
	struct lag *lag = &r->lag;

	lag->watched_us += SAMPLE_US;
	if (learned(r) >= .85 * r->slots) {
		lag->stretch_us = 0;
		return;
	}
	lag->below_us += SAMPLE_US;
	lag->stretch_us += SAMPLE_US;
	if (lag->stretch_us > lag->longest_us)
		lag->longest_us = lag->stretch_us;
}

static void watch_return(struct run *r, int64_t now_us)
{
	int64_t took_us = now_us - r->back_us;

	if (r->returned || used_now(r) * 10 < r->slots * 9)
		return;
	r->returned = true;
	r->returns++;
	if (took_us > r->slowest_us)
		r->slowest_us = took_us;
}

static void set_slots(struct run *r, unsigned slots)
{
	if (slots == r->slots)
		return;
	r->slots = slots;
	sim_backend_slots(r->world.backends[0], slots);
}

/* High, falling, low; and again. */
static void fall_and_return(struct run *r, int64_t now_us)
{
	unsigned high = r->scene->slots, low = high * 2 / 5;
	int64_t s = (now_us - r->started_us) / SIM_SECOND %
		    (2 * (int64_t)LOW_S);

	if (s < LOW_S) {
		if (r->slots < high) {
			r->back_us = now_us;
			r->returned = false;
		}
		set_slots(r, high);
		watch_return(r, now_us);
		return;
	}
	s -= LOW_S;
	set_slots(r, s >= FALL_S
			     ? low
			     : high - (unsigned)((high - low) * s / FALL_S));
	watch_fall(r);
}

static void sample_fires(void *owner)
{
	struct run *r = owner;
	int64_t now_us = sim_now_us(r->world.sim);

	sim_timer_set(r->world.sim, &r->sample, now_us + SAMPLE_US);
	if (r->scene->falls && r->started_us > 0)
		fall_and_return(r, now_us);
}

/* --- the run --- */

static struct sim_crowd *add_loud(struct run *r, double mean_s)
{
	struct sim_crowd_config crowd = {
		.to = world_listen_addr(0),
		.first = WORLD_WEIRS_MAX * CROWD_NUMBERS,
		.net = CROWD_NET + 1,
		.sources = 1,
		.at_once = r->scene->loud,
		.mean_s = mean_s,
		.sigma = SIGMA,
	};

	return sim_crowd_new(r->world.sim, r->world.check, &crowd);
}

static bool begin(struct run *r, uint64_t seed, FILE *trace)
{
	const struct limit_scene *s = r->scene;
	struct sim_faults faults = smooth;
	struct sim_backend_config config = {
		.addr = world_backend_addr(0),
		.offers = SIM_OFFER_ALL & ~SIM_OFFER_DANGEROUS,
		.slots = s->slots,
		.full = s->full != SIM_DEED_NONE ? s->full : SIM_DEED_BYE,
		.moody = s->moody,
		.full_text = s->full_text,
		.late_us = BASE_MS * SIM_MS / 2,
	};

	faults.latency_us_max = LATENCY_US;
	unsigned workers = s->workers > 0 ? s->workers : 1;
	double mean_s = s->mean_s > 0 ? s->mean_s : MEAN_S;
	write_config(r, 0);
	if (!world_start(&r->world, seed, &faults, r->config, workers, trace))
		return false;
	for (unsigned i = 1; i < s->weirs; i++) {
		write_config(r, i);
		if (!world_add_weir(&r->world, r->config, workers))
			return false;
	}
	r->slots = s->slots;
	r->returned = true;
	r->world.backends[0] = sim_backend_new(r->world.sim, r->world.check,
					       &config);
	for (unsigned i = 0; i < s->weirs; i++) {
		struct sim_crowd_config crowd = {
			.to = world_listen_addr(i),
			.first = i * CROWD_NUMBERS,
			.sources = SOURCES,
			.net = CROWD_NET,
			.per_s = s->demand * s->slots / mean_s / s->weirs,
			.mean_s = mean_s,
			.sigma = s->sigma > 0 ? s->sigma : SIGMA,
		};

		r->crowds[i] = sim_crowd_new(r->world.sim, r->world.check,
					     &crowd);
	}
	if (s->loud > 0)
		r->loud = add_loud(r, mean_s);
	r->sample = (struct sim_timer){ .fire = sample_fires, .owner = r };
	r->hidden = (struct sim_timer){ .fire = other_comes, .owner = r };
	sample_fires(r);
	if (s->hidden > 0)
		other_comes(r);
	return true;
}

static bool all_gone(struct world *w)
{
	unsigned running = world_running(w);

	return running == 0;
}

/* All that has been asked for is still done, and weir comes home. */
static void end(struct run *r)
{
	struct world *w = &r->world;

	sim_timer_clear(w->sim, &r->hidden);
	for (unsigned i = 0; i < r->scene->weirs; i++)
		sim_crowd_rate(r->crowds[i], 0);
	if (r->loud != NULL)
		sim_crowd_rate(r->loud, 0);
	world_run(w, sim_now_us(w->sim) + DRAIN_US);
	world_drain_begin(w);
	if (sim_failed(w->sim) == NULL &&
	    !world_run_until(w, sim_now_us(w->sim) + DRAIN_US, all_gone))
		sim_violation(w->sim, "the drain does not end: %s",
			      world_unrest(w));
	if (sim_failed(w->sim) == NULL)
		world_check_books(w);
}

/* --- the bars --- */

static void bar(struct run *r, const char *what, double seen, double limit,
		bool least)
{
	if (limit == 0 || (least ? seen >= limit : seen <= limit))
		return;
	sim_violation(r->world.sim, "%s %.4f, the bar is %.4f", what, seen,
		      limit);
}

struct result {
	bool passed;
	double use, refused_s, refused, late, fairness, put_off, wait_ms;
	unsigned done;
	char why[WORLD_WHY_MAX];
};

/* Jain's index: 1, all have the same; 1/n, one has all. */
static void measure_weirs(struct run *r, struct result *result)
{
	double sum = 0, squares = 0;

	for (unsigned i = 0; i < r->scene->weirs; i++) {
		unsigned done = sim_crowd_counts(r->crowds[i]).done -
				r->done[i];

		sum += done;
		squares += (double)done * done;
		result->done += done;
	}
	struct sim_crowd_counts first = sim_crowd_counts(r->crowds[0]);
	result->put_off = (double)(first.put_off + first.turned_away) /
			  first.came;
	result->wait_ms = sim_crowd_wait_ms(r->crowds[0], 990);
	result->fairness = sum * sum / (squares * r->scene->weirs);
}

static void measure(struct run *r, struct result *result)
{
	const struct limit_scene *s = r->scene;
	struct sim_backend_use use;
	double seconds = (double)(sim_now_us(r->world.sim) - r->started_us) /
			 SIM_SECOND;

	sim_backend_use(r->world.backends[0], &use);
	double asked = use.asked - r->before.asked;
	double refused = use.refused - r->before.refused + use.given_up -
			 r->before.given_up;
	result->use = (double)(use.ours_us - r->before.ours_us) /
		      (double)(use.usable_us - r->before.usable_us);
	result->refused_s = refused / seconds / s->weirs;
	result->refused = asked > 0 ? refused / asked : 0;
	result->late = (double)(use.late - r->before.late) /
		       (double)(use.greeted - r->before.greeted + 1);
	measure_weirs(r, result);
	bar(r, "slots used:", result->use, s->bars.used, true);
	bar(r, "refused per second and weir:", result->refused_s,
	    s->bars.refused_s, false);
	bar(r, "refused of attempts:", result->refused, s->bars.refused, false);
	bar(r, "fairness:", result->fairness, s->bars.fairness, true);
	bar(r, "put off:", result->put_off, s->bars.put_off, false);
	bar(r, "waits, 99 in 100, ms:", result->wait_ms, s->bars.wait_ms,
	    false);
}

/*
 * About half of the greetings, at least, came as if nobody waited; where there
 * are several weirs, as many come while a probe of another one has the slot.
 */
static void measure_silence(struct run *r, const struct result *result)
{
	if (r->scene->full == SIM_DEED_SLOW)
		bar(r, "greetings that were late:", result->late, .55, false);
}

static void measure_falls(struct run *r)
{
	const struct lag *lag = &r->lag;

	if (!r->scene->falls)
		return;
	bar(r, "limit far too low, of the time:",
	    (double)lag->below_us / (double)lag->watched_us, .02, false);
	bar(r,
	    "limit far too low, seconds:", (double)lag->longest_us / SIM_SECOND,
	    2, false);
	bar(r, "times that it came back:", r->returns, 3, true);
	bar(r, "seconds until what came back was used:",
	    (double)r->slowest_us / SIM_SECOND, RETURN_S, false);
}

static void run_one(const struct limit_scene *scene, uint64_t seed, FILE *trace,
		    struct result *result)
{
	struct run *r = calloc(1, sizeof(*r));

	if (r == NULL)
		abort();
	*result = (struct result){ .passed = true };
	r->scene = scene;
	if (begin(r, seed, trace)) {
		world_run(&r->world, (int64_t)WARM_S * SIM_SECOND);
		sim_backend_use(r->world.backends[0], &r->before);
		for (unsigned i = 0; i < scene->weirs; i++)
			r->done[i] = sim_crowd_counts(r->crowds[i]).done;
		r->started_us = sim_now_us(r->world.sim);
		int64_t seconds = scene->seconds > 0 ? scene->seconds : SECONDS;
		world_run(&r->world, seconds * SIM_SECOND);
		measure(r, result);
		measure_silence(r, result);
		measure_falls(r);
		if (sim_failed(r->world.sim) == NULL)
			end(r);
	}
	const char *why = sim_failed(r->world.sim);
	if (why != NULL) {
		result->passed = false;
		snprintf(result->why, sizeof(result->why), "%s", why);
	}
	/* The process ends: what is left of the world ends with it. */
}

/* In a process of its own: a crash is a finding like others. */
static void run_apart(const struct limit_scene *scene, uint64_t seed,
		      bool trace, struct result *result)
{
	int ends[2], status = 0;

	if (pipe(ends) != 0)
		abort();
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		run_one(scene, seed, trace ? stdout : NULL, result);
		fflush(stdout);
		(void)!write(ends[1], result, sizeof(*result));
		_exit(0);
	}
	close(ends[1]);
	if (read(ends[0], result, sizeof(*result)) !=
	    (ssize_t)sizeof(*result)) {
		(void)waitpid(pid, &status, 0);
		*result = (struct result){ 0 };
		snprintf(result->why, sizeof(result->why),
			 "the process ended with signal %d",
			 WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	} else {
		(void)waitpid(pid, &status, 0);
	}
	close(ends[0]);
}

bool limits_run(const char *name, uint64_t first, uint64_t last, bool trace)
{
	static struct result result;
	unsigned passed = 0, failed = 0;

	for (size_t i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++) {
		const struct limit_scene *s = &scenes[i];

		if (name != NULL && strcmp(s->name, name) != 0)
			continue;
		for (uint64_t seed = first; seed <= last; seed++) {
			run_apart(s, seed, trace, &result);
			printf("%s %-15s seed %lu: used %.4f, refused %.3f/s "
			       "%.4f, late %.3f, fair %.3f, put off %.3f, wait "
			       "%.0f ms, %u messages; %s\n",
			       result.passed ? "ok  " : "FAIL", s->name,
			       (unsigned long)seed, result.use,
			       result.refused_s, result.refused, result.late,
			       result.fairness, result.put_off, result.wait_ms,
			       result.done, s->about);
			if (!result.passed)
				printf("     %s\n", result.why);
			if (result.passed)
				passed++;
			else
				failed++;
		}
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed == 0 && passed > 0;
}
