#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proxy/config.h"
#include "proxy/inspect.h"
#include "proxy/tls_store.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { NOBODY = 65534 };

static struct config_report *errors, *warnings;
static char dir[32];

static char *in_dir(const char *name, char path[64])
{
	(void)snprintf(path, 64, "%s/%s", dir, name);
	return path;
}

static void make_file(const char *name, mode_t mode)
{
	char path[64];
	int fd = open(in_dir(name, path), O_WRONLY | O_CREAT | O_CLOEXEC, mode);

	assert_true(fd >= 0);
	assert_int_equal(close(fd), 0);
}

/* A socket that nobody answers any more: what a killed weir leaves. */
static void make_socket(const char *name)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char path[64];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	memcpy(sa.sun_path, in_dir(name, path), 64);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(close(fd), 0);
}

/*
 *	file      any may write
 *	locked    a file that only root may write
 *	open      a directory that any may write
 *	closed    one that only root may write
 *	socket
 */
static int setup(void **state)
{
	char path[64];

	(void)state;
	errors = config_report_new();
	warnings = config_report_new();
	memcpy(dir, "/tmp/weir-test-inspect-XXXXXX", 30);
	assert_non_null(mkdtemp(dir));
	assert_int_equal(chmod(dir, 0755), 0);
	make_file("file", 0600);
	assert_int_equal(chmod(in_dir("file", path), 0666), 0);
	make_file("locked", 0400);
	make_socket("socket");
	assert_int_equal(mkdir(in_dir("open", path), 0755), 0);
	assert_int_equal(chmod(path, 0777), 0);
	assert_int_equal(mkdir(in_dir("closed", path), 0555), 0);
	return 0;
}

static int teardown(void **state)
{
	static const char *const files[] = { "file", "locked", "socket" };
	static const char *const dirs[] = { "open", "closed" };
	char path[64];

	(void)state;
	for (size_t i = 0; i < COUNT(files); i++)
		assert_int_equal(unlink(in_dir(files[i], path)), 0);
	for (size_t i = 0; i < COUNT(dirs); i++)
		assert_int_equal(rmdir(in_dir(dirs[i], path)), 0);
	assert_int_equal(rmdir(dir), 0);
	config_report_free(&errors);
	config_report_free(&warnings);
	return 0;
}

/* What is there, each line without the name of the test's directory. */
static char *text_of(const struct config_report *report)
{
	static char text[8192];
	size_t dir_len = strlen(dir);
	char *at = text;

	text[0] = '\0';
	for (unsigned i = 0; i < report->count; i++) {
		const char *from = report->errors[i].text;

		while (*from != '\0') {
			if (strncmp(from, dir, dir_len) == 0)
				from += dir_len;
			*at++ = *from++;
		}
		*at++ = '\n';
	}
	*at = '\0';
	return text;
}

static struct config *parse(const char *text)
{
	struct config *config = config_parse_text(text, strlen(text), "f",
						  errors);

	for (unsigned i = 0; i < errors->count; i++)
		print_message("    %s\n", errors->errors[i].text);
	assert_non_null(config);
	warnings->count = warnings->omitted = 0;
	return config;
}

/* ---- the ground ---- */

struct ground_case {
	const char *about;
	const char *keys; /* of [weir]; @ is the test's directory */
	const char *errors;
	const char *warnings;
};

