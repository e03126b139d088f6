#include <openssl/evp.h>
#include <string.h>

#include "tests/sink_session.h"

/*
 * AUTH PLAIN (RFC 4616) and LOGIN (never a standard, and everywhere), with or
 * without an initial response (RFC 4954).
 */

enum {
	BASE64_MAX = 2048,
	DECODED_MAX = BASE64_MAX / 4 * 3,
};

struct mechanism {
	const char *name;
	enum sink_login first;
	const char *challenge;
};

static const struct mechanism mechanisms[] = {
	{ "PLAIN", SINK_LOGIN_PLAIN, "" },
	{ "LOGIN", SINK_LOGIN_USER, "VXNlcm5hbWU6" }, /* "Username:" */
};

static const char password_challenge[] = "UGFzc3dvcmQ6"; /* "Password:" */

static void challenge(struct sink_session *s, const char *text)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "334 %s\r\n", text);

	sink_session_say(s, line, (size_t)n, 0);
}

static void refuse_syntax(struct sink_session *s, const char *why)
{
	s->login_due = SINK_LOGIN_NONE;
	sink_smtp_error(s, SINK_ERR_SYNTAX);
	sink_smtp_say(s, "501 5.5.2 %s", why);
}

/* False: it is no base64, or too much of it. */
static bool decode(const char *text, size_t len, char *out, size_t *out_len)
{
	size_t padding = 0;

	if (len % 4 != 0 || len > BASE64_MAX)
		return false;
	while (padding < 2 && padding < len && text[len - 1 - padding] == '=')
		padding++;
	int n = EVP_DecodeBlock((unsigned char *)out,
				(const unsigned char *)text, (int)len);

	if (n < 0 || (size_t)n < padding)
		return false;
	*out_len = (size_t)n - padding;
	return true;
}

/* Whether USER:PASSWORD of the MTA are these two. */
static bool is_known(const struct sink_mta *mta, const char *user,
		     const char *password, size_t password_len)
{
	size_t user_len = strlen(user);
	const char *want = mta->auth;

	return strncmp(want, user, user_len) == 0 && want[user_len] == ':' &&
	       strlen(want + user_len + 1) == password_len &&
	       memcmp(want + user_len + 1, password, password_len) == 0;
}

static void decide(struct sink_session *s, const char *password, size_t len)
{
	struct sink_mta *mta = s->mta;
	bool good = is_known(mta, s->login_user, password, len);

	s->login_due = SINK_LOGIN_NONE;
	if (!sink_smtp_answer(s, SINK_AUTH,
			      good ? "235 2.7.0 Authentication successful"
				   : "535 5.7.8 Authentication failed")) {
		mta->stats.login_errors++;
		return;
	}
	mta->stats.logins++;
	memcpy(s->login, s->login_user, sizeof(s->login));
}

static bool keep_user(struct sink_session *s, const char *user, size_t len)
{
	if (len > SINK_LOGIN_MAX || memchr(user, '\0', len) != NULL)
		return false;
	memcpy(s->login_user, user, len);
	s->login_user[len] = '\0';
	return true;
}

/* [authorization identity] NUL user NUL password */
static void take_plain(struct sink_session *s, const char *text, size_t len)
{
	const char *user = memchr(text, '\0', len);
	const char *end = text + len;
	const char *nul = user == NULL ? NULL
				       : memchr(user + 1, '\0',
						(size_t)(end - user - 1));

	if (nul == NULL || !keep_user(s, user + 1, (size_t)(nul - user - 1)))
		refuse_syntax(s, "Not a PLAIN response");
	else
		decide(s, nul + 1, (size_t)(end - nul - 1));
}

void sink_login_line(struct sink_session *s, const char *line, size_t len)
{
	char text[DECODED_MAX + 1];
	size_t text_len = 0;

	if (len == 1 && line[0] == '*') {
		s->login_due = SINK_LOGIN_NONE;
		sink_smtp_say(s, "501 5.7.0 Authentication cancelled");
		return;
	}
	if (!decode(line, len, text, &text_len)) {
		refuse_syntax(s, "Not base64");
		return;
	}
	switch (s->login_due) {
	case SINK_LOGIN_PLAIN:
		take_plain(s, text, text_len);
		return;
	case SINK_LOGIN_USER:
		if (!keep_user(s, text, text_len)) {
			refuse_syntax(s, "Not a user's name");
			return;
		}
		s->login_due = SINK_LOGIN_PASSWORD;
		challenge(s, password_challenge);
		return;
	case SINK_LOGIN_PASSWORD:
		decide(s, text, text_len);
		return;
	case SINK_LOGIN_NONE:
		return;
	}
}

static const struct mechanism *find(const char *name, size_t len)
{
	for (size_t i = 0; i < sizeof(mechanisms) / sizeof(mechanisms[0]);
	     i++) {
		if (strlen(mechanisms[i].name) == len &&
		    strncasecmp(mechanisms[i].name, name, len) == 0)
			return &mechanisms[i];
	}
	return NULL;
}

static void refuse_sequence(struct sink_session *s, const char *why)
{
	sink_smtp_error(s, SINK_ERR_SEQUENCE);
	sink_smtp_say(s, "503 5.5.1 Error: %s", why);
}

void sink_login_command(struct sink_session *s, const char *arg, size_t len)
{
	const char *blank = memchr(arg, ' ', len);
	size_t name_len = blank == NULL ? len : (size_t)(blank - arg);
	const struct mechanism *m = find(arg, name_len);

	if (s->mta->auth == NULL || !s->esmtp) {
		sink_smtp_error(s, SINK_ERR_UNKNOWN);
		sink_smtp_say(s, "500 5.5.1 Command unrecognized");
		return;
	}
	if (s->login[0] != '\0' || s->message != NULL) {
		refuse_sequence(s, s->message != NULL
					   ? "in a mail transaction"
					   : "already authenticated");
		return;
	}
	if (m == NULL) {
		sink_smtp_error(s, SINK_ERR_SYNTAX);
		sink_smtp_say(s, "504 5.5.4 Unrecognized authentication type");
		return;
	}
	s->login_due = m->first;
	if (blank == NULL)
		challenge(s, m->challenge);
	else if (len == name_len + 2 && blank[1] == '=') /* an empty one */
		sink_login_line(s, "", 0);
	else
		sink_login_line(s, blank + 1, len - name_len - 1);
}
