#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "proxy/config.h"
#include "proxy/inspect.h"
#include "proxy/io.h"
#include "proxy/log.h"
#include "proxy/privilege.h"
#include "proxy/tls_store.h"
#include "proxy/worker.h"

/*
 * Arguments, privileges, signals, start and stop of the workers.
 *
 * The main thread has no ring: it waits for signals, and that is all.
 */

#ifndef WEIR_SYSCONFDIR
#define WEIR_SYSCONFDIR "/etc"
#endif

enum {
	FDS_RESERVED = 64, /* log, files, operators */
	FDS_OF_WORKER = 4, /* without its listeners */
	FDS_OF_PIPES = 32, /* at most 16, of mode = tcp */
	SEEN_WAIT_NS = 10000000,
	PORT_WAIT_NS = 100000000,
	PORT_TRIES = 20,
	DAY_S = 86400, /* between looks at the certificates */
};

enum thread_state { STARTING, READY, FAILED, RUNNING, ENDED, LEAVING };

struct thread {
	struct weir *weir;
	struct io_config io_config;
	unsigned index;
	bool narrow; /* keep CAP_NET_ADMIN over the change of the user */
	enum thread_state state; /* behind mutex */
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	pthread_t id;
	struct io *io;
	struct worker *worker;
	char error[WEIR_ERROR_SIZE];
};

static pthread_t main_thread;

static void usage(FILE *to)
{
	(void)fprintf(to,
		      "usage: weir [-c FILE] [-t]\n"
		      "  -c FILE  configuration (" WEIR_SYSCONFDIR
		      "/weir/weir.ini)\n"
		      "  -t       check it, and say all that is wrong with it\n"
		      "  -V       print the version\n"
		      "  -h       print this\n"
		      "See weir(8), weir.ini(5) and weirctl(8).\n");
}

/* ---- configuration ---- */

static void print(const struct config_report *report, const char *what)
{
	for (unsigned i = 0; i < report->count; i++)
		(void)fprintf(stderr, "%s%s\n", what, report->errors[i].text);
	if (report->omitted > 0)
		(void)fprintf(stderr, "weir: and %u more\n", report->omitted);
}

static int64_t wall_s(void)
{
	return (int64_t)time(NULL);
}

/* The configuration, if weir can start with it; else stderr was told why. */
static struct config *load(const char *path, struct tls_store *tls)
{
	struct config_report *errors = config_report_new();
	struct config_report *warnings = config_report_new();
	struct config *config = NULL;

	if (errors != NULL && warnings != NULL && tls != NULL)
		config = config_load(path, errors);
	else
		(void)fprintf(stderr, "weir: no memory\n");
	if (config != NULL) {
		inspect_ground(config, path, errors, warnings);
		inspect_farm(config, path, errors, warnings);
		inspect_tls(config, path, tls, wall_s(), errors, warnings);
	}
	if (warnings != NULL)
		print(warnings, "warning: ");
	if (errors != NULL)
		print(errors, "");
	if (config != NULL && errors->count > 0)
		config_free(&config);
	config_report_free(&errors);
	config_report_free(&warnings);
	return config;
}

static bool same_listeners(const struct config *a, const struct config *b)
{
	if (a->listener_count != b->listener_count)
		return false;
	for (unsigned i = 0; i < a->listener_count; i++) {
		const struct config_listener *l = &a->listeners[i];
		const struct config_listener *k = &b->listeners[i];

		/* A session under way is what it began as. */
		if (strcmp(l->name, k->name) != 0 || l->mode != k->mode ||
		    (l->tls == CONFIG_TLS_IMPLICIT) !=
			    (k->tls == CONFIG_TLS_IMPLICIT) ||
		    l->listen_count != k->listen_count ||
		    memcmp(l->listen, k->listen,
			   l->listen_count * sizeof(l->listen[0])) != 0)
			return false;
	}
	return true;
}

