#include "proxy/config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	LINE_ROOM_MAX = CONFIG_TEXT_MAX,
	FILE_SIZE_MAX = 64 << 20,
	NETS_MAX = 1 << 20, /* networks of one list, its files included */
	QUOTED_MAX = 4 * CONFIG_TEXT_MAX + 4,
	WORD_MAX = 64, /* longer names resemble no key */
	KIB = 1024,
	HEALTH_COUNT_MAX = 64, /* the bits of a health history */
	POOL_MIN = 16,         /* of io.h */
	POOL_MAX = 32768,      /* entries of one ring of provided buffers */
	RECIPIENTS_MIN = 100,  /* RFC 5321, section 4.5.3.1.8 */
	SECOND = 1000,
	MINUTE = 60 * SECOND,
	HOUR = 60 * MINUTE,
};

#define SIZE_LIMIT ((uint64_t)1 << 40)

/* Text that need not end in NUL. */
struct span {
	const char *at;
	size_t len;
};

/* --- the key table --- */

enum section {
	SECTION_WEIR,
	SECTION_LISTENER,
	SECTION_ADMISSION,
	SECTION_TIMEOUTS,
	SECTION_FARM,
	SECTION_HEALTH,
	SECTION_BACKEND,
	SECTION_COUNT, /* and: none */
};

enum kind {
	KIND_COUNT,    /* min..max */
	KIND_DURATION, /* min..max ms */
	KIND_SIZE,     /* min..max octets */
	KIND_PERCENT,
	KIND_RATE,
	KIND_MODE,
	KIND_WORD, /* one of .words, stored as its place there */
	KIND_HOST,
	KIND_PATH, /* at most max octets */
	KIND_USER, /* at most max octets */
	KIND_TEXT, /* at most max octets */
	KIND_LOG,
	KIND_LISTEN,   /* a list */
	KIND_ENDPOINT, /* ADDRESS:PORT */
	KIND_ADDRESS,
	KIND_NETS,      /* a list */
	KIND_NETS_FILE, /* a list of files */
	KIND_BUSY_RULE,
};

struct key {
	const char *name;
	const char *standard;     /* the default, as an operator writes it */
	const char *help;         /* "" of none */
	const char *const *words; /* of KIND_WORD, NULL at the end */
	size_t offset;            /* of the field in its section's struct */
	size_t width;             /* of the field */
	uint64_t min, max;
	enum section section;
	enum kind kind;
	bool required;
	bool repeatable;
};

static const char *const words_switch[] = { "off", "on", NULL };
static const char *const words_format[] = {
	[CONFIG_LOG_KV] = "kv",
	[CONFIG_LOG_JSON] = "json",
	NULL,
};
/* The places are syslog's numbers. */
static const char *const words_level[] = {
	"emerg",  "alert", "crit",  "err", "warning",
	"notice", "info",  "debug", NULL,
};
static const char *const words_early[] = {
	[CONFIG_EARLY_REJECT] = "reject",
	[CONFIG_EARLY_LOG] = "log",
	[CONFIG_EARLY_OFF] = "off",
	NULL,
};
static const char *const words_state[] = {
	[CONFIG_BACKEND_READY] = "ready",
	[CONFIG_BACKEND_DRAIN] = "drain",
	[CONFIG_BACKEND_MAINT] = "maint",
	NULL,
};

#define IN(type, field)                                                        \
	.offset = offsetof(struct type, field),                                \
	.width = sizeof(((struct type *)NULL)->field)

