#include "proxy/smtp.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* A stretch of somebody's buffer. */
struct span {
	const char *at;
	size_t len;
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool is_8bit(char c)
{
	return (unsigned char)c >= 0x80;
}

/* Printable US-ASCII but the blank. */
static bool is_graph(char c)
{
	return c > ' ' && c < 0x7f;
}

static bool span_is(struct span s, const char *word)
{
	return s.len == strlen(word) && strncasecmp(s.at, word, s.len) == 0;
}

static bool span_starts(struct span s, const char *word)
{
	size_t len = strlen(word);

	return s.len >= len && strncasecmp(s.at, word, len) == 0;
}

static struct span span_skip(struct span s, size_t octets)
{
	assert(octets <= s.len);
	if (octets == 0)
		return s; /* s.at may be NULL */
	return (struct span){ s.at + octets, s.len - octets };
}

static struct span span_skip_blanks(struct span s)
{
	while (s.len > 0 && is_blank(s.at[0]))
		s = span_skip(s, 1);
	return s;
}

/* Cut the first word off *s, and the blanks around it. */
static struct span span_next_word(struct span *s)
{
	struct span word = span_skip_blanks(*s);
	size_t len = 0;

	while (len < word.len && !is_blank(word.at[len]))
		len++;
	*s = span_skip_blanks(span_skip(word, len));
	return (struct span){ word.at, len };
}

/* Digits only, at least one, and no more than 64 bits hold. */
static bool span_to_u64(struct span s, uint64_t *value)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s.len; i++) {
		if (!is_digit(s.at[i]))
			return false;
		unsigned digit = (unsigned)(s.at[i] - '0');
		if (sum > (UINT64_MAX - digit) / 10)
			return false;
		sum = sum * 10 + digit;
	}
	if (s.len == 0)
		return false;
	*value = sum;
	return true;
}

/* ---- lines ---- */

enum smtp_scan smtp_line_scan(const void *buf, size_t len, size_t max,
			      struct smtp_line *line)
{
	assert(buf != NULL || len == 0);
	assert(line != NULL);
	assert(max >= 2);

	const char *text = buf;
	size_t seen = len < max ? len : max;
	const char *lf = seen > 0 ? memchr(text, '\n', seen) : NULL;

	if (lf == NULL)
		return len < max ? SMTP_SCAN_MORE : SMTP_SCAN_LONG;

	size_t before = (size_t)(lf - text);
	*line = (struct smtp_line){ .text = text, .eaten = before + 1 };
	/* Only CRLF ends a line: RFC 5321, section 2.3.8. */
	if (before == 0 || text[before - 1] != '\r')
		return SMTP_SCAN_BAD;
	line->len = before - 1;
	if (memchr(text, '\r', line->len) != NULL ||
	    memchr(text, '\0', line->len) != NULL)
		return SMTP_SCAN_BAD;
	return SMTP_SCAN_LINE;
}

size_t smtp_line_max(const void *buf, size_t len)
{
	struct span s = { buf, len };

	if (len < 5 || !is_blank(s.at[4]))
		return SMTP_COMMAND_LINE_MAX;
	if (span_starts(s, "MAIL") || span_starts(s, "RCPT"))
		return SMTP_PATH_LINE_MAX;
	if (span_starts(s, "AUTH"))
		return SMTP_AUTH_LINE_MAX;
	return SMTP_COMMAND_LINE_MAX;
}

size_t smtp_line_skip(const void *buf, size_t len, bool *ended)
{
	assert(buf != NULL || len == 0);
	assert(ended != NULL);

	const char *lf = len > 0 ? memchr(buf, '\n', len) : NULL;

	*ended = lf != NULL;
	return lf == NULL ? len : (size_t)(lf - (const char *)buf) + 1;
}

bool smtp_line_is_binary(const void *buf, size_t len)
{
	if (len == 0)
		return false;

	char first = *(const char *)buf;
	return !is_graph(first) && !is_blank(first) && first != '\r' &&
	       first != '\n';
}

/* ---- commands ---- */

/* What a verb wants behind it. */
enum want {
	WANT_ANY,
	WANT_NONE,
	WANT_SOME,
	WANT_HOST,
	WANT_PATH,
	WANT_CHUNK,
	WANT_MECHANISM,
};

struct verb {
	const char *name;
	enum want want;
};

/* clang-format off */
static const struct verb verbs[] = {
	[SMTP_VERB_OTHER]    = { "other",    WANT_ANY },
	[SMTP_VERB_EHLO]     = { "EHLO",     WANT_HOST },
	[SMTP_VERB_HELO]     = { "HELO",     WANT_HOST },
	[SMTP_VERB_MAIL]     = { "MAIL",     WANT_PATH },
	[SMTP_VERB_RCPT]     = { "RCPT",     WANT_PATH },
	[SMTP_VERB_DATA]     = { "DATA",     WANT_NONE },
	[SMTP_VERB_BDAT]     = { "BDAT",     WANT_CHUNK },
	[SMTP_VERB_RSET]     = { "RSET",     WANT_NONE },
	[SMTP_VERB_NOOP]     = { "NOOP",     WANT_ANY },
	[SMTP_VERB_VRFY]     = { "VRFY",     WANT_SOME },
	[SMTP_VERB_EXPN]     = { "EXPN",     WANT_SOME },
	[SMTP_VERB_HELP]     = { "HELP",     WANT_ANY },
	[SMTP_VERB_QUIT]     = { "QUIT",     WANT_NONE },
	[SMTP_VERB_STARTTLS] = { "STARTTLS", WANT_NONE },
	[SMTP_VERB_AUTH]     = { "AUTH",     WANT_MECHANISM },
	[SMTP_VERB_ETRN]     = { "ETRN",     WANT_ANY },
	[SMTP_VERB_TURN]     = { "TURN",     WANT_ANY },
	[SMTP_VERB_XCLIENT]  = { "XCLIENT",  WANT_ANY },
	[SMTP_VERB_XFORWARD] = { "XFORWARD", WANT_ANY },
	[SMTP_VERB_PROXY]    = { "PROXY",    WANT_ANY },
	[SMTP_VERB_FOREIGN]  = { "foreign",  WANT_ANY },
};

/* Of HTTP: somebody uses a browser, or another server, against us. */
static const char *const foreign_verbs[] = {
	"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT",
};

