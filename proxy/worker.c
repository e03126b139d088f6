#include "proxy/worker.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy/config.h"
#include "proxy/work.h"

enum {
	/* Draining: what is already in the backlog is still greeted, by 421. */
	BACKLOG_MS = 200,
	/* Then what they gave rise to is sent, and timers have their say. */
	EVENTS_PER_TURN = 256,
};

/* ---- log ---- */

void work_log_begin(struct worker *w, const char *event)
{
	const struct config_weir *weir = &w->config->weir;
	bool stamped = weir->log == LOGGER_JOURNAL ||
		       weir->log == LOGGER_SYSLOG;

	log_begin(&w->log, weir->log_format == CONFIG_LOG_JSON, event,
		  stamped ? 0 : io_wall_ms(w->io));
}

void work_log(struct worker *w, enum log_level level)
{
	log_end(&w->log);
	if ((unsigned)level <= w->config->weir.log_level)
		io_log(w->io, (int)level, w->log.text, w->log.len);
}

unsigned work_sockets_left(const struct worker *w)
{
	unsigned used = atomic_load_explicit(&w->weir->sockets,
					     memory_order_relaxed);

	return used < w->weir->sockets_max ? w->weir->sockets_max - used : 0;
}

bool work_is_shortage(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOBUFS ||
	       error == ENOMEM;
}

/* ---- who has something to send ---- */

static void list_last(struct work *head, struct work *work)
{
	work->next_loud = head;
	work->prev_loud = head->prev_loud;
	work->prev_loud->next_loud = work;
	head->prev_loud = work;
}

void work_speak_up(struct worker *w, struct work *work)
{
	if (work->next_loud == NULL)
		list_last(&w->loud, work);
}

void work_come_again(struct worker *w, struct work *work)
{
	assert(work->kind != WORK_PROBE);
	work_hush(work);
	list_last(&w->again, work);
}

void work_hush(struct work *work)
{
	if (work->next_loud == NULL)
		return;
	work->next_loud->prev_loud = work->prev_loud;
	work->prev_loud->next_loud = work->next_loud;
	work->next_loud = work->prev_loud = NULL;
}

static void flush_loud(struct worker *w)
{
	while (w->loud.next_loud != &w->loud) {
		struct work *work = w->loud.next_loud;

		work_hush(work);
		if (work->kind == WORK_CLIENT)
			client_flush(w, (struct client *)work);
		else
			server_flush(w, (struct server *)work);
	}
}

/* Those who lacked a buffer in the turn before, each once. */
static void try_again(struct worker *w)
{
	struct work now = w->again;

	if (w->again.next_loud == &w->again)
		return;
	now.next_loud->prev_loud = now.prev_loud->next_loud = &now;
	w->again.next_loud = w->again.prev_loud = &w->again;
	while (now.next_loud != &now) {
		struct work *work = now.next_loud;

		work_hush(work);
		if (work->kind == WORK_CLIENT)
			client_resume(w, (struct client *)work);
		else
			server_resume(w, (struct server *)work);
	}
}

/* ---- making and unmaking ---- */

static void *table(size_t count, size_t size, char error[WEIR_ERROR_SIZE])
{
	/* Large tables are pages that nobody has touched yet: what is never
	 * used costs nothing. */
	void *mem = calloc(count, size);

	if (mem == NULL) {
		(void)snprintf(error, WEIR_ERROR_SIZE,
			       "no memory for a table of %zu octets",
			       count * size);
	}
	return mem;
}

/* Each worker has its share of body_memory, whether it is used or not. */
static bool make_hold(struct worker *w, char error[WEIR_ERROR_SIZE])
{
	uint64_t memory = w->config->weir.body_memory / w->weir->worker_count;
	uint64_t most = memory / HOLD_BLOCK_SIZE;
	uint32_t blocks = most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;

	if (blocks > 0) {
		w->hold_memory = aligned_alloc(HOLD_BLOCK_SIZE,
					       hold_area_size(blocks));
		if (w->hold_memory == NULL) {
			(void)snprintf(error, WEIR_ERROR_SIZE,
				       "no memory for body_memory = %llu",
				       (unsigned long long)
					       w->config->weir.body_memory);
			return false;
		}
	}
	hold_area_init(&w->hold, w->hold_memory, blocks);
	return true;
}

