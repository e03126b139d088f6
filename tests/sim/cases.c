#include "tests/sim/cases.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/mutate.h"
#include "tests/sim/scenes.h"
#include "tests/sim/sim_talk.h"
#include "tests/sim/world.h"

enum {
	BACKENDS = 2,
	PROBING_US = SIM_SECOND,
	CALM_US = 100 * SIM_SECOND,
	DRAIN_US = 60 * SIM_SECOND,
	AFTERMATH_US = 5 * SIM_SECOND,
	ERRANDS = 8, /* commands to the control socket */
	SEED = 1,
};

/* One command to weir's control socket; whatever the answer is. */
struct errand {
	struct sim_end *end;
	char text[100];
};

/* A scene being played. */
struct play {
	struct world world;
	const struct scene *scene;
	struct sim_talk *talks[SCENE_TALKS];
	struct errand errands[ERRANDS];
	unsigned errand_count;
	bool logged; /* what the scene wants to see in the log */
	char config[WORLD_CONFIG_MAX];
};

/* The relay guard looks at a backend once an hour. */
#define SCENE_US (9000 * (int64_t)SIM_SECOND)

static struct play *playing; /* there is one at a time */

static const struct sim_faults smooth = {
	.latency_us_max = 2000,
	.window_min = 65536,
	.window_max = 65536,
};

/* --- weir.ini --- */

static const char *or_usual(const char *text, const char *usual)
{
	return text != NULL ? text : usual;
}

static const char *b0_config(const struct scene *s)
{
	return or_usual(s->b0_config, "max_sessions = 50\nweight = 1000\n");
}

/* b0: what is said of it; NULL: it is not there. */
static void write_config(const struct scene *s, const char *b0,
			 unsigned command_s, char *text, size_t size)
{
	int n = snprintf(text, size,
			 "[weir]\nhostname = mx.test\nlog_level = debug\n"
			 "control_socket = " WORLD_CONTROL "\n"
			 "small_buffers = 256\nbig_buffers = 64\n%s"
			 "[listener in]\nlisten = " WORLD_LISTEN ":25\n"
			 "listen = [2001:db8::1]:25\n%s"
			 "[admission]\ntable_size = 300\n%s[timeouts]\n",
			 or_usual(s->weir, ""), or_usual(s->listener, ""),
			 or_usual(s->admission, "max_sessions = 20\n"));
	assert(n > 0);
	if (s->timeouts != NULL)
		n += snprintf(text + n, size - (size_t)n, "%s", s->timeouts);
	else {
		n += snprintf(text + n, size - (size_t)n,
			      "command = %us\ndata = 10s\nsend = 10s\n"
			      "backend_connect = 2s\nbackend_greeting = 2s\n"
			      "backend_helo = 2s\nbackend_mail = 3s\n"
			      "backend_rcpt = 3s\nbackend_data = 3s\n"
			      "backend_send = 5s\nbackend_final = 5s\n"
			      "backend_quit = 1s\ndrain = 20s\n",
			      command_s);
	}
	/* Its servers take mail for anybody, and are to. */
	const char *guard = s->farm != NULL && strstr(s->farm, "relay_guard")
				    ? ""
				    : "relay_guard = off\n";
	n += snprintf(text + n, size - (size_t)n, "[farm]\n%s%s[health]\n%s",
		      guard,
		      or_usual(s->farm, "tries = 3\nbudget = 10s\n"
					"linger = 1s\n"
					"unavailable_after = 1h\n"),
		      or_usual(s->health, "interval = 10m\n"
					  "down_interval = 10m\n"));
	if (s->room != NULL)
		n += snprintf(text + n, size - (size_t)n, "[room]\n%s",
			      s->room);
	if (b0 != NULL) {
		n += snprintf(text + n, size - (size_t)n,
			      "[backend b0]\naddress = 10.0.0.1:25\n%s", b0);
	}
	n += snprintf(
		text + n, size - (size_t)n,
		"[backend b1]\naddress = 10.0.0.2:25\n%s",
		or_usual(s->b1_config, "max_sessions = 50\nweight = 1\n"));
	assert((size_t)n < size);
}

