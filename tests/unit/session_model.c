#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/upstream.h"
#include "tests/unit/session_model.h"

struct world *w;
struct config *config;
static struct world *uncut; /* how an "ahead" dialogue ended, octets whole */
static const uint8_t key[ADMISSION_KEY_LEN] = { 7 };

bool model_begin(void)
{
	w = calloc(1, sizeof(*w));
	uncut = calloc(1, sizeof(*uncut));
	config = calloc(1, sizeof(*config));
	return w != NULL && uncut != NULL && config != NULL;
}

void model_end(void)
{
	free(w);
	free(uncut);
	free(config);
}

void model_open(const struct talk *t)
{
	const struct knobs *k = &t->knobs;
	struct admission_config limits = {
		.max_sessions = 10,
		.source_v4_bits = 32,
		.source_v6_bits = 64,
		.aggregate_v4_bits = 24,
		.aggregate_v6_bits = 48,
		.table_size = ADMISSION_TABLE_MIN,
	};
	struct cidr_addr addr;
	void *mem;

	limits.rates[ADMISSION_RATE_MESSAGE] = (struct admission_rate_limit){
		.count = k->message_rate,
		.period_ms = 3600000
	};
	limits.rates[ADMISSION_RATE_RECIPIENT] = (struct admission_rate_limit){
		.count = k->recipient_rate,
		.period_ms = 3600000
	};
	limits.rates[ADMISSION_RATE_LOGIN] = (struct admission_rate_limit){
		.count = k->login_rate,
		.period_ms = 3600000
	};
	memset(w, 0, offsetof(struct world, pieces));
	memset(&w->first, 0, sizeof(*w) - offsetof(struct world, first));
	memset(config, 0, sizeof(*config));
	w->name = t->name;
	w->ahead_talk = t->ahead;
	mem = aligned_alloc(ADMISSION_ALIGN, admission_size(&limits));
	w->line = calloc(1, SESSION_LINE_MAX);
	w->mail = calloc(1, SESSION_MAIL_MAX);
	assert_non_null(mem);
	assert_non_null(w->line);
	assert_non_null(w->mail);
	w->admission = admission_init(mem, &limits, key);
	(void)snprintf(config->weir.hostname, sizeof(config->weir.hostname),
		       "mx.test");
	config->admission.max_errors = k->max_errors ? k->max_errors : 20;
	config->admission.max_messages = k->max_messages;
	config->admission.max_recipients = k->max_recipients ? k->max_recipients
							     : 1000;
	config->admission.tarpit_ms = k->tarpit_ms;
	config->timeouts.command_ms = 300000;
	config->timeouts.stress_command_ms = 10000;
	config->timeouts.data_ms = 180000;
	config->timeouts.session_ms = k->session_ms;
	config->timeouts.handshake_ms = 30000;
	config->farm.tries = k->tries ? k->tries : 3;
	config->farm.budget_ms = 20000;
	w->listener.greeting_delay_ms = k->delay_ms;
	w->listener.early_talkers = k->early;
	w->listener.size = k->size;
	w->listener.tls = k->tls;
	w->listener.auth = k->auth;
	w->listener.bare_newline = k->bare;
	w->listener.slot = k->hold ? CONFIG_SLOT_BODY : CONFIG_SLOT_TRANSACTION;
	w->listener.body_buffer = k->buffer ? k->buffer : 1000;
	w->listener.body_wait_ms = k->body_wait_ms ? k->body_wait_ms : 1000;
	if (k->body_wait_ms < 0)
		w->listener.body_wait_ms = 0;
	config->room.size = k->room_wait_ms ? 10 : 0;
	config->room.wait_ms = k->room_wait_ms;
	w->memory = HELD_MAX;
	w->env = (struct session_env){
		.config = config,
		.admission = w->admission,
		.stats = &w->stats,
		.offer_ext = k->offer ? k->offer : SMTP_EXT_RELAYED,
		.offer_auth = k->offer_auth ? k->offer_auth : ALL_AUTH,
		.offer_size = k->offer_size,
		.now_ms = 1000000,
	};
	assert_true(cidr_addr_parse("192.0.2.1", 9, &addr));
	session_init(&w->s, &w->listener, w->line, w->mail, w->env.now_ms);
	assert_int_equal(admission_open(w->admission, &addr, w->env.now_ms,
					&w->s.ticket),
			 ADMISSION_ACCEPT);
}

void model_close(void)
{
	admission_close(w->admission, &w->s.ticket);
	admission_fini(w->admission);
	free(w->admission);
	free(w->line);
	free(w->mail);
}

/* ---- what is done, as words ---- */

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...)
{
	size_t room = sizeof(w->acts) - w->acts_len;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(w->acts + w->acts_len, room, format, args);
	va_end(args);
	assert_true(n >= 0);
	/* A walk without expectations may go on for long. */
	w->acts_len = (size_t)n < room ? w->acts_len + (size_t)n : 0;
}

/* "250", or "550 5.6.11" */
static void put_reply(const char *what, const char *text, size_t len)
{
	size_t n = 3;

	assert_true(len >= 5);
	assert_memory_equal(text + len - 2, "\r\n", 2);
	if (len > 8 && text[4] >= '2' && text[4] <= '5' && text[5] == '.') {
		n = 4;
		while (n < len && text[n] != ' ')
			n++;
	}
	put("%s %.*s", what, (int)n, text);
}

static bool is_secret(const char *text, size_t len)
{
	return memmem(text, len, SECRET, sizeof(SECRET) - 1) != NULL;
}

