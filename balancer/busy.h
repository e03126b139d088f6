#ifndef BALANCER_BUSY_H
#define BALANCER_BUSY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy/smtp.h"

/*
 * What a backend's reply means: overloaded, broken, going away, or simply
 * its verdict on this client.  One rule table, alike for live traffic and for
 * probes.  The answer schedules; it never changes the words that a client
 * reads.
 *
 * Pure: no I/O, no clock, no allocation, no state.  Votes, holds and budgets
 * are kept by those who ask.
 *
 * The unknown is POLICY after MAIL and MAYBE only at the greeting: POLICY
 * taken for BUSY lets one abusive client throttle a backend, BUSY taken for
 * POLICY delays one message.
 */

/* When the backend said it. */
enum busy_stage {
	BUSY_STAGE_TCP, /* connecting: no reply can come, see busy_silence() */
	BUSY_STAGE_GREET,
	BUSY_STAGE_EHLO, /* HELO as well */
	BUSY_STAGE_XCLIENT,
	BUSY_STAGE_STARTTLS, /* the handshake behind it as well */
	BUSY_STAGE_AUTH,     /* each line of the client's dialogue */
	BUSY_STAGE_MAIL,
	BUSY_STAGE_RCPT,
	BUSY_STAGE_DATA, /* the reply that should have been 354, or BDAT's */
	BUSY_STAGE_EOD,  /* the final reply, behind the end of the data */
	BUSY_STAGE_IDLE, /* not asked for, between commands */
	BUSY_STAGES,
};

/*
 * Whom the backend sees.  "Too many connections from X" is a verdict on the
 * client if that is the client, a limit on us if that is weir.
 */
enum busy_ident {
	BUSY_IDENT_CLIENT, /* identity xclient, proxy-v1, -v2, transparent */
	BUSY_IDENT_PROXY,  /* identity none, header */
};

enum busy_class {
	BUSY_OK,      /* 2xx, 3xx */
	BUSY_BUSY,    /* overloaded */
	BUSY_MAYBE,   /* perhaps overloaded */
	BUSY_CAP,     /* a limit on our address */
	BUSY_DRAIN,   /* going away */
	BUSY_SICK,    /* a local fault of the backend */
	BUSY_MISCONF, /* it or weir is set up wrongly */
	BUSY_SESSION, /* about this connection only */
	BUSY_POLICY,  /* about the client or the message */
	BUSY_CLASSES,
};

/*
 * Every rule that can decide, in the order they are tried, so that decisions
 * can be counted and shown by rule.
 *
 *	RULE(id, name, meaning)
 */
