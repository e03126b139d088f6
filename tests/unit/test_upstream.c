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

/*
 * Conversations as tables: what is sent, what the backend says, what comes
 * back.  Each is run with the backend's octets whole, cut in two at every
 * place, and one by one.
 */

static const struct upstream_timeouts timeouts = {
	.connect_ms = 5000,
	.greeting_ms = 30000,
	.helo_ms = 31000,
	.tls_ms = 7000,
	.mail_ms = 1000,
	.rcpt_ms = 2000,
	.data_ms = 3000,
	.final_ms = 4000,
	.quit_ms = 500,
};

enum kind {
	END,
	OCTETS,  /* the backend says */
	SENT,    /* a command of .stage went out */
	EXPECT,  /* what came of it, since the last EXPECT */
	QUIT,    /* we say QUIT */
	LATER,   /* .ms pass */
	DUE_IN,  /* the deadline is .ms from now; -1: there is none */
	CHUNK,   /* .ms: the client owes octets, or no more */
	SECURE,  /* the handshake is done */
	PRESENT, /* another client, by XCLIENT */
	AWAITS,  /* a reply of .stage is what is awaited */
};

struct move {
	enum kind kind;
	const char *text;
	size_t len;
	enum busy_stage stage;
	int64_t ms;
};

struct talk {
	const char *name;
	const struct move *moves;
	bool whole_only; /* what matters is that it came at once */
	const struct upstream_order *order; /* NULL: in clear, for nobody */
};

#define S(octets)                                                              \
	{                                                                      \
		.kind = OCTETS, .text = (octets), .len = sizeof(octets) - 1    \
	}
#define T(in)                                                                  \
	{                                                                      \
		.kind = SENT, .stage = BUSY_STAGE_##in                         \
	}
#define X(words)                                                               \
	{                                                                      \
		.kind = EXPECT, .text = (words)                                \
	}
#define AFTER(by)                                                              \
	{                                                                      \
		.kind = LATER, .ms = (by)                                      \
	}
#define IN(by)                                                                 \
	{                                                                      \
		.kind = DUE_IN, .ms = (by)                                     \
	}
#define OWES(is)                                                               \
	{                                                                      \
		.kind = CHUNK, .ms = (is)                                      \
	}
#define BYE                                                                    \
	{                                                                      \
		.kind = QUIT                                                   \
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
#define TALK_WHOLE(title, ...)                                                 \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true                                             \
	}
#define TLS_IS_UP                                                              \
	{                                                                      \
		.kind = SECURE                                                 \
	}
#define ANOTHER                                                                \
	{                                                                      \
		.kind = PRESENT                                                \
	}
#define WAITS(in)                                                              \
	{                                                                      \
		.kind = AWAITS, .stage = BUSY_STAGE_##in                       \
	}
#define TALK_AS(how, title, ...)                                               \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.order = &(how)                                                \
	}
#define TALK_AS_WHOLE(how, title, ...)                                         \
	{                                                                      \
		.name = (title),                                               \
		.moves = (const struct move[]){ __VA_ARGS__,                   \
						{ .kind = END } },             \
		.whole_only = true, .order = &(how)                            \
	}
#define READY                                                                  \
	S("220 hi\r\n"), S("250-x\r\n250 PIPELINING\r\n"),                     \
		X("EHLO me.test; ready")

#define ME .name = "me.test", .name_len = 7

/* 192.0.2.50, and 2001:db8::7 that says HELO */
static const struct xclient client = {
	.esmtp = true,
	.port = 4711,
	.dest_port = 25,
	.addr = { { [10] = 0xff, 0xff, 192, 0, 2, 50 } },
	.dest = { { [10] = 0xff, 0xff, 203, 0, 113, 1 } },
	.helo_len = 11,
	.helo = "client.test",
};
static const struct xclient other = {
	.port = 99,
	.addr = { { 0x20, 0x01, 0x0d, 0xb8, [15] = 7 } },
	.helo_len = 5,
	.helo = "other",
};

static const struct upstream_order clear = { ME };
static const struct upstream_order if_offered = {
	ME,
	.tls = UPSTREAM_TLS_IF_OFFERED,
};
static const struct upstream_order must = { ME, .tls = UPSTREAM_TLS_MUST };
static const struct upstream_order implicit = { ME, .implicit = true };
static const struct upstream_order implicit_must = {
	ME,
	.implicit = true,
	.tls = UPSTREAM_TLS_MUST,
};
static const struct upstream_order speak_for = { ME, .who = &client };
static const struct upstream_order if_offered_for = {
	ME,
	.tls = UPSTREAM_TLS_IF_OFFERED,
	.who = &client,
};
static const struct upstream_order must_for = {
	ME,
	.tls = UPSTREAM_TLS_MUST,
	.who = &client,
};
static const struct upstream_order tcp = { ME, .tcp = true };
static const struct upstream_order tcp_implicit = {
	ME,
	.tcp = true,
	.implicit = true,
};

static struct upstream *u;
static int64_t now_ms;
static char words[4096];
static size_t words_len;
static bool over, surprised;
static const char *name;

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(words + words_len, sizeof(words) - words_len, format,
		      args);
	va_end(args);
	assert_true(n >= 0);
	assert_true((size_t)n < sizeof(words) - words_len);
	words_len += (size_t)n;
}

