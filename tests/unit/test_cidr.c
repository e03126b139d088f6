#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "proxy/cidr.h"

static struct cidr_addr addr_of(const char *text)
{
	struct cidr_addr addr;

	if (!cidr_addr_parse(text, strlen(text), &addr))
		fail_msg("no address: %s", text);
	return addr;
}

static struct cidr net_of(const char *text)
{
	char why[CIDR_WHY_MAX];
	struct cidr net;

	if (!cidr_parse(text, strlen(text), &net, why, sizeof(why)))
		fail_msg("no network: %s: %s", text, why);
	return net;
}

static void an_address_has_one_canonical_text(void **state)
{
	/* clang-format off */
	static const struct {
		const char *in, *out, *why;
	} cases[] = {
		{ "192.0.2.1", "192.0.2.1", "dotted decimal" },
		{ "0.0.0.0", "0.0.0.0", "the lowest" },
		{ "255.255.255.255", "255.255.255.255", "the highest" },
		{ "::ffff:192.0.2.1", "192.0.2.1", "mapped is IPv4" },
		{ "::FFFF:c000:201", "192.0.2.1", "mapped, in hexadecimal" },
		{ "0:0:0:0:0:ffff:c000:0201", "192.0.2.1", "mapped, in full" },
		{ "::", "::", "unspecified" },
		{ "::1", "::1", "loopback" },
		{ "2001:DB8::A", "2001:db8::a", "lower case (RFC 5952, 4.3)" },
		{ "2001:0db8:0000:0000:0001:0000:0000:0001",
		  "2001:db8::1:0:0:1", "the first of two runs (4.2.3)" },
		{ "2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1",
		  "one group of zeros stays (4.2.2)" },
		{ "2001:0:0:1:0:0:0:1", "2001:0:0:1::1",
		  "the longest run is cut (4.2.3)" },
		{ "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		  "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "the longest" },
		{ "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255",
		  "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		  "the longest that can be written" },
	};
	/* clang-format on */
	char text[CIDR_ADDR_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cidr_addr addr = addr_of(cases[i].in);
		size_t len = cidr_addr_format(&addr, text, sizeof(text));

		if (strcmp(text, cases[i].out) != 0)
			fail_msg("%s: %s is %s", cases[i].why, cases[i].in,
				 text);
		assert_int_equal(len, strlen(cases[i].out));
		struct cidr_addr again = addr_of(text);

		assert_true(cidr_addr_equal(&addr, &again));
	}
}

static void what_is_no_address_is_refused_and_nothing_written(void **state)
{
	/* clang-format off */
	static const struct {
		const char *text; size_t len; const char *why;
	} cases[] = {
		{ "", 0, "nothing" },
		{ "192.0.2", 7, "three numbers" },
		{ "192.0.2.256", 11, "a number beyond 255" },
		{ "192.0.2.01", 10, "octal to some" },
		{ "0x7f.0.0.1", 10, "hexadecimal" },
		{ "2130706433", 10, "one number" },
		{ " 192.0.2.1", 10, "a blank in front" },
		{ "192.0.2.1 ", 10, "a blank behind" },
		{ "192.0.2.1\0", 10, "a NUL behind" },
		{ "192.0.2.1\0.5", 12, "a NUL inside" },
		{ "[::1]", 5, "brackets" },
		{ "fe80::1%eth0", 12, "a scope" },
		{ "1:2:3:4:5:6:7", 13, "seven groups" },
		{ "1:2:3:4:5:6:7:8:9", 17, "nine groups" },
		{ "1::2::3", 7, "two gaps" },
		{ "12345::", 7, "five digits" },
		{ "::1/128", 7, "a network" },
		{ "mail.example", 12, "a name" },
		{ "0000:0000:0000:0000:0000:0000:0000:0000:0000:0000", 49,
		  "longer than any address" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cidr_addr addr;
		struct cidr_addr before;

		memset(&addr, 0xa5, sizeof(addr));
		before = addr;
		if (cidr_addr_parse(cases[i].text, cases[i].len, &addr))
			fail_msg("taken: %s", cases[i].why);
		assert_true(cidr_addr_equal(&addr, &before));
	}
}

static void only_len_octets_of_the_text_are_read(void **state)
{
	static const char text[] = "192.0.2.123";
	struct cidr_addr expected = addr_of("192.0.2.12");
	struct cidr_addr addr;

	(void)state;
	assert_true(cidr_addr_parse(text, sizeof(text) - 2, &addr));
	assert_true(cidr_addr_equal(&addr, &expected));
}

static void a_socket_address_comes_back_as_it_was(void **state)
{
	static const struct {
		const char *text;
		sa_family_t family;
		size_t len;
	} cases[] = {
		{ "127.0.0.1", AF_INET, sizeof(struct sockaddr_in) },
		{ "2001:db8::25", AF_INET6, sizeof(struct sockaddr_in6) },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cidr_addr addr = addr_of(cases[i].text);
		struct sockaddr_storage ss;
		struct cidr_addr again;
		uint16_t port = 0;

		size_t len = cidr_addr_to_sockaddr(&addr, 0x1234, &ss);

		assert_int_equal(len, cases[i].len);
		assert_int_equal(ss.ss_family, cases[i].family);
		assert_true(cidr_addr_from_sockaddr(
			&again, &port, (const struct sockaddr *)&ss, len));
		assert_true(cidr_addr_equal(&addr, &again));
		assert_int_equal(port, 0x1234);
		assert_true(cidr_addr_from_sockaddr(
			&again, NULL, (const struct sockaddr *)&ss, len));
		assert_false(cidr_addr_from_sockaddr(
			&again, NULL, (const struct sockaddr *)&ss, len - 1));
	}
}

static void the_kernel_and_the_program_agree_on_ports(void **state)
{
	struct sockaddr_in in = {
		.sin_family = AF_INET,
		.sin_port = htons(2525),
		.sin_addr = { htonl(INADDR_LOOPBACK) },
	};
	struct cidr_addr expected = addr_of("127.0.0.1");
	struct cidr_addr addr;
	uint16_t port;

	(void)state;
	assert_true(cidr_addr_from_sockaddr(
		&addr, &port, (const struct sockaddr *)&in, sizeof(in)));
	assert_int_equal(port, 2525);
	assert_true(cidr_addr_equal(&addr, &expected));
}

static void a_mapped_peer_of_an_ipv6_socket_is_ipv4(void **state)
{
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };
	struct cidr_addr expected = addr_of("192.0.2.9");
	struct cidr_addr addr;

	(void)state;
	assert_int_equal(
		inet_pton(AF_INET6, "::ffff:192.0.2.9", &in6.sin6_addr), 1);
	assert_true(cidr_addr_from_sockaddr(
		&addr, NULL, (const struct sockaddr *)&in6, sizeof(in6)));
	assert_true(cidr_addr_equal(&addr, &expected));
	assert_true(cidr_addr_is_v4(&addr));
}

static void other_families_have_no_address(void **state)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX, .sun_path = "/x" };
	struct cidr_addr addr;

	(void)state;
	assert_false(cidr_addr_from_sockaddr(
		&addr, NULL, (const struct sockaddr *)&un, sizeof(un)));
	assert_false(cidr_addr_from_sockaddr(&addr, NULL,
					     (const struct sockaddr *)&un, 0));
}

