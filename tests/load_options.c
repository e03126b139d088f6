#include <arpa/inet.h>
#include <err.h>
#include <getopt.h>
#include <math.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load_find.h"
#include "tests/quantity.h"

enum {
	BDAT_CHUNK_MIN = 2048, /* the header must fit into the first one */
	ADDRESS_MAX = 254,     /* RFC 5321, section 4.5.3.1.3 */
};

static const char usage_text[] =
	"usage: weir-load [options] HOST:PORT\n"
	"\n"
	"Sends mail from many clients at once and tells how the server took\n"
	"it: latencies of each phase, reply codes, how sessions ended, and\n"
	"which messages were acknowledged.\n"
	"\n"
	"How much\n"
	"  -c, --sessions N        sessions open at once (1); with --rate, at\n"
	"                          most so many (as the open files allow)\n"
	"  -r, --rate N            start N sessions a second, whatever the\n"
	"                          server does; N/m and N/h also\n"
	"      --arrivals HOW      with --rate: poisson (default) or uniform\n"
	"  -n, --total N           end after N sessions (1, or no limit with\n"
	"                          --duration)\n"
	"  -d, --duration D        begin nothing new after D, such as 30s\n"
	"  -m, --messages N        messages in a session (1)\n"
	"  -R, --recipients N      recipients of a message (1)\n"
	"  -s, --size N[-N]        octets of a body, such as 4K or 1K-100K (4K)\n"
	"      --think D[-D]       pause between a session's messages (none)\n"
	"      --pause D           closed loop: a client comes again after D, not\n"
	"                          at once\n"
	"      --idle N            N more sessions that only say EHLO and stay\n"
	"\n"
	"How many it takes\n"
	"      --find-limit        offer more and more sessions at once until\n"
	"                          some are refused or slow; tell how many the\n"
	"                          server takes, and how many messages a second\n"
	"      --max-sessions N    not more than so many (1000)\n"
	"      --max-time D        not longer (5m)\n"
	"      --step D            measure each number so long (2s)\n"
	"      --band F[+D]        slow: p99 of a session is above F times the\n"
	"                          median of one alone, and D more (4+100ms)\n"
	"      --ascii             draw with # where the locale has blocks\n"
	"\n"
	"From where, to whom\n"
	"      --sources N         from N addresses, 127.1.0.0 upward\n"
	"      --source-range CIDR from the addresses of an IPv4 network\n"
	"      --from ADDRESS      sender (sender@load.test)\n"
	"      --to ADDRESS        recipient; repeat it for --recipients; those\n"
	"                          beyond are rcptN.ADDRESS (rcpt@load.test)\n"
	"      --helo NAME         (client.load.test)\n"
	"\n"
	"By TLS, and as whom\n"
	"      --starttls          after EHLO, STARTTLS\n"
	"      --tls               from the first octet on\n"
	"      --tls-version V     1.2 or 1.3 (the best there is)\n"
	"      --sni NAME          ask for this name's certificate\n"
	"      --resume[=PERCENT]  so many sessions resume an earlier one (0;\n"
	"                          without a number, 100)\n"
	"      --handshakes N      N sessions that say QUIT as soon as TLS is\n"
	"                          there; with --rate or --sessions as usual\n"
	"      --storm             all of them at once\n"
	"      --auth USER:PASSWORD\n"
	"                          AUTH PLAIN, or LOGIN, in each session\n"
	"\n"
	"How well they behave\n"
	"      --pipelining HOW    yes, no, auto: if it is offered (auto)\n"
	"      --bdat[=SIZE]       BDAT in place of DATA if CHUNKING is offered;\n"
	"                          in chunks of SIZE, or all in one\n"
	"      --slow PERCENT[:D]  so many send an octet every D (100ms)\n"
	"      --body-time D[-D]   send a message evenly over so long, after 354\n"
	"      --abort STAGE:PERCENT\n"
	"                          so many reset the connection at connect,\n"
	"                          greeting, ehlo, starttls, tls (in mid-\n"
	"                          handshake), auth, mail, rcpt, data (after\n"
	"                          354), body (in its middle), eod (when all is\n"
	"                          sent), quit; may be repeated\n"
	"      --timeout D         for a reply (60s)\n"
	"      --seed N            the same seed makes the same messages\n"
	"\n"
	"Report\n"
	"  -j, --json FILE         also as JSON; \"-\": that in place of tables\n"
	"      --journal FILE      \"ID SHA256\" of each acknowledged message\n"
	"      --per-source        also for each source address\n"
	"  -q, --quiet             no tables, no progress\n"
	"  -h, --help              this text\n"
	"\n";

