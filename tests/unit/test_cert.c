#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/cert.h"

struct name_case {
	const char *about;
	const char *names;
	const char *host;    /* or NULL */
	const char *address; /* or NULL */
	const char *other;   /* a host that it is not for */
};

static const struct name_case cases[] = {
	{ "one host", "mx.test", "mx.test", NULL, "mx2.test" },
	{ "the second one", "a.test,mx.test", "mx.test", NULL, "test" },
	{ "an address among them", "mx.test,192.0.2.1", "mx.test", "192.0.2.1",
	  "a.test" },
	{ "an address alone", "2001:db8::1", NULL, "2001:db8::1", "a.test" },
	{ "those of nobody who says any", CERT_NAMES, "localhost", "127.0.0.1",
	  "mx.test" },
};

static void it_is_for_its_names_and_for_no_others(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct name_case *c = &cases[i];
		X509 *cert = NULL;
		EVP_PKEY *key = NULL;

		print_message("  %s\n", c->about);
		cert_make(c->names, &cert, &key);
		if (c->host != NULL)
			assert_int_equal(
				X509_check_host(cert, c->host, 0, 0, NULL), 1);
		if (c->address != NULL)
			assert_int_equal(X509_check_ip_asc(cert, c->address, 0),
					 1);
		assert_int_equal(X509_check_host(cert, c->other, 0, 0, NULL),
				 0);
		X509_free(cert);
		EVP_PKEY_free(key);
	}
}

static void it_signs_itself_and_is_valid_now(void **state)
{
	X509 *cert = NULL;
	EVP_PKEY *key = NULL;

	(void)state;
	cert_make("mx.test", &cert, &key);
	assert_int_equal(X509_verify(cert, key), 1);
	assert_int_equal(X509_check_private_key(cert, key), 1);
	assert_int_equal(X509_cmp_current_time(X509_get0_notBefore(cert)), -1);
	assert_int_equal(X509_cmp_current_time(X509_get0_notAfter(cert)), 1);
	X509_free(cert);
	EVP_PKEY_free(key);
}

static void two_have_two_serial_numbers(void **state)
{
	X509 *certs[2] = { NULL, NULL };
	EVP_PKEY *keys[2] = { NULL, NULL };

	(void)state;
	cert_make("mx.test", &certs[0], &keys[0]);
	cert_make("mx.test", &certs[1], &keys[1]);
	assert_int_not_equal(ASN1_INTEGER_cmp(X509_get0_serialNumber(certs[0]),
					      X509_get0_serialNumber(certs[1])),
			     0);
	for (size_t i = 0; i < 2; i++) {
		X509_free(certs[i]);
		EVP_PKEY_free(keys[i]);
	}
}

static void it_is_written_for_its_owner_and_read_again(void **state)
{
	char path[] = "/tmp/weir-test-cert.XXXXXX";
	int fd = mkstemp(path);
	struct stat st;
	X509 *cert = NULL;
	EVP_PKEY *key = NULL;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(fchmod(fd, 0644), 0);
	assert_int_equal(close(fd), 0);
	cert_make("mx.test", &cert, &key);
	assert_int_equal(cert_write(path, cert, key), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);

	FILE *in = fopen(path, "re");

	assert_non_null(in);
	EVP_PKEY *key_read = PEM_read_PrivateKey(in, NULL, NULL, NULL);
	X509 *cert_read = PEM_read_X509(in, NULL, NULL, NULL);

	assert_int_equal(EVP_PKEY_eq(key, key_read), 1);
	assert_int_equal(X509_cmp(cert, cert_read), 0);
	assert_int_equal(fclose(in), 0);
	assert_int_equal(unlink(path), 0);
	X509_free(cert);
	X509_free(cert_read);
	EVP_PKEY_free(key);
	EVP_PKEY_free(key_read);
}

static void a_place_that_is_none_is_an_error(void **state)
{
	X509 *cert = NULL;
	EVP_PKEY *key = NULL;

	(void)state;
	cert_make("mx.test", &cert, &key);
	assert_int_equal(cert_write("/nonexistent/cert.pem", cert, key),
			 -ENOENT);
	X509_free(cert);
	EVP_PKEY_free(key);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_for_its_names_and_for_no_others),
		cmocka_unit_test(it_signs_itself_and_is_valid_now),
		cmocka_unit_test(two_have_two_serial_numbers),
		cmocka_unit_test(it_is_written_for_its_owner_and_read_again),
		cmocka_unit_test(a_place_that_is_none_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
