#include "tests/sink_control.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/quantity.h"
#include "tests/sink_session.h"

enum { LINE_MAX_OCTETS = 2048, ERROR_MAX = 512 };

struct sink_control {
	enum sink_kind kind;
	int fd;
	struct sink *sink;
	char *path; /* of the UNIX socket, to be removed; or NULL */
	struct connection *connections;
};

struct connection {
	enum sink_kind kind;
	int fd;
	struct sink_control *control;
	struct connection *next;
	size_t len;
	char line[LINE_MAX_OCTETS];
};

struct command {
	const char *name;
	unsigned words; /* arguments; the last one is the rest of the line */
	void (*run)(struct sink_mta *mta, char **args, FILE *out);
};

static void run_kill(struct sink_mta *mta, char **args, FILE *out)
{
	(void)args;
	sink_mta_kill(mta);
	fputs("ok\n", out);
}

static void run_start(struct sink_mta *mta, char **args, FILE *out)
{
	(void)args;
	int result = sink_mta_listen(mta);

	if (result < 0) {
		fprintf(out, "error: %s: %s\n", mta->name, strerror(-result));
		return;
	}
	mta->started = true;
	sink_mta_adjust(mta);
	fputs("ok\n", out);
}

/* No new connections; those that are open go on. */
static void run_stop(struct sink_mta *mta, char **args, FILE *out)
{
	(void)args;
	mta->started = false;
	sink_mta_unlisten(mta);
	fputs("ok\n", out);
}

static void run_cut(struct sink_mta *mta, char **args, FILE *out)
{
	(void)args;
	while (mta->sessions != NULL)
		sink_session_kill(mta->sessions, SINK_HOW_RST);
	fputs("ok\n", out);
}

static void run_set(struct sink_mta *mta, char **args, FILE *out)
{
	char error[ERROR_MAX];

	if (strcmp(args[1], "name") == 0 || strcmp(args[1], "address") == 0 ||
	    strcmp(args[1], "port") == 0) {
		fprintf(out, "error: %s is fixed at the start\n", args[1]);
		return;
	}
	if (sink_mta_set(mta, args[1], args[2], error, sizeof(error)) &&
	    sink_tls_prepare(mta, error, sizeof(error)))
		fputs("ok\n", out);
	else
		fprintf(out, "error: %s\n", error);
}

static void run_show(struct sink_mta *mta, char **args, FILE *out)
{
	(void)args;
	sink_mta_print_stats(mta, out);
	fputc('\n', out);
}

/* clang-format off */
static const struct command commands[] = {
	{ "kill", 1, run_kill },
	{ "start", 1, run_start },
	{ "stop", 1, run_stop },
	{ "cut", 1, run_cut },
	{ "set", 3, run_set },
	{ "show", 1, run_show },
};
/* clang-format on */

static struct sink_mta *find_mta(struct sink *sink, const char *name)
{
	for (size_t i = 0; i < sink->mta_count; i++) {
		if (strcmp(sink->mtas[i]->name, name) == 0)
			return sink->mtas[i];
	}
	return NULL;
}

/* Split off `count` words; the last takes the rest.  False: too few. */
static bool split(char *text, char **words, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		text += strspn(text, " ");
		if (*text == '\0')
			return false;
		words[i] = text;
		if (i + 1 == count)
			return true;
		text += strcspn(text, " ");
		if (*text != '\0')
			*text++ = '\0';
	}
	return true;
}

static void run_on(struct sink *sink, const struct command *c, char *rest,
		   FILE *out)
{
	char *args[3] = { NULL, NULL, NULL };

	if (!split(rest, args, c->words)) {
		fprintf(out, "error: %s needs %u arguments\n", c->name,
			c->words);
		return;
	}
	if (strcmp(args[0], "all") == 0 && c->run != run_show) {
		fprintf(out, "error: name one MTA\n");
		return;
	}
	struct sink_mta *mta = find_mta(sink, args[0]);

	if (mta == NULL) {
		fprintf(out, "error: no MTA is named \"%s\"\n", args[0]);
		return;
	}
	c->run(mta, args, out);
}

void sink_control_run(struct sink *sink, char *line, FILE *out)
{
	line += strspn(line, " ");
	size_t len = strcspn(line, " ");
	char *rest = line + len + (line[len] != '\0');

	line[len] = '\0';
	if (strcmp(line, "stats") == 0) {
		sink_print_stats(sink, out, false);
		return;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].name, line) == 0) {
			run_on(sink, &commands[i], rest, out);
			return;
		}
	}
	fputs(strcmp(line, "help") == 0 ? "ok: " : "error: the commands are ",
	      out);
	fputs("stats; show NAME; kill NAME; start NAME; stop NAME; cut NAME; "
	      "set NAME KEY VALUE; help\n",
	      out);
}

