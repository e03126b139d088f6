#include "tests/sink.h"

#include <assert.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/cert.h"
#include "tests/quantity.h"
#include "tests/sink_control.h"
#include "tests/sink_session.h"

enum {
	EVENTS_MAX = 64,
	ERROR_MAX = 512,
	FIRST_PORT = 2525,
	JOURNAL_FLUSH_MS = 100, /* how late a reader of the journal may be */
};

struct signals {
	enum sink_kind kind;
	int fd;
	bool stop;
};

struct options {
	const char *control;
	bool quiet;
	char error[ERROR_MAX]; /* why it cannot start */
};

static const char usage_text[] =
	"usage: weir-sink [options] --mta KEY=VALUE,... [--mta ...]\n"
	"\n"
	"A farm of test mail servers in one process.  It takes mail at each\n"
	"MTA's port, counts and hashes it, and throws it away or stores it.\n"
	"Each MTA can be slow, busy, picky or dying, at any stage.\n"
	"\n"
	"  -m, --mta SETTINGS      one more MTA (settings below)\n"
	"  -e, --each SETTINGS     settings for every --mta behind it\n"
	"  -s, --store DIR         keep each stored message as a file\n"
	"  -j, --journal FILE      one JSON line for each message\n"
	"  -c, --control PORT|PATH accept commands there: stats, kill NAME,\n"
	"                          start NAME, stop NAME, cut NAME,\n"
	"                          set NAME KEY VALUE, show NAME, help\n"
	"  -C, --make-cert FILE    write a PEM certificate that signs itself, with\n"
	"                          its key, and end; FILE,NAME,...: for these\n"
	"                          names (" CERT_NAMES ")\n"
	"  -n, --no-hash           do not compute SHA-256 of messages\n"
	"  -S, --seed N            for everything that is random (1)\n"
	"  -q, --quiet             no summary at the end\n"
	"  -v, --verbose           print the dialogues to stderr\n"
	"  -h, --help              this text\n"
	"\n"
	"SIGUSR1 prints the statistics; SIGTERM or SIGINT ends it with them.\n"
	"\n"
	"Example: three servers, one with 5 slots that is busy as Exchange\n"
	"is, one that is full at every third MAIL, one slow at the end:\n"
	"\n"
	"  weir-sink --mta name=a,port=2601,slots=5 \\\n"
	"    --mta 'name=b,port=2602,mail=452 4.3.1 Full,mail-every=3' \\\n"
	"    --mta name=c,port=2603,slots=50,busy=queue,eod-delay=200ms-2s\n"
	"\n"
	"Settings, their defaults and meaning:\n"
	"\n";

static const char rules_text[] =
	"\n"
	"and for each STAGE of greeting, ehlo, mail, rcpt, data, eod (the\n"
	"reply to a message), quit, starttls, auth-reply, xclient-reply:\n"
	"\n"
	"  STAGE         none             reply in place of the usual one;\n"
	"                                 \\n ends a line, 421 also closes\n"
	"  STAGE-every   1                only each Nth time\n"
	"  STAGE-percent 100              only so often, at random\n"
	"  STAGE-delay   0                before the reply; A-B: at random\n"
	"\n"
	"A comma belongs to a text unless a setting's name and \"=\" follow.\n";

bool sink_chance(struct sink *sink, struct sink_chance *chance)
{
	chance->seen++;
	if (chance->every > 1 && chance->seen % chance->every != 0)
		return false;
	if (chance->percent >= 100)
		return true;
	int64_t millionths = sink_between(sink, 0, 999999);

	return (double)millionths < chance->percent * 1e4;
}

int64_t sink_between(struct sink *sink, int64_t low, int64_t high)
{
	assert(low <= high);
	if (low == high)
		return low;
	/* splitmix64 */
	uint64_t z = sink->random += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	z ^= z >> 31;
	return low + (int64_t)(z % (uint64_t)(high - low + 1));
}

