#include "proxy/session.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

static const char *const state_names[] = {
	[SESSION_GREETING] = "greeting", [SESSION_COMMAND] = "command",
	[SESSION_BINDING] = "binding",   [SESSION_MAIL] = "mail",
	[SESSION_DATA] = "data",         [SESSION_BODY] = "body",
	[SESSION_CHUNK] = "chunk",       [SESSION_FINAL] = "final",
	[SESSION_CLOSED] = "closed",
};
static_assert(sizeof(state_names) / sizeof(state_names[0]) == SESSION_STATES,
	      "a name for every state");

const char *session_state_name(enum session_state state)
{
	assert(state < SESSION_STATES);
	return state_names[state];
}

void session_init(struct session *s, const struct config_listener *listener,
		  char *line, char *mail, int64_t now_ms)
{
	memset(s, 0, sizeof(*s));
	s->state = SESSION_GREETING;
	s->deadline_ms = INT64_MAX;
	s->listener = listener;
	s->line = line;
	s->mail = mail;
	s->opened_ms = now_ms;
	s->waiting_ms = now_ms;
}

/* ---- plans ---- */

struct session_act *session_add(struct session_plan *plan, enum session_do what)
{
	assert(plan->count < SESSION_ACTS_MAX);
	struct session_act *act = &plan->acts[plan->count++];

	*act = (struct session_act){ .what = what };
	return act;
}

void session_say(struct session_plan *plan, const char *text)
{
	struct session_act *act = session_add(plan, SESSION_DO_SAY);

	act->text = text;
	act->len = strlen(text);
}

/* ---- deadlines ---- */

static void set_deadline(struct session *s, const struct session_env *env,
			 int64_t at_ms)
{
	int64_t whole_ms = env->config->timeouts.session_ms;

	if (whole_ms > 0 && at_ms > s->opened_ms + whole_ms)
		at_ms = s->opened_ms + whole_ms;
	s->deadline_ms = at_ms;
}

/* The client's turn: its time runs until the whole of the next command. */
static void await_command(struct session *s, const struct session_env *env)
{
	const struct config_timeouts *t = &env->config->timeouts;

	if (s->resting)
		return;
	s->waiting_ms = env->now_ms;
	set_deadline(s, env,
		     env->now_ms + (env->stressed ? t->stress_command_ms
						  : t->command_ms));
}

void session_stress(struct session *s, const struct session_env *env)
{
	const struct config_timeouts *t = &env->config->timeouts;

	if (s->state != SESSION_COMMAND || s->due > 0 || s->resting)
		return;
	set_deadline(s, env,
		     s->waiting_ms + (env->stressed ? t->stress_command_ms
						    : t->command_ms));
}

void session_await_body(struct session *s, const struct session_env *env)
{
	set_deadline(s, env, env->now_ms + env->config->timeouts.data_ms);
}

/* ---- endings ---- */

/* What was sent behind MAIL is as if it had not been: it waits where it was. */
static void forget_ahead(struct session *s)
{
	s->ahead = 0;
	s->ahead_rcpts = 0;
	s->ahead_data = false;
}

/* Part from the backend so that nothing half said is taken for a message. */
void session_part(struct session *s, struct session_plan *plan)
{
	bool clean = s->due == 0 || s->pipelining;

	if (s->state == SESSION_BINDING) {
		session_add(plan, SESSION_DO_QUIT);
	} else if (s->bound) {
		if (s->ahead_data || s->state == SESSION_DATA ||
		    s->state == SESSION_BODY || s->state == SESSION_CHUNK ||
		    s->state == SESSION_FINAL)
			clean = false;
		session_add(plan, clean ? SESSION_DO_QUIT : SESSION_DO_RESET);
	}
	s->bound = false;
	s->due = 0;
	forget_ahead(s);
}

/* The transaction is over, whatever became of it: one log line. */
void session_end_message(struct session *s, struct session_plan *plan,
			 enum busy_stage stage, enum busy_class class,
			 unsigned code)
{
	s->message.stage = stage;
	s->message.class = class;
	s->message.code = code;
	s->transaction = SESSION_NO_MAIL;
	s->chunk_failed = false;
	session_add(plan, SESSION_DO_LOG);
}

/* How far a transaction had come that ends without a reply. */
static enum busy_stage stage_of(enum session_state state)
{
	switch (state) {
	case SESSION_BINDING:
		return BUSY_STAGE_TCP;
	case SESSION_MAIL:
		return BUSY_STAGE_MAIL;
	case SESSION_DATA:
		return BUSY_STAGE_DATA;
	case SESSION_BODY:
	case SESSION_CHUNK:
	case SESSION_FINAL:
		return BUSY_STAGE_EOD;
	case SESSION_GREETING:
	case SESSION_COMMAND:
	case SESSION_CLOSED:
	case SESSION_STATES:
		break;
	}
	return BUSY_STAGE_IDLE;
}

void session_abandon(struct session *s, struct session_plan *plan)
{
	const struct session_message *m = &s->message;
	bool broken = s->transaction == SESSION_MAIL_BROKEN || s->chunk_failed;

	session_part(s, plan);
	if (s->state == SESSION_FINAL)
		s->message.unknown = true;
	if (broken || (m->rcpts_ok == 0 && m->code != 0))
		session_end_message(s, plan, m->stage, m->class, m->code);
	else
		session_end_message(s, plan, stage_of(s->state), BUSY_OK, 0);
}

