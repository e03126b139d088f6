#include <arpa/inet.h>
#include <assert.h>
#include <err.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/load.h"
#include "tests/secure.h"
#include "tests/stretch.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum {
	COMMAND_MAX = 1024,
	PARTS = 3,
	BODY_PIECES = 20, /* of a body that --body-time spreads */
	BODY_TICK_MAX_MS = 1000,
};

struct load_session {
	int fd; /* -1: it has ended */
	struct load *load;
	struct load_session *prev, *next; /* next is also the dead list's */
	struct heap_node timer;
	int64_t deadline_ms; /* a timer that fires before is set again */
	uint64_t number;
	bool idle, slow;
	bool said_helo;
	bool pipelining, chunking, size; /* offered by the server */
	bool starttls, plain, login;     /* the same */
	bool bdat;                       /* wanted, and offered */
	SSL *tls;                        /* owned; NULL: in the clear */
	unsigned login_step;             /* of AUTH LOGIN */
	bool logged_in;
	bool parked; /* idle, at EHLO, awaiting the end */
	bool thinking;
	bool any_refused;
	bool peer_reset;
	bool peer_ended;            /* epoll saw the end: read up to it */
	bool in_reply;              /* the first lines of one were read */
	enum load_phase phase;      /* of the reply that is due next */
	enum load_phase abort_at;   /* LOAD_PHASES: never */
	unsigned due;               /* replies that are due */
	unsigned answerable;        /* of them, those whose command left */
	int64_t due_us, started_us; /* of the session */
	int64_t mark_us;            /* when the last commands were sent */
	int64_t moved_us;           /* when octets were last sent */

	char *held; /* a reply line not yet whole; owned, or NULL */
	size_t held_len;

	/* What is to be sent: out, then body, then tail. */
	char *out; /* owned, or NULL */
	size_t out_len, out_cap;
	char *body; /* the content's; not written */
	size_t body_len;
	char *tail;
	size_t sent;

	/* The message. */
	uint64_t messages; /* begun */
	const struct load_body *content;
	char id[LOAD_ID_LEN + 1];
	int64_t begun_us;
	bool in_message; /* begun, and not yet answered */
	bool mail_ok;
	uint64_t rcpts_done, rcpts_ok;
	size_t chunk_at;     /* raw octets given to chunks */
	unsigned chunks_due; /* replies */
	bool body_going;     /* its last octet is not yet queued or sent */
	bool body_sent;
	int64_t body_ms; /* to be spread over; 0: sent at once */
	int64_t body_since_us;
	int64_t sent_us; /* when its last octet left */
};

/* --- endings --- */

static void count_message_lost(struct load_session *s)
{
	struct load_stats *st = s->load->stats;

	if (!s->in_message)
		return;
	if (s->body_sent)
		st->unknown++;
	else
		st->unfinished++;
	s->in_message = false;
}

static struct load_source *source_of(const struct load_session *s)
{
	const struct load *load = s->load;

	if (load->sources == NULL)
		return NULL;
	return &load->sources[s->number % load->options.source_count];
}

static void count_refused(struct load_session *s)
{
	struct load_source *source = source_of(s);

	s->load->stats->refused++;
	if (source != NULL)
		source->refused++;
	s->in_message = false;
}

static void count_ending(struct load_session *s, enum load_ending ending)
{
	struct load_stats *st = s->load->stats;
	struct load_source *source = source_of(s);
	bool timed = !s->idle &&
		     (ending == LOAD_COMPLETE || ending == LOAD_REJECTED);
	uint64_t took_us = (uint64_t)(s->load->now_us - s->due_us);

	st->ended++;
	st->endings[ending][s->phase]++;
	if (timed)
		histogram_add(&st->times[LOAD_SESSION], took_us);
	if (source == NULL)
		return;
	source->ended++;
	source->failed += load_report_is_failure(ending);
	if (!timed)
		return;
	source->timed++;
	source->total_us += took_us;
	if (took_us > source->longest_us)
		source->longest_us = took_us;
}

static void end(struct load_session *s, enum load_ending ending)
{
	struct load *load = s->load;

	if (s->fd < 0)
		return;
	if (ending == LOAD_ABORTED) {
		struct linger reset = { .l_onoff = 1, .l_linger = 0 };

		/* If it fails the peer sees a FIN: nothing to be done. */
		(void)setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset,
				 sizeof(reset));
	}
	count_message_lost(s);
	count_ending(s, ending);
	if (s->tls != NULL && ending != LOAD_ABORTED)
		secure_finish(s->tls);
	secure_free(&s->tls);
	(void)close(s->fd);
	s->fd = -1;
	heap_remove(&load->timers, &s->timer);
	free(s->held);
	free(s->out);
	s->held = s->out = NULL;
	if (s->prev != NULL)
		s->prev->next = s->next;
	else
		load->sessions = s->next;
	if (s->next != NULL)
		s->next->prev = s->prev;
	if (s->idle)
		load->idle_open--;
	else
		load->open--;
	if (!s->idle && !load->priming && load->options.pause_ms > 0)
		load_pause(load, load->now_us + load->options.pause_ms * 1000);
	s->next = load->dead;
	load->dead = s;
}

