#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/smtp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool within(const char *at, size_t len, const struct smtp_line *line)
{
	return at == NULL
		       ? len == 0
		       : at >= line->text && at + len <= line->text + line->len;
}

static void check_command(const struct smtp_line *line)
{
	struct smtp_command cmd = smtp_command_parse(line->text, line->len);
	const char *reply = smtp_syntax_reply(cmd.syntax);

	assert((reply == NULL) == (cmd.syntax == SMTP_SYNTAX_OK));
	assert(smtp_verb_name(cmd.verb) != NULL);
	assert(within(cmd.arg, cmd.arg_len, line));
	assert(within(cmd.path, cmd.path_len, line));
	assert(within(cmd.domain, cmd.domain_len, line));
	assert(within(cmd.params, cmd.params_len, line));
	assert(within(cmd.initial, cmd.initial_len, line));
	assert((cmd.auth & (cmd.auth - 1)) == 0);
	assert((cmd.auth & ~((1U << SMTP_AUTH_BITS) - 1)) == 0);
	(void)smtp_auth_line_fits(line->text, line->len);
	if (cmd.syntax != SMTP_SYNTAX_OK)
		return;
	/* what is said again to a backend cannot say more than one thing */
	if (cmd.verb == SMTP_VERB_EHLO || cmd.verb == SMTP_VERB_HELO) {
		for (size_t i = 0; i < cmd.arg_len; i++)
			assert(cmd.arg[i] > ' ' && cmd.arg[i] < 0x7f);
	}
	if (cmd.verb == SMTP_VERB_MAIL || cmd.verb == SMTP_VERB_RCPT) {
		assert(cmd.path != NULL);
		assert((cmd.ext & ~((1U << SMTP_EXT_BITS) - 1)) == 0);
	}
	/* so is AUTH, and what answers 334 */
	if (cmd.verb == SMTP_VERB_AUTH) {
		assert(cmd.initial == NULL || cmd.initial_len > 0);
		assert(smtp_auth_line_fits(cmd.initial, cmd.initial_len));
		for (size_t i = 0; i < cmd.arg_len; i++)
			assert(cmd.arg[i] == ' ' || cmd.arg[i] == '\t' ||
			       (cmd.arg[i] > ' ' && cmd.arg[i] < 0x7f));
	}
	if (cmd.verb == SMTP_VERB_RCPT)
		assert(cmd.path_len > 0);
	if (cmd.verb == SMTP_VERB_BDAT)
		assert(cmd.size_known);
}

/* The rest of a long line, dropped at once and octet by octet. */
static size_t skip_alike(const char *text, size_t len)
{
	bool ended, one_ended = false;
	size_t dropped = smtp_line_skip(text, len, &ended);
	size_t one = 0;

	while (one < len && !one_ended)
		one += smtp_line_skip(text + one, 1, &one_ended);
	assert(one == dropped);
	assert(one_ended == ended);
	return dropped;
}

/*
 * One line off the front of an exact copy, so that reads past the end show.
 * Returns octets to go on behind; 0 if the line is not whole.
 */
static size_t check_line(const char *text, size_t len)
{
	size_t max = smtp_line_max(text, len);
	struct smtp_line line, again;
	enum smtp_scan got = smtp_line_scan(text, len, max, &line);

	(void)smtp_line_is_binary(text, len);
	switch (got) {
	case SMTP_SCAN_MORE:
		assert(len < max);
		return 0;
	case SMTP_SCAN_LONG:
		assert(len >= max);
		return skip_alike(text, len);
	case SMTP_SCAN_LINE:
	case SMTP_SCAN_BAD:
		break;
	}
	assert(line.eaten >= 1 && line.eaten <= len && line.eaten <= max);
	/* one octet less must ask for more; the line alone scans the same */
	assert(smtp_line_scan(text, line.eaten - 1, max, &again) ==
	       SMTP_SCAN_MORE);
	assert(smtp_line_scan(text, line.eaten, max, &again) == got);
	assert(again.eaten == line.eaten);
	if (got == SMTP_SCAN_LINE) {
		assert(line.text == text && line.len == line.eaten - 2);
		assert(memchr(text, '\r', line.len) == NULL);
		assert(memchr(text, '\n', line.len) == NULL);
		assert(memchr(text, '\0', line.len) == NULL);
		check_command(&line);
	}
	return line.eaten;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size > 0) {
		char *copy = malloc(size);

		if (copy == NULL)
			return 0;
		memcpy(copy, data, size);

		size_t eaten = check_line(copy, size);

		free(copy);
		if (eaten == 0)
			return 0;
		data += eaten;
		size -= eaten;
	}
	return 0;
}
