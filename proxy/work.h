#ifndef PROXY_WORK_H
#define PROXY_WORK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balancer/balancer.h"
#include "balancer/room.h"
#include "health/probe.h"
#include "proxy/cidr.h"
#include "proxy/hold.h"
#include "proxy/io.h"
#include "proxy/log.h"
#include "proxy/proxyproto.h"
#include "proxy/session.h"
#include "proxy/timer.h"
#include "proxy/tls.h"
#include "proxy/upstream.h"
#include "proxy/worker.h"
#include "proxy/xclient.h"

/*
 * What the worker*.c files share; nobody else includes it.
 *
 * Nothing here is freed while a worker runs: clients, servers and probes come
 * from pools made at the start and go back when IO_CLOSED has come, which is
 * a socket's last event.  So no event ever finds its owner gone.
 */

struct config;
struct operator;
struct relay;

/* What io events are for: the first member of each owner. */
enum work_kind {
	WORK_LISTENER,
	WORK_CLIENT,
	WORK_SERVER,
	WORK_PROBE,
	WORK_CONTROL,  /* the control socket's listener */
	WORK_OPERATOR, /* a connection to it */
};

struct work {
	enum work_kind kind;
	struct timer timer;
	/* In worker.loud or .again, or NULL. */
	struct work *next_loud, *prev_loud;
	/* In worker.costly: its handshake waits for a later turn. */
	struct work *next_costly, *prev_costly;
};

enum {
	/* A direction stops being read when so much waits to be sent. */
	WORK_WINDOW = 128 * 1024,
	/* Octets asked for at a time, of commands and of bodies. */
	WORK_COMMAND_CREDIT = 8 * 1024,
	WORK_BODY_CREDIT = 64 * 1024,
	/* A body longer than this goes on in big buffers. */
	WORK_BULK = 16 * 1024,
	/* After our FIN, for the peer's: RFC 5321, section 3.8 and RFC 1122,
	 * section 4.2.2.13: closing with data unread would reset. */
	WORK_LINGER_MS = 2000,
	/* For a client that reads nothing of our last words: the session is
	 * over and counts no more, so its socket must not stay for long. */
	WORK_LAST_WORDS_MS = 30000,
	/* Of the reserve, in eighths, clients leave so much to others. */
	WORK_RESERVE_KEPT = 3,
	WORK_LISTENERS_MAX = 128,
	WORK_QUEUE_ID_MAX = SMTP_QUEUE_ID_MAX,
	WORK_REPLY_MAX = 160,  /* of a reply's text, for the log */
	WORK_REFUSED_MAX = 96, /* who refused a message before, for the log */
	/* Kept connections that a message may choose from: the last used. */
	WORK_KEPT_SCAN = 32,
	/* Holders of slots that are looked at when one is wanted. */
	WORK_HOLDERS_SCAN = 32,
	/* A backend is given so long to greet before others are compared. */
	WORK_GREETING_MS = 1000,
	/* Between two lines of what may fail all the time. */
	WORK_SAY_AGAIN_MS = 1000,
	/* After a refused session above a limit, the first time. */
	WORK_RETRY_MS = 500,
	/* Between looks at what TLS leaves behind, and so many handshakes
	 * leave enough of it to be worth a look through the heap. */
	WORK_TIDY_MS = 5000,
	WORK_TIDY_HANDSHAKES = 200,
	/* For who is refused, to come to where it can read that. */
	WORK_REFUSED_TLS_MS = 5000,
};

/*
 * Octets that wait, as a chain of buffers.  Small pieces are copied into the
 * room behind the last one, so that a chain of n octets holds at most about
 * n / 2048 + 2 buffers whatever the size of the pieces.
 */
struct work_queue {
	struct io_buf *first, *last;
	size_t octets;
};

/* The TLS of a connection: what is queued elsewhere is in the clear. */
struct work_tls {
	struct tls *codec;      /* NULL: there is none */
	struct work_queue wire; /* received, not yet decoded */
};

struct work_listener {
	struct work work;
	io_handle socket;
	unsigned config_at; /* of config.listeners[] */
};

