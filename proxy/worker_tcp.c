#include <assert.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/tcp.h"
#include "proxy/work.h"

/*
 * mode = tcp: once a backend has greeted, client and backend speak to each
 * other, and weir carries.  While it can, it watches what goes by (tcp.h);
 * when the stream is opaque, and nothing of it is in weir's own hands, the two
 * sockets are joined and the octets no longer come up here.
 *
 * A session's slot is held for all of it.
 */

/* The way of octets: from the client, or to it. */
enum way { UP, DOWN, WAYS };

struct relay_way {
	bool ended;   /* no more octets come from there */
	bool passed;  /* and its FIN was passed on */
	bool spliced; /* octets go by themselves */
};

struct relay {
	struct tcp_watch watch;
	struct relay_way way[WAYS];
	enum way first; /* that ended */
	bool hello;     /* the client began with TLS, and hears nothing else */
	bool blind;     /* no greeting was awaited */
	bool spoken;    /* the backend has said something */
	bool begun;
};

size_t relay_size(void)
{
	return sizeof(struct relay);
}

static struct relay *relay_of(struct worker *w, const struct client *c)
{
	return &w->relays[c - w->client_pool];
}

void relay_open(struct worker *w, struct client *c)
{
	struct relay *r = relay_of(w, c);

	assert(session_is_tcp(&c->session));
	memset(r, 0, sizeof(*r));
	tcp_begin(&r->watch);
}

static bool is_clear(const struct relay *r)
{
	return r->watch.state != TCP_OPAQUE;
}

/* It has begun with TLS: nothing of what it said was used up so far. */
static bool says_hello(struct relay *r, const struct client *c)
{
	if (!r->begun && c->header_by_ms == 0 && c->in.first != NULL &&
	    tcp_is_hello(c->in.first->data, c->in.first->len))
		r->hello = true;
	return r->hello;
}

bool relay_is_deaf(struct worker *w, const struct client *c)
{
	struct relay *r;

	if (!session_is_tcp(&c->session))
		return false;
	r = relay_of(w, c);
	return says_hello(r, c) || (r->begun && !is_clear(r));
}

/* ---- what became of it ---- */

static enum stats_close reason_of(const struct relay *r)
{
	const struct tcp_watch *t = &r->watch;

	if (t->quit)
		return STATS_CLOSE_QUIT;
	if (t->greeted && !t->reading && t->reply.code == 421)
		return STATS_CLOSE_BACKEND_421;
	return r->first == UP ? STATS_CLOSE_CLIENT_CLOSED
			      : STATS_CLOSE_BACKEND_CLOSED;
}

enum stats_close relay_reset(struct worker *w, struct client *c)
{
	const struct relay *r = relay_of(w, c);

	/* Many clients close without reading the end of TLS. */
	return r->way[DOWN].ended ? reason_of(r) : STATS_CLOSE_CLIENT_RESET;
}

void relay_log(struct worker *w, const struct client *c)
{
	const struct relay *r;

	if (!session_is_tcp(&c->session))
		return;
	log_word(&w->log, "mode", "tcp");
	if (c->backend[0] != '\0')
		log_word(&w->log, "backend", c->backend);
	if (c->refused[0] != '\0')
		log_word(&w->log, "refused", c->refused);
	if (c->waited)
		log_number(&w->log, "waited_ms", c->waited_ms);
	if (c->lines == NULL)
		return; /* turned away: it has no place in the pool */
	r = relay_of(w, c);
	if (!r->begun)
		return;
	log_word(&w->log, "opaque", tcp_opaque_name(r->watch.why));
	if (r->watch.helo_len > 0)
		log_text(&w->log, "helo", r->watch.helo, r->watch.helo_len);
	if (c->reply_len > 0)
		log_text(&w->log, "reply", c->reply, c->reply_len);
}

/* ---- time ---- */

/* The backend has ended, and the client has been sent all of it. */
static bool has_all(struct worker *w, const struct client *c)
{
	return relay_of(w, c)->way[DOWN].passed &&
	       io_unsent(w->io, c->socket) == 0;
}

/* How long nothing may move. */
static int64_t patience_ms(struct worker *w, const struct client *c)
{
	const struct relay *r = relay_of(w, c);
	const struct config_timeouts *t = &w->config->timeouts;
	int64_t wait_ms = t->command_ms;

	if (has_all(w, c))
		return WORK_LINGER_MS; /* whatever it still says */
	if (w->stressed && tcp_is_idle(&r->watch))
		return t->stress_command_ms;
	if (tcp_awaits(&r->watch) == BUSY_STAGE_EOD &&
	    t->backend_final_ms > wait_ms)
		return t->backend_final_ms;
	return wait_ms;
}