void load_session_reap(struct load *load)
{
	while (load->dead != NULL) {
		struct load_session *s = load->dead;

		load->dead = s->next;
		free(s);
	}
}

/* True if the session ends here, by --abort. */
static bool aborts(struct load_session *s, enum load_phase phase)
{
	if (s->abort_at != phase)
		return false;
	end(s, LOAD_ABORTED);
	return true;
}

/* --- sending --- */

static void set_timer(struct load_session *s, int64_t in_ms)
{
	struct heap *timers = &s->load->timers;

	s->deadline_ms = s->load->now_us / 1000 + in_ms;
	/* Moving a timer back is left to the timer itself. */
	if (s->timer.index == 0 || s->timer.at_ms > s->deadline_ms)
		heap_set(timers, &s->timer, s->deadline_ms);
}

static char *room(struct load_session *s, size_t len)
{
	return stretch(&s->out, &s->out_cap, s->out_len, len);
}

/* Append a command; its reply is due. */
__attribute__((format(printf, 2, 3))) static void command(
	struct load_session *s, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	int n = vsnprintf(room(s, COMMAND_MAX), COMMAND_MAX, fmt, args);

	va_end(args);
	assert(n > 0);
	assert(n < COMMAND_MAX);
	s->out_len += (size_t)n;
	s->due++;
	s->mark_us = s->load->now_us;
}

static size_t put_header(struct load_session *s)
{
	struct load *load = s->load;

	load_message_header(load, s->id, room(s, load->header_len));
	s->out_len += load->header_len;
	return load->header_len;
}

static void queue_data_body(struct load_session *s)
{
	struct load *load = s->load;
	const struct load_options *o = &load->options;

	if (o->body_max_ms > 0) {
		s->body_ms = (int64_t)load_between(load,
						   (uint64_t)o->body_min_ms,
						   (uint64_t)o->body_max_ms);
		s->body_since_us = load->now_us;
	}
	(void)put_header(s);
	s->body = s->content->stuffed;
	s->body_len = s->content->stuffed_len;
	s->tail = load->end_of_data;
	s->body_going = true;
	s->due++;
	s->phase = LOAD_EOD;
}

/* The next chunk; the first one holds the header. */
static void queue_chunk(struct load_session *s)
{
	const struct load_options *o = &s->load->options;
	size_t left = s->content->raw_len - s->chunk_at;
	size_t header = s->chunk_at == 0 && s->chunks_due == 0 && !s->body_going
				? s->load->header_len
				: 0;
	size_t len = left;

	if (o->bdat_chunk > 0 && len + header > o->bdat_chunk)
		len = (size_t)o->bdat_chunk - header;
	bool last = len == left;

	command(s, "BDAT %zu%s\r\n", header + len, last ? " LAST" : "");
	if (header > 0)
		(void)put_header(s);
	s->body = s->content->raw + s->chunk_at;
	s->body_len = len;
	s->chunk_at += len;
	s->chunks_due++;
	s->body_going = true;
}

static bool chunks_left(const struct load_session *s)
{
	return s->bdat && s->body_going && s->chunk_at < s->content->raw_len;
}

static size_t parts_of(struct load_session *s, struct iovec iov[PARTS],
		       size_t *total)
{
	char *const text[PARTS] = { s->out, s->body, s->tail };
	const size_t len[PARTS] = { s->out_len, s->body_len,
				    s->tail == NULL ? 0 : strlen(s->tail) };
	size_t skip = s->sent;
	size_t count = 0;

	*total = 0;
	for (size_t i = 0; i < PARTS; i++) {
		size_t cut = skip < len[i] ? skip : len[i];

		*total += len[i];
		skip -= cut;
		if (len[i] == cut)
			continue;
		iov[count].iov_base = text[i] + cut;
		iov[count].iov_len = len[i] - cut;
		count++;
	}
	return count;
}

/* With --abort body: stop in the middle of the text. */
static bool cut_short(struct load_session *s, struct iovec *iov, size_t *count)
{
	if (s->abort_at != LOAD_BODY || !s->body_going)
		return false;
	size_t stop = s->out_len + s->body_len / 2;

	if (s->sent >= stop) {
		end(s, LOAD_ABORTED);
		return true;
	}
	*count = 1;
	if (iov[0].iov_len > stop - s->sent)
		iov[0].iov_len = stop - s->sent;
	return false;
}