/* A client's connection. */
struct client {
	struct work work;
	io_handle socket; /* 0: closed */
	struct session session;
	struct server *server; /* bound, being bound, or lingering; or NULL */
	struct server *gift;   /* kept, and given to it in the room */
	struct client *next, *prev; /* in worker.clients or .free_clients */
	struct client *next_hungry; /* in worker.hungry */
	bool hungry;                /* waits there for buffers to be free */
	/* In worker.holders: has a slot that it may have to give back. */
	struct client *next_holder, *prev_holder;
	bool admitted;         /* or refused: the session knows */
	struct work_queue in;  /* received, not yet consumed */
	struct work_queue out; /* to be sent */
	struct work_tls tls;
	bool tls_due;     /* begins when all is sent; till then nothing that
			    comes counts */
	bool tls_awaited; /* it begins with the first octets, in its turn */
	bool secured;     /* the session was told so */
	bool tls_broken;  /* the session was told so */
	/* A handshake comes before the greeting, until then; 0: it does not. */
	int64_t tls_by_ms;
	enum admission_verdict verdict; /* meanwhile */
	bool receiving;                 /* an io_recv() stands */
	bool eof, eof_told;
	bool gone_told; /* reset by the client */
	bool ending;    /* io_close() or io_abort() was called */
	bool starved;   /* a buffer was wanted and none was free */
	bool flushing;  /* session over: our FIN follows what is queued */
	bool fin_sent;
	/* Waiting for a slot; 0: not. */
	room_ticket ticket;
	int64_t ticket_ms; /* since when */
	int64_t waited_ms; /* for this message, in all */
	bool waited;
	bool reused; /* this message went over a kept connection */
	/* slot = body: what is held of the message. */
	struct hold_text body, envelope;
	struct hold_place marked; /* RCPTs before here are marked */
	struct hold_place said;   /* and before here said again */
	struct hold_place sent;   /* of the body */
	bool replaying;           /* more of the envelope is to be said */
	bool sending;             /* more of the body is to be sent */
	bool sending_whole;       /* and its end is the end of data */
	int64_t sent_ms;   /* last progress of sending, or nothing to send */
	int64_t linger_ms; /* when to stop waiting for the peer's FIN */
	int64_t trace_wall_ms; /* in the trace field of this backend */
	/* When the PROXY header that it must begin with has to be whole; 0:
	 * it is, or none is due. */
	int64_t header_by_ms;
	bool headed;           /* it began with one */
	struct cidr_addr addr; /* who it is; named by the header, if via_set */
	uint16_t port;
	/* via_set: the proxy that it came by, and whom it was connected to
	 * there. */
	bool via_set;
	uint16_t via_port, local_port;
	struct cidr_addr via, local;
	uint64_t id;
	uint64_t octets_in, octets_out;
	uint64_t recipients;
	uint64_t source; /* hash of its /32 or /64, for balancer votes */
	struct balancer_need need;
	bool blamed_set; /* blamed: what the last backend tried was noted for */
	struct balancer_slot blamed_slot;
	struct balancer_outcome blamed;
	const char *limit;       /* refused: by which; or NULL */
	const char *backend_tls; /* that the message goes by; or NULL */
	char *lines;             /* the session's, from worker.lines */
	char addr_text[CIDR_ADDR_TEXT_MAX];
	char backend[BACKEND_NAME_MAX]; /* of the current or last message */
	enum busy_class refused_class;  /* of who refused it last */
	char refused[WORK_REFUSED_MAX]; /* "mx1:GREET:busy,mx2:MAIL:sick" */
	uint16_t queue_id_len, reply_len;
	char queue_id[WORK_QUEUE_ID_MAX];
	char reply[WORK_REPLY_MAX]; /* the last of the backend, its text */
};

