#include <arpa/inet.h>
#include <math.h>
#include <string.h>

#include "tests/load.h"

static const char *const phase_names[LOAD_PHASES] = {
	[LOAD_CONNECT] = "connect",   [LOAD_GREETING] = "greeting",
	[LOAD_EHLO] = "ehlo",         [LOAD_MAIL] = "mail",
	[LOAD_RCPT] = "rcpt",         [LOAD_DATA] = "data",
	[LOAD_BODY] = "body",         [LOAD_EOD] = "eod",
	[LOAD_RSET] = "rset",         [LOAD_QUIT] = "quit",
	[LOAD_STARTTLS] = "starttls", [LOAD_TLS] = "tls",
	[LOAD_AUTH] = "auth",         [LOAD_MESSAGE] = "message",
	[LOAD_SESSION] = "session",
};

struct ending_text {
	const char *name; /* in JSON */
	const char *text; /* in the table */
	bool is_failure;
};

/* clang-format off */
static const struct ending_text endings[LOAD_ENDINGS] = {
	[LOAD_COMPLETE] = { "complete", "complete", false },
	[LOAD_REJECTED] = { "rejected",
		"to QUIT, but a message was refused", true },
	[LOAD_KEPT_IDLE] = { "kept_idle", "kept idle as asked", false },
	[LOAD_ABORTED] = { "aborted", "reset by us, as asked", false },
	[LOAD_REFUSED] = { "refused", "refused", true },
	[LOAD_421] = { "421", "421, read in full", true },
	[LOAD_CUT] = { "cut", "connection lost within a reply", true },
	[LOAD_EOF] = { "eof", "closed without a reply", true },
	[LOAD_RESET] = { "reset", "reset without a reply", true },
	[LOAD_CONNECT_REFUSED] = { "connect_refused",
		"connection refused", true },
	[LOAD_CONNECT_FAILED] = { "connect_failed",
		"connection failed", true },
	[LOAD_TIMEOUT] = { "timeout", "timed out", true },
	[LOAD_TLS_FAILED] = { "tls_failed", "no TLS", true },
	[LOAD_PROTOCOL] = { "protocol", "not an SMTP reply", true },
};
/* clang-format on */

static const double percents[] = { 50, 90, 99, 99.9 };
static const char *const percent_names[] = { "p50", "p90", "p99", "p99.9" };

enum {
	PERCENTS = sizeof(percents) / sizeof(percents[0]),
	SOURCES_SHOWN = 10,
};

const char *load_report_phase_name(enum load_phase phase)
{
	return phase_names[phase];
}

const char *load_report_ending_text(enum load_ending ending)
{
	return endings[ending].text;
}

bool load_report_is_failure(enum load_ending ending)
{
	return endings[ending].is_failure;
}

void load_report_refusal(struct load_stats *st, enum load_phase phase,
			 const char *text, size_t len)
{
	if (len > LOAD_TEXT_MAX)
		len = LOAD_TEXT_MAX;
	for (size_t i = 0; i < st->refusal_count; i++) {
		struct load_refusal *r = &st->refusals[i];

		if (r->phase == phase && r->len == len &&
		    memcmp(r->text, text, len) == 0) {
			r->count++;
			return;
		}
	}
	if (st->refusal_count == LOAD_REFUSALS_MAX) {
		st->refusals_untold++;
		return;
	}
	struct load_refusal *r = &st->refusals[st->refusal_count++];

	r->phase = phase;
	r->count = 1;
	r->len = len;
	memcpy(r->text, text, len);
}

static uint64_t ending_sum(const struct load_stats *st, unsigned ending)
{
	uint64_t sum = 0;

	for (unsigned p = 0; p < LOAD_PHASES; p++)
		sum += st->endings[ending][p];
	return sum;
}

uint64_t load_report_failed(const struct load_stats *st)
{
	uint64_t sum = 0;

	for (unsigned e = 0; e < LOAD_ENDINGS; e++) {
		if (endings[e].is_failure)
			sum += ending_sum(st, e);
	}
	return sum;
}

static double seconds_of(const struct load *load)
{
	double seconds = (double)(load->now_us - load->start_us) / 1e6;

	return seconds > 0 ? seconds : 1e-6;
}

static unsigned long long ull(uint64_t value)
{
	return value;
}

