#ifndef TESTS_SINK_CONTROL_H
#define TESTS_SINK_CONTROL_H

#include <stdint.h>

#include "tests/sink.h"

/*
 * The line protocol that inspects and changes a running farm.  One line in,
 * one line out: "ok", "error: WHY", or a JSON object.
 */

struct sink_control; /* the listener; owns its connections */

/*
 * Listen at a port of 127.0.0.1 ("2600") or at a UNIX socket (a path with a
 * slash).  NULL: error[] says why.
 */
struct sink_control *sink_control_open(struct sink *sink, const char *where,
				       char *error, size_t error_size);
void sink_control_close(struct sink_control **control);

/* epoll reported events for SINK_KIND_CONTROL_LISTENER or _CONTROL. */
void sink_control_accept(struct sink_control *control);
void sink_control_event(void *connection);

/* Execute one line and write its one-line answer, LF included. */
void sink_control_run(struct sink *sink, char *line, FILE *out);

#endif
