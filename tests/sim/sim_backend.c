#include "tests/sim/sim_backend.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_backend_own.h"

enum {
	DRIP_US = 200 * SIM_MS,
	SPLIT_US = 3 * SIM_MS,
	LINES_MANY = 1500,
	READ_SIZE = 16384,
};

/* Too much for now, but not too many. */
static const char strained[] = "452 4.3.1 Insufficient system storage\r\n";

/* Replies of real servers that have no room, or are about to go. */
static const char *const busy_texts[] = {
	"421 4.3.2 All server ports are busy\r\n",
	"421 4.7.0 Error: too many connections\r\n",
	"421 Too many concurrent SMTP connections; please try again "
	"later.\r\n",
	"421 4.3.2 Too many open connections.\r\n",
	"421 4.3.2 The maximum number of concurrent connections has exceeded "
	"a limit, closing transmission channel\r\n",
	"421 Too much load; please try again later.\r\n",
	"450 Busy\r\n",
	"453 Too Busy\r\n",
	"421 4.3.2 Connection rate limit exceeded.\r\n",
};

static const char *const later_texts[] = {
	"452 4.3.1 Insufficient system storage\r\n",
	"452 Space shortage, please try later\r\n",
	"451 4.3.0 Temporary system failure\r\n",
	"421 4.3.2 Service not available, closing transmission channel\r\n",
	"450 4.7.1 Greylisted, please try again\r\n",
	"550 5.7.1 Not wanted here\r\n",
	"554 5.7.1 Refused by policy\r\n",
	"452 4.3.1 Insufficient system resources (TSTE)\r\n",
};

/* Whatever SMTP is not. */
static const char *const garbage_texts[] = {
	"hello there\r\n", "250-one\r\n550 other\r\n",
	"25\r\n",          "250 bare\n",
	"999 what\r\n",    "250-half a reply",
	"250_ok\r\n",      "\r\n",
};

/* --- slots --- */

static void count_use(struct sim_backend *b)
{
	int64_t now_us = sim_now_us(b->sim);
	uint64_t passed = (uint64_t)(now_us - b->counted_us);
	unsigned usable = b->config.slots > b->others
				  ? b->config.slots - b->others
				  : 0;

	b->use.usable_us += passed * usable;
	b->use.ours_us += passed * (b->used < usable ? b->used : usable);
	b->counted_us = now_us;
}

static bool slot_is_free(const struct sim_backend *b)
{
	return b->config.slots == 0 || b->used + b->others < b->config.slots;
}

static void greet(struct conn *c);

/* Has all come that comes before the greeting? */
static bool may_speak(const struct conn *c)
{
	return c->reading != READ_HEADER && c->reading != READ_SECRECY &&
	       !c->shaking;
}

static void slot_take(struct conn *c)
{
	struct sim_backend *b = c->backend;
	int64_t waited_us = sim_now_us(b->sim) - c->came_us;

	count_use(b);
	c->slot = true;
	c->queued = false;
	b->used++;
	b->use.greeted++;
	b->use.late += b->config.late_us > 0 && waited_us >= b->config.late_us;
	if (may_speak(c))
		greet(c);
}

/* A slot may be free: who waits in silence gets it. */
static void serve_queue(struct sim_backend *b)
{
	struct conn *c = b->conns.next;

	while (c != &b->conns && slot_is_free(b)) {
		if (c->queued)
			slot_take(c);
		c = c->next;
	}
}

static void slot_give(struct conn *c)
{
	struct sim_backend *b = c->backend;

	b->use.given_up += c->queued;
	c->queued = false;
	if (!c->slot)
		return;
	count_use(b);
	c->slot = false;
	b->used--;
}

/* --- saying --- */

void conn_close(struct conn *c, bool reset)
{
	struct sim_backend *b = c->backend;

	slot_give(c);

	sim_timer_clear(b->sim, &c->timer);
	sim_timer_clear(b->sim, &c->drip);
	while (c->first != NULL) {
		struct saying *s = c->first;

		c->first = s->next;
		free(s);
	}
	if (!reset && !c->rude)
		sim_wire_notify(&c->wire);
	if (reset)
		sim_wire_reset(&c->wire);
	else
		sim_wire_close(&c->wire);
	b->open--;
	c->prev->next = c->next;
	c->next->prev = c->prev;
	free(c);
	serve_queue(b);
}

static bool is_refusal(const char *text);

/* The end of data is answered, or with its last words the server refuses. */
static void note_final(struct conn *c, const struct saying *s)
{
	struct check *check = c->backend->check;

	if (s->final) {
		if (s->message != NULL)
			check_final(check, s->message, s->code, s->refusal);
		c->ended = NULL;
	} else if (s->bye && c->ended != NULL && is_refusal(s->text)) {
		check_final(check, c->ended, 0, true);
		c->ended = NULL;
	}
}

/* True: the connection is gone. */
static bool say_now(struct conn *c, const struct saying *s)
{
	bool bye = s->bye, reset = s->reset;

	if (s->tampers)
		sim_wire_tamper(&c->wire);
	sim_wire_say(&c->wire, s->text, s->len);
	if (s->last && c->greet_due)
		c->greet_due = false;
	else if (s->last && c->due > 0)
		c->due--;
	note_final(c, s);
	if (s->final && s->code / 100 == 2)
		c->backend->accepted++;
	if (bye)
		conn_close(c, reset);
	else if (s->secures)
		who_secure(c);
	return bye;
}

