#include <assert.h>
#include <err.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load.h"

struct load_login {
	char *plain; /* all are base64, and owned */
	char *steps[2];
};

static char *encode(const char *text, size_t len)
{
	char *out = malloc((len + 2) / 3 * 4 + 1);

	if (out == NULL)
		err(1, "out of memory");
	(void)EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)text,
			      (int)len);
	return out;
}

struct load_login *load_login_new(const char *auth)
{
	const char *colon = strchr(auth, ':');
	size_t len = strlen(auth);
	struct load_login *login = calloc(1, sizeof(*login));
	char *text = malloc(len + 1);

	assert(colon != NULL);
	if (login == NULL || text == NULL)
		err(1, "out of memory");
	size_t user_len = (size_t)(colon - auth);

	/* NUL user NUL password (RFC 4616, section 2) */
	text[0] = '\0';
	memcpy(text + 1, auth, len);
	text[1 + user_len] = '\0';
	login->plain = encode(text, len + 1);
	login->steps[0] = encode(auth, user_len);
	login->steps[1] = encode(colon + 1, len - user_len - 1);
	free(text);
	return login;
}

void load_login_free(struct load_login **login)
{
	struct load_login *l = *login;

	if (l == NULL)
		return;
	free(l->plain);
	free(l->steps[0]);
	free(l->steps[1]);
	free(l);
	*login = NULL;
}

const char *load_login_plain(const struct load_login *login)
{
	return login->plain;
}

const char *load_login_step(const struct load_login *login, unsigned step)
{
	assert(step < 2);
	return login->steps[step];
}
