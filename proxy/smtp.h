#ifndef PROXY_SMTP_H
#define PROXY_SMTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The grammar of SMTP (RFC 5321 and its extensions): command lines, replies,
 * the end of a body, and weir's own EHLO reply.  It says what is said, never
 * what to do about it: order of commands, answers and limits per session are
 * the session's.
 *
 * Pure: no I/O, no clock, no allocation, no logging.  All input is hostile.
 * Nothing here keeps a pointer into a caller's buffer across calls; what is
 * handed out (struct smtp_line, struct smtp_command) points into the buffer
 * it was read from and lives as long as that does.  Text is never
 * NUL-terminated unless this header says so.
 */

/* Octets, CRLF included. */
enum {
	/* RFC 5321, section 4.5.3.1.4 */
	SMTP_COMMAND_LINE_MAX = 512,
	/*
	 * MAIL and RCPT grow with extensions: SIZE 26, BODY 17, AUTH 500,
	 * ENVID and RET 118, ORCPT and NOTIFY 528, ... (the RFCs of each);
	 * 2048 more holds all of them at once.
	 */
	SMTP_PATH_LINE_MAX = SMTP_COMMAND_LINE_MAX + 2048,
	/* RFC 4954, section 4; its continuation lines as well */
	SMTP_AUTH_LINE_MAX = 12288,
	/*
	 * RFC 5321, section 4.5.3.1.5 says 512; filters and Exchange write
	 * longer lines, and nobody is helped by a refusal.
	 */
	SMTP_REPLY_LINE_MAX = 2048,
	/* No limit in the RFC: this stops a backend that talks forever. */
	SMTP_REPLY_LINES_MAX = 1000,
	/* Of a reply's joined text, kept for logs and for its meaning. */
	SMTP_REPLY_TEXT_MAX = 1024,
	/* Of one line of a reply: enough for any EHLO keyword line we read. */
	SMTP_REPLY_HEAD_MAX = 256,
	/* RFC 5321, section 4.5.3.1.2: a domain name */
	SMTP_DOMAIN_MAX = 255,
	/* smtp_ehlo_write() never writes more, whatever the extensions. */
	SMTP_EHLO_REPLY_MAX = 1024,
	/* A longer queue id is cut off; no MTA's is (Exchange's has 60). */
	SMTP_QUEUE_ID_MAX = 128,
};

/*
 * Extensions, a bit each, in an EHLO reply or used by a MAIL or RCPT.
 * smtp_ext_name() spells them.
 */
enum smtp_ext {
	SMTP_EXT_SIZE = 1 << 0,        /* RFC 1870 */
	SMTP_EXT_8BITMIME = 1 << 1,    /* RFC 6152 */
	SMTP_EXT_SMTPUTF8 = 1 << 2,    /* RFC 6531 */
	SMTP_EXT_DSN = 1 << 3,         /* RFC 3461 */
	SMTP_EXT_CHUNKING = 1 << 4,    /* RFC 3030 */
	SMTP_EXT_BINARYMIME = 1 << 5,  /* RFC 3030; needs CHUNKING */
	SMTP_EXT_DELIVERBY = 1 << 6,   /* RFC 2852 */
	SMTP_EXT_MT_PRIORITY = 1 << 7, /* RFC 6710 */
	SMTP_EXT_REQUIRETLS = 1 << 8,  /* RFC 8689 */
	SMTP_EXT_AUTH = 1 << 9,        /* RFC 4954 */
	SMTP_EXT_PIPELINING = 1 << 10, /* RFC 2920 */
	SMTP_EXT_ENHANCED = 1 << 11,   /* RFC 2034: ENHANCEDSTATUSCODES */
	SMTP_EXT_STARTTLS = 1 << 12,   /* RFC 3207 */
	SMTP_EXT_XCLIENT = 1 << 13,    /* Postfix XCLIENT_README */
	SMTP_EXT_XFORWARD = 1 << 14,   /* Postfix XFORWARD_README */

	SMTP_EXT_BITS = 15,

	/* What weir may offer if every backend in use does. */
	SMTP_EXT_RELAYED = SMTP_EXT_SIZE | SMTP_EXT_8BITMIME |
			   SMTP_EXT_SMTPUTF8 | SMTP_EXT_DSN |
			   SMTP_EXT_CHUNKING | SMTP_EXT_BINARYMIME |
			   SMTP_EXT_DELIVERBY | SMTP_EXT_MT_PRIORITY |
			   SMTP_EXT_REQUIRETLS,
	/* What weir offers by itself, as the listener has it. */
	SMTP_EXT_OWN = SMTP_EXT_STARTTLS | SMTP_EXT_AUTH,
};