static void timer_fires(void *owner)
{
	struct conn *c = owner;
	struct sim *sim = c->backend->sim;

	while (c->first != NULL && c->first->at_us <= sim_now_us(sim)) {
		struct saying *s = c->first;

		c->first = s->next;
		if (c->first == NULL)
			c->last = NULL;
		bool gone = say_now(c, s);
		free(s);
		if (gone)
			return;
	}
	if (c->first != NULL)
		sim_timer_set(sim, &c->timer, c->first->at_us);
}

struct saying *conn_say(struct conn *c, const char *text, size_t len,
			int64_t after_us)
{
	struct sim *sim = c->backend->sim;
	struct saying *s = calloc(1, sizeof(*s) + len + 1);

	if (s == NULL)
		abort();
	memcpy(s->text, text, len);
	s->len = len;
	s->at_us = sim_now_us(sim) + after_us;
	if (s->at_us < c->free_at_us)
		s->at_us = c->free_at_us;
	c->free_at_us = s->at_us;
	if (c->last == NULL)
		c->first = s;
	else
		c->last->next = s;
	c->last = s;
	if (c->timer.index == 0)
		sim_timer_set(sim, &c->timer, s->at_us);
	return s;
}

static int64_t usual_delay(const struct conn *c)
{
	uint32_t max = c->backend->config.delay_us_max;

	return max == 0 ? 0 : sim_below(c->backend->sim, max);
}

static void say_split(struct conn *c, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		conn_say(c, text + i, 1, SPLIT_US * (int64_t)(i + 1));
}

static void drip_fires(void *owner)
{
	struct conn *c = owner;
	static const char line[] = "220-wait\r\n";

	sim_wire_say(&c->wire, line, sizeof(line) - 1);
	sim_timer_set(c->backend->sim, &c->drip,
		      sim_now_us(c->backend->sim) + DRIP_US);
}

static void say_many(struct conn *c, const char *text, size_t len)
{
	for (unsigned i = 0; i < LINES_MANY; i++) {
		char line[64];
		int n = snprintf(line, sizeof(line), "%.3s-line %u\r\n", text,
				 i);

		conn_say(c, line, (size_t)n, 0);
	}
	conn_say(c, text, len, 0);
}

static void stall_ends(struct conn *c);

static void wake_fires(void *owner)
{
	struct conn *c = owner;

	c->drip.fire = drip_fires;
	stall_ends(c);
}

/* From here on nobody can know which of its replies is to what. */
static void lie(struct conn *c)
{
	c->lying = true;
	if (c->message != NULL)
		c->message->lied = true;
}

/*
 * Do the deed of this stage in place of a reply, or along with it.  Returns
 * the last saying of the reply if one was said, else NULL.
 */
struct saying *conn_do_deed(struct conn *c, const char *text, size_t len)
{
	struct sim *sim = c->backend->sim;
	const struct sim_deed *d = &c->deed;
	struct saying *s;

	c->done = true;
	check_totals(c->backend->check)->deeds++;
	sim_trace(sim, "backend b%u: deed %u at stage %u",
		  c->backend->config.index, (unsigned)d->kind,
		  (unsigned)d->stage);
	switch (d->kind) {
	case SIM_DEED_GARBAGE:
		lie(c);
		return conn_say(c, d->text, strlen(d->text), usual_delay(c));
	case SIM_DEED_SAY:
	case SIM_DEED_BYE:
		s = conn_say(c, d->text, strlen(d->text), usual_delay(c));
		s->bye = d->kind == SIM_DEED_BYE;
		return s;
	case SIM_DEED_FIN:
	case SIM_DEED_RST:
		s = conn_say(c, "", 0, usual_delay(c));
		s->bye = true;
		s->reset = d->kind == SIM_DEED_RST;
		c->rude = true;
		return NULL;
	case SIM_DEED_SILENCE:
		c->reading = READ_NOTHING;
		return NULL;
	case SIM_DEED_EXTRA:
		lie(c);
		s = conn_say(c, text, len, usual_delay(c));
		conn_say(c, d->text, strlen(d->text), 0);
		return s;
	case SIM_DEED_SPLIT:
		say_split(c, text, len);
		return c->last;
	case SIM_DEED_SLOW:
		return conn_say(c, text, len, d->after_us);
	case SIM_DEED_LATER:
		s = conn_say(c, text, len, usual_delay(c));
		conn_say(c, d->text, strlen(d->text), d->after_us)->bye = true;
		return s;
	case SIM_DEED_ENDLESS:
		c->reading = READ_NOTHING;
		drip_fires(c);
		return NULL;
	case SIM_DEED_LINES:
		say_many(c, text, len);
		return c->last;
	case SIM_DEED_STALL:
		c->stalled = true;
		c->drip.fire = wake_fires;
		sim_timer_set(sim, &c->drip, sim_now_us(sim) + d->after_us);
		return conn_say(c, text, len, usual_delay(c));
	case SIM_DEED_TAMPER:
		s = conn_say(c, text, len, usual_delay(c));
		s->tampers = c->wire.tls != NULL;
		return s;
	case SIM_DEED_LESS: /* do_ehlo() has seen to it */
		return conn_say(c, text, len, usual_delay(c));
	case SIM_DEED_NONE:
		break;
	}
	return NULL;
}

/* A whole reply that says: not now. */
static bool is_refusal(const char *text)
{
	size_t len = strlen(text);
	const char *last = len < 2 ? NULL : memrchr(text, '\n', len - 2);

	last = last == NULL ? text : last + 1;
	return text[0] == '4' && len > 5 && text[len - 1] == '\n' &&
	       last[3] == ' ';
}

/* The code that a text begins with, 0 if it is none. */
static unsigned code_of(const char *text)
{
	return (unsigned)strtoul(text, NULL, 10);
}

