#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

/*
 * Bodies and chunks: octets on their way to the backend, or to nowhere, with a
 * reply that waits for their end.
 */

/* ---- what the client reads at the end ---- */

/*
 * Keep a reply until the client has said all it is going to say.  It lies in
 * line[]: no line is gathered before the body or the chunk is over.
 */
static void note(struct session *s, const char *text, size_t len)
{
	assert(s->line_len == 0 || !s->line_ready);
	assert(len <= SESSION_NOTE_MAX);
	memcpy(s->line, text, len);
	s->note_len = (unsigned)len;
}

/* Keep the backend's own words; the code is that of every line. */
void session_note_reply(struct session *s, const struct session_event *ev)
{
	unsigned code = session_code_for_client(ev);
	bool at_start = true;

	if (ev->len > SESSION_NOTE_MAX) {
		note(s, SESSION_TEXT_LOST, strlen(SESSION_TEXT_LOST));
		return;
	}
	note(s, ev->data, ev->len);
	for (size_t i = 0; code != ev->code && i + 3 < ev->len; i++) {
		if (at_start)
			memcpy(s->line + i, "451", 3);
		at_start = s->line[i] == '\n';
	}
}

/*
 * The rest of this body goes nowhere, and the backend must not store it.
 * What the client will read at its end is to be noted by the caller.
 */
void session_stop_body(struct session *s, struct session_plan *plan,
		       enum busy_stage stage, enum busy_class class)
{
	assert(!s->swallow);
	if (s->bound)
		session_add(plan,
			    s->holding ? SESSION_DO_QUIT : SESSION_DO_RESET);
	s->bound = false;
	s->due = 0;
	s->holding = false;
	s->swallow = true;
	s->message.stage = stage;
	s->message.class = class;
}

void session_refuse_body(struct session *s, struct session_plan *plan,
			 enum busy_class class, const char *text)
{
	session_stop_body(s, plan, BUSY_STAGE_EOD, class);
	note(s, text, strlen(text));
}

/* A reply of our own or the backend's whose time has come. */
unsigned session_say_note(struct session *s, struct session_plan *plan)
{
	struct session_act *act = session_add(plan, SESSION_DO_SAY);

	assert(s->note_len >= 3);
	act->text = s->line;
	act->len = s->note_len;
	return session_code_of(s->line);
}

/*
 * The body's or the message's end was swallowed, or came to nothing: now the
 * client hears why.
 */
void session_end_noted(struct session *s, const struct session_env *env,
		       struct session_plan *plan)
{
	unsigned code = session_say_note(s, plan);

	s->state = SESSION_COMMAND;
	s->due = 0;
	if (code == 421)
		session_part(s, plan);
	else
		session_leave(s, plan);
	stats_add(&env->stats->messages_refused, 1);
	session_end_message(s, plan, s->message.stage, s->message.class, code);
	if (code != 421)
		session_next(s, env, plan);
	else if (s->errors > env->config->admission.max_errors)
		session_finish(s, plan, STATS_CLOSE_ERRORS);
	else
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
}

/* ---- octets ---- */

uint64_t session_size_limit(const struct session *s,
			    const struct session_env *env)
{
	uint64_t limit = s->listener->size;

	if (limit == 0 || (env->offer_size > 0 && env->offer_size < limit))
		limit = env->offer_size;
	return limit;
}

void session_trace(struct session *s, struct session_plan *plan)
{
	if (!s->trace_due)
		return;
	s->trace_due = false;
	session_add(plan, SESSION_DO_TRACE);
}

/*
 * Where a trace field goes in front: a line that begins with white space
 * would be more of that field (RFC 5322, section 2.2.3), in words of the
 * client's.
 */
static bool is_white(char octet)
{
	return octet == ' ' || octet == '\t';
}

