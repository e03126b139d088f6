#include "tests/load_find.h"

#include <assert.h>
#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	TURN_US = 20000, /* the longest wait: the ramp goes on */
	PROGRESS_US = 500000,
	STARTS_MAX = 128,    /* sessions started before others are served */
	REST_US = 1000000,   /* for the server, after it said no */
	PENANCE_US = 200000, /* after a failure nobody comes at once */
	STRETCH =
		5, /* a step lasts so many times --step if sessions are long */
};

/* One step on its way. */
struct attempt {
	uint64_t offered;
	uint64_t from;     /* sessions that were open before */
	int64_t begun_us;  /* the ramp starts */
	int64_t steady_us; /* all came; 0: not yet */
	uint64_t failed;
	uint64_t acknowledged; /* before it was steady */
};

static bool time_is_up(const struct load_find *find)
{
	const struct load *load = find->load;

	return load->now_us - load->start_us >=
	       load->options.find.time_ms * 1000;
}

/* Something from outside ends the search. */
static bool is_cut_short(struct load_find *find)
{
	if (load_told_to_stop())
		find->end = LOAD_FIND_STOPPED;
	else if (time_is_up(find))
		find->end = LOAD_FIND_TIME;
	else
		return false;
	return true;
}

static int64_t ramp_us(const struct load_find *find)
{
	return find->load->options.find.step_ms * 1000 / 2;
}

/* As many as shall be open now: they come evenly, not all at once. */
static uint64_t wanted(const struct load_find *find, const struct attempt *a)
{
	int64_t since_us = find->load->now_us - a->begun_us;
	int64_t whole_us = ramp_us(find);

	if (a->from >= a->offered || since_us >= whole_us)
		return a->offered;
	double share = (double)since_us / (double)whole_us;

	uint64_t more = (uint64_t)((double)(a->offered - a->from) * share);

	return a->from + 1 +
	       (more < a->offered - a->from - 1 ? more
						: a->offered - a->from - 1);
}

static void show(struct load_find *find, uint64_t offered)
{
	struct load *load = find->load;

	if (load->options.quiet || isatty(STDERR_FILENO) != 1 ||
	    load->now_us - load->progress_us < PROGRESS_US)
		return;
	load_plot_progress(find, offered);
	load->progress_us = load->now_us;
}

static void turn(struct load_find *find, uint64_t offered)
{
	load_serve(find->load, TURN_US);
	show(find, offered);
}

static void start_some(struct load_find *find, const struct attempt *a)
{
	struct load *load = find->load;
	uint64_t want = wanted(find, a);

	if (load->now_us < find->not_before_us)
		return;
	for (int i = 0; i < STARTS_MAX && load->open < want; i++)
		load_session_start(load, false, load->now_us);
}

static void note_failures(struct load_find *find, struct attempt *a)
{
	uint64_t failed = load_report_failed(find->load->stats);

	if (failed == a->failed)
		return;
	a->failed = failed;
	find->not_before_us = find->load->now_us + PENANCE_US;
}

/* From here on latencies and messages count. */
static void become_steady(struct load_find *find, struct attempt *a)
{
	struct load_stats *st = find->load->stats;

	if (a->steady_us > 0 ||
	    find->load->now_us - a->begun_us < ramp_us(find))
		return;
	a->steady_us = find->load->now_us;
	a->acknowledged = st->acknowledged;
	memset(st->times, 0, sizeof(st->times));
}

static struct load_limit_sample sample_of(const struct load_find *find,
					  const struct attempt *a)
{
	const struct load_stats *st = find->load->stats;
	const struct histogram *times = &st->times[LOAD_SESSION];
	int64_t since_us = a->steady_us > 0 ? a->steady_us : a->begun_us;
	double seconds = (double)(find->load->now_us - since_us) / 1e6;

	return (struct load_limit_sample){
		.sessions = a->offered,
		.ended = times->count,
		.failed = a->failed,
		.p50_us = histogram_percentile(times, 50),
		.p99_us = histogram_percentile(times, 99),
		.rate = seconds <= 0
				? 0
				: (double)(st->acknowledged - a->acknowledged) /
					  seconds,
	};
}

static bool is_done(const struct load_find *find, const struct attempt *a)
{
	const struct load_limit_sample sample = sample_of(find, a);
	int64_t step_us = find->load->options.find.step_ms * 1000;

	if (load_limit_is_sure(&sample))
		return true;
	if (a->steady_us == 0)
		return false;
	int64_t since_us = find->load->now_us - a->steady_us;

	return since_us >= step_us * STRETCH ||
	       (since_us >= step_us && load_limit_is_enough(&sample));
}

