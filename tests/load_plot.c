#include <langinfo.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load_find.h"

enum {
	RATE_COLUMNS = 24,
	TIME_COLUMNS = 17,
	EIGHTHS = 8, /* a block of Unicode has so many widths */
};

static const double knee_told = 0.75; /* of the limit; above, it is the limit */

static bool is_utf8(const struct load_find *find)
{
	return !find->load->options.find.ascii &&
	       strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

/*
 * U+2588 is the full block, U+2589 .. U+258F are 7/8 .. 1/8 of one.
 * Returns the columns left.
 */
static int put_bar(FILE *out, double share, unsigned columns, bool utf8)
{
	double exact = share * columns * EIGHTHS + 0.5;
	unsigned all = columns * EIGHTHS;
	unsigned filled = exact >= (double)all ? all : (unsigned)exact;
	unsigned used = filled / EIGHTHS;
	unsigned part = filled % EIGHTHS;

	for (unsigned i = 0; i < used; i++)
		fputs(utf8 ? "\xe2\x96\x88" : "#", out);
	if (part > 0) {
		if (utf8)
			fprintf(out, "\xe2\x96%c", (char)(0x90 - part));
		else
			fputc(part >= EIGHTHS / 2 ? '#' : '.', out);
		used++;
	}
	return (int)(columns - used);
}

static double best_rate(const struct load_find *find)
{
	double best = 0;

	for (size_t i = 0; i < find->count; i++) {
		const struct load_limit_sample *s = &find->steps[i].sample;

		if (s->failed == 0 && s->rate > best)
			best = s->rate;
	}
	return best > 0 ? best : 1;
}

static void put_row(const struct load_find *find,
		    const struct load_find_step *step, FILE *out)
{
	const struct load_limit_sample *s = &step->sample;
	double band = (double)find->limit.band_us;
	bool utf8 = is_utf8(find);

	fprintf(out, "%8llu ", (unsigned long long)s->sessions);
	if (s->failed > 0) { /* it was cut short: no rate can be told */
		fprintf(out, "%10s  %llu failed%s\n", "-",
			(unsigned long long)s->failed,
			step->verdict == LOAD_LIMIT_DOUBTFUL
				? ", tried once more"
				: "");
		return;
	}
	if (s->ended == 0) {
		fprintf(out, "%10s  not one came to its end\n", "-");
		return;
	}
	fprintf(out, "%10.1f  ", s->rate);
	fprintf(out, "%*s",
		put_bar(out, s->rate / best_rate(find), RATE_COLUMNS, utf8),
		"");
	load_report_put_time(out, s->p99_us);
	fputs("  ", out);
	(void)put_bar(out, band > 0 ? (double)s->p99_us / band : 0,
		      TIME_COLUMNS, utf8);
	fputs(band > 0 && (double)s->p99_us > band ? ">" : "", out);
	if (s->late > 0)
		fprintf(out, "  %llu hang", (unsigned long long)s->late);
	fputc('\n', out);
}

/* The step behind `after` by number of sessions, then as they came. */
static size_t next_row(const struct load_find *find, size_t after)
{
	const struct load_find_step *steps = find->steps;
	size_t best = find->count;

	for (size_t i = 0; i < find->count; i++) {
		uint64_t sessions = steps[i].sample.sessions;

		if (after < find->count &&
		    (sessions < steps[after].sample.sessions ||
		     (sessions == steps[after].sample.sessions && i <= after)))
			continue;
		if (best == find->count ||
		    sessions < steps[best].sample.sessions)
			best = i;
	}
	return best;
}

static void put_plot(const struct load_find *find, FILE *out)
{
	size_t at = next_row(find, find->count);

	if (at == find->count)
		return;
	fprintf(out, "\n%8s %10s  %-*s  %8s  ", "sessions", "messages/s",
		RATE_COLUMNS, "", "p99");
	if (find->limit.band_us > 0) {
		fputs("to", out);
		load_report_put_time(out, find->limit.band_us);
	}
	fputc('\n', out);
	for (; at < find->count; at = next_row(find, at))
		put_row(find, &find->steps[at], out);
}

/* --- the answer --- */

static double rate_at(const struct load_find *find, uint64_t sessions)
{
	for (size_t i = 0; i < find->taken_count; i++) {
		if (find->taken[i].sessions == sessions)
			return find->taken[i].rate;
	}
	return 0;
}

/* The step that said the no of limit->bad. */
static const struct load_find_step *step_of_no(const struct load_find *find)
{
	for (size_t i = find->count; i > 0; i--) {
		const struct load_find_step *step = &find->steps[i - 1];

		if (step->sample.sessions == find->limit.bad &&
		    step->verdict == find->limit.why)
			return step;
	}
	return NULL;
}

static uint64_t knee_of(const struct load_find *find)
{
	return load_limit_knee(find->taken, find->taken_count,
			       find->limit.good);
}

static uint64_t at_work(const struct load_find *find)
{
	return load_limit_at_work(find->taken, find->taken_count, &find->limit,
				  find->load->options.messages);
}

/* A duration without the columns' blanks. */
static void put_short_time(FILE *out, uint64_t us)
{
	if (us < 1000)
		fprintf(out, "%llu us", (unsigned long long)us);
	else if (us < 1000000)
		fprintf(out, "%.0f ms", (double)us / 1e3);
	else
		fprintf(out, "%.1f s", (double)us / 1e6);
}

static void put_reason(const struct load_find_reason *reason, FILE *out)
{
	load_report_put_text(out, reason->text, reason->len);
	if (reason->phase != LOAD_CONNECT)
		fprintf(out, " (at %s)", load_report_phase_name(reason->phase));
}

/* What came instead of an orderly end, with the number or without. */
static void put_no(const struct load_find *find, FILE *out)
{
	const struct load_find_step *no = step_of_no(find);

	if (no == NULL)
		return;
	if (find->limit.good == 0)
		fputs(": ", out);
	else
		fprintf(out, "; at %llu ",
			(unsigned long long)no->sample.sessions);
	if (no->sample.failed > 0) {
		fputs(no->reason.is_reply ? "it refuses: " : "it fails: ", out);
		put_reason(&no->reason, out);
		return;
	}
	if (no->sample.ended == 0) {
		fputs("no session comes to its end within a step (see --step)",
		      out);
		return;
	}
	if (no->sample.late > 0) {
		fputs("some hang and do not come to their end", out);
		return;
	}
	fputs("it is slow: one session in a hundred takes ", out);
	put_short_time(out, no->sample.p99_us);
	fputs(" or more, alone it takes ", out);
	put_short_time(out, find->limit.alone_us);
}

static void put_end(const struct load_find *find, FILE *out)
{
	switch (find->end) {
	case LOAD_FIND_FOUND:
		break;
	case LOAD_FIND_SESSIONS:
		fputs(", and perhaps more: that is all --max-sessions allows",
		      out);
		return;
	case LOAD_FIND_TIME:
		fputs(", and perhaps more: the time of --max-time was up", out);
		break;
	case LOAD_FIND_STOPPED:
		fputs(", and perhaps more: the search was stopped", out);
		break;
	}
	put_no(find, out);
}

static void put_answer(const struct load_find *find, FILE *out)
{
	const struct load_limit *limit = &find->limit;
	uint64_t knee = knee_of(find);

	if (limit->good == 0) {
		fputs(limit->bad > 0
			      ? "This address does not take even one session"
			      : "The search ended before anything was known",
		      out);
		put_no(find, out);
		fputs(".\n", out);
		return;
	}
	fprintf(out,
		"This address takes %llu session%s at a time (%.*f "
		"messages/s)",
		(unsigned long long)limit->good, limit->good == 1 ? "" : "s",
		rate_at(find, limit->good) < 10 ? 1 : 0,
		rate_at(find, limit->good));
	put_end(find, out);
	fputs(".", out);
	if (knee > 0 && (double)knee <= (double)limit->good * knee_told) {
		fprintf(out,
			" More than %llu at a time bring no more messages: "
			"it works on about %llu, the others wait.",
			(unsigned long long)knee,
			(unsigned long long)at_work(find));
	}
	fputc('\n', out);
}

void load_plot_tables(const struct load_find *find, FILE *out)
{
	const struct load *load = find->load;

	fprintf(out, "%s, %.1f s, %llu messages acknowledged\n",
		load->options.target_text,
		(double)(load->now_us - load->start_us) / 1e6,
		(unsigned long long)find->acknowledged);
	put_plot(find, out);
	fputc('\n', out);
	put_answer(find, out);
	fflush(out);
}

void load_plot_progress(const struct load_find *find, uint64_t offered)
{
	const struct load *load = find->load;

	fprintf(stderr, "\r%7.1f s  ",
		(double)(load->now_us - load->start_us) / 1e6);
	if (offered > 0) {
		fprintf(stderr, "offering %llu sessions",
			(unsigned long long)offered);
	} else {
		fputs("the server gets a rest", stderr);
	}
	fprintf(stderr, "  open %llu  failed %llu  taken %llu\033[K",
		(unsigned long long)load->open,
		(unsigned long long)load_report_failed(load->stats),
		(unsigned long long)find->limit.good);
	fflush(stderr);
}

/* --- JSON --- */

static const char *const verdict_names[] = {
	[LOAD_LIMIT_DOUBTFUL] = "doubtful",
	[LOAD_LIMIT_TAKEN] = "taken",
	[LOAD_LIMIT_REFUSED] = "refused",
	[LOAD_LIMIT_SLOW] = "slow",
};

static const char *const end_names[] = {
	[LOAD_FIND_FOUND] = "found",
	[LOAD_FIND_SESSIONS] = "max_sessions",
	[LOAD_FIND_TIME] = "max_time",
	[LOAD_FIND_STOPPED] = "stopped",
};

static void json_step(const struct load_find_step *step, FILE *out)
{
	const struct load_limit_sample *s = &step->sample;

	fprintf(out,
		"{\"sessions\": %llu, \"verdict\": \"%s\", \"ended\": %llu, "
		"\"failed\": %llu, \"late\": %llu, \"messages_per_second\": %.3f, "
		"\"p50_us\": %llu, \"p99_us\": %llu",
		(unsigned long long)s->sessions, verdict_names[step->verdict],
		(unsigned long long)s->ended, (unsigned long long)s->failed,
		(unsigned long long)s->late, s->rate,
		(unsigned long long)s->p50_us, (unsigned long long)s->p99_us);
	if (s->failed > 0) {
		fprintf(out, ", \"phase\": \"%s\", \"text\": \"",
			load_report_phase_name(step->reason.phase));
		load_report_put_text(out, step->reason.text, step->reason.len);
		fputc('"', out);
	}
	fputc('}', out);
}

void load_plot_json(const struct load_find *find, FILE *out)
{
	const struct load *load = find->load;
	const struct load_limit *limit = &find->limit;
	const struct load_find_step *no = step_of_no(find);
	char hex[TALLY_HEX_SIZE];
	char *answer = NULL;
	size_t len = 0;
	FILE *words = open_memstream(&answer, &len);

	if (words == NULL)
		abort();
	put_answer(find, words);
	if (fclose(words) != 0)
		abort();
	tally_hex(&load->tally, hex);
	fprintf(out,
		"{\"target\": \"%s\", \"seed\": %llu, \"seconds\": %.6f, "
		"\"end\": \"%s\", \"sessions\": %llu, "
		"\"messages_per_second\": %.3f, \"knee\": %llu, "
		"\"at_work\": %llu",
		load->options.target_text,
		(unsigned long long)load->options.seed,
		(double)(load->now_us - load->start_us) / 1e6,
		end_names[find->end], (unsigned long long)limit->good,
		rate_at(find, limit->good), (unsigned long long)knee_of(find),
		(unsigned long long)at_work(find));
	fprintf(out, ", \"alone_us\": %llu, \"band_us\": %llu, \"no\": ",
		(unsigned long long)limit->alone_us,
		(unsigned long long)limit->band_us);
	if (no != NULL)
		json_step(no, out);
	else
		fputs("null", out);
	fputs(", \"steps\": [", out);
	for (size_t i = 0; i < find->count; i++) {
		fputs(i > 0 ? ", " : "", out);
		json_step(&find->steps[i], out);
	}
	fprintf(out,
		"], \"acknowledged\": %llu, \"octets\": %llu, "
		"\"combined\": \"%s\", \"answer\": \"",
		(unsigned long long)find->acknowledged,
		(unsigned long long)find->octets, hex);
	load_report_put_text(out, answer, len > 0 ? len - 1 : 0);
	fputs("\"}\n", out);
	fflush(out);
	free(answer);
}
