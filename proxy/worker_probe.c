#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "proxy/work.h"

/*
 * Probes: each backend's dialogue runs in its own struct prober, on reserve
 * buffers, and holds a slot like any session.
 */

void work_log_change(struct worker *w, const struct backend_change *change)
{
	if (!change->changed)
		return;
	work_log_begin(w, "backend");
	log_word(&w->log, "backend", change->name);
	if (change->from != change->to) {
		log_word(&w->log, "from", health_state_name(change->from));
		log_word(&w->log, "to", health_state_name(change->to));
	}
	if (change->admin_from != change->admin_to) {
		log_word(&w->log, "admin_from",
			 backend_admin_name(change->admin_from));
		log_word(&w->log, "admin_to",
			 backend_admin_name(change->admin_to));
	}
	log_word(&w->log, "why", health_why_name(change->why));
	if (change->until_ms > w->now_ms)
		log_number(&w->log, "for_ms", change->until_ms - w->now_ms);
	work_log(w, change->to == HEALTH_UP ? LOG_LEVEL_NOTICE
					    : LOG_LEVEL_WARNING);
}

static struct prober *prober_of(struct worker *w, uint16_t index)
{
	return &w->probers[index];
}

static void finish(struct worker *w, struct prober *p)
{
	if (p->ending)
		return;
	p->ending = true;
	timer_set(&w->wheel, &p->work.timer, TIMER_NEVER);
	secure_end(w, &p->work, &p->tls);
	work_queue_drop(w, &p->in);
	work_queue_drop(w, &p->out);
	io_close(w->io, p->socket);
}

static void log_failure(struct worker *w, const struct backend_change *change,
			const struct probe_report *report)
{
	work_log_begin(w, "probe");
	log_word(&w->log, "backend", change->name);
	log_word(&w->log, "outcome", probe_outcome_name(report->outcome));
	log_word(&w->log, "step", probe_step_word(report->failed));
	if (report->code != 0) {
		log_number(&w->log, "code", report->code);
		log_text(&w->log, "reply", report->text, report->text_len);
	} else if (report->text_len > 0) {
		log_text(&w->log, "tls_error", report->text, report->text_len);
	}
	if (report->error != 0)
		log_word(&w->log, "error", strerror(report->error));
	work_log(w, LOG_LEVEL_WARNING);
}

/* What else it found out. */
static void log_news(struct worker *w, const struct prober *p,
		     const struct backend_change *change)
{
	const struct probe_report *report = &p->probe.report;
	const struct backend_news *news = &change->news;

	if (news->relay_told) {
		work_log_begin(w, "relay");
		log_word(&w->log, "backend", change->name);
		log_word(&w->log, "strangers", backend_relay_name(news->relay));
		log_word(&w->log, "step", probe_step_word(report->relay_step));
		if (report->relay_code != 0) {
			log_number(&w->log, "code", report->relay_code);
			log_text(&w->log, "reply", report->relay_text,
				 report->relay_text_len);
		}
		work_log(w, news->relay == BACKEND_RELAY_CLOSED
				    ? LOG_LEVEL_NOTICE
				    : LOG_LEVEL_ERROR);
	}
	if (news->cert_told) {
		work_log_begin(w, "certificate");
		log_word(&w->log, "backend", change->name);
		log_number(&w->log, "days_left", news->cert_days);
		work_log(w, LOG_LEVEL_WARNING);
	}
}

/* The last word: the slot goes back, and the verdict is told. */
static void conclude(struct worker *w, struct prober *p)
{
	struct backend_change change = { 0 };
	const struct probe_report *report = &p->probe.report;

	balancer_probe_done(w->weir->farm, &p->slot, report, w->now_ms,
			    io_random(w->io), &change);
	stats_add(&w->stats->probes, 1);
	/* TLS that failed where it is only tried changes nothing; but what
	 * goes there goes in the clear now. */
	if (report->tls_failed ||
	    (change.changed && report->outcome != PROBE_OK &&
	     report->outcome != PROBE_ABANDONED))
		log_failure(w, &change, report);
	work_log_change(w, &change);
	log_news(w, p, &change);
	p->busy = false;
	assert(w->probing > 0);
	w->probing--;
}

/* What it has to say, in TLS or in the clear. */
static void flush(struct worker *w, struct prober *p)
{
	(void)secure_flush(w, &p->work, &p->tls, &p->out, p->socket,
			   p->probe.step == PROBE_STEP_QUIT);
}

