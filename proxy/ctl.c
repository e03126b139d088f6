#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/*
 * weirctl: sends one command to weir's control socket and prints the answer;
 * `status` asks for several and draws a table.
 *
 * It knows no command but that one: weir reads them, and says what is wrong.
 * An answer ends with an empty line.
 */

#define DEFAULT_SOCKET "/run/weir/control.sock"

enum {
	EXIT_GOOD = 0,
	EXIT_TROUBLE = 1, /* no connection, wrong usage */
	EXIT_REFUSED = 2, /* weir said no */

	ANSWER_MAX = 8 << 20, /* octets; weir's are smaller */
	COMMAND_MAX = 4096,
	WAIT_S = 10, /* for each piece of an answer */
	FIELDS_MAX = 128,
	BAR_WIDTH = 20,
	HINTS_MAX = 12,
	HINT_SIZE = 240,
};

struct answer {
	char *text; /* NUL at its end; without the empty line */
	size_t len;
	size_t size;
};

/* ---- the socket ---- */

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	const struct timeval wait = { .tv_sec = WAIT_S };
	size_t len = strlen(path);
	int fd;

	if (len >= sizeof(sa.sun_path)) {
		(void)fprintf(stderr, "weirctl: %s: the path is too long\n",
			      path);
		return -1;
	}
	memcpy(sa.sun_path, path, len);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 &&
	    connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0) {
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait,
				 sizeof(wait));
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait,
				 sizeof(wait));
		return fd;
	}

	int error = errno;
	const char *hint = "";

	if (error == ENOENT)
		hint = "; is weir running? -s names another socket";
	if (error == ECONNREFUSED)
		hint = "; weir is not running";
	if (error == EACCES)
		hint = "; see control_mode in weir.ini(5), or become root";
	(void)fprintf(stderr, "weirctl: %s: %s%s\n", path, strerror(error),
		      hint);
	if (fd >= 0)
		(void)close(fd);
	return -1;
}

static bool send_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

static bool grow(struct answer *a)
{
	size_t size = a->size > 0 ? a->size * 2 : 65536;
	char *text = size <= ANSWER_MAX ? realloc(a->text, size) : NULL;

	if (text == NULL)
		return false;
	a->text = text;
	a->size = size;
	return true;
}

/* Where the empty line of the count-th answer begins; 0: not yet there. */
static size_t find_end(const struct answer *a, unsigned count)
{
	const char *at = a->text;
	size_t left = a->len;

	for (;;) {
		const char *end = memmem(at, left, "\n\n", 2);

		if (end == NULL)
			return 0;
		if (--count == 0)
			return (size_t)(end - a->text) + 1;
		left -= (size_t)(end + 2 - at);
		at = end + 2;
	}
}

/* Read so many answers, or to the end of the stream.  False: complained. */
static bool receive(int fd, struct answer *a, unsigned count)
{
	size_t end = 0;

	a->len = 0;
	while (end == 0) {
		ssize_t n;

		if (a->len + 1 >= a->size && !grow(a)) {
			(void)fprintf(stderr, "weirctl: no memory\n");
			return false;
		}
		n = recv(fd, a->text + a->len, a->size - a->len - 1, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			(void)fprintf(stderr, "weirctl: no answer: %s\n",
				      strerror(errno));
			return false;
		}
		a->len += (size_t)n;
		end = n == 0 ? a->len : find_end(a, count);
		if (n == 0 && a->len == 0) {
			(void)fprintf(stderr,
				      "weirctl: weir closed the connection\n");
			return false;
		}
	}
	a->len = end;
	a->text[a->len] = '\0';
	return true;
}

static bool ask(const char *path, const char *command, struct answer *a,
		unsigned count)
{
	int fd = dial(path);
	bool good;

	if (fd < 0)
		return false;
	/* Refused ones may be answered before they have said anything. */
	(void)send_all(fd, command, strlen(command));
	good = receive(fd, a, count);
	(void)close(fd);
	return good;
}

static bool is_error(const char *text)
{
	static const char error[] = "error: ";

	return strncmp(text, error, sizeof(error) - 1) == 0;
}

/* ---- any command ---- */

