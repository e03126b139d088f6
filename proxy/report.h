#ifndef PROXY_REPORT_H
#define PROXY_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Rows and columns for operators, as a text table for people, as CSV
 * (RFC 4180, but for LF) or as JSON (RFC 8259), into bounded memory.
 *
 *	report_table(r, "bans", columns, 2);
 *	for each row: report_text(r, ...), report_number(r, ...)
 *	report_end(r);
 *
 * Each row has a cell for every column, in their order.  A row that does not
 * fit is left out whole and counted, and the report ends by saying how many
 * were.  Whatever octets go in, what comes out is printable ASCII and line
 * feeds, without an empty line.
 *
 * Pure: writes to the caller's memory only.
 */

enum {
	REPORT_COLUMNS_MAX = 96,
	REPORT_SIZE_MIN = 8192,
};

enum report_format {
	REPORT_TEXT, /* aligned columns */
	REPORT_CSV,  /* a header line with names, then rows */
	REPORT_JSON, /* {"TABLE":[{...},...],"more":0} */
};

enum report_style {
	REPORT_LEFT,  /* words */
	REPORT_RIGHT, /* numbers */
};

/* Whom a column is for. */
enum report_audience {
	REPORT_ALL,
	REPORT_PEOPLE,  /* only in text */
	REPORT_MACHINE, /* only in CSV and JSON */
};

struct report_column {
	const char *name; /* [a-z0-9_]: the key, and the head of the column */
	enum report_style style;
	enum report_audience audience;
};

/* Read .len, the rest is private. */
struct report {
	char *buf; /* the caller's */
	size_t cap;
	size_t len; /* octets of buf that are the answer */
	enum report_format format;
	const struct report_column *columns; /* the caller's, until the end */
	unsigned count;
	unsigned at;     /* the column that comes next */
	size_t row;      /* where the present row begins */
	bool overflowed; /* the present row does not fit */
	bool list;
	uint64_t rows;
	uint64_t more;
	unsigned widths[REPORT_COLUMNS_MAX];
};

/* An empty report.  cap is REPORT_SIZE_MIN or more. */
void report_init(struct report *r, enum report_format format, char *buf,
		 size_t cap);

/*
 * Begin the table; one table or one list a report.  name: [a-z_], a literal.
 * columns: 1..REPORT_COLUMNS_MAX, kept until report_end().  For CSV, prefix
 * stands in front of the header line (HAProxy's has "# ").
 */
void report_table(struct report *r, const char *name, const char *prefix,
		  const struct report_column *columns, unsigned count);

/* The cells of a row; the last one ends it. */
void report_text(struct report *r, const char *text, size_t len);
void report_word(struct report *r, const char *word);
void report_number(struct report *r, int64_t number);
void report_none(struct report *r); /* nothing known: "-", empty, null */

/* Rows that there are, but that were not even tried. */
void report_more(struct report *r, uint64_t rows);

/* Begin a list of keys and values instead: "key: value", one line each. */
void report_list(struct report *r);
void report_key_number(struct report *r, const char *key, int64_t number);
void report_key_word(struct report *r, const char *key, const char *word);

/* The report is whole: buf[0..len), a line feed at its end. */
void report_end(struct report *r);

#endif
