#include "proxy/inspect.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy/config.h"
#include "proxy/privilege.h"
#include "proxy/tls_store.h"

/* Who asks for what, and where the answers go. */
struct inspection {
	const struct config_weir *weir;
	const char *path;
	struct config_report *errors;
	struct config_report *warnings;
	bool starter; /* whoever asks could start weir: what is denied is so */
};

__attribute__((format(printf, 3, 4))) static void note(
	struct config_report *report, const char *path, const char *format, ...)
{
	char text[CONFIG_ERROR_MAX];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (report->count == CONFIG_ERRORS_MAX) {
		report->omitted++;
		return;
	}
	struct config_error *error = &report->errors[report->count++];

	error->line = 0;
	(void)snprintf(error->text, sizeof(error->text), "%.200s: %.800s", path,
		       text);
}

/* ---- user and group ---- */

/* getpwnam(3): errno may be 0 or nearly anything where there is just none. */
static const char *why_none(int error)
{
	if (error == EIO || error == EINTR || error == ENOMEM ||
	    error == EMFILE || error == ENFILE)
		return strerror(error);
	return "there is none of that name";
}

/* Could who asks start weir? */
static bool is_starter(const struct config_weir *weir)
{
	const struct passwd *user;

	if (weir->user[0] == '\0' || geteuid() == 0)
		return true;
	user = getpwnam(weir->user);
	return user != NULL && user->pw_uid == geteuid();
}

static void inspect_user(struct inspection *in)
{
	in->starter = is_starter(in->weir);
	if (in->weir->user[0] != '\0') {
		errno = 0;
		if (getpwnam(in->weir->user) == NULL) {
			note(in->errors, in->path, "user = \"%s\": %s",
			     in->weir->user, why_none(errno));
		}
	}
	if (in->weir->group[0] == '\0')
		return;
	errno = 0;
	if (getgrnam(in->weir->group) == NULL)
		note(in->errors, in->path, "group = \"%s\": %s",
		     in->weir->group, why_none(errno));
}

/* ---- files ---- */

/* Nobody but who starts weir knows what that one is denied. */
static bool is_telling(const struct inspection *in, int error)
{
	return error != EACCES || in->starter;
}

/* /run is empty after a boot: what starts weir makes its directory there. */
static bool is_made_at_start(const char *dir)
{
	static const char run[] = "/run/", old[] = "/var/run/";

	return strncmp(dir, run, sizeof(run) - 1) == 0 ||
	       strncmp(dir, old, sizeof(old) - 1) == 0;
}

/* Can a file be made where this one is to be? */
static void inspect_directory(struct inspection *in, const char *key,
			      const char *value)
{
	const char *slash = strrchr(value, '/');
	char dir[CONFIG_TEXT_MAX] = "/";
	struct stat st;

	assert(slash != NULL);
	assert(slash - value < CONFIG_TEXT_MAX);
	if (slash > value)
		memcpy(dir, value, (size_t)(slash - value));
	if (stat(dir, &st) != 0) {
		int error = errno;

		if (error == ENOENT && is_made_at_start(dir)) {
			note(in->warnings, in->path,
			     "%s = \"%s\": there is no directory %s: the "
			     "start needs it; RuntimeDirectory= of "
			     "weir.service makes it",
			     key, value, dir);
		} else if (is_telling(in, error)) {
			note(in->errors, in->path, "%s = \"%s\": %s: %s", key,
			     value, dir, strerror(error));
		}
		return;
	}
	if (!S_ISDIR(st.st_mode)) {
		note(in->errors, in->path, "%s = \"%s\": %s is no directory",
		     key, value, dir);
		return;
	}
	if (faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) != 0 &&
	    is_telling(in, errno)) {
		note(in->errors, in->path,
		     "%s = \"%s\": nothing can be made in %s: %s", key, value,
		     dir, strerror(errno));
	}
}

static void inspect_log(struct inspection *in)
{
	const char *log = in->weir->log_path;
	struct stat st;

	if (in->weir->log != LOGGER_FILE)
		return;
	if (stat(log, &st) != 0) {
		inspect_directory(in, "log", log);
		return;
	}
	if (S_ISDIR(st.st_mode))
		note(in->errors, in->path, "log = \"%s\": is a directory", log);
	else if (faccessat(AT_FDCWD, log, W_OK, AT_EACCESS) != 0 &&
		 is_telling(in, errno)) {
		note(in->errors, in->path,
		     "log = \"%s\": cannot be written: %s", log,
		     strerror(errno));
	}
}

static void inspect_socket(struct inspection *in)
{
	const char *path = in->weir->control_socket;
	struct stat st;

	if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
		note(in->errors, in->path,
		     "control_socket = \"%s\": is there already, and no "
		     "socket: remove it, or name another",
		     path);
		return;
	}
	inspect_directory(in, "control_socket", path);
}

