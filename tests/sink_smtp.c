#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sink_session.h"

enum {
	REPLY_MAX = 1024,
	ENHANCED_AT = 4, /* where "2.1.0" stands in "250 2.1.0 Ok" */
};

struct verb {
	const char *name;
	void (*run)(struct sink_session *s, const char *arg, size_t len);
	bool last; /* must be the last of a group (RFC 2920, section 3.1) */
};

/* MAIL and RCPT parameters, and what must be offered for them. */
struct parameter {
	const char *name; /* with "=" if it has a value */
	bool of_mail;
	bool (*offered)(const struct sink_mta *mta);
};

static void log_line(const struct sink_session *s, char mark, const char *text,
		     size_t len)
{
	if (!s->mta->sink->verbose)
		return;
	fprintf(stderr, "%s %s %c ", s->mta->name, s->client, mark);
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= 0x20 && c < 0x7f)
			fputc(c, stderr);
		else if (c != '\r' && c != '\n')
			fprintf(stderr, "\\x%02x", c);
	}
	fputc('\n', stderr);
}

static void say(struct sink_session *s, const char *text, size_t len,
		int64_t delay_ms)
{
	log_line(s, '<', text, len);
	sink_session_say(s, text, len, delay_ms);
	if (len >= 3 && memcmp(text, "421", 3) == 0)
		s->closing = true;
}

/*
 * Format one reply line without its CRLF; the caller writes the enhanced
 * code, which is cut out where the MTA does not offer it.
 */
__attribute__((format(printf, 3, 0))) static size_t format(
	const struct sink_session *s, char *out, const char *fmt, va_list args)
{
	int n = vsnprintf(out, REPLY_MAX - 2, fmt, args);
	size_t len = n < REPLY_MAX - 2 ? (size_t)n : REPLY_MAX - 3;

	assert(n > ENHANCED_AT);
	if (!s->mta->enhanced && out[5] == '.') {
		char *rest = memchr(out + ENHANCED_AT, ' ', len - ENHANCED_AT);

		if (rest != NULL) {
			size_t cut = (size_t)(rest + 1 - out) - ENHANCED_AT;

			memmove(out + ENHANCED_AT, rest + 1,
				len - ENHANCED_AT - cut);
			len -= cut;
		}
	}
	out[len] = '\r';
	out[len + 1] = '\n';
	return len + 2;
}

void sink_smtp_say(struct sink_session *s, const char *fmt, ...)
{
	char out[REPLY_MAX];
	va_list args;

	va_start(args, fmt);
	size_t len = format(s, out, fmt, args);

	va_end(args);
	say(s, out, len, 0);
}

static void die_after(struct sink_session *s, enum sink_stage stage)
{
	static const enum sink_death deaths[SINK_STAGES] = {
		[SINK_GREETING] = SINK_DIE_GREETING,
		[SINK_EHLO] = SINK_DIE_EHLO,
		[SINK_MAIL] = SINK_DIE_MAIL,
		[SINK_RCPT] = SINK_DIE_RCPT,
		[SINK_DATA] = SINK_DIE_DATA,
		[SINK_EOD] = SINK_DIE_EOD,
		[SINK_QUIT] = SINK_DIE_NEVER,
		[SINK_STARTTLS] = SINK_DIE_STARTTLS,
		[SINK_AUTH] = SINK_DIE_AUTH,
		[SINK_XCLIENT] = SINK_DIE_XCLIENT,
	};
	struct sink_mta *mta = s->mta;

	if (mta->die == SINK_DIE_NEVER || mta->die != deaths[stage])
		return;
	if (!sink_chance(mta->sink, &mta->die_chance))
		return;
	mta->stats.deaths++;
	s->doomed = true;
}

/* The stage's reply, or what its rule puts in its place.  True if positive. */
static bool answer_text(struct sink_session *s, enum sink_stage stage,
			const char *text, size_t len)
{
	struct sink_mta *mta = s->mta;
	struct sink_rule *rule = &mta->rules[stage];

	if (rule->text != NULL && sink_chance(mta->sink, &rule->chance)) {
		text = rule->text;
		len = strlen(text);
		mta->stats.replaced[stage]++;
	}
	bool positive = len > 0 && (text[0] == '2' || text[0] == '3');

	say(s, text, len,
	    sink_between(mta->sink, rule->delay_min_ms, rule->delay_max_ms));
	die_after(s, stage);
	return positive;
}

