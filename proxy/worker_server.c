#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "proxy/work.h"

/*
 * Connections to backends.  A slot is taken before the connect and given back
 * at IO_CLOSED, not before: what the backend counts, we count.
 */

struct backend *server_backend(struct worker *w, const struct server *v)
{
	return &w->weir->farm->backends[v->slot.index];
}

/* ---- the pool ---- */

struct server *server_new(struct worker *w)
{
	struct server *v = w->free_servers;

	if (v != NULL)
		w->free_servers = v->next;
	else if (w->servers_used < w->weir->servers_max)
		v = &w->server_pool[w->servers_used++];
	else
		return NULL;
	w->server_count++;
	atomic_fetch_add(&w->weir->sockets, 1);
	v->work.kind = WORK_SERVER;
	timer_init(&v->work.timer);
	v->work.next_loud = v->work.prev_loud = NULL;
	v->socket = 0;
	v->client = NULL;
	v->next = v->prev = NULL;
	v->in = v->out = (struct work_queue){ 0 };
	v->tls = (struct work_tls){ 0 };
	v->work.next_costly = v->work.prev_costly = NULL;
	v->secured = v->greeted = v->told = false;
	v->receiving = v->ending = false;
	v->lingering = v->kept = v->clearing = false;
	v->own_name = v->tainted = v->yielding = v->relays = false;
	v->served = 0;
	v->until_ms = INT64_MAX;
	v->sent_ms = w->now_ms;
	return v;
}

void server_yield(struct worker *w, struct server *v)
{
	if (v->yielding)
		return;
	v->yielding = true;
	atomic_fetch_add(&w->weir->yielding, 1);
}

void server_yielded(struct worker *w, struct server *v)
{
	if (!v->yielding)
		return;
	v->yielding = false;
	atomic_fetch_sub(&w->weir->yielding, 1);
}

void server_free(struct worker *w, struct server *v, bool slot)
{
	work_hush(&v->work);
	secure_end(w, &v->work, &v->tls);
	if (slot)
		balancer_release(w->weir->farm, &v->slot);
	server_yielded(w, v);
	v->next = w->free_servers;
	w->free_servers = v;
	assert(w->server_count > 0);
	w->server_count--;
	atomic_fetch_sub(&w->weir->sockets, 1);
}

/* Out of the list of idle ones. */
static void rouse(struct worker *w, struct server *v)
{
	if (!v->lingering && !v->kept)
		return;
	v->lingering = v->kept = false;
	v->until_ms = INT64_MAX;
	v->prev->next = v->next;
	v->next->prev = v->prev;
	v->next = v->prev = NULL;
	atomic_fetch_sub(&w->weir->idle[w->index], 1);
}

void server_detach(struct worker *w, struct server *v)
{
	rouse(w, v);
	if (v->client != NULL) {
		assert(v->client->server == v);
		v->client->server = NULL;
		v->client = NULL;
	}
}

/* What was agreed on in TLS makes the next handshake there a short one. */
static void keep_agreement(struct worker *w, struct server *v)
{
	struct tls_session *session = NULL;

	if (v->tls.codec != NULL)
		session = tls_take_session(v->tls.codec);
	if (session == NULL)
		return;
	tls_session_free(&w->resumable[v->slot.index]);
	w->resumable[v->slot.index] = session;
}

static void end(struct worker *w, struct server *v, bool reset)
{
	if (v->ending)
		return;
	server_detach(w, v);
	v->ending = true;
	timer_set(&w->wheel, &v->work.timer, TIMER_NEVER);
	keep_agreement(w, v);
	secure_end(w, &v->work, &v->tls);
	work_queue_drop(w, &v->in);
	work_queue_drop(w, &v->out);
	if (reset)
		io_abort(w->io, v->socket);
	else
		io_close(w->io, v->socket);
}

static bool is_sending(struct worker *w, const struct server *v)
{
	return v->out.octets > 0 || io_unsent(w->io, v->socket) > 0;
}

/* It is connected, and a client waits for what it says before MAIL. */
static bool is_awaited(const struct server *v)
{
	if (v->relays || v->served > 0)
		return false;
	switch (v->upstream.state) {
	case UPSTREAM_GREETING:
	case UPSTREAM_EHLO:
	case UPSTREAM_HELO:
	case UPSTREAM_STARTTLS:
	case UPSTREAM_TLS:
	case UPSTREAM_XCLIENT:
		return true;
	case UPSTREAM_CONNECTING:
	case UPSTREAM_READY:
	case UPSTREAM_QUITTING:
		break;
	}
	return false;
}

void server_set_timer(struct worker *w, struct server *v)
{
	int64_t at_ms = v->relays ? INT64_MAX : v->upstream.deadline_ms;

	if (v->ending)
		return;
	if (v->until_ms < at_ms)
		at_ms = v->until_ms;
	if (is_awaited(v) && v->ask_ms < at_ms)
		at_ms = v->ask_ms;
	if (is_sending(w, v)) {
		int64_t stuck_ms = v->sent_ms +
				   w->config->timeouts.backend_send_ms;

		if (stuck_ms < at_ms)
			at_ms = stuck_ms;
	}
	timer_set(&w->wheel, &v->work.timer, at_ms);
}

