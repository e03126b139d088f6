#ifndef SIM_TALK_H
#define SIM_TALK_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/sim_net.h"

/*
 * A client that follows a script to the letter and reads exactly what the
 * script says.  One line, one step:
 *
 *	later N      (the first line) come N milliseconds later
 *	> TEXT       say TEXT and CRLF
 *	>> TEXT      say TEXT as it is; \r \n \0 \\ and \xHH are octets
 *	many N TEXT  say TEXT N times, as it is
 *	body N       say N octets of lines
 *	auth WAY N   say the Nth line, from 0, of an AUTH dialogue; WAY: plain,
 *		     plain-later, login, xoauth2, oauthbearer, cram, scram,
 *		     scram-256
 *	< TEXT       read a whole reply whose last line begins with TEXT
 *	reads N TEXT read N such replies
 *	has TEXT     the last reply has TEXT in it
 *	not TEXT     the last reply has no TEXT in it
 *	wait N       for N milliseconds
 *	mark         remember the time
 *	soon N       N milliseconds at most have passed since the mark
 *	after N      N milliseconds at least have passed since the mark
 *	eof          read the end of the stream, and nothing before it; of
 *		     TLS, close_notify
 *	gone         the connection ends, whatever comes before
 *	slow N       from now on say an octet in N milliseconds; in TLS, of
 *		     records, and go on meanwhile
 *	deaf         read no more
 *	fin rst close
 *
 * Of TLS, which what is said and read is in from then on:
 *
 *	hello WORDS  begin, and wait for nothing; WORDS: "1.2": no newer; "card":
 *		     show a certificate if asked; "mx2": ask for mx2.test;
 *		     "drawer N": keep the session in that drawer, and resume
 *		     what is in it; "records N": of N octets at most
 *	secure WORDS begin, unless it has begun, and wait until it stands
 *	insecure     wait until the handshake has failed, or the connection ended
 *	failed       wait until TLS has failed, or the connection ended
 *	agreed TEXT  TEXT is in "TLSv1.3 resumed", or the like
 *	records N    from now on, N octets in a record at most
 *	raw TEXT     say TEXT as it is, past TLS; escapes as above
 *	hold, go     gather octets; and let them go in one piece
 *	tamper       what is said next has a wrong octet in its records
 *	tear         what is said next lacks its last octet
 *	rekey        ask for other keys (TLS 1.3)
 *	renegotiate  begin another handshake (TLS 1.2)
 *	notify       close_notify
 *
 *	! WORDS      tell the scene: WORDS, as many as it knows
 */

struct sim_talk;

typedef void sim_talk_fn(void *owner, const char *words);

struct sim_talk *sim_talk_new(struct sim *sim, const char *script,
			      const union sim_addr *from,
			      const union sim_addr *to, sim_talk_fn *fn,
			      void *owner);
void sim_talk_free(struct sim_talk **tp);

bool sim_talk_done(const struct sim_talk *talk);
/* The step it stands at, for a report. */
const char *sim_talk_step(const struct sim_talk *talk);

#endif
