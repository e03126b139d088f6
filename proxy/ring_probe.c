#include "proxy/ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

/*
 * Flags have no probe: the kernel answers -EINVAL to one it does not know,
 * at the request that uses it.  So each is tried, on a socket pair.
 */
enum {
	TRIAL_GROUP = IO_POOLS,
	TRIAL_ENTRIES = 8,
	TRIAL_SIZE = 64,    /* octets of a buffer */
	TRIAL_OCTETS = 256, /* sent; the buffers hold twice as many */
	TRIAL_CREDIT = 128,
	TRIAL_WAITS = 100, /* at most, of 10 ms each */
};

struct trial {
	struct io_uring_buf_ring *ring;
	uint8_t memory[TRIAL_ENTRIES * TRIAL_SIZE];
};

/* --- the words --- */

static void say(char error[IO_ERROR_SIZE], const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void say(char error[IO_ERROR_SIZE], const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(error, IO_ERROR_SIZE, format, args);
	va_end(args);
}

/* The sysctl's value, or -1 where there is none (before Linux 6.6). */
static int disabled(void)
{
	char text[8] = "";
	int fd = open("/proc/sys/kernel/io_uring_disabled",
		      O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	ssize_t len = read(fd, text, sizeof(text) - 1);

	(void)close(fd);
	return len > 0 && text[0] >= '0' && text[0] <= '9' ? text[0] - '0' : -1;
}

/* What the kernel locks for one ring, generously: 4 pages of heads and so. */
static uint64_t locked_octets(const struct ring_tuning *tuning)
{
	uint64_t octets = 4 * UINT64_C(4096);

	octets += tuning->sq_entries *
		  (sizeof(struct io_uring_sqe) + sizeof(uint32_t));
	octets += tuning->cq_entries * sizeof(struct io_uring_cqe);
	for (int i = 0; i < IO_POOLS; i++)
		octets += UINT64_C(4096) + (uint64_t)tuning->given_max[i] *
						   sizeof(struct io_uring_buf);
	return octets;
}

static void explain_locked(const struct io *io, const char *what,
			   char error[IO_ERROR_SIZE])
{
	struct rlimit limit = { 0 };

	(void)getrlimit(RLIMIT_MEMLOCK, &limit);
	say(error,
	    "io_uring (%s): ENOMEM: a worker locks %" PRIu64
	    " octets of memory, and RLIMIT_MEMLOCK allows this user %" PRIu64
	    " in all: raise it (ulimit -l, LimitMEMLOCK= in the unit), "
	    "or run fewer workers",
	    what, locked_octets(&io->tuning), (uint64_t)limit.rlim_cur);
}

static void explain_forbidden(const char *what, int error_number,
			      char error[IO_ERROR_SIZE])
{
	int value = disabled();

	if (value > 0) {
		say(error,
		    "io_uring (%s): %s: kernel.io_uring_disabled = %d: "
		    "set it to 0 (sysctl kernel.io_uring_disabled=0)%s",
		    what, strerrorname_np(error_number), value,
		    value == 1 ? ", or put weir into the group of "
				 "kernel.io_uring_group"
			       : "");
		return;
	}
	say(error,
	    "io_uring (%s): %s: kernel.io_uring_disabled %s, so a seccomp "
	    "filter forbids it: allow io_uring_setup, io_uring_enter and "
	    "io_uring_register (container: its seccomp profile)",
	    what, strerrorname_np(error_number),
	    value == 0 ? "= 0" : "is not there");
}

static void explain_old(const char *what, const char *name,
			char error[IO_ERROR_SIZE])
{
	struct utsname system;

	if (uname(&system) != 0)
		memcpy(system.release, "unknown", sizeof("unknown"));
	say(error,
	    "io_uring (%s): %s: weir needs Linux 6.1 or newer, with io_uring; "
	    "this is %s",
	    what, name, system.release);
}

static void explain_descriptors(const char *what, const char *name,
				char error[IO_ERROR_SIZE])
{
	say(error,
	    "io_uring (%s): %s: no descriptor left: raise "
	    "RLIMIT_NOFILE (ulimit -n, LimitNOFILE= in the unit)",
	    what, name);
}

static void explain_other(const char *what, const char *name, int number,
			  char error[IO_ERROR_SIZE])
{
	say(error, "io_uring (%s): %s: %s", what, name, strerror(number));
}

void ring_probe_explain(const struct io *io, const char *what, int result,
			char error[IO_ERROR_SIZE])
{
	assert(result < 0);
	const char *name = strerrorname_np(-result);

	if (name == NULL)
		name = "unknown error";
	if (result == -ENOMEM)
		explain_locked(io, what, error);
	else if (result == -EPERM || result == -EACCES ||
		 (result == -ENOSYS && disabled() >= 0))
		explain_forbidden(what, -result, error);
	else if (result == -EINVAL || result == -ENOSYS)
		explain_old(what, name, error);
	else if (result == -EMFILE || result == -ENFILE)
		explain_descriptors(what, name, error);
	else
		explain_other(what, name, -result, error);
}

/* --- the trials --- */

/* Receive until the request ends.  Returns octets, or -errno. */
static int collect(struct io *io)
{
	int sum = 0;

	for (int waits = 0; waits < TRIAL_WAITS; waits++) {
		struct __kernel_timespec timeout = { .tv_nsec = 10000000 };
		struct io_uring_cqe *cqe = NULL;
		int r = ring_enter(io, 1, &timeout);

		if (r < 0 && r != -ETIME && r != -EINTR)
			return r;
		while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
			int res = cqe->res;
			bool more = (cqe->flags & IORING_CQE_F_MORE) != 0;

			io_uring_cqe_seen(&io->ring, cqe);
			if (res < 0)
				return res;
			sum += res;
			if (!more)
				return sum;
		}
	}
	return -ETIME;
}

static int receive(struct io *io, int fd, unsigned flags, uint32_t credit)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	assert(sqe != NULL); /* the queue is empty at start */
	io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
	sqe->ioprio |= (uint16_t)flags;
	sqe->file_index = credit; /* optlen */
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = TRIAL_GROUP;
	sqe->user_data = RING_NOBODY;
	return collect(io);
}

