#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/session.h"
#include "proxy/upstream.h"

/*
 * Dialogues: what the client says and what befalls the backend, and what the
 * session answers to it, as one line of acts.  Each is run with the client's
 * octets whole, cut in two at every place, and one by one, and the acts must
 * be the same.  A model of the worker watches every single step.
 *
 * One thing depends on how octets come: what stands behind MAIL in one buffer
 * is sent ahead of MAIL's reply.  So in dialogues "ahead" the order of the two
 * sides' acts may differ between the runs, but neither what the client reads
 * by each EXPECT, nor what a backend reads that takes the MAIL, nor the end.
 */

enum kind {
	END,
	CLIENT,  /* octets of the client */
	EVENT,   /* .event */
	CLOCK,   /* .ms pass, and TIMEOUT if the deadline has come */
	EXPECT,  /* the acts since the last EXPECT or SKIP */
	BODY,    /* the octets of bodies since the last BODY or SKIP */
	SKIP,    /* forget acts and body */
	STRESS,  /* .ms: on or off */
	DRAINING /* weir shuts down; no event yet */
};

struct move {
	enum kind kind;
	const char *text;
	size_t len;
	int64_t ms;
	struct session_event event;
};

struct knobs {
	int64_t tarpit_ms, delay_ms, session_ms;
	uint32_t max_errors, max_messages, max_recipients, tries;
	uint32_t message_rate, recipient_rate;
	uint64_t size;
	unsigned offer; /* extensions of the farm; 0: all */
	enum config_early_talkers early;
};

struct talk {
	const char *name;
	const struct move *moves;
	struct knobs knobs;
	bool whole_only; /* what was pipelined cannot be told from late words */
	bool ahead;      /* lines are sent ahead of MAIL's reply */
};

/* ---- the language of the dialogues ---- */

#define C(octets)                                                              \
	{                                                                      \
		.kind = CLIENT, .text = (octets), .len = sizeof(octets) - 1    \
	}
#define X(acts)                                                                \
	{                                                                      \
		.kind = EXPECT, .text = (acts)                                 \
	}
#define B(octets)                                                              \
	{                                                                      \
		.kind = BODY, .text = (octets), .len = sizeof(octets) - 1      \
	}
#define AFTER(passed)                                                          \
	{                                                                      \
		.kind = CLOCK, .ms = (passed)                                  \
	}
#define DO_WITH(what, ...)                                                     \
	{                                                                      \
		.kind = EVENT, .event = {                                      \
			.kind = SESSION_IN_##what,                             \
			__VA_ARGS__                                            \
		}                                                              \
	}
#define DO(what)                                                               \
	{                                                                      \
		.kind = EVENT, .event = {.kind = SESSION_IN_##what }           \
	}
#define SAID(what, in, of, digits, words)                                      \
	DO_WITH(what, .stage = BUSY_STAGE_##in, .class = BUSY_##of,            \
		.code = (digits), .data = (words), .len = sizeof(words) - 1)
#define R(in, of, digits) SAID(REPLY, in, of, digits, #digits " words\r\n")
#define R2(in, of, digits)                                                     \
	SAID(REPLY, in, of, digits, #digits "-two\r\n" #digits " lines\r\n")
#define EARLY(of, digits) SAID(EARLY, IDLE, of, digits, #digits " words\r\n")
#define ALL_EXT           (SMTP_EXT_RELAYED | SMTP_EXT_PIPELINING)
#define BOUND             DO_WITH(BOUND, .ext = ALL_EXT, .pipelining = true)
#define BOUND_POOR        DO_WITH(BOUND, .ext = SMTP_EXT_RELAYED)
#define BOUND_AGAIN                                                            \
	DO_WITH(BOUND, .ext = ALL_EXT, .pipelining = true, .reused = true)
#define UNBOUND(in, of)                                                        \
	DO_WITH(UNBOUND, .stage = BUSY_STAGE_##in, .class = BUSY_##of,         \
		.more = true)
#define GIVEN_UP(in, of)                                                       \
	DO_WITH(UNBOUND, .stage = BUSY_STAGE_##in, .class = BUSY_##of)
#define GREETED(of, digits)                                                    \
	SAID(UNBOUND, GREET, of, digits, "words of the greeting")
#define LOST  DO_WITH(LOST, .class = BUSY_SICK)
#define OVER  DO(EOF)
#define GONE  DO(GONE)
#define ADMIT DO(ADMITTED)

#define HELLO                                                                  \
	ADMIT, C("EHLO c.test\r\n"),                                           \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_MAIL                                                                \
	HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, OK, 250),              \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_RCPT                                                                \
	TO_MAIL, C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250),                     \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define TO_DATA                                                                \
	TO_RCPT, C("DATA\r\n"), R(DATA, OK, 354),                              \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define GROUP                                                                  \
	HELLO,                                                                 \
		C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"      \
		  "DATA\r\n"),                                                 \
		BOUND, R(MAIL, OK, 250),                                       \
	{                                                                      \
		.kind = SKIP                                                   \
	}

#define TALK(title, ...)                                                       \
	{                                                                      \
		.name = (title), .moves = (const struct move[])                \
		{                                                              \
			__VA_ARGS__,                                           \
			{                                                      \
				.kind = END                                    \
			}                                                      \
		}                                                              \
	}
#define TALK_WITH(title, how, ...)                                             \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = how                                                   \
	}
#define TALK_WHOLE(title, ...)                                                 \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true                                             \
	}
#define TALK_AHEAD(title, ...)                                                 \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.ahead = true                                                  \
	}
#define TALK_AHEAD_WITH(title, how, ...)                                       \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.knobs = how, .ahead = true                                    \
	}
#define TALK_AHEAD_WHOLE(title, ...)                                           \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true, .ahead = true                              \
	}
#define HOW(...)                                                               \
	{                                                                      \
		__VA_ARGS__                                                    \
	}
#define RUN(table) run_all(table, sizeof(table) / sizeof((table)[0]))

/* ---- the world around one session ---- */

enum { PIECES_MAX = 70000, ACTS_TEXT_MAX = 16384, BODY_MAX = 200000 };
enum { CONNS_MAX = 6, CONN_TEXT_MAX = 512 };

/* What one backend connection reads for one MAIL. */
struct conn {
	bool taken; /* MAIL was */
	size_t len;
	char text[CONN_TEXT_MAX];
};

struct world {
	struct session s;
	struct session_env env;
	struct session_plan plan;
	struct config_listener listener;
	struct stats stats;
	struct admission *admission;
	char *line, *mail; /* of their very size, for the sanitizer */
	/* the client's octets not yet consumed, in pieces */
	const char *pieces[PIECES_MAX];
	size_t lens[PIECES_MAX];
	size_t first, count;
	bool eof, eof_told, gone;
	/* what was done */
	char acts[ACTS_TEXT_MAX];
	size_t acts_len;
	char body[BODY_MAX];
	size_t body_len;
	/* the worker's view */
	bool bound, binding, closed;
	unsigned due, begun, logged, ends_sent, ends_good, most_acts;
	bool pipelining;
	size_t ahead;        /* octets of the first piece sent ahead */
	unsigned sent_ahead; /* lines, ever */
	unsigned bindings;   /* conns[] holds the last ones */
	struct conn conns[CONNS_MAX];
	unsigned surprises; /* acts that were not expected */
	const char *name;
	bool ahead_talk;
};

static struct world *w;
static struct world *uncut; /* how an "ahead" dialogue ended, octets whole */
static struct config *config;
static const uint8_t key[ADMISSION_KEY_LEN] = { 7 };

static void world_open(const struct talk *t)
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
	memset(w, 0, offsetof(struct world, pieces));
	memset(&w->first, 0, sizeof(*w) - offsetof(struct world, first));
	memset(config, 0, sizeof(*config));
	w->name = t->name;
	w->ahead_talk = t->ahead;
	mem = aligned_alloc(ADMISSION_ALIGN, admission_size(&limits));
	w->line = malloc(SESSION_LINE_MAX);
	w->mail = malloc(SESSION_MAIL_MAX);
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
	config->farm.tries = k->tries ? k->tries : 3;
	config->farm.budget_ms = 20000;
	w->listener.greeting_delay_ms = k->delay_ms;
	w->listener.early_talkers = k->early;
	w->listener.size = k->size;
	w->env = (struct session_env){
		.config = config,
		.admission = w->admission,
		.stats = &w->stats,
		.offer_ext = k->offer ? k->offer : SMTP_EXT_RELAYED,
		.now_ms = 1000000,
	};
	assert_true(cidr_addr_parse("192.0.2.1", 9, &addr));
	session_init(&w->s, &w->listener, w->line, w->mail, w->env.now_ms);
	assert_int_equal(admission_open(w->admission, &addr, w->env.now_ms,
					&w->s.ticket),
			 ADMISSION_ACCEPT);
}

static void world_close(void)
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

