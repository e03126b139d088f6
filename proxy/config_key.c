#include "proxy/config_own.h"

#include <assert.h>
#include <stdio.h>
#include <sys/un.h>

#include "balancer/room.h"
#include "proxy/tls_load.h"

enum {
	HEALTH_COUNT_MAX = 64, /* the bits of a health history */
	POOL_MIN = 16,         /* of io.h */
	POOL_MAX = 32768,      /* entries of one ring of provided buffers */
	RECIPIENTS_MIN = 100,  /* RFC 5321, section 4.5.3.1.8 */
	SESSIONS_MAX = 65535,  /* of a backend: an address has no more ports */
	BODY_MIN = 4096,
	RETRY_MIN_MS = 500, /* what a backend's first pause is about */
	SECOND = 1000,
	MINUTE = 60 * SECOND,
	FOUR_MINUTES = 4 * MINUTE, /* a client's MAIL waits five */
	FIVE_MINUTES = 5 * MINUTE,
	TEN_MINUTES = 10 * MINUTE,
	HOUR = 60 * MINUTE,
	DAY = 24 * HOUR,
	WEEK = 7 * DAY,
};

#define SIZE_LIMIT ((uint64_t)1 << 40)
#define BODY_LIMIT ((uint64_t)1 << 30)

static const char *const words_switch[] = { "off", "on", NULL };
static const char *const words_format[] = {
	[CONFIG_LOG_KV] = "kv",
	[CONFIG_LOG_JSON] = "json",
	NULL,
};
/* The places are syslog's numbers. */
static const char *const words_level[] = {
	"emerg",  "alert", "crit",  "err", "warning",
	"notice", "info",  "debug", NULL,
};
static const char *const words_early[] = {
	[CONFIG_EARLY_REJECT] = "reject",
	[CONFIG_EARLY_LOG] = "log",
	[CONFIG_EARLY_OFF] = "off",
	NULL,
};
static const char *const words_slot[] = {
	[CONFIG_SLOT_TRANSACTION] = "transaction",
	[CONFIG_SLOT_BODY] = "body",
	NULL,
};
static const char *const words_mode[] = {
	[CONFIG_MODE_SMTP] = "smtp",
	[CONFIG_MODE_TCP] = "tcp",
	NULL,
};
static const char *const words_tls[] = {
	[CONFIG_TLS_NONE] = "none",
	[CONFIG_TLS_STARTTLS] = "starttls",
	[CONFIG_TLS_REQUIRED] = "required",
	[CONFIG_TLS_IMPLICIT] = "implicit",
	NULL,
};
static const char *const words_ask[] = {
	[CONFIG_ASK_NONE] = "none",
	[CONFIG_ASK_LOG] = "log",
	[CONFIG_ASK_REQUIRE] = "require",
	NULL,
};
static const char *const words_auth[] = {
	[CONFIG_AUTH_NONE] = "none",
	[CONFIG_AUTH_TLS] = "tls",
	[CONFIG_AUTH_ALWAYS] = "always",
	NULL,
};
static const char *const words_bare[] = {
	[CONFIG_BARE_REJECT] = "reject",
	[CONFIG_BARE_BDAT] = "bdat",
	NULL,
};
/* From TLS_VERSION_1_0 on. */
static const char *const words_version[] = {
	"1.0", "1.1", "1.2", "1.3", NULL,
};
static const char *const words_guard[] = {
	[CONFIG_GUARD_ENFORCE] = "enforce",
	[CONFIG_GUARD_WARN] = "warn",
	[CONFIG_GUARD_OFF] = "off",
	NULL,
};
static const char *const words_backend_tls[] = {
	[CONFIG_BACKEND_TLS_NONE] = "none",
	[CONFIG_BACKEND_TLS_OPPORTUNISTIC] = "opportunistic",
	[CONFIG_BACKEND_TLS_REQUIRED] = "required",
	[CONFIG_BACKEND_TLS_VERIFY] = "verify",
	NULL,
};
/* The places are those of a bool: is it implicit? */
static const char *const words_tls_mode[] = { "starttls", "implicit", NULL };
/* The places are those of a bool: does weir only observe? */
static const char *const words_busy[] = { "act", "observe", NULL };
static const char *const words_identity[] = {
	[CONFIG_IDENTITY_NONE] = "none",
	[CONFIG_IDENTITY_HEADER] = "header",
	[CONFIG_IDENTITY_XCLIENT] = "xclient",
	[CONFIG_IDENTITY_PROXY_V1] = "proxy-v1",
	[CONFIG_IDENTITY_PROXY_V2] = "proxy-v2",
	[CONFIG_IDENTITY_TRANSPARENT] = "transparent",
	NULL,
};
static const char *const words_state[] = {
	[CONFIG_BACKEND_READY] = "ready",
	[CONFIG_BACKEND_DRAIN] = "drain",
	[CONFIG_BACKEND_MAINT] = "maint",
	NULL,
};

