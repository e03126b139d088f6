#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/limit.h"

/*
 * Whatever happens in whatever order, also what cannot: the counts are those
 * of a ledger kept beside them, and the limit is between one and the ceiling.
 *
 * An event is four octets: what, on which session, how long since the last,
 * and with what figure.
 */

enum {
	SESSIONS = 64,
	EVENT_SIZE = 4,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct limit_policy policy = {
	.retry_ms = 500,
	.retry_max_ms = 10000,
	.start = 4,
};

struct ledger {
	struct limit limit;
	enum limit_phase phases[SESSIONS];
	uint32_t n, p, pp;
	int64_t now;
};

static void enter(struct ledger *g, enum limit_phase phase, int by)
{
	g->n += (uint32_t)(phase == LIMIT_GREETED ? by : 0);
	g->p += (uint32_t)(phase == LIMIT_PENDING || phase == LIMIT_PROBE ? by
									  : 0);
	g->pp += (uint32_t)(phase == LIMIT_PROBE ? by : 0);
}

static enum limit_phase dispatch(struct ledger *g)
{
	struct limit *l = &g->limit;
	bool ordinary = limit_admits(l);
	bool probe = limit_admits_probe(l, g->now);

	if (ordinary)
		assert(l->n + l->p - l->pp < limit_slots(l));
	if (!ordinary && !probe)
		return LIMIT_OUT;
	assert(l->n + l->p < l->ceiling);
	return limit_dispatched(l, !ordinary);
}

/* Events of one session; those that do not fit its phase change no count. */
static void befall(struct ledger *g, uint8_t what, unsigned which,
		   uint8_t figure)
{
	struct limit *l = &g->limit;
	enum limit_phase was = g->phases[which], now = was;
	uint64_t random = (uint64_t)figure << 56;

	switch (what & 7) {
	case 0:
	case 1:
		if (was == LIMIT_OUT)
			now = dispatch(g);
		break;
	case 2:
	case 3:
		now = limit_greeted(l, &policy, was, (int64_t)figure * figure,
				    g->now, random);
		assert((now == LIMIT_GREETED) == (was != LIMIT_OUT));
		break;
	case 4:
		now = limit_busy(l, &policy, was, figure & 1, g->now, random);
		assert(now == LIMIT_OUT);
		break;
	case 5:
		now = limit_maybe(l, &policy, was, g->now, random);
		assert(now == LIMIT_OUT);
		break;
	default:
		now = limit_gone(l, was);
		assert(now == LIMIT_OUT);
		break;
	}
	g->phases[which] = now;
	enter(g, was, -1);
	enter(g, now, 1);
}

static void befall_all(struct ledger *g, uint8_t what, uint8_t figure)
{
	struct limit *l = &g->limit;
	uint32_t ceiling = figure == UINT8_MAX ? LIMIT_MAX : figure + 1U;

	switch (what & 7) {
	case 0:
		limit_set_ceiling(l, &policy, ceiling, g->now);
		assert(l->ceiling == ceiling);
		break;
	case 1:
		limit_set_start(l, &policy);
		break;
	case 2:
		limit_return(l, &policy, g->now);
		break;
	case 3:
	case 4:
		limit_cool(l, g->now);
		break;
	case 5:
		limit_uncool(l, g->now);
		break;
	default:
		limit_seed(l, figure, g->now);
		break;
	}
}

static void check(const struct ledger *g)
{
	const struct limit *l = &g->limit;

	assert(l->n == g->n);
	assert(l->p == g->p);
	assert(l->pp == g->pp);
	assert(l->pp <= l->p);
	assert(l->l >= 1 && l->l <= l->ceiling);
	assert(limit_slots(l) >= 1 && limit_slots(l) <= l->ceiling);
	assert(l->burst >= 1);
	assert(l->back_ms >= policy.retry_ms);
	assert(l->back_ms <= policy.retry_max_ms);
	assert(l->last < LIMIT_EVENT_COUNT);
	assert(limit_patience_ms(l, 300) <= 300);
	(void)limit_is_alarmed(l, g->now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ledger g = { .now = 0 };

	if (size == 0)
		return 0;
	limit_begin(&g.limit, &policy,
		    data[0] == 0 ? (uint32_t)LIMIT_MAX : data[0], g.now);
	data++;
	size--;
	for (; size >= EVENT_SIZE; data += EVENT_SIZE, size -= EVENT_SIZE) {
		/* Up to four minutes, mostly much less. */
		g.now += (int64_t)data[2] * data[2] * (data[2] & 3);
		if (data[0] >> 3 == 0)
			befall_all(&g, data[0], data[3]);
		else
			befall(&g, data[0], data[1] % SESSIONS, data[3]);
		check(&g);
	}
	return 0;
}