/*
 * SASL mechanisms that may be relayed, a bit each.  None whose name ends in
 * -PLUS: they bind to the TLS of one leg, and there are two.
 */
enum smtp_auth {
	SMTP_AUTH_PLAIN = 1 << 0,         /* RFC 4616 */
	SMTP_AUTH_LOGIN = 1 << 1,         /* draft-murchison-sasl-login */
	SMTP_AUTH_CRAM_MD5 = 1 << 2,      /* RFC 2195 */
	SMTP_AUTH_XOAUTH2 = 1 << 3,       /* Google, Microsoft */
	SMTP_AUTH_OAUTHBEARER = 1 << 4,   /* RFC 7628 */
	SMTP_AUTH_SCRAM_SHA_1 = 1 << 5,   /* RFC 5802 */
	SMTP_AUTH_SCRAM_SHA_256 = 1 << 6, /* RFC 7677 */

	SMTP_AUTH_BITS = 7,
};

/* What XCLIENT may tell, a bit for each attribute: Postfix XCLIENT_README. */
enum smtp_xclient {
	SMTP_XCLIENT_NAME = 1 << 0,
	SMTP_XCLIENT_ADDR = 1 << 1,
	SMTP_XCLIENT_PORT = 1 << 2,
	SMTP_XCLIENT_PROTO = 1 << 3,
	SMTP_XCLIENT_HELO = 1 << 4,
	SMTP_XCLIENT_LOGIN = 1 << 5,
	SMTP_XCLIENT_DESTADDR = 1 << 6,
	SMTP_XCLIENT_DESTPORT = 1 << 7,
	SMTP_XCLIENT_REVERSE_NAME = 1 << 8,

	SMTP_XCLIENT_BITS = 9,
};

/* ---- command lines, from a client ---- */

enum smtp_scan {
	SMTP_SCAN_LINE, /* a whole line, CRLF at its end and nowhere else */
	SMTP_SCAN_MORE, /* no line end yet: call again with more octets */
	SMTP_SCAN_BAD,  /* a line with a bare CR, a bare LF or a NUL */
	SMTP_SCAN_LONG, /* no line end within max octets */
};

struct smtp_line {
	const char *text; /* LINE: without CRLF */
	size_t len;       /* LINE: octets of text */
	size_t eaten;     /* LINE, BAD: octets to consume */
};

/*
 * Find the first line in buf[0..len), which starts at the start of a line;
 * `max` octets, CRLF included, are allowed (smtp_line_max()).
 *
 * LINE and BAD fill in *line; consume line->eaten octets.  BAD ends with an
 * LF, bare or not: answer 500 once, then go on behind it or close.  LONG
 * consumes nothing: answer 500 once, drop octets by smtp_line_skip(), so that
 * the rest of the line is never taken for a command (RFC 5321, section
 * 4.5.3.1.9).
 *
 * The answer for given octets does not depend on how they were split.
 */
enum smtp_scan smtp_line_scan(const void *buf, size_t len, size_t max,
			      struct smtp_line *line);

/*
 * How long the line that starts with buf[0..len) may be, by its verb: one of
 * SMTP_COMMAND_LINE_MAX, SMTP_PATH_LINE_MAX, SMTP_AUTH_LINE_MAX.
 */
size_t smtp_line_max(const void *buf, size_t len);

/*
 * Octets of buf[0..len) to drop of a line that is too long, through its LF.
 * *ended says whether the LF was among them; if not, call again with what
 * comes next.
 */
size_t smtp_line_skip(const void *buf, size_t len, bool *ended);

/*
 * True if no SMTP command starts so: the first octet is a control (a TLS
 * ClientHello begins with 0x16) or has its eighth bit set.  CR, LF and blanks
 * are not binary.  False for no octets.
 */
bool smtp_line_is_binary(const void *buf, size_t len);

enum smtp_verb {
	SMTP_VERB_OTHER, /* well-formed, but unknown */
	SMTP_VERB_EHLO,
	SMTP_VERB_HELO,
	SMTP_VERB_MAIL,
	SMTP_VERB_RCPT,
	SMTP_VERB_DATA,
	SMTP_VERB_BDAT,
	SMTP_VERB_RSET,
	SMTP_VERB_NOOP,
	SMTP_VERB_VRFY,
	SMTP_VERB_EXPN,
	SMTP_VERB_HELP,
	SMTP_VERB_QUIT,
	SMTP_VERB_STARTTLS,
	SMTP_VERB_AUTH,
	SMTP_VERB_ETRN,
	SMTP_VERB_TURN,
	SMTP_VERB_XCLIENT,
	SMTP_VERB_XFORWARD,
	SMTP_VERB_PROXY,   /* a PROXY v1 header where none is expected */
	SMTP_VERB_FOREIGN, /* another protocol: HTTP verbs, header fields */
};

