#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy/config.h"
#include "proxy/tls_store.h"
#include "tests/unit/tls_certs.h"
#include "tests/unit/tls_talk.h"

enum { DAY_S = 86400 };

static struct tls_made ca, mx, other, soon, expired;
static struct tls_store *store;
static struct config *config;
static struct config_report all_of_it;
static struct config_report *const report = &all_of_it;
static char dir[] = "/tmp/weir-test-tls-store-XXXXXX";

/* ---- files ---- */

static void path_of(const char *name, char path[CONFIG_TEXT_MAX])
{
	(void)snprintf(path, CONFIG_TEXT_MAX, "%s/%s", dir, name);
}

static void write_span(const char *name, struct tls_span span)
{
	char path[CONFIG_TEXT_MAX];
	FILE *file;

	path_of(name, path);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(span.data, 1, span.len, file), span.len);
	assert_int_equal(fclose(file), 0);
}

static void write_pair(const char *cert, const char *key,
		       const struct tls_made *made)
{
	write_span(cert, made->pair.cert);
	write_span(key, made->pair.key);
}

static void write_text(const char *name, const char *text)
{
	write_span(name,
		   (struct tls_span){ (const uint8_t *)text, strlen(text) });
}

/* ---- the configuration at hand ---- */

static struct config_listener *add_listener(const char *name,
					    enum config_tls tls)
{
	struct config_listener *l =
		&config->listeners[config->listener_count++];

	(void)snprintf(l->name, sizeof(l->name), "%s", name);
	l->tls = tls;
	return l;
}

static void add_cert(struct config_listener *l, const char *cert,
		     const char *key)
{
	struct config_cert *c = &l->certs[l->cert_count++];

	path_of(cert, c->cert);
	path_of(key, c->key);
}

static struct config_backend *add_backend(const char *name,
					  enum config_backend_tls tls)
{
	static const char address[] = "192.0.2.7";
	struct config_backend *b = &config->backends[config->backend_count++];

	(void)snprintf(b->name, sizeof(b->name), "%s", name);
	assert_true(
		cidr_addr_parse(address, strlen(address), &b->address.addr));
	b->address.port = 25;
	b->tls = tls;
	path_of("ca.pem", b->tls_ca);
	return b;
}

static bool load(void)
{
	report->count = 0;
	report->omitted = 0;
	bool good = tls_store_load(store, config, MADE_NOW_S, report);

	for (unsigned i = 0; i < report->count; i++)
		print_message("    %s\n", report->errors[i].text);
	return good;
}

static int set_up(void **state)
{
	const struct tls_wish wishes[] = {
		{ .subject = "CA", .key = MADE_EC, .ca = true },
		{ .subject = "mx",
		  .names = "DNS:mx.example,DNS:mail.example,IP:192.0.2.7",
		  .key = MADE_EC,
		  .issuer = &ca },
		{ .subject = "other",
		  .names = "DNS:other.example",
		  .key = MADE_RSA,
		  .issuer = &ca },
		{ .subject = "soon",
		  .names = "DNS:soon.example",
		  .key = MADE_EC,
		  .until_s = MADE_NOW_S + 9 * DAY_S + 5,
		  .issuer = &ca },
		{ .subject = "expired",
		  .names = "DNS:mx.example",
		  .key = MADE_EC,
		  .from_s = MADE_NOW_S - 20 * DAY_S,
		  .until_s = MADE_NOW_S - 10 * DAY_S,
		  .issuer = &ca },
	};
	struct tls_made *const made[] = { &ca, &mx, &other, &soon, &expired };

	(void)state;
	for (size_t i = 0; i < sizeof(made) / sizeof(made[0]); i++)
		tls_made_new(made[i], &wishes[i]);
	return mkdtemp(dir) == NULL;
}

static int tear_down(void **state)
{
	struct tls_made *const made[] = { &ca, &mx, &other, &soon, &expired };

	(void)state;
	for (size_t i = 0; i < sizeof(made) / sizeof(made[0]); i++)
		tls_made_free(made[i]);
	return rmdir(dir);
}

