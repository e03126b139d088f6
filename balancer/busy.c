#include "balancer/busy.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

struct span {
	const char *at;
	size_t len;
};

/* ---- words ---- */

/*
 * The notation of the word sets: octets stand for themselves, without regard
 * to case, but
 *
 *	<  >	a word begins or ends here, or would (\b)
 *	+	one or more letters, digits or underscores (\w+)
 *	*	anything or nothing (.*)
 *
 * An alternative is a row of its own.  None of the four is in a known reply's
 * own words, so there is no way to quote them.
 */

static char lower(char c)
{
	if (c < 'A' || c > 'Z')
		return c;
	return (char)(c - 'A' + 'a');
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static bool is_word(char c)
{
	char l = lower(c);

	return (l >= 'a' && l <= 'z') || is_digit(c) || c == '_';
}

/* Whether a word begins or ends between text[at - 1] and text[at]. */
static bool is_edge(struct span text, size_t at)
{
	bool before = at > 0 && is_word(text.at[at - 1]);
	bool after = at < text.len && is_word(text.at[at]);

	return before != after;
}

/*
 * Whether part (of a pattern, without *) stands in text at `at`; *end is then
 * the octet behind it.  + takes all it can: in no row does a word character
 * follow it.
 */
static bool part_at(struct span part, struct span text, size_t at, size_t *end)
{
	for (size_t i = 0; i < part.len; i++) {
		char c = part.at[i];

		if (c == '<' || c == '>') {
			if (!is_edge(text, at))
				return false;
			continue;
		}
		if (at == text.len)
			return false;
		if (c != '+') {
			if (text.at[at++] != c)
				return false;
			continue;
		}
		if (!is_word(text.at[at]))
			return false;
		while (at < text.len && is_word(text.at[at]))
			at++;
	}
	*end = at;
	return true;
}

/*
 * The next octet from `at` on with which part may begin; past the end if
 * there is none.  Nearly all the time of a verdict goes by here.
 */
static size_t next_place(struct span part, struct span text, size_t at)
{
	if (part.len == 0 || part.at[0] == '<' || at >= text.len)
		return at;

	const char *next = memchr(text.at + at, part.at[0], text.len - at);

	return next != NULL ? (size_t)(next - text.at) : text.len + 1;
}

/* Whether the pattern is found anywhere in text, which is in lower case. */
static bool pattern_in(const char *pattern, struct span text)
{
	size_t at = 0;

	for (;;) {
		const char *star = strchr(pattern, '*');
		size_t len = star != NULL ? (size_t)(star - pattern)
					  : strlen(pattern);
		struct span part = { pattern, len };
		size_t end = 0;

		while (at <= text.len && !part_at(part, text, at, &end))
			at = next_place(part, text, at + 1);
		if (at > text.len)
			return false;
		if (star == NULL)
			return true;
		/* The first place is as good as any, what follows is *. */
		pattern = star + 1;
		at = end;
	}
}

/* ---- facts: what a rule may ask about a reply, a bit each ---- */

enum fact {
	FACT_MISCONF = 1 << 0,
	FACT_SESSION = 1 << 1,
	FACT_SCOPE = 1 << 2, /* or the client's address is named */
	FACT_RESOURCE = 1 << 3,
	FACT_MAILBOX = 1 << 4,
	FACT_POLICY = 1 << 5,
	FACT_DRAIN = 1 << 6,
	FACT_BUSY = 1 << 7,
	FACT_FRONTEND = 1 << 8,
	FACT_INFRA = 1 << 9,
	FACT_EXIM_PEER = 1 << 10, /* both of two phrases */
	FACT_PROXY_IP = 1 << 11,  /* weir's address is named */
};

struct words {
	unsigned fact;
	const char *pattern; /* lower case */
};

/* clang-format off */
static const struct words words[] = {
	{ FACT_MISCONF, "proxy negotiation" },
	{ FACT_MISCONF, "insufficient authorization" },
	{ FACT_MISCONF, "server local error" },
	{ FACT_MISCONF, "not allowed from" },
	{ FACT_MISCONF, "invalid proxy" },
	{ FACT_MISCONF, "proxy timeout" },
	{ FACT_MISCONF, "attribute name" },
	{ FACT_MISCONF, "bad * syntax" },

	{ FACT_SESSION, "timeout" },
	{ FACT_SESSION, "timed out" },
	{ FACT_SESSION, "idle" },
	{ FACT_SESSION, "too long" },
	{ FACT_SESSION, "too many errors" },
	{ FACT_SESSION, "too many bad" },
	{ FACT_SESSION, "too many nonmail" },
	{ FACT_SESSION, "too many messages" },
	{ FACT_SESSION, "message per session" },
	{ FACT_SESSION, "message per connection" },
	{ FACT_SESSION, "message in this session" },
	{ FACT_SESSION, "message in this connection" },
	{ FACT_SESSION, "messages per session" },
	{ FACT_SESSION, "messages per connection" },
	{ FACT_SESSION, "messages in this session" },
	{ FACT_SESSION, "messages in this connection" },
	{ FACT_SESSION, "connection expired" },
	{ FACT_SESSION, "number of messages per" },

	{ FACT_SCOPE, "per-source" },
	{ FACT_SCOPE, "from this ip" },
	{ FACT_SCOPE, "from your ip" },
	{ FACT_SCOPE, "your host" },
	{ FACT_SCOPE, "this host" },
	{ FACT_SCOPE, "this client" },
	{ FACT_SCOPE, "from your" },
	{ FACT_SCOPE, "too many connections from" },
	{ FACT_SCOPE, "too much mail from" },
	{ FACT_SCOPE, "rate limit exceeded" },
	{ FACT_SCOPE, "too many open connections" },

	{ FACT_RESOURCE, "insufficient system" },
	{ FACT_RESOURCE, "insufficient disk" },
	{ FACT_RESOURCE, "disk" },
	{ FACT_RESOURCE, "space shortage" },
	{ FACT_RESOURCE, "out of memory" },
	{ FACT_RESOURCE, "out of disk" },
	{ FACT_RESOURCE, "out of storage" },
	{ FACT_RESOURCE, "out of space" },
	{ FACT_RESOURCE, "system full" },
	{ FACT_RESOURCE, "system is full" },
	{ FACT_RESOURCE, "queue file write" },
	{ FACT_RESOURCE, "writ+ spool" },
	{ FACT_RESOURCE, "writ+ error" },
	{ FACT_RESOURCE, "write error" },
	{ FACT_RESOURCE, "no system resources" },

	{ FACT_MAILBOX, "inbox" },
	{ FACT_MAILBOX, "mailbox" },
	{ FACT_MAILBOX, "quota" },
	{ FACT_MAILBOX, "recipient" },

	{ FACT_POLICY, "greylist" },
	{ FACT_POLICY, "grey list" },
	{ FACT_POLICY, "graylist" },
	{ FACT_POLICY, "gray list" },
	{ FACT_POLICY, "dnsbl" },
	{ FACT_POLICY, "rbl" },
	{ FACT_POLICY, "spamhaus" },
	{ FACT_POLICY, "blocked" },
	{ FACT_POLICY, "blacklist" },
	{ FACT_POLICY, "black list" },
	{ FACT_POLICY, "blocklist" },
	{ FACT_POLICY, "block list" },
	{ FACT_POLICY, "reputation" },
	{ FACT_POLICY, "unsolicited" },
	{ FACT_POLICY, "spam" },
	{ FACT_POLICY, "complaint" },
	{ FACT_POLICY, "deferred due" },
	{ FACT_POLICY, "<spf>" },
	{ FACT_POLICY, "<dkim>" },
	{ FACT_POLICY, "<dmarc>" },
	{ FACT_POLICY, "<ptr>" },
	{ FACT_POLICY, "reverse" },
	{ FACT_POLICY, "rdns" },
	{ FACT_POLICY, "whitelist" },
	{ FACT_POLICY, "mailbox" },
	{ FACT_POLICY, "inbox" },
	{ FACT_POLICY, "quota" },
	{ FACT_POLICY, "recipient" },
	{ FACT_POLICY, "the user" },
	{ FACT_POLICY, "unverified" },
	{ FACT_POLICY, "sender address" },
	{ FACT_POLICY, "domain of sender" },
	{ FACT_POLICY, "does not resolve" },
	{ FACT_POLICY, "cannot resolve" },
	{ FACT_POLICY, "verify address" },
	{ FACT_POLICY, "onward" },
	{ FACT_POLICY, "slower" },
	{ FACT_POLICY, "bare" },
	{ FACT_POLICY, "too many login" },
	{ FACT_POLICY, "too many failed" },
	{ FACT_POLICY, "too many auth" },

	{ FACT_DRAIN, "shutting down" },
	{ FACT_DRAIN, "shut down" },
	{ FACT_DRAIN, "shutdown" },
	{ FACT_DRAIN, "service not available" },
	{ FACT_DRAIN, "service not active" },
	{ FACT_DRAIN, "draining" },
	{ FACT_DRAIN, "maintenance" },
	{ FACT_DRAIN, "reconfiguration" },

	{ FACT_BUSY, "<busy>" },
	{ FACT_BUSY, "overload" },
	{ FACT_BUSY, "load shedding" },
	{ FACT_BUSY, "too much load" },
	{ FACT_BUSY, "too many concurrent" },
	{ FACT_BUSY, "too many connections" },
	{ FACT_BUSY, "too many open connections" },
	{ FACT_BUSY, "too many sessions" },
	{ FACT_BUSY, "too many smtp" },
	{ FACT_BUSY, "concurren+ limit" },
	{ FACT_BUSY, "concurren+ smtp" },
	{ FACT_BUSY, "concurren+ session" },
	{ FACT_BUSY, "concurren+ connection" },
	{ FACT_BUSY, "concurren+ server" },
	{ FACT_BUSY, "connection limit" },
	{ FACT_BUSY, "maximum number of concurrent" },
	{ FACT_BUSY, "waiting for spool" },
	{ FACT_BUSY, "temporarily overloaded" },
	{ FACT_BUSY, "max load" },
	{ FACT_BUSY, "maximum load" },

	{ FACT_FRONTEND, "service unavailable" },
	{ FACT_FRONTEND, "temporary server error" },

	/*
	 * Whole phrases of a few large systems whose codes say policy but
	 * whose words own up to a fault: Gmail 421 4.7.0, Exchange Online
	 * 451 4.7.700, Exchange 451 4.4.25 and 4.4.28 (shadow redundancy).
	 */
	{ FACT_INFRA, "temporary system problem" },
	{ FACT_INFRA, "pfa agent busy" },
	{ FACT_INFRA, "message failed to be replicated" },
};
/* clang-format on */

/*
 * Whether an address stands alone at text[at..end): neither more digits nor
 * more of an address on either side, while "[IPv6:2001:db8::1]" and a full
 * stop or colon that ends a clause are no part of it.
 */
static bool stands_alone(struct span text, size_t at, size_t end)
{
	static const char tag[] = "ipv6:";
	size_t tag_len = sizeof(tag) - 1;

	if (at >= tag_len &&
	    strncasecmp(text.at + at - tag_len, tag, tag_len) == 0)
		at = 0;
	if (at > 0) {
		char c = text.at[at - 1];

		if (is_word(c) || c == ':' ||
		    (c == '.' && at > 1 && is_digit(text.at[at - 2])))
			return false;
	}
	if (end == text.len)
		return true;

	char c = text.at[end];

	if (is_word(c))
		return false;
	if (c != '.' && c != ':')
		return true;
	/* "192.0.2.5." and "2001:db8::1: no" end here, "192.0.2.5.6" not */
	return end + 1 == text.len ||
	       (!is_word(text.at[end + 1]) && text.at[end + 1] != ':');
}

static bool address_in(const char *ip, struct span text)
{
	size_t len = ip != NULL ? strlen(ip) : 0;

	if (len == 0)
		return false;
	for (size_t at = 0; at + len <= text.len; at++) {
		if (strncasecmp(text.at + at, ip, len) == 0 &&
		    stands_alone(text, at, at + len))
			return true;
	}
	return false;
}

static unsigned facts_of(const struct busy_reply *reply)
{
	char folded[SMTP_REPLY_TEXT_MAX];
	struct span text = { folded, reply->text_len };
	unsigned facts = 0;

	if (text.len > sizeof(folded))
		text.len = sizeof(folded);
	for (size_t i = 0; i < text.len; i++)
		folded[i] = lower(reply->text[i]);
	for (size_t i = 0; i < COUNT(words); i++) {
		if ((facts & words[i].fact) == 0 &&
		    pattern_in(words[i].pattern, text))
			facts |= words[i].fact;
	}
	if (pattern_in("from this ip address", text) &&
	    pattern_in("smtp connections", text))
		facts |= FACT_EXIM_PEER;
	if (address_in(reply->client_ip, text))
		facts |= FACT_SCOPE;
	for (size_t i = 0; i < reply->proxy_ip_count; i++) {
		if (address_in(reply->proxy_ips[i], text))
			facts |= FACT_PROXY_IP;
	}
	return facts;
}

/* ---- codes, one bit of each kind ---- */

enum code {
	CODE_421 = 1 << 0,
	CODE_451 = 1 << 1,
	CODE_452 = 1 << 2,
	CODE_4XX = 1 << 3, /* any other */
	CODE_5XX = 1 << 4,
	/* Cannot say now who somebody is (RFC 4954, section 6; 435 is
	   Exim's), or cannot do TLS. */
	CODE_454 = 1 << 5,

	CODE_4 = CODE_421 | CODE_451 | CODE_452 | CODE_454 | CODE_4XX,
	CODE_ANY = CODE_4 | CODE_5XX,
};

static unsigned code_bit(unsigned code)
{
	if (code >= 500)
		return CODE_5XX;
	if (code == 421)
		return CODE_421;
	if (code == 451)
		return CODE_451;
	if (code == 452)
		return CODE_452;
	if (code == 435 || code == 454)
		return CODE_454;
	return CODE_4XX;
}

/* Enhanced codes: subject and detail. */
enum esc {
	ESC_NONE = 1 << 0,
	ESC_0 = 1 << 1,
	ESC_2 = 1 << 2,
	ESC_30 = 1 << 3,
	ESC_31 = 1 << 4,
	ESC_32 = 1 << 5,
	ESC_35 = 1 << 6,
	ESC_3X = 1 << 7, /* X.3. and any other */
	ESC_45 = 1 << 8,
	ESC_4X = 1 << 9, /* X.4. and any other */
	ESC_5 = 1 << 10,
	ESC_7 = 1 << 11,
	ESC_REST = 1 << 12,

	ESC_3 = ESC_30 | ESC_31 | ESC_32 | ESC_35 | ESC_3X,
	ESC_4 = ESC_45 | ESC_4X,
	ESC_ANY = (1 << 13) - 1,
	/* About a mailbox, the dialogue, or policy: never about load. */
	ESC_NOT_257 = ESC_ANY & ~(ESC_2 | ESC_5 | ESC_7),
};

static unsigned esc_bit(const struct smtp_esc *esc)
{
	if (esc->class == 0)
		return ESC_NONE;
	if (esc->subject == 0)
		return ESC_0;
	if (esc->subject == 2)
		return ESC_2;
	if (esc->subject == 4)
		return esc->detail == 5 ? ESC_45 : ESC_4X;
	if (esc->subject == 5)
		return ESC_5;
	if (esc->subject == 7)
		return ESC_7;
	if (esc->subject != 3)
		return ESC_REST;
	if (esc->detail == 0)
		return ESC_30;
	if (esc->detail == 1)
		return ESC_31;
	if (esc->detail == 2)
		return ESC_32;
	if (esc->detail == 5)
		return ESC_35;
	return ESC_3X;
}

/* ---- the rules ---- */

enum stage {
	AT_GREET = 1 << BUSY_STAGE_GREET,
	AT_EHLO = 1 << BUSY_STAGE_EHLO,
	AT_XCLIENT = 1 << BUSY_STAGE_XCLIENT,
	AT_STARTTLS = 1 << BUSY_STAGE_STARTTLS,
	AT_AUTH = 1 << BUSY_STAGE_AUTH,
	AT_RCPT = 1 << BUSY_STAGE_RCPT,
	AT_MAIL = 1 << BUSY_STAGE_MAIL | 1 << BUSY_STAGE_DATA |
		  1 << BUSY_STAGE_EOD | 1 << BUSY_STAGE_IDLE,
	AT_HELLO = AT_EHLO | AT_XCLIENT,
	AT_ANY = (1 << BUSY_STAGES) - 1,
};

enum seen {
	SEES_CLIENT = 1 << BUSY_IDENT_CLIENT,
	SEES_PROXY = 1 << BUSY_IDENT_PROXY,
	SEES_ANY = SEES_CLIENT | SEES_PROXY,
};

struct rule {
	enum busy_rule_id id;
	unsigned stages; /* enum stage */
	unsigned seen;   /* enum seen */
	unsigned codes;  /* enum code */
	unsigned escs;   /* enum esc */
	unsigned need;   /* enum fact: all of them */
	unsigned never;  /* enum fact: none of them */
	enum busy_class class;
};

/* The first row that fits decides.  The last row of each stage fits all. */
/* clang-format off */
#define R(id) BUSY_RULE_##id
static const struct rule rule_table[] = {
/*	  rule            stages               seen         codes     escs         need           never         class */
	{ R(R1),          AT_GREET | AT_HELLO, SEES_ANY,    CODE_ANY, ESC_ANY,     FACT_MISCONF,  0,            BUSY_MISCONF },
	{ R(R2_SESSION),  AT_ANY,              SEES_ANY,    CODE_5XX, ESC_ANY,     FACT_SESSION,  0,            BUSY_SESSION },
	{ R(R2_MISCONF),  AT_GREET | AT_EHLO,  SEES_PROXY,  CODE_5XX, ESC_ANY,     0,             0,            BUSY_MISCONF },
	/* Behind XCLIENT a server judges the client as if it had just come. */
	{ R(R2_CLIENT),   AT_XCLIENT | AT_STARTTLS, SEES_ANY, CODE_5XX, ESC_ANY,   FACT_POLICY,   0,            BUSY_POLICY },
	{ R(R2_CLIENT),   AT_XCLIENT | AT_STARTTLS, SEES_ANY, CODE_5XX, ESC_ANY,   FACT_SCOPE,    0,            BUSY_POLICY },
	{ R(R2_MISCONF),  AT_XCLIENT | AT_STARTTLS, SEES_ANY, CODE_5XX, ESC_ANY,   0,             0,            BUSY_MISCONF },
	{ R(R2_POLICY),   AT_ANY,              SEES_ANY,    CODE_5XX, ESC_ANY,     0,             0,            BUSY_POLICY },
	/* "Timed out" is then its directory, not this connection. */
	{ R(R14_INFRA),   AT_AUTH,             SEES_ANY,    CODE_454, ESC_ANY,     0,
	  FACT_POLICY | FACT_SCOPE | FACT_PROXY_IP | FACT_RESOURCE | FACT_BUSY, BUSY_SICK },
	{ R(R3),          AT_ANY,              SEES_ANY,    CODE_4,   ESC_ANY,     FACT_SESSION,  0,            BUSY_SESSION },
	{ R(R4),          AT_ANY,              SEES_ANY,    CODE_4,   ESC_ANY,     FACT_PROXY_IP, 0,            BUSY_CAP },
	{ R(R5_PEER),     AT_GREET,            SEES_ANY,    CODE_4,   ESC_ANY,
	  FACT_SCOPE | FACT_EXIM_PEER, FACT_POLICY, BUSY_CAP },
	{ R(R5_CAP),      AT_ANY,              SEES_PROXY,  CODE_4,   ESC_ANY,     FACT_SCOPE,    FACT_POLICY,  BUSY_CAP },
	{ R(R5_POLICY),   AT_ANY,              SEES_CLIENT, CODE_4,   ESC_ANY,     FACT_SCOPE,    FACT_POLICY,  BUSY_POLICY },
	{ R(R6),          AT_ANY,              SEES_ANY,    CODE_4,
	  ESC_NONE | ESC_0 | ESC_3 | ESC_4, FACT_RESOURCE, FACT_MAILBOX, BUSY_BUSY },
	{ R(R7_INFRA),    AT_ANY,              SEES_ANY,    CODE_4,   ESC_4 | ESC_7, FACT_INFRA,  FACT_POLICY,  BUSY_SICK },
	{ R(R7_SICK),     AT_ANY,              SEES_ANY,    CODE_4,   ESC_35,      FACT_POLICY,   0,            BUSY_SICK },
	{ R(R7_POLICY),   AT_ANY,              SEES_ANY,    CODE_4,   ESC_ANY,     FACT_POLICY,   0,            BUSY_POLICY },
	{ R(R8),          AT_ANY,              SEES_ANY,    CODE_421, ESC_ANY,     FACT_DRAIN,    0,            BUSY_DRAIN },

	{ R(R9_POLICY),   AT_GREET,            SEES_CLIENT, CODE_4,   ESC_7,       0,             0,            BUSY_POLICY },
	{ R(R9_CAP),      AT_GREET,            SEES_PROXY,  CODE_4,   ESC_7,       FACT_BUSY,     0,            BUSY_CAP },
	{ R(R9_REFUSED),  AT_GREET,            SEES_PROXY,  CODE_4,   ESC_7,       0,             0,            BUSY_SICK },
	{ R(R9_BUSY),     AT_GREET,            SEES_ANY,    CODE_4,   ESC_ANY,     FACT_BUSY,     0,            BUSY_BUSY },
	{ R(R9_BUSY),     AT_GREET,            SEES_ANY,    CODE_4,
	  ESC_31 | ESC_32 | ESC_45, 0, 0, BUSY_BUSY },
	{ R(R9_SICK),     AT_GREET,            SEES_ANY,    CODE_4,   ESC_30 | ESC_35, 0,         0,            BUSY_SICK },
	{ R(R9_MAYBE),    AT_GREET,            SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_MAYBE },

	{ R(R10_BUSY),    AT_HELLO,            SEES_ANY,    CODE_4,   ESC_ANY,     FACT_BUSY,     0,            BUSY_BUSY },
	{ R(R10_BUSY),    AT_HELLO,            SEES_ANY,    CODE_421, ESC_NONE | ESC_3, 0,        0,            BUSY_BUSY },
	{ R(R10_POLICY),  AT_HELLO,            SEES_CLIENT, CODE_4,   ESC_7,       0,             0,            BUSY_POLICY },
	{ R(R10_SICK),    AT_HELLO,            SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_SICK },
	{ R(R10_TLS),     AT_STARTTLS,         SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_SICK },

	{ R(R11_BUSY),    AT_MAIL,             SEES_ANY,    CODE_4,   ESC_31,      0,             0,            BUSY_BUSY },
	{ R(R11_BUSY),    AT_MAIL,             SEES_ANY,    CODE_4,   ESC_NOT_257, FACT_BUSY,     0,            BUSY_BUSY },
	{ R(R11_FRONT),   AT_MAIL,             SEES_ANY,    CODE_4,   ESC_7,       FACT_FRONTEND, 0,            BUSY_SICK },
	{ R(R11_REFUSED), AT_MAIL,             SEES_ANY,    CODE_4,   ESC_7,       0,             0,            BUSY_POLICY },
	{ R(R11_SICK),    AT_MAIL,             SEES_ANY,    CODE_4,   ESC_3,       0,             0,            BUSY_SICK },
	{ R(R11_SICK),    AT_MAIL,             SEES_ANY,
	  CODE_421 | CODE_451 | CODE_452, ESC_NONE, 0, 0, BUSY_SICK },
	{ R(R11_POLICY),  AT_MAIL,             SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_POLICY },

	{ R(R12_BUSY),    AT_RCPT,             SEES_ANY,    CODE_4,   ESC_31,      0,             0,            BUSY_BUSY },
	{ R(R12_BUSY),    AT_RCPT,             SEES_ANY,    CODE_4,   ESC_NOT_257, FACT_BUSY,     0,            BUSY_BUSY },
	{ R(R12_FRONT),   AT_RCPT,             SEES_ANY,    CODE_4,   ESC_7,       FACT_FRONTEND, 0,            BUSY_SICK },
	{ R(R12_SICK),    AT_RCPT,             SEES_ANY,    CODE_4,   ESC_30 | ESC_35, 0,         0,            BUSY_SICK },
	/* 450 4.3.2 too: postscreen puts off a client so. */
	{ R(R12_POLICY),  AT_RCPT,             SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_POLICY },

	/* All that is said of credentials is X.7, a sick directory as well. */
	{ R(R14_BUSY),    AT_AUTH,             SEES_ANY,    CODE_4,   ESC_ANY,     FACT_BUSY,     0,            BUSY_BUSY },
	{ R(R14_BUSY),    AT_AUTH,             SEES_ANY,    CODE_4,   ESC_31,      0,             0,            BUSY_BUSY },
	{ R(R14_SICK),    AT_AUTH,             SEES_ANY,    CODE_4,   ESC_3,       0,             0,            BUSY_SICK },
	{ R(R14_SICK),    AT_AUTH,             SEES_ANY,
	  CODE_421 | CODE_451 | CODE_452, ESC_NONE, 0, 0, BUSY_SICK },
	{ R(R14_SICK),    AT_AUTH,             SEES_ANY,    CODE_454, ESC_ANY,     0,             0,            BUSY_SICK },
	{ R(R14_POLICY),  AT_AUTH,             SEES_ANY,    CODE_4,   ESC_ANY,     0,             0,            BUSY_POLICY },
};
#undef R
/* clang-format on */

static bool rule_fits(const struct busy_rule *rule,
		      const struct busy_reply *reply)
{
	struct span text = { reply->text, reply->text_len };

	if ((rule->stages & 1U << reply->stage) == 0)
		return false;
	if (reply->code < rule->code_min || reply->code > rule->code_max)
		return false;
	if (rule->esc_given &&
	    (reply->esc.class == 0 || reply->esc.subject != rule->esc.subject ||
	     reply->esc.detail != rule->esc.detail))
		return false;
	if (rule->text_len == 0)
		return true;
	for (size_t at = 0; at + rule->text_len <= text.len; at++) {
		if (strncasecmp(text.at + at, rule->text, rule->text_len) == 0)
			return true;
	}
	return false;
}

struct busy_verdict busy_classify(const struct busy_reply *reply,
				  const struct busy_rule *rules, size_t count)
{
	assert(reply->stage > BUSY_STAGE_TCP && reply->stage < BUSY_STAGES);
	assert(reply->code >= 200 && reply->code <= 599);
	assert(reply->proxy_ip_count <= BUSY_PROXY_IPS_MAX);

	if (reply->code < 400)
		return (struct busy_verdict){ BUSY_OK, BUSY_RULE_OK };
	for (size_t i = 0; i < count; i++) {
		if (rule_fits(&rules[i], reply))
			return (struct busy_verdict){ rules[i].class,
						      BUSY_RULE_R0 };
	}

	unsigned stage = 1U << reply->stage, seen = 1U << reply->ident;
	unsigned code = code_bit(reply->code), esc = esc_bit(&reply->esc);
	unsigned facts = facts_of(reply);
	size_t i = 0;

	for (; i < COUNT(rule_table); i++) {
		const struct rule *r = &rule_table[i];

		if ((r->stages & stage) != 0 && (r->seen & seen) != 0 &&
		    (r->codes & code) != 0 && (r->escs & esc) != 0 &&
		    (r->need & ~facts) == 0 && (r->never & facts) == 0)
			break;
	}
	/* Each stage's last row takes every 4xx, R2 every 5xx. */
	assert(i < COUNT(rule_table));
	return (struct busy_verdict){ rule_table[i].class, rule_table[i].id };
}

/* ---- silence ---- */

struct silence {
	struct busy_verdict verdict;
	const char *name;
};

/* clang-format off */
static const struct silence silences[] = {
	[BUSY_SILENCE_REFUSED] = { { BUSY_MAYBE, BUSY_RULE_R13_CONNECT }, "connect refused" },
	[BUSY_SILENCE_RESET] = { { BUSY_MAYBE, BUSY_RULE_R13_CONNECT }, "connect reset" },
	[BUSY_SILENCE_TIMEOUT] = { { BUSY_MAYBE, BUSY_RULE_R13_CONNECT }, "connect timed out" },
	[BUSY_SILENCE_GREET_LATE] = { { BUSY_BUSY, BUSY_RULE_R13_SILENT }, "no greeting in time" },
	[BUSY_SILENCE_GREET_EOF] = { { BUSY_MAYBE, BUSY_RULE_R13_MUTE }, "closed before the greeting" },
	[BUSY_SILENCE_LOST] = { { BUSY_SICK, BUSY_RULE_R13_LOST }, "closed in mid-dialogue" },
	[BUSY_SILENCE_REPLY_LATE] = { { BUSY_SICK, BUSY_RULE_R13_LOST }, "no reply in time" },
	[BUSY_SILENCE_FINAL_LATE] = { { BUSY_SICK, BUSY_RULE_R13_LOST }, "no final reply in time" },
	[BUSY_SILENCE_GARBLED] = { { BUSY_SICK, BUSY_RULE_R13_LOST }, "garbled reply" },
};
/* clang-format on */
static_assert(COUNT(silences) == BUSY_SILENCES, "a row for each");

struct busy_verdict busy_silence(enum busy_silence what)
{
	assert(what < BUSY_SILENCES);
	return silences[what].verdict;
}

/* ---- classes ---- */

struct class
{
	const char *name;
	struct busy_actions actions;
};

/* clang-format off */
static const struct class classes[] = {
	[BUSY_OK] = { "ok", {
		.limit = BUSY_LIMIT_POSITIVE } },
	[BUSY_BUSY] = { "busy", {
		.hide = BUSY_UNTIL_REPLY, .retry = BUSY_UNTIL_REPLY,
		.limit = BUSY_LIMIT_NEGATIVE, .health = BUSY_HEALTH_HOLD,
		.retire = true } },
	[BUSY_MAYBE] = { "maybe-busy", {
		.hide = BUSY_UNTIL_REPLY, .retry = BUSY_UNTIL_REPLY,
		.limit = BUSY_LIMIT_HALF, .retire = true } },
	[BUSY_CAP] = { "cap", {
		.hide = BUSY_UNTIL_REPLY, .retry = BUSY_UNTIL_REPLY,
		.limit = BUSY_LIMIT_CEILING, .retire = true } },
	[BUSY_DRAIN] = { "drain", {
		.hide = BUSY_UNTIL_REPLY, .retry = BUSY_UNTIL_REPLY,
		.health = BUSY_HEALTH_DRAIN, .retire = true } },
	[BUSY_SICK] = { "sick", {
		.hide = BUSY_UNTIL_MAIL, .retry = BUSY_UNTIL_MAIL,
		.health = BUSY_HEALTH_OUTLIER, .retire = true } },
	[BUSY_MISCONF] = { "misconf", {
		.hide = BUSY_UNTIL_REPLY, .retry = BUSY_UNTIL_REPLY,
		.health = BUSY_HEALTH_CONFIG_DOWN, .own_reply = true,
		.retire = true } },
	[BUSY_SESSION] = { "session", {
		.retire = true } },
	[BUSY_POLICY] = { "policy", {
		.limit = BUSY_LIMIT_POSITIVE } },
};
/* clang-format on */
static_assert(COUNT(classes) == BUSY_CLASSES, "a row for each");

const struct busy_actions *busy_actions(enum busy_class class)
{
	assert(class < BUSY_CLASSES);
	return &classes[class].actions;
}

bool busy_is_about_slots(enum busy_class class)
{
	return class == BUSY_BUSY || class == BUSY_MAYBE || class == BUSY_CAP;
}

bool busy_within(enum busy_until until, enum busy_stage stage)
{
	switch (until) {
	case BUSY_UNTIL_NEVER:
		return false;
	case BUSY_UNTIL_MAIL:
		return stage < BUSY_STAGE_MAIL;
	case BUSY_UNTIL_REPLY:
		return stage <= BUSY_STAGE_MAIL;
	}
	return false;
}

/* ---- names ---- */

/* clang-format off */
static const char *const stage_names[] = {
	[BUSY_STAGE_TCP] = "TCP",
	[BUSY_STAGE_GREET] = "GREET",
	[BUSY_STAGE_EHLO] = "EHLO",
	[BUSY_STAGE_XCLIENT] = "XCLIENT",
	[BUSY_STAGE_STARTTLS] = "STARTTLS",
	[BUSY_STAGE_AUTH] = "AUTH",
	[BUSY_STAGE_MAIL] = "MAIL",
	[BUSY_STAGE_RCPT] = "RCPT",
	[BUSY_STAGE_DATA] = "DATA",
	[BUSY_STAGE_EOD] = "EOD",
	[BUSY_STAGE_IDLE] = "IDLE",
};
/* clang-format on */
static_assert(COUNT(stage_names) == BUSY_STAGES, "a name for each");

#define RULE_NAME(id, name, meaning)    [BUSY_RULE_##id] = (name),
#define RULE_MEANING(id, name, meaning) [BUSY_RULE_##id] = (meaning),
static const char *const rule_names[] = { BUSY_RULES(RULE_NAME) };
static const char *const rule_meanings[] = { BUSY_RULES(RULE_MEANING) };
#undef RULE_NAME
#undef RULE_MEANING

const char *busy_stage_name(enum busy_stage stage)
{
	assert(stage < BUSY_STAGES);
	return stage_names[stage];
}

const char *busy_class_name(enum busy_class class)
{
	assert(class < BUSY_CLASSES);
	return classes[class].name;
}

const char *busy_rule_name(enum busy_rule_id rule)
{
	assert(rule < BUSY_RULE_COUNT);
	return rule_names[rule];
}

const char *busy_rule_meaning(enum busy_rule_id rule)
{
	assert(rule < BUSY_RULE_COUNT);
	return rule_meanings[rule];
}

const char *busy_silence_name(enum busy_silence silence)
{
	assert(silence < BUSY_SILENCES);
	return silences[silence].name;
}

/* ---- the operator's rules ---- */

static bool span_is(struct span s, const char *word)
{
	return s.len == strlen(word) && strncasecmp(s.at, word, s.len) == 0;
}

static struct span trim(struct span s)
{
	while (s.len > 0 && is_blank(s.at[0]))
		s = (struct span){ s.at + 1, s.len - 1 };
	while (s.len > 0 && is_blank(s.at[s.len - 1]))
		s.len--;
	return s;
}

/* The first word of *s, which is trimmed; it is cut off by cut_word(). */
static struct span first_word(struct span s)
{
	size_t len = 0;

	while (len < s.len && !is_blank(s.at[len]))
		len++;
	return (struct span){ s.at, len };
}

static struct span cut_word(struct span s, struct span word)
{
	return trim((struct span){ s.at + word.len, s.len - word.len });
}

static bool read_stage(struct span word, uint16_t *stages)
{
	if (span_is(word, "any")) {
		*stages = AT_ANY;
		return true;
	}
	for (unsigned s = BUSY_STAGE_GREET; s < BUSY_STAGES; s++) {
		if (span_is(word, stage_names[s])) {
			*stages = (uint16_t)(1U << s);
			return true;
		}
	}
	return false;
}

/* Words of three octets, digit first, are meant for a code. */
static bool looks_like_code(struct span word)
{
	return word.len == 3 && is_digit(word.at[0]) &&
	       (is_digit(word.at[1]) || lower(word.at[1]) == 'x') &&
	       (is_digit(word.at[2]) || lower(word.at[2]) == 'x');
}

static bool read_code(struct span word, struct busy_rule *rule)
{
	if (word.at[0] != '4' && word.at[0] != '5')
		return false;

	uint16_t base = (uint16_t)((word.at[0] - '0') * 100);

	if (lower(word.at[1]) == 'x' && lower(word.at[2]) == 'x') {
		rule->code_min = base;
		rule->code_max = (uint16_t)(base + 99);
		return true;
	}
	if (!is_digit(word.at[1]) || !is_digit(word.at[2]))
		return false;
	rule->code_min = (uint16_t)(base + (word.at[1] - '0') * 10 +
				    (word.at[2] - '0'));
	rule->code_max = rule->code_min;
	return true;
}

/* x.Y.Z: a digit or the letter x, a dot, and more of digits and dots */
static bool looks_like_esc(struct span word)
{
	if (word.len < 3 || word.at[1] != '.' ||
	    (!is_digit(word.at[0]) && lower(word.at[0]) != 'x'))
		return false;
	for (size_t i = 2; i < word.len; i++) {
		if (!is_digit(word.at[i]) && word.at[i] != '.')
			return false;
	}
	return true;
}

static bool read_esc(struct span word, struct busy_rule *rule)
{
	unsigned parts[2] = { 0 }, digits = 0;
	size_t part = 0;

	if (word.at[0] != '4' && word.at[0] != '5' && lower(word.at[0]) != 'x')
		return false;
	for (size_t i = 2; i < word.len; i++) {
		if (word.at[i] == '.') {
			if (digits == 0 || ++part == COUNT(parts))
				return false;
			digits = 0;
			continue;
		}
		if (++digits > 3)
			return false;
		parts[part] = parts[part] * 10 + (unsigned)(word.at[i] - '0');
	}
	if (part != 1 || digits == 0)
		return false;
	rule->esc_given = true;
	rule->esc.class = is_digit(word.at[0])
				  ? (uint8_t)(word.at[0] - '0')
				  : 4; /* any: it is not compared */
	rule->esc.subject = (uint16_t)parts[0];
	rule->esc.detail = (uint16_t)parts[1];
	return true;
}

static bool read_class(struct span word, enum busy_class *class)
{
	for (size_t c = 0; c < COUNT(classes); c++) {
		if (span_is(word, classes[c].name)) {
			*class = (enum busy_class)c;
			return true;
		}
	}
	return false;
}

/* Say what was read and what is wanted.  Always false. */
static bool refuse(char *error, struct span word, const char *wanted)
{
	int shown = word.len < 60 ? (int)word.len : 60;

	(void)snprintf(error, BUSY_RULE_ERROR_MAX, "\"%.*s\": %s", shown,
		       word.at, wanted);
	return false;
}

static const char want_stage[] =
	"need a stage first: greet, ehlo, xclient, starttls, auth, mail, rcpt, "
	"data, eod, idle or any";
static const char want_code[] = "need a code from 400 to 599, or 4xx or 5xx";
static const char want_esc[] = "need an enhanced code such as 4.3.1 or x.3.1";
static const char want_text[] = "the text is longer than 127 characters";
static const char want_class[] =
	"need a class behind =>: busy, maybe-busy, cap, drain, sick, misconf, "
	"session, policy or ok";
static const char want_all[] = "need STAGE [CODE] [ESC] [TEXT] => CLASS";
static_assert(BUSY_RULE_TEXT_MAX == 127, "it stands in a message");

static bool read_match(struct span match, struct busy_rule *rule, char *error)
{
	struct span word = first_word(match);

	if (!read_stage(word, &rule->stages))
		return refuse(error, word, want_stage);
	match = cut_word(match, word);
	word = first_word(match);
	if (looks_like_code(word)) {
		if (!read_code(word, rule))
			return refuse(error, word, want_code);
		match = cut_word(match, word);
		word = first_word(match);
	}
	if (looks_like_esc(word)) {
		if (!read_esc(word, rule))
			return refuse(error, word, want_esc);
		match = cut_word(match, word);
	}
	if (match.len > BUSY_RULE_TEXT_MAX)
		return refuse(error, match, want_text);
	memcpy(rule->text, match.at, match.len);
	rule->text_len = match.len;
	return true;
}
bool busy_rule_parse(const char *text, struct busy_rule *rule,
		     char error[static BUSY_RULE_ERROR_MAX])
{
	struct busy_rule got = { .code_min = 400, .code_max = 599 };
	struct span all = { text, strlen(text) };
	const char *arrow = NULL;

	/* The last one: a reply's own words may hold another. */
	for (size_t i = 0; i + 1 < all.len; i++) {
		if (text[i] == '=' && text[i + 1] == '>')
			arrow = &text[i];
	}
	if (arrow == NULL)
		return refuse(error, trim(all), want_all);

	struct span match = { text, (size_t)(arrow - text) };
	struct span class = { arrow + 2, all.len - match.len - 2 };

	if (!read_match(trim(match), &got, error))
		return false;
	if (!read_class(trim(class), &got.class))
		return refuse(error, trim(class), want_class);
	*rule = got;
	return true;
}
