#ifndef HEALTH_PROBE_H
#define HEALTH_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "health/health.h"
#include "proxy/smtp.h"

/*
 * One SMTP probe of one backend: connect, greeting of any number of lines,
 * EHLO (HELO if that is refused), where wanted MAIL FROM:<> and RSET, QUIT.
 *
 * Pure: no socket, no clock.  Events go in, a plan comes out: octets to send,
 * until when to wait, whether it is over.
 *
 * It is a polite client: it never talks before the greeting is whole, never
 * sends a command before the reply to the last one, and says QUIT whenever
 * somebody may still listen, so that a backend's log stays quiet.
 *
 *	CONNECT > GREETING > EHLO > [HELO] > [MAIL > RSET] > QUIT > DONE
 *
 * The outcome is decided before QUIT; nothing that happens in QUIT changes it.
 */

enum {
	PROBE_TEXT_MAX = 256, /* kept of the reply that decided */
	PROBE_QUIT_MS = 2000, /* for the 221 or the end of the stream */
};

/*	STEP(NAME, name) */
#define PROBE_STEPS(STEP)                                                      \
	STEP(CONNECT, connect)                                                 \
	STEP(GREETING, greeting)                                               \
	STEP(EHLO, ehlo)                                                       \
	STEP(HELO, helo)                                                       \
	STEP(MAIL, mail)                                                       \
	STEP(RSET, rset)                                                       \
	STEP(QUIT, quit)                                                       \
	STEP(DONE, done)

#define PROBE_STEP_ENUM(NAME, name) PROBE_STEP_##NAME,
enum probe_step_name { PROBE_STEPS(PROBE_STEP_ENUM) PROBE_STEP_COUNT };
#undef PROBE_STEP_ENUM

/*
 *	OUTCOME(NAME, name, help)
 *
 * REPLY outcomes: .code, .class and .text tell the rest, .failed the step.
 */
#define PROBE_OUTCOMES(OUTCOME)                                                \
	OUTCOME(NONE, none, "no probe has ended yet")                          \
	OUTCOME(OK, ok, "every step was answered with 2xx")                    \
	OUTCOME(REFUSED, refused, "connection refused")                        \
	OUTCOME(UNREACHABLE, unreachable, "no route to it")                    \
	OUTCOME(CONNECT_TIMEOUT, connect_timeout, "no answer to the connect")  \
	OUTCOME(CONNECT_RESET, connect_reset, "reset while connecting")        \
	OUTCOME(CONNECT_ERROR, connect_error, "could not connect at all")      \
	OUTCOME(CLOSED_EARLY, closed_early, "closed before it greeted")        \
	OUTCOME(SILENT, silent, "connected, but did not greet in time")        \
	OUTCOME(GREETING_BUSY, greeting_busy, "greeted with 4xx")              \
	OUTCOME(GREETING_REFUSED, greeting_refused, "greeted with 5xx")        \
	OUTCOME(NOT_SMTP, not_smtp, "what it says is no SMTP")                 \
	OUTCOME(EHLO_BUSY, ehlo_busy, "answered EHLO with 4xx")                \
	OUTCOME(EHLO_REFUSED, ehlo_refused, "refused both EHLO and HELO")      \
	OUTCOME(MAIL_BUSY, mail_busy, "answered MAIL with 4xx")                \
	OUTCOME(MAIL_REFUSED, mail_refused, "answered MAIL with 5xx")          \
	OUTCOME(CLOSED, closed, "closed in mid-dialogue")                      \
	OUTCOME(RESET, reset, "reset in mid-dialogue")                         \
	OUTCOME(TIMEOUT, timeout, "stopped answering in mid-dialogue")         \
	OUTCOME(ABANDONED, abandoned, "given up for reasons of weir's own")

#define PROBE_OUTCOME_ENUM(NAME, name, help) PROBE_##NAME,
enum probe_outcome { PROBE_OUTCOMES(PROBE_OUTCOME_ENUM) PROBE_OUTCOME_COUNT };
#undef PROBE_OUTCOME_ENUM

/* What is known when a probe has ended; for people and for the balancer. */
struct probe_report {
	enum probe_outcome outcome;
	enum probe_step_name failed; /* where; DONE if nowhere */
	enum busy_class class;       /* of the deciding reply, or of silence */
	uint16_t code;               /* of it; 0: no reply */
	uint16_t text_len;
	bool ehlo_known;  /* ext and size were learned */
	unsigned ext;     /* enum smtp_ext bits; 0 after HELO */
	uint64_t size;    /* 0: no limit, or none said */
	int error;        /* errno of a failed connect, else 0 */
	int64_t ended_ms; /* when the outcome was decided */
	int64_t greet_ms; /* from the connect's begin to 220; -1: no 220 */
	int64_t took_ms[PROBE_STEP_COUNT]; /* each step; -1: not reached */
	char text[PROBE_TEXT_MAX]; /* the deciding reply; peer's octets */
};

/* How to probe.  Must outlive the probe. */
struct probe_order {
	const char *helo; /* what we call ourselves; NUL-terminated */
	bool mail;        /* say MAIL and RSET too */
	int64_t connect_ms;
	int64_t timeout_ms; /* for all of it, the connect included */
	/* To read replies: the backend's own rules, weir's own addresses. */
	const struct busy_rule *rules;
	unsigned rule_count;
	unsigned proxy_ip_count; /* 0..BUSY_PROXY_IPS_MAX */
	const char *const *proxy_ips;
};

enum probe_event_kind {
	PROBE_IN_CONNECTED,
	PROBE_IN_FAILED, /* the connect, with .error */
	PROBE_IN_OCTETS, /* .octets[0..len) */
	PROBE_IN_CLOSED, /* end of stream */
	PROBE_IN_RESET,  /* reset, or any other error of the stream */
	PROBE_IN_TIME,   /* the deadline of the last plan has passed */
	PROBE_IN_CANCEL, /* weir wants it over; no verdict */
};

struct probe_event {
	enum probe_event_kind kind;
	int error; /* errno, positive */
	const void *octets;
	size_t len;
};

struct probe_plan {
	const char *send; /* in the probe, until the next step; or NULL */
	size_t send_len;
	int64_t deadline_ms; /* deliver PROBE_IN_TIME then; replaces the last */
	bool done;           /* close; probe.report is final */
};

/* Read .report when done; the rest is private. */
struct probe {
	enum probe_step_name step;
	uint16_t say_len; /* octets of line to send now */
	int64_t begun_ms;
	int64_t step_ms; /* when this step began */
	int64_t connect_by_ms, all_by_ms, quit_by_ms;
	const struct probe_order *order;
	struct probe_report report;
	struct smtp_reply_parser reply;
	char line[SMTP_COMMAND_LINE_MAX];
};

/* Begin: the connect was asked for at now_ms.  *plan has the deadline. */
void probe_begin(struct probe *p, const struct probe_order *order,
		 int64_t now_ms, struct probe_plan *plan);

/*
 * One event.  Total: an event that is not expected makes a plan that only
 * repeats the deadline.  After .done nothing changes any more.
 */
void probe_step(struct probe *p, const struct probe_event *event,
		int64_t now_ms, struct probe_plan *plan);

/* What an outcome means for the verdict.  Not for NONE and ABANDONED. */
enum health_probe probe_verdict(const struct probe_report *report);

/* Words.  NUL-terminated, never NULL. */
const char *probe_outcome_name(enum probe_outcome outcome);
const char *probe_outcome_help(enum probe_outcome outcome);
const char *probe_step_word(enum probe_step_name step);

#endif
