#include <arpa/inet.h>
#include <assert.h>
#include <err.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "tests/quantity.h"
#include "tests/sink_session.h"

enum {
	TEXT_MAX = 400, /* so that no reply outgrows its buffer */
	ERROR_MAX = 256,
};

enum key_type {
	KEY_COUNT, /* min..max */
	KEY_SIZE,
	KEY_DURATION,
	KEY_BOOL,
	KEY_PERCENT,
	KEY_WORD, /* one of `words`, an enum */
	KEY_TEXT,
	KEY_REPLY, /* a text that is sent as it is, CRLF added */
};

struct key {
	const char *name;
	enum key_type type;
	size_t offset; /* in struct sink_mta */
	uint64_t min, max;
	const char *const *words;
	const char *usual; /* for the help text */
	const char *help;
};

static const char *const busy_words[] = {
	[SINK_BUSY_421] = "421",       [SINK_BUSY_REFUSE] = "refuse",
	[SINK_BUSY_SILENT] = "silent", [SINK_BUSY_QUEUE] = "queue",
	[SINK_BUSY_EOF] = "eof",       NULL,
};

static const char *const death_words[] = {
	[SINK_DIE_NEVER] = "never",
	[SINK_DIE_CONNECT] = "connect",
	[SINK_DIE_GREETING] = "greeting",
	[SINK_DIE_EHLO] = "ehlo",
	[SINK_DIE_MAIL] = "mail",
	[SINK_DIE_RCPT] = "rcpt",
	[SINK_DIE_DATA] = "data",
	[SINK_DIE_BODY] = "body",
	[SINK_DIE_DOT] = "dot",
	[SINK_DIE_EOD] = "eod",
	[SINK_DIE_STARTTLS] = "starttls",
	[SINK_DIE_AUTH] = "auth-reply",
	[SINK_DIE_XCLIENT] = "xclient-reply",
	[SINK_DEATHS] = NULL,
};

static const char *const how_words[] = {
	[SINK_HOW_RST] = "rst",
	[SINK_HOW_CLOSE] = "close",
	NULL,
};

static const char *const stage_words[SINK_STAGES] = {
	[SINK_GREETING] = "greeting", [SINK_EHLO] = "ehlo",
	[SINK_MAIL] = "mail",         [SINK_RCPT] = "rcpt",
	[SINK_DATA] = "data",         [SINK_EOD] = "eod",
	[SINK_QUIT] = "quit",         [SINK_STARTTLS] = "starttls",
	[SINK_AUTH] = "auth-reply",   [SINK_XCLIENT] = "xclient-reply",
};

static const char *const tls_words[] = {
	[SINK_TLS_NONE] = "none",
	[SINK_TLS_STARTTLS] = "starttls",
	[SINK_TLS_REQUIRED] = "required",
	[SINK_TLS_IMPLICIT] = "implicit",
	NULL,
};

#define AT(field) offsetof(struct sink_mta, field)

