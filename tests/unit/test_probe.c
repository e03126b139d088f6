#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "health/probe.h"

/*
 * A case is a dialogue: a list of lines, each beginning with
 *
 *	S:   the server says this (CRLF is added)
 *	C:   the probe must have said exactly this
 *	E:   end of stream		R:   reset
 *	T:   the deadline passes	+N:  N ms pass
 *
 * fed whole, and one octet at a time.
 */
struct dialogue {
	const char *about;
	bool mail;
	const char *lines[24];
	enum probe_outcome outcome;
	enum probe_step_name failed;
	enum busy_class class;
	enum health_probe verdict;
};

enum { START_MS = 5000, CONNECT_MS = 3000, ALL_MS = 10000 };

static const char *const own_ips[] = { "10.0.0.9" };

static const struct probe_order order_plain = {
	.helo = "weir.example",
	.connect_ms = CONNECT_MS,
	.timeout_ms = ALL_MS,
	.proxy_ips = own_ips,
	.proxy_ip_count = 1,
};

/* A probe and what it has said since it was last looked at. */
struct talk {
	struct probe probe;
	struct probe_plan plan;
	int64_t now;
	bool trickle;
	unsigned unread; /* commands said that nobody has looked at */
	char said[SMTP_COMMAND_LINE_MAX];
};

static void step(struct talk *t, const struct probe_event *ev)
{
	probe_step(&t->probe, ev, t->now, &t->plan);
	if (t->plan.send == NULL)
		return;
	assert_true(t->plan.send_len < sizeof(t->said));
	memcpy(t->said, t->plan.send, t->plan.send_len);
	t->said[t->plan.send_len] = '\0';
	t->unread++;
}

static void happen(struct talk *t, enum probe_event_kind kind)
{
	step(t, &(struct probe_event){ .kind = kind });
}

static void hear(struct talk *t, const char *octets, size_t len)
{
	size_t piece = t->trickle ? 1 : len;

	for (size_t i = 0; i < len; i += piece) {
		/* A private copy, so that ASan sees reads past the end. */
		char *copy = malloc(piece);

		assert_non_null(copy);
		memcpy(copy, octets + i, piece);
		step(t, &(struct probe_event){
				.kind = PROBE_IN_OCTETS,
				.octets = copy,
				.len = piece,
			});
		free(copy);
	}
}

static void begin(struct talk *t, const struct probe_order *order, bool trickle)
{
	memset(t, 0x55, sizeof(*t)); /* nothing may be taken as given */
	t->now = START_MS;
	t->trickle = trickle;
	t->unread = 0;
	probe_begin(&t->probe, order, t->now, &t->plan);
	assert_int_equal(t->plan.deadline_ms, START_MS + CONNECT_MS);
	assert_false(t->plan.done);
}

static void expect(struct talk *t, const char *command)
{
	char line[SMTP_COMMAND_LINE_MAX];

	snprintf(line, sizeof(line), "%s\r\n", command);
	assert_int_equal(t->unread, 1); /* one at a time, never pipelined */
	assert_string_equal(t->said, line);
	t->unread = 0;
}

static void one(struct talk *t, const char *line)
{
	char octets[512];
	int len;

	switch (line[0]) {
	case 'S':
		assert_int_equal(t->unread, 0);
		len = snprintf(octets, sizeof(octets), "%s\r\n", line + 3);
		assert_in_range(len, 2, sizeof(octets) - 1);
		hear(t, octets, (size_t)len);
		break;
	case 'C':
		expect(t, line + 3);
		break;
	case 'E':
		happen(t, PROBE_IN_CLOSED);
		break;
	case 'R':
		happen(t, PROBE_IN_RESET);
		break;
	case 'T':
		t->now = t->plan.deadline_ms;
		happen(t, PROBE_IN_TIME);
		break;
	case '+':
		t->now += (int64_t)strtoul(line + 1, NULL, 10);
		break;
	default:
		fail_msg("unknown line %s", line);
	}
}

