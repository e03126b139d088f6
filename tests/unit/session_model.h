#ifndef TESTS_UNIT_SESSION_MODEL_H
#define TESTS_UNIT_SESSION_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/config.h"
#include "proxy/session.h"

/*
 * Dialogues: what the client says and what befalls the backend, and what the
 * session answers to it, as one line of acts.  Each is run with the client's
 * octets whole, cut in two at every place, and one by one, and the acts must
 * be the same.  A model of the worker watches every single step.
 *
 * One thing depends on how octets come: what stands behind MAIL in one buffer
 * is sent ahead of MAIL's reply.  So in dialogues "ahead" the order of the two
 * sides' acts may differ between the runs, but neither what the client reads
 * by each EXPECT, nor what a backend reads that takes the MAIL, nor the end.
 */

enum kind {
	END,
	CLIENT,   /* octets of the client */
	EVENT,    /* .event */
	CLOCK,    /* .ms pass, and TIMEOUT if the deadline has come */
	EXPECT,   /* the acts since the last EXPECT or SKIP */
	BODY,     /* the octets of bodies since the last BODY or SKIP */
	SKIP,     /* forget acts and body */
	STRESS,   /* .ms: on or off */
	DRAINING, /* weir shuts down; no event yet */
	MEMORY,   /* .ms octets can be held from now on */
	UNHELD    /* the envelope could not be */
};

struct move {
	enum kind kind;
	const char *text;
	size_t len;
	int64_t ms;
	struct session_event event;
};

struct knobs {
	int64_t tarpit_ms, delay_ms, session_ms;
	uint32_t max_errors, max_messages, max_recipients, tries;
	uint32_t message_rate, recipient_rate, login_rate;
	uint64_t size;
	unsigned offer;       /* extensions of the farm; 0: all */
	unsigned offer_auth;  /* mechanisms of the farm; 0: all */
	uint64_t offer_size;  /* of the farm; 0: none */
	bool hold;            /* slot = body */
	size_t buffer;        /* body_buffer; 0: 1000 */
	int64_t body_wait_ms; /* 0: 1000; less: 0 */
	int64_t room_wait_ms; /* 0: there is no room */
	enum config_early_talkers early;
	enum config_tls tls;
	enum config_auth auth;
	enum config_bare_newline bare;
};

struct talk {
	const char *name;
	const struct move *moves;
	struct knobs knobs;
	bool whole_only; /* what was pipelined cannot be told from late words */
	bool ahead;      /* lines are sent ahead of MAIL's reply */
};

/* ---- the language of the dialogues ---- */

#define C(octets)                                                              \
	{                                                                      \
		.kind = CLIENT, .text = (octets), .len = sizeof(octets) - 1    \
	}
#define X(acts)                                                                \
	{                                                                      \
		.kind = EXPECT, .text = (acts)                                 \
	}
#define B(octets)                                                              \
	{                                                                      \
		.kind = BODY, .text = (octets), .len = sizeof(octets) - 1      \
	}
#define AFTER(passed)                                                          \
	{                                                                      \
		.kind = CLOCK, .ms = (passed)                                  \
	}
#define DO_WITH(what, ...)                                                     \
	{                                                                      \
		.kind = EVENT, .event = {                                      \
			.kind = SESSION_IN_##what,                             \
			__VA_ARGS__                                            \
		}                                                              \
	}
