#ifndef PROXY_CONFIG_H
#define PROXY_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/busy.h"
#include "balancer/limit.h"
#include "proxy/admission.h"
#include "proxy/cidr.h"
#include "proxy/logger.h"
#include "proxy/tls_context.h"

/*
 * The configuration file, weir.ini(5).
 *
 * One table of keys makes the parser, the defaults, the messages, and what
 * tests compare etc/weir.ini and the manual page with.  Not pure: it reads
 * files and allocates, at start and at reload only.
 *
 * A struct config is whole and checked, or it does not exist.  It is never
 * changed after it was loaded, so any thread may read it; whoever loaded it
 * frees it when nobody reads it any more.
 */

enum {
	CONFIG_LISTENERS_MAX = 16,
	CONFIG_LISTEN_MAX = 8, /* addresses of one listener */
	CONFIG_BACKENDS_MAX = 256,
	CONFIG_BUSY_RULES_MAX = 16, /* of one backend */
	CONFIG_WORKERS_MAX = 64,
	CONFIG_CERTS_MAX = 8, /* of one listener */
	CONFIG_PINS_MAX = 4,  /* of one backend */

	/* Octets, the NUL included. */
	CONFIG_NAME_MAX = 64,  /* [A-Za-z0-9._-], of a listener or backend */
	CONFIG_HOST_MAX = 256, /* RFC 5321, section 4.5.3.1.2 */
	CONFIG_TEXT_MAX = 200, /* any value: a line of the file has 197 */
	CONFIG_ERROR_MAX = 1024,
	CONFIG_DURATION_TEXT_MAX = 24,

	CONFIG_ERRORS_MAX = 64,
};

/* --- what went wrong --- */

struct config_error {
	unsigned line;               /* of the configuration file; 0: of none */
	char text[CONFIG_ERROR_MAX]; /* "FILE:LINE: ...", no line feed */
};

/* Every error in the order of the file's lines.  64 KiB: not on the stack. */
struct config_report {
	unsigned count;   /* of errors[] */
	unsigned omitted; /* further ones, not kept */
	struct config_error errors[CONFIG_ERRORS_MAX];
};

/* --- what was read; all strings end in NUL --- */

struct config_address {
	struct cidr_addr addr;
	uint16_t port; /* 1..65535 */
};

enum config_log_format {
	CONFIG_LOG_KV,
	CONFIG_LOG_JSON,
};

struct config_weir {
	char hostname[CONFIG_HOST_MAX]; /* never empty */
	uint32_t workers;               /* 0: one per core */
	char user[CONFIG_TEXT_MAX];     /* empty: do not change */
	char group[CONFIG_TEXT_MAX];    /* empty: the user's, or no change */
	char control_socket[CONFIG_TEXT_MAX];
	uint32_t control_mode; /* permission bits */
	enum logger_target log;
	char log_path[CONFIG_TEXT_MAX]; /* of LOGGER_FILE, else empty */
	enum config_log_format log_format;
	uint32_t log_level;     /* syslog's, 0..7: this and lower are logged */
	uint32_t small_buffers; /* of each worker */
	uint32_t big_buffers;   /* of each worker */
	uint64_t body_memory;   /* octets, of all workers: bodies held */
};

enum config_early_talkers {
	CONFIG_EARLY_REJECT,
	CONFIG_EARLY_LOG,
	CONFIG_EARLY_OFF,
};

/* How long a message's session holds a backend's slot. */
enum config_slot {
	CONFIG_SLOT_TRANSACTION, /* from MAIL to the final reply */
	CONFIG_SLOT_BODY,        /* not while a slow body comes */
};

enum config_mode {
	CONFIG_MODE_SMTP,
	CONFIG_MODE_TCP, /* all is relayed as it comes */
};

