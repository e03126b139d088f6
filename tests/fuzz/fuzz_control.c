#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/control.h"
#include "proxy/report.h"

/*
 * Whatever an operator says: a line is an order whose values are in their
 * ranges, or nothing, or wrong with a complaint that is printable and ends.
 * And whatever is put into a report, what comes out is printable lines, none
 * of them empty, within its memory.
 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CAP = REPORT_SIZE_MIN };

static struct control_order order;

static void check_lines(const char *text, size_t len)
{
	assert(len > 0);
	assert(text[0] != '\n');
	assert(text[len - 1] == '\n');
	for (size_t i = 0; i < len; i++) {
		assert(text[i] == '\n' || (text[i] >= 0x20 && text[i] <= 0x7e));
		assert(i == 0 || text[i] != '\n' || text[i - 1] != '\n');
	}
}

static void check_order(void)
{
	static char help[CONTROL_HELP_MAX];
	const struct control_command *c = &control_commands[order.verb];
	int64_t ban_max_ms = (int64_t)CONTROL_BAN_DAYS_MAX * 86400000;

	assert(order.verb < CONTROL_VERBS);
	switch (order.verb) {
	case CONTROL_HELP:
		check_lines(help, control_help(&order, help, sizeof(help)));
		assert(order.arg_count <= c->args_max);
		return;
	case CONTROL_SET_BACKEND:
		assert(order.name.text[order.name.len] == '\0');
		if (order.set == CONTROL_SET_WEIGHT)
			assert(order.number >= 1 &&
			       order.number <= BACKEND_WEIGHT_MAX);
		else if (order.set == CONTROL_SET_MAX_SESSIONS)
			assert(order.number == LIMIT_MAX ||
			       (order.number >= 1 &&
				order.number <= CONTROL_SESSIONS_MAX));
		else
			assert(order.admin < BACKEND_ADMIN_COUNT);
		return;
	case CONTROL_ADD_BACKEND:
		assert(order.arg_count >= 1);
		for (unsigned i = 0; i < order.arg_count; i++)
			assert(order.arg[i].text[order.arg[i].len] == '\0');
		return;
	case CONTROL_BAN:
		assert(order.duration_ms >= 0);
		assert(order.duration_ms <= ban_max_ms);
		assert(order.net.bits <= CIDR_BITS_MAX);
		return;
	case CONTROL_SHOW_INFO:
	case CONTROL_SHOW_STAT:
	case CONTROL_SHOW_BACKENDS:
	case CONTROL_SHOW_HEALTH:
	case CONTROL_SHOW_LIMITS:
	case CONTROL_SHOW_TLS:
	case CONTROL_SHOW_ROOM:
	case CONTROL_SHOW_SESSIONS:
	case CONTROL_SHOW_SOURCES:
	case CONTROL_SHOW_BANS:
		assert(order.format <= REPORT_JSON);
		return;
	case CONTROL_DEL_BACKEND:
	case CONTROL_UNBAN:
	case CONTROL_KILL_SESSION:
	case CONTROL_RELOAD:
	case CONTROL_QUIT:
	case CONTROL_VERBS:
		return;
	}
}

static void try_line(const char *line, size_t len)
{
	char error[CONTROL_ERROR_MAX];
	size_t n;

	if (len > CONTROL_LINE_MAX)
		len = CONTROL_LINE_MAX;
	memset(error, 0x01, sizeof(error));
	switch (control_parse(line, len, &order, error)) {
	case CONTROL_EMPTY:
		return;
	case CONTROL_ORDER:
		check_order();
		return;
	case CONTROL_WRONG:
		n = strnlen(error, sizeof(error));
		assert(n > 0 && n < sizeof(error));
		error[n] = '\n';
		check_lines(error, n + 1);
		return;
	}
}

static void try_report(enum report_format format, const char *text, size_t len)
{
	static const struct report_column columns[] = {
		{ "text", REPORT_LEFT, REPORT_ALL },
		{ "people", REPORT_RIGHT, REPORT_PEOPLE },
		{ "machine", REPORT_RIGHT, REPORT_MACHINE },
		{ "more", REPORT_LEFT, REPORT_ALL },
	};
	static char buf[CAP + 1];
	struct report r;

	buf[CAP] = 0x55;
	report_init(&r, format, buf, CAP);
	report_table(&r, "fuzz", "# ", columns, 4);
	/* Cells as long as the octets in front of them say. */
	while (len > 0) {
		size_t first = (uint8_t)text[0] * 3U;

		if (first > len)
			first = len;
		report_text(&r, text, first);
		report_number(&r, (int64_t)len);
		report_number(&r, -(int64_t)len);
		report_text(&r, text + first, len - first);
		text += first > 0 ? first : 1;
		len -= first > 0 ? first : 1;
	}
	report_end(&r);
	assert(r.len <= CAP);
	assert(buf[CAP] == 0x55);
	check_lines(buf, r.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	int64_t ms;
	uint64_t id;

	try_report(REPORT_TEXT, text, size);
	try_report(REPORT_CSV, text, size);
	try_report(REPORT_JSON, text, size);
	if (control_duration_parse(text, size, &ms))
		assert(ms >= 0);
	if (control_id_parse(text, size, &id)) {
		char again[CONTROL_ID_MAX];
		uint64_t same;
		size_t len = control_id_format(id, again);

		assert(control_id_parse(again, len, &same) && same == id);
	}
	while (size > 0) {
		const char *end = memchr(text, '\n', size);
		size_t len = end == NULL ? size : (size_t)(end - text);
		size_t step = end == NULL ? len : len + 1;

		try_line(text, len);
		text += step;
		size -= step;
	}
	return 0;
}