bool sink_smtp_answer(struct sink_session *s, enum sink_stage stage,
		      const char *fmt, ...)
{
	char out[REPLY_MAX];
	va_list args;

	va_start(args, fmt);
	size_t len = format(s, out, fmt, args);

	va_end(args);
	return answer_text(s, stage, out, len);
}

void sink_smtp_error(struct sink_session *s, enum sink_error error)
{
	static const bool is_counted_against_peer[SINK_ERRORS] = {
		[SINK_ERR_UNKNOWN] = true,  [SINK_ERR_SYNTAX] = true,
		[SINK_ERR_SEQUENCE] = true, [SINK_ERR_LINE_LONG] = true,
		[SINK_ERR_NUL] = true,
	};

	s->mta->stats.errors[error]++;
	if (is_counted_against_peer[error])
		s->errors++;
}

/* --- the session's ends --- */

void sink_smtp_greet(struct sink_session *s)
{
	const struct sink_mta *mta = s->mta;
	char out[REPLY_MAX];
	char *all = NULL;
	size_t size = 0;
	FILE *text = open_memstream(&all, &size);

	if (text == NULL)
		abort();
	for (uint64_t i = 1; i < mta->banner_lines; i++)
		fprintf(text, "220-%s line %llu of the greeting\r\n", mta->name,
			(unsigned long long)i);
	snprintf(out, sizeof(out), "220 %s %s\r\n", mta->name, mta->banner);
	fputs(out, text);
	if (fclose(text) != 0)
		abort();
	/* A greeting that a rule made negative ends the session. */
	if (!answer_text(s, SINK_GREETING, all, size))
		s->closing = true;
	free(all);
}

void sink_smtp_refuse(struct sink_session *s)
{
	const char *text = s->mta->busy_text;

	say(s, text, strlen(text), 0);
	s->closing = true;
}

void sink_smtp_timeout(struct sink_session *s)
{
	sink_smtp_say(s, "421 4.4.2 %s Error: timeout exceeded", s->mta->name);
}

/* --- commands --- */

void sink_smtp_forget(struct sink_session *s)
{
	sink_message_finish(s, SINK_ABORTED);
	s->helo_done = s->esmtp = false;
	s->helo[0] = s->login[0] = '\0';
	s->login_due = SINK_LOGIN_NONE;
}

static bool offers_starttls(const struct sink_session *s)
{
	enum sink_tls tls = s->mta->tls;

	return s->tls == NULL &&
	       (tls == SINK_TLS_STARTTLS || tls == SINK_TLS_REQUIRED);
}

static bool lacks_tls(const struct sink_session *s)
{
	return s->mta->tls == SINK_TLS_REQUIRED && s->tls == NULL;
}

static void run_ehlo(struct sink_session *s, const char *arg, size_t len)
{
	const struct sink_mta *mta = s->mta;
	char out[REPLY_MAX];
	int n = 0;

	if (len == 0) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: EHLO hostname");
		return;
	}
	if (!mta->esmtp) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
		return;
	}
	sink_message_finish(s, SINK_ABORTED);
	if (len > SINK_HELO_MAX)
		len = SINK_HELO_MAX;
	memcpy(s->helo, arg, len);
	s->helo[len] = '\0';
	n = snprintf(out, sizeof(out), "250-%s\r\n", mta->name);
	if (mta->size > 0) {
		n += snprintf(out + n, sizeof(out) - (size_t)n,
			      "250-SIZE %llu\r\n",
			      (unsigned long long)mta->size);
	}
	n += snprintf(out + n, sizeof(out) - (size_t)n,
		      "%s%s%s%s%s%s%s%s%s%s%s%s%s250 HELP\r\n",
		      mta->pipelining ? "250-PIPELINING\r\n" : "",
		      mta->eightbitmime ? "250-8BITMIME\r\n" : "",
		      mta->enhanced ? "250-ENHANCEDSTATUSCODES\r\n" : "",
		      mta->dsn ? "250-DSN\r\n" : "",
		      mta->smtputf8 ? "250-SMTPUTF8\r\n" : "",
		      mta->chunking ? "250-CHUNKING\r\n" : "",
		      mta->binarymime ? "250-BINARYMIME\r\n" : "",
		      offers_starttls(s) ? "250-STARTTLS\r\n" : "",
		      mta->auth != NULL && !lacks_tls(s)
			      ? "250-AUTH PLAIN LOGIN\r\n"
			      : "",
		      mta->xclient ? "250-XCLIENT NAME ADDR PORT PROTO HELO "
				     "LOGIN DESTADDR DESTPORT\r\n"
				   : "",
		      mta->extra != NULL ? "250-" : "",
		      mta->extra != NULL ? mta->extra : "",
		      mta->extra != NULL ? "\r\n" : "");
	assert((size_t)n < sizeof(out));
	s->esmtp = s->helo_done = answer_text(s, SINK_EHLO, out, (size_t)n);
}

