#ifndef SIM_CLIENT_H
#define SIM_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/sim_auth.h"
#include "tests/sim/sim_check.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_tls.h"

/*
 * A scripted mail client of one nature, drawn by the seed: good, slow,
 * impatient, hostile, idle.
 *
 * It is a witness too: replies must be well-formed, in order, as many as its
 * commands, about its own messages; nobody is left without a word; what is
 * acknowledged goes into the ledger.
 */

enum sim_nature {
	SIM_NATURE_GOOD,      /* plain, pipelined, BDAT */
	SIM_NATURE_SLOW,      /* the same, a few octets at a time */
	SIM_NATURE_DRIBBLING, /* slow with the bodies alone */
	SIM_NATURE_ABORTING,  /* the same, and gone at any octet */
	SIM_NATURE_SMUGGLER,  /* bodies with bare CR, LF and NUL */
	SIM_NATURE_RUDE,      /* talks early, pipelines data, floods, ... */
	SIM_NATURE_FOREIGN,   /* HTTP, TLS, noise */
	SIM_NATURE_CLUMSY,    /* makes one mistake after the other */
	SIM_NATURE_DEAF,      /* asks and never reads */
	SIM_NATURE_IDLE,      /* says EHLO, and no more */
	SIM_NATURES,
};

struct sim_client;

/* Who comes from here sends a header that nobody asked for, and names an
 * address that is nobody's. */
#define SIM_CLIENT_FORGER        "203.0.113.66"
#define SIM_CLIENT_FORGER_OCTETS 203, 0, 113, 66
#define SIM_CLIENT_FORGED        "192.0.2.66"

struct sim_client_config {
	unsigned number;
	enum sim_nature nature;
	union sim_addr from; /* whatever port */
	union sim_addr to;
	int64_t at_us; /* when it connects */
	unsigned messages_max;
	uint32_t body_max;
	enum sim_secrecy secrecy; /* STARTTLS: if it is offered */
	unsigned drawer;          /* of sim_tls.h, for its session */
	bool old_tls;             /* 1.2 */
	enum sim_auth_way auth;   /* if it is offered; NONE: not at all */
	bool auth_in_clear;       /* the listener may offer it so */
	bool counted;             /* the listener has bare_newline = bdat */
	/* It comes through a proxy, which names this address, with a port, by
	 * a header of that version; 0: it comes by itself. */
	unsigned proxy;
	bool forges; /* the header: nobody is to believe it */
	union sim_addr named;
};

struct sim_client *sim_client_new(struct sim *sim, struct check *check,
				  const struct sim_client_config *config);
void sim_client_free(struct sim_client **cp);

/* Is it over for this client? */
bool sim_client_done(const struct sim_client *client);
/* At the end, when the log is whole: was it left without a word? */
void sim_client_complain(struct sim_client *client);
/* Did the connection stand, and did weir say a word? */
bool sim_client_heard(const struct sim_client *client);
/* How many sessions of it the log has told the end of. */
unsigned sim_client_logged(const struct sim_client *client);

#endif
