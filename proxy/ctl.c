#include "proxy/ctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/weir/control.sock"

enum {
	ANSWER_MAX = 8 << 20, /* octets; weir's are smaller */
	COMMAND_MAX = 4096,
	WAIT_S = 10, /* for each piece of an answer */
};

/* ---- the socket ---- */

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	const struct timeval wait = { .tv_sec = WAIT_S };
	size_t len = strlen(path);
	int fd;

	if (len >= sizeof(sa.sun_path)) {
		(void)fprintf(stderr, "weirctl: %s: the path is too long\n",
			      path);
		return -1;
	}
	memcpy(sa.sun_path, path, len);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 &&
	    connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0) {
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait,
				 sizeof(wait));
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait,
				 sizeof(wait));
		return fd;
	}

	int error = errno;
	const char *hint = "";

	if (error == ENOENT)
		hint = "; is weir running? -s names another socket";
	if (error == ECONNREFUSED)
		hint = "; weir is not running";
	if (error == EACCES)
		hint = "; see control_mode in weir.ini(5), or become root";
	(void)fprintf(stderr, "weirctl: %s: %s%s\n", path, strerror(error),
		      hint);
	if (fd >= 0)
		(void)close(fd);
	return -1;
}

static bool send_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

static bool grow(struct ctl_answer *a)
{
	size_t size = a->size > 0 ? a->size * 2 : 65536;
	char *text = size <= ANSWER_MAX ? realloc(a->text, size) : NULL;

	if (text == NULL)
		return false;
	a->text = text;
	a->size = size;
	return true;
}

/* Where the empty line of the count-th answer begins; 0: not yet there. */
static size_t find_end(const struct ctl_answer *a, unsigned count)
{
	const char *at = a->text;
	size_t left = a->len;

	for (;;) {
		const char *end = memmem(at, left, "\n\n", 2);

		if (end == NULL)
			return 0;
		if (--count == 0)
			return (size_t)(end - a->text) + 1;
		left -= (size_t)(end + 2 - at);
		at = end + 2;
	}
}

/*
 * Not a word came.  weir gives 16 operators an answer, tells 16 more that they
 * are too many, and closes at once what comes beyond; a command that it has
 * not read then makes a reset of the end.
 */
static void complain_of_silence(int error)
{
	if (error == EAGAIN) {
		(void)fprintf(stderr,
			      "weirctl: no answer in %d s: weir is stopped or "
			      "overloaded\n",
			      WAIT_S);
	} else if (error == 0 || error == ECONNRESET) {
		(void)fprintf(stderr,
			      "weirctl: weir closed the connection: too many "
			      "operators are connected, or weir is ending; try "
			      "again, or end other weirctl\n");
	} else {
		(void)fprintf(stderr, "weirctl: no answer: %s\n",
			      strerror(error));
	}
}

/* Read so many answers, or to the end of the stream.  False: complained. */
static bool receive(int fd, struct ctl_answer *a, unsigned count)
{
	size_t end = 0;

	a->len = 0;
	while (end == 0) {
		ssize_t n;

		if (a->len + 1 >= a->size && !grow(a)) {
			(void)fprintf(stderr, "weirctl: no memory\n");
			return false;
		}
		n = recv(fd, a->text + a->len, a->size - a->len - 1, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 && a->len == 0) {
			complain_of_silence(n < 0 ? errno : 0);
			return false;
		}
		if (n < 0) {
			(void)fprintf(stderr, "weirctl: half an answer: %s\n",
				      strerror(errno));
			return false;
		}
		a->len += (size_t)n;
		end = n == 0 ? a->len : find_end(a, count);
	}
	a->len = end;
	a->text[a->len] = '\0';
	return true;
}

bool ctl_ask(const char *path, const char *command, struct ctl_answer *a,
	     unsigned count)
{
	int fd = dial(path);
	bool good;

	if (fd < 0)
		return false;
	/* Refused ones may be answered before they have said anything. */
	(void)send_all(fd, command, strlen(command));
	good = receive(fd, a, count);
	(void)close(fd);
	return good;
}

bool ctl_is_error(const char *text)
{
	static const char error[] = "error: ";

	return strncmp(text, error, sizeof(error) - 1) == 0;
}

/* ---- any command ---- */

static bool append(char *buf, size_t *len, const char *text, size_t n)
{
	if (n > COMMAND_MAX - 2 - *len)
		return false;
	memcpy(buf + *len, text, n);
	*len += n;
	return true;
}

/* One word, in quotes if it would not be one without. */
static bool append_word(char *buf, size_t *len, const char *word)
{
	if (word[0] != '\0' && strpbrk(word, " \t\"") == NULL)
		return append(buf, len, word, strlen(word));
	if (!append(buf, len, "\"", 1))
		return false;
	for (const char *c = word; *c != '\0'; c++) {
		if ((*c == '"' || *c == '\\') && !append(buf, len, "\\", 1))
			return false;
		if (!append(buf, len, c, 1))
			return false;
	}
	return append(buf, len, "\"", 1);
}

