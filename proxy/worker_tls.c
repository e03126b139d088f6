#include <assert.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "proxy/work.h"

/*
 * TLS between a socket and a conversation, on either leg: what has come is
 * decoded as far as there is use for it, what is to be said is encoded when
 * it is sent.
 */

enum {
	/* A record in less room than this would be mostly head and tag. */
	ROOM_MIN = 256,
	/* What is longer than this goes out in big buffers. */
	BULK_MIN = 2 * IO_SMALL_SIZE,
};

/* ---- begin and end ---- */

bool secure_begin(struct worker *w, struct work_tls *t,
		  struct tls_context *context,
		  const struct tls_session *session)
{
	assert(t->codec == NULL);
	if (context != NULL)
		t->codec = tls_begin(context, session,
				     io_wall_ms(w->io) / 1000);
	tls_context_unref(&context);
	return t->codec != NULL;
}

void secure_end(struct worker *w, struct work *work, struct work_tls *t)
{
	work_unqueue_costly(work);
	work_queue_drop(w, &t->wire);
	tls_free(&t->codec);
}

/* ---- handshakes in turn ---- */

/*
 * A handshake takes as long as a hundred commands: only so many are made in
 * one turn, in the order in which they came, so that mail moves on between.
 */
void secure_wait(struct worker *w, struct work *work)
{
	if (work->next_costly != NULL)
		return;
	work->next_costly = &w->costly;
	work->prev_costly = w->costly.prev_costly;
	work->prev_costly->next_costly = work;
	w->costly.prev_costly = work;
}

void work_unqueue_costly(struct work *work)
{
	if (work->next_costly == NULL)
		return;
	work->next_costly->prev_costly = work->prev_costly;
	work->prev_costly->next_costly = work->next_costly;
	work->next_costly = work->prev_costly = NULL;
}

bool secure_is_behind(const struct worker *w)
{
	return w->costly.next_costly != &w->costly;
}

void secure_turn(struct worker *w)
{
	w->handshakes = w->config->tls.handshakes;
	while (w->handshakes > 0 && secure_is_behind(w)) {
		struct work *work = w->costly.next_costly;

		assert(work->kind == WORK_CLIENT);
		work_unqueue_costly(work);
		client_resume(w, (struct client *)work);
	}
}

/*
 * Must these octets wait for another turn?  Only clients': a backend's
 * handshake is part of mail that moves, and there are no more of them than
 * slots.
 */
static bool must_wait(const struct worker *w, const struct work *work,
		      const struct work_tls *t)
{
	return work->kind == WORK_CLIENT && w->handshakes == 0 &&
	       t->wire.first != NULL && tls_is_costly(t->codec);
}

/* Handshakes with clients and backends, of all workers, since the start. */
static uint64_t handshakes_made(const struct weir *weir)
{
	uint64_t made = 0;

	for (unsigned i = 0; i < weir->worker_count; i++) {
		const struct stats *s = &weir->stats[i];

		made += s->tls_full + s->tls_resumed + s->tls_failed +
			s->backend_tls_full + s->backend_tls_resumed;
	}
	return made;
}

void secure_tidy(struct worker *w)
{
	uint64_t made = handshakes_made(w->weir);
	bool quiet = made - w->made_before < WORK_TIDY_HANDSHAKES;

	assert(w->index == 0);
	w->made_before = made;
	(void)tls_store_rotate(w->weir->tls, io_wall_ms(w->io) / 1000);
	if (!quiet || made - w->made_tidy < WORK_TIDY_HANDSHAKES)
		return;
	w->made_tidy = made;
	tls_trim();
}

/* ---- in ---- */

/* One call of the codec.  False: nothing came of it. */
static bool decode(struct worker *w, struct work_tls *t, struct work_queue *in,
		   struct io_buf *buf)
{
	struct tls_span from = { 0 };
	struct tls_room to = { 0 };
	size_t had = 0;
	size_t used;

	if (t->wire.first != NULL) {
		had = t->wire.first->len;
		from = (struct tls_span){ t->wire.first->data, had };
	}
	if (buf != NULL)
		to = (struct tls_room){ buf->data, buf->room };
	(void)tls_decode(t->codec, &from, &to);
	used = had - from.len;
	if (used > 0)
		work_queue_eat(w, &t->wire, used);
	if (buf == NULL)
		return used > 0;
	buf->len = (uint32_t)(buf->room - to.len);
	buf->room = (uint32_t)to.len;
	if (buf->len == 0) {
		io_buf_put(w->io, buf);
		return used > 0;
	}
	work_queue_buf(w, in, buf);
	return true;
}

/*
 * A buffer of this pool; for bulk a small one will do as well.  NULL: there is
 * none, and work comes again (a probe has its deadline).
 */
static struct io_buf *take_room(struct worker *w, struct work *work,
				enum io_pool pool)
{
	struct io_buf *buf = io_buf_get(w->io, pool);

	if (buf == NULL && pool == IO_BIG)
		buf = io_buf_get(w->io, IO_SMALL);
	if (buf != NULL)
		return buf;
	stats_add(&w->stats->no_buffers, 1);
	if (work->kind != WORK_PROBE)
		work_come_again(w, work);
	return NULL;
}

/* Decode some.  False: there is nothing more to be had now. */
static bool read_some(struct worker *w, struct work *work, struct work_tls *t,
		      struct work_queue *in, enum io_pool pool)
{
	bool costly = tls_is_costly(t->codec);
	size_t unsent = tls_unsent(t->codec);
	struct io_buf *buf = NULL;
	bool more;

