#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "proxy/work.h"

/*
 * Clients: what comes from them goes to their session, and its plans are
 * done here.
 */

/* ---- the pool ---- */

static struct client *client_new(struct worker *w, io_handle socket)
{
	struct client *c = w->free_clients;
	size_t at;

	if (work_sockets_left(w) == 0)
		return NULL;
	if (c != NULL)
		w->free_clients = c->next;
	else if (w->clients_used < w->weir->sessions_max)
		c = &w->client_pool[w->clients_used++];
	else
		return NULL;
	memset(c, 0, sizeof(*c));
	c->work.kind = WORK_CLIENT;
	timer_init(&c->work.timer);
	c->socket = socket;
	c->next = w->clients.next;
	c->prev = &w->clients;
	c->next->prev = c;
	w->clients.next = c;
	w->client_count++;
	atomic_fetch_add(&w->weir->sockets, 1);
	at = (size_t)(c - w->client_pool) *
	     (SESSION_LINE_MAX + SESSION_MAIL_MAX);
	c->lines = w->lines + at;
	c->sent_ms = w->now_ms;
	c->linger_ms = INT64_MAX;
	return c;
}

static void client_free(struct worker *w, struct client *c)
{
	assert(c->server == NULL);
	assert(c->session.state == SESSION_CLOSED);
	timer_clear(&c->work.timer);
	work_hush(&c->work);
	secure_end(w, &c->work, &c->tls);
	work_queue_drop(w, &c->in);
	work_queue_drop(w, &c->out);
	c->prev->next = c->next;
	c->next->prev = c->prev;
	c->next = w->free_clients;
	w->free_clients = c;
	assert(w->client_count > 0);
	w->client_count--;
	atomic_fetch_sub(&w->weir->sockets, 1);
}

/* ---- log lines ---- */

void client_id(const struct client *c, char id[WORK_ID_MAX])
{
	(void)snprintf(id, WORK_ID_MAX, "%08lx-%lx",
		       (unsigned long)(c->id >> 32),
		       (unsigned long)(c->id & UINT32_MAX));
}

static void log_who(struct worker *w, const struct client *c)
{
	char text[64];

	client_id(c, text);
	log_word(&w->log, "id", text);
	log_word(&w->log, "listener", c->session.listener->name);
	(void)snprintf(text, sizeof(text),
		       cidr_addr_is_v4(&c->addr) ? "%s:%u" : "[%s]:%u",
		       c->addr_text, c->port);
	log_word(&w->log, "client", text);
}

static void log_session(struct worker *w, const struct client *c)
{
	const struct session *s = &c->session;

	work_log_begin(w, "session");
	log_who(w, c);
	proxy_log(w, c);
	relay_log(w, c);
	if (s->helo_len > 0)
		log_text(&w->log, "helo", s->helo, s->helo_len);
	if (c->tls_awaited)
		log_word(&w->log, "tls", "unfinished");
	else
		secure_log(w, &c->tls);
	if (s->authed)
		log_word(&w->log, "auth", "yes");
	log_number(&w->log, "transactions", s->transactions);
	log_number(&w->log, "messages", s->messages);
	log_number(&w->log, "recipients", (int64_t)c->recipients);
	log_number(&w->log, "errors", s->errors);
	if (s->early)
		log_word(&w->log, "early", "yes");
	log_number(&w->log, "octets_in", (int64_t)c->octets_in);
	log_number(&w->log, "octets_out", (int64_t)c->octets_out);
	log_number(&w->log, "ms", w->now_ms - s->opened_ms);
	if (c->limit != NULL)
		log_word(&w->log, "limit", c->limit);
	log_word(&w->log, "close", stats_close_name(s->reason));
	work_log(w, LOG_LEVEL_INFO);
	atomic_fetch_add_explicit(&w->stats->closed[s->reason], 1,
				  memory_order_relaxed);
}

static const char *result_of(const struct session_message *m)
{
	if (m->unknown)
		return "unknown";
	if (m->code / 100 == 2)
		return "delivered";
	if (m->code == 0)
		return "aborted";
	if (m->bound_ms == 0 || m->stage == BUSY_STAGE_TCP)
		return "unavailable";
	return "refused";
}