enum config_tls {
	CONFIG_TLS_NONE,
	CONFIG_TLS_STARTTLS, /* for those who want it */
	CONFIG_TLS_REQUIRED, /* no mail before STARTTLS */
	CONFIG_TLS_IMPLICIT, /* from the first octet (RFC 8314) */
};

/* Do clients show certificates? */
enum config_ask {
	CONFIG_ASK_NONE,
	CONFIG_ASK_LOG,
	CONFIG_ASK_REQUIRE,
};

/* When is AUTH offered? */
enum config_auth {
	CONFIG_AUTH_NONE,
	CONFIG_AUTH_TLS, /* only once TLS is active */
	CONFIG_AUTH_ALWAYS,
};

/* What becomes of a body with a bare CR, LF or NUL. */
enum config_bare_newline {
	CONFIG_BARE_REJECT,
	CONFIG_BARE_BDAT, /* it goes on in counted chunks (RFC 3030) */
};

/* Paths of files; key and ocsp may be empty: in cert, and none. */
struct config_cert {
	char cert[CONFIG_TEXT_MAX]; /* PEM; empty: there is none at all */
	char key[CONFIG_TEXT_MAX];  /* PEM */
	char ocsp[CONFIG_TEXT_MAX]; /* DER */
};

struct config_listener {
	char name[CONFIG_NAME_MAX];
	enum config_mode mode;
	struct config_address listen[CONFIG_LISTEN_MAX];
	unsigned listen_count;        /* 1 or more */
	char banner[CONFIG_TEXT_MAX]; /* printable ASCII, may be empty */
	int64_t greeting_delay_ms;
	enum config_early_talkers early_talkers;
	uint64_t size; /* octets of a message; 0: the smallest of backends' */
	enum config_slot slot;
	uint64_t body_buffer; /* octets of one body that are held */
	int64_t body_wait_ms; /* for the whole body, before the slot goes */
	/* Whose connections begin with a PROXY header, and must; sealed. */
	struct cidr_set proxy_from;
	enum config_tls tls;
	struct config_cert certs[CONFIG_CERTS_MAX];
	unsigned cert_count; /* 1 or more, unless tls is none: then 0 */
	enum config_ask ask;
	char trust[CONFIG_TEXT_MAX]; /* path of CAs: those of clients */
	enum config_auth auth;
	enum config_bare_newline bare_newline;
};

/* [tls]: the rules of all connections, of clients and to backends. */
struct config_tls_rules {
	enum tls_version min; /* never DEFAULT, at most max */
	enum tls_version max;
	/* As OpenSSL writes them; empty: Mozilla's "intermediate". */
	char ciphers[CONFIG_TEXT_MAX]; /* of TLS 1.2 */
	char suites[CONFIG_TEXT_MAX];  /* of TLS 1.3 */
	char groups[CONFIG_TEXT_MAX];
	int64_t ticket_lifetime_ms; /* 0: no tickets */
	uint32_t handshakes;        /* full ones, of each worker's turn */
};

struct config_admission {
	/* For admission_init; .allow and .deny point to the sets below. */
	struct admission_config limits;
	struct cidr_set allow; /* sealed */
	struct cidr_set deny;  /* sealed */

	uint32_t max_errors;     /* of one session; then 421 4.7.0 */
	uint32_t max_messages;   /* of one session; 0: no limit */
	uint32_t max_recipients; /* of one message */
	int64_t tarpit_ms;       /* after an error reply of our own */
};

struct config_timeouts {
	int64_t command_ms;
	int64_t data_ms;    /* for each buffer of a body */
	int64_t send_ms;    /* the client does not read */
	int64_t session_ms; /* 0: no limit */
	int64_t stress_command_ms;
	int64_t proxy_ms;     /* for a whole PROXY header */
	int64_t handshake_ms; /* for a whole TLS handshake, of either leg */
	int64_t backend_connect_ms;
	int64_t backend_greeting_ms;
	int64_t backend_helo_ms;
	int64_t backend_mail_ms;
	int64_t backend_rcpt_ms;
	int64_t backend_data_ms; /* for the 354 */
	int64_t backend_send_ms; /* the backend does not read */
	int64_t backend_final_ms;
	int64_t backend_quit_ms;
	int64_t drain_ms;
};