static void on_say(const struct session_act *act, enum session_state before)
{
	assert_true(act->len > 0);
	assert_false(is_secret(act->text, act->len));
	/* Neither in the clear behind STARTTLS nor before it is asked for. */
	assert_false(w->handshake);
	put_reply("say", act->text, act->len);
	if (act->times > 1)
		put(" x%u", act->times);
	assert_true(act->times <= UPSTREAM_PIPELINE_MAX);
	/* Promise 1: the end of data has no 2xx of our own. */
	if (before == SESSION_BODY || before == SESSION_CHUNK ||
	    before == SESSION_FINAL || before == SESSION_DATA ||
	    before == SESSION_HANDOVER)
		assert_int_not_equal(act->text[0], '2');
}

static void on_relay(const struct session_act *act,
		     const struct session_event *ev, enum session_state before)
{
	assert_int_equal(ev->kind, SESSION_IN_REPLY);
	put("relay %u", act->code ? act->code : ev->code);
	if (ev->stage == BUSY_STAGE_EOD && before == SESSION_FINAL &&
	    ev->code / 100 == 2)
		w->ends_good++;
	assert_true(w->ends_good <= w->ends_sent);
}

/* Note what the backend reads. */
static void tell_backend(const char *text, size_t len)
{
	struct conn *c = &w->conns[(w->bindings - 1) % CONNS_MAX];

	assert_true(w->bindings > 0);
	if (len + 1 > sizeof(c->text) - c->len)
		return;
	memcpy(c->text + c->len, text, len);
	c->len += len;
	c->text[c->len++] = ';';
}

static bool lies_in(const char *text, size_t len, const char *place,
		    size_t size)
{
	return text >= place && text + len <= place + size;
}

/* Promise 2: no other backend has had it, or it said that it has not. */
static void end_is_sent(void)
{
	assert_false(w->unanswered);
	w->unanswered = true;
	w->ends_sent++;
}

static void say_bdat(const struct session_act *act)
{
	w->chunk_left = strtoull(act->text + 5, NULL, 10);
	if (act->stage == BUSY_STAGE_EOD)
		end_is_sent();
}

static void pass_octets(const char *octets, size_t len);

/* BDAT of weir's own, with the CR behind it that no LF has followed. */
static bool owes_cr(const struct session_act *act)
{
	return act->len > 3 && memcmp(act->text, "BDAT ", 5) == 0 &&
	       memcmp(act->text + act->len - 3, "\r\n\r", 3) == 0;
}

static void on_counted(const struct session_act *act)
{
	put("%.*s+CR", (int)(act->len - 3), act->text);
	tell_backend(act->text, act->len - 3);
	w->due++;
	say_bdat(act);
	pass_octets("\r", 1);
}

static void on_command(const struct session_act *act,
		       const struct session_event *ev,
		       enum session_state before)
{
	assert_true(w->bound);
	assert_int_equal(w->chunk_left, 0);
	assert_int_equal(act->hold,
			 act->stage == BUSY_STAGE_RCPT &&
				 w->listener.slot == CONFIG_SLOT_BODY &&
				 !w->s.authed);
	w->held_rcpts += act->hold;
	assert_int_equal(act->secret, act->stage == BUSY_STAGE_AUTH);
	assert_true(act->secret || !is_secret(act->text, act->len));
	assert_true(act->len >= 6 || act->secret);
	if (act->stage == BUSY_STAGE_MAIL)
		w->traced = w->refused = w->go_on = false;
	if (w->s.counting && owes_cr(act)) {
		on_counted(act);
		return;
	}
	assert_memory_equal(act->text + act->len - 2, "\r\n", 2);
	/* The text lives as long as the plan. */
	assert_true(lies_in(act->text, act->len, w->mail, SESSION_MAIL_MAX) ||
		    lies_in(act->text, act->len, w->line, SESSION_LINE_MAX) ||
		    lies_in(act->text, act->len, w->plan.scratch,
			    sizeof(w->plan.scratch)) ||
		    (act->len == 6 && memcmp(act->text, "DATA\r\n", 6) == 0) ||
		    (act->len == 6 && memcmp(act->text, "RSET\r\n", 6) == 0) ||
		    (ev->kind == SESSION_IN_OCTETS &&
		     lies_in(act->text, act->len, ev->data, ev->len)));
	put("%.*s", (int)(act->len - 2), act->text);
	tell_backend(act->text, act->len - 2);
	if (before == SESSION_MAIL && ev->kind == SESSION_IN_OCTETS) {
		assert_ptr_equal(act->text, ev->data + w->ahead);
		w->ahead += act->len;
		w->sent_ahead++;
	}
	w->due++;
	assert_true(w->due <= (w->pipelining ? UPSTREAM_PIPELINE_MAX : 1u));
	if (act->len > 5 && strncasecmp(act->text, "BDAT ", 5) == 0)
		say_bdat(act);
}

/* Octets of a body or chunk, on their way to the backend. */
static void pass_octets(const char *octets, size_t len)
{
	assert_true(w->bound);
	assert_int_equal(w->traced, w->trace_len > 0);
	assert_true(w->go_on || w->chunk_left >= len);
	if (!w->go_on)
		w->chunk_left -= len;
	if (octets != NULL && w->body_len + len <= sizeof(w->body))
		memcpy(w->body + w->body_len, octets, len);
	w->body_len += len;
}

/* As the worker does it, in the buffer itself. */
static void pass_undotted(const struct session_act *act,
			  const struct session_event *ev)
{
	struct smtp_undot undot = act->undot_state;
	char *copy = malloc(act->len);
	size_t len;

	assert_non_null(copy);
	assert_int_equal(act->stage, BUSY_STAGE_IDLE);
	memcpy(copy, ev->data, act->len);
	len = smtp_undot(&undot, copy, act->len);
	assert_true(len > 0);
	pass_octets(copy, len);
	/* The chunk is whole: what was announced is what was sent. */
	assert_int_equal(w->chunk_left, 0);
	free(copy);
}

