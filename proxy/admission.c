#include "proxy/admission.h"

#include <assert.h>
#include <endian.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum {
	/*
	 * Enough entries a shard that the hash spreads evenly among shards;
	 * enough shards that workers seldom meet in one.
	 */
	SHARD_ENTRIES_MIN = 256,
	SHARDS_MAX = 256,

	BAN_BUCKETS = ADMISSION_BANS_MAX,
	BAN_LENGTHS = CIDR_BITS_MAX + 1,
};

/* An index that is none. */
static const uint32_t no_entry = UINT32_MAX;

/* What a rate means in GCRA's terms. */
struct gcra {
	int64_t interval_us;  /* between events; 0: no limit */
	int64_t tolerance_us; /* how much too early an event may come */
};

/* The limits in force; each shard has a copy, under its mutex. */
struct limits {
	uint32_t per_source;
	uint32_t per_aggregate;
	uint32_t percent;
	uint32_t percent_floor;
	struct gcra rates[ADMISSION_RATES];
};

struct key {
	struct cidr_addr prefix;
	uint8_t kind; /* enum admission_kind */
};

static_assert(sizeof(struct key) == 17, "a key is hashed as it lies there");

/*
 * In a bucket's chain always; in the shard's LRU list unless it is held:
 * because it has live sessions, or during admission_open.
 */
struct entry {
	struct key key;
	uint32_t next; /* in the bucket, or the shard's free list */
	uint32_t newer;
	uint32_t older;
	uint32_t live;
	uint32_t orphans; /* of them, sessions whose source has no entry */
	int64_t tat_us[ADMISSION_RATES]; /* theoretical arrival times */
	int64_t last_seen_ms;
	int64_t last_refused_ms;
	int64_t good_until_ms;
	uint64_t accepted;
	uint64_t refused;
	uint64_t limited;
	uint64_t errors;
};

struct shard {
	pthread_mutex_t mutex;
	struct limits limits;
	uint32_t used;   /* entries in use are the first of the shard's */
	uint32_t newest; /* of those not held */
	uint32_t oldest;
} __attribute__((aligned(ADMISSION_ALIGN)));

struct ban {
	struct cidr net;
	int64_t until_ms;
	uint64_t refused;
	uint32_t next; /* in the bucket */
};

/* Bans lie densely: bans[0..count).  All under the mutex, except count. */
struct bans {
	pthread_mutex_t mutex;
	_Atomic uint32_t count;
	uint32_t of_length[BAN_LENGTHS];
	uint32_t buckets[BAN_BUCKETS];
	struct ban bans[ADMISSION_BANS_MAX];
};

struct admission {
	uint8_t key[ADMISSION_KEY_LEN];
	uint32_t shards_count;  /* a power of two */
	uint32_t shard_entries; /* of each shard */
	uint32_t shard_buckets; /* of each shard; a power of two */
	uint8_t bits_v4[2];     /* by enum admission_kind */
	uint8_t bits_v6[2];
	struct shard *shards;
	struct entry *entries;
	uint32_t *buckets;

	_Atomic uint32_t sessions_max;
	_Atomic uint32_t stress_high; /* sessions; 0: never */
	_Atomic uint32_t stress_low;
	const struct cidr_set *_Atomic allow;
	const struct cidr_set *_Atomic deny;

	/* Written by every worker for every session: a line of its own. */
	_Alignas(ADMISSION_ALIGN) _Atomic uint32_t sessions;
	atomic_bool stressed;
	_Atomic uint64_t verdicts[ADMISSION_VERDICTS];
	_Atomic uint64_t limited[ADMISSION_RATES];
	_Atomic uint64_t aggregate_only;

	_Alignas(ADMISSION_ALIGN) struct bans bans;
};

/* clang-format off */
static const struct {
	const char *name;
	const char *reply;
	const char *help;
} verdict_words[] = {
	[ADMISSION_ACCEPT] = {
		"accept", "",
		"let in" },
	[ADMISSION_DENIED] = {
		"denied",
		"554 5.7.1 Mail from your address is not accepted here",
		"the address is on the deny list (deny, deny_file)" },
	[ADMISSION_BANNED] = {
		"banned",
		"554 5.7.1 Your address is banned here",
		"an operator banned the address (show bans, unban)" },
	[ADMISSION_SOURCE_SESSIONS] = {
		"source_sessions",
		"421 4.7.0 Too many connections from your address, try again later",
		"the source has max_per_source sessions open" },
	[ADMISSION_AGGREGATE_SESSIONS] = {
		"aggregate_sessions",
		"421 4.7.0 Too many connections from your network, try again later",
		"the source's network has max_per_aggregate sessions open" },
	[ADMISSION_SOURCE_SHARE] = {
		"source_share",
		"421 4.7.0 Your address has its share of our connections, try again later",
		"the source has max_percent_per_source of what is left open" },
	[ADMISSION_SOURCE_RATE] = {
		"source_rate",
		"421 4.7.0 Your address connects too often, try again later",
		"the source opens sessions faster than session_rate" },
	[ADMISSION_GLOBAL] = {
		"global",
		"421 4.3.2 Too many connections, try again later",
		"max_sessions sessions are open" },
	[ADMISSION_TABLE_FULL] = {
		"table_full",
		"421 4.3.2 Too many clients, try again later",
		"every table entry is held by a live session: raise table_size" },
};

