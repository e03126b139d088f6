#include "proxy/control.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "proxy/log.h"

#define CONTROL_ROW(NAME, words, args, min, max, change, help)                 \
	{ words, args, min, max, change, help },
const struct control_command control_commands[CONTROL_VERBS] = {
	CONTROL_COMMANDS(CONTROL_ROW)
};
#undef CONTROL_ROW

enum {
	COMMAND_WORDS_MAX = 2,
	COMMAND_TEXT_MAX = 32, /* octets of a command's words */
	QUOTED_MAX = 96,       /* of what the operator wrote, in an error */
	NEAR_MAX = 3,          /* edits that a typo may be away */
};

/* --- words --- */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Copy one word without its quotes; returns where the line goes on. */
static size_t take_word(struct control_order *o, const char *line, size_t len,
			size_t *used, bool *open)
{
	struct control_word *word = &o->words[o->word_count];
	size_t begin = *used;
	bool quoted = false;
	size_t i = 0;

	for (; i < len && (quoted || !is_blank(line[i])); i++) {
		if (line[i] == '"') {
			quoted = !quoted;
			continue;
		}
		if (quoted && line[i] == '\\' && i + 1 < len &&
		    (line[i + 1] == '"' || line[i + 1] == '\\'))
			i++;
		o->text[(*used)++] = line[i];
	}
	*open = quoted;
	word->text = o->text + begin;
	word->len = *used - begin;
	o->text[(*used)++] = '\0';
	o->word_count++;
	return i;
}

/* False: too many words, or a quote without end. */
static bool split(struct control_order *o, const char *line, size_t len,
		  const char **what)
{
	size_t used = 0;
	size_t at = 0;

	o->word_count = 0;
	while (at < len) {
		bool open;

		if (is_blank(line[at])) {
			at++;
			continue;
		}
		if (o->word_count == CONTROL_WORDS_MAX) {
			*what = "too many words";
			return false;
		}
		at += take_word(o, line + at, len - at, &used, &open);
		if (open) {
			*what = "a quote has no end";
			return false;
		}
	}
	assert(used <= sizeof(o->text));
	return true;
}

static bool word_is(struct control_word word, const char *text)
{
	return strlen(text) == word.len &&
	       strncasecmp(word.text, text, word.len) == 0;
}

/* --- complaints --- */

/* What the operator wrote, fit to be shown, cut if it is long. */
static const char *quote(char buf[QUOTED_MAX], struct control_word word)
{
	size_t n = log_escape(buf, QUOTED_MAX - 1, false, word.text, word.len);

	buf[n] = '\0';
	return buf;
}

static void complain_usage(enum control_verb verb, const char *problem,
			   char error[CONTROL_ERROR_MAX])
{
	const struct control_command *c = &control_commands[verb];

	(void)snprintf(error, CONTROL_ERROR_MAX, "%s; usage: %s%s%s", problem,
		       c->words, c->args[0] != '\0' ? " " : "", c->args);
}

/* The same about one word. */
static void complain_word(enum control_verb verb, struct control_word word,
			  const char *problem, char error[CONTROL_ERROR_MAX])
{
	char quoted[QUOTED_MAX];
	char text[QUOTED_MAX + CIDR_WHY_MAX + 8];

	(void)snprintf(text, sizeof(text), "\"%s\": %s", quote(quoted, word),
		       problem);
	complain_usage(verb, text, error);
}

/* --- finding the command --- */

/* How many words of the line these words of a command are; 0: they differ. */
static unsigned matches(const struct control_command *c,
			const struct control_order *o)
{
	const char *at = c->words;
	unsigned n = 0;

	while (*at != '\0') {
		const char *blank = strchr(at, ' ');
		size_t len = blank != NULL ? (size_t)(blank - at) : strlen(at);

		if (n == o->word_count || o->words[n].len != len ||
		    strncasecmp(o->words[n].text, at, len) != 0)
			return 0;
		n++;
		at += len + (blank != NULL);
	}
	return n;
}

static size_t least(size_t a, size_t b, size_t c)
{
	size_t m = a < b ? a : b;

	return m < c ? m : c;
}

static bool same(char a, char b)
{
	return strncasecmp(&a, &b, 1) == 0;
}

/*
 * Edits (insert, drop, change, swap of neighbours) between two short texts:
 * "optimal string alignment".
 */
