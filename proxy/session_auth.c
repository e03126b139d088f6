#include <assert.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

/*
 * TLS and AUTH.  Of TLS the session knows when it begins and that it holds;
 * of AUTH, whose turn it is.  What is said in an AUTH dialogue is the
 * client's and the backend's: lines go on as they are, and line[], where they
 * lie for a while, is wiped when it is over.
 */

#define TEXT_AUTH_FAILED                                                       \
	"454 4.7.0 Temporary authentication failure, please try again\r\n"

/* ---- TLS ---- */

bool session_needs_tls(const struct session *s)
{
	return s->listener->tls == CONFIG_TLS_REQUIRED && !s->secured;
}

bool session_is_deaf(const struct session *s)
{
	return s->listener->tls == CONFIG_TLS_IMPLICIT && !s->secured;
}

static bool has_starttls(const struct session *s)
{
	return s->listener->tls == CONFIG_TLS_STARTTLS ||
	       s->listener->tls == CONFIG_TLS_REQUIRED;
}

const char *session_starttls_refusal(const struct session *s,
				     const struct smtp_command *cmd)
{
	if (s->listener->tls == CONFIG_TLS_NONE)
		return SESSION_TEXT_NOT_IMPLEMENTED;
	if (cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(cmd->syntax);
	if (s->secured)
		return "503 5.5.1 TLS is active already\r\n";
	if (s->transaction != SESSION_NO_MAIL)
		return "503 5.5.1 STARTTLS in a mail transaction\r\n";
	if (s->authed)
		return "503 5.5.1 STARTTLS after AUTH\r\n";
	return NULL;
}

void session_starttls(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	assert(s->due == 0);
	assert(!s->bound);
	stats_add(&env->stats->starttls, 1);
	session_say(plan, "220 2.0.0 Ready to start TLS\r\n");
	session_add(plan, SESSION_DO_STARTTLS);
	s->state = SESSION_HANDSHAKE;
	session_set_deadline(s, env,
			     env->now_ms + env->config->timeouts.handshake_ms);
}

void session_secure(struct session *s, const struct session_env *env,
		    struct session_plan *plan)
{
	if (s->state == SESSION_GREETING)
		s->secured = true;
	if (s->state != SESSION_HANDSHAKE)
		return;
	s->secured = true;
	/* What was said in the clear may have been anybody's. */
	s->helo_len = 0;
	s->esmtp = false;
	s->offered = 0;
	s->offered_auth = 0;
	s->spared = 0;
	s->premature = false;
	session_next(s, env, plan);
}

/* ---- what is offered ---- */

static unsigned auth_offer(const struct session *s,
			   const struct session_env *env)
{
	switch (s->listener->auth) {
	case CONFIG_AUTH_NONE:
		break;
	case CONFIG_AUTH_TLS:
		return s->secured ? env->offer_auth : 0;
	case CONFIG_AUTH_ALWAYS:
		return session_needs_tls(s) ? 0 : env->offer_auth;
	}
	return 0;
}

void session_offer(struct session *s, const struct session_env *env,
		   struct smtp_ehlo *offer)
{
	s->offered_auth = auth_offer(s, env);
	if (s->offered_auth != 0)
		s->offered |= SMTP_EXT_AUTH; /* MAIL's parameter, too */
	/* What the one backend that it is tied to has not is not to be had. */
	if (s->authed)
		s->offered &= s->ext;
	*offer = (struct smtp_ehlo){ .ext = s->offered,
				     .auth = s->offered_auth,
				     .size = session_size_limit(s, env) };
	if (has_starttls(s) && !s->secured && !s->authed)
		offer->ext |= SMTP_EXT_STARTTLS;
}

/* ---- AUTH ---- */

const char *session_auth_refusal(const struct session *s,
				 const struct smtp_command *cmd)
{
	bool clear = s->listener->auth == CONFIG_AUTH_TLS && !s->secured;

	if (s->listener->auth == CONFIG_AUTH_NONE ||
	    (clear && !has_starttls(s)))
		return SESSION_TEXT_NOT_IMPLEMENTED;
	if (clear)
		return "538 5.7.11 Encryption required: STARTTLS first\r\n";
	if (s->authed)
		return "503 5.5.1 You are authenticated already\r\n";
	if (s->transaction != SESSION_NO_MAIL)
		return "503 5.5.1 AUTH in a mail transaction\r\n";
	if (!s->esmtp)
		return "503 5.5.1 Say EHLO first\r\n";
	if (s->offered_auth == 0)
		return SESSION_TEXT_NOT_IMPLEMENTED;
	if (cmd->syntax != SMTP_SYNTAX_OK)
		return smtp_syntax_reply(cmd->syntax);
	if (!(cmd->auth & s->offered_auth))
		return "504 5.5.4 Mechanism not offered\r\n";
	return NULL;
}

void session_auth(struct session *s, const struct session_env *env,
		  const struct smtp_command *cmd, const char *text, size_t len,
		  struct session_plan *plan)
{
	if (!admission_login(env->admission, &s->ticket, env->now_ms)) {
		stats_add(&env->stats->logins_limited, 1);
		session_say(plan, "454 4.7.0 Too many failed logins, try "
				  "again later\r\n");
		return;
	}
	s->need_auth = cmd->auth;
	/* It serves the whole session: all that was offered may be used. */
	s->need = s->offered;
	if (s->listener->bare_newline == CONFIG_BARE_BDAT)
		s->need |= SMTP_EXT_CHUNKING;
	s->size_said = 0;
	s->message = (struct session_message){ .mail_ms = env->now_ms };
	/* Another backend may have to read it again. */
	assert(len + 2 <= SESSION_LINE_MAX);
	memmove(s->line, text, len);
	memcpy(s->line + len, "\r\n", 2);
	s->auth_len = (unsigned)len + 2;
	s->binding_auth = true;
	session_seek(s, env, plan, true);
}

static void forward(struct session *s, struct session_plan *plan,
		    const char *text, size_t len)
{
	struct session_act *act = session_add(plan, SESSION_DO_COMMAND);

	act->stage = BUSY_STAGE_AUTH;
	act->secret = true;
	act->text = text;
	act->len = len;
	s->due = 1;
	s->deadline_ms = INT64_MAX;
}

void session_auth_bound(struct session *s, struct session_plan *plan)
{
	assert(s->state == SESSION_BINDING);
	assert(s->auth_len > 0);
	s->state = SESSION_AUTH;
	s->challenged = false;
	s->trace_due = false;
	forward(s, plan, s->line, s->auth_len);
}

void session_forget_auth(struct session *s)
{
	if (s->auth_len == 0)
		return;
	memset(s->line, 0, SESSION_LINE_MAX);
	s->auth_len = 0;
	s->binding_auth = false;
	s->challenged = false;
}

void session_auth_failed(struct session *s, const struct session_env *env,
			 struct session_plan *plan)
{
	assert(!s->bound);
	session_forget_auth(s);
	session_say(plan, TEXT_AUTH_FAILED);
	session_next(s, env, plan);
}

/* ---- the client's part of the dialogue ---- */

void session_auth_line(struct session *s, const struct session_env *env,
		       const char *text, size_t len, struct session_plan *plan)
{
	assert(s->state == SESSION_AUTH);
	assert(s->due == 0);
	if (s->swallow) {
		session_auth_failed(s, env, plan);
	} else if (!smtp_auth_line_fits(text, len)) {
		session_auth_broken(s, env, plan,
				    "501 5.5.2 That is not base64\r\n");
	} else {
		forward(s, plan, text, len + 2);
	}
}

void session_auth_broken(struct session *s, const struct session_env *env,
			 struct session_plan *plan, const char *text)
{
	assert(s->state == SESSION_AUTH);
	assert(s->due == 0);
	session_part(s, plan);
	session_forget_auth(s);
	s->state = SESSION_COMMAND;
	s->swallow = false;
	session_error(s, env, plan, text);
	if (s->state == SESSION_COMMAND)
		session_turn(s, env, plan);
}

/* ---- the backend's ---- */

void session_auth_lost(struct session *s, const struct session_env *env,
		       struct session_plan *plan, enum busy_class class)
{
	assert(s->state == SESSION_AUTH);
	assert(!s->bound);
	if (s->due == 0) {
		s->swallow = true; /* the client is at its line: then 454 */
		return;
	}
	s->due = 0;
	if (s->challenged) {
		session_auth_failed(s, env, plan);
		return;
	}
	if (s->reused) { /* it may just have come to its end */
		s->tries--;
		s->message.tries--;
	}
	session_try_another(s, env, plan, BUSY_STAGE_AUTH, class);
}

/*
 * Does the reply say that the credentials are wrong?  RFC 4954, section 6, and
 * RFC 5248: not these about the dialogue, the mechanism or the encryption.
 */
static bool is_failed_login(unsigned code)
{
	return code >= 520 && code != 530 && code != 534 && code != 538;
}

/* No, for good or for now: the client reads it. */
static void refused(struct session *s, const struct session_env *env,
		    const struct session_event *ev, struct session_plan *plan)
{
	bool obeyed = session_is_obeyed(ev);
	/* The backend goes, weir stays: for now (RFC 4954, section 6). */
	unsigned code = ev->code == 421 && !obeyed ? 454 : 0;

	session_add(plan, SESSION_DO_RELAY)->code = code;
	s->challenged = false; /* it awaits no line of ours */
	session_part(s, plan);
	session_forget_auth(s);
	s->state = SESSION_COMMAND;
	if (is_failed_login(ev->code)) {
		stats_add(&env->stats->logins_failed, 1);
		admission_login_failed(env->admission, &s->ticket, env->now_ms);
	}
	if (obeyed) {
		session_finish(s, plan, STATS_CLOSE_BACKEND_421);
	} else if (ev->code >= 500 && !session_count_error(s, env)) {
		session_say(plan, SESSION_TEXT_ERRORS);
		session_finish(s, plan, STATS_CLOSE_ERRORS);
	} else {
		session_next(s, env, plan);
		if (ev->code >= 500 && s->state == SESSION_COMMAND)
			session_rest(s, env);
	}
}

void session_auth_replied(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan)
{
	assert(s->state == SESSION_AUTH);
	assert(s->due == 0);
	if (ev->code / 100 == 3) {
		session_add(plan, SESSION_DO_RELAY);
		s->challenged = true;
		session_await_command(s, env);
	} else if (ev->code / 100 == 2) {
		session_add(plan, SESSION_DO_RELAY);
		stats_add(&env->stats->logins, 1);
		session_forget_auth(s);
		s->authed = true;
		session_next(s, env, plan);
	} else if (s->challenged || !session_replace(s, env, ev, plan)) {
		refused(s, env, ev, plan);
	}
}

/* ---- pinned ---- */

bool session_is_orphaned(const struct session *s)
{
	return s->authed && !s->bound && s->transaction == SESSION_NO_MAIL;
}

void session_clear(struct session *s, struct session_plan *plan)
{
	static const char rset[] = "RSET\r\n";
	struct session_act *act = session_add(plan, SESSION_DO_COMMAND);

	assert(s->state == SESSION_COMMAND);
	assert(s->authed);
	assert(s->bound);
	assert(s->due == 0);
	act->stage = BUSY_STAGE_IDLE;
	act->text = rset;
	act->len = sizeof(rset) - 1;
	s->clearing = true;
	s->due = 1;
	s->deadline_ms = INT64_MAX;
}

void session_leave(struct session *s, struct session_plan *plan)
{
	if (s->authed && s->bound)
		session_clear(s, plan);
	else
		session_part(s, plan);
}
