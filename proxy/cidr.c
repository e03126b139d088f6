#include "proxy/cidr.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum {
	V4_OCTETS = 4,
	V4_OFFSET = CIDR_V4_BITS / 8,
	V6_OCTETS = 16,
};

static_assert(CIDR_ADDR_TEXT_MAX == INET6_ADDRSTRLEN, "text of an address");
static_assert(sizeof(struct cidr_addr) == sizeof(struct in6_addr), "octets");

/* ::ffff:0:0/96 (RFC 4291, section 2.5.5.2). */
static const uint8_t v4_prefix[V4_OFFSET] = { 0, 0, 0, 0, 0,    0,
					      0, 0, 0, 0, 0xff, 0xff };

static int compare(const struct cidr_addr *a, const struct cidr_addr *b)
{
	return memcmp(a->octets, b->octets, sizeof(a->octets));
}

static void set_v4(struct cidr_addr *addr, const uint8_t octets[V4_OCTETS])
{
	memcpy(addr->octets, v4_prefix, V4_OFFSET);
	memcpy(addr->octets + V4_OFFSET, octets, V4_OCTETS);
}

/* The last address of the network that addr's first bits name. */
static struct cidr_addr last_of(const struct cidr_addr *addr, unsigned bits)
{
	struct cidr_addr last = *addr;

	assert(bits <= CIDR_BITS_MAX);
	for (unsigned i = bits / 8; i < V6_OCTETS; i++) {
		unsigned kept = i == bits / 8 ? bits % 8 : 0;

		last.octets[i] |= (uint8_t)(0xffU >> kept);
	}
	return last;
}

static struct cidr_addr first_of(const struct cidr_addr *addr, unsigned bits)
{
	struct cidr_addr first = *addr;

	assert(bits <= CIDR_BITS_MAX);
	for (unsigned i = bits / 8; i < V6_OCTETS; i++) {
		unsigned kept = i == bits / 8 ? bits % 8 : 0;

		first.octets[i] &= (uint8_t) ~(0xffU >> kept);
	}
	return first;
}

/* *addr plus one; false at the last address there is. */
static bool step_up(struct cidr_addr *addr)
{
	for (size_t i = V6_OCTETS; i-- > 0;) {
		addr->octets[i] = (uint8_t)(addr->octets[i] + 1);
		if (addr->octets[i] != 0)
			return true;
	}
	return false;
}

static void step_down(struct cidr_addr *addr)
{
	for (size_t i = V6_OCTETS; i-- > 0;) {
		addr->octets[i] = (uint8_t)(addr->octets[i] - 1);
		if (addr->octets[i] != 0xff)
			return;
	}
}

bool cidr_addr_from_sockaddr(struct cidr_addr *addr, uint16_t *port,
			     const struct sockaddr *sa, size_t sa_len)
{
	sa_family_t family;
	uint8_t wire_port[2];

	/* Copied octet by octet: sa need not be aligned for its family. */
	if (sa_len < offsetof(struct sockaddr, sa_data))
		return false;
	memcpy(&family, &sa->sa_family, sizeof(family));

	if (family == AF_INET && sa_len >= sizeof(struct sockaddr_in)) {
		struct sockaddr_in in;

		memcpy(&in, sa, sizeof(in));
		set_v4(addr, (const uint8_t *)&in.sin_addr);
		memcpy(wire_port, &in.sin_port, sizeof(wire_port));
	} else if (family == AF_INET6 &&
		   sa_len >= sizeof(struct sockaddr_in6)) {
		struct sockaddr_in6 in6;

		memcpy(&in6, sa, sizeof(in6));
		memcpy(addr->octets, &in6.sin6_addr, V6_OCTETS);
		memcpy(wire_port, &in6.sin6_port, sizeof(wire_port));
	} else {
		return false;
	}
	if (port != NULL)
		*port = (uint16_t)(wire_port[0] << 8 | wire_port[1]);
	return true;
}

size_t cidr_addr_to_sockaddr(const struct cidr_addr *addr, uint16_t port,
			     struct sockaddr_storage *ss)
{
	const uint8_t wire_port[2] = { (uint8_t)(port >> 8), (uint8_t)port };

	memset(ss, 0, sizeof(*ss));
	if (cidr_addr_is_v4(addr)) {
		struct sockaddr_in in = { .sin_family = AF_INET };

		memcpy(&in.sin_addr, addr->octets + V4_OFFSET, V4_OCTETS);
		memcpy(&in.sin_port, wire_port, sizeof(wire_port));
		memcpy(ss, &in, sizeof(in));
		return sizeof(in);
	}

	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };

	memcpy(&in6.sin6_addr, addr->octets, V6_OCTETS);
	memcpy(&in6.sin6_port, wire_port, sizeof(wire_port));
	memcpy(ss, &in6, sizeof(in6));
	return sizeof(in6);
}