/* The dot that stuffs the first line is no part of it. */
static void note_begin(struct session *s, const char *data, size_t len)
{
	size_t second = s->body.octets == 0 ? 1 : 0;

	if (s->body.octets == 0) {
		s->white = is_white(data[0]);
		s->dotted = data[0] == '.';
	}
	if (s->dotted && s->body.octets < 2 && len > second)
		s->white = is_white(data[second]);
}

/* What is wrong with the body as far as it has come; NULL: nothing. */
static const char *body_refusal(const struct session *s)
{
	uint64_t limit = s->listener->size;

	if (s->white && s->trace_len > 0)
		return SESSION_TEXT_WHITE;

	if (s->body.flaws != 0 && !s->counting)
		return "550 5.6.11 Bare CR, bare LF or NUL in the message\r\n";
	if (limit > 0 && s->body.octets > limit + SESSION_DATA_END_LEN)
		return "552 5.3.4 Message larger than allowed\r\n";
	return NULL;
}

/* ---- bare_newline = bdat ---- */

bool session_counts_on(const struct session *s)
{
	unsigned most = s->pipelining ? SESSION_CHUNKS_MAX : 1;

	return !s->counting || s->swallow || s->due < most;
}

void session_resume_body(struct session *s, const struct session_env *env)
{
	assert(s->state == SESSION_BODY);
	if (s->deadline_ms == INT64_MAX && session_counts_on(s))
		session_await_body(s, env);
}

/*
 * The body's octets, n of them, as one chunk, in which nothing can end it.
 * The field that goes in front has one of its own or the first; so an owed CR
 * (smtp_reframe()) never stands between the field and its count.
 */
static void count_body(struct session *s, struct session_plan *plan,
		       const char *data, size_t n)
{
	const struct smtp_undot before = s->undot;
	const struct smtp_reframed out = smtp_reframe(&s->undot, data, n);
	uint64_t octets = out.octets + (s->trace_due ? s->trace_len : 0);
	struct session_act *act;
	int len;

	assert(out.taken == n);
	assert(out.ended == s->body.ended);
	assert(!(out.owes_cr && s->trace_due));
	if (octets == 0 && !out.ended)
		return;
	len = snprintf(plan->scratch, sizeof(plan->scratch),
		       "BDAT %" PRIu64 "%s\r\n%s", octets,
		       out.ended ? " LAST" : "", out.owes_cr ? "\r" : "");
	act = session_add(plan, SESSION_DO_COMMAND);
	act->stage = out.ended ? BUSY_STAGE_EOD : BUSY_STAGE_DATA;
	act->text = plan->scratch;
	act->len = (size_t)len;
	s->due++;
	session_trace(s, plan);
	if (out.octets == (out.owes_cr ? 1 : 0))
		return;
	act = session_add(plan, SESSION_DO_BODY);
	act->stage = BUSY_STAGE_IDLE; /* BDAT asked for the reply */
	act->len = n;
	act->undot = true;
	act->undot_state = before;
}

void session_counted_replied(struct session *s, const struct session_env *env,
			     const struct session_event *ev,
			     struct session_plan *plan)
{
	if (ev->code / 100 == 2) {
		if (s->state == SESSION_BODY)
			session_resume_body(s, env);
		return;
	}
	if (s->state == SESSION_BODY) {
		session_stop_body(s, plan, BUSY_STAGE_EOD, ev->class);
		session_note_reply(s, ev);
		session_resume_body(s, env);
	} else if (!s->chunk_failed) {
		/* The end was sent: its reply is what ends it. */
		s->chunk_failed = true;
		s->message.stage = BUSY_STAGE_EOD;
		s->message.class = ev->class;
		session_note_reply(s, ev);
	}
}

/* ---- bodies ---- */

/* The event's first n octets, to the backend or into memory. */
static void pass_body(struct session *s, struct session_plan *plan,
		      const char *data, size_t n)
{
	struct session_act *act;

	if (s->holding) {
		session_add(plan, SESSION_DO_HOLD)->len = n;
		return;
	}
	if (s->counting) {
		count_body(s, plan, data, n);
		return;
	}
	session_trace(s, plan);
	act = session_add(plan, SESSION_DO_BODY);
	act->len = n;
	act->stage = s->body.ended ? BUSY_STAGE_EOD : BUSY_STAGE_IDLE;
}

