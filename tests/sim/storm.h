#ifndef SIM_STORM_H
#define SIM_STORM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/sim/world.h"

/*
 * What one seed brings: a configuration, a farm of good and bad servers, a
 * crowd of good and bad clients, operators who interfere, a rough network.
 * Then the sky clears, and everything must come home.
 */

struct storm_result {
	bool passed;
	char why[WORLD_WHY_MAX];
	uint64_t hash;
	uint64_t turns;
	int64_t virtual_us;
	struct check_totals totals;
};

/* bug: of mutate.h, or 0. */
void storm_run(uint64_t seed, unsigned bug, FILE *trace,
	       struct storm_result *result);

#endif
