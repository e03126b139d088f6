#include "proxy/proxyproto.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum {
	SIGNATURE_LEN = 12,
	FIXED_LEN = 16, /* signature, version and command, family, length */
	TLV_HEAD = 3,
	CRC_LEN = 4,
	TLS_HEAD = 5, /* PP2_TYPE_SSL: client bits, 4 octets of verify */

	INET_LEN = 12,
	INET6_LEN = 36,
	UNIX_LEN = 216,

	TLV_CRC32C = 0x03,
	TLV_UNIQUE_ID = 0x05,
	TLV_SSL = 0x20,
	TLV_SSL_VERSION = 0x21,

	CLIENT_SSL = 0x01,
	CLIENT_CERT = 0x02 | 0x04,

	SEEN_CRC = 1,
	SEEN_ID = 2,
	SEEN_TLS = 4,
};

static const uint8_t signature[SIGNATURE_LEN] = {
	'\r', '\n', '\r', '\n', 0, '\r', '\n', 'Q', 'U', 'I', 'T', '\n',
};
static const char v1_start[] = "PROXY ";

static_assert((int)PROXYPROTO_V1_MAX >= (int)FIXED_LEN + (int)INET6_LEN,
	      "raw[] holds the addresses of version 2");
static_assert((int)PROXYPROTO_WRITE_MAX >= (int)FIXED_LEN + (int)INET6_LEN +
						   (int)TLV_HEAD +
						   (int)PROXYPROTO_ID_MAX,
	      "what is written fits");

void proxyproto_begin(struct proxyproto *p)
{
	*p = (struct proxyproto){ .result = PROXYPROTO_MORE,
				  .crc = UINT32_MAX };
}

/* ---- version 1 ---- */

struct text {
	const char *at;
	size_t len;
};

/* Cut off the word up to a blank, or to the end; false: there is none. */
static bool next_word(struct text *rest, struct text *word)
{
	const char *blank;

	if (rest->at == NULL)
		return false;
	blank = memchr(rest->at, ' ', rest->len);
	word->at = rest->at;
	if (blank == NULL) {
		word->len = rest->len;
		rest->at = NULL;
		rest->len = 0;
	} else {
		word->len = (size_t)(blank - rest->at);
		rest->at = blank + 1;
		rest->len -= word->len + 1;
	}
	return word->len > 0;
}

static bool is_word(const struct text *word, const char *expected)
{
	return word->len == strlen(expected) &&
	       memcmp(word->at, expected, word->len) == 0;
}

static bool next_address(struct text *rest, bool v6, struct cidr_addr *addr)
{
	struct text word;

	if (!next_word(rest, &word))
		return false;
	if ((memchr(word.at, ':', word.len) != NULL) != v6)
		return false;
	return cidr_addr_parse(word.at, word.len, addr);
}

/* Decimal, 0..65535, no leading zeros: section 2.1. */
static bool next_port(struct text *rest, uint16_t *port)
{
	struct text word;
	uint32_t value = 0;

	if (!next_word(rest, &word) || word.len > 5 ||
	    (word.len > 1 && word.at[0] == '0'))
		return false;
	for (size_t i = 0; i < word.len; i++) {
		if (word.at[i] < '0' || word.at[i] > '9')
			return false;
		value = value * 10 + (uint32_t)(word.at[i] - '0');
	}
	if (value > UINT16_MAX)
		return false;
	*port = (uint16_t)value;
	return true;
}

/* The line behind "PROXY ", without its CRLF. */
static bool read_line(struct proxyproto_header *h, struct text rest)
{
	struct text word;

	h->version = 1;
	if (!next_word(&rest, &word))
		return false;
	/* "The receiver must ignore anything presented before the CRLF." */
	if (is_word(&word, "UNKNOWN"))
		return true;
	if (is_word(&word, "TCP4"))
		h->family = PROXYPROTO_INET;
	else if (is_word(&word, "TCP6"))
		h->family = PROXYPROTO_INET6;
	else
		return false;
	return next_address(&rest, h->family == PROXYPROTO_INET6, &h->source) &&
	       next_address(&rest, h->family == PROXYPROTO_INET6,
			    &h->destination) &&
	       next_port(&rest, &h->source_port) &&
	       next_port(&rest, &h->destination_port) && rest.at == NULL;
}

static enum proxyproto_result take_text(struct proxyproto *p, uint8_t octet)
{
	size_t start = sizeof(v1_start) - 1;
	size_t at = p->used;
	bool after_cr = at > 0 && p->raw[at - 1] == '\r';
	struct text rest;