/* A backend that takes mail of anybody for anybody, because weir may. */
enum config_guard {
	CONFIG_GUARD_ENFORCE, /* gets no session from outside relay_from */
	CONFIG_GUARD_WARN,
	CONFIG_GUARD_OFF, /* is not looked for */
};

struct config_farm {
	uint32_t tries;    /* backends tried for one MAIL */
	int64_t budget_ms; /* for all of them together */
	int64_t linger_ms; /* 0: closed at once */
	int64_t unavailable_after_ms;
	bool observe;            /* busy replies are counted, not acted on */
	uint32_t start_sessions; /* the limit of `auto`, at the start */
	int64_t retry_max_ms;    /* between sessions above the limit */
	uint32_t reuse_max;      /* messages over one connection */
	int64_t reuse_idle_ms;
	uint32_t reuse_percent; /* of the slots that may be idle */
	enum config_guard relay_guard;
	struct cidr_set relay_from; /* sealed */
};

/* [room]: who waits for a slot. */
struct config_room {
	uint32_t size; /* 0: nobody waits */
	uint32_t per_source;
	int64_t wait_ms;
	uint32_t reserve_percent;
	uint32_t high_percent;
	uint32_t low_percent;
	int64_t saturated_after_ms;
};

struct config_health {
	bool probe;                 /* false: passive verdicts only */
	int64_t interval_ms;        /* between probes of a backend that is up */
	int64_t down_interval_ms;   /* of one that is down */
	int64_t timeout_ms;         /* a whole probe */
	uint32_t rise;              /* 1..64 */
	uint32_t fall;              /* 1..64 */
	bool mail;                  /* a probe also says MAIL and RSET */
	char helo[CONFIG_HOST_MAX]; /* never empty */
	uint32_t passive_fall;
	int64_t eject_ms;
	int64_t eject_max_ms;
	uint32_t max_ejected_percent;
	int64_t busy_hold_ms;
};

/* How a backend is told who the client is. */
enum config_identity {
	CONFIG_IDENTITY_NONE,
	CONFIG_IDENTITY_HEADER,   /* one Received: field, see trace.h */
	CONFIG_IDENTITY_XCLIENT,  /* Postfix's command */
	CONFIG_IDENTITY_PROXY_V1, /* a PROXY header, see proxyproto.h */
	CONFIG_IDENTITY_PROXY_V2,
	CONFIG_IDENTITY_TRANSPARENT, /* we connect from its address */
};

enum config_backend_tls {
	CONFIG_BACKEND_TLS_NONE,
	CONFIG_BACKEND_TLS_OPPORTUNISTIC, /* if it offers STARTTLS */
	CONFIG_BACKEND_TLS_REQUIRED,      /* with whoever it is */
	CONFIG_BACKEND_TLS_VERIFY,
};

enum config_backend_state {
	CONFIG_BACKEND_READY,
	CONFIG_BACKEND_DRAIN,
	CONFIG_BACKEND_MAINT,
};

struct config_backend {
	char name[CONFIG_NAME_MAX];
	struct config_address address; /* port 0: not yet set */
	uint32_t max_sessions;         /* LIMIT_MAX: auto, none */
	uint32_t weight;               /* 1..1000 */
	enum config_identity identity;
	bool reuse; /* connections are kept for other clients' messages */
	bool source_set;
	struct cidr_addr source; /* to connect from, if source_set */
	enum config_backend_state state;
	enum config_backend_tls tls;
	bool tls_implicit; /* from the first octet; else STARTTLS */
	/* SNI, and whom VERIFY looks for; empty: its address. */
	char tls_name[CONFIG_HOST_MAX];
	char tls_ca[CONFIG_TEXT_MAX]; /* path of CAs; never empty */
	/* If there are any, VERIFY looks for one of these, and no name. */
	struct tls_pin pins[CONFIG_PINS_MAX];
	unsigned pin_count;
	struct config_cert cert;  /* ours, for backends that ask */
	unsigned busy_rule_count; /* of busy_rules[], in the file's order */
	struct busy_rule busy_rules[CONFIG_BUSY_RULES_MAX];
};

