#include "tests/sim/scenes.h"

/* clang-format off */

#define MAIL  "> MAIL FROM:<a@from.test>\n"
#define RCPT  "> RCPT TO:<r0.c1.m0@dest.test>\n"
#define HELLO "< 220\n> EHLO c1.client.test\n< 250\n"
#define OPEN  HELLO MAIL "< 250\n" RCPT "< 250\n"
#define BODY  "> DATA\n< 354\n> Subject: x\n> \n> text\n> .\n"
#define BYE   "> QUIT\n< 221\neof\n"
#define SEND  OPEN BODY "< 250\n" BYE
#define GROUP HELLO "> MAIL FROM:<a@from.test>\n" RCPT "> DATA\n"

#define DO(kind, stage) { SIM_DEED_##kind, SIM_STAGE_##stage, NULL, 0 }
#define SAY(kind, stage, text) { SIM_DEED_##kind, SIM_STAGE_##stage, text, 0 }

#define MS (int64_t)SIM_MS
#define S  (int64_t)SIM_SECOND

/* A message with something foul in it: refused whole, and the session goes on. */
#define FOUL(octets) \
	MAIL "< 250\n" RCPT "< 250\n> DATA\n< 354\n>> line" octets \
	"MAIL FROM:<evil@evil.test>\\r\\n.\\r\\n\n< 550\n"

