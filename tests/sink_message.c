#include <assert.h>
#include <err.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/sink_session.h"

/* The marks seen so far, to count the distinct ones: open addressing. */
struct sink_marks {
	uint64_t (*slots)[2]; /* 16 octets of a mark tell messages apart */
	size_t cap;           /* a power of two */
	size_t len;
};

enum { MARKS_FIRST = 1024 };

static char *copy(const char *text, size_t len)
{
	char *made = strndup(text, len);

	if (made == NULL)
		err(1, "out of memory");
	return made;
}

struct sink_marks *sink_marks_new(void)
{
	struct sink_marks *marks = calloc(1, sizeof(*marks));

	if (marks == NULL)
		err(1, "out of memory");
	marks->cap = MARKS_FIRST;
	marks->slots = calloc(marks->cap, sizeof(marks->slots[0]));
	if (marks->slots == NULL)
		err(1, "out of memory");
	return marks;
}

void sink_marks_free(struct sink_marks **marks)
{
	free((*marks)->slots);
	free(*marks);
	*marks = NULL;
}

uint64_t sink_marks_distinct(const struct sink_marks *marks)
{
	return marks->len;
}

static void marks_insert(struct sink_marks *marks, uint64_t a, uint64_t b)
{
	size_t i = a & (marks->cap - 1);

	while (marks->slots[i][0] != 0 || marks->slots[i][1] != 0) {
		if (marks->slots[i][0] == a && marks->slots[i][1] == b)
			return;
		i = (i + 1) & (marks->cap - 1);
	}
	marks->slots[i][0] = a;
	marks->slots[i][1] = b;
	marks->len++;
}

static void marks_add(struct sink_marks *marks, const uint8_t *mark)
{
	if (marks->len * 2 > marks->cap) {
		uint64_t(*old)[2] = marks->slots;
		size_t old_cap = marks->cap;

		marks->cap *= 2;
		marks->len = 0;
		marks->slots = calloc(marks->cap, sizeof(marks->slots[0]));
		if (marks->slots == NULL)
			err(1, "out of memory");
		for (size_t i = 0; i < old_cap; i++) {
			if (old[i][0] != 0 || old[i][1] != 0)
				marks_insert(marks, old[i][0], old[i][1]);
		}
		free(old);
	}
	uint64_t words[2];

	memcpy(words, mark, sizeof(words));
	marks_insert(marks, words[0], words[1]);
}

struct sink_message *sink_message_new(struct sink_session *s, const char *from,
				      size_t from_len, const char *params,
				      size_t params_len)
{
	struct sink_message *m = calloc(1, sizeof(*m));

	if (m == NULL)
		err(1, "out of memory");
	snprintf(m->queue_id, sizeof(m->queue_id), "S%012llX",
		 (unsigned long long)++s->mta->sink->next_id);
	m->from = copy(from, from_len);
	m->mail_params = copy(params, params_len);
	return m;
}

void sink_message_add_rcpt(struct sink_message *m, const char *rcpt,
			   size_t rcpt_len, const char *params,
			   size_t params_len)
{
	/* Grown by doubling, at each power of two. */
	if ((m->rcpt_count & (m->rcpt_count - 1)) == 0) {
		size_t cap = m->rcpt_count == 0 ? 1 : m->rcpt_count * 2;
		char **rcpts = reallocarray(m->rcpts, cap, sizeof(char *));
		char **all = reallocarray(m->rcpt_params, cap, sizeof(char *));

		if (rcpts == NULL || all == NULL)
			err(1, "out of memory");
		m->rcpts = rcpts;
		m->rcpt_params = all;
	}
	m->rcpts[m->rcpt_count] = copy(rcpt, rcpt_len);
	m->rcpt_params[m->rcpt_count] = copy(params, params_len);
	m->rcpt_count++;
}

static EVP_MD_CTX *hash_start(struct sink *sink)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	if (ctx == NULL || EVP_DigestInit_ex2(ctx, sink->tally.md, NULL) != 1)
		errx(1, "SHA-256 does not start");
	return ctx;
}

static void hash_more(EVP_MD_CTX *ctx, const char *buf, size_t len)
{
	if (ctx != NULL && EVP_DigestUpdate(ctx, buf, len) != 1)
		errx(1, "SHA-256 does not continue");
}