struct config {
	struct config_weir weir;
	struct config_listener listeners[CONFIG_LISTENERS_MAX];
	unsigned listener_count; /* 1 or more */
	struct config_tls_rules tls;
	struct config_admission admission;
	struct config_timeouts timeouts;
	struct config_farm farm;
	struct config_room room;
	struct config_health health;
	struct config_backend backends[CONFIG_BACKENDS_MAX];
	unsigned backend_count; /* 1 or more */
};

/*
 * Read and check a file.  NULL: *report says why, in one error or more;
 * otherwise *report is empty.  The caller frees the result.
 */
struct config *config_load(const char *path, struct config_report *report);

/* The same of text[0..len); name stands for the file in errors. */
struct config *config_parse_text(const char *text, size_t len, const char *name,
				 struct config_report *report);

/* Frees and nulls.  *config may be NULL. */
void config_free(struct config **config);

/* An empty report, or NULL without memory.  Freed by config_report_free. */
struct config_report *config_report_new(void);
void config_report_free(struct config_report **report);

/* --- one backend at run time: "add backend NAME KEY=VALUE ..." --- */

/*
 * Each returns false, and a line in error (NUL at its end, no place in
 * front), if the operator was mistaken; the backend is then as before.
 * Text need not end in NUL.  error_cap: CONFIG_ERROR_MAX is enough for all.
 */

/* Every key at its default.  The address is not yet set. */
bool config_backend_init(struct config_backend *backend, const char *name,
			 size_t len, char *error, size_t error_cap);

/* One "KEY=VALUE", as in a [backend NAME] section. */
bool config_backend_set(struct config_backend *backend, const char *pair,
			size_t len, char *error, size_t error_cap);

/* Is it whole?  To be asked after the last config_backend_set. */
bool config_backend_check(const struct config_backend *backend, char *error,
			  size_t error_cap);

/*
 * Would a connection to this address come to one of weir's own listeners, to
 * go in circles?  That listener, or NULL.  A listener at 0.0.0.0 or [::] has
 * all addresses of this host; own: the caller knows that this is one, as it
 * need not say of loopback addresses.
 */
const struct config_listener *config_find_loop(
	const struct config *config, const struct config_address *address,
	bool own);

/* --- the key table, for `weir -t`, tests and manual pages --- */

struct config_key_info {
	const char *section;  /* "weir", ..., "listener", "backend" */
	const char *name;     /* "max_sessions" */
	const char *standard; /* the default as in the file; "": empty */
	const char *help;     /* what it is, in half a sentence */
	bool required;        /* has no default */
	bool repeatable;      /* may be given again in one section */
};

size_t config_key_count(void);

/* at < config_key_count(); in the order of the manual page. */
struct config_key_info config_key_at(size_t at);

/*
 * What the key takes: "a duration from 1s to 1h, like 30s".  NUL at its end;
 * returns its length.  CONFIG_ERROR_MAX is enough for cap.
 */
size_t config_key_allowed(size_t at, char *buf, size_t cap);

/* --- values --- */

/*
 * "10m": a whole number and ms, s, m or h; or 0.  False, and nothing
 * written, if it is anything else or does not fit.
 */
bool config_duration_parse(const char *text, size_t len, int64_t *ms);

/* The shortest text that config_duration_parse takes.  Returns its length. */
size_t config_duration_format(int64_t ms, char *buf, size_t cap);

#endif