static bool make_tables(struct worker *w, char error[WEIR_ERROR_SIZE])
{
	unsigned clients = w->weir->sessions_max;
	unsigned servers = w->weir->servers_max;

	w->client_pool = table(clients, sizeof(*w->client_pool), error);
	w->lines = table(clients, SESSION_LINE_MAX + SESSION_MAIL_MAX, error);
	w->headers = table(clients, sizeof(*w->headers), error);
	w->relays = table(clients, relay_size(), error);
	w->server_pool = table(servers, sizeof(*w->server_pool), error);
	if (w->client_pool == NULL || w->lines == NULL || w->headers == NULL ||
	    w->relays == NULL || w->server_pool == NULL || !make_hold(w, error))
		return false;
	w->clients.next = w->clients.prev = &w->clients;
	w->lingering.next = w->lingering.prev = &w->lingering;
	w->kept.next = w->kept.prev = &w->kept;
	w->holders.next_holder = w->holders.prev_holder = &w->holders;
	w->loud.next_loud = w->loud.prev_loud = &w->loud;
	w->again.next_loud = w->again.prev_loud = &w->again;
	w->costly.next_costly = w->costly.prev_costly = &w->costly;
	if (w->index == 0) {
		w->probers = table(FARM_BACKENDS_MAX, sizeof(*w->probers),
				   error);
		return w->probers != NULL;
	}
	return true;
}

static const char *hint_of(int result)
{
	switch (-result) {
	case EADDRINUSE:
		return ": another program listens there; see ss -ltnp";
	case EACCES:
		return ": ports below 1024 need root or CAP_NET_BIND_SERVICE";
	case EADDRNOTAVAIL:
		return ": this machine does not have that address";
	default:
		return "";
	}
}

static bool listen_on(struct worker *w, unsigned at,
		      const struct config_address *address,
		      char error[WEIR_ERROR_SIZE])
{
	struct work_listener *l = &w->listeners[w->listener_count];
	struct sockaddr_storage sa;
	char text[CIDR_ADDR_TEXT_MAX];
	int result;

	assert(w->listener_count < WORK_LISTENERS_MAX);
	(void)cidr_addr_to_sockaddr(&address->addr, address->port, &sa);
	l->work.kind = WORK_LISTENER;
	timer_init(&l->work.timer);
	l->config_at = at;
	result = io_listen(w->io, (const struct sockaddr *)&sa, 0, &l->work,
			   &l->socket);
	if (result < 0) {
		(void)cidr_addr_format(&address->addr, text, sizeof(text));
		(void)snprintf(error, WEIR_ERROR_SIZE,
			       "[listener %s] cannot listen on %s port %u: "
			       "%s%s",
			       w->config->listeners[at].name, text,
			       address->port, strerror(-result),
			       hint_of(result));
		return false;
	}
	w->listener_count++;
	w->listeners_open++;
	return true;
}

static bool open_listeners(struct worker *w, char error[WEIR_ERROR_SIZE])
{
	int result;

	for (unsigned i = 0; i < w->config->listener_count; i++) {
		const struct config_listener *l = &w->config->listeners[i];

		for (unsigned k = 0; k < l->listen_count; k++) {
			if (!listen_on(w, i, &l->listen[k], error))
				return false;
		}
	}
	if (w->index > 0)
		return true;
	result = control_open(w);
	if (result < 0) {
		(void)snprintf(
			error, WEIR_ERROR_SIZE, "control_socket = \"%s\": %s%s",
			w->config->weir.control_socket, strerror(-result),
			result == -EADDRINUSE ? ": another weir answers there"
			: result == -ENOENT   ? ": make its directory first"
					      : "");
	}
	return result >= 0;
}

static void take_config(struct worker *w, const struct config *config)
{
	const struct config_timeouts *t = &config->timeouts;
	const struct config *before = w->config;

	w->config = config;
	w->timeouts = (struct upstream_timeouts){
		.connect_ms = t->backend_connect_ms,
		.greeting_ms = t->backend_greeting_ms,
		.helo_ms = t->backend_helo_ms,
		.tls_ms = t->handshake_ms,
		.mail_ms = t->backend_mail_ms,
		.rcpt_ms = t->backend_rcpt_ms,
		.data_ms = t->backend_data_ms,
		.final_ms = t->backend_final_ms,
		.quit_ms = t->backend_quit_ms,
	};
	/* A reload keeps the listeners as they are (main sees to it). */
	if (before != NULL) {
		for (struct client *c = w->clients.next; c != &w->clients;
		     c = c->next) {
			ptrdiff_t at = c->session.listener - before->listeners;

			c->session.listener = &config->listeners[at];
		}
	}
	w->env.config = config;
	atomic_store_explicit(&w->seen, config, memory_order_release);
}

struct worker *worker_new(struct weir *weir, unsigned index, struct io *io,
			  char error[WEIR_ERROR_SIZE])
{
	struct worker *w = table(1, sizeof(*w), error);

	if (w == NULL)
		return NULL;
	w->weir = weir;
	w->index = index;
	w->io = io;
	w->now_ms = io_now_ms(io);
	w->stats = &weir->stats[index];
	w->env.admission = weir->admission;
	w->env.stats = w->stats;
	w->env.now_ms = w->now_ms;
	w->id_base = io_random(io) & UINT32_MAX;
	(void)pthread_mutex_init(&w->mutex, NULL);
	timer_wheel_init(&w->wheel, w->now_ms);
	take_config(w, atomic_load(&weir->config));
	if (!make_tables(w, error) || !open_listeners(w, error)) {
		worker_free(&w);
		return NULL;
	}
	return w;
}

