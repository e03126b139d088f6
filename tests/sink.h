#ifndef TESTS_SINK_H
#define TESTS_SINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

#include "tests/heap.h"
#include "tests/tally.h"

/*
 * weir-sink: a farm of test MTAs in one process and one thread.
 *
 *   sink.c          options, event loop, signals, the final summary
 *   sink_mta.c      one MTA: its settings, its listener, its statistics
 *   sink_session.c  sockets and time: accept, slots, paced replies, death
 *   sink_smtp.c     what the server says: commands and replies
 *   sink_tls.c      STARTTLS and TLS from the first octet
 *   sink_login.c    AUTH PLAIN and LOGIN
 *   sink_xclient.c  XCLIENT, of the proxies before it
 *   sink_message.c  one message: parsing, hashing, store, journal
 *   sink_control.c  the line protocol that changes an MTA at run time
 *
 * It shares no code with weir: it is the independent witness of its tests.
 * Where a peer is wrong, the sink obeys RFC 5321 and counts the error.
 */

enum {
	SINK_LINE_MAX = 4096,   /* a command line, CRLF included */
	SINK_READ_MAX = 65536,  /* octets taken in one recv */
	SINK_RCPTS_MAX = 10000, /* so that a peer cannot fill our memory */
	SINK_ID_MAX = 64,       /* octets kept of an X-Test-Id */
	SINK_HELO_MAX = 255,
	SINK_LOGIN_MAX = 255,
};

/* The replies that can be changed, delayed, or be the last ones. */
enum sink_stage {
	SINK_GREETING,
	SINK_EHLO, /* and HELO */
	SINK_MAIL,
	SINK_RCPT,
	SINK_DATA, /* the 354 */
	SINK_EOD,  /* the reply to the message: after the dot or BDAT LAST */
	SINK_QUIT,
	SINK_STARTTLS,
	SINK_AUTH,    /* the 235 or 535 */
	SINK_XCLIENT, /* the 220 */
	SINK_STAGES,
};

/* When a session dies: at once, or when the stage's reply has been sent. */
enum sink_death {
	SINK_DIE_NEVER,
	SINK_DIE_CONNECT, /* before the greeting */
	SINK_DIE_GREETING,
	SINK_DIE_EHLO,
	SINK_DIE_MAIL,
	SINK_DIE_RCPT,
	SINK_DIE_DATA,     /* after 354 */
	SINK_DIE_BODY,     /* when die_octets of a message have come */
	SINK_DIE_DOT,      /* the message is whole, the reply is not sent */
	SINK_DIE_EOD,      /* the reply to the message was sent */
	SINK_DIE_STARTTLS, /* the client expects a handshake */
	SINK_DIE_AUTH,
	SINK_DIE_XCLIENT,
	SINK_DEATHS,
};

enum sink_how { SINK_HOW_RST, SINK_HOW_CLOSE };

enum sink_tls {
	SINK_TLS_NONE,
	SINK_TLS_STARTTLS, /* offered */
	SINK_TLS_REQUIRED, /* offered; without it MAIL and AUTH get 530 */
	SINK_TLS_IMPLICIT, /* from the first octet on */
};

/* What a client gets that comes when all slots are taken. */
enum sink_busy {
	SINK_BUSY_421,    /* busy_text and close: Exchange, Exim, postscreen */
	SINK_BUSY_REFUSE, /* no listening socket: Sendmail */
	SINK_BUSY_SILENT, /* accepted and never greeted */
	SINK_BUSY_QUEUE,  /* accepted, greeted when a slot is free: Postfix */
	SINK_BUSY_EOF,    /* accepted and closed: Courier */
};