void load_report_progress(struct load *load)
{
	const struct load_stats *st = load->stats;
	double since = (double)(load->now_us - load->progress_us) / 1e6;
	double rate = since > 0 ? (double)(st->ended - load->progress_done) /
					  since
				: 0;

	fprintf(stderr,
		"\r%7.1f s  open %llu  ended %llu (%.0f/s)  acknowledged %llu"
		"  failed %llu\033[K",
		seconds_of(load), ull(load->open + load->idle_open),
		ull(st->ended), rate, ull(st->acknowledged),
		ull(load_report_failed(st)));
	fflush(stderr);
	load->progress_us = load->now_us;
	load->progress_done = st->ended;
}

void load_report_put_time(FILE *out, uint64_t us)
{
	double ms = (double)us / 1e3;

	if (ms < 1)
		fprintf(out, "  %5lluus", ull(us));
	else if (ms < 1000)
		fprintf(out, "  %5.*fms", ms < 100 ? 2 : 1, ms);
	else
		fprintf(out, "  %6.2fs", ms / 1e3);
}

void load_report_put_text(FILE *out, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c > 0x7e)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
}

static void put_times(const struct load_stats *st, FILE *out)
{
	fputs("\nphase       count       p50       p90       p99     p99.9"
	      "       max\n",
	      out);
	for (unsigned p = 0; p < LOAD_PHASES; p++) {
		const struct histogram *h = &st->times[p];

		if (h->count == 0)
			continue;
		fprintf(out, "%-8s %8llu ", phase_names[p], ull(h->count));
		for (unsigned i = 0; i < PERCENTS; i++)
			load_report_put_time(
				out, histogram_percentile(h, percents[i]));
		load_report_put_time(out, h->max);
		fputc('\n', out);
	}
}

static void put_codes(const struct load_stats *st, FILE *out)
{
	fputs("\nreplies\n", out);
	for (unsigned p = 0; p < LOAD_PHASES; p++) {
		bool any = false;

		for (unsigned c = 0; c < 1000; c++) {
			if (st->codes[p][c] == 0)
				continue;
			if (!any)
				fprintf(out, "%-8s", phase_names[p]);
			any = true;
			fprintf(out, "  %03u: %llu", c, ull(st->codes[p][c]));
		}
		if (any)
			fputc('\n', out);
	}
}

static void put_endings(const struct load_stats *st, FILE *out)
{
	fputs("\nendings\n", out);
	for (unsigned e = 0; e < LOAD_ENDINGS; e++) {
		for (unsigned p = 0; p < LOAD_PHASES; p++) {
			if (st->endings[e][p] == 0)
				continue;
			fprintf(out, "%10llu  %s", ull(st->endings[e][p]),
				endings[e].text);
			if (e != LOAD_COMPLETE && e != LOAD_REJECTED &&
			    e != LOAD_KEPT_IDLE)
				fprintf(out, ", at %s", phase_names[p]);
			fputc('\n', out);
		}
	}
	if (st->refusal_count > 0)
		fputs("\nrefusals, word for word\n", out);
	for (size_t i = 0; i < st->refusal_count; i++) {
		const struct load_refusal *r = &st->refusals[i];

		fprintf(out, "%10llu  %-8s  ", ull(r->count),
			phase_names[r->phase]);
		load_report_put_text(out, r->text, r->len);
		fputc('\n', out);
	}
	if (st->refusals_untold > 0)
		fprintf(out, "%10llu  others\n", ull(st->refusals_untold));
}

static void source_name(const struct load *load, size_t index,
			char text[INET_ADDRSTRLEN])
{
	struct in_addr in = {
		.s_addr = htonl(load->options.source_first + (uint32_t)index),
	};

	if (inet_ntop(AF_INET, &in, text, INET_ADDRSTRLEN) == NULL)
		text[0] = '\0';
}

static uint64_t mean_us(const struct load_source *source)
{
	return source->timed == 0 ? 0 : source->total_us / source->timed;
}

/* The source behind `after` in the table's order: most failures first. */
static size_t next_source(const struct load *load, size_t after)
{
	const struct load_source *all = load->sources;
	size_t count = (size_t)load->options.source_count;
	size_t best = count;

	for (size_t i = 0; i < count; i++) {
		if (after < count &&
		    (all[i].failed > all[after].failed ||
		     (all[i].failed == all[after].failed && i <= after)))
			continue;
		if (best == count || all[i].failed > all[best].failed)
			best = i;
	}
	return best;
}

