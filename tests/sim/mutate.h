#ifndef SIM_MUTATE_H
#define SIM_MUTATE_H

#include <stdbool.h>

#include "tests/sim/world.h"

/*
 * Deliberate bugs, to prove that the checkers catch them.  The product knows
 * nothing of them: they are put between its modules when weir-sim is linked
 * (-Wl,--wrap), or into the simulated io.
 */

enum mutate_bug {
	MUTATE_NONE,
	MUTATE_EARLY_250,     /* 2xx before the backend's final reply */
	MUTATE_REPLAY,        /* a message sent again after its end of data */
	MUTATE_LOST_SLOT,     /* a slot that is not given back */
	MUTATE_WRONG_SESSION, /* octets of one session to another */
	MUTATE_STALE_EVENT,   /* an event behind IO_CLOSED */
	MUTATE_ALTERED,       /* an octet of a body changed */
	MUTATE_LEAK,          /* a buffer that nobody puts back */
	MUTATE_REPLAY_AGAIN,  /* a held body sent again, though its end was
				 sent and not answered */
	MUTATE_CARRIED_OVER,  /* a connection kept with a transaction open */
	MUTATE_FORGOTTEN,     /* a waiter whose turn never comes */
	MUTATE_LOST_WAKE_UP,  /* a waiter called, and nobody wakes its worker */
	MUTATE_ABOVE_CEILING, /* a learned limit above max_sessions */
	MUTATE_STRANGER,      /* a PROXY header of a stranger's believed */
	MUTATE_SURVIVOR,      /* what came behind STARTTLS obeyed within TLS */
	MUTATE_LOGGED,        /* credentials in a log line */
	MUTATE_UNINTRODUCED,  /* a kept connection used without XCLIENT */
	MUTATE_UNGUARDED,     /* strangers' mail to who relays it */
	MUTATE_BUGS,
};

/* The bug's name on the command line; NULL beyond the last. */
const char *mutate_name(unsigned bug);
/* The bug of that name, or 0. */
unsigned mutate_find(const char *name);

/* Plant it in a world that has been started. */
void mutate_plant(struct world *w, unsigned bug);
/* How often has it done something? */
unsigned mutate_count(void);

#endif
