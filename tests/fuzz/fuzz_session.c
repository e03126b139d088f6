#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/config.h"
#include "tests/fuzz/session_input.h"
#include "tests/sim/sim_auth.h"
#include "tests/sim/sim_heap.h"
#include "tests/sim/world.h"

/*
 * A whole weir over the simulation's io, in a play that the input wrote: what
 * one to three clients say and when, what two backends make of it, what the
 * network and the operators do meanwhile.  session_input.h has the language.
 *
 * The simulation's checkers watch over weir's promises: nothing lost, doubled,
 * mixed, altered or beyond a limit, nobody left without a word, and at the end
 * all that was lent out is home and the books balance.
 *
 * WEIR_FUZZ_TRACE=1 in the environment tells the play on stderr.
 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROXY "203.0.113.77" /* in front of weir, in some plays */

enum {
	BACKENDS = 2,
	CLIENTS = 3,
	DEEDS_MAX = 8, /* of a backend */
	ORDERS_MAX = 4,
	EVENTS_MAX = 12,
	INPUT_MAX = 8192,
	TEXT_MAX = 256,
	ANSWER_MAX = 1024,
	TIME_MS_MAX = 60000,
	PROBING_US = SIM_SECOND,
	PLAY_US = 900 * SIM_SECOND,
	CALM_US = 400 * SIM_SECOND,
	DRAIN_US = 120 * SIM_SECOND,
};

/* What happens at a time: a line of the input that is no client's. */
struct event {
	struct sim_timer timer;
	uint8_t letter;
	unsigned backend;
	uint8_t what;
	char text[TEXT_MAX]; /* of an operator */
	size_t len;
	struct sim_end *end;
	char answer[ANSWER_MAX + 1]; /* K: what he was shown so far */
	size_t answer_len;
};

static struct play {
	struct world world;
	bool wants[128]; /* letters of W */
	uint32_t seed;
	bool without_b0; /* as the last reload had it */
	struct sim_deed deeds[BACKENDS][DEEDS_MAX];
	unsigned deed_count[BACKENDS];
	char texts[BACKENDS][DEEDS_MAX][TEXT_MAX];
	struct event events[EVENTS_MAX];
	unsigned event_count;
	bool operators; /* does one come? */
	bool comes[CLIENTS];
	uint32_t comes_ms[CLIENTS];
	char config[WORLD_CONFIG_MAX];
} play;

/* --- the product's heap is left alone here: no counts of allocations --- */

void sim_heap_watch(bool watch)
{
	(void)watch;
}

uint64_t sim_heap_count(void)
{
	return 0;
}

/*
 * The control socket's memory costs half the time of a play: without an
 * operator in it there is none.
 */
struct config *__real_config_parse_text(const char *text, size_t len,
					const char *name,
					struct config_report *report);
struct config *__wrap_config_parse_text(const char *text, size_t len,
					const char *name,
					struct config_report *report);

struct config *__wrap_config_parse_text(const char *text, size_t len,
					const char *name,
					struct config_report *report)
{
	struct config *config = __real_config_parse_text(text, len, name,
							 report);

	if (config != NULL && !play.operators)
		config->weir.control_socket[0] = '\0';
	return config;
}

/* --- the world --- */

static bool wants(char letter)
{
	return play.wants[(unsigned char)letter];
}

static enum sim_secrecy secrecy(void)
{
	if (wants('O'))
		return SIM_SECRECY_IMPLICIT;
	return wants('T') || wants('D') ? SIM_SECRECY_STARTTLS
					: SIM_SECRECY_NONE;
}

static bool authenticates(void)
{
	return wants('Y') || (wants('4') && secrecy() != SIM_SECRECY_NONE);
}

