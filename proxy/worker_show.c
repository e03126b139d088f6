#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/operator.h"

/*
 * The reports of the control socket.  They read what workers count and hold,
 * and change nothing.
 */

void control_lock(struct worker *own, struct worker *other)
{
	if (other != own)
		(void)pthread_mutex_lock(&other->mutex);
}

void control_unlock(struct worker *own, struct worker *other)
{
	if (other != own)
		(void)pthread_mutex_unlock(&other->mutex);
}

/* ---- pieces ---- */

static void put_age(struct report *r, int64_t ms)
{
	char text[CONTROL_AGE_MAX];
	size_t n = control_age_format(ms, text);

	report_text(r, text, n);
}

void show_age(struct report *r, int64_t ms)
{
	put_age(r, ms);
	report_number(r, ms);
}

/* What time is left until then; nothing if it has passed or is not set. */
static void put_left(struct report *r, int64_t left_ms)
{
	if (left_ms > 0) {
		show_age(r, left_ms);
		return;
	}
	report_none(r);
	report_none(r);
}

/* ---- show info ---- */

struct totals {
	uint64_t counters[STATS_COUNT];
	uint64_t closes[STATS_CLOSE_COUNT];
	uint64_t closed;
	uint64_t open;
	uint64_t servers;
};

/* One worker's figures, of one instant. */
static void add_worker(struct totals *t, const struct worker *w)
{
	for (unsigned i = 0; i < STATS_COUNT; i++)
		t->counters[i] += stats_get(w->stats, (enum stats_index)i);
	for (unsigned i = 0; i < STATS_CLOSE_COUNT; i++) {
		uint64_t n = atomic_load_explicit(&w->stats->closed[i],
						  memory_order_relaxed);

		t->closes[i] += n;
		t->closed += n;
	}
	t->open += w->client_count;
	t->servers += w->server_count;
}

static void add_up(struct worker *w, struct totals *t)
{
	memset(t, 0, sizeof(*t));
	for (unsigned i = 0; i < w->weir->worker_count; i++) {
		struct worker *other = w->weir->workers[i];

		if (other == NULL)
			continue;
		control_lock(w, other);
		add_worker(t, other);
		control_unlock(w, other);
	}
}

static void put_sum(struct report *r, const char *key, uint64_t n)
{
	report_key_number(r, key, (int64_t)n);
}

static void put_prefixed(struct report *r, const char *prefix, const char *name,
			 uint64_t n)
{
	char key[64];

	(void)snprintf(key, sizeof(key), "%s_%s", prefix, name);
	put_sum(r, key, n);
}

static const char *state_name(const struct worker *w)
{
	if (atomic_load_explicit(&w->weir->stopping, memory_order_relaxed))
		return "stopping";
	return w->draining ? "draining" : "running";
}

static const char *guard_name(const struct worker *w)
{
	switch (farm_guard(w->weir->farm)) {
	case FARM_GUARD_OFF:
		break;
	case FARM_GUARD_WARN:
		return "warn";
	case FARM_GUARD_ENFORCE:
		return "enforce";
	}
	return "off";
}

static void info_state(struct worker *w, struct report *r)
{
	int64_t up_ms = io_wall_ms(w->io) - w->weir->started_wall_ms;

	report_key_word(r, "name", "weir");
	report_key_word(r, "version", WEIR_VERSION);
	report_key_word(r, "hostname", w->config->weir.hostname);
	report_key_word(r, "state", state_name(w));
	report_key_number(r, "uptime_s", up_ms > 0 ? up_ms / 1000 : 0);
	report_key_number(r, "workers", w->weir->worker_count);
	report_key_word(r, "stressed", w->stressed ? "yes" : "no");
	report_key_word(r, "busy", w->config->farm.observe ? "observe" : "act");
	report_key_word(r, "relay_guard", guard_name(w));
	report_key_number(r, "sessions_now",
			  admission_sessions(w->weir->admission));
	report_key_number(r, "sessions_max",
			  admission_sessions_max(w->weir->admission));
}

