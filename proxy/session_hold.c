#include <assert.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

/*
 * slot = body: weir says 354 itself, holds the body in memory, and hands it
 * to a backend when it is whole.  Meanwhile the slot may be given back.
 *
 * What the client has read by then binds us: each RCPT that it read 2xx for
 * must be taken, and DATA too, or nothing is delivered at all (promise 1).
 * Until the SEND of the whole body nothing of it was said to anybody, so any
 * other backend may be asked; behind it, none, but for one that said in so
 * many words that it did not take the message (promise 2).
 */

enum {
	/*
	 * While others wait for a slot, a body has two of its client's round
	 * trips, and this, to come.
	 */
	PARK_GRACE_MS = 5,
	PARK_PATIENCE_MS = 100, /* at most, or if they are not known */
	/*
	 * RFC 5321, section 4.5.3.2.6: the client waits ten minutes for its
	 * final reply.  A backend that is busy so late is the last one: the
	 * next may take as long as it took, and more.
	 */
	FINAL_RETRY_MS = 60 * 1000,
};

#define TEXT_GO_ON "354 End data with <CR><LF>.<CR><LF>\r\n"
#define TEXT_CHANGED                                                           \
	"451 4.3.0 The mail server changed its mind about this message, "      \
	"please try again\r\n"

static const char data_line[] = "DATA\r\n";

static void say_data(struct session *s, struct session_plan *plan)
{
	struct session_act *act = session_add(plan, SESSION_DO_COMMAND);

	act->stage = BUSY_STAGE_DATA;
	act->text = data_line;
	act->len = sizeof(data_line) - 1;
	s->due = 1;
	s->deadline_ms = INT64_MAX;
}

/* ---- the slot, while the body comes ---- */

void session_park(struct session *s, const struct session_env *env,
		  struct session_plan *plan)
{
	assert(s->holding);
	assert(s->bound);
	assert(s->due == 0);
	stats_add(&env->stats->parked, 1);
	s->message.parked = true;
	s->bound = false;
	session_add(plan, SESSION_DO_PARK);
	session_set_body_deadline(s, env);
}

int64_t session_slot_ms(const struct session *s)
{
	return s->message.data_ms + s->listener->body_wait_ms;
}

void session_note_pace(struct session *s, const struct session_env *env)
{
	int64_t ms = env->now_ms - s->waiting_ms;

	if (ms < s->nimble_ms)
		s->nimble_ms = ms;
}

int64_t session_park_ms(const struct session *s)
{
	int64_t patience_ms = PARK_PATIENCE_MS;

	if (s->state != SESSION_BODY || !s->holding || !s->bound)
		return INT64_MAX;
	if (s->nimble_ms < (PARK_PATIENCE_MS - PARK_GRACE_MS) / 2)
		patience_ms = 2 * s->nimble_ms + PARK_GRACE_MS;
	return s->message.data_ms + patience_ms;
}

/* ---- DATA ---- */

void session_own_data(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	assert(s->state == SESSION_DATA);
	assert(s->own_data);
	assert(s->due == 0);
	if (s->message.rcpts_ok == 0 || (s->holds && s->unheld)) {
		/* Its answer is the backend's. */
		s->own_data = false;
		say_data(s, plan);
		return;
	}
	if (s->premature) {
		session_out_of_step(s, plan);
		return;
	}
	s->own_data = false;
	session_say(plan, TEXT_GO_ON);
	s->state = SESSION_BODY;
	s->message.data_ms = env->now_ms;
	smtp_body_begin(&s->body);
	if (s->counts) {
		s->counting = true;
		s->message.chunked = true;
		s->message.counted = true;
		smtp_undot_begin(&s->undot);
		session_await_body(s, env);
		return;
	}
	s->holding = true;
	s->message.held = true;
	session_await_body(s, env);
	if (s->listener->body_wait_ms == 0)
		session_park(s, env, plan);
}

/* ---- what is held goes to a backend ---- */

static void hand_over(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	s->state = SESSION_HANDOVER;
	s->holding = false;
	s->replaying = !s->bound;
	if (s->bound)
		say_data(s, plan);
	else
		session_seek(s, env, plan, true);
}

void session_hold_whole(struct session *s, const struct session_env *env,
			struct session_plan *plan)
{
	uint64_t octets = s->body.octets - SESSION_DATA_END_LEN;

	assert(s->holding);
	assert(s->body.ended);
	s->whole = true;
	/* The next backend must take that many. */
	if (s->size_said < octets)
		s->size_said = octets;
	hand_over(s, env, plan);
}

void session_spill(struct session *s, const struct session_env *env,
		   struct session_plan *plan)
{
	assert(s->holding);
	assert(!s->body.ended);
	stats_add(&env->stats->spilled, 1);
	if (s->size_said < s->body.octets)
		s->size_said = s->body.octets;
	hand_over(s, env, plan);
}

void session_replay(struct session *s, const struct session_env *env,
		    struct session_plan *plan)
{
	assert(s->state == SESSION_HANDOVER);
	assert(s->bound);
	assert(s->message.rcpts_ok > 0);
	if (s->message.replays++ == 0)
		stats_add(&env->stats->replayed, 1);
	s->replaying = true;
	s->due = 1 + s->message.rcpts_ok + 1; /* MAIL, RCPTs, DATA */
	s->deadline_ms = INT64_MAX;
	session_add(plan, SESSION_DO_REPLAY);
}

/* It said 354: all that was promised to the client is true here as well. */
static void send(struct session *s, const struct session_env *env,
		 struct session_plan *plan)
{
	struct session_act *act;