bool cidr_addr_is_v4(const struct cidr_addr *addr)
{
	return memcmp(addr->octets, v4_prefix, V4_OFFSET) == 0;
}

bool cidr_addr_equal(const struct cidr_addr *a, const struct cidr_addr *b)
{
	return compare(a, b) == 0;
}

bool cidr_addr_parse(const char *text, size_t len, struct cidr_addr *addr)
{
	char copy[CIDR_ADDR_TEXT_MAX];
	uint8_t octets[V6_OCTETS];

	if (len == 0 || len >= sizeof(copy) || memchr(text, '\0', len) != NULL)
		return false;
	memcpy(copy, text, len);
	copy[len] = '\0';

	if (inet_pton(AF_INET, copy, octets) == 1) {
		set_v4(addr, octets);
		return true;
	}
	if (inet_pton(AF_INET6, copy, octets) != 1)
		return false;
	memcpy(addr->octets, octets, sizeof(octets));
	return true;
}

size_t cidr_addr_format(const struct cidr_addr *addr, char *buf, size_t cap)
{
	const char *text;

	assert(cap >= CIDR_ADDR_TEXT_MAX);
	if (cidr_addr_is_v4(addr)) {
		text = inet_ntop(AF_INET, addr->octets + V4_OFFSET, buf,
				 CIDR_ADDR_TEXT_MAX);
	} else {
		text = inet_ntop(AF_INET6, addr->octets, buf,
				 CIDR_ADDR_TEXT_MAX);
	}
	assert(text != NULL);
	return strlen(text);
}

struct cidr_addr cidr_addr_mask(const struct cidr_addr *addr, unsigned v4_bits,
				unsigned v6_bits)
{
	assert(v4_bits <= CIDR_BITS_MAX - CIDR_V4_BITS);
	assert(v6_bits <= CIDR_BITS_MAX);
	if (cidr_addr_is_v4(addr))
		return first_of(addr, CIDR_V4_BITS + v4_bits);
	return first_of(addr, v6_bits);
}

/*
 * A decimal number of at most three digits, without a leading zero: 08 would
 * be ten to some and nonsense to others.  False if it is anything else.
 */
