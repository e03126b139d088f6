#ifndef PROXY_OPERATOR_H
#define PROXY_OPERATOR_H

#include "proxy/config.h"
#include "proxy/control.h"
#include "proxy/report.h"
#include "proxy/work.h"

/*
 * What worker_control.c and worker_show*.c share; nobody else includes it.
 *
 * All memory is had at the start, and touched only when it is used: however
 * many operators come and whatever they ask, weir does not grow beyond it.
 */

enum {
	OPERATORS_MAX = 16,
	/* Told that there are too many; any further is just closed. */
	OPERATORS_REFUSED_MAX = 16,
	OPERATOR_ANSWER_MAX = 1 << 20, /* octets */
	OPERATOR_SESSIONS_MAX = 2000,  /* rows of show sessions */
	OPERATOR_SOURCES_MAX = 64,     /* rows of show sources, of each kind */
};

/* A connection to the control socket. */
struct operator
{
	struct work work;
	io_handle socket;     /* 0: this place is free */
	bool receiving;       /* an io_recv() stands */
	bool eof;             /* it has said all */
	bool skipping;        /* dropping the rest of a line too long */
	bool leaving;         /* nothing more is read; close when all is sent */
	bool fin_sent;        /* leaving: now it is the other side's turn */
	bool ending;          /* io_close() was called */
	int64_t moved_ms;     /* last progress */
	struct work_queue in; /* received, not yet read */
	size_t line_len;      /* of a line not yet whole */
	char *answer;         /* OPERATOR_ANSWER_MAX; NULL: is refused */
	size_t answer_len;    /* octets of it */
	size_t answer_at;     /* octets handed to io_send() */
	char line[CONTROL_LINE_MAX];
};

/* Of worker 0. */
struct control {
	/* First, so that worker.operators leads here. */
	struct operator operators[OPERATORS_MAX + OPERATORS_REFUSED_MAX];
	char *answers; /* owned */
	/* A session that each worker is to cut, or 0. */
	_Atomic uint64_t kill[WEIR_WORKERS_MAX];

	/* Too large for the stack; one command is dealt with at a time. */
	struct control_order order;
	struct config_backend backend;
	char error[WEIR_BACKEND_ERROR_SIZE];
	struct admission_row sources[OPERATOR_SOURCES_MAX];
	struct admission_ban bans[ADMISSION_BANS_MAX];
};

static inline struct control *control_of(const struct worker *w)
{
	return (struct control *)(void *)w->operators;
}

/* ---- worker_show_slots.c ---- */

void show_limits(struct worker *w, struct report *r);
void show_room(struct worker *w, struct report *r);

/* ---- worker_show_health.c ---- */

void show_health(struct worker *w, struct report *r);
void show_tls(struct worker *w, struct report *r);

/* ---- worker_show.c ---- */

/* Two columns: an age for people, and the same in milliseconds. */
void show_age(struct report *r, int64_t ms);

/* Write what a show command asks for; the report is ended. */
void control_show(struct worker *w, enum control_verb verb, struct report *r);

/*
 * Read or lock another worker's clients: own: the worker whose turn it is,
 * that holds its own mutex already.
 */
void control_lock(struct worker *own, struct worker *other);
void control_unlock(struct worker *own, struct worker *other);

#endif