#define IN(type, field)                                                        \
	.offset = offsetof(struct type, field),                                \
	.width = sizeof(((struct type *)NULL)->field)

#define KIND(word)     .kind = CONFIG_KIND_##word
#define WEIR(key)      .section = CONFIG_SECTION_WEIR, .name = #key
#define LISTENER(key)  .section = CONFIG_SECTION_LISTENER, .name = #key
#define TLS(key)       .section = CONFIG_SECTION_TLS, .name = #key
#define ADMISSION(key) .section = CONFIG_SECTION_ADMISSION, .name = #key
#define TIMEOUTS(key)                                                          \
	.section = CONFIG_SECTION_TIMEOUTS, .name = #key, KIND(DURATION),      \
	IN(config_timeouts, key##_ms)
#define FARM(key)    .section = CONFIG_SECTION_FARM, .name = #key
#define ROOM(key)    .section = CONFIG_SECTION_ROOM, .name = #key
#define HEALTH(key)  .section = CONFIG_SECTION_HEALTH, .name = #key
#define BACKEND(key) .section = CONFIG_SECTION_BACKEND, .name = #key

/*
 * Every key there is, in the order of the manual page.  The parser, the
 * defaults and the messages are this table; a test compares it with
 * etc/weir.ini and weir.ini.5.
 */
/* clang-format off */
const struct config_key config_keys[] = {
	{ WEIR(hostname), .standard = "", KIND(HOST),
	  IN(config_weir, hostname),
	  .help = "name in greetings and replies; empty: the system's" },
	{ WEIR(workers), .standard = "0", KIND(COUNT),
	  IN(config_weir, workers), .min = 0, .max = CONFIG_WORKERS_MAX,
	  .help = "threads; 0: one per core" },
	{ WEIR(user), .standard = "", KIND(USER),
	  IN(config_weir, user), .max = 32,
	  .help = "user to become after the ports are open; empty: no change" },
	{ WEIR(group), .standard = "", KIND(USER),
	  IN(config_weir, group), .max = 32,
	  .help = "group to become; empty: the user's" },
	{ WEIR(control_socket), .standard = "/run/weir/control.sock",
	  KIND(PATH), IN(config_weir, control_socket),
	  .max = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1,
	  .help = "UNIX socket for weirctl" },
	{ WEIR(control_mode), .standard = "0660", KIND(MODE),
	  IN(config_weir, control_mode), .max = 0777,
	  .help = "permissions of that socket" },
	{ WEIR(log), .standard = "stderr", KIND(LOG),
	  IN(config_weir, log),
	  .help = "where the log goes" },
	{ WEIR(log_format), .standard = "kv", KIND(WORD),
	  IN(config_weir, log_format), .words = words_format,
	  .help = "key=value pairs or JSON" },
	{ WEIR(log_level), .standard = "info", KIND(WORD),
	  IN(config_weir, log_level), .words = words_level,
	  .help = "least urgent level that is logged" },
	{ WEIR(small_buffers), .standard = "4096", KIND(COUNT),
	  IN(config_weir, small_buffers), .min = POOL_MIN, .max = POOL_MAX,
	  .help = "buffers for commands and replies, of each worker" },
	{ WEIR(big_buffers), .standard = "256", KIND(COUNT),
	  IN(config_weir, big_buffers), .min = POOL_MIN, .max = POOL_MAX,
	  .help = "buffers for bodies, of each worker" },
	{ WEIR(body_memory), .standard = "256M", KIND(SIZE),
	  IN(config_weir, body_memory), .max = SIZE_LIMIT,
	  .help = "for bodies that are held, of all workers together" },

	{ LISTENER(listen), .standard = "0.0.0.0:25", KIND(LISTEN),
	  IN(config_listener, listen), .repeatable = true,
	  .help = "addresses and ports to accept clients on" },
	{ LISTENER(mode), .standard = "smtp", KIND(WORD),
	  IN(config_listener, mode), .words = words_mode,
	  .help = "speak SMTP, or relay all as it comes" },
	{ LISTENER(banner), .standard = "ESMTP", KIND(TEXT),
	  IN(config_listener, banner), .max = 128,
	  .help = "what the greeting says after the host name" },
	{ LISTENER(greeting_delay), .standard = "0", KIND(DURATION),
	  IN(config_listener, greeting_delay_ms), .max = MINUTE,
	  .help = "wait before the greeting" },
	{ LISTENER(early_talkers), .standard = "reject", KIND(WORD),
	  IN(config_listener, early_talkers), .words = words_early,
	  .help = "what becomes of clients that talk before the greeting" },
	{ LISTENER(size), .standard = "0", KIND(SIZE),
	  IN(config_listener, size), .max = SIZE_LIMIT,
	  .help = "largest message; 0: the smallest limit of the backends" },
	{ LISTENER(slot), .standard = "transaction", KIND(WORD),
	  IN(config_listener, slot), .words = words_slot,
	  .help = "when a message holds a backend's slot" },
	{ LISTENER(body_buffer), .standard = "256K", KIND(SIZE),
	  IN(config_listener, body_buffer),
	  .min = BODY_MIN, .max = BODY_LIMIT,
	  .help = "slot = body: what is held of one body" },
	{ LISTENER(body_wait), .standard = "1s", KIND(DURATION),
	  IN(config_listener, body_wait_ms), .min = 10, .max = FIVE_MINUTES,
	  .help = "slot = body: a slower body gives its slot back" },
	{ LISTENER(proxy_from), .standard = "", KIND(NETS),
	  IN(config_listener, proxy_from), .repeatable = true,
	  .help = "networks of proxies, who begin with a PROXY header" },
	{ LISTENER(tls), .standard = "none", KIND(WORD),
	  IN(config_listener, tls), .words = words_tls,
	  .help = "TLS with clients" },
	{ LISTENER(tls_cert), .standard = "", KIND(CERT),
	  IN(config_listener, certs), .max = 3, .repeatable = true,
	  .help = "files of a certificate, its key and its OCSP reply" },
	{ LISTENER(tls_client_cert), .standard = "none", KIND(WORD),
	  IN(config_listener, ask), .words = words_ask,
	  .help = "are clients asked for certificates?" },
	{ LISTENER(tls_ca), .standard = "", KIND(TRUST),
	  IN(config_listener, trust),
	  .help = "file of the CAs that vouch for clients" },
	{ LISTENER(auth), .standard = "none", KIND(WORD),
	  IN(config_listener, auth), .words = words_auth,
	  .help = "when AUTH is offered" },
	{ LISTENER(bare_newline), .standard = "reject", KIND(WORD),
	  IN(config_listener, bare_newline), .words = words_bare,
	  .help = "what becomes of a body with a bare CR, LF or NUL" },

	{ TLS(min_version), .standard = "1.2", KIND(WORD),
	  IN(config_tls_rules, min),
	  .words = words_version, .min = TLS_VERSION_1_0,
	  .help = "oldest version of TLS" },
	{ TLS(max_version), .standard = "1.3", KIND(WORD),
	  IN(config_tls_rules, max),
	  .words = words_version, .min = TLS_VERSION_1_0,
	  .help = "newest version of TLS" },
	{ TLS(ciphers), .standard = "", KIND(TEXT),
	  IN(config_tls_rules, ciphers), .max = CONFIG_TEXT_MAX - 1,
	  .help = "ciphers of TLS 1.2; empty: Mozilla's intermediate" },
	{ TLS(ciphersuites), .standard = "", KIND(TEXT),
	  IN(config_tls_rules, suites), .max = CONFIG_TEXT_MAX - 1,
	  .help = "ciphers of TLS 1.3; empty: Mozilla's intermediate" },
	{ TLS(groups), .standard = "", KIND(TEXT),
	  IN(config_tls_rules, groups), .max = CONFIG_TEXT_MAX - 1,
	  .help = "groups for key exchange; empty: Mozilla's intermediate" },
	{ TLS(ticket_lifetime), .standard = "12h", KIND(DURATION),
	  IN(config_tls_rules, ticket_lifetime_ms), .max = WEEK,
	  .help = "sessions are resumed for so long; 0: never" },
	{ TLS(handshakes), .standard = "1", KIND(COUNT),
	  IN(config_tls_rules, handshakes), .min = 1, .max = 1000,
	  .help = "full handshakes of a worker in one turn of its loop" },

	{ ADMISSION(max_sessions), .standard = "5000", KIND(COUNT),
	  IN(config_admission, limits.max_sessions),
	  .min = 1, .max = ADMISSION_SESSIONS_MAX,
	  .help = "client sessions in all" },
	{ ADMISSION(max_per_source), .standard = "20", KIND(COUNT),
	  IN(config_admission, limits.max_per_source),
	  .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions of one source; 0: no limit" },
	{ ADMISSION(max_per_aggregate), .standard = "0", KIND(COUNT),
	  IN(config_admission, limits.max_per_aggregate),
	  .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions of the network around a source; 0: no limit" },
	{ ADMISSION(max_percent_per_source), .standard = "0%",
	  KIND(PERCENT),
	  IN(config_admission, limits.max_percent_per_source), .max = 100,
	  .help = "share of the free sessions one source may hold; 0%: off" },
	{ ADMISSION(percent_floor), .standard = "5", KIND(COUNT),
	  IN(config_admission, limits.percent_floor),
	  .min = 1, .max = ADMISSION_SESSIONS_MAX,
	  .help = "sessions that share never goes below" },
	{ ADMISSION(session_rate), .standard = "off", KIND(RATE),
	  IN(config_admission, limits.rates[ADMISSION_RATE_SESSION]),
	  .help = "new sessions of one source" },
	{ ADMISSION(message_rate), .standard = "off", KIND(RATE),
	  IN(config_admission, limits.rates[ADMISSION_RATE_MESSAGE]),
	  .help = "messages of one source" },
	{ ADMISSION(recipient_rate), .standard = "off", KIND(RATE),
	  IN(config_admission, limits.rates[ADMISSION_RATE_RECIPIENT]),
	  .help = "recipients of one source" },
	{ ADMISSION(failed_logins), .standard = "off", KIND(RATE),
	  IN(config_admission, limits.rates[ADMISSION_RATE_LOGIN]),
	  .help = "failed logins of one source" },
	{ ADMISSION(ipv4_source_prefix), .standard = "32", KIND(COUNT),
	  IN(config_admission, limits.source_v4_bits), .max = 32,
	  .help = "bits of an IPv4 address that make a source" },
	{ ADMISSION(ipv4_aggregate_prefix), .standard = "24",
	  KIND(COUNT),
	  IN(config_admission, limits.aggregate_v4_bits), .max = 32,
	  .help = "bits of an IPv4 address that make an aggregate" },
	{ ADMISSION(ipv6_source_prefix), .standard = "64", KIND(COUNT),
	  IN(config_admission, limits.source_v6_bits), .max = 128,
	  .help = "bits of an IPv6 address that make a source" },
	{ ADMISSION(ipv6_aggregate_prefix), .standard = "48",
	  KIND(COUNT),
	  IN(config_admission, limits.aggregate_v6_bits), .max = 128,
	  .help = "bits of an IPv6 address that make an aggregate" },
	{ ADMISSION(table_size), .standard = "65536", KIND(COUNT),
	  IN(config_admission, limits.table_size),
	  .min = ADMISSION_TABLE_MIN, .max = ADMISSION_TABLE_MAX,
	  .help = "sources and aggregates remembered" },
	{ ADMISSION(allow), .standard = "", KIND(NETS),
	  IN(config_admission, allow), .repeatable = true,
	  .help = "networks held to max_sessions only" },
	{ ADMISSION(deny), .standard = "", KIND(NETS),
	  IN(config_admission, deny), .repeatable = true,
	  .help = "networks that are refused" },
	{ ADMISSION(allow_file), .standard = "", KIND(NETS_FILE),
	  IN(config_admission, allow), .repeatable = true,
	  .help = "files of more networks for allow" },
	{ ADMISSION(deny_file), .standard = "", KIND(NETS_FILE),
	  IN(config_admission, deny), .repeatable = true,
	  .help = "files of more networks for deny" },
	{ ADMISSION(max_errors), .standard = "20", KIND(COUNT),
	  IN(config_admission, max_errors), .min = 1, .max = 10000,
	  .help = "mistakes of one session" },
	{ ADMISSION(max_messages), .standard = "0", KIND(COUNT),
	  IN(config_admission, max_messages), .max = 1000000,
	  .help = "messages of one session; 0: no limit" },
	{ ADMISSION(max_recipients), .standard = "1000", KIND(COUNT),
	  IN(config_admission, max_recipients),
	  .min = RECIPIENTS_MIN, .max = 1000000,
	  .help = "recipients of one message" },
	{ ADMISSION(tarpit), .standard = "0", KIND(DURATION),
	  IN(config_admission, tarpit_ms), .max = MINUTE,
	  .help = "wait after an error reply of weir's own" },
	{ ADMISSION(stress_high), .standard = "90%", KIND(PERCENT),
	  IN(config_admission, limits.stress_high_percent), .max = 100,
	  .help = "share of max_sessions that begins stress; 0%: never" },
	{ ADMISSION(stress_low), .standard = "75%", KIND(PERCENT),
	  IN(config_admission, limits.stress_low_percent), .max = 100,
	  .help = "share of max_sessions that ends it" },

	{ TIMEOUTS(command), .standard = "5m", .min = 100, .max = DAY,
	  .help = "client: next command" },
	{ TIMEOUTS(data), .standard = "3m", .min = 100, .max = DAY,
	  .help = "client: next part of a body" },
	{ TIMEOUTS(send), .standard = "5m", .min = 100, .max = DAY,
	  .help = "client: reads what it is sent" },
	{ TIMEOUTS(session), .standard = "0", .max = DAY,
	  .help = "client: the whole session; 0: no limit" },
	{ TIMEOUTS(stress_command), .standard = "10s",
	  .min = 100, .max = DAY,
	  .help = "client: next command, under stress" },
	{ TIMEOUTS(proxy), .standard = "5s", .min = 100, .max = FIVE_MINUTES,
	  .help = "proxy: its whole PROXY header" },
	{ TIMEOUTS(handshake), .standard = "30s",
	  .min = 100, .max = FIVE_MINUTES,
	  .help = "a whole TLS handshake, of a client or backend" },
	{ TIMEOUTS(backend_connect), .standard = "5s",
	  .min = 100, .max = DAY,
	  .help = "backend: takes the connection" },
	{ TIMEOUTS(backend_greeting), .standard = "30s",
	  .min = 100, .max = DAY,
	  .help = "backend: greeting" },
	{ TIMEOUTS(backend_helo), .standard = "30s",
	  .min = 100, .max = DAY,
	  .help = "backend: reply to EHLO or HELO" },
	{ TIMEOUTS(backend_mail), .standard = "5m",
	  .min = 100, .max = DAY,
	  .help = "backend: reply to MAIL" },
	{ TIMEOUTS(backend_rcpt), .standard = "5m",
	  .min = 100, .max = DAY,
	  .help = "backend: reply to RCPT" },
	{ TIMEOUTS(backend_data), .standard = "2m",
	  .min = 100, .max = DAY,
	  .help = "backend: reply to DATA" },
	{ TIMEOUTS(backend_send), .standard = "3m",
	  .min = 100, .max = DAY,
	  .help = "backend: reads what it is sent" },
	{ TIMEOUTS(backend_final), .standard = "10m",
	  .min = 100, .max = DAY,
	  .help = "backend: reply to the end of a body" },
	{ TIMEOUTS(backend_quit), .standard = "2s", .max = FIVE_MINUTES,
	  .help = "backend: reply to QUIT" },
	{ TIMEOUTS(drain), .standard = "10m", .max = DAY,
	  .help = "open sessions when weir is to end" },

	{ FARM(tries), .standard = "3", KIND(COUNT),
	  IN(config_farm, tries), .min = 1, .max = 10,
	  .help = "backends tried for one MAIL" },
	{ FARM(budget), .standard = "20s", KIND(DURATION),
	  IN(config_farm, budget_ms), .min = 100, .max = TEN_MINUTES,
	  .help = "time for all of them together" },
	{ FARM(linger), .standard = "1s", KIND(DURATION),
	  IN(config_farm, linger_ms), .max = FIVE_MINUTES,
	  .help = "a session keeps its backend after a message; 0: not" },
	{ FARM(unavailable_after), .standard = "5s", KIND(DURATION),
	  IN(config_farm, unavailable_after_ms), .max = HOUR,
	  .help = "no backend for so long: clients are refused at once" },
	{ FARM(busy), .standard = "act", KIND(WORD),
	  IN(config_farm, observe), .words = words_busy,
	  .help = "act on busy replies, or only count them" },
	{ FARM(start_sessions), .standard = "4", KIND(COUNT),
	  IN(config_farm, start_sessions), .min = 1, .max = SESSIONS_MAX,
	  .help = "where the limit of max_sessions = auto starts" },
	{ FARM(retry_max), .standard = "10s", KIND(DURATION),
	  IN(config_farm, retry_max_ms), .min = RETRY_MIN_MS, .max = HOUR,
	  .help = "longest pause between tries above a learned limit" },
	{ FARM(reuse_max), .standard = "100", KIND(COUNT),
	  IN(config_farm, reuse_max), .min = 1, .max = 100000,
	  .help = "messages over one connection that is reused" },
	{ FARM(reuse_idle), .standard = "5s", KIND(DURATION),
	  IN(config_farm, reuse_idle_ms), .min = 100, .max = FIVE_MINUTES,
	  .help = "an idle connection is kept for so long" },
	{ FARM(reuse_share), .standard = "10%", KIND(PERCENT),
	  IN(config_farm, reuse_percent), .min = 1, .max = 100,
	  .help = "of a backend's slots, kept by idle connections at most" },
	{ FARM(relay_guard), .standard = "enforce", KIND(WORD),
	  IN(config_farm, relay_guard), .words = words_guard,
	  .help = "what about backends that relay for strangers" },
	{ FARM(relay_from), .standard = "", KIND(NETS),
	  IN(config_farm, relay_from), .repeatable = true,
	  .help = "networks whose mail they may relay" },

	{ ROOM(size), .standard = "1000", KIND(COUNT),
	  IN(config_room, size), .max = ROOM_SIZE_MAX,
	  .help = "sessions that may wait for a slot; 0: none waits" },
	{ ROOM(per_source), .standard = "10", KIND(COUNT),
	  IN(config_room, per_source), .min = 1, .max = ROOM_SIZE_MAX,
	  .help = "of one source" },
	{ ROOM(wait), .standard = "15s", KIND(DURATION),
	  IN(config_room, wait_ms), .min = 100, .max = FOUR_MINUTES,
	  .help = "longest wait; then 451" },
	{ ROOM(reserve), .standard = "5%", KIND(PERCENT),
	  IN(config_room, reserve_percent), .max = 50,
	  .help = "share of the places for allowed and well-known sources" },
	{ ROOM(high), .standard = "90%", KIND(PERCENT),
	  IN(config_room, high_percent), .min = 1, .max = 100,
	  .help = "pressure that saturates the room" },
	{ ROOM(low), .standard = "50%", KIND(PERCENT),
	  IN(config_room, low_percent), .max = 99,
	  .help = "pressure that ends it" },
	{ ROOM(saturated_after), .standard = "5s", KIND(DURATION),
	  IN(config_room, saturated_after_ms), .max = HOUR,
	  .help = "under high pressure for so long: newcomers read 421" },

	{ HEALTH(probe), .standard = "on", KIND(WORD),
	  IN(config_health, probe), .words = words_switch,
	  .help = "active probes" },
	{ HEALTH(interval), .standard = "10s", KIND(DURATION),
	  IN(config_health, interval_ms), .min = 100, .max = HOUR,
	  .help = "between probes of a backend that is up" },
	{ HEALTH(down_interval), .standard = "5s", KIND(DURATION),
	  IN(config_health, down_interval_ms), .min = 100, .max = HOUR,
	  .help = "between probes of a backend that is down" },
	{ HEALTH(timeout), .standard = "30s", KIND(DURATION),
	  IN(config_health, timeout_ms), .min = 100, .max = TEN_MINUTES,
	  .help = "a whole probe" },
	{ HEALTH(rise), .standard = "2", KIND(COUNT),
	  IN(config_health, rise), .min = 1, .max = HEALTH_COUNT_MAX,
	  .help = "good probes in a row that bring a backend up" },
	{ HEALTH(fall), .standard = "3", KIND(COUNT),
	  IN(config_health, fall), .min = 1, .max = HEALTH_COUNT_MAX,
	  .help = "bad probes in a row that take it down" },
	{ HEALTH(mail), .standard = "off", KIND(WORD),
	  IN(config_health, mail), .words = words_switch,
	  .help = "a probe also says MAIL and RSET" },
	{ HEALTH(helo), .standard = "", KIND(HOST),
	  IN(config_health, helo),
	  .help = "name in a probe's EHLO; empty: hostname" },
	{ HEALTH(passive_fall), .standard = "3", KIND(COUNT),
	  IN(config_health, passive_fall), .min = 1, .max = 1000,
	  .help = "hard failures of live traffic in a row that eject" },
	{ HEALTH(eject), .standard = "5s", KIND(DURATION),
	  IN(config_health, eject_ms), .min = 100, .max = HOUR,
	  .help = "first ejection; each further one is twice as long" },
	{ HEALTH(eject_max), .standard = "5m", KIND(DURATION),
	  IN(config_health, eject_max_ms), .min = 100, .max = DAY,
	  .help = "longest ejection" },
	{ HEALTH(max_ejected), .standard = "50%", KIND(PERCENT),
	  IN(config_health, max_ejected_percent), .max = 100,
	  .help = "share of the farm that may be ejected at once" },
	{ HEALTH(busy_hold), .standard = "1s", KIND(DURATION),
	  IN(config_health, busy_hold_ms), .max = HOUR,
	  .help = "first pause after a busy reply" },

	{ BACKEND(address), .standard = "", KIND(ENDPOINT),
	  IN(config_backend, address), .required = true,
	  .help = "where the server listens" },
	{ BACKEND(max_sessions), .standard = "auto", KIND(CEILING),
	  IN(config_backend, max_sessions), .min = 1, .max = SESSIONS_MAX,
	  .help = "connections to it at once; auto: as many as it takes" },
	{ BACKEND(weight), .standard = "100", KIND(COUNT),
	  IN(config_backend, weight), .min = 1, .max = 1000,
	  .help = "its share of the load, next to the others'" },
	{ BACKEND(identity), .standard = "none", KIND(WORD),
	  IN(config_backend, identity), .words = words_identity,
	  .help = "how it is told who the client is" },
	{ BACKEND(tls), .standard = "none", KIND(WORD),
	  IN(config_backend, tls), .words = words_backend_tls,
	  .help = "TLS to it" },
	{ BACKEND(tls_mode), .standard = "starttls", KIND(WORD),
	  IN(config_backend, tls_implicit), .words = words_tls_mode,
	  .help = "TLS by STARTTLS, or from the first octet" },
	{ BACKEND(tls_name), .standard = "", KIND(PEER),
	  IN(config_backend, tls_name),
	  .help = "name in its certificate, and SNI; empty: its address" },
	{ BACKEND(tls_ca), .standard = "system", KIND(TRUST),
	  IN(config_backend, tls_ca),
	  .help = "file of the CAs that vouch for it" },
	{ BACKEND(tls_pin), .standard = "", KIND(PIN),
	  IN(config_backend, pins), .repeatable = true,
	  .help = "SHA-256 of its public key, instead of names and CAs" },
	{ BACKEND(tls_cert), .standard = "", KIND(CERT),
	  IN(config_backend, cert), .max = 2,
	  .help = "files of weir's own certificate, and its key" },
	{ BACKEND(reuse), .standard = "off", KIND(WORD),
	  IN(config_backend, reuse), .words = words_switch,
	  .help = "a connection serves messages of several clients" },
	{ BACKEND(source), .standard = "", KIND(ADDRESS),
	  IN(config_backend, source),
	  .help = "address to connect from; empty: the system chooses" },
	{ BACKEND(state), .standard = "ready", KIND(WORD),
	  IN(config_backend, state), .words = words_state,
	  .help = "state at start" },
	{ BACKEND(busy_rule), .standard = "", KIND(BUSY_RULE),
	  IN(config_backend, busy_rules), .repeatable = true,
	  .help = "what a reply of this server means" },
};
/* clang-format on */

enum { KEY_COUNT = sizeof(config_keys) / sizeof(config_keys[0]) };

static_assert((int)KEY_COUNT <= (int)CONFIG_KEYS_MAX, "config_own.h has room");

const struct config_section_info config_sections[CONFIG_SECTION_COUNT] = {
	[CONFIG_SECTION_WEIR] = { "weir", offsetof(struct config, weir),
				  false },
	[CONFIG_SECTION_LISTENER] = { "listener",
				      offsetof(struct config, listeners),
				      true },
	[CONFIG_SECTION_TLS] = { "tls", offsetof(struct config, tls), false },
	[CONFIG_SECTION_ADMISSION] = { "admission",
				       offsetof(struct config, admission),
				       false },
	[CONFIG_SECTION_TIMEOUTS] = { "timeouts",
				      offsetof(struct config, timeouts),
				      false },
	[CONFIG_SECTION_FARM] = { "farm", offsetof(struct config, farm),
				  false },
	[CONFIG_SECTION_ROOM] = { "room", offsetof(struct config, room),
				  false },
	[CONFIG_SECTION_HEALTH] = { "health", offsetof(struct config, health),
				    false },
	[CONFIG_SECTION_BACKEND] = { "backend",
				     offsetof(struct config, backends), true },
};

bool config_is_list(const struct config_key *key)
{
	return key->kind == CONFIG_KIND_LISTEN ||
	       key->kind == CONFIG_KIND_NETS ||
	       key->kind == CONFIG_KIND_NETS_FILE;
}

/* "a, b or c" */
static size_t describe_words(const char *const *words, char *buf, size_t cap)
{
	size_t len = 0;

	for (size_t i = 0; words[i] != NULL; i++) {
		const char *before = i == 0 ? "" : ", ";

		if (i > 0 && words[i + 1] == NULL)
			before = " or ";
		len += config_print(buf + len, cap - len, "%s%s", before,
				    words[i]);
	}
	return len;
}

static size_t describe_range(const struct config_key *key,
			     const struct config_unit *units, const char *what,
			     char *buf, size_t cap)
{
	char low[CONFIG_DURATION_TEXT_MAX], high[CONFIG_DURATION_TEXT_MAX];

	(void)config_format_quantity(key->min, units, low, sizeof(low));
	(void)config_format_quantity(key->max, units, high, sizeof(high));
	return config_print(buf, cap, "%s from %s to %s", what, low, high);
}

/* Of kinds that always take the same. */
static const char *const fixed_texts[] = {
	[CONFIG_KIND_RATE] = "off, or a rate per s, m or h like 30/m or 30/m "
			     "burst 10",
	[CONFIG_KIND_MODE] = "octal permissions like 0660",
	[CONFIG_KIND_HOST] = "a host name or an [address]",
	[CONFIG_KIND_LOG] = "stderr, journal, syslog or an absolute path",
	[CONFIG_KIND_ENDPOINT] = "numeric ADDRESS:PORT or [IPV6]:PORT (host "
				 "names are for a later release)",
	[CONFIG_KIND_ADDRESS] = "an IPv4 or IPv6 address",
	[CONFIG_KIND_NETS] = "networks like 10.0.0.0/8 and 2001:db8::/32, or "
			     "addresses",
	[CONFIG_KIND_NETS_FILE] = "absolute paths of files with one network a "
				  "line",
	[CONFIG_KIND_BUSY_RULE] = "STAGE [CODE] [X.Y.Z] [TEXT] => CLASS, like "
				  "MAIL 452 4.3.1 => busy",
	[CONFIG_KIND_TRUST] = "system or an absolute path",
	[CONFIG_KIND_PEER] = "a host name or an address",
	[CONFIG_KIND_PIN] = "a SHA-256 of 64 hex digits or 44 octets of "
			    "base64",
};

size_t config_describe(const struct config_key *key, char *buf, size_t cap)
{
	unsigned long long min = key->min, max = key->max;

	switch (key->kind) {
	case CONFIG_KIND_COUNT:
		return config_print(
			buf, cap, "a whole number from %llu to %llu", min, max);
	case CONFIG_KIND_CEILING:
		return config_print(buf, cap,
				    "auto or a whole number from %llu to %llu",
				    min, max);
	case CONFIG_KIND_DURATION:
		return describe_range(key, config_time_units,
				      "a duration in ms, s, m or h,", buf, cap);
	case CONFIG_KIND_SIZE:
		return describe_range(key, config_size_units,
				      "a size in octets, K, M or G,", buf, cap);
	case CONFIG_KIND_PERCENT:
		return config_print(buf, cap,
				    "a percentage from %llu%% to %llu%%", min,
				    max);
	case CONFIG_KIND_WORD:
		return describe_words(key->words, buf, cap);
	case CONFIG_KIND_PATH:
		return config_print(buf, cap,
				    "an absolute path of at most %llu octets",
				    max);
	case CONFIG_KIND_USER:
		return config_print(buf, cap, "a name of at most %llu octets",
				    max);
	case CONFIG_KIND_TEXT:
		return config_print(buf, cap,
				    "at most %llu printable ASCII characters, "
				    "no quotes",
				    max);
	case CONFIG_KIND_LISTEN:
		return config_print(buf, cap,
				    "numeric ADDRESS:PORT or [IPV6]:PORT, at "
				    "most %d",
				    CONFIG_LISTEN_MAX);
	case CONFIG_KIND_RATE:
	case CONFIG_KIND_MODE:
	case CONFIG_KIND_HOST:
	case CONFIG_KIND_LOG:
	case CONFIG_KIND_ENDPOINT:
	case CONFIG_KIND_ADDRESS:
	case CONFIG_KIND_NETS:
	case CONFIG_KIND_NETS_FILE:
	case CONFIG_KIND_BUSY_RULE:
	case CONFIG_KIND_TRUST:
	case CONFIG_KIND_PEER:
	case CONFIG_KIND_PIN:
		break;
	case CONFIG_KIND_CERT:
		return config_print(
			buf, cap, "1 to %llu absolute paths: %s", max,
			max == 2 ? "CERT [KEY]" : "CERT [KEY [OCSP]]");
	}
	assert(fixed_texts[key->kind] != NULL);
	return config_print(buf, cap, "%s", fixed_texts[key->kind]);
}

size_t config_key_count(void)
{
	return KEY_COUNT;
}

struct config_key_info config_key_at(size_t at)
{
	assert(at < KEY_COUNT);
	const struct config_key *key = &config_keys[at];

	return (struct config_key_info){
		.section = config_sections[key->section].name,
		.name = key->name,
		.standard = key->standard,
		.help = key->help,
		.required = key->required,
		.repeatable = key->repeatable,
	};
}

size_t config_key_allowed(size_t at, char *buf, size_t cap)
{
	assert(at < KEY_COUNT);
	assert(cap > 0);
	return config_describe(&config_keys[at], buf, cap);
}

const struct config_key *config_find_key(enum config_section section,
					 struct config_span name)
{
	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (config_keys[i].section == section &&
		    config_span_is(name, config_keys[i].name))
			return &config_keys[i];
	}
	return NULL;
}

void config_describe_unknown_key(enum config_section section,
				 struct config_span name, char *buf, size_t cap)
{
	char quoted[CONFIG_QUOTED_MAX];
	const struct config_key *near = NULL;
	size_t best = SIZE_MAX;
	size_t len = config_print(buf, cap, "unknown key %s in [%s]: ",
				  config_quote(quoted, name),
				  config_sections[section].name);

	for (size_t i = 0; i < KEY_COUNT; i++) {
		if (config_span_is(name, config_keys[i].name)) {
			config_print(
				buf + len, cap - len, "it belongs in [%s]",
				config_sections[config_keys[i].section].name);
			return;
		}
		if (config_keys[i].section == section &&
		    config_nearer(name, config_keys[i].name, &best))
			near = &config_keys[i];
	}
	if (near == NULL) {
		config_print(buf + len, cap - len, "weir.ini(5) has them all");
		return;
	}
	config_print(buf + len, cap - len, "did you mean \"%s\"?", near->name);
}
