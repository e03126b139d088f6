#include "proxy/trace.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

enum {
	DOMAIN_MAX = 255, /* RFC 5321, section 4.5.3.1.2 */
	LABEL_MAX = 63,   /* RFC 1035, section 2.3.4 */
	WITH_MAX = 32,
	ID_MAX = 64,
	ADDRESS_MAX = INET6_ADDRSTRLEN - 1,
	DATE_LEN = sizeof("Sun, 22 Nov 2026 09:38:33 +0000") - 1,
};

/* The longest of each, and what stands between them. */
static_assert(
	sizeof("Received: from  ([IPv6:])\r\n\tby  with  id ;\r\n\t\r\n") +
			DOMAIN_MAX + DOMAIN_MAX + ADDRESS_MAX + WITH_MAX +
			ID_MAX + DATE_LEN <=
		TRACE_MAX,
	"the longest field fits");

struct out {
	char *buf;
	size_t len;
};

static void put(struct out *out, const char *octets, size_t len)
{
	assert(len <= TRACE_MAX - out->len);
	memcpy(out->buf + out->len, octets, len);
	out->len += len;
}

static void put_text(struct out *out, const char *text)
{
	put(out, text, strlen(text));
}

/* Exactly so many digits. */
static void put_number(struct out *out, unsigned value, unsigned digits)
{
	char text[4];

	assert(digits <= sizeof(text));
	for (unsigned i = digits; i-- > 0;) {
		text[i] = (char)('0' + value % 10);
		value /= 10;
	}
	assert(value == 0);
	put(out, text, digits);
}

/* --- who --- */

static bool is_address(int family, const char *text, size_t len)
{
	char copy[ADDRESS_MAX + 1];
	struct in6_addr addr;

	if (len > ADDRESS_MAX || memchr(text, '\0', len) != NULL)
		return false;
	memcpy(copy, text, len);
	copy[len] = '\0';
	return inet_pton(family, copy, &addr) == 1;
}

/* "[192.0.2.1]" or "[IPv6:2001:db8::1]": RFC 5321, section 4.1.3. */
static bool is_literal(const char *text, size_t len)
{
	static const char tag[] = "IPv6:";
	const size_t tag_len = sizeof(tag) - 1;

	if (len < 2 || text[0] != '[' || text[len - 1] != ']')
		return false;
	text++;
	len -= 2;
	if (len >= tag_len && strncasecmp(text, tag, tag_len) == 0)
		return is_address(AF_INET6, text + tag_len, len - tag_len);
	return is_address(AF_INET, text, len);
}

/* In no locale. */
static bool is_letter_or_digit(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       (c >= '0' && c <= '9');
}

/*
 * RFC 5321, section 4.1.2; and the underscore, which no domain has and many
 * hosts have: it is an atom's (RFC 5322, section 3.2.3) and does no harm.
 */
static bool is_domain(const char *text, size_t len)
{
	size_t label = 0; /* octets of this one so far */

	if (len > DOMAIN_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '.') {
			if (label == 0 || text[i - 1] == '-')
				return false;
			label = 0;
			continue;
		}
		if (!is_letter_or_digit(text[i]) && text[i] != '_' &&
		    (text[i] != '-' || label == 0))
			return false;
		if (++label > LABEL_MAX)
			return false;
	}
	return label > 0 && text[len - 1] != '-';
}

static void put_helo(struct out *out, const struct trace *trace)
{
	assert(trace->helo != NULL || trace->helo_len == 0);
	if (is_domain(trace->helo, trace->helo_len) ||
	    is_literal(trace->helo, trace->helo_len))
		put(out, trace->helo, trace->helo_len);
	else
		put_text(out, "unknown");
}

/* RFC 5321, section 4.4: TCP-info. */
static void put_address(struct out *out, const char *address)
{
	size_t len = strlen(address);

	if (is_address(AF_INET6, address, len)) {
		put_text(out, "[IPv6:");
	} else if (is_address(AF_INET, address, len)) {
		put_text(out, "[");
	} else {
		put_text(out, "unknown");
		return;
	}
	put(out, address, len);
	put_text(out, "]");
}

/* --- when: RFC 5322, section 3.3, always in UTC --- */

static unsigned days_of_year(unsigned year)
{
	bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);

	return leap ? 366 : 365;
}

static unsigned days_of_month(unsigned month, unsigned year)
{
	static const unsigned char days[12] = { 31, 28, 31, 30, 31, 30,
						31, 31, 30, 31, 30, 31 };

	assert(month < 12);
	return month == 1 ? days_of_year(year) - 337 : days[month];
}

static void put_date(struct out *out, int64_t wall_ms)
{
	static const char names[] = "ThuFriSatSunMonTueWed"; /* of 1970 on */
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	/* The last second of the last year of four digits. */
	const int64_t last_s = 253402300799;
	int64_t wall_s = wall_ms < 0 ? 0 : wall_ms / 1000;
	unsigned year = 1970, month = 0;

	if (wall_s > last_s)
		wall_s = last_s;
	unsigned second = (unsigned)(wall_s % 86400);
	unsigned day = (unsigned)(wall_s / 86400);

	put(out, names + (size_t)3 * (day % 7), 3);
	for (; day >= days_of_year(year); year++)
		day -= days_of_year(year);
	for (; day >= days_of_month(month, year); month++)
		day -= days_of_month(month, year);

	put_text(out, ", ");
	put_number(out, day + 1, 2);
	put_text(out, " ");
	put(out, months + (size_t)3 * month, 3);
	put_text(out, " ");
	put_number(out, year, 4);
	put_text(out, " ");
	put_number(out, second / 3600, 2);
	put_text(out, ":");
	put_number(out, second / 60 % 60, 2);
	put_text(out, ":");
	put_number(out, second % 60, 2);
	put_text(out, " +0000");
}

size_t trace_write(char buf[TRACE_MAX], const struct trace *trace)
{
	struct out out = { 0 };

	assert(strlen(trace->by) <= DOMAIN_MAX);
	assert(strlen(trace->with) <= WITH_MAX);
	assert(strlen(trace->id) <= ID_MAX);
	out.buf = buf;

	put_text(&out, "Received: from ");
	put_helo(&out, trace);
	put_text(&out, " (");
	put_address(&out, trace->address);
	put_text(&out, ")\r\n\tby ");
	put_text(&out, trace->by);
	put_text(&out, " with ");
	put_text(&out, trace->with);
	put_text(&out, " id ");
	put_text(&out, trace->id);
	put_text(&out, ";\r\n\t");
	put_date(&out, trace->wall_ms);
	put_text(&out, "\r\n");
	return out.len;
}