static void a_network_is_read_or_the_complaint_helps(void **state)
{
	/* clang-format off */
	static const struct {
		const char *in;
		const char *out; /* NULL: refused */
		const char *why; /* part of the complaint */
	} cases[] = {
		{ "10.0.0.0/8", "10.0.0.0/8", NULL },
		{ "0.0.0.0/0", "0.0.0.0/0", NULL },
		{ "192.0.2.1", "192.0.2.1/32", NULL },
		{ "192.0.2.1/32", "192.0.2.1/32", NULL },
		{ "192.0.2.254/31", "192.0.2.254/31", NULL },
		{ "::/0", "::/0", NULL },
		{ "2001:db8::/32", "2001:db8::/32", NULL },
		{ "2001:DB8::1", "2001:db8::1/128", NULL },
		{ "2001:db8::8/125", "2001:db8::8/125", NULL },
		{ "::ffff:10.0.0.0/104", "10.0.0.0/8", NULL },
		{ "::ffff:0:0/96", "0.0.0.0/0", NULL },
		{ "::ffff:10.1.2.3", "10.1.2.3/32", NULL },
		{ "::/80", "::/80", NULL },

		{ "10.1.2.3/8", NULL, "the network is 10.0.0.0/8" },
		{ "192.0.2.255/31", NULL, "the network is 192.0.2.254/31" },
		{ "1.2.3.4/0", NULL, "the network is 0.0.0.0/0" },
		{ "2001:db8::1/32", NULL, "the network is 2001:db8::/32" },
		{ "::ffff:10.0.0.1/104", NULL, "the network is 10.0.0.0/8" },
		{ "::ffff:0:0/90", NULL, "the network is ::ffc0:0:0/90" },
		{ "10.0.0.0/33", NULL, "IPv4 network is a whole number from 0 to 32" },
		{ "::/129", NULL, "IPv6 network is a whole number from 0 to 128" },
		{ "10.0.0.0/", NULL, "from 0 to 32" },
		{ "10.0.0.0/08", NULL, "from 0 to 32" },
		{ "10.0.0.0/+8", NULL, "from 0 to 32" },
		{ "10.0.0.0/-1", NULL, "from 0 to 32" },
		{ "10.0.0.0/8 ", NULL, "from 0 to 32" },
		{ "10.0.0.0/8/8", NULL, "from 0 to 32" },
		{ "10.0.0.0/4294967304", NULL, "from 0 to 32" },
		{ "10.0.0.0/255.0.0.0", NULL, "from 0 to 32" },
		{ "10/8", NULL, "not an IPv4 or IPv6 address" },
		{ "/8", NULL, "not an IPv4 or IPv6 address" },
		{ "", NULL, "not an IPv4 or IPv6 address" },
		{ "localhost", NULL, "not an IPv4 or IPv6 address" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *in = cases[i].in;
		char text[CIDR_TEXT_MAX];
		char why[CIDR_WHY_MAX] = "";
		struct cidr net;
		struct cidr before;

		memset(&net, 0x5a, sizeof(net));
		before = net;
		bool taken = cidr_parse(in, strlen(in), &net, why, sizeof(why));

		if (taken != (cases[i].out != NULL))
			fail_msg("%s: %s", in, taken ? "taken" : why);
		if (cases[i].out != NULL) {
			size_t len = cidr_format(&net, text, sizeof(text));

			assert_string_equal(text, cases[i].out);
			assert_int_equal(len, strlen(text));
			continue;
		}
		if (strstr(why, cases[i].why) == NULL)
			fail_msg("%s: \"%s\"", in, why);
		assert_memory_equal(&net, &before, sizeof(net));
	}
}

static void a_mask_keeps_the_bits_of_its_family(void **state)
{
	/* clang-format off */
	static const struct {
		const char *in; unsigned v4, v6; const char *out;
	} cases[] = {
		{ "192.0.2.77", 32, 0, "192.0.2.77" },
		{ "192.0.2.77", 24, 0, "192.0.2.0" },
		{ "192.0.2.77", 26, 0, "192.0.2.64" },
		{ "192.0.2.77", 1, 0, "128.0.0.0" },
		{ "192.0.2.77", 0, 0, "0.0.0.0" },
		{ "2001:db8:1:2:3:4:5:6", 0, 128, "2001:db8:1:2:3:4:5:6" },
		{ "2001:db8:1:2:3:4:5:6", 0, 64, "2001:db8:1:2::" },
		{ "2001:db8:1:2:3:4:5:6", 0, 48, "2001:db8:1::" },
		{ "2001:db8:1:2:3:4:5:6", 32, 47, "2001:db8::" },
		{ "2001:db8:1:2:3:4:5:6", 32, 0, "::" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cidr_addr addr = addr_of(cases[i].in);
		struct cidr_addr masked = cidr_addr_mask(&addr, cases[i].v4,
							 cases[i].v6);
		struct cidr_addr expected = addr_of(cases[i].out);

		if (!cidr_addr_equal(&masked, &expected))
			fail_msg("%s /%u /%u", cases[i].in, cases[i].v4,
				 cases[i].v6);
	}
}

/* clang-format off */
static const struct member {
	const char *net, *addr; bool has; const char *why;
} members[] = {
	{ "10.0.0.0/8", "10.0.0.0", true, "its first" },
	{ "10.0.0.0/8", "10.255.255.255", true, "its last" },
	{ "10.0.0.0/8", "9.255.255.255", false, "the one before" },
	{ "10.0.0.0/8", "11.0.0.0", false, "the one behind" },
	{ "10.0.0.0/8", "::a00:1", false, "the same bits in IPv6" },
	{ "0.0.0.0/0", "203.0.113.1", true, "all of IPv4" },
	{ "0.0.0.0/0", "2001:db8::1", false, "but no IPv6" },
	{ "255.255.255.255/32", "255.255.255.255", true, "the last IPv4" },
	{ "::/0", "2001:db8::1", true, "all of IPv6" },
	{ "::/0", "::", true, "the lowest" },
	{ "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true,
	  "the highest" },
	{ "::/0", "::fffe:ffff:ffff", true, "right before mapped IPv4" },
	{ "::/0", "::1:0:0:0", true, "right behind mapped IPv4" },
	{ "::/0", "192.0.2.1", false, "but no IPv4" },
	{ "::/0", "0.0.0.0", false, "nor its first" },
	{ "::/0", "255.255.255.255", false, "nor its last" },
	{ "::/80", "255.255.255.255", false, "ends where mapped IPv4 ends" },
	{ "::/80", "::1", true, "its part before" },
	{ "::/80", "::1:0:0:0", false, "nothing behind" },
	{ "::/79", "::1:0:0:0", true, "one bit shorter has a part behind" },
	{ "::fffe:0:0/95", "::fffe:0:1", true, "the half before" },
	{ "::fffe:0:0/95", "1.2.3.4", false, "the mapped half" },
	{ "2001:db8::/32", "2001:db8:ffff::1", true, "inside" },
	{ "2001:db8::/32", "2001:db9::", false, "behind" },
	{ "2001:db8::/33", "2001:db8:8000::", false, "a bit within an octet" },
};
/* clang-format on */

static void a_network_has_its_own_addresses_only(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
		struct cidr net = net_of(members[i].net);
		struct cidr_addr addr = addr_of(members[i].addr);

		if (cidr_has(&net, &addr) != members[i].has)
			fail_msg("%s, %s: %s", members[i].net, members[i].addr,
				 members[i].why);
	}
}

static void a_set_of_one_network_is_that_network(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
		struct cidr net = net_of(members[i].net);
		struct cidr_addr addr = addr_of(members[i].addr);
		struct cidr_range ranges[2];
		struct cidr_set set;

		cidr_set_init(&set, ranges, 2);
		assert_true(cidr_set_add(&set, &net));
		cidr_set_seal(&set);
		if (cidr_set_has(&set, &addr) != members[i].has)
			fail_msg("%s, %s: %s", members[i].net, members[i].addr,
				 members[i].why);
	}
}

