#include "proxy/proxyproto.h"

#include <stdlib.h>
#include <string.h>

/*
 * Any octets as a PROXY header: the first octet says in what pieces the rest
 * comes.  However it is cut, the answer and the octets used must be the same,
 * nothing may be taken after the end, and what was read must survive being
 * written and read again.
 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
	if (!holds)
		abort();
}

static size_t read_in_pieces(struct proxyproto *p, const uint8_t *data,
			     size_t size, size_t piece)
{
	size_t total = 0;

	proxyproto_begin(p);
	for (size_t at = 0; at < size; at += piece) {
		size_t len = piece < size - at ? piece : size - at;
		enum proxyproto_result before = p->result;
		size_t used = 0;
		/* A copy of its own: to read past it is a finding. */
		uint8_t *copy = malloc(len);

		check(copy != NULL);
		memcpy(copy, data + at, len);
		enum proxyproto_result r = proxyproto_feed(p, copy, len, &used);

		free(copy);
		check(r == p->result);
		check(used <= len);
		check(before == PROXYPROTO_MORE || (r == before && used == 0));
		check(r != PROXYPROTO_MORE || used == len);
		total += used;
	}
	check(total <= 16 + PROXYPROTO_V2_BLOCK_MAX);
	check(p->header.version != 1 || total <= PROXYPROTO_V1_MAX);
	return total;
}

static bool same(const struct proxyproto_header *a,
		 const struct proxyproto_header *b)
{
	return a->version == b->version && a->local == b->local &&
	       a->family == b->family &&
	       cidr_addr_equal(&a->source, &b->source) &&
	       cidr_addr_equal(&a->destination, &b->destination) &&
	       a->source_port == b->source_port &&
	       a->destination_port == b->destination_port &&
	       a->id_len == b->id_len && memcmp(a->id, b->id, a->id_len) == 0;
}

static void write_again(const struct proxyproto_header *h)
{
	struct proxyproto_header plain = *h;
	uint8_t buf[PROXYPROTO_WRITE_MAX];
	struct proxyproto p;
	size_t used = 0;
	size_t len;

	/* What is written otherwise: see the header. */
	if (plain.family == PROXYPROTO_UNIX)
		plain.family = PROXYPROTO_UNSPEC;
	if (plain.family == PROXYPROTO_INET6 &&
	    cidr_addr_is_v4(&plain.source) &&
	    cidr_addr_is_v4(&plain.destination))
		plain.family = PROXYPROTO_INET;
	len = proxyproto_write(buf, &plain);
	check(len <= sizeof(buf));
	proxyproto_begin(&p);
	check(proxyproto_feed(&p, buf, len, &used) == PROXYPROTO_DONE);
	check(used == len);
	if (plain.local)
		plain.id_len =
			p.header.id_len; /* what LOCAL brings is skipped */
	check(same(&p.header, &plain));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct proxyproto whole;
	struct proxyproto cut;

	if (size < 2)
		return 0;
	size_t piece = (size_t)data[0] + 1;
	size_t used = read_in_pieces(&whole, data + 1, size - 1, size);

	check(read_in_pieces(&cut, data + 1, size - 1, piece) == used);
	check(cut.result == whole.result);
	if (whole.result != PROXYPROTO_DONE)
		return 0;
	check(same(&cut.header, &whole.header));
	check(memcmp(&cut.header.tls, &whole.header.tls,
		     sizeof(whole.header.tls)) == 0);
	write_again(&whole.header);
	return 0;
}