static void begin(struct log_line *line, const struct config *config,
		  const char *event)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	log_begin(line, config->weir.log_format == CONFIG_LOG_JSON, event,
		  config->weir.log == LOGGER_JOURNAL ||
				  config->weir.log == LOGGER_SYSLOG
			  ? 0
			  : now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

/* A line of main's own, in the form of the others. */
static void say(struct logger *logger, const struct config *config, int level,
		const char *event, const char *key, const char *value)
{
	struct log_line line;

	begin(&line, config, event);
	log_word(&line, key, value);
	log_end(&line);
	(void)logger_write(logger, level, line.text, line.len);
}

/* False: a worker has failed, and will not see it any more. */
static bool await_seen(struct weir *weir, const struct config *config)
{
	const struct timespec moment = { .tv_nsec = SEEN_WAIT_NS };

	for (unsigned i = 0; i < weir->worker_count; i++) {
		io_wake(worker_io(weir->workers[i]));
		while (worker_config_seen(weir->workers[i]) != config) {
			if (atomic_load(&weir->failed))
				return false;
			(void)nanosleep(&moment, NULL);
		}
	}
	return true;
}

static void say_all(struct logger *logger, const struct config *config,
		    int level, const char *event, const char *key,
		    const struct config_report *report)
{
	for (unsigned i = 0; i < report->count; i++)
		say(logger, config, level, event, key, report->errors[i].text);
}

/* Load it and log what is wrong with it; in_force says how. */
static struct config *load_again(const struct config *in_force,
				 struct logger *logger, const char *path)
{
	struct config_report *errors = config_report_new();
	struct config_report *warnings = config_report_new();
	struct config *config = NULL;

	if (errors != NULL && warnings != NULL) {
		config = config_load(path, errors);
		if (config != NULL)
			inspect_farm(config, path, errors, warnings);
		say_all(logger, in_force, LOG_LEVEL_WARNING, "reload",
			"warning", warnings);
		say_all(logger, in_force, LOG_LEVEL_ERROR, "reload", "error",
			errors);
		if (config != NULL && errors->count > 0)
			config_free(&config);
	}
	config_report_free(&errors);
	config_report_free(&warnings);
	return config;
}

/* One certificate that is in force from now on. */
static void say_cert(struct logger *logger, const struct config *config,
		     const char *listener, const struct tls_store_cert *cert)
{
	struct log_line line;

	begin(&line, config, "tls");
	log_word(&line, "listener", listener);
	log_word(&line, "file", cert->file);
	log_word(&line, "names", cert->names);
	log_word(&line, "key", cert->kind);
	log_number(&line, "days",
		   (int64_t)tls_store_days(cert->expires_s, wall_s()));
	log_end(&line);
	(void)logger_write(logger, LOG_LEVEL_NOTICE, line.text, line.len);
}

/* Those that expire soon. */
static void warn_certs(struct logger *logger, const struct config *config,
		       struct tls_store *tls)
{
	struct config_report *warnings = config_report_new();

	if (warnings == NULL)
		return;
	tls_store_warn(tls, config, wall_s(), warnings);
	say_all(logger, config, LOG_LEVEL_WARNING, "tls", "warning", warnings);
	config_report_free(&warnings);
}

static void say_certs(struct logger *logger, const struct config *config,
		      struct tls_store *tls)
{
	struct tls_store_cert cert;

	for (unsigned i = 0; i < config->listener_count; i++) {
		for (unsigned k = 0; tls_store_cert(tls, i, k, &cert); k++)
			say_cert(logger, config, config->listeners[i].name,
				 &cert);
	}
}

/*
 * Read all certificates again.  What cannot be used is logged, and the old
 * one serves on; false: there is no old one, and nothing was changed.
 */
static bool load_tls(struct weir *weir, const struct config *config,
		     struct logger *logger)
{
	struct config_report *errors = config_report_new();
	bool serves;

	if (errors == NULL)
		return false;
	(void)tls_store_load(weir->tls, config, wall_s(), errors);
	serves = tls_store_serves(weir->tls);
	say_all(logger, config, LOG_LEVEL_ERROR, "tls", "refused", errors);
	if (errors->count > 0 && serves)
		say(logger, config, LOG_LEVEL_WARNING, "tls", "result",
		    "what was in force before serves on");
	config_report_free(&errors);
	warn_certs(logger, config, weir->tls);
	return serves;
}

static void reload(struct weir *weir, struct config **in_force,
		   struct logger *logger, const char *path)
{
	struct config *old = *in_force;
	struct config *config;

	atomic_store(&weir->reload_wanted, false);
	config = load_again(old, logger, path);
	if (config != NULL && !same_listeners(old, config)) {
		say(logger, old, LOG_LEVEL_ERROR, "reload", "error",
		    "listeners cannot change while weir runs (their names, "
		    "listen, mode, to or from tls = implicit): restart it");
		config_free(&config);
	}
	if (config != NULL && privilege_is_wanted(config) &&
	    !privilege_is_here()) {
		say(logger, old, LOG_LEVEL_ERROR, "reload", "error",
		    "identity = transparent needs CAP_NET_ADMIN, which was "
		    "given up at the start: restart weir");
		config_free(&config);
	}
	if (config != NULL && !load_tls(weir, config, logger))
		config_free(&config);
	if (config == NULL) {
		say(logger, old, LOG_LEVEL_ERROR, "reload", "result",
		    "refused, the old configuration stays in force");
		return;
	}
	/* As all of [weir]: it stands in what was begun under it. */
	memcpy(config->weir.hostname, old->weir.hostname,
	       sizeof(config->weir.hostname));
	worker_reload(weir->workers[0], config);
	*in_force = config;
	if (!await_seen(weir, config))
		return; /* some may use the old one as long as they live */
	say_certs(logger, config, weir->tls);
	say(logger, config, LOG_LEVEL_NOTICE, "reload", "result", "in force");
	config_free(&old);
}

/* ---- workers ---- */

static void set_state(struct thread *t, enum thread_state state)
{
	(void)pthread_mutex_lock(&t->mutex);
	t->state = state;
	(void)pthread_cond_broadcast(&t->changed);
	(void)pthread_mutex_unlock(&t->mutex);
}

static enum thread_state await_change(struct thread *t, enum thread_state from)
{
	enum thread_state state;

	(void)pthread_mutex_lock(&t->mutex);
	while (t->state == from)
		(void)pthread_cond_wait(&t->changed, &t->mutex);
	state = t->state;
	(void)pthread_mutex_unlock(&t->mutex);
	return state;
}

static void wake_all(struct weir *weir)
{
	for (unsigned i = 0; i < weir->worker_count; i++)
		io_wake(worker_io(weir->workers[i]));
}

/* Cut everything now. */
static void stop_all(struct weir *weir)
{
	atomic_store(&weir->stopping, true);
	atomic_store(&weir->draining, true);
	wake_all(weir);
}

static void *run(void *arg)
{
	struct thread *t = arg;
	struct weir *weir = t->weir;

	t->io = io_open(&t->io_config, t->error);
	if (t->io != NULL)
		t->worker = worker_new(weir, t->index, t->io, t->error);
	if (t->worker == NULL) {
		io_free(&t->io);
		set_state(t, FAILED);
		return NULL;
	}
	weir->workers[t->index] = t->worker;
	set_state(t, READY);
	if (await_change(t, READY) == RUNNING) {
		bool able = !t->narrow || privilege_narrow();

		while (able && worker_turn(t->worker)) {
			if (atomic_load_explicit(&weir->reload_wanted,
						 memory_order_relaxed))
				(void)pthread_kill(main_thread, SIGHUP);
		}
		if (!atomic_load(&weir->draining)) {
			/* The ring broke: better none than half a weir. */
			atomic_store(&weir->failed, true);
			stop_all(weir);
		}
	}
	set_state(t, ENDED);
	(void)pthread_kill(main_thread, SIGUSR2);
	/* Others may look at this worker until all have ended; and a ring can
	 * only be emptied by the thread that made it. */
	(void)await_change(t, ENDED);
	worker_free(&t->worker);
	io_free(&t->io);
	return NULL;
}

static bool start(struct thread *t)
{
	int result;

	(void)pthread_mutex_init(&t->mutex, NULL);
	(void)pthread_cond_init(&t->changed, NULL);
	t->state = STARTING;
	result = pthread_create(&t->id, NULL, run, t);
	if (result != 0) {
		(void)fprintf(stderr, "weir: cannot start a thread: %s\n",
			      strerror(result));
		return false;
	}
	if (await_change(t, STARTING) == READY)
		return true;
	(void)pthread_join(t->id, NULL);
	(void)fprintf(stderr, "weir: %s\n", t->error);
	return false;
}

/* All have ended: their memory and rings go. */
static void finish(struct thread *threads, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct thread *t = &threads[i];

		(void)pthread_mutex_lock(&t->mutex);
		while (t->state != ENDED)
			(void)pthread_cond_wait(&t->changed, &t->mutex);
		(void)pthread_mutex_unlock(&t->mutex);
		set_state(t, LEAVING);
		(void)pthread_join(t->id, NULL);
	}
}

