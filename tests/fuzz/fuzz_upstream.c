#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/upstream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * A backend that says anything, in pieces of any size, against every order.
 * What is promised before READY is checked by what went over the wire.
 *
 * Octets: order, size of pieces, count of orders of the driver, those, then
 * what the backend says.
 */

enum {
	QUEUE_MAX = UPSTREAM_PIPELINE_MAX,
	WIRE_MAX = 1 << 16,
};

struct driver {
	struct upstream *u;
	struct upstream_order order;
	const char *name; /* that EHLO must say */
	int64_t now_ms;
	const uint8_t *acts; /* what to do when it is ready */
	size_t acts_left;

	bool secured;    /* we said so */
	bool introduced; /* XCLIENT was answered with 220 */
	bool in_flight;  /* something was said, or a greeting is awaited */
	bool was_ready;
	bool quit;
	char said; /* first octet of what was said last; 0: nothing */

	/* Octets of the reply under way, our own record. */
	uint8_t *wire;
	size_t wire_len;
	bool reply_ended; /* the record is of a whole reply */
	bool early;       /* it began when nothing was due */
	bool surplus;     /* octets stood behind the last reply due */

	uint8_t queue[QUEUE_MAX];
	size_t first, due;
};

static const struct upstream_timeouts timeouts = {
	.connect_ms = 1,
	.greeting_ms = 2,
	.helo_ms = 3,
	.tls_ms = 4,
	.mail_ms = 5,
	.rcpt_ms = 6,
	.data_ms = 7,
	.final_ms = 8,
	.quit_ms = 9,
};

static const struct xclient somebody = {
	.esmtp = true,
	.port = 4711,
	.addr = { { [10] = 0xff, 0xff, 192, 0, 2, 50 } },
	.helo_len = 6,
	.helo = "client",
};

/* One line, with nothing in it that could be two. */
static void check_line(const struct upstream *u)
{
	assert(u->say_len >= 6 && u->say_len <= SMTP_COMMAND_LINE_MAX);
	assert(memchr(u->say, '\0', u->say_len) == NULL);
	assert(memchr(u->say, '\r', u->say_len) == u->say + u->say_len - 2);
	assert(memchr(u->say, '\n', u->say_len) == u->say + u->say_len - 1);
}

/* Something goes out: nothing else may be on its way, or not answered. */
static void on_say(struct driver *d)
{
	const struct upstream *u = d->u;
	bool must = d->order.tls == UPSTREAM_TLS_MUST || d->order.implicit;

	check_line(u);
	assert(!d->in_flight && !d->order.tcp);
	assert(u->due == 0);
	d->in_flight = true;
	d->said = u->say[0];
	switch (d->said) {
	case 'E':
		assert(u->state == UPSTREAM_EHLO);
		assert(u->say_len == 7 + strlen(d->name));
		assert(memcmp(u->say, "EHLO ", 5) == 0);
		assert(memcmp(u->say + 5, d->name, strlen(d->name)) == 0);
		break;
	case 'H':
		assert(u->state == UPSTREAM_HELO);
		break;
	case 'S':
		assert(u->state == UPSTREAM_STARTTLS);
		assert(!d->secured && d->order.tls != UPSTREAM_CLEAR);
		break;
	case 'X':
		assert(u->state == UPSTREAM_XCLIENT);
		assert(memcmp(u->say, "XCLIENT ", 8) == 0);
		assert(d->secured || !must);
		d->introduced = false;
		break;
	default:
		abort();
	}
	assert(u->deadline_ms > d->now_ms && u->deadline_ms < INT64_MAX);
}

/* What EHLO offered is what its last reply says, and no other's. */
static void check_offer(const struct driver *d)
{
	struct smtp_reply_parser r;
	size_t used;

	smtp_reply_begin(&r, true);
	if (d->said == 'E' && d->wire_len > 0) {
		enum smtp_reply_fed fed = smtp_reply_feed(&r, d->wire,
							  d->wire_len, &used);

		assert(fed == SMTP_REPLY_WHOLE && used == d->wire_len);
	}
	assert(r.ehlo.ext == d->u->ehlo.ext && r.ehlo.size == d->u->ehlo.size);
	assert(r.ehlo.auth == d->u->ehlo.auth);
	assert(r.ehlo.xclient == d->u->ehlo.xclient);
}