	assert(at < PROXYPROTO_V1_MAX);
	p->raw[at] = octet;
	if (at < start)
		return octet == (uint8_t)v1_start[at] ? PROXYPROTO_MORE
						      : PROXYPROTO_BAD;
	if (octet == '\0' || after_cr != (octet == '\n'))
		return PROXYPROTO_BAD;
	if (!after_cr)
		return at + 1 < PROXYPROTO_V1_MAX ? PROXYPROTO_MORE
						  : PROXYPROTO_BAD;
	rest.at = (const char *)p->raw + start;
	rest.len = at - 1 - start;
	return read_line(&p->header, rest) ? PROXYPROTO_DONE : PROXYPROTO_BAD;
}

/* ---- version 2 ---- */

/* CRC32C (RFC 3720, appendix B.4), reflected, four bits at a time. */
static uint32_t crc_add(uint32_t crc, uint8_t octet)
{
	static const uint32_t table[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
		0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
		0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};

	crc ^= octet;
	crc = table[crc & 15] ^ crc >> 4;
	return table[crc & 15] ^ crc >> 4;
}

static uint16_t get_u16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void get_v4(const uint8_t *at, struct cidr_addr *addr)
{
	*addr = (struct cidr_addr){ .octets = { [10] = 0xff, [11] = 0xff } };
	memcpy(addr->octets + 12, at, 4);
}

/* The octet at 12..15 has come. */
static bool take_fixed(struct proxyproto *p, uint32_t at)
{
	struct proxyproto_header *h = &p->header;
	uint32_t addresses = 0;
	uint32_t block;

	if (at == 12) {
		h->version = 2;
		h->local = (p->raw[12] & 15) == 0;
		return p->raw[12] >> 4 == 2 && (p->raw[12] & 15) <= 1;
	}
	if (at != FIXED_LEN - 1)
		return true;
	block = get_u16(p->raw + 14);
	if (block > PROXYPROTO_V2_BLOCK_MAX)
		return false;
	p->end = FIXED_LEN + block;
	p->tlvs_at = p->end;
	if (h->local)
		return true;
	switch (p->raw[13]) {
	case 0x00:
		break;
	case 0x11:
		h->family = PROXYPROTO_INET;
		addresses = INET_LEN;
		break;
	case 0x21:
		h->family = PROXYPROTO_INET6;
		addresses = INET6_LEN;
		break;
	case 0x31:
		h->family = PROXYPROTO_UNIX;
		addresses = UNIX_LEN;
		break;
	default:
		return false;
	}
	p->tlvs_at = FIXED_LEN + addresses;
	return addresses <= block;
}

static void read_addresses(struct proxyproto *p)
{
	struct proxyproto_header *h = &p->header;
	const uint8_t *at = p->raw + FIXED_LEN;

	if (h->family == PROXYPROTO_INET) {
		get_v4(at, &h->source);
		get_v4(at + 4, &h->destination);
		h->source_port = get_u16(at + 8);
		h->destination_port = get_u16(at + 10);
	} else if (h->family == PROXYPROTO_INET6) {
		memcpy(h->source.octets, at, 16);
		memcpy(h->destination.octets, at + 16, 16);
		h->source_port = get_u16(at + 32);
		h->destination_port = get_u16(at + 34);
	}
}

/* An octet of a TLV's head: false if it cannot be within the octets left. */
static bool take_head(struct proxyproto_tlv *t, uint8_t octet, uint32_t left)
{
	assert(t->at < TLV_HEAD);
	if (t->at == 0)
		*t = (struct proxyproto_tlv){ .type = octet };
	else
		t->len = (uint16_t)(t->len << 8 | octet);
	t->at++;
	return t->len <= left && TLV_HEAD - t->at <= left;
}

static bool begin_once(struct proxyproto *p, unsigned which)
{
	bool first = (p->seen & which) == 0;

	p->seen |= which;
	return first;
}

/* The head is whole: may this be? */
static bool begin_tlv(struct proxyproto *p)
{
	const struct proxyproto_tlv *t = &p->tlv;

	switch (t->type) {
	case TLV_CRC32C:
		return t->len == CRC_LEN && begin_once(p, SEEN_CRC);
	case TLV_UNIQUE_ID:
		p->header.id_len = (uint8_t)t->len;
		return t->len <= PROXYPROTO_ID_MAX && begin_once(p, SEEN_ID);
	case TLV_SSL:
		p->header.tls.said = true;
		p->header.tls.verified = true;
		p->sub = (struct proxyproto_tlv){ 0 };
		return t->len >= TLS_HEAD && begin_once(p, SEEN_TLS);
	default:
		return true;
	}
}