/* The number behind word, wherever that stands in text; or otherwise. */
static unsigned number_behind(const char *text, const char *word,
			      unsigned otherwise)
{
	const char *at = strstr(text, word);

	if (at == NULL)
		return otherwise;
	return (unsigned)strtoul(at + strlen(word), NULL, 10);
}

bool conn_deed_is_due(const struct conn *c, enum sim_stage stage)
{
	return !c->done && c->deed.kind != SIM_DEED_NONE &&
	       c->deed.stage == stage;
}

struct saying *conn_reply(struct conn *c, enum sim_stage stage,
			  const char *format, ...)
{
	char text[REPLY_MAX];
	va_list args;

	va_start(args, format);
	int len = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	assert(len > 0);
	assert((size_t)len < sizeof(text));
	struct saying *s;
	if (conn_deed_is_due(c, stage))
		s = conn_do_deed(c, text, (size_t)len);
	else
		s = conn_say(c, text, (size_t)len, usual_delay(c));
	if (s != NULL) {
		const char *said = s->len >= 3 ? s->text : text;

		s->last = true;
		s->code = code_of(said);
		s->refusal = is_refusal(said);
	}
	return s;
}

/* Did it say what it was to say, or at least something as good? */
static bool positive(const struct saying *s)
{
	return s != NULL && s->text[0] <= '3';
}

/* --- commands --- */

static const char *mark_of(const struct conn *c)
{
	return c->message == NULL ? "-" : c->message->mark;
}

void conn_forget(struct conn *c)
{
	c->mail = false;
	c->message = NULL;
	c->taken = 0;
	c->body_len = 0;
	c->chunked = false;
	c->again = false;
}

static unsigned offers_of(const struct conn *c)
{
	unsigned offers = c->backend->config.offers;

	if (c->fickle == FICKLE_EHLO || (conn_deed_is_due(c, SIM_STAGE_EHLO) &&
					 c->deed.kind == SIM_DEED_LESS))
		offers &= SIM_OFFER_PIPELINING | SIM_OFFER_SIZE;
	return offers;
}

static void do_ehlo(struct conn *c, const char *arg, bool esmtp)
{
	const struct sim_backend_config *config = &c->backend->config;
	static const char *const words[] = {
		"PIPELINING", "SIZE 10485760", "8BITMIME",       "CHUNKING",
		"SMTPUTF8",   "DSN",           "X-WHATEVER a b",
	};
	char text[REPLY_MAX];
	unsigned offers = offers_of(c);
	int len;

	c->helo = true;
	c->helo_client = strstr(arg, ".client.test")
				 ? number_behind(arg, "c", 0)
				 : 0;
	conn_forget(c);
	if (!esmtp || offers == 0) {
		if (esmtp)
			conn_reply(c, SIM_STAGE_EHLO, "502 5.5.1 Say HELO\r\n");
		else
			conn_reply(c, SIM_STAGE_EHLO, "250 b%u.test\r\n",
				   config->index);
		return;
	}
	len = snprintf(text, sizeof(text), "250-b%u.test\r\n", config->index);
	if (offers == config->offers)
		len += who_offers(c, text + len, sizeof(text) - (size_t)len);
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (offers & 1U << i)
			len += snprintf(text + len, sizeof(text) - (size_t)len,
					"250-%s\r\n", words[i]);
	}
	if (offers & SIM_OFFER_DANGEROUS) {
		len += snprintf(
			text + len, sizeof(text) - (size_t)len,
			"250-XFORWARD NAME\r\n250-ETRN\r\n%s%s",
			!config->introduces ? "250-XCLIENT NAME ADDR\r\n" : "",
			config->secrecy == SIM_SECRECY_NONE ? "250-STARTTLS\r\n"
							    : "");
	}
	snprintf(text + len, sizeof(text) - (size_t)len, "250 HELP\r\n");
	conn_reply(c, SIM_STAGE_EHLO, "%s", text);
}

/* The word of a text that ends in CRLF or a blank, as an address. */
static const char *next_word(const char **at, char *word, size_t size)
{
	size_t len = strcspn(*at, " \r");
	size_t kept = len < size ? len : size - 1;

	memcpy(word, *at, kept);
	word[kept] = '\0';
	*at += len + ((*at)[len] == ' ');
	return word;
}

/* Whom the PROXY header names; of no family if nobody. */
static union sim_addr named(const struct conn *c)
{
	const uint8_t *h = c->head;
	char text[HEADER_MAX + 1], host[64], to[64], port[16];
	const char *at = text + strlen("PROXY TCPn ");

	if (c->backend->config.proxy == 2) {
		bool v6 = h[13] == 0x21;
		const uint8_t *p = h + 16 + (v6 ? 32 : 8);

		if (h[12] != 0x21 || (!v6 && h[13] != 0x11))
			return (union sim_addr){ 0 };
		inet_ntop(v6 ? AF_INET6 : AF_INET, h + 16, host, sizeof(host));
		return sim_addr_make(host, (uint16_t)(p[0] << 8 | p[1]));
	}
	memcpy(text, h, c->head_len);
	text[c->head_len] = '\0';
	next_word(&at, host, sizeof(host));
	next_word(&at, to, sizeof(to));
	next_word(&at, port, sizeof(port));
	return sim_addr_make(host, (uint16_t)strtoul(port, NULL, 10));
}