static const struct {
	const char *name;
	const char *reply;
} rate_words[] = {
	[ADMISSION_RATE_SESSION] = {
		"session",
		"421 4.7.0 Your address connects too often, try again later" },
	[ADMISSION_RATE_MESSAGE] = {
		"message",
		"450 4.7.1 Too many messages from your address, try again later" },
	[ADMISSION_RATE_RECIPIENT] = {
		"recipient",
		"450 4.7.1 Too many recipients from your address, try again later" },
	[ADMISSION_RATE_LOGIN] = {
		"login",
		"454 4.7.0 Too many failed logins, try again later" },
};
/* clang-format on */

static_assert(sizeof(verdict_words) / sizeof(verdict_words[0]) ==
		      ADMISSION_VERDICTS,
	      "each verdict has its words");
static_assert(sizeof(rate_words) / sizeof(rate_words[0]) == ADMISSION_RATES,
	      "each rate has its words");

/* --- SipHash-2-4: Aumasson and Bernstein, "SipHash: a fast short-input PRF",
 * 2012, section 2 --- */

struct sip {
	uint64_t v0, v1, v2, v3;
};

static uint64_t rotate_left(uint64_t x, unsigned bits)
{
	return x << bits | x >> (64 - bits);
}

static inline void sip_rounds(struct sip *s, unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		s->v0 += s->v1;
		s->v2 += s->v3;
		s->v1 = rotate_left(s->v1, 13) ^ s->v0;
		s->v3 = rotate_left(s->v3, 16) ^ s->v2;
		s->v0 = rotate_left(s->v0, 32);
		s->v2 += s->v1;
		s->v0 += s->v3;
		s->v1 = rotate_left(s->v1, 17) ^ s->v2;
		s->v3 = rotate_left(s->v3, 21) ^ s->v0;
		s->v2 = rotate_left(s->v2, 32);
	}
}

/* Eight octets, little end first. */
static uint64_t read_word(const uint8_t *data)
{
	uint64_t word;

	memcpy(&word, data, sizeof(word));
	return le64toh(word);
}

/* The last octets (0..7), and the length in the highest. */
static uint64_t read_tail(const uint8_t *data, size_t tail_len, size_t len)
{
	uint64_t word = (uint64_t)len << 56;

	for (size_t i = 0; i < tail_len; i++)
		word |= (uint64_t)data[i] << (8 * i);
	return word;
}

