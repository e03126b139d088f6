#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_backend_own.h"

enum { NAME_MAX_OCTETS = 32, VALUE_MAX = 260 };

static void wrong(const struct conn *c, const char *what, const char *line)
{
	sim_violation(c->backend->sim, "backend b%u: %s: \"%.300s\"",
		      c->backend->config.index, what, line);
}

int who_offers(const struct conn *c, char *text, size_t size)
{
	const struct sim_backend_config *config = &c->backend->config;
	bool secure = c->wire.tls != NULL;
	int n = 0;

	text[0] = '\0';
	if (config->secrecy == SIM_SECRECY_STARTTLS && !secure)
		n += snprintf(text, size, "250-STARTTLS\r\n");
	if (config->xclient != NULL)
		n += snprintf(text + n, size - (size_t)n, "250-XCLIENT %s\r\n",
			      config->xclient);
	if (config->auth != NULL && (secure || config->auth_in_clear))
		n += snprintf(text + n, size - (size_t)n, "250-AUTH %s\r\n",
			      config->auth);
	return n;
}

/* --- TLS --- */

static void who_starttls(struct conn *c, const char *arg)
{
	if ((arg[0] != '\0' || c->mail || !c->helo || c->wire.tls != NULL) &&
	    !c->lying)
		wrong(c, "STARTTLS out of order", arg);
	c->reading = READ_SECRECY;
	struct saying *s = conn_reply(c, SIM_STAGE_STARTTLS,
				      "220 2.0.0 Ready\r\n");
	if (c->reading == READ_NOTHING || s == NULL)
		return;
	if (s->code != 220) {
		c->reading = READ_COMMANDS;
		return;
	}
	/* What it adds in the clear is said before any handshake. */
	c->injected = c->done && c->deed.kind == SIM_DEED_EXTRA &&
		      c->deed.stage == SIM_STAGE_STARTTLS;
	if (c->injected)
		c->last->secures = true;
	else
		s->secures = true;
}

static bool deed_ends_it(const struct conn *c)
{
	switch (c->deed.kind) {
	case SIM_DEED_NONE:
	case SIM_DEED_SPLIT:
	case SIM_DEED_SLOW:
	case SIM_DEED_STALL:
	case SIM_DEED_LESS:
	case SIM_DEED_TAMPER:
		return false;
	case SIM_DEED_SAY:
	case SIM_DEED_BYE:
	case SIM_DEED_GARBAGE:
	case SIM_DEED_FIN:
	case SIM_DEED_RST:
	case SIM_DEED_SILENCE:
	case SIM_DEED_EXTRA:
	case SIM_DEED_LATER:
	case SIM_DEED_ENDLESS:
	case SIM_DEED_LINES:
		return true;
	}
	return true;
}

void who_secure(struct conn *c)
{
	const struct sim_tls_wish wish = {
		.server = true,
		.wrong = c->backend->config.wrong_paper,
		.old = c->backend->config.old_tls,
	};

	if (conn_deed_is_due(c, SIM_STAGE_HANDSHAKE)) {
		(void)conn_do_deed(c, "", 0);
		if (deed_ends_it(c)) {
			c->reading = READ_NOTHING;
			return;
		}
		if (c->deed.kind == SIM_DEED_TAMPER)
			sim_wire_tamper(&c->wire);
		else if (c->deed.kind != SIM_DEED_STALL)
			sim_wire_slow(&c->wire, SIM_MS);
	}
	c->reading = READ_COMMANDS;
	c->shaking = true;
	sim_wire_secure(&c->wire, &wish);
}

bool who_shakes(struct conn *c)
{
	if (sim_wire_has_failed(&c->wire)) {
		sim_trace(c->backend->sim, "backend b%u: no TLS: %s",
			  c->backend->config.index, sim_tls_about(c->wire.tls));
		conn_close(c, false);
		return false;
	}
	if (!sim_wire_is_secure(&c->wire))
		return true;
	sim_trace(c->backend->sim, "backend b%u: %s", c->backend->config.index,
		  sim_tls_about(c->wire.tls));
	check_totals(c->backend->check)->secured_farm++;
	if (c->injected)
		wrong(c, "TLS begins behind a word in the clear", "");
	c->shaking = false;
	sim_wire_slow(&c->wire, 0);
	c->helo = false; /* RFC 3207, section 4.2 */
	conn_forget(c);
	if (c->greet_due)
		conn_ready(c);
	return true;
}

/* --- XCLIENT --- */

/* Octets of value; xtext: RFC 3461, section 4. */
static size_t decode(struct conn *c, const char *text, size_t len, char *value)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		char hex[3] = { 0 };

		if (n == VALUE_MAX - 1 || text[i] < '!' || text[i] > '~' ||
		    text[i] == '=' || (text[i] == '+' && i + 2 >= len)) {
			wrong(c, "XCLIENT is no xtext", text);
			break;
		}
		if (text[i] == '+') {
			memcpy(hex, text + i + 1, 2);
			value[n++] = (char)strtoul(hex, NULL, 16);
			i += 2;
		} else {
			value[n++] = text[i];
		}
	}
	value[n] = '\0';
	return n;
}

