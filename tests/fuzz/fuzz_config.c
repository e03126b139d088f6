#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/config.h"

/*
 * Whatever the octets: a configuration is either whole and within the bounds
 * that its users rely on, or it does not exist and there is an error that
 * says why; the errors come in the order of the lines.  And whatever one
 * pair of a control command says, a refusal leaves the backend as it was.
 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool name_is_sane(const char *name)
{
	size_t len = strnlen(name, CONFIG_NAME_MAX);

	return len > 0 && len < CONFIG_NAME_MAX;
}

static void check_backend(const struct config_backend *b)
{
	assert(name_is_sane(b->name));
	assert(b->address.port > 0);
	assert(b->max_sessions >= 1);
	assert(b->max_sessions <= 65535 || b->max_sessions == LIMIT_MAX);
	assert(b->weight >= 1 && b->weight <= 1000);
	assert(b->busy_rule_count <= CONFIG_BUSY_RULES_MAX);
	assert(b->state <= CONFIG_BACKEND_MAINT);
	assert(b->tls <= CONFIG_BACKEND_TLS_VERIFY);
	assert(b->tls_ca[0] == '/');
	assert(b->pin_count <= CONFIG_PINS_MAX);
	/* Nothing is checked that nobody would look at. */
	assert(b->pin_count == 0 || b->tls == CONFIG_BACKEND_TLS_VERIFY);
	assert(b->tls != CONFIG_BACKEND_TLS_NONE ||
	       (!b->tls_implicit && b->cert.cert[0] == '\0'));
	assert(b->identity <= CONFIG_IDENTITY_TRANSPARENT);
	assert(b->identity != CONFIG_IDENTITY_TRANSPARENT ||
	       (!b->source_set && !b->reuse));
}

static void check_tls(const struct config_listener *l)
{
	assert(l->tls <= CONFIG_TLS_IMPLICIT);
	assert(l->cert_count <= CONFIG_CERTS_MAX);
	assert((l->tls == CONFIG_TLS_NONE) == (l->cert_count == 0));
	for (unsigned i = 0; i < l->cert_count; i++)
		assert(l->certs[i].cert[0] == '/');
	assert(l->ask == CONFIG_ASK_NONE || l->tls != CONFIG_TLS_NONE);
	assert((l->ask == CONFIG_ASK_REQUIRE) == (l->trust[0] == '/'));
	assert(l->auth != CONFIG_AUTH_TLS || l->tls != CONFIG_TLS_NONE);
	assert(l->bare_newline == CONFIG_BARE_REJECT ||
	       l->slot == CONFIG_SLOT_TRANSACTION);
	assert(l->mode == CONFIG_MODE_SMTP ||
	       (l->tls == CONFIG_TLS_NONE && l->auth == CONFIG_AUTH_NONE &&
		l->slot == CONFIG_SLOT_TRANSACTION));
}

static void check_listener(const struct config_listener *l)
{
	assert(name_is_sane(l->name));
	assert(l->listen_count >= 1 && l->listen_count <= CONFIG_LISTEN_MAX);
	for (unsigned i = 0; i < l->listen_count; i++)
		assert(l->listen[i].port > 0);
	assert(l->greeting_delay_ms >= 0 && l->greeting_delay_ms <= 60000);
	assert(strnlen(l->banner, sizeof(l->banner)) <= 128);
	assert(l->slot <= CONFIG_SLOT_BODY);
	assert(l->body_buffer >= 4096 && l->body_wait_ms >= 10);
	assert(l->proxy_from.sealed);
	check_tls(l);
}

static void check_admission(const struct config_admission *a)
{
	const struct admission_config *limits = &a->limits;

	assert(limits->allow == &a->allow && a->allow.sealed);
	assert(limits->deny == &a->deny && a->deny.sealed);
	assert(limits->max_sessions >= 1);
	assert(limits->max_sessions <= ADMISSION_SESSIONS_MAX);
	assert(limits->aggregate_v4_bits <= limits->source_v4_bits);
	assert(limits->aggregate_v6_bits <= limits->source_v6_bits);
	assert(limits->source_v4_bits <= 32 && limits->source_v6_bits <= 128);
	assert(limits->stress_low_percent <= limits->stress_high_percent);
	assert(limits->stress_high_percent <= 100);
	assert(limits->table_size >= ADMISSION_TABLE_MIN);
	for (unsigned i = 0; i < ADMISSION_RATES; i++) {
		assert(limits->rates[i].count == 0 ||
		       limits->rates[i].period_ms > 0);
	}
}

