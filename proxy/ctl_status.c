#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "proxy/advice.h"
#include "proxy/ctl.h"

enum {
	FIELDS_MAX = 128,
	COLUMNS_MAX = 16,
	BACKENDS_MAX = 256,
	NAME_WIDTH_MIN = 7, /* "backend" */
	NAME_WIDTH_MAX = 24,
	BAR_WIDTH = 20,
	HINTS_MAX = 12,
	CERTS_MAX = 16 * 8,
	HINT_SIZE = 240,
	WIDTH_STANDARD = 80,
	WIDTH_MIN = 40,
};

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

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 10);
}

/* ---- what is known ---- */

/*	NUMBER(key): of `show info` */
#define INFO_NUMBERS(NUMBER)                                                   \
	NUMBER(uptime_s)                                                       \
	NUMBER(sessions_now)                                                   \
	NUMBER(sessions_max)                                                   \
	NUMBER(connections)                                                    \
	NUMBER(refused)                                                        \
	NUMBER(messages)                                                       \
	NUMBER(messages_refused)                                               \
	NUMBER(messages_unknown)                                               \
	NUMBER(log_dropped)                                                    \
	NUMBER(no_buffers)

#define ROOM_NUMBERS(NUMBER)                                                   \
	NUMBER(size)                                                           \
	NUMBER(waiting)                                                        \
	NUMBER(oldest_ms)                                                      \
	NUMBER(wait_p50_ms)                                                    \
	NUMBER(wait_p99_ms)                                                    \
	NUMBER(saturated_ms)

#define NUMBER_FIELD(key) uint64_t key;
#define NUMBER_NAME(key)  { #key, offsetof(struct status, NUMBERS_OF.key) },

/* A backend as the screen has it; words point into the answer. */
struct row {
	const char *admin;
	const char *why;     /* of its health: a word */
	const char *because; /* the same, for people */
	const char *event;   /* what its limit is known from */
	uint64_t since_ms, left_ms, event_ms;
	uint64_t errors_permille, messages;
	uint32_t idle;
};

struct status {
	bool colours;
	unsigned width; /* of the screen; 0: no screen */
	char version[32];
	char hostname[128];
	char state[16];
	bool stressed, observe, saturated, guarded;
	struct {
		INFO_NUMBERS(NUMBER_FIELD)
	} info;
	struct {
		ROOM_NUMBERS(NUMBER_FIELD)
	} room;
	unsigned count;
	struct row rows[BACKENDS_MAX];
	struct advice_backend backends[BACKENDS_MAX];
	unsigned cert_count;
	struct advice_cert certs[CERTS_MAX];
	struct advice advice;
	unsigned hint_count;
	char hints[HINTS_MAX][HINT_SIZE];
};

struct pair {
	const char *key;
	size_t offset;
};

#define NUMBERS_OF info
static const struct pair info_pairs[] = { INFO_NUMBERS(NUMBER_NAME){ NULL,
								     0 } };
#undef NUMBERS_OF
#define NUMBERS_OF room
static const struct pair room_pairs[] = { ROOM_NUMBERS(NUMBER_NAME){ NULL,
								     0 } };
#undef NUMBERS_OF

static void copy(char *to, size_t size, const char *text)
{
	(void)snprintf(to, size, "%s", text);
}

static void read_word(struct status *s, const char *key, const char *value)
{
	if (strcmp(key, "version") == 0)
		copy(s->version, sizeof(s->version), value);
	if (strcmp(key, "hostname") == 0)
		copy(s->hostname, sizeof(s->hostname), value);
	if (strcmp(key, "state") == 0)
		copy(s->state, sizeof(s->state), value);
	if (strcmp(key, "stressed") == 0)
		s->stressed = strcmp(value, "yes") == 0;
	if (strcmp(key, "busy") == 0)
		s->observe = strcmp(value, "observe") == 0;
	if (strcmp(key, "relay_guard") == 0)
		s->guarded = strcmp(value, "enforce") == 0;
	if (strcmp(key, "saturated") == 0)
		s->saturated = strcmp(value, "yes") == 0;
}