/* Whoever asks. */
static const struct ground_case grounds[] = {
	{ "all is there",
	  "user = nobody\ngroup = nogroup\nlog = @/file\n"
	  "control_socket = @/open/s\n",
	  "", "" },
	{ "what is not yet there can be made",
	  "log = @/open/log\ncontrol_socket = @/open/s\n", "", "" },
	{ "a socket that was left over is replaced",
	  "control_socket = @/open/../socket\n", "", "" },
	{ "each that is missing has its line",
	  "user = no-such-user\ngroup = no-such-group\n"
	  "log = @/none/log\ncontrol_socket = @/never/s\n",
	  "f: user = \"no-such-user\": there is none of that name\n"
	  "f: group = \"no-such-group\": there is none of that name\n"
	  "f: log = \"/none/log\": /none: No such file or directory\n"
	  "f: control_socket = \"/never/s\": /never: No such file or "
	  "directory\n",
	  "" },
	{ "a file where a directory belongs",
	  "log = @/file/log\ncontrol_socket = @/file/s\n",
	  "f: log = \"/file/log\": /file is no directory\n"
	  "f: control_socket = \"/file/s\": /file is no directory\n",
	  "" },
	{ "even further up", "control_socket = @/file/a/s\n",
	  "f: control_socket = \"/file/a/s\": /file/a: Not a directory\n", "" },
	{ "a directory where a file belongs",
	  "log = @/open\ncontrol_socket = @/open/s\n",
	  "f: log = \"/open\": is a directory\n", "" },
	{ "what is no socket is not replaced", "control_socket = @/file\n",
	  "f: control_socket = \"/file\": is there already, and no socket: "
	  "remove it, or name another\n",
	  "" },
	{ "nor is a directory", "control_socket = @/open\n",
	  "f: control_socket = \"/open\": is there already, and no socket: "
	  "remove it, or name another\n",
	  "" },
	{ "in /run it may be made when weir is started",
	  "control_socket = /run/no-such-weir/s\n", "",
	  "f: control_socket = \"/run/no-such-weir/s\": there is no directory "
	  "/run/no-such-weir: the start needs it; RuntimeDirectory= of "
	  "weir.service makes it\n" },
};

/* For somebody who is not root. */
static const struct ground_case denials[] = {
	{ "what may not be written",
	  "log = @/locked\ncontrol_socket = @/closed/s\n",
	  "f: log = \"/locked\": cannot be written: Permission denied\n"
	  "f: control_socket = \"/closed/s\": nothing can be made in /closed: "
	  "Permission denied\n",
	  "" },
	{ "where no log can be made",
	  "log = @/closed/log\ncontrol_socket = @/open/s\n",
	  "f: log = \"/closed/log\": nothing can be made in /closed: "
	  "Permission denied\n",
	  "" },
	{ "root will be asked to start it: it may",
	  "user = root\nlog = @/locked\ncontrol_socket = @/closed/s\n", "",
	  "" },
	{ "what root could not do either is told",
	  "user = root\nlog = @/none/log\ncontrol_socket = @/closed/s\n",
	  "f: log = \"/none/log\": /none: No such file or directory\n", "" },
};

static void check_grounds(const struct ground_case *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct ground_case *c = &cases[i];
		char text[1024] = "[weir]\n";
		size_t len = strlen(text);
		struct config *config;

		print_message("  %s\n", c->about);
		for (const char *k = c->keys; *k != '\0'; k++)
			len += (size_t)snprintf(text + len, sizeof(text) - len,
						*k == '@' ? "%s" : "%.1s",
						*k == '@' ? dir : k);
		(void)snprintf(text + len, sizeof(text) - len,
			       "[listener l]\n[backend b]\n"
			       "address = 198.51.100.1:25\n");
		config = parse(text);
		inspect_ground(config, "f", errors, warnings);
		assert_string_equal(text_of(errors), c->errors);
		assert_string_equal(text_of(warnings), c->warnings);
		config_free(&config);
	}
}

static void all_that_a_start_lacks_is_told(void **state)
{
	(void)state;
	check_grounds(grounds, COUNT(grounds));
}

static void what_one_may_not_do_is_told(void **state)
{
	bool root = geteuid() == 0;

	(void)state;
	if (root)
		assert_int_equal(seteuid(NOBODY), 0);
	check_grounds(denials, COUNT(denials));
	if (root)
		assert_int_equal(seteuid(0), 0);
}

/* ---- TLS ---- */

/* [listener l] has these lines; as somebody who is not root, if need be. */
static void check_tls(const char *lines, bool denied, const char *error,
		      const char *warning)
{
	struct tls_store *tls = tls_store_new();
	bool root = geteuid() == 0;
	struct config *config;
	char text[1024];

	(void)snprintf(text, sizeof(text),
		       "%s[listener l]\ntls = starttls\ntls_cert = %s/%s\n"
		       "[backend b]\naddress = 198.51.100.1:25\n",
		       denied ? "[weir]\nuser = root\n" : "", dir, lines);
	config = parse(text);
	if (root)
		assert_int_equal(seteuid(NOBODY), 0);
	inspect_tls(config, "f", tls, 1800000000, errors, warnings);
	if (root)
		assert_int_equal(seteuid(0), 0);
	assert_string_equal(text_of(errors), error);
	assert_string_equal(text_of(warnings), warning);
	assert_null(tls_store_listener(tls, 0));
	tls_store_free(&tls);
	config_free(&config);
	errors->count = 0;
}