static void put_said(enum upstream_said said)
{
	switch (said) {
	case UPSTREAM_MORE:
		return;
	case UPSTREAM_SAY:
		assert_memory_equal(u->say + u->say_len - 2, "\r\n", 2);
		put("%.*s; ", u->say_len - 2, u->say);
		return;
	case UPSTREAM_HANDSHAKE:
		assert_int_equal(u->state, UPSTREAM_TLS);
		put("handshake; ");
		return;
	case UPSTREAM_IS_READY:
		put("ready; ");
		if (!u->tcp)
			return;
		assert_int_equal(u->raw_len, u->reply.octets);
		assert_memory_equal(u->raw + u->raw_len - 2, "\r\n", 2);
		return;
	case UPSTREAM_UNFIT:
		put("unfit %s; ",
		    u->unfit == UPSTREAM_NO_XCLIENT ? "XCLIENT" : "STARTTLS");
		over = true;
		return;
	case UPSTREAM_REFUSED:
		put("refused %s %u; ", busy_stage_name(u->stage),
		    u->reply.code);
		over = true;
		return;
	case UPSTREAM_REPLY:
		put("%s %u; ", busy_stage_name(u->stage), u->reply.code);
		/* What is relayed is whole and octet for octet. */
		assert_int_equal(u->raw_len, u->reply.octets);
		assert_memory_equal(u->raw + u->raw_len - 2, "\r\n", 2);
		return;
	case UPSTREAM_EARLY:
		assert_int_equal(u->stage, BUSY_STAGE_IDLE);
		assert_int_equal(u->raw_len, u->reply.octets);
		put("early %u; ", u->reply.code);
		return;
	case UPSTREAM_GARBAGE:
		put("garbage; ");
		over = true;
		return;
	case UPSTREAM_BYE:
		put("bye; ");
		over = true;
		return;
	}
}

static void hear(const char *text, size_t len)
{
	/* Of its very size, for the sanitizer. */
	char *copy = malloc(len > 0 ? len : 1);
	size_t at = 0;

	assert_non_null(copy);
	memcpy(copy, text, len);
	while (at < len && !over) {
		size_t used = SIZE_MAX;
		enum upstream_said said = upstream_feed(
			u, (const uint8_t *)copy + at, len - at, now_ms, &used);

		assert_true(used <= len - at);
		assert_true(used > 0);
		assert_true(said != UPSTREAM_MORE || used == len - at);
		at += used;
		put_said(said);
	}
	free(copy);
}

static void expect(const char *want, long cut)
{
	size_t len = words_len >= 2 ? words_len - 2 : 0;

	if (strlen(want) != len || memcmp(want, words, len) != 0) {
		print_error("%s (cut %ld)\n want: %s\n have: %.*s\n", name, cut,
			    want, (int)len, words);
		surprised = true;
	}
	words_len = 0;
}

static void say(const struct move *m, long cut, size_t *said)
{
	size_t at = 0;

	if (cut < 0) {
		while (at < m->len)
			hear(m->text + at++, 1);
	} else if ((size_t)cut > *said && (size_t)cut < *said + m->len) {
		at = (size_t)cut - *said;
		hear(m->text, at);
		hear(m->text + at, m->len - at);
	} else {
		hear(m->text, m->len);
	}
	*said += m->len;
}

static void begin_as(const struct upstream_order *order)
{
	/* As a pool gives it: not zeroed. */
	memset(u, 0x5a, sizeof(*u));
	now_ms = 1000;
	words_len = 0;
	over = surprised = false;
	upstream_begin(u, order, &timeouts, now_ms);
	assert_int_equal(u->deadline_ms, now_ms + timeouts.connect_ms);
	assert_int_equal(upstream_awaits(u), BUSY_STAGE_TCP);
	upstream_connected(u, now_ms);
	if (order->implicit) {
		assert_int_equal(u->state, UPSTREAM_TLS);
		assert_int_equal(u->deadline_ms, now_ms + timeouts.tls_ms);
		assert_int_equal(upstream_awaits(u), BUSY_STAGE_STARTTLS);
		return;
	}
	assert_int_equal(u->deadline_ms, now_ms + timeouts.greeting_ms);
	assert_int_equal(upstream_awaits(u), BUSY_STAGE_GREET);
}

static void begin(void)
{
	begin_as(&clear);
}

