#ifndef SIM_HEAP_H
#define SIM_HEAP_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Counts what the product allocates while it runs: that should be nothing.
 * The linker sends allocations here (-Wl,--wrap); those of the simulation are
 * told apart by sim_allocates().
 */

void sim_heap_watch(bool watch);
/* Allocations seen while watching. */
uint64_t sim_heap_count(void);

#endif