/* --- what clients ask of the scene --- */

static void reload(struct play *p, bool b0)
{
	const struct scene *s = p->scene;
	const char *config = or_usual(s->b0_reloaded, b0_config(s));

	write_config(s, b0 ? config : NULL, 9, p->config, sizeof(p->config));
	if (!world_reload(&p->world, p->config))
		sim_violation(p->world.sim, "the reload was refused");
}

static void on_errand(void *owner, struct sim_end *end, enum sim_what what,
		      int err)
{
	struct errand *e = owner;
	char buf[512];

	(void)err; /* what it was to do will be missed */
	if (what == SIM_OPEN) {
		sim_end_say(end, e->text, strlen(e->text));
		sim_end_fin(end);
	}
	if (what == SIM_FAILED || e->end == NULL)
		return;
	while (sim_end_read(end, buf, sizeof(buf)) > 0)
		;
	if (what == SIM_RST || sim_end_at_fin(end)) {
		sim_end_close(end);
		e->end = NULL;
	}
}

static void run_errand(struct play *p, const char *words)
{
	union sim_addr to = sim_addr_make(WORLD_CONTROL, 0);
	struct errand *e = &p->errands[p->errand_count++];

	assert(p->errand_count <= ERRANDS);
	snprintf(e->text, sizeof(e->text), "%s\n", words);
	e->end = sim_connect(p->world.sim, &to.sa, NULL, on_errand, e);
}

static void backend_order(struct play *p, const char *words)
{
	static const struct {
		const char *word;
		enum sim_up up;
	} orders[] = {
		{ "up", SIM_UP },
		{ "refusing", SIM_UP_REFUSING },
		{ "dropping", SIM_UP_DROPPING },
		{ "noroute", SIM_UP_NO_ROUTE },
	};
	struct sim_backend *b = p->world.backends[words[1] - '0'];

	unsigned long n = strtoul(words + 3 + strcspn(words + 3, " "), NULL,
				  10);
	for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
		if (strcmp(words + 3, orders[i].word) == 0)
			sim_backend_up(b, orders[i].up);
	}
	if (strcmp(words + 3, "restart") == 0)
		sim_backend_restart(b);
	else if (strcmp(words + 3, "open") == 0)
		sim_backend_closed(b, false);
	else if (strcmp(words + 3, "closed") == 0)
		sim_backend_closed(b, true);
	else if (strncmp(words + 3, "slots ", 6) == 0)
		sim_backend_slots(b, (unsigned)n);
	else if (strncmp(words + 3, "strain ", 7) == 0)
		sim_backend_strain(b, sim_now_us(p->world.sim) +
					      (int64_t)n * SIM_MS);
}

static void on_words(void *owner, const char *words)
{
	struct play *p = owner;

	if (words[0] == 'b' && strlen(words) > 3)
		backend_order(p, words);
	else if (strncmp(words, "ctl ", 4) == 0)
		run_errand(p, words + 4);
	else if (strcmp(words, "smooth") == 0)
		sim_faults_set(p->world.sim, &smooth);
	else if (strcmp(words, "reload") == 0)
		reload(p, true);
	else if (strcmp(words, "reload-without-b0") == 0)
		reload(p, false);
	else if (strcmp(words, "drain") == 0)
		world_drain_begin(&p->world);
	else
		sim_violation(p->world.sim, "nobody knows \"%s\"", words);
}

static void on_log(void *owner, unsigned worker, int level, const char *text,
		   size_t len)
{
	struct play *p = owner;
	const char *wanted = p->scene->log;

	(void)worker;
	(void)level;
	if (wanted != NULL && memmem(text, len, wanted, strlen(wanted)) != NULL)
		p->logged = true;
	if (p->scene->no_log != NULL &&
	    memmem(text, len, p->scene->no_log, strlen(p->scene->no_log)))
		sim_violation(p->world.sim, "\"%s\" is in the log",
			      p->scene->no_log);
}

/* --- the play --- */

static bool talks_done(struct world *w)
{
	(void)w;
	for (unsigned i = 0; i < SCENE_TALKS; i++) {
		if (playing->talks[i] != NULL &&
		    !sim_talk_done(playing->talks[i]))
			return false;
	}
	return true;
}

