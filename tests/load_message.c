#include <assert.h>
#include <err.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/load.h"

enum {
	TEXT_WIDTH = 76,
	/* All bodies together: enough to differ, not to hurt. */
	BODIES_OCTETS = 64 * 1024 * 1024,
	BODIES_FIXED = 16, /* distinct bodies of one size */
	ID_ROOM = 2,       /* ids in a header */
};

static void *must(void *memory)
{
	if (memory == NULL)
		err(1, "out of memory");
	return memory;
}

/* Fill text[0..len) with one line; some start with a dot, some are one. */
static void make_line(struct load *load, char *text, size_t len)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz .,ABCDEFG0123"
				      "456789-+=/";
	uint64_t bits = 0;

	assert(len >= 2);
	for (size_t i = 0; i + 2 < len; i++) {
		if (i % 8 == 0)
			bits = load_between(load, 0, UINT64_MAX - 1);
		text[i] = letters[(bits & 0xff) % (sizeof(letters) - 1)];
		bits >>= 8;
	}
	if (len > 2 && load_between(load, 0, 15) == 0)
		text[0] = '.';
	text[len - 2] = '\r';
	text[len - 1] = '\n';
}

static void make_text(struct load *load, char *text, size_t len)
{
	while (len > 0) {
		size_t line = (size_t)load_between(load, 2, TEXT_WIDTH + 2);

		if (load_between(load, 0, 31) == 0)
			line = 3; /* ".": the end of data, were it not stuffed */
		if (line > len || len - line < 2)
			line = len;
		if (line > TEXT_WIDTH + 4)
			line = TEXT_WIDTH;
		make_line(load, text, line);
		if (line == 3)
			text[0] = '.';
		text += line;
		len -= line;
	}
}

static void stuff(struct load_body *b)
{
	size_t extra = 0;

	for (size_t i = 0; i < b->raw_len; i++)
		extra += b->raw[i] == '.' && (i == 0 || b->raw[i - 1] == '\n');
	b->stuffed = must(malloc(b->raw_len + extra + 1));
	for (size_t i = 0; i < b->raw_len; i++) {
		if (b->raw[i] == '.' && (i == 0 || b->raw[i - 1] == '\n'))
			b->stuffed[b->stuffed_len++] = '.';
		b->stuffed[b->stuffed_len++] = b->raw[i];
	}
	assert(b->stuffed_len == b->raw_len + extra);
}

static void make_body(struct load *load, struct load_body *b, size_t len)
{
	b->raw_len = len == 1 ? 2 : len; /* a CRLF ends it */
	b->raw = must(malloc(b->raw_len + 1));
	make_text(load, b->raw, b->raw_len);
	stuff(b);
	if (EVP_Digest(b->raw, b->raw_len, b->sha, NULL, load->tally.md,
		       NULL) != 1)
		errx(1, "SHA-256 fails");
	tally_sha_hex(b->sha, b->sha_hex);
}

/* Spread evenly over the orders of magnitude, both ends included. */
static size_t size_of(const struct load_options *o, size_t i, size_t count)
{
	double low = (double)(o->size_min == 0 ? 1 : o->size_min);
	double high = (double)o->size_max;

	if (i == 0)
		return (size_t)o->size_min;
	if (i + 1 == count)
		return (size_t)o->size_max;
	return (size_t)(low * pow(high / low, (double)i / (double)(count - 1)));
}

static void make_header(struct load *load)
{
	const struct load_options *o = &load->options;
	char id[LOAD_ID_LEN + 1];
	char date[64];
	time_t now = time(NULL);
	struct tm tm;

	load_message_id(load, 0, 0, id);
	gmtime_r(&now, &tm);
	if (strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S +0000", &tm) ==
	    0)
		date[0] = '\0';
	int n = asprintf(&load->header,
			 "Date: %s\r\nFrom: <%s>\r\nTo: <%s>\r\n"
			 "Subject: weir-load\r\nMessage-ID: <%s@weir-load>\r\n"
			 "MIME-Version: 1.0\r\n"
			 "Content-Type: text/plain; charset=us-ascii\r\n"
			 "X-Test-Id: %s\r\n\r\n",
			 date, o->from, o->to[0], id, id);

	if (n < 0)
		err(1, "out of memory");
	load->header_len = (size_t)n;
	const char *at = load->header;

	for (size_t i = 0; i < ID_ROOM; i++) {
		at = strstr(at, id);
		assert(at != NULL);
		load->header_ids[i] = (size_t)(at - load->header);
		at += LOAD_ID_LEN;
	}
}

void load_message_prepare(struct load *load)
{
	const struct load_options *o = &load->options;
	bool fixed = o->size_min == o->size_max;
	size_t count = fixed ? BODIES_FIXED : LOAD_BODIES_MAX;
	size_t each = (size_t)o->size_max * 2 + 1;

	if (count > BODIES_OCTETS / each)
		count = BODIES_OCTETS / each;
	if (count < 2)
		count = fixed ? 1 : 2;
	for (size_t i = 0; i < count; i++)
		make_body(load, &load->bodies[i], size_of(o, i, count));
	load->body_count = count;
	make_header(load);
}

void load_message_free(struct load *load)
{
	for (size_t i = 0; i < load->body_count; i++) {
		free(load->bodies[i].raw);
		free(load->bodies[i].stuffed);
	}
	free(load->header);
}

void load_message_id(const struct load *load, uint64_t session,
		     uint64_t message, char id[LOAD_ID_LEN + 1])
{
	snprintf(id, LOAD_ID_LEN + 1, "%08x.%08x.%08x",
		 (unsigned)load->options.seed, (unsigned)session,
		 (unsigned)message);
}

void load_message_header(const struct load *load, const char *id, char *out)
{
	memcpy(out, load->header, load->header_len);
	for (size_t i = 0; i < ID_ROOM; i++)
		memcpy(out + load->header_ids[i], id, LOAD_ID_LEN);
}
