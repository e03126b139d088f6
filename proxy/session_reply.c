#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

/*
 * The backend's side: one is found, replies or is lost, and what that means
 * for the client.
 */

/* ---- backends come and go ---- */

bool session_is_obeyed(const struct session_event *ev)
{
	return ev->code == 421 &&
	       (ev->class == BUSY_SESSION || ev->class == BUSY_POLICY);
}

/* What the client reads for the backend's code: we live on. */
unsigned session_code_for_client(const struct session_event *ev)
{
	return ev->code == 421 && !session_is_obeyed(ev) ? 451 : ev->code;
}

unsigned session_code_of(const char *reply)
{
	unsigned code = 0;

	for (unsigned i = 0; i < 3; i++)
		code = code * 10 + (unsigned)(reply[i] - '0');
	return code;
}

void session_no_backend(struct session *s, const struct session_env *env,
			struct session_plan *plan, enum busy_stage stage,
			enum busy_class class)
{
	const char *text = "451 4.3.2 All mail servers are busy, please "
			   "try again later\r\n";

	if (class == BUSY_MISCONF && env->offer_size > 0 &&
	    s->size_said > env->offer_size)
		text = "552 5.3.4 Message size exceeds the limit\r\n";
	else if (s->note_len == 0) /* else the client reads what is noted */
		stats_add(&env->stats->unavailable, 1);
	if (s->state == SESSION_HANDOVER) {
		session_handover_failed(s, env, plan, stage, class, text);
		return;
	}
	if (session_is_tcp(s)) {
		session_tcp_failed(s, plan);
		return;
	}
	if (s->binding_auth) {
		session_auth_failed(s, env, plan);
		return;
	}
	session_say(plan, text);
	session_spare_envelope(s, env);
	session_end_message(s, plan, stage, class, session_code_of(text));
	session_next(s, env, plan);
}

/* How long a session may wait in the room for a slot. */
static int64_t room_wait_ms(const struct session_env *env)
{
	const struct config_room *room = &env->config->room;

	return room->size > 0 ? room->wait_ms : 0;
}

static void bind(struct session *s, const struct session_env *env,
		 struct session_plan *plan)
{
	if (s->state != SESSION_HANDOVER) {
		s->state = SESSION_BINDING;
		s->unheld = false;
	}
	s->afresh = s->binds == 0;
	s->binds++;
	s->tries++;
	s->message.tries++;
	s->deadline_ms = s->binding_ms + env->config->farm.budget_ms +
			 room_wait_ms(env);
	session_add(plan, SESSION_DO_BIND);
}

void session_seek(struct session *s, const struct session_env *env,
		  struct session_plan *plan, bool afresh)
{
	s->binding_ms = env->now_ms;
	s->tries = 0;
	s->binds = afresh ? 0 : 1;
	bind(s, env, plan);
}

/* Nobody there takes us now, which says nothing about the next moment. */
static bool is_about_slots(enum busy_class class)
{
	return busy_is_about_slots(class) || class == BUSY_DRAIN;
}

static bool may_try_until(const struct session *s,
			  const struct session_env *env, int64_t until_ms)
{
	return s->tries < env->config->farm.tries &&
	       s->binds < SESSION_BINDS_MAX && env->now_ms < until_ms;
}

static bool may_try_another(const struct session *s,
			    const struct session_env *env)
{
	return may_try_until(s, env,
			     s->binding_ms + env->config->farm.budget_ms);
}

static void bind_another(struct session *s, const struct session_env *env,
			 struct session_plan *plan)
{
	stats_add(&env->stats->failovers, 1);
	bind(s, env, plan);
}

void session_try_another(struct session *s, const struct session_env *env,
			 struct session_plan *plan, enum busy_stage stage,
			 enum busy_class class)
{
	if (may_try_another(s, env))
		bind_another(s, env, plan);
	else
		session_no_backend(s, env, plan, stage, class);
}