static void move_on(const struct move *m, long cut, size_t *said)
{
	switch (m->kind) {
	case OCTETS:
		say(m, cut, said);
		return;
	case SENT:
		assert_true(upstream_room(u) > 0);
		upstream_sent(u, m->stage, now_ms);
		return;
	case EXPECT:
		expect(m->text, cut);
		return;
	case QUIT:
		upstream_quit(u, now_ms);
		put("%.*s; ", u->say_len - 2, u->say);
		return;
	case LATER:
		now_ms += m->ms;
		return;
	case DUE_IN:
		if (u->deadline_ms !=
		    (m->ms < 0 ? INT64_MAX : now_ms + m->ms)) {
			print_error("%s (cut %ld): deadline in %lld ms\n", name,
				    cut, (long long)(u->deadline_ms - now_ms));
			surprised = true;
		}
		return;
	case CHUNK:
		upstream_chunk(u, m->ms != 0, now_ms);
		return;
	case SECURE:
		put_said(upstream_secured(u, now_ms));
		assert_true(u->secured);
		return;
	case PRESENT:
		put_said(upstream_introduce(u, &other, now_ms));
		return;
	case AWAITS:
		if (upstream_awaits(u) != m->stage) {
			print_error("%s (cut %ld): %s is awaited\n", name, cut,
				    busy_stage_name(upstream_awaits(u)));
			surprised = true;
		}
		return;
	case END:
		return;
	}
}

static bool run(const struct talk *t, long cut)
{
	size_t said = 0;

	name = t->name;
	begin_as(t->order != NULL ? t->order : &clear);
	for (const struct move *m = t->moves; m->kind != END; m++)
		move_on(m, cut, &said);
	return !surprised;
}

static void run_all(const struct talk *talks, size_t count)
{
	unsigned bad = 0;

	for (size_t i = 0; i < count; i++) {
		const struct talk *t = &talks[i];
		bool good = run(t, 0);
		size_t octets = 0;

		for (const struct move *m = t->moves; m->kind != END; m++)
			octets += m->kind == OCTETS ? m->len : 0;
		if (!t->whole_only)
			good = good && run(t, -1);
		for (size_t cut = 1; good && !t->whole_only && cut < octets;
		     cut++)
			good = run(t, (long)cut);
		bad += good ? 0 : 1;
	}
	assert_int_equal(bad, 0);
}

#define RUN(table) run_all(table, sizeof(table) / sizeof((table)[0]))

/* ---- greeting and EHLO ---- */

static const struct talk beginnings[] = {
	TALK("the good case", S("220 hi\r\n"), X("EHLO me.test"), IN(31000),
	     S("250 x\r\n"), X("ready"), IN(-1)),
	TALK("lines in plenty", S("220-hi\r\n220-there\r\n220 x\r\n"),
	     S("250-x\r\n250-SIZE 5\r\n250 8BITMIME\r\n"),
	     X("EHLO me.test; ready")),
	TALK("a dribbled greeting gains no time", AFTER(20000), S("220-a\r\n"),
	     AFTER(9000), S("220-b\r\n"), IN(1000)),
	TALK("no EHLO here: HELO", S("220 hi\r\n"), S("500 what?\r\n"),
	     X("EHLO me.test; HELO me.test"), IN(31000), S("250 x\r\n"),
	     X("ready")),
	TALK("neither", S("220 hi\r\n"), S("502 no\r\n"), S("502 no\r\n"),
	     X("EHLO me.test; HELO me.test; refused EHLO 502")),
	TALK("503 to EHLO is no want of EHLO", S("220 hi\r\n"), S("503 no\r\n"),
	     X("EHLO me.test; refused EHLO 503")),
	TALK("busy at EHLO", S("220 hi\r\n"), S("421 busy\r\n"),
	     X("EHLO me.test; refused EHLO 421")),
	TALK("busy in the greeting", S("421-too\r\n421 many\r\n"),
	     X("refused GREET 421")),
	TALK("554 in the greeting", S("554 no\r\n"), X("refused GREET 554")),
	TALK("354 in the greeting", S("354 no\r\n"), X("garbage")),
	TALK("354 to EHLO", S("220 hi\r\n"), S("354 no\r\n"),
	     X("EHLO me.test; garbage")),
	TALK("no SMTP", S("SSH-2.0-OpenSSH\r\n"), X("garbage")),
	TALK("binary", S("\025\003\001\0\2\2P"), X("garbage")),
	TALK("two codes in one reply", S("220-a\r\n250 b\r\n"), X("garbage")),
	TALK("a bare LF", S("220 a\n"), X("garbage")),
	TALK("a NUL", S("220 a\0\r\n"), X("garbage")),
	TALK_WHOLE("a reply to EHLO before EHLO was said",
		   S("220 hi\r\n250 x\r\n"), X("garbage")),
	TALK_WHOLE("a reply to MAIL before MAIL was said", S("220 hi\r\n"),
		   S("250 x\r\n250 ok\r\n"), X("EHLO me.test; garbage")),
};

static void conversations_begin(void **state)
{
	(void)state;
	RUN(beginnings);
}

/* ---- TLS ---- */

#define GREETS S("220 hi\r\n")
#define OFFERS_TLS                                                             \
	S("250-x\r\n250-STARTTLS\r\n250 PIPELINING\r\n"),                      \
		X("EHLO me.test; STARTTLS")

