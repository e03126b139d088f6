#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_script.h"

/*
 * What becomes of a script once it is written, whoever wrote it: the seed
 * (sim_script.c) or a fuzzer's input (tests/fuzz/session_script.c).
 */

void sim_script_free(struct sim_script *script)
{
	for (size_t i = 0; i < script->count; i++)
		free(script->steps[i].text);
	free(script->steps);
	*script = (struct sim_script){ 0 };
}

void sim_script_no_params(struct sim_script *script, const char *param)
{
	for (size_t i = 0; i < script->count; i++) {
		struct sim_step *step = &script->steps[i];
		char *at;

		if (step->reply != SIM_REPLY_MAIL)
			continue;
		at = strcasestr(step->text, param);
		if (at == NULL)
			continue;
		*at = '\0';
		step->text_len = (size_t)(at - step->text);
	}
}

void sim_script_no_chunks(struct sim_script *script)
{
	for (unsigned i = 0; i < script->sent_count; i++) {
		if (script->sent[i].message->chunked)
			script->sent[i].dead = true;
	}
}