/* The reply that came most often, or else the commonest failure. */
static void find_reason(const struct load_stats *st,
			struct load_find_reason *reason)
{
	const struct load_refusal *top = NULL;
	uint64_t most = 0;

	for (size_t i = 0; i < st->refusal_count; i++) {
		if (top == NULL || st->refusals[i].count > top->count)
			top = &st->refusals[i];
	}
	if (top != NULL) {
		reason->is_reply = top->phase != LOAD_CONNECT;
		reason->phase = top->phase;
		reason->len = top->len;
		memcpy(reason->text, top->text, top->len);
		return;
	}
	for (unsigned i = 0; i < LOAD_ENDINGS * LOAD_PHASES; i++) {
		enum load_ending ending = (enum load_ending)(i / LOAD_PHASES);
		enum load_phase phase = (enum load_phase)(i % LOAD_PHASES);
		const char *text = load_report_ending_text(ending);

		if (!load_report_is_failure(ending) ||
		    st->endings[ending][phase] <= most)
			continue;
		most = st->endings[ending][phase];
		reason->phase = phase;
		reason->len = strlen(text);
		memcpy(reason->text, text, reason->len);
	}
}

static void clear_stats(struct load_find *find)
{
	struct load_stats *st = find->load->stats;

	find->acknowledged += st->acknowledged;
	find->octets += st->octets;
	memset(st, 0, sizeof(*st));
}

/* Sessions that hang are in no percentile, since they do not end. */
static uint64_t late_ones(const struct load_find *find, const struct attempt *a)
{
	int64_t before_us = find->load->now_us - (int64_t)find->limit.band_us;

	if (find->limit.band_us == 0 || a->steady_us == 0)
		return 0;
	if (before_us > a->steady_us)
		before_us = a->steady_us;
	return load_session_count(find->load, before_us);
}

/* True if the step came to its end, and was noted. */
static bool take_step(struct load_find *find)
{
	struct load *load = find->load;
	struct attempt a = {
		.offered = find->limit.offer,
		.from = load->open,
		.begun_us = load->now_us,
	};

	assert(find->count < LOAD_LIMIT_STEPS_MAX);
	clear_stats(find);
	do {
		if (is_cut_short(find))
			return false;
		start_some(find, &a);
		turn(find, a.offered);
		note_failures(find, &a);
		become_steady(find, &a);
	} while (!is_done(find, &a));

	struct load_find_step *step = &find->steps[find->count++];

	step->sample = sample_of(find, &a);
	step->sample.late = late_ones(find, &a);
	if (a.failed > 0)
		find_reason(load->stats, &step->reason);
	step->verdict = load_limit_note(&find->limit, &step->sample);
	if (step->verdict == LOAD_LIMIT_TAKEN)
		find->taken[find->taken_count++] = step->sample;
	return true;
}

/* All go, and the server gets its rest. */
static void rest(struct load_find *find)
{
	struct load *load = find->load;
	int64_t until_us = 0;

	while (!is_cut_short(find)) {
		if (load->open == 0 && until_us == 0)
			until_us = load->now_us + REST_US;
		if (until_us > 0 && load->now_us >= until_us)
			return;
		turn(find, 0);
	}
}

static void let_all_end(struct load_find *find)
{
	struct load *load = find->load;

	load_session_stop_all(load);
	while (load->open > 0 && !load_told_to_hurry())
		turn(find, 0);
	load_session_cut_all(load);
	clear_stats(find);
}

struct load_find *load_find_run(struct load *load)
{
	const struct load_options *o = &load->options;
	const struct load_limit_config config = {
		.sessions_max = o->sessions,
		.band_factor = o->find.band_factor,
		.band_extra_us = (uint64_t)o->find.band_extra_ms * 1000,
	};
	struct load_find *find = calloc(1, sizeof(*find));

	if (find == NULL)
		err(1, "out of memory");
	find->load = load;
	load_limit_init(&find->limit, &config);
	while (find->limit.offer > 0 && take_step(find)) {
		if (find->steps[find->count - 1].verdict != LOAD_LIMIT_TAKEN)
			rest(find);
	}
	if (find->limit.offer == 0 && find->limit.bad == 0)
		find->end = LOAD_FIND_SESSIONS;
	else if (find->limit.offer == 0)
		find->end = LOAD_FIND_FOUND; /* also in the last moment */
	let_all_end(find);
	return find;
}