/* Whose is it?  Everything of a transaction must be of one client. */
static void witness(struct conn *c, const char *arg)
{
	struct sim_backend *b = c->backend;
	struct check_message *m = check_message_find(b->check, arg,
						     strlen(arg));

	if (m == NULL)
		return;
	if ((c->message != NULL && c->message != m) ||
	    (c->helo_client != 0 && c->helo_client != m->client)) {
		sim_violation(b->sim,
			      "backend b%u: \"%s\" came in a transaction of "
			      "%s, on a connection of client %u",
			      b->config.index, arg, mark_of(c), c->helo_client);
	}
	if (b->config.proxy > 0) {
		const union sim_addr who = named(c);

		check_named(b->check, m, b->config.index, &who);
	}
	who_witness(c, m);
	if (c->message == NULL)
		c->again = m->welcome != 0;
	c->message = m;
	if (c->lying)
		m->lied = true;
}

static void do_mail(struct conn *c, const char *arg)
{
	if (!c->lying && (!c->helo || c->mail)) {
		sim_violation(c->backend->sim, "backend b%u: MAIL out of order",
			      c->backend->config.index);
		return;
	}
	conn_forget(c);
	who_mail(c);
	witness(c, arg);
	struct sim_backend *b = c->backend;
	if (sim_now_us(b->sim) < b->strained_us) {
		conn_reply(c, SIM_STAGE_MAIL, "%s", strained);
		return;
	}
	struct saying *s = conn_reply(c, SIM_STAGE_MAIL, "250 2.1.0 b%u %s\r\n",
				      b->config.index, mark_of(c));
	c->mail = positive(s);
}

static void do_rcpt(struct conn *c, const char *arg)
{
	unsigned k = number_behind(arg, "<r", CHECK_RCPTS_MAX);

	witness(c, arg);
	if (!c->mail) {
		conn_reply(c, SIM_STAGE_RCPT, "503 5.5.1 b%u %s\r\n",
			   c->backend->config.index, mark_of(c));
		return;
	}
	if (c->backend->config.closed && strstr(arg, ".invalid>") != NULL) {
		conn_reply(c, SIM_STAGE_RCPT,
			   "554 5.7.1 Relay access denied\r\n");
		return;
	}
	if (strstr(arg, "<refused") != NULL) {
		conn_reply(c, SIM_STAGE_RCPT,
			   "550 5.1.1 No such user b%u %s\r\n",
			   c->backend->config.index, mark_of(c));
		return;
	}
	if (c->again && c->fickle == FICKLE_RCPT &&
	    sim_chance(c->backend->sim, 500)) {
		conn_reply(c, SIM_STAGE_RCPT, "%s b%u %s\r\n",
			   k % 2 == 0 ? "550 5.1.1 No more"
				      : "450 4.2.1 Not now",
			   c->backend->config.index, mark_of(c));
		return;
	}
	struct saying *s = conn_reply(c, SIM_STAGE_RCPT, "250 2.1.5 b%u %s\r\n",
				      c->backend->config.index, mark_of(c));
	if (k >= CHECK_RCPTS_MAX || !positive(s))
		return;
	c->taken |= 1U << k;
	if (c->message != NULL)
		c->message->welcome |= 1U << k;
}

static void keep_last(struct sim_backend *b, const void *data, size_t len);

/* Does a value of this type stand in the header from there on? */
static bool has_tlv(const struct conn *c, size_t at, uint8_t type)
{
	while (at + 3 <= c->head_len) {
		if (c->head[at] == type)
			return true;
		at += 3U + (unsigned)(c->head[at + 1] << 8 | c->head[at + 2]);
	}
	return false;
}

static void keep_header(struct conn *c)
{
	const uint8_t *h = c->head;
	char line[HEADER_MAX + 8] = "", from[64] = "", to[64] = "";

	if (c->backend->config.proxy == 1) {
		snprintf(line, sizeof(line), "[%.*s]", (int)c->head_len - 2,
			 (const char *)h);
	} else {
		bool v6 = h[13] == 0x21, named = v6 || h[13] == 0x11;
		size_t len = v6 ? 16 : 4, ends = named ? 2 * len + 4 : 0;

		if (named) {
			inet_ntop(v6 ? AF_INET6 : AF_INET, h + 16, from,
				  sizeof(from));
			inet_ntop(v6 ? AF_INET6 : AF_INET, h + 16 + len, to,
				  sizeof(to));
		}
		snprintf(line, sizeof(line), "[%s %s > %s%s%s]",
			 h[12] == 0x21 ? "v2" : "v2 local", from, to,
			 has_tlv(c, 16 + ends, 0x05) ? " id" : "",
			 has_tlv(c, 16 + ends, 0x20) ? " tls" : "");
	}
	keep_last(c->backend, line, strlen(line));
}

static void body_begins(struct conn *c)
{
	c->body_len = 0;
	c->trace_due = c->backend->config.header;
	c->trace_len = 0;
	c->backend->last_len = 0;
	if (c->backend->config.proxy > 0)
		keep_header(c);
	if (c->introduced) {
		keep_last(c->backend, "[XCLIENT ", 9);
		keep_last(c->backend, c->introduction, strlen(c->introduction));
		keep_last(c->backend, "]", 1);
	}
	if (c->wire.tls != NULL) {
		const char *about = sim_tls_about(c->wire.tls);

		keep_last(c->backend, "[", 1);
		keep_last(c->backend, about, strlen(about));
		keep_last(c->backend, "]", 1);
	}
	if (c->authenticated)
		keep_last(c->backend, "[authenticated]", 15);
}

