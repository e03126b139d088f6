#include "tests/stretch.h"

#include <assert.h>
#include <err.h>
#include <stdlib.h>

char *stretch(char **buf, size_t *cap, size_t used, size_t len)
{
	assert(used <= *cap);
	if (len > *cap - used) {
		size_t more = (used + len) * 2;
		char *grown = realloc(*buf, more);

		if (grown == NULL)
			err(1, "out of memory");
		*buf = grown;
		*cap = more;
	}
	return *buf + used;
}
