#include "proxy/logger.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

enum {
	BATCH_SIZE = 64 << 10, /* octets of one write */
	PREFIX_MAX = 4,        /* "<7>" and the newline */
	FREE_WAIT_MS = 900,    /* and the rest of the second after a cancel */
	FREE_CANCEL_MS = 100,
	GATHER_MS = 20, /* a line waits so long for others */
};

struct record {
	uint16_t len;
	uint8_t level;
};

static_assert(LOGGER_LINE_MAX <= UINT16_MAX, "a record counts the octets");
static_assert(BATCH_SIZE > 2 * (LOGGER_LINE_MAX + PREFIX_MAX),
	      "a batch takes any line and a report");

struct logger {
	pthread_mutex_t lock; /* of all that is not the writer's own */
	pthread_cond_t work;
	pthread_t thread;
	enum logger_target target;
	bool sleeping; /* the writer waits for work */
	bool stopping;
	bool reopen;
	size_t head; /* of the ring: where the writer reads */
	size_t used;
	uint8_t *ring; /* LOGGER_RING_SIZE octets, records and lines */
	atomic_uint_fast64_t dropped;

	/* The writer's own. */
	uint64_t said; /* of dropped, what the log tells */
	bool works;    /* the last write did not fail */
	int fd;
	char *path; /* owned; NULL but for a file */
	size_t batch_len;
	char line[LOGGER_LINE_MAX];
	char batch[BATCH_SIZE];
};

/* --- the ring; called with the lock held --- */

static void ring_put(struct logger *l, const void *data, size_t len)
{
	size_t at = (l->head + l->used) % LOGGER_RING_SIZE;
	size_t first = LOGGER_RING_SIZE - at;

	assert(len <= LOGGER_RING_SIZE - l->used);
	if (first > len)
		first = len;
	memcpy(l->ring + at, data, first);
	memcpy(l->ring, (const uint8_t *)data + first, len - first);
	l->used += len;
}

static void ring_get(struct logger *l, void *data, size_t len)
{
	size_t first = LOGGER_RING_SIZE - l->head;

	assert(len <= l->used);
	if (first > len)
		first = len;
	memcpy(data, l->ring + l->head, first);
	memcpy((uint8_t *)data + first, l->ring, len - first);
	l->head = (l->head + len) % LOGGER_RING_SIZE;
	l->used -= len;
}

bool logger_write(struct logger *logger, int level, const char *line,
		  size_t len)
{
	assert(level >= 0);
	assert(level <= 7);
	if (len > LOGGER_LINE_MAX)
		len = LOGGER_LINE_MAX;
	struct record record = { (uint16_t)len, (uint8_t)level };

	pthread_mutex_lock(&logger->lock);
	bool fits = sizeof(record) + len <= LOGGER_RING_SIZE - logger->used;
	bool wake = fits && logger->sleeping;

	if (fits) {
		ring_put(logger, &record, sizeof(record));
		ring_put(logger, line, len);
	}
	if (wake)
		logger->sleeping = false;
	pthread_mutex_unlock(&logger->lock);
	if (wake)
		pthread_cond_signal(&logger->work);
	if (!fits)
		atomic_fetch_add(&logger->dropped, 1);
	return fits;
}

uint64_t logger_dropped(const struct logger *logger)
{
	return atomic_load(&logger->dropped);
}

void logger_reopen(struct logger *logger)
{
	pthread_mutex_lock(&logger->lock);
	logger->reopen = true;
	logger->sleeping = false;
	pthread_mutex_unlock(&logger->lock);
	pthread_cond_signal(&logger->work);
}

/* --- the writer --- */

/*
 * A write may hang for ever on a pipe or a disk.  Only here may the thread be
 * cancelled: it holds no lock.
 */
static ssize_t write_some(int fd, const char *data, size_t len)
{
	int old = 0;

	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
	ssize_t n = write(fd, data, len);
	int error = errno;

	if (n < 0 && error == EAGAIN) {
		struct pollfd wait = { .fd = fd, .events = POLLOUT };

		(void)poll(&wait, 1, -1);
	}
	pthread_setcancelstate(old, NULL);
	return n < 0 ? -error : n;
}