static void close_with(struct session *s, struct session_plan *plan,
		       enum session_do how, enum stats_close reason)
{
	if (s->transaction != SESSION_NO_MAIL || s->state == SESSION_BINDING ||
	    s->state == SESSION_MAIL)
		session_abandon(s, plan);
	assert(!s->bound);
	s->state = SESSION_CLOSED;
	s->deadline_ms = INT64_MAX;
	s->reason = reason;
	session_add(plan, how)->reason = reason;
}

void session_finish(struct session *s, struct session_plan *plan,
		    enum stats_close reason)
{
	close_with(s, plan, SESSION_DO_CLOSE, reason);
}

static void abort_session(struct session *s, struct session_plan *plan,
			  enum stats_close reason)
{
	close_with(s, plan, SESSION_DO_ABORT, reason);
}

void session_kill(struct session *s, struct session_plan *plan,
		  enum stats_close reason)
{
	assert(s->state != SESSION_CLOSED);
	plan->count = 0;
	plan->consumed = 0;
	abort_session(s, plan, reason);
}

void session_turn(struct session *s, const struct session_env *env,
		  struct session_plan *plan)
{
	assert(s->state == SESSION_COMMAND);
	if (s->client_gone) {
		session_finish(s, plan, STATS_CLOSE_CLIENT_RESET);
	} else if (s->eof) {
		session_finish(s, plan, STATS_CLOSE_CLIENT_CLOSED);
	} else if (env->draining && s->transaction != SESSION_MAIL_OPEN) {
		session_say(plan, SESSION_TEXT_DRAIN);
		session_finish(s, plan, STATS_CLOSE_DRAIN);
	} else {
		await_command(s, env);
	}
}

/* Back to commands. */
static void next_command(struct session *s, const struct session_env *env,
			 struct session_plan *plan)
{
	s->state = SESSION_COMMAND;
	s->swallow = false;
	s->note_len = 0;
	session_turn(s, env, plan);
}

bool session_count_error(struct session *s, const struct session_env *env)
{
	s->errors++;
	stats_add(&env->stats->errors, 1);
	if (s->ticket.held)
		admission_error(env->admission, &s->ticket);
	return s->errors <= env->config->admission.max_errors;
}

/*
 * An error of the client's own making.  Costs it one of max_errors, and rest
 * if there is a tarpit.
 */
void session_error(struct session *s, const struct session_env *env,
		   struct session_plan *plan, const char *text)
{
	int64_t tarpit_ms = env->config->admission.tarpit_ms;

	if (!session_count_error(s, env)) {
		session_say(plan, SESSION_TEXT_ERRORS);
		session_finish(s, plan, STATS_CLOSE_ERRORS);
		return;
	}
	session_say(plan, text);
	if (tarpit_ms > 0) {
		stats_add(&env->stats->tarpitted, 1);
		s->resting = true;
		set_deadline(s, env, env->now_ms + tarpit_ms);
	}
}

/* ---- greeting ---- */

static void greet(struct session *s, const struct session_env *env,
		  struct session_plan *plan)
{
	const char *banner = s->listener->banner;

	if (env->draining) {
		session_say(plan, SESSION_TEXT_DRAIN);
		session_finish(s, plan, STATS_CLOSE_DRAIN);
		return;
	}
	(void)snprintf(plan->scratch, sizeof(plan->scratch), "220 %s%s%s\r\n",
		       env->config->weir.hostname, *banner ? " " : "", banner);
	session_say(plan, plan->scratch);
	next_command(s, env, plan);
}

static void admitted(struct session *s, const struct session_env *env,
		     struct session_plan *plan)
{
	if (s->state != SESSION_GREETING)
		return;
	if (s->listener->greeting_delay_ms == 0) {
		greet(s, env, plan);
		return;
	}
	set_deadline(s, env, env->now_ms + s->listener->greeting_delay_ms);
}

/* RFC 5321, section 4.3.1: the client waits for the greeting. */
static void early_talk(struct session *s, const struct session_env *env,
		       struct session_plan *plan)
{
	switch (s->listener->early_talkers) {
	case CONFIG_EARLY_REJECT:
		stats_add(&env->stats->early_talkers, 1);
		session_say(plan,
			    "554 5.5.0 You spoke before the greeting\r\n");
		session_finish(s, plan, STATS_CLOSE_EARLY_TALKER);
		return;
	case CONFIG_EARLY_LOG:
		if (!s->early)
			stats_add(&env->stats->early_talkers, 1);
		s->early = true;
		return;
	case CONFIG_EARLY_OFF:
		return;
	}
}

/* ---- lines ---- */

void session_foreign(struct session *s, const struct session_env *env,
		     struct session_plan *plan)
{
	stats_add(&env->stats->errors, 1);
	session_say(plan,
		    "500 5.5.2 This is a mail server, it speaks SMTP\r\n");
	session_finish(s, plan, STATS_CLOSE_FOREIGN);
}

/*
 * One finding of the scanner in text[0..len).  Returns false if it has to
 * wait for replies that are due before it.
 */
static bool scanned(struct session *s, const struct session_env *env,
		    enum smtp_scan found, const struct smtp_line *line,
		    bool more, struct session_plan *plan)
{
	switch (found) {
	case SMTP_SCAN_LINE:
		return session_command(s, env, line->text, line->len, more,
				       plan);
	case SMTP_SCAN_BAD:
		if (s->due > 0)
			return false;
		session_error(s, env, plan,
			      "500 5.5.2 Bare CR, bare LF or NUL in a command"
			      "\r\n");
		return true;
	case SMTP_SCAN_LONG:
		if (s->due > 0)
			return false;
		session_error(s, env, plan, "500 5.5.2 Line too long\r\n");
		return true;
	case SMTP_SCAN_MORE:
		break;
	}
	return false;
}

