#ifndef PROXY_SESSION_H
#define PROXY_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "proxy/admission.h"
#include "proxy/smtp.h"
#include "proxy/stats.h"

/*
 * One client's session as a step function: an event in, a plan out.
 *
 *	GREETING -> COMMAND <-> BINDING -> MAIL -> COMMAND (transaction open)
 *	MAIL -> DATA (which had been sent ahead)
 *	COMMAND -> DATA -> BODY -> FINAL -> COMMAND
 *	COMMAND -> CHUNK (BDAT) -> COMMAND or FINAL
 *	any -> CLOSED
 *
 * and where a listener has slot = body:
 *
 *	COMMAND -> DATA (until no reply is due) -> BODY (held) -> HANDOVER
 *	HANDOVER -> FINAL (all of the body was held) or BODY (the rest of it)
 *	FINAL -> HANDOVER (once, if the first backend was busy)
 *
 * and where it offers TLS or AUTH:
 *
 *	COMMAND -> HANDSHAKE (STARTTLS) -> COMMAND, of which nothing is known
 *	COMMAND -> BINDING (AUTH) -> AUTH -> COMMAND, perhaps as `authed`
 *
 * and where its mode is tcp, it has no more to do than to find a backend:
 *
 *	GREETING -> BINDING -> RELAY
 *
 * A session that is authed is pinned: the backend that said 235 stays bound to
 * the end of the session, MAIL goes to it and to no other, and its loss is the
 * session's end.  Whoever speaks in state AUTH says secrets: they are sent on
 * and nothing else (.secret).
 *
 * The session speaks SMTP with the client by itself until MAIL or AUTH; then
 * it asks for a backend (BIND) and relays.  Two rules keep replies in order
 * (RFC 2920, section 3.2) without any queue of them:
 *
 *  - a command that weir answers itself waits until every reply due from the
 *    backend has been relayed: it is simply not consumed before;
 *  - until MAIL's reply is relayed another backend may take its place.  So
 *    what a client has pipelined behind MAIL is sent ahead, in one burst, but
 *    not consumed: it is still there for the next backend, or for weir's own
 *    answers if MAIL is refused.
 *
 * Promise 1 is one line here: the only 2xx to the end of data are those of
 * SESSION_DO_RELAY with stage EOD.
 *
 * Pure: no I/O, no clock, no allocation.
 */

struct config;
struct config_listener;

enum {
	SESSION_LINE_MAX = SMTP_AUTH_LINE_MAX,
	SESSION_MAIL_MAX = SMTP_PATH_LINE_MAX,
	SESSION_NOTE_MAX = SESSION_LINE_MAX, /* a reply kept for later */
	SESSION_ACTS_MAX = 8,    /* the longest plan any step can make */
	SESSION_TRIED_MAX = 10,  /* [farm] tries, at most */
	SESSION_CHUNKS_MAX = 32, /* of a body counted here, not answered yet */
	SESSION_BINDS_MAX = 32,  /* BINDs in a row, busy refusals included */
};

enum session_state {
	SESSION_GREETING,  /* not greeted yet */
	SESSION_HANDSHAKE, /* STARTTLS was answered: TLS comes next */
	SESSION_COMMAND,   /* reading commands; replies may be due */
	SESSION_BINDING,   /* MAIL, or AUTH, waits for a backend */
	SESSION_AUTH,      /* a dialogue of AUTH: if a reply is due, then of
			     the backend, else the client's line */
	SESSION_MAIL,      /* MAIL was sent to one */
	SESSION_DATA,      /* DATA was sent: 354 or a refusal comes next */
	SESSION_BODY,      /* after 354 */
	SESSION_CHUNK,     /* the octets of a BDAT */
	SESSION_HANDOVER,  /* slot = body: a backend gets what is held */
	SESSION_FINAL,     /* the end of data was sent */
	SESSION_RELAY,     /* mode = tcp: client and backend speak themselves */
	SESSION_CLOSED,
	SESSION_STATES,
};

enum session_transaction {
	SESSION_NO_MAIL,
	SESSION_MAIL_OPEN,   /* a backend said 2xx to MAIL */
	SESSION_MAIL_BROKEN, /* and then was lost: 451 until RSET or MAIL */
};