static void put_sources(const struct load *load, FILE *out)
{
	char text[INET_ADDRSTRLEN];
	size_t count = (size_t)load->options.source_count;
	size_t at = count;

	if (load->sources == NULL)
		return;
	fputs("\nsource           sessions    failed   refused  acknowledged"
	      "      mean       max\n",
	      out);
	for (size_t row = 0; row < SOURCES_SHOWN; row++) {
		at = next_source(load, at);
		if (at == count)
			return;
		const struct load_source *s = &load->sources[at];

		source_name(load, at, text);
		fprintf(out, "%-15s %9llu %9llu %9llu %13llu ", text,
			ull(s->ended), ull(s->failed), ull(s->refused),
			ull(s->acknowledged));
		load_report_put_time(out, mean_us(s));
		load_report_put_time(out, s->longest_us);
		fputc('\n', out);
	}
	if (count > SOURCES_SHOWN)
		fprintf(out, "and %llu more, with no more failures each\n",
			ull(count - SOURCES_SHOWN));
}

static void put_tls(const struct load *load, FILE *out)
{
	const struct load_stats *st = load->stats;
	uint64_t all = st->handshakes[0] + st->handshakes[1];

	if (st->tls_version == NULL)
		return;
	fprintf(out,
		"handshakes %llu full, %llu resumed (%.1f/s), %s, %s, "
		"%s\n",
		ull(st->handshakes[0]), ull(st->handshakes[1]),
		(double)all / seconds_of(load), st->tls_version, st->tls_cipher,
		st->tls_group);
}

void load_report_tables(const struct load *load, FILE *out)
{
	const struct load_stats *st = load->stats;
	double seconds = seconds_of(load);
	char hex[TALLY_HEX_SIZE];

	tally_hex(&load->tally, hex);
	fprintf(out, "%s, %.2f s, seed %llu\n\n", load->options.target_text,
		seconds, ull(load->options.seed));
	fprintf(out,
		"sessions   %llu started, %llu failed, %llu open at most "
		"(%.1f/s)\n",
		ull(st->started), ull(load_report_failed(st)), ull(st->peak),
		(double)st->ended / seconds);
	if (st->overrun > 0) {
		fprintf(out,
			"           %llu were due and not started: --sessions "
			"were open already\n",
			ull(st->overrun));
	}
	fprintf(out,
		"messages   %llu begun, %llu acknowledged, %llu refused, "
		"%llu unknown, %llu unfinished (%.1f/s)\n",
		ull(st->begun), ull(st->acknowledged), ull(st->refused),
		ull(st->unknown), ull(st->unfinished),
		(double)st->acknowledged / seconds);
	fprintf(out, "octets     %llu acknowledged (%.2f MB/s)\n",
		ull(st->octets), (double)st->octets / 1e6 / seconds);
	fprintf(out, "combined   %s\n", hex);
	put_tls(load, out);
	put_times(st, out);
	put_codes(st, out);
	put_endings(st, out);
	put_sources(load, out);
	fflush(out);
}

static void json_times(const struct load_stats *st, FILE *out)
{
	bool first = true;

	fputs(", \"phases\": {", out);
	for (unsigned p = 0; p < LOAD_PHASES; p++) {
		const struct histogram *h = &st->times[p];

		if (h->count == 0)
			continue;
		fprintf(out, "%s\"%s\": {\"count\": %llu", first ? "" : ", ",
			phase_names[p], ull(h->count));
		first = false;
		for (unsigned i = 0; i < PERCENTS; i++)
			fprintf(out, ", \"%s_us\": %llu", percent_names[i],
				ull(histogram_percentile(h, percents[i])));
		fprintf(out,
			", \"min_us\": %llu, \"max_us\": %llu, "
			"\"mean_us\": %.1f}",
			ull(h->min), ull(h->max),
			(double)h->sum / (double)h->count);
	}
	fputc('}', out);
}

static void json_codes(const struct load_stats *st, FILE *out)
{
	bool first = true;

	fputs(", \"replies\": {", out);
	for (unsigned p = 0; p < LOAD_PHASES; p++) {
		bool any = false;

		for (unsigned c = 0; c < 1000; c++) {
			if (st->codes[p][c] == 0)
				continue;
			if (!any)
				fprintf(out, "%s\"%s\": {", first ? "" : ", ",
					phase_names[p]);
			fprintf(out, "%s\"%03u\": %llu", any ? ", " : "", c,
				ull(st->codes[p][c]));
			any = true;
			first = false;
		}
		if (any)
			fputc('}', out);
	}
	fputc('}', out);
}

