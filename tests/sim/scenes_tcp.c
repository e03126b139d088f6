#include "tests/sim/scenes_own.h"
#include "tests/sim/world.h"

/* clang-format off */

#define TCP      "mode = tcp\n"
#define FARM     "max_sessions = 50\nweight = 1000\n"
#define WITH_TLS FARM "tls = required\n"
#define INSIDE   FARM "tls = required\ntls_mode = implicit\n"
#define AGAIN    "> EHLO c1.client.test\n< 250\nnot STARTTLS\n"
#define SECURE   HELLO "has STARTTLS\n> STARTTLS\n< 220\nsecure\n" AGAIN
#define TURN     MAIL "< 250\n" RCPT "< 250\n"
#define MESSAGE  TURN BODY "< 250\n"
#define HASTY    "command = 5s\nsend = 5s\nbackend_connect = 2s\nbackend_greeting = 2s\n" \
		 "backend_final = 8s\nbackend_send = 5s\n"

const struct scene tcp_scenes[] = {

/* --- T: a stream that weir only carries --- */

{ "tcp-mail", "T1", "a message in the clear is carried and seen", .listener = TCP,
  .talk = { SEND }, .b0_takes = 1, .log = " messages=1 " },
{ "tcp-log", "T1", "its line says how it went", .listener = TCP,
  .talk = { SEND }, .b0_takes = 1, .log = " mode=tcp backend=b0 opaque=no helo=c1.client.test " },
{ "tcp-two", "T1", "two messages over one connection", .listener = TCP,
  .talk = { OPEN BODY "< 250\n" MAIL "< 250\n" RCPT "< 250\n" BODY "< 250\n" BYE }, .b0_takes = 2,
  .b0_conns = 1, .log = "close=quit" },
{ "tcp-octets", "T1", "octet by octet", .listener = TCP,
  .talk = { "slow 3\n" SEND }, .b0_takes = 1 },
{ "tcp-rough", "T1", "on a bad day", .listener = TCP, .talk = { SEND, SEND, SEND }, .b0_takes = 3,
  .faults = { .cut = 500, .skip = 200, .latency_us_max = 30000, .window_min = 1, .window_max = 40 } },
{ "tcp-bulk", "T1", "a large body, through small windows", .listener = TCP,
  .talk = { OPEN "> DATA\n< 354\nbody 400000\n> .\n< 250\n" BYE }, .b0_takes = 1,
  .faults = { .latency_us_max = 2000, .window_min = 3000, .window_max = 9000 } },
{ "tcp-early", "T1", "who speaks before the greeting is carried as well", .listener = TCP,
  .talk = { "> EHLO c1.client.test\n< 220\n< 250\n" MESSAGE BYE }, .b0_takes = 1 },
{ "tcp-half", "T2", "a client that has ended its side still reads its replies", .listener = TCP,
  .talk = { OPEN BODY "> QUIT\nfin\n< 250\n< 221\neof\n" }, .b0_takes = 1, .log = "close=quit" },
{ "tcp-goes", "T2", "one that goes is over", .listener = TCP,
  .talk = { HELLO "close\n" }, .log = "close=client_closed" },
{ "tcp-reset", "T2", "one that resets in mid-body leaves nothing", .listener = TCP,
  .talk = { OPEN "> DATA\n< 354\n> half of\nwait 500\nrst\n" }, .b0_takes = 0, .log = "close=client_reset" },
{ "tcp-421", "T2", "the backend's own goodbye is passed on", .listener = TCP,
  .talk = { HELLO "> MAIL FROM:<a@from.test>\n< 421 4.3.2\neof\n" },
  .b0 = { SAY(BYE, MAIL, "421 4.3.2 All server ports are busy\r\n") }, .log = "close=backend_421" },
{ "tcp-busy-mail", "T3", "and its words teach", .listener = TCP,
  .talk = { HELLO "> MAIL FROM:<a@from.test>\n< 421 4.3.2\neof\n" },
  .b0 = { SAY(BYE, MAIL, "421 4.3.2 All server ports are busy\r\n") }, .log = "stage=MAIL class=busy" },
{ "tcp-busy-greeting", "T3", "a busy greeting is not seen by the client", .listener = TCP,
  .talk = { SEND }, .b0 = { SAY(BYE, GREET, "421 4.3.2 All server ports are busy\r\n") }, .b1_takes = 1,
  .log = " refused=b0:GREET:busy " },
{ "tcp-dead-greeting", "T3", "nor one that does not come", .listener = TCP,
  .talk = { SEND, SEND, SEND }, .b0 = { DO(FIN, GREET), DO(RST, GREET), DO(SILENCE, GREET) }, .b0_takes = -1,
  .b1_takes = -1 },
{ "tcp-all-busy", "T3", "when nobody greets, weir says so and closes", .listener = TCP,
  .talk = { "< 421 4.3.2\neof\n" }, .farm = "budget = 3s\n", .room = "size = 0\n",
  .b0 = { SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n"),
	  SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n"),
	  SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n") },
  .b1 = { SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n"),
	  SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n"),
	  SAY(BYE, GREET, "421 4.3.2 Busy\r\n"), SAY(BYE, GREET, "421 4.3.2 Busy\r\n") },
  .log = "close=unavailable" },
{ "tcp-verdict", "T3", "a verdict on the client reaches it", .listener = TCP,
  .talk = { "< 554 5.7.1\neof\n" }, .b0_config = FARM "identity = proxy-v2\n",
  .b0 = { SAY(BYE, GREET, "554 5.7.1 Your kind is not served here\r\n") }, .log = "close=backend_closed" },
{ "tcp-lost", "T4", "a backend that breaks takes the client with it", .listener = TCP,
  .talk = { HELLO "> MAIL FROM:<a@from.test>\ngone\n" }, .b0 = { DO(RST, MAIL) }, .log = "close=backend_lost" },
{ "tcp-ends", "T4", "one that ends ends the stream", .listener = TCP,
  .talk = { HELLO "> MAIL FROM:<a@from.test>\neof\n" }, .b0 = { DO(FIN, MAIL) }, .log = "stage=MAIL class=sick" },
{ "tcp-silent", "T4", "one that does not answer is given up", .listener = TCP, .timeouts = HASTY,
  .talk = { HELLO "> MAIL FROM:<a@from.test>\nmark\n< 421 4.4.2\nafter 4500\nsoon 6000\neof\n" },
  .b0 = { DO(SILENCE, MAIL) }, .log = "close=backend_lost" },
{ "tcp-final-late", "T4", "but the final reply has its time", .listener = TCP, .timeouts = HASTY,
  .talk = { SEND }, .b0 = { { SIM_DEED_SLOW, SIM_STAGE_EOD, NULL, 7 * S } }, .b0_takes = 1 },
{ "tcp-idle", "T4", "a client that says nothing, too", .listener = TCP, .timeouts = HASTY,
  .talk = { HELLO "mark\n< 421 4.4.2\nafter 4500\nsoon 6000\neof\n" }, .log = "close=client_timeout" },
{ "tcp-deaf", "T4", "and one that does not read", .listener = TCP, .timeouts = HASTY,
  .talk = { HELLO "deaf\nmany 100 RSET\\r\\n\nwait 20000\ngone\n" }, .log = "close=client_",
  .faults = { .latency_us_max = 1000, .window_min = 500, .window_max = 500 } },
{ "tcp-xclient", "T5", "XCLIENT goes no further", .listener = TCP,
  .talk = { HELLO "> XCLIENT ADDR=127.0.0.1\n< 421 4.7.0\neof\n" }, .log = "close=foreign" },
{ "tcp-unfollowed", "T5", "nor in what nobody can follow", .listener = TCP,
  .talk = { HELLO ">> DATA\\r\\nXCLIENT ADDR=127.0.0.1\\r\\n\neof\n" }, .log = "close=foreign" },
{ "tcp-proxied", "T5", "the backend is told who it is by a header", .listener = TCP,
  .talk = { SEND }, .b0_config = FARM "identity = proxy-v2\n", .b0_takes = 1,
  .got = "[v2 198.51.100.1 > " WORLD_LISTEN " id]" },
{ "tcp-header", "T5", "or not at all", .listener = TCP,
  .talk = { SEND }, .b0_config = FARM "identity = proxy-v1\n", .b0_takes = 1,
  .got = "[PROXY TCP4 198.51.100.1 " WORLD_LISTEN " " },
{ "tcp-named", "T5", "a proxy in front names the client", .listener = TCP "proxy_from = 198.51.100.0/24\n",
  .talk = { ">> PROXY TCP4 192.0.2.77 203.0.113.9 5555 25\\r\\n\n" SEND }, .b0_takes = 1,
  .log = "client=192.0.2.77:5555 via=198.51.100.1:" },
{ "tcp-denied", "T6", "lists hold here too", .listener = TCP, .talk = { "< 554 5.7.1\neof\n" },
  .admission = "max_sessions = 20\ndeny = 198.51.100.1\n", .log = "close=denied" },
{ "tcp-slot", "T6", "the slot is held for the whole session", .listener = TCP,
  .b0_config = "max_sessions = 1\nweight = 1000\n", .b1_config = "max_sessions = 1\nweight = 1\n",
  .talk = { HELLO "wait 3000\n" MESSAGE BYE, "later 100\n" HELLO "wait 3000\n" MESSAGE BYE,
	    "later 500\nmark\n< 220\nafter 2000\n> EHLO c1.client.test\n< 250\n" MESSAGE BYE },
  .b0_takes = -1, .b1_takes = -1, .log = " waited_ms=" },
{ "tcp-drain", "T6", "a drain says goodbye between two commands", .listener = TCP,
  .talk = { HELLO "wait 300\n! drain\n< 421 4.3.2\neof\n" }, .log = "close=drain" },
{ "tcp-drain-busy", "T6", "and not in the middle of one", .listener = TCP,
  .talk = { OPEN "> DATA\n< 354\n> text\n! drain\nwait 500\n> .\n< 250\n< 421 4.3.2\neof\n" }, .b0_takes = 1,
  .log = "close=drain" },

/* --- U: and that goes opaque --- */

{ "tcp-starttls", "U1", "TLS from end to end", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = WITH_TLS,
  .talk = { SECURE "agreed TLSv1.3\n" MESSAGE BYE }, .b0_takes = 1, .log = " opaque=starttls " },
{ "tcp-starttls-old", "U1", "and with TLS 1.2", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = WITH_TLS,
  .talk = { HELLO "> STARTTLS\n< 220\nsecure 1.2\n" AGAIN MESSAGE BYE }, .b0_takes = 1 },
{ "tcp-starttls-rough", "U1", "on a bad day", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = WITH_TLS,
  .talk = { SECURE "records 20\n" MESSAGE BYE, SECURE MESSAGE BYE }, .b0_takes = 2,
  .faults = { .cut = 500, .skip = 200, .latency_us_max = 30000, .window_min = 10, .window_max = 100 } },
{ "tcp-starttls-bulk", "U1", "a large body, through small windows", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = WITH_TLS,
  .talk = { SECURE TURN "> DATA\n< 354\nbody 400000\n> .\n< 250\n" BYE }, .b0_takes = 1,
  .faults = { .latency_us_max = 2000, .window_min = 3000, .window_max = 9000 } },
{ "tcp-implicit", "U2", "TLS from the first octet", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = INSIDE,
  .talk = { "secure\n" SEND }, .b0_takes = 1, .log = " opaque=tls " },
{ "tcp-starttls-trusted", "T5", "none for one that takes XCLIENT of weir", .listener = TCP, .b0_config = WITH_TLS,
  .talk = { HELLO "> STARTTLS\n< 220\neof\n" }, .log = "close=foreign" },
{ "tcp-idle-opaque", "U3", "in TLS nobody says anything before the end", .listener = TCP, .s0 = { .no_xclient = true },
  .b0_config = WITH_TLS, .timeouts = HASTY,
  .talk = { SECURE "mark\ngone\nafter 4500\nsoon 6000\n" }, .log = "close=client_timeout" },
{ "tcp-drain-opaque", "U3", "an opaque stream may go on until the drain's end", .listener = TCP, .s0 = { .no_xclient = true },
  .b0_config = WITH_TLS, .talk = { SECURE "! drain\nwait 1000\n" MESSAGE BYE }, .b0_takes = 1 },
{ "tcp-reset-opaque", "U3", "a reset is passed on", .listener = TCP, .s0 = { .no_xclient = true }, .b0_config = WITH_TLS,
  .talk = { SECURE TURN "> DATA\n< 354\n> half of\nwait 500\nrst\n" }, .log = "close=client_reset" },
};

const size_t tcp_scene_count = sizeof(tcp_scenes) / sizeof(tcp_scenes[0]);