static bool is_spread(const struct load_session *s)
{
	return s->body_ms > 0 && s->body_going;
}

/*
 * With --body-time: cut down to what is due by now.  True if that is nothing,
 * and the timer is set for when there will be some.
 */
static bool keep_pace(struct load_session *s, struct iovec *iov, size_t *count,
		      size_t total)
{
	int64_t since_us = s->load->now_us - s->body_since_us;
	int64_t tick_ms = s->body_ms / BODY_PIECES + 1;
	size_t due = total;

	if (!is_spread(s))
		return false;
	if (since_us < s->body_ms * 1000)
		due = (size_t)((double)total * (double)since_us /
			       ((double)s->body_ms * 1e3));
	if (due <= s->sent) {
		if (tick_ms > BODY_TICK_MAX_MS)
			tick_ms = BODY_TICK_MAX_MS;
		set_timer(s, tick_ms);
		return true;
	}
	size_t left = due - s->sent;
	size_t used = 0;

	while (used < *count && left > 0) {
		if (iov[used].iov_len > left)
			iov[used].iov_len = left;
		left -= iov[used].iov_len;
		used++;
	}
	*count = used;
	return false;
}

static void all_sent(struct load_session *s)
{
	s->out_len = s->body_len = s->sent = 0;
	s->tail = NULL;
	free(s->out);
	s->out = NULL;
	s->out_cap = 0;
	set_timer(s, s->load->options.timeout_ms);
	if (s->slow || is_spread(s)) /* that slowness is not the server's */
		s->mark_us = s->load->now_us;
	if (!s->body_going)
		return;
	if (chunks_left(s)) {
		if (s->pipelining)
			queue_chunk(s);
		return;
	}
	s->body_going = false;
	s->body_sent = true;
	s->sent_us = load_clock_us();
	s->load->stats->sent++;
	(void)aborts(s, LOAD_EOD);
}

/* As sendmsg(2), or by TLS: one record of it. */
static ssize_t send_parts(struct load_session *s, struct iovec *iov,
			  size_t count)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = count };
	size_t len = 0;

	if (s->tls == NULL)
		return sendmsg(s->fd, &msg, MSG_NOSIGNAL);
	for (size_t i = 0; i < count && len < SECURE_RECORD_MAX; i++) {
		size_t more = SECURE_RECORD_MAX - len;

		if (more > iov[i].iov_len)
			more = iov[i].iov_len;
		memcpy(s->load->record + len, iov[i].iov_base, more);
		len += more;
	}
	return secure_send(s->tls, s->load->record, len);
}

/*
 * Send what there is, one octet only for a slow talker.
 * False: the connection is broken.
 */
static bool flush(struct load_session *s)
{
	struct iovec iov[PARTS];
	size_t total = 0;
	size_t count = 0;

	while (s->fd >= 0 && (count = parts_of(s, iov, &total)) > 0) {
		if (keep_pace(s, iov, &count, total) ||
		    cut_short(s, iov, &count))
			return true;
		if (s->slow) {
			count = 1;
			iov[0].iov_len = 1;
		}
		ssize_t n = send_parts(s, iov, count);

		if (n < 0 && errno != EAGAIN)
			return false;
		if (n < 0) {
			if (s->slow)
				set_timer(s, s->load->options.slow_ms);
			return true;
		}
		s->sent += (size_t)n;
		s->answerable = s->due;
		s->moved_us = s->load->now_us;
		if (s->sent == total)
			all_sent(s);
		else if (s->slow)
			set_timer(s, s->load->options.slow_ms);
		else
			set_timer(s, s->load->options.timeout_ms);
		if (s->slow)
			return true;
	}
	return true;
}

/* --- the dialogue --- */

static void say_ehlo(struct load_session *s)
{
	s->pipelining = s->chunking = s->size = false;
	s->starttls = s->plain = s->login = false;
	s->phase = LOAD_EHLO;
	command(s, "%s %s\r\n", s->said_helo ? "HELO" : "EHLO",
		s->load->options.helo);
}

static void say_quit(struct load_session *s)
{
	s->phase = LOAD_QUIT;
	s->parked = false;
	command(s, "QUIT\r\n");
}

static void say_mail(struct load_session *s)
{
	char size[32] = "";

	if (s->size)
		snprintf(size, sizeof(size), " SIZE=%zu",
			 s->load->header_len + s->content->raw_len);
	command(s, "MAIL FROM:<%s>%s\r\n", s->load->options.from, size);
}

static void say_rcpt(struct load_session *s, uint64_t number)
{
	const struct load_options *o = &s->load->options;

	if (number < o->to_count)
		command(s, "RCPT TO:<%s>\r\n", o->to[number]);
	else
		command(s, "RCPT TO:<rcpt%llu.%s>\r\n",
			(unsigned long long)number, o->to[0]);
}

