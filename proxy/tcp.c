#include "proxy/tcp.h"

#include <assert.h>
#include <string.h>

/*
 * Commands as far as their replies differ for us.  What weir does not know, or
 * what tells nothing of the backend, is OTHER.
 */
enum kind {
	KIND_OTHER,
	KIND_EHLO,
	KIND_MAIL,
	KIND_RCPT,
	KIND_DATA,
	KIND_CHUNK, /* BDAT, not the last */
	KIND_END,   /* of a body, or the last BDAT */
	KIND_AUTH,  /* the command, and each answer */
	KIND_STARTTLS,
};

/* AUTH answers may be so long, and no command is longer (RFC 4954). */
enum { LINE_MAX_OCTETS = SMTP_AUTH_LINE_MAX };

static const enum busy_stage stages[] = {
	[KIND_OTHER] = BUSY_STAGE_IDLE,        [KIND_EHLO] = BUSY_STAGE_EHLO,
	[KIND_MAIL] = BUSY_STAGE_MAIL,         [KIND_RCPT] = BUSY_STAGE_RCPT,
	[KIND_DATA] = BUSY_STAGE_DATA,         [KIND_CHUNK] = BUSY_STAGE_DATA,
	[KIND_END] = BUSY_STAGE_EOD,           [KIND_AUTH] = BUSY_STAGE_AUTH,
	[KIND_STARTTLS] = BUSY_STAGE_STARTTLS,
};

static const char *const opaque_names[] = {
	[TCP_CLEAR] = "no",
	[TCP_STARTTLS] = "starttls",
	[TCP_TLS] = "tls",
	[TCP_STRANGE] = "strange",
};

const char *tcp_opaque_name(enum tcp_opaque why)
{
	assert(why < sizeof(opaque_names) / sizeof(opaque_names[0]));
	return opaque_names[why];
}

void tcp_begin(struct tcp_watch *t)
{
	memset(t, 0, sizeof(*t));
	t->state = TCP_COMMAND;
	t->stage = BUSY_STAGE_IDLE;
}

static enum tcp_seen blind(struct tcp_watch *t, enum tcp_opaque why)
{
	if (t->state != TCP_OPAQUE)
		t->why = why;
	t->state = TCP_OPAQUE;
	return TCP_BLIND;
}

bool tcp_is_hello(const void *buf, size_t len)
{
	/* ContentType handshake; no command begins so. */
	return len > 0 && *(const uint8_t *)buf == 0x16;
}

bool tcp_is_idle(const struct tcp_watch *t)
{
	return t->state == TCP_COMMAND && t->greeted && t->due == 0 &&
	       t->line_len == 0 && !t->reading;
}

enum busy_stage tcp_awaits(const struct tcp_watch *t)
{
	if (t->state == TCP_OPAQUE)
		return BUSY_STAGE_IDLE;
	if (!t->greeted)
		return BUSY_STAGE_GREET;
	return t->due > 0 ? stages[t->kinds[t->first]] : BUSY_STAGE_IDLE;
}

/* ---- the client ---- */

/* A reply to this will come.  False: there are too many. */
static bool expect(struct tcp_watch *t, enum kind kind)
{
	if (t->due == TCP_PIPELINE_MAX)
		return false;
	t->kinds[(t->first + t->due) % TCP_PIPELINE_MAX] = (uint8_t)kind;
	t->due++;
	return true;
}

static enum kind newest(const struct tcp_watch *t)
{
	assert(t->due > 0);
	return (enum kind)t->kinds[(t->first + t->due - 1) % TCP_PIPELINE_MAX];
}

static enum tcp_seen begin_chunk(struct tcp_watch *t,
				 const struct smtp_command *cmd)
{
	t->chunks = true;
	if (!cmd->size_known)
		return blind(t, TCP_STRANGE);
	t->chunk_left = cmd->size;
	t->chunk_last = cmd->bdat_last;
	t->body_octets = 0;
	/* Its reply follows its octets, but may come before: a refusal. */
	if (!expect(t, cmd->bdat_last ? KIND_END : KIND_CHUNK))
		return blind(t, TCP_STRANGE);
	t->state = cmd->size > 0 ? TCP_CHUNK : TCP_COMMAND;
	return TCP_NOTHING;
}

