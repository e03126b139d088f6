#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/smtp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * The end of the data as RFC 5321 section 4.1.1.4 has it, the slow way.
 * Returns the octets up to and with it, or len if there is no end.
 */
static size_t plain_end(const char *text, size_t len, bool *ended)
{
	*ended = true;
	if (len >= 3 && memcmp(text, ".\r\n", 3) == 0)
		return 3;

	const char *end = memmem(text, len, "\r\n.\r\n", 5);

	if (end != NULL)
		return (size_t)(end - text) + 5;
	*ended = false;
	return len;
}

static unsigned plain_flaws(const char *text, size_t len)
{
	unsigned flaws = 0;

	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\0')
			flaws |= SMTP_FLAW_NUL;
		if (text[i] == '\n' && (i == 0 || text[i - 1] != '\r'))
			flaws |= SMTP_FLAW_BARE_LF;
		/* a CR at the end may still get its LF */
		if (text[i] == '\r' && i + 1 < len && text[i + 1] != '\n')
			flaws |= SMTP_FLAW_BARE_CR;
	}
	return flaws;
}

static void scan(struct smtp_body *b, const char *text, size_t len,
		 size_t piece)
{
	smtp_body_begin(b);
	while (b->octets < len && !b->ended) {
		size_t left = len - (size_t)b->octets;
		uint64_t before = b->octets;

		if (left > piece)
			left = piece;

		/* A piece of its own, so that ASan sees reads past its end. */
		char *copy = malloc(left);

		if (copy == NULL)
			abort();
		memcpy(copy, text + before, left);

		size_t taken = smtp_body_scan(b, copy, left);

		free(copy);
		assert(taken == left || b->ended);
		assert(b->octets == before + taken);
	}
}

/* The octets that a chunk must carry, the slow way.  Returns how many. */
static size_t plain_undot(const char *text, size_t len, bool ended, char *out)
{
	size_t n = 0, stop = ended ? len - 3 : len;

	for (size_t i = 0; i < stop; i++) {
		bool bol = i == 0 ||
			   (i >= 2 && memcmp(text + i - 2, "\r\n", 2) == 0);

		if (!bol || text[i] != '.')
			out[n++] = text[i];
		else if (i + 2 == stop && !ended && text[i + 1] == '\r')
			break; /* nobody knows yet what it is */
	}
	return n;
}

/* Counted and made by windows, the same must come out. */
static void undot(const char *text, size_t len, size_t piece, const char *want,
		  size_t want_len, size_t want_taken)
{
	struct smtp_undot counter, maker;
	size_t at = 0, n = 0;

	smtp_undot_begin(&counter);
	smtp_undot_begin(&maker);
	while (at < len && !counter.ended) {
		size_t left = len - at < piece ? len - at : piece;
		char *copy = malloc(left);

		if (copy == NULL)
			abort();
		memcpy(copy, text + at, left);

		struct smtp_reframed r = smtp_reframe(&counter, copy, left);
		size_t kept = smtp_undot(&maker, copy, left);

		assert(r.taken == left || r.ended);
		assert(r.octets == kept + r.owes_cr);
		assert(r.ended == maker.ended && r.ended == counter.ended);
		assert(n + r.octets <= want_len);
		assert(!r.owes_cr || want[n] == '\r');
		n += r.owes_cr;
		assert(memcmp(want + n, copy, kept) == 0);
		n += kept;
		at += r.taken;
		free(copy);
	}
	assert(n == want_len);
	assert(at == want_taken);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;

	size_t piece = data[0] > 0 ? data[0] : 1;
	const char *text = (const char *)data + 1;
	size_t len = size - 1;
	const size_t pieces[] = { len, piece, 1 };
	char *carried = malloc(len);
	bool ended;
	size_t want = plain_end(text, len, &ended);
	unsigned flaws = plain_flaws(text, want);

	if (carried == NULL)
		abort();

	size_t carried_len = plain_undot(text, want, ended, carried);

	for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
		struct smtp_body b;

		scan(&b, text, len, pieces[i]);
		assert(b.ended == ended);
		assert(b.octets == want);
		assert(b.flaws == flaws);
		undot(text, len, pieces[i], carried, carried_len, want);
	}
	free(carried);
	return 0;
}