static void on_say(const struct session_act *act, enum session_state before)
{
	assert_true(act->len > 0);
	put_reply("say", act->text, act->len);
	if (act->times > 1)
		put(" x%u", act->times);
	assert_true(act->times <= UPSTREAM_PIPELINE_MAX);
	/* Promise 1: the end of data has no 2xx of our own. */
	if (before == SESSION_BODY || before == SESSION_CHUNK ||
	    before == SESSION_FINAL || before == SESSION_DATA)
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

static void on_command(const struct session_act *act,
		       const struct session_event *ev,
		       enum session_state before)
{
	assert_true(w->bound);
	assert_true(act->len >= 6);
	assert_memory_equal(act->text + act->len - 2, "\r\n", 2);
	/* The text lives as long as the plan. */
	assert_true(lies_in(act->text, act->len, w->mail, SESSION_MAIL_MAX) ||
		    lies_in(act->text, act->len, w->line, SESSION_LINE_MAX) ||
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
	if (act->stage == BUSY_STAGE_EOD)
		w->ends_sent++;
}

static void on_body(const struct session_act *act,
		    const struct session_event *ev)
{
	assert_true(w->bound);
	assert_int_equal(ev->kind, SESSION_IN_OCTETS);
	assert_int_equal(act->len, w->plan.consumed);
	if (ev->data != NULL && w->body_len + act->len <= sizeof(w->body))
		memcpy(w->body + w->body_len, ev->data, act->len);
	w->body_len += act->len;
	if (act->stage != BUSY_STAGE_EOD)
		return;
	put("end; ");
	tell_backend("end", 3);
	w->due++;
	w->ends_sent++;
}

static void on_part(const char *how)
{
	put("%s", how);
	/* How one that refused MAIL is left depends on what it was sent. */
	if (w->bound && w->conns[(w->bindings - 1) % CONNS_MAX].taken)
		tell_backend(how, strlen(how));
	w->bound = false;
	w->binding = false;
	w->due = 0;
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
		assert_false(w->bound);
		w->binding = true;
		put("bind");
		break;
	case SESSION_DO_COMMAND:
		on_command(act, ev, before);
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
	case SESSION_DO_LOG:
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

/* What is true between any two steps. */
static void check_rest(void)
{
	const struct session *s = &w->s;
	bool timed = s->deadline_ms != INT64_MAX;

	assert_int_equal(s->bound, w->bound);
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
	assert_int_equal(w->begun - w->logged,
			 s->transaction != SESSION_NO_MAIL ||
				 s->state == SESSION_BINDING ||
				 s->state == SESSION_MAIL);
	assert_int_equal(s->state == SESSION_CLOSED, w->closed);
	assert_true(s->line_len <= SESSION_LINE_MAX);
	assert_true(s->message.tries <= config->farm.tries);
	switch (s->state) {
	case SESSION_COMMAND:
		/* Somebody's time runs: the client's or the backend's. */
		assert_int_equal(timed, s->due == 0);
		assert_int_equal(s->bound, s->transaction == SESSION_MAIL_OPEN);
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
		assert_true(timed);
		assert_int_equal(s->due, 0);
		assert_int_equal(s->swallow, !s->bound);
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
	case SESSION_STATES:
		break;
	}
}

/* A backend, or one more message for it. */
static void on_bound(const struct session_event *ev)
{
	w->bound = true;
	w->pipelining = ev->pipelining;
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

static void step(const struct session_event *ev)
{
	enum session_state before = w->s.state;
	bool replied = ev->kind == SESSION_IN_REPLY && w->s.bound &&
		       w->s.due > 0;

	/* What the worker does before it tells. */
	if (ev->kind == SESSION_IN_BOUND && before == SESSION_BINDING)
		on_bound(ev);
	if (replied)
		w->due--;
	memset(&w->plan, 0xa5, sizeof(w->plan));
	session_step(&w->s, &w->env, ev, &w->plan);
	assert_true(w->plan.count <= SESSION_ACTS_MAX);
	if (w->plan.count > w->most_acts)
		w->most_acts = w->plan.count;
	if (ev->kind == SESSION_IN_LOST && w->bound) {
		w->bound = false;
		w->due = 0;
	}
	if (before == SESSION_COMMAND && w->s.state == SESSION_BINDING)
		w->begun++;
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
					    .data = "" };

		if (w->first < w->count) {
			ev.data = w->pieces[w->first];
			ev.len = w->lens[w->first];
		} else if (!w->s.line_ready) {
			break;
		}
		step(&ev);
		if (w->plan.count == 0 && w->plan.consumed == 0)
			break;
	}
	if (w->s.state == SESSION_CLOSED)
		w->first = w->count;
	if (w->eof && !w->eof_told && w->first == w->count &&
	    !w->s.line_ready) {
		const struct session_event ev = { .kind = SESSION_IN_EOF };

		w->eof_told = true;
		step(&ev);
	}
}

static void feed(const char *text, size_t len)
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

static void tell(const struct session_event *ev)
{
	if (ev->kind == SESSION_IN_EOF)
		w->eof = true;
	else
		step(ev);
	if (ev->kind == SESSION_IN_GONE)
		w->first = w->count;
	pump();
}

static void pass(int64_t ms)
{
	const struct session_event ev = { .kind = SESSION_IN_TIMEOUT };

	w->env.now_ms += ms;
	if (w->env.now_ms >= w->s.deadline_ms)
		tell(&ev);
}

/* ---- running ---- */

enum { CUT_NOWHERE = -1, CUT_EVERYWHERE = -2 };

static void say_as_client(const struct move *m, long cut, size_t *said)
{
	size_t at = 0;

	if (cut == CUT_EVERYWHERE) {
		while (at < m->len)
			feed(m->text + at++, 1);
	} else if (cut > 0 && (size_t)cut > *said &&
		   (size_t)cut < *said + m->len) {
		at = (size_t)cut - *said;
		feed(m->text, at);
		feed(m->text + at, m->len - at);
	} else {
		feed(m->text, m->len);
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

static void expect(const struct move *m, long cut)
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

static void move_on(const struct move *m, long cut, size_t *said)
{
	switch (m->kind) {
	case CLIENT:
		say_as_client(m, cut, said);
		return;
	case EVENT:
		tell(&m->event);
		return;
	case CLOCK:
		pass(m->ms);
		return;
	case EXPECT:
		expect(m, cut);
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

	world_open(t);
	for (const struct move *m = t->moves; m->kind != END; m++)
		move_on(m, cut, &said);
	if (t->ahead && cut == CUT_NOWHERE) {
		assert_true(w->sent_ahead > 0);
		memcpy(uncut, w, sizeof(*w));
	} else if (t->ahead && !ends_the_same()) {
		print_error("%s (cut %ld): another end\n", w->name, cut);
		w->surprises++;
	}
	good = w->surprises == 0;
	world_close();
	return good;
}

static long octets_of(const struct talk *t)
{
	size_t octets = 0;

	for (const struct move *m = t->moves; m->kind != END; m++)
		octets += m->kind == CLIENT ? m->len : 0;
	return (long)octets;
}

static void run_all(const struct talk *talks, size_t count)
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

/* ---- order of commands ---- */

static const struct talk good[] = {
	TALK("a message from greeting to QUIT", ADMIT, X("say 220"),
	     C("EHLO c.test\r\n"), X("say 250"), C("MAIL FROM:<a@b>\r\n"),
	     X("bind"), BOUND, X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250"), C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250),
	     X("RCPT TO:<c@d>; relay 250"), C("DATA\r\n"), R(DATA, OK, 354),
	     X("DATA; relay 354"), C("hi\r\n.\r\n"), X("end"), B("hi\r\n.\r\n"),
	     R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250"),
	     C("QUIT\r\n"), X("say 221 2.0.0; close quit")),
	TALK("one group, with QUIT behind it, stays in order", GROUP, X(""),
	     R(RCPT, OK, 250), R(RCPT, POLICY, 550), R(DATA, OK, 354),
	     X("relay 250; relay 550; relay 354"), C("x\r\n.\r\nQUIT\r\n"),
	     X("end"), B("x\r\n.\r\n"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; say 221 2.0.0; close quit")),
	TALK("the next MAIL may stand right behind the final dot", TO_DATA,
	     C(".\r\nMAIL FROM:<x@y>\r\n"), X("end"), B(".\r\n"),
	     R(EOD, OK, 250), X("relay 250; keep; log EOD ok 250; bind"),
	     BOUND_AGAIN, X("MAIL FROM:<x@y>")),
	TALK("P6: all RCPTs refused, DATA refused, text behind it never runs",
	     HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<no@d>\r\nDATA\r\n"
	       "MAIL FROM:<c@d>\r\n.\r\n"),
	     BOUND, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, POLICY, 550),
	     R(DATA, POLICY, 554),
	     X("relay 550; relay 554; quit; log DATA policy 554; "
	       "say 554 5.5.0; close sync")),
	TALK("P7: RCPT refused, yet 354: a body that did not wait is refused",
	     HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<no@d>\r\nDATA\r\nbody\r\n"
	       ".\r\n"),
	     BOUND, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, POLICY, 550),
	     R(DATA, OK, 354),
	     X("relay 550; say 554 5.5.0; reset; log DATA ok 554; "
	       "close sync"),
	     B("")),
	TALK("P4: a command behind DATA is neither command nor body", TO_RCPT,
	     C("DATA\r\nRSET\r\n"), R(DATA, OK, 354),
	     X("DATA; say 554 5.5.0; reset; log DATA ok 554; close sync")),
	TALK_WHOLE("text behind a DATA that we refuse is not run", TO_MAIL,
		   C("DATA\r\nRSET\r\n.\r\n"),
		   X("say 503 5.5.1; say 554 5.5.0; quit; log DATA ok 554; "
		     "close sync")),
	TALK("a DATA that we refuse, with nothing behind it", TO_MAIL,
	     C("DATA\r\n"), X("say 503 5.5.1"), C("RCPT TO:<c@d>\r\n"),
	     X("RCPT TO:<c@d>")),
	TALK("P8: nothing is run behind QUIT", HELLO,
	     C("MAIL FROM:<a@b>\r\nQUIT\r\nRCPT TO:<b@c>\r\n"), BOUND,
	     R(MAIL, OK, 250),
	     X("bind; MAIL FROM:<a@b>; relay 250; quit; log IDLE ok 0; "
	       "say 221 2.0.0; close quit")),
	TALK_AHEAD("P9: pipelining that HELO did not offer", ADMIT,
		   C("HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"),
		   X("say 220; say 250; bind"), BOUND, R(MAIL, OK, 250),
		   X("MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 250")),
	TALK("NOOP waits for the replies before it", GROUP, LOST,
	     X("say 451 4.3.0 x3; log DATA sick 451"), C("NOOP\r\n"),
	     X("say 250 2.0.0")),
	TALK("NOOP and RSET in a group are answered in their turn", TO_MAIL,
	     C("RCPT TO:<a@b>\r\nNOOP\r\nRCPT TO:<c@d>\r\nRSET\r\n"),
	     X("RCPT TO:<a@b>"), R(RCPT, OK, 250),
	     X("relay 250; say 250 2.0.0; RCPT TO:<c@d>"), R(RCPT, BUSY, 452),
	     X("relay 452; quit; log IDLE ok 0; say 250 2.0.0")),
	TALK("without PIPELINING the backend gets one command at a time", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"
	       "DATA\r\n"),
	     BOUND_POOR, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, OK, 250),
	     X("relay 250; RCPT TO:<e@f>"), R(RCPT, OK, 250),
	     X("relay 250; DATA"), R(DATA, OK, 354), X("relay 354")),
	TALK("a second MAIL is an error, the first stands", TO_MAIL,
	     C("MAIL FROM:<x@y>\r\nRCPT TO:<c@d>\r\n"),
	     X("say 503 5.5.1; RCPT TO:<c@d>")),
	TALK("EHLO in a transaction forgets it", TO_RCPT, C("EHLO d\r\n"),
	     X("quit; log IDLE ok 0; say 250"), C("RCPT TO:<c@d>\r\n"),
	     X("say 503 5.5.1")),
	TALK("MAIL after DATA was refused begins anew", TO_RCPT, C("DATA\r\n"),
	     R(DATA, POLICY, 554),
	     X("DATA; relay 554; quit; log DATA policy 554"),
	     C("MAIL FROM:<x@y>\r\n"), X("bind")),
	TALK("who gave up after all its RCPTs were refused is logged so",
	     TO_MAIL, C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550),
	     C("RSET\r\n"),
	     X("RCPT TO:<c@d>; relay 550; quit; log RCPT policy 550; "
	       "say 250 2.0.0")),
	TALK("commands out of order", ADMIT, { .kind = SKIP },
	     C("MAIL FROM:<a@b>\r\n"), X("say 503 5.5.1"), C("EHLO c\r\n"),
	     X("say 250"), C("RCPT TO:<a@b>\r\n"), X("say 503 5.5.1"),
	     C("DATA\r\n"), X("say 503 5.5.1"), C("VRFY x\r\n"),
	     X("say 252 2.5.0"), C("HELP\r\n"), X("say 214 2.0.0"),
	     C("EXPN x\r\n"), X("say 502 5.5.1"), C("STARTTLS\r\n"),
	     X("say 502 5.5.1")),
};

static void replies_keep_their_order(void **state)
{
	(void)state;
	RUN(good);
}

static const struct talk in_mail = TALK("", TO_MAIL);