static void fill(struct trial *trial)
{
	io_uring_buf_ring_init(trial->ring);
	for (int i = 0; i < TRIAL_ENTRIES; i++) {
		size_t at = (size_t)i * TRIAL_SIZE;

		io_uring_buf_ring_add(trial->ring, trial->memory + at,
				      TRIAL_SIZE, (uint16_t)i,
				      TRIAL_ENTRIES - 1, i);
	}
	io_uring_buf_ring_advance(trial->ring, TRIAL_ENTRIES);
}

/*
 * Send TRIAL_OCTETS and the end of the stream, and receive them in this way.
 * Returns the octets that came before the receive ended, or -errno.
 */
static int try(struct io *io, struct trial *trial, unsigned flags,
	       uint32_t credit)
{
	static const uint8_t octets[TRIAL_OCTETS];
	struct io_uring_buf_reg reg = {
		.ring_addr = (uint64_t)(uintptr_t)trial->ring,
		.ring_entries = TRIAL_ENTRIES,
		.bgid = TRIAL_GROUP,
	};
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
		return -errno;
	fill(trial);
	int r = io_uring_register_buf_ring(&io->ring, &reg, 0);

	if (r == 0) {
		if (send(fds[0], octets, sizeof(octets), MSG_NOSIGNAL) !=
		    (ssize_t)sizeof(octets))
			r = -EIO;
		(void)close(fds[0]);
		fds[0] = -1;
		if (r == 0)
			r = receive(io, fds[1], flags, credit);
		(void)io_uring_unregister_buf_ring(&io->ring, TRIAL_GROUP);
	}
	if (fds[0] >= 0)
		(void)close(fds[0]);
	(void)close(fds[1]);
	return r;
}

