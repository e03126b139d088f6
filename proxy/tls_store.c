#include "proxy/tls_store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "balancer/backend.h"
#include "proxy/config.h"
#include "proxy/tls_load.h"
#include "proxy/tls_own.h"

enum {
	TRUSTS_MAX = 8, /* files of CAs that are remembered between backends */
	DAY_S = 86400,
};

static_assert((int)TLS_STORE_FILE_MAX >= (int)CONFIG_TEXT_MAX,
	      "paths fit as they stand in the configuration");

struct listener_entry {
	struct tls_context *context; /* or NULL */
	char files[CONFIG_CERTS_MAX][CONFIG_TEXT_MAX];
};

struct trust_entry {
	char path[CONFIG_TEXT_MAX];
	struct tls_trust *trust;
};

struct tls_store {
	/* Held by who reads files; taken before the other one. */
	pthread_mutex_t reading;
	struct trust_entry trusts[TRUSTS_MAX]; /* behind reading */
	unsigned trust_count;

	pthread_mutex_t mutex; /* for all that follows; held briefly */
	struct tls_tickets *tickets;
	int64_t period_s; /* theirs; 0: none */
	bool serves;
	struct listener_entry listeners[CONFIG_LISTENERS_MAX];
	struct {
		struct tls_context *context; /* or NULL */
		char name[CONFIG_NAME_MAX];
	} backends[FARM_BACKENDS_MAX];
};

/* What a load has made, and not yet put in force. */
struct loading {
	struct tls_store *store;
	const struct config *config;
	int64_t now_s;
	struct config_report *report;
	struct tls_tickets *tickets;
	int64_t period_s;
	struct tls_context *listeners[CONFIG_LISTENERS_MAX];
	bool good;   /* nothing to complain about so far */
	bool serves; /* or it has another context */
};

/* ---- complaints ---- */

__attribute__((format(printf, 2, 3))) static void complain(
	struct config_report *report, const char *format, ...)
{
	va_list args;

	if (report->count == CONFIG_ERRORS_MAX) {
		report->omitted++;
		return;
	}
	struct config_error *error = &report->errors[report->count++];

	error->line = 0;
	va_start(args, format);
	(void)vsnprintf(error->text, sizeof(error->text), format, args);
	va_end(args);
}

/* Files of root's are read at the start, and not again by another user. */
static const char *hint_of(const char *path)
{
	if (path[0] != '\0' &&
	    faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) != 0 && errno == EACCES)
		return ": let the group that weir runs as read it (chgrp, "
		       "chmod g+r; the directories above: g+x)";
	return "";
}

static const char *hint_of_cert(const struct config_cert *cert)
{
	const char *hint = hint_of(cert->cert);

	if (hint[0] == '\0')
		hint = hint_of(cert->key);
	return hint[0] != '\0' ? hint : hint_of(cert->ocsp);
}

/* ---- from settings to contexts ---- */

static const char *or_null(const char *text)
{
	return text[0] != '\0' ? text : NULL;
}

static struct tls_protocol protocol_of(const struct config_tls_rules *rules)
{
	return (struct tls_protocol){
		.min = rules->min,
		.max = rules->max,
		.ciphers = or_null(rules->ciphers),
		.suites = or_null(rules->suites),
		.groups = or_null(rules->groups),
	};
}

/*
 * The CAs of a file, as counted reference; a file that many backends name is
 * read once.  NULL: error says why.
 */
static struct tls_trust *trust_of(struct tls_store *store, const char *path,
				  char error[TLS_ERROR_SIZE])
{
	for (unsigned i = 0; i < store->trust_count; i++) {
		if (strcmp(store->trusts[i].path, path) == 0)
			return tls_trust_ref(store->trusts[i].trust);
	}
	struct tls_trust *trust = tls_trust_load(path, error);

	if (trust != NULL && store->trust_count < TRUSTS_MAX) {
		struct trust_entry *entry =
			&store->trusts[store->trust_count++];

		(void)snprintf(entry->path, sizeof(entry->path), "%s", path);
		entry->trust = tls_trust_ref(trust);
	}
	return trust;
}

static void forget_trusts(struct tls_store *store)
{
	while (store->trust_count > 0)
		tls_trust_unref(&store->trusts[--store->trust_count].trust);
}