static void no_more_is_pipelined_than_the_backend_conversation_holds(void **v)
{
	const struct session_event ok = { .kind = SESSION_IN_REPLY,
					  .stage = BUSY_STAGE_RCPT,
					  .code = 250,
					  .data = "250 ok\r\n",
					  .len = 8 };
	unsigned sent = 0;

	(void)v;
	world_open(&in_mail);
	for (const struct move *m = in_mail.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	for (unsigned i = 0; i < 500; i++)
		feed("RCPT TO:<c@d>\r\n", 15);
	assert_int_equal(w->s.due, UPSTREAM_PIPELINE_MAX);
	while (w->s.due > 0) {
		tell(&ok);
		sent++;
	}
	assert_int_equal(sent, 500);
	assert_int_equal(w->s.message.rcpts_ok, 500);
	world_close();
}

/* ---- BDAT ---- */

static const struct talk chunks[] = {
	TALK("chunks that are pipelined behind RCPT", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 3\r\nabcBDAT 4 LAST\r\n.\r\n.RSET\r\n"),
	     X("RCPT TO:<c@d>; BDAT 3; BDAT 4 LAST"), B("abc.\r\n."),
	     R(RCPT, OK, 250), R(DATA, OK, 250), R(EOD, OK, 250),
	     X("relay 250; relay 250; relay 250; keep; log EOD ok 250; "
	       "say 250 2.0.0")),
	TALK("BDAT 0 LAST ends a message", TO_RCPT, C("BDAT 0 LAST\r\n"),
	     X("BDAT 0 LAST"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250")),
	TALK("a chunk holds anything: only the count ends it", TO_RCPT,
	     C("BDAT 37 LAST\r\n\r\n.\r\nMAIL FROM:<a@example.test>\r\nRSET"),
	     X("BDAT 37 LAST"),
	     B("\r\n.\r\nMAIL FROM:<a@example.test>\r\nRSET"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250")),
	TALK("BDAT before MAIL: refused, its octets are no commands", HELLO,
	     C("BDAT 6\r\nRSET\r\nNOOP\r\n"),
	     X("say 503 5.5.1; say 250 2.0.0")),
	TALK("BDAT before RCPT: refused, and the next one too", TO_MAIL,
	     C("BDAT 6\r\nRSET\r\nBDAT 2 LAST\r\nxy"),
	     X("say 503 5.5.1; say 503 5.5.1; quit; log DATA ok 503"), B("")),
	TALK("no RCPT was good: no chunk goes to the backend", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 550),
	     C("BDAT 2 LAST\r\nxy"),
	     X("RCPT TO:<c@d>; relay 550; say 503 5.5.1; quit; "
	       "log DATA ok 503"),
	     B("")),
	TALK("a refused chunk stops those behind it", TO_RCPT,
	     C("BDAT 2\r\nxyBDAT 6\r\nQUIT\r\n"), X("BDAT 2; BDAT 6"),
	     R(DATA, POLICY, 552), R(DATA, OK, 250), X("relay 552; relay 250"),
	     C("BDAT 4 LAST\r\nlast"),
	     X("say 503 5.5.1; quit; log DATA ok 503"), C("RSET\r\n"),
	     X("say 250 2.0.0")),
	TALK("refused while the last one comes: its end never leaves", TO_RCPT,
	     C("BDAT 2\r\nxyBDAT 4 LAST\r\nla"), X("BDAT 2; BDAT 4 LAST"),
	     R(DATA, POLICY, 552), X("relay 552; reset"), C("stNOOP\r\n"),
	     X("say 503 5.5.1; log DATA policy 503; say 250 2.0.0")),
	TALK("the last one taken though one before it was refused: no 250",
	     TO_RCPT, C("BDAT 2\r\nxyBDAT 1 LAST\r\nz"), { .kind = SKIP },
	     R(DATA, POLICY, 552), R(EOD, OK, 250),
	     X("relay 552; reset; say 451 4.4.2; log EOD ok 451")),
	TALK("a chunk refused in its middle: the client hears at its end",
	     TO_RCPT, C("BDAT 4 LAST\r\nab"), { .kind = SKIP },
	     R2(EOD, POLICY, 552), X("reset"), C("cdNOOP\r\n"),
	     X("say 552; log EOD policy 552; say 250 2.0.0")),
	TALK("a 250 in the middle of a chunk is no reply to it", TO_RCPT,
	     C("BDAT 4 LAST\r\nab"), { .kind = SKIP }, R(EOD, OK, 250),
	     X("reset"), C("cd"), X("say 451 4.3.0; log EOD ok 451")),
	TALK("421 in the middle of a chunk, for itself", TO_RCPT,
	     C("BDAT 4\r\nab"), { .kind = SKIP }, R(DATA, DRAIN, 421),
	     X("reset"), C("cd"), X("say 451"), C("RSET\r\n"),
	     X("log EOD drain 451; say 250 2.0.0")),
	TALK("421 for an earlier command in the middle of a chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nBDAT 4\r\nab"),
	     { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.3.0"), C("cdRSET\r\n"),
	     X("say 451 4.3.0; log EOD drain 451; say 250 2.0.0")),
	TALK("421 about the client in the middle of a chunk is obeyed", TO_RCPT,
	     C("BDAT 4\r\nab"), { .kind = SKIP }, R(DATA, POLICY, 421),
	     X("reset"), C("cdRSET\r\n"),
	     X("say 421; log EOD policy 421; close backend_421")),
	TALK("the backend is lost in the middle of a chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 4\r\nab"), { .kind = SKIP }, LOST,
	     X("say 451 4.3.0"), C("cd"), X("say 451 4.3.0"),
	     C("BDAT 1\r\nxBDAT 1 LAST\r\ny"),
	     X("say 451 4.3.0; say 451 4.3.0; log EOD sick 451")),
	TALK("the backend is lost between chunks", TO_RCPT, C("BDAT 2\r\nab"),
	     R(DATA, OK, 250), { .kind = SKIP }, LOST, X(""),
	     C("BDAT 1 LAST\r\ny"), X("say 451 4.3.0; log TCP sick 451")),
	TALK("the backend is lost behind the last chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\ny"), { .kind = SKIP }, LOST,
	     X("say 451 4.4.2 x2; log EOD sick 451")),
	TALK("BDAT and DATA do not mix", TO_RCPT, C("BDAT 1\r\nx"),
	     R(DATA, OK, 250), { .kind = SKIP }, C("DATA\r\n"),
	     X("say 503 5.5.1"), C("RCPT TO:<x@y>\r\n"), X("say 503 5.5.1"),
	     C("BDAT 1 LAST\r\nx"), X("BDAT 1 LAST")),
	TALK("BINARYMIME wants BDAT", HELLO,
	     C("MAIL FROM:<a@b> BODY=BINARYMIME\r\n"), BOUND, R(MAIL, OK, 250),
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), { .kind = SKIP },
	     C("DATA\r\n"), X("say 503 5.5.1")),
	TALK("a size of more than 64 bits", TO_RCPT,
	     C("BDAT 18446744073709551616\r\n"),
	     X("say 501 5.5.4; quit; log IDLE ok 0; close lost_count")),
	TALK("a negative size", HELLO, C("BDAT -1\r\nRSET\r\n"),
	     X("say 501 5.5.4; close lost_count")),
	TALK("the greatest of sizes, and the end", TO_RCPT,
	     C("BDAT 18446744073709551615\r\nabc"), OVER,
	     X("BDAT 18446744073709551615; reset; log EOD ok 0; "
	       "abort client_closed"),
	     B("abc")),
	TALK_WITH("sizes that add up to more than allowed", HOW(.size = 5),
		  TO_RCPT, C("BDAT 3\r\nabc"), R(DATA, OK, 250),
		  { .kind = SKIP }, C("BDAT 18446744073709551615\r\nabc"),
		  X(""), GONE, X("reset; log DATA ok 552; abort client_reset")),
	TALK_WITH("a chunk too many, swallowed", HOW(.size = 5), TO_RCPT,
		  C("BDAT 3\r\nabcBDAT 3 LAST\r\ndef"), X("BDAT 3"),
		  R(DATA, OK, 250),
		  X("relay 250; say 552 5.3.4; quit; log DATA ok 552"),
		  B("abc")),
	TALK("the backend is lost while a refused chunk goes by", TO_MAIL,
	     C("BDAT 2\r\nx"), LOST, X(""), C("yRSET\r\n"),
	     X("say 503 5.5.1; log DATA ok 503; say 250 2.0.0")),
	TALK("V28c: four of five octets, then the end", TO_RCPT,
	     C("BDAT 5 LAST\r\nabcd"), OVER,
	     X("BDAT 5 LAST; reset; log EOD ok 0; abort client_closed")),
	TALK_WITH("CHUNKING that was not offered",
		  HOW(.offer = SMTP_EXT_8BITMIME | SMTP_EXT_BINARYMIME), HELLO,
		  C("BDAT 2\r\nxy"), X("say 502 5.5.1"),
		  C("MAIL FROM:<> BODY=BINARYMIME\r\n"), X("say 555 5.5.4")),
	TALK("a backend without PIPELINING gets chunks in turn", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1\r\nx"
	       "BDAT 1 LAST\r\ny"),
	     BOUND_POOR, R(MAIL, OK, 250), { .kind = SKIP }, R(RCPT, OK, 250),
	     X("relay 250; BDAT 1"), R(DATA, OK, 250),
	     X("relay 250; BDAT 1 LAST"), B("xy")),
	TALK_WITH("refused chunks are errors, and they are counted",
		  HOW(.max_errors = 1), HELLO, C("BDAT 1\r\nxBDAT 1\r\ny"),
		  X("say 503 5.5.1; say 421 4.7.0; close errors")),
};

static void chunks_are_counted_relayed_or_swallowed(void **state)
{
	(void)state;
	RUN(chunks);
}

/* ---- DATA ---- */