static size_t distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
	size_t rows[3][COMMAND_TEXT_MAX + 1];

	assert(a_len <= COMMAND_TEXT_MAX);
	assert(b_len <= COMMAND_TEXT_MAX);
	for (size_t j = 0; j <= b_len; j++)
		rows[0][j] = j;
	for (size_t i = 1; i <= a_len; i++) {
		size_t *row = rows[i % 3];
		const size_t *last = rows[(i + 2) % 3];
		const size_t *before = rows[(i + 1) % 3];

		row[0] = i;
		for (size_t j = 1; j <= b_len; j++) {
			char x = a[i - 1];
			char y = b[j - 1];

			row[j] = least(last[j] + 1, row[j - 1] + 1,
				       last[j - 1] + !same(x, y));
			if (i > 1 && j > 1 && same(x, b[j - 2]) &&
			    same(y, a[i - 2]) && before[j - 2] + 1 < row[j])
				row[j] = before[j - 2] + 1;
		}
	}
	return rows[a_len % 3][b_len];
}

/* The line's first n words with one blank between; cut if long. */
static size_t join(const struct control_order *o, unsigned n,
		   char text[COMMAND_TEXT_MAX])
{
	size_t len = 0;

	for (unsigned i = 0; i < n && i < o->word_count; i++) {
		if (i > 0 && len < COMMAND_TEXT_MAX)
			text[len++] = ' ';
		for (size_t k = 0;
		     k < o->words[i].len && len < COMMAND_TEXT_MAX; k++)
			text[len++] = o->words[i].text[k];
	}
	return len;
}

static void complain_unknown(const struct control_order *o,
			     char error[CONTROL_ERROR_MAX])
{
	char text[COMMAND_TEXT_MAX];
	char quoted[QUOTED_MAX];
	size_t best = NEAR_MAX + 1;
	const char *near = NULL;
	bool two = o->word_count > 1;

	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		const char *words = control_commands[i].words;
		unsigned n = strchr(words, ' ') != NULL ? 2 : 1;
		size_t len = join(o, n, text);
		size_t d = distance(text, len, words, strlen(words));

		/* "show" says nothing of which show. */
		if (d < best && d < len) {
			best = d;
			near = words;
		}
	}

	size_t len = join(o, two ? 2 : 1, text);
	const struct control_word said = { text, len };

	(void)snprintf(error, CONTROL_ERROR_MAX,
		       near != NULL ? "no command \"%s\": did you mean \"%s\"?"
				    : "no command \"%s\": see \"%s\"",
		       quote(quoted, said), near != NULL ? near : "help");
}

/* All commands whose first word is the only one that was said. */
static bool complain_half(const struct control_order *o,
			  char error[CONTROL_ERROR_MAX])
{
	static const char ask[] = "which of these? ";
	const struct control_word first = o->words[0];
	size_t len = sizeof(ask) - 1;
	bool found = false;

	memcpy(error, ask, len);
	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		const char *words = control_commands[i].words;
		const char *blank = strchr(words, ' ');
		size_t n = strlen(words);

		if (blank == NULL || (size_t)(blank - words) != first.len ||
		    strncasecmp(words, first.text, first.len) != 0)
			continue;
		assert(len + 2 + n < CONTROL_ERROR_MAX);
		if (found) {
			memcpy(error + len, ", ", 2);
			len += 2;
		}
		memcpy(error + len, words, n);
		len += n;
		found = true;
	}
	error[len] = '\0';
	return found;
}

static bool find(const struct control_order *o, enum control_verb *verb,
		 unsigned *words)
{
	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		*words = matches(&control_commands[i], o);
		if (*words > 0) {
			*verb = (enum control_verb)i;
			return true;
		}
	}
	return false;
}

/* --- arguments --- */

static bool read_format(struct control_order *o, char error[CONTROL_ERROR_MAX])
{
	o->format = REPORT_TEXT;
	if (o->arg_count == 0)
		return true;
	if (word_is(o->arg[0], "csv"))
		o->format = REPORT_CSV;
	else if (word_is(o->arg[0], "json"))
		o->format = REPORT_JSON;
	else
		complain_word(o->verb, o->arg[0], "need csv or json", error);
	return o->format != REPORT_TEXT;
}

/* A whole number of 1..max. */
static bool read_number(struct control_word word, uint32_t max,
			uint32_t *number)
{
	uint64_t n = 0;

	if (word.len == 0 || word.len > 9)
		return false;
	for (size_t i = 0; i < word.len; i++) {
		if (word.text[i] < '0' || word.text[i] > '9')
			return false;
		n = n * 10 + (uint64_t)(word.text[i] - '0');
	}
	if (n < 1 || n > max)
		return false;
	*number = (uint32_t)n;
	return true;
}

static bool read_set_number(struct control_order *o, enum control_set set,
			    uint32_t max, char error[CONTROL_ERROR_MAX])
{
	char problem[64];

	o->set = set;
	if (o->arg_count < 2) {
		complain_usage(o->verb, "a number is missing", error);
		return false;
	}
	if (read_number(o->arg[1], max, &o->number))
		return true;
	if (set == CONTROL_SET_MAX_SESSIONS && word_is(o->arg[1], "auto")) {
		o->number = LIMIT_MAX;
		return true;
	}
	(void)snprintf(problem, sizeof(problem),
		       "need %sa whole number from 1 to %lu",
		       set == CONTROL_SET_MAX_SESSIONS ? "auto or " : "",
		       (unsigned long)max);
	complain_word(o->verb, o->arg[1], problem, error);
	return false;
}