#define WEIR(key)      .section = SECTION_WEIR, .name = #key
#define LISTENER(key)  .section = SECTION_LISTENER, .name = #key
#define ADMISSION(key) .section = SECTION_ADMISSION, .name = #key
#define TIMEOUTS(key)                                                          \
	.section = SECTION_TIMEOUTS, .name = #key, .kind = KIND_DURATION,      \
	IN(config_timeouts, key##_ms)
#define FARM(key)    .section = SECTION_FARM, .name = #key
#define HEALTH(key)  .section = SECTION_HEALTH, .name = #key
#define BACKEND(key) .section = SECTION_BACKEND, .name = #key

/*
 * Every key there is, in the order of the manual page.  The parser, the
 * defaults and the messages are this table; a test compares it with
 * etc/weir.ini and weir.ini.5.
 */
/* clang-format off */
static const struct key keys[] = {
	{ WEIR(hostname), .standard = "", .kind = KIND_HOST,
	  IN(config_weir, hostname),
	  .help = "name in greetings and replies; empty: the system's" },
	{ WEIR(workers), .standard = "0", .kind = KIND_COUNT,
	  IN(config_weir, workers), .min = 0, .max = CONFIG_WORKERS_MAX,
	  .help = "threads; 0: one per core" },
	{ WEIR(user), .standard = "", .kind = KIND_USER,
	  IN(config_weir, user), .max = 32,
	  .help = "user to become after the ports are open; empty: no change" },
	{ WEIR(group), .standard = "", .kind = KIND_USER,
	  IN(config_weir, group), .max = 32,
	  .help = "group to become; empty: the user's" },
	{ WEIR(control_socket), .standard = "/run/weir/control.sock",
	  .kind = KIND_PATH, IN(config_weir, control_socket),
	  .max = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1,
	  .help = "UNIX socket for weirctl" },
	{ WEIR(control_mode), .standard = "0660", .kind = KIND_MODE,
	  IN(config_weir, control_mode), .max = 0777,
	  .help = "permissions of that socket" },
	{ WEIR(log), .standard = "stderr", .kind = KIND_LOG,
	  IN(config_weir, log),
	  .help = "where the log goes" },
	{ WEIR(log_format), .standard = "kv", .kind = KIND_WORD,
	  IN(config_weir, log_format), .words = words_format,
	  .help = "key=value pairs or JSON" },
	{ WEIR(log_level), .standard = "info", .kind = KIND_WORD,
	  IN(config_weir, log_level), .words = words_level,
	  .help = "least urgent level that is logged" },
	{ WEIR(small_buffers), .standard = "1024", .kind = KIND_COUNT,
	  IN(config_weir, small_buffers), .min = POOL_MIN, .max = POOL_MAX,
	  .help = "buffers for commands and replies, of each worker" },
	{ WEIR(big_buffers), .standard = "256", .kind = KIND_COUNT,
	  IN(config_weir, big_buffers), .min = POOL_MIN, .max = POOL_MAX,
	  .help = "buffers for bodies, of each worker" },

	{ LISTENER(listen), .standard = "0.0.0.0:25", .kind = KIND_LISTEN,
	  IN(config_listener, listen), .repeatable = true,
	  .help = "addresses and ports to accept clients on" },
	{ LISTENER(banner), .standard = "ESMTP", .kind = KIND_TEXT,
	  IN(config_listener, banner), .max = 128,
	  .help = "what the greeting says after the host name" },
	{ LISTENER(greeting_delay), .standard = "0", .kind = KIND_DURATION,
	  IN(config_listener, greeting_delay_ms), .max = MINUTE,
	  .help = "wait before the greeting" },
	{ LISTENER(early_talkers), .standard = "reject", .kind = KIND_WORD,
	  IN(config_listener, early_talkers), .words = words_early,
	  .help = "what becomes of clients that talk before the greeting" },
	{ LISTENER(size), .standard = "0", .kind = KIND_SIZE,
	  IN(config_listener, size), .max = SIZE_LIMIT,
	  .help = "largest message; 0: the smallest limit of the backends" },

	{ ADMISSION(max_sessions), .standard = "5000", .kind = KIND_COUNT,
	  IN(config_admission, limits.max_sessions),
	  .min = 1, .max = ADMISSION_SESSIONS_MAX,
	  .help = "client sessions in all" },
	{ ADMISSION(max_per_source), .standard = "20", .kind = KIND_COUNT,
	  IN(config_admission, limits.max_per_source),
	  .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions of one source; 0: no limit" },
	{ ADMISSION(max_per_aggregate), .standard = "0", .kind = KIND_COUNT,
	  IN(config_admission, limits.max_per_aggregate),
	  .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions of the network around a source; 0: no limit" },
	{ ADMISSION(max_percent_per_source), .standard = "0%",
	  .kind = KIND_PERCENT,
	  IN(config_admission, limits.max_percent_per_source), .max = 100,
	  .help = "share of the free sessions one source may hold; 0%: off" },
	{ ADMISSION(percent_floor), .standard = "5", .kind = KIND_COUNT,
	  IN(config_admission, limits.percent_floor),
	  .min = 1, .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions that share never goes below" },
	{ ADMISSION(session_rate), .standard = "off", .kind = KIND_RATE,
	  IN(config_admission, limits.rates[ADMISSION_RATE_SESSION]),
	  .help = "new sessions of one source" },
	{ ADMISSION(message_rate), .standard = "off", .kind = KIND_RATE,
	  IN(config_admission, limits.rates[ADMISSION_RATE_MESSAGE]),
	  .help = "messages of one source" },
	{ ADMISSION(recipient_rate), .standard = "off", .kind = KIND_RATE,
	  IN(config_admission, limits.rates[ADMISSION_RATE_RECIPIENT]),
	  .help = "recipients of one source" },
	{ ADMISSION(ipv4_source_prefix), .standard = "32", .kind = KIND_COUNT,
	  IN(config_admission, limits.source_v4_bits), .max = 32,
	  .help = "bits of an IPv4 address that make a source" },
	{ ADMISSION(ipv4_aggregate_prefix), .standard = "24",
	  .kind = KIND_COUNT,
	  IN(config_admission, limits.aggregate_v4_bits), .max = 32,
	  .help = "bits of an IPv4 address that make an aggregate" },
	{ ADMISSION(ipv6_source_prefix), .standard = "64", .kind = KIND_COUNT,
	  IN(config_admission, limits.source_v6_bits), .max = 128,
	  .help = "bits of an IPv6 address that make a source" },
	{ ADMISSION(ipv6_aggregate_prefix), .standard = "48",
	  .kind = KIND_COUNT,
	  IN(config_admission, limits.aggregate_v6_bits), .max = 128,
	  .help = "bits of an IPv6 address that make an aggregate" },
	{ ADMISSION(table_size), .standard = "65536", .kind = KIND_COUNT,
	  IN(config_admission, limits.table_size),
	  .min = ADMISSION_TABLE_MIN, .max = ADMISSION_TABLE_MAX,
	  .help = "sources and aggregates remembered" },
	{ ADMISSION(allow), .standard = "", .kind = KIND_NETS,
	  IN(config_admission, allow), .repeatable = true,
	  .help = "networks held to max_sessions only" },
	{ ADMISSION(deny), .standard = "", .kind = KIND_NETS,
	  IN(config_admission, deny), .repeatable = true,
	  .help = "networks that are refused" },
	{ ADMISSION(allow_file), .standard = "", .kind = KIND_NETS_FILE,
	  IN(config_admission, allow), .repeatable = true,
	  .help = "files of more networks for allow" },
	{ ADMISSION(deny_file), .standard = "", .kind = KIND_NETS_FILE,
	  IN(config_admission, deny), .repeatable = true,
	  .help = "files of more networks for deny" },
	{ ADMISSION(max_errors), .standard = "20", .kind = KIND_COUNT,
	  IN(config_admission, max_errors), .min = 1, .max = 10000,
	  .help = "mistakes of one session" },
	{ ADMISSION(max_messages), .standard = "0", .kind = KIND_COUNT,
	  IN(config_admission, max_messages), .max = 1000000,
	  .help = "messages of one session; 0: no limit" },
	{ ADMISSION(max_recipients), .standard = "1000", .kind = KIND_COUNT,
	  IN(config_admission, max_recipients),
	  .min = RECIPIENTS_MIN, .max = 1000000,
	  .help = "recipients of one message" },
	{ ADMISSION(tarpit), .standard = "0", .kind = KIND_DURATION,
	  IN(config_admission, tarpit_ms), .max = MINUTE,
	  .help = "wait after an error reply of weir's own" },
	{ ADMISSION(stress_high), .standard = "90%", .kind = KIND_PERCENT,
	  IN(config_admission, limits.stress_high_percent), .max = 100,
	  .help = "share of max_sessions that begins stress; 0%: never" },
	{ ADMISSION(stress_low), .standard = "75%", .kind = KIND_PERCENT,
	  IN(config_admission, limits.stress_low_percent), .max = 100,
	  .help = "share of max_sessions that ends it" },

	{ TIMEOUTS(command), .standard = "5m", .min = 100, .max = 24 * HOUR,
	  .help = "client: next command" },
	{ TIMEOUTS(data), .standard = "3m", .min = 100, .max = 24 * HOUR,
	  .help = "client: next part of a body" },
	{ TIMEOUTS(send), .standard = "5m", .min = 100, .max = 24 * HOUR,
	  .help = "client: reads what it is sent" },
	{ TIMEOUTS(session), .standard = "0", .max = 24 * HOUR,
	  .help = "client: the whole session; 0: no limit" },
	{ TIMEOUTS(stress_command), .standard = "10s",
	  .min = 100, .max = 24 * HOUR,
	  .help = "client: next command, under stress" },
	{ TIMEOUTS(backend_connect), .standard = "5s",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: takes the connection" },
	{ TIMEOUTS(backend_greeting), .standard = "30s",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: greeting" },
	{ TIMEOUTS(backend_helo), .standard = "30s",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reply to EHLO or HELO" },
	{ TIMEOUTS(backend_mail), .standard = "5m",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reply to MAIL" },
	{ TIMEOUTS(backend_rcpt), .standard = "5m",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reply to RCPT" },
	{ TIMEOUTS(backend_data), .standard = "2m",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reply to DATA" },
	{ TIMEOUTS(backend_send), .standard = "3m",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reads what it is sent" },
	{ TIMEOUTS(backend_final), .standard = "10m",
	  .min = 100, .max = 24 * HOUR,
	  .help = "backend: reply to the end of a body" },
	{ TIMEOUTS(backend_quit), .standard = "2s", .max = 5 * MINUTE,
	  .help = "backend: reply to QUIT" },
	{ TIMEOUTS(drain), .standard = "10m", .max = 24 * HOUR,
	  .help = "open sessions when weir is to end" },

	{ FARM(tries), .standard = "3", .kind = KIND_COUNT,
	  IN(config_farm, tries), .min = 1, .max = 10,
	  .help = "backends tried for one MAIL" },
	{ FARM(budget), .standard = "20s", .kind = KIND_DURATION,
	  IN(config_farm, budget_ms), .min = 100, .max = 10 * MINUTE,
	  .help = "time for all of them together" },
	{ FARM(linger), .standard = "1s", .kind = KIND_DURATION,
	  IN(config_farm, linger_ms), .max = 5 * MINUTE,
	  .help = "a session keeps its backend after a message; 0: not" },
	{ FARM(unavailable_after), .standard = "5s", .kind = KIND_DURATION,
	  IN(config_farm, unavailable_after_ms), .max = HOUR,
	  .help = "no backend for so long: clients are refused at once" },

	{ HEALTH(probe), .standard = "on", .kind = KIND_WORD,
	  IN(config_health, probe), .words = words_switch,
	  .help = "active probes" },
	{ HEALTH(interval), .standard = "10s", .kind = KIND_DURATION,
	  IN(config_health, interval_ms), .min = 100, .max = HOUR,
	  .help = "between probes of a backend that is up" },
	{ HEALTH(down_interval), .standard = "5s", .kind = KIND_DURATION,
	  IN(config_health, down_interval_ms), .min = 100, .max = HOUR,
	  .help = "between probes of a backend that is down" },
	{ HEALTH(timeout), .standard = "30s", .kind = KIND_DURATION,
	  IN(config_health, timeout_ms), .min = 100, .max = 10 * MINUTE,
	  .help = "a whole probe" },
	{ HEALTH(rise), .standard = "2", .kind = KIND_COUNT,
	  IN(config_health, rise), .min = 1, .max = HEALTH_COUNT_MAX,
	  .help = "good probes in a row that bring a backend up" },
	{ HEALTH(fall), .standard = "3", .kind = KIND_COUNT,
	  IN(config_health, fall), .min = 1, .max = HEALTH_COUNT_MAX,
	  .help = "bad probes in a row that take it down" },
	{ HEALTH(mail), .standard = "off", .kind = KIND_WORD,
	  IN(config_health, mail), .words = words_switch,
	  .help = "a probe also says MAIL and RSET" },
	{ HEALTH(helo), .standard = "", .kind = KIND_HOST,
	  IN(config_health, helo),
	  .help = "name in a probe's EHLO; empty: hostname" },
	{ HEALTH(passive_fall), .standard = "3", .kind = KIND_COUNT,
	  IN(config_health, passive_fall), .min = 1, .max = 1000,
	  .help = "hard failures of live traffic in a row that eject" },
	{ HEALTH(eject), .standard = "5s", .kind = KIND_DURATION,
	  IN(config_health, eject_ms), .min = 100, .max = HOUR,
	  .help = "first ejection; each further one is twice as long" },
	{ HEALTH(eject_max), .standard = "5m", .kind = KIND_DURATION,
	  IN(config_health, eject_max_ms), .min = 100, .max = 24 * HOUR,
	  .help = "longest ejection" },
	{ HEALTH(max_ejected), .standard = "50%", .kind = KIND_PERCENT,
	  IN(config_health, max_ejected_percent), .max = 100,
	  .help = "share of the farm that may be ejected at once" },
	{ HEALTH(busy_hold), .standard = "1s", .kind = KIND_DURATION,
	  IN(config_health, busy_hold_ms), .max = HOUR,
	  .help = "first pause after a busy reply" },

	{ BACKEND(address), .standard = "", .kind = KIND_ENDPOINT,
	  IN(config_backend, address), .required = true,
	  .help = "where the server listens" },
	{ BACKEND(max_sessions), .standard = "50", .kind = KIND_COUNT,
	  IN(config_backend, max_sessions), .min = 1, .max = 65535,
	  .help = "connections to it at once" },
	{ BACKEND(weight), .standard = "100", .kind = KIND_COUNT,
	  IN(config_backend, weight), .min = 1, .max = 1000,
	  .help = "its share of the load, next to the others'" },
	{ BACKEND(source), .standard = "", .kind = KIND_ADDRESS,
	  IN(config_backend, source),
	  .help = "address to connect from; empty: the system chooses" },
	{ BACKEND(state), .standard = "ready", .kind = KIND_WORD,
	  IN(config_backend, state), .words = words_state,
	  .help = "state at start" },
	{ BACKEND(busy_rule), .standard = "", .kind = KIND_BUSY_RULE,
	  IN(config_backend, busy_rules), .repeatable = true,
	  .help = "what a reply of this server means" },
};
/* clang-format on */

enum { KEY_COUNT = sizeof(keys) / sizeof(keys[0]) };

struct section_info {
	const char *name;
	size_t offset; /* in struct config; of the first, if named */
	bool named;    /* [listener NAME] */
};

static const struct section_info sections[] = {
	[SECTION_WEIR] = { "weir", offsetof(struct config, weir), false },
	[SECTION_LISTENER] = { "listener", offsetof(struct config, listeners),
			       true },
	[SECTION_ADMISSION] = { "admission", offsetof(struct config, admission),
				false },
	[SECTION_TIMEOUTS] = { "timeouts", offsetof(struct config, timeouts),
			       false },
	[SECTION_FARM] = { "farm", offsetof(struct config, farm), false },
	[SECTION_HEALTH] = { "health", offsetof(struct config, health), false },
	[SECTION_BACKEND] = { "backend", offsetof(struct config, backends),
			      true },
};

static_assert(sizeof(sections) / sizeof(sections[0]) == SECTION_COUNT,
	      "each section has a row");

/* --- reading a file --- */

struct nets {
	struct cidr *items; /* owned */
	size_t count;
	size_t room;
};

/* A key of the section at hand. */
struct seen {
	unsigned line; /* 0: not given */
	bool bad;      /* its value was refused */
};

struct reading {
	struct config *config; /* owned until it is returned */
	struct config_report *report;
	const char *name; /* of the file, for messages */
	struct span left; /* what was not read yet */
	unsigned line;    /* the line at hand, from 1 */
	bool owed;        /* it should be a pair, and inih did not say so */

	enum section section; /* SECTION_COUNT: keys have no meaning here */
	unsigned section_line;
	void *base; /* the struct that its keys fill */
	struct seen seen[KEY_COUNT];

	unsigned began[SECTION_COUNT]; /* first line of each section, or 0 */
	struct nets allow;
	struct nets deny;

	/* Where the values of a section with a wrong header go. */
	struct config_listener stray_listener;
	struct config_backend stray_backend;
};

/* One value on its way into its field. */
struct put {
	const struct key *key;
	void *base; /* the section's struct */
	struct span text;
	struct reading *reading; /* NULL: not from a file */
	/* More to the point than what the key allows; empty: nothing. */
	char why[CIDR_WHY_MAX + CONFIG_TEXT_MAX];
};

/* --- text --- */

/* snprintf, but returns what is really in buf. */
__attribute__((format(printf, 3, 4))) static size_t print(char *buf, size_t cap,
							  const char *format,
							  ...)
{
	assert(cap > 0);
	va_list args;

	va_start(args, format);
	int len = vsnprintf(buf, cap, format, args);
	va_end(args);
	assert(len >= 0);
	return (size_t)len < cap ? (size_t)len : cap - 1;
}

static struct span span_of(const char *text)
{
	return (struct span){ text, strlen(text) };
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static struct span trim(struct span s)
{
	while (s.len > 0 && is_blank(s.at[0])) {
		s.at++;
		s.len--;
	}
	while (s.len > 0 && is_blank(s.at[s.len - 1]))
		s.len--;
	return s;
}

static bool span_is(struct span s, const char *word)
{
	return s.len == strlen(word) && memcmp(s.at, word, s.len) == 0;
}

/* What stands before the first mark; *rest is what stands behind it. */
static struct span cut(struct span s, char mark, struct span *rest)
{
	const char *end = s.len > 0 ? memchr(s.at, mark, s.len) : NULL;

	if (end == NULL) {
		*rest = (struct span){ NULL, 0 };
		return s;
	}
	size_t len = (size_t)(end - s.at);

	*rest = (struct span){ end + 1, s.len - len - 1 };
	return (struct span){ s.at, len };
}

/* The next word between blanks; empty at the end. */
static struct span next_word(struct span *s)
{
	*s = trim(*s);
	size_t len = 0;

	while (len < s->len && !is_blank(s->at[len]))
		len++;
	struct span word = { s->at, len };

	s->at += len;
	s->len -= len;
	return word;
}

/* Text from a file, as a message may show it: printable ASCII in quotes. */
static const char *quote(char buf[QUOTED_MAX], struct span s)
{
	size_t len = 0;

	buf[len++] = '"';
	for (size_t i = 0; i < s.len && i < CONFIG_TEXT_MAX; i++) {
		unsigned char c = (unsigned char)s.at[i];

		if (c >= ' ' && c < 0x7f)
			buf[len++] = (char)c;
		else
			len += print(buf + len, QUOTED_MAX - len, "\\x%02x",
				     (unsigned)c);
	}
	buf[len++] = '"';
	buf[len] = '\0';
	assert(len < QUOTED_MAX);
	return buf;
}

/*
 * How many letters must be changed, put in or left out (Levenshtein, 1965).
 * Both are shorter than WORD_MAX.
 */
static size_t edit_distance(struct span a, struct span b)
{
	size_t row[WORD_MAX];

	assert(a.len < WORD_MAX);
	assert(b.len < WORD_MAX);
	for (size_t j = 0; j <= b.len; j++)
		row[j] = j;
	for (size_t i = 1; i <= a.len; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= b.len; j++) {
			bool same = lower(a.at[i - 1]) == lower(b.at[j - 1]);
			size_t best = diagonal + (same ? 0 : 1);

			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[b.len];
}

/* Is the candidate nearer than all before, and near enough to be meant? */
static bool nearer(struct span word, const char *candidate, size_t *best)
{
	struct span other = span_of(candidate);

	if (word.len >= WORD_MAX || other.len >= WORD_MAX)
		return false;
	size_t far = edit_distance(word, other);
	size_t longer = word.len > other.len ? word.len : other.len;

	if (far >= *best || (far > 1 && far * 2 > longer) || far >= longer)
		return false;
	*best = far;
	return true;
}

/* --- complaints --- */

static void report_add(struct reading *r, unsigned line, const char *file,
		       unsigned file_line, const char *text)
{
	struct config_report *report = r->report;

	if (report->count == CONFIG_ERRORS_MAX) {
		report->omitted++;
		return;
	}
	struct config_error *error = &report->errors[report->count++];

	error->line = line;
	if (file_line > 0)
		print(error->text, sizeof(error->text), "%s:%u: %s", file,
		      file_line, text);
	else
		print(error->text, sizeof(error->text), "%s: %s", file, text);
}

__attribute__((format(printf, 3, 4))) static void complain_at(
	struct reading *r, unsigned line, const char *format, ...)
{
	char text[CONFIG_ERROR_MAX];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	report_add(r, line, r->name, line, text);
}

#define complain(r, ...) complain_at((r), (r)->line, __VA_ARGS__)

/* By line; those of no line last; equal ones as they came. */
static bool error_before(const struct config_error *a,
			 const struct config_error *b)
{
	return a->line - 1U < b->line - 1U;
}

static void report_sort(struct config_report *report)
{
	for (unsigned i = 1; i < report->count; i++) {
		struct config_error moved = report->errors[i];
		unsigned at = i;

		while (at > 0 && error_before(&moved, &report->errors[at - 1]))
			at--;
		memmove(&report->errors[at + 1], &report->errors[at],
			(i - at) * sizeof(moved));
		report->errors[at] = moved;
	}
}

/* --- values --- */

static bool parse_number(struct span s, uint64_t *number)
{
	uint64_t n = 0;

	if (s.len == 0)
		return false;
	for (size_t i = 0; i < s.len; i++) {
		if (!is_digit(s.at[i]) || __builtin_mul_overflow(n, 10U, &n) ||
		    __builtin_add_overflow(n, (uint64_t)(s.at[i] - '0'), &n))
			return false;
	}
	*number = n;
	return true;
}

struct unit {
	const char *name;
	uint64_t factor;
};

/* Longest first, for duration_format. */
static const struct unit time_units[] = {
	{ "h", HOUR }, { "m", MINUTE }, { "s", SECOND },
	{ "ms", 1 },   { NULL, 0 },
};
static const struct unit size_units[] = {
	{ "G", (uint64_t)KIB *KIB *KIB },
	{ "M", (uint64_t)KIB *KIB },
	{ "K", KIB },
	{ "", 1 },
	{ NULL, 0 },
};

/* A number and one of the units. */
static bool parse_quantity(struct span s, const struct unit *units,
			   uint64_t *number)
{
	struct span digits = { s.at, 0 };

	while (digits.len < s.len && is_digit(s.at[digits.len]))
		digits.len++;
	struct span unit = { s.at + digits.len, s.len - digits.len };
	uint64_t n;

	if (!parse_number(digits, &n))
		return false;
	while (units->name != NULL && !span_is(unit, units->name))
		units++;
	/* Nothing needs no unit. */
	uint64_t factor = n == 0 && unit.len == 0 ? 1 : units->factor;

	return factor > 0 && !__builtin_mul_overflow(n, factor, number);
}

static size_t format_quantity(uint64_t n, const struct unit *units, char *buf,
			      size_t cap)
{
	if (n == 0)
		return print(buf, cap, "0");
	while (n % units->factor != 0)
		units++;
	return print(buf, cap, "%llu%s",
		     (unsigned long long)(n / units->factor), units->name);
}

bool config_duration_parse(const char *text, size_t len, int64_t *ms)
{
	uint64_t n;

	if (!parse_quantity((struct span){ text, len }, time_units, &n) ||
	    n > INT64_MAX)
		return false;
	*ms = (int64_t)n;
	return true;
}

size_t config_duration_format(int64_t ms, char *buf, size_t cap)
{
	assert(ms >= 0);
	return format_quantity((uint64_t)ms, time_units, buf, cap);
}

/* --- values into fields --- */

static void *field_of(const struct put *p)
{
	return (char *)p->base + p->key->offset;
}

static bool store(struct put *p, uint64_t n)
{
	uint8_t narrow = (uint8_t)n;
	uint32_t wide = (uint32_t)n;

	if (n < p->key->min || n > p->key->max)
		return false;
	switch (p->key->width) {
	case sizeof(narrow):
		assert(n <= UINT8_MAX);
		memcpy(field_of(p), &narrow, sizeof(narrow));
		return true;
	case sizeof(wide):
		assert(n <= UINT32_MAX);
		memcpy(field_of(p), &wide, sizeof(wide));
		return true;
	default:
		assert(p->key->width == sizeof(n));
		memcpy(field_of(p), &n, sizeof(n));
		return true;
	}
}

static bool store_text(struct put *p, struct span s)
{
	char *field = field_of(p);

	assert(s.len < p->key->width);
	memcpy(field, s.at, s.len);
	field[s.len] = '\0';
	return true;
}

static bool put_count(struct put *p)
{
	uint64_t n;

	return parse_number(p->text, &n) && store(p, n);
}

static bool put_duration(struct put *p)
{
	uint64_t n;

	return parse_quantity(p->text, time_units, &n) && store(p, n);
}

static bool put_size(struct put *p)
{
	uint64_t n;

	return parse_quantity(p->text, size_units, &n) && store(p, n);
}

static bool put_percent(struct put *p)
{
	struct span s = p->text;
	uint64_t n;

	if (s.len > 0 && s.at[s.len - 1] == '%')
		s.len--;
	else if (!span_is(s, "0"))
		return false;
	return parse_number(s, &n) && store(p, n);
}

/* "off", "30/m", "30/m burst 10" */
static bool put_rate(struct put *p)
{
	enum { RATE_MAX = 1000000 };
	static const char letters[] = { 's', 'm', 'h' };
	static const uint32_t periods[] = { SECOND, MINUTE, HOUR };
	struct admission_rate_limit limit = { 0 };
	struct span rest = p->text, unit;
	struct span word = next_word(&rest);
	struct span digits = cut(word, '/', &unit);
	uint64_t count = 0, burst = 0;

	if (span_is(p->text, "off")) {
		memcpy(field_of(p), &limit, sizeof(limit));
		return true;
	}
	if (!parse_number(digits, &count) || count < 1 || count > RATE_MAX ||
	    unit.len != 1)
		return false;
	for (size_t i = 0; i < sizeof(letters); i++) {
		if (unit.at[0] == letters[i])
			limit.period_ms = periods[i];
	}
	word = next_word(&rest);
	if (word.len > 0 &&
	    (!span_is(word, "burst") ||
	     !parse_number(next_word(&rest), &burst) || burst < 1 ||
	     burst > RATE_MAX || next_word(&rest).len > 0))
		return false;
	limit.count = (uint32_t)count;
	limit.burst = (uint32_t)burst;
	assert(p->key->width == sizeof(limit));
	if (limit.period_ms > 0)
		memcpy(field_of(p), &limit, sizeof(limit));
	return limit.period_ms > 0;
}

/* Octal, as of chmod(1). */
static bool put_mode(struct put *p)
{
	uint64_t mode = 0;

	if (p->text.len < 3 || p->text.len > 4)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		char c = p->text.at[i];

		if (c < '0' || c > '7')
			return false;
		mode = mode * 8 + (uint64_t)(c - '0');
	}
	return store(p, mode);
}

static bool put_word(struct put *p)
{
	for (unsigned i = 0; p->key->words[i] != NULL; i++) {
		unsigned value = i;

		if (!span_is(p->text, p->key->words[i]))
			continue;
		if (p->key->width == sizeof(uint8_t))
			memcpy(field_of(p), &(bool){ value != 0 },
			       sizeof(bool));
		else
			memcpy(field_of(p), &value, sizeof(value));
		return true;
	}
	return false;
}

/* A domain or address literal (RFC 5321, section 2.3.5, 4.1.3). */
static bool put_host(struct put *p)
{
	enum { LABEL_MAX = 63 };
	struct span s = p->text;
	size_t label = 0;

	if (s.len >= CONFIG_HOST_MAX)
		return false;
	if (s.len > 2 && s.at[0] == '[' && s.at[s.len - 1] == ']') {
		struct cidr_addr addr;
		struct span inner = { s.at + 1, s.len - 2 };

		if (inner.len > 5 && memcmp(inner.at, "IPv6:", 5) == 0) {
			inner.at += 5;
			inner.len -= 5;
		}
		return cidr_addr_parse(inner.at, inner.len, &addr) &&
		       store_text(p, s);
	}
	for (size_t i = 0; i < s.len; i++) {
		bool dot = s.at[i] == '.';

		if (!dot && !is_alnum(s.at[i]) && s.at[i] != '-' &&
		    s.at[i] != '_')
			return false;
		if ((dot && label == 0) || label == LABEL_MAX)
			return false;
		label = dot ? 0 : label + 1;
	}
	if (s.len > 0 && label == 0)
		return false;
	return store_text(p, s);
}

static bool put_path(struct put *p)
{
	if (p->text.len < 2 || p->text.at[0] != '/' ||
	    p->text.len > p->key->max)
		return false;
	return store_text(p, p->text);
}

static bool put_user(struct put *p)
{
	if (p->text.len > p->key->max)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		char c = p->text.at[i];

		if (!is_alnum(c) && (strchr("._-", c) == NULL || i == 0))
			return false;
	}
	return store_text(p, p->text);
}

static bool put_text(struct put *p)
{
	if (p->text.len > p->key->max)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		if (p->text.at[i] < ' ' || p->text.at[i] > '~' ||
		    p->text.at[i] == '"')
			return false;
	}
	return store_text(p, p->text);
}

static bool put_log(struct put *p)
{
	/* In the order of enum logger_target. */
	static const char *const names[] = {
		[LOGGER_STDERR] = "stderr",
		[LOGGER_JOURNAL] = "journal",
		[LOGGER_SYSLOG] = "syslog",
	};
	struct config_weir *weir = p->base;

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (span_is(p->text, names[i])) {
			weir->log = (enum logger_target)i;
			return true;
		}
	}
	if (p->text.len < 2 || p->text.at[0] != '/')
		return false;
	weir->log = LOGGER_FILE;
	assert(p->text.len < sizeof(weir->log_path));
	memcpy(weir->log_path, p->text.at, p->text.len);
	weir->log_path[p->text.len] = '\0';
	return true;
}

/* "10.0.0.1:25", "[2001:db8::1]:25" */
static bool parse_endpoint(struct span s, struct config_address *address)
{
	const char *colon = s.len > 0 ? memrchr(s.at, ':', s.len) : NULL;
	uint64_t port;

	if (colon == NULL)
		return false;
	struct span host = { s.at, (size_t)(colon - s.at) };
	struct span digits = { colon + 1, s.len - host.len - 1 };
	bool brackets = host.len > 2 && host.at[0] == '[' &&
			host.at[host.len - 1] == ']';
	struct config_address got = { 0 };

	if (brackets) {
		host.at++;
		host.len -= 2;
	}
	if (!parse_number(digits, &port) || port < 1 || port > UINT16_MAX ||
	    !cidr_addr_parse(host.at, host.len, &got.addr) ||
	    brackets != (memchr(host.at, ':', host.len) != NULL))
		return false;
	got.port = (uint16_t)port;
	*address = got;
	return true;
}

static bool same_endpoint(const struct config_address *a,
			  const struct config_address *b)
{
	return a->port == b->port && cidr_addr_equal(&a->addr, &b->addr);
}

static bool listener_has(const struct config_listener *listener,
			 const struct config_address *address)
{
	for (unsigned i = 0; i < listener->listen_count; i++) {
		if (same_endpoint(&listener->listen[i], address))
			return true;
	}
	return false;
}

static bool put_listen(struct put *p)
{
	struct config_listener *own = p->base;
	struct config_address address;

	if (!parse_endpoint(p->text, &address))
		return false;
	if (listener_has(own, &address)) {
		print(p->why, sizeof(p->why), "this address is given twice");
		return false;
	}
	for (unsigned i = 0; i < p->reading->config->listener_count; i++) {
		const struct config_listener *other =
			&p->reading->config->listeners[i];

		if (listener_has(other, &address)) {
			print(p->why, sizeof(p->why),
			      "[listener %s] has this address already",
			      other->name);
			return false;
		}
	}
	if (own->listen_count == CONFIG_LISTEN_MAX) {
		print(p->why, sizeof(p->why),
		      "a listener has at most %d addresses", CONFIG_LISTEN_MAX);
		return false;
	}
	own->listen[own->listen_count++] = address;
	return true;
}

static bool put_endpoint(struct put *p)
{
	return parse_endpoint(p->text, field_of(p));
}

static bool put_address(struct put *p)
{
	struct config_backend *backend = p->base;
	bool set = p->text.len > 0;

	if (set && !cidr_addr_parse(p->text.at, p->text.len, &backend->source))
		return false;
	backend->source_set = set;
	return true;
}

static bool nets_add(struct nets *nets, const struct cidr *net)
{
	if (nets->count == nets->room) {
		size_t room = nets->room > 0 ? 2 * nets->room : 64;
		struct cidr *items = NULL;

		if (nets->count < NETS_MAX)
			items = reallocarray(nets->items, room, sizeof(*items));
		if (items == NULL)
			return false;
		nets->items = items;
		nets->room = room;
	}
	nets->items[nets->count++] = *net;
	return true;
}

static bool put_net(struct put *p, struct span s)
{
	bool denies = p->key->offset == offsetof(struct config_admission, deny);
	struct nets *nets = denies ? &p->reading->deny : &p->reading->allow;
	char why[CIDR_WHY_MAX];
	struct cidr net;

	if (!cidr_parse(s.at, s.len, &net, why, sizeof(why))) {
		print(p->why, sizeof(p->why), "%s", why);
		return false;
	}
	if (!nets_add(nets, &net)) {
		print(p->why, sizeof(p->why),
		      "no room: a list has at most %d networks", NETS_MAX);
		return false;
	}
	return true;
}

/*
 * A whole regular file (not a pipe or device, which might never end).  0 and
 * *text, owned by the caller, or -errno.
 */
static int slurp(const char *path, char **text, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat info;
	int result = -EINVAL;
	size_t got = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &info) != 0)
		result = -errno;
	else if (S_ISDIR(info.st_mode))
		result = -EISDIR;
	else if (S_ISREG(info.st_mode) && info.st_size > FILE_SIZE_MAX)
		result = -EFBIG;
	else if (S_ISREG(info.st_mode))
		result = 0;

	size_t room = result == 0 ? (size_t)info.st_size + 1 : 1;
	char *buf = malloc(room);

	if (buf == NULL)
		result = -ENOMEM;
	while (result == 0 && got < room) {
		ssize_t n = read(fd, buf + got, room - got);

		if (n == 0)
			break;
		if (n > 0)
			got += (size_t)n;
		else if (errno != EINTR)
			result = -errno;
	}
	/* It grew meanwhile: whoever writes it has not finished. */
	if (result == 0 && got == room)
		result = -EBUSY;
	(void)close(fd); /* was only read */
	if (result != 0) {
		free(buf);
		return result;
	}
	*text = buf;
	*len = got;
	return 0;
}

/* One network a line; # begins a comment. */
static bool put_nets_file(struct put *p)
{
	char path[CONFIG_TEXT_MAX], quoted[QUOTED_MAX], error[CONFIG_ERROR_MAX];
	struct reading *r = p->reading;
	char *text;
	size_t len;

	if (p->text.len < 2 || p->text.at[0] != '/')
		return false;
	assert(p->text.len < sizeof(path));
	memcpy(path, p->text.at, p->text.len);
	path[p->text.len] = '\0';

	int result = slurp(path, &text, &len);

	if (result < 0) {
		print(p->why, sizeof(p->why), "cannot be read: %s",
		      strerrordesc_np(-result));
		return false;
	}
	struct span left = { text, len };

	for (unsigned line = 1; left.len > 0; line++) {
		struct span comment;
		struct span whole = cut(left, '\n', &left);
		struct span net = trim(cut(whole, '#', &comment));

		if (net.len == 0 || put_net(p, net))
			continue;
		print(error, sizeof(error), "%s: %s", quote(quoted, net),
		      p->why);
		report_add(r, r->line, path, line, error);
		p->why[0] = '\0';
	}
	free(text);
	return true;
}

static bool put_busy_rule(struct put *p)
{
	struct config_backend *backend = p->base;
	char text[CONFIG_TEXT_MAX], error[BUSY_RULE_ERROR_MAX];

	assert(p->text.len < sizeof(text));
	memcpy(text, p->text.at, p->text.len);
	text[p->text.len] = '\0';
	if (backend->busy_rule_count == CONFIG_BUSY_RULES_MAX) {
		print(p->why, sizeof(p->why), "a backend has at most %d rules",
		      CONFIG_BUSY_RULES_MAX);
		return false;
	}
	if (!busy_rule_parse(text,
			     &backend->busy_rules[backend->busy_rule_count],
			     error)) {
		/* It repeats a word as it stood in the file. */
		for (char *c = error; *c != '\0'; c++)
			*c = *c >= ' ' && *c <= '~' ? *c : '?';
		print(p->why, sizeof(p->why), "%s", error);
		return false;
	}
	backend->busy_rule_count++;
	return true;
}

/* False: the field is as it was. */
static bool put(struct put *p)
{
	switch (p->key->kind) {
	case KIND_COUNT:
		return put_count(p);
	case KIND_DURATION:
		return put_duration(p);
	case KIND_SIZE:
		return put_size(p);
	case KIND_PERCENT:
		return put_percent(p);
	case KIND_RATE:
		return put_rate(p);
	case KIND_MODE:
		return put_mode(p);
	case KIND_WORD:
		return put_word(p);
	case KIND_HOST:
		return put_host(p);
	case KIND_PATH:
		return put_path(p);
	case KIND_USER:
		return put_user(p);
	case KIND_TEXT:
		return put_text(p);
	case KIND_LOG:
		return put_log(p);
	case KIND_LISTEN:
		return put_listen(p);
	case KIND_ENDPOINT:
		return put_endpoint(p);
	case KIND_ADDRESS:
		return put_address(p);
	case KIND_NETS:
		return put_net(p, p->text);
	case KIND_NETS_FILE:
		return put_nets_file(p);
	case KIND_BUSY_RULE:
		return put_busy_rule(p);
	}
	return false;
}

/* --- words about keys --- */

/* "a, b or c" */
static size_t describe_words(const char *const *words, char *buf, size_t cap)
{
	size_t len = 0;

	for (size_t i = 0; words[i] != NULL; i++) {
		const char *before = i == 0 ? "" : ", ";

		if (i > 0 && words[i + 1] == NULL)
			before = " or ";
		len += print(buf + len, cap - len, "%s%s", before, words[i]);
	}
	return len;
}

static size_t describe_range(const struct key *key, const struct unit *units,
			     const char *what, char *buf, size_t cap)
{
	char low[CONFIG_DURATION_TEXT_MAX], high[CONFIG_DURATION_TEXT_MAX];

	(void)format_quantity(key->min, units, low, sizeof(low));
	(void)format_quantity(key->max, units, high, sizeof(high));
	return print(buf, cap, "%s from %s to %s", what, low, high);
}

static size_t describe(const struct key *key, char *buf, size_t cap)
{
	switch (key->kind) {
	case KIND_COUNT:
		return print(buf, cap, "a whole number from %llu to %llu",
			     (unsigned long long)key->min,
			     (unsigned long long)key->max);
	case KIND_DURATION:
		return describe_range(key, time_units,
				      "a duration in ms, s, m or h,", buf, cap);
	case KIND_SIZE:
		return describe_range(key, size_units,
				      "a size in octets, K, M or G,", buf, cap);
	case KIND_PERCENT:
		return print(buf, cap, "a percentage from %llu%% to %llu%%",
			     (unsigned long long)key->min,
			     (unsigned long long)key->max);
	case KIND_RATE:
		return print(buf, cap,
			     "off, or a rate per s, m or h like 30/m or "
			     "30/m burst 10");
	case KIND_MODE:
		return print(buf, cap, "octal permissions like 0660");
	case KIND_WORD:
		return describe_words(key->words, buf, cap);
	case KIND_HOST:
		return print(buf, cap, "a host name or an [address]");
	case KIND_PATH:
		return print(buf, cap,
			     "an absolute path of at most %llu octets",
			     (unsigned long long)key->max);
	case KIND_USER:
		return print(buf, cap, "a name of at most %llu octets",
			     (unsigned long long)key->max);
	case KIND_TEXT:
		return print(buf, cap,
			     "at most %llu printable ASCII characters, no "
			     "quotes",
			     (unsigned long long)key->max);
	case KIND_LOG:
		return print(buf, cap,
			     "stderr, journal, syslog or an absolute path");
	case KIND_LISTEN:
		return print(buf, cap,
			     "numeric ADDRESS:PORT or [IPV6]:PORT, at most %d",
			     CONFIG_LISTEN_MAX);
	case KIND_ENDPOINT:
		return print(buf, cap,
			     "numeric ADDRESS:PORT or [IPV6]:PORT (host names "
			     "are for a later release)");
	case KIND_ADDRESS:
		return print(buf, cap, "an IPv4 or IPv6 address");
	case KIND_NETS:
		return print(buf, cap,
			     "networks like 10.0.0.0/8 and 2001:db8::/32, or "
			     "addresses");
	case KIND_NETS_FILE:
		return print(buf, cap,
			     "absolute paths of files with one network a "
			     "line");
	case KIND_BUSY_RULE:
		return print(buf, cap,
			     "STAGE [CODE] [X.Y.Z] [TEXT] => CLASS, like MAIL "
			     "452 4.3.1 => busy");
	}
	return 0;
}

size_t config_key_count(void)
{
	return KEY_COUNT;
}

struct config_key_info config_key_at(size_t at)
{
	assert(at < KEY_COUNT);
	const struct key *key = &keys[at];

	return (struct config_key_info){
		.section = sections[key->section].name,
		.name = key->name,
		.standard = key->standard,
		.help = key->help,
		.required = key->required,
		.repeatable = key->repeatable,
	};
}

size_t config_key_allowed(size_t at, char *buf, size_t cap)
{
	assert(at < KEY_COUNT);
	assert(cap > 0);
	return describe(&keys[at], buf, cap);
}

/* key = "value": what is wrong, or what is allowed */
static void describe_bad_value(const struct put *p, char *buf, size_t cap)
{
	const struct key *key = p->key;
	char quoted[QUOTED_MAX];
	size_t len = print(buf, cap, "%s = %s: ", key->name,
			   quote(quoted, p->text));

	if (p->why[0] != '\0') {
		print(buf + len, cap - len, "%s", p->why);
		return;
	}
	len += print(buf + len, cap - len, "need ");
	len += describe(key, buf + len, cap - len);
	if (key->required)
		return;
	print(buf + len, cap - len, " (default %s)",
	      key->standard[0] != '\0' ? key->standard : "empty");
}

static const struct key *find_key(enum section section, struct span name)
{
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (keys[i].section == section && span_is(name, keys[i].name))
			return &keys[i];
	}
	return NULL;
}

static void describe_unknown_key(enum section section, struct span name,
				 char *buf, size_t cap)
{
	char quoted[QUOTED_MAX];
	const struct key *near = NULL;
	size_t best = SIZE_MAX;
	size_t len = print(buf, cap,
			   "unknown key %s in [%s]: ", quote(quoted, name),
			   sections[section].name);

	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (span_is(name, keys[i].name)) {
			print(buf + len, cap - len, "it belongs in [%s]",
			      sections[keys[i].section].name);
			return;
		}
		if (keys[i].section == section &&
		    nearer(name, keys[i].name, &best))
			near = &keys[i];
	}
	if (near != NULL)
		print(buf + len, cap - len, "did you mean \"%s\"?", near->name);
	else
		print(buf + len, cap - len, "weir.ini(5) has them all");
}

/* --- defaults --- */

static bool is_list(const struct key *key)
{
	return key->kind == KIND_LISTEN || key->kind == KIND_NETS ||
	       key->kind == KIND_NETS_FILE;
}

/* The defaults of keys that hold one value: what is given replaces them. */
static void set_defaults(enum section section, void *base)
{
	for (size_t i = 0; i < KEY_COUNT; i++) {
		struct put p = {
			.key = &keys[i],
			.base = base,
			.text = span_of(keys[i].standard),
		};

		if (p.key->section != section || p.text.len == 0 ||
		    is_list(p.key))
			continue;
		bool fits = put(&p);

		assert(fits);
	}
}

/* --- sections --- */

static struct seen *seen_of(struct reading *r, const struct key *key)
{
	return &r->seen[key - keys];
}

static void put_or_complain(struct reading *r, const struct key *key,
			    struct span text)
{
	char error[CONFIG_ERROR_MAX];
	struct put p = {
		.key = key,
		.base = r->base,
		.text = text,
		.reading = r,
	};

	if (put(&p))
		return;
	seen_of(r, key)->bad = true;
	describe_bad_value(&p, error, sizeof(error));
	complain(r, "%s", error);
}

/* Each member on its own, so that each mistake is named. */
static void put_list(struct reading *r, const struct key *key, struct span text)
{
	if (text.len == 0 && key->standard[0] == '\0')
		return;
	do {
		struct span item = cut(text, ',', &text);

		put_or_complain(r, key, trim(item));
	} while (text.at != NULL);
}

/* "eject_max", or "eject_max (default 5m)" if the file does not give it */
static void describe_side(const struct reading *r, const struct key *key,
			  char *buf, size_t cap)
{
	if (r->seen[key - keys].line > 0)
		print(buf, cap, "%s", key->name);
	else
		print(buf, cap, "%s (default %s)", key->name, key->standard);
}

/* Complain unless two keys of this section are in order. */
static void check_order(struct reading *r, const char *low, const char *rule,
			const char *high, bool ordered)
{
	const struct key *a = find_key(r->section, span_of(low));
	const struct key *b = find_key(r->section, span_of(high));
	char low_text[2 * WORD_MAX], high_text[2 * WORD_MAX];

	assert(a != NULL);
	assert(b != NULL);
	/* Where both are known: at the later line. */
	unsigned line = seen_of(r, a)->line > seen_of(r, b)->line
				? seen_of(r, a)->line
				: seen_of(r, b)->line;

	if (ordered || seen_of(r, a)->bad || seen_of(r, b)->bad)
		return;
	describe_side(r, a, low_text, sizeof(low_text));
	describe_side(r, b, high_text, sizeof(high_text));
	complain_at(r, line, "%s must be %s %s", low_text, rule, high_text);
}

static void check_admission(struct reading *r)
{
	const struct config_admission *admission = r->base;
	const struct admission_config *limits = &admission->limits;

	check_order(r, "ipv4_aggregate_prefix", "at most", "ipv4_source_prefix",
		    limits->aggregate_v4_bits <= limits->source_v4_bits);
	check_order(r, "ipv6_aggregate_prefix", "at most", "ipv6_source_prefix",
		    limits->aggregate_v6_bits <= limits->source_v6_bits);
	check_order(r, "stress_low", "less than", "stress_high",
		    limits->stress_high_percent == 0 ||
			    limits->stress_low_percent <
				    limits->stress_high_percent);
}

static void check_health(struct reading *r)
{
	const struct config_health *health = r->base;

	check_order(r, "eject", "at most", "eject_max",
		    health->eject_ms <= health->eject_max_ms);
}

static void check_required(struct reading *r)
{
	char allowed[CONFIG_ERROR_MAX / 2];

	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (keys[i].section != r->section || !keys[i].required ||
		    r->seen[i].line > 0)
			continue;
		(void)describe(&keys[i], allowed, sizeof(allowed));
		complain_at(r, r->section_line,
			    "[%s] has no key \"%s\": need %s",
			    sections[r->section].name, keys[i].name, allowed);
	}
}

/* What can be said only when the section is over. */
static void close_section(struct reading *r)
{
	if (r->section == SECTION_COUNT)
		return;
	for (size_t i = 0; i < KEY_COUNT; i++) {
		unsigned line = r->line;

		if (keys[i].section != r->section || !is_list(&keys[i]) ||
		    r->seen[i].line > 0)
			continue;
		r->line = r->section_line;
		put_list(r, &keys[i], span_of(keys[i].standard));
		r->line = line;
	}
	check_required(r);
	if (r->section == SECTION_ADMISSION)
		check_admission(r);
	if (r->section == SECTION_HEALTH)
		check_health(r);
	r->section = SECTION_COUNT;
}

static bool name_is_sane(struct span name)
{
	if (name.len == 0 || name.len >= CONFIG_NAME_MAX)
		return false;
	for (size_t i = 0; i < name.len; i++) {
		if (!is_alnum(name.at[i]) && name.at[i] != '.' &&
		    name.at[i] != '_' && name.at[i] != '-')
			return false;
	}
	return true;
}

static void copy_name(char field[CONFIG_NAME_MAX], struct span name)
{
	assert(name.len < CONFIG_NAME_MAX);
	memcpy(field, name.at, name.len);
	field[name.len] = '\0';
}

/* The place of a new listener or backend, or NULL after a complaint. */
static void *new_listener(struct reading *r, struct span name)
{
	struct config *c = r->config;

	for (unsigned i = 0; i < c->listener_count; i++) {
		if (span_is(name, c->listeners[i].name)) {
			complain(r, "there is a [listener %s] already",
				 c->listeners[i].name);
			return NULL;
		}
	}
	if (c->listener_count == CONFIG_LISTENERS_MAX) {
		complain(r, "too many listeners: at most %d",
			 CONFIG_LISTENERS_MAX);
		return NULL;
	}
	struct config_listener *listener = &c->listeners[c->listener_count++];

	copy_name(listener->name, name);
	return listener;
}

static void *new_backend(struct reading *r, struct span name)
{
	struct config *c = r->config;

	for (unsigned i = 0; i < c->backend_count; i++) {
		if (span_is(name, c->backends[i].name)) {
			complain(r, "there is a [backend %s] already",
				 c->backends[i].name);
			return NULL;
		}
	}
	if (c->backend_count == CONFIG_BACKENDS_MAX) {
		complain(r, "too many backends: at most %d",
			 CONFIG_BACKENDS_MAX);
		return NULL;
	}
	struct config_backend *backend = &c->backends[c->backend_count++];

	copy_name(backend->name, name);
	return backend;
}

/* Where the keys of a section with a wrong header go: they are checked too. */
static void *stray_base(struct reading *r, enum section section)
{
	r->stray_listener = (struct config_listener){ 0 };
	r->stray_backend = (struct config_backend){ 0 };
	if (section == SECTION_LISTENER)
		return &r->stray_listener;
	if (section == SECTION_BACKEND)
		return &r->stray_backend;
	return (char *)r->config + sections[section].offset;
}

static void *named_base(struct reading *r, enum section section,
			struct span name)
{
	char quoted[QUOTED_MAX];

	if (!name_is_sane(name)) {
		complain(r,
			 "[%s %s]: need [%s NAME] with 1 to %d of A-Z a-z 0-9 "
			 ". _ -",
			 sections[section].name, quote(quoted, name),
			 sections[section].name, CONFIG_NAME_MAX - 1);
		return NULL;
	}
	return section == SECTION_LISTENER ? new_listener(r, name)
					   : new_backend(r, name);
}

/* [word name] begins here; the word is that of this section. */
static void open_section(struct reading *r, enum section section,
			 struct span name, bool sane)
{
	void *base = NULL;

	if (sane && sections[section].named)
		base = named_base(r, section, name);
	else if (sane && name.len > 0)
		complain(r, "[%s] takes no name", sections[section].name);
	else if (sane && r->began[section] > 0)
		complain(r, "[%s] is given twice, first in line %u",
			 sections[section].name, r->began[section]);
	if (base == NULL)
		base = stray_base(r, section);
	if (r->began[section] == 0)
		r->began[section] = r->line;
	r->section = section;
	r->section_line = r->line;
	r->base = base;
	memset(r->seen, 0, sizeof(r->seen));
	set_defaults(section, base);
}

/* "listener smtp", from between the brackets. */
static void read_section(struct reading *r, struct span inner)
{
	char quoted[QUOTED_MAX];
	size_t best = SIZE_MAX;
	unsigned near = SECTION_COUNT;
	struct span name = inner;
	struct span word = next_word(&name);

	name = trim(name);
	close_section(r);
	r->section_line = r->line;
	for (unsigned i = 0; i < SECTION_COUNT; i++) {
		if (span_is(word, sections[i].name)) {
			open_section(r, (enum section)i, name, true);
			return;
		}
		if (nearer(word, sections[i].name, &best))
			near = i;
	}
	(void)quote(quoted, word);
	if (near == SECTION_COUNT) {
		complain(r, "unknown section %s: weir.ini(5) has them all",
			 quoted);
		return;
	}
	complain(r, "unknown section %s: did you mean [%s%s]?", quoted,
		 sections[near].name, sections[near].named ? " NAME" : "");
	/* Its keys are judged as if it were: all mistakes in one go. */
	open_section(r, (enum section)near, name, false);
}

/* --- lines --- */

static void on_pair(struct reading *r, struct span name, struct span value)
{
	char text[CONFIG_ERROR_MAX], quoted[QUOTED_MAX];

	if (name.len == 0) {
		complain(r, "neither [section] nor key = value");
		return;
	}
	if (r->section == SECTION_COUNT) {
		/* An unknown section was complained about. */
		if (r->section_line == 0)
			complain(r, "%s stands before the first [section]",
				 quote(quoted, name));
		return;
	}
	const struct key *key = find_key(r->section, name);

	if (key == NULL) {
		describe_unknown_key(r->section, name, text, sizeof(text));
		complain(r, "%s", text);
		return;
	}
	struct seen *seen = seen_of(r, key);

	if (seen->line > 0 && !key->repeatable) {
		complain(r, "\"%s\" is given twice, first in line %u",
			 key->name, seen->line);
		return;
	}
	seen->line = r->line;
	if (is_list(key))
		put_list(r, key, value);
	else if (value.len > 0 || key->standard[0] != '\0' || key->required)
		put_or_complain(r, key, value);
}

/* inih's handler.  It says nothing of the line: read_line has counted. */
static int on_inih(void *user, const char *section, const char *name,
		   const char *value)
{
	struct reading *r = user;

	(void)section; /* at most 49 octets of it: read_section has it all */
	r->owed = false;
	on_pair(r, trim(span_of(name)), trim(span_of(value)));
	return 1;
}

/* The line was a pair to us, and none to inih. */
static void settle(struct reading *r)
{
	if (r->owed)
		complain(r, "neither [section] nor key = value");
	r->owed = false;
}

/* [section] and what may follow it: nothing, or a comment. */
static void read_header(struct reading *r, struct span line)
{
	struct span behind;
	struct span inner = cut(line, ']', &behind);

	if (behind.at == NULL)
		complain(r, "a section needs a ] at its end");
	behind = trim(behind);
	if (behind.len > 0 && behind.at[0] != ';' && behind.at[0] != '#')
		complain(r, "more than a comment behind the ]");
	inner.at++;
	inner.len--;
	read_section(r, inner);
}

/* Does the line go to inih?  All others are dealt with here. */
static bool is_pair(struct reading *r, struct span line, size_t len_max)
{
	if (line.len == 0 || line.at[0] == ';' || line.at[0] == '#')
		return false;
	for (size_t i = 0; i < line.len; i++) {
		unsigned char c = (unsigned char)line.at[i];

		if ((c < ' ' && c != '\t') || c == 0x7f) {
			complain(r, "has a control character (octet 0x%02x)",
				 (unsigned)c);
			return false;
		}
	}
	if (line.at[0] == '[') {
		read_header(r, line);
		return false;
	}
	/* inih takes "a:b" for a pair: a second line of a list, for one. */
	struct span value, colon;

	if (cut(cut(line, '=', &value), ':', &colon).len < line.len &&
	    (value.at == NULL || colon.at != NULL)) {
		complain(r, "neither [section] nor key = value");
		return false;
	}
	if (line.len > len_max) {
		complain(r,
			 "longer than %zu octets: give a list in several lines",
			 len_max);
		return false;
	}
	return true;
}

/*
 * inih's reader.  inih's handler is not told the line (Debian builds it
 * without INI_HANDLER_LINENO); inih reports the first bad line only; splits
 * lines at 198 octets; cuts section names at 49; takes an indented line as
 * more of the value before; ignores what stands behind a section's bracket.
 * So the lines are counted and the sections read here; inih is given pairs,
 * not indented and short enough, and empty lines in place of all else.
 */
static char *read_line(char *buf, int size, void *stream)
{
	struct reading *r = stream;
	size_t room = size < LINE_ROOM_MAX ? (size_t)size : LINE_ROOM_MAX;

	assert(size > 3);
	settle(r);
	if (r->left.len == 0)
		return NULL;
	r->line++;
	struct span line = trim(cut(r->left, '\n', &r->left));

	if (!is_pair(r, line, room - 3)) {
		buf[0] = '\n';
		buf[1] = '\0';
		return buf;
	}
	r->owed = true;
	memcpy(buf, line.at, line.len);
	buf[line.len] = '\n';
	buf[line.len + 1] = '\0';
	return buf;
}

/* --- the whole file --- */

/* False without memory. */
static bool seal(const struct nets *nets, struct cidr_set *set)
{
	/* An IPv6 network may take two ranges. */
	size_t room = 2 * nets->count + 1;
	struct cidr_range *ranges = calloc(room, sizeof(*ranges));

	if (ranges == NULL)
		return false;
	cidr_set_init(set, ranges, room);
	for (size_t i = 0; i < nets->count; i++) {
		bool added = cidr_set_add(set, &nets->items[i]);

		assert(added);
	}
	cidr_set_seal(set);
	return true;
}

/* Sections that the file does not have are all defaults. */
static void open_absent_sections(struct reading *r)
{
	for (unsigned i = 0; i < SECTION_COUNT; i++) {
		void *base = (char *)r->config + sections[i].offset;

		if (r->began[i] == 0 && !sections[i].named)
			set_defaults((enum section)i, base);
	}
	if (r->began[SECTION_LISTENER] == 0)
		complain_at(r, 0, "no [listener NAME]: need at least one");
	if (r->began[SECTION_BACKEND] == 0)
		complain_at(r, 0, "no [backend NAME]: need at least one");
}

static void fill_names(struct reading *r)
{
	struct config_weir *weir = &r->config->weir;
	struct config_health *health = &r->config->health;

	if (weir->hostname[0] == '\0' &&
	    gethostname(weir->hostname, sizeof(weir->hostname) - 1) != 0)
		weir->hostname[0] = '\0';
	if (weir->hostname[0] == '\0')
		complain_at(r, 0,
			    "the system has no host name: set hostname in "
			    "[weir]");
	if (health->helo[0] == '\0')
		memcpy(health->helo, weir->hostname, sizeof(health->helo));
}

static void read_all(struct reading *r)
{
	static const char bom[] = "\xef\xbb\xbf";
	size_t bom_len = sizeof(bom) - 1;

	if (r->left.len >= bom_len && memcmp(r->left.at, bom, bom_len) == 0) {
		r->left.at += bom_len;
		r->left.len -= bom_len;
	}
	int result = ini_parse_stream(read_line, r, on_inih, r);

	/* A line number: settle() has complained about that line. */
	if (result < 0)
		complain_at(r, 0, "out of memory");
	assert(result <= 0 || r->report->count > 0);
	close_section(r);
	open_absent_sections(r);
	fill_names(r);

	struct config_admission *admission = &r->config->admission;

	/* Never under stress: then the low mark means nothing. */
	if (admission->limits.stress_high_percent == 0)
		admission->limits.stress_low_percent = 0;
	if (!seal(&r->allow, &admission->allow) ||
	    !seal(&r->deny, &admission->deny))
		complain_at(r, 0, "out of memory");
	admission->limits.allow = &admission->allow;
	admission->limits.deny = &admission->deny;
}

struct config *config_parse_text(const char *text, size_t len, const char *name,
				 struct config_report *report)
{
	struct reading *r = calloc(1, sizeof(*r));
	struct config *config = calloc(1, sizeof(*config));

	assert(text != NULL || len == 0);
	report->count = 0;
	report->omitted = 0;
	if (r == NULL || config == NULL) {
		report->count = 1;
		report->errors[0].line = 0;
		print(report->errors[0].text, sizeof(report->errors[0].text),
		      "%s: out of memory", name);
		free(config);
		free(r);
		return NULL;
	}
	r->config = config;
	r->report = report;
	r->name = name;
	r->left = (struct span){ text, len };
	r->section = SECTION_COUNT;
	read_all(r);
	report_sort(report);
	free(r->allow.items);
	free(r->deny.items);
	free(r);
	if (report->count > 0)
		config_free(&config);
	return config;
}

struct config *config_load(const char *path, struct config_report *report)
{
	char *text;
	size_t len;
	int result = slurp(path, &text, &len);

	if (result < 0) {
		report->count = 1;
		report->omitted = 0;
		report->errors[0].line = 0;
		print(report->errors[0].text, sizeof(report->errors[0].text),
		      "%s: cannot be read: %s", path, strerrordesc_np(-result));
		return NULL;
	}
	struct config *config = config_parse_text(text, len, path, report);

	free(text);
	return config;
}

void config_free(struct config **config)
{
	if (*config == NULL)
		return;
	free((*config)->admission.allow.ranges);
	free((*config)->admission.deny.ranges);
	free(*config);
	*config = NULL;
}

struct config_report *config_report_new(void)
{
	return calloc(1, sizeof(struct config_report));
}

void config_report_free(struct config_report **report)
{
	free(*report);
	*report = NULL;
}

/* --- one backend at run time --- */

bool config_backend_init(struct config_backend *backend, const char *name,
			 size_t len, char *error, size_t error_cap)
{
	struct span span = { name, len };
	char quoted[QUOTED_MAX];

	if (!name_is_sane(span)) {
		print(error, error_cap,
		      "name %s: need 1 to %d of A-Z a-z 0-9 . _ -",
		      quote(quoted, span), CONFIG_NAME_MAX - 1);
		return false;
	}
	*backend = (struct config_backend){ 0 };
	copy_name(backend->name, span);
	set_defaults(SECTION_BACKEND, backend);
	return true;
}

bool config_backend_set(struct config_backend *backend, const char *pair,
			size_t len, char *error, size_t error_cap)
{
	struct span value;
	struct span name = trim(cut((struct span){ pair, len }, '=', &value));
	const struct key *key = find_key(SECTION_BACKEND, name);
	char quoted[QUOTED_MAX];

	if (value.at == NULL) {
		print(error, error_cap, "%s: need KEY=VALUE",
		      quote(quoted, name));
		return false;
	}
	if (key == NULL) {
		describe_unknown_key(SECTION_BACKEND, name, error, error_cap);
		return false;
	}
	struct put p = {
		.key = key,
		.base = backend,
		.text = trim(value),
	};

	/* As if it had stood in a file: one printable line of that length. */
	bool fits = p.text.len < CONFIG_TEXT_MAX;

	for (size_t i = 0; i < p.text.len && fits; i++)
		fits = (unsigned char)p.text.at[i] >= ' ' &&
		       p.text.at[i] != 0x7f;
	if (p.text.len == 0 && key->standard[0] == '\0' && !key->required &&
	    key->kind != KIND_ADDRESS)
		return true;
	if (fits && put(&p))
		return true;
	describe_bad_value(&p, error, error_cap);
	return false;
}

bool config_backend_check(const struct config_backend *backend, char *error,
			  size_t error_cap)
{
	const struct key *key = find_key(SECTION_BACKEND, span_of("address"));
	size_t len;

	assert(key != NULL);
	if (backend->address.port > 0)
		return true;
	len = print(error, error_cap, "no address=: need ");
	(void)describe(key, error + len, error_cap - len);
	return false;
}
