#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/sim/sim_talk.h"
#include "tests/sim/sim_wire.h"

/*
 * The simulation's peers against each other: a talk that follows a script,
 * and the smallest of servers, which says back what it is told.
 */

enum { LINE_SIZE = 2000, ENOUGH_US = 60 * SIM_SECOND };

enum manner {
	GOOD,
	IMPLICIT,   /* TLS from the first octet */
	CUTS,       /* ends without close_notify */
	INJECTS,    /* says a word in the clear behind its 220 */
	TAMPERS,    /* a wrong octet in the record of its first answer in TLS */
	NO_HELLO,   /* answers a handshake in the clear */
	NO_ANSWER,  /* does not answer a handshake */
	OLD_SERVER, /* TLS 1.2 */
};

static struct server {
	struct sim *sim;
	struct sim_listener *listener;
	struct sim_wire wire;
	struct sim_timer greeting;
	enum manner manner;
	char line[LINE_SIZE];
	size_t len;
	bool gone;
} server;

static const struct sim_faults calm = {
	.latency_us_max = 1000,
	.window_min = 65536,
	.window_max = 65536,
};

static const struct sim_faults rough = {
	.latency_us_max = 30000,
	.window_min = 1,
	.window_max = 200,
};

static void say(const char *text)
{
	sim_wire_say(&server.wire, text, strlen(text));
}

static void begin(void)
{
	const struct sim_tls_wish wish = {
		.server = true,
		.old = server.manner == OLD_SERVER,
	};

	sim_wire_secure(&server.wire, &wish);
}

static void bye(void)
{
	server.gone = true;
	if (server.manner != CUTS)
		sim_wire_notify(&server.wire);
	sim_wire_close(&server.wire);
}

static void on_line(void)
{
	char answer[LINE_SIZE + 16];

	if (strcmp(server.line, "STARTTLS") == 0) {
		say(server.manner == INJECTS ? "220 go\r\n250 evil\r\n"
					     : "220 go\r\n");
		if (server.manner == NO_HELLO)
			say("250 what?\r\n");
		else if (server.manner != NO_ANSWER)
			begin();
	} else if (strcmp(server.line, "QUIT") == 0) {
		say("221 bye\r\n");
		bye();
	} else {
		if (server.manner == TAMPERS && server.wire.tls != NULL)
			sim_wire_tamper(&server.wire);
		snprintf(answer, sizeof(answer), "250 %s\r\n", server.line);
		say(answer);
	}
}

static void on_server(void *owner, struct sim_end *end, enum sim_what what,
		      int err)
{
	bool shook = sim_wire_is_shaking(&server.wire);
	char octet;

	(void)owner;
	(void)end;
	(void)err;
	if (what == SIM_RST) {
		server.gone = true;
		sim_wire_reset(&server.wire);
	}
	while (!server.gone && sim_wire_read(&server.wire, &octet, 1) == 1) {
		if (octet != '\n') {
			if (octet != '\r' && server.len < LINE_SIZE - 1)
				server.line[server.len++] = octet;
			continue;
		}
		server.line[server.len] = '\0';
		server.len = 0;
		on_line();
	}
	if (!server.gone && shook && server.manner == IMPLICIT &&
	    sim_wire_is_secure(&server.wire))
		say("220 hello\r\n");
	if (!server.gone && (sim_wire_at_end(&server.wire) ||
			     sim_wire_has_failed(&server.wire)))
		bye();
}

static void greet(void *owner)
{
	(void)owner;
	if (!server.gone && server.manner != IMPLICIT)
		say("220 hello\r\n");
}

static enum sim_answer on_accept(void *owner, struct sim_end *end)
{
	(void)owner;
	server.gone = false;
	server.len = 0;
	sim_wire_open(&server.wire, server.sim, end);
	sim_end_adopt(end, on_server, NULL);
	if (server.manner == IMPLICIT)
		begin();
	/* Nothing can be said before the connection stands. */
	server.greeting = (struct sim_timer){ .fire = greet };
	sim_timer_set(server.sim, &server.greeting,
		      sim_now_us(server.sim) + SIM_MS);
	return SIM_TAKE;
}

static void turn(struct sim *sim)
{
	int64_t next_us = sim_next_us(sim);

	sim_pass(sim, next_us < ENOUGH_US ? next_us : ENOUGH_US);
}

