#ifndef FUZZ_SESSION_INPUT_H
#define FUZZ_SESSION_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The input of fuzz_session: a play in lines, each a letter and what belongs
 * to it.  Whatever the octets, there is a play in them; lines that say
 * nothing are passed over.  TEXT takes \r \n \0 \\ and \xHH.
 *
 *	W LETTERS #SEED       the world; the letters: fuzz_session.c
 *	D BACKEND KIND STAGE MS TEXT
 *	                      a deed of its next connection but those before
 *	B BACKEND LETTER MS   from then on: up, refusing, dropping, no route,
 *	                      or its connections are cut ("k")
 *	O MS TEXT             an operator says TEXT
 *	K MS                  he has a session cut
 *	L MS                  a reload, without b0 or with it again
 *	A MS, S MS            weir is told to end; S: at once
 *	C CLIENT MS           comes then; the lines that follow are its own:
 *
 *	P                     pipelines, if that is offered
 *	g OCTETS MS           says so many at a time
 *	X KIND OCTETS         is gone behind them: r(eset), c(lose), f(in)
 *	e, h                  EHLO, HELO
 *	m TEXT, n TEXT        MAIL of a new message, TEXT behind the address;
 *	                      n: from nobody
 *	r TEXT, R             RCPT; one that a backend refuses
 *	t TEXT                octets of the body
 *	T TIMES TEXT          the same, often
 *	d MS                  DATA, a pause, the body and its end
 *	k OCTETS, b           BDAT, with so many or with all that are left
 *	s                     RSET
 *	V                     STARTTLS and the handshake, if it is offered; and
 *			      EHLO
 *	v TEXT                the same, with TEXT behind STARTTLS that must die
 *	a N                   AUTH, by the way N of sim_auth.h, if it is offered
 *	c                     what AUTH is begun is cancelled
 *	i OCTETS, j           so many in a record; other keys
 *	N                     leaves in the middle of the handshake, by X
 *	G                     ends TLS without close_notify
 *	l TEXT                a line that draws one reply
 *	u TEXT                a chunk that belongs to nothing
 *	w OCTETS              a line of that length
 *	p MS                  a pause
 *	q, f, x, y            QUIT; FIN, and listens on; RST; close
 *	z TEXT, Z TEXT        octets, as they are; Z: once it has been greeted.
 *	                      Who says any says nothing else.
 */

struct input {
	const uint8_t *data;
	size_t len;
	size_t at;
};

/* One line: its letter, and the octets behind it. */
struct input_line {
	uint8_t letter;
	const uint8_t *rest; /* behind blanks */
	size_t len;
};

/* The next line that is not empty; false: there is none. */
bool input_line(struct input *in, struct input_line *line);

/* A number, and blanks behind it; 0 if there is none.  At most max. */
uint32_t input_number(struct input_line *line, uint32_t max);
/* An octet, and blanks behind it; 0 if there is none. */
uint8_t input_letter(struct input_line *line);

/*
 * The rest as octets, which are fewer than size; text gets a NUL behind them.
 * Marks of messages ("c1.m0") are spoilt by `digit`, so that nobody can
 * pretend to be somebody whom the checkers know; nor is there any of the words
 * that they look for: "SECRET", also in base64, and "injected".
 */
size_t input_text(const struct input_line *line, char digit, char *text,
		  size_t size);
/* Spoil those words in text[0..len). */
void input_spoil(char *text, size_t len);

/* The whole play, for those who write the scripts of clients. */
void input_set(const uint8_t *data, size_t len);
struct input input_begin(void);

#endif