uint64_t admission_hash(const uint8_t key[ADMISSION_KEY_LEN],
			const uint8_t *data, size_t len)
{
	uint64_t k0 = read_word(key);
	uint64_t k1 = read_word(key + 8);
	struct sip s = {
		.v0 = k0 ^ UINT64_C(0x736f6d6570736575),
		.v1 = k1 ^ UINT64_C(0x646f72616e646f6d),
		.v2 = k0 ^ UINT64_C(0x6c7967656e657261),
		.v3 = k1 ^ UINT64_C(0x7465646279746573),
	};
	size_t whole = len - len % 8;

	for (size_t i = 0; i < whole; i += 8) {
		uint64_t word = read_word(data + i);

		s.v3 ^= word;
		sip_rounds(&s, 2);
		s.v0 ^= word;
	}

	uint64_t last = read_tail(data + whole, len % 8, len);

	s.v3 ^= last;
	sip_rounds(&s, 2);
	s.v0 ^= last;
	s.v2 ^= 0xff;
	sip_rounds(&s, 4);
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

/* --- sizes and start --- */

struct layout {
	uint32_t shards_count;
	uint32_t shard_entries;
	uint32_t shard_buckets;
	size_t shards_at;
	size_t entries_at;
	size_t buckets_at;
	size_t size;
};

static size_t align_up(size_t size)
{
	return (size + ADMISSION_ALIGN - 1) / ADMISSION_ALIGN * ADMISSION_ALIGN;
}

static struct layout layout_of(uint32_t table_size)
{
	struct layout l = { .shards_count = 1, .shard_buckets = 1 };

	assert(table_size >= ADMISSION_TABLE_MIN);
	assert(table_size <= ADMISSION_TABLE_MAX);
	while (l.shards_count < SHARDS_MAX &&
	       table_size / (2 * l.shards_count) >= SHARD_ENTRIES_MIN)
		l.shards_count *= 2;
	l.shard_entries = (table_size + l.shards_count - 1) / l.shards_count;
	while (l.shard_buckets < l.shard_entries)
		l.shard_buckets *= 2;

	size_t entries = (size_t)l.shards_count * l.shard_entries;
	size_t buckets = (size_t)l.shards_count * l.shard_buckets;

	l.shards_at = align_up(sizeof(struct admission));
	l.entries_at = align_up(l.shards_at +
				l.shards_count * sizeof(struct shard));
	l.buckets_at = align_up(l.entries_at + entries * sizeof(struct entry));
	l.size = align_up(l.buckets_at + buckets * sizeof(uint32_t));
	return l;
}

size_t admission_size(const struct admission_config *config)
{
	return layout_of(config->table_size).size;
}

struct admission *admission_init(void *mem,
				 const struct admission_config *config,
				 const uint8_t key[ADMISSION_KEY_LEN])
{
	struct layout l = layout_of(config->table_size);
	struct admission *adm = mem;

	assert((uintptr_t)mem % ADMISSION_ALIGN == 0);
	assert(config->aggregate_v4_bits <= config->source_v4_bits);
	assert(config->aggregate_v6_bits <= config->source_v6_bits);
	assert(config->source_v4_bits <= CIDR_BITS_MAX - CIDR_V4_BITS);
	assert(config->source_v6_bits <= CIDR_BITS_MAX);

	memset(mem, 0, l.buckets_at);
	memset((char *)mem + l.buckets_at, 0xff, l.size - l.buckets_at);
	memcpy(adm->key, key, sizeof(adm->key));
	adm->shards_count = l.shards_count;
	adm->shard_entries = l.shard_entries;
	adm->shard_buckets = l.shard_buckets;
	adm->bits_v4[ADMISSION_KIND_SOURCE] = config->source_v4_bits;
	adm->bits_v6[ADMISSION_KIND_SOURCE] = config->source_v6_bits;
	adm->bits_v4[ADMISSION_KIND_AGGREGATE] = config->aggregate_v4_bits;
	adm->bits_v6[ADMISSION_KIND_AGGREGATE] = config->aggregate_v6_bits;
	adm->shards = (void *)((char *)mem + l.shards_at);
	adm->entries = (void *)((char *)mem + l.entries_at);
	adm->buckets = (void *)((char *)mem + l.buckets_at);
	for (uint32_t i = 0; i < l.shards_count; i++) {
		struct shard *shard = &adm->shards[i];

		(void)pthread_mutex_init(&shard->mutex, NULL); /* cannot fail */
		shard->newest = no_entry;
		shard->oldest = no_entry;
	}
	(void)pthread_mutex_init(&adm->bans.mutex, NULL);
	memset(adm->bans.buckets, 0xff, sizeof(adm->bans.buckets));
	admission_configure(adm, config);
	return adm;
}

void admission_fini(struct admission *adm)
{
	for (uint32_t i = 0; i < adm->shards_count; i++)
		(void)pthread_mutex_destroy(&adm->shards[i].mutex);
	(void)pthread_mutex_destroy(&adm->bans.mutex);
}

static void lock(pthread_mutex_t *mutex)
{
	int error = pthread_mutex_lock(mutex);

	assert(error == 0);
}

static void unlock(pthread_mutex_t *mutex)
{
	int error = pthread_mutex_unlock(mutex);

	assert(error == 0);
}

static struct gcra gcra_of(const struct admission_rate_limit *rate)
{
	uint64_t burst = rate->burst == 0 ? rate->count : rate->burst;

	if (rate->count == 0)
		return (struct gcra){ 0 };
	assert(rate->period_ms > 0);

	/* Rounded up: the limit is kept, at most a microsecond is lost. */
	uint64_t period_us = (uint64_t)rate->period_ms * 1000;
	uint64_t interval_us = (period_us + rate->count - 1) / rate->count;
	uint64_t tolerance_us;

	/* 49 days times four thousand million is more than 63 bits hold. */
	if (__builtin_mul_overflow(interval_us, burst - 1, &tolerance_us) ||
	    tolerance_us > INT64_MAX / 4)
		tolerance_us = INT64_MAX / 4;
	return (struct gcra){ .interval_us = (int64_t)interval_us,
			      .tolerance_us = (int64_t)tolerance_us };
}

/*
 * Arrival times mean something under the rate that made them only: if it
 * changes, all sources of a shard begin anew.  The shard is locked.
 */
static void forget_rate(struct admission *adm, uint32_t shard, int kind,
			const struct gcra *rate)
{
	const struct gcra *before = &adm->shards[shard].limits.rates[kind];
	struct entry *entries =
		&adm->entries[(size_t)shard * adm->shard_entries];

	if (before->interval_us == rate->interval_us &&
	    before->tolerance_us == rate->tolerance_us)
		return;
	for (uint32_t i = 0; i < adm->shards[shard].used; i++)
		entries[i].tat_us[kind] = 0;
}

void admission_configure(struct admission *adm,
			 const struct admission_config *config)
{
	uint32_t max = config->max_sessions;
	uint32_t floor = config->percent_floor;
	struct limits limits = {
		.per_source = config->max_per_source,
		.per_aggregate = config->max_per_aggregate,
		.percent = config->max_percent_per_source,
		.percent_floor = floor == 0 ? 1 : floor,
	};

	assert(max > 0 && max <= ADMISSION_SESSIONS_MAX);
	assert(config->max_percent_per_source <= 100);
	assert(config->stress_high_percent <= 100);
	assert(config->stress_low_percent <= config->stress_high_percent);
	for (int i = 0; i < ADMISSION_RATES; i++)
		limits.rates[i] = gcra_of(&config->rates[i]);

	for (uint32_t i = 0; i < adm->shards_count; i++) {
		lock(&adm->shards[i].mutex);
		for (int kind = 0; kind < ADMISSION_RATES; kind++)
			forget_rate(adm, i, kind, &limits.rates[kind]);
		adm->shards[i].limits = limits;
		unlock(&adm->shards[i].mutex);
	}
	/* Rounded up, so that a mark above nothing is above no session. */
	uint64_t high = (uint64_t)max * config->stress_high_percent + 99;
	uint64_t low = (uint64_t)max * config->stress_low_percent;

	atomic_store(&adm->stress_high, (uint32_t)(high / 100));
	atomic_store(&adm->stress_low, (uint32_t)(low / 100));
	atomic_store(&adm->sessions_max, max);
	atomic_store(&adm->allow, config->allow);
	atomic_store(&adm->deny, config->deny);
}

/* --- entries --- */

static struct key key_of(const struct admission *adm,
			 const struct cidr_addr *addr, enum admission_kind kind)
{
	return (struct key){
		.prefix = cidr_addr_mask(addr, adm->bits_v4[kind],
					 adm->bits_v6[kind]),
		.kind = (uint8_t)kind,
	};
}

/* Where a key lives: the low half of its hash says which shard. */
struct place {
	struct key key;
	uint32_t shard;
	uint32_t bucket; /* of all buckets */
};

static struct place place_of(const struct admission *adm, const struct key *key)
{
	uint64_t hash = admission_hash(adm->key, (const uint8_t *)key,
				       sizeof(*key));
	uint32_t shard = (uint32_t)hash & (adm->shards_count - 1);
	uint32_t bucket = (uint32_t)(hash >> 32) & (adm->shard_buckets - 1);

	return (struct place){
		.key = *key,
		.shard = shard,
		.bucket = shard * adm->shard_buckets + bucket,
	};
}

static uint32_t shard_of(const struct admission *adm, uint32_t index)
{
	assert(index / adm->shard_entries < adm->shards_count);
	return index / adm->shard_entries;
}

/* Lock two shards, in one order for all threads; they may be the same. */
static void lock_two(struct admission *adm, uint32_t a, uint32_t b)
{
	uint32_t first = a < b ? a : b;
	uint32_t second = a < b ? b : a;

	lock(&adm->shards[first].mutex);
	if (second != first)
		lock(&adm->shards[second].mutex);
}

static void unlock_two(struct admission *adm, uint32_t a, uint32_t b)
{
	unlock(&adm->shards[a].mutex);
	if (b != a)
		unlock(&adm->shards[b].mutex);
}

static void lru_remove(struct admission *adm, struct shard *shard,
		       uint32_t index)
{
	struct entry *entry = &adm->entries[index];

	if (entry->newer == no_entry)
		shard->newest = entry->older;
	else
		adm->entries[entry->newer].older = entry->older;
	if (entry->older == no_entry)
		shard->oldest = entry->newer;
	else
		adm->entries[entry->older].newer = entry->newer;
}

static void lru_add(struct admission *adm, struct shard *shard, uint32_t index)
{
	struct entry *entry = &adm->entries[index];

	entry->newer = no_entry;
	entry->older = shard->newest;
	if (shard->newest == no_entry)
		shard->oldest = index;
	else
		adm->entries[shard->newest].newer = index;
	shard->newest = index;
}

/* Take an entry that no session holds out of its bucket, to be used anew. */
static uint32_t evict_oldest(struct admission *adm, struct shard *shard)
{
	uint32_t index = shard->oldest;

	if (index == no_entry)
		return no_entry;
	assert(adm->entries[index].live == 0);
	lru_remove(adm, shard, index);

	struct place place = place_of(adm, &adm->entries[index].key);
	uint32_t *link = &adm->buckets[place.bucket];

	while (*link != index)
		link = &adm->entries[*link].next;
	*link = adm->entries[index].next;
	return index;
}

/*
 * The entry of a place, made if there is none, and held: it is in no LRU list
 * until it is let go of.  no_entry if all are held.  The shard is locked.
 */
static uint32_t hold(struct admission *adm, const struct place *place)
{
	struct shard *shard = &adm->shards[place->shard];
	uint32_t *head = &adm->buckets[place->bucket];
	uint32_t index = *head;

	while (index != no_entry &&
	       memcmp(&adm->entries[index].key, &place->key,
		      sizeof(place->key)) != 0)
		index = adm->entries[index].next;
	if (index != no_entry) {
		if (adm->entries[index].live == 0)
			lru_remove(adm, shard, index);
		return index;
	}

	if (shard->used < adm->shard_entries)
		index = place->shard * adm->shard_entries + shard->used++;
	else
		index = evict_oldest(adm, shard);
	if (index == no_entry)
		return no_entry;
	adm->entries[index] = (struct entry){
		.key = place->key,
		.next = *head,
		.last_refused_ms = -1,
	};
	*head = index;
	return index;
}

/* The opposite of hold, unless a session goes on holding the entry. */
static void let_go(struct admission *adm, uint32_t index)
{
	if (index != no_entry && adm->entries[index].live == 0)
		lru_add(adm, &adm->shards[shard_of(adm, index)], index);
}

/* --- limits --- */

/*
 * GCRA, virtual scheduling (ITU-T I.371, annex A): an event conforms if it
 * comes no earlier than the theoretical arrival time less the tolerance.
 * Nothing is mended when time seems to go back: one worker's now may be a
 * little behind another's.
 */
static bool gcra_conforms(const struct gcra *rate, int64_t tat_us,
			  int64_t now_us)
{
	return rate->interval_us == 0 || now_us >= tat_us - rate->tolerance_us;
}

static void gcra_charge(const struct gcra *rate, int64_t *tat_us,
			int64_t now_us)
{
	if (rate->interval_us == 0)
		return;
	*tat_us = (*tat_us > now_us ? *tat_us : now_us) + rate->interval_us;
}

static void note_stress(struct admission *adm, uint32_t sessions)
{
	uint32_t high = atomic_load_explicit(&adm->stress_high,
					     memory_order_relaxed);
	uint32_t low = atomic_load_explicit(&adm->stress_low,
					    memory_order_relaxed);
	bool stressed = atomic_load_explicit(&adm->stressed,
					     memory_order_relaxed);

	bool above = high != 0 && sessions >= high;

	/* Stored only when it changes: the cache line is shared by all. */
	if (!stressed && above)
		atomic_store(&adm->stressed, true);
	else if (stressed && !above && (high == 0 || sessions <= low))
		atomic_store(&adm->stressed, false);
}

/* What a source may hold when this many of max are left. */
static uint32_t share_of(const struct limits *limits, uint32_t left)
{
	uint64_t share = (uint64_t)left * limits->percent / 100;

	if (limits->percent == 0)
		return UINT32_MAX;
	return share > limits->percent_floor ? (uint32_t)share
					     : limits->percent_floor;
}

/*
 * Count one more session in all.  limits and has, what the source has open
 * already, are those of the share rule; limits is NULL if it does not apply.
 */
static enum admission_verdict take_global(struct admission *adm,
					  const struct limits *limits,
					  uint32_t has)
{
	uint32_t sessions = atomic_load(&adm->sessions);

	do {
		uint32_t max = atomic_load_explicit(&adm->sessions_max,
						    memory_order_relaxed);

		if (sessions >= max)
			return ADMISSION_GLOBAL;
		if (limits != NULL && has >= share_of(limits, max - sessions))
			return ADMISSION_SOURCE_SHARE;
	} while (!atomic_compare_exchange_weak(&adm->sessions, &sessions,
					       sessions + 1));
	note_stress(adm, sessions + 1);
	return ADMISSION_ACCEPT;
}

/*
 * The limits of a source with both entries held.  What is refused here is
 * refused before anything was counted, so there is nothing to take back.
 */
static enum admission_verdict judge(struct admission *adm, uint32_t source,
				    uint32_t aggregate, int64_t now_us)
{
	uint32_t charged = source == no_entry ? aggregate : source;
	const struct entry *whole = &adm->entries[aggregate];
	struct entry *entry = &adm->entries[charged];
	const struct limits *limits =
		&adm->shards[shard_of(adm, charged)].limits;
	const struct gcra *rate = &limits->rates[ADMISSION_RATE_SESSION];
	int64_t *tat_us = &entry->tat_us[ADMISSION_RATE_SESSION];

	/* Sessions of unknown sources may all be this one's. */
	uint32_t has = whole->orphans + (source == no_entry ? 0 : entry->live);

	if (limits->per_source != 0 && has >= limits->per_source)
		return ADMISSION_SOURCE_SESSIONS;
	if (limits->per_aggregate != 0 && whole->live >= limits->per_aggregate)
		return ADMISSION_AGGREGATE_SESSIONS;
	if (!gcra_conforms(rate, *tat_us, now_us))
		return ADMISSION_SOURCE_RATE;

	enum admission_verdict verdict = take_global(adm, limits, has);

	if (verdict == ADMISSION_ACCEPT)
		gcra_charge(rate, tat_us, now_us);
	return verdict;
}

static void note_attempt(struct admission *adm, uint32_t index,
			 enum admission_verdict verdict, int64_t now_ms)
{
	struct entry *entry = &adm->entries[index];

	entry->last_seen_ms = now_ms;
	if (verdict == ADMISSION_ACCEPT) {
		entry->live++;
		entry->accepted++;
	} else {
		entry->refused++;
		entry->last_refused_ms = now_ms;
	}
}

static enum admission_verdict open_limited(struct admission *adm,
					   const struct cidr_addr *addr,
					   int64_t now_ms,
					   struct admission_ticket *ticket)
{
	struct key keys[2] = {
		key_of(adm, addr, ADMISSION_KIND_SOURCE),
		key_of(adm, addr, ADMISSION_KIND_AGGREGATE),
	};
	struct place source_place = place_of(adm, &keys[0]);
	struct place aggregate_place = place_of(adm, &keys[1]);
	enum admission_verdict verdict = ADMISSION_TABLE_FULL;

	lock_two(adm, source_place.shard, aggregate_place.shard);
	/* The aggregate first: without it there is no session. */
	uint32_t aggregate = hold(adm, &aggregate_place);
	uint32_t source = aggregate == no_entry ? no_entry
						: hold(adm, &source_place);

	if (aggregate != no_entry) {
		verdict = judge(adm, source, aggregate, now_ms * 1000);
		note_attempt(adm, aggregate, verdict, now_ms);
	}
	if (source != no_entry)
		note_attempt(adm, source, verdict, now_ms);
	else if (verdict == ADMISSION_ACCEPT)
		adm->entries[aggregate].orphans++;
	let_go(adm, source);
	let_go(adm, aggregate);
	unlock_two(adm, source_place.shard, aggregate_place.shard);

	if (verdict != ADMISSION_ACCEPT)
		return verdict;
	if (source == no_entry)
		atomic_fetch_add_explicit(&adm->aggregate_only, 1,
					  memory_order_relaxed);
	*ticket = (struct admission_ticket){
		.source = source,
		.aggregate = aggregate,
		.held = true,
	};
	return verdict;
}

/* An allow-listed source: counted for itself where there is room for that. */
static enum admission_verdict open_exempt(struct admission *adm,
					  const struct cidr_addr *addr,
					  int64_t now_ms,
					  struct admission_ticket *ticket)
{
	struct key key = key_of(adm, addr, ADMISSION_KIND_SOURCE);
	struct place place = place_of(adm, &key);

	lock(&adm->shards[place.shard].mutex);
	uint32_t source = hold(adm, &place);
	enum admission_verdict verdict = take_global(adm, NULL, 0);

	if (source != no_entry)
		note_attempt(adm, source, verdict, now_ms);
	let_go(adm, source);
	unlock(&adm->shards[place.shard].mutex);

	if (verdict == ADMISSION_ACCEPT) {
		*ticket = (struct admission_ticket){
			.source = source,
			.aggregate = no_entry,
			.held = true,
			.exempt = true,
		};
	}
	return verdict;
}

static bool listed(const struct cidr_set *set, const struct cidr_addr *addr)
{
	return set != NULL && cidr_set_has(set, addr);
}

static bool banned(struct admission *adm, const struct cidr_addr *addr,
		   int64_t now_ms);

enum admission_verdict admission_open(struct admission *adm,
				      const struct cidr_addr *addr,
				      int64_t now_ms,
				      struct admission_ticket *ticket)
{
	enum admission_verdict verdict;

	assert(now_ms >= 0);
	*ticket = (struct admission_ticket){ 0 };
	if (banned(adm, addr, now_ms))
		verdict = ADMISSION_BANNED;
	else if (listed(atomic_load(&adm->allow), addr))
		verdict = open_exempt(adm, addr, now_ms, ticket);
	else if (listed(atomic_load(&adm->deny), addr))
		verdict = ADMISSION_DENIED;
	else
		verdict = open_limited(adm, addr, now_ms, ticket);

	atomic_fetch_add_explicit(&adm->verdicts[verdict], 1,
				  memory_order_relaxed);
	if (verdict == ADMISSION_SOURCE_RATE)
		atomic_fetch_add_explicit(&adm->limited[ADMISSION_RATE_SESSION],
					  1, memory_order_relaxed);
	return verdict;
}

static void give_back(struct admission *adm, uint32_t index, bool orphan)
{
	struct entry *entry = &adm->entries[index];

	assert(entry->live > 0);
	entry->live--;
	if (orphan) {
		assert(entry->orphans > 0);
		entry->orphans--;
	}
	let_go(adm, index);
}

void admission_close(struct admission *adm, struct admission_ticket *ticket)
{
	uint32_t source = ticket->source;
	uint32_t aggregate = ticket->aggregate;

	assert(ticket->held);
	*ticket = (struct admission_ticket){ 0 };

	uint32_t sessions = atomic_fetch_sub(&adm->sessions, 1);

	assert(sessions > 0);
	note_stress(adm, sessions - 1);
	if (source == no_entry && aggregate == no_entry)
		return;

	/* Where there is one entry only, it stands for both. */
	uint32_t a = shard_of(adm, source != no_entry ? source : aggregate);
	uint32_t b = shard_of(adm, aggregate != no_entry ? aggregate : source);

	lock_two(adm, a, b);
	if (source != no_entry)
		give_back(adm, source, false);
	if (aggregate != no_entry)
		give_back(adm, aggregate, source == no_entry);
	unlock_two(adm, a, b);
}

/* The entry that a session's rates and errors are charged to, or none. */
static uint32_t charged_of(const struct admission_ticket *ticket)
{
	assert(ticket->held);
	return ticket->source != no_entry ? ticket->source : ticket->aggregate;
}

/* What charge() does with an event, beyond asking whether it conforms. */
enum charging {
	CHARGE_CONFORMING, /* count it, unless it is refused */
	CHARGE_NOTHING,    /* only ask */
	CHARGE_ALWAYS,     /* it has happened: count it in any case */
};

static bool charge(struct admission *adm, const struct admission_ticket *ticket,
		   enum admission_rate kind, enum charging how, int64_t now_ms)
{
	uint32_t index = charged_of(ticket);

	assert(now_ms >= 0);
	if (ticket->exempt)
		return true;

	struct shard *shard = &adm->shards[shard_of(adm, index)];
	struct entry *entry = &adm->entries[index];
	const struct gcra *rate = &shard->limits.rates[kind];
	int64_t *tat_us = &entry->tat_us[kind];
	int64_t now_us = now_ms * 1000;

	lock(&shard->mutex);
	bool conforms = how == CHARGE_ALWAYS ||
			gcra_conforms(rate, *tat_us, now_us);

	if (conforms && how != CHARGE_NOTHING)
		gcra_charge(rate, tat_us, now_us);
	else if (!conforms)
		entry->limited++;
	unlock(&shard->mutex);
	if (!conforms)
		atomic_fetch_add_explicit(&adm->limited[kind], 1,
					  memory_order_relaxed);
	return conforms;
}

bool admission_message(struct admission *adm,
		       const struct admission_ticket *ticket, int64_t now_ms)
{
	return charge(adm, ticket, ADMISSION_RATE_MESSAGE, CHARGE_CONFORMING,
		      now_ms);
}

bool admission_recipient(struct admission *adm,
			 const struct admission_ticket *ticket, int64_t now_ms)
{
	return charge(adm, ticket, ADMISSION_RATE_RECIPIENT, CHARGE_CONFORMING,
		      now_ms);
}

bool admission_login(struct admission *adm,
		     const struct admission_ticket *ticket, int64_t now_ms)
{
	return charge(adm, ticket, ADMISSION_RATE_LOGIN, CHARGE_NOTHING,
		      now_ms);
}

void admission_login_failed(struct admission *adm,
			    const struct admission_ticket *ticket,
			    int64_t now_ms)
{
	(void)charge(adm, ticket, ADMISSION_RATE_LOGIN, CHARGE_ALWAYS, now_ms);
}

void admission_error(struct admission *adm,
		     const struct admission_ticket *ticket)
{
	uint32_t index = charged_of(ticket);

	if (index == no_entry)
		return;

	struct shard *shard = &adm->shards[shard_of(adm, index)];

	struct entry *entry = &adm->entries[index];

	lock(&shard->mutex);
	entry->errors++;
	/* What is past is past, whether by this or by the time. */
	if (entry->good_until_ms > ADMISSION_GOOD_MS)
		entry->good_until_ms -= ADMISSION_GOOD_MS;
	else
		entry->good_until_ms = 0;
	unlock(&shard->mutex);
}

void admission_praise(struct admission *adm,
		      const struct admission_ticket *ticket, int64_t now_ms)
{
	assert(ticket->held);
	assert(now_ms >= 0);
	if (ticket->source == no_entry)
		return;

	struct shard *shard = &adm->shards[shard_of(adm, ticket->source)];
	struct entry *entry = &adm->entries[ticket->source];
	int64_t most_ms = now_ms + ADMISSION_GOOD_MAX_MS;

	lock(&shard->mutex);
	int64_t from_ms = entry->good_until_ms > now_ms ? entry->good_until_ms
							: now_ms;
	int64_t until_ms = from_ms + ADMISSION_GOOD_MS;

	entry->good_until_ms = until_ms < most_ms ? until_ms : most_ms;
	unlock(&shard->mutex);
}

bool admission_good(struct admission *adm,
		    const struct admission_ticket *ticket, int64_t now_ms)
{
	assert(ticket->held);
	if (ticket->exempt || ticket->source == no_entry)
		return ticket->exempt;

	struct shard *shard = &adm->shards[shard_of(adm, ticket->source)];

	lock(&shard->mutex);
	bool good = now_ms < adm->entries[ticket->source].good_until_ms;

	unlock(&shard->mutex);
	return good;
}

uint32_t admission_sessions(const struct admission *adm)
{
	return atomic_load(&adm->sessions);
}

uint32_t admission_sessions_max(const struct admission *adm)
{
	return atomic_load(&adm->sessions_max);
}

bool admission_stressed(struct admission *adm)
{
	/*
	 * Two threads that crossed a mark at once may have noted it in the
	 * wrong order, and a new mark has been noted by nobody yet.
	 */
	note_stress(adm, atomic_load(&adm->sessions));
	return atomic_load(&adm->stressed);
}

uint64_t admission_count(const struct admission *adm,
			 enum admission_verdict verdict)
{
	assert((unsigned)verdict < ADMISSION_VERDICTS);
	return atomic_load_explicit(&adm->verdicts[verdict],
				    memory_order_relaxed);
}

uint64_t admission_limited(const struct admission *adm,
			   enum admission_rate rate)
{
	assert((unsigned)rate < ADMISSION_RATES);
	return atomic_load_explicit(&adm->limited[rate], memory_order_relaxed);
}

uint64_t admission_aggregate_only(const struct admission *adm)
{
	return atomic_load_explicit(&adm->aggregate_only, memory_order_relaxed);
}

/* --- for show sources --- */

static struct admission_row row_of(const struct admission *adm,
				   const struct entry *entry)
{
	const struct cidr_addr *prefix = &entry->key.prefix;
	unsigned kind = entry->key.kind;
	unsigned bits = adm->bits_v6[kind];

	if (cidr_addr_is_v4(prefix))
		bits = CIDR_V4_BITS + (unsigned)adm->bits_v4[kind];
	return (struct admission_row){
		.net = { .addr = *prefix, .bits = (uint8_t)bits },
		.sessions = entry->live,
		.accepted = entry->accepted,
		.refused = entry->refused,
		.limited = entry->limited,
		.errors = entry->errors,
		.last_seen_ms = entry->last_seen_ms,
		.last_refused_ms = entry->last_refused_ms,
		.good_until_ms = entry->good_until_ms,
	};
}

static bool row_before(const struct admission_row *a,
		       const struct admission_row *b)
{
	if (a->sessions != b->sessions)
		return a->sessions > b->sessions;
	if (a->last_refused_ms != b->last_refused_ms)
		return a->last_refused_ms > b->last_refused_ms;
	return a->last_seen_ms > b->last_seen_ms;
}

/* Put row into the sorted rows[0..count) of rows_max; the new count. */
static size_t insert_row(struct admission_row *rows, size_t count,
			 size_t rows_max, const struct admission_row *row)
{
	size_t low = 0;
	size_t high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (row_before(row, &rows[middle]))
			high = middle;
		else
			low = middle + 1;
	}
	if (low == rows_max)
		return count;
	if (count < rows_max)
		count++;
	memmove(&rows[low + 1], &rows[low],
		(count - 1 - low) * sizeof(rows[0]));
	rows[low] = *row;
	return count;
}

