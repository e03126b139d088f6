#include "tests/load.h"

#include <arpa/inet.h>
#include <assert.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tests/quantity.h"

enum {
	EVENTS_MAX = 64,
	STARTS_MAX = 128, /* sessions started before others are served */
	SPARE_FDS = 32,   /* for all but sessions */
	PROGRESS_US = 500000,
	BDAT_CHUNK_MIN = 2048, /* the header must fit into the first one */
	ADDRESS_MAX = 254,     /* RFC 5321, section 4.5.3.1.3 */
};

static volatile sig_atomic_t stop_signals;

static const char usage_text[] =
	"usage: weir-load [options] HOST:PORT\n"
	"\n"
	"Sends mail from many clients at once and tells how the server took\n"
	"it: latencies of each phase, reply codes, how sessions ended, and\n"
	"which messages were acknowledged.\n"
	"\n"
	"How much\n"
	"  -c, --sessions N        sessions open at once (1); with --rate, at\n"
	"                          most so many (as the open files allow)\n"
	"  -r, --rate N            start N sessions a second, whatever the\n"
	"                          server does; N/m and N/h also\n"
	"      --arrivals HOW      with --rate: poisson (default) or uniform\n"
	"  -n, --total N           end after N sessions (1, or no limit with\n"
	"                          --duration)\n"
	"  -d, --duration D        begin nothing new after D, such as 30s\n"
	"  -m, --messages N        messages in a session (1)\n"
	"  -R, --recipients N      recipients of a message (1)\n"
	"  -s, --size N[-N]        octets of a body, such as 4K or 1K-100K (4K)\n"
	"      --think D[-D]       pause between a session's messages (none)\n"
	"      --pause D           closed loop: a client comes again after D, not\n"
	"                          at once\n"
	"      --idle N            N more sessions that only say EHLO and stay\n"
	"\n"
	"From where, to whom\n"
	"      --sources N         from N addresses, 127.1.0.0 upward\n"
	"      --source-range CIDR from the addresses of an IPv4 network\n"
	"      --from ADDRESS      sender (sender@load.test)\n"
	"      --to ADDRESS        recipient; repeat it for --recipients; those\n"
	"                          beyond are rcptN.ADDRESS (rcpt@load.test)\n"
	"      --helo NAME         (client.load.test)\n"
	"\n"
	"How well they behave\n"
	"      --pipelining HOW    yes, no, auto: if it is offered (auto)\n"
	"      --bdat[=SIZE]       BDAT in place of DATA if CHUNKING is offered;\n"
	"                          in chunks of SIZE, or all in one\n"
	"      --slow PERCENT[:D]  so many send an octet every D (100ms)\n"
	"      --body-time D[-D]   send a message evenly over so long, after 354\n"
	"      --abort STAGE:PERCENT\n"
	"                          so many reset the connection at connect,\n"
	"                          greeting, ehlo, mail, rcpt, data (after\n"
	"                          354), body (in its middle), eod (when all is\n"
	"                          sent), quit; may be repeated\n"
	"      --timeout D         for a reply (60s)\n"
	"      --seed N            the same seed makes the same messages\n"
	"\n"
	"Report\n"
	"  -j, --json FILE         also as JSON; \"-\": that in place of tables\n"
	"      --journal FILE      \"ID SHA256\" of each acknowledged message\n"
	"      --per-source        also for each source address\n"
	"  -q, --quiet             no tables, no progress\n"
	"  -h, --help              this text\n"
	"\n"
	"Every message has an X-Test-Id.  \"combined\" is the sum of SHA-256 over\n"
	"id and body of all acknowledged messages; weir-sink prints the same of\n"
	"those that it stored: equal means nothing was lost, none came twice.\n"
	"The whole session is timed from when it was due, so that a server\n"
	"which makes others wait does not look fast.\n"
	"\n"
	"How many sessions a second do my servers take?  Raise --rate until p99\n"
	"of \"session\" or the refusals rise:\n"
	"  weir-load --rate 200 --duration 30s --size 1K-100K --sources 500 \\\n"
	"      mail.example.test:25\n"
	"How many at once?\n"
	"  weir-load --sessions 500 --duration 30s --think 1s --messages 5 \\\n"
	"      mail.example.test:25\n"
	"Does mail still flow beside 5000 idle clients, some slow ones, and\n"
	"some that vanish?\n"
	"  weir-load --idle 5000 --sessions 50 --duration 60s --slow 5% \\\n"
	"      --abort data:2 --abort body:2 --sources 200 mail.example.test:25\n"
	"\n"
	"Exit status: 0 all as asked, 1 bad usage or cannot start, 2 some\n"
	"sessions failed.  Send mail only to servers that are yours.\n";

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

