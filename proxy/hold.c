#include "proxy/hold.h"

#include <assert.h>
#include <string.h>

/*
 * The link is inside the block, so that blocks which nobody took yet are
 * never touched: the kernel has given no page for them.
 */
enum { BLOCK_OCTETS = HOLD_BLOCK_SIZE - sizeof(struct hold_block *) };

struct hold_block {
	struct hold_block *next;
	uint8_t octets[BLOCK_OCTETS];
};

static_assert(sizeof(struct hold_block) == HOLD_BLOCK_SIZE,
	      "blocks lie side by side");
static_assert(HOLD_BLOCK_SIZE % 64 == 0, "an area of blocks stays aligned");

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* All blocks of a text but the last are full. */
static size_t blocks_of(size_t len)
{
	return (len + BLOCK_OCTETS - 1) / BLOCK_OCTETS;
}

size_t hold_area_size(uint32_t blocks)
{
	return (size_t)blocks * HOLD_BLOCK_SIZE;
}

void hold_area_init(struct hold_area *area, void *memory, uint32_t blocks)
{
	assert(memory != NULL || blocks == 0);
	assert((uintptr_t)memory % 64 == 0);

	*area = (struct hold_area){
		.memory = memory,
		.blocks = blocks,
	};
}

/* Octets behind the text's end in the block that it has already. */
static size_t last_room(const struct hold_text *text)
{
	return blocks_of(text->len) * BLOCK_OCTETS - text->len;
}

size_t hold_room(const struct hold_area *area, const struct hold_text *text)
{
	assert(area->taken <= area->blocks);
	return last_room(text) +
	       (size_t)(area->blocks - area->taken) * BLOCK_OCTETS;
}

/* Those that were used before come first: their pages are there. */
static struct hold_block *take(struct hold_area *area)
{
	struct hold_block *block = area->free;

	assert(area->taken < area->blocks);
	if (block != NULL) {
		area->free = block->next;
	} else {
		assert(area->used < area->blocks);
		uint8_t *at = area->memory +
			      (size_t)area->used * HOLD_BLOCK_SIZE;

		block = (struct hold_block *)(void *)at;
		area->used++;
	}
	area->taken++;
	if (area->taken > area->taken_peak)
		area->taken_peak = area->taken;
	block->next = NULL;
	return block;
}

static void grow(struct hold_area *area, struct hold_text *text)
{
	struct hold_block *block = take(area);

	if (text->last == NULL)
		text->first = block;
	else
		text->last->next = block;
	text->last = block;
}

bool hold_append(struct hold_area *area, struct hold_text *text,
		 const void *octets, size_t len)
{
	const uint8_t *from = octets;

	assert(octets != NULL || len == 0);
	assert((text->len == 0) == (text->last == NULL));
	if (len > hold_room(area, text))
		return false;

	while (len > 0) {
		size_t room = last_room(text);

		if (room == 0) {
			grow(area, text);
			room = BLOCK_OCTETS;
		}
		size_t part = min_size(room, len);

		memcpy(text->last->octets + (BLOCK_OCTETS - room), from, part);
		text->len += part;
		from += part;
		len -= part;
	}
	return true;
}

void hold_set(struct hold_text *text, size_t at, uint8_t octet)
{
	assert(at < text->len);
	size_t nth = at / BLOCK_OCTETS;
	struct hold_block *block = text->first;

	if (nth + 1 == blocks_of(text->len))
		block = text->last;
	else
		for (size_t i = 0; i < nth; i++)
			block = block->next;
	block->octets[at % BLOCK_OCTETS] = octet;
}

/*
 * A place at the end of a block stays there until there is a next one: the
 * text may have ended here when the place came.
 */
static struct hold_place settle(const struct hold_text *text,
				struct hold_place place)
{
	if (place.block == NULL) {
		assert(place.done == 0);
		place.block = text->first;
		place.at = 0;
	} else if (place.at == BLOCK_OCTETS && place.block->next != NULL) {
		place.block = place.block->next;
		place.at = 0;
	}
	return place;
}

size_t hold_peek(const struct hold_text *text, const struct hold_place *place,
		 const uint8_t **octets)
{
	assert(place->done <= text->len);
	*octets = NULL;
	if (place->done == text->len)
		return 0;

	struct hold_place here = settle(text, *place);

	assert(here.block != NULL);
	assert(here.at < BLOCK_OCTETS);
	*octets = here.block->octets + here.at;
	return min_size(BLOCK_OCTETS - here.at, text->len - here.done);
}

void hold_skip(const struct hold_text *text, struct hold_place *place,
	       size_t len)
{
	assert(place->done <= text->len);
	assert(len <= text->len - place->done);

	while (len > 0) {
		struct hold_place here = settle(text, *place);
		size_t part = min_size(BLOCK_OCTETS - here.at, len);

		assert(part > 0);
		here.at += part;
		here.done += part;
		len -= part;
		*place = here;
	}
}

void hold_drop(struct hold_area *area, struct hold_text *text)
{
	size_t count = blocks_of(text->len);

	assert((count == 0) == (text->last == NULL));
	assert(count <= area->taken);
	if (count > 0) {
		text->last->next = area->free;
		area->free = text->first;
		area->taken -= (uint32_t)count;
	}
	*text = (struct hold_text){ 0 };
}