static const char *const syntax_replies[] = {
	[SMTP_SYNTAX_OK] = NULL,
	[SMTP_SYNTAX_UNKNOWN] = "500 5.5.1 Unknown command\r\n",
	[SMTP_SYNTAX_EMPTY] = "500 5.5.2 Empty command\r\n",
	[SMTP_SYNTAX_ARG_MISSING] = "501 5.5.4 Argument missing\r\n",
	[SMTP_SYNTAX_ARG_UNWANTED] = "501 5.5.4 No argument allowed\r\n",
	[SMTP_SYNTAX_ARG_BAD] = "501 5.5.4 Bad argument\r\n",
	[SMTP_SYNTAX_HOST_BAD] =
		"501 5.5.4 Need a domain name or an address literal\r\n",
	[SMTP_SYNTAX_SENDER_BAD] = "501 5.1.7 Bad sender address\r\n",
	[SMTP_SYNTAX_RECIPIENT_BAD] = "501 5.1.3 Bad recipient address\r\n",
	[SMTP_SYNTAX_PARAM_BAD] =
		"501 5.5.4 Parameter with a bad value, or given twice\r\n",
	[SMTP_SYNTAX_PARAM_UNKNOWN] = "555 5.5.4 Unknown parameter\r\n",
};
/* clang-format on */

const char *smtp_verb_name(enum smtp_verb verb)
{
	assert((size_t)verb < COUNT(verbs));
	return verbs[verb].name;
}

const char *smtp_syntax_reply(enum smtp_syntax syntax)
{
	assert((size_t)syntax < COUNT(syntax_replies));
	return syntax_replies[syntax];
}

static enum smtp_verb verb_of(struct span word)
{
	for (size_t v = SMTP_VERB_EHLO; v < SMTP_VERB_FOREIGN; v++) {
		if (span_is(word, verbs[v].name))
			return (enum smtp_verb)v;
	}
	for (size_t i = 0; i < COUNT(foreign_verbs); i++) {
		if (span_is(word, foreign_verbs[i]))
			return SMTP_VERB_FOREIGN;
	}
	/* "Host: ..." and the like: what follows a POST, or a stray header */
	if (!is_letter(word.at[0]) || word.at[word.len - 1] == ':')
		return SMTP_VERB_FOREIGN;
	return SMTP_VERB_OTHER;
}

/*
 * [192.0.2.1], [IPv6:2001:db8::1], or any other tag (RFC 5321, section
 * 4.1.3).  Which addresses are valid is not ours to judge.
 */
static bool is_literal(struct span s)
{
	if (s.len < 3 || s.at[0] != '[' || s.at[s.len - 1] != ']')
		return false;
	for (size_t i = 1; i < s.len - 1; i++) {
		if (!is_graph(s.at[i]) || s.at[i] == '[' || s.at[i] == ']' ||
		    s.at[i] == '\\' || s.at[i] == '<' || s.at[i] == '>')
			return false;
	}
	return true;
}

static bool is_name(struct span s)
{
	for (size_t i = 0; i < s.len; i++) {
		char c = s.at[i];

		if (!is_letter(c) && !is_digit(c) && !is_8bit(c) && c != '.' &&
		    c != '-' && c != '_')
			return false;
	}
	return s.len > 0;
}

/*
 * An EHLO argument.  Half of all hosts do not give a valid one (RFC 5321,
 * section 4.1.4 forbids a refusal for that), so bare addresses pass too; but
 * it is said again to backends and stands in logs.
 */
static bool is_host(struct span s)
{
	if (s.len > SMTP_DOMAIN_MAX)
		return false;
	if (is_literal(s))
		return true;
	for (size_t i = 0; i < s.len; i++) {
		if (is_8bit(s.at[i]))
			return false;
	}
	if (is_name(s))
		return true;
	for (size_t i = 0; i < s.len; i++) {
		char c = s.at[i];

		if (!is_letter(c) && !is_digit(c) && c != '.' && c != ':')
			return false;
	}
	return s.len > 0;
}

