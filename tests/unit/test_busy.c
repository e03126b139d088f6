#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "balancer/busy.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* What the rows of the table suppose. */
static const char *const weir_ips[] = { "10.0.0.9" };

/* A reply as it comes over the wire, without CRLF, one line. */
static struct busy_reply reply_of(enum busy_stage stage, enum busy_ident ident,
				  const char *line)
{
	struct busy_reply reply = {
		.stage = stage,
		.ident = ident,
		.code = (unsigned)strtoul(line, NULL, 10),
		.client_ip = "192.0.2.50",
		.proxy_ips = weir_ips,
		.proxy_ip_count = COUNT(weir_ips),
	};

	reply.text = strlen(line) > 4 ? line + 4 : "";
	reply.text_len = strlen(reply.text);
	(void)smtp_reply_esc(reply.text, reply.text_len, &reply.esc);
	return reply;
}

static struct busy_verdict judge(enum busy_stage stage, enum busy_ident ident,
				 const char *line)
{
	struct busy_reply reply = reply_of(stage, ident, line);

	return busy_classify(&reply, NULL, 0);
}

static enum busy_stage stage_named(const char *name)
{
	for (unsigned s = 0; s < BUSY_STAGES; s++) {
		if (strcmp(busy_stage_name((enum busy_stage)s), name) == 0)
			return (enum busy_stage)s;
	}
	fail_msg("no stage %s", name);
	return BUSY_STAGES;
}

/* The table writes classes as the rules do, "BUSY?" for maybe. */
static enum busy_class class_named(const char *name)
{
	if (strcmp(name, "BUSY?") == 0)
		return BUSY_MAYBE;
	for (unsigned c = 0; c < BUSY_CLASSES; c++) {
		if (strcasecmp(busy_class_name((enum busy_class)c), name) == 0)
			return (enum busy_class)c;
	}
	fail_msg("no class %s", name);
	return BUSY_CLASSES;
}

/* Cut the next cell off *rest. */
static char *cell(char **rest)
{
	char *at = *rest;
	char *tab = strpbrk(at, "\t\n");

	assert_non_null(tab);
	*tab = '\0';
	*rest = tab + 1;
	return at;
}

static FILE *replies_open(void)
{
	const char *path = getenv("WEIR_BUSY_REPLIES");
	FILE *in = fopen(path != NULL ? path : "tests/data/busy-replies.tsv",
			 "r");

	assert_non_null(in);
	return in;
}

struct row {
	char line[1024];
	enum busy_stage stage;
	enum busy_ident ident;
	enum busy_class class;
	const char *reply; /* in line */
};

static bool row_next(FILE *in, struct row *row)
{
	do {
		if (fgets(row->line, sizeof(row->line), in) == NULL)
			return false;
	} while (row->line[0] == '#');

	char *rest = row->line;
	const char *stage = cell(&rest), *ident = cell(&rest);

	row->reply = cell(&rest);
	row->stage = stage_named(stage);
	row->ident = strcmp(ident, "client") == 0 ? BUSY_IDENT_CLIENT
						  : BUSY_IDENT_PROXY;
	assert_true(row->ident == BUSY_IDENT_CLIENT ||
		    strcmp(ident, "proxy") == 0);
	row->class = class_named(cell(&rest));
	return true;
}

static void every_known_reply_comes_out_as_its_class(void **state)
{
	FILE *in = replies_open();
	struct row row;
	unsigned rows = 0, wrong = 0;

	(void)state;
	for (; row_next(in, &row); rows++) {
		struct busy_reply reply = reply_of(row.stage, row.ident,
						   row.reply);

		/* The rows speak of two clients: the one that is named. */
		if (strstr(row.reply, "192.0.2.50") == NULL)
			reply.client_ip = "192.0.2.5";

		struct busy_verdict got = busy_classify(&reply, NULL, 0);

		if (got.class == row.class)
			continue;
		wrong++;
		print_message("  %s %s: %s by %s, not %s\n",
			      busy_stage_name(row.stage), row.reply,
			      busy_class_name(got.class),
			      busy_rule_name(got.rule),
			      busy_class_name(row.class));
	}
	assert_int_equal(wrong, 0);
	assert_int_equal(rows, 154);
	assert_int_equal(fclose(in), 0);
}

