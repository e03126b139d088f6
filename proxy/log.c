#include "proxy/log.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { TAIL_MAX = 16 /* ,"cut":true} */ };

/* One octet as it is to be written: 1 to 6 octets. */
static size_t escape_one(char out[6], bool json, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";
	size_t n = 0;

	if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
		out[n++] = (char)c;
		return n;
	}
	out[n++] = '\\';
	switch (c) {
	case '"':
	case '\\':
		out[n++] = (char)c;
		return n;
	case '\r':
		out[n++] = 'r';
		return n;
	case '\n':
		out[n++] = 'n';
		return n;
	case '\t':
		out[n++] = 't';
		return n;
	default:
		break;
	}
	out[n++] = json ? 'u' : 'x';
	if (json) {
		out[n++] = '0';
		out[n++] = '0';
	}
	out[n++] = hex[c >> 4];
	out[n++] = hex[c & 15];
	return n;
}

size_t log_escape(char *buf, size_t cap, bool json, const char *text,
		  size_t len)
{
	size_t at = 0;

	for (size_t i = 0; i < len; i++) {
		char out[6];
		size_t n = escape_one(out, json, (unsigned char)text[i]);

		if (n > cap - at)
			break;
		memcpy(buf + at, out, n);
		at += n;
	}
	return at;
}

/* Append, or leave the line as it is and say that it was cut. */
static bool put(struct log_line *line, const char *text, size_t len)
{
	if (len > sizeof(line->text) - TAIL_MAX - line->len) {
		line->cut = true;
		return false;
	}
	memcpy(line->text + line->len, text, len);
	line->len += len;
	return true;
}

static void put_key(struct log_line *line, const char *key)
{
	if (line->json) {
		(void)put(line, line->len > 1 ? ",\"" : "\"",
			  line->len > 1 ? 2 : 1);
		(void)put(line, key, strlen(key));
		(void)put(line, "\":", 2);
		return;
	}
	if (line->len > 0)
		(void)put(line, " ", 1);
	(void)put(line, key, strlen(key));
	(void)put(line, "=", 1);
}

/* Days since 1970-01-01 to a date (H. Hinnant's "days to civil"). */
static void civil(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
	int64_t z = days + 719468;
	int64_t era = (z >= 0 ? z : z - 146096) / 146097;
	unsigned doe = (unsigned)(z - era * 146097);
	unsigned yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	unsigned doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	unsigned mp = (5 * doy + 2) / 153;

	*day = doy - (153 * mp + 2) / 5 + 1;
	*month = mp < 10 ? mp + 3 : mp - 9;
	*year = (int64_t)yoe + era * 400 + (*month <= 2);
}

static void put_time(struct log_line *line, int64_t wall_ms)
{
	char text[96]; /* as wide as the compiler can imagine it */
	unsigned month, day;
	int64_t year;
	int64_t s = wall_ms / 1000;

	civil(s / 86400, &year, &month, &day);
	(void)snprintf(text, sizeof(text),
		       "%04d-%02u-%02uT%02u:%02u:%02u.%03uZ",
		       (int)(year % 10000), month, day,
		       (unsigned)(s / 3600 % 24), (unsigned)(s / 60 % 60),
		       (unsigned)(s % 60), (unsigned)(wall_ms % 1000));
	log_word(line, "time", text);
}

void log_begin(struct log_line *line, bool json, const char *event,
	       int64_t wall_ms)
{
	line->json = json;
	line->cut = false;
	line->len = 0;
	if (json)
		(void)put(line, "{", 1);
	if (wall_ms > 0)
		put_time(line, wall_ms);
	log_word(line, "event", event);
}

/* May it stand without quotes in key=value? */
static bool is_plain(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c <= 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '=')
			return false;
	}
	return len > 0;
}

void log_text(struct log_line *line, const char *key, const char *text,
	      size_t len)
{
	char escaped[LOG_VALUE_MAX * 6];
	size_t before = line->len;
	bool quoted;
	size_t n;

	if (len > LOG_VALUE_MAX)
		len = LOG_VALUE_MAX;
	quoted = line->json || !is_plain(text, len);
	n = log_escape(escaped, sizeof(escaped), line->json, text, len);
	/* All of the field, or nothing. */
	if (n + strlen(key) + 8 > sizeof(line->text) - TAIL_MAX - line->len) {
		line->cut = true;
		return;
	}
	put_key(line, key);
	if (quoted)
		(void)put(line, "\"", 1);
	(void)put(line, escaped, n);
	if (quoted)
		(void)put(line, "\"", 1);
	assert(line->len > before);
}

void log_word(struct log_line *line, const char *key, const char *word)
{
	log_text(line, key, word, strlen(word));
}

void log_number(struct log_line *line, const char *key, int64_t number)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "%lld", (long long)number);

	assert(n > 0);
	if ((size_t)n + strlen(key) + 8 >
	    sizeof(line->text) - TAIL_MAX - line->len) {
		line->cut = true;
		return;
	}
	put_key(line, key);
	(void)put(line, text, (size_t)n);
}

void log_end(struct log_line *line)
{
	const char *tail = "";

	if (line->json)
		tail = line->cut ? ",\"cut\":true}" : "}";
	else if (line->cut)
		tail = " cut=true";

	size_t n = strlen(tail);

	assert(n <= sizeof(line->text) - line->len);
	memcpy(line->text + line->len, tail, n);
	line->len += n;
}