static void run_helo(struct sink_session *s, const char *arg, size_t len)
{
	if (len == 0) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: HELO hostname");
		return;
	}
	sink_message_finish(s, SINK_ABORTED);
	if (len > SINK_HELO_MAX)
		len = SINK_HELO_MAX;
	memcpy(s->helo, arg, len);
	s->helo[len] = '\0';
	s->esmtp = false;
	s->helo_done = sink_smtp_answer(s, SINK_EHLO, "250 %s", s->mta->name);
}

static bool offers_size(const struct sink_mta *mta)
{
	return mta->size > 0;
}

static bool offers_8bitmime(const struct sink_mta *mta)
{
	return mta->eightbitmime;
}

static bool offers_binarymime(const struct sink_mta *mta)
{
	return mta->binarymime;
}

static bool offers_smtputf8(const struct sink_mta *mta)
{
	return mta->smtputf8;
}

static bool offers_dsn(const struct sink_mta *mta)
{
	return mta->dsn;
}

/* clang-format off */
static const struct parameter parameters[] = {
	{ "SIZE=", true, offers_size },
	{ "BODY=7BIT", true, offers_8bitmime },
	{ "BODY=8BITMIME", true, offers_8bitmime },
	{ "BODY=BINARYMIME", true, offers_binarymime },
	{ "SMTPUTF8", true, offers_smtputf8 },
	{ "RET=", true, offers_dsn },
	{ "ENVID=", true, offers_dsn },
	{ "NOTIFY=", false, offers_dsn },
	{ "ORCPT=", false, offers_dsn },
};
/* clang-format on */

static bool parameter_ok(const struct sink_session *s, bool of_mail,
			 const char *word, size_t len)
{
	for (size_t i = 0; i < sizeof(parameters) / sizeof(parameters[0]);
	     i++) {
		const struct parameter *p = &parameters[i];
		size_t name_len = strlen(p->name);
		bool value = p->name[name_len - 1] == '=';

		if (p->of_mail != of_mail || len < name_len ||
		    strncasecmp(word, p->name, name_len) != 0)
			continue;
		if (value ? len == name_len : len != name_len)
			continue;
		return s->esmtp && p->offered(s->mta);
	}
	return false;
}

static bool parameters_ok(const struct sink_session *s, bool of_mail,
			  const char *text, size_t len)
{
	size_t pos = 0;

	while (pos < len) {
		const char *blank = memchr(text + pos, ' ', len - pos);
		size_t end = blank == NULL ? len : (size_t)(blank - text);

		if (end > pos &&
		    !parameter_ok(s, of_mail, text + pos, end - pos))
			return false;
		pos = end + 1;
	}
	return true;
}

/* The path of MAIL FROM:<path> params, quoted strings respected. */
static bool split_path(const char *arg, size_t len, const char *word,
		       const char **path, size_t *path_len)
{
	size_t word_len = strlen(word);
	size_t pos = word_len;
	bool quoted = false;

	if (len < word_len || strncasecmp(arg, word, word_len) != 0)
		return false;
	while (pos < len && arg[pos] == ' ')
		pos++; /* forbidden, common, harmless */
	if (pos == len || arg[pos] != '<')
		return false;
	for (size_t i = ++pos; i < len; i++) {
		if (arg[i] == '\\' && quoted)
			i++;
		else if (arg[i] == '"')
			quoted = !quoted;
		if (i >= len || quoted || arg[i] != '>')
			continue;
		if (i + 1 < len && arg[i + 1] != ' ')
			return false;
		*path = arg + pos;
		*path_len = i - pos;
		return true;
	}
	return false;
}