/* The verdict on a command's form; smtp_syntax_reply() has the reply. */
enum smtp_syntax {
	SMTP_SYNTAX_OK,
	SMTP_SYNTAX_UNKNOWN,       /* 500: no verb that we know */
	SMTP_SYNTAX_EMPTY,         /* 500: no verb at all */
	SMTP_SYNTAX_ARG_MISSING,   /* 501: EHLO, VRFY, BDAT, ... alone */
	SMTP_SYNTAX_ARG_UNWANTED,  /* 501: DATA, RSET, QUIT, ... with one */
	SMTP_SYNTAX_ARG_BAD,       /* 501: not FROM:, no number, no base64,
				      ... */
	SMTP_SYNTAX_HOST_BAD,      /* 501: no domain or address literal */
	SMTP_SYNTAX_SENDER_BAD,    /* 501: reverse-path */
	SMTP_SYNTAX_RECIPIENT_BAD, /* 501: forward-path */
	SMTP_SYNTAX_PARAM_BAD,     /* 501: a bad value, or given twice */
	SMTP_SYNTAX_PARAM_UNKNOWN, /* 555, RFC 5321 section 4.1.1.11 */
};

enum smtp_body_type {
	SMTP_BODY_UNSAID, /* no BODY parameter */
	SMTP_BODY_7BIT,
	SMTP_BODY_8BITMIME,
	SMTP_BODY_BINARYMIME, /* only BDAT may carry it */
};

struct smtp_command {
	enum smtp_verb verb;
	enum smtp_syntax syntax;
	bool has_8bit;      /* MAIL, RCPT: UTF-8 in path or parameters, for
			       which the transaction needs SMTPUTF8, else
			       553 5.6.7 (RFC 6531, section 3.5) */
	bool bdat_last;     /* BDAT: LAST was said */
	const char *arg;    /* all behind the verb, blanks cut at both ends */
	size_t arg_len;     /* octets, may be 0 */
	const char *path;   /* MAIL, RCPT: the mailbox, without <> and source
			       route; NULL unless the path was readable */
	size_t path_len;    /* octets; 0 for <> */
	const char *domain; /* within path, behind its @; or NULL */
	size_t domain_len;
	const char *params; /* MAIL, RCPT: what stands behind the path */
	size_t params_len;
	unsigned ext; /* MAIL, RCPT: enum smtp_ext bits that it uses */
	enum smtp_body_type body; /* MAIL */
	uint64_t size;            /* MAIL: of SIZE=, if ext has its bit;
				     BDAT: of the chunk, if size_known */
	unsigned auth;       /* AUTH: enum smtp_auth, one bit; 0 if it is no
				   mechanism that we know: 504 5.5.4 */
	const char *initial; /* AUTH: the initial response, "=" if that is
				   empty; NULL: none.  Credentials: never in
				   a log line, nor is arg */
	size_t initial_len;  /* octets */
	bool size_known; /* BDAT: size was readable: swallow that many octets
			    even if the command is refused; if false the
			    stream cannot be followed: close */
};

/*
 * Read one command line (without CRLF, as smtp_line_scan() gives it).
 *
 * Lenient where real clients are: blanks around, FROM: <a@b>, paths without
 * <>, source routes (read over, RFC 5321 appendix C), underscores and final
 * dots in names.  Strict where laxness is dangerous: controls, blanks in an
 * EHLO name (it is said again to backends), invalid UTF-8, sizes, anything but
 * base64 in a response of AUTH (RFC 4954, section 4; how many octets make it
 * whole is for the backend to say).
 */
struct smtp_command smtp_command_parse(const char *text, size_t len);

/*
 * Whether a line (without CRLF) may be a client's answer to 334: base64, "="
 * or "*", which gives up, or empty (RFC 4954, section 4).
 */
bool smtp_auth_line_fits(const char *text, size_t len);

/* The verb in capitals; "other", "foreign".  NUL-terminated, never NULL. */
const char *smtp_verb_name(enum smtp_verb verb);

/*
 * The whole reply for a verdict, CRLF included, NUL-terminated.  NULL for
 * SMTP_SYNTAX_OK.
 */