static void log_message(struct worker *w, struct client *c)
{
	const struct session *s = &c->session;
	const struct session_message *m = &s->message;
	const struct smtp_command mail = smtp_command_parse(s->mail,
							    s->mail_len - 2);

	work_log_begin(w, "message");
	log_who(w, c);
	log_word(&w->log, "result", result_of(m));
	if (mail.path != NULL)
		log_text(&w->log, "from", mail.path, mail.path_len);
	log_number(&w->log, "rcpts", m->rcpts);
	log_number(&w->log, "rcpts_ok", m->rcpts_ok);
	log_number(&w->log, "octets", (int64_t)m->octets);
	if (c->backend[0] != '\0')
		log_word(&w->log, "backend", c->backend);
	if (c->backend[0] != '\0' && c->backend_tls != NULL)
		log_word(&w->log, "backend_tls", c->backend_tls);
	log_number(&w->log, "tries", m->tries);
	log_word(&w->log, "stage", busy_stage_name(m->stage));
	if (m->code != 0)
		log_number(&w->log, "code", m->code);
	log_word(&w->log, "class", busy_class_name(m->class));
	if (m->chunked)
		log_word(&w->log, "bdat", "yes");
	if (m->flaws != 0)
		log_number(&w->log, "flaws", m->flaws);
	if (c->queue_id_len > 0)
		log_text(&w->log, "queue_id", c->queue_id, c->queue_id_len);
	if (c->reply_len > 0)
		log_text(&w->log, "reply", c->reply, c->reply_len);
	if (c->refused[0] != '\0')
		log_word(&w->log, "refused", c->refused);
	if (m->parked)
		log_word(&w->log, "parked", "yes");
	if (m->replays > 0)
		log_number(&w->log, "replays", m->replays);
	if (c->waited)
		log_number(&w->log, "waited_ms", c->waited_ms);
	if (c->reused)
		log_word(&w->log, "reused", "yes");
	if (m->bound_ms > 0)
		log_number(&w->log, "bind_ms", m->bound_ms - m->mail_ms);
	if (m->end_ms > 0 && m->data_ms > 0)
		log_number(&w->log, "body_ms", m->end_ms - m->data_ms);
	if (m->end_ms > 0)
		log_number(&w->log, "final_ms", w->now_ms - m->end_ms);
	log_number(&w->log, "ms", w->now_ms - m->mail_ms);
	work_log(w, LOG_LEVEL_INFO);
	if (m->code / 100 == 2 && s->ticket.held)
		admission_praise(w->weir->admission, &s->ticket, w->now_ms);
	c->recipients += m->rcpts_ok;
	c->queue_id_len = 0;
	c->reply_len = 0;
	if (!s->authed)
		c->backend[0] = '\0';
	c->refused[0] = '\0';
	c->waited = c->reused = false;
	c->waited_ms = 0;
	hold_forget(w, c);
}

/* ---- plans ---- */

/* The session has ended; what is left is to close its connection. */
static void over(struct worker *w, struct client *c)
{
	assert(w->talking > 0);
	w->talking--;
	if (c->session.ticket.held)
		admission_close(w->weir->admission, &c->session.ticket);
	room_give_up(w, c);
	hold_forget(w, c);
}

/*
 * Something for the client to read.  When the pool is empty, out of the
 * reserve: a last word too is better than none, as long as that lasts.
 */
static void put(struct worker *w, struct client *c, const char *text,
		size_t len)
{
	if (work_queue_text(w, &c->out, IO_SMALL, text, len))
		return;
	if (io_buf_free(w->io, IO_RESERVE) < WORK_RESERVE_KEPT ||
	    !work_queue_text(w, &c->out, IO_RESERVE, text, len))
		c->starved = true;
}

static void say(struct worker *w, struct client *c,
		const struct session_act *act)
{
	unsigned times = act->times > 0 ? act->times : 1;

	if (c->socket == 0 || c->gone_told || relay_is_deaf(w, c))
		return;
	while (times-- > 0)
		put(w, c, act->text, act->len);
}

/* Relay a reply with another code: on each of its lines. */
static void relay_as(struct worker *w, struct client *c, const char *raw,
		     size_t len, unsigned code)
{
	char digits[8];

	(void)snprintf(digits, sizeof(digits), "%03u", code % 1000);
	while (len > 0) {
		const char *lf = memchr(raw, '\n', len);
		size_t n = lf != NULL ? (size_t)(lf - raw) + 1 : len;

		put(w, c, digits, 3);
		put(w, c, raw + 3, n - 3);
		raw += n;
		len -= n;
	}
}

static void relay(struct worker *w, struct client *c, unsigned code,
		  const struct session_event *ev)
{
	assert(ev->kind == SESSION_IN_REPLY);
	if (c->socket == 0 || c->gone_told)
		return;
	if (code != 0)
		relay_as(w, c, ev->data, ev->len, code);
	else
		put(w, c, ev->data, ev->len);
}

static void close_client(struct worker *w, struct client *c, bool abort)
{
	over(w, c);
	if (c->socket == 0 || c->ending)
		return;
	/* A broken stream ends with the alert that says why. */
	if (c->tls_broken)
		abort = false;
	if (abort || c->gone_told) {
		work_queue_drop(w, &c->out);
		io_abort(w->io, c->socket);
		c->ending = true;
	} else {
		c->flushing = true;
	}
}

/*
 * Take the stuffed dots out of the first octets: what is left of them stands
 * at the front of the buffer.
 */
static size_t undot(struct worker *w, struct work_queue *in,
		    const struct session_act *act)
{
	struct smtp_undot state = act->undot_state;
	struct io_buf *buf = in->first;
	size_t left = smtp_undot(&state, buf->data, act->len);
	size_t out = act->len - left;

	if (left == 0) {
		work_queue_eat(w, in, out);
		return 0;
	}
	memmove(buf->data + out, buf->data, left);
	buf->data += out;
	buf->len -= (uint32_t)out;
	in->octets -= out;
	return left;
}

static void body(struct worker *w, struct client *c,
		 const struct session_act *act)
{
	struct server *v = c->server;
	size_t len = act->len;

	assert(v != NULL);
	if (c->starved)
		return;
	if (act->undot)
		len = undot(w, &c->in, act);
	if (len > 0 && !work_queue_move(w, &c->in, &v->out, len)) {
		c->starved = true;
		return;
	}
	if (act->stage == BUSY_STAGE_EOD)
		server_sent(w, v, BUSY_STAGE_EOD);
}

/*
 * Whether a pinned backend gets the trace field was settled at the login; its
 * length is that of this message.
 */