static bool is_told_by(const struct scene *s, unsigned backend,
		       const char *identity)
{
	const char *config = backend == 0 ? s->b0_config : s->b1_config;

	return config != NULL && strstr(config, identity) != NULL;
}

static enum sim_secrecy secrecy_of(const struct scene *s, unsigned backend)
{
	const struct scene_server *is = backend == 0 ? &s->s0 : &s->s1;

	if (is_told_by(s, backend, "tls_mode = implicit"))
		return SIM_SECRECY_IMPLICIT;
	return is_told_by(s, backend, "tls = ") && !is->no_tls
		       ? SIM_SECRECY_STARTTLS
		       : SIM_SECRECY_NONE;
}

static void make_server(struct play *p, unsigned i)
{
	const struct scene *s = p->scene;
	const struct scene_server *is = i == 0 ? &s->s0 : &s->s1;
	const char *xclient = or_usual(is->xclient,
				       "NAME ADDR PORT PROTO HELO LOGIN "
				       "DESTADDR DESTPORT");
	bool introduces = is_told_by(s, i, "identity = xclient");
	bool verifies = is_told_by(s, i, "tls = verify");
	struct sim_backend_config config = {
		.index = i,
		.addr = world_backend_addr(i),
		.offers = SIM_OFFER_ALL & ~(i == 1 ? s->lacks : 0) &
			  ~(is->no_tls || is->no_xclient ? SIM_OFFER_DANGEROUS
							 : 0U),
		.slots = i == 0 ? s->slots : 0,
		.full = s->full != SIM_DEED_NONE ? s->full : SIM_DEED_BYE,
		.full_text = s->full_text,
		.max_sessions = 50,
		.header = is_told_by(s, i, "identity = header"),
		.proxy = is_told_by(s, i, "identity = proxy-v1")   ? 1
			 : is_told_by(s, i, "identity = proxy-v2") ? 2
								   : 0,
		.secrecy = secrecy_of(s, i),
		.old_tls = is->old_tls,
		.wrong_paper = is->wrong_paper,
		.no_clear = verifies || is_told_by(s, i, "tls = required"),
		.no_strange = verifies && is->wrong_paper,
		.xclient = introduces && xclient[0] != '\0' ? xclient : NULL,
		.introduces = introduces,
		.auth = is->auth,
		.auth_in_clear = is->auth_in_clear,
		.auth_refuses = is->auth_refuses,
		.closed = is->closed,
		.deeds = s->probed,
		.deed_count = s->probed[0].kind != SIM_DEED_NONE,
	};

	p->world.backends[i] = sim_backend_new(p->world.sim, p->world.check,
					       &config);
}

static bool raise_curtain(struct play *p, FILE *trace)
{
	const struct scene *s = p->scene;

	write_config(s, b0_config(s), 10, p->config, sizeof(p->config));
	if (!world_start(&p->world, SEED, &smooth, p->config,
			 s->workers > 0 ? s->workers : 1, trace))
		return false;
	mutate_plant(&p->world, MUTATE_NONE);
	p->world.log_fn = on_log;
	p->world.log_owner = p;
	for (unsigned i = 0; i < BACKENDS; i++)
		make_server(p, i);
	world_run(&p->world, PROBING_US);
	sim_backend_deeds(p->world.backends[0], s->b0, SCENE_DEEDS);
	sim_backend_deeds(p->world.backends[1], s->b1, SCENE_DEEDS);
	return true;
}

static void enter(struct play *p)
{
	const struct scene *s = p->scene;

	if (s->faults.window_max > 0 || s->faults.cut > 0 ||
	    s->faults.accept_error > 0 || s->faults.wall_jump > 0) {
		struct sim_faults faults = s->faults;

		if (faults.window_max == 0) {
			faults.window_min = smooth.window_min;
			faults.window_max = smooth.window_max;
		}
		sim_faults_set(p->world.sim, &faults);
	}
	for (unsigned i = 0; i < SCENE_TALKS && s->talk[i] != NULL; i++) {
		char host[64];

		snprintf(host, sizeof(host), "198.51.100.%u", i + 1);
		union sim_addr from = sim_addr_make(or_usual(s->from[i], host),
						    0);
		union sim_addr to = sim_addr_make(from.sa.sa_family == AF_INET6
							  ? "2001:db8::1"
							  : WORLD_LISTEN,
						  25);

		p->talks[i] = sim_talk_new(p->world.sim, s->talk[i], &from, &to,
					   on_words, p);
	}
}