static void on_body(const struct session_act *act,
		    const struct session_event *ev)
{
	assert_int_equal(ev->kind, SESSION_IN_OCTETS);
	assert_int_equal(act->len, w->plan.consumed);
	if (act->undot)
		pass_undotted(act, ev);
	else
		pass_octets(ev->data, act->len);
	if (act->stage != BUSY_STAGE_EOD)
		return;
	put("end; ");
	tell_backend("end", 3);
	w->due++;
	end_is_sent();
}

/* ---- what is held ---- */

static size_t hold_room(void)
{
	size_t most = w->memory;

	if (w->listener.body_buffer < most)
		most = w->listener.body_buffer;
	return most > w->held_len ? most - w->held_len : 0;
}

static void on_hold(const struct session_act *act,
		    const struct session_event *ev)
{
	assert_int_equal(ev->kind, SESSION_IN_OCTETS);
	assert_int_equal(act->len, w->plan.consumed);
	assert_true(act->len <= hold_room());
	if (ev->data != NULL)
		memcpy(w->held + w->held_len, ev->data, act->len);
	w->held_len += act->len;
}

static void on_mark(const struct session_act *act,
		    const struct session_event *ev)
{
	assert_int_equal(ev->kind, SESSION_IN_REPLY);
	assert_int_equal(ev->stage, BUSY_STAGE_RCPT);
	assert_int_equal(act->good, ev->code / 100 == 2);
	assert_true(w->marked < w->held_rcpts);
	w->marked++;
	w->marked_good += act->good;
}

static void drop_envelope(void)
{
	w->held_rcpts = 0;
	w->marked = 0;
	w->marked_good = 0;
}

static void on_bind(void)
{
	assert_false(w->bound);
	assert_false(w->unanswered);
	w->binding = true;
	put("bind");
	if (w->s.message.rcpts_ok == 0 && w->held_len == 0)
		drop_envelope();
	assert_int_equal(w->s.state == SESSION_HANDOVER, w->marked_good > 0);
}

static void on_replay(void)
{
	assert_true(w->bound);
	assert_int_equal(w->due, 0);
	assert_int_equal(w->marked, w->held_rcpts);
	assert_int_equal(w->marked_good, w->s.message.rcpts_ok);
	put("replay %u", w->marked_good);
	tell_backend("replay", 6);
	w->due = 1 + w->marked_good + 1;
}

static void on_trace(void)
{
	assert_true(w->bound);
	assert_false(w->traced);
	assert_true(w->trace_len > 0);
	assert_true(w->go_on || w->chunk_left >= w->trace_len);
	if (!w->go_on)
		w->chunk_left -= w->trace_len;
	w->traced = true;
	put("trace");
	tell_backend("trace", 5);
}

/* Promise 1: all that the client has read is true here too. */
static void on_send(const struct session_act *act)
{
	assert_int_equal(w->due, 0);
	assert_true(w->go_on);
	assert_false(w->refused);
	assert_int_equal(w->held_len, w->s.body.octets);
	pass_octets(w->held, w->held_len);
	put("send");
	tell_backend("send", 4);
	assert_int_equal(act->stage == BUSY_STAGE_EOD, w->s.body.ended);
	if (act->stage != BUSY_STAGE_EOD)
		return;
	put(" end");
	w->due++;
	end_is_sent();
}

static void on_part(const char *how)
{
	put("%s", how);
	/* How one that refused MAIL is left depends on what it was sent. */
	if (w->bound && w->conns[(w->bindings - 1) % CONNS_MAX].taken)
		tell_backend(how, strlen(how));
	/* QUIT would be taken for the rest of the chunk. */
	if (strcmp(how, "reset") != 0)
		assert_int_equal(w->chunk_left, 0);
	w->bound = false;
	w->binding = false;
	w->due = 0;
	w->go_on = false;
	w->chunk_left = 0;
}

static void on_act(const struct session_act *act,
		   const struct session_event *ev, enum session_state before)
{
	assert_false(w->closed);
	switch (act->what) {
	case SESSION_DO_SAY:
		on_say(act, before);
		break;
	case SESSION_DO_RELAY:
		on_relay(act, ev, before);
		break;
	case SESSION_DO_BIND:
		on_bind();
		break;
	case SESSION_DO_COMMAND:
		on_command(act, ev, before);
		break;
	case SESSION_DO_STARTTLS:
		assert_false(w->bound || w->binding);
		assert_int_equal(w->plan.consumed, ev->len);
		w->handshake = true;
		put("starttls");
		break;
	case SESSION_DO_BODY:
		on_body(act, ev);
		return;
	case SESSION_DO_KEEP:
		assert_int_equal(w->due, 0);
		on_part("keep");
		break;
	case SESSION_DO_QUIT:
		assert_true(w->bound || w->binding);
		on_part("quit");
		break;
	case SESSION_DO_RESET:
		assert_true(w->bound);
		on_part("reset");
		break;
	case SESSION_DO_HOLD:
		on_hold(act, ev);
		return;
	case SESSION_DO_MARK:
		on_mark(act, ev);
		return;
	case SESSION_DO_PARK:
		assert_true(w->bound);
		assert_int_equal(w->due, 0);
		on_part("park");
		break;
	case SESSION_DO_REPLAY:
		on_replay();
		break;
	case SESSION_DO_TRACE:
		on_trace();
		break;
	case SESSION_DO_SEND:
		on_send(act);
		break;
	case SESSION_DO_LOG:
		drop_envelope();
		w->held_len = 0;
		w->unanswered = false;
		put("log %s %s %u", busy_stage_name(w->s.message.stage),
		    busy_class_name(w->s.message.class), w->s.message.code);
		w->logged++;
		break;
	case SESSION_DO_CLOSE:
		put("close %s", stats_close_name(act->reason));
		w->closed = true;
		break;
	case SESSION_DO_ABORT:
		put("abort %s", stats_close_name(act->reason));
		w->closed = true;
		break;
	}
	put("; ");
}

