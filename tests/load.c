#include "tests/load.h"

#include <assert.h>
#include <err.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tests/load_find.h"

enum {
	EVENTS_MAX = 64,
	STARTS_MAX = 128, /* sessions started before others are served */
	SPARE_FDS = 32,   /* for all but sessions */
	PROGRESS_US = 500000,
};

static volatile sig_atomic_t stop_signals;
static volatile sig_atomic_t forget_signals;

int64_t load_clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static uint64_t random_next(struct load *load)
{
	/* splitmix64 */
	uint64_t z = load->random += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

uint64_t load_between(struct load *load, uint64_t low, uint64_t high)
{
	assert(low <= high);
	if (low == high)
		return low;
	return low + random_next(load) % (high - low + 1);
}

/* In (0, 1]. */
static double random_fraction(struct load *load)
{
	return ((double)(random_next(load) >> 11) + 1) / 9007199254740992.0;
}

bool load_chance(struct load *load, double percent)
{
	return random_fraction(load) * 100 <= percent;
}

/* --- the loop --- */

static void on_signal(int number)
{
	if (number == SIGUSR1)
		forget_signals++;
	else
		stop_signals++;
}

bool load_told_to_stop(void)
{
	return stop_signals > 0;
}

bool load_told_to_hurry(void)
{
	return stop_signals > 1;
}

static void raise_limit(struct load_options *o)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		err(1, "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		err(1, "cannot raise the limit of open files");
	uint64_t room = limit.rlim_cur > SPARE_FDS
				? (uint64_t)limit.rlim_cur - SPARE_FDS
				: 1;

	if (o->sessions == UINT64_MAX && room > o->idle)
		o->sessions = room - o->idle;
	if (o->sessions > room || o->idle > room ||
	    o->sessions + o->idle > room) {
		errx(1,
		     "%llu sessions and %llu idle ones need more than the "
		     "%llu open files allowed: see ulimit -Hn",
		     (unsigned long long)o->sessions,
		     (unsigned long long)o->idle,
		     (unsigned long long)limit.rlim_cur);
	}
}

/* What is to be begun, and when. */
struct plan {
	int64_t next_us; /* open loop: the next arrival */
	uint64_t begun;  /* sessions without the idle ones, overruns too */
};

static bool is_over(const struct load *load, const struct plan *plan)
{
	const struct load_options *o = &load->options;

	if (load->stopping)
		return true;
	return o->total > 0 && plan->begun >= o->total;
}

static void advance(struct load *load, struct plan *plan)
{
	const struct load_options *o = &load->options;
	double gap = 1 / o->rate;

	if (!o->uniform)
		gap *= -log(random_fraction(load));
	plan->next_us += (int64_t)(gap * 1e6);
}

void load_pause(struct load *load, int64_t due_us)
{
	struct load_pauses *p = &load->pauses;

	assert(p->count < p->cap);
	p->due_us[(p->first + p->count) % p->cap] = due_us;
	p->count++;
}

/*
 * With --pause every client is in the ring or has a session.  At first all
 * are in it, spread over one pause, so that they do not come in step.
 */
static void prepare_pauses(struct load *load)
{
	const struct load_options *o = &load->options;
	struct load_pauses *p = &load->pauses;

	if (o->pause_ms == 0 || o->sessions == 0)
		return;
	p->cap = (size_t)o->sessions;
	p->due_us = calloc(p->cap, sizeof(*p->due_us));
	if (p->due_us == NULL)
		err(1, "out of memory");
	for (size_t i = 0; i < p->cap; i++) {
		load_pause(load, load->now_us + o->pause_ms * 1000 *
							(int64_t)i /
							(int64_t)p->cap);
	}
}

/*
 * When the next session is due, without --idle's.  INT64_MAX: not before
 * another one ends.
 */
static int64_t next_due_us(const struct load *load, const struct plan *plan)
{
	const struct load_options *o = &load->options;
	const struct load_pauses *p = &load->pauses;

	if (is_over(load, plan))
		return INT64_MAX;
	if (o->rate > 0)
		return plan->next_us;
	if (p->cap > 0)
		return p->count > 0 ? p->due_us[p->first] : INT64_MAX;
	return load->open < o->sessions ? load->now_us : INT64_MAX;
}

/* The one that is due now. */
static void start_one(struct load *load, struct plan *plan)
{
	const struct load_options *o = &load->options;
	struct load_pauses *p = &load->pauses;
	int64_t due_us = next_due_us(load, plan);

	plan->begun++;
	if (p->cap > 0) {
		p->first = (p->first + 1) % p->cap;
		p->count--;
	}
	if (load->open >= o->sessions)
		load->stats->overrun++;
	else
		load_session_start(load, false, due_us);
	if (o->rate > 0)
		advance(load, plan);
}

static void start_some(struct load *load, struct plan *plan)
{
	const struct load_options *o = &load->options;
	unsigned started = 0;

	while (!load->stopping && load->idle_started < o->idle &&
	       started++ < STARTS_MAX) {
		load->idle_started++;
		load_session_start(load, true, load->now_us);
	}
	/* Idle ones first: the others shall meet them. */
	if (load->idle_started < o->idle)
		return;
	while (next_due_us(load, plan) <= load->now_us &&
	       started++ < STARTS_MAX)
		start_one(load, plan);
}

/* Microseconds to the next thing that time brings. */
static int64_t pause_us(const struct load *load, const struct plan *plan)
{
	const struct load_options *o = &load->options;
	const struct heap_node *first = heap_first(&load->timers);
	int64_t due_us = next_due_us(load, plan);
	int64_t pause = PROGRESS_US;

	if (first != NULL && first->at_ms * 1000 - load->now_us < pause)
		pause = first->at_ms * 1000 - load->now_us + 1;
	if (due_us != INT64_MAX && due_us - load->now_us < pause)
		pause = due_us - load->now_us;
	if (load->idle_started < o->idle && !load->stopping)
		pause = 0;
	return pause > 0 ? pause : 0;
}

void load_serve(struct load *load, int64_t wait_us)
{
	struct epoll_event events[EVENTS_MAX];
	struct timespec wait = { .tv_sec = wait_us / 1000000,
				 .tv_nsec = wait_us % 1000000 * 1000 };
	struct heap_node *first = NULL;
	int n = epoll_pwait2(load->epoll_fd, events, EVENTS_MAX, &wait, NULL);

	if (n < 0 && errno != EINTR)
		err(1, "epoll_pwait2");
	load->now_us = load_clock_us();
	for (int i = 0; i < n; i++)
		load_session_event(events[i].data.ptr, events[i].events);
	while ((first = heap_first(&load->timers)) != NULL &&
	       first->at_ms <= load->now_us / 1000)
		load_session_timer(load_session_of_timer(first));
	load_session_reap(load);
}

/* Stop when told to, or when nothing but idle sessions is left. */
static void see_to_end(struct load *load, const struct plan *plan)
{
	const struct load_options *o = &load->options;
	bool time_up = o->duration_ms > 0 &&
		       load->now_us - load->start_us >= o->duration_ms * 1000;
	bool all_done = o->sessions > 0 && is_over(load, plan) &&
			load->open == 0;

	if (load->stopping)
		return;
	if (time_up || all_done || load_told_to_stop())
		load_session_stop_all(load);
}

/* SIGUSR1: what was timed up to now is not of interest. */
static void forget_times(struct load *load)
{
	if (forget_signals == 0)
		return;
	forget_signals = 0;
	memset(load->stats->times, 0, sizeof(load->stats->times));
}

void load_prime(struct load *load)
{
	if (load->options.resume_percent <= 0)
		return;
	load->priming = true;
	load_session_start(load, false, load->now_us);
	while (load->open > 0 && !load_told_to_stop())
		load_serve(load, PROGRESS_US);
	load_session_cut_all(load);
	load->priming = false;
	if (load->ticket == NULL)
		warnx("there is no session to resume");
	memset(load->stats, 0, sizeof(*load->stats));
	if (load->sources != NULL) {
		memset(load->sources, 0,
		       (size_t)load->options.source_count *
			       sizeof(*load->sources));
	}
	load->now_us = load->start_us = load->progress_us = load_clock_us();
}

static void run(struct load *load)
{
	bool show = !load->options.quiet && isatty(STDERR_FILENO) == 1;
	struct plan plan = { .next_us = load->now_us };

	do {
		start_some(load, &plan);
		load_serve(load, pause_us(load, &plan));
		see_to_end(load, &plan);
		forget_times(load);
		load_session_reap(load);
		if (show && load->now_us - load->progress_us >= PROGRESS_US)
			load_report_progress(load);
		if (load_told_to_hurry())
			break; /* the user does not want to wait */
	} while (!is_over(load, &plan) || load->open + load->idle_open > 0);
	load_session_cut_all(load); /* there are some if it hurried */
	if (show)
		fputs("\r\033[K", stderr);
}

/* What there is to tell: of a search, or of a load. */
static void report_json(const struct load *load, const struct load_find *find,
			FILE *out)
{
	if (find != NULL)
		load_plot_json(find, out);
	else
		load_report_json(load, out);
}

static void report(const struct load *load, const struct load_find *find)
{
	const struct load_options *o = &load->options;
	bool json_only = o->json != NULL && strcmp(o->json, "-") == 0;

	if (json_only) {
		report_json(load, find, stdout);
	} else if (o->json != NULL) {
		FILE *out = fopen(o->json, "we");

		if (out == NULL)
			err(1, "%s", o->json);
		report_json(load, find, out);
		if (fclose(out) != 0)
			err(1, "%s", o->json);
	}
	if (o->quiet || json_only)
		return;
	if (find != NULL)
		load_plot_tables(find, stdout);
	else
		load_report_tables(load, stdout);
}

/* 2 if sessions failed, or if a search found that none is taken. */
static int status_of(const struct load *load, const struct load_find *find)
{
	if (find != NULL)
		return find->limit.good == 0 ? 2 : 0;
	return load_report_failed(load->stats) > 0 ? 2 : 0;
}

static void prepare(struct load *load)
{
	struct sigaction act = { .sa_handler = on_signal };

	load->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	load->read_buf = malloc((size_t)LOAD_LINE_MAX + LOAD_READ_MAX + 1);
	load->stats = calloc(1, sizeof(*load->stats));
	if (load->epoll_fd < 0 || load->read_buf == NULL || load->stats == NULL)
		err(1, "start");
	if (sigaction(SIGINT, &act, NULL) != 0 ||
	    sigaction(SIGTERM, &act, NULL) != 0 ||
	    sigaction(SIGUSR1, &act, NULL) != 0)
		err(1, "sigaction");
	if (load->options.journal != NULL) {
		load->journal = fopen(load->options.journal, "we");
		if (load->journal == NULL)
			err(1, "%s", load->options.journal);
	}
	load->random = load->options.seed;
	if (load->options.per_source) {
		load->sources = calloc((size_t)load->options.source_count,
				       sizeof(*load->sources));
		if (load->sources == NULL)
			err(1, "out of memory");
	}
	/* OpenSSL writes without MSG_NOSIGNAL. */
	(void)signal(SIGPIPE, SIG_IGN);
	if (load->options.secure != LOAD_CLEAR)
		load_tls_prepare(load);
	if (load->options.auth != NULL)
		load->login = load_login_new(load->options.auth);
	tally_init(&load->tally);
	load_message_prepare(load);
	load->now_us = load->start_us = load->progress_us = load_clock_us();
	prepare_pauses(load);
}

static struct load *load_new(void)
{
	struct load *load = calloc(1, sizeof(*load));

	if (load == NULL)
		err(1, "out of memory");
	memcpy(load->end_of_data, ".\r\n", sizeof(load->end_of_data));
	load->options = (struct load_options){
		.messages = 1,
		.recipients = 1,
		.size_min = 4096,
		.size_max = 4096,
		.pipelining = LOAD_AUTO,
		.slow_ms = 100,
		.timeout_ms = 60000,
		.from = "sender@load.test",
		.helo = "client.load.test",
		.find = { .sessions = 1000,
			  .time_ms = 300000,
			  .step_ms = 2000,
			  .band_factor = 4,
			  .band_extra_ms = 100 },
		/* The ids of two runs shall differ. */
		.seed = (uint64_t)load_clock_us() % UINT32_MAX,
	};
	return load;
}

static void load_free(struct load *load)
{
	load_message_free(load);
	load_tls_free(load);
	load_login_free(&load->login);
	tally_free(&load->tally);
	heap_free(&load->timers);
	free(load->read_buf);
	free(load->stats);
	free(load->sources);
	free(load->pauses.due_us);
	(void)close(load->epoll_fd);
	free(load);
}

int main(int argc, char **argv)
{
	struct load *load = load_new();

	load_options_read(&load->options, argc, argv);
	(void)setlocale(LC_CTYPE, ""); /* without it there are no blocks */
	raise_limit(&load->options);
	prepare(load);

	load_prime(load);

	struct load_find *find = NULL;

	if (load->options.find.on)
		find = load_find_run(load);
	else
		run(load);
	load->now_us = load_clock_us();
	if (load->journal != NULL && fclose(load->journal) != 0)
		err(1, "%s", load->options.journal);
	report(load, find);

	int status = status_of(load, find);

	free(find);
	load_free(load);
	return status;
}
