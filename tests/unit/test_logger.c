#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy/logger.h"

enum {
	PATIENCE_MS = 20000,
	PIPE_READ = 0,
	PIPE_WRITE = 1,
};

static struct logger *open_logger(enum logger_target target, const char *path)
{
	char error[256] = "";
	struct logger *logger = logger_open(target, path, error, sizeof(error));

	if (logger == NULL)
		fail_msg("logger_open: %s", error);
	return logger;
}

static bool say(struct logger *logger, int level, const char *line)
{
	return logger_write(logger, level, line, strlen(line));
}

/* stderr, exchanged for a pipe while a test runs. */
struct capture {
	int saved;
	int fds[2];
};

static void capture_begin(struct capture *c, int flags)
{
	assert_int_equal(pipe2(c->fds, O_CLOEXEC | flags), 0);
	(void)fflush(stderr);
	c->saved = dup(STDERR_FILENO);
	assert_true(c->saved >= 0);
	assert_int_equal(dup2(c->fds[PIPE_WRITE], STDERR_FILENO),
			 STDERR_FILENO);
	assert_int_equal(close(c->fds[PIPE_WRITE]), 0);
}

static void capture_end(struct capture *c)
{
	assert_int_equal(dup2(c->saved, STDERR_FILENO), STDERR_FILENO);
	assert_int_equal(close(c->saved), 0);
	if (c->fds[PIPE_READ] >= 0)
		assert_int_equal(close(c->fds[PIPE_READ]), 0);
}

/* The next line of the pipe, without its newline. */
static void read_line(int fd, char *line, size_t size)
{
	size_t len = 0;

	for (;;) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		char c = 0;

		assert_int_equal(poll(&wait, 1, PATIENCE_MS), 1);
		assert_int_equal(read(fd, &c, 1), 1);
		if (c == '\n')
			break;
		assert_true(len + 1 < size);
		line[len++] = c;
	}
	line[len] = '\0';
}

static void stderr_gets_plain_lines_and_the_journal_levels(void **state)
{
	/* clang-format off */
	static const struct {
		enum logger_target target;
		const char *first, *second, *third;
	} cases[] = {
		{ LOGGER_STDERR, "one", "", "three" },
		{ LOGGER_JOURNAL, "<6>one", "<0>", "<7>three" },
	};
	/* clang-format on */

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct capture c;
		char line[64];

		capture_begin(&c, 0);
		struct logger *logger = open_logger(cases[i].target, NULL);

		assert_true(say(logger, 6, "one"));
		assert_true(say(logger, 0, ""));
		read_line(c.fds[PIPE_READ], line, sizeof(line));
		assert_string_equal(line, cases[i].first);
		read_line(c.fds[PIPE_READ], line, sizeof(line));
		assert_string_equal(line, cases[i].second);
		assert_true(say(logger, 7, "three"));
		logger_free(&logger);
		assert_null(logger);
		read_line(c.fds[PIPE_READ], line, sizeof(line));
		assert_string_equal(line, cases[i].third);
		capture_end(&c);
	}
}

static void a_line_too_long_is_cut(void **state)
{
	static char longer[LOGGER_LINE_MAX + 100];
	static char line[LOGGER_LINE_MAX + 100];
	struct capture c;

	(void)state;
	memset(longer, 'x', sizeof(longer));
	capture_begin(&c, 0);
	struct logger *logger = open_logger(LOGGER_STDERR, NULL);

	assert_true(logger_write(logger, 3, longer, sizeof(longer)));
	read_line(c.fds[PIPE_READ], line, sizeof(line));
	assert_int_equal(strlen(line), LOGGER_LINE_MAX);
	logger_free(&logger);
	capture_end(&c);
}

/* --- files --- */

static char dir[] = "/tmp/test_logger.XXXXXX";
static char path[sizeof(dir) + 16];
static char rotated[sizeof(dir) + 16];