static bool read_set(struct control_order *o, char error[CONTROL_ERROR_MAX])
{
	struct control_word what = o->arg[0];

	if (word_is(what, "weight"))
		return read_set_number(o, CONTROL_SET_WEIGHT,
				       BACKEND_WEIGHT_MAX, error);
	if (word_is(what, "max_sessions"))
		return read_set_number(o, CONTROL_SET_MAX_SESSIONS,
				       CONTROL_SESSIONS_MAX, error);
	o->set = CONTROL_SET_ADMIN;
	if (word_is(what, "ready"))
		o->admin = BACKEND_READY;
	else if (word_is(what, "drain"))
		o->admin = BACKEND_ADMIN_DRAIN;
	else if (word_is(what, "maint"))
		o->admin = BACKEND_ADMIN_MAINT;
	else {
		complain_word(o->verb, what, "cannot be set", error);
		return false;
	}
	if (o->arg_count > 1)
		complain_word(o->verb, o->arg[1], "is too much", error);
	return o->arg_count == 1;
}

static bool read_net(struct control_order *o, char error[CONTROL_ERROR_MAX])
{
	char why[CIDR_WHY_MAX];

	if (cidr_parse(o->arg[0].text, o->arg[0].len, &o->net, why,
		       sizeof(why)))
		return true;
	complain_word(o->verb, o->arg[0], why, error);
	return false;
}

static bool read_ban(struct control_order *o, char error[CONTROL_ERROR_MAX])
{
	const int64_t max_ms = (int64_t)CONTROL_BAN_DAYS_MAX * 86400 * 1000;

	o->duration_ms = 0;
	if (!read_net(o, error))
		return false;
	if (o->arg_count == 1)
		return true;
	if (control_duration_parse(o->arg[1].text, o->arg[1].len,
				   &o->duration_ms) &&
	    o->duration_ms > 0 && o->duration_ms <= max_ms)
		return true;
	complain_word(o->verb, o->arg[1],
		      "need a duration like 90s, 30m, 12h or 7d", error);
	return false;
}

/* The first argument is the name; the rest stays in arg. */
static void take_name(struct control_order *o)
{
	o->name = o->arg[0];
	o->arg++;
	o->arg_count--;
}

static bool read_args(struct control_order *o, char error[CONTROL_ERROR_MAX])
{
	switch (o->verb) {
	case CONTROL_SHOW_INFO:
	case CONTROL_SHOW_STAT:
	case CONTROL_SHOW_BACKENDS:
	case CONTROL_SHOW_HEALTH:
	case CONTROL_SHOW_LIMITS:
	case CONTROL_SHOW_ROOM:
	case CONTROL_SHOW_TLS:
	case CONTROL_SHOW_SESSIONS:
	case CONTROL_SHOW_SOURCES:
	case CONTROL_SHOW_BANS:
		return read_format(o, error);
	case CONTROL_SET_BACKEND:
		take_name(o);
		return read_set(o, error);
	case CONTROL_ADD_BACKEND:
	case CONTROL_DEL_BACKEND:
		take_name(o);
		return true;
	case CONTROL_BAN:
		return read_ban(o, error);
	case CONTROL_UNBAN:
		return read_net(o, error);
	case CONTROL_KILL_SESSION:
		if (control_id_parse(o->arg[0].text, o->arg[0].len, &o->id))
			return true;
		complain_word(o->verb, o->arg[0], "is no session's id", error);
		return false;
	case CONTROL_HELP:
	case CONTROL_RELOAD:
	case CONTROL_QUIT:
	case CONTROL_VERBS:
		break;
	}
	return true;
}

enum control_judgement control_parse(const char *line, size_t len,
				     struct control_order *order,
				     char error[CONTROL_ERROR_MAX])
{
	const char *what = NULL;
	unsigned words = 0;

	assert(len <= CONTROL_LINE_MAX);
	if (!split(order, line, len, &what)) {
		(void)snprintf(error, CONTROL_ERROR_MAX, "%s", what);
		return CONTROL_WRONG;
	}
	if (order->word_count == 0)
		return CONTROL_EMPTY;
	if (!find(order, &order->verb, &words)) {
		if (order->word_count > 1 || !complain_half(order, error))
			complain_unknown(order, error);
		return CONTROL_WRONG;
	}

	const struct control_command *c = &control_commands[order->verb];

	order->format = REPORT_TEXT;
	order->arg = order->words + words;
	order->arg_count = order->word_count - words;
	if (order->arg_count < c->args_min || order->arg_count > c->args_max) {
		complain_usage(order->verb,
			       order->arg_count < c->args_min
				       ? "something is missing"
				       : "too many words",
			       error);
		return CONTROL_WRONG;
	}
	return read_args(order, error) ? CONTROL_ORDER : CONTROL_WRONG;
}