/*
 * Refused before MAIL.  If that is about slots it is none of [farm] tries: as
 * long as one may come free, the client need not hear of it.  Unless weir only
 * observes: then it is a failure like others.
 */
static void try_after_refusal(struct session *s, const struct session_env *env,
			      const struct session_event *ev,
			      struct session_plan *plan)
{
	int64_t for_ms = env->config->farm.budget_ms;

	if (!is_about_slots(ev->class) || env->config->farm.observe) {
		session_try_another(s, env, plan, ev->stage, ev->class);
		return;
	}
	s->tries--;
	if (for_ms < room_wait_ms(env))
		for_ms = room_wait_ms(env);
	if (may_try_until(s, env, s->binding_ms + for_ms))
		bind_another(s, env, plan);
	else
		session_no_backend(s, env, plan, ev->stage, ev->class);
}

void session_say_mail(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	struct session_act *act = session_add(plan, SESSION_DO_COMMAND);

	act->stage = BUSY_STAGE_MAIL;
	act->text = s->mail;
	act->len = s->mail_len;
	s->state = SESSION_MAIL;
	s->deadline_ms = INT64_MAX;
	s->due = 1;
	s->trace_due = s->trace_len > 0;
	if (s->message.bound_ms == 0)
		s->transactions++;
	s->message.bound_ms = env->now_ms;
}

void session_bound(struct session *s, const struct session_env *env,
		   const struct session_event *ev, struct session_plan *plan)
{
	if (!session_is_binding(s))
		return;
	s->bound = true;
	s->reused = ev->reused;
	s->pipelining = ev->pipelining;
	s->ext = ev->ext;
	s->trace_len = ev->trace_len;
	s->trace_due = ev->trace_len > 0;
	if ((s->need & ~s->ext) || (s->need_auth & ~ev->auth)) {
		/* It offers less than its probes said. */
		session_add(plan, SESSION_DO_QUIT);
		s->bound = false;
		session_try_another(s, env, plan, BUSY_STAGE_EHLO,
				    BUSY_MISCONF);
		return;
	}
	assert(s->ahead == 0);
	if (session_is_tcp(s)) {
		session_tcp_bound(s, env, plan);
		return;
	}
	if (s->state == SESSION_HANDOVER) {
		session_replay(s, env, plan);
		return;
	}
	if (s->binding_auth)
		session_auth_bound(s, plan);
	else
		session_say_mail(s, env, plan);
}

/* A reply that is given to the client though no connection is left of it. */
static void pass_text(struct session *s, const struct session_env *env,
		      const struct session_event *ev, struct session_plan *plan)
{
	unsigned code = session_code_for_client(ev);
	struct session_act *act = session_add(plan, SESSION_DO_SAY);
	int n = snprintf(plan->scratch, sizeof(plan->scratch), "%03u %.*s\r\n",
			 code, (int)(ev->len < 480 ? ev->len : 480), ev->data);

	act->text = plan->scratch;
	act->len = (size_t)n;
	if (session_is_tcp(s)) {
		session_finish(s, plan, STATS_CLOSE_BACKEND_CLOSED);
		return;
	}
	session_spare_envelope(s, env);
	session_end_message(s, plan, ev->stage, ev->class, code);
	if (session_is_obeyed(ev)) {
		s->state = SESSION_COMMAND;
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
	} else {
		session_next(s, env, plan);
	}
}

void session_unbound(struct session *s, const struct session_env *env,
		     const struct session_event *ev, struct session_plan *plan)
{
	bool hide = busy_within(busy_actions(ev->class)->hide, ev->stage);

	if (!session_is_binding(s))
		return;
	if (ev->more)
		try_after_refusal(s, env, ev, plan);
	else if (ev->len > 0 && ev->code >= 400 && !hide &&
		 s->state == SESSION_BINDING && !s->binding_auth)
		pass_text(s, env, ev, plan);
	else
		session_no_backend(s, env, plan, ev->stage, ev->class);
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
	session_next(s, env, plan);
}