#define DENIED                                                                 \
	"f: [listener l] tls_cert: /locked: cannot be read: Permission "       \
	"denied: let the group that weir runs as read it (chgrp, chmod g+r; "  \
	"the directories above: g+x)\n"

static void files_of_tls_are_read_or_told(void **state)
{
	(void)state;
	check_tls("none", false,
		  "f: [listener l] tls_cert: /none: cannot be read: No such "
		  "file or directory\n",
		  "");
	check_tls("file", false, "f: [listener l] tls_cert: /file: is empty\n",
		  "");
	/* Who starts weir must read them; others need not be able to. */
	check_tls("locked", false, DENIED, "");
	check_tls("locked", true, "", DENIED);
}

/* ---- the farm ---- */

struct farm_case {
	const char *about;
	const char *listen;
	const char *backends[3];
	const char *errors;
	const char *warnings;
};

static const struct farm_case farms[] = {
	{ "backends elsewhere",
	  "0.0.0.0:25, [::]:25",
	  { "198.51.100.1:25", "198.51.100.2:25", "[2001:db8::1]:25" },
	  "",
	  "" },
	{ "one machine with several ports",
	  "0.0.0.0:25",
	  { "127.0.0.1:10025", "127.0.0.1:10026", "127.0.0.1:10027" },
	  "",
	  "" },
	{ "two at one address",
	  "0.0.0.0:25",
	  { "198.51.100.1:25", "198.51.100.2:25", "198.51.100.1:25" },
	  "",
	  "f: [backend b0] and [backend b2] have one address, 198.51.100.1 port "
	  "25: if that is one server, its sessions are counted and its limit "
	  "is learned twice\n" },
	{ "three at one address",
	  "0.0.0.0:25",
	  { "[2001:db8::1]:25", "[2001:db8::1]:25", "[2001:db8::1]:25" },
	  "",
	  "f: [backend b0] and [backend b1] have one address, 2001:db8::1 port "
	  "25: if that is one server, its sessions are counted and its limit "
	  "is learned twice\n"
	  "f: [backend b0] and [backend b2] have one address, 2001:db8::1 port "
	  "25: if that is one server, its sessions are counted and its limit "
	  "is learned twice\n" },
};

static void check_farm(const struct farm_case *c)
{
	char text[1024];
	struct config *config;

	print_message("  %s\n", c->about);
	(void)snprintf(text, sizeof(text),
		       "[listener l]\nlisten = %s\n"
		       "[backend b0]\naddress = %s\n"
		       "[backend b1]\naddress = %s\n"
		       "[backend b2]\naddress = %s\n",
		       c->listen, c->backends[0], c->backends[1],
		       c->backends[2]);
	config = parse(text);
	inspect_farm(config, "f", errors, warnings);
	assert_string_equal(text_of(errors), c->errors);
	assert_string_equal(text_of(warnings), c->warnings);
	config_free(&config);
}

static void two_names_for_one_address_are_told(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(farms); i++)
		check_farm(&farms[i]);
}

static void who_is_not_told_of_clients_is_told_of(void **state)
{
	struct config *config;

	(void)state;
	config = parse("[listener l]\n"
		       "[listener p]\nlisten = [::1]:26\nmode = tcp\n"
		       "[backend a]\naddress = 198.51.100.1:25\n"
		       "[backend b]\naddress = 198.51.100.2:25\n"
		       "identity = header\n"
		       "[backend c]\naddress = 198.51.100.3:25\n"
		       "identity = proxy-v2\n"
		       "[backend d]\naddress = 198.51.100.4:25\n"
		       "identity = xclient\n");
	inspect_farm(config, "f", errors, warnings);
	assert_string_equal(text_of(errors), "");
	assert_string_equal(
		text_of(warnings),
		"f: [backend b] is not told who the clients of [listener p] "
		"are: with mode = tcp, identity = header does nothing; "
		"proxy-v1, proxy-v2 and transparent do\n"
		"f: [backend d] is not told who the clients of [listener p] "
		"are: with mode = tcp, identity = xclient does nothing; "
		"proxy-v1, proxy-v2 and transparent do\n");
	config_free(&config);
}