/* Lines of "key,value". */
static void read_list(struct status *s, char *text, const struct pair *pairs)
{
	char *fields[FIELDS_MAX];
	char *next;

	for (char *line = text; line != NULL && *line != '\0'; line = next) {
		if (cut_csv(line, fields, &next) != 2)
			continue;
		for (const struct pair *p = pairs; p->key != NULL; p++) {
			uint64_t n = number(fields[1]);

			if (strcmp(fields[0], p->key) == 0)
				memcpy((char *)s + p->offset, &n, sizeof(n));
		}
		read_word(s, fields[0], fields[1]);
	}
}

/* `show info` also counts sessions that were saturated: no word of ours. */
static void read_info(struct status *s, char *text)
{
	read_list(s, text, info_pairs);
	s->saturated = false;
}

typedef void row_fn(struct status *s, char *const f[]);

/* A head line and rows; fn gets the columns that are named, in that order. */
static void read_table(struct status *s, char *text, const char *const *names,
		       unsigned columns, row_fn *fn)
{
	static char nothing[] = "";
	char *fields[FIELDS_MAX];
	char *row[COLUMNS_MAX];
	unsigned at[COLUMNS_MAX];
	char *line;
	unsigned count = cut_csv(text, fields, &line);

	for (unsigned c = 0; c < columns; c++) {
		at[c] = FIELDS_MAX;
		for (unsigned i = 0; i < count; i++) {
			if (strcmp(fields[i], names[c]) == 0)
				at[c] = i;
		}
	}
	while (line != NULL && *line != '\0') {
		char *next;

		count = cut_csv(line, fields, &next);
		for (unsigned c = 0; c < columns; c++)
			row[c] = at[c] < count ? fields[at[c]] : nothing;
		if (line[0] != '#')
			fn(s, row);
		line = next;
	}
}

/* Columns of show backends. */
enum backend_column {
	BACKEND_NAME,
	BACKEND_STATE,
	BACKEND_ADMIN,
	BACKEND_WHY,
	BACKEND_BECAUSE,
	BACKEND_SINCE,
	BACKEND_LEFT,
	BACKEND_ERRORS,
	BACKEND_MESSAGES,
	BACKEND_COLUMNS,
};
static const char *const backend_columns[BACKEND_COLUMNS] = {
	[BACKEND_NAME] = "name",         [BACKEND_STATE] = "state",
	[BACKEND_ADMIN] = "admin",       [BACKEND_WHY] = "why",
	[BACKEND_BECAUSE] = "because",   [BACKEND_SINCE] = "since_ms",
	[BACKEND_LEFT] = "left_ms",      [BACKEND_ERRORS] = "errors_permille",
	[BACKEND_MESSAGES] = "messages",
};

static enum advice_place place_of(const char *state, const char *admin)
{
	static const struct {
		const char *state;
		enum advice_place place;
	} places[] = {
		{ "up", ADVICE_SERVING },
		{ "unknown", ADVICE_SERVING },
		{ "busy", ADVICE_RESTING },
		{ "half_open", ADVICE_RESTING },
	};

	if (strcmp(admin, "ready") != 0)
		return ADVICE_ASIDE;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		if (strcmp(state, places[i].state) == 0)
			return places[i].place;
	}
	return ADVICE_FAILING;
}

