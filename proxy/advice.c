#include "proxy/advice.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
	FULL_PERCENT = 95,  /* of the slots in use, with somebody waiting */
	TIGHT_PERCENT = 90, /* the same, with nobody waiting */
	PATIENT_MS = 1000,  /* a wait that slots changing hands explains */
	LEARNING_MS = 5000, /* a wait that learning explains */
	SCALE_FACTOR = 2,   /* a max_sessions that is farther off: not drawn */
	SECOND_MS = 1000,
	MINUTE_MS = 60 * SECOND_MS,
	HOUR_MS = 60 * MINUTE_MS,
	HOURS_FROM_MS = 2 * HOUR_MS,
};

typedef bool advice_test(const struct advice_backend *b);

/* --- writing --- */

__attribute__((format(printf, 2, 3))) static void add(struct advice_line *line,
						      const char *format, ...)
{
	size_t len = strlen(line->text);
	va_list args;

	va_start(args, format);
	(void)vsnprintf(line->text + len, sizeof(line->text) - len, format,
			args);
	va_end(args);
}

/* NULL if there are enough. */
static struct advice_line *new_line(struct advice *advice,
				    enum advice_mood mood)
{
	if (advice->count == ADVICE_LINES_MAX)
		return NULL;
	struct advice_line *line = &advice->lines[advice->count++];

	line->mood = mood;
	line->text[0] = '\0';
	return line;
}

size_t advice_time(int64_t ms, char text[ADVICE_TIME_MAX])
{
	long long n = ms > 0 ? ms : 0;
	int len;

	if (n < SECOND_MS) {
		len = snprintf(text, ADVICE_TIME_MAX, "%lld ms", n);
	} else if (n < MINUTE_MS) {
		len = snprintf(text, ADVICE_TIME_MAX, "%lld.%lld s",
			       n / SECOND_MS, n % SECOND_MS / 100);
	} else if (n < HOURS_FROM_MS) {
		len = snprintf(text, ADVICE_TIME_MAX, "%lld min",
			       n / MINUTE_MS);
	} else {
		len = snprintf(text, ADVICE_TIME_MAX, "%lld h", n / HOUR_MS);
	}
	assert(len > 0);
	return (size_t)len;
}

static const char *plural(uint32_t n)
{
	return n == 1 ? "" : "s";
}

/* --- looking --- */

static bool is_serving(const struct advice_backend *b)
{
	return b->place == ADVICE_SERVING;
}

static bool is_failing(const struct advice_backend *b)
{
	return b->place == ADVICE_FAILING;
}

static bool is_resting(const struct advice_backend *b)
{
	return b->place == ADVICE_RESTING;
}

static bool is_aside(const struct advice_backend *b)
{
	return b->place == ADVICE_ASIDE;
}

static bool is_alarmed(const struct advice_backend *b)
{
	return b->place == ADVICE_SERVING && b->alarmed;
}

/* max_sessions keeps it where it is, not the server. */
static bool is_capped(const struct advice_backend *b)
{
	return is_serving(b) && b->ceiling > 0 && b->limit >= b->ceiling &&
	       b->used >= b->ceiling;
}

/* It might take more than it was ever given. */
static bool is_open(const struct advice_backend *b)
{
	return is_serving(b) && !b->measured &&
	       (b->ceiling == 0 || b->limit < b->ceiling);
}

/* An operator who set it aside need not hear of it. */
static bool is_relay(const struct advice_backend *b)
{
	return b->relay == ADVICE_RELAY_OPEN && !is_aside(b);
}

static bool is_unasked(const struct advice_backend *b)
{
	return b->relay == ADVICE_RELAY_UNKNOWN && is_serving(b);
}

static bool is_expiring(const struct advice_backend *b)
{
	return b->cert_known && b->cert_days < ADVICE_CERT_DAYS && !is_aside(b);
}

static unsigned count(const struct advice_farm *farm, advice_test *test)
{
	unsigned n = 0;

	for (unsigned i = 0; i < farm->count; i++)
		n += test(&farm->backends[i]);
	return n;
}