static void show_info(struct worker *w, struct report *r)
{
	struct totals t;

	add_up(w, &t);
	report_list(r);
	info_state(w, r);
	/* connections = closed + open, always. */
	put_sum(r, "connections", t.counters[STATS_connections]);
	put_sum(r, "closed", t.closed);
	put_sum(r, "open", t.open);
	put_sum(r, "backend_connections", t.servers);
	for (unsigned i = 0; i < STATS_CLOSE_COUNT; i++)
		put_prefixed(r, "closed", stats_close_name((enum stats_close)i),
			     t.closes[i]);
	for (unsigned i = 0; i < STATS_COUNT; i++) {
		if (i != STATS_connections)
			put_sum(r, stats_counters[i].name, t.counters[i]);
	}
	for (unsigned i = 0; i < ADMISSION_VERDICTS; i++) {
		enum admission_verdict verdict = (enum admission_verdict)i;

		put_prefixed(r, "admission", admission_verdict_name(verdict),
			     admission_count(w->weir->admission, verdict));
	}
	for (unsigned i = 0; i < ADMISSION_RATES; i++) {
		enum admission_rate rate = (enum admission_rate)i;

		put_prefixed(r, "limited", admission_rate_name(rate),
			     admission_limited(w->weir->admission, rate));
	}
	put_sum(r, "aggregate_only",
		admission_aggregate_only(w->weir->admission));
	put_sum(r, "log_dropped", io_log_dropped(w->io));
}

/* ---- show stat ---- */

/*
 * HAProxy's columns, in its order (its management guide, section 9.1), so
 * that what reads HAProxy's statistics reads these.  What weir does not know
 * stays empty.
 *
 *	FIELD(name, style, audience)
 */
#define STAT_FIELDS(FIELD)                                                     \
	FIELD(pxname, LEFT, ALL)                                               \
	FIELD(svname, LEFT, ALL)                                               \
	FIELD(qcur, RIGHT, MACHINE)                                            \
	FIELD(qmax, RIGHT, MACHINE)                                            \
	FIELD(scur, RIGHT, ALL)                                                \
	FIELD(smax, RIGHT, ALL)                                                \
	FIELD(slim, RIGHT, ALL)                                                \
	FIELD(stot, RIGHT, ALL)                                                \
	FIELD(bin, RIGHT, ALL)                                                 \
	FIELD(bout, RIGHT, ALL)                                                \
	FIELD(dreq, RIGHT, MACHINE)                                            \
	FIELD(dresp, RIGHT, MACHINE)                                           \
	FIELD(ereq, RIGHT, MACHINE)                                            \
	FIELD(econ, RIGHT, ALL)                                                \
	FIELD(eresp, RIGHT, MACHINE)                                           \
	FIELD(wretr, RIGHT, MACHINE)                                           \
	FIELD(wredis, RIGHT, MACHINE)                                          \
	FIELD(status, LEFT, ALL)                                               \
	FIELD(weight, RIGHT, ALL)                                              \
	FIELD(act, RIGHT, MACHINE)                                             \
	FIELD(bck, RIGHT, MACHINE)                                             \
	FIELD(chkfail, RIGHT, ALL)                                             \
	FIELD(chkdown, RIGHT, MACHINE)                                         \
	FIELD(lastchg, RIGHT, ALL)                                             \
	FIELD(downtime, RIGHT, MACHINE)                                        \
	FIELD(qlimit, RIGHT, MACHINE)                                          \
	FIELD(pid, RIGHT, MACHINE)                                             \
	FIELD(iid, RIGHT, MACHINE)                                             \
	FIELD(sid, RIGHT, MACHINE)                                             \
	FIELD(throttle, RIGHT, MACHINE)                                        \
	FIELD(lbtot, RIGHT, MACHINE)                                           \
	FIELD(tracked, LEFT, MACHINE)                                          \
	FIELD(type, RIGHT, MACHINE)                                            \
	FIELD(rate, RIGHT, MACHINE)                                            \
	FIELD(rate_lim, RIGHT, MACHINE)                                        \
	FIELD(rate_max, RIGHT, MACHINE)                                        \
	FIELD(check_status, LEFT, MACHINE)                                     \
	FIELD(check_code, RIGHT, MACHINE)                                      \
	FIELD(check_duration, RIGHT, MACHINE)                                  \
	FIELD(hrsp_1xx, RIGHT, MACHINE)                                        \
	FIELD(hrsp_2xx, RIGHT, MACHINE)                                        \
	FIELD(hrsp_3xx, RIGHT, MACHINE)                                        \
	FIELD(hrsp_4xx, RIGHT, MACHINE)                                        \
	FIELD(hrsp_5xx, RIGHT, MACHINE)                                        \
	FIELD(hrsp_other, RIGHT, MACHINE)                                      \
	FIELD(hanafail, RIGHT, MACHINE)                                        \
	FIELD(req_rate, RIGHT, MACHINE)                                        \
	FIELD(req_rate_max, RIGHT, MACHINE)                                    \
	FIELD(req_tot, RIGHT, MACHINE)                                         \
	FIELD(cli_abrt, RIGHT, MACHINE)                                        \
	FIELD(srv_abrt, RIGHT, MACHINE)                                        \
	FIELD(comp_in, RIGHT, MACHINE)                                         \
	FIELD(comp_out, RIGHT, MACHINE)                                        \
	FIELD(comp_byp, RIGHT, MACHINE)                                        \
	FIELD(comp_rsp, RIGHT, MACHINE)                                        \
	FIELD(lastsess, RIGHT, MACHINE)                                        \
	FIELD(last_chk, LEFT, MACHINE)                                         \
	FIELD(last_agt, LEFT, MACHINE)                                         \
	FIELD(qtime, RIGHT, MACHINE)                                           \
	FIELD(ctime, RIGHT, MACHINE)                                           \
	FIELD(rtime, RIGHT, MACHINE)                                           \
	FIELD(ttime, RIGHT, MACHINE)                                           \
	FIELD(agent_status, LEFT, MACHINE)                                     \
	FIELD(agent_code, RIGHT, MACHINE)                                      \
	FIELD(agent_duration, RIGHT, MACHINE)                                  \
	FIELD(check_desc, LEFT, MACHINE)                                       \
	FIELD(agent_desc, LEFT, MACHINE)                                       \
	FIELD(check_rise, RIGHT, MACHINE)                                      \
	FIELD(check_fall, RIGHT, MACHINE)                                      \
	FIELD(check_health, RIGHT, MACHINE)                                    \
	FIELD(agent_rise, RIGHT, MACHINE)                                      \
	FIELD(agent_fall, RIGHT, MACHINE)                                      \
	FIELD(agent_health, RIGHT, MACHINE)                                    \
	FIELD(addr, LEFT, MACHINE)                                             \
	FIELD(cookie, LEFT, MACHINE)                                           \
	FIELD(mode, LEFT, MACHINE)                                             \
	FIELD(algo, LEFT, MACHINE)                                             \
	FIELD(conn_rate, RIGHT, MACHINE)                                       \
	FIELD(conn_rate_max, RIGHT, MACHINE)                                   \
	FIELD(conn_tot, RIGHT, MACHINE)                                        \
	FIELD(intercepted, RIGHT, MACHINE)                                     \
	FIELD(dcon, RIGHT, MACHINE)                                            \
	FIELD(dses, RIGHT, MACHINE)

