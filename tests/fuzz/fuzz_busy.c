#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "balancer/busy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_rule(const char *text, struct busy_rule *rule, bool *good)
{
	char error[BUSY_RULE_ERROR_MAX];

	memset(error, 'x', sizeof(error));
	*good = busy_rule_parse(text, rule, error);
	if (!*good) {
		assert(memchr(error, '\0', sizeof(error)) != NULL);
		return;
	}
	assert(rule->code_min >= 400 && rule->code_max <= 599);
	assert(rule->code_min <= rule->code_max);
	assert(rule->stages != 0 && rule->class < BUSY_CLASSES);
	assert(rule->text_len <= BUSY_RULE_TEXT_MAX);
}

static void check_same(struct busy_verdict a, struct busy_verdict b)
{
	assert(a.class == b.class && a.rule == b.rule);
}

static void check_verdict(const struct busy_reply *reply,
			  struct busy_verdict got)
{
	assert(got.class < BUSY_CLASSES && got.rule < BUSY_RULE_COUNT);
	assert(busy_rule_name(got.rule) != NULL);
	assert((got.class == BUSY_OK) == (reply->code < 400));
	/* promise 7: a 5xx is never load, and never another backend's */
	if (reply->code >= 500)
		assert(got.class == BUSY_POLICY || got.class == BUSY_SESSION ||
		       got.class == BUSY_MISCONF);
	/* misconfiguration shows before MAIL only */
	if (got.class == BUSY_MISCONF)
		assert(busy_within(BUSY_UNTIL_MAIL, reply->stage));
	/* the unknown is BUSY? at the greeting only */
	if (got.class == BUSY_MAYBE)
		assert(reply->stage == BUSY_STAGE_GREET);
}

/*
 * Octets: stage, ident, code (two), subject, detail, length of the client's
 * address, the address, then the text; the text is read as a rule as well.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const weir_ips[] = { "10.0.0.9", "2001:db8::9" };
	enum { HEAD = 7 };

	if (size < HEAD)
		return 0;

	struct busy_reply reply = {
		.stage = (enum busy_stage)(1 + data[0] % (BUSY_STAGES - 1)),
		.ident = (enum busy_ident)(data[1] % 2),
		.code = 200 + (data[2] * 256U + data[3]) % 400,
		.esc = { .class = data[4] % 12 == 0 ? 0 : 4,
			 .subject = (uint16_t)(data[4] % 12 -
					       (data[4] % 12 > 0)),
			 .detail = data[5] },
		.proxy_ips = weir_ips,
		.proxy_ip_count = 2,
	};
	size_t ip_len = data[6] % 40, text_len;

	if (ip_len > size - HEAD)
		ip_len = size - HEAD;
	text_len = size - HEAD - ip_len;

	char *ip = calloc(1, ip_len + 1), *words = calloc(1, text_len + 1);
	char *text = malloc(text_len > 0 ? text_len : 1); /* exact, for ASan */

	if (ip == NULL || words == NULL || text == NULL)
		abort();
	memcpy(ip, data + HEAD, ip_len);
	memcpy(words, data + HEAD + ip_len, text_len);
	memcpy(text, words, text_len);
	reply.client_ip = ip;
	reply.text = text;
	reply.text_len = text_len;

	struct busy_verdict got = busy_classify(&reply, NULL, 0);
	struct busy_rule rule;
	bool good;

	check_verdict(&reply, got);
	check_rule(words, &rule, &good);
	if (good) {
		struct busy_verdict own = busy_classify(&reply, &rule, 1);

		if (own.rule == BUSY_RULE_R0)
			assert(own.class == rule.class && reply.code >= 400);
		else
			check_same(own, got);
	}
	/* words are compared without regard to case */
	for (size_t i = 0; i < text_len; i++) {
		if (text[i] >= 'a' && text[i] <= 'z')
			text[i] = (char)(text[i] - 'a' + 'A');
	}
	check_same(busy_classify(&reply, NULL, 0), got);
	free(ip);
	free(words);
	free(text);
	return 0;
}
