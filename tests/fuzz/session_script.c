#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/session_input.h"
#include "tests/sim/sim_script.h"

/*
 * sim_script.h, as the input has it: tests/sim/sim_client.c, unchanged, says
 * what a fuzzer thought of, and its checks hold as in any simulation.  So a
 * script must stay honest: what is said in a message's name goes into the
 * ledger, and each line has as many replies as it promises.
 */

enum {
	BODY_MAX = 60000,
	LINE_LONG = 1500,
	PAUSE_MS_MAX = 20000,
	PAUSES_MS_MAX = 100000,
	SLOWEST_US = 100 * SIM_SECOND, /* for all that a client says */
	STEPS_SPARE = 8,               /* what one line makes, at most */
	RCPTS_MAX = CHECK_RCPTS_MAX - 1,
	BODY_ENDING = 8,
	TAIL_MAX = 8, /* no longer than a word that checkers look for */
};

/* What a script is written with. */
struct writer {
	struct sim_script *script;
	struct check *check;
	unsigned client;
	bool raw;                      /* says octets, not messages */
	bool ended;                    /* nothing comes behind it */
	bool soiled;                   /* a RSET must precede a MAIL */
	struct check_message *message; /* begun and not finished; or NULL */
	unsigned sent;                 /* the message's place */
	bool sealed;                   /* its body is whole */
	size_t from;                   /* octets of it in chunks so far */
	uint32_t pauses_ms;
	uint32_t pace_ms;
	size_t octets; /* of all messages */
	bool counted;  /* DATA may go on in counted chunks */
	size_t tail_len;
	char tail[TAIL_MAX]; /* the last octets that were said raw */
};

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
	w->octets += len;
	return step;
}

static struct sim_step *line(struct writer *w, enum sim_reply_kind reply,
			     const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static struct sim_step *line(struct writer *w, enum sim_reply_kind reply,
			     const char *format, ...)
{
	char text[2 * SIM_TEXT_MAX];
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

static struct sim_step *about(struct writer *w, struct sim_step *step)
{
	step->message = w->message;
	step->sent = w->sent;
	return step;
}

/* TEXT without line ends and NULs: it stays within its line. */
static size_t tame_text(const struct input_line *in, char *text, size_t size)
{
	size_t len = input_text(in, 'x', text, size);

	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\r' || text[i] == '\n' || text[i] == '\0')
			text[i] = ' ';
	}
	return len;
}

/* --- bodies --- */

static bool ends_early(const uint8_t *body, size_t len, size_t *end)
{
	static const uint8_t pattern[] = "\r\n.\r\n";
	unsigned match = 2; /* a body begins as a line does */

	for (size_t i = 0; i < len; i++) {
		if (body[i] == pattern[match])
			match++;
		else
			match = body[i] == '\r' ? 1 : 0;
		if (match == 5) {
			*end = i + 1;
			return true;
		}
	}
	return false;
}

/* Is there a CR, a LF or a NUL in it that no mail may have? */
static bool is_foul(const uint8_t *body, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (body[i] == '\0')
			return true;
		if (body[i] == '\n' && (i == 0 || body[i - 1] != '\r'))
			return true;
		if (body[i] == '\r' && (i + 1 == len || body[i + 1] != '\n'))
			return true;
	}
	return false;
}

static void body_add(struct writer *w, const char *text, size_t len)
{
	struct check_message *m = w->message;

	if (m == NULL || w->sealed || len > BODY_MAX - m->body_len)
		return;
	if (m->body == NULL)
		m->body = malloc(BODY_MAX + BODY_ENDING);
	if (m->body == NULL)
		abort();
	memcpy(m->body + m->body_len, text, len);
	m->body_len += len;
	w->octets += len;
}

/* It is whole: from now on it is known what a backend must get. */
static void body_seal(struct writer *w, bool chunked)
{
	struct check_message *m = w->message;
	size_t end;

	if (w->sealed)
		return;
	body_add(w, "", 0);
	w->sealed = true;
	m->chunked = chunked;
	if (chunked)
		return;
	bool begins = m->body_len == 0 ||
		      (m->body_len >= 2 &&
		       memcmp(m->body + m->body_len - 2, "\r\n", 2) == 0);
	const char *ending = begins ? ".\r\n" : "\r\n.\r\n";
	memcpy(m->body + m->body_len, ending, strlen(ending));
	m->body_len += strlen(ending);
	bool ends = ends_early(m->body, m->body_len, &end);
	assert(ends);
	m->body_len = end;
	m->flawed = is_foul(m->body, m->body_len);
	if (w->counted)
		check_message_count(m);
}