#define BUSY_RULES(RULE)                                                       \
	RULE(OK, "ok", "2xx or 3xx")                                           \
	RULE(R0, "R0", "a rule of the operator's")                             \
	RULE(R1, "R1", "words of misconfiguration before MAIL")                \
	RULE(R2_SESSION, "R2.session", "5xx about this connection")            \
	RULE(R2_CLIENT, "R2.client",                                           \
	     "5xx to XCLIENT or STARTTLS, on the client")                      \
	RULE(R2_MISCONF, "R2.misconf", "5xx to weir itself before MAIL")       \
	RULE(R2_POLICY, "R2.policy", "5xx")                                    \
	RULE(R14_INFRA, "R14.infra", "435 or 454 to AUTH, no word of load")    \
	RULE(R3, "R3", "words about this connection")                          \
	RULE(R4, "R4", "names weir's own address")                             \
	RULE(R5_PEER, "R5.peer", "Exim's count, before it knows the client")   \
	RULE(R5_CAP, "R5.cap", "a limit per source, weir being the source")    \
	RULE(R5_POLICY, "R5.policy", "a limit per source, on the client")      \
	RULE(R6, "R6", "out of disk, memory or the like")                      \
	RULE(R7_INFRA, "R7.infra", "known words of sick infrastructure")       \
	RULE(R7_SICK, "R7.sick", "words of policy, but X.3.5")                 \
	RULE(R7_POLICY, "R7.policy", "words of policy")                        \
	RULE(R8, "R8", "421 and words of going away")                          \
	RULE(R9_POLICY, "R9.policy", "greeting X.7 to the client")             \
	RULE(R9_CAP, "R9.cap", "greeting X.7 to weir, words of load")          \
	RULE(R9_REFUSED, "R9.refused", "greeting X.7 to weir")                 \
	RULE(R9_BUSY, "R9.busy", "greeting with words or codes of load")       \
	RULE(R9_SICK, "R9.sick", "greeting X.3.0 or X.3.5")                    \
	RULE(R9_MAYBE, "R9.maybe", "any other 4xx greeting")                   \
	RULE(R10_BUSY, "R10.busy", "EHLO or XCLIENT, load")                    \
	RULE(R10_POLICY, "R10.policy", "EHLO or XCLIENT, X.7 to the client")   \
	RULE(R10_SICK, "R10.sick", "any other 4xx to EHLO or XCLIENT")         \
	RULE(R10_TLS, "R10.tls", "4xx to STARTTLS")                            \
	RULE(R11_BUSY, "R11.busy", "transaction, load")                        \
	RULE(R11_FRONT, "R11.front", "transaction, X.7 of a front end")        \
	RULE(R11_REFUSED, "R11.refused", "transaction, X.7")                   \
	RULE(R11_SICK, "R11.sick", "transaction, X.3 or a bare code")          \
	RULE(R11_POLICY, "R11.policy", "any other 4xx in a transaction")       \
	RULE(R12_BUSY, "R12.busy", "RCPT, load")                               \
	RULE(R12_FRONT, "R12.front", "RCPT, X.7 of a front end")               \
	RULE(R12_SICK, "R12.sick", "RCPT, X.3.0 or X.3.5")                     \
	RULE(R12_POLICY, "R12.policy", "any other 4xx to RCPT")                \
	RULE(R14_BUSY, "R14.busy", "AUTH, load")                               \
	RULE(R14_SICK, "R14.sick", "AUTH, X.3 or a bare code")                 \
	RULE(R14_POLICY, "R14.policy", "any other 4xx to AUTH")                \
	RULE(R13_CONNECT, "R13.connect", "refused, reset or unanswered")       \
	RULE(R13_SILENT, "R13.silent", "no greeting in time")                  \
	RULE(R13_MUTE, "R13.mute", "closed before the greeting")               \
	RULE(R13_LOST, "R13.lost", "closed, garbled or silent in mid-dialogue")

#define BUSY_RULE_ID(id, name, meaning) BUSY_RULE_##id,
enum busy_rule_id { BUSY_RULES(BUSY_RULE_ID) BUSY_RULE_COUNT };
#undef BUSY_RULE_ID

struct busy_verdict {
	enum busy_class class;
	enum busy_rule_id rule; /* that decided */
};

enum {
	/* Of an operator's rule; the longest known reply has 110 octets. */
	BUSY_RULE_TEXT_MAX = 127,
	BUSY_RULE_ERROR_MAX = 256,
	/* Addresses of weir's own that are looked for in a reply. */
	BUSY_PROXY_IPS_MAX = 16,
};

/*
 * One rule of the operator's (R0).  Made by busy_rule_parse(); what is not
 * said fits everything.
 */
struct busy_rule {
	uint16_t stages;     /* bit 1 << enum busy_stage */
	uint16_t code_min;   /* 400 to 599 */
	uint16_t code_max;   /* not below code_min */
	bool esc_given;      /* compare subject and detail */
	struct smtp_esc esc; /* its class is not compared */
	enum busy_class class;
	size_t text_len; /* 0: any text */
	char text[BUSY_RULE_TEXT_MAX + 1];
};

/*
 * Read `STAGE [CODE] [ESC] [TEXT] => CLASS`, for example
 *
 *	MAIL 452 4.3.1 => busy
 *	RCPT 4xx thread limit => busy
 *	any 450 => policy
 *
 * STAGE: greet ehlo xclient starttls auth mail rcpt data eod idle, or any.
 * CODE: three digits from 400 to 599, or 4xx or 5xx.  ESC: X.Y.Z, X being 4,
 * 5 or the letter x; Y and Z are compared.  TEXT: found anywhere in the reply,
 * without regard to case.  CLASS: the names of busy_class_name().  Words are
 * parted by blanks; the case of STAGE and CLASS does not matter.
 *
 * True, and *rule is written; or false, and error (NUL-terminated) says what
 * was read and what is wanted.
 */
bool busy_rule_parse(const char *text, struct busy_rule *rule,
		     char error[static BUSY_RULE_ERROR_MAX]);

