#ifndef TESTS_LOAD_H
#define TESTS_LOAD_H

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

#include "tests/heap.h"
#include "tests/histogram.h"
#include "tests/tally.h"

/*
 * weir-load: many SMTP clients in one process and one thread.
 *
 *   load.c          arrivals, event loop
 *   load_options.c  the command line
 *   load_session.c  one client: what it says, how it reads, how it ends
 *   load_tls.c      TLS: what all clients have in common of it
 *   load_login.c    AUTH
 *   load_message.c  the messages, made in advance
 *   load_report.c   progress, tables, JSON
 *   load_find.h     --find-limit
 *
 * It shares no code with weir: it is the independent witness of its tests.
 */

enum {
	LOAD_READ_MAX = 16384,    /* octets taken in one recv */
	LOAD_LINE_MAX = 8192,     /* of a reply; a longer one is nonsense */
	LOAD_BODIES_MAX = 64,     /* distinct bodies */
	LOAD_REFUSALS_MAX = 32,   /* distinct refusals that are reported */
	LOAD_TEXT_MAX = 160,      /* octets kept of a refusal */
	LOAD_TO_MAX = 64,         /* --to options */
	LOAD_SOURCES_MAX = 65536, /* that --per-source reports */
	LOAD_ID_LEN = 26,
};

/* What is timed, and where a session was when it ended. */
enum load_phase {
	LOAD_CONNECT,
	LOAD_GREETING,
	LOAD_EHLO, /* and HELO */
	LOAD_STARTTLS,
	LOAD_TLS, /* the handshake */
	LOAD_AUTH,
	LOAD_MAIL,
	LOAD_RCPT,
	LOAD_DATA, /* to 354 */
	LOAD_BODY, /* sending, replies to BDAT chunks but the last */
	LOAD_EOD,  /* from the last octet to the reply */
	LOAD_RSET,
	LOAD_QUIT,
	LOAD_MESSAGE, /* acknowledged ones, from MAIL to that reply */
	LOAD_SESSION, /* the whole, from when it was due */
	LOAD_PHASES,
};

enum load_ending {
	LOAD_COMPLETE,  /* to QUIT, every message acknowledged */
	LOAD_REJECTED,  /* to QUIT, but a message was refused */
	LOAD_KEPT_IDLE, /* --idle: stayed as long as it was asked to */
	LOAD_ABORTED,   /* --abort: our own reset */
	LOAD_REFUSED,   /* a reply other than 220 or 250 ended it early */
	LOAD_421,       /* read in full */
	LOAD_CUT,       /* the connection ended within a reply */
	LOAD_EOF,       /* closed by the peer before the reply */
	LOAD_RESET,     /* the same by a reset */
	LOAD_CONNECT_REFUSED,
	LOAD_CONNECT_FAILED, /* any other error of connect(2) */
	LOAD_TIMEOUT,        /* in the phase that is told beside it */
	LOAD_TLS_FAILED,     /* no STARTTLS, or no handshake */
	LOAD_PROTOCOL,       /* a reply that is none */
	LOAD_ENDINGS,
};

enum load_secure { LOAD_CLEAR, LOAD_BY_STARTTLS, LOAD_IMPLICIT };

enum load_choice { LOAD_NO, LOAD_YES, LOAD_AUTO };

/* A body made in advance; owns its octets. */
struct load_body {
	char *raw; /* as BDAT sends it; empty, or it ends in CRLF */
	size_t raw_len;
	char *stuffed; /* as DATA sends it; may be the same as raw */
	size_t stuffed_len;
	uint8_t sha[TALLY_SHA_OCTETS];
	char sha_hex[TALLY_HEX_SIZE];
};

/* --find-limit; `sessions` of the options is the most that it offers. */
struct load_find_options {
	bool on;
	bool ascii;
	uint64_t sessions;
	int64_t time_ms;
	int64_t step_ms;
	double band_factor;
	int64_t band_extra_ms;
};