/* Octets of the UTF-8 character that s begins with, 0 if it is none. */
static size_t utf8_len(struct span s)
{
	const unsigned char *o = (const unsigned char *)s.at;
	unsigned low = 0x80, high = 0xbf; /* of the second octet */
	size_t len;

	if (o[0] < 0x80)
		return 1;
	if (o[0] >= 0xc2 && o[0] <= 0xdf)
		len = 2;
	else if (o[0] >= 0xe0 && o[0] <= 0xef)
		len = 3;
	else if (o[0] >= 0xf0 && o[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (len > s.len)
		return 0;
	/* Neither overlong nor surrogates nor beyond U+10FFFF: RFC 3629, 4. */
	if (o[0] == 0xe0)
		low = 0xa0;
	else if (o[0] == 0xed)
		high = 0x9f;
	else if (o[0] == 0xf0)
		low = 0x90;
	else if (o[0] == 0xf4)
		high = 0x8f;
	if (o[1] < low || o[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++) {
		if (o[i] < 0x80 || o[i] > 0xbf)
			return 0;
	}
	return len;
}

static bool is_utf8(struct span s)
{
	while (s.len > 0) {
		size_t len = utf8_len(s);

		if (len == 0)
			return false;
		s = span_skip(s, len);
	}
	return true;
}

/*
 * Octets up to the end of the mailbox that s begins with: an unquoted > if
 * it stands in <>, else a blank or the end.  *at_sign is the last unquoted @
 * in it, or NULL.  False if no mailbox looks so.
 */
static bool mailbox_scan(struct span s, bool angle, size_t *len,
			 const char **at_sign)
{
	bool quoted = false;
	size_t i;

	*at_sign = NULL;
	for (i = 0; i < s.len; i++) {
		char c = s.at[i];

		if (!quoted && (angle ? c == '>' : is_blank(c)))
			break;
		if (c == '"') {
			quoted = !quoted;
			continue;
		}
		if (quoted && c == '\\' && ++i < s.len)
			c = s.at[i];
		if (!is_graph(c) && !is_8bit(c) && !(quoted && c == ' '))
			return false;
		if (quoted)
			continue;
		if (c == '<' || c == '>' || c == '\\')
			return false;
		if (c == '@')
			*at_sign = &s.at[i];
	}
	*len = i;
	return !quoted && i <= s.len && (!angle || i < s.len);
}

/*
 * Read a path (RFC 5321, section 4.1.2) off the front of *rest into
 * cmd->path and cmd->domain.
 */
static bool read_path(struct span *rest, struct smtp_command *cmd)
{
	struct span s = *rest;
	bool angle = s.len > 0 && s.at[0] == '<';
	const char *at_sign;
	size_t len;

	if (angle)
		s = span_skip(s, 1);
	if (angle && s.len > 0 && s.at[0] == '@') {
		/* A source route, to be ignored: section 4.1.1.3. */
		const char *colon = memchr(s.at, ':', s.len);

		if (colon == NULL || colon[-1] == '@')
			return false;
		for (const char *p = s.at; p < colon; p++) {
			if (!is_graph(*p) || strchr("<>\"\\", *p) != NULL)
				return false;
		}
		s = span_skip(s, (size_t)(colon - s.at) + 1);
	}
	if (!mailbox_scan(s, angle, &len, &at_sign))
		return false;
	/* <> is a reverse-path only, and says so by its brackets. */
	if (len == 0 &&
	    (cmd->verb == SMTP_VERB_RCPT || !angle || s.at[-1] != '<'))
		return false;
	if (at_sign != NULL) {
		const char *end = s.at + len;
		struct span domain = { at_sign + 1,
				       (size_t)(end - at_sign) - 1 };

		if (at_sign == s.at ||
		    (!is_name(domain) && !is_literal(domain)))
			return false;
		cmd->domain = domain.at;
		cmd->domain_len = domain.len;
	}
	cmd->path = s.at;
	cmd->path_len = len;
	*rest = span_skip(s, len + (angle ? 1 : 0));
	/* What follows must not stick to it. */
	return rest->len == 0 || is_blank(rest->at[0]);
}

/* How a parameter's value is judged. */
enum value {
	VALUE_NONE,
	VALUE_TEXT, /* anything, but something */
	VALUE_SIZE,
	VALUE_BODY,
	VALUE_RET,
	VALUE_NOTIFY,
	VALUE_PRIORITY,
	VALUE_SUBMITTER,
};

struct param {
	const char *name;
	enum smtp_verb verb;
	enum value value;
	unsigned ext;
};

/* clang-format off */
static const struct param params[] = {
	{ "SIZE",        SMTP_VERB_MAIL, VALUE_SIZE,     SMTP_EXT_SIZE },
	{ "BODY",        SMTP_VERB_MAIL, VALUE_BODY,     0 },
	{ "SMTPUTF8",    SMTP_VERB_MAIL, VALUE_NONE,     SMTP_EXT_SMTPUTF8 },
	{ "RET",         SMTP_VERB_MAIL, VALUE_RET,      SMTP_EXT_DSN },
	{ "ENVID",       SMTP_VERB_MAIL, VALUE_TEXT,     SMTP_EXT_DSN },
	{ "BY",          SMTP_VERB_MAIL, VALUE_TEXT,     SMTP_EXT_DELIVERBY },
	{ "MT-PRIORITY", SMTP_VERB_MAIL, VALUE_PRIORITY, SMTP_EXT_MT_PRIORITY },
	{ "REQUIRETLS",  SMTP_VERB_MAIL, VALUE_NONE,     SMTP_EXT_REQUIRETLS },
	{ "AUTH",        SMTP_VERB_MAIL, VALUE_SUBMITTER, SMTP_EXT_AUTH },
	{ "NOTIFY",      SMTP_VERB_RCPT, VALUE_NOTIFY,   SMTP_EXT_DSN },
	{ "ORCPT",       SMTP_VERB_RCPT, VALUE_TEXT,     SMTP_EXT_DSN },
};
/* clang-format on */

/* RFC 6152, section 3; RFC 3030, section 3 */
static bool read_body_type(struct span value, struct smtp_command *cmd)
{
	if (span_is(value, "7BIT")) {
		cmd->body = SMTP_BODY_7BIT;
		cmd->ext |= SMTP_EXT_8BITMIME;
		return true;
	}
	if (span_is(value, "8BITMIME")) {
		cmd->body = SMTP_BODY_8BITMIME;
		cmd->ext |= SMTP_EXT_8BITMIME;
		return true;
	}
	if (span_is(value, "BINARYMIME")) {
		cmd->body = SMTP_BODY_BINARYMIME;
		cmd->ext |= SMTP_EXT_BINARYMIME | SMTP_EXT_CHUNKING;
		return true;
	}
	return false;
}

/* NEVER alone, or a list of the others: RFC 3461, section 4.1. */
static bool is_notify(struct span value)
{
	if (span_is(value, "NEVER"))
		return true;
	for (;;) {
		size_t len = 0;

		while (len < value.len && value.at[len] != ',')
			len++;
		struct span word = { value.at, len };
		if (!span_is(word, "SUCCESS") && !span_is(word, "FAILURE") &&
		    !span_is(word, "DELAY"))
			return false;
		if (len == value.len)
			return true;
		value = span_skip(value, len + 1);
	}
}

/* -9 to 9: RFC 6710, section 3. */
static bool is_priority(struct span value)
{
	if (value.len == 2 && (value.at[0] == '-' || value.at[0] == '+'))
		value = span_skip(value, 1);
	return value.len == 1 && is_digit(value.at[0]);
}

static bool is_hex(char c)
{
	return is_digit(c) || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f');
}

/*
 * xtext (RFC 3461, section 4; <> is spelled in it as well), for RFC 4954,
 * section 5.  Eighth bits come with SMTPUTF8: RFC 6533, section 3.
 */
static bool is_submitter(struct span value)
{
	for (size_t i = 0; i < value.len; i++) {
		if (value.at[i] == '=')
			return false;
		if (value.at[i] != '+')
			continue;
		if (value.len - i < 3 || !is_hex(value.at[i + 1]) ||
		    !is_hex(value.at[i + 2]))
			return false;
	}
	return value.len > 0;
}

static bool read_value(enum value kind, struct span value,
		       struct smtp_command *cmd)
{
	for (size_t i = 0; i < value.len; i++) {
		if (!is_graph(value.at[i]) && !is_8bit(value.at[i]))
			return false;
	}
	switch (kind) {
	case VALUE_NONE:
		return value.len == 0;
	case VALUE_TEXT:
		return value.len > 0;
	case VALUE_SIZE:
		return span_to_u64(value, &cmd->size);
	case VALUE_BODY:
		return read_body_type(value, cmd);
	case VALUE_RET:
		return span_is(value, "FULL") || span_is(value, "HDRS");
	case VALUE_NOTIFY:
		return is_notify(value);
	case VALUE_PRIORITY:
		return is_priority(value);
	case VALUE_SUBMITTER:
		return is_submitter(value);
	}
	return false;
}

/* One keyword[=value]; *seen has a bit for each row of the table. */
static enum smtp_syntax read_param(struct span word, unsigned *seen,
				   struct smtp_command *cmd)
{
	const char *equals = memchr(word.at, '=', word.len);
	struct span name = word, value = { word.at + word.len, 0 };

	if (equals != NULL) {
		name.len = (size_t)(equals - word.at);
		value = span_skip(word, name.len + 1);
	}
	for (size_t i = 0; i < COUNT(params); i++) {
		const struct param *p = &params[i];

		if (p->verb != cmd->verb || !span_is(name, p->name))
			continue;
		if ((*seen & 1U << i) != 0)
			return SMTP_SYNTAX_PARAM_BAD;
		*seen |= 1U << i;
		/* "SMTPUTF8=" is not SMTPUTF8 */
		if ((equals != NULL) == (p->value == VALUE_NONE))
			return SMTP_SYNTAX_PARAM_BAD;
		if (!read_value(p->value, value, cmd))
			return SMTP_SYNTAX_PARAM_BAD;
		cmd->ext |= p->ext;
		return SMTP_SYNTAX_OK;
	}
	return SMTP_SYNTAX_PARAM_UNKNOWN;
}
static_assert(COUNT(params) <= 32, "*seen has a bit for each");

/* FROM:path or TO:path, then parameters: RFC 5321, section 4.1.1.2 and .3. */
static enum smtp_syntax read_envelope(struct smtp_command *cmd)
{
	bool mail = cmd->verb == SMTP_VERB_MAIL;
	const char *word = mail ? "FROM:" : "TO:";
	enum smtp_syntax bad = mail ? SMTP_SYNTAX_SENDER_BAD
				    : SMTP_SYNTAX_RECIPIENT_BAD;
	struct span rest = { cmd->arg, cmd->arg_len };
	unsigned seen = 0;

	if (!span_starts(rest, word))
		return SMTP_SYNTAX_ARG_BAD;
	rest = span_skip_blanks(span_skip(rest, strlen(word)));
	for (size_t i = 0; i < rest.len; i++)
		cmd->has_8bit = cmd->has_8bit || is_8bit(rest.at[i]);
	if ((cmd->has_8bit && !is_utf8(rest)) || !read_path(&rest, cmd)) {
		cmd->path = cmd->domain = NULL;
		cmd->path_len = cmd->domain_len = 0;
		return bad;
	}
	rest = span_skip_blanks(rest);
	cmd->params = rest.at;
	cmd->params_len = rest.len;
	while (rest.len > 0) {
		struct span param = span_next_word(&rest);
		enum smtp_syntax syntax = read_param(param, &seen, cmd);

		if (syntax != SMTP_SYNTAX_OK)
			return syntax;
	}
	return SMTP_SYNTAX_OK;
}

/* chunk-size [LAST]: RFC 3030, section 2 */
static enum smtp_syntax read_chunk(struct smtp_command *cmd)
{
	struct span rest = { cmd->arg, cmd->arg_len };
	struct span size = span_next_word(&rest);

	if (size.len == 0)
		return SMTP_SYNTAX_ARG_MISSING;
	cmd->size_known = span_to_u64(size, &cmd->size);
	if (!cmd->size_known)
		return SMTP_SYNTAX_ARG_BAD;
	if (rest.len == 0)
		return SMTP_SYNTAX_OK;
	if (!span_is(rest, "LAST"))
		return SMTP_SYNTAX_ARG_BAD;
	cmd->bdat_last = true;
	return SMTP_SYNTAX_OK;
}

/* ---- AUTH ---- */

/* By bit. */
static const char *const auth_names[] = {
	"PLAIN",       "LOGIN",       "CRAM-MD5",      "XOAUTH2",
	"OAUTHBEARER", "SCRAM-SHA-1", "SCRAM-SHA-256",
};
static_assert(COUNT(auth_names) == SMTP_AUTH_BITS, "a name for each bit");
static_assert(SMTP_AUTH_SCRAM_SHA_256 == 1 << (SMTP_AUTH_BITS - 1),
	      "no bit left out");

/* By bit. */
static const char *const xclient_names[] = {
	"NAME",  "ADDR",     "PORT",     "PROTO",        "HELO",
	"LOGIN", "DESTADDR", "DESTPORT", "REVERSE_NAME",
};
static_assert(COUNT(xclient_names) == SMTP_XCLIENT_BITS, "a name for each bit");
static_assert(SMTP_XCLIENT_REVERSE_NAME == 1 << (SMTP_XCLIENT_BITS - 1),
	      "no bit left out");

/* The bit of the table's row that word names; 0 if there is none. */
static unsigned bit_of(struct span word, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (span_is(word, names[i]))
			return 1U << i;
	}
	return 0;
}

static const char *name_of(unsigned bit, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (bit == 1U << i)
			return names[i];
	}
	return "?";
}

const char *smtp_auth_name(enum smtp_auth bit)
{
	return name_of(bit, auth_names, COUNT(auth_names));
}

const char *smtp_xclient_name(enum smtp_xclient bit)
{
	return name_of(bit, xclient_names, COUNT(xclient_names));
}

/* RFC 4422, section 3.1, in either case. */
static bool is_mechanism(struct span s)
{
	for (size_t i = 0; i < s.len; i++) {
		char c = s.at[i];

		if (!is_letter(c) && !is_digit(c) && c != '-' && c != '_')
			return false;
	}
	return s.len > 0;
}

/* The octets of base64 and, at the end, at most two that fill it up. */
static bool is_base64(struct span s)
{
	size_t fill = 0;

	while (fill < s.len && fill < 2 && s.at[s.len - fill - 1] == '=')
		fill++;
	for (size_t i = 0; i < s.len - fill; i++) {
		char c = s.at[i];

		if (!is_letter(c) && !is_digit(c) && c != '+' && c != '/')
			return false;
	}
	return true;
}

bool smtp_auth_line_fits(const char *text, size_t len)
{
	struct span s = { text, len };

	assert(text != NULL || len == 0);
	return is_base64(s) || span_is(s, "*");
}

/* mechanism [initial-response]: RFC 4954, section 4 */
static enum smtp_syntax read_mechanism(struct smtp_command *cmd)
{
	struct span rest = { cmd->arg, cmd->arg_len };
	struct span mechanism = span_next_word(&rest);

	if (mechanism.len == 0)
		return SMTP_SYNTAX_ARG_MISSING;
	if (!is_mechanism(mechanism) || !is_base64(rest))
		return SMTP_SYNTAX_ARG_BAD;
	cmd->auth = bit_of(mechanism, auth_names, COUNT(auth_names));
	if (rest.len > 0) {
		cmd->initial = rest.at;
		cmd->initial_len = rest.len;
	}
	return SMTP_SYNTAX_OK;
}

static enum smtp_syntax read_args(struct smtp_command *cmd)
{
	switch (verbs[cmd->verb].want) {
	case WANT_ANY:
		return SMTP_SYNTAX_OK;
	case WANT_NONE:
		return cmd->arg_len == 0 ? SMTP_SYNTAX_OK
					 : SMTP_SYNTAX_ARG_UNWANTED;
	case WANT_SOME:
		return cmd->arg_len > 0 ? SMTP_SYNTAX_OK
					: SMTP_SYNTAX_ARG_MISSING;
	case WANT_HOST:
		if (cmd->arg_len == 0)
			return SMTP_SYNTAX_ARG_MISSING;
		return is_host((struct span){ cmd->arg, cmd->arg_len })
			       ? SMTP_SYNTAX_OK
			       : SMTP_SYNTAX_HOST_BAD;
	case WANT_PATH:
		return cmd->arg_len > 0 ? read_envelope(cmd)
					: SMTP_SYNTAX_ARG_MISSING;
	case WANT_CHUNK:
		return read_chunk(cmd);
	case WANT_MECHANISM:
		return read_mechanism(cmd);
	}
	return SMTP_SYNTAX_UNKNOWN;
}

struct smtp_command smtp_command_parse(const char *text, size_t len)
{
	assert(text != NULL);

	struct smtp_command cmd = { .verb = SMTP_VERB_OTHER };
	struct span rest = { text, len };

	while (rest.len > 0 && is_blank(rest.at[rest.len - 1]))
		rest.len--;

	struct span word = span_next_word(&rest);

	cmd.arg = rest.at;
	cmd.arg_len = rest.len;
	if (word.len == 0) {
		cmd.syntax = SMTP_SYNTAX_EMPTY;
		return cmd;
	}
	cmd.verb = verb_of(word);
	if (cmd.verb == SMTP_VERB_OTHER || cmd.verb == SMTP_VERB_FOREIGN)
		cmd.syntax = SMTP_SYNTAX_UNKNOWN;
	else
		cmd.syntax = read_args(&cmd);
	return cmd;
}

/* ---- EHLO keywords ---- */

/* By bit. */
/* clang-format off */
static const char *const ext_names[] = {
	"SIZE",
	"8BITMIME",
	"SMTPUTF8",
	"DSN",
	"CHUNKING",
	"BINARYMIME",
	"DELIVERBY",
	"MT-PRIORITY",
	"REQUIRETLS",
	"AUTH",
	"PIPELINING",
	"ENHANCEDSTATUSCODES",
	"STARTTLS",
	"XCLIENT",
	"XFORWARD",
};
/* clang-format on */
static_assert(COUNT(ext_names) == SMTP_EXT_BITS, "a name for each bit");
static_assert(SMTP_EXT_XFORWARD == 1 << (SMTP_EXT_BITS - 1), "no bit left out");

const char *smtp_ext_name(enum smtp_ext bit)
{
	return name_of(bit, ext_names, COUNT(ext_names));
}

/* The bits of all the words of s that the table knows. */
static unsigned bits_of(struct span s, const char *const *names, size_t count)
{
	unsigned bits = 0;

	while (s.len > 0)
		bits |= bit_of(span_next_word(&s), names, count);
	return bits;
}

unsigned smtp_ehlo_keyword(const char *line, size_t len, struct smtp_ehlo *ehlo)
{
	assert(line != NULL || len == 0);
	assert(ehlo != NULL);

	struct span rest = { line, len };
	struct span word = span_next_word(&rest);
	const char *equals = word.len > 0 ? memchr(word.at, '=', word.len)
					  : NULL;

	/* "AUTH=LOGIN": before RFC 4954, and still about */
	if (equals != NULL) {
		word.len = (size_t)(equals - word.at);
		rest = (struct span){ line, len };
		rest = span_skip(rest, (size_t)(equals - line) + 1);
	}

	unsigned bit = bit_of(word, ext_names, COUNT(ext_names));

	ehlo->ext |= bit;
	if (bit == SMTP_EXT_AUTH)
		ehlo->auth |= bits_of(rest, auth_names, COUNT(auth_names));
	if (bit == SMTP_EXT_XCLIENT)
		ehlo->xclient |= bits_of(rest, xclient_names,
					 COUNT(xclient_names));
	if (bit == SMTP_EXT_SIZE &&
	    !span_to_u64(span_next_word(&rest), &ehlo->size))
		ehlo->size = 0;
	return bit;
}

/* Append words to buf at *len; the caller has made sure of the room. */
static void put(char *buf, size_t *len, const char *words)
{
	while (*words != '\0')
		buf[(*len)++] = *words++;
}

static_assert(SMTP_DOMAIN_MAX + SMTP_EXT_BITS * 32 + SMTP_AUTH_BITS * 16 + 40 <
		      SMTP_EHLO_REPLY_MAX,
	      "every keyword fits, with its code and CRLF, SIZE's digits and "
	      "AUTH's mechanisms");

/* What stands behind the keyword of one bit. */
static void put_offer(char *buf, size_t *len, unsigned bit,
		      const struct smtp_ehlo *offer)
{
	char digits[24];

	if (bit == SMTP_EXT_SIZE && offer->size > 0) {
		(void)snprintf(digits, sizeof(digits), " %" PRIu64,
			       offer->size);
		put(buf, len, digits);
	}
	for (size_t i = 0; bit == SMTP_EXT_AUTH && i < COUNT(auth_names); i++) {
		if ((offer->auth & 1U << i) == 0)
			continue;
		put(buf, len, " ");
		put(buf, len, auth_names[i]);
	}
}

size_t smtp_ehlo_write(char *buf, size_t cap, const char *hostname,
		       const struct smtp_ehlo *offer)
{
	assert(cap >= SMTP_EHLO_REPLY_MAX);
	assert(strlen(hostname) <= SMTP_DOMAIN_MAX);

	size_t len = 0, last = 0;
	unsigned ext = offer->ext & (SMTP_EXT_RELAYED | SMTP_EXT_OWN);

	ext |= (unsigned)SMTP_EXT_PIPELINING | SMTP_EXT_ENHANCED;
	if ((ext & SMTP_EXT_CHUNKING) == 0)
		ext &= ~(unsigned)SMTP_EXT_BINARYMIME;
	if ((offer->auth & ((1U << SMTP_AUTH_BITS) - 1)) == 0)
		ext &= ~(unsigned)SMTP_EXT_AUTH;

	put(buf, &len, "250-");
	put(buf, &len, hostname);
	for (size_t i = 0; i < COUNT(ext_names); i++) {
		if ((ext & 1U << i) == 0)
			continue;
		put(buf, &len, "\r\n");
		last = len;
		put(buf, &len, "250-");
		put(buf, &len, ext_names[i]);
		put_offer(buf, &len, 1U << i, offer);
	}
	put(buf, &len, "\r\n");
	buf[last + 3] = ' ';
	assert(len <= cap);
	return len;
}

/* ---- replies ---- */

enum reply_state {
	REPLY_CODE, /* before the first, second or third digit */
	REPLY_MARK, /* before the blank or hyphen behind the code */
	REPLY_TEXT,
	REPLY_CR,        /* behind CR, before LF */
	REPLY_LAST_TEXT, /* of the last line */
	REPLY_LAST_CR,
	REPLY_DONE,
};

/* clang-format off */
static const char *const reply_bad_names[] = {
	[SMTP_REPLY_GOOD] = "good",
	[SMTP_REPLY_BAD_CODE] = "no reply code",
	[SMTP_REPLY_BAD_FORM] = "neither blank nor hyphen behind the code",
	[SMTP_REPLY_BAD_MIXED] = "two codes in one reply",
	[SMTP_REPLY_BAD_BARE_CR] = "bare CR",
	[SMTP_REPLY_BAD_BARE_LF] = "bare LF",
	[SMTP_REPLY_BAD_NUL] = "NUL",
	[SMTP_REPLY_BAD_LONG] = "line too long",
	[SMTP_REPLY_BAD_LINES] = "too many lines",
};
/* clang-format on */

const char *smtp_reply_bad_name(enum smtp_reply_bad bad)
{
	assert((size_t)bad < COUNT(reply_bad_names));
	return reply_bad_names[bad];
}

void smtp_reply_begin(struct smtp_reply_parser *r, bool ehlo_wanted)
{
	assert(r != NULL);
	/* Not *r = {0}: most replies never touch the long arrays. */
	r->state = REPLY_CODE;
	r->ehlo_wanted = ehlo_wanted;
	r->truncated = false;
	r->bad = SMTP_REPLY_GOOD;
	r->code = 0;
	r->line_code = 0;
	r->line_len = 0;
	r->lines = 0;
	r->head_len = 0;
	r->text_len = 0;
	r->octets = 0;
	r->ehlo = (struct smtp_ehlo){ 0 };
}

static void keep_text(struct smtp_reply_parser *r, char c)
{
	if (r->text_len < SMTP_REPLY_TEXT_MAX)
		r->text[r->text_len++] = c;
	else
		r->truncated = true;
}

/* One of the three digits of a line's code. */
static enum smtp_reply_bad take_digit(struct smtp_reply_parser *r, char c)
{
	if (!is_digit(c))
		return SMTP_REPLY_BAD_CODE;
	if (r->line_len == 1) {
		if (c < '2' || c > '5')
			return SMTP_REPLY_BAD_CODE;
		if (r->lines == SMTP_REPLY_LINES_MAX)
			return SMTP_REPLY_BAD_LINES;
		r->lines++;
		r->line_code = 0;
		r->head_len = 0;
	}
	r->line_code = (uint16_t)(r->line_code * 10 + (c - '0'));
	if (r->line_len < 3)
		return SMTP_REPLY_GOOD;
	if (r->lines > 1 && r->line_code != r->code)
		return SMTP_REPLY_BAD_MIXED;
	r->code = r->line_code;
	r->state = REPLY_MARK;
	if (r->lines > 1)
		keep_text(r, ' ');
	return SMTP_REPLY_GOOD;
}

/* "250" CRLF is a last line without a text: RFC 5321, section 4.2. */
static enum smtp_reply_bad take_mark(struct smtp_reply_parser *r, char c)
{
	if (c == ' ')
		r->state = REPLY_LAST_TEXT;
	else if (c == '-')
		r->state = REPLY_TEXT;
	else if (c == '\r')
		r->state = REPLY_LAST_CR;
	else
		return SMTP_REPLY_BAD_FORM;
	return SMTP_REPLY_GOOD;
}

static void take_text(struct smtp_reply_parser *r, char c)
{
	if (c == '\r') {
		r->state = r->state == REPLY_TEXT ? REPLY_CR : REPLY_LAST_CR;
		return;
	}
	if (r->head_len < SMTP_REPLY_HEAD_MAX)
		r->head[r->head_len++] = c;
	keep_text(r, c);
}

static void end_line(struct smtp_reply_parser *r)
{
	/* The first line is the server's name: RFC 5321, section 4.1.1.1. */
	if (r->ehlo_wanted && r->lines > 1 && r->code == 250)
		(void)smtp_ehlo_keyword(r->head, r->head_len, &r->ehlo);
	r->state = r->state == REPLY_LAST_CR ? REPLY_DONE : REPLY_CODE;
	r->line_len = 0;
}

static enum smtp_reply_bad take_octet(struct smtp_reply_parser *r, char c)
{
	enum reply_state state = (enum reply_state)r->state;

	r->octets++;
	if (r->line_len == SMTP_REPLY_LINE_MAX)
		return SMTP_REPLY_BAD_LONG;
	r->line_len++;
	if (c == '\0')
		return SMTP_REPLY_BAD_NUL;
	if (state == REPLY_CR || state == REPLY_LAST_CR) {
		if (c != '\n')
			return SMTP_REPLY_BAD_BARE_CR;
		end_line(r);
		return SMTP_REPLY_GOOD;
	}
	if (c == '\n')
		return SMTP_REPLY_BAD_BARE_LF;
	if (state == REPLY_CODE)
		return take_digit(r, c);
	if (state == REPLY_MARK)
		return take_mark(r, c);
	take_text(r, c);
	return SMTP_REPLY_GOOD;
}

enum smtp_reply_fed smtp_reply_feed(struct smtp_reply_parser *r,
				    const void *buf, size_t len, size_t *used)
{
	assert(r->state != REPLY_DONE);
	assert(r->bad == SMTP_REPLY_GOOD);
	assert(buf != NULL || len == 0);

	const char *text = buf;

	for (size_t i = 0; i < len; i++) {
		r->bad = take_octet(r, text[i]);
		*used = i + 1;
		if (r->bad != SMTP_REPLY_GOOD)
			return SMTP_REPLY_BAD;
		if (r->state == REPLY_DONE)
			return SMTP_REPLY_WHOLE;
	}
	*used = len;
	return SMTP_REPLY_MORE;
}

/* At most three digits off the front of *s. */
static bool read_number(struct span *s, uint16_t *number)
{
	size_t len = 0;
	unsigned sum = 0;

	while (len < s->len && len < 3 && is_digit(s->at[len]))
		sum = sum * 10 + (unsigned)(s->at[len++] - '0');
	*s = span_skip(*s, len);
	*number = (uint16_t)sum;
	return len > 0;
}

/* x.y.z off the front of *s: RFC 3463, section 2. */
static bool read_esc(struct span *s, struct smtp_esc *esc)
{
	struct smtp_esc got = { 0 };

	if (s->len < 5 || s->at[1] != '.')
		return false;
	if (s->at[0] != '2' && s->at[0] != '4' && s->at[0] != '5')
		return false;
	got.class = (uint8_t)(s->at[0] - '0');
	*s = span_skip(*s, 2);
	if (!read_number(s, &got.subject) || s->len == 0 || s->at[0] != '.')
		return false;
	*s = span_skip(*s, 1);
	if (!read_number(s, &got.detail))
		return false;
	/* 4.3.2.1 is an address, or a version */
	if (s->len > 0 && (is_digit(s->at[0]) || is_letter(s->at[0])))
		return false;
	if (s->len > 1 && s->at[0] == '.' && is_digit(s->at[1]))
		return false;
	*esc = got;
	return true;
}

bool smtp_reply_esc(const char *line, size_t len, struct smtp_esc *esc)
{
	assert(line != NULL || len == 0);

	struct span s = span_skip_blanks((struct span){ line, len });

	*esc = (struct smtp_esc){ 0 };
	if (read_esc(&s, esc))
		return true;
	for (size_t i = 0; i + 1 < len; i++) {
		if (line[i] != '(' || line[i + 1] != '#')
			continue;
		s = (struct span){ line + i + 2, len - i - 2 };

		struct smtp_esc got;
		if (read_esc(&s, &got) && s.len > 0 && s.at[0] == ')') {
			*esc = got;
			return true;
		}
	}
	return false;
}

/* ---- queue ids ---- */

/* Where word stands in s, without regard to case; s.len if nowhere. */
static size_t span_find(struct span s, const char *word)
{
	size_t len = strlen(word);

	for (size_t i = 0; i + len <= s.len; i++) {
		if (strncasecmp(s.at + i, word, len) == 0)
			return i;
	}
	return s.len;
}

static bool is_id_octet(char c)
{
	return is_graph(c) && strchr("<>()[]\"'\\,;", c) == NULL;
}

/* The id that s begins with; final full stops and colons are not of it. */
static struct span id_of(struct span s)
{
	struct span id = { s.at, 0 };

	while (id.len < s.len && id.len < SMTP_QUEUE_ID_MAX &&
	       is_id_octet(s.at[id.len]))
		id.len++;
	while (id.len > 0 &&
	       (id.at[id.len - 1] == '.' || id.at[id.len - 1] == ':'))
		id.len--;
	return id;
}

/*
 * Words that stand right before an id.  The first that is found counts, so
 * the order is from the sure to the vague.
 */
/* clang-format off */
static const char *const id_follows[] = {
	"queued as ",       /* Postfix: 2.0.0 Ok: queued as 4XYZ */
	"OK id=",           /* Exim: OK id=1abcDE-000FGH-2J */
	"message queued (", /* Haraka: Message Queued (UUID) */
	" qp ",             /* qmail: ok 1066409422 qp 12345 */
	"queued with id ",
	"message-id=",
	" id=",
};

/* Words before which an id is the first word of the text. */
static const char *const id_first[] = {
	"message accepted for delivery", /* Sendmail, OpenSMTPD */
	"queued mail for delivery",      /* Exchange: <id> [InternalId=...] */
};
/* clang-format on */

static struct span find_id(struct span s)
{
	for (size_t i = 0; i < COUNT(id_follows); i++) {
		size_t at = span_find(s, id_follows[i]);

		if (at == s.len)
			continue;
		struct span id = id_of(
			span_skip(s, at + strlen(id_follows[i])));
		if (id.len > 0)
			return id;
	}
	for (size_t i = 0; i < COUNT(id_first); i++) {
		size_t at = span_find(s, id_first[i]);

		if (at == s.len || at == 0)
			continue;
		if (s.at[0] == '<')
			s = span_skip(s, 1);
		return id_of(s);
	}
	return (struct span){ s.at, 0 };
}

size_t smtp_reply_queue_id(const char *line, size_t len, size_t *start)
{
	assert(line != NULL || len == 0);
	assert(start != NULL);

	struct span s = span_skip_blanks((struct span){ line, len });
	struct span after = s;
	struct smtp_esc esc;

	if (read_esc(&after, &esc))
		s = span_skip_blanks(after);

	struct span id = find_id(s);

	if (id.len > 0)
		*start = (size_t)(id.at - line);
	return id.len;
}

/* ---- bodies ---- */

enum body_state {
	BODY_BOL, /* at the begin of a line, behind CRLF or 354 */
	BODY_TEXT,
	BODY_CR,     /* behind a CR */
	BODY_DOT,    /* behind the dot that begins a line */
	BODY_DOT_CR, /* behind that dot and a CR */
};

void smtp_body_begin(struct smtp_body *b)
{
	assert(b != NULL);
	*b = (struct smtp_body){ .state = BODY_BOL };
}

/*
 * From p to the next line end or the end of the buffer, somewhere in a line.
 * Returns where it stopped.  Each octet is looked at by memchr alone: this is
 * the path that every octet of every message takes.
 */
static const char *scan_text(struct smtp_body *b, const char *p,
			     const char *end)
{
	const char *lf = memchr(p, '\n', (size_t)(end - p));
	const char *stop = lf != NULL ? lf : end;
	bool after_cr = stop > p && stop[-1] == '\r';
	size_t inner = (size_t)(stop - p) - (after_cr ? 1 : 0);

	if ((b->flaws & SMTP_FLAW_BARE_CR) == 0 &&
	    memchr(p, '\r', inner) != NULL)
		b->flaws |= SMTP_FLAW_BARE_CR;
	if (lf == NULL) {
		b->state = after_cr ? BODY_CR : BODY_TEXT;
		return end;
	}
	if (!after_cr)
		b->flaws |= SMTP_FLAW_BARE_LF;
	b->state = after_cr ? BODY_BOL : BODY_TEXT;
	return lf + 1;
}

/* One octet where a CR or a dot came before.  False: it was not for us. */
static bool scan_octet(struct smtp_body *b, char c)
{
	switch ((enum body_state)b->state) {
	case BODY_BOL:
		b->state = c == '.' ? BODY_DOT : BODY_TEXT;
		return c == '.';
	case BODY_DOT:
		b->state = c == '\r' ? BODY_DOT_CR : BODY_TEXT;
		return c == '\r';
	case BODY_CR:
	case BODY_DOT_CR:
		if (c == '\n') {
			b->ended = b->state == BODY_DOT_CR;
			b->state = BODY_BOL;
			return true;
		}
		b->flaws |= SMTP_FLAW_BARE_CR;
		b->state = BODY_TEXT;
		return false;
	case BODY_TEXT:
		return false;
	}
	return false;
}

/* ---- the same, 64 octets at a time, as long as nothing is special ---- */

enum { BLOCK = 64 };

/* A bit for each octet of a block, the first one lowest. */
struct marks {
	uint64_t cr, lf, nul, dot;
};

#if defined(__SSE2__)

/* Inline by order: as calls these four would be a quarter of all work. */
#define INLINE static inline __attribute__((always_inline))

INLINE uint64_t sixteen(__m128i v, __m128i want)
{
	return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(v, want));
}