static void begin_message(struct load_session *s)
{
	struct load *load = s->load;
	const struct load_options *o = &load->options;
	uint64_t pick = load_between(load, 0, load->body_count - 1);

	load_message_id(load, s->number, s->messages, s->id);
	s->content = &load->bodies[pick];
	s->messages++;
	s->begun_us = load->now_us;
	load->stats->begun++;
	s->in_message = true;
	s->mail_ok = s->body_going = s->body_sent = false;
	s->rcpts_done = s->rcpts_ok = 0;
	s->chunk_at = 0;
	s->chunks_due = 0;
	s->phase = LOAD_MAIL;
	say_mail(s);
	if (!s->pipelining)
		return;
	for (uint64_t i = 0; i < o->recipients; i++)
		say_rcpt(s, i);
	if (s->bdat)
		queue_chunk(s);
	else
		command(s, "DATA\r\n");
}

static void next_message(struct load_session *s)
{
	struct load *load = s->load;
	const struct load_options *o = &load->options;

	if (s->messages >= o->messages || load->stopping) {
		say_quit(s);
		return;
	}
	if (s->messages == 0 || o->think_max_ms == 0) {
		begin_message(s);
		return;
	}
	s->thinking = true;
	s->phase = LOAD_MAIL;
	set_timer(s, (int64_t)load_between(load, (uint64_t)o->think_min_ms,
					   (uint64_t)o->think_max_ms));
}

/* The transaction is over without an end of data. */
static void message_failed(struct load_session *s)
{
	count_refused(s);
	s->any_refused = true;
	if (s->messages >= s->load->options.messages || s->load->stopping) {
		say_quit(s);
		return;
	}
	s->phase = LOAD_RSET;
	command(s, "RSET\r\n");
}

static void message_answered(struct load_session *s, bool positive)
{
	struct load *load = s->load;
	struct load_stats *st = load->stats;
	uint8_t mark[TALLY_SHA_OCTETS];

	if (!positive) {
		count_refused(s);
		s->any_refused = true;
		next_message(s);
		return;
	}
	s->in_message = false;
	histogram_add(&st->times[LOAD_MESSAGE],
		      (uint64_t)(load->now_us - s->begun_us));
	if (source_of(s) != NULL)
		source_of(s)->acknowledged++;
	st->acknowledged++;
	st->octets += load->header_len + s->content->raw_len;
	tally_mark(&load->tally, s->id, LOAD_ID_LEN, s->content->sha, mark);
	tally_add(&load->tally, mark);
	if (load->journal != NULL)
		fprintf(load->journal, "%s %s\n", s->id, s->content->sha_hex);
	next_message(s);
}

/* Something that was asked for is not offered. */
static void not_offered(struct load_session *s, enum load_phase phase,
			enum load_ending ending)
{
	char text[LOAD_TEXT_MAX];
	int n = snprintf(text, sizeof(text), "%s is not offered",
			 phase == LOAD_AUTH ? "AUTH PLAIN or LOGIN"
					    : "STARTTLS");

	s->phase = phase;
	load_report_refusal(s->load->stats, phase, text, (size_t)n);
	end(s, ending);
}

/* TLS and EHLO are there: on to what it came for. */
static void be_ready(struct load_session *s)
{
	const struct load *load = s->load;
	bool leaves = load->priming || load->options.handshakes ||
		      (s->idle && load->stopping);

	if (leaves)
		say_quit(s);
	else if (s->idle)
		s->parked = true;
	else
		next_message(s);
}

static void say_auth(struct load_session *s)
{
	if (!s->plain && !s->login) {
		not_offered(s, LOAD_AUTH, LOAD_REFUSED);
		return;
	}
	s->phase = LOAD_AUTH;
	s->login_step = 0;
	if (!s->plain) {
		command(s, "AUTH LOGIN\r\n");
		return;
	}
	command(s, "AUTH PLAIN %s\r\n", load_login_plain(s->load->login));
}

static void got_auth(struct load_session *s, unsigned code)
{
	if (code == 334 && !s->plain && s->login_step < 2) {
		command(s, "%s\r\n",
			load_login_step(s->load->login, s->login_step++));
		return;
	}
	if (code != 235) {
		end(s, LOAD_REFUSED);
		return;
	}
	s->logged_in = true;
	if (!aborts(s, LOAD_AUTH))
		be_ready(s);
}

static void say_starttls(struct load_session *s)
{
	if (!s->starttls) {
		not_offered(s, LOAD_STARTTLS, LOAD_TLS_FAILED);
		return;
	}
	s->phase = LOAD_STARTTLS;
	command(s, "STARTTLS\r\n");
}