struct rule_case {
	enum busy_stage stage;
	enum busy_ident ident;
	const char *line;
	enum busy_rule_id rule;
	enum busy_class class;
};

#define C BUSY_IDENT_CLIENT
#define P BUSY_IDENT_PROXY

/* A reply for every rule. */
/* clang-format off */
static const struct rule_case rule_cases[] = {
	{ BUSY_STAGE_MAIL, C, "250 2.1.0 Ok", BUSY_RULE_OK, BUSY_OK },
	{ BUSY_STAGE_DATA, C, "354 too busy to say more", BUSY_RULE_OK, BUSY_OK },
	{ BUSY_STAGE_GREET, C, "421 bad command syntax", BUSY_RULE_R1, BUSY_MISCONF },
	{ BUSY_STAGE_IDLE, C, "554 too many errors", BUSY_RULE_R2_SESSION, BUSY_SESSION },
	{ BUSY_STAGE_EHLO, P, "550 5.7.1 no", BUSY_RULE_R2_MISCONF, BUSY_MISCONF },
	{ BUSY_STAGE_EHLO, C, "550 5.7.1 no", BUSY_RULE_R2_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_MAIL, P, "552 5.3.4 busy, overload, disk", BUSY_RULE_R2_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_IDLE, C, "421 4.4.2 timed out", BUSY_RULE_R3, BUSY_SESSION },
	{ BUSY_STAGE_RCPT, C, "450 no more from 10.0.0.9", BUSY_RULE_R4, BUSY_CAP },
	{ BUSY_STAGE_GREET, C, "421 Too many concurrent SMTP connections from this IP address", BUSY_RULE_R5_PEER, BUSY_CAP },
	{ BUSY_STAGE_MAIL, P, "450 slow down, this client", BUSY_RULE_R5_CAP, BUSY_CAP },
	{ BUSY_STAGE_MAIL, C, "450 slow down, this client", BUSY_RULE_R5_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_EOD, C, "451 writing spool failed", BUSY_RULE_R6, BUSY_BUSY },
	{ BUSY_STAGE_EOD, C, "451 4.4.25 message failed to be replicated", BUSY_RULE_R7_INFRA, BUSY_SICK },
	{ BUSY_STAGE_RCPT, C, "451 4.3.5 recipient: oops", BUSY_RULE_R7_SICK, BUSY_SICK },
	{ BUSY_STAGE_RCPT, C, "451 4.3.1 gray list", BUSY_RULE_R7_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_RCPT, C, "421 maintenance", BUSY_RULE_R8, BUSY_DRAIN },
	{ BUSY_STAGE_GREET, C, "421 4.7.1 busy", BUSY_RULE_R9_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_GREET, P, "421 4.7.1 busy", BUSY_RULE_R9_CAP, BUSY_CAP },
	{ BUSY_STAGE_GREET, P, "421 4.7.1 no", BUSY_RULE_R9_REFUSED, BUSY_SICK },
	{ BUSY_STAGE_GREET, C, "450 Busy", BUSY_RULE_R9_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_GREET, C, "450 4.4.5 no", BUSY_RULE_R9_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_GREET, C, "450 4.3.5 no", BUSY_RULE_R9_SICK, BUSY_SICK },
	{ BUSY_STAGE_GREET, C, "450 no", BUSY_RULE_R9_MAYBE, BUSY_MAYBE },
	{ BUSY_STAGE_EHLO, C, "421 no", BUSY_RULE_R10_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_EHLO, C, "450 overload", BUSY_RULE_R10_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_XCLIENT, C, "450 4.7.1 no", BUSY_RULE_R10_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_EHLO, C, "450 no", BUSY_RULE_R10_SICK, BUSY_SICK },
	{ BUSY_STAGE_STARTTLS, C, "454 4.7.0 no", BUSY_RULE_R10_TLS, BUSY_SICK },
	{ BUSY_STAGE_DATA, C, "452 4.3.1 no", BUSY_RULE_R11_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_MAIL, C, "450 4.3.2 too busy", BUSY_RULE_R11_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_MAIL, C, "450 4.7.1 service unavailable", BUSY_RULE_R11_FRONT, BUSY_SICK },
	{ BUSY_STAGE_MAIL, C, "450 4.7.1 too busy", BUSY_RULE_R11_REFUSED, BUSY_POLICY },
	{ BUSY_STAGE_MAIL, C, "450 4.3.2 no", BUSY_RULE_R11_SICK, BUSY_SICK },
	{ BUSY_STAGE_EOD, C, "452 no", BUSY_RULE_R11_SICK, BUSY_SICK },
	{ BUSY_STAGE_EOD, C, "450 no", BUSY_RULE_R11_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_RCPT, C, "452 4.3.1 no", BUSY_RULE_R12_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_RCPT, C, "450 4.7.1 service unavailable", BUSY_RULE_R12_FRONT, BUSY_SICK },
	{ BUSY_STAGE_RCPT, C, "450 4.3.0 no", BUSY_RULE_R12_SICK, BUSY_SICK },
	{ BUSY_STAGE_RCPT, C, "450 4.3.2 no", BUSY_RULE_R12_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_RCPT, C, "450", BUSY_RULE_R12_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_XCLIENT, C, "554 5.7.1 <unknown[192.0.2.50]>: Client host rejected", BUSY_RULE_R2_CLIENT, BUSY_POLICY },
	{ BUSY_STAGE_XCLIENT, C, "554 5.7.1 blocked by the DNSBL", BUSY_RULE_R2_CLIENT, BUSY_POLICY },
	{ BUSY_STAGE_XCLIENT, C, "503 5.5.1 no", BUSY_RULE_R2_MISCONF, BUSY_MISCONF },
	{ BUSY_STAGE_XCLIENT, C, "554 5.5.0 too many errors", BUSY_RULE_R2_SESSION, BUSY_SESSION },
	{ BUSY_STAGE_STARTTLS, C, "502 5.5.1 no", BUSY_RULE_R2_MISCONF, BUSY_MISCONF },
	{ BUSY_STAGE_STARTTLS, P, "502 5.5.1 no", BUSY_RULE_R2_MISCONF, BUSY_MISCONF },
	{ BUSY_STAGE_AUTH, C, "334 ", BUSY_RULE_OK, BUSY_OK },
	{ BUSY_STAGE_AUTH, P, "535 5.7.8 busy", BUSY_RULE_R2_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_AUTH, C, "454 4.7.0 directory timed out", BUSY_RULE_R14_INFRA, BUSY_SICK },
	{ BUSY_STAGE_AUTH, P, "435 no", BUSY_RULE_R14_INFRA, BUSY_SICK },
	{ BUSY_STAGE_AUTH, C, "421 4.4.2 timed out", BUSY_RULE_R3, BUSY_SESSION },
	{ BUSY_STAGE_AUTH, C, "454 4.7.0 too many failed logins", BUSY_RULE_R7_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_AUTH, P, "454 4.7.0 too many failed logins from your IP", BUSY_RULE_R7_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_AUTH, C, "454 out of memory", BUSY_RULE_R6, BUSY_BUSY },
	{ BUSY_STAGE_AUTH, C, "454 4.7.0 out of memory", BUSY_RULE_R14_SICK, BUSY_SICK },
	{ BUSY_STAGE_AUTH, C, "454 4.7.0 server busy", BUSY_RULE_R14_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_AUTH, C, "450 4.3.1 no", BUSY_RULE_R14_BUSY, BUSY_BUSY },
	{ BUSY_STAGE_AUTH, C, "450 4.3.0 no", BUSY_RULE_R14_SICK, BUSY_SICK },
	{ BUSY_STAGE_AUTH, C, "421 no", BUSY_RULE_R14_SICK, BUSY_SICK },
	{ BUSY_STAGE_AUTH, C, "421 4.7.0 no", BUSY_RULE_R14_POLICY, BUSY_POLICY },
	{ BUSY_STAGE_AUTH, C, "432 4.7.12 no", BUSY_RULE_R14_POLICY, BUSY_POLICY },
};
/* clang-format on */