/* A connection to a backend. */
struct server {
	struct work work;
	io_handle socket;           /* 0: closed */
	struct client *client;      /* whom it serves, or NULL: it is going */
	struct server *next, *prev; /* in .lingering, .kept, .free_servers */
	struct balancer_slot slot;
	enum backend_identity identity; /* the backend's, at the connect */
	enum backend_tls tls_wanted;    /* likewise */
	struct work_queue in, out;
	struct work_tls tls;
	bool secured; /* its handshake is done */
	bool greeted; /* with 220, and that was noted */
	bool told;    /* by XCLIENT who the client is */
	bool receiving;
	bool lingering;   /* stays for its client's next message */
	bool kept;        /* idle, for anybody's next message */
	bool clearing;    /* RSET was said: then it is kept */
	bool own_name;    /* EHLO said weir's name, not a client's */
	bool tainted;     /* has said an error: for nobody else */
	bool yielding;    /* parted from so that its slot is free */
	bool relays;      /* mode = tcp: its client speaks with it */
	bool ending;      /* io_close() or io_abort() was called */
	uint32_t served;  /* messages that went over it */
	int64_t ask_ms;   /* connected, not ready: when to ask how long to
				wait */
	int64_t begun_ms; /* the connect */
	int64_t until_ms; /* lingering or kept: until then */
	int64_t sent_ms;  /* last progress of sending */
	char name[SMTP_DOMAIN_MAX + 1];
	struct upstream upstream;
};

struct prober {
	struct work work;
	io_handle socket;
	bool busy, ending, receiving;
	struct work_queue in, out;
	struct work_tls tls;
	bool secured; /* its handshake is done, and the probe was told */
	struct balancer_slot slot;
	struct probe_order order; /* of what is copied here: a reload may free
				     the configuration meanwhile */
	enum backend_identity identity; /* the backend's, at the connect */
	struct probe probe;
	char helo[SMTP_DOMAIN_MAX + 1];
	struct busy_rule rules[BACKEND_RULES_MAX];
};

struct worker {
	struct weir *weir;
	struct io *io;
	unsigned index;
	int64_t now_ms;
	const struct config *_Atomic seen; /* the turn's configuration */
	const struct config *config;       /* the same */
	struct stats *stats;
	struct session_env env;
	struct timer_wheel wheel;
	struct upstream_timeouts timeouts;
	/*
	 * Held while a turn is dealt with, not while waiting: who holds it
	 * may read the clients of this worker (show sessions).
	 */
	pthread_mutex_t mutex;

	bool more; /* events are left to be pulled */

	/*
	 * Pools: those given back, then those never used, of which no page
	 * has been touched.
	 */
	struct client *client_pool;
	unsigned clients_used;
	struct client *free_clients;
	struct client clients; /* list head of those in use */
	unsigned client_count;
	unsigned talking; /* sessions not yet over: a drain waits for them */
	char *lines;      /* SESSION_LINE_MAX + SESSION_MAIL_MAX a client */
	struct proxyproto *headers; /* one a client; only used by those that
				       begin with one */
	struct relay *relays;       /* the same; by those of mode = tcp */

	/* Those who would speak if there were buffers; the first came first. */
	struct client *hungry, *hungriest;

	struct server *server_pool;
	unsigned servers_used;
	struct server *free_servers;
	struct server lingering; /* list head, the longest first */
	struct server kept;      /* list head, the last used first */
	unsigned waiters;        /* clients of ours in the waiting room */
	bool newcomers;          /* of which other workers were not told */
	/* List head: those that hold a slot while their body comes, the
	 * longest first. */
	struct client holders;
	unsigned server_count;

	struct work_listener listeners[WORK_LISTENERS_MAX];
	unsigned listener_count;
	unsigned listeners_open; /* not yet IO_CLOSED */
	int64_t accept_said_ms;  /* the last line of an accept that failed */
	int64_t accepts_unsaid;  /* that failed since, without a line */
	bool unlistened;         /* all were told to close */
	int64_t unlisten_ms;     /* draining: when to close them; 0: not yet */
	int64_t drain_by_ms;     /* when the drain is over at the latest */
	bool draining, stressed, cut;
	unsigned retired_seen; /* of weir.retired */

	bool leaving[FARM_BACKENDS_MAX]; /* removed once it is idle */
	/*
	 * List head: clients and servers that have something to send.  It goes
	 * out when the turn's events are dealt with: a group of replies that
	 * came together leaves in one send.
	 */
	struct work loud;
	/* List head, by the same links: clients and servers that found no
	 * buffer for their TLS, and try again in the next turn. */
	struct work again;
	/* List head: clients whose handshakes wait, the longest first. */
	struct work costly;
	/* Worker 0: when to tidy up after TLS, and the handshakes made by the
	 * last time, and by the last time that the heap was trimmed. */
	int64_t tidy_ms;
	uint64_t made_before, made_tidy;
	unsigned handshakes; /* that may be made yet in this turn */
	/* What was agreed on with each backend, to be resumed; or NULL. */
	struct tls_session *resumable[FARM_BACKENDS_MAX];

