#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "proxy/operator.h"

/*
 * The control socket: connections, lines in, answers out, and the commands
 * that change something.  Worker 0 only.
 *
 * One answer at a time is written whole into the operator's own memory and
 * fed out as the other side reads; until it is out, no further line is read.
 * So an operator costs a fixed amount, whatever it sends or does not read.
 */

enum {
	IDLE_MS = 5 * 60 * 1000, /* nothing said */
	STUCK_MS = 30 * 1000,    /* an answer is not read */
	LINGER_MS = 1000,        /* our FIN sent: for the other side's */
	RETRY_MS = 100,          /* no buffer was free */
	/* Buffers of one operator on their way at a time. */
	BUFFERS_AT_ONCE = 2,
	/* Of eighths: what operators leave of the reserve for probes. */
	RESERVE_KEPT = 4,
};

static void serve(struct worker *w, struct operator* o);

/* ---- opening and closing ---- */

static bool make_operators(struct worker *w)
{
	/* Zeroed pages that are not touched before they are used. */
	struct control *ctl = calloc(1, sizeof(*ctl));

	if (ctl == NULL)
		return false;
	ctl->answers = calloc(OPERATORS_MAX, OPERATOR_ANSWER_MAX);
	if (ctl->answers == NULL) {
		free(ctl);
		return false;
	}
	for (size_t i = 0; i < OPERATORS_MAX; i++)
		ctl->operators[i].answer = ctl->answers +
					   i * OPERATOR_ANSWER_MAX;
	w->operators = ctl->operators;
	return true;
}

