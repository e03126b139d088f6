#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"
#include "proxy/upstream.h"

/*
 * What a client's command lines do.  Each function returns false when the
 * line must wait: having done nothing, until the replies before it are
 * relayed; having put something into the plan, until that is done.
 */

struct saying {
	struct session *s;
	const struct session_env *env;
	struct session_plan *plan;
	const struct smtp_command *cmd;
	const char *text; /* the line, as the client wrote it */
	size_t len;
	bool more; /* octets stand behind it */
};

static void error(const struct saying *c, const char *text)
{
	if (c->s->spared > 0) {
		c->s->spared--;
		session_say(c->plan, text);
		return;
	}
	session_error(c->s, c->env, c->plan, text);
}

/* May another command be sent to the backend now? */
static bool room(const struct session *s)
{
	return s->due < (s->pipelining ? (unsigned)UPSTREAM_PIPELINE_MAX : 1);
}

static void forward(const struct saying *c, enum busy_stage stage)
{
	struct session_act *act = session_add(c->plan, SESSION_DO_COMMAND);

	/* The line lies in the event or in s->line, CRLF behind it. */
	act->stage = stage;
	act->text = c->text;
	act->len = c->len + 2;
	act->hold = stage == BUSY_STAGE_RCPT && c->s->holds;
	c->s->deadline_ms = INT64_MAX;
}

/*
 * RSET, EHLO: what was begun is forgotten.  False: a pinned backend has to
 * forget it first.
 */
static bool forget(const struct saying *c)
{
	struct session *s = c->s;

	if (s->transaction == SESSION_NO_MAIL)
		return true;
	if (!s->authed || !s->bound) {
		session_abandon(s, c->plan);
		return true;
	}
	session_log_abandoned(s, c->plan);
	session_clear(s, c->plan);
	return false;
}

/* ---- commands that weir answers itself ---- */

static bool helo(const struct saying *c)
{
	struct session *s = c->s;
	struct session_plan *plan = c->plan;
	struct smtp_ehlo offer;
	struct session_act *act;
	size_t n;

	if (!forget(c))
		return false;
	session_note_pace(s, c->env);
	s->helo_len = (uint16_t)c->cmd->arg_len;
	memcpy(s->helo, c->cmd->arg, c->cmd->arg_len);
	s->esmtp = c->cmd->verb == SMTP_VERB_EHLO;
	s->offered = 0;
	s->offered_auth = 0;
	if (s->esmtp) {
		/* No SIZE unless each backend takes the parameter. */
		s->offered = c->env->offer_ext & SMTP_EXT_RELAYED;
		/* Chunks go on as they come: they cannot be held. */
		if (s->listener->slot == CONFIG_SLOT_BODY)
			s->offered &= ~(unsigned)SMTP_EXT_CHUNKING;
		if (!(s->offered & SMTP_EXT_CHUNKING))
			s->offered &= ~(unsigned)SMTP_EXT_BINARYMIME;
		session_offer(s, c->env, &offer);
		n = smtp_ehlo_write(plan->scratch, sizeof(plan->scratch),
				    c->env->config->weir.hostname, &offer);
	} else {
		n = (size_t)snprintf(plan->scratch, sizeof(plan->scratch),
				     "250 %s\r\n",
				     c->env->config->weir.hostname);
	}
	act = session_add(plan, SESSION_DO_SAY);
	act->text = plan->scratch;
	act->len = n;
	return true;
}

static bool rset(const struct saying *c)
{
	if (!forget(c))
		return false;
	session_say(c->plan, "250 2.0.0 Ok\r\n");
	return true;
}

static void quit(const struct saying *c)
{
	if (c->s->transaction != SESSION_NO_MAIL)
		session_abandon(c->s, c->plan);
	session_say(c->plan, "221 2.0.0 Bye\r\n");
	session_finish(c->s, c->plan, STATS_CLOSE_QUIT);
}

/* ---- MAIL ---- */