static size_t max_of(const char *text, size_t len)
{
	size_t max = smtp_line_max(text, len);

	return max < SESSION_LINE_MAX ? max : SESSION_LINE_MAX;
}

/* A line that comes in pieces: gather it, as far as its LF. */
static void gathered_octets(struct session *s, const struct session_env *env,
			    const struct session_event *ev,
			    struct session_plan *plan)
{
	struct smtp_line line = { 0 };
	size_t take = 0;

	if (!s->line_ready) {
		const char *lf = memchr(ev->data, '\n', ev->len);

		take = lf ? (size_t)(lf - ev->data) + 1 : ev->len;
		if (take > SESSION_LINE_MAX - s->line_len)
			take = SESSION_LINE_MAX - s->line_len;
		memcpy(s->line + s->line_len, ev->data, take);
		s->line_len += (uint32_t)take;
		plan->consumed = take;
	}

	enum smtp_scan found = smtp_line_scan(
		s->line, s->line_len, max_of(s->line, s->line_len), &line);
	bool ended = s->line[s->line_len - 1] == '\n';

	if (found == SMTP_SCAN_MORE)
		return;
	s->line_ready = !scanned(s, env, found, &line, ev->len > take, plan);
	if (s->line_ready)
		return;
	s->line_len = 0;
	s->skipping = found == SMTP_SCAN_LONG && !ended;
}

static void line_octets(struct session *s, const struct session_env *env,
			const struct session_event *ev,
			struct session_plan *plan)
{
	struct smtp_line line = { 0 };
	enum smtp_scan found = smtp_line_scan(ev->data, ev->len,
					      max_of(ev->data, ev->len), &line);

	if (found == SMTP_SCAN_MORE) {
		memcpy(s->line, ev->data, ev->len);
		s->line_len = (uint32_t)ev->len;
		plan->consumed = ev->len;
		return;
	}
	if (!scanned(s, env, found, &line, ev->len > line.eaten, plan))
		return;
	plan->consumed = line.eaten;
	if (found == SMTP_SCAN_LONG)
		s->skipping = true;
}

static void command_octets(struct session *s, const struct session_env *env,
			   const struct session_event *ev,
			   struct session_plan *plan)
{
	bool ended = false;

	if (s->resting)
		return;
	if (s->skipping && ev->len > 0) {
		plan->consumed = smtp_line_skip(ev->data, ev->len, &ended);
		s->skipping = !ended;
		return;
	}
	if (s->line_len > 0 && (s->line_ready || ev->len > 0)) {
		gathered_octets(s, env, ev, plan);
		return;
	}
	if (ev->len == 0)
		return;
	if (smtp_line_is_binary(ev->data, ev->len)) {
		if (s->due > 0)
			return;
		plan->consumed = ev->len;
		session_foreign(s, env, plan);
		return;
	}
	line_octets(s, env, ev, plan);
}

/* ---- bodies ---- */

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

/* Is this 421 about the client?  Then it is passed, and obeyed. */
static bool is_obeyed(const struct session_event *ev)
{
	return ev->code == 421 &&
	       (ev->class == BUSY_SESSION || ev->class == BUSY_POLICY);
}

/* What the client reads for the backend's code: we live on. */
static unsigned code_for_client(const struct session_event *ev)
{
	return ev->code == 421 && !is_obeyed(ev) ? 451 : ev->code;
}

#define LOST_TEXT "451 4.3.0 The mail server was lost, please try again\r\n"