enum session_in {
	SESSION_IN_ADMITTED,
	SESSION_IN_SECURED,  /* the TLS handshake is done: of STARTTLS, or in
				front of the greeting, before ADMITTED */
	SESSION_IN_INSECURE, /* it failed; or the TLS stream broke, later */
	SESSION_IN_REFUSED,  /* .verdict, or STATS_CLOSE_UNAVAILABLE etc. */
	SESSION_IN_OCTETS,   /* .data, .len; may be none: see session_wants() */
	SESSION_IN_EOF,      /* no octets will follow what was consumed */
	SESSION_IN_GONE,     /* the client's connection broke */
	SESSION_IN_TIMEOUT,  /* session.deadline_ms has come */
	SESSION_IN_BOUND,    /* a backend is ready; .ext, .reused */
	SESSION_IN_UNBOUND,  /* it could not be had: .class, .more, .stage */
	SESSION_IN_REPLY,    /* of the backend: .stage .code .class .reply */
	SESSION_IN_EARLY,    /* one that nothing had asked for; the same */
	SESSION_IN_LOST,     /* the backend's connection is of no more use */
	SESSION_IN_CROWDED,  /* others wait for a slot: if session_park_ms() has
			       come, this one is given back */
	SESSION_IN_DRAIN,    /* weir shuts down */
};

struct session_event {
	enum session_in kind;
	enum busy_stage stage;
	enum busy_class class;
	enum stats_close reason; /* REFUSED */
	unsigned code;           /* REPLY, EARLY */
	unsigned ext;            /* BOUND: what this backend offers */
	unsigned auth;           /* BOUND: and enum smtp_auth bits */
	bool reused;             /* BOUND: the connection has served before */
	bool pipelining;         /* BOUND */
	bool more;               /* UNBOUND: another backend may be tried */
	unsigned trace_len;      /* BOUND: octets of the trace field that the
				    backend wants; 0: none */
	size_t room;             /* OCTETS: that HOLD could take now */
	const char *data;        /* OCTETS; REFUSED: the reply, CRLF included;
			     REPLY, EARLY: the raw reply */
	size_t len;
};

enum session_do {
	SESSION_DO_SAY,      /* send .text to the client */
	SESSION_DO_RELAY,    /* send the backend's reply, .code in its place
			       unless 0 */
	SESSION_DO_BIND,     /* find and greet a backend for .need */
	SESSION_DO_COMMAND,  /* send .text to the backend; its reply's .stage */
	SESSION_DO_STARTTLS, /* behind the SAY before it: drop all octets that
				came in the clear or will, do the handshake,
				tell SECURED or INSECURE */
	SESSION_DO_BODY,     /* send the first .len octets of the event's data
			       to the backend; .stage is EOD if the reply to
			       the end of data follows, else IDLE.  With
			       .undot they go through smtp_undot() first, and
			       .undot_state */
	SESSION_DO_KEEP,     /* the transaction is over, the backend clean */
	SESSION_DO_QUIT,     /* part from the backend in good order */
	SESSION_DO_RESET,    /* part from it so that it stores nothing */
	SESSION_DO_HOLD,     /* keep the first .len octets of the event's data
			       in memory: they are of a body */
	SESSION_DO_MARK,     /* the oldest RCPT that was sent with .hold and is
			       not marked yet: .good says if the client read
			       2xx for it */
	SESSION_DO_PARK,     /* give the slot back; nothing is in the backend's
			       hands but an envelope */
	SESSION_DO_REPLAY,   /* say to the backend: MAIL, each RCPT that is
			       marked good, DATA; each reply will come */
	SESSION_DO_TRACE,    /* send the trace field: the body begins behind */
	SESSION_DO_SEND,     /* send all that is held of the body; .stage as
			       for BODY.  More of it may follow by BODY */
	SESSION_DO_LOG,      /* the transaction is over: log it; what was held
			       of it is dropped */
	SESSION_DO_CLOSE,    /* close when all is sent; .reason */
	SESSION_DO_ABORT,    /* close at once; .reason */
};

struct session_act {
	enum session_do what;
	enum busy_stage stage;
	enum stats_close reason;
	unsigned code;
	unsigned times; /* SAY: so often; 0 is once */
	bool hold;      /* COMMAND: keep it in memory too, see MARK */
	bool secret;    /* COMMAND: for no log, no trace, no operator */
	bool good;      /* MARK */
	bool undot;     /* BODY: see there */
	struct smtp_undot undot_state; /* as it is before these octets */
	const char *text; /* static, or in the session, event or plan */
	size_t len;
};