static int make_dir(void **state)
{
	(void)state;
	if (mkdtemp(dir) == NULL)
		return -1;
	(void)snprintf(path, sizeof(path), "%s/log", dir);
	(void)snprintf(rotated, sizeof(rotated), "%s/log.1", dir);
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	(void)unlink(path);
	(void)unlink(rotated);
	return rmdir(dir);
}

static void expect_content(const char *file, const char *content)
{
	char data[256] = "";
	FILE *in = fopen(file, "r");

	assert_non_null(in);
	size_t len = fread(data, 1, sizeof(data) - 1, in);

	assert_int_equal(len, strlen(content));
	assert_string_equal(data, content);
	assert_int_equal(fclose(in), 0);
}

/* Until the writer has made a file of this name again. */
static void await(const char *file)
{
	for (int i = 0; access(file, F_OK) != 0; i++) {
		assert_true(i < PATIENCE_MS);
		(void)poll(NULL, 0, 1);
	}
}

static void a_file_is_appended_to_and_opened_again(void **state)
{
	struct logger *logger = open_logger(LOGGER_FILE, path);

	(void)state;
	assert_true(say(logger, 6, "first"));
	logger_free(&logger);
	expect_content(path, "first\n");

	logger = open_logger(LOGGER_FILE, path);
	assert_true(say(logger, 6, "second"));
	logger_free(&logger);
	expect_content(path, "first\nsecond\n");

	logger = open_logger(LOGGER_FILE, path);
	assert_int_equal(rename(path, rotated), 0);
	logger_reopen(logger);
	await(path);
	assert_true(say(logger, 6, "third"));
	logger_free(&logger);
	expect_content(rotated, "first\nsecond\n");
	expect_content(path, "third\n");
	assert_int_equal(unlink(rotated), 0);
	assert_int_equal(unlink(path), 0);
}

static void a_file_that_cannot_be_opened_is_told(void **state)
{
	char error[256] = "";

	(void)state;
	assert_null(logger_open(LOGGER_FILE, "/proc/none/log", error,
				sizeof(error)));
	assert_non_null(strstr(error, "/proc/none/log"));
	assert_non_null(strstr(error, "No such file"));
	assert_null(strchr(error, '\n'));
}