static bool parse_bits(const char *text, size_t len, unsigned *bits)
{
	unsigned value = 0;

	if (len == 0 || len > 3 || (len > 1 && text[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		value = value * 10 + (unsigned)(text[i] - '0');
	}
	*bits = value;
	return true;
}

/* The bits of a prefix that was written behind an address of this family. */
static bool prefix_bits(const char *text, size_t len, unsigned in_front,
			unsigned *bits)
{
	unsigned value;

	if (!parse_bits(text, len, &value) || value > CIDR_BITS_MAX - in_front)
		return false;
	*bits = in_front + value;
	return true;
}

bool cidr_parse(const char *text, size_t len, struct cidr *net, char *why,
		size_t why_cap)
{
	const char *slash = len == 0 ? NULL : memchr(text, '/', len);
	size_t addr_len = slash == NULL ? len : (size_t)(slash - text);
	struct cidr_addr addr;
	unsigned bits = CIDR_BITS_MAX;

	assert(why_cap >= CIDR_WHY_MAX);
	if (!cidr_addr_parse(text, addr_len, &addr)) {
		(void)snprintf(why, why_cap,
			       "not an IPv4 or IPv6 address, or a network "
			       "such as 192.0.2.0/24 or 2001:db8::/32");
		return false;
	}

	/* A mapped address in IPv6 notation has its prefix in IPv6 bits. */
	bool dotted = memchr(text, ':', addr_len) == NULL;
	unsigned in_front = dotted ? CIDR_V4_BITS : 0;

	if (slash != NULL &&
	    !prefix_bits(slash + 1, len - addr_len - 1, in_front, &bits)) {
		(void)snprintf(why, why_cap,
			       "the prefix length of an %s network is a whole "
			       "number from 0 to %u",
			       dotted ? "IPv4" : "IPv6",
			       (unsigned)CIDR_BITS_MAX - in_front);
		return false;
	}

	struct cidr right = { .addr = first_of(&addr, bits),
			      .bits = (uint8_t)bits };

	if (!cidr_addr_equal(&right.addr, &addr)) {
		char right_text[CIDR_TEXT_MAX];

		(void)cidr_format(&right, right_text, sizeof(right_text));
		(void)snprintf(why, why_cap,
			       "host bits are set: the network is %s",
			       right_text);
		return false;
	}
	*net = right;
	return true;
}

size_t cidr_format(const struct cidr *net, char *buf, size_t cap)
{
	unsigned bits = net->bits;

	assert(cap >= CIDR_TEXT_MAX);
	assert(bits <= CIDR_BITS_MAX);
	/* A network of IPv4 addresses only is written as IPv4. */
	if (bits >= CIDR_V4_BITS && cidr_addr_is_v4(&net->addr))
		bits -= CIDR_V4_BITS;

	size_t len = cidr_addr_format(&net->addr, buf, cap);
	int more = snprintf(buf + len, cap - len, "/%u", bits);

	assert(more > 0);
	return len + (size_t)more;
}

bool cidr_has(const struct cidr *net, const struct cidr_addr *addr)
{
	if (net->bits < CIDR_V4_BITS && cidr_addr_is_v4(addr))
		return false;

	struct cidr_addr masked = first_of(addr, net->bits);

	return cidr_addr_equal(&masked, &net->addr);
}

void cidr_set_init(struct cidr_set *set, struct cidr_range *ranges,
		   size_t ranges_max)
{
	*set = (struct cidr_set){ .ranges = ranges, .ranges_max = ranges_max };
}

/*
 * An IPv6 network that surrounds ::ffff:0:0/96 becomes what lies before the
 * block, and what lies after it unless both end at once.  There is always
 * something before it: the last bit of the block's own prefix is set.
 */
static size_t split(const struct cidr *net, struct cidr_range out[2])
{
	struct cidr_addr v4_first = { { 0 } };
	struct cidr_range whole = {
		.first = net->addr,
		.last = last_of(&net->addr, net->bits),
	};

	memcpy(v4_first.octets, v4_prefix, V4_OFFSET);
	struct cidr_addr v4_last = last_of(&v4_first, CIDR_V4_BITS);

	if (net->bits >= CIDR_V4_BITS || compare(&whole.first, &v4_first) > 0 ||
	    compare(&whole.last, &v4_last) < 0) {
		out[0] = whole;
		return 1;
	}

	out[0] = (struct cidr_range){ whole.first, v4_first };
	step_down(&out[0].last);
	if (cidr_addr_equal(&whole.last, &v4_last))
		return 1;
	out[1] = (struct cidr_range){ v4_last, whole.last };
	(void)step_up(&out[1].first); /* v4_last is not the last address */
	return 2;
}

bool cidr_set_add(struct cidr_set *set, const struct cidr *net)
{
	struct cidr_range parts[2];
	size_t parts_count = split(net, parts);

	assert(!set->sealed);
	assert(set->count <= set->ranges_max);
	if (set->ranges_max - set->count < parts_count)
		return false;
	memcpy(set->ranges + set->count, parts, parts_count * sizeof(parts[0]));
	set->count += parts_count;
	return true;
}

/* Let ranges[root] sink to its place in the heap ranges[0..count). */
static void sift_down(struct cidr_range *ranges, size_t root, size_t count)
{
	struct cidr_range moving = ranges[root];

	for (;;) {
		size_t child = 2 * root + 1;

		if (child >= count)
			break;
		if (child + 1 < count &&
		    compare(&ranges[child].first, &ranges[child + 1].first) < 0)
			child++;
		if (compare(&moving.first, &ranges[child].first) >= 0)
			break;
		ranges[root] = ranges[child];
		root = child;
	}
	ranges[root] = moving;
}

/* Heap sort by first address: no recursion, no memory, no bad case. */
static void sort(struct cidr_range *ranges, size_t count)
{
	for (size_t i = count / 2; i-- > 0;)
		sift_down(ranges, i, count);
	for (size_t end = count; end-- > 1;) {
		struct cidr_range largest = ranges[0];

		ranges[0] = ranges[end];
		ranges[end] = largest;
		sift_down(ranges, 0, end);
	}
}

/* Does next begin inside the range that ends at last, or right behind it? */
static bool touches(const struct cidr_addr *last, const struct cidr_addr *next)
{
	struct cidr_addr behind = *last;

	return compare(next, last) <= 0 ||
	       (step_up(&behind) && cidr_addr_equal(&behind, next));
}

void cidr_set_seal(struct cidr_set *set)
{
	size_t kept = 0;

	assert(!set->sealed);
	assert(set->count <= set->ranges_max);
	sort(set->ranges, set->count);
	for (size_t i = 0; i < set->count; i++) {
		const struct cidr_range *range = &set->ranges[i];
		struct cidr_range *before = kept == 0 ? NULL
						      : &set->ranges[kept - 1];

		if (before == NULL || !touches(&before->last, &range->first))
			set->ranges[kept++] = *range;
		else if (compare(&before->last, &range->last) < 0)
			before->last = range->last;
	}
	set->count = kept;
	set->sealed = true;
}

bool cidr_set_has(const struct cidr_set *set, const struct cidr_addr *addr)
{
	size_t low = 0;
	size_t high = set->count;

	assert(set->sealed);
	/* All ranges before low begin at or before addr, none from high on. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (compare(&set->ranges[middle].first, addr) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low > 0 && compare(addr, &set->ranges[low - 1].last) <= 0;
}