void session_body_octets(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	const struct smtp_body was = s->body;
	const char *refusal = NULL;
	size_t n;

	if (ev->len == 0)
		return;
	if (!session_counts_on(s))
		return;
	note_begin(s, ev->data, ev->len);
	n = smtp_body_scan(&s->body, ev->data, ev->len);
	if (!s->swallow)
		refusal = body_refusal(s);
	if (s->holding && refusal == NULL && n > ev->room) {
		s->body = was; /* they come again when there is a backend */
		session_spill(s, env, plan);
		return;
	}
	plan->consumed = n;
	s->message.octets = s->body.octets;
	s->message.flaws = s->body.flaws;
	if (refusal != NULL) {
		if (s->body.flaws != 0)
			stats_add(&env->stats->messages_smuggled, 1);
		session_refuse_body(s, plan, BUSY_OK, refusal);
	}
	if (!s->swallow)
		pass_body(s, plan, ev->data, n);
	if (!s->body.ended) {
		if (session_counts_on(s))
			session_await_body(s, env);
		else
			s->deadline_ms = INT64_MAX; /* the backend's turn */
	} else if (s->swallow) {
		session_end_noted(s, env, plan);
	} else if (s->holding) {
		session_hold_whole(s, env, plan);
	} else {
		s->message.end_ms = env->now_ms;
		s->state = SESSION_FINAL;
		if (!s->counting)
			s->due = 1;
		s->deadline_ms = INT64_MAX;
	}
}

/*
 * A chunk that went nowhere is over: its reply is due.  The last one takes the
 * transaction with it, if there is one.
 */
static void chunk_swallowed(struct session *s, const struct session_env *env,
			    struct session_plan *plan)
{
	unsigned code;

	if (s->transaction != SESSION_NO_MAIL &&
	    (s->chunk_last || memcmp(s->line, "421", 3) == 0)) {
		session_end_noted(s, env, plan);
		return;
	}
	code = session_say_note(s, plan);
	if (code == 421)
		session_finish(s, plan, STATS_CLOSE_ERRORS);
	else
		session_next(s, env, plan);
}

/* The last octet of a chunk has gone by (or there was none: BDAT 0 LAST). */
void session_chunk_done(struct session *s, const struct session_env *env,
			struct session_plan *plan)
{
	assert(s->chunk_left == 0);
	if (s->swallow) {
		chunk_swallowed(s, env, plan);
		return;
	}
	if (s->chunk_last) {
		s->message.end_ms = env->now_ms;
		s->state = SESSION_FINAL;
		s->deadline_ms = INT64_MAX;
		return;
	}
	s->state = SESSION_COMMAND;
	s->deadline_ms = INT64_MAX; /* its reply is due */
}

void session_chunk_octets(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan)
{
	size_t n = ev->len;

	if (n == 0)
		return;
	if (n > s->chunk_left)
		n = (size_t)s->chunk_left;
	plan->consumed = n;
	if (!s->swallow && s->message.octets == 0 && s->trace_len > 0 &&
	    is_white(ev->data[0])) {
		/* The chunk was announced with the field in it. */
		session_say(plan, SESSION_TEXT_WHITE);
		session_part(s, plan);
		session_end_message(s, plan, BUSY_STAGE_EOD, BUSY_OK, 550);
		session_finish(s, plan, STATS_CLOSE_SYNC);
		return;
	}
	s->chunk_left -= n;
	if (!s->swallow) {
		s->message.octets += n;

		struct session_act *act = session_add(plan, SESSION_DO_BODY);

		/* Its reply was asked for when BDAT was sent. */
		act->len = n;
		act->stage = BUSY_STAGE_IDLE;
	}
	if (s->chunk_left > 0)
		session_await_body(s, env);
	else
		session_chunk_done(s, env, plan);
}