struct load_options {
	const char *target_text;
	struct sockaddr_storage target;
	socklen_t target_len;
	double rate; /* sessions a second; 0: closed loop */
	bool uniform;
	uint64_t sessions; /* at once */
	uint64_t total;    /* 0: no limit but duration_ms */
	int64_t duration_ms;
	uint64_t idle;
	uint64_t messages;
	uint64_t recipients;
	uint64_t size_min, size_max;
	uint32_t source_first; /* host order; 0: the kernel chooses */
	uint64_t source_count;
	enum load_secure secure;
	int tls_version; /* TLS1_2_VERSION...; 0: the best there is */
	char *sni;       /* or NULL */
	double resume_percent;
	bool handshakes;  /* sessions end when TLS is there */
	bool storm;       /* all of them at once */
	const char *auth; /* "USER:PASSWORD"; or NULL */
	enum load_choice pipelining;
	bool bdat;
	uint64_t bdat_chunk; /* octets; 0: all in one */
	double slow_percent;
	int64_t slow_ms;
	int64_t body_min_ms, body_max_ms; /* to send a body; 0: at once */
	int64_t pause_ms; /* closed loop: before a client comes again */
	double abort_percent[LOAD_PHASES];
	int64_t think_min_ms, think_max_ms;
	int64_t timeout_ms;
	const char *from;
	const char *to[LOAD_TO_MAX];
	size_t to_count;
	const char *helo;
	const char *json;
	const char *journal;
	uint64_t seed;
	bool per_source;
	bool quiet;
	struct load_find_options find;
};

struct load_refusal {
	enum load_phase phase;
	uint64_t count;
	size_t len;
	char text[LOAD_TEXT_MAX];
};

/* What clients of one source address met. */
struct load_source {
	uint64_t ended;
	uint64_t failed;
	uint64_t acknowledged;
	uint64_t refused;  /* messages */
	uint64_t timed;    /* sessions that came to QUIT */
	uint64_t total_us; /* of them */
	uint64_t longest_us;
};

struct load_stats {
	uint64_t started;
	uint64_t ended;
	uint64_t overrun; /* arrivals not started: too many were open */
	uint64_t peak;
	uint64_t connected;
	uint64_t begun; /* messages: MAIL was sent */
	uint64_t sent;  /* the last octet was handed to the kernel */
	uint64_t acknowledged;
	uint64_t refused;    /* got another reply, at any stage */
	uint64_t unknown;    /* sent, and the session ended without a reply */
	uint64_t unfinished; /* the session ended before it was sent */
	uint64_t octets;     /* of acknowledged messages */
	uint64_t handshakes[2];  /* of TLS: full ones, and resumed ones */
	const char *tls_version; /* of the last one; NULL: none was */
	const char *tls_cipher;
	const char *tls_group; /* of the key exchange */
	uint64_t endings[LOAD_ENDINGS][LOAD_PHASES];
	uint64_t codes[LOAD_PHASES][1000];
	struct histogram times[LOAD_PHASES];
	struct load_refusal refusals[LOAD_REFUSALS_MAX];
	size_t refusal_count;
	uint64_t refusals_untold; /* beyond the table */
};

struct load_login;
struct load_session;

/* Clients that come again, in the order in which they do. */
struct load_pauses {
	int64_t *due_us; /* a ring of `cap`; owned, or NULL */
	size_t first, count, cap;
};

struct load {
	struct load_options options;
	int epoll_fd;
	int64_t now_us;
	int64_t start_us;
	int64_t progress_us; /* when the line was last printed */
	uint64_t progress_done;
	uint64_t random;
	struct heap timers;
	struct load_session *sessions; /* all that are open */
	struct load_session *dead;     /* freed after the batch of events */
	uint64_t open;                 /* without the idle ones */
	uint64_t idle_open;            /* idle ones */
	uint64_t idle_started;
	uint64_t numbered; /* sessions, idle ones too: their ids */
	struct load_pauses pauses;
	struct load_source *sources; /* of --per-source; owned, or NULL */
	SSL_CTX *tls;                /* owned; NULL: LOAD_CLEAR */
	SSL_SESSION *ticket;         /* the last one; owned, or NULL */
	bool priming;                /* a first session shall get a ticket */
	struct load_login *login;    /* owned, or NULL */
	char *record;                /* SECURE_RECORD_MAX octets, to be sent */
	bool stopping;               /* nothing new is begun */
	char *read_buf;              /* LOAD_LINE_MAX + LOAD_READ_MAX octets */
	struct load_body bodies[LOAD_BODIES_MAX];
	size_t body_count;
	char *header; /* template, with room for two ids */
	size_t header_len;
	size_t header_ids[2]; /* where the ids stand */
	char end_of_data[4];  /* not const, since iovec also serves reading */
	FILE *journal;
	struct tally tally;       /* of acknowledged messages */
	struct load_stats *stats; /* too large for the stack */
};