static void hash_end(EVP_MD_CTX **ctx, uint8_t *sha)
{
	if (*ctx != NULL && EVP_DigestFinal_ex(*ctx, sha, NULL) != 1)
		errx(1, "SHA-256 does not end");
	EVP_MD_CTX_free(*ctx);
	*ctx = NULL;
}

/* The file's name tells that the message is not stored before its 250. */
static void open_file(struct sink_session *s, struct sink_message *m)
{
	const char *dir = s->mta->sink->store_dir;

	if (asprintf(&m->file_path, "%s/%s-%s.part", dir, s->mta->name,
		     m->queue_id) < 0)
		err(1, "out of memory");
	m->file = fopen(m->file_path, "we");
	if (m->file == NULL)
		err(1, "%s", m->file_path);
	fprintf(m->file, "mta: %s\nid: %s\nclient: %s\nhelo: %s\n",
		s->mta->name, m->queue_id, s->client, s->helo);
	fprintf(m->file, "from: <%s> %s\n", m->from, m->mail_params);
	for (size_t i = 0; i < m->rcpt_count; i++)
		fprintf(m->file, "rcpt: <%s> %s\n", m->rcpts[i],
			m->rcpt_params[i]);
	if (s->login[0] != '\0')
		fprintf(m->file, "login: %s\n", s->login);
	sink_xclient_store(s, m->file);
	fputc('\n', m->file);
}

void sink_message_begin(struct sink_session *s)
{
	struct sink_message *m = s->message;
	struct sink *sink = s->mta->sink;

	assert(m != NULL);
	if (m->body_begun)
		return;
	m->body_begun = true;
	m->in_header = true;
	if (sink->hash) {
		if (sink->journal != NULL) /* nobody else asks for it */
			m->all_hash = hash_start(sink);
		m->body_hash = hash_start(sink);
	}
	if (sink->store_dir != NULL)
		open_file(s, m);
}

/* A header line is whole: is it the one with the test's mark? */
static void read_field(struct sink_message *m)
{
	static const char name[] = "X-Test-Id:";
	size_t skip = sizeof(name) - 1;
	size_t len = m->field_len;

	if (len > sizeof(m->field))
		len = sizeof(m->field);
	if (len < skip || strncasecmp(m->field, name, skip) != 0)
		return;
	while (skip < len && m->field[skip] == ' ')
		skip++;
	while (len > skip &&
	       (m->field[len - 1] == '\r' || m->field[len - 1] == '\n'))
		len--;
	m->test_id_len = len - skip;
	if (m->test_id_len > sizeof(m->test_id))
		m->test_id_len = sizeof(m->test_id);
	memcpy(m->test_id, m->field + skip, m->test_id_len);
}

/* Read the header up to the empty line.  Returns the octets it took. */
static size_t read_header(struct sink_message *m, const char *buf, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (m->field_len < sizeof(m->field))
			m->field[m->field_len] = buf[i];
		m->field_len++;
		if (buf[i] != '\n')
			continue;
		if (m->field_len == 2 && m->field[0] == '\r') {
			m->in_header = false;
			return i + 1;
		}
		read_field(m);
		m->field_len = 0;
	}
	return len;
}

void sink_message_put(struct sink_session *s, const char *buf, size_t len)
{
	struct sink_message *m = s->message;

	assert(m != NULL);
	m->octets += len;
	hash_more(m->all_hash, buf, len);
	if (m->file != NULL && fwrite(buf, 1, len, m->file) != len)
		err(1, "%s", m->file_path);
	if (m->in_header) {
		size_t taken = read_header(m, buf, len);

		buf += taken;
		len -= taken;
	}
	if (len > 0)
		hash_more(m->body_hash, buf, len);
}

void sink_message_complete(struct sink_session *s)
{
	struct sink_message *m = s->message;

	assert(m != NULL);
	m->whole = true;
	hash_end(&m->all_hash, m->all_sha);
	hash_end(&m->body_hash, m->body_sha);
}