/* What to do now, in this order. */
struct session_plan {
	unsigned count;
	size_t consumed; /* of the event's octets */
	struct session_act acts[SESSION_ACTS_MAX];
	char scratch[SMTP_EHLO_REPLY_MAX];
};

/* What the world is like; the same for all sessions of a turn. */
struct session_env {
	const struct config *config;
	struct admission *admission;
	struct stats *stats;
	unsigned offer_ext;  /* the farm's: balancer_offer() */
	unsigned offer_auth; /* and its enum smtp_auth bits */
	uint64_t offer_size;
	int64_t now_ms;
	bool stressed;
	bool draining;
};

/* One message's way, for its log line. */
struct session_message {
	int64_t mail_ms;  /* MAIL came; times are of io_now_ms() */
	int64_t bound_ms; /* a backend had it; 0: none yet */
	int64_t data_ms;  /* 354 was relayed; 0: not yet */
	int64_t end_ms;   /* the end of data was sent; 0: not yet */
	uint64_t octets;  /* of the body, as sent */
	unsigned tries;   /* backends asked */
	unsigned rcpts;   /* said */
	unsigned rcpts_ok;
	enum busy_stage stage; /* where it ended */
	enum busy_class class; /* of the reply it ended with */
	unsigned code;         /* the client read, and it ended it; 0: none */
	unsigned flaws;        /* enum smtp_body_flaw */
	unsigned replays;      /* backends that were given it by REPLAY */
	bool chunked;
	bool counted;       /* DATA that went as BDAT: bare_newline = bdat */
	bool unknown;       /* the backend may have it, nobody knows */
	bool held;          /* weir itself said 354 and held the body */
	bool parked;        /* a slot was given back meanwhile */
	bool final_retried; /* busy at the end of data, tried once more */
};

struct session {
	enum session_state state;
	enum session_transaction transaction;
	int64_t deadline_ms; /* deliver TIMEOUT then; INT64_MAX: never */

	/* Private from here on, but for what the log reads. */
	const struct config_listener *listener;
	char *line; /* SESSION_LINE_MAX octets, lent */
	char *mail; /* SESSION_MAIL_MAX octets, lent */
	uint32_t line_len;
	uint32_t mail_len;
	bool line_ready; /* line holds a whole one that had to wait */
	bool skipping;   /* dropping the rest of a line too long */
	bool esmtp;
	bool secured;      /* what is read and said goes through TLS */
	bool authed;       /* 235 was relayed: the session is pinned */
	bool binding_auth; /* BINDING is for AUTH, not for MAIL */
	bool challenged;   /* 334 was relayed: there is no way back */
	bool clearing;     /* RSET of our own is due, and nothing else */
	bool bound;        /* a backend connection is ours */
	bool reused;       /* it has served before */
	bool pipelining;   /* it takes more than one command at a time */
	bool holds;        /* slot = body, when this message's MAIL came */
	bool afresh;       /* BIND: backends tried before may be tried again */
	bool counts;       /* bare_newline = bdat, when its MAIL came */
	bool counting;     /* this body goes as chunks, counted by ourselves */
	bool dotted;       /* the body's first octet is a dot */
	bool unheld;       /* the worker says that a COMMAND could not be held:
			    DATA is forwarded then; MAIL's BIND clears it */
	bool holding;      /* what comes of the body is held, none was sent */
	bool whole;        /* all of it is, until LOG */
	bool replaying;    /* REPLAY's replies are due, not only DATA's */
	bool own_data;     /* DATA waits in weir for the replies before it */
	bool white;        /* the body begins with white space */
	bool trace_due;    /* the field goes out in front of the body */
	bool swallow;      /* body or chunk goes nowhere */
	bool chunk_last;
	bool chunk_failed; /* a BDAT was refused: the rest fails */
	bool premature;    /* octets came behind DATA, before its reply */
	bool early;        /* an early talker that is let be */
	bool client_gone;
	bool eof;               /* the client has ended its side */
	bool resting;           /* tarpit: reads nothing until deadline_ms */
	bool ahead_data;        /* DATA is the last of what was sent ahead */
	unsigned due;           /* replies the client awaits from the backend */
	unsigned offered;       /* extensions that our EHLO reply named */
	unsigned offered_auth;  /* and enum smtp_auth bits */
	unsigned need;          /* what this transaction wants of a backend */
	unsigned need_auth;     /* the mechanism that AUTH wants; 0: not AUTH */
	unsigned ext;           /* what the bound backend offers */
	unsigned ahead;         /* octets of the next ones, sent behind MAIL */
	unsigned ahead_rcpts;   /* RCPTs among them */
	unsigned rcpts_counted; /* against the rate, of this message */
	unsigned errors;
	unsigned spared;       /* so many commands more are no mistakes: they
				  came behind a MAIL that was refused */
	unsigned messages;     /* transactions that ended with a 2xx */
	unsigned transactions; /* MAILs that were sent to a backend */
	unsigned note_len;     /* a reply waits in line[] for its time */
	unsigned tries;        /* of [farm] tries, for this BIND */
	unsigned binds;        /* in a row, in search of one backend */
	unsigned trace_len;    /* of the bound backend: see BOUND.  Of a
				  pinned one the worker renews it when it
				  sends MAIL */
	unsigned auth_len;     /* octets in line[], CRLF included, of AUTH */
	enum stats_close reason;
	enum smtp_body_type body_type;
	uint64_t chunk_left;
	uint64_t size_said; /* MAIL SIZE=, 0: none */
	int64_t opened_ms;
	int64_t waiting_ms; /* since when the client's next word is awaited */
	int64_t binding_ms; /* since when a backend is sought */
	int64_t nimble_ms;  /* the fastest that the client took to go on */
	struct smtp_body body;
	struct smtp_undot undot; /* counting: as smtp_reframe() goes */
	struct session_message message;
	struct admission_ticket ticket; /* the worker opens and closes it */
	uint16_t helo_len;
	char helo[SMTP_DOMAIN_MAX];
};