const char *smtp_syntax_reply(enum smtp_syntax syntax);

/* ---- replies, from a backend ---- */

/* What an EHLO reply offers. */
struct smtp_ehlo {
	unsigned ext;     /* enum smtp_ext bits */
	unsigned auth;    /* enum smtp_auth bits of AUTH, those we know */
	unsigned xclient; /* enum smtp_xclient bits, those we know */
	uint64_t size;    /* of SIZE; 0: no limit, or none said */
};

/*
 * Read one line of an EHLO reply, behind "250-", into *ehlo.  Returns the
 * enum smtp_ext bit, or 0 for a keyword that we do not know.  "AUTH=LOGIN",
 * from before RFC 4954, is read as "AUTH LOGIN"; of several AUTH lines all
 * mechanisms count.
 */
unsigned smtp_ehlo_keyword(const char *line, size_t len,
			   struct smtp_ehlo *ehlo);

enum smtp_reply_bad {
	SMTP_REPLY_GOOD,
	SMTP_REPLY_BAD_CODE,    /* a line does not begin with 200 to 599 */
	SMTP_REPLY_BAD_FORM,    /* the code ends in neither blank nor - */
	SMTP_REPLY_BAD_MIXED,   /* two codes in one reply */
	SMTP_REPLY_BAD_BARE_CR, /* CR without LF */
	SMTP_REPLY_BAD_BARE_LF, /* LF without CR */
	SMTP_REPLY_BAD_NUL,     /* NUL */
	SMTP_REPLY_BAD_LONG,    /* a line over SMTP_REPLY_LINE_MAX */
	SMTP_REPLY_BAD_LINES,   /* more than SMTP_REPLY_LINES_MAX lines */
};

enum smtp_reply_fed {
	SMTP_REPLY_MORE,  /* all octets were consumed, the reply goes on */
	SMTP_REPLY_WHOLE, /* the last octet consumed ended the reply */
	SMTP_REPLY_BAD,   /* .bad says why; the connection is of no use */
};

/*
 * One reply as it comes in.  Read freely, write only by the functions below.
 * All fields but the state count from smtp_reply_begin() on and are final
 * when SMTP_REPLY_WHOLE was returned.
 */
struct smtp_reply_parser {
	uint8_t state; /* private */
	bool ehlo_wanted;
	bool truncated;          /* text does not hold all of it */
	enum smtp_reply_bad bad; /* SMTP_REPLY_GOOD unless SMTP_REPLY_BAD */
	uint16_t code;           /* 200 to 599 once read, 0 before */
	uint16_t line_code;      /* private */
	uint16_t line_len;       /* octets of the line so far */
	uint16_t lines;          /* begun so far, the current one included */
	uint16_t head_len;       /* octets in head */
	uint16_t text_len;       /* octets in text */
	uint64_t octets;         /* fed in all, CRLFs included */
	struct smtp_ehlo ehlo;   /* of lines 2 and up, if ehlo_wanted */
	char head[SMTP_REPLY_HEAD_MAX]; /* the last line, behind the code */
	char text[SMTP_REPLY_TEXT_MAX]; /* all lines behind their codes,
					   joined by single blanks */
};

/*
 * Get ready for a reply; before the first octet of each.  ehlo_wanted: read
 * its lines as those of an EHLO reply.
 */
void smtp_reply_begin(struct smtp_reply_parser *r, bool ehlo_wanted);

/*
 * Feed buf[0..len).  *used is set to the octets consumed: all of them unless
 * the reply ends before (WHOLE) or is bad (BAD: through the octet at fault).
 * The caller relays the octets themselves.  After WHOLE or BAD, only
 * smtp_reply_begin() is allowed.  A split never changes the answer.
 */
enum smtp_reply_fed smtp_reply_feed(struct smtp_reply_parser *r,
				    const void *buf, size_t len, size_t *used);

/* Words for a log line.  NUL-terminated, never NULL. */
const char *smtp_reply_bad_name(enum smtp_reply_bad bad);

/* An enhanced status code (RFC 3463); all 0 if there is none. */
struct smtp_esc {
	uint8_t class;    /* 2, 4 or 5 */
	uint16_t subject; /* 0 to 999 */
	uint16_t detail;  /* 0 to 999 */
};

/*
 * The enhanced status code of a reply's last line (behind the code): at its
 * start, else as (#x.y.z) anywhere in it, as qmail writes it.  Returns
 * whether there is one; *esc is set in any case.
 */