	struct prober *probers; /* worker 0: one for each place in the farm */
	unsigned probing;

	struct work control; /* worker 0: the control socket */
	io_handle control_socket;
	bool control_open; /* not yet IO_CLOSED */
	struct operator* operators;
	unsigned operator_count;

	struct hold_area hold; /* bodies and envelopes that are held */
	void *hold_memory;

	uint64_t id_base; /* random, in session ids */
	uint32_t ids;
	struct session_plan plan;
	struct log_line log;
};

/* ---- worker_queue.c ---- */

/* Append a copy of text; false: no buffer, and nothing was appended. */
bool work_queue_text(struct worker *w, struct work_queue *q, enum io_pool pool,
		     const void *text, size_t len);

/* Append a buffer (taken over), or its octets if they are few. */
void work_queue_buf(struct worker *w, struct work_queue *q, struct io_buf *buf);

/* Drop n octets from the front. */
void work_queue_eat(struct worker *w, struct work_queue *q, size_t n);

/*
 * Move the first n octets of the first buffer of q to the end of `to`,
 * without copying if that is the whole of it.  False: no buffer.
 */
bool work_queue_move(struct worker *w, struct work_queue *q,
		     struct work_queue *to, size_t n);

void work_queue_drop(struct worker *w, struct work_queue *q);

/* Hand all to io_send() if nothing is in flight on that socket. */
void work_queue_flush(struct worker *w, struct work_queue *q, io_handle socket,
		      uint64_t *counted);

/* ---- worker.c ---- */

/* What this client or server has to say is sent before the turn ends. */
void work_speak_up(struct worker *w, struct work *work);
/* It lacked a buffer: go on with it in the next turn. */
void work_come_again(struct worker *w, struct work *work);
void work_hush(struct work *work);

/* A backend was taken out of service: tell all workers. */
void work_retired(struct worker *w);

/* Log the line in w->log, ended; if the configuration wants that level. */
void work_log(struct worker *w, enum log_level level);

/* Begin w->log. */
void work_log_begin(struct worker *w, const char *event);

/*
 * How many connections more there may be, of clients and to backends.  Other
 * workers may take them at the same moment: a few too many do no harm.
 */
unsigned work_sockets_left(const struct worker *w);

/*
 * Is it this machine that lacks something (descriptors, memory)?  Then it is
 * no backend's fault, and says nothing about its health.  So is EADDRNOTAVAIL
 * as the outcome of a connect: all ports to there are in use.
 */
bool work_is_shortage(int error);

/* ---- worker_reload.c ---- */

/* Remove what a reload has drained and nobody uses any more.  Worker 0. */
void work_remove_leaving(struct worker *w);

/* ---- worker_tls.c ---- */

/*
 * Begin TLS.  The reference to context, which may be NULL, is taken over;
 * session may be NULL.  False: there is no context, or no memory.
 */
bool secure_begin(struct worker *w, struct work_tls *t,
		  struct tls_context *context,
		  const struct tls_session *session);
/* It is over, and its owner goes.  May be called again. */
void secure_end(struct worker *w, struct work *work, struct work_tls *t);

/*
 * Decode what has come and append it to `in`, in buffers of this pool; no
 * more than is of use now: come again when `in` was eaten.  There may be
 * something to send then.
 */
enum tls_state secure_read(struct worker *w, struct work *work,
			   struct work_tls *t, struct work_queue *in,
			   enum io_pool pool);

/* May the conversation say anything? */
bool secure_can_say(const struct work_tls *t);
/* In TLS or, without a codec, in the clear: */

/* Would secure_flush() send anything? */
bool secure_is_loud(const struct work_tls *t, const struct work_queue *out);
/*
 * Send what is queued, and what TLS has to say, unless a send is in flight;
 * returns octets, as they go over the wire.  last: all is followed by
 * close_notify.  Whoever finds no buffer comes again (a probe has its
 * deadline).
 */
