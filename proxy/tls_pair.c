#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proxy/tls_own.h"

/*
 * A certificate and its key, as an operator gives them: read, and told what
 * is wrong with them before any client finds out.
 */

bool tls_complain(char error[TLS_ERROR_SIZE], const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(error, TLS_ERROR_SIZE, format, args);
	va_end(args);
	ERR_clear_error();
	return false;
}

int64_t tls_time_s(const ASN1_TIME *time)
{
	struct tm tm;

	if (time == NULL || ASN1_TIME_to_tm(time, &tm) != 1)
		return INT64_MAX;
	return (int64_t)timegm(&tm);
}

void tls_date(char date[TLS_DATE_SIZE], int64_t time_s)
{
	time_t time = (time_t)time_s;
	struct tm tm;

	if (time_s == INT64_MAX || gmtime_r(&time, &tm) == NULL ||
	    strftime(date, TLS_DATE_SIZE, "%Y-%m-%d", &tm) == 0)
		(void)snprintf(date, TLS_DATE_SIZE, "never");
}

/* ---- the certificate ---- */

static BIO *bio_of(struct tls_span span)
{
	return span.len > INT_MAX ? NULL
				  : BIO_new_mem_buf(span.data, (int)span.len);
}

/* The certificates behind the first; an end that is none is no error. */
static bool read_chain(struct tls_certificate *c, BIO *bio)
{
	unsigned long end;

	c->chain = sk_X509_new_null();
	if (c->chain == NULL)
		return false;
	for (;;) {
		X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);

		if (cert == NULL)
			break;
		if (sk_X509_push(c->chain, cert) <= 0) {
			X509_free(cert);
			return false;
		}
	}
	end = ERR_peek_last_error();
	ERR_clear_error();
	return ERR_GET_LIB(end) == ERR_LIB_PEM &&
	       ERR_GET_REASON(end) == PEM_R_NO_START_LINE;
}

static bool read_cert(struct tls_certificate *c, const struct tls_pair *pair,
		      char error[TLS_ERROR_SIZE])
{
	BIO *bio = bio_of(pair->cert);
	bool whole;

	ERR_clear_error();
	c->cert = bio != NULL ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	if (c->cert == NULL) {
		BIO_free(bio);
		return tls_complain(error,
				    "%s: no certificate in it: need PEM, from "
				    "-----BEGIN CERTIFICATE----- on (%s)",
				    pair->cert_name, tls_openssl_error());
	}
	whole = read_chain(c, bio);
	BIO_free(bio);
	if (!whole) {
		return tls_complain(error,
				    "%s: certificate number %d in it is "
				    "damaged",
				    pair->cert_name, sk_X509_num(c->chain) + 2);
	}
	c->expires_s = tls_time_s(X509_get0_notAfter(c->cert));
	return true;
}

static bool check_time(const struct tls_certificate *c,
		       const struct tls_pair *pair, int64_t now_s,
		       char error[TLS_ERROR_SIZE])
{
	int64_t from_s = tls_time_s(X509_get0_notBefore(c->cert));
	char date[TLS_DATE_SIZE];

	if (now_s != 0 && c->expires_s <= now_s) {
		tls_date(date, c->expires_s);
		return tls_complain(error,
				    "%s: the certificate expired on %s: have "
				    "it renewed",
				    pair->cert_name, date);
	}
	if (now_s != 0 && from_s > now_s) {
		tls_date(date, from_s);
		return tls_complain(error,
				    "%s: the certificate is valid only from "
				    "%s on: is this machine's clock right?",
				    pair->cert_name, date);
	}
	return true;
}

/* ---- the key ---- */

/* Called when a key is encrypted: note that, and have no password. */
static int no_password(char *buf, int size, int writing, void *asked)
{
	(void)writing;
	*(bool *)asked = true;
	if (size > 0)
		buf[0] = '\0';
	return -1;
}