static void a_client_s_address_is_not_for_everybody(void **state)
{
	bool root = geteuid() == 0;
	struct config *config;

	(void)state;
	config = parse("[weir]\ncontrol_socket = /tmp/s\n[listener l]\n"
		       "[backend a]\naddress = 198.51.100.1:25\n"
		       "identity = transparent\n");
	if (root)
		assert_int_equal(seteuid(NOBODY), 0);
	inspect_ground(config, "f", errors, warnings);
	if (root)
		assert_int_equal(seteuid(0), 0);
	/* Another user of root's process has it at hand, for all that. */
	assert_string_equal(
		text_of(errors),
		root ? ""
		     : "f: identity = transparent needs CAP_NET_ADMIN: start "
		       "weir as root, or let weir.service have it "
		       "(CapabilityBoundingSet= and, with User=, "
		       "AmbientCapabilities=)\n");
	errors->count = 0;
	config_free(&config);
}

/* 127.0.0.1 by another name, so to speak: this host's, whoever it is. */
static bool find_own_address(char text[CIDR_ADDR_TEXT_MAX])
{
	struct sockaddr_storage sa;
	struct cidr_addr addr;
	socklen_t len;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool found;

	assert_true(fd >= 0);
	assert_true(cidr_addr_parse("198.51.100.1", 12, &addr));
	len = (socklen_t)cidr_addr_to_sockaddr(&addr, 25, &sa);
	found = connect(fd, (struct sockaddr *)&sa, len) == 0;
	len = sizeof(sa);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	assert_int_equal(close(fd), 0);
	found = found && cidr_addr_from_sockaddr(&addr, NULL,
						 (struct sockaddr *)&sa, len);
	if (found)
		(void)cidr_addr_format(&addr, text, CIDR_ADDR_TEXT_MAX);
	return found;
}

static void an_address_of_this_host_is_no_backend(void **state)
{
	char own[CIDR_ADDR_TEXT_MAX], address[64], other[64], line[256];
	struct farm_case c = {
		.about = "where weir listens",
		.listen = "0.0.0.0:25",
		.backends = { "198.51.100.1:25", other, address },
		.errors = line,
		.warnings = "",
	};

	(void)state;
	/* Without a route there is none but loopback ones. */
	if (!find_own_address(own))
		skip();
	(void)snprintf(address, sizeof(address), "%s:25", own);
	(void)snprintf(other, sizeof(other), "%s:26", own);
	(void)snprintf(line, sizeof(line),
		       "f: address of [backend b2], %s port 25, is this "
		       "host's, and there [listener l] listens: mail would go "
		       "in circles\n",
		       own);
	check_farm(&c);
	c.about = "not in the other family";
	c.listen = "[::]:25";
	c.errors = "";
	check_farm(&c);
}

static void more_than_a_report_holds_is_counted(void **state)
{
	enum { MANY = CONFIG_ERRORS_MAX + 3 };
	static char text[MANY * 64 + 64];
	size_t len = (size_t)snprintf(text, sizeof(text), "[listener l]\n");
	struct config *config;

	(void)state;
	for (unsigned i = 0; i < MANY; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len,
					"[backend b%u]\n"
					"address = 198.51.100.1:25\n",
					i);
	config = parse(text);
	inspect_farm(config, "f", errors, warnings);
	assert_int_equal(errors->count, 0);
	assert_int_equal(warnings->count, CONFIG_ERRORS_MAX);
	assert_int_equal(warnings->omitted, MANY - 1 - CONFIG_ERRORS_MAX);
	config_free(&config);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_that_a_start_lacks_is_told),
		cmocka_unit_test(what_one_may_not_do_is_told),
		cmocka_unit_test(files_of_tls_are_read_or_told),
		cmocka_unit_test(two_names_for_one_address_are_told),
		cmocka_unit_test(who_is_not_told_of_clients_is_told_of),
		cmocka_unit_test(a_client_s_address_is_not_for_everybody),
		cmocka_unit_test(an_address_of_this_host_is_no_backend),
		cmocka_unit_test(more_than_a_report_holds_is_counted),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