/* From here on the phase is LOAD_TLS until the handshake is done. */
static void begin_tls(struct load_session *s)
{
	assert(s->tls == NULL);
	assert(s->out_len == 0);
	s->phase = LOAD_TLS;
	s->tls = load_tls_new(s->load, s->fd);
	s->mark_us = s->load->now_us;
	set_timer(s, s->load->options.timeout_ms);
}

static void await_greeting(struct load_session *s)
{
	s->phase = LOAD_GREETING;
	s->due = s->answerable = 1;
	s->moved_us = s->load->now_us;
	s->mark_us = s->load->now_us;
	set_timer(s, s->load->options.timeout_ms);
}

static void got_starttls(struct load_session *s, unsigned code)
{
	if (code != 220)
		end(s, LOAD_REFUSED);
	else if (!aborts(s, LOAD_STARTTLS))
		begin_tls(s);
}

static void got_ehlo(struct load_session *s, unsigned code)
{
	const struct load_options *o = &s->load->options;

	if (code >= 500 && !s->said_helo) {
		s->said_helo = true;
		say_ehlo(s);
		return;
	}
	if (code != 250) {
		end(s, LOAD_REFUSED);
		return;
	}
	if (o->secure == LOAD_BY_STARTTLS && s->tls == NULL) {
		say_starttls(s);
		return;
	}
	if (o->pipelining == LOAD_YES)
		s->pipelining = true;
	else if (o->pipelining == LOAD_NO)
		s->pipelining = false;
	s->bdat = o->bdat && s->chunking;
	if (aborts(s, LOAD_EHLO))
		return;
	if (s->load->login != NULL && !s->load->priming && !o->handshakes)
		say_auth(s);
	else
		be_ready(s);
}

static void got_mail(struct load_session *s, unsigned code)
{
	s->mail_ok = code / 100 == 2;
	if (aborts(s, LOAD_MAIL))
		return;
	if (!s->mail_ok && !s->pipelining) {
		message_failed(s);
		return;
	}
	s->phase = LOAD_RCPT;
	if (!s->pipelining)
		say_rcpt(s, 0);
}

static void got_rcpt(struct load_session *s, unsigned code)
{
	const struct load_options *o = &s->load->options;

	s->rcpts_done++;
	if (code / 100 == 2 && s->mail_ok)
		s->rcpts_ok++;
	if (s->rcpts_done < o->recipients) {
		if (!s->pipelining)
			say_rcpt(s, s->rcpts_done);
		return;
	}
	if (aborts(s, LOAD_RCPT))
		return;
	s->phase = s->bdat ? LOAD_EOD : LOAD_DATA;
	if (s->pipelining)
		return;
	if (s->rcpts_ok == 0)
		message_failed(s);
	else if (s->bdat)
		queue_chunk(s);
	else
		command(s, "DATA\r\n");
}

static void got_data(struct load_session *s, unsigned code)
{
	if (code != 354) {
		message_failed(s);
		return;
	}
	if (aborts(s, LOAD_DATA))
		return;
	if (s->rcpts_ok > 0) {
		queue_data_body(s);
		return;
	}
	/* 354 though nobody was accepted: RFC 2920, section 3.1. */
	s->phase = LOAD_EOD;
	command(s, ".\r\n");
	s->body_sent = true;
	s->sent_us = s->load->now_us;
}

static void got_eod(struct load_session *s, unsigned code)
{
	bool positive = code / 100 == 2;

	if (s->chunks_due > 1 || (s->chunks_due == 1 && chunks_left(s))) {
		s->chunks_due--;
		if (!positive) { /* what it does with the rest is unknown */
			count_refused(s);
			end(s, LOAD_REFUSED);
		} else if (!s->pipelining && s->out_len == 0) {
			queue_chunk(s);
		}
		return;
	}
	if (!s->body_sent && s->body_going) { /* it spoke before the end */
		count_refused(s);
		s->phase = LOAD_BODY;
		end(s, LOAD_REFUSED);
		return;
	}
	if (positive && s->rcpts_ok == 0) {
		end(s, LOAD_PROTOCOL);
		return;
	}
	message_answered(s, positive);
}

/* Replies to chunks, the last one excepted, belong to the body. */
static enum load_phase phase_of_reply(const struct load_session *s)
{
	if (s->phase == LOAD_EOD && (s->chunks_due > 1 || s->body_going))
		return LOAD_BODY;
	return s->phase;
}

static void note_time(struct load_session *s, enum load_phase phase)
{
	int64_t from = phase == LOAD_EOD ? s->sent_us : s->mark_us;
	int64_t now = s->load->now_us;

	histogram_add(&s->load->stats->times[phase],
		      now > from ? (uint64_t)(now - from) : 0);
}