static void a_file_that_cannot_be_opened_again_is_kept(void **state)
{
	struct logger *logger = open_logger(LOGGER_FILE, path);

	(void)state;
	assert_int_equal(rename(path, rotated), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	logger_reopen(logger);
	for (int i = 0; i < PATIENCE_MS; i++) {
		struct stat st;

		assert_int_equal(stat(rotated, &st), 0);
		if (st.st_size > 0)
			break;
		(void)poll(NULL, 0, 1);
	}
	assert_true(say(logger, 6, "still here"));
	logger_free(&logger);
	expect_content(rotated,
		       "log: cannot open the file again: Is a directory\n"
		       "still here\n");
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(unlink(rotated), 0);
}

/* --- targets that do not take it --- */

/*
 * A pipe nobody reads: the ring fills up, and what does not fit is dropped
 * and counted, at once.  When somebody reads, nothing else is missing.
 */
static void a_full_pipe_drops_counts_and_says_so(void **state)
{
	static const int flags[] = { 0, O_NONBLOCK };

	(void)state;
	for (size_t f = 0; f < 2; f++) {
		struct capture c;
		char line[256];
		uint64_t taken = 0, dropped = 0, read = 0, told = 0;

		capture_begin(&c, flags[f]);
		struct logger *logger = open_logger(LOGGER_STDERR, NULL);

		while (dropped < 1000) {
			char text[128];

			(void)snprintf(text, sizeof(text), "%0100llu",
				       (unsigned long long)taken);
			if (say(logger, 6, text))
				taken++;
			else
				dropped++;
		}
		assert_int_equal(logger_dropped(logger), dropped);
		while (read < taken || told < dropped) {
			unsigned long long n = 0;

			read_line(c.fds[PIPE_READ], line, sizeof(line));
			if (sscanf(line, "log: dropped=%llu", &n) == 1) {
				told += n;
				continue;
			}
			assert_int_equal(strlen(line), 100);
			assert_int_equal(strtoull(line, NULL, 10), read);
			read++;
		}
		assert_int_equal(told, dropped);
		assert_true(say(logger, 6, "again"));
		read_line(c.fds[PIPE_READ], line, sizeof(line));
		assert_string_equal(line, "again");
		logger_free(&logger);
		capture_end(&c);
	}
}

static void freeing_does_not_wait_for_a_full_pipe(void **state)
{
	static const int flags[] = { 0, O_NONBLOCK };

	(void)state;
	for (size_t f = 0; f < 2; f++) {
		struct capture c;

		capture_begin(&c, flags[f]);
		struct logger *logger = open_logger(LOGGER_STDERR, NULL);

		while (say(logger, 6, "nobody reads this"))
			;
		logger_free(&logger); /* or the test never ends */
		assert_null(logger);
		capture_end(&c);
	}
}

static void a_pipe_nobody_holds_ends_nothing_and_is_counted(void **state)
{
	struct capture c;

	(void)state;
	capture_begin(&c, 0);
	assert_int_equal(close(c.fds[PIPE_READ]), 0);
	c.fds[PIPE_READ] = -1;
	struct logger *logger = open_logger(LOGGER_STDERR, NULL);

	for (uint64_t i = 1; i <= 3; i++) {
		assert_true(say(logger, 6, "into the void"));
		while (logger_dropped(logger) < i)
			(void)poll(NULL, 0, 1);
		assert_int_equal(logger_dropped(logger), i);
	}
	logger_free(&logger);
	capture_end(&c);
}

/* --- threads --- */

enum { THREADS = 4, LINES = 5000 };

static void *write_many(void *arg)
{
	struct logger *logger = arg;

	for (int i = 0; i < LINES; i++)
		(void)say(logger, 6, "a line that must stay whole");
	return NULL;
}

static void lines_of_all_threads_stay_whole(void **state)
{
	struct logger *logger = open_logger(LOGGER_FILE, path);
	pthread_t threads[THREADS];
	char line[128];
	int lines = 0;

	(void)state;
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(
			pthread_create(&threads[i], NULL, write_many, logger),
			0);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(logger_dropped(logger), 0);
	logger_free(&logger);
	FILE *in = fopen(path, "r");

	assert_non_null(in);
	while (fgets(line, sizeof(line), in) != NULL) {
		assert_string_equal(line, "a line that must stay whole\n");
		lines++;
	}
	assert_int_equal(fclose(in), 0);
	assert_int_equal(lines, THREADS * LINES);
	assert_int_equal(unlink(path), 0);
}

static void syslog_takes_lines_without_reading_them_as_formats(void **state)
{
	struct logger *logger = open_logger(LOGGER_SYSLOG, NULL);

	(void)state;
	assert_true(say(logger, 7, "%s%n%s%n"));
	logger_reopen(logger);
	logger_free(&logger);
	assert_null(logger);
	logger_free(&logger);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			stderr_gets_plain_lines_and_the_journal_levels),
		cmocka_unit_test(a_line_too_long_is_cut),
		cmocka_unit_test(a_file_is_appended_to_and_opened_again),
		cmocka_unit_test(a_file_that_cannot_be_opened_is_told),
		cmocka_unit_test(a_file_that_cannot_be_opened_again_is_kept),
		cmocka_unit_test(a_full_pipe_drops_counts_and_says_so),
		cmocka_unit_test(freeing_does_not_wait_for_a_full_pipe),
		cmocka_unit_test(
			a_pipe_nobody_holds_ends_nothing_and_is_counted),
		cmocka_unit_test(lines_of_all_threads_stay_whole),
		cmocka_unit_test(
			syslog_takes_lines_without_reading_them_as_formats),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