/* --- load.c --- */

int64_t load_clock_us(void);

/* A number in [low, high]. */
uint64_t load_between(struct load *load, uint64_t low, uint64_t high);

/* True so many times in a hundred. */
bool load_chance(struct load *load, double percent);

/* Wait at most so long for events and timers, and serve them all. */
void load_serve(struct load *load, int64_t wait_us);

/* Once there is a ticket sessions can be resumed: a session that fetches it. */
void load_prime(struct load *load);

/* SIGINT or SIGTERM came; it came again. */
bool load_told_to_stop(void);
bool load_told_to_hurry(void);

/* With --pause: a client comes again at due_us, which is the latest yet. */
void load_pause(struct load *load, int64_t due_us);

/* --- load_options.c --- */

/* Read the command line into what has its defaults.  Exits if it is wrong. */
void load_options_read(struct load_options *o, int argc, char **argv);

/* --- load_session.c --- */

/* Start a client whose turn was at due_us. */
void load_session_start(struct load *load, bool idle, int64_t due_us);
void load_session_event(struct load_session *s, uint32_t events);
struct load_session *load_session_of_timer(struct heap_node *timer);
void load_session_timer(struct load_session *s);

/* Idle ones say QUIT; the others after the message at hand. */
void load_session_stop_all(struct load *load);

/* Reset all that are open, for somebody who does not want to wait. */
void load_session_cut_all(struct load *load);
void load_session_reap(struct load *load);

/* How many are open that were due before then, idle ones aside. */
uint64_t load_session_count(const struct load *load, int64_t due_before_us);

/* --- load_tls.c --- */

/* Exits if it cannot; what they own is freed by load_tls_free(). */
void load_tls_prepare(struct load *load);
void load_tls_free(struct load *load);

/* A connection that starts its handshake, resumed as --resume says. */
SSL *load_tls_new(struct load *load, int fd);

/* Its handshake is done. */
void load_tls_count(struct load *load, SSL *ssl);

/* --- load_login.c --- */

/* What is to be said of "USER:PASSWORD", in base64.  Exits without memory. */
struct load_login *load_login_new(const char *auth);
void load_login_free(struct load_login **login);
const char *load_login_plain(const struct load_login *login);

/* The answer to the 334 of that number of AUTH LOGIN, 0 or 1. */
const char *load_login_step(const struct load_login *login, unsigned step);

/* --- load_message.c --- */

/* Make the bodies and the header's template.  Exits if memory runs out. */
void load_message_prepare(struct load *load);
void load_message_free(struct load *load);

/* The id of a message, LOAD_ID_LEN octets and a NUL. */
void load_message_id(const struct load *load, uint64_t session,
		     uint64_t message, char id[LOAD_ID_LEN + 1]);

/* Write the header, header_len octets. */
void load_message_header(const struct load *load, const char *id, char *out);

/* --- load_report.c --- */

/* An addition to the table of refusals. */
void load_report_refusal(struct load_stats *st, enum load_phase phase,
			 const char *text, size_t len);
void load_report_progress(struct load *load);
void load_report_tables(const struct load *load, FILE *out);
void load_report_json(const struct load *load, FILE *out);

/* Whether a session that ended so did not do what was asked. */
bool load_report_is_failure(enum load_ending ending);

/* Sessions that did not. */
uint64_t load_report_failed(const struct load_stats *st);

/* A duration in the unit that suits it, 8 columns wide, two blanks before. */
void load_report_put_time(FILE *out, uint64_t us);

/* What a peer sent, made harmless, also inside a JSON string. */
void load_report_put_text(FILE *out, const char *text, size_t len);

/* As in the table of endings. */
const char *load_report_ending_text(enum load_ending ending);

/* As in --abort and in the report. */
const char *load_report_phase_name(enum load_phase phase);

#endif
