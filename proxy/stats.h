#ifndef PROXY_STATS_H
#define PROXY_STATS_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * What weir counts, and why a connection ends: two tables, from which the
 * structs, the control socket's answers and the manual page are made.
 *
 * Each worker writes its own struct stats; readers add them up.  Counters
 * only grow, so a sum is never wrong by more than what is in flight.
 *
 * Pure.
 */

/*	COUNTER(name, unit, help) */
#define STATS_COUNTERS(COUNTER)                                                \
	COUNTER(connections, connections, "accepted from clients")             \
	COUNTER(accept_errors, errors, "accepts the kernel refused")           \
	COUNTER(sessions, sessions, "admitted")                                \
	COUNTER(refused, connections, "refused at the greeting, all reasons")  \
	COUNTER(commands, commands, "read from clients")                       \
	COUNTER(errors, replies, "error replies of weir's own")                \
	COUNTER(early_talkers, sessions, "talked before the greeting")         \
	COUNTER(transactions, transactions, "MAIL that got a backend")         \
	COUNTER(messages, messages, "2xx relayed for the end of data")         \
	COUNTER(recipients, recipients, "2xx relayed for RCPT")                \
	COUNTER(starttls, sessions, "STARTTLS of clients, begun")              \
	COUNTER(tls_full, handshakes, "of clients, in full")                   \
	COUNTER(tls_resumed, handshakes, "of clients, resumed by a ticket")    \
	COUNTER(tls_failed, handshakes, "of clients, that failed")             \
	COUNTER(backend_tls_full, handshakes, "with backends, in full")        \
	COUNTER(backend_tls_resumed, handshakes, "with backends, resumed")     \
	COUNTER(logins, sessions, "235 relayed for AUTH")                      \
	COUNTER(logins_failed, replies, "AUTH that a backend refused")         \
	COUNTER(logins_limited, replies, "454 for the rate of failed logins")  \
	COUNTER(messages_counted, messages,                                    \
		"sent as counted chunks for their bare CR, LF, NUL")           \
	COUNTER(messages_refused, messages, "4xx or 5xx for the end of data")  \
	COUNTER(messages_smuggled, messages, "refused for a bare CR, LF, NUL") \
	COUNTER(messages_aborted, messages, "client went in mid-body")         \
	COUNTER(messages_unknown, messages, "no final reply from the backend") \
	COUNTER(messages_unread, messages,                                     \
		"2xx that the client did not await")                           \
	COUNTER(rate_limited, replies, "450 for message or recipient rates")   \
	COUNTER(unavailable, replies, "451 since no backend had room")         \
	COUNTER(failovers, attempts, "backends replaced unseen by the client") \
	COUNTER(waited, sessions, "MAIL that waited for a slot")               \
	COUNTER(saturated, connections,                                        \
		"refused at the greeting: too many wait for a slot")           \
	COUNTER(reused, transactions, "served by a kept backend connection")   \
	COUNTER(parked, messages, "slot given back while the body came")       \
	COUNTER(replayed, messages, "given to a backend a second time, whole") \
	COUNTER(spilled, messages,                                             \
		"body too large to be held: streamed in a slot")               \
	COUNTER(final_retries, messages,                                       \
		"busy at the end of data, and tried on another backend")       \
	COUNTER(tarpitted, replies,                                            \
		"error replies that were followed by rest")                    \
	COUNTER(octets_in, octets, "received from clients")                    \
	COUNTER(octets_out, octets, "sent to clients")                         \
	COUNTER(backend_connects, connections, "begun to backends, no probes") \
	COUNTER(probes, probes, "health probes ended")                         \
	COUNTER(control_commands, commands, "on the control socket")           \
	COUNTER(no_buffers, events, "a buffer was wanted and none was free")

struct stats {
#define STATS_FIELD(name, unit, help) _Atomic uint64_t name; /* unit: help */
	STATS_COUNTERS(STATS_FIELD)
#undef STATS_FIELD
	/* Connections ended, by reason; see stats_close_name(). */
	_Atomic uint64_t closed[32];
};

struct stats_counter {
	const char *name;
	const char *unit;
	const char *help;
};

#define STATS_INDEX(name, unit, help) STATS_##name,
enum stats_index { STATS_COUNTERS(STATS_INDEX) STATS_COUNT };
#undef STATS_INDEX

/* In the order of the fields and of enum stats_index. */
extern const struct stats_counter stats_counters[STATS_COUNT];

/* The value of one counter. */
uint64_t stats_get(const struct stats *stats, enum stats_index which);

/* Add n to a counter that only this thread writes: no lock prefix needed. */
static inline void stats_add(_Atomic uint64_t *counter, uint64_t n)
{
	uint64_t was = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, was + n, memory_order_relaxed);
}

/*
 * Why a client's connection ended: exactly one for each.
 *
 *	CLOSE(NAME, name, help)
 */
#define STATS_CLOSES(CLOSE)                                                    \
	CLOSE(QUIT, quit, "the client said QUIT")                              \
	CLOSE(CLIENT_CLOSED, client_closed, "the client ended the stream")     \
	CLOSE(CLIENT_RESET, client_reset, "the client reset the connection")   \
	CLOSE(CLIENT_TIMEOUT, client_timeout,                                  \
	      "the client was silent too long")                                \
	CLOSE(CLIENT_STUCK, client_stuck, "the client did not read")           \
	CLOSE(SESSION_TIME, session_time, "the session took too long in all")  \
	CLOSE(ERRORS, errors, "too many errors")                               \
	CLOSE(MESSAGES, messages, "too many messages in one session")          \
	CLOSE(EARLY_TALKER, early_talker, "talked before the greeting")        \
	CLOSE(SYNC, sync, "body sent before the 354 was read")                 \
	CLOSE(FOREIGN, foreign, "not SMTP: binary, TLS, HTTP, PROXY")          \
	CLOSE(PROXY, proxy, "no good PROXY header")                            \
	CLOSE(LOST_COUNT, lost_count, "a BDAT size that cannot be followed")   \
	CLOSE(DENIED, denied, "refused: deny list or ban")                     \
	CLOSE(SOURCE_LIMIT, source_limit, "refused: limits of this source")    \
	CLOSE(FULL, full, "refused: weir is full")                             \
	CLOSE(UNAVAILABLE, unavailable, "refused: no backend for some time")   \
	CLOSE(SATURATED, saturated, "refused: too many wait for a slot")       \
	CLOSE(BACKEND_421, backend_421, "the backend's own 421 was relayed")   \
	CLOSE(BACKEND_CLOSED, backend_closed,                                  \
	      "mode = tcp: the backend ended the stream")                      \
	CLOSE(BACKEND_LOST, backend_lost,                                      \
	      "lost the backend that the client was bound to")                 \
	CLOSE(TLS, tls, "the TLS handshake failed, or the stream broke")       \
	CLOSE(DRAIN, drain, "weir is shutting down")                           \
	CLOSE(KILLED, killed,                                                  \
	      "cut at the end of the drain, or by an operator")                \
	CLOSE(NO_BUFFERS, no_buffers, "no buffer for a reply")

#define STATS_CLOSE_ENUM(NAME, name, help) STATS_CLOSE_##NAME,
enum stats_close { STATS_CLOSES(STATS_CLOSE_ENUM) STATS_CLOSE_COUNT };
#undef STATS_CLOSE_ENUM

/* The name for logs, and the words for people.  Never NULL. */
const char *stats_close_name(enum stats_close reason);
const char *stats_close_help(enum stats_close reason);

#endif