/* The number behind SIZE=, or 0. */
static uint64_t declared_size(const char *params, size_t len)
{
	for (size_t i = 0; i + 5 <= len; i++) {
		if (strncasecmp(params + i, "SIZE=", 5) != 0 ||
		    (i > 0 && params[i - 1] != ' '))
			continue;
		uint64_t value = 0;

		for (i += 5; i < len && params[i] >= '0' && params[i] <= '9' &&
			     value < UINT64_MAX / 16;
		     i++)
			value = value * 10 + (uint64_t)(params[i] - '0');
		return value;
	}
	return 0;
}

static void out_of_sequence(struct sink_session *s, const char *why)
{
	sink_smtp_error(s, SINK_ERR_SEQUENCE);
	sink_smtp_say(s, "503 5.5.1 Error: %s", why);
}

/* True if MAIL and AUTH are refused for want of TLS. */
static bool refuse_clear(struct sink_session *s)
{
	if (!lacks_tls(s))
		return false;
	sink_smtp_say(s, "530 5.7.0 Must issue a STARTTLS command first");
	return true;
}

static void run_auth(struct sink_session *s, const char *arg, size_t len)
{
	if (!refuse_clear(s))
		sink_login_command(s, arg, len);
}

static void run_mail(struct sink_session *s, const char *arg, size_t len)
{
	const struct sink_mta *mta = s->mta;
	const char *path = NULL;
	size_t path_len = 0;

	if (!s->helo_done) {
		out_of_sequence(s, "send HELO or EHLO first");
		return;
	}
	if (refuse_clear(s))
		return;
	if (mta->auth_required && s->login[0] == '\0') {
		sink_smtp_say(s, "530 5.7.0 Authentication required");
		return;
	}
	if (s->message != NULL) {
		out_of_sequence(s, "nested MAIL command");
		return;
	}
	if (!split_path(arg, len, "FROM:", &path, &path_len)) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: MAIL FROM:<address>");
		return;
	}
	const char *params = path + path_len + 1;
	size_t params_len = len - (size_t)(params - arg);

	if (params_len > 0) { /* the blank behind ">" */
		params++;
		params_len--;
	}
	if (!parameters_ok(s, true, params, params_len)) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "555 5.5.4 Unsupported option");
		return;
	}
	if (mta->messages_max > 0 && s->messages >= mta->messages_max) {
		sink_smtp_say(s,
			      "421 4.7.0 Too many messages in this connection");
		return;
	}
	if (mta->size > 0 && declared_size(params, params_len) > mta->size) {
		sink_smtp_say(s, "552 5.3.4 Message size exceeds fixed limit");
		return;
	}
	if (sink_smtp_answer(s, SINK_MAIL, "250 2.1.0 Ok"))
		s->message = sink_message_new(s, path, path_len, params,
					      params_len);
}

/* Nobody has mail there (RFC 6761, section 6.4). */
static bool is_invalid(const char *path, size_t len)
{
	static const char end[] = "invalid";
	size_t end_len = sizeof(end) - 1;

	return len > end_len &&
	       strncasecmp(path + len - end_len, end, end_len) == 0 &&
	       (path[len - end_len - 1] == '.' ||
		path[len - end_len - 1] == '@');
}

static void run_rcpt(struct sink_session *s, const char *arg, size_t len)
{
	const struct sink_mta *mta = s->mta;
	const char *path = NULL;
	size_t path_len = 0;

	if (s->message == NULL || s->message->body_begun) {
		out_of_sequence(s, "need MAIL command");
		return;
	}
	if (!split_path(arg, len, "TO:", &path, &path_len) || path_len == 0) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: RCPT TO:<address>");
		return;
	}
	const char *params = path + path_len + 1;
	size_t params_len = len - (size_t)(params - arg);

	if (params_len > 0) {
		params++;
		params_len--;
	}
	if (!parameters_ok(s, false, params, params_len)) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "555 5.5.4 Unsupported option");
		return;
	}
	if (s->message->rcpt_count >= mta->rcpts_max) {
		sink_smtp_say(s, "452 4.5.3 Error: too many recipients");
		return;
	}
	if (!mta->open_relay && is_invalid(path, path_len)) {
		sink_smtp_say(s, "550 5.1.2 No such domain");
		return;
	}
	if (!sink_smtp_answer(s, SINK_RCPT, "250 2.1.5 Ok"))
		return;
	s->mta->stats.rcpts++;
	sink_message_add_rcpt(s->message, path, path_len, params, params_len);
}