/* A body that is held cannot be counted. */
static bool counts(void)
{
	return wants('B') && !wants('S');
}

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void put(const char *format, ...)
{
	size_t at = strlen(play.config);
	va_list args;

	va_start(args, format);
	int n = vsnprintf(play.config + at, sizeof(play.config) - at, format,
			  args);
	va_end(args);
	assert(n > 0);
	assert((size_t)n < sizeof(play.config) - at);
}

static void put_if(char letter, const char *text)
{
	if (wants(letter))
		put("%s", text);
}

/* How clients come, and what is known of them. */
static void write_listener_who(void)
{
	if (secrecy() != SIM_SECRECY_NONE)
		put("tls = %s\ntls_cert = /sim/mx.pem\n",
		    wants('O')   ? "implicit"
		    : wants('D') ? "required"
				 : "starttls");
	if (authenticates())
		put("auth = %s\n", wants('Y') ? "always" : "tls");
	put_if('g', "proxy_from = " PROXY "\n");
	if (counts())
		put("bare_newline = bdat\n");
}

static void write_b0(void)
{
	put("[backend b0]\naddress = 10.0.0.1:25\nmax_sessions = %u\n"
	    "weight = 1000\n",
	    wants('1') ? 1U : 50U);
	put_if('U', "reuse = on\n");
	put_if('x', "tls = required\n");
	if (wants('X'))
		put("identity = xclient\n");
	else if (wants('I'))
		put("identity = header\n");
	else if (wants('7') && !wants('U'))
		put("identity = proxy-v2\n");
}

static void write_b1(void)
{
	put("[backend b1]\naddress = 10.0.0.2:25\nmax_sessions = 50\n"
	    "weight = 1\n");
	put_if('U', "reuse = on\n");
	if (wants('V'))
		put("tls = verify\ntls_mode = implicit\n"
		    "tls_ca = /sim/ca.pem\n");
	else
		put_if('v', "tls = opportunistic\n");
	if (wants('G'))
		put("identity = header\n");
	else if (wants('w') && !wants('U'))
		put("identity = proxy-v1\n");
}

static void write_config(void)
{
	play.config[0] = '\0';
	put("[weir]\nhostname = mx.test\nlog_level = debug\n"
	    "control_socket = " WORLD_CONTROL "\n"
	    "small_buffers = 64\nbig_buffers = 16\n");
	put_if('j', "log_format = json\n");
	put_if('M', "body_memory = 12K\n");
	put("[listener in]\nlisten = " WORLD_LISTEN ":25\n"
	    "listen = [2001:db8::1]:25\nearly_talkers = %s\n",
	    wants('r')   ? "reject"
	    : wants('E') ? "off"
			 : "log");
	put_if('d', "greeting_delay = 500ms\n");
	put_if('z', "size = 3000\n");
	write_listener_who();
	put_if('S', "slot = body\nbody_buffer = 4K\nbody_wait = 300ms\n");
	put("[admission]\ntable_size = 300\nmax_sessions = %u\n",
	    wants('m') ? 2U : 20U);
	put_if('o', "max_per_source = 1\n");
	put_if('e', "max_errors = 3\n");
	put_if('t', "tarpit = 300ms\n");
	put_if('i', "max_messages = 1\n");
	put_if('a', "message_rate = 2/m\nrecipient_rate = 3/m\n");
	put("[timeouts]\ncommand = 10s\ndata = 10s\nsend = 10s\n"
	    "backend_connect = 2s\nbackend_greeting = 2s\nbackend_helo = 2s\n"
	    "backend_mail = 3s\nbackend_rcpt = 3s\nbackend_data = 3s\n"
	    "backend_send = 5s\nbackend_final = 5s\nbackend_quit = 1s\n"
	    "drain = 20s\n");
	put_if('Q', "session = 5s\n");
	put("[farm]\nrelay_guard = %s\n", wants('Z') ? "enforce" : "off");
	put("tries = 3\nbudget = %s\nlinger = %s\n"
	    "unavailable_after = %s\n",
	    wants('b') ? "3s" : "10s", wants('l') ? "0" : "1s",
	    wants('u') ? "1s" : "1h");
	put("[health]\ninterval = %s\ndown_interval = %s\n",
	    wants('h') ? "2s" : "10m", wants('h') ? "1s" : "10m");
	put_if('y', "mail = on\n");
	put("[room]\nwait = 3s\n");
	put_if('W', "size = 0\n");
	if (!play.without_b0)
		write_b0();
	write_b1();
}