#define STAT_ENUM(name, style, audience) STAT_##name,
enum stat_field { STAT_FIELDS(STAT_ENUM) STAT_COUNT };
#undef STAT_ENUM

static_assert(STAT_COUNT <= (int)REPORT_COLUMNS_MAX, "all fit a report");

#define STAT_COLUMN(name, style, audience)                                     \
	{ #name, REPORT_##style, REPORT_##audience },
static const struct report_column stat_columns[STAT_COUNT] = { STAT_FIELDS(
	STAT_COLUMN) };
#undef STAT_COLUMN

enum stat_type { STAT_FRONTEND, STAT_BACKEND, STAT_SERVER, STAT_LISTENER };

enum { STAT_WORDS_MAX = 8 };

/* A row: a few words, numbers, and the rest is not known. */
struct stat_row {
	unsigned word_count;
	struct {
		enum stat_field field;
		const char *word;
	} words[STAT_WORDS_MAX];
	uint64_t numbers[STAT_COUNT];
	bool known[STAT_COUNT];
	char address[BACKEND_ADDRESS_MAX]; /* what a word may point to */
};

static void set(struct stat_row *row, enum stat_field field, uint64_t n)
{
	row->numbers[field] = n;
	row->known[field] = true;
}

static void set_word(struct stat_row *row, enum stat_field field,
		     const char *word)
{
	assert(row->word_count < STAT_WORDS_MAX);
	row->words[row->word_count].field = field;
	row->words[row->word_count].word = word;
	row->word_count++;
}

static const char *word_of(const struct stat_row *row, unsigned field)
{
	for (unsigned i = 0; i < row->word_count; i++) {
		if (row->words[i].field == field)
			return row->words[i].word;
	}
	return NULL;
}

static void put_stat(struct report *r, const struct stat_row *row)
{
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		const char *word = word_of(row, i);

		if (word != NULL)
			report_word(r, word);
		else if (row->known[i])
			report_number(r, (int64_t)row->numbers[i]);
		else
			report_none(r);
	}
}