static bool load_pair(struct tls_pair *pair, const struct config_cert *cert,
		      char error[TLS_ERROR_SIZE])
{
	return tls_pair_load(pair, cert->cert, or_null(cert->key),
			     or_null(cert->ocsp), error);
}

/* All of its files, so that each that cannot be read is named. */
static bool load_pairs(const struct loading *load,
		       const struct config_listener *l,
		       struct tls_pair pairs[CONFIG_CERTS_MAX])
{
	char error[TLS_ERROR_SIZE];
	bool good = true;

	for (unsigned i = 0; i < l->cert_count; i++) {
		if (load_pair(&pairs[i], &l->certs[i], error))
			continue;
		complain(load->report, "[listener %s] tls_cert: %s%s", l->name,
			 error, hint_of_cert(&l->certs[i]));
		good = false;
	}
	return good;
}

static enum tls_ask ask_of(enum config_ask ask)
{
	switch (ask) {
	case CONFIG_ASK_NONE:
		break;
	case CONFIG_ASK_LOG:
		return TLS_ASK_LOG;
	case CONFIG_ASK_REQUIRE:
		return TLS_ASK_REQUIRE;
	}
	return TLS_ASK_NONE;
}

/* NULL: a complaint, or several. */
static struct tls_context *make_listener(const struct loading *load,
					 const struct config_listener *l)
{
	struct tls_pair pairs[CONFIG_CERTS_MAX] = { 0 };
	struct tls_server_settings set = {
		.pairs = pairs,
		.pair_count = l->cert_count,
		.protocol = protocol_of(&load->config->tls),
		.ask = ask_of(l->ask),
		.tickets = load->tickets,
		.now_s = load->now_s,
	};
	struct tls_context *context = NULL;
	char error[TLS_ERROR_SIZE];
	bool good = load_pairs(load, l, pairs);

	if (l->ask == CONFIG_ASK_REQUIRE) {
		set.trust = trust_of(load->store, l->trust, error);
		if (set.trust == NULL) {
			complain(load->report, "[listener %s] tls_ca: %s%s",
				 l->name, error, hint_of(l->trust));
			good = false;
		}
	}
	if (good) {
		context = tls_context_server(&set, error);
		if (context == NULL)
			complain(load->report, "[listener %s]: %s", l->name,
				 error);
	}
	for (unsigned i = 0; i < l->cert_count; i++)
		tls_pair_unload(&pairs[i]);
	tls_trust_unref(&set.trust);
	return context;
}

static enum tls_check check_of(const struct config_backend *backend)
{
	if (backend->tls != CONFIG_BACKEND_TLS_VERIFY)
		return TLS_CHECK_NOTHING;
	return backend->pin_count > 0 ? TLS_CHECK_PIN : TLS_CHECK_NAME;
}

/* NULL: error says why; the caller holds store->reading. */
static struct tls_context *make_backend(struct tls_store *store,
					const struct config_backend *backend,
					const struct config_tls_rules *rules,
					int64_t now_s,
					char error[TLS_STORE_ERROR_SIZE])
{
	char name[CONFIG_HOST_MAX], why[TLS_ERROR_SIZE];
	struct tls_client_settings set = {
		.name = name,
		.protocol = protocol_of(rules),
		.check = check_of(backend),
		.pins = backend->pins,
		.pin_count = backend->pin_count,
		.now_s = now_s,
	};
	struct tls_context *context = NULL;
	struct tls_pair pair = { 0 };
	const char *key = "tls", *hint = "";
	bool good = true;

	static_assert((int)CONFIG_HOST_MAX >= (int)CIDR_ADDR_TEXT_MAX,
		      "an address may stand for a name");
	if (backend->tls_name[0] != '\0')
		(void)snprintf(name, sizeof(name), "%s", backend->tls_name);
	else
		(void)cidr_addr_format(&backend->address.addr, name,
				       sizeof(name));
	if (set.check == TLS_CHECK_NAME) {
		set.trust = trust_of(store, backend->tls_ca, why);
		good = set.trust != NULL;
		key = "tls_ca";
		hint = good ? "" : hint_of(backend->tls_ca);
	}
	if (good && backend->cert.cert[0] != '\0') {
		good = load_pair(&pair, &backend->cert, why);
		key = "tls_cert";
		hint = good ? "" : hint_of_cert(&backend->cert);
		set.pair = &pair;
	}
	if (good)
		context = tls_context_client(&set, why);
	if (context == NULL)
		(void)snprintf(error, TLS_STORE_ERROR_SIZE, "%s: %s%s", key,
			       why, hint);
	tls_pair_unload(&pair);
	tls_trust_unref(&set.trust);
	return context;
}