static struct sim_faults faults(void)
{
	return (struct sim_faults){
		.cut = wants('c') ? 600 : 0,
		.skip = wants('s') ? 250 : 0,
		.no_buffer = wants('N') ? 30 : 0,
		.accept_error = wants('A') ? 100 : 0,
		.connect_error = wants('F') ? 100 : 0,
		.rst_loses = wants('R') ? 1000 : 0,
		.wall_jump = wants('J') ? 50 : 0,
		.latency_us_max = wants('L') ? 40000 : 2000,
		.window_min = wants('n') ? 50 : 65536,
		.window_max = wants('n') ? 300 : 65536,
	};
}

/* Who speaks which extensions. */
static unsigned offers(unsigned backend)
{
	unsigned lacks = 0;

	if (wants('H') && backend == 0)
		return 0;
	if (wants('P'))
		lacks |= SIM_OFFER_PIPELINING;
	if (wants('p') && backend == 1)
		lacks |= SIM_OFFER_PIPELINING;
	if (wants('k') && backend == 1)
		lacks |= SIM_OFFER_CHUNKING;
	if (wants('8') && backend == 1)
		lacks |= SIM_OFFER_8BITMIME | SIM_OFFER_SMTPUTF8 |
			 SIM_OFFER_SIZE | SIM_OFFER_DSN;
	return SIM_OFFER_ALL & ~lacks;
}

/* --- deeds --- */

static enum sim_deed_kind deed_kind(uint8_t letter)
{
	static const struct {
		uint8_t letter;
		enum sim_deed_kind kind;
	} kinds[] = {
		{ 's', SIM_DEED_SAY },     { 'b', SIM_DEED_BYE },
		{ 'g', SIM_DEED_GARBAGE }, { 'f', SIM_DEED_FIN },
		{ 'r', SIM_DEED_RST },     { 'q', SIM_DEED_SILENCE },
		{ 'x', SIM_DEED_EXTRA },   { 'p', SIM_DEED_SPLIT },
		{ 'l', SIM_DEED_SLOW },    { 't', SIM_DEED_LATER },
		{ 'e', SIM_DEED_ENDLESS }, { 'n', SIM_DEED_LINES },
		{ 'w', SIM_DEED_STALL },   { 'i', SIM_DEED_TAMPER },
	};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (kinds[i].letter == letter)
			return kinds[i].kind;
	}
	return SIM_DEED_NONE;
}

/* A whole reply of one line: what is to be judged must be one. */
static void make_reply(char *text, size_t len)
{
	static const char usual[] = "250 ";

	for (size_t i = 0; i < len; i++) {
		if (text[i] < ' ' || text[i] > '~')
			text[i] = ' ';
	}
	if (len > TEXT_MAX - 3)
		len = TEXT_MAX - 3;
	for (size_t i = len; i < 4; i++)
		text[i] = usual[i];
	len = len < 4 ? 4 : len;
	if (text[0] < '2' || text[0] > '5')
		text[0] = '4';
	for (size_t i = 1; i < 3; i++) {
		if (text[i] < '0' || text[i] > '9')
			text[i] = '5';
	}
	text[3] = ' ';
	memcpy(text + len, "\r\n", 3);
}