static void arm(struct worker *w, struct server *v)
{
	if (v->receiving || v->ending)
		return;
	v->receiving = true;
	io_recv(w->io, v->socket, IO_REPLY, WORK_COMMAND_CREDIT);
}

void server_speak_up(struct worker *w, struct server *v)
{
	if (v->ending || !secure_is_loud(&v->tls, &v->out))
		return;
	if (v->work.next_loud == NULL && io_unsent(w->io, v->socket) == 0)
		v->sent_ms = w->now_ms; /* from now on it may be stuck */
	work_speak_up(w, &v->work);
}

void server_flush(struct worker *w, struct server *v)
{
	uint64_t octets;

	if (v->ending || !secure_is_loud(&v->tls, &v->out))
		return;
	/* Some wait for close_notify before they close. */
	octets = secure_flush(w, &v->work, &v->tls, &v->out, v->socket,
			      v->upstream.state == UPSTREAM_QUITTING);
	backend_count(server_backend(w, v), BACKEND_COUNT_octets_out, octets);
	server_set_timer(w, v);
}

/* ---- what was seen, for the balancer ---- */

static void note(struct worker *w, struct server *v,
		 const struct balancer_outcome *outcome)
{
	struct backend_change change = { 0 };

	balancer_note(w->weir->farm, &v->slot, outcome, w->now_ms,
		      io_random(w->io), &change);
	work_log_change(w, &change);
}

static void note_ok(struct worker *w, struct server *v, enum busy_stage stage)
{
	const struct balancer_outcome outcome = {
		.failure = BALANCER_REPLIED,
		.class = BUSY_OK,
		.stage = stage,
		.source = v->client != NULL ? v->client->source : 0,
	};

	note(w, v, &outcome);
}

/*
 * The same words from a second backend for the same client: it was not the
 * first one's fault.
 */
static void blame(struct worker *w, struct server *v,
		  const struct balancer_outcome *outcome)
{
	struct client *c = v->client;

	if (c == NULL || outcome->failure != BALANCER_REPLIED)
		return;
	if (c->blamed_set && c->blamed.class == outcome->class &&
	    c->blamed_slot.index != v->slot.index)
		balancer_unnote(w->weir->farm, &c->blamed_slot, &c->blamed,
				w->now_ms);
	c->blamed_set = true;
	c->blamed_slot = v->slot;
	c->blamed = *outcome;
}

/* Who refused it, and where: for the message's own line. */
static void remember_refusal(struct worker *w, const struct server *v,
			     const struct balancer_outcome *outcome)
{
	struct client *c = v->client;
	size_t len;

	if (c == NULL)
		return;
	c->refused_class = outcome->class;
	len = strlen(c->refused);
	(void)snprintf(c->refused + len, sizeof(c->refused) - len, "%s%s:%s:%s",
		       len > 0 ? "," : "", server_backend(w, v)->name,
		       busy_stage_name(outcome->stage),
		       busy_class_name(outcome->class));
}

/* A refusal that the client need not see is worth a line of its own. */
static void log_refusal(struct worker *w, const struct server *v,
			const struct balancer_outcome *outcome,
			const char *rule)
{
	const struct client *c = v->client;
	const struct smtp_reply_parser *r = &v->upstream.reply;

	work_log_begin(w, "backend_refused");
	log_word(&w->log, "backend",
		 w->weir->farm->backends[v->slot.index].name);
	log_word(&w->log, "stage", busy_stage_name(outcome->stage));
	log_word(&w->log, "class", busy_class_name(outcome->class));
	log_word(&w->log, "rule", rule);
	if (v->tls.codec != NULL && tls_reason(v->tls.codec)[0] != '\0')
		log_word(&w->log, "tls_error", tls_reason(v->tls.codec));
	if (outcome->failure != BALANCER_REPLIED) {
		log_word(&w->log, "failure",
			 balancer_failure_name(outcome->failure));
	} else {
		log_number(&w->log, "code", r->code);
		/* That may have a part of a login in it. */
		if (outcome->stage != BUSY_STAGE_AUTH)
			log_text(&w->log, "reply", r->text, r->text_len);
	}
	if (c != NULL)
		log_word(&w->log, "client", c->addr_text);
	work_log(w, LOG_LEVEL_INFO);
	remember_refusal(w, v, outcome);
}

void server_log_shortage(struct worker *w, const struct server *v, int error)
{
	work_log_begin(w, "shortage");
	log_word(&w->log, "backend",
		 w->weir->farm->backends[v->slot.index].name);
	log_word(&w->log, "stage",
		 busy_stage_name(upstream_awaits(&v->upstream)));
	log_word(&w->log, "error", strerror(error));
	if (v->client != NULL)
		log_word(&w->log, "client", v->client->addr_text);
	work_log(w, LOG_LEVEL_ERROR);
}

/*
 * 452 at MAIL may be about this one message (RFC 1870): large is what is
 * above a quarter of what the backend offers.
 */
static bool may_be_size(const struct server *v)
{
	uint64_t size = v->upstream.ehlo.size;

	return v->upstream.stage == BUSY_STAGE_MAIL && v->client != NULL &&
	       size > 0 && v->client->session.size_said > size / 4;
}

