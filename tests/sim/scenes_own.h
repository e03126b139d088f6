#ifndef SIM_SCENES_OWN_H
#define SIM_SCENES_OWN_H

#include "tests/sim/scenes.h"

/* What the tables of scenes are written with. */

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

/* clang-format on */

#endif
