#include "proxy/config.h"

#include <assert.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy/config_own.h"
#include "proxy/tls_load.h"

/* --- complaints --- */

void config_report_add(struct config_reading *r, unsigned line,
		       const char *file, unsigned file_line, const char *text)
{
	struct config_report *report = r->report;

	if (report->count == CONFIG_ERRORS_MAX) {
		report->omitted++;
		return;
	}
	struct config_error *error = &report->errors[report->count++];

	error->line = line;
	if (file_line == 0) {
		config_print(error->text, sizeof(error->text), "%s: %s", file,
			     text);
		return;
	}
	config_print(error->text, sizeof(error->text), "%s:%u: %s", file,
		     file_line, text);
}

__attribute__((format(printf, 3, 4))) static void complain_at(
	struct config_reading *r, unsigned line, const char *format, ...)
{
	char text[CONFIG_ERROR_MAX];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	config_report_add(r, line, r->name, line, text);
}

#define complain(r, ...) complain_at((r), (r)->line, __VA_ARGS__)

/* By line; those of no line last; equal ones as they came. */
static bool error_before(const struct config_error *a,
			 const struct config_error *b)
{
	return a->line - 1U < b->line - 1U;
}

static void report_sort(struct config_report *report)
{
	for (unsigned i = 1; i < report->count; i++) {
		struct config_error moved = report->errors[i];
		unsigned at = i;

		while (at > 0 && error_before(&moved, &report->errors[at - 1]))
			at--;
		memmove(&report->errors[at + 1], &report->errors[at],
			(i - at) * sizeof(moved));
		report->errors[at] = moved;
	}
}

/* --- sections --- */

static struct config_seen *seen_of(struct config_reading *r,
				   const struct config_key *key)
{
	return &r->seen[key - config_keys];
}

static void put_or_complain(struct config_reading *r,
			    const struct config_key *key,
			    struct config_span text)
{
	char error[CONFIG_ERROR_MAX];
	struct config_put p = {
		.key = key,
		.base = r->base,
		.text = text,
		.reading = r,
	};

	if (config_put_value(&p))
		return;
	seen_of(r, key)->bad = true;
	config_describe_bad_value(&p, error, sizeof(error));
	complain(r, "%s", error);
}

/* Each member on its own, so that each mistake is named. */
static void put_list(struct config_reading *r, const struct config_key *key,
		     struct config_span text)
{
	if (text.len == 0 && key->standard[0] == '\0')
		return;
	do {
		struct config_span item = config_cut(text, ',', &text);

		put_or_complain(r, key, config_trim(item));
	} while (text.at != NULL);
}

/* "eject_max", or "eject_max (default 5m)" if the file does not give it */
static void describe_side(const struct config_key *key,
			  const struct config_seen *seen, char *buf, size_t cap)
{
	if (seen->line > 0)
		config_print(buf, cap, "%s", key->name);
	else
		config_print(buf, cap, "%s (default %s)", key->name,
			     key->standard);
}

/* Complain unless two keys of this section are in order. */
static void check_order(struct config_reading *r, const char *low,
			const char *rule, const char *high, bool ordered)
{
	const struct config_key *a = config_find_key(r->section,
						     config_span_of(low));
	const struct config_key *b = config_find_key(r->section,
						     config_span_of(high));
	char low_text[2 * CONFIG_WORD_MAX], high_text[2 * CONFIG_WORD_MAX];

	assert(a != NULL);
	assert(b != NULL);
	/* Where both are known: at the later line. */
	unsigned line = seen_of(r, a)->line > seen_of(r, b)->line
				? seen_of(r, a)->line
				: seen_of(r, b)->line;

	if (ordered || seen_of(r, a)->bad || seen_of(r, b)->bad)
		return;
	describe_side(a, seen_of(r, a), low_text, sizeof(low_text));
	describe_side(b, seen_of(r, b), high_text, sizeof(high_text));
	complain_at(r, line, "%s must be %s %s", low_text, rule, high_text);
}

static void check_admission(struct config_reading *r)
{
	const struct config_admission *admission = r->base;
	const struct admission_config *limits = &admission->limits;

	check_order(r, "ipv4_aggregate_prefix", "at most", "ipv4_source_prefix",
		    limits->aggregate_v4_bits <= limits->source_v4_bits);
	check_order(r, "ipv6_aggregate_prefix", "at most", "ipv6_source_prefix",
		    limits->aggregate_v6_bits <= limits->source_v6_bits);
	check_order(r, "stress_low", "less than", "stress_high",
		    limits->stress_high_percent == 0 ||
			    limits->stress_low_percent <
				    limits->stress_high_percent);
}