static const char usage_more[] =
	"Every message has an X-Test-Id.  \"combined\" is the sum of SHA-256 over\n"
	"id and body of all acknowledged messages; weir-sink prints the same of\n"
	"those that it stored: equal means nothing was lost, none came twice.\n"
	"The whole session is timed from when it was due, so that a server\n"
	"which makes others wait does not look fast.\n"
	"\n"
	"How many sessions a second do my servers take?  Raise --rate until p99\n"
	"of \"session\" or the refusals rise:\n"
	"  weir-load --rate 200 --duration 30s --size 1K-100K --sources 500 \\\n"
	"      mail.example.test:25\n"
	"How many at once?\n"
	"  weir-load --find-limit --sources 500 mail.example.test:25\n"
	"Do they take 500?\n"
	"  weir-load --sessions 500 --duration 30s --think 1s --messages 5 \\\n"
	"      mail.example.test:25\n"
	"Does mail still flow beside 5000 idle clients, some slow ones, and\n"
	"some that vanish?\n"
	"  weir-load --idle 5000 --sessions 50 --duration 60s --slow 5% \\\n"
	"      --abort data:2 --abort body:2 --sources 200 mail.example.test:25\n"
	"\n"
	"Exit status: 0 all as asked, 1 bad usage or cannot start, 2 some\n"
	"sessions failed.  Send mail only to servers that are yours.\n";

static bool read_rate(const char *text, double *out)
{
	char *end = NULL;
	double rate = strtod(text, &end);

	if (end == text || !isfinite(rate) || rate <= 0 || rate > 1e6)
		return false;
	if (strcmp(end, "/m") == 0)
		rate /= 60;
	else if (strcmp(end, "/h") == 0)
		rate /= 3600;
	else if (*end != '\0' && strcmp(end, "/s") != 0)
		return false;
	*out = rate;
	return true;
}

/* "4" or "4+100ms". */
static bool read_band(struct load_find_options *f, const char *text)
{
	char *end = NULL;

	f->band_factor = strtod(text, &end);
	if (end == text || !isfinite(f->band_factor) || f->band_factor < 1)
		return false;
	f->band_extra_ms = 0;
	return *end == '\0' ||
	       (*end == '+' && quantity_duration(end + 1, &f->band_extra_ms));
}

static bool read_choice(const char *text, enum load_choice *out)
{
	if (strcmp(text, "yes") == 0)
		*out = LOAD_YES;
	else if (strcmp(text, "no") == 0)
		*out = LOAD_NO;
	else if (strcmp(text, "auto") == 0)
		*out = LOAD_AUTO;
	else
		return false;
	return true;
}

static bool read_abort(struct load_options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon == NULL)
		return false;
	*colon = '\0';
	for (unsigned p = 0; p < LOAD_SESSION; p++) {
		if (p == LOAD_RSET || p == LOAD_MESSAGE ||
		    strcmp(text, load_report_phase_name((enum load_phase)p)) !=
			    0)
			continue;
		return quantity_percent(colon + 1, &o->abort_percent[p]);
	}
	return false;
}

static bool read_slow(struct load_options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon != NULL) {
		*colon = '\0';
		if (!quantity_duration(colon + 1, &o->slow_ms) ||
		    o->slow_ms == 0)
			return false;
	}
	return quantity_percent(text, &o->slow_percent);
}

static bool read_range(struct load_options *o, char *text)
{
	char *slash = strchr(text, '/');
	uint64_t bits = 32;
	struct in_addr in;

	if (slash != NULL) {
		*slash = '\0';
		if (!quantity_count(slash + 1, 32, &bits) || bits == 0)
			return false;
	}
	if (inet_pton(AF_INET, text, &in) != 1)
		return false;
	uint64_t count = UINT64_C(1) << (32 - bits);

	o->source_first = ntohl(in.s_addr) & ~(uint32_t)(count - 1);
	o->source_count = count;
	return true;
}

/* No octet that could end a command line, nor the path. */
static bool is_address(const char *text)
{
	size_t len = strlen(text);

	if (len > ADDRESS_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] <= ' ' || text[i] == '<' || text[i] == '>')
			return false;
	}
	return true;
}

static bool read_to(struct load_options *o, const char *text)
{
	if (!is_address(text) || *text == '\0' || o->to_count == LOAD_TO_MAX)
		return false;
	o->to[o->to_count++] = text;
	return true;
}