void worker_free(struct worker **wp)
{
	struct worker *w = *wp;

	if (w == NULL)
		return;
	*wp = NULL;
	control_free(w);
	(void)pthread_mutex_destroy(&w->mutex);
	free(w->client_pool);
	free(w->lines);
	free(w->headers);
	free(w->relays);
	free(w->server_pool);
	free(w->probers);
	free(w->hold_memory);
	for (unsigned i = 0; i < FARM_BACKENDS_MAX; i++)
		tls_session_free(&w->resumable[i]);
	free(w);
}

const struct config *worker_config_seen(const struct worker *w)
{
	return atomic_load_explicit(&w->seen, memory_order_acquire);
}

struct io *worker_io(const struct worker *w)
{
	return w->io;
}

/* ---- events ---- */

static void dispatch(struct worker *w, const struct io_event *ev)
{
	struct work *work = ev->owner;

	if (ev->kind == IO_WOKEN || work == NULL)
		return; /* flags are looked at in each turn */
	switch (work->kind) {
	case WORK_LISTENER:
		if (ev->kind == IO_ACCEPTED)
			client_accepted(w, (struct work_listener *)work, ev);
		else if (ev->kind == IO_CLOSED)
			w->listeners_open--;
		return;
	case WORK_CLIENT:
		client_event(w, (struct client *)work, ev);
		return;
	case WORK_SERVER:
		server_event(w, (struct server *)work, ev);
		return;
	case WORK_PROBE:
		probe_event_in(w, (struct prober *)work, ev);
		return;
	case WORK_CONTROL:
		if (ev->kind == IO_ACCEPTED)
			control_accepted(w, ev);
		else if (ev->kind == IO_CLOSED)
			w->control_open = false;
		return;
	case WORK_OPERATOR:
		control_event(w, (struct operator*)work, ev);
		return;
	}
}

static void fire(struct worker *w, struct timer *timer)
{
	/* A timer is in the struct work that begins each owner. */
	struct work *work = (struct work *)(void *)((char *)timer -
						    offsetof(struct work,
							     timer));

	switch (work->kind) {
	case WORK_CLIENT:
		client_timer(w, (struct client *)work);
		return;
	case WORK_SERVER:
		server_timer(w, (struct server *)work);
		return;
	case WORK_PROBE:
		probe_timer(w, (struct prober *)work);
		return;
	case WORK_OPERATOR:
		control_timer(w, (struct operator*)work);
		return;
	case WORK_LISTENER:
	case WORK_CONTROL:
		return;
	}
}

/* ---- turns ---- */

static void each_client(struct worker *w,
			void (*what)(struct worker *, struct client *))
{
	struct client *next;

	for (struct client *c = w->clients.next; c != &w->clients; c = next) {
		next = c->next;
		what(w, c);
	}
}

static void restress(struct worker *w, struct client *c)
{
	if (!c->admitted)
		return; /* it is not even greeted */
	session_stress(&c->session, &w->env);
	client_resume(w, c);
}

static void tell_drain(struct worker *w, struct client *c)
{
	const struct session_event drain = { .kind = SESSION_IN_DRAIN };

	client_tell(w, c, &drain);
}

static void wake_others(struct worker *w)
{
	for (unsigned i = 0; i < w->weir->worker_count; i++) {
		struct worker *other = w->weir->workers[i];

		if (other != NULL && other != w)
			io_wake(other->io);
	}
}

void work_retired(struct worker *w)
{
	atomic_fetch_add(&w->weir->retired, 1);
	wake_others(w);
}

/* What changed between turns: configuration, stress, the farm's offer. */
static void look_around(struct worker *w)
{
	const struct config *config = atomic_load_explicit(
		&w->weir->config, memory_order_acquire);
	struct smtp_ehlo offer = balancer_offer(w->weir->farm);
	bool stressed = admission_stressed(w->weir->admission);

	if (config != w->config)
		take_config(w, config);
	if (atomic_load(&w->weir->retired) != w->retired_seen) {
		w->retired_seen = atomic_load(&w->weir->retired);
		bind_drop_retired(w);
	}
	w->env.offer_ext = offer.ext;
	w->env.offer_auth = offer.auth;
	w->env.offer_size = offer.size;
	w->env.stressed = stressed;
	if (stressed != w->stressed) {
		w->stressed = stressed;
		if (w->index == 0) {
			work_log_begin(w, "stress");
			log_word(&w->log, "state", stressed ? "on" : "off");
			log_number(&w->log, "sessions",
				   admission_sessions(w->weir->admission));
			work_log(w, LOG_LEVEL_NOTICE);
		}
		each_client(w, restress);
		wake_others(w); /* they may have nothing else to do */
	}
}

