#include "tests/sim/sim_check.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_auth.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_io.h"

enum {
	ROWS_MAX = 2048,
	IOS_MAX = 8,
	TABLE_SIZE = 256,
	CLIENT_TEXT_MAX = 64,
	ENDS_MAX = 2,
	/* of one message: a refusal and one more try */
};

/* A session that the log has told the end of. */
struct logged {
	char client[CLIENT_TEXT_MAX];
	char reason[CLIENT_TEXT_MAX];
};

struct check {
	struct sim *sim;
	struct check_totals totals;
	struct check_message *table[TABLE_SIZE]; /* by client */
	/* Of the last look at the limits. */
	uint64_t changes[CHECK_WEIRS_MAX][IOS_MAX];
	struct sim_io_row rows[ROWS_MAX];
	union sim_addr *clients; /* by number, client_count of them */
	unsigned client_count;
	unsigned log_sessions;
	struct logged *logged; /* log_sessions of logged_max */
	unsigned logged_max;
};

struct check *check_new(struct sim *sim)
{
	struct check *check = calloc(1, sizeof(*check));

	if (check == NULL)
		abort();
	check->sim = sim;
	return check;
}

void check_free(struct check **checkp)
{
	struct check *check = *checkp;

	if (check == NULL)
		return;
	for (unsigned i = 0; i < TABLE_SIZE; i++) {
		while (check->table[i] != NULL) {
			struct check_message *m = check->table[i];

			check->table[i] = m->next;
			free(m->body);
			free(m->plain);
			free(m);
		}
	}
	free(check->clients);
	free(check->logged);
	free(check);
	*checkp = NULL;
}

struct check_totals *check_totals(struct check *check)
{
	return &check->totals;
}

/* --- messages --- */

struct check_message *check_message_new(struct check *check, unsigned client,
					unsigned number)
{
	struct check_message *m = calloc(1, sizeof(*m));

	if (m == NULL)
		abort();
	m->client = client;
	m->number = number;
	snprintf(m->mark, sizeof(m->mark), "c%u.m%u", client, number);
	m->next = check->table[client % TABLE_SIZE];
	check->table[client % TABLE_SIZE] = m;
	check->totals.messages++;
	return m;
}

void check_message_count(struct check_message *m)
{
	size_t len = m->body_len - strlen(".\r\n");
	bool begins = true; /* a line */

	m->plain = malloc(len + 1);
	if (m->plain == NULL)
		abort();
	for (size_t i = 0; i < len; i++) {
		if (begins && m->body[i] == '.') {
			begins = false;
			continue;
		}
		m->plain[m->plain_len++] = m->body[i];
		begins = i > 0 && m->body[i] == '\n' && m->body[i - 1] == '\r';
	}
}

/* Digits at text[*at]; false if there is none there. */
static bool digits(const char *text, size_t len, size_t *at, unsigned *value)
{
	size_t start = *at;

	*value = 0;
	while (*at < len && text[*at] >= '0' && text[*at] <= '9' &&
	       *at - start < 7)
		*value = *value * 10 + (unsigned)(text[(*at)++] - '0');
	return *at > start;
}

bool check_mark_read(const char *text, size_t len, unsigned *client,
		     unsigned *number)
{
	for (size_t i = 0; i + 4 < len; i++) {
		size_t at = i + 1;

		if (text[i] != 'c' || !digits(text, len, &at, client))
			continue;
		if (at + 2 > len || text[at] != '.' || text[at + 1] != 'm')
			continue;
		at += 2;
		if (digits(text, len, &at, number))
			return true;
	}
	return false;
}

struct check_message *check_message_find(struct check *check, const char *text,
					 size_t len)
{
	unsigned client, number;

	if (!check_mark_read(text, len, &client, &number))
		return NULL;
	for (struct check_message *m = check->table[client % TABLE_SIZE];
	     m != NULL; m = m->next) {
		if (m->client == client && m->number == number)
			return m;
	}
	return NULL;
}

/* --- backends --- */

/* A body as a backend should get it, which it does by BDAT or by DATA. */
static struct check_octets body_of(const struct check_message *m, bool chunked)
{
	if (m->plain != NULL && chunked)
		return (struct check_octets){ m->plain, m->plain_len };
	return (struct check_octets){ m->body, m->body_len };
}

void check_body(struct check *check, const struct check_message *m,
		unsigned backend, size_t at, bool chunked,
		struct check_octets o)
{
	const struct check_octets body = body_of(m, chunked);