static const struct talk secrets[] = {
	TALK_AS(must, "the good case", GREETS, OFFERS_TLS, IN(31000),
		WAITS(STARTTLS), S("220 go\r\n"), X("handshake"), IN(7000),
		WAITS(STARTTLS), AFTER(100), TLS_IS_UP, X("EHLO me.test"),
		IN(31000), WAITS(EHLO), S("250-x\r\n250 SIZE 5\r\n"),
		X("ready"), IN(-1), T(MAIL), S("250 a\r\n"), X("MAIL 250")),
	TALK_AS(must, "offered again within TLS, it is not asked for again",
		GREETS, OFFERS_TLS, S("220-go\r\n220 on\r\n"), TLS_IS_UP,
		S("250-x\r\n250 STARTTLS\r\n"),
		X("handshake; EHLO me.test; ready")),
	TALK_AS(must, "no EHLO within TLS: HELO", GREETS, OFFERS_TLS,
		S("220 go\r\n"), TLS_IS_UP, S("502 no\r\n"), S("250 x\r\n"),
		X("handshake; EHLO me.test; HELO me.test; ready")),
	TALK_AS(must, "refused within TLS", GREETS, OFFERS_TLS, S("220 go\r\n"),
		TLS_IS_UP, S("421 busy\r\n"),
		X("handshake; EHLO me.test; refused EHLO 421")),
	TALK_AS(must, "demanded, but not offered", GREETS,
		S("250-x\r\n250 SIZE 5\r\n"),
		X("EHLO me.test; unfit STARTTLS")),
	TALK_AS(must, "demanded of one that has no EHLO", GREETS,
		S("500 what?\r\n"), S("250 STARTTLS\r\n"),
		X("EHLO me.test; HELO me.test; unfit STARTTLS")),
	TALK_AS(must, "the server's name is no offer", GREETS,
		S("250-STARTTLS\r\n250 SIZE\r\n"),
		X("EHLO me.test; unfit STARTTLS")),
	TALK_AS(must, "demanded, and refused", GREETS, OFFERS_TLS,
		S("454 not now\r\n"), X("refused STARTTLS 454")),
	TALK_AS(must, "demanded, and not known after all", GREETS, OFFERS_TLS,
		S("502 what?\r\n"), X("refused STARTTLS 502")),
	TALK_AS(must, "250 to STARTTLS", GREETS, OFFERS_TLS, S("250 ok\r\n"),
		X("garbage")),
	TALK_AS(must, "334 to STARTTLS", GREETS, OFFERS_TLS, S("334 go\r\n"),
		X("garbage")),
	TALK_AS(if_offered, "garbage to STARTTLS", GREETS, OFFERS_TLS,
		S("\025\003\001\0\2\2P"), X("garbage")),
	TALK_AS(if_offered, "250 is no refusal to go on from", GREETS,
		OFFERS_TLS, S("250 ok\r\n"), X("garbage")),
	TALK_AS(if_offered, "offered", GREETS, OFFERS_TLS, S("220 go\r\n"),
		TLS_IS_UP, S("250 x\r\n"), X("handshake; EHLO me.test; ready")),
	TALK_AS(if_offered, "not offered", GREETS, S("250 x\r\n"),
		X("EHLO me.test; ready"), IN(-1)),
	TALK_AS(if_offered, "no EHLO", GREETS, S("500 what?\r\n"),
		S("250 x\r\n"), X("EHLO me.test; HELO me.test; ready")),
	TALK_AS(if_offered, "refused for now: on in clear, with what EHLO said",
		GREETS, OFFERS_TLS, S("454 no\r\n"), X("ready"), IN(-1),
		T(MAIL), T(RCPT), S("250 a\r\n250 b\r\n"),
		X("MAIL 250; RCPT 250")),
	TALK_AS(if_offered, "refused for ever", GREETS, OFFERS_TLS,
		S("502 no\r\n"), X("ready")),
	TALK_AS(if_offered, "refused with a goodbye", GREETS, OFFERS_TLS,
		S("421 no\r\n"), X("refused STARTTLS 421")),
	TALK_AS_WHOLE(must, "a reply behind 220, in one segment (T3)", GREETS,
		      OFFERS_TLS, S("220 ready\r\n250-evil.example.test\r\n"),
		      X("garbage")),
	TALK_AS_WHOLE(if_offered, "one octet behind 220", GREETS, OFFERS_TLS,
		      S("220 ready\r\n2"), X("garbage")),
	TALK_AS_WHOLE(must, "220 to a STARTTLS that was not said yet", GREETS,
		      S("250-x\r\n250 STARTTLS\r\n220 go\r\n"),
		      X("EHLO me.test; garbage")),
	TALK_AS_WHOLE(if_offered, "a reply behind the refusal", GREETS,
		      OFFERS_TLS, S("454 no\r\n250 x\r\n"), X("garbage")),
	TALK_AS(implicit, "from the first octet on", AFTER(50), TLS_IS_UP,
		X(""), IN(30000), WAITS(GREET), GREETS,
		S("250-x\r\n250 STARTTLS\r\n"), X("EHLO me.test; ready")),
	TALK_AS(implicit_must, "is TLS enough", TLS_IS_UP, GREETS,
		S("250 x\r\n"), X("EHLO me.test; ready")),
	TALK_AS(implicit, "greeted with 4xx", TLS_IS_UP, S("450 no\r\n"),
		X("refused GREET 450")),
};

static void tls_is_begun_where_it_is_wanted(void **state)
{
	(void)state;
	RUN(secrets);
}

/* ---- XCLIENT ---- */

