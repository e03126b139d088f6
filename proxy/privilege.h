#ifndef PROXY_PRIVILEGE_H
#define PROXY_PRIVILEGE_H

#include <stdbool.h>

/*
 * From root to the user of the configuration, once the ports are open.
 *
 * All is given up but CAP_NET_ADMIN, and that only if some backend is to be
 * connected from its clients' own addresses (capabilities(7), ip(7):
 * IP_TRANSPARENT).  Not pure: it changes the process.
 *
 * Capabilities are each thread's own, and changing the user takes them from
 * all threads: so that one is asked for before any thread is made, and every
 * thread that connects narrows its own afterwards.
 */

struct config;
struct config_weir;

/* Does some backend want it? */
bool privilege_is_wanted(const struct config *config);

/* Does this thread have CAP_NET_ADMIN?  Or would it, if the user changed? */
bool privilege_is_here(void);

/* Before any other thread: what follows is to leave CAP_NET_ADMIN. */
void privilege_keep(void);

/*
 * Become the user and group of the configuration, all threads.  False: stderr
 * was told why.
 */
bool privilege_drop(const struct config_weir *weir);

/*
 * After that, in each thread: it has CAP_NET_ADMIN again, and nothing else.
 * Root stays root.  False: it could not be had (stderr was told).
 */
bool privilege_narrow(void);

/* The control socket was made by root, and belongs to who runs weir. */
void privilege_give_socket(const struct config_weir *weir);

#endif