static void sealing_sorts_and_merges(void **state)
{
	static const struct {
		const char *nets[6];
		size_t ranges;
	} cases[] = {
		{ { NULL }, 0 },
		{ { "10.0.0.0/8" }, 1 },
		{ { "10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/8" }, 1 },
		{ { "10.1.0.0/16", "10.0.0.0/8", "10.2.3.4" }, 1 },
		{ { "10.0.0.128/25", "10.0.0.0/25" }, 1 },
		{ { "10.0.0.3", "10.0.0.1", "10.0.0.2", "10.0.0.0" }, 1 },
		{ { "10.0.0.4", "10.0.0.2", "10.0.0.0" }, 3 },
		{ { "2001:db8::/32", "10.0.0.0/8", "::1" }, 3 },
		{ { "::/0" }, 2 },
		{ { "0.0.0.0/0", "::/0" }, 1 },
		{ { "ffff::/16", "::/0", "fffe::/16" }, 2 },
		{ { "8000::/1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		    "::/1" },
		  2 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cidr_range ranges[12];
		struct cidr_set set;

		cidr_set_init(&set, ranges, 12);
		for (size_t n = 0; n < 6 && cases[i].nets[n] != NULL; n++) {
			struct cidr net = net_of(cases[i].nets[n]);

			assert_true(cidr_set_add(&set, &net));
		}
		cidr_set_seal(&set);
		if (set.count != cases[i].ranges)
			fail_msg("case %zu: %zu ranges", i, set.count);
		for (size_t r = 1; r < set.count; r++)
			assert_true(memcmp(&ranges[r - 1].last,
					   &ranges[r].first, 16) < 0);
	}
}

static void a_full_set_refuses_and_stays_as_it_was(void **state)
{
	struct cidr v4 = net_of("10.0.0.0/8");
	struct cidr all_v6 = net_of("::/0");
	struct cidr_range ranges[2];
	struct cidr_set set;

	(void)state;
	cidr_set_init(&set, ranges, 2);
	assert_true(cidr_set_add(&set, &v4));
	assert_false(cidr_set_add(&set, &all_v6)); /* needs two */
	assert_int_equal(set.count, 1);
	assert_true(cidr_set_add(&set, &v4));
	assert_false(cidr_set_add(&set, &v4));
	assert_int_equal(set.count, 2);

	cidr_set_init(&set, NULL, 0);
	assert_false(cidr_set_add(&set, &v4));
	cidr_set_seal(&set);
	assert_false(cidr_set_has(&set, &v4.addr));
}

/* xorshift64: any will do, so long as it is the same every time. */
static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Few different addresses, so that networks nest, touch and repeat. */
static struct cidr_addr random_addr(uint64_t *x)
{
	struct cidr_addr addr = { { 0 } };
	uint64_t r = next_random(x);

	if (r % 3 == 0) {
		addr = addr_of("10.0.0.0");
		addr.octets[14] = (uint8_t)(r >> 8) & 3;
	} else if (r % 3 == 1) {
		addr = addr_of("2001:db8::");
		addr.octets[6] = (uint8_t)(r >> 8) & 3;
	} else {
		addr.octets[10] = (uint8_t)(r >> 8);
		addr.octets[11] = (uint8_t)(r >> 16) | 0xfe;
	}
	addr.octets[15] = (uint8_t)(r >> 24);
	return addr;
}

/* Bit by bit, unlike the code under test. */
static void clear_from(struct cidr_addr *addr, unsigned bits)
{
	for (unsigned bit = bits; bit < CIDR_BITS_MAX; bit++)
		addr->octets[bit / 8] &= (uint8_t) ~(0x80U >> bit % 8);
}

/* A network of any kind; the widest only now and then, or nothing is left. */
static struct cidr random_net(uint64_t *x)
{
	static const uint8_t lengths[] = { 0,  15,  64,  79,  80,  90, 95,
					   96, 118, 120, 124, 127, 128 };
	size_t pick = next_random(x) % sizeof(lengths);
	size_t widest = next_random(x) % 16 == 0 ? 0 : 7;
	struct cidr net = {
		.addr = random_addr(x),
		.bits = lengths[pick < widest ? widest : pick],
	};

	clear_from(&net.addr, net.bits);
	return net;
}

static bool any_has(const struct cidr *nets, size_t count,
		    const struct cidr_addr *addr)
{
	for (size_t i = 0; i < count; i++)
		if (cidr_has(&nets[i], addr))
			return true;
	return false;
}

static void a_set_answers_as_its_networks_do_one_by_one(void **state)
{
	enum { NETS = 40, RANGES = 2 * NETS, ROUNDS = 200, PROBES = 200 };
	struct cidr_range ranges[RANGES];
	struct cidr nets[NETS];
	uint64_t x = 0x2545f4914f6cdd1d;

	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		size_t count = next_random(&x) % NETS;
		struct cidr_set set;

		cidr_set_init(&set, ranges, RANGES);
		for (size_t i = 0; i < count; i++) {
			nets[i] = random_net(&x);
			assert_true(cidr_set_add(&set, &nets[i]));
		}
		cidr_set_seal(&set);
		for (int p = 0; p < PROBES; p++) {
			struct cidr_addr addr = random_addr(&x);

			assert_int_equal(cidr_set_has(&set, &addr),
					 any_has(nets, count, &addr));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_address_has_one_canonical_text),
		cmocka_unit_test(
			what_is_no_address_is_refused_and_nothing_written),
		cmocka_unit_test(only_len_octets_of_the_text_are_read),
		cmocka_unit_test(a_socket_address_comes_back_as_it_was),
		cmocka_unit_test(the_kernel_and_the_program_agree_on_ports),
		cmocka_unit_test(a_mapped_peer_of_an_ipv6_socket_is_ipv4),
		cmocka_unit_test(other_families_have_no_address),
		cmocka_unit_test(a_network_is_read_or_the_complaint_helps),
		cmocka_unit_test(a_mask_keeps_the_bits_of_its_family),
		cmocka_unit_test(a_network_has_its_own_addresses_only),
		cmocka_unit_test(a_set_of_one_network_is_that_network),
		cmocka_unit_test(sealing_sorts_and_merges),
		cmocka_unit_test(a_full_set_refuses_and_stays_as_it_was),
		cmocka_unit_test(a_set_answers_as_its_networks_do_one_by_one),
	};

	return cmocka_run_group_tests_name("cidr", tests, NULL, NULL);
}