static void on_ready(struct driver *d)
{
	const struct upstream *u = d->u;

	assert(u->state == UPSTREAM_READY && u->due == 0);
	assert(!d->in_flight);
	assert(d->secured || !d->order.implicit);
	assert(d->secured || d->order.tls != UPSTREAM_TLS_MUST);
	assert(d->introduced || d->order.who == NULL);
	assert(u->deadline_ms == INT64_MAX);
	assert(upstream_awaits(u) == BUSY_STAGE_IDLE);
	d->was_ready = true;
	if (d->order.tcp) {
		assert(u->raw_len == d->wire_len);
		assert(memcmp(u->raw, d->wire, d->wire_len) == 0);
	} else if (d->said == 'E' || d->said == 'H') {
		check_offer(d);
	}
}

static void on_reply(struct driver *d, bool early)
{
	const struct upstream *u = d->u;

	assert(d->was_ready);
	assert(u->raw_len == d->wire_len);
	assert(memcmp(u->raw, d->wire, d->wire_len) == 0);
	assert(early == d->early);
	if (early)
		return;
	assert(d->due > 0 && u->stage == d->queue[d->first]);
	d->first = (d->first + 1) % QUEUE_MAX;
	d->due--;
	assert(u->due == d->due);
}

/* False: it is over. */
static bool hear(struct driver *d, enum upstream_said said, size_t left)
{
	struct upstream *u = d->u;

	if (said == UPSTREAM_MORE)
		return true;
	if (said != UPSTREAM_GARBAGE)
		assert(d->reply_ended);
	if (d->in_flight && d->said == 'X')
		d->introduced = u->reply.code == 220;
	d->in_flight = false;
	switch (said) {
	case UPSTREAM_SAY:
		assert(left == 0);
		on_say(d);
		return true;
	case UPSTREAM_HANDSHAKE:
		/* Not an octet of clear text goes into it. */
		assert(left == 0 && d->said == 'S' && !d->secured);
		assert(u->reply.code == 220 && u->state == UPSTREAM_TLS);
		assert(upstream_awaits(u) == BUSY_STAGE_STARTTLS);
		d->secured = true;
		assert(upstream_secured(u, ++d->now_ms) == UPSTREAM_SAY);
		assert(u->ehlo.ext == 0);
		on_say(d);
		assert(d->said == 'E');
		return true;
	case UPSTREAM_IS_READY:
		assert(left == 0 || d->order.tcp);
		on_ready(d);
		return !d->order.tcp;
	case UPSTREAM_UNFIT:
		assert(u->state != UPSTREAM_READY);
		if (u->unfit == UPSTREAM_NO_STARTTLS)
			assert(d->order.tls == UPSTREAM_TLS_MUST);
		else
			assert(d->order.who != NULL && !d->introduced);
		return false;
	case UPSTREAM_REFUSED:
		assert(u->reply.code >= 400);
		assert(u->stage >= BUSY_STAGE_GREET);
		assert(u->stage <= BUSY_STAGE_STARTTLS);
		return false;
	case UPSTREAM_REPLY:
		on_reply(d, false);
		return true;
	case UPSTREAM_EARLY:
		on_reply(d, true);
		return true;
	case UPSTREAM_BYE:
		assert(d->quit && d->due == 0);
		return false;
	case UPSTREAM_GARBAGE:
		return false;
	case UPSTREAM_MORE:
		break;
	}
	abort();
}

static void command(struct driver *d, enum busy_stage stage)
{
	bool auth = d->due > 0 && d->queue[d->first] == BUSY_STAGE_AUTH;

	assert((upstream_room(d->u) == 0) >= auth);
	if (upstream_room(d->u) == 0 ||
	    (stage == BUSY_STAGE_AUTH && d->due > 0))
		return;
	assert(d->due < QUEUE_MAX);
	d->queue[(d->first + d->due) % QUEUE_MAX] = (uint8_t)stage;
	d->due++;
	upstream_sent(d->u, stage, d->now_ms);
	assert(d->u->due == d->due);
	assert(upstream_awaits(d->u) == d->queue[d->first]);
}

/* False: it is over. */
static bool introduce(struct driver *d)
{
	bool begun = d->wire_len > 0 && !d->reply_ended;
	enum upstream_said said;

	d->order.who = &somebody;
	said = upstream_introduce(d->u, &somebody, d->now_ms);
	d->name = somebody.helo;
	if (said == UPSTREAM_SAY) {
		assert(!begun && !d->surplus);
		assert(d->u->ehlo.xclient & SMTP_XCLIENT_ADDR);
		on_say(d);
		return d->said == 'X';
	}
	if (said == UPSTREAM_GARBAGE)
		assert(begun || d->surplus);
	else
		assert(said == UPSTREAM_UNFIT);
	return false;
}