static void renew_trace(struct worker *w, struct client *c)
{
	if (c->session.trace_len > 0)
		c->session.trace_len = (unsigned)hold_trace_len(w, c);
}

static void command(struct worker *w, struct client *c,
		    const struct session_act *act)
{
	const struct session *s = &c->session;

	if (act->hold)
		hold_rcpt(w, c, act);
	/* It was bound long ago, and the field tells of each message. */
	if (s->authed && act->stage == BUSY_STAGE_MAIL)
		renew_trace(w, c);
	if (!server_command(w, c->server, act->text, act->len, act->stage))
		c->starved = true;
}

/* Its backend connection is over, for this message or for good. */
static void part(struct worker *w, struct client *c, enum session_do how)
{
	room_give_up(w, c);
	if (c->server == NULL)
		return;
	if (how == SESSION_DO_KEEP)
		bind_keep(w, c->server);
	else if (how == SESSION_DO_PARK)
		bind_park(w, c->server);
	else if (how == SESSION_DO_RESET)
		server_reset(w, c->server);
	else
		server_quit(w, c->server);
}

static bool seek(struct worker *w, struct client *c, struct session_event *next)
{
	const struct session *s = &c->session;

	if (s->message.rcpts_ok == 0 && c->body.len == 0)
		hold_forget_envelope(w, c);
	/* What is said from here on is another backend's. */
	c->replaying = c->sending = false;
	c->reply_len = 0;
	c->backend[0] = '\0';
	/* A kept connection that had come to its end was no try, and its
	 * backend may be the only one. */
	if (s->afresh || s->message.tries <= 1)
		c->need.tried_count = 0;
	return bind_client(w, c, next);
}

/*
 * Do what w->plan says.  True: *next is to be told to the session now.
 * *moved: the event's octets went on as they were.
 */
static bool perform(struct worker *w, struct client *c,
		    const struct session_event *ev, struct session_event *next,
		    bool *moved)
{
	bool more = false;

	*moved = false;
	for (unsigned i = 0; i < w->plan.count; i++) {
		const struct session_act *act = &w->plan.acts[i];

		switch (act->what) {
		case SESSION_DO_SAY:
			say(w, c, act);
			break;
		case SESSION_DO_RELAY:
			relay(w, c, act->code, ev);
			break;
		case SESSION_DO_BIND:
			more = !seek(w, c, next);
			break;
		case SESSION_DO_COMMAND:
			command(w, c, act);
			break;
		case SESSION_DO_BODY:
			body(w, c, act);
			*moved = true;
			break;
		case SESSION_DO_HOLD:
			hold_body(w, c, act->len);
			break;
		case SESSION_DO_MARK:
			hold_mark(c, act->good);
			break;
		case SESSION_DO_REPLAY:
			hold_replay(w, c);
			break;
		case SESSION_DO_TRACE:
			hold_trace(w, c);
			break;
		case SESSION_DO_SEND:
			hold_send(w, c, act->stage == BUSY_STAGE_EOD);
			break;
		case SESSION_DO_KEEP:
		case SESSION_DO_PARK:
		case SESSION_DO_QUIT:
		case SESSION_DO_RESET:
			part(w, c, act->what);
			break;
		case SESSION_DO_STARTTLS:
			/* When this reply is out, and not before.  No backend
			 * was told of TLS yet. */
			c->tls_due = true;
			part(w, c, SESSION_DO_QUIT);
			break;
		case SESSION_DO_LOG:
			log_message(w, c);
			break;
		case SESSION_DO_CLOSE:
		case SESSION_DO_ABORT:
			/* A connection kept for the next message goes too. */
			part(w, c, SESSION_DO_QUIT);
			close_client(w, c, act->what == SESSION_DO_ABORT);
			break;
		}
	}
	if (c->session.swallow)
		hold_forget_body(w, c);
	if (c->server != NULL)
		server_chunk(w, c->server, c->session.state == SESSION_CHUNK);
	return more;
}

/* Tell the session, and whatever follows from that. */
static bool tell(struct worker *w, struct client *c,
		 const struct session_event *event)
{
	struct session_event ev = *event;
	struct session_event next = { 0 };
	bool progress = false;
	bool moved = false;
	bool more = true;

	while (more) {
		session_step(&c->session, &w->env, &ev, &w->plan);
		progress = progress || w->plan.count > 0 ||
			   w->plan.consumed > 0;
		more = perform(w, c, &ev, &next, &moved);
		if (!moved)
			work_queue_eat(w, &c->in, w->plan.consumed);
		if (c->tls_due)
			work_queue_drop(w, &c->in);
		ev = next;
	}
	return progress;
}

/* ---- input ---- */

/* Is there room for what the session's answer to more octets would send? */
static bool has_room(struct worker *w, const struct client *c)
{
	const struct server *v = c->server;

	if (c->sending)
		return false; /* what is held goes first */
	if (c->socket != 0 &&
	    c->out.octets + io_unsent(w->io, c->socket) >= WORK_WINDOW)
		return false;
	return v == NULL || v->ending ||
	       v->out.octets + io_unsent(w->io, v->socket) < WORK_WINDOW;
}

/*
 * Buffers are short: whoever would have to say something waits its turn, so
 * that a crowd is answered late and not cut off.  (The last eighth is for
 * what is under way.)
 */
