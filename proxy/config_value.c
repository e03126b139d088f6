#include "proxy/config_own.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy/tls_load.h"

enum {
	FILE_SIZE_MAX = 64 << 20,
	NETS_MAX = 1 << 20, /* networks of one list, its files included */
	SECOND = 1000,
	MINUTE = 60 * SECOND,
	HOUR = 60 * MINUTE,
};

static void *field_of(const struct config_put *p)
{
	return (char *)p->base + p->key->offset;
}

/* Whatever its width: uint8_t, bool, an enum, uint32_t or 64 bits. */
static void store(struct config_put *p, uint64_t n)
{
	uint8_t narrow = (uint8_t)n;
	uint32_t wide = (uint32_t)n;

	if (p->key->width == sizeof(narrow)) {
		assert(n <= UINT8_MAX);
		memcpy(field_of(p), &narrow, sizeof(narrow));
		return;
	}
	if (p->key->width == sizeof(wide)) {
		assert(n <= UINT32_MAX);
		memcpy(field_of(p), &wide, sizeof(wide));
		return;
	}
	assert(p->key->width == sizeof(n));
	memcpy(field_of(p), &n, sizeof(n));
}

static bool store_within(struct config_put *p, uint64_t n)
{
	if (n < p->key->min || n > p->key->max)
		return false;
	store(p, n);
	return true;
}

static bool store_text(struct config_put *p, struct config_span s)
{
	char *field = field_of(p);

	assert(s.len < p->key->width);
	memcpy(field, s.at, s.len);
	field[s.len] = '\0';
	return true;
}

static bool put_count(struct config_put *p)
{
	uint64_t n;

	return config_parse_number(p->text, &n) && store_within(p, n);
}

static bool put_ceiling(struct config_put *p)
{
	if (!config_span_is(p->text, "auto"))
		return put_count(p);
	store(p, LIMIT_MAX);
	return true;
}

static bool put_duration(struct config_put *p)
{
	uint64_t n;

	return config_parse_quantity(p->text, config_time_units, &n) &&
	       store_within(p, n);
}

static bool put_size(struct config_put *p)
{
	uint64_t n;

	return config_parse_quantity(p->text, config_size_units, &n) &&
	       store_within(p, n);
}

static bool put_percent(struct config_put *p)
{
	struct config_span s = p->text;
	uint64_t n;

	if (s.len > 0 && s.at[s.len - 1] == '%')
		s.len--;
	else if (!config_span_is(s, "0"))
		return false;
	return config_parse_number(s, &n) && store_within(p, n);
}

/* "off", "30/m", "30/m burst 10" */
static bool put_rate(struct config_put *p)
{
	enum { RATE_MAX = 1000000 };
	static const char letters[] = { 's', 'm', 'h' };
	static const uint32_t periods[] = { SECOND, MINUTE, HOUR };
	struct admission_rate_limit limit = { 0 };
	struct config_span rest = p->text, unit;
	struct config_span word = config_next_word(&rest);
	struct config_span digits = config_cut(word, '/', &unit);
	uint64_t count = 0, burst = 0;

	if (config_span_is(p->text, "off")) {
		memcpy(field_of(p), &limit, sizeof(limit));
		return true;
	}
	if (!config_parse_number(digits, &count) || count < 1 ||
	    count > RATE_MAX || unit.len != 1)
		return false;
	for (size_t i = 0; i < sizeof(letters); i++) {
		if (unit.at[0] == letters[i])
			limit.period_ms = periods[i];
	}
	word = config_next_word(&rest);
	if (word.len > 0 &&
	    (!config_span_is(word, "burst") ||
	     !config_parse_number(config_next_word(&rest), &burst) ||
	     burst < 1 || burst > RATE_MAX || config_next_word(&rest).len > 0))
		return false;
	limit.count = (uint32_t)count;
	limit.burst = (uint32_t)burst;
	assert(p->key->width == sizeof(limit));
	if (limit.period_ms > 0)
		memcpy(field_of(p), &limit, sizeof(limit));
	return limit.period_ms > 0;
}

/* Octal, as of chmod(1). */
static bool put_mode(struct config_put *p)
{
	uint64_t mode = 0;

	if (p->text.len < 3 || p->text.len > 4)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		char c = p->text.at[i];

		if (c < '0' || c > '7')
			return false;
		mode = mode * 8 + (uint64_t)(c - '0');
	}
	return store_within(p, mode);
}

static bool put_word(struct config_put *p)
{
	for (unsigned i = 0; p->key->words[i] != NULL; i++) {
		if (config_span_is(p->text, p->key->words[i])) {
			store(p, i + p->key->min);
			return true;
		}
	}
	return false;
}