static void every_rule_decides_where_it_should(void **state)
{
	bool seen[BUSY_RULE_COUNT] = { false };

	(void)state;
	for (size_t i = 0; i < COUNT(rule_cases); i++) {
		const struct rule_case *c = &rule_cases[i];
		struct busy_verdict got = judge(c->stage, c->ident, c->line);

		print_message("  %s\n", c->line);
		assert_string_equal(busy_rule_name(got.rule),
				    busy_rule_name(c->rule));
		assert_int_equal(got.class, c->class);
		seen[got.rule] = true;
	}
	for (unsigned s = 0; s < BUSY_SILENCES; s++)
		seen[busy_silence((enum busy_silence)s).rule] = true;
	seen[BUSY_RULE_R0] = true; /* the operator's have tests below */
	for (unsigned r = 0; r < BUSY_RULE_COUNT; r++) {
		print_message("  %s: %s\n",
			      busy_rule_name((enum busy_rule_id)r),
			      busy_rule_meaning((enum busy_rule_id)r));
		assert_true(seen[r]);
	}
}

struct word_case {
	const char *line;
	enum busy_class class; /* at the greeting, client seen */
};

/* Near misses of the word patterns; without the word it is MAYBE. */
static const struct word_case word_cases[] = {
	{ "450 busy", BUSY_BUSY },
	{ "450 not-busy!", BUSY_BUSY },
	{ "450 busybody", BUSY_MAYBE },
	{ "450 business", BUSY_MAYBE },
	{ "450 unbusy", BUSY_MAYBE },
	{ "450 concurrency limit", BUSY_BUSY },
	{ "450 concurrent session", BUSY_BUSY },
	{ "450 concurren limit", BUSY_MAYBE },
	{ "450 concurrent  limit", BUSY_MAYBE },
	{ "450 concurrenT_9 SERVER", BUSY_BUSY },
	{ "450 bad PROXY header syntax", BUSY_MISCONF },
	{ "450 syntax is bad ", BUSY_MAYBE },
	{ "450 bad syntax", BUSY_MAYBE },
	{ "450 bad  syntax", BUSY_MISCONF },
	{ "450 our spf check", BUSY_POLICY },
	{ "450 spfx check", BUSY_MAYBE },
	{ "450 (DKIM)", BUSY_POLICY },
	{ "450 writing error", BUSY_BUSY },
	{ "450 writ error", BUSY_MAYBE },
	{ "450 grey  list", BUSY_MAYBE },
	{ "450 GRAYLIST", BUSY_POLICY },
	{ "450 ", BUSY_MAYBE },
	{ "450", BUSY_MAYBE },
};