static void read_backend(struct status *s, char *const f[])
{
	if (s->count == BACKENDS_MAX)
		return;
	struct advice_backend *b = &s->backends[s->count];
	struct row *row = &s->rows[s->count];

	s->count++;
	b->name = f[BACKEND_NAME];
	b->place = place_of(f[BACKEND_STATE], f[BACKEND_ADMIN]);
	b->state = b->place == ADVICE_ASIDE ? f[BACKEND_ADMIN]
					    : f[BACKEND_STATE];
	row->admin = f[BACKEND_ADMIN];
	row->why = f[BACKEND_WHY];
	row->because = f[BACKEND_BECAUSE];
	row->event = "";
	row->since_ms = number(f[BACKEND_SINCE]);
	row->left_ms = number(f[BACKEND_LEFT]);
	row->errors_permille = number(f[BACKEND_ERRORS]);
	row->messages = number(f[BACKEND_MESSAGES]);
}

/* Columns of show limits. */
enum limit_column {
	LIMIT_NAME,
	LIMIT_LIMIT,
	LIMIT_CEILING,
	LIMIT_GREETED,
	LIMIT_PENDING,
	LIMIT_IDLE,
	LIMIT_REFUSED,
	LIMIT_SLOW,
	LIMIT_ALARM,
	LIMIT_BELOW,
	LIMIT_BELOW_REFUSED,
	LIMIT_LAST,
	LIMIT_BECAUSE,
	LIMIT_AGO,
	LIMIT_COLUMNS,
};
static const char *const limit_columns[LIMIT_COLUMNS] = {
	[LIMIT_NAME] = "name",
	[LIMIT_LIMIT] = "limit",
	[LIMIT_CEILING] = "max_sessions",
	[LIMIT_GREETED] = "greeted",
	[LIMIT_PENDING] = "pending",
	[LIMIT_IDLE] = "idle",
	[LIMIT_REFUSED] = "refused",
	[LIMIT_SLOW] = "slow",
	[LIMIT_ALARM] = "alarm",
	[LIMIT_BELOW] = "below",
	[LIMIT_BELOW_REFUSED] = "below_refused",
	[LIMIT_LAST] = "last",
	[LIMIT_BECAUSE] = "because",
	[LIMIT_AGO] = "ago_ms",
};

/* What its limit is known from. */
static const char *event_of(char *const f[])
{
	if (strcmp(f[LIMIT_LAST], "start") != 0)
		return f[LIMIT_BECAUSE];
	return f[LIMIT_CEILING][0] != '\0' ? "max_sessions; it refused nothing"
					   : "a guess; it refused nothing";
}

static void read_limit(struct status *s, char *const f[])
{
	for (unsigned i = 0; i < s->count; i++) {
		struct advice_backend *b = &s->backends[i];
		struct row *row = &s->rows[i];
		uint64_t used = number(f[LIMIT_GREETED]) +
				number(f[LIMIT_PENDING]);

		if (strcmp(b->name, f[LIMIT_NAME]) != 0)
			continue;
		row->idle = (uint32_t)number(f[LIMIT_IDLE]);
		row->event = event_of(f);
		row->event_ms = number(f[LIMIT_AGO]);
		/* They are counted one after the other, while things move. */
		b->used = used > row->idle ? (uint32_t)used - row->idle : 0;
		b->limit = (uint32_t)number(f[LIMIT_LIMIT]);
		b->ceiling = (uint32_t)number(f[LIMIT_CEILING]);
		b->measured = number(f[LIMIT_REFUSED]) > 0 ||
			      number(f[LIMIT_SLOW]) > 0;
		b->alarmed = strcmp(f[LIMIT_ALARM], "yes") == 0;
		b->below = (uint32_t)number(f[LIMIT_BELOW]);
		b->below_refused = (uint32_t)number(f[LIMIT_BELOW_REFUSED]);
	}
}

/* Columns of show health. */
enum health_column {
	HEALTH_NAME,
	HEALTH_CERT,
	HEALTH_RELAY,
	HEALTH_COLUMNS,
};
static const char *const health_columns[HEALTH_COLUMNS] = {
	[HEALTH_NAME] = "name",
	[HEALTH_CERT] = "cert_days",
	[HEALTH_RELAY] = "relay",
};