/* A domain or address literal (RFC 5321, section 2.3.5, 4.1.3). */
static bool put_host(struct config_put *p)
{
	enum { LABEL_MAX = 63 };
	struct config_span s = p->text;
	size_t label = 0;

	if (s.len >= CONFIG_HOST_MAX)
		return false;
	if (s.len > 2 && s.at[0] == '[' && s.at[s.len - 1] == ']') {
		struct cidr_addr addr;
		struct config_span inner = { s.at + 1, s.len - 2 };

		if (inner.len > 5 && memcmp(inner.at, "IPv6:", 5) == 0) {
			inner.at += 5;
			inner.len -= 5;
		}
		return cidr_addr_parse(inner.at, inner.len, &addr) &&
		       store_text(p, s);
	}
	for (size_t i = 0; i < s.len; i++) {
		bool dot = s.at[i] == '.';

		if (!dot && !config_is_alnum(s.at[i]) && s.at[i] != '-' &&
		    s.at[i] != '_')
			return false;
		if ((dot && label == 0) || label == LABEL_MAX)
			return false;
		label = dot ? 0 : label + 1;
	}
	if (s.len > 0 && label == 0)
		return false;
	return store_text(p, s);
}

/* Someone to look for in a certificate: no literal, but an address. */
static bool put_peer(struct config_put *p)
{
	struct cidr_addr addr;

	if (cidr_addr_parse(p->text.at, p->text.len, &addr))
		return store_text(p, p->text);
	return (p->text.len == 0 || p->text.at[0] != '[') && put_host(p);
}

static bool put_path(struct config_put *p)
{
	if (p->text.len < 2 || p->text.at[0] != '/' ||
	    p->text.len > p->key->max)
		return false;
	return store_text(p, p->text);
}

static bool put_user(struct config_put *p)
{
	if (p->text.len > p->key->max)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		char c = p->text.at[i];

		if (!config_is_alnum(c) && (strchr("._-", c) == NULL || i == 0))
			return false;
	}
	return store_text(p, p->text);
}

static bool put_text(struct config_put *p)
{
	if (p->text.len > p->key->max)
		return false;
	for (size_t i = 0; i < p->text.len; i++) {
		if (p->text.at[i] < ' ' || p->text.at[i] > '~' ||
		    p->text.at[i] == '"')
			return false;
	}
	return store_text(p, p->text);
}

static bool put_log(struct config_put *p)
{
	/* In the order of enum logger_target. */
	static const char *const names[] = {
		[LOGGER_STDERR] = "stderr",
		[LOGGER_JOURNAL] = "journal",
		[LOGGER_SYSLOG] = "syslog",
	};
	struct config_weir *weir = p->base;

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (config_span_is(p->text, names[i])) {
			weir->log = (enum logger_target)i;
			return true;
		}
	}
	if (p->text.len < 2 || p->text.at[0] != '/')
		return false;
	weir->log = LOGGER_FILE;
	assert(p->text.len < sizeof(weir->log_path));
	memcpy(weir->log_path, p->text.at, p->text.len);
	weir->log_path[p->text.len] = '\0';
	return true;
}

/* "10.0.0.1:25", "[2001:db8::1]:25" */
static bool parse_endpoint(struct config_span s, struct config_address *address)
{
	const char *colon = s.len > 0 ? memrchr(s.at, ':', s.len) : NULL;
	uint64_t port;

	if (colon == NULL)
		return false;
	struct config_span host = { s.at, (size_t)(colon - s.at) };
	struct config_span digits = { colon + 1, s.len - host.len - 1 };
	bool brackets = host.len > 2 && host.at[0] == '[' &&
			host.at[host.len - 1] == ']';
	struct config_address got = { 0 };

	if (brackets) {
		host.at++;
		host.len -= 2;
	}
	if (!config_parse_number(digits, &port) || port < 1 ||
	    port > UINT16_MAX ||
	    !cidr_addr_parse(host.at, host.len, &got.addr) ||
	    brackets != (memchr(host.at, ':', host.len) != NULL))
		return false;
	got.port = (uint16_t)port;
	*address = got;
	return true;
}

static bool same_endpoint(const struct config_address *a,
			  const struct config_address *b)
{
	return a->port == b->port && cidr_addr_equal(&a->addr, &b->addr);
}

static bool listener_has(const struct config_listener *listener,
			 const struct config_address *address)
{
	for (unsigned i = 0; i < listener->listen_count; i++) {
		if (same_endpoint(&listener->listen[i], address))
			return true;
	}
	return false;
}