/* "mx1, mx2 and 3 more", each with its state if that is wanted. */
static void add_names(struct advice_line *line, const struct advice_farm *farm,
		      advice_test *test, bool state)
{
	unsigned all = count(farm, test);
	unsigned named = all > ADVICE_NAMES_MAX + 1 ? ADVICE_NAMES_MAX : all;
	unsigned n = 0;

	for (unsigned i = 0; i < farm->count && n < named; i++) {
		const struct advice_backend *b = &farm->backends[i];

		if (!test(b))
			continue;
		n++;
		if (n > 1)
			add(line, n == all ? " and " : ", ");
		add(line, "%s", b->name);
		if (state)
			add(line, " (%s)", b->state);
	}
	if (named < all)
		add(line, " and %u more", all - named);
}

struct advice_slots advice_count_slots(const struct advice_farm *farm)
{
	struct advice_slots slots = { 0 };

	for (unsigned i = 0; i < farm->count; i++) {
		const struct advice_backend *b = &farm->backends[i];

		if (b->place != ADVICE_SERVING)
			continue;
		slots.used += b->used;
		slots.all += b->limit;
	}
	return slots;
}

/* The middle of the limits of those that serve, but for one. */
static uint32_t middle_of_peers(const struct advice_farm *farm,
				const struct advice_backend *but)
{
	unsigned peers = count(farm, is_serving) - 1;

	for (unsigned i = 0; i < farm->count; i++) {
		const struct advice_backend *b = &farm->backends[i];
		unsigned below = 0, same = 0;

		if (b == but || b->place != ADVICE_SERVING)
			continue;
		for (unsigned j = 0; j < farm->count; j++) {
			const struct advice_backend *c = &farm->backends[j];

			if (c == but || c->place != ADVICE_SERVING)
				continue;
			below += c->limit < b->limit;
			same += c->limit == b->limit;
		}
		if (below <= (peers - 1) / 2 && below + same > (peers - 1) / 2)
			return b->limit;
	}
	return 0;
}

/* The smallest of those that serve, if it is two thirds of its peers or
 * less; else NULL. */
static const struct advice_backend *find_small(const struct advice_farm *farm,
					       uint32_t *peers)
{
	const struct advice_backend *small = NULL;

	for (unsigned i = 0; i < farm->count; i++) {
		const struct advice_backend *b = &farm->backends[i];

		if (is_serving(b) && !is_capped(b) && !b->alarmed &&
		    (small == NULL || b->limit < small->limit))
			small = b;
	}
	if (small == NULL || count(farm, is_serving) < 2)
		return NULL;
	*peers = middle_of_peers(farm, small);
	return (uint64_t)small->limit * 3 <= (uint64_t)*peers * 2 ? small
								  : NULL;
}

/* --- what could be done --- */

/* ": add a backend, or ..." */
static void add_remedies(struct advice_line *line,
			 const struct advice_farm *farm)
{
	const char *before = ": ";
	uint32_t peers = 0;
	const struct advice_backend *small = find_small(farm, &peers);

	if (count(farm, is_failing) > 0) {
		add(line, "%sbring back ", before);
		add_names(line, farm, is_failing, true);
		before = ", or ";
	}
	if (count(farm, is_capped) > 0) {
		add(line, "%sraise max_sessions of ", before);
		add_names(line, farm, is_capped, false);
		add(line, ", which %s reached",
		    count(farm, is_capped) == 1 ? "it has" : "they have");
		before = ", or ";
	}
	add(line, "%sadd a backend", before);
	if (small != NULL) {
		add(line,
		    ", or raise the limit of %s, which takes %u session%s "
		    "while its peers take %u",
		    small->name, small->limit, plural(small->limit), peers);
	}
	add(line, ".");
}

static void add_wait(struct advice_line *line, const struct advice_room *room)
{
	char text[ADVICE_TIME_MAX];

	add(line, "%u session%s wait%s", room->waiting, plural(room->waiting),
	    room->waiting == 1 ? "s" : "");
	if (room->wait_p99_ms > 0) {
		(void)advice_time(room->wait_p99_ms, text);
		add(line, " (p99 %s)", text);
	} else if (room->oldest_ms > 0) {
		(void)advice_time(room->oldest_ms, text);
		add(line, " (%s so far)", text);
	}
}

