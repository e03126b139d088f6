#include "proxy/report.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/log.h"

/*
 * CSV and JSON are written as they come.  A text table is first kept as raw
 * cells, since the widths of its columns are known at the end only; then the
 * cells are moved to the end of the buffer and written, aligned, to its
 * front.  The writing can never overtake what it reads: it stops before.
 */

enum {
	CELL_MAX = 512,    /* octets of one value, before escaping */
	WIDTH_MAX = 48,    /* what is wider does not widen its column */
	TAIL_MAX = 128,    /* kept for what report_end() says */
	CELL_RIGHT = 0x1c, /* the cell that follows is flush right */
	CELL_END = 0x1f,   /* in raw cells: no value has these octets */
	ROW_END = 0x1e,
};

void report_init(struct report *r, enum report_format format, char *buf,
		 size_t cap)
{
	assert(cap >= REPORT_SIZE_MIN);
	memset(r, 0, sizeof(*r));
	r->format = format;
	r->buf = buf;
	r->cap = cap;
}

/* Octets that may still be written. */
static size_t room(const struct report *r)
{
	/* Raw cells grow when they are aligned: leave as much again. */
	size_t end = r->format == REPORT_TEXT && !r->list ? r->cap / 2
							  : r->cap - TAIL_MAX;

	assert(r->len <= end);
	return end - r->len;
}

static void put(struct report *r, const char *text, size_t len)
{
	if (r->overflowed || len > room(r)) {
		r->overflowed = true;
		return;
	}
	memcpy(r->buf + r->len, text, len);
	r->len += len;
}

static void put_word(struct report *r, const char *word)
{
	put(r, word, strlen(word));
}

static void put_char(struct report *r, char c)
{
	put(r, &c, 1);
}

/* Is the column of no concern to this format? */
static bool is_hidden(const struct report *r, unsigned at)
{
	switch (r->columns[at].audience) {
	case REPORT_PEOPLE:
		return r->format != REPORT_TEXT;
	case REPORT_MACHINE:
		return r->format == REPORT_TEXT;
	case REPORT_ALL:
		break;
	}
	return false;
}

static bool is_first(const struct report *r)
{
	for (unsigned i = 0; i < r->at; i++) {
		if (!is_hidden(r, i))
			return false;
	}
	return true;
}

static void put_head(struct report *r)
{
	for (r->at = 0; r->at < r->count; r->at++) {
		if (is_hidden(r, r->at))
			continue;
		if (!is_first(r))
			put_char(r, ',');
		put_word(r, r->columns[r->at].name);
	}
	put_char(r, '\n');
	r->at = 0;
}

void report_table(struct report *r, const char *name, const char *prefix,
		  const struct report_column *columns, unsigned count)
{
	assert(r->len == 0);
	assert(count > 0);
	assert(count <= REPORT_COLUMNS_MAX);
	r->columns = columns;
	r->count = count;
	switch (r->format) {
	case REPORT_TEXT:
		for (unsigned i = 0; i < count; i++)
			r->widths[i] = (unsigned)strlen(columns[i].name);
		break;
	case REPORT_CSV:
		put_word(r, prefix);
		put_head(r);
		break;
	case REPORT_JSON:
		put_word(r, "{\"");
		put_word(r, name);
		put_word(r, "\":[");
		break;
	}
	r->row = r->len;
}

/* --- values --- */

static void put_escaped(struct report *r, const char *text, size_t len)
{
	char escaped[CELL_MAX * 6];
	size_t n = log_escape(escaped, sizeof(escaped),
			      r->format == REPORT_JSON, text, len);

	put(r, escaped, n);
}

static bool needs_quotes(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (text[i] == ',' || text[i] == '"' || text[i] == ' ' ||
		    text[i] == '#')
			return true;
	}
	return false;
}

/* RFC 4180, section 2: quotes around, and each quote inside twice. */
static void put_csv(struct report *r, const char *text, size_t len)
{
	bool quoted = needs_quotes(text, len);

	if (quoted)
		put_char(r, '"');
	while (len > 0) {
		const char *quote = memchr(text, '"', len);
		size_t n = quote != NULL ? (size_t)(quote - text) : len;

		put_escaped(r, text, n);
		if (quote != NULL) {
			put_word(r, "\"\"");
			n++;
		}
		text += n;
		len -= n;
	}
	if (quoted)
		put_char(r, '"');
}