static void got_reply(struct load_session *s, unsigned code, const char *text,
		      size_t len)
{
	struct load_stats *st = s->load->stats;
	enum load_phase phase = phase_of_reply(s);

	st->codes[phase][code]++;
	if (code >= 400)
		load_report_refusal(st, phase, text, len);
	if (code == 421) {
		if (s->in_message)
			count_refused(s);
		end(s, LOAD_421);
		return;
	}
	if (s->answerable == 0) { /* it answers what was never said */
		end(s, LOAD_PROTOCOL);
		return;
	}
	s->due--;
	s->answerable--;
	note_time(s, phase);
	switch (s->phase) {
	case LOAD_GREETING:
		if (code != 220)
			end(s, LOAD_REFUSED);
		else if (s->tls != NULL && s->load->options.handshakes)
			say_quit(s);
		else if (!aborts(s, LOAD_GREETING))
			say_ehlo(s);
		return;
	case LOAD_STARTTLS:
		got_starttls(s, code);
		return;
	case LOAD_AUTH:
		got_auth(s, code);
		return;
	case LOAD_EHLO:
		got_ehlo(s, code);
		return;
	case LOAD_MAIL:
		got_mail(s, code);
		return;
	case LOAD_RCPT:
		got_rcpt(s, code);
		return;
	case LOAD_DATA:
		got_data(s, code);
		return;
	case LOAD_EOD:
		got_eod(s, code);
		return;
	case LOAD_RSET:
		next_message(s);
		return;
	case LOAD_QUIT:
		if (s->idle)
			end(s, LOAD_KEPT_IDLE);
		else
			end(s, s->any_refused ? LOAD_REJECTED : LOAD_COMPLETE);
		return;
	case LOAD_CONNECT:
	case LOAD_TLS:
	case LOAD_BODY:
	case LOAD_MESSAGE:
	case LOAD_SESSION:
	case LOAD_PHASES:
		end(s, LOAD_PROTOCOL);
		return;
	}
}

/* --- reading --- */

static bool has_word(const char *text, size_t len, const char *word)
{
	size_t n = strlen(word);

	return len >= n && strncasecmp(text, word, n) == 0 &&
	       (len == n || text[n] == ' ');
}

static void note_mechanisms(struct load_session *s, const char *text,
			    size_t len)
{
	for (size_t pos = 0; pos < len; pos++) {
		if (text[pos] != ' ')
			continue;
		if (has_word(text + pos + 1, len - pos - 1, "PLAIN"))
			s->plain = true;
		else if (has_word(text + pos + 1, len - pos - 1, "LOGIN"))
			s->login = true;
	}
}

static void note_keyword(struct load_session *s, const char *text, size_t len)
{
	if (has_word(text, len, "PIPELINING"))
		s->pipelining = true;
	else if (has_word(text, len, "CHUNKING"))
		s->chunking = true;
	else if (has_word(text, len, "SIZE"))
		s->size = true;
	else if (has_word(text, len, "STARTTLS"))
		s->starttls = true;
	else if (has_word(text, len, "AUTH"))
		note_mechanisms(s, text, len);
}

/* One line of a reply, its line end cut off. */
static void got_line(struct load_session *s, const char *line, size_t len)
{
	unsigned code = 0;

	for (size_t i = 0; i < 3; i++) {
		if (i >= len || line[i] < '0' || line[i] > '9') {
			load_report_refusal(s->load->stats, s->phase, line,
					    len);
			end(s, LOAD_PROTOCOL);
			return;
		}
		code = code * 10 + (unsigned)(line[i] - '0');
	}
	if (len > 3 && line[3] != ' ' && line[3] != '-') {
		end(s, LOAD_PROTOCOL);
		return;
	}
	if (s->phase == LOAD_EHLO && len > 4)
		note_keyword(s, line + 4, len - 4);
	s->in_reply = len > 3 && line[3] == '-';
	if (!s->in_reply)
		got_reply(s, code, line, len);
}

static void hold(struct load_session *s, const char *rest, size_t len)
{
	s->held_len = len;
	if (len == 0)
		return;
	s->held = malloc(len);
	if (s->held == NULL)
		err(1, "out of memory");
	memcpy(s->held, rest, len);
}

static void got_octets(struct load_session *s, const char *buf, size_t len)
{
	size_t pos = 0;

	while (pos < len && s->fd >= 0 && s->phase != LOAD_TLS) {
		const char *lf = memchr(buf + pos, '\n', len - pos);

		if (lf == NULL)
			break;
		size_t end_at = (size_t)(lf - buf);
		size_t cut = end_at > pos && buf[end_at - 1] == '\r' ? 1 : 0;

		got_line(s, buf + pos, end_at - pos - cut);
		pos = end_at + 1;
	}
	if (s->fd < 0)
		return;
	/* What came behind the 220 in the clear is no part of TLS. */
	if (len - pos > LOAD_LINE_MAX || (s->phase == LOAD_TLS && pos < len))
		end(s, LOAD_PROTOCOL);
	else
		hold(s, buf + pos, len - pos);
}

