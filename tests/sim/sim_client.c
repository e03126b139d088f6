#include "tests/sim/sim_client.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_script.h"
#include "tests/sim/sim_wire.h"

enum {
	REPLY_MAX = 20000,
	DUE_MAX = 512,
	READ_SIZE = 2048,
	/*
	 * Longer than any timeout of the configurations in use: who waits so
	 * long waits for ever.
	 */
	PATIENCE_US = 150 * SIM_SECOND,
};

/* A reply that is due. */
struct due {
	enum sim_reply_kind kind;
	unsigned sent; /* which of the script's messages */
	unsigned rcpt; /* which of its recipients */
	struct check_message *message;
	bool injects;
};

/* An octet of the stream, and what has been said once it is out. */
struct milestone {
	uint64_t at;
	struct check_message *message;
};

struct sim_client {
	struct sim *sim;
	struct check *check;
	struct sim_client_config config;
	struct sim_script script;
	size_t step;
	struct sim_wire wire;
	union sim_addr addr;
	struct sim_timer timer;    /* connecting, pauses, dribbling */
	struct sim_timer patience; /* a reply, or the end, is awaited */
	bool started, open, done;
	bool connected, heard;
	bool pausing;
	bool in_body; /* what waits to be said is of a body */
	bool ended;   /* weir said 421, or greeted with a refusal */
	bool aborted;
	bool faulted;
	bool shaking;       /* hands: nothing is said meanwhile */
	bool may_secure;    /* STARTTLS is offered */
	bool may_auth;      /* its way of AUTH is */
	bool go_secure;     /* STARTTLS drew 220 */
	bool heard_in_tls;  /* a word: then weir has TLS, too */
	bool hasty;         /* it did not wait for that: there may be no TLS */
	bool authenticated; /* AUTH drew 235 */
	unsigned auth_at;   /* lines of the dialogue so far */
	char grievance[700];
	/* what is to be sent */
	uint8_t *out;
	size_t out_len, out_max, out_from;
	uint64_t said; /* octets of the stream handed to the network */
	struct milestone *milestones;
	size_t milestone_count, milestone_at, milestones_max;
	/* what is due and what has come */
	struct due due[DUE_MAX];
	unsigned due_first, due_count;
	unsigned last_code;
	unsigned go_ahead; /* the last reply to DATA */
	bool pipelining;
	size_t line_from;
	size_t reply_len;
	char reply[REPLY_MAX];
};