/* --- help --- */

/* Does this command begin with what help is wanted for? */
static bool is_asked(const struct control_order *o, const char *words)
{
	char text[COMMAND_TEXT_MAX];
	const struct control_word *arg = o->arg;
	size_t len = 0;

	for (unsigned i = 0; i < o->arg_count; i++) {
		if (arg[i].len + 1 > sizeof(text) - len)
			return false;
		if (i > 0)
			text[len++] = ' ';
		memcpy(text + len, arg[i].text, arg[i].len);
		len += arg[i].len;
	}
	return strncasecmp(words, text, len) == 0;
}

static size_t help_one(const struct control_command *c, char *buf, size_t cap)
{
	int n = snprintf(buf, cap, "%s%s%s\n        %s\n", c->words,
			 c->args[0] != '\0' ? " " : "", c->args, c->help);

	assert(n > 0);
	assert((size_t)n < cap);
	return (size_t)n;
}

size_t control_help(const struct control_order *order, char *buf, size_t cap)
{
	size_t len = 0;

	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		if (is_asked(order, control_commands[i].words))
			len += help_one(&control_commands[i], buf + len,
					cap - len);
	}
	if (len == 0) {
		int n = snprintf(buf, cap,
				 "error: no such command; \"help\" "
				 "names them all\n");

		assert(n > 0);
		len = (size_t)n;
	}
	return len;
}

/* --- ids, durations --- */

size_t control_id_format(uint64_t id, char text[CONTROL_ID_MAX])
{
	int n = snprintf(text, CONTROL_ID_MAX, "%08lx-%lx",
			 (unsigned long)(id >> 32),
			 (unsigned long)(id & UINT32_MAX));

	assert(n > 0);
	return (size_t)n;
}

static bool read_hex(const char *text, size_t len, uint64_t *n)
{
	if (len == 0 || len > 8)
		return false;
	*n = 0;
	for (size_t i = 0; i < len; i++) {
		static const char digits[] = "0123456789abcdefABCDEF";
		const char *digit = memchr(digits, text[i], sizeof(digits) - 1);

		if (digit == NULL)
			return false;
		size_t value = (size_t)(digit - digits);

		*n = *n << 4 | (value < 16 ? value : value - 6);
	}
	return true;
}

bool control_id_parse(const char *text, size_t len, uint64_t *id)
{
	const char *dash = len > 0 ? memchr(text, '-', len) : NULL;
	uint64_t high, low;

	if (dash == NULL)
		return false;

	size_t front = (size_t)(dash - text);

	if (!read_hex(text, front, &high) ||
	    !read_hex(dash + 1, len - front - 1, &low))
		return false;
	*id = high << 32 | low;
	return true;
}

bool control_duration_parse(const char *text, size_t len, int64_t *ms)
{
	static const struct {
		const char *unit;
		int64_t ms;
	} units[] = {
		{ "ms", 1 },      { "s", 1000 },     { "m", 60000 },
		{ "h", 3600000 }, { "d", 86400000 },
	};
	int64_t n = 0;
	size_t i = 0;

	for (; i < len && text[i] >= '0' && text[i] <= '9'; i++) {
		if (i == 9)
			return false;
		n = n * 10 + (text[i] - '0');
	}
	if (i == 0)
		return false;
	for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
		if (strlen(units[u].unit) == len - i &&
		    memcmp(text + i, units[u].unit, len - i) == 0) {
			*ms = n * units[u].ms;
			return true;
		}
	}
	return false;
}

size_t control_age_format(int64_t ms, char text[CONTROL_AGE_MAX])
{
	long long s = (long long)(ms > 0 ? ms / 1000 : 0);
	int n;

	if (s >= 86400) {
		n = snprintf(text, CONTROL_AGE_MAX, "%lldd%lldh", s / 86400,
			     s % 86400 / 3600);
	} else if (s >= 3600) {
		n = snprintf(text, CONTROL_AGE_MAX, "%lldh%lldm", s / 3600,
			     s % 3600 / 60);
	} else if (s >= 60) {
		n = snprintf(text, CONTROL_AGE_MAX, "%lldm%llds", s / 60,
			     s % 60);
	} else {
		n = snprintf(text, CONTROL_AGE_MAX, "%llds", s);
	}
	assert(n > 0);
	return (size_t)n;
}
