#ifndef SIM_OPERATOR_H
#define SIM_OPERATOR_H

#include "tests/sim/sim_net.h"

/*
 * An operator at the control socket who cannot leave things alone: looks at
 * everything, drains and readies backends, bans and unbans, mistypes.
 */

struct sim_operator;

struct sim_operator *sim_operator_new(struct sim *sim, unsigned backends);
/* Hang up and come no more. */
void sim_operator_stop(struct sim_operator *operator);
void sim_operator_free(struct sim_operator **op);

#endif