/* --- options --- */

static bool read_rate(const char *text, double *out)
{
	char *end = NULL;
	double rate = strtod(text, &end);

	if (end == text || !isfinite(rate) || rate <= 0 || rate > 1e6)
		return false;
	if (strcmp(end, "/m") == 0)
		rate /= 60;
	else if (strcmp(end, "/h") == 0)
		rate /= 3600;
	else if (*end != '\0' && strcmp(end, "/s") != 0)
		return false;
	*out = rate;
	return true;
}

static bool read_choice(const char *text, enum load_choice *out)
{
	if (strcmp(text, "yes") == 0)
		*out = LOAD_YES;
	else if (strcmp(text, "no") == 0)
		*out = LOAD_NO;
	else if (strcmp(text, "auto") == 0)
		*out = LOAD_AUTO;
	else
		return false;
	return true;
}

static bool read_abort(struct load_options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon == NULL)
		return false;
	*colon = '\0';
	for (unsigned p = 0; p < LOAD_SESSION; p++) {
		if (p == LOAD_RSET ||
		    strcmp(text, load_report_phase_name((enum load_phase)p)) !=
			    0)
			continue;
		return quantity_percent(colon + 1, &o->abort_percent[p]);
	}
	return false;
}

static bool read_slow(struct load_options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon != NULL) {
		*colon = '\0';
		if (!quantity_duration(colon + 1, &o->slow_ms) ||
		    o->slow_ms == 0)
			return false;
	}
	return quantity_percent(text, &o->slow_percent);
}

static bool read_range(struct load_options *o, char *text)
{
	char *slash = strchr(text, '/');
	uint64_t bits = 32;
	struct in_addr in;

	if (slash != NULL) {
		*slash = '\0';
		if (!quantity_count(slash + 1, 32, &bits) || bits == 0)
			return false;
	}
	if (inet_pton(AF_INET, text, &in) != 1)
		return false;
	uint64_t count = UINT64_C(1) << (32 - bits);

	o->source_first = ntohl(in.s_addr) & ~(uint32_t)(count - 1);
	o->source_count = count;
	return true;
}

/* No octet that could end a command line, nor the path. */
static bool is_address(const char *text)
{
	size_t len = strlen(text);

	if (len > ADDRESS_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] <= ' ' || text[i] == '<' || text[i] == '>')
			return false;
	}
	return true;
}

static bool read_to(struct load_options *o, const char *text)
{
	if (!is_address(text) || *text == '\0' || o->to_count == LOAD_TO_MAX)
		return false;
	o->to[o->to_count++] = text;
	return true;
}

static bool read_target(struct load_options *o, const char *text)
{
	const char *colon = strrchr(text, ':');
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	char host[256];

	if (colon == NULL || colon == text || strchr(text, '"') != NULL ||
	    (size_t)(colon - text) >= sizeof(host))
		return false;
	size_t len = (size_t)(colon - text);

	if (text[0] == '[' && text[len - 1] == ']') {
		text++;
		len -= 2;
	}
	memcpy(host, text, len);
	host[len] = '\0';
	if (o->source_count > 0)
		hints.ai_family = AF_INET;
	int error = getaddrinfo(host, colon + 1, &hints, &found);

	if (error != 0)
		errx(1, "%s: %s", text, gai_strerror(error));
	memcpy(&o->target, found->ai_addr, found->ai_addrlen);
	o->target_len = found->ai_addrlen;
	freeaddrinfo(found);
	return true;
}

enum option_code {
	OPT_ARRIVALS = 256,
	OPT_THINK,
	OPT_PAUSE,
	OPT_IDLE,
	OPT_SOURCES,
	OPT_SOURCE_RANGE,
	OPT_FROM,
	OPT_TO,
	OPT_HELO,
	OPT_PIPELINING,
	OPT_BDAT,
	OPT_SLOW,
	OPT_BODY_TIME,
	OPT_ABORT,
	OPT_TIMEOUT,
	OPT_SEED,
	OPT_JOURNAL,
	OPT_PER_SOURCE,
};