/* What went wrong, or "". */
static const char *play(const char *script, enum manner manner, uint64_t seed,
			const struct sim_faults *faults, uint64_t *hash)
{
	static char why[1000];
	union sim_addr from = sim_addr_make("198.51.100.1", 0);
	union sim_addr to = sim_addr_make("192.0.2.1", 25);
	struct sim *sim = sim_new(seed, faults);

	sim_tls_enter(sim, seed);
	server = (struct server){ .sim = sim, .manner = manner, .gone = true };
	server.listener = sim_listen(sim, &to.sa, on_accept, NULL);
	struct sim_talk *talk = sim_talk_new(sim, script, &from, &to, NULL,
					     NULL);
	while (!sim_talk_done(talk) && sim_now_us(sim) < ENOUGH_US)
		turn(sim);
	snprintf(why, sizeof(why), "%s",
		 sim_failed(sim) != NULL ? sim_failed(sim)
		 : sim_talk_done(talk)   ? ""
					 : sim_talk_step(talk));
	*hash = sim_hash(sim);
	sim_talk_free(&talk);
	sim_timer_clear(sim, &server.greeting);
	if (!server.gone)
		sim_wire_reset(&server.wire);
	sim_unlisten(sim, server.listener);
	sim_tls_leave();
	sim_free(&sim);
	return why;
}

#define TLS   "< 220 hello\n> STARTTLS\n< 220\nsecure\n"
#define QUITS "> QUIT\n< 221\neof\n"

struct talk_case {
	const char *about;
	const char *script;
	enum manner manner;
	const char *why; /* in what goes wrong; "": nothing does */
};

/* clang-format off */
static const struct talk_case talks[] = {
	{ "in the clear", "< 220\n> HI\n< 250 HI\n" QUITS, GOOD, "" },
	{ "TLS behind STARTTLS", TLS "agreed TLSv1.3 full\n> HI\n< 250 HI\n" QUITS, GOOD, "" },
	{ "TLS from the first octet", "secure\n< 220\n> HI\n< 250 HI\n" QUITS, IMPLICIT, "" },
	{ "an old client", "< 220\n> STARTTLS\n< 220\nsecure 1.2\nagreed TLSv1.2\n> HI\n< 250 HI\n" QUITS,
	  GOOD, "" },
	{ "an old server", TLS "agreed TLSv1.2\n> HI\n< 250 HI\n" QUITS, OLD_SERVER, "" },
	{ "a client with a certificate", "< 220\n> STARTTLS\n< 220\nsecure card mx2\nagreed mx2.test\n" QUITS,
	  GOOD, "" },
	{ "records of an octet each", TLS "records 1\n> HI\n< 250 HI\n" QUITS, GOOD, "" },
	{ "records that come octet by octet", TLS "slow 2\n> HI\n< 250 HI\n" QUITS, GOOD, "" },
	{ "a handshake octet by octet", "< 220\n> STARTTLS\n< 220\nslow 1\nhello\nsecure\n> HI\n< 250 HI\n" QUITS,
	  GOOD, "" },
	{ "several records at once", TLS "hold\n> A\n> B\n> C\nwait 50\ngo\n< 250 A\n< 250 B\n< 250 C\n" QUITS,
	  GOOD, "" },
	{ "other keys", TLS "> A\n< 250 A\nrekey\n> B\n< 250 B\n" QUITS, GOOD, "" },
	{ "another handshake is refused",
	  "< 220\n> STARTTLS\n< 220\nsecure 1.2\nrenegotiate\nfailed\nclose\n", GOOD, "" },
	{ "a hello in the segment of STARTTLS reaches who takes it",
	  "< 220\nhold\n> STARTTLS\nhello\ngo\nwait 100\nclose\n", GOOD, "" },
	{ "an octet is wrong", TLS "tamper\n> A\n< 250 A\n", GOOD, "" },
	{ "an octet of an answer is wrong", TLS "> A\n< 250 A\n", TAMPERS, "read the end" },
	{ "a record without its end", TLS "tear\n> A\nfin\ngone\n", GOOD, "" },
	{ "no record at all", TLS "raw MAIL\\r\\nFROM\\r\\n\ngone\n", GOOD, "" },
	{ "half a handshake", "< 220\n> STARTTLS\n< 220\nhello\nclose\n", GOOD, "" },
	{ "a handshake nobody answers", TLS, NO_ANSWER, "secure" },
	{ "a handshake answered in the clear", "< 220\n> STARTTLS\n< 220\n< 250\nhello\ninsecure\nclose\n",
	  NO_HELLO, "" },
	{ "a word in the clear before the handshake", TLS, INJECTS, "before the handshake" },
	{ "an end without close_notify", TLS QUITS, CUTS, "TLS was cut" },
	{ "an end without close_notify, let be", TLS "> QUIT\n< 221\ngone\n", CUTS, "" },
	{ "a word that does not come", TLS "> A\n< 250 B\n", GOOD, "250 A" },
	{ "our close_notify", TLS "notify\neof\n", GOOD, "" },
};
/* clang-format on */

