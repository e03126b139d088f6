#include "tests/sink_session.h"

#include <arpa/inet.h>
#include <assert.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "tests/secure.h"
#include "tests/stretch.h"

enum {
	ACCEPT_PAUSE_NS = 5000000,
	DRAIN_MS = 2000, /* for the peer to read our last reply and close */
	WAIT_MS = 3600 * 1000, /* a client that is never greeted */
};

bool sink_session_is_stopped(const struct sink_session *s)
{
	/* Whatever out[] holds in mid-parse goes out at the end of it. */
	return s->out_release < s->out_len || s->acked || s->rejected ||
	       s->closing || s->doomed || s->secure == SINK_AGREED ||
	       s->state == SINK_DEAD;
}

static void unlink_session(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;

	if (s->prev != NULL)
		s->prev->next = s->next;
	else
		mta->sessions = s->next;
	if (s->next != NULL)
		s->next->prev = s->prev;
	assert(mta->open > 0);
	mta->open--;
}

static void release_slot(struct sink_session *s)
{
	if (!s->has_slot)
		return;
	assert(s->mta->slots_used > 0);
	s->has_slot = false;
	s->mta->slots_used--;
	s->mta->stats.slot_ms += s->mta->sink->now_ms - s->slot_since_ms;
	s->mta->room_changed = true;
}

static void take_slot(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;

	assert(!s->has_slot);
	s->has_slot = true;
	s->slot_since_ms = mta->sink->now_ms;
	mta->slots_used++;
	mta->stats.sessions++;
	if (mta->slots_used > mta->stats.peak)
		mta->stats.peak = mta->slots_used;
}

static void leave_queue(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;
	struct sink_session *before = NULL;
	struct sink_session *at = mta->waiting;

	while (at != NULL && at != s) {
		before = at;
		at = at->wait_next;
	}
	if (at == NULL)
		return;
	if (before == NULL)
		mta->waiting = s->wait_next;
	else
		before->wait_next = s->wait_next;
	if (mta->waiting_tail == s)
		mta->waiting_tail = before;
	s->wait_next = NULL;
}

static void join_queue(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;

	if (mta->waiting == NULL)
		mta->waiting = s;
	else
		mta->waiting_tail->wait_next = s;
	mta->waiting_tail = s;
}

static enum sink_outcome outcome_of_loss(const struct sink_session *s)
{
	if (s->rejected)
		return SINK_REJECTED;
	return s->message->whole ? SINK_UNANSWERED : SINK_ABORTED;
}

void sink_session_kill(struct sink_session *s, enum sink_how how)
{
	struct sink *sink = s->mta->sink;

	if (s->state == SINK_DEAD)
		return;
	if (how == SINK_HOW_RST) {
		struct linger reset = { .l_onoff = 1, .l_linger = 0 };

		/* If that fails the peer sees a FIN: nothing to be done. */
		(void)setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset,
				 sizeof(reset));
	}
	if (s->state == SINK_WAITING)
		leave_queue(s);
	s->state = SINK_DEAD;
	if (s->message != NULL)
		sink_message_finish(s, outcome_of_loss(s));
	if (s->tls != NULL && how == SINK_HOW_CLOSE)
		secure_finish(s->tls);
	secure_free(&s->tls);
	sink_xclient_free(&s->identity);
	(void)close(s->fd);
	s->fd = -1;
	heap_remove(&sink->timers, &s->timer);
	release_slot(s);
	unlink_session(s);
	free(s->held);
	free(s->out);
	s->held = NULL;
	s->out = NULL;
	s->wait_next = sink->dead;
	sink->dead = s;
}

void sink_session_reap(struct sink *sink)
{
	while (sink->dead != NULL) {
		struct sink_session *s = sink->dead;

		sink->dead = s->wait_next;
		free(s);
	}
}

/* --- replies --- */

static void out_append(struct sink_session *s, const char *text, size_t len)
{
	memcpy(stretch(&s->out, &s->out_cap, s->out_len, len), text, len);
	s->out_len += len;
}

/* How far the next step of a paced reply goes. */
static size_t next_release(const struct sink_session *s)
{
	if (s->line_paced) {
		const char *lf = memchr(s->out + s->out_release, '\n',
					s->out_len - s->out_release);

		return lf == NULL ? s->out_len : (size_t)(lf - s->out) + 1;
	}
	if (s->mta->dribble_ms > 0)
		return s->out_release + 1;
	return s->out_len;
}

