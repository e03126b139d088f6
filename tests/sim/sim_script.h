#ifndef SIM_SCRIPT_H
#define SIM_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/sim_check.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_net.h"

/*
 * What one scripted client is going to say, drawn by the seed from its
 * nature: steps, and the messages that they carry.
 */

enum {
	SIM_SENT_MAX = 8, /* messages of one client */
	SIM_TEXT_MAX = 700,
	SIM_STEPS_MAX = 400,
};

enum sim_op {
	SIM_OP_LINE,  /* text and CRLF; one reply */
	SIM_OP_RAW,   /* text as it is; no reply is counted */
	SIM_OP_BODY,  /* the body, if DATA drew 354; one reply */
	SIM_OP_CHUNK, /* BDAT with the body's octets from..upto; one reply */
	SIM_OP_TLS,   /* if STARTTLS drew 220 */
	SIM_OP_REKEY, /* TLS 1.3: other keys, please */
	SIM_OP_PAUSE,
	SIM_OP_FIN, /* end our side and go on listening */
	SIM_OP_RST,
	SIM_OP_CLOSE,
};

enum sim_reply_kind {
	SIM_REPLY_NONE,
	SIM_REPLY_ANY,
	SIM_REPLY_GREETING,
	SIM_REPLY_EHLO,
	SIM_REPLY_STARTTLS,
	SIM_REPLY_AUTH,
	SIM_REPLY_MAIL,
	SIM_REPLY_RCPT,
	SIM_REPLY_DATA,
	SIM_REPLY_CHUNK,
	SIM_REPLY_FINAL,
	SIM_REPLY_RSET,
	SIM_REPLY_QUIT,
};

enum sim_abort {
	SIM_ABORT_NONE,
	SIM_ABORT_RST,
	SIM_ABORT_CLOSE,
	SIM_ABORT_FIN, /* and listens on */
};

struct sim_step {
	enum sim_op op;
	enum sim_reply_kind reply;
	bool alone;        /* only once no reply is due */
	bool only_if_open; /* MAIL was accepted and nothing ended it */
	/* BODY: even without a 354, no reply counted; STARTTLS, AUTH: even if
	 * it is not offered; TLS: even without a 220. */
	bool regardless;
	bool injects; /* STARTTLS has something behind it that must die */
	unsigned sent, rcpt;
	struct check_message *message; /* the step is moot if it is dead */
	size_t from, upto;
	int64_t pause_us;
	size_t text_len;
	char *text; /* owned, or NULL */
};

/* One message on its way, as its client knows it. */
struct sim_sent {
	struct check_message *message;
	bool opened; /* MAIL drew 2xx */
	bool closed; /* the end of data drew 2xx */
	bool dead;   /* nothing is left to be done for it */
};

struct sim_script {
	struct sim_step *steps;
	size_t count;
	struct sim_sent sent[SIM_SENT_MAX];
	unsigned sent_count;
	bool pipelines; /* if that is offered */
	bool loose;     /* replies are not counted */
	bool deaf;      /* does not read */
	bool dribbles;  /* its pace is that of bodies only */
	bool implicit;  /* TLS from the first octet */
	bool abandons;  /* leaves in the middle of the handshake */
	bool tears;     /* leaves in the middle of a record */
	bool curt;      /* ends without close_notify */
	bool cancels;   /* AUTH, in the middle */
	enum sim_auth_way auth;
	unsigned record;      /* octets in a record; 0: any */
	uint32_t pace_octets; /* at a time; 0: all at once */
	int64_t pace_us;
	enum sim_abort abort_by;
	uint64_t abort_at; /* octets of the whole stream */
};

void sim_script_write(struct sim_script *script, struct sim *sim,
		      struct check *check,
		      const struct sim_client_config *config);

/* --- sim_step.c: whoever wrote the script --- */

void sim_script_free(struct sim_script *script);

/* CHUNKING is not offered: messages by BDAT are not sent. */
void sim_script_no_chunks(struct sim_script *script);

/* An extension is not offered: MAIL goes without " SIZE" or " BODY". */
void sim_script_no_params(struct sim_script *script, const char *param);

#endif
