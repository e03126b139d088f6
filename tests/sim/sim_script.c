#include "tests/sim/sim_script.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOWEST_US = 100 * SIM_SECOND }; /* for all that a client says */

/* What a script is written with. */
struct writer {
	struct sim_script *script;
	struct sim *sim;
	struct check *check;
	const struct sim_client_config *config;
};

/* Octets that some servers take for the end, and that are none. */
struct vector {
	const char *octets;
	size_t len;
};
#define VECTOR(text)                                                           \
	{                                                                      \
		text, sizeof(text) - 1                                         \
	}
static const struct vector vectors[] = {
	VECTOR("\n.\n"),
	VECTOR("\n.\r\n"),
	VECTOR("\r\n.\n"),
	VECTOR("\r.\r"),
	VECTOR("\r.\r\n"),
	VECTOR("\r\n.\r"),
	VECTOR("\r.\n"),
	VECTOR("\n.\r"),
	VECTOR("\r\n\000.\r\n"),
	VECTOR("\r\000\n.\r\n"),
	VECTOR("\r\n.\000\r\n"),
	VECTOR("\r\n.\r\000\n"),
	VECTOR("\r\n.\r\r\n"),
	VECTOR("\r\r\n.\r\r\n"),
	VECTOR("\n\n.\r\n"),
	VECTOR("\n"),
	VECTOR("\r"),
	VECTOR("\000"),
};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

/* --- steps --- */

static struct sim_step *add(struct writer *w, enum sim_op op)
{
	struct sim_script *s = w->script;

	assert(s->count < SIM_STEPS_MAX);
	struct sim_step *step = &s->steps[s->count++];
	*step = (struct sim_step){ .op = op };
	return step;
}

static struct sim_step *add_octets(struct writer *w, enum sim_op op,
				   const void *octets, size_t len)
{
	struct sim_step *step = add(w, op);

	step->text = malloc(len + 1);
	if (step->text == NULL)
		abort();
	memcpy(step->text, octets, len);
	step->text[len] = '\0';
	step->text_len = len;
	return step;
}

static struct sim_step *line(struct writer *w, enum sim_reply_kind reply,
			     const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static struct sim_step *line(struct writer *w, enum sim_reply_kind reply,
			     const char *format, ...)
{
	char text[SIM_TEXT_MAX];
	va_list args;

	va_start(args, format);
	int len = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	assert(len >= 0);
	assert((size_t)len < sizeof(text));
	struct sim_step *step = add_octets(w, SIM_OP_LINE, text, (size_t)len);
	step->reply = reply;
	return step;
}

static struct sim_step *raw(struct writer *w, const char *text)
{
	return add_octets(w, SIM_OP_RAW, text, strlen(text));
}

static void pause_for(struct writer *w, uint32_t us_max)
{
	add(w, SIM_OP_PAUSE)->pause_us = sim_below(w->sim, us_max) + 1;
}

/* --- bodies --- */

static void body_add(struct check_message *m, const void *octets, size_t len)
{
	memcpy(m->body + m->body_len, octets, len);
	m->body_len += len;
}

static void body_line(struct writer *w, struct check_message *m, size_t len)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789";
	char text[1100];
	int head = snprintf(text, sizeof(text), "%s%s ",
			    sim_chance(w->sim, 50) ? ".." : "", m->mark);
	size_t at = (size_t)head;

	while (at < len && at < 990) {
		uint64_t bits = sim_random(w->sim);

		for (unsigned i = 0; i < 10 && at < len; i++, bits >>= 6)
			text[at++] = letters[bits & 63];
	}
	text[at++] = '\r';
	text[at++] = '\n';
	body_add(m, text, at);
}

static size_t body_length(struct writer *w)
{
	uint32_t dice = sim_below(w->sim, 100);

	if (dice < 5)
		return 0;
	if (dice < 60)
		return sim_below(w->sim, 600);
	if (dice < 88)
		return sim_below(w->sim, 5000);
	if (dice < 97 || w->config->body_max < 40000)
		return sim_below(w->sim, 30000);
	return sim_below(w->sim, w->config->body_max);
}