static void check_health(struct config_reading *r)
{
	const struct config_health *health = r->base;

	check_order(r, "eject", "at most", "eject_max",
		    health->eject_ms <= health->eject_max_ms);
}

static void check_room(struct config_reading *r)
{
	const struct config_room *room = r->base;

	check_order(r, "low", "less than", "high",
		    room->low_percent < room->high_percent);
}

static struct config_seen seen_named(const struct config_reading *r,
				     const char *name)
{
	const struct config_key *key = config_find_key(r->section,
						       config_span_of(name));

	assert(key != NULL);
	return r->seen[key - config_keys];
}

static void note_listener(struct config_reading *r)
{
	const struct config_listener *own = r->base;

	if (own == &r->stray_listener)
		return;
	size_t at = (size_t)(own - r->config->listeners);

	assert(at < CONFIG_LISTENERS_MAX);
	r->slot[at] = seen_named(r, "slot");
	r->body_buffer[at] = seen_named(r, "body_buffer");
}

/* A rule of several keys: broken means that the line of key is wrong. */
struct rule {
	const char *key;
	bool broken;
	const char *text; /* what is wrong, and what would be right */
};

/* Not where one of the keys was refused already: one line per mistake. */
static void check_rules(struct config_reading *r, const struct rule *rules,
			size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct config_seen seen = seen_named(r, rules[i].key);

		if (rules[i].broken && !seen.bad) {
			complain_at(r,
				    seen.line > 0 ? seen.line : r->section_line,
				    "%s", rules[i].text);
		}
	}
}

#define TCP_RULE " has no meaning with mode = tcp, which relays all as it comes"

/* mode = tcp: weir says nothing itself, and looks into nothing. */
static void check_tcp(struct config_reading *r)
{
	const struct config_listener *l = r->base;
	const struct rule rules[] = {
		{ "banner", seen_named(r, "banner").line > 0,
		  "banner" TCP_RULE },
		{ "greeting_delay", l->greeting_delay_ms > 0,
		  "greeting_delay" TCP_RULE },
		{ "early_talkers", seen_named(r, "early_talkers").line > 0,
		  "early_talkers" TCP_RULE },
		{ "size", l->size > 0, "size" TCP_RULE },
		{ "slot", l->slot == CONFIG_SLOT_BODY, "slot = body" TCP_RULE },
		{ "body_buffer", seen_named(r, "body_buffer").line > 0,
		  "body_buffer" TCP_RULE },
		{ "body_wait", seen_named(r, "body_wait").line > 0,
		  "body_wait" TCP_RULE },
		{ "tls", l->tls != CONFIG_TLS_NONE,
		  "tls" TCP_RULE ": TLS is between clients and backends" },
		{ "tls_cert", l->cert_count > 0,
		  "tls_cert" TCP_RULE ": TLS is between clients and backends" },
		{ "tls_client_cert", l->ask != CONFIG_ASK_NONE,
		  "tls_client_cert" TCP_RULE },
		{ "tls_ca", l->trust[0] != '\0', "tls_ca" TCP_RULE },
		{ "auth", l->auth != CONFIG_AUTH_NONE,
		  "auth" TCP_RULE ": whatever backends offer" },
		{ "bare_newline", l->bare_newline != CONFIG_BARE_REJECT,
		  "bare_newline" TCP_RULE },
	};

	check_rules(r, rules, sizeof(rules) / sizeof(rules[0]));
}

static void check_listener(struct config_reading *r)
{
	const struct config_listener *l = r->base;
	const bool tls = l->tls != CONFIG_TLS_NONE;
	const bool cert_bad = seen_named(r, "tls_cert").bad;
	const bool tls_bad = seen_named(r, "tls").bad;
	const bool ask_bad = seen_named(r, "tls_client_cert").bad;
	const bool trust_bad = seen_named(r, "tls_ca").bad;
	const struct rule rules[] = {
		{ "tls", tls && l->cert_count == 0 && !cert_bad,
		  "tls needs a certificate: tls_cert = CERT [KEY]" },
		{ "tls_cert", !tls && l->cert_count > 0 && !tls_bad,
		  "tls_cert is of no use with tls = none: say tls = starttls, "
		  "required or implicit" },
		{ "tls_client_cert",
		  !tls && l->ask != CONFIG_ASK_NONE && !tls_bad,
		  "tls_client_cert is of no use with tls = none" },
		{ "tls_client_cert",
		  l->ask == CONFIG_ASK_REQUIRE && l->trust[0] == '\0' &&
			  !trust_bad,
		  "tls_client_cert = require needs tls_ca = system or a file: "
		  "who vouches for clients" },
		{ "tls_ca",
		  l->trust[0] != '\0' && l->ask != CONFIG_ASK_REQUIRE &&
			  !ask_bad,
		  "tls_ca is of no use without tls_client_cert = require" },
		{ "auth", l->auth == CONFIG_AUTH_TLS && !tls && !tls_bad,
		  "auth = tls offers AUTH under TLS, and tls = none: set tls, "
		  "or auth = always for passwords in the clear" },
		{ "bare_newline",
		  l->bare_newline == CONFIG_BARE_BDAT &&
			  l->slot == CONFIG_SLOT_BODY,
		  "bare_newline = bdat does not go with slot = body: a body "
		  "that is held goes on by DATA, where a bare newline may end "
		  "it early" },
	};

	if (l->mode == CONFIG_MODE_TCP)
		check_tcp(r);
	else
		check_rules(r, rules, sizeof(rules) / sizeof(rules[0]));
}