	/* After a lie, the two ends may disagree on what is body. */
	if (m->lied)
		return;
	if (at + o.len <= body.len &&
	    memcmp(body.data + at, o.data, o.len) == 0)
		return;
	size_t same = 0;
	while (at + same < body.len && same < o.len &&
	       body.data[at + same] == o.data[same])
		same++;
	sim_violation(check->sim,
		      "backend b%u: the body of %s is altered at octet %zu "
		      "of %zu",
		      backend, m->mark, at + same, body.len);
}

void check_body_end(struct check *check, struct check_message *m,
		    unsigned backend, size_t len, bool chunked, unsigned taken)
{
	check->totals.ended++;
	if (!m->whole) {
		sim_violation(check->sim,
			      "backend b%u: the end of %s came, which its "
			      "client never sent",
			      backend, m->mark);
	}
	/* Counted, it does no harm. */
	if (m->flawed && (m->plain == NULL || !chunked)) {
		sim_violation(check->sim,
			      "backend b%u: the end of %s came, whose body is "
			      "not to be finished",
			      backend, m->mark);
	}
	if (len != body_of(m, chunked).len ||
	    (chunked != m->chunked && m->plain == NULL)) {
		sim_violation(check->sim,
			      "backend b%u: %s has %zu octets by %s, it was "
			      "sent %zu by %s",
			      backend, m->mark, len, chunked ? "BDAT" : "DATA",
			      m->body_len, m->chunked ? "BDAT" : "DATA");
	}
	/* After a lie nobody knows what was refused. */
	if (!m->lied && (m->ends > m->refusals || m->ends == ENDS_MAX)) {
		sim_violation(check->sim,
			      "backend b%u: the end of %s came again, after "
			      "%u, of which %u were refused",
			      backend, m->mark, m->ends, m->refusals);
	}
	/* By BDAT, a client need not have read what was said to RCPT. */
	if (!m->lied && !m->hasty && !chunked && m->rcpts_ok != taken) {
		sim_violation(check->sim,
			      "backend b%u: the end of %s came for recipients "
			      "%#x, its client had read 2xx for %#x",
			      backend, m->mark, taken, m->rcpts_ok);
	}
	m->ends++;
	m->taken = taken;
}

void check_final(struct check *check, struct check_message *m, unsigned code,
		 bool refusal)
{
	if (code / 100 == 2) {
		m->accepts++;
		check->totals.accepted++;
	}
	m->refusals += refusal;
}

/* --- the trace field (RFC 5321, section 4.4) --- */

/* Printable, and each line end but the last one is folded. */
static bool trace_is_clean(const char *field, size_t len)
{
	if (len < 4 || memcmp(field + len - 2, "\r\n", 2) != 0)
		return false;
	for (size_t i = 0; i < len - 2; i++) {
		if (field[i] == '\r' && field[i + 1] == '\n' &&
		    (field[i + 2] == ' ' || field[i + 2] == '\t')) {
			i++;
			continue;
		}
		if (field[i] != '\t' && (field[i] < ' ' || field[i] > '~'))
			return false;
	}
	return true;
}

static bool trace_has(const char *field, size_t len, const char *word)
{
	return memmem(field, len, word, strlen(word)) != NULL;
}

/* Does it name this client, as it named itself? */
static bool trace_names(const struct check *check, unsigned client,
			const char *field, size_t len)
{
	char host[INET6_ADDRSTRLEN] = "", from[64], literal[80];

	if (client >= check->client_count)
		return true; /* nobody has told where it comes from */
	const union sim_addr *a = &check->clients[client];
	if (a->sa.sa_family == AF_INET6)
		inet_ntop(AF_INET6, &a->in6.sin6_addr, host, sizeof(host));
	else
		inet_ntop(AF_INET, &a->in.sin_addr, host, sizeof(host));
	snprintf(from, sizeof(from), "from c%u.client.test ", client);
	snprintf(literal, sizeof(literal), "([%s%s])",
		 a->sa.sa_family == AF_INET6 ? "IPv6:" : "", host);
	return trace_has(field, len, literal) &&
	       (trace_has(field, len, from) ||
		trace_has(field, len, "from early.test "));
}

void check_trace(struct check *check, const struct check_message *m,
		 unsigned backend, const char *field, size_t len)
{
	static const char begin[] = "Received: from ";
	static const char *const words[] = { "by mx.test", "with ", " id ", ";",
					     " +0000" };
	bool good = trace_is_clean(field, len) && len > sizeof(begin) &&
		    memcmp(field, begin, sizeof(begin) - 1) == 0 &&
		    !trace_has(field + 1, len - 1, "Received:");

	if (m != NULL && m->lied)
		return;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		good = good && trace_has(field, len, words[i]);
	if (good && (m == NULL || trace_names(check, m->client, field, len)))
		return;
	sim_violation(check->sim,
		      "backend b%u: the trace field of %s is \"%.*s\"", backend,
		      m == NULL ? "-" : m->mark, (int)len, field);
}