/* The body, end of data included; with something foul in its middle or not. */
static void write_body(struct writer *w, struct check_message *m,
		       const struct vector *foul)
{
	size_t length = body_length(w);
	static const char evil[] = "MAIL FROM:<evil@evil.test>\r\n"
				   "RCPT TO:<victim@dest.test>\r\nDATA\r\n";

	m->body = malloc(length + 4096);
	if (m->body == NULL)
		abort();
	while (m->body_len < length)
		body_line(w, m, 1 + sim_below(w->sim, 300));
	if (foul != NULL) {
		body_line(w, m, 40);
		m->body_len -= 2; /* no line end before it but its own */
		body_add(m, foul->octets, foul->len);
		body_add(m, evil, sizeof(evil) - 1);
		body_line(w, m, 40);
		m->flawed = true;
	}
	if (!m->chunked)
		body_add(m, ".\r\n", 3);
	if (!m->chunked && w->config->counted)
		check_message_count(m);
}

/* --- messages --- */

static struct check_message *new_message(struct writer *w, unsigned *sent)
{
	struct sim_script *s = w->script;

	assert(s->sent_count < SIM_SENT_MAX);
	struct check_message *m = check_message_new(w->check, w->config->number,
						    s->sent_count);
	*sent = s->sent_count++;
	s->sent[*sent].message = m;
	return m;
}

static struct sim_step *about(struct sim_step *step, struct check_message *m,
			      unsigned sent)
{
	step->message = m;
	step->sent = sent;
	return step;
}

static void write_envelope(struct writer *w, struct check_message *m,
			   unsigned sent, unsigned rcpts)
{
	static const char *const params[] = {
		"", "", "", "", " SIZE=100", " BODY=8BITMIME", " body=7bit"
	};
	const char *param = params[sim_below(w->sim, COUNT(params))];

	m->null_sender = sim_chance(w->sim, 50);
	if (m->null_sender) {
		about(line(w, SIM_REPLY_MAIL, "MAIL FROM:<>%s", param), m,
		      sent);
	} else {
		about(line(w, SIM_REPLY_MAIL, "MAIL FROM:<s.%s@from.test>%s",
			   m->mark, param),
		      m, sent);
	}
	for (unsigned k = 0; k < rcpts; k++) {
		bool refused = sim_chance(w->sim, 100);
		struct sim_step *step = line(
			w, refused ? SIM_REPLY_ANY : SIM_REPLY_RCPT,
			refused ? "RCPT TO:<refused%u.%s@dest.test>"
				: "rcpt to:<r%u.%s@dest.test>",
			k, m->mark);

		about(step, m, sent)->rcpt = k;
	}
	m->rcpts = rcpts;
}

static void write_chunks(struct writer *w, struct check_message *m,
			 unsigned sent)
{
	size_t from = 0;

	do {
		size_t n = 1 + sim_below(w->sim, 20000);
		struct sim_step *step = about(add(w, SIM_OP_CHUNK), m, sent);

		if (n > m->body_len - from || sim_chance(w->sim, 500))
			n = m->body_len - from;
		step->from = from;
		step->upto = from + n;
		from += n;
	} while (from < m->body_len);
}

static void write_message(struct writer *w, const struct vector *foul)
{
	unsigned sent;
	struct check_message *m = new_message(w, &sent);
	unsigned rcpts = sim_chance(w->sim, 700) ? 1 : 1 + sim_below(w->sim, 6);

	m->chunked = foul == NULL && sim_chance(w->sim, 250);
	write_body(w, m, foul);
	write_envelope(w, m, sent, rcpts);
	if (m->chunked) {
		write_chunks(w, m, sent);
	} else {
		about(line(w, SIM_REPLY_DATA, "DATA"), m, sent);
		struct sim_step *body = about(add(w, SIM_OP_BODY), m, sent);

		body->alone = true;
	}
	/* What is left open would swallow the next message's recipients. */
	struct sim_step *rset = line(w, SIM_REPLY_RSET, "RSET");

	about(rset, m, sent)->only_if_open = true;
	rset->alone = true;
}

static void write_ehlo(struct writer *w)
{
	struct sim_step *step = line(w, SIM_REPLY_EHLO, "EHLO c%u.client.test",
				     w->config->number);

	step->alone = true;
}

/* What it says behind STARTTLS in one segment, if anything. */
static void write_starttls(struct writer *w)
{
	static const char *const hasty[] = {
		"STARTTLS\r\nMAIL FROM:<injected@evil.test>",
		"STARTTLS\r\nEHLO injected.test\r\nNOOP injected",
		"STARTTLS\r\nRSET",
		"STARTTLS\r\nAUTH PLAIN injected",
	};
	bool injects = sim_chance(w->sim, 150);
	struct sim_step *step = line(
		w, SIM_REPLY_STARTTLS, "%s",
		injects ? hasty[sim_below(w->sim, COUNT(hasty))] : "STARTTLS");

	step->injects = injects;
	step->alone = true;
	add(w, SIM_OP_TLS)->alone = true;
	write_ehlo(w);
}

