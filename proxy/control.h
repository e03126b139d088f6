#ifndef PROXY_CONTROL_H
#define PROXY_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/backend.h"
#include "balancer/limit.h"
#include "proxy/cidr.h"
#include "proxy/report.h"

/*
 * What operators may say on the control socket: one table of commands, and
 * the reading of a line by it.
 *
 * A line is words with blanks between them; "..." keeps blanks in a word, and
 * in it \" and \\ are a quote and a backslash.  Words of commands may be in
 * either case, names may not.  The answer to a line is lines of text that end
 * with an empty one; it begins with "error: " if the command was refused.
 *
 * Pure: a line in, an order out.  worker_control.c carries it out.
 */

enum {
	CONTROL_LINE_MAX = 4096, /* octets, without the line feed */
	CONTROL_WORDS_MAX = 64,  /* of one line */
	CONTROL_ERROR_MAX = 512, /* octets of any complaint, with the NUL */
	CONTROL_HELP_MAX = 8192, /* octets of help for all commands */
	/* Of `max_sessions N`, as in the configuration; auto: LIMIT_MAX. */
	CONTROL_SESSIONS_MAX = 65535,
	/* A ban's duration: what is longer should have no end. */
	CONTROL_BAN_DAYS_MAX = 3650,
};

/*
 *	COMMAND(NAME, words, arguments, min, max, change, help)
 *
 * min and max: how many arguments.  change: whether it is logged.  A `show`
 * takes one more, "csv" or "json".
 */
#define CONTROL_COMMANDS(COMMAND)                                              \
	COMMAND(HELP, "help", "[COMMAND]", 0, 8, false,                        \
		"what can be said here, or how one command is used")           \
	COMMAND(SHOW_INFO, "show info", "[csv|json]", 0, 1, false,             \
		"weir as a whole: state, sessions, every counter")             \
	COMMAND(SHOW_STAT, "show stat", "[csv|json]", 0, 1, false,             \
		"listeners and backends, in HAProxy's columns")                \
	COMMAND(SHOW_BACKENDS, "show backends", "[csv|json]", 0, 1, false,     \
		"each backend: state and why, slots, errors, messages")        \
	COMMAND(SHOW_HEALTH, "show health", "[csv|json]", 0, 1, false,         \
		"each backend: probes, the reply they read, what it offers")   \
	COMMAND(SHOW_LIMITS, "show limits", "[csv|json]", 0, 1, false,         \
		"each backend: how many sessions it takes, learned from what") \
	COMMAND(SHOW_ROOM, "show room", "[csv|json]", 0, 1, false,             \
		"the waiting room: who waits for a slot, how long, the marks") \
	COMMAND(SHOW_TLS, "show tls", "[csv|json]", 0, 1, false,               \
		"each listener's certificates: names, keys, days left")        \
	COMMAND(SHOW_SESSIONS, "show sessions", "[csv|json]", 0, 1, false,     \
		"each client's session, 2000 at most")                         \
	COMMAND(SHOW_SOURCES, "show sources", "[csv|json]", 0, 1, false,       \
		"the busiest networks that clients come from")                 \
	COMMAND(SHOW_BANS, "show bans", "[csv|json]", 0, 1, false,             \
		"networks that are kept out, and for how long")                \
	COMMAND(SET_BACKEND, "set backend",                                    \
		"NAME ready|drain|maint | NAME weight N | "                    \
		"NAME max_sessions N|auto",                                    \
		2, 3, true, "take it in or out, or change its share")          \
	COMMAND(ADD_BACKEND, "add backend",                                    \
		"NAME address=ADDR:PORT "                                      \
		"[KEY=VALUE ...]",                                             \
		2, CONTROL_WORDS_MAX, true,                                    \
		"one more, until the next start; keys as in weir.ini(5)")      \
	COMMAND(DEL_BACKEND, "del backend", "NAME", 1, 1, true,                \
		"forget it; first set it to drain and let it empty")           \
	COMMAND(BAN, "ban", "NETWORK [DURATION]", 1, 2, true,                  \
		"refuse new sessions from it; for ever, or for 30m, 12h, 7d")  \
	COMMAND(UNBAN, "unban", "NETWORK", 1, 1, true, "let it in again")      \
	COMMAND(KILL_SESSION, "kill session", "ID", 1, 1, true,                \
		"cut one client's connection; ID is of show sessions")         \
	COMMAND(RELOAD, "reload", "", 0, 0, true,                              \
		"read the configuration again, like SIGHUP; see the log")      \
	COMMAND(QUIT, "quit", "", 0, 0, false, "close this connection")

