#ifndef SIM_CASES_H
#define SIM_CASES_H

#include <stdbool.h>

/*
 * Named scenes, one for each fault that has a name: who says what, and what
 * the other side must read.  A seed that failed becomes a scene here.
 */

/* One scene, or all (name NULL); prints a line for each and the sum. */
bool cases_run(const char *name, bool trace);

#endif
