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
 * EHLO (HELO if that is refused), where wanted STARTTLS, XCLIENT, MAIL FROM:<>
 * and RSET, and the question whether it relays for strangers, QUIT.
 *
 * Pure: no socket, no clock, no TLS.  Events go in, a plan comes out: octets
 * to send, whether to begin TLS, until when to wait, whether it is over.
 *
 * It is a polite client: it never talks before the greeting is whole, never
 * sends a command before the reply to the last one, and says QUIT whenever
 * somebody may still listen, so that a backend's log stays quiet.
 *
 *	CONNECT > [HANDSHAKE] > GREETING > EHLO > [HELO]
 *		> [STARTTLS > HANDSHAKE > EHLO] > [XCLIENT > EHLO]
 *		> [MAIL > RSET] > [GUARD_MAIL > GUARD_RCPT > RSET]
 *		> QUIT > DONE
 *
 * What is learned of EHLO is learned of the last one.
 *
 * The outcome is decided before GUARD_MAIL and QUIT; nothing that happens in
 * those changes it.
 *
 * The guard's question is mail of a stranger to a stranger, in a domain that
 * cannot exist (RFC 6761, section 6.4): a backend that takes it trusts weir's
 * address, and would take anybody's.  It is a refusal to relay that is
 * looked for: what a backend has against the sender's domain makes the probe
 * ask again with <>, and a recipient's domain that it looked up before it
 * thought of relaying leaves the matter unproven.
 */

enum {
	PROBE_TEXT_MAX = 256,       /* kept of the reply that decided */
	PROBE_QUIT_MS = 2000,       /* for the 221 or the end of the stream */
	PROBE_TLS_VERSION_MAX = 16, /* "TLSv1.3", the NUL included */
	PROBE_RELAY_TEXT_MAX = 128, /* kept of what it said to the guard */
};

/*	STEP(NAME, name) */
#define PROBE_STEPS(STEP)                                                      \
	STEP(CONNECT, connect)                                                 \
	STEP(GREETING, greeting)                                               \
	STEP(EHLO, ehlo)                                                       \
	STEP(HELO, helo)                                                       \
	STEP(STARTTLS, starttls)                                               \
	STEP(HANDSHAKE, handshake)                                             \
	STEP(XCLIENT, xclient)                                                 \
	STEP(MAIL, mail)                                                       \
	STEP(GUARD_MAIL, guard_mail)                                           \
	STEP(GUARD_RCPT, guard_rcpt)                                           \
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
	OUTCOME(TLS_REFUSED, tls_refused, "does not do STARTTLS")              \
	OUTCOME(TLS_FAILED, tls_failed, "the TLS handshake failed")            \
	OUTCOME(XCLIENT_REFUSED, xclient_refused,                              \
		"does not let weir say XCLIENT")                               \
	OUTCOME(MAIL_BUSY, mail_busy, "answered MAIL with 4xx")                \
	OUTCOME(MAIL_REFUSED, mail_refused, "answered MAIL with 5xx")          \
	OUTCOME(CLOSED, closed, "closed in mid-dialogue")                      \
	OUTCOME(RESET, reset, "reset in mid-dialogue")                         \
	OUTCOME(TIMEOUT, timeout, "stopped answering in mid-dialogue")         \
	OUTCOME(ABANDONED, abandoned, "given up for reasons of weir's own")

#define PROBE_OUTCOME_ENUM(NAME, name, help) PROBE_##NAME,
enum probe_outcome { PROBE_OUTCOMES(PROBE_OUTCOME_ENUM) PROBE_OUTCOME_COUNT };
#undef PROBE_OUTCOME_ENUM

/* How far TLS is wanted. */
enum probe_tls {
	PROBE_TLS_NONE,
	PROBE_TLS_IF_OFFERED, /* else in clear */
	PROBE_TLS_MUST,
};

/* Does it take a stranger's mail for a stranger? */
enum probe_relay {
	PROBE_RELAY_UNASKED,
	PROBE_RELAY_INCONCLUSIVE, /* busy, sick or lost: ask again */
	PROBE_RELAY_UNPROVEN,     /* it refused, but for another reason */
	PROBE_RELAY_CLOSED,
	PROBE_RELAY_OPEN,
};