static const struct talk bodies[] = {
	TALK("an early 452 is told at the body's end", TO_DATA, C("some\r\n"),
	     EARLY(BUSY, 452), X("reset"), C("more\r\n.\r\nNOOP\r\n"),
	     X("say 452; log EOD busy 452; say 250 2.0.0")),
	TALK("an early 421 is 451 to the client, on each line", TO_DATA,
	     C("some\r\n"), SAID(EARLY, IDLE, DRAIN, 421, "421-a\r\n421 b\r\n"),
	     X("reset"), C("more\r\n.\r\n"), X("say 451; log EOD drain 451")),
	TALK("an early 421 about the client is passed and obeyed", TO_DATA,
	     C("some\r\n"), EARLY(POLICY, 421), C(".\r\n"),
	     X("reset; say 421; log EOD policy 421; close backend_421")),
	TALK("an early 250 is no reply to the body", TO_DATA, C("some\r\n"),
	     EARLY(OK, 250), X("reset"), C("more\r\n.\r\n"),
	     X("say 451 4.3.0; log EOD ok 451")),
	TALK("the backend is lost in mid-body", TO_DATA, C("some\r\n"), LOST,
	     X(""), C("more\r\n.\r\nRSET\r\n"),
	     X("say 451 4.3.0; log EOD sick 451; say 250 2.0.0")),
	TALK("the backend is lost after the end: nobody knows", TO_DATA,
	     C("x\r\n.\r\n"), LOST, X("end; say 451 4.4.2; log EOD sick 451")),
	TALK("the backend is lost before 354", TO_RCPT, C("DATA\r\n"), LOST,
	     X("DATA; say 451 4.3.0; log DATA sick 451")),
	TALK("lost before 354, and the body did not wait", TO_RCPT,
	     C("DATA\r\nx\r\n"), LOST,
	     X("DATA; say 451 4.3.0; log DATA sick 451; say 554 5.5.0; "
	       "close sync")),
	TALK("2xx to DATA is out of step", TO_RCPT, C("DATA\r\n"),
	     R(DATA, OK, 250),
	     X("DATA; reset; say 451 4.3.0; log DATA ok 451")),
	TALK("354 to the end of data is out of step", TO_DATA, C(".\r\n"),
	     R(EOD, OK, 354), X("end; reset; say 451 4.4.2; log EOD ok 451")),
	TALK("354 to RCPT is out of step", GROUP, { .kind = SKIP },
	     R(RCPT, OK, 354), X("reset; say 451 4.3.0 x3; log DATA ok 451")),
	TALK("the final reply is passed word for word", TO_DATA, C(".\r\n"),
	     R2(EOD, POLICY, 554),
	     X("end; relay 554; keep; log EOD policy 554")),
	TALK("busy at the end: passed, and the connection goes", TO_DATA,
	     C(".\r\n"), R(EOD, BUSY, 452),
	     X("end; relay 452; quit; log EOD busy 452")),
	TALK("421 at the end, of a backend that leaves", TO_DATA, C(".\r\n"),
	     R(EOD, DRAIN, 421), X("end; relay 451; quit; log EOD drain 451")),
	TALK("421 at the end, about the client", TO_DATA, C(".\r\n"),
	     R(EOD, SESSION, 421),
	     X("end; relay 421; quit; log EOD session 421; "
	       "close backend_421")),
	TALK("the client ends in mid-body: nothing is stored", TO_DATA,
	     C("x\r\n"), OVER, X("reset; log EOD ok 0; abort client_closed")),
	TALK("the client resets in mid-body", TO_DATA, C("x\r\n."), GONE,
	     X("reset; log EOD ok 0; abort client_reset")),
	TALK("half closed after the dot: it reads its reply", TO_DATA,
	     C(".\r\n"), OVER, X("end"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; close client_closed")),
	TALK("half closed after QUIT after the dot", TO_DATA,
	     C(".\r\nQUIT\r\n"), OVER, R(EOD, OK, 250),
	     X("end; relay 250; keep; log EOD ok 250; say 221 2.0.0; "
	       "close quit")),
	TALK("gone after the dot: the answer is awaited all the same", TO_DATA,
	     C(".\r\n"), GONE, X("end"), R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; close client_reset")),
	TALK("gone after the dot, and the backend lost", TO_DATA, C(".\r\n"),
	     GONE, LOST,
	     X("end; say 451 4.4.2; log EOD sick 451; close client_reset")),
	TALK("the client ends before 354", TO_RCPT, C("DATA\r\n"), OVER,
	     X("DATA; reset; log DATA ok 0; close client_closed")),
	TALK("the client ends while MAIL waits", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), OVER,
	     X("bind; quit; log TCP ok 0; close client_closed")),
	TALK("the client is gone while MAIL is answered", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, GONE,
	     X("bind; MAIL FROM:<a@b>; quit; log MAIL ok 0; "
	       "abort client_reset")),
	TALK("the client ends with half a line", HELLO, C("NOO"), OVER,
	     X("close client_closed")),
	TALK("the client ends in a transaction", TO_RCPT, OVER,
	     X("quit; log IDLE ok 0; close client_closed")),
	TALK("gone with replies due and no PIPELINING: reset", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND_POOR,
	     R(MAIL, OK, 250), { .kind = SKIP }, GONE,
	     X("reset; log IDLE ok 0; abort client_reset")),
	TALK_WITH("a body as large as allowed", HOW(.size = 7), TO_DATA,
		  C("12345\r\n.\r\n"), X("end")),
	TALK_WITH("an octet more", HOW(.size = 7), TO_DATA,
		  C("123456\r\n.\r\nNOOP\r\n"),
		  X("reset; say 552 5.3.4; log EOD ok 552; say 250 2.0.0")),
	TALK_WITH("SIZE too large is refused early, and no error",
		  HOW(.size = 7, .max_errors = 1), HELLO,
		  C("MAIL FROM:<> SIZE=8\r\nMAIL FROM:<> SIZE=8\r\n"
		    "MAIL FROM:<> SIZE=8\r\nMAIL FROM:<> SIZE=7\r\n"),
		  X("say 552 5.3.4; say 552 5.3.4; say 552 5.3.4; bind")),
	TALK("timeouts in mid-body", TO_DATA, C("x"), AFTER(179999), X(""),
	     AFTER(1),
	     X("say 421 4.4.2; reset; log EOD ok 0; "
	       "close client_timeout")),
};

static void bodies_arrive_whole_or_not_at_all(void **state)
{
	(void)state;
	RUN(bodies);
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

static const struct talk in_data = TALK("", TO_DATA);

static void smuggle(const char *id, const char *octets, size_t len, bool ends,
		    bool refused, long cut)
{
	const struct move last = { .kind = CLIENT,
				   .text = "\r\n.\r\n",
				   .len = 5 };
	const struct move noop = { .kind = CLIENT,
				   .text = "NOOP\r\n",
				   .len = 6 };
	const struct move vector = { .kind = CLIENT,
				     .text = octets,
				     .len = len };
	const char *heard = "reset; say 550 5.6.11; log EOD ok 550";
	size_t said = 0;

	world_open(&in_data);
	for (const struct move *m = in_data.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	w->name = id;
	feed("body", 4);
	move_on(&vector, cut, &said);
	if (!ends)
		move_on(&last, cut, &said);
	if (refused) {
		assert_int_equal(w->ends_sent, 0);
		expect(&(struct move){ .text = heard }, cut);
		move_on(&noop, cut, &said);
		expect(&(struct move){ .text = "say 250 2.0.0" }, cut);
	} else {
		assert_int_equal(w->ends_sent, 1);
		assert_int_equal(w->s.state, SESSION_FINAL);
	}
	assert_int_equal(w->surprises, 0);
	world_close();
}

static void smuggling_vectors_reach_no_backend_as_a_message(void **state)
{
	FILE *file = fopen("tests/data/smuggling.tsv", "r");
	char row[512], octets[128];
	unsigned rows = 0;

	(void)state;
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
		for (long cut = CUT_EVERYWHERE; cut < (long)len + 5; cut++) {
			smuggle(row, octets, len,
				strncmp(must + 1, "end", 3) == 0,
				strstr(must, "refuse the message") != NULL,
				cut);
		}
		rows++;
	}
	assert_int_equal(fclose(file), 0);
	assert_int_equal(rows, 22);
}

/* ---- failover ---- */

static const struct talk failovers[] = {
	TALK("a busy greeting, then another backend", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), UNBOUND(GREET, BUSY), BOUND,
	     R(MAIL, OK, 250), X("bind; bind; MAIL FROM:<a@b>; relay 250")),
	TALK("three tries and no more", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     UNBOUND(GREET, BUSY), UNBOUND(TCP, MAYBE), UNBOUND(GREET, CAP),
	     X("bind; bind; bind; say 451 4.3.2; log GREET cap 451"),
	     C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK("none to be had", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     GIVEN_UP(TCP, BUSY), X("bind; say 451 4.3.2; log TCP busy 451")),
	TALK("the budget, while one connects", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     AFTER(19999), X("bind"), AFTER(1),
	     X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK("the budget is for all tries together", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), AFTER(15000), UNBOUND(TCP, SICK),
	     AFTER(4999), X("bind; bind"), AFTER(1),
	     X("quit; say 451 4.3.2; log TCP maybe-busy 451")),
	TALK("a verdict in the greeting is passed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(POLICY, 554),
	     X("bind; say 554; log GREET policy 554")),
	TALK("a busy one is not, when it was the last", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(BUSY, 421),
	     X("bind; say 451 4.3.2; log GREET busy 451")),
	TALK("421 about the client in the greeting is passed and obeyed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), GREETED(POLICY, 421),
	     X("bind; say 421; log GREET policy 421; close backend_421")),
	TALK("a backend that offers less than the client uses", HELLO,
	     C("MAIL FROM:<a@b> SMTPUTF8\r\n"),
	     DO_WITH(BOUND, .ext = SMTP_EXT_PIPELINING), X("bind; quit; bind")),
	TALK("BUSY to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, BUSY, 452), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("MAYBE to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, MAYBE, 451), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("CAP to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, CAP, 421), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("DRAIN to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, DRAIN, 421), X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("MISCONF to MAIL is hidden", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, R(MAIL, MISCONF, 530),
	     X("bind; MAIL FROM:<a@b>; quit; bind")),
	TALK("SICK to MAIL is passed", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND,
	     R(MAIL, SICK, 451),
	     X("bind; MAIL FROM:<a@b>; relay 451; quit; log MAIL sick 451")),
	TALK("POLICY to MAIL is passed, the backend is clean", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, POLICY, 550),
	     X("bind; MAIL FROM:<a@b>; relay 550; keep; "
	       "log MAIL policy 550")),
	TALK("421 about the client to MAIL is passed and obeyed", HELLO,
	     C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, SESSION, 421),
	     X("bind; MAIL FROM:<a@b>; relay 421; quit; "
	       "log MAIL session 421; close backend_421")),
	TALK_WITH("busy, and none left to try: its own words", HOW(.tries = 1),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 452),
		  X("bind; MAIL FROM:<a@b>; relay 452; quit; "
		    "log MAIL busy 452")),
	TALK_WITH("421 of a busy one, none left", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R2(MAIL, BUSY, 421),
		  X("bind; MAIL FROM:<a@b>; relay 451; quit; "
		    "log MAIL busy 451")),
	TALK_WITH("busy is never for ever", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 552),
		  X("bind; MAIL FROM:<a@b>; quit; say 451 4.3.2; "
		    "log MAIL busy 451")),
	TALK_WITH("MISCONF, none left: our own words", HOW(.tries = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, MISCONF, 530),
		  X("bind; MAIL FROM:<a@b>; quit; say 451 4.3.2; "
		    "log MAIL misconf 451")),
	TALK("lost at MAIL: another one", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, LOST, BOUND, LOST, BOUND, LOST,
	     X("bind; MAIL FROM:<a@b>; bind; MAIL FROM:<a@b>; bind; "
	       "MAIL FROM:<a@b>; say 451 4.3.2; log MAIL sick 451")),
	TALK_WITH("a kept connection that is lost costs no try",
		  HOW(.tries = 1), HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN,
		  LOST, BOUND, R(MAIL, OK, 250),
		  X("bind; MAIL FROM:<a@b>; bind; MAIL FROM:<a@b>; "
		    "relay 250")),
	TALK_WITH("a kept connection that has served enough", HOW(.tries = 1),
		  HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND_AGAIN,
		  R(MAIL, SESSION, 421), BOUND,
		  X("bind; MAIL FROM:<a@b>; quit; bind; MAIL FROM:<a@b>")),
	TALK("354 to MAIL is no reply at all", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, R(MAIL, OK, 354), X("bind; MAIL FROM:<a@b>; reset; bind")),
	TALK("words before the reply to MAIL", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND, EARLY(OK, 250), X("bind; MAIL FROM:<a@b>; reset; bind")),
	TALK("never after RCPT: 451 until the client begins anew", TO_RCPT,
	     LOST, X(""), C("RCPT TO:<e@f>\r\nNOOP\r\nDATA\r\n"),
	     X("say 451 4.3.0; say 250 2.0.0; say 451 4.3.0; "
	       "log TCP sick 451"),
	     C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK("MAIL after a broken transaction", TO_RCPT, LOST,
	     C("MAIL FROM:<a@b>\r\n"), X("log TCP sick 451; bind")),
	TALK("lost after MAIL: DATA draws 451 as its RCPT did", TO_MAIL, LOST,
	     C("RCPT TO:<c@d>\r\n"), X("say 451 4.3.0"), C("DATA\r\n"),
	     X("say 451 4.3.0; log TCP sick 451")),
	TALK("421 at TO_RCPT, of a backend that leaves", GROUP,
	     { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.3.0 x2; log DATA drain 451"),
	     C("RSET\r\n"), X("say 250 2.0.0")),
	TALK("421 at RCPT alone", TO_MAIL, C("RCPT TO:<c@d>\r\n"),
	     R(RCPT, BUSY, 421), X("RCPT TO:<c@d>; relay 451; reset"),
	     C("RSET\r\n"), X("log RCPT busy 451; say 250 2.0.0")),
	TALK("421 about the client at RCPT is passed and obeyed", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, POLICY, 421),
	     X("RCPT TO:<c@d>; relay 421; quit; log RCPT policy 421; "
	       "close backend_421")),
	TALK("421 at DATA", TO_RCPT, C("DATA\r\n"), R(DATA, DRAIN, 421),
	     X("DATA; relay 451; quit; log DATA drain 451")),
	TALK("421 about the client at DATA", TO_RCPT, C("DATA\r\n"),
	     R(DATA, SESSION, 421),
	     X("DATA; relay 421; reset; log DATA session 421; "
	       "close backend_421")),
	TALK("421 between commands breaks the transaction", TO_RCPT,
	     EARLY(DRAIN, 421), X("reset"), C("DATA\r\n"),
	     X("say 451 4.3.0; log IDLE drain 451")),
};

static void failover_is_hidden_and_never_after_a_reply(void **state)
{
	(void)state;
	RUN(failovers);
}

/* ---- behind MAIL ---- */

#define A10   "aaaaaaaaaa"
#define A100  A10 A10 A10 A10 A10 A10 A10 A10 A10 A10
#define A500  A100 A100 A100 A100 A100
#define A4000 A500 A500 A500 A500 A500 A500 A500 A500

#define STOP                                                                   \
	{                                                                      \
		.kind = SKIP                                                   \
	}
#define ENVELOPE "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"
#define SENT     "MAIL FROM:<a@b>; RCPT TO:<c@d>; RCPT TO:<e@f>; DATA"