/* The arguments as one line; a single one is a line already. */
static bool join(char buf[COMMAND_MAX], char **words, int count)
{
	size_t len = 0;

	/* weir answers no blank line, and we would wait for it. */
	if (count == 1 && words[0][strspn(words[0], " \t\r")] == '\0') {
		(void)fprintf(stderr, "weirctl: the command is empty\n");
		return false;
	}
	for (int i = 0; i < count; i++) {
		bool good = count == 1 ? append(buf, &len, words[i],
						strlen(words[i]))
				       : append_word(buf, &len, words[i]);

		if (strchr(words[i], '\n') != NULL)
			good = false;
		if (good && i + 1 < count)
			good = append(buf, &len, " ", 1);
		if (!good) {
			(void)fprintf(stderr,
				      "weirctl: a command is one line "
				      "of at most %d octets\n",
				      COMMAND_MAX - 2);
			return false;
		}
	}
	buf[len++] = '\n';
	buf[len] = '\0';
	return true;
}

static int run_command(const char *path, const char *command,
		       struct ctl_answer *a)
{
	if (!ctl_ask(path, command, a, 1))
		return CTL_TROUBLE;
	if (ctl_is_error(a->text)) {
		(void)fputs(a->text, stderr);
		return CTL_REFUSED;
	}
	(void)fputs(a->text, stdout);
	return CTL_GOOD;
}

/* ---- arguments ---- */

static void usage(FILE *to)
{
	(void)fprintf(
		to, "usage: weirctl [-s SOCKET] [-w SECONDS] COMMAND...\n"
		    "  -s SOCKET   weir's control socket (" DEFAULT_SOCKET ")\n"
		    "  -w SECONDS  again and again, so often\n"
		    "  -V          print the version\n"
		    "  -h          print this\n"
		    "commands:\n"
		    "status\n"
		    "        how weir and its backends are, on one screen\n");
}

/* Usage, and the commands that weir knows, if it can be asked. */
static int usage_with_help(const char *path, struct ctl_answer *a)
{
	usage(stderr);
	if (access(path, F_OK) != 0)
		(void)fprintf(stderr, "weir's own, when it runs: help\n");
	else if (ctl_ask(path, "help\n", a, 1))
		(void)fputs(a->text, stderr);
	return CTL_TROUBLE;
}

static double now_s(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool read_seconds(const char *text, double *seconds)
{
	char *end;

	*seconds = strtod(text, &end);
	return end != text && *end == '\0' && *seconds >= 0.1 &&
	       *seconds <= 86400;
}

/* Once, or every so many seconds until it fails. */
static int run(const char *path, char **words, int count, double every_s,
	       struct ctl_answer *a)
{
	struct ctl_totals last = { 0 };
	static char command[COMMAND_MAX];
	bool status = count == 1 && strcmp(words[0], "status") == 0;
	double before = 0;
	int result;

	if (!status && !join(command, words, count))
		return CTL_TROUBLE;
	for (;;) {
		double now = now_s();

		result = status ? ctl_status(path, a, &last,
					     before > 0 ? now - before : 0)
				: run_command(path, command, a);
		before = now;
		if (result != CTL_GOOD || every_s <= 0)
			return result;
		(void)fflush(stdout);

		const struct timespec pause = {
			.tv_sec = (time_t)every_s,
			.tv_nsec = (long)((every_s - (double)(time_t)every_s) *
					  1e9),
		};

		(void)nanosleep(&pause, NULL);
	}
}

struct options {
	const char *path;
	double every_s;
	bool done; /* nothing is left to do: end with .result */
	int result;
};

static void read_options(int argc, char **argv, struct options *o)
{
	int option;

	/* "+": options behind the command are the command's. */
	while (!o->done && (option = getopt(argc, argv, "+s:w:Vh")) != -1) {
		switch (option) {
		case 's':
			o->path = optarg;
			break;
		case 'w':
			if (read_seconds(optarg, &o->every_s))
				break;
			(void)fprintf(stderr, "weirctl: -w needs seconds, from "
					      "0.1 to 86400\n");
			o->done = true;
			o->result = CTL_TROUBLE;
			break;
		case 'V':
			(void)printf("weirctl %s\n", WEIR_VERSION);
			o->done = true;
			break;
		case 'h':
			usage(stdout);
			o->done = true;
			break;
		default:
			usage(stderr);
			o->done = true;
			o->result = CTL_TROUBLE;
			break;
		}
	}
}

int main(int argc, char **argv)
{
	struct options o = { .path = DEFAULT_SOCKET };
	struct ctl_answer answer = { 0 };

	read_options(argc, argv, &o);
	if (!o.done && optind == argc)
		o.result = usage_with_help(o.path, &answer);
	else if (!o.done)
		o.result = run(o.path, argv + optind, argc - optind, o.every_s,
			       &answer);
	free(answer.text);
	if (fflush(stdout) != 0 && o.result == CTL_GOOD)
		o.result = CTL_TROUBLE;
	return o.result;
}
