#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy/config.h"
#include "proxy/work.h"

/*
 * PROXY headers: what proxies in front say of a client, and what backends that
 * want one are told of it.
 */

/* ---- in ---- */

static struct proxyproto *header_of(struct worker *w, const struct client *c)
{
	return &w->headers[c - w->client_pool];
}

void proxy_await(struct worker *w, struct client *c)
{
	proxyproto_begin(header_of(w, c));
	c->header_by_ms = w->now_ms + w->config->timeouts.proxy_ms;
}

/* From here on it is the one that the proxy names, for all purposes. */
static void believe(struct client *c, const struct proxyproto_header *h)
{
	/* The proxy itself, or someone it knows nothing of (section 2). */
	if (h->local ||
	    (h->family != PROXYPROTO_INET && h->family != PROXYPROTO_INET6))
		return;
	c->via_set = true;
	c->via = c->addr;
	c->via_port = c->port;
	c->local = h->destination;
	c->local_port = h->destination_port;
	client_is(c, &h->source, h->source_port);
}

enum proxyproto_result proxy_read(struct worker *w, struct client *c)
{
	struct proxyproto *p = header_of(w, c);

	assert(c->header_by_ms > 0);
	while (c->in.first != NULL && p->result == PROXYPROTO_MORE) {
		size_t used = 0;

		(void)proxyproto_feed(p, c->in.first->data, c->in.first->len,
				      &used);
		work_queue_eat(w, &c->in, used);
	}
	if (p->result == PROXYPROTO_DONE) {
		c->header_by_ms = 0;
		c->headed = true;
		believe(c, &p->header);
	}
	return p->result;
}

void proxy_log(struct worker *w, const struct client *c)
{
	const struct proxyproto_header *h;
	char text[64], addr[CIDR_ADDR_TEXT_MAX];

	if (!c->via_set)
		return;
	h = &header_of(w, c)->header;
	(void)cidr_addr_format(&c->via, addr, sizeof(addr));
	(void)snprintf(text, sizeof(text),
		       cidr_addr_is_v4(&c->via) ? "%s:%u" : "[%s]:%u", addr,
		       c->via_port);
	log_word(&w->log, "via", text);
	if (h->id_len > 0)
		log_text(&w->log, "via_id", (const char *)h->id, h->id_len);
	if (h->tls.said && h->tls.tls)
		log_text(&w->log, "via_tls", h->tls.version,
			 h->tls.version_len);
}

/* ---- out ---- */

/* Which of the ends of a connection. */
typedef int end_fn(struct io *io, io_handle socket, struct sockaddr *addr,
		   size_t size);

/* Its address; if there is none, *addr and *port are left. */
static void address_of(struct worker *w, io_handle socket, end_fn *end,
		       struct cidr_addr *addr, uint16_t *port)
{
	struct sockaddr_storage ss = { 0 };

	if (end(w->io, socket, (struct sockaddr *)&ss, sizeof(ss)) == 0)
		(void)cidr_addr_from_sockaddr(
			addr, port, (const struct sockaddr *)&ss, sizeof(ss));
}

static uint8_t version_of(enum backend_identity identity)
{
	assert(backend_identity_heads(identity));
	return identity == BACKEND_IDENTITY_PROXY_V1 ? 1 : 2;
}

/* Whom the client was connected to, here or at the proxy before us. */
static void destination_of(struct worker *w, const struct client *c,
			   struct cidr_addr *addr, uint16_t *port)
{
	/* Of the same family, should the socket be gone. */
	*addr = cidr_addr_mask(&c->addr, 0, 0);
	*port = 0;
	if (c->via_set) {
		*addr = c->local;
		*port = c->local_port;
	} else if (c->socket != 0 && !c->ending) {
		address_of(w, c->socket, io_local, addr, port);
	}
}

static void describe_tls(const struct client *c, struct proxyproto_tls *tls)
{
	struct tls_info info;
	size_t len;

	tls_describe(c->tls.codec, &info);
	len = strlen(info.version);
	if (len > sizeof(tls->version))
		len = sizeof(tls->version);
	*tls = (struct proxyproto_tls){
		.said = true,
		.tls = true,
		.cert = info.subject[0] != '\0',
		.verified = info.verified,
		.version_len = (uint8_t)len,
	};
	memcpy(tls->version, info.version, len);
}

bool proxy_introduce(struct worker *w, struct server *v)
{
	const struct client *c = v->client;
	struct proxyproto_header h = { 0 };
	uint8_t octets[PROXYPROTO_WRITE_MAX];
	char id[WORK_ID_MAX];
	size_t len;

	if (!backend_identity_heads(v->identity))
		return true;
	assert(c != NULL);
	h.version = version_of(v->identity);
	h.family = PROXYPROTO_INET;
	h.source = c->addr;
	h.source_port = c->port;
	destination_of(w, c, &h.destination, &h.destination_port);
	if (c->secured)
		describe_tls(c, &h.tls);
	client_id(c, id);
	h.id_len = (uint8_t)strlen(id);
	static_assert((int)WORK_ID_MAX <= (int)PROXYPROTO_ID_MAX, "ids fit");
	memcpy(h.id, id, h.id_len);
	len = proxyproto_write(octets, &h);
	/* The greeting is awaited before anything else is said: so it goes out
	 * alone, in one send.  Postfix looks for it in what it reads first. */
	assert(v->out.first == NULL);
	return work_queue_text(w, &v->out, IO_SMALL, (const char *)octets, len);
}

struct xclient proxy_xclient(struct worker *w, const struct client *c)
{
	const struct session *s = &c->session;
	struct xclient who = {
		.addr = c->addr,
		.port = c->port,
		.esmtp = s->esmtp,
		.helo_len = s->helo_len,
	};

	memcpy(who.helo, s->helo, s->helo_len);
	destination_of(w, c, &who.dest, &who.dest_port);
	return who;
}

struct io_buf *proxy_introduce_probe(struct worker *w, struct prober *p)
{
	struct proxyproto_header h = {
		.version = version_of(p->identity),
		.local = true,
	};
	struct io_buf *buf = io_buf_get(w->io, IO_RESERVE);
	size_t len;

	if (buf == NULL) {
		stats_add(&w->stats->no_buffers, 1);
		return NULL;
	}
	/*
	 * "PROXY UNKNOWN" would say the same, but Postfix and Haraka refuse
	 * it: the connection's own ends are as true.
	 */
	if (h.version == 1) {
		h.local = false;
		h.family = PROXYPROTO_INET;
		address_of(w, p->socket, io_local, &h.source, &h.source_port);
		address_of(w, p->socket, io_peer, &h.destination,
			   &h.destination_port);
	}
	assert(buf->room >= PROXYPROTO_WRITE_MAX);
	len = proxyproto_write(buf->data, &h);
	buf->len = (uint32_t)len;
	buf->room -= (uint32_t)len;
	return buf;
}