void inspect_ground(const struct config *config, const char *path,
		    struct config_report *errors,
		    struct config_report *warnings)
{
	struct inspection in = {
		.weir = &config->weir,
		.path = path,
		.errors = errors,
		.warnings = warnings,
	};

	inspect_user(&in);
	inspect_log(&in);
	inspect_socket(&in);
	if (privilege_is_wanted(config) && in.starter && !privilege_is_here()) {
		note(errors, path,
		     "identity = transparent needs CAP_NET_ADMIN: start weir "
		     "as root, or let weir.service have it "
		     "(CapabilityBoundingSet= and, with User=, "
		     "AmbientCapabilities=)");
	}
}

/* ---- TLS ---- */

void inspect_tls(const struct config *config, const char *path,
		 struct tls_store *tls, int64_t now_s,
		 struct config_report *errors, struct config_report *warnings)
{
	struct config_report *told = config_report_new();
	const bool starter = is_starter(&config->weir);

	if (told == NULL) {
		note(errors, path, "out of memory");
		return;
	}
	(void)tls_store_load(tls, config, now_s, told);
	for (unsigned i = 0; i < told->count; i++) {
		const char *text = told->errors[i].text;
		/* A key is nobody's to read but root's: so it should be. */
		bool denied = !starter &&
			      strstr(text, strerror(EACCES)) != NULL;

		note(denied ? warnings : errors, path, "%s", text);
	}
	errors->omitted += told->omitted;
	told->count = 0;
	tls_store_warn(tls, config, now_s, told);
	for (unsigned i = 0; i < told->count; i++)
		note(warnings, path, "%s", told->errors[i].text);
	config_report_free(&told);
}

/* ---- backends ---- */

static bool is_same(const struct config_address *a,
		    const struct config_address *b)
{
	return a->port == b->port && cidr_addr_equal(&a->addr, &b->addr);
}

/*
 * Is it one of this host's?  To those a connection comes from themselves.
 * Connecting a UDP socket sends nothing, and needs no netlink, which a
 * sandbox may forbid.
 */
static bool is_own(const struct config_address *address)
{
	struct sockaddr_storage sa;
	socklen_t len = (socklen_t)cidr_addr_to_sockaddr(&address->addr,
							 address->port, &sa);
	int fd = socket(sa.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct cidr_addr from;
	bool own;

	if (fd < 0)
		return false;
	own = connect(fd, (const struct sockaddr *)&sa, len) == 0;
	len = sizeof(sa);
	own = own && getsockname(fd, (struct sockaddr *)&sa, &len) == 0 &&
	      cidr_addr_from_sockaddr(&from, NULL, (const struct sockaddr *)&sa,
				      len) &&
	      cidr_addr_equal(&from, &address->addr);
	(void)close(fd);
	return own;
}

/* In a session that is only relayed nobody can be introduced. */
static void inspect_plain(const struct config *config, const char *path,
			  const struct config_backend *b,
			  struct config_report *warnings)
{
	if (b->identity != CONFIG_IDENTITY_HEADER &&
	    b->identity != CONFIG_IDENTITY_XCLIENT)
		return;
	for (unsigned i = 0; i < config->listener_count; i++) {
		const struct config_listener *l = &config->listeners[i];

		if (l->mode != CONFIG_MODE_TCP)
			continue;
		note(warnings, path,
		     "[backend %s] is not told who the clients of [listener "
		     "%s] are: with mode = tcp, identity = %s does nothing; "
		     "proxy-v1, proxy-v2 and transparent do",
		     b->name, l->name,
		     b->identity == CONFIG_IDENTITY_HEADER ? "header"
							   : "xclient");
	}
}

void inspect_farm(const struct config *config, const char *path,
		  struct config_report *errors, struct config_report *warnings)
{
	char text[CIDR_ADDR_TEXT_MAX];

	for (unsigned i = 0; i < config->backend_count; i++) {
		const struct config_backend *b = &config->backends[i];
		const struct config_listener *l = config_find_loop(
			config, &b->address, true);
		unsigned same = 0;

		(void)cidr_addr_format(&b->address.addr, text, sizeof(text));
		if (l != NULL && is_own(&b->address)) {
			note(errors, path,
			     "address of [backend %s], %s port %u, is this "
			     "host's, and there [listener %s] listens: mail "
			     "would go in circles",
			     b->name, text, b->address.port, l->name);
		}
		inspect_plain(config, path, b, warnings);
		while (!is_same(&config->backends[same].address, &b->address))
			same++;
		if (same < i) {
			note(warnings, path,
			     "[backend %s] and [backend %s] have one address, "
			     "%s port %u: if that is one server, its sessions "
			     "are counted and its limit is learned twice",
			     config->backends[same].name, b->name, text,
			     b->address.port);
		}
	}
}