/* Does the backend know the client before it greets? */
static bool is_told_first(const struct server *v)
{
	return backend_identity_heads(v->identity) ||
	       v->identity == BACKEND_IDENTITY_TRANSPARENT;
}

/* What it says now, does it say that of the client, or of weir? */
static bool sees_client(const struct server *v)
{
	return v->told || is_told_first(v);
}

/* What the reply just read says; esc: its enhanced code. */
static struct busy_verdict classify(struct worker *w, const struct server *v,
				    struct smtp_esc *esc)
{
	const struct smtp_reply_parser *r = &v->upstream.reply;
	const struct backend *b = server_backend(w, v);
	struct busy_reply reply = {
		.stage = v->upstream.stage,
		.ident = sees_client(v) ? BUSY_IDENT_CLIENT : BUSY_IDENT_PROXY,
		.code = r->code,
		.text = r->text,
		.text_len = r->text_len,
		.client_ip = v->client != NULL ? v->client->addr_text : NULL,
	};

	(void)smtp_reply_esc(r->head, r->head_len, &reply.esc);
	*esc = reply.esc;
	return busy_classify(&reply, b->rules, b->rule_count);
}

/* The same; notes and logs what is not plain OK. */
static struct busy_verdict judge(struct worker *w, struct server *v)
{
	struct smtp_esc esc = { 0 };
	const struct busy_verdict verdict = classify(w, v, &esc);
	struct balancer_outcome outcome = {
		.failure = BALANCER_REPLIED,
		.class = verdict.class,
		.stage = v->upstream.stage,
		.source = v->client != NULL ? v->client->source : 0,
	};

	if (verdict.class == BUSY_OK && outcome.stage != BUSY_STAGE_MAIL &&
	    outcome.stage != BUSY_STAGE_EOD)
		return verdict;
	outcome.strong = (verdict.rule == BUSY_RULE_R6 ||
			  (esc.subject == 3 && esc.detail == 1)) &&
			 !may_be_size(v);
	note(w, v, &outcome);
	if (verdict.class != BUSY_OK && verdict.class != BUSY_POLICY) {
		log_refusal(w, v, &outcome, busy_rule_name(verdict.rule));
		blame(w, v, &outcome);
	}
	return verdict;
}

/* ---- failures ---- */

static enum busy_silence silence_of(enum balancer_failure failure,
				    enum busy_stage stage)
{
	switch (failure) {
	case BALANCER_REFUSED:
	case BALANCER_UNREACHABLE:
		return BUSY_SILENCE_REFUSED;
	case BALANCER_TIMEOUT:
		return BUSY_SILENCE_TIMEOUT;
	case BALANCER_RESET:
		return BUSY_SILENCE_RESET;
	case BALANCER_SILENT:
		return BUSY_SILENCE_GREET_LATE;
	case BALANCER_CLOSED:
		return BUSY_SILENCE_GREET_EOF;
	case BALANCER_STALLED:
		return stage == BUSY_STAGE_EOD ? BUSY_SILENCE_FINAL_LATE
					       : BUSY_SILENCE_REPLY_LATE;
	case BALANCER_GARBLED:
		return BUSY_SILENCE_GARBLED;
	case BALANCER_REPLIED:
	case BALANCER_LOST:
	case BALANCER_INSECURE:
	case BALANCER_FAILURE_COUNT:
		break;
	}
	return BUSY_SILENCE_LOST;
}

static void count_lost(struct backend *b, const struct client *c)
{
	if (session_is_binding(&c->session) || c->session.state == SESSION_MAIL)
		backend_count(b, BACKEND_COUNT_retried_away, 1);
	else if (c->session.state == SESSION_FINAL)
		backend_count(b, BACKEND_COUNT_unknown, 1);
	else
		backend_count(b, BACKEND_COUNT_lost, 1);
}

/* Tell the session that this connection is of no use, and close it. */
static void give_up(struct worker *w, struct server *v, enum busy_class class,
		    enum busy_stage stage, bool with_text)
{
	struct client *c = v->client;
	struct session_event event = {
		.kind = SESSION_IN_LOST,
		.class = class,
		.stage = stage,
		.more = true,
	};
	char text[SMTP_REPLY_TEXT_MAX];

	if (c == NULL) {
		end(w, v, false);
		return;
	}
	count_lost(server_backend(w, v), c);
	if (session_is_binding(&c->session))
		event.kind = SESSION_IN_UNBOUND;
	if (with_text) {
		/* The session may take this server's place in the pool. */
		event.len = v->upstream.reply.text_len;
		memcpy(text, v->upstream.reply.text, event.len);
		event.data = text;
		event.code = v->upstream.reply.code;
		event.more = busy_within(busy_actions(class)->retry, stage);
	}
	end(w, v, false);
	client_tell(w, c, &event);
}

/* An idle connection, or one that we part from, may be ended. */
static bool is_nobodys(const struct server *v)
{
	return v->lingering || v->kept || v->clearing ||
	       v->upstream.state == UPSTREAM_QUITTING;
}

/* It was no try: the backend may be asked again for this message. */
static void untry(struct server *v)
{
	struct client *c = v->client;

	if (c != NULL && c->need.tried_count > 0)
		c->need.tried_count--; /* it was the last */
}