static bool put_listen(struct config_put *p)
{
	struct config_listener *own = p->base;
	struct config_address address;

	assert(p->reading != NULL);
	if (!parse_endpoint(p->text, &address))
		return false;
	if (listener_has(own, &address)) {
		config_print(p->why, sizeof(p->why),
			     "this address is given twice");
		return false;
	}
	for (unsigned i = 0; i < p->reading->config->listener_count; i++) {
		const struct config_listener *other =
			&p->reading->config->listeners[i];

		if (listener_has(other, &address)) {
			config_print(p->why, sizeof(p->why),
				     "[listener %s] has this address already",
				     other->name);
			return false;
		}
	}
	if (own->listen_count == CONFIG_LISTEN_MAX) {
		config_print(p->why, sizeof(p->why),
			     "a listener has at most %d addresses",
			     CONFIG_LISTEN_MAX);
		return false;
	}
	own->listen[own->listen_count++] = address;
	return true;
}

static bool put_endpoint(struct config_put *p)
{
	return parse_endpoint(p->text, field_of(p));
}

static bool put_address(struct config_put *p)
{
	struct config_backend *backend = p->base;
	bool set = p->text.len > 0;

	if (set && !cidr_addr_parse(p->text.at, p->text.len, &backend->source))
		return false;
	backend->source_set = set;
	return true;
}

static bool nets_add(struct config_nets *nets, const struct cidr *net)
{
	if (nets->count == nets->room) {
		size_t room = nets->room > 0 ? 2 * nets->room : 64;
		struct cidr *items = NULL;

		if (nets->count < NETS_MAX)
			items = reallocarray(nets->items, room, sizeof(*items));
		if (items == NULL)
			return false;
		nets->items = items;
		nets->room = room;
	}
	nets->items[nets->count++] = *net;
	return true;
}

static bool is_path(struct config_span s)
{
	return s.len > 1 && s.at[0] == '/';
}

static void copy_text(char field[CONFIG_TEXT_MAX], struct config_span s)
{
	assert(s.len < CONFIG_TEXT_MAX);
	if (s.len > 0)
		memcpy(field, s.at, s.len);
	field[s.len] = '\0';
}

/* "CERT [KEY [OCSP]]" */
static bool parse_cert(struct config_span s, uint64_t paths_max,
		       struct config_cert *cert)
{
	struct config_cert got = { 0 };
	char *const fields[] = { got.cert, got.key, got.ocsp };
	struct config_span word = config_next_word(&s);

	assert(paths_max <= sizeof(fields) / sizeof(fields[0]));
	if (word.len == 0)
		return false;
	for (uint64_t i = 0; i < paths_max && word.len > 0; i++) {
		if (!is_path(word))
			return false;
		copy_text(fields[i], word);
		word = config_next_word(&s);
	}
	if (word.len > 0)
		return false;
	*cert = got;
	return true;
}

static bool put_cert(struct config_put *p)
{
	if (p->key->section == CONFIG_SECTION_BACKEND) {
		struct config_backend *backend = p->base;

		if (p->text.len > 0)
			return parse_cert(p->text, p->key->max, &backend->cert);
		memset(&backend->cert, 0, sizeof(backend->cert));
		return true;
	}
	struct config_listener *listener = p->base;

	if (listener->cert_count == CONFIG_CERTS_MAX) {
		config_print(p->why, sizeof(p->why),
			     "a listener has at most %d certificates",
			     CONFIG_CERTS_MAX);
		return false;
	}
	if (!parse_cert(p->text, p->key->max,
			&listener->certs[listener->cert_count]))
		return false;
	listener->cert_count++;
	return true;
}

static bool put_trust(struct config_put *p)
{
	if (config_span_is(p->text, "system"))
		return store_text(p, config_span_of(TLS_SYSTEM_TRUST));
	return is_path(p->text) && store_text(p, p->text);
}

static unsigned digit_of(char c, const char *digits)
{
	const char *at = c == '\0' ? NULL : strchr(digits, c);

	return at == NULL ? UINT_MAX : (unsigned)(at - digits);
}

/* 64 hex digits, with colons between the octets or without. */
static bool parse_hex_pin(struct config_span s, struct tls_pin *pin)
{
	static const char digits[] = "0123456789abcdef";
	size_t at = 0;

	for (size_t i = 0; i < TLS_PIN_SIZE; i++) {
		if (i > 0 && at < s.len && s.at[at] == ':')
			at++;
		if (s.len - at < 2)
			return false;
		unsigned high = digit_of(config_lower(s.at[at]), digits);
		unsigned low = digit_of(config_lower(s.at[at + 1]), digits);

		if (high > 15 || low > 15)
			return false;
		pin->sha256[i] = (uint8_t)(high << 4 | low);
		at += 2;
	}
	return at == s.len;
}

