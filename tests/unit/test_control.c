#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy/control.h"

static struct control_order order;
static char error[CONTROL_ERROR_MAX];

static enum control_judgement parse(const char *line)
{
	memset(&order, 0xa5, sizeof(order));
	memset(error, 0, sizeof(error));
	return control_parse(line, strlen(line), &order, error);
}

static void a_line_becomes_an_order(void **state)
{
	/* clang-format off */
	static const struct {
		const char *line;
		enum control_verb verb;
		const char *why;
	} cases[] = {
		{ "help", CONTROL_HELP, "without arguments" },
		{ "help show info", CONTROL_HELP, "about a command" },
		{ "show info", CONTROL_SHOW_INFO, "two words" },
		{ "  show \t info  ", CONTROL_SHOW_INFO, "blanks anywhere" },
		{ "SHOW Info", CONTROL_SHOW_INFO, "either case" },
		{ "show info\r", CONTROL_SHOW_INFO, "CRLF" },
		{ "\"show\" in\"fo\"", CONTROL_SHOW_INFO, "quotes vanish" },
		{ "show stat csv", CONTROL_SHOW_STAT, "a format" },
		{ "show backends json", CONTROL_SHOW_BACKENDS, "a format" },
		{ "show health", CONTROL_SHOW_HEALTH, "" },
		{ "show limits", CONTROL_SHOW_LIMITS, "" },
		{ "show room", CONTROL_SHOW_ROOM, "" },
		{ "show tls", CONTROL_SHOW_TLS, "" },
		{ "show sessions", CONTROL_SHOW_SESSIONS, "" },
		{ "show sources", CONTROL_SHOW_SOURCES, "" },
		{ "show bans", CONTROL_SHOW_BANS, "" },
		{ "set backend a ready", CONTROL_SET_BACKEND, "" },
		{ "add backend a address=1", CONTROL_ADD_BACKEND, "" },
		{ "del backend a", CONTROL_DEL_BACKEND, "" },
		{ "ban 192.0.2.1", CONTROL_BAN, "" },
		{ "unban 192.0.2.1", CONTROL_UNBAN, "" },
		{ "kill session 0-1", CONTROL_KILL_SESSION, "" },
		{ "reload", CONTROL_RELOAD, "" },
		{ "quit", CONTROL_QUIT, "" },
	};
	/* clang-format on */

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (parse(cases[i].line) != CONTROL_ORDER)
			fail_msg("%s (%s): %s", cases[i].line, cases[i].why,
				 error);
		if (order.verb != cases[i].verb)
			fail_msg("%s: verb %d", cases[i].line, (int)order.verb);
	}
}

static void every_command_is_understood_in_its_own_words(void **state)
{
	(void)state;
	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		const struct control_command *c = &control_commands[i];
		enum control_judgement j = parse(c->words);

		if (c->args_min == 0) {
			assert_int_equal(j, CONTROL_ORDER);
			assert_int_equal(order.verb, i);
			continue;
		}
		/* What it lacks is said with its usage. */
		assert_int_equal(j, CONTROL_WRONG);
		assert_non_null(strstr(error, "usage: "));
		assert_non_null(strstr(error, c->args));
	}
}

static void a_blank_line_asks_nothing(void **state)
{
	static const char *const lines[] = { "", " ", "\t \t", "\r", " \r" };

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
		assert_int_equal(parse(lines[i]), CONTROL_EMPTY);
}

