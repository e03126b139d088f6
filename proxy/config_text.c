#include "proxy/config_own.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
	KIB = 1024,
	SECOND = 1000,
	MINUTE = 60 * SECOND,
	HOUR = 60 * MINUTE,
};

size_t config_print(char *buf, size_t cap, const char *format, ...)
{
	assert(cap > 0);
	va_list args;

	va_start(args, format);
	int len = vsnprintf(buf, cap, format, args);
	va_end(args);
	assert(len >= 0);
	return (size_t)len < cap ? (size_t)len : cap - 1;
}

struct config_span config_span_of(const char *text)
{
	return (struct config_span){ text, strlen(text) };
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

bool config_is_digit(char c)
{
	return c >= '0' && c <= '9';
}

bool config_is_alnum(char c)
{
	return config_is_digit(c) || (c >= 'a' && c <= 'z') ||
	       (c >= 'A' && c <= 'Z');
}

char config_lower(char c)
{
	if (c >= 'A' && c <= 'Z')
		return (char)(c - 'A' + 'a');
	return c;
}

struct config_span config_trim(struct config_span s)
{
	while (s.len > 0 && is_blank(s.at[0])) {
		s.at++;
		s.len--;
	}
	while (s.len > 0 && is_blank(s.at[s.len - 1]))
		s.len--;
	return s;
}

bool config_span_is(struct config_span s, const char *word)
{
	return s.len == strlen(word) && memcmp(s.at, word, s.len) == 0;
}

struct config_span config_cut(struct config_span s, char mark,
			      struct config_span *rest)
{
	const char *end = s.len > 0 ? memchr(s.at, mark, s.len) : NULL;

	if (end == NULL) {
		*rest = (struct config_span){ NULL, 0 };
		return s;
	}
	size_t len = (size_t)(end - s.at);

	*rest = (struct config_span){ end + 1, s.len - len - 1 };
	return (struct config_span){ s.at, len };
}

struct config_span config_next_word(struct config_span *s)
{
	*s = config_trim(*s);
	size_t len = 0;

	while (len < s->len && !is_blank(s->at[len]))
		len++;
	struct config_span word = { s->at, len };

	s->at += len;
	s->len -= len;
	return word;
}

const char *config_quote(char buf[CONFIG_QUOTED_MAX], struct config_span s)
{
	size_t len = 0;

	buf[len++] = '"';
	for (size_t i = 0; i < s.len && i < CONFIG_TEXT_MAX; i++) {
		unsigned char c = (unsigned char)s.at[i];

		if (c >= ' ' && c < 0x7f)
			buf[len++] = (char)c;
		else
			len += config_print(buf + len, CONFIG_QUOTED_MAX - len,
					    "\\x%02x", (unsigned)c);
	}
	buf[len++] = '"';
	buf[len] = '\0';
	assert(len < CONFIG_QUOTED_MAX);
	return buf;
}

/*
 * How many letters must be changed, put in or left out (Levenshtein, 1965).
 * Both are shorter than CONFIG_WORD_MAX.
 */
static size_t edit_distance(struct config_span a, struct config_span b)
{
	size_t row[CONFIG_WORD_MAX];

	assert(a.len < CONFIG_WORD_MAX);
	assert(b.len < CONFIG_WORD_MAX);
	for (size_t j = 0; j <= b.len; j++)
		row[j] = j;
	for (size_t i = 1; i <= a.len; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= b.len; j++) {
			bool same = config_lower(a.at[i - 1]) ==
				    config_lower(b.at[j - 1]);
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

bool config_nearer(struct config_span word, const char *candidate, size_t *best)
{
	struct config_span other = config_span_of(candidate);

	if (word.len >= CONFIG_WORD_MAX || other.len >= CONFIG_WORD_MAX)
		return false;
	size_t far = edit_distance(word, other);
	size_t longer = word.len > other.len ? word.len : other.len;

	if (far >= *best || (far > 1 && far * 2 > longer) || far >= longer)
		return false;
	*best = far;
	return true;
}

bool config_parse_number(struct config_span s, uint64_t *number)
{
	uint64_t n = 0;

	if (s.len == 0)
		return false;
	for (size_t i = 0; i < s.len; i++) {
		if (!config_is_digit(s.at[i]) ||
		    __builtin_mul_overflow(n, 10U, &n) ||
		    __builtin_add_overflow(n, (uint64_t)(s.at[i] - '0'), &n))
			return false;
	}
	*number = n;
	return true;
}

/* Longest first, for duration_format. */
const struct config_unit config_time_units[] = {
	{ "h", HOUR }, { "m", MINUTE }, { "s", SECOND },
	{ "ms", 1 },   { NULL, 0 },
};
const struct config_unit config_size_units[] = {
	{ "G", (uint64_t)KIB *KIB *KIB },
	{ "M", (uint64_t)KIB *KIB },
	{ "K", KIB },
	{ "", 1 },
	{ NULL, 0 },
};

bool config_parse_quantity(struct config_span s,
			   const struct config_unit *units, uint64_t *number)
{
	struct config_span digits = { s.at, 0 };

	while (digits.len < s.len && config_is_digit(s.at[digits.len]))
		digits.len++;
	struct config_span unit = { s.at + digits.len, s.len - digits.len };
	uint64_t n;

	if (!config_parse_number(digits, &n))
		return false;
	while (units->name != NULL && !config_span_is(unit, units->name))
		units++;
	/* Nothing needs no unit. */
	uint64_t factor = n == 0 && unit.len == 0 ? 1 : units->factor;

	return factor > 0 && !__builtin_mul_overflow(n, factor, number);
}

size_t config_format_quantity(uint64_t n, const struct config_unit *units,
			      char *buf, size_t cap)
{
	if (n == 0)
		return config_print(buf, cap, "0");
	while (n % units->factor != 0)
		units++;
	return config_print(buf, cap, "%llu%s",
			    (unsigned long long)(n / units->factor),
			    units->name);
}

bool config_duration_parse(const char *text, size_t len, int64_t *ms)
{
	uint64_t n;

	if (!config_parse_quantity((struct config_span){ text, len },
				   config_time_units, &n) ||
	    n > INT64_MAX)
		return false;
	*ms = (int64_t)n;
	return true;
}

size_t config_duration_format(int64_t ms, char *buf, size_t cap)
{
	assert(ms >= 0);
	return config_format_quantity((uint64_t)ms, config_time_units, buf,
				      cap);
}