static void do_data(struct conn *c)
{
	if (!c->mail || c->taken == 0) {
		conn_reply(c, SIM_STAGE_DATA, "503 5.5.1 No recipients %s\r\n",
			   mark_of(c));
		return;
	}
	if (c->again && c->fickle == FICKLE_DATA) {
		conn_reply(c, SIM_STAGE_DATA,
			   "451 4.3.0 Not any more b%u %s\r\n",
			   c->backend->config.index, mark_of(c));
		return;
	}
	struct saying *s = conn_reply(c, SIM_STAGE_DATA, "354 Go on b%u %s\r\n",
				      c->backend->config.index, mark_of(c));
	if (s == NULL || s->code != 354)
		return;
	c->reading = READ_DATA;
	c->eod_match = 2;
	body_begins(c);
}

static void body_ends(struct conn *c)
{
	struct sim_backend *b = c->backend;
	struct check_message *m = c->message;

	if (m != NULL)
		check_body_end(b->check, m, b->config.index, c->body_len,
			       c->chunked, c->taken);
	if (c->answered) {
		c->answered = false;
		c->reading = READ_COMMANDS;
		conn_forget(c);
		return;
	}
	c->due++;
	struct saying *s;
	if (b->config.eod_busy > 0 && sim_chance(b->sim, b->config.eod_busy)) {
		s = conn_reply(c, SIM_STAGE_EOD, "%s", strained);
	} else {
		s = conn_reply(c, SIM_STAGE_EOD,
			       "250 2.0.0 Ok: queued as Q%u%s b%u\r\n",
			       b->config.index, mark_of(c), b->config.index);
	}
	if (s != NULL) {
		s->final = true;
		s->message = m;
	}
	c->ended = m;
	if (c->reading != READ_NOTHING)
		c->reading = READ_COMMANDS;
	conn_forget(c);
}

static void do_bdat(struct conn *c, const char *arg)
{
	char *rest;

	c->chunk_left = strtoull(arg, &rest, 10);
	c->chunk_last = strstr(rest, "LAST") != NULL;
	if (!c->chunked)
		body_begins(c);
	c->chunked = true;
	c->reading = READ_CHUNK;
}

static void do_command(struct conn *c, char *line)
{
	struct sim_backend *b = c->backend;
	size_t verb_len = strcspn(line, " ");
	const char *arg = line[verb_len] == ' ' ? line + verb_len + 1 : "";

	who_line(c, line);
	if (c->greet_due)
		sim_violation(b->sim, "backend b%u: \"%s\" before the greeting",
			      b->config.index, line);
	if (c->due > 0 && !c->lying &&
	    !(b->config.offers & SIM_OFFER_PIPELINING)) {
		sim_violation(b->sim,
			      "backend b%u: \"%s\" pipelined, which it does "
			      "not offer",
			      b->config.index, line);
	}
	c->due++;
	line[verb_len] = '\0';
	if (strcasecmp(line, "EHLO") == 0)
		do_ehlo(c, arg, true);
	else if (strcasecmp(line, "HELO") == 0)
		do_ehlo(c, arg, false);
	else if (strcasecmp(line, "MAIL") == 0)
		do_mail(c, arg);
	else if (strcasecmp(line, "RCPT") == 0)
		do_rcpt(c, arg);
	else if (strcasecmp(line, "DATA") == 0)
		do_data(c);
	else if (strcasecmp(line, "BDAT") == 0)
		do_bdat(c, arg);
	else if (strcasecmp(line, "RSET") == 0) {
		conn_forget(c);
		conn_say(c, "250 2.0.0 Ok\r\n", 14, usual_delay(c))->last =
			true;
	} else if (strcasecmp(line, "QUIT") == 0) {
		struct saying *s = conn_say(c, "221 2.0.0 Bye\r\n", 15,
					    usual_delay(c));

		s->last = true;
		s->bye = true;
		c->reading = READ_NOTHING;
	} else if (!who_command(c, line, arg)) {
		sim_violation(b->sim, "backend b%u: what is \"%s %s\"?",
			      b->config.index, line, arg);
	}
}

/* --- octets in --- */

/* The reply in the middle of a body, if that is the deed. */
static void body_deed(struct conn *c)
{
	if (!conn_deed_is_due(c, SIM_STAGE_BODY))
		return;
	/* A 2xx in mid-chunk is taken for the reply to the chunk. */
	if (c->deed.kind == SIM_DEED_SAY && c->deed.text[0] < '4')
		lie(c);

	struct saying *s = conn_do_deed(c, "", 0);
	if ((c->deed.kind != SIM_DEED_SAY && c->deed.kind != SIM_DEED_BYE) ||
	    s == NULL)
		return;
	/* That is the reply to all of it: there will be no other. */
	s->final = true;
	s->message = c->message;
	s->code = code_of(s->text);
	s->refusal = is_refusal(s->text);
	c->answered = true;
}

static void keep_last(struct sim_backend *b, const void *data, size_t len)
{
	if (len > sizeof(b->last) - b->last_len)
		len = sizeof(b->last) - b->last_len;
	memcpy(b->last + b->last_len, data, len);
	b->last_len += len;
}

static bool trace_line_is_over(const struct conn *c)
{
	return c->trace_len >= 2 &&
	       memcmp(c->trace + c->trace_len - 2, "\r\n", 2) == 0;
}

static void trace_ends(struct conn *c)
{
	c->trace_due = false;
	check_trace(c->backend->check, c->message, c->backend->config.index,
		    c->trace, c->trace_len);
}

/* Octets of the trace field; what begins behind it is the body. */
static size_t take_trace(struct conn *c, const uint8_t *data, size_t len)
{
	size_t n = 0;

	while (n < len && c->trace_due) {
		bool folded = data[n] == ' ' || data[n] == '\t';

		if ((trace_line_is_over(c) && !folded) ||
		    c->trace_len == sizeof(c->trace))
			trace_ends(c);
		else
			c->trace[c->trace_len++] = (char)data[n++];
	}
	keep_last(c->backend, data, n);
	return n;
}