static bool is_short(struct worker *w)
{
	return io_buf_free(w->io, IO_SMALL) < 1;
}

void client_go_hungry(struct worker *w, struct client *c)
{
	if (c->hungry)
		return;
	c->hungry = true;
	c->next_hungry = NULL;
	if (w->hungriest != NULL)
		w->hungriest->next_hungry = c;
	else
		w->hungry = c;
	w->hungriest = c;
}

/* ---- TLS ---- */

static void welcome(struct worker *w, struct client *c);

static bool is_bulk(const struct client *c)
{
	const struct session *s = &c->session;

	return (s->state == SESSION_BODY || s->state == SESSION_CHUNK) &&
	       s->message.octets >= WORK_BULK;
}

static void tell_broken(struct worker *w, struct client *c)
{
	const struct session_event ev = { .kind = SESSION_IN_INSECURE };

	c->tls_broken = true;
	c->tls_by_ms = 0;
	stats_add(&w->stats->tls_failed, 1);
	(void)tell(w, c, &ev);
}

static void tell_secured(struct worker *w, struct client *c)
{
	const struct session_event ev = { .kind = SESSION_IN_SECURED };
	struct tls_info info;

	c->secured = true;
	tls_describe(c->tls.codec, &info);
	stats_add(info.resumed ? &w->stats->tls_resumed : &w->stats->tls_full,
		  1);
	(void)tell(w, c, &ev);
	if (c->tls_by_ms > 0)
		welcome(w, c);
	c->tls_by_ms = 0;
}

/* All that was said in the clear is out, and what came meanwhile is gone. */
static void await_tls(struct client *c)
{
	c->tls_due = false;
	c->tls_awaited = true;
}

/* Its first octets have come.  That alone takes memory, and time. */
static void begin_tls(struct worker *w, struct client *c)
{
	unsigned at = (unsigned)(c->session.listener - w->config->listeners);

	c->tls_awaited = false;
	if (!secure_begin(w, &c->tls, tls_store_listener(w->weir->tls, at),
			  NULL))
		tell_broken(w, c);
}

/* Decode what has come, and tell the session what that has changed. */
static void refill(struct worker *w, struct client *c)
{
	if (c->session.state == SESSION_CLOSED)
		return;
	if (c->tls_awaited && c->tls.wire.first != NULL) {
		if (w->handshakes == 0) {
			secure_wait(w, &c->work);
			return;
		}
		begin_tls(w, c);
	}
	if (c->tls.codec == NULL || c->tls_broken)
		return;
	switch (secure_read(w, &c->work, &c->tls, &c->in,
			    is_bulk(c) ? IO_BIG : IO_SMALL)) {
	case TLS_HANDSHAKE:
	case TLS_STATES:
		return;
	case TLS_OPEN:
		break;
	case TLS_CLOSED:
		/* All that it meant to say has come. */
		c->eof = c->eof || c->tls.wire.first == NULL;
		break;
	case TLS_FAILED:
		/* What came before is good, and is dealt with first. */
		if (c->in.first == NULL || !c->secured)
			tell_broken(w, c);
		return;
	}
	if (!c->secured)
		tell_secured(w, c);
}

/* Has it said more than the session has heard? */
static bool has_more(const struct client *c)
{
	return c->in.first != NULL || c->session.line_ready ||
	       c->tls.wire.first != NULL ||
	       (c->tls.codec != NULL && tls_is_holding(c->tls.codec));
}

static void pump(struct worker *w, struct client *c)
{
	struct session *s = &c->session;

	if (s->state == SESSION_RELAY) {
		relay_pump(w, c);
		return;
	}
	if (s->state != SESSION_CLOSED && has_more(c) && is_short(w)) {
		client_go_hungry(w, c);
		return;
	}

	hold_go_on(w, c);
	refill(w, c);
	while (s->state != SESSION_CLOSED && !c->starved && session_wants(s) &&
	       has_room(w, c)) {
		struct session_event ev = {
			.kind = SESSION_IN_OCTETS,
			.room = hold_client_room(w, c),
		};

		if (c->in.first != NULL) {
			ev.data = (const char *)c->in.first->data;
			ev.len = c->in.first->len;
		} else if (s->line_ready) {
			ev.data = "";
		} else {
			break;
		}
		if (!tell(w, c, &ev))
			break;
		refill(w, c);
	}
	if (s->state == SESSION_CLOSED) {
		work_queue_drop(w, &c->in);
		work_queue_drop(w, &c->tls.wire);
	}
	if (c->eof && !c->eof_told && !has_more(c)) {
		const struct session_event ev = { .kind = SESSION_IN_EOF };

		c->eof_told = true;
		(void)tell(w, c, &ev);
	}
}

static void arm(struct worker *w, struct client *c)
{
	const struct session *s = &c->session;

	if (c->receiving || c->eof || c->gone_told || c->ending ||
	    c->socket == 0 ||
	    c->in.octets + c->tls.wire.octets >= WORK_COMMAND_CREDIT ||
	    !has_room(w, c))
		return;
	/* Who waits for a backend holds what it has said already, and that is
	 * enough: the rest waits in the kernel. */
	if (c->in.first != NULL && !session_wants(s))
		return;
	c->receiving = true;
	if (is_bulk(c))
		io_recv(w->io, c->socket, IO_BIG, WORK_BODY_CREDIT);
	else
		io_recv(w->io, c->socket, IO_SMALL, WORK_COMMAND_CREDIT);
}

