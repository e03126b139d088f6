#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/admission.h"

/* The key of the official vectors: 00 01 02 ... 0f. */
static const uint8_t test_key[ADMISSION_KEY_LEN] = { 0,  1,  2,  3, 4,  5,
						     6,  7,  8,  9, 10, 11,
						     12, 13, 14, 15 };

/* Everything off but the global limit. */
static struct admission_config plain_config(void)
{
	return (struct admission_config){
		.max_sessions = 1000,
		.source_v4_bits = 32,
		.source_v6_bits = 64,
		.aggregate_v4_bits = 24,
		.aggregate_v6_bits = 48,
		.table_size = 1024,
	};
}

static struct admission *make(const struct admission_config *config)
{
	void *mem = aligned_alloc(ADMISSION_ALIGN, admission_size(config));

	assert_non_null(mem);
	/* Memory as it comes: not zeroed. */
	memset(mem, 0x5a, admission_size(config));
	return admission_init(mem, config, test_key);
}

static void unmake(struct admission *adm)
{
	admission_fini(adm);
	free(adm);
}

static struct cidr_addr addr_of(const char *text)
{
	struct cidr_addr addr;

	assert_true(cidr_addr_parse(text, strlen(text), &addr));
	return addr;
}

static struct cidr net_of(const char *text)
{
	char why[CIDR_WHY_MAX];
	struct cidr net;

	assert_true(cidr_parse(text, strlen(text), &net, why, sizeof(why)));
	return net;
}

/* 10.a.b.c, where 0xabc is n. */
static struct cidr_addr nth_addr(uint32_t n)
{
	struct cidr_addr addr = addr_of("10.0.0.0");

	addr.octets[13] = (uint8_t)(n >> 16);
	addr.octets[14] = (uint8_t)(n >> 8);
	addr.octets[15] = (uint8_t)n;
	return addr;
}

static enum admission_verdict open_text(struct admission *adm, const char *text,
					int64_t now_ms,
					struct admission_ticket *ticket)
{
	struct cidr_addr addr = addr_of(text);

	return admission_open(adm, &addr, now_ms, ticket);
}

/* An open whose session ends at once. */
static enum admission_verdict visit(struct admission *adm, const char *text,
				    int64_t now_ms)
{
	struct admission_ticket ticket;
	enum admission_verdict verdict = open_text(adm, text, now_ms, &ticket);

	assert_int_equal(ticket.held, verdict == ADMISSION_ACCEPT);
	if (ticket.held)
		admission_close(adm, &ticket);
	assert_false(ticket.held);
	return verdict;
}

/* How many sessions of one source get in before the first refusal. */
static uint32_t fill(struct admission *adm, const char *text,
		     struct admission_ticket *tickets, uint32_t tickets_max,
		     enum admission_verdict *refusal)
{
	for (uint32_t i = 0; i < tickets_max; i++) {
		*refusal = open_text(adm, text, 0, &tickets[i]);
		if (*refusal != ADMISSION_ACCEPT)
			return i;
	}
	return tickets_max;
}

static void close_all(struct admission *adm, struct admission_ticket *tickets,
		      uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		admission_close(adm, &tickets[i]);
}

/* The row of a network, or sessions UINT32_MAX if it has no entry. */
static struct admission_row find_row(struct admission *adm,
				     enum admission_kind kind, const char *text)
{
	enum { ROWS = 2048 };
	struct admission_row found = { .sessions = UINT32_MAX };
	struct admission_row *rows = calloc(ROWS, sizeof(*rows));
	struct cidr net = net_of(text);

	assert_non_null(rows);
	size_t count = admission_top(adm, kind, rows, ROWS);

	for (size_t i = 0; i < count; i++)
		if (memcmp(&rows[i].net, &net, sizeof(net)) == 0)
			found = rows[i];
	free(rows);
	return found;
}

/* --- SipHash --- */

/*
 * vectors_sip64 of the reference implementation (Aumasson and Bernstein,
 * CC0): octets 00 01 .. under the key above, by length.
 */
static void the_hash_is_siphash_2_4(void **state)
{
	/* clang-format off */
	static const struct { size_t len; uint8_t out[8]; } vectors[] = {
		{ 0,  { 0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72 } },
		{ 1,  { 0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74 } },
		{ 2,  { 0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d } },
		{ 3,  { 0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85 } },
		{ 4,  { 0xb7, 0x87, 0x71, 0x27, 0xe0, 0x94, 0x27, 0xcf } },
		{ 5,  { 0x8d, 0xa6, 0x99, 0xcd, 0x64, 0x55, 0x76, 0x18 } },
		{ 6,  { 0xce, 0xe3, 0xfe, 0x58, 0x6e, 0x46, 0xc9, 0xcb } },
		{ 7,  { 0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab } },
		{ 8,  { 0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93 } },
		{ 15, { 0xe5, 0x45, 0xbe, 0x49, 0x61, 0xca, 0x29, 0xa1 } },
		{ 16, { 0xdb, 0x9b, 0xc2, 0x57, 0x7f, 0xcc, 0x2a, 0x3f } },
		{ 17, { 0x94, 0x47, 0xbe, 0x2c, 0xf5, 0xe9, 0x9a, 0x69 } },
		{ 63, { 0x72, 0x45, 0x06, 0xeb, 0x4c, 0x32, 0x8a, 0x95 } },
	};
	/* clang-format on */
	uint8_t data[64];

	(void)state;
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)i;
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		uint64_t hash = admission_hash(test_key, data, vectors[i].len);

		for (unsigned octet = 0; octet < 8; octet++) {
			uint8_t out = (uint8_t)(hash >> 8 * octet);

			assert_int_equal(out, vectors[i].out[octet]);
		}
	}
}

/* --- counts --- */

static void a_session_is_counted_until_it_closes(void **state)
{
	struct admission_config config = plain_config();
	struct admission *adm = make(&config);
	struct admission_ticket a;
	struct admission_ticket b;

	(void)state;
	assert_int_equal(open_text(adm, "192.0.2.1", 5, &a), ADMISSION_ACCEPT);
	assert_int_equal(open_text(adm, "192.0.2.2", 7, &b), ADMISSION_ACCEPT);
	assert_int_equal(admission_sessions(adm), 2);

	struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
					    "192.0.2.1");

	assert_int_equal(row.sessions, 1);
	assert_int_equal(row.accepted, 1);
	assert_int_equal(row.last_seen_ms, 5);
	assert_int_equal(row.last_refused_ms, -1);
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "192.0.2.0/24");
	assert_int_equal(row.sessions, 2);
	assert_int_equal(row.last_seen_ms, 7);

	admission_close(adm, &a);
	admission_close(adm, &b);
	assert_int_equal(admission_sessions(adm), 0);
	row = find_row(adm, ADMISSION_KIND_SOURCE, "192.0.2.1");
	assert_int_equal(row.sessions, 0);
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "192.0.2.0/24");
	assert_int_equal(row.sessions, 0);
	assert_int_equal(row.accepted, 2);
	unmake(adm);
}

static void expect_filled(uint32_t in, enum admission_verdict refusal,
			  uint32_t in_expected,
			  enum admission_verdict refusal_expected,
			  const char *why)
{
	if (in != in_expected || refusal != refusal_expected)
		fail_msg("%s: %u, %s", why, in,
			 admission_verdict_name(refusal));
}