/* clang-format off */
static const struct key keys[] = {
	{ "name", KEY_TEXT, AT(name), 1, 64, NULL, "mtaN",
	  "in replies, journal, statistics" },
	{ "address", KEY_TEXT, AT(address), 1, 64, NULL, "127.0.0.1",
	  "to listen at, IPv4 or IPv6" },
	{ "port", KEY_COUNT, AT(port), 0, 65535, NULL, "2525+N",
	  "0: any free one, printed at the start" },
	{ "backlog", KEY_COUNT, AT(backlog), 1, 65535, NULL, "4096",
	  "of listen(2)" },
	{ "slots", KEY_COUNT, AT(slots), 0, 1000000, NULL, "0",
	  "sessions at once; 0: no limit" },
	{ "busy", KEY_WORD, AT(busy), 0, 0, busy_words, "421",
	  "when full: 421, refuse, silent, queue, eof" },
	{ "busy-text", KEY_REPLY, AT(busy_text), 1, TEXT_MAX, NULL,
	  "Exchange's", "the reply of busy=421" },
	{ "banner", KEY_TEXT, AT(banner), 1, TEXT_MAX, NULL,
	  "ESMTP weir-sink", "text of the greeting" },
	{ "banner-lines", KEY_COUNT, AT(banner_lines), 1, 1000, NULL, "1",
	  "lines of the greeting" },
	{ "line-pause", KEY_DURATION, AT(line_pause_ms), 0, 0, NULL, "0",
	  "between the greeting's lines" },
	{ "dribble", KEY_DURATION, AT(dribble_ms), 0, 0, NULL, "0",
	  "between two octets of every reply" },
	{ "die", KEY_WORD, AT(die), 0, 0, death_words, "never",
	  "connect, a STAGE but quit, body, or dot" },
	{ "die-how", KEY_WORD, AT(die_how), 0, 0, how_words, "rst",
	  "rst or close" },
	{ "die-every", KEY_COUNT, AT(die_chance.every), 1, UINT32_MAX, NULL,
	  "1", "only each Nth time" },
	{ "die-percent", KEY_PERCENT, AT(die_chance.percent), 0, 0, NULL,
	  "100", "only so often, at random" },
	{ "die-octets", KEY_SIZE, AT(die_octets), 0, 0, NULL, "1",
	  "die=body: after so many octets" },
	{ "esmtp", KEY_BOOL, AT(esmtp), 0, 0, NULL, "yes",
	  "no: EHLO gets 500, HELO works" },
	{ "pipelining", KEY_BOOL, AT(pipelining), 0, 0, NULL, "yes",
	  "EHLO keyword" },
	{ "chunking", KEY_BOOL, AT(chunking), 0, 0, NULL, "yes",
	  "EHLO keyword, and the command BDAT" },
	{ "binarymime", KEY_BOOL, AT(binarymime), 0, 0, NULL, "yes",
	  "EHLO keyword" },
	{ "8bitmime", KEY_BOOL, AT(eightbitmime), 0, 0, NULL, "yes",
	  "EHLO keyword" },
	{ "smtputf8", KEY_BOOL, AT(smtputf8), 0, 0, NULL, "yes",
	  "EHLO keyword" },
	{ "dsn", KEY_BOOL, AT(dsn), 0, 0, NULL, "yes", "EHLO keyword" },
	{ "enhanced", KEY_BOOL, AT(enhanced), 0, 0, NULL, "yes",
	  "EHLO keyword, and the codes in replies" },
	{ "size", KEY_SIZE, AT(size), 0, 0, NULL, "100M",
	  "largest message; 0: no limit, no keyword" },
	{ "extra", KEY_TEXT, AT(extra), 0, TEXT_MAX, NULL, "",
	  "one more EHLO keyword" },
	{ "tls", KEY_WORD, AT(tls), 0, 0, tls_words, "none",
	  "none, starttls, required, implicit" },
	{ "cert", KEY_TEXT, AT(cert), 1, TEXT_MAX, NULL, "made here",
	  "for TLS: PEM file, also of the key" },
	{ "key", KEY_TEXT, AT(key), 1, TEXT_MAX, NULL, "in cert",
	  "for TLS: PEM file of the key" },
	{ "tls-ask", KEY_BOOL, AT(tls_ask), 0, 0, NULL, "no",
	  "ask for the client's certificate" },
	{ "auth", KEY_TEXT, AT(auth), 3, TEXT_MAX, NULL, "none",
	  "USER:PASSWORD; AUTH PLAIN and LOGIN" },
	{ "auth-required", KEY_BOOL, AT(auth_required), 0, 0, NULL, "no",
	  "yes: without it MAIL gets 530" },
	{ "xclient", KEY_BOOL, AT(xclient), 0, 0, NULL, "no",
	  "EHLO keyword, and the command" },
	{ "open-relay", KEY_BOOL, AT(open_relay), 0, 0, NULL, "no",
	  "no: recipients in .invalid get 550" },
	{ "rcpts", KEY_COUNT, AT(rcpts_max), 1, SINK_RCPTS_MAX, NULL, "1000",
	  "for one message; then 452" },
	{ "messages", KEY_COUNT, AT(messages_max), 0, UINT32_MAX, NULL, "0",
	  "in one session; then 421; 0: no limit" },
	{ "errors", KEY_COUNT, AT(errors_max), 1, UINT32_MAX, NULL, "20",
	  "in one session; then 421" },
	{ "timeout", KEY_DURATION, AT(timeout_ms), 0, 0, NULL, "5m",
	  "of a silent client; then 421" },
};
/* clang-format on */

/* Settings that every stage has, behind its name. */
enum suffix { SUFFIX_REPLY, SUFFIX_EVERY, SUFFIX_PERCENT, SUFFIX_DELAY };

static const char *const suffix_words[] = {
	[SUFFIX_REPLY] = "",
	[SUFFIX_EVERY] = "-every",
	[SUFFIX_PERCENT] = "-percent",
	[SUFFIX_DELAY] = "-delay",
};

