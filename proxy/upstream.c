#include "proxy/upstream.h"

#include <assert.h>
#include <string.h>

void upstream_begin(struct upstream *u, const char *name, size_t name_len,
		    const struct upstream_timeouts *timeouts, int64_t now_ms)
{
	assert(name_len > 0);
	assert(name_len <= SMTP_DOMAIN_MAX);
	assert(timeouts != NULL);

	u->state = UPSTREAM_CONNECTING;
	u->stage = BUSY_STAGE_TCP;
	u->reading = false;
	u->unasked = false;
	u->surplus = false;
	u->chunk_open = false;
	u->ehlo = (struct smtp_ehlo){ 0 };
	u->deadline_ms = now_ms + timeouts->connect_ms;
	u->due = 0;
	u->first = 0;
	u->timeouts = timeouts;
	u->say = NULL;
	u->say_len = 0;
	u->raw_len = 0;
	memcpy(u->name, name, name_len);
	u->name[name_len] = '\0';
}

void upstream_connected(struct upstream *u, int64_t now_ms)
{
	assert(u->state == UPSTREAM_CONNECTING);
	u->state = UPSTREAM_GREETING;
	u->deadline_ms = now_ms + u->timeouts->greeting_ms;
}

static void say(struct upstream *u, const char *verb)
{
	size_t verb_len = strlen(verb);
	size_t name_len = strlen(u->name);

	memcpy(u->line, verb, verb_len);
	memcpy(u->line + verb_len, u->name, name_len);
	memcpy(u->line + verb_len + name_len, "\r\n", 2);
	u->say = u->line;
	u->say_len = (uint16_t)(verb_len + name_len + 2);
}

static int64_t patience(const struct upstream *u, enum busy_stage stage)
{
	switch (stage) {
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
	case BUSY_STAGE_AUTH:
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
	return u->due < most ? most - u->due : 0;
}

enum busy_stage upstream_awaits(const struct upstream *u)
{
	switch (u->state) {
	case UPSTREAM_CONNECTING:
		return BUSY_STAGE_TCP;
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
	assert(u->state != UPSTREAM_QUITTING);
	u->state = UPSTREAM_QUITTING;
	u->deadline_ms = now_ms + u->timeouts->quit_ms;
	u->say = "QUIT\r\n";
	u->say_len = 6;
}

static enum upstream_said greeted(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_GREET;
	if (u->reply.code >= 400)
		return UPSTREAM_REFUSED;
	if (u->reply.code >= 300)
		return UPSTREAM_GARBAGE;
	u->state = UPSTREAM_EHLO;
	u->deadline_ms = now_ms + u->timeouts->helo_ms;
	say(u, "EHLO ");
	return UPSTREAM_SAY;
}

/* A server that knows no EHLO says so with 500 to 504; RFC 5321, 3.2. */
static enum upstream_said ehlo_answered(struct upstream *u, int64_t now_ms)
{
	u->stage = BUSY_STAGE_EHLO;
	if (u->reply.code / 100 == 2) {
		if (u->state == UPSTREAM_EHLO)
			u->ehlo = u->reply.ehlo;
		u->state = UPSTREAM_READY;
		u->deadline_ms = INT64_MAX;
		return UPSTREAM_IS_READY;
	}
	if (u->state == UPSTREAM_EHLO && u->reply.code >= 500 &&
	    u->reply.code <= 504 && u->reply.code != 503) {
		u->state = UPSTREAM_HELO;
		u->deadline_ms = now_ms + u->timeouts->helo_ms;
		say(u, "HELO ");
		return UPSTREAM_SAY;
	}
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
	case UPSTREAM_READY:
		return answered(u, now_ms);
	case UPSTREAM_QUITTING:
		/* QUIT may stand behind commands that are not answered yet. */
		return u->due > 0 ? answered(u, now_ms) : UPSTREAM_BYE;
	case UPSTREAM_CONNECTING:
		break;
	}
	return UPSTREAM_GARBAGE;
}

/*
 * A reply has ended; more: octets stand behind it.  If nothing is due any
 * more, nobody asked for them, whatever is sent before they are read: taken
 * for replies they would shift all that follow.
 */
static enum upstream_said ended(struct upstream *u, bool more, int64_t now_ms)
{
	enum upstream_said said = whole_reply(u, now_ms);

	if (!more || u->due > 0)
		return said;
	if (said == UPSTREAM_SAY || said == UPSTREAM_IS_READY)
		return UPSTREAM_GARBAGE;
	u->surplus = true;
	return said;
}

/* Keep the octets of a reply that will be relayed; false: there are too many. */
static bool keep(struct upstream *u, const uint8_t *buf, size_t len)
{
	if (u->state != UPSTREAM_READY && u->state != UPSTREAM_QUITTING)
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