static void words_match_as_patterns_not_as_pieces(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(word_cases); i++) {
		print_message("  %s\n", word_cases[i].line);
		assert_int_equal(
			judge(BUSY_STAGE_GREET, C, word_cases[i].line).class,
			word_cases[i].class);
	}
}

struct address_case {
	const char *ip;
	const char *text;
	bool named;
};

static const struct address_case addresses[] = {
	{ "192.0.2.5", "no more of 192.0.2.5", true },
	{ "192.0.2.5", "no more of [192.0.2.5].", true },
	{ "192.0.2.5", "192.0.2.5: no", true },
	{ "192.0.2.5", "from 192.0.2.5.", true },
	{ "192.0.2.5", "of 192.0.2.50, no", false },
	{ "192.0.2.5", "of 1192.0.2.5", false },
	{ "192.0.2.5", "of 9.192.0.2.5", false },
	{ "192.0.2.5", "of 192.0.2.5.1", false },
	{ "192.0.2.5", "192.0.2.50 and 192.0.2.5", true },
	{ "2001:db8::1", "of 2001:DB8::1", true },
	{ "2001:db8::1", "of [IPv6:2001:db8::1]", true },
	{ "2001:db8::1", "2001:db8::1: no", true },
	{ "2001:db8::1", "of 2001:db8::1:2", false },
	{ "2001:db8::1", "of 2001:db8::12", false },
	{ "2001:db8::1", "of 1:2001:db8::1", false },
	{ "::1", "of 2001:db8::1", false },
	{ "", "of nobody", false },
	{ NULL, "of nobody", false },
};