/*
 * What is known of one reply.  Points to others' octets; owns nothing.  Of
 * the text our own rules read no more than SMTP_REPLY_TEXT_MAX octets.
 */
struct busy_reply {
	enum busy_stage stage; /* not BUSY_STAGE_TCP */
	enum busy_ident ident;
	unsigned code;                /* 200 to 599 */
	struct smtp_esc esc;          /* of the last line; class 0: none */
	const char *text;             /* all lines joined, without the codes */
	size_t text_len;              /* octets */
	const char *client_ip;        /* as text, NUL-terminated, or NULL */
	const char *const *proxy_ips; /* the same, of weir */
	size_t proxy_ip_count;        /* at most BUSY_PROXY_IPS_MAX */
};

/*
 * What a whole reply means.  rules: the operator's for this backend, first
 * fit decides, before all others but not over 2xx and 3xx; NULL if count is
 * 0.  Total: every reply gets a class.
 */
struct busy_verdict busy_classify(const struct busy_reply *reply,
				  const struct busy_rule *rules, size_t count);

/* What came instead of a reply (R13). */
enum busy_silence {
	BUSY_SILENCE_REFUSED,    /* connect: refused, unreachable */
	BUSY_SILENCE_RESET,      /* connect: reset */
	BUSY_SILENCE_TIMEOUT,    /* connect: no answer in time */
	BUSY_SILENCE_GREET_LATE, /* connected, no greeting in time */
	BUSY_SILENCE_GREET_EOF,  /* connected, closed before the greeting */
	BUSY_SILENCE_LOST,       /* closed or reset in mid-dialogue */
	BUSY_SILENCE_REPLY_LATE, /* no reply to a command in time */
	BUSY_SILENCE_FINAL_LATE, /* no final reply in time */
	BUSY_SILENCE_GARBLED,    /* what it said is not SMTP */
	BUSY_SILENCES,
};

struct busy_verdict busy_silence(enum busy_silence what);

/* ---- what follows from a class ---- */

/* How far into a session a thing may be done. */
enum busy_until {
	BUSY_UNTIL_NEVER,
	BUSY_UNTIL_MAIL,  /* up to AUTH: before MAIL was said */
	BUSY_UNTIL_REPLY, /* up to MAIL, while the client saw no reply to it;
			     the same holds for AUTH */
};

/* What the learner of limits is told. */
enum busy_limit {
	BUSY_LIMIT_NONE,
	BUSY_LIMIT_NEGATIVE, /* full weight */
	BUSY_LIMIT_HALF,     /* negative, half weight */
	BUSY_LIMIT_CEILING,  /* no more than are in use without this one */
	BUSY_LIMIT_POSITIVE, /* the backend answered */
};

/* What the health verdict is told. */
enum busy_health {
	BUSY_HEALTH_NONE,
	BUSY_HEALTH_HOLD,        /* busy hold-off, not DOWN */
	BUSY_HEALTH_DRAIN,       /* no new sessions until a check passes */
	BUSY_HEALTH_OUTLIER,     /* counts if its rate is above its peers' */
	BUSY_HEALTH_CONFIG_DOWN, /* DOWN, and an alert */
};

struct busy_actions {
	enum busy_until hide;  /* keep the reply from the client */
	enum busy_until retry; /* try another backend, within the budget */
	enum busy_limit limit;
	enum busy_health health;
	bool own_reply; /* if none is left to try: our own words, not its */
	bool retire;    /* QUIT and close this connection (after a 421 the
			   backend does, whatever the class) */
};

/* Never NULL; static storage. */
const struct busy_actions *busy_actions(enum busy_class class);

/* Is it a matter of slots: BUSY, perhaps, or a cap on us? */
bool busy_is_about_slots(enum busy_class class);

/* Whether a reply at this stage is within reach. */
bool busy_within(enum busy_until until, enum busy_stage stage);

/* Names, NUL-terminated, never NULL. */
const char *busy_stage_name(enum busy_stage stage);       /* "MAIL" */
const char *busy_class_name(enum busy_class class);       /* "maybe-busy" */
const char *busy_rule_name(enum busy_rule_id rule);       /* "R9.busy" */
const char *busy_rule_meaning(enum busy_rule_id rule);    /* a few words */
const char *busy_silence_name(enum busy_silence silence); /* a few words */

#endif