size_t admission_top(struct admission *adm, enum admission_kind kind,
		     struct admission_row *rows, size_t rows_max)
{
	size_t count = 0;

	for (uint32_t s = 0; s < adm->shards_count; s++) {
		struct shard *shard = &adm->shards[s];
		const struct entry *entries =
			&adm->entries[(size_t)s * adm->shard_entries];

		lock(&shard->mutex);
		for (uint32_t i = 0; i < shard->used; i++) {
			struct admission_row row = row_of(adm, &entries[i]);

			if (entries[i].key.kind == kind)
				count = insert_row(rows, count, rows_max, &row);
		}
		unlock(&shard->mutex);
	}
	return count;
}

/* --- bans: a dense array, chained by hash; all of it under one mutex --- */

static uint32_t ban_bucket(const struct admission *adm, const struct cidr *net)
{
	static_assert(sizeof(*net) == 17, "a ban is hashed as it lies there");
	static_assert((BAN_BUCKETS & (BAN_BUCKETS - 1)) == 0, "a mask");
	return (uint32_t)admission_hash(adm->key, (const uint8_t *)net,
					sizeof(*net)) &
	       (BAN_BUCKETS - 1);
}

/* The link that leads to the ban of this network; it holds no_entry if none. */
static uint32_t *ban_link(struct admission *adm, const struct cidr *net)
{
	struct bans *bans = &adm->bans;
	uint32_t *link = &bans->buckets[ban_bucket(adm, net)];

	while (*link != no_entry &&
	       memcmp(&bans->bans[*link].net, net, sizeof(*net)) != 0)
		link = &bans->bans[*link].next;
	return link;
}