static bool all_ended(struct thread *threads, unsigned count)
{
	bool ended = true;

	for (unsigned i = 0; i < count; i++) {
		(void)pthread_mutex_lock(&threads[i].mutex);
		if (threads[i].state != ENDED)
			ended = false;
		(void)pthread_mutex_unlock(&threads[i].mutex);
	}
	return ended;
}

/* ---- what workers share ---- */

static unsigned cores(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) != 0)
		return 1;

	int count = CPU_COUNT(&set);

	return count > WEIR_WORKERS_MAX ? WEIR_WORKERS_MAX : (unsigned)count;
}

/* Descriptors that we may have, after asking for all that we can get. */
static unsigned descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return 1024;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		(void)getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur > 1000000)
		return 1000000;
	return (unsigned)limit.rlim_cur;
}

/*
 * What is left to the log, files, probes and operators, and to each worker:
 * its ring and event fd, its own listeners, and pipes to splice with.
 */
static unsigned reserved(const struct weir *weir, const struct config *config)
{
	unsigned each = FDS_OF_WORKER;

	for (unsigned i = 0; i < config->listener_count; i++)
		each += config->listeners[i].listen_count;
	for (unsigned i = 0; i < config->listener_count; i++) {
		if (config->listeners[i].mode != CONFIG_MODE_TCP)
			continue;
		each += FDS_OF_PIPES;
		break;
	}
	return FDS_RESERVED + config->backend_count + weir->worker_count * each;
}