static void a_mistake_is_named_with_what_would_be_right(void **state)
{
	/* clang-format off */
	static const struct {
		const char *line, *said, *why;
	} cases[] = {
		{ "shwo info", "\"show info\"", "letters swapped" },
		{ "show inof", "\"show info\"", "in the second word" },
		{ "show backend", "\"show backends\"", "a letter missing" },
		{ "showinfo", "\"show info\"", "a blank missing" },
		{ "bann 192.0.2.0/24", "\"ban\"", "with arguments" },
		{ "set backends a ready", "\"set backend\"", "a letter more" },
		{ "hlep", "\"help\"", "one word" },
		{ "quiet", "\"quit\"", "one word" },
		{ "xyzzy", "see \"help\"", "like nothing at all" },
		{ "show", "show sources", "half a command: all of them" },
		{ "set", "set backend", "half a command" },
		{ "show info xml", "csv or json", "no format" },
		{ "show info xml", "\"xml\"", "names what was said" },
		{ "show info csv json", "usage: show info", "too much" },
		{ "reload now", "usage: reload", "too much" },
		{ "set backend a", "usage: set backend", "too little" },
		{ "set backend a drian", "drain", "no such state" },
		{ "set backend a weight", "missing", "no number" },
		{ "set backend a weight heavy", "\"heavy\"", "no number" },
		{ "set backend a weight 0", "from 1 to 1000", "too small" },
		{ "set backend a weight 1001", "from 1 to 1000", "too large" },
		{ "set backend a weight 99999999999999999999",
		  "from 1 to 1000", "does not fit" },
		{ "set backend a weight -1", "from 1 to 1000", "a sign" },
		{ "set backend a max_sessions 65536",
		  "auto or a whole number from 1 to 65535", "too large" },
		{ "set backend a max_sessions 0", "from 1", "too small" },
		{ "set backend a max_sessions aut", "auto or", "no number" },
		{ "set backend a weight auto", "need a whole", "a weight" },
		{ "set backend a ready now", "\"now\"", "too much" },
		{ "ban 300.0.0.0/8", "\"300.0.0.0/8\"", "no address" },
		{ "ban 10.0.0.1/8", "10.0.0.0/8", "host bits" },
		{ "ban 192.0.2.1 fortnight", "\"fortnight\"", "no duration" },
		{ "ban 192.0.2.1 10", "30m", "no unit" },
		{ "ban 192.0.2.1 0s", "30m", "nothing" },
		{ "ban 192.0.2.1 3651d", "30m", "ten years and more" },
		{ "ban 192.0.2.1 -5m", "30m", "a sign" },
		{ "unban", "usage: unban", "too little" },
		{ "kill session 12", "session's id", "no dash" },
		{ "kill session 123456789-1", "session's id", "too long" },
		{ "kill session x-1", "session's id", "not hexadecimal" },
		{ "kill session -1", "session's id", "nothing in front" },
		{ "add backend \"a", "quote", "a quote without end" },
		{ "\x1b[2J", "\\x1b", "no control character comes back" },
	};
	/* clang-format on */

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (parse(cases[i].line) != CONTROL_WRONG)
			fail_msg("%s: %s", cases[i].line, cases[i].why);
		if (strstr(error, cases[i].said) == NULL)
			fail_msg("%s (%s): %s", cases[i].line, cases[i].why,
				 error);
	}
}

static void arguments_are_read(void **state)
{
	(void)state;
	assert_int_equal(parse("set backend Alpha drain"), CONTROL_ORDER);
	assert_string_equal(order.name.text, "Alpha");
	assert_int_equal(order.set, CONTROL_SET_ADMIN);
	assert_int_equal(order.admin, BACKEND_ADMIN_DRAIN);
	assert_int_equal(parse("set backend a MAINT"), CONTROL_ORDER);
	assert_int_equal(order.admin, BACKEND_ADMIN_MAINT);
	assert_int_equal(parse("set backend a ready"), CONTROL_ORDER);
	assert_int_equal(order.admin, BACKEND_READY);
	assert_int_equal(parse("set backend a weight 1000"), CONTROL_ORDER);
	assert_int_equal(order.set, CONTROL_SET_WEIGHT);
	assert_int_equal(order.number, 1000);
	assert_int_equal(parse("set backend a max_sessions 65535"),
			 CONTROL_ORDER);
	assert_int_equal(order.set, CONTROL_SET_MAX_SESSIONS);
	assert_int_equal(order.number, 65535);
	assert_int_equal(parse("set backend a max_sessions Auto"),
			 CONTROL_ORDER);
	assert_int_equal(order.set, CONTROL_SET_MAX_SESSIONS);
	assert_int_equal(order.number, LIMIT_MAX);

	assert_int_equal(parse("show stat"), CONTROL_ORDER);
	assert_int_equal(order.format, REPORT_TEXT);
	assert_int_equal(parse("show stat CSV"), CONTROL_ORDER);
	assert_int_equal(order.format, REPORT_CSV);
	assert_int_equal(parse("show stat json"), CONTROL_ORDER);
	assert_int_equal(order.format, REPORT_JSON);

	assert_int_equal(parse("ban 2001:db8::/32"), CONTROL_ORDER);
	assert_int_equal(order.net.bits, 32);
	assert_int_equal(order.duration_ms, 0);
	assert_int_equal(parse("ban 192.0.2.0/24 90s"), CONTROL_ORDER);
	assert_int_equal(order.net.bits, CIDR_V4_BITS + 24);
	assert_int_equal(order.duration_ms, 90000);
	assert_int_equal(parse("ban 192.0.2.0/24 3650d"), CONTROL_ORDER);

	assert_int_equal(parse("kill session 0000abcd-1F"), CONTROL_ORDER);
	assert_true(order.id == UINT64_C(0xabcd0000001f));
}