static void each_limit_lets_in_what_it_says_and_gives_it_back(void **state)
{
	/* clang-format off */
	static const struct {
		uint32_t global, source, aggregate;
		uint32_t in;
		enum admission_verdict refusal;
		const char *why;
	} cases[] = {
		{ 50, 0, 0, 50, ADMISSION_GLOBAL, "the global limit alone" },
		{ 1, 0, 0, 1, ADMISSION_GLOBAL, "the smallest" },
		{ 50, 20, 0, 20, ADMISSION_SOURCE_SESSIONS, "per source" },
		{ 50, 0, 30, 30, ADMISSION_AGGREGATE_SESSIONS, "aggregate" },
		{ 50, 20, 30, 20, ADMISSION_SOURCE_SESSIONS, "the lower one" },
		{ 50, 30, 20, 20, ADMISSION_AGGREGATE_SESSIONS, "the lower" },
		{ 50, 20, 20, 20, ADMISSION_SOURCE_SESSIONS, "source first" },
		{ 20, 20, 20, 20, ADMISSION_SOURCE_SESSIONS, "global last" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();
		struct admission_ticket tickets[64];
		enum admission_verdict refusal = ADMISSION_ACCEPT;

		config.max_sessions = cases[i].global;
		config.max_per_source = cases[i].source;
		config.max_per_aggregate = cases[i].aggregate;
		struct admission *adm = make(&config);

		for (int round = 0; round < 3; round++) {
			uint32_t in = fill(adm, "10.0.0.1", tickets, 64,
					   &refusal);

			expect_filled(in, refusal, cases[i].in,
				      cases[i].refusal, cases[i].why);
			assert_int_equal(admission_sessions(adm), in);
			close_all(adm, tickets, in);
			assert_int_equal(admission_sessions(adm), 0);
		}
		assert_int_equal(admission_count(adm, ADMISSION_ACCEPT),
				 3 * cases[i].in);
		assert_int_equal(admission_count(adm, refusal), 3);
		struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
						    "10.0.0.1");

		assert_int_equal(row.refused, 3);
		assert_int_equal(row.accepted, 3 * cases[i].in);
		unmake(adm);
	}
}

static void the_prefixes_say_who_is_one_source(void **state)
{
	/* clang-format off */
	static const struct {
		const char *one, *two;
		enum admission_verdict second;
		const char *why;
	} cases[] = {
		{ "192.0.2.1", "192.0.2.1", ADMISSION_SOURCE_SESSIONS,
		  "one address" },
		{ "192.0.2.1", "::ffff:192.0.2.1", ADMISSION_SOURCE_SESSIONS,
		  "one address through both kinds of socket" },
		{ "192.0.2.1", "192.0.2.2", ADMISSION_AGGREGATE_SESSIONS,
		  "one /24" },
		{ "192.0.2.1", "192.0.3.1", ADMISSION_ACCEPT, "two /24" },
		{ "2001:db8::1", "2001:db8::ffff:1", ADMISSION_SOURCE_SESSIONS,
		  "one /64" },
		{ "2001:db8::1", "2001:db8:0:1::1",
		  ADMISSION_AGGREGATE_SESSIONS, "one /48" },
		{ "2001:db8::1", "2001:db8:1::1", ADMISSION_ACCEPT,
		  "two /48" },
		{ "192.0.2.0", "192.0.2.1", ADMISSION_AGGREGATE_SESSIONS,
		  "a source whose octets are its aggregate's" },
		{ "0.0.0.0", "::", ADMISSION_ACCEPT, "zeros of two families" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();
		struct admission_ticket one;
		struct admission_ticket two;

		config.max_per_source = 1;
		config.max_per_aggregate = 1;
		struct admission *adm = make(&config);

		assert_int_equal(open_text(adm, cases[i].one, 0, &one),
				 ADMISSION_ACCEPT);
		if (open_text(adm, cases[i].two, 0, &two) != cases[i].second)
			fail_msg("%s", cases[i].why);
		unmake(adm);
	}
}

static void other_prefixes_can_be_configured(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket tickets[4];

	(void)state;
	config.source_v4_bits = 24;
	config.aggregate_v4_bits = 0;
	config.source_v6_bits = 84;
	config.aggregate_v6_bits = 84;
	config.max_per_source = 1;
	config.max_per_aggregate = 2;
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &tickets[0]),
			 ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "192.0.2.99", 0),
			 ADMISSION_SOURCE_SESSIONS);
	assert_int_equal(open_text(adm, "198.51.100.1", 0, &tickets[1]),
			 ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "203.0.113.1", 0),
			 ADMISSION_AGGREGATE_SESSIONS);
	assert_int_equal(open_text(adm, "2001:db8::1", 0, &tickets[2]),
			 ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "2001:db8::fff:1", 0),
			 ADMISSION_SOURCE_SESSIONS);
	assert_int_equal(visit(adm, "2001:db8::1000:0:1", 0), ADMISSION_ACCEPT);
	unmake(adm);
}

static void a_share_is_of_what_is_left_with_a_floor(void **state)
{
	/* clang-format off */
	static const struct {
		uint32_t max, others, percent, floor;
		uint32_t in;
		enum admission_verdict refusal;
		const char *why;
	} cases[] = {
		/*
		 * The k-th session (from 0) comes in while k is less than the
		 * share of what the others and its own k leave.
		 */
		{ 100, 0, 100, 1, 50, ADMISSION_SOURCE_SHARE,
		  "all of what is left: 50 when 50 are left" },
		{ 100, 0, 10, 1, 9, ADMISSION_SOURCE_SHARE,
		  "9 of 10: then 91 are left, a tenth of them is 9" },
		{ 100, 50, 10, 1, 4, ADMISSION_SOURCE_SHARE,
		  "4 of 50: then 46 are left, a tenth of them is 4" },
		{ 100, 95, 10, 1, 1, ADMISSION_SOURCE_SHARE,
		  "nothing of 5: the floor lets one in" },
		{ 100, 95, 10, 3, 3, ADMISSION_SOURCE_SHARE, "a floor of 3" },
		{ 100, 95, 10, 0, 1, ADMISSION_SOURCE_SHARE, "no floor is 1" },
		{ 100, 98, 10, 5, 2, ADMISSION_GLOBAL,
		  "the floor is no way past the global limit" },
		{ 100, 0, 0, 5, 64, ADMISSION_ACCEPT, "off" },
		{ 1000, 0, 2, 1, 19, ADMISSION_SOURCE_SHARE,
		  "19 of 1000: 2 percent of the 981 left are 19" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();
		struct admission_ticket tickets[64];
		struct admission_ticket other;
		enum admission_verdict refusal = ADMISSION_ACCEPT;

		config.max_sessions = cases[i].max;
		struct admission *adm = make(&config);

		for (uint32_t n = 0; n < cases[i].others; n++) {
			struct cidr_addr addr = nth_addr(n + 256);

			assert_int_equal(admission_open(adm, &addr, 0, &other),
					 ADMISSION_ACCEPT);
		}
		config.max_percent_per_source = cases[i].percent;
		config.percent_floor = cases[i].floor;
		admission_configure(adm, &config);

		uint32_t in = fill(adm, "10.0.0.1", tickets, 64, &refusal);

		expect_filled(in, refusal, cases[i].in, cases[i].refusal,
			      cases[i].why);
		unmake(adm);
	}
}

/* --- lists and bans --- */

static struct cidr_set set_of(struct cidr_range *range, const char *text)
{
	struct cidr net = net_of(text);
	struct cidr_set set;

	cidr_set_init(&set, range, 1);
	assert_true(cidr_set_add(&set, &net));
	cidr_set_seal(&set);
	return set;
}

static void bans_win_over_allow_and_allow_over_deny(void **state)
{
	static const struct {
		const char *addr;
		enum admission_verdict verdict;
	} cases[] = {
		{ "10.0.0.1", ADMISSION_DENIED },
		{ "10.1.0.1", ADMISSION_ACCEPT },
		{ "10.1.2.1", ADMISSION_BANNED },
		{ "10.2.0.1", ADMISSION_DENIED },
		{ "192.0.2.1", ADMISSION_ACCEPT },
		{ "2001:db8::1", ADMISSION_ACCEPT },
	};
	struct admission_config config = plain_config();
	struct cidr ban = net_of("10.1.2.0/24");
	struct cidr_range allow_range;
	struct cidr_range deny_range;
	struct cidr_set allow = set_of(&allow_range, "10.1.0.0/16");
	struct cidr_set deny = set_of(&deny_range, "10.0.0.0/8");

	(void)state;
	config.allow = &allow;
	config.deny = &deny;
	struct admission *adm = make(&config);

	assert_true(admission_ban(adm, &ban, ADMISSION_FOREVER, 0));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (visit(adm, cases[i].addr, 0) != cases[i].verdict)
			fail_msg("%s", cases[i].addr);
	assert_int_equal(admission_count(adm, ADMISSION_DENIED), 2);
	assert_int_equal(admission_count(adm, ADMISSION_BANNED), 1);

	/* Who is on a list leaves no trace in the table. */
	struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
					    "10.0.0.1");

	assert_int_equal(row.sessions, UINT32_MAX);
	row = find_row(adm, ADMISSION_KIND_SOURCE, "10.1.2.1");
	assert_int_equal(row.sessions, UINT32_MAX);

	config.allow = NULL;
	config.deny = NULL;
	admission_configure(adm, &config);
	assert_int_equal(visit(adm, "10.0.0.1", 0), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "10.1.2.1", 0), ADMISSION_BANNED);
	unmake(adm);
}

