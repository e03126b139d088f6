#include "tests/fuzz/session_input.h"

#include <string.h>

static struct input whole;

void input_set(const uint8_t *data, size_t len)
{
	whole = (struct input){ .data = data, .len = len };
}

struct input input_begin(void)
{
	return whole;
}

static void skip_blanks(struct input_line *line)
{
	while (line->len > 0 && *line->rest == ' ') {
		line->rest++;
		line->len--;
	}
}

bool input_line(struct input *in, struct input_line *line)
{
	while (in->at < in->len) {
		const uint8_t *from = in->data + in->at;
		size_t left = in->len - in->at;
		const uint8_t *end = memchr(from, '\n', left);
		size_t len = end == NULL ? left : (size_t)(end - from);

		in->at += end == NULL ? len : len + 1;
		if (len == 0)
			continue;
		*line = (struct input_line){
			.letter = from[0],
			.rest = from + 1,
			.len = len - 1,
		};
		skip_blanks(line);
		return true;
	}
	return false;
}

uint32_t input_number(struct input_line *line, uint32_t max)
{
	uint64_t n = 0;

	while (line->len > 0 && *line->rest >= '0' && *line->rest <= '9') {
		if (n <= max)
			n = n * 10 + *line->rest - '0';
		line->rest++;
		line->len--;
	}
	skip_blanks(line);
	return n > max ? max : (uint32_t)n;
}

uint8_t input_letter(struct input_line *line)
{
	uint8_t letter;

	if (line->len == 0)
		return 0;
	letter = *line->rest++;
	line->len--;
	skip_blanks(line);
	return letter;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static char as_char(uint8_t octet)
{
	return (char)(octet < 128 ? octet : octet - 256);
}

static int hex(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* The octet behind a backslash; *i is at it and goes to its last. */
static char escaped(const struct input_line *line, size_t *i)
{
	const uint8_t *at = line->rest + *i;

	if (at[0] == 'r')
		return '\r';
	if (at[0] == 'n')
		return '\n';
	if (at[0] == '0')
		return '\0';
	if (at[0] == 'x' && line->len - *i > 2 && hex(at[1]) >= 0 &&
	    hex(at[2]) >= 0) {
		*i += 2;
		return as_char((uint8_t)(hex(at[1]) * 16 + hex(at[2])));
	}
	return as_char(at[0]);
}

void input_spoil(char *text, size_t len)
{
	static const char *const words[] = { "SECRET", "U0VDUkVU", "injected" };

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		char *at;

		while ((at = memmem(text, len, words[i], strlen(words[i]))))
			*at = 'x';
	}
}

size_t input_text(const struct input_line *line, char digit, char *text,
		  size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < line->len && n + 1 < size; i++) {
		char c;

		if (line->rest[i] == '\\' && i + 1 < line->len) {
			i++;
			c = escaped(line, &i);
		} else {
			c = as_char(line->rest[i]);
		}
		if (is_digit(c) && n > 0 && text[n - 1] == 'c')
			c = digit;
		text[n++] = c;
	}
	text[n] = '\0';
	input_spoil(text, n);
	return n;
}