void sink_message_put_json(FILE *out, const char *text, size_t len)
{
	fputc('"', out);
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c > 0x7e)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static void put_member(FILE *out, const char *name, const char *text)
{
	fprintf(out, ", \"%s\": ", name);
	sink_message_put_json(out, text, strlen(text));
}

static void put_list(FILE *out, const char *name, char *const *texts,
		     size_t count)
{
	fprintf(out, ", \"%s\": [", name);
	for (size_t i = 0; i < count; i++) {
		if (i > 0)
			fputs(", ", out);
		sink_message_put_json(out, texts[i], strlen(texts[i]));
	}
	fputc(']', out);
}

static void write_journal(struct sink_session *s, enum sink_outcome outcome)
{
	static const char *const names[SINK_OUTCOMES] = {
		[SINK_STORED] = "stored",
		[SINK_REJECTED] = "rejected",
		[SINK_UNANSWERED] = "unanswered",
		[SINK_ABORTED] = "aborted",
	};
	FILE *out = s->mta->sink->journal;
	const struct sink_message *m = s->message;
	char hex[TALLY_HEX_SIZE];
	struct timespec now;

	if (out == NULL)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	fprintf(out, "{\"time\": %lld.%06ld", (long long)now.tv_sec,
		now.tv_nsec / 1000);
	put_member(out, "outcome", names[outcome]);
	put_member(out, "mta", s->mta->name);
	put_member(out, "id", m->queue_id);
	put_member(out, "client", s->client);
	put_member(out, "helo", s->helo);
	put_member(out, "from", m->from);
	put_member(out, "mail_params", m->mail_params);
	put_list(out, "rcpts", m->rcpts, m->rcpt_count);
	put_list(out, "rcpt_params", m->rcpt_params, m->rcpt_count);
	if (s->login[0] != '\0')
		put_member(out, "login", s->login);
	sink_tls_print(s, out);
	sink_xclient_print(s, out);
	fprintf(out, ", \"octets\": %llu", (unsigned long long)m->octets);
	if (m->whole && s->mta->sink->hash) {
		tally_sha_hex(m->all_sha, hex);
		put_member(out, "sha256", hex);
		tally_sha_hex(m->body_sha, hex);
		put_member(out, "body_sha256", hex);
	}
	fputs(", \"test_id\": ", out);
	sink_message_put_json(out, m->test_id, m->test_id_len);
	fputs("}\n", out);
}

static void close_file(struct sink_message *m, enum sink_outcome outcome)
{
	if (m->file == NULL)
		return;
	if (fclose(m->file) != 0)
		err(1, "%s", m->file_path);
	m->file = NULL;
	if (outcome != SINK_STORED) {
		(void)unlink(m->file_path); /* it may be gone already */
		return;
	}
	char *final = copy(m->file_path, strlen(m->file_path));

	memcpy(final + strlen(final) - 5, ".mail", 5); /* was .part */
	if (rename(m->file_path, final) != 0)
		err(1, "%s", final);
	free(final);
}

static void message_free(struct sink_message *m)
{
	for (size_t i = 0; i < m->rcpt_count; i++) {
		free(m->rcpts[i]);
		free(m->rcpt_params[i]);
	}
	free(m->rcpts);
	free(m->rcpt_params);
	free(m->from);
	free(m->mail_params);
	free(m->file_path);
	EVP_MD_CTX_free(m->all_hash);
	EVP_MD_CTX_free(m->body_hash);
	free(m);
}

void sink_message_finish(struct sink_session *s, enum sink_outcome outcome)
{
	struct sink_message *m = s->message;
	struct sink *sink = s->mta->sink;
	uint8_t mark[TALLY_SHA_OCTETS];

	if (m == NULL)
		return;
	if (m->body_begun) {
		assert(outcome != SINK_STORED || m->whole);
		s->mta->stats.outcomes[outcome]++;
		close_file(m, outcome);
		write_journal(s, outcome);
	}
	if (m->body_begun && outcome == SINK_STORED) {
		s->mta->stats.octets += m->octets;
		tally_mark(&sink->tally, m->test_id, m->test_id_len,
			   m->body_sha, mark);
		tally_add(&sink->tally, mark);
		marks_add(sink->marks, mark);
	}
	s->message = NULL;
	message_free(m);
}