struct block {
	__m128i a, b, c, d;
};

static_assert(sizeof(struct block) == BLOCK, "four vectors are a block");

INLINE uint64_t find(struct block v, char octet)
{
	const __m128i want = _mm_set1_epi8(octet);

	return sixteen(v.a, want) | sixteen(v.b, want) << 16 |
	       sixteen(v.c, want) << 32 | sixteen(v.d, want) << 48;
}

INLINE struct marks mark(const char *p)
{
	struct block v;

	memcpy(&v, p, sizeof(v));
	return (struct marks){ find(v, '\r'), find(v, '\n'), find(v, '\0'),
			       find(v, '.') };
}

#else

static struct marks mark(const char *p)
{
	struct marks m = { 0 };

	for (unsigned i = 0; i < BLOCK; i++) {
		uint64_t bit = UINT64_C(1) << i;

		m.cr |= p[i] == '\r' ? bit : 0;
		m.lf |= p[i] == '\n' ? bit : 0;
		m.nul |= p[i] == '\0' ? bit : 0;
		m.dot |= p[i] == '.' ? bit : 0;
	}
	return m;
}

#endif

/*
 * Whole blocks in which every CR is followed by LF, every LF follows a CR,
 * and neither NUL nor a line that begins with a dot and CR occurs: nearly all
 * of nearly every message.  Returns where the first other one begins.
 */