static void check_tls(struct config_reading *r)
{
	const struct config_tls_rules *rules = r->base;

	check_order(r, "min_version", "at most", "max_version",
		    rules->min <= rules->max);
}

/* A body that is to be held fits into the memory for all of them. */
static void check_bodies(struct config_reading *r)
{
	const struct config *c = r->config;
	const struct config_key *a = config_find_key(
		CONFIG_SECTION_LISTENER, config_span_of("body_buffer"));
	const struct config_key *b = config_find_key(
		CONFIG_SECTION_WEIR, config_span_of("body_memory"));
	char low[2 * CONFIG_WORD_MAX], high[2 * CONFIG_WORD_MAX];

	assert(a != NULL);
	assert(b != NULL);
	for (unsigned i = 0; i < c->listener_count; i++) {
		const struct config_seen *slot = &r->slot[i];
		const struct config_seen *buffer = &r->body_buffer[i];
		const struct config_listener *listener = &c->listeners[i];

		if (listener->slot != CONFIG_SLOT_BODY || slot->bad ||
		    buffer->bad || r->body_memory.bad)
			continue;
		if (c->weir.body_memory == 0) {
			complain_at(r, slot->line,
				    "slot = body needs memory to hold bodies "
				    "in, and body_memory of [weir] is 0: give "
				    "it some, like 256M");
			continue;
		}
		if (listener->body_buffer <= c->weir.body_memory)
			continue;
		describe_side(a, buffer, low, sizeof(low));
		describe_side(b, &r->body_memory, high, sizeof(high));
		complain_at(r,
			    buffer->line > 0 ? buffer->line
					     : r->body_memory.line,
			    "%s of [listener %s] must be at most %s of [weir]",
			    low, listener->name, high);
	}
}

/* A socket of one family cannot connect to the other. */
static bool source_fits(const struct config_backend *backend)
{
	return !backend->source_set || backend->address.port == 0 ||
	       cidr_addr_is_v4(&backend->source) ==
		       cidr_addr_is_v4(&backend->address.addr);
}

/* Does the address that it is connected from, or a header, say who it is? */
static bool is_one_client_s(const struct config_backend *backend)
{
	return backend->identity == CONFIG_IDENTITY_PROXY_V1 ||
	       backend->identity == CONFIG_IDENTITY_PROXY_V2 ||
	       backend->identity == CONFIG_IDENTITY_TRANSPARENT;
}

enum { BACKEND_RULES = 10 };

/* What keys of a backend that are good by themselves mean together. */
static void backend_rules(const struct config_backend *b,
			  struct rule rules[BACKEND_RULES])
{
	const bool tls = b->tls != CONFIG_BACKEND_TLS_NONE;
	const bool verify = b->tls == CONFIG_BACKEND_TLS_VERIFY;
	const bool own_ca = b->tls_ca[0] != '\0' &&
			    strcmp(b->tls_ca, TLS_SYSTEM_TRUST) != 0;
	const struct rule all[BACKEND_RULES] = {
		{ "source", !source_fits(b),
		  "source and address must both be IPv4, or both IPv6" },
		{ "source",
		  b->source_set && b->identity == CONFIG_IDENTITY_TRANSPARENT,
		  "source does not go with identity = transparent, which "
		  "connects from the client's address" },
		{ "reuse", b->reuse && is_one_client_s(b),
		  "reuse = on does not go with identity = proxy-v1, proxy-v2 "
		  "or transparent: such a connection is one client's" },
		{ "tls_mode", b->tls_implicit && !tls,
		  "tls_mode = implicit is of no use with tls = none" },
		{ "tls_mode",
		  b->tls_implicit && b->tls == CONFIG_BACKEND_TLS_OPPORTUNISTIC,
		  "tls_mode = implicit cannot be opportunistic: say tls = "
		  "required or verify" },
		{ "tls_name", b->tls_name[0] != '\0' && !tls,
		  "tls_name is of no use with tls = none" },
		{ "tls_ca", own_ca && !verify,
		  "tls_ca is looked at by tls = verify only" },
		{ "tls_pin", b->pin_count > 0 && !verify,
		  "tls_pin is looked at by tls = verify only" },
		{ "tls_ca", own_ca && verify && b->pin_count > 0,
		  "tls_ca is not looked at where there is a tls_pin: give one "
		  "of them" },
		{ "tls_cert", b->cert.cert[0] != '\0' && !tls,
		  "tls_cert is of no use with tls = none" },
	};

