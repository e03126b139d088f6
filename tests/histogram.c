#include "tests/histogram.h"

#include <assert.h>
#include <math.h>

enum { SUB_COUNT = 1 << HISTOGRAM_SUB_BITS };

/* Values below 64 have a bucket each; above, the six bits behind the first. */
static size_t bucket_of(uint64_t value)
{
	if (value < SUB_COUNT)
		return (size_t)value;
	unsigned shift = 63u - (unsigned)__builtin_clzll(value) -
			 HISTOGRAM_SUB_BITS;
	size_t bucket = ((size_t)(shift + 1) << HISTOGRAM_SUB_BITS) +
			(size_t)((value >> shift) - SUB_COUNT);

	return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

/* The largest value of a bucket. */
static uint64_t top_of(size_t bucket)
{
	if (bucket < SUB_COUNT)
		return bucket;
	unsigned shift = (unsigned)(bucket >> HISTOGRAM_SUB_BITS) - 1;
	uint64_t base = (bucket & (SUB_COUNT - 1)) + SUB_COUNT;

	return ((base + 1) << shift) - 1;
}

void histogram_add(struct histogram *h, uint64_t value_us)
{
	if (h->count == 0 || value_us < h->min)
		h->min = value_us;
	if (value_us > h->max)
		h->max = value_us;
	h->count++;
	h->sum += value_us;
	h->buckets[bucket_of(value_us)]++;
}

uint64_t histogram_percentile(const struct histogram *h, double percent)
{
	assert(percent >= 0);
	assert(percent <= 100);
	if (h->count == 0)
		return 0;
	double share = ceil((double)h->count * percent / 100);
	uint64_t wanted = (uint64_t)share;
	uint64_t seen = 0;

	for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->buckets[i];
		if (seen >= wanted && seen > 0) {
			uint64_t top = top_of(i);

			return top < h->max ? top : h->max;
		}
	}
	return h->max;
}
