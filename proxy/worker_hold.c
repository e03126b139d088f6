#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/trace.h"
#include "proxy/work.h"

/*
 * Bodies and envelopes held in memory while their client is slow, and how
 * they are given to a backend when they are whole.
 *
 * The envelope is a row of RCPT lines, each behind a head of three octets:
 * the mark, and the line's length.
 */

enum {
	HEAD_LEN = 3,
	MARK_OPEN = '?',
	MARK_GOOD = '+',
	MARK_BAD = '-',
};

/* ---- holding ---- */

size_t hold_client_room(const struct worker *w, const struct client *c)
{
	uint64_t most = c->session.listener->body_buffer;
	size_t room = hold_room(&w->hold, &c->body);

	if (c->body.len >= most)
		return 0;
	return room < most - c->body.len ? room : (size_t)(most - c->body.len);
}

void hold_body(struct worker *w, struct client *c, size_t len)
{
	const struct io_buf *buf = c->in.first;

	assert(buf != NULL);
	assert(len <= buf->len);
	/* The session was told how much room there is. */
	if (!hold_append(&w->hold, &c->body, buf->data, len))
		c->starved = true;
}

void hold_rcpt(struct worker *w, struct client *c,
	       const struct session_act *act)
{
	const uint8_t head[HEAD_LEN] = {
		MARK_OPEN,
		(uint8_t)(act->len >> 8),
		(uint8_t)(act->len & 0xff),
	};

	assert(act->len <= UINT16_MAX);
	if (hold_room(&w->hold, &c->envelope) < HEAD_LEN + act->len ||
	    !hold_append(&w->hold, &c->envelope, head, HEAD_LEN) ||
	    !hold_append(&w->hold, &c->envelope, act->text, act->len))
		c->session.unheld = true;
}

static size_t read_octets(const struct hold_text *text,
			  struct hold_place *place, uint8_t *to, size_t len)
{
	const uint8_t *octets;
	size_t done = 0;
	size_t n;

	while (done < len && (n = hold_peek(text, place, &octets)) > 0) {
		if (n > len - done)
			n = len - done;
		memcpy(to + done, octets, n);
		hold_skip(text, place, n);
		done += n;
	}
	return done;
}

/* The next line of the envelope: its length and mark.  False: no more. */
static bool read_head(const struct hold_text *text, struct hold_place *place,
		      size_t *len, uint8_t *mark)
{
	uint8_t head[HEAD_LEN];

	if (read_octets(text, place, head, HEAD_LEN) < HEAD_LEN)
		return false;
	*mark = head[0];
	*len = (size_t)head[1] << 8 | head[2];
	return true;
}

void hold_mark(struct client *c, bool good)
{
	size_t at = c->marked.done;
	uint8_t mark;
	size_t len;

	if (c->session.unheld ||
	    !read_head(&c->envelope, &c->marked, &len, &mark))
		return;
	hold_skip(&c->envelope, &c->marked, len);
	hold_set(&c->envelope, at, good ? MARK_GOOD : MARK_BAD);
}

void hold_forget_envelope(struct worker *w, struct client *c)
{
	hold_drop(&w->hold, &c->envelope);
	c->marked = (struct hold_place){ 0 };
	c->said = (struct hold_place){ 0 };
	c->replaying = false;
}

void hold_forget_body(struct worker *w, struct client *c)
{
	hold_drop(&w->hold, &c->body);
	c->sent = (struct hold_place){ 0 };
	c->sending = false;
}

void hold_forget(struct worker *w, struct client *c)
{
	hold_forget_envelope(w, c);
	hold_forget_body(w, c);
}

/* ---- giving ---- */

/* One RCPT that the client read 2xx for.  False: there are no more. */
static bool say_rcpt(struct worker *w, struct client *c)
{
	char line[SMTP_PATH_LINE_MAX];
	size_t len;
	uint8_t mark;

	while (read_head(&c->envelope, &c->said, &len, &mark)) {
		if (mark != MARK_GOOD) {
			hold_skip(&c->envelope, &c->said, len);
			continue;
		}
		assert(len <= sizeof(line));
		(void)read_octets(&c->envelope, &c->said, (uint8_t *)line, len);
		if (!server_command(w, c->server, line, len, BUSY_STAGE_RCPT))
			c->starved = true;
		return true;
	}
	return false;
}