static const struct talk aheads[] = {
	TALK_AHEAD("an envelope in one burst", HELLO, C(ENVELOPE), X("bind"),
		   BOUND, X(SENT), R(MAIL, OK, 250), X("relay 250"),
		   R(RCPT, OK, 250), R(RCPT, POLICY, 550), R(DATA, OK, 354),
		   X("relay 250; relay 550; relay 354"), C("hi\r\n.\r\n"),
		   X("end"), B("hi\r\n.\r\n"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250")),
	TALK_AHEAD("the next message's envelope behind the final dot", TO_DATA,
		   C(".\r\n" ENVELOPE), X("end"), R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250; bind"), BOUND_AGAIN,
		   X(SENT), R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
		   R(RCPT, OK, 250), R(DATA, OK, 354), STOP, C(".\r\n"),
		   X("end")),
	TALK_AHEAD("MAIL refused: what went ahead is answered here, in order",
		   HELLO, C(ENVELOPE), BOUND, X("bind; " SENT),
		   R(MAIL, POLICY, 550),
		   X("relay 550; reset; log MAIL policy 550; say 503 5.5.1; "
		     "say 503 5.5.1; say 503 5.5.1"),
		   C("NOOP\r\n"), X("say 250 2.0.0"), C("MAIL FROM:<a@b>\r\n"),
		   X("bind")),
	TALK_AHEAD_WHOLE("MAIL refused: a body that did not wait is not run",
			 HELLO, C(ENVELOPE "RSET\r\n.\r\n"), BOUND,
			 X("bind; " SENT), R(MAIL, POLICY, 550),
			 X("relay 550; reset; log MAIL policy 550; "
			   "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1; "
			   "say 554 5.5.0; close sync")),
	TALK_AHEAD("MAIL refused and no DATA went ahead: parted in good order",
		   HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND,
		   R(MAIL, POLICY, 550),
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 550; quit; "
		     "log MAIL policy 550; say 503 5.5.1")),
	TALK_AHEAD_WITH("the answers to a refused envelope are errors",
			HOW(.max_errors = 2), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, POLICY, 550),
			X("bind; " SENT "; relay 550; reset; "
			  "log MAIL policy 550; say 503 5.5.1; say 503 5.5.1; "
			  "say 421 4.7.0; close errors")),
	TALK_AHEAD("421 about the client to MAIL is passed and obeyed", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, SESSION, 421),
		   X("bind; " SENT "; relay 421; reset; log MAIL session 421; "
		     "close backend_421")),
	TALK_AHEAD_WITH("another backend gets it all anew, counted once",
			HOW(.recipient_rate = 2), HELLO, C(ENVELOPE), BOUND,
			X("bind; " SENT), R(MAIL, BUSY, 452), X("reset; bind"),
			BOUND, X(SENT), R(MAIL, OK, 250), X("relay 250"),
			R(RCPT, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354),
			C(".\r\n"), R(EOD, OK, 250),
			X("relay 250; relay 250; relay 354; end; relay 250; "
			  "keep; log EOD ok 250"),
			C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND_AGAIN,
			R(MAIL, OK, 250),
			X("bind; MAIL FROM:<a@b>; relay 250; say 450 4.7.1")),
	TALK_AHEAD("another backend, without PIPELINING: one by one", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, BUSY, 452),
		   X("bind; " SENT "; reset; bind"), BOUND_POOR,
		   X("MAIL FROM:<a@b>"), R(MAIL, OK, 250),
		   X("relay 250; RCPT TO:<c@d>"), R(RCPT, OK, 250),
		   X("relay 250; RCPT TO:<e@f>"), R(RCPT, OK, 250),
		   X("relay 250; DATA"), R(DATA, OK, 354), X("relay 354")),
	TALK_AHEAD("the second one has PIPELINING, the first has not", HELLO,
		   C(ENVELOPE), BOUND_POOR, X("bind; MAIL FROM:<a@b>"),
		   R(MAIL, BUSY, 452), X("quit; bind"), BOUND, X(SENT),
		   R(MAIL, OK, 250), X("relay 250")),
	TALK_AHEAD_WITH("busy, and none left to try: its own words",
			HOW(.tries = 1), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, BUSY, 452),
			X("bind; " SENT "; relay 452; reset; "
			  "log MAIL busy 452; say 503 5.5.1; say 503 5.5.1; "
			  "say 503 5.5.1")),
	TALK_AHEAD("lost before MAIL's reply, each of them", HELLO, C(ENVELOPE),
		   BOUND, LOST, X("bind; " SENT "; bind"), BOUND, LOST, BOUND,
		   LOST,
		   X(SENT "; bind; " SENT "; say 451 4.3.2; log MAIL sick 451; "
			  "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1")),
	TALK_AHEAD("lost when the budget is used up", HELLO, C(ENVELOPE), BOUND,
		   AFTER(20000), LOST,
		   X("bind; " SENT "; say 451 4.3.2; log MAIL sick 451; "
		     "say 503 5.5.1; say 503 5.5.1; say 503 5.5.1")),
	TALK_AHEAD("lost right after MAIL's reply: 451 for each line", HELLO,
		   C(ENVELOPE), BOUND, R(MAIL, OK, 250), LOST,
		   X("bind; " SENT "; relay 250; say 451 4.3.0 x3; "
		     "log DATA sick 451"),
		   C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK_AHEAD_WITH("a kept connection that is lost costs no try",
			HOW(.tries = 1, .recipient_rate = 2), HELLO,
			C(ENVELOPE), BOUND_AGAIN, LOST,
			X("bind; " SENT "; bind"), BOUND, R(MAIL, OK, 250),
			X(SENT "; relay 250")),
	TALK_AHEAD_WITH("a kept connection that has served enough",
			HOW(.tries = 1), HELLO, C(ENVELOPE), BOUND_AGAIN,
			R(MAIL, SESSION, 421), X("bind; " SENT "; reset; bind"),
			BOUND, R(MAIL, OK, 250), X(SENT "; relay 250")),
	TALK_AHEAD("words before MAIL's reply", HELLO, C(ENVELOPE), BOUND,
		   EARLY(OK, 250), X("bind; " SENT "; reset; bind"), BOUND,
		   R(MAIL, OK, 354), X(SENT "; reset; bind")),
	TALK_AHEAD("the reply to a line ahead, but none to MAIL", HELLO,
		   C(ENVELOPE), BOUND, R(RCPT, OK, 250),
		   X("bind; " SENT "; reset; bind")),
	TALK_AHEAD("the client ends its side behind DATA", HELLO, C(ENVELOPE),
		   BOUND, OVER, X("bind; " SENT), R(MAIL, OK, 250),
		   X("relay 250; reset; log DATA ok 0; close client_closed")),
	TALK_AHEAD("the client ends its side behind RCPT, MAIL is refused",
		   HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND,
		   OVER, R(MAIL, POLICY, 550),
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 550; quit; "
		     "log MAIL policy 550; say 503 5.5.1; "
		     "close client_closed")),
	TALK_AHEAD("the client resets behind DATA", HELLO, C(ENVELOPE), BOUND,
		   GONE,
		   X("bind; " SENT "; reset; log MAIL ok 0; "
		     "abort client_reset")),
	TALK_AHEAD("the client resets behind RCPT", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND, GONE,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; quit; "
		     "log MAIL ok 0; abort client_reset")),
	TALK_AHEAD_WITH("no client's time runs while MAIL is answered",
			HOW(.session_ms = 1000), HELLO, C(ENVELOPE), BOUND,
			AFTER(9999999), X("bind; " SENT), R(MAIL, OK, 250),
			R(RCPT, OK, 250), R(RCPT, OK, 250), AFTER(1),
			X("relay 250; relay 250; relay 250"), R(DATA, OK, 354),
			AFTER(0),
			X("relay 354; say 421 4.4.2; reset; log EOD ok 0; "
			  "close session_time")),
	TALK_AHEAD("drained: the message ends first", HELLO, C(ENVELOPE), BOUND,
		   { .kind = DRAINING }, DO(DRAIN), X("bind; " SENT),
		   R(MAIL, OK, 250), R(RCPT, OK, 250), R(RCPT, OK, 250),
		   R(DATA, OK, 354), C(".\r\n"), STOP, R(EOD, OK, 250),
		   X("relay 250; keep; log EOD ok 250; say 421 4.3.2; "
		     "close drain")),
	TALK_AHEAD("drained, and MAIL refused", HELLO, C(ENVELOPE), BOUND,
		   { .kind = DRAINING }, DO(DRAIN), R(MAIL, POLICY, 550),
		   X("bind; " SENT "; relay 550; reset; log MAIL policy 550; "
		     "say 421 4.3.2; close drain")),
	TALK_AHEAD_WITH("no more recipients than allowed",
			HOW(.max_recipients = 1), HELLO, C(ENVELOPE), BOUND,
			X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
			R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
			X("relay 250; say 452 4.5.3; DATA"), R(DATA, OK, 354),
			X("relay 354")),
	TALK_AHEAD_WITH("no more recipients than the rate allows",
			HOW(.recipient_rate = 1), HELLO, C(ENVELOPE), BOUND,
			R(MAIL, BUSY, 452),
			X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>; quit; bind"),
			BOUND, R(MAIL, OK, 250),
			X("MAIL FROM:<a@b>; RCPT TO:<c@d>; relay 250"),
			R(RCPT, OK, 250), X("relay 250; say 450 4.7.1; DATA")),
	TALK_AHEAD("8 bits without SMTPUTF8 stop it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
		     "RCPT TO:<\303\244@b>\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), X("relay 250"), R(RCPT, OK, 250),
		   X("relay 250; say 553 5.6.7; DATA")),
	TALK_AHEAD("8 bits with SMTPUTF8 do not", HELLO,
		   C("MAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<\303\244@b>\r\n"),
		   BOUND,
		   X("bind; MAIL FROM:<a@b> SMTPUTF8; RCPT TO:<\303\244@b>"),
		   R(MAIL, OK, 250), X("relay 250")),
	TALK_AHEAD_WITH("a parameter that was not offered stops it",
			HOW(.offer = SMTP_EXT_8BITMIME), HELLO,
			C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
			  "RCPT TO:<e@f> NOTIFY=NEVER\r\nDATA\r\n"),
			BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
			R(MAIL, OK, 250), R(RCPT, OK, 250),
			X("relay 250; relay 250; say 555 5.5.4; DATA")),
	TALK_AHEAD("a parameter that nobody knows stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
		     "RCPT TO:<e@f> X=1\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 555 5.5.4; DATA")),
	TALK_AHEAD("DATA with an argument stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA x\r\n"), BOUND,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"), R(MAIL, OK, 250),
		   R(RCPT, OK, 250), X("relay 250; relay 250; say 501 5.5.4")),
	TALK_AHEAD("a bare LF stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\n"
		     "DATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 500 5.5.2; DATA")),
	TALK_AHEAD("a line too long stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n" A500 A500
		     "\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 500 5.5.2; DATA")),
	TALK_AHEAD("NOOP behind RCPT stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNOOP\r\nDATA\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 250 2.0.0; DATA")),
	TALK_AHEAD("BDAT behind RCPT stops it", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 6 LAST\r\n"
		     "DATA\r\nQUIT\r\n"),
		   BOUND, X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"), B(""),
		   R(MAIL, OK, 250), X("relay 250; BDAT 6 LAST"), B("DATA\r\n"),
		   R(RCPT, OK, 250), R(EOD, OK, 250),
		   X("relay 250; relay 250; keep; log EOD ok 250; "
		     "say 221 2.0.0; close quit")),
	TALK_AHEAD("BINARYMIME: DATA stops it", HELLO,
		   C("MAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\n"
		     "DATA\r\n"),
		   BOUND,
		   X("bind; MAIL FROM:<a@b> BODY=BINARYMIME; RCPT TO:<c@d>"),
		   R(MAIL, OK, 250), R(RCPT, OK, 250),
		   X("relay 250; relay 250; say 503 5.5.1")),
	TALK_AHEAD("a line that is cut waits for MAIL's reply", HELLO,
		   C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO"), BOUND,
		   X("bind; MAIL FROM:<a@b>; RCPT TO:<c@d>"),
		   C(":<e@f>\r\nDATA\r\n"), X(""), R(MAIL, OK, 250),
		   X("relay 250; RCPT TO:<e@f>; DATA")),
	TALK_AHEAD("lines that come while MAIL is answered", HELLO,
		   C("MAIL FROM:<a@b>\r\n"), BOUND, X("bind; MAIL FROM:<a@b>"),
		   C("RCPT TO:<c@d>\r\n"), X("RCPT TO:<c@d>"), C("DATA\r\n"),
		   X(""), R(MAIL, OK, 250), X("relay 250; DATA")),
	TALK_AHEAD("a body that did not wait for the 354", HELLO,
		   C(ENVELOPE "RSET\r\n.\r\n"), BOUND, R(MAIL, OK, 250),
		   X("bind; " SENT "; relay 250"), R(RCPT, OK, 250),
		   R(RCPT, OK, 250), R(DATA, OK, 354),
		   X("relay 250; relay 250; say 554 5.5.0; reset; "
		     "log DATA ok 554; close sync"),
		   B("")),
	TALK_AHEAD("a body that came in time before MAIL's reply alone", HELLO,
		   C(ENVELOPE), BOUND, C("x\r\n"), R(MAIL, OK, 250),
		   R(RCPT, OK, 250), R(RCPT, OK, 250), R(DATA, OK, 354),
		   X("bind; " SENT "; relay 250; relay 250; relay 250; "
		     "say 554 5.5.0; reset; log DATA ok 554; close sync"),
		   B("")),
	TALK_AHEAD_WHOLE(
		"one that did not wait is no fault of the next message", HELLO,
		C(ENVELOPE "NOOP\r\n"), BOUND, R(MAIL, BUSY, 452), BOUND_POOR,
		R(MAIL, OK, 250), R(RCPT, OK, 250), R(RCPT, OK, 250), STOP,
		R(DATA, OK, 354),
		X("say 554 5.5.0; reset; log DATA ok 554; "
		  "close sync")),
	TALK("NOOP behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nNOOP\r\nRCPT TO:<c@d>\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 250 2.0.0; RCPT TO:<c@d>")),
	TALK("BDAT behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nBDAT 15\r\nRCPT TO:<c@d>\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1"), B("")),
	TALK("DATA behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nDATA\r\n"), BOUND,
	     X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1")),
	TALK("MAIL behind MAIL: nothing goes ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nMAIL FROM:<x@y>\r\nRCPT TO:<c@d>\r\n"),
	     BOUND, X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; say 503 5.5.1; RCPT TO:<c@d>")),
	TALK("without PIPELINING nothing goes ahead", HELLO, C(ENVELOPE),
	     BOUND_POOR, X("bind; MAIL FROM:<a@b>"), R(MAIL, OK, 250),
	     X("relay 250; RCPT TO:<c@d>")),
};