static void moved(struct worker *w, struct client *c)
{
	session_relay_moved(&c->session, &w->env, patience_ms(w, c));
}

void relay_timeout(struct worker *w, struct client *c)
{
	struct relay *r = relay_of(w, c);
	int64_t whole_ms = w->config->timeouts.session_ms;
	enum busy_stage stage = tcp_awaits(&r->watch);
	const char *text = NULL;
	enum stats_close reason = STATS_CLOSE_CLIENT_TIMEOUT;

	if (has_all(w, c)) {
		client_relay_over(w, c, reason_of(r), NULL);
		return;
	}
	if (whole_ms > 0 && w->now_ms >= c->session.opened_ms + whole_ms) {
		reason = STATS_CLOSE_SESSION_TIME;
		text = "421 4.4.2 Session too long\r\n";
	} else if (is_clear(r) && r->watch.due > 0) {
		/* The client has said what it had to say. */
		server_relay_failed(w, c->server, BALANCER_STALLED, stage);
		reason = STATS_CLOSE_BACKEND_LOST;
		text = "421 4.4.2 The mail server does not answer\r\n";
	} else {
		text = "421 4.4.2 Timeout\r\n";
	}
	if (!is_clear(r) || r->watch.reading ||
	    (reason != STATS_CLOSE_BACKEND_LOST && !tcp_is_idle(&r->watch)))
		client_cut(w, c, reason);
	else
		client_relay_over(w, c, reason, text);
}

/* ---- from the backend ---- */

static void count_reply(struct worker *w, struct client *c, struct server *v)
{
	const struct tcp_watch *t = &relay_of(w, c)->watch;
	struct backend *b = server_backend(w, v);

	if (t->reply.code / 100 != 2)
		return;
	switch (t->stage) {
	case BUSY_STAGE_MAIL:
		stats_add(&w->stats->transactions, 1);
		break;
	case BUSY_STAGE_RCPT:
		stats_add(&w->stats->recipients, 1);
		backend_count(b, BACKEND_COUNT_rcpts, 1);
		c->recipients = t->recipients;
		break;
	case BUSY_STAGE_EOD:
		stats_add(&w->stats->messages, 1);
		backend_count(b, BACKEND_COUNT_messages, 1);
		break;
	case BUSY_STAGE_TCP:
	case BUSY_STAGE_GREET:
	case BUSY_STAGE_EHLO:
	case BUSY_STAGE_XCLIENT:
	case BUSY_STAGE_STARTTLS:
	case BUSY_STAGE_AUTH:
	case BUSY_STAGE_DATA:
	case BUSY_STAGE_IDLE:
	case BUSY_STAGES:
		return;
	}
	session_relay_count(&c->session, t->transactions, t->messages);
}

static void replied(struct worker *w, struct client *c, struct server *v)
{
	const struct tcp_watch *t = &relay_of(w, c)->watch;

	/* The greeting was judged when it made the backend ready. */
	if (t->stage == BUSY_STAGE_GREET)
		return;
	server_relay_replied(w, v, t->stage, &t->reply);
	count_reply(w, c, v);
}

static void watch_down(struct worker *w, struct client *c, struct server *v,
		       const uint8_t *octets, size_t len)
{
	struct relay *r = relay_of(w, c);

	if (!r->spoken && r->blind)
		server_greeted(w, v);
	r->spoken = true;
	while (len > 0 && is_clear(r)) {
		size_t used = 0;

		if (tcp_server_said(&r->watch, octets, len, &used) == TCP_REPLY)
			replied(w, c, v);
		octets += used;
		len -= used;
	}
}

/* The client may be slow, and these buffers are for all replies. */
static void give_down(struct worker *w, struct client *c, struct io_buf *buf)
{
	if (work_queue_text(w, &c->out, IO_SMALL, buf->data, buf->len))
		io_buf_put(w->io, buf);
	else
		work_queue_buf(w, &c->out, buf);
}

static void take_down(struct worker *w, struct client *c, struct server *v)
{
	while (v->in.first != NULL) {
		struct io_buf *buf = v->in.first;

		watch_down(w, c, v, buf->data, buf->len);
		if (!work_queue_text(w, &c->out, IO_SMALL, buf->data,
				     buf->len)) {
			c->starved = true;
			return;
		}
		work_queue_eat(w, &v->in, buf->len);
	}
}

