#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/*
 * Free buffers are poisoned for AddressSanitizer, and octets that the kernel
 * wrote are made known to valgrind, which cannot see them come.
 */
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(addr, size)   ((void)(addr), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(addr, size) ((void)(addr), (void)(size))
#endif
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_DEFINED(addr, size) ((void)(addr), (void)(size))
#endif

static const uint32_t sizes[IO_POOLS] = {
	[IO_SMALL] = IO_SMALL_SIZE,
	[IO_BIG] = IO_BIG_SIZE,
	[IO_RESERVE] = IO_SMALL_SIZE,
	[IO_REPLY] = IO_SMALL_SIZE,
};

void *ring_map(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static uint8_t *memory_of(const struct ring_pool *pool,
			  const struct io_buf *buf)
{
	size_t index = (size_t)(buf - pool->bufs);

	assert(index < pool->total);
	return pool->memory + index * pool->size;
}

/* NULL when there is none.  A free buffer's data is NULL. */
static struct io_buf *pop(struct ring_pool *pool)
{
	struct io_buf *buf = pool->free;

	if (buf != NULL) {
		pool->free = buf->next;
	} else if (pool->fresh < pool->total) {
		buf = &pool->bufs[pool->fresh++];
		buf->pool = pool->pool;
	} else {
		assert(pool->free_count == 0);
		return NULL;
	}
	assert(buf->data == NULL);
	assert(pool->free_count > 0);
	pool->free_count--;
	buf->next = NULL;
	buf->len = 0;
	buf->room = pool->size;
	buf->data = memory_of(pool, buf);
	return buf;
}

void ring_pool_put(struct ring_pool *pool, struct io_buf *buf)
{
	assert(buf->data != NULL); /* or it is put back twice */
	ASAN_POISON_MEMORY_REGION(memory_of(pool, buf), pool->size);
	buf->data = NULL;
	buf->next = pool->free;
	pool->free = buf;
	pool->free_count++;
	assert(pool->free_count <= pool->total);
}

void ring_pool_top_up(struct ring_pool *pool)
{
	int mask = pool->entries - 1;
	int added = 0;

	while (pool->given < pool->given_max &&
	       pool->free_count > pool->reserve &&
	       pool->given_at[pool->place] == NULL) {
		struct io_buf *buf = pop(pool);

		assert(buf != NULL);
		pool->given_at[pool->place] = buf;
		io_uring_buf_ring_add(pool->ring, buf->data, pool->size,
				      pool->place, mask, added);
		pool->place = (uint16_t)((pool->place + 1) & mask);
		pool->given++;
		added++;
	}
	if (added > 0)
		io_uring_buf_ring_advance(pool->ring, added);
}

/*
 * The kernel shortens the entry itself when it receives less than a buffer
 * as the last part of a credit, so the entry says it, not the pool's size.
 */
uint32_t ring_pool_room(const struct ring_pool *pool, uint16_t place)
{
	assert(place < pool->entries);
	uint32_t room = IO_URING_READ_ONCE(pool->ring->bufs[place].len);

	assert(room > 0);
	assert(room <= pool->size);
	return room;
}

struct io_buf *ring_pool_take(struct ring_pool *pool, uint16_t place,
			      uint32_t len)
{
	assert(place < pool->entries);
	struct io_buf *buf = pool->given_at[place];

	assert(buf != NULL);
	assert(len <= pool->size);
	assert(pool->given > 0);
	pool->given_at[place] = NULL;
	pool->given--;
	buf->len = len;
	buf->room = pool->size - len;
	ASAN_UNPOISON_MEMORY_REGION(buf->data, pool->size);
	(void)VALGRIND_MAKE_MEM_DEFINED(buf->data, len);
	return buf;
}

static uint16_t entries_for(unsigned count)
{
	uint16_t entries = 1;

	assert(count <= 1U << 14);
	while (entries < count)
		entries = (uint16_t)(entries * 2);
	return entries;
}

int ring_pool_open(struct ring_pool *pool, struct io_uring *ring,
		   enum io_pool which, unsigned total, unsigned given_max)
{
	assert(total >= 16);
	assert(given_max > 0);
	pool->pool = which;
	pool->size = sizes[which];
	pool->total = total;
	pool->free_count = total;
	pool->reserve = total / 8;
	/* Half is for us to speak with: each of a storm of connections wants
	 * a buffer for its greeting before it needs one to be heard. */
	pool->given_max = total / 2;
	if (pool->given_max > given_max)
		pool->given_max = given_max;
	pool->entries = entries_for(pool->given_max);
	pool->starved.first = RING_NOBODY;
	pool->starved.last = RING_NOBODY;
	pool->memory_size = (size_t)total * pool->size;
	pool->ring_size = pool->entries * sizeof(struct io_uring_buf);

	pool->bufs = calloc(total, sizeof(*pool->bufs));
	pool->given_at = calloc(pool->entries, sizeof(struct io_buf *));
	pool->memory = ring_map(pool->memory_size);
	pool->ring = ring_map(pool->ring_size);
	if (pool->bufs == NULL || pool->given_at == NULL ||
	    pool->memory == NULL || pool->ring == NULL)
		return -ENOMEM;
	ASAN_POISON_MEMORY_REGION(pool->memory, pool->memory_size);

	struct io_uring_buf_reg reg = {
		.ring_addr = (uint64_t)(uintptr_t)pool->ring,
		.ring_entries = pool->entries,
		.bgid = (uint16_t)which,
	};
	io_uring_buf_ring_init(pool->ring);
	return io_uring_register_buf_ring(ring, &reg, 0);
}

void ring_pool_close(struct ring_pool *pool, struct io_uring *ring)
{
	/* Fails when it was never registered: then nothing is to do. */
	if (pool->ring != NULL)
		(void)io_uring_unregister_buf_ring(ring, (int)pool->pool);
	if (pool->ring != NULL)
		(void)munmap(pool->ring, pool->ring_size);
	if (pool->memory != NULL) {
		ASAN_UNPOISON_MEMORY_REGION(pool->memory, pool->memory_size);
		(void)munmap(pool->memory, pool->memory_size);
	}
	free(pool->given_at);
	free(pool->bufs);
	*pool = (struct ring_pool){ 0 };
}

struct io_buf *io_buf_get(struct io *io, enum io_pool pool)
{
	assert(pool < IO_POOLS);
	struct io_buf *buf = pop(&io->pools[pool]);

	if (buf != NULL)
		ASAN_UNPOISON_MEMORY_REGION(buf->data, buf->room);
	return buf;
}

void io_buf_put(struct io *io, struct io_buf *buf)
{
	assert(buf != NULL);
	assert(buf->pool < IO_POOLS);
	ring_pool_put(&io->pools[buf->pool], buf);
}

unsigned io_buf_free(const struct io *io, enum io_pool pool)
{
	assert(pool < IO_POOLS);
	const struct ring_pool *p = &io->pools[pool];

	return (unsigned)((uint64_t)p->free_count * 8 / p->total);
}
