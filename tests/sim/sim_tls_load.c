#include <stdio.h>
#include <string.h>

#include "proxy/tls_load.h"
#include "tests/sim/sim_tls.h"

/*
 * tls_load.h without a file: "/sim/mx.pem" and the like are the papers of
 * sim_tls.h, and nothing else is there.
 */

static const char *const paths[SIM_TLS_PAPERS] = {
	[SIM_TLS_MX] = "/sim/mx.pem",
	[SIM_TLS_FARM] = "/sim/farm.pem",
	[SIM_TLS_WRONG] = "/sim/wrong.pem",
	[SIM_TLS_CLIENT] = "/sim/client.pem",
	[SIM_TLS_PROXY] = "/sim/proxy.pem",
};

bool tls_pair_load(struct tls_pair *pair, const char *cert_path,
		   const char *key_path, const char *ocsp_path,
		   char error[TLS_ERROR_SIZE])
{
	(void)key_path; /* a paper has its key with it */
	(void)ocsp_path;
	for (unsigned i = 0; i < SIM_TLS_PAPERS; i++) {
		if (strcmp(cert_path, paths[i]) != 0)
			continue;
		*pair = *sim_tls_paper((enum sim_tls_paper)i);
		return true;
	}
	*pair = (struct tls_pair){ 0 };
	snprintf(error, TLS_ERROR_SIZE, "%s: there is no such paper",
		 cert_path);
	return false;
}

/* The octets are those of the papers, which stay. */
void tls_pair_unload(struct tls_pair *pair)
{
	*pair = (struct tls_pair){ 0 };
}

struct tls_trust *tls_trust_load(const char *path, char error[TLS_ERROR_SIZE])
{
	if (strcmp(path, "/sim/ca.pem") == 0)
		return tls_trust_new(sim_tls_ca(), path, error);
	snprintf(error, TLS_ERROR_SIZE, "%s: there are no such CAs", path);
	return NULL;
}
