#include "tests/sim/sim_auth.h"

#include <assert.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim_check.h"

enum { RAW_MAX = 200, LINES_MAX = 3 };

#define SECRET "SECRET"
#define CODED  "U0VDUkVU" /* the same in base64, where it begins a group */

/* A line of a client's: what stands around the mark and the secret. */
struct shape {
	bool coded;       /* there is a response */
	const char *head; /* in front of the mark; '^' is \1, '$' is \0 */
	const char *tail; /* behind the secret */
	char join;        /* between them */
};

struct dialogue {
	const char *name;
	bool initial; /* the first shape stands in the line of AUTH */
	unsigned lines;
	struct shape shapes[LINES_MAX];
	const char *challenges[LINES_MAX];
	unsigned asks, asks_refused;
};

/* "Username:", "Password:"; the other ones are as long as real ones. */
#define USER_ASKED "VXNlcm5hbWU6"
#define PASS_ASKED "UGFzc3dvcmQ6"
#define CRAM_ASKED "PDE4OTYuNjk3MTcwOTUyQGIudGVzdD4="
#define SCRAM_ASKED                                                            \
	"cj1meWtvLGQ9M3JmY05ITEosWnM9UVNYQ1IrUTZzZWs4YmY5MixpPTQwOTY="
#define SCRAM_PROOF "dj1ybUY5cHFWOFM3c3VBb1pXamE0ZEpSa0Zzcz0="
#define JSON_ERROR  "eyJzdGF0dXMiOiI0MDEifQ=="

static const struct dialogue dialogues[SIM_AUTH_WAYS] = {
	[SIM_AUTH_PLAIN] = {
		.name = "PLAIN",
		.initial = true,
		.lines = 1,
		.shapes = { { true, "$", "", '$' } },
	},
	[SIM_AUTH_PLAIN_LATER] = {
		.name = "PLAIN",
		.lines = 1,
		.shapes = { { true, "$", "", '$' } },
		.challenges = { "" },
		.asks = 1,
		.asks_refused = 1,
	},
	[SIM_AUTH_LOGIN] = {
		.name = "LOGIN",
		.lines = 2,
		.shapes = { { true, "", "", '.' }, { true, "", "", '.' } },
		.challenges = { USER_ASKED, PASS_ASKED },
		.asks = 2,
		.asks_refused = 2,
	},
	[SIM_AUTH_XOAUTH2] = {
		.name = "XOAUTH2",
		.initial = true,
		.lines = 2,
		.shapes = { { true, "user=", "^^", '^' },
			    { false, "", "", 0 } },
		.challenges = { JSON_ERROR },
		.asks_refused = 1,
	},
	[SIM_AUTH_OAUTHBEARER] = {
		.name = "OAUTHBEARER",
		.initial = true,
		.lines = 2,
		.shapes = { { true, "n,a=", "^^", '^' },
			    { false, "AQ==", "", 0 } },
		.challenges = { JSON_ERROR },
		.asks_refused = 1,
	},
	[SIM_AUTH_CRAM] = {
		.name = "CRAM-MD5",
		.lines = 1,
		.shapes = { { true, "", "", ' ' } },
		.challenges = { CRAM_ASKED },
		.asks = 1,
		.asks_refused = 1,
	},
	[SIM_AUTH_SCRAM] = {
		.name = "SCRAM-SHA-1",
		.initial = true,
		.lines = 3,
		.shapes = { { true, "n,,n=", "", ',' },
			    { true, "c=biws,r=", "", ',' },
			    { false, "", "", 0 } },
		.challenges = { SCRAM_ASKED, SCRAM_PROOF },
		.asks = 2,
		.asks_refused = 1,
	},
	[SIM_AUTH_SCRAM_256] = {
		.name = "SCRAM-SHA-256",
		.initial = true,
		.lines = 3,
		.shapes = { { true, "n,,n=", "", ',' },
			    { true, "c=biws,r=", "", ',' },
			    { false, "", "", 0 } },
		.challenges = { SCRAM_ASKED, SCRAM_PROOF },
		.asks = 2,
		.asks_refused = 1,
	},
};