static void replay_more(struct worker *w, struct client *c)
{
	static const char data[] = "DATA\r\n";

	while (c->replaying && !c->starved &&
	       upstream_room(&c->server->upstream) > 0) {
		if (say_rcpt(w, c))
			continue;
		c->replaying = false;
		if (!server_command(w, c->server, data, sizeof(data) - 1,
				    BUSY_STAGE_DATA))
			c->starved = true;
	}
	server_speak_up(w, c->server);
}

void hold_replay(struct worker *w, struct client *c)
{
	const struct session *s = &c->session;

	assert(c->server != NULL);
	/* An envelope that memory had no room for was never parked. */
	assert(!c->session.unheld);
	c->said = (struct hold_place){ 0 };
	c->replaying = true;
	if (!server_command(w, c->server, s->mail, s->mail_len,
			    BUSY_STAGE_MAIL))
		c->starved = true;
	replay_more(w, c);
}

/* n octets, of `left` that are still to come. */
static bool queue_part(struct worker *w, struct server *v,
		       const uint8_t *octets, size_t n, size_t left)
{
	if (left > IO_SMALL_SIZE && io_buf_free(w->io, IO_BIG) > 0 &&
	    work_queue_text(w, &v->out, IO_BIG, octets, n))
		return true;
	return work_queue_text(w, &v->out, IO_SMALL, octets, n);
}

static void send_more(struct worker *w, struct client *c)
{
	struct server *v = c->server;
	const uint8_t *octets;
	size_t n = 1;

	while (v->out.octets + io_unsent(w->io, v->socket) < WORK_WINDOW) {
		n = hold_peek(&c->body, &c->sent, &octets);
		if (n == 0)
			break;
		if (!queue_part(w, v, octets, n, c->body.len - c->sent.done)) {
			/* What is on its way brings buffers back. */
			if (io_unsent(w->io, v->socket) == 0)
				client_go_hungry(w, c);
			break;
		}
		hold_skip(&c->body, &c->sent, n);
	}
	if (n == 0) {
		c->sending = false;
		if (c->sending_whole)
			server_sent(w, v, BUSY_STAGE_EOD);
	}
	server_speak_up(w, v);
}

void hold_send(struct worker *w, struct client *c, bool whole)
{
	assert(c->server != NULL);
	c->sent = (struct hold_place){ 0 };
	c->sending = true;
	c->sending_whole = whole;
	send_more(w, c);
}

void hold_go_on(struct worker *w, struct client *c)
{
	if (c->server == NULL || c->server->ending) {
		c->replaying = c->sending = false;
		return;
	}
	if (c->replaying)
		replay_more(w, c);
	else if (c->sending)
		send_more(w, c);
}

/* ---- the trace field ---- */

/* RFC 3848. */
static const char *protocol_of(const struct session *s)
{
	if (!s->esmtp)
		return "SMTP";
	if (s->secured)
		return s->authed ? "ESMTPSA" : "ESMTPS";
	return s->authed ? "ESMTPA" : "ESMTP";
}

static size_t write_trace(struct worker *w, const struct client *c,
			  char text[TRACE_MAX])
{
	const struct session *s = &c->session;
	char id[WORK_ID_MAX];
	const struct trace trace = {
		.helo = s->helo,
		.helo_len = s->helo_len,
		.address = c->addr_text,
		.by = w->config->weir.hostname,
		.with = protocol_of(s),
		.id = id,
		.wall_ms = c->trace_wall_ms,
	};

	client_id(c, id);
	return trace_write(text, &trace);
}

size_t hold_trace_len(struct worker *w, struct client *c)
{
	char text[TRACE_MAX];

	/* The same moment when it is sent: the length has been promised. */
	c->trace_wall_ms = io_wall_ms(w->io);
	return write_trace(w, c, text);
}

void hold_trace(struct worker *w, struct client *c)
{
	char text[TRACE_MAX];
	size_t len = write_trace(w, c, text);

	assert(c->server != NULL);
	/* A reload may have changed our name, and a chunk is announced with
	 * the length that the field had: the session cannot go on. */
	if ((c->session.message.chunked && len != c->session.trace_len) ||
	    !work_queue_text(w, &c->server->out, IO_SMALL, text, len))
		c->starved = true;
}