/* What is true of it between any two steps. */
static void check_held(void)
{
	const struct session *s = &w->s;

	assert_true(!s->holding || s->state == SESSION_BODY);
	assert_true(!s->whole || s->state == SESSION_HANDOVER ||
		    s->state == SESSION_FINAL);
	assert_true(w->listener.slot == CONFIG_SLOT_BODY || w->held_len == 0);
	if (s->holding || s->state == SESSION_HANDOVER)
		assert_int_equal(w->held_len, s->body.octets);
}

/* And of all else. */
static void check_rest(void)
{
	const struct session *s = &w->s;
	bool timed = s->deadline_ms != INT64_MAX;

	assert_int_equal(s->bound, w->bound);
	assert_int_equal(s->state == SESSION_HANDSHAKE, w->handshake);
	assert_false(is_secret(w->mail, SESSION_MAIL_MAX));
	assert_int_equal(s->auth_len > 0, s->binding_auth);
	assert_true(!s->binding_auth || s->state == SESSION_BINDING ||
		    s->state == SESSION_AUTH);
	assert_true(!s->clearing ||
		    (s->authed && s->due == 1 && s->state == SESSION_COMMAND));
	/* Until MAIL is answered nothing else is due to the client. */
	assert_int_equal(s->due + s->ahead_rcpts + s->ahead_data, w->due);
	assert_int_equal(s->ahead, w->ahead);
	assert_int_equal(s->ahead_rcpts + s->ahead_data > 0, s->ahead > 0);
	if (s->state == SESSION_MAIL) {
		assert_int_equal(s->due, 1);
		assert_true(w->ahead == 0 || w->ahead <= w->lens[w->first]);
	} else {
		assert_int_equal(s->ahead, 0);
	}
	assert_int_equal(
		w->begun - w->logged,
		s->transaction != SESSION_NO_MAIL ||
			(s->state == SESSION_BINDING && !s->binding_auth) ||
			s->state == SESSION_MAIL);
	assert_int_equal(s->state == SESSION_CLOSED, w->closed);
	assert_true(s->line_len <= SESSION_LINE_MAX);
	assert_true(s->tries <= config->farm.tries);
	assert_true(s->binds <= SESSION_BINDS_MAX);
	assert_int_equal(session_is_binding(s),
			 s->state == SESSION_BINDING ||
				 (s->state == SESSION_HANDOVER && !w->bound));
	check_held();
	switch (s->state) {
	case SESSION_COMMAND:
		/* Somebody's time runs: the client's or the backend's. */
		assert_int_equal(timed, s->due == 0);
		assert_int_equal(s->bound,
				 s->transaction == SESSION_MAIL_OPEN ||
					 (s->authed &&
					  s->transaction == SESSION_NO_MAIL));
		break;
	case SESSION_HANDSHAKE:
		assert_true(timed);
		assert_int_equal(s->due, 0);
		break;
	case SESSION_AUTH:
		assert_true(s->due <= 1);
		assert_int_equal(timed, s->due == 0);
		assert_int_equal(s->bound, !s->swallow);
		assert_false(s->authed);
		break;
	case SESSION_BINDING:
		assert_true(timed);
		assert_true(w->binding);
		break;
	case SESSION_MAIL:
	case SESSION_DATA:
	case SESSION_FINAL:
		assert_true(s->bound);
		assert_true(s->due > 0);
		assert_false(timed);
		break;
	case SESSION_BODY:
		assert_int_equal(timed, session_wants(s));
		assert_true(s->due <= SESSION_CHUNKS_MAX);
		assert_true(s->due == 0 || s->counting);
		assert_false(s->swallow && s->holding);
		assert_true(s->swallow ? !s->bound : s->bound || s->holding);
		break;
	case SESSION_HANDOVER:
		assert_int_equal(timed, !s->bound);
		assert_int_equal(s->bound, s->due > 0);
		assert_int_equal(s->body.ended, s->whole);
		break;
	case SESSION_CHUNK:
		assert_true(timed);
		assert_true(s->chunk_left > 0);
		assert_int_equal(s->due > 0, !s->swallow);
		assert_true(!s->swallow || s->note_len > 0);
		break;
	case SESSION_CLOSED:
		assert_false(timed);
		assert_false(s->bound);
		break;
	case SESSION_GREETING:
	case SESSION_RELAY:
	case SESSION_STATES:
		break;
	}
}

/* A backend, or one more message for it. */
static void on_bound(const struct session_event *ev)
{
	w->bound = true;
	w->binding = false;
	w->pipelining = ev->pipelining;
	w->trace_len = ev->trace_len;
	w->traced = false;
	w->refused = false;
	w->go_on = false;
	w->chunk_left = 0;
	w->bindings++;
	memset(&w->conns[(w->bindings - 1) % CONNS_MAX], 0,
	       sizeof(w->conns[0]));
}

static void eat(size_t len)
{
	if (len == 0)
		return;
	assert_true(w->first < w->count);
	assert_true(len <= w->lens[w->first]);
	w->pieces[w->first] += len;
	w->lens[w->first] -= len;
	if (w->lens[w->first] == 0)
		w->first++;
}

/* What was sent ahead is consumed by MAIL's 2xx, and by nothing else. */
static void check_consumed(const struct session_event *ev,
			   enum session_state before)
{
	bool taken = ev->kind == SESSION_IN_REPLY && before == SESSION_MAIL &&
		     w->s.transaction == SESSION_MAIL_OPEN;

