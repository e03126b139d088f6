#ifndef PROXY_PROXYPROTO_H
#define PROXY_PROXYPROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/cidr.h"

/*
 * The header of the PROXY protocol, versions 1 (a line of text) and 2
 * (binary), as HAProxy's proxy-protocol.txt has it: what a proxy says of a
 * connection before the connection itself begins.
 *
 * Pure: no I/O, no clock, no allocation.  Whom to believe is not decided here.
 */

enum {
	PROXYPROTO_V1_MAX =
		107, /* octets of a line, CRLF included: section 2.1 */
	/* Octets behind the fixed 16 of version 2.  The field could say 65535;
	 * the longest that proxies send (a UNIX address, TLS with a name, ids)
	 * is far below this. */
	PROXYPROTO_V2_BLOCK_MAX = 2048,
	PROXYPROTO_ID_MAX = 128, /* octets of a unique id: section 2.2.5 */
	PROXYPROTO_TLS_VERSION_MAX = 16,
	/* Octets that proxyproto_write() may need.  Postfix reads the first
	 * 536 of a connection once, and looks for the whole header there. */
	PROXYPROTO_WRITE_MAX = 256,
};

enum proxyproto_family {
	PROXYPROTO_UNSPEC, /* not told, or nothing weir knows: "UNKNOWN" */
	PROXYPROTO_INET,
	PROXYPROTO_INET6,
	PROXYPROTO_UNIX, /* the paths are not kept */
};

/* PP2_TYPE_SSL (section 2.2.6): how the client came to the proxy. */
struct proxyproto_tls {
	bool said;     /* else the rest means nothing */
	bool tls;      /* PP2_CLIENT_SSL: over TLS */
	bool cert;     /* PP2_CLIENT_CERT_CONN or _SESS: with a certificate */
	bool verified; /* which was verified; true also if there was none */
	uint8_t version_len;
	char version[PROXYPROTO_TLS_VERSION_MAX]; /* peer's octets, cut */
};

/* What a header says. */
struct proxyproto_header {
	uint8_t version; /* 1 or 2 */
	bool local;      /* the proxy's own connection: it speaks for nobody */
	enum proxyproto_family family;
	/* Of INET and INET6; else zero.  IPv4-mapped addresses are IPv4 ones,
	 * whatever the family. */
	struct cidr_addr source, destination;
	uint16_t source_port, destination_port;
	uint8_t id_len;                /* 0: none */
	uint8_t id[PROXYPROTO_ID_MAX]; /* PP2_TYPE_UNIQUE_ID, peer's octets */
	struct proxyproto_tls tls;
};

enum proxyproto_result {
	PROXYPROTO_MORE, /* it goes on */
	PROXYPROTO_DONE, /* .header is whole */
	PROXYPROTO_BAD,  /* not a PROXY header, or not a good one */
};

/* A header that is being read.  Its fields but .header are private. */
struct proxyproto {
	struct proxyproto_header header;
	enum proxyproto_result result;
	uint32_t used;    /* octets taken */
	uint32_t end;     /* version 2: octets in all, once known */
	uint32_t tlvs_at; /* where its type-length-values begin */
	uint32_t crc, crc_said;
	unsigned seen; /* bits: TLVs that may come but once */
	struct proxyproto_tlv {
		uint8_t type;
		uint16_t len;
		uint32_t at; /* octets of it taken, its 3 of head included */
	} tlv, sub;
	uint8_t raw[PROXYPROTO_V1_MAX];
};

void proxyproto_begin(struct proxyproto *p);

/*
 * Take the next octets, in pieces of any size; *used is how many of them
 * belong to the header: with DONE what follows is the connection's.  BAD as
 * soon as no octets could make it good.  DONE and BAD stay, and take nothing.
 *
 * BAD are also: datagrams; a version, command or family that is not defined;
 * a block that is too short for its addresses or for its TLVs; a CRC32C that
 * does not fit; a second unique id, CRC or TLS block.  TLVs of other types are
 * skipped, as is all that a LOCAL header brings (section 2.2).
 */
enum proxyproto_result proxyproto_feed(struct proxyproto *p,
				       const uint8_t *data, size_t len,
				       size_t *used);

/*
 * Write a header of h->version; returns its octets.  LOCAL and UNSPEC have no
 * addresses ("PROXY UNKNOWN" in version 1).  Otherwise the family is that of
 * the addresses (both IPv4: INET; else INET6).  Version 2 has the unique id,
 * up to PROXYPROTO_ID_MAX octets, if id_len > 0, and h->tls if that was said.
 * UNIX is UNSPEC here.
 */
size_t proxyproto_write(uint8_t buf[PROXYPROTO_WRITE_MAX],
			const struct proxyproto_header *h);

#endif
