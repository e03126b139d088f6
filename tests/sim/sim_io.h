#ifndef SIM_IO_H
#define SIM_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/io.h"
#include "tests/sim/sim_net.h"

/*
 * io.h over a struct sim: what stands between the worker and the kernel, seen
 * from the side of the simulation.
 *
 * io_open() finds its world in config->logger: in a simulation that is a
 * struct logger of ours, which keeps the lines.  io_wait() never waits: with
 * nothing at hand it returns at once with an empty batch, and sim_io_due_us()
 * then says when it is worth calling again.
 *
 * Each misuse of io.h is a violation: a call for a socket that was given up,
 * a buffer put back twice or written after it was, two receives at once.
 */

/* Each line that io_log() is given; text is valid during the call only. */
typedef void sim_log_fn(void *owner, unsigned worker, int level,
			const char *text, size_t len);

struct logger *sim_logger_new(struct sim *sim, sim_log_fn *fn, void *owner);
void sim_logger_free(struct logger **logger);

/* When io_wait() would have an event or reach its deadline: now or later. */
int64_t sim_io_due_us(const struct io *io);

/* One socket that is not free, as the kernel knows it. */
struct sim_io_row {
	unsigned number;            /* of the connection; 0: a listener */
	bool accepted;              /* by us; otherwise we connected */
	bool adopted;               /* has an owner */
	bool ended;                 /* shut down, closed or reset by us */
	bool greeted;               /* accepted: our first octets were "220" */
	bool stuck;                 /* octets wait to be sent */
	int64_t quiet_since_us;     /* the last octet in either direction */
	const union sim_addr *peer; /* of one being closed: if we connected */
	const union sim_addr *local;
};

/* How many rows there are; the first rows_max of them are written. */
size_t sim_io_rows(const struct io *io, struct sim_io_row *rows,
		   size_t rows_max);
/* Changes whenever a row appears, disappears, or is greeted or ended. */
uint64_t sim_io_changes(const struct io *io);

/* Buffers that are not in their pool; events of the batch not yet pulled. */
unsigned sim_io_buffers_out(const struct io *io);
/* Connections that are not given up. */
size_t sim_io_connections(const struct io *io);
/* Events that the last batch had. */
size_t sim_io_delivered(const struct io *io);

/*
 * Bugs on demand, to prove the checkers.  sending() sees, and may alter, what
 * io_send() is given; again() may ask for an event to be delivered although
 * its socket is closed.
 */
struct sim_io_bugs {
	void *owner;
	void (*sending)(void *owner, struct io *io, io_handle socket,
			const struct sim_io_row *row, struct io_buf *buf);
	bool (*again)(void *owner, struct io *io);
};
void sim_io_bugs_set(struct io *io, const struct sim_io_bugs *bugs);
/* A row's socket, to send to where it does not belong; 0: none. */
io_handle sim_io_other(struct io *io, io_handle socket, bool accepted);

#endif
