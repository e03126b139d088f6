#include "health/probe.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "proxy/xclient.h"

struct words {
	const char *name;
	const char *help;
};

#define PROBE_WORDS(NAME, name, help) { #name, help },
static const struct words outcome_words[] = { PROBE_OUTCOMES(PROBE_WORDS) };
#undef PROBE_WORDS

#define PROBE_WORD(NAME, name) #name,
static const char *const step_words[] = { PROBE_STEPS(PROBE_WORD) };
#undef PROBE_WORD

static int64_t least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* --- the way from step to step --- */

static void plan_wait(const struct probe *p, struct probe_plan *plan)
{
	*plan = (struct probe_plan){ .deadline_ms = p->all_by_ms };
	if (p->step == PROBE_STEP_CONNECT)
		plan->deadline_ms = least(p->connect_by_ms, p->all_by_ms);
	else if (p->step == PROBE_STEP_QUIT)
		plan->deadline_ms = p->quit_by_ms;
	plan->done = p->step == PROBE_STEP_DONE;
}

/* The clock of a step runs from the end of the one before. */
static void enter(struct probe *p, enum probe_step_name step, int64_t now_ms)
{
	assert(p->step != PROBE_STEP_DONE);

	int64_t *took = &p->report.took_ms[p->step];

	*took = (*took > 0 ? *took : 0) + now_ms - p->step_ms;
	p->step = step;
	p->step_ms = now_ms;
	if (step == PROBE_STEP_DONE)
		p->report.took_ms[PROBE_STEP_DONE] = 0;
}

/* The verdict stands; only the first one counts. */
static void decide(struct probe *p, enum probe_outcome outcome, int64_t now_ms)
{
	assert(outcome != PROBE_NONE);

	if (p->report.outcome != PROBE_NONE)
		return;
	p->report.outcome = outcome;
	p->report.ended_ms = now_ms;
	p->report.failed = outcome == PROBE_OK ? PROBE_STEP_DONE : p->step;
}

static void finish(struct probe *p, enum probe_outcome outcome, int64_t now_ms)
{
	decide(p, outcome, now_ms);
	enter(p, PROBE_STEP_DONE, now_ms);
}

/* A command is in p->line; its reply is awaited in `step`. */
static void sent(struct probe *p, enum probe_step_name step, size_t len,
		 int64_t now_ms)
{
	p->say_len = (uint16_t)len;
	enter(p, step, now_ms);
	smtp_reply_begin(&p->reply, step == PROBE_STEP_EHLO);
}

/* Say a command. */
static void say(struct probe *p, enum probe_step_name step, const char *verb,
		const char *arg, int64_t now_ms)
{
	int len = snprintf(p->line, sizeof(p->line), "%s%s\r\n", verb, arg);

	assert(len > 0);
	assert((size_t)len < sizeof(p->line));
	sent(p, step, (size_t)len, now_ms);
}

static void say_hello(struct probe *p, int64_t now_ms)
{
	say(p, PROBE_STEP_EHLO, "EHLO ", p->order->helo, now_ms);
}

static void shake(struct probe *p, int64_t now_ms)
{
	p->shake = true;
	enter(p, PROBE_STEP_HANDSHAKE, now_ms);
}

static void say_quit(struct probe *p, int64_t now_ms)
{
	say(p, PROBE_STEP_QUIT, "QUIT", "", now_ms);
	p->quit_by_ms = now_ms + PROBE_QUIT_MS;
}

/* --- what a reply means --- */

static enum busy_stage stage_of(enum probe_step_name step)
{
	switch (step) {
	case PROBE_STEP_CONNECT:
		return BUSY_STAGE_TCP;
	case PROBE_STEP_GREETING:
		return BUSY_STAGE_GREET;
	case PROBE_STEP_EHLO:
	case PROBE_STEP_HELO:
		return BUSY_STAGE_EHLO;
	case PROBE_STEP_STARTTLS:
	case PROBE_STEP_HANDSHAKE:
		return BUSY_STAGE_STARTTLS;
	case PROBE_STEP_XCLIENT:
		return BUSY_STAGE_XCLIENT;
	case PROBE_STEP_MAIL:
	case PROBE_STEP_GUARD_MAIL:
		return BUSY_STAGE_MAIL;
	case PROBE_STEP_GUARD_RCPT:
		return BUSY_STAGE_RCPT;
	case PROBE_STEP_RSET:
	case PROBE_STEP_QUIT:
	case PROBE_STEP_DONE:
	case PROBE_STEP_COUNT:
		break;
	}
	return BUSY_STAGE_IDLE;
}