static bool read_key(struct tls_certificate *c, const struct tls_pair *pair,
		     char error[TLS_ERROR_SIZE])
{
	BIO *bio = bio_of(pair->key);
	bool asked = false;

	ERR_clear_error();
	if (bio != NULL)
		c->key = PEM_read_bio_PrivateKey(bio, NULL, no_password,
						 &asked);
	BIO_free(bio);
	if (c->key != NULL)
		return true;
	if (asked) {
		return tls_complain(error,
				    "%s: the key is encrypted, and weir asks "
				    "nobody for a password: write it without "
				    "one (openssl pkey -in FILE -out NEW), "
				    "readable for root only",
				    pair->key_name);
	}
	return tls_complain(error,
			    "%s: no private key in it: need PEM, from "
			    "-----BEGIN PRIVATE KEY----- on",
			    pair->key_name);
}

/* The two do not fit; perhaps one of the chain was meant. */
static bool complain_of_key(const struct tls_certificate *c,
			    const struct tls_pair *pair,
			    char error[TLS_ERROR_SIZE])
{
	int at = 0;

	while (at < sk_X509_num(c->chain) &&
	       X509_check_private_key(sk_X509_value(c->chain, at), c->key) != 1)
		at++;
	if (at < sk_X509_num(c->chain)) {
		return tls_complain(error,
				    "%s: certificate number %d in it is that "
				    "of the key in %s: it must come first",
				    pair->cert_name, at + 2, pair->key_name);
	}
	return tls_complain(error,
			    "%s: the key is not that of the certificate in "
			    "%s: give the key that it was requested with",
			    pair->key_name, pair->cert_name);
}

static bool check_key(struct tls_certificate *c, const struct tls_pair *pair,
		      char error[TLS_ERROR_SIZE])
{
	if (X509_check_private_key(c->cert, c->key) != 1)
		return complain_of_key(c, pair, error);
	switch (EVP_PKEY_get_base_id(c->key)) {
	case EVP_PKEY_EC:
		c->kind = TLS_KEY_EC;
		return true;
	case EVP_PKEY_RSA:
	case EVP_PKEY_RSA_PSS:
		c->kind = TLS_KEY_RSA;
		return true;
	case EVP_PKEY_ED25519:
	case EVP_PKEY_ED448:
		c->kind = TLS_KEY_ED;
		return true;
	default:
		return tls_complain(error,
				    "%s: TLS knows no such kind of key: need "
				    "ECDSA, RSA or Ed25519",
				    pair->key_name);
	}
}

/* ---- the OCSP response ---- */

/* The part of the response that is about this certificate, or NULL. */
static OCSP_SINGLERESP *single_for(OCSP_BASICRESP *basic, const X509 *cert)
{
	for (int i = 0; i < OCSP_resp_count(basic); i++) {
		OCSP_SINGLERESP *single = OCSP_resp_get0(basic, i);
		ASN1_INTEGER *serial = NULL;
		union {
			const OCSP_CERTID *given;
			OCSP_CERTID *own;
		} id = { .given = OCSP_SINGLERESP_get0_id(single) };

		/* Its argument ought to be const: nothing is written. */
		if (OCSP_id_get0_info(NULL, NULL, NULL, &serial, id.own) == 1 &&
		    ASN1_INTEGER_cmp(serial, X509_get0_serialNumber(cert)) == 0)
			return single;
	}
	return NULL;
}

static bool check_response(struct tls_certificate *c, OCSP_BASICRESP *basic,
			   const struct tls_pair *pair, int64_t now_s,
			   char error[TLS_ERROR_SIZE])
{
	OCSP_SINGLERESP *single = single_for(basic, c->cert);
	ASN1_GENERALIZEDTIME *until = NULL;
	char date[TLS_DATE_SIZE];

	if (single == NULL) {
		return tls_complain(error,
				    "%s: the OCSP response is about another "
				    "certificate than that in %s",
				    pair->ocsp_name, pair->cert_name);
	}
	(void)OCSP_single_get0_status(single, NULL, NULL, NULL, &until);
	c->ocsp_until_s = tls_time_s(until);
	if (now_s == 0 || c->ocsp_until_s > now_s)
		return true;
	tls_date(date, c->ocsp_until_s);
	return tls_complain(error,
			    "%s: the OCSP response was good until %s: fetch a "
			    "new one",
			    pair->ocsp_name, date);
}