/* What stands in front of a cell. */
static void begin_cell(struct report *r)
{
	assert(r->at < r->count);
	switch (r->format) {
	case REPORT_TEXT:
		if (r->columns[r->at].style == REPORT_RIGHT)
			put_char(r, CELL_RIGHT);
		break;
	case REPORT_CSV:
		if (!is_first(r))
			put_char(r, ',');
		break;
	case REPORT_JSON:
		if (is_first(r))
			put_word(r, r->rows > 0 ? ",\n{\"" : "\n{\"");
		else
			put_word(r, ",\"");
		put_word(r, r->columns[r->at].name);
		put_word(r, "\":");
		break;
	}
}

static void end_row(struct report *r)
{
	switch (r->format) {
	case REPORT_TEXT:
		put_char(r, ROW_END);
		break;
	case REPORT_CSV:
		put_char(r, '\n');
		break;
	case REPORT_JSON:
		put_char(r, '}');
		break;
	}
	if (r->overflowed) {
		r->len = r->row;
		r->more++;
	} else {
		r->rows++;
	}
	r->overflowed = false;
	r->row = r->len;
	r->at = 0;
}

/* from: where the cell's text begins. */
static void end_cell(struct report *r, size_t from)
{
	if (r->format == REPORT_TEXT && !is_hidden(r, r->at) &&
	    !r->overflowed) {
		size_t width = r->len - from;

		if (width > WIDTH_MAX)
			width = WIDTH_MAX;
		if (width > r->widths[r->at])
			r->widths[r->at] = (unsigned)width;
		put_char(r, CELL_END);
	}
	r->at++;
	if (r->at == r->count)
		end_row(r);
}

static void put_value(struct report *r, const char *text, size_t len)
{
	switch (r->format) {
	case REPORT_TEXT:
		put_escaped(r, text, len);
		break;
	case REPORT_CSV:
		put_csv(r, text, len);
		break;
	case REPORT_JSON:
		put_char(r, '"');
		put_escaped(r, text, len);
		put_char(r, '"');
		break;
	}
}

void report_text(struct report *r, const char *text, size_t len)
{
	if (len > CELL_MAX)
		len = CELL_MAX;
	if (len == 0) {
		report_none(r);
		return;
	}
	if (!is_hidden(r, r->at)) {
		begin_cell(r);
		size_t from = r->len;

		put_value(r, text, len);
		end_cell(r, from);
		return;
	}
	end_cell(r, r->len);
}

void report_word(struct report *r, const char *word)
{
	report_text(r, word, strlen(word));
}

/* A bare token, the same in all formats. */
static void report_bare(struct report *r, const char *token)
{
	size_t from = r->len;

	if (!is_hidden(r, r->at)) {
		begin_cell(r);
		from = r->len;
		put_word(r, token);
	}
	end_cell(r, from);
}

void report_number(struct report *r, int64_t number)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%lld", (long long)number);
	report_bare(r, text);
}

void report_none(struct report *r)
{
	switch (r->format) {
	case REPORT_TEXT:
		report_bare(r, "-");
		return;
	case REPORT_CSV:
		report_bare(r, "");
		return;
	case REPORT_JSON:
		report_bare(r, "null");
		return;
	}
}

void report_more(struct report *r, uint64_t rows)
{
	r->more += rows;
}

/* --- lists --- */

void report_list(struct report *r)
{
	assert(r->len == 0);
	r->list = true;
	if (r->format == REPORT_JSON)
		put_char(r, '{');
	if (r->format == REPORT_CSV)
		put_word(r, "key,value\n");
}

static void put_key(struct report *r, const char *key)
{
	assert(r->list);
	switch (r->format) {
	case REPORT_TEXT:
		put_word(r, key);
		put_word(r, ": ");
		return;
	case REPORT_CSV:
		put_word(r, key);
		put_char(r, ',');
		return;
	case REPORT_JSON:
		put_word(r, r->rows > 0 ? ",\n\"" : "\n\"");
		put_word(r, key);
		put_word(r, "\":");
		return;
	}
}