static void keep_text(struct probe *p)
{
	size_t len = p->reply.text_len;

	if (len > PROBE_TEXT_MAX)
		len = PROBE_TEXT_MAX;
	memcpy(p->report.text, p->reply.text, len);
	p->report.text_len = (uint16_t)len;
	p->report.code = p->reply.code;
}

static enum busy_class classify(const struct probe *p, struct smtp_esc *esc)
{
	struct busy_reply r = {
		.stage = stage_of(p->step),
		/* Also where clients are named: a probe comes as weir. */
		.ident = BUSY_IDENT_PROXY,
		.code = p->reply.code,
		.text = p->reply.text,
		.text_len = p->reply.text_len,
		.proxy_ips = p->order->proxy_ips,
		.proxy_ip_count = p->order->proxy_ip_count,
	};

	(void)smtp_reply_esc(p->reply.head, p->reply.head_len, &r.esc);
	*esc = r.esc;
	return busy_classify(&r, p->order->rules, p->order->rule_count).class;
}

static void learn(struct probe *p, const struct smtp_ehlo *ehlo)
{
	p->report.ext = ehlo->ext;
	p->report.auth = ehlo->auth;
	p->report.size = ehlo->size;
	p->xclient = ehlo->xclient;
}

/* A reply that ends the dialogue: note it and take leave. */
static void leave(struct probe *p, enum probe_outcome outcome, int64_t now_ms)
{
	decide(p, outcome, now_ms);
	say_quit(p, now_ms);
}

/* --- the relay guard --- */

/*
 * The sender: a stranger first, and <> for those that know of no such domain.
 * Our own name stands in it, so that who reads the backend's log can see
 * whose doing it is.
 */
static void guard_mail(struct probe *p, int64_t now_ms)
{
	char sender[SMTP_DOMAIN_MAX + 32];

	if (p->guard_null) {
		say(p, PROBE_STEP_GUARD_MAIL, "MAIL FROM:", "<>", now_ms);
		return;
	}
	(void)snprintf(sender, sizeof(sender), "<weir-relay-check@%s>",
		       p->order->helo);
	say(p, PROBE_STEP_GUARD_MAIL, "MAIL FROM:", sender, now_ms);
}

/* The outcome is decided: ask, if that is wanted, or take leave. */
static void guard_or_quit(struct probe *p, int64_t now_ms)
{
	assert(p->report.outcome != PROBE_NONE);

	if (!p->order->guard) {
		say_quit(p, now_ms);
		return;
	}
	p->guarding = true;
	p->report.relay = PROBE_RELAY_INCONCLUSIVE;
	guard_mail(p, now_ms);
}

/* A refusal that tells nothing of what it is refused for. */
static bool is_inconclusive(enum busy_class class)
{
	switch (class) {
	case BUSY_BUSY:
	case BUSY_MAYBE:
	case BUSY_CAP:
	case BUSY_DRAIN:
	case BUSY_SICK:
	case BUSY_MISCONF:
	case BUSY_SESSION:
		return true;
	case BUSY_OK:
	case BUSY_POLICY:
	case BUSY_CLASSES:
		break;
	}
	return false;
}

/* text, in lower case, is somewhere in the reply. */
static bool says(const struct smtp_reply_parser *r, const char *text)
{
	size_t len = strlen(text);

	for (size_t at = 0; at + len <= r->text_len; at++) {
		size_t i = 0;

		while (i < len && (r->text[at + i] | 0x20) == (text[i] | 0x20))
			i++;
		if (i == len)
			return true;
	}
	return false;
}

/*
 * Is it about the sender?  RFC 3463, section 3.2: X.1.7 and X.1.8; Postfix
 * has X.1.8 for a domain that it cannot find.
 */
static bool is_about_sender(const struct smtp_esc *esc)
{
	return esc->class != 0 && esc->subject == 1 &&
	       (esc->detail == 7 || esc->detail == 8);
}

/*
 * Did it look for the recipient's domain first (Postfix with
 * reject_unknown_recipient_domain, Exim with verify = recipient)?  If there
 * were one, it might have relayed.
 */