static bool append(char *buf, size_t *len, const char *text, size_t n)
{
	if (n > COMMAND_MAX - 2 - *len)
		return false;
	memcpy(buf + *len, text, n);
	*len += n;
	return true;
}

/* One word, in quotes if it would not be one without. */
static bool append_word(char *buf, size_t *len, const char *word)
{
	if (word[0] != '\0' && strpbrk(word, " \t\"") == NULL)
		return append(buf, len, word, strlen(word));
	if (!append(buf, len, "\"", 1))
		return false;
	for (const char *c = word; *c != '\0'; c++) {
		if ((*c == '"' || *c == '\\') && !append(buf, len, "\\", 1))
			return false;
		if (!append(buf, len, c, 1))
			return false;
	}
	return append(buf, len, "\"", 1);
}

/* The arguments as one line; a single one is a line already. */
static bool join(char buf[COMMAND_MAX], char **words, int count)
{
	size_t len = 0;

	/* weir answers no blank line, and we would wait for it. */
	if (count == 1 && words[0][strspn(words[0], " \t\r")] == '\0') {
		(void)fprintf(stderr, "weirctl: the command is empty\n");
		return false;
	}
	for (int i = 0; i < count; i++) {
		bool good = count == 1 ? append(buf, &len, words[i],
						strlen(words[i]))
				       : append_word(buf, &len, words[i]);

		if (strchr(words[i], '\n') != NULL)
			good = false;
		if (good && i + 1 < count)
			good = append(buf, &len, " ", 1);
		if (!good) {
			(void)fprintf(stderr,
				      "weirctl: a command is one line "
				      "of at most %d octets\n",
				      COMMAND_MAX - 2);
			return false;
		}
	}
	buf[len++] = '\n';
	buf[len] = '\0';
	return true;
}

static int run_command(const char *path, const char *command, struct answer *a)
{
	if (!ask(path, command, a, 1))
		return EXIT_TROUBLE;
	if (is_error(a->text)) {
		(void)fputs(a->text, stderr);
		return EXIT_REFUSED;
	}
	(void)fputs(a->text, stdout);
	return EXIT_GOOD;
}

/* ---- CSV ---- */

/*
 * Cut a line of CSV (RFC 4180) into fields, in place.  Returns how many;
 * *next is the line behind, or NULL.
 */
static unsigned cut_csv(char *line, char *fields[FIELDS_MAX], char **next)
{
	unsigned count = 0;
	char *to = line;
	char *at = line;
	bool quoted = false;

	fields[count++] = to;
	for (; *at != '\0' && (quoted || *at != '\n'); at++) {
		if (*at == '"' && quoted && at[1] == '"') {
			*to++ = *at++;
		} else if (*at == '"') {
			quoted = !quoted;
		} else if (*at == ',' && !quoted) {
			*to++ = '\0';
			if (count < FIELDS_MAX)
				fields[count++] = to;
		} else {
			*to++ = *at;
		}
	}
	*next = *at == '\n' ? at + 1 : NULL;
	*to = '\0';
	return count;
}

/* ---- status ---- */

struct info {
	char version[32];
	char hostname[128];
	char state[16];
	bool stressed;
	uint64_t uptime_s;
	uint64_t sessions, sessions_max;
	uint64_t connections, refused;
	uint64_t messages, messages_refused, messages_unknown;
	uint64_t unavailable, log_dropped, no_buffers;
};

/* What stands in the columns of show backends that status shows. */
enum column {
	COLUMN_NAME,
	COLUMN_ADDRESS,
	COLUMN_STATE,
	COLUMN_ADMIN,
	COLUMN_BECAUSE,
	COLUMN_SINCE,
	COLUMN_LEFT,
	COLUMN_SESSIONS,
	COLUMN_MAX,
	COLUMN_ERRORS,
	COLUMN_MESSAGES,
	COLUMN_COUNT,
};

static const char *const column_names[COLUMN_COUNT] = {
	[COLUMN_NAME] = "name",         [COLUMN_ADDRESS] = "address",
	[COLUMN_STATE] = "state",       [COLUMN_ADMIN] = "admin",
	[COLUMN_BECAUSE] = "because",   [COLUMN_SINCE] = "since_ms",
	[COLUMN_LEFT] = "left_ms",      [COLUMN_SESSIONS] = "sessions",
	[COLUMN_MAX] = "max_sessions",  [COLUMN_ERRORS] = "errors_permille",
	[COLUMN_MESSAGES] = "messages",
};

