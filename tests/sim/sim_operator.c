#include "tests/sim/sim_operator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_auth.h"
#include "tests/sim/world.h"

enum {
	COMMAND_MAX = 256,
	PATIENCE_US = 5 * SIM_SECOND,
	REST_US_MAX = 4 * SIM_SECOND,
	FLOOD = 70000,
	ANSWER_MAX = 16000, /* octets that are looked at */
	SESSION_ID_MAX = 40,
};

struct sim_operator {
	struct sim *sim;
	unsigned backends;
	struct sim_end *end;
	struct sim_timer timer;
	bool stopped;
	char command[COMMAND_MAX];
	char session[SESSION_ID_MAX]; /* one that was shown, or "" */
	size_t answer_len;
	char answer[ANSWER_MAX + 1];
};

static void rest(struct sim_operator *o)
{
	o->end = NULL;
	if (!o->stopped) {
		sim_timer_set(o->sim, &o->timer,
			      sim_now_us(o->sim) +
				      sim_below(o->sim, REST_US_MAX) + 1);
	}
}

static const char *draw_look(struct sim *sim)
{
	static const char *const looks[] = {
		"show info",
		"show stat",
		"show backends",
		"show sessions",
		"show sources",
		"show health",
		"show bans",
		"show limits",
		"show room",
		"show limits json",
		"show room json",
		"show room csv",
		"help",
		"show info json",
		"show stat csv",
		"shwo info",
		"show",
		"",
		"set",
		"show stat json",
		"del backend nobody",
		"show sessions json",
		"quit",
		"show info json",
		"show info json",
	};

	return looks[sim_below(sim, sizeof(looks) / sizeof(looks[0]))];
}

static void draw_command(struct sim_operator *o)
{
	static const char *const states[] = { "ready", "ready", "drain",
					      "maint" };
	struct sim *sim = o->sim;
	unsigned b = sim_below(sim, o->backends);
	char *at = o->command;

	switch (sim_below(sim, 16)) {
	case 9:
		snprintf(at, COMMAND_MAX, "kill session %s\n",
			 o->session[0] != '\0' ? o->session : "1-1");
		return;
	case 0:
	case 1:
		snprintf(at, COMMAND_MAX, "set backend b%u %s\n", b,
			 states[sim_below(sim, 4)]);
		return;
	case 2:
		snprintf(at, COMMAND_MAX, "set backend b%u weight %u\n", b,
			 sim_between(sim, 1, 100));
		return;
	case 3:
		snprintf(at, COMMAND_MAX, "set backend b%u max_sessions 1\n",
			 b);
		return;
	case 4:
		snprintf(at, COMMAND_MAX, "ban 198.51.100.%u/32 %us\n",
			 sim_between(sim, 1, 8), sim_between(sim, 1, 5));
		return;
	case 5:
		snprintf(at, COMMAND_MAX, "unban 198.51.100.%u/32\n",
			 sim_between(sim, 1, 8));
		return;
	case 6:
		snprintf(at, COMMAND_MAX,
			 "add backend x%u address=10.0.9.%u:25\n", b, b + 1);
		return;
	case 7:
		snprintf(at, COMMAND_MAX, "set backend x%u maint\n", b);
		return;
	case 8:
		snprintf(at, COMMAND_MAX, "del backend x%u\n", b);
		return;
	default:
		snprintf(at, COMMAND_MAX, "%s\n", draw_look(sim));
		return;
	}
}

static void hang_up(struct sim_operator *o, bool reset)
{
	if (o->end != NULL && reset)
		sim_end_reset(o->end);
	else if (o->end != NULL)
		sim_end_close(o->end);
	rest(o);
}

static void speak(struct sim_operator *o)
{
	char flood[1000];
	uint32_t dice = sim_below(o->sim, 40);

	o->answer_len = 0;
	draw_command(o);
	if (dice == 0) { /* a line without end */
		memset(flood, 'z', sizeof(flood));
		for (unsigned i = 0; i < FLOOD / sizeof(flood); i++)
			sim_end_say(o->end, flood, sizeof(flood));
		return;
	}
	sim_end_say(o->end, o->command, strlen(o->command));
	if (dice == 1)
		hang_up(o, true);
	else if (dice < 20)
		sim_end_fin(o->end);
}