/* --- verdicts --- */

static void judge_no_server(const struct advice_farm *farm,
			    struct advice *advice)
{
	struct advice_line *line = new_line(advice, ADVICE_BAD);

	assert(line != NULL);
	if (farm->count == 0) {
		add(line, "There is no backend: add one by \"weirctl add "
			  "backend NAME address=ADDR:25\".");
		return;
	}
	if (count(farm, is_aside) == farm->count) {
		add(line, "No backend takes mail: ");
		add_names(line, farm, is_aside, true);
		add(line, farm->count == 1 ? " is set so" : " are set so");
		add(line, " by an operator; \"weirctl set backend NAME "
			  "ready\" ends that.");
		return;
	}
	add(line, "No backend takes mail now, clients are told to come again "
		  "(4xx): ");
	if (count(farm, is_failing) > 0) {
		add(line, "repair ");
		add_names(line, farm, is_failing, true);
		add(line, ".");
		return;
	}
	add_names(line, farm, is_resting, true);
	add(line, " will be tried again in a moment.");
}

/* All slots are in use, and somebody waits. */
static void judge_full(const struct advice_farm *farm,
		       const struct advice_slots *slots, struct advice *advice)
{
	const struct advice_room *room = &farm->room;
	struct advice_line *line = new_line(advice, ADVICE_WARN);

	assert(line != NULL);
	if (slots->used < slots->all) {
		add(line, "%u of the %u slots that the farm offers are",
		    slots->used, slots->all);
	} else if (slots->all == 1) {
		add(line, "The only slot that the farm offers is");
	} else {
		add(line, "All %u slots that the farm offers are", slots->all);
	}
	add(line, " in use and ");
	add_wait(line, room);
	add_remedies(line, farm);
}

/* Somebody waits, but a backend has not yet shown what it takes. */
static void judge_learning(const struct advice_farm *farm,
			   struct advice *advice)
{
	const struct advice_room *room = &farm->room;
	struct advice_line *line = new_line(
		advice,
		room->oldest_ms < LEARNING_MS ? ADVICE_GOOD : ADVICE_WARN);

	assert(line != NULL);
	add_wait(line, room);
	add(line, " while weir learns what ");
	add_names(line, farm, is_open, false);
	add(line,
	    count(farm, is_open) == 1
		    ? " takes: it has refused nothing yet, and its limit grows "
		      "with each session that it accepts."
		    : " take: they have refused nothing yet, and their limits "
		      "grow with each session that they accept.");
	if (room->oldest_ms >= LEARNING_MS)
		add(line, "  If this lasts, they greet slowly: \"weirctl show "
			  "limits\".");
}

/* Somebody waits although there are slots. */
static void judge_picky(const struct advice_farm *farm,
			const struct advice_slots *slots, struct advice *advice)
{
	struct advice_line *line = new_line(advice, ADVICE_WARN);

	assert(line != NULL);
	add_wait(line, &farm->room);
	add(line,
	    " although only %u of %u slots are in use: those backends have "
	    "refused them before, or do not offer what they need (a large "
	    "SIZE, SMTPUTF8 and so on: \"weirctl show health\").",
	    slots->used, slots->all);
}

/* Nobody waits, and there is little to spare. */
static void judge_tight(const struct advice_farm *farm,
			const struct advice_slots *slots, struct advice *advice)
{
	bool open = count(farm, is_open) > 0;
	struct advice_line *line = new_line(advice,
					    open ? ADVICE_GOOD : ADVICE_WARN);

	assert(line != NULL);
	add(line, "%u of %u slot%s in use and nobody waits", slots->used,
	    slots->all, plural(slots->all));
	if (open) {
		add(line, "; ");
		add_names(line, farm, is_open, false);
		add(line, count(farm, is_open) == 1
				  ? " has refused nothing yet, so there is "
				    "more: how much, is learned when it is "
				    "needed."
				  : " have refused nothing yet, so there is "
				    "more: how much, is learned when it is "
				    "needed.");
		return;
	}
	if (farm->room.size == 0)
		add(line, " ([room] size = 0), who finds no slot reads 451");
	else
		add(line, ", but there is nothing to spare");
	add_remedies(line, farm);
}

