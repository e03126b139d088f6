#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/smtp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Feed in pieces of the given size; *used in all. */
static enum smtp_reply_fed feed(struct smtp_reply_parser *r, const char *text,
				size_t len, size_t piece, size_t *used)
{
	enum smtp_reply_fed got = SMTP_REPLY_MORE;

	smtp_reply_begin(r, true);
	*used = 0;
	while (*used < len && got == SMTP_REPLY_MORE) {
		size_t left = len - *used, taken;

		if (left > piece)
			left = piece;
		got = smtp_reply_feed(r, text + *used, left, &taken);
		assert(taken <= left);
		assert(taken == left || got != SMTP_REPLY_MORE);
		*used += taken;
	}
	return got;
}

static void check_same(const struct smtp_reply_parser *a,
		       const struct smtp_reply_parser *b)
{
	assert(a->bad == b->bad && a->code == b->code);
	assert(a->lines == b->lines && a->octets == b->octets);
	assert(a->truncated == b->truncated);
	assert(a->ehlo.ext == b->ehlo.ext && a->ehlo.size == b->ehlo.size);
	assert(a->ehlo.auth == b->ehlo.auth);
	assert(a->ehlo.xclient == b->ehlo.xclient);
	assert(a->head_len == b->head_len && a->text_len == b->text_len);
	assert(memcmp(a->head, b->head, a->head_len) == 0);
	assert(memcmp(a->text, b->text, a->text_len) == 0);
}

/* What is read out of the last line stays within it. */
static void check_head(const struct smtp_reply_parser *r)
{
	size_t len = r->head_len, start = 0;
	char *head = malloc(len > 0 ? len : 1); /* exact, for ASan */
	struct smtp_esc esc;

	if (head == NULL)
		return;
	memcpy(head, r->head, len);
	assert(smtp_reply_esc(head, len, &esc) == (esc.class != 0));
	assert(esc.subject <= 999 && esc.detail <= 999);

	size_t id_len = smtp_reply_queue_id(head, len, &start);

	assert(id_len <= SMTP_QUEUE_ID_MAX);
	assert(start + id_len <= len);
	for (size_t i = start; i < start + id_len; i++)
		assert(head[i] > ' ' && head[i] < 0x7f);
	free(head);
}

/* A whole reply: its octets have the one form that RFC 5321 section 4.2 has. */
static void check_whole(const struct smtp_reply_parser *r, const char *text,
			size_t used)
{
	unsigned lines = 0;

	assert(r->code >= 200 && r->code <= 599);
	assert(used == r->octets);
	assert(used >= 5 && memcmp(text + used - 2, "\r\n", 2) == 0);
	for (size_t at = 0; at < used; lines++) {
		const char *lf = memchr(text + at, '\n', used - at);
		size_t next = (size_t)(lf - text) + 1;

		assert(next - at <= SMTP_REPLY_LINE_MAX);
		assert((text[at + 3] == '-') == (next < used));
		assert(memcmp(text + at, text, 3) == 0);
		at = next;
	}
	assert(lines == r->lines);
}

/* Bits are of the table; what a keyword brings comes with the keyword. */
static void check_offer(const struct smtp_ehlo *ehlo)
{
	char buf[SMTP_EHLO_REPLY_MAX];
	struct smtp_reply_parser own;
	size_t used;

	assert((ehlo->ext & ~((1U << SMTP_EXT_BITS) - 1)) == 0);
	assert((ehlo->auth & ~((1U << SMTP_AUTH_BITS) - 1)) == 0);
	assert((ehlo->xclient & ~((1U << SMTP_XCLIENT_BITS) - 1)) == 0);
	assert(ehlo->auth == 0 || (ehlo->ext & SMTP_EXT_AUTH));
	assert(ehlo->xclient == 0 || (ehlo->ext & SMTP_EXT_XCLIENT));

	/* Offered on, it offers no more than that and weir's own two. */
	size_t len = smtp_ehlo_write(buf, sizeof(buf), "mx.test", ehlo);

	smtp_reply_begin(&own, true);
	assert(smtp_reply_feed(&own, buf, len, &used) == SMTP_REPLY_WHOLE);
	assert(used == len && own.ehlo.auth == ehlo->auth);
	assert(own.ehlo.xclient == 0);
	assert((own.ehlo.ext &
		~(ehlo->ext | SMTP_EXT_PIPELINING | SMTP_EXT_ENHANCED)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;

	/* The first octet says how the second reading is cut. */
	size_t piece = data[0] > 0 ? data[0] : 1;
	const uint8_t *text = data + 1;
	size_t len = size - 1;

	while (len > 0) {
		char *copy = malloc(len);
		struct smtp_reply_parser whole, parts, ones;
		size_t used, parts_used, ones_used;

		if (copy == NULL)
			return 0;
		memcpy(copy, text, len);

		enum smtp_reply_fed got = feed(&whole, copy, len, len, &used);

		assert(feed(&parts, copy, len, piece, &parts_used) == got);
		assert(feed(&ones, copy, len, 1, &ones_used) == got);
		assert(parts_used == used && ones_used == used);
		check_same(&whole, &parts);
		check_same(&whole, &ones);
		check_head(&whole);
		check_offer(&whole.ehlo);
		assert((got == SMTP_REPLY_BAD) ==
		       (whole.bad != SMTP_REPLY_GOOD));
		if (got == SMTP_REPLY_WHOLE)
			check_whole(&whole, copy, used);
		free(copy);
		if (got != SMTP_REPLY_WHOLE)
			return 0;
		text += used;
		len -= used;
	}
	return 0;
}