static void begin_tls(struct worker *w, struct prober *p)
{
	struct tls_context *context = tls_store_backend(w->weir->tls,
							p->slot.index);

	/* What was said in the clear is over (RFC 3207, section 6). */
	work_queue_drop(w, &p->in);
	/* Each time anew: it is the certificate that is looked at. */
	if (secure_begin(w, &p->tls, context, NULL))
		flush(w, p);
}

static void follow(struct worker *w, struct prober *p,
		   const struct probe_plan *plan)
{
	if (plan->done) {
		finish(w, p);
		return;
	}
	timer_set(&w->wheel, &p->work.timer, plan->deadline_ms);
	/* Without words, or TLS, it will run into its deadline. */
	if (plan->send != NULL)
		(void)work_queue_text(w, &p->out, IO_RESERVE, plan->send,
				      plan->send_len);
	flush(w, p);
	if (plan->handshake)
		begin_tls(w, p);
}

static void step(struct worker *w, struct prober *p,
		 const struct probe_event *event)
{
	struct probe_plan plan = { 0 };
	bool greeted = p->probe.report.greet_ms >= 0;

	if (p->ending)
		return;
	probe_step(&p->probe, event, w->now_ms, &plan);
	if (!greeted && p->probe.report.greet_ms >= 0)
		balancer_probe_greeted(w->weir->farm, &p->slot,
				       p->probe.report.greet_ms, w->now_ms);
	follow(w, p, &plan);
}

static void cancel(struct worker *w, struct prober *p)
{
	const struct probe_event event = { .kind = PROBE_IN_CANCEL };

	step(w, p, &event);
}

/* What weir itself lacks is no verdict. */
static struct probe_event not_connected(int error, bool lacking)
{
	return (struct probe_event){
		.kind = lacking ? PROBE_IN_CANCEL : PROBE_IN_FAILED,
		.error = error,
	};
}

static enum probe_tls tls_of(struct worker *w, const struct backend *b)
{
	if (!backend_wants_tls(b, w->now_ms))
		return PROBE_TLS_NONE;
	return backend_tls(b) == BACKEND_TLS_OPPORTUNISTIC
		       ? PROBE_TLS_IF_OFFERED
		       : PROBE_TLS_MUST;
}

static void begin(struct worker *w, const struct balancer_slot *slot)
{
	struct prober *p = prober_of(w, slot->index);
	const struct backend *b = &w->weir->farm->backends[slot->index];
	const struct config_health *health = &w->config->health;
	const struct sockaddr *source = NULL;
	struct probe_plan plan = { 0 };
	int result;

	assert(!p->busy);
	p->work.kind = WORK_PROBE;
	timer_init(&p->work.timer);
	p->work.next_costly = p->work.prev_costly = NULL;
	p->busy = true;
	p->ending = p->receiving = p->secured = false;
	p->in = p->out = (struct work_queue){ 0 };
	p->tls = (struct work_tls){ 0 };
	p->slot = *slot;
	static_assert(sizeof(p->helo) >= sizeof(health->helo),
		      "the name that the configuration has fits");
	memcpy(p->helo, health->helo, sizeof(health->helo));
	memcpy(p->rules, b->rules, sizeof(p->rules));
	p->identity = backend_identity(b);
	p->order = (struct probe_order){
		.helo = p->helo,
		.mail = health->mail,
		.connect_ms = w->config->timeouts.backend_connect_ms,
		.timeout_ms = health->timeout_ms,
		.tls = tls_of(w, b),
		.implicit = backend_tls_implicit(b),
		.xclient = p->identity == BACKEND_IDENTITY_XCLIENT,
		.guard = slot->guard,
		.rules = p->rules,
		.rule_count = b->rule_count,
	};
	w->probing++;
	probe_begin(&p->probe, &p->order, w->now_ms, &plan);
	if (b->source_len > 0)
		source = (const struct sockaddr *)&b->source;
	result = io_connect(w->io, (const struct sockaddr *)&b->peer, source,
			    false, &p->work, &p->socket);
	if (result < 0) {
		const struct probe_event failed = not_connected(
			-result, work_is_shortage(-result));

		probe_step(&p->probe, &failed, w->now_ms, &plan);
		conclude(w, p);
		return;
	}
	follow(w, p, &plan);
}

void probe_turn(struct worker *w)
{
	struct backend_change change = { 0 };
	struct balancer_slot slot;

	work_remove_leaving(w);
	while (balancer_tick(w->weir->farm, w->now_ms, &change))
		work_log_change(w, &change);
	while (balancer_probe_claim(w->weir->farm, w->now_ms, &slot))
		begin(w, &slot);
}

