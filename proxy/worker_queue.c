#include <assert.h>
#include <string.h>

#include "proxy/work.h"

static void append(struct work_queue *q, struct io_buf *buf)
{
	buf->next = NULL;
	if (q->last != NULL)
		q->last->next = buf;
	else
		q->first = buf;
	q->last = buf;
	q->octets += buf->len;
}

/* Copy what fits behind the last buffer's octets. */
static size_t fill(struct work_queue *q, const uint8_t *text, size_t len)
{
	struct io_buf *buf = q->last;

	if (buf == NULL)
		return 0;
	if (len > buf->room)
		len = buf->room;
	memcpy(buf->data + buf->len, text, len);
	buf->len += (uint32_t)len;
	buf->room -= (uint32_t)len;
	q->octets += len;
	return len;
}

/* Buffers with room for len octets in all; NULL: there are not so many. */
static struct io_buf *get_room(struct worker *w, enum io_pool pool, size_t len)
{
	struct io_buf *first = NULL;
	size_t room = 0;

	while (room < len) {
		struct io_buf *buf = io_buf_get(w->io, pool);

		if (buf == NULL) {
			struct work_queue all = { .first = first };

			work_queue_drop(w, &all);
			stats_add(&w->stats->no_buffers, 1);
			return NULL;
		}
		buf->next = first;
		first = buf;
		room += buf->room;
	}
	return first;
}

bool work_queue_text(struct worker *w, struct work_queue *q, enum io_pool pool,
		     const void *text, size_t len)
{
	size_t had = q->last != NULL ? q->last->room : 0;
	const uint8_t *from = text;
	struct io_buf *more = NULL;

	/* Get all buffers first, so that it is all or nothing. */
	if (had < len) {
		more = get_room(w, pool, len - had);
		if (more == NULL)
			return false;
	}
	for (size_t n = fill(q, from, len); len > n; n = fill(q, from, len)) {
		struct io_buf *buf = more;

		assert(buf != NULL);
		from += n;
		len -= n;
		more = buf->next;
		append(q, buf);
	}
	assert(more == NULL);
	return true;
}

void work_queue_buf(struct worker *w, struct work_queue *q, struct io_buf *buf)
{
	/* Little octets in large buffers: a dribbler must not own the pool. */
	if (q->last != NULL && buf->len <= q->last->room &&
	    buf->len < IO_SMALL_SIZE / 2) {
		(void)fill(q, buf->data, buf->len);
		io_buf_put(w->io, buf);
		return;
	}
	append(q, buf);
}

/* Take the first buffer off. */
static struct io_buf *shift(struct work_queue *q)
{
	struct io_buf *buf = q->first;

	q->first = buf->next;
	if (q->first == NULL)
		q->last = NULL;
	buf->next = NULL;
	assert(q->octets >= buf->len);
	q->octets -= buf->len;
	return buf;
}

void work_queue_eat(struct worker *w, struct work_queue *q, size_t n)
{
	assert(n <= q->octets);
	while (n > 0) {
		struct io_buf *buf = q->first;

		if (n >= buf->len) {
			n -= buf->len;
			io_buf_put(w->io, shift(q));
			continue;
		}
		buf->data += n;
		buf->len -= (uint32_t)n;
		q->octets -= n;
		return;
	}
}

bool work_queue_move(struct worker *w, struct work_queue *q,
		     struct work_queue *to, size_t n)
{
	struct io_buf *buf = q->first;
	size_t rest;

	assert(buf != NULL);
	assert(n <= buf->len);
	if (n == buf->len) {
		work_queue_buf(w, to, shift(q));
		return true;
	}
	rest = buf->len - n;
	if (n <= rest || rest > IO_SMALL_SIZE) {
		/* The front is the smaller part, or no single copy holds the
		 * rest. */
		if (!work_queue_text(w, to, IO_SMALL, buf->data, n))
			return false;
		work_queue_eat(w, q, n);
		return true;
	}

	struct io_buf *copy = io_buf_get(w->io, IO_SMALL);

	if (copy == NULL) {
		stats_add(&w->stats->no_buffers, 1);
		return false;
	}
	memcpy(copy->data, buf->data + n, rest);
	copy->len = (uint32_t)rest;
	copy->room -= (uint32_t)rest;
	(void)shift(q);
	buf->len = (uint32_t)n;
	buf->room += (uint32_t)rest;
	copy->next = q->first;
	if (q->first == NULL)
		q->last = copy;
	q->first = copy;
	q->octets += rest;
	work_queue_buf(w, to, buf);
	return true;
}

void work_queue_drop(struct worker *w, struct work_queue *q)
{
	while (q->first != NULL) {
		struct io_buf *buf = q->first;

		q->first = buf->next;
		io_buf_put(w->io, buf);
	}
	q->last = NULL;
	q->octets = 0;
}

void work_queue_flush(struct worker *w, struct work_queue *q, io_handle socket,
		      uint64_t *counted)
{
	if (q->first == NULL || io_unsent(w->io, socket) > 0)
		return;
	*counted += q->octets;
	io_send(w->io, socket, q->first);
	q->first = q->last = NULL;
	q->octets = 0;
}