/*
 * No fault of the backend's: a kept connection came to its end before it was
 * told of its next client; or TLS, which is wanted and not demanded, does not
 * work there.  Then it may be asked again, in the clear.
 */
static bool is_excused(struct worker *w, struct server *v)
{
	struct backend *b = server_backend(w, v);
	bool handshake = v->upstream.state == UPSTREAM_TLS;

	if (handshake && backend_tls(b) == BACKEND_TLS_OPPORTUNISTIC)
		backend_tls_failed(b, w->now_ms);
	else if (handshake || v->served == 0 ||
		 v->upstream.state == UPSTREAM_READY)
		return false;
	untry(v);
	return true;
}

static void failed(struct worker *w, struct server *v,
		   enum balancer_failure failure)
{
	enum busy_stage stage = upstream_awaits(&v->upstream);
	struct busy_verdict verdict = busy_silence(silence_of(failure, stage));
	const struct balancer_outcome outcome = {
		.failure = failure,
		.class = verdict.class,
		.stage = stage,
		.source = v->client != NULL ? v->client->source : 0,
	};

	if (is_nobodys(v)) {
		end(w, v, false);
		return;
	}
	if (is_excused(w, v)) {
		log_refusal(w, v, &outcome, busy_rule_name(verdict.rule));
		give_up(w, v, BUSY_SESSION, stage, false);
		return;
	}
	note(w, v, &outcome);
	log_refusal(w, v, &outcome, busy_rule_name(verdict.rule));
	give_up(w, v, verdict.class, stage, false);
}

/*
 * weir itself lacks something, or the connection has a hole where octets were
 * dropped: it is of no more use, and the backend not to blame.
 */
static void forsake(struct worker *w, struct server *v, int error)
{
	if (is_nobodys(v)) {
		end(w, v, true);
		return;
	}
	server_log_shortage(w, v, error);
	give_up(w, v, BUSY_BUSY, upstream_awaits(&v->upstream), false);
}

static void stream_ended(struct worker *w, struct server *v, bool reset)
{
	/* One that is full may not even begin a handshake. */
	if (!v->greeted)
		failed(w, v, reset ? BALANCER_RESET : BALANCER_CLOSED);
	else
		failed(w, v, BALANCER_LOST);
}

/* It lacks what weir was told to demand of it: an operator's business. */
static void unfit(struct worker *w, struct server *v)
{
	const struct balancer_outcome outcome = {
		.failure = BALANCER_REPLIED,
		.class = BUSY_MISCONF,
		.stage = v->upstream.unfit == UPSTREAM_NO_STARTTLS
				 ? BUSY_STAGE_STARTTLS
				 : BUSY_STAGE_XCLIENT,
		.source = v->client != NULL ? v->client->source : 0,
	};

	note(w, v, &outcome);
	log_refusal(w, v, &outcome,
		    v->upstream.unfit == UPSTREAM_NO_STARTTLS ? "no_starttls"
							      : "no_xclient");
	give_up(w, v, BUSY_MISCONF, outcome.stage, false);
}

/* ---- replies ---- */

/* 220: from now on it is a session there, whatever becomes of it. */
void server_greeted(struct worker *w, struct server *v)
{
	const struct balancer_outcome outcome = {
		.failure = BALANCER_REPLIED,
		.class = BUSY_OK,
		.stage = BUSY_STAGE_GREET,
		.source = v->client != NULL ? v->client->source : 0,
		.greet_ms = is_told_first(v) || v->relays
				    ? -1
				    : w->now_ms - v->begun_ms,
	};

	v->greeted = true;
	note(w, v, &outcome);
}

void server_ready(struct worker *w, struct server *v)
{
	struct session_event event;

	if (!v->upstream.tcp)
		note_ok(w, v, BUSY_STAGE_EHLO);
	else if (v->upstream.state == UPSTREAM_READY)
		server_greeted(w, v);
	server_set_timer(w, v);
	if (v->client == NULL) {
		server_quit(w, v);
		return;
	}
	event = bind_event(w, v->client, v, v->served > 0);
	client_tell(w, v->client, &event);
}

void server_keep_no_more(struct worker *w, const struct server *v)
{
	struct backend *b = server_backend(w, v);

	if (!atomic_load(&b->reuse))
		return;
	backend_set_reuse(b, false);
	work_log_begin(w, "reuse");
	log_word(&w->log, "backend", b->name);
	log_word(&w->log, "change",
		 "off until a reload: it takes XCLIENT but once");
	work_log(w, LOG_LEVEL_WARNING);
}

/*
 * A kept connection may not speak for another client.  Postfix lets only those
 * say XCLIENT again whose clients may say it (smtpd_authorized_xclient_hosts).
 * A connection of its own will do; and the next ones are not kept in vain.  But
 * a server that judges clients as they come refuses some of them there, too.
 */
static void not_again(struct worker *w, struct server *v)
{
	struct smtp_esc esc;

	if (v->upstream.stage == BUSY_STAGE_XCLIENT &&
	    v->upstream.reply.code / 100 == 5 &&
	    classify(w, v, &esc).class == BUSY_MISCONF)
		server_keep_no_more(w, v);
	untry(v);
	give_up(w, v, BUSY_SESSION, v->upstream.stage, false);
}

