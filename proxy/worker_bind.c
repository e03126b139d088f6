#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/work.h"

/*
 * Which backend connection a session gets: the one it had, one that was kept,
 * a new one, or a place in the waiting room; and what becomes of a connection
 * whose message is over.
 */

/* ---- idle connections ---- */

static void put_idle(struct worker *w, struct server *v, struct server *before)
{
	v->next = before;
	v->prev = before->prev;
	v->prev->next = v;
	before->prev = v;
	atomic_fetch_add(&w->weir->idle[w->index], 1);
	server_set_timer(w, v);
}

static bool is_idle(const struct server *v)
{
	const struct upstream *u = &v->upstream;

	return u->state == UPSTREAM_READY && u->due == 0 && !u->reading &&
	       v->in.first == NULL && !v->ending;
}

/*
 * Was the backend told of its client as it wants to be now, and is there as
 * much TLS as it wants?  What is said with each message can change; what was
 * agreed on once for the connection cannot.
 */
static bool is_told_right(struct worker *w, const struct server *v)
{
	enum backend_identity now = backend_identity(server_backend(w, v));

	if (v->tls_wanted < backend_tls(server_backend(w, v)))
		return false;

	return v->identity == now || (!backend_identity_binds(v->identity) &&
				      !backend_identity_binds(now));
}

/* Is this connection one that may serve any client? */
static bool is_anybodys(struct worker *w, const struct server *v)
{
	/* XCLIENT may be said again, and EHLO with it. */
	bool open = v->identity == BACKEND_IDENTITY_XCLIENT
			    ? v->upstream.ehlo.xclient != 0
			    : v->own_name &&
				      !backend_identity_binds(v->identity);

	return open && atomic_load(&server_backend(w, v)->reuse) &&
	       is_told_right(w, v) && !v->tainted &&
	       v->served < w->config->farm.reuse_max;
}

static bool keep(struct worker *w, struct server *v)
{
	const struct config_farm *farm = &w->config->farm;

	/* Postfix offers it no more to a client that may not say it. */
	if (v->identity == BACKEND_IDENTITY_XCLIENT &&
	    v->upstream.ehlo.xclient == 0)
		server_keep_no_more(w, v);
	if (!is_anybodys(w, v) || farm->reuse_idle_ms == 0 ||
	    !balancer_keep(w->weir->farm, &v->slot, farm->reuse_percent))
		return false;
	server_detach(w, v);
	bind_put_back(w, v);
	return true;
}

void bind_set_aside(struct worker *w, struct server *v)
{
	assert(v->kept);
	server_detach(w, v);
}

void bind_put_back(struct worker *w, struct server *v)
{
	v->kept = true;
	v->until_ms = w->now_ms + w->config->farm.reuse_idle_ms;
	put_idle(w, v, w->kept.next);
}

void bind_keep(struct worker *w, struct server *v)
{
	const struct backend *b = server_backend(w, v);
	int64_t linger_ms = w->config->farm.linger_ms;

	v->served++;
	if (w->draining || !is_idle(v) ||
	    backend_admin_state(b) != BACKEND_READY) {
		server_quit(w, v);
		return;
	}
	if (keep(w, v))
		return;
	/* For its own client's next message, if nobody waits for the slot. */
	if (linger_ms == 0 || room_waiting(w->weir->room) > 0) {
		server_quit(w, v);
		return;
	}
	v->lingering = true;
	v->until_ms = w->now_ms + linger_ms;
	put_idle(w, v, &w->lingering);
}

void bind_park(struct worker *w, struct server *v)
{
	static const char rset[] = "RSET\r\n";

	v->served++;
	if (w->draining || !is_idle(v) || !is_anybodys(w, v) ||
	    !work_queue_text(w, &v->out, IO_SMALL, rset, sizeof(rset) - 1)) {
		server_quit(w, v);
		return;
	}
	server_detach(w, v);
	v->clearing = true;
	server_sent(w, v, BUSY_STAGE_IDLE);
	server_speak_up(w, v);
}

