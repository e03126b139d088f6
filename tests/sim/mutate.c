#include "tests/sim/mutate.h"

#include <string.h>

#include "balancer/balancer.h"
#include "proxy/session.h"

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/*
 * The linker sends calls of these functions here (-Wl,--wrap=NAME), and
 * __real_NAME is the function itself.
 */
void __real_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan);
void __wrap_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan);
void __real_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot);
void __wrap_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot);
void __real_io_buf_put(struct io *io, struct io_buf *buf);
void __wrap_io_buf_put(struct io *io, struct io_buf *buf);

enum {
	RECORD_MAX = 60000, /* octets of a conversation kept for a replay */
	EVERY_RELEASE = 7,
	EVERY_PUT = 40,
	ENOUGH_BODY = 700,
};

/* One run has one bug; there is one run at a time. */
static struct {
	unsigned bug;
	unsigned count;
	unsigned calls;
	bool within;
	struct world *world;
	/* a conversation with a backend, to be said again to another */
	unsigned number;
	size_t len;
	bool ended;
	struct sim_end *ghost;
	char octets[RECORD_MAX];
} now;

static const char *const names[MUTATE_BUGS] = {
	[MUTATE_NONE] = "none",
	[MUTATE_EARLY_250] = "early-250",
	[MUTATE_REPLAY] = "replay",
	[MUTATE_LOST_SLOT] = "lost-slot",
	[MUTATE_WRONG_SESSION] = "wrong-session",
	[MUTATE_STALE_EVENT] = "stale-event",
	[MUTATE_ALTERED] = "altered-octet",
	[MUTATE_LEAK] = "leaked-buffer",
};

const char *mutate_name(unsigned bug)
{
	return bug < MUTATE_BUGS ? names[bug] : NULL;
}

unsigned mutate_find(const char *name)
{
	for (unsigned i = 1; i < MUTATE_BUGS; i++) {
		if (strcmp(names[i], name) == 0)
			return i;
	}
	return MUTATE_NONE;
}

unsigned mutate_count(void)
{
	return now.count;
}

/* --- between the modules --- */

void __wrap_session_step(struct session *s, const struct session_env *env,
			 const struct session_event *event,
			 struct session_plan *plan)
{
	static const char early[] = "250 2.0.0 Ok: queued\r\n";

	__real_session_step(s, env, event, plan);
	if (now.bug != MUTATE_EARLY_250)
		return;
	for (unsigned i = 0; i < plan->count; i++) {
		const struct session_act *act = &plan->acts[i];

		if (act->what != SESSION_DO_BODY ||
		    act->stage != BUSY_STAGE_EOD ||
		    plan->count == SESSION_ACTS_MAX)
			continue;
		plan->acts[plan->count++] = (struct session_act){
			.what = SESSION_DO_SAY,
			.text = early,
			.len = sizeof(early) - 1,
		};
		now.count++;
		return;
	}
}

void __wrap_balancer_release(struct farm *farm,
			     const struct balancer_slot *slot)
{
	if (now.bug == MUTATE_LOST_SLOT && ++now.calls % EVERY_RELEASE == 0) {
		now.count++;
		return;
	}
	__real_balancer_release(farm, slot);
}

void __wrap_io_buf_put(struct io *io, struct io_buf *buf)
{
	if (now.bug == MUTATE_LEAK && ++now.calls % EVERY_PUT == 0) {
		now.count++;
		return;
	}
	__real_io_buf_put(io, buf);
}

/* --- in the io --- */

static void to_another(struct io *io, io_handle socket,
		       const struct sim_io_row *row, const struct io_buf *buf)
{
	io_handle other = sim_io_other(io, socket, row->accepted);
	struct io_buf *copy;

	if (other == 0 || buf->len < 30 || now.calls++ % 9 != 0)
		return;
	copy = io_buf_get(io, buf->pool);
	if (copy == NULL)
		return;
	memcpy(copy->data, buf->data, buf->len);
	copy->len = buf->len;
	copy->room -= buf->len;
	now.within = true;
	now.count++;
	io_send(io, other, copy);
	now.within = false;
}

static void on_ghost(void *owner, struct sim_end *end, enum sim_what what,
		     int err)
{
	char buf[512];

	(void)owner;
	(void)err; /* no ghost complains */
	if (what == SIM_FAILED) {
		now.ghost = NULL;
		return;
	}
	if (what != SIM_DATA)
		return;
	while (sim_end_read(end, buf, sizeof(buf)) > 0)
		;
	if (now.len > 0)
		sim_end_say(end, now.octets, now.len);
	now.len = 0;
}

/* Keep what one backend is told; after its end of data tell another. */
static void record(struct io *io, const struct sim_io_row *row,
		   const struct io_buf *buf)
{
	static const char end[] = "\r\n.\r\n";
	struct world *w = now.world;

	(void)io;
	if (now.ended || now.ghost != NULL || row->number == 0)
		return;
	if (row->number != now.number) {
		if (buf->len < 4 || memcmp(buf->data, "EHLO c", 6) != 0)
			return;
		now.number = row->number;
		now.len = 0;
	}
	if (now.len + buf->len > RECORD_MAX)
		return;
	memcpy(now.octets + now.len, buf->data, buf->len);
	now.len += buf->len;
	if (now.len < 5 || memcmp(now.octets + now.len - 5, end, 5) != 0)
		return;
	for (unsigned i = 0; i < w->backend_count; i++) {
		if (sim_addr_equal(&row->peer->sa, &w->backend_addrs[i].sa))
			continue;
		now.ended = true;
		now.count++;
		now.ghost = sim_connect(w->sim, &w->backend_addrs[i].sa, NULL,
					on_ghost, NULL);
		return;
	}
}

static void on_sending(void *owner, struct io *io, io_handle socket,
		       const struct sim_io_row *row, struct io_buf *buf)
{
	(void)owner;
	if (now.within)
		return;
	if (now.bug == MUTATE_WRONG_SESSION)
		to_another(io, socket, row, buf);
	if (now.bug == MUTATE_REPLAY && !row->accepted)
		record(io, row, buf);
	if (now.bug == MUTATE_ALTERED && !row->accepted &&
	    buf->len > ENOUGH_BODY) {
		buf->data[buf->len / 2] ^= 1;
		now.count++;
	}
}

static bool on_again(void *owner, struct io *io)
{
	(void)owner;
	(void)io;
	if (++now.calls != 3)
		return false;
	now.count++;
	return true;
}

void mutate_plant(struct world *w, unsigned bug)
{
	struct sim_io_bugs bugs = { .sending = on_sending };

	memset(&now, 0, sizeof(now));
	now.bug = bug;
	now.world = w;
	if (bug == MUTATE_NONE)
		return;
	if (bug == MUTATE_STALE_EVENT)
		bugs.again = on_again;
	for (unsigned k = 0; k < w->house_count; k++) {
		struct house *h = &w->houses[k];

		for (unsigned i = 0; i < h->weir.worker_count; i++)
			sim_io_bugs_set(h->ios[i], &bugs);
	}
}

/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
