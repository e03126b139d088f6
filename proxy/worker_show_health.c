#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proxy/operator.h"
#include "proxy/tls_store.h"

/*
 * What operators read of probes, and of certificates on both sides.
 */

static void put_days(struct report *r, uint64_t days)
{
	if (days == UINT64_MAX)
		report_none(r);
	else
		report_number(r, (int64_t)days);
}

/* ---- show health ---- */

#define STEP_COLUMN(NAME, name) { #name "_ms", REPORT_RIGHT, REPORT_MACHINE },
/* clang-format off */
static const struct report_column health_columns[] = {
	{ "name", REPORT_LEFT, REPORT_ALL },
	{ "state", REPORT_LEFT, REPORT_ALL },
	{ "why", REPORT_LEFT, REPORT_ALL },
	{ "since", REPORT_RIGHT, REPORT_PEOPLE },
	{ "since_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "history", REPORT_LEFT, REPORT_PEOPLE },  /* the last few */
	{ "history", REPORT_LEFT, REPORT_MACHINE }, /* all that is kept */
	{ "probe", REPORT_LEFT, REPORT_ALL },
	{ "ago", REPORT_RIGHT, REPORT_PEOPLE },
	{ "ago_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "step", REPORT_LEFT, REPORT_ALL },
	{ "took", REPORT_LEFT, REPORT_PEOPLE },
	PROBE_STEPS(STEP_COLUMN)
	{ "tls", REPORT_LEFT, REPORT_ALL },
	{ "verified", REPORT_LEFT, REPORT_MACHINE },
	{ "cert_days", REPORT_RIGHT, REPORT_ALL },
	{ "relay", REPORT_LEFT, REPORT_ALL },
	{ "relay_ago_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "relay_asked", REPORT_LEFT, REPORT_MACHINE },
	{ "relay_code", REPORT_RIGHT, REPORT_MACHINE },
	{ "relay_reply", REPORT_LEFT, REPORT_MACHINE },
	{ "size", REPORT_RIGHT, REPORT_ALL },
	{ "ehlo", REPORT_LEFT, REPORT_ALL },
	{ "code", REPORT_RIGHT, REPORT_ALL },
	{ "error", REPORT_LEFT, REPORT_ALL },
	{ "reply", REPORT_LEFT, REPORT_ALL },
};
/* clang-format on */
#undef STEP_COLUMN

/* Probes from the oldest to the last one: o alive, X failed. */
static void put_history(struct report *r, const struct health *h, unsigned most)
{
	char text[HEALTH_HISTORY_MAX];
	unsigned n = h->seen < most ? h->seen : most;

	assert(n <= sizeof(text));
	for (unsigned i = 0; i < n; i++)
		text[i] = h->history >> (n - 1 - i) & 1 ? 'o' : 'X';
	report_text(r, text, n);
}

static void put_took(struct report *r, const struct probe_report *p)
{
	char text[160];
	size_t len = 0;

	for (unsigned i = 0; i < PROBE_STEP_COUNT; i++) {
		if (p->outcome == PROBE_NONE || p->took_ms[i] < 0 ||
		    i == PROBE_STEP_DONE)
			continue;
		int n = snprintf(text + len, sizeof(text) - len, "%s%s %lldms",
				 len > 0 ? " " : "",
				 probe_step_word((enum probe_step_name)i),
				 (long long)p->took_ms[i]);

		if (n < 0 || (size_t)n >= sizeof(text) - len)
			break;
		len += (size_t)n;
	}
	report_text(r, text, len);
	for (unsigned i = 0; i < PROBE_STEP_COUNT; i++) {
		if (p->outcome == PROBE_NONE || p->took_ms[i] < 0)
			report_none(r);
		else
			report_number(r, p->took_ms[i]);
	}
}

static void put_ehlo(struct report *r, const struct backend *b)
{
	char text[256];
	size_t len = 0;
	unsigned ext = atomic_load(&b->ext);

	if (!atomic_load(&b->ext_known)) {
		report_none(r);
		report_none(r);
		return;
	}
	report_number(r, (int64_t)atomic_load(&b->size));
	for (unsigned i = 0; i < SMTP_EXT_BITS; i++) {
		if (!(ext >> i & 1))
			continue;

		int n = snprintf(text + len, sizeof(text) - len, "%s%s",
				 len > 0 ? " " : "",
				 smtp_ext_name((enum smtp_ext)(1U << i)));

		if (n < 0 || (size_t)n >= sizeof(text) - len)
			break;
		len += (size_t)n;
	}
	report_text(r, text, len);
}

static const char *asked_word(enum probe_relay relay)
{
	switch (relay) {
	case PROBE_RELAY_UNASKED:
		break;
	case PROBE_RELAY_INCONCLUSIVE:
		return "inconclusive";
	case PROBE_RELAY_UNPROVEN:
		return "unproven";
	case PROBE_RELAY_CLOSED:
		return "closed";
	case PROBE_RELAY_OPEN:
		return "open";
	}
	return "not asked";
}

static void put_relay(struct worker *w, struct report *r,
		      const struct backend *b, const struct probe_report *p)
{
	const int64_t checked_ms = atomic_load(&b->relay_checked_ms);

	/* Whoever is told who the client is, judges it by itself. */
	if (farm_guard(w->weir->farm) == FARM_GUARD_OFF ||
	    !backend_identity_hides(backend_identity(b)))
		report_none(r);
	else
		report_word(r, backend_relay_name(backend_relay(b)));
	if (checked_ms < 0)
		report_none(r);
	else
		report_number(r, w->now_ms - checked_ms);
	report_word(r, asked_word(p->relay));
	if (p->relay_code > 0)
		report_number(r, p->relay_code);
	else
		report_none(r);
	report_text(r, p->relay_text, p->relay_text_len);
}

static void put_tls(struct worker *w, struct report *r, const struct backend *b,
		    const struct probe_report *p)
{
	if (p->outcome == PROBE_NONE) {
		report_none(r);
		report_none(r);
	} else {
		const char *version = p->tls_version;

		report_word(r, p->tls && version[0] != '\0' ? version
			       : p->tls                     ? "yes"
							    : "none");
		report_word(r, p->verified ? "yes" : "no");
	}
	put_days(r, backend_gauge(b, BACKEND_GAUGE_cert_days, w->now_ms));
}

static void health_row(struct worker *w, struct report *r, struct backend *b)
{
	enum { FEW = 20 };
	struct backend_view view;
	const struct probe_report *p = &view.report;

	backend_look(b, &view);
	report_word(r, b->name);
	report_word(r, health_state_name(view.health.state));
	report_word(r, health_why_name(view.health.why));
	show_age(r, w->now_ms - view.health.since_ms);
	put_history(r, &view.health, FEW);
	put_history(r, &view.health, HEALTH_HISTORY_MAX);
	report_word(r, probe_outcome_name(p->outcome));
	if (p->outcome == PROBE_NONE) {
		report_none(r);
		report_none(r);
		report_none(r);
	} else {
		show_age(r, w->now_ms - p->ended_ms);
		report_word(r, probe_step_word(p->failed));
	}
	put_took(r, p);
	put_tls(w, r, b, p);
	put_relay(w, r, b, p);
	put_ehlo(r, b);
	if (p->code != 0)
		report_number(r, p->code);
	else
		report_none(r);
	if (p->error > 0 && strerrorname_np(p->error) != NULL)
		report_word(r, strerrorname_np(p->error));
	else
		report_none(r);
	report_text(r, p->text, p->text_len);
}

void show_health(struct worker *w, struct report *r)
{
	struct farm *farm = w->weir->farm;

	report_table(r, "health", "", health_columns,
		     sizeof(health_columns) / sizeof(health_columns[0]));
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b != NULL)
			health_row(w, r, b);
	}
}

/* ---- show tls ---- */

static const struct report_column tls_columns[] = {
	{ "listener", REPORT_LEFT, REPORT_ALL },
	{ "tls", REPORT_LEFT, REPORT_ALL },
	{ "names", REPORT_LEFT, REPORT_ALL },
	{ "key", REPORT_LEFT, REPORT_ALL },
	{ "expires", REPORT_LEFT, REPORT_ALL },
	{ "days", REPORT_RIGHT, REPORT_ALL },
	{ "file", REPORT_LEFT, REPORT_ALL },
};

static const char *tls_word(const struct config_listener *l)
{
	if (l->mode == CONFIG_MODE_TCP)
		return "relayed";
	switch (l->tls) {
	case CONFIG_TLS_NONE:
		break;
	case CONFIG_TLS_STARTTLS:
		return "starttls";
	case CONFIG_TLS_REQUIRED:
		return "required";
	case CONFIG_TLS_IMPLICIT:
		return "implicit";
	}
	return "none";
}

/* "2026-11-22" */
static void put_date(struct report *r, int64_t time_s)
{
	const time_t time = (time_t)time_s;
	char text[24];
	struct tm tm;
	size_t n = 0;

	if (time_s != INT64_MAX && gmtime_r(&time, &tm) != NULL)
		n = strftime(text, sizeof(text), "%Y-%m-%d", &tm);
	report_text(r, text, n);
}

static void cert_row(struct worker *w, struct report *r,
		     const struct config_listener *l,
		     const struct tls_store_cert *cert)
{
	report_word(r, l->name);
	report_word(r, tls_word(l));
	report_word(r, cert->names);
	report_word(r, cert->kind);
	put_date(r, cert->expires_s);
	put_days(r, tls_store_days(cert->expires_s, io_wall_ms(w->io) / 1000));
	report_word(r, cert->file);
}

static void bare_row(struct report *r, const struct config_listener *l)
{
	enum { WORDS = 2 };

	report_word(r, l->name);
	report_word(r, tls_word(l));
	for (size_t i = WORDS; i < sizeof(tls_columns) / sizeof(tls_columns[0]);
	     i++)
		report_none(r);
}

void show_tls(struct worker *w, struct report *r)
{
	struct tls_store *store = w->weir->tls;
	struct tls_store_cert cert;

	report_table(r, "tls", "", tls_columns,
		     sizeof(tls_columns) / sizeof(tls_columns[0]));
	for (unsigned i = 0; i < w->config->listener_count; i++) {
		const struct config_listener *l = &w->config->listeners[i];
		unsigned k = 0;

		while (store != NULL && tls_store_cert(store, i, k, &cert)) {
			cert_row(w, r, l, &cert);
			k++;
		}
		if (k == 0)
			bare_row(r, l);
	}
}