#define OFFERS_XCLIENT S("250-x\r\n250 XCLIENT ADDR PORT HELO\r\n")
#define TOLD           "XCLIENT ADDR=192.0.2.50 PORT=4711 HELO=client.test"
#define TOLD_OTHER     "XCLIENT ADDR=IPV6:2001:db8::7 PORT=99 HELO=other"

static const struct talk introductions[] = {
	TALK_AS(speak_for, "the good case", GREETS, OFFERS_XCLIENT,
		X("EHLO me.test; " TOLD), IN(31000), WAITS(XCLIENT),
		S("220 hi\r\n"), X("EHLO me.test"), IN(31000), WAITS(EHLO),
		S("250-x\r\n250 SIZE 5\r\n"), X("ready"), IN(-1), WAITS(IDLE)),
	TALK_AS(speak_for, "offered again, it is not said again", GREETS,
		OFFERS_XCLIENT, S("220 hi\r\n"), OFFERS_XCLIENT,
		X("EHLO me.test; " TOLD "; EHLO me.test; ready")),
	TALK_AS(speak_for, "no EHLO behind it: HELO", GREETS, OFFERS_XCLIENT,
		S("220 hi\r\n"), S("500 what?\r\n"), S("250 x\r\n"),
		X("EHLO me.test; " TOLD "; EHLO me.test; HELO me.test; ready")),
	TALK_AS(speak_for, "not for us", GREETS, OFFERS_XCLIENT,
		S("550 5.7.0 insufficient authorization\r\n"),
		X("EHLO me.test; " TOLD "; refused XCLIENT 550")),
	TALK_AS(speak_for, "the client is one too many", GREETS, OFFERS_XCLIENT,
		S("421 4.7.0 too many\r\n"),
		X("EHLO me.test; " TOLD "; refused XCLIENT 421")),
	TALK_AS(speak_for, "any 2xx but 220", GREETS, OFFERS_XCLIENT,
		S("250 ok\r\n"), X("EHLO me.test; " TOLD "; garbage")),
	TALK_AS(speak_for, "354", GREETS, OFFERS_XCLIENT, S("354 ok\r\n"),
		X("EHLO me.test; " TOLD "; garbage")),
	TALK_AS(speak_for, "the client may not say EHLO so", GREETS,
		OFFERS_XCLIENT, S("220 hi\r\n"), S("550 no\r\n"),
		X("EHLO me.test; " TOLD "; EHLO me.test; refused EHLO 550")),
	TALK_AS(speak_for, "not offered", GREETS, S("250 x\r\n"),
		X("EHLO me.test; unfit XCLIENT")),
	TALK_AS(speak_for, "offered without ADDR", GREETS,
		S("250-x\r\n250 XCLIENT NAME PORT\r\n"),
		X("EHLO me.test; unfit XCLIENT")),
	TALK_AS(speak_for, "XFORWARD is none", GREETS,
		S("250-x\r\n250 XFORWARD NAME ADDR\r\n"),
		X("EHLO me.test; unfit XCLIENT")),
	TALK_AS(speak_for, "no EHLO at all", GREETS, S("500 what?\r\n"),
		S("250-x\r\n250 XCLIENT ADDR\r\n"),
		X("EHLO me.test; HELO me.test; unfit XCLIENT")),
	TALK_AS_WHOLE(speak_for, "a reply to EHLO before it was said", GREETS,
		      OFFERS_XCLIENT, S("220 hi\r\n250 x\r\n"),
		      X("EHLO me.test; " TOLD "; garbage")),
	TALK_AS(must_for, "TLS first", GREETS,
		S("250-x\r\n250-STARTTLS\r\n250 XCLIENT ADDR\r\n"),
		X("EHLO me.test; STARTTLS"), S("220 go\r\n"), X("handshake"),
		TLS_IS_UP, X("EHLO me.test"), OFFERS_XCLIENT, X(TOLD),
		S("220 hi\r\n"), X("EHLO me.test"), S("250 x\r\n"), X("ready")),
	TALK_AS(must_for, "what was offered in clear does not count", GREETS,
		S("250-x\r\n250-STARTTLS\r\n250 XCLIENT ADDR\r\n"),
		X("EHLO me.test; STARTTLS"), S("220 go\r\n"), X("handshake"),
		TLS_IS_UP, S("250 x\r\n"), X("EHLO me.test; unfit XCLIENT")),
	TALK_AS(must_for, "nobody is told without it", GREETS, OFFERS_XCLIENT,
		X("EHLO me.test; unfit STARTTLS")),
	TALK_AS(if_offered_for, "STARTTLS refused, XCLIENT in clear", GREETS,
		S("250-x\r\n250-STARTTLS\r\n250 XCLIENT ADDR PORT HELO\r\n"),
		X("EHLO me.test; STARTTLS"), S("454 no\r\n"), X(TOLD),
		S("220 hi\r\n"), S("250-x\r\n250-STARTTLS\r\n250 SIZE\r\n"),
		X("EHLO me.test; ready")),
	TALK_AS(speak_for, "another client, and its transaction", GREETS,
		OFFERS_XCLIENT, S("220 hi\r\n"), OFFERS_XCLIENT,
		X("EHLO me.test; " TOLD "; EHLO me.test; ready"), T(MAIL),
		S("250 a\r\n"), X("MAIL 250"), AFTER(9), ANOTHER, X(TOLD_OTHER),
		IN(31000), WAITS(XCLIENT), S("220 hi\r\n"), X("EHLO other"),
		OFFERS_XCLIENT, X("ready"), IN(-1), T(MAIL), S("250 b\r\n"),
		X("MAIL 250"), ANOTHER, X(TOLD_OTHER), S("421 no\r\n"),
		X("refused XCLIENT 421")),
	TALK_AS(speak_for, "another client, whom it may not be told", GREETS,
		OFFERS_XCLIENT, S("220 hi\r\n"), S("250 x\r\n"),
		X("EHLO me.test; " TOLD "; EHLO me.test; ready"), ANOTHER,
		X("unfit XCLIENT")),
	TALK_AS(clear, "one that was nobody's", GREETS, OFFERS_XCLIENT,
		X("EHLO me.test; ready"), ANOTHER, X(TOLD_OTHER),
		S("220 hi\r\n"), S("250 x\r\n"), X("EHLO other; ready")),
	TALK_AS(clear, "it has begun to speak", GREETS, OFFERS_XCLIENT,
		X("EHLO me.test; ready"), S("421"), ANOTHER, X("garbage")),
};