static void note_address(struct conn *c, const char *value)
{
	const char *host = strncasecmp(value, "IPV6:", 5) == 0 ? value + 5
							       : value;
	uint16_t port = c->who.sa.sa_family == AF_INET6
				? ntohs(c->who.in6.sin6_port)
				: ntohs(c->who.in.sin_port);

	c->who = sim_addr_make(host, port);
}

static void note_attribute(struct conn *c, const char *name, const char *value)
{
	const char *at;

	if (strcmp(value, "[UNAVAILABLE]") == 0)
		return;
	if (strcmp(name, "ADDR") == 0) {
		note_address(c, value);
	} else if (strcmp(name, "PORT") == 0) {
		/* The place is that of an IPv4 port, too. */
		c->who.in.sin_port = htons((uint16_t)strtoul(value, NULL, 10));
	} else if (strcmp(name, "HELO") == 0 &&
		   strstr(value, ".client.test") != NULL) {
		at = strchr(value, 'c');
		c->who_helo = (unsigned)strtoul(at + 1, NULL, 10);
	}
}

static bool is_word_of(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = list; *at != '\0';) {
		size_t n = strcspn(at, " ");

		if (n == len && strncmp(at, word, len) == 0)
			return true;
		at += n + (at[n] == ' ');
	}
	return false;
}

/* All that it offers, each once, and nothing else. */
static void read_attributes(struct conn *c, const char *arg)
{
	const char *offered = c->backend->config.xclient;
	char name[NAME_MAX_OCTETS], value[VALUE_MAX];
	unsigned named = 0, wanted = 1;

	for (const char *at = offered; *at != '\0'; at++)
		wanted += *at == ' ';
	for (const char *at = arg; *at != '\0';) {
		size_t len = strcspn(at, " ");
		size_t name_len = strcspn(at, "= ");

		if (name_len >= len || name_len >= sizeof(name)) {
			wrong(c, "XCLIENT with what is no attribute", arg);
			return;
		}
		memcpy(name, at, name_len);
		name[name_len] = '\0';
		(void)decode(c, at + name_len + 1, len - name_len - 1, value);
		if (!is_word_of(offered, name))
			wrong(c, "XCLIENT with what was not offered", arg);
		named++;
		note_attribute(c, name, value);
		at += len + (at[len] == ' ');
	}
	if (named != wanted)
		wrong(c, "XCLIENT does not name all that was offered", arg);
}

static void who_xclient(struct conn *c, const char *arg)
{
	if ((c->mail || !c->helo || c->due > 1) && !c->lying)
		wrong(c, "XCLIENT out of order", arg);
	c->who = (union sim_addr){ 0 };
	c->who_helo = 0;
	c->introduced = false;
	read_attributes(c, arg);
	snprintf(c->introduction, sizeof(c->introduction), "%s", arg);
	struct saying *s = conn_reply(c, SIM_STAGE_XCLIENT,
				      "220 b%u.test ESMTP again\r\n",
				      c->backend->config.index);
	c->introducing = s != NULL;
	if (s == NULL)
		return;
	c->introduced = s->code == 220;
	check_totals(c->backend->check)->introduced += c->introduced;
	c->dismissed = s->code != 220;
	c->helo = false;
	conn_forget(c);
}

/* --- AUTH --- */

/* Is it what a client says, octet for octet?  And whose is it? */
static void note_credentials(struct conn *c, const char *line,
			     const char *coded)
{
	char expected[SIM_AUTH_LINE_MAX];
	const char *words = expected;
	unsigned client = c->auth_client;

	if (sim_auth_is_marked(c->auth_way, c->auth_at) &&
	    !sim_auth_client(coded, &client)) {
		c->auth_refuses = true;
		if (!c->backend->config.open_house)
			wrong(c, "credentials that nobody has", line);
		return;
	}
	if (c->auth_client == 0)
		c->auth_client = client;
	if ((client != c->auth_client || (c->helo_client != 0 && client != 0 &&
					  client != c->helo_client)) &&
	    !c->backend->config.open_house)
		wrong(c, "credentials of another client", line);
	if (c->auth_at == 0)
		words += strlen("AUTH ");
	if ((!sim_auth_say(c->auth_way, client, c->auth_at, expected) ||
	     strcmp(words, line) != 0) &&
	    !c->backend->config.open_house)
		wrong(c, "a line of AUTH is altered", line);
}