static void write_text(struct writer *w, struct input_line *in, bool often)
{
	char text[SIM_TEXT_MAX];
	uint32_t times = often ? input_number(in, 2000) : 1;
	size_t len = input_text(in, 'x', text, sizeof(text));

	while (times-- > 0 && len > 0)
		body_add(w, text, len);
}

/* --- messages --- */

static void message_over(struct writer *w)
{
	w->message = NULL;
	w->soiled = true;
}

/* The transaction before it may still be open: nothing of it may remain. */
static void clear_up(struct writer *w)
{
	if (w->message != NULL)
		message_over(w);
	if (w->soiled)
		line(w, SIM_REPLY_RSET, "RSET")->alone = true;
	w->soiled = false;
}

static void write_mail(struct writer *w, const struct input_line *in, bool null)
{
	char text[SIM_TEXT_MAX];
	struct sim_script *s = w->script;

	if (s->sent_count == SIM_SENT_MAX)
		return;
	clear_up(w);
	w->message = check_message_new(w->check, w->client, s->sent_count);
	w->sent = s->sent_count++;
	w->sealed = false;
	w->from = 0;
	s->sent[w->sent].message = w->message;
	w->message->null_sender = null;
	(void)tame_text(in, text, sizeof(text)); /* its NUL ends it */
	if (null)
		about(w, line(w, SIM_REPLY_MAIL, "MAIL FROM:<> %s", text));
	else
		about(w,
		      line(w, SIM_REPLY_MAIL, "MAIL FROM:<s.%s@from.test> %s",
			   w->message->mark, text));
	/* A blank behind the address would be an error of our own. */
	struct sim_step *step = &s->steps[s->count - 1];
	while (step->text[step->text_len - 1] == ' ')
		step->text[--step->text_len] = '\0';
}

static void write_rcpt(struct writer *w, const struct input_line *in,
		       bool refused)
{
	char text[SIM_TEXT_MAX];
	struct check_message *m = w->message;

	if (m == NULL || m->rcpts >= RCPTS_MAX)
		return;
	size_t len = refused ? 0 : tame_text(in, text, sizeof(text));
	text[len] = '\0';
	struct sim_step *step = line(
		w, refused ? SIM_REPLY_ANY : SIM_REPLY_RCPT,
		refused ? "RCPT TO:<refused%u.%s@dest.test>%s%s"
			: "rcpt to:<r%u.%s@dest.test>%s%s",
		m->rcpts, m->mark, len > 0 ? " " : "", text);
	about(w, step)->rcpt = m->rcpts++;
}

static void write_pause(struct writer *w, struct input_line *in)
{
	uint32_t ms = input_number(in, PAUSE_MS_MAX);

	if (ms == 0 || w->pauses_ms + ms > PAUSES_MS_MAX)
		return;
	w->pauses_ms += ms;
	add(w, SIM_OP_PAUSE)->pause_us = (int64_t)ms * SIM_MS;
}

static void write_data(struct writer *w, struct input_line *in)
{
	if (w->message == NULL || (w->sealed && w->message->chunked))
		return;
	body_seal(w, false);
	about(w, line(w, SIM_REPLY_DATA, "DATA"));
	write_pause(w, in);
	about(w, add(w, SIM_OP_BODY))->alone = true;
	message_over(w);
}

static void write_chunk(struct writer *w, struct input_line *in, bool rest)
{
	struct check_message *m = w->message;

	if (m == NULL)
		return;
	body_seal(w, true);
	size_t left = m->body_len - w->from;
	size_t n = rest ? left : input_number(in, BODY_MAX);
	struct sim_step *step = about(w, add(w, SIM_OP_CHUNK));

	step->from = w->from;
	step->upto = w->from + (n < left ? n : left);
	w->from = step->upto;
	if (w->from == m->body_len)
		message_over(w);
}

/* --- other lines --- */

static bool begins_with(const char *text, size_t len, const char *word)
{
	size_t n = strlen(word);

	return len >= n && strncasecmp(text, word, n) == 0;
}

/* Does this line draw one reply and nothing else, whatever the state? */
static bool is_plain(const char *text, size_t len)
{
	static const char *const others[] = {
		"MAIL",    "DATA",   "BDAT", "QUIT",     "PROXY",
		"CONNECT", "DELETE", "GET",  "HEAD",     "OPTIONS",
		"POST",    "PUT",    "AUTH", "STARTTLS",
	};
	size_t n = 0;

	while (n < len && ((text[n] >= 'a' && text[n] <= 'z') ||
			   (text[n] >= 'A' && text[n] <= 'Z')))
		n++;
	if (n == 0 || (n < len && text[n] != ' '))
		return false;
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		if (begins_with(text, len, others[i]))
			return false;
	}
	return true;
}