uint64_t secure_flush(struct worker *w, struct work *work, struct work_tls *t,
		      struct work_queue *out, io_handle socket, bool last);

/* Its first octets of TLS wait for a turn with handshakes left. */
void secure_wait(struct worker *w, struct work *work);

/* Each turn, first: handshakes that wait; and whether any do. */
void secure_turn(struct worker *w);
bool secure_is_behind(const struct worker *w);
void work_unqueue_costly(struct work *work);

/*
 * Worker 0, now and then: the keys of tickets grow old, and after a crowd of
 * handshakes memory goes back to the system.
 */
void secure_tidy(struct worker *w);

/* "TLSv1.3", in static storage; NULL: there is no TLS. */
const char *secure_version(const struct work_tls *t);
/* What was agreed on, in the log line. */
void secure_log(struct worker *w, const struct work_tls *t);

/* ---- worker_client.c ---- */

void client_accepted(struct worker *w, struct work_listener *from,
		     const struct io_event *ev);
void client_event(struct worker *w, struct client *c,
		  const struct io_event *ev);
void client_timer(struct worker *w, struct client *c);

/* Something of the backend or of weir for this session. */
void client_tell(struct worker *w, struct client *c,
		 const struct session_event *event);

/* The backend has sent: there may be room for more of the body. */
void client_resume(struct worker *w, struct client *c);

/* Send what is queued; and our FIN, when that was all. */
void client_flush(struct worker *w, struct client *c);

/* Buffers may have come back: let those go on who waited for some. */
void client_feed_hungry(struct worker *w);

/* The end, without manners: drain time is over, or an operator says so. */
void client_kill(struct worker *w, struct client *c);

/* For a client: as "1a2b3c4d-5e". */
enum { WORK_ID_MAX = 24 };
void client_id(const struct client *c, char id[WORK_ID_MAX]);
/* Its address is known, or known better. */
void client_is(struct client *c, const struct cidr_addr *addr, uint16_t port);

/* It waits for buffers to be free, and is fed in its turn. */
void client_go_hungry(struct worker *w, struct client *c);

/* mode = tcp: over in good order, after text (or NULL); or at once. */
void client_relay_over(struct worker *w, struct client *c,
		       enum stats_close reason, const char *text);
void client_cut(struct worker *w, struct client *c, enum stats_close reason);

/* ---- worker_server.c ---- */

/* A place in the pool, without a slot; NULL: all are in use. */
struct server *server_new(struct worker *w);
/* Put it back; its slot, if it has one, goes back as well. */
void server_free(struct worker *w, struct server *v, bool slot);

/* Connect to the backend whose slot v has, for c.  0, or -errno. */
int server_connect(struct worker *w, struct server *v, struct client *c);

/*
 * A kept connection is to speak for v->client now: XCLIENT.  False: it cannot,
 * and is of no more use.
 */
bool server_introduce(struct worker *w, struct server *v);

struct backend *server_backend(struct worker *w, const struct server *v);

/* No client's any more, and in no list. */
void server_detach(struct worker *w, struct server *v);

/*
 * For the bound server of a client.  server_command() is false for want of a
 * buffer: then nothing more may be sent there, least of all a body, which
 * would be read as commands.
 */
bool server_command(struct worker *w, struct server *v, const char *text,
		    size_t len, enum busy_stage stage);
void server_sent(struct worker *w, struct server *v, enum busy_stage stage);
/* What it has queued is sent before the turn ends; or now. */
void server_speak_up(struct worker *w, struct server *v);
void server_flush(struct worker *w, struct server *v);
/* When to look after it next. */
void server_set_timer(struct worker *w, struct server *v);

/* Whether the client still owes octets of a chunk that was announced. */
void server_chunk(struct worker *w, struct server *v, bool open);

/* It was parted from so that its slot goes to a waiter; and it has. */
void server_yield(struct worker *w, struct server *v);
void server_yielded(struct worker *w, struct server *v);

/*
 * Did this connect fail for something that weir lacks?  Then it is no fault of
 * the backend's.
 */