static void ban_remove(struct admission *adm, uint32_t index)
{
	struct bans *bans = &adm->bans;
	struct ban *ban = &bans->bans[index];
	uint32_t last = atomic_load(&bans->count) - 1;

	assert(index <= last);
	bans->of_length[ban->net.bits]--;
	*ban_link(adm, &ban->net) = ban->next;
	if (index != last) {
		/* The last one moves into the gap. */
		*ban_link(adm, &bans->bans[last].net) = index;
		*ban = bans->bans[last];
	}
	atomic_store(&bans->count, last);
}

static void drop_expired(struct admission *adm, int64_t now_ms)
{
	for (uint32_t i = atomic_load(&adm->bans.count); i-- > 0;)
		if (adm->bans.bans[i].until_ms <= now_ms)
			ban_remove(adm, i);
}

/* Is addr in a ban of this length, and in force?  Then it is counted. */
static bool banned_at(struct admission *adm, const struct cidr_addr *addr,
		      unsigned bits, int64_t now_ms)
{
	struct cidr net = { .addr = *addr, .bits = (uint8_t)bits };

	if (cidr_addr_is_v4(addr))
		net.addr = cidr_addr_mask(addr, bits - CIDR_V4_BITS, 0);
	else
		net.addr = cidr_addr_mask(addr, 0, bits);

	uint32_t index = *ban_link(adm, &net);

	if (index == no_entry || adm->bans.bans[index].until_ms <= now_ms)
		return false;
	adm->bans.bans[index].refused++;
	return true;
}