static void refused(struct worker *w, struct server *v)
{
	struct busy_verdict verdict;

	if (v->served > 0) {
		not_again(w, v);
		return;
	}
	verdict = judge(w, v);

	give_up(w, v, verdict.class, v->upstream.stage, true);
}

static void keep_words(struct client *c, const struct server *v)
{
	const struct smtp_reply_parser *r = &v->upstream.reply;
	size_t start = 0;
	size_t len;

	len = r->text_len < sizeof(c->reply) ? r->text_len : sizeof(c->reply);
	memcpy(c->reply, r->text, len);
	c->reply_len = (uint16_t)len;
	if (v->upstream.stage != BUSY_STAGE_EOD || r->code / 100 != 2)
		return;
	len = smtp_reply_queue_id(r->head, r->head_len, &start);
	if (len > sizeof(c->queue_id))
		len = sizeof(c->queue_id);
	memcpy(c->queue_id, r->head + start, len);
	c->queue_id_len = (uint16_t)len;
}

static void replied(struct worker *w, struct server *v, enum session_in kind)
{
	struct client *c = v->client;
	struct busy_verdict verdict = judge(w, v);
	struct session_event event = {
		.kind = kind,
		.stage = v->upstream.stage,
		.class = verdict.class,
		.code = v->upstream.reply.code,
		.data = v->upstream.raw,
		.len = v->upstream.raw_len,
	};
	struct backend *b = server_backend(w, v);

	server_set_timer(w, v);
	if (v->lingering || v->kept) {
		/* Nothing was asked: it says goodbye (421), or nonsense. */
		end(w, v, false);
		return;
	}
	if (v->clearing) {
		bind_cleared(w, v, kind == SESSION_IN_REPLY ? event.code : 0);
		return;
	}
	if (event.code >= 400)
		v->tainted = true;
	if (c == NULL)
		return;
	/* What is said of a login may have a part of it in it. */
	if (event.stage != BUSY_STAGE_AUTH)
		keep_words(c, v);
	if (kind == SESSION_IN_REPLY && event.code / 100 == 2) {
		if (event.stage == BUSY_STAGE_RCPT)
			backend_count(b, BACKEND_COUNT_rcpts, 1);
		if (event.stage == BUSY_STAGE_EOD)
			backend_count(b, BACKEND_COUNT_messages, 1);
	}
	client_tell(w, c, &event);
	if (kind == SESSION_IN_EARLY && !v->ending && v->client == c)
		give_up(w, v, BUSY_SICK, event.stage, false);
}

/* ---- TLS ---- */

/* What it said in the clear is answered for; from here on it is TLS. */
static void begin_tls(struct worker *w, struct server *v)
{
	struct tls_context *context = tls_store_backend(w->weir->tls,
							v->slot.index);

	assert(v->in.first == NULL);
	/* A PROXY header goes ahead of TLS, alone. */
	server_flush(w, v);
	if (!secure_begin(w, &v->tls, context, w->resumable[v->slot.index])) {
		forsake(w, v, ENOMEM);
		return;
	}
	server_speak_up(w, v);
	server_set_timer(w, v);
}

static void said(struct worker *w, struct server *v, enum upstream_said what)
{
	const struct upstream *u = &v->upstream;

	switch (what) {
	case UPSTREAM_MORE:
		return;
	case UPSTREAM_SAY:
		if (!v->greeted)
			server_greeted(w, v);
		v->told = v->told || u->state == UPSTREAM_XCLIENT;
		if (work_queue_text(w, &v->out, IO_SMALL, u->say, u->say_len))
			server_speak_up(w, v);
		else
			forsake(w, v, ENOBUFS);
		return;
	case UPSTREAM_IS_READY:
		server_ready(w, v);
		return;
	case UPSTREAM_HANDSHAKE:
		begin_tls(w, v);
		return;
	case UPSTREAM_UNFIT:
		unfit(w, v);
		return;
	case UPSTREAM_REFUSED:
		refused(w, v);
		return;
	case UPSTREAM_REPLY:
		replied(w, v, SESSION_IN_REPLY);
		return;
	case UPSTREAM_EARLY:
		replied(w, v, SESSION_IN_EARLY);
		return;
	case UPSTREAM_GARBAGE:
		failed(w, v, BALANCER_GARBLED);
		return;
	case UPSTREAM_BYE:
		/* Its end of stream is right behind: to close then needs no
		 * shutdown.  The deadline stands. */
		work_queue_drop(w, &v->in);
		return;
	}
}

static void tell_secured(struct worker *w, struct server *v)
{
	struct tls_info info;

	v->secured = true;
	tls_describe(v->tls.codec, &info);
	stats_add(info.resumed ? &w->stats->backend_tls_resumed
			       : &w->stats->backend_tls_full,
		  1);
	said(w, v, upstream_secured(&v->upstream, w->now_ms));
	server_set_timer(w, v);
}