/* ---- the store ---- */

struct tls_store *tls_store_new(void)
{
	struct tls_store *store = OPENSSL_zalloc(sizeof(*store));

	if (store == NULL)
		return NULL;
	(void)pthread_mutex_init(&store->reading, NULL);
	(void)pthread_mutex_init(&store->mutex, NULL);
	store->serves = true;
	return store;
}

void tls_store_free(struct tls_store **store)
{
	struct tls_store *s = *store;

	*store = NULL;
	if (s == NULL)
		return;
	for (unsigned i = 0; i < CONFIG_LISTENERS_MAX; i++)
		tls_context_unref(&s->listeners[i].context);
	for (unsigned i = 0; i < FARM_BACKENDS_MAX; i++)
		tls_context_unref(&s->backends[i].context);
	forget_trusts(s);
	tls_tickets_unref(&s->tickets);
	(void)pthread_mutex_destroy(&s->mutex);
	(void)pthread_mutex_destroy(&s->reading);
	OPENSSL_free(s);
}

/* A lock does not change what a store is to its readers. */
static void lock(const struct tls_store *store)
{
	union {
		const struct tls_store *given;
		struct tls_store *own;
	} s = { .given = store };

	(void)pthread_mutex_lock(&s.own->mutex);
}

static void unlock(const struct tls_store *store)
{
	union {
		const struct tls_store *given;
		struct tls_store *own;
	} s = { .given = store };

	(void)pthread_mutex_unlock(&s.own->mutex);
}

bool tls_store_serves(const struct tls_store *store)
{
	bool serves;

	lock(store);
	serves = store->serves;
	unlock(store);
	return serves;
}

/* Put it in force; the old one is let go of without the lock. */
static void swap(struct tls_store *store, struct tls_context **place,
		 struct tls_context *context)
{
	struct tls_context *old;

	lock(store);
	old = *place;
	*place = context;
	unlock(store);
	tls_context_unref(&old);
}

static struct tls_context *ref(struct tls_store *store,
			       struct tls_context *const *place)
{
	struct tls_context *context;

	lock(store);
	context = *place != NULL ? tls_context_ref(*place) : NULL;
	unlock(store);
	return context;
}

struct tls_context *tls_store_listener(struct tls_store *store,
				       unsigned config_at)
{
	assert(config_at < CONFIG_LISTENERS_MAX);
	return ref(store, &store->listeners[config_at].context);
}

struct tls_context *tls_store_backend(struct tls_store *store, uint16_t place)
{
	assert(place < FARM_BACKENDS_MAX);
	return ref(store, &store->backends[place].context);
}

void tls_store_put_listener(struct tls_store *store, unsigned config_at,
			    struct tls_context *context)
{
	assert(config_at < CONFIG_LISTENERS_MAX);
	swap(store, &store->listeners[config_at].context, context);
}

void tls_store_put_backend(struct tls_store *store, uint16_t place,
			   struct tls_context *context)
{
	assert(place < FARM_BACKENDS_MAX);
	swap(store, &store->backends[place].context, context);
}

void tls_store_drop_backend(struct tls_store *store, uint16_t place)
{
	tls_store_put_backend(store, place, NULL);
}

bool tls_store_try_backend(struct tls_store *store,
			   const struct config_backend *backend,
			   const struct config_tls_rules *rules, int64_t now_s,
			   char error[TLS_STORE_ERROR_SIZE])
{
	struct tls_context *context;
	bool good;

	if (backend->tls == CONFIG_BACKEND_TLS_NONE)
		return true;
	(void)pthread_mutex_lock(&store->reading);
	context = make_backend(store, backend, rules, now_s, error);
	(void)pthread_mutex_unlock(&store->reading);
	good = context != NULL;
	tls_context_unref(&context);
	return good;
}

bool tls_store_set_backend(struct tls_store *store, uint16_t place,
			   const struct config_backend *backend,
			   const struct config_tls_rules *rules, int64_t now_s,
			   char error[TLS_STORE_ERROR_SIZE])
{
	struct tls_context *context = NULL;

	assert(place < FARM_BACKENDS_MAX);
	if (backend->tls != CONFIG_BACKEND_TLS_NONE) {
		(void)pthread_mutex_lock(&store->reading);
		context = make_backend(store, backend, rules, now_s, error);
		(void)pthread_mutex_unlock(&store->reading);
		if (context == NULL)
			return false;
	}
	lock(store);
	(void)snprintf(store->backends[place].name, CONFIG_NAME_MAX, "%s",
		       backend->name);
	unlock(store);
	tls_store_put_backend(store, place, context);
	return true;
}