static void peer_gone(struct load_session *s, bool reset)
{
	if (s->held_len > 0 || s->in_reply)
		end(s, LOAD_CUT);
	else
		end(s, reset || s->peer_reset ? LOAD_RESET : LOAD_EOF);
}

static ssize_t receive(struct load_session *s, char *buf)
{
	return s->tls != NULL ? secure_recv(s->tls, buf, LOAD_READ_MAX)
			      : recv(s->fd, buf, LOAD_READ_MAX, 0);
}

/* Everything that has come, before any error is believed: the reason may be
 * in it. */
static void read_replies(struct load_session *s)
{
	char *buf = s->load->read_buf;

	while (s->fd >= 0 && s->phase != LOAD_TLS) {
		size_t held = s->held_len;
		ssize_t n = receive(s, buf + held);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			peer_gone(s, n < 0);
			return;
		}
		if (s->held != NULL)
			memcpy(buf, s->held, held);
		free(s->held);
		s->held = NULL;
		s->held_len = 0;
		set_timer(s, s->load->options.timeout_ms);
		got_octets(s, buf, held + (size_t)n);
		/* TLS gives a record at a time, and may hold another. */
		if (n < LOAD_READ_MAX && s->tls == NULL && !s->peer_reset &&
		    !s->peer_ended)
			return; /* an end yet to come is a new event */
	}
}

/* Send what the replies made us say; a broken connection may have a text. */
static void go_on(struct load_session *s)
{
	if (s->fd < 0 || s->phase == LOAD_CONNECT || s->phase == LOAD_TLS)
		return;
	if (s->slow && s->sent > 0)
		return; /* the timer sends the next octet */
	if (!flush(s)) {
		s->peer_reset = true;
		read_replies(s);
		if (s->fd >= 0)
			peer_gone(s, true);
		return;
	}
	if (s->fd >= 0 && s->out_len == 0 && s->phase == LOAD_QUIT)
		(void)aborts(s, LOAD_QUIT);
}

/* --- the beginning --- */

static void connect_failed(struct load_session *s, int error)
{
	char text[LOAD_TEXT_MAX];
	int n = snprintf(text, sizeof(text), "%s%s", strerror(error),
			 error == EADDRNOTAVAIL
				 ? " (no port is left: use --sources)"
				 : "");

	load_report_refusal(s->load->stats, LOAD_CONNECT, text, (size_t)n);
	end(s,
	    error == ECONNREFUSED ? LOAD_CONNECT_REFUSED : LOAD_CONNECT_FAILED);
}

static void connected(struct load_session *s)
{
	struct load *load = s->load;
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
		error = errno;
	/* A reset that came behind the handshake is the server's answer. */
	if (error == ECONNRESET || error == EPIPE) {
		s->peer_reset = true;
	} else if (error != 0) {
		connect_failed(s, error);
		return;
	}
	histogram_add(&load->stats->times[LOAD_CONNECT],
		      (uint64_t)(load->now_us - s->started_us));
	load->stats->connected++;
	if (aborts(s, LOAD_CONNECT))
		return;
	if (load->options.secure == LOAD_IMPLICIT)
		begin_tls(s);
	else
		await_greeting(s);
}

static void shake_failed(struct load_session *s)
{
	char text[SECURE_TEXT_MAX];

	secure_reason(text);
	load_report_refusal(s->load->stats, LOAD_TLS, text, strlen(text));
	end(s, LOAD_TLS_FAILED);
}

/* True if there is a handshake, and it goes on or has failed. */
static bool is_shaking(struct load_session *s)
{
	if (s->fd < 0 || s->phase != LOAD_TLS)
		return false;
	switch (secure_handshake(s->tls)) {
	case SECURE_AGAIN:
		(void)aborts(s, LOAD_TLS); /* our first octets are out */
		return true;
	case SECURE_FAILED:
		shake_failed(s);
		return true;
	case SECURE_DONE:
		break;
	}
	note_time(s, LOAD_TLS);
	load_tls_count(s->load, s->tls);
	if (s->load->options.secure == LOAD_IMPLICIT)
		await_greeting(s);
	else
		say_ehlo(s);
	return false;
}

void load_session_event(struct load_session *s, uint32_t events)
{
	if (s->fd < 0)
		return;
	s->load->now_us = load_clock_us();
	if (s->phase == LOAD_CONNECT) {
		if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0)
			return;
		connected(s);
	}
	if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
		s->peer_ended = true;
	if (is_shaking(s))
		return;
	read_replies(s);
	/* The 220 to STARTTLS may have been among them. */
	if (!is_shaking(s))
		go_on(s);
}

