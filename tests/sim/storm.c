#include "tests/sim/storm.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/mutate.h"
#include "tests/sim/sim_operator.h"

enum {
	SOURCES_MAX = 8,
	PROBING_US = 2 * SIM_SECOND,    /* before most clients come */
	GATHERING_US = 20 * SIM_SECOND, /* clients come during this */
	STORM_US = 900 * SIM_SECOND,    /* nobody is left behind it */
	CALM_US = 400 * SIM_SECOND,     /* all is home behind it */
	DRAIN_US = 120 * SIM_SECOND,
	OPERATORS_MAX = 4,
};

#define ALLOWED "198.51.100.1" /* the first of the sources */
#define PROXY   "203.0.113.77" /* in front of weir, in some storms */

/* What the seed decided. */
struct storm {
	struct world world;
	struct sim *sim; /* the world's; before it: chance for the settings */
	unsigned backends, clients, workers, sources, operators;
	unsigned weirs;   /* before the same backends, 1 or 2 */
	unsigned weir;    /* whose configuration is written */
	unsigned trouble; /* how likely backends misbehave, per mille */
	uint32_t body_max;
	bool allows;  /* ALLOWED is on the list of those who may come in */
	bool crowded; /* more want a slot than there are */
	bool holds;   /* slot = body */
	enum sim_secrecy secrecy; /* of the listeners */
	bool required;            /* no mail before STARTTLS */
	unsigned proxy;           /* clients come by one, by this version; 0 */
	bool auth, auth_in_clear;
	bool counts;  /* bare_newline = bdat */
	bool guarded; /* strangers' mail only to who refuses to relay it */
	char tls[WORLD_BACKENDS_MAX][300]; /* settings of a backend's TLS */
	bool reuses[WORLD_BACKENDS_MAX];
	bool learns[WORLD_BACKENDS_MAX]; /* max_sessions = auto */
	bool others[WORLD_BACKENDS_MAX]; /* somebody else has a slot there */
	struct sim_backend_config backend[WORLD_BACKENDS_MAX];
	char config[WORLD_CONFIG_MAX];
	size_t config_len;
	struct sim_operator *operator[OPERATORS_MAX];
	struct sim_timer upheaval;
	struct sim_timer reload;
	bool over; /* no more upheavals */
};

static struct sim_faults draw_faults(struct sim *dice)
{
	bool calm = sim_chance(dice, 250);
	bool tight = sim_chance(dice, 300);

	return (struct sim_faults){
		.cut = calm ? 0 : sim_below(dice, 600),
		.skip = calm ? 0 : sim_below(dice, 250),
		.no_buffer = calm || sim_chance(dice, 700)
				     ? 0
				     : sim_below(dice, 30),
		.accept_error = calm ? 0 : sim_below(dice, 50),
		.connect_error = calm ? 0 : sim_below(dice, 30),
		.reset = calm || sim_chance(dice, 500) ? 0
						       : sim_below(dice, 60),
		.blackhole = calm || sim_chance(dice, 500)
				     ? 0
				     : sim_below(dice, 40),
		.rst_loses = sim_below(dice, 1000),
		.wall_jump = sim_chance(dice, 500) ? 5 : 0,
		.latency_us_max = sim_below(dice, 40000),
		.window_min = tight ? 200 : 4096,
		.window_max = tight ? 3000 : 262144,
	};
}