#define DO(what)                                                               \
	{                                                                      \
		.kind = EVENT, .event = {.kind = SESSION_IN_##what }           \
	}
#define SAID(what, in, of, digits, words)                                      \
	DO_WITH(what, .stage = BUSY_STAGE_##in, .class = BUSY_##of,            \
		.code = (digits), .data = (words), .len = sizeof(words) - 1)
#define R(in, of, digits) SAID(REPLY, in, of, digits, #digits " words\r\n")
#define R2(in, of, digits)                                                     \
	SAID(REPLY, in, of, digits, #digits "-two\r\n" #digits " lines\r\n")
#define EARLY(of, digits) SAID(EARLY, IDLE, of, digits, #digits " words\r\n")
#define ALL_EXT           (SMTP_EXT_RELAYED | SMTP_EXT_PIPELINING | SMTP_EXT_AUTH)
#define ALL_AUTH          ((1u << SMTP_AUTH_BITS) - 1)
#define BOUND                                                                  \
	DO_WITH(BOUND, .ext = ALL_EXT, .auth = ALL_AUTH, .pipelining = true)
#define BOUND_POOR                                                             \
	DO_WITH(BOUND, .ext = SMTP_EXT_RELAYED | SMTP_EXT_AUTH,                \
		.auth = ALL_AUTH)
#define BOUND_TRACED                                                           \
	DO_WITH(BOUND, .ext = ALL_EXT, .auth = ALL_AUTH, .pipelining = true,   \
		.trace_len = 100)
#define BOUND_AGAIN                                                            \
	DO_WITH(BOUND, .ext = ALL_EXT, .auth = ALL_AUTH, .pipelining = true,   \
		.reused = true)
#define UNBOUND(in, of)                                                        \
	DO_WITH(UNBOUND, .stage = BUSY_STAGE_##in, .class = BUSY_##of,         \
		.more = true)
#define GIVEN_UP(in, of)                                                       \
	DO_WITH(UNBOUND, .stage = BUSY_STAGE_##in, .class = BUSY_##of)
#define GREETED(of, digits)                                                    \
	SAID(UNBOUND, GREET, of, digits, "words of the greeting")
#define LOST      DO_WITH(LOST, .class = BUSY_SICK)
#define OVER      DO(EOF)
#define GONE      DO(GONE)
#define ADMIT     DO(ADMITTED)
#define SECURED   DO(SECURED)
#define INSECURE  DO(INSECURE)
#define CHALLENGE R(AUTH, OK, 334)

#define HELLO                                                                  \
	ADMIT, C("EHLO c.test\r\n"),                                           \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_MAIL                                                                \
	HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),              \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_TLS                                                                 \
	ADMIT, C("STARTTLS\r\n"), SECURED, C("EHLO c.test\r\n"),               \
	{                                                                      \
		.kind = SKIP                                                   \
	}
/* Pinned; of a listener with auth = always. */
#define TO_LOGIN                                                               \
	HELLO, C("AUTH PLAIN " SECRET "\r\n"), BOUND, R(AUTH, OK, 235),        \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_RCPT                                                                \
	TO_MAIL, C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250),                     \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_DATA                                                                \
	TO_RCPT, C("DATA\r\n"), R(DATA, OK, 354),                              \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define GROUP                                                                  \
	HELLO,                                                                 \
		C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"      \
		  "DATA\r\n"),                                                 \
		BOUND, R(MAIL, OK, 250),                                       \
	{                                                                      \
		.kind = SKIP                                                   \
	}

#define TALK(title, ...)                                                       \
	{                                                                      \
		.name = (title), .moves = (const struct move[])                \
		{                                                              \
			__VA_ARGS__,                                           \
			{                                                      \
				.kind = END                                    \
			}                                                      \
		}                                                              \
	}
#define TALK_WITH(title, how, ...)                                             \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = how                                                   \
	}
#define TALK_WHOLE(title, ...)                                                 \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true                                             \
	}
#define TALK_AHEAD(title, ...)                                                 \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.ahead = true                                                  \
	}
#define TALK_AHEAD_WITH(title, how, ...)                                       \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = how, .ahead = true                                    \
	}
#define TALK_AHEAD_WHOLE(title, ...)                                           \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true, .ahead = true                              \
	}
#define HOW(...)                                                               \
	{                                                                      \
		__VA_ARGS__                                                    \
	}
/* "secret": it must be found nowhere but on its way. */
#define SECRET     "c2VjcmV0"
#define RUN(table) model_run_all(table, sizeof(table) / sizeof((table)[0]))

/* ---- often said ---- */