void sink_session_say(struct sink_session *s, const char *text, size_t len,
		      int64_t delay_ms)
{
	const struct sink_mta *mta = s->mta;
	struct sink *sink = mta->sink;
	bool paced = s->out_release < s->out_len;

	out_append(s, text, len);
	if (paced)
		return;
	s->line_paced = !s->greeted && mta->line_pause_ms > 0;
	if (delay_ms > 0) {
		heap_set(&sink->timers, &s->timer, sink->now_ms + delay_ms);
	} else if (mta->dribble_ms > 0 || s->line_paced) {
		s->out_release = next_release(s);
		heap_set(&sink->timers, &s->timer,
			 sink->now_ms + (s->line_paced ? mta->line_pause_ms
						       : mta->dribble_ms));
	} else {
		s->out_release = s->out_len;
	}
}

static void await_input(struct sink_session *s)
{
	struct sink *sink = s->mta->sink;

	s->last_ms = sink->now_ms;
	/* A timer that fires early is moved on: cheaper than moving it now. */
	if (s->timer.index == 0)
		heap_set(&sink->timers, &s->timer,
			 sink->now_ms + s->mta->timeout_ms);
}

/* The last reply is out: the slot is free, the peer may read it in peace. */
static void start_drain(struct sink_session *s)
{
	struct sink *sink = s->mta->sink;

	release_slot(s);
	if (s->said_quit && s->held_len == 0) {
		sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
	if (s->message != NULL)
		sink_message_finish(s, outcome_of_loss(s));
	s->state = SINK_DRAIN;
	if (s->tls != NULL)
		secure_finish(s->tls);
	/* Closing with input unread would reset, and destroy the reply. */
	if (shutdown(s->fd, SHUT_WR) != 0) {
		sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
	heap_set(&sink->timers, &s->timer, sink->now_ms + DRAIN_MS);
}

/*
 * What came behind STARTTLS was said in the clear, perhaps by somebody else:
 * it is not obeyed (RFC 3207, section 6).
 */
static void start_tls(struct sink_session *s)
{
	free(s->held);
	s->held = NULL;
	s->held_len = 0;
	s->held_ready = false;
	sink_tls_begin(s);
	await_input(s);
}

static void all_said(struct sink_session *s)
{
	bool was_said = s->out_len > 0;

	s->out_len = s->out_sent = s->out_release = 0;
	/* An idle session keeps no buffer. */
	free(s->out);
	s->out = NULL;
	s->out_cap = 0;
	if (was_said && s->state != SINK_WAITING)
		s->greeted = true;
	if (s->acked)
		sink_message_finish(s, SINK_STORED);
	else if (s->rejected)
		sink_message_finish(s, SINK_REJECTED);
	s->acked = s->rejected = false;
	if (s->doomed)
		sink_session_kill(s, s->mta->die_how);
	else if (s->secure == SINK_AGREED)
		start_tls(s);
	else if (s->closing)
		start_drain(s);
	else
		await_input(s);
}

/* Send what may go.  True if nothing is left to say. */
static bool flush(struct sink_session *s)
{
	while (s->out_sent < s->out_release) {
		ssize_t n = sink_tls_send(s, s->out + s->out_sent,
					  s->out_release - s->out_sent);

		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0) {
			s->mta->stats.resets++;
			sink_session_kill(s, SINK_HOW_CLOSE);
			return false;
		}
		s->out_sent += (size_t)n;
	}
	if (s->out_sent < s->out_len)
		return false;
	all_said(s);
	return s->state != SINK_DEAD && s->state != SINK_DRAIN;
}

/* --- input --- */

static void hung_up(struct sink_session *s)
{
	if (!s->said_quit && s->greeted)
		sink_smtp_error(s, SINK_ERR_NO_QUIT);
	sink_session_kill(s, SINK_HOW_CLOSE);
}

static void receive_failed(struct sink_session *s)
{
	s->mta->stats.resets++;
	sink_session_kill(s, SINK_HOW_CLOSE);
}

static void keep_rest(struct sink_session *s, const char *rest, size_t len)
{
	s->held_ready = len > 0 && sink_session_is_stopped(s);
	s->held_len = len;
	if (len == 0)
		return;
	s->held = malloc(len);
	if (s->held == NULL)
		err(1, "out of memory");
	memcpy(s->held, rest, len);
}

/* Parse what is held, or read more and parse.  True if there may be more. */
static bool take_in(struct sink_session *s)
{
	char *buf = s->mta->sink->read_buf;
	size_t len = s->held_len;
	bool more = true;

	if (!s->held_ready) {
		ssize_t n = sink_tls_recv(s, buf + len, SINK_READ_MAX);

		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0) {
			receive_failed(s);
			return false;
		}
		if (n == 0) {
			hung_up(s);
			return false;
		}
		/* TLS gives a record at a time, and may hold another. */
		more = n == SINK_READ_MAX || s->peer_ended || s->tls != NULL;
		if (len > 0)
			memcpy(buf, s->held, len);
		len += (size_t)n;
		s->last_ms = s->mta->sink->now_ms;
	} else {
		memcpy(buf, s->held, len);
	}
	free(s->held);
	s->held = NULL;
	s->held_len = 0;

	size_t used = sink_smtp_input(s, buf, len);

	assert(used <= len);
	if (s->state == SINK_DEAD)
		return false;
	keep_rest(s, buf + used, len - used);
	return more || s->held_ready;
}