const struct scene scenes[] = {

/* --- a good day --- */

{ "plain", "-", "a message goes to the first backend",
  .talk = { SEND }, .b0_takes = 1, .log = "close=quit" },
{ "pipelined", "-", "a group is answered in order",
  .talk = { GROUP "< 250\n< 250\n< 354\nbody 3000\n> .\n< 250\n" BYE },
  .b0_takes = 1 },
{ "two-messages", "-", "a session sends one after the other",
  .talk = { OPEN BODY "< 250\n" MAIL "< 250\n" RCPT "< 250\n" BODY
	    "< 250\n" BYE }, .b0_takes = 2 },
{ "bdat", "-", "chunks arrive, the last one ends the message",
  .talk = { OPEN "> BDAT 12\n>> 0123456789\\r\\n\n< 250\n> BDAT 0 LAST\n< 250\n"
	    BYE }, .b0_takes = 1 },
{ "bdat-smuggled", "C9", "a chunk may hold what looks like commands",
  .talk = { OPEN "> BDAT 30 LAST\n>> \\r\\n.\\r\\nMAIL FROM:<a@b>\\r\\nRSET\\r\\n\\r\\n\n"
	    "< 250\n" BYE }, .b0_takes = 1 },

/* --- B: backends --- */

{ "connect-refused", "B1", "the next one is asked, unseen",
  .talk = { HELLO "! b0 refusing\n" MAIL "< 250\n" RCPT "< 250\n" BODY
	    "< 250\n" BYE }, .b1_takes = 1 },
{ "connect-dropped", "B1", "SYNs vanish: the next one within the budget",
  .talk = { HELLO "! b0 dropping\n" MAIL "< 250\n" RCPT "< 250\n" BODY
	    "< 250\n" BYE }, .b1_takes = 1 },
{ "no-route", "B1", "no route: the next one",
  .talk = { HELLO "! b0 noroute\n" MAIL "< 250\n" RCPT "< 250\n" BODY
	    "< 250\n" BYE }, .b1_takes = 1 },
{ "all-refused", "B1", "nobody is there: 451, and the session lives on",
  .talk = { HELLO "! b0 refusing\n! b1 refusing\n" MAIL "< 451 4.3.2\n"
	    "> NOOP\n< 250\n" BYE } },
{ "silent-greeting", "B2", "no banner is a busy reply: the next one",
  .talk = { SEND }, .b0 = { DO(SILENCE, GREET) }, .b1_takes = 1 },
{ "fin-before-greeting", "B3", "the end before the banner: the next one",
  .talk = { SEND }, .b0 = { DO(FIN, GREET) }, .b1_takes = 1 },
{ "rst-before-greeting", "B3", "a reset before the banner: the next one",
  .talk = { SEND }, .b0 = { DO(RST, GREET) }, .b1_takes = 1 },
{ "busy-greeting", "B4", "a 421 greeting is hidden",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(BYE, GREET, "421 4.3.2 All server ports are busy\r\n") } },
{ "busy-greeting-450", "B4", "so is a 450",
  .talk = { SEND }, .b1_takes = 1, .b0 = { SAY(BYE, GREET, "450 Busy\r\n") } },
{ "refusing-greeting", "B4", "a 554 to weir itself is hidden",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(BYE, GREET, "554 5.7.1 Not allowed from here\r\n") } },
{ "all-busy", "B4", "all busy: 451, never the backend's own 421",
  .talk = { HELLO MAIL "< 451 4.3.2\nnot ports\n" BYE },
  .b0 = { SAY(BYE, GREET, "421 4.3.2 All server ports are busy\r\n") },
  .b1 = { SAY(BYE, GREET, "421 4.3.2 All server ports are busy\r\n") } },
{ "dies-at-ehlo", "B5", "a death at EHLO is hidden",
  .talk = { SEND }, .b1_takes = 1, .b0 = { DO(FIN, EHLO) } },
{ "busy-ehlo", "B5", "a busy reply to EHLO is hidden",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(BYE, EHLO, "421 4.3.2 Too many open connections.\r\n") } },
{ "dies-at-mail", "B5", "a death at MAIL is hidden",
  .talk = { SEND }, .b1_takes = 1, .b0 = { DO(RST, MAIL) } },
{ "busy-mail", "B5", "a busy reply to MAIL is hidden",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(SAY, MAIL, "452 4.3.1 Insufficient system storage\r\n") } },
{ "policy-mail", "B5", "a verdict on the sender passes word for word",
  .talk = { HELLO MAIL "< 550 5.7.1 Not you\n" BYE },
  .b0 = { SAY(SAY, MAIL, "550 5.7.1 Not you\r\n") } },
{ "dies-at-rcpt", "B5", "behind MAIL it can't be hidden: 451",
  .talk = { HELLO MAIL "< 250\n" RCPT "< 451\n> RSET\n< 250\n"
	    MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE },
  .b0 = { DO(FIN, RCPT) }, .b0_takes = 1 },
{ "dies-at-rcpt-pipelined", "B5", "each command of the group is answered",
  .talk = { GROUP "< 250\n< 451\n< 451\n> RSET\n< 250\n" BYE },
  .b0 = { DO(RST, RCPT) } },
{ "421-at-rcpt-pipelined", "B5",
  "a 421 in the group becomes 451s, and the session lives on",
  .talk = { GROUP "< 250\n< 451\n< 451\n> RSET\n< 250\n> NOOP\n< 250\n" BYE },
  .b0 = { SAY(BYE, RCPT, "421 4.3.2 Shutting down\r\n") } },
{ "greylisted", "B5", "a 450 to RCPT passes, no other backend is asked",
  .talk = { HELLO MAIL "< 250\n" RCPT "< 450 4.7.1 Greylisted\n"
	    "> RSET\n< 250\n" BYE },
  .b0 = { SAY(SAY, RCPT, "450 4.7.1 Greylisted, please try again\r\n") } },
{ "dies-at-data", "B5", "a death at DATA: 451",
  .talk = { OPEN "> DATA\n< 451\n> NOOP\n< 250\n" BYE },
  .b0 = { DO(FIN, DATA) } },
{ "dies-in-body", "B6", "a death in the body: 451 at its end, no retry",
  .talk = { OPEN "> DATA\n< 354\nbody 5000\nwait 500\nbody 5000\nwait 500\n"
	    "> .\n< 451\n" BYE },
  .b0 = { DO(RST, BODY) } },
{ "dies-in-chunk", "B6", "a death in a chunk: 451, no retry",
  .talk = { OPEN "> BDAT 4000 LAST\nbody 2000\nwait 500\nbody 2000\n< 451\n"
	    "> RSET\n< 250\n" BYE },
  .b0 = { DO(RST, BODY) } },
{ "dies-after-end", "B7", "no final reply: 451, and never a second backend",
  .talk = { OPEN BODY "< 451 4.4.2\n" BYE }, .b0 = { DO(FIN, EOD) } },
{ "reset-after-end", "B7", "the same with a reset",
  .talk = { OPEN BODY "< 451 4.4.2\n" BYE }, .b0 = { DO(RST, EOD) } },
{ "silent-after-end", "B7", "the same with silence",
  .talk = { OPEN BODY "< 451 4.4.2\n" BYE }, .b0 = { DO(SILENCE, EOD) } },
{ "busy-after-end", "B7", "a refusal of the whole message passes",
  .talk = { OPEN BODY "< 452 4.3.1\n" BYE },
  .b0 = { SAY(SAY, EOD, "452 4.3.1 Insufficient system storage\r\n") } },
{ "421-after-end", "B7", "a 421 to the end of data is no 250",
  .talk = { OPEN BODY "< 4\ngone\n" },
  .b0 = { SAY(BYE, EOD, "421 4.3.2 Shutting down\r\n") } },
{ "client-gone-after-end", "B8", "the backend has it; nothing else happens",
  .talk = { OPEN BODY "wait 1\nrst\n" },
  .b0 = { { SIM_DEED_SLOW, SIM_STAGE_EOD, NULL, 2 * S } }, .b0_takes = 1 },
{ "reply-in-body", "B9", "an early 452 is not taken for the final reply",
  .talk = { OPEN "> DATA\n< 354\nbody 5000\nwait 500\nbody 5000\n> .\n"
	    "< 452\n> NOOP\n< 250\n" BYE },
  .b0 = { SAY(BYE, BODY, "452 4.3.1 Insufficient system storage\r\n") } },
{ "reply-too-many", "B10", "a surplus reply ends that connection",
  .talk = { HELLO MAIL "< 250\nwait 500\n" RCPT "< 451\n> RSET\n< 250\n"
	    MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE },
  .b0 = { SAY(EXTRA, MAIL, "250 2.0.0 and more\r\n") }, .b0_takes = 1 },
{ "421-between", "B10", "a 421 out of the blue: 451 for what follows",
  .talk = { HELLO MAIL "< 250\nwait 500\n" RCPT "< 451\n> RSET\n< 250\n" BYE },
  .b0 = { { SIM_DEED_LATER, SIM_STAGE_MAIL,
	    "421 4.3.2 Going down\r\n", 100 * MS } } },
{ "split-replies", "B10", "octet by octet is as good",
  .talk = { SEND }, .b0 = { DO(SPLIT, GREET) }, .b0_takes = 1 },
{ "split-final", "B10", "a final reply octet by octet",
  .talk = { SEND }, .b0 = { DO(SPLIT, EOD) }, .b0_takes = 1 },
{ "two-codes", "B11", "two codes in a reply are none: the next one",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(GARBAGE, EHLO, "250-one\r\n550 other\r\n") } },
{ "bare-lf-reply", "B11", "a bare LF is no line end: the next one",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(GARBAGE, GREET, "220 bare\n") } },
{ "no-digits", "B11", "no reply at all: the next one",
  .talk = { SEND }, .b1_takes = 1,
  .b0 = { SAY(GARBAGE, MAIL, "hello there\r\n") } },
{ "garbage-at-end", "B11", "what is no reply is no 250",
  .talk = { OPEN BODY "< 451 4.4.2\n" BYE },
  .b0 = { SAY(GARBAGE, EOD, "Ok, thanks\r\n") } },
{ "many-lines", "B11", "1500 lines of greeting: the next one",
  .talk = { SEND }, .b1_takes = 1, .b0 = { DO(LINES, GREET) } },
{ "many-lines-at-rcpt", "B11", "1500 lines to RCPT: 451",
  .talk = { HELLO MAIL "< 250\n" RCPT "< 451\n> RSET\n< 250\n" BYE },
  .b0 = { DO(LINES, RCPT) } },
{ "half-a-reply", "B11", "a reply without its last line, then the end: 451",
  .talk = { HELLO MAIL "< 250\n" RCPT "< 451\n> RSET\n< 250\n" BYE },
  .b0 = { SAY(BYE, RCPT, "250-Ok\r\n250-b") } },
{ "endless-greeting", "B12", "a banner without end has an absolute deadline",
  .talk = { SEND }, .b1_takes = 1, .b0 = { DO(ENDLESS, GREET) } },
{ "endless-final", "B12", "so has a final reply",
  .talk = { OPEN BODY "< 451 4.4.2\n" BYE }, .b0 = { DO(ENDLESS, EOD) } },
{ "silent-at-rcpt", "B13", "silence has its own deadline: 451",
  .talk = { HELLO MAIL "< 250\n" RCPT "< 451\n> RSET\n< 250\n" BYE },
  .b0 = { DO(SILENCE, RCPT) } },
{ "silent-at-data", "B13", "the same at DATA",
  .talk = { OPEN "> DATA\n< 451\n" BYE }, .b0 = { DO(SILENCE, DATA) } },
{ "silent-in-body", "B13", "a backend that stops reading for good: 451",
  .talk = { OPEN "> DATA\n< 354\nbody 400000\n> .\n< 451\n" BYE },
  .b0 = { { SIM_DEED_STALL, SIM_STAGE_DATA, NULL, 100 * S } } },
{ "slow-backend", "B14", "a backend that rests: the client waits for it",
  .talk = { OPEN "> DATA\n< 354\nbody 1000000\n> .\n< 250\n" BYE },
  .b0 = { { SIM_DEED_STALL, SIM_STAGE_DATA, NULL, 2 * S } }, .b0_takes = 1 },
{ "intersection", "B15", "only what both offer is offered",
  .talk = { "< 220\n> EHLO c1.client.test\n< 250\nnot CHUNKING\nnot DSN\n"
	    "has SIZE\nhas 8BITMIME\nhas PIPELINING\nnot XCLIENT\n"
	    "not XFORWARD\nnot STARTTLS\n" BYE },
  .lacks = SIM_OFFER_CHUNKING | SIM_OFFER_DSN },
{ "bdat-not-offered", "B15", "a chunk that was not offered is swallowed",
  .talk = { OPEN "> BDAT 6 LAST\n>> RSET\\r\\n\n< 502\n> NOOP\n< 250\n" BYE },
  .lacks = SIM_OFFER_CHUNKING },
{ "no-pipelining", "B15", "one at a time to who can't take more",
  .talk = { "< 220\n> EHLO c1.client.test\n< 250\n! b0 refusing\n"
	    "> MAIL FROM:<a@from.test>\n" RCPT RCPT "> DATA\n"
	    "< 250\n< 250\n< 250\n< 354\n> text\n> .\n< 250\n" BYE },
  .lacks = SIM_OFFER_PIPELINING, .b1_takes = 1 },
{ "all-down", "B17", "nobody for some time: 421 at the greeting",
  .talk = { HELLO "! b0 refusing\n! b1 refusing\n" MAIL "< 451\nwait 1000\n"
	    MAIL "< 451\n" BYE, "later 5000\n< 421 4.3.2\neof\n" },
  .farm = "tries = 3\nbudget = 5s\nunavailable_after = 1s\n",
  .health = "interval = 1s\ndown_interval = 1s\nfall = 1\n" },
{ "back-again", "B17", "a backend that comes back is used",
  .talk = { HELLO "! b0 refusing\n! b1 refusing\n" MAIL "< 451\n"
	    "! b0 up\n! b1 up\nwait 9000\n" MAIL "< 250\n" RCPT "< 250\n" BODY
	    "< 250\n" BYE }, .b0_takes = -1, .b1_takes = -1,
  .health = "interval = 1s\ndown_interval = 1s\nrise = 1\n",
  .timeouts = "command = 60s\nbackend_connect = 2s\n" },
{ "hidden-limit", "B4", "beyond its hidden limit the other one is used",
  .talk = { OPEN "wait 3000\n" BODY "< 250\n" BYE,
	    "wait 500\n" HELLO MAIL "< 250\n> RCPT TO:<r0.c2.m0@dest.test>\n"
	    "< 250\n" BODY "< 250\n" BYE },
  .slots = 1, .b0_takes = 1, .b1_takes = 1 },

