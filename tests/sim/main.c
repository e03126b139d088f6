#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/cases.h"
#include "tests/sim/limits.h"
#include "tests/sim/mutate.h"
#include "tests/sim/storm.h"

/*
 * weir-sim: the whole of weir through as many bad days as there are seeds.
 */

enum {
	JOBS_MAX = 64,
	FAILURES_SHOWN = 100,
	TWICE_EVERY = 10,    /* seeds that are run twice to compare hashes */
	MUTATION_SEEDS = 60, /* within these each bug must be caught */
	STATUS_FAILED = 1,
	STATUS_USAGE = 2,
};

struct options {
	uint64_t first, last;
	unsigned jobs;
	unsigned bug;
	bool seeds, trace, mutations, cases, limits;
	const char *case_name, *limit_name;
};

/* What one process found out. */
struct tally {
	unsigned passed, failed;
	struct check_totals totals;
	uint64_t turns;
	int64_t virtual_us;
};

static void usage(FILE *out)
{
	fputs("usage: weir-sim --seeds A..B [--jobs N] [--mutate NAME]\n"
	      "       weir-sim --seed N [--trace] [--mutate NAME]\n"
	      "       weir-sim --cases | --case NAME [--trace]\n"
	      "       weir-sim --limits | --limit NAME [--seeds A..B] "
	      "[--trace]\n"
	      "       weir-sim --mutations\n",
	      out);
}

static void totals_add(struct check_totals *sum, const struct check_totals *t)
{
	sum->clients += t->clients;
	sum->connected += t->connected;
	sum->greeted += t->greeted;
	sum->refused += t->refused;
	sum->messages += t->messages;
	sum->acknowledged += t->acknowledged;
	sum->ended += t->ended;
	sum->accepted += t->accepted;
	sum->deeds += t->deeds;
	sum->waited += t->waited;
	sum->saturated += t->saturated;
	sum->reused += t->reused;
	sum->parked += t->parked;
	sum->replayed += t->replayed;
	sum->spilled += t->spilled;
	sum->final_retries += t->final_retries;
	sum->secured += t->secured;
	sum->secured_farm += t->secured_farm;
	sum->introduced += t->introduced;
	sum->authenticated += t->authenticated;
}

/* --- seeds --- */

/* Each seed in a process of its own: a crash is a finding like others. */
static bool run_seed(uint64_t seed, const struct options *o,
		     struct storm_result *result)
{
	storm_run(seed, o->bug, o->trace ? stdout : NULL, result);
	if (!result->passed || o->trace || seed % TWICE_EVERY != 0)
		return result->passed;
	struct storm_result again;
	storm_run(seed, o->bug, NULL, &again);
	if (again.hash == result->hash)
		return true;
	result->passed = false;
	snprintf(result->why, sizeof(result->why),
		 "run twice, it came out differently: %016" PRIx64
		 " and %016" PRIx64,
		 result->hash, again.hash);
	return false;
}

static void report_failure(uint64_t seed, const struct options *o,
			   const char *why)
{
	printf("FAIL seed %" PRIu64 ": %s\n     weir-sim --seed %" PRIu64
	       " --trace%s%s\n",
	       seed, why, seed, o->bug != 0 ? " --mutate " : "",
	       o->bug != 0 ? mutate_name(o->bug) : "");
	fflush(stdout);
}

/* What a child writes to its parent after each seed. */
struct note {
	uint64_t seed;
	struct storm_result result;
};

static void child_run(const struct options *o, uint64_t first, unsigned stride,
		      int out)
{
	static struct note note;

	for (uint64_t seed = first; seed <= o->last; seed += stride) {
		note.seed = seed;
		(void)run_seed(seed, o, &note.result);
		if (write(out, &note, sizeof(note)) != sizeof(note))
			_exit(STATUS_FAILED);
	}
	_exit(0);
}