static const struct option longs[] = {
	{ "sessions", required_argument, NULL, 'c' },
	{ "rate", required_argument, NULL, 'r' },
	{ "arrivals", required_argument, NULL, OPT_ARRIVALS },
	{ "total", required_argument, NULL, 'n' },
	{ "duration", required_argument, NULL, 'd' },
	{ "messages", required_argument, NULL, 'm' },
	{ "recipients", required_argument, NULL, 'R' },
	{ "size", required_argument, NULL, 's' },
	{ "think", required_argument, NULL, OPT_THINK },
	{ "pause", required_argument, NULL, OPT_PAUSE },
	{ "idle", required_argument, NULL, OPT_IDLE },
	{ "sources", required_argument, NULL, OPT_SOURCES },
	{ "source-range", required_argument, NULL, OPT_SOURCE_RANGE },
	{ "from", required_argument, NULL, OPT_FROM },
	{ "to", required_argument, NULL, OPT_TO },
	{ "helo", required_argument, NULL, OPT_HELO },
	{ "pipelining", required_argument, NULL, OPT_PIPELINING },
	{ "bdat", optional_argument, NULL, OPT_BDAT },
	{ "slow", required_argument, NULL, OPT_SLOW },
	{ "body-time", required_argument, NULL, OPT_BODY_TIME },
	{ "abort", required_argument, NULL, OPT_ABORT },
	{ "timeout", required_argument, NULL, OPT_TIMEOUT },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "json", required_argument, NULL, 'j' },
	{ "journal", required_argument, NULL, OPT_JOURNAL },
	{ "per-source", no_argument, NULL, OPT_PER_SOURCE },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* Options that say how much.  False: the value is not allowed. */
static bool read_amount(struct load_options *o, int c, const char *value)
{
	switch (c) {
	case 'c':
		return quantity_count(value, 1000000, &o->sessions) &&
		       o->sessions > 0;
	case 'r':
		return read_rate(value, &o->rate);
	case OPT_ARRIVALS:
		o->uniform = strcmp(value, "uniform") == 0;
		return o->uniform || strcmp(value, "poisson") == 0;
	case 'n':
		return quantity_count(value, UINT32_MAX, &o->total) &&
		       o->total > 0;
	case 'd':
		return quantity_duration(value, &o->duration_ms) &&
		       o->duration_ms > 0;
	case 'm':
		return quantity_count(value, UINT32_MAX, &o->messages) &&
		       o->messages > 0;
	case 'R':
		return quantity_count(value, 10000, &o->recipients) &&
		       o->recipients > 0;
	case 's':
		return quantity_size_range(value, &o->size_min, &o->size_max);
	case OPT_THINK:
		return quantity_duration_range(value, &o->think_min_ms,
					       &o->think_max_ms);
	case OPT_PAUSE:
		return quantity_duration(value, &o->pause_ms);
	case OPT_BODY_TIME:
		return quantity_duration_range(value, &o->body_min_ms,
					       &o->body_max_ms);
	case OPT_IDLE:
		return quantity_count(value, 1000000, &o->idle);
	case OPT_SOURCES:
		o->source_first = 0x7f010000; /* 127.1.0.0 */
		return quantity_count(value, 0xfe0000, &o->source_count) &&
		       o->source_count > 0;
	case OPT_TIMEOUT:
		return quantity_duration(value, &o->timeout_ms) &&
		       o->timeout_ms > 0;
	case OPT_SEED:
		return quantity_count(value, UINT64_MAX, &o->seed);
	default:
		return false;
	}
}

/* The others. */
static bool read_manner(struct load_options *o, int c, char *value)
{
	switch (c) {
	case OPT_SOURCE_RANGE:
		return read_range(o, value);
	case OPT_FROM:
		o->from = value;
		return is_address(value);
	case OPT_TO:
		return read_to(o, value);
	case OPT_HELO:
		o->helo = value;
		return is_address(value) && *value != '\0';
	case OPT_PIPELINING:
		return read_choice(value, &o->pipelining);
	case OPT_BDAT:
		o->bdat = true;
		return *value == '\0' ||
		       (quantity_size(value, &o->bdat_chunk) &&
			o->bdat_chunk >= BDAT_CHUNK_MIN);
	case OPT_SLOW:
		return read_slow(o, value);
	case OPT_ABORT:
		return read_abort(o, value);
	case 'j':
		o->json = value;
		return true;
	case OPT_JOURNAL:
		o->journal = value;
		return true;
	case OPT_PER_SOURCE:
		o->per_source = true;
		return true;
	case 'q':
		o->quiet = true;
		return true;
	default:
		return false;
	}
}

static const char *name_of(int c)
{
	for (size_t i = 0; longs[i].name != NULL; i++) {
		if (longs[i].val == c)
			return longs[i].name;
	}
	return "?";
}

