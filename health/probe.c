#include "health/probe.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

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

	p->report.took_ms[p->step] = now_ms - p->step_ms;
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

/* Say a command; its reply is awaited in `step`. */
static void say(struct probe *p, enum probe_step_name step, const char *verb,
		const char *arg, int64_t now_ms)
{
	int len = snprintf(p->line, sizeof(p->line), "%s%s\r\n", verb, arg);

	assert(len > 0);
	assert((size_t)len < sizeof(p->line));
	p->say_len = (uint16_t)len;
	enter(p, step, now_ms);
	smtp_reply_begin(&p->reply, step == PROBE_STEP_EHLO);
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
	case PROBE_STEP_MAIL:
		return BUSY_STAGE_MAIL;
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

static void classify(struct probe *p)
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
	p->report.class =
		busy_classify(&r, p->order->rules, p->order->rule_count).class;
}

static void learn(struct probe *p, const struct smtp_ehlo *ehlo)
{
	p->report.ehlo_known = true;
	p->report.ext = ehlo->ext;
	p->report.size = ehlo->size;
}

/* A reply that ends the dialogue: note it and take leave. */
static void leave(struct probe *p, enum probe_outcome outcome, int64_t now_ms)
{
	decide(p, outcome, now_ms);
	say_quit(p, now_ms);
}

static void next_of_hello(struct probe *p, int64_t now_ms)
{
	if (p->order->mail)
		say(p, PROBE_STEP_MAIL, "MAIL FROM:", "<>", now_ms);
	else
		leave(p, PROBE_OK, now_ms);
}

static void greeted(struct probe *p, int64_t now_ms)
{
	if (p->reply.code < 300) {
		p->report.greet_ms = now_ms - p->begun_ms;
		say(p, PROBE_STEP_EHLO, "EHLO ", p->order->helo, now_ms);
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
	if (p->reply.code < 400)
		say(p, PROBE_STEP_RSET, "RSET", "", now_ms);
	else if (p->reply.code < 500)
		leave(p, PROBE_MAIL_BUSY, now_ms);
	else
		leave(p, PROBE_MAIL_REFUSED, now_ms);
}

static void replied(struct probe *p, int64_t now_ms)
{
	if (p->step != PROBE_STEP_RSET && p->step != PROBE_STEP_QUIT) {
		keep_text(p);
		classify(p);
	}
	switch (p->step) {
	case PROBE_STEP_GREETING:
		greeted(p, now_ms);
		return;
	case PROBE_STEP_EHLO:
	case PROBE_STEP_HELO:
		helloed(p, now_ms);
		return;
	case PROBE_STEP_MAIL:
		mailed(p, now_ms);
		return;
	case PROBE_STEP_RSET:
		leave(p, PROBE_OK, now_ms); /* whatever it thinks of RSET */
		return;
	case PROBE_STEP_QUIT:
		finish(p, PROBE_OK, now_ms); /* or what was decided before */
		return;
	case PROBE_STEP_CONNECT:
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

/* The stream ended or broke. */
static void ended(struct probe *p, bool reset, int64_t now_ms)
{
	if (p->step == PROBE_STEP_GREETING)
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
	else if (p->step == PROBE_STEP_GREETING)
		silent(p, BUSY_SILENCE_GREET_LATE, PROBE_SILENT, now_ms);
	else
		silent(p, BUSY_SILENCE_REPLY_LATE, PROBE_TIMEOUT, now_ms);
}

/* --- octets --- */

/*
 * Octets behind a whole reply belong to the next one: a server that greets
 * and at once says 421 has answered our EHLO with it.
 */
static void heard(struct probe *p, const char *octets, size_t len,
		  int64_t now_ms)
{
	while (len > 0 && p->step != PROBE_STEP_DONE) {
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
			if (p->report.outcome == PROBE_NONE)
				keep_text(p);
			p->report.class =
				p->report.outcome == PROBE_NONE
					? busy_silence(BUSY_SILENCE_GARBLED)
						  .class
					: p->report.class;
			finish(p, PROBE_NOT_SMTP, now_ms);
			return;
		}
	}
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
	if (p->step == PROBE_STEP_DONE) {
		plan_wait(p, plan);
		return;
	}
	switch (event->kind) {
	case PROBE_IN_CONNECTED:
		if (connecting) {
			enter(p, PROBE_STEP_GREETING, now_ms);
			smtp_reply_begin(&p->reply, false);
		}
		break;
	case PROBE_IN_FAILED:
		if (connecting)
			connect_failed(p, event->error, now_ms);
		break;
	case PROBE_IN_OCTETS:
		if (!connecting)
			heard(p, event->octets, event->len, now_ms);
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
