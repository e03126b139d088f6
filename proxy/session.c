#include "proxy/session.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

static const char *const state_names[] = {
	[SESSION_GREETING] = "greeting", [SESSION_HANDSHAKE] = "handshake",
	[SESSION_COMMAND] = "command",   [SESSION_BINDING] = "binding",
	[SESSION_AUTH] = "auth",         [SESSION_MAIL] = "mail",
	[SESSION_DATA] = "data",         [SESSION_BODY] = "body",
	[SESSION_CHUNK] = "chunk",       [SESSION_HANDOVER] = "handover",
	[SESSION_FINAL] = "final",       [SESSION_RELAY] = "relay",
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
	s->nimble_ms = INT64_MAX;
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

void session_set_deadline(struct session *s, const struct session_env *env,
			  int64_t at_ms)
{
	int64_t whole_ms = env->config->timeouts.session_ms;

	if (whole_ms > 0 && at_ms > s->opened_ms + whole_ms)
		at_ms = s->opened_ms + whole_ms;
	s->deadline_ms = at_ms;
}

/* The client's turn: its time runs until the whole of the next line. */
void session_await_command(struct session *s, const struct session_env *env)
{
	const struct config_timeouts *t = &env->config->timeouts;

	if (s->resting)
		return;
	s->waiting_ms = env->now_ms;
	session_set_deadline(s, env,
			     env->now_ms + (env->stressed ? t->stress_command_ms
							  : t->command_ms));
}

void session_stress(struct session *s, const struct session_env *env)
{
	const struct config_timeouts *t = &env->config->timeouts;

	if ((s->state != SESSION_COMMAND && s->state != SESSION_AUTH) ||
	    s->due > 0 || s->resting)
		return;
	session_set_deadline(s, env,
			     s->waiting_ms + (env->stressed
						      ? t->stress_command_ms
						      : t->command_ms));
}

void session_set_body_deadline(struct session *s, const struct session_env *env)
{
	int64_t at_ms = s->waiting_ms + env->config->timeouts.data_ms;

	if (s->holding && s->bound && session_slot_ms(s) < at_ms)
		at_ms = session_slot_ms(s);
	session_set_deadline(s, env, at_ms);
}

void session_await_body(struct session *s, const struct session_env *env)
{
	s->waiting_ms = env->now_ms;
	session_set_body_deadline(s, env);
}

/* ---- endings ---- */

/* What was sent behind MAIL is as if it had not been: it waits where it was. */
void session_forget_ahead(struct session *s)
{
	s->ahead = 0;
	s->ahead_rcpts = 0;
	s->ahead_data = false;
}

/* Part from the backend so that nothing half said is taken for a message. */
void session_part(struct session *s, struct session_plan *plan)
{
	bool clean = s->due == 0 || s->pipelining;

	if (session_is_binding(s)) {
		session_add(plan, SESSION_DO_QUIT);
	} else if (s->bound) {
		if (s->ahead_data ||
		    (s->state == SESSION_AUTH &&
		     (s->challenged || s->due > 0)) ||
		    (s->state == SESSION_DATA && !s->own_data) ||
		    (s->state == SESSION_BODY && !s->holding) ||
		    (s->state == SESSION_HANDOVER && s->due > 0) ||
		    s->state == SESSION_CHUNK || s->state == SESSION_FINAL ||
		    s->state == SESSION_RELAY)
			clean = false;
		session_add(plan, clean ? SESSION_DO_QUIT : SESSION_DO_RESET);
	}
	s->bound = false;
	s->due = 0;
	s->clearing = false;
	session_forget_ahead(s);
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
	s->own_data = false;
	s->holding = false;
	s->whole = false;
	s->replaying = false;
	s->counting = false;
	s->trace_due = false;
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
	case SESSION_HANDOVER:
	case SESSION_FINAL:
		return BUSY_STAGE_EOD;
	case SESSION_GREETING:
	case SESSION_HANDSHAKE:
	case SESSION_COMMAND:
	case SESSION_AUTH:
	case SESSION_RELAY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		break;
	}
	return BUSY_STAGE_IDLE;
}