static void listen_to(struct worker *w, struct prober *p)
{
	if (p->receiving || p->ending)
		return;
	p->receiving = true;
	io_recv(w->io, p->socket, IO_RESERVE, WORK_COMMAND_CREDIT);
}

/* ---- TLS ---- */

static void tell_secured(struct worker *w, struct prober *p)
{
	struct tls_info info;
	struct probe_event event = { .kind = PROBE_IN_SECURED };

	p->secured = true;
	tls_describe(p->tls.codec, &info);
	event.expires_s = info.expires_s;
	event.verified = info.verified;
	event.tls_version = info.version;
	event.now_s = io_wall_ms(w->io) / 1000;
	step(w, p, &event);
}

static void tell_insecure(struct worker *w, struct prober *p)
{
	const char *why = tls_reason(p->tls.codec);
	const struct probe_event event = {
		.kind = PROBE_IN_INSECURE,
		.octets = why,
		.len = strlen(why),
	};

	step(w, p, &event);
}

/* Decode what has come, and tell the probe what that has changed. */
static void refill(struct worker *w, struct prober *p)
{
	enum tls_state state;

	if (p->tls.codec == NULL || p->in.first != NULL)
		return;
	state = secure_read(w, &p->work, &p->tls, &p->in, IO_RESERVE);
	flush(w, p);
	if (state == TLS_FAILED && (p->in.first == NULL || !p->secured))
		tell_insecure(w, p);
	else if (state != TLS_HANDSHAKE && !p->secured)
		tell_secured(w, p);
}

static void feed(struct worker *w, struct prober *p)
{
	for (refill(w, p); p->in.first != NULL && !p->ending; refill(w, p)) {
		struct probe_event event = {
			.kind = PROBE_IN_OCTETS,
			.octets = p->in.first->data,
			.len = p->in.first->len,
		};
		struct io_buf *buf = p->in.first;

		/* What comes of it may begin TLS, and drop what is queued. */
		p->in.octets -= buf->len;
		p->in.first = buf->next;
		if (p->in.first == NULL)
			p->in.last = NULL;
		step(w, p, &event);
		io_buf_put(w->io, buf);
	}
}

static void received(struct worker *w, struct prober *p,
		     const struct io_event *ev)
{
	struct probe_event event = { .kind = PROBE_IN_CLOSED };

	p->receiving = ev->more;
	if (ev->result < 0)
		event.kind = PROBE_IN_RESET;
	if (ev->result <= 0) {
		step(w, p, &event);
		return;
	}
	if (p->ending)
		io_buf_put(w->io, ev->buf);
	else if (p->tls.codec != NULL)
		work_queue_buf(w, &p->tls.wire, ev->buf);
	else
		work_queue_buf(w, &p->in, ev->buf);
	feed(w, p);
	listen_to(w, p);
}

/* Before the greeting, where the backend waits for it. */
static void introduce(struct worker *w, struct prober *p)
{
	struct io_buf *buf;

	if (p->ending || !backend_identity_heads(p->identity))
		return;
	buf = proxy_introduce_probe(w, p);
	if (buf != NULL)
		io_send(w->io, p->socket, buf);
	else
		cancel(w, p); /* the backend is not to blame */
}

void probe_event_in(struct worker *w, struct prober *p,
		    const struct io_event *ev)
{
	const struct probe_event connected = { .kind = PROBE_IN_CONNECTED };
	const struct probe_event failed = not_connected(
		-ev->result,
		work_is_shortage(-ev->result) || ev->result == -EADDRNOTAVAIL);

	switch (ev->kind) {
	case IO_CONNECTED:
		if (ev->result == 0) {
			introduce(w, p);
			listen_to(w, p);
		}
		step(w, p, ev->result == 0 ? &connected : &failed);
		return;
	case IO_RECEIVED:
		received(w, p, ev);
		return;
	case IO_CLOSED:
		conclude(w, p);
		return;
	case IO_SENT: /* a broken one shows when receiving */
		if (!p->ending) {
			flush(w, p);
			feed(w, p);
		}
		return;
	case IO_ACCEPTED:
	case IO_SPLICED:
	case IO_WOKEN:
		return;
	}
}

void probe_timer(struct worker *w, struct prober *p)
{
	const struct probe_event time = { .kind = PROBE_IN_TIME };

	step(w, p, &time);
}

void probe_stop(struct worker *w)
{
	for (unsigned i = 0; i < FARM_BACKENDS_MAX; i++) {
		if (w->probers[i].busy)
			cancel(w, &w->probers[i]);
	}
}
