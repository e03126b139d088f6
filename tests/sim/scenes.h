#ifndef SIM_SCENES_H
#define SIM_SCENES_H

#include <stddef.h>

#include "tests/sim/sim_backend.h"

/*
 * The scenes as a table: what the farm does, what clients say and must read.
 *
 * There are two backends, b0 and b1; b0 weighs a thousand times more and so
 * is asked first as long as it can be.  Both have been probed when the scene
 * begins.  Deeds are those of the connections that follow, one each; after
 * the last the backend is good.
 */

enum { SCENE_TALKS = 4, SCENE_DEEDS = 6 };

struct scene {
	const char *name;
	const char *row;               /* of the fault catalogue */
	const char *about;             /* what is expected, in a sentence */
	const char *talk[SCENE_TALKS]; /* see sim_talk.h; all at once */
	const char *from[SCENE_TALKS]; /* NULL: 198.51.100.1, .2, ... */
	struct sim_deed b0[SCENE_DEEDS];
	struct sim_deed b1[SCENE_DEEDS];
	unsigned lacks;         /* enum sim_offer that b1 does not offer */
	unsigned slots;         /* hidden limit of b0; 0: none */
	int b0_takes, b1_takes; /* messages accepted at the end */
	const char *log;        /* in some line of the log; or NULL */
	/* Sections of weir.ini, if not the usual. */
	const char *listener, *admission, *timeouts, *farm, *health;
	/* The world: 0 the usual smooth one. */
	struct sim_faults faults;
};

extern const struct scene scenes[];
extern const size_t scene_count;

#endif