struct load_session *load_session_of_timer(struct heap_node *timer)
{
	return (struct load_session *)(void *)((char *)timer -
					       offsetof(struct load_session,
							timer));
}

static bool is_paced(const struct load_session *s)
{
	return s->slow || is_spread(s);
}

/* A slow talker whose octets nobody takes. */
static bool is_stuck(const struct load_session *s)
{
	const struct load *load = s->load;

	return is_paced(s) && s->out_len > 0 &&
	       load->now_us - s->moved_us > load->options.timeout_ms * 1000;
}

void load_session_timer(struct load_session *s)
{
	struct load *load = s->load;
	int64_t now_ms = load->now_us / 1000;

	assert(s->fd >= 0);
	heap_remove(&load->timers, &s->timer);
	if (s->parked)
		return;
	/* A reply that came meanwhile has put the deadline off. */
	if (is_paced(s) && s->out_len > 0 && !is_stuck(s)) {
		if (!flush(s)) {
			s->slow = false;
			s->body_ms = 0;
			go_on(s);
		}
		return;
	}
	if (now_ms < s->deadline_ms && !is_stuck(s)) {
		heap_set(&load->timers, &s->timer, s->deadline_ms);
		return;
	}
	if (s->thinking) {
		s->thinking = false;
		if (load->stopping)
			say_quit(s);
		else
			begin_message(s);
		go_on(s);
		return;
	}
	end(s, LOAD_TIMEOUT);
}

static void bind_source(struct load_session *s)
{
	const struct load_options *o = &s->load->options;
	struct sockaddr_in in = { .sin_family = AF_INET };
	int on = 1;

	if (o->source_count == 0)
		return;
	in.sin_addr.s_addr = htonl(o->source_first +
				   (uint32_t)(s->number % o->source_count));
	/* The port is chosen at connect: one port serves many targets. */
	if (setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on,
		       sizeof(on)) != 0 ||
	    bind(s->fd, (struct sockaddr *)&in, sizeof(in)) != 0) {
		char text[INET_ADDRSTRLEN] = "?";

		(void)inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
		err(1, "cannot use the source address %s", text);
	}
}

static void choose_fate(struct load_session *s)
{
	struct load *load = s->load;
	const struct load_options *o = &load->options;

	s->abort_at = LOAD_PHASES;
	if (s->idle)
		return;
	s->slow = o->slow_percent > 0 && load_chance(load, o->slow_percent);
	for (unsigned i = 0; i < LOAD_PHASES; i++) {
		if (o->abort_percent[i] > 0 &&
		    load_chance(load, o->abort_percent[i])) {
			s->abort_at = (enum load_phase)i;
			return;
		}
	}
}

void load_session_start(struct load *load, bool idle, int64_t due_us)
{
	const struct load_options *o = &load->options;
	struct load_session *s = calloc(1, sizeof(*s));
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.ptr = s,
	};

	if (s == NULL)
		err(1, "out of memory");
	s->load = load;
	s->idle = idle;
	s->number = load->numbered++;
	load->stats->started++;
	s->due_us = due_us;
	s->started_us = load->now_us;
	s->phase = LOAD_CONNECT;
	s->fd = socket(o->target.ss_family,
		       SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		err(1, "socket (see ulimit -n)");
	s->next = load->sessions;
	if (s->next != NULL)
		s->next->prev = s;
	load->sessions = s;
	if (idle)
		load->idle_open++;
	else
		load->open++;
	if (load->open + load->idle_open > load->stats->peak)
		load->stats->peak = load->open + load->idle_open;
	choose_fate(s);
	bind_source(s);
	set_timer(s, o->timeout_ms);
	if (connect(s->fd, (const struct sockaddr *)&o->target,
		    o->target_len) != 0 &&
	    errno != EINPROGRESS) {
		connect_failed(s, errno);
		return;
	}
	if (epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, s->fd, &ev) != 0)
		err(1, "epoll_ctl");
}

void load_session_stop_all(struct load *load)
{
	struct load_session *next = NULL;

	load->stopping = true;
	for (struct load_session *s = load->sessions; s != NULL; s = next) {
		next = s->next; /* s may leave the list */
		if (!s->parked)
			continue;
		say_quit(s);
		set_timer(s, load->options.timeout_ms);
		go_on(s);
	}
}

void load_session_cut_all(struct load *load)
{
	while (load->sessions != NULL)
		end(load->sessions, LOAD_ABORTED);
	load_session_reap(load);
}

uint64_t load_session_count(const struct load *load, int64_t due_before_us)
{
	uint64_t count = 0;

	for (const struct load_session *s = load->sessions; s != NULL;
	     s = s->next)
		count += !s->idle && s->due_us < due_before_us;
	return count;
}