/* What does not go together, each allowed by itself. */
static void check_options(const struct load_options *o)
{
	if (o->target.ss_family != AF_INET && o->source_count > 0)
		errx(1, "%s: source addresses are IPv4 only", o->target_text);
	if (o->pause_ms > 0 && o->rate > 0)
		errx(1, "--pause: with --rate nobody waits for an end");
	if (o->body_max_ms > 0 && o->bdat)
		errx(1, "--body-time: not with --bdat");
	if (o->per_source &&
	    (o->source_count == 0 || o->source_count > LOAD_SOURCES_MAX))
		errx(1,
		     "--per-source: --sources or --source-range of 1 to %d "
		     "is needed",
		     LOAD_SOURCES_MAX);
}

static void read_options(struct load_options *o, int argc, char **argv)
{
	int c = 0;
	bool given_sessions = false;
	char none[] = ""; /* the value of an option that has none */

	while ((c = getopt_long(argc, argv, "c:r:n:d:m:R:s:j:qh", longs,
				NULL)) != -1) {
		if (c == 'h') {
			fputs(usage_text, stdout);
			exit(0);
		}
		if (c == '?') { /* getopt_long has said why */
			fputs("weir-load -h explains all options\n", stderr);
			exit(1);
		}
		given_sessions |= c == 'c' || c == 'r' || c == 'n';
		char *value = optarg == NULL ? none : optarg;

		if (!read_amount(o, c, value) && !read_manner(o, c, value)) {
			errx(1,
			     "--%s: \"%s\" is not allowed; weir-load -h "
			     "explains all options",
			     name_of(c), value);
		}
	}
	if (optind + 1 != argc)
		errx(1, "one HOST:PORT is needed; weir-load -h explains all");
	o->target_text = argv[optind];
	if (!read_target(o, o->target_text))
		errx(1, "%s: HOST:PORT is expected", o->target_text);
	check_options(o);
	if (o->to_count == 0)
		o->to[o->to_count++] = "rcpt@load.test";
	if (o->idle > 0 && !given_sessions)
		o->sessions = 0; /* only idle ones */
	else if (o->sessions == 0)
		o->sessions = o->rate > 0 ? UINT64_MAX : 1;
	if (o->total == 0 && o->duration_ms == 0 && o->sessions > 0)
		o->total = 1;
}

/* --- the loop --- */

static void on_signal(int number)
{
	(void)number;
	stop_signals++;
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
	for (size_t i = 0; i < p->cap; i++)
		load_pause(load, load->now_us + o->pause_ms * 1000 *
							(int64_t)i /
							(int64_t)p->cap);
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

static void serve(struct load *load, int64_t wait_us)
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
	if (time_up || all_done || stop_signals > 0)
		load_session_stop_all(load);
}

static void run(struct load *load)
{
	bool show = !load->options.quiet && isatty(STDERR_FILENO) == 1;
	struct plan plan = { .next_us = load->now_us };

	do {
		start_some(load, &plan);
		serve(load, pause_us(load, &plan));
		see_to_end(load, &plan);
		load_session_reap(load);
		if (show && load->now_us - load->progress_us >= PROGRESS_US)
			load_report_progress(load);
		if (stop_signals > 1)
			break; /* the user does not want to wait */
	} while (!is_over(load, &plan) || load->open + load->idle_open > 0);
	if (show)
		fputs("\r\033[K", stderr);
}

static void report(const struct load *load)
{
	const struct load_options *o = &load->options;
	bool json_only = o->json != NULL && strcmp(o->json, "-") == 0;

	if (json_only) {
		load_report_json(load, stdout);
	} else if (o->json != NULL) {
		FILE *out = fopen(o->json, "we");

		if (out == NULL)
			err(1, "%s", o->json);
		load_report_json(load, out);
		if (fclose(out) != 0)
			err(1, "%s", o->json);
	}
	if (!o->quiet && !json_only)
		load_report_tables(load, stdout);
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
	    sigaction(SIGTERM, &act, NULL) != 0)
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
		/* The ids of two runs shall differ. */
		.seed = (uint64_t)load_clock_us() % UINT32_MAX,
	};
	return load;
}

static void load_free(struct load *load)
{
	load_message_free(load);
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

	read_options(&load->options, argc, argv);
	raise_limit(&load->options);
	prepare(load);
	run(load);
	load->now_us = load_clock_us();
	if (load->journal != NULL && fclose(load->journal) != 0)
		err(1, "%s", load->options.journal);
	report(load);

	int status = load_report_failed(load->stats) > 0 ? 2 : 0;

	load_free(load);
	return status;
}
