#include "proxy/xclient.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum {
	ADDRESS_MAX = 5 + CIDR_ADDR_TEXT_MAX, /* "IPV6:", and the NUL */
};

static const char unavailable[] = "[UNAVAILABLE]";

/* One attribute's value, as it is written. */
struct value {
	size_t len;
	char text[XCLIENT_VALUE_MAX];
};

static_assert(sizeof("XCLIENT NAME=[UNAVAILABLE] ADDR= PORT=[UNAVAILABLE] "
		     "PROTO=ESMTP HELO= LOGIN=[UNAVAILABLE] DESTADDR= "
		     "DESTPORT=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]\r\n") +
			      XCLIENT_VALUE_MAX + 2UL * ADDRESS_MAX <=
		      XCLIENT_LINE_MAX,
	      "the longest of each fits");

/* Plain words: letters, digits and brackets stand for themselves in xtext. */
static void set(struct value *v, const char *words)
{
	v->len = strlen(words);
	assert(v->len <= sizeof(v->text));
	memcpy(v->text, words, v->len);
}

/* xtext: RFC 3461, section 4. */
static void set_xtext(struct value *v, const char *text, size_t len)
{
	static const char hex[] = "0123456789ABCDEF";

	v->len = 0;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];
		bool plain = c > ' ' && c < 0x7f && c != '+' && c != '=';

		if (sizeof(v->text) - v->len < (plain ? 1 : 3)) {
			set(v, unavailable);
			return;
		}
		if (plain) {
			v->text[v->len++] = (char)c;
			continue;
		}
		v->text[v->len++] = '+';
		v->text[v->len++] = hex[c >> 4];
		v->text[v->len++] = hex[c & 15];
	}
	if (len == 0)
		set(v, unavailable);
}

static void set_address(struct value *v, const struct cidr_addr *addr)
{
	static const struct cidr_addr unknown = { { 0 } };
	char text[ADDRESS_MAX] = "IPV6:";

	if (cidr_addr_equal(addr, &unknown)) {
		set(v, unavailable);
		return;
	}
	(void)cidr_addr_format(addr, text + 5, sizeof(text) - 5);
	set(v, cidr_addr_is_v4(addr) ? text + 5 : text);
}

static void set_port(struct value *v, uint16_t port)
{
	char digits[8];

	(void)snprintf(digits, sizeof(digits), "%u", (unsigned)port);
	set(v, port != 0 ? digits : unavailable);
}

static void set_value(struct value *v, enum smtp_xclient attribute,
		      const struct xclient *who)
{
	switch (attribute) {
	case SMTP_XCLIENT_ADDR:
		set_address(v, &who->addr);
		return;
	case SMTP_XCLIENT_PORT:
		set_port(v, who->port);
		return;
	case SMTP_XCLIENT_PROTO:
		set(v, who->esmtp ? "ESMTP" : "SMTP");
		return;
	case SMTP_XCLIENT_HELO:
		set_xtext(v, who->helo, who->helo_len);
		return;
	case SMTP_XCLIENT_DESTADDR:
		set_address(v, &who->dest);
		return;
	case SMTP_XCLIENT_DESTPORT:
		set_port(v, who->dest_port);
		return;
	case SMTP_XCLIENT_NAME:
	case SMTP_XCLIENT_LOGIN:
	case SMTP_XCLIENT_REVERSE_NAME:
	case SMTP_XCLIENT_BITS:
		break;
	}
	set(v, unavailable);
}

static void put(char *buf, size_t *len, const char *text, size_t text_len)
{
	assert(text_len <= XCLIENT_LINE_MAX - *len);
	memcpy(buf + *len, text, text_len);
	*len += text_len;
}

size_t xclient_write(char buf[static XCLIENT_LINE_MAX], unsigned attributes,
		     const struct xclient *who)
{
	static const struct xclient nobody = { .esmtp = true };
	size_t len = 0;

	assert(who->helo_len <= sizeof(who->helo));
	if ((attributes & SMTP_XCLIENT_ADDR) == 0)
		return 0;
	if (who->local)
		who = &nobody;
	put(buf, &len, "XCLIENT", 7);
	for (unsigned i = 0; i < SMTP_XCLIENT_BITS; i++) {
		enum smtp_xclient attribute = (enum smtp_xclient)(1U << i);
		const char *name = smtp_xclient_name(attribute);
		struct value value;

		if ((attributes & attribute) == 0)
			continue;
		set_value(&value, attribute, who);
		put(buf, &len, " ", 1);
		put(buf, &len, name, strlen(name));
		put(buf, &len, "=", 1);
		put(buf, &len, value.text, value.len);
	}
	put(buf, &len, "\r\n", 2);
	return len;
}