static void an_allowed_source_is_held_to_the_global_limit_only(void **state)
{
	struct admission_config config = plain_config();
	struct cidr_range range;
	struct cidr_set allow = set_of(&range, "10.0.0.1");
	struct admission_ticket tickets[64];
	struct admission_ticket neighbour;
	enum admission_verdict refusal = ADMISSION_ACCEPT;

	(void)state;
	config.max_sessions = 50;
	config.max_per_source = 2;
	config.max_per_aggregate = 2;
	config.max_percent_per_source = 1;
	for (int i = 0; i < ADMISSION_RATES; i++)
		config.rates[i] = (struct admission_rate_limit){ 1, 3600000,
								 1 };
	config.allow = &allow;
	struct admission *adm = make(&config);

	uint32_t in = fill(adm, "10.0.0.1", tickets, 49, &refusal);

	assert_int_equal(in, 49);
	for (int i = 0; i < 10; i++) {
		assert_true(admission_message(adm, &tickets[0], 0));
		assert_true(admission_recipient(adm, &tickets[0], 0));
		admission_login_failed(adm, &tickets[0], 0);
		assert_true(admission_login(adm, &tickets[0], 0));
	}
	/* Its sessions are not its neighbours'. */
	assert_int_equal(open_text(adm, "10.0.0.2", 0, &neighbour),
			 ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "10.0.0.1", 0), ADMISSION_GLOBAL);

	struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
					    "10.0.0.1");

	assert_int_equal(row.sessions, 49);
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "10.0.0.0/24");
	assert_int_equal(row.sessions, 1);
	close_all(adm, tickets, 49);
	admission_close(adm, &neighbour);
	assert_int_equal(admission_sessions(adm), 0);
	unmake(adm);
}

static void a_ban_holds_its_network_for_its_time(void **state)
{
	/* clang-format off */
	static const struct {
		const char *net, *addr; int64_t until_ms, now_ms; bool banned;
		const char *why;
	} cases[] = {
		{ "10.0.0.0/8", "10.9.9.9", 1000, 0, true, "inside" },
		{ "10.0.0.0/8", "11.0.0.0", 1000, 0, false, "outside" },
		{ "10.0.0.0/8", "10.9.9.9", 1000, 999, true, "the last ms" },
		{ "10.0.0.0/8", "10.9.9.9", 1000, 1000, false, "over" },
		{ "10.0.0.0/8", "10.9.9.9", ADMISSION_FOREVER,
		  INT64_MAX / 4000, true, "for ever" },
		{ "10.0.0.1", "10.0.0.1", 1, 0, true, "one address" },
		{ "10.0.0.1", "10.0.0.2", 1, 0, false, "its neighbour" },
		{ "0.0.0.0/0", "203.0.113.1", 1, 0, true, "all of IPv4" },
		{ "0.0.0.0/0", "2001:db8::1", 1, 0, false, "but no IPv6" },
		{ "::/0", "2001:db8::1", 1, 0, true, "all of IPv6" },
		{ "::/0", "203.0.113.1", 1, 0, false, "but no IPv4" },
		{ "::/80", "203.0.113.1", 1, 0, false, "nor mapped IPv4" },
		{ "2001:db8::/33", "2001:db8:7fff::", 1, 0, true, "odd bits" },
		{ "2001:db8::/33", "2001:db8:8000::", 1, 0, false, "odd bits" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();
		struct admission *adm = make(&config);
		struct cidr net = net_of(cases[i].net);

		assert_true(admission_ban(adm, &net, cases[i].until_ms, 0));
		enum admission_verdict verdict = visit(adm, cases[i].addr,
						       cases[i].now_ms);

		if ((verdict == ADMISSION_BANNED) != cases[i].banned)
			fail_msg("%s, %s: %s", cases[i].net, cases[i].addr,
				 cases[i].why);
		unmake(adm);
	}
}

static void bans_are_listed_replaced_and_lifted(void **state)
{
	struct admission_config config = plain_config();
	struct admission *adm = make(&config);
	struct cidr wide = net_of("10.0.0.0/8");
	struct cidr narrow = net_of("10.0.0.0/24");
	struct cidr other = net_of("2001:db8::/32");
	struct admission_ban rows[4];

	(void)state;
	assert_int_equal(admission_bans(adm, rows, 4, 0), 0);
	assert_true(admission_ban(adm, &wide, 100, 0));
	assert_true(admission_ban(adm, &narrow, 500, 0));
	assert_true(admission_ban(adm, &other, 500, 0));
	assert_int_equal(admission_bans(adm, rows, 4, 0), 3);
	assert_int_equal(admission_bans(adm, rows, 2, 0), 2);
	assert_int_equal(admission_bans(adm, rows, 0, 0), 0);

	/* The narrowest is found first, and counts. */
	assert_int_equal(visit(adm, "10.0.0.1", 1), ADMISSION_BANNED);
	assert_int_equal(visit(adm, "10.0.1.1", 1), ADMISSION_BANNED);
	assert_int_equal(visit(adm, "10.0.1.1", 100), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "10.0.0.1", 100), ADMISSION_BANNED);

	assert_true(admission_ban(adm, &narrow, 900, 100));
	assert_int_equal(admission_bans(adm, rows, 4, 100), 2);
	for (size_t i = 0; i < 2; i++) {
		bool is_narrow = memcmp(&rows[i].net, &narrow,
					sizeof(narrow)) == 0;

		assert_int_equal(rows[i].until_ms, is_narrow ? 900 : 500);
		assert_int_equal(rows[i].refused, is_narrow ? 2 : 0);
	}

	assert_false(admission_unban(adm, &wide, 100)); /* expired */
	assert_true(admission_unban(adm, &narrow, 100));
	assert_false(admission_unban(adm, &narrow, 100));
	assert_int_equal(visit(adm, "10.0.0.1", 100), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "2001:db8::1", 100), ADMISSION_BANNED);
	unmake(adm);
}

static enum admission_verdict visit_nth(struct admission *adm, uint32_t n,
					int64_t now_ms)
{
	struct cidr_addr addr = nth_addr(n);
	char text[CIDR_ADDR_TEXT_MAX];

	(void)cidr_addr_format(&addr, text, sizeof(text));
	return visit(adm, text, now_ms);
}