	memcpy(rules, all, sizeof(all));
}

static void check_backend(struct config_reading *r)
{
	struct rule rules[BACKEND_RULES];
	const bool unknown = seen_named(r, "tls").bad ||
			     seen_named(r, "identity").bad;

	backend_rules(r->base, rules);
	/* What hangs on a value that was refused is not known. */
	for (unsigned i = 1; i < BACKEND_RULES && unknown; i++)
		rules[i].broken = false;
	check_rules(r, rules, BACKEND_RULES);
}

/* A connection to any address at all goes to the loopback one. */
static struct cidr_addr destination(struct cidr_addr addr)
{
	static const struct cidr_addr any;

	if (cidr_addr_equal(&addr, &any)) {
		addr.octets[15] = 1; /* ::1 */
	} else if (cidr_addr_is_v4(&addr) &&
		   memcmp(addr.octets + 12, any.octets, 4) == 0) {
		addr.octets[12] = 127; /* 127.0.0.1 */
		addr.octets[15] = 1;
	}
	return addr;
}

/* Does a connection to there come to who listens at this address? */
static bool reaches(const struct config_address *listen,
		    const struct config_address *to, bool own)
{
	const struct cidr_addr addr = destination(to->addr);
	const struct cidr_addr at = destination(listen->addr);
	bool v4 = cidr_addr_is_v4(&addr);
	bool any = !cidr_addr_equal(&at, &listen->addr);

	/* A listener at [::] takes no IPv4. */
	if (listen->port != to->port || v4 != cidr_addr_is_v4(&at))
		return false;
	if (!any)
		return cidr_addr_equal(&at, &addr);
	if (v4)
		return own || addr.octets[12] == 127; /* RFC 1122, 3.2.1.3 */
	return own || cidr_addr_equal(&at, &addr);
}

const struct config_listener *config_find_loop(
	const struct config *config, const struct config_address *address,
	bool own)
{
	for (unsigned i = 0; i < config->listener_count; i++) {
		const struct config_listener *l = &config->listeners[i];

		for (unsigned k = 0; k < l->listen_count; k++) {
			if (reaches(&l->listen[k], address, own))
				return l;
		}
	}
	return NULL;
}

/* No backend is weir itself. */
static void check_loops(struct config_reading *r)
{
	const struct config *c = r->config;

	for (unsigned i = 0; i < c->backend_count; i++) {
		const struct config_backend *b = &c->backends[i];
		const struct config_listener *l =
			b->address.port == 0
				? NULL
				: config_find_loop(c, &b->address, false);

		if (l != NULL) {
			complain_at(r, r->address[i].line,
				    "address of [backend %s] is where "
				    "[listener %s] listens: mail would go in "
				    "circles",
				    b->name, l->name);
		}
	}
}

static void note_backend(struct config_reading *r)
{
	const struct config_backend *own = r->base;

	if (own == &r->stray_backend)
		return;
	size_t at = (size_t)(own - r->config->backends);

	assert(at < CONFIG_BACKENDS_MAX);
	r->address[at] = seen_named(r, "address");
}

static void check_required(struct config_reading *r)
{
	char allowed[CONFIG_ERROR_MAX / 2];

	for (size_t i = 0; i < config_key_count(); i++) {
		if (config_keys[i].section != r->section ||
		    !config_keys[i].required || r->seen[i].line > 0)
			continue;
		(void)config_describe(&config_keys[i], allowed,
				      sizeof(allowed));
		complain_at(r, r->section_line,
			    "[%s] has no key \"%s\": need %s",
			    config_sections[r->section].name,
			    config_keys[i].name, allowed);
	}
}

