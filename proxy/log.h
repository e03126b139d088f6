#ifndef PROXY_LOG_H
#define PROXY_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One line of log, as key=value or as one JSON object; and the only escaper
 * of peers' octets.
 *
 *	event=session id=4f1c2a-7 client=192.0.2.1:4711 helo="a b" close=quit
 *	{"event":"session","id":"4f1c2a-7","client":"192.0.2.1:4711",...}
 *
 * Whatever octets go in, a line is printable ASCII without a newline, its
 * keys come in the order they were added, and it is whole: fields that do not
 * fit are left out and "cut" is added.
 *
 * Pure: writes into the struct; who has a line gives it to io_log().
 */

enum {
	LOG_LINE_MAX = 3072,
	LOG_VALUE_MAX = 512, /* octets of one text value, before escaping */
};

/* Levels, as in syslog (RFC 5424, section 6.2.1). */
enum log_level {
	LOG_LEVEL_ERROR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

struct log_line {
	bool json;
	bool cut;
	size_t len; /* octets of text, once ended */
	char text[LOG_LINE_MAX];
};

/*
 * Begin a line.  wall_ms, milliseconds since 1970 UTC, becomes
 * time=2026-11-22T06:33:47.123Z; 0: no time, the target has its own.
 */
void log_begin(struct log_line *line, bool json, const char *event,
	       int64_t wall_ms);

/* Keys are literals of [a-z_0-9].  Text need not end in NUL. */
void log_text(struct log_line *line, const char *key, const char *text,
	      size_t len);
void log_word(struct log_line *line, const char *key, const char *word);
void log_number(struct log_line *line, const char *key, int64_t number);

/* The line is whole: text[0..len). */
void log_end(struct log_line *line);

/*
 * Write octets so that a person can read them and no terminal or log reader
 * is fooled: printable ASCII as it is, but for quote and backslash; the rest
 * as \r \n \t or \xHH (json: \u00HH).  Returns octets written to buf, at most
 * cap; what does not fit whole is left out.  No NUL.
 */
size_t log_escape(char *buf, size_t cap, bool json, const char *text,
		  size_t len);

#endif
