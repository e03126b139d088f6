#include "balancer/room.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/*
 * Seats and sources are linked by index; NONE ends a list.  Every source that
 * has waiters is in `round`, the one whose turn is next in front, and the
 * waiters of one source are a list, the oldest in front.  A waiter that was
 * called leaves its source and stands in the list of its worker until that
 * fetches it.
 *
 * What was never used is handed out in order, so that a room of the largest
 * size costs no more memory than its fullest moment.
 */
enum {
	NONE = ROOM_SIZE_MAX,
	WAITS_KEPT = 1024,
	ALIGNMENT = 64,
};

enum seat_state {
	SEAT_FREE,
	SEAT_WAITING,
	SEAT_CALLED,
};

struct link {
	uint32_t next, prev;
};

struct list {
	uint32_t first, last;
};

struct seat {
	struct link link; /* among its source's, or its worker's called */
	uint32_t generation;
	uint32_t source; /* SEAT_WAITING: index */
	enum seat_state state;
	unsigned worker;
	void *who;
	int64_t entered_ms;
	uint32_t waited_ms;        /* SEAT_CALLED */
	struct balancer_slot slot; /* SEAT_CALLED */
	struct balancer_need need;
};

struct source {
	uint64_t key;
	struct link link; /* in the round */
	struct list seats;
	uint32_t waiting; /* length of seats */
	uint32_t chain;   /* the next one in its bucket */
	bool passed;      /* over, since it last had its turn */
	int64_t since_ms; /* it is in the round since then without a turn */
};

struct room {
	pthread_mutex_t mutex;
	uint32_t size; /* seats in memory */
	uint32_t bucket_mask;
	struct seat *seats;
	struct source *sources;
	uint32_t *buckets;

	struct room_policy policy;

	_Atomic uint32_t waiting;
	uint32_t called;
	uint32_t source_count;
	uint32_t seats_used, sources_used; /* never used ones begin here */
	uint32_t free_seat, free_source;
	struct list round;
	struct list called_of[ROOM_WORKERS_MAX];
	_Atomic uint32_t called_count[ROOM_WORKERS_MAX];

	/* One that came into the round at that time has had its turn. */
	int64_t reached_ms;

	int64_t high_since_ms; /* -1: the pressure is below the high mark */
	bool saturated;
	bool told; /* what room_saturated() said to somebody who logs it */
	int64_t saturated_since_ms;

	uint64_t counters[ROOM_COUNTER_COUNT];
	uint32_t waits[WAITS_KEPT]; /* of those who were served, in ms */
};

const struct room_row room_counter_rows[ROOM_COUNTER_COUNT] = {
#define ROW(name, unit, help) { #name, #unit, help },
	ROOM_COUNTERS(ROW)
#undef ROW
};

const char *room_verdict_name(enum room_verdict verdict)
{
	switch (verdict) {
	case ROOM_ENTERED:
		return "entered";
	case ROOM_FULL:
		return "full";
	case ROOM_SOURCE_FULL:
		return "source_full";
	}
	return "unknown";
}

/* --- memory --- */