static const char *scan_blocks(struct smtp_body *b, const char *p,
			       const char *end)
{
	uint64_t bol = b->state == BODY_BOL;
	uint64_t after_cr = b->state == BODY_CR;
	uint64_t after_dot = b->state == BODY_DOT;
	const char *from = p;

	if (b->state == BODY_DOT_CR)
		return p;
	for (; end - p >= BLOCK; p += BLOCK) {
		const struct marks m = mark(p);
		uint64_t dot = (m.lf << 1 | bol) & m.dot;

		if (((m.cr << 1 | after_cr) ^ m.lf) | m.nul |
		    ((dot << 1 | after_dot) & m.cr))
			break;
		after_cr = m.cr >> (BLOCK - 1);
		after_dot = dot >> (BLOCK - 1);
		bol = m.lf >> (BLOCK - 1);
	}
	if (p == from)
		return p;
	b->state = BODY_TEXT;
	if (after_cr) {
		b->state = BODY_CR;
	} else if (after_dot) {
		b->state = BODY_DOT;
	} else if (bol) {
		b->state = BODY_BOL;
	}
	return p;
}

size_t smtp_body_scan(struct smtp_body *b, const void *buf, size_t len)
{
	assert(buf != NULL || len == 0);
	assert(!b->ended);

	if (len == 0)
		return 0;

	const char *p = buf;
	const char *end = p + len;

	while (p < end && !b->ended) {
		const char *from;

		p = scan_blocks(b, p, end);
		from = p;
		/* Through the line end that the blocks stumbled over. */
		while (p < end && !b->ended && p - from < BLOCK) {
			if (b->state == BODY_TEXT)
				p = scan_text(b, p, end);
			else if (scan_octet(b, *p))
				p++;
		}
		if (memchr(from, '\0', (size_t)(p - from)) != NULL)
			b->flaws |= SMTP_FLAW_NUL;
	}

	size_t taken = (size_t)(p - (const char *)buf);

	b->octets += taken;
	return taken;
}

