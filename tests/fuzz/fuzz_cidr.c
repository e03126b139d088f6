#include "proxy/cidr.h"

#include <stdlib.h>
#include <string.h>

/*
 * Any octets as an address and as a network.  What is taken must survive
 * being written and read again; what is refused must come with a reason; and
 * a set built of the lines must answer as the networks do one by one.
 */

enum { NETS_MAX = 64, RANGES_MAX = 2 * NETS_MAX };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void try_addr(const char *text, size_t len)
{
	char again_text[CIDR_ADDR_TEXT_MAX];
	struct cidr_addr addr;
	struct cidr_addr again;

	if (!cidr_addr_parse(text, len, &addr))
		return;
	size_t again_len = cidr_addr_format(&addr, again_text,
					    sizeof(again_text));

	check(again_len == strlen(again_text));
	check(cidr_addr_parse(again_text, again_len, &again));
	check(cidr_addr_equal(&addr, &again));
}

static bool try_net(const char *text, size_t len, struct cidr *net)
{
	char again_text[CIDR_TEXT_MAX];
	char why[CIDR_WHY_MAX] = "";
	struct cidr again;

	if (!cidr_parse(text, len, net, why, sizeof(why))) {
		check(why[0] != '\0');
		check(strlen(why) < sizeof(why) - 1); /* not cut */
		return false;
	}
	size_t again_len = cidr_format(net, again_text, sizeof(again_text));

	check(again_len == strlen(again_text));
	check(cidr_parse(again_text, again_len, &again, why, sizeof(why)));
	check(again.bits == net->bits);
	check(cidr_addr_equal(&again.addr, &net->addr));
	return true;
}

static void try_set(const struct cidr *nets, size_t count)
{
	struct cidr_range ranges[RANGES_MAX];
	struct cidr_set set;

	cidr_set_init(&set, ranges, RANGES_MAX);
	for (size_t i = 0; i < count; i++)
		check(cidr_set_add(&set, &nets[i]));
	cidr_set_seal(&set);
	for (size_t i = 1; i < set.count; i++)
		check(memcmp(&ranges[i - 1].last, &ranges[i].first,
			     sizeof(struct cidr_addr)) < 0);

	for (size_t i = 0; i < count; i++) {
		struct cidr_addr addr = nets[i].addr;

		addr.octets[15] ^= 1;
		bool has = false;

		for (size_t j = 0; j < count; j++)
			has = has || cidr_has(&nets[j], &addr);
		check(cidr_set_has(&set, &addr) == has);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	struct cidr nets[NETS_MAX];
	size_t count = 0;

	while (size > 0 && count < NETS_MAX) {
		const char *end = memchr(text, '\n', size);
		size_t len = end == NULL ? size : (size_t)(end - text);
		size_t step = end == NULL ? len : len + 1;

		try_addr(text, len);
		if (try_net(text, len, &nets[count]))
			count++;
		text += step;
		size -= step;
	}
	try_set(nets, count);
	return 0;
}