#define CONTROL_ENUM(NAME, words, args, min, max, change, help) CONTROL_##NAME,
enum control_verb { CONTROL_COMMANDS(CONTROL_ENUM) CONTROL_VERBS };
#undef CONTROL_ENUM

struct control_command {
	const char *words; /* "set backend": one or two, one blank between */
	const char *args;
	unsigned args_min, args_max;
	bool change;
	const char *help;
};

/* In the order of enum control_verb. */
extern const struct control_command control_commands[CONTROL_VERBS];

enum control_set {
	CONTROL_SET_ADMIN,
	CONTROL_SET_WEIGHT,
	CONTROL_SET_MAX_SESSIONS,
};

/* NUL at its end; points into the order. */
struct control_word {
	const char *text;
	size_t len;
};

/* What a line says.  Large: not on the stack.  Must not be copied. */
struct control_order {
	enum control_verb verb;
	enum report_format format; /* show */
	struct control_word name;  /* of a backend, not checked */
	enum control_set set;      /* set backend */
	enum backend_admin admin;  /* CONTROL_SET_ADMIN */
	uint32_t number;     /* the other two: in their range, or LIMIT_MAX */
	struct cidr net;     /* ban, unban */
	int64_t duration_ms; /* ban; 0: without end */
	uint64_t id;         /* kill session */
	const struct control_word *arg; /* help, add backend: the others */
	unsigned arg_count;

	/* private */
	unsigned word_count;
	struct control_word words[CONTROL_WORDS_MAX];
	char text[CONTROL_LINE_MAX + CONTROL_WORDS_MAX];
};

enum control_judgement {
	CONTROL_ORDER, /* *order says what is wanted */
	CONTROL_EMPTY, /* a blank line: nothing is to be answered */
	CONTROL_WRONG, /* error says what was wrong and what would be right */
};

/*
 * Read a line of at most CONTROL_LINE_MAX octets, without its line end (a CR
 * before it does no harm).  error has CONTROL_ERROR_MAX octets, is
 * NUL-terminated printable text, and is written if the line is wrong.
 */
enum control_judgement control_parse(const char *line, size_t len,
				     struct control_order *order,
				     char error[CONTROL_ERROR_MAX]);

/*
 * Write help: for all commands, or for those that begin with the order's
 * arguments.  Returns octets, at most cap (CONTROL_HELP_MAX is enough).
 */
size_t control_help(const struct control_order *order, char *buf, size_t cap);

/*
 * A session's id as logs have it, "0000abcd-1f", and back; text has
 * CONTROL_ID_MAX octets.  Returns the length.
 */
enum { CONTROL_ID_MAX = 24 };
size_t control_id_format(uint64_t id, char text[CONTROL_ID_MAX]);
bool control_id_parse(const char *text, size_t len, uint64_t *id);

/* "30m", "12h", "7d", "90s", "500ms".  False: it is anything else. */
bool control_duration_parse(const char *text, size_t len, int64_t *ms);

/* "3d4h", "12m5s", "7s", "0s": for people.  Returns the length. */
enum { CONTROL_AGE_MAX = 32 };
size_t control_age_format(int64_t ms, char text[CONTROL_AGE_MAX]);

#endif
