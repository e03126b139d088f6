#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proxy/proxyproto.h"

#define SIG "\r\n\r\n\0\r\nQUIT\n"
#define V4  "\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x00\x19"
#define V6                                                                     \
	"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01"                           \
	"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02"                           \
	"\xdc\x04\x00\x19"
#define Z4   "\0\0\0\0"
#define Z27  "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
#define Z216 Z27 Z27 Z27 Z27 Z27 Z27 Z27 Z27
#define A16  "aaaaaaaaaaaaaaaa"
#define A128 A16 A16 A16 A16 A16 A16 A16 A16
#define F4   "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

/* Text with its length: it may hold NUL. */
#define T(text) text, sizeof(text) - 1

/* What a header said, as one line. */
static const char *told(const struct proxyproto_header *h)
{
	static const char *const families[] = {
		[PROXYPROTO_UNSPEC] = "unspec",
		[PROXYPROTO_INET] = "inet",
		[PROXYPROTO_INET6] = "inet6",
		[PROXYPROTO_UNIX] = "unix",
	};
	static char line[1024];
	char source[CIDR_ADDR_TEXT_MAX], destination[CIDR_ADDR_TEXT_MAX];
	int n;

	(void)cidr_addr_format(&h->source, source, sizeof(source));
	(void)cidr_addr_format(&h->destination, destination,
			       sizeof(destination));
	n = snprintf(line, sizeof(line), "v%d%s %s", h->version,
		     h->local ? " local" : "", families[h->family]);
	if (h->family == PROXYPROTO_INET || h->family == PROXYPROTO_INET6)
		n += snprintf(line + n, sizeof(line) - (size_t)n,
			      " %s %u > %s %u", source, h->source_port,
			      destination, h->destination_port);
	if (h->id_len > 0)
		n += snprintf(line + n, sizeof(line) - (size_t)n, " id=%.*s",
			      (int)h->id_len, (const char *)h->id);
	if (h->tls.said)
		(void)snprintf(line + n, sizeof(line) - (size_t)n,
			       " tls=%d cert=%d verified=%d %.*s", h->tls.tls,
			       h->tls.cert, h->tls.verified,
			       (int)h->tls.version_len, h->tls.version);
	return line;
}

struct row {
	const char *octets;
	size_t len;
	const char *expected; /* NULL: BAD */
	const char *why;
};