/* In the middle of a body: the client reads at its end that it is lost. */
static void refuse_rest(struct session *s, const struct session_env *env,
			struct session_plan *plan, enum busy_class class)
{
	session_refuse_body(s, plan, class, SESSION_TEXT_LOST);
	session_resume_body(s, env);
}

/* Between commands, or in the middle of some. */
static void lose_command(struct session *s, const struct session_env *env,
			 enum busy_stage stage, enum busy_class class,
			 struct session_plan *plan)
{
	if (s->clearing) {
		s->clearing = false;
		s->due = 0;
	}
	answer_due(s, plan, SESSION_TEXT_LOST);
	if (s->transaction != SESSION_NO_MAIL)
		break_transaction(s, stage, class, 451);
	session_next(s, env, plan);
}

/* While MAIL's reply is due. */
static void lose_mail(struct session *s, const struct session_env *env,
		      enum busy_class class, struct session_plan *plan)
{
	s->due = 0;
	session_forget_ahead(s);
	if (s->authed) { /* nobody else will do: 421 answers it */
		session_end_message(s, plan, BUSY_STAGE_MAIL, class, 421);
		session_next(s, env, plan);
		return;
	}
	if (s->reused) { /* it may just have come to its end */
		s->tries--;
		s->message.tries--;
	}
	session_try_another(s, env, plan, BUSY_STAGE_MAIL, class);
}

/* There is no connection to a backend any more. */
static void lose(struct session *s, const struct session_env *env,
		 enum busy_stage stage, enum busy_class class,
		 struct session_plan *plan)
{
	s->bound = false;
	switch (s->state) {
	case SESSION_MAIL:
		lose_mail(s, env, class, plan);
		return;
	case SESSION_AUTH:
		session_auth_lost(s, env, plan, class);
		return;
	case SESSION_COMMAND:
		lose_command(s, env, stage, class, plan);
		return;
	case SESSION_DATA:
		if (s->own_data)
			s->due++;
		answer_due(s, plan, SESSION_TEXT_LOST);
		session_end_message(s, plan, BUSY_STAGE_DATA, class, 451);
		if (s->premature)
			session_out_of_step(s, plan);
		else
			session_next(s, env, plan);
		return;
	case SESSION_BODY:
		if (s->holding) /* it had no more than the envelope */
			session_set_body_deadline(s, env);
		else
			refuse_rest(s, env, plan, class);
		return;
	case SESSION_CHUNK:
		if (s->swallow) {
			/* Refused by ourselves: that is what counts. */
			if (s->transaction != SESSION_NO_MAIL)
				s->transaction = SESSION_MAIL_BROKEN;
			return;
		}
		answer_chunks(s, plan, SESSION_TEXT_LOST);
		session_refuse_body(s, plan, class, SESSION_TEXT_LOST);
		break_transaction(s, BUSY_STAGE_EOD, class, 451);
		return;
	case SESSION_HANDOVER:
		s->due = 0;
		session_handover_lost(s, env, plan, stage, class);
		return;
	case SESSION_FINAL:
		if (s->counting)
			s->due = 1; /* the chunks' replies are nobody's */
		if (s->counting && s->chunk_failed)
			session_end_noted(s, env, plan);
		else
			lose_final(s, env, class, plan);
		return;
	case SESSION_GREETING:
	case SESSION_HANDSHAKE:
	case SESSION_BINDING:
	case SESSION_RELAY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return;
	}
}