static void check_descriptors(const struct weir *weir,
			      const struct config *config, unsigned fds)
{
	uint64_t sessions = config->admission.limits.max_sessions;
	uint64_t want = sessions + reserved(weir, config);
	uint64_t slots = 0;

	for (unsigned i = 0; i < config->backend_count; i++)
		slots += config->backends[i].max_sessions;
	/* No session has two backends at a time. */
	want += slots < sessions ? slots : sessions;
	if (want > fds) {
		(void)fprintf(stderr,
			      "weir: max_sessions of [admission] and all "
			      "backends need %llu descriptors, there are %u: "
			      "raise LimitNOFILE= or ulimit -n\n",
			      (unsigned long long)want, fds);
	}
}

static void size_pools(struct weir *weir, const struct config *config,
		       unsigned fds)
{
	uint64_t sessions = config->admission.limits.max_sessions;

	/* As many again for those who are being refused. */
	sessions = sessions * 2 + 1024;
	weir->sessions_max = sessions < fds ? (unsigned)sessions : fds;
	/* A session has one at a time; those that it parted from are brief.
	 * Not as many as there are descriptors: a kernel that is asked for
	 * more than its memory, even if never to be touched, says no. */
	weir->servers_max = weir->sessions_max;
	weir->sockets_max = fds > 2 * reserved(weir, config)
				    ? fds - reserved(weir, config)
				    : fds / 2;
}

static bool make_farm(struct weir *weir, const struct config *config)
{
	const struct config_health *h = &config->health;
	struct health_policy policy = health_policy_default();
	char error[WEIR_BACKEND_ERROR_SIZE];
	struct timespec now;

	weir->farm = calloc(1, sizeof(*weir->farm));
	if (weir->farm == NULL)
		return false;
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
	if (policy.busy_hold_max_ms < policy.busy_hold_ms)
		policy.busy_hold_max_ms = policy.busy_hold_ms;
	farm_init(weir->farm, &policy);
	weir_set_limits(weir->farm, config);
	weir_set_guard(weir->farm, config);
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	for (unsigned i = 0; i < config->backend_count; i++) {
		if (!weir_join_backend(weir, &config->backends[i], &config->tls,
				       now.tv_sec * 1000 +
					       now.tv_nsec / 1000000,
				       wall_s(), error)) {
			(void)fprintf(stderr, "weir: [backend %s] %s\n",
				      config->backends[i].name, error);
			return false;
		}
	}
	return true;
}