/* What is known when a probe has ended; for people and for the balancer. */
struct probe_report {
	enum probe_outcome outcome;
	enum probe_step_name failed; /* where; DONE if nowhere */
	enum busy_class class;       /* of the deciding reply, or of silence */
	uint16_t code;               /* of it; 0: no reply */
	uint16_t text_len;
	bool ehlo_known;  /* ext, size and auth are of the last EHLO */
	unsigned ext;     /* enum smtp_ext bits; 0 after HELO */
	unsigned auth;    /* enum smtp_auth bits, as ext */
	uint64_t size;    /* 0: no limit, or none said */
	int error;        /* errno of a failed connect, else 0 */
	int64_t ended_ms; /* when the outcome was decided */
	int64_t greet_ms; /* from the connect's begin to 220; -1: no 220 */
	int64_t took_ms[PROBE_STEP_COUNT]; /* each step, all times that it was
					      taken; -1: not reached */

	bool tls;          /* it went over TLS */
	bool tls_failed;   /* a handshake failed that was only tried: no verdict
			    on health; sessions had better go in clear */
	bool verified;     /* the certificate was checked, and good */
	int64_t expires_s; /* its notAfter, in seconds since 1970; 0: unknown */
	int64_t left_s;    /* from when it was seen until then; may be < 0 */
	char tls_version[PROBE_TLS_VERSION_MAX]; /* NUL-terminated */

	enum probe_relay relay;
	enum probe_step_name relay_step; /* GUARD_MAIL or GUARD_RCPT: where the
					    question was answered */
	uint16_t relay_code;             /* 0: no reply */
	uint16_t relay_text_len;

	char text[PROBE_TEXT_MAX]; /* the deciding reply, or why there is no
				      TLS; peer's octets */
	char relay_text[PROBE_RELAY_TEXT_MAX]; /* the reply to the guard */
};

/* How to probe.  Must outlive the probe. */
struct probe_order {
	const char *helo; /* what we call ourselves; NUL-terminated */
	bool mail;        /* say MAIL and RSET too */
	enum probe_tls tls;
	bool implicit; /* TLS from the first octet; unless tls is NONE */
	bool xclient;  /* say XCLIENT, with nothing known of a client */
	bool guard;    /* ask whether it relays for strangers */
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
	PROBE_IN_FAILED,   /* the connect, with .error */
	PROBE_IN_OCTETS,   /* .octets[0..len), out of TLS if there is any; none
			    during the handshake */
	PROBE_IN_CLOSED,   /* end of stream */
	PROBE_IN_RESET,    /* reset, or any other error of the stream */
	PROBE_IN_TIME,     /* the deadline of the last plan has passed */
	PROBE_IN_CANCEL,   /* weir wants it over; no verdict */
	PROBE_IN_SECURED,  /* the handshake is done; .expires_s, .now_s,
			      .verified, .tls_version */
	PROBE_IN_INSECURE, /* it failed: .octets[0..len) say why; later than
			      that, as RESET */
};

struct probe_event {
	enum probe_event_kind kind;
	int error; /* errno, positive */
	const void *octets;
	size_t len;
	int64_t expires_s; /* the certificate's notAfter; 0: unknown */
	int64_t now_s;     /* seconds since 1970 */
	bool verified;
	const char *tls_version; /* NUL-terminated, a longer one is cut */
};

struct probe_plan {
	bool handshake;   /* begin TLS now, as the client.  What was received
			     and not given to the probe yet, is thrown away;
			     nothing is to be sent before */
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
	unsigned xclient; /* enum smtp_xclient bits, of the last EHLO */
	bool unsecured;   /* STARTTLS was refused, and may be */
	bool introduced;  /* by XCLIENT */
	bool guarding;    /* the outcome is decided: it is the guard's turn */
	bool guard_null;  /* with <> for the sender */
	bool shake;       /* begin the handshake now */
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