static void read_health(struct status *s, char *const f[])
{
	for (unsigned i = 0; i < s->count; i++) {
		struct advice_backend *b = &s->backends[i];

		if (strcmp(b->name, f[HEALTH_NAME]) != 0)
			continue;
		b->cert_known = f[HEALTH_CERT][0] != '\0';
		b->cert_days = number(f[HEALTH_CERT]);
		if (strcmp(f[HEALTH_RELAY], "open") == 0)
			b->relay = ADVICE_RELAY_OPEN;
		if (strcmp(f[HEALTH_RELAY], "unknown") == 0)
			b->relay = ADVICE_RELAY_UNKNOWN;
	}
}

/* Columns of show tls. */
enum tls_column { TLS_LISTENER, TLS_NAMES, TLS_DAYS, TLS_COLUMNS };
static const char *const tls_columns[TLS_COLUMNS] = {
	[TLS_LISTENER] = "listener",
	[TLS_NAMES] = "names",
	[TLS_DAYS] = "days",
};

static void read_cert(struct status *s, char *const f[])
{
	if (s->cert_count == CERTS_MAX || f[TLS_DAYS][0] == '\0')
		return;
	s->certs[s->cert_count++] = (struct advice_cert){
		.listener = f[TLS_LISTENER],
		.names = f[TLS_NAMES],
		.days = number(f[TLS_DAYS]),
	};
}

static struct advice_farm farm_of(const struct status *s)
{
	return (struct advice_farm){
		.backends = s->backends,
		.count = s->count,
		.room = {
			.size = (uint32_t)s->room.size,
			.waiting = (uint32_t)s->room.waiting,
			.oldest_ms = (int64_t)s->room.oldest_ms,
			.wait_p99_ms = (int64_t)s->room.wait_p99_ms,
			.saturated = s->saturated,
			.saturated_ms = (int64_t)s->room.saturated_ms,
		},
		.observe = s->observe,
		.guarded = s->guarded,
		.certs = s->certs,
		.cert_count = s->cert_count,
	};
}

/* ---- drawing ---- */

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

/* "* text", in lines of the screen's width. */
static void print_folded(const struct status *s, enum mood mood,
			 const char *text)
{
	size_t room = s->width > WIDTH_MIN ? s->width - 3 : WIDTH_MIN;
	const char *indent = "*";

	while (*text != '\0') {
		size_t len = strlen(text);

		if (s->width > 0 && len > room) {
			len = room;
			while (len > 0 && text[len] != ' ')
				len--;
			if (len == 0)
				len = room;
		}
		(void)printf("%s%s%s %.*s\n", paint(s, mood), indent, plain(s),
			     (int)len, text);
		indent = " ";
		text += len;
		text += strspn(text, " ");
	}
}

static void print_clients(const struct status *s, const struct ctl_totals *last,
			  double seconds)
{
	bool well = strcmp(s->state, "running") == 0 && !s->stressed;
	char up[32];
	char slots[BAR_WIDTH + 1];

	age(up, sizeof(up), s->info.uptime_s);
	bar(slots, s->info.sessions_now, s->info.sessions_max);
	(void)printf("weir %s on %s: %s%s%s%s for %s\n", s->version,
		     s->hostname, paint(s, well ? MOOD_GOOD : MOOD_WARN),
		     s->state, s->stressed ? ", under stress" : "", plain(s),
		     up);
	(void)printf("clients   [%s] %llu of %llu, %llu connections so far, "
		     "%llu refused\n",
		     slots, (unsigned long long)s->info.sessions_now,
		     (unsigned long long)s->info.sessions_max,
		     (unsigned long long)s->info.connections,
		     (unsigned long long)s->info.refused);
	(void)printf("messages  %llu accepted, %llu refused",
		     (unsigned long long)s->info.messages,
		     (unsigned long long)s->info.messages_refused);
	/* A restart in between would count backwards. */
	if (seconds > 0 && s->info.messages >= last->messages &&
	    s->info.connections >= last->connections) {
		(void)printf(", %.1f/s; %.1f connections/s",
			     (double)(s->info.messages - last->messages) /
				     seconds,
			     (double)(s->info.connections - last->connections) /
				     seconds);
	}
	(void)printf("\n");
}