/* --- sockets --- */

static void connection_close(struct connection *c)
{
	struct connection **at = &c->control->connections;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	(void)close(c->fd);
	free(c);
}

static bool answer(struct connection *c, char *line)
{
	char *text = NULL;
	size_t len = 0, sent = 0;
	FILE *out = open_memstream(&text, &len);

	if (out == NULL)
		err(1, "out of memory");
	sink_control_run(c->control->sink, line, out);
	if (fclose(out) != 0)
		err(1, "out of memory");
	/* The socket blocks, for at most its SO_SNDTIMEO. */
	while (sent < len) {
		ssize_t n = send(c->fd, text + sent, len - sent, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		sent += (size_t)n;
	}
	free(text);
	return sent == len;
}

/* Answer every whole line.  False: the peer does not take the answers. */
static bool answer_lines(struct connection *c)
{
	char *lf = NULL;

	while ((lf = memchr(c->line, '\n', c->len)) != NULL) {
		size_t used = (size_t)(lf - c->line) + 1;

		*lf = '\0';
		if (lf > c->line && lf[-1] == '\r')
			lf[-1] = '\0';
		if (!answer(c, c->line))
			return false;
		c->len -= used;
		memmove(c->line, c->line + used, c->len);
	}
	return c->len < sizeof(c->line);
}

void sink_control_event(void *connection)
{
	struct connection *c = connection;
	ssize_t n = recv(c->fd, c->line + c->len, sizeof(c->line) - c->len,
			 MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		connection_close(c);
		return;
	}
	c->len += (size_t)n;
	if (!answer_lines(c))
		connection_close(c);
}

void sink_control_accept(struct sink_control *control)
{
	struct timeval patience = { .tv_sec = 2 };
	int fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC);
	struct connection *c = calloc(1, sizeof(*c));

	if (fd < 0 || c == NULL) {
		free(c);
		return;
	}
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };

	c->kind = SINK_KIND_CONTROL;
	c->fd = fd;
	c->control = control;
	c->next = control->connections;
	control->connections = c;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience,
		       sizeof(patience)) != 0 ||
	    epoll_ctl(control->sink->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0)
		connection_close(c);
}

static int listen_at(struct sink_control *control, const char *where)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct sockaddr_in in = { .sin_family = AF_INET };
	bool is_path = strchr(where, '/') != NULL;
	uint64_t port = 0;
	int on = 1;

	control->fd = socket(is_path ? AF_UNIX : AF_INET,
			     SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (control->fd < 0)
		return -errno;
	if (is_path) {
		if (strlen(where) >= sizeof(un.sun_path))
			return -ENAMETOOLONG;
		memcpy(un.sun_path, where, strlen(where));
		(void)unlink(where); /* left over from an earlier run */
		if (bind(control->fd, (struct sockaddr *)&un, sizeof(un)) != 0)
			return -errno;
		control->path = strdup(where);
		return listen(control->fd, 16) == 0 ? 0 : -errno;
	}
	if (!quantity_count(where, 65535, &port))
		return -EINVAL;
	in.sin_port = htons((uint16_t)port);
	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(control->fd, SOL_SOCKET, SO_REUSEADDR, &on,
		       sizeof(on)) != 0 ||
	    bind(control->fd, (struct sockaddr *)&in, sizeof(in)) != 0 ||
	    listen(control->fd, 16) != 0)
		return -errno;
	return 0;
}

struct sink_control *sink_control_open(struct sink *sink, const char *where,
				       char *error, size_t error_size)
{
	struct sink_control *control = calloc(1, sizeof(*control));

	if (control == NULL)
		err(1, "out of memory");
	control->kind = SINK_KIND_CONTROL_LISTENER;
	control->sink = sink;
	int result = listen_at(control, where);
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = control };

	if (result == 0 &&
	    epoll_ctl(sink->epoll_fd, EPOLL_CTL_ADD, control->fd, &ev) != 0)
		result = -errno;
	if (result == 0)
		return control;
	snprintf(error, error_size, "control %s: %s", where, strerror(-result));
	sink_control_close(&control);
	return NULL;
}

void sink_control_close(struct sink_control **control)
{
	struct sink_control *c = *control;

	if (c == NULL)
		return;
	while (c->connections != NULL)
		connection_close(c->connections);
	if (c->fd >= 0)
		(void)close(c->fd);
	if (c->path != NULL)
		(void)unlink(c->path);
	free(c->path);
	free(c);
	*control = NULL;
}