struct status {
	bool colours;
	struct info info;
	unsigned backends, usable, full;
	unsigned hint_count;
	char hints[HINTS_MAX][HINT_SIZE];
};

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 10);
}

static void copy(char *to, size_t size, const char *text)
{
	(void)snprintf(to, size, "%s", text);
}

static void read_pair(struct info *info, const char *key, const char *value)
{
	const struct {
		const char *key;
		uint64_t *to;
	} numbers[] = {
		{ "uptime_s", &info->uptime_s },
		{ "sessions_now", &info->sessions },
		{ "sessions_max", &info->sessions_max },
		{ "connections", &info->connections },
		{ "refused", &info->refused },
		{ "messages", &info->messages },
		{ "messages_refused", &info->messages_refused },
		{ "messages_unknown", &info->messages_unknown },
		{ "unavailable", &info->unavailable },
		{ "log_dropped", &info->log_dropped },
		{ "no_buffers", &info->no_buffers },
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (strcmp(key, numbers[i].key) == 0)
			*numbers[i].to = number(value);
	}
	if (strcmp(key, "version") == 0)
		copy(info->version, sizeof(info->version), value);
	if (strcmp(key, "hostname") == 0)
		copy(info->hostname, sizeof(info->hostname), value);
	if (strcmp(key, "state") == 0)
		copy(info->state, sizeof(info->state), value);
	if (strcmp(key, "stressed") == 0)
		info->stressed = strcmp(value, "yes") == 0;
}

static void read_info(struct info *info, char *text)
{
	char *fields[FIELDS_MAX];

	memset(info, 0, sizeof(*info));
	for (char *line = text; line != NULL && *line != '\0';) {
		char *next;

		if (cut_csv(line, fields, &next) == 2)
			read_pair(info, fields[0], fields[1]);
		line = next;
	}
}

__attribute__((format(printf, 2, 3))) static void hint(struct status *s,
						       const char *format, ...)
{
	va_list args;

	if (s->hint_count == HINTS_MAX)
		return;
	va_start(args, format);
	(void)vsnprintf(s->hints[s->hint_count++], HINT_SIZE, format, args);
	va_end(args);
}

static void age(char *text, size_t size, uint64_t s)
{
	unsigned long long n = s;

	if (n >= 86400) {
		(void)snprintf(text, size, "%llud%lluh", n / 86400,
			       n % 86400 / 3600);
	} else if (n >= 3600) {
		(void)snprintf(text, size, "%lluh%llum", n / 3600,
			       n % 3600 / 60);
	} else if (n >= 60) {
		(void)snprintf(text, size, "%llum%llus", n / 60, n % 60);
	} else {
		(void)snprintf(text, size, "%llus", n);
	}
}

static void bar(char text[BAR_WIDTH + 1], uint64_t used, uint64_t all)
{
	uint64_t full = all > 0 ? (used * BAR_WIDTH + all - 1) / all : 0;

	if (full > BAR_WIDTH)
		full = BAR_WIDTH;
	memset(text, '.', BAR_WIDTH);
	memset(text, '#', full);
	text[BAR_WIDTH] = '\0';
}

enum mood { MOOD_GOOD, MOOD_WARN, MOOD_BAD, MOOD_DULL };

static const char *paint(const struct status *s, enum mood mood)
{
	static const char *const escapes[] = {
		[MOOD_GOOD] = "\033[32m",
		[MOOD_WARN] = "\033[33m",
		[MOOD_BAD] = "\033[1;31m",
		[MOOD_DULL] = "\033[2m",
	};

	return s->colours ? escapes[mood] : "";
}

static const char *plain(const struct status *s)
{
	return s->colours ? "\033[0m" : "";
}