static void expect(const struct talk_case *c, const struct sim_faults *faults,
		   uint64_t seed)
{
	uint64_t hash, again;
	char why[1000];

	snprintf(why, sizeof(why), "%s",
		 play(c->script, c->manner, seed, faults, &hash));
	if ((c->why[0] == '\0') != (why[0] == '\0') ||
	    strstr(why, c->why) == NULL)
		fail_msg("%s, seed %lu: \"%s\"", c->about, (unsigned long)seed,
			 why);
	(void)play(c->script, c->manner, seed, faults, &again);
	if (hash != again)
		fail_msg("%s, seed %lu: run twice, it differs", c->about,
			 (unsigned long)seed);
}

static void peers_speak_tls_with_each_other(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(talks) / sizeof(talks[0]); i++) {
		/* Who sends what is wrong hears no more than the end. */
		if (strcmp(talks[i].about, "an octet is wrong") == 0)
			continue;
		expect(&talks[i], &calm, 1);
		expect(&talks[i], &rough, 2);
	}
}

static void a_wrong_octet_ends_it(void **state)
{
	uint64_t hash;

	(void)state;
	assert_string_equal(
		play(TLS "tamper\n> A\ngone\n", GOOD, 1, &calm, &hash), "");
	assert_int_equal(server.len, 0);
	assert_true(server.gone);
}

static void sessions_are_resumed_from_a_drawer(void **state)
{
	static const char first[] = "< 220\n> STARTTLS\n< 220\nsecure drawer "
				    "7\nagreed full\n> A\n< 250\n" QUITS;
	static const char again[] = "< 220\n> STARTTLS\n< 220\nsecure drawer "
				    "7\nagreed resumed\n> A\n< 250\n" QUITS;
	union sim_addr from = sim_addr_make("198.51.100.1", 0);
	union sim_addr to = sim_addr_make("192.0.2.1", 25);
	struct sim *sim = sim_new(1, &calm);

	(void)state;
	sim_tls_enter(sim, 1);
	server = (struct server){ .sim = sim, .gone = true };
	server.listener = sim_listen(sim, &to.sa, on_accept, NULL);
	for (unsigned i = 0; i < 3; i++) {
		struct sim_talk *talk = sim_talk_new(
			sim, i == 0 ? first : again, &from, &to, NULL, NULL);

		while (!sim_talk_done(talk) && sim_now_us(sim) < ENOUGH_US)
			turn(sim);
		if (sim_failed(sim) != NULL)
			fail_msg("%s", sim_failed(sim));
		assert_true(sim_talk_done(talk));
		sim_talk_free(&talk);
		sim_pass(sim, sim_now_us(sim) + SIM_SECOND);
	}
	sim_unlisten(sim, server.listener);
	sim_tls_leave();
	sim_free(&sim);
}

static void the_time_is_that_of_the_world(void **state)
{
	struct sim *sim = sim_new(1, &calm);
	time_t before, within;

	(void)state;
	before = time(NULL);
	sim_tls_enter(sim, 1);
	within = time(NULL);
	sim_pass(sim, 100 * SIM_SECOND);
	assert_int_equal(time(NULL) - within, 100);
	sim_tls_leave();
	sim_free(&sim);
	assert_in_range(time(NULL) - before, 0, 60);
}

static void papers_are_always_the_same(void **state)
{
	/* They come of a seed of their own: the random octets are ours. */
	struct sim *sim = sim_new(1, &calm);
	char pin[80];

	(void)state;
	sim_tls_enter(sim, 1);
	snprintf(pin, sizeof(pin), "%s", sim_tls_pin(SIM_TLS_MX));
	sim_tls_enter(sim, 2);
	assert_string_equal(pin, sim_tls_pin(SIM_TLS_MX));
	assert_string_not_equal(pin, sim_tls_pin(SIM_TLS_WRONG));
	assert_int_equal(strlen(pin), 64);
	assert_true(sim_tls_ca().len > 0);
	assert_true(sim_tls_paper(SIM_TLS_FARM)->cert.len > 0);
	sim_tls_leave();
	sim_free(&sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(peers_speak_tls_with_each_other),
		cmocka_unit_test(a_wrong_octet_ends_it),
		cmocka_unit_test(sessions_are_resumed_from_a_drawer),
		cmocka_unit_test(the_time_is_that_of_the_world),
		cmocka_unit_test(papers_are_always_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
