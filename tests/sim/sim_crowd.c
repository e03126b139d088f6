#include "tests/sim/sim_crowd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	REPLY_MAX = 2048,
	LINE_MAX_OCTETS = 160,
	WAIT_MS = 10,                   /* as fine as that waits are known */
	WAITS = 3000,                   /* and no longer ones are told apart */
	AGAIN_US_MAX = 20 * SIM_SECOND, /* until one of so many comes again */
};

enum step {
	STEP_GREET,
	STEP_EHLO,
	STEP_MAIL,
	STEP_RCPT,
	STEP_DATA,
	STEP_TEXT,
	STEP_FINAL,
	STEP_QUIT
};

struct member {
	struct member *next, *prev;
	struct sim_crowd *crowd;
	struct sim_end *end;
	struct check_message *message;
	struct sim_timer timer; /* the text takes that long */
	enum step step;
	int64_t mail_us; /* MAIL was said */
	size_t reply_len;
	char reply[REPLY_MAX];
};

struct sim_crowd {
	struct sim *sim;
	struct check *check;
	struct sim_crowd_config config;
	struct sim_timer arrival;
	struct member members; /* list head */
	struct sim_crowd_counts counts;
	unsigned waits[WAITS];
	unsigned returning; /* of so many: they come again in a moment */
};

/* One of them on its way back. */
struct returning {
	struct sim_crowd *crowd;
	struct sim_timer timer;
};

/* --- chance with a shape --- */

/* Above 0, below 1. */
static double uniform(struct sim *sim)
{
	return ((double)(sim_random(sim) >> 12) + 0.5) / (double)(1ULL << 52);
}

double sim_until_next_s(struct sim *sim, double per_s)
{
	return -log(uniform(sim)) / per_s;
}

double sim_lognormal_s(struct sim *sim, double mean_s, double sigma)
{
	double radius = sqrt(-2 * log(uniform(sim)));
	double normal = radius * cos(2 * M_PI * uniform(sim));

	return exp(log(mean_s) - sigma * sigma / 2 + sigma * normal);
}

/* --- one of them --- */

static void come(struct sim_crowd *c);

static void comes_again(void *owner)
{
	struct returning *r = owner;
	struct sim_crowd *c = r->crowd;

	free(r);
	c->returning--;
	if (c->config.at_once > 0)
		come(c);
}

static void come_again(struct sim_crowd *c)
{
	struct returning *r = calloc(1, sizeof(*r));

	if (r == NULL)
		abort();
	r->crowd = c;
	r->timer = (struct sim_timer){ .fire = comes_again, .owner = r };
	c->returning++;
	sim_timer_set(c->sim, &r->timer,
		      sim_now_us(c->sim) + 1 + sim_below(c->sim, AGAIN_US_MAX));
}

static void leave(struct member *m)
{
	struct sim_crowd *c = m->crowd;

	if (c->config.at_once > 0)
		come_again(c);
	sim_timer_clear(c->sim, &m->timer);
	if (m->end != NULL)
		sim_end_close(m->end);
	m->prev->next = m->next;
	m->next->prev = m->prev;
	c->counts.open--;
	free(m);
}

static void say(struct member *m, enum step step, const char *text)
{
	m->step = step;
	sim_end_say(m->end, text, strlen(text));
}

static void say_marked(struct member *m, enum step step, const char *before,
		       const char *behind)
{
	char line[LINE_MAX_OCTETS];

	snprintf(line, sizeof(line), "%s%s%s\r\n", before, m->message->mark,
		 behind);
	say(m, step, line);
}

static void wrong(struct member *m, const char *what)
{
	sim_violation(m->crowd->sim, "%s of the crowd %s: \"%.*s\"",
		      m->message->mark, what, (int)m->reply_len, m->reply);
}

/* All but the dot is said at once, and the dot when its time has come. */
static void text_begins(struct member *m)
{
	struct sim_crowd *c = m->crowd;
	double s = sim_lognormal_s(c->sim, c->config.mean_s, c->config.sigma);

	m->step = STEP_TEXT;
	sim_end_say(m->end, m->message->body, m->message->body_len - 3);
	sim_timer_set(c->sim, &m->timer,
		      sim_now_us(c->sim) + (int64_t)(s * SIM_SECOND));
}

static void text_ends(void *owner)
{
	struct member *m = owner;

	m->message->whole = true;
	say(m, STEP_FINAL, ".\r\n");
}

static void note_wait(struct member *m)
{
	struct sim_crowd *c = m->crowd;
	int64_t ms = (sim_now_us(c->sim) - m->mail_us) / SIM_MS;

	c->waits[ms / WAIT_MS < WAITS ? ms / WAIT_MS : WAITS - 1]++;
}

/* False: it has left. */
static bool on_reply(struct member *m, unsigned code)
{
	struct sim_crowd *c = m->crowd;
	char line[LINE_MAX_OCTETS];

	switch (m->step) {
	case STEP_GREET:
		if (code != 220) {
			c->counts.turned_away++;
			leave(m);
			return false;
		}
		snprintf(line, sizeof(line), "EHLO c%u.client.test\r\n",
			 m->message->client);
		say(m, STEP_EHLO, line);
		return true;
	case STEP_EHLO:
		c->counts.waiting++;
		m->mail_us = sim_now_us(c->sim);
		say_marked(m, STEP_MAIL, "MAIL FROM:<s.", "@from.test>");
		return true;
	case STEP_MAIL:
		c->counts.waiting--;
		if (code == 250) {
			note_wait(m);
			say_marked(m, STEP_RCPT, "RCPT TO:<r0.", "@dest.test>");
			return true;
		}
		if (code != 451)
			wrong(m, "reads to MAIL");
		c->counts.put_off++;
		say(m, STEP_QUIT, "QUIT\r\n");
		return true;
	case STEP_RCPT:
		m->message->rcpts_ok = code == 250;
		say(m, STEP_DATA, "DATA\r\n");
		return true;
	case STEP_DATA:
		if (code == 354)
			text_begins(m);
		else
			wrong(m, "reads to DATA");
		return true;
	case STEP_TEXT:
		wrong(m, "reads in the middle of its text");
		return true;
	case STEP_FINAL:
		check_answered(c->check, m->message, code);
		if (code == 250)
			c->counts.done++;
		else
			wrong(m, "reads to its text");
		say(m, STEP_QUIT, "QUIT\r\n");
		return true;
	case STEP_QUIT:
		leave(m);
		return false;
	}
	return true;
}