static void addresses_are_compared_whole(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(addresses); i++) {
		const struct address_case *c = &addresses[i];
		struct busy_reply reply = {
			.stage = BUSY_STAGE_GREET,
			.code = 450,
			.text = c->text,
			.text_len = strlen(c->text),
		};

		print_message("  %s in \"%s\"\n", c->ip != NULL ? c->ip : "-",
			      c->text);
		reply.client_ip = c->ip;
		assert_int_equal(busy_classify(&reply, NULL, 0).class,
				 c->named ? BUSY_POLICY : BUSY_MAYBE);
		reply.client_ip = NULL;
		reply.proxy_ips = &c->ip;
		reply.proxy_ip_count = 1;
		assert_int_equal(busy_classify(&reply, NULL, 0).class,
				 c->named ? BUSY_CAP : BUSY_MAYBE);
	}
}

/*
 * Who is seen may only turn a verdict on the client into one on weir: what
 * is POLICY of a client that is seen may be a cap, a fault or our mistake
 * when weir is seen, and nothing else may differ.
 */
static void seeing_weir_changes_only_verdicts_on_the_client(void **state)
{
	FILE *in = replies_open();
	struct row row;
	unsigned differ = 0;

	(void)state;
	while (row_next(in, &row)) {
		enum busy_class client = judge(row.stage, C, row.reply).class;
		enum busy_class proxy = judge(row.stage, P, row.reply).class;

		if (client == proxy)
			continue;
		print_message("  %s %s\n", busy_stage_name(row.stage),
			      row.reply);
		differ++;
		assert_int_equal(client, BUSY_POLICY);
		assert_true(proxy == BUSY_CAP || proxy == BUSY_SICK ||
			    proxy == BUSY_MISCONF);
	}
	assert_true(differ >= 10);
	assert_int_equal(fclose(in), 0);
}

/* Every stage, ident and code, with every enhanced code and no words. */
static void every_reply_gets_a_class_and_5xx_is_never_load(void **state)
{
	(void)state;
	for (unsigned code = 200; code < 600; code++) {
		for (uint16_t esc = 0; esc <= 100; esc++) {
			struct busy_reply reply = {
				.code = code,
				.text = "",
				.esc = { .class = esc < 100 ? 4 : 0,
					 .subject = esc / 10,
					 .detail = esc % 10 },
			};
			for (unsigned at = 2; at < 2 * BUSY_STAGES; at++) {
				reply.stage = (enum busy_stage)(at / 2);
				reply.ident = (enum busy_ident)(at % 2);

				struct busy_verdict got = busy_classify(
					&reply, NULL, 0);

				assert_true(got.class < BUSY_CLASSES);
				assert_int_equal(got.class == BUSY_OK,
						 code < 400);
				if (code >= 500)
					assert_true(got.class == BUSY_POLICY ||
						    got.class == BUSY_MISCONF);
			}
		}
	}
}