static bool read_version(struct load_options *o, const char *text)
{
	if (strcmp(text, "1.2") == 0)
		o->tls_version = TLS1_2_VERSION;
	else if (strcmp(text, "1.3") == 0)
		o->tls_version = TLS1_3_VERSION;
	else
		return false;
	return true;
}

/* Each name and password goes into one line of base64. */
static bool read_auth(struct load_options *o, const char *text)
{
	const char *colon = strchr(text, ':');

	o->auth = text;
	return colon != NULL && colon != text && strlen(text) <= ADDRESS_MAX;
}

static bool read_target(struct load_options *o, const char *text)
{
	const char *colon = strrchr(text, ':');
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	char host[256];

	if (colon == NULL || colon == text || strchr(text, '"') != NULL ||
	    (size_t)(colon - text) >= sizeof(host))
		return false;
	size_t len = (size_t)(colon - text);

	if (text[0] == '[' && text[len - 1] == ']') {
		text++;
		len -= 2;
	}
	memcpy(host, text, len);
	host[len] = '\0';
	if (o->source_count > 0)
		hints.ai_family = AF_INET;
	int error = getaddrinfo(host, colon + 1, &hints, &found);

	if (error != 0)
		errx(1, "%s: %s", text, gai_strerror(error));
	memcpy(&o->target, found->ai_addr, found->ai_addrlen);
	o->target_len = found->ai_addrlen;
	freeaddrinfo(found);
	return true;
}

enum option_code {
	OPT_ARRIVALS = 256,
	OPT_THINK,
	OPT_PAUSE,
	OPT_IDLE,
	OPT_SOURCES,
	OPT_SOURCE_RANGE,
	OPT_FROM,
	OPT_TO,
	OPT_HELO,
	OPT_PIPELINING,
	OPT_BDAT,
	OPT_SLOW,
	OPT_BODY_TIME,
	OPT_ABORT,
	OPT_TIMEOUT,
	OPT_SEED,
	OPT_JOURNAL,
	OPT_PER_SOURCE,
	OPT_STARTTLS,
	OPT_TLS,
	OPT_TLS_VERSION,
	OPT_SNI,
	OPT_RESUME,
	OPT_HANDSHAKES,
	OPT_STORM,
	OPT_AUTH,
	OPT_FIND_LIMIT,
	OPT_MAX_SESSIONS,
	OPT_MAX_TIME,
	OPT_STEP,
	OPT_BAND,
	OPT_ASCII,
};

static const struct option longs[] = {
	{ "sessions", required_argument, NULL, 'c' },
	{ "rate", required_argument, NULL, 'r' },
	{ "arrivals", required_argument, NULL, OPT_ARRIVALS },
	{ "total", required_argument, NULL, 'n' },
	{ "duration", required_argument, NULL, 'd' },
	{ "messages", required_argument, NULL, 'm' },
	{ "recipients", required_argument, NULL, 'R' },
	{ "size", required_argument, NULL, 's' },
	{ "think", required_argument, NULL, OPT_THINK },
	{ "pause", required_argument, NULL, OPT_PAUSE },
	{ "idle", required_argument, NULL, OPT_IDLE },
	{ "sources", required_argument, NULL, OPT_SOURCES },
	{ "source-range", required_argument, NULL, OPT_SOURCE_RANGE },
	{ "from", required_argument, NULL, OPT_FROM },
	{ "to", required_argument, NULL, OPT_TO },
	{ "helo", required_argument, NULL, OPT_HELO },
	{ "pipelining", required_argument, NULL, OPT_PIPELINING },
	{ "bdat", optional_argument, NULL, OPT_BDAT },
	{ "slow", required_argument, NULL, OPT_SLOW },
	{ "body-time", required_argument, NULL, OPT_BODY_TIME },
	{ "abort", required_argument, NULL, OPT_ABORT },
	{ "timeout", required_argument, NULL, OPT_TIMEOUT },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "json", required_argument, NULL, 'j' },
	{ "journal", required_argument, NULL, OPT_JOURNAL },
	{ "per-source", no_argument, NULL, OPT_PER_SOURCE },
	{ "starttls", no_argument, NULL, OPT_STARTTLS },
	{ "tls", no_argument, NULL, OPT_TLS },
	{ "tls-version", required_argument, NULL, OPT_TLS_VERSION },
	{ "sni", required_argument, NULL, OPT_SNI },
	{ "resume", optional_argument, NULL, OPT_RESUME },
	{ "handshakes", required_argument, NULL, OPT_HANDSHAKES },
	{ "storm", no_argument, NULL, OPT_STORM },
	{ "auth", required_argument, NULL, OPT_AUTH },
	{ "find-limit", no_argument, NULL, OPT_FIND_LIMIT },
	{ "max-sessions", required_argument, NULL, OPT_MAX_SESSIONS },
	{ "max-time", required_argument, NULL, OPT_MAX_TIME },
	{ "step", required_argument, NULL, OPT_STEP },
	{ "band", required_argument, NULL, OPT_BAND },
	{ "ascii", no_argument, NULL, OPT_ASCII },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* Options that say how much.  False: the value is not allowed. */