static void print_head(const struct status *s, const struct info *last,
		       double seconds)
{
	const struct info *i = &s->info;
	bool well = strcmp(i->state, "running") == 0 && !i->stressed;
	char up[32];
	char slots[BAR_WIDTH + 1];

	age(up, sizeof(up), i->uptime_s);
	bar(slots, i->sessions, i->sessions_max);
	(void)printf("weir %s on %s: %s%s%s%s for %s\n", i->version,
		     i->hostname, paint(s, well ? MOOD_GOOD : MOOD_WARN),
		     i->state, i->stressed ? ", under stress" : "", plain(s),
		     up);
	(void)printf("clients   [%s] %llu of %llu, %llu connections so far, "
		     "%llu refused\n",
		     slots, (unsigned long long)i->sessions,
		     (unsigned long long)i->sessions_max,
		     (unsigned long long)i->connections,
		     (unsigned long long)i->refused);
	(void)printf("messages  %llu accepted, %llu refused",
		     (unsigned long long)i->messages,
		     (unsigned long long)i->messages_refused);
	/* A restart in between would count backwards. */
	if (seconds > 0 && i->messages >= last->messages &&
	    i->connections >= last->connections) {
		(void)printf(", %.1f/s; %.1f connections/s",
			     (double)(i->messages - last->messages) / seconds,
			     (double)(i->connections - last->connections) /
				     seconds);
	}
	(void)printf("\n\n");
}

static enum mood mood_of(const char *state, const char *admin)
{
	if (strcmp(admin, "ready") != 0)
		return MOOD_DULL;
	if (strcmp(state, "up") == 0)
		return MOOD_GOOD;
	if (strcmp(state, "down") == 0 || strcmp(state, "misconf") == 0 ||
	    strcmp(state, "ejected") == 0)
		return MOOD_BAD;
	return MOOD_WARN;
}

static void hint_backend(struct status *s, char *const f[COLUMN_COUNT])
{
	const char *name = f[COLUMN_NAME];
	const char *state = f[COLUMN_STATE];
	bool ready = strcmp(f[COLUMN_ADMIN], "ready") == 0;

	if (!ready && number(f[COLUMN_SESSIONS]) == 0)
		hint(s, "%s is in %s and has no sessions: it can be stopped",
		     name, f[COLUMN_ADMIN]);
	if (!ready)
		return;
	if (strcmp(state, "misconf") == 0) {
		hint(s,
		     "%s refuses weir itself: \"weirctl show health\" has its "
		     "reply; it must trust weir's address",
		     name);
	}
	if (strcmp(state, "down") == 0) {
		hint(s,
		     "%s fails its probes: \"weirctl show health\" says "
		     "at which step",
		     name);
	}
	if (strcmp(state, "ejected") == 0) {
		hint(s,
		     "%s broke live sessions and rests; it is tried again "
		     "by itself",
		     name);
	}
	if (strcmp(state, "busy") == 0) {
		hint(s,
		     "%s says it is busy at %s of %s sessions: its own "
		     "limit may be lower than max_sessions",
		     name, f[COLUMN_SESSIONS], f[COLUMN_MAX]);
	}
}

/* Who may get a session, were there room? */
static bool is_usable(char *const f[COLUMN_COUNT])
{
	const char *state = f[COLUMN_STATE];

	return strcmp(f[COLUMN_ADMIN], "ready") == 0 &&
	       (strcmp(state, "up") == 0 || strcmp(state, "unknown") == 0 ||
		strcmp(state, "busy") == 0 || strcmp(state, "half_open") == 0);
}

static void print_backend(struct status *s, char *const f[COLUMN_COUNT])
{
	uint64_t used = number(f[COLUMN_SESSIONS]);
	uint64_t all = number(f[COLUMN_MAX]);
	uint64_t errors = number(f[COLUMN_ERRORS]);
	bool ready = strcmp(f[COLUMN_ADMIN], "ready") == 0;
	char slots[BAR_WIDTH + 1];
	char since[32];
	char counts[48];

	s->backends++;
	s->usable += is_usable(f);
	s->full += is_usable(f) && used >= all;
	bar(slots, used, all);
	age(since, sizeof(since), number(f[COLUMN_SINCE]) / 1000);
	(void)snprintf(counts, sizeof(counts), "%llu/%llu",
		       (unsigned long long)used, (unsigned long long)all);
	(void)printf("%-16s %s%-9s%s [%s] %11s %5llu.%llu%% %9s  %s, for %s",
		     f[COLUMN_NAME],
		     paint(s, mood_of(f[COLUMN_STATE], f[COLUMN_ADMIN])),
		     ready ? f[COLUMN_STATE] : f[COLUMN_ADMIN], plain(s), slots,
		     counts, (unsigned long long)(errors / 10),
		     (unsigned long long)(errors % 10), f[COLUMN_MESSAGES],
		     f[COLUMN_BECAUSE], since);
	if (f[COLUMN_LEFT][0] != '\0') {
		age(since, sizeof(since), number(f[COLUMN_LEFT]) / 1000);
		(void)printf(", %s more", since);
	}
	(void)printf("\n");
	hint_backend(s, f);
}

