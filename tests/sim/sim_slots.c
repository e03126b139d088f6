#include "tests/sim/sim_slots.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim_io.h"

enum {
	ROWS_MAX = 4096,
	FREE_US = 200 * SIM_MS,  /* that weir may take to see what is free */
	CALLED_US = 20 * SIM_MS, /* and to tell who was called */
};

/* --- connections --- */

static void count_row(struct sim_slots *s, const struct sim_io_row *row)
{
	if (row->accepted || row->peer == NULL)
		return;
	for (uint16_t i = 0; i < farm_size(s->farm); i++) {
		const struct backend *b = farm_at(s->farm, i);
		union sim_addr peer;

		if (b == NULL)
			continue;
		memset(&peer, 0, sizeof(peer));
		memcpy(&peer, &b->peer, b->peer_len);
		if (!sim_addr_equal(&row->peer->sa, &peer.sa))
			continue;
		s->all[i]++;
		s->open[i] += !row->ended;
		return;
	}
}

static void count(struct sim_slots *s)
{
	static struct sim_io_row rows[ROWS_MAX];

	memset(s->open, 0, sizeof(s->open));
	memset(s->all, 0, sizeof(s->all));
	for (unsigned i = 0; i < s->io_count; i++) {
		size_t n = sim_io_rows(s->ios[i], rows, ROWS_MAX);

		assert(n <= ROWS_MAX);
		for (size_t k = 0; k < n; k++)
			count_row(s, &rows[k]);
	}
}

static void count_changes(struct sim_slots *s)
{
	bool changed = false;

	for (unsigned i = 0; i < s->io_count; i++) {
		uint64_t changes = sim_io_changes(s->ios[i]);

		changed = changed || s->changes[i] != changes;
		s->changes[i] = changes;
	}
	if (changed)
		count(s);
}

/* --- one backend's books --- */

static bool has_called(const struct sim_slots *s)
{
	for (unsigned i = 0; i < s->io_count; i++) {
		if (room_has_called(s->room, i))
			return true;
	}
	return false;
}

/* How many slots lie in the room. */
static unsigned called(const struct sim_slots *s)
{
	struct room_view view;

	if (!has_called(s))
		return 0;
	room_look(s->room, sim_now_us(s->sim) / SIM_MS + 1, &view);
	return view.called;
}

static void check_limit(const struct sim_slots *s, const struct backend *b)
{
	const struct limit *l = &b->limit;

	if (l->l < 1 || l->l > l->ceiling || l->ceiling != b->max_sessions) {
		sim_violation(s->sim,
			      "%s: the learned limit is %.3f, the ceiling %u, "
			      "max_sessions %u",
			      b->name, l->l, l->ceiling, b->max_sessions);
	}
	if (l->pp > l->p || l->n + l->p > b->inflight ||
	    b->kept > b->inflight) {
		sim_violation(s->sim,
			      "%s: %u greeted, %u pending, %u probes, %u kept, "
			      "but %u slots",
			      b->name, l->n, l->p, l->pp, b->kept, b->inflight);
	}
}

static void check_backend(const struct sim_slots *s, const struct backend *b)
{
	unsigned open = s->open[b->index], all = s->all[b->index];

	check_limit(s, b);
	if (open > b->inflight || b->limit.n > all) {
		sim_violation(s->sim,
			      "%s: %u connections and %u being closed, but %u "
			      "slots, %u greeted",
			      b->name, open, all - open, b->inflight,
			      b->limit.n);
	}
	if (b->inflight > all && b->inflight > all + called(s)) {
		sim_violation(s->sim, "%s: %u slots, but %u connections",
			      b->name, b->inflight, all);
	}
}

/* --- the room --- */

static bool looking;

bool sim_slots_are_looking(void)
{
	return looking;
}

static bool has_tried(const struct balancer_need *need, uint16_t index)
{
	for (unsigned i = 0; i < need->tried_count; i++) {
		if (need->tried[i] == index)
			return true;
	}
	return false;
}