/* --- C: clients --- */

{ "early-talker", "C1", "who talks before the greeting reads 554",
  .talk = { "> EHLO c1.client.test\n< 554\neof\n" },
  .listener = "greeting_delay = 1s\nearly_talkers = reject\n",
  .log = "close=early_talker" },
{ "early-talker-let-be", "C1", "or is let be where the listener says so",
  .talk = { "> EHLO c1.client.test\n< 220\n< 250\n" BYE },
  .listener = "greeting_delay = 1s\nearly_talkers = off\n" },
{ "mail-before-ehlo", "C3", "503, and the session goes on",
  .talk = { "< 220\n" MAIL "< 503\n> NOOP\n< 250\n" BYE } },
{ "batch", "C3", "each of a batch is answered, in order",
  .talk = { HELLO ">> NOOP\\r\\nVRFY a\\r\\nHELP\\r\\nFOO\\r\\nRSET\\r\\n\n"
	    "< 250\n< 252\n< 214\n< 500\n< 250\n" BYE } },
{ "quit-in-group", "C3", "nothing behind QUIT is run",
  .talk = { HELLO ">> MAIL FROM:<a@from.test>\\r\\nQUIT\\r\\n"
	    "RCPT TO:<b@dest.test>\\r\\nDATA\\r\\n\n< 250\n< 221\ngone\n" } },
{ "body-before-354", "C3", "a body behind DATA is never run as commands",
  .talk = { OPEN ">> DATA\\r\\nRSET\\r\\n.\\r\\n\n< 554\ngone\n" },
  .log = "close=sync" },
{ "data-refused", "C3", "no 354, no body: what follows are commands",
  .talk = { HELLO MAIL "< 250\n> RCPT TO:<refused0@dest.test>\n< 550\n"
	    "> DATA\n< 5\n> NOOP\n< 250\n" BYE } },
{ "smuggling", "C4", "each vector is refused whole, none ends the data",
  .talk = { HELLO FOUL("\\n.\\n") FOUL("\\n.\\r\\n") FOUL("\\r\\n.\\n")
	    FOUL("\\r.\\r") FOUL("\\r.\\r\\n") FOUL("\\r\\n.\\r")
	    FOUL("\\r.\\n") FOUL("\\n.\\r") BYE,
	    "< 220\n> EHLO c2.client.test\n< 250\n"
	    FOUL("\\r\\n\\0.\\r\\n") FOUL("\\r\\0\\n.\\r\\n")
	    FOUL("\\r\\n.\\0\\r\\n") FOUL("\\r\\n.\\r\\0\\n")
	    FOUL("\\r\\n.\\r\\r\\n") FOUL("\\r\\r\\n.\\r\\r\\n")
	    FOUL("\\n\\n.\\r\\n") BYE } },
{ "dots", "C4", "stuffed and blank-followed dots are data",
  .talk = { OPEN "> DATA\n< 354\n>> a\\r\\n..\\r\\n. \\r\\n.\\t\\r\\n.\\r\\n\n"
	    "< 250\n" BYE }, .b0_takes = 1 },
{ "empty-body", "C4", "a dot alone is a message",
  .talk = { OPEN "> DATA\n< 354\n> .\n< 250\n" BYE }, .b0_takes = 1 },
{ "bare-lf-command", "C5", "500 for a bare LF, one for the line",
  .talk = { HELLO ">> NOOP\\n\n< 500\n>> NOOP\\0\\r\\n\n< 500\n> NOOP\n< 250\n"
	    BYE } },
{ "endless-line", "C5", "500 once for a line too long, to its end",
  .talk = { HELLO ">> NOOP \nmany 100 xxxxxxxxxxxxxxxxxxxx\n> x\n< 500\n> NOOP\n< 250\n" BYE } },
{ "8-bit-command", "C5", "an address with 8-bit octets needs SMTPUTF8",
  .talk = { HELLO ">> MAIL FROM:<\\xe4@from.test>\\r\\n\n< 5\n" BYE } },
{ "http", "C5", "another protocol reads 500 and the end",
  .talk = { "< 220\n>> GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n\n< 5\ngone\n" },
  .log = "close=foreign" },
{ "tls-hello", "C5", "so do TLS octets",
  .talk = { "< 220\n>> \\x16\\x03\\x01\\x02\\x00\\x01\\x00\n< 500\neof\n" },
  .log = "close=foreign" },
{ "twenty-errors", "C5", "mistake after mistake: 421 in the end",
  .talk = { HELLO "> A\n< 500\n> A\n< 500\n> A\n< 500\n> A\n< 421 4.7.0\neof\n" },
  .admission = "max_errors = 3\n", .log = "close=errors" },
{ "slow-command", "C6", "an octet a second does not renew the deadline",
  .talk = { "< 220\nslow 1000\n> EHLO c1.client.test.of.a.long.name\n"
	    "< 421\ngone\n" },
  .timeouts = "command = 5s\n", .log = "close=client_timeout" },
{ "idle", "C6", "silence ends in 421",
  .talk = { HELLO "< 421\neof\n" }, .log = "close=client_timeout" },
{ "idle-in-body", "C6", "silence in the body ends the session",
  .talk = { OPEN "> DATA\n< 354\n> half\n< 421\ngone\n" },
  .log = "close=client_timeout" },
{ "idle-holds-no-slot", "C6", "who has not said MAIL holds no backend",
  .talk = { HELLO "wait 4000\n" BYE, "later 300\n" SEND },
  .slots = 1, .b0_takes = 1 },
{ "never-reads", "C7", "who does not read is cut",
  .talk = { "deaf\nmany 9000 HELP\\r\\n\ngone\n" }, .log = "close=client_stuck" },
{ "fin-in-body", "C8", "FIN in the body: nothing is stored",
  .talk = { OPEN "> DATA\n< 354\n> half\nfin\ngone\n" } },
{ "rst-in-body", "C8", "RST in the body: nothing is stored",
  .talk = { OPEN "> DATA\n< 354\n> half\nwait 100\nrst\n" },
  .log = "close=client_reset" },
{ "fin-in-chunk", "C8", "FIN in a chunk: nothing is stored",
  .talk = { OPEN "> BDAT 50 LAST\n> half\nfin\ngone\n" } },
{ "fin-after-end", "C8", "FIN behind the final dot: the reply still comes",
  .talk = { OPEN BODY "fin\n< 250\neof\n" }, .b0_takes = 1 },
{ "size-said-too-large", "C9", "a SIZE beyond the limit is refused at MAIL",
  .talk = { HELLO "> MAIL FROM:<a@from.test> SIZE=99999999\n< 552\n" BYE } },
{ "size-lied", "C9", "a body beyond the limit is refused at its end",
  .talk = { HELLO "> MAIL FROM:<a@from.test> SIZE=10\n< 250\n" RCPT "< 250\n"
	    "> DATA\n< 354\nbody 9000\n> .\n< 552\n> NOOP\n< 250\n" BYE },
  .listener = "size = 5000\n" },
{ "too-many-recipients", "C9", "452 for those beyond the limit",
  .admission = "max_recipients = 100\n",
  .talk = { OPEN "many 99 RCPT TO:<r1.c1.m0@dest.test>\\r\\n\nreads 99 250\n"
	    "> RCPT TO:<x@dest.test>\n< 452 4.5.3\n"
	    BODY "< 250\n" BYE }, .b0_takes = 1 },
{ "bdat-overflow", "C9", "a size that can't be followed ends the session",
  .talk = { OPEN "> BDAT 18446744073709551616\n< 501\ngone\n" },
  .log = "close=lost_count" },
{ "bdat-negative", "C9", "so does a negative one",
  .talk = { OPEN "> BDAT -1\n< 501\ngone\n" } },
{ "bdat-before-rcpt", "C9", "a chunk out of order is swallowed",
  .talk = { HELLO "> BDAT 6\n>> RSET\\r\\n\n< 503\n> NOOP\n< 250\n" BYE } },
{ "bdat-refused", "C9", "behind a refused message a new one may begin",
  .talk = { HELLO MAIL "< 250\n> RCPT TO:<refused0@dest.test>\n< 550\n"
	    "> BDAT 6 LAST\n>> abcd\\r\\n\n< 5\n> RSET\n< 250\n"
	    MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE },
  .b0_takes = 1 },
{ "bdat-refused-group", "C9", "the same when all came in one group",
  .talk = { HELLO ">> MAIL FROM:<a@from.test>\\r\\n"
	    "RCPT TO:<refused0@dest.test>\\r\\nBDAT 6 LAST\\r\\nabcd\\r\\n\n"
	    "< 250\n< 550\n< 5\n> RSET\n< 250\n"
	    MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE },
  .b0_takes = 1 },
{ "bdat-swallowed-backend-dies", "C9",
  "a backend lost while a refused chunk is swallowed",
  .talk = { HELLO MAIL "< 250\n> BDAT 10\nwait 1000\n>> 0123456789\n< 503\n"
	    "> RSET\n< 250\n" BYE },
  .b0 = { { SIM_DEED_LATER, SIM_STAGE_MAIL,
	    "421 4.3.2 Going down\r\n", 500 * MS } } },
{ "data-after-bdat", "C9", "DATA and BDAT do not mix",
  .talk = { OPEN "> BDAT 6\n>> abcd\\r\\n\n< 250\n> DATA\n< 503\n"
	    "> BDAT 0 LAST\n< 250\n" BYE }, .b0_takes = 1 },
{ "xclient", "C10", "XCLIENT and XFORWARD are refused, in any case",
  .talk = { HELLO "> XCLIENT ADDR=127.0.0.1\n< 5\n> xforward NAME=x\n< 5\n"
	    "> Xclient  ADDR=127.0.0.1\n< 5\n" BYE } },
{ "source-limit", "C12", "one source is held to its limit, others are not",
  .talk = { HELLO "wait 3000\n" BYE, HELLO "wait 3000\n" BYE,
	    "later 1000\n< 421 4.7.0\neof\n", "wait 1000\n" HELLO BYE },
  .from = { "198.51.100.1", "198.51.100.1", "198.51.100.1", "198.51.100.2" },
  .admission = "max_sessions = 9\nmax_per_source = 2\n",
  .log = "close=source_limit" },
{ "source-limit-v6", "C12", "a /64 is one source",
  .talk = { HELLO "wait 3000\n" BYE, HELLO "wait 3000\n" BYE,
	    "later 1000\n< 421 4.7.0\neof\n", "wait 1000\n" HELLO BYE },
  .from = { "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:f::3",
	    "2001:db8:0:2::1" },
  .admission = "max_sessions = 9\nmax_per_source = 2\n" },
{ "global-limit", "C12", "all are full: 421 4.3.2",
  .talk = { HELLO "wait 3000\n" BYE, HELLO "wait 3000\n" BYE,
	    "later 1000\n< 421 4.3.2\neof\n" },
  .admission = "max_sessions = 2\n", .log = "close=full" },
{ "talks-while-refused", "C12", "the 421 is read although octets are unread",
  .talk = { HELLO "wait 3000\n" BYE,
	    "later 1000\n> EHLO c2.client.test\n> MAIL FROM:<a@from.test>\n"
	    "< 421\neof\n" },
  .admission = "max_sessions = 1\n" },

