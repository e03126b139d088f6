#ifndef TESTS_QUANTITY_H
#define TESTS_QUANTITY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Numbers with units, as a person writes them on a command line.
 *
 * Pure.  Each function reads the whole string and answers whether it was
 * understood; *out is written only then.
 */

/* Decimal digits only, at most max. */
bool quantity_count(const char *text, uint64_t max, uint64_t *out);

/* "500" or "500ms", "2s", "1.5s", "3m", "1h": milliseconds, at most a week. */
bool quantity_duration(const char *text, int64_t *out_ms);

/* "512", "4K", "20M", "1G": octets (powers of 1024), at most 4 GiB. */
bool quantity_size(const char *text, uint64_t *out);

/* "5", "2.5" or "5%": 0 to 100. */
bool quantity_percent(const char *text, double *out);

/*
 * "A" or "A-B" with A <= B, each read by quantity_duration() or
 * quantity_size().  "A" alone writes A to both.
 */
bool quantity_duration_range(const char *text, int64_t *min_ms,
			     int64_t *max_ms);
bool quantity_size_range(const char *text, uint64_t *min, uint64_t *max);

#endif
