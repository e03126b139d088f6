#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/load.h"

struct login_case {
	const char *about;
	const char *auth;
	const char *plain, *user, *password; /* as base64(1) writes them */
};

static const struct login_case cases[] = {
	{ "a name and a password", "joe:secret", "AGpvZQBzZWNyZXQ=", "am9l",
	  "c2VjcmV0" },
	{ "the first colon ends the name", "a:b:c", "AGEAYjpj",
	  "YQ==", "Yjpj" },
	{ "an empty password", "joe:", "AGpvZQA=", "am9l", "" },
	{ "octets beyond ASCII", "\xc3\xa9:\xff", "AMOpAP8=", "w6k=", "/w==" },
};

static void what_is_said_is_base64_of_it(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct login_case *c = &cases[i];
		struct load_login *login = load_login_new(c->auth);

		print_message("  %s\n", c->about);
		assert_string_equal(load_login_plain(login), c->plain);
		assert_string_equal(load_login_step(login, 0), c->user);
		assert_string_equal(load_login_step(login, 1), c->password);
		load_login_free(&login);
		assert_null(login);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_said_is_base64_of_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
