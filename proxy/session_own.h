#ifndef PROXY_SESSION_OWN_H
#define PROXY_SESSION_OWN_H

#include "proxy/session.h"

/*
 * What session.c (greeting, lines, time, ends), session_command.c,
 * session_auth.c, session_body.c, session_hold.c and session_reply.c share;
 * nobody else includes it.
 */

#define SESSION_TEXT_DRAIN  "421 4.3.2 Service shutting down\r\n"
#define SESSION_TEXT_ERRORS "421 4.7.0 Too many errors, closing\r\n"
#define SESSION_TEXT_WHITE  "550 5.6.0 The message begins with white space\r\n"
#define SESSION_TEXT_LOST                                                      \
	"451 4.3.0 The mail server was lost, please try again\r\n"
#define SESSION_TEXT_ORPHANED "421 4.4.2 The mail server was lost\r\n"
#define SESSION_TEXT_NEEDS_TLS                                                 \
	"530 5.7.0 Must issue a STARTTLS command first\r\n"
#define SESSION_TEXT_NOT_IMPLEMENTED "502 5.5.1 Command not implemented\r\n"
#define SESSION_TEXT_CHUNK_FAILED    "503 5.5.1 A chunk before this one failed\r\n"

/* ".\r\n", which no SIZE counts (RFC 1870, section 3). */
enum { SESSION_DATA_END_LEN = 3 };

/* Append an act.  The caller fills in what it needs. */
struct session_act *session_add(struct session_plan *plan,
				enum session_do what);

/* Say a NUL-terminated reply, CRLF included, that outlives the plan. */
void session_say(struct session_plan *plan, const char *text);

/* An error reply of our own: counted, and perhaps the last one. */
void session_error(struct session *s, const struct session_env *env,
		   struct session_plan *plan, const char *text);

/* After an error of the client's: nothing is read for a while. */
void session_rest(struct session *s, const struct session_env *env);

/*
 * MAIL was refused: what its client has pipelined behind it (RFC 2920, section
 * 3.1) is refused as well, and no mistake.
 */
void session_spare_envelope(struct session *s, const struct session_env *env);

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

/* It runs for a line, whatever the state. */
void session_await_command(struct session *s, const struct session_env *env);

/* at_ms, but no later than the session may last. */
void session_set_deadline(struct session *s, const struct session_env *env,
			  int64_t at_ms);

/* Back to commands: the client's turn. */
void session_next(struct session *s, const struct session_env *env,
		  struct session_plan *plan);

/* What was sent behind MAIL is as if it had not been: it waits where it was. */
void session_forget_ahead(struct session *s);

/* More of a body or chunk is awaited. */
void session_await_body(struct session *s, const struct session_env *env);

/* The same, the client's time still running from when it began. */
void session_set_body_deadline(struct session *s,
			       const struct session_env *env);

/* Leave the backend, without a finished message. */
void session_part(struct session *s, struct session_plan *plan);

/* Log what became of the transaction. */
void session_end_message(struct session *s, struct session_plan *plan,
			 enum busy_stage stage, enum busy_class class,
			 unsigned code);

/*
 * The transaction ends without a reply of its own: part from the backend, and
 * log what broke it before, if anything did.  _log_abandoned: only the latter.
 */
void session_abandon(struct session *s, struct session_plan *plan);
void session_log_abandoned(struct session *s, struct session_plan *plan);

/* Close in good order. */
void session_finish(struct session *s, struct session_plan *plan,
		    enum stats_close reason);

/*
 * Begin to look for a backend; s->mail and s->need are set.  In state
 * HANDOVER for what is held, else for MAIL.  afresh: any may be tried.
 */
void session_seek(struct session *s, const struct session_env *env,
		  struct session_plan *plan, bool afresh);

/*
 * The reply that the client awaits says that this backend has no room for it,
 * and another one may be asked, or none is left.  False: it is to be relayed.
 */
bool session_replace(struct session *s, const struct session_env *env,
		     const struct session_event *ev, struct session_plan *plan);

