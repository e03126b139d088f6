#ifndef PROXY_CTL_H
#define PROXY_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * weirctl: sends one command to weir's control socket and prints the answer;
 * `status` asks for several and draws a screen.
 *
 * It knows no command but that one: weir reads them, and says what is wrong.
 * An answer ends with an empty line.
 *
 *	ctl.c         the socket, any command, arguments
 *	ctl_status.c  `status`
 *	advice.c      what status says in words
 */

/* Exit statuses. */
enum {
	CTL_GOOD = 0,
	CTL_TROUBLE = 1, /* no connection, wrong usage */
	CTL_REFUSED = 2, /* weir said no */
};

struct ctl_answer {
	char *text; /* NUL at its end; without the last empty line */
	size_t len;
	size_t size;
};

/*
 * Send lines and read so many answers; between two is an empty line.  False:
 * stderr was told why.
 */
bool ctl_ask(const char *path, const char *command, struct ctl_answer *answer,
	     unsigned count);

/* Does it say no? */
bool ctl_is_error(const char *text);

/* What rates are made of. */
struct ctl_totals {
	uint64_t connections, messages;
};

/*
 * Draw the screen once.  *last: the figures of seconds ago (0: there are
 * none); renewed.  Returns an exit status.
 */
int ctl_status(const char *path, struct ctl_answer *answer,
	       struct ctl_totals *last, double seconds);

#endif