/* The octet at this place of the TLS block, `left` behind it. */
static bool take_tls(struct proxyproto *p, uint32_t at, uint8_t octet,
		     uint32_t left)
{
	struct proxyproto_tls *tls = &p->header.tls;
	struct proxyproto_tlv *t = &p->sub;

	if (at == 0) {
		tls->tls = (octet & CLIENT_SSL) != 0;
		tls->cert = (octet & CLIENT_CERT) != 0;
	} else if (at < TLS_HEAD) {
		tls->verified = tls->verified && octet == 0;
	} else if (t->at < TLV_HEAD) {
		if (!take_head(t, octet, left))
			return false;
	} else {
		if (t->type == TLV_SSL_VERSION &&
		    t->at - TLV_HEAD < PROXYPROTO_TLS_VERSION_MAX) {
			tls->version[t->at - TLV_HEAD] = (char)octet;
			tls->version_len = (uint8_t)(t->at - TLV_HEAD + 1);
		}
		t->at++;
	}
	if (t->at >= TLV_HEAD && t->at == (uint32_t)TLV_HEAD + t->len)
		t->at = 0;
	return true;
}

static bool take_value(struct proxyproto *p, uint8_t octet)
{
	struct proxyproto_tlv *t = &p->tlv;
	uint32_t at = t->at++ - TLV_HEAD;

	switch (t->type) {
	case TLV_CRC32C:
		p->crc_said = p->crc_said << 8 | octet;
		return true;
	case TLV_UNIQUE_ID:
		p->header.id[at] = octet;
		return true;
	case TLV_SSL:
		return take_tls(p, at, octet, t->len - at - 1);
	default:
		return true;
	}
}

static bool take_tlv(struct proxyproto *p, uint8_t octet)
{
	struct proxyproto_tlv *t = &p->tlv;
	uint32_t left = p->end - p->used - 1;

	if (t->at >= TLV_HEAD) {
		if (!take_value(p, octet))
			return false;
	} else {
		if (!take_head(t, octet, left))
			return false;
		if (t->at == TLV_HEAD && !begin_tlv(p))
			return false;
	}
	if (t->at >= TLV_HEAD && t->at == (uint32_t)TLV_HEAD + t->len)
		t->at = 0;
	return true;
}

static bool crc_fits(const struct proxyproto *p)
{
	return (p->seen & SEEN_CRC) == 0 || p->crc_said == ~p->crc;
}

static enum proxyproto_result take_binary(struct proxyproto *p, uint8_t octet)
{
	uint32_t at = p->used;
	bool is_crc = at >= FIXED_LEN && at >= p->tlvs_at &&
		      p->tlv.type == TLV_CRC32C && p->tlv.at >= TLV_HEAD;

	/* The sum was made with zeros where it stands itself. */
	p->crc = crc_add(p->crc, is_crc ? 0 : octet);
	if (at < sizeof(p->raw))
		p->raw[at] = octet;
	if (at < SIGNATURE_LEN)
		return octet == signature[at] ? PROXYPROTO_MORE
					      : PROXYPROTO_BAD;
	if (at < FIXED_LEN) {
		if (!take_fixed(p, at))
			return PROXYPROTO_BAD;
		if (at + 1 < FIXED_LEN)
			return PROXYPROTO_MORE;
	} else if (at >= p->tlvs_at && !p->header.local) {
		if (!take_tlv(p, octet))
			return PROXYPROTO_BAD;
	}
	if (at + 1 == p->tlvs_at)
		read_addresses(p);
	if (at + 1 < p->end)
		return PROXYPROTO_MORE;
	return crc_fits(p) ? PROXYPROTO_DONE : PROXYPROTO_BAD;
}

enum proxyproto_result proxyproto_feed(struct proxyproto *p,
				       const uint8_t *data, size_t len,
				       size_t *used)
{
	size_t n = 0;

	assert(data != NULL || len == 0);
	while (n < len && p->result == PROXYPROTO_MORE) {
		bool binary = (p->used > 0 ? p->raw[0] : data[n]) ==
			      signature[0];

		p->result = binary ? take_binary(p, data[n])
				   : take_text(p, data[n]);
		p->used++;
		n++;
	}
	*used = n;
	return p->result;
}

/* ---- writing ---- */