/* ---- output, time, the end ---- */

static bool is_sending(struct worker *w, const struct client *c)
{
	return c->out.octets > 0 || io_unsent(w->io, c->socket) > 0;
}

static void close_if_done(struct worker *w, struct client *c)
{
	bool late = w->now_ms >= c->linger_ms;

	if (!c->fin_sent || c->ending)
		return;
	if (!c->gone_told && !c->eof && !late)
		return;
	if (io_unsent(w->io, c->socket) > 0 && !c->gone_told && !late)
		return;
	c->ending = true;
	io_close(w->io, c->socket);
}

/* When a client that reads nothing of what is being sent is given up. */
static int64_t stuck_ms(struct worker *w, const struct client *c)
{
	int64_t patience_ms = w->config->timeouts.send_ms;

	if (c->flushing && patience_ms > WORK_LAST_WORDS_MS)
		patience_ms = WORK_LAST_WORDS_MS;
	return c->sent_ms + patience_ms;
}

/* Nothing else counts of what it says, and it is nobody yet. */
static bool is_header_due(const struct client *c)
{
	return c->header_by_ms > 0 && c->session.state != SESSION_CLOSED;
}

/* The same of a handshake that comes before the greeting. */
static bool is_handshake_due(const struct client *c)
{
	return c->tls_by_ms > 0 && c->session.state != SESSION_CLOSED;
}

static void set_timer(struct worker *w, struct client *c)
{
	int64_t at_ms = c->session.deadline_ms;

	if (c->ending || c->socket == 0) {
		at_ms = c->session.deadline_ms;
	} else {
		int64_t end_ms = is_sending(w, c) ? stuck_ms(w, c)
						  : c->linger_ms;

		if (end_ms < at_ms)
			at_ms = end_ms;
		if (is_header_due(c) && c->header_by_ms < at_ms)
			at_ms = c->header_by_ms;
		if (is_handshake_due(c) && c->tls_by_ms < at_ms)
			at_ms = c->tls_by_ms;
		end_ms = room_wait_ends(w, c);
		if (end_ms < at_ms)
			at_ms = end_ms;
	}
	timer_set(&w->wheel, &c->work.timer, at_ms);
}

/* In TLS or in the clear; counted as it goes over the wire. */
static void send_queued(struct worker *w, struct client *c)
{
	uint64_t octets;

	if (c->tls_awaited)
		return;
	octets = secure_flush(w, &c->work, &c->tls, &c->out, c->socket,
			      c->flushing);
	c->octets_out += octets;
	stats_add(&w->stats->octets_out, octets);
}

/* Not while a handshake is awaited or under way, nor when it has failed. */
static bool can_say(const struct client *c)
{
	if (c->tls.codec != NULL)
		return secure_can_say(&c->tls);
	return !c->tls_awaited;
}

/* Is there nothing more to send, not even of what TLS has to say? */
static bool is_all_said(const struct client *c)
{
	return c->out.first == NULL && !secure_is_loud(&c->tls, &c->out);
}

void client_flush(struct worker *w, struct client *c)
{
	if (c->socket == 0 || c->ending)
		return;
	if (io_unsent(w->io, c->socket) == 0)
		c->sent_ms = w->now_ms;
	/* What cannot be said in TLS is not said at all. */
	if (c->flushing && !can_say(c))
		work_queue_drop(w, &c->out);
	send_queued(w, c);
	if (c->flushing && !c->fin_sent && is_all_said(c)) {
		/* The peer closes at our FIN, and what it has sent by then is
		 * read: else a reset could overtake our last reply. */
		c->fin_sent = true;
		c->linger_ms = w->now_ms + WORK_LINGER_MS;
		io_shutdown(w->io, c->socket);
	}
	close_if_done(w, c);
	set_timer(w, c);
}

static void kill_for(struct worker *w, struct client *c,
		     enum stats_close reason)
{
	struct session_event none = { .kind = SESSION_IN_OCTETS };
	struct session_event next = { 0 };
	bool moved, torn = c->starved;

	c->starved = false;
	if (c->session.state == SESSION_CLOSED) {
		if (c->socket != 0 && !c->ending) {
			c->ending = true;
			io_abort(w->io, c->socket);
		}
		return;
	}
	session_kill(&c->session, &w->plan, reason);
	/*
	 * The session believes that all it planned went out.  If a part of a
	 * chunk did not, QUIT would be taken for the rest of it.
	 */
	for (unsigned i = 0; torn && i < w->plan.count; i++) {
		if (w->plan.acts[i].what == SESSION_DO_QUIT)
			w->plan.acts[i].what = SESSION_DO_RESET;
	}
	(void)perform(w, c, &none, &next, &moved);
}

static void speak_up(struct worker *w, struct client *c)
{
	if (is_all_said(c) && (!c->flushing || c->fin_sent))
		return;
	if (c->work.next_loud == NULL && io_unsent(w->io, c->socket) == 0)
		c->sent_ms = w->now_ms; /* from now on it may be stuck */
	work_speak_up(w, &c->work);
}