static void write_auth(struct writer *w)
{
	char text[SIM_AUTH_LINE_MAX];

	(void)sim_auth_say(w->config->auth, w->config->number, 0, text);
	struct sim_step *step = line(w, SIM_REPLY_AUTH, "%s", text);
	step->alone = true;
	step->regardless = sim_chance(w->sim, 100);
	w->script->cancels = sim_chance(w->sim, 50);
}

/* EHLO, and what a client does before mail. */
static void write_hello(struct writer *w)
{
	write_ehlo(w);
	if (w->config->secrecy == SIM_SECRECY_STARTTLS)
		write_starttls(w);
	if (w->config->auth != SIM_AUTH_NONE)
		write_auth(w);
}

static void write_small_talk(struct writer *w)
{
	static const char *const words[] = { "NOOP", "noop hello", "HELP",
					     "VRFY somebody", "RSET" };

	if (w->config->secrecy != SIM_SECRECY_NONE && sim_chance(w->sim, 50))
		add(w, SIM_OP_REKEY);
	while (sim_chance(w->sim, 150))
		line(w, SIM_REPLY_ANY, "%s",
		     words[sim_below(w->sim, COUNT(words))]);
}

static void write_end(struct writer *w)
{
	uint32_t dice = sim_below(w->sim, 100);

	if (dice < 85)
		line(w, SIM_REPLY_QUIT, "QUIT");
	else
		add(w, dice < 92 ? SIM_OP_CLOSE : SIM_OP_FIN)->alone = true;
}

/* --- natures --- */

static void write_good(struct writer *w)
{
	unsigned count = 1 + sim_below(w->sim, w->config->messages_max);

	w->script->pipelines = sim_chance(w->sim, 600);
	write_hello(w);
	for (unsigned i = 0; i < count; i++) {
		write_small_talk(w);
		if (sim_chance(w->sim, 100))
			pause_for(w, 2 * SIM_SECOND);
		write_message(w, NULL);
	}
	write_end(w);
	/* The end of the last body, and FIN behind it, is as good. */
	if (w->script->steps[w->script->count - 1].op == SIM_OP_FIN)
		w->script->steps[w->script->count - 1].alone = sim_chance(
			w->sim, 500);
}

static uint32_t script_octets(const struct sim_script *script)
{
	size_t octets = 100;

	for (unsigned i = 0; i < script->sent_count; i++)
		octets += script->sent[i].message->body_len + 200;
	return (uint32_t)octets;
}

static void write_slow(struct writer *w)
{
	write_good(w);
	uint32_t octets = script_octets(w->script);
	uint32_t pieces;

	w->script->pace_octets = 1 + sim_below(w->sim, 200);
	pieces = 1 + octets / w->script->pace_octets;
	w->script->pace_us = 1 + sim_below(w->sim,
					   SLOWEST_US / pieces < SIM_SECOND / 3
						   ? SLOWEST_US / pieces + 1
						   : SIM_SECOND / 3);
}

static void write_dribbling(struct writer *w)
{
	write_slow(w);
	w->script->dribbles = true;
}

static void write_aborting(struct writer *w)
{
	static const enum sim_abort ways[] = { SIM_ABORT_RST, SIM_ABORT_CLOSE,
					       SIM_ABORT_FIN };

	if (sim_chance(w->sim, 300))
		write_slow(w);
	else if (sim_chance(w->sim, 300))
		write_dribbling(w);
	else
		write_good(w);
	w->script->abort_by = ways[sim_below(w->sim, COUNT(ways))];
	w->script->abandons = sim_chance(w->sim, 150);
	w->script->tears = sim_chance(w->sim, 500);
	w->script->abort_at = sim_below(w->sim, script_octets(w->script));
}

static void write_smuggler(struct writer *w)
{
	w->script->pipelines = sim_chance(w->sim, 500);
	write_hello(w);
	write_message(w, &vectors[sim_below(w->sim, COUNT(vectors))]);
	if (sim_chance(w->sim, 500))
		write_message(w, NULL);
	line(w, SIM_REPLY_QUIT, "QUIT");
}