static void begin_stat(struct stat_row *row, enum stat_type type,
		       const char *pxname, const char *svname)
{
	memset(row, 0, sizeof(*row));
	set_word(row, STAT_pxname, pxname);
	set_word(row, STAT_svname, svname);
	set_word(row, STAT_mode, "tcp");
	set(row, STAT_type, type);
	set(row, STAT_pid, 1);
	set(row, STAT_iid, type == STAT_SERVER || type == STAT_BACKEND ? 2 : 1);
	set(row, STAT_sid, 0);
}

static void stat_frontend(struct worker *w, struct report *r,
			  struct stat_row *row)
{
	struct totals t;

	add_up(w, &t);
	begin_stat(row, STAT_FRONTEND, "weir", "FRONTEND");
	set_word(row, STAT_status, w->draining ? "STOP" : "OPEN");
	set(row, STAT_scur, t.open);
	set(row, STAT_slim, admission_sessions_max(w->weir->admission));
	set(row, STAT_stot, t.counters[STATS_connections]);
	set(row, STAT_conn_tot, t.counters[STATS_connections]);
	set(row, STAT_bin, t.counters[STATS_octets_in]);
	set(row, STAT_bout, t.counters[STATS_octets_out]);
	set(row, STAT_ereq, t.counters[STATS_errors]);
	set(row, STAT_req_tot, t.counters[STATS_messages]);
	set(row, STAT_dcon, t.counters[STATS_refused]);
	put_stat(r, row);
}

/* Sessions of each listener of the configuration. */
static void count_listeners(struct worker *w,
			    uint64_t sessions[CONFIG_LISTENERS_MAX])
{
	for (unsigned i = 0; i < w->weir->worker_count; i++) {
		struct worker *other = w->weir->workers[i];

		if (other == NULL)
			continue;
		control_lock(w, other);
		for (const struct client *c = other->clients.next;
		     c != &other->clients; c = c->next)
			sessions[c->session.listener -
				 other->config->listeners]++;
		control_unlock(w, other);
	}
}

static void stat_listeners(struct worker *w, struct report *r,
			   struct stat_row *row)
{
	uint64_t sessions[CONFIG_LISTENERS_MAX] = { 0 };

	count_listeners(w, sessions);
	for (unsigned i = 0; i < w->config->listener_count; i++) {
		const struct config_listener *l = &w->config->listeners[i];

		begin_stat(row, STAT_LISTENER, "weir", l->name);
		weir_address_text(&l->listen[0], row->address,
				  sizeof(row->address));
		set_word(row, STAT_addr, row->address);
		set_word(row, STAT_status, w->draining ? "STOP" : "OPEN");
		set(row, STAT_scur, sessions[i]);
		set(row, STAT_sid, i + 1);
		put_stat(r, row);
	}
}

static const char *stat_status(const struct backend *b)
{
	switch (backend_admin_state(b)) {
	case BACKEND_ADMIN_MAINT:
		return "MAINT";
	case BACKEND_ADMIN_DRAIN:
		return "DRAIN";
	case BACKEND_READY:
	case BACKEND_ADMIN_COUNT:
		break;
	}
	switch (backend_state(b)) {
	case HEALTH_UNKNOWN:
	case HEALTH_UP:
	case HEALTH_HALF_OPEN:
		return "UP";
	case HEALTH_BUSY: /* alive, but nothing is given to it now */
	case HEALTH_DRAIN:
		return "NOLB";
	case HEALTH_EJECTED:
	case HEALTH_DOWN:
	case HEALTH_MISCONF:
	case HEALTH_STATE_COUNT:
		break;
	}
	return "DOWN";
}