void check_named(struct check *check, const struct check_message *m,
		 unsigned backend, const union sim_addr *named)
{
	char said[64], is[64];

	if (m->client >= check->client_count)
		return; /* nobody has told where it comes from */
	const union sim_addr *a = &check->clients[m->client];
	union sim_addr is_named = *named;
	/* The port stands at the same place in both families. */
	if (named->in.sin_port == 0)
		is_named.in.sin_port = a->in.sin_port;
	if (sim_addr_equal(&is_named.sa, &a->sa))
		return;
	sim_violation(check->sim,
		      "backend b%u: it was told of %s for %s, who is %s",
		      backend, sim_addr_text(&named->sa, said, sizeof(said)),
		      m->mark, sim_addr_text(&a->sa, is, sizeof(is)));
}

void check_shown(struct check *check, const char *where, const char *text,
		 size_t len)
{
	if (sim_auth_leaks(text, len))
		sim_violation(check->sim, "credentials in %s: %.*s", where,
			      len < 300 ? (int)len : 300, text);
}

/* --- clients --- */

void check_client(struct check *check, unsigned number,
		  const union sim_addr *addr)
{
	assert(number < CHECK_CLIENTS_MAX);
	if (number >= check->client_count) {
		unsigned count = 2 * number + 64;

		check->clients = sim_grow(check->clients,
					  count * sizeof(*check->clients));
		memset(check->clients + check->client_count, 0,
		       (count - check->client_count) * sizeof(*check->clients));
		check->client_count = count;
	}
	check->clients[number] = *addr;
}

void check_answered(struct check *check, struct check_message *m, unsigned code)
{
	m->code = code;
	if (code >= 300)
		return;
	check->totals.acknowledged++;
	if (m->lied)
		return; /* nobody can know which reply was to what */
	if (m->accepts != 1) {
		sim_violation(check->sim,
			      "%s was acknowledged, and %u backends had "
			      "accepted it",
			      m->mark, m->accepts);
	}
	if (m->rcpts_ok != m->taken && !m->hasty) {
		sim_violation(check->sim,
			      "%s was acknowledged for recipients %#x, the "
			      "backend took it for %#x",
			      m->mark, m->rcpts_ok, m->taken);
	}
}

/* --- limits --- */

static bool same_host(const union sim_addr *a, const union sim_addr *b)
{
	if (a->sa.sa_family != b->sa.sa_family)
		return false;
	if (a->sa.sa_family == AF_INET)
		return a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
	return memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, 8) == 0; /* /64 */
}

/*
 * A session that is over may still have its last words under way to a client
 * that does not read: it is not counted any more.
 */
static bool is_session(const struct sim_io_row *row)
{
	return row->accepted && row->greeted && !row->ended && !row->stuck &&
	       row->peer != NULL && row->peer->sa.sa_family != AF_UNIX;
}

static void check_sessions(struct check *check, size_t count,
			   const struct check_limits *limits)
{
	unsigned all = 0;

	for (size_t i = 0; i < count; i++) {
		unsigned same = 0;

		if (!is_session(&check->rows[i]))
			continue;
		all++;
		if (limits->max_per_source == 0 ||
		    same_host(check->rows[i].peer, &limits->allowed))
			continue;
		for (size_t j = 0; j <= i; j++) {
			same += is_session(&check->rows[j]) &&
				same_host(check->rows[i].peer,
					  check->rows[j].peer);
		}
		if (same > limits->max_per_source) {
			sim_violation(check->sim,
				      "%u sessions of one source, %u allowed",
				      same, limits->max_per_source);
		}
	}
	if (all > limits->max_sessions)
		sim_violation(check->sim, "%u sessions, %u allowed", all,
			      limits->max_sessions);
}

static void check_backends(struct check *check, size_t count,
			   const struct check_limits *limits)
{
	for (unsigned b = 0; b < limits->backend_count; b++) {
		const struct check_backend_limit *limit = &limits->backends[b];
		unsigned open = 0;

		for (size_t i = 0; i < count; i++) {
			const struct sim_io_row *row = &check->rows[i];

			open += !row->accepted && !row->ended &&
				row->peer != NULL &&
				sim_addr_equal(&row->peer->sa, limit->addr);
		}
		if (open > limit->max_sessions) {
			sim_violation(check->sim,
				      "%u connections to backend b%u, %u "
				      "allowed",
				      open, b, limit->max_sessions);
		}
	}
}

