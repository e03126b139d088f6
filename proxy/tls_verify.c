#include <assert.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "proxy/tls_own.h"

/*
 * Peers' certificates: who vouches for them, what is wrong with them.
 */

/* ---- CA certificates ---- */

/* Returns how many there were; -1: one of them was damaged. */
static int read_authorities(struct tls_trust *trust, BIO *bio)
{
	int count = 0;

	for (;; count++) {
		X509 *cert = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL);
		X509_NAME *name;
		bool good;

		if (cert == NULL)
			break;
		name = X509_NAME_dup(X509_get_subject_name(cert));
		good = name != NULL &&
		       X509_STORE_add_cert(trust->store, cert) == 1;
		X509_free(cert);
		if (!good || sk_X509_NAME_push(trust->names, name) <= 0) {
			X509_NAME_free(name);
			return -1;
		}
	}
	if (ERR_GET_LIB(ERR_peek_last_error()) != ERR_LIB_PEM ||
	    ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
		return -1;
	return count;
}

struct tls_trust *tls_trust_new(struct tls_span pem, const char *name,
				char error[TLS_ERROR_SIZE])
{
	struct tls_trust *trust = OPENSSL_zalloc(sizeof(*trust));
	BIO *bio = NULL;
	int count = -1;

	ERR_clear_error();
	if (trust != NULL) {
		atomic_init(&trust->refs, 1);
		trust->store = X509_STORE_new();
		trust->names = sk_X509_NAME_new_null();
	}
	if (pem.len <= INT_MAX)
		bio = BIO_new_mem_buf(pem.data, (int)pem.len);
	if (trust != NULL && trust->store != NULL && trust->names != NULL &&
	    bio != NULL &&
	    EVP_Digest(pem.data, pem.len, trust->id, NULL, EVP_sha256(),
		       NULL) == 1)
		count = read_authorities(trust, bio);
	BIO_free(bio);
	if (count > 0) {
		ERR_clear_error();
		return trust;
	}
	tls_trust_unref(&trust);
	(void)tls_complain(error,
			   count == 0 ? "%s: no CA certificate in it: need "
					"PEM (%s)"
				      : "%s: a CA certificate in it is "
					"damaged (%s)",
			   name, tls_openssl_error());
	return NULL;
}

struct tls_trust *tls_trust_ref(struct tls_trust *trust)
{
	unsigned had = atomic_fetch_add(&trust->refs, 1);

	assert(had > 0);
	return trust;
}

void tls_trust_unref(struct tls_trust **trust)
{
	struct tls_trust *old = *trust;

	*trust = NULL;
	if (old == NULL || atomic_fetch_sub(&old->refs, 1) > 1)
		return;
	X509_STORE_free(old->store);
	sk_X509_NAME_pop_free(old->names, X509_NAME_free);
	OPENSSL_free(old);
}

/* ---- words ---- */

void tls_subject(const X509 *cert, char subject[TLS_SUBJECT_MAX])
{
	BIO *bio = BIO_new(BIO_s_mem());
	int len = 0;

	/* This form escapes controls and whatever is not ASCII. */
	if (bio != NULL && X509_NAME_print_ex(bio, X509_get_subject_name(cert),
					      0, XN_FLAG_RFC2253) > 0)
		len = BIO_read(bio, subject, TLS_SUBJECT_MAX - 1);
	subject[len > 0 ? len : 0] = '\0';
	BIO_free(bio);
}

/* Octets of a peer's, made harmless. */
static void append(char *text, size_t size, const unsigned char *from,
		   size_t len)
{
	size_t at = strlen(text);

	if (at > 0 && at + 3 < size) {
		memcpy(text + at, ", ", 3);
		at += 2;
	}
	for (size_t i = 0; i < len && at + 1 < size; i++) {
		text[at] = '?';
		if (from[i] > ' ' && from[i] < 0x7f)
			memcpy(text + at, from + i, 1);
		at++;
	}
	text[at] = '\0';
}

/* The host names of a certificate, as far as there is room. */
static void list_names(const X509 *cert, char *text, size_t size)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name,
						NULL, NULL);

	text[0] = '\0';
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);

		if (name->type == GEN_DNS) {
			append(text, size,
			       ASN1_STRING_get0_data(name->d.dNSName),
			       (size_t)ASN1_STRING_length(name->d.dNSName));
		}
	}
	GENERAL_NAMES_free(names);
	if (text[0] == '\0')
		append(text, size, (const unsigned char *)"nobody", 6);
}

static void explain(struct tls *t, X509_STORE_CTX *chain)
{
	const X509 *cert = X509_STORE_CTX_get_current_cert(chain);
	int error = X509_STORE_CTX_get_error(chain);
	char subject[TLS_SUBJECT_MAX] = "";
	char names[TLS_SUBJECT_MAX];
	char date[TLS_DATE_SIZE];

	if (cert == NULL)
		cert = X509_STORE_CTX_get0_cert(chain);
	if (cert != NULL)
		tls_subject(cert, subject);
	if (cert != NULL && (error == X509_V_ERR_HOSTNAME_MISMATCH ||
			     error == X509_V_ERR_IP_ADDRESS_MISMATCH)) {
		list_names(cert, names, sizeof(names));
		tls_set_reason(t, "the certificate is for %s, not for %s",
			       names, t->context->name);
	} else if (cert != NULL && error == X509_V_ERR_CERT_HAS_EXPIRED) {
		tls_date(date, tls_time_s(X509_get0_notAfter(cert)));
		tls_set_reason(t, "the certificate of %s expired on %s",
			       subject, date);
	} else {
		tls_set_reason(t, "the certificate of %s: %s", subject,
			       X509_verify_cert_error_string(error));
	}
}

/* ---- the check ---- */

static bool is_pinned(const struct tls_context *c, const X509 *cert)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned char *der = NULL;
	unsigned len = 0;
	int der_len = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &der);
	bool good = der_len > 0 &&
		    EVP_Digest(der, (size_t)der_len, digest, &len, EVP_sha256(),
			       NULL) == 1 &&
		    len == TLS_PIN_SIZE;

	OPENSSL_free(der);
	for (size_t i = 0; good && i < c->pin_count; i++) {
		if (memcmp(c->pins[i].sha256, digest, TLS_PIN_SIZE) == 0)
			return true;
	}
	return false;
}

int tls_verify(X509_STORE_CTX *chain, void *arg)
{
	const struct tls_context *c = arg;
	SSL *ssl = X509_STORE_CTX_get_ex_data(
		chain, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *t = SSL_get_app_data(ssl);

	if (!c->server && c->check == TLS_CHECK_NOTHING)
		return 1;
	if (!c->server && c->check == TLS_CHECK_PIN) {
		const X509 *cert = X509_STORE_CTX_get0_cert(chain);

		if (cert != NULL && is_pinned(c, cert)) {
			X509_STORE_CTX_set_error(chain, X509_V_OK);
			return 1;
		}
		X509_STORE_CTX_set_error(chain,
					 X509_V_ERR_APPLICATION_VERIFICATION);
		tls_set_reason(t, "the public key of the certificate is none "
				  "of those pinned");
		return 0;
	}
	if (c->trust == NULL) {
		/* Whoever they are: nobody vouches for them. */
		X509_STORE_CTX_set_error(
			chain, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
		return 1;
	}
	if (X509_verify_cert(chain) > 0)
		return 1;
	if (c->server && c->ask == TLS_ASK_LOG)
		return 1;
	explain(t, chain);
	return 0;
}
