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

enum { SCENE_TALKS = 6, SCENE_DEEDS = 6 };

/* What a server is besides what its section of weir.ini says of it. */
struct scene_server {
	bool no_tls;         /* offers no STARTTLS */
	bool no_xclient;     /* unless weir is to say it */
	bool old_tls;        /* 1.2 */
	bool wrong_paper;    /* its certificate is nobody's */
	const char *xclient; /* attributes; "": does not offer it; NULL: all */
	const char *auth;    /* mechanisms; NULL: none */
	bool auth_in_clear;
	unsigned auth_refuses; /* per mille */
	bool closed;           /* no mail to .invalid */
};

struct scene {
	const char *name;
	const char *row;               /* of the fault catalogue */
	const char *about;             /* what is expected, in a sentence */
	const char *talk[SCENE_TALKS]; /* see sim_talk.h; all at once */
	const char *from[SCENE_TALKS]; /* NULL: 198.51.100.1, .2, ... */
	struct sim_deed b0[SCENE_DEEDS];
	struct sim_deed b1[SCENE_DEEDS];
	struct sim_deed probed[1]; /* of both, when they are probed before */
	struct scene_server s0, s1;
	unsigned lacks;          /* enum sim_offer that b1 does not offer */
	unsigned slots;          /* hidden limit of b0; 0: none */
	enum sim_deed_kind full; /* see sim_backend.h; NONE: BYE */
	const char *full_text;
	int b0_takes, b1_takes; /* messages accepted at the end; -1: any */
	unsigned b0_conns;      /* connections to b0 that clients' mail took */
	const char *log;        /* in some line of the log; or NULL */
	const char *no_log;     /* in none; or NULL */
	const char *got;        /* in what b0, or b1, took last; or NULL */
	unsigned workers;       /* 0: one */
	/* Sections of weir.ini, if not the usual. */
	const char *weir; /* more lines of it */
	const char *listener, *admission, *timeouts, *farm, *health, *room;
	const char *b0_config, *b1_config; /* without the address */
	const char
		*b0_reloaded; /* its config from a reload on; NULL: the same */
	/* The world: 0 the usual smooth one. */
	struct sim_faults faults;
};

/* Whatever any proxy has to stand; and what there is of slots. */
extern const struct scene scenes[];
extern const size_t scene_count;
extern const struct scene slot_scenes[];
extern const size_t slot_scene_count;
extern const struct scene proxy_scenes[];
extern const size_t proxy_scene_count;
extern const struct scene tls_scenes[];
extern const size_t tls_scene_count;
extern const struct scene who_scenes[];
extern const size_t who_scene_count;
extern const struct scene tcp_scenes[];
extern const size_t tcp_scene_count;

#endif