static uint64_t count_lines(const char *data, size_t len)
{
	uint64_t lines = 0;

	for (size_t i = 0; i < len; i++)
		lines += data[i] == '\n';
	return lines;
}

/* Lines that could not be written, the report aside, count as dropped. */
static void write_batch(struct logger *l, uint64_t reported)
{
	size_t done = 0;

	l->works = true;
	while (done < l->batch_len) {
		ssize_t n = write_some(l->fd, l->batch + done,
				       l->batch_len - done);

		if (n > 0)
			done += (size_t)n;
		else if (n != -EINTR && n != -EAGAIN)
			break;
	}
	if (done == l->batch_len) {
		l->said += reported;
		return;
	}
	uint64_t lost = count_lines(l->batch + done, l->batch_len - done);

	/* The report is the first line. */
	if (reported > 0 && memchr(l->batch, '\n', done) == NULL)
		lost--;
	else
		l->said += reported;
	atomic_fetch_add(&l->dropped, lost);
	l->works = false;
}

static void send_syslog(int level, const char *line, size_t len)
{
	int old = 0;

	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
	syslog(level, "%.*s", (int)len, line);
	pthread_setcancelstate(old, NULL);
}

/* Room for one line more is the caller's to see to. */
static void add_line(struct logger *l, int level, const char *line, size_t len)
{
	char *to = l->batch + l->batch_len;

	assert(l->batch_len + len + PREFIX_MAX <= BATCH_SIZE);
	if (l->target == LOGGER_JOURNAL) {
		*to++ = '<';
		*to++ = (char)('0' + level);
		*to++ = '>';
	}
	memcpy(to, line, len);
	to += len;
	*to++ = '\n';
	l->batch_len = (size_t)(to - l->batch);
}

/* One line to syslog, or into the batch. */
static void put_line(struct logger *l, int level, const char *line, size_t len)
{
	if (l->target == LOGGER_SYSLOG)
		send_syslog(level, line, len);
	else
		add_line(l, level, line, len);
}

/* Returns how many drops it tells of. */
static uint64_t report_drops(struct logger *l)
{
	uint64_t missing = atomic_load(&l->dropped) - l->said;
	char line[64];

	if (missing == 0)
		return 0;
	int len = snprintf(line, sizeof(line), "log: dropped=%" PRIu64,
			   missing);

	assert(len > 0);
	assert((size_t)len < sizeof(line));
	put_line(l, LOG_WARNING, line, (size_t)len);
	return missing;
}

/* The next line of the ring to l->line; false when there is none. */
static bool take_line(struct logger *l, struct record *record)
{
	bool any = false;

	pthread_mutex_lock(&l->lock);
	if (l->used > 0) {
		ring_get(l, record, sizeof(*record));
		assert(record->len <= LOGGER_LINE_MAX);
		ring_get(l, l->line, record->len);
		any = true;
	}
	pthread_mutex_unlock(&l->lock);
	return any;
}

static void write_lines(struct logger *l)
{
	const size_t room = LOGGER_LINE_MAX + PREFIX_MAX;
	struct record record;

	l->batch_len = 0;
	uint64_t reported = report_drops(l);

	while (l->batch_len + room <= BATCH_SIZE && take_line(l, &record))
		put_line(l, record.level, l->line, record.len);
	if (l->target == LOGGER_SYSLOG)
		l->said += reported;
	else
		write_batch(l, reported);
}

/* The old file is kept when the new one cannot be opened. */
static int open_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);

	return fd >= 0 ? fd : -errno;
}

static void open_again(struct logger *l)
{
	char line[128];

	if (l->target != LOGGER_FILE)
		return;
	int fd = open_file(l->path);

	if (fd >= 0) {
		(void)close(l->fd);
		l->fd = fd;
		return;
	}
	int len = snprintf(line, sizeof(line),
			   "log: cannot open the file again: %s",
			   strerrordesc_np(-fd));

	assert(len > 0);
	l->batch_len = 0;
	put_line(l, LOG_ERR, line, strlen(line));
	write_batch(l, 0);
}