/* ---- a whole configuration ---- */

static bool random_octets(void *arg, uint8_t *buf, size_t len)
{
	(void)arg;
	return getrandom(buf, len, 0) == (ssize_t)len;
}

/* Those in force, unless their period was changed. */
static void load_tickets(struct loading *load)
{
	struct tls_store *store = load->store;

	load->period_s = (load->config->tls.ticket_lifetime_ms + 999) / 1000;
	if (load->period_s == 0)
		return;
	lock(store);
	if (store->tickets != NULL && store->period_s == load->period_s)
		load->tickets = tls_tickets_ref(store->tickets);
	unlock(store);
	if (load->tickets == NULL)
		load->tickets = tls_tickets_new(random_octets, NULL,
						load->period_s, load->now_s);
	if (load->tickets == NULL) {
		complain(load->report, "[tls] ticket_lifetime: no memory, or "
				       "no random octets, for keys");
		load->good = false;
		load->serves = false;
	}
}

static void load_listener(struct loading *load, unsigned at)
{
	const struct config_listener *l = &load->config->listeners[at];
	struct tls_context *old;

	if (l->tls == CONFIG_TLS_NONE)
		return;
	load->listeners[at] = make_listener(load, l);
	if (load->listeners[at] != NULL)
		return;
	load->good = false;
	old = tls_store_listener(load->store, at);
	if (old == NULL)
		load->serves = false;
	tls_context_unref(&old);
}

/* Has a backend of that name a context already? */
static bool has_backend(const struct tls_store *store, const char *name)
{
	bool has = false;

	lock(store);
	for (unsigned i = 0; i < FARM_BACKENDS_MAX && !has; i++)
		has = store->backends[i].context != NULL &&
		      strcmp(store->backends[i].name, name) == 0;
	unlock(store);
	return has;
}

/* Would it do?  Its place in the farm is not known here. */
static void load_backend(struct loading *load,
			 const struct config_backend *backend)
{
	struct tls_context *context;
	char error[TLS_STORE_ERROR_SIZE];

	if (backend->tls == CONFIG_BACKEND_TLS_NONE)
		return;
	context = make_backend(load->store, backend, &load->config->tls,
			       load->now_s, error);
	if (context == NULL) {
		complain(load->report, "[backend %s] %s", backend->name, error);
		load->good = false;
		if (!has_backend(load->store, backend->name))
			load->serves = false;
	}
	tls_context_unref(&context);
}

/* In force, listener by listener; load has what they replace. */
static void put_in_force(struct loading *load)
{
	struct tls_store *store = load->store;
	const struct config *config = load->config;
	struct tls_tickets *tickets = store->tickets;

	store->tickets = load->tickets;
	store->period_s = load->period_s;
	load->tickets = tickets;
	for (unsigned i = 0; i < CONFIG_LISTENERS_MAX; i++) {
		const struct config_listener *l = &config->listeners[i];
		struct listener_entry *entry = &store->listeners[i];
		struct tls_context *old = entry->context;

		/* It could not be made: the old one serves on. */
		if (i < config->listener_count && l->tls != CONFIG_TLS_NONE &&
		    load->listeners[i] == NULL)
			continue;
		entry->context = load->listeners[i];
		load->listeners[i] = old;
		memset(entry->files, 0, sizeof(entry->files));
		for (unsigned k = 0; k < l->cert_count; k++)
			memcpy(entry->files[k], l->certs[k].cert,
			       sizeof(entry->files[k]));
	}
}

bool tls_store_load(struct tls_store *store, const struct config *config,
		    int64_t now_s, struct config_report *report)
{
	struct loading load = {
		.store = store,
		.config = config,
		.now_s = now_s,
		.report = report,
		.good = true,
		.serves = true,
	};

	(void)pthread_mutex_lock(&store->reading);
	forget_trusts(store);
	load_tickets(&load);
	for (unsigned i = 0; i < config->listener_count; i++)
		load_listener(&load, i);
	for (unsigned i = 0; i < config->backend_count; i++)
		load_backend(&load, &config->backends[i]);
	lock(store);
	store->serves = load.serves;
	if (load.serves)
		put_in_force(&load);
	unlock(store);
	(void)pthread_mutex_unlock(&store->reading);
	for (unsigned i = 0; i < CONFIG_LISTENERS_MAX; i++)
		tls_context_unref(&load.listeners[i]);
	tls_tickets_unref(&load.tickets);
	return load.good;
}

