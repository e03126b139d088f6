#include "tests/sim/sim_wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 2048 };

static void timer_fires(void *owner);

void sim_wire_open(struct sim_wire *w, struct sim *sim, struct sim_end *end)
{
	*w = (struct sim_wire){
		.sim = sim,
		.end = end,
		.timer = { .fire = timer_fires, .owner = w },
	};
}

/* What is held or slow goes out now. */
static void let_go(struct sim_wire *w)
{
	sim_timer_clear(w->sim, &w->timer);
	if (w->out_at < w->out_len && !w->fin)
		sim_end_say(w->end, w->out + w->out_at, w->out_len - w->out_at);
	w->out_at = w->out_len = 0;
}

static void forget(struct sim_wire *w)
{
	sim_timer_clear(w->sim, &w->timer);
	sim_tls_free(&w->tls);
	free(w->out);
	w->out = NULL;
	w->out_at = w->out_len = w->out_max = 0;
	w->end = NULL;
}

void sim_wire_close(struct sim_wire *w)
{
	if (w->end == NULL)
		return;
	let_go(w);
	sim_end_close(w->end);
	forget(w);
}

void sim_wire_reset(struct sim_wire *w)
{
	if (w->end == NULL)
		return;
	sim_end_reset(w->end);
	forget(w);
}

/* --- saying --- */

static void timer_fires(void *owner)
{
	struct sim_wire *w = owner;

	if (w->fin || w->out_at == w->out_len)
		return;
	sim_end_say(w->end, w->out + w->out_at++, 1);
	if (w->out_at == w->out_len) {
		w->out_at = w->out_len = 0;
		return;
	}
	sim_timer_set(w->sim, &w->timer, sim_now_us(w->sim) + w->slow_us);
}

static void keep(struct sim_wire *w, const void *data, size_t len)
{
	if (w->out_len + len > w->out_max) {
		w->out_max = 2 * (w->out_len + len);
		w->out = sim_grow(w->out, w->out_max);
	}
	memcpy(w->out + w->out_len, data, len);
	w->out_len += len;
	if (w->slow_us > 0 && !w->holding && w->timer.index == 0)
		sim_timer_set(w->sim, &w->timer,
			      sim_now_us(w->sim) + w->slow_us);
}

void sim_wire_say_raw(struct sim_wire *w, const void *data, size_t len)
{
	if (w->fin || w->end == NULL || len == 0)
		return;
	if (w->holding || w->slow_us > 0 || w->out_at < w->out_len)
		keep(w, data, len);
	else
		sim_end_say(w->end, data, len);
}

void sim_wire_flush(struct sim_wire *w)
{
	uint8_t *all = NULL;
	size_t len = 0, n;
	uint8_t piece[PIECE];

	if (w->tls == NULL)
		return;
	while ((n = sim_tls_give(w->tls, piece, sizeof(piece))) > 0) {
		all = sim_grow(all, len + n);
		memcpy(all + len, piece, n);
		len += n;
	}
	if (len > 0 && w->tampers) {
		all[len / 2] ^= 1;
		w->tampers = false;
	}
	if (len > 0 && w->tears) {
		len--;
		w->tears = false;
	}
	sim_wire_say_raw(w, all, len);
	free(all);
}

void sim_wire_say(struct sim_wire *w, const void *data, size_t len)
{
	if (w->tls == NULL) {
		sim_wire_say_raw(w, data, len);
		return;
	}
	sim_tls_write(w->tls, data, len);
	sim_wire_flush(w);
}

void sim_wire_notify(struct sim_wire *w)
{
	if (w->tls == NULL || w->end == NULL)
		return;
	sim_tls_notify(w->tls);
	sim_wire_flush(w);
}

void sim_wire_fin(struct sim_wire *w, bool notify)
{
	if (w->fin || w->end == NULL)
		return;
	if (notify)
		sim_wire_notify(w);
	let_go(w);
	w->fin = true;
	sim_end_fin(w->end);
}

void sim_wire_hold(struct sim_wire *w)
{
	w->holding = true;
}

void sim_wire_go(struct sim_wire *w)
{
	w->holding = false;
	if (w->end == NULL)
		return;
	if (w->slow_us > 0)
		keep(w, "", 0);
	else
		let_go(w);
}

void sim_wire_slow(struct sim_wire *w, int64_t us)
{
	w->slow_us = us;
}

void sim_wire_tamper(struct sim_wire *w)
{
	w->tampers = true;
}

void sim_wire_tear(struct sim_wire *w)
{
	w->tears = true;
}

/* --- reading --- */

size_t sim_wire_read(struct sim_wire *w, void *buf, size_t len)
{
	uint8_t piece[PIECE];
	size_t n;

	if (w->end == NULL)
		return 0;
	if (w->tls == NULL)
		return sim_end_read(w->end, buf, len);
	while ((n = sim_end_read(w->end, piece, sizeof(piece))) > 0)
		sim_tls_take(w->tls, piece, n);
	n = sim_tls_read(w->tls, buf, len);
	sim_wire_flush(w);
	return n;
}

void sim_wire_secure(struct sim_wire *w, const struct sim_tls_wish *wish)
{
	uint8_t none[1];

	assert(w->tls == NULL);
	w->tls = sim_tls_new(wish);
	/* Nothing can be read as long as it shakes hands. */
	(void)sim_tls_read(w->tls, none, 0);
	sim_wire_flush(w);
}

bool sim_wire_is_secure(const struct sim_wire *w)
{
	return w->tls != NULL && (sim_tls_state(w->tls) == SIM_TLS_OPEN ||
				  sim_tls_state(w->tls) == SIM_TLS_CLOSED);
}

bool sim_wire_is_shaking(const struct sim_wire *w)
{
	return w->tls != NULL && sim_tls_state(w->tls) == SIM_TLS_SHAKING;
}

bool sim_wire_has_failed(const struct sim_wire *w)
{
	return w->tls != NULL && sim_tls_state(w->tls) == SIM_TLS_FAILED;
}

bool sim_wire_at_end(const struct sim_wire *w)
{
	return w->end == NULL || sim_end_at_fin(w->end) ||
	       (w->tls != NULL && sim_tls_state(w->tls) == SIM_TLS_CLOSED);
}

bool sim_wire_ended_well(const struct sim_wire *w)
{
	if (w->tls != NULL)
		return sim_tls_state(w->tls) == SIM_TLS_CLOSED;
	return w->end == NULL || sim_end_at_fin(w->end);
}