static void begin_message(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;

	if (!s->message->body_begun)
		s->die_in_body = mta->die == SINK_DIE_BODY &&
				 sink_chance(mta->sink, &mta->die_chance);
	sink_message_begin(s);
}

static void run_data(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	if (len > 0) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Syntax: DATA");
		return;
	}
	if (s->message == NULL || s->message->body_begun) {
		out_of_sequence(s, "need RCPT command");
		return;
	}
	if (s->message->rcpt_count == 0) {
		/* All were refused: RFC 5321, section 3.3. */
		sink_smtp_say(s, "554 5.5.1 Error: no valid recipients");
		return;
	}
	if (!sink_smtp_answer(s, SINK_DATA,
			      "354 End data with <CR><LF>.<CR><LF>")) {
		sink_message_finish(s, SINK_REJECTED);
		return;
	}
	begin_message(s);
	s->state = SINK_BODY;
	s->dot = SINK_DOT_LINE;
	s->last_cr = false;
}

/* Die in place of answering, or answer the message. */
static void end_message(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;
	struct sink_message *m = s->message;

	s->state = SINK_COMMAND;
	s->messages++;
	sink_message_complete(s);
	if (mta->die == SINK_DIE_DOT &&
	    sink_chance(mta->sink, &mta->die_chance)) {
		mta->stats.deaths++;
		sink_session_kill(s, mta->die_how);
		return;
	}
	if (mta->size > 0 && m->octets > mta->size) {
		sink_smtp_say(s, "552 5.3.4 Message size exceeds fixed limit");
		s->rejected = true;
		return;
	}
	s->acked = sink_smtp_answer(s, SINK_EOD, "250 2.0.0 Ok: queued as %s",
				    m->queue_id);
	s->rejected = !s->acked;
}

static void end_chunk(struct sink_session *s)
{
	s->state = SINK_COMMAND;
	if (s->chunk_ignored)
		out_of_sequence(s, "need RCPT command");
	else if (s->chunk_last)
		end_message(s);
	else
		sink_smtp_say(s, "250 2.0.0 %llu octets received",
			      (unsigned long long)s->chunk_size);
}

static void run_bdat(struct sink_session *s, const char *arg, size_t len)
{
	uint64_t size = 0;
	size_t pos = 0;

	if (!s->mta->chunking) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
		return;
	}
	while (pos < len && pos < 12 && arg[pos] >= '0' && arg[pos] <= '9')
		size = size * 10 + (uint64_t)(arg[pos++] - '0');
	s->chunk_last = len == pos + 5 &&
			strncasecmp(arg + pos, " LAST", 5) == 0;
	if (pos == 0 || (pos != len && !s->chunk_last)) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		/* No telling where the next command starts. */
		sink_smtp_say(s, "421 5.5.4 Syntax: BDAT size [LAST]");
		return;
	}
	s->chunk_ignored = s->message == NULL || s->message->rcpt_count == 0;
	s->chunk_size = size;
	s->chunk_left = size;
	if (!s->chunk_ignored)
		begin_message(s);
	s->state = SINK_CHUNK;
	if (size == 0)
		end_chunk(s);
}

static void run_rset(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	(void)len;
	sink_message_finish(s, SINK_ABORTED);
	sink_smtp_say(s, "250 2.0.0 Ok");
}

static void run_noop(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	(void)len;
	sink_smtp_say(s, "250 2.0.0 Ok");
}

static void run_vrfy(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	(void)len;
	sink_smtp_say(s, "252 2.0.0 Send some mail, I will try my best");
}

static void run_help(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	(void)len;
	sink_smtp_say(s, "214 2.0.0 See weir-sink(1)");
}

static void run_quit(struct sink_session *s, const char *arg, size_t len)
{
	(void)arg;
	(void)len;
	s->said_quit = true;
	(void)sink_smtp_answer(s, SINK_QUIT, "221 2.0.0 Bye");
	s->closing = true;
}