void session_log_abandoned(struct session *s, struct session_plan *plan)
{
	const struct session_message *m = &s->message;
	bool broken = s->transaction == SESSION_MAIL_BROKEN || s->chunk_failed;

	if (s->state == SESSION_FINAL)
		s->message.unknown = true;
	if (broken || (m->rcpts_ok == 0 && m->code != 0))
		session_end_message(s, plan, m->stage, m->class, m->code);
	else
		session_end_message(s, plan, stage_of(s->state), BUSY_OK, 0);
}

void session_abandon(struct session *s, struct session_plan *plan)
{
	session_part(s, plan);
	session_log_abandoned(s, plan);
}

static void close_with(struct session *s, struct session_plan *plan,
		       enum session_do how, enum stats_close reason)
{
	bool mail = s->state == SESSION_MAIL ||
		    (s->state == SESSION_BINDING && !s->binding_auth &&
		     !session_is_tcp(s));

	if (s->transaction != SESSION_NO_MAIL || mail)
		session_abandon(s, plan);
	else
		session_part(s, plan);
	session_forget_auth(s);
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
	if (s->clearing)
		return; /* the turn comes with the reply */
	if (s->client_gone) {
		session_finish(s, plan, s->reason);
	} else if (s->eof) {
		session_finish(s, plan, STATS_CLOSE_CLIENT_CLOSED);
	} else if (session_is_orphaned(s)) {
		session_say(plan, SESSION_TEXT_ORPHANED);
		session_finish(s, plan, STATS_CLOSE_BACKEND_LOST);
	} else if (env->draining && s->transaction != SESSION_MAIL_OPEN) {
		session_say(plan, SESSION_TEXT_DRAIN);
		session_finish(s, plan, STATS_CLOSE_DRAIN);
	} else {
		session_await_command(s, env);
	}
}

/* Back to commands. */
void session_next(struct session *s, const struct session_env *env,
		  struct session_plan *plan)
{
	s->state = SESSION_COMMAND;
	s->swallow = false;
	s->note_len = 0;
	session_turn(s, env, plan);
}

void session_spare_envelope(struct session *s, const struct session_env *env)
{
	/* RCPTs, and DATA. */
	s->spared = env->config->admission.max_recipients + 1;
}

bool session_count_error(struct session *s, const struct session_env *env)
{
	s->errors++;
	stats_add(&env->stats->errors, 1);
	if (s->ticket.held)
		admission_error(env->admission, &s->ticket);
	return s->errors <= env->config->admission.max_errors;
}

void session_rest(struct session *s, const struct session_env *env)
{
	int64_t tarpit_ms = env->config->admission.tarpit_ms;

	if (tarpit_ms == 0)
		return;
	stats_add(&env->stats->tarpitted, 1);
	s->resting = true;
	session_set_deadline(s, env, env->now_ms + tarpit_ms);
}

/*
 * An error of the client's own making.  Costs it one of max_errors, and rest
 * if there is a tarpit.
 */
void session_error(struct session *s, const struct session_env *env,
		   struct session_plan *plan, const char *text)
{
	if (!session_count_error(s, env)) {
		session_say(plan, SESSION_TEXT_ERRORS);
		session_finish(s, plan, STATS_CLOSE_ERRORS);
		return;
	}
	session_say(plan, text);
	session_rest(s, env);
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
	session_next(s, env, plan);
}

static void admitted(struct session *s, const struct session_env *env,
		     struct session_plan *plan)
{
	if (s->state != SESSION_GREETING)
		return;
	if (session_is_tcp(s)) {
		session_tcp_open(s, env, plan);
		return;
	}
	if (s->listener->greeting_delay_ms == 0) {
		greet(s, env, plan);
		return;
	}
	session_set_deadline(s, env,
			     env->now_ms + s->listener->greeting_delay_ms);
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

/* It is none at all.  False: replies are due before. */
static bool refuse_line(struct session *s, const struct session_env *env,
			struct session_plan *plan, const char *text)
{
	if (s->due > 0)
		return false;
	if (s->state == SESSION_AUTH)
		session_auth_broken(s, env, plan, text);
	else
		session_error(s, env, plan, text);
	return true;
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
		if (s->state == SESSION_AUTH) {
			session_auth_line(s, env, line->text, line->len, plan);
			return true;
		}
		return session_command(s, env, line->text, line->len, more,
				       plan);
	case SMTP_SCAN_BAD:
		return refuse_line(s, env, plan,
				   "500 5.5.2 Bare CR, bare LF or NUL in a "
				   "command\r\n");
	case SMTP_SCAN_LONG:
		return refuse_line(s, env, plan, "500 5.5.2 Line too long\r\n");
	case SMTP_SCAN_MORE:
		break;
	}
	return false;
}