/* clang-format off */
static const struct row rows[] = {
	/* Version 1. */
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n"),
	  "v1 inet 192.0.2.1 56324 > 198.51.100.2 25", "a line of TCP4" },
	{ T("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
	  "v1 inet 255.255.255.255 65535 > 255.255.255.255 65535",
	  "the longest line of TCP4" },
	{ T("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"),
	  "v1 inet 0.0.0.0 0 > 0.0.0.0 0", "the shortest one" },
	{ T("PROXY TCP6 2001:db8::1 2001:db8::2 56324 25\r\n"),
	  "v1 inet6 2001:db8::1 56324 > 2001:db8::2 25", "a line of TCP6" },
	{ T("PROXY TCP6 " F4 " " F4 " 65535 65535\r\n"),
	  "v1 inet6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 > "
	  "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535",
	  "the longest line of TCP6" },
	{ T("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 1 25\r\n"),
	  "v1 inet6 192.0.2.1 1 > 198.51.100.2 25",
	  "IPv4-mapped, as of a dual-stack listener: IPv4" },
	{ T("PROXY UNKNOWN\r\n"), "v1 unspec", "unknown" },
	{ T("PROXY UNKNOWN " F4 " " F4 " 65535 65535\r\n"), "v1 unspec",
	  "unknown, 107 octets: what follows is not looked at" },
	{ T("PROXY UNKNOWN  what ever\r\n"), "v1 unspec", "nor is this" },
	{ T("PROXY UNKNOWN " F4 " " F4 " 65535 65535 \r\n"), NULL,
	  "108 octets" },
	{ T("PROXY UNKNOWN " A128), NULL, "a line without end" },
	{ T("PROXY UNKNOWNS\r\n"), NULL, "another word" },
	{ T("PROXY TCP5 192.0.2.1 198.51.100.2 1 25\r\n"), NULL, "no TCP5" },
	{ T("PROXY tcp4 192.0.2.1 198.51.100.2 1 25\r\n"), NULL,
	  "case matters" },
	{ T("proxy TCP4 192.0.2.1 198.51.100.2 1 25\r\n"), NULL,
	  "here too" },
	{ T("PROXY  TCP4 192.0.2.1 198.51.100.2 1 25\r\n"), NULL,
	  "two blanks" },
	{ T("PROXY TCP4 192.0.2.1  198.51.100.2 1 25\r\n"), NULL,
	  "and later" },
	{ T("PROXY\tTCP4 192.0.2.1 198.51.100.2 1 25\r\n"), NULL, "a tab" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1 25 \r\n"), NULL,
	  "a blank at the end" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1 25 x\r\n"), NULL,
	  "a word too many" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n"), NULL,
	  "a word too few" },
	{ T("PROXY TCP4 192.0.2.1\r\n"), NULL, "three too few" },
	{ T("PROXY TCP4\r\n"), NULL, "nothing but the family" },
	{ T("PROXY \r\n"), NULL, "not even that" },
	{ T("PROXY\r\n"), NULL, "nothing" },
	{ T("PROXY TCP4 2001:db8::1 2001:db8::2 1 25\r\n"), NULL,
	  "IPv6 in TCP4" },
	{ T("PROXY TCP6 192.0.2.1 198.51.100.2 1 25\r\n"), NULL,
	  "IPv4 in TCP6" },
	{ T("PROXY TCP4 192.0.2.256 198.51.100.2 1 25\r\n"), NULL,
	  "no address" },
	{ T("PROXY TCP4 192.0.2.01 198.51.100.2 1 25\r\n"), NULL,
	  "a leading zero" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n"), NULL,
	  "no port" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1 00025\r\n"), NULL,
	  "a port with leading zeros" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 -1 25\r\n"), NULL,
	  "a sign" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1 25\n"), NULL, "a bare LF" },
	{ T("PROXY TCP4 192.0.2.1 198.51.100.2 1 25\rE"), NULL, "a bare CR" },
	{ T("PROXY UNKNOWN \0\r\n"), NULL, "a NUL" },
	{ T("EHLO client.example\r\n"), NULL, "SMTP" },
	{ T("\x16\x03\x01"), NULL, "TLS" },
	{ T("P\r\n"), NULL, "a start of it" },

	/* Version 2. */
	{ T(SIG "\x21\x11\x00\x0c" V4),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25", "TCP over IPv4" },
	{ T(SIG "\x21\x21\x00\x24" V6),
	  "v2 inet6 2001:db8::1 56324 > 2001:db8::2 25", "TCP over IPv6" },
	{ T(SIG "\x21\x31\x00\xd8" Z216), "v2 unix", "a UNIX socket" },
	{ T(SIG "\x21\x00\x00\x00"), "v2 unspec", "nothing is known" },
	{ T(SIG "\x20\x00\x00\x00"), "v2 local unspec", "its own" },
	{ T(SIG "\x20\x11\x00\x0c" V4), "v2 local unspec",
	  "its own, with addresses that count for nothing" },
	{ T(SIG "\x20\xff\x00\x03\x05\xff\xff"), "v2 local unspec",
	  "its own, with a block that is not looked at" },
	{ T(SIG "\x21\x00\x00\x05\x05\x00\x02me"), "v2 unspec id=me",
	  "no addresses, but an id" },
	{ T(SIG "\x21\x11\x00\x10" V4 "\x05\x00\x01z"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 id=z", "an id" },
	{ T(SIG "\x21\x11\x00\x0f" V4 "\x05\x00\x00"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25", "an empty id" },
	{ T(SIG "\x21\x11\x00\x8f" V4 "\x05\x00\x80" A128),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 id=" A128,
	  "the longest id" },
	{ T(SIG "\x21\x11\x00\x90" V4 "\x05\x00\x81" A128 "a"), NULL,
	  "a longer one" },
	{ T(SIG "\x21\x11\x00\x12" V4 "\x05\x00\x00\x05\x00\x00"), NULL,
	  "two ids" },
	{ T(SIG "\x21\x11\x00\x16" V4
	    "\x01\x00\x02h2\x04\x00\x00\xea\x00"),
	  NULL, "a block that ends within a TLV's head" },
	{ T(SIG "\x21\x11\x00\x1c" V4
	    "\x01\x00\x02h2\x04\x00\x00\xea\x00\x05vwxyz"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25",
	  "ALPN, NOOP and a private type are skipped" },
	{ T(SIG "\x21\x11\x00\x0d" V4 "\x04"), NULL, "a third of a head" },
	{ T(SIG "\x21\x11\x00\x0e" V4 "\x04\x00"), NULL, "two thirds" },
	{ T(SIG "\x21\x11\x00\x0f" V4 "\x04\x00\x01"), NULL,
	  "a value that is not there" },
	{ T(SIG "\x21\x11\x00\x10" V4 "\x04\x01\x01x"), NULL,
	  "one of which too little is there" },
	{ T(SIG "\x21\x11\x00\x14" V4 "\x20\x00\x05\x01" Z4),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 "
	  "tls=1 cert=0 verified=1 ", "over TLS" },
	{ T(SIG "\x21\x11\x00\x1e" V4 "\x20\x00\x0f\x07\x00\x00\x00\x0a"
	    "\x21\x00\x07TLSv1.3"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 "
	  "tls=1 cert=1 verified=0 TLSv1.3", "and with what" },
	{ T(SIG "\x21\x11\x00\x25" V4 "\x20\x00\x16\x01" Z4
	    "\x22\x00\x01m" "\x21\x00\x07TLSv1.2" "\x25"),
	  NULL, "a sub-block that ends within a head" },
	{ T(SIG "\x21\x11\x00\x18" V4 "\x20\x00\x09\x01" Z4
	    "\x22\x00\x02m"), NULL, "and one within a value" },
	{ T(SIG "\x21\x11\x00\x22" V4 "\x20\x00\x13\x01" Z4
	    "\x22\x00\x01m" "\x21\x00\x07TLSv1.2"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 "
	  "tls=1 cert=0 verified=1 TLSv1.2", "a name before the version" },
	{ T(SIG "\x21\x11\x00\x2b" V4 "\x20\x00\x1c\x00" Z4
	    "\x21\x00\x14" A16 "bbbb"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 "
	  "tls=0 cert=0 verified=1 " A16, "a version that is cut" },
	{ T(SIG "\x21\x11\x00\x13" V4 "\x20\x00\x04\x01\x00\x00\x00"), NULL,
	  "too little about TLS" },
	/* The sum was computed by another program. */
	{ T(SIG "\x21\x11\x00\x1a" V4 "\x03\x00\x04" "\x13\xd3\xae\x9b" "\x05\x00\x04id-1"),
	  "v2 inet 192.0.2.1 56324 > 198.51.100.2 25 id=id-1",
	  "a sum that fits" },
	{ T(SIG "\x21\x11\x00\x1a" V4 "\x03\x00\x04" "\x13\xd3\xae\x9c" "\x05\x00\x04id-1"),
	  NULL, "one that does not" },
	{ T(SIG "\x21\x11\x00\x1a" V4 "\x03\x00\x04" "\x13\xd3\xae\x9b" "\x05\x00\x04id-2"),
	  NULL, "one of other octets" },
	{ T(SIG "\x21\x11\x00\x12" V4 "\x03\x00\x03" "@CR"), NULL,
	  "one of three octets" },
	{ T(SIG "\x11\x11\x00\x0c" V4), NULL, "version 1 in binary" },
	{ T(SIG "\x22\x11\x00\x0c" V4), NULL, "no such command" },
	{ T(SIG "\x21\x12\x00\x0c" V4), NULL, "datagrams" },
	{ T(SIG "\x21\x01\x00\x0c" V4), NULL, "half unknown" },
	{ T(SIG "\x21\x10\x00\x0c" V4), NULL, "the other half" },
	{ T(SIG "\x21\x41\x00\x0c" V4), NULL, "no such family" },
	{ T(SIG "\x21\x11\x00\x0b" V4), NULL, "too short for its addresses" },
	{ T(SIG "\x21\x21\x00\x0c" V4), NULL, "IPv4 in IPv6" },
	{ T(SIG "\x21\x11\x08\x01" V4), NULL, "2049 octets" },
	{ T(SIG "\x20\x00\xff\xff"), NULL, "65535 octets" },
	{ T("\r\n\r\n\0\r\nQUIT\r"), NULL, "another signature" },
	{ T("\r\n\r\n\r\nQUIT\r\n"), NULL, "what is nearly one" },
};
/* clang-format on */

enum { ROWS = sizeof(rows) / sizeof(rows[0]), AFTER = 5 };

static const char after[] = "EHLO ";

/* Feed octets and five more, in pieces of `first`, then of `then` octets. */
static void feed(struct proxyproto *p, const struct row *row, size_t first,
		 size_t then)
{
	uint8_t octets[1024];
	size_t total = row->len + AFTER;
	size_t at = 0;
	size_t piece = first;

	assert_true(total <= sizeof(octets));
	memcpy(octets, row->octets, row->len);
	memcpy(octets + row->len, after, AFTER);
	proxyproto_begin(p);
	while (at < total) {
		size_t len = piece < total - at ? piece : total - at;
		size_t used = SIZE_MAX;
		enum proxyproto_result before = p->result;
		enum proxyproto_result r = proxyproto_feed(p, octets + at, len,
							   &used);

		assert_true(used <= len);
		if (before != PROXYPROTO_MORE) {
			assert_int_equal(r, before); /* it stays */
			assert_int_equal(used, 0);
		} else if (r == PROXYPROTO_MORE) {
			assert_int_equal(used, len);
		} else if (r == PROXYPROTO_DONE) {
			assert_int_equal(at + used, row->len);
		}
		at += len;
		piece = then;
	}
}

static void check(const struct row *row, const struct proxyproto *p)
{
	if (row->expected == NULL) {
		assert_int_equal(p->result, PROXYPROTO_BAD);
		return;
	}
	assert_int_equal(p->result, PROXYPROTO_DONE);
	assert_string_equal(told(&p->header), row->expected);
}

static void headers_are_read_or_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < ROWS; i++) {
		struct proxyproto p;

		print_message("  %s\n", rows[i].why);
		feed(&p, &rows[i], 1024, 1024);
		check(&rows[i], &p);
	}
}

static void headers_may_come_in_any_pieces(void **state)
{
	(void)state;
	for (size_t i = 0; i < ROWS; i++) {
		struct proxyproto p;

		feed(&p, &rows[i], 1, 1);
		check(&rows[i], &p);
		for (size_t first = 1; first < rows[i].len; first++) {
			feed(&p, &rows[i], first, 1024);
			check(&rows[i], &p);
		}
	}
}

static void a_header_is_done_with_its_last_octet(void **state)
{
	(void)state;
	for (size_t i = 0; i < ROWS; i++) {
		struct proxyproto p;
		size_t used;

		if (rows[i].expected == NULL)
			continue;
		proxyproto_begin(&p);
		for (size_t at = 0; at < rows[i].len; at++) {
			assert_int_equal(p.result, PROXYPROTO_MORE);
			(void)proxyproto_feed(
				&p, (const uint8_t *)rows[i].octets + at, 1,
				&used);
		}
		assert_int_equal(p.result, PROXYPROTO_DONE);
	}
}

static void the_longest_block_is_taken(void **state)
{
	(void)state;
	uint8_t octets[16 + PROXYPROTO_V2_BLOCK_MAX + 1] = SIG "\x21\x11\x08";
	struct proxyproto p;
	size_t used;

	memcpy(octets + 16, V4, 12);
	octets[28] = 0x04; /* one NOOP fills the rest */
	octets[29] = (PROXYPROTO_V2_BLOCK_MAX - 15) >> 8;
	octets[30] = (PROXYPROTO_V2_BLOCK_MAX - 15) & 255;
	proxyproto_begin(&p);
	assert_int_equal(proxyproto_feed(&p, octets, sizeof(octets), &used),
			 PROXYPROTO_DONE);
	assert_int_equal(used, sizeof(octets) - 1);
}

static void what_is_no_header_is_known_by_its_first_octets(void **state)
{
	(void)state;
	static const struct {
		const char *octets;
		size_t len;
		size_t used; /* that many tell */
	} cases[] = {
		{ T("EHLO client.example\r\n"), 1 },
		{ T("PROXXY"), 5 },
		{ T("\r\n\r\n\r\n"), 5 },
		{ T(SIG "\x31\x11"), 13 },
		{ T(SIG "\x21\x11\xff\xff"), 16 },
		{ T("PROXY TCP4 \n192.0.2.1"), 12 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct proxyproto p;
		size_t used;

		proxyproto_begin(&p);
		assert_int_equal(
			proxyproto_feed(&p, (const uint8_t *)cases[i].octets,
					cases[i].len, &used),
			PROXYPROTO_BAD);
		assert_int_equal(used, cases[i].used);
	}
}

/* ---- writing ---- */

static struct cidr_addr addr(const char *text)
{
	struct cidr_addr a;

	assert_true(cidr_addr_parse(text, strlen(text), &a));
	return a;
}

static struct proxyproto_header of(uint8_t version, const char *source,
				   const char *destination, const char *id)
{
	struct proxyproto_header h = {
		.version = version,
		.family = PROXYPROTO_INET,
		.source = addr(source),
		.destination = addr(destination),
		.source_port = 56324,
		.destination_port = 25,
		.id_len = (uint8_t)strlen(id),
	};

	memcpy(h.id, id, h.id_len);
	return h;
}

static void lines_are_written(void **state)
{
	(void)state;
	static const struct {
		const char *source, *destination, *expected;
	} cases[] = {
		{ "192.0.2.1", "198.51.100.2",
		  "PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n" },
		{ "2001:db8::1", "2001:db8::2",
		  "PROXY TCP6 2001:db8::1 2001:db8::2 56324 25\r\n" },
		{ "2001:db8::1", "198.51.100.2",
		  "PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 56324 25\r\n" },
	};
	uint8_t buf[PROXYPROTO_WRITE_MAX];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct proxyproto_header h = of(
			1, cases[i].source, cases[i].destination, "not in it");
		size_t len = proxyproto_write(buf, &h);

		assert_int_equal(len, strlen(cases[i].expected));
		assert_memory_equal(buf, cases[i].expected, len);
	}
	struct proxyproto_header local = { .version = 1, .local = true };

	assert_int_equal(proxyproto_write(buf, &local), 15);
	assert_memory_equal(buf, "PROXY UNKNOWN\r\n", 15);
}

static void binary_headers_are_written(void **state)
{
	(void)state;
	static const char inet[] = SIG "\x21\x11\x00\x13" V4 "\x05\x00\x04id-1";
	static const char inet6[] = SIG "\x21\x21\x00\x24" V6;
	static const char local[] = SIG "\x20\x00\x00\x07\x05\x00\x04id-1";
	uint8_t buf[PROXYPROTO_WRITE_MAX];
	struct proxyproto_header h = of(2, "192.0.2.1", "198.51.100.2", "id-1");
	size_t len = proxyproto_write(buf, &h);

	assert_int_equal(len, sizeof(inet) - 1);
	assert_memory_equal(buf, inet, len);
	h.local = true;
	len = proxyproto_write(buf, &h);
	assert_int_equal(len, sizeof(local) - 1);
	assert_memory_equal(buf, local, len);
	h = of(2, "2001:db8::1", "2001:db8::2", "");
	len = proxyproto_write(buf, &h);
	assert_int_equal(len, sizeof(inet6) - 1);
	assert_memory_equal(buf, inet6, len);
}

static void tls_is_written_and_read_again(void **state)
{
	(void)state;
	static const struct {
		bool tls, cert, verified, reads_verified;
		const char *version;
	} cases[] = {
		{ true, false, false, false, "TLSv1.3" },
		{ true, true, true, true, "TLSv1.2" },
		{ true, true, false, false, "0123456789abcdef" },
		{ false, false, false, false, "" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct proxyproto_header h = of(2, "192.0.2.1", "198.51.100.2",
						A128);
		uint8_t buf[PROXYPROTO_WRITE_MAX];
		struct proxyproto p;
		size_t used;

		h.tls = (struct proxyproto_tls){
			.said = true,
			.tls = cases[i].tls,
			.cert = cases[i].cert,
			.verified = cases[i].verified,
			.version_len = (uint8_t)strlen(cases[i].version),
		};
		memcpy(h.tls.version, cases[i].version, h.tls.version_len);
		proxyproto_begin(&p);
		assert_int_equal(proxyproto_feed(&p, buf,
						 proxyproto_write(buf, &h),
						 &used),
				 PROXYPROTO_DONE);
		assert_true(p.header.tls.said);
		assert_int_equal(p.header.tls.tls, cases[i].tls);
		assert_int_equal(p.header.tls.cert, cases[i].cert);
		assert_int_equal(p.header.tls.verified,
				 cases[i].reads_verified);
		assert_int_equal(p.header.tls.version_len, h.tls.version_len);
		assert_memory_equal(p.header.tls.version, h.tls.version,
				    h.tls.version_len);
	}
}

static void what_is_written_is_read_again(void **state)
{
	(void)state;
	static const char *const addresses[] = {
		"192.0.2.1", "0.0.0.0", "255.255.255.255",
		"::1",       "::",      "2001:db8::ffff:0:1",
	};
	enum { COUNT = sizeof(addresses) / sizeof(addresses[0]) };

	for (unsigned i = 0; i < 2 * COUNT * COUNT; i++) {
		struct proxyproto_header h = of(
			(uint8_t)(1 + i % 2), addresses[i / 2 % COUNT],
			addresses[i / 2 / COUNT], i % 4 == 3 ? A128 : "");
		uint8_t buf[PROXYPROTO_WRITE_MAX];
		size_t len = proxyproto_write(buf, &h);
		struct proxyproto p;
		size_t used;

		proxyproto_begin(&p);
		assert_int_equal(proxyproto_feed(&p, buf, len, &used),
				 PROXYPROTO_DONE);
		assert_int_equal(used, len);
		assert_int_equal(p.header.version, h.version);
		assert_true(cidr_addr_equal(&p.header.source, &h.source));
		assert_true(
			cidr_addr_equal(&p.header.destination, &h.destination));
		assert_int_equal(p.header.source_port, h.source_port);
		assert_int_equal(p.header.destination_port, h.destination_port);
		assert_int_equal(p.header.id_len, h.id_len);
		assert_memory_equal(p.header.id, h.id, h.id_len);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers_are_read_or_refused),
		cmocka_unit_test(headers_may_come_in_any_pieces),
		cmocka_unit_test(a_header_is_done_with_its_last_octet),
		cmocka_unit_test(the_longest_block_is_taken),
		cmocka_unit_test(
			what_is_no_header_is_known_by_its_first_octets),
		cmocka_unit_test(lines_are_written),
		cmocka_unit_test(binary_headers_are_written),
		cmocka_unit_test(tls_is_written_and_read_again),
		cmocka_unit_test(what_is_written_is_read_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
