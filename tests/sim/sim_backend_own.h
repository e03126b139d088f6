#ifndef SIM_BACKEND_OWN_H
#define SIM_BACKEND_OWN_H

#include "tests/sim/sim_auth.h"
#include "tests/sim/sim_backend.h"
#include "tests/sim/sim_wire.h"

/*
 * One connection of a scripted server, as the two files of it know it:
 * sim_backend.c has the dialogue of mail, and sim_backend_who.c what comes
 * before it: TLS, XCLIENT, AUTH.  Nobody else includes this.
 */

enum {
	LINE_MAX_OCTETS = 16384,
	REPLY_MAX = 1024,
	TRACE_FIELD_MAX = 1500, /* longer than any that is right */
	LAST_MAX = 8192,        /* octets that are kept of the last message */
	HEADER_MAX = 256,       /* longer than any PROXY header of weir's */
	INTRODUCTION_MAX = 600, /* longer than any XCLIENT of weir's */
};

/* What a connection of a fickle server does otherwise than the one before. */
enum fickle { FICKLE_NOT, FICKLE_EHLO, FICKLE_RCPT, FICKLE_DATA };

/* What one connection expects to read. */
enum reading {
	READ_HEADER,
	READ_SECRECY, /* nothing, until the handshake begins */
	READ_COMMANDS,
	READ_DATA,
	READ_CHUNK,
	READ_AUTH,
	READ_NOTHING
};

/* A reply on its way. */
struct saying {
	struct saying *next;
	int64_t at_us;
	bool final;                    /* the reply to an end of data */
	bool refusal;                  /* a whole one of 4xx */
	struct check_message *message; /* of it, if it is in the ledger */
	unsigned code;
	bool bye;     /* close behind it */
	bool reset;   /* by a reset */
	bool last;    /* of its reply: it answers one command */
	bool secures; /* TLS begins behind it */
	bool tampers; /* its record has a wrong octet in it */
	size_t len;
	char text[]; /* NUL-terminated as well */
};

struct conn {
	struct conn *next, *prev;
	struct sim_backend *backend;
	struct sim_wire wire;
	struct sim_deed deed;
	struct saying *first, *last;
	struct sim_timer timer;
	struct sim_timer drip;
	int64_t came_us;
	int64_t free_at_us; /* replies are said in order */
	enum reading reading;
	enum fickle fickle;
	bool done;   /* the deed */
	bool slot;   /* has one */
	bool queued; /* waits for one */
	bool greeted;
	bool turned; /* away, which is to be said once it may speak */
	bool greet_due;
	bool dripping;
	bool stalled;
	bool lying;
	bool shaking;  /* hands, and nothing is said as long as it does */
	bool injected; /* something in the clear behind the 220: no TLS may
			  come of it */
	bool rude;     /* goes without close_notify */
	/* who the client is */
	bool introducing; /* XCLIENT is not answered yet */
	bool introduced;  /* it was, with 220 */
	bool dismissed;   /* it was, with something else: only QUIT may come */
	bool authenticating; /* AUTH is not answered yet */
	bool authenticated;
	unsigned auth_client; /* whose credentials came */
	unsigned auth_at;     /* lines of the dialogue so far */
	bool auth_refuses;
	enum sim_auth_way auth_way;
	union sim_addr who; /* as XCLIENT names him; port 0: it did not say */
	unsigned who_helo;  /* the number in the name that it gave; 0: none */
	/* the dialogue */
	bool helo;
	bool mail;
	bool again;     /* this message has been at a backend before */
	bool answered;  /* the body, before its end */
	bool trace_due; /* the body begins with the trace field */
	bool chunked;
	bool chunk_last;
	unsigned due;         /* commands not answered yet */
	unsigned helo_client; /* 0: not one of the scripted clients */
	unsigned taken;       /* recipients said 2xx to */
	unsigned eod_match;   /* octets of CRLF.CRLF seen */
	struct check_message *message;
	struct check_message *ended; /* its final reply is under way */
	uint64_t chunk_left;
	size_t body_len;
	size_t head_len;
	size_t trace_len;
	size_t line_len;
	uint8_t head[HEADER_MAX]; /* the PROXY header */
	char trace[TRACE_FIELD_MAX];
	char introduction[INTRODUCTION_MAX]; /* the last XCLIENT */
	char line[LINE_MAX_OCTETS];
};

struct sim_backend {
	struct sim *sim;
	struct check *check;
	struct sim_backend_config config;
	struct sim_listener *listener;
	struct conn conns; /* list head, the first came first */
	unsigned open, seen, accepted;
	unsigned used, others; /* slots: of weirs, and of somebody else */
	enum sim_up up;
	int64_t strained_us; /* until then */
	int64_t counted_us;  /* use is told up to here */
	struct sim_backend_use use;
	size_t last_len;
	char last[LAST_MAX];
};

/* --- sim_backend.c --- */

/* A reply at this stage, or what the deed makes of it; NULL: nothing. */
struct saying *conn_reply(struct conn *c, enum sim_stage stage,
			  const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* More, behind what is to be said, after that long. */
struct saying *conn_say(struct conn *c, const char *text, size_t len,
			int64_t after_us);
/* It may speak from now on: it greets, if there is a slot. */
void conn_ready(struct conn *c);
/* Do the deed; the last saying of a reply, if one was said. */
struct saying *conn_do_deed(struct conn *c, const char *text, size_t len);
void conn_close(struct conn *c, bool reset);
bool conn_deed_is_due(const struct conn *c, enum sim_stage stage);
/* What came of the message so far is forgotten. */
void conn_forget(struct conn *c);

/* --- sim_backend_who.c --- */

/* The 220 is out, or the server speaks TLS from the first octet. */
void who_secure(struct conn *c);
/* Something has come while it shakes hands; false: the connection is gone. */
bool who_shakes(struct conn *c);
/* A line of the dialogue. */
void who_auth_line(struct conn *c, const char *line);
/* What this server offers besides, as lines of EHLO; returns octets. */
int who_offers(const struct conn *c, char *text, size_t size);
/* May mail be told on this connection?  That of m's client? */
void who_mail(const struct conn *c);
void who_witness(const struct conn *c, const struct check_message *m);
/* Any command. */
void who_line(struct conn *c, const char *line);
/* A command, as it came before; false: it is none of these. */
bool who_command(struct conn *c, const char *verb, const char *arg);

#endif