static void close_listeners(struct worker *w)
{
	/* They count until the kernel has let them go: whoever ends before
	 * leaves them listening, with nobody to answer. */
	for (unsigned i = 0; i < w->listener_count; i++)
		io_close(w->io, w->listeners[i].socket);
	w->unlistened = true;
}

static void begin_drain(struct worker *w)
{
	w->draining = true;
	w->env.draining = true;
	w->unlisten_ms = w->now_ms + BACKLOG_MS;
	w->drain_by_ms = w->now_ms + w->config->timeouts.drain_ms;
	if (w->index == 0) {
		work_log_begin(w, "drain");
		log_number(&w->log, "sessions",
			   admission_sessions(w->weir->admission));
		work_log(w, LOG_LEVEL_NOTICE);
		probe_stop(w);
	}
	each_client(w, tell_drain);
}

static void end_servers(struct worker *w)
{
	while (w->lingering.next != &w->lingering)
		server_quit(w, w->lingering.next);
	while (w->kept.next != &w->kept)
		server_quit(w, w->kept.next);
}

/* Shutting down; false when nothing is left. */
static bool drain(struct worker *w)
{
	bool stopping = atomic_load_explicit(&w->weir->stopping,
					     memory_order_relaxed);

	if (!w->draining &&
	    (stopping ||
	     atomic_load_explicit(&w->weir->draining, memory_order_relaxed)))
		begin_drain(w);
	if (!w->draining)
		return true;
	end_servers(w);
	if (!w->unlistened && (stopping || w->now_ms >= w->unlisten_ms))
		close_listeners(w);
	if (!w->cut && (stopping || w->now_ms >= w->drain_by_ms)) {
		w->cut = true;
		each_client(w, client_kill);
	}
	if (!w->unlistened || w->listeners_open > 0 || w->client_count > 0 ||
	    w->server_count > 0 || w->probing > 0)
		return true;
	/* To the last moment an operator may look on. */
	if (w->index == 0)
		control_close(w);
	return w->operator_count > 0 || w->control_open;
}

static int64_t next_deadline(const struct worker *w)
{
	int64_t at_ms = timer_next_ms(&w->wheel);

	if (w->more || secure_is_behind(w))
		return 0; /* something is left of the last turn */
	/* Whoever holds buffers is heard of sooner or later; but if not. */
	if ((w->hungry != NULL || w->again.next_loud != &w->again) &&
	    w->now_ms + TIMER_TICK_MS < at_ms)
		at_ms = w->now_ms + TIMER_TICK_MS;
	if (w->index == 0 && !w->draining) {
		int64_t due_ms = balancer_due_ms(w->weir->farm);

		if (due_ms < at_ms)
			at_ms = due_ms;
	}
	if (room_waiting(w->weir->room) > 0) {
		int64_t due_ms = room_due_ms(w);

		if (due_ms < at_ms)
			at_ms = due_ms;
	}
	if (w->draining && !w->unlistened && w->unlisten_ms < at_ms)
		at_ms = w->unlisten_ms;
	if (w->draining && !w->cut && w->drain_by_ms < at_ms)
		at_ms = w->drain_by_ms;
	return at_ms;
}

static void deal(struct worker *w)
{
	struct io_event ev;
	struct timer *timer;

	w->more = false;
	secure_turn(w);
	try_again(w);
	for (unsigned n = 0; io_next(w->io, &ev);) {
		dispatch(w, &ev);
		if (++n >= EVENTS_PER_TURN) {
			w->more = true;
			break;
		}
	}
	client_feed_hungry(w);
	while ((timer = timer_due(&w->wheel, w->now_ms)) != NULL)
		fire(w, timer);
	if (w->index == 0 && !w->draining)
		probe_turn(w);
	if (w->index == 0 && w->weir->tls != NULL && w->now_ms >= w->tidy_ms) {
		w->tidy_ms = w->now_ms + WORK_TIDY_MS;
		secure_tidy(w);
	}
}

bool worker_turn(struct worker *w)
{
	int result = io_wait(w->io, next_deadline(w));
	bool going;

	if (result < 0) {
		work_log_begin(w, "ring");
		log_word(&w->log, "error", strerror(-result));
		work_log(w, LOG_LEVEL_ERROR);
		return false;
	}
	(void)pthread_mutex_lock(&w->mutex);
	w->now_ms = io_now_ms(w->io);
	w->env.now_ms = w->now_ms;
	look_around(w);
	control_turn(w);
	deal(w);
	room_turn(w);
	going = drain(w);
	flush_loud(w);
	(void)pthread_mutex_unlock(&w->mutex);
	return going;
}