void sink_print_stats(struct sink *sink, FILE *out, bool pretty)
{
	struct sink_stats all = { 0 };
	char hex[TALLY_HEX_SIZE];

	for (size_t i = 0; i < sink->mta_count; i++) {
		const struct sink_stats *one = &sink->mtas[i]->stats;

		all.accepted += one->accepted;
		all.sessions += one->sessions;
		all.refused += one->refused;
		all.octets += one->octets;
		for (size_t k = 0; k < SINK_OUTCOMES; k++)
			all.outcomes[k] += one->outcomes[k];
	}
	tally_hex(&sink->tally, hex);
	fprintf(out,
		"{\"stored\": %llu, \"distinct\": %llu, \"combined\": \"%s\", "
		"\"octets\": %llu",
		(unsigned long long)all.outcomes[SINK_STORED],
		(unsigned long long)sink_marks_distinct(sink->marks), hex,
		(unsigned long long)all.octets);
	fprintf(out,
		", \"rejected\": %llu, \"unanswered\": %llu, \"aborted\": "
		"%llu, \"accepted\": %llu, \"sessions\": %llu, \"refused\": "
		"%llu, \"mtas\": [",
		(unsigned long long)all.outcomes[SINK_REJECTED],
		(unsigned long long)all.outcomes[SINK_UNANSWERED],
		(unsigned long long)all.outcomes[SINK_ABORTED],
		(unsigned long long)all.accepted,
		(unsigned long long)all.sessions,
		(unsigned long long)all.refused);
	for (size_t i = 0; i < sink->mta_count; i++) {
		if (i > 0)
			fputc(',', out);
		if (pretty || i > 0)
			fputs(pretty ? "\n  " : " ", out);
		sink_mta_print_stats(sink->mtas[i], out);
	}
	fputs("]}\n", out);
	fflush(out);
	/* Whoever compares finds in the journal what was counted. */
	if (sink->journal != NULL && fflush(sink->journal) != 0)
		err(1, "journal");
}

static int64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- the loop --- */

static void signals_open(struct sink *sink, struct signals *signals)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = signals };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR1);
	signals->kind = SINK_KIND_SIGNALS;
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
		err(1, "sigprocmask");
	signals->fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals->fd < 0 ||
	    epoll_ctl(sink->epoll_fd, EPOLL_CTL_ADD, signals->fd, &ev) != 0)
		err(1, "signalfd");
}

static void signals_read(struct sink *sink, struct signals *signals)
{
	struct signalfd_siginfo info;

	while (read(signals->fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGUSR1)
			sink_print_stats(sink, stdout, true);
		else
			signals->stop = true;
	}
}

/* A slot was freed, or their number changed. */
static void settle(struct sink *sink)
{
	for (size_t i = 0; i < sink->mta_count; i++) {
		struct sink_mta *mta = sink->mtas[i];

		if (!mta->room_changed)
			continue;
		mta->room_changed = false;
		sink_session_admit_waiting(mta);
		sink_mta_adjust(mta);
	}
}

static void dispatch(struct sink *sink, const struct epoll_event *ev)
{
	enum sink_kind kind = *(const enum sink_kind *)ev->data.ptr;

	switch (kind) {
	case SINK_KIND_MTA:
		sink_session_accept(ev->data.ptr);
		break;
	case SINK_KIND_SESSION:
		sink_session_event(ev->data.ptr, ev->events);
		break;
	case SINK_KIND_CONTROL_LISTENER:
		sink_control_accept(ev->data.ptr);
		break;
	case SINK_KIND_CONTROL:
		sink_control_event(ev->data.ptr);
		break;
	case SINK_KIND_SIGNALS:
		signals_read(sink, ev->data.ptr);
		break;
	}
	settle(sink);
}

static struct sink_session *session_of(struct heap_node *timer)
{
	return (struct sink_session *)(void *)((char *)timer -
					       offsetof(struct sink_session,
							timer));
}

static int wait_ms(const struct sink *sink, bool journal_dirty)
{
	const struct heap_node *first = heap_first(&sink->timers);
	int64_t ms = first == NULL ? -1 : first->at_ms - sink->now_ms;

	if (first != NULL && ms < 0)
		ms = 0;
	if (journal_dirty && (ms < 0 || ms > JOURNAL_FLUSH_MS))
		ms = JOURNAL_FLUSH_MS;
	return ms > 60000 ? 60000 : (int)ms;
}

static void fire_timers(struct sink *sink)
{
	struct heap_node *first = NULL;

	while ((first = heap_first(&sink->timers)) != NULL &&
	       first->at_ms <= sink->now_ms) {
		sink_session_timer(session_of(first));
		settle(sink);
	}
}

