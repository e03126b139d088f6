#include "tests/sim/sim_talk.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_auth.h"
#include "tests/sim/sim_wire.h"

enum { STEP_MAX = 1024, REPLY_MAX = 32768, BODY_LINE = 70 };

struct sim_talk {
	struct sim *sim;
	const char *at; /* the rest of the script */
	struct sim_wire wire;
	bool came; /* it has tried to connect */
	union sim_addr from, to;
	sim_talk_fn *fn;
	void *owner;
	struct sim_timer timer;
	bool open, done, waiting, deaf, closed, fin, slow_busy;
	bool ended_well; /* TLS too, if there was any */
	int64_t slow_us;
	int64_t mark_us;
	unsigned long reads; /* of the step "reads" so far */
	char *pending;       /* octets said slowly; from pending_at */
	size_t pending_len, pending_at;
	char step[STEP_MAX];
	char octets[STEP_MAX + 2]; /* of a step, to be said */
	char inbox[REPLY_MAX];     /* read and not yet expected */
	size_t inbox_len;
	char reply[REPLY_MAX]; /* the last one */
};

static void go_on(struct sim_talk *t);

static void wrong(struct sim_talk *t, const char *what, const char *read)
{
	sim_violation(t->sim, "at \"%s\": %s \"%.200s\"", t->step, what, read);
	t->done = true;
}

/* --- saying --- */

static void slow_fires(struct sim_talk *t)
{
	if (t->pending_at == t->pending_len) {
		t->slow_busy = false;
		t->waiting = false;
		return;
	}
	if (t->closed)
		t->pending_at = t->pending_len;
	else
		sim_wire_say(&t->wire, t->pending + t->pending_at++, 1);
	t->slow_busy = true;
	t->waiting = true;
	sim_timer_set(t->sim, &t->timer, sim_now_us(t->sim) + t->slow_us);
}

static void say(struct sim_talk *t, const void *octets, size_t len)
{
	if (t->closed)
		return;
	if (t->slow_us == 0 || t->wire.tls != NULL) {
		sim_wire_say(&t->wire, octets, len);
		return;
	}
	free(t->pending);
	t->pending = malloc(len + 1);
	if (t->pending == NULL)
		abort();
	memcpy(t->pending, octets, len);
	t->pending_len = len;
	t->pending_at = 0;
	slow_fires(t);
}

static unsigned hex(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10);
}

/* Octets of out, which is never longer than text. */
static size_t unescape(const char *text, char *out)
{
	size_t n = 0;

	for (; *text != '\0'; text++) {
		if (*text != '\\') {
			out[n++] = *text;
			continue;
		}
		text++;
		if (*text == 'r') {
			out[n++] = '\r';
		} else if (*text == 'n') {
			out[n++] = '\n';
		} else if (*text == '0') {
			out[n++] = '\0';
		} else if (*text == 'x') {
			out[n++] = (char)(uint8_t)(hex(text[1]) * 16 +
						   hex(text[2]));
			text += 2;
		} else {
			out[n++] = *text;
		}
	}
	return n;
}

static void say_escaped(struct sim_talk *t, const char *text)
{
	say(t, t->octets, unescape(text, t->octets));
}

/* As it is, past TLS. */
static void say_raw(struct sim_talk *t, const char *text)
{
	if (!t->closed)
		sim_wire_say_raw(&t->wire, t->octets,
				 unescape(text, t->octets));
}

static void say_body(struct sim_talk *t, size_t len)
{
	char *body = malloc(len + BODY_LINE);

	if (body == NULL)
		abort();
	memset(body, 'x', len);
	for (size_t i = BODY_LINE; i <= len; i += BODY_LINE) {
		body[i - 2] = '\r';
		body[i - 1] = '\n';
	}
	if (len >= 2) {
		body[len - 2] = '\r';
		body[len - 1] = '\n';
	}
	say(t, body, len);
	free(body);
}

/* "N TEXT" */
static void say_many(struct sim_talk *t, const char *rest)
{
	char *text;
	unsigned long n = strtoul(rest, &text, 10);

	for (unsigned long i = 0; i < n; i++)
		say_escaped(t, text + 1);
}