/* clang-format off */
static const struct verb verbs[] = {
	{ "EHLO", run_ehlo, true },
	{ "HELO", run_helo, true },
	{ "MAIL", run_mail, false },
	{ "RCPT", run_rcpt, false },
	{ "DATA", run_data, true },
	{ "BDAT", run_bdat, false },
	{ "RSET", run_rset, false },
	{ "NOOP", run_noop, true },
	{ "VRFY", run_vrfy, true },
	{ "HELP", run_help, true },
	{ "QUIT", run_quit, true },
	{ "STARTTLS", sink_tls_command, true },
	{ "AUTH", run_auth, true },
	{ "XCLIENT", sink_xclient_command, true },
};
/* clang-format on */

static const struct verb *find_verb(const char *word, size_t len)
{
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (len == strlen(verbs[i].name) &&
		    strncasecmp(word, verbs[i].name, len) == 0)
			return &verbs[i];
	}
	return NULL;
}

static void run_line(struct sink_session *s, const char *line, size_t len,
		     bool more)
{
	const char *blank = memchr(line, ' ', len);
	size_t word = blank == NULL ? len : (size_t)(blank - line);
	size_t arg = word;
	const struct verb *verb = find_verb(line, word);

	while (len > word && line[len - 1] == ' ')
		len--;
	while (arg < len && line[arg] == ' ')
		arg++;
	s->mta->stats.commands++;
	if (verb == NULL) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
		return;
	}
	bool may_pipeline = s->esmtp && s->mta->pipelining;
	bool is_chunk = verb->run == run_bdat;

	if (more && verb->last)
		sink_smtp_error(s, SINK_ERR_SYNC);
	else if (more && !is_chunk && !may_pipeline)
		sink_smtp_error(s, SINK_ERR_PIPELINED);
	verb->run(s, line + arg, len - arg);
}

/* Lines that no MTA should have to guess about are refused. */
static bool refuse_line(struct sink_session *s, const char *line, size_t len,
			bool has_cr)
{
	enum sink_error error = SINK_ERRORS;

	if (!has_cr)
		error = SINK_ERR_BARE_LF;
	else if (memchr(line, '\0', len) != NULL)
		error = SINK_ERR_NUL;
	else if (memchr(line, '\r', len) != NULL)
		error = SINK_ERR_BARE_CR;
	if (error == SINK_ERRORS)
		return false;
	sink_smtp_error(s, error);
	sink_smtp_say(s, "500 5.5.2 Error: bad line ending or character");
	return true;
}

/* One command line.  Returns the octets it took, 0 if there is no whole one. */
static size_t take_command(struct sink_session *s, const char *buf, size_t len)
{
	const char *lf = memchr(buf, '\n', len);
	size_t n = lf == NULL ? len : (size_t)(lf - buf) + 1;

	if (lf == NULL && !s->skip_line && len < SINK_LINE_MAX)
		return 0;
	if (s->skip_line || n > SINK_LINE_MAX || lf == NULL) {
		if (!s->skip_line)
			sink_smtp_error(s, SINK_ERR_LINE_LONG);
		s->skip_line = lf == NULL;
		if (!s->skip_line)
			sink_smtp_say(s, "500 5.5.2 Error: line too long");
		return n;
	}
	bool has_cr = n >= 2 && buf[n - 2] == '\r';
	size_t line_len = n - (has_cr ? 2 : 1);

	log_line(s, '>', buf, line_len);
	if (refuse_line(s, buf, line_len, has_cr))
		s->login_due = SINK_LOGIN_NONE;
	else if (s->login_due != SINK_LOGIN_NONE)
		sink_login_line(s, buf, line_len);
	else
		run_line(s, buf, line_len, n < len);
	if (s->state != SINK_DEAD && !s->closing && s->errors > 0 &&
	    s->errors >= s->mta->errors_max)
		sink_smtp_say(s, "421 4.7.0 %s Error: too many errors",
			      s->mta->name);
	return n;
}

/* Content goes to the message, unless the MTA dies of it. */
static void put(struct sink_session *s, const char *buf, size_t len)
{
	struct sink_mta *mta = s->mta;

	if (len == 0 || s->state == SINK_DEAD)
		return;
	sink_message_put(s, buf, len);
	if (!s->die_in_body || s->message->octets < mta->die_octets)
		return;
	mta->stats.deaths++;
	sink_session_kill(s, mta->die_how);
}