/* One thing of the driver's, when it is ready.  False: it is over. */
static bool act(struct driver *d)
{
	static const enum busy_stage stages[] = {
		BUSY_STAGE_MAIL, BUSY_STAGE_RCPT, BUSY_STAGE_DATA,
		BUSY_STAGE_EOD,  BUSY_STAGE_AUTH,
	};

	if (d->u->state != UPSTREAM_READY || d->acts_left == 0)
		return true;

	uint8_t what = *d->acts++ % 10;

	d->acts_left--;
	if (what < 5) {
		command(d, stages[what]);
	} else if (what == 5 && d->due == 0) {
		return introduce(d);
	} else if (what == 6) {
		upstream_quit(d->u, d->now_ms);
		d->quit = true;
	} else if (what == 7) {
		upstream_chunk(d->u, !d->u->chunk_open, d->now_ms);
	} else if (what == 8) {
		upstream_moved(d->u, d->now_ms);
	}
	return true;
}

/* Keep our own record of the reply under way. */
static void record(struct driver *d, const uint8_t *octets, size_t used,
		   size_t left)
{
	if (d->reply_ended || d->wire_len == 0) {
		d->early = d->surplus || d->due == 0;
		d->surplus = false;
		d->wire_len = 0;
	}
	assert(d->wire_len + used <= WIRE_MAX);
	memcpy(d->wire + d->wire_len, octets, used);
	d->wire_len += used;

	/* The last line: three digits, then no hyphen. */
	size_t bol = d->wire_len;

	d->reply_ended = d->wire_len >= 5 &&
			 memcmp(d->wire + d->wire_len - 2, "\r\n", 2) == 0;
	if (!d->reply_ended)
		return;
	bol -= 2;
	while (bol > 0 && d->wire[bol - 1] != '\n')
		bol--;
	d->reply_ended = d->wire_len - bol >= 5 && d->wire[bol + 3] != '-';
	if (d->reply_ended && left > 0 && d->due == (d->early ? 0 : 1))
		d->surplus = true;
}

static void converse(struct driver *d, const uint8_t *text, size_t len,
		     size_t piece)
{
	bool on = true;

	for (size_t at = 0; on && at < len;) {
		size_t n = len - at < piece ? len - at : piece;
		uint8_t *copy = malloc(n); /* exact, for ASan */
		size_t done = 0;

		if (copy == NULL)
			abort();
		memcpy(copy, text + at, n);
		d->now_ms++;
		while (on && done < n) {
			size_t used = SIZE_MAX;
			enum upstream_said said = upstream_feed(
				d->u, copy + done, n - done, d->now_ms, &used);

			assert(used > 0 && used <= n - done);
			assert(said != UPSTREAM_MORE || used == n - done);
			record(d, copy + done, used, n - done - used);
			done += used;
			on = hear(d, said, n - done) && act(d);
		}
		free(copy);
		at += n;
	}
}

static void begin(struct driver *d, uint8_t order)
{
	d->name = "fuzz.test";
	d->order = (struct upstream_order){
		.name = "fuzz.test",
		.name_len = 9,
		.tls = (enum upstream_tls)(order % 3),
		.implicit = (order & 64) != 0,
		.tcp = (order & 32) != 0,
		.who = (order & 16) != 0 ? &somebody : NULL,
	};
	if (d->order.tcp) {
		d->order.tls = UPSTREAM_CLEAR;
		d->order.who = NULL;
	}
	memset(d->u, 0x5a, sizeof(*d->u));
	upstream_begin(d->u, &d->order, &timeouts, d->now_ms);
	upstream_connected(d->u, d->now_ms);
	if (d->order.implicit) {
		assert(d->u->state == UPSTREAM_TLS);
		d->secured = true;
		assert(upstream_secured(d->u, d->now_ms) == UPSTREAM_MORE);
	}
	assert(d->u->state == UPSTREAM_GREETING);
	d->in_flight = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum { HEAD = 3 };
	struct driver d = { .now_ms = 1000 };

	if (size < HEAD)
		return 0;
	d.acts = data + HEAD;
	d.acts_left = data[2] % 32;
	if (d.acts_left > size - HEAD)
		d.acts_left = size - HEAD;

	const uint8_t *text = data + HEAD + d.acts_left;
	size_t len = size - HEAD - d.acts_left;

	if (len > WIRE_MAX)
		len = WIRE_MAX;
	d.u = malloc(sizeof(*d.u));
	d.wire = malloc(WIRE_MAX);
	if (d.u == NULL || d.wire == NULL)
		abort();

	const struct driver fresh = d;
	const size_t pieces[] = { data[1] > 0 ? data[1] : len + 1, 1 };

	for (size_t i = 0; i < 2; i++) {
		d = fresh;
		begin(&d, data[0]);
		converse(&d, text, len, pieces[i]);
	}
	free(d.u);
	free(d.wire);
	return 0;
}