static void take_body(struct conn *c, const uint8_t *data, size_t len)
{
	keep_last(c->backend, data, len);
	if (c->message != NULL && len > 0) {
		check_body(c->backend->check, c->message,
			   c->backend->config.index, c->body_len, c->chunked,
			   (struct check_octets){ data, len });
	}
	c->body_len += len;
}

static size_t take_data(struct conn *c, const uint8_t *data, size_t len)
{
	static const uint8_t end[] = "\r\n.\r\n";
	size_t n = 0;

	if (c->trace_due) {
		n = take_trace(c, data, len);
		if (n > 0)
			return n;
	}
	while (n < len && c->eod_match < 5) {
		if (data[n] == end[c->eod_match])
			c->eod_match++;
		else
			c->eod_match = data[n] == '\r' ? 1 : 0;
		n++;
	}
	take_body(c, data, n);
	if (c->eod_match == 5)
		body_ends(c);
	else
		body_deed(c);
	return n;
}

static size_t take_chunk(struct conn *c, const uint8_t *data, size_t len)
{
	size_t n = len < c->chunk_left ? len : (size_t)c->chunk_left;
	size_t trace = c->trace_due ? take_trace(c, data, n) : 0;

	if (trace > 0)
		n = trace;
	else
		take_body(c, data, n);
	c->chunk_left -= n;
	if (c->chunk_left == 0 && c->chunk_last && c->trace_due)
		trace_ends(c);
	if (c->chunk_left > 0) {
		body_deed(c);
		return n;
	}
	bool willing = c->mail && c->taken != 0;
	if (c->chunk_last && willing) {
		c->due--; /* body_ends() counts it again */
		body_ends(c);
		return n;
	}
	c->reading = READ_COMMANDS;
	if (willing) {
		conn_reply(c, SIM_STAGE_DATA, "250 2.0.0 Chunk b%u %s\r\n",
			   c->backend->config.index, mark_of(c));
	} else {
		conn_reply(c, SIM_STAGE_DATA, "503 5.5.1 No recipients %s\r\n",
			   mark_of(c));
	}
	return n;
}

static size_t take_line(struct conn *c, const uint8_t *data, size_t len)
{
	for (size_t n = 0; n < len; n++) {
		if (c->line_len + 1 == sizeof(c->line)) {
			sim_violation(c->backend->sim,
				      "backend b%u: an endless line",
				      c->backend->config.index);
			c->line_len = 0;
		}
		c->line[c->line_len++] = (char)data[n];
		if (data[n] != '\n')
			continue;
		if (c->line_len < 2 || c->line[c->line_len - 2] != '\r' ||
		    memchr(c->line, '\0', c->line_len) != NULL) {
			sim_violation(c->backend->sim,
				      "backend b%u: a bare LF or a NUL in a "
				      "command",
				      c->backend->config.index);
		}
		c->line[c->line_len < 2 ? 0 : c->line_len - 2] = '\0';
		c->line_len = 0;
		if (c->reading == READ_AUTH)
			who_auth_line(c, c->line);
		else
			do_command(c, c->line);
		return n + 1;
	}
	return len;
}

/* Is the PROXY header whole, or no such thing? */
static bool header_ends(const struct conn *c, bool *good)
{
	static const char line[] = "PROXY TCP";
	static const uint8_t binary[] = "\r\n\r\n\0\r\nQUIT\n";
	bool v1 = c->backend->config.proxy == 1;
	const void *start = v1 ? (const void *)line : (const void *)binary;
	size_t start_len = v1 ? sizeof(line) - 1 : sizeof(binary) - 1;
	size_t n = c->head_len < start_len ? c->head_len : start_len;

	*good = memcmp(c->head, start, n) == 0 && c->head_len < HEADER_MAX;
	if (!*good)
		return true;
	if (v1)
		return c->head[c->head_len - 1] == '\n';
	return c->head_len >= 16 &&
	       c->head_len == 16U + (unsigned)(c->head[14] << 8 | c->head[15]);
}

static size_t take_header(struct conn *c, const uint8_t *data, size_t len)
{
	bool good = true;
	size_t n = 0;

	while (n < len) {
		c->head[c->head_len++] = data[n++];
		if (!header_ends(c, &good))
			continue;
		c->reading = READ_COMMANDS;
		if (!good) {
			sim_violation(c->backend->sim,
				      "backend b%u: no PROXY header comes",
				      c->backend->config.index);
		} else if (n < len &&
			   c->backend->config.secrecy != SIM_SECRECY_IMPLICIT) {
			sim_violation(
				c->backend->sim,
				"backend b%u: something follows the PROXY "
				"header before the greeting",
				c->backend->config.index);
		}
		if (c->backend->config.secrecy == SIM_SECRECY_IMPLICIT)
			who_secure(c);
		else
			conn_ready(c);
		break;
	}
	return n;
}

static void take_haste(const struct conn *c)
{
	if (c->lying)
		return;
	sim_violation(c->backend->sim,
		      "backend b%u: something is said behind STARTTLS before "
		      "its answer",
		      c->backend->config.index);
}

static void take(struct conn *c, const uint8_t *data, size_t len)
{
	while (len > 0 || (c->reading == READ_CHUNK && c->chunk_left == 0)) {
		size_t n = len;

		switch (c->reading) {
		case READ_HEADER:
			n = take_header(c, data, len);
			break;
		case READ_SECRECY:
			take_haste(c);
			break;
		case READ_COMMANDS:
		case READ_AUTH:
			n = take_line(c, data, len);
			break;
		case READ_DATA:
			n = take_data(c, data, len);
			break;
		case READ_CHUNK:
			n = take_chunk(c, data, len);
			break;
		case READ_NOTHING:
			break;
		}
		data += n;
		len -= n;
	}
}