/* HAProxy's word for how a check ended. */
static const char *stat_check(enum probe_outcome outcome)
{
	switch (outcome) {
	case PROBE_OK:
		return "L7OK";
	case PROBE_REFUSED:
	case PROBE_UNREACHABLE:
	case PROBE_CONNECT_RESET:
	case PROBE_CONNECT_ERROR:
		return "L4CON";
	case PROBE_CONNECT_TIMEOUT:
		return "L4TOUT";
	case PROBE_SILENT:
	case PROBE_TIMEOUT:
		return "L7TOUT";
	case PROBE_CLOSED_EARLY:
	case PROBE_NOT_SMTP:
	case PROBE_CLOSED:
	case PROBE_RESET:
		return "L7RSP";
	case PROBE_TLS_FAILED:
		return "L6RSP";
	case PROBE_TLS_REFUSED:
	case PROBE_XCLIENT_REFUSED:
	case PROBE_GREETING_BUSY:
	case PROBE_GREETING_REFUSED:
	case PROBE_EHLO_BUSY:
	case PROBE_EHLO_REFUSED:
	case PROBE_MAIL_BUSY:
	case PROBE_MAIL_REFUSED:
		return "L7STS";
	case PROBE_NONE:
	case PROBE_ABANDONED:
	case PROBE_OUTCOME_COUNT:
		break;
	}
	return "UNK";
}

static int64_t probe_took_ms(const struct probe_report *report)
{
	int64_t sum = 0;

	for (unsigned i = 0; i < PROBE_STEP_COUNT; i++) {
		if (report->took_ms[i] > 0)
			sum += report->took_ms[i];
	}
	return sum;
}

static uint64_t connect_errors(const struct backend *b)
{
	return backend_counter(b, BACKEND_COUNT_connect_refused) +
	       backend_counter(b, BACKEND_COUNT_connect_timeout) +
	       backend_counter(b, BACKEND_COUNT_connect_reset) +
	       backend_counter(b, BACKEND_COUNT_connect_unreachable) +
	       backend_counter(b, BACKEND_COUNT_greeting_silent);
}

/* What rows of servers and their sum have in common. */
static void stat_load(const struct worker *w, const struct backend *b,
		      struct stat_row *row)
{
	set(row, STAT_scur,
	    backend_gauge(b, BACKEND_GAUGE_sessions, w->now_ms));
	set(row, STAT_slim, backend_limit(b));
	set(row, STAT_stot, backend_counter(b, BACKEND_COUNT_tried));
	set(row, STAT_lbtot, backend_counter(b, BACKEND_COUNT_tried));
	set(row, STAT_bin, backend_counter(b, BACKEND_COUNT_octets_out));
	set(row, STAT_bout, backend_counter(b, BACKEND_COUNT_octets_in));
	set(row, STAT_econ, connect_errors(b));
	set(row, STAT_eresp, backend_counter(b, BACKEND_COUNT_lost));
	set(row, STAT_srv_abrt, backend_counter(b, BACKEND_COUNT_lost));
	set(row, STAT_wredis, backend_counter(b, BACKEND_COUNT_retried_away));
	set(row, STAT_req_tot, backend_counter(b, BACKEND_COUNT_messages));
	set(row, STAT_weight,
	    backend_gauge(b, BACKEND_GAUGE_weight, w->now_ms));
	set(row, STAT_act,
	    backend_admin_state(b) == BACKEND_READY &&
		    health_admits(backend_state(b)));
	set(row, STAT_bck, 0);
	set(row, STAT_chkfail, backend_counter(b, BACKEND_COUNT_probes_failed));
}

/* Inlined, its view and the rows of its caller are too much for one frame. */
__attribute__((noinline)) static void stat_server(struct worker *w,
						  struct report *r,
						  struct backend *b,
						  struct stat_row *row,
						  struct stat_row *sum)
{
	struct backend_view view;

	backend_look(b, &view);
	begin_stat(row, STAT_SERVER, "farm", b->name);
	stat_load(w, b, row);
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		if (!row->known[i] || i == STAT_type || i == STAT_pid ||
		    i == STAT_iid || i == STAT_sid)
			continue;
		set(sum, (enum stat_field)i, sum->numbers[i] + row->numbers[i]);
	}
	set_word(row, STAT_status, stat_status(b));
	set_word(row, STAT_addr, b->address);
	set(row, STAT_sid, b->index + 1U);
	set(row, STAT_smax,
	    backend_gauge(b, BACKEND_GAUGE_sessions_peak, w->now_ms));
	set(row, STAT_lastchg,
	    (uint64_t)(w->now_ms - view.health.since_ms) / 1000);
	if (view.report.outcome != PROBE_NONE) {
		set_word(row, STAT_check_status,
			 stat_check(view.report.outcome));
		set_word(row, STAT_check_desc,
			 probe_outcome_help(view.report.outcome));
		set_word(row, STAT_last_chk,
			 probe_outcome_name(view.report.outcome));
		set(row, STAT_check_duration,
		    (uint64_t)probe_took_ms(&view.report));
		if (view.report.code != 0)
			set(row, STAT_check_code, view.report.code);
	}
	set(row, STAT_check_rise, w->weir->farm->policy.rise);
	set(row, STAT_check_fall, w->weir->farm->policy.fall);
	put_stat(r, row);
}