static bool is_about_domain(const struct smtp_reply_parser *r)
{
	return says(r, "domain not found") || says(r, "unrouteable address");
}

static void keep_relay_text(struct probe *p)
{
	size_t len = p->reply.text_len;

	if (len > PROBE_RELAY_TEXT_MAX)
		len = PROBE_RELAY_TEXT_MAX;
	memcpy(p->report.relay_text, p->reply.text, len);
	p->report.relay_text_len = (uint16_t)len;
	p->report.relay_code = p->reply.code;
	p->report.relay_step = p->step;
}

/* The answer stands; RSET takes back what it was asked with. */
static void guard_ends(struct probe *p, enum probe_relay relay, int64_t now_ms)
{
	p->report.relay = relay;
	p->guarding = false;
	say(p, PROBE_STEP_RSET, "RSET", "", now_ms);
}

/* 4xx or 5xx to the guard's MAIL or RCPT. */
static void guard_refused(struct probe *p, int64_t now_ms)
{
	struct smtp_esc esc = { 0 };
	enum busy_class class = classify(p, &esc);
	bool sender = p->step == PROBE_STEP_GUARD_MAIL || is_about_sender(&esc);

	if (is_inconclusive(class) || p->reply.code == 421) {
		guard_ends(p, PROBE_RELAY_INCONCLUSIVE, now_ms);
	} else if (sender && !p->guard_null) {
		p->guard_null = true;
		say(p, PROBE_STEP_RSET, "RSET", "", now_ms);
	} else if (p->step == PROBE_STEP_GUARD_RCPT &&
		   (sender || is_about_domain(&p->reply))) {
		guard_ends(p, PROBE_RELAY_UNPROVEN, now_ms);
	} else {
		guard_ends(p, PROBE_RELAY_CLOSED, now_ms);
	}
}

static void guard_replied(struct probe *p, int64_t now_ms)
{
	static const char recipient[] =
		"<weir-relay-check@relay-check.invalid>";

	keep_relay_text(p);
	if (p->reply.code >= 400)
		guard_refused(p, now_ms);
	else if (p->reply.code >= 300)
		guard_ends(p, PROBE_RELAY_INCONCLUSIVE, now_ms);
	else if (p->step == PROBE_STEP_GUARD_MAIL)
		say(p, PROBE_STEP_GUARD_RCPT, "RCPT TO:", recipient, now_ms);
	else
		guard_ends(p, PROBE_RELAY_OPEN, now_ms);
}

/* --- from EHLO on --- */

static void well(struct probe *p, int64_t now_ms)
{
	decide(p, PROBE_OK, now_ms);
	guard_or_quit(p, now_ms);
}

/* Nobody's, but weir's own. */
static void introduce(struct probe *p, int64_t now_ms)
{
	static const struct xclient weir = { .local = true };

	static_assert(sizeof(p->line) >= XCLIENT_LINE_MAX, "the line fits");
	size_t len = xclient_write(p->line, p->xclient, &weir);

	if (len == 0)
		leave(p, PROBE_XCLIENT_REFUSED, now_ms);
	else
		sent(p, PROBE_STEP_XCLIENT, len, now_ms);
}

/* That was the last EHLO: this is what sessions will be offered. */
static void learned(struct probe *p, int64_t now_ms)
{
	p->report.ehlo_known = true;
	if (p->order->mail)
		say(p, PROBE_STEP_MAIL, "MAIL FROM:", "<>", now_ms);
	else
		well(p, now_ms);
}

/* TLS, then who we are, then mail: EHLO is said anew after each. */
static void next_of_hello(struct probe *p, int64_t now_ms)
{
	const struct probe_order *order = p->order;
	bool open = order->tls != PROBE_TLS_NONE && !p->report.tls;

	if (open && (p->report.ext & SMTP_EXT_STARTTLS) != 0 && !p->unsecured)
		say(p, PROBE_STEP_STARTTLS, "STARTTLS", "", now_ms);
	else if (open && order->tls == PROBE_TLS_MUST)
		leave(p, PROBE_TLS_REFUSED, now_ms);
	else if (order->xclient && !p->introduced)
		introduce(p, now_ms);
	else
		learned(p, now_ms);
}

