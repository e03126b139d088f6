#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "proxy/work.h"

/*
 * The farm as the configuration says it: at the start, and at a reload.
 */

void weir_set_limits(struct farm *farm, const struct config *config)
{
	int64_t max_ms = config->farm.retry_max_ms;
	const struct limit_policy policy = {
		.retry_ms = WORK_RETRY_MS < max_ms ? WORK_RETRY_MS : max_ms,
		.retry_max_ms = max_ms,
		.start = config->farm.start_sessions,
	};

	farm_set_limits(farm, &policy, config->farm.observe);
}

void weir_set_guard(struct farm *farm, const struct config *config)
{
	switch (config->farm.relay_guard) {
	case CONFIG_GUARD_ENFORCE:
		farm_set_guard(farm, FARM_GUARD_ENFORCE);
		return;
	case CONFIG_GUARD_WARN:
		farm_set_guard(farm, FARM_GUARD_WARN);
		return;
	case CONFIG_GUARD_OFF:
		break;
	}
	farm_set_guard(farm, FARM_GUARD_OFF);
}

static enum backend_admin admin_of(enum config_backend_state state)
{
	switch (state) {
	case CONFIG_BACKEND_READY:
		return BACKEND_READY;
	case CONFIG_BACKEND_DRAIN:
		return BACKEND_ADMIN_DRAIN;
	case CONFIG_BACKEND_MAINT:
		break;
	}
	return BACKEND_ADMIN_MAINT;
}

static enum backend_identity identity_of(enum config_identity identity)
{
	switch (identity) {
	case CONFIG_IDENTITY_NONE:
		break;
	case CONFIG_IDENTITY_HEADER:
		return BACKEND_IDENTITY_HEADER;
	case CONFIG_IDENTITY_PROXY_V1:
		return BACKEND_IDENTITY_PROXY_V1;
	case CONFIG_IDENTITY_PROXY_V2:
		return BACKEND_IDENTITY_PROXY_V2;
	case CONFIG_IDENTITY_XCLIENT:
		return BACKEND_IDENTITY_XCLIENT;
	case CONFIG_IDENTITY_TRANSPARENT:
		return BACKEND_IDENTITY_TRANSPARENT;
	}
	return BACKEND_IDENTITY_NONE;
}

static enum backend_tls tls_of(enum config_backend_tls tls)
{
	switch (tls) {
	case CONFIG_BACKEND_TLS_NONE:
		break;
	case CONFIG_BACKEND_TLS_OPPORTUNISTIC:
		return BACKEND_TLS_OPPORTUNISTIC;
	case CONFIG_BACKEND_TLS_REQUIRED:
		return BACKEND_TLS_REQUIRED;
	case CONFIG_BACKEND_TLS_VERIFY:
		return BACKEND_TLS_VERIFY;
	}
	return BACKEND_TLS_NONE;
}

void weir_address_text(const struct config_address *address, char *text,
		       size_t size)
{
	char addr[CIDR_ADDR_TEXT_MAX];

	(void)cidr_addr_format(&address->addr, addr, sizeof(addr));
	(void)snprintf(text, size,
		       cidr_addr_is_v4(&address->addr) ? "%s:%u" : "[%s]:%u",
		       addr, address->port);
}

static enum farm_result add(struct farm *farm,
			    const struct config_backend *from,
			    enum backend_admin admin, int64_t now_ms,
			    uint16_t *index)
{
	char text[BACKEND_ADDRESS_MAX];
	struct backend_settings settings = {
		.name = from->name,
		.address = text,
		.max_sessions = from->max_sessions,
		.weight = from->weight,
		.admin = admin,
		.identity = identity_of(from->identity),
		.tls = tls_of(from->tls),
		.tls_implicit = from->tls_implicit,
		.reuse = from->reuse,
		.rules = from->busy_rules,
		.rule_count = from->busy_rule_count,
	};

	static_assert((int)BACKEND_RULES_MAX >= (int)CONFIG_BUSY_RULES_MAX,
		      "a backend holds all rules that it may be given");
	weir_address_text(&from->address, text, sizeof(text));
	settings.peer_len = (socklen_t)cidr_addr_to_sockaddr(
		&from->address.addr, from->address.port, &settings.peer);
	if (from->source_set)
		settings.source_len = (socklen_t)cidr_addr_to_sockaddr(
			&from->source, 0, &settings.source);
	return farm_add(farm, &settings, now_ms, index);
}