static void show_stat(struct worker *w, struct report *r)
{
	struct farm *farm = w->weir->farm;
	struct stat_row row, sum;

	report_table(r, "stat", "# ", stat_columns, STAT_COUNT);
	stat_frontend(w, r, &row);
	stat_listeners(w, r, &row);
	begin_stat(&sum, STAT_BACKEND, "farm", "BACKEND");
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b != NULL)
			stat_server(w, r, b, &row, &sum);
	}
	set_word(&sum, STAT_status, sum.numbers[STAT_act] > 0 ? "UP" : "DOWN");
	if (w->weir->room != NULL)
		set(&sum, STAT_qcur, room_waiting(w->weir->room));
	put_stat(r, &sum);
}

/* ---- show backends ---- */

#define MACHINE_COLUMN(name, unit, help)                                       \
	{ #name, REPORT_RIGHT, REPORT_MACHINE },
/* clang-format off */
static const struct report_column backend_columns[] = {
	{ "name", REPORT_LEFT, REPORT_ALL },
	{ "address", REPORT_LEFT, REPORT_ALL },
	{ "state", REPORT_LEFT, REPORT_ALL },
	{ "admin", REPORT_LEFT, REPORT_ALL },
	{ "sess", REPORT_RIGHT, REPORT_PEOPLE },
	{ "peak", REPORT_RIGHT, REPORT_PEOPLE },
	{ "limit", REPORT_RIGHT, REPORT_PEOPLE },
	{ "weight", REPORT_RIGHT, REPORT_PEOPLE },
	{ "errors", REPORT_RIGHT, REPORT_PEOPLE },
	{ "messages", REPORT_RIGHT, REPORT_PEOPLE },
	{ "busy", REPORT_RIGHT, REPORT_PEOPLE },
	{ "failed", REPORT_RIGHT, REPORT_PEOPLE },
	{ "since", REPORT_RIGHT, REPORT_PEOPLE },
	{ "since_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "left", REPORT_RIGHT, REPORT_PEOPLE },
	{ "left_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "why", REPORT_LEFT, REPORT_ALL },
	{ "because", REPORT_LEFT, REPORT_ALL },
	BACKEND_GAUGES(MACHINE_COLUMN)
	BACKEND_COUNTERS(MACHINE_COLUMN)
};
/* clang-format on */
#undef MACHINE_COLUMN

static uint64_t busy_answers(const struct backend *b)
{
	return backend_counter(b, BACKEND_COUNT_class_busy) +
	       backend_counter(b, BACKEND_COUNT_class_maybe_busy) +
	       backend_counter(b, BACKEND_COUNT_class_cap);
}

static void put_gauge(struct worker *w, struct report *r,
		      const struct backend *b, enum backend_gauge which)
{
	uint64_t value = backend_gauge(b, which, w->now_ms);

	if (value == BACKEND_GAUGE_NONE)
		report_none(r);
	else
		report_number(r, (int64_t)value);
}

static void put_permille(struct report *r, uint64_t permille)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%llu.%llu%%",
		       (unsigned long long)permille / 10,
		       (unsigned long long)permille % 10);
	report_word(r, text);
}

static void backend_row(struct worker *w, struct report *r, struct backend *b)
{
	struct backend_view view;

	backend_look(b, &view);
	report_word(r, b->name);
	report_word(r, b->address);
	report_word(r, health_state_name(view.health.state));
	report_word(r, backend_admin_name(backend_admin_state(b)));
	put_gauge(w, r, b, BACKEND_GAUGE_sessions);
	put_gauge(w, r, b, BACKEND_GAUGE_sessions_peak);
	put_gauge(w, r, b, BACKEND_GAUGE_limit);
	put_gauge(w, r, b, BACKEND_GAUGE_weight);
	put_permille(
		r, backend_gauge(b, BACKEND_GAUGE_errors_permille, w->now_ms));
	report_number(r, (int64_t)backend_counter(b, BACKEND_COUNT_messages));
	report_number(r, (int64_t)busy_answers(b));
	report_number(r, (int64_t)connect_errors(b));
	show_age(r, w->now_ms - view.health.since_ms);
	put_left(r, view.health.until_ms - w->now_ms);
	report_word(r, health_why_name(view.health.why));
	report_word(r, health_why_help(view.health.why));
	for (unsigned i = 0; i < BACKEND_GAUGE_COUNT; i++) {
		if (i == BACKEND_GAUGE_max_sessions &&
		    backend_gauge(b, BACKEND_GAUGE_max_sessions, w->now_ms) ==
			    BACKEND_SESSIONS_MAX)
			report_none(r); /* auto */
		else
			put_gauge(w, r, b, (enum backend_gauge)i);
	}
	for (unsigned i = 0; i < BACKEND_COUNTER_COUNT; i++)
		report_number(r, (int64_t)backend_counter(
					 b, (enum backend_counter)i));
}

static void show_backends(struct worker *w, struct report *r)
{
	struct farm *farm = w->weir->farm;

	report_table(r, "backends", "", backend_columns,
		     sizeof(backend_columns) / sizeof(backend_columns[0]));
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b != NULL)
			backend_row(w, r, b);
	}
}