static void judge_roomy(const struct advice_slots *slots, struct advice *advice)
{
	struct advice_line *line = new_line(advice, ADVICE_GOOD);

	assert(line != NULL);
	add(line, "Room to spare: %u of %u slot%s in use.", slots->used,
	    slots->all, plural(slots->all));
}

static void judge_farm(const struct advice_farm *farm, struct advice *advice)
{
	const struct advice_slots slots = advice_count_slots(farm);
	const struct advice_room *room = &farm->room;
	uint64_t percent = slots.all > 0
				   ? (uint64_t)slots.used * 100 / slots.all
				   : 0;
	char text[ADVICE_TIME_MAX];
	bool full = room->waiting > 0 && percent >= FULL_PERCENT;

	if (full && count(farm, is_open) > 0)
		judge_learning(farm, advice);
	else if (full)
		judge_full(farm, &slots, advice);
	else if (room->waiting > 0 && room->oldest_ms > PATIENT_MS)
		judge_picky(farm, &slots, advice);
	else if (percent >= TIGHT_PERCENT)
		judge_tight(farm, &slots, advice);
	else
		judge_roomy(&slots, advice);
	if (!room->saturated)
		return;
	advice->lines[0].mood = ADVICE_BAD;
	(void)advice_time(room->saturated_ms, text);
	add(&advice->lines[0],
	    "  For %s new clients have been turned away (421).", text);
}

static void warn_alarmed(const struct advice_backend *b, struct advice *advice)
{
	struct advice_line *line = new_line(advice, ADVICE_BAD);

	if (line == NULL)
		return;
	add(line, "%s refuses ", b->name);
	if (b->below > 0)
		add(line, "%u %% of the ",
		    (unsigned)((uint64_t)b->below_refused * 100 / b->below));
	add(line, "sessions well below its size: not a question of slots; "
		  "look at its log.");
}

static void warn_relays(const struct advice_farm *farm, struct advice *advice)
{
	struct advice_line *line;
	unsigned n = count(farm, is_relay);

	line = n > 0 ? new_line(advice, ADVICE_BAD) : NULL;
	if (line != NULL) {
		add_names(line, farm, is_relay, false);
		add(line,
		    " would relay anybody's mail to anybody, for %s weir's "
		    "address; ",
		    n == 1 ? "it trusts" : "they trust");
		add(line, farm->guarded
				  ? "until that ends, only clients in "
				    "relay_from get there."
				  : "and with relay_guard = warn strangers get "
				    "there: spammers will find out.");
		add(line,
		    "  Take weir's address out of what %s, or tell %s who "
		    "the client is (identity).",
		    n == 1 ? "it trusts" : "they trust",
		    n == 1 ? "it" : "them");
	}
	n = farm->guarded ? count(farm, is_unasked) : 0;
	line = n > 0 ? new_line(advice, ADVICE_WARN) : NULL;
	if (line != NULL) {
		add_names(line, farm, is_unasked, false);
		add(line,
		    " get%s no mail of strangers yet: whether %s would relay "
		    "it to strangers is not known.  \"weirctl show health "
		    "json\" has what %s answered.",
		    n == 1 ? "s" : "", n == 1 ? "it" : "they",
		    n == 1 ? "it" : "they");
	}
}

/* "expires in 9 days" */
static void add_days(struct advice_line *line, uint64_t days)
{
	if (days == 0)
		add(line, "has expired, or will today");
	else
		add(line, "expires in %llu day%s", (unsigned long long)days,
		    days == 1 ? "" : "s");
}