/* Those whose slot others may want are in a list. */
static void track_holder(struct worker *w, struct client *c)
{
	const struct session *s = &c->session;
	bool holds = s->holding && s->bound;
	bool listed = c->next_holder != NULL;

	if (listed && !holds) {
		c->next_holder->prev_holder = c->prev_holder;
		c->prev_holder->next_holder = c->next_holder;
		c->next_holder = c->prev_holder = NULL;
		atomic_fetch_sub(&w->weir->idle[w->index], 1);
		listed = false;
	}
	if (!holds || listed)
		return;
	c->next_holder = &w->holders;
	c->prev_holder = w->holders.prev_holder;
	c->prev_holder->next_holder = c;
	w->holders.prev_holder = c;
	atomic_fetch_add(&w->weir->idle[w->index], 1);
}

/* After whatever happened: send, receive, wait, or let go. */
static void settle(struct worker *w, struct client *c)
{
	if (c->starved)
		kill_for(w, c, STATS_CLOSE_NO_BUFFERS);
	if (c->server != NULL)
		server_speak_up(w, c->server);
	if (!session_is_binding(&c->session))
		room_give_up(w, c);
	track_holder(w, c);
	if (c->socket != 0 && !c->ending) {
		speak_up(w, c);
		close_if_done(w, c);
		if (c->session.state == SESSION_RELAY)
			relay_arm(w, c);
		else
			arm(w, c);
	}
	if (c->socket == 0 && c->session.state == SESSION_CLOSED &&
	    !c->hungry) {
		log_session(w, c);
		client_free(w, c);
		return;
	}
	set_timer(w, c);
}

void client_tell(struct worker *w, struct client *c,
		 const struct session_event *event)
{
	(void)tell(w, c, event);
	if (c->session.state == SESSION_RELAY)
		relay_begin(w, c);
	pump(w, c);
	settle(w, c);
}

void client_relay_over(struct worker *w, struct client *c,
		       enum stats_close reason, const char *text)
{
	const struct session_event none = { .kind = SESSION_IN_OCTETS };
	struct session_event next = { 0 };
	bool moved;

	if (c->fin_sent) {
		c->linger_ms = w->now_ms + WORK_LINGER_MS;
		text = NULL;
	}
	session_relay_over(&c->session, &w->plan, reason, text);
	(void)perform(w, c, &none, &next, &moved);
}

void client_cut(struct worker *w, struct client *c, enum stats_close reason)
{
	kill_for(w, c, reason);
	settle(w, c);
}

void client_resume(struct worker *w, struct client *c)
{
	pump(w, c);
	settle(w, c);
}

void client_kill(struct worker *w, struct client *c)
{
	client_cut(w, c, STATS_CLOSE_KILLED);
}

/* ---- events ---- */

static enum stats_close reason_of(enum admission_verdict verdict)
{
	switch (verdict) {
	case ADMISSION_DENIED:
	case ADMISSION_BANNED:
		return STATS_CLOSE_DENIED;
	case ADMISSION_SOURCE_SESSIONS:
	case ADMISSION_AGGREGATE_SESSIONS:
	case ADMISSION_SOURCE_SHARE:
	case ADMISSION_SOURCE_RATE:
		return STATS_CLOSE_SOURCE_LIMIT;
	case ADMISSION_GLOBAL:
	case ADMISSION_TABLE_FULL:
	case ADMISSION_ACCEPT:
		break;
	}
	return STATS_CLOSE_FULL;
}

/* A hash of the network that the balancer takes for one voice. */
static uint64_t source_of(const struct cidr_addr *addr)
{
	const struct cidr_addr net = cidr_addr_mask(addr, 32, 64);
	uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */

	for (size_t i = 0; i < sizeof(net.octets); i++)
		hash = (hash ^ net.octets[i]) * UINT64_C(1099511628211);
	return hash;
}

static void refuse(struct worker *w, struct client *c, const char *reply,
		   const char *limit, enum stats_close reason)
{
	char text[256];
	int n = snprintf(text, sizeof(text), "%s\r\n", reply);
	const struct session_event event = {
		.kind = SESSION_IN_REFUSED,
		.reason = reason,
		.data = text,
		.len = (size_t)n,
	};

	assert(n > 0);
	assert((size_t)n < sizeof(text));
	stats_add(&w->stats->refused, 1);
	c->limit = limit;
	(void)tell(w, c, &event);
}

/* Has there been no backend for so long that MAIL would be in vain? */
static bool farm_is_out(struct worker *w, enum balancer_verdict *why)
{
	int64_t since_ms = w->now_ms;

	if (balancer_available(w->weir->farm, w->now_ms, why, &since_ms))
		return false;
	/* Full is what the waiting room is for. */
	if (*why == BALANCER_ALL_FULL && w->config->room.size > 0)
		return false;
	return w->now_ms - since_ms >= w->config->farm.unavailable_after_ms;
}

/* What came together with a PROXY header came before the greeting. */
static void judge_haste(struct worker *w, struct client *c)
{
	const struct session_event ev = {
		.kind = SESSION_IN_OCTETS,
		.data = c->in.first != NULL ? (const char *)c->in.first->data
					    : NULL,
		.len = c->in.first != NULL ? c->in.first->len : 0,
	};

	if (c->headed && ev.len > 0 && !session_is_tcp(&c->session))
		(void)tell(w, c, &ev);
}