enum { SUFFIXES = sizeof(suffix_words) / sizeof(suffix_words[0]) };

static char *must(char *text)
{
	if (text == NULL)
		err(1, "out of memory");
	return text;
}

static void put_text(char **where, char *text)
{
	free(*where);
	*where = text;
}

/* "\n" in a reply is a line's end; the last one is added. */
static char *reply_of(const char *value)
{
	char *out = must(calloc(1, strlen(value) + 3));
	size_t len = 0;

	for (const char *at = value; *at != '\0'; at++) {
		if (at[0] == '\\' && at[1] == 'n') {
			out[len++] = '\r';
			out[len++] = '\n';
			at++;
		} else {
			out[len++] = *at;
		}
	}
	out[len] = '\r';
	out[len + 1] = '\n';
	return out;
}

static bool is_yes_no(const char *value, bool *out)
{
	bool yes = strcmp(value, "yes") == 0;

	if (!yes && strcmp(value, "no") != 0)
		return false;
	*out = yes;
	return true;
}

static bool is_word(const char *const *words, const char *value, unsigned *out)
{
	for (unsigned i = 0; words[i] != NULL; i++) {
		if (strcmp(words[i], value) == 0) {
			*out = i;
			return true;
		}
	}
	return false;
}

static bool set_key(struct sink_mta *mta, const struct key *key,
		    const char *value)
{
	char *at = (char *)mta + key->offset;
	size_t len = strlen(value);
	uint64_t number = 0;
	unsigned word = 0;

	switch (key->type) {
	case KEY_COUNT:
		if (!quantity_count(value, key->max, &number) ||
		    number < key->min)
			return false;
		memcpy(at, &number, sizeof(number));
		return true;
	case KEY_SIZE:
		return quantity_size(value, (uint64_t *)(void *)at);
	case KEY_DURATION:
		return quantity_duration(value, (int64_t *)(void *)at);
	case KEY_PERCENT:
		return quantity_percent(value, (double *)(void *)at);
	case KEY_BOOL:
		return is_yes_no(value, (bool *)at);
	case KEY_WORD:
		if (!is_word(key->words, value, &word))
			return false;
		memcpy(at, &word, sizeof(word));
		return true;
	case KEY_TEXT:
	case KEY_REPLY:
		if (len < key->min || len > key->max)
			return false;
		put_text((char **)(void *)at, key->type == KEY_REPLY
						      ? reply_of(value)
						      : must(strdup(value)));
		return true;
	}
	return false;
}

static bool set_rule(struct sink_rule *rule, enum suffix suffix,
		     const char *value)
{
	switch (suffix) {
	case SUFFIX_REPLY:
		if (strlen(value) > TEXT_MAX)
			return false;
		put_text(&rule->text,
			 strcmp(value, "none") == 0 ? NULL : reply_of(value));
		rule->chance.seen = 0;
		return true;
	case SUFFIX_EVERY:
		return quantity_count(value, UINT32_MAX, &rule->chance.every) &&
		       rule->chance.every > 0;
	case SUFFIX_PERCENT:
		return quantity_percent(value, &rule->chance.percent);
	case SUFFIX_DELAY:
		return quantity_duration_range(value, &rule->delay_min_ms,
					       &rule->delay_max_ms);
	}
	return false;
}

static const struct key *find_key(const char *name, size_t len)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strlen(keys[i].name) == len &&
		    strncmp(keys[i].name, name, len) == 0)
			return &keys[i];
	}
	return NULL;
}

/* "mail-delay" and the like. */
static bool find_rule(const char *name, size_t len, enum sink_stage *stage,
		      enum suffix *suffix)
{
	for (unsigned i = 0; i < SINK_STAGES * SUFFIXES; i++) {
		const char *word = stage_words[i / SUFFIXES];
		const char *end = suffix_words[i % SUFFIXES];
		size_t word_len = strlen(word);

		if (word_len + strlen(end) != len ||
		    strncmp(name, word, word_len) != 0 ||
		    strncmp(name + word_len, end, len - word_len) != 0)
			continue;
		*stage = (enum sink_stage)(i / SUFFIXES);
		*suffix = (enum suffix)(i % SUFFIXES);
		return true;
	}
	return false;
}