static void as_many_bans_as_promised_and_not_one_more(void **state)
{
	struct admission_config config = plain_config();
	struct admission *adm = make(&config);

	(void)state;
	for (uint32_t n = 0; n < ADMISSION_BANS_MAX; n++) {
		struct cidr net = { nth_addr(n), CIDR_BITS_MAX };

		assert_true(admission_ban(adm, &net, 100 + n % 2, 0));
	}
	struct cidr more = net_of("192.0.2.0/24");
	struct cidr known = { nth_addr(7), CIDR_BITS_MAX };

	assert_false(admission_ban(adm, &more, 200, 99));
	assert_true(admission_ban(adm, &known, 200, 99));

	/* Each second one is over now: all others are still found. */
	assert_true(admission_ban(adm, &more, 200, 100));
	for (uint32_t n = 0; n < ADMISSION_BANS_MAX; n++) {
		assert_int_equal(visit_nth(adm, n, 100),
				 n % 2 == 1 ? ADMISSION_BANNED
					    : ADMISSION_ACCEPT);
	}
	/* And lifted one by one, in another order than they came. */
	for (uint32_t i = 0; i < ADMISSION_BANS_MAX; i++) {
		uint32_t n = (i * 1021 + 5) % ADMISSION_BANS_MAX;
		struct cidr net = { nth_addr(n), CIDR_BITS_MAX };

		assert_int_equal(admission_unban(adm, &net, 100), n % 2 == 1);
	}
	struct admission_ban rows[2];

	assert_int_equal(admission_bans(adm, rows, 2, 100), 1);
	assert_memory_equal(&rows[0].net, &more, sizeof(more));
	unmake(adm);
}

/* --- rates --- */

/* How many of so many visits of one source get in; the rest are too fast. */
static int visits(struct admission *adm, int64_t now_ms, int tries)
{
	int in = 0;

	for (int t = 0; t < tries; t++) {
		enum admission_verdict verdict = visit(adm, "192.0.2.1",
						       now_ms);

		if (verdict == ADMISSION_ACCEPT)
			in++;
		else
			assert_int_equal(verdict, ADMISSION_SOURCE_RATE);
	}
	return in;
}

static void expect_visits(int in, int in_expected, size_t step, const char *why)
{
	if (in != in_expected)
		fail_msg("%s: step %zu: %d", why, step, in);
}

static void a_rate_lets_in_its_burst_and_then_its_pace(void **state)
{
	/* clang-format off */
	static const struct {
		struct admission_rate_limit rate;
		struct { int64_t now_ms; int in; int tries; } steps[7];
		const char *why;
	} cases[] = {
		{ { 30, 60000, 1 },
		  { { 0, 1, 3 }, { 1999, 0, 1 }, { 2000, 1, 2 }, { 3999, 0, 1 },
		    { 4000, 1, 1 }, { 60000, 1, 2 } },
		  "30/m without a burst is one every 2 s" },
		{ { 30, 60000, 5 },
		  { { 0, 5, 7 }, { 1999, 0, 1 }, { 2000, 1, 2 }, { 6000, 2, 3 },
		    { 100000, 5, 9 } },
		  "five at once, then one every 2 s, then five again" },
		{ { 3, 60000, 0 },
		  { { 0, 3, 4 }, { 19999, 0, 1 }, { 20000, 1, 2 },
		    { 80000, 3, 4 } },
		  "no burst given is the count" },
		{ { 1, 1, 1 },
		  { { 0, 1, 2 }, { 1, 1, 2 }, { 2, 1, 2 } },
		  "one a millisecond" },
		{ { 3, 1, 3 },
		  { { 0, 3, 4 }, { 1, 2, 4 }, { 2, 3, 4 }, { 3, 2, 4 } },
		  "thirds of a ms are rounded up: 8 by 2 ms, never 9" },
		{ { 7, 1000, 1 },
		  { { 0, 1, 2 }, { 142, 0, 1 }, { 143, 1, 2 }, { 285, 0, 1 },
		    { 286, 1, 1 } },
		  "1/7 s is 142.858 ms" },
		{ { 1, UINT32_MAX, UINT32_MAX },
		  { { 0, 100, 100 }, { INT64_MAX / 4000, 100, 100 } },
		  "the largest burst does not overflow" },
		{ { 0, 0, 0 }, { { 0, 50, 50 } }, "no limit" },
		{ { 2, 1000, 2 },
		  { { 5000, 2, 3 }, { 0, 0, 1 }, { 5499, 0, 1 },
		    { 5500, 1, 2 } },
		  "a clock that went back gives nothing away" },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();

		config.rates[ADMISSION_RATE_SESSION] = cases[i].rate;
		struct admission *adm = make(&config);
		uint64_t refused = 0;

		for (size_t s = 0; s < 7 && cases[i].steps[s].tries; s++) {
			int in = visits(adm, cases[i].steps[s].now_ms,
					cases[i].steps[s].tries);

			expect_visits(in, cases[i].steps[s].in, s,
				      cases[i].why);
			refused += (uint64_t)(cases[i].steps[s].tries - in);
		}
		assert_int_equal(admission_limited(adm, ADMISSION_RATE_SESSION),
				 refused);
		assert_int_equal(admission_count(adm, ADMISSION_SOURCE_RATE),
				 refused);
		unmake(adm);
	}
}

static void each_source_has_rates_of_its_own_for_each_kind(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket one;
	struct admission_ticket same;
	struct admission_ticket other;

	(void)state;
	config.rates[ADMISSION_RATE_MESSAGE] = (struct admission_rate_limit){
		2, 1000, 2
	};
	config.rates[ADMISSION_RATE_RECIPIENT] = (struct admission_rate_limit){
		1, 1000, 3
	};
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &one), 0);
	assert_int_equal(open_text(adm, "192.0.2.1", 0, &same), 0);
	assert_int_equal(open_text(adm, "192.0.2.2", 0, &other), 0);

	assert_true(admission_message(adm, &one, 10));
	assert_true(admission_message(adm, &same, 10));
	assert_false(admission_message(adm, &one, 10));
	assert_false(admission_message(adm, &same, 509));
	assert_true(admission_message(adm, &same, 510));
	assert_true(admission_message(adm, &other, 10));

	for (int i = 0; i < 3; i++)
		assert_true(admission_recipient(adm, &one, 10));
	assert_false(admission_recipient(adm, &same, 10));
	assert_false(admission_recipient(adm, &same, 1009));
	assert_true(admission_recipient(adm, &same, 1010));

	/* The rate is the source's: a new session starts where it was. */
	admission_close(adm, &one);
	admission_close(adm, &same);
	assert_int_equal(open_text(adm, "192.0.2.1", 1010, &one), 0);
	assert_false(admission_recipient(adm, &one, 1010));

	admission_error(adm, &one);
	admission_error(adm, &one);
	struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
					    "192.0.2.1");

	assert_int_equal(row.limited, 5);
	assert_int_equal(row.errors, 2);
	assert_int_equal(admission_limited(adm, ADMISSION_RATE_MESSAGE), 2);
	assert_int_equal(admission_limited(adm, ADMISSION_RATE_RECIPIENT), 3);
	assert_int_equal(admission_limited(adm, ADMISSION_RATE_SESSION), 0);
	unmake(adm);
}

/* --- good standing --- */

enum { MINUTE = 60 * 1000 };

