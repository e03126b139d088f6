#ifndef SIM_LIMITS_H
#define SIM_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * What learned limits are worth: whole weirs, one or several, before a server
 * whose slots nobody has told them of, and more load than it can take.  Each
 * scene has bars: how much of the slots is used, how often one is refused.
 *
 * The same bars hold for balancer/limit.c alone (tests/unit/test_limit.c); here
 * it is all of weir, with its handshakes, its waiting room and its health
 * checks.
 */

/*
 * One scene, or all (name NULL), with each of the seeds first..last; prints a
 * line for each and the sum.
 */
bool limits_run(const char *name, uint64_t first, uint64_t last, bool trace);

#endif