/* Protocol errors of peers. */
enum sink_error {
	SINK_ERR_UNKNOWN,   /* no such command, or one we do not offer */
	SINK_ERR_SYNTAX,    /* a known command with wrong arguments */
	SINK_ERR_SEQUENCE,  /* 503 */
	SINK_ERR_LINE_LONG, /* a command line over SINK_LINE_MAX */
	SINK_ERR_BARE_LF,   /* an LF without CR, in a command or a body */
	SINK_ERR_BARE_CR,   /* a CR without LF */
	SINK_ERR_NUL,       /* a NUL in a command */
	SINK_ERR_EARLY,     /* it talked before the greeting */
	SINK_ERR_PIPELINED, /* more commands while a reply was due, not offered */
	SINK_ERR_SYNC,    /* input behind EHLO, DATA or QUIT (RFC 2920, 3.1) */
	SINK_ERR_NO_QUIT, /* closed without QUIT */
	SINK_ERRORS,
};

/* What became of a transaction that had begun to send a message. */
enum sink_outcome {
	SINK_STORED,     /* its 250 was handed to the kernel */
	SINK_REJECTED,   /* it got another reply */
	SINK_UNANSWERED, /* it was whole, its reply could not be sent */
	SINK_ABORTED,    /* the connection ended in mid-message */
	SINK_OUTCOMES,
};

/* How TLS handshakes ended. */
enum sink_handshake {
	SINK_HANDSHAKE_FULL,
	SINK_HANDSHAKE_RESUMED,
	SINK_HANDSHAKE_FAILED,
	SINK_HANDSHAKES,
};

/* Whether something happens each time: every Nth time, or at random. */
struct sink_chance {
	uint64_t every; /* 1: each time */
	double percent; /* 0..100 */
	uint64_t seen;  /* times asked */
};

struct sink_rule {
	char *text; /* replaces the usual reply; owned, or NULL */
	struct sink_chance chance;
	int64_t delay_min_ms;
	int64_t delay_max_ms;
};

struct sink_stats {
	uint64_t accepted; /* connections */
	uint64_t sessions; /* that got a slot */
	uint64_t peak;     /* most slots in use at once */
	int64_t slot_ms;   /* time that slots were in use, of ended sessions */
	uint64_t refused;  /* answered by busy=421 or eof, or left silent */
	uint64_t deaths;
	uint64_t resets; /* by peers */
	uint64_t timeouts;
	uint64_t accept_errors;
	uint64_t commands;
	uint64_t rcpts;  /* accepted */
	uint64_t octets; /* of stored messages */
	uint64_t handshakes[SINK_HANDSHAKES];
	uint64_t logins;       /* 235 */
	uint64_t login_errors; /* 535 */
	uint64_t xclients;     /* 220 */
	uint64_t outcomes[SINK_OUTCOMES];
	uint64_t errors[SINK_ERRORS];
	uint64_t replaced[SINK_STAGES]; /* replies changed by a rule */
};

/* Whom an epoll event is for; the first member of its object. */
enum sink_kind {
	SINK_KIND_MTA,
	SINK_KIND_SESSION,
	SINK_KIND_CONTROL_LISTENER,
	SINK_KIND_CONTROL,
	SINK_KIND_SIGNALS,
};

struct sink;
struct sink_session;

struct sink_mta {
	enum sink_kind kind;
	struct sink *sink;
	int listen_fd;                 /* -1: not listening */
	bool started;                  /* what the operator wants */
	struct sockaddr_storage bound; /* so that port 0 stays what it became */
	socklen_t bound_len;

	char *name; /* all strings are owned */
	char *address;
	uint64_t port;
	uint64_t backlog;

	uint64_t slots; /* 0: no limit */
	enum sink_busy busy;
	char *busy_text;
	struct sink_rule rules[SINK_STAGES];
	enum sink_death die;
	enum sink_how die_how;
	struct sink_chance die_chance;
	uint64_t die_octets;
	int64_t dribble_ms;    /* between two octets of a reply */
	uint64_t banner_lines; /* of the greeting */
	int64_t line_pause_ms; /* between two lines of the greeting */
	char *banner;          /* text behind "220 " */
	bool esmtp, pipelining, chunking, binarymime, eightbitmime, smtputf8,
		dsn, enhanced;
	uint64_t size;   /* advertised and enforced; 0: no SIZE keyword */
	char *extra;     /* one more EHLO line, or NULL */
	bool open_relay; /* takes mail for .invalid too */
	enum sink_tls tls;
	char *cert, *key;   /* PEM files; or NULL: one made here */
	bool tls_ask;       /* for the client's certificate */
	SSL_CTX *tls_ctx;   /* owned; NULL: to be made */
	char *auth;         /* "USER:PASSWORD"; or NULL: no AUTH */
	bool auth_required; /* without it MAIL gets 530 */
	bool xclient;
	uint64_t rcpts_max;    /* for each message; then 452 4.5.3 */
	uint64_t messages_max; /* for each session; then 421; 0: no limit */
	uint64_t errors_max;   /* for each session; then 421 */
	int64_t timeout_ms;    /* of an idle peer; then 421 4.4.2 */