/* What can be said only when the section is over. */
static void close_section(struct config_reading *r)
{
	if (r->section == CONFIG_SECTION_COUNT)
		return;
	for (size_t i = 0; i < config_key_count(); i++) {
		unsigned line = r->line;

		if (config_keys[i].section != r->section ||
		    !config_is_list(&config_keys[i]) || r->seen[i].line > 0)
			continue;
		r->line = r->section_line;
		put_list(r, &config_keys[i],
			 config_span_of(config_keys[i].standard));
		r->line = line;
	}
	check_required(r);
	if (r->section == CONFIG_SECTION_WEIR)
		r->body_memory = seen_named(r, "body_memory");
	if (r->section == CONFIG_SECTION_LISTENER) {
		check_listener(r);
		note_listener(r);
	}
	if (r->section == CONFIG_SECTION_TLS)
		check_tls(r);
	if (r->section == CONFIG_SECTION_ADMISSION)
		check_admission(r);
	if (r->section == CONFIG_SECTION_ROOM)
		check_room(r);
	if (r->section == CONFIG_SECTION_HEALTH)
		check_health(r);
	if (r->section == CONFIG_SECTION_BACKEND) {
		check_backend(r);
		note_backend(r);
	}
	r->section = CONFIG_SECTION_COUNT;
}

static bool name_is_sane(struct config_span name)
{
	if (name.len == 0 || name.len >= CONFIG_NAME_MAX)
		return false;
	for (size_t i = 0; i < name.len; i++) {
		if (!config_is_alnum(name.at[i]) && name.at[i] != '.' &&
		    name.at[i] != '_' && name.at[i] != '-')
			return false;
	}
	return true;
}

static void copy_name(char field[CONFIG_NAME_MAX], struct config_span name)
{
	assert(name.len < CONFIG_NAME_MAX);
	memcpy(field, name.at, name.len);
	field[name.len] = '\0';
}

/* The place of a new listener or backend, or NULL after a complaint. */
static void *new_listener(struct config_reading *r, struct config_span name)
{
	struct config *c = r->config;

	for (unsigned i = 0; i < c->listener_count; i++) {
		if (config_span_is(name, c->listeners[i].name)) {
			complain(r, "there is a [listener %s] already",
				 c->listeners[i].name);
			return NULL;
		}
	}
	if (c->listener_count == CONFIG_LISTENERS_MAX) {
		complain(r, "too many listeners: at most %d",
			 CONFIG_LISTENERS_MAX);
		return NULL;
	}
	struct config_listener *listener = &c->listeners[c->listener_count++];

	copy_name(listener->name, name);
	return listener;
}

static void *new_backend(struct config_reading *r, struct config_span name)
{
	struct config *c = r->config;

	for (unsigned i = 0; i < c->backend_count; i++) {
		if (config_span_is(name, c->backends[i].name)) {
			complain(r, "there is a [backend %s] already",
				 c->backends[i].name);
			return NULL;
		}
	}
	if (c->backend_count == CONFIG_BACKENDS_MAX) {
		complain(r, "too many backends: at most %d",
			 CONFIG_BACKENDS_MAX);
		return NULL;
	}
	struct config_backend *backend = &c->backends[c->backend_count++];

	copy_name(backend->name, name);
	return backend;
}

/* Where the keys of a section with a wrong header go: they are checked too. */
static void *stray_base(struct config_reading *r, enum config_section section)
{
	r->stray_listener = (struct config_listener){ 0 };
	r->stray_backend = (struct config_backend){ 0 };
	if (section == CONFIG_SECTION_LISTENER)
		return &r->stray_listener;
	if (section == CONFIG_SECTION_BACKEND)
		return &r->stray_backend;
	return (char *)r->config + config_sections[section].offset;
}

static void *named_base(struct config_reading *r, enum config_section section,
			struct config_span name)
{
	char quoted[CONFIG_QUOTED_MAX];

	if (!name_is_sane(name)) {
		complain(r,
			 "[%s %s]: need [%s NAME] with 1 to %d of A-Z a-z 0-9 "
			 ". _ -",
			 config_sections[section].name,
			 config_quote(quoted, name),
			 config_sections[section].name, CONFIG_NAME_MAX - 1);
		return NULL;
	}
	return section == CONFIG_SECTION_LISTENER ? new_listener(r, name)
						  : new_backend(r, name);
}

/* [word name] begins here; the word is that of this section. */
static void open_section(struct config_reading *r, enum config_section section,
			 struct config_span name, bool sane)
{
	void *base = NULL;

	if (sane && config_sections[section].named) {
		base = named_base(r, section, name);
	} else if (sane && name.len > 0) {
		complain(r, "[%s] takes no name",
			 config_sections[section].name);
	} else if (sane && r->began[section] > 0) {
		complain(r, "[%s] is given twice, first in line %u",
			 config_sections[section].name, r->began[section]);
	}
	if (base == NULL)
		base = stray_base(r, section);
	if (r->began[section] == 0)
		r->began[section] = r->line;
	r->section = section;
	r->section_line = r->line;
	r->base = base;
	memset(r->seen, 0, sizeof(r->seen));
	config_set_defaults(section, base);
}