static enum kind kind_of(enum smtp_verb verb)
{
	switch (verb) {
	case SMTP_VERB_EHLO:
	case SMTP_VERB_HELO:
		return KIND_EHLO;
	case SMTP_VERB_MAIL:
		return KIND_MAIL;
	case SMTP_VERB_RCPT:
		return KIND_RCPT;
	case SMTP_VERB_DATA:
		return KIND_DATA;
	case SMTP_VERB_BDAT:
		return KIND_CHUNK;
	case SMTP_VERB_STARTTLS:
		return KIND_STARTTLS;
	case SMTP_VERB_AUTH:
		return KIND_AUTH;
	case SMTP_VERB_OTHER:
	case SMTP_VERB_RSET:
	case SMTP_VERB_NOOP:
	case SMTP_VERB_VRFY:
	case SMTP_VERB_EXPN:
	case SMTP_VERB_HELP:
	case SMTP_VERB_QUIT:
	case SMTP_VERB_ETRN:
	case SMTP_VERB_TURN:
	case SMTP_VERB_XCLIENT:
	case SMTP_VERB_XFORWARD:
	case SMTP_VERB_PROXY:
	case SMTP_VERB_FOREIGN:
		break;
	}
	return KIND_OTHER;
}

static void keep_helo(struct tcp_watch *t, const struct smtp_command *cmd)
{
	if (cmd->syntax != SMTP_SYNTAX_OK || cmd->arg_len > sizeof(t->helo))
		return;
	memcpy(t->helo, cmd->arg, cmd->arg_len);
	t->helo_len = (uint16_t)cmd->arg_len;
}

/* A line has ended; its first octets are in head, LF and CR not among them. */
static enum tcp_seen command(struct tcp_watch *t)
{
	const struct smtp_command cmd = smtp_command_parse(t->head,
							   t->head_len);
	enum kind kind = kind_of(cmd.verb);

	if (cmd.verb == SMTP_VERB_XCLIENT || cmd.verb == SMTP_VERB_XFORWARD)
		return TCP_FORBIDDEN;
	if (cmd.verb == SMTP_VERB_BDAT)
		return begin_chunk(t, &cmd);
	if (cmd.verb == SMTP_VERB_QUIT)
		t->quit = true;
	if (kind == KIND_EHLO)
		keep_helo(t, &cmd);
	return expect(t, kind) ? TCP_NOTHING : blind(t, TCP_STRANGE);
}

static enum tcp_seen line_ended(struct tcp_watch *t)
{
	enum tcp_seen seen = TCP_NOTHING;

	if (t->head_len > 0 && t->head[t->head_len - 1] == '\r')
		t->head_len--;
	if (t->state == TCP_ANSWER) {
		t->state = TCP_COMMAND;
		if (!expect(t, KIND_AUTH))
			seen = blind(t, TCP_STRANGE);
	} else {
		seen = command(t);
	}
	/* An answer is a secret. */
	memset(t->head, 0, sizeof(t->head));
	t->head_len = 0;
	t->line_len = 0;
	return seen;
}

/* Part of a line: up to its LF, if that is there.  *used: how much of it. */
static enum tcp_seen line_octets(struct tcp_watch *t, const char *text,
				 size_t len, size_t *used)
{
	const char *lf = memchr(text, '\n', len);
	size_t take = lf != NULL ? (size_t)(lf - text) : len;
	size_t room = sizeof(t->head) - t->head_len;
	size_t kept = take < room ? take : room;

	*used = lf != NULL ? take + 1 : take;
	/* Behind DATA nobody knows yet whether these are lines at all. */
	if (t->due > 0 && newest(t) == KIND_DATA)
		return blind(t, TCP_STRANGE);
	if (t->line_len == 0 && t->state == TCP_COMMAND &&
	    smtp_line_is_binary(text, len))
		return blind(t, TCP_STRANGE);
	if (*used > LINE_MAX_OCTETS - t->line_len)
		return blind(t, TCP_STRANGE);
	memcpy(t->head + t->head_len, text, kept);
	t->head_len = (uint16_t)(t->head_len + kept);
	t->line_len += (uint32_t)*used;
	return lf != NULL ? line_ended(t) : TCP_NOTHING;
}

static enum tcp_seen body_octets(struct tcp_watch *t, const char *text,
				 size_t len, size_t *used)
{
	*used = smtp_body_scan(&t->body, text, len);
	t->body_octets += *used;
	if (!t->body.ended)
		return TCP_NOTHING;
	t->state = TCP_COMMAND;
	return expect(t, KIND_END) ? TCP_NOTHING : blind(t, TCP_STRANGE);
}

static enum tcp_seen chunk_octets(struct tcp_watch *t, size_t len, size_t *used)
{
	*used = len < t->chunk_left ? len : (size_t)t->chunk_left;
	t->chunk_left -= *used;
	t->body_octets += *used;
	if (t->chunk_left == 0)
		t->state = TCP_COMMAND;
	return TCP_NOTHING;
}