/* What is wrong with this MAIL here and now; NULL: nothing. */
static const char *mail_refusal(const struct saying *c)
{
	const struct smtp_command *cmd = c->cmd;
	const struct session *s = c->s;

	if (session_needs_tls(s))
		return SESSION_TEXT_NEEDS_TLS;
	if (s->helo_len == 0)
		return "503 5.5.1 Say EHLO or HELO first\r\n";
	if (s->transaction == SESSION_MAIL_OPEN)
		return "503 5.5.1 Nested MAIL command\r\n";
	if (cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(cmd->syntax);
	if (cmd->ext & ~s->offered)
		return "555 5.5.4 Parameter not offered\r\n";
	if (cmd->has_8bit && !(cmd->ext & SMTP_EXT_SMTPUTF8))
		return "553 5.6.7 Address needs SMTPUTF8\r\n";
	return NULL;
}

/* Nothing speaks against this MAIL: note what it says. */
static void begin_message(const struct saying *c)
{
	struct session *s = c->s;

	if (s->transactions == 0)
		session_note_pace(s, c->env);
	assert(c->len + 2 <= SESSION_MAIL_MAX);
	memcpy(s->mail, c->text, c->len);
	memcpy(s->mail + c->len, "\r\n", 2);
	s->mail_len = (uint32_t)c->len + 2;
	/* A reload must not change it in the middle of an envelope. */
	s->holds = s->listener->slot == CONFIG_SLOT_BODY && !s->authed;
	s->counts = s->listener->bare_newline == CONFIG_BARE_BDAT &&
		    (!s->authed || (s->ext & SMTP_EXT_CHUNKING));
	s->message = (struct session_message){ .mail_ms = c->env->now_ms };
	s->body_type = c->cmd->body;
	s->size_said = c->cmd->ext & SMTP_EXT_SIZE ? c->cmd->size : 0;
	s->chunk_failed = false;
	s->premature = false;
	s->rcpts_counted = 0;
	/* What was offered may still be used further on. */
	s->need = c->cmd->ext |
		  (s->offered & (SMTP_EXT_CHUNKING | SMTP_EXT_DSN));
	if (s->counts)
		s->need |= SMTP_EXT_CHUNKING;
	s->need_auth = 0;
}

static bool mail(const struct saying *c)
{
	struct session *s = c->s;
	const struct config_admission *limits = &c->env->config->admission;
	const char *refusal = mail_refusal(c);
	uint64_t limit = session_size_limit(s, c->env);

	if (refusal != NULL) {
		error(c, refusal);
		return true;
	}
	if ((c->cmd->ext & SMTP_EXT_SIZE) && limit > 0 &&
	    c->cmd->size > limit) {
		/* RFC 1870, section 6.1: to ask is no mistake. */
		session_say(c->plan,
			    "552 5.3.4 Message size exceeds the limit\r\n");
		session_spare_envelope(s, c->env);
		return true;
	}
	if (s->transaction == SESSION_MAIL_BROKEN) {
		/* It is logged before the next one takes its place. */
		session_abandon(s, c->plan);
		if (!session_is_orphaned(s))
			return false;
	}
	if (session_is_orphaned(s)) {
		session_say(c->plan, SESSION_TEXT_ORPHANED);
		session_finish(s, c->plan, STATS_CLOSE_BACKEND_LOST);
		return true;
	}
	if (limits->max_messages > 0 && s->messages >= limits->max_messages) {
		session_say(c->plan, "421 4.7.0 Too many messages in one "
				     "session\r\n");
		session_finish(s, c->plan, STATS_CLOSE_MESSAGES);
		return true;
	}
	if (!admission_message(c->env->admission, &s->ticket, c->env->now_ms)) {
		stats_add(&c->env->stats->rate_limited, 1);
		session_say(c->plan, "450 4.7.1 Too many messages from your "
				     "network, slow down\r\n");
		session_spare_envelope(s, c->env);
		return true;
	}
	begin_message(c);
	if (s->authed) {
		s->message.tries = 1;
		session_say_mail(s, c->env, c->plan);
	} else {
		session_seek(s, c->env, c->plan, true);
	}
	return true;
}

/* ---- RCPT ---- */

static const char *rcpt_refusal(const struct saying *c)
{
	const struct session *s = c->s;

	if (session_needs_tls(s))
		return SESSION_TEXT_NEEDS_TLS;
	if (s->transaction == SESSION_NO_MAIL)
		return "503 5.5.1 Say MAIL first\r\n";
	if (c->cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(c->cmd->syntax);
	if (c->cmd->ext & ~s->offered)
		return "555 5.5.4 Parameter not offered\r\n";
	if (c->cmd->has_8bit && !(s->need & SMTP_EXT_SMTPUTF8))
		return "553 5.6.7 Address needs SMTPUTF8\r\n";
	if (s->message.chunked)
		return "503 5.5.1 RCPT after BDAT\r\n";
	return NULL;
}

/* Count the message's recipient `at` against the rate, once. */
static bool is_within_rate(const struct saying *c, unsigned at)
{
	struct session *s = c->s;

	if (at < s->rcpts_counted)
		return true;
	if (!admission_recipient(c->env->admission, &s->ticket, c->env->now_ms))
		return false;
	s->rcpts_counted++;
	return true;
}

static bool rcpt(const struct saying *c)
{
	struct session *s = c->s;
	const char *refusal = rcpt_refusal(c);
	const char *later = NULL;

	if (s->message.rcpts >= c->env->config->admission.max_recipients)
		later = "452 4.5.3 Too many recipients\r\n";
	if (s->transaction == SESSION_MAIL_BROKEN) {
		later = "451 4.3.0 The mail server was lost, please try "
			"again\r\n";
	}

	if (refusal != NULL || later != NULL) {
		if (s->due > 0)
			return false;
		if (refusal != NULL)
			error(c, refusal);
		else
			session_say(c->plan, later);
		return true;
	}
	if (!room(s))
		return false;
	if (!is_within_rate(c, s->message.rcpts)) {
		if (s->due > 0)
			return false;
		stats_add(&c->env->stats->rate_limited, 1);
		session_say(c->plan, "450 4.7.1 Too many recipients from your "
				     "network, slow down\r\n");
		return true;
	}
	s->message.rcpts++;
	forward(c, BUSY_STAGE_RCPT);
	s->due++;
	return true;
}

/* ---- DATA and BDAT ---- */

static const char *data_refusal(const struct saying *c)
{
	const struct session *s = c->s;

	if (session_needs_tls(s))
		return SESSION_TEXT_NEEDS_TLS;
	if (s->transaction == SESSION_NO_MAIL)
		return "503 5.5.1 Say MAIL first\r\n";
	if (c->cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(c->cmd->syntax);
	if (s->message.chunked || s->chunk_failed)
		return "503 5.5.1 DATA after BDAT\r\n"; /* RFC 3030, 2 */
	if (s->body_type == SMTP_BODY_BINARYMIME)
		return "503 5.5.1 BINARYMIME needs BDAT\r\n"; /* RFC 3030, 3 */
	if (s->message.rcpts == 0 && s->transaction == SESSION_MAIL_OPEN)
		return "503 5.5.1 Say RCPT first\r\n";
	return NULL;
}

static bool data(const struct saying *c)
{
	struct session *s = c->s;
	const char *refusal = data_refusal(c);

	if (refusal != NULL) {
		if (s->due > 0)
			return false;
		error(c, refusal);
	} else if (s->transaction == SESSION_MAIL_BROKEN) {
		session_say(c->plan, "451 4.3.0 The mail server was lost, "
				     "please try again\r\n");
		session_abandon(s, c->plan);
		refusal = "";
	}
	if (refusal != NULL) {
		/* A body that did not wait must not be run as commands. */
		if (c->more && s->state != SESSION_CLOSED)
			session_out_of_step(s, c->plan);
		return true;
	}
	if (s->holds || s->counts) {
		s->state = SESSION_DATA;
		s->premature = c->more;
		s->own_data = true;
		if (s->due == 0)
			session_own_data(s, c->env, c->plan);
		return true;
	}
	if (!room(s))
		return false;
	forward(c, BUSY_STAGE_DATA);
	s->due++;
	s->state = SESSION_DATA;
	s->premature = c->more;
	return true;
}

static const char *bdat_refusal(const struct saying *c)
{
	const struct session *s = c->s;
	uint64_t limit = s->listener->size;

	if (session_needs_tls(s))
		return SESSION_TEXT_NEEDS_TLS;
	if (c->cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(c->cmd->syntax);
	if (!(s->offered & SMTP_EXT_CHUNKING))
		return "502 5.5.1 CHUNKING was not offered\r\n";
	if (s->transaction == SESSION_NO_MAIL)
		return "503 5.5.1 Say MAIL first\r\n";
	if (s->chunk_failed)
		return SESSION_TEXT_CHUNK_FAILED;
	if (s->transaction == SESSION_MAIL_BROKEN)
		return "451 4.3.0 The mail server was lost, please try "
		       "again\r\n";
	if (s->message.rcpts == 0 || (s->message.rcpts_ok == 0 && s->due == 0))
		return "503 5.5.1 No valid recipients\r\n";
	if (limit > 0 &&
	    (c->cmd->size > limit || s->message.octets > limit - c->cmd->size))
		return "552 5.3.4 Message larger than allowed\r\n";
	if (s->trace_due && c->cmd->size > UINT64_MAX - s->trace_len)
		return "552 5.3.4 Message larger than allowed\r\n";
	return NULL;
}

/*
 * Is this refusal the client's fault?  Not a chunk that was on its way when
 * the one before it failed, nor a message that is too large.
 */
static bool is_fault(const struct session *s, const char *reply)
{
	return reply[0] == '5' && !s->chunk_failed &&
	       memcmp(reply, "552", 3) != 0;
}

/* The chunk's octets come in any case (RFC 3030, section 2): drop them. */
static void swallow_chunk(const struct saying *c, const char *reply)
{
	struct session *s = c->s;

	if (is_fault(s, reply) && !session_count_error(s, c->env))
		reply = SESSION_TEXT_ERRORS;
	s->state = SESSION_CHUNK;
	s->swallow = true;
	s->note_len = (unsigned)strlen(reply);
	/* cmd points into line[] no more. */
	memcpy(s->line, reply, s->note_len);
	if (s->transaction == SESSION_MAIL_OPEN) {
		s->chunk_failed = true;
		s->message.stage = BUSY_STAGE_DATA;
		s->message.class = BUSY_OK;
		s->message.code = session_code_of(reply);
	}
}

/*
 * The trace field that the backend wants belongs to the first chunk: it is
 * announced with the client's octets, and goes ahead of them.
 */
static void forward_chunk(const struct saying *c, enum busy_stage stage)
{
	struct session *s = c->s;
	struct session_act *act;
	int n;

	forward(c, stage);
	if (!s->trace_due)
		return;
	act = &c->plan->acts[c->plan->count - 1];
	n = snprintf(c->plan->scratch, sizeof(c->plan->scratch),
		     "BDAT %" PRIu64 "%s\r\n", c->cmd->size + s->trace_len,
		     s->chunk_last ? " LAST" : "");
	act->text = c->plan->scratch;
	act->len = (size_t)n;
	session_trace(s, c->plan);
}

static bool bdat(const struct saying *c)
{
	struct session *s = c->s;
	const char *refusal = bdat_refusal(c);

	if (s->due > 0 && (refusal != NULL || !c->cmd->size_known))
		return false;
	if (!c->cmd->size_known) {
		/* Where the octets end cannot be told: RFC 3030, section 2. */
		session_say(c->plan, "501 5.5.4 BDAT size is not a number\r\n");
		session_finish(s, c->plan, STATS_CLOSE_LOST_COUNT);
		return true;
	}
	if (refusal == NULL && !room(s))
		return false;
	s->chunk_left = c->cmd->size;
	s->chunk_last = c->cmd->bdat_last;
	if (refusal != NULL) {
		swallow_chunk(c, refusal);
	} else {
		forward_chunk(c,
			      s->chunk_last ? BUSY_STAGE_EOD : BUSY_STAGE_DATA);
		s->due++;
		s->message.chunked = true;
		if (s->message.data_ms == 0)
			s->message.data_ms = c->env->now_ms;
		s->state = SESSION_CHUNK;
		s->swallow = false;
	}
	session_await_body(s, c->env);
	if (s->chunk_left == 0)
		session_chunk_done(s, c->env, c->plan);
	return true;
}

/* ---- all of them ---- */

/* Commands with one fixed answer; NULL: not one of them. */
static const char *fixed_refusal(enum smtp_verb verb)
{
	switch (verb) {
	case SMTP_VERB_EXPN:
	case SMTP_VERB_ETRN:
	case SMTP_VERB_TURN:
		return SESSION_TEXT_NOT_IMPLEMENTED;
	case SMTP_VERB_XCLIENT:
	case SMTP_VERB_XFORWARD:
		return "550 5.7.1 Not from you\r\n";
	case SMTP_VERB_OTHER:
	case SMTP_VERB_EHLO:
	case SMTP_VERB_HELO:
	case SMTP_VERB_MAIL:
	case SMTP_VERB_RCPT:
	case SMTP_VERB_DATA:
	case SMTP_VERB_BDAT:
	case SMTP_VERB_RSET:
	case SMTP_VERB_NOOP:
	case SMTP_VERB_VRFY:
	case SMTP_VERB_HELP:
	case SMTP_VERB_QUIT:
	case SMTP_VERB_STARTTLS:
	case SMTP_VERB_AUTH:
	case SMTP_VERB_PROXY:
	case SMTP_VERB_FOREIGN:
		break;
	}
	return NULL;
}

/* What is wrong with a command that weir answers itself; NULL: nothing. */
static const char *own_refusal(const struct saying *c)
{
	enum smtp_verb verb = c->cmd->verb;
	const char *refusal = fixed_refusal(verb);

	if (session_needs_tls(c->s) &&
	    (verb == SMTP_VERB_AUTH || verb == SMTP_VERB_VRFY))
		return SESSION_TEXT_NEEDS_TLS;
	if (refusal != NULL)
		return refusal;
	if (verb == SMTP_VERB_STARTTLS)
		return session_starttls_refusal(c->s, c->cmd);
	if (verb == SMTP_VERB_AUTH)
		return session_auth_refusal(c->s, c->cmd);
	return smtp_syntax_reply(c->cmd->syntax);
}

/* Returns whether it is done: a pinned backend may have to answer first. */
static bool own_command(const struct saying *c)
{
	const char *refusal = own_refusal(c);

	if (refusal != NULL) {
		error(c, refusal);
		return true;
	}
	if (c->cmd->verb == SMTP_VERB_EHLO || c->cmd->verb == SMTP_VERB_HELO)
		return helo(c);
	if (c->cmd->verb == SMTP_VERB_RSET)
		return rset(c);
	if (c->cmd->verb == SMTP_VERB_STARTTLS) {
		session_starttls(c->s, c->env, c->plan);
	} else if (c->cmd->verb == SMTP_VERB_AUTH) {
		session_auth(c->s, c->env, c->cmd, c->text, c->len, c->plan);
	} else if (c->cmd->verb == SMTP_VERB_NOOP) {
		session_say(c->plan, "250 2.0.0 Ok\r\n");
	} else if (c->cmd->verb == SMTP_VERB_VRFY) {
		session_say(c->plan, "252 2.5.0 Cannot verify, but will take "
				     "mail for it and try\r\n");
	} else if (c->cmd->verb == SMTP_VERB_HELP) {
		session_say(c->plan, "214 2.0.0 See RFC 5321\r\n");
	} else if (c->cmd->verb == SMTP_VERB_QUIT) {
		quit(c);
	} else {
		error(c, "500 5.5.1 Command unknown\r\n");
	}
	return true;
}

bool session_command(struct session *s, const struct session_env *env,
		     const char *text, size_t len, bool more,
		     struct session_plan *plan)
{
	const struct smtp_command cmd = smtp_command_parse(text, len);
	const struct saying c = { s, env, plan, &cmd, text, len, more };
	bool done = true;

	/* Only for the rest of that envelope. */
	if (cmd.verb != SMTP_VERB_RCPT && cmd.verb != SMTP_VERB_DATA)
		s->spared = 0;
	if (cmd.verb == SMTP_VERB_RCPT) {
		done = rcpt(&c);
	} else if (cmd.verb == SMTP_VERB_DATA) {
		done = data(&c);
	} else if (cmd.verb == SMTP_VERB_BDAT) {
		done = bdat(&c);
	} else if (s->due > 0) {
		done = false;
	} else if (cmd.verb == SMTP_VERB_FOREIGN ||
		   cmd.verb == SMTP_VERB_PROXY) {
		session_foreign(s, env, plan);
	} else if (cmd.verb == SMTP_VERB_MAIL) {
		done = mail(&c);
	} else {
		done = own_command(&c);
	}
	if (done) {
		stats_add(&env->stats->commands, 1);
		if (s->state == SESSION_COMMAND && s->due == 0)
			session_turn(s, env, plan);
	}
	return done;
}

/* ---- behind MAIL ---- */

static bool rcpt_ahead(const struct saying *c)
{
	struct session *s = c->s;

	if ((c->cmd->ext & ~s->offered) ||
	    (c->cmd->has_8bit && !(s->need & SMTP_EXT_SMTPUTF8)) ||
	    s->ahead_rcpts >= c->env->config->admission.max_recipients ||
	    !is_within_rate(c, s->ahead_rcpts))
		return false;
	forward(c, BUSY_STAGE_RCPT);
	s->ahead_rcpts++;
	return true;
}

static bool data_ahead(const struct saying *c)
{
	struct session *s = c->s;

	if (s->ahead_rcpts == 0 || s->body_type == SMTP_BODY_BINARYMIME ||
	    s->holds || s->counts)
		return false;
	forward(c, BUSY_STAGE_DATA);
	s->ahead_data = true;
	s->premature = c->more;
	return true;
}

bool session_send_ahead(struct session *s, const struct session_env *env,
			const char *text, size_t len, bool more,
			struct session_plan *plan)
{
	const struct smtp_command cmd = smtp_command_parse(text, len);
	const struct saying c = { s, env, plan, &cmd, text, len, more };

	assert(s->state == SESSION_MAIL);
	assert(!s->ahead_data);
	if (cmd.syntax != SMTP_SYNTAX_OK ||
	    1 + s->ahead_rcpts >= UPSTREAM_PIPELINE_MAX)
		return false;
	if (cmd.verb == SMTP_VERB_RCPT)
		return rcpt_ahead(&c);
	if (cmd.verb == SMTP_VERB_DATA)
		return data_ahead(&c);
	return false;
}