/* ---- bodies without their dots ---- */

void smtp_undot_begin(struct smtp_undot *u)
{
	assert(u != NULL);
	*u = (struct smtp_undot){ .state = BODY_BOL };
}

/*
 * From p, where no dot began the line, to the next dot that begins one, or to
 * the end.  A line begins behind CRLF and nowhere else.
 */
static const char *undot_text(struct smtp_undot *u, const char *p,
			      const char *end)
{
	uint64_t bol = u->state == BODY_BOL;
	uint64_t after_cr = u->state == BODY_CR;

	u->state = BODY_BOL;
	for (; end - p >= BLOCK; p += BLOCK) {
		const struct marks m = mark(p);
		uint64_t ends = (m.cr << 1 | after_cr) & m.lf;
		uint64_t dots = (ends << 1 | bol) & m.dot;

		if (dots != 0)
			return p + __builtin_ctzll(dots);
		after_cr = m.cr >> (BLOCK - 1);
		bol = ends >> (BLOCK - 1);
	}
	for (; p < end; p++) {
		if (bol && *p == '.')
			return p;
		bol = after_cr && *p == '\n';
		after_cr = *p == '\r';
	}
	if (!bol)
		u->state = after_cr ? BODY_CR : BODY_TEXT;
	return end;
}

/*
 * One octet of *rest behind a dot that began a line.  Returns what is passed
 * for it now: nothing, or the CR before it, which then ends nothing.
 */