static size_t aligned(size_t octets)
{
	return (octets + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

/* As many as seats, or up to twice that: chains stay short. */
static uint32_t bucket_count(uint32_t size)
{
	uint32_t count = 1;

	while (count < size)
		count *= 2;
	return count;
}

size_t room_size(uint32_t size)
{
	assert(size <= ROOM_SIZE_MAX);
	return aligned(sizeof(struct room)) +
	       aligned(size * sizeof(struct seat)) +
	       aligned(size * sizeof(struct source)) +
	       aligned(bucket_count(size) * sizeof(uint32_t));
}

static struct room_policy sane(const struct room *room,
			       const struct room_policy *policy)
{
	struct room_policy p = *policy;

	if (p.size > room->size)
		p.size = room->size;
	if (p.per_source == 0)
		p.per_source = 1;
	if (p.reserve_percent > 100)
		p.reserve_percent = 100;
	if (p.wait_ms < 1)
		p.wait_ms = 1;
	if (p.low_percent > p.high_percent)
		p.low_percent = p.high_percent;
	return p;
}

struct room *room_init(void *memory, uint32_t size,
		       const struct room_policy *policy)
{
	assert(memory != NULL);
	assert((uintptr_t)memory % ALIGNMENT == 0);
	assert(size <= ROOM_SIZE_MAX);

	uint8_t *at = memory;
	struct room *room = memory;
	const struct list empty = { NONE, NONE };
	uint32_t buckets = bucket_count(size);

	memset(room, 0, sizeof(*room));
	at += aligned(sizeof(*room));
	room->seats = (struct seat *)(void *)at;
	at += aligned(size * sizeof(struct seat));
	room->sources = (struct source *)(void *)at;
	at += aligned(size * sizeof(struct source));
	room->buckets = (uint32_t *)(void *)at;
	for (uint32_t i = 0; i < buckets; i++)
		room->buckets[i] = NONE;

	room->size = size;
	room->bucket_mask = buckets - 1;
	room->free_seat = room->free_source = NONE;
	room->round = empty;
	for (unsigned w = 0; w < ROOM_WORKERS_MAX; w++) {
		room->called_of[w] = empty;
		atomic_init(&room->called_count[w], 0);
	}
	atomic_init(&room->waiting, 0);
	room->high_since_ms = -1;
	room->policy = sane(room, policy);

	int error = pthread_mutex_init(&room->mutex, NULL);

	assert(error == 0);
	(void)error;
	return room;
}

void room_fini(struct room *room)
{
	(void)pthread_mutex_destroy(&room->mutex);
}

static void lock(struct room *room)
{
	int error = pthread_mutex_lock(&room->mutex);

	assert(error == 0);
	(void)error;
}

static void unlock(struct room *room)
{
	int error = pthread_mutex_unlock(&room->mutex);

	assert(error == 0);
	(void)error;
}

/* --- seats: a ticket is a generation and an index --- */

static room_ticket ticket_of(const struct room *room, uint32_t seat)
{
	return (uint64_t)room->seats[seat].generation << 32 | seat;
}

/* NULL: it is nobody's any more. */
static struct seat *seat_of(struct room *room, room_ticket ticket)
{
	uint32_t index = (uint32_t)ticket;

	if (index >= room->seats_used)
		return NULL;
	struct seat *seat = &room->seats[index];

	if (seat->generation != ticket >> 32 || seat->state == SEAT_FREE)
		return NULL;
	return seat;
}

static uint32_t index_of(const struct room *room, const struct seat *seat)
{
	return (uint32_t)(seat - room->seats);
}

static struct seat *seat_take(struct room *room)
{
	struct seat *seat;

	if (room->free_seat != NONE) {
		seat = &room->seats[room->free_seat];
		room->free_seat = seat->link.next;
	} else {
		assert(room->seats_used < room->size);
		seat = &room->seats[room->seats_used++];
		seat->generation = 1;
	}
	return seat;
}

static void seat_free(struct room *room, struct seat *seat)
{
	seat->state = SEAT_FREE;
	seat->who = NULL;
	/* 0 would make a ticket of 0. */
	seat->generation++;
	if (seat->generation == 0)
		seat->generation = 1;
	seat->link.next = room->free_seat;
	room->free_seat = index_of(room, seat);
}

static void seat_append(struct room *room, struct list *list, uint32_t index)
{
	struct link *link = &room->seats[index].link;

	*link = (struct link){ NONE, list->last };
	if (list->last == NONE)
		list->first = index;
	else
		room->seats[list->last].link.next = index;
	list->last = index;
}

static void seat_remove(struct room *room, struct list *list, uint32_t index)
{
	struct link link = room->seats[index].link;

	if (link.prev == NONE)
		list->first = link.next;
	else
		room->seats[link.prev].link.next = link.next;
	if (link.next == NONE)
		list->last = link.prev;
	else
		room->seats[link.next].link.prev = link.prev;
}

/* --- sources --- */

/* The key is a hash already; which of its bits are good is not our affair. */
static uint32_t *bucket_of(struct room *room, uint64_t key)
{
	key ^= key >> 33;
	key *= 0xff51afd7ed558ccd; /* the finalizer of MurmurHash3 */
	key ^= key >> 33;
	return &room->buckets[(uint32_t)key & room->bucket_mask];
}

static uint32_t source_find(struct room *room, uint64_t key)
{
	uint32_t at = *bucket_of(room, key);

	while (at != NONE && room->sources[at].key != key)
		at = room->sources[at].chain;
	return at;
}

/* To the end of the round. */
static void round_append(struct room *room, uint32_t index, int64_t now_ms)
{
	struct source *source = &room->sources[index];

	source->link = (struct link){ NONE, room->round.last };
	source->passed = false;
	source->since_ms = now_ms;
	if (room->round.last == NONE)
		room->round.first = index;
	else
		room->sources[room->round.last].link.next = index;
	room->round.last = index;
}

static void round_remove(struct room *room, uint32_t index)
{
	struct link link = room->sources[index].link;

	if (link.prev == NONE)
		room->round.first = link.next;
	else
		room->sources[link.prev].link.next = link.next;
	if (link.next == NONE)
		room->round.last = link.prev;
	else
		room->sources[link.next].link.prev = link.prev;
}

static uint32_t source_add(struct room *room, uint64_t key, int64_t now_ms)
{
	uint32_t *bucket = bucket_of(room, key);
	uint32_t index = room->free_source;

	if (index != NONE) {
		room->free_source = room->sources[index].chain;
	} else {
		assert(room->sources_used < room->size);
		index = room->sources_used++;
	}
	room->sources[index] = (struct source){
		.key = key,
		.seats = { NONE, NONE },
		.chain = *bucket,
	};
	*bucket = index;
	room->source_count++;
	round_append(room, index, now_ms);
	return index;
}

static void source_drop(struct room *room, uint32_t index)
{
	struct source *source = &room->sources[index];
	uint32_t *at = bucket_of(room, source->key);

	assert(source->waiting == 0);
	round_remove(room, index);
	while (*at != index) {
		assert(*at != NONE);
		at = &room->sources[*at].chain;
	}
	*at = source->chain;
	source->chain = room->free_source;
	room->free_source = index;
	room->source_count--;
}

/* It waits no more; its source may be without waiters now. */
static void stop_waiting(struct room *room, struct seat *seat)
{
	struct source *source = &room->sources[seat->source];

	assert(seat->state == SEAT_WAITING);
	assert(source->waiting > 0);
	seat_remove(room, &source->seats, index_of(room, seat));
	source->waiting--;
	atomic_fetch_sub(&room->waiting, 1);
}

/* --- pressure --- */

/* Workers read their clocks at different times. */
static int64_t elapsed_ms(int64_t from_ms, int64_t now_ms)
{
	return now_ms > from_ms ? now_ms - from_ms : 0;
}

static uint32_t occupied(const struct room *room)
{
	return atomic_load(&room->waiting) + room->called;
}

/* Places that need no goodness. */
static uint32_t open_places(const struct room_policy *policy)
{
	uint64_t reserve = (uint64_t)policy->size * policy->reserve_percent;

	return policy->size - (uint32_t)(reserve / 100);
}

static uint32_t percent_of(uint64_t part, uint64_t whole)
{
	return part >= whole ? 100 : (uint32_t)(part * 100 / whole);
}

static uint32_t fill_percent(const struct room *room)
{
	uint32_t taken = occupied(room);

	return taken == 0 ? 0 : percent_of(taken, open_places(&room->policy));
}

/*
 * A turn's wait is the source's, not the waiter's: one with ten waiters in
 * line behind each other makes them wait ten turns, which says nothing about
 * the room.  Nor does one that nobody can serve, and that others are served
 * past: `reached`.
 */
static uint32_t wait_percent(const struct room *room, int64_t now_ms)
{
	if (room->round.first == NONE)
		return 0;
	int64_t since_ms = room->sources[room->round.first].since_ms;

	if (since_ms < room->reached_ms)
		since_ms = room->reached_ms;
	return percent_of((uint64_t)elapsed_ms(since_ms, now_ms),
			  (uint64_t)room->policy.wait_ms);
}

static uint32_t pressure(const struct room *room, int64_t now_ms)
{
	uint32_t fill = fill_percent(room);
	uint32_t wait = wait_percent(room, now_ms);

	return fill > wait ? fill : wait;
}

/* After each change, so that no break between two questions is missed. */
static void weigh(struct room *room, int64_t now_ms)
{
	const struct room_policy *policy = &room->policy;
	uint32_t now_percent = pressure(room, now_ms);

	if (room->saturated) {
		if (now_percent <= policy->low_percent)
			room->saturated = false;
		room->high_since_ms = -1;
		return;
	}
	if (now_percent == 0 || now_percent < policy->high_percent) {
		room->high_since_ms = -1;
		return;
	}
	if (room->high_since_ms < 0)
		room->high_since_ms = now_ms;
	if (elapsed_ms(room->high_since_ms, now_ms) <
	    policy->saturated_after_ms)
		return;
	room->saturated = true;
	room->saturated_since_ms = now_ms;
	room->counters[ROOM_COUNT_saturations]++;
}

/* --- the way of a waiter --- */

void room_set_policy(struct room *room, const struct room_policy *policy)
{
	lock(room);
	room->policy = sane(room, policy);
	unlock(room);
}

uint32_t room_waiting(const struct room *room)
{
	return atomic_load(&room->waiting);
}

/* *source: the one it is to wait with, or NONE. */
static enum room_verdict judge(struct room *room,
			       const struct room_guest *guest, uint32_t *source)
{
	const struct room_policy *policy = &room->policy;

	*source = source_find(room, guest->source);
	if (*source != NONE &&
	    room->sources[*source].waiting >= policy->per_source) {
		room->counters[ROOM_COUNT_refused_source]++;
		return ROOM_SOURCE_FULL;
	}
	if (occupied(room) >=
	    (guest->good ? policy->size : open_places(policy))) {
		room->counters[ROOM_COUNT_refused_full]++;
		return ROOM_FULL;
	}
	return ROOM_ENTERED;
}

enum room_verdict room_enter(struct room *room, const struct room_guest *guest,
			     int64_t now_ms, room_ticket *ticket)
{
	uint32_t source;

	assert(guest->worker < ROOM_WORKERS_MAX);
	assert(guest->need.tried_count <= BALANCER_TRIED_MAX);
	assert(now_ms >= 0);
	lock(room);
	enum room_verdict verdict = judge(room, guest, &source);

	if (verdict == ROOM_ENTERED) {
		struct seat *seat = seat_take(room);
		uint32_t index = index_of(room, seat);

		if (source == NONE)
			source = source_add(room, guest->source, now_ms);
		seat->state = SEAT_WAITING;
		seat->source = source;
		seat->worker = guest->worker;
		seat->who = guest->who;
		seat->entered_ms = now_ms;
		seat->need = guest->need;
		seat_append(room, &room->sources[source].seats, index);
		room->sources[source].waiting++;
		atomic_fetch_add(&room->waiting, 1);
		room->counters[ROOM_COUNT_entered]++;
		*ticket = ticket_of(room, index);
	}
	weigh(room, now_ms);
	unlock(room);
	return verdict;
}

/*
 * The source that may go first for this worker's sake: near the front, and
 * nobody in front of it has been passed over yet.
 */
static uint32_t preferred(const struct room *room, int prefer)
{
	uint32_t at = room->round.first;

	if (prefer < 0)
		return NONE;
	for (unsigned i = 0; at != NONE && i <= ROOM_LOOKAHEAD; i++) {
		const struct source *source = &room->sources[at];

		if (room->seats[source->seats.first].worker == (unsigned)prefer)
			return at;
		if (source->passed)
			return NONE;
		at = source->link.next;
	}
	return NONE;
}

/* Turns are: the preferred one, if any, then the others in their order. */
static uint32_t turn_at(const struct room *room, int prefer, unsigned skip)
{
	uint32_t first = preferred(room, prefer);
	uint32_t at = room->round.first;

	if (first != NONE) {
		if (skip == 0)
			return first;
		skip--;
	}
	while (at != NONE && (at == first || skip > 0)) {
		if (at != first)
			skip--;
		at = room->sources[at].link.next;
	}
	return at;
}

bool room_next(struct room *room, int prefer, unsigned skip,
	       struct room_turn *turn)
{
	lock(room);
	uint32_t source = turn_at(room, prefer, skip);

	if (source != NONE) {
		uint32_t index = room->sources[source].seats.first;
		const struct seat *seat = &room->seats[index];

		assert(seat->state == SEAT_WAITING);
		*turn = (struct room_turn){
			.ticket = ticket_of(room, index),
			.worker = seat->worker,
			.who = seat->who,
			.need = seat->need,
		};
	}
	unlock(room);
	return source != NONE;
}

/* Those in front of it have been passed over.  preferred() looks no further. */
static void mark_passed(struct room *room, uint32_t source)
{
	uint32_t at = room->round.first;

	for (unsigned i = 0; at != source && i <= ROOM_LOOKAHEAD; i++) {
		assert(at != NONE);
		room->sources[at].passed = true;
		at = room->sources[at].link.next;
	}
}

bool room_grant(struct room *room, room_ticket ticket,
		const struct balancer_slot *slot, int64_t now_ms)
{
	lock(room);
	struct seat *seat = seat_of(room, ticket);

	if (seat == NULL || seat->state != SEAT_WAITING) {
		unlock(room);
		return false;
	}
	uint32_t index = seat->source;
	struct source *source = &room->sources[index];
	int64_t waited_ms = elapsed_ms(seat->entered_ms, now_ms);

	mark_passed(room, index);
	if (source->since_ms > room->reached_ms)
		room->reached_ms = source->since_ms;
	stop_waiting(room, seat);
	if (source->waiting == 0) {
		source_drop(room, index);
	} else {
		round_remove(room, index);
		round_append(room, index, now_ms);
	}
	seat->state = SEAT_CALLED;
	seat->slot = *slot;
	seat->waited_ms = waited_ms > UINT32_MAX ? UINT32_MAX
						 : (uint32_t)waited_ms;
	seat_append(room, &room->called_of[seat->worker], index_of(room, seat));
	room->called++;
	atomic_fetch_add(&room->called_count[seat->worker], 1);
	weigh(room, now_ms);
	unlock(room);
	return true;
}

/* It goes with its slot. */
static void take_called(struct room *room, struct seat *seat,
			struct balancer_slot *slot)
{
	assert(seat->state == SEAT_CALLED);
	assert(room->called > 0);
	seat_remove(room, &room->called_of[seat->worker], index_of(room, seat));
	room->called--;
	atomic_fetch_sub(&room->called_count[seat->worker], 1);
	*slot = seat->slot;
}

bool room_called(struct room *room, unsigned worker, void **who,
		 struct balancer_slot *slot)
{
	assert(worker < ROOM_WORKERS_MAX);
	lock(room);
	uint32_t index = room->called_of[worker].first;

	if (index != NONE) {
		struct seat *seat = &room->seats[index];
		uint64_t nth = room->counters[ROOM_COUNT_served]++;

		*who = seat->who;
		take_called(room, seat, slot);
		room->waits[nth % WAITS_KEPT] = seat->waited_ms;
		room->counters[ROOM_COUNT_wait_ms] += seat->waited_ms;
		seat_free(room, seat);
	}
	unlock(room);
	return index != NONE;
}

bool room_has_called(const struct room *room, unsigned worker)
{
	assert(worker < ROOM_WORKERS_MAX);
	return atomic_load(&room->called_count[worker]) > 0;
}

bool room_leave(struct room *room, room_ticket ticket, int64_t now_ms,
		struct balancer_slot *slot)
{
	lock(room);
	struct seat *seat = seat_of(room, ticket);

	if (seat == NULL) {
		unlock(room);
		return false;
	}
	bool called = seat->state == SEAT_CALLED;

	if (called) {
		take_called(room, seat, slot);
	} else {
		uint32_t source = seat->source;

		stop_waiting(room, seat);
		if (room->sources[source].waiting == 0)
			source_drop(room, source);
	}
	seat_free(room, seat);
	room->counters[ROOM_COUNT_left]++;
	weigh(room, now_ms);
	unlock(room);
	return called;
}

/* --- what it says of itself --- */

uint32_t room_pressure(struct room *room, int64_t now_ms)
{
	lock(room);
	uint32_t percent = pressure(room, now_ms);

	unlock(room);
	return percent;
}

bool room_saturated(struct room *room, int64_t now_ms, bool *changed)
{
	lock(room);
	weigh(room, now_ms);
	bool saturated = room->saturated;

	if (changed != NULL) {
		*changed = saturated != room->told;
		room->told = saturated;
	}
	unlock(room);
	return saturated;
}

static uint32_t count_up_to(const struct room *room, uint32_t kept, uint32_t ms)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < kept; i++)
		count += room->waits[i] <= ms;
	return count;
}