/*
 * A session just accepted.  line and mail are lent until CLOSED, with
 * SESSION_LINE_MAX and SESSION_MAIL_MAX octets.
 */
void session_init(struct session *s, const struct config_listener *listener,
		  char *line, char *mail, int64_t now_ms);

/*
 * Advance the session by one event and fill in *plan.
 *
 * Total: every event is defined in every state; one that a state does not
 * expect makes an empty plan, never an error.
 *
 * OCTETS: what plan->consumed leaves is to be given again, when
 * session_wants() says so: after each other event.  Behind MAIL they are
 * looked at and not consumed: give the same first ones again, and any more
 * behind them.  Then the REPLY to MAIL may consume of them, never more than
 * one OCTETS held.
 */
void session_step(struct session *s, const struct session_env *env,
		  const struct session_event *event, struct session_plan *plan);

/*
 * Whether OCTETS would be of use now; with none at hand, only call when a
 * line waits (s->line_ready).
 */
bool session_wants(const struct session *s);

/*
 * Whether a BIND is under way: what it comes to is BOUND or UNBOUND.  That is
 * so in BINDING, and in HANDOVER until a backend is bound.
 */
bool session_is_binding(const struct session *s);

/*
 * From when on its slot may be asked back by CROWDED: it is held for a body
 * that an attentive client would have sent by then.  INT64_MAX: never.
 */
int64_t session_park_ms(const struct session *s);

/* End it at once, whatever it is doing.  Not when CLOSED. */
void session_kill(struct session *s, struct session_plan *plan,
		  enum stats_close reason);

/*
 * The deadline has come, but octets of a body lie unread, since the backend
 * takes none: that is not the client's silence.  False: the time is up all
 * the same; deliver TIMEOUT.
 */
bool session_defer(struct session *s, const struct session_env *env);

/*
 * SECURED in front of the greeting says that the listener has tls = implicit.
 * Behind STARTTLS it makes the session forget what the client said in the
 * clear (RFC 3207, section 4.2), but not its mistakes.
 */

/*
 * mode = tcp.  In RELAY the session is told nothing, but what its worker has
 * seen: something moved, and TIMEOUT is due wait_ms from now (or when the
 * session is too long); so much mail went by; it is over, and text (NUL at
 * its end, CRLF before it; may be NULL) is said before the close.  TIMEOUT
 * there makes an empty plan: it is the worker's to end it.
 */
bool session_is_tcp(const struct session *s);
void session_relay_moved(struct session *s, const struct session_env *env,
			 int64_t wait_ms);
void session_relay_count(struct session *s, unsigned transactions,
			 unsigned messages);
void session_relay_over(struct session *s, struct session_plan *plan,
			enum stats_close reason, const char *text);

/* Stress began or ended: deadlines of those who talk are drawn anew. */
void session_stress(struct session *s, const struct session_env *env);

/* For logs: "command", "body", ...  Never NULL. */
const char *session_state_name(enum session_state state);

#endif
