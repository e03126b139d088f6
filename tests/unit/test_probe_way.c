#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "health/probe.h"

/*
 * The probe's way through TLS and XCLIENT, and the relay guard's question.  A
 * case is a dialogue: a list of lines, each beginning with
 *
 *	S:   the server says this (CRLF is added)
 *	C:   the probe must have said exactly this
 *	H:   it must have begun the handshake, and said nothing
 *	K:   the handshake is done	X:   it failed, for this reason
 *	E:   end of stream		R:   reset
 *	T:   the deadline passes
 *
 * fed whole, and one octet at a time.
 */
enum {
	START_MS = 5000,
	CONNECT_MS = 3000,
	ALL_MS = 10000,
	NOW_S = 1800000000,
	DAY_S = 86400,

	/* what a case orders */
	IF_OFFERED = 1 << 0,
	MUST = 1 << 1,
	IMPLICIT = 1 << 2,
	XCLIENT = 1 << 3,
	GUARD = 1 << 4,
	MAIL = 1 << 5,
	/* what its report says */
	TLS = 1 << 0,
	TRIED = 1 << 1, /* tls_failed */
	KNOWN = 1 << 2, /* ehlo_known */
};

#define HELLO  "S: 220 mx", "C: EHLO weir.example"
#define SENDER "C: MAIL FROM:<weir-relay-check@weir.example>"
#define RCPT   "C: RCPT TO:<weir-relay-check@relay-check.invalid>"
#define ASKED  HELLO, "S: 250 mx", SENDER
#define BYE    "C: QUIT", "S: 221 bye"

struct dialogue {
	const char *about;
	unsigned order;
	const char *lines[28];
	enum probe_outcome outcome;
	enum probe_step_name failed;
	enum health_probe verdict;
	unsigned says; /* of TLS, TRIED and KNOWN */
	enum probe_relay relay;
};

struct talk {
	struct probe_order order;
	struct probe probe;
	struct probe_plan plan;
	int64_t now;
	bool trickle;
	unsigned unread; /* commands said that nobody has looked at */
	unsigned shakes; /* handshakes begun, likewise */
	char said[SMTP_COMMAND_LINE_MAX];
};

static void step(struct talk *t, const struct probe_event *ev)
{
	probe_step(&t->probe, ev, t->now, &t->plan);
	t->shakes += t->plan.handshake;
	if (t->plan.send == NULL)
		return;
	assert_false(t->plan.handshake);
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

static void expect(struct talk *t, const char *command)
{
	char line[SMTP_COMMAND_LINE_MAX];

	(void)snprintf(line, sizeof(line), "%s\r\n", command);
	assert_int_equal(t->unread, 1);
	assert_int_equal(t->shakes, 0);
	assert_string_equal(t->said, line);
	t->unread = 0;
}

static void shaken(struct talk *t, const char *reason)
{
	size_t len = strlen(reason);
	char *copy = malloc(len + 1);

	assert_non_null(copy);
	memcpy(copy, reason, len);
	step(t, &(struct probe_event){
			.kind = PROBE_IN_INSECURE,
			.octets = copy,
			.len = len,
		});
	free(copy);
}

static void secure(struct talk *t)
{
	step(t, &(struct probe_event){
			.kind = PROBE_IN_SECURED,
			.expires_s = NOW_S + 30 * (int64_t)DAY_S,
			.now_s = NOW_S,
			.verified = true,
			.tls_version = "TLSv1.3",
		});
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
	case 'H':
		assert_int_equal(t->unread, 0);
		assert_int_equal(t->shakes, 1);
		t->shakes = 0;
		break;
	case 'K':
		secure(t);
		break;
	case 'X':
		shaken(t, line + 3);
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
	default:
		fail_msg("unknown line %s", line);
	}
}