static void clients_are_introduced(void **state)
{
	(void)state;
	RUN(introductions);
}

/* ---- clients that speak for themselves ---- */

static const struct talk relays[] = {
	TALK_AS(tcp, "no EHLO is said", S("220-hi\r\n220 there\r\n"),
		X("ready"), IN(-1), WAITS(IDLE)),
	TALK_AS(tcp, "busy", S("421-too\r\n421 many\r\n"),
		X("refused GREET 421")),
	TALK_AS(tcp, "554", S("554 no\r\n"), X("refused GREET 554")),
	TALK_AS(tcp, "354", S("354 no\r\n"), X("garbage")),
	TALK_AS(tcp, "no SMTP", S("SSH-2.0-OpenSSH\r\n"), X("garbage")),
	TALK_AS(tcp_implicit, "over TLS", TLS_IS_UP, S("220 hi\r\n"),
		X("ready")),
};

static void a_greeting_is_all_that_a_tcp_client_needs(void **state)
{
	static const char text[] = "220-hi\r\n220 there\r\n250";
	size_t used = 0;

	(void)state;
	RUN(relays);
	begin_as(&tcp);
	assert_int_equal(
		upstream_feed(u, (const uint8_t *)text, 22, now_ms, &used),
		UPSTREAM_IS_READY);
	assert_int_equal(used, 19);
	assert_int_equal(u->raw_len, 19);
	assert_memory_equal(u->raw, text, 19);
}

/* ---- commands and their replies ---- */

static const struct talk turns[] = {
	TALK("one group, in order", READY, T(MAIL), T(RCPT), T(RCPT), T(DATA),
	     S("250 a\r\n250-b\r\n250 b\r\n550 c\r\n354 d\r\n"),
	     X("MAIL 250; RCPT 250; RCPT 550; DATA 354"), T(EOD),
	     S("250 e\r\n"), X("EOD 250")),
	TALK("one reply too many", READY, T(MAIL), S("250 a\r\n250 b\r\n"),
	     X("MAIL 250; early 250")),
	TALK("421 that nobody asked for", READY, S("421-a\r\n421 b\r\n"),
	     X("early 421")),
	TALK_WHOLE("what stood behind the last reply answers no later command",
		   READY, S("250 a\r\n"), X("early 250"), T(MAIL),
		   S("250 ok\r\n"), X("MAIL 250")),
	TALK("a reply that began before the command is none to it", READY,
	     S("25"), T(MAIL), S("0 a\r\n"), X("early 250"), S("250 b\r\n"),
	     X("MAIL 250")),
	TALK("the time of each reply begins when the one before it is read",
	     READY, IN(-1), T(MAIL), IN(1000), T(RCPT), T(DATA), AFTER(900),
	     IN(100), S("250 a\r\n"), IN(2000), AFTER(1500), S("250 "), IN(500),
	     S("b\r\n"), IN(3000), AFTER(10), S("354 c\r\n"),
	     X("MAIL 250; RCPT 250; DATA 354"), IN(-1), AFTER(99999), T(EOD),
	     IN(4000)),
	TALK("no time runs for a chunk that the client still owes", READY,
	     T(RCPT), T(EOD), OWES(1), IN(2000), S("250 a\r\n"), IN(-1),
	     AFTER(99999), OWES(0), IN(4000), S("250 b\r\n"),
	     X("RCPT 250; EOD 250"), IN(-1)),
	TALK("the chunk is whole before the RCPT was answered", READY, T(RCPT),
	     T(DATA), OWES(1), AFTER(500), OWES(0), IN(1500), S("250 a\r\n"),
	     IN(3000), X("RCPT 250")),
	TALK("QUIT", READY, BYE, IN(500), S("221 b\r\n"), X("QUIT; bye")),
	TALK("QUIT behind replies that are due; their time is its own", READY,
	     T(RCPT), T(RCPT), BYE, AFTER(400), IN(100), S("250 a\r\n"),
	     IN(100), S("550 b\r\n221 c\r\n"),
	     X("QUIT; RCPT 250; RCPT 550; bye")),
	TALK("QUIT in the middle of a reply", READY, T(RCPT), S("250-a\r\n25"),
	     BYE, S("0 a\r\n221 c\r\n"), X("QUIT; RCPT 250; bye")),
	TALK("421 to QUIT", READY, BYE, S("421 b\r\n"), X("QUIT; bye")),
	TALK("garbage for a reply", READY, T(MAIL), S("25O ok\r\n"),
	     X("garbage")),
	TALK("a dialogue of AUTH", READY, T(AUTH), IN(1000), WAITS(AUTH),
	     S("334 VXNlcm5hbWU6\r\n"), X("AUTH 334"), IN(-1), WAITS(IDLE),
	     T(AUTH), S("334 UGFzc3dvcmQ6\r\n"), X("AUTH 334"), T(AUTH),
	     S("235 2.7.0 ok\r\n"), X("AUTH 235"), T(MAIL), T(RCPT),
	     S("250 a\r\n250 b\r\n"), X("MAIL 250; RCPT 250")),
	TALK("AUTH refused", READY, T(AUTH), S("535-5.7.8 no\r\n535 no\r\n"),
	     X("AUTH 535")),
	TALK("a code without words", READY, T(MAIL), S("250\r\n"),
	     X("MAIL 250")),
};