static void print_waiting(const struct status *s)
{
	char text[BAR_WIDTH + 1];
	char time[ADVICE_TIME_MAX];

	if (s->room.size == 0) {
		(void)printf("waiting   nobody may: [room] size = 0\n");
		return;
	}
	bar(text, s->room.waiting, s->room.size);
	(void)printf("waiting   [%s] %llu of %llu", text,
		     (unsigned long long)s->room.waiting,
		     (unsigned long long)s->room.size);
	if (s->room.waiting > 0) {
		(void)advice_time((int64_t)s->room.oldest_ms, time);
		(void)printf(", the longest for %s", time);
	}
	if (s->room.wait_p99_ms > 0) {
		(void)advice_time((int64_t)s->room.wait_p50_ms, time);
		(void)printf("; served last: p50 %s", time);
		(void)advice_time((int64_t)s->room.wait_p99_ms, time);
		(void)printf(", p99 %s", time);
	}
	if (s->saturated) {
		(void)advice_time((int64_t)s->room.saturated_ms, time);
		(void)printf("; %ssaturated%s for %s", paint(s, MOOD_BAD),
			     plain(s), time);
	}
	(void)printf("\n");
}

static void print_farm(const struct status *s, const struct advice_farm *farm)
{
	const struct advice_slots slots = advice_count_slots(farm);
	char text[BAR_WIDTH + 1];
	uint32_t idle = 0;

	for (unsigned i = 0; i < s->count; i++)
		idle += s->rows[i].idle;
	bar(text, slots.used, slots.all);
	(void)printf("slots     [%s] %lu of %lu in use", text,
		     (unsigned long)slots.used, (unsigned long)slots.all);
	if (idle > 0)
		(void)printf(", %lu kept idle", (unsigned long)idle);
	(void)printf("\n");
	print_waiting(s);
}

static void print_advice(const struct status *s)
{
	static const enum mood moods[] = {
		[ADVICE_GOOD] = MOOD_GOOD,
		[ADVICE_WARN] = MOOD_WARN,
		[ADVICE_BAD] = MOOD_BAD,
	};

	(void)printf("\n");
	for (unsigned i = 0; i < s->advice.count; i++)
		print_folded(s, moods[s->advice.lines[i].mood],
			     s->advice.lines[i].text);
	(void)printf("\n");
}

static enum mood mood_of(const struct advice_backend *b)
{
	switch (b->place) {
	case ADVICE_SERVING:
		return strcmp(b->state, "up") == 0 ? MOOD_GOOD : MOOD_WARN;
	case ADVICE_RESTING:
		return MOOD_WARN;
	case ADVICE_FAILING:
		/* Its own word for it, and nothing to repair. */
		return strcmp(b->state, "drain") == 0 ? MOOD_WARN : MOOD_BAD;
	case ADVICE_ASIDE:
		break;
	}
	return MOOD_DULL;
}

static void print_why(const struct status *s, unsigned at)
{
	const struct row *row = &s->rows[at];
	bool serves = s->backends[at].place == ADVICE_SERVING;
	char since[32];

	if (serves && row->event[0] != '\0') {
		age(since, sizeof(since), row->event_ms / 1000);
		(void)printf("%s, %s ago", row->event, since);
		return;
	}
	if (s->backends[at].place == ADVICE_ASIDE) {
		(void)printf("an operator said so");
		return;
	}
	age(since, sizeof(since), row->since_ms / 1000);
	(void)printf("%s, for %s", row->because, since);
	if (row->left_ms > 0) {
		age(since, sizeof(since), row->left_ms / 1000);
		(void)printf(", %s more", since);
	}
}