/* clang-format off */
static const struct dialogue dialogues[] = {
	{ "all is well", false,
	  { "S: 220 mx ESMTP", "C: EHLO weir.example", "S: 250-mx", "S: 250-SIZE 1000", "S: 250 DSN", "C: QUIT", "S: 221 bye" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "a greeting of several lines, dribbled: no word before its end", false,
	  { "S: 220-mx wait", "+900", "S: 220-still", "+900", "S: 220-there", "+900", "S: 220 mx ESMTP", "C: EHLO weir.example", "S: 250 mx", "C: QUIT", "E:" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "with MAIL and RSET", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 250 2.1.0 ok", "C: RSET", "S: 250 ok", "C: QUIT", "S: 221 bye" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "an old server knows HELO only", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 500 unknown command", "C: HELO weir.example", "S: 250 mx", "C: QUIT", "S: 221 bye" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "what happens at QUIT does not matter: reset", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: QUIT", "R:" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "silence", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: QUIT", "T:" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "garbage", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: QUIT", "S: what?" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
	{ "an error", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: QUIT", "S: 500 what?" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },

	{ "Postfix over its process limit: not a word", false,
	  { "T:" },
	  PROBE_SILENT, PROBE_STEP_GREETING, BUSY_BUSY, HEALTH_PROBE_FAILED },
	{ "a greeting that does not end in time", false,
	  { "S: 220-mx wait", "S: 220-and wait", "T:" },
	  PROBE_SILENT, PROBE_STEP_GREETING, BUSY_BUSY, HEALTH_PROBE_FAILED },
	{ "Courier over its limit: closed at once", false,
	  { "E:" },
	  PROBE_CLOSED_EARLY, PROBE_STEP_GREETING, BUSY_MAYBE, HEALTH_PROBE_FAILED },
	{ "reset before it greets", false,
	  { "R:" },
	  PROBE_CLOSED_EARLY, PROBE_STEP_GREETING, BUSY_MAYBE, HEALTH_PROBE_FAILED },
	{ "postscreen is busy: alive", false,
	  { "S: 421 4.3.2 All server ports are busy", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, BUSY_BUSY, HEALTH_PROBE_BUSY },
	{ "Exim is full: alive", false,
	  { "S: 421 Too many concurrent SMTP connections; please try again later.", "C: QUIT", "R:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, BUSY_BUSY, HEALTH_PROBE_BUSY },
	{ "busy for no reason given: alive", false,
	  { "S: 421 come back later", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, BUSY_MAYBE, HEALTH_PROBE_BUSY },
	{ "a limit on our address: alive", false,
	  { "S: 421 4.7.0 mx Error: too many connections from 10.0.0.9", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, BUSY_CAP, HEALTH_PROBE_BUSY },
	{ "it is going away", false,
	  { "S: 421 4.3.2 mx Service shutting down", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, BUSY_DRAIN, HEALTH_PROBE_DRAIN },
	{ "it refuses us for good", false,
	  { "S: 554 mx no SMTP service here", "C: QUIT", "S: 221 bye" },
	  PROBE_GREETING_REFUSED, PROBE_STEP_GREETING, BUSY_MISCONF, HEALTH_PROBE_MISCONF },
	{ "another protocol", false,
	  { "S: SSH-2.0-OpenSSH_9.2" },
	  PROBE_NOT_SMTP, PROBE_STEP_GREETING, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "IMAP", false,
	  { "S: * OK [CAPABILITY IMAP4rev1] ready" },
	  PROBE_NOT_SMTP, PROBE_STEP_GREETING, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "a 3xx greeting is none", false,
	  { "S: 354 go on", "C: QUIT", "E:" },
	  PROBE_NOT_SMTP, PROBE_STEP_GREETING, BUSY_OK, HEALTH_PROBE_FAILED },

	{ "busy at EHLO: alive", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 421 4.3.2 too busy", "C: QUIT", "E:" },
	  PROBE_EHLO_BUSY, PROBE_STEP_EHLO, BUSY_BUSY, HEALTH_PROBE_BUSY },
	{ "going away at EHLO", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 421 mx shutting down", "C: QUIT", "E:" },
	  PROBE_EHLO_BUSY, PROBE_STEP_EHLO, BUSY_DRAIN, HEALTH_PROBE_DRAIN },
	{ "neither EHLO nor HELO", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 502 no", "C: HELO weir.example", "S: 550 no", "C: QUIT", "S: 221 bye" },
	  PROBE_EHLO_REFUSED, PROBE_STEP_HELO, BUSY_MISCONF, HEALTH_PROBE_MISCONF },
	{ "554 to EHLO is meant", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 554 no service", "C: QUIT", "S: 221 bye" },
	  PROBE_EHLO_REFUSED, PROBE_STEP_EHLO, BUSY_MISCONF, HEALTH_PROBE_MISCONF },
	{ "closed at EHLO", false,
	  { "S: 220 mx", "C: EHLO weir.example", "E:" },
	  PROBE_CLOSED, PROBE_STEP_EHLO, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "closed within its reply", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250-mx", "E:" },
	  PROBE_CLOSED, PROBE_STEP_EHLO, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "reset at EHLO", false,
	  { "S: 220 mx", "C: EHLO weir.example", "R:" },
	  PROBE_RESET, PROBE_STEP_EHLO, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "no answer to EHLO", false,
	  { "S: 220 mx", "C: EHLO weir.example", "T:" },
	  PROBE_TIMEOUT, PROBE_STEP_EHLO, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "two codes in one reply", false,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250-mx", "S: 550 x" },
	  PROBE_NOT_SMTP, PROBE_STEP_EHLO, BUSY_SICK, HEALTH_PROBE_FAILED },

	{ "its disk is full: alive", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 452 4.3.1 Insufficient system storage", "C: QUIT", "S: 221 bye" },
	  PROBE_MAIL_BUSY, PROBE_STEP_MAIL, BUSY_BUSY, HEALTH_PROBE_BUSY },
	{ "a fault that all may have: alive", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 451 4.3.0 lookup failure", "C: QUIT", "S: 221 bye" },
	  PROBE_MAIL_BUSY, PROBE_STEP_MAIL, BUSY_SICK, HEALTH_PROBE_BUSY },
	{ "it does not like <>: it is well", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 550 5.1.8 no bounces", "C: QUIT", "S: 221 bye" },
	  PROBE_MAIL_REFUSED, PROBE_STEP_MAIL, BUSY_POLICY, HEALTH_PROBE_PASSED },
	{ "closed at MAIL", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "E:" },
	  PROBE_CLOSED, PROBE_STEP_MAIL, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "no answer to MAIL", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "T:" },
	  PROBE_TIMEOUT, PROBE_STEP_MAIL, BUSY_SICK, HEALTH_PROBE_FAILED },
	{ "RSET is answered by nonsense", true,
	  { "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 250 ok", "C: RSET", "S: 500 what?", "C: QUIT", "S: 221 bye" },
	  PROBE_OK, PROBE_STEP_DONE, BUSY_OK, HEALTH_PROBE_PASSED },
};
/* clang-format on */

static void play(const struct dialogue *d, bool trickle, struct talk *t)
{
	struct probe_order order = order_plain;

	order.mail = d->mail;
	begin(t, &order, trickle);
	happen(t, PROBE_IN_CONNECTED);
	assert_int_equal(t->plan.deadline_ms, START_MS + ALL_MS);
	for (size_t i = 0; d->lines[i] != NULL; i++) {
		assert_false(t->plan.done);
		one(t, d->lines[i]);
	}
	assert_int_equal(t->unread, 0);
	t->probe.order = NULL; /* on this stack */
}

static void each_dialogue_ends_as_it_should_whole_and_trickled(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(dialogues) / sizeof(dialogues[0]); i++) {
		const struct dialogue *d = &dialogues[i];

		for (int trickle = 0; trickle <= 1; trickle++) {
			struct talk t;

			print_message("  %s\n", d->about);
			play(d, trickle == 1, &t);
			const struct probe_report *r = &t.probe.report;

			assert_true(t.plan.done);
			assert_string_equal(probe_outcome_name(r->outcome),
					    probe_outcome_name(d->outcome));
			assert_int_equal(r->failed, d->failed);
			assert_string_equal(busy_class_name(r->class),
					    busy_class_name(d->class));
			assert_int_equal(probe_verdict(r), d->verdict);
		}
	}
}

static void each_way_to_fail_to_connect_has_its_name(void **state)
{
	(void)state;
	static const struct {
		int error;
		enum probe_outcome outcome;
	} cases[] = {
		{ ECONNREFUSED, PROBE_REFUSED },
		{ EHOSTUNREACH, PROBE_UNREACHABLE },
		{ ENETUNREACH, PROBE_UNREACHABLE },
		{ ETIMEDOUT, PROBE_CONNECT_TIMEOUT },
		{ ECONNRESET, PROBE_CONNECT_RESET },
		{ EADDRNOTAVAIL, PROBE_CONNECT_ERROR },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct talk t;

		begin(&t, &order_plain, false);
		step(&t, &(struct probe_event){ .kind = PROBE_IN_FAILED,
						.error = cases[i].error });
		assert_true(t.plan.done);
		assert_int_equal(t.unread, 0);
		assert_int_equal(t.probe.report.outcome, cases[i].outcome);
		assert_int_equal(t.probe.report.failed, PROBE_STEP_CONNECT);
		assert_int_equal(t.probe.report.error, cases[i].error);
		assert_int_equal(probe_verdict(&t.probe.report),
				 HEALTH_PROBE_FAILED);
	}
}

static void a_connect_that_takes_too_long_is_given_up(void **state)
{
	(void)state;
	struct talk t;

	begin(&t, &order_plain, false);
	t.now = START_MS + CONNECT_MS - 1;
	happen(&t, PROBE_IN_TIME); /* a moment early: an older plan's */
	assert_false(t.plan.done);
	assert_int_equal(t.plan.deadline_ms, START_MS + CONNECT_MS);
	t.now++;
	happen(&t, PROBE_IN_TIME);
	assert_true(t.plan.done);
	assert_int_equal(t.probe.report.outcome, PROBE_CONNECT_TIMEOUT);
}

static void a_dribbled_greeting_does_not_put_the_deadline_off(void **state)
{
	(void)state;
	struct talk t;

	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	for (int i = 0; i < 9; i++) {
		t.now += 1000;
		hear(&t, "220-x\r\n", 7);
		assert_int_equal(t.plan.deadline_ms, START_MS + ALL_MS);
	}
	one(&t, "T:");
	assert_int_equal(t.now, START_MS + ALL_MS);
	assert_int_equal(t.probe.report.outcome, PROBE_SILENT);
}

static void quit_is_awaited_for_two_seconds(void **state)
{
	(void)state;
	struct talk t;

	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 220 mx");
	t.unread = 0;
	t.now = START_MS + ALL_MS - 10;
	one(&t, "S: 250 mx");
	expect(&t, "QUIT");
	assert_false(t.plan.done);
	assert_int_equal(t.plan.deadline_ms, t.now + PROBE_QUIT_MS);
	one(&t, "T:");
	assert_true(t.plan.done);
	assert_int_equal(t.probe.report.outcome, PROBE_OK);
	assert_int_equal(t.probe.report.ended_ms, START_MS + ALL_MS - 10);
}

static void it_learns_what_ehlo_offers(void **state)
{
	(void)state;
	static const char *const lines[] = {
		"S: 220 mx",
		"S: 250-mx",
		"S: 250-SIZE 10240000",
		"S: 250-PIPELINING",
		"S: 250-X-UNHEARD-OF 1 2",
		"S: 250-8BITMIME",
		"S: 250 CHUNKING",
	};
	for (int trickle = 0; trickle <= 1; trickle++) {
		struct talk t;

		begin(&t, &order_plain, trickle == 1);
		happen(&t, PROBE_IN_CONNECTED);
		for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
			assert_false(t.probe.report.ehlo_known);
			one(&t, lines[i]);
			t.unread = 0;
		}
		assert_true(t.probe.report.ehlo_known);
		assert_int_equal(t.probe.report.ext,
				 SMTP_EXT_SIZE | SMTP_EXT_PIPELINING |
					 SMTP_EXT_8BITMIME | SMTP_EXT_CHUNKING);
		assert_int_equal(t.probe.report.size, 10240000);
	}
}

static void after_helo_nothing_is_offered(void **state)
{
	(void)state;
	static const char *const lines[] = { "S: 220 mx", "S: 502-no",
					     "S: 502 DSN", "S: 250-mx",
					     "S: 250 SIZE 5" };
	struct talk t;

	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		one(&t, lines[i]);
		t.unread = 0;
	}
	assert_true(t.probe.report.ehlo_known);
	assert_int_equal(t.probe.report.ext, 0);
	assert_int_equal(t.probe.report.size, 0);
}

static void it_keeps_the_reply_that_decided_and_its_times(void **state)
{
	(void)state;
	struct talk t;
	static const char text[] = "4.3.2 All server ports are busy";

	begin(&t, &order_plain, true);
	t.now += 7;
	happen(&t, PROBE_IN_CONNECTED);
	t.now += 30;
	one(&t, "S: 220 mx");
	t.unread = 0;
	t.now += 400;
	one(&t, "S: 421 4.3.2 All server ports are busy");
	t.unread = 0;
	t.now += 9;
	one(&t, "S: 221 bye bye");
	const struct probe_report *r = &t.probe.report;

	assert_int_equal(r->code, 421);
	assert_int_equal(r->text_len, strlen(text));
	assert_memory_equal(r->text, text, r->text_len);
	assert_int_equal(r->took_ms[PROBE_STEP_CONNECT], 7);
	assert_int_equal(r->took_ms[PROBE_STEP_GREETING], 30);
	assert_int_equal(r->took_ms[PROBE_STEP_EHLO], 400);
	assert_int_equal(r->took_ms[PROBE_STEP_MAIL], -1);
	assert_int_equal(r->took_ms[PROBE_STEP_QUIT], 9);
	assert_int_equal(r->ended_ms, START_MS + 437);
	assert_int_equal(r->greet_ms, 37);
}

static void a_long_reply_is_kept_up_to_its_bound(void **state)
{
	(void)state;
	struct talk t;
	static char line[1200];

	snprintf(line, sizeof(line), "421 %01190d\r\n", 0);
	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	hear(&t, line, strlen(line));
	assert_int_equal(t.probe.report.text_len, PROBE_TEXT_MAX);
	assert_int_equal(t.probe.report.outcome, PROBE_GREETING_BUSY);
	assert_int_equal(t.probe.report.greet_ms, -1);
}

static void what_comes_behind_a_reply_answers_the_next_command(void **state)
{
	(void)state;
	static const char both[] = "220 mx\r\n421 4.3.2 shutting down\r\n";

	for (int trickle = 0; trickle <= 1; trickle++) {
		struct talk t;

		begin(&t, &order_plain, trickle == 1);
		happen(&t, PROBE_IN_CONNECTED);
		hear(&t, both, strlen(both));
		t.unread = 1;
		expect(&t, "QUIT");
		assert_int_equal(t.probe.report.outcome, PROBE_EHLO_BUSY);
		assert_int_equal(t.probe.report.class, BUSY_DRAIN);
	}
}

static void an_operators_rule_is_heeded(void **state)
{
	(void)state;
	struct busy_rule rule;
	char error[BUSY_RULE_ERROR_MAX];
	struct probe_order order = order_plain;
	struct talk t;

	assert_true(
		busy_rule_parse("greet 554 house full => busy", &rule, error));
	order.rules = &rule;
	order.rule_count = 1;
	begin(&t, &order, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 554 sorry, House Full tonight");
	assert_int_equal(t.probe.report.class, BUSY_BUSY);
	assert_int_equal(probe_verdict(&t.probe.report), HEALTH_PROBE_BUSY);
}

/* Every event after every prefix of a dialogue: it must stand. */
static void every_event_is_defined_at_every_point(void **state)
{
	(void)state;
	static struct talk t;
	static const struct probe_event events[] = {
		{ .kind = PROBE_IN_CONNECTED },
		{ .kind = PROBE_IN_FAILED, .error = ECONNREFUSED },
		{ .kind = PROBE_IN_OCTETS, .octets = "421 x\r\n", .len = 7 },
		{ .kind = PROBE_IN_OCTETS, .octets = "x", .len = 1 },
		{ .kind = PROBE_IN_OCTETS, .octets = NULL, .len = 0 },
		{ .kind = PROBE_IN_CLOSED },
		{ .kind = PROBE_IN_RESET },
		{ .kind = PROBE_IN_TIME },
		{ .kind = PROBE_IN_CANCEL },
	};
	static const char *const server[] = { "220 m\r\n", "250 m\r\n",
					      "250 m\r\n", "250 m\r\n",
					      "221 m\r\n" };
	struct probe_order order = order_plain;

	order.mail = true;
	for (size_t at = 0; at <= 6; at++) {
		for (size_t e = 0; e < sizeof(events) / sizeof(events[0]);
		     e++) {
			begin(&t, &order, false);
			if (at > 0)
				happen(&t, PROBE_IN_CONNECTED);
			for (size_t i = 0; i + 1 < at; i++)
				hear(&t, server[i], strlen(server[i]));
			struct probe_report was = t.probe.report;
			bool done = t.plan.done;

			assert_int_equal(done, at == 6);
			step(&t, &events[e]);
			assert_true(t.plan.done || t.plan.deadline_ms > t.now);
			assert_int_equal(t.plan.done,
					 t.probe.step == PROBE_STEP_DONE);
			if (t.plan.done)
				assert_int_not_equal(t.probe.report.outcome,
						     PROBE_NONE);
			if (done)
				assert_memory_equal(&was, &t.probe.report,
						    sizeof(was));
		}
	}
}

static void a_cancelled_probe_has_no_verdict_but_a_decided_one_keeps_it(
	void **state)
{
	(void)state;
	struct talk t;

	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	happen(&t, PROBE_IN_CANCEL);
	assert_true(t.plan.done);
	assert_int_equal(t.probe.report.outcome, PROBE_ABANDONED);
	begin(&t, &order_plain, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 421 busy");
	happen(&t, PROBE_IN_CANCEL);
	assert_true(t.plan.done);
	assert_int_equal(t.probe.report.outcome, PROBE_GREETING_BUSY);
}

static void every_outcome_has_its_words(void **state)
{
	(void)state;
	for (unsigned i = 0; i < PROBE_OUTCOME_COUNT; i++) {
		enum probe_outcome o = (enum probe_outcome)i;

		assert_true(strlen(probe_outcome_name(o)) > 0);
		assert_true(strlen(probe_outcome_help(o)) > 0);
		for (unsigned j = 0; j < i; j++) {
			assert_string_not_equal(
				probe_outcome_name(o),
				probe_outcome_name((enum probe_outcome)j));
		}
	}
	for (unsigned i = 0; i < PROBE_STEP_COUNT; i++)
		assert_true(strlen(probe_step_word((enum probe_step_name)i)) >
			    0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			each_dialogue_ends_as_it_should_whole_and_trickled),
		cmocka_unit_test(each_way_to_fail_to_connect_has_its_name),
		cmocka_unit_test(a_connect_that_takes_too_long_is_given_up),
		cmocka_unit_test(
			a_dribbled_greeting_does_not_put_the_deadline_off),
		cmocka_unit_test(quit_is_awaited_for_two_seconds),
		cmocka_unit_test(it_learns_what_ehlo_offers),
		cmocka_unit_test(after_helo_nothing_is_offered),
		cmocka_unit_test(it_keeps_the_reply_that_decided_and_its_times),
		cmocka_unit_test(a_long_reply_is_kept_up_to_its_bound),
		cmocka_unit_test(
			what_comes_behind_a_reply_answers_the_next_command),
		cmocka_unit_test(an_operators_rule_is_heeded),
		cmocka_unit_test(every_event_is_defined_at_every_point),
		cmocka_unit_test(
			a_cancelled_probe_has_no_verdict_but_a_decided_one_keeps_it),
		cmocka_unit_test(every_outcome_has_its_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