static void begin(struct talk *t, unsigned order, bool trickle)
{
	memset(t, 0x55, sizeof(*t)); /* nothing may be taken as given */
	t->order = (struct probe_order){
		.helo = "weir.example",
		.mail = (order & MAIL) != 0,
		.tls = (order & MUST) != 0         ? PROBE_TLS_MUST
		       : (order & IF_OFFERED) != 0 ? PROBE_TLS_IF_OFFERED
						   : PROBE_TLS_NONE,
		.implicit = (order & IMPLICIT) != 0,
		.xclient = (order & XCLIENT) != 0,
		.guard = (order & GUARD) != 0,
		.connect_ms = CONNECT_MS,
		.timeout_ms = ALL_MS,
	};
	t->now = START_MS;
	t->trickle = trickle;
	t->unread = t->shakes = 0;
	probe_begin(&t->probe, &t->order, t->now, &t->plan);
	assert_false(t->plan.handshake);
}

/* clang-format off */
static const struct dialogue dialogues[] = {
	/* --- TLS --- */
	{ "STARTTLS, and EHLO again", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 250 mx", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, TLS | KNOWN, PROBE_RELAY_UNASKED },
	{ "the same where it is only tried", IF_OFFERED,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 250 mx", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, TLS | KNOWN, PROBE_RELAY_UNASKED },
	{ "one that offers STARTTLS in TLS is not asked twice", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 250-mx", "S: 250 STARTTLS", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, TLS | KNOWN, PROBE_RELAY_UNASKED },
	{ "TLS is not wanted", 0,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "TLS is not wanted, implicit or not", IMPLICIT,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "none offered, none wanted badly", IF_OFFERED,
	  { HELLO, "S: 250 mx", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "none offered where it must be", MUST,
	  { HELLO, "S: 250 mx", BYE },
	  PROBE_TLS_REFUSED, PROBE_STEP_EHLO, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "who knows HELO only knows no TLS", MUST,
	  { HELLO, "S: 500 what?", "C: HELO weir.example", "S: 250 STARTTLS", BYE },
	  PROBE_TLS_REFUSED, PROBE_STEP_HELO, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "refused for now, where it must be", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 454 4.7.0 TLS not available", BYE },
	  PROBE_TLS_REFUSED, PROBE_STEP_STARTTLS, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "refused for good, where it must be", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 502 5.5.1 no", BYE },
	  PROBE_TLS_REFUSED, PROBE_STEP_STARTTLS, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "refused, where it is only tried: on in clear", IF_OFFERED,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 454 4.7.0 TLS not available", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "going away at STARTTLS is no matter of TLS", IF_OFFERED,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 421 4.3.2 shutting down", "C: QUIT", "E:" },
	  PROBE_TLS_REFUSED, PROBE_STEP_STARTTLS, HEALTH_PROBE_DRAIN, 0, PROBE_RELAY_UNASKED },
	{ "the handshake fails where it must not", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "X: certificate has expired" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "the handshake fails where it is only tried", IF_OFFERED | GUARD,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "X: wrong version number" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_BUSY, TRIED, PROBE_RELAY_UNASKED },
	{ "closed in the handshake", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "E:" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "reset in the handshake, where it is only tried", IF_OFFERED,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "R:" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_BUSY, TRIED, PROBE_RELAY_UNASKED },
	{ "the handshake does not end", IF_OFFERED,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "T:" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_BUSY, TRIED, PROBE_RELAY_UNASKED },
	{ "a handshake that does not end where it must", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "T:" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "TLS breaks later: as a reset", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "X: bad record mac" },
	  PROBE_RESET, PROBE_STEP_EHLO, HEALTH_PROBE_FAILED, TLS, PROBE_RELAY_UNASKED },
	{ "it refuses EHLO once it is in TLS", MUST,
	  { HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 554 no", BYE },
	  PROBE_EHLO_REFUSED, PROBE_STEP_EHLO, HEALTH_PROBE_MISCONF, TLS, PROBE_RELAY_UNASKED },

	/* --- TLS from the first octet --- */
	{ "implicit TLS", MUST | IMPLICIT | MAIL,
	  { "H:", "K:", HELLO, "S: 250-mx", "S: 250 STARTTLS", "C: MAIL FROM:<>", "S: 250 ok", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, TLS | KNOWN, PROBE_RELAY_UNASKED },
	{ "busy in implicit TLS", MUST | IMPLICIT,
	  { "H:", "K:", "S: 421 4.3.2 All server ports are busy", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, HEALTH_PROBE_BUSY, TLS, PROBE_RELAY_UNASKED },
	{ "no word in implicit TLS: over its limit", MUST | IMPLICIT,
	  { "H:", "T:" },
	  PROBE_SILENT, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "closed before a word: the same", IF_OFFERED | IMPLICIT,
	  { "H:", "E:" },
	  PROBE_CLOSED_EARLY, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "implicit TLS fails", MUST | IMPLICIT,
	  { "H:", "X: wrong version number" },
	  PROBE_TLS_FAILED, PROBE_STEP_HANDSHAKE, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "implicit TLS, but no greeting in it", MUST | IMPLICIT,
	  { "H:", "K:", "T:" },
	  PROBE_SILENT, PROBE_STEP_GREETING, HEALTH_PROBE_FAILED, TLS, PROBE_RELAY_UNASKED },

	/* --- XCLIENT --- */
	{ "XCLIENT tells all that it may, as unknown, and EHLO again", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT NAME ADDR PORT HELO LOGIN", "C: XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE]", "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "who may not tell the address introduces nobody", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT NAME HELO", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_EHLO, HEALTH_PROBE_MISCONF, 0, PROBE_RELAY_UNASKED },
	{ "the protocol is always known", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR PROTO", "C: XCLIENT ADDR=[UNAVAILABLE] PROTO=ESMTP", "S: 220 mx", "C: EHLO weir.example", "S: 250-mx", "S: 250 XCLIENT ADDR PROTO", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNASKED },
	{ "TLS first, then XCLIENT as it is offered there", MUST | XCLIENT | MAIL,
	  { HELLO, "S: 250-mx", "S: 250-XCLIENT NAME", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "S: 220 mx", "C: EHLO weir.example", "S: 250 mx", "C: MAIL FROM:<>", "S: 250 ok", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, TLS | KNOWN, PROBE_RELAY_UNASKED },
	{ "XCLIENT is not offered", XCLIENT,
	  { HELLO, "S: 250 mx", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_EHLO, HEALTH_PROBE_MISCONF, 0, PROBE_RELAY_UNASKED },
	{ "XCLIENT is offered in clear only: that does not count", MUST | XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250-XCLIENT ADDR", "S: 250 STARTTLS", "C: STARTTLS", "S: 220 go", "H:", "K:", "C: EHLO weir.example", "S: 250 mx", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_EHLO, HEALTH_PROBE_MISCONF, TLS, PROBE_RELAY_UNASKED },
	{ "who knows HELO only knows no XCLIENT", XCLIENT,
	  { HELLO, "S: 500 what?", "C: HELO weir.example", "S: 250 XCLIENT ADDR", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_HELO, HEALTH_PROBE_MISCONF, 0, PROBE_RELAY_UNASKED },
	{ "XCLIENT is refused", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "S: 550 5.7.0 Error: insufficient authorization", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_XCLIENT, HEALTH_PROBE_MISCONF, 0, PROBE_RELAY_UNASKED },
	{ "250 to XCLIENT is no 220", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "S: 250 ok", BYE },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_XCLIENT, HEALTH_PROBE_MISCONF, 0, PROBE_RELAY_UNASKED },
	{ "busy at XCLIENT: alive", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "S: 421 4.3.2 too busy", "C: QUIT", "E:" },
	  PROBE_XCLIENT_REFUSED, PROBE_STEP_XCLIENT, HEALTH_PROBE_BUSY, 0, PROBE_RELAY_UNASKED },
	{ "closed at XCLIENT", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "E:" },
	  PROBE_CLOSED, PROBE_STEP_XCLIENT, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },
	{ "no answer to XCLIENT", XCLIENT,
	  { HELLO, "S: 250-mx", "S: 250 XCLIENT ADDR", "C: XCLIENT ADDR=[UNAVAILABLE]", "T:" },
	  PROBE_TIMEOUT, PROBE_STEP_XCLIENT, HEALTH_PROBE_FAILED, 0, PROBE_RELAY_UNASKED },

	/* --- the relay guard --- */
	{ "it takes a stranger's mail for a stranger", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 250 2.1.5 ok", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_OPEN },
	{ "251 and 252 take it as well", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 252 will try", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_OPEN },
	{ "Postfix does not relay", GUARD,
	  { ASKED, "S: 250 2.1.0 Ok", RCPT, "S: 554 5.7.1 <weir-relay-check@relay-check.invalid>: Relay access denied", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "Postfix puts it off (defer_unauth_destination)", GUARD,
	  { ASKED, "S: 250 2.1.0 Ok", RCPT, "S: 454 4.7.1 <x@relay-check.invalid>: Relay access denied", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "Exim does not relay", GUARD,
	  { ASKED, "S: 250 OK", RCPT, "S: 550 relay not permitted", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "Stalwart does not relay, by a code that is about domains", GUARD,
	  { ASKED, "S: 250 2.1.0 OK", RCPT, "S: 550 5.1.2 Relay not allowed.", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "Postfix looked for the recipient's domain first: no proof", GUARD,
	  { ASKED, "S: 250 2.1.0 Ok", RCPT, "S: 450 4.1.2 <x@relay-check.invalid>: Recipient address rejected: Domain not found", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNPROVEN },
	{ "Exim verified the recipient first: no proof", GUARD,
	  { ASKED, "S: 250 OK", RCPT, "S: 550 Unrouteable address", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNPROVEN },
	{ "the sender is refused: asked again with <>, and open", GUARD,
	  { ASKED, "S: 550 5.1.8 no such domain", "C: RSET", "S: 250 ok", "C: MAIL FROM:<>", "S: 250 ok", RCPT, "S: 250 ok", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_OPEN },
	{ "the sender is refused at RCPT, as Postfix does: again, and closed", GUARD,
	  { ASKED, "S: 250 2.1.0 Ok", RCPT, "S: 450 4.1.8 <weir-relay-check@weir.example>: Sender address rejected: Domain not found", "C: RSET", "S: 250 ok", "C: MAIL FROM:<>", "S: 250 ok", RCPT, "S: 554 5.7.1 Relay access denied", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "<> is refused at RCPT too, for its own sake: no proof", GUARD,
	  { ASKED, "S: 250 2.1.0 Ok", RCPT, "S: 550 5.1.8 sender", "C: RSET", "S: 250 ok", "C: MAIL FROM:<>", "S: 250 ok", RCPT, "S: 550 5.1.7 sender", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_UNPROVEN },
	{ "every sender is refused: closed", GUARD,
	  { ASKED, "S: 530 5.7.0 Authentication required", "C: RSET", "S: 250 ok", "C: MAIL FROM:<>", "S: 530 5.7.0 Authentication required", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "busy at the guard's MAIL: inconclusive, and well", GUARD,
	  { ASKED, "S: 452 4.3.1 Insufficient system storage", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "sick at the guard's RCPT: inconclusive", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 451 4.3.0 <x>: Temporary lookup failure", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "going away at the guard's RCPT: inconclusive", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 421 4.3.2 shutting down", "C: RSET", "E:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "421 ends the connection, whatever it is about", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 421 4.7.1 not for you", "C: RSET", "E:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "354 is no answer", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 354 go on", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "lost at the guard's MAIL", GUARD,
	  { ASKED, "E:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "lost at the guard's RCPT", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "R:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "no answer to the guard's RCPT", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "T:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "nonsense for an answer", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: what?" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_INCONCLUSIVE },
	{ "lost at RSET: the answer stands", GUARD,
	  { ASKED, "S: 250 ok", RCPT, "S: 250 ok", "C: RSET", "E:" },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_OPEN },
	{ "behind the probe's own MAIL", GUARD | MAIL,
	  { HELLO, "S: 250 mx", "C: MAIL FROM:<>", "S: 250 ok", "C: RSET", "S: 250 ok", SENDER, "S: 250 ok", RCPT, "S: 550 no", "C: RSET", "S: 250 ok", BYE },
	  PROBE_OK, PROBE_STEP_DONE, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_CLOSED },
	{ "one that has something against <> is asked all the same", GUARD | MAIL,
	  { HELLO, "S: 250 mx", "C: MAIL FROM:<>", "S: 550 5.1.8 no bounces", SENDER, "S: 250 ok", RCPT, "S: 250 ok", "C: RSET", "S: 250 ok", BYE },
	  PROBE_MAIL_REFUSED, PROBE_STEP_MAIL, HEALTH_PROBE_PASSED, KNOWN, PROBE_RELAY_OPEN },
	{ "one that is full is not", GUARD | MAIL,
	  { HELLO, "S: 250 mx", "C: MAIL FROM:<>", "S: 452 4.3.1 Insufficient system storage", BYE },
	  PROBE_MAIL_BUSY, PROBE_STEP_MAIL, HEALTH_PROBE_BUSY, KNOWN, PROBE_RELAY_UNASKED },
	{ "nor one that is busy from the start", GUARD,
	  { "S: 421 4.3.2 All server ports are busy", "C: QUIT", "E:" },
	  PROBE_GREETING_BUSY, PROBE_STEP_GREETING, HEALTH_PROBE_BUSY, 0, PROBE_RELAY_UNASKED },
};
/* clang-format on */

static void play(const struct dialogue *d, bool trickle, struct talk *t)
{
	begin(t, d->order, trickle);
	happen(t, PROBE_IN_CONNECTED);
	for (size_t i = 0; d->lines[i] != NULL; i++) {
		assert_false(t->plan.done);
		one(t, d->lines[i]);
	}
	assert_int_equal(t->unread, 0);
	assert_int_equal(t->shakes, 0);
	assert_true(t->plan.done);
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

			assert_string_equal(probe_outcome_name(r->outcome),
					    probe_outcome_name(d->outcome));
			assert_string_equal(probe_step_word(r->failed),
					    probe_step_word(d->failed));
			assert_int_equal(probe_verdict(r), d->verdict);
			if (r->outcome == PROBE_OK) {
				assert_int_equal(r->class, BUSY_OK);
				assert_true(r->code < 400);
			}
			assert_int_equal(r->tls, (d->says & TLS) != 0);
			assert_int_equal(r->tls_failed, (d->says & TRIED) != 0);
			assert_int_equal(r->ehlo_known, (d->says & KNOWN) != 0);
			assert_int_equal(r->relay, d->relay);
		}
	}
}

/* Nothing of it may be taken for what is said in TLS: CVE-2011-0411. */
static void octets_behind_the_220_to_starttls_end_the_probe(void **state)
{
	(void)state;
	static const char *const behind[] = {
		"220 go\r\n250 mx\r\n", /* the answer to the next EHLO */
		"220 go\r\n250-mx\r\n250 XCLIENT ADDR\r\n",
		"220 go\r\n\x16\x03\x01", /* TLS, but it has not begun yet */
		"220 go\r\n ",
		"220-go\r\n220 go\r\n221 bye\r\n",
	};
	static const unsigned orders[] = { MUST, IF_OFFERED };

	for (size_t i = 0; i < sizeof(behind) / sizeof(behind[0]); i++) {
		for (size_t o = 0; o < 2; o++) {
			struct talk t;

			begin(&t, orders[o], false);
			happen(&t, PROBE_IN_CONNECTED);
			one(&t, "S: 220 mx");
			expect(&t, "EHLO weir.example");
			one(&t, "S: 250-mx");
			one(&t, "S: 250 STARTTLS");
			expect(&t, "STARTTLS");
			hear(&t, behind[i], strlen(behind[i]));
			assert_true(t.plan.done);
			assert_int_equal(t.shakes, 0);
			assert_int_equal(t.unread, 0);
			assert_int_equal(t.probe.report.outcome,
					 PROBE_NOT_SMTP);
			assert_int_equal(probe_verdict(&t.probe.report),
					 HEALTH_PROBE_FAILED);
			assert_false(t.probe.report.tls_failed);
			assert_false(t.probe.report.ehlo_known);
		}
	}
}

static void what_comes_in_clear_during_the_handshake_is_not_heard(void **state)
{
	(void)state;
	struct talk t;

	begin(&t, MUST | IMPLICIT, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "H:");
	one(&t, "S: 220 mx");
	assert_int_equal(t.unread, 0);
	assert_int_equal(t.probe.report.greet_ms, -1);
	secure(&t);
	assert_int_equal(t.unread, 0);
	one(&t, "S: 220 mx");
	expect(&t, "EHLO weir.example");
}

static void what_is_learned_is_what_the_last_ehlo_said(void **state)
{
	(void)state;
	static const char *const lines[] = {
		"S: 220 mx",
		"S: 250-mx",
		"S: 250-SIZE 1000",
		"S: 250-DSN",
		"S: 250-AUTH CRAM-MD5",
		"S: 250 STARTTLS",
		"S: 220 go",
		"K:",
		"S: 250-mx",
		"S: 250-CHUNKING",
		"S: 250-AUTH PLAIN LOGIN",
		"S: 250 XCLIENT NAME ADDR",
		"S: 220 mx",
		"S: 250-mx",
		"S: 250-SIZE 2000",
		"S: 250-AUTH LOGIN SCRAM-SHA-256",
		"S: 250 8BITMIME",
	};

	for (int trickle = 0; trickle <= 1; trickle++) {
		struct talk t;
		const struct probe_report *r = &t.probe.report;

		begin(&t, MUST | XCLIENT, trickle == 1);
		happen(&t, PROBE_IN_CONNECTED);
		for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
			assert_false(r->ehlo_known);
			one(&t, lines[i]);
			t.unread = t.shakes = 0;
		}
		assert_true(r->ehlo_known);
		assert_int_equal(r->ext, SMTP_EXT_SIZE | SMTP_EXT_AUTH |
						 SMTP_EXT_8BITMIME);
		assert_int_equal(r->auth,
				 SMTP_AUTH_LOGIN | SMTP_AUTH_SCRAM_SHA_256);
		assert_int_equal(r->size, 2000);
	}
}

static void the_certificate_and_the_version_are_reported(void **state)
{
	(void)state;
	static const struct {
		int64_t expires_s;
		int64_t left_s;
	} cases[] = {
		{ NOW_S + 100, 100 },
		{ NOW_S - 3 * (int64_t)DAY_S, -3 * (int64_t)DAY_S },
		{ 0, 0 }, /* unknown */
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct talk t;
		const struct probe_report *r = &t.probe.report;

		begin(&t, MUST | IMPLICIT, false);
		happen(&t, PROBE_IN_CONNECTED);
		step(&t, &(struct probe_event){
				 .kind = PROBE_IN_SECURED,
				 .expires_s = cases[i].expires_s,
				 .now_s = NOW_S,
				 .verified = i == 0,
				 .tls_version = "TLSv1.3, and much more",
			 });
		assert_true(r->tls);
		assert_int_equal(r->verified, i == 0);
		assert_int_equal(r->expires_s, cases[i].expires_s);
		assert_int_equal(r->left_s, cases[i].left_s);
		assert_string_equal(r->tls_version, "TLSv1.3, and mu");
	}
}

static void a_failed_handshake_says_why_up_to_its_bound(void **state)
{
	(void)state;
	static char reason[PROBE_TEXT_MAX + 50];
	static const size_t lens[] = { 0, 5, PROBE_TEXT_MAX,
				       PROBE_TEXT_MAX + 49 };

	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct talk t;
		const struct probe_report *r = &t.probe.report;
		size_t want = lens[i] < PROBE_TEXT_MAX ? lens[i]
						       : PROBE_TEXT_MAX;

		memset(reason, 'x', lens[i]);
		reason[lens[i]] = '\0';
		begin(&t, MUST | IMPLICIT, false);
		happen(&t, PROBE_IN_CONNECTED);
		shaken(&t, reason);
		assert_int_equal(r->text_len, want);
		assert_memory_equal(r->text, reason, want);
		assert_int_equal(r->code, 0);
	}
}

static void the_guards_answer_is_kept_beside_the_one_that_decided(void **state)
{
	(void)state;
	struct talk t;
	const struct probe_report *r = &t.probe.report;
	static char line[600];

	begin(&t, GUARD, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 220 mx");
	t.unread = 0;
	one(&t, "S: 250 well met");
	t.unread = 0;
	assert_int_equal(r->outcome, PROBE_OK);
	assert_int_equal(r->relay, PROBE_RELAY_INCONCLUSIVE);
	t.now += 77;
	one(&t, "S: 250 ok");
	t.unread = 0;
	(void)snprintf(line, sizeof(line), "550 5.7.1 %0500d\r\n", 0);
	hear(&t, line, strlen(line));
	assert_int_equal(r->relay, PROBE_RELAY_CLOSED);
	assert_int_equal(r->relay_step, PROBE_STEP_GUARD_RCPT);
	assert_int_equal(r->relay_code, 550);
	assert_int_equal(r->relay_text_len, PROBE_RELAY_TEXT_MAX);
	assert_memory_equal(r->relay_text, line + 4, PROBE_RELAY_TEXT_MAX);
	assert_int_equal(r->code, 250);
	assert_int_equal(r->class, BUSY_OK);
	assert_int_equal(r->ended_ms, START_MS);
	assert_int_equal(r->took_ms[PROBE_STEP_GUARD_MAIL], 77);
}

static void steps_that_are_taken_twice_count_together(void **state)
{
	(void)state;
	struct talk t;

	begin(&t, MUST, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 220 mx");
	t.unread = 0;
	t.now += 10;
	one(&t, "S: 250-mx");
	one(&t, "S: 250 STARTTLS");
	t.unread = 0;
	one(&t, "S: 220 go");
	t.now += 500;
	secure(&t);
	t.unread = 0;
	t.now += 3;
	one(&t, "S: 250 mx");
	assert_int_equal(t.probe.report.took_ms[PROBE_STEP_EHLO], 13);
	assert_int_equal(t.probe.report.took_ms[PROBE_STEP_HANDSHAKE], 500);
	assert_int_equal(t.probe.report.took_ms[PROBE_STEP_XCLIENT], -1);
}

static void a_probe_that_is_cancelled_at_the_guard_keeps_its_outcome(
	void **state)
{
	(void)state;
	struct talk t;

	begin(&t, GUARD, false);
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 220 mx");
	t.unread = 0;
	one(&t, "S: 250 mx");
	one(&t, SENDER);
	happen(&t, PROBE_IN_CANCEL);
	assert_true(t.plan.done);
	assert_int_equal(t.probe.report.outcome, PROBE_OK);
	assert_int_equal(t.probe.report.relay, PROBE_RELAY_INCONCLUSIVE);
}

static void the_longest_names_fit(void **state)
{
	(void)state;
	struct talk t;
	static char helo[SMTP_DOMAIN_MAX + 1];

	memset(helo, 'h', SMTP_DOMAIN_MAX);
	begin(&t, GUARD | XCLIENT, false);
	t.order.helo = helo;
	happen(&t, PROBE_IN_CONNECTED);
	one(&t, "S: 220 mx");
	t.unread = 0;
	one(&t, "S: 250-mx");
	one(&t, "S: 250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR "
		"DESTPORT");
	assert_int_equal(t.unread, 1);
	assert_non_null(strstr(t.said, " DESTPORT=[UNAVAILABLE]\r\n"));
	t.unread = 0;
	one(&t, "S: 220 mx");
	t.unread = 0;
	one(&t, "S: 250 mx");
	assert_int_equal(t.unread, 1);
	assert_non_null(strstr(t.said, "hhh>\r\n"));
}

/* Every event after every prefix of a dialogue: it must stand. */
static void every_event_is_defined_at_every_point(void **state)
{
	(void)state;
	static struct talk t;
	static const struct probe_event events[] = {
		{ .kind = PROBE_IN_CONNECTED },
		{ .kind = PROBE_IN_FAILED, .error = 111 },
		{ .kind = PROBE_IN_OCTETS, .octets = "421 x\r\n", .len = 7 },
		{ .kind = PROBE_IN_OCTETS, .octets = "250 x\r\n", .len = 7 },
		{ .kind = PROBE_IN_OCTETS, .octets = "x", .len = 1 },
		{ .kind = PROBE_IN_OCTETS, .octets = NULL, .len = 0 },
		{ .kind = PROBE_IN_SECURED, .tls_version = "TLSv1.2" },
		{ .kind = PROBE_IN_INSECURE, .octets = "why", .len = 3 },
		{ .kind = PROBE_IN_CLOSED },
		{ .kind = PROBE_IN_RESET },
		{ .kind = PROBE_IN_TIME },
		{ .kind = PROBE_IN_CANCEL },
	};
	static const char *const server[] = {
		"S: 220 mx",
		"S: 250-mx\r\n250 STARTTLS",
		"S: 220 go",
		"K:",
		"S: 250-mx\r\n250 XCLIENT ADDR",
		"S: 220 mx",
		"S: 250 mx",
		"S: 250 ok",
		"S: 250 ok",
		"S: 550 5.1.8 sender",
		"S: 250 ok",
		"S: 250 ok",
		"S: 550 5.7.1 no",
		"S: 250 ok",
		"S: 221 bye",
	};
	enum { POINTS = sizeof(server) / sizeof(server[0]) };

	for (size_t at = 0; at <= POINTS; at++) {
		for (size_t e = 0; e < sizeof(events) / sizeof(events[0]);
		     e++) {
			begin(&t, MUST | XCLIENT | MAIL | GUARD, false);
			happen(&t, PROBE_IN_CONNECTED);
			for (size_t i = 0; i < at; i++) {
				one(&t, server[i]);
				t.unread = t.shakes = 0;
			}
			struct probe_report was = t.probe.report;
			bool done = t.plan.done;

			assert_int_equal(done, at == POINTS);
			step(&t, &events[e]);
			assert_true(t.plan.done || t.plan.deadline_ms > t.now);
			assert_int_equal(t.plan.done,
					 t.probe.step == PROBE_STEP_DONE);
			assert_false(t.plan.done && t.plan.handshake);
			if (t.plan.done)
				assert_int_not_equal(t.probe.report.outcome,
						     PROBE_NONE);
			if (was.outcome != PROBE_NONE)
				assert_int_equal(was.outcome,
						 t.probe.report.outcome);
			if (done)
				assert_memory_equal(&was, &t.probe.report,
						    sizeof(was));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			each_dialogue_ends_as_it_should_whole_and_trickled),
		cmocka_unit_test(
			octets_behind_the_220_to_starttls_end_the_probe),
		cmocka_unit_test(
			what_comes_in_clear_during_the_handshake_is_not_heard),
		cmocka_unit_test(what_is_learned_is_what_the_last_ehlo_said),
		cmocka_unit_test(the_certificate_and_the_version_are_reported),
		cmocka_unit_test(a_failed_handshake_says_why_up_to_its_bound),
		cmocka_unit_test(
			the_guards_answer_is_kept_beside_the_one_that_decided),
		cmocka_unit_test(steps_that_are_taken_twice_count_together),
		cmocka_unit_test(
			a_probe_that_is_cancelled_at_the_guard_keeps_its_outcome),
		cmocka_unit_test(the_longest_names_fit),
		cmocka_unit_test(every_event_is_defined_at_every_point),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