/* ---- silence and actions ---- */

static void silence_is_told_apart_by_when_it_falls(void **state)
{
	static const enum busy_class wanted[] = {
		[BUSY_SILENCE_REFUSED] = BUSY_MAYBE,
		[BUSY_SILENCE_RESET] = BUSY_MAYBE,
		[BUSY_SILENCE_TIMEOUT] = BUSY_MAYBE,
		[BUSY_SILENCE_GREET_LATE] = BUSY_BUSY,
		[BUSY_SILENCE_GREET_EOF] = BUSY_MAYBE,
		[BUSY_SILENCE_LOST] = BUSY_SICK,
		[BUSY_SILENCE_REPLY_LATE] = BUSY_SICK,
		[BUSY_SILENCE_FINAL_LATE] = BUSY_SICK,
		[BUSY_SILENCE_GARBLED] = BUSY_SICK,
	};

	(void)state;
	for (unsigned s = 0; s < BUSY_SILENCES; s++) {
		print_message("  %s\n",
			      busy_silence_name((enum busy_silence)s));
		assert_int_equal(busy_silence((enum busy_silence)s).class,
				 wanted[s]);
	}
}

static void policy_is_passed_on_and_never_retried(void **state)
{
	const struct busy_actions *a = busy_actions(BUSY_POLICY);

	(void)state;
	assert_int_equal(a->hide, BUSY_UNTIL_NEVER);
	assert_int_equal(a->retry, BUSY_UNTIL_NEVER);
	assert_int_equal(a->limit, BUSY_LIMIT_POSITIVE);
	assert_int_equal(a->health, BUSY_HEALTH_NONE);
	assert_false(a->retire);
}

static void actions_follow_the_table(void **state)
{
	static const struct busy_actions wanted[] = {
		[BUSY_OK] = { .limit = BUSY_LIMIT_POSITIVE },
		[BUSY_BUSY] = { BUSY_UNTIL_REPLY, BUSY_UNTIL_REPLY,
				BUSY_LIMIT_NEGATIVE, BUSY_HEALTH_HOLD, false,
				true },
		[BUSY_MAYBE] = { BUSY_UNTIL_REPLY, BUSY_UNTIL_REPLY,
				 BUSY_LIMIT_HALF, BUSY_HEALTH_NONE, false,
				 true },
		[BUSY_CAP] = { BUSY_UNTIL_REPLY, BUSY_UNTIL_REPLY,
			       BUSY_LIMIT_CEILING, BUSY_HEALTH_NONE, false,
			       true },
		[BUSY_DRAIN] = { BUSY_UNTIL_REPLY, BUSY_UNTIL_REPLY,
				 BUSY_LIMIT_NONE, BUSY_HEALTH_DRAIN, false,
				 true },
		[BUSY_SICK] = { BUSY_UNTIL_MAIL, BUSY_UNTIL_MAIL,
				BUSY_LIMIT_NONE, BUSY_HEALTH_OUTLIER, false,
				true },
		[BUSY_MISCONF] = { BUSY_UNTIL_REPLY, BUSY_UNTIL_REPLY,
				   BUSY_LIMIT_NONE, BUSY_HEALTH_CONFIG_DOWN,
				   true, true },
		[BUSY_SESSION] = { .retire = true },
		[BUSY_POLICY] = { .limit = BUSY_LIMIT_POSITIVE },
	};

	(void)state;
	for (unsigned c = 0; c < BUSY_CLASSES; c++) {
		const struct busy_actions *a = busy_actions((enum busy_class)c);

		print_message("  %s\n", busy_class_name((enum busy_class)c));
		assert_int_equal(a->hide, wanted[c].hide);
		assert_int_equal(a->retry, wanted[c].retry);
		assert_int_equal(a->limit, wanted[c].limit);
		assert_int_equal(a->health, wanted[c].health);
		assert_int_equal(a->own_reply, wanted[c].own_reply);
		assert_int_equal(a->retire, wanted[c].retire);
	}
}

