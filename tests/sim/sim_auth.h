#ifndef SIM_AUTH_H
#define SIM_AUTH_H

#include <stdbool.h>
#include <stddef.h>

/*
 * What AUTH dialogues look like (RFC 4954, 4616, 2195, 5802, 7628), by which
 * clients and backends of the simulation speak them.  Nobody computes
 * anything: weir is not to look into them, and these have a mark of whose
 * they are ("c12.m0") and a word that must stand nowhere else.
 *
 * Nothing here has a state.
 */

enum sim_auth_way {
	SIM_AUTH_NONE,
	SIM_AUTH_PLAIN, /* with an initial response */
	SIM_AUTH_PLAIN_LATER,
	SIM_AUTH_LOGIN,
	SIM_AUTH_XOAUTH2,
	SIM_AUTH_OAUTHBEARER,
	SIM_AUTH_CRAM,
	SIM_AUTH_SCRAM,
	SIM_AUTH_SCRAM_256,
	SIM_AUTH_WAYS,
};

enum { SIM_AUTH_LINE_MAX = 400 };

/* All of them, as EHLO offers them. */
#define SIM_AUTH_ALL                                                           \
	"PLAIN LOGIN XOAUTH2 OAUTHBEARER CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256"

/* A response that is nobody's, and leaks as any. */
#define SIM_AUTH_NOBODY "AGEuU0VDUkVU"

/* "SCRAM-SHA-1"; never NULL. */
const char *sim_auth_name(enum sim_auth_way way);

/*
 * The client's line of that number, 0 being "AUTH ...", without CRLF.  False:
 * it has no more to say.
 */
bool sim_auth_say(enum sim_auth_way way, unsigned client, unsigned number,
		  char line[SIM_AUTH_LINE_MAX]);

/* How often a server says 334 before its verdict; refused: and that is no. */
unsigned sim_auth_challenges(enum sim_auth_way way, bool refused);
/* What it says behind the nth "334 ", from 0; static. */
const char *sim_auth_challenge(enum sim_auth_way way, unsigned number);

/* The way of an AUTH line, that line without its verb; NONE: unknown. */
enum sim_auth_way sim_auth_way_of(const char *arg);

/*
 * The client whose a line of a dialogue is; false: the line has nobody's mark
 * in it.  Some have none rightly, see sim_auth_is_marked().
 */
bool sim_auth_client(const char *line, unsigned *client);
bool sim_auth_is_marked(enum sim_auth_way way, unsigned number);

/* Does the word that must stand nowhere stand in it, in whatever dress? */
bool sim_auth_leaks(const char *text, size_t len);

#endif
