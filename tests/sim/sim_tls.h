#ifndef SIM_TLS_H
#define SIM_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/tls_context.h"
#include "tests/sim/sim_net.h"

/*
 * TLS as weir's peers speak it: OpenSSL over memory, and nothing of weir's
 * own, for these bear witness against it.  sim_wire.h puts one on an end.
 *
 * A seed decides all, here as well: OpenSSL draws its random octets from a
 * stream of the seed's, and whoever asks the C library for the time, as
 * OpenSSL does for tickets, is told the world's.
 */

struct sim_tls;

/* How the octets of a connection are kept from others' eyes. */
enum sim_secrecy {
	SIM_SECRECY_NONE,
	SIM_SECRECY_STARTTLS, /* is asked for, or is offered */
	SIM_SECRECY_IMPLICIT, /* TLS from the first octet */
};

enum sim_tls_state {
	SIM_TLS_SHAKING,
	SIM_TLS_OPEN,
	SIM_TLS_CLOSED, /* the other side's close_notify has come */
	SIM_TLS_FAILED,
};

enum { SIM_TLS_DRAWERS = 256 };

struct sim_tls_wish {
	bool server;
	bool wrong; /* a server: with a certificate that nobody vouches for */
	bool old;   /* TLS 1.2, and no other */
	bool card;  /* a client: has a certificate to show */
	/* A client: whom it asks for; NULL: nobody.  Static. */
	const char *name;
	/* A client: where it keeps its session, and looks for one; fewer than
	 * SIM_TLS_DRAWERS; 0: nowhere. */
	unsigned drawer;
	size_t record; /* octets in a record at most; 0: as many as may be */
};

/*
 * Into a world: its time from now on, and octets of this seed; the drawers
 * are empty.  Before anything else here.  Leave before the world ends.
 */
void sim_tls_enter(struct sim *sim, uint64_t seed);
void sim_tls_leave(void);

/* Certificates and keys in PEM, always the same. */
enum sim_tls_paper {
	SIM_TLS_MX,     /* mx.test: weir's own to clients */
	SIM_TLS_FARM,   /* of backends: b.farm.test, 10.0.0.1 and so on */
	SIM_TLS_WRONG,  /* somebody.test, signed by nobody else */
	SIM_TLS_CLIENT, /* c.client.test, which clients show */
	SIM_TLS_PROXY,  /* proxy.test: what weir shows to backends */
	SIM_TLS_PAPERS,
};
const struct tls_pair *sim_tls_paper(enum sim_tls_paper paper);
/* Of the CA that has signed all of these but SIM_TLS_WRONG. */
struct tls_span sim_tls_ca(void);
/* SHA-256 of a paper's SubjectPublicKeyInfo, in hexadecimal. */
const char *sim_tls_pin(enum sim_tls_paper paper);

struct sim_tls *sim_tls_new(const struct sim_tls_wish *wish);
void sim_tls_free(struct sim_tls **tp);

/* Octets from the network. */
void sim_tls_take(struct sim_tls *tls, const void *data, size_t len);
/* Go on with the handshake, or read; 0: there is nothing (more) to read. */
size_t sim_tls_read(struct sim_tls *tls, void *buf, size_t len);
/* Say this; OPEN or CLOSED. */
void sim_tls_write(struct sim_tls *tls, const void *data, size_t len);
/* Octets for the network; 0: there are none (any more). */
size_t sim_tls_give(struct sim_tls *tls, void *buf, size_t len);

enum sim_tls_state sim_tls_state(const struct sim_tls *tls);
/* "TLSv1.3 resumed NAME-ASKED-FOR", or why it failed; lives with it. */
const char *sim_tls_about(struct sim_tls *tls);
/* It has been resumed; the other side has shown a certificate. */
bool sim_tls_is_resumed(const struct sim_tls *tls);
bool sim_tls_is_carded(const struct sim_tls *tls);

void sim_tls_record(struct sim_tls *tls, size_t octets);
/* Say close_notify; nothing behind it. */
void sim_tls_notify(struct sim_tls *tls);
/* Ask for new keys on both sides, if that is 1.3; for a new handshake, 1.2. */
void sim_tls_rekey(struct sim_tls *tls);
void sim_tls_renegotiate(struct sim_tls *tls);

#endif