static void lines_behind_mail_are_sent_ahead_and_undone(void **state)
{
	(void)state;
	RUN(aheads);
}

enum { CROWD = 300, CROWD_LINE = 17 };

static const struct talk in_hello = TALK("", HELLO);
static const struct move bound_well = BOUND;
static const struct move mail_taken = R(MAIL, OK, 250);
static const struct move mail_refused = R(MAIL, BUSY, 452);
static const struct move rcpt_taken = R(RCPT, OK, 250);
static const struct move data_taken = R(DATA, OK, 354);

static void go_to(const struct talk *place)
{
	world_open(place);
	for (const struct move *m = place->moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	w->acts_len = 0;
}

/* Write CROWD_LINE octets, without a NUL. */
static void put_rcpt(char *at, unsigned i, const char *end)
{
	char line[40];

	(void)snprintf(line, sizeof(line), "RCPT TO:<%03u@d>%s", i, end);
	assert_int_equal(strlen(line), CROWD_LINE);
	memcpy(at, line, CROWD_LINE);
}

static void a_long_envelope_is_sent_ahead_as_far_as_there_is_room(void **state)
{
	static char text[17 + CROWD * CROWD_LINE + 6 + 1];
	static char want[sizeof(text) + CROWD];
	size_t len = 17;
	size_t want_len = 0;

	(void)state;
	(void)snprintf(text, sizeof(text), "MAIL FROM:<a@b>\r\n");
	for (unsigned i = 0; i < CROWD; i++) {
		put_rcpt(text + len, i, "\r\n");
		len += CROWD_LINE;
		if (i < UPSTREAM_PIPELINE_MAX - 1) {
			put_rcpt(want + want_len, i, "; ");
			want_len += CROWD_LINE;
		}
	}
	(void)snprintf(text + len, sizeof(text) - len, "DATA\r\n");
	len += 6;
	go_to(&in_hello);
	feed(text, len);
	for (unsigned tries = 0; tries < 2; tries++) {
		w->acts_len = 0;
		move_on(&bound_well, CUT_NOWHERE, &(size_t){ 0 });
		assert_int_equal(w->due, UPSTREAM_PIPELINE_MAX);
		assert_int_equal(w->s.due, 1);
		assert_int_equal(w->s.ahead_rcpts, UPSTREAM_PIPELINE_MAX - 1);
		assert_memory_equal(w->acts, "MAIL FROM:<a@b>; ", 17);
		assert_int_equal(w->acts_len, 17 + want_len);
		assert_memory_equal(w->acts + 17, want, want_len);
		move_on(tries == 0 ? &mail_refused : &mail_taken, CUT_NOWHERE,
			&(size_t){ 0 });
	}
	assert_int_equal(w->due, UPSTREAM_PIPELINE_MAX);
	for (unsigned i = 0; i < CROWD; i++)
		move_on(&rcpt_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.state, SESSION_DATA);
	assert_int_equal(w->s.message.rcpts, CROWD);
	assert_int_equal(w->s.message.rcpts_ok, CROWD);
	/* All of them, MAIL and DATA; EHLO came before. */
	assert_int_equal(stats_get(&w->stats, STATS_commands), CROWD + 3);
	move_on(&data_taken, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.state, SESSION_BODY);
	world_close();
}

static const struct talk data_ahead = TALK("", HELLO, C(ENVELOPE "x"), BOUND,
					   STOP);
static const struct talk rcpt_ahead = TALK(
	"", HELLO, C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"), BOUND, STOP);

/* The worker may be short of buffers, and read nothing between replies. */
static void a_body_that_did_not_wait_is_known_before_it_is_read(void **state)
{
	(void)state;
	go_to(&data_ahead);
	step(&mail_taken.event);
	assert_int_equal(w->s.state, SESSION_DATA);
	assert_int_equal(w->lens[w->first], 1);
	step(&rcpt_taken.event);
	step(&rcpt_taken.event);
	step(&data_taken.event);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->s.reason, STATS_CLOSE_SYNC);
	world_close();
}

static void a_kill_with_lines_ahead_forgets_them(void **state)
{
	(void)state;
	go_to(&data_ahead);
	assert_int_equal(w->s.ahead_rcpts, 2);
	assert_true(w->s.ahead_data);
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->s.ahead, 0);
	assert_int_equal(w->plan.consumed, 0);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_RESET);
	assert_int_equal(w->plan.acts[1].what, SESSION_DO_LOG);
	assert_int_equal(w->plan.acts[2].what, SESSION_DO_ABORT);
	assert_false(w->s.message.unknown);
	world_close();
	go_to(&rcpt_ahead);
	assert_int_equal(w->s.ahead_rcpts, 1);
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.ahead, 0);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_QUIT);
	world_close();
}

/* ---- nonsense ---- */

#define TEN(text) text text text text text text text text text text