static bool read_whole(int in, void *to, size_t len)
{
	uint8_t *at = to;

	while (len > 0) {
		ssize_t n = read(in, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += n;
		len -= (size_t)n;
	}
	return true;
}

static void note_taken(const struct note *note, const struct options *o,
		       struct tally *tally)
{
	totals_add(&tally->totals, &note->result.totals);
	tally->turns += note->result.turns;
	tally->virtual_us += note->result.virtual_us;
	if (note->result.passed) {
		tally->passed++;
	} else {
		tally->failed++;
		if (tally->failed <= FAILURES_SHOWN)
			report_failure(note->seed, o, note->result.why);
	}
}

struct job {
	pid_t pid;
	int in;
	uint64_t next;
};

static void job_start(struct job *job, const struct options *o)
{
	int ends[2];

	if (pipe(ends) != 0) {
		perror("weir-sim: pipe");
		exit(STATUS_FAILED);
	}
	fflush(stdout);
	job->pid = fork();
	if (job->pid < 0) {
		perror("weir-sim: fork");
		exit(STATUS_FAILED);
	}
	if (job->pid == 0) {
		close(ends[0]);
		child_run(o, job->next, o->jobs, ends[1]);
	}
	close(ends[1]);
	job->in = ends[0];
}

/* One result of a job; false: it has no more. */
static bool job_take(struct job *job, const struct options *o,
		     struct tally *tally)
{
	static struct note note;
	char why[64];
	int status = 0;

	if (read_whole(job->in, &note, sizeof(note))) {
		note_taken(&note, o, tally);
		job->next = note.seed + o->jobs;
		return true;
	}
	close(job->in);
	(void)waitpid(job->pid, &status, 0);
	if (job->next > o->last)
		return false;
	/* It died of this seed: go on behind it. */
	snprintf(why, sizeof(why), "the process ended with %s %d",
		 WIFSIGNALED(status) ? "signal" : "status",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	tally->failed++;
	if (tally->failed <= FAILURES_SHOWN)
		report_failure(job->next, o, why);
	job->next += o->jobs;
	if (job->next > o->last)
		return false;
	job_start(job, o);
	return true;
}

static void run_seeds(const struct options *o, struct tally *tally)
{
	struct job jobs[JOBS_MAX];
	bool more[JOBS_MAX];
	unsigned running = o->jobs;

	for (unsigned i = 0; i < o->jobs; i++) {
		jobs[i] = (struct job){ .next = o->first + i };
		more[i] = jobs[i].next <= o->last;
		if (more[i])
			job_start(&jobs[i], o);
		else
			running--;
	}
	while (running > 0) {
		for (unsigned i = 0; i < o->jobs; i++) {
			if (!more[i])
				continue;
			more[i] = job_take(&jobs[i], o, tally);
			running -= !more[i];
		}
	}
}

static int do_seeds(const struct options *o)
{
	struct tally tally = { 0 };
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	run_seeds(o, &tally);
	clock_gettime(CLOCK_MONOTONIC, &to);
	const struct check_totals *t = &tally.totals;
	printf("clients %u, connected %u, greeted %u, refused %u; messages "
	       "%u, ended at backends %u, accepted %u, acknowledged %u; "
	       "deeds %u\n",
	       t->clients, t->connected, t->greeted, t->refused, t->messages,
	       t->ended, t->accepted, t->acknowledged, t->deeds);
	printf("waited %u, turned away as the room was full %u, reused %u, "
	       "parked %u, replayed %u, spilled %u, refused and given to "
	       "another %u\n",
	       t->waited, t->saturated, t->reused, t->parked, t->replayed,
	       t->spilled, t->final_retries);
	printf("in TLS %u clients and %u connections to backends; introduced "
	       "%u, authenticated %u\n",
	       t->secured, t->secured_farm, t->introduced, t->authenticated);
	printf("%" PRIu64 " turns, %.1f h of virtual time in %.1f s\n",
	       tally.turns, (double)tally.virtual_us / SIM_SECOND / 3600,
	       (double)(to.tv_sec - from.tv_sec) +
		       (double)(to.tv_nsec - from.tv_nsec) / 1e9);
	printf("%u passed, %u failed\n", tally.passed, tally.failed);
	return tally.failed > 0 ? STATUS_FAILED : 0;
}

static int do_seed(const struct options *o)
{
	static struct storm_result result;

	if (!run_seed(o->first, o, &result))
		report_failure(o->first, o, result.why);
	printf("seed %" PRIu64 ": hash %016" PRIx64 ", %" PRIu64
	       " turns, %.1f s of virtual time, %u messages acknowledged\n",
	       o->first, result.hash, result.turns,
	       (double)result.virtual_us / SIM_SECOND,
	       result.totals.acknowledged);
	printf("%d passed, %d failed\n", result.passed, !result.passed);
	return result.passed ? 0 : STATUS_FAILED;
}

/* --- bugs --- */

/* Does the bug show with this seed, in a process of its own? */
static bool bug_shows(uint64_t seed, unsigned bug, char *why, size_t size)
{
	static struct storm_result result;
	int ends[2], status = 0;

	if (pipe(ends) != 0)
		return false;
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		/* An assertion of the product may speak: not in our report. */
		(void)!freopen("/dev/null", "w", stderr);
		storm_run(seed, bug, NULL, &result);
		(void)!write(ends[1], &result, sizeof(result));
		_exit(0);
	}
	close(ends[1]);
	bool whole = read_whole(ends[0], &result, sizeof(result));
	close(ends[0]);
	(void)waitpid(pid, &status, 0);
	if (whole)
		snprintf(why, size, "%s", result.why);
	else
		snprintf(why, size, "signal %d",
			 WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	return !whole || !result.passed;
}

static int do_mutations(void)
{
	unsigned passed = 0, failed = 0;
	char why[WORLD_WHY_MAX];

	for (unsigned bug = 1; bug < MUTATE_BUGS; bug++) {
		uint64_t seed = 1;

		/* The bug must show, and nothing without it. */
		while (seed <= MUTATION_SEEDS &&
		       (bug_shows(seed, MUTATE_NONE, why, sizeof(why)) ||
			!bug_shows(seed, bug, why, sizeof(why))))
			seed++;
		if (seed <= MUTATION_SEEDS) {
			printf("ok   %s: caught by seed %" PRIu64 ": %.120s\n",
			       mutate_name(bug), seed, why);
			passed++;
		} else {
			printf("FAIL %s: not caught by %d seeds\n",
			       mutate_name(bug), MUTATION_SEEDS);
			failed++;
		}
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed > 0 ? STATUS_FAILED : 0;
}

/* --- the command line --- */

static bool parse_range(const char *text, struct options *o)
{
	char *end;

	o->first = strtoull(text, &end, 10);
	o->last = o->first;
	if (strncmp(end, "..", 2) == 0)
		o->last = strtoull(end + 2, &end, 10);
	return *end == '\0' && end != text && o->last >= o->first;
}

static bool parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "seeds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'n' },
		{ "jobs", required_argument, NULL, 'j' },
		{ "trace", no_argument, NULL, 't' },
		{ "mutate", required_argument, NULL, 'm' },
		{ "mutations", no_argument, NULL, 'M' },
		{ "case", required_argument, NULL, 'c' },
		{ "cases", no_argument, NULL, 'C' },
		{ "limit", required_argument, NULL, 'l' },
		{ "limits", no_argument, NULL, 'L' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 's' || c == 'n') {
			o->seeds = c == 's';
			if (!parse_range(optarg, o))
				return false;
		} else if (c == 'j') {
			o->jobs = (unsigned)strtoul(optarg, NULL, 10);
			if (o->jobs < 1 || o->jobs > JOBS_MAX)
				return false;
		} else if (c == 't') {
			o->trace = true;
		} else if (c == 'm') {
			o->bug = mutate_find(optarg);
			if (o->bug == MUTATE_NONE)
				return false;
		} else if (c == 'M') {
			o->mutations = true;
		} else if (c == 'c') {
			o->case_name = optarg;
		} else if (c == 'C') {
			o->cases = true;
		} else if (c == 'l') {
			o->limit_name = optarg;
		} else if (c == 'L') {
			o->limits = true;
		} else {
			return false;
		}
	}
	return optind == argc;
}

int main(int argc, char **argv)
{
	struct options o = { .jobs = 1 };

	if (!parse(argc, argv, &o)) {
		usage(stderr);
		return STATUS_USAGE;
	}
	if (o.trace)
		setvbuf(stdout, NULL, _IOLBF, 0); /* a crash may end it */
	if (o.mutations)
		return do_mutations();
	if (o.cases || o.case_name != NULL)
		return cases_run(o.case_name, o.trace) ? 0 : STATUS_FAILED;
	if (o.limits || o.limit_name != NULL) {
		uint64_t first = o.last > 0 ? o.first : 1;
		uint64_t last = o.last > 0 ? o.last : 1;

		return limits_run(o.limit_name, first, last, o.trace)
			       ? 0
			       : STATUS_FAILED;
	}
	if (o.seeds)
		return do_seeds(&o);
	if (o.last > 0)
		return do_seed(&o);
	usage(stderr);
	return STATUS_USAGE;
}
