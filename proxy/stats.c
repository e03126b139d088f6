#include "proxy/stats.h"

#include <assert.h>

static_assert(STATS_CLOSE_COUNT <=
		      sizeof(((struct stats *)0)->closed) / sizeof(uint64_t),
	      "stats.closed holds every reason");

#define STATS_ROW(name, unit, help) { #name, #unit, help },
const struct stats_counter stats_counters[STATS_COUNT] = { STATS_COUNTERS(
	STATS_ROW) };
#undef STATS_ROW

uint64_t stats_get(const struct stats *stats, enum stats_index which)
{
	switch (which) {
#define STATS_CASE(name, unit, help)                                           \
	case STATS_##name:                                                     \
		return atomic_load_explicit(&stats->name, memory_order_relaxed);
		STATS_COUNTERS(STATS_CASE)
#undef STATS_CASE
	case STATS_COUNT:
		break;
	}
	assert(which < STATS_COUNT);
	return 0;
}

#define STATS_CLOSE_ROW(NAME, name, help) { #name, help },
static const struct {
	const char *name;
	const char *help;
} closes[STATS_CLOSE_COUNT] = { STATS_CLOSES(STATS_CLOSE_ROW) };
#undef STATS_CLOSE_ROW

const char *stats_close_name(enum stats_close reason)
{
	assert(reason < STATS_CLOSE_COUNT);
	return closes[reason].name;
}

const char *stats_close_help(enum stats_close reason)
{
	assert(reason < STATS_CLOSE_COUNT);
	return closes[reason].help;
}
