#include "tests/unit/tls_certs.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DAY_S = 86400 };

static void need(bool holds, const char *what)
{
	if (holds)
		return;
	(void)fprintf(stderr, "tls_certs: %s failed\n", what);
	abort();
}

static EVP_PKEY *make_key(enum tls_made_key kind)
{
	switch (kind) {
	case MADE_EC:
		return EVP_EC_gen("P-256");
	case MADE_RSA:
		return EVP_RSA_gen(2048);
	case MADE_RSA_1024:
		return EVP_RSA_gen(1024);
	}
	return NULL;
}

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509_EXTENSION *extension;
	X509V3_CTX ctx;

	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	need(extension != NULL, value);
	need(X509_add_ext(cert, extension, -1) == 1, value);
	X509_EXTENSION_free(extension);
}

static void set_times(X509 *cert, const struct tls_wish *wish)
{
	int64_t from_s = wish->from_s != 0 ? wish->from_s : MADE_NOW_S - DAY_S;
	int64_t until_s = wish->until_s != 0 ? wish->until_s
					     : MADE_NOW_S + 90 * DAY_S;

	need(ASN1_TIME_set(X509_getm_notBefore(cert), (time_t)from_s) != NULL,
	     "notBefore");
	need(ASN1_TIME_set(X509_getm_notAfter(cert), (time_t)until_s) != NULL,
	     "notAfter");
}

static struct tls_span span_of(BIO *bio)
{
	char *data;
	long len = BIO_get_mem_data(bio, &data);
	uint8_t *copy = malloc((size_t)len + 1);

	need(len > 0 && copy != NULL, "BIO");
	memcpy(copy, data, (size_t)len);
	BIO_free(bio);
	return (struct tls_span){ .data = copy, .len = (size_t)len };
}

void tls_made_free_span(struct tls_span *span)
{
	union {
		const uint8_t *given;
		uint8_t *own;
	} data = { .given = span->data };

	free(data.own);
	*span = (struct tls_span){ 0 };
}

struct tls_span tls_made_pem(const struct tls_made *made)
{
	BIO *bio = BIO_new(BIO_s_mem());

	need(PEM_write_bio_X509(bio, made->cert) == 1, "PEM");
	return span_of(bio);
}

static const char *join(const char *name, const char *suffix)
{
	char *text = NULL;

	need(asprintf(&text, "%s%s", name, suffix) > 0, "asprintf");
	return text;
}

void tls_made_new(struct tls_made *made, const struct tls_wish *wish)
{
	static long serial; /* each has its own, or OCSP could not tell */
	X509 *cert = X509_new();
	EVP_PKEY *key = make_key(wish->key);
	X509 *issuer = wish->issuer != NULL ? wish->issuer->cert : cert;
	EVP_PKEY *signer = wish->issuer != NULL ? wish->issuer->key : key;
	X509_NAME *subject = X509_NAME_new();
	BIO *bio = BIO_new(BIO_s_mem());

	need(cert != NULL && key != NULL && subject != NULL, "key");
	need(X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
					(const unsigned char *)wish->subject,
					-1, -1, 0) == 1,
	     "subject");
	(void)X509_set_version(cert, X509_VERSION_3);
	(void)ASN1_INTEGER_set(X509_get_serialNumber(cert), ++serial);
	(void)X509_set_subject_name(cert, subject);
	(void)X509_set_issuer_name(cert, wish->issuer != NULL
						 ? X509_get_subject_name(issuer)
						 : subject);
	(void)X509_set_pubkey(cert, key);
	set_times(cert, wish);
	add_extension(cert, issuer, NID_basic_constraints,
		      wish->ca ? "critical,CA:TRUE" : "CA:FALSE");
	add_extension(cert, issuer, NID_subject_key_identifier, "hash");
	if (wish->names != NULL)
		add_extension(cert, issuer, NID_subject_alt_name, wish->names);
	need(X509_sign(cert, signer, EVP_sha256()) > 0, "signature");
	need(PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1,
	     "key");
	X509_NAME_free(subject);
	*made = (struct tls_made){ .cert = cert, .key = key };
	made->pair.cert = tls_made_pem(made);
	made->pair.key = span_of(bio);
	made->pair.cert_name = join(wish->subject, ".cert");
	made->pair.key_name = join(wish->subject, ".key");
	made->pair.ocsp_name = join(wish->subject, ".ocsp");
}

static void free_name(const char *name)
{
	union {
		const char *given;
		char *own;
	} text = { .given = name };

	free(text.own);
}

void tls_made_free(struct tls_made *made)
{
	X509_free(made->cert);
	EVP_PKEY_free(made->key);
	tls_made_free_span(&made->pair.cert);
	tls_made_free_span(&made->pair.key);
	tls_made_free_span(&made->pair.ocsp);
	free_name(made->pair.cert_name);
	free_name(made->pair.key_name);
	free_name(made->pair.ocsp_name);
	*made = (struct tls_made){ 0 };
}

void tls_made_chain(struct tls_made *made, const struct tls_made *with)
{
	BIO *bio = BIO_new(BIO_s_mem());

	need(PEM_write_bio_X509(bio, made->cert) == 1, "PEM");
	need(PEM_write_bio_X509(bio, with->cert) == 1, "PEM");
	tls_made_free_span(&made->pair.cert);
	made->pair.cert = span_of(bio);
}

struct tls_span tls_made_encrypted(const struct tls_made *made)
{
	BIO *bio = BIO_new(BIO_s_mem());

	need(PEM_write_bio_PrivateKey(bio, made->key, EVP_aes_256_cbc(),
				      (const unsigned char *)"secret", 6, NULL,
				      NULL) == 1,
	     "encrypted key");
	return span_of(bio);
}

struct tls_span tls_made_ocsp(const struct tls_made *made,
			      const struct tls_made *issuer, int64_t until_s)
{
	OCSP_CERTID *id = OCSP_cert_to_id(NULL, made->cert, issuer->cert);
	OCSP_BASICRESP *basic = OCSP_BASICRESP_new();
	ASN1_TIME *from = ASN1_TIME_set(NULL, (time_t)(MADE_NOW_S - DAY_S));
	ASN1_TIME *until = ASN1_TIME_set(NULL, (time_t)until_s);
	BIO *bio = BIO_new(BIO_s_mem());
	OCSP_RESPONSE *response;
	unsigned char *der = NULL;
	int len;

	need(OCSP_basic_add1_status(basic, id, V_OCSP_CERTSTATUS_GOOD, 0, NULL,
				    from, until) != NULL,
	     "OCSP status");
	need(OCSP_basic_sign(basic, issuer->cert, issuer->key, EVP_sha256(),
			     NULL, 0) == 1,
	     "OCSP signature");
	response = OCSP_response_create(OCSP_RESPONSE_STATUS_SUCCESSFUL, basic);
	len = i2d_OCSP_RESPONSE(response, &der);
	need(len > 0 && BIO_write(bio, der, len) == len, "OCSP response");
	OPENSSL_free(der);
	OCSP_RESPONSE_free(response);
	OCSP_BASICRESP_free(basic);
	OCSP_CERTID_free(id);
	ASN1_TIME_free(from);
	ASN1_TIME_free(until);
	return span_of(bio);
}