/* Is it in service, beyond doubt, and offers what is needed? */
static bool is_fit(const struct backend *b, const struct balancer_need *need)
{
	return b != NULL && backend_state(b) == HEALTH_UP &&
	       backend_admin_state(b) == BACKEND_READY && b->ext_known &&
	       (need->ext & ~b->ext) == 0 && need->size == 0 &&
	       (!need->stranger || backend_bars(b) == BACKEND_RELAY_CLOSED);
}

/* Is there another one to be tried?  If not, it is to be tried again. */
static bool others_are_left(struct farm *farm, const struct balancer_need *need)
{
	for (uint16_t i = 0; i < farm_size(farm); i++) {
		const struct backend *b = farm_at(farm, i);

		if (b != NULL && !has_tried(need, i))
			return true;
	}
	return false;
}

/* A backend with a slot for what is needed, or NULL. */
static const struct backend *slot_for(struct farm *farm,
				      const struct balancer_need *need)
{
	bool again = !others_are_left(farm, need);

	for (uint16_t i = 0; i < farm_size(farm); i++) {
		const struct backend *b = farm_at(farm, i);

		if (is_fit(b, need) && (again || !has_tried(need, i)) &&
		    limit_admits(&b->limit) && b->inflight < b->max_sessions)
			return b;
	}
	return NULL;
}

/* A backend with a slot for somebody who waits, or NULL. */
static const struct backend *waits_in_vain(const struct sim_slots *s)
{
	struct room_turn turn;

	for (unsigned skip = 0; skip < ROOM_LOOKAHEAD; skip++) {
		if (!room_next(s->room, -1, skip, &turn))
			return NULL;
		const struct backend *b = slot_for(s->farm, &turn.need);
		if (b != NULL)
			return b;
	}
	return NULL;
}

/* It is so, or not; and until now it was as it was at the last look. */
static int64_t note_since(const struct sim_slots *s, int64_t *since_us, bool so)
{
	int64_t now_us = sim_now_us(s->sim);
	int64_t lasted_us = *since_us == 0 ? 0 : now_us - *since_us;

	if (!so)
		*since_us = 0;
	else if (*since_us == 0)
		*since_us = now_us + 1;
	return lasted_us;
}

static void check_room(struct sim_slots *s)
{
	looking = true;
	const struct backend *b = waits_in_vain(s);
	looking = false;
	const char *where = b != NULL ? b->name : s->where;

	if (note_since(s, &s->waits_us, b != NULL) > FREE_US) {
		sim_violation(s->sim, "%u wait, though %s has a slot free",
			      room_waiting(s->room), where);
	}
	if (note_since(s, &s->called_us, has_called(s)) > CALLED_US)
		sim_violation(s->sim, "somebody was called and is not told");
	if (b != NULL)
		snprintf(s->where, sizeof(s->where), "%s", b->name);
}

void sim_slots_check(struct sim_slots *s, bool draining)
{
	assert(s->io_count <= SIM_SLOTS_IOS);
	assert(farm_size(s->farm) <= SIM_SLOTS_BACKENDS);
	count_changes(s);
	for (uint16_t i = 0; i < farm_size(s->farm); i++) {
		const struct backend *b = farm_at(s->farm, i);

		if (b != NULL)
			check_backend(s, b);
	}
	/* Who drains need not serve those who wait. */
	if (!draining)
		check_room(s);
}

bool sim_slots_are_home(const struct sim_slots *s)
{
	for (uint16_t i = 0; i < farm_size(s->farm); i++) {
		const struct backend *b = farm_at(s->farm, i);

		if (b != NULL &&
		    (b->inflight != 0 || b->kept != 0 || b->limit.n != 0 ||
		     b->limit.p != 0 || b->limit.pp != 0))
			return false;
	}
	return room_waiting(s->room) == 0 && !has_called(s);
}