/*
 * The least wait that this share of those kept did not exceed; by halving,
 * because that needs neither a copy nor a sort.
 */
static uint32_t percentile(const struct room *room, uint32_t percent)
{
	uint64_t served = room->counters[ROOM_COUNT_served];
	uint32_t kept = served < WAITS_KEPT ? (uint32_t)served : WAITS_KEPT;
	uint32_t rank = (kept * percent + 99) / 100;
	uint32_t low = 0, high = UINT32_MAX;

	if (kept == 0)
		return 0;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (count_up_to(room, kept, middle) >= rank)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* The oldest of a source is in front. */
static int64_t oldest_ms(const struct room *room, int64_t now_ms)
{
	int64_t oldest = 0;

	for (uint32_t at = room->round.first; at != NONE;
	     at = room->sources[at].link.next) {
		uint32_t seat = room->sources[at].seats.first;
		int64_t waited = elapsed_ms(room->seats[seat].entered_ms,
					    now_ms);

		if (waited > oldest)
			oldest = waited;
	}
	return oldest;
}

void room_look(struct room *room, int64_t now_ms, struct room_view *view)
{
	lock(room);
	weigh(room, now_ms);
	*view = (struct room_view){
		.policy = room->policy,
		.waiting = room_waiting(room),
		.sources = room->source_count,
		.called = room->called,
		.pressure = pressure(room, now_ms),
		.oldest_ms = oldest_ms(room, now_ms),
		.saturated = room->saturated,
		.saturated_since_ms = room->saturated ? room->saturated_since_ms
						      : 0,
		.wait_p50_ms = percentile(room, 50),
		.wait_p99_ms = percentile(room, 99),
	};
	memcpy(view->counters, room->counters, sizeof(view->counters));
	unlock(room);
}