/* How long the line may be that begins so. */
static size_t max_of(const struct session *s, const char *text, size_t len)
{
	size_t max = s->state == SESSION_AUTH ? (size_t)SMTP_AUTH_LINE_MAX
					      : smtp_line_max(text, len);

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
		s->line, s->line_len, max_of(s, s->line, s->line_len), &line);
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
	enum smtp_scan found = smtp_line_scan(
		ev->data, ev->len, max_of(s, ev->data, ev->len), &line);

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
	if (s->state == SESSION_COMMAND &&
	    smtp_line_is_binary(ev->data, ev->len)) {
		if (s->due > 0)
			return;
		plan->consumed = ev->len;
		session_foreign(s, env, plan);
		return;
	}
	line_octets(s, env, ev, plan);
}

/* ---- behind MAIL ---- */

static bool may_look_ahead(const struct session *s)
{
	return s->pipelining && !s->ahead_data && !s->authed;
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
	if (smtp_line_scan(text, len, max_of(s, text, len), &line) !=
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
		if (ev->len > 0 && !session_is_tcp(s))
			early_talk(s, env, plan);
		return;
	case SESSION_COMMAND:
		command_octets(s, env, ev, plan);
		/* A step that neither acts nor consumes has to wait; one of a
		 * BDAT that waited and was then refused has not. */
		if (s->state == SESSION_CHUNK && plan->count == 0 &&
		    plan->consumed == 0)
			session_chunk_octets(s, env, ev, plan);
		/* What came in the clear behind STARTTLS may be anybody's:
		 * it dies here (RFC 3207, section 4.2). */
		if (s->state == SESSION_HANDSHAKE)
			plan->consumed = ev->len;
		return;
	case SESSION_AUTH:
		if (s->due == 0)
			command_octets(s, env, ev, plan);
		return;
	case SESSION_HANDSHAKE:
		plan->consumed = ev->len;
		return;
	case SESSION_DATA:
		if (ev->len > 0)
			s->premature = true;
		return;
	case SESSION_BODY:
		session_body_octets(s, env, ev, plan);
		return;
	case SESSION_CHUNK:
		session_chunk_octets(s, env, ev, plan);
		return;
	case SESSION_CLOSED:
		plan->consumed = ev->len;
		return;
	case SESSION_MAIL:
		look_ahead(s, env, ev, plan);
		return;
	case SESSION_BINDING:
	case SESSION_HANDOVER:
	case SESSION_FINAL:
	case SESSION_RELAY:
	case SESSION_STATES:
		return;
	}
}

bool session_is_binding(const struct session *s)
{
	return s->state == SESSION_BINDING ||
	       (s->state == SESSION_HANDOVER && !s->bound);
}