static void wrong(struct sim_client *c, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void wrong(struct sim_client *c, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	sim_violation(c->sim, "client %u: %s", c->config.number, text);
}

/* Does a proxy name its address, which is believed? */
static bool is_named(const struct sim_client *c)
{
	return c->config.proxy > 0 && !c->config.forges;
}

static void patience_renew(struct sim_client *c)
{
	if (!c->done)
		sim_timer_set(c->sim, &c->patience,
			      sim_now_us(c->sim) + PATIENCE_US);
}

/* The connection is over, one way or the other. */
static void finish(struct sim_client *c, bool reset)
{
	if (c->done)
		return;
	c->done = true;
	sim_timer_clear(c->sim, &c->timer);
	sim_timer_clear(c->sim, &c->patience);
	if (reset) {
		sim_wire_reset(&c->wire);
		return;
	}
	if (!c->script.curt)
		sim_wire_notify(&c->wire);
	sim_wire_close(&c->wire);
}

/* --- sending --- */

static void octets(struct sim_client *c, const void *data, size_t len)
{
	if (c->out_len + len > c->out_max) {
		c->out_max = 2 * (c->out_len + len);
		c->out = realloc(c->out, c->out_max);
		if (c->out == NULL)
			abort();
	}
	memcpy(c->out + c->out_len, data, len);
	c->out_len += len;
}

static void milestone(struct sim_client *c, struct check_message *m)
{
	if (c->milestone_count == c->milestones_max) {
		c->milestones_max = 2 * c->milestones_max + 8;
		c->milestones = realloc(c->milestones,
					c->milestones_max *
						sizeof(*c->milestones));
		if (c->milestones == NULL)
			abort();
	}
	c->milestones[c->milestone_count++] = (struct milestone){
		.at = c->said + (c->out_len - c->out_from),
		.message = m,
	};
}

/* Hand n octets to the network. */
static void say(struct sim_client *c, size_t n)
{
	sim_wire_say(&c->wire, c->out + c->out_from, n);
	c->out_from += n;
	c->said += n;
	patience_renew(c);
	if (c->out_from == c->out_len)
		c->out_from = c->out_len = 0;
	while (c->milestone_at < c->milestone_count &&
	       c->milestones[c->milestone_at].at <= c->said)
		c->milestones[c->milestone_at++].message->whole = true;
}

static void give_up(struct sim_client *c)
{
	c->aborted = true;
	switch (c->script.abort_by) {
	case SIM_ABORT_RST:
		finish(c, true);
		return;
	case SIM_ABORT_CLOSE:
		finish(c, false);
		return;
	case SIM_ABORT_FIN:
		sim_wire_fin(&c->wire, !c->script.curt);
		c->out_from = c->out_len = 0;
		c->step = c->script.count; /* and listens on */
		return;
	case SIM_ABORT_NONE:
		break;
	}
}

/* True: all that was to be said is said. */
static bool speak(struct sim_client *c)
{
	size_t waits = c->out_len - c->out_from;
	uint64_t left = c->script.abort_at - c->said;

	if (waits == 0)
		return true;
	if (c->script.pace_octets > 0 && waits > c->script.pace_octets &&
	    (c->in_body || !c->script.dribbles))
		waits = c->script.pace_octets;
	bool aborts = c->script.abort_by != SIM_ABORT_NONE && waits >= left;
	if (aborts && left > 0 && c->script.tears && c->wire.tls != NULL)
		sim_wire_tear(&c->wire);
	say(c, aborts ? (size_t)left : waits);
	if (aborts) {
		give_up(c);
		return false;
	}
	if (c->out_len == c->out_from)
		return true;
	sim_timer_set(c->sim, &c->timer,
		      sim_now_us(c->sim) + c->script.pace_us);
	return false;
}

static void expect(struct sim_client *c, enum sim_reply_kind kind,
		   const struct sim_step *step)
{
	struct due due = { .kind = kind };

	if (kind == SIM_REPLY_NONE)
		return;
	if (step != NULL) {
		due.sent = step->sent;
		due.rcpt = step->rcpt;
		due.message = step->message;
		due.injects = step->injects;
	}
	assert(c->due_count < DUE_MAX);
	c->due[(c->due_first + c->due_count++) % DUE_MAX] = due;
}

/* --- the script --- */

/* Is there still a point in this step? */
static bool step_is_moot(const struct sim_client *c,
			 const struct sim_step *step)
{
	if (step->reply == SIM_REPLY_STARTTLS)
		return !c->may_secure && !step->regardless;
	if (step->reply == SIM_REPLY_AUTH)
		return !c->may_auth && !step->regardless;
	if (step->op == SIM_OP_TLS)
		return !c->go_secure && !step->regardless;
	if (step->message == NULL)
		return false;
	const struct sim_sent *sent = &c->script.sent[step->sent];
	if (step->only_if_open)
		return !sent->opened || sent->closed;
	return sent->dead;
}

/* Nothing may be said behind some commands (RFC 2920, section 3.1). */
static bool group_has_ended(const struct sim_client *c)
{
	unsigned last = (c->due_first + c->due_count - 1) % DUE_MAX;
	enum sim_reply_kind kind = c->due[last].kind;

	return kind == SIM_REPLY_EHLO || kind == SIM_REPLY_STARTTLS ||
	       kind == SIM_REPLY_AUTH;
}

static bool step_must_wait(const struct sim_client *c,
			   const struct sim_step *step)
{
	if (c->due_count == 0)
		return false;
	if (c->script.loose)
		return step->alone;
	return step->alone || !c->pipelining || group_has_ended(c);
}

static void step_chunk(struct sim_client *c, const struct sim_step *step)
{
	char line[64];
	struct check_message *m = step->message;
	bool last = step->upto == m->body_len;
	int n = snprintf(line, sizeof(line), "BDAT %zu%s\r\n",
			 step->upto - step->from, last ? " LAST" : "");

	octets(c, line, (size_t)n);
	octets(c, m->body + step->from, step->upto - step->from);
	if (last)
		milestone(c, m);
	expect(c, last ? SIM_REPLY_FINAL : SIM_REPLY_CHUNK, step);
}

static void step_body(struct sim_client *c, const struct sim_step *step)
{
	struct check_message *m = step->message;

	if (c->go_ahead != 354 && !step->regardless)
		return;
	octets(c, m->body, m->body_len);
	milestone(c, m);
	if (!step->regardless)
		expect(c, SIM_REPLY_FINAL, step);
}

static void begin_tls(struct sim_client *c)
{
	const struct sim_tls_wish wish = {
		.old = c->config.old_tls,
		.drawer = c->config.drawer,
		.record = c->script.record,
		.name = c->config.number % 3 == 0 ? "mx.test" : NULL,
		.card = c->config.number % 5 == 0,
	};

	c->go_secure = false;
	if (c->wire.tls != NULL)
		return; /* the 220 was a mistake, which others will tell of */
	c->shaking = true;
	if (!c->script.abandons) {
		sim_wire_secure(&c->wire, &wish);
		return;
	}
	c->aborted = true;
	sim_wire_tear(&c->wire);
	sim_wire_secure(&c->wire, &wish);
	finish(c, c->script.abort_by == SIM_ABORT_RST);
}

static void step_line(struct sim_client *c, const struct sim_step *step)
{
	if (step->reply == SIM_REPLY_MAIL)
		step->message->authenticated = c->authenticated;
	if (step->reply == SIM_REPLY_AUTH)
		c->auth_at = 0;
	c->hasty = c->hasty || step->injects;
	octets(c, step->text, step->text_len);
	octets(c, "\r\n", 2);
	expect(c, step->reply, step);
}

static void step_do(struct sim_client *c, const struct sim_step *step)
{
	c->in_body = step->op == SIM_OP_BODY || step->op == SIM_OP_CHUNK;
	switch (step->op) {
	case SIM_OP_LINE:
		step_line(c, step);
		return;
	case SIM_OP_TLS:
		begin_tls(c);
		return;
	case SIM_OP_REKEY:
		if (sim_wire_is_secure(&c->wire) && !c->config.old_tls) {
			sim_tls_rekey(c->wire.tls);
			sim_wire_flush(&c->wire);
		}
		return;
	case SIM_OP_RAW:
		octets(c, step->text, step->text_len);
		return;
	case SIM_OP_BODY:
		step_body(c, step);
		return;
	case SIM_OP_CHUNK:
		step_chunk(c, step);
		return;
	case SIM_OP_PAUSE:
		c->pausing = true;
		sim_timer_set(c->sim, &c->timer,
			      sim_now_us(c->sim) + step->pause_us);
		return;
	case SIM_OP_FIN:
		c->aborted = true;
		sim_wire_fin(&c->wire, !c->script.curt);
		return;
	case SIM_OP_RST:
		c->aborted = true;
		finish(c, true);
		return;
	case SIM_OP_CLOSE:
		finish(c, false);
		return;
	}
}

static void client_run(struct sim_client *c)
{
	while (!c->done && !c->pausing && !c->shaking && c->open) {
		if (!speak(c) || c->ended)
			return;
		if (c->step == c->script.count)
			return; /* weir is to end it, or to speak */
		const struct sim_step *step = &c->script.steps[c->step];
		if (step_must_wait(c, step))
			return;
		c->step++;
		if (step_is_moot(c, step))
			continue;
		step_do(c, step);
		patience_renew(c);
	}
}

/* --- replies --- */

/* There is nothing left to do for this message. */
static void message_over(struct sim_client *c, unsigned sent)
{
	c->script.sent[sent].dead = true;
}

static bool offered(const struct sim_client *c, const char *word)
{
	return memmem(c->reply, c->reply_len, word, strlen(word)) != NULL;
}

/* Is this way of AUTH among those in its line? */
static bool offers_auth(const struct sim_client *c)
{
	const char *line = memmem(c->reply, c->reply_len, "AUTH ", 5);
	const char *name = sim_auth_name(c->script.auth);
	size_t name_len = strlen(name);

	while (line != NULL && *line != '\r' && *line != '\0') {
		size_t len = strcspn(line, " \r");

		if (len == name_len && strncmp(line, name, len) == 0)
			return true;
		line += len + (line[len] == ' ');
	}
	return false;
}

static void note_offers(struct sim_client *c)
{
	bool secure = c->wire.tls != NULL;

	c->pipelining = c->script.pipelines && offered(c, "PIPELINING");
	c->may_secure = offered(c, "STARTTLS");
	c->may_auth = offers_auth(c);
	if (secure && c->may_secure)
		wrong(c, "was offered STARTTLS within TLS");
	if (!secure && !c->config.auth_in_clear && offered(c, "AUTH"))
		wrong(c, "was offered AUTH in the clear");
	if (offered(c, "-PLUS"))
		wrong(c, "was offered what no proxy can relay");
}

static void on_starttls(struct sim_client *c, const struct due *due,
			unsigned code)
{
	c->go_secure = code == 220;
	if (code == 220 || !due->injects)
		return;
	/* Then what follows may be obeyed: it has gone too far. */
	c->aborted = true;
	finish(c, true);
}

static void on_auth(struct sim_client *c, unsigned code)
{
	char text[SIM_AUTH_LINE_MAX];

	c->authenticated = c->authenticated || code == 235;
	if (code != 334)
		return;
	if (c->script.cancels ||
	    !sim_auth_say(c->script.auth, c->config.number, ++c->auth_at, text))
		snprintf(text, sizeof(text), "*");
	octets(c, text, strlen(text));
	octets(c, "\r\n", 2);
	expect(c, SIM_REPLY_AUTH, NULL);
}

static void on_ehlo(struct sim_client *c, unsigned code)
{
	static const char *const never[] = { "XCLIENT", "XFORWARD", "ETRN",
					     "X-WHATEVER" };

	if (code == 250)
		note_offers(c);
	for (unsigned i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
		if (offered(c, never[i]))
			wrong(c, "was offered %s", never[i]);
	}
	if (!offered(c, "CHUNKING"))
		sim_script_no_chunks(&c->script);
	if (!offered(c, "SIZE"))
		sim_script_no_params(&c->script, " SIZE");
	if (!offered(c, "8BITMIME"))
		sim_script_no_params(&c->script, " BODY");
}

static void on_mail(struct sim_client *c, const struct due *due, unsigned code)
{
	if (code < 300)
		c->script.sent[due->sent].opened = true;
	else
		message_over(c, due->sent);
}

static void on_reply(struct sim_client *c, const struct due *due, unsigned code)
{
	struct check_message *m = due->message;

	switch (due->kind) {
	case SIM_REPLY_NONE:
	case SIM_REPLY_ANY:
		return;
	case SIM_REPLY_GREETING:
		if (code == 220)
			check_totals(c->check)->greeted++;
		else
			check_totals(c->check)->refused++;
		c->ended = code != 220;
		return;
	case SIM_REPLY_EHLO:
		on_ehlo(c, code);
		return;
	case SIM_REPLY_STARTTLS:
		on_starttls(c, due, code);
		return;
	case SIM_REPLY_AUTH:
		on_auth(c, code);
		return;
	case SIM_REPLY_MAIL:
		on_mail(c, due, code);
		return;
	case SIM_REPLY_RCPT:
		if (code < 300)
			m->rcpts_ok |= 1U << due->rcpt;
		return;
	case SIM_REPLY_DATA:
		c->go_ahead = code;
		if (code != 354)
			message_over(c, due->sent);
		return;
	case SIM_REPLY_CHUNK:
		if (code >= 300)
			message_over(c, due->sent);
		return;
	case SIM_REPLY_FINAL:
		check_answered(c->check, m, code);
		if (code < 300)
			c->script.sent[due->sent].closed = true;
		message_over(c, due->sent);
		return;
	case SIM_REPLY_RSET:
		return;
	case SIM_REPLY_QUIT:
		if (code != 221 && code != 421 && !c->script.loose)
			wrong(c, "QUIT drew %u", code);
		c->ended = true;
		return;
	}
}

/* Is the reply about somebody else's message? */
static void check_mark(struct sim_client *c, const struct due *due)
{
	unsigned client, number;

	if (!check_mark_read(c->reply, c->reply_len, &client, &number))
		return;
	const struct check_message *m = check_message_find(c->check, c->reply,
							   c->reply_len);
	/*
	 * A server that says more than it was asked may say the rest to the
	 * next one whose message it gets: no proxy can tell.
	 */
	if (client != c->config.number && m != NULL && m->lied)
		return;
	if (client != c->config.number) {
		wrong(c, "reads a reply that is about c%u.m%u: \"%.60s\"",
		      client, number, c->reply);
		return;
	}
	if (due == NULL || due->message == NULL ||
	    due->message->number == number || due->message->lied)
		return;
	if (m == NULL || !m->lied)
		wrong(c, "reads about m%u what should be about m%u", number,
		      due->message->number);
}

static void whole_reply(struct sim_client *c, unsigned code)
{
	struct due due = { .kind = SIM_REPLY_NONE };

	c->reply[c->reply_len < REPLY_MAX ? c->reply_len : REPLY_MAX - 1] =
		'\0';
	c->heard = true;
	c->last_code = code;
	check_shown(c->check, "a reply", c->reply, c->reply_len);
	if (c->due_count > 0) {
		due = c->due[c->due_first];
		c->due_first = (c->due_first + 1) % DUE_MAX;
		c->due_count--;
		check_mark(c, &due);
		on_reply(c, &due, code);
	} else {
		check_mark(c, NULL);
		if (code != 421 && !c->script.loose)
			wrong(c, "reads a reply to nothing: \"%.60s\"",
			      c->reply);
	}
	if (code == 421)
		c->ended = true;
	c->reply_len = c->line_from = 0;
	patience_renew(c);
}

/* One line, with its CRLF, ends at reply_len. */
static void reply_line(struct sim_client *c)
{
	const char *line = c->reply + c->line_from;
	size_t len = c->reply_len - c->line_from;

	if (len < 5 || line[0] < '2' || line[0] > '5' || line[1] < '0' ||
	    line[1] > '9' || line[2] < '0' || line[2] > '9' ||
	    (line[3] != ' ' && line[3] != '-' && len != 5) ||
	    line[len - 2] != '\r' || memchr(line, '\r', len - 2) != NULL ||
	    memchr(line, '\0', len) != NULL || memcmp(line, c->reply, 3) != 0) {
		wrong(c, "reads what is no reply: \"%.*s\"", (int)len - 2,
		      line);
		return;
	}
	unsigned code = (unsigned)(line[0] - '0') * 100 +
			(unsigned)(line[1] - '0') * 10 +
			(unsigned)(line[2] - '0');
	if (line[3] == '-')
		c->line_from = c->reply_len;
	else
		whole_reply(c, code);
}

static void take_octet(struct sim_client *c, char octet)
{
	if (c->reply_len == REPLY_MAX - 1) {
		wrong(c, "reads a reply without end");
		c->reply_len = c->line_from = 0;
	}
	c->reply[c->reply_len++] = octet;
	if (octet == '\n')
		reply_line(c);
}

static void listen_on(struct sim_client *c)
{
	char buf[READ_SIZE];

	while (!c->script.deaf && !c->done) {
		size_t n = sim_wire_read(&c->wire, buf, sizeof(buf));

		if (c->shaking && sim_wire_is_secure(&c->wire)) {
			c->shaking = false;
			check_totals(c->check)->secured++;
		}
		if (n == 0)
			return;
		c->heard_in_tls = c->wire.tls != NULL;
		for (size_t i = 0; i < n && !c->done; i++)
			take_octet(c, buf[i]);
	}
}

/* --- the beginning --- */

/* The header of a proxy in front: PROXY, version 1 or 2. */
static void say_header(struct sim_client *c)
{
	static const uint8_t binary[] = "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
	static const uint8_t to_host[] = { 203, 0, 113, 9 };
	static const uint8_t to_port[] = { 0, 25 };
	const struct sockaddr_in *a = &c->config.named.in;
	uint8_t header[64];
	char host[64], line[128];
	size_t at = sizeof(binary) - 1;

	assert(a->sin_family == AF_INET);
	if (c->config.proxy == 1) {
		inet_ntop(AF_INET, &a->sin_addr, host, sizeof(host));
		int n = snprintf(line, sizeof(line),
				 "PROXY TCP4 %s 203.0.113.9 %u 25\r\n", host,
				 ntohs(a->sin_port));
		sim_wire_say_raw(&c->wire, line, (size_t)n);
		return;
	}
	memcpy(header, binary, at);
	memcpy(header + at, &a->sin_addr, 4);
	memcpy(header + at + 4, to_host, sizeof(to_host));
	memcpy(header + at + 8, &a->sin_port, 2);
	memcpy(header + at + 10, to_port, sizeof(to_port));
	sim_wire_say_raw(&c->wire, header, at + 12);
}

/* --- the end --- */

/*
 * weir ended the connection.  A client that did nothing wrong must have been
 * told why, in a whole reply; whether weir is excused is known when its log
 * has told the reason.
 */
static void check_farewell(struct sim_client *c, bool reset)
{
	bool told = c->ended || c->last_code == 221 || c->last_code == 421;
	int64_t now_us = sim_now_us(c->sim);

	if (c->aborted || c->faulted || c->script.deaf || c->script.loose ||
	    c->shaking || (c->wire.tls != NULL && !c->heard_in_tls) ||
	    (c->hasty && !sim_wire_is_secure(&c->wire)))
		return;
	if (c->wire.tls != NULL && !reset && !sim_wire_ended_well(&c->wire)) {
		snprintf(c->grievance, sizeof(c->grievance),
			 "reads the end of TLS without close_notify");
		return;
	}
	if (c->reply_len > 0) {
		snprintf(c->grievance, sizeof(c->grievance),
			 "reads half a reply and then the end: \"%.*s\"",
			 c->reply_len < 200 ? (int)c->reply_len : 200,
			 c->reply);
	} else if (!told) {
		snprintf(c->grievance, sizeof(c->grievance),
			 "is %s without a word, %u replies due at %.3f ms",
			 reset ? "reset" : "left", c->due_count,
			 (double)now_us / SIM_MS);
	}
}

/*
 * Its own address, or as the log has it: the one that a proxy named, unless
 * weir ended it before it had read the header.
 */
static const union sim_addr *logged_addr(const struct sim_client *c)
{
	bool named = is_named(c) &&
		     check_log_client(c->check, &c->config.named) > 0;

	return named ? &c->config.named : &c->addr;
}

void sim_client_complain(struct sim_client *c)
{
	const char *reason = check_log_reason(c->check, logged_addr(c));

	/*
	 * Without a buffer nothing can be said, and at the end of a drain or
	 * at an operator's word there is no time to.
	 */
	if (c->grievance[0] == '\0' || sim_is_starved(c->sim) ||
	    strcmp(reason, "no_buffers") == 0 || strcmp(reason, "killed") == 0)
		return;
	wrong(c, "%s, close=%s", c->grievance, reason);
}

/* False: TLS is beyond repair. */
static bool tls_holds(struct sim_client *c)
{
	if (!sim_wire_has_failed(&c->wire))
		return true;
	if (!c->aborted && !c->faulted && !c->script.loose && !c->hasty)
		snprintf(c->grievance, sizeof(c->grievance), "has no TLS: %s",
			 sim_tls_about(c->wire.tls));
	finish(c, true);
	return false;
}

static void come_in(struct sim_client *c)
{
	c->open = c->connected = true;
	check_totals(c->check)->connected++;
	if (c->config.proxy > 0)
		say_header(c);
	if (c->script.implicit)
		begin_tls(c);
	client_run(c);
}

static void client_event(void *owner, struct sim_end *end, enum sim_what what,
			 int err)
{
	struct sim_client *c = owner;

	if (sim_end_faulted(end))
		c->faulted = true;
	switch (what) {
	case SIM_OPEN:
		come_in(c);
		return;
	case SIM_FAILED:
		sim_trace(c->sim, "client %u: cannot connect, errno %d",
			  c->config.number, err);
		c->wire.end = NULL;
		finish(c, false);
		return;
	case SIM_ROOM:
		return;
	case SIM_RST:
		listen_on(c);
		check_farewell(c, true);
		finish(c, true);
		return;
	case SIM_DATA:
	case SIM_FIN:
		listen_on(c);
		if (!tls_holds(c))
			return;
		/* close_notify is as good as an end. */
		if (what == SIM_FIN || sim_wire_at_end(&c->wire)) {
			check_farewell(c, false);
			finish(c, false);
			return;
		}
		client_run(c);
		return;
	}
}

static void patience_fires(void *owner)
{
	struct sim_client *c = owner;

	/* Nothing reaches a client on the other side of a black hole. */
	if (c->wire.end != NULL && sim_end_faulted(c->wire.end))
		c->faulted = true;
	if (c->open && !c->faulted)
		wrong(c, "waits for ever: step %zu of %zu, %u replies due",
		      c->step, c->script.count, c->due_count);
	finish(c, true);
}

static void timer_fires(void *owner)
{
	struct sim_client *c = owner;

	if (!c->started) {
		c->started = true;
		sim_wire_open(&c->wire, c->sim,
			      sim_connect(c->sim, &c->config.to.sa,
					  &c->config.from.sa, client_event, c));
		c->addr = *sim_end_addr(c->wire.end, 0);
		check_client(c->check, c->config.number,
			     is_named(c) ? &c->config.named : &c->addr);
		sim_trace(c->sim, "client %u: nature %u, conn %u",
			  c->config.number, (unsigned)c->config.nature,
			  sim_end_number(c->wire.end));
		expect(c, SIM_REPLY_GREETING, NULL);
		patience_renew(c);
		return;
	}
	c->pausing = false;
	client_run(c);
}

struct sim_client *sim_client_new(struct sim *sim, struct check *check,
				  const struct sim_client_config *config)
{
	struct sim_client *c = calloc(1, sizeof(*c));

	if (c == NULL)
		abort();
	c->sim = sim;
	c->check = check;
	c->config = *config;
	c->timer = (struct sim_timer){ .fire = timer_fires, .owner = c };
	c->patience = (struct sim_timer){ .fire = patience_fires, .owner = c };
	check_totals(check)->clients++;
	sim_script_write(&c->script, sim, check, config);
	sim_timer_set(sim, &c->timer, config->at_us);
	return c;
}

void sim_client_free(struct sim_client **cp)
{
	struct sim_client *c = *cp;

	if (c == NULL)
		return;
	finish(c, true);
	sim_script_free(&c->script);
	free(c->out);
	free(c->milestones);
	free(c);
	*cp = NULL;
}

bool sim_client_done(const struct sim_client *c)
{
	return c->done;
}

bool sim_client_heard(const struct sim_client *c)
{
	return c->connected && c->heard;
}

unsigned sim_client_logged(const struct sim_client *c)
{
	return check_log_client(c->check, logged_addr(c));
}