static struct span undot_dot(struct smtp_undot *u, struct span *rest)
{
	struct span none = { rest->at, 0 };
	char c = rest->at[0];

	if (u->state == BODY_DOT && c != '\r') {
		u->state = BODY_TEXT;
		return none;
	}
	if (u->state == BODY_DOT_CR && c != '\n') {
		u->state = BODY_TEXT;
		return (struct span){ rest->at - 1, 1 };
	}
	u->ended = u->state == BODY_DOT_CR;
	u->state = BODY_DOT_CR;
	*rest = span_skip(*rest, 1);
	return none;
}

/*
 * The next stretch of *rest that is passed, cut off it together with what is
 * dropped before; of no octets when *rest has none left, or the body ended.
 * *stuffed counts the dots.  A CR that an earlier window held back must have
 * been settled by undot_settle().
 */
static struct span undot_next(struct smtp_undot *u, struct span *rest,
			      size_t *stuffed)
{
	struct span stretch = { rest->at, 0 };

	while (rest->len > 0 && !u->ended && stretch.len == 0) {
		if (u->state == BODY_DOT || u->state == BODY_DOT_CR) {
			stretch = undot_dot(u, rest);
			continue;
		}

		const char *stop = undot_text(u, rest->at,
					      rest->at + rest->len);

		stretch = (struct span){ rest->at, (size_t)(stop - rest->at) };
		*rest = span_skip(*rest, stretch.len);
		if (rest->len > 0) {
			u->state = BODY_DOT;
			*rest = span_skip(*rest, 1);
			(*stuffed)++;
		}
	}
	return stretch;
}