/* Decode what has come. */
static void refill(struct worker *w, struct server *v)
{
	enum tls_state state;

	if (v->tls.codec == NULL || v->ending || v->in.first != NULL)
		return;
	state = secure_read(w, &v->work, &v->tls, &v->in, IO_REPLY);
	if (state == TLS_FAILED && !v->secured) {
		failed(w, v, BALANCER_INSECURE);
		return;
	}
	/* Nothing more comes, whether its socket is closed or not. */
	if ((state == TLS_FAILED || state == TLS_CLOSED) && v->secured &&
	    v->in.first == NULL) {
		stream_ended(w, v, false);
		return;
	}
	server_speak_up(w, v);
	if (state != TLS_HANDSHAKE && !v->secured)
		tell_secured(w, v);
}

static void feed(struct worker *w, struct server *v)
{
	for (refill(w, v); v->in.first != NULL && !v->ending; refill(w, v)) {
		size_t used = 0;
		enum upstream_said what = upstream_feed(
			&v->upstream, v->in.first->data, v->in.first->len,
			w->now_ms, &used);

		work_queue_eat(w, &v->in, used);
		/* Said in the clear, to be taken for what came in TLS (RFC
		 * 3207, section 6; CVE-2011-0411). */
		if (what == UPSTREAM_HANDSHAKE && v->in.first != NULL)
			what = UPSTREAM_GARBAGE;
		said(w, v, what);
	}
}

/* ---- connecting ---- */

/*
 * What EHLO says: the client's name, as if it were there itself; our own, if
 * the connection is to serve others after it.
 */
static void set_name(struct worker *w, struct server *v, const struct client *c)
{
	const struct session *s = &c->session;
	const char *name = s->helo;
	size_t len = s->helo_len;

	v->own_name = atomic_load(&server_backend(w, v)->reuse) &&
		      !backend_identity_binds(v->identity);
	if (v->own_name) {
		name = w->config->weir.hostname;
		len = strnlen(name, SMTP_DOMAIN_MAX);
	}
	memcpy(v->name, name, len);
	v->name[len] = '\0';
}

static enum upstream_tls tls_of(struct worker *w, const struct backend *b)
{
	switch (backend_tls(b)) {
	case BACKEND_TLS_NONE:
		break;
	case BACKEND_TLS_OPPORTUNISTIC:
		return backend_wants_tls(b, w->now_ms) ? UPSTREAM_TLS_IF_OFFERED
						       : UPSTREAM_CLEAR;
	case BACKEND_TLS_REQUIRED:
	case BACKEND_TLS_VERIFY:
		return UPSTREAM_TLS_MUST;
	}
	return UPSTREAM_CLEAR;
}

/*
 * The client says it all itself, TLS included; so nobody tells this backend
 * who it is, but by what goes in front of the connection.
 */
static void begin_tcp(struct worker *w, struct server *v)
{
	const char *name = w->config->weir.hostname;
	const struct upstream_order order = {
		.name = name,
		.name_len = strnlen(name, SMTP_DOMAIN_MAX),
		.tcp = true,
	};

	if (v->identity == BACKEND_IDENTITY_HEADER ||
	    v->identity == BACKEND_IDENTITY_XCLIENT)
		v->identity = BACKEND_IDENTITY_NONE;
	upstream_begin(&v->upstream, &order, &w->timeouts, w->now_ms);
}

/* What is to be said and done on this connection before MAIL. */
static void begin_talk(struct worker *w, struct server *v,
		       const struct client *c)
{
	const struct backend *b = server_backend(w, v);
	struct xclient who;
	struct upstream_order order = {
		.name = v->name,
		.tls = tls_of(w, b),
	};

	if (session_is_tcp(&c->session)) {
		begin_tcp(w, v);
		return;
	}
	set_name(w, v, c);
	order.name_len = strlen(v->name);
	order.implicit = order.tls != UPSTREAM_CLEAR && backend_tls_implicit(b);
	if (v->identity == BACKEND_IDENTITY_XCLIENT) {
		who = proxy_xclient(w, c);
		order.who = &who;
	}
	upstream_begin(&v->upstream, &order, &w->timeouts, w->now_ms);
}

/* Where it connects from; may be &from, or NULL: as the kernel likes. */
static const struct sockaddr *source_for(struct worker *w,
					 const struct server *v,
					 struct sockaddr_storage *from)
{
	const struct backend *b = server_backend(w, v);

	if (v->identity == BACKEND_IDENTITY_TRANSPARENT) {
		(void)cidr_addr_to_sockaddr(&v->client->addr, 0, from);
		return (const struct sockaddr *)from;
	}
	return b->source_len > 0 ? (const struct sockaddr *)&b->source : NULL;
}

int server_connect(struct worker *w, struct server *v, struct client *c)
{
	struct backend *b = server_backend(w, v);
	struct sockaddr_storage from;
	int result;

	v->identity = backend_identity(b);
	v->tls_wanted = backend_tls(b);
	begin_talk(w, v, c);
	v->begun_ms = w->now_ms;
	/* v itself is counted. */
	if (atomic_load(&w->weir->sockets) > w->weir->sockets_max)
		return -EMFILE;
	result = io_connect(w->io, (const struct sockaddr *)&b->peer,
			    source_for(w, v, &from),
			    v->identity == BACKEND_IDENTITY_TRANSPARENT,
			    &v->work, &v->socket);
	if (result < 0)
		return result;
	stats_add(&w->stats->backend_connects, 1);
	server_set_timer(w, v);
	return 0;
}