/* Keep the backend's own words; the code is that of every line. */
static void note_reply(struct session *s, const struct session_event *ev)
{
	unsigned code = code_for_client(ev);
	bool at_start = true;

	if (ev->len > SESSION_NOTE_MAX) {
		note(s, LOST_TEXT, strlen(LOST_TEXT));
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
static void stop_body(struct session *s, struct session_plan *plan,
		      enum busy_stage stage, enum busy_class class)
{
	assert(!s->swallow);
	if (s->bound)
		session_add(plan, SESSION_DO_RESET);
	s->bound = false;
	s->swallow = true;
	s->message.stage = stage;
	s->message.class = class;
}

static void refuse_body(struct session *s, struct session_plan *plan,
			enum busy_class class, const char *text)
{
	stop_body(s, plan, BUSY_STAGE_EOD, class);
	note(s, text, strlen(text));
}

/* A reply of our own or the backend's whose time has come. */
static unsigned say_note(struct session *s, struct session_plan *plan)
{
	struct session_act *act = session_add(plan, SESSION_DO_SAY);
	unsigned code = 0;

	assert(s->note_len >= 3);
	act->text = s->line;
	act->len = s->note_len;
	for (unsigned i = 0; i < 3; i++)
		code = code * 10 + (unsigned)(s->line[i] - '0');
	return code;
}

/* The body's or the message's end was swallowed: now the client hears why. */
static void end_swallowed(struct session *s, const struct session_env *env,
			  struct session_plan *plan)
{
	unsigned code = say_note(s, plan);

	s->state = SESSION_COMMAND;
	session_part(s, plan);
	stats_add(&env->stats->messages_refused, 1);
	session_end_message(s, plan, s->message.stage, s->message.class, code);
	if (code != 421)
		next_command(s, env, plan);
	else if (s->errors > env->config->admission.max_errors)
		session_finish(s, plan, STATS_CLOSE_ERRORS);
	else
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
}

uint64_t session_size_limit(const struct session *s,
			    const struct session_env *env)
{
	uint64_t limit = s->listener->size;

	if (limit == 0 || (env->offer_size > 0 && env->offer_size < limit))
		limit = env->offer_size;
	return limit;
}

/* ".\r\n", which no SIZE counts (RFC 1870, section 3). */
enum { DATA_END_LEN = 3 };

static void body_octets(struct session *s, const struct session_env *env,
			const struct session_event *ev,
			struct session_plan *plan)
{
	if (ev->len == 0)
		return;

	size_t n = smtp_body_scan(&s->body, ev->data, ev->len);
	uint64_t limit = s->listener->size;

	plan->consumed = n;
	s->message.octets = s->body.octets;
	s->message.flaws = s->body.flaws;
	if (s->body.flaws != 0 && !s->swallow) {
		stats_add(&env->stats->messages_smuggled, 1);
		refuse_body(s, plan, BUSY_OK,
			    "550 5.6.11 Bare CR, bare LF or NUL in the "
			    "message\r\n");
	} else if (limit > 0 && s->body.octets > limit + DATA_END_LEN &&
		   !s->swallow) {
		refuse_body(s, plan, BUSY_OK,
			    "552 5.3.4 Message larger than allowed\r\n");
	}
	if (!s->swallow) {
		struct session_act *act = session_add(plan, SESSION_DO_BODY);

		act->len = n;
		act->stage = s->body.ended ? BUSY_STAGE_EOD : BUSY_STAGE_IDLE;
	}
	if (!s->body.ended) {
		session_await_body(s, env);
	} else if (s->swallow) {
		end_swallowed(s, env, plan);
	} else {
		s->message.end_ms = env->now_ms;
		s->state = SESSION_FINAL;
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
		end_swallowed(s, env, plan);
		return;
	}
	code = say_note(s, plan);
	if (code == 421)
		session_finish(s, plan, STATS_CLOSE_ERRORS);
	else
		next_command(s, env, plan);
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

static void chunk_octets(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	size_t n = ev->len;

	if (n == 0)
		return;
	if (n > s->chunk_left)
		n = (size_t)s->chunk_left;
	plan->consumed = n;
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

/* ---- behind MAIL ---- */

static bool may_look_ahead(const struct session *s)
{
	return s->pipelining && !s->ahead_data;
}

/* The next line behind MAIL, if it is whole and in this buffer. */
static void look_ahead(struct session *s, const struct session_env *env,
		       const struct session_event *ev,
		       struct session_plan *plan)
{
	struct smtp_line line = { 0 };
	const char *text = ev->data;
	size_t len = ev->len;

	/* Nothing is gathered: MAIL was the last line that was read. */
	assert(s->line_len == 0);
	assert(!s->skipping);
	if (!may_look_ahead(s) || len <= s->ahead)
		return;
	text += s->ahead;
	len -= s->ahead;
	if (smtp_line_scan(text, len, max_of(text, len), &line) !=
	    SMTP_SCAN_LINE)
		return;
	if (session_send_ahead(s, env, line.text, line.len, len > line.eaten,
			       plan))
		s->ahead += (unsigned)line.eaten;
}

static void octets(struct session *s, const struct session_env *env,
		   const struct session_event *ev, struct session_plan *plan)
{
	switch (s->state) {
	case SESSION_GREETING:
		if (ev->len > 0)
			early_talk(s, env, plan);
		return;
	case SESSION_COMMAND:
		command_octets(s, env, ev, plan);
		/* A step that neither acts nor consumes has to wait; one of a
		 * BDAT that waited and was then refused has not. */
		if (s->state == SESSION_CHUNK && plan->count == 0 &&
		    plan->consumed == 0)
			chunk_octets(s, env, ev, plan);
		return;
	case SESSION_DATA:
		if (ev->len > 0)
			s->premature = true;
		return;
	case SESSION_BODY:
		body_octets(s, env, ev, plan);
		return;
	case SESSION_CHUNK:
		chunk_octets(s, env, ev, plan);
		return;
	case SESSION_CLOSED:
		plan->consumed = ev->len;
		return;
	case SESSION_MAIL:
		look_ahead(s, env, ev, plan);
		return;
	case SESSION_BINDING:
	case SESSION_FINAL:
	case SESSION_STATES:
		return;
	}
}

bool session_wants(const struct session *s)
{
	switch (s->state) {
	case SESSION_GREETING:
		return s->listener->early_talkers != CONFIG_EARLY_OFF;
	case SESSION_COMMAND:
		return !s->resting;
	case SESSION_DATA:
		return !s->premature;
	case SESSION_MAIL:
		return may_look_ahead(s);
	case SESSION_BODY:
	case SESSION_CHUNK:
	case SESSION_CLOSED:
		return true;
	case SESSION_BINDING:
	case SESSION_FINAL:
	case SESSION_STATES:
		break;
	}
	return false;
}

/* ---- the client ends ---- */

static void client_ended(struct session *s, const struct session_env *env,
			 struct session_plan *plan, enum stats_close reason)
{
	switch (s->state) {
	case SESSION_FINAL:
		/* It is the backend's now: its answer is worth knowing, and
		 * whoever has only half closed still reads it. */
		s->eof = true;
		s->client_gone = reason == STATS_CLOSE_CLIENT_RESET;
		return;
	case SESSION_BODY:
	case SESSION_CHUNK:
		if (s->transaction != SESSION_NO_MAIL)
			stats_add(&env->stats->messages_aborted, 1);
		abort_session(s, plan, reason);
		return;
	case SESSION_GREETING:
	case SESSION_COMMAND:
	case SESSION_BINDING:
	case SESSION_MAIL:
	case SESSION_DATA:
		if (reason == STATS_CLOSE_CLIENT_CLOSED)
			session_finish(s, plan, reason);
		else
			abort_session(s, plan, reason);
		return;
	case SESSION_CLOSED:
	case SESSION_STATES:
		return;
	}
}

/* ---- time ---- */

static bool session_time_is_up(const struct session *s,
			       const struct session_env *env)
{
	int64_t whole_ms = env->config->timeouts.session_ms;

	return whole_ms > 0 && env->now_ms >= s->opened_ms + whole_ms;
}

bool session_defer(struct session *s, const struct session_env *env)
{
	if (s->state != SESSION_BODY && s->state != SESSION_CHUNK)
		return false;
	if (session_time_is_up(s, env))
		return false;
	session_await_body(s, env);
	return true;
}

static void no_backend(struct session *s, const struct session_env *env,
		       struct session_plan *plan, enum busy_stage stage,
		       enum busy_class class)
{
	stats_add(&env->stats->unavailable, 1);
	session_say(plan, "451 4.3.2 All mail servers are busy, please try "
			  "again later\r\n");
	session_end_message(s, plan, stage, class, 451);
	next_command(s, env, plan);
}

static void timed_out(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	enum stats_close reason = STATS_CLOSE_CLIENT_TIMEOUT;

	if (s->state == SESSION_CLOSED || env->now_ms < s->deadline_ms)
		return;
	if (session_time_is_up(s, env))
		reason = STATS_CLOSE_SESSION_TIME;
	if (s->resting && reason == STATS_CLOSE_CLIENT_TIMEOUT) {
		s->resting = false;
		await_command(s, env);
		return;
	}
	switch (s->state) {
	case SESSION_GREETING:
		greet(s, env, plan);
		return;
	case SESSION_BINDING:
		session_add(plan, SESSION_DO_QUIT);
		no_backend(s, env, plan, BUSY_STAGE_TCP, BUSY_MAYBE);
		return;
	case SESSION_COMMAND:
	case SESSION_BODY:
	case SESSION_CHUNK:
		session_say(plan, reason == STATS_CLOSE_SESSION_TIME
					  ? "421 4.4.2 Session too long\r\n"
					  : "421 4.4.2 Timeout\r\n");
		session_finish(s, plan, reason);
		return;
	case SESSION_MAIL:
	case SESSION_DATA:
	case SESSION_FINAL:
	case SESSION_CLOSED:
	case SESSION_STATES:
		s->deadline_ms = INT64_MAX; /* the backend's time runs */
		return;
	}
}

/* ---- backends come and go ---- */

void session_bind(struct session *s, const struct session_env *env,
		  struct session_plan *plan)
{
	s->state = SESSION_BINDING;
	s->message.tries++;
	s->deadline_ms = s->binding_ms + env->config->farm.budget_ms;
	session_add(plan, SESSION_DO_BIND);
}

static bool may_try_another(const struct session *s,
			    const struct session_env *env)
{
	return s->message.tries < env->config->farm.tries &&
	       env->now_ms < s->binding_ms + env->config->farm.budget_ms;
}

/* Another backend, unseen by the client; or 451, if there may be none. */
static void try_another(struct session *s, const struct session_env *env,
			struct session_plan *plan, enum busy_stage stage,
			enum busy_class class)
{
	if (may_try_another(s, env)) {
		stats_add(&env->stats->failovers, 1);
		session_bind(s, env, plan);
	} else {
		no_backend(s, env, plan, stage, class);
	}
}

static void bound(struct session *s, const struct session_env *env,
		  const struct session_event *ev, struct session_plan *plan)
{
	struct session_act *act;

	if (s->state != SESSION_BINDING)
		return;
	s->bound = true;
	s->reused = ev->reused;
	s->pipelining = ev->pipelining;
	s->ext = ev->ext;
	if (s->need & ~s->ext) {
		/* It offers less than its probes said. */
		session_add(plan, SESSION_DO_QUIT);
		s->bound = false;
		try_another(s, env, plan, BUSY_STAGE_EHLO, BUSY_MISCONF);
		return;
	}
	assert(s->ahead == 0);
	s->state = SESSION_MAIL;
	s->deadline_ms = INT64_MAX;
	s->due = 1;
	if (s->message.bound_ms == 0)
		s->transactions++;
	s->message.bound_ms = env->now_ms;
	act = session_add(plan, SESSION_DO_COMMAND);
	act->stage = BUSY_STAGE_MAIL;
	act->text = s->mail;
	act->len = s->mail_len;
}

/* A reply that is given to the client though no connection is left of it. */
static void pass_text(struct session *s, const struct session_env *env,
		      const struct session_event *ev, struct session_plan *plan)
{
	unsigned code = code_for_client(ev);
	struct session_act *act = session_add(plan, SESSION_DO_SAY);
	int n = snprintf(plan->scratch, sizeof(plan->scratch), "%03u %.*s\r\n",
			 code, (int)(ev->len < 480 ? ev->len : 480), ev->data);

	act->text = plan->scratch;
	act->len = (size_t)n;
	session_end_message(s, plan, ev->stage, ev->class, code);
	if (is_obeyed(ev)) {
		s->state = SESSION_COMMAND;
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
	} else {
		next_command(s, env, plan);
	}
}

static void unbound(struct session *s, const struct session_env *env,
		    const struct session_event *ev, struct session_plan *plan)
{
	bool hide = busy_within(busy_actions(ev->class)->hide, ev->stage);

	if (s->state != SESSION_BINDING)
		return;
	if (ev->more)
		try_another(s, env, plan, ev->stage, ev->class);
	else if (ev->len > 0 && ev->code >= 400 && !hide)
		pass_text(s, env, ev, plan);
	else
		no_backend(s, env, plan, ev->stage, ev->class);
}

/* ---- the backend is lost ---- */

/* It will answer no more: what is still due gets this. */
static void answer_due(struct session *s, struct session_plan *plan,
		       const char *text)
{
	if (s->due == 0)
		return;
	session_say(plan, text);
	plan->acts[plan->count - 1].times = s->due;
	s->due = 0;
}

/* 451 to all that follows, until the client begins anew. */
static void break_transaction(struct session *s, enum busy_stage stage,
			      enum busy_class class, unsigned code)
{
	assert(!s->bound);
	s->transaction = SESSION_MAIL_BROKEN;
	s->message.stage = stage;
	s->message.class = class;
	s->message.code = code;
}

/* The same while a chunk's octets come: its own reply waits for their end. */
static void answer_chunks(struct session *s, struct session_plan *plan,
			  const char *text)
{
	if (s->due > 0)
		s->due--;
	answer_due(s, plan, text);
}

/* RFC 1047: nobody knows whether the message was stored. */
static void lose_final(struct session *s, const struct session_env *env,
		       enum busy_class class, struct session_plan *plan)
{
	stats_add(&env->stats->messages_unknown, 1);
	s->message.unknown = true;
	answer_due(s, plan,
		   "451 4.4.2 The mail server was lost before it "
		   "answered\r\n");
	session_end_message(s, plan, BUSY_STAGE_EOD, class, 451);
	next_command(s, env, plan);
}

/* There is no connection to a backend any more. */
static void lose(struct session *s, const struct session_env *env,
		 enum busy_stage stage, enum busy_class class,
		 struct session_plan *plan)
{
	s->bound = false;
	switch (s->state) {
	case SESSION_MAIL:
		s->due = 0;
		forget_ahead(s);
		if (s->reused) /* it may just have come to its end */
			s->message.tries--;
		try_another(s, env, plan, BUSY_STAGE_MAIL, class);
		return;
	case SESSION_COMMAND:
		answer_due(s, plan, LOST_TEXT);
		break_transaction(s, stage, class, 451);
		next_command(s, env, plan);
		return;
	case SESSION_DATA:
		answer_due(s, plan, LOST_TEXT);
		session_end_message(s, plan, BUSY_STAGE_DATA, class, 451);
		if (s->premature)
			session_out_of_step(s, plan);
		else
			next_command(s, env, plan);
		return;
	case SESSION_BODY:
		refuse_body(s, plan, class, LOST_TEXT);
		return;
	case SESSION_CHUNK:
		if (s->swallow) {
			/* Refused by ourselves: that is what counts. */
			s->transaction = SESSION_MAIL_BROKEN;
			return;
		}
		answer_chunks(s, plan, LOST_TEXT);
		refuse_body(s, plan, class, LOST_TEXT);
		break_transaction(s, BUSY_STAGE_EOD, class, 451);
		return;
	case SESSION_FINAL:
		lose_final(s, env, class, plan);
		return;
	case SESSION_GREETING:
	case SESSION_BINDING:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return;
	}
}

static void lost(struct session *s, const struct session_env *env,
		 const struct session_event *ev, struct session_plan *plan)
{
	if (s->bound)
		lose(s, env, ev->stage, ev->class, plan);
}

/* What it said makes no sense: nothing it says can be believed any more. */
static void drop(struct session *s, const struct session_env *env,
		 const struct session_event *ev, struct session_plan *plan)
{
	session_add(plan, SESSION_DO_RESET);
	lose(s, env, ev->stage, ev->class, plan);
}

/* ---- the backend's replies ---- */

static void relay(struct session_plan *plan, unsigned code)
{
	session_add(plan, SESSION_DO_RELAY)->code = code;
}

/*
 * A 421 ends the backend's connection, not the client's, unless it is about
 * the client (promise 7): then it is passed as it is, and obeyed.  Returns
 * whether the session is over.
 */
static bool relay_or_close(struct session *s, const struct session_event *ev,
			   struct session_plan *plan)
{
	unsigned code = code_for_client(ev);

	relay(plan, code == ev->code ? 0 : code);
	if (!is_obeyed(ev))
		return false;
	session_part(s, plan);
	session_end_message(s, plan, ev->stage, ev->class, code);
	s->state = SESSION_COMMAND;
	session_finish(s, plan, STATS_CLOSE_BACKEND_421);
	return true;
}

/*
 * The backend is done with this message; perhaps it takes the next one.  Not
 * after it refused the last chunk: its transaction may stand open, and MAIL
 * would be out of order there.
 */
static void let_go(struct session *s, const struct session_event *ev,
		   struct session_plan *plan)
{
	bool open = s->message.chunked && ev->code / 100 != 2;
	bool keep = ev->code != 421 && !busy_actions(ev->class)->retire &&
		    !open;

	if (s->ahead > 0) {
		session_part(s, plan); /* it has more to answer */
		return;
	}
	session_add(plan, keep ? SESSION_DO_KEEP : SESSION_DO_QUIT);
	s->bound = false;
}

/* MAIL is accepted: what was sent behind it counts. */
static void catch_up(struct session *s, const struct session_env *env,
		     struct session_plan *plan)
{
	unsigned lines = s->ahead_rcpts + s->ahead_data;

	plan->consumed = s->ahead;
	stats_add(&env->stats->commands, lines);
	s->message.rcpts = s->ahead_rcpts;
	s->due = lines;
	if (s->ahead_data)
		s->state = SESSION_DATA;
	else if (lines > 0)
		s->state = SESSION_COMMAND;
	else
		next_command(s, env, plan);
	forget_ahead(s);
}

static void mail_replied(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	const struct busy_actions *actions = busy_actions(ev->class);
	bool hide = busy_within(actions->hide, BUSY_STAGE_MAIL);
	bool retry = hide && busy_within(actions->retry, BUSY_STAGE_MAIL) &&
		     may_try_another(s, env);

	if (ev->code / 100 == 2) {
		relay(plan, 0);
		s->transaction = SESSION_MAIL_OPEN;
		stats_add(&env->stats->transactions, 1);
		catch_up(s, env, plan);
		return;
	}
	/* A connection that served before may have come to its end. */
	if (s->reused && ev->class == BUSY_SESSION) {
		session_part(s, plan);
		s->message.tries--;
		session_bind(s, env, plan);
		return;
	}
	/* Busy is never for ever, whatever the code. */
	if (retry || (hide && (actions->own_reply || ev->code >= 500))) {
		session_part(s, plan);
		try_another(s, env, plan, BUSY_STAGE_MAIL, ev->class);
		return;
	}
	if (relay_or_close(s, ev, plan))
		return;
	let_go(s, ev, plan);
	session_end_message(s, plan, BUSY_STAGE_MAIL, ev->class,
			    code_for_client(ev));
	next_command(s, env, plan);
}

/* A chunk was refused: the message can become nothing whole any more. */
static void chunk_refused(struct session *s, const struct session_event *ev,
			  struct session_plan *plan)
{
	s->chunk_failed = true;
	s->message.stage = ev->stage;
	s->message.class = ev->class;
	s->message.code = ev->code;
	if (s->state != SESSION_CHUNK)
		return;
	answer_chunks(s, plan, SESSION_TEXT_CHUNK_FAILED);
	refuse_body(s, plan, ev->class, SESSION_TEXT_CHUNK_FAILED);
	break_transaction(s, ev->stage, ev->class, ev->code);
}

/* The reply to a chunk of which the octets still come. */
static void chunk_replied_early(struct session *s,
				const struct session_env *env,
				const struct session_event *ev,
				struct session_plan *plan)
{
	if (ev->code < 400) {
		drop(s, env, ev, plan);
		return;
	}
	stop_body(s, plan, BUSY_STAGE_EOD, ev->class);
	note_reply(s, ev);
	break_transaction(s, BUSY_STAGE_EOD, ev->class, code_for_client(ev));
	s->chunk_failed = true;
}

/* A reply to RCPT, or to a BDAT that was not the last. */
static void envelope_replied(struct session *s, const struct session_env *env,
			     const struct session_event *ev,
			     struct session_plan *plan)
{
	bool good = ev->code / 100 == 2;

	if (s->state == SESSION_CHUNK && s->due == 0) {
		chunk_replied_early(s, env, ev, plan);
		return;
	}
	if (ev->stage == BUSY_STAGE_RCPT && good) {
		s->message.rcpts_ok++;
		stats_add(&env->stats->recipients, 1);
	} else if (!good) {
		s->message.stage = ev->stage;
		s->message.class = ev->class;
		s->message.code = code_for_client(ev);
	}
	if (relay_or_close(s, ev, plan))
		return;
	if (ev->code == 421) {
		drop(s, env, ev, plan);
		return;
	}
	if (ev->stage != BUSY_STAGE_RCPT && !good)
		chunk_refused(s, ev, plan);
	if (s->due == 0 && s->state == SESSION_COMMAND)
		next_command(s, env, plan);
}

void session_out_of_step(struct session *s, struct session_plan *plan)
{
	session_say(plan, "554 5.5.0 You sent data before the 354\r\n");
	if (s->transaction != SESSION_NO_MAIL) {
		session_part(s, plan);
		session_end_message(s, plan, BUSY_STAGE_DATA, BUSY_OK, 554);
	}
	session_finish(s, plan, STATS_CLOSE_SYNC);
}

static void data_replied(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	if (ev->code / 100 == 3) {
		if (s->premature) {
			session_out_of_step(s, plan);
			return;
		}
		relay(plan, 0);
		s->state = SESSION_BODY;
		s->message.data_ms = env->now_ms;
		smtp_body_begin(&s->body);
		session_await_body(s, env);
		return;
	}
	if (ev->code / 100 == 2) {
		/* No reply to DATA is a 2xx: it will not be a delivery. */
		s->due++;
		drop(s, env, ev, plan);
		return;
	}
	if (relay_or_close(s, ev, plan))
		return;
	s->state = SESSION_COMMAND;
	session_part(s, plan);
	session_end_message(s, plan, BUSY_STAGE_DATA, ev->class,
			    code_for_client(ev));
	if (s->premature)
		session_out_of_step(s, plan);
	else
		next_command(s, env, plan);
}

static void final_replied(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan)
{
	bool good = ev->code / 100 == 2;

	if (good && s->chunk_failed) {
		/* It took a message of which it had refused a part. */
		s->due++;
		drop(s, env, ev, plan);
		return;
	}
	if (good) {
		s->messages++;
		stats_add(&env->stats->messages, 1);
		if (s->client_gone)
			stats_add(&env->stats->messages_unread, 1);
	} else {
		stats_add(&env->stats->messages_refused, 1);
	}
	s->state = SESSION_COMMAND;
	if (relay_or_close(s, ev, plan))
		return;
	let_go(s, ev, plan);
	session_end_message(s, plan, BUSY_STAGE_EOD, ev->class,
			    code_for_client(ev));
	next_command(s, env, plan);
}

/* Is it the reply to what the first of the due ones was asked? */
static bool is_in_step(const struct session *s, const struct session_event *ev)
{
	bool last = s->due == 1;
	enum busy_stage to_last = BUSY_STAGE_RCPT;

	switch (s->state) {
	case SESSION_MAIL:
		return ev->stage == BUSY_STAGE_MAIL && ev->code / 100 != 3;
	case SESSION_DATA:
		to_last = BUSY_STAGE_DATA;
		break;
	case SESSION_FINAL:
		to_last = BUSY_STAGE_EOD;
		break;
	case SESSION_CHUNK:
		to_last = s->chunk_last ? BUSY_STAGE_EOD : BUSY_STAGE_DATA;
		break;
	case SESSION_COMMAND:
		last = false;
		break;
	case SESSION_GREETING:
	case SESSION_BINDING:
	case SESSION_BODY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return false;
	}
	/* "Go on" is said to DATA and nothing else. */
	if (ev->code / 100 == 3)
		return last && s->state == SESSION_DATA;
	if (last)
		return ev->stage == to_last;
	return ev->stage == BUSY_STAGE_RCPT || ev->stage == BUSY_STAGE_DATA;
}

static void replied(struct session *s, const struct session_env *env,
		    const struct session_event *ev, struct session_plan *plan)
{
	bool last = s->due == 1;

	if (!s->bound || s->due == 0)
		return;
	if (!is_in_step(s, ev)) {
		drop(s, env, ev, plan);
		return;
	}
	s->due--;
	if (s->state == SESSION_MAIL)
		mail_replied(s, env, ev, plan);
	else if (s->state == SESSION_DATA && last)
		data_replied(s, env, ev, plan);
	else if (s->state == SESSION_FINAL && last)
		final_replied(s, env, ev, plan);
	else
		envelope_replied(s, env, ev, plan);
}

/* A backend that speaks without being asked has something to say, or is out
 * of step; either way this connection can serve no more. */
static void early(struct session *s, const struct session_env *env,
		  const struct session_event *ev, struct session_plan *plan)
{
	if (!s->bound)
		return;
	if (s->state == SESSION_BODY && ev->code >= 400) {
		stop_body(s, plan, BUSY_STAGE_EOD, ev->class);
		note_reply(s, ev);
		return;
	}
	drop(s, env, ev, plan);
}

static void drain(struct session *s, struct session_plan *plan)
{
	bool idle = s->state == SESSION_GREETING ||
		    (s->state == SESSION_COMMAND &&
		     s->transaction != SESSION_MAIL_OPEN);

	if (!idle)
		return;
	session_say(plan, SESSION_TEXT_DRAIN);
	session_finish(s, plan, STATS_CLOSE_DRAIN);
}

static void refused(struct session *s, const struct session_event *ev,
		    struct session_plan *plan)
{
	struct session_act *act;

	if (s->state != SESSION_GREETING)
		return;
	act = session_add(plan, SESSION_DO_SAY);
	act->text = ev->data;
	act->len = ev->len;
	session_finish(s, plan, ev->reason);
}

void session_step(struct session *s, const struct session_env *env,
		  const struct session_event *ev, struct session_plan *plan)
{
	plan->count = 0;
	plan->consumed = 0;
	switch (ev->kind) {
	case SESSION_IN_ADMITTED:
		admitted(s, env, plan);
		return;
	case SESSION_IN_REFUSED:
		refused(s, ev, plan);
		return;
	case SESSION_IN_OCTETS:
		octets(s, env, ev, plan);
		return;
	case SESSION_IN_EOF:
		client_ended(s, env, plan, STATS_CLOSE_CLIENT_CLOSED);
		return;
	case SESSION_IN_GONE:
		client_ended(s, env, plan, STATS_CLOSE_CLIENT_RESET);
		return;
	case SESSION_IN_TIMEOUT:
		timed_out(s, env, plan);
		return;
	case SESSION_IN_BOUND:
		bound(s, env, ev, plan);
		return;
	case SESSION_IN_UNBOUND:
		unbound(s, env, ev, plan);
		return;
	case SESSION_IN_REPLY:
		replied(s, env, ev, plan);
		return;
	case SESSION_IN_EARLY:
		early(s, env, ev, plan);
		return;
	case SESSION_IN_LOST:
		lost(s, env, ev, plan);
		return;
	case SESSION_IN_DRAIN:
		drain(s, plan);
		return;
	}
}