/* --- S: the system --- */

{ "no-descriptors", "S1", "accepts are refused for a while, then go on",
  .talk = { "wait 2000\n! smooth\n" HELLO BYE },
  .faults = { .accept_error = 1000 } },
{ "pieces", "S5", "every transfer is cut, windows of 50 octets",
  .talk = { GROUP "< 250\n< 250\n< 354\nbody 20000\n> .\n< 250\n" BYE },
  .b0_takes = 1,
  .faults = { .cut = 950, .skip = 300, .window_min = 50, .window_max = 50 } },
{ "clock-jumps", "S6", "the wall clock jumps about: nothing times out",
  .talk = { OPEN "wait 5000\n" BODY "wait 1000\n< 250\n" BYE },
  .b0_takes = 1, .faults = { .wall_jump = 1000 } },
{ "reload", "S7", "a session goes on under the new configuration",
  .talk = { OPEN "! reload\n" BODY "< 250\n" MAIL "< 250\n" BYE },
  .b0_takes = 1 },
{ "reload-removes", "S7", "a removed backend ends what it has begun",
  .talk = { OPEN "! reload-without-b0\nwait 500\n" BODY "< 250\n"
	    "wait 3000\n" MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE },
  .b0_takes = 1, .b1_takes = 1 },
{ "drain", "S8", "idle sessions read 421, a transaction ends first",
  .talk = { OPEN "wait 500\n! drain\n" BODY "< 250\n< 421 4.3.2\neof\n",
	    "< 220\n> EHLO c2.client.test\n< 250\nwait 800\n< 421 4.3.2\neof\n" },
  .b0_takes = 1 },
};

const size_t scene_count = sizeof(scenes) / sizeof(scenes[0]);