/* What comes behind the 220 is not of this reply: see heard(). */
static void started(struct probe *p, int64_t now_ms)
{
	if (p->reply.code < 300) {
		shake(p, now_ms);
	} else if (p->order->tls == PROBE_TLS_MUST || p->reply.code == 421) {
		leave(p, PROBE_TLS_REFUSED, now_ms);
	} else {
		/* It is no fault, where it was only tried. */
		p->unsecured = true;
		p->report.class = BUSY_OK;
		p->report.code = 0;
		p->report.text_len = 0;
		next_of_hello(p, now_ms);
	}
}

/* Anything but 220 leaves it open whom the backend takes us for. */
static void introduced(struct probe *p, int64_t now_ms)
{
	if (p->reply.code != 220) {
		leave(p, PROBE_XCLIENT_REFUSED, now_ms);
		return;
	}
	p->introduced = true;
	say_hello(p, now_ms);
}

static void greeted(struct probe *p, int64_t now_ms)
{
	if (p->reply.code < 300) {
		p->report.greet_ms = now_ms - p->begun_ms;
		say_hello(p, now_ms);
	} else if (p->reply.code < 400) {
		leave(p, PROBE_NOT_SMTP, now_ms);
	} else if (p->reply.code < 500) {
		leave(p, PROBE_GREETING_BUSY, now_ms);
	} else {
		leave(p, PROBE_GREETING_REFUSED, now_ms);
	}
}

static void helloed(struct probe *p, int64_t now_ms)
{
	bool extended = p->step == PROBE_STEP_EHLO;

	if (p->reply.code < 400) {
		learn(p, extended ? &p->reply.ehlo : &(struct smtp_ehlo){ 0 });
		next_of_hello(p, now_ms);
	} else if (p->reply.code < 500) {
		leave(p, PROBE_EHLO_BUSY, now_ms);
	} else if (extended && p->reply.code != 521 && p->reply.code != 554) {
		/* RFC 5321, section 3.2: an old server may know HELO only */
		say(p, PROBE_STEP_HELO, "HELO ", p->order->helo, now_ms);
	} else {
		leave(p, PROBE_EHLO_REFUSED, now_ms);
	}
}

static void mailed(struct probe *p, int64_t now_ms)
{
	if (p->reply.code < 400) {
		say(p, PROBE_STEP_RSET, "RSET", "", now_ms);
		return;
	}
	decide(p, p->reply.code < 500 ? PROBE_MAIL_BUSY : PROBE_MAIL_REFUSED,
	       now_ms);
	/* Who has something against <> can be asked; who is unwell cannot. */
	if (p->report.class == BUSY_POLICY)
		guard_or_quit(p, now_ms);
	else
		say_quit(p, now_ms);
}

/* Whatever it thinks of RSET. */
static void was_reset(struct probe *p, int64_t now_ms)
{
	if (p->guarding)
		guard_mail(p, now_ms); /* once more, with <> */
	else if (p->report.outcome == PROBE_NONE)
		well(p, now_ms);
	else
		say_quit(p, now_ms);
}

static void replied(struct probe *p, int64_t now_ms)
{
	struct smtp_esc esc;

	if (p->report.outcome == PROBE_NONE && p->step != PROBE_STEP_RSET) {
		keep_text(p);
		p->report.class = classify(p, &esc);
	}
	switch (p->step) {
	case PROBE_STEP_GREETING:
		greeted(p, now_ms);
		return;
	case PROBE_STEP_EHLO:
	case PROBE_STEP_HELO:
		helloed(p, now_ms);
		return;
	case PROBE_STEP_STARTTLS:
		started(p, now_ms);
		return;
	case PROBE_STEP_XCLIENT:
		introduced(p, now_ms);
		return;
	case PROBE_STEP_MAIL:
		mailed(p, now_ms);
		return;
	case PROBE_STEP_GUARD_MAIL:
	case PROBE_STEP_GUARD_RCPT:
		guard_replied(p, now_ms);
		return;
	case PROBE_STEP_RSET:
		was_reset(p, now_ms);
		return;
	case PROBE_STEP_QUIT:
		finish(p, PROBE_OK, now_ms); /* or what was decided before */
		return;
	case PROBE_STEP_CONNECT:
	case PROBE_STEP_HANDSHAKE:
	case PROBE_STEP_DONE:
	case PROBE_STEP_COUNT:
		return;
	}
}

/* --- what is not a reply --- */

