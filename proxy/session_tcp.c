#include <assert.h>

#include "proxy/config.h"
#include "proxy/session_own.h"

/*
 * mode = tcp: a backend is sought as for MAIL, but at once, and what it and
 * the client then say to each other is not the session's.  Nothing of the
 * session's own is said after the backend's greeting, but a last word.
 */

bool session_is_tcp(const struct session *s)
{
	return s->listener->mode == CONFIG_MODE_TCP;
}

void session_tcp_open(struct session *s, const struct session_env *env,
		      struct session_plan *plan)
{
	if (env->draining) {
		session_say(plan, SESSION_TEXT_DRAIN);
		session_finish(s, plan, STATS_CLOSE_DRAIN);
		return;
	}
	session_seek(s, env, plan, true);
}

void session_tcp_bound(struct session *s, const struct session_env *env,
		       struct session_plan *plan)
{
	if (env->draining) {
		session_say(plan, SESSION_TEXT_DRAIN);
		session_finish(s, plan, STATS_CLOSE_DRAIN);
		return;
	}
	s->state = SESSION_RELAY;
	s->deadline_ms = INT64_MAX;
}

void session_tcp_failed(struct session *s, struct session_plan *plan)
{
	session_say(plan, "421 4.3.2 All mail servers are busy, please try "
			  "again later\r\n");
	session_finish(s, plan, STATS_CLOSE_UNAVAILABLE);
}

void session_relay_moved(struct session *s, const struct session_env *env,
			 int64_t wait_ms)
{
	if (s->state == SESSION_RELAY)
		session_set_deadline(s, env, env->now_ms + wait_ms);
}

void session_relay_count(struct session *s, unsigned transactions,
			 unsigned messages)
{
	s->transactions = transactions;
	s->messages = messages;
}

void session_relay_over(struct session *s, struct session_plan *plan,
			enum stats_close reason, const char *text)
{
	assert(s->state == SESSION_RELAY);
	plan->count = 0;
	plan->consumed = 0;
	if (text != NULL)
		session_say(plan, text);
	/* What went to the backend is on its way: it gets all of it. */
	session_add(plan, SESSION_DO_QUIT);
	s->bound = false;
	session_finish(s, plan, reason);
}