	if (ev->kind == SESSION_IN_OCTETS && before != SESSION_MAIL)
		assert_true(w->plan.consumed <= ev->len);
	else
		assert_int_equal(w->plan.consumed, taken ? w->ahead : 0);
	if (taken)
		w->conns[(w->bindings - 1) % CONNS_MAX].taken = true;
	if (w->s.state != SESSION_MAIL)
		w->ahead = 0;
}

static void on_reply(const struct session_event *ev)
{
	w->due--;
	if (w->s.state == SESSION_HANDOVER && ev->code >= 400)
		w->refused = true;
	if (ev->stage == BUSY_STAGE_DATA && ev->code / 100 == 3)
		w->go_on = true;
	if (ev->stage == BUSY_STAGE_EOD && ev->code >= 400)
		w->unanswered = false;
}

void model_step(const struct session_event *ev)
{
	enum session_state before = w->s.state;
	bool replied = ev->kind == SESSION_IN_REPLY && w->s.bound &&
		       w->s.due > 0;

	/* What the worker does before it tells. */
	if (ev->kind == SESSION_IN_BOUND && session_is_binding(&w->s))
		on_bound(ev);
	if (ev->kind == SESSION_IN_UNBOUND && session_is_binding(&w->s))
		w->binding = false;
	if (replied)
		on_reply(ev);
	if (ev->kind == SESSION_IN_SECURED && w->handshake) {
		w->handshake = false;
		w->first = w->count; /* it was in the clear */
	}
	memset(&w->plan, 0xa5, sizeof(w->plan));
	session_step(&w->s, &w->env, ev, &w->plan);
	assert_true(w->plan.count <= SESSION_ACTS_MAX);
	if (w->plan.count > w->most_acts)
		w->most_acts = w->plan.count;
	if (ev->kind == SESSION_IN_LOST && w->bound) {
		w->bound = false;
		w->due = 0;
		w->go_on = false;
		w->chunk_left = 0;
	}
	if (before == SESSION_COMMAND &&
	    ((w->s.state == SESSION_BINDING && !w->s.binding_auth) ||
	     w->s.state == SESSION_MAIL))
		w->begun++;
	if (w->s.state == SESSION_CLOSED)
		w->handshake = false;
	for (unsigned i = 0; i < w->plan.count; i++)
		on_act(&w->plan.acts[i], ev, before);
	if (before == SESSION_CLOSED)
		assert_int_equal(w->plan.count, 0);
	check_consumed(ev, before);
	check_rest();
	eat(w->plan.consumed);
}

/* As the worker's pump(). */
static void pump(void)
{
	while (w->s.state != SESSION_CLOSED && session_wants(&w->s)) {
		struct session_event ev = { .kind = SESSION_IN_OCTETS,
					    .data = "",
					    .room = hold_room() };

		if (w->first < w->count) {
			ev.data = w->pieces[w->first];
			ev.len = w->lens[w->first];
		} else if (!w->s.line_ready) {
			break;
		}
		model_step(&ev);
		if (w->plan.count == 0 && w->plan.consumed == 0)
			break;
	}
	if (w->s.state == SESSION_CLOSED)
		w->first = w->count;
	if (w->eof && !w->eof_told && w->first == w->count &&
	    !w->s.line_ready) {
		const struct session_event ev = { .kind = SESSION_IN_EOF };

		w->eof_told = true;
		model_step(&ev);
	}
}

void model_feed(const char *text, size_t len)
{
	assert_true(w->count < PIECES_MAX);
	if (len == 0 || w->eof)
		return;
	if (w->first == w->count)
		w->first = w->count = 0;
	w->pieces[w->count] = text;
	w->lens[w->count++] = len;
	pump();
}

void model_tell(const struct session_event *ev)
{
	if (ev->kind == SESSION_IN_EOF)
		w->eof = true;
	else
		model_step(ev);
	if (ev->kind == SESSION_IN_GONE)
		w->first = w->count;
	pump();
}

static void pass(int64_t ms)
{
	const struct session_event ev = { .kind = SESSION_IN_TIMEOUT };

	w->env.now_ms += ms;
	if (w->env.now_ms >= w->s.deadline_ms)
		model_tell(&ev);
}

/* ---- running ---- */

static void say_as_client(const struct move *m, long cut, size_t *said)
{
	size_t at = 0;

	if (cut == CUT_EVERYWHERE) {
		while (at < m->len)
			model_feed(m->text + at++, 1);
	} else if (cut > 0 && (size_t)cut > *said &&
		   (size_t)cut < *said + m->len) {
		at = (size_t)cut - *said;
		model_feed(m->text, at);
		model_feed(m->text + at, m->len - at);
	} else {
		model_feed(m->text, m->len);
	}
	*said += m->len;
}

/* Is this act, of acts as words, what a backend reads? */
static bool is_for_backend(const char *act, size_t len)
{
	return (act[0] >= 'A' && act[0] <= 'Z') ||
	       (len == 4 && memcmp(act, "quit", 4) == 0) ||
	       (len == 4 && memcmp(act, "keep", 4) == 0) ||
	       (len == 5 && memcmp(act, "reset", 5) == 0);
}

/* Keep the acts that no backend reads. */
static size_t keep_ours(const char *acts, size_t len, char *to)
{
	size_t kept = 0;
	size_t n;

	for (size_t at = 0; at < len; at += n + 2) {
		const char *end = memmem(acts + at, len - at, "; ", 2);

		n = end != NULL ? (size_t)(end - acts) - at : len - at;
		if (is_for_backend(acts + at, n))
			continue;
		memcpy(to + kept, acts + at, n);
		kept += n;
		to[kept++] = ';';
	}
	return kept;
}