bool smtp_reply_esc(const char *line, size_t len, struct smtp_esc *esc);

/*
 * The backend's queue id, read from the last line of its 2xx to the end of
 * the data.  On success returns its length, 1 to SMTP_QUEUE_ID_MAX, and *start
 * is where it begins in line; only printable US-ASCII is in it, no
 * blanks, quotes or brackets.  0: none was recognized.
 */
size_t smtp_reply_queue_id(const char *line, size_t len, size_t *start);

/* ---- bodies, from a client, after 354 ---- */

enum smtp_body_flaw {
	SMTP_FLAW_BARE_CR = 1 << 0,
	SMTP_FLAW_BARE_LF = 1 << 1,
	SMTP_FLAW_NUL = 1 << 2,
};

/*
 * A body as it passes by.  Read freely.  Flaws are known no later than one
 * octet behind; a body with any is to be refused whole (550 5.6.11), so
 * the end of data must not reach the backend while flaws != 0.
 */
struct smtp_body {
	uint8_t state;   /* private */
	bool ended;      /* CRLF.CRLF was seen; it was the last octets taken */
	unsigned flaws;  /* enum smtp_body_flaw bits, of what was taken */
	uint64_t octets; /* taken in all, dots stuffed and the end included */
};

/* Get ready for a body; before its first octet. */
void smtp_body_begin(struct smtp_body *b);

/*
 * How many octets of buf[0..len) belong to the body: all, unless its end is
 * among them; then through the last octet of CRLF.CRLF (RFC 5321, section
 * 4.1.1.4), and b->ended is set.  Nothing else ends a body.  Not to be called
 * after the end.
 */
size_t smtp_body_scan(struct smtp_body *b, const void *buf, size_t len);

/*
 * A body of DATA on its way into counted chunks of BDAT (RFC 3030), where
 * nothing in it can end it: without its end and without the dots that RFC
 * 5321, section 4.5.2 stuffs lines with.  Bare CR, bare LF and NUL are octets
 * like others, and begin or end no line.  Read freely.
 *
 * Two do the work, each with a struct of its own and over the same windows
 * in the same order: smtp_reframe() counts, so that BDAT can be said, and
 * smtp_undot() makes the octets.  A split never changes what comes out.
 */
struct smtp_undot {
	uint8_t state; /* private */
	bool ended;    /* CRLF.CRLF was seen; nothing more may be given */
};

/* Of one window. */
struct smtp_reframed {
	size_t taken;   /* octets of it that belong to the body; all, unless
			   its end is among them: as smtp_body_scan() has it */
	size_t octets;  /* that a chunk carries for it, an owed CR included;
			   perhaps 0, and up to taken + 1 */
	size_t stuffed; /* dots left out of it, the one of the end as well */
	bool owes_cr;   /* a CR goes in front of the window's own octets: it
			   was held back behind a dot that began a line, and
			   what follows it now is no LF */
	bool ended;     /* the body is whole: this chunk is the last */
};

/* Get ready for a body; before its first octet. */
void smtp_undot_begin(struct smtp_undot *u);

/* What becomes of buf[0..len); nothing is written. */
struct smtp_reframed smtp_reframe(struct smtp_undot *u, const void *buf,
				  size_t len);

/*
 * Move what is passed of buf[0..len) to its front, and return how many octets
 * that is: .octets of smtp_reframe(), less the CR that is owed in front.
 */
size_t smtp_undot(struct smtp_undot *u, void *buf, size_t len);

/* ---- our own words ---- */

/*
 * The keyword of one bit of EHLO, of AUTH or of XCLIENT.  NUL-terminated,
 * never NULL.
 */
const char *smtp_ext_name(enum smtp_ext bit);
const char *smtp_auth_name(enum smtp_auth bit);
const char *smtp_xclient_name(enum smtp_xclient bit);

/*
 * Write weir's reply to EHLO: hostname (NUL-terminated, at most
 * SMTP_DOMAIN_MAX octets), PIPELINING and ENHANCEDSTATUSCODES always, of
 * offer->ext what SMTP_EXT_RELAYED and SMTP_EXT_OWN hold.  SIZE carries
 * offer->size unless that is 0; AUTH carries offer->auth and is left out
 * if that is 0; BINARYMIME is left out without CHUNKING (RFC 3030, section 3).
 * cap is at least SMTP_EHLO_REPLY_MAX.  Returns octets written; no NUL.
 */
size_t smtp_ehlo_write(char *buf, size_t cap, const char *hostname,
		       const struct smtp_ehlo *offer);

#endif
