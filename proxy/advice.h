#ifndef PROXY_ADVICE_H
#define PROXY_ADVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What `weirctl status` says in plain words: does the farm have slots enough,
 * which backend is the bottleneck, and what could be done; whether backends
 * relay for strangers, and whose certificates expire soon.
 *
 * Pure: figures in, sentences out.  Nothing here is shared with weir, which
 * gives figures only.
 */

enum {
	ADVICE_LINES_MAX = 10,
	ADVICE_TEXT_MAX = 512, /* octets of a sentence or two, with the NUL */
	/* So many are named; of the rest, how many there are. */
	ADVICE_NAMES_MAX = 2,
	/* A certificate with fewer days left is spoken of. */
	ADVICE_CERT_DAYS = 14,
};

enum advice_mood { ADVICE_GOOD, ADVICE_WARN, ADVICE_BAD };

enum advice_place {
	ADVICE_SERVING, /* takes sessions */
	ADVICE_RESTING, /* alive, and spared for a while */
	ADVICE_FAILING, /* down, ejected, misconfigured, going away */
	ADVICE_ASIDE,   /* an operator has set it to drain or maint */
};

/* Does it take a stranger's mail for a stranger, because weir brings it? */
enum advice_relay {
	ADVICE_RELAY_CLOSED, /* no; or nobody asks */
	ADVICE_RELAY_OPEN,
	ADVICE_RELAY_UNKNOWN,
};

struct advice_backend {
	const char *name;
	const char *state; /* a word for how it is: "down" */
	enum advice_place place;
	uint32_t used;    /* slots in use, without those that are kept idle */
	uint32_t limit;   /* slots it is believed to have now; 1 or more */
	uint32_t ceiling; /* max_sessions; 0: auto */
	bool measured;    /* it has refused: the limit is more than a guess */
	bool alarmed;     /* it refuses well below its size */
	uint32_t below, below_refused; /* attempts below its size, of late */
	enum advice_relay relay;
	bool cert_known;
	uint64_t cert_days; /* left of its certificate, if cert_known */
};

/* A certificate of weir's own. */
struct advice_cert {
	const char *listener;
	const char *names; /* that it is for */
	uint64_t days;     /* left; 0: less than one, or it has expired */
};

struct advice_room {
	uint32_t size; /* places; 0: nobody may wait */
	uint32_t waiting;
	int64_t oldest_ms;   /* how long the longest waits; 0: none */
	int64_t wait_p99_ms; /* of those who were served; 0: none were */
	bool saturated;
	int64_t saturated_ms; /* for how long */
};

struct advice_farm {
	const struct advice_backend *backends;
	unsigned count;
	struct advice_room room;
	bool observe; /* busy replies are counted, not acted on */
	bool guarded; /* strangers get to no backend that may relay for them */
	const struct advice_cert *certs;
	unsigned cert_count;
};

struct advice_line {
	enum advice_mood mood;
	char text[ADVICE_TEXT_MAX];
};

/* The first line is the verdict on the farm; there is always one. */
struct advice {
	unsigned count;
	struct advice_line lines[ADVICE_LINES_MAX];
};

void advice_give(const struct advice_farm *farm, struct advice *advice);

/* Slots in use, and all there are, of the backends that take sessions. */
struct advice_slots {
	uint32_t used, all;
};
struct advice_slots advice_count_slots(const struct advice_farm *farm);

/* "240 ms", "3.2 s", "2 min": for people.  Returns the length. */
enum { ADVICE_TIME_MAX = 32 };
size_t advice_time(int64_t ms, char text[ADVICE_TIME_MAX]);

/*
 * A bar of width columns for one backend, all of them to the same scale:
 * '#' in use, '.' free, '|' where max_sessions ends it.  scale: slots that
 * the whole width stands for, see advice_scale().  text has width + 1 octets.
 */
void advice_bar(const struct advice_backend *backend, uint32_t scale,
		unsigned width, char *text);
uint32_t advice_scale(const struct advice_farm *farm);

#endif