static bool is_as_written(const struct move *m, const char *acts, size_t len,
			  bool reordered)
{
	char want[1024], have[1024];
	size_t want_len = strlen(m->text);

	if (!reordered)
		return want_len == len && memcmp(m->text, acts, len) == 0;
	assert_true(want_len < sizeof(want));
	assert_true(len < sizeof(have));
	want_len = keep_ours(m->text, want_len, want);
	len = keep_ours(acts, len, have);
	return want_len == len && memcmp(want, have, len) == 0;
}

void model_expect(const struct move *m, long cut)
{
	/* The last "; " is not written in tables. */
	size_t len = w->acts_len >= 2 ? w->acts_len - 2 : 0;
	bool reordered = w->ahead_talk && cut != CUT_NOWHERE;

	if (!is_as_written(m, w->acts, len, reordered)) {
		print_error("%s (cut %ld)\n want: %s\n have: %.*s\n", w->name,
			    cut, m->text, (int)len, w->acts);
		w->surprises++;
	}
	w->acts_len = 0;
}

void model_move(const struct move *m, long cut, size_t *said)
{
	switch (m->kind) {
	case CLIENT:
		say_as_client(m, cut, said);
		return;
	case EVENT:
		model_tell(&m->event);
		return;
	case CLOCK:
		pass(m->ms);
		return;
	case EXPECT:
		model_expect(m, cut);
		return;
	case BODY:
		if (w->body_len != m->len ||
		    memcmp(w->body, m->text, m->len) != 0) {
			print_error("%s (cut %ld): another body\n", w->name,
				    cut);
			w->surprises++;
		}
		w->body_len = 0;
		return;
	case SKIP:
		w->acts_len = 0;
		w->body_len = 0;
		return;
	case STRESS:
		w->env.stressed = m->ms != 0;
		session_stress(&w->s, &w->env);
		return;
	case DRAINING:
		w->env.draining = true;
		return;
	case MEMORY:
		w->memory = (size_t)m->ms;
		return;
	case UNHELD:
		w->s.unheld = true;
		return;
	case END:
		return;
	}
}

/* The same to a backend: all of it, if it took the MAIL. */
static bool reads_the_same(const struct conn *whole, const struct conn *cut)
{
	assert_true(whole->len < sizeof(whole->text) - 64);
	return whole->taken == cut->taken && cut->len <= whole->len &&
	       (!whole->taken || cut->len == whole->len) &&
	       memcmp(whole->text, cut->text, cut->len) == 0;
}

