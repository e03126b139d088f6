#ifndef TESTS_LOAD_FIND_H
#define TESTS_LOAD_FIND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/load.h"
#include "tests/load_limit.h"

/*
 * --find-limit of weir-load: what it measured, step by step.
 *
 *   load_limit.c  decides what is offered next (pure)
 *   load_find.c   offers it and measures
 *   load_plot.c   tells it: a plot, a sentence, JSON
 */

/* Why the search ended. */
enum load_find_end {
	LOAD_FIND_FOUND,
	LOAD_FIND_SESSIONS, /* --max-sessions are taken */
	LOAD_FIND_TIME,     /* --max-time */
	LOAD_FIND_STOPPED,  /* SIGINT or SIGTERM */
};

/* The most frequent failure of a step, word for word if it was a reply. */
struct load_find_reason {
	enum load_phase phase;
	bool is_reply;
	size_t len;
	char text[LOAD_TEXT_MAX];
};

struct load_find_step {
	struct load_limit_sample sample;
	enum load_limit_verdict verdict;
	struct load_find_reason reason; /* if any session failed */
};

struct load_find {
	struct load *load;
	struct load_limit limit;
	struct load_find_step steps[LOAD_LIMIT_STEPS_MAX];
	size_t count;
	struct load_limit_sample taken[LOAD_LIMIT_STEPS_MAX];
	size_t taken_count;
	enum load_find_end end;
	uint64_t acknowledged; /* of all steps */
	uint64_t octets;
	int64_t not_before_us; /* nobody comes earlier */
};

/* The whole search.  The caller frees the result. */
struct load_find *load_find_run(struct load *load);

/* --- load_plot.c --- */

/* Steps as rows of two bars, then the last line: the answer in words. */
void load_plot_tables(const struct load_find *find, FILE *out);
void load_plot_json(const struct load_find *find, FILE *out);
void load_plot_progress(const struct load_find *find, uint64_t offered);

#endif
