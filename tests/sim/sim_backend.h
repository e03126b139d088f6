#ifndef SIM_BACKEND_H
#define SIM_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/sim_check.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_tls.h"

/*
 * A scripted mail server: good by nature, and now and then it does one deed:
 * it is busy, dies, lies, or dawdles, at one stage of one connection.
 *
 * It is also a witness.  What it is given is compared with what the client
 * sent, octet by octet, and every end of data goes into the ledger.
 */

enum sim_stage {
	SIM_STAGE_GREET,
	SIM_STAGE_EHLO,
	SIM_STAGE_MAIL,
	SIM_STAGE_RCPT,
	SIM_STAGE_DATA, /* the 354, or a chunk's 250 */
	SIM_STAGE_BODY, /* in the middle of it */
	SIM_STAGE_EOD,
	SIM_STAGE_STARTTLS,
	SIM_STAGE_HANDSHAKE, /* in place of its part of one */
	SIM_STAGE_XCLIENT,
	SIM_STAGE_CHALLENGE, /* a 334 */
	SIM_STAGE_AUTH,      /* the verdict */
	SIM_STAGES,
};

enum sim_deed_kind {
	SIM_DEED_NONE,
	SIM_DEED_SAY,     /* says text instead of its reply */
	SIM_DEED_BYE,     /* says text and closes */
	SIM_DEED_GARBAGE, /* says text, which is no reply */
	SIM_DEED_FIN,     /* closes without a word */
	SIM_DEED_RST,     /* resets */
	SIM_DEED_SILENCE, /* never speaks or reads again */
	SIM_DEED_EXTRA,   /* its reply and one more, text */
	SIM_DEED_SPLIT,   /* its reply octet by octet */
	SIM_DEED_SLOW,    /* its reply after_us later */
	SIM_DEED_LATER,   /* its reply, and after_us later text and close */
	SIM_DEED_ENDLESS, /* a reply that never ends */
	SIM_DEED_LINES,   /* a reply of many lines */
	SIM_DEED_STALL,   /* does not read for after_us */
	SIM_DEED_LESS,    /* EHLO: offers PIPELINING and SIZE, and no more */
	SIM_DEED_TAMPER,  /* its reply, in a record with a wrong octet */
};

struct sim_deed {
	enum sim_deed_kind kind;
	enum sim_stage stage;
	const char *text; /* static; a whole reply, CRLF included */
	int64_t after_us;
};

enum sim_up {
	SIM_UP,
	SIM_UP_REFUSING, /* its port is closed */
	SIM_UP_DROPPING, /* SYNs vanish */
	SIM_UP_NO_ROUTE,
};

enum sim_offer {
	SIM_OFFER_PIPELINING = 1 << 0,
	SIM_OFFER_SIZE = 1 << 1,
	SIM_OFFER_8BITMIME = 1 << 2,
	SIM_OFFER_CHUNKING = 1 << 3,
	SIM_OFFER_SMTPUTF8 = 1 << 4,
	SIM_OFFER_DSN = 1 << 5,
	SIM_OFFER_DANGEROUS = 1 << 6, /* XCLIENT, XFORWARD, ETRN, STARTTLS */
	SIM_OFFER_ALL = (1 << 7) - 1,
};

struct sim_backend_config {
	unsigned index;
	union sim_addr addr;
	unsigned offers; /* enum sim_offer; 0: HELO only */
	unsigned slots;  /* hidden limit; 0: none */
	/*
	 * Beyond it: BYE, FIN, SILENCE, RST (its port is closed), or SLOW: the
	 * greeting comes when a slot is free, first come first served.
	 */
	enum sim_deed_kind full;
	const char *full_text; /* of BYE; NULL: that it is busy */
	unsigned max_sessions; /* what weir was told */
	uint32_t delay_us_max; /* of each reply */
	uint32_t late_us;      /* a greeting after more than this is late */
	bool header;           /* weir is to put a trace field into mail */
	unsigned proxy;        /* a PROXY header of this version must come, and
				  stands in brackets in front of the last */
	enum sim_secrecy secrecy;
	bool old_tls;     /* 1.2 */
	bool wrong_paper; /* its certificate is nobody's */
	bool no_clear;    /* weir was told: no mail to it in the clear */
	bool no_strange;  /* weir was told: none if its certificate is wrong */
	/* What it offers behind XCLIENT; NULL: that it does not. */
	const char *xclient;
	bool open_house; /* credentials of nobody's are refused, and no fault */
	bool introduces; /* weir was told to say XCLIENT before mail */
	const char *auth;   /* the mechanisms that it offers; NULL: none */
	bool auth_in_clear; /* even in the clear */
	bool closed;        /* no mail to anybody's domain under .invalid */
	bool guarded; /* weir was told: no mail of strangers unless closed */
	/* Per mille. */
	unsigned auth_refuses; /* of dialogues: 535 */
	unsigned moody;        /* of connections: refused as if it were full */
	unsigned deed_chance;  /* of connections */
	unsigned fickle;       /* of connections: refuses what was taken before
				 of the same message, or offers less */
	unsigned eod_busy;     /* of ends of data: 452 4.3.1 */
	/* Scripted instead of random: the nth connection does deeds[n]. */
	const struct sim_deed *deeds;
	unsigned deed_count;
};

struct sim_backend;

struct sim_backend *sim_backend_new(struct sim *sim, struct check *check,
				    const struct sim_backend_config *config);
void sim_backend_free(struct sim_backend **bp);

/* How its slots were used: they only grow. */
struct sim_backend_use {
	uint64_t ours_us;   /* slots that weirs had, times microseconds */
	uint64_t usable_us; /* slots not held by others, likewise */
	unsigned asked;     /* connections that asked for one */
	unsigned refused;   /* of those, for want of a slot */
	unsigned greeted;   /* got one */
	unsigned late;      /* of those, late_us or more after they came */
	unsigned given_up;  /* left before they got one */
};
void sim_backend_use(struct sim_backend *backend, struct sim_backend_use *use);

/* The hidden limit is another from now on; who is in stays in. */
void sim_backend_slots(struct sim_backend *backend, unsigned slots);
/* Somebody else takes a slot, if one is free; and gives it back. */
bool sim_backend_take(struct sim_backend *backend);
void sim_backend_give(struct sim_backend *backend);
/* Short of resources until then: 452 4.3.1 to MAIL. */
void sim_backend_strain(struct sim_backend *backend, int64_t until_us);

/* What it took last, trace field and end of data included; len octets. */
const char *sim_backend_last(const struct sim_backend *backend, size_t *len);

/* From now on; a restart cuts all its connections. */
void sim_backend_up(struct sim_backend *backend, enum sim_up up);
void sim_backend_restart(struct sim_backend *backend);
/* Whether it takes mail for anybody under .invalid, from now on. */
void sim_backend_closed(struct sim_backend *backend, bool closed);
/* No more deeds, no hidden limit, up. */
void sim_backend_heal(struct sim_backend *backend);
void sim_backend_deeds(struct sim_backend *backend,
		       const struct sim_deed *deeds, unsigned count);

/* Connections seen, and messages accepted so far. */
unsigned sim_backend_seen(const struct sim_backend *backend);
unsigned sim_backend_open(const struct sim_backend *backend);
unsigned sim_backend_accepted(const struct sim_backend *backend);

#endif