/* Whether the CR that was held back turns out to be one of the text. */
static bool undot_settle(struct smtp_undot *u, struct span s)
{
	if (u->state != BODY_DOT_CR || s.len == 0 || s.at[0] == '\n')
		return false;
	u->state = BODY_TEXT;
	return true;
}

struct smtp_reframed smtp_reframe(struct smtp_undot *u, const void *buf,
				  size_t len)
{
	assert(buf != NULL || len == 0);
	assert(!u->ended);

	struct span rest = { buf, len };
	struct smtp_reframed out = { .owes_cr = undot_settle(u, rest) };

	out.octets = out.owes_cr ? 1 : 0;
	for (;;) {
		struct span stretch = undot_next(u, &rest, &out.stuffed);

		if (stretch.len == 0)
			break;
		out.octets += stretch.len;
	}
	out.taken = len - rest.len;
	out.ended = u->ended;
	assert(out.octets + out.stuffed <= out.taken + out.owes_cr);
	return out;
}

size_t smtp_undot(struct smtp_undot *u, void *buf, size_t len)
{
	assert(buf != NULL || len == 0);
	assert(!u->ended);

	struct span rest = { buf, len };
	size_t kept = 0, stuffed = 0;

	(void)undot_settle(u, rest);
	for (;;) {
		struct span stretch = undot_next(u, &rest, &stuffed);

		if (stretch.len == 0)
			break;
		/* Most windows have no dot to leave out: nothing moves. */
		if (stretch.at != (char *)buf + kept)
			memmove((char *)buf + kept, stretch.at, stretch.len);
		kept += stretch.len;
	}
	return kept;
}