/* The handshake first.  False: there is no more for now. */
static bool shake(struct sink_session *s)
{
	if (!sink_tls_shake(s))
		return false;
	s->last_ms = s->mta->sink->now_ms;
	if (s->mta->tls != SINK_TLS_IMPLICIT || s->greeted)
		return true;
	if (s->turned_away)
		sink_smtp_refuse(s);
	else
		sink_smtp_greet(s);
	return true;
}

static void drain(struct sink_session *s)
{
	char *buf = s->mta->sink->read_buf;

	for (;;) {
		ssize_t n = recv(s->fd, buf, SINK_READ_MAX, 0);

		if (n > 0)
			continue;
		if (n == 0 || errno != EAGAIN)
			sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
}

/*
 * Go on until there is nothing to read, or a reply holds everything up.
 * With edge-triggered events nobody calls again for what is left over.
 */
static void go_on(struct sink_session *s)
{
	bool more = true;

	while (more) {
		if (!flush(s))
			break;
		if (s->secure == SINK_SHAKING) {
			more = shake(s);
			continue;
		}
		more = take_in(s);
		if (s->state == SINK_DEAD)
			return;
		if (!more)
			(void)flush(s);
	}
	if (s->state == SINK_DRAIN)
		drain(s);
}

void sink_session_event(struct sink_session *s, uint32_t events)
{
	if (s->state == SINK_DEAD)
		return;
	if ((events & EPOLLRDHUP) != 0)
		s->peer_ended = true;
	if ((events & EPOLLERR) != 0) {
		receive_failed(s);
		return;
	}
	if (s->state == SINK_WAITING) {
		if ((events & (EPOLLRDHUP | EPOLLHUP)) != 0)
			sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
	if (!s->greeted && s->state == SINK_COMMAND && s->tls == NULL &&
	    (events & EPOLLIN) != 0 && (events & EPOLLRDHUP) == 0)
		sink_smtp_error(s, SINK_ERR_EARLY);
	go_on(s);
}

static void idle(struct sink_session *s)
{
	struct sink *sink = s->mta->sink;
	int64_t due = s->last_ms + s->mta->timeout_ms;

	if (sink->now_ms < due) {
		heap_set(&sink->timers, &s->timer, due);
		return;
	}
	s->mta->stats.timeouts++;
	/* It does not even read, or does not come to speak. */
	if (s->out_len > 0 || s->secure == SINK_SHAKING) {
		sink_session_kill(s, SINK_HOW_RST);
		return;
	}
	sink_smtp_timeout(s);
	go_on(s);
}

void sink_session_timer(struct sink_session *s)
{
	struct sink *sink = s->mta->sink;

	assert(s->state != SINK_DEAD);
	heap_remove(&sink->timers, &s->timer);
	if (s->state == SINK_WAITING || s->state == SINK_DRAIN) {
		sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	}
	if (s->out_release == s->out_len) {
		idle(s);
		return;
	}
	s->out_release = next_release(s);
	if (s->out_release < s->out_len) {
		heap_set(&sink->timers, &s->timer,
			 sink->now_ms + (s->line_paced ? s->mta->line_pause_ms
						       : s->mta->dribble_ms));
	}
	s->last_ms = sink->now_ms;
	go_on(s);
}

/* --- the beginning --- */

static void name_client(struct sink_session *s,
			const struct sockaddr_storage *from)
{
	char text[INET6_ADDRSTRLEN] = "?";
	unsigned port = 0;

	if (from->ss_family == AF_INET) {
		struct sockaddr_in in;

		memcpy(&in, from, sizeof(in));
		(void)inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
		port = ntohs(in.sin_port);
	} else if (from->ss_family == AF_INET6) {
		struct sockaddr_in6 in6;

		memcpy(&in6, from, sizeof(in6));
		(void)inet_ntop(AF_INET6, &in6.sin6_addr, text, sizeof(text));
		port = ntohs(in6.sin6_port);
	}
	snprintf(s->client, sizeof(s->client), "%s %u", text, port);
}

static struct sink_session *session_new(struct sink_mta *mta, int fd,
					const struct sockaddr_storage *from)
{
	struct sink_session *s = calloc(1, sizeof(*s));
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.ptr = s,
	};

	if (s == NULL)
		err(1, "out of memory");
	s->kind = SINK_KIND_SESSION;
	s->fd = fd;
	s->mta = mta;
	s->state = SINK_COMMAND;
	s->last_ms = mta->sink->now_ms;
	name_client(s, from);
	s->next = mta->sessions;
	if (s->next != NULL)
		s->next->prev = s;
	mta->sessions = s;
	mta->open++;
	if (epoll_ctl(mta->sink->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0)
		err(1, "epoll_ctl");
	return s;
}

static void begin(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;

	s->state = SINK_COMMAND;
	if (mta->die == SINK_DIE_CONNECT &&
	    sink_chance(mta->sink, &mta->die_chance)) {
		mta->stats.deaths++;
		sink_session_kill(s, mta->die_how);
		return;
	}
	if (mta->tls == SINK_TLS_IMPLICIT)
		sink_tls_begin(s);
	else
		sink_smtp_greet(s);
	go_on(s);
}

/* All slots are taken. */
static void turn_away(struct sink_session *s)
{
	struct sink_mta *mta = s->mta;
	struct sink *sink = mta->sink;

	mta->stats.refused++;
	switch (mta->busy) {
	case SINK_BUSY_421:
	case SINK_BUSY_REFUSE: /* it slipped in before the socket closed */
		s->turned_away = true;
		if (mta->tls == SINK_TLS_IMPLICIT)
			sink_tls_begin(s);
		else
			sink_smtp_refuse(s);
		go_on(s);
		return;
	case SINK_BUSY_EOF:
		sink_session_kill(s, SINK_HOW_CLOSE);
		return;
	case SINK_BUSY_QUEUE:
		join_queue(s);
		break;
	case SINK_BUSY_SILENT:
		break;
	}
	s->state = SINK_WAITING;
	heap_set(&sink->timers, &s->timer, sink->now_ms + WAIT_MS);
}

static void came_in(struct sink_mta *mta, int fd,
		    const struct sockaddr_storage *from)
{
	struct sink_session *s = session_new(mta, fd, from);

	mta->stats.accepted++;
	if (!sink_mta_has_room(mta)) {
		turn_away(s);
		return;
	}
	take_slot(s);
	if (mta->busy == SINK_BUSY_REFUSE && !sink_mta_has_room(mta))
		sink_mta_unlisten(mta);
	begin(s);
}

void sink_session_accept(struct sink_mta *mta)
{
	while (mta->listen_fd >= 0) {
		struct sockaddr_storage from = { 0 };
		socklen_t from_len = sizeof(from);
		int fd = accept4(mta->listen_fd, (struct sockaddr *)&from,
				 &from_len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			int one = 1;

			/* A reply behind TLS's own words must not wait. */
			(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one,
					 sizeof(one));
			came_in(mta, fd, &from);
			continue;
		}
		if (errno == EAGAIN)
			return;
		if (errno == ECONNABORTED || errno == EINTR)
			continue;
		/* No descriptors: let others end, and do not spin. */
		mta->stats.accept_errors++;
		struct timespec pause = { .tv_nsec = ACCEPT_PAUSE_NS };

		(void)nanosleep(&pause, NULL);
		return;
	}
}

void sink_session_admit_waiting(struct sink_mta *mta)
{
	while (mta->waiting != NULL && sink_mta_has_room(mta)) {
		struct sink_session *s = mta->waiting;

		leave_queue(s);
		heap_remove(&mta->sink->timers, &s->timer);
		take_slot(s);
		begin(s);
	}
}