static void write_line(struct writer *w, const struct input_line *in)
{
	char text[SIM_TEXT_MAX + 8] = "NOOP ";
	size_t len = input_text(in, 'x', text + 5, SIM_TEXT_MAX);
	const char *from = text;

	for (size_t i = 0; i < len + 5; i++) {
		if (text[i] == '\n')
			text[i] = ' '; /* a line end by itself */
	}
	if (is_plain(text + 5, len))
		from = text + 5;
	else
		len += 5;
	add_octets(w, SIM_OP_LINE, from, len)->reply = SIM_REPLY_ANY;
}

static void write_long_line(struct writer *w, struct input_line *in)
{
	char text[LINE_LONG];
	uint32_t len = input_number(in, LINE_LONG);

	memset(text, 'x', sizeof(text));
	add_octets(w, SIM_OP_LINE, text, len < 4 ? 4 : len)->reply =
		SIM_REPLY_ANY;
}

/* It must not become part of a message that is kept account of. */
static void write_stray_chunk(struct writer *w, const struct input_line *in)
{
	char chunk[SIM_TEXT_MAX], text[SIM_TEXT_MAX + 64];
	size_t len = input_text(in, 'x', chunk, sizeof(chunk));

	clear_up(w);
	int n = snprintf(text, sizeof(text), "BDAT %zu LAST\r\n", len + 2);
	memcpy(text + n, chunk, len);
	add_octets(w, SIM_OP_LINE, text, (size_t)n + len)->reply =
		SIM_REPLY_ANY;
	w->soiled = true;
}

/* Octets that are said raw, behind those that were. */
static bool is_word_of_two(struct writer *w, const char *text, size_t len)
{
	char both[TAIL_MAX + 2 * SIM_TEXT_MAX], spoilt[sizeof(both)];
	size_t all = w->tail_len + len;

	memcpy(both, w->tail, w->tail_len);
	memcpy(both + w->tail_len, text, len);
	memcpy(spoilt, both, all);
	input_spoil(spoilt, all);
	if (memcmp(both, spoilt, all) != 0)
		return true;
	w->tail_len = all < TAIL_MAX ? all : TAIL_MAX;
	memcpy(w->tail, both + all - w->tail_len, w->tail_len);
	return false;
}

static void write_octets(struct writer *w, const struct input_line *in,
			 bool waits)
{
	char text[2 * SIM_TEXT_MAX];
	size_t len = input_text(in, '9', text, sizeof(text));

	/* No mark may be put together of two pieces, nor another word. */
	if (len > 0 && text[len - 1] == 'c')
		len--;
	if (len == 0 || is_word_of_two(w, text, len))
		return;
	add_octets(w, SIM_OP_RAW, text, len)->alone = waits;
}

/* --- TLS and AUTH --- */

static void write_starttls(struct writer *w, const struct input_line *in)
{
	char text[SIM_TEXT_MAX] = "";
	size_t len = in->letter == 'v' ? input_text(in, 'x', text, sizeof(text))
				       : 0;

	if (w->script->implicit)
		return;
	/* It is refused within a transaction, and what follows is obeyed. */
	clear_up(w);
	struct sim_step *step = add_octets(w, SIM_OP_LINE, "STARTTLS\r\n",
					   len > 0 ? 10 : 8);
	if (len > 0) {
		step->text = realloc(step->text, 10 + len + 1);
		if (step->text == NULL)
			abort();
		memcpy(step->text + 10, text, len);
		step->text_len = 10 + len;
		step->text[step->text_len] = '\0';
	}
	step->reply = SIM_REPLY_STARTTLS;
	step->injects = len > 0;
	step->alone = true;
	add(w, SIM_OP_TLS)->alone = true;
	line(w, SIM_REPLY_EHLO, "EHLO c%u.client.test", w->client)->alone =
		true;
}

static void write_auth(struct writer *w, struct input_line *in)
{
	uint32_t way = input_number(in, SIM_AUTH_WAYS - 1);
	char text[SIM_AUTH_LINE_MAX];

	/* One way for a client: it is asked for its next line later. */
	if (w->script->auth == SIM_AUTH_NONE)
		w->script->auth = (enum sim_auth_way)way;
	if (w->script->auth == SIM_AUTH_NONE)
		return;
	(void)sim_auth_say(w->script->auth, w->client, 0, text);
	struct sim_step *step = line(w, SIM_REPLY_AUTH, "%s", text);
	step->alone = true;
}

static void write_end(struct writer *w, enum sim_op op)
{
	add(w, op)->alone = op != SIM_OP_FIN;
	w->ended = true;
}