static bool banned(struct admission *adm, const struct cidr_addr *addr,
		   int64_t now_ms)
{
	struct bans *bans = &adm->bans;
	unsigned shortest = cidr_addr_is_v4(addr) ? CIDR_V4_BITS : 0;
	bool found = false;

	/* Mostly there are none; then nobody waits for a mutex. */
	if (atomic_load(&bans->count) == 0)
		return false;
	lock(&bans->mutex);
	for (unsigned bits = BAN_LENGTHS; bits-- > shortest && !found;)
		if (bans->of_length[bits] != 0)
			found = banned_at(adm, addr, bits, now_ms);
	unlock(&bans->mutex);
	return found;
}

/* With the mutex held. */
static bool ban_locked(struct admission *adm, const struct cidr *net,
		       int64_t until_ms)
{
	struct bans *bans = &adm->bans;
	uint32_t count = atomic_load(&bans->count);
	uint32_t *link = ban_link(adm, net);

	if (*link != no_entry) {
		bans->bans[*link].until_ms = until_ms;
		return true;
	}
	if (count == ADMISSION_BANS_MAX)
		return false;
	bans->bans[count] = (struct ban){
		.net = *net,
		.until_ms = until_ms,
		.next = no_entry,
	};
	*link = count;
	bans->of_length[net->bits]++;
	atomic_store(&bans->count, count + 1);
	return true;
}