static void print_backend(const struct status *s, unsigned at, uint32_t scale,
			  int name_width)
{
	const struct advice_backend *b = &s->backends[at];
	const struct row *row = &s->rows[at];
	char text[BAR_WIDTH + 1];
	char counts[32], ceiling[16] = "auto";

	advice_bar(b, scale, BAR_WIDTH, text);
	(void)snprintf(counts, sizeof(counts), "%lu/%lu",
		       (unsigned long)b->used, (unsigned long)b->limit);
	if (b->ceiling > 0)
		(void)snprintf(ceiling, sizeof(ceiling), "%lu",
			       (unsigned long)b->ceiling);
	(void)printf("%-*s %s%-9s%s [%s] %9s %5s %4llu.%llu%% %8llu  ",
		     name_width, b->name, paint(s, mood_of(b)), b->state,
		     plain(s), text, counts, ceiling,
		     (unsigned long long)(row->errors_permille / 10),
		     (unsigned long long)(row->errors_permille % 10),
		     (unsigned long long)row->messages);
	print_why(s, at);
	(void)printf("\n");
}

static void print_backends(const struct status *s,
			   const struct advice_farm *farm)
{
	uint32_t scale = advice_scale(farm);
	int width = NAME_WIDTH_MIN;

	for (unsigned i = 0; i < s->count; i++) {
		size_t len = strlen(s->backends[i].name);

		if (len > (size_t)width)
			width = len < NAME_WIDTH_MAX ? (int)len
						     : NAME_WIDTH_MAX;
	}
	if (s->count == 0)
		return;
	(void)printf("%-*s %-9s %-*s %9s %5s %6s %8s  %s\n", width, "backend",
		     "state", BAR_WIDTH + 2, " #used .free |max", "used/of",
		     "max", "errors", "messages", "why");
	for (unsigned i = 0; i < s->count; i++)
		print_backend(s, i, scale, width);
}

/* ---- hints ---- */

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

static void hint_resting(struct status *s, const struct advice_backend *b,
			 const struct row *row)
{
	if (strcmp(b->state, "busy") != 0)
		return;
	if (strcmp(row->why, "resources") == 0) {
		hint(s,
		     "%s is short of disk or memory for mail: look at its "
		     "spool and its queue; new messages go elsewhere "
		     "meanwhile",
		     b->name);
	} else {
		hint(s,
		     "%s is busy with no session of weir's: others use its "
		     "slots, or it refuses weir's address",
		     b->name);
	}
}

static void hint_backend(struct status *s, unsigned at)
{
	const struct advice_backend *b = &s->backends[at];
	const char *state = b->state;

	switch (b->place) {
	case ADVICE_ASIDE:
		if (b->used == 0) {
			hint(s,
			     "%s is in %s and has no sessions: it can be "
			     "stopped",
			     b->name, state);
		}
		return;
	case ADVICE_RESTING:
		hint_resting(s, b, &s->rows[at]);
		return;
	case ADVICE_SERVING:
		return;
	case ADVICE_FAILING:
		break;
	}
	if (strcmp(state, "misconf") == 0) {
		hint(s,
		     "%s refuses weir itself: \"weirctl show health\" has its "
		     "reply; it must trust weir's address",
		     b->name);
	}
	if (strcmp(state, "down") == 0) {
		hint(s,
		     "%s fails its probes: \"weirctl show health\" says at "
		     "which step",
		     b->name);
	}
	if (strcmp(state, "ejected") == 0) {
		hint(s,
		     "%s broke live sessions and rests; it is tried again by "
		     "itself",
		     b->name);
	}
}