enum farm_result weir_add_backend(struct farm *farm,
				  const struct config_backend *from,
				  int64_t now_ms)
{
	uint16_t index;

	return add(farm, from, admin_of(from->state), now_ms, &index);
}

/* Of farm_add(), for people. */
static void say_why(enum farm_result result, const char *name,
		    char error[WEIR_BACKEND_ERROR_SIZE])
{
	switch (result) {
	case FARM_TAKEN:
		(void)snprintf(error, WEIR_BACKEND_ERROR_SIZE,
			       "there is a backend \"%s\" already", name);
		return;
	case FARM_FULL:
		(void)snprintf(error, WEIR_BACKEND_ERROR_SIZE,
			       "the farm is full: %d backends",
			       FARM_BACKENDS_MAX);
		return;
	case FARM_OK:
	case FARM_READY:
	case FARM_IN_USE:
	case FARM_NO_SUCH:
		break;
	}
	(void)snprintf(error, WEIR_BACKEND_ERROR_SIZE, "it cannot be added");
}

bool weir_join_backend(struct weir *weir, const struct config_backend *from,
		       const struct config_tls_rules *rules, int64_t now_ms,
		       int64_t now_s, char error[WEIR_BACKEND_ERROR_SIZE])
{
	const enum backend_admin admin = admin_of(from->state);
	/* Its place must be known before its context is: nobody is to go
	 * there in between. */
	const bool later = from->tls != CONFIG_BACKEND_TLS_NONE &&
			   weir->tls != NULL;
	enum farm_result result;
	uint16_t index;

	static_assert((int)WEIR_BACKEND_ERROR_SIZE >= (int)TLS_STORE_ERROR_SIZE,
		      "what the store says fits");
	result = add(weir->farm, from, later ? BACKEND_ADMIN_MAINT : admin,
		     now_ms, &index);
	if (result != FARM_OK) {
		say_why(result, from->name, error);
		return false;
	}
	if (!later)
		return true;
	if (!tls_store_set_backend(weir->tls, index, from, rules, now_s,
				   error)) {
		result = farm_remove(weir->farm, index);
		assert(result == FARM_OK);
		return false;
	}
	backend_set_admin(farm_at(weir->farm, index), admin, NULL);
	return true;
}

enum farm_result weir_part_backend(struct weir *weir, uint16_t index)
{
	enum farm_result result = farm_remove(weir->farm, index);

	if (result == FARM_OK && weir->tls != NULL)
		tls_store_drop_backend(weir->tls, index);
	return result;
}

static const struct config_backend *in_config(const struct config *config,
					      const char *name)
{
	for (unsigned i = 0; i < config->backend_count; i++) {
		if (strcmp(config->backends[i].name, name) == 0)
			return &config->backends[i];
	}
	return NULL;
}

static void log_backend(struct worker *w, const char *name, const char *what)
{
	work_log_begin(w, "reload");
	log_word(&w->log, "backend", name);
	log_word(&w->log, "change", what);
	work_log(w, LOG_LEVEL_NOTICE);
}

static bool same_source(const struct backend *b,
			const struct config_backend *to)
{
	struct cidr_addr source = { 0 };

	if (b->source_len == 0 || !to->source_set)
		return b->source_len == 0 && !to->source_set;
	(void)cidr_addr_from_sockaddr(&source, NULL,
				      (const struct sockaddr *)&b->source,
				      sizeof(b->source));
	return memcmp(source.octets, to->source.octets,
		      sizeof(source.octets)) == 0;
}

static bool same_rules(const struct backend *b, const struct config_backend *to)
{
	if (b->rule_count != to->busy_rule_count)
		return false;
	for (unsigned i = 0; i < b->rule_count; i++) {
		const struct busy_rule *r = &b->rules[i];
		const struct busy_rule *s = &to->busy_rules[i];

		if (r->stages != s->stages || r->code_min != s->code_min ||
		    r->code_max != s->code_max ||
		    r->esc_given != s->esc_given ||
		    r->esc.subject != s->esc.subject ||
		    r->esc.detail != s->esc.detail || r->class != s->class ||
		    r->text_len != s->text_len ||
		    memcmp(r->text, s->text, r->text_len) != 0)
			return false;
	}
	return true;
}