static void another_backend_is_in_reach_until_mail_was_answered(void **state)
{
	(void)state;
	for (unsigned s = 0; s < BUSY_STAGES; s++) {
		enum busy_stage stage = (enum busy_stage)s;

		assert_false(busy_within(BUSY_UNTIL_NEVER, stage));
		assert_int_equal(busy_within(BUSY_UNTIL_MAIL, stage),
				 s < BUSY_STAGE_MAIL);
		assert_int_equal(busy_within(BUSY_UNTIL_REPLY, stage),
				 s <= BUSY_STAGE_MAIL);
	}
}

/* ---- the operator's rules ---- */

struct parse_case {
	const char *text;
	const char *error; /* part of it; NULL: the rule is good */
};

static const struct parse_case parses[] = {
	{ "MAIL 452 4.3.1 text words => busy", NULL },
	{ "any => policy", NULL },
	{ "auth 535 => policy", NULL },
	{ "  rcpt\t4xx  x.3.2   thread limit  =>  Maybe-Busy ", NULL },
	{ "EOD 5XX => ok", NULL },
	{ "greet 2 many => busy", NULL },
	{ "idle a => b => drain", NULL },
	{ "MAIL 452 busy", "need STAGE [CODE] [ESC] [TEXT] => CLASS" },
	{ "", "need STAGE" },
	{ "=> busy", "\"\": need a stage first" },
	{ "TCP => busy", "\"TCP\": need a stage first" },
	{ "452 MAIL => busy", "\"452\": need a stage first" },
	{ "MAIL 252 => busy", "\"252\": need a code from 400 to 599" },
	{ "MAIL 600 => busy", "\"600\": need a code from 400 to 599" },
	{ "MAIL 45x => busy", "\"45x\": need a code from 400 to 599" },
	{ "MAIL 452 4.3 => busy", "\"4.3\": need an enhanced code" },
	{ "MAIL 452 4.3. => busy", "\"4.3.\": need an enhanced code" },
	{ "MAIL 452 4..3 => busy", "\"4..3\": need an enhanced code" },
	{ "MAIL 452 2.3.1 => busy", "\"2.3.1\": need an enhanced code" },
	{ "MAIL 4.3.1000 => busy", "\"4.3.1000\": need an enhanced code" },
	{ "MAIL 4.3.1.2 => busy", "\"4.3.1.2\": need an enhanced code" },
	{ "MAIL 452 => full", "\"full\": need a class behind =>" },
	{ "MAIL 452 =>", "\"\": need a class behind =>" },
};

static void rules_of_the_operator_parse_or_say_what_is_wanted(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(parses); i++) {
		const struct parse_case *c = &parses[i];
		char error[BUSY_RULE_ERROR_MAX] = "";
		struct busy_rule rule;
		bool good = busy_rule_parse(c->text, &rule, error);

		print_message("  %s  %s\n", c->text, error);
		assert_int_equal(good, c->error == NULL);
		if (c->error != NULL)
			assert_non_null(strstr(error, c->error));
	}
}

static void rule_text_may_have_127_octets_and_no_more(void **state)
{
	char text[256] = "any ";
	char error[BUSY_RULE_ERROR_MAX];
	struct busy_rule rule;

	(void)state;
	memset(text + 4, 'x', BUSY_RULE_TEXT_MAX);
	memcpy(text + 4 + BUSY_RULE_TEXT_MAX, " => busy", 9);
	assert_true(busy_rule_parse(text, &rule, error));
	assert_int_equal(rule.text_len, BUSY_RULE_TEXT_MAX);
	memset(text + 4, 'x', BUSY_RULE_TEXT_MAX + 1);
	memcpy(text + 5 + BUSY_RULE_TEXT_MAX, " => busy", 9);
	assert_false(busy_rule_parse(text, &rule, error));
	assert_non_null(strstr(error, "longer than 127"));
}

