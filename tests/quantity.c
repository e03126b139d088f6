#include "tests/quantity.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
	TEXT_MAX = 32,
	WEEK_MS = 7 * 24 * 3600 * 1000,
};

struct unit {
	const char *name;
	double factor;
};

static const struct unit durations[] = {
	{ "", 1 },      { "ms", 1 },      { "s", 1000 },
	{ "m", 60000 }, { "h", 3600000 }, { NULL, 0 },
};

static const struct unit sizes[] = {
	{ "", 1 },
	{ "K", 1024 },
	{ "M", 1024 * 1024 },
	{ "G", 1024 * 1024 * 1024 },
	{ NULL, 0 },
};

static const struct unit percents[] = { { "", 1 }, { "%", 1 }, { NULL, 0 } };

/* Digits, perhaps a fraction, then one of the units; no sign, no exponent. */
static bool read_number(const char *text, const struct unit *units, double max,
			double *out)
{
	size_t digits = strspn(text, "0123456789.");

	if (digits == 0 || digits >= TEXT_MAX || text[0] == '.')
		return false;

	char number[TEXT_MAX];
	char *end = NULL;

	memcpy(number, text, digits);
	number[digits] = '\0';
	double value = strtod(number, &end);

	if (*end != '\0')
		return false;
	for (const struct unit *u = units; u->name != NULL; u++) {
		if (strcasecmp(text + digits, u->name) != 0)
			continue;
		value *= u->factor;
		if (!isfinite(value) || value > max)
			return false;
		*out = value;
		return true;
	}
	return false;
}

bool quantity_count(const char *text, uint64_t max, uint64_t *out)
{
	uint64_t value = 0;

	if (*text == '\0')
		return false;
	for (; *text != '\0'; text++) {
		if (*text < '0' || *text > '9')
			return false;
		if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*text - '0'),
					   &value))
			return false;
	}
	if (value > max)
		return false;
	*out = value;
	return true;
}

bool quantity_duration(const char *text, int64_t *out_ms)
{
	double value = 0;

	if (!read_number(text, durations, WEEK_MS, &value))
		return false;
	*out_ms = (int64_t)value;
	return true;
}

bool quantity_size(const char *text, uint64_t *out)
{
	double value = 0;

	if (!read_number(text, sizes, 4.0 * 1024 * 1024 * 1024, &value))
		return false;
	*out = (uint64_t)value;
	return true;
}

bool quantity_percent(const char *text, double *out)
{
	return read_number(text, percents, 100, out);
}

/* Split "A-B"; "A" alone is copied to both halves. */
static bool halves(const char *text, char low[TEXT_MAX], char high[TEXT_MAX])
{
	const char *dash = strchr(text, '-');
	const char *second = dash == NULL ? text : dash + 1;
	size_t low_len = dash == NULL ? strlen(text) : (size_t)(dash - text);
	size_t high_len = strlen(second);

	if (low_len >= TEXT_MAX || high_len >= TEXT_MAX)
		return false;
	memcpy(low, text, low_len);
	low[low_len] = '\0';
	memcpy(high, second, high_len + 1);
	return true;
}

bool quantity_duration_range(const char *text, int64_t *min_ms, int64_t *max_ms)
{
	char low[TEXT_MAX], high[TEXT_MAX];
	int64_t a = 0, b = 0;

	if (!halves(text, low, high) || !quantity_duration(low, &a) ||
	    !quantity_duration(high, &b) || a > b)
		return false;
	*min_ms = a;
	*max_ms = b;
	return true;
}

bool quantity_size_range(const char *text, uint64_t *min, uint64_t *max)
{
	char low[TEXT_MAX], high[TEXT_MAX];
	uint64_t a = 0, b = 0;

	if (!halves(text, low, high) || !quantity_size(low, &a) ||
	    !quantity_size(high, &b) || a > b)
		return false;
	*min = a;
	*max = b;
	return true;
}