	struct sink_session *sessions;               /* all that are open */
	struct sink_session *waiting, *waiting_tail; /* for busy=queue */
	uint64_t open;                               /* sessions in the list */
	uint64_t slots_used;
	bool room_changed; /* a slot was freed: sink.c sees to it */
	struct sink_stats stats;
};

struct sink_marks;

struct sink {
	int epoll_fd;
	int64_t now_ms;
	struct heap timers; /* of sessions, by their `timer` */
	struct sink_mta **mtas;
	size_t mta_count;
	struct sink_session *dead; /* freed after the batch of events */
	uint64_t random;           /* state of the generator */
	uint64_t next_id;
	char *read_buf; /* SINK_READ_MAX + SINK_READ_MAX octets */

	bool hash;
	bool verbose;
	const char *store_dir; /* or NULL */
	FILE *journal;         /* or NULL */
	struct tally tally;    /* of stored messages */
	X509 *cert;            /* signed by itself; owned, or NULL: unneeded */
	EVP_PKEY *key;         /* its key */
	struct sink_marks *marks;
};

/* --- sink.c --- */

/* True if the thing whose chance this is shall happen this time. */
bool sink_chance(struct sink *sink, struct sink_chance *chance);

/* A number in [low, high]. */
int64_t sink_between(struct sink *sink, int64_t low, int64_t high);

/* All statistics as one JSON object; `pretty` puts each MTA on its line. */
void sink_print_stats(struct sink *sink, FILE *out, bool pretty);

/* --- sink_mta.c --- */

/* A stopped MTA with every setting at its default. */
struct sink_mta *sink_mta_new(struct sink *sink);
void sink_mta_free(struct sink_mta *mta);

/*
 * Apply "key=value,key=value...".  A comma belongs to the value unless a
 * known key and "=" follow it.  False: nothing more is applied and error[] is
 * one line that says why.
 */
bool sink_mta_configure(struct sink_mta *mta, const char *spec, char *error,
			size_t error_size);

/* One setting, also at run time.  False as above. */
bool sink_mta_set(struct sink_mta *mta, const char *key, const char *value,
		  char *error, size_t error_size);

/* A copy of its settings, for the next one to start from. */
struct sink_mta *sink_mta_copy(const struct sink_mta *from);

/* Open the listening socket.  0 or -errno. */
int sink_mta_listen(struct sink_mta *mta);
void sink_mta_unlisten(struct sink_mta *mta);

/* With busy=refuse: listen if there is room, and only then. */
void sink_mta_adjust(struct sink_mta *mta);

/* Stop listening and reset every connection. */
void sink_mta_kill(struct sink_mta *mta);

/* True if a slot is free. */
bool sink_mta_has_room(const struct sink_mta *mta);

uint16_t sink_mta_port(const struct sink_mta *mta);
void sink_mta_print_stats(const struct sink_mta *mta, FILE *out);

/* Every key with its default and meaning, for -h. */
void sink_mta_print_keys(FILE *out);

/* --- sink_tls.c --- */

/*
 * Make the context of an MTA that offers TLS and has none yet.  False: error[]
 * is one line that says why.
 */
bool sink_tls_prepare(struct sink_mta *mta, char *error, size_t error_size);

/* Forget it: a setting has changed.  Sessions keep what they have. */
void sink_tls_forget(struct sink_mta *mta);

#endif
