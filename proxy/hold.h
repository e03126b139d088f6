#ifndef PROXY_HOLD_H
#define PROXY_HOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Text held in memory: bodies and envelopes of sessions that give their slot
 * back while a client is slow.  Made of blocks out of one area that the caller
 * gives; a block that was never used costs no memory.
 *
 * Pure: no I/O, no allocation.  One thread.
 */

enum { HOLD_BLOCK_SIZE = 4096 };

struct hold_block;

/* The area, cut into blocks. */
struct hold_area {
	uint8_t *memory;
	uint32_t blocks; /* in all */
	uint32_t used;   /* never used ones begin here */
	uint32_t taken;  /* now in texts */
	uint32_t taken_peak;
	struct hold_block *free;
};

/* One text; all zero: empty. */
struct hold_text {
	struct hold_block *first, *last;
	size_t len;
};

/* Where a reader stands in a text; all zero: at its start. */
struct hold_place {
	const struct hold_block *block;
	size_t at;   /* in the block */
	size_t done; /* octets read in all */
};

/* Octets that `blocks` blocks need, aligned to 64. */
size_t hold_area_size(uint32_t blocks);
void hold_area_init(struct hold_area *area, void *memory, uint32_t blocks);

/* Octets that could be appended to this text now. */
size_t hold_room(const struct hold_area *area, const struct hold_text *text);

/* Append: all of it, or false and nothing. */
bool hold_append(struct hold_area *area, struct hold_text *text,
		 const void *octets, size_t len);

/*
 * Change one octet that was appended before; at < text->len.  Walks over the
 * blocks before it: for envelopes, of one block or a few.
 */
void hold_set(struct hold_text *text, size_t at, uint8_t octet);

/*
 * The next octets, as many as lie together: *octets points into the text and
 * is valid as long as that is; returns how many, 0 at the end.  The place
 * moves on by hold_skip().
 */
size_t hold_peek(const struct hold_text *text, const struct hold_place *place,
		 const uint8_t **octets);
void hold_skip(const struct hold_text *text, struct hold_place *place,
	       size_t len);

/* Give all back; the text is empty again. */
void hold_drop(struct hold_area *area, struct hold_text *text);

#endif