/* Another backend, unseen by the client; or 451, if there may be none. */
void session_try_another(struct session *s, const struct session_env *env,
			 struct session_plan *plan, enum busy_stage stage,
			 enum busy_class class);

/*
 * There is no backend for this message, or for AUTH: 451 or 454, and back to
 * commands.
 */
void session_no_backend(struct session *s, const struct session_env *env,
			struct session_plan *plan, enum busy_stage stage,
			enum busy_class class);

/* The three digits that a reply begins with. */
unsigned session_code_of(const char *reply);

/* The events of the backend's side; see enum session_in. */
void session_bound(struct session *s, const struct session_env *env,
		   const struct session_event *ev, struct session_plan *plan);
void session_unbound(struct session *s, const struct session_env *env,
		     const struct session_event *ev, struct session_plan *plan);
void session_replied(struct session *s, const struct session_env *env,
		     const struct session_event *ev, struct session_plan *plan);
void session_early(struct session *s, const struct session_env *env,
		   const struct session_event *ev, struct session_plan *plan);
void session_lost(struct session *s, const struct session_env *env,
		  const struct session_event *ev, struct session_plan *plan);

/* DATA was answered by 4xx or 5xx: relayed, and the transaction is over. */
void session_data_refused(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan);

/* Is it a 421 about the client?  Then it is passed, and obeyed. */
bool session_is_obeyed(const struct session_event *ev);

/* What the client reads for the backend's code: we live on. */
unsigned session_code_for_client(const struct session_event *ev);

/* OCTETS in state BODY, and in state CHUNK. */
void session_body_octets(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan);
void session_chunk_octets(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan);

/*
 * The rest of this body or chunk goes nowhere, and the backend must not store
 * it.  What the client will read at its end is to be noted by the caller.
 */
void session_stop_body(struct session *s, struct session_plan *plan,
		       enum busy_stage stage, enum busy_class class);

/* Keep the backend's own words until then; the code is that of every line. */
void session_note_reply(struct session *s, const struct session_event *ev);

/* Say what was noted; returns its code. */
unsigned session_say_note(struct session *s, struct session_plan *plan);

/* Both, with a NUL-terminated reply of our own. */
void session_refuse_body(struct session *s, struct session_plan *plan,
			 enum busy_class class, const char *text);

/* What was noted is the message's end, and the client reads it. */
void session_end_noted(struct session *s, const struct session_env *env,
		       struct session_plan *plan);

/* A chunk's octets are all gone by. */
void session_chunk_done(struct session *s, const struct session_env *env,
			struct session_plan *plan);

/* The largest message that this session may send; 0: any. */
uint64_t session_size_limit(const struct session *s,
			    const struct session_env *env);

/* If this backend is still to get the trace field, it gets it now. */
void session_trace(struct session *s, struct session_plan *plan);

/* ---- TLS and AUTH ---- */

/* tls = required, and it is not active yet. */
bool session_needs_tls(const struct session *s);

/* tls = implicit, and the client understands nothing before it is active. */
bool session_is_deaf(const struct session *s);

/* Fill in what EHLO's reply offers: s->offered and what the listener adds. */
void session_offer(struct session *s, const struct session_env *env,
		   struct smtp_ehlo *offer);

/* The reply that refuses it here and now; NULL: none. */
const char *session_starttls_refusal(const struct session *s,
				     const struct smtp_command *cmd);
const char *session_auth_refusal(const struct session *s,
				 const struct smtp_command *cmd);

/* Not refused: begin.  text: AUTH's line, without CRLF. */
void session_starttls(struct session *s, const struct session_env *env,
		      struct session_plan *plan);
void session_auth(struct session *s, const struct session_env *env,
		  const struct smtp_command *cmd, const char *text, size_t len,
		  struct session_plan *plan);

/* SECURED */
void session_secure(struct session *s, const struct session_env *env,
		    struct session_plan *plan);

/* AUTH has a backend, a reply, has lost its backend, cannot have one. */
void session_auth_bound(struct session *s, struct session_plan *plan);
void session_auth_replied(struct session *s, const struct session_env *env,
			  const struct session_event *ev,
			  struct session_plan *plan);