static void a_quoted_word_keeps_its_blanks(void **state)
{
	(void)state;
	assert_int_equal(parse("add backend a address=127.0.0.1:25 "
			       "\"busy_rule=MAIL 452 a \\\"b\\\\ => busy\""),
			 CONTROL_ORDER);
	assert_string_equal(order.name.text, "a");
	assert_int_equal(order.arg_count, 2);
	assert_string_equal(order.arg[0].text, "address=127.0.0.1:25");
	assert_string_equal(order.arg[1].text,
			    "busy_rule=MAIL 452 a \"b\\ => busy");
	assert_int_equal(order.arg[1].len, strlen(order.arg[1].text));
	assert_int_equal(parse("set backend \"\" ready"), CONTROL_ORDER);
	assert_int_equal(order.name.len, 0);
}

static void a_line_may_be_as_long_as_it_may(void **state)
{
	static char line[CONTROL_LINE_MAX];

	(void)state;
	memset(line, 'x', sizeof(line));
	assert_int_equal(control_parse(line, sizeof(line), &order, error),
			 CONTROL_WRONG);
	memset(line, '"', sizeof(line));
	assert_int_equal(control_parse(line, sizeof(line), &order, error),
			 CONTROL_WRONG);
	for (size_t i = 0; i < sizeof(line); i++)
		line[i] = i % 2 == 0 ? 'y' : ' ';
	assert_int_equal(control_parse(line, sizeof(line), &order, error),
			 CONTROL_WRONG);
	assert_non_null(strstr(error, "too many words"));
	memset(line, ' ', sizeof(line));
	assert_int_equal(control_parse(line, sizeof(line), &order, error),
			 CONTROL_EMPTY);
	/* 64 words, the last of which fills the line. */
	memset(line, 'z', sizeof(line));
	for (size_t i = 0; i < 12; i++)
		line[i] = "add backend "[i];
	for (size_t i = 12; i < 12 + 61 * 2; i++)
		line[i] = i % 2 == 0 ? 'k' : ' ';
	assert_int_equal(control_parse(line, sizeof(line), &order, error),
			 CONTROL_ORDER);
	assert_int_equal(order.arg_count, 61);
}

static void help_names_every_command_and_fits(void **state)
{
	static char text[CONTROL_HELP_MAX];
	size_t len;

	(void)state;
	assert_int_equal(parse("help"), CONTROL_ORDER);
	len = control_help(&order, text, sizeof(text));
	assert_in_range(len, 1, sizeof(text) - 1);
	text[len] = '\0';
	assert_null(strstr(text, "\n\n"));
	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		assert_non_null(strstr(text, control_commands[i].words));
		assert_non_null(strstr(text, control_commands[i].help));
	}
}

static void help_about_one_says_no_more(void **state)
{
	static char text[CONTROL_HELP_MAX];
	size_t len;

	(void)state;
	assert_int_equal(parse("help show"), CONTROL_ORDER);
	len = control_help(&order, text, sizeof(text));
	text[len] = '\0';
	assert_non_null(strstr(text, "show bans"));
	assert_null(strstr(text, "unban"));
	assert_int_equal(parse("help nonsense"), CONTROL_ORDER);
	len = control_help(&order, text, sizeof(text));
	text[len] = '\0';
	assert_true(strncmp(text, "error: ", 7) == 0);
	assert_int_equal(parse("help a-very-long-word-that-no-command-has-it"),
			 CONTROL_ORDER);
	len = control_help(&order, text, sizeof(text));
	assert_true(strncmp(text, "error: ", 7) == 0);
	assert_true(len > 0);
}

