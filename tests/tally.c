#include "tests/tally.h"

#include <assert.h>
#include <err.h>
#include <string.h>

void tally_init(struct tally *t)
{
	*t = (struct tally){ 0 };
	/* Fetched once: EVP_sha256() makes every init look it up again. */
	t->md = EVP_MD_fetch(NULL, "SHA2-256", NULL);
	t->ctx = EVP_MD_CTX_new();
	if (t->md == NULL || t->ctx == NULL)
		errx(1, "libcrypto has no SHA-256");
}

void tally_free(struct tally *t)
{
	EVP_MD_CTX_free(t->ctx);
	EVP_MD_free(t->md);
	*t = (struct tally){ 0 };
}

void tally_mark(struct tally *t, const char *id, size_t id_len,
		const uint8_t body_sha[TALLY_SHA_OCTETS],
		uint8_t mark[TALLY_SHA_OCTETS])
{
	int ok = EVP_DigestInit_ex2(t->ctx, t->md, NULL);

	ok &= EVP_DigestUpdate(t->ctx, id, id_len);
	ok &= EVP_DigestUpdate(t->ctx, "", 1);
	ok &= EVP_DigestUpdate(t->ctx, body_sha, TALLY_SHA_OCTETS);
	ok &= EVP_DigestFinal_ex(t->ctx, mark, NULL);
	assert(ok == 1);
	(void)ok;
}

void tally_add(struct tally *t, const uint8_t mark[TALLY_SHA_OCTETS])
{
	unsigned carry = 0;

	for (size_t i = 0; i < 4; i++) {
		uint64_t word = 0;
		uint64_t sum = 0;

		/* The mark is big-endian, the sum's words are not. */
		for (size_t k = 0; k < 8; k++)
			word = word << 8 | mark[(3 - i) * 8 + k];
		unsigned over = __builtin_add_overflow(t->sum[i], word, &sum);
		over |= __builtin_add_overflow(sum, (uint64_t)carry, &sum);
		t->sum[i] = sum;
		carry = over;
	}
	t->count++;
}

static void put_hex(uint8_t octet, char *out)
{
	static const char digits[] = "0123456789abcdef";

	out[0] = digits[octet >> 4];
	out[1] = digits[octet & 15];
}

void tally_sha_hex(const uint8_t sha[TALLY_SHA_OCTETS],
		   char hex[TALLY_HEX_SIZE])
{
	for (size_t i = 0; i < TALLY_SHA_OCTETS; i++)
		put_hex(sha[i], hex + i * 2);
	hex[TALLY_HEX_SIZE - 1] = '\0';
}

void tally_hex(const struct tally *t, char hex[TALLY_HEX_SIZE])
{
	uint8_t octets[TALLY_SHA_OCTETS];

	for (size_t i = 0; i < TALLY_SHA_OCTETS; i++)
		octets[i] = (uint8_t)(t->sum[3 - i / 8] >> (56 - i % 8 * 8));
	tally_sha_hex(octets, hex);
}