static void end_pair(struct report *r, size_t from)
{
	if (r->format != REPORT_JSON)
		put_char(r, '\n');
	if (r->overflowed) {
		r->len = from;
		r->more++;
	} else {
		r->rows++;
	}
	r->overflowed = false;
}

void report_key_number(struct report *r, const char *key, int64_t number)
{
	size_t from = r->len;
	char text[24];

	(void)snprintf(text, sizeof(text), "%lld", (long long)number);
	put_key(r, key);
	put_word(r, text);
	end_pair(r, from);
}

void report_key_word(struct report *r, const char *key, const char *word)
{
	size_t from = r->len;
	size_t len = strlen(word);

	put_key(r, key);
	put_value(r, word, len > CELL_MAX ? CELL_MAX : len);
	end_pair(r, from);
}

/* --- the end --- */

/* Where the aligned table is written, and where its raw cells are read. */
struct aligner {
	struct report *r;
	size_t raw;    /* the next raw octet */
	size_t spaces; /* owed before the next text of this line */
};

static void align_put(struct aligner *a, const char *text, size_t len)
{
	struct report *r = a->r;

	if (len == 0)
		return;
	if (r->overflowed || len + a->spaces > a->raw - TAIL_MAX - r->len) {
		r->overflowed = true;
		return;
	}
	memset(r->buf + r->len, ' ', a->spaces);
	memmove(r->buf + r->len + a->spaces, text, len);
	r->len += a->spaces + len;
	a->spaces = 0;
}

static void align_cell(struct aligner *a, unsigned at, const char *text,
		       size_t len, bool right)
{
	unsigned width = a->r->widths[at];
	size_t fill = len < width ? width - len : 0;

	if (right)
		a->spaces += fill;
	align_put(a, text, len);
	if (!right)
		a->spaces += fill;
	a->spaces += 2;
}

static void align_head(struct aligner *a)
{
	struct report *r = a->r;

	for (unsigned i = 0; i < r->count; i++) {
		const struct report_column *c = &r->columns[i];

		if (!is_hidden(r, i))
			align_cell(a, i, c->name, strlen(c->name),
				   c->style == REPORT_RIGHT);
	}
	a->spaces = 0;
	align_put(a, "\n", 1);
}

static void align_row(struct aligner *a)
{
	struct report *r = a->r;
	size_t row = r->len;

	for (unsigned i = 0; i < r->count; i++) {
		if (is_hidden(r, i))
			continue;

		bool right = r->buf[a->raw] == CELL_RIGHT;
		const char *text = r->buf + a->raw + right;
		const char *end = memchr(text, CELL_END,
					 r->cap - a->raw - right);

		assert(end != NULL);
		align_cell(a, i, text, (size_t)(end - text), right);
		a->raw = (size_t)(end + 1 - r->buf);
	}
	assert(r->buf[a->raw] == ROW_END);
	a->raw++;
	a->spaces = 0;
	align_put(a, "\n", 1);
	if (r->overflowed) {
		r->len = row;
		r->rows--;
		r->more++;
	}
	r->overflowed = false;
}

static void align(struct report *r)
{
	struct aligner a = { .r = r, .raw = r->cap - r->len };
	uint64_t rows = r->rows;

	memmove(r->buf + a.raw, r->buf, r->len);
	r->len = 0;
	align_head(&a);
	r->overflowed = false;
	for (uint64_t i = 0; i < rows; i++)
		align_row(&a);
	assert(a.raw == r->cap);
}

void report_end(struct report *r)
{
	char tail[TAIL_MAX] = "";
	int n = 0;

	assert(r->at == 0);
	if (r->format == REPORT_TEXT && !r->list)
		align(r);
	if (r->format == REPORT_JSON) {
		n = snprintf(tail, sizeof(tail), "%s\"more\":%llu}\n",
			     !r->list      ? "\n],"
			     : r->rows > 0 ? ",\n"
					   : "",
			     (unsigned long long)r->more);
	} else if (r->more > 0) {
		n = snprintf(tail, sizeof(tail), "%s%llu more not shown\n",
			     r->format == REPORT_CSV ? "# " : "... ",
			     (unsigned long long)r->more);
	}
	assert(n >= 0);
	assert((size_t)n <= r->cap - r->len);
	memcpy(r->buf + r->len, tail, (size_t)n);
	r->len += (size_t)n;
}