static void hint_all(struct status *s)
{
	for (unsigned i = 0; i < s->count; i++)
		hint_backend(s, i);
	if (s->stressed)
		hint(s, "weir is near max_sessions of [admission]: timeouts "
			"are shorter until that is over");
	if (strcmp(s->state, "running") != 0)
		hint(s, "weir is shutting down: it takes no new sessions");
	if (s->info.messages_unknown > 0) {
		hint(s,
		     "messages without a final reply from a backend: %llu; "
		     "their senders will try again (result=unknown in the "
		     "log)",
		     (unsigned long long)s->info.messages_unknown);
	}
	if (s->info.log_dropped > 0) {
		hint(s,
		     "log lines dropped: %llu; the log's disk or pipe is too "
		     "slow",
		     (unsigned long long)s->info.log_dropped);
	}
	if (s->info.no_buffers > 0) {
		hint(s,
		     "times that buffers ran out: %llu; raise small_buffers "
		     "or big_buffers",
		     (unsigned long long)s->info.no_buffers);
	}
}

static void print_hints(const struct status *s)
{
	if (s->hint_count > 0)
		(void)printf("\n");
	for (unsigned i = 0; i < s->hint_count; i++)
		print_folded(s, MOOD_WARN, s->hints[i]);
}

/* ---- the screen ---- */

static bool wants_colours(void)
{
	const char *no = getenv("NO_COLOR");
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) == 1 && (no == NULL || no[0] == '\0') &&
	       term != NULL && strcmp(term, "dumb") != 0;
}

static unsigned screen_width(void)
{
	struct winsize size;

	if (isatty(STDOUT_FILENO) != 1)
		return 0;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 ||
	    size.ws_col < WIDTH_MIN)
		return WIDTH_STANDARD;
	return size.ws_col;
}

/* Each answer ends in an empty line, but for the last.  False: one is an
 * error, and is told. */
static bool part(char *text, char *parts[], unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		parts[i] = text;
		char *end = strstr(text, "\n\n");

		if (ctl_is_error(text) || (end == NULL && i + 1 < count)) {
			if (end != NULL)
				end[1] = '\0';
			(void)fputs(text, stderr);
			return false;
		}
		if (end == NULL)
			continue;
		end[1] = '\0';
		text = end + 2;
	}
	return true;
}

int ctl_status(const char *path, struct ctl_answer *answer,
	       struct ctl_totals *last, double seconds)
{
	enum { INFO, BACKENDS, LIMITS, HEALTH, TLS, ROOM, PARTS };
	static struct status s;
	char *parts[PARTS];

	memset(&s, 0, sizeof(s));
	s.colours = wants_colours();
	s.width = screen_width();
	if (!ctl_ask(path,
		     "show info csv\nshow backends csv\nshow limits csv\n"
		     "show health csv\nshow tls csv\nshow room csv\n",
		     answer, PARTS))
		return CTL_TROUBLE;
	if (!part(answer->text, parts, PARTS))
		return CTL_REFUSED;
	read_info(&s, parts[INFO]);
	read_table(&s, parts[BACKENDS], backend_columns, BACKEND_COLUMNS,
		   read_backend);
	read_table(&s, parts[LIMITS], limit_columns, LIMIT_COLUMNS, read_limit);
	read_table(&s, parts[HEALTH], health_columns, HEALTH_COLUMNS,
		   read_health);
	read_table(&s, parts[TLS], tls_columns, TLS_COLUMNS, read_cert);
	read_list(&s, parts[ROOM], room_pairs);

	const struct advice_farm farm = farm_of(&s);

	advice_give(&farm, &s.advice);
	hint_all(&s);
	if (seconds > 0 && s.colours)
		(void)printf("\033[H\033[2J");
	else if (seconds > 0)
		(void)printf("\n");
	print_clients(&s, last, seconds);
	print_farm(&s, &farm);
	print_advice(&s);
	print_backends(&s, &farm);
	print_hints(&s);
	last->messages = s.info.messages;
	last->connections = s.info.connections;
	return CTL_GOOD;
}