static void read_deed(struct input_line *line)
{
	unsigned b = input_number(line, BACKENDS - 1);
	unsigned n = play.deed_count[b];

	if (n == DEEDS_MAX)
		return;
	char *text = play.texts[b][n];
	struct sim_deed *deed = &play.deeds[b][n];
	deed->kind = deed_kind(input_letter(line));
	uint32_t stage = input_number(line, SIM_STAGES - 1);
	deed->stage = (enum sim_stage)stage;
	deed->after_us = (int64_t)input_number(line, 20000) * SIM_MS;
	deed->text = text;
	size_t len = input_text(line, 'x', text, TEXT_MAX);
	if (deed->kind == SIM_DEED_GARBAGE) {
		/* Its backend reads a number from it, and needs an end. */
		for (size_t i = 0; i < len; i++)
			text[i] = text[i] == '\0' ? '\x7f' : text[i];
		if (len == 0 || (text[len - 1] >= '0' && text[len - 1] <= '9'))
			memcpy(len == 0 ? text : text + len - 1, "?", 2);
	} else {
		make_reply(text, len);
	}
	play.deed_count[b]++;
}

/* --- events --- */

/* Was he shown a session?  Then that one is to go. */
static void operator_kills(struct event *e, const char *buf, size_t len)
{
	static const char key[] = "\"id\":\"";

	if (len > ANSWER_MAX - e->answer_len)
		len = ANSWER_MAX - e->answer_len;
	memcpy(e->answer + e->answer_len, buf, len);
	e->answer_len += len;
	const char *id = memmem(e->answer, e->answer_len, key, sizeof(key) - 1);
	if (id == NULL || e->len == 0)
		return;
	id += sizeof(key) - 1;
	size_t id_len = strcspn(id, "\"");
	if (id[id_len] == '\0')
		return; /* there is more to come */
	e->len = 0;
	sim_end_say(e->end, "kill session ", 13);
	sim_end_say(e->end, id, id_len);
	sim_end_say(e->end, "\n", 1);
	sim_end_fin(e->end);
}

static void operator_hears(void *owner, struct sim_end *end, enum sim_what what,
			   int err)
{
	struct event *e = owner;
	char buf[2048];
	size_t n;

	(void)err;
	switch (what) {
	case SIM_OPEN:
		sim_end_say(end, e->text, e->len);
		if (e->letter == 'O')
			sim_end_fin(end);
		return;
	case SIM_FAILED:
		e->end = NULL;
		return;
	case SIM_ROOM:
		return;
	case SIM_DATA:
	case SIM_FIN:
		while ((n = sim_end_read(end, buf, sizeof(buf))) > 0) {
			if (e->letter == 'K')
				operator_kills(e, buf, n);
		}
		if (sim_end_at_fin(end)) {
			sim_end_close(end);
			e->end = NULL;
		}
		return;
	case SIM_RST:
		sim_end_reset(end);
		e->end = NULL;
		return;
	}
}

static void backend_changes(const struct event *e)
{
	struct sim_backend *b = play.world.backends[e->backend];

	switch (e->what) {
	case 'u':
		sim_backend_up(b, SIM_UP);
		return;
	case 'r':
		sim_backend_up(b, SIM_UP_REFUSING);
		return;
	case 'd':
		sim_backend_up(b, SIM_UP_DROPPING);
		return;
	case 'n':
		sim_backend_up(b, SIM_UP_NO_ROUTE);
		return;
	case 'k':
		sim_backend_restart(b);
		return;
	}
}

static void event_fires(void *owner)
{
	struct event *e = owner;
	union sim_addr control = sim_addr_make(WORLD_CONTROL, 0);

	switch (e->letter) {
	case 'B':
		backend_changes(e);
		return;
	case 'O':
	case 'K':
		e->end = sim_connect(play.world.sim, &control.sa, NULL,
				     operator_hears, e);
		return;
	case 'L':
		play.without_b0 = !play.without_b0;
		write_config();
		if (!world_reload(&play.world, play.config))
			play.without_b0 = !play.without_b0;
		return;
	case 'A':
		world_drain_begin(&play.world);
		return;
	case 'S':
		world_stop(&play.world);
		return;
	}
}