static void loop(struct sink *sink, struct signals *signals)
{
	struct epoll_event events[EVENTS_MAX];
	int64_t flushed_ms = sink->now_ms;

	while (!signals->stop) {
		int n = epoll_wait(sink->epoll_fd, events, EVENTS_MAX,
				   wait_ms(sink, sink->journal != NULL));

		if (n < 0 && errno != EINTR)
			err(1, "epoll_wait");
		sink->now_ms = clock_ms();
		for (int i = 0; i < n; i++)
			dispatch(sink, &events[i]);
		fire_timers(sink);
		sink_session_reap(sink);
		if (sink->journal != NULL &&
		    sink->now_ms - flushed_ms >= JOURNAL_FLUSH_MS) {
			flushed_ms = sink->now_ms;
			if (fflush(sink->journal) != 0)
				err(1, "journal");
		}
	}
}

/* --- the beginning and the end --- */

static void raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		err(1, "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		warn("cannot raise the limit of open files");
}

/* The name goes into replies, file names and JSON as it is. */
static bool is_good_name(const char *name)
{
	return strspn(name, "abcdefghijklmnopqrstuvwxyz"
			    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") ==
	       strlen(name);
}

static void add_mta(struct sink *sink, const struct sink_mta *model,
		    const char *spec)
{
	struct sink_mta *mta = sink_mta_copy(model);
	char error[ERROR_MAX];
	char name[32];

	snprintf(name, sizeof(name), "mta%zu", sink->mta_count + 1);
	free(mta->name);
	mta->name = strdup(name);
	if (mta->port == 0)
		mta->port = FIRST_PORT + sink->mta_count;
	if (mta->name == NULL)
		err(1, "out of memory");
	if (!sink_mta_configure(mta, spec, error, sizeof(error)))
		errx(1, "--mta: %s", error);
	if (!is_good_name(mta->name)) {
		errx(1,
		     "--mta: name = \"%s\": letters, digits, dot, hyphen, "
		     "underscore are allowed",
		     mta->name);
	}
	for (size_t i = 0; i < sink->mta_count; i++) {
		if (strcmp(sink->mtas[i]->name, mta->name) == 0)
			errx(1, "--mta: two are named \"%s\"", mta->name);
	}
	struct sink_mta **grown = reallocarray(sink->mtas, sink->mta_count + 1,
					       sizeof(struct sink_mta *));

	if (grown == NULL)
		err(1, "out of memory");
	sink->mtas = grown;
	sink->mtas[sink->mta_count++] = mta;
}

static void print_help(void)
{
	fputs(usage_text, stdout);
	sink_mta_print_keys(stdout);
	fputs(rules_text, stdout);
}

static void open_journal(struct sink *sink, const char *path)
{
	sink->journal = fopen(path, "we");
	if (sink->journal == NULL)
		err(1, "journal %s", path);
}

static void open_store(struct sink *sink, const char *dir)
{
	if (mkdir(dir, 0777) != 0 && errno != EEXIST)
		err(1, "store %s", dir);
	sink->store_dir = dir;
}

/* "FILE" or "FILE,NAME,..." */
static void write_cert(const char *spec)
{
	size_t len = strcspn(spec, ",");
	char *path = strndup(spec, len);
	X509 *cert = NULL;
	EVP_PKEY *key = NULL;

	if (path == NULL)
		err(1, "out of memory");
	cert_make(spec[len] == ',' ? spec + len + 1 : CERT_NAMES, &cert, &key);
	int result = cert_write(path, cert, key);

	if (result < 0)
		errx(1, "%s: %s", path, strerror(-result));
	X509_free(cert);
	EVP_PKEY_free(key);
	free(path);
}

static void read_options(struct sink *sink, struct options *options, int argc,
			 char **argv)
{
	static const struct option longs[] = {
		{ "mta", required_argument, NULL, 'm' },
		{ "each", required_argument, NULL, 'e' },
		{ "store", required_argument, NULL, 's' },
		{ "journal", required_argument, NULL, 'j' },
		{ "control", required_argument, NULL, 'c' },
		{ "make-cert", required_argument, NULL, 'C' },
		{ "no-hash", no_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 'S' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct sink_mta *model = sink_mta_new(sink);
	int c = 0;

	while ((c = getopt_long(argc, argv, "m:e:s:j:c:C:nS:qvh", longs,
				NULL)) != -1) {
		switch (c) {
		case 'm':
			add_mta(sink, model, optarg);
			break;
		case 'e':
			if (!sink_mta_configure(model, optarg, options->error,
						ERROR_MAX))
				errx(1, "--each: %s", options->error);
			break;
		case 's':
			open_store(sink, optarg);
			break;
		case 'j':
			open_journal(sink, optarg);
			break;
		case 'c':
			options->control = optarg;
			break;
		case 'C':
			write_cert(optarg);
			exit(0);
		case 'n':
			sink->hash = false;
			break;
		case 'S':
			if (!quantity_count(optarg, UINT64_MAX, &sink->random))
				errx(1, "--seed %s: a number is expected",
				     optarg);
			break;
		case 'q':
			options->quiet = true;
			break;
		case 'v':
			sink->verbose = true;
			break;
		case 'h':
			print_help();
			exit(0);
		default: /* getopt_long has said why */
			fputs("weir-sink -h explains all options\n", stderr);
			exit(1);
		}
	}
	sink_mta_free(model);
	if (optind < argc)
		errx(1, "%s: not an option; weir-sink -h explains all",
		     argv[optind]);
	if (sink->mta_count == 0)
		errx(1, "no --mta was given; weir-sink -h explains all");
}

static void start(struct sink *sink, struct options *options)
{
	for (size_t i = 0; i < sink->mta_count; i++) {
		struct sink_mta *mta = sink->mtas[i];

		if (!sink_tls_prepare(mta, options->error, ERROR_MAX))
			errx(1, "%s: %s", mta->name, options->error);
		int result = sink_mta_listen(mta);

		if (result < 0) {
			errx(1, "%s: cannot listen at %s port %u: %s",
			     mta->name, mta->address, (unsigned)mta->port,
			     strerror(-result));
		}
		mta->started = true;
		if (!options->quiet)
			printf("listening %s %s %u\n", mta->name, mta->address,
			       (unsigned)sink_mta_port(mta));
	}
	/* Somebody may wait for this line. */
	printf("ready\n");
	fflush(stdout);
}

static void finish(struct sink *sink, const struct options *options)
{
	for (size_t i = 0; i < sink->mta_count; i++)
		sink_mta_kill(sink->mtas[i]);
	sink_session_reap(sink);
	if (!options->quiet)
		sink_print_stats(sink, stdout, true);
	if (sink->journal != NULL && fclose(sink->journal) != 0)
		err(1, "journal");
	for (size_t i = 0; i < sink->mta_count; i++)
		sink_mta_free(sink->mtas[i]);
	free(sink->mtas);
	free(sink->read_buf);
	heap_free(&sink->timers);
	X509_free(sink->cert);
	EVP_PKEY_free(sink->key);
	tally_free(&sink->tally);
	sink_marks_free(&sink->marks);
	(void)close(sink->epoll_fd);
}

int main(int argc, char **argv)
{
	struct sink sink = {
		.hash = true,
		.random = 1,
		.now_ms = clock_ms(),
		.epoll_fd = epoll_create1(EPOLL_CLOEXEC),
		.read_buf = malloc((size_t)SINK_READ_MAX * 2),
	};
	struct options options = { 0 };
	struct signals signals = { 0 };
	struct sink_control *control = NULL;

	/* OpenSSL writes without MSG_NOSIGNAL. */
	(void)signal(SIGPIPE, SIG_IGN);
	if (sink.epoll_fd < 0 || sink.read_buf == NULL)
		err(1, "start");
	tally_init(&sink.tally);
	sink.marks = sink_marks_new();
	read_options(&sink, &options, argc, argv);
	raise_limit();
	signals_open(&sink, &signals);
	if (options.control != NULL) {
		control = sink_control_open(&sink, options.control,
					    options.error, ERROR_MAX);
		if (control == NULL)
			errx(1, "%s", options.error);
	}
	start(&sink, &options);
	loop(&sink, &signals);
	sink_control_close(&control);
	finish(&sink, &options);
	(void)close(signals.fd);
	return 0;
}