bool server_lacks(const struct server *v, int result);
/* Not even a connect could be begun: what failed, for health and the log. */
void server_unreachable(struct worker *w, struct server *v);
void server_log_shortage(struct worker *w, const struct server *v, int error);

void server_quit(struct worker *w, struct server *v);
void server_reset(struct worker *w, struct server *v);

/* v's backend takes XCLIENT but once: its connections are not kept in vain. */
void server_keep_no_more(struct worker *w, const struct server *v);

/* There may be buffers now. */
void server_resume(struct worker *w, struct server *v);

/* It greeted, or it needs no greeting: its client may have it. */
void server_ready(struct worker *w, struct server *v);

/* mode = tcp: it greeted; replied; or failed the client: for the balancer. */
void server_greeted(struct worker *w, struct server *v);
void server_relay_replied(struct worker *w, struct server *v,
			  enum busy_stage stage,
			  const struct smtp_reply_parser *reply);
void server_relay_failed(struct worker *w, struct server *v,
			 enum balancer_failure failure, enum busy_stage stage);

void server_event(struct worker *w, struct server *v,
		  const struct io_event *ev);
void server_timer(struct worker *w, struct server *v);

/* ---- worker_bind.c ---- */

/*
 * Find a backend connection for a client: its own of before, a kept one, a
 * new one, or a place in the waiting room.  True: under way, the client will
 * be told BOUND or UNBOUND.  False: *event is what it is to be told now.
 */
bool bind_client(struct worker *w, struct client *c,
		 struct session_event *event);

/* The event that tells that none could be had. */
extern const struct session_event bind_none;

/* The event that tells of a connection that is ready. */
struct session_event bind_event(struct worker *w, struct client *c,
				const struct server *v, bool reused);

/* A slot was left for c in the room: connect.  As bind_client(). */
bool bind_slot(struct worker *w, struct client *c,
	       const struct balancer_slot *slot, struct session_event *event);

/* A kept connection for what is needed, or NULL. */
struct server *bind_find_kept(struct worker *w,
			      const struct balancer_need *need);
/* It serves c from now on.  As bind_client(). */
bool bind_take_kept(struct worker *w, struct client *c, struct server *v,
		    struct session_event *event);

/* A kept connection is nobody's to find for a moment; and is again. */
void bind_set_aside(struct worker *w, struct server *v);
void bind_put_back(struct worker *w, struct server *v);

/* A slot is wanted: close an idle connection.  False: there is none. */
bool bind_make_room(struct worker *w);

/* A message is over, and v in order: keep it, or part from it. */
void bind_keep(struct worker *w, struct server *v);

/* Backends were taken out of service: part from idle connections to them. */
void bind_drop_retired(struct worker *w);

/* v has an envelope and no more: clear it and keep it, or part from it. */
void bind_park(struct worker *w, struct server *v);
/* The reply to that RSET. */
void bind_cleared(struct worker *w, struct server *v, unsigned code);

/* ---- worker_room.c ---- */

/* Wait for a slot.  False: it may not, or has waited long enough. */
bool room_wait(struct worker *w, struct client *c);

/* It waits no more; a slot that was left for it goes back. */
void room_give_up(struct worker *w, struct client *c);

/* When its wait ends; INT64_MAX: it does not wait. */
int64_t room_wait_ends(const struct worker *w, const struct client *c);

/* Each turn: who was called connects; slots that are free are given out. */
void room_turn(struct worker *w);

/* When time alone may bring a waiter of ours a slot. */
int64_t room_due_ms(const struct worker *w);

/* Saturated?  Then newcomers are refused, but for good sources. */
bool room_is_closed(struct worker *w, const struct client *c);

/* ---- worker_hold.c ---- */

/* How much of a body could be held now. */
size_t hold_client_room(const struct worker *w, const struct client *c);

/* Do these acts of a session's plan. */
void hold_body(struct worker *w, struct client *c, size_t len);
void hold_rcpt(struct worker *w, struct client *c,
	       const struct session_act *act);
void hold_mark(struct client *c, bool good);
void hold_replay(struct worker *w, struct client *c);
void hold_send(struct worker *w, struct client *c, bool whole);
void hold_trace(struct worker *w, struct client *c);