/* "WAY N": the nth line of that dialogue, as client 1 says it. */
static void say_auth(struct sim_talk *t, const char *rest)
{
	static const struct {
		const char *word;
		enum sim_auth_way way;
	} ways[] = {
		{ "plain", SIM_AUTH_PLAIN },
		{ "plain-later", SIM_AUTH_PLAIN_LATER },
		{ "login", SIM_AUTH_LOGIN },
		{ "xoauth2", SIM_AUTH_XOAUTH2 },
		{ "oauthbearer", SIM_AUTH_OAUTHBEARER },
		{ "cram", SIM_AUTH_CRAM },
		{ "scram", SIM_AUTH_SCRAM },
		{ "scram-256", SIM_AUTH_SCRAM_256 },
	};
	char line[SIM_AUTH_LINE_MAX + 2];
	size_t len = strcspn(rest, " ");
	unsigned number = (unsigned)strtoul(rest + len, NULL, 10);

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		if (strlen(ways[i].word) != len ||
		    strncmp(ways[i].word, rest, len) != 0)
			continue;
		if (!sim_auth_say(ways[i].way, 1, number, line))
			wrong(t, "no such line of", rest);
		len = strlen(line);
		line[len++] = '\r';
		line[len++] = '\n';
		say(t, line, len);
		return;
	}
	wrong(t, "no such way:", rest);
}

/* --- reading --- */

/* Octets of the first whole reply in the inbox, 0: there is none. */
static size_t whole_reply(const struct sim_talk *t, size_t *last_line)
{
	size_t from = 0;

	for (size_t i = 0; i < t->inbox_len; i++) {
		if (t->inbox[i] != '\n')
			continue;
		*last_line = from;
		if (i - from < 4 || t->inbox[from + 3] != '-')
			return i + 1;
		from = i + 1;
	}
	return 0;
}

/* False: it has not come yet. */
static bool expect_reply(struct sim_talk *t, const char *text)
{
	size_t last = 0;
	size_t len = whole_reply(t, &last);

	if (len == 0) {
		if (t->closed || t->fin)
			wrong(t, "read the end after", t->inbox);
		return false;
	}
	memcpy(t->reply, t->inbox, len);
	t->reply[len] = '\0';
	if (sim_auth_leaks(t->reply, len))
		wrong(t, "credentials in", t->reply);
	memmove(t->inbox, t->inbox + len, t->inbox_len - len);
	t->inbox_len -= len;
	t->inbox[t->inbox_len] = '\0';
	if (strncmp(t->reply + last, text, strlen(text)) != 0)
		wrong(t, "read", t->reply);
	return true;
}

static void listen_on(struct sim_talk *t)
{
	while (!t->deaf && !t->closed) {
		size_t n = sim_wire_read(&t->wire, t->inbox + t->inbox_len,
					 REPLY_MAX - 1 - t->inbox_len);

		if (n == 0)
			break;
		t->inbox_len += n;
		t->inbox[t->inbox_len] = '\0';
	}
	if (!t->closed && sim_wire_at_end(&t->wire)) {
		t->fin = true;
		t->ended_well = sim_wire_ended_well(&t->wire);
	}
}

/* --- steps --- */

static bool take_step(struct sim_talk *t)
{
	size_t len;

	while (*t->at == '\n' || *t->at == ' ' || *t->at == '\t')
		t->at++;
	if (*t->at == '\0')
		return false;
	len = strcspn(t->at, "\n");
	if (len >= STEP_MAX)
		len = STEP_MAX - 1;
	memcpy(t->step, t->at, len);
	t->step[len] = '\0';
	t->at += len;
	return true;
}

static bool is(const char *step, const char *word, const char **rest)
{
	size_t len = strlen(word);

	if (strncmp(step, word, len) != 0 ||
	    (step[len] != ' ' && step[len] != '\0'))
		return false;
	*rest = step[len] == ' ' ? step + len + 1 : step + len;
	return true;
}

static void close_now(struct sim_talk *t, bool reset)
{
	if (t->closed)
		return;
	t->closed = true;
	if (reset)
		sim_wire_reset(&t->wire);
	else
		sim_wire_close(&t->wire);
}

/* --- TLS --- */

/* Words of a step: how TLS is to begin. */
static void begin_tls(struct sim_talk *t, const char *words)
{
	struct sim_tls_wish wish = { 0 };

	wish.old = strstr(words, "1.2") != NULL;
	wish.card = strstr(words, "card") != NULL;
	if (strstr(words, "mx2") != NULL)
		wish.name = "mx2.test";
	const char *at = strstr(words, "drawer ");
	if (at != NULL)
		wish.drawer = (unsigned)strtoul(at + 7, NULL, 10);
	at = strstr(words, "records ");
	if (at != NULL)
		wish.record = strtoul(at + 8, NULL, 10);
	if (t->inbox_len > 0)
		wrong(t, "before the handshake", t->inbox);
	if (t->closed)
		wrong(t, "it is closed", "");
	if (t->closed)
		return;
	sim_wire_slow(&t->wire, t->slow_us);
	sim_wire_secure(&t->wire, &wish);
}