static void a_message_earns_ten_minutes_and_no_more_than_an_hour(void **state)
{
	static const struct {
		const char *why;
		int praises; /* one a minute, from minute 0 */
		int64_t good_until_ms;
	} cases[] = {
		{ "nothing sent", 0, 0 },
		{ "one message", 1, 10 * MINUTE },
		{ "two add up", 2, 20 * MINUTE },
		{ "six", 6, 60 * MINUTE },
		{ "the hour is from the last one", 7, 66 * MINUTE },
		{ "however many", 31, 90 * MINUTE },
	};

	(void)state;
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		struct admission_config config = plain_config();
		struct admission *adm = make(&config);
		struct admission_ticket ticket;
		int64_t end_ms = cases[c].good_until_ms;

		print_message("  %s\n", cases[c].why);
		assert_int_equal(open_text(adm, "192.0.2.1", 0, &ticket), 0);
		for (int i = 0; i < cases[c].praises; i++)
			admission_praise(adm, &ticket, i * MINUTE);
		if (end_ms > 0)
			assert_true(admission_good(adm, &ticket, end_ms - 1));
		assert_false(admission_good(adm, &ticket, end_ms));
		assert_int_equal(
			find_row(adm, ADMISSION_KIND_SOURCE, "192.0.2.1")
				.good_until_ms,
			end_ms);
		admission_close(adm, &ticket);
		unmake(adm);
	}
}

static void mistakes_cost_what_messages_earn(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket ticket;

	(void)state;
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &ticket), 0);
	for (int i = 0; i < 3; i++)
		admission_praise(adm, &ticket, 0);
	admission_error(adm, &ticket);
	assert_true(admission_good(adm, &ticket, 20 * MINUTE - 1));
	assert_false(admission_good(adm, &ticket, 20 * MINUTE));
	/* What has run out is not paid for twice, nor made a debt of. */
	for (int i = 0; i < 10; i++)
		admission_error(adm, &ticket);
	assert_false(admission_good(adm, &ticket, 0));
	admission_praise(adm, &ticket, 5 * MINUTE);
	assert_true(admission_good(adm, &ticket, 15 * MINUTE - 1));
	assert_false(admission_good(adm, &ticket, 15 * MINUTE));
	/* One that is long past does not count against a new message. */
	admission_error(adm, &ticket);
	admission_praise(adm, &ticket, 600 * MINUTE);
	assert_true(admission_good(adm, &ticket, 610 * MINUTE - 1));
	assert_false(admission_good(adm, &ticket, 610 * MINUTE));
	admission_close(adm, &ticket);
	unmake(adm);
}

static void good_standing_is_the_sources_and_nobody_elses(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket one, other;

	(void)state;
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &one), 0);
	assert_int_equal(open_text(adm, "192.0.2.2", 0, &other), 0);
	admission_praise(adm, &one, 0);
	assert_true(admission_good(adm, &one, 1));
	assert_false(admission_good(adm, &other, 1));
	/* It outlives the session. */
	admission_close(adm, &one);
	assert_int_equal(open_text(adm, "192.0.2.1", 2, &one), 0);
	assert_true(admission_good(adm, &one, 2));
	admission_close(adm, &one);
	admission_close(adm, &other);
	unmake(adm);
}

static void an_allowed_source_is_always_good(void **state)
{
	struct admission_config config = plain_config();
	struct cidr_range range;
	struct cidr_set allow = set_of(&range, "192.0.2.0/24");
	struct admission_ticket ticket;

	(void)state;
	config.allow = &allow;
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &ticket), 0);
	assert_true(admission_good(adm, &ticket, 0));
	admission_error(adm, &ticket);
	assert_true(admission_good(adm, &ticket, INT64_MAX / 2));
	admission_close(adm, &ticket);
	unmake(adm);
}

static void a_refused_session_is_not_charged_to_the_rate(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket ticket;

	(void)state;
	config.max_sessions = 1;
	config.rates[ADMISSION_RATE_SESSION] = (struct admission_rate_limit){
		1, 1000, 2
	};
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &ticket), 0);
	for (int i = 0; i < 9; i++)
		assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_GLOBAL);
	admission_close(adm, &ticket);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_SOURCE_RATE);
	unmake(adm);
}

/* --- run time --- */

static void new_limits_hold_at_once_and_old_sessions_stay(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket tickets[32];
	enum admission_verdict refusal = ADMISSION_ACCEPT;

	(void)state;
	config.max_sessions = 20;
	struct admission *adm = make(&config);

	assert_int_equal(fill(adm, "192.0.2.1", tickets, 32, &refusal), 20);
	config.max_sessions = 10;
	config.max_per_source = 5;
	admission_configure(adm, &config);
	assert_int_equal(admission_sessions(adm), 20);
	assert_int_equal(admission_sessions_max(adm), 10);
	assert_int_equal(visit(adm, "198.51.100.1", 0), ADMISSION_GLOBAL);

	close_all(adm, tickets + 9, 11);
	assert_int_equal(visit(adm, "198.51.100.1", 0), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_SOURCE_SESSIONS);
	close_all(adm, tickets + 4, 5);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_ACCEPT);
	unmake(adm);
}

static void a_rate_that_changes_begins_anew_and_no_other(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket ticket;

	(void)state;
	for (int i = 0; i < ADMISSION_RATES; i++)
		config.rates[i] = (struct admission_rate_limit){ 1, 3600000,
								 1 };
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &ticket), 0);
	assert_true(admission_message(adm, &ticket, 0));
	assert_true(admission_recipient(adm, &ticket, 0));

	config.rates[ADMISSION_RATE_SESSION].period_ms = 1000;
	config.rates[ADMISSION_RATE_MESSAGE].burst = 2;
	config.max_per_source = 10;
	admission_configure(adm, &config);
	assert_int_equal(visit(adm, "192.0.2.1", 1), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "192.0.2.1", 1000), ADMISSION_SOURCE_RATE);
	assert_int_equal(visit(adm, "192.0.2.1", 1001), ADMISSION_ACCEPT);
	assert_true(admission_message(adm, &ticket, 1));
	assert_true(admission_message(adm, &ticket, 1));
	assert_false(admission_message(adm, &ticket, 1));
	assert_false(admission_recipient(adm, &ticket, 1));
	unmake(adm);
}

static void only_failed_logins_cost_and_each_of_them(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket one, same, other;

	(void)state;
	config.rates[ADMISSION_RATE_LOGIN] = (struct admission_rate_limit){
		2, 1000, 2
	};
	struct admission *adm = make(&config);

	assert_int_equal(open_text(adm, "192.0.2.1", 0, &one), 0);
	assert_int_equal(open_text(adm, "192.0.2.1", 0, &same), 0);
	assert_int_equal(open_text(adm, "192.0.2.2", 0, &other), 0);
	for (int i = 0; i < 10; i++)
		assert_true(admission_login(adm, &one, 10));
	admission_login_failed(adm, &one, 10);
	assert_true(admission_login(adm, &same, 10));
	admission_login_failed(adm, &same, 10);
	assert_false(admission_login(adm, &one, 10));
	assert_false(admission_login(adm, &same, 509));
	assert_true(admission_login(adm, &same, 510));
	assert_true(admission_login(adm, &other, 10));

	/* Asked in time by many at once: all that fails is paid for. */
	for (int i = 0; i < 4; i++)
		admission_login_failed(adm, &one, 510);
	assert_false(admission_login(adm, &one, 2509));
	assert_true(admission_login(adm, &one, 2510));

	const struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
						  "192.0.2.1");

	assert_int_equal(row.limited, 3);
	assert_int_equal(admission_limited(adm, ADMISSION_RATE_LOGIN), 3);
	unmake(adm);
}