static void listen_on(struct member *m)
{
	char octet;

	while (sim_end_read(m->end, &octet, 1) == 1) {
		if (m->reply_len < REPLY_MAX)
			m->reply[m->reply_len++] = octet;
		if (octet != '\n')
			continue;
		const char *last = memrchr(m->reply, '\n', m->reply_len - 1);
		last = last == NULL ? m->reply : last + 1;
		if (last[3] == '-')
			continue;
		if (!on_reply(m, (unsigned)strtoul(m->reply, NULL, 10)))
			return;
		m->reply_len = 0;
	}
	if (!sim_end_at_fin(m->end))
		return;
	if (m->step != STEP_QUIT)
		wrong(m, "is left");
	leave(m);
}

static void on_event(void *owner, struct sim_end *end, enum sim_what what,
		     int err)
{
	struct member *m = owner;

	(void)end;
	(void)err; /* nothing fails in the world of a crowd */
	switch (what) {
	case SIM_OPEN:
	case SIM_ROOM:
		return;
	case SIM_FAILED:
		m->end = NULL;
		wrong(m, "cannot connect");
		leave(m);
		return;
	case SIM_DATA:
	case SIM_FIN:
		listen_on(m);
		return;
	case SIM_RST:
		wrong(m, "is reset");
		leave(m);
		return;
	}
}

static void write_message(struct member *m, unsigned number)
{
	char body[LINE_MAX_OCTETS];
	int len;

	m->message = check_message_new(m->crowd->check, number, 0);
	len = snprintf(body, sizeof(body), "Subject: %s\r\n\r\ntext\r\n.\r\n",
		       m->message->mark);
	m->message->body = malloc((size_t)len);
	if (m->message->body == NULL)
		abort();
	memcpy(m->message->body, body, (size_t)len);
	m->message->body_len = (size_t)len;
	m->message->rcpts = 1;
}

static void come(struct sim_crowd *c)
{
	struct member *m = calloc(1, sizeof(*m));
	unsigned number = c->config.first + c->counts.came++;
	unsigned source = sim_below(c->sim, c->config.sources);
	char host[32];

	if (m == NULL)
		abort();
	m->crowd = c;
	m->timer = (struct sim_timer){ .fire = text_ends, .owner = m };
	write_message(m, number);
	snprintf(host, sizeof(host), "198.%u.%u.%u", c->config.net,
		 source / 250, source % 250 + 1);
	union sim_addr from = sim_addr_make(host, 0);
	m->next = &c->members;
	m->prev = c->members.prev;
	m->prev->next = m->next->prev = m;
	c->counts.open++;
	m->end = sim_connect(c->sim, &c->config.to.sa, &from.sa, on_event, m);
	check_client(c->check, number, sim_end_addr(m->end, 0));
}

/* --- all of them --- */

static void next_arrival(struct sim_crowd *c)
{
	double s = sim_until_next_s(c->sim, c->config.per_s);

	sim_timer_set(c->sim, &c->arrival,
		      sim_now_us(c->sim) + 1 + (int64_t)(s * SIM_SECOND));
}

static void arrival_fires(void *owner)
{
	struct sim_crowd *c = owner;

	come(c);
	next_arrival(c);
}

void sim_crowd_rate(struct sim_crowd *c, double per_s)
{
	c->config.per_s = per_s;
	c->config.at_once = 0;
	sim_timer_clear(c->sim, &c->arrival);
	if (per_s > 0)
		next_arrival(c);
}

struct sim_crowd *sim_crowd_new(struct sim *sim, struct check *check,
				const struct sim_crowd_config *config)
{
	struct sim_crowd *c = calloc(1, sizeof(*c));

	if (c == NULL)
		abort();
	c->sim = sim;
	c->check = check;
	c->config = *config;
	c->members.next = c->members.prev = &c->members;
	c->arrival = (struct sim_timer){ .fire = arrival_fires, .owner = c };
	if (config->at_once == 0)
		sim_crowd_rate(c, config->per_s);
	for (unsigned i = 0; i < config->at_once; i++)
		come_again(c);
	return c;
}

void sim_crowd_free(struct sim_crowd **cp)
{
	struct sim_crowd *c = *cp;

	if (c == NULL)
		return;
	sim_crowd_rate(c, 0);
	for (struct member *m = c->members.next, *next; m != &c->members;
	     m = next) {
		next = m->next;
		leave(m);
	}
	free(c);
	*cp = NULL;
}

unsigned sim_crowd_wait_ms(const struct sim_crowd *c, unsigned per_mille)
{
	uint64_t all = 0, seen = 0;
	unsigned i = 0;

	for (unsigned k = 0; k < WAITS; k++)
		all += c->waits[k];
	while (i < WAITS - 1 && (seen += c->waits[i]) * 1000 < all * per_mille)
		i++;
	return (i + 1) * WAIT_MS;
}

struct sim_crowd_counts sim_crowd_counts(const struct sim_crowd *c)
{
	return c->counts;
}