static bool read_amount(struct load_options *o, int c, const char *value)
{
	switch (c) {
	case 'c':
		return quantity_count(value, 1000000, &o->sessions) &&
		       o->sessions > 0;
	case 'r':
		return read_rate(value, &o->rate);
	case OPT_ARRIVALS:
		o->uniform = strcmp(value, "uniform") == 0;
		return o->uniform || strcmp(value, "poisson") == 0;
	case 'n':
		return quantity_count(value, UINT32_MAX, &o->total) &&
		       o->total > 0;
	case 'd':
		return quantity_duration(value, &o->duration_ms) &&
		       o->duration_ms > 0;
	case 'm':
		return quantity_count(value, UINT32_MAX, &o->messages) &&
		       o->messages > 0;
	case 'R':
		return quantity_count(value, 10000, &o->recipients) &&
		       o->recipients > 0;
	case 's':
		return quantity_size_range(value, &o->size_min, &o->size_max);
	case OPT_THINK:
		return quantity_duration_range(value, &o->think_min_ms,
					       &o->think_max_ms);
	case OPT_PAUSE:
		return quantity_duration(value, &o->pause_ms);
	case OPT_BODY_TIME:
		return quantity_duration_range(value, &o->body_min_ms,
					       &o->body_max_ms);
	case OPT_IDLE:
		return quantity_count(value, 1000000, &o->idle);
	case OPT_SOURCES:
		o->source_first = 0x7f010000; /* 127.1.0.0 */
		return quantity_count(value, 0xfe0000, &o->source_count) &&
		       o->source_count > 0;
	case OPT_TIMEOUT:
		return quantity_duration(value, &o->timeout_ms) &&
		       o->timeout_ms > 0;
	case OPT_SEED:
		return quantity_count(value, UINT64_MAX, &o->seed);
	default:
		return false;
	}
}

/* The others. */
static bool read_manner(struct load_options *o, int c, char *value)
{
	switch (c) {
	case OPT_SOURCE_RANGE:
		return read_range(o, value);
	case OPT_FROM:
		o->from = value;
		return is_address(value);
	case OPT_TO:
		return read_to(o, value);
	case OPT_HELO:
		o->helo = value;
		return is_address(value) && *value != '\0';
	case OPT_PIPELINING:
		return read_choice(value, &o->pipelining);
	case OPT_BDAT:
		o->bdat = true;
		return *value == '\0' ||
		       (quantity_size(value, &o->bdat_chunk) &&
			o->bdat_chunk >= BDAT_CHUNK_MIN);
	case OPT_SLOW:
		return read_slow(o, value);
	case OPT_ABORT:
		return read_abort(o, value);
	case 'j':
		o->json = value;
		return true;
	case OPT_JOURNAL:
		o->journal = value;
		return true;
	case OPT_PER_SOURCE:
		o->per_source = true;
		return true;
	case 'q':
		o->quiet = true;
		return true;
	default:
		return false;
	}
}

/* Those of TLS and AUTH. */
static bool read_secure(struct load_options *o, int c, char *value)
{
	switch (c) {
	case OPT_STARTTLS:
	case OPT_TLS:
		if (o->secure != LOAD_CLEAR)
			errx(1, "--starttls, --tls: one of them, once");
		o->secure = c == OPT_TLS ? LOAD_IMPLICIT : LOAD_BY_STARTTLS;
		return true;
	case OPT_TLS_VERSION:
		return read_version(o, value);
	case OPT_SNI:
		o->sni = value;
		return is_address(value) && *value != '\0';
	case OPT_RESUME:
		o->resume_percent = 100;
		return *value == '\0' ||
		       quantity_percent(value, &o->resume_percent);
	case OPT_HANDSHAKES:
		o->handshakes = true;
		return quantity_count(value, UINT32_MAX, &o->total) &&
		       o->total > 0;
	case OPT_STORM:
		o->storm = true;
		return true;
	case OPT_AUTH:
		return read_auth(o, value);
	default:
		return false;
	}
}