static bool make_admission(struct weir *weir, const struct config *config)
{
	const struct admission_config *limits = &config->admission.limits;
	size_t size = admission_size(limits);
	uint8_t key[ADMISSION_KEY_LEN];
	void *mem;

	size = (size + ADMISSION_ALIGN - 1) / ADMISSION_ALIGN * ADMISSION_ALIGN;
	mem = aligned_alloc(ADMISSION_ALIGN, size);
	if (mem == NULL ||
	    getrandom(key, sizeof(key), 0) != (ssize_t)sizeof(key))
		return false;
	weir->admission = admission_init(mem, limits, key);
	return true;
}

static void unmake(struct weir *weir, struct config **config)
{
	weir_close_room(weir);
	if (weir->farm != NULL)
		farm_fini(weir->farm);
	free(weir->farm);
	if (weir->admission != NULL)
		admission_fini(weir->admission);
	free(weir->admission);
	tls_store_free(&weir->tls);
	config_free(config);
}

/*
 * Is somebody else there?  With SO_REUSEPORT, which workers need, the kernel
 * would let a second weir take half of the connections without a word.  The
 * ring of one that was killed may hold its sockets for a moment.
 */
static int try_port(const struct config_address *address)
{
	const struct timespec moment = { .tv_nsec = PORT_WAIT_NS };
	struct sockaddr_storage sa;
	socklen_t len = (socklen_t)cidr_addr_to_sockaddr(&address->addr,
							 address->port, &sa);
	const int on = 1;
	int error = EADDRINUSE;

	for (int i = 0; i < PORT_TRIES && error == EADDRINUSE; i++) {
		int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			return errno;
		if (i > 0)
			(void)nanosleep(&moment, NULL);
		error = 0;
		if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) !=
			    0 ||
		    (sa.ss_family == AF_INET6 &&
		     setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on,
				sizeof(on)) != 0) ||
		    bind(fd, (const struct sockaddr *)&sa, len) != 0)
			error = errno;
		(void)close(fd);
	}
	return error;
}

static bool check_ports(const struct config *config)
{
	char text[BACKEND_ADDRESS_MAX];

	for (unsigned i = 0; i < config->listener_count; i++) {
		const struct config_listener *l = &config->listeners[i];

		for (unsigned k = 0; k < l->listen_count; k++) {
			/* All else is told by who will listen there. */
			if (try_port(&l->listen[k]) != EADDRINUSE)
				continue;
			weir_address_text(&l->listen[k], text, sizeof(text));
			(void)fprintf(stderr,
				      "weir: [listener %s] cannot listen on "
				      "%s: another program listens there; see "
				      "ss -ltnp\n",
				      l->name, text);
			return false;
		}
	}
	return true;
}

/* ---- signals ---- */

static void serve(struct weir *weir, struct config **in_force,
		  struct thread *threads, struct logger *logger,
		  const char *path, const sigset_t *signals)
{
	const struct timespec day = { .tv_sec = DAY_S };

	while (!all_ended(threads, weir->worker_count)) {
		int sig = sigtimedwait(signals, NULL, &day);

		switch (sig) {
		case -1:
			if (errno == EAGAIN)
				warn_certs(logger, *in_force, weir->tls);
			break;
		case SIGHUP:
			if (!atomic_load(&weir->draining))
				reload(weir, in_force, logger, path);
			else
				atomic_store(&weir->reload_wanted, false);
			break;
		case SIGUSR1:
			logger_reopen(logger);
			break;
		case SIGTERM:
		case SIGINT:
			if (atomic_load(&weir->draining))
				atomic_store(&weir->stopping, true);
			atomic_store(&weir->draining, true);
			wake_all(weir);
			break;
		default: /* SIGUSR2: a worker has ended */
			break;
		}
	}
}

