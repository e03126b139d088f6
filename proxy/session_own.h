#ifndef PROXY_SESSION_OWN_H
#define PROXY_SESSION_OWN_H

#include "proxy/session.h"

/*
 * What session.c and session_command.c share; nobody else includes it.
 */

#define SESSION_TEXT_DRAIN        "421 4.3.2 Service shutting down\r\n"
#define SESSION_TEXT_ERRORS       "421 4.7.0 Too many errors, closing\r\n"
#define SESSION_TEXT_CHUNK_FAILED "503 5.5.1 A chunk before this one failed\r\n"

/* Append an act.  The caller fills in what it needs. */
struct session_act *session_add(struct session_plan *plan,
				enum session_do what);

/* Say a NUL-terminated reply, CRLF included, that outlives the plan. */
void session_say(struct session_plan *plan, const char *text);

/* An error reply of our own: counted, and perhaps the last one. */
void session_error(struct session *s, const struct session_env *env,
		   struct session_plan *plan, const char *text);

/* Count it, without a reply.  False: it was one too many. */
bool session_count_error(struct session *s, const struct session_env *env);

/* Another protocol: say so, and close. */
void session_foreign(struct session *s, const struct session_env *env,
		     struct session_plan *plan);

/* Text came behind DATA that is no command and may not be data: close. */
void session_out_of_step(struct session *s, struct session_plan *plan);

/*
 * The client's turn: its time runs from now.  Or the end, if weir shuts down
 * and nothing is begun.
 */
void session_turn(struct session *s, const struct session_env *env,
		  struct session_plan *plan);

/* More of a body or chunk is awaited. */
void session_await_body(struct session *s, const struct session_env *env);

/* Leave the backend, without a finished message. */
void session_part(struct session *s, struct session_plan *plan);

/* Log what became of the transaction. */
void session_end_message(struct session *s, struct session_plan *plan,
			 enum busy_stage stage, enum busy_class class,
			 unsigned code);

/*
 * The transaction ends without a reply of its own: leave the backend, and log
 * what broke it before, if anything did.
 */
void session_abandon(struct session *s, struct session_plan *plan);

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
 * false if it has to wait: for replies that are due, or until the plan is done.
 */
bool session_command(struct session *s, const struct session_env *env,
		     const char *text, size_t len, bool more,
		     struct session_plan *plan);

/*
 * The same for a line that stands behind MAIL, before MAIL is answered: true
 * if it can go to the backend right now.  Nothing is done that the end of
 * this backend would not undo.
 */
bool session_send_ahead(struct session *s, const struct session_env *env,
			const char *text, size_t len, bool more,
			struct session_plan *plan);

#endif