/* False: the connection is gone. */
static bool conn_read(struct conn *c)
{
	uint8_t buf[READ_SIZE / 8];

	while (!c->stalled) {
		size_t n = sim_wire_read(&c->wire, buf, sizeof(buf));

		if (c->shaking && !who_shakes(c))
			return false;
		if (n == 0)
			break;
		take(c, buf, n);
	}
	return true;
}

static void stall_ends(struct conn *c)
{
	c->stalled = false;
	if (conn_read(c) && sim_wire_at_end(&c->wire))
		conn_close(c, false);
}

static void conn_event(void *owner, struct sim_end *end, enum sim_what what,
		       int err)
{
	struct conn *c = owner;

	(void)end;
	(void)err; /* an end that was accepted never fails to open */
	switch (what) {
	case SIM_RST:
		conn_close(c, true);
		return;
	case SIM_DATA:
	case SIM_FIN:
		/* A client that ends its side wants no answers. */
		if (conn_read(c) && sim_wire_at_end(&c->wire))
			conn_close(c, false);
		return;
	case SIM_OPEN:
	case SIM_FAILED:
	case SIM_ROOM:
		return;
	}
}

/* --- deeds by chance --- */

#define PICK(sim, list)                                                        \
	((list)[sim_below((sim), sizeof(list) / sizeof((list)[0]))])

/* A stage that connections to this server come through. */
static enum sim_stage any_stage(const struct sim_backend *b)
{
	static const enum sim_stage always[] = {
		SIM_STAGE_GREET, SIM_STAGE_EHLO, SIM_STAGE_MAIL, SIM_STAGE_RCPT,
		SIM_STAGE_DATA,  SIM_STAGE_BODY, SIM_STAGE_EOD,
	};
	enum sim_stage more[5];
	uint32_t n = 0;

	if (b->config.secrecy == SIM_SECRECY_STARTTLS)
		more[n++] = SIM_STAGE_STARTTLS;
	if (b->config.secrecy != SIM_SECRECY_NONE)
		more[n++] = SIM_STAGE_HANDSHAKE;
	if (b->config.introduces)
		more[n++] = SIM_STAGE_XCLIENT;
	if (b->config.auth != NULL) {
		more[n++] = SIM_STAGE_CHALLENGE;
		more[n++] = SIM_STAGE_AUTH;
	}
	if (n > 0 && sim_chance(b->sim, 300))
		return more[sim_below(b->sim, n)];
	return PICK(b->sim, always);
}

static struct sim_deed any_deed(const struct sim_backend *b)
{
	struct sim *sim = b->sim;
	static const enum sim_deed_kind kinds[] = {
		SIM_DEED_SAY,     SIM_DEED_SAY,   SIM_DEED_SAY,
		SIM_DEED_BYE,     SIM_DEED_BYE,   SIM_DEED_GARBAGE,
		SIM_DEED_FIN,     SIM_DEED_RST,   SIM_DEED_SILENCE,
		SIM_DEED_EXTRA,   SIM_DEED_SPLIT, SIM_DEED_SLOW,
		SIM_DEED_ENDLESS, SIM_DEED_LINES, SIM_DEED_LATER,
		SIM_DEED_STALL,   SIM_DEED_LESS,  SIM_DEED_TAMPER,
	};
	struct sim_deed d = {
		.kind = PICK(sim, kinds),
		.stage = any_stage(b),
		.after_us = sim_below(sim, 20 * SIM_SECOND),
	};

	switch (d.kind) {
	case SIM_DEED_SAY:
		if (d.stage <= SIM_STAGE_EHLO || d.stage > SIM_STAGE_EOD)
			d.text = PICK(sim, busy_texts);
		else
			d.text = PICK(sim, later_texts);
		break;
	case SIM_DEED_GARBAGE:
		d.text = PICK(sim, garbage_texts);
		break;
	case SIM_DEED_BYE:
	case SIM_DEED_LATER:
		d.text = PICK(sim, busy_texts);
		break;
	case SIM_DEED_EXTRA:
		d.text = d.stage == SIM_STAGE_STARTTLS
				 ? "250-injected.test\r\n250 SIZE 1\r\n"
			 : sim_chance(sim, 500) ? "250 2.0.0 and more\r\n"
						: "451 4.3.0 and more\r\n";
		break;
	case SIM_DEED_LESS:
	case SIM_DEED_NONE:
	case SIM_DEED_FIN:
	case SIM_DEED_RST:
	case SIM_DEED_SILENCE:
	case SIM_DEED_SPLIT:
	case SIM_DEED_SLOW:
	case SIM_DEED_ENDLESS:
	case SIM_DEED_LINES:
	case SIM_DEED_STALL:
	case SIM_DEED_TAMPER:
		break;
	}
	return d;
}

static struct sim_deed next_deed(struct sim_backend *b)
{
	const struct sim_deed good = { .kind = SIM_DEED_NONE };

	if (b->config.deeds != NULL)
		return b->seen < b->config.deed_count ? b->config.deeds[b->seen]
						      : good;
	if (!sim_chance(b->sim, b->config.deed_chance))
		return good;
	return any_deed(b);
}

static void greet(struct conn *c)
{
	conn_reply(c, SIM_STAGE_GREET, "220 b%u.test ESMTP ready\r\n",
		   c->backend->config.index);
}