/* All of a message at once, its body behind DATA. */
static void write_hasty(struct writer *w)
{
	unsigned sent;
	struct check_message *m = new_message(w, &sent);

	m->hasty = w->config->secrecy != SIM_SECRECY_NONE;
	write_body(w, m, NULL);
	write_envelope(w, m, sent, 1);
	about(line(w, SIM_REPLY_DATA, "DATA"), m, sent);
	about(add(w, SIM_OP_BODY), m, sent)->regardless = true;
	raw(w, "QUIT\r\n");
}

static void write_noise(struct writer *w)
{
	char noise[SIM_TEXT_MAX];

	for (size_t i = 0; i < sizeof(noise); i++)
		noise[i] = (char)sim_below(w->sim, 256);
	for (unsigned i = 0; i < 8; i++)
		add_octets(w, SIM_OP_RAW, noise, sizeof(noise));
}

/* Vectors T2, T4 to T8 of STARTTLS injection, and noise in TLS's place. */
static void write_secrecy_abused(struct writer *w)
{
	write_ehlo(w);
	switch (sim_below(w->sim, 6)) {
	case 0: /* between the 220 and the hello */
		line(w, SIM_REPLY_STARTTLS, "STARTTLS")->alone = true;
		raw(w, "MAIL FROM:<injected@evil.test>\r\n");
		add(w, SIM_OP_TLS)->alone = true;
		break;
	case 1: /* the hello does not wait for the 220 */
		raw(w, "STARTTLS\r\n");
		add(w, SIM_OP_TLS)->regardless = true;
		break;
	case 2: /* twice */
		write_starttls(w);
		line(w, SIM_REPLY_ANY, "STARTTLS");
		raw(w, "RSET\r\n");
		break;
	case 3: /* with a parameter, and in a transaction */
		raw(w, "STARTTLS now\r\nMAIL FROM:<a@from.test>\r\n"
		       "STARTTLS\r\nRSET\r\n");
		break;
	case 4: /* SMTP goes on in the clear */
		raw(w, "STARTTLS\r\n");
		pause_for(w, SIM_SECOND);
		raw(w, "EHLO injected.test\r\n"
		       "MAIL FROM:<injected@evil.test>\r\n");
		break;
	case 5: /* a record of 65535 octets */
		raw(w, "STARTTLS\r\n");
		pause_for(w, SIM_SECOND);
		add_octets(w, SIM_OP_RAW, "\x16\x03\x01\xff\xff\x01\x00", 7);
		write_noise(w);
		break;
	}
	raw(w, "QUIT\r\n");
}

static void write_rude(struct writer *w)
{
	struct sim_script *s = w->script;

	s->loose = true;
	s->pipelines = true;
	if (w->config->secrecy == SIM_SECRECY_STARTTLS &&
	    sim_chance(w->sim, 500)) {
		write_secrecy_abused(w);
		return;
	}
	switch (sim_below(w->sim, 6)) {
	case 0: /* before the greeting */
		raw(w, "EHLO early.test\r\n");
		write_hasty(w);
		break;
	case 1:
		write_ehlo(w);
		write_hasty(w);
		break;
	case 2: /* QUIT in the middle of a group */
		write_ehlo(w);
		raw(w, "MAIL FROM:<a@from.test>\r\nQUIT\r\n"
		       "RCPT TO:<b@dest.test>\r\nDATA\r\n");
		break;
	case 3:
		write_ehlo(w);
		raw(w, "MAIL FROM:<a@from.test>\r\n"
		       "BDAT 18446744073709551616\r\n");
		break;
	case 4:
		write_ehlo(w);
		raw(w, "BDAT 6\r\nRSET\r\nBDAT 0 LAST\r\nBDAT -1\r\n");
		break;
	case 5:
		write_ehlo(w);
		for (unsigned i = 0; i < 200; i++)
			raw(w, "NOOP\r\nHELP\r\nRSET\r\n");
		raw(w, "QUIT\r\n");
		break;
	}
	if (sim_chance(w->sim, 300))
		add(w, SIM_OP_CLOSE);
}