/* IPv4 in a line of TCP6 is written as what it is there: IPv4-mapped. */
static void format(const struct cidr_addr *addr, bool v6,
		   char text[CIDR_ADDR_TEXT_MAX + 8])
{
	static const char mapped[] = "::ffff:";
	size_t start = 0;

	if (v6 && cidr_addr_is_v4(addr)) {
		memcpy(text, mapped, sizeof(mapped));
		start = sizeof(mapped) - 1;
	}
	(void)cidr_addr_format(addr, text + start, CIDR_ADDR_TEXT_MAX);
}

static size_t write_line(uint8_t *buf, const struct proxyproto_header *h,
			 bool v6)
{
	char source[CIDR_ADDR_TEXT_MAX + 8];
	char destination[CIDR_ADDR_TEXT_MAX + 8];
	char line[PROXYPROTO_WRITE_MAX];
	int n;

	format(&h->source, v6, source);
	format(&h->destination, v6, destination);
	n = snprintf(line, sizeof(line), "PROXY %s %s %s %u %u\r\n",
		     v6 ? "TCP6" : "TCP4", source, destination, h->source_port,
		     h->destination_port);
	assert(n > 0);
	assert(n <= PROXYPROTO_V1_MAX);
	memcpy(buf, line, (size_t)n);
	return (size_t)n;
}

static size_t put_u16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)(value & 255);
	return 2;
}

static size_t put_address(uint8_t *at, const struct cidr_addr *addr, bool v6)
{
	size_t len = v6 ? 16 : 4;

	memcpy(at, addr->octets + 16 - len, len);
	return len;
}

/* Section 2.2.6: how the client came to us. */
static size_t put_tls(uint8_t *at, const struct proxyproto_tls *tls)
{
	size_t n = TLV_HEAD;

	assert(tls->version_len <= PROXYPROTO_TLS_VERSION_MAX);
	at[0] = TLV_SSL;
	at[n++] = (uint8_t)((tls->tls ? CLIENT_SSL : 0) |
			    (tls->cert ? CLIENT_CERT : 0));
	/* 0 is said of a certificate that was verified, and nothing else. */
	memset(at + n, tls->cert && tls->verified ? 0 : 0xff, 4);
	n += 4;
	if (tls->version_len > 0) {
		at[n++] = TLV_SSL_VERSION;
		n += put_u16(at + n, tls->version_len);
		memcpy(at + n, tls->version, tls->version_len);
		n += tls->version_len;
	}
	(void)put_u16(at + 1, (uint16_t)(n - TLV_HEAD));
	return n;
}

static size_t write_binary(uint8_t *buf, const struct proxyproto_header *h,
			   bool known, bool v6)
{
	size_t n = SIGNATURE_LEN;

	memcpy(buf, signature, SIGNATURE_LEN);
	buf[n++] = h->local ? 0x20 : 0x21;
	buf[n++] = !known ? 0x00 : v6 ? 0x21 : 0x11;
	n += 2; /* the length */
	if (known) {
		n += put_address(buf + n, &h->source, v6);
		n += put_address(buf + n, &h->destination, v6);
		n += put_u16(buf + n, h->source_port);
		n += put_u16(buf + n, h->destination_port);
	}
	if (h->id_len > 0) {
		assert(h->id_len <= PROXYPROTO_ID_MAX);
		buf[n++] = TLV_UNIQUE_ID;
		n += put_u16(buf + n, h->id_len);
		memcpy(buf + n, h->id, h->id_len);
		n += h->id_len;
	}
	if (h->tls.said)
		n += put_tls(buf + n, &h->tls);
	(void)put_u16(buf + 14, (uint16_t)(n - FIXED_LEN));
	assert(n <= PROXYPROTO_WRITE_MAX);
	return n;
}

size_t proxyproto_write(uint8_t buf[PROXYPROTO_WRITE_MAX],
			const struct proxyproto_header *h)
{
	static const char unknown[] = "PROXY UNKNOWN\r\n";
	bool known = !h->local && (h->family == PROXYPROTO_INET ||
				   h->family == PROXYPROTO_INET6);
	bool v6 = !cidr_addr_is_v4(&h->source) ||
		  !cidr_addr_is_v4(&h->destination);

	assert(h->version == 1 || h->version == 2);
	if (h->version == 2)
		return write_binary(buf, h, known, v6);
	if (known)
		return write_line(buf, h, v6);
	memcpy(buf, unknown, sizeof(unknown) - 1);
	return sizeof(unknown) - 1;
}
