#include <err.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sink_session.h"

/*
 * XCLIENT, as Postfix documents it: a proxy says who its client is, and the
 * session starts again.  Commands add up: the last value of a name counts.
 */

enum {
	ATTRIBUTES = 8,
	VALUE_MAX = SINK_LOGIN_MAX, /* so that a LOGIN fits */
};

static const char *const names[ATTRIBUTES] = {
	"NAME", "ADDR",  "PORT",     "PROTO",
	"HELO", "LOGIN", "DESTADDR", "DESTPORT",
};

struct sink_identity {
	bool given[ATTRIBUTES];
	char value[ATTRIBUTES][VALUE_MAX + 1]; /* decoded, no NUL within */
};

static bool digit_of(char c, unsigned *value)
{
	static const char digits[] = "0123456789ABCDEFabcdef";
	const char *at = c == '\0' ? NULL : strchr(digits, c);

	if (at == NULL)
		return false;
	*value = (unsigned)(at - digits);
	if (*value > 15)
		*value -= 6;
	return true;
}

/* xtext: "+XX" is an octet (RFC 3461, section 4). */
static bool decode(const char *text, size_t len, char out[VALUE_MAX + 1])
{
	size_t used = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned high = 0, low = 0;

		if (used == VALUE_MAX)
			return false;
		if (text[i] != '+') {
			out[used++] = text[i];
			continue;
		}
		if (len - i < 3 || !digit_of(text[i + 1], &high) ||
		    !digit_of(text[i + 2], &low) || high + low == 0)
			return false;
		out[used++] = (char)(unsigned char)(high * 16 + low);
		i += 2;
	}
	out[used] = '\0';
	return used > 0;
}

/* One NAME=value.  False: it is none that was offered. */
static bool take(struct sink_identity *to, const char *word, size_t len)
{
	const char *equals = memchr(word, '=', len);
	size_t name_len = equals == NULL ? 0 : (size_t)(equals - word);

	for (size_t i = 0; i < ATTRIBUTES && name_len > 0; i++) {
		if (strlen(names[i]) != name_len ||
		    strncasecmp(names[i], word, name_len) != 0)
			continue;
		to->given[i] = true;
		return decode(equals + 1, len - name_len - 1, to->value[i]);
	}
	return false;
}

static bool take_all(struct sink_identity *to, const char *arg, size_t len)
{
	size_t pos = 0;

	while (pos < len) {
		const char *blank = memchr(arg + pos, ' ', len - pos);
		size_t end = blank == NULL ? len : (size_t)(blank - arg);

		if (!take(to, arg + pos, end - pos))
			return false;
		pos = end + 1;
	}
	return len > 0;
}

/* LOGIN stands for an AUTH that the proxy has seen. */
static void take_login(struct sink_session *s)
{
	const struct sink_identity *id = s->identity;

	for (size_t i = 0; i < ATTRIBUTES; i++) {
		if (strcmp(names[i], "LOGIN") == 0 && id->given[i] &&
		    id->value[i][0] != '[')
			memcpy(s->login, id->value[i], sizeof(s->login));
	}
}

void sink_xclient_command(struct sink_session *s, const char *arg, size_t len)
{
	const struct sink_mta *mta = s->mta;
	struct sink_identity next = { 0 };

	if (!mta->xclient || !s->esmtp) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
		return;
	}
	if (s->message != NULL) {
		sink_smtp_error(s, SINK_ERR_SEQUENCE);
		sink_smtp_say(s, "503 5.5.1 Error: in a mail transaction");
		return;
	}
	if (s->identity != NULL)
		next = *s->identity;
	if (!take_all(&next, arg, len)) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "501 5.5.4 Bad XCLIENT attribute");
		return;
	}
	if (!sink_smtp_answer(s, SINK_XCLIENT, "220 %s %s", mta->name,
			      mta->banner))
		return;
	if (s->identity == NULL)
		s->identity = malloc(sizeof(*s->identity));
	if (s->identity == NULL)
		err(1, "out of memory");
	*s->identity = next;
	s->mta->stats.xclients++;
	sink_smtp_forget(s);
	take_login(s);
}

void sink_xclient_print(const struct sink_session *s, FILE *out)
{
	const char *comma = "";

	if (s->identity == NULL)
		return;
	fputs(", \"xclient\": {", out);
	for (size_t i = 0; i < ATTRIBUTES; i++) {
		const char *value = s->identity->value[i];

		if (!s->identity->given[i])
			continue;
		fprintf(out, "%s\"%s\": ", comma, names[i]);
		sink_message_put_json(out, value, strlen(value));
		comma = ", ";
	}
	fputc('}', out);
}

void sink_xclient_store(const struct sink_session *s, FILE *out)
{
	for (size_t i = 0; s->identity != NULL && i < ATTRIBUTES; i++) {
		if (!s->identity->given[i])
			continue;
		fprintf(out, "xclient: %s=", names[i]);
		sink_message_put_json(out, s->identity->value[i],
				      strlen(s->identity->value[i]));
		fputc('\n', out);
	}
}

void sink_xclient_free(struct sink_identity **identity)
{
	free(*identity);
	*identity = NULL;
}
