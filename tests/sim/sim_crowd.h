#ifndef SIM_CROWD_H
#define SIM_CROWD_H

#include <stdint.h>

#include "tests/sim/sim_check.h"
#include "tests/sim/sim_net.h"

/*
 * A crowd: clients who come at random times (Poisson), one message each, whose
 * text takes a random time (lognormal), and who go when they are refused.
 *
 * As sim_client.h they are witnesses; but there are tens of thousands of them
 * and nothing is wrong with any.
 */

struct sim_crowd;

struct sim_crowd_config {
	union sim_addr to;
	unsigned first;   /* their numbers begin here */
	unsigned net;     /* 198.NET.0.0/16, where they come from */
	unsigned sources; /* addresses of it */
	double per_s;     /* how many come in a second; or 0, and */
	unsigned at_once; /* so many are here, again and again */
	double mean_s;    /* that the text of a message takes */
	double sigma;     /* of that time's logarithm */
};

struct sim_crowd_counts {
	unsigned came;
	unsigned turned_away; /* at the greeting */
	unsigned put_off;     /* 4xx to MAIL */
	unsigned done;        /* 2xx for the message */
	unsigned open;        /* here now */
	unsigned waiting;     /* of those: for the reply to MAIL */
};

struct sim_crowd *sim_crowd_new(struct sim *sim, struct check *check,
				const struct sim_crowd_config *config);
/* Those who are here end as they like. */
void sim_crowd_free(struct sim_crowd **cp);
/* Nobody comes any more; or so many from now on. */
void sim_crowd_rate(struct sim_crowd *crowd, double per_s);
struct sim_crowd_counts sim_crowd_counts(const struct sim_crowd *crowd);
/* So many per mille read their reply to MAIL, a 2xx, within so many ms. */
unsigned sim_crowd_wait_ms(const struct sim_crowd *crowd, unsigned per_mille);

/* --- chance with a shape --- */

/* Seconds to the next of those who come so often. */
double sim_until_next_s(struct sim *sim, double per_s);
double sim_lognormal_s(struct sim *sim, double mean_s, double sigma);

#endif
