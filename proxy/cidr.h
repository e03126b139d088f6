#ifndef PROXY_CIDR_H
#define PROXY_CIDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Internet addresses, networks, and sets of networks.
 *
 * Pure: no I/O, no clock, no allocation.  Text comes from operators and from
 * peers: it is carried with its length and need not end in NUL.
 *
 * struct cidr_addr is the one address type of the program; ports travel
 * beside it.  IPv4 is kept as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2),
 * so that one client has one address whichever socket it came through.  The
 * families stay apart all the same: an IPv6 network never holds an IPv4
 * address, not even ::/0.
 */

struct sockaddr;
struct sockaddr_storage;

enum {
	/* Octets of text, the NUL included: an address, a network. */
	CIDR_ADDR_TEXT_MAX = 46,
	CIDR_TEXT_MAX = CIDR_ADDR_TEXT_MAX + 4,
	/* Enough for any complaint of cidr_parse. */
	CIDR_WHY_MAX = 160,

	CIDR_BITS_MAX = 128,
	CIDR_V4_BITS = 96, /* bits in front of an IPv4 address */
};

/* Network order.  All octets count: compare with cidr_addr_equal or memcmp. */
struct cidr_addr {
	uint8_t octets[16];
};

/* A network.  No bit behind the prefix is set. */
struct cidr {
	struct cidr_addr addr;
	uint8_t bits; /* 0..128 of the 16 octets: 10.0.0.0/8 has 96 + 8 */
};

/* Addresses first..last, both included. */
struct cidr_range {
	struct cidr_addr first;
	struct cidr_addr last;
};

/*
 * A set of addresses: sorted ranges that neither touch nor overlap.  The
 * caller owns the array.  Once sealed it does not change, and any number of
 * threads may ask it.
 */
struct cidr_set {
	struct cidr_range *ranges;
	size_t count;
	size_t ranges_max;
	bool sealed;
};

/*
 * The address of a socket, and its port in host order unless port is NULL.
 * A scope (fe80::1%eth0) is dropped.  False, and nothing written, if it is
 * neither IPv4 nor IPv6 or sa_len is too short for its family.
 */
bool cidr_addr_from_sockaddr(struct cidr_addr *addr, uint16_t *port,
			     const struct sockaddr *sa, size_t sa_len);

/* The other way round: AF_INET for IPv4, else AF_INET6.  The octets used. */
size_t cidr_addr_to_sockaddr(const struct cidr_addr *addr, uint16_t port,
			     struct sockaddr_storage *ss);

bool cidr_addr_is_v4(const struct cidr_addr *addr);
bool cidr_addr_equal(const struct cidr_addr *a, const struct cidr_addr *b);

/*
 * One address in text[0..len): dotted decimal of four numbers, or IPv6
 * (RFC 4291, section 2.2).  No brackets, blanks, port or scope.  False, and
 * nothing written, if it is anything else.
 */
bool cidr_addr_parse(const char *text, size_t len, struct cidr_addr *addr);

/*
 * Canonical text, NUL at its end: dotted decimal or RFC 5952.  Returns its
 * length.  cap is at least CIDR_ADDR_TEXT_MAX.
 */
size_t cidr_addr_format(const struct cidr_addr *addr, char *buf, size_t cap);

/*
 * The network of addr: its first v4_bits (0..32) if it is IPv4, otherwise
 * its first v6_bits (0..128); the other bits zero.
 */
struct cidr_addr cidr_addr_mask(const struct cidr_addr *addr, unsigned v4_bits,
				unsigned v6_bits);

/*
 * One network in text[0..len): ADDRESS/BITS, or an ADDRESS alone, which is a
 * network of one.  A prefix of IPv4-mapped addresses (::ffff:10.0.0.0/104)
 * is the IPv4 network (10.0.0.0/8).
 *
 * False, and *net untouched, if it is no network; why[0..why_cap) then says
 * what is wrong, NUL at its end, without repeating the text: "host bits are
 * set: the network is 10.0.0.0/8".  why_cap is at least CIDR_WHY_MAX.
 */
bool cidr_parse(const char *text, size_t len, struct cidr *net, char *why,
		size_t why_cap);

/*
 * Canonical text, NUL at its end, always with its prefix length.  Returns
 * its length.  cap is at least CIDR_TEXT_MAX.
 */
size_t cidr_format(const struct cidr *net, char *buf, size_t cap);

bool cidr_has(const struct cidr *net, const struct cidr_addr *addr);

/* An empty set, not sealed, over the caller's array. */
void cidr_set_init(struct cidr_set *set, struct cidr_range *ranges,
		   size_t ranges_max);

/*
 * Add a network to a set not yet sealed.  It takes one range; two if it is
 * an IPv6 network wide enough to surround the IPv4-mapped addresses, which
 * it does not hold.  False, and nothing added, if the array is full.
 */
bool cidr_set_add(struct cidr_set *set, const struct cidr *net);

/* Sort and merge.  O(n log n), in place.  Once per set. */
void cidr_set_seal(struct cidr_set *set);

/* Is addr in a sealed set?  O(log n). */
bool cidr_set_has(const struct cidr_set *set, const struct cidr_addr *addr);

#endif