static void auth_goes_on(struct conn *c)
{
	if (c->auth_at < sim_auth_challenges(c->auth_way, c->auth_refuses)) {
		struct saying *s = conn_reply(
			c, SIM_STAGE_CHALLENGE, "334 %s\r\n",
			sim_auth_challenge(c->auth_way, c->auth_at));

		if (c->reading == READ_NOTHING)
			return;
		c->reading = s != NULL && s->code == 334 ? READ_AUTH
							 : READ_COMMANDS;
		return;
	}
	struct saying *s = conn_reply(
		c, SIM_STAGE_AUTH, "%s",
		c->auth_refuses
			? "535 5.7.8 Authentication credentials invalid\r\n"
			: "235 2.7.0 Authentication successful\r\n");
	if (c->reading != READ_NOTHING)
		c->reading = READ_COMMANDS;
	c->authenticated = s != NULL && s->code == 235;
	check_totals(c->backend->check)->authenticated += c->authenticated;
}

static void who_auth(struct conn *c, const char *arg)
{
	const struct sim_backend_config *config = &c->backend->config;
	const char *coded = strchr(arg, ' ');

	if ((c->mail || !c->helo || c->authenticated ||
	     (c->wire.tls == NULL && !config->auth_in_clear)) &&
	    !c->lying)
		wrong(c, "AUTH out of order", arg);
	c->auth_way = sim_auth_way_of(arg);
	if (c->auth_way == SIM_AUTH_NONE) {
		conn_reply(c, SIM_STAGE_AUTH, "504 5.5.4 What is that?\r\n");
		return;
	}
	c->auth_at = 0;
	c->auth_client = 0;
	c->auth_refuses = config->auth_refuses > 0 &&
			  sim_chance(c->backend->sim, config->auth_refuses);
	if (coded != NULL && strcmp(coded + 1, SIM_AUTH_NOBODY) == 0)
		c->auth_refuses = true;
	else
		note_credentials(c, arg, coded != NULL ? coded + 1 : "");
	auth_goes_on(c);
}

void who_auth_line(struct conn *c, const char *line)
{
	c->due++;
	/* Who parts from it here is no client that answers wrongly. */
	if (strcmp(line, "*") == 0 || strcmp(line, "QUIT") == 0) {
		c->reading = READ_COMMANDS;
		conn_reply(c, SIM_STAGE_AUTH, "501 5.7.0 Cancelled\r\n");
		return;
	}
	c->auth_at++;
	note_credentials(c, line, line);
	auth_goes_on(c);
}

bool who_command(struct conn *c, const char *verb, const char *arg)
{
	const struct sim_backend_config *config = &c->backend->config;

	if (strcasecmp(verb, "STARTTLS") == 0 &&
	    config->secrecy == SIM_SECRECY_STARTTLS)
		who_starttls(c, arg);
	else if (strcasecmp(verb, "XCLIENT") == 0 && config->introduces)
		who_xclient(c, arg);
	else if (strcasecmp(verb, "AUTH") == 0 && config->auth != NULL)
		who_auth(c, arg);
	else
		return false;
	return true;
}

/* --- whose mail it is --- */

void who_line(struct conn *c, const char *line)
{
	if (strstr(line, "injected") != NULL && !c->lying)
		wrong(c, "what came before a handshake is obeyed", line);
	if (strncasecmp(line, "AUTH ", 5) != 0 &&
	    sim_auth_leaks(line, strlen(line)))
		wrong(c, "credentials outside of AUTH", line);
	if (c->dismissed && !c->lying && strcasecmp(line, "QUIT") != 0)
		wrong(c, "a command though XCLIENT was refused", line);
	if (c->introducing && c->due > 0 && !c->lying)
		wrong(c, "pipelined behind XCLIENT", line);
	c->introducing = c->introducing && c->due > 0;
}

void who_mail(const struct conn *c)
{
	const struct sim_backend_config *config = &c->backend->config;

	if (config->no_clear && c->wire.tls == NULL)
		wrong(c, "mail in the clear", "");
	if (config->no_strange && config->wrong_paper)
		wrong(c, "mail though its certificate is nobody's", "");
}

void who_witness(const struct conn *c, const struct check_message *m)
{
	struct sim_backend *b = c->backend;

	if (b->config.guarded && !b->config.closed)
		wrong(c, "it takes strangers' mail, and got", m->mark);
	if (b->config.introduces && !c->introduced)
		wrong(c, "nobody was introduced to it before", m->mark);
	if (b->config.introduces && c->who.sa.sa_family != AF_UNSPEC)
		check_named(b->check, m, b->config.index, &c->who);
	if (c->introduced && c->who_helo != 0 && c->who_helo != m->client)
		wrong(c, "XCLIENT named somebody else's HELO for", m->mark);
	if (!m->authenticated && c->authenticated)
		wrong(c, "a connection that is somebody's got", m->mark);
	if (m->authenticated && !c->authenticated)
		wrong(c, "nobody authenticated before", m->mark);
	if (c->authenticated && c->auth_client != m->client)
		wrong(c, "somebody else authenticated before", m->mark);
}