static void write_foreign(struct writer *w)
{
	char noise[SIM_TEXT_MAX];

	w->script->loose = true;
	if (sim_chance(w->sim, 500))
		pause_for(w, SIM_SECOND);
	switch (sim_below(w->sim, 4)) {
	case 0:
		raw(w, "GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n");
		return;
	case 1:
		add_octets(w, SIM_OP_RAW,
			   "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);
		return;
	case 2: /* no line end, ever */
		memset(noise, 'A', sizeof(noise));
		for (unsigned i = 0; i < 60; i++)
			add_octets(w, SIM_OP_RAW, noise, sizeof(noise));
		return;
	case 3:
		write_noise(w);
		return;
	}
}

static void write_clumsy(struct writer *w)
{
	static const char *const mistakes[] = {
		"FOO",
		"RCPT TO:<x@y.test>",
		"DATA",
		"EHLO",
		"MAIL FROM:a b c",
		"MAIL FROM:<a@b.test> FOO=BAR",
		"BDAT 5 LAST\r\nhell\n",
		"XCLIENT ADDR=127.0.0.1",
		"STARTTLS now",
		("AUTH PLAIN " SIM_AUTH_NOBODY),
		"ETRN here",
		"EXPN all",
		"VRFY me",
		"NOOP\t",
		"mail",
		"RSET now",
		"QUIT later",
	};
	char text[SIM_TEXT_MAX];
	bool behind_data = false;

	w->script->pipelines = sim_chance(w->sim, 500);
	write_ehlo(w);
	for (unsigned i = 0; i < 40; i++) {
		if (sim_chance(w->sim, 100)) {
			memset(text, 'x', 600);
			text[600] = '\0';
			line(w, SIM_REPLY_ANY, "NOOP %s", text)->alone =
				behind_data;
			behind_data = false;
			continue;
		}
		const char *words =
			mistakes[sim_below(w->sim, COUNT(mistakes))];
		struct sim_step *step = line(w, SIM_REPLY_ANY, "%s", words);

		/* DATA ends a group (RFC 2920, section 3.1). */
		step->alone = behind_data;
		behind_data = strcmp(words, "DATA") == 0;
		/* The chunk has no CRLF behind it. */
		if (words[0] == 'B')
			step->text_len -= 2;
	}
	line(w, SIM_REPLY_QUIT, "QUIT")->alone = behind_data;
}

static void write_deaf(struct writer *w)
{
	w->script->loose = true;
	w->script->deaf = true;
	raw(w, "EHLO deaf.test\r\n");
	for (unsigned i = 0; i < 300; i++)
		raw(w, "HELP\r\nNOOP\r\nEHLO deaf.test\r\nVRFY you\r\n");
}

static void write_idle(struct writer *w)
{
	uint32_t dice = sim_below(w->sim, 3);

	if (dice > 0)
		write_ehlo(w);
	if (dice > 1)
		line(w, SIM_REPLY_ANY, "NOOP");
}

void sim_script_write(struct sim_script *script, struct sim *sim,
		      struct check *check,
		      const struct sim_client_config *config)
{
	struct writer w = { script, sim, check, config };

	*script = (struct sim_script){ .auth = config->auth };
	script->steps = calloc(SIM_STEPS_MAX, sizeof(*script->steps));
	if (script->steps == NULL)
		abort();
	switch (config->nature) {
	case SIM_NATURE_GOOD:
		write_good(&w);
		break;
	case SIM_NATURE_SLOW:
		write_slow(&w);
		break;
	case SIM_NATURE_DRIBBLING:
		write_dribbling(&w);
		break;
	case SIM_NATURE_ABORTING:
		write_aborting(&w);
		break;
	case SIM_NATURE_SMUGGLER:
		write_smuggler(&w);
		break;
	case SIM_NATURE_RUDE:
		write_rude(&w);
		break;
	case SIM_NATURE_FOREIGN:
		write_foreign(&w);
		break;
	case SIM_NATURE_CLUMSY:
		write_clumsy(&w);
		break;
	case SIM_NATURE_DEAF:
		write_deaf(&w);
		break;
	case SIM_NATURE_IDLE:
		write_idle(&w);
		break;
	case SIM_NATURES:
		break;
	}
	script->loose = script->loose || config->forges;
	if (config->secrecy == SIM_SECRECY_NONE)
		return;
	script->implicit = config->secrecy == SIM_SECRECY_IMPLICIT &&
			   config->nature != SIM_NATURE_FOREIGN;
	script->curt = sim_chance(sim, 300);
	if (sim_chance(sim, 200))
		script->record = sim_between(sim, 1, 2000);
}