void check_limits(struct check *check, unsigned which, struct io *const *ios,
		  unsigned io_count, const struct check_limits *limits)
{
	uint64_t *changes = check->changes[which];
	bool changed = false;
	size_t count = 0;

	assert(which < CHECK_WEIRS_MAX);
	assert(io_count <= IOS_MAX);
	for (unsigned i = 0; i < io_count; i++) {
		changed = changed || changes[i] != sim_io_changes(ios[i]);
		changes[i] = sim_io_changes(ios[i]);
	}
	if (!changed)
		return;
	for (unsigned i = 0; i < io_count; i++) {
		count += sim_io_rows(ios[i], check->rows + count,
				     ROWS_MAX - count);
		assert(count <= ROWS_MAX);
	}
	check_sessions(check, count, limits);
	check_backends(check, count, limits);
}

/* --- the log --- */

/* The value of a key, in key=value or JSON; its length, 0: not there. */
static size_t log_value(const char *text, size_t len, const char *key,
			const char **value)
{
	char plain[32], json[32];
	int plain_len = snprintf(plain, sizeof(plain), " %s=", key);
	int json_len = snprintf(json, sizeof(json), "\"%s\":", key);
	const char *at = memmem(text, len, plain, (size_t)plain_len);

	if (at != NULL) {
		at += plain_len;
	} else {
		at = memmem(text, len, json, (size_t)json_len);
		if (at == NULL)
			return 0;
		at += json_len;
	}
	const char *end = text + len;
	bool quoted = at < end && *at == '"';
	if (quoted)
		at++;
	*value = at;
	while (at < end && *at != (quoted ? '"' : ' ') && *at != ',' &&
	       *at != '}')
		at++;
	return (size_t)(at - *value);
}

/* Its second field tells; peers' words further on may look the same. */
static bool log_is_session(const char *text, size_t len)
{
	static const char plain[] = " event=session ";
	static const char json[] = "\"event\":\"session\"";
	const char *at = memchr(text, ' ', len);

	if (at != NULL && (size_t)(text + len - at) >= sizeof(plain) - 1 &&
	    memcmp(at, plain, sizeof(plain) - 1) == 0)
		return true;
	return memmem(text, len, json, sizeof(json) - 1) != NULL;
}

void check_log(struct check *check, const char *text, size_t len)
{
	const char *client, *reason;

	if (memchr(text, '\n', len) != NULL || memchr(text, '\r', len) != NULL)
		sim_violation(check->sim, "a log line has a line end in it");
	check_shown(check, "the log", text, len);
	if (!log_is_session(text, len))
		return;
	size_t client_len = log_value(text, len, "client", &client);
	size_t reason_len = log_value(text, len, "close", &reason);
	if (client_len == 0 || client_len >= CLIENT_TEXT_MAX ||
	    reason_len == 0 || reason_len >= CLIENT_TEXT_MAX) {
		sim_violation(check->sim, "no client or no reason in: %.*s",
			      (int)len, text);
		return;
	}
	if (check->log_sessions == check->logged_max) {
		check->logged_max = 2 * check->logged_max + 64;
		check->logged = sim_grow(check->logged,
					 check->logged_max *
						 sizeof(*check->logged));
	}
	struct logged *l = &check->logged[check->log_sessions++];
	memcpy(l->client, client, client_len);
	l->client[client_len] = '\0';
	if (strncmp(l->client, SIM_CLIENT_FORGED ":",
		    strlen(SIM_CLIENT_FORGED ":")) == 0) {
		sim_violation(check->sim,
			      "a stranger's header is believed: %.*s", (int)len,
			      text);
	}
	memcpy(l->reason, reason, reason_len);
	l->reason[reason_len] = '\0';
}

unsigned check_log_sessions(const struct check *check)
{
	return check->log_sessions;
}

unsigned check_log_client(const struct check *check,
			  const union sim_addr *client)
{
	char text[CLIENT_TEXT_MAX];
	unsigned count = 0;

	sim_addr_text(&client->sa, text, sizeof(text));
	for (unsigned i = 0; i < check->log_sessions; i++)
		count += strcmp(check->logged[i].client, text) == 0;
	return count;
}

const char *check_log_reason(const struct check *check,
			     const union sim_addr *client)
{
	char text[CLIENT_TEXT_MAX];

	sim_addr_text(&client->sa, text, sizeof(text));
	for (unsigned i = 0; i < check->log_sessions; i++) {
		if (strcmp(check->logged[i].client, text) == 0)
			return check->logged[i].reason;
	}
	return "";
}
