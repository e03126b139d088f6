#ifndef PROXY_INSPECT_H
#define PROXY_INSPECT_H

#include <stdint.h>

/*
 * What a start needs beside a file without mistakes: users, directories, and
 * backends that make sense on this host.
 *
 * `weir -t` and every start ask the same, so that what the one finds good the
 * other can use.  Not pure: it looks at the system, but changes nothing.  For
 * the main thread only.
 */

struct config;
struct config_report;
struct tls_store;

/*
 * Both append lines, each with `path` (the configuration's) in front: errors
 * on which a start would fail, and warnings of what is strange and works.
 * What another user than the one who asks may or may not do is not guessed
 * at.
 */

/* The user, the group, the log and the control socket. */
void inspect_ground(const struct config *config, const char *path,
		    struct config_report *errors,
		    struct config_report *warnings);

/*
 * What TLS needs: all files are read, into the store; a start has them then.
 * now_s is seconds since 1970 UTC.
 */
void inspect_tls(const struct config *config, const char *path,
		 struct tls_store *tls, int64_t now_s,
		 struct config_report *errors, struct config_report *warnings);

/* The backends; also before a reload. */
void inspect_farm(const struct config *config, const char *path,
		  struct config_report *errors, struct config_report *warnings);

#endif