bool session_wants(const struct session *s)
{
	switch (s->state) {
	case SESSION_GREETING:
		return s->listener->early_talkers != CONFIG_EARLY_OFF &&
		       !session_is_tcp(s);
	case SESSION_COMMAND:
		return !s->resting;
	case SESSION_AUTH:
		return s->due == 0;
	case SESSION_DATA:
		return !s->premature;
	case SESSION_MAIL:
		return may_look_ahead(s);
	case SESSION_BODY:
		return session_counts_on(s);
	case SESSION_CHUNK:
	case SESSION_CLOSED:
		return true;
	case SESSION_HANDSHAKE:
	case SESSION_BINDING:
	case SESSION_HANDOVER:
	case SESSION_FINAL:
	case SESSION_RELAY:
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
		s->client_gone = reason != STATS_CLOSE_CLIENT_CLOSED;
		s->reason = reason; /* for when it ends */
		return;
	case SESSION_HANDOVER:
		if (s->whole && reason == STATS_CLOSE_CLIENT_CLOSED) {
			s->eof = true;
			return;
		}
		/* No backend has any of it, or not all. */
		stats_add(&env->stats->messages_aborted, 1);
		abort_session(s, plan, reason);
		return;
	case SESSION_BODY:
	case SESSION_CHUNK:
		if (s->transaction != SESSION_NO_MAIL)
			stats_add(&env->stats->messages_aborted, 1);
		abort_session(s, plan, reason);
		return;
	case SESSION_GREETING:
	case SESSION_HANDSHAKE:
	case SESSION_COMMAND:
	case SESSION_BINDING:
	case SESSION_AUTH:
	case SESSION_MAIL:
	case SESSION_DATA:
		if (reason == STATS_CLOSE_CLIENT_CLOSED)
			session_finish(s, plan, reason);
		else
			abort_session(s, plan, reason);
		return;
	case SESSION_RELAY:
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

/* The slot is not to be held any longer. */
static bool park_is_due(const struct session *s, const struct session_env *env)
{
	return s->state == SESSION_BODY && s->holding && s->bound &&
	       env->now_ms >= session_slot_ms(s);
}

bool session_defer(struct session *s, const struct session_env *env)
{
	if (s->state != SESSION_BODY && s->state != SESSION_CHUNK)
		return false;
	if (session_time_is_up(s, env) || park_is_due(s, env))
		return false;
	session_await_body(s, env);
	return true;
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
		session_await_command(s, env);
		return;
	}
	if (park_is_due(s, env) && reason == STATS_CLOSE_CLIENT_TIMEOUT) {
		session_park(s, env, plan);
		return;
	}
	switch (s->state) {
	case SESSION_GREETING:
		greet(s, env, plan);
		return;
	case SESSION_BINDING:
		session_add(plan, SESSION_DO_QUIT);
		session_no_backend(s, env, plan, BUSY_STAGE_TCP, BUSY_MAYBE);
		return;
	case SESSION_HANDOVER:
		if (session_is_binding(s)) {
			session_add(plan, SESSION_DO_QUIT);
			session_no_backend(s, env, plan, BUSY_STAGE_TCP,
					   BUSY_MAYBE);
			return;
		}
		s->deadline_ms = INT64_MAX; /* the backend's time runs */
		return;
	case SESSION_HANDSHAKE:
		/* It understands nothing now. */
		abort_session(s, plan,
			      reason == STATS_CLOSE_SESSION_TIME
				      ? reason
				      : STATS_CLOSE_TLS);
		return;
	case SESSION_COMMAND:
	case SESSION_AUTH:
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
	case SESSION_RELAY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		s->deadline_ms = INT64_MAX; /* the backend's time runs */
		return;
	}
}

/* ---- all events ---- */

static void drain(struct session *s, struct session_plan *plan)
{
	bool idle = s->state == SESSION_GREETING ||
		    (s->state == SESSION_BINDING && session_is_tcp(s)) ||
		    (s->state == SESSION_COMMAND &&
		     s->transaction != SESSION_MAIL_OPEN);

	if (!idle || s->clearing)
		return;
	if (!session_is_deaf(s))
		session_say(plan, SESSION_TEXT_DRAIN);
	session_finish(s, plan, STATS_CLOSE_DRAIN);
}

static void refused(struct session *s, const struct session_event *ev,
		    struct session_plan *plan)
{
	struct session_act *act;

	if (s->state != SESSION_GREETING)
		return;
	if (!session_is_deaf(s)) {
		act = session_add(plan, SESSION_DO_SAY);
		act->text = ev->data;
		act->len = ev->len;
	}
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
	case SESSION_IN_SECURED:
		session_secure(s, env, plan);
		return;
	case SESSION_IN_INSECURE:
		client_ended(s, env, plan, STATS_CLOSE_TLS);
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
		session_bound(s, env, ev, plan);
		return;
	case SESSION_IN_UNBOUND:
		session_unbound(s, env, ev, plan);
		return;
	case SESSION_IN_REPLY:
		session_replied(s, env, ev, plan);
		return;
	case SESSION_IN_EARLY:
		session_early(s, env, ev, plan);
		return;
	case SESSION_IN_LOST:
		session_lost(s, env, ev, plan);
		return;
	case SESSION_IN_CROWDED:
		if (env->now_ms >= session_park_ms(s))
			session_park(s, env, plan);
		return;
	case SESSION_IN_DRAIN:
		drain(s, plan);
		return;
	}
}
