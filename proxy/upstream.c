#include "proxy/upstream.h"

#include <assert.h>
#include <string.h>

void upstream_begin(struct upstream *u, const struct upstream_order *order,
		    const struct upstream_timeouts *timeouts, int64_t now_ms)
{
	assert(order->name_len > 0);
	assert(order->name_len <= SMTP_DOMAIN_MAX);
	assert(!order->tcp || order->tls == UPSTREAM_CLEAR || order->implicit);
	assert(!order->tcp || order->who == NULL);
	assert(timeouts != NULL);

	u->state = UPSTREAM_CONNECTING;
	u->stage = BUSY_STAGE_TCP;
	u->unfit = UPSTREAM_NO_STARTTLS;
	u->reading = false;
	u->unasked = false;
	u->surplus = false;
	u->chunk_open = false;
	u->secured = false;
	u->tls_refused = false;
	u->introduce = order->who != NULL;
	u->greeted = false;
	u->implicit = order->implicit;
	u->tcp = order->tcp;
	u->tls = order->tls;
	u->ehlo = (struct smtp_ehlo){ 0 };
	u->deadline_ms = now_ms + timeouts->connect_ms;
	u->due = 0;
	u->first = 0;
	u->timeouts = timeouts;
	u->say = NULL;
	u->say_len = 0;
	u->raw_len = 0;
	if (order->who != NULL)
		u->who = *order->who;
	memcpy(u->name, order->name, order->name_len);
	u->name[order->name_len] = '\0';
}

static void await(struct upstream *u, enum upstream_state state, int64_t in_ms,
		  int64_t now_ms)
{
	u->state = state;
	u->deadline_ms = now_ms + in_ms;
}

void upstream_connected(struct upstream *u, int64_t now_ms)
{
	assert(u->state == UPSTREAM_CONNECTING);
	if (u->implicit)
		await(u, UPSTREAM_TLS, u->timeouts->tls_ms, now_ms);
	else
		await(u, UPSTREAM_GREETING, u->timeouts->greeting_ms, now_ms);
}

static enum upstream_said say(struct upstream *u, const char *words, size_t len)
{
	u->say = words;
	u->say_len = (uint16_t)len;
	return UPSTREAM_SAY;
}

static_assert(SMTP_DOMAIN_MAX + 7 <= XCLIENT_LINE_MAX, "EHLO fits into .line");

static enum upstream_said say_hello(struct upstream *u,
				    enum upstream_state state, int64_t now_ms)
{
	const char *verb = state == UPSTREAM_EHLO ? "EHLO " : "HELO ";
	size_t name_len = strlen(u->name);

	await(u, state, u->timeouts->helo_ms, now_ms);
	u->ehlo = (struct smtp_ehlo){ 0 };
	memcpy(u->line, verb, 5);
	memcpy(u->line + 5, u->name, name_len);
	memcpy(u->line + 5 + name_len, "\r\n", 2);
	return say(u, u->line, name_len + 7);
}

static enum upstream_said unfit(struct upstream *u, enum upstream_unfit why)
{
	u->unfit = why;
	return UPSTREAM_UNFIT;
}

static enum upstream_said say_xclient(struct upstream *u, int64_t now_ms)
{
	size_t len = xclient_write(u->line, u->ehlo.xclient, &u->who);

	if (len == 0)
		return unfit(u, UPSTREAM_NO_XCLIENT);
	u->introduce = false;
	await(u, UPSTREAM_XCLIENT, u->timeouts->helo_ms, now_ms);
	return say(u, u->line, len);
}

static enum upstream_said be_ready(struct upstream *u)
{
	assert(u->secured || !u->implicit);
	assert(u->secured || u->tls != UPSTREAM_TLS_MUST);
	u->state = UPSTREAM_READY;
	u->deadline_ms = INT64_MAX;
	return UPSTREAM_IS_READY;
}