static void explain(const struct key *key, const char *value, char *error,
		    size_t size)
{
	switch (key->type) {
	case KEY_COUNT:
		snprintf(error, size, "%s = \"%s\": %llu to %llu is allowed",
			 key->name, value, (unsigned long long)key->min,
			 (unsigned long long)key->max);
		return;
	case KEY_SIZE:
		snprintf(error, size,
			 "%s = \"%s\": octets, or with K, M, G behind them",
			 key->name, value);
		return;
	case KEY_DURATION:
		snprintf(error, size,
			 "%s = \"%s\": a duration such as 20ms, 2s or 5m",
			 key->name, value);
		return;
	case KEY_PERCENT:
		snprintf(error, size, "%s = \"%s\": 0 to 100 is allowed",
			 key->name, value);
		return;
	case KEY_BOOL:
		snprintf(error, size, "%s = \"%s\": yes or no is allowed",
			 key->name, value);
		return;
	case KEY_WORD:
		snprintf(error, size, "%s = \"%s\": it is one of: %s",
			 key->name, value, key->help);
		return;
	case KEY_TEXT:
	case KEY_REPLY:
		snprintf(error, size, "%s: %llu to %llu octets are allowed",
			 key->name, (unsigned long long)key->min,
			 (unsigned long long)key->max);
		return;
	}
}

static bool is_of_tls(const struct key *key)
{
	return key->offset == AT(tls) || key->offset == AT(cert) ||
	       key->offset == AT(key) || key->offset == AT(tls_ask);
}

bool sink_mta_set(struct sink_mta *mta, const char *name, const char *value,
		  char *error, size_t error_size)
{
	const struct key *key = find_key(name, strlen(name));
	enum sink_stage stage = SINK_GREETING;
	enum suffix suffix = SUFFIX_REPLY;

	if (key != NULL) {
		if (set_key(mta, key, value)) {
			mta->room_changed = true; /* it may be the slots */
			if (is_of_tls(key))
				sink_tls_forget(mta);
			return true;
		}
		explain(key, value, error, error_size);
		return false;
	}
	if (!find_rule(name, strlen(name), &stage, &suffix)) {
		snprintf(error, error_size,
			 "unknown setting \"%s\"; weir-sink -h lists them",
			 name);
		return false;
	}
	if (set_rule(&mta->rules[stage], suffix, value))
		return true;
	snprintf(error, error_size,
		 "%s = \"%s\": not a valid reply, count, percentage or delay",
		 name, value);
	return false;
}

static bool is_setting(const char *at)
{
	size_t len = strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789-");
	enum sink_stage stage;
	enum suffix suffix;

	return at[len] == '=' && (find_key(at, len) != NULL ||
				  find_rule(at, len, &stage, &suffix));
}

/* The comma that ends this value, or the end of the text. */
static const char *value_end(const char *at)
{
	for (; *at != '\0'; at++) {
		if (*at == ',' && is_setting(at + 1))
			return at;
	}
	return at;
}

bool sink_mta_configure(struct sink_mta *mta, const char *spec, char *error,
			size_t error_size)
{
	const char *at = spec;

	while (*at != '\0') {
		const char *equals = strchr(at, '=');

		if (equals == NULL) {
			snprintf(error, error_size,
				 "\"%s\": KEY=VALUE is expected", at);
			return false;
		}
		const char *end = value_end(equals + 1);
		char *key = must(strndup(at, (size_t)(equals - at)));
		char *value = must(
			strndup(equals + 1, (size_t)(end - equals - 1)));
		bool ok = sink_mta_set(mta, key, value, error, error_size);

		free(key);
		free(value);
		if (!ok)
			return false;
		at = *end == ',' ? end + 1 : end;
	}
	return true;
}

struct sink_mta *sink_mta_new(struct sink *sink)
{
	struct sink_mta *mta = calloc(1, sizeof(*mta));
	char error[ERROR_MAX];

	if (mta == NULL)
		err(1, "out of memory");
	mta->kind = SINK_KIND_MTA;
	mta->sink = sink;
	mta->listen_fd = -1;
	for (int i = 0; i < SINK_STAGES; i++)
		mta->rules[i].chance = (struct sink_chance){ 1, 100, 0 };
	mta->die_chance = (struct sink_chance){ 1, 100, 0 };
	bool ok = sink_mta_configure(
		mta,
		"address=127.0.0.1,backlog=4096,size=100M,rcpts=1000,errors=20,"
		"timeout=5m,esmtp=yes,pipelining=yes,chunking=yes,dsn=yes,"
		"binarymime=yes,8bitmime=yes,smtputf8=yes,enhanced=yes,"
		"banner=ESMTP weir-sink,banner-lines=1,die-octets=1,"
		"busy-text=421 4.3.2 The maximum number of concurrent "
		"connections has exceeded a limit, closing transmission "
		"channel",
		error, sizeof(error));