/* False: the handshake goes on. */
static bool await_tls(struct sim_talk *t)
{
	if (sim_wire_is_secure(&t->wire))
		return true;
	if (t->closed || t->fin)
		wrong(t, "the end", "");
	else if (sim_wire_has_failed(&t->wire))
		wrong(t, "no TLS", sim_tls_about(t->wire.tls));
	return t->done;
}

static bool has_failed(const struct sim_talk *t)
{
	return t->closed || t->fin || sim_wire_has_failed(&t->wire);
}

/* False: nothing has become of it yet. */
static bool await_failure(struct sim_talk *t)
{
	if (!has_failed(t) && !sim_wire_is_secure(&t->wire))
		return false;
	if (!has_failed(t))
		wrong(t, "TLS began", sim_tls_about(t->wire.tls));
	return true;
}

static void check_tls(struct sim_talk *t, const char *text)
{
	const char *about = sim_wire_is_secure(&t->wire)
				    ? sim_tls_about(t->wire.tls)
				    : "no TLS";

	if (strstr(about, text) == NULL)
		wrong(t, "it is", about);
}

/* False: this step is none of TLS. */
static bool do_tls(struct sim_talk *t, const char *step, bool *over)
{
	const char *rest;

	*over = true;
	if (is(step, "hello", &rest)) {
		begin_tls(t, rest);
	} else if (is(step, "secure", &rest)) {
		if (t->wire.tls == NULL && !t->closed)
			begin_tls(t, rest);
		*over = await_tls(t);
	} else if (is(step, "insecure", &rest)) {
		*over = await_failure(t);
	} else if (is(step, "failed", &rest)) {
		*over = has_failed(t);
	} else if (is(step, "agreed", &rest)) {
		check_tls(t, rest);
	} else if (is(step, "raw", &rest)) {
		say_raw(t, rest);
	} else if (is(step, "hold", &rest)) {
		sim_wire_hold(&t->wire);
	} else if (is(step, "go", &rest)) {
		sim_wire_go(&t->wire);
	} else if (is(step, "tamper", &rest)) {
		sim_wire_tamper(&t->wire);
	} else if (is(step, "tear", &rest)) {
		sim_wire_tear(&t->wire);
	} else if (is(step, "notify", &rest)) {
		sim_wire_notify(&t->wire);
	} else if (t->wire.tls != NULL && is(step, "records", &rest)) {
		sim_tls_record(t->wire.tls, strtoul(rest, NULL, 10));
	} else if (t->wire.tls != NULL && is(step, "rekey", &rest)) {
		sim_tls_rekey(t->wire.tls);
		sim_wire_flush(&t->wire);
	} else if (t->wire.tls != NULL && is(step, "renegotiate", &rest)) {
		sim_tls_renegotiate(t->wire.tls);
		sim_wire_flush(&t->wire);
	} else {
		return false;
	}
	return true;
}

static long since_mark_ms(const struct sim_talk *t)
{
	return (long)((sim_now_us(t->sim) - t->mark_us) / SIM_MS);
}

/* False: the end is not there yet. */
static bool do_end(struct sim_talk *t, const char *step)
{
	const char *rest;

	if (is(step, "eof", &rest)) {
		if (t->inbox_len > 0)
			wrong(t, "read", t->inbox);
		if (t->fin && !t->ended_well)
			wrong(t, "TLS was cut", "");
		if (t->fin)
			close_now(t, false);
		return t->closed;
	}
	if (is(step, "gone", &rest)) {
		t->inbox_len = 0;
		if (t->fin)
			close_now(t, false);
		return t->closed;
	}
	wrong(t, "what is that", step);
	return true;
}

/* False: the step is not over yet. */
static bool do_reading(struct sim_talk *t, const char *step)
{
	const char *rest;

	if (is(step, "<", &rest))
		return expect_reply(t, rest);
	if (is(step, "reads", &rest)) {
		char *text;
		unsigned long n = strtoul(rest, &text, 10);

		while (!t->done && t->reads < n && expect_reply(t, text + 1))
			t->reads++;
		if (t->reads < n)
			return t->done;
		t->reads = 0;
		return true;
	}
	if (is(step, "has", &rest)) {
		if (strstr(t->reply, rest) == NULL)
			wrong(t, "it is not in", t->reply);
		return true;
	}
	if (is(step, "not", &rest)) {
		if (strstr(t->reply, rest) != NULL)
			wrong(t, "it is in", t->reply);
		return true;
	}
	if (is(step, "soon", &rest)) {
		if (since_mark_ms(t) > strtol(rest, NULL, 10))
			wrong(t, "too late", t->reply);
		return true;
	}
	if (is(step, "after", &rest)) {
		if (since_mark_ms(t) < strtol(rest, NULL, 10))
			wrong(t, "too early", t->reply);
		return true;
	}
	return do_end(t, step);
}

