#include "proxy/ring.h"

#include <assert.h>

uint32_t ring_slot_index(const struct io *io, const struct ring_slot *slot)
{
	assert(slot >= io->slots);
	assert(slot < io->slots + io->sockets_max);
	return (uint32_t)(slot - io->slots);
}

io_handle ring_slot_handle(const struct io *io, const struct ring_slot *slot)
{
	return (uint64_t)slot->generation << RING_GENERATION_SHIFT |
	       ring_slot_index(io, slot);
}

/* A handle that is dead, or never was, is the caller's mistake. */
struct ring_slot *ring_slot_of(const struct io *io, io_handle handle)
{
	uint32_t index = (uint32_t)handle;

	assert(index < io->sockets_max);
	struct ring_slot *slot = &io->slots[index];

	assert(slot->generation == handle >> RING_GENERATION_SHIFT);
	assert(slot->fd >= 0);
	return slot;
}

void ring_list_append(struct io *io, struct ring_list *list,
		      struct ring_slot *slot)
{
	uint32_t index = ring_slot_index(io, slot);

	assert(slot->on == NULL);
	slot->on = list;
	slot->prev = list->last;
	slot->next = RING_NOBODY;
	if (list->last != RING_NOBODY)
		io->slots[list->last].next = index;
	else
		list->first = index;
	list->last = index;
}

void ring_list_remove(struct io *io, struct ring_slot *slot)
{
	struct ring_list *list = slot->on;

	assert(list != NULL);
	if (slot->prev != RING_NOBODY)
		io->slots[slot->prev].next = slot->next;
	else
		list->first = slot->next;
	if (slot->next != RING_NOBODY)
		io->slots[slot->next].prev = slot->prev;
	else
		list->last = slot->prev;
	slot->on = NULL;
}

struct ring_slot *ring_list_first(struct io *io, const struct ring_list *list)
{
	return list->first == RING_NOBODY ? NULL : &io->slots[list->first];
}

/* The slot used last is used next: it is in the cache.  NULL: all are used. */
struct ring_slot *ring_slot_take(struct io *io, int fd, void *owner)
{
	struct ring_slot *slot = NULL;

	assert(fd >= 0);
	if (io->unused.last != RING_NOBODY) {
		slot = &io->slots[io->unused.last];
		ring_list_remove(io, slot);
	} else if (io->slots_fresh < io->sockets_max) {
		slot = &io->slots[io->slots_fresh++];
		slot->generation = 1;
	} else {
		return NULL;
	}
	assert(slot->in_flight == 0);
	assert(slot->head == NULL);
	slot->owner = owner;
	slot->fd = fd;
	return slot;
}

/* The handle is dead from here.  Its place on the todo list may outlive it. */
void ring_slot_free(struct io *io, struct ring_slot *slot)
{
	uint32_t generation = slot->generation % RING_GENERATION_MAX + 1;
	bool queued = slot->queued;
	uint32_t todo_next = slot->todo_next;

	assert(slot->in_flight == 0);
	assert(slot->head == NULL);
	assert(slot->on == NULL);
	*slot = (struct ring_slot){ .generation = generation,
				    .queued = queued,
				    .todo_next = todo_next,
				    .fd = -1 };
	ring_list_append(io, &io->unused, slot);
}

/* Note what the slot wants; flush() makes entries of it. */
void ring_slot_want(struct io *io, struct ring_slot *slot, enum ring_want what)
{
	uint32_t index = ring_slot_index(io, slot);

	slot->wants |= (uint8_t)what;
	if (slot->queued)
		return;
	slot->queued = true;
	slot->todo_next = RING_NOBODY;
	if (io->todo_last != RING_NOBODY)
		io->slots[io->todo_last].todo_next = index;
	else
		io->todo_first = index;
	io->todo_last = index;
}