static bool read_ocsp(struct tls_certificate *c, const struct tls_pair *pair,
		      int64_t now_s, char error[TLS_ERROR_SIZE])
{
	const unsigned char *at = pair->ocsp.data;
	OCSP_RESPONSE *response = NULL;
	OCSP_BASICRESP *basic = NULL;
	bool good;

	if (pair->ocsp.len == 0)
		return true;
	if (pair->ocsp.len <= LONG_MAX)
		response = d2i_OCSP_RESPONSE(NULL, &at, (long)pair->ocsp.len);
	if (response != NULL &&
	    OCSP_response_status(response) == OCSP_RESPONSE_STATUS_SUCCESSFUL)
		basic = OCSP_response_get1_basic(response);
	OCSP_RESPONSE_free(response);
	if (basic == NULL) {
		return tls_complain(error,
				    "%s: no successful OCSP response in it: "
				    "need DER, as openssl ocsp -respout FILE "
				    "writes it",
				    pair->ocsp_name);
	}
	good = check_response(c, basic, pair, now_s, error);
	OCSP_BASICRESP_free(basic);
	if (!good)
		return false;
	c->ocsp = OPENSSL_memdup(pair->ocsp.data, pair->ocsp.len);
	c->ocsp_len = pair->ocsp.len;
	if (c->ocsp == NULL)
		return tls_complain(error, "%s: out of memory",
				    pair->ocsp_name);
	return true;
}

bool tls_certificate_parse(struct tls_certificate *c,
			   const struct tls_pair *pair, int64_t now_s,
			   char error[TLS_ERROR_SIZE])
{
	*c = (struct tls_certificate){ .ocsp_until_s = INT64_MAX };
	return read_cert(c, pair, error) && check_time(c, pair, now_s, error) &&
	       read_key(c, pair, error) && check_key(c, pair, error) &&
	       read_ocsp(c, pair, now_s, error);
}

void tls_certificate_free(struct tls_certificate *c)
{
	X509_free(c->cert);
	EVP_PKEY_free(c->key);
	sk_X509_pop_free(c->chain, X509_free);
	OPENSSL_free(c->ocsp);
	*c = (struct tls_certificate){ 0 };
}

/* ---- its names ---- */

static bool add_host(struct tls_hosts *hosts, const unsigned char *name,
		     size_t len, unsigned at)
{
	struct tls_host *host;

	if (hosts->count == hosts->room) {
		size_t room = hosts->room > 0 ? 2 * hosts->room : 8;
		struct tls_host *more = OPENSSL_realloc(
			hosts->list, room * sizeof(*hosts->list));

		if (more == NULL)
			return false;
		hosts->list = more;
		hosts->room = room;
	}
	host = &hosts->list[hosts->count];
	host->name = OPENSSL_zalloc(len + 1);
	if (host->name == NULL)
		return false;
	for (size_t i = 0; i < len; i++)
		host->name[i] = (char)tolower(name[i]);
	host->at = at;
	hosts->count++;
	return true;
}

bool tls_certificate_names(const struct tls_certificate *c, unsigned at,
			   struct tls_hosts *hosts)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(c->cert, NID_subject_alt_name,
						NULL, NULL);
	bool good = names != NULL && sk_GENERAL_NAME_num(names) > 0;

	for (int i = 0; good && i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const unsigned char *text;
		size_t len;

		if (name->type != GEN_DNS)
			continue;
		text = ASN1_STRING_get0_data(name->d.dNSName);
		len = (size_t)ASN1_STRING_length(name->d.dNSName);
		/* What no client can ask for is not to be found. */
		if (len > 0 && len < TLS_NAME_MAX &&
		    memchr(text, '\0', len) == NULL)
			good = add_host(hosts, text, len, at);
	}
	GENERAL_NAMES_free(names);
	return good;
}

void tls_hosts_free(struct tls_hosts *hosts)
{
	for (size_t i = 0; i < hosts->count; i++)
		OPENSSL_free(hosts->list[i].name);
	OPENSSL_free(hosts->list);
	*hosts = (struct tls_hosts){ 0 };
}
