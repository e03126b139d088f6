#include "tests/load_limit.h"

#include <assert.h>

static const double knee_share = 0.95;

void load_limit_init(struct load_limit *limit,
		     const struct load_limit_config *config)
{
	assert(config->sessions_max > 0);
	assert(config->sessions_max <= LOAD_LIMIT_SESSIONS_MAX);
	assert(config->band_factor >= 1);
	*limit = (struct load_limit){ .config = *config, .offer = 1 };
}

bool load_limit_is_sure(const struct load_limit_sample *sample)
{
	return sample->failed >= LOAD_LIMIT_SURE;
}

bool load_limit_is_enough(const struct load_limit_sample *sample)
{
	return sample->ended >= LOAD_LIMIT_SAMPLES &&
	       sample->ended >= 2 * sample->sessions;
}

static enum load_limit_verdict judge(const struct load_limit *limit,
				     const struct load_limit_sample *sample)
{
	if (sample->failed > 0) {
		return limit->again || load_limit_is_sure(sample)
			       ? LOAD_LIMIT_REFUSED
			       : LOAD_LIMIT_DOUBTFUL;
	}
	if (sample->ended == 0)
		return LOAD_LIMIT_SLOW;
	if (limit->band_us > 0 &&
	    (sample->late > 0 || sample->p99_us > limit->band_us))
		return limit->again ? LOAD_LIMIT_SLOW : LOAD_LIMIT_DOUBTFUL;
	return LOAD_LIMIT_TAKEN;
}

/* The gap at which the search ends. */
static uint64_t gap_of(const struct load_limit *limit)
{
	uint64_t part = limit->why == LOAD_LIMIT_REFUSED
				? LOAD_LIMIT_REFUSED_PART
				: LOAD_LIMIT_SLOW_PART;
	uint64_t gap = limit->good / part;

	return gap > 1 ? gap : 1;
}

static uint64_t next_offer(const struct load_limit *limit)
{
	uint64_t most = limit->config.sessions_max;

	if (limit->bad == 0) {
		if (limit->good == most)
			return 0;
		return limit->good > most / 2 ? most : limit->good * 2;
	}
	if (limit->good == 0 || limit->bad - limit->good <= gap_of(limit))
		return 0;
	return limit->good + (limit->bad - limit->good) / 2;
}

static void know_band(struct load_limit *limit,
		      const struct load_limit_sample *sample)
{
	double band = (double)sample->p50_us * limit->config.band_factor;

	limit->alone_us = sample->p50_us;
	limit->band_us = (uint64_t)band + limit->config.band_extra_us + 1;
}

enum load_limit_verdict load_limit_note(struct load_limit *limit,
					const struct load_limit_sample *sample)
{
	enum load_limit_verdict verdict = judge(limit, sample);

	assert(limit->offer > 0);
	assert(sample->sessions == limit->offer);
	switch (verdict) {
	case LOAD_LIMIT_DOUBTFUL:
		limit->again = true;
		return verdict;
	case LOAD_LIMIT_TAKEN:
		if (limit->band_us == 0)
			know_band(limit, sample);
		limit->good = limit->offer;
		break;
	case LOAD_LIMIT_REFUSED:
	case LOAD_LIMIT_SLOW:
		limit->bad = limit->offer;
		limit->why = verdict;
		break;
	}
	assert(limit->bad == 0 || limit->good < limit->bad);
	limit->again = false;
	limit->offer = next_offer(limit);
	return verdict;
}

static double best_rate(const struct load_limit_sample *samples, size_t count,
			uint64_t good)
{
	double best = 0;

	for (size_t i = 0; i < count; i++) {
		if (samples[i].sessions <= good && samples[i].rate > best)
			best = samples[i].rate;
	}
	return best;
}

uint64_t load_limit_knee(const struct load_limit_sample *samples, size_t count,
			 uint64_t good)
{
	double best = best_rate(samples, count, good);
	uint64_t knee = 0;

	for (size_t i = 0; i < count; i++) {
		const struct load_limit_sample *s = &samples[i];

		if (s->sessions > good || s->rate <= 0 ||
		    s->rate < best * knee_share)
			continue;
		if (knee == 0 || s->sessions < knee)
			knee = s->sessions;
	}
	return knee;
}

uint64_t load_limit_at_work(const struct load_limit_sample *samples,
			    size_t count, const struct load_limit *limit,
			    uint64_t messages)
{
	double rate = best_rate(samples, count, limit->good);

	assert(messages > 0);
	if (rate <= 0 || limit->alone_us == 0)
		return 0;
	double busy = rate / (double)messages * (double)limit->alone_us / 1e6;
	uint64_t whole = (uint64_t)(busy + 0.5);

	return whole > 0 ? whole : 1;
}