static void json_endings(const struct load_stats *st, FILE *out)
{
	bool first = true;

	fputs(", \"endings\": {", out);
	for (unsigned e = 0; e < LOAD_ENDINGS; e++)
		fprintf(out, "%s\"%s\": %llu", e > 0 ? ", " : "",
			endings[e].name, ull(ending_sum(st, e)));
	fputs("}, \"endings_by_phase\": [", out);
	for (unsigned i = 0; i < LOAD_ENDINGS * LOAD_PHASES; i++) {
		unsigned e = i / LOAD_PHASES;
		unsigned p = i % LOAD_PHASES;

		if (st->endings[e][p] == 0)
			continue;
		fprintf(out,
			"%s{\"ending\": \"%s\", \"phase\": \"%s\", "
			"\"count\": %llu}",
			first ? "" : ", ", endings[e].name, phase_names[p],
			ull(st->endings[e][p]));
		first = false;
	}
	fputs("], \"refusals\": [", out);
	for (size_t i = 0; i < st->refusal_count; i++) {
		const struct load_refusal *r = &st->refusals[i];

		fprintf(out,
			"%s{\"phase\": \"%s\", \"count\": %llu, \"text\": \"",
			i > 0 ? ", " : "", phase_names[r->phase],
			ull(r->count));
		load_report_put_text(out, r->text, r->len);
		fputs("\"}", out);
	}
	fputc(']', out);
}

static void json_sources(const struct load *load, FILE *out)
{
	char text[INET_ADDRSTRLEN];

	if (load->sources == NULL)
		return;
	fputs(", \"sources\": [", out);
	for (size_t i = 0; i < load->options.source_count; i++) {
		const struct load_source *s = &load->sources[i];

		source_name(load, i, text);
		fprintf(out,
			"%s{\"address\": \"%s\", \"ended\": %llu, "
			"\"failed\": %llu, \"acknowledged\": %llu, "
			"\"refused\": %llu, \"mean_us\": %llu, "
			"\"max_us\": %llu}",
			i > 0 ? ", " : "", text, ull(s->ended), ull(s->failed),
			ull(s->acknowledged), ull(s->refused), ull(mean_us(s)),
			ull(s->longest_us));
	}
	fputc(']', out);
}

void load_report_json(const struct load *load, FILE *out)
{
	const struct load_stats *st = load->stats;
	char hex[TALLY_HEX_SIZE];

	tally_hex(&load->tally, hex);
	fprintf(out, "{\"target\": \"%s\", \"seed\": %llu, \"seconds\": %.6f",
		load->options.target_text, ull(load->options.seed),
		seconds_of(load));
	fprintf(out,
		", \"sessions\": {\"started\": %llu, \"connected\": %llu, "
		"\"ended\": %llu, \"failed\": %llu, \"peak\": %llu, "
		"\"overrun\": %llu}",
		ull(st->started), ull(st->connected), ull(st->ended),
		ull(load_report_failed(st)), ull(st->peak), ull(st->overrun));
	fprintf(out,
		", \"messages\": {\"begun\": %llu, \"sent\": %llu, "
		"\"acknowledged\": %llu, \"refused\": %llu, \"unknown\": %llu"
		", \"unfinished\": %llu}",
		ull(st->begun), ull(st->sent), ull(st->acknowledged),
		ull(st->refused), ull(st->unknown), ull(st->unfinished));
	fprintf(out,
		", \"acknowledged\": %llu, \"octets\": %llu, "
		"\"combined\": \"%s\"",
		ull(st->acknowledged), ull(st->octets), hex);
	if (st->tls_version != NULL) {
		fprintf(out,
			", \"tls\": {\"full\": %llu, \"resumed\": %llu, "
			"\"version\": \"%s\", \"cipher\": \"%s\", "
			"\"group\": \"%s\"}",
			ull(st->handshakes[0]), ull(st->handshakes[1]),
			st->tls_version, st->tls_cipher, st->tls_group);
	}
	json_times(st, out);
	json_codes(st, out);
	json_endings(st, out);
	json_sources(load, out);
	fputs("}\n", out);
	fflush(out);
}