int control_open(struct worker *w)
{
	const char *path = w->config->weir.control_socket;
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t len = strnlen(path, CONFIG_TEXT_MAX);

	w->control.kind = WORK_CONTROL;
	timer_init(&w->control.timer);
	if (len == 0)
		return 0;
	if (len >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	if (!make_operators(w))
		return -ENOMEM;
	memcpy(sa.sun_path, path, len);

	int result = io_listen(w->io, (const struct sockaddr *)&sa,
			       w->config->weir.control_mode, &w->control,
			       &w->control_socket);

	w->control_open = result == 0;
	return result;
}

static void leave(struct worker *w, struct operator* o)
{
	if (o->ending)
		return;
	o->ending = true;
	work_queue_drop(w, &o->in);
	timer_clear(&o->work.timer);
	io_close(w->io, o->socket);
}

void control_close(struct worker *w)
{
	struct control *ctl = control_of(w);

	if (w->control_socket != 0)
		io_close(w->io, w->control_socket);
	w->control_socket = 0;
	for (size_t i = 0;
	     ctl != NULL && i < OPERATORS_MAX + OPERATORS_REFUSED_MAX; i++) {
		if (ctl->operators[i].socket != 0)
			leave(w, &ctl->operators[i]);
	}
}

void control_free(struct worker *w)
{
	struct control *ctl = control_of(w);

	if (ctl == NULL)
		return;
	free(ctl->answers);
	free(ctl);
	w->operators = NULL;
}

static struct operator* free_place(struct control *ctl)
{
	for (size_t i = 0; i < OPERATORS_MAX + OPERATORS_REFUSED_MAX; i++) {
		if (ctl->operators[i].socket == 0)
			return &ctl->operators[i];
	}
	return NULL;
}

/* One buffer with a text, sent; false: no buffer is to be had. */
static bool send_text(struct worker *w, io_handle socket, const char *text,
		      size_t len)
{
	struct io_buf *buf = NULL;

	if (io_buf_free(w->io, IO_RESERVE) >= RESERVE_KEPT)
		buf = io_buf_get(w->io, IO_RESERVE);
	if (buf == NULL)
		return false;
	assert(len <= buf->room);
	memcpy(buf->data, text, len);
	buf->len = (uint32_t)len;
	buf->room -= (uint32_t)len;
	io_send(w->io, socket, buf);
	return true;
}

void control_accepted(struct worker *w, const struct io_event *ev)
{
	static const char many[] = "error: too many connections\n\n";
	struct operator* o;
	char *answer;

	if (ev->socket == 0)
		return; /* the kernel is short of something: it will ask again */
	o = free_place(control_of(w));
	if (o == NULL) {
		io_close(w->io, ev->socket);
		return;
	}
	answer = o->answer;
	memset(o, 0, offsetof(struct operator, line));
	o->answer = answer;
	o->work.kind = WORK_OPERATOR;
	timer_init(&o->work.timer);
	o->socket = ev->socket;
	o->moved_ms = w->now_ms;
	w->operator_count++;
	io_adopt(w->io, o->socket, &o->work);
	if (answer == NULL) {
		(void)send_text(w, o->socket, many, sizeof(many) - 1);
		o->leaving = true;
	}
	serve(w, o);
}

/* ---- what is answered ---- */

/* Where an answer is written. */
struct reply {
	char *text;
	size_t len;
	bool refused;
};

__attribute__((format(printf, 2, 3))) static void say(struct reply *reply,
						      const char *format, ...)
{
	size_t room = OPERATOR_ANSWER_MAX - 1 - reply->len;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(reply->text + reply->len, room, format, args);
	va_end(args);
	assert(n >= 0);
	assert((size_t)n < room);
	reply->len += (size_t)n;
}

__attribute__((format(printf, 2, 3))) static void refuse(struct reply *reply,
							 const char *format,
							 ...)
{
	char text[CONFIG_ERROR_MAX + 128];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	reply->refused = true;
	say(reply, "error: %s\n", text);
}

/* ---- commands that change something ---- */

/* A name as it may be shown: what an operator wrote may be anything. */
static const char *shown(char buf[BACKEND_NAME_MAX * 2],
			 const struct control_word *word)
{
	size_t n = log_escape(buf, BACKEND_NAME_MAX * 2 - 1, false, word->text,
			      word->len);

	buf[n] = '\0';
	return buf;
}

static void refuse_name(struct worker *w, const struct control_order *order,
			struct reply *reply)
{
	struct farm *farm = w->weir->farm;
	char name[BACKEND_NAME_MAX * 2];

	reply->refused = true;
	say(reply, "error: no backend \"%s\"", shown(name, &order->name));
	for (uint16_t i = 0, n = 0; i < farm_size(farm) && n < 32; i++) {
		const struct backend *b = farm_at(farm, i);

		if (b == NULL)
			continue;
		say(reply, "%s%s", n == 0 ? "; there are: " : ", ", b->name);
		n++;
	}
	say(reply, "\n");
}

static void set_backend(struct worker *w, const struct control_order *order,
			struct reply *reply)
{
	struct backend_change change = { 0 };
	struct backend *b = farm_find(w->weir->farm, order->name.text,
				      order->name.len);

	if (b == NULL) {
		refuse_name(w, order, reply);
		return;
	}
	switch (order->set) {
	case CONTROL_SET_ADMIN:
		backend_set_admin(b, order->admin, &change);
		/* Ready again: not to be removed once it is idle. */
		if (order->admin == BACKEND_READY) {
			w->leaving[b->index] = false;
			backend_ask_relay(b);
		} else {
			work_retired(w);
		}
		work_log_change(w, &change);
		say(reply, "ok: %s is %s", b->name,
		    backend_admin_name(order->admin));
		if (order->admin == BACKEND_READY) {
			say(reply, ", its health: %s\n",
			    health_state_name(backend_state(b)));
		} else {
			say(reply, ", sessions left: %lu\n",
			    (unsigned long)backend_gauge(
				    b, BACKEND_GAUGE_sessions, w->now_ms));
		}
		return;
	case CONTROL_SET_WEIGHT:
		backend_set_weight(b, order->number);
		say(reply, "ok: %s has weight %lu\n", b->name,
		    (unsigned long)order->number);
		return;
	case CONTROL_SET_MAX_SESSIONS:
		backend_set_max_sessions(b, order->number);
		if (order->number == LIMIT_MAX) {
			say(reply,
			    "ok: %s may have as many sessions as it takes",
			    b->name);
		} else {
			say(reply, "ok: %s may have %lu sessions", b->name,
			    (unsigned long)order->number);
		}
		say(reply, ", has %lu\n",
		    (unsigned long)backend_gauge(b, BACKEND_GAUGE_sessions,
						 w->now_ms));
		return;
	}
}

/* The new backend as its words have it; false: refused. */
static bool read_backend(struct worker *w, struct config_backend *backend,
			 const struct control_order *order, struct reply *reply)
{
	const struct config_listener *own;
	char error[CONFIG_ERROR_MAX];

	if (!config_backend_init(backend, order->name.text, order->name.len,
				 error, sizeof(error))) {
		refuse(reply, "%s", error);
		return false;
	}
	for (unsigned i = 0; i < order->arg_count; i++) {
		if (!config_backend_set(backend, order->arg[i].text,
					order->arg[i].len, error,
					sizeof(error))) {
			refuse(reply, "%s", error);
			return false;
		}
	}
	if (!config_backend_check(backend, error, sizeof(error))) {
		refuse(reply, "%s", error);
		return false;
	}
	own = config_find_loop(w->config, &backend->address, false);
	if (own != NULL) {
		refuse(reply,
		       "[listener %s] listens at that address: mail would go "
		       "in circles",
		       own->name);
		return false;
	}
	return true;
}

static void add_backend(struct worker *w, const struct control_order *order,
			struct reply *reply)
{
	struct config_backend *backend = &control_of(w)->backend;
	char *error = control_of(w)->error;
	char address[BACKEND_ADDRESS_MAX];

	if (!read_backend(w, backend, order, reply))
		return;
	if (!weir_join_backend(w->weir, backend, &w->config->tls, w->now_ms,
			       io_wall_ms(w->io) / 1000, error)) {
		refuse(reply, "%s", error);
		return;
	}
	weir_address_text(&backend->address, address, sizeof(address));
	say(reply,
	    "ok: %s at %s is probed now; weir.ini does not have it: a reload "
	    "removes it\n",
	    backend->name, address);
}

static void del_backend(struct worker *w, const struct control_order *order,
			struct reply *reply)
{
	struct backend *b = farm_find(w->weir->farm, order->name.text,
				      order->name.len);
	char name[BACKEND_NAME_MAX];

	if (b == NULL) {
		refuse_name(w, order, reply);
		return;
	}
	memcpy(name, b->name, sizeof(name));
	switch (weir_part_backend(w->weir, b->index)) {
	case FARM_OK:
		w->leaving[b->index] = false;
		say(reply, "ok: %s is gone until the next reload or start\n",
		    name);
		return;
	case FARM_READY:
		refuse(reply,
		       "%s takes sessions: first say \"set backend %s drain\"",
		       name, name);
		return;
	case FARM_IN_USE:
		refuse(reply,
		       "%s has %lu sessions left: wait for them, or cut them "
		       "by \"kill session\"",
		       name,
		       (unsigned long)backend_gauge(b, BACKEND_GAUGE_sessions,
						    w->now_ms));
		return;
	case FARM_NO_SUCH:
	case FARM_FULL:
	case FARM_TAKEN:
		break;
	}
	refuse_name(w, order, reply);
}

static void ban(struct worker *w, const struct control_order *order,
		struct reply *reply)
{
	char net[CIDR_TEXT_MAX];
	char age[CONTROL_AGE_MAX];
	int64_t until_ms = ADMISSION_FOREVER;

	(void)cidr_format(&order->net, net, sizeof(net));
	if (order->duration_ms > 0)
		until_ms = w->now_ms + order->duration_ms;
	if (!admission_ban(w->weir->admission, &order->net, until_ms,
			   w->now_ms)) {
		refuse(reply, "%d bans are in force, which is all there may be",
		       ADMISSION_BANS_MAX);
		return;
	}
	(void)control_age_format(order->duration_ms, age);
	say(reply, "ok: %s is banned %s%s; its open sessions go on\n", net,
	    order->duration_ms > 0 ? "for " : "for ever",
	    order->duration_ms > 0 ? age : "");
}

static void unban(struct worker *w, const struct control_order *order,
		  struct reply *reply)
{
	char net[CIDR_TEXT_MAX];

	(void)cidr_format(&order->net, net, sizeof(net));
	if (admission_unban(w->weir->admission, &order->net, w->now_ms))
		say(reply, "ok: %s is let in again\n", net);
	else
		refuse(reply, "%s is not banned; see \"show bans\"", net);
}

static struct client *find_client(struct worker *w, uint64_t id)
{
	for (struct client *c = w->clients.next; c != &w->clients;
	     c = c->next) {
		if (c->id == id)
			return c;
	}
	return NULL;
}

/* Has another worker that session?  Then it is to cut it. */
static bool order_kill(struct worker *w, struct worker *other, uint64_t id)
{
	bool found;

	control_lock(w, other);
	found = find_client(other, id) != NULL;
	control_unlock(w, other);
	if (!found)
		return false;
	atomic_store(&control_of(w)->kill[other->index], id);
	io_wake(other->io);
	return true;
}

static void kill_session(struct worker *w, const struct control_order *order,
			 struct reply *reply)
{
	struct client *c = find_client(w, order->id);
	char id[CONTROL_ID_MAX];
	bool found = c != NULL;

	(void)control_id_format(order->id, id);
	if (c != NULL)
		client_kill(w, c);
	for (unsigned i = 0; !found && i < w->weir->worker_count; i++) {
		struct worker *other = w->weir->workers[i];

		if (other != NULL && other != w)
			found = order_kill(w, other, order->id);
	}
	if (found)
		say(reply, "ok: session %s is cut\n", id);
	else
		refuse(reply, "no session %s; see \"show sessions\"", id);
}

void control_turn(struct worker *w)
{
	struct control *ctl = control_of(w->weir->workers[0]);
	struct client *c;
	uint64_t id;

	if (ctl == NULL || atomic_load_explicit(&ctl->kill[w->index],
						memory_order_relaxed) == 0)
		return;
	id = atomic_exchange(&ctl->kill[w->index], 0);
	c = find_client(w, id);
	if (c != NULL)
		client_kill(w, c);
}

/* ---- one line, one answer ---- */

static void perform(struct worker *w, const struct control_order *order,
		    struct reply *reply)
{
	struct report report;

	switch (order->verb) {
	case CONTROL_SHOW_INFO:
	case CONTROL_SHOW_STAT:
	case CONTROL_SHOW_BACKENDS:
	case CONTROL_SHOW_HEALTH:
	case CONTROL_SHOW_LIMITS:
	case CONTROL_SHOW_ROOM:
	case CONTROL_SHOW_TLS:
	case CONTROL_SHOW_SESSIONS:
	case CONTROL_SHOW_SOURCES:
	case CONTROL_SHOW_BANS:
		report_init(&report, order->format, reply->text,
			    OPERATOR_ANSWER_MAX - 1);
		control_show(w, order->verb, &report);
		reply->len = report.len;
		return;
	case CONTROL_HELP:
		reply->len = control_help(order, reply->text, CONTROL_HELP_MAX);
		return;
	case CONTROL_SET_BACKEND:
		set_backend(w, order, reply);
		return;
	case CONTROL_ADD_BACKEND:
		add_backend(w, order, reply);
		return;
	case CONTROL_DEL_BACKEND:
		del_backend(w, order, reply);
		return;
	case CONTROL_BAN:
		ban(w, order, reply);
		return;
	case CONTROL_UNBAN:
		unban(w, order, reply);
		return;
	case CONTROL_KILL_SESSION:
		kill_session(w, order, reply);
		return;
	case CONTROL_RELOAD:
		atomic_store(&w->weir->reload_wanted, true);
		say(reply, "ok: weir reads its configuration again; the log "
			   "says what came of it\n");
		return;
	case CONTROL_QUIT:
	case CONTROL_VERBS:
		break;
	}
}

static void log_order(struct worker *w, const char *line, size_t len,
		      const struct reply *reply)
{
	size_t n = reply->len;

	while (n > 0 && reply->text[n - 1] == '\n')
		n--;
	work_log_begin(w, "control");
	log_text(&w->log, "command", line, len);
	log_word(&w->log, "result", reply->refused ? "refused" : "ok");
	log_text(&w->log, "answer", reply->text, n);
	work_log(w, LOG_LEVEL_NOTICE);
}

static void answer_line(struct worker *w, struct operator* o)
{
	struct control_order *order = &control_of(w)->order;
	struct reply reply = { .text = o->answer };
	char error[CONTROL_ERROR_MAX];
	size_t len = o->line_len;

	while (len > 0 && o->line[len - 1] == '\r')
		len--;
	o->line_len = 0;
	switch (control_parse(o->line, len, order, error)) {
	case CONTROL_EMPTY:
		return;
	case CONTROL_WRONG:
		refuse(&reply, "%s", error);
		break;
	case CONTROL_ORDER:
		if (order->verb == CONTROL_QUIT) {
			o->leaving = true;
			return;
		}
		perform(w, order, &reply);
		if (control_commands[order->verb].change)
			log_order(w, o->line, len, &reply);
		break;
	}
	stats_add(&w->stats->control_commands, 1);
	assert(reply.len < OPERATOR_ANSWER_MAX);
	reply.text[reply.len++] = '\n'; /* the empty line: the answer's end */
	o->answer_len = reply.len;
	o->answer_at = 0;
}

static void answer_too_long(struct operator* o)
{
	struct reply reply = { .text = o->answer };

	refuse(&reply, "a line has at most %d octets", CONTROL_LINE_MAX);
	say(&reply, "\n");
	o->answer_len = reply.len;
	o->answer_at = 0;
	o->line_len = 0;
	o->skipping = true;
}

/*
 * Read on up to the end of a line, and answer that.  False: more is to come
 * first.
 */
static bool take_line(struct worker *w, struct operator* o)
{
	while (o->in.first != NULL) {
		const char *data = (const char *)o->in.first->data;
		size_t len = o->in.first->len;
		const char *lf = memchr(data, '\n', len);
		size_t n = lf != NULL ? (size_t)(lf - data) : len;

		if (!o->skipping && n > CONTROL_LINE_MAX - o->line_len) {
			answer_too_long(o);
			return true;
		}
		if (!o->skipping) {
			memcpy(o->line + o->line_len, data, n);
			o->line_len += n;
		}
		work_queue_eat(w, &o->in, n + (lf != NULL));
		if (lf != NULL && !o->skipping) {
			answer_line(w, o);
			return true;
		}
		if (lf != NULL)
			o->skipping = false;
	}
	if (!o->eof)
		return false;
	/* The last line may lack its end: printf help | nc -U ... */
	if (o->line_len > 0)
		answer_line(w, o);
	else
		o->leaving = true;
	return true;
}

/* ---- what goes over the connection ---- */

/* Hand over the next piece of the answer; true: there is none left. */
static bool feed(struct worker *w, struct operator* o)
{
	for (unsigned i = 0;
	     i < BUFFERS_AT_ONCE && o->answer_at < o->answer_len; i++) {
		size_t n = o->answer_len - o->answer_at;

		if (n > IO_SMALL_SIZE / 2)
			n = IO_SMALL_SIZE / 2;
		if (!send_text(w, o->socket, o->answer + o->answer_at, n)) {
			stats_add(&w->stats->no_buffers, 1);
			return false;
		}
		o->answer_at += n;
	}
	return o->answer_at == o->answer_len;
}

static void set_timer(struct worker *w, struct operator* o)
{
	bool sending = io_unsent(w->io, o->socket) > 0;
	int64_t at_ms = o->moved_ms + IDLE_MS;

	if (sending)
		at_ms = o->moved_ms + STUCK_MS;
	else if (o->fin_sent)
		at_ms = o->moved_ms + LINGER_MS;
	else if (o->answer_at < o->answer_len)
		at_ms = w->now_ms + RETRY_MS;
	timer_set(&w->wheel, &o->work.timer, at_ms);
}

static void listen_to(struct worker *w, struct operator* o)
{
	if (o->receiving || o->eof || o->in.first != NULL)
		return;
	o->receiving = true;
	io_recv(w->io, o->socket, IO_RESERVE, CONTROL_LINE_MAX);
}

/* Go as far as it goes: send, answer, read, or let go. */
static void serve(struct worker *w, struct operator* o)
{
	if (o->ending)
		return;
	while (io_unsent(w->io, o->socket) == 0 && feed(w, o) &&
	       io_unsent(w->io, o->socket) == 0 && !o->leaving) {
		if (!take_line(w, o))
			break;
	}
	if (o->leaving && !o->fin_sent && o->answer_at == o->answer_len) {
		o->fin_sent = true;
		o->moved_ms = w->now_ms;
		work_queue_drop(w, &o->in);
		io_shutdown(w->io, o->socket);
	}
	if (o->fin_sent && o->eof && io_unsent(w->io, o->socket) == 0) {
		leave(w, o);
		return;
	}
	listen_to(w, o);
	set_timer(w, o);
}

static void received(struct worker *w, struct operator* o,
		     const struct io_event *ev)
{
	o->receiving = ev->more;
	if (ev->result < 0) {
		leave(w, o);
		return;
	}
	if (ev->result == 0) {
		o->eof = true;
	} else if (o->leaving) {
		io_buf_put(w->io, ev->buf);
	} else {
		o->moved_ms = w->now_ms;
		work_queue_buf(w, &o->in, ev->buf);
	}
	serve(w, o);
}

void control_event(struct worker *w, struct operator* o,
		   const struct io_event *ev)
{
	switch (ev->kind) {
	case IO_RECEIVED:
		received(w, o, ev);
		return;
	case IO_SENT:
		if (ev->result < 0) {
			leave(w, o);
			return;
		}
		o->moved_ms = w->now_ms;
		serve(w, o);
		return;
	case IO_CLOSED:
		assert(o->ending);
		assert(w->operator_count > 0);
		w->operator_count--;
		o->socket = 0;
		return;
	case IO_ACCEPTED:
	case IO_CONNECTED:
	case IO_SPLICED:
	case IO_WOKEN:
		break;
	}
	assert(ev->kind == IO_CLOSED);
}

void control_timer(struct worker *w, struct operator* o)
{
	int64_t silent_ms = w->now_ms - o->moved_ms;
	bool sending = io_unsent(w->io, o->socket) > 0;

	if (silent_ms >= IDLE_MS || (sending && silent_ms >= STUCK_MS) ||
	    (o->fin_sent && !sending && silent_ms >= LINGER_MS))
		leave(w, o);
	else
		serve(w, o);
}