/* 43 letters and one "=" (RFC 4648, section 4). */
static bool parse_base64_pin(struct config_span s, struct tls_pin *pin)
{
	enum { LETTERS = 43 };
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				     "abcdefghijklmnopqrstuvwxyz0123456789+/";
	uint32_t bits = 0;
	unsigned have = 0;
	size_t out = 0;

	if (s.len != LETTERS + 1 || s.at[LETTERS] != '=')
		return false;
	for (size_t i = 0; i < LETTERS; i++) {
		unsigned digit = digit_of(s.at[i], digits);

		if (digit > 63)
			return false;
		bits = (bits << 6 | digit) & 0xffff;
		have += 6;
		if (have < 8)
			continue;
		have -= 8;
		assert(out < TLS_PIN_SIZE);
		pin->sha256[out++] = (uint8_t)(bits >> have);
	}
	assert(out == TLS_PIN_SIZE);
	/* Of the last letter two bits are left over: none may be set. */
	return (bits & 3) == 0;
}

static bool put_pin(struct config_put *p)
{
	struct config_backend *backend = p->base;
	struct tls_pin pin;

	if (backend->pin_count == CONFIG_PINS_MAX) {
		config_print(p->why, sizeof(p->why),
			     "a backend has at most %d pins", CONFIG_PINS_MAX);
		return false;
	}
	if (!parse_hex_pin(p->text, &pin) && !parse_base64_pin(p->text, &pin))
		return false;
	backend->pins[backend->pin_count++] = pin;
	return true;
}

/* The list that a key's networks go to. */
static struct config_nets *nets_of(const struct config_put *p)
{
	struct config_reading *r = p->reading;

	assert(r != NULL);
	if (p->key->section == CONFIG_SECTION_LISTENER) {
		const struct config_listener *own = p->base;

		if (own == &r->stray_listener)
			return &r->stray_nets;
		return &r->proxy_from[own - r->config->listeners];
	}
	if (p->key->section == CONFIG_SECTION_FARM)
		return &r->relay_from;
	return p->key->offset == offsetof(struct config_admission, deny)
		       ? &r->deny
		       : &r->allow;
}

static bool put_net(struct config_put *p, struct config_span s)
{
	struct config_nets *nets = nets_of(p);
	char why[CIDR_WHY_MAX];
	struct cidr net;

	if (!cidr_parse(s.at, s.len, &net, why, sizeof(why))) {
		config_print(p->why, sizeof(p->why), "%s", why);
		return false;
	}
	if (!nets_add(nets, &net)) {
		config_print(p->why, sizeof(p->why),
			     "no room: a list has at most %d networks",
			     NETS_MAX);
		return false;
	}
	return true;
}

int config_slurp(const char *path, char **text, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat info;
	int result = -EINVAL;
	size_t got = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &info) != 0)
		result = -errno;
	else if (S_ISDIR(info.st_mode))
		result = -EISDIR;
	else if (S_ISREG(info.st_mode) && info.st_size > FILE_SIZE_MAX)
		result = -EFBIG;
	else if (S_ISREG(info.st_mode))
		result = 0;

	size_t room = result == 0 ? (size_t)info.st_size + 1 : 1;
	char *buf = malloc(room);

	if (buf == NULL)
		result = -ENOMEM;
	while (result == 0 && got < room) {
		ssize_t n = read(fd, buf + got, room - got);

		if (n == 0)
			break;
		if (n > 0)
			got += (size_t)n;
		else if (errno != EINTR)
			result = -errno;
	}
	/* It grew meanwhile: whoever writes it has not finished. */
	if (result == 0 && got == room)
		result = -EBUSY;
	(void)close(fd); /* was only read */
	if (result != 0) {
		free(buf);
		return result;
	}
	*text = buf;
	*len = got;
	return 0;
}

