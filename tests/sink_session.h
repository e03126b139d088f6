#ifndef TESTS_SINK_SESSION_H
#define TESTS_SINK_SESSION_H

#include "tests/sink.h"

/* One connection to one MTA of weir-sink, and the message that it sends. */

struct sink_identity; /* what XCLIENT said; of sink_xclient.c */

/* Whether TLS is active, or about to be. */
enum sink_secure {
	SINK_CLEAR,
	SINK_AGREED, /* the 220 to STARTTLS is on its way out, in the clear */
	SINK_SHAKING,
	SINK_SECURE,
};

/* The line of an AUTH dialogue that is due next. */
enum sink_login {
	SINK_LOGIN_NONE,
	SINK_LOGIN_PLAIN,
	SINK_LOGIN_USER,
	SINK_LOGIN_PASSWORD,
};

enum sink_state {
	SINK_WAITING, /* no slot: silent, or queued for one */
	SINK_COMMAND,
	SINK_BODY,  /* after 354 */
	SINK_CHUNK, /* in a BDAT chunk */
	SINK_DRAIN, /* the last reply is sent: await the peer's end */
	SINK_DEAD,
};

enum sink_dot { SINK_DOT_TEXT, SINK_DOT_LINE, SINK_DOT_ONE, SINK_DOT_CR };

struct sink_message {
	char queue_id[24];
	char *from;
	char *mail_params;
	char **rcpts;
	char **rcpt_params;
	size_t rcpt_count;
	bool body_begun; /* DATA or BDAT was accepted */
	bool whole;
	uint64_t octets;       /* as sent, dots unstuffed */
	EVP_MD_CTX *all_hash;  /* of every octet; owned, or NULL */
	EVP_MD_CTX *body_hash; /* from the first empty line on */
	uint8_t all_sha[TALLY_SHA_OCTETS];
	uint8_t body_sha[TALLY_SHA_OCTETS];
	bool in_header;
	char field[SINK_ID_MAX + 16]; /* start of a header line */
	size_t field_len;             /* of the line; may exceed field[] */
	char test_id[SINK_ID_MAX];
	size_t test_id_len;
	FILE *file; /* or NULL */
	char *file_path;
};

struct sink_session {
	enum sink_kind kind;
	int fd;
	struct sink_mta *mta;
	struct sink_session *prev, *next; /* in the MTA's list */
	struct sink_session *wait_next;   /* in the MTA's queue, or dead */
	struct heap_node timer;
	int64_t last_ms; /* when the peer was last heard */
	enum sink_state state;
	bool has_slot;
	int64_t slot_since_ms; /* of no meaning without a slot */
	bool peer_ended;       /* epoll saw its FIN */
	bool esmtp;            /* it said EHLO */
	bool helo_done;
	bool closing; /* close when all replies are out */
	bool doomed;  /* die when all replies are out */
	bool said_quit;
	bool skip_line;   /* a line too long: ignore up to its LF */
	bool acked;       /* the reply in out[] is the message's 250 */
	bool rejected;    /* it is another one */
	bool greeted;     /* the greeting is out */
	bool die_in_body; /* this message is to be cut */
	bool held_ready;  /* held[] can be parsed as it is */
	bool turned_away; /* all slots were taken; TLS may come first */
	enum sink_secure secure;
	SSL *tls; /* owned; NULL: SINK_CLEAR or SINK_AGREED */
	enum sink_login login_due;
	char login[SINK_LOGIN_MAX + 1];      /* "": not logged in */
	char login_user[SINK_LOGIN_MAX + 1]; /* of an AUTH dialogue */
	struct sink_identity *identity;      /* owned, or NULL */
	unsigned errors;
	unsigned messages;
	char client[INET6_ADDRSTRLEN + 8];
	char helo[SINK_HELO_MAX + 1];

	char *held; /* input not yet parsed; owned, or NULL */
	size_t held_len;

	char *out; /* replies; owned, or NULL */
	size_t out_len, out_cap;
	size_t out_sent;    /* octets given to the kernel, or to TLS */
	size_t out_release; /* octets that may go now; the rest is paced */
	bool line_paced;    /* pause between lines, not octets */

	enum sink_dot dot;
	bool last_cr;
	uint64_t chunk_size;
	uint64_t chunk_left;
	bool chunk_last;
	bool chunk_ignored;
	struct sink_message *message; /* or NULL */
};

/* --- sink_session.c --- */

