#include <assert.h>
#include <stdio.h>

#include "balancer/room.h"
#include "proxy/operator.h"

/*
 * `show limits` and `show room`: what is known of the backends' slots, and
 * who waits for one.
 */

/*
 * Refusals below its size before people are told: a server that just turns
 * out to be smaller than was thought gives a few, and then no more.
 */

/* ---- show limits ---- */

/* clang-format off */
static const struct report_column limit_columns[] = {
	{ "name", REPORT_LEFT, REPORT_ALL },
	{ "state", REPORT_LEFT, REPORT_ALL },
	{ "limit", REPORT_RIGHT, REPORT_ALL },
	{ "max", REPORT_RIGHT, REPORT_PEOPLE },
	{ "max_sessions", REPORT_RIGHT, REPORT_MACHINE },
	{ "greeted", REPORT_RIGHT, REPORT_ALL },
	{ "pending", REPORT_RIGHT, REPORT_ALL },
	{ "idle", REPORT_RIGHT, REPORT_ALL },
	{ "wall", REPORT_RIGHT, REPORT_ALL },
	{ "retry", REPORT_RIGHT, REPORT_PEOPLE },
	{ "retry_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "greets_in", REPORT_RIGHT, REPORT_PEOPLE },
	{ "baseline_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "busy", REPORT_RIGHT, REPORT_ALL },
	{ "cap", REPORT_RIGHT, REPORT_ALL },
	{ "maybe", REPORT_RIGHT, REPORT_ALL },
	{ "silent", REPORT_RIGHT, REPORT_ALL },
	{ "slow", REPORT_RIGHT, REPORT_ALL },
	{ "hold", REPORT_RIGHT, REPORT_PEOPLE },
	{ "hold_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "last", REPORT_LEFT, REPORT_ALL },
	{ "ago", REPORT_RIGHT, REPORT_PEOPLE },
	{ "ago_ms", REPORT_RIGHT, REPORT_MACHINE },
	{ "because", REPORT_LEFT, REPORT_MACHINE },
	{ "meaning", REPORT_LEFT, REPORT_PEOPLE }, /* or the alarm */
	{ "hold_why", REPORT_LEFT, REPORT_MACHINE },
	{ "accepted", REPORT_RIGHT, REPORT_MACHINE },
	{ "refused", REPORT_RIGHT, REPORT_MACHINE },
	{ "retries", REPORT_RIGHT, REPORT_MACHINE },
	{ "retries_refused", REPORT_RIGHT, REPORT_MACHINE },
	{ "gone", REPORT_RIGHT, REPORT_MACHINE },
	{ "alarm", REPORT_LEFT, REPORT_MACHINE },
	{ "below", REPORT_RIGHT, REPORT_MACHINE },
	{ "below_refused", REPORT_RIGHT, REPORT_MACHINE },
};
/* clang-format on */

static void put_counter(struct report *r, const struct backend *b,
			enum backend_counter which)
{
	report_number(r, (int64_t)backend_counter(b, which));
}

/* max_sessions: for people "auto", for machines nothing. */
static void put_ceiling(struct report *r, uint32_t ceiling)
{
	if (ceiling == LIMIT_MAX) {
		report_word(r, "auto");
		report_none(r);
		return;
	}
	report_number(r, ceiling);
	report_number(r, ceiling);
}

/* When one more than the limit may be tried, should all slots be taken. */
static void put_retry(struct report *r, const struct limit *l, int64_t now_ms)
{
	int64_t left_ms = l->next_probe_ms - now_ms;
	char text[CONTROL_AGE_MAX];

	if (limit_slots(l) >= l->ceiling) {
		report_none(r);
		report_none(r);
		return;
	}
	if (left_ms <= 0) {
		report_word(r, "now");
		report_number(r, 0);
		return;
	}
	(void)snprintf(text, sizeof(text), "%lld.%llds",
		       (long long)(left_ms / 1000),
		       (long long)(left_ms % 1000 / 100));
	report_word(r, text);
	report_number(r, left_ms);
}

static void put_baseline(struct report *r, const struct limit *l)
{
	char text[32];

	if (l->baseline_ms == 0) {
		report_none(r);
		report_none(r);
		return;
	}
	(void)snprintf(text, sizeof(text), "%lums",
		       (unsigned long)l->baseline_ms);
	report_word(r, text);
	report_number(r, l->baseline_ms);
}

static void put_meaning(struct report *r, const struct limit *l,
			const struct limit_below *below, bool alarmed)
{
	char text[160];

	report_word(r, limit_event_help(l->last));
	if (!alarmed) {
		report_word(r, limit_event_help(l->last));
		return;
	}
	(void)snprintf(
		text, sizeof(text),
		"ALARM: it refuses %llu%% well below its size: not for "
		"want of slots; look at its log",
		(unsigned long long)(below->all > 0
					     ? below->refused * 100 / below->all
					     : 0));
	report_word(r, text);
}

static void put_hold(struct report *r, const struct health *health,
		     int64_t now_ms)
{
	int64_t left_ms = health->until_ms - now_ms;
	char text[CONTROL_AGE_MAX];

	if (left_ms <= 0) {
		report_none(r);
		report_none(r);
		return;
	}
	size_t n = control_age_format(left_ms, text);

	report_text(r, text, n);
	report_number(r, left_ms);
}

static void limit_row(struct worker *w, struct report *r, struct backend *b)
{
	struct backend_view view;
	const struct limit *l = &view.limit;
	char text[CONTROL_AGE_MAX];

	backend_look(b, &view);

	const struct limit_below below = limit_below(l, w->now_ms);
	bool alarmed = limit_is_alarmed(l, w->now_ms);
	size_t n = control_age_format(w->now_ms - l->last_ms, text);

	report_word(r, b->name);
	report_word(r, health_state_name(view.health.state));
	report_number(r, limit_slots(l));
	put_ceiling(r, l->ceiling);
	report_number(r, l->n);
	report_number(r, l->p);
	report_number(r, (int64_t)backend_gauge(b, BACKEND_GAUGE_sessions_idle,
						w->now_ms));
	report_number(r, (int64_t)(l->wall + 0.5));
	put_retry(r, l, w->now_ms);
	put_baseline(r, l);
	put_counter(r, b, BACKEND_COUNT_class_busy);
	put_counter(r, b, BACKEND_COUNT_class_cap);
	put_counter(r, b, BACKEND_COUNT_class_maybe_busy);
	put_counter(r, b, BACKEND_COUNT_greeting_silent);
	report_number(r, (int64_t)l->slow);
	put_hold(r, &view.health, w->now_ms);
	report_word(r, limit_event_name(l->last));
	report_text(r, text, n);
	report_number(r, w->now_ms - l->last_ms);
	put_meaning(r, l, &below, alarmed);
	report_word(r, health_why_name(view.health.why));
	report_number(r, (int64_t)l->accepted);
	report_number(r, (int64_t)l->refused);
	report_number(r, (int64_t)l->probes);
	report_number(r, (int64_t)l->probes_refused);
	report_number(r, (int64_t)l->gone);
	report_word(r, alarmed ? "yes" : "no");
	report_number(r, (int64_t)below.all);
	report_number(r, (int64_t)below.refused);
}

void show_limits(struct worker *w, struct report *r)
{
	struct farm *farm = w->weir->farm;

	report_table(r, "limits", "", limit_columns,
		     sizeof(limit_columns) / sizeof(limit_columns[0]));
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b != NULL)
			limit_row(w, r, b);
	}
}

/* ---- show room ---- */

void show_room(struct worker *w, struct report *r)
{
	struct room_view view = { 0 };
	const struct room_policy *policy = &view.policy;
	int64_t saturated_ms = 0;

	if (w->weir->room != NULL)
		room_look(w->weir->room, w->now_ms, &view);
	if (view.saturated)
		saturated_ms = w->now_ms - view.saturated_since_ms;
	report_list(r);
	report_key_number(r, "waiting", view.waiting);
	report_key_number(r, "size", policy->size);
	report_key_number(r, "sources", view.sources);
	report_key_number(r, "per_source", policy->per_source);
	report_key_number(r, "reserve_percent", policy->reserve_percent);
	report_key_number(r, "called", view.called);
	report_key_number(r, "oldest_ms", view.oldest_ms);
	report_key_number(r, "wait_max_ms", policy->wait_ms);
	report_key_number(r, "wait_p50_ms", view.wait_p50_ms);
	report_key_number(r, "wait_p99_ms", view.wait_p99_ms);
	report_key_number(r, "pressure_percent", view.pressure);
	report_key_number(r, "high_percent", policy->high_percent);
	report_key_number(r, "low_percent", policy->low_percent);
	report_key_word(r, "saturated", view.saturated ? "yes" : "no");
	report_key_number(r, "saturated_ms", saturated_ms);
	report_key_number(r, "saturated_after_ms", policy->saturated_after_ms);
	for (unsigned i = 0; i < ROOM_COUNTER_COUNT; i++)
		report_key_number(r, room_counter_rows[i].name,
				  (int64_t)view.counters[i]);
}