static void silent(struct probe *p, enum busy_silence what,
		   enum probe_outcome outcome, int64_t now_ms)
{
	if (p->report.outcome == PROBE_NONE) {
		p->report.class = busy_silence(what).class;
		p->report.code = 0;
		p->report.text_len = 0;
	}
	finish(p, outcome, now_ms);
}

static void connect_failed(struct probe *p, int error, int64_t now_ms)
{
	p->report.error = error;
	switch (error) {
	case ECONNREFUSED:
		silent(p, BUSY_SILENCE_REFUSED, PROBE_REFUSED, now_ms);
		return;
	case ETIMEDOUT:
		silent(p, BUSY_SILENCE_TIMEOUT, PROBE_CONNECT_TIMEOUT, now_ms);
		return;
	case ECONNRESET:
		silent(p, BUSY_SILENCE_RESET, PROBE_CONNECT_RESET, now_ms);
		return;
	case EHOSTUNREACH:
	case ENETUNREACH:
	case EHOSTDOWN:
	case ENETDOWN:
		silent(p, BUSY_SILENCE_REFUSED, PROBE_UNREACHABLE, now_ms);
		return;
	default:
		silent(p, BUSY_SILENCE_REFUSED, PROBE_CONNECT_ERROR, now_ms);
		return;
	}
}

/* It has not said a word yet, in TLS or in clear. */
static bool is_mute(const struct probe *p)
{
	return p->step == PROBE_STEP_GREETING ||
	       (p->step == PROBE_STEP_HANDSHAKE && p->report.greet_ms == -1);
}

/*
 * No TLS.  Where it was only tried, the next attempt goes in clear, and that
 * one says how the backend is.
 */
static void insecure(struct probe *p, enum busy_silence what,
		     const struct probe_event *event, int64_t now_ms)
{
	size_t len = event != NULL ? event->len : 0;

	p->report.tls_failed = p->order->tls == PROBE_TLS_IF_OFFERED;
	silent(p, what, PROBE_TLS_FAILED, now_ms);
	if (len > PROBE_TEXT_MAX)
		len = PROBE_TEXT_MAX;
	if (len > 0)
		memcpy(p->report.text, event->octets, len);
	p->report.text_len = (uint16_t)len;
}

/* The stream ended or broke. */
static void ended(struct probe *p, bool reset, int64_t now_ms)
{
	if (p->step == PROBE_STEP_HANDSHAKE && !is_mute(p))
		insecure(p, BUSY_SILENCE_LOST, NULL, now_ms);
	else if (is_mute(p))
		silent(p, BUSY_SILENCE_GREET_EOF, PROBE_CLOSED_EARLY, now_ms);
	else if (reset)
		silent(p, BUSY_SILENCE_LOST, PROBE_RESET, now_ms);
	else
		silent(p, BUSY_SILENCE_LOST, PROBE_CLOSED, now_ms);
}

static void timed_out(struct probe *p, int64_t now_ms)
{
	struct probe_plan wait;

	plan_wait(p, &wait);
	if (now_ms < wait.deadline_ms)
		return; /* an older plan's */
	if (p->step == PROBE_STEP_CONNECT)
		silent(p, BUSY_SILENCE_TIMEOUT, PROBE_CONNECT_TIMEOUT, now_ms);
	else if (is_mute(p))
		silent(p, BUSY_SILENCE_GREET_LATE, PROBE_SILENT, now_ms);
	else if (p->step == PROBE_STEP_HANDSHAKE)
		insecure(p, BUSY_SILENCE_REPLY_LATE, NULL, now_ms);
	else
		silent(p, BUSY_SILENCE_REPLY_LATE, PROBE_TIMEOUT, now_ms);
}

/* --- octets --- */

static void garbled(struct probe *p, int64_t now_ms)
{
	if (p->report.outcome == PROBE_NONE) {
		keep_text(p);
		p->report.class = busy_silence(BUSY_SILENCE_GARBLED).class;
	}
	p->shake = false;
	finish(p, PROBE_NOT_SMTP, now_ms);
}

/* In words, not in a handshake. */
static bool is_talking(const struct probe *p)
{
	return p->step != PROBE_STEP_DONE && p->step != PROBE_STEP_HANDSHAKE;
}