void bind_cleared(struct worker *w, struct server *v, unsigned code)
{
	v->clearing = false;
	server_yielded(w, v);
	if (code / 100 != 2 || w->draining || !is_idle(v) || !keep(w, v))
		server_quit(w, v);
}

bool bind_make_room(struct worker *w)
{
	struct server *v = w->kept.prev; /* the longest unused */

	if (v == &w->kept)
		v = w->lingering.next;
	if (v == &w->lingering)
		return false;
	server_quit(w, v);
	server_yield(w, v);
	return true;
}

static void drop_retired(struct worker *w, struct server *list)
{
	struct server *next;

	for (struct server *v = list->next; v != list; v = next) {
		next = v->next;
		if (backend_admin_state(server_backend(w, v)) != BACKEND_READY)
			server_quit(w, v);
	}
}

void bind_drop_retired(struct worker *w)
{
	drop_retired(w, &w->kept);
	drop_retired(w, &w->lingering);
}

struct server *bind_find_kept(struct worker *w,
			      const struct balancer_need *need)
{
	struct server *best = NULL;
	uint64_t best_score = UINT64_MAX;
	unsigned seen = 0;

	for (struct server *v = w->kept.next;
	     v != &w->kept && seen < WORK_KEPT_SCAN; v = v->next, seen++) {
		if (!is_idle(v) || !is_anybodys(w, v) ||
		    (need->ext & ~v->upstream.ehlo.ext) != 0 ||
		    (need->auth & ~v->upstream.ehlo.auth) != 0)
			continue;

		uint64_t score = balancer_score(w->weir->farm, &v->slot, need,
						w->now_ms);

		if (score < best_score) {
			best = v;
			best_score = score;
		}
	}
	return best;
}

/* ---- a client gets one ---- */

const struct session_event bind_none = {
	.kind = SESSION_IN_UNBOUND,
	.stage = BUSY_STAGE_TCP,
	.class = BUSY_BUSY,
};

struct session_event bind_event(struct worker *w, struct client *c,
				const struct server *v, bool reused)
{
	unsigned ext = v->upstream.ehlo.ext;
	struct session_event event = {
		.kind = SESSION_IN_BOUND,
		.reused = reused,
		.ext = ext,
		.auth = v->upstream.ehlo.auth,
		.pipelining = (ext & SMTP_EXT_PIPELINING) != 0,
	};

	c->backend_tls = secure_version(&v->tls);
	if (backend_identity(server_backend(w, v)) == BACKEND_IDENTITY_HEADER &&
	    !session_is_tcp(&c->session))
		event.trace_len = (unsigned)hold_trace_len(w, c);
	return event;
}

static void remember_tried(struct client *c, uint16_t index)
{
	if (c->need.tried_count < BALANCER_TRIED_MAX)
		c->need.tried[c->need.tried_count++] = index;
}

static void take(struct worker *w, struct client *c, struct server *v)
{
	v->client = c;
	c->server = v;
	remember_tried(c, v->slot.index);
	memcpy(c->backend, server_backend(w, v)->name, sizeof(c->backend));
	c->backend_tls = NULL;
}

bool bind_take_kept(struct worker *w, struct client *c, struct server *v,
		    struct session_event *event)
{
	server_detach(w, v);
	balancer_resume(w->weir->farm, &v->slot);
	take(w, c, v);
	c->reused = true;
	stats_add(&w->stats->reused, 1);
	if (v->identity != BACKEND_IDENTITY_XCLIENT) {
		server_set_timer(w, v);
		*event = bind_event(w, c, v, true);
		return false;
	}
	if (server_introduce(w, v))
		return true;
	/* It has no buffer, or said something meanwhile: another will do. */
	*event = bind_none;
	event->more = true;
	c->need.tried_count--;
	server_quit(w, v);
	return false;
}