static void read_event(struct input_line *line)
{
	if (play.event_count == EVENTS_MAX)
		return;
	struct event *e = &play.events[play.event_count++];

	e->letter = line->letter;
	if (line->letter == 'O' || line->letter == 'K')
		play.operators = true;
	if (line->letter == 'B') {
		e->backend = input_number(line, BACKENDS - 1);
		e->what = input_letter(line);
	}
	e->timer = (struct sim_timer){
		.at_us = (int64_t)input_number(line, TIME_MS_MAX) * SIM_MS,
		.fire = event_fires,
		.owner = e,
	};
	if (e->letter == 'K')
		e->len = (size_t)snprintf(e->text, TEXT_MAX,
					  "show sessions json");
	else
		e->len = input_text(line, 'x', e->text, TEXT_MAX - 1);
	e->text[e->len++] = '\n';
}

/* --- the play --- */

static void read_world(struct input_line *line)
{
	while (line->len > 0) {
		uint8_t letter = input_letter(line);

		if (letter == '#')
			play.seed = input_number(line, 1U << 20);
		else if (letter < sizeof(play.wants))
			play.wants[letter] = true;
	}
}

static void read_play(void)
{
	struct input in = input_begin();
	struct input_line line;

	play.comes[0] = true;
	while (input_line(&in, &line)) {
		switch (line.letter) {
		case 'W':
			read_world(&line);
			break;
		case 'D':
			read_deed(&line);
			break;
		case 'B':
		case 'O':
		case 'K':
		case 'L':
		case 'A':
		case 'S':
			read_event(&line);
			break;
		case 'C': {
			unsigned c = input_number(&line, CLIENTS - 1);

			play.comes[c] = true;
			play.comes_ms[c] = input_number(&line, TIME_MS_MAX);
			break;
		}
		}
	}
}

static void make_backend(struct sim_backend_config *config)
{
	bool first = config->index == 0;

	if (first && !wants('I') && !wants('X') && wants('7') && !wants('U'))
		config->proxy = 2;
	if (!first && !wants('G') && wants('w') && !wants('U'))
		config->proxy = 1;
	if (first && wants('X')) {
		config->introduces = true;
		config->xclient = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR";
		config->header = false;
	}
	if (first && wants('x'))
		config->secrecy = SIM_SECRECY_STARTTLS;
	if (!first && wants('V'))
		config->secrecy = SIM_SECRECY_IMPLICIT;
	else if (!first && wants('v'))
		config->secrecy = SIM_SECRECY_STARTTLS;
	config->no_clear = first ? wants('x') : wants('V');
	config->closed = !wants('K');
	config->guarded = wants('Z') && config->proxy == 0 &&
			  !config->introduces;
	if (authenticates()) {
		config->auth = SIM_AUTH_ALL;
		config->auth_in_clear = true;
		config->auth_refuses = wants('5') ? 1000 : 0;
		config->open_house = true;
	}
}

static void bring_backends(void)
{
	struct world *w = &play.world;

	for (unsigned i = 0; i < BACKENDS; i++) {
		struct sim_backend_config config = {
			.index = i,
			.addr = world_backend_addr(i),
			.offers = offers(i),
			.max_sessions = 50,
			.header = wants(i == 0 ? 'I' : 'G'),
			.deeds = play.deeds[i], /* none yet */
		};

		if (i == 0 && (wants('f') || wants('q'))) {
			config.slots = 1;
			config.full = wants('f') ? SIM_DEED_BYE
						 : SIM_DEED_SILENCE;
		}
		make_backend(&config);
		w->backends[i] = sim_backend_new(w->sim, w->check, &config);
	}
	world_run(w, PROBING_US);
	for (unsigned i = 0; i < BACKENDS; i++)
		sim_backend_deeds(w->backends[i], play.deeds[i],
				  play.deed_count[i]);
}