/*
 * To speak in a client's name takes CAP_NET_ADMIN, and an address of the
 * backend's family.
 */
bool server_lacks(const struct server *v, int result)
{
	bool foreign = v->identity == BACKEND_IDENTITY_TRANSPARENT;

	return work_is_shortage(-result) ||
	       (foreign && (result == -EPERM || result == -EAFNOSUPPORT));
}

bool server_introduce(struct worker *w, struct server *v)
{
	const struct xclient who = proxy_xclient(w, v->client);
	enum upstream_said what;

	set_name(w, v, v->client);
	what = upstream_introduce(&v->upstream, &who, w->now_ms);
	if (what != UPSTREAM_SAY ||
	    !work_queue_text(w, &v->out, IO_SMALL, v->upstream.say,
			     v->upstream.say_len))
		return false;
	server_speak_up(w, v);
	server_set_timer(w, v);
	return true;
}

void server_unreachable(struct worker *w, struct server *v)
{
	struct busy_verdict verdict = busy_silence(BUSY_SILENCE_REFUSED);
	const struct balancer_outcome outcome = {
		.failure = BALANCER_UNREACHABLE,
		.class = verdict.class,
		.stage = BUSY_STAGE_TCP,
		.source = v->client->source,
	};

	note(w, v, &outcome);
	log_refusal(w, v, &outcome, busy_rule_name(verdict.rule));
	backend_count(server_backend(w, v), BACKEND_COUNT_retried_away, 1);
}

/* ---- mode = tcp ---- */

void server_relay_replied(struct worker *w, struct server *v,
			  enum busy_stage stage,
			  const struct smtp_reply_parser *reply)
{
	bool final = stage == BUSY_STAGE_EOD;
	struct client *c = v->client;

	assert(c != NULL);
	if (reply->code < 400 && !final && stage != BUSY_STAGE_MAIL)
		return;
	v->upstream.stage = stage;
	v->upstream.reply = *reply;
	/* Before MAIL a 5xx is about what the client said, and not weir. */
	if (reply->code < 500 || stage >= BUSY_STAGE_AUTH)
		(void)judge(w, v);
	/* What is said of a login may have a part of it in it. */
	if (stage != BUSY_STAGE_AUTH && (reply->code >= 400 || final))
		keep_words(c, v);
}

void server_relay_failed(struct worker *w, struct server *v,
			 enum balancer_failure failure, enum busy_stage stage)
{
	struct busy_verdict verdict = busy_silence(silence_of(failure, stage));
	const struct balancer_outcome outcome = {
		.failure = failure,
		.class = verdict.class,
		.stage = stage,
		.source = v->client->source,
	};

	note(w, v, &outcome);
	log_refusal(w, v, &outcome, busy_rule_name(verdict.rule));
	backend_count(server_backend(w, v),
		      stage == BUSY_STAGE_EOD ? BACKEND_COUNT_unknown
					      : BACKEND_COUNT_lost,
		      1);
}

/* ---- what the session orders ---- */

bool server_command(struct worker *w, struct server *v, const char *text,
		    size_t len, enum busy_stage stage)
{
	if (!work_queue_text(w, &v->out, IO_SMALL, text, len))
		return false;
	server_sent(w, v, stage);
	return true;
}

void server_sent(struct worker *w, struct server *v, enum busy_stage stage)
{
	upstream_sent(&v->upstream, stage, w->now_ms);
	server_set_timer(w, v);
}

void server_chunk(struct worker *w, struct server *v, bool open)
{
	if (v->ending || v->upstream.chunk_open == open)
		return;
	upstream_chunk(&v->upstream, open, w->now_ms);
	server_set_timer(w, v);
}

void server_quit(struct worker *w, struct server *v)
{
	if (v->ending)
		return;
	server_detach(w, v);
	if (v->upstream.state != UPSTREAM_READY || v->relays) {
		if (v->upstream.state != UPSTREAM_QUITTING)
			end(w, v, false);
		return;
	}
	upstream_quit(&v->upstream, w->now_ms);
	if (!work_queue_text(w, &v->out, IO_SMALL, v->upstream.say,
			     v->upstream.say_len)) {
		end(w, v, false);
		return;
	}
	server_speak_up(w, v);
	server_set_timer(w, v);
}

void server_resume(struct worker *w, struct server *v)
{
	if (v->ending)
		return;
	feed(w, v);
	server_speak_up(w, v);
}

void server_reset(struct worker *w, struct server *v)
{
	end(w, v, true);
}

/* ---- events ---- */

/*
 * One that greets others at once, and not us, is full; but one that is told
 * who the client is may be looking up its name first.  Asked again and again,
 * since others may be greeted only after we have connected.
 */
static int64_t patience_ms(struct worker *w, const struct server *v)
{
	/* Behind its greeting the time of each reply runs, and no other. */
	int64_t most_ms = v->greeted ? INT64_MAX / 2 : w->timeouts.greeting_ms;
	int64_t share_ms = w->config->farm.budget_ms * 2 / 3;

	/* If another one has room, some time is left for it. */
	if (v->client != NULL && v->client->session.tries <= 1 &&
	    share_ms < most_ms &&
	    balancer_foresee(w->weir->farm, &v->client->need, w->now_ms) ==
		    BALANCER_PICKED)
		most_ms = share_ms;
	if (v->greeted || is_told_first(v))
		return most_ms;
	return balancer_patience_ms(w->weir->farm, &v->slot, most_ms);
}