/* "listener smtp", from between the brackets. */
static void read_section(struct config_reading *r, struct config_span inner)
{
	char quoted[CONFIG_QUOTED_MAX];
	size_t best = SIZE_MAX;
	unsigned near = CONFIG_SECTION_COUNT;
	struct config_span name = inner;
	struct config_span word = config_next_word(&name);

	name = config_trim(name);
	close_section(r);
	r->section_line = r->line;
	for (unsigned i = 0; i < CONFIG_SECTION_COUNT; i++) {
		if (config_span_is(word, config_sections[i].name)) {
			open_section(r, (enum config_section)i, name, true);
			return;
		}
		if (config_nearer(word, config_sections[i].name, &best))
			near = i;
	}
	(void)config_quote(quoted, word);
	if (near == CONFIG_SECTION_COUNT) {
		complain(r, "unknown section %s: weir.ini(5) has them all",
			 quoted);
		return;
	}
	complain(r, "unknown section %s: did you mean [%s%s]?", quoted,
		 config_sections[near].name,
		 config_sections[near].named ? " NAME" : "");
	/* Its keys are judged as if it were: all mistakes in one go. */
	open_section(r, (enum config_section)near, name, false);
}

/* --- lines --- */

static void on_pair(struct config_reading *r, struct config_span name,
		    struct config_span value)
{
	char text[CONFIG_ERROR_MAX], quoted[CONFIG_QUOTED_MAX];

	if (name.len == 0) {
		complain(r, "neither [section] nor key = value");
		return;
	}
	if (r->section == CONFIG_SECTION_COUNT) {
		/* An unknown section was complained about. */
		if (r->section_line == 0)
			complain(r, "%s stands before the first [section]",
				 config_quote(quoted, name));
		return;
	}
	const struct config_key *key = config_find_key(r->section, name);

	if (key == NULL) {
		config_describe_unknown_key(r->section, name, text,
					    sizeof(text));
		complain(r, "%s", text);
		return;
	}
	struct config_seen *seen = seen_of(r, key);

	if (seen->line > 0 && !key->repeatable) {
		complain(r, "\"%s\" is given twice, first in line %u",
			 key->name, seen->line);
		return;
	}
	seen->line = r->line;
	if (config_is_list(key))
		put_list(r, key, value);
	else if (value.len > 0 || key->standard[0] != '\0' || key->required)
		put_or_complain(r, key, value);
}

/* inih's handler.  It says nothing of the line: read_line has counted. */
static int on_inih(void *user, const char *section, const char *name,
		   const char *value)
{
	struct config_reading *r = user;

	(void)section; /* at most 49 octets of it: read_section has it all */
	r->owed = false;
	on_pair(r, config_trim(config_span_of(name)),
		config_trim(config_span_of(value)));
	return 1;
}

/* The line was a pair to us, and none to inih. */
static void settle(struct config_reading *r)
{
	if (r->owed)
		complain(r, "neither [section] nor key = value");
	r->owed = false;
}

/* [section] and what may follow it: nothing, or a comment. */
static void read_header(struct config_reading *r, struct config_span line)
{
	struct config_span behind;
	struct config_span inner = config_cut(line, ']', &behind);

	if (behind.at == NULL)
		complain(r, "a section needs a ] at its end");
	behind = config_trim(behind);
	if (behind.len > 0 && behind.at[0] != ';' && behind.at[0] != '#')
		complain(r, "more than a comment behind the ]");
	inner.at++;
	inner.len--;
	read_section(r, inner);
}

/* Does the line go to inih?  All others are dealt with here. */
static bool is_pair(struct config_reading *r, struct config_span line,
		    size_t len_max)
{
	if (line.len == 0 || line.at[0] == ';' || line.at[0] == '#')
		return false;
	for (size_t i = 0; i < line.len; i++) {
		unsigned char c = (unsigned char)line.at[i];

		if ((c < ' ' && c != '\t') || c == 0x7f) {
			complain(r, "has a control character (octet 0x%02x)",
				 (unsigned)c);
			return false;
		}
	}
	if (line.at[0] == '[') {
		read_header(r, line);
		return false;
	}
	/* inih takes "a:b" for a pair: a second line of a list, for one. */
	struct config_span value, colon;

	if (config_cut(config_cut(line, '=', &value), ':', &colon).len <
		    line.len &&
	    (value.at == NULL || colon.at != NULL)) {
		complain(r, "neither [section] nor key = value");
		return false;
	}
	if (line.len > len_max) {
		complain(r,
			 "longer than %zu octets: give a list in several lines",
			 len_max);
		return false;
	}
	return true;
}

/*
 * inih's reader.  inih's handler is not told the line (Debian builds it
 * without INI_HANDLER_LINENO); inih reports the first bad line only; splits
 * lines at 198 octets; cuts section names at 49; takes an indented line as
 * more of the value before; ignores what stands behind a section's bracket.
 * So the lines are counted and the sections read here; inih is given pairs,
 * not indented and short enough, and empty lines in place of all else.
 */