static void stress_has_two_marks(void **state)
{
	/* clang-format off */
	static const struct {
		uint32_t max, high, low, begins, ends;
	} cases[] = {
		{ 100, 90, 70, 90, 70 },
		{ 10, 85, 55, 9, 5 }, /* 8.5 begins at 9, 5.5 ends at 5 */
		{ 100, 50, 50, 50, 50 },
		{ 100, 100, 0, 100, 0 },
		{ 3, 1, 0, 1, 0 },
	};
	/* clang-format on */
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_config config = plain_config();
		struct admission_ticket tickets[100];
		bool stressed = false;

		config.max_sessions = cases[i].max;
		config.stress_high_percent = cases[i].high;
		config.stress_low_percent = cases[i].low;
		struct admission *adm = make(&config);

		for (uint32_t n = 0; n < cases[i].max; n++) {
			stressed = n >= cases[i].begins;
			assert_int_equal(admission_stressed(adm), stressed);
			assert_int_equal(
				open_text(adm, "192.0.2.1", 0, &tickets[n]),
				ADMISSION_ACCEPT);
		}
		for (uint32_t n = cases[i].max; n > 0; n--) {
			stressed = n > cases[i].ends || n >= cases[i].begins;
			assert_int_equal(admission_stressed(adm), stressed);
			admission_close(adm, &tickets[n - 1]);
		}
		assert_false(admission_stressed(adm));
		unmake(adm);
	}
}

static void stress_is_noted_between_two_questions(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket tickets[10];
	enum admission_verdict refusal = ADMISSION_ACCEPT;

	(void)state;
	config.max_sessions = 10;
	config.stress_high_percent = 90;
	config.stress_low_percent = 50;
	struct admission *adm = make(&config);

	(void)fill(adm, "192.0.2.1", tickets, 9, &refusal);
	close_all(adm, tickets, 3); /* 6 are between the marks */
	assert_true(admission_stressed(adm));
	close_all(adm, tickets + 3, 1);
	(void)fill(adm, "192.0.2.1", tickets, 3, &refusal); /* 8 again */
	assert_false(admission_stressed(adm));

	/* Without marks there is no stress. */
	config.stress_high_percent = 0;
	config.stress_low_percent = 0;
	(void)open_text(adm, "192.0.2.1", 0, &tickets[3]);
	assert_true(admission_stressed(adm));
	admission_configure(adm, &config);
	assert_false(admission_stressed(adm));
	unmake(adm);
}

/* --- the table's end --- */

static void the_longest_unused_entry_goes_first(void **state)
{
	struct admission_config config = plain_config();

	(void)state;
	config.table_size = 16;
	struct admission *adm = make(&config);
	struct cidr_addr addr = addr_of("10.0.0.0");
	struct admission_ticket pinned;
	struct admission_ticket ticket;

	/* One aggregate and 15 sources fill it; the first keeps a session. */
	assert_int_equal(admission_open(adm, &addr, 0, &pinned), 0);
	for (uint32_t n = 1; n < 15; n++) {
		addr = nth_addr(n);
		assert_int_equal(admission_open(adm, &addr, n, &ticket), 0);
		admission_close(adm, &ticket);
	}
	/* Source 1 is used again; so source 2 is the oldest. */
	assert_int_equal(visit(adm, "10.0.0.1", 20), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "10.0.0.99", 21), ADMISSION_ACCEPT);

	static const struct {
		const char *net;
		bool there;
	} cases[] = {
		{ "10.0.0.0", true },  { "10.0.0.1", true },
		{ "10.0.0.2", false }, { "10.0.0.3", true },
		{ "10.0.0.14", true }, { "10.0.0.99", true },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
						    cases[i].net);

		if ((row.sessions != UINT32_MAX) != cases[i].there)
			fail_msg("%s", cases[i].net);
	}
	/* A thousand others come and go: what is held stays, and is right. */
	for (uint32_t n = 0; n < 1000; n++) {
		addr = nth_addr(n + 256);
		assert_int_equal(admission_open(adm, &addr, 30, &ticket), 0);
		admission_close(adm, &ticket);
	}
	struct admission_row row = find_row(adm, ADMISSION_KIND_SOURCE,
					    "10.0.0.0");

	assert_int_equal(row.sessions, 1);
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "10.0.0.0/24");
	assert_int_equal(row.sessions, 1);
	assert_int_equal(row.accepted, 17);
	row = find_row(adm, ADMISSION_KIND_SOURCE, "10.0.0.1");
	assert_int_equal(row.sessions, UINT32_MAX);
	admission_close(adm, &pinned);
	assert_int_equal(admission_sessions(adm), 0);
	unmake(adm);
}

/* Sessions that hold all 16 entries: one aggregate, 15 sources. */
static void hold_all(struct admission *adm, struct admission_ticket tickets[15])
{
	for (uint32_t n = 0; n < 15; n++) {
		struct cidr_addr addr = nth_addr(n);

		assert_int_equal(admission_open(adm, &addr, 0, &tickets[n]),
				 ADMISSION_ACCEPT);
	}
	assert_int_equal(admission_aggregate_only(adm), 0);
}

static void sources_without_an_entry_share_the_limits_of_one(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket held[15];
	struct admission_ticket orphans[3];
	struct admission_ticket ticket;

	(void)state;
	config.table_size = 16;
	config.max_per_source = 3;
	config.rates[ADMISSION_RATE_MESSAGE] = (struct admission_rate_limit){
		1, 1000, 2
	};
	struct admission *adm = make(&config);

	hold_all(adm, held);
	assert_int_equal(open_text(adm, "10.0.0.101", 0, &orphans[0]), 0);
	assert_int_equal(open_text(adm, "10.0.0.102", 0, &orphans[1]), 0);
	assert_int_equal(open_text(adm, "10.0.0.101", 0, &orphans[2]), 0);
	assert_int_equal(admission_aggregate_only(adm), 3);
	assert_int_equal(visit(adm, "10.0.0.103", 0),
			 ADMISSION_SOURCE_SESSIONS);
	struct admission_row row = find_row(adm, ADMISSION_KIND_AGGREGATE,
					    "10.0.0.0/24");

	assert_int_equal(row.sessions, 18);

	/* One source's rate for all of them. */
	assert_true(admission_message(adm, &orphans[0], 0));
	assert_true(admission_message(adm, &orphans[1], 0));
	assert_false(admission_message(adm, &orphans[2], 0));
	assert_true(admission_message(adm, &held[0], 0));
	admission_error(adm, &orphans[0]);
	/* Praise would stick to whoever comes from there. */
	admission_praise(adm, &orphans[0], 0);
	assert_false(admission_good(adm, &orphans[0], 0));
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "10.0.0.0/24");
	assert_int_equal(row.errors, 1);
	assert_int_equal(row.good_until_ms, 0);

	/*
	 * With an entry for it again, a source is still held to its limit,
	 * for all that the table knows: the others may be its own.
	 */
	admission_close(adm, &held[0]);
	assert_int_equal(visit(adm, "10.0.0.101", 0),
			 ADMISSION_SOURCE_SESSIONS);
	admission_close(adm, &orphans[0]);
	assert_int_equal(open_text(adm, "10.0.0.101", 0, &ticket),
			 ADMISSION_ACCEPT);
	assert_int_equal(admission_aggregate_only(adm), 3);
	assert_int_equal(visit(adm, "10.0.0.101", 0),
			 ADMISSION_SOURCE_SESSIONS);

	admission_close(adm, &ticket);
	close_all(adm, orphans + 1, 2);
	close_all(adm, held + 1, 14);
	assert_int_equal(admission_sessions(adm), 0);
	row = find_row(adm, ADMISSION_KIND_AGGREGATE, "10.0.0.0/24");
	assert_int_equal(row.sessions, 0);
	unmake(adm);
}