static void warn_certs(const struct advice_farm *farm, struct advice *advice)
{
	const struct advice_cert *first = NULL;
	struct advice_line *line;
	unsigned n = 0;

	for (unsigned i = 0; i < farm->cert_count; i++) {
		const struct advice_cert *c = &farm->certs[i];

		if (c->days >= ADVICE_CERT_DAYS)
			continue;
		n++;
		if (first == NULL || c->days < first->days)
			first = c;
	}
	line = first == NULL ? NULL
			     : new_line(advice, first->days == 0 ? ADVICE_BAD
								 : ADVICE_WARN);
	if (line == NULL)
		return;
	add(line, "The certificate of [listener %s] for %s ", first->listener,
	    first->names);
	add_days(line, first->days);
	if (n > 1)
		add(line, ", and %u more will soon", n - 1);
	add(line, ": have %s renewed, and then \"weirctl reload\".",
	    n == 1 ? "it" : "them");
}

static void warn_backend_certs(const struct advice_farm *farm,
			       struct advice *advice)
{
	const struct advice_backend *first = NULL;
	unsigned n = count(farm, is_expiring);
	struct advice_line *line;

	for (unsigned i = 0; i < farm->count; i++) {
		const struct advice_backend *b = &farm->backends[i];

		if (is_expiring(b) &&
		    (first == NULL || b->cert_days < first->cert_days))
			first = b;
	}
	line = first == NULL
		       ? NULL
		       : new_line(advice, first->cert_days == 0 ? ADVICE_BAD
								: ADVICE_WARN);
	if (line == NULL)
		return;
	add(line, "The certificate of %s ", first->name);
	add_days(line, first->cert_days);
	if (n > 1) {
		add(line, "; ");
		add_names(line, farm, is_expiring, false);
		add(line, " have less than %d days left", ADVICE_CERT_DAYS);
	}
	add(line, ".");
}

void advice_give(const struct advice_farm *farm, struct advice *advice)
{
	advice->count = 0;
	if (count(farm, is_serving) == 0)
		judge_no_server(farm, advice);
	else
		judge_farm(farm, advice);
	warn_relays(farm, advice);
	warn_certs(farm, advice);
	warn_backend_certs(farm, advice);
	for (unsigned i = 0; i < farm->count; i++) {
		if (is_alarmed(&farm->backends[i]))
			warn_alarmed(&farm->backends[i], advice);
	}
	if (!farm->observe)
		return;
	struct advice_line *line = new_line(advice, ADVICE_WARN);

	if (line != NULL) {
		add(line, "weir only observes ([farm] busy = observe): limits "
			  "are learned and not kept, and busy replies may "
			  "reach clients.");
	}
}

/* --- bars --- */

uint32_t advice_scale(const struct advice_farm *farm)
{
	uint32_t most = 1, far;

	for (unsigned i = 0; i < farm->count; i++) {
		const struct advice_backend *b = &farm->backends[i];
		uint32_t own = b->limit > b->used ? b->limit : b->used;

		if (own > most)
			most = own;
	}
	far = most;
	for (unsigned i = 0; i < farm->count; i++) {
		uint32_t ceiling = farm->backends[i].ceiling;

		if (ceiling > far && ceiling / SCALE_FACTOR <= most)
			far = ceiling;
	}
	return far;
}

/* Columns for so many slots; something is never nothing. */
static unsigned columns(uint32_t slots, uint32_t scale, unsigned width)
{
	uint64_t n = ((uint64_t)slots * width + scale / 2) / scale;

	if (n == 0 && slots > 0)
		n = 1;
	return n < width ? (unsigned)n : width;
}

void advice_bar(const struct advice_backend *backend, uint32_t scale,
		unsigned width, char *text)
{
	assert(scale > 0);
	unsigned used = columns(backend->used, scale, width);
	unsigned limit = columns(backend->limit, scale, width);
	unsigned ceiling = columns(backend->ceiling, scale, width);

	/* Full is full only if it is. */
	if (used >= limit && backend->used < backend->limit && limit > 1)
		used = limit - 1;
	memset(text, ' ', width);
	memset(text, '.', limit);
	memset(text, '#', used);
	if (backend->ceiling > 0 && backend->ceiling <= scale &&
	    ceiling > limit && ceiling > used)
		text[ceiling - 1] = '|';
	text[width] = '\0';
}