/* What was decided about it, and the greeting if that is good. */
static void welcome(struct worker *w, struct client *c)
{
	const struct session_event admitted = { .kind = SESSION_IN_ADMITTED };
	enum balancer_verdict why = BALANCER_PICKED;

	if (c->verdict != ADMISSION_ACCEPT) {
		refuse(w, c, admission_verdict_reply(c->verdict),
		       admission_verdict_name(c->verdict),
		       reason_of(c->verdict));
		return;
	}
	if (!w->draining && farm_is_out(w, &why)) {
		refuse(w, c,
		       "421 4.3.2 No mail server is available, please try "
		       "again later",
		       balancer_verdict_name(why), STATS_CLOSE_UNAVAILABLE);
		return;
	}
	if (!w->draining && room_is_closed(w, c)) {
		stats_add(&w->stats->saturated, 1);
		refuse(w, c,
		       "421 4.3.2 Too many sessions wait for a mail server, "
		       "please try again later",
		       "room", STATS_CLOSE_SATURATED);
		return;
	}
	stats_add(&w->stats->sessions, 1);
	judge_haste(w, c);
	(void)tell(w, c, &admitted);
}

/* Who is refused counts nowhere, and must not stay for long. */
static int64_t handshake_ms(struct worker *w, const struct client *c)
{
	int64_t most_ms = w->config->timeouts.handshake_ms;

	if (c->verdict != ADMISSION_ACCEPT && most_ms > WORK_REFUSED_TLS_MS)
		most_ms = WORK_REFUSED_TLS_MS;
	return most_ms;
}

/*
 * From now on it counts.  Where TLS comes first, what it reads, be that a
 * refusal, comes behind the handshake: else it could not be read.
 */
static void admit(struct worker *w, struct client *c)
{
	c->admitted = true;
	c->verdict = admission_open(w->weir->admission, &c->addr, w->now_ms,
				    &c->session.ticket);
	if (c->session.listener->tls == CONFIG_TLS_IMPLICIT) {
		c->tls_by_ms = w->now_ms + handshake_ms(w, c);
		c->tls.wire = c->in;
		c->in = (struct work_queue){ 0 };
		await_tls(c);
	} else {
		welcome(w, c);
	}
	client_resume(w, c);
}

/* Admit it, or let it wait for buffers to answer it from. */
static void admit_in_turn(struct worker *w, struct client *c)
{
	if (is_short(w))
		client_go_hungry(w, c);
	else
		admit(w, c);
}

void client_is(struct client *c, const struct cidr_addr *addr, uint16_t port)
{
	c->addr = *addr;
	c->port = port;
	(void)cidr_addr_format(&c->addr, c->addr_text, sizeof(c->addr_text));
	c->source = source_of(&c->addr);
}

static void refuse_header(struct worker *w, struct client *c)
{
	refuse(w, c,
	       "421 4.3.5 Connections from your address must begin with a "
	       "good PROXY header",
	       NULL, STATS_CLOSE_PROXY);
	client_resume(w, c);
}

/* More of the header has come. */
static void read_header(struct worker *w, struct client *c)
{
	switch (proxy_read(w, c)) {
	case PROXYPROTO_MORE:
		settle(w, c);
		return;
	case PROXYPROTO_DONE:
		admit_in_turn(w, c);
		return;
	case PROXYPROTO_BAD:
		refuse_header(w, c);
		return;
	}
}

/* False: it is gone already, and nobody knows who it was. */
static bool identify(struct worker *w, struct client *c, io_handle socket)
{
	struct sockaddr_storage peer = { 0 };
	struct cidr_addr addr = { 0 };
	uint16_t port = 0;
	bool known;

	stats_add(&w->stats->connections, 1);
	c->id = w->id_base << 32 | ++w->ids;
	known = io_peer(w->io, socket, (struct sockaddr *)&peer,
			sizeof(peer)) == 0 &&
		cidr_addr_from_sockaddr(&addr, &port,
					(const struct sockaddr *)&peer,
					sizeof(peer));
	client_is(c, &addr, port);
	return known;
}

/*
 * Not even a place to say 421 from: so many are being refused already.  It
 * has its line in the log all the same.
 */
static void turn_away(struct worker *w, const struct config_listener *listener,
		      io_handle socket)
{
	struct client c = { .limit = "connections" };

	(void)identify(w, &c, socket);
	c.session.listener = listener;
	c.session.opened_ms = w->now_ms;
	c.session.reason = STATS_CLOSE_FULL;
	stats_add(&w->stats->refused, 1);
	log_session(w, &c);
	io_close(w->io, socket);
}

/* What it last said was not meant to be finished. */
static void was_reset(struct worker *w, struct client *c)
{
	const struct session_event gone = { .kind = SESSION_IN_GONE };

	c->gone_told = true;
	work_queue_drop(w, &c->in);
	work_queue_drop(w, &c->out);
	if (c->session.state == SESSION_RELAY) {
		client_cut(w, c, relay_reset(w, c));
		return;
	}
	(void)tell(w, c, &gone);
	if (!c->ending && c->socket != 0) {
		c->ending = true;
		io_close(w->io, c->socket);
	}
	settle(w, c);
}

/* It may go on so for long, and would fill the log: a line now and then. */
static void accept_failed(struct worker *w, int error)
{
	stats_add(&w->stats->accept_errors, 1);
	if (w->accept_said_ms > 0 &&
	    w->now_ms - w->accept_said_ms < WORK_SAY_AGAIN_MS) {
		w->accepts_unsaid++;
		return;
	}
	work_log_begin(w, "accept");
	log_word(&w->log, "error", strerrorname_np(error));
	if (w->accepts_unsaid > 0)
		log_number(&w->log, "left_out", w->accepts_unsaid);
	work_log(w, LOG_LEVEL_ERROR);
	w->accept_said_ms = w->now_ms;
	w->accepts_unsaid = 0;
}