static void bring_clients(void)
{
	struct world *w = &play.world;
	int64_t now_us = sim_now_us(w->sim);

	/* One source more than the checkers know of. */
	if (wants('g'))
		w->houses[0].limits.allowed = sim_addr_make(PROXY, 0);

	for (unsigned i = 0; i < CLIENTS; i++) {
		char host[64];

		if (!play.comes[i])
			continue;
		snprintf(host, sizeof(host),
			 wants('6') ? "2001:db8:0:%u::7" : "198.51.100.%u",
			 wants('o') ? 1 : i + 1);
		struct sim_client_config config = {
			.number = i,
			.from = sim_addr_make(host, 0),
			.to = sim_addr_make(
				wants('6') ? "2001:db8::1" : WORLD_LISTEN, 25),
			.at_us = now_us + play.comes_ms[i] * SIM_MS,
			.secrecy = secrecy(),
			.drawer = i + 1,
			.old_tls = wants('3'),
			.auth_in_clear = wants('Y'),
			.counted = counts(),
		};

		if (wants('g') && !wants('6')) {
			config.proxy = wants('C') ? 2 : 1;
			config.named = config.from;
			config.named.in.sin_port = htons((uint16_t)(i + 2000));
			config.from = sim_addr_make(PROXY, 0);
		}

		w->clients[w->client_count++] = sim_client_new(w->sim, w->check,
							       &config);
	}
	for (unsigned i = 0; i < play.event_count; i++) {
		struct event *e = &play.events[i];

		sim_timer_set(w->sim, &e->timer, now_us + e->timer.at_us);
		/* An operator may allow more than the checkers know of. */
		if (e->letter == 'O')
			w->houses[0].limits.backend_count = 0;
		/* And may have two backends at one address, whose connections
		 * nobody can tell apart. */
		if (e->letter == 'O' &&
		    memmem(e->text, e->len, "add", 3) != NULL)
			w->hushed = true;
	}
}

/* The sky clears: from here on everything must come home. */
static void calm(void)
{
	struct world *w = &play.world;
	struct sim_faults clear = faults();

	for (unsigned i = 0; i < play.event_count; i++) {
		struct event *e = &play.events[i];

		sim_timer_clear(w->sim, &e->timer);
		if (e->end != NULL)
			sim_end_close(e->end);
		e->end = NULL;
	}
	for (unsigned i = 0; i < BACKENDS; i++)
		sim_backend_heal(w->backends[i]);
	clear.no_buffer = clear.accept_error = clear.connect_error = 0;
	sim_faults_set(w->sim, &clear);
}

static void run(void)
{
	struct world *w = &play.world;

	bring_backends();
	bring_clients();
	if (!world_run_until(w, PLAY_US, world_clients_done))
		sim_violation(w->sim, "clients are left behind");
	calm();
	if (world_running(w) > 0 &&
	    !world_run_until(w, sim_now_us(w->sim) + CALM_US, world_is_quiet))
		sim_violation(w->sim, "not all comes home: %s",
			      world_unrest(w));
	if (sim_failed(w->sim) == NULL && !world_drain(w, DRAIN_US))
		sim_violation(w->sim, "the drain does not end: %s",
			      world_unrest(w));
	if (sim_failed(w->sim) == NULL)
		world_check_books(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FILE *trace = getenv("WEIR_FUZZ_TRACE") != NULL ? stderr : NULL;

	if (size > INPUT_MAX)
		return 0;
	memset(&play, 0, sizeof(play));
	input_set(data, size);
	read_play();
	write_config();
	struct sim_faults rough = faults();
	if (world_start(&play.world, play.seed, &rough, play.config,
			wants('2') ? 2 : 1, trace))
		run();
	const char *why = sim_failed(play.world.sim);
	if (why != NULL) {
		fprintf(stderr, "weir broke a promise: %s\n", why);
		abort();
	}
	world_free(&play.world);
	return 0;
}