/* Go on with REPLAY and SEND, as far as there is room. */
void hold_go_on(struct worker *w, struct client *c);

/* A backend is sought for MAIL: no envelope is held yet. */
void hold_forget_envelope(struct worker *w, struct client *c);
/* It goes nowhere. */
void hold_forget_body(struct worker *w, struct client *c);
/* The message is over. */
void hold_forget(struct worker *w, struct client *c);

/* The length of the trace field for c. */
size_t hold_trace_len(struct worker *w, struct client *c);

/* ---- worker_proxy.c ---- */

/* A PROXY header is due from c. */
void proxy_await(struct worker *w, struct client *c);

/*
 * Read of it what has come; what is behind it stays.  DONE: c is whom it
 * names, if it names anybody.
 */
enum proxyproto_result proxy_read(struct worker *w, struct client *c);

/* What the header said, as far as it is for the log. */
void proxy_log(struct worker *w, const struct client *c);

/*
 * The backend wants a PROXY header: put it in front of all else that goes out
 * to it, for the client that v serves.  False: there is no buffer.
 */
bool proxy_introduce(struct worker *w, struct server *v);

/* What a backend that wants XCLIENT is told of c. */
struct xclient proxy_xclient(struct worker *w, const struct client *c);

/* The same for a probe, which speaks for nobody.  NULL: there is no buffer. */
struct io_buf *proxy_introduce_probe(struct worker *w, struct prober *p);

/* ---- worker_tcp.c ---- */

/* Octets of a struct relay. */
size_t relay_size(void);

/* A client of mode = tcp was accepted. */
void relay_open(struct worker *w, struct client *c);

/*
 * It has said its first octets: does it begin with TLS, and is its backend
 * there?  Then it is ready as it is.
 */
bool relay_says_hello(struct worker *w, struct client *c);
/* A backend is connected to: will no greeting come, or is it for nobody? */
bool relay_needs_no_greeting(struct worker *w, const struct server *v);
/* It would not understand a word of weir's own. */
bool relay_is_deaf(struct worker *w, const struct client *c);

/*
 * The session is in RELAY, and c->server is ready: they speak with each other
 * from now on.  What has come from either goes on in relay_pump().
 */
void relay_begin(struct worker *w, struct client *c);
void relay_pump(struct worker *w, struct client *c);
/* Receive from both, or join them. */
void relay_arm(struct worker *w, struct client *c);

/* In RELAY, the client has reset its connection: why the session ends. */
enum stats_close relay_reset(struct worker *w, struct client *c);

/* In RELAY: octets came or went; events; time is up. */
void relay_client_moved(struct worker *w, struct client *c);
void relay_client_spliced(struct worker *w, struct client *c,
			  const struct io_event *ev);
void relay_server_event(struct worker *w, struct server *v,
			const struct io_event *ev);
void relay_timeout(struct worker *w, struct client *c);
void relay_server_timer(struct worker *w, struct server *v);

/* What a session of mode = tcp has to tell, for its line in the log. */
void relay_log(struct worker *w, const struct client *c);

/* ---- worker_probe.c ---- */

/* Begin what probes are due; end hold-offs that are over.  Worker 0. */
void probe_turn(struct worker *w);
void probe_event_in(struct worker *w, struct prober *p,
		    const struct io_event *ev);
void probe_timer(struct worker *w, struct prober *p);
/* Cancel all that are under way. */
void probe_stop(struct worker *w);

/* One log line for a change of a backend's state, if it did change. */
void work_log_change(struct worker *w, const struct backend_change *change);

/* ---- worker_control.c ---- */

/* Open the control socket; returns 0 or -errno. */
int control_open(struct worker *w);
void control_accepted(struct worker *w, const struct io_event *ev);
void control_event(struct worker *w, struct operator* o,
		   const struct io_event *ev);
void control_timer(struct worker *w, struct operator* o);
/* Each worker, each turn: cut the session that an operator wants cut. */
void control_turn(struct worker *w);
/* Close the socket and all connections. */
void control_close(struct worker *w);
/* Operators still connected, those included that are being closed. */
void control_free(struct worker *w);

#endif