void client_accepted(struct worker *w, struct work_listener *from,
		     const struct io_event *ev)
{
	const struct config_listener *listener =
		&w->config->listeners[from->config_at];
	struct client *c;
	bool known;

	if (ev->socket == 0) {
		accept_failed(w, -ev->result);
		return;
	}
	c = client_new(w, ev->socket);
	if (c == NULL) {
		turn_away(w, listener, ev->socket);
		return;
	}
	io_adopt(w->io, ev->socket, &c->work);
	known = identify(w, c, ev->socket);
	w->talking++;
	session_init(&c->session, listener, c->lines,
		     c->lines + SESSION_LINE_MAX, w->now_ms);
	if (session_is_tcp(&c->session))
		relay_open(w, c);
	if (!known) {
		was_reset(w, c);
		return;
	}
	if (cidr_set_has(&listener->proxy_from, &c->addr)) {
		proxy_await(w, c);
		settle(w, c);
		return;
	}
	admit_in_turn(w, c);
}

void client_feed_hungry(struct worker *w)
{
	const struct client *last = w->hungriest;
	bool more = w->hungry != NULL;

	/* Each but once: who still lacks something comes last. */
	while (more && !is_short(w)) {
		struct client *c = w->hungry;

		more = c != last;
		w->hungry = c->next_hungry;
		if (w->hungry == NULL)
			w->hungriest = NULL;
		c->hungry = false;
		if (!c->admitted && c->session.state != SESSION_CLOSED)
			admit(w, c);
		else
			client_resume(w, c);
	}
}

static void received(struct worker *w, struct client *c,
		     const struct io_event *ev)
{
	c->receiving = ev->more;
	if (ev->result > 0) {
		c->octets_in += (uint64_t)ev->result;
		stats_add(&w->stats->octets_in, (uint64_t)ev->result);
		if (c->session.state == SESSION_CLOSED || c->tls_due)
			io_buf_put(w->io, ev->buf);
		else if (c->tls.codec != NULL || c->tls_awaited)
			work_queue_buf(w, &c->tls.wire, ev->buf);
		else
			work_queue_buf(w, &c->in, ev->buf);
		if (c->session.state == SESSION_RELAY)
			relay_client_moved(w, c);
		if (is_header_due(c))
			read_header(w, c);
		else if (relay_says_hello(w, c))
			server_ready(w, c->server);
		else
			client_resume(w, c);
		return;
	}
	if (ev->result == 0) {
		c->eof = true;
		if (is_header_due(c) && c->octets_in > 0)
			refuse_header(w, c);
		else
			client_resume(w, c);
		return;
	}
	was_reset(w, c);
}

void client_event(struct worker *w, struct client *c, const struct io_event *ev)
{
	switch (ev->kind) {
	case IO_RECEIVED:
		received(w, c, ev);
		return;
	case IO_SENT:
		if (work_is_shortage(-ev->result)) {
			/* Replies are missing: no other may follow. */
			kill_for(w, c, STATS_CLOSE_NO_BUFFERS);
			settle(w, c);
			return;
		}
		if (ev->result < 0) {
			/* The receive will tell why, or time will. */
			work_queue_drop(w, &c->out);
			if (c->session.state == SESSION_RELAY && !c->receiving)
				was_reset(w, c);
			else
				settle(w, c);
			return;
		}
		c->sent_ms = w->now_ms;
		if (c->session.state == SESSION_RELAY)
			relay_client_moved(w, c);
		if (c->tls_due && !is_sending(w, c))
			await_tls(c);
		if (c->fin_sent)
			c->linger_ms = w->now_ms + WORK_LINGER_MS;
		client_resume(w, c);
		return;
	case IO_CLOSED:
		c->socket = 0;
		settle(w, c);
		return;
	case IO_SPLICED:
		relay_client_spliced(w, c, ev);
		return;
	case IO_ACCEPTED:
	case IO_CONNECTED:
	case IO_WOKEN:
		break;
	}
	assert(ev->kind == IO_CLOSED);
}

void client_timer(struct worker *w, struct client *c)
{
	const struct session_event timeout = { .kind = SESSION_IN_TIMEOUT };
	bool stuck = c->socket != 0 && !c->ending && is_sending(w, c) &&
		     w->now_ms >= stuck_ms(w, c);

	if (stuck) {
		kill_for(w, c, STATS_CLOSE_CLIENT_STUCK);
		settle(w, c);
	} else if (is_header_due(c) && w->now_ms >= c->header_by_ms) {
		refuse_header(w, c);
	} else if (c->session.state == SESSION_RELAY &&
		   w->now_ms >= c->session.deadline_ms) {
		relay_timeout(w, c);
		settle(w, c);
	} else if (is_handshake_due(c) && w->now_ms >= c->tls_by_ms) {
		tell_broken(w, c);
		settle(w, c);
	} else if (w->now_ms >= room_wait_ends(w, c)) {
		room_give_up(w, c);
		client_tell(w, c, &bind_none);
	} else if (w->now_ms >= c->session.deadline_ms &&
		   (c->in.first == NULL ||
		    !session_defer(&c->session, &w->env))) {
		client_tell(w, c, &timeout);
	} else {
		settle(w, c);
	}
}