/* Those of --find-limit. */
static bool read_find(struct load_find_options *f, int c, const char *value)
{
	switch (c) {
	case OPT_FIND_LIMIT:
		f->on = true;
		return true;
	case OPT_MAX_SESSIONS:
		return quantity_count(value, LOAD_LIMIT_SESSIONS_MAX,
				      &f->sessions) &&
		       f->sessions > 0;
	case OPT_MAX_TIME:
		return quantity_duration(value, &f->time_ms) && f->time_ms > 0;
	case OPT_STEP:
		return quantity_duration(value, &f->step_ms) && f->step_ms > 0;
	case OPT_BAND:
		return read_band(f, value);
	case OPT_ASCII:
		f->ascii = true;
		return true;
	default:
		return false;
	}
}

static const char *name_of(int c)
{
	for (size_t i = 0; longs[i].name != NULL; i++) {
		if (longs[i].val == c)
			return longs[i].name;
	}
	return "?";
}

/* What does not go together, each allowed by itself. */
static void check_options(const struct load_options *o)
{
	if (o->target.ss_family != AF_INET && o->source_count > 0)
		errx(1, "%s: source addresses are IPv4 only", o->target_text);
	if (o->pause_ms > 0 && o->rate > 0)
		errx(1, "--pause: with --rate nobody waits for an end");
	if (o->secure == LOAD_CLEAR &&
	    (o->handshakes || o->resume_percent > 0 || o->tls_version != 0 ||
	     o->sni != NULL)) {
		errx(1, "--tls-version, --sni, --resume and --handshakes need "
			"--tls or --starttls");
	}
	if (o->handshakes && o->idle > 0)
		errx(1, "--handshakes: not with --idle");
	if (o->storm && (!o->handshakes || o->rate > 0 || o->sessions > 0))
		errx(1, "--storm: all of --handshakes at once, not with -r "
			"or -c");
	if (o->body_max_ms > 0 && o->bdat)
		errx(1, "--body-time: not with --bdat");
	if (o->find.on && (o->per_source || o->pause_ms > 0))
		errx(1, "--find-limit: not with --per-source or --pause");
	if (o->per_source &&
	    (o->source_count == 0 || o->source_count > LOAD_SOURCES_MAX)) {
		errx(1,
		     "--per-source: --sources or --source-range of 1 to %d "
		     "is needed",
		     LOAD_SOURCES_MAX);
	}
}

void load_options_read(struct load_options *o, int argc, char **argv)
{
	int c = 0;
	bool given_sessions = false;
	bool given_find = false;
	char none[] = ""; /* the value of an option that has none */

	while ((c = getopt_long(argc, argv, "c:r:n:d:m:R:s:j:qh", longs,
				NULL)) != -1) {
		if (c == 'h') {
			fputs(usage_text, stdout);
			fputs(usage_more, stdout);
			exit(0);
		}
		if (c == '?') { /* getopt_long has said why */
			fputs("weir-load -h explains all options\n", stderr);
			exit(1);
		}
		given_sessions |= c == 'c' || c == 'r' || c == 'n' ||
				  c == OPT_HANDSHAKES;
		given_find |= c >= OPT_MAX_SESSIONS;
		char *value = optarg == NULL ? none : optarg;

		if (!read_amount(o, c, value) && !read_manner(o, c, value) &&
		    !read_secure(o, c, value) &&
		    !read_find(&o->find, c, value)) {
			errx(1,
			     "--%s: \"%s\" is not allowed; weir-load -h "
			     "explains all options",
			     name_of(c), value);
		}
	}
	if (optind + 1 != argc)
		errx(1, "one HOST:PORT is needed; weir-load -h explains all");
	o->target_text = argv[optind];
	if (!read_target(o, o->target_text))
		errx(1, "%s: HOST:PORT is expected", o->target_text);
	check_options(o);
	if (given_find && !o->find.on)
		errx(1, "--max-sessions, --max-time, --step, --band and "
			"--ascii belong to --find-limit");
	if (o->find.on && (given_sessions || o->duration_ms > 0 || o->idle > 0))
		errx(1, "--find-limit decides itself how much: not with -c, "
			"-r, -n, -d or --idle");
	if (o->to_count == 0)
		o->to[o->to_count++] = "rcpt@load.test";
	if (o->idle > 0 && !given_sessions)
		o->sessions = 0; /* only idle ones */
	else if (o->storm)
		o->sessions = o->total;
	else if (o->find.on)
		o->sessions = o->find.sessions;
	else if (o->sessions == 0)
		o->sessions = o->rate > 0 ? UINT64_MAX : 1;
	if (o->total == 0 && o->duration_ms == 0 && o->sessions > 0)
		o->total = 1;
}