#define A10   "aaaaaaaaaa"
#define A100  A10 A10 A10 A10 A10 A10 A10 A10 A10 A10
#define A500  A100 A100 A100 A100 A100
#define A4000 A500 A500 A500 A500 A500 A500 A500 A500

#define STOP                                                                   \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define ENVELOPE "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"
#define SENT     "MAIL FROM:<a@b>; RCPT TO:<c@d>; RCPT TO:<e@f>; DATA"

/* ---- the world around one session ---- */

enum { PIECES_MAX = 70000, ACTS_TEXT_MAX = 16384, BODY_MAX = 200000 };
enum { CONNS_MAX = 6, CONN_TEXT_MAX = 512, HELD_MAX = 4096 };

/* What one backend connection reads for one MAIL. */
struct conn {
	bool taken; /* MAIL was */
	size_t len;
	char text[CONN_TEXT_MAX];
};

struct world {
	struct session s;
	struct session_env env;
	struct session_plan plan;
	struct config_listener listener;
	struct stats stats;
	struct admission *admission;
	char *line, *mail; /* of their very size, for the sanitizer */
	/* the client's octets not yet consumed, in pieces */
	const char *pieces[PIECES_MAX];
	size_t lens[PIECES_MAX];
	size_t first, count;
	bool eof, eof_told, gone;
	/* what was done */
	char acts[ACTS_TEXT_MAX];
	size_t acts_len;
	char body[BODY_MAX];
	size_t body_len;
	/* the worker's view */
	bool bound, binding, closed;
	unsigned due, begun, logged, ends_sent, ends_good, most_acts;
	bool pipelining;
	size_t ahead;        /* octets of the first piece sent ahead */
	unsigned sent_ahead; /* lines, ever */
	unsigned bindings;   /* conns[] holds the last ones */
	struct conn conns[CONNS_MAX];
	/* what the worker holds of a message */
	char held[HELD_MAX];
	size_t held_len, memory;
	unsigned held_rcpts, marked, marked_good;
	/* the bound backend, and what it knows of this message */
	unsigned trace_len;
	bool traced, refused, go_on;
	uint64_t chunk_left; /* octets that the last BDAT announced */
	bool unanswered;     /* an end of data, by whatever backend */
	bool handshake;      /* TLS begins */
	unsigned surprises;  /* acts that were not expected */
	const char *name;
	bool ahead_talk;
};

/* One world at a time, and its configuration. */
extern struct world *w;
extern struct config *config;

/* Memory for it; false: there is none. */
bool model_begin(void);
void model_end(void);

/* A client has just been admitted to the table, before any event. */
void model_open(const struct talk *t);
void model_close(void);

/* Open it, and make all moves. */
void model_go_to(const struct talk *place);

enum { CUT_NOWHERE = -1, CUT_EVERYWHERE = -2 };

/* Make one move; *said counts the client's octets, cut is one of them. */
void model_move(const struct move *m, long cut, size_t *said);
void model_feed(const char *text, size_t len);
void model_tell(const struct session_event *ev);
void model_step(const struct session_event *ev); /* reads no octets */
void model_expect(const struct move *m, long cut);

/* Fails if one dialogue does not go as written, however it is cut. */
void model_run_all(const struct talk *talks, size_t count);

/*
 * Everything that can happen, at each of these places, and then the end.
 * Returns the states that they were in, a bit each.
 */
unsigned model_every_event(const struct talk *places, size_t count);

/* What came of random walks, in all. */
struct walked {
	unsigned longest; /* plan, in acts */
	unsigned ahead;   /* lines sent ahead */
	uint64_t counts[STATS_COUNT];
};

/* One row of tests/data/smuggling.tsv. */
struct vector {
	const char *id;
	struct move octets;
	bool ends;    /* a body */
	bool refused; /* whole, by bare_newline = reject */
};

/* Each of those that stand in a body.  Returns how many they are. */
unsigned model_vectors(void (*each)(const struct vector *v));

struct walked model_walk(const struct knobs *ways, size_t count,
			 unsigned walks);

#endif