bool bind_slot(struct worker *w, struct client *c,
	       const struct balancer_slot *slot, struct session_event *event)
{
	struct server *v = server_new(w);
	int result;

	*event = bind_none;
	if (v == NULL) {
		balancer_release(w->weir->farm, slot);
		return false;
	}
	v->slot = *slot;
	take(w, c, v);
	result = server_connect(w, v, c);
	if (result == 0)
		return true;
	if (server_lacks(v, result)) {
		server_log_shortage(w, v, -result);
		event->more = result == -EAFNOSUPPORT;
	} else {
		server_unreachable(w, v);
		event->more = true;
	}
	server_detach(w, v);
	server_free(w, v, true);
	return false;
}

/* Does the connection that the client had serve for this message as well? */
static bool still_good(struct worker *w, const struct server *v,
		       const struct client *c)
{
	const struct backend *b = server_backend(w, v);
	const struct session *s = &c->session;
	bool named = v->own_name ||
		     (strlen(v->name) == s->helo_len &&
		      memcmp(v->name, s->helo, s->helo_len) == 0);

	return is_idle(v) && is_told_right(w, v) && named &&
	       (s->need & ~v->upstream.ehlo.ext) == 0 &&
	       (s->need_auth & ~v->upstream.ehlo.auth) == 0 &&
	       balancer_suits(w->weir->farm, &v->slot, &c->need) &&
	       backend_admin_state(b) == BACKEND_READY &&
	       health_admits(backend_state(b));
}

/* A slot now, or why not; who waits already goes first. */
static enum balancer_verdict reserve(struct worker *w, struct client *c,
				     struct balancer_slot *slot)
{
	struct backend_change change = { 0 };
	enum balancer_verdict verdict;

	if (room_waiting(w->weir->room) > 0) {
		verdict = balancer_foresee(w->weir->farm, &c->need, w->now_ms);
		return verdict == BALANCER_PICKED ||
				       verdict == BALANCER_ALL_TRIED
			       ? BALANCER_ALL_FULL
			       : verdict;
	}
	verdict = balancer_reserve(w->weir->farm, &c->need, w->now_ms,
				   io_random(w->io), slot, &change);
	work_log_change(w, &change);
	/* If it was for want of a slot, one may come free. */
	if (verdict == BALANCER_ALL_TRIED &&
	    busy_is_about_slots(c->refused_class))
		return BALANCER_ALL_FULL;
	return verdict;
}

bool bind_client(struct worker *w, struct client *c,
		 struct session_event *event)
{
	struct server *v = c->server;
	struct balancer_slot slot;
	enum balancer_verdict verdict;

	*event = bind_none;
	c->need.ext = c->session.need;
	c->need.auth = c->session.need_auth;
	c->need.size = c->session.size_said;
	c->need.untold = session_is_tcp(&c->session);
	c->need.stranger = !cidr_set_has(&w->config->farm.relay_from, &c->addr);
	if (v != NULL && still_good(w, v, c)) {
		server_detach(w, v);
		take(w, c, v);
		server_set_timer(w, v);
		*event = bind_event(w, c, v, true);
		return false;
	}
	if (v != NULL)
		server_quit(w, v);
	if (room_waiting(w->weir->room) == 0 && !session_is_tcp(&c->session)) {
		v = bind_find_kept(w, &c->need);
		if (v != NULL)
			return bind_take_kept(w, c, v, event);
	}
	verdict = reserve(w, c, &slot);
	if (verdict == BALANCER_PICKED)
		return bind_slot(w, c, &slot, event);
	if (verdict == BALANCER_NO_EXTENSION) {
		event->stage = BUSY_STAGE_EHLO;
		event->class = BUSY_MISCONF;
	}
	if (verdict == BALANCER_ALL_OPEN || verdict == BALANCER_UNCHECKED)
		(void)snprintf(c->refused, sizeof(c->refused), "relay_guard:%s",
			       balancer_verdict_name(verdict));
	return verdict == BALANCER_ALL_FULL && room_wait(w, c);
}