/* ---- show sessions ---- */

static const struct report_column session_columns[] = {
	{ "id", REPORT_LEFT, REPORT_ALL },
	{ "client", REPORT_LEFT, REPORT_ALL },
	{ "listener", REPORT_LEFT, REPORT_ALL },
	{ "worker", REPORT_RIGHT, REPORT_MACHINE },
	{ "state", REPORT_LEFT, REPORT_ALL },
	{ "backend", REPORT_LEFT, REPORT_ALL },
	{ "age", REPORT_RIGHT, REPORT_PEOPLE },
	{ "age_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "waits", REPORT_RIGHT, REPORT_PEOPLE },
	{ "waits_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "held", REPORT_RIGHT, REPORT_ALL },
	{ "octets_in", REPORT_RIGHT, REPORT_ALL },
	{ "octets_out", REPORT_RIGHT, REPORT_ALL },
	{ "messages", REPORT_RIGHT, REPORT_ALL },
	{ "errors", REPORT_RIGHT, REPORT_ALL },
	{ "helo", REPORT_LEFT, REPORT_ALL },
};

/* What it does, for people: the states of a session say less. */
static const char *session_word(const struct client *c)
{
	const struct session *s = &c->session;

	if (c->ticket != 0)
		return "waiting";
	if (s->state == SESSION_BODY && s->message.parked && !s->bound)
		return "parked";
	return session_state_name(s->state);
}

static void session_row(struct worker *w, struct report *r,
			const struct worker *owner, const struct client *c)
{
	const struct session *s = &c->session;
	char text[CIDR_ADDR_TEXT_MAX + 16];
	char id[CONTROL_ID_MAX];
	size_t n = control_id_format(c->id, id);

	report_text(r, id, n);
	(void)snprintf(text, sizeof(text),
		       cidr_addr_is_v4(&c->addr) ? "%s:%u" : "[%s]:%u",
		       c->addr_text, c->port);
	report_word(r, text);
	report_word(r, s->listener->name);
	report_number(r, owner->index);
	report_word(r, session_word(c));
	report_word(r, c->backend);
	show_age(r, w->now_ms - s->opened_ms);
	if (c->ticket != 0) {
		show_age(r, w->now_ms - c->ticket_ms);
	} else {
		report_none(r);
		report_none(r);
	}
	report_number(r, (int64_t)(c->body.len + c->envelope.len));
	report_number(r, (int64_t)c->octets_in);
	report_number(r, (int64_t)c->octets_out);
	report_number(r, s->messages);
	report_number(r, s->errors);
	report_text(r, s->helo, s->helo_len);
}

static void show_sessions(struct worker *w, struct report *r)
{
	unsigned rows = 0;

	report_table(r, "sessions", "", session_columns,
		     sizeof(session_columns) / sizeof(session_columns[0]));
	for (unsigned i = 0; i < w->weir->worker_count; i++) {
		struct worker *other = w->weir->workers[i];
		unsigned shown = 0;

		if (other == NULL)
			continue;
		control_lock(w, other);
		for (const struct client *c = other->clients.next;
		     c != &other->clients && rows < OPERATOR_SESSIONS_MAX;
		     c = c->next) {
			session_row(w, r, other, c);
			rows++;
			shown++;
		}
		report_more(r, other->client_count - shown);
		control_unlock(w, other);
	}
}

/* ---- show sources, show bans ---- */

static const struct report_column source_columns[] = {
	{ "kind", REPORT_LEFT, REPORT_ALL },
	{ "network", REPORT_LEFT, REPORT_ALL },
	{ "sessions", REPORT_RIGHT, REPORT_ALL },
	{ "accepted", REPORT_RIGHT, REPORT_ALL },
	{ "refused", REPORT_RIGHT, REPORT_ALL },
	{ "limited", REPORT_RIGHT, REPORT_ALL },
	{ "errors", REPORT_RIGHT, REPORT_ALL },
	{ "seen", REPORT_RIGHT, REPORT_PEOPLE },
	{ "seen_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "last_refused", REPORT_RIGHT, REPORT_PEOPLE },
	{ "last_refused_ms", REPORT_RIGHT, REPORT_MACHINE },
};

static void put_net(struct report *r, const struct cidr *net)
{
	char text[CIDR_TEXT_MAX];
	size_t n = cidr_format(net, text, sizeof(text));

	report_text(r, text, n);
}

static void source_row(struct worker *w, struct report *r, const char *kind,
		       const struct admission_row *row)
{
	report_word(r, kind);
	put_net(r, &row->net);
	report_number(r, row->sessions);
	report_number(r, (int64_t)row->accepted);
	report_number(r, (int64_t)row->refused);
	report_number(r, (int64_t)row->limited);
	report_number(r, (int64_t)row->errors);
	show_age(r, w->now_ms - row->last_seen_ms);
	if (row->last_refused_ms >= 0) {
		show_age(r, w->now_ms - row->last_refused_ms);
		return;
	}
	report_none(r);
	report_none(r);
}

static void show_sources(struct worker *w, struct report *r)
{
	static const struct {
		enum admission_kind kind;
		const char *name;
	} kinds[] = {
		{ ADMISSION_KIND_SOURCE, "source" },
		{ ADMISSION_KIND_AGGREGATE, "aggregate" },
	};
	struct admission_row *rows = control_of(w)->sources;

	report_table(r, "sources", "", source_columns,
		     sizeof(source_columns) / sizeof(source_columns[0]));
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		size_t n = admission_top(w->weir->admission, kinds[k].kind,
					 rows, OPERATOR_SOURCES_MAX);

		for (size_t i = 0; i < n; i++)
			source_row(w, r, kinds[k].name, &rows[i]);
	}
}

static const struct report_column ban_columns[] = {
	{ "network", REPORT_LEFT, REPORT_ALL },
	{ "left", REPORT_RIGHT, REPORT_PEOPLE },
	{ "left_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "refused", REPORT_RIGHT, REPORT_ALL },
};

static void show_bans(struct worker *w, struct report *r)
{
	struct admission_ban *bans = control_of(w)->bans;
	size_t n = admission_bans(w->weir->admission, bans, ADMISSION_BANS_MAX,
				  w->now_ms);

	report_table(r, "bans", "", ban_columns,
		     sizeof(ban_columns) / sizeof(ban_columns[0]));
	for (size_t i = 0; i < n; i++) {
		put_net(r, &bans[i].net);
		if (bans[i].until_ms == ADMISSION_FOREVER) {
			report_word(r, "for ever");
			report_none(r);
		} else {
			show_age(r, bans[i].until_ms - w->now_ms);
		}
		report_number(r, (int64_t)bans[i].refused);
	}
}

/* ---- all of them ---- */

void control_show(struct worker *w, enum control_verb verb, struct report *r)
{
	typedef void show_fn(struct worker *, struct report *);
	static show_fn *const shows[CONTROL_VERBS] = {
		[CONTROL_SHOW_INFO] = show_info,
		[CONTROL_SHOW_STAT] = show_stat,
		[CONTROL_SHOW_BACKENDS] = show_backends,
		[CONTROL_SHOW_HEALTH] = show_health,
		[CONTROL_SHOW_LIMITS] = show_limits,
		[CONTROL_SHOW_ROOM] = show_room,
		[CONTROL_SHOW_TLS] = show_tls,
		[CONTROL_SHOW_SESSIONS] = show_sessions,
		[CONTROL_SHOW_SOURCES] = show_sources,
		[CONTROL_SHOW_BANS] = show_bans,
	};

	assert(verb < CONTROL_VERBS);
	assert(shows[verb] != NULL);
	shows[verb](w, r);
	report_end(r);
}
