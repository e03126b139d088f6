#ifndef TESTS_HISTOGRAM_H
#define TESTS_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

/*
 * Latencies in logarithmic buckets: bounded memory, any number of values,
 * each known to 1/64 of itself (about 1.6 %).
 *
 * Pure.  The whole struct may be zeroed, copied and embedded.
 */

enum {
	HISTOGRAM_SUB_BITS = 6, /* 64 buckets for each power of two */
	HISTOGRAM_POWERS = 36,  /* up to 2^41 us, some 25 days */
	HISTOGRAM_BUCKETS = (HISTOGRAM_POWERS + 1) << HISTOGRAM_SUB_BITS,
};

struct histogram {
	uint64_t count;
	uint64_t min; /* microseconds; of no meaning while count is 0 */
	uint64_t max;
	uint64_t sum;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value_us);

/*
 * The smallest value that `percent` (0..100) of all values do not exceed, to
 * the histogram's precision, never above the true maximum.  0 if it is empty.
 */
uint64_t histogram_percentile(const struct histogram *h, double percent);

#endif