bool admission_ban(struct admission *adm, const struct cidr *net,
		   int64_t until_ms, int64_t now_ms)
{
	assert(net->bits <= CIDR_BITS_MAX);
	lock(&adm->bans.mutex);
	drop_expired(adm, now_ms);
	bool done = ban_locked(adm, net, until_ms);

	unlock(&adm->bans.mutex);
	return done;
}

bool admission_unban(struct admission *adm, const struct cidr *net,
		     int64_t now_ms)
{
	lock(&adm->bans.mutex);
	drop_expired(adm, now_ms);
	uint32_t index = *ban_link(adm, net);

	if (index != no_entry)
		ban_remove(adm, index);
	unlock(&adm->bans.mutex);
	return index != no_entry;
}

size_t admission_bans(struct admission *adm, struct admission_ban *rows,
		      size_t rows_max, int64_t now_ms)
{
	const struct bans *bans = &adm->bans;

	lock(&adm->bans.mutex);
	drop_expired(adm, now_ms);
	size_t count = atomic_load(&bans->count);

	if (count > rows_max)
		count = rows_max;
	for (size_t i = 0; i < count; i++) {
		rows[i] = (struct admission_ban){
			.net = bans->bans[i].net,
			.until_ms = bans->bans[i].until_ms,
			.refused = bans->bans[i].refused,
		};
	}
	unlock(&adm->bans.mutex);
	return count;
}

/* --- words --- */

const char *admission_verdict_name(enum admission_verdict verdict)
{
	assert((unsigned)verdict < ADMISSION_VERDICTS);
	return verdict_words[verdict].name;
}

const char *admission_verdict_reply(enum admission_verdict verdict)
{
	assert((unsigned)verdict < ADMISSION_VERDICTS);
	return verdict_words[verdict].reply;
}

const char *admission_verdict_help(enum admission_verdict verdict)
{
	assert((unsigned)verdict < ADMISSION_VERDICTS);
	return verdict_words[verdict].help;
}

const char *admission_rate_name(enum admission_rate rate)
{
	assert((unsigned)rate < ADMISSION_RATES);
	return rate_words[rate].name;
}

const char *admission_rate_reply(enum admission_rate rate)
{
	assert((unsigned)rate < ADMISSION_RATES);
	return rate_words[rate].reply;
}