static char *read_line(char *buf, int size, void *stream)
{
	struct config_reading *r = stream;
	size_t room = size < CONFIG_TEXT_MAX ? (size_t)size : CONFIG_TEXT_MAX;

	assert(size > 3);
	settle(r);
	if (r->left.len == 0)
		return NULL;
	r->line++;
	struct config_span line = config_trim(
		config_cut(r->left, '\n', &r->left));

	if (!is_pair(r, line, room - 3)) {
		buf[0] = '\n';
		buf[1] = '\0';
		return buf;
	}
	r->owed = true;
	memcpy(buf, line.at, line.len);
	buf[line.len] = '\n';
	buf[line.len + 1] = '\0';
	return buf;
}

/* --- the whole file --- */

/* False without memory. */
static bool seal(const struct config_nets *nets, struct cidr_set *set)
{
	/* An IPv6 network may take two ranges. */
	size_t room = 2 * nets->count + 1;
	struct cidr_range *ranges = calloc(room, sizeof(*ranges));

	if (ranges == NULL)
		return false;
	cidr_set_init(set, ranges, room);
	for (size_t i = 0; i < nets->count; i++) {
		bool added = cidr_set_add(set, &nets->items[i]);

		assert(added);
	}
	cidr_set_seal(set);
	return true;
}

/* Sections that the file does not have are all defaults. */
static void open_absent_sections(struct config_reading *r)
{
	for (unsigned i = 0; i < CONFIG_SECTION_COUNT; i++) {
		void *base = (char *)r->config + config_sections[i].offset;

		if (r->began[i] == 0 && !config_sections[i].named)
			config_set_defaults((enum config_section)i, base);
	}
	if (r->began[CONFIG_SECTION_LISTENER] == 0)
		complain_at(r, 0, "no [listener NAME]: need at least one");
	if (r->began[CONFIG_SECTION_BACKEND] == 0)
		complain_at(r, 0, "no [backend NAME]: need at least one");
}

/* Names that were left to the system: it may have none, or a strange one. */
static void fill_names(struct config_reading *r)
{
	struct config_weir *weir = &r->config->weir;
	struct config_health *health = &r->config->health;
	char name[CONFIG_HOST_MAX] = "";
	struct config_put p = {
		.key = config_find_key(CONFIG_SECTION_WEIR,
				       config_span_of("hostname")),
		.base = weir,
	};

	if (gethostname(name, sizeof(name) - 1) != 0)
		name[0] = '\0';
	p.text = config_span_of(name);
	assert(p.key != NULL);
	if (weir->hostname[0] == '\0' &&
	    (p.text.len == 0 || !config_put_value(&p))) {
		complain_at(r, 0,
			    "the system has no host name that is fit for "
			    "mail: set hostname in [weir]");
	}
	if (health->helo[0] == '\0')
		memcpy(health->helo, weir->hostname, sizeof(health->helo));
}

static void read_all(struct config_reading *r)
{
	static const char bom[] = "\xef\xbb\xbf";
	size_t bom_len = sizeof(bom) - 1;

	if (r->left.len >= bom_len && memcmp(r->left.at, bom, bom_len) == 0) {
		r->left.at += bom_len;
		r->left.len -= bom_len;
	}
	int result = ini_parse_stream(read_line, r, on_inih, r);

	/* A line number: settle() has complained about that line. */
	if (result < 0)
		complain_at(r, 0, "out of memory");
	assert(result <= 0 || r->report->count > 0);
	close_section(r);
	open_absent_sections(r);
	check_bodies(r);
	check_loops(r);
	fill_names(r);

	struct config_admission *admission = &r->config->admission;

	/* Never under stress: then the low mark means nothing. */
	if (admission->limits.stress_high_percent == 0)
		admission->limits.stress_low_percent = 0;
	bool sealed = seal(&r->allow, &admission->allow) &&
		      seal(&r->deny, &admission->deny) &&
		      seal(&r->relay_from, &r->config->farm.relay_from);

	for (unsigned i = 0; i < r->config->listener_count; i++)
		sealed = sealed && seal(&r->proxy_from[i],
					&r->config->listeners[i].proxy_from);
	if (!sealed)
		complain_at(r, 0, "out of memory");
	admission->limits.allow = &admission->allow;
	admission->limits.deny = &admission->deny;
}

struct config *config_parse_text(const char *text, size_t len, const char *name,
				 struct config_report *report)
{
	struct config_reading *r = calloc(1, sizeof(*r));
	struct config *config = calloc(1, sizeof(*config));

