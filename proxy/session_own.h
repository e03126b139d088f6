#ifndef PROXY_SESSION_OWN_H
#define PROXY_SESSION_OWN_H

#include "proxy/session.h"

/*
 * What session.c and session_command.c share; nobody else includes it.
 */

#define SESSION_TEXT_DRAIN "421 4.3.2 Service shutting down\r\n"

/* Append an act.  The caller fills in what it needs. */
struct session_act *session_add(struct session_plan *plan,
				enum session_do what);

/* Say a NUL-terminated reply, CRLF included, that outlives the plan. */
void session_say(struct session_plan *plan, const char *text);

/* An error reply of our own: counted, and perhaps the last one. */
void session_error(struct session *s, const struct session_env *env,
		   struct session_plan *plan, const char *text);

/* The client's turn: its time runs from now. */
void session_await(struct session *s, const struct session_env *env);

/* Leave the backend, without a finished message. */
void session_part(struct session *s, struct session_plan *plan);

/* Log what became of the transaction. */
void session_end_message(struct session *s, struct session_plan *plan,
			 enum busy_stage stage, enum busy_class class,
			 unsigned code);

/* Close in good order. */
void session_finish(struct session *s, struct session_plan *plan,
		    enum stats_close reason);

/* Ask for a backend; s->mail, s->need and s->binding_ms are set. */
void session_bind(struct session *s, const struct session_env *env,
		  struct session_plan *plan);

/* A chunk's octets are all gone by. */
void session_chunk_done(struct session *s, const struct session_env *env,
			struct session_plan *plan);

/* The largest message that this session may send; 0: any. */
uint64_t session_size_limit(const struct session *s,
			    const struct session_env *env);

/*
 * Act on one command line.  more: octets stand behind it already.  Returns
 * false, and does nothing, if it has to wait for replies that are due.
 */
bool session_command(struct session *s, const struct session_env *env,
		     const char *text, size_t len, bool more,
		     struct session_plan *plan);

#endif
