#ifndef SIM_WIRE_H
#define SIM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/sim_net.h"
#include "tests/sim/sim_tls.h"

/*
 * An end of a connection on which TLS may begin: what peers of weir say and
 * read, in the clear or not.
 *
 * The end is the owner's, who adopts it and gives it up by this header.  A
 * wire stays where it is from sim_wire_open() until it is closed or reset.
 */

struct sim_wire {
	struct sim *sim;
	struct sim_end *end; /* NULL: there is none (any more) */
	struct sim_tls *tls; /* NULL: in the clear */
	bool holding, fin;
	bool tampers, tears; /* the next thing said */
	int64_t slow_us;
	struct sim_timer timer;
	uint8_t *out; /* not yet said: out_at..out_len */
	size_t out_at, out_len, out_max;
};

void sim_wire_open(struct sim_wire *wire, struct sim *sim, struct sim_end *end);
/* Give the end up, as sim_end_close() and sim_end_reset() do. */
void sim_wire_close(struct sim_wire *wire);
void sim_wire_reset(struct sim_wire *wire);

/*
 * TLS from here on.  A client says hello; a server waits for that.  Octets of
 * the end that are not yet read are TLS's.
 */
void sim_wire_secure(struct sim_wire *wire, const struct sim_tls_wish *wish);
/* The handshake is over, and what is said is said in TLS. */
bool sim_wire_is_secure(const struct sim_wire *wire);
bool sim_wire_is_shaking(const struct sim_wire *wire);
bool sim_wire_has_failed(const struct sim_wire *wire);

/* What can be read; 0: nothing.  To be called whenever something has come. */
size_t sim_wire_read(struct sim_wire *wire, void *buf, size_t len);
/* All is read, and no more comes. */
bool sim_wire_at_end(const struct sim_wire *wire);
/* The same, and TLS has been ended in its own way if there was any. */
bool sim_wire_ended_well(const struct sim_wire *wire);

void sim_wire_say(struct sim_wire *wire, const void *data, size_t len);
/* As it is, past TLS. */
void sim_wire_say_raw(struct sim_wire *wire, const void *data, size_t len);
/* What TLS has to say by itself. */
void sim_wire_flush(struct sim_wire *wire);
/* End our stream; with close_notify, if there is TLS and it is wanted. */
void sim_wire_fin(struct sim_wire *wire, bool notify);
void sim_wire_notify(struct sim_wire *wire);

/* Gather what is said from now on; and say all of it at once. */
void sim_wire_hold(struct sim_wire *wire);
void sim_wire_go(struct sim_wire *wire);
/* An octet in so many microseconds; 0: at once. */
void sim_wire_slow(struct sim_wire *wire, int64_t us);
/* The next thing said has a wrong octet in it, or lacks its last one. */
void sim_wire_tamper(struct sim_wire *wire);
void sim_wire_tear(struct sim_wire *wire);

#endif