void session_lost(struct session *s, const struct session_env *env,
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
	unsigned code = session_code_for_client(ev);

	relay(plan, code == ev->code ? 0 : code);
	if (!session_is_obeyed(ev))
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
		    !open && !s->authed;

	if (s->ahead > 0) {
		session_part(s, plan); /* it has more to answer */
		return;
	}
	if (s->authed && ev->code != 421) {
		if (open)
			session_clear(s, plan);
		return; /* pinned */
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
		session_next(s, env, plan);
	session_forget_ahead(s);
}

bool session_replace(struct session *s, const struct session_env *env,
		     const struct session_event *ev, struct session_plan *plan)
{
	const struct busy_actions *actions = busy_actions(ev->class);
	bool hide = busy_within(actions->hide, ev->stage);
	bool retry = hide && busy_within(actions->retry, ev->stage) &&
		     may_try_another(s, env);

	/* A connection that served before may have come to its end. */
	if (s->reused && ev->class == BUSY_SESSION) {
		session_part(s, plan);
		s->tries--;
		s->message.tries--;
		if (s->binds < SESSION_BINDS_MAX)
			bind(s, env, plan);
		else
			session_no_backend(s, env, plan, ev->stage, ev->class);
		return true;
	}
	/* Busy is never for ever, whatever the code. */
	if (retry || (hide && (actions->own_reply || ev->code >= 500))) {
		session_part(s, plan);
		session_try_another(s, env, plan, ev->stage, ev->class);
		return true;
	}
	return false;
}

static void mail_replied(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	if (ev->code / 100 == 2) {
		relay(plan, 0);
		s->transaction = SESSION_MAIL_OPEN;
		stats_add(&env->stats->transactions, 1);
		catch_up(s, env, plan);
		return;
	}
	if (!s->authed && session_replace(s, env, ev, plan))
		return;
	if (relay_or_close(s, ev, plan))
		return;
	let_go(s, ev, plan);
	session_spare_envelope(s, env);
	session_end_message(s, plan, BUSY_STAGE_MAIL, ev->class,
			    session_code_for_client(ev));
	session_next(s, env, plan);
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
	session_refuse_body(s, plan, ev->class, SESSION_TEXT_CHUNK_FAILED);
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
	session_stop_body(s, plan, BUSY_STAGE_EOD, ev->class);
	session_note_reply(s, ev);
	break_transaction(s, BUSY_STAGE_EOD, ev->class,
			  session_code_for_client(ev));
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
	if (ev->stage == BUSY_STAGE_RCPT && s->holds)
		session_add(plan, SESSION_DO_MARK)->good = good;
	if (ev->stage == BUSY_STAGE_RCPT && good) {
		s->message.rcpts_ok++;
		stats_add(&env->stats->recipients, 1);
	} else if (!good) {
		s->message.stage = ev->stage;
		s->message.class = ev->class;
		s->message.code = session_code_for_client(ev);
	}
	if (relay_or_close(s, ev, plan))
		return;
	if (ev->code == 421) {
		drop(s, env, ev, plan);
		return;
	}
	if (ev->stage != BUSY_STAGE_RCPT && !good)
		chunk_refused(s, ev, plan);
	if (s->due > 0)
		return;
	if (s->state == SESSION_COMMAND)
		session_next(s, env, plan);
	else if (s->own_data)
		session_own_data(s, env, plan);
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

void session_data_refused(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan)
{
	if (relay_or_close(s, ev, plan))
		return;
	s->state = SESSION_COMMAND;
	if (s->premature || ev->code == 421)
		session_part(s, plan);
	else
		session_leave(s, plan);
	session_end_message(s, plan, BUSY_STAGE_DATA, ev->class,
			    session_code_for_client(ev));
	if (s->premature)
		session_out_of_step(s, plan);
	else
		session_next(s, env, plan);
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
	session_data_refused(s, env, ev, plan);
}

static void final_replied(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan)
{
	bool good = ev->code / 100 == 2;

	if (good && s->chunk_failed) {
		/* It took a message of which it had refused a part. */
		s->chunk_failed = false;
		s->due++;
		drop(s, env, ev, plan);
		return;
	}
	if (s->counting && s->chunk_failed) {
		session_end_noted(s, env, plan);
		return;
	}
	if (good) {
		s->messages++;
		stats_add(&env->stats->messages, 1);
		if (s->counting && s->message.flaws != 0)
			stats_add(&env->stats->messages_counted, 1);
		if (s->client_gone)
			stats_add(&env->stats->messages_unread, 1);
	} else if (session_retry_final(s, env, ev, plan)) {
		return;
	} else {
		stats_add(&env->stats->messages_refused, 1);
	}
	s->state = SESSION_COMMAND;
	if (relay_or_close(s, ev, plan))
		return;
	let_go(s, ev, plan);
	session_end_message(s, plan, BUSY_STAGE_EOD, ev->class,
			    session_code_for_client(ev));
	session_next(s, env, plan);
}

/* The same where a held message is handed over. */
static bool is_in_handover(const struct session *s,
			   const struct session_event *ev)
{
	unsigned digit = ev->code / 100;

	if (s->due == 1)
		return ev->stage == BUSY_STAGE_DATA && digit != 2;
	if (s->due == 1 + s->message.rcpts_ok + 1)
		return ev->stage == BUSY_STAGE_MAIL && digit != 3;
	return ev->stage == BUSY_STAGE_RCPT && digit != 3;
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
		last = last && !s->own_data;
		to_last = BUSY_STAGE_DATA;
		break;
	case SESSION_HANDOVER:
		return is_in_handover(s, ev);
	case SESSION_FINAL:
		to_last = BUSY_STAGE_EOD;
		break;
	case SESSION_CHUNK:
		to_last = s->chunk_last ? BUSY_STAGE_EOD : BUSY_STAGE_DATA;
		break;
	case SESSION_COMMAND:
		if (s->clearing)
			return ev->stage == BUSY_STAGE_IDLE &&
			       ev->code / 100 == 2;
		last = false;
		break;
	case SESSION_AUTH:
		return ev->stage == BUSY_STAGE_AUTH &&
		       (ev->code == 235 || ev->code == 334 || ev->code >= 400);
	case SESSION_BODY:
		return s->counting && ev->stage == BUSY_STAGE_DATA &&
		       ev->code / 100 != 3;
	case SESSION_GREETING:
	case SESSION_HANDSHAKE:
	case SESSION_BINDING:
	case SESSION_RELAY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return false;
	}
	/* "Go on" is said to DATA and nothing else. */
	if (ev->code / 100 == 3)
		return last && s->state == SESSION_DATA &&
		       ev->stage == BUSY_STAGE_DATA;
	if (last)
		return ev->stage == to_last;
	return ev->stage == BUSY_STAGE_RCPT ||
	       (ev->stage == BUSY_STAGE_DATA && s->message.chunked);
}

/* A pinned backend is ready for the next message. */
static void cleared(struct session *s, const struct session_env *env,
		    struct session_plan *plan)
{
	s->clearing = false;
	session_next(s, env, plan);
}

void session_replied(struct session *s, const struct session_env *env,
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
	else if (s->state == SESSION_AUTH)
		session_auth_replied(s, env, ev, plan);
	else if (s->clearing)
		cleared(s, env, plan);
	else if (s->counting && (!last || s->state == SESSION_BODY))
		session_counted_replied(s, env, ev, plan);
	else if (s->state == SESSION_HANDOVER)
		session_handover_replied(s, env, ev, plan);
	else if (s->state == SESSION_DATA && last && !s->own_data)
		data_replied(s, env, ev, plan);
	else if (s->state == SESSION_FINAL && last)
		final_replied(s, env, ev, plan);
	else
		envelope_replied(s, env, ev, plan);
}

/* A backend that speaks without being asked has something to say, or is out
 * of step; either way this connection can serve no more. */
void session_early(struct session *s, const struct session_env *env,
		   const struct session_event *ev, struct session_plan *plan)
{
	if (!s->bound)
		return;
	if (s->state == SESSION_BODY && !s->holding && ev->code >= 400) {
		session_stop_body(s, plan, BUSY_STAGE_EOD, ev->class);
		session_note_reply(s, ev);
		session_resume_body(s, env);
		return;
	}
	if (s->state == SESSION_FINAL && s->whole && ev->code >= 400) {
		session_refused_early(s, env, ev, plan);
		return;
	}
	drop(s, env, ev, plan);
}