static void await_greeting(struct worker *w, struct server *v)
{
	upstream_connected(&v->upstream, w->now_ms);
	v->ask_ms = w->now_ms + WORK_GREETING_MS;
}

/* Has it been silent for too long?  Else when to ask again is set. */
static bool is_silent(struct worker *w, struct server *v)
{
	int64_t by_ms = v->begun_ms + patience_ms(w, v);

	if (w->now_ms >= by_ms)
		return true;
	v->ask_ms = w->now_ms + WORK_GREETING_MS < by_ms
			    ? w->now_ms + WORK_GREETING_MS
			    : by_ms;
	return false;
}

static void connected(struct worker *w, struct server *v, int result)
{
	if (server_lacks(v, result) || result == -EADDRNOTAVAIL) {
		forsake(w, v, -result);
		return;
	}
	switch (-result) {
	case 0:
		if (!proxy_introduce(w, v)) {
			forsake(w, v, ENOBUFS);
			return;
		}
		server_speak_up(w, v);
		await_greeting(w, v);
		if (relay_needs_no_greeting(w, v)) {
			server_ready(w, v);
			return;
		}
		arm(w, v);
		if (v->upstream.state == UPSTREAM_TLS)
			begin_tls(w, v);
		else
			server_set_timer(w, v);
		return;
	case ECONNREFUSED:
		failed(w, v, BALANCER_REFUSED);
		return;
	case ETIMEDOUT:
		failed(w, v, BALANCER_TIMEOUT);
		return;
	case ECONNRESET:
		failed(w, v, BALANCER_RESET);
		return;
	default:
		failed(w, v, BALANCER_UNREACHABLE);
		return;
	}
}

void server_event(struct worker *w, struct server *v, const struct io_event *ev)
{
	if (v->relays && ev->kind != IO_CLOSED) {
		relay_server_event(w, v, ev);
		return;
	}
	switch (ev->kind) {
	case IO_CONNECTED:
		connected(w, v, ev->result);
		return;
	case IO_RECEIVED:
		v->receiving = ev->more;
		if (ev->result <= 0) {
			stream_ended(w, v, ev->result < 0);
			return;
		}
		backend_count(server_backend(w, v), BACKEND_COUNT_octets_in,
			      (uint64_t)ev->result);
		if (v->tls.codec != NULL)
			work_queue_buf(w, &v->tls.wire, ev->buf);
		else
			work_queue_buf(w, &v->in, ev->buf);
		feed(w, v);
		arm(w, v);
		return;
	case IO_SENT:
		if (work_is_shortage(-ev->result)) {
			forsake(w, v, -ev->result);
			return;
		}
		/* The peer's doing: what it last said may still be read. */
		if (ev->result < 0)
			return;
		v->sent_ms = w->now_ms;
		upstream_moved(&v->upstream, w->now_ms);
		server_speak_up(w, v);
		server_set_timer(w, v);
		feed(w, v); /* of TLS there may be more to decode */
		if (v->client != NULL && !v->lingering)
			client_resume(w, v->client);
		return;
	case IO_CLOSED:
		assert(v->client == NULL);
		server_free(w, v, true);
		return;
	case IO_ACCEPTED:
	case IO_SPLICED:
	case IO_WOKEN:
		break;
	}
	assert(ev->kind != IO_ACCEPTED);
}

void server_timer(struct worker *w, struct server *v)
{
	const struct upstream *u = &v->upstream;

	if (v->ending)
		return;
	if (v->relays) {
		relay_server_timer(w, v);
		return;
	}
	if (w->now_ms >= v->until_ms) {
		server_quit(w, v);
		return;
	}
	if (is_awaited(v) && w->now_ms >= v->ask_ms && is_silent(w, v)) {
		failed(w, v, v->greeted ? BALANCER_STALLED : BALANCER_SILENT);
		return;
	}
	if (w->now_ms < u->deadline_ms) {
		if (is_sending(w, v) &&
		    w->now_ms >=
			    v->sent_ms + w->config->timeouts.backend_send_ms)
			failed(w, v, BALANCER_STALLED);
		else
			server_set_timer(w, v);
		return;
	}
	switch (u->state) {
	case UPSTREAM_CONNECTING:
		failed(w, v, BALANCER_TIMEOUT);
		return;
	case UPSTREAM_GREETING:
		failed(w, v, BALANCER_SILENT);
		return;
	case UPSTREAM_TLS:
		failed(w, v, v->greeted ? BALANCER_STALLED : BALANCER_SILENT);
		return;
	case UPSTREAM_EHLO:
	case UPSTREAM_HELO:
	case UPSTREAM_STARTTLS:
	case UPSTREAM_XCLIENT:
	case UPSTREAM_READY:
		failed(w, v, BALANCER_STALLED);
		return;
	case UPSTREAM_QUITTING:
		end(w, v, false);
		return;
	}
}