static void replies_find_their_commands(void **state)
{
	(void)state;
	RUN(turns);
}

/* ---- bounds ---- */

static void ready(const char *ehlo)
{
	begin();
	hear("220 x\r\n", 7);
	hear(ehlo, strlen(ehlo));
	assert_int_equal(u->state, UPSTREAM_READY);
	words_len = 0;
}

static void surplus_in_one_segment_is_early_whatever_was_sent_since(void **v)
{
	static const uint8_t two[] = "250 a\r\n250 b\r\n";
	size_t used = 0;

	(void)v;
	ready("250 PIPELINING\r\n");
	upstream_sent(u, BUSY_STAGE_RCPT, now_ms);
	assert_int_equal(upstream_feed(u, two, 14, now_ms, &used),
			 UPSTREAM_REPLY);
	assert_int_equal(used, 7);
	/* The session sends the last chunk before the rest is read. */
	upstream_sent(u, BUSY_STAGE_EOD, now_ms);
	assert_int_equal(upstream_feed(u, two + 7, 7, now_ms, &used),
			 UPSTREAM_EARLY);
	assert_int_equal(u->due, 1);
}

static void pipelining_is_as_deep_as_said(void **state)
{
	(void)state;
	ready("250-x\r\n250 PIPELINING\r\n");
	assert_int_equal(upstream_room(u), UPSTREAM_PIPELINE_MAX);
	/* Round the ring, more than once. */
	for (unsigned i = 0; i < 3 * UPSTREAM_PIPELINE_MAX; i++) {
		upstream_sent(u, BUSY_STAGE_RCPT, now_ms);
		if (upstream_room(u) > 0)
			continue;
		upstream_chunk(u, false, now_ms);
		hear("250 ok\r\n", 8);
		assert_int_equal(upstream_room(u), 1);
	}
	ready("250 x\r\n");
	assert_int_equal(upstream_room(u), 1);
	upstream_sent(u, BUSY_STAGE_MAIL, now_ms);
	assert_int_equal(upstream_room(u), 0);
	assert_int_equal(upstream_awaits(u), BUSY_STAGE_MAIL);
	hear("250 ok\r\n", 8);
	assert_int_equal(upstream_room(u), 1);
	assert_int_equal(upstream_awaits(u), BUSY_STAGE_IDLE);
}

static void nothing_is_sent_while_auth_is_unanswered(void **state)
{
	(void)state;
	ready("250-x\r\n250-AUTH PLAIN LOGIN\r\n250 PIPELINING\r\n");
	assert_int_equal(u->ehlo.auth, SMTP_AUTH_PLAIN | SMTP_AUTH_LOGIN);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(upstream_room(u), UPSTREAM_PIPELINE_MAX);
		upstream_sent(u, BUSY_STAGE_AUTH, now_ms);
		assert_int_equal(upstream_room(u), 0);
		hear("334 \r\n", 6);
	}
	assert_int_equal(upstream_room(u), UPSTREAM_PIPELINE_MAX);
}

static void what_ehlo_offered_last_is_what_counts(void **state)
{
	(void)state;
	begin_as(&must_for);
	hear("220 x\r\n", 7);
	hear("250-x\r\n250 STARTTLS\r\n", 21);
	hear("220 x\r\n", 7);
	assert_false(u->secured);
	(void)upstream_secured(u, now_ms);
	assert_int_equal(u->ehlo.ext, 0);
	hear("250-x\r\n250 XCLIENT ADDR\r\n", 25);
	hear("220 x\r\n", 7);
	assert_int_equal(u->ehlo.ext, 0);
	hear("250-x\r\n250 SIZE 7\r\n", 19);
	assert_int_equal(u->state, UPSTREAM_READY);
	assert_int_equal(u->ehlo.ext, SMTP_EXT_SIZE);
	assert_int_equal(u->ehlo.xclient, 0);
}

