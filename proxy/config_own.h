#ifndef PROXY_CONFIG_OWN_H
#define PROXY_CONFIG_OWN_H

#include "proxy/config.h"

/*
 * What config.c and config_*.c share; nobody else includes it.
 *
 *	config_text.c   words, numbers, likeness
 *	config_key.c    the key table, and what messages say about a key
 *	config_value.c  a value into its field
 *	config.c        lines, sections, the whole file, complaints
 */

enum {
	CONFIG_KEYS_MAX = 144,
	CONFIG_WORD_MAX = 64, /* longer names resemble no key */
	CONFIG_QUOTED_MAX = 4 * CONFIG_TEXT_MAX + 4,
};

/* --- text --- */

/* Text that need not end in NUL. */
struct config_span {
	const char *at;
	size_t len;
};

struct config_unit {
	const char *name;
	uint64_t factor;
};

/* By their names, the last one NULL. */
extern const struct config_unit config_time_units[];
extern const struct config_unit config_size_units[];

/* snprintf, but returns what is really in buf. */
__attribute__((format(printf, 3, 4))) size_t config_print(char *buf, size_t cap,
							  const char *format,
							  ...);

bool config_is_digit(char c);
bool config_is_alnum(char c);
char config_lower(char c); /* of ASCII */
struct config_span config_span_of(const char *text);
bool config_span_is(struct config_span s, const char *word);

/* Without the blanks at either end. */
struct config_span config_trim(struct config_span s);

/*
 * What stands before the first mark; *rest is what stands behind it, its
 * .at is NULL if there is no mark.
 */
struct config_span config_cut(struct config_span s, char mark,
			      struct config_span *rest);

/* The next word between blanks; empty at the end. */
struct config_span config_next_word(struct config_span *s);

/* Text from a file, as a message may show it: printable ASCII in quotes. */
const char *config_quote(char buf[CONFIG_QUOTED_MAX], struct config_span s);

/*
 * Is the candidate nearer to word than *best, and near enough to be meant?
 * Then *best is how far it is.
 */
bool config_nearer(struct config_span word, const char *candidate,
		   size_t *best);

/* Digits only; false if it does not fit. */
bool config_parse_number(struct config_span s, uint64_t *number);

/* Digits and one of the units; 0 needs none. */
bool config_parse_quantity(struct config_span s,
			   const struct config_unit *units, uint64_t *number);

/* The shortest text of it.  Returns its length. */
size_t config_format_quantity(uint64_t n, const struct config_unit *units,
			      char *buf, size_t cap);

/* --- the key table --- */

enum config_section {
	CONFIG_SECTION_WEIR,
	CONFIG_SECTION_LISTENER,
	CONFIG_SECTION_TLS,
	CONFIG_SECTION_ADMISSION,
	CONFIG_SECTION_TIMEOUTS,
	CONFIG_SECTION_FARM,
	CONFIG_SECTION_ROOM,
	CONFIG_SECTION_HEALTH,
	CONFIG_SECTION_BACKEND,
	CONFIG_SECTION_COUNT, /* and: none */
};

enum config_kind {
	CONFIG_KIND_COUNT,    /* min..max */
	CONFIG_KIND_CEILING,  /* the same, or auto: LIMIT_MAX */
	CONFIG_KIND_DURATION, /* min..max ms */
	CONFIG_KIND_SIZE,     /* min..max octets */
	CONFIG_KIND_PERCENT,
	CONFIG_KIND_RATE,
	CONFIG_KIND_MODE,
	CONFIG_KIND_WORD, /* one of .words: its place there, and min */
	CONFIG_KIND_HOST,
	CONFIG_KIND_PATH, /* at most max octets */
	CONFIG_KIND_USER, /* at most max octets */
	CONFIG_KIND_TEXT, /* at most max octets */
	CONFIG_KIND_LOG,
	CONFIG_KIND_LISTEN,   /* a list */
	CONFIG_KIND_ENDPOINT, /* ADDRESS:PORT */
	CONFIG_KIND_ADDRESS,
	CONFIG_KIND_NETS,      /* a list */
	CONFIG_KIND_NETS_FILE, /* a list of files */
	CONFIG_KIND_BUSY_RULE,
	CONFIG_KIND_CERT,  /* CERT [KEY [OCSP]], at most max paths */
	CONFIG_KIND_TRUST, /* system, or a path */
	CONFIG_KIND_PEER,  /* a host name or an address */
	CONFIG_KIND_PIN,
};