struct own_case {
	const char *rule;
	enum busy_stage stage;
	const char *line;
	bool fits;
};

static const struct own_case owns[] = {
	{ "any => cap", BUSY_STAGE_GREET, "450 x", true },
	{ "any => cap", BUSY_STAGE_IDLE, "599", true },
	{ "any => cap", BUSY_STAGE_MAIL, "250 x", false },
	{ "any => cap", BUSY_STAGE_DATA, "354 x", false },
	{ "mail => cap", BUSY_STAGE_RCPT, "450 x", false },
	{ "mail 452 => cap", BUSY_STAGE_MAIL, "452 x", true },
	{ "mail 452 => cap", BUSY_STAGE_MAIL, "451 x", false },
	{ "mail 5xx => cap", BUSY_STAGE_MAIL, "550 x", true },
	{ "mail 5xx => cap", BUSY_STAGE_MAIL, "450 x", false },
	{ "mail 4.3.1 => cap", BUSY_STAGE_MAIL, "452 4.3.1 x", true },
	{ "mail x.3.1 => cap", BUSY_STAGE_MAIL, "552 5.3.1 x", true },
	{ "mail 4.3.1 => cap", BUSY_STAGE_MAIL, "452 4.3.10 x", false },
	{ "mail x.0.0 => cap", BUSY_STAGE_MAIL, "452 x", false },
	{ "mail Thread Limit => cap", BUSY_STAGE_MAIL, "450 a THREAD LIMIT",
	  true },
	{ "mail thread limit => cap", BUSY_STAGE_MAIL, "450 thread  limit",
	  false },
	{ "mail thread limit => cap", BUSY_STAGE_MAIL, "450 thread", false },
	{ "mail thread limit => cap", BUSY_STAGE_MAIL, "450", false },
};

static void rules_of_the_operator_go_before_ours(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(owns); i++) {
		const struct own_case *c = &owns[i];
		struct busy_rule rules[2];
		char error[BUSY_RULE_ERROR_MAX];
		struct busy_reply reply = reply_of(c->stage, C, c->line);

		print_message("  %s: %s\n", c->rule, c->line);
		assert_true(busy_rule_parse(c->rule, &rules[0], error));
		assert_true(
			busy_rule_parse("any => session", &rules[1], error));

		struct busy_verdict got = busy_classify(&reply, rules, 1);

		assert_int_equal(got.rule == BUSY_RULE_R0, c->fits);
		if (c->fits)
			assert_int_equal(got.class, BUSY_CAP);
		/* the first that fits decides */
		got = busy_classify(&reply, rules, 2);
		if (reply.code >= 400)
			assert_int_equal(got.class,
					 c->fits ? BUSY_CAP : BUSY_SESSION);
		else
			assert_int_equal(got.class, BUSY_OK);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_known_reply_comes_out_as_its_class),
		cmocka_unit_test(every_rule_decides_where_it_should),
		cmocka_unit_test(words_match_as_patterns_not_as_pieces),
		cmocka_unit_test(addresses_are_compared_whole),
		cmocka_unit_test(
			seeing_weir_changes_only_verdicts_on_the_client),
		cmocka_unit_test(
			every_reply_gets_a_class_and_5xx_is_never_load),
		cmocka_unit_test(silence_is_told_apart_by_when_it_falls),
		cmocka_unit_test(policy_is_passed_on_and_never_retried),
		cmocka_unit_test(actions_follow_the_table),
		cmocka_unit_test(
			another_backend_is_in_reach_until_mail_was_answered),
		cmocka_unit_test(
			rules_of_the_operator_parse_or_say_what_is_wanted),
		cmocka_unit_test(rule_text_may_have_127_octets_and_no_more),
		cmocka_unit_test(rules_of_the_operator_go_before_ours),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
