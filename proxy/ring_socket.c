#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * Half-open peers: after a minute of silence ask every 30 s, and give up
 * when nothing has been acknowledged for five minutes, which is longer than
 * any healthy peer stalls (RFC 5321, section 4.5.3.2, gives a buffer of data
 * three minutes).
 */
enum {
	KEEP_IDLE_S = 60,
	KEEP_INTERVAL_S = 30,
	KEEP_COUNT = 9,
	USER_TIMEOUT_MS = 300 * 1000,
};

socklen_t ring_socket_len(const struct sockaddr *addr)
{
	assert(addr != NULL);
	if (addr->sa_family == AF_INET)
		return sizeof(struct sockaddr_in);
	if (addr->sa_family == AF_INET6)
		return sizeof(struct sockaddr_in6);
	if (addr->sa_family == AF_UNIX)
		return sizeof(struct sockaddr_un);
	return 0;
}

static int set_option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)) != 0)
		return -errno;
	return 0;
}

struct option {
	int level;
	int name;
	int value;
};

/* An accepted socket inherits all of these from its listener, for nothing. */
static const struct option listener_options[] = {
	{ SOL_SOCKET, SO_REUSEADDR, 1 },
	{ SOL_SOCKET, SO_REUSEPORT, 1 },
	{ SOL_SOCKET, SO_KEEPALIVE, 1 },
	{ IPPROTO_TCP, TCP_NODELAY, 1 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S },
	{ IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL_S },
	{ IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS },
};

static int set_options(int fd, const struct option *options, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int r = set_option(fd, options[i].level, options[i].name,
				   options[i].value);

		if (r != 0)
			return r;
	}
	return 0;
}

#define SET_OPTIONS(fd, table)                                                 \
	set_options(fd, table, sizeof(table) / sizeof((table)[0]))

/*
 * A blocking socket: with O_NONBLOCK io_uring would answer -EAGAIN where it
 * is to wait.  Returns a descriptor or -errno.
 */
static int make(const struct sockaddr *addr)
{
	if (ring_socket_len(addr) == 0)
		return -EAFNOSUPPORT;
	int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	return fd;
}

/* Returns fd, or closes it and returns the error. */
static int fd_or_error(int fd, int error)
{
	assert(error <= 0);
	if (error == 0)
		return fd;
	(void)close(fd);
	return error;
}

static int bind_to(int fd, const struct sockaddr *addr)
{
	return bind(fd, addr, ring_socket_len(addr)) == 0 ? 0 : -errno;
}

static int listen_on(int fd)
{
	return listen(fd, SOMAXCONN) == 0 ? 0 : -errno;
}

static int listen_tcp(const struct sockaddr *addr)
{
	int fd = make(addr);

	if (fd < 0)
		return fd;
	int r = SET_OPTIONS(fd, listener_options);

	/* [::] must not take what 0.0.0.0 is for. */
	if (r == 0 && addr->sa_family == AF_INET6)
		r = set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	if (r == 0)
		r = bind_to(fd, addr);
	if (r == 0)
		r = listen_on(fd);
	return fd_or_error(fd, r);
}

/*
 * Whether nobody listens on this socket file any more: a connect is refused.
 * -EAGAIN is a listener whose backlog is full.
 */
static bool stale(const struct sockaddr_un *addr)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
		return false;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return false;
	int r = connect(fd, (const struct sockaddr *)addr, sizeof(*addr));
	bool refused = r != 0 && errno == ECONNREFUSED;

	(void)close(fd);
	return refused;
}

/* The name is in use by a file that is no socket. */
static bool foreign(const struct sockaddr_un *addr)
{
	struct stat st;

	return lstat(addr->sun_path, &st) == 0 && !S_ISSOCK(st.st_mode);
}

/*
 * The mode of the descriptor becomes that of the file, less the umask; the
 * chmod adds what the umask took.  So at no time is more allowed than asked.
 */
static int listen_unix(const struct sockaddr_un *addr, unsigned mode)
{
	if (addr->sun_path[0] == '\0' ||
	    memchr(addr->sun_path, '\0', sizeof(addr->sun_path)) == NULL)
		return -EINVAL;
	const struct sockaddr *name = (const struct sockaddr *)addr;
	int fd = make(name);

	if (fd < 0)
		return fd;
	int r = fchmod(fd, (mode_t)mode) == 0 ? 0 : -errno;

	if (r == 0)
		r = bind_to(fd, name);
	if (r == -EADDRINUSE && foreign(addr))
		r = -ENOTSOCK;
	if (r == -EADDRINUSE && stale(addr)) {
		r = unlink(addr->sun_path) == 0 ? 0 : -errno;
		if (r == 0)
			r = bind_to(fd, name);
	}
	if (r == 0 && chmod(addr->sun_path, (mode_t)mode) != 0)
		r = -errno;
	if (r == 0)
		r = listen_on(fd);
	return fd_or_error(fd, r);
}

int ring_socket_listen(const struct sockaddr *addr, unsigned mode)
{
	struct sockaddr_un path;

	if (addr->sa_family != AF_UNIX)
		return listen_tcp(addr);
	memcpy(&path, addr, sizeof(path));
	return listen_unix(&path, mode);
}

/* May the socket be bound to an address of somebody else?  0 or -errno. */
static int set_transparent(int fd, const struct sockaddr *addr)
{
	if (addr->sa_family == AF_INET)
		return set_option(fd, IPPROTO_IP, IP_TRANSPARENT, 1);
	if (addr->sa_family == AF_INET6)
		return set_option(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1);
	return -EAFNOSUPPORT;
}

/* The address, with a port that the kernel chooses. */
static int bind_any_port(int fd, const struct sockaddr *addr)
{
	struct sockaddr_in in;
	struct sockaddr_in6 in6;

	if (addr->sa_family == AF_INET) {
		memcpy(&in, addr, sizeof(in));
		in.sin_port = 0;
		return bind_to(fd, (const struct sockaddr *)&in);
	}
	memcpy(&in6, addr, sizeof(in6));
	in6.sin6_port = 0;
	return bind_to(fd, (const struct sockaddr *)&in6);
}

static int bind_foreign(int fd, const struct sockaddr *addr,
			const struct sockaddr *source)
{
	int r = set_transparent(fd, addr);

	if (r == 0 && source->sa_family != addr->sa_family)
		r = -EAFNOSUPPORT;
	return r == 0 ? bind_any_port(fd, source) : r;
}

int ring_socket_connect(const struct sockaddr *addr,
			const struct sockaddr *source, bool transparent)
{
	int fd = make(addr);
	int r = 0;

	if (fd < 0)
		return fd;
	/* No more than this: each connect pays for it, and how long a peer
	 * may be silent is watched above io.h. */
	if (addr->sa_family != AF_UNIX)
		r = set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (r != 0 || source == NULL)
		return fd_or_error(fd, r);
	/* The port is chosen at the connect, by both ends' addresses. */
	r = set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
	if (r == 0 && transparent)
		r = bind_foreign(fd, addr, source);
	else if (r == 0)
		r = bind_to(fd, source);
	return fd_or_error(fd, r);
}
