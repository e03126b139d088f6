#include "proxy/privilege.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proxy/config.h"

/* ---- CAP_NET_ADMIN ---- */

/* glibc has no functions for these two; libcap would be one more library. */
static bool get(struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};

	return syscall(SYS_capget, &header, data) == 0;
}

static bool set(const struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};

	return syscall(SYS_capset, &header, data) == 0;
}

bool privilege_is_wanted(const struct config *config)
{
	for (unsigned i = 0; i < config->backend_count; i++) {
		if (config->backends[i].identity == CONFIG_IDENTITY_TRANSPARENT)
			return true;
	}
	return false;
}

bool privilege_is_here(void)
{
	struct __user_cap_data_struct data[2];

	return get(data) && (data[0].permitted & 1U << CAP_NET_ADMIN) != 0;
}

void privilege_keep(void)
{
	/* Threads that are made from now on inherit it. */
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0)
		(void)fprintf(stderr, "weir: PR_SET_KEEPCAPS: %s\n",
			      strerror(errno));
}

bool privilege_narrow(void)
{
	struct __user_cap_data_struct data[2] = { 0 };

	if (geteuid() == 0)
		return true;
	data[0].permitted = 1U << CAP_NET_ADMIN;
	data[0].effective = data[0].permitted;
	if (set(data))
		return true;
	(void)fprintf(stderr,
		      "weir: cannot keep CAP_NET_ADMIN, which identity = "
		      "transparent needs: %s\n",
		      strerror(errno));
	return false;
}

/* ---- user and group ---- */

bool privilege_drop(const struct config_weir *weir)
{
	const struct passwd *user = NULL;
	gid_t gid;

	if (weir->user[0] == '\0' && weir->group[0] == '\0')
		return true;
	gid = getgid();
	if (weir->user[0] != '\0') {
		user = getpwnam(weir->user);
		if (user == NULL) {
			(void)fprintf(stderr,
				      "weir: user = \"%s\": no such user\n",
				      weir->user);
			return false;
		}
		gid = user->pw_gid;
	}
	if (weir->group[0] != '\0') {
		const struct group *group = getgrnam(weir->group);

		if (group == NULL) {
			(void)fprintf(stderr,
				      "weir: group = \"%s\": no such group\n",
				      weir->group);
			return false;
		}
		gid = group->gr_gid;
	}
	/* Started as that user already, by systemd for example. */
	if (geteuid() != 0 && (user == NULL || user->pw_uid == geteuid()) &&
	    gid == getegid())
		return true;
	if (setgroups(0, NULL) != 0 || setgid(gid) != 0 ||
	    (user != NULL && setuid(user->pw_uid) != 0)) {
		(void)fprintf(stderr,
			      "weir: cannot become user \"%s\" of group "
			      "\"%s\": %s: start it as root, or as them\n",
			      weir->user, weir->group, strerror(errno));
		return false;
	}
	return true;
}

void privilege_give_socket(const struct config_weir *weir)
{
	const struct passwd *user = weir->user[0] != '\0' ? getpwnam(weir->user)
							  : NULL;
	const struct group *group = weir->group[0] != '\0'
					    ? getgrnam(weir->group)
					    : NULL;

	if (weir->control_socket[0] == '\0' || (user == NULL && group == NULL))
		return;
	if (chown(weir->control_socket, user != NULL ? user->pw_uid : (uid_t)-1,
		  group != NULL  ? group->gr_gid
		  : user != NULL ? user->pw_gid
				 : (gid_t)-1) != 0)
		(void)fprintf(stderr, "weir: %s: chown: %s\n",
			      weir->control_socket, strerror(errno));
}