/* The number behind "key":, or -1. */
static long number_of(const struct sim_operator *o, const char *key)
{
	char wanted[32];

	snprintf(wanted, sizeof(wanted), "\"%s\":", key);
	const char *at = strstr(o->answer, wanted);

	return at == NULL ? -1 : strtol(at + strlen(wanted), NULL, 10);
}

/* weir's own books must balance, at whatever moment one looks. */
static void check_info(struct sim_operator *o)
{
	long opened = number_of(o, "connections");
	long closed = number_of(o, "closed");
	long open = number_of(o, "open");

	if (opened < 0 || closed < 0 || open < 0)
		return;
	if (opened != closed + open) {
		sim_violation(o->sim,
			      "show info: %ld connections, %ld closed, %ld "
			      "open",
			      opened, closed, open);
	}
}

static void note_session(struct sim_operator *o)
{
	static const char key[] = "\"id\":\"";
	const char *at = strstr(o->answer, key);

	if (at == NULL)
		return;
	at += sizeof(key) - 1;
	size_t len = strcspn(at, "\"");
	if (len < SESSION_ID_MAX)
		snprintf(o->session, sizeof(o->session), "%.*s", (int)len, at);
}

static void listen_on(struct sim_operator *o)
{
	char buf[2048];
	size_t n;

	while ((n = sim_end_read(o->end, buf, sizeof(buf))) > 0) {
		sim_trace_octets(o->sim, "operator reads", buf, n);
		if (n > ANSWER_MAX - o->answer_len)
			n = ANSWER_MAX - o->answer_len;
		memcpy(o->answer + o->answer_len, buf, n);
		o->answer_len += n;
		o->answer[o->answer_len] = '\0';
	}
	if (o->answer_len < 2 ||
	    memcmp(o->answer + o->answer_len - 2, "\n\n", 2) != 0)
		return;
	check_info(o);
	note_session(o);
	if (sim_auth_leaks(o->answer, o->answer_len))
		sim_violation(o->sim, "an operator is shown credentials: %s",
			      o->command);
	o->answer_len = 0;
}

static void on_event(void *owner, struct sim_end *end, enum sim_what what,
		     int err)
{
	struct sim_operator *o = owner;
	(void)err; /* whatever it is, he comes again */
	switch (what) {
	case SIM_OPEN:
		speak(o);
		return;
	case SIM_FAILED:
		rest(o);
		return;
	case SIM_ROOM:
		return;
	case SIM_DATA:
	case SIM_FIN:
		listen_on(o);
		if (sim_end_at_fin(end))
			hang_up(o, false);
		return;
	case SIM_RST:
		hang_up(o, true);
		return;
	}
}

static void timer_fires(void *owner)
{
	struct sim_operator *o = owner;
	union sim_addr addr = sim_addr_make(WORLD_CONTROL, 0);

	if (o->end != NULL) {
		hang_up(o, false);
		return;
	}
	o->end = sim_connect(o->sim, &addr.sa, NULL, on_event, o);
	sim_timer_set(o->sim, &o->timer, sim_now_us(o->sim) + PATIENCE_US);
}

struct sim_operator *sim_operator_new(struct sim *sim, unsigned backends)
{
	struct sim_operator *o = calloc(1, sizeof(*o));

	if (o == NULL)
		abort();
	o->sim = sim;
	o->backends = backends;
	o->timer = (struct sim_timer){ .fire = timer_fires, .owner = o };
	rest(o);
	return o;
}

void sim_operator_stop(struct sim_operator *o)
{
	o->stopped = true;
	sim_timer_clear(o->sim, &o->timer);
	hang_up(o, false);
}

void sim_operator_free(struct sim_operator **op)
{
	struct sim_operator *o = *op;

	if (o == NULL)
		return;
	sim_operator_stop(o);
	free(o);
	*op = NULL;
}