void session_auth_lost(struct session *s, const struct session_env *env,
		       struct session_plan *plan, enum busy_class class);
void session_auth_failed(struct session *s, const struct session_env *env,
			 struct session_plan *plan);

/*
 * The client's line in state AUTH, CRLF behind it; or what came instead of
 * one, and text says why that is the dialogue's end.
 */
void session_auth_line(struct session *s, const struct session_env *env,
		       const char *text, size_t len, struct session_plan *plan);
void session_auth_broken(struct session *s, const struct session_env *env,
			 struct session_plan *plan, const char *text);

/* The dialogue is over: nothing of it stays in memory. */
void session_forget_auth(struct session *s);

/* Pinned, its backend is lost, and nothing has to be said of that first. */
bool session_is_orphaned(const struct session *s);

/*
 * The backend of a pinned session may have an open transaction: RSET.  Its
 * reply is nobody's but ours.
 */
void session_clear(struct session *s, struct session_plan *plan);

/* The transaction is over: clear it, or part from a backend not pinned. */
void session_leave(struct session *s, struct session_plan *plan);

/* Send MAIL to the bound backend. */
void session_say_mail(struct session *s, const struct session_env *env,
		      struct session_plan *plan);

/* ---- mode = tcp ---- */

/* ADMITTED; a backend has greeted; none could be had. */
void session_tcp_open(struct session *s, const struct session_env *env,
		      struct session_plan *plan);
void session_tcp_bound(struct session *s, const struct session_env *env,
		       struct session_plan *plan);
void session_tcp_failed(struct session *s, struct session_plan *plan);

/* ---- bare_newline = bdat ---- */

/* The reply to a chunk that was counted here. */
void session_counted_replied(struct session *s, const struct session_env *env,
			     const struct session_event *ev,
			     struct session_plan *plan);

/* May another chunk of it be sent before a reply comes? */
bool session_counts_on(const struct session *s);

/* If it was the backend's turn in the body, it is the client's again. */
void session_resume_body(struct session *s, const struct session_env *env);

/* ---- slot = body ---- */

/* DATA came, and no reply is due any more: answer it.  Counted, as well. */
void session_own_data(struct session *s, const struct session_env *env,
		      struct session_plan *plan);

/* Holding, and bound: give the slot back. */
void session_park(struct session *s, const struct session_env *env,
		  struct session_plan *plan);

/* When it is to be given back though nobody wants it: body_wait is over. */
int64_t session_slot_ms(const struct session *s);

/* A command that could not be sent before the last reply was read has come. */
void session_note_pace(struct session *s, const struct session_env *env);

/* The last octets of the body are being held; or more than can be came. */
void session_hold_whole(struct session *s, const struct session_env *env,
			struct session_plan *plan);
void session_spill(struct session *s, const struct session_env *env,
		   struct session_plan *plan);

/* HANDOVER: a backend is bound; replies; is lost; cannot be had. */
void session_replay(struct session *s, const struct session_env *env,
		    struct session_plan *plan);
void session_handover_replied(struct session *s, const struct session_env *env,
			      const struct session_event *ev,
			      struct session_plan *plan);
void session_handover_lost(struct session *s, const struct session_env *env,
			   struct session_plan *plan, enum busy_stage stage,
			   enum busy_class class);
/* text: a NUL-terminated 451, unless a backend's own words are noted. */
void session_handover_failed(struct session *s, const struct session_env *env,
			     struct session_plan *plan, enum busy_stage stage,
			     enum busy_class class, const char *text);

/*
 * The final reply is an error.  True: it says busy, and another backend is
 * being asked.
 */
bool session_retry_final(struct session *s, const struct session_env *env,
			 const struct session_event *ev,
			 struct session_plan *plan);

/* It spoke before it can have read the end: a body that is still going out. */
void session_refused_early(struct session *s, const struct session_env *env,
			   const struct session_event *ev,
			   struct session_plan *plan);

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