/*
 * What comes next, now that it has answered EHLO.  XCLIENT behind STARTTLS:
 * TLS outlives XCLIENT, and not the other way round.
 */
static enum upstream_said go_on(struct upstream *u, int64_t now_ms)
{
	if (u->tls != UPSTREAM_CLEAR && !u->secured && !u->tls_refused) {
		if (u->ehlo.ext & SMTP_EXT_STARTTLS) {
			await(u, UPSTREAM_STARTTLS, u->timeouts->helo_ms,
			      now_ms);
			return say(u, "STARTTLS\r\n", 10);
		}
		if (u->tls == UPSTREAM_TLS_MUST)
			return unfit(u, UPSTREAM_NO_STARTTLS);
	}
	if (u->introduce)
		return say_xclient(u, now_ms);
	return be_ready(u);
}

enum upstream_said upstream_secured(struct upstream *u, int64_t now_ms)
{
	assert(u->state == UPSTREAM_TLS);
	assert(!u->secured);
	assert(!u->reading);
	u->secured = true;
	if (u->greeted)
		return say_hello(u, UPSTREAM_EHLO, now_ms);
	await(u, UPSTREAM_GREETING, u->timeouts->greeting_ms, now_ms);
	return UPSTREAM_MORE;
}

enum upstream_said upstream_introduce(struct upstream *u,
				      const struct xclient *who, int64_t now_ms)
{
	assert(u->state == UPSTREAM_READY);
	assert(u->due == 0);
	assert(!u->tcp);
	if (u->reading || u->surplus)
		return UPSTREAM_GARBAGE;
	u->who = *who;
	/* EHLO, which follows, is said for that client as well. */
	if (who->helo_len > 0) {
		assert(who->helo_len <= SMTP_DOMAIN_MAX);
		memcpy(u->name, who->helo, who->helo_len);
		u->name[who->helo_len] = '\0';
	}
	return say_xclient(u, now_ms);
}

static int64_t patience(const struct upstream *u, enum busy_stage stage)
{
	switch (stage) {
	case BUSY_STAGE_AUTH: /* a directory may be asked, as for a sender */
	case BUSY_STAGE_MAIL:
		return u->timeouts->mail_ms;
	case BUSY_STAGE_RCPT:
		return u->timeouts->rcpt_ms;
	case BUSY_STAGE_DATA:
		return u->timeouts->data_ms;
	case BUSY_STAGE_EOD:
		return u->timeouts->final_ms;
	case BUSY_STAGE_TCP:
	case BUSY_STAGE_GREET:
	case BUSY_STAGE_EHLO:
	case BUSY_STAGE_XCLIENT:
	case BUSY_STAGE_STARTTLS:
	case BUSY_STAGE_IDLE:
	case BUSY_STAGES:
		break;
	}
	return u->timeouts->helo_ms;
}

/* Time runs for the reply that is awaited first, from when it is. */
static void set_deadline(struct upstream *u, int64_t now_ms)
{
	bool runs = u->due > 1 || (u->due == 1 && !u->chunk_open);

	u->deadline_ms = INT64_MAX;
	if (runs)
		u->deadline_ms = now_ms + patience(u, upstream_awaits(u));
}

void upstream_chunk(struct upstream *u, bool open, int64_t now_ms)
{
	if (u->chunk_open == open || u->state != UPSTREAM_READY)
		return;
	u->chunk_open = open;
	if (u->due == 1)
		set_deadline(u, now_ms);
}

void upstream_sent(struct upstream *u, enum busy_stage stage, int64_t now_ms)
{
	assert(u->state == UPSTREAM_READY);
	assert(u->due < UPSTREAM_PIPELINE_MAX);
	assert(stage != BUSY_STAGE_AUTH || u->due == 0);
	assert(upstream_awaits(u) != BUSY_STAGE_AUTH);
	u->stages[(u->first + u->due) % UPSTREAM_PIPELINE_MAX] = (uint8_t)stage;
	u->due++;
	if (u->due == 1)
		set_deadline(u, now_ms);
}