static void put(struct storm *s, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void put(struct storm *s, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	int n = vsnprintf(s->config + s->config_len,
			  sizeof(s->config) - s->config_len, format, args);
	va_end(args);
	assert(n > 0);
	assert((size_t)n < sizeof(s->config) - s->config_len);
	s->config_len += (size_t)n;
}

/* The same in each configuration of a storm. */
static void write_listener_who(struct storm *s)
{
	static const char *const secrecies[] = {
		[SIM_SECRECY_NONE] = "none",
		[SIM_SECRECY_STARTTLS] = "starttls",
		[SIM_SECRECY_IMPLICIT] = "implicit",
	};

	put(s, "tls = %s\n", s->required ? "required" : secrecies[s->secrecy]);
	if (s->secrecy != SIM_SECRECY_NONE) {
		put(s, "tls_cert = /sim/mx.pem\n");
		if (sim_chance(s->sim, 200))
			put(s, "tls_client_cert = log\n");
	}
	if (s->auth)
		put(s, "auth = %s\n", s->auth_in_clear ? "always" : "tls");
	if (s->counts)
		put(s, "bare_newline = bdat\n");
	if (s->proxy > 0)
		put(s, "proxy_from = " PROXY "\n");
}

static void write_tls(struct storm *s)
{
	struct sim *d = s->sim;

	put(s, "[tls]\nhandshakes = %u\n", sim_between(d, 1, 8));
	if (sim_chance(d, 200))
		put(s, "ticket_lifetime = %us\n", sim_below(d, 60));
	if (sim_chance(d, 100))
		put(s, "max_version = 1.2\n");
}

static void write_weir(struct storm *s)
{
	struct sim *d = s->sim;
	static const char *const early[] = { "reject", "log", "off" };

	put(s, "[weir]\nhostname = mx.test\nlog_level = debug\n");
	if (s->weir == 0)
		put(s, "control_socket = " WORLD_CONTROL "\n");
	else
		put(s, "control_socket = /run/weir-sim-%u.sock\n", s->weir);
	put(s, "small_buffers = %u\nbig_buffers = %u\n",
	    sim_chance(d, 100) ? 16 : sim_between(d, 64, 400),
	    sim_between(d, 16, 64));
	if (sim_chance(d, 300)) /* hardly anything can be held */
		put(s, "body_memory = %uK\n", sim_between(d, 64, 256));
	put(s, "log_format = %s\n", sim_chance(d, 200) ? "json" : "kv");
	put(s, "[listener in]\nlisten = 192.0.2.%u:25\n", s->weir + 1);
	put(s, "listen = [2001:db8::%u]:25\nearly_talkers = %s\n", s->weir + 1,
	    early[sim_below(d, 3)]);
	if (sim_chance(d, 200))
		put(s, "greeting_delay = %ums\n", sim_between(d, 1, 800));
	if (sim_chance(d, 100))
		put(s, "size = %u\n", sim_between(d, 3000, 50000));
	write_listener_who(s);
	if (s->holds) {
		put(s, "slot = body\nbody_buffer = %uK\nbody_wait = %ums\n",
		    sim_chance(d, 300) ? 4 : sim_between(d, 4, 64),
		    sim_chance(d, 300) ? 100 : sim_between(d, 100, 3000));
	}
}

static void write_room(struct storm *s)
{
	struct sim *d = s->sim;
	uint32_t low = sim_between(d, 1, 60);

	if (sim_chance(d, 200))
		return; /* as it is by itself */
	put(s, "[room]\nsize = %u\nper_source = %u\nwait = %us\n",
	    sim_chance(d, 150) ? 0 : sim_between(d, 1, 60),
	    sim_between(d, 1, 10), sim_between(d, 1, 20));
	put(s, "reserve = %u%%\nhigh = %u%%\nlow = %u%%\n", sim_below(d, 50),
	    sim_between(d, low + 1, 100), low);
	put(s, "saturated_after = %us\n", sim_below(d, s->crowded ? 3 : 8));
}

static void write_admission(struct storm *s)
{
	struct sim *d = s->sim;

	put(s, "[admission]\nmax_sessions = %u\nmax_per_source = %u\n",
	    sim_between(d, 2, 60), sim_between(d, 1, 20));
	put(s, "table_size = %u\nmax_errors = %u\n", sim_between(d, 300, 600),
	    sim_between(d, 2, 20));
	if (sim_chance(d, 100))
		put(s, "tarpit = %ums\n", sim_between(d, 1, 900));
	if (sim_chance(d, 100))
		put(s, "message_rate = %u/m\n", sim_between(d, 1, 60));
	if (sim_chance(d, 100))
		put(s, "recipient_rate = %u/m\n", sim_between(d, 1, 60));
	if (sim_chance(d, 100))
		put(s, "session_rate = %u/m\n", sim_between(d, 5, 60));
	if (sim_chance(d, 100))
		put(s, "max_messages = %u\n", sim_between(d, 1, 4));
	if (sim_chance(d, 200))
		put(s, "max_percent_per_source = %u%%\n",
		    sim_between(d, 1, 60));
	if (s->allows)
		put(s, "allow = " ALLOWED "/32\n");
	if (sim_chance(d, 100))
		put(s, "max_per_aggregate = %u\n", sim_between(d, 1, 20));
}

static void write_times(struct storm *s)
{
	struct sim *d = s->sim;

	put(s,
	    "[timeouts]\ncommand = %us\ndata = %us\nsend = %us\n"
	    "stress_command = %us\n",
	    sim_between(d, 3, 30), sim_between(d, 3, 20), sim_between(d, 3, 30),
	    sim_between(d, 1, 4));
	if (sim_chance(d, 100))
		put(s, "session = %us\n", sim_between(d, 5, 60));
	put(s, "handshake = %us\nproxy = 5s\n", sim_between(d, 8, 30));
	put(s, "backend_connect = %us\nbackend_greeting = %us\n",
	    sim_between(d, 1, 5), sim_between(d, 1, 10));
	put(s, "backend_helo = %us\nbackend_mail = %us\nbackend_rcpt = %us\n",
	    sim_between(d, 1, 10), sim_between(d, 1, 10),
	    sim_between(d, 1, 10));
	put(s, "backend_data = %us\nbackend_send = %us\nbackend_final = %us\n",
	    sim_between(d, 1, 10), sim_between(d, 2, 20),
	    sim_between(d, 1, 15));
	put(s, "backend_quit = %us\ndrain = %us\n", sim_between(d, 0, 3),
	    sim_between(d, 1, 60));
	put(s, "[farm]\nrelay_guard = %s\n",
	    s->guarded           ? "enforce"
	    : sim_chance(d, 200) ? "warn"
				 : "off");
	put(s, "tries = %u\nbudget = %us\n", sim_between(d, 1, 4),
	    sim_between(d, 2, 20));
	put(s, "linger = %ums\nunavailable_after = %us\n",
	    sim_chance(d, 300) ? 0 : sim_between(d, 1, 3000),
	    sim_between(d, 1, 10));
	put(s, "start_sessions = %u\nretry_max = %us\n", sim_between(d, 1, 6),
	    sim_between(d, 1, 10));
	put(s, "reuse_max = %u\nreuse_idle = %us\nreuse_share = %u%%\n",
	    sim_between(d, 1, 6), sim_between(d, 1, 6), sim_between(d, 1, 100));
	if (sim_chance(d, 100))
		put(s, "busy = observe\n");
	put(s, "[health]\nprobe = %s\ninterval = %us\ndown_interval = %us\n",
	    sim_chance(d, 100) ? "off" : "on", sim_between(d, 1, 10),
	    sim_between(d, 1, 5));
	put(s, "timeout = %us\nmail = %s\nrise = %u\nfall = %u\n",
	    sim_between(d, 2, 10), sim_chance(d, 300) ? "on" : "off",
	    sim_between(d, 1, 3), sim_between(d, 1, 3));
}

static void write_backend(struct storm *s, unsigned i)
{
	put(s, "[backend b%u]\naddress = 10.0.0.%u:25\n", i, i + 1);
	if (s->learns[i])
		put(s, "max_sessions = auto\n");
	else
		put(s, "max_sessions = %u\n", s->backend[i].max_sessions);
	put(s, "%sreuse = %s\nidentity = %s\n", s->tls[i],
	    s->reuses[i] ? "on" : "off",
	    s->backend[i].introduces   ? "xclient"
	    : s->backend[i].header     ? "header"
	    : s->backend[i].proxy == 1 ? "proxy-v1"
	    : s->backend[i].proxy == 2 ? "proxy-v2"
				       : "none");
}

static void draw_xclient(struct storm *s, struct sim_backend_config *b)
{
	static const char *const offers[] = {
		"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT",
		"NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTPORT",
		"ADDR NAME",
		"NAME ADDR PROTO HELO",
		"NAME HELO", /* which is no use */
	};

	b->introduces = true;
	b->xclient = offers[sim_chance(s->sim, 500) ? 0 : sim_below(s->sim, 5)];
}

/* What the server has of TLS, and what weir is told of that. */
static void draw_secrecy(struct storm *s, unsigned i)
{
	struct sim *d = s->sim;
	struct sim_backend_config *b = &s->backend[i];
	static const char *const ways[] = { "opportunistic", "required",
					    "verify" };
	uint32_t way = sim_below(d, 3);
	char whom[100];

	s->tls[i][0] = '\0';
	if (sim_chance(d, 500))
		return;
	b->secrecy = sim_chance(d, 300) ? SIM_SECRECY_IMPLICIT
					: SIM_SECRECY_STARTTLS;
	if (b->secrecy == SIM_SECRECY_IMPLICIT && way == 0)
		way = 1;
	b->old_tls = sim_chance(d, 200);
	b->wrong_paper = sim_chance(d, 100);
	b->no_clear = way > 0;
	b->no_strange = way == 2;
	if (sim_chance(d, 333)) {
		snprintf(whom, sizeof(whom), "tls_pin = %s\n",
			 sim_tls_pin(SIM_TLS_FARM));
	} else {
		snprintf(whom, sizeof(whom), "tls_ca = /sim/ca.pem\n%s",
			 sim_chance(d, 500) ? "tls_name = b.farm.test\n" : "");
	}
	snprintf(s->tls[i], sizeof(s->tls[i]), "tls = %s\n%s%s", ways[way],
		 way == 2 ? whom : "",
		 b->secrecy == SIM_SECRECY_IMPLICIT ? "tls_mode = implicit\n"
						    : "");
	if (b->secrecy == SIM_SECRECY_STARTTLS && sim_chance(d, 100)) {
		b->secrecy = SIM_SECRECY_NONE;
		b->offers &= ~(unsigned)SIM_OFFER_DANGEROUS;
	}
}

static void draw_backend(struct storm *s, unsigned i)
{
	struct sim *d = s->sim;
	static const enum sim_deed_kind full[] = { SIM_DEED_BYE, SIM_DEED_FIN,
						   SIM_DEED_SILENCE,
						   SIM_DEED_RST,
						   SIM_DEED_SLOW };
	struct sim_backend_config *b = &s->backend[i];

	static const char *const texts[] = {
		NULL,
		"421 4.7.0 Error: too many connections from 10.1.0.1\r\n",
		"421 4.3.2 Too many concurrent SMTP connections from this IP "
		"address; please try again later.\r\n",
		"450 Busy\r\n",
	};

	*b = (struct sim_backend_config){
		.index = i,
		.addr = world_backend_addr(i),
		.offers = SIM_OFFER_ALL,
		.max_sessions = sim_between(d, 1, s->crowded ? 2 : 12),
		.delay_us_max = sim_below(d, 200 * SIM_MS),
		.full_text = texts[sim_below(d, 4)],
		.header = sim_chance(d, 300),
		.fickle = sim_chance(d, 300) ? sim_below(d, 500) : 0,
		.eod_busy = sim_chance(d, 200) ? sim_below(d, 300) : 0,
	};
	s->reuses[i] = sim_chance(d, 500);
	if (!b->header && sim_chance(d, 300))
		draw_xclient(s, b);
	if (!s->reuses[i] && !b->header && !b->introduces)
		b->proxy = sim_below(d, 3);
	draw_secrecy(s, i);
	b->closed = !s->guarded || sim_chance(d, 700);
	b->guarded = s->guarded && b->proxy == 0 && !b->introduces;
	if (s->auth) {
		b->auth = sim_chance(d, 100) ? "PLAIN LOGIN" : SIM_AUTH_ALL;
		b->auth_in_clear = sim_chance(d, 500);
		b->auth_refuses = sim_chance(d, 500) ? sim_below(d, 500) : 0;
	}
	s->learns[i] = sim_chance(d, 500);
	if (sim_chance(d, 300))
		b->offers &= sim_below(d, SIM_OFFER_ALL + 1);
	if (sim_chance(d, 30))
		b->offers = 0;
	if (sim_chance(d, s->crowded ? 700 : 300)) {
		b->slots = sim_between(d, 1, b->max_sessions);
		b->full = full[sim_below(d, 5)];
	}
	if (sim_chance(d, 600))
		b->deed_chance = sim_below(d, s->trouble + 1);
	write_backend(s, i);
	put(s, "weight = %u\n", sim_between(d, 1, 200));
}

/* How clients come, and what is known of them. */
static void draw_who(struct storm *s)
{
	struct sim *d = s->sim;
	uint32_t dice = sim_below(d, 100);

	s->secrecy = dice < 40   ? SIM_SECRECY_NONE
		     : dice < 80 ? SIM_SECRECY_STARTTLS
				 : SIM_SECRECY_IMPLICIT;
	s->required = s->secrecy == SIM_SECRECY_STARTTLS && dice < 50;
	s->auth_in_clear = sim_chance(d, 500);
	s->auth = sim_chance(d, 400) &&
		  (s->auth_in_clear || s->secrecy != SIM_SECRECY_NONE);
	s->counts = !s->holds && sim_chance(d, 200);
	s->guarded = sim_chance(d, 200);
	s->proxy = sim_chance(d, 200) ? sim_between(d, 1, 2) : 0;
	/* One source more than the checkers know to be exempt. */
	s->allows = s->allows && s->proxy == 0;
}

static void draw(struct storm *s)
{
	struct sim *d = s->sim;

	s->workers = sim_between(d, 1, WORLD_WORKERS_MAX);
	s->weirs = sim_chance(d, 150) ? 2 : 1;
	s->allows = sim_chance(d, 300);
	s->crowded = sim_chance(d, 250);
	s->backends = sim_between(d, 1, s->crowded ? 2 : 5);
	s->clients = sim_between(d, s->crowded ? 25 : 4, s->crowded ? 90 : 40);
	s->sources = sim_between(d, 1, SOURCES_MAX);
	s->operators = sim_below(d, OPERATORS_MAX);
	s->trouble = sim_chance(d, 300) ? 900 : 200;
	s->body_max = sim_chance(d, 50) ? 200000 : 30000;
	s->config_len = 0;
	s->holds = sim_chance(d, 400);
	draw_who(s);
	write_weir(s);
	write_tls(s);
	write_admission(s);
	write_times(s);
	write_room(s);
	for (unsigned i = 0; i < s->backends; i++)
		draw_backend(s, i);
}

/* --- clients --- */

static enum sim_nature draw_nature(struct sim *d)
{
	uint32_t dice = sim_below(d, 100);

	if (dice < 50)
		return SIM_NATURE_GOOD;
	if (dice < 58)
		return SIM_NATURE_DRIBBLING;
	if (dice < 65)
		return SIM_NATURE_SLOW;
	if (dice < 80)
		return SIM_NATURE_ABORTING;
	if (dice < 85)
		return SIM_NATURE_SMUGGLER;
	if (dice < 90)
		return SIM_NATURE_RUDE;
	if (dice < 93)
		return SIM_NATURE_FOREIGN;
	if (dice < 96)
		return SIM_NATURE_CLUMSY;
	return dice < 98 ? SIM_NATURE_DEAF : SIM_NATURE_IDLE;
}

static void add_who(const struct storm *s, struct sim_client_config *config,
		    unsigned source)
{
	struct sim *d = s->sim;
	char host[64];

	config->secrecy = s->secrecy;
	if (s->secrecy == SIM_SECRECY_STARTTLS && !sim_chance(d, 800))
		config->secrecy = SIM_SECRECY_NONE;
	config->drawer = sim_chance(d, 700) ? source : 0;
	config->old_tls = sim_chance(d, 200);
	config->auth_in_clear = s->auth_in_clear;
	uint32_t way = sim_between(d, SIM_AUTH_NONE + 1, SIM_AUTH_WAYS - 1);
	if (s->auth && sim_chance(d, 500))
		config->auth = (enum sim_auth_way)way;
	config->counted = s->counts;
	if (config->from.sa.sa_family == AF_INET && sim_chance(d, 60)) {
		config->from = sim_addr_make(SIM_CLIENT_FORGER, 0);
		config->forges = true;
		config->proxy = sim_between(d, 1, 2);
		config->named = sim_addr_make(SIM_CLIENT_FORGED, 20000);
		return;
	}
	if (s->proxy == 0 || config->from.sa.sa_family != AF_INET)
		return;
	snprintf(host, sizeof(host), "198.51.100.%u", source);
	config->from = sim_addr_make(PROXY, 0);
	config->proxy = s->proxy;
	config->named = sim_addr_make(host, (uint16_t)(20000 + config->number));
}

static void add_client(struct storm *s, unsigned i, bool late)
{
	struct sim *d = s->sim;
	char host[64];
	bool v6 = sim_chance(d, 200);
	unsigned source = sim_below(d, s->sources) + 1;
	unsigned weir = sim_below(d, s->weirs);

	snprintf(host, sizeof(host), v6 ? "2001:db8:0:%u::7" : "198.51.100.%u",
		 source);
	struct sim_client_config config = {
		.number = i,
		.nature = late ? SIM_NATURE_GOOD : draw_nature(d),
		.from = sim_addr_make(host, 0),
		.to = v6 ? sim_addr_make(weir == 0 ? "2001:db8::1"
						   : "2001:db8::2",
					 25)
			 : world_listen_addr(weir),
		.at_us = sim_below(d, GATHERING_US),
		.messages_max = sim_chance(d, 800) ? 2 : 6,
		.body_max = s->body_max,
	};

	add_who(s, &config, source);
	if (sim_chance(d, 900))
		config.at_us += PROBING_US;
	s->world.clients[s->world.client_count++] = sim_client_new(
		d, s->world.check, &config);
}

/* --- what else happens --- */

static void upheaval_fires(void *owner)
{
	struct storm *s = owner;
	unsigned i = sim_below(s->sim, s->backends);
	struct sim_backend *b = s->world.backends[i];

	if (s->over)
		return;
	switch (sim_below(s->sim, 9)) {
	case 0:
	case 1:
	case 2:
		sim_backend_up(b, SIM_UP);
		break;
	case 6:
		sim_backend_slots(b, sim_between(s->sim, 1, 12));
		break;
	case 7:
		sim_backend_strain(b,
				   sim_now_us(s->sim) +
					   sim_below(s->sim, 10 * SIM_SECOND));
		break;
	case 8:
		/* Somebody else comes, or goes. */
		if (s->others[i]) {
			sim_backend_give(b);
			s->others[i] = false;
		} else {
			s->others[i] = sim_backend_take(b);
		}
		break;
	case 3:
		sim_backend_restart(b);
		break;
	case 4:
		sim_backend_restart(b);
		sim_backend_up(b, SIM_UP_REFUSING);
		break;
	case 5:
		sim_backend_up(b, sim_chance(s->sim, 500) ? SIM_UP_DROPPING
							  : SIM_UP_NO_ROUTE);
		break;
	}
	sim_timer_set(s->sim, &s->upheaval,
		      sim_now_us(s->sim) + sim_below(s->sim, 10 * SIM_SECOND));
}

/* Another configuration with the same listeners. */
static void reload_fires(void *owner)
{
	struct storm *s = owner;

	if (s->over || world_running(&s->world) < s->workers + s->weirs - 1)
		return;
	s->config_len = 0;
	write_weir(s);
	write_tls(s);
	write_admission(s);
	write_times(s);
	write_room(s);
	unsigned left = s->backends;
	if (left > 1 && sim_chance(s->sim, 300))
		left--; /* the last one is to go */
	for (unsigned i = 0; i < left; i++) {
		write_backend(s, i);
	}
	(void)world_reload(&s->world, s->config); /* or it is too soon */
	if (sim_chance(s->sim, 500)) {
		sim_timer_set(s->sim, &s->reload,
			      sim_now_us(s->sim) +
				      sim_below(s->sim, GATHERING_US));
	}
}

/* --- the way of a storm --- */

/* Another weir, with settings of its own, before the same backends. */
static bool add_second(struct storm *s)
{
	s->weir = 1;
	s->config_len = 0;
	write_weir(s);
	write_tls(s);
	write_admission(s);
	write_times(s);
	write_room(s);
	for (unsigned i = 0; i < s->backends; i++)
		write_backend(s, i);
	s->weir = 0;
	return world_add_weir(&s->world, s->config, 1);
}

static bool begin(struct storm *s, uint64_t seed, unsigned bug, FILE *trace)
{
	/* The settings are drawn from a world of their own. */
	const struct sim_faults none = { .window_min = 1, .window_max = 1 };
	struct sim *dice = sim_new(seed ^ 0x5eed5eed, &none);

	s->sim = dice;
	sim_tls_enter(dice, seed); /* pins are written down */
	draw(s);
	struct sim_faults faults = draw_faults(dice);
	bool started = world_start(&s->world, seed, &faults, s->config,
				   s->workers, trace);
	if (trace != NULL)
		fprintf(trace, "%s\n", s->config);
	if (started && s->weirs > 1)
		started = add_second(s);
	sim_free(&dice);
	s->sim = s->world.sim;
	if (!started)
		return false;
	for (unsigned i = 0; (s->allows || s->proxy > 0) && i < s->weirs; i++)
		s->world.houses[i].limits.allowed = sim_addr_make(
			s->proxy > 0 ? PROXY : ALLOWED, 0);
	for (unsigned i = 0; i < s->backends; i++)
		s->world.backends[i] = sim_backend_new(s->sim, s->world.check,
						       &s->backend[i]);
	for (unsigned i = 0; i < s->clients; i++)
		add_client(s, i, false);
	for (unsigned i = 0; i < s->operators; i++)
		s->operator[i] = sim_operator_new(s->sim, s->backends);
	s->upheaval = (struct sim_timer){ .fire = upheaval_fires, .owner = s };
	s->reload = (struct sim_timer){ .fire = reload_fires, .owner = s };
	if (sim_chance(s->sim, 200))
		sim_timer_set(s->sim, &s->reload,
			      sim_below(s->sim, GATHERING_US));
	if (sim_chance(s->sim, s->trouble))
		sim_timer_set(s->sim, &s->upheaval,
			      sim_below(s->sim, GATHERING_US));
	mutate_plant(&s->world, bug);
	return true;
}

/* The sky clears. */
static void calm(struct storm *s)
{
	struct sim_faults faults = *sim_faults(s->sim);

	s->over = true;
	sim_timer_clear(s->sim, &s->upheaval);
	sim_timer_clear(s->sim, &s->reload);
	for (unsigned i = 0; i < s->backends; i++)
		sim_backend_heal(s->world.backends[i]);
	for (unsigned i = 0; i < s->operators; i++)
		sim_operator_stop(s->operator[i]);
	faults.reset = faults.blackhole = faults.no_buffer = 0;
	faults.accept_error = faults.connect_error = 0;
	sim_faults_set(s->sim, &faults);
}

static void run(struct storm *s)
{
	struct world *w = &s->world;

	/* Some are still talking when weir is told to end. */
	bool early = sim_chance(s->sim, 150);
	if (!world_run_until(w,
			     early ? (int64_t)sim_below(s->sim, GATHERING_US)
				   : STORM_US,
			     world_clients_done) &&
	    !early)
		sim_violation(s->sim, "clients are left behind");
	calm(s);
	if (!early &&
	    !world_run_until(w, sim_now_us(s->sim) + CALM_US, world_is_quiet))
		sim_violation(s->sim, "not all comes home: %s",
			      world_unrest(w));
	if (early && sim_chance(s->sim, 300)) {
		world_stop(w); /* no more patience */
	}
	if (sim_failed(s->sim) == NULL && !world_drain(w, DRAIN_US))
		sim_violation(s->sim, "the drain does not end: %s",
			      world_unrest(w));
	if (sim_failed(s->sim) == NULL)
		world_check_books(w);
}

void storm_run(uint64_t seed, unsigned bug, FILE *trace,
	       struct storm_result *result)
{
	struct storm *s = calloc(1, sizeof(*s));

	if (s == NULL)
		abort();
	*result = (struct storm_result){ .passed = true };
	if (begin(s, seed, bug, trace))
		run(s);
	const char *why = sim_failed(s->sim);
	if (why != NULL) {
		result->passed = false;
		snprintf(result->why, sizeof(result->why), "%s", why);
	}
	result->hash = sim_hash(s->sim);
	result->turns = s->world.turns;
	result->virtual_us = sim_now_us(s->sim);
	world_count(&s->world);
	result->totals = *check_totals(s->world.check);
	for (unsigned i = 0; i < OPERATORS_MAX; i++)
		sim_operator_free(&s->operator[i]);
	world_free(&s->world);
	free(s);
}