static const struct talk nonsense[] = {
	TALK("20 errors, then 421", HELLO, C(TEN("X\r\n")), C(TEN("X\r\n")),
	     { .kind = SKIP }, C("NOOP\r\n"), X("say 250 2.0.0"),
	     C("X\r\nQUIT\r\n"), X("say 421 4.7.0; close errors")),
	TALK("the errors end a transaction too", TO_RCPT, C(TEN("X\r\n")),
	     C(TEN("X\r\n")), { .kind = SKIP }, C("X\r\n"),
	     X("say 421 4.7.0; quit; log IDLE ok 0; close errors")),
	TALK_WITH("an error and its rest", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\nNOOP\r\n"), X("say 500 5.5.1"), AFTER(4999), X(""),
		  AFTER(1), X("say 250 2.0.0"), AFTER(299999), X(""), AFTER(1),
		  X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("the end while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), OVER, X("say 500 5.5.1; close client_closed")),
	TALK_WITH("drained while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), DO(DRAIN),
		  X("say 500 5.5.1; say 421 4.3.2; close drain")),
	TALK_WITH("stress while it rests", HOW(.tarpit_ms = 5000), HELLO,
		  C("X\r\n"), { .kind = STRESS, .ms = 1 }, AFTER(5000),
		  X("say 500 5.5.1"), AFTER(9999), X(""), AFTER(1),
		  X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("the backend is lost while it rests", HOW(.tarpit_ms = 5000),
		  TO_RCPT, C("X\r\nNOOP\r\n"), LOST, X("say 500 5.5.1"),
		  AFTER(5000), X("say 250 2.0.0")),
	TALK_WITH("a rest is no longer than the session may be",
		  HOW(.tarpit_ms = 5000, .session_ms = 3000), HELLO, C("X\r\n"),
		  AFTER(3000),
		  X("say 500 5.5.1; say 421 4.4.2; close session_time")),
	TALK("512 octets are a line", HELLO, C("NOOP " A500 "aaaaa\r\n"),
	     X("say 250 2.0.0")),
	TALK("513 are one too long, and one reply", HELLO,
	     C("NOOP " A500 "aaaaaa\r\nNOOP\r\n"),
	     X("say 500 5.5.2; say 250 2.0.0")),
	TALK("the rest of a long line is no command", HELLO,
	     C(A500 A500 "MAIL FROM:<a@b>\r\n"), X("say 500 5.5.2")),
	TALK("a long line waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n" A500 A500 "\r\nNOOP\r\n"),
	     X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2; say 250 2.0.0")),
	TALK("the end within a long line", HELLO, C(A500 A500), OVER,
	     X("say 500 5.5.2; close client_closed")),
	TALK("a long line without end is dropped as it comes", HELLO, C(A4000),
	     C(A4000), C(A4000), C(A4000), X("say 500 5.5.2"),
	     C("\r\nNOOP\r\n"), X("say 250 2.0.0")),
	TALK("bare LF, bare CR, NUL", HELLO, C("NOOP\n"), X("say 500 5.5.2"),
	     C("NOOP\rNOOP\r\n"), X("say 500 5.5.2"), C("NOOP\0\r\n"),
	     X("say 500 5.5.2"), C("NOOP\r\n"), X("say 250 2.0.0")),
	TALK("a bare LF behind RCPT waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nNOOP\n"), X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2")),
	TALK("8 bits in an address without SMTPUTF8", HELLO,
	     C("MAIL FROM:<\303\244@b>\r\n"), X("say 553 5.6.7"),
	     C("MAIL FROM:<\344@b>\r\n"), X("say 501 5.1.7")),
	TALK("8 bits in RCPT without SMTPUTF8 at MAIL", TO_MAIL,
	     C("RCPT TO:<\303\244@b>\r\n"), X("say 553 5.6.7")),
	TALK("8 bits with SMTPUTF8", HELLO,
	     C("MAIL FROM:<\303\244@b> SMTPUTF8\r\n"), BOUND, R(MAIL, OK, 250),
	     { .kind = SKIP }, C("RCPT TO:<\303\244@b>\r\n"),
	     X("RCPT TO:<\303\244@b>")),
	TALK("an empty line, an empty name", HELLO, C("\r\n"),
	     X("say 500 5.5.2"), C("EHLO\r\n"), X("say 501 5.5.4")),
	TALK("AUTH of 4 kB is a line, and not offered", HELLO,
	     C("AUTH PLAIN " A4000 "\r\nNOOP\r\n"),
	     X("say 502 5.5.1; say 250 2.0.0")),
	TALK("HTTP", HELLO, C("GET / HTTP/1.1\r\nHost: x\r\n"),
	     X("say 500 5.5.2; close foreign")),
	TALK("a TLS hello", HELLO, C("\026\003\001\002\0\001\0"),
	     X("say 500 5.5.2; close foreign")),
	TALK("a TLS hello behind a group waits for its turn", TO_MAIL,
	     C("RCPT TO:<c@d>\r\n\026\003\001"), X("RCPT TO:<c@d>"),
	     R(RCPT, OK, 250),
	     X("relay 250; say 500 5.5.2; quit; log IDLE ok 0; "
	       "close foreign")),
	TALK("PROXY", HELLO, C("PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"),
	     X("say 500 5.5.2; close foreign")),
	TALK("XCLIENT and XFORWARD, however spelled", HELLO,
	     C("XCLIENT ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("xClIeNt\tADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("  XCLIENT  ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("XCLIENT\r\n"), X("say 550 5.7.1"),
	     C("XFORWARD NAME=x ADDR=127.0.0.1\r\n"), X("say 550 5.7.1"),
	     C("xforward\t\r\n"), X("say 550 5.7.1")),
	TALK("XCLIENT within a transaction goes nowhere", TO_RCPT,
	     C("XCLIENT ADDR=127.0.0.1\r\n"), X("say 550 5.7.1")),
	TALK_WITH("a parameter that was not offered",
		  HOW(.offer = SMTP_EXT_8BITMIME, .size = 99), HELLO,
		  C("MAIL FROM:<> SIZE=3\r\n"), X("say 555 5.5.4"),
		  C("MAIL FROM:<> BODY=8BITMIME\r\n"), X("bind")),
	TALK_WITH("talk before the greeting is refused", HOW(.delay_ms = 2000),
		  ADMIT, X(""), C("EHLO x\r\n"),
		  X("say 554 5.5.0; close early_talker")),
	TALK_WITH("or noted", HOW(.delay_ms = 2000, .early = CONFIG_EARLY_LOG),
		  ADMIT, C("EHLO x\r\n"), X(""), AFTER(2000),
		  X("say 220; say 250")),
	TALK_WITH("or let be", HOW(.delay_ms = 2000, .early = CONFIG_EARLY_OFF),
		  ADMIT, C("EHLO x\r\n"), X(""), AFTER(2000),
		  X("say 220; say 250")),
	TALK_WITH("the end before the greeting", HOW(.delay_ms = 2000), ADMIT,
		  OVER, X("close client_closed")),
	TALK("refused at the door",
	     SAID(REFUSED, TCP, OK, 0, "421 4.7.0 no\r\n"),
	     X("say 421 4.7.0; close quit")),
};

static void nonsense_is_answered_and_bounded(void **state)
{
	(void)state;
	RUN(nonsense);
}

/* ---- limits and time ---- */

static const struct talk times[] = {
	TALK("silence after the greeting", ADMIT, AFTER(299999), X("say 220"),
	     AFTER(1), X("say 421 4.4.2; close client_timeout")),
	TALK("half a line does not gain time", HELLO, AFTER(200000), C("NOO"),
	     AFTER(100000),
	     X("say 421 4.4.2; "
	       "close client_timeout")),
	TALK("silence in a transaction", TO_RCPT, AFTER(300000),
	     X("say 421 4.4.2; quit; log IDLE ok 0; close client_timeout")),
	TALK("while the backend is awaited no client's time runs", TO_RCPT,
	     C("RCPT TO:<e@f>\r\n"), AFTER(9999999), X("RCPT TO:<e@f>"),
	     R(RCPT, OK, 250), AFTER(299999), X("relay 250"), AFTER(1),
	     X("say 421 4.4.2; quit; log IDLE ok 0; close client_timeout")),
	TALK("nor at TO_MAIL, DATA or the end", GROUP, AFTER(9999999),
	     R(RCPT, OK, 250), R(RCPT, OK, 250), AFTER(9999999),
	     R(DATA, OK, 354), { .kind = SKIP }, C(".\r\n"), AFTER(9999999),
	     X("end")),
	TALK("silence in a chunk", TO_RCPT, C("BDAT 5\r\nx"), AFTER(180000),
	     X("BDAT 5; say 421 4.4.2; reset; log EOD ok 0; "
	       "close client_timeout")),
	TALK("each octet of a chunk gains time", TO_RCPT, C("BDAT 5\r\nx"),
	     AFTER(179999), C("y"), AFTER(179999), X("BDAT 5")),
	TALK("silence in a chunk that goes nowhere", HELLO, C("BDAT 5\r\nx"),
	     AFTER(180000), X("say 421 4.4.2; close client_timeout")),
	TALK_WITH("a session has its time", HOW(.session_ms = 1000), HELLO,
		  AFTER(999), C("NOOP\r\n"), AFTER(1),
		  X("say 250 2.0.0; say 421 4.4.2; close session_time")),
	TALK_WITH("its time is over once the backend has answered",
		  HOW(.session_ms = 1000), TO_RCPT, C("RCPT TO:<e@f>\r\n"),
		  AFTER(5000), X("RCPT TO:<e@f>"), R(RCPT, OK, 250), AFTER(0),
		  X("relay 250; say 421 4.4.2; quit; log IDLE ok 0; "
		    "close session_time")),
	TALK("stress shortens the time of those who wait already", HELLO,
	     AFTER(5000), { .kind = STRESS, .ms = 1 }, AFTER(4999), X(""),
	     AFTER(1), X("say 421 4.4.2; close client_timeout")),
	TALK("its end gives it back", HELLO, { .kind = STRESS, .ms = 1 },
	     AFTER(5000), { .kind = STRESS }, AFTER(294999), X(""), AFTER(1),
	     X("say 421 4.4.2; close client_timeout")),
	TALK("stress does not touch a body", TO_DATA,
	     { .kind = STRESS, .ms = 1 }, AFTER(100000), X(""), C(".\r\n"),
	     X("end")),
	TALK_WITH("messages of one session", HOW(.max_messages = 1), TO_DATA,
		  C(".\r\n"), R(EOD, OK, 250), { .kind = SKIP },
		  C("MAIL FROM:<a@b>\r\n"), X("say 421 4.7.0; close messages")),
	TALK_WITH("a refused message does not count", HOW(.max_messages = 1),
		  TO_DATA, C(".\r\n"), R(EOD, POLICY, 550), { .kind = SKIP },
		  C("MAIL FROM:<a@b>\r\n"), X("bind")),
	TALK_WITH("recipients of one message", HOW(.max_recipients = 1),
		  TO_MAIL, C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
		  X("RCPT TO:<c@d>"), R(RCPT, OK, 250),
		  X("relay 250; say 452 4.5.3; DATA")),
	TALK_WITH("the rate of messages", HOW(.message_rate = 1), HELLO,
		  C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, POLICY, 550),
		  { .kind = SKIP }, C("MAIL FROM:<a@b>\r\n"),
		  X("say 450 4.7.1")),
	TALK_WITH("the rate of recipients", HOW(.recipient_rate = 1), TO_MAIL,
		  C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"), X("RCPT TO:<c@d>"),
		  R(RCPT, OK, 250), X("relay 250; say 450 4.7.1")),
	TALK_WITH("drained before the greeting", HOW(.delay_ms = 2000), ADMIT,
		  DO(DRAIN), X("say 421 4.3.2; close drain")),
	TALK("drained between commands", HELLO, C("NO"), DO(DRAIN),
	     X("say 421 4.3.2; close drain")),
	TALK("drained in a transaction: it ends first", GROUP,
	     { .kind = DRAINING }, DO(DRAIN), X(""), R(RCPT, OK, 250),
	     R(RCPT, OK, 250), R(DATA, OK, 354), C(".\r\n"), { .kind = SKIP },
	     R(EOD, OK, 250),
	     X("relay 250; keep; log EOD ok 250; say 421 4.3.2; "
	       "close drain")),
	TALK("drained while MAIL waits", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     { .kind = DRAINING }, DO(DRAIN), BOUND, R(MAIL, OK, 250),
	     C("RCPT TO:<c@d>\r\n"), R(RCPT, OK, 250), C("RSET\r\n"),
	     X("bind; MAIL FROM:<a@b>; relay 250; RCPT TO:<c@d>; relay 250; "
	       "quit; log IDLE ok 0; say 250 2.0.0; say 421 4.3.2; "
	       "close drain")),
	TALK("drained, then its transaction breaks", TO_RCPT,
	     { .kind = DRAINING }, DO(DRAIN), X(""), LOST,
	     X("say 421 4.3.2; log TCP sick 451; close drain")),
	TALK("drained in a chunk", TO_RCPT, C("BDAT 2 LAST\r\nx"),
	     { .kind = DRAINING }, DO(DRAIN), C("y"), R(EOD, OK, 250),
	     X("BDAT 2 LAST; relay 250; keep; log EOD ok 250; "
	       "say 421 4.3.2; close drain")),
	TALK("drained, and 421 in an envelope behind its last chunk", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx"), { .kind = DRAINING },
	     DO(DRAIN), { .kind = SKIP }, R(RCPT, DRAIN, 421),
	     X("relay 451; reset; say 451 4.4.2; log EOD drain 451; "
	       "say 421 4.3.2; close drain")),
};

static void time_and_limits_are_kept(void **state)
{
	(void)state;
	RUN(times);
}

/* ---- the log's figures ---- */

static const struct talk failed_over = TALK(
	"", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND, R(MAIL, BUSY, 452), BOUND,
	R(MAIL, OK, 250), C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"),
	R(RCPT, OK, 250), R(RCPT, POLICY, 550), C("DATA\r\n"), R(DATA, OK, 354),
	C("hi\r\n.\r\n"), R(EOD, OK, 250));

static void a_failover_is_one_transaction_with_two_tries(void **state)
{
	(void)state;
	world_open(&failed_over);
	for (const struct move *m = failed_over.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	assert_int_equal(w->s.transactions, 1);
	assert_int_equal(w->s.messages, 1);
	assert_int_equal(w->s.message.tries, 2);
	assert_int_equal(w->s.message.rcpts, 2);
	assert_int_equal(w->s.message.rcpts_ok, 1);
	assert_int_equal(w->s.message.octets, 7);
	assert_false(w->s.message.unknown);
	assert_int_equal(stats_get(&w->stats, STATS_failovers), 1);
	assert_int_equal(stats_get(&w->stats, STATS_transactions), 1);
	assert_int_equal(stats_get(&w->stats, STATS_messages), 1);
	assert_int_equal(stats_get(&w->stats, STATS_recipients), 1);
	world_close();
}

static const struct talk at_final = TALK("", TO_DATA, C(".\r\n"));

static void a_kill_behind_the_end_of_data_leaves_it_unknown(void **state)
{
	(void)state;
	world_open(&at_final);
	for (const struct move *m = at_final.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	session_kill(&w->s, &w->plan, STATS_CLOSE_KILLED);
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_true(w->s.message.unknown);
	assert_int_equal(w->plan.count, 3);
	assert_int_equal(w->plan.acts[0].what, SESSION_DO_RESET);
	assert_int_equal(w->plan.acts[1].what, SESSION_DO_LOG);
	assert_int_equal(w->plan.acts[2].what, SESSION_DO_ABORT);
	world_close();
}

static void time_that_the_backend_took_is_not_the_clients(void **state)
{
	(void)state;
	world_open(&in_data);
	for (const struct move *m = in_data.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	w->env.now_ms = w->s.deadline_ms;
	assert_true(session_defer(&w->s, &w->env));
	assert_int_equal(w->s.deadline_ms, w->env.now_ms + 180000);
	config->timeouts.session_ms = 1000;
	assert_false(session_defer(&w->s, &w->env));
	world_close();
	world_open(&at_final);
	for (const struct move *m = at_final.moves; m->kind != END; m++)
		move_on(m, CUT_NOWHERE, &(size_t){ 0 });
	assert_false(session_defer(&w->s, &w->env));
	world_close();
}

/* ---- every event in every state ---- */

static const struct talk places[] = {
	TALK_WITH("greeting", HOW(.delay_ms = 2000), ADMIT),
	TALK("command", HELLO),
	TALK("half a line", HELLO, C("NOO")),
	TALK("skipping", HELLO, C(A500 A500)),
	TALK_WITH("resting", HOW(.tarpit_ms = 5000), HELLO, C("X\r\nNOOP\r\n")),
	TALK("binding", HELLO, C("MAIL FROM:<a@b>\r\n")),
	TALK("mail", HELLO, C("MAIL FROM:<a@b>\r\n"), BOUND),
	TALK("mail on a kept one", HELLO, C("MAIL FROM:<a@b>\r\n"),
	     BOUND_AGAIN),
	TALK("mail, RCPT ahead", HELLO,
	     C("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNO"), BOUND),
	TALK("mail, DATA ahead", HELLO, C(ENVELOPE), BOUND),
	TALK("mail on a kept one, DATA ahead and more", HELLO,
	     C(ENVELOPE "x\r\n"), BOUND_AGAIN),
	TALK("transaction", TO_RCPT),
	TALK("rcpt due", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nNOOP\r\n")),
	TALK("rcpt due, the next line in pieces", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nNO"), C("OP\r\n")),
	TALK("broken", TO_RCPT, LOST),
	TALK("data", GROUP),
	TALK("data, premature", TO_RCPT, C("DATA\r\nx")),
	TALK("body", TO_DATA, C("x\r\n")),
	TALK("body swallowed", TO_DATA, C("x\n")),
	TALK("body swallowed with a reply", TO_DATA, EARLY(POLICY, 421)),
	TALK("chunk", TO_MAIL, C("RCPT TO:<c@d>\r\nBDAT 3\r\nx")),
	TALK("last chunk", TO_RCPT, C("BDAT 3 LAST\r\nx")),
	TALK("chunk swallowed", TO_MAIL, C("BDAT 3\r\nx")),
	TALK("chunk swallowed without MAIL", HELLO, C("BDAT 3 LAST\r\nx")),
	TALK("chunk lost", TO_RCPT, C("BDAT 3 LAST\r\nx"), LOST),
	TALK("chunk due", TO_RCPT, C("BDAT 1\r\nx")),
	TALK("final", TO_DATA, C(".\r\n")),
	TALK("final of chunks", TO_MAIL,
	     C("RCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx")),
	TALK("final, half closed", TO_DATA, C(".\r\n"), OVER),
	TALK("final, gone", TO_DATA, C(".\r\n"), GONE),
	TALK("closed", HELLO, C("QUIT\r\n")),
};

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
	C("\026\003"),
	C("GET / HTTP/1.0\r\n"),
	C(A500 A500),
	AFTER(2000),
	AFTER(100000),
	AFTER(400000),
	OVER,
	GONE,
	ADMIT,
	DO(DRAIN),
	DO(TIMEOUT),
	SAID(REFUSED, TCP, OK, 0, "421 4.7.0 no\r\n"),
	BOUND,
	BOUND_POOR,
	BOUND_AGAIN,
	DO_WITH(BOUND, .ext = 0),
	UNBOUND(TCP, MAYBE),
	GIVEN_UP(GREET, BUSY),
	GREETED(POLICY, 554),
	GREETED(POLICY, 421),
	LOST,
};

enum { WORDS = sizeof(words) / sizeof(words[0]) };

/* One of all the replies there are, good and bad, asked for or not. */
static struct session_event any_reply(unsigned n)
{
	static const char *const texts[] = {
		"250 ok\r\n",       "354 go\r\n", "421-no\r\n421 no\r\n",
		"451 4.3.0 no\r\n", "550 no\r\n",
	};
	static const unsigned codes[] = { 250, 354, 421, 451, 550 };
	unsigned which = n % 5;
	struct session_event ev = {
		.kind = n / 5 % 2 ? SESSION_IN_EARLY : SESSION_IN_REPLY,
		.code = codes[which],
		.data = texts[which],
		.len = strlen(texts[which]),
	};

	ev.class = which < 2 ? BUSY_OK
			     : (enum busy_class)(BUSY_BUSY +
						 n / 10 % (BUSY_CLASSES - 1));
	ev.stage = (enum busy_stage)(BUSY_STAGE_MAIL +
				     n / 10 / (BUSY_CLASSES - 1) % 4);
	return ev;
}

enum { REPLIES = 5 * 2 * (BUSY_CLASSES - 1) * 4 };

/* One word or reply there, and then the end of it all. */
static void say_one(const struct talk *place, unsigned n, unsigned *seen)
{
	struct session_event ev;

	go_to(place);
	*seen |= 1u << w->s.state;
	w->env.draining = n % 3 == 0;
	if (n < WORDS) {
		move_on(&words[n], CUT_NOWHERE, &(size_t){ 0 });
	} else {
		ev = any_reply(n - WORDS);
		tell(&ev);
	}
	tell(&(struct session_event){ .kind = SESSION_IN_LOST });
	tell(&(struct session_event){ .kind = SESSION_IN_GONE });
	if (w->s.state == SESSION_BINDING)
		tell(&(struct session_event){ .kind = SESSION_IN_UNBOUND });
	assert_int_equal(w->s.state, SESSION_CLOSED);
	assert_int_equal(w->begun, w->logged);
	world_close();
}

static void every_event_is_defined_in_every_state(void **state)
{
	unsigned seen = 0;

	(void)state;
	for (size_t p = 0; p < sizeof(places) / sizeof(places[0]); p++) {
		for (unsigned n = 0; n < WORDS + REPLIES; n++)
			say_one(&places[p], n, &seen);
	}
	assert_int_equal(seen, (1u << SESSION_STATES) - 1);
}

static uint64_t dice;

static unsigned roll(unsigned sides)
{
	dice = dice * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (unsigned)(dice >> 33) % sides;
}

/* What a backend that knows its trade would say now, and then some. */
static void random_reply(void)
{
	struct session_event ev = any_reply(roll(REPLIES));

	if (roll(4) != 0) {
		ev = any_reply(0);
		ev.stage = BUSY_STAGE_RCPT;
		if (w->s.state == SESSION_MAIL)
			ev.stage = BUSY_STAGE_MAIL;
		else if (w->s.state == SESSION_FINAL && w->s.due == 1)
			ev.stage = BUSY_STAGE_EOD;
		else if (w->s.state == SESSION_DATA && w->s.due == 1)
			ev = any_reply(1);
		if (w->s.state == SESSION_DATA && w->s.due == 1)
			ev.stage = BUSY_STAGE_DATA;
	}
	tell(&ev);
}

/* What a client that means well would say next. */
static void random_sense(void)
{
	switch (w->s.state) {
	case SESSION_COMMAND:
		if (w->s.transaction != SESSION_MAIL_OPEN && roll(2) == 0)
			feed(ENVELOPE, sizeof(ENVELOPE) - 1);
		else if (w->s.transaction != SESSION_MAIL_OPEN)
			feed("MAIL FROM:<a@b>\r\n", 17);
		else if (w->s.message.rcpts == 0 || roll(3) == 0)
			feed("RCPT TO:<c@d>\r\n", 15);
		else if (w->s.message.chunked || roll(2) == 0)
			feed("BDAT 2 LAST\r\nab", 15);
		else
			feed("DATA\r\n", 6);
		return;
	case SESSION_BODY:
		feed("x\r\n.\r\n", 6);
		return;
	case SESSION_CHUNK:
		feed("abcdefghi", (size_t)(w->s.chunk_left % 10));
		return;
	case SESSION_GREETING:
	case SESSION_BINDING:
	case SESSION_MAIL:
	case SESSION_DATA:
	case SESSION_FINAL:
	case SESSION_CLOSED:
	case SESSION_STATES:
		return;
	}
}

static void random_walk(void)
{
	for (unsigned i = 0; i < 400 && w->s.state != SESSION_CLOSED; i++) {
		unsigned n = roll(WORDS);

		if (w->s.state == SESSION_BINDING && roll(2) == 0) {
			tell(&(struct session_event){ .kind = SESSION_IN_BOUND,
						      .ext = ALL_EXT,
						      .pipelining = true,
						      .reused = roll(3) == 0 });
		} else if (w->s.due > 0 && roll(2) == 0) {
			random_reply();
		} else if (w->first == w->count && roll(8) != 0) {
			random_sense();
		} else if (words[n].kind == CLIENT && roll(2) == 0) {
			move_on(&words[n], CUT_EVERYWHERE, &(size_t){ 0 });
		} else if (words[n].kind == CLIENT || roll(8) == 0) {
			move_on(&words[n], CUT_NOWHERE, &(size_t){ 0 });
		} else if (roll(20) == 0) {
			w->env.draining = true;
		}
	}
}

static void a_random_walk_breaks_no_rule(void **state)
{
	static const struct knobs ways[] = {
		{ .max_errors = 1000 },
		{ .tarpit_ms = 1000, .max_errors = 5 },
		{ .max_errors = 1000, .size = 20, .max_recipients = 2 },
		{ .max_errors = 1000, .session_ms = 500000, .tries = 1 },
	};
	unsigned longest = 0;
	unsigned messages = 0;
	unsigned ahead = 0;

	(void)state;
	for (unsigned seed = 0; seed < 4000; seed++) {
		struct talk t = { .name = "walk", .knobs = ways[seed % 4] };

		dice = seed;
		world_open(&t);
		tell(&(struct session_event){ .kind = SESSION_IN_ADMITTED });
		feed("EHLO c\r\n", 8);
		random_walk();
		if (w->most_acts > longest)
			longest = w->most_acts;
		messages += w->s.messages;
		ahead += w->sent_ahead;
		world_close();
	}
	/* The walk came far enough to mean something. */
	assert_true(messages > 500);
	assert_true(ahead > 500);
	assert_true(longest >= 5);
	assert_true(longest <= SESSION_ACTS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replies_keep_their_order),
		cmocka_unit_test(
			no_more_is_pipelined_than_the_backend_conversation_holds),
		cmocka_unit_test(chunks_are_counted_relayed_or_swallowed),
		cmocka_unit_test(bodies_arrive_whole_or_not_at_all),
		cmocka_unit_test(
			smuggling_vectors_reach_no_backend_as_a_message),
		cmocka_unit_test(failover_is_hidden_and_never_after_a_reply),
		cmocka_unit_test(lines_behind_mail_are_sent_ahead_and_undone),
		cmocka_unit_test(
			a_long_envelope_is_sent_ahead_as_far_as_there_is_room),
		cmocka_unit_test(
			a_body_that_did_not_wait_is_known_before_it_is_read),
		cmocka_unit_test(a_kill_with_lines_ahead_forgets_them),
		cmocka_unit_test(nonsense_is_answered_and_bounded),
		cmocka_unit_test(time_and_limits_are_kept),
		cmocka_unit_test(a_failover_is_one_transaction_with_two_tries),
		cmocka_unit_test(
			a_kill_behind_the_end_of_data_leaves_it_unknown),
		cmocka_unit_test(time_that_the_backend_took_is_not_the_clients),
		cmocka_unit_test(every_event_is_defined_in_every_state),
		cmocka_unit_test(a_random_walk_breaks_no_rule),
	};
	int failed;

	w = calloc(1, sizeof(*w));
	uncut = calloc(1, sizeof(*uncut));
	config = calloc(1, sizeof(*config));
	if (w == NULL || uncut == NULL || config == NULL)
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	free(w);
	free(uncut);
	free(config);
	return failed;
}