/* One network a line; # begins a comment. */
static bool put_nets_file(struct config_put *p)
{
	char path[CONFIG_TEXT_MAX], quoted[CONFIG_QUOTED_MAX],
		error[CONFIG_ERROR_MAX];
	struct config_reading *r = p->reading;
	char *text = NULL;
	size_t len = 0;

	assert(r != NULL);
	if (p->text.len < 2 || p->text.at[0] != '/')
		return false;
	assert(p->text.len < sizeof(path));
	memcpy(path, p->text.at, p->text.len);
	path[p->text.len] = '\0';

	int result = config_slurp(path, &text, &len);

	if (result < 0) {
		config_print(p->why, sizeof(p->why), "cannot be read: %s",
			     strerrordesc_np(-result));
		return false;
	}
	struct config_span left = { text, len };

	for (unsigned line = 1; left.len > 0; line++) {
		struct config_span comment;
		struct config_span whole = config_cut(left, '\n', &left);
		struct config_span net = config_trim(
			config_cut(whole, '#', &comment));

		if (net.len == 0 || put_net(p, net))
			continue;
		config_print(error, sizeof(error), "%s: %s",
			     config_quote(quoted, net), p->why);
		config_report_add(r, r->line, path, line, error);
		p->why[0] = '\0';
	}
	free(text);
	return true;
}

static bool put_busy_rule(struct config_put *p)
{
	struct config_backend *backend = p->base;
	char text[CONFIG_TEXT_MAX], error[BUSY_RULE_ERROR_MAX];

	assert(p->text.len < sizeof(text));
	memcpy(text, p->text.at, p->text.len);
	text[p->text.len] = '\0';
	if (backend->busy_rule_count == CONFIG_BUSY_RULES_MAX) {
		config_print(p->why, sizeof(p->why),
			     "a backend has at most %d rules",
			     CONFIG_BUSY_RULES_MAX);
		return false;
	}
	if (!busy_rule_parse(text,
			     &backend->busy_rules[backend->busy_rule_count],
			     error)) {
		/* It repeats a word as it stood in the file. */
		for (char *c = error; *c != '\0'; c++) {
			if (*c < ' ' || *c > '~')
				*c = '?';
		}
		config_print(p->why, sizeof(p->why), "%s", error);
		return false;
	}
	backend->busy_rule_count++;
	return true;
}

bool config_put_value(struct config_put *p)
{
	switch (p->key->kind) {
	case CONFIG_KIND_COUNT:
		return put_count(p);
	case CONFIG_KIND_CEILING:
		return put_ceiling(p);
	case CONFIG_KIND_DURATION:
		return put_duration(p);
	case CONFIG_KIND_SIZE:
		return put_size(p);
	case CONFIG_KIND_PERCENT:
		return put_percent(p);
	case CONFIG_KIND_RATE:
		return put_rate(p);
	case CONFIG_KIND_MODE:
		return put_mode(p);
	case CONFIG_KIND_WORD:
		return put_word(p);
	case CONFIG_KIND_HOST:
		return put_host(p);
	case CONFIG_KIND_PATH:
		return put_path(p);
	case CONFIG_KIND_USER:
		return put_user(p);
	case CONFIG_KIND_TEXT:
		return put_text(p);
	case CONFIG_KIND_LOG:
		return put_log(p);
	case CONFIG_KIND_LISTEN:
		return put_listen(p);
	case CONFIG_KIND_ENDPOINT:
		return put_endpoint(p);
	case CONFIG_KIND_ADDRESS:
		return put_address(p);
	case CONFIG_KIND_NETS:
		return put_net(p, p->text);
	case CONFIG_KIND_NETS_FILE:
		return put_nets_file(p);
	case CONFIG_KIND_BUSY_RULE:
		return put_busy_rule(p);
	case CONFIG_KIND_CERT:
		return put_cert(p);
	case CONFIG_KIND_TRUST:
		return put_trust(p);
	case CONFIG_KIND_PEER:
		return put_peer(p);
	case CONFIG_KIND_PIN:
		return put_pin(p);
	}
	return false;
}

void config_describe_bad_value(const struct config_put *p, char *buf,
			       size_t cap)
{
	const struct config_key *key = p->key;
	char quoted[CONFIG_QUOTED_MAX];
	size_t len = config_print(buf, cap, "%s = %s: ", key->name,
				  config_quote(quoted, p->text));

	if (p->why[0] != '\0') {
		config_print(buf + len, cap - len, "%s", p->why);
		return;
	}
	len += config_print(buf + len, cap - len, "need ");
	len += config_describe(key, buf + len, cap - len);
	if (key->required)
		return;
	config_print(buf + len, cap - len, " (default %s)",
		     key->standard[0] != '\0' ? key->standard : "empty");
}

void config_set_defaults(enum config_section section, void *base)
{
	for (size_t i = 0; i < config_key_count(); i++) {
		struct config_put p = {
			.key = &config_keys[i],
			.base = base,
			.text = config_span_of(config_keys[i].standard),
		};

		if (p.key->section != section || p.text.len == 0 ||
		    config_is_list(p.key))
			continue;
		bool fits = config_put_value(&p);

		assert(fits);
	}
}