static int begin(void **state)
{
	struct tls_span pem = tls_made_pem(&ca);

	(void)state;
	write_pair("mx.pem", "mx.key", &mx);
	write_pair("other.pem", "other.key", &other);
	write_pair("soon.pem", "soon.key", &soon);
	write_pair("old.pem", "old.key", &expired);
	write_text("bad.pem", "no certificate\n");
	write_span("ca.pem", pem);
	tls_made_free_span(&pem);
	store = tls_store_new();
	config = calloc(1, sizeof(*config));
	if (store == NULL || config == NULL)
		return 1;
	config->tls.min = TLS_VERSION_1_2;
	config->tls.max = TLS_VERSION_1_3;
	config->tls.ticket_lifetime_ms = INT64_C(43200000);
	return 0;
}

static int end(void **state)
{
	static const char *const names[] = {
		"mx.pem",   "mx.key",  "other.pem", "other.key", "soon.pem",
		"soon.key", "old.pem", "old.key",   "bad.pem",   "ca.pem",
	};
	char path[CONFIG_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		path_of(names[i], path);
		(void)unlink(path);
	}
	tls_store_free(&store);
	free(config);
	return 0;
}

/* ---- one connection ---- */

/* A backend that is verified by CA and name makes the client. */
static struct tls_context *client_for(const char *name)
{
	static struct config_backend b;
	char error[TLS_STORE_ERROR_SIZE];

	b = (struct config_backend){ .tls = CONFIG_BACKEND_TLS_VERIFY };
	path_of("ca.pem", b.tls_ca);
	(void)snprintf(b.tls_name, sizeof(b.tls_name), "%s", name);
	assert_true(tls_store_set_backend(store, 255, &b, &config->tls,
					  MADE_NOW_S, error));
	return tls_store_backend(store, 255);
}

/* Does listener at show a good certificate for name?  *resumed: was it? */
static bool shows(unsigned at, const char *name, struct tls_session **session,
		  bool *resumed)
{
	struct tls_context *server = tls_store_listener(store, at);
	struct tls_context *client = client_for(name);
	struct talk talk = { .cut = { .max = 4096 } };
	struct tls_info info;
	bool open;

	assert_non_null(server);
	assert_non_null(client);
	talk_begin(&talk, server, client, session != NULL ? *session : NULL);
	talk_say(&talk.server, "220 ", 4);
	talk_run(&talk);
	open = tls_state(talk.client.tls) == TLS_OPEN &&
	       tls_state(talk.server.tls) == TLS_OPEN;
	if (!open)
		print_message("    %s\n", tls_reason(talk.client.tls));
	if (open && session != NULL && resumed != NULL) {
		tls_describe(talk.client.tls, &info);
		*resumed = info.resumed;
		tls_session_free(session);
		*session = tls_take_session(talk.client.tls);
	}
	talk_free(&talk);
	tls_context_unref(&server);
	tls_context_unref(&client);
	return open;
}

static void assert_error(unsigned at, const char *text)
{
	char want[CONFIG_ERROR_MAX];
	size_t len = 0;

	/* "@" is the directory of the files. */
	for (; *text != '\0'; text++) {
		len += (size_t)snprintf(want + len, sizeof(want) - len, "%.*s",
					*text == '@' ? (int)strlen(dir) : 1,
					*text == '@' ? dir : text);
	}
	assert_true(at < report->count);
	assert_string_equal(report->errors[at].text, want);
}

/* ---- tests ---- */

static void without_tls_there_is_no_context(void **state)
{
	(void)state;
	add_listener("smtp", CONFIG_TLS_NONE);
	add_backend("mta", CONFIG_BACKEND_TLS_NONE);
	assert_true(load());
	assert_true(tls_store_serves(store));
	assert_null(tls_store_listener(store, 0));
	assert_null(tls_store_backend(store, 0));
	assert_true(tls_store_expires_s(store, 0) == INT64_MAX);
	assert_true(tls_store_rotate(store, MADE_NOW_S));
}