void conn_ready(struct conn *c)
{
	if (c->slot || c->turned)
		greet(c);
}

/* There is no slot for it. */
static void turn_away(struct conn *c)
{
	struct sim_backend *b = c->backend;
	const char *text = b->config.full_text;

	if (b->config.full == SIM_DEED_SLOW) {
		c->queued = true;
		return;
	}
	b->use.refused++;
	c->deed = (struct sim_deed){
		.kind = b->config.full,
		.stage = SIM_STAGE_GREET,
		.text = text != NULL ? text : busy_texts[0],
	};
	c->turned = c->shaking || b->config.secrecy == SIM_SECRECY_IMPLICIT;
	if (!c->turned)
		greet(c);
}

static enum sim_answer on_accept(void *owner, struct sim_end *end)
{
	struct sim_backend *b = owner;
	bool full = !slot_is_free(b) || (b->config.moody > 0 &&
					 sim_chance(b->sim, b->config.moody));
	static const enum sim_answer answers[] = {
		[SIM_UP] = SIM_TAKE,
		[SIM_UP_REFUSING] = SIM_REFUSE,
		[SIM_UP_DROPPING] = SIM_DROP,
		[SIM_UP_NO_ROUTE] = SIM_NO_ROUTE,
	};

	if (b->up != SIM_UP)
		return answers[b->up];
	b->use.asked++;
	if (full && b->config.full == SIM_DEED_RST) {
		b->use.refused++;
		return SIM_REFUSE; /* Sendmail closes its port */
	}
	struct conn *c = calloc(1, sizeof(*c));
	if (c == NULL)
		abort();
	c->backend = b;
	sim_wire_open(&c->wire, b->sim, end);
	c->deed = next_deed(b);
	c->came_us = sim_now_us(b->sim);
	static const enum fickle fickles[] = { FICKLE_EHLO, FICKLE_RCPT,
					       FICKLE_DATA };
	if (b->config.fickle > 0 && sim_chance(b->sim, b->config.fickle))
		c->fickle = PICK(b->sim, fickles);
	c->timer = (struct sim_timer){ .fire = timer_fires, .owner = c };
	c->drip = (struct sim_timer){ .fire = drip_fires, .owner = c };
	c->next = &b->conns;
	c->prev = b->conns.prev;
	c->prev->next = c->next->prev = c;
	c->greet_due = true;
	c->reading = b->config.proxy > 0 ? READ_HEADER : READ_COMMANDS;
	if (b->config.proxy == 0 && b->config.secrecy == SIM_SECRECY_IMPLICIT)
		who_secure(c);
	b->seen++;
	b->open++;
	sim_end_adopt(end, conn_event, c);
	if (full)
		turn_away(c);
	else
		slot_take(c);
	return SIM_TAKE;
}

/* --- the whole server --- */

struct sim_backend *sim_backend_new(struct sim *sim, struct check *check,
				    const struct sim_backend_config *config)
{
	struct sim_backend *b = calloc(1, sizeof(*b));

	if (b == NULL)
		abort();
	b->sim = sim;
	b->check = check;
	b->config = *config;
	b->conns.next = b->conns.prev = &b->conns;
	b->listener = sim_listen(sim, &b->config.addr.sa, on_accept, b);
	return b;
}

void sim_backend_free(struct sim_backend **bp)
{
	struct sim_backend *b = *bp;

	if (b == NULL)
		return;
	sim_backend_restart(b);
	sim_unlisten(b->sim, b->listener);
	free(b);
	*bp = NULL;
}

void sim_backend_up(struct sim_backend *b, enum sim_up up)
{
	b->up = up;
}

void sim_backend_restart(struct sim_backend *b)
{
	for (struct conn *c = b->conns.next, *next; c != &b->conns; c = next) {
		next = c->next;
		conn_close(c, true);
	}
}

void sim_backend_heal(struct sim_backend *b)
{
	b->up = SIM_UP;
	b->config.slots = 0;
	b->config.deed_chance = 0;
	b->config.fickle = 0;
	b->config.eod_busy = 0;
	b->config.deeds = NULL;
	b->strained_us = 0;
	sim_backend_restart(b);
}

void sim_backend_deeds(struct sim_backend *b, const struct sim_deed *deeds,
		       unsigned count)
{
	b->config.deeds = deeds;
	b->config.deed_count = count;
	b->seen = 0;
}

void sim_backend_closed(struct sim_backend *b, bool closed)
{
	b->config.closed = closed;
}

void sim_backend_slots(struct sim_backend *b, unsigned slots)
{
	count_use(b);
	b->config.slots = slots;
	serve_queue(b);
}

bool sim_backend_take(struct sim_backend *b)
{
	if (!slot_is_free(b))
		return false;
	count_use(b);
	b->others++;
	return true;
}

void sim_backend_give(struct sim_backend *b)
{
	assert(b->others > 0);
	count_use(b);
	b->others--;
	serve_queue(b);
}

void sim_backend_strain(struct sim_backend *b, int64_t until_us)
{
	b->strained_us = until_us;
}

void sim_backend_use(struct sim_backend *b, struct sim_backend_use *use)
{
	count_use(b);
	*use = b->use;
}

const char *sim_backend_last(const struct sim_backend *b, size_t *len)
{
	*len = b->last_len;
	return b->last;
}

unsigned sim_backend_seen(const struct sim_backend *b)
{
	return b->seen;
}

unsigned sim_backend_open(const struct sim_backend *b)
{
	return b->open;
}

unsigned sim_backend_accepted(const struct sim_backend *b)
{
	return b->accepted;
}