struct config_key {
	const char *name;
	const char *standard;     /* the default, as an operator writes it */
	const char *help;         /* "" of none */
	const char *const *words; /* of CONFIG_KIND_WORD, NULL at the end */
	size_t offset;            /* of the field in its section's struct */
	size_t width;             /* of the field */
	uint64_t min, max;
	enum config_section section;
	enum config_kind kind;
	bool required;
	bool repeatable;
};

struct config_section_info {
	const char *name;
	size_t offset; /* in struct config; of the first, if named */
	bool named;    /* [listener NAME] */
};

extern const struct config_key config_keys[]; /* config_key_count() */
extern const struct config_section_info config_sections[CONFIG_SECTION_COUNT];

/* NULL if the section has no such key. */
const struct config_key *config_find_key(enum config_section section,
					 struct config_span name);

/* Do commas part its values? */
bool config_is_list(const struct config_key *key);

/* What it takes: "a whole number from 1 to 10".  Returns the length. */
size_t config_describe(const struct config_key *key, char *buf, size_t cap);

/* The key that may have been meant. */
void config_describe_unknown_key(enum config_section section,
				 struct config_span name, char *buf,
				 size_t cap);

/* --- reading a file --- */

struct config_nets {
	struct cidr *items; /* owned */
	size_t count;
	size_t room;
};

/* A key of the section at hand. */
struct config_seen {
	unsigned line; /* 0: not given */
	bool bad;      /* its value was refused */
};

struct config_reading {
	struct config *config; /* owned until it is returned */
	struct config_report *report;
	const char *name;        /* of the file, for messages */
	struct config_span left; /* what was not read yet */
	unsigned line;           /* the line at hand, from 1 */
	bool owed; /* it should be a pair, and inih did not say so */

	enum config_section
		section; /* CONFIG_SECTION_COUNT: keys have no meaning here */
	unsigned section_line;
	void *base; /* the struct that its keys fill */
	struct config_seen seen[CONFIG_KEYS_MAX];

	unsigned began
		[CONFIG_SECTION_COUNT]; /* first line of each section, or 0 */
	struct config_nets allow;
	struct config_nets deny;
	struct config_nets proxy_from[CONFIG_LISTENERS_MAX];
	struct config_nets relay_from;

	/* For what is compared when all sections were read. */
	struct config_seen body_memory;
	struct config_seen body_buffer[CONFIG_LISTENERS_MAX];
	struct config_seen slot[CONFIG_LISTENERS_MAX];
	struct config_seen address[CONFIG_BACKENDS_MAX];

	/* Where the values of a section with a wrong header go. */
	struct config_listener stray_listener;
	struct config_nets stray_nets;
	struct config_backend stray_backend;
};

/* One value on its way into its field. */
struct config_put {
	const struct config_key *key;
	void *base; /* the section's struct */
	struct config_span text;
	struct config_reading *reading; /* NULL: not from a file */
	/* More to the point than what the key allows; empty: nothing. */
	char why[CIDR_WHY_MAX + CONFIG_TEXT_MAX];
};

/* --- values --- */

/* False: the field is as it was. */
bool config_put_value(struct config_put *p);

/* key = "value": what is wrong, or what is allowed */
void config_describe_bad_value(const struct config_put *p, char *buf,
			       size_t cap);

/* The defaults of keys that hold one value: what is given replaces them. */
void config_set_defaults(enum config_section section, void *base);

/*
 * A whole regular file (not a pipe or device, which might never end).  0 and
 * *text, owned by the caller, or -errno.
 */
int config_slurp(const char *path, char **text, size_t *len);

/* --- complaints --- */

/*
 * An error at file_line (0: none) of file, to be shown among those of a line
 * of the configuration file.
 */
void config_report_add(struct config_reading *r, unsigned line,
		       const char *file, unsigned file_line, const char *text);

#endif