static void offers_are_those_of_ehlo_and_none_with_helo(void **state)
{
	(void)state;
	ready("250-x\r\n250-SIZE 1000\r\n250-CHUNKING\r\n250 8BITMIME\r\n");
	assert_int_equal(u->ehlo.ext,
			 SMTP_EXT_SIZE | SMTP_EXT_CHUNKING | SMTP_EXT_8BITMIME);
	assert_int_equal(u->ehlo.size, 1000);
	begin();
	hear("220 x\r\n", 7);
	hear("500 what?\r\n", 11);
	hear("250-x\r\n250 PIPELINING\r\n", 23);
	assert_int_equal(u->state, UPSTREAM_READY);
	assert_int_equal(u->ehlo.ext, 0);
}

/* A reply of so many octets, in lines of 100 and a last one. */
static char *long_reply(size_t octets)
{
	char *text = malloc(octets);
	size_t at = 0;

	assert_non_null(text);
	memset(text, 'x', octets);
	while (octets - at > 200) {
		memcpy(text + at, "250-", 4);
		memcpy(text + at + 98, "\r\n", 2);
		at += 100;
	}
	memcpy(text + at, "250 ", 4);
	memcpy(text + octets - 2, "\r\n", 2);
	return text;
}

static void a_reply_has_its_bound_and_not_an_octet_more(void **state)
{
	(void)state;
	for (size_t extra = 0; extra < 2; extra++) {
		size_t len = UPSTREAM_REPLY_MAX + extra;
		char *text = long_reply(len);

		for (size_t piece = 1; piece <= len; piece *= 7) {
			ready("250 x\r\n");
			upstream_sent(u, BUSY_STAGE_EOD, now_ms);
			for (size_t at = 0; at < len; at += piece)
				hear(text + at,
				     len - at < piece ? len - at : piece);
			expect(extra == 0 ? "EOD 250" : "garbage", (long)piece);
			assert_false(surprised);
		}
		free(text);
	}
}

static void a_greeting_may_be_longer_than_what_is_kept(void **state)
{
	char *text = long_reply(UPSTREAM_REPLY_MAX * 2);

	(void)state;
	for (char *p = text; p < text + UPSTREAM_REPLY_MAX * 2 - 3; p++) {
		if (memcmp(p, "250", 3) == 0)
			memcpy(p, "220", 3);
	}
	begin();
	hear(text, UPSTREAM_REPLY_MAX * 2);
	expect("EHLO me.test", 0);
	assert_false(surprised);
	/* It is kept for who speaks for himself: then it has the bound. */
	begin_as(&tcp);
	hear(text, UPSTREAM_REPLY_MAX * 2);
	expect("garbage", 0);
	assert_false(surprised);
	free(text);
}

static void a_backend_that_talks_for_ever_is_cut_short(void **state)
{
	(void)state;
	begin();
	for (unsigned i = 0; i < 100000 && !over; i++)
		hear("220-more\r\n", 10);
	expect("garbage", 0);
	assert_false(surprised);
	begin();
	for (unsigned i = 0; i < 100000 && !over; i++)
		hear(i == 0 ? "220 " : "more", 4);
	expect("garbage", 0);
	assert_false(surprised);
}

static void the_longest_name_fits(void **state)
{
	char longest[SMTP_DOMAIN_MAX];

	(void)state;
	memset(longest, 'a', sizeof(longest));
	upstream_begin(u,
		       &(struct upstream_order){ .name = longest,
						 .name_len = sizeof(longest) },
		       &timeouts, 0);
	upstream_connected(u, 0);
	over = false;
	words_len = 0;
	hear("220 x\r\n", 7);
	assert_int_equal(u->say_len, 5 + SMTP_DOMAIN_MAX + 2);
	assert_memory_equal(u->say, "EHLO aaa", 8);
	assert_memory_equal(u->say + 5 + SMTP_DOMAIN_MAX, "\r\n", 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(conversations_begin),
		cmocka_unit_test(tls_is_begun_where_it_is_wanted),
		cmocka_unit_test(clients_are_introduced),
		cmocka_unit_test(a_greeting_is_all_that_a_tcp_client_needs),
		cmocka_unit_test(replies_find_their_commands),
		cmocka_unit_test(nothing_is_sent_while_auth_is_unanswered),
		cmocka_unit_test(what_ehlo_offered_last_is_what_counts),
		cmocka_unit_test(
			surplus_in_one_segment_is_early_whatever_was_sent_since),
		cmocka_unit_test(pipelining_is_as_deep_as_said),
		cmocka_unit_test(offers_are_those_of_ehlo_and_none_with_helo),
		cmocka_unit_test(a_reply_has_its_bound_and_not_an_octet_more),
		cmocka_unit_test(a_greeting_may_be_longer_than_what_is_kept),
		cmocka_unit_test(a_backend_that_talks_for_ever_is_cut_short),
		cmocka_unit_test(the_longest_name_fits),
	};
	int failed;

	u = malloc(sizeof(*u));
	if (u == NULL)
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	free(u);
	return failed;
}