void upstream_moved(struct upstream *u, int64_t now_ms)
{
	if (u->state == UPSTREAM_READY && u->deadline_ms != INT64_MAX)
		set_deadline(u, now_ms);
}

unsigned upstream_room(const struct upstream *u)
{
	unsigned most = 1;

	if (u->ehlo.ext & SMTP_EXT_PIPELINING)
		most = UPSTREAM_PIPELINE_MAX;
	if (upstream_awaits(u) == BUSY_STAGE_AUTH)
		most = 0;
	return u->due < most ? most - u->due : 0;
}

enum busy_stage upstream_awaits(const struct upstream *u)
{
	switch (u->state) {
	case UPSTREAM_CONNECTING:
		return BUSY_STAGE_TCP;
	case UPSTREAM_TLS:
	case UPSTREAM_STARTTLS:
		return BUSY_STAGE_STARTTLS;
	case UPSTREAM_XCLIENT:
		return BUSY_STAGE_XCLIENT;
	case UPSTREAM_GREETING:
		return BUSY_STAGE_GREET;
	case UPSTREAM_EHLO:
	case UPSTREAM_HELO:
		return BUSY_STAGE_EHLO;
	case UPSTREAM_READY:
		if (u->due > 0)
			return (enum busy_stage)u->stages[u->first];
		return BUSY_STAGE_IDLE;
	case UPSTREAM_QUITTING:
		break;
	}
	return BUSY_STAGE_IDLE;
}

void upstream_quit(struct upstream *u, int64_t now_ms)
{
	assert(u->state != UPSTREAM_CONNECTING);
	assert(u->state != UPSTREAM_TLS);
	assert(u->state != UPSTREAM_QUITTING);
	await(u, UPSTREAM_QUITTING, u->timeouts->quit_ms, now_ms);
	(void)say(u, "QUIT\r\n", 6);
}

static enum upstream_said greeted(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_GREET;
	if (u->reply.code >= 400)
		return UPSTREAM_REFUSED;
	if (u->reply.code >= 300)
		return UPSTREAM_GARBAGE;
	u->greeted = true;
	return u->tcp ? be_ready(u) : say_hello(u, UPSTREAM_EHLO, now_ms);
}

/* A server that knows no EHLO says so with 500 to 504; RFC 5321, 3.2. */
static enum upstream_said ehlo_answered(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_EHLO;
	if (u->reply.code / 100 == 2) {
		if (u->state == UPSTREAM_EHLO)
			u->ehlo = u->reply.ehlo;
		return go_on(u, now_ms);
	}
	if (u->state == UPSTREAM_EHLO && u->reply.code >= 500 &&
	    u->reply.code <= 504 && u->reply.code != 503)
		return say_hello(u, UPSTREAM_HELO, now_ms);
	return u->reply.code >= 400 ? UPSTREAM_REFUSED : UPSTREAM_GARBAGE;
}

/*
 * 220 and nothing else: with another 2xx nobody knows who begins to speak
 * TLS.  A refusal leaves the connection as it was (RFC 3207, section 4), but
 * 421 ends it.
 */
static enum upstream_said starttls_answered(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_STARTTLS;
	if (u->reply.code == 220) {
		await(u, UPSTREAM_TLS, u->timeouts->tls_ms, now_ms);
		return UPSTREAM_HANDSHAKE;
	}
	if (u->reply.code < 400)
		return UPSTREAM_GARBAGE;
	if (u->tls == UPSTREAM_TLS_MUST || u->reply.code == 421)
		return UPSTREAM_REFUSED;
	u->tls_refused = true;
	return go_on(u, now_ms);
}

/*
 * 220 greets the new client.  After anything else the identity from before is
 * still in force, so nothing more may be said for this one.
 */