/* ---- from the client ---- */

/*
 * A backend that lets weir say XCLIENT would let any client say it whose words
 * weir cannot follow: there they must be understood, each of them, to the end.
 * (Of one that has not told what it offers, TLS is let be.)  And what is no
 * chunk to the backend is commands.
 */
static bool is_followed(struct worker *w, const struct relay *r,
			const struct server *v)
{
	const struct backend *b = server_backend(w, v);
	const struct tcp_watch *t = &r->watch;
	bool known = t->offered || atomic_load(&b->ext_known);
	unsigned ext = t->offered ? t->ext : atomic_load(&b->ext);
	bool trusts = backend_identity(b) == BACKEND_IDENTITY_XCLIENT ||
		      ((ext | atomic_load(&b->ext)) & SMTP_EXT_XCLIENT) != 0;

	switch (t->why) {
	case TCP_CLEAR:
		return (known && !trusts) || !t->chunks ||
		       (ext & SMTP_EXT_CHUNKING) != 0;
	case TCP_STARTTLS:
	case TCP_TLS:
		return !trusts;
	case TCP_STRANGE:
		break;
	}
	return known && !trusts;
}

/* All that is there; false: it must not go on. */
static bool take_up(struct worker *w, struct client *c, struct server *v)
{
	struct relay *r = relay_of(w, c);

	while (c->in.first != NULL) {
		const struct io_buf *buf = c->in.first;

		if (is_clear(r) && tcp_client_said(&r->watch, buf->data,
						   buf->len) == TCP_FORBIDDEN)
			return false;
		if (!is_followed(w, r, v))
			return false;
		/* All of a buffer: that needs no other one. */
		if (!work_queue_move(w, &c->in, &v->out, buf->len))
			c->starved = true;
	}
	return true;
}

/* ---- it begins ---- */

bool relay_needs_no_greeting(struct worker *w, const struct server *v)
{
	const struct client *c = v->client;
	const struct backend *b = server_backend(w, v);

	if (c == NULL || !session_is_tcp(&c->session))
		return false;
	return says_hello(relay_of(w, c), c) ||
	       (backend_tls(b) != BACKEND_TLS_NONE && backend_tls_implicit(b));
}

bool relay_says_hello(struct worker *w, struct client *c)
{
	return session_is_tcp(&c->session) && c->server != NULL &&
	       c->server->upstream.state == UPSTREAM_GREETING &&
	       !c->server->relays && says_hello(relay_of(w, c), c);
}

void relay_begin(struct worker *w, struct client *c)
{
	struct relay *r = relay_of(w, c);
	struct server *v = c->server;
	const struct upstream *u = &v->upstream;

	assert(c->session.state == SESSION_RELAY);
	if (r->begun)
		return;
	r->begun = true;
	v->relays = true;
	moved(w, c);
	server_set_timer(w, v);
	if (u->state != UPSTREAM_READY) {
		r->blind = true;
		return;
	}
	watch_down(w, c, v, (const uint8_t *)u->raw, u->raw_len);
	if (!work_queue_text(w, &c->out, IO_SMALL, u->raw, u->raw_len))
		c->starved = true;
}

/* ---- it goes on ---- */

/* Without a receive and with nothing on its way: no more of it comes here. */
static void splice_up(struct worker *w, struct client *c, struct server *v)
{
	struct relay_way *way = &relay_of(w, c)->way[UP];

	if (way->spliced || way->ended || c->eof || c->receiving ||
	    v->out.first != NULL || io_unsent(w->io, v->socket) > 0)
		return;
	way->spliced = true;
	io_splice(w->io, c->socket, v->socket);
}

static void splice_down(struct worker *w, struct client *c, struct server *v)
{
	struct relay_way *way = &relay_of(w, c)->way[DOWN];

	if (way->spliced || way->ended || v->receiving ||
	    c->out.first != NULL || io_unsent(w->io, c->socket) > 0)
		return;
	way->spliced = true;
	io_splice(w->io, v->socket, c->socket);
}

static void end_way(struct relay *r, enum way which)
{
	if (r->way[which].ended)
		return;
	if (!r->way[!which].ended)
		r->first = which;
	r->way[which].ended = true;
}