	assert(text != NULL || len == 0);
	report->count = 0;
	report->omitted = 0;
	if (r == NULL || config == NULL) {
		report->count = 1;
		report->errors[0].line = 0;
		config_print(report->errors[0].text,
			     sizeof(report->errors[0].text),
			     "%s: out of memory", name);
		free(config);
		free(r);
		return NULL;
	}
	r->config = config;
	r->report = report;
	r->name = name;
	r->left = (struct config_span){ text, len };
	r->section = CONFIG_SECTION_COUNT;
	read_all(r);
	report_sort(report);
	free(r->allow.items);
	free(r->deny.items);
	free(r->relay_from.items);
	free(r->stray_nets.items);
	for (unsigned i = 0; i < CONFIG_LISTENERS_MAX; i++)
		free(r->proxy_from[i].items);
	free(r);
	if (report->count > 0)
		config_free(&config);
	return config;
}

struct config *config_load(const char *path, struct config_report *report)
{
	char *text = NULL;
	size_t len = 0;
	int result = config_slurp(path, &text, &len);

	if (result < 0) {
		report->count = 1;
		report->omitted = 0;
		report->errors[0].line = 0;
		config_print(report->errors[0].text,
			     sizeof(report->errors[0].text),
			     "%s: cannot be read: %s", path,
			     strerrordesc_np(-result));
		return NULL;
	}
	struct config *config = config_parse_text(text, len, path, report);

	free(text);
	return config;
}

void config_free(struct config **config)
{
	if (*config == NULL)
		return;
	free((*config)->admission.allow.ranges);
	free((*config)->admission.deny.ranges);
	free((*config)->farm.relay_from.ranges);
	for (unsigned i = 0; i < (*config)->listener_count; i++)
		free((*config)->listeners[i].proxy_from.ranges);
	free(*config);
	*config = NULL;
}

struct config_report *config_report_new(void)
{
	return calloc(1, sizeof(struct config_report));
}

void config_report_free(struct config_report **report)
{
	free(*report);
	*report = NULL;
}

/* --- one backend at run time --- */

bool config_backend_init(struct config_backend *backend, const char *name,
			 size_t len, char *error, size_t error_cap)
{
	struct config_span span = { name, len };
	char quoted[CONFIG_QUOTED_MAX];

	if (!name_is_sane(span)) {
		config_print(error, error_cap,
			     "name %s: need 1 to %d of A-Z a-z 0-9 . _ -",
			     config_quote(quoted, span), CONFIG_NAME_MAX - 1);
		return false;
	}
	*backend = (struct config_backend){ 0 };
	copy_name(backend->name, span);
	config_set_defaults(CONFIG_SECTION_BACKEND, backend);
	return true;
}

bool config_backend_set(struct config_backend *backend, const char *pair,
			size_t len, char *error, size_t error_cap)
{
	struct config_span value;
	struct config_span name = config_trim(
		config_cut((struct config_span){ pair, len }, '=', &value));
	const struct config_key *key = config_find_key(CONFIG_SECTION_BACKEND,
						       name);
	char quoted[CONFIG_QUOTED_MAX];

	if (value.at == NULL) {
		config_print(error, error_cap, "%s: need KEY=VALUE",
			     config_quote(quoted, name));
		return false;
	}
	if (key == NULL) {
		config_describe_unknown_key(CONFIG_SECTION_BACKEND, name, error,
					    error_cap);
		return false;
	}
	struct config_put p = {
		.key = key,
		.base = backend,
		.text = config_trim(value),
	};

	/* As if it had stood in a file: one printable line of that length. */
	bool fits = p.text.len < CONFIG_TEXT_MAX;

	for (size_t i = 0; i < p.text.len && fits; i++)
		fits = (unsigned char)p.text.at[i] >= ' ' &&
		       p.text.at[i] != 0x7f;
	/* None more of a list. */
	if (p.text.len == 0 && key->repeatable)
		return true;
	if (fits && config_put_value(&p))
		return true;
	config_describe_bad_value(&p, error, error_cap);
	return false;
}

bool config_backend_check(const struct config_backend *backend, char *error,
			  size_t error_cap)
{
	const struct config_key *key = config_find_key(
		CONFIG_SECTION_BACKEND, config_span_of("address"));
	struct rule rules[BACKEND_RULES];
	size_t len;

	assert(key != NULL);
	backend_rules(backend, rules);
	for (unsigned i = 0; i < BACKEND_RULES; i++) {
		if (rules[i].broken) {
			config_print(error, error_cap, "%s", rules[i].text);
			return false;
		}
	}
	if (backend->address.port > 0)
		return true;
	len = config_print(error, error_cap, "no address=: need ");
	(void)config_describe(key, error + len, error_cap - len);
	return false;
}