static bool counts_the_same(void)
{
	bool same = true;

#define COUNTER(name, unit, help)                                              \
	same = same && stats_get(&uncut->stats, STATS_##name) ==               \
			       stats_get(&w->stats, STATS_##name);
	STATS_COUNTERS(COUNTER)
#undef COUNTER
	return same;
}

/* However the octets were cut, an "ahead" dialogue comes to the same end. */
static bool ends_the_same(void)
{
	const struct session *a = &uncut->s;
	const struct session *b = &w->s;
	bool same = uncut->bindings == w->bindings;

	assert_true(uncut->bindings <= CONNS_MAX);
	for (unsigned i = 0; same && i < w->bindings; i++)
		same = reads_the_same(&uncut->conns[i], &w->conns[i]);
	return same && a->state == b->state &&
	       a->transaction == b->transaction && a->due == b->due &&
	       a->bound == b->bound && a->errors == b->errors &&
	       a->deadline_ms == b->deadline_ms && a->reason == b->reason &&
	       a->message.rcpts == b->message.rcpts &&
	       a->message.rcpts_ok == b->message.rcpts_ok &&
	       a->message.tries == b->message.tries && counts_the_same();
}

/* Whether all went as written. */
static bool run(const struct talk *t, long cut)
{
	size_t said = 0;
	bool good;

	model_open(t);
	for (const struct move *m = t->moves; m->kind != END; m++)
		model_move(m, cut, &said);
	if (t->ahead && cut == CUT_NOWHERE) {
		assert_true(w->sent_ahead > 0);
		memcpy(uncut, w, sizeof(*w));
	} else if (t->ahead && !ends_the_same()) {
		print_error("%s (cut %ld): another end\n", w->name, cut);
		w->surprises++;
	}
	good = w->surprises == 0;
	model_close();
	return good;
}

static long octets_of(const struct talk *t)
{
	size_t octets = 0;

	for (const struct move *m = t->moves; m->kind != END; m++)
		octets += m->kind == CLIENT ? m->len : 0;
	return (long)octets;
}

void model_run_all(const struct talk *talks, size_t count)
{
	unsigned bad = 0;

	for (size_t i = 0; i < count; i++) {
		const struct talk *t = &talks[i];
		long octets = octets_of(t);
		bool good = run(t, CUT_NOWHERE);

		if (good && !t->whole_only)
			good = run(t, CUT_EVERYWHERE);
		for (long cut = 1;
		     good && !t->whole_only && cut < octets && cut < 1500;
		     cut++)
			good = run(t, cut);
		bad += good ? 0 : 1;
	}
	assert_int_equal(bad, 0);
}

void model_go_to(const struct talk *place)
{
	model_open(place);
	for (const struct move *m = place->moves; m->kind != END; m++)
		model_move(m, CUT_NOWHERE, &(size_t){ 0 });
	w->acts_len = 0;
}

/* ---- every event in every state ---- */

static const struct move words[] = {
	C("\r\n"),
	C("EHLO c\r\n"),
	C("MAIL FROM:<a@b>\r\n"),
	C("RCPT TO:<c@d>\r\n"),
	C("DATA\r\n"),
	C(ENVELOPE),
	C(ENVELOPE "x\r\n.\r\n"),
	C("x\r\n.\r\n"),
	C("\n"),
	C("BDAT 2\r\nab"),
	C("BDAT 2 LAST\r\nab"),
	C("BDAT 0 LAST\r\n"),
	C("BDAT 9\r\n"),
	C("BDAT x\r\n"),
	C("RSET\r\n"),
	C("NOOP\r\n"),
	C("QUIT\r\n"),
	C("STARTTLS\r\n"),
	C("STARTTLS\r\nRSET\r\n"),
	C("AUTH PLAIN " SECRET "\r\n"),
	C("AUTH LOGIN\r\n" SECRET "\r\n"),
	C(SECRET "\r\n"),
	C("*\r\n"),
	C("\026\003"),
	C("GET / HTTP/1.0\r\n"),
	C(A500 A500),
	AFTER(100),
	AFTER(2000),
	DO(CROWDED),
	{ .kind = MEMORY },
	{ .kind = UNHELD },
	AFTER(100000),
	AFTER(400000),
	OVER,
	GONE,
	ADMIT,
	DO(DRAIN),
	DO(TIMEOUT),
	SECURED,
	INSECURE,
	SAID(REFUSED, TCP, OK, 0, "421 4.7.0 no\r\n"),
	BOUND,
	BOUND_POOR,
	BOUND_AGAIN,
	BOUND_TRACED,
	DO_WITH(BOUND, .ext = 0),
	UNBOUND(TCP, MAYBE),
	GIVEN_UP(GREET, BUSY),
	GREETED(POLICY, 554),
	GREETED(POLICY, 421),
	LOST,
};

enum { WORDS = sizeof(words) / sizeof(words[0]) };

enum { CODES = 8, STAGES = 6 };
enum { REPLIES = CODES * 2 * (BUSY_CLASSES - 1) * STAGES };

/* One of all the replies there are, good and bad, asked for or not. */
static struct session_event any_reply(unsigned n)
{
	static const char *const texts[] = {
		"250 ok\r\n",       "354 go\r\n", "421-no\r\n421 no\r\n",
		"451 4.3.0 no\r\n", "550 no\r\n", "334 \r\n",
		"235 yes\r\n",      "535 no\r\n",
	};
	static const unsigned codes[CODES] = { 250, 354, 421, 451,
					       550, 334, 235, 535 };
	static const enum busy_stage stages[STAGES] = {
		BUSY_STAGE_MAIL, BUSY_STAGE_RCPT, BUSY_STAGE_DATA,
		BUSY_STAGE_EOD,  BUSY_STAGE_AUTH, BUSY_STAGE_IDLE,
	};
	unsigned which = n % CODES;
	bool good = codes[which] < 400;
	struct session_event ev = {
		.kind = n / CODES % 2 ? SESSION_IN_EARLY : SESSION_IN_REPLY,
		.code = codes[which],
		.data = texts[which],
		.len = strlen(texts[which]),
	};

	ev.class = good ? BUSY_OK
			: (enum busy_class)(BUSY_BUSY +
					    n / (2 * CODES) %
						    (BUSY_CLASSES - 1));
	ev.stage = stages[n / (2 * CODES) / (BUSY_CLASSES - 1) % STAGES];
	return ev;
}

/* One word or reply there, and then the end of it all. */
static void say_one(const struct talk *place, unsigned n, unsigned *seen)
{
	struct session_event ev;

	model_go_to(place);
	*seen |= 1u << w->s.state;
	w->env.draining = n % 3 == 0;
	if (n < WORDS) {
		model_move(&words[n], CUT_NOWHERE, &(size_t){ 0 });
	} else {
		ev = any_reply(n - WORDS);
		model_tell(&ev);
	}
	model_tell(&(struct session_event){ .kind = SESSION_IN_LOST });
	model_tell(&(struct session_event){ .kind = SESSION_IN_GONE });
	if (session_is_binding(&w->s))
		model_tell(
			&(struct session_event){ .kind = SESSION_IN_UNBOUND });
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->begun, w->logged);
	model_close();
}

unsigned model_every_event(const struct talk *places, size_t count)
{
	unsigned seen = 0;

	for (size_t p = 0; p < count; p++) {
		for (unsigned n = 0; n < WORDS + REPLIES; n++)
			say_one(&places[p], n, &seen);
	}
	return seen;
}

/* ---- random walks ---- */

static uint64_t dice;

static unsigned roll(unsigned sides)
{
	dice = dice * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (unsigned)(dice >> 33) % sides;
}

/* What a backend that knows its trade would say now. */
static struct session_event sensible_reply(void)
{
	const struct session *s = &w->s;
	bool data = s->due == 1 && (s->state == SESSION_HANDOVER ||
				    (s->state == SESSION_DATA && !s->own_data));
	bool busy = s->state == SESSION_FINAL && roll(4) == 0;
	struct session_event ev = any_reply(data ? 1 : busy ? 3 : 0);

	if (s->state == SESSION_AUTH)
		ev = any_reply(roll(4) == 0 ? 7 : 5 + roll(2));
	ev.stage = BUSY_STAGE_RCPT;
	if (data || (s->counting && (s->state == SESSION_BODY || s->due > 1)))
		ev.stage = BUSY_STAGE_DATA;
	if (s->state == SESSION_FINAL && s->due == 1)
		ev.stage = BUSY_STAGE_EOD;
	if (s->state == SESSION_MAIL || (s->state == SESSION_HANDOVER &&
					 s->due == 1 + s->message.rcpts_ok + 1))
		ev.stage = BUSY_STAGE_MAIL;
	if (s->clearing)
		ev.stage = BUSY_STAGE_IDLE;
	if (s->state == SESSION_AUTH)
		ev.stage = BUSY_STAGE_AUTH;
	return ev;
}

/* What a client that means well would say next. */
static void random_sense(void)
{
	switch (w->s.state) {
	case SESSION_COMMAND:
		if (w->listener.auth != CONFIG_AUTH_NONE && !w->s.authed &&
		    roll(3) == 0)
			model_feed("AUTH PLAIN " SECRET "\r\n", 21);
		else if (w->listener.tls == CONFIG_TLS_REQUIRED &&
			 !w->s.secured)
			model_feed("STARTTLS\r\n", 10);
		else if (w->s.helo_len == 0)
			model_feed("EHLO c\r\n", 8);
		else if (w->s.transaction != SESSION_MAIL_OPEN && roll(2) == 0)
			model_feed(ENVELOPE, sizeof(ENVELOPE) - 1);
		else if (w->s.transaction != SESSION_MAIL_OPEN)
			model_feed("MAIL FROM:<a@b>\r\n", 17);
		else if (w->s.message.rcpts == 0 || roll(3) == 0)
			model_feed("RCPT TO:<c@d>\r\n", 15);
		else if (w->s.message.chunked || roll(2) == 0)
			model_feed("BDAT 2 LAST\r\nab", 15);
		else
			model_feed("DATA\r\n", 6);
		return;
	case SESSION_BODY:
		if (w->s.holding && roll(3) == 0)
			pass(1000);
		else if (w->s.counting && roll(3) == 0)
			model_feed("\n.\r", 3);
		else if (roll(3) == 0)
			model_feed("x\r\n", 3);
		else
			model_feed("x\r\n.\r\n", 6);
		return;
	case SESSION_CHUNK:
		model_feed("abcdefghi", (size_t)(w->s.chunk_left % 10));
		return;
	case SESSION_HANDSHAKE:
		model_tell(
			&(struct session_event){ .kind = SESSION_IN_SECURED });
		return;
	case SESSION_AUTH:
		model_feed(SECRET "\r\n", 10);
		return;
	case SESSION_GREETING:
	case SESSION_BINDING:
	case SESSION_MAIL:
	case SESSION_DATA:
	case SESSION_HANDOVER:
	case SESSION_FINAL:
	case SESSION_RELAY:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return;
	}
}

static void random_walk(void)
{
	for (unsigned i = 0; i < 400 && w->s.state != SESSION_CLOSED; i++) {
		unsigned n = roll(WORDS);
		struct session_event ev;

		if (session_is_binding(&w->s) && roll(2) == 0) {
			model_tell(&(struct session_event){
				.kind = SESSION_IN_BOUND,
				.ext = ALL_EXT,
				.auth = ALL_AUTH,
				.pipelining = roll(4) != 0,
				.trace_len = roll(3) == 0 ? 50 : 0,
				.reused = roll(3) == 0 });
		} else if (w->s.due > 0 && roll(2) == 0) {
			ev = roll(4) ? sensible_reply()
				     : any_reply(roll(REPLIES));
			model_tell(&ev);
		} else if (w->first == w->count && roll(8) != 0) {
			random_sense();
		} else if (words[n].kind == CLIENT && roll(2) == 0) {
			model_move(&words[n], CUT_EVERYWHERE, &(size_t){ 0 });
		} else if (words[n].kind == CLIENT || roll(8) == 0) {
			model_move(&words[n], CUT_NOWHERE, &(size_t){ 0 });
		} else if (roll(20) == 0) {
			w->env.draining = true;
		}
	}
}

static void walk_once(const struct knobs *how, unsigned seed,
		      struct walked *all)
{
	const struct talk t = { .name = "walk", .knobs = *how };

	dice = seed;
	model_open(&t);
	model_tell(&(struct session_event){ .kind = SESSION_IN_ADMITTED });
	model_feed("EHLO c\r\n", 8);
	random_walk();
	if (w->most_acts > all->longest)
		all->longest = w->most_acts;
	all->ahead += w->sent_ahead;
	for (unsigned i = 0; i < STATS_COUNT; i++)
		all->counts[i] += stats_get(&w->stats, (enum stats_index)i);
	model_close();
}

struct walked model_walk(const struct knobs *ways, size_t count, unsigned walks)
{
	struct walked all = { 0 };

	for (unsigned seed = 0; seed < walks; seed++)
		walk_once(&ways[seed % count], seed, &all);
	return all;
}

/* ---- tests/data/smuggling.tsv ---- */

static size_t unescape(const char *from, size_t len, char *to)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		if (from[i] != '\\') {
			to[n++] = from[i];
			continue;
		}
		i++;
		if (from[i] >= '0' && from[i] <= '3') {
			to[n++] = (char)((from[i] - '0') * 64 +
					 (from[i + 1] - '0') * 8 +
					 (from[i + 2] - '0'));
			i += 2;
		} else {
			to[n++] = "\r\n\t"[from[i] == 'r'   ? 0
					   : from[i] == 'n' ? 1
							    : 2];
		}
	}
	return n;
}

unsigned model_vectors(void (*each)(const struct vector *v))
{
	FILE *file = fopen("tests/data/smuggling.tsv", "r");
	char row[512], octets[128];
	unsigned rows = 0;

	assert_non_null(file);
	while (fgets(row, sizeof(row), file) != NULL) {
		const char *bytes = strchr(row, '\t');
		const char *must = bytes ? strchr(bytes + 1, '\t') : NULL;
		long number = strtol(row + 1, NULL, 10);
		size_t len;

		if (row[0] != 'V' || number > 22 || must == NULL)
			continue;
		len = unescape(bytes + 1, (size_t)(must - bytes - 1), octets);
		row[3] = '\0';
		each(&(struct vector){
			.id = row,
			.octets = { .kind = CLIENT,
				    .text = octets,
				    .len = len },
			.ends = strncmp(must + 1, "end", 3) == 0,
			.refused = strstr(must, "refuse the message") != NULL,
		});
		rows++;
	}
	assert_int_equal(fclose(file), 0);
	return rows;
}