/*
 * Another context, and whether and how it is used: both or neither, for the
 * old one may not check what the new rule says is checked.
 */
static void change_tls(struct worker *w, struct backend *b,
		       const struct config_backend *to,
		       const struct config_tls_rules *rules)
{
	const enum backend_tls tls = tls_of(to->tls);
	struct tls_store *store = w->weir->tls;
	char error[TLS_STORE_ERROR_SIZE];

	if (tls == BACKEND_TLS_NONE)
		backend_set_tls(b, tls, to->tls_implicit);
	if (store != NULL &&
	    !tls_store_set_backend(store, b->index, to, rules,
				   io_wall_ms(w->io) / 1000, error)) {
		log_backend(w, b->name,
			    "its TLS cannot be had as it is to be: it stays "
			    "as it was");
		return;
	}
	backend_set_tls(b, tls, to->tls_implicit);
}

static void change_backend(struct worker *w, struct backend *b,
			   const struct config_backend *to,
			   const struct config_tls_rules *rules)
{
	struct backend_change change = { 0 };
	char text[BACKEND_ADDRESS_MAX];

	w->leaving[b->index] = false;
	weir_address_text(&to->address, text, sizeof(text));
	if (strcmp(text, b->address) != 0) {
		log_backend(w, b->name,
			    "address differs: del backend, then reload");
		return;
	}
	/* Who has a slot reads these without a lock. */
	if (!same_source(b, to) || !same_rules(b, to)) {
		log_backend(w, b->name,
			    "source or busy_rule differs: del backend, then "
			    "reload");
	}
	backend_set_weight(b, to->weight);
	backend_set_max_sessions(b, to->max_sessions);
	backend_set_identity(b, identity_of(to->identity));
	change_tls(w, b, to, rules);
	backend_set_reuse(b, to->reuse);
	backend_set_admin(b, admin_of(to->state), &change);
	backend_ask_relay(b);
	if (change.changed)
		work_retired(w);
	work_log_change(w, &change);
}

static void retire_backend(struct worker *w, struct backend *b)
{
	struct backend_change change = { 0 };

	backend_set_admin(b, BACKEND_ADMIN_DRAIN, &change);
	work_retired(w);
	work_log_change(w, &change);
	w->leaving[b->index] = true;
	log_backend(w, b->name, "drained, then removed");
}

static void change_farm(struct worker *w, const struct config *config)
{
	struct farm *farm = w->weir->farm;
	char error[WEIR_BACKEND_ERROR_SIZE];

	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (b == NULL)
			continue;
		const struct config_backend *to = in_config(config, b->name);

		if (to != NULL)
			change_backend(w, b, to, &config->tls);
		else
			retire_backend(w, b);
	}
	for (unsigned i = 0; i < config->backend_count; i++) {
		const struct config_backend *to = &config->backends[i];

		if (farm_find(farm, to->name, strlen(to->name)) != NULL)
			continue;
		if (weir_join_backend(w->weir, to, &config->tls, w->now_ms,
				      io_wall_ms(w->io) / 1000, error))
			log_backend(w, to->name, "added");
		else
			log_backend(w, to->name, error);
	}
}

void work_remove_leaving(struct worker *w)
{
	struct farm *farm = w->weir->farm;

	for (uint16_t i = 0; i < farm_size(farm); i++) {
		struct backend *b = farm_at(farm, i);

		if (!w->leaving[i] || b == NULL)
			continue;
		if (weir_part_backend(w->weir, i) == FARM_OK) {
			w->leaving[i] = false;
			log_backend(w, b->name, "removed");
		}
	}
}

void worker_reload(struct worker *w, const struct config *config)
{
	assert(w->index == 0);
	(void)pthread_mutex_lock(&w->mutex);
	admission_configure(w->weir->admission, &config->admission.limits);
	weir_change_room(w->weir, config);
	weir_set_limits(w->weir->farm, config);
	weir_set_guard(w->weir->farm, config);
	change_farm(w, config);
	atomic_store_explicit(&w->weir->config, config, memory_order_release);
	(void)pthread_mutex_unlock(&w->mutex);
}