/*
 * Octets behind a whole reply belong to the next one: a server that greets
 * and at once says 421 has answered our EHLO with it.  But behind the 220 to
 * STARTTLS none may stand: they would be taken for words that came over TLS
 * (RFC 3207, section 4.2; CVE-2011-0411).
 */
static void heard(struct probe *p, const char *octets, size_t len,
		  int64_t now_ms)
{
	while (len > 0 && is_talking(p)) {
		size_t used = 0;
		enum smtp_reply_fed fed = smtp_reply_feed(&p->reply, octets,
							  len, &used);

		assert(used <= len);
		octets += used;
		len -= used;
		switch (fed) {
		case SMTP_REPLY_MORE:
			return;
		case SMTP_REPLY_WHOLE:
			replied(p, now_ms);
			break;
		case SMTP_REPLY_BAD:
			garbled(p, now_ms);
			return;
		}
	}
	if (len > 0 && p->step == PROBE_STEP_HANDSHAKE)
		garbled(p, now_ms);
}

static void greeting_comes(struct probe *p, int64_t now_ms)
{
	enter(p, PROBE_STEP_GREETING, now_ms);
	smtp_reply_begin(&p->reply, false);
}

static void connected(struct probe *p, int64_t now_ms)
{
	if (p->order->implicit && p->order->tls != PROBE_TLS_NONE)
		shake(p, now_ms);
	else
		greeting_comes(p, now_ms);
}

/* What EHLO said in clear, anybody may have said: it is said again. */
static void secured(struct probe *p, const struct probe_event *event,
		    int64_t now_ms)
{
	struct probe_report *r = &p->report;

	r->tls = true;
	r->verified = event->verified;
	r->expires_s = event->expires_s;
	r->left_s = event->expires_s != 0 ? event->expires_s - event->now_s : 0;
	(void)snprintf(r->tls_version, sizeof(r->tls_version), "%s",
		       event->tls_version);
	if (r->greet_ms == -1)
		greeting_comes(p, now_ms);
	else
		say_hello(p, now_ms);
}

void probe_begin(struct probe *p, const struct probe_order *order,
		 int64_t now_ms, struct probe_plan *plan)
{
	assert(order->helo != NULL);
	assert(order->proxy_ip_count <= BUSY_PROXY_IPS_MAX);
	assert(strlen(order->helo) <= SMTP_DOMAIN_MAX);

	p->step = PROBE_STEP_CONNECT;
	p->begun_ms = p->step_ms = now_ms;
	p->connect_by_ms = now_ms + order->connect_ms;
	p->all_by_ms = now_ms + order->timeout_ms;
	p->quit_by_ms = p->all_by_ms;
	p->order = order;
	p->introduced = p->guarding = p->guard_null = false;
	p->unsecured = p->shake = false;
	p->xclient = 0;
	p->say_len = 0;
	p->report = (struct probe_report){
		.failed = PROBE_STEP_DONE,
		.greet_ms = -1,
	};
	for (size_t i = 0; i < PROBE_STEP_COUNT; i++)
		p->report.took_ms[i] = -1;
	plan_wait(p, plan);
}

void probe_step(struct probe *p, const struct probe_event *event,
		int64_t now_ms, struct probe_plan *plan)
{
	bool connecting = p->step == PROBE_STEP_CONNECT;

	p->say_len = 0;
	p->shake = false;
	if (p->step == PROBE_STEP_DONE) {
		plan_wait(p, plan);
		return;
	}
	switch (event->kind) {
	case PROBE_IN_CONNECTED:
		if (connecting)
			connected(p, now_ms);
		break;
	case PROBE_IN_FAILED:
		if (connecting)
			connect_failed(p, event->error, now_ms);
		break;
	case PROBE_IN_OCTETS:
		if (!connecting && is_talking(p))
			heard(p, event->octets, event->len, now_ms);
		break;
	case PROBE_IN_SECURED:
		if (p->step == PROBE_STEP_HANDSHAKE)
			secured(p, event, now_ms);
		break;
	case PROBE_IN_INSECURE:
		if (p->step == PROBE_STEP_HANDSHAKE)
			insecure(p, BUSY_SILENCE_GARBLED, event, now_ms);
		else if (!connecting)
			ended(p, true, now_ms);
		break;
	case PROBE_IN_CLOSED:
	case PROBE_IN_RESET:
		if (!connecting)
			ended(p, event->kind == PROBE_IN_RESET, now_ms);
		break;
	case PROBE_IN_TIME:
		timed_out(p, now_ms);
		break;
	case PROBE_IN_CANCEL:
		finish(p, PROBE_ABANDONED, now_ms);
		break;
	}
	plan_wait(p, plan);
	plan->handshake = p->shake;
	if (p->say_len > 0 && !plan->done) {
		plan->send = p->line;
		plan->send_len = p->say_len;
	}
}

