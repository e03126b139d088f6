#ifndef PROXY_LOGGER_H
#define PROXY_LOGGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Where log lines go: one thread that writes, so that no worker ever waits
 * for a disk, a pipe or syslog.
 *
 * logger_write() may be called from any thread.  Lines wait in one bounded
 * ring; when it is full, lines are dropped and counted, and the writer says
 * so ("log: dropped=N") as soon as it can write again.
 */

enum logger_target {
	LOGGER_STDERR,  /* plain lines */
	LOGGER_JOURNAL, /* stderr with <N> level prefixes, sd-daemon(3) */
	LOGGER_SYSLOG,  /* syslog(3), facility mail */
	LOGGER_FILE,    /* appended; opened again at logger_reopen() */
};

enum {
	LOGGER_LINE_MAX = 4096, /* octets; a longer line is cut */
	LOGGER_RING_SIZE = 4 << 20,
};

struct logger;

/*
 * path: for LOGGER_FILE only.  NULL and a line in error when it cannot be
 * opened.
 */
struct logger *logger_open(enum logger_target target, const char *path,
			   char *error, size_t size);

/* Write what waits (for at most one second), stop the thread, free. */
void logger_free(struct logger **logger);

/* level: syslog's, 0..7.  Never blocks on the target; false: dropped. */
bool logger_write(struct logger *logger, int level, const char *line,
		  size_t len);

/* Open the file again (after rotation).  Any thread. */
void logger_reopen(struct logger *logger);

uint64_t logger_dropped(const struct logger *logger);

#endif