static void write_abort(struct writer *w, struct input_line *in)
{
	uint8_t kind = input_letter(in);
	struct sim_script *s = w->script;

	s->abort_by = kind == 'r'   ? SIM_ABORT_RST
		      : kind == 'c' ? SIM_ABORT_CLOSE
				    : SIM_ABORT_FIN;
	s->abort_at = input_number(in, BODY_MAX);
}

static void write_honest(struct writer *w, struct input_line *in)
{
	switch (in->letter) {
	case 'e':
	case 'h':
		line(w, SIM_REPLY_EHLO, "%s c%u.client.test",
		     in->letter == 'e' ? "EHLO" : "HELO", w->client)
			->alone = true;
		return;
	case 'm':
	case 'n':
		write_mail(w, in, in->letter == 'n');
		return;
	case 'r':
	case 'R':
		write_rcpt(w, in, in->letter == 'R');
		return;
	case 't':
	case 'T':
		write_text(w, in, in->letter == 'T');
		return;
	case 'd':
		write_data(w, in);
		return;
	case 'k':
	case 'b':
		write_chunk(w, in, in->letter == 'b');
		return;
	case 's':
		line(w, SIM_REPLY_RSET, "RSET");
		return;
	case 'V':
	case 'v':
		write_starttls(w, in);
		return;
	case 'a':
		write_auth(w, in);
		return;
	case 'j':
		add(w, SIM_OP_REKEY);
		return;
	case 'l':
		write_line(w, in);
		return;
	case 'u':
		write_stray_chunk(w, in);
		return;
	case 'w':
		write_long_line(w, in);
		return;
	case 'q':
		line(w, SIM_REPLY_QUIT, "QUIT");
		w->ended = true;
		return;
	}
}

static void write_step(struct writer *w, struct input_line *in)
{
	switch (in->letter) {
	case 'P':
		w->script->pipelines = true;
		return;
	case 'g':
		w->script->pace_octets = input_number(in, BODY_MAX);
		w->pace_ms = input_number(in, 1000);
		return;
	case 'X':
		write_abort(w, in);
		return;
	case 'p':
		write_pause(w, in);
		return;
	case 'c':
		w->script->cancels = true;
		return;
	case 'i':
		w->script->record = input_number(in, BODY_MAX);
		return;
	case 'N':
		w->script->abandons = true;
		return;
	case 'G':
		w->script->curt = true;
		return;
	case 'f':
		write_end(w, SIM_OP_FIN);
		return;
	case 'x':
		write_end(w, SIM_OP_RST);
		return;
	case 'y':
		write_end(w, SIM_OP_CLOSE);
		return;
	case 'z':
	case 'Z':
		write_octets(w, in, in->letter == 'Z');
		return;
	}
	if (!w->raw)
		write_honest(w, in);
}

/* --- the play --- */

/* The next line of this client; false: there is none. */
static bool own_line(struct input *in, unsigned client, unsigned *speaker,
		     struct input_line *line)
{
	while (input_line(in, line)) {
		if (line->letter == 'C')
			*speaker = input_number(line, 2);
		else if (*speaker == client &&
			 strchr("WDBOKLAS", line->letter) == NULL)
			return true;
	}
	return false;
}

void sim_script_write(struct sim_script *script, struct sim *sim,
		      struct check *check,
		      const struct sim_client_config *config)
{
	struct writer w = {
		.script = script,
		.check = check,
		.client = config->number,
		.counted = config->counted,
	};
	struct input in = input_begin();
	struct input_line step;
	unsigned speaker = 0;

	(void)sim; /* nothing is left to chance */
	*script = (struct sim_script){ 0 };
	script->steps = calloc(SIM_STEPS_MAX, sizeof(*script->steps));
	if (script->steps == NULL)
		abort();
	while (own_line(&in, w.client, &speaker, &step))
		w.raw = w.raw || step.letter == 'z' || step.letter == 'Z';
	script->loose = w.raw;
	script->implicit = config->secrecy == SIM_SECRECY_IMPLICIT;
	in = input_begin();
	speaker = 0;
	while (!w.ended && script->count + STEPS_SPARE < SIM_STEPS_MAX &&
	       own_line(&in, w.client, &speaker, &step))
		write_step(&w, &step);
	if (script->pace_octets > 0) {
		size_t pieces = 1 + w.octets / script->pace_octets;
		int64_t max_us = SLOWEST_US / (int64_t)pieces + 1;

		script->pace_us = (int64_t)w.pace_ms * SIM_MS;
		if (script->pace_us > max_us)
			script->pace_us = max_us;
	}
}