static void print_backends(struct status *s, char *text)
{
	char *fields[FIELDS_MAX];
	char *row[COLUMN_COUNT];
	unsigned at[COLUMN_COUNT];
	char *line;
	unsigned count = cut_csv(text, fields, &line);

	for (unsigned c = 0; c < COLUMN_COUNT; c++) {
		at[c] = FIELDS_MAX;
		for (unsigned i = 0; i < count; i++) {
			if (strcmp(fields[i], column_names[c]) == 0)
				at[c] = i;
		}
	}
	(void)printf("%-16s %-9s %-*s %11s %7s %9s  %s\n", "backend", "state",
		     BAR_WIDTH + 2, "slots", "used", "errors", "messages",
		     "why");
	while (line != NULL && *line != '\0') {
		static char nothing[] = "";
		char *next;

		count = cut_csv(line, fields, &next);
		for (unsigned c = 0; c < COLUMN_COUNT; c++)
			row[c] = at[c] < count ? fields[at[c]] : nothing;
		if (line[0] != '#')
			print_backend(s, row);
		line = next;
	}
}

static void hint_all(struct status *s)
{
	const struct info *i = &s->info;

	if (s->backends == 0) {
		hint(s, "there is no backend: \"weirctl add backend NAME "
			"address=ADDR:25\"");
	} else if (s->usable == 0) {
		hint(s, "no backend takes mail: clients are told to come "
			"again (4xx)");
	} else if (s->full > 0) {
		hint(s,
		     "%u of %u backends %s full: add a backend or raise "
		     "max_sessions",
		     s->full, s->usable, s->full == 1 ? "is" : "are");
	}
	if (i->stressed)
		hint(s, "weir is near max_sessions of [admission]: timeouts "
			"are shorter until that is over");
	if (strcmp(i->state, "running") != 0)
		hint(s, "weir is shutting down: it takes no new sessions");
	if (i->messages_unknown > 0) {
		hint(s,
		     "%llu messages got no final reply from a backend; their "
		     "senders will try again (result=unknown in the log)",
		     (unsigned long long)i->messages_unknown);
	}
	if (i->log_dropped > 0) {
		hint(s,
		     "%llu log lines were dropped: the log's disk or pipe "
		     "is too slow",
		     (unsigned long long)i->log_dropped);
	}
	if (i->no_buffers > 0) {
		hint(s,
		     "buffers ran out %llu times: raise small_buffers or "
		     "big_buffers",
		     (unsigned long long)i->no_buffers);
	}
}

static void print_hints(const struct status *s)
{
	if (s->hint_count > 0)
		(void)printf("\n");
	for (unsigned i = 0; i < s->hint_count; i++)
		(void)printf("%s*%s %s\n", paint(s, MOOD_WARN), plain(s),
			     s->hints[i]);
}

static bool wants_colours(void)
{
	const char *no = getenv("NO_COLOR");
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) == 1 && (no == NULL || no[0] == '\0') &&
	       term != NULL && strcmp(term, "dumb") != 0;
}