static void no_entry_for_the_aggregate_either_is_table_full(void **state)
{
	struct admission_config config = plain_config();
	struct admission_ticket held[15];
	struct admission_ticket exempt;
	struct cidr_range range;
	struct cidr_set allow = set_of(&range, "192.0.2.0/24");

	(void)state;
	config.table_size = 16;
	struct admission *adm = make(&config);

	hold_all(adm, held);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_TABLE_FULL);
	assert_int_equal(admission_count(adm, ADMISSION_TABLE_FULL), 1);
	assert_int_equal(admission_sessions(adm), 15);

	/* An allowed one needs no entry. */
	config.allow = &allow;
	admission_configure(adm, &config);
	assert_int_equal(open_text(adm, "192.0.2.1", 0, &exempt),
			 ADMISSION_ACCEPT);
	assert_true(admission_message(adm, &exempt, 0));
	admission_error(adm, &exempt);
	assert_int_equal(admission_sessions(adm), 16);
	admission_close(adm, &exempt);
	config.allow = NULL;
	admission_configure(adm, &config);

	/* Two entries are enough for a source of another aggregate. */
	close_all(adm, held, 2);
	assert_int_equal(visit(adm, "192.0.2.1", 0), ADMISSION_ACCEPT);
	close_all(adm, held + 2, 13);
	assert_int_equal(admission_sessions(adm), 0);
	unmake(adm);
}

/* --- show sources --- */

static void top_is_by_sessions_then_refusals_then_last_seen(void **state)
{
	static const char *const expected[] = {
		"10.0.0.3/32", "10.0.0.1/32", "10.0.0.5/32",
		"10.0.0.2/32", "10.0.0.4/32",
	};
	struct admission_config config = plain_config();
	struct admission_ticket tickets[8];
	struct admission_row rows[8];

	(void)state;
	config.max_per_source = 3;
	config.table_size = 65536; /* many shards */
	struct admission *adm = make(&config);

	for (int i = 0; i < 3; i++)
		(void)open_text(adm, "10.0.0.3", i, &tickets[i]);
	(void)open_text(adm, "10.0.0.1", 0, &tickets[3]);
	assert_int_equal(visit(adm, "10.0.0.4", 10), ADMISSION_ACCEPT);
	assert_int_equal(visit(adm, "10.0.0.2", 20), ADMISSION_ACCEPT);
	/* 10.0.0.5 was refused, and has gone since. */
	for (int i = 4; i < 7; i++)
		(void)open_text(adm, "10.0.0.5", 5, &tickets[i]);
	assert_int_equal(visit(adm, "10.0.0.5", 6), ADMISSION_SOURCE_SESSIONS);
	close_all(adm, tickets + 4, 3);

	for (size_t max = 0; max <= 8; max++) {
		size_t count = admission_top(adm, ADMISSION_KIND_SOURCE, rows,
					     max);

		assert_int_equal(count, max < 5 ? max : 5);
		for (size_t i = 0; i < count; i++) {
			char text[CIDR_TEXT_MAX];

			(void)cidr_format(&rows[i].net, text, sizeof(text));
			assert_string_equal(text, expected[i]);
		}
	}
	assert_int_equal(rows[2].last_refused_ms, 6);
	assert_int_equal(rows[2].refused, 1);
	assert_int_equal(admission_top(adm, ADMISSION_KIND_AGGREGATE, rows, 8),
			 1);
	assert_int_equal(rows[0].sessions, 4);
	assert_int_equal(rows[0].net.bits, CIDR_V4_BITS + 24);
	unmake(adm);
}

static void every_verdict_and_rate_has_its_words(void **state)
{
	static const struct {
		enum admission_verdict verdict;
		const char *name;
		const char *code;
	} verdicts[] = {
		{ ADMISSION_DENIED, "denied", "554 5.7.1 " },
		{ ADMISSION_BANNED, "banned", "554 5.7.1 " },
		{ ADMISSION_SOURCE_SESSIONS, "source_sessions", "421 4.7.0 " },
		{ ADMISSION_AGGREGATE_SESSIONS, "aggregate_sessions",
		  "421 4.7.0 " },
		{ ADMISSION_SOURCE_SHARE, "source_share", "421 4.7.0 " },
		{ ADMISSION_SOURCE_RATE, "source_rate", "421 4.7.0 " },
		{ ADMISSION_GLOBAL, "global", "421 4.3.2 " },
		{ ADMISSION_TABLE_FULL, "table_full", "421 4.3.2 " },
	};
	static const struct {
		enum admission_rate rate;
		const char *name;
		const char *code;
	} rates[] = {
		{ ADMISSION_RATE_SESSION, "session", "421 4.7.0 " },
		{ ADMISSION_RATE_MESSAGE, "message", "450 4.7.1 " },
		{ ADMISSION_RATE_RECIPIENT, "recipient", "450 4.7.1 " },
		{ ADMISSION_RATE_LOGIN, "login", "454 4.7.0 " },
	};

	(void)state;
	assert_int_equal(sizeof(verdicts) / sizeof(verdicts[0]),
			 ADMISSION_VERDICTS - 1);
	assert_string_equal(admission_verdict_name(ADMISSION_ACCEPT), "accept");
	assert_string_equal(admission_verdict_reply(ADMISSION_ACCEPT), "");
	for (size_t i = 0; i < sizeof(verdicts) / sizeof(verdicts[0]); i++) {
		enum admission_verdict verdict = verdicts[i].verdict;
		const char *reply = admission_verdict_reply(verdict);

		assert_string_equal(admission_verdict_name(verdict),
				    verdicts[i].name);
		assert_int_equal(strncmp(reply, verdicts[i].code, 10), 0);
		/* A reply line is 512 octets (RFC 5321, 4.5.3.1.5). */
		assert_in_range(strlen(reply), 20, 510);
		assert_null(strpbrk(reply, "\r\n"));
		assert_true(strlen(admission_verdict_help(verdict)) > 10);
	}
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		const char *reply = admission_rate_reply(rates[i].rate);

		assert_string_equal(admission_rate_name(rates[i].rate),
				    rates[i].name);
		assert_int_equal(strncmp(reply, rates[i].code, 10), 0);
		assert_null(strpbrk(reply, "\r\n"));
	}
}

/* --- many threads --- */

enum {
	THREADS = 4,
	SOURCES = 24,     /* six in each of four networks */
	HELD_MAX = 24,    /* sessions that a thread holds at most */
	STEPS = 400000,   /* of each thread */
	GLOBAL_MAX = 40,  /* 4 * 24 would be 96 */
	SOURCE_MAX = 5,   /* 24 * 5 would be 120 */
	NETWORK_MAX = 12, /* 6 * 5 would be 30 */
};

/*
 * What the test itself knows to be open.  Raised after an open and lowered
 * before a close, so it never shows more than there is: if it shows more than
 * a limit, the limit was broken.
 */
struct shadow {
	struct admission *adm;
	_Atomic uint32_t all;
	_Atomic uint32_t network[4];
	_Atomic uint32_t source[SOURCES];
	_Atomic uint32_t broken;
	_Atomic uint64_t opened;
	_Atomic uint64_t refused;
};

struct worker {
	struct shadow *shadow;
	uint64_t random;
	struct admission_ticket tickets[HELD_MAX];
	uint32_t sources[HELD_MAX];
	uint32_t held;
};

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static void raise_shadow(struct shadow *shadow, _Atomic uint32_t *count,
			 uint32_t max)
{
	if (atomic_fetch_add(count, 1) >= max)
		atomic_fetch_add(&shadow->broken, 1);
}