	assert(ok);
	(void)ok;
	return mta;
}

static char *dup_or_null(const char *text)
{
	return text == NULL ? NULL : must(strdup(text));
}

struct sink_mta *sink_mta_copy(const struct sink_mta *from)
{
	struct sink_mta *mta = malloc(sizeof(*mta));

	assert(from->open == 0); /* settings only */
	assert(from->tls_ctx == NULL);
	if (mta == NULL)
		err(1, "out of memory");
	*mta = *from;
	mta->name = dup_or_null(from->name);
	mta->address = dup_or_null(from->address);
	mta->busy_text = dup_or_null(from->busy_text);
	mta->banner = dup_or_null(from->banner);
	mta->extra = dup_or_null(from->extra);
	mta->cert = dup_or_null(from->cert);
	mta->key = dup_or_null(from->key);
	mta->auth = dup_or_null(from->auth);
	for (int i = 0; i < SINK_STAGES; i++)
		mta->rules[i].text = dup_or_null(from->rules[i].text);
	return mta;
}

void sink_mta_free(struct sink_mta *mta)
{
	assert(mta->open == 0);
	free(mta->name);
	free(mta->address);
	free(mta->busy_text);
	free(mta->banner);
	free(mta->extra);
	free(mta->cert);
	free(mta->key);
	free(mta->auth);
	sink_tls_forget(mta);
	for (int i = 0; i < SINK_STAGES; i++)
		free(mta->rules[i].text);
	free(mta);
}

bool sink_mta_has_room(const struct sink_mta *mta)
{
	return mta->slots == 0 || mta->slots_used < mta->slots;
}

/* Fill in the address to bind to; the port that was once found stays. */
static bool address_of(struct sink_mta *mta)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };

	if (mta->bound_len > 0)
		return true;
	in.sin_port = in6.sin6_port = htons((uint16_t)mta->port);
	if (inet_pton(AF_INET, mta->address, &in.sin_addr) == 1) {
		memcpy(&mta->bound, &in, sizeof(in));
		mta->bound_len = sizeof(in);
		return true;
	}
	if (inet_pton(AF_INET6, mta->address, &in6.sin6_addr) == 1) {
		memcpy(&mta->bound, &in6, sizeof(in6));
		mta->bound_len = sizeof(in6);
		return true;
	}
	return false;
}

int sink_mta_listen(struct sink_mta *mta)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = mta };
	int on = 1;

	if (mta->listen_fd >= 0)
		return 0;
	if (!address_of(mta))
		return -EINVAL;
	int fd = socket(mta->bound.ss_family,
			SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
	    bind(fd, (struct sockaddr *)&mta->bound, mta->bound_len) != 0 ||
	    listen(fd, (int)mta->backlog) != 0 ||
	    getsockname(fd, (struct sockaddr *)&mta->bound, &mta->bound_len) !=
		    0 ||
	    epoll_ctl(mta->sink->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0) {
		int error = errno;

		(void)close(fd);
		return -error;
	}
	mta->listen_fd = fd;
	return 0;
}

void sink_mta_unlisten(struct sink_mta *mta)
{
	if (mta->listen_fd < 0)
		return;
	(void)close(mta->listen_fd);
	mta->listen_fd = -1;
}

void sink_mta_adjust(struct sink_mta *mta)
{
	if (!mta->started)
		return;
	if (mta->busy == SINK_BUSY_REFUSE && !sink_mta_has_room(mta)) {
		sink_mta_unlisten(mta);
		return;
	}
	int result = sink_mta_listen(mta);

	if (result < 0)
		warnx("%s: cannot listen again: %s", mta->name,
		      strerror(-result));
}

void sink_mta_kill(struct sink_mta *mta)
{
	mta->started = false;
	sink_mta_unlisten(mta);
	while (mta->sessions != NULL)
		sink_session_kill(mta->sessions, SINK_HOW_RST);
	assert(mta->slots_used == 0);
}

uint16_t sink_mta_port(const struct sink_mta *mta)
{
	in_port_t port = 0;

	/* At the same place for both families. */
	static_assert(offsetof(struct sockaddr_in, sin_port) ==
			      offsetof(struct sockaddr_in6, sin6_port),
		      "the port's place");
	memcpy(&port,
	       (const char *)&mta->bound +
		       offsetof(struct sockaddr_in, sin_port),
	       sizeof(port));
	return ntohs(port);
}