	if (must_wait(w, work, t)) {
		secure_wait(w, work);
		return false;
	}
	if (tls_state(t->codec) == TLS_OPEN) {
		buf = take_room(w, work, pool);
		if (buf == NULL)
			return false;
	}
	more = decode(w, t, in, buf);
	/* What it answered with was the work. */
	if (costly && w->handshakes > 0 &&
	    (!tls_is_costly(t->codec) || tls_unsent(t->codec) > unsent))
		w->handshakes--;
	return more;
}

enum tls_state secure_read(struct worker *w, struct work *work,
			   struct work_tls *t, struct work_queue *in,
			   enum io_pool pool)
{
	bool more = true;

	while (more && in->octets < WORK_COMMAND_CREDIT &&
	       (t->wire.first != NULL || tls_is_holding(t->codec)))
		more = read_some(w, work, t, in, pool);
	return tls_state(t->codec);
}

/* ---- out ---- */

bool secure_can_say(const struct work_tls *t)
{
	enum tls_state state = tls_state(t->codec);

	return state == TLS_OPEN || state == TLS_CLOSED;
}

bool secure_is_loud(const struct work_tls *t, const struct work_queue *out)
{
	if (t->codec == NULL)
		return out->first != NULL;
	return tls_unsent(t->codec) > 0 ||
	       (out->first != NULL && secure_can_say(t));
}

/* What is waiting is as good as sent: to be without a buffer ends nothing. */
static struct io_buf *room_for(struct worker *w, const struct work_queue *out)
{
	bool bulk = out->octets >= BULK_MIN;
	struct io_buf *buf = io_buf_get(w->io, bulk ? IO_BIG : IO_SMALL);

	if (buf == NULL)
		buf = io_buf_get(w->io, bulk ? IO_SMALL : IO_BIG);
	if (buf == NULL && io_buf_free(w->io, IO_RESERVE) >= WORK_RESERVE_KEPT)
		buf = io_buf_get(w->io, IO_RESERVE);
	return buf;
}

/* Fill buf with records; those of several small pieces may share it. */
static void encode(struct worker *w, struct work_tls *t, struct work_queue *out,
		   struct io_buf *buf)
{
	do {
		struct tls_span from = { 0 };
		struct tls_room to = { buf->data + buf->len, buf->room };
		size_t had = 0;

		if (out->first != NULL && secure_can_say(t)) {
			had = out->first->len;
			from = (struct tls_span){ out->first->data, had };
		}
		(void)tls_encode(t->codec, &from, &to);
		buf->len += (uint32_t)(buf->room - to.len);
		buf->room = (uint32_t)to.len;
		if (had > from.len)
			work_queue_eat(w, out, had - from.len);
	} while (buf->room >= ROOM_MIN && secure_is_loud(t, out));
}

uint64_t secure_flush(struct worker *w, struct work *work, struct work_tls *t,
		      struct work_queue *out, io_handle socket, bool last)
{
	struct work_queue wire = { 0 };
	uint64_t octets = 0;

	if (t->codec == NULL) {
		work_queue_flush(w, out, socket, &octets);
		return octets;
	}
	if (io_unsent(w->io, socket) > 0)
		return 0;
	while (wire.octets < WORK_WINDOW) {
		struct io_buf *buf;

		if (last && out->first == NULL && secure_can_say(t))
			tls_close(t->codec);
		if (!secure_is_loud(t, out))
			break;
		buf = room_for(w, out);
		if (buf == NULL) {
			stats_add(&w->stats->no_buffers, 1);
			break;
		}
		encode(w, t, out, buf);
		if (buf->len == 0) {
			io_buf_put(w->io, buf);
			break;
		}
		work_queue_buf(w, &wire, buf);
	}
	work_queue_flush(w, &wire, socket, &octets);
	if (octets == 0 && work->kind != WORK_PROBE && secure_is_loud(t, out))
		work_come_again(w, work);
	return octets;
}

/* ---- what was agreed on ---- */

const char *secure_version(const struct work_tls *t)
{
	struct tls_info info;

	if (t->codec == NULL || !secure_can_say(t))
		return NULL;
	tls_describe(t->codec, &info);
	return info.version;
}

void secure_log(struct worker *w, const struct work_tls *t)
{
	struct tls_info info = { 0 };

	if (t->codec == NULL) {
		log_word(&w->log, "tls", "no");
		return;
	}
	if (tls_state(t->codec) == TLS_HANDSHAKE) {
		log_word(&w->log, "tls", "unfinished");
		return;
	}
	if (!secure_can_say(t)) {
		log_word(&w->log, "tls", "failed");
		log_word(&w->log, "tls_error", tls_reason(t->codec));
		return;
	}
	tls_describe(t->codec, &info);
	log_word(&w->log, "tls", info.version);
	log_word(&w->log, "cipher", info.cipher);
	if (info.resumed)
		log_word(&w->log, "resumed", "yes");
	if (info.name[0] != '\0')
		log_word(&w->log, "sni", info.name);
	if (info.subject[0] != '\0') {
		log_word(&w->log, "cert", info.subject);
		log_word(&w->log, "cert_sha256", info.fingerprint);
		log_word(&w->log, "cert_verified",
			 info.verified ? "yes" : "no");
	}
}