/* *last: the figures of seconds ago (0: there are none); renewed. */
static int run_status(const char *path, struct answer *a, struct info *last,
		      double seconds)
{
	static struct status s;
	char *second;

	memset(&s, 0, sizeof(s));
	s.colours = wants_colours();
	if (!ask(path, "show info csv\nshow backends csv\n", a, 2))
		return EXIT_TROUBLE;
	second = strstr(a->text, "\n\n");
	if (is_error(a->text) || second == NULL) {
		(void)fputs(a->text, stderr);
		return EXIT_REFUSED;
	}
	second[1] = '\0';
	read_info(&s.info, a->text);
	if (seconds > 0 && s.colours)
		(void)printf("\033[H\033[2J");
	else if (seconds > 0)
		(void)printf("\n");
	print_head(&s, last, seconds);
	print_backends(&s, second + 2);
	hint_all(&s);
	print_hints(&s);
	*last = s.info;
	return EXIT_GOOD;
}

/* ---- arguments ---- */

static void usage(FILE *to)
{
	(void)fprintf(
		to, "usage: weirctl [-s SOCKET] [-w SECONDS] COMMAND...\n"
		    "  -s SOCKET   weir's control socket (" DEFAULT_SOCKET ")\n"
		    "  -w SECONDS  again and again, so often\n"
		    "  -V          print the version\n"
		    "  -h          print this\n"
		    "commands:\n"
		    "status\n"
		    "        how weir and its backends are, on one screen\n");
}

/* Usage, and the commands that weir knows, if it can be asked. */
static int usage_with_help(const char *path, struct answer *a)
{
	usage(stderr);
	if (access(path, F_OK) != 0)
		(void)fprintf(stderr, "weir's own, when it runs: help\n");
	else if (ask(path, "help\n", a, 1))
		(void)fputs(a->text, stderr);
	return EXIT_TROUBLE;
}

static double now_s(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool read_seconds(const char *text, double *seconds)
{
	char *end;

	*seconds = strtod(text, &end);
	return end != text && *end == '\0' && *seconds >= 0.1 &&
	       *seconds <= 86400;
}

/* Once, or every so many seconds until it fails. */
static int run(const char *path, char **words, int count, double every_s,
	       struct answer *a)
{
	struct info last = { 0 };
	static char command[COMMAND_MAX];
	bool status = count == 1 && strcmp(words[0], "status") == 0;
	double before = 0;
	int result;

	if (!status && !join(command, words, count))
		return EXIT_TROUBLE;
	for (;;) {
		double now = now_s();

		result = status ? run_status(path, a, &last,
					     before > 0 ? now - before : 0)
				: run_command(path, command, a);
		before = now;
		if (result != EXIT_GOOD || every_s <= 0)
			return result;
		(void)fflush(stdout);

		const struct timespec pause = {
			.tv_sec = (time_t)every_s,
			.tv_nsec = (long)((every_s - (double)(time_t)every_s) *
					  1e9),
		};

		(void)nanosleep(&pause, NULL);
	}
}

struct options {
	const char *path;
	double every_s;
	bool done; /* nothing is left to do: end with .result */
	int result;
};

static void read_options(int argc, char **argv, struct options *o)
{
	int option;

	/* "+": options behind the command are the command's. */
	while (!o->done && (option = getopt(argc, argv, "+s:w:Vh")) != -1) {
		switch (option) {
		case 's':
			o->path = optarg;
			break;
		case 'w':
			if (read_seconds(optarg, &o->every_s))
				break;
			(void)fprintf(stderr, "weirctl: -w needs seconds, from "
					      "0.1 to 86400\n");
			o->done = true;
			o->result = EXIT_TROUBLE;
			break;
		case 'V':
			(void)printf("weirctl %s\n", WEIR_VERSION);
			o->done = true;
			break;
		case 'h':
			usage(stdout);
			o->done = true;
			break;
		default:
			usage(stderr);
			o->done = true;
			o->result = EXIT_TROUBLE;
			break;
		}
	}
}

int main(int argc, char **argv)
{
	struct options o = { .path = DEFAULT_SOCKET };
	struct answer answer = { 0 };

	read_options(argc, argv, &o);
	if (!o.done && optind == argc)
		o.result = usage_with_help(o.path, &answer);
	else if (!o.done)
		o.result = run(o.path, argv + optind, argc - optind, o.every_s,
			       &answer);
	free(answer.text);
	if (fflush(stdout) != 0 && o.result == EXIT_GOOD)
		o.result = EXIT_TROUBLE;
	return o.result;
}