static bool took(const struct world *w, unsigned i, const char *text)
{
	size_t len;
	const char *last = sim_backend_last(w->backends[i], &len);

	return memmem(last, len, text, strlen(text)) != NULL;
}

static void check_end(struct play *p)
{
	struct world *w = &p->world;
	const struct scene *s = p->scene;
	const int takes[BACKENDS] = { s->b0_takes, s->b1_takes };

	for (unsigned i = 0; i < BACKENDS; i++) {
		unsigned taken = sim_backend_accepted(w->backends[i]);

		if (takes[i] >= 0 && taken != (unsigned)takes[i]) {
			sim_violation(w->sim,
				      "b%u took %u messages, %d expected", i,
				      taken, takes[i]);
		}
	}
	unsigned conns = sim_backend_seen(w->backends[0]);
	if (s->b0_conns > 0 && conns != s->b0_conns)
		sim_violation(w->sim, "b0 had %u connections, %u expected",
			      conns, s->b0_conns);
	if (s->got != NULL && !took(w, 0, s->got) && !took(w, 1, s->got))
		sim_violation(w->sim, "\"%s\" is not in what arrived", s->got);
	if (s->log != NULL && !p->logged)
		sim_violation(w->sim, "\"%s\" is not in the log", s->log);
}

static void check_patience(struct play *p)
{
	for (unsigned i = 0; i < SCENE_TALKS; i++) {
		if (p->talks[i] == NULL || sim_talk_done(p->talks[i]))
			continue;
		sim_violation(p->world.sim,
			      "client %u waits for ever at \"%s\"", i,
			      sim_talk_step(p->talks[i]));
	}
}

static void act(struct play *p)
{
	struct world *w = &p->world;

	enter(p);
	if (!world_run_until(w, SCENE_US, talks_done))
		check_patience(p);
	sim_faults_set(w->sim, &smooth);
	world_run(w, sim_now_us(w->sim) + AFTERMATH_US);
	check_end(p);
	for (unsigned i = 0; i < BACKENDS; i++)
		sim_backend_heal(w->backends[i]);
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

static bool play(const struct scene *scene, FILE *trace)
{
	struct play *p = calloc(1, sizeof(*p));

	if (p == NULL)
		abort();
	p->scene = scene;
	playing = p;
	if (raise_curtain(p, trace))
		act(p);
	const char *why = sim_failed(p->world.sim);
	printf("%s %-24s %-4s %s\n", why == NULL ? "ok  " : "FAIL", scene->name,
	       scene->row, scene->about);
	if (why != NULL)
		printf("     %s\n", why);
	for (unsigned i = 0; i < SCENE_TALKS; i++)
		sim_talk_free(&p->talks[i]);
	bool passed = why == NULL;
	world_free(&p->world);
	free(p);
	playing = NULL;
	return passed;
}

static const struct {
	const struct scene *scenes;
	const size_t *count;
} tables[] = {
	{ scenes, &scene_count },
	{ slot_scenes, &slot_scene_count },
	{ proxy_scenes, &proxy_scene_count },
	{ tls_scenes, &tls_scene_count },
	{ who_scenes, &who_scene_count },
	{ tcp_scenes, &tcp_scene_count },
};

bool cases_run(const char *name, bool trace)
{
	unsigned passed = 0, failed = 0;

	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
		for (size_t i = 0; i < *tables[t].count; i++) {
			const struct scene *s = &tables[t].scenes[i];

			if (name != NULL && strcmp(s->name, name) != 0)
				continue;
			if (play(s, trace ? stdout : NULL))
				passed++;
			else
				failed++;
		}
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed == 0 && passed > 0;
}