static bool do_step(struct sim_talk *t, const char *step)
{
	const char *rest;

	if (is(step, ">>", &rest)) {
		say_escaped(t, rest);
	} else if (is(step, ">", &rest)) {
		int n = snprintf(t->octets, sizeof(t->octets), "%s\r\n", rest);

		say(t, t->octets, (size_t)n);
	} else if (is(step, "many", &rest)) {
		say_many(t, rest);
	} else if (is(step, "auth", &rest)) {
		say_auth(t, rest);
	} else if (is(step, "body", &rest)) {
		say_body(t, strtoul(rest, NULL, 10));
	} else if (is(step, "wait", &rest)) {
		t->waiting = true;
		sim_timer_set(t->sim, &t->timer,
			      sim_now_us(t->sim) +
				      SIM_MS * strtol(rest, NULL, 10));
	} else if (is(step, "mark", &rest)) {
		t->mark_us = sim_now_us(t->sim);
	} else if (is(step, "slow", &rest)) {
		t->slow_us = SIM_MS * strtol(rest, NULL, 10);
		if (t->wire.tls != NULL)
			sim_wire_slow(&t->wire, t->slow_us);
	} else if (is(step, "deaf", &rest)) {
		t->deaf = true;
	} else if (is(step, "fin", &rest)) {
		sim_wire_fin(&t->wire, false);
	} else if (is(step, "rst", &rest)) {
		close_now(t, true);
	} else if (is(step, "close", &rest)) {
		close_now(t, false);
	} else if (is(step, "!", &rest)) {
		t->fn(t->owner, rest);
	} else {
		return do_reading(t, step);
	}
	return true;
}

static void go_on(struct sim_talk *t)
{
	bool over;

	while (!t->done && !t->waiting && (t->open || t->closed)) {
		if (t->step[0] == '\0' && !take_step(t)) {
			t->done = true;
			if (t->inbox_len > 0)
				wrong(t, "left unread", t->inbox);
			close_now(t, false);
			return;
		}
		if (!do_tls(t, t->step, &over))
			over = do_step(t, t->step);
		if (!over)
			return;
		if (!t->done)
			t->step[0] = '\0';
	}
}

static void on_event(void *owner, struct sim_end *end, enum sim_what what,
		     int err)
{
	struct sim_talk *t = owner;

	(void)err; /* a scene that cannot connect has failed */
	(void)end;
	switch (what) {
	case SIM_OPEN:
		t->open = true;
		break;
	case SIM_FAILED:
		t->wire.end = NULL;
		t->closed = true;
		wrong(t, "cannot connect", "");
		return;
	case SIM_RST:
		listen_on(t);
		close_now(t, true);
		break;
	case SIM_DATA:
	case SIM_FIN:
		listen_on(t);
		break;
	case SIM_ROOM:
		return;
	}
	go_on(t);
}

static void timer_fires(void *owner)
{
	struct sim_talk *t = owner;

	if (!t->came) {
		t->came = true;
		sim_wire_open(&t->wire, t->sim,
			      sim_connect(t->sim, &t->to.sa, &t->from.sa,
					  on_event, t));
		return;
	}
	t->waiting = false;
	if (t->slow_busy)
		slow_fires(t);
	go_on(t);
}

struct sim_talk *sim_talk_new(struct sim *sim, const char *script,
			      const union sim_addr *from,
			      const union sim_addr *to, sim_talk_fn *fn,
			      void *owner)
{
	struct sim_talk *t = calloc(1, sizeof(*t));
	const char *rest;

	if (t == NULL)
		abort();
	t->sim = sim;
	t->at = script;
	t->fn = fn;
	t->owner = owner;
	t->timer = (struct sim_timer){ .fire = timer_fires, .owner = t };
	t->from = *from;
	t->to = *to;
	unsigned long later_ms = 0;
	if (is(script, "later", &rest)) {
		later_ms = strtoul(rest, NULL, 10);
		t->at += strcspn(t->at, "\n");
	}
	sim_timer_set(sim, &t->timer,
		      sim_now_us(sim) + SIM_MS * (int64_t)later_ms);
	return t;
}

void sim_talk_free(struct sim_talk **tp)
{
	struct sim_talk *t = *tp;

	if (t == NULL)
		return;
	sim_timer_clear(t->sim, &t->timer);
	close_now(t, true);
	free(t->pending);
	free(t);
	*tp = NULL;
}

bool sim_talk_done(const struct sim_talk *t)
{
	return t->done;
}

const char *sim_talk_step(const struct sim_talk *t)
{
	return t->step;
}