static bool is_done(struct worker *w, struct client *c, struct server *v)
{
	const struct relay *r = relay_of(w, c);

	return r->way[UP].passed && r->way[DOWN].passed &&
	       io_unsent(w->io, c->socket) == 0 &&
	       io_unsent(w->io, v->socket) == 0;
}

/* The FIN of one side for the other, behind all that is queued. */
static void pass_fins(struct worker *w, struct client *c, struct server *v)
{
	struct relay *r = relay_of(w, c);

	if (r->way[UP].ended && !r->way[UP].passed && v->out.first == NULL) {
		r->way[UP].passed = true;
		/* The close that follows at once says it as well. */
		if (!is_done(w, c, v))
			io_shutdown(w->io, v->socket);
	}
	if (r->way[DOWN].ended && !r->way[DOWN].passed &&
	    c->out.first == NULL) {
		r->way[DOWN].passed = true;
		io_shutdown(w->io, c->socket);
		c->fin_sent = true;
		moved(w, c);
	}
}

/* Between two commands weir may say goodbye. */
static bool may_part(const struct worker *w, const struct client *c,
		     const struct relay *r)
{
	return w->draining && is_clear(r) && tcp_is_idle(&r->watch) &&
	       !r->way[DOWN].ended && c->in.first == NULL;
}

void relay_pump(struct worker *w, struct client *c)
{
	struct relay *r = relay_of(w, c);
	struct server *v = c->server;

	assert(v != NULL);
	assert(r->begun);
	if (!is_followed(w, r, v) || !take_up(w, c, v)) {
		client_relay_over(w, c, STATS_CLOSE_FOREIGN,
				  is_followed(w, r, v)
					  ? "421 4.7.0 XCLIENT and XFORWARD "
					    "are not for clients\r\n"
					  : "421 4.7.0 This cannot be relayed "
					    "to the mail server\r\n");
		return;
	}
	take_down(w, c, v);
	if (c->eof)
		end_way(r, UP);
	pass_fins(w, c, v);
	if (is_done(w, c, v))
		client_relay_over(w, c, reason_of(r), NULL);
	else if (may_part(w, c, r))
		client_relay_over(w, c, STATS_CLOSE_DRAIN,
				  "421 4.3.2 Service shutting down\r\n");
}

static void arm_client(struct worker *w, struct client *c, struct server *v)
{
	const struct tcp_watch *t = &relay_of(w, c)->watch;
	bool bulk = (t->state == TCP_BODY || t->state == TCP_CHUNK) &&
		    t->body_octets >= WORK_BULK;

	if (c->receiving || c->eof ||
	    v->out.octets + io_unsent(w->io, v->socket) >= WORK_WINDOW)
		return;
	c->receiving = true;
	if (bulk)
		io_recv(w->io, c->socket, IO_BIG, WORK_BODY_CREDIT);
	else
		io_recv(w->io, c->socket, IO_SMALL, WORK_COMMAND_CREDIT);
}

static void arm_server(struct worker *w, struct client *c, struct server *v)
{
	const struct relay *r = relay_of(w, c);

	if (v->receiving || r->way[DOWN].ended ||
	    c->out.octets + io_unsent(w->io, c->socket) >= WORK_COMMAND_CREDIT)
		return;
	v->receiving = true;
	io_recv(w->io, v->socket, IO_REPLY, WORK_COMMAND_CREDIT);
}

void relay_arm(struct worker *w, struct client *c)
{
	struct server *v = c->server;

	if (v == NULL || v->ending)
		return;
	if (is_clear(relay_of(w, c))) {
		arm_client(w, c, v);
		arm_server(w, c, v);
	} else {
		/* No receive more: when those that stand have ended, and what
		 * they brought is gone, they are joined. */
		splice_up(w, c, v);
		splice_down(w, c, v);
	}
}

/* ---- events ---- */

void relay_client_moved(struct worker *w, struct client *c)
{
	moved(w, c);
}

static void count_spliced(struct worker *w, struct client *c, enum way which,
			  uint64_t octets)
{
	struct backend *b = server_backend(w, c->server);

	if (which == UP) {
		c->octets_in += octets;
		stats_add(&w->stats->octets_in, octets);
		backend_count(b, BACKEND_COUNT_octets_out, octets);
		return;
	}
	c->octets_out += octets;
	stats_add(&w->stats->octets_out, octets);
	backend_count(b, BACKEND_COUNT_octets_in, octets);
}

