#include "tests/sim/sim_heap.h"

#include <stddef.h>

#include "tests/sim/sim_net.h"

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

static volatile struct {
	bool watching;
	uint64_t count;
} heap;

void sim_heap_watch(bool watch)
{
	heap.watching = watch;
}

uint64_t sim_heap_count(void)
{
	return heap.count;
}

static void note(void)
{
	heap.count += heap.watching && !sim_allocates();
}

void *__wrap_malloc(size_t size)
{
	note();
	return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	note();
	return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	note();
	return __real_realloc(old, size);
}

/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