static void block_signals(sigset_t *signals)
{
	(void)sigemptyset(signals);
	(void)sigaddset(signals, SIGHUP);
	(void)sigaddset(signals, SIGTERM);
	(void)sigaddset(signals, SIGINT);
	(void)sigaddset(signals, SIGUSR1);
	(void)sigaddset(signals, SIGUSR2);
	(void)pthread_sigmask(SIG_BLOCK, signals, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
}

static int run_all(struct weir *weir, struct config **in_force,
		   const char *path, struct logger *logger, unsigned fds)
{
	static struct thread threads[WEIR_WORKERS_MAX];
	const struct config *config = *in_force;
	const bool narrow = privilege_is_wanted(config);
	sigset_t signals;
	unsigned started = 0;
	bool good = check_ports(config);

	block_signals(&signals);
	main_thread = pthread_self();
	if (narrow)
		privilege_keep();
	while (good && started < weir->worker_count) {
		struct thread *t = &threads[started];

		t->weir = weir;
		t->index = started;
		t->narrow = narrow;
		t->io_config = (struct io_config){
			.sockets_max = fds,
			.buffers = { [IO_SMALL] = config->weir.small_buffers,
				     [IO_BIG] = config->weir.big_buffers,
				     [IO_RESERVE] = 256,
				     [IO_REPLY] = 512 },
			.worker = started,
			.logger = logger,
		};
		good = start(t);
		if (good)
			started++;
	}
	if (good) {
		privilege_give_socket(&config->weir);
		good = privilege_drop(&config->weir) &&
		       (!narrow || privilege_narrow());
	}
	for (unsigned i = 0; i < started; i++)
		set_state(&threads[i], good ? RUNNING : FAILED);
	if (good) {
		say(logger, config, LOG_LEVEL_NOTICE, "start", "version",
		    WEIR_VERSION);
		say_certs(logger, config, weir->tls);
		serve(weir, in_force, threads, logger, path, &signals);
		say(logger, *in_force, LOG_LEVEL_NOTICE, "stop", "version",
		    WEIR_VERSION);
	}
	finish(threads, started);
	return good && !atomic_load(&weir->failed) ? 0 : 1;
}

/* All that workers share, and then they; config goes when it is over. */
static int run_weir(struct weir *weir, struct config *config, const char *path)
{
	char error[WEIR_ERROR_SIZE];
	struct logger *logger;
	unsigned fds = descriptors();
	int result;

	weir->worker_count = config->weir.workers > 0 ? config->weir.workers
						      : cores();
	check_descriptors(weir, config, fds);
	size_pools(weir, config, fds);
	atomic_store(&weir->config, config);
	weir->started_wall_ms = wall_s() * 1000;
	if (!make_farm(weir, config) || !make_admission(weir, config) ||
	    !weir_open_room(weir, config)) {
		(void)fprintf(stderr, "weir: no memory for the farm\n");
		unmake(weir, &config);
		return 1;
	}
	logger = logger_open(
		config->weir.log,
		config->weir.log == LOGGER_FILE ? config->weir.log_path : NULL,
		error, sizeof(error));
	if (logger == NULL) {
		(void)fprintf(stderr, "weir: %s\n", error);
		unmake(weir, &config);
		return 1;
	}
	result = run_all(weir, &config, path, logger, fds);
	logger_free(&logger);
	unmake(weir, &config);
	return result;
}

int main(int argc, char **argv)
{
	static struct weir weir;
	const char *path = WEIR_SYSCONFDIR "/weir/weir.ini";
	struct config *config;
	bool check = false;
	int option;

	while ((option = getopt(argc, argv, "c:tVh")) != -1) {
		switch (option) {
		case 'c':
			path = optarg;
			break;
		case 't':
			check = true;
			break;
		case 'V':
			(void)printf("weir %s\n", WEIR_VERSION);
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 1;
		}
	}
	if (optind < argc) {
		usage(stderr);
		return 1;
	}
	weir.tls = tls_store_new();
	config = load(path, weir.tls);
	if (config != NULL && !check)
		return run_weir(&weir, config, path);
	tls_store_free(&weir.tls);
	if (config == NULL)
		return 1;
	(void)printf("%s: good: %u listeners, %u backends\n", path,
		     config->listener_count, config->backend_count);
	config_free(&config);
	return 0;
}