/*
 * Text up to the end of a line.  Returns its octets and moves the state; it
 * counts line ends that are not CRLF but leaves them as they are.
 */
static size_t scan_text(struct sink_session *s, const char *buf, size_t len)
{
	const char *lf = memchr(buf, '\n', len);
	size_t n = lf == NULL ? len : (size_t)(lf - buf) + 1;
	bool had_cr = s->last_cr;

	/* A CR in front of this piece must be followed by the LF at once. */
	if (had_cr && buf[0] != '\n')
		sink_smtp_error(s, SINK_ERR_BARE_CR);
	size_t plain_len = lf == NULL ? n : n - 1;
	bool ends_in_cr = plain_len > 0 ? buf[plain_len - 1] == '\r' : had_cr;
	size_t checked = plain_len > 0 && ends_in_cr ? plain_len - 1
						     : plain_len;

	for (const char *at = buf;
	     (at = memchr(at, '\r', checked - (size_t)(at - buf))) != NULL;
	     at++)
		sink_smtp_error(s, SINK_ERR_BARE_CR);
	s->last_cr = lf == NULL && ends_in_cr;
	if (lf != NULL && ends_in_cr)
		s->dot = SINK_DOT_LINE;
	else if (lf != NULL)
		sink_smtp_error(s, SINK_ERR_BARE_LF);
	return n;
}

/* A read of a body: octets before `start` are put, before `pos` are seen. */
struct scan {
	const char *buf;
	size_t len, pos, start;
};

/* At the start of a line, or behind a dot there.  True: the end was found. */
static bool take_dot(struct sink_session *s, struct scan *at)
{
	char c = at->buf[at->pos];
	enum sink_dot dot = s->dot;

	s->dot = SINK_DOT_TEXT;
	if (dot == SINK_DOT_LINE && c == '.') {
		put(s, at->buf + at->start, at->pos - at->start);
		s->dot = SINK_DOT_ONE;
		at->start = ++at->pos;
	} else if (dot == SINK_DOT_ONE && c == '\r') {
		s->dot = SINK_DOT_CR;
		at->start = ++at->pos;
	} else if (dot == SINK_DOT_CR && c == '\n') {
		at->pos++;
		return true;
	} else if (dot == SINK_DOT_CR) { /* the CR was text, after all */
		put(s, "\r", 1);
		s->last_cr = true;
		at->start = at->pos;
	}
	return false;
}

/* DATA: only CRLF.CRLF ends it (RFC 5321, section 4.1.1.4). */
static size_t take_body(struct sink_session *s, const char *buf, size_t len)
{
	struct scan at = { .buf = buf, .len = len };

	while (at.pos < at.len && s->state == SINK_BODY) {
		if (s->dot == SINK_DOT_TEXT) {
			at.pos += scan_text(s, buf + at.pos, len - at.pos);
			continue;
		}
		if (take_dot(s, &at)) {
			end_message(s);
			return at.pos;
		}
	}
	if (s->state == SINK_BODY)
		put(s, buf + at.start, at.pos - at.start);
	return at.pos;
}

static size_t take_chunk(struct sink_session *s, const char *buf, size_t len)
{
	size_t n = len < s->chunk_left ? len : (size_t)s->chunk_left;

	if (!s->chunk_ignored)
		put(s, buf, n);
	if (s->state == SINK_DEAD)
		return n;
	s->chunk_left -= n;
	if (s->chunk_left > 0)
		return n;
	end_chunk(s);
	if (n < len && s->state != SINK_DEAD && !s->mta->pipelining)
		sink_smtp_error(s, SINK_ERR_PIPELINED);
	return n;
}

size_t sink_smtp_input(struct sink_session *s, const char *buf, size_t len)
{
	size_t pos = 0;

	while (pos < len && !sink_session_is_stopped(s)) {
		size_t n = 0;

		switch (s->state) {
		case SINK_COMMAND:
			n = take_command(s, buf + pos, len - pos);
			break;
		case SINK_BODY:
			n = take_body(s, buf + pos, len - pos);
			break;
		case SINK_CHUNK:
			n = take_chunk(s, buf + pos, len - pos);
			break;
		case SINK_WAITING:
		case SINK_DRAIN:
		case SINK_DEAD:
			return len;
		}
		if (n == 0)
			break;
		pos += n;
	}
	return pos;
}