/* The backend's end broke, or the stream ended before a word was said. */
static void lose_backend(struct worker *w, struct client *c,
			 enum balancer_failure failure)
{
	const struct relay *r = relay_of(w, c);
	enum busy_stage stage = tcp_awaits(&r->watch);

	if (r->blind && !r->spoken) {
		if (failure == BALANCER_LOST)
			failure = BALANCER_RESET;
		server_relay_failed(w, c->server, failure, BUSY_STAGE_GREET);
	} else if (is_clear(r) && r->watch.due > 0 && !r->watch.quit &&
		   !r->way[UP].ended) {
		server_relay_failed(w, c->server, BALANCER_LOST, stage);
	}
}

static void spliced(struct worker *w, struct client *c, enum way which,
		    const struct io_event *ev)
{
	struct relay *r = relay_of(w, c);
	struct server *v = c->server;

	if (ev->result > 0) {
		if (which == DOWN && !r->spoken) {
			r->spoken = true;
			server_greeted(w, v);
		}
		count_spliced(w, c, which, (uint64_t)ev->result);
		moved(w, c);
		client_resume(w, c);
		return;
	}
	r->way[which].spliced = false;
	if (ev->result == 0) {
		if (which == DOWN && !r->spoken)
			lose_backend(w, c, BALANCER_CLOSED);
		end_way(r, which);
		if (which == UP)
			c->eof = true;
		moved(w, c);
		client_resume(w, c);
		return;
	}
	/* Who broke: the one that octets came from, or the other one. */
	if ((which == UP) == !ev->by_to) {
		client_cut(w, c, relay_reset(w, c));
	} else {
		lose_backend(w, c, BALANCER_LOST);
		client_cut(w, c, STATS_CLOSE_BACKEND_LOST);
	}
}

void relay_client_spliced(struct worker *w, struct client *c,
			  const struct io_event *ev)
{
	spliced(w, c, UP, ev);
}

static void server_received(struct worker *w, struct client *c,
			    struct server *v, const struct io_event *ev)
{
	struct relay *r = relay_of(w, c);

	v->receiving = ev->more;
	if (ev->result > 0) {
		backend_count(server_backend(w, v), BACKEND_COUNT_octets_in,
			      (uint64_t)ev->result);
		watch_down(w, c, v, ev->buf->data, ev->buf->len);
		give_down(w, c, ev->buf);
	} else if (ev->result == 0) {
		lose_backend(w, c, BALANCER_CLOSED);
		end_way(r, DOWN);
	} else {
		lose_backend(w, c, BALANCER_LOST);
		client_cut(w, c, STATS_CLOSE_BACKEND_LOST);
		return;
	}
	moved(w, c);
	client_resume(w, c);
}

void relay_server_event(struct worker *w, struct server *v,
			const struct io_event *ev)
{
	struct client *c = v->client;

	assert(c != NULL);
	switch (ev->kind) {
	case IO_RECEIVED:
		server_received(w, c, v, ev);
		return;
	case IO_SPLICED:
		spliced(w, c, DOWN, ev);
		return;
	case IO_SENT:
		if (work_is_shortage(-ev->result)) {
			server_log_shortage(w, v, -ev->result);
			client_cut(w, c, STATS_CLOSE_NO_BUFFERS);
			return;
		}
		/* What it last said may still be read. */
		if (ev->result < 0 && !v->receiving) {
			lose_backend(w, c, BALANCER_LOST);
			client_cut(w, c, STATS_CLOSE_BACKEND_LOST);
			return;
		}
		if (ev->result < 0)
			return;
		v->sent_ms = w->now_ms;
		moved(w, c);
		server_set_timer(w, v);
		client_resume(w, c);
		return;
	case IO_ACCEPTED:
	case IO_CONNECTED:
	case IO_CLOSED:
	case IO_WOKEN:
		break;
	}
	assert(ev->kind != IO_ACCEPTED);
}

void relay_server_timer(struct worker *w, struct server *v)
{
	struct client *c = v->client;
	bool sending = v->out.octets > 0 || io_unsent(w->io, v->socket) > 0;

	if (!sending ||
	    w->now_ms < v->sent_ms + w->config->timeouts.backend_send_ms) {
		server_set_timer(w, v);
		return;
	}
	server_relay_failed(w, v, BALANCER_STALLED,
			    tcp_awaits(&relay_of(w, c)->watch));
	client_cut(w, c, STATS_CLOSE_BACKEND_LOST);
}