static void open_one(struct worker *worker)
{
	struct shadow *shadow = worker->shadow;
	uint32_t source = (uint32_t)(next_random(&worker->random) % SOURCES);
	struct cidr_addr addr = nth_addr(source % 4 << 8 | source);
	struct admission_ticket *ticket = &worker->tickets[worker->held];

	if (admission_open(shadow->adm, &addr, 0, ticket) != ADMISSION_ACCEPT) {
		atomic_fetch_add(&shadow->refused, 1);
		return;
	}
	raise_shadow(shadow, &shadow->all, GLOBAL_MAX);
	raise_shadow(shadow, &shadow->network[source % 4], NETWORK_MAX);
	raise_shadow(shadow, &shadow->source[source], SOURCE_MAX);
	atomic_fetch_add(&shadow->opened, 1);
	worker->sources[worker->held++] = source;
}

static void close_one(struct worker *worker)
{
	struct shadow *shadow = worker->shadow;
	uint32_t i = (uint32_t)(next_random(&worker->random) % worker->held);
	uint32_t source = worker->sources[i];
	uint32_t last = --worker->held;

	atomic_fetch_sub(&shadow->source[source], 1);
	atomic_fetch_sub(&shadow->network[source % 4], 1);
	atomic_fetch_sub(&shadow->all, 1);
	admission_close(shadow->adm, &worker->tickets[i]);
	worker->tickets[i] = worker->tickets[last];
	worker->sources[i] = worker->sources[last];
}

static void *work(void *arg)
{
	struct worker *worker = arg;

	for (uint32_t step = 0; step < STEPS; step++) {
		uint64_t r = next_random(&worker->random) % 16;

		if (worker->held > 0 && (r < 7 || worker->held == HELD_MAX))
			close_one(worker);
		else
			open_one(worker);
		if (r == 15 && worker->held > 0)
			(void)admission_message(worker->shadow->adm,
						&worker->tickets[0], step);
	}
	while (worker->held > 0)
		close_one(worker);
	return NULL;
}

/* What operators do meanwhile; none of it changes a limit. */
static void look_around(struct admission *adm,
			const struct admission_config *config)
{
	struct admission_row rows[4];
	struct cidr net = net_of("203.0.113.0/24");

	size_t count = admission_top(adm, ADMISSION_KIND_SOURCE, rows, 4);

	for (size_t i = 0; i < count; i++)
		assert_true(rows[i].sessions <= SOURCE_MAX);
	assert_true(admission_sessions(adm) <= GLOBAL_MAX);
	(void)admission_stressed(adm);
	assert_true(admission_ban(adm, &net, ADMISSION_FOREVER, 0));
	assert_true(admission_unban(adm, &net, 0));
	admission_configure(adm, config);
}

static void no_limit_is_broken_at_any_instant(struct admission_config *config,
					      uint64_t aggregate_only_min)
{
	struct worker *workers = calloc(THREADS, sizeof(*workers));
	struct shadow shadow = { .adm = make(config) };
	pthread_t threads[THREADS];

	assert_non_null(workers);
	for (uint32_t t = 0; t < THREADS; t++) {
		workers[t].shadow = &shadow;
		workers[t].random = 0x9e3779b97f4a7c15 + t;
		assert_int_equal(
			pthread_create(&threads[t], NULL, work, &workers[t]),
			0);
	}
	for (uint32_t round = 0; round < 500; round++)
		look_around(shadow.adm, config);
	for (uint32_t t = 0; t < THREADS; t++)
		assert_int_equal(pthread_join(threads[t], NULL), 0);

	uint64_t refused = 0;
	struct admission_row rows[SOURCES];

	for (int v = ADMISSION_ACCEPT + 1; v < ADMISSION_VERDICTS; v++)
		refused += admission_count(shadow.adm,
					   (enum admission_verdict)v);
	assert_int_equal(shadow.broken, 0);
	assert_int_equal(admission_sessions(shadow.adm), 0);
	assert_int_equal(admission_count(shadow.adm, ADMISSION_ACCEPT),
			 shadow.opened);
	assert_int_equal(refused, shadow.refused);
	assert_true(admission_aggregate_only(shadow.adm) >= aggregate_only_min);
	/* The test would show nothing if nobody had been refused. */
	assert_true(shadow.opened > 1000);
	assert_true(shadow.refused > 1000);
	for (int kind = 0; kind <= ADMISSION_KIND_AGGREGATE; kind++) {
		size_t count = admission_top(
			shadow.adm, (enum admission_kind)kind, rows, SOURCES);

		for (size_t i = 0; i < count; i++)
			assert_int_equal(rows[i].sessions, 0);
	}
	unmake(shadow.adm);
	free(workers);
}

static struct admission_config threads_config(void)
{
	struct admission_config config = plain_config();

	config.max_sessions = GLOBAL_MAX;
	config.max_per_source = SOURCE_MAX;
	config.max_per_aggregate = NETWORK_MAX;
	config.rates[ADMISSION_RATE_MESSAGE] = (struct admission_rate_limit){
		10, 1000, 10
	};
	return config;
}

static void limits_hold_at_every_instant_among_threads(void **state)
{
	struct admission_config config = threads_config();

	(void)state;
	config.table_size = 65536; /* 256 shards */
	no_limit_is_broken_at_any_instant(&config, 0);
}

static void limits_hold_while_the_table_evicts(void **state)
{
	struct admission_config config = threads_config();

	(void)state;
	/* 16 entries for 24 sources and 4 networks: not enough for all. */
	config.table_size = ADMISSION_TABLE_MIN;
	no_limit_is_broken_at_any_instant(&config, 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_hash_is_siphash_2_4),
		cmocka_unit_test(a_session_is_counted_until_it_closes),
		cmocka_unit_test(
			each_limit_lets_in_what_it_says_and_gives_it_back),
		cmocka_unit_test(the_prefixes_say_who_is_one_source),
		cmocka_unit_test(other_prefixes_can_be_configured),
		cmocka_unit_test(a_share_is_of_what_is_left_with_a_floor),
		cmocka_unit_test(bans_win_over_allow_and_allow_over_deny),
		cmocka_unit_test(
			an_allowed_source_is_held_to_the_global_limit_only),
		cmocka_unit_test(a_ban_holds_its_network_for_its_time),
		cmocka_unit_test(bans_are_listed_replaced_and_lifted),
		cmocka_unit_test(as_many_bans_as_promised_and_not_one_more),
		cmocka_unit_test(a_rate_lets_in_its_burst_and_then_its_pace),
		cmocka_unit_test(
			each_source_has_rates_of_its_own_for_each_kind),
		cmocka_unit_test(
			a_message_earns_ten_minutes_and_no_more_than_an_hour),
		cmocka_unit_test(mistakes_cost_what_messages_earn),
		cmocka_unit_test(good_standing_is_the_sources_and_nobody_elses),
		cmocka_unit_test(an_allowed_source_is_always_good),
		cmocka_unit_test(a_refused_session_is_not_charged_to_the_rate),
		cmocka_unit_test(new_limits_hold_at_once_and_old_sessions_stay),
		cmocka_unit_test(a_rate_that_changes_begins_anew_and_no_other),
		cmocka_unit_test(only_failed_logins_cost_and_each_of_them),
		cmocka_unit_test(stress_has_two_marks),
		cmocka_unit_test(stress_is_noted_between_two_questions),
		cmocka_unit_test(the_longest_unused_entry_goes_first),
		cmocka_unit_test(
			sources_without_an_entry_share_the_limits_of_one),
		cmocka_unit_test(
			no_entry_for_the_aggregate_either_is_table_full),
		cmocka_unit_test(
			top_is_by_sessions_then_refusals_then_last_seen),
		cmocka_unit_test(every_verdict_and_rate_has_its_words),
		cmocka_unit_test(limits_hold_at_every_instant_among_threads),
		cmocka_unit_test(limits_hold_while_the_table_evicts),
	};

	return cmocka_run_group_tests_name("admission", tests, NULL, NULL);
}
