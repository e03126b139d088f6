#ifndef SIM_SLOTS_H
#define SIM_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "balancer/backend.h"
#include "balancer/room.h"
#include "proxy/io.h"
#include "tests/sim/sim_net.h"

/*
 * Slots as weir counts them against the connections that there are, and the
 * waiting room against the slots that are free.
 *
 *  - a learned limit is 1 or more, and never above max_sessions;
 *  - each connection has a slot, and each slot a connection, or it lies in
 *    the room for somebody who was called; what the limit counts is no more
 *    than that;
 *  - nobody waits while a slot is free that would do, and who was called is
 *    told, but for the moment that either takes.
 */

enum { SIM_SLOTS_BACKENDS = 64, SIM_SLOTS_IOS = 8 };

/* One weir, and what is kept from one look at it to the next. */
struct sim_slots {
	struct sim *sim;
	struct farm *farm;
	struct room *room;
	struct io *const *ios;
	unsigned io_count;
	uint64_t changes[SIM_SLOTS_IOS];
	unsigned open[SIM_SLOTS_BACKENDS]; /* connections, by place in the farm
					    */
	unsigned all[SIM_SLOTS_BACKENDS];  /* those being closed among them */
	int64_t waits_us;                  /* somebody does since; 0: nobody */
	int64_t called_us;                 /* somebody is since; 0: nobody */
	char where[BACKEND_NAME_MAX]; /* a slot was free at the last look */
};

/* After each batch of the weir; the first five members are set. */
void sim_slots_check(struct sim_slots *slots, bool draining);

/* Is it this that asks the product something just now? */
bool sim_slots_are_looking(void);

/* When all is quiet nothing is counted any more.  False: it is. */
bool sim_slots_are_home(const struct sim_slots *slots);

#endif