/* --- the verdict --- */

/* A reply other than 2xx, before the transaction. */
static enum health_probe verdict_of_class(enum busy_class class)
{
	switch (class) {
	case BUSY_DRAIN:
		return HEALTH_PROBE_DRAIN;
	case BUSY_MISCONF:
		return HEALTH_PROBE_MISCONF;
	case BUSY_POLICY: /* it does not want weir */
		return HEALTH_PROBE_FAILED;
	case BUSY_BUSY:
	case BUSY_MAYBE:
	case BUSY_CAP:
	case BUSY_SESSION:
	case BUSY_SICK: /* all backends may say so at once: see balancer.h */
	case BUSY_OK:
	case BUSY_CLASSES:
		break;
	}
	return HEALTH_PROBE_BUSY;
}

/* 4xx, and not because of what it was asked for. */
static bool is_passing(const struct probe_report *report)
{
	return report->code >= 400 && report->code < 500 &&
	       (busy_is_about_slots(report->class) ||
		report->class == BUSY_DRAIN);
}

/* Without TLS it is of no use, whatever the reason. */
static enum health_probe verdict_of_tls(const struct probe_report *report)
{
	return is_passing(report) ? verdict_of_class(report->class)
				  : HEALTH_PROBE_FAILED;
}

/* It does not know weir for the proxy that it is. */
static enum health_probe verdict_of_xclient(const struct probe_report *report)
{
	if (is_passing(report) || (report->code >= 400 && report->code < 500 &&
				   report->class == BUSY_SICK))
		return verdict_of_class(report->class);
	return HEALTH_PROBE_MISCONF;
}

enum health_probe probe_verdict(const struct probe_report *report)
{
	switch (report->outcome) {
	case PROBE_OK:
		return HEALTH_PROBE_PASSED;
	case PROBE_GREETING_BUSY:
	case PROBE_GREETING_REFUSED:
	case PROBE_EHLO_BUSY:
	case PROBE_EHLO_REFUSED:
		return verdict_of_class(report->class);
	case PROBE_TLS_REFUSED:
		return verdict_of_tls(report);
	case PROBE_TLS_FAILED: /* only tried: not for that */
		return report->tls_failed ? HEALTH_PROBE_BUSY
					  : HEALTH_PROBE_FAILED;
	case PROBE_XCLIENT_REFUSED:
		return verdict_of_xclient(report);
	case PROBE_MAIL_BUSY:
	case PROBE_MAIL_REFUSED:
		if (report->class == BUSY_POLICY)
			return HEALTH_PROBE_PASSED; /* about <>, not itself */
		return verdict_of_class(report->class);
	case PROBE_REFUSED:
	case PROBE_UNREACHABLE:
	case PROBE_CONNECT_TIMEOUT:
	case PROBE_CONNECT_RESET:
	case PROBE_CONNECT_ERROR:
	case PROBE_CLOSED_EARLY:
	case PROBE_SILENT:
	case PROBE_NOT_SMTP:
	case PROBE_CLOSED:
	case PROBE_RESET:
	case PROBE_TIMEOUT:
		return HEALTH_PROBE_FAILED;
	case PROBE_NONE:
	case PROBE_ABANDONED:
	case PROBE_OUTCOME_COUNT:
		break;
	}
	assert(false && "a probe that has no outcome has no verdict");
	return HEALTH_PROBE_FAILED;
}

/* --- words --- */

const char *probe_outcome_name(enum probe_outcome outcome)
{
	assert(outcome < PROBE_OUTCOME_COUNT);
	return outcome_words[outcome].name;
}

const char *probe_outcome_help(enum probe_outcome outcome)
{
	assert(outcome < PROBE_OUTCOME_COUNT);
	return outcome_words[outcome].help;
}

const char *probe_step_word(enum probe_step_name step)
{
	assert(step < PROBE_STEP_COUNT);
	return step_words[step];
}