enum tcp_seen tcp_client_said(struct tcp_watch *t, const void *buf, size_t len)
{
	const char *text = buf;
	enum tcp_seen seen = TCP_NOTHING;

	if (t->state == TCP_COMMAND && !t->greeted && t->due == 0 &&
	    t->line_len == 0 && tcp_is_hello(buf, len))
		return blind(t, TCP_TLS);
	while (len > 0 && seen == TCP_NOTHING) {
		size_t used = 0;

		switch (t->state) {
		case TCP_COMMAND:
		case TCP_ANSWER:
			seen = line_octets(t, text, len, &used);
			break;
		case TCP_BODY:
			seen = body_octets(t, text, len, &used);
			break;
		case TCP_CHUNK:
			seen = chunk_octets(t, len, &used);
			break;
		case TCP_OPAQUE:
			return TCP_BLIND;
		}
		text += used;
		len -= used;
	}
	return seen;
}

/* ---- the server ---- */

/* 334: the client's next line is an answer, if it is not half said already. */
static enum tcp_seen challenged(struct tcp_watch *t)
{
	if (t->state != TCP_COMMAND || t->due > 0 || t->line_len > 0)
		return blind(t, TCP_STRANGE);
	t->state = TCP_ANSWER;
	return TCP_REPLY;
}

/* 354: the body comes. */
static enum tcp_seen go_ahead(struct tcp_watch *t)
{
	/* Whoever waits for it has said nothing behind DATA. */
	assert(t->state == TCP_COMMAND);
	assert(t->due == 0);
	assert(t->line_len == 0);
	smtp_body_begin(&t->body);
	t->body_octets = 0;
	t->state = TCP_BODY;
	return TCP_REPLY;
}

static enum tcp_seen answered(struct tcp_watch *t, enum kind kind)
{
	unsigned code = t->reply.code;
	bool good = code / 100 == 2;

	t->stage = stages[kind];
	t->challenged = false;
	switch (kind) {
	case KIND_MAIL:
		t->transactions += good;
		return TCP_REPLY;
	case KIND_RCPT:
		t->recipients += good;
		return TCP_REPLY;
	case KIND_END:
		t->messages += good;
		return TCP_REPLY;
	case KIND_DATA:
		return code == 354 ? go_ahead(t) : TCP_REPLY;
	case KIND_AUTH:
		t->challenged = code == 334;
		return code == 334 ? challenged(t) : TCP_REPLY;
	case KIND_STARTTLS:
		return code == 220 ? blind(t, TCP_STARTTLS) : TCP_REPLY;
	case KIND_EHLO:
		t->offered = t->offered || good;
		t->ext = good ? t->reply.ehlo.ext : t->ext;
		return TCP_REPLY;
	case KIND_OTHER:
	case KIND_CHUNK:
		break;
	}
	return TCP_REPLY;
}

static enum tcp_seen reply_ended(struct tcp_watch *t)
{
	t->reading = false;
	if (!t->greeted) {
		t->greeted = true;
		t->stage = BUSY_STAGE_GREET;
		return TCP_REPLY;
	}
	if (t->due > 0) {
		enum kind kind = (enum kind)t->kinds[t->first];

		t->first = (t->first + 1) % TCP_PIPELINE_MAX;
		t->due--;
		return answered(t, kind);
	}
	/* A server may say why it closes without being asked (RFC 5321,
	 * section 3.8).  In the middle of a body it may mean the body, whose
	 * end then has no reply: there is no telling. */
	if (t->reply.code < 400 || t->state != TCP_COMMAND)
		return blind(t, TCP_STRANGE);
	t->stage = BUSY_STAGE_IDLE;
	return TCP_REPLY;
}

static bool awaits_ehlo(const struct tcp_watch *t)
{
	return t->greeted && t->due > 0 && t->kinds[t->first] == KIND_EHLO;
}

enum tcp_seen tcp_server_said(struct tcp_watch *t, const void *buf, size_t len,
			      size_t *used)
{
	enum tcp_seen seen = TCP_BLIND;

	*used = len;
	if (t->state == TCP_OPAQUE)
		return TCP_BLIND;
	if (len == 0)
		return TCP_NOTHING;
	if (!t->reading) {
		smtp_reply_begin(&t->reply, awaits_ehlo(t));
		t->reading = true;
	}
	switch (smtp_reply_feed(&t->reply, buf, len, used)) {
	case SMTP_REPLY_MORE:
		return TCP_NOTHING;
	case SMTP_REPLY_WHOLE:
		seen = reply_ended(t);
		break;
	case SMTP_REPLY_BAD:
		seen = blind(t, TCP_STRANGE);
		break;
	}
	if (seen == TCP_BLIND)
		*used = len;
	return seen;
}