static void put_counters(FILE *out, const char *name, const uint64_t *counters,
			 const char *const *words, size_t count)
{
	fprintf(out, ", \"%s\": {", name);
	for (size_t i = 0; i < count; i++)
		fprintf(out, "%s\"%s\": %llu", i > 0 ? ", " : "", words[i],
			(unsigned long long)counters[i]);
	fputc('}', out);
}

/* Slots in use now count up to now. */
static double slot_seconds(const struct sink_mta *mta)
{
	int64_t sum = mta->stats.slot_ms;

	for (const struct sink_session *s = mta->sessions; s != NULL;
	     s = s->next) {
		if (s->has_slot)
			sum += mta->sink->now_ms - s->slot_since_ms;
	}
	return (double)sum / 1e3;
}

void sink_mta_print_stats(const struct sink_mta *mta, FILE *out)
{
	static const char *const error_words[SINK_ERRORS] = {
		[SINK_ERR_UNKNOWN] = "unknown",
		[SINK_ERR_SYNTAX] = "syntax",
		[SINK_ERR_SEQUENCE] = "sequence",
		[SINK_ERR_LINE_LONG] = "line_too_long",
		[SINK_ERR_BARE_LF] = "bare_lf",
		[SINK_ERR_BARE_CR] = "bare_cr",
		[SINK_ERR_NUL] = "nul",
		[SINK_ERR_EARLY] = "early_talk",
		[SINK_ERR_PIPELINED] = "pipelined",
		[SINK_ERR_SYNC] = "sync",
		[SINK_ERR_NO_QUIT] = "no_quit",
	};
	static const char *const handshake_words[SINK_HANDSHAKES] = {
		[SINK_HANDSHAKE_FULL] = "full",
		[SINK_HANDSHAKE_RESUMED] = "resumed",
		[SINK_HANDSHAKE_FAILED] = "failed",
	};
	const struct sink_stats *st = &mta->stats;
	const char *state = "up";

	if (!mta->started)
		state = "down";
	else if (!sink_mta_has_room(mta))
		state = "full";
	fprintf(out,
		"{\"name\": \"%s\", \"address\": \"%s\", \"port\": %u, "
		"\"state\": \"%s\", \"slots\": %llu",
		mta->name, mta->address, (unsigned)sink_mta_port(mta), state,
		(unsigned long long)mta->slots);
	fprintf(out,
		", \"open\": %llu, \"slots_used\": %llu, \"peak\": %llu, "
		"\"slot_seconds\": %.3f, \"accepted\": %llu, "
		"\"sessions\": %llu, \"refused\": %llu",
		(unsigned long long)mta->open,
		(unsigned long long)mta->slots_used,
		(unsigned long long)st->peak, slot_seconds(mta),
		(unsigned long long)st->accepted,
		(unsigned long long)st->sessions,
		(unsigned long long)st->refused);
	fprintf(out,
		", \"stored\": %llu, \"rejected\": %llu, "
		"\"unanswered\": %llu, \"aborted\": %llu, \"octets\": %llu, "
		"\"rcpts\": %llu, \"commands\": %llu",
		(unsigned long long)st->outcomes[SINK_STORED],
		(unsigned long long)st->outcomes[SINK_REJECTED],
		(unsigned long long)st->outcomes[SINK_UNANSWERED],
		(unsigned long long)st->outcomes[SINK_ABORTED],
		(unsigned long long)st->octets, (unsigned long long)st->rcpts,
		(unsigned long long)st->commands);
	fprintf(out,
		", \"deaths\": %llu, \"resets\": %llu, \"timeouts\": %llu, "
		"\"accept_errors\": %llu",
		(unsigned long long)st->deaths, (unsigned long long)st->resets,
		(unsigned long long)st->timeouts,
		(unsigned long long)st->accept_errors);
	fprintf(out,
		", \"logins\": %llu, \"login_errors\": %llu, "
		"\"xclients\": %llu",
		(unsigned long long)st->logins,
		(unsigned long long)st->login_errors,
		(unsigned long long)st->xclients);
	put_counters(out, "handshakes", st->handshakes, handshake_words,
		     SINK_HANDSHAKES);
	put_counters(out, "replaced", st->replaced, stage_words, SINK_STAGES);
	put_counters(out, "errors", st->errors, error_words, SINK_ERRORS);
	fputc('}', out);
}

void sink_mta_print_keys(FILE *out)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		fprintf(out, "  %-13s %-16s %s\n", keys[i].name, keys[i].usual,
			keys[i].help);
}