/* Accept all that wait at the MTA's listener. */
void sink_session_accept(struct sink_mta *mta);

/* epoll reported events for this session. */
void sink_session_event(struct sink_session *s, uint32_t events);

/* Its timer fired. */
void sink_session_timer(struct sink_session *s);

/* Close it now, with a reset or not. */
void sink_session_kill(struct sink_session *s, enum sink_how how);

/* Slots became free or more: greet those that wait (busy=queue). */
void sink_session_admit_waiting(struct sink_mta *mta);

/* Free the sessions that died in this batch. */
void sink_session_reap(struct sink *sink);

/*
 * Append a reply.  With delay_ms, dribble or line pauses it is paced, and no
 * further command is read until it is out.
 */
void sink_session_say(struct sink_session *s, const char *text, size_t len,
		      int64_t delay_ms);

/*
 * True while no more input may be parsed: a reply is held back, or the reply
 * to a message must reach the kernel first, or the session ends.
 */
bool sink_session_is_stopped(const struct sink_session *s);

/* --- sink_smtp.c --- */

void sink_smtp_greet(struct sink_session *s);
void sink_smtp_refuse(struct sink_session *s);
void sink_smtp_timeout(struct sink_session *s);

/* Parse input.  Returns the octets consumed: all, or up to a pause. */
size_t sink_smtp_input(struct sink_session *s, const char *buf, size_t len);

void sink_smtp_error(struct sink_session *s, enum sink_error error);

/*
 * A reply without its CRLF, whose enhanced code is cut out where the MTA does
 * not offer it.  The first cannot be changed by a rule; the second is a
 * stage's, and true if what was said in the end is positive.
 */
__attribute__((format(printf, 2, 3))) void sink_smtp_say(struct sink_session *s,
							 const char *fmt, ...);
__attribute__((format(printf, 3, 4))) bool sink_smtp_answer(
	struct sink_session *s, enum sink_stage stage, const char *fmt, ...);

/* The client's state before EHLO (RFC 3207, section 4.2). */
void sink_smtp_forget(struct sink_session *s);

/* --- sink_tls.c --- */

/* The command, and a client that starts with the handshake. */
void sink_tls_command(struct sink_session *s, const char *arg, size_t len);
void sink_tls_begin(struct sink_session *s);

/* Go on with the handshake.  False: it takes more octets, or has failed. */
bool sink_tls_shake(struct sink_session *s);

/* As recv(2) and send(2), by TLS if it is active. */
ssize_t sink_tls_recv(struct sink_session *s, char *buf, size_t len);
ssize_t sink_tls_send(struct sink_session *s, const char *buf, size_t len);

/* Members of a JSON object, a comma before each; none if it is not active. */
void sink_tls_print(const struct sink_session *s, FILE *out);

/* --- sink_login.c --- */

void sink_login_command(struct sink_session *s, const char *arg, size_t len);

/* The line that login_due awaits. */
void sink_login_line(struct sink_session *s, const char *line, size_t len);

/* --- sink_xclient.c --- */

void sink_xclient_command(struct sink_session *s, const char *arg, size_t len);

/* A member of a JSON object, or lines of a stored message; or nothing. */
void sink_xclient_print(const struct sink_session *s, FILE *out);
void sink_xclient_store(const struct sink_session *s, FILE *out);
void sink_xclient_free(struct sink_identity **identity);

/* --- sink_message.c --- */

/* A JSON string: octets that are not printable ASCII become \u00XX. */
void sink_message_put_json(FILE *out, const char *text, size_t len);

struct sink_message *sink_message_new(struct sink_session *s, const char *from,
				      size_t from_len, const char *params,
				      size_t params_len);
void sink_message_add_rcpt(struct sink_message *m, const char *rcpt,
			   size_t rcpt_len, const char *params,
			   size_t params_len);

/* The first octet is about to come. */
void sink_message_begin(struct sink_session *s);

/* Content, unstuffed. */
void sink_message_put(struct sink_session *s, const char *buf, size_t len);

/* All content has come. */
void sink_message_complete(struct sink_session *s);

/*
 * Account for the session's message (journal, store, tally), if its body had
 * begun, and forget it.
 */
void sink_message_finish(struct sink_session *s, enum sink_outcome outcome);

struct sink_marks *sink_marks_new(void);
void sink_marks_free(struct sink_marks **marks);
uint64_t sink_marks_distinct(const struct sink_marks *marks);

#endif
