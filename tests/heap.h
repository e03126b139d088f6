#ifndef TESTS_HEAP_H
#define TESTS_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A binary heap of deadlines for weir-sink and weir-load.
 *
 * Intrusive: the node stands inside the object that it wakes, and the heap
 * owns only its array of pointers.  A node must leave the heap before its
 * object is freed.
 */

struct heap_node {
	int64_t at_ms; /* the deadline, on the caller's clock */
	size_t index;  /* 1-based place in the heap; 0: not in it */
};

struct heap {
	struct heap_node **nodes; /* nodes[0] is unused; owned */
	size_t len;
	size_t cap;
};

/* Put the node in, or move it if it is in.  Exits if memory runs out. */
void heap_set(struct heap *h, struct heap_node *node, int64_t at_ms);

/* Take the node out; nothing happens if it is not in. */
void heap_remove(struct heap *h, struct heap_node *node);

/* The earliest node, or NULL. */
struct heap_node *heap_first(const struct heap *h);

/* Forget every node and free the array. */
void heap_free(struct heap *h);

#endif
