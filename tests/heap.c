#include "tests/heap.h"

#include <assert.h>
#include <err.h>
#include <stdlib.h>

static void place(struct heap *h, struct heap_node *node, size_t i)
{
	assert(i >= 1);
	assert(i <= h->len);
	h->nodes[i] = node;
	node->index = i;
}

static void sift(struct heap *h, struct heap_node *node, size_t i)
{
	while (i > 1 && h->nodes[i / 2]->at_ms > node->at_ms) {
		place(h, h->nodes[i / 2], i);
		i /= 2;
	}
	for (;;) {
		size_t child = i * 2;

		if (child > h->len)
			break;
		if (child < h->len &&
		    h->nodes[child + 1]->at_ms < h->nodes[child]->at_ms)
			child++;
		if (h->nodes[child]->at_ms >= node->at_ms)
			break;
		place(h, h->nodes[child], i);
		i = child;
	}
	place(h, node, i);
}

void heap_set(struct heap *h, struct heap_node *node, int64_t at_ms)
{
	if (node->index != 0) {
		node->at_ms = at_ms;
		sift(h, node, node->index);
		return;
	}
	if (h->len + 2 > h->cap) {
		size_t cap = h->cap == 0 ? 64 : h->cap * 2;
		struct heap_node **grown = reallocarray(
			h->nodes, cap, sizeof(struct heap_node *));

		if (grown == NULL)
			err(1, "out of memory");
		h->nodes = grown;
		h->cap = cap;
	}
	h->len++;
	node->at_ms = at_ms;
	h->nodes[h->len] = node;
	sift(h, node, h->len);
}

void heap_remove(struct heap *h, struct heap_node *node)
{
	size_t i = node->index;

	if (i == 0)
		return;
	assert(i <= h->len);
	assert(h->nodes[i] == node);

	struct heap_node *last = h->nodes[h->len];

	h->len--;
	node->index = 0;
	if (last != node)
		sift(h, last, i);
}

struct heap_node *heap_first(const struct heap *h)
{
	return h->len == 0 ? NULL : h->nodes[1];
}

void heap_free(struct heap *h)
{
	free(h->nodes);
	*h = (struct heap){ 0 };
}