	if (s->trace_due && s->white) {
		/* The backend before this one wanted no field. */
		session_add(plan, SESSION_DO_RESET);
		s->bound = false;
		session_handover_failed(s, env, plan, BUSY_STAGE_EOD, BUSY_OK,
					SESSION_TEXT_WHITE);
		return;
	}
	session_trace(s, plan);
	act = session_add(plan, SESSION_DO_SEND);
	act->stage = s->whole ? BUSY_STAGE_EOD : BUSY_STAGE_IDLE;
	if (s->whole) {
		s->state = SESSION_FINAL;
		s->due = 1;
		s->deadline_ms = INT64_MAX;
		s->message.end_ms = env->now_ms;
	} else {
		s->state = SESSION_BODY;
		session_await_body(s, env);
	}
}

/* ---- and cannot be taken ---- */

void session_handover_failed(struct session *s, const struct session_env *env,
			     struct session_plan *plan, enum busy_stage stage,
			     enum busy_class class, const char *text)
{
	unsigned code = session_code_of(text);

	assert(s->state == SESSION_HANDOVER);
	assert(!s->bound);
	if (!s->whole) {
		/* The client is in the middle of it. */
		s->state = SESSION_BODY;
		session_refuse_body(s, plan, class, text);
		s->message.stage = stage;
		session_await_body(s, env);
		return;
	}
	if (s->note_len > 0) {
		/* What the first one said at the end of the data. */
		code = session_say_note(s, plan);
		stage = s->message.stage;
		class = s->message.class;
	} else {
		session_say(plan, text);
	}
	stats_add(&env->stats->messages_refused, 1);
	session_end_message(s, plan, stage, class, code);
	session_next(s, env, plan);
}

/* Nothing of the body was sent: another one may have it. */
static void elsewhere(struct session *s, const struct session_env *env,
		      struct session_plan *plan, enum busy_stage stage,
		      enum busy_class class)
{
	if (s->bound)
		session_part(s, plan);
	s->due = 0;
	if (s->replaying) {
		session_try_another(s, env, plan, stage, class);
		return;
	}
	stats_add(&env->stats->failovers, 1);
	s->replaying = true;
	session_seek(s, env, plan, false);
}

void session_handover_lost(struct session *s, const struct session_env *env,
			   struct session_plan *plan, enum busy_stage stage,
			   enum busy_class class)
{
	assert(!s->bound);
	if (s->replaying && s->reused) { /* it may just have come to its end */
		s->tries--;
		s->message.tries--;
	}
	elsewhere(s, env, plan, stage, class);
}

/* A verdict on the message, with which no other backend is bothered. */
static bool is_verdict(const struct session_event *ev)
{
	switch (ev->class) {
	case BUSY_POLICY:
	case BUSY_OK:
		return true;
	case BUSY_SICK:
	case BUSY_MISCONF:
	case BUSY_SESSION:
		return ev->code >= 500;
	case BUSY_BUSY:
	case BUSY_MAYBE:
	case BUSY_CAP:
	case BUSY_DRAIN:
	case BUSY_CLASSES:
		break;
	}
	return false;
}

/* The backend that took the envelope from the client itself refuses DATA. */
static void data_refused(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	if (s->whole) {
		stats_add(&env->stats->messages_refused, 1);
		session_data_refused(s, env, ev, plan);
		return;
	}
	session_part(s, plan);
	s->state = SESSION_BODY;
	session_stop_body(s, plan, BUSY_STAGE_DATA, ev->class);
	session_note_reply(s, ev);
	session_await_body(s, env);
}

void session_handover_replied(struct session *s, const struct session_env *env,
			      const struct session_event *ev,
			      struct session_plan *plan)
{
	if (ev->code / 100 == 3) {
		send(s, env, plan);
	} else if (ev->code / 100 == 2) {
		return; /* as it was promised; more are due */
	} else if (!is_verdict(ev)) {
		if (s->reused && s->replaying && ev->class == BUSY_SESSION) {
			s->tries--;
			s->message.tries--;
		}
		elsewhere(s, env, plan, ev->stage, ev->class);
	} else if (s->replaying) {
		/* Worse than what the client has read. */
		session_part(s, plan);
		session_handover_failed(s, env, plan, ev->stage, ev->class,
					TEXT_CHANGED);
	} else {
		data_refused(s, env, ev, plan);
	}
}

/* ---- busy at the end of the data ---- */

bool session_retry_final(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan)
{
	if (env->config->farm.observe)
		return false;
	if (!s->whole || s->message.final_retried || s->client_gone ||
	    ev->class != BUSY_BUSY || ev->code / 100 != 4 ||
	    env->now_ms - s->message.end_ms >= FINAL_RETRY_MS)
		return false;
	stats_add(&env->stats->final_retries, 1);
	s->message.final_retried = true;
	s->message.stage = ev->stage;
	s->message.class = ev->class;
	session_note_reply(s, ev);
	s->state = SESSION_HANDOVER; /* it has answered: part in good order */
	session_part(s, plan);
	s->replaying = true;
	session_seek(s, env, plan, false);
	return true;
}

/*
 * A large body that is held goes out over some time, and the session awaits
 * its reply meanwhile.  One that comes before the end is the backend's word
 * all the same, as in state BODY.
 */
void session_refused_early(struct session *s, const struct session_env *env,
			   const struct session_event *ev,
			   struct session_plan *plan)
{
	unsigned code;

	assert(s->state == SESSION_FINAL);
	session_part(s, plan);
	session_note_reply(s, ev);
	code = session_say_note(s, plan);
	stats_add(&env->stats->messages_refused, 1);
	session_end_message(s, plan, BUSY_STAGE_EOD, ev->class, code);
	if (code == 421) {
		s->state = SESSION_COMMAND;
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
	} else {
		session_next(s, env, plan);
	}
}