static void check_config(const struct config *c)
{
	assert(c->weir.hostname[0] != '\0' && c->health.helo[0] != '\0');
	assert(c->weir.workers <= CONFIG_WORKERS_MAX);
	assert(c->weir.control_socket[0] == '/');
	assert((c->weir.log == LOGGER_FILE) == (c->weir.log_path[0] == '/'));
	assert(c->listener_count >= 1);
	assert(c->listener_count <= CONFIG_LISTENERS_MAX);
	for (unsigned i = 0; i < c->listener_count; i++)
		check_listener(&c->listeners[i]);
	for (unsigned i = 0; i < c->listener_count; i++)
		assert(c->listeners[i].slot != CONFIG_SLOT_BODY ||
		       c->listeners[i].body_buffer <= c->weir.body_memory);
	assert(c->room.per_source >= 1 && c->room.wait_ms >= 100);
	assert(c->room.low_percent < c->room.high_percent);
	assert(c->room.high_percent <= 100);
	assert(c->room.reserve_percent <= 50);
	assert(c->farm.start_sessions >= 1 && c->farm.reuse_max >= 1);
	assert(c->backend_count >= 1);
	assert(c->backend_count <= CONFIG_BACKENDS_MAX);
	for (unsigned i = 0; i < c->backend_count; i++)
		check_backend(&c->backends[i]);
	assert(c->tls.min >= TLS_VERSION_1_0 && c->tls.min <= c->tls.max);
	assert(c->tls.max <= TLS_VERSION_1_3);
	assert(c->tls.handshakes >= 1 && c->tls.ticket_lifetime_ms >= 0);
	assert(c->timeouts.handshake_ms >= 100);
	assert(c->farm.relay_from.sealed);
	check_admission(&c->admission);
	assert(c->timeouts.command_ms >= 100 && c->timeouts.session_ms >= 0);
	assert(c->farm.tries >= 1 && c->farm.tries <= 10);
	assert(c->health.eject_ms <= c->health.eject_max_ms);
	assert(c->health.rise >= 1 && c->health.rise <= 64);
}

static void check_report(const struct config_report *report)
{
	assert(report->count > 0 && report->count <= CONFIG_ERRORS_MAX);
	for (unsigned i = 0; i < report->count; i++) {
		const struct config_error *error = &report->errors[i];
		size_t len = strnlen(error->text, sizeof(error->text));

		assert(len > 2 && len < sizeof(error->text));
		assert(memcmp(error->text, "f:", 2) == 0 ||
		       error->text[0] == '/');
		for (size_t at = 0; at < len; at++)
			assert(error->text[at] >= ' ' &&
			       error->text[at] <= '~');
		if (i > 0 && error->line > 0)
			assert(error->line >= report->errors[i - 1].line);
	}
}

/* Padding too: nothing at all was written. */
static bool same_octets(const void *a, const void *b, size_t len)
{
	return memcmp(a, b, len) == 0;
}

static void check_pair(const char *pair, size_t len)
{
	static struct config_backend backend, before;
	char error[CONFIG_ERROR_MAX] = "";
	bool made = config_backend_init(&backend, "b", 1, error, sizeof(error));

	assert(made);
	memcpy(&before, &backend, sizeof(before));
	if (config_backend_set(&backend, pair, len, error, sizeof(error)))
		return;
	assert(error[0] != '\0');
	assert(same_octets(&before, &backend, sizeof(before)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config_report *report = config_report_new();
	/* A private copy, so that ASan sees reads past the end. */
	char *text = malloc(size > 0 ? size : 1);

	assert(report != NULL && text != NULL);
	if (size > 0)
		memcpy(text, data, size);
	struct config *config = config_parse_text(text, size, "f", report);

	if (config != NULL) {
		assert(report->count == 0 && report->omitted == 0);
		check_config(config);
	} else {
		check_report(report);
	}
	config_free(&config);
	check_pair(text, size);
	free(text);
	config_report_free(&report);
	return 0;
}