static void each_listener_has_its_own_certificates(void **state)
{
	struct config_listener *l;

	(void)state;
	l = add_listener("smtp", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	add_listener("plain", CONFIG_TLS_NONE);
	l = add_listener("smtps", CONFIG_TLS_IMPLICIT);
	add_cert(l, "other.pem", "other.key");
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	assert_true(shows(0, "mx.example", NULL, NULL));
	assert_false(shows(0, "other.example", NULL, NULL));
	assert_null(tls_store_listener(store, 1));
	assert_true(shows(2, "mail.example", NULL, NULL));
	assert_true(shows(2, "other.example", NULL, NULL));
}

static void at_the_start_every_unusable_file_is_named(void **state)
{
	struct config_listener *l;
	struct config_backend *b;

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "none.pem", "none.key");
	add_cert(l, "mx.pem", "none.key");
	l = add_listener("b", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "other.key");
	l = add_listener("c", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	l->ask = CONFIG_ASK_REQUIRE;
	path_of("bad.pem", l->trust);
	b = add_backend("d", CONFIG_BACKEND_TLS_VERIFY);
	path_of("none.pem", b->tls_ca);
	b = add_backend("e", CONFIG_BACKEND_TLS_REQUIRED);
	path_of("old.pem", b->cert.cert);
	path_of("old.key", b->cert.key);
	assert_false(load());
	assert_false(tls_store_serves(store));
	assert_int_equal(report->count, 6);
	assert_error(0, "[listener a] tls_cert: @/none.pem: cannot be read: "
			"No such file or directory");
	assert_error(1, "[listener a] tls_cert: @/none.key: cannot be read: "
			"No such file or directory");
	assert_error(2, "[listener b]: @/other.key: the key is not that of "
			"the certificate in @/mx.pem: give the key that it "
			"was requested with");
	assert_non_null(
		strstr(report->errors[3].text, "[listener c] tls_ca: "));
	assert_non_null(strstr(report->errors[3].text, "/bad.pem"));
	assert_error(4, "[backend d] tls_ca: @/none.pem: cannot be read: No "
			"such file or directory");
	assert_non_null(strstr(report->errors[5].text,
			       "/old.pem: the certificate expired on "));
	for (unsigned i = 0; i < 3; i++)
		assert_null(tls_store_listener(store, i));
}

static void a_renewed_certificate_is_taken_from_the_same_file(void **state)
{
	struct config_listener *l;
	struct tls_context *before, *after;

	(void)state;
	l = add_listener("smtp", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	before = tls_store_listener(store, 0);
	write_pair("mx.pem", "mx.key", &other);
	assert_true(load());
	after = tls_store_listener(store, 0);
	assert_ptr_not_equal(before, after);
	assert_true(shows(0, "other.example", NULL, NULL));
	tls_context_unref(&before);
	tls_context_unref(&after);
}

static void an_unusable_one_is_refused_and_the_old_one_serves_on(void **state)
{
	struct config_listener *l;

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	l = add_listener("b", CONFIG_TLS_STARTTLS);
	add_cert(l, "soon.pem", "soon.key");
	assert_true(load());
	write_text("mx.pem", "half a cert");
	write_pair("soon.pem", "soon.key", &other);
	assert_false(load());
	assert_true(tls_store_serves(store));
	assert_int_equal(report->count, 1);
	assert_non_null(strstr(report->errors[0].text, "[listener a]: "));
	assert_true(shows(0, "mx.example", NULL, NULL));
	/* It does not keep the others from being renewed. */
	assert_true(shows(1, "other.example", NULL, NULL));
}

static void what_never_had_one_changes_nothing(void **state)
{
	struct config_listener *l;

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	l = add_listener("b", CONFIG_TLS_NONE);
	assert_true(load());
	write_pair("mx.pem", "mx.key", &other);
	l->tls = CONFIG_TLS_STARTTLS;
	add_cert(l, "bad.pem", "bad.pem");
	assert_false(load());
	assert_false(tls_store_serves(store));
	assert_true(shows(0, "mx.example", NULL, NULL));
	assert_null(tls_store_listener(store, 1));
}

static void a_listener_without_tls_lets_go_of_its_certificate(void **state)
{
	struct config_listener *l;

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	l->tls = CONFIG_TLS_NONE;
	l->cert_count = 0;
	assert_true(load());
	assert_null(tls_store_listener(store, 0));
}

static void sessions_are_resumed_across_listeners_and_reloads(void **state)
{
	struct tls_session *session = NULL;
	struct config_listener *l;
	bool resumed = true;

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		l = add_listener(i == 0 ? "a" : "b", CONFIG_TLS_STARTTLS);
		add_cert(l, "mx.pem", "mx.key");
	}
	assert_true(load());
	assert_true(shows(0, "mx.example", &session, &resumed));
	assert_false(resumed);
	assert_true(shows(1, "mx.example", &session, &resumed));
	assert_true(resumed);
	assert_true(load());
	assert_true(tls_store_rotate(store, MADE_NOW_S + DAY_S / 2));
	assert_true(shows(0, "mx.example", &session, &resumed));
	assert_true(resumed);
	/* After two periods the keys are gone. */
	assert_true(tls_store_rotate(store, MADE_NOW_S + 3 * DAY_S));
	assert_true(shows(0, "mx.example", &session, &resumed));
	assert_false(resumed);
	tls_session_free(&session);
}

static void without_a_lifetime_there_are_no_tickets(void **state)
{
	struct tls_session *session = NULL;
	struct config_listener *l;
	bool resumed = true;

	(void)state;
	config->tls.ticket_lifetime_ms = 0;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	assert_true(shows(0, "mx.example", &session, &resumed));
	assert_true(shows(0, "mx.example", &session, &resumed));
	assert_false(resumed);
	assert_true(tls_store_rotate(store, MADE_NOW_S));
	tls_session_free(&session);
}

static void a_backend_is_verified_by_the_name_or_its_address(void **state)
{
	static struct config_backend b;
	struct config_listener *l;
	char error[TLS_STORE_ERROR_SIZE];

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	assert_true(shows(0, "192.0.2.7", NULL, NULL));
	assert_false(shows(0, "192.0.2.8", NULL, NULL));

	/* The same without a name: its own address. */
	struct tls_context *server = tls_store_listener(store, 0);
	struct tls_context *client;
	struct talk talk = { .cut = { .max = 4096 } };

	b = *add_backend("mta", CONFIG_BACKEND_TLS_VERIFY);
	assert_true(tls_store_set_backend(store, 3, &b, &config->tls,
					  MADE_NOW_S, error));
	client = tls_store_backend(store, 3);
	talk_begin(&talk, server, client, NULL);
	talk_run(&talk);
	assert_int_equal(tls_state(talk.client.tls), TLS_OPEN);
	talk_free(&talk);
	tls_context_unref(&server);
	tls_context_unref(&client);
}

static void a_backend_keeps_its_context_when_the_new_one_is_bad(void **state)
{
	static struct config_backend b;
	struct tls_context *before, *after;
	char error[TLS_STORE_ERROR_SIZE];

	(void)state;
	add_listener("a", CONFIG_TLS_NONE);
	b = *add_backend("mta", CONFIG_BACKEND_TLS_VERIFY);
	assert_true(tls_store_set_backend(store, 9, &b, &config->tls,
					  MADE_NOW_S, error));
	before = tls_store_backend(store, 9);
	assert_non_null(before);
	path_of("bad.pem", b.tls_ca);
	assert_false(tls_store_try_backend(store, &b, &config->tls, MADE_NOW_S,
					   error));
	assert_false(tls_store_set_backend(store, 9, &b, &config->tls,
					   MADE_NOW_S, error));
	assert_non_null(strstr(error, "tls_ca: "));
	after = tls_store_backend(store, 9);
	assert_ptr_equal(before, after);
	tls_context_unref(&before);
	tls_context_unref(&after);

	/* A reload that finds the same goes on with it. */
	path_of("bad.pem", config->backends[0].tls_ca);
	assert_false(load());
	assert_true(tls_store_serves(store));
	(void)snprintf(config->backends[0].name, CONFIG_NAME_MAX, "new");
	assert_false(load());
	assert_false(tls_store_serves(store));
	tls_store_drop_backend(store, 9);
	assert_null(tls_store_backend(store, 9));
}

static void bad_rules_are_refused_for_all(void **state)
{
	struct config_listener *l;

	(void)state;
	l = add_listener("a", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	add_backend("mta", CONFIG_BACKEND_TLS_OPPORTUNISTIC);
	(void)snprintf(config->tls.ciphers, CONFIG_TEXT_MAX, "FISH");
	assert_false(load());
	assert_int_equal(report->count, 2);
	assert_non_null(strstr(report->errors[0].text,
			       "[listener a]: ciphers \"FISH\""));
	assert_non_null(strstr(report->errors[1].text,
			       "[backend mta] tls: ciphers \"FISH\""));
}

static void what_expires_soon_is_told(void **state)
{
	struct tls_store_cert cert;
	struct config_listener *l;

	(void)state;
	l = add_listener("smtp", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	add_cert(l, "soon.pem", "soon.key");
	assert_true(load());
	assert_true(tls_store_cert(store, 0, 0, &cert));
	assert_string_equal(cert.names, "mx.example,mail.example");
	assert_string_equal(cert.kind, "ECDSA");
	assert_string_equal(cert.file, l->certs[0].cert);
	assert_int_equal(tls_store_days(cert.expires_s, MADE_NOW_S), 90);
	assert_true(tls_store_cert(store, 0, 1, &cert));
	assert_string_equal(cert.names, "soon.example");
	assert_false(tls_store_cert(store, 0, 2, &cert));
	assert_int_equal(tls_store_expires_s(store, 0),
			 MADE_NOW_S + 9 * DAY_S + 5);
	tls_store_warn(store, config, MADE_NOW_S, report);
	assert_int_equal(report->count, 1);
	assert_error(0, "[listener smtp] @/soon.pem: the certificate expires "
			"on 2027-01-24, in 9 days: have it renewed");
	assert_int_equal(tls_store_days(100, 101), 0);
	assert_true(tls_store_days(INT64_MAX, 0) == UINT64_MAX);
}

static void more_names_than_fit_are_cut_off(void **state)
{
	struct tls_made many;
	struct tls_store_cert cert;
	struct config_listener *l;
	char names[1024] = "";
	size_t len = 0;

	(void)state;
	for (unsigned i = 0; i < 20; i++)
		len += (size_t)snprintf(names + len, sizeof(names) - len,
					"%sDNS:mx%02u.example",
					i > 0 ? "," : "", i);
	tls_made_new(&many, &(struct tls_wish){ .subject = "many",
						.names = names,
						.key = MADE_EC,
						.issuer = &ca });
	write_pair("mx.pem", "mx.key", &many);
	l = add_listener("smtp", CONFIG_TLS_STARTTLS);
	add_cert(l, "mx.pem", "mx.key");
	assert_true(load());
	assert_true(tls_store_cert(store, 0, 0, &cert));
	assert_in_range(strlen(cert.names), 100, TLS_STORE_NAMES_MAX - 1);
	assert_memory_equal(cert.names, "mx00.example,mx01.example,", 26);
	assert_string_equal(cert.names + strlen(cert.names) - 4, ",...");
	tls_made_free(&many);
}

static void contexts_from_memory_need_no_file(void **state)
{
	struct tls_context *context;
	struct tls_store_cert cert;
	char error[TLS_ERROR_SIZE];

	(void)state;
	context = tls_context_server(
		&(struct tls_server_settings){ .pairs = &mx.pair,
					       .pair_count = 1,
					       .now_s = MADE_NOW_S },
		error);
	assert_non_null(context);
	tls_store_put_listener(store, 5, context);
	assert_true(shows(5, "mx.example", NULL, NULL));
	assert_true(tls_store_cert(store, 5, 0, &cert));
	assert_string_equal(cert.file, "");
	tls_store_put_listener(store, 5, NULL);
	assert_null(tls_store_listener(store, 5));
}

#define STORE_TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(without_tls_there_is_no_context),
		STORE_TEST(each_listener_has_its_own_certificates),
		STORE_TEST(at_the_start_every_unusable_file_is_named),
		STORE_TEST(a_renewed_certificate_is_taken_from_the_same_file),
		STORE_TEST(
			an_unusable_one_is_refused_and_the_old_one_serves_on),
		STORE_TEST(what_never_had_one_changes_nothing),
		STORE_TEST(a_listener_without_tls_lets_go_of_its_certificate),
		STORE_TEST(sessions_are_resumed_across_listeners_and_reloads),
		STORE_TEST(without_a_lifetime_there_are_no_tickets),
		STORE_TEST(a_backend_is_verified_by_the_name_or_its_address),
		STORE_TEST(a_backend_keeps_its_context_when_the_new_one_is_bad),
		STORE_TEST(bad_rules_are_refused_for_all),
		STORE_TEST(what_expires_soon_is_told),
		STORE_TEST(more_names_than_fit_are_cut_off),
		STORE_TEST(contexts_from_memory_need_no_file),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