static void try_no_iowait(struct io *io)
{
	if (!io->tuning.use_no_iowait)
		return;
	io->tuning.use_no_iowait = (io->ring.features & RING_FEAT_NO_IOWAIT) !=
					   0 &&
				   ring_enter(io, 0, NULL) >= 0;
}

/* One message of a ring to itself: it comes, and nothing else does. */
static bool message_comes(struct io *io)
{
	const uint64_t told = (uint64_t)RING_TOLD << RING_OP_SHIFT;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	unsigned seen = 0;

	assert(sqe != NULL); /* the queue is empty at start */
	io_uring_prep_msg_ring(sqe, io->ring.ring_fd, 0, told, 0);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = RING_NOBODY;
	for (int waits = 0; waits < TRIAL_WAITS && seen == 0; waits++) {
		struct __kernel_timespec timeout = { .tv_nsec = 10000000 };
		struct io_uring_cqe *cqe = NULL;
		int r = ring_enter(io, 1, &timeout);

		if (r < 0 && r != -ETIME && r != -EINTR)
			return false;
		while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
			if (cqe->user_data != told || cqe->res < 0)
				seen++; /* it failed: never one alone */
			seen++;
			io_uring_cqe_seen(&io->ring, cqe);
		}
	}
	return seen == 1;
}

/*
 * What a message does to a ring with DEFER_TASKRUN has changed often: Linux
 * 6.1 writes into the other ring's queue itself, and a wake-up has been
 * reported missing (liburing issue 839, with 6.1.22); 6.2 to 6.10 interrupt
 * the other thread as a signal does.  From 6.11 on it is deferred work of the
 * other ring, like every completion.  That has no feature bit; the next
 * release has.  Measured there, two threads in turn: 0.63 to 0.92 of the CPU
 * time of an eventfd's write and read.
 */
static void try_message(struct io *io)
{
	if (!io->tuning.use_message)
		return;
	io->tuning.use_message = (io->ring.features & RING_FEAT_MIN_TIMEOUT) !=
					 0 &&
				 message_comes(io);
}

static int try_all(struct io *io, char error[IO_ERROR_SIZE])
{
	struct trial trial = { .ring = ring_map(4096) };

	if (trial.ring == NULL) {
		say(error, "out of memory");
		return -ENOMEM;
	}
	try_no_iowait(io);
	try_message(io);
	int r = try(io, &trial, 0, 0);

	if (r != TRIAL_OCTETS)
		ring_probe_explain(io, "multishot receive", r < 0 ? r : -EINVAL,
				   error);
	if (io->tuning.use_credit)
		io->tuning.use_credit = try(io, &trial, 0, TRIAL_CREDIT) ==
					TRIAL_CREDIT;
	/*
	 * Only the credit bounds a bundle: without, the kernel goes on as long
	 * as it finds octets and buffers, whatever length was asked for.
	 */
	io->tuning.use_bundle = io->tuning.use_bundle &&
				io->tuning.use_credit &&
				try(io, &trial, RING_RECVSEND_BUNDLE, 0) ==
					TRIAL_OCTETS;
	(void)munmap(trial.ring, 4096);
	if (r < 0)
		return r;
	return r == TRIAL_OCTETS ? 0 : -EINVAL;
}

int ring_probe_setup(struct io *io, char error[IO_ERROR_SIZE])
{
	/*
	 * SINGLE_ISSUER|DEFER_TASKRUN: without, io_uring is dearer than epoll.
	 * Never IORING_SETUP_NO_SQARRAY: liburing 2.3 does not know it, and
	 * writes over the ring's heads.
	 */
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER |
			 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
			 IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
		.cq_entries = io->tuning.cq_entries,
	};
	int r = io_uring_queue_init_params(io->tuning.sq_entries, &io->ring,
					   &params);

	if (r < 0) {
		ring_probe_explain(io, "setup", r, error);
		return r;
	}
	r = try_all(io, error);
	if (r < 0)
		io_uring_queue_exit(&io->ring);
	return r;
}