static void the_manual_has_every_command(void **state)
{
	enum { SIZE = 1 << 17 };
	FILE *file = fopen("proxy/weirctl.8", "r");
	char *text = malloc(SIZE);
	char item[64];

	(void)state;
	assert_non_null(file);
	assert_non_null(text);
	size_t len = fread(text, 1, SIZE - 1, file);

	assert_in_range(len, 1, SIZE - 2);
	text[len] = '\0';
	assert_int_equal(fclose(file), 0);
	for (unsigned i = 0; i < CONTROL_VERBS; i++) {
		(void)snprintf(item, sizeof(item), "\n.It Cm %s",
			       control_commands[i].words);
		if (strstr(text, item) == NULL)
			fail_msg("weirctl.8 lacks %s",
				 control_commands[i].words);
	}
	free(text);
}

static void an_id_reads_as_it_is_written(void **state)
{
	static const uint64_t ids[] = { 0, 1, UINT64_C(0x4f1c2a0100000007),
					UINT64_MAX };
	char text[CONTROL_ID_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		size_t len = control_id_format(ids[i], text);
		uint64_t id = 1234;

		assert_true(control_id_parse(text, len, &id));
		assert_true(id == ids[i]);
	}
	(void)control_id_format(UINT64_C(0xabcd0000001f), text);
	assert_string_equal(text, "0000abcd-1f");
}

static void durations_have_a_unit(void **state)
{
	/* clang-format off */
	static const struct {
		const char *text;
		int64_t ms; /* -1: none */
	} cases[] = {
		{ "1ms", 1 }, { "90s", 90000 }, { "30m", 1800000 },
		{ "12h", 43200000 }, { "7d", 604800000 }, { "0s", 0 },
		{ "", -1 }, { "5", -1 }, { "s", -1 }, { "5 s", -1 },
		{ "5x", -1 }, { "5sm", -1 }, { "5S", -1 }, { "1.5h", -1 },
		{ "999999999d", INT64_C(86399999913600000) },
		{ "1000000000d", -1 },
	};
	/* clang-format on */

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t ms = -1;
		bool good = control_duration_parse(cases[i].text,
						   strlen(cases[i].text), &ms);

		if (good != (cases[i].ms >= 0) || ms != cases[i].ms)
			fail_msg("%s: %lld", cases[i].text, (long long)ms);
	}
}

static void ages_are_short(void **state)
{
	/* clang-format off */
	static const struct {
		int64_t ms;
		const char *text;
	} cases[] = {
		{ -5, "0s" }, { 0, "0s" }, { 999, "0s" }, { 59999, "59s" },
		{ 60000, "1m0s" }, { 3599999, "59m59s" }, { 3600000, "1h0m" },
		{ 90061000, "1d1h" }, { INT64_MAX, "106751991167d7h" },
	};
	/* clang-format on */
	char text[CONTROL_AGE_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t len = control_age_format(cases[i].ms, text);

		assert_string_equal(text, cases[i].text);
		assert_int_equal(len, strlen(text));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_becomes_an_order),
		cmocka_unit_test(every_command_is_understood_in_its_own_words),
		cmocka_unit_test(a_blank_line_asks_nothing),
		cmocka_unit_test(a_mistake_is_named_with_what_would_be_right),
		cmocka_unit_test(arguments_are_read),
		cmocka_unit_test(a_quoted_word_keeps_its_blanks),
		cmocka_unit_test(a_line_may_be_as_long_as_it_may),
		cmocka_unit_test(help_names_every_command_and_fits),
		cmocka_unit_test(help_about_one_says_no_more),
		cmocka_unit_test(the_manual_has_every_command),
		cmocka_unit_test(an_id_reads_as_it_is_written),
		cmocka_unit_test(durations_have_a_unit),
		cmocka_unit_test(ages_are_short),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