static const struct dialogue *dialogue_of(enum sim_auth_way way)
{
	assert(way > SIM_AUTH_NONE);
	assert(way < SIM_AUTH_WAYS);
	return &dialogues[way];
}

const char *sim_auth_name(enum sim_auth_way way)
{
	return way == SIM_AUTH_NONE ? "" : dialogue_of(way)->name;
}

static size_t put(unsigned char *raw, size_t at, const char *text)
{
	for (; *text != '\0'; text++) {
		assert(at < RAW_MAX);
		if (*text == '^')
			raw[at++] = 1;
		else
			raw[at++] = *text == '$' ? 0 : (unsigned char)*text;
	}
	return at;
}

/* The secret begins a group of three octets, so base64 has it as CODED. */
static void encode(const struct shape *s, unsigned client, char *line)
{
	const char join[2] = { s->join, '\0' };
	unsigned char raw[RAW_MAX + 1];
	char mark[CHECK_MARK_MAX];
	size_t at = put(raw, 0, s->head);

	snprintf(mark, sizeof(mark), "c%u.m0", client);
	at = put(raw, at, mark);
	while ((at + 1) % 3 != 0)
		at = put(raw, at, "x");
	at = put(raw, at, join);
	at = put(raw, at, SECRET);
	at = put(raw, at, s->tail);
	(void)EVP_EncodeBlock((unsigned char *)line, raw, (int)at);
	assert(strstr(line, CODED) != NULL);
}

static void say_shape(const struct shape *s, unsigned client, char *line)
{
	if (s->coded)
		encode(s, client, line);
	else
		strncpy(line, s->head, SIM_AUTH_LINE_MAX - 1);
}

bool sim_auth_say(enum sim_auth_way way, unsigned client, unsigned number,
		  char line[SIM_AUTH_LINE_MAX])
{
	const struct dialogue *d = dialogue_of(way);
	int n;

	memset(line, 0, SIM_AUTH_LINE_MAX);
	if (number > 0 && number - 1 + d->initial >= d->lines)
		return false;
	if (number > 0) {
		say_shape(&d->shapes[number - 1 + d->initial], client, line);
		return true;
	}
	n = snprintf(line, SIM_AUTH_LINE_MAX, "AUTH %s%s", d->name,
		     d->initial ? " " : "");
	if (d->initial)
		say_shape(&d->shapes[0], client, line + n);
	return true;
}

unsigned sim_auth_challenges(enum sim_auth_way way, bool refused)
{
	const struct dialogue *d = dialogue_of(way);

	return refused ? d->asks_refused : d->asks;
}

const char *sim_auth_challenge(enum sim_auth_way way, unsigned number)
{
	assert(number < LINES_MAX);
	return dialogue_of(way)->challenges[number];
}

enum sim_auth_way sim_auth_way_of(const char *arg)
{
	size_t len = strcspn(arg, " ");
	bool initial = arg[len] == ' ';

	for (unsigned i = SIM_AUTH_NONE + 1; i < SIM_AUTH_WAYS; i++) {
		const struct dialogue *d = &dialogues[i];

		if (strlen(d->name) == len && d->initial == initial &&
		    strncasecmp(d->name, arg, len) == 0)
			return (enum sim_auth_way)i;
	}
	return SIM_AUTH_NONE;
}

bool sim_auth_is_marked(enum sim_auth_way way, unsigned number)
{
	const struct dialogue *d = dialogue_of(way);
	unsigned at = number - !d->initial;

	if (number == 0 && !d->initial)
		return false;
	return at < d->lines && d->shapes[at].coded;
}

bool sim_auth_client(const char *line, unsigned *client)
{
	unsigned char raw[SIM_AUTH_LINE_MAX];
	size_t len = strlen(line);
	unsigned number;

	if (len == 0 || len % 4 != 0 || len >= sizeof(raw))
		return false;
	int n = EVP_DecodeBlock(raw, (const unsigned char *)line, (int)len);
	return n > 0 &&
	       check_mark_read((const char *)raw, (size_t)n, client, &number);
}

bool sim_auth_leaks(const char *text, size_t len)
{
	return memmem(text, len, SECRET, sizeof(SECRET) - 1) != NULL ||
	       memmem(text, len, CODED, sizeof(CODED) - 1) != NULL;
}