static enum upstream_said xclient_answered(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_XCLIENT;
	if (u->reply.code == 220)
		return say_hello(u, UPSTREAM_EHLO, now_ms);
	return u->reply.code >= 400 ? UPSTREAM_REFUSED : UPSTREAM_GARBAGE;
}

static enum upstream_said answered(struct upstream *u, int64_t now_ms)
{
	if (u->unasked || u->due == 0) {
		u->stage = BUSY_STAGE_IDLE;
		return UPSTREAM_EARLY;
	}
	u->stage = (enum busy_stage)u->stages[u->first];
	u->first = (u->first + 1) % UPSTREAM_PIPELINE_MAX;
	u->due--;
	if (u->state == UPSTREAM_READY)
		set_deadline(u, now_ms);
	return UPSTREAM_REPLY;
}

static enum upstream_said whole_reply(struct upstream *u, int64_t now_ms)
{
	switch (u->state) {
	case UPSTREAM_GREETING:
		return greeted(u, now_ms);
	case UPSTREAM_EHLO:
	case UPSTREAM_HELO:
		return ehlo_answered(u, now_ms);
	case UPSTREAM_STARTTLS:
		return starttls_answered(u, now_ms);
	case UPSTREAM_XCLIENT:
		return xclient_answered(u, now_ms);
	case UPSTREAM_READY:
		return answered(u, now_ms);
	case UPSTREAM_QUITTING:
		/* QUIT may stand behind commands that are not answered yet. */
		return u->due > 0 ? answered(u, now_ms) : UPSTREAM_BYE;
	case UPSTREAM_CONNECTING:
	case UPSTREAM_TLS:
		break;
	}
	return UPSTREAM_GARBAGE;
}

/*
 * A reply has ended; more: octets stand behind it.  If nothing is due any
 * more, nobody asked for them, whatever is sent before they are read: taken
 * for replies they would shift all that follow, and behind the 220 to
 * STARTTLS they would be believed to have come through TLS.  What a backend
 * says to a client of its own is not judged here.
 */
static enum upstream_said ended(struct upstream *u, bool more, int64_t now_ms)
{
	enum upstream_said said = whole_reply(u, now_ms);

	if (!more || u->due > 0)
		return said;
	if (said == UPSTREAM_SAY || said == UPSTREAM_HANDSHAKE ||
	    (said == UPSTREAM_IS_READY && !u->tcp))
		return UPSTREAM_GARBAGE;
	u->surplus = true;
	return said;
}

/* Keep the octets of a reply that will be relayed; false: there are too many. */
static bool keep(struct upstream *u, const uint8_t *buf, size_t len)
{
	if (u->state != UPSTREAM_READY && u->state != UPSTREAM_QUITTING &&
	    !u->tcp)
		return true;
	if (len > sizeof(u->raw) - u->raw_len)
		return false;
	memcpy(u->raw + u->raw_len, buf, len);
	u->raw_len += (uint32_t)len;
	return true;
}

enum upstream_said upstream_feed(struct upstream *u, const uint8_t *buf,
				 size_t len, int64_t now_ms, size_t *used)
{
	assert(u->state != UPSTREAM_CONNECTING);
	assert(u->state != UPSTREAM_TLS);
	*used = 0;
	if (len == 0)
		return UPSTREAM_MORE;
	if (!u->reading) {
		smtp_reply_begin(&u->reply, u->state == UPSTREAM_EHLO);
		u->raw_len = 0;
		u->reading = true;
		u->unasked = u->surplus || u->due == 0;
		u->surplus = false;
	}

	enum smtp_reply_fed fed = smtp_reply_feed(&u->reply, buf, len, used);

	if (!keep(u, buf, *used))
		return UPSTREAM_GARBAGE;
	switch (fed) {
	case SMTP_REPLY_MORE:
		return UPSTREAM_MORE;
	case SMTP_REPLY_WHOLE:
		u->reading = false;
		return ended(u, *used < len, now_ms);
	case SMTP_REPLY_BAD:
		break;
	}
	return UPSTREAM_GARBAGE;
}