bool tls_store_rotate(struct tls_store *store, int64_t now_s)
{
	struct tls_tickets *tickets;
	bool good = true;

	lock(store);
	tickets = store->tickets != NULL ? tls_tickets_ref(store->tickets)
					 : NULL;
	unlock(store);
	if (tickets != NULL)
		good = tls_tickets_rotate(tickets, now_s);
	tls_tickets_unref(&tickets);
	return good;
}

/* ---- for operators ---- */

static const char *kind_name(enum tls_key kind)
{
	switch (kind) {
	case TLS_KEY_EC:
		return "ECDSA";
	case TLS_KEY_RSA:
		return "RSA";
	case TLS_KEY_ED:
		return "EdDSA";
	case TLS_KEYS:
		break;
	}
	return "-";
}

/* Its names, as many as fit; they are the CA's octets, so only letters. */
static void print_names(const struct tls_certificate *c,
			char names[TLS_STORE_NAMES_MAX])
{
	struct tls_hosts hosts = { 0 };
	size_t len = 0;

	names[0] = '\0';
	(void)tls_certificate_names(c, 0, &hosts);
	for (size_t i = 0; i < hosts.count; i++) {
		size_t more = strlen(hosts.list[i].name);

		if (len + more + 5 > TLS_STORE_NAMES_MAX) {
			(void)snprintf(names + len, TLS_STORE_NAMES_MAX - len,
				       "%s", len > 0 ? ",..." : "...");
			break;
		}
		len += (size_t)snprintf(names + len, TLS_STORE_NAMES_MAX - len,
					"%s%s", len > 0 ? "," : "",
					hosts.list[i].name);
	}
	for (char *at = names; *at != '\0'; at++) {
		if (*at <= ' ' || *at > '~' || *at == '"')
			*at = '?';
	}
	tls_hosts_free(&hosts);
}

bool tls_store_cert(struct tls_store *store, unsigned config_at, unsigned at,
		    struct tls_store_cert *cert)
{
	struct tls_context *context = tls_store_listener(store, config_at);
	bool has = context != NULL && at < context->cert_count;

	if (has) {
		const struct tls_certificate *c = &context->certs[at];

		cert->kind = kind_name(c->kind);
		cert->expires_s = c->expires_s;
		print_names(c, cert->names);
		cert->file[0] = '\0';
		lock(store);
		if (at < CONFIG_CERTS_MAX) {
			memcpy(cert->file,
			       store->listeners[config_at].files[at],
			       CONFIG_TEXT_MAX);
		}
		unlock(store);
	}
	tls_context_unref(&context);
	return has;
}

int64_t tls_store_expires_s(struct tls_store *store, unsigned config_at)
{
	struct tls_context *context = tls_store_listener(store, config_at);
	int64_t expires_s = context != NULL ? tls_context_expires_s(context)
					    : INT64_MAX;

	tls_context_unref(&context);
	return expires_s;
}

uint64_t tls_store_days(int64_t expires_s, int64_t now_s)
{
	if (expires_s == INT64_MAX)
		return UINT64_MAX;
	return expires_s <= now_s ? 0 : (uint64_t)(expires_s - now_s) / DAY_S;
}

void tls_store_warn(struct tls_store *store, const struct config *config,
		    int64_t now_s, struct config_report *report)
{
	struct tls_store_cert cert;
	char date[TLS_DATE_SIZE];

	for (unsigned i = 0; i < config->listener_count; i++) {
		for (unsigned k = 0; tls_store_cert(store, i, k, &cert); k++) {
			uint64_t days = tls_store_days(cert.expires_s, now_s);

			if (days >= TLS_STORE_EXPIRY_DAYS)
				continue;
			tls_date(date, cert.expires_s);
			complain(report,
				 "[listener %s] %s: the certificate expires "
				 "on %s, in %llu days: have it renewed",
				 config->listeners[i].name, cert.file, date,
				 (unsigned long long)days);
		}
	}
}
