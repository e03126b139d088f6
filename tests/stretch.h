#ifndef TESTS_STRETCH_H
#define TESTS_STRETCH_H

#include <stddef.h>

/*
 * What a session of either tool has to say, one piece behind the other: a
 * buffer that grows.  A tool without memory ends.
 *
 * Room for len octets behind the used ones of buf, which has *cap in all and
 * may be NULL: returns where they go.  *buf is the caller's, to free().
 */
char *stretch(char **buf, size_t *cap, size_t used, size_t len);

#endif