/* Whether the writer has something to do; called with the lock held. */
static bool has_work(const struct logger *l)
{
	bool untold = l->works && atomic_load(&l->dropped) != l->said;

	return l->used > 0 || l->reopen || untold;
}

/*
 * Let more lines come: one wake-up and one write for all of a moment's, not
 * two for each.
 */
static void gather(void)
{
	const struct timespec moment = { .tv_nsec = GATHER_MS * 1000000L };

	(void)nanosleep(&moment, NULL);
}

static void *writer(void *arg)
{
	struct logger *l = arg;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	for (;;) {
		pthread_mutex_lock(&l->lock);
		while (!has_work(l) && !l->stopping) {
			l->sleeping = true;
			pthread_cond_wait(&l->work, &l->lock);
		}
		l->sleeping = false;
		bool work = has_work(l);
		bool reopen = l->reopen;

		bool hurry = l->stopping || reopen;

		l->reopen = false;
		pthread_mutex_unlock(&l->lock);
		if (!work)
			return NULL; /* stopping, and all is written */
		if (!hurry)
			gather();
		if (reopen)
			open_again(l);
		write_lines(l);
	}
}

/* --- opening and freeing --- */

static void destroy(struct logger *l)
{
	if (l->target == LOGGER_FILE && l->fd >= 0)
		(void)close(l->fd);
	if (l->target == LOGGER_SYSLOG)
		closelog();
	pthread_cond_destroy(&l->work);
	pthread_mutex_destroy(&l->lock);
	free(l->path);
	free(l->ring);
	free(l);
}

/*
 * The thread takes no signals: they are the main thread's; and a SIGPIPE
 * would end the program, where EPIPE is enough.
 */
static int start(struct logger *l)
{
	sigset_t all, old;

	(void)sigfillset(&all);
	int r = pthread_sigmask(SIG_SETMASK, &all, &old);

	if (r != 0)
		return -r;
	r = pthread_create(&l->thread, NULL, writer, l);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

struct logger *logger_open(enum logger_target target, const char *path,
			   char *error, size_t size)
{
	assert((target == LOGGER_FILE) == (path != NULL));
	struct logger *l = calloc(1, sizeof(*l));

	if (l == NULL) {
		(void)snprintf(error, size, "log: out of memory");
		return NULL;
	}
	l->target = target;
	l->works = true;
	l->fd = STDERR_FILENO;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->work, NULL);
	l->ring = malloc(LOGGER_RING_SIZE);
	int r = l->ring != NULL ? 0 : -ENOMEM;

	if (target == LOGGER_FILE) {
		l->path = strdup(path);
		l->fd = l->path != NULL ? open_file(path) : -ENOMEM;
		if (l->fd < 0)
			r = l->fd;
	}
	if (target == LOGGER_SYSLOG)
		openlog("weir", LOG_PID | LOG_NDELAY, LOG_MAIL);
	if (r == 0)
		r = start(l);
	if (r == 0)
		return l;
	(void)snprintf(error, size, "log: %s%s%s", path != NULL ? path : "",
		       path != NULL ? ": " : "", strerrordesc_np(-r));
	destroy(l);
	return NULL;
}

/* Returns whether the thread ended within this time. */
static bool ended(pthread_t thread, long wait_ms)
{
	struct timespec until;

	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += wait_ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

void logger_free(struct logger **logger)
{
	assert(logger != NULL);
	struct logger *l = *logger;

	if (l == NULL)
		return;
	*logger = NULL;
	pthread_mutex_lock(&l->lock);
	l->stopping = true;
	pthread_mutex_unlock(&l->lock);
	pthread_cond_signal(&l->work);
	if (ended(l->thread, FREE_WAIT_MS)) {
		destroy(l);
		return;
	}
	pthread_cancel(l->thread);
	if (ended(l->thread, FREE_CANCEL_MS)) {
		destroy(l);
		return;
	}
	/* Stuck in the kernel: leave it what it uses. */
	pthread_detach(l->thread);
}
