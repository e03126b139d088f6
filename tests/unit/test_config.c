#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy/config.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The least that a file must have: cases are put behind it. */
#define LEAST       "[listener l]\n[backend b]\naddress = 127.0.0.1:10025\n"
#define LEAST_LINES 3

#define PIN_HEX                                                                \
	"00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
#define PIN_COLONS                                                             \
	"00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:"                     \
	"00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff"
#define PIN_BASE64 "ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8="

static struct config_report *report;

static int setup(void **state)
{
	(void)state;
	report = config_report_new();
	return report == NULL;
}

static int teardown(void **state)
{
	(void)state;
	config_report_free(&report);
	return 0;
}

static struct config *parse(const char *text)
{
	return config_parse_text(text, strlen(text), "f", report);
}

static struct config *parse_good(const char *text)
{
	struct config *config = parse(text);

	for (unsigned i = 0; i < report->count; i++)
		print_message("    %s\n", report->errors[i].text);
	assert_int_equal(report->count, 0);
	assert_int_equal(report->omitted, 0);
	assert_non_null(config);
	return config;
}

/* All errors, each with a line feed.  The caller frees it. */
static char *errors_of(const char *text, size_t len)
{
	/* A private copy, so that ASan sees reads past the end. */
	char *copy = malloc(len + 1);
	char *all = calloc(CONFIG_ERRORS_MAX + 1, CONFIG_ERROR_MAX);
	size_t at = 0;

	assert_non_null(copy);
	assert_non_null(all);
	copy = realloc(copy, len > 0 ? len : 1);
	assert_non_null(copy);
	memcpy(copy, text, len);
	struct config *config = config_parse_text(copy, len, "f", report);

	free(copy);
	assert_int_equal(config == NULL, report->count > 0);
	config_free(&config);
	for (unsigned i = 0; i < report->count; i++) {
		size_t line = strlen(report->errors[i].text);

		assert_in_range(line, 1, CONFIG_ERROR_MAX - 1);
		memcpy(all + at, report->errors[i].text, line);
		at += line;
		all[at++] = '\n';
	}
	return all;
}

static void check_errors(const char *text, const char *errors)
{
	char *got = errors_of(text, strlen(text));

	assert_string_equal(got, errors);
	free(got);
}

/* The whole of a file; the caller frees it. */
static char *read_file(const char *path)
{
	enum { FILE_MAX = 1 << 20 };
	FILE *file = fopen(path, "r");
	char *text = calloc(1, FILE_MAX);

	assert_non_null(file);
	assert_non_null(text);
	size_t len = fread(text, 1, FILE_MAX - 1, file);

	assert_int_equal(ferror(file), 0);
	assert_in_range(len, 1, FILE_MAX - 2);
	assert_int_equal(fclose(file), 0);
	return text;
}

/* A file that is gone after the test; path has 32 octets. */
static void write_file(char *path, const char *text)
{
	memcpy(path, "/tmp/weir-test-config-XXXXXX", 29);
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	assert_int_equal(close(fd), 0);
}

/* --- bad files --- */

struct bad_case {
	const char *about;
	const char *text;
	const char *errors;
};

static const struct bad_case bad_files[] = {
	{ "an empty file", "",
	  "f: no [listener NAME]: need at least one\n"
	  "f: no [backend NAME]: need at least one\n" },
	{ "nothing but comments", "# a\n; b\n\n",
	  "f: no [listener NAME]: need at least one\n"
	  "f: no [backend NAME]: need at least one\n" },
	{ "every mistake is named, in the order of lines",
	  "[weir]\n"
	  "wrokers = 2\n"
	  "log_format = xml\n"
	  "no pair\n"
	  "[listener a]\n"
	  "listen = here:25\n"
	  "[backend b]\n"
	  "weight = 0\n"
	  "[farm]\n"
	  "tries = 11\n",
	  "f:2: unknown key \"wrokers\" in [weir]: did you mean "
	  "\"workers\"?\n"
	  "f:3: log_format = \"xml\": need kv or json (default kv)\n"
	  "f:4: neither [section] nor key = value\n"
	  "f:6: listen = \"here:25\": need numeric ADDRESS:PORT or "
	  "[IPV6]:PORT, at most 8 (default 0.0.0.0:25)\n"
	  "f:7: [backend] has no key \"address\": need numeric ADDRESS:PORT "
	  "or [IPV6]:PORT (host names are for a later release)\n"
	  "f:8: weight = \"0\": need a whole number from 1 to 1000 (default "
	  "100)\n"
	  "f:10: tries = \"11\": need a whole number from 1 to 10 (default "
	  "3)\n" },
	{ "a key before any section", "workers = 1\n" LEAST,
	  "f:1: \"workers\" stands before the first [section]\n" },
	{ "several bad lines: inih alone names only the first",
	  LEAST "one\ntwo\n= three\n",
	  "f:4: neither [section] nor key = value\n"
	  "f:5: neither [section] nor key = value\n"
	  "f:6: neither [section] nor key = value\n" },
	{ "the last line needs no line feed", LEAST "[farm]\ntries = x",
	  "f:5: tries = \"x\": need a whole number from 1 to 10 (default "
	  "3)\n" },
	{ "an indented line is no continuation",
	  LEAST "[listener m]\nlisten = 127.0.0.1:25\n  127.0.0.2:25 more\n",
	  "f:6: neither [section] nor key = value\n" },
	{ "a NUL hides nothing (the octets before it are a good line)",
	  LEAST "[farm]\ntries = 2\001\n",
	  "f:5: has a control character (octet 0x01)\n" },
};

static const struct bad_case bad_sections[] = {
	{ "an unknown section, and its keys are checked all the same",
	  LEAST "[timeout]\ncommand = 5\n",
	  "f:4: unknown section \"timeout\": did you mean [timeouts]?\n"
	  "f:5: command = \"5\": need a duration in ms, s, m or h, from "
	  "100ms to 24h (default 5m)\n" },
	{ "an unknown section that is like no other",
	  LEAST "[postscreen]\ncommand = 5\n",
	  "f:4: unknown section \"postscreen\": weir.ini(5) has them all\n" },
	{ "case counts", LEAST "[Farm]\n",
	  "f:4: unknown section \"Farm\": did you mean [farm]?\n" },
	{ "no ]", LEAST "[farm\ntries = 0\n",
	  "f:4: a section needs a ] at its end\n"
	  "f:5: tries = \"0\": need a whole number from 1 to 10 (default "
	  "3)\n" },
	{ "more behind the ]: inih would not see it",
	  LEAST "[farm] tries = 0\n",
	  "f:4: more than a comment behind the ]\n" },
	{ "a section twice", LEAST "[farm]\n[health]\n[farm]\n",
	  "f:6: [farm] is given twice, first in line 4\n" },
	{ "a name where none belongs", LEAST "[farm x]\n",
	  "f:4: [farm] takes no name\n" },
	{ "no name where one belongs",
	  "[listener]\n[backend b]\naddress = 127.0.0.1:1\n",
	  "f:1: [listener \"\"]: need [listener NAME] with 1 to 63 of A-Z a-z "
	  "0-9 . _ -\n" },
	{ "two words for a name",
	  "[listener l]\n[backend a b]\naddress = 127.0.0.1:1\n",
	  "f:2: [backend \"a b\"]: need [backend NAME] with 1 to 63 of A-Z "
	  "a-z 0-9 . _ -\n" },
	{ "a name of 64 octets",
	  "[listener l]\n"
	  "[backend 1234567890123456789012345678901234567890123456789012345678"
	  "901234]\naddress = 127.0.0.1:1\n",
	  "f:2: [backend "
	  "\"123456789012345678901234567890123456789012345678901234567890123"
	  "4\"]: need [backend NAME] with 1 to 63 of A-Z a-z 0-9 . _ -\n" },
	{ "two backends of one name",
	  LEAST "[backend c]\naddress = 127.0.0.1:1\n"
		"[backend b]\naddress = 127.0.0.1:2\n",
	  "f:6: there is a [backend b] already\n" },
	{ "two listeners of one name",
	  LEAST "[listener l]\nlisten = 127.0.0.1:1\n",
	  "f:4: there is a [listener l] already\n" },
	{ "two listeners at one address, by default", LEAST "[listener m]\n",
	  "f:4: listen = \"0.0.0.0:25\": [listener l] has this address "
	  "already\n" },
	{ "two listeners at one address, IPv4-mapped",
	  LEAST "[listener m]\nlisten = [::ffff:0.0.0.0]:25\n",
	  "f:5: listen = \"[::ffff:0.0.0.0]:25\": [listener l] has this "
	  "address already\n" },
	{ "one listener, one address twice",
	  LEAST "[listener m]\nlisten = 127.0.0.1:1, 127.0.0.1:1\n",
	  "f:5: listen = \"127.0.0.1:1\": this address is given twice\n" },
	{ "nine addresses",
	  LEAST "[listener m]\nlisten = 127.0.0.1:1,127.0.0.1:2,127.0.0.1:3\n"
		"listen = 127.0.0.1:4,127.0.0.1:5,127.0.0.1:6\n"
		"listen = 127.0.0.1:7,127.0.0.1:8\nlisten = 127.0.0.1:9\n",
	  "f:8: listen = \"127.0.0.1:9\": a listener has at most 8 "
	  "addresses\n" },
	{ "no address at all", LEAST "[listener m]\nlisten =\n",
	  "f:5: listen = \"\": need numeric ADDRESS:PORT or [IPV6]:PORT, at "
	  "most 8 (default 0.0.0.0:25)\n" },
	{ "too many listeners",
	  "[backend b]\naddress=127.0.0.1:1\n"
	  "[listener 1]\nlisten=[::1]:1\n[listener 2]\nlisten=[::1]:2\n"
	  "[listener 3]\nlisten=[::1]:3\n[listener 4]\nlisten=[::1]:4\n"
	  "[listener 5]\nlisten=[::1]:5\n[listener 6]\nlisten=[::1]:6\n"
	  "[listener 7]\nlisten=[::1]:7\n[listener 8]\nlisten=[::1]:8\n"
	  "[listener 9]\nlisten=[::1]:9\n[listener a]\nlisten=[::1]:10\n"
	  "[listener b]\nlisten=[::1]:11\n[listener c]\nlisten=[::1]:12\n"
	  "[listener d]\nlisten=[::1]:13\n[listener e]\nlisten=[::1]:14\n"
	  "[listener f]\nlisten=[::1]:15\n[listener g]\nlisten=[::1]:16\n"
	  "[listener h]\nlisten=[::1]:17\n",
	  "f:35: too many listeners: at most 16\n" },
};

static const struct bad_case bad_keys[] = {
	{ "a letter too few", LEAST "[admission]\nmax_sesions = 1\n",
	  "f:5: unknown key \"max_sesions\" in [admission]: did you mean "
	  "\"max_sessions\"?\n" },
	{ "another case", LEAST "[farm]\nTries = 1\n",
	  "f:5: unknown key \"Tries\" in [farm]: did you mean \"tries\"?\n" },
	{ "a key of another section", LEAST "[farm]\nworkers = 1\n",
	  "f:5: unknown key \"workers\" in [farm]: it belongs in [weir]\n" },
	{ "a key that is like no other", LEAST "[farm]\nquux = 1\n",
	  "f:5: unknown key \"quux\" in [farm]: weir.ini(5) has them all\n" },
	{ "a long and strange key",
	  LEAST
	  "[farm]\n\xc3\xa4"
	  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	  " = 1\n",
	  "f:5: unknown key \"\\xc3\\xa4"
	  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" in "
	  "[farm]: weir.ini(5) has them all\n" },
	{ "a key twice", LEAST "[farm]\ntries = 1\nbudget = 9s\ntries = 1\n",
	  "f:7: \"tries\" is given twice, first in line 5\n" },
	{ "a bad value and the same key again",
	  LEAST "[farm]\ntries = 0\ntries = 1\n",
	  "f:5: tries = \"0\": need a whole number from 1 to 10 (default 3)\n"
	  "f:6: \"tries\" is given twice, first in line 5\n" },
	{ "marks of stress in the wrong order, one by default",
	  LEAST "[admission]\nstress_high = 60%\n",
	  "f:5: stress_low (default 75%) must be less than stress_high\n" },
	{ "marks of stress in the wrong order",
	  LEAST "[admission]\nstress_low = 50%\nstress_high = 50%\n",
	  "f:6: stress_low must be less than stress_high\n" },
	{ "a mark that was refused is not compared",
	  LEAST "[admission]\nstress_low = 95%\nstress_high = 101%\n",
	  "f:6: stress_high = \"101%\": need a percentage from 0% to 100% "
	  "(default 90%)\n" },
	{ "an aggregate within a source",
	  LEAST "[admission]\nipv4_source_prefix = 16\n"
		"ipv6_aggregate_prefix = 65\n",
	  "f:5: ipv4_aggregate_prefix (default 24) must be at most "
	  "ipv4_source_prefix\n"
	  "f:6: ipv6_aggregate_prefix must be at most ipv6_source_prefix "
	  "(default 64)\n" },
	{ "the first ejection longer than the longest",
	  LEAST "[health]\neject_max = 4s\n",
	  "f:5: eject (default 5s) must be at most eject_max\n" },
	{ "marks of the waiting room in the wrong order, one by default",
	  LEAST "[room]\nhigh = 40%\n",
	  "f:5: low (default 50%) must be less than high\n" },
	{ "marks of the waiting room in the wrong order",
	  LEAST "[room]\nlow = 70%\nhigh = 70%\n",
	  "f:6: low must be less than high\n" },
	{ "nobody of a source may wait", LEAST "[room]\nper_source = 0\n",
	  "f:5: per_source = \"0\": need a whole number from 1 to 65536 "
	  "(default 10)\n" },
	{ "bodies that are held nowhere, whatever comes first",
	  "[listener l]\nslot = body\n[backend b]\naddress = 127.0.0.1:1\n"
	  "[weir]\nbody_memory = 0\n",
	  "f:2: slot = body needs memory to hold bodies in, and body_memory "
	  "of [weir] is 0: give it some, like 256M\n" },
	{ "a body larger than the memory for all",
	  "[weir]\nbody_memory = 1M\n" LEAST
	  "[listener m]\nlisten = [::1]:25\nslot = body\n"
	  "body_buffer = 2M\n",
	  "f:9: body_buffer of [listener m] must be at most body_memory of "
	  "[weir]\n" },
	{ "the same, one by default",
	  "[weir]\nbody_memory = 128K\n[listener l]\nslot = body\n"
	  "[backend b]\naddress = 127.0.0.1:1\n",
	  "f:2: body_buffer (default 256K) of [listener l] must be at most "
	  "body_memory of [weir]\n" },
	{ "the same, the other by default",
	  "[listener l]\nslot = body\nbody_buffer = 512M\n"
	  "[backend b]\naddress = 127.0.0.1:1\n",
	  "f:3: body_buffer of [listener l] must be at most body_memory "
	  "(default 256M) of [weir]\n" },
	{ "a size that was refused is not compared",
	  "[weir]\nbody_memory = 1X\n[listener l]\nslot = body\n"
	  "body_buffer = 512M\n[backend b]\naddress = 127.0.0.1:1\n",
	  "f:2: body_memory = \"1X\": need a size in octets, K, M or G, from "
	  "0 to 1024G (default 256M)\n" },
	{ "a ceiling that is neither", LEAST "max_sessions = none\n",
	  "f:4: max_sessions = \"none\": need auto or a whole number from 1 "
	  "to 65535 (default auto)\n" },
	{ "the waiting room by its other name", LEAST "[rooms]\n",
	  "f:4: unknown section \"rooms\": did you mean [room]?\n" },
	{ "a source of the other family",
	  LEAST "[backend v6]\nsource = 192.0.2.1\naddress = [::1]:25\n"
		"[backend v4]\naddress = 192.0.2.2:25\nsource = ::1\n",
	  "f:5: source and address must both be IPv4, or both IPv6\n"
	  "f:9: source and address must both be IPv4, or both IPv6\n" },
	{ "each member of a list on its own",
	  LEAST "[admission]\ndeny = 10.0.0.1/8, 192.0.2.0/24,, x\n"
		"allow = ::1/200\n",
	  "f:5: deny = \"10.0.0.1/8\": host bits are set: the network is "
	  "10.0.0.0/8\n"
	  "f:5: deny = \"\": not an IPv4 or IPv6 address, or a network such "
	  "as 192.0.2.0/24 or 2001:db8::/32\n"
	  "f:5: deny = \"x\": not an IPv4 or IPv6 address, or a network such "
	  "as 192.0.2.0/24 or 2001:db8::/32\n"
	  "f:6: allow = \"::1/200\": the prefix length of an IPv6 "
	  "network is a whole number from 0 to 128\n" },
	{ "a file that is not there",
	  LEAST "[admission]\ndeny_file = /nonexistent/nets\n"
		"allow_file = nets\nallow_file = /\n"
		"allow_file = /dev\nallow_file = /dev/zero\n",
	  "f:5: deny_file = \"/nonexistent/nets\": cannot be read: No such "
	  "file or directory\n"
	  "f:6: allow_file = \"nets\": need absolute paths of files with one "
	  "network a line (default empty)\n"
	  "f:7: allow_file = \"/\": need absolute paths of files with one "
	  "network a line (default empty)\n"
	  "f:8: allow_file = \"/dev\": cannot be read: Is a directory\n"
	  "f:9: allow_file = \"/dev/zero\": cannot be read: Invalid "
	  "argument\n" },
	{ "a busy rule says which word is wrong, in printable ASCII",
	  LEAST "busy_rule = MAIL 452 => b\xc3\xbcsy\n",
	  "f:4: busy_rule = \"MAIL 452 => b\\xc3\\xbcsy\": \"b??sy\": need a "
	  "class behind =>: busy, maybe-busy, cap, drain, sick, misconf, "
	  "session, policy or ok\n" },
	{ "a backend by its host name",
	  "[listener l]\n[backend b]\naddress = mx.example:25\n",
	  "f:3: address = \"mx.example:25\": need numeric ADDRESS:PORT or "
	  "[IPV6]:PORT (host names are for a later release)\n" },
};

/* A listener and a backend with these lines. */
#define A_LISTENER(lines)                                                      \
	"[listener l]\n" lines "[backend b]\naddress = 127.0.0.1:1\n"
#define A_BACKEND(lines)                                                       \
	"[listener l]\n[backend b]\naddress = 127.0.0.1:1\n" lines

static const struct bad_case bad_company[] = {
	{ "TLS without a certificate", A_LISTENER("tls = starttls\n"),
	  "f:2: tls needs a certificate: tls_cert = CERT [KEY]\n" },
	{ "a certificate that was refused is not missed",
	  A_LISTENER("tls = implicit\ntls_cert = mx.pem\n"),
	  "f:3: tls_cert = \"mx.pem\": need 1 to 3 absolute paths: CERT [KEY "
	  "[OCSP]] (default empty)\n" },
	{ "a certificate without TLS", A_LISTENER("tls_cert = /c\n"),
	  "f:2: tls_cert is of no use with tls = none: say tls = starttls, "
	  "required or implicit\n" },
	{ "a mode of TLS that was refused is not known",
	  A_LISTENER("tls = on\ntls_cert = /c\nauth = tls\n"),
	  "f:2: tls = \"on\": need none, starttls, required or implicit "
	  "(default none)\n" },
	{ "clients' certificates without who vouches for them",
	  A_LISTENER("tls = starttls\ntls_cert = /c\n"
		     "tls_client_cert = require\n"),
	  "f:4: tls_client_cert = require needs tls_ca = system or a file: "
	  "who vouches for clients\n" },
	{ "who vouches for nobody",
	  A_LISTENER("tls = starttls\ntls_cert = /c\n"
		     "tls_client_cert = log\ntls_ca = system\n"),
	  "f:5: tls_ca is of no use without tls_client_cert = require\n" },
	{ "clients' certificates without TLS",
	  A_LISTENER("tls_client_cert = log\n"),
	  "f:2: tls_client_cert is of no use with tls = none\n" },
	{ "AUTH under a TLS that is not there", A_LISTENER("auth = tls\n"),
	  "f:2: auth = tls offers AUTH under TLS, and tls = none: set tls, or "
	  "auth = always for passwords in the clear\n" },
	{ "bare newlines in bodies that are held",
	  A_LISTENER("slot = body\nbare_newline = bdat\n"),
	  "f:3: bare_newline = bdat does not go with slot = body: a body that "
	  "is held goes on by DATA, where a bare newline may end it early\n" },
	{ "a plain listener that is to speak",
	  A_LISTENER("mode = tcp\nbanner = hello\ngreeting_delay = 1s\n"
		     "early_talkers = off\nsize = 1M\nslot = body\n"
		     "auth = always\nbare_newline = bdat\n"),
	  "f:3: banner has no meaning with mode = tcp, which relays all as it "
	  "comes\n"
	  "f:4: greeting_delay has no meaning with mode = tcp, which relays "
	  "all as it comes\n"
	  "f:5: early_talkers has no meaning with mode = tcp, which relays "
	  "all as it comes\n"
	  "f:6: size has no meaning with mode = tcp, which relays all as it "
	  "comes\n"
	  "f:7: slot = body has no meaning with mode = tcp, which relays all "
	  "as it comes\n"
	  "f:8: auth has no meaning with mode = tcp, which relays all as it "
	  "comes: whatever backends offer\n"
	  "f:9: bare_newline has no meaning with mode = tcp, which relays all "
	  "as it comes\n" },
	{ "a plain listener with TLS",
	  A_LISTENER("mode = tcp\ntls = required\ntls_cert = /c\n"
		     "tls_client_cert = log\ntls_ca = system\n"),
	  "f:3: tls has no meaning with mode = tcp, which relays all as it "
	  "comes: TLS is between clients and backends\n"
	  "f:4: tls_cert has no meaning with mode = tcp, which relays all as "
	  "it comes: TLS is between clients and backends\n"
	  "f:5: tls_client_cert has no meaning with mode = tcp, which relays "
	  "all as it comes\n"
	  "f:6: tls_ca has no meaning with mode = tcp, which relays all as it "
	  "comes\n" },
	{ "versions of TLS in the wrong order",
	  LEAST "[tls]\nmin_version = 1.3\nmax_version = 1.2\n",
	  "f:6: min_version must be at most max_version\n" },
	{ "the same, one by default", LEAST "[tls]\nmax_version = 1.1\n",
	  "f:5: min_version (default 1.2) must be at most max_version\n" },
	{ "nine certificates",
	  A_LISTENER("tls = starttls\ntls_cert = /1\ntls_cert = /2\n"
		     "tls_cert = /3\ntls_cert = /4\ntls_cert = /5\n"
		     "tls_cert = /6\ntls_cert = /7\ntls_cert = /8\n"
		     "tls_cert = /9\n"),
	  "f:11: tls_cert = \"/9\": a listener has at most 8 certificates\n" },
	{ "keys of TLS to a backend that has none",
	  A_BACKEND("tls_mode = implicit\ntls_name = mx\ntls_cert = /c\n"
		    "tls_ca = /d\n"),
	  "f:4: tls_mode = implicit is of no use with tls = none\n"
	  "f:5: tls_name is of no use with tls = none\n"
	  "f:6: tls_cert is of no use with tls = none\n"
	  "f:7: tls_ca is looked at by tls = verify only\n" },
	{ "a pin that nobody would look at",
	  A_BACKEND("tls = required\ntls_pin = " PIN_HEX "\n"),
	  "f:5: tls_pin is looked at by tls = verify only\n" },
	{ "CAs that nobody would look at",
	  A_BACKEND("tls = verify\ntls_ca = /ca.pem\ntls_pin = " PIN_HEX "\n"),
	  "f:5: tls_ca is not looked at where there is a tls_pin: give one of "
	  "them\n" },
	{ "five pins",
	  A_BACKEND("tls = verify\ntls_pin = " PIN_HEX "\ntls_pin = " PIN_HEX
		    "\ntls_pin = " PIN_HEX "\ntls_pin = " PIN_HEX
		    "\ntls_pin = " PIN_HEX "\n"),
	  "f:9: tls_pin = \"" PIN_HEX "\": a backend has at most 4 pins\n" },
	{ "implicit TLS, but only perhaps",
	  A_BACKEND("tls = opportunistic\ntls_mode = implicit\n"),
	  "f:5: tls_mode = implicit cannot be opportunistic: say tls = "
	  "required or verify\n" },
	{ "two addresses to connect from",
	  A_BACKEND("identity = transparent\nsource = 127.0.0.2\n"),
	  "f:5: source does not go with identity = transparent, which "
	  "connects from the client's address\n" },
	{ "somebody else's connection",
	  A_BACKEND("reuse = on\nidentity = transparent\n"),
	  "f:4: reuse = on does not go with identity = proxy-v1, proxy-v2 or "
	  "transparent: such a connection is one client's\n" },
	{ "an identity that was refused is not known",
	  A_BACKEND("identity = proxy\nreuse = on\nsource = 127.0.0.2\n"),
	  "f:4: identity = \"proxy\": need none, header, xclient, proxy-v1, "
	  "proxy-v2 or transparent (default none)\n" },
};

static void run_bad(const struct bad_case *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		print_message("  %s\n", cases[i].about);
		check_errors(cases[i].text, cases[i].errors);
	}
}

static void bad_files_are_refused_with_every_mistake(void **state)
{
	(void)state;
	run_bad(bad_files, COUNT(bad_files));
}

static void bad_sections_are_refused(void **state)
{
	(void)state;
	run_bad(bad_sections, COUNT(bad_sections));
}

static void bad_keys_are_refused(void **state)
{
	(void)state;
	run_bad(bad_keys, COUNT(bad_keys));
}

/* --- single values --- */

static void keys_that_contradict_each_other_are_refused(void **state)
{
	(void)state;
	run_bad(bad_company, COUNT(bad_company));
}

struct value_case {
	const char *section;
	const char *pair;
	bool good;
};

static const struct value_case values[] = {
	{ "weir", "workers = 64", true },
	{ "weir", "workers = 65", false },
	{ "weir", "workers = -1", false },
	{ "weir", "workers = +1", false },
	{ "weir", "workers = 1 # one", false },
	{ "weir", "workers = 1 ; one", true },
	{ "weir", "workers = 1;one", false },
	{ "weir", "workers: 2", false },
	{ "weir", "workers =", false },
	{ "weir", "workers = 0x1", false },
	{ "weir", "workers = 18446744073709551617", false },
	{ "weir", "hostname =", true },
	{ "weir", "hostname = mx-1.example.net", true },
	{ "weir", "hostname = [192.0.2.1]", true },
	{ "weir", "hostname = [IPv6:2001:db8::1]", true },
	{ "weir", "hostname = [mx]", false },
	{ "weir", "hostname = mx..example", false },
	{ "weir", "hostname = .example", false },
	{ "weir", "hostname = example.", false },
	{ "weir", "hostname = mx example", false },
	{ "weir", "hostname = \"mx\"", false },
	{ "weir", "user = mail-in_1", true },
	{ "weir", "user = -mail", false },
	{ "weir", "user = a/b", false },
	{ "weir", "group =", true },
	{ "weir", "control_socket = /x", true },
	{ "weir", "control_socket = x", false },
	{ "weir", "control_socket =", false },
	{ "weir", "control_mode = 0777", true },
	{ "weir", "control_mode = 660", true },
	{ "weir", "control_mode = 1777", false },
	{ "weir", "control_mode = 0668", false },
	{ "weir", "control_mode = 0", false },
	{ "weir", "log = journal", true },
	{ "weir", "log = /var/log/weir.log", true },
	{ "weir", "log = weir.log", false },
	{ "weir", "log_level = emerg", true },
	{ "weir", "log_level = loud", false },
	{ "weir", "small_buffers = 15", false },
	{ "weir", "big_buffers = 32768", true },
	{ "weir", "big_buffers = 32769", false },
	{ "listener x", "listen = 127.0.0.1:1, [::1]:1", true },
	{ "listener x", "listen = 127.0.0.1:65536", false },
	{ "listener x", "listen = 127.0.0.1:0", false },
	{ "listener x", "listen = 127.0.0.1", false },
	{ "listener x", "listen = :25", false },
	{ "listener x", "listen = *:25", false },
	{ "listener x", "listen = ::1:25", false },
	{ "listener x", "listen = [127.0.0.1]:25", false },
	{ "listener x", "listen = [::1]", false },
	{ "listener x", "listen = [fe80::1%eth0]:25", false },
	{ "listener x", "listen = 127.0.0.1:1,", false },
	{ "weir", "body_memory = 0", true },
	{ "weir", "body_memory = 1G", true },
	{ "weir", "body_memory = 1025G", false },
	{ "weir", "body_memory = all", false },
	{ "farm", "busy = observe", true },
	{ "farm", "busy = act", true },
	{ "farm", "busy = ignore", false },
	{ "farm", "start_sessions = 1", true },
	{ "farm", "start_sessions = 0", false },
	{ "farm", "start_sessions = auto", false },
	{ "farm", "retry_max = 500ms", true },
	{ "farm", "retry_max = 499ms", false },
	{ "farm", "reuse_max = 1", true },
	{ "farm", "reuse_max = 0", false },
	{ "farm", "reuse_idle = 100ms", true },
	{ "farm", "reuse_idle = 0", false },
	{ "farm", "reuse_share = 100%", true },
	{ "farm", "reuse_share = 0%", false },
	{ "farm", "reuse_share = 10", false },
	{ "room", "size = 0", true },
	{ "room", "size = 65536", true },
	{ "room", "size = 65537", false },
	{ "room", "per_source = 1", true },
	{ "room", "wait = 4m", true },
	{ "room", "wait = 5m", false },
	{ "room", "wait = 0", false },
	{ "room", "reserve = 0%", true },
	{ "room", "reserve = 51%", false },
	{ "room", "high = 100%", true },
	{ "room", "high = 101%", false },
	{ "room", "low = 0%", true },
	{ "room", "saturated_after = 0", true },
	{ "admission", "max_recipients = 99", false },
	{ "admission", "max_recipients = 100", true },
	{ "admission", "max_percent_per_source = 2", false },
	{ "admission", "max_percent_per_source = 0", true },
	{ "admission", "max_percent_per_source = %", false },
	{ "admission", "session_rate = 1/s", true },
	{ "admission", "session_rate = 10/h burst 1", true },
	{ "admission", "session_rate = 10/m  burst  5", true },
	{ "admission", "session_rate = 10/d", false },
	{ "admission", "session_rate = 10/", false },
	{ "admission", "session_rate = /m", false },
	{ "admission", "session_rate = 10", false },
	{ "admission", "session_rate = 0/m", false },
	{ "admission", "session_rate = 10/min", false },
	{ "admission", "session_rate = 10/m burst", false },
	{ "admission", "session_rate = 10/m burst 0", false },
	{ "admission", "session_rate = 10/m burst 5 6", false },
	{ "admission", "session_rate = 10/m bust 5", false },
	{ "admission", "session_rate =", false },
	{ "admission", "failed_logins = 10/h burst 5", true },
	{ "admission", "failed_logins = 5", false },
	{ "admission", "ipv4_source_prefix = 33", false },
	{ "admission", "ipv6_source_prefix = 128", true },
	{ "admission", "table_size = 16777217", false },
	{ "admission", "stress_high = 0%", true },
	{ "admission", "tarpit = 60s", true },
	{ "admission", "tarpit = 61s", false },
	{ "admission", "allow =", true },
	{ "tls", "min_version = 1.0", true },
	{ "tls", "min_version = 1", false },
	{ "tls", "max_version = 1.3", true },
	{ "tls", "max_version = TLSv1.3", false },
	{ "tls", "ciphers =", true },
	{ "tls", "ciphers = ECDHE+AESGCM:!aNULL:@SECLEVEL=0", true },
	{ "tls", "ciphersuites = TLS_AES_128_GCM_SHA256", true },
	{ "tls", "groups = X25519:P-256", true },
	{ "tls", "groups = \"X25519\"", false },
	{ "tls", "ticket_lifetime = 0", true },
	{ "tls", "ticket_lifetime = 168h", true },
	{ "tls", "ticket_lifetime = 169h", false },
	{ "tls", "handshakes = 1", true },
	{ "tls", "handshakes = 0", false },
	{ "tls", "handshakes = 1001", false },
	{ "farm", "relay_guard = warn", true },
	{ "farm", "relay_guard = on", false },
	{ "farm", "relay_from = 10.0.0.0/8, 2001:db8::/32", true },
	{ "farm", "relay_from = 10.0.0.1/8", false },
	{ "timeouts", "handshake = 5m", true },
	{ "timeouts", "handshake = 0", false },
	{ "timeouts", "proxy = 100ms", true },
	{ "timeouts", "proxy = 6m", false },
	{ "timeouts", "command = 5m", true },
	{ "timeouts", "command = 100ms", true },
	{ "timeouts", "command = 99ms", false },
	{ "timeouts", "command = 300", false },
	{ "timeouts", "command = 0", false },
	{ "timeouts", "command = 5 m", false },
	{ "timeouts", "command = 5M", false },
	{ "timeouts", "command = 1.5m", false },
	{ "timeouts", "command = 1d", false },
	{ "timeouts", "command = m", false },
	{ "timeouts", "command = -5m", false },
	{ "timeouts", "command = 18446744073709551615h", false },
	{ "timeouts", "session = 0", true },
	{ "timeouts", "session = 0s", true },
	{ "health", "mail = on", true },
	{ "health", "mail = yes", false },
	{ "health", "mail = On", false },
	{ "health", "rise = 65", false },
	{ "health", "helo = probe.example", true },
};

static void each_value_is_taken_or_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(values); i++) {
		const struct value_case *c = &values[i];
		char text[512];

		(void)snprintf(text, sizeof(text), LEAST "[%s]\n%s%s\n",
			       c->section, c->pair,
			       c->section[0] == 'l' &&
					       !strstr(c->pair, "listen")
				       ? "\nlisten = 127.0.0.1:1"
				       : "");
		print_message("  [%s] %s\n", c->section, c->pair);
		struct config *config = parse(text);

		assert_int_equal(config != NULL, c->good);
		assert_int_equal(report->count, c->good ? 0 : 1);
		if (!c->good)
			assert_int_equal(report->errors[0].line,
					 LEAST_LINES + 2);
		config_free(&config);
	}
}

static const struct value_case sizes[] = {
	{ "listener", "size = 0", true },
	{ "listener", "size = 1", true },
	{ "listener", "size = 25M", true },
	{ "listener", "size = 1024G", true },
	{ "listener", "size = 1025G", false },
	{ "listener", "size = 1T", false },
	{ "listener", "size = 1k", false },
	{ "listener", "size = 1KB", false },
	{ "listener", "size = M", false },
	{ "listener", "banner =", true },
	{ "listener", "banner = ESMTP ready at your service", true },
	{ "listener", "banner = \"ESMTP\"", false },
	{ "listener", "banner = ESMTP \xc3\xa4", false },
	{ "listener", "greeting_delay = 60s", true },
	{ "listener", "greeting_delay = 2m", false },
	{ "listener", "early_talkers = off", true },
	{ "listener", "early_talkers = drop", false },
	{ "listener", "slot = transaction", true },
	{ "listener", "slot = body", true },
	{ "listener", "slot = session", false },
	{ "listener", "body_buffer = 4K", true },
	{ "listener", "body_buffer = 4095", false },
	{ "listener", "body_buffer = 1G", true }, /* it is not used */
	{ "listener", "body_buffer = 2G", false },
	{ "listener", "body_wait = 10ms", true },
	{ "listener", "body_wait = 0", false },
	{ "listener", "proxy_from =", true },
	{ "listener", "proxy_from = ::/0, 0.0.0.0/0", true },
	{ "listener", "proxy_from = 10.0.0.1/8", false },
	{ "listener", "proxy_from = proxy.example", false },
	{ "listener", "mode = tcp", true },
	{ "listener", "mode = udp", false },
	{ "listener", "mode = tcp\ngreeting_delay = 0\nsize = 0", true },
	{ "listener", "tls = none\nauth = none\nbare_newline = reject", true },
	{ "listener", "mode = tcp\nproxy_from = 10.0.0.0/8", true },
	{ "listener", "tls = required\ntls_cert = /a /b /c", true },
	{ "listener", "tls = required\ntls_cert = /a /b /c /d", false },
	{ "listener", "tls = required\ntls_cert = /a b", false },
	{ "listener", "tls_cert =", true },
	{ "listener", "auth = always", true },
	{ "listener", "bare_newline = bdat", true },
	{ "backend", "tls = opportunistic", true },
	{ "backend", "tls = starttls", false },
	{ "backend", "tls = verify", true },
	{ "backend", "tls = verify\ntls_name = mx.example", true },
	{ "backend", "tls = verify\ntls_name = 2001:db8::1", true },
	{ "backend", "tls = verify\ntls_name = [192.0.2.1]", false },
	{ "backend", "tls = verify\ntls_name = *.example", false },
	{ "backend", "tls = verify\ntls_ca = system", true },
	{ "backend", "tls = verify\ntls_ca =", false },
	{ "backend", "tls = verify\ntls_ca = ca.pem", false },
	{ "backend", "tls = verify\ntls_pin = " PIN_COLONS, true },
	{ "backend", "tls = verify\ntls_pin = " PIN_BASE64, true },
	{ "backend", "tls = verify\ntls_pin = " PIN_HEX "0", false },
	{ "backend", "tls = verify\ntls_pin = " PIN_COLONS ":", false },
	{ "backend",
	  "tls = verify\ntls_pin = ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v9=",
	  false }, /* two bits too many */
	{ "backend",
	  "tls = verify\ntls_pin = ABEiM0RVZneImaq7zN3u-wARIjNEVWZ3iJmqu8zd7v8=",
	  false },
	{ "backend", "tls = verify\ntls_pin = 00", false },
	{ "backend", "tls = required\ntls_cert = /a", true },
	{ "backend", "tls = required\ntls_cert = /a /b /c", false },
	{ "backend", "tls = required\ntls_mode = implicit", true },
	{ "backend", "tls_ca = system", true },
	{ "backend", "identity = xclient\nreuse = on", true },
	{ "backend", "max_sessions = 65535", true },
	{ "backend", "max_sessions = 65536", false },
	{ "backend", "max_sessions = auto", true },
	{ "backend", "max_sessions = Auto", false },
	{ "backend", "max_sessions =", false },
	{ "backend", "identity = none", true },
	{ "backend", "identity = header", true },
	{ "backend", "identity = proxy-v1", true },
	{ "backend", "identity = proxy-v2", true },
	{ "backend", "identity = proxy-v3", false },
	{ "backend", "identity = proxy", false },
	{ "backend", "identity = xclient", true },
	{ "backend", "identity = transparent", true },
	{ "backend", "reuse = on", true },
	{ "backend", "reuse = yes", false },
	{ "backend", "max_sessions = 0", false },
	{ "backend", "weight = 1001", false },
	{ "backend", "source =", true },
	{ "backend", "source = 192.0.2.1", true },
	{ "backend", "source = 2001:db8::1", false }, /* to an IPv4 address */
	{ "backend", "source = 192.0.2.1:25", false },
	{ "backend", "source = eth0", false },
	{ "backend", "state = maint", true },
	{ "backend", "state = up", false },
	{ "backend", "busy_rule =", true },
	{ "backend", "busy_rule = MAIL 452 4.3.1 => busy", true },
	{ "backend", "busy_rule = rcpt 4xx thread, limit => busy", true },
	{ "backend", "busy_rule = MAIL 452", false },
	{ "backend", "busy_rule = MAIL 452 full => bussy", false },
};

static void each_value_of_a_named_section_is_taken_or_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		const struct value_case *c = &sizes[i];
		char text[512];

		(void)snprintf(
			text, sizeof(text),
			LEAST "[%s x]\n%s = 127.0.0.2:10025\n%s\n", c->section,
			c->section[0] == 'l' ? "listen" : "address", c->pair);
		print_message("  [%s] %s\n", c->section, c->pair);
		struct config *config = parse(text);

		assert_int_equal(config != NULL, c->good);
		assert_int_equal(report->count, c->good ? 0 : 1);
		config_free(&config);
	}
}

static const char all_kinds[] =
	"\xef\xbb\xbf[weir] ; a byte order mark, and a comment\r\n"
	"\thostname\t=  mx.example \r\n"
	"workers = 3\n log = /var/log/weir\nlog_level = err\n"
	"body_memory = 2G\nlog_format = json\ncontrol_mode = 0600\nuser = mail\n"
	"[listener in.1]\nlisten = 192.0.2.1:25 , [2001:db8::1]:587\n"
	"listen = 127.0.0.1:26\nsize = 25M\nearly_talkers = log\n"
	"greeting_delay = 1500ms\nbanner = hello there ; you\n"
	"slot = body\nbody_buffer = 1M\nbody_wait = 1500ms\n"
	"proxy_from = 192.0.2.9, 10.1.0.0/16\nproxy_from = 2001:db8:9::/48\n"
	"[listener in_2]\n"
	"tls = required\ntls_cert = /a.pem /a.key /a.ocsp\n"
	"tls_cert = /b.pem\ntls_client_cert = require\ntls_ca = system\n"
	"auth = tls\nbare_newline = bdat\n"
	"[tls]\nmin_version = 1.1\nmax_version = 1.2\nciphers = ALL:@SECLEVEL=0\n"
	"ciphersuites = TLS_AES_128_GCM_SHA256\ngroups = P-256\n"
	"ticket_lifetime = 1h\nhandshakes = 3\n"
	"[admission]\nmax_sessions = 7\nsession_rate = 120/h burst 40\n"
	"failed_logins = 6/h burst 3\n"
	"recipient_rate = 5/s\nipv6_source_prefix = 56\n"
	"deny = 10.0.0.0/8\ndeny = 192.0.2.0/24, 2001:db8::/32\n"
	"allow = 192.0.2.77\ntarpit = 5s\nstress_high = 0%\n"
	"[timeouts]\nsession = 1h\nhandshake = 9s\nbackend_quit = 0\n"
	"[health]\nprobe = off\nmail = on\nmax_ejected = 20%\n"
	"[backend a]\naddress = [2001:db8::2]:2525\nstate = drain\n"
	"source = 2001:db8::9\nweight = 7\n"
	"busy_rule = MAIL 452 4.3.1 => busy\n"
	"busy_rule = any 450 a, b => policy\n"
	"max_sessions = 12\nidentity = header\nreuse = on\n"
	"[backend b]\naddress = 192.0.2.3:25\ntls = verify\n"
	"tls_name = mx.example\ntls_mode = implicit\n"
	"tls_pin = " PIN_HEX "\ntls_pin = " PIN_BASE64 "\n"
	"tls_cert = /c.pem /c.key\nidentity = transparent\n"
	"[farm]\nrelay_guard = warn\nrelay_from = 10.0.0.0/8\n"
	"relay_from = 192.0.2.0/24\n\ntries = 9\nbusy = observe\nstart_sessions = 7\n"
	"retry_max = 30s\nreuse_max = 11\nreuse_idle = 2s\n"
	"reuse_share = 20%\n"
	"[room]\nsize = 200\nper_source = 3\nwait = 9s\nreserve = 7%\n"
	"high = 80%\nlow = 30%\nsaturated_after = 4s\n";

static void check_weir(const struct config *config)
{
	assert_string_equal(config->weir.hostname, "mx.example");
	assert_int_equal(config->weir.workers, 3);
	assert_int_equal(config->weir.log, LOGGER_FILE);
	assert_string_equal(config->weir.log_path, "/var/log/weir");
	assert_int_equal(config->weir.log_level, 3);
	assert_int_equal(config->weir.log_format, CONFIG_LOG_JSON);
	assert_int_equal(config->weir.control_mode, 0600);
	assert_string_equal(config->weir.user, "mail");
	assert_int_equal(config->weir.body_memory, UINT64_C(2) << 30);
}

static void check_listeners(const struct config *config)
{
	struct cidr_addr addr;

	assert_int_equal(config->listener_count, 2);

	const struct config_listener *listener = &config->listeners[0];

	assert_string_equal(listener->name, "in.1");
	assert_int_equal(listener->listen_count, 3);
	assert_int_equal(listener->listen[1].port, 587);
	assert_true(cidr_addr_parse("2001:db8::1", 11, &addr));
	assert_true(cidr_addr_equal(&listener->listen[1].addr, &addr));
	assert_int_equal(listener->listen[2].port, 26);
	assert_int_equal(listener->size, 25 << 20);
	assert_int_equal(listener->early_talkers, CONFIG_EARLY_LOG);
	assert_int_equal(listener->greeting_delay_ms, 1500);
	assert_string_equal(listener->banner, "hello there");
	assert_int_equal(listener->slot, CONFIG_SLOT_BODY);
	assert_int_equal(listener->body_buffer, 1 << 20);
	assert_int_equal(listener->body_wait_ms, 1500);
	assert_true(cidr_addr_parse("2001:db8:9::1", 13, &addr));
	assert_true(cidr_set_has(&listener->proxy_from, &addr));
	assert_false(cidr_set_has(&config->listeners[1].proxy_from, &addr));
	assert_true(cidr_addr_parse("10.1.2.3", 8, &addr));
	assert_true(cidr_set_has(&listener->proxy_from, &addr));
	assert_false(cidr_set_has(&config->admission.allow, &addr));
	assert_true(cidr_addr_parse("192.0.2.1", 9, &addr));
	assert_false(cidr_set_has(&listener->proxy_from, &addr));
	assert_int_equal(config->listeners[1].listen_count, 1);
	assert_int_equal(config->listeners[1].slot, CONFIG_SLOT_TRANSACTION);
	assert_int_equal(listener->tls, CONFIG_TLS_NONE);
	assert_int_equal(listener->cert_count, 0);
}

static void check_tls(const struct config *config)
{
	const struct config_listener *listener = &config->listeners[1];
	const struct config_backend *backend = &config->backends[1];
	const struct config_tls_rules *rules = &config->tls;

	assert_int_equal(listener->mode, CONFIG_MODE_SMTP);
	assert_int_equal(listener->tls, CONFIG_TLS_REQUIRED);
	assert_int_equal(listener->cert_count, 2);
	assert_string_equal(listener->certs[0].cert, "/a.pem");
	assert_string_equal(listener->certs[0].key, "/a.key");
	assert_string_equal(listener->certs[0].ocsp, "/a.ocsp");
	assert_string_equal(listener->certs[1].cert, "/b.pem");
	assert_string_equal(listener->certs[1].key, "");
	assert_int_equal(listener->ask, CONFIG_ASK_REQUIRE);
	assert_string_equal(listener->trust,
			    "/etc/ssl/certs/ca-certificates.crt");
	assert_int_equal(listener->auth, CONFIG_AUTH_TLS);
	assert_int_equal(listener->bare_newline, CONFIG_BARE_BDAT);
	assert_int_equal(rules->min, TLS_VERSION_1_1);
	assert_int_equal(rules->max, TLS_VERSION_1_2);
	assert_string_equal(rules->ciphers, "ALL:@SECLEVEL=0");
	assert_string_equal(rules->suites, "TLS_AES_128_GCM_SHA256");
	assert_string_equal(rules->groups, "P-256");
	assert_int_equal(rules->ticket_lifetime_ms, 3600000);
	assert_int_equal(rules->handshakes, 3);
	assert_int_equal(backend->tls, CONFIG_BACKEND_TLS_VERIFY);
	assert_true(backend->tls_implicit);
	assert_string_equal(backend->tls_name, "mx.example");
	assert_string_equal(backend->tls_ca,
			    "/etc/ssl/certs/ca-certificates.crt");
	assert_int_equal(backend->pin_count, 2);
	assert_int_equal(backend->pins[0].sha256[1], 0x11);
	assert_int_equal(backend->pins[0].sha256[31], 0xff);
	assert_memory_equal(&backend->pins[0], &backend->pins[1],
			    sizeof(backend->pins[0]));
	assert_string_equal(backend->cert.cert, "/c.pem");
	assert_string_equal(backend->cert.key, "/c.key");
	assert_int_equal(backend->identity, CONFIG_IDENTITY_TRANSPARENT);
	assert_int_equal(config->backends[0].tls, CONFIG_BACKEND_TLS_NONE);
}

static void check_admission(const struct config *config)
{
	struct cidr_addr addr;
	const struct config_admission *admission = &config->admission;
	const struct admission_rate_limit *rates = admission->limits.rates;

	assert_int_equal(admission->limits.max_sessions, 7);
	assert_int_equal(rates[ADMISSION_RATE_SESSION].count, 120);
	assert_int_equal(rates[ADMISSION_RATE_SESSION].period_ms, 3600000);
	assert_int_equal(rates[ADMISSION_RATE_SESSION].burst, 40);
	assert_int_equal(rates[ADMISSION_RATE_MESSAGE].count, 0);
	assert_int_equal(rates[ADMISSION_RATE_RECIPIENT].period_ms, 1000);
	assert_int_equal(rates[ADMISSION_RATE_LOGIN].count, 6);
	assert_int_equal(rates[ADMISSION_RATE_LOGIN].burst, 3);
	assert_int_equal(admission->limits.source_v6_bits, 56);
	/* A low mark without a high one would break admission's contract. */
	assert_int_equal(admission->limits.stress_low_percent, 0);
	assert_int_equal(admission->tarpit_ms, 5000);
	assert_ptr_equal(admission->limits.deny, &admission->deny);
	assert_true(cidr_addr_parse("192.0.2.77", 10, &addr));
	assert_true(cidr_set_has(admission->limits.deny, &addr));
	assert_true(cidr_set_has(admission->limits.allow, &addr));
	assert_true(cidr_addr_parse("192.0.3.77", 10, &addr));
	assert_false(cidr_set_has(admission->limits.deny, &addr));
}

static void check_others(const struct config *config)
{
	assert_int_equal(config->timeouts.session_ms, 3600000);
	assert_int_equal(config->timeouts.handshake_ms, 9000);
	assert_int_equal(config->timeouts.backend_quit_ms, 0);
	assert_false(config->health.probe);
	assert_true(config->health.mail);
	assert_int_equal(config->health.max_ejected_percent, 20);
	assert_string_equal(config->health.helo, "mx.example");
}

static void check_farm(const struct config *config)
{
	const struct config_farm *farm = &config->farm;
	struct cidr_addr addr;
	const struct config_room *room = &config->room;

	assert_int_equal(farm->tries, 9);
	assert_true(farm->observe);
	assert_int_equal(farm->start_sessions, 7);
	assert_int_equal(farm->retry_max_ms, 30000);
	assert_int_equal(farm->reuse_max, 11);
	assert_int_equal(farm->reuse_idle_ms, 2000);
	assert_int_equal(farm->reuse_percent, 20);
	assert_int_equal(farm->relay_guard, CONFIG_GUARD_WARN);
	assert_true(cidr_addr_parse("192.0.2.200", 11, &addr));
	assert_true(cidr_set_has(&farm->relay_from, &addr));
	assert_false(cidr_set_has(&config->admission.allow, &addr));
	assert_int_equal(room->size, 200);
	assert_int_equal(room->per_source, 3);
	assert_int_equal(room->wait_ms, 9000);
	assert_int_equal(room->reserve_percent, 7);
	assert_int_equal(room->high_percent, 80);
	assert_int_equal(room->low_percent, 30);
	assert_int_equal(room->saturated_after_ms, 4000);
}

static void check_backends(const struct config *config)
{
	assert_int_equal(config->backend_count, 2);

	const struct config_backend *backend = &config->backends[0];

	assert_string_equal(backend->name, "a");
	assert_int_equal(backend->address.port, 2525);
	assert_int_equal(backend->state, CONFIG_BACKEND_DRAIN);
	assert_true(backend->source_set);
	assert_int_equal(backend->weight, 7);
	assert_int_equal(backend->busy_rule_count, 2);
	assert_int_equal(backend->busy_rules[0].class, BUSY_BUSY);
	assert_int_equal(backend->busy_rules[1].class, BUSY_POLICY);
	assert_string_equal(backend->busy_rules[1].text, "a, b");
	assert_false(config->backends[1].source_set);
	assert_int_equal(backend->max_sessions, 12);
	assert_int_equal(backend->identity, CONFIG_IDENTITY_HEADER);
	assert_true(backend->reuse);
	assert_int_equal(config->backends[1].max_sessions, LIMIT_MAX);
	assert_false(config->backends[1].reuse);
}

static void values_land_in_their_fields(void **state)
{
	(void)state;
	struct config *config = parse_good(all_kinds);

	check_weir(config);
	check_listeners(config);
	check_tls(config);
	check_admission(config);
	check_others(config);
	check_farm(config);
	check_backends(config);
	config_free(&config);
	assert_null(config);
}

static void without_a_name_the_system_s_is_taken(void **state)
{
	(void)state;
	struct config *config = parse_good(LEAST);
	char name[CONFIG_HOST_MAX] = "";

	assert_int_equal(gethostname(name, sizeof(name) - 1), 0);
	assert_string_equal(config->weir.hostname, name);
	assert_string_equal(config->health.helo, name);
	config_free(&config);
}

static void a_line_of_197_octets_is_taken_and_one_of_198_named(void **state)
{
	(void)state;
	char text[512];
	char rest[200];

	memset(rest, ' ', sizeof(rest));
	for (size_t len = 197; len <= 198; len++) {
		size_t pad = len - strlen("tries = 2");

		(void)snprintf(text, sizeof(text),
			       LEAST "[farm]\ntries =%.*s 2\nbudget = x\n",
			       (int)pad, rest);
		check_errors(text,
			     len == 197
				     ? "f:6: budget = \"x\": need a duration "
				       "in ms, s, m or h, from 100ms to 10m "
				       "(default 20s)\n"
				     : "f:5: longer than 197 octets: give a "
				       "list in several lines\n"
				       "f:6: budget = \"x\": need a duration "
				       "in ms, s, m or h, from 100ms to 10m "
				       "(default 20s)\n");
	}
	/* A comment may be as long as it likes. */
	(void)snprintf(text, sizeof(text), LEAST "#%.200s\n;%.200s\n", rest,
		       rest);
	check_errors(text, "");
}

static void a_nul_in_a_line_is_named(void **state)
{
	(void)state;
	static const char text[] = LEAST "[farm]\ntries = 2\0 and more\n";
	char *got = errors_of(text, sizeof(text) - 1);

	assert_string_equal(got, "f:5: has a control character (octet 0x00)\n");
	free(got);
}

static void more_errors_than_are_kept_are_counted(void **state)
{
	(void)state;
	static const char line[] = "tries\n";
	char text[sizeof(LEAST) + 100 * (sizeof(line) - 1)] = LEAST;

	for (size_t i = 0; i < 100; i++)
		memcpy(text + sizeof(LEAST) - 1 + i * (sizeof(line) - 1), line,
		       sizeof(line));
	assert_null(parse(text));
	assert_int_equal(report->count, CONFIG_ERRORS_MAX);
	assert_int_equal(report->omitted, 100 - CONFIG_ERRORS_MAX);
	assert_int_equal(report->errors[0].line, LEAST_LINES + 1);
}

/* Splitting cannot matter: every prefix of a file is judged, none breaks. */
static void every_prefix_of_the_example_is_judged(void **state)
{
	(void)state;
	char *text = read_file("etc/weir.ini");

	for (size_t len = 0; len <= strlen(text); len += 7) {
		char *errors = errors_of(text, len);

		free(errors);
	}
	free(text);
}

static void networks_are_read_from_files(void **state)
{
	(void)state;
	char good[32], bad[32], text[512], errors[512];
	struct cidr_addr addr;

	write_file(good, "# ours\n10.0.0.0/8\n\n  192.0.2.1  # one host\r\n"
			 "2001:db8::/32");
	write_file(bad, "10.0.0.0/8\nnonsense\n\n10.0.0.0/33\n");
	(void)snprintf(text, sizeof(text),
		       LEAST "[admission]\ndeny_file = %s\n", good);
	struct config *config = parse_good(text);

	assert_true(cidr_addr_parse("10.9.8.7", 8, &addr));
	assert_true(cidr_set_has(&config->admission.deny, &addr));
	assert_false(cidr_set_has(&config->admission.allow, &addr));
	assert_true(cidr_addr_parse("192.0.2.1", 9, &addr));
	assert_true(cidr_set_has(&config->admission.deny, &addr));
	assert_true(cidr_addr_parse("2001:db8::9", 11, &addr));
	assert_true(cidr_set_has(&config->admission.deny, &addr));
	config_free(&config);

	/* Its mistakes stand where it is named, among those of the file. */
	(void)snprintf(text, sizeof(text),
		       LEAST "[admission]\nallow_file = %s\nmax_sessions = 0\n",
		       bad);
	(void)snprintf(errors, sizeof(errors),
		       "%s:2: \"nonsense\": not an IPv4 or IPv6 address, or a "
		       "network such as 192.0.2.0/24 or 2001:db8::/32\n"
		       "%s:4: \"10.0.0.0/33\": the prefix length of an IPv4 "
		       "network is a whole number from 0 to 32\n"
		       "f:6: max_sessions = \"0\": need a whole number from 1 "
		       "to 16777216 (default 5000)\n",
		       bad, bad);
	check_errors(text, errors);
	assert_int_equal(unlink(good), 0);
	assert_int_equal(unlink(bad), 0);
}

static void a_file_is_loaded_by_its_path(void **state)
{
	(void)state;
	char path[32], error[128];

	write_file(path, LEAST "[farm]\ntries = 0\n");
	assert_null(config_load(path, report));
	assert_int_equal(report->count, 1);
	(void)snprintf(error, sizeof(error),
		       "%s:5: tries = \"0\": need a whole number from 1 to 10 "
		       "(default 3)",
		       path);
	assert_string_equal(report->errors[0].text, error);
	assert_int_equal(unlink(path), 0);

	assert_null(config_load(path, report));
	assert_int_equal(report->count, 1);
	(void)snprintf(error, sizeof(error),
		       "%s: cannot be read: No such file or directory", path);
	assert_string_equal(report->errors[0].text, error);
}

/* --- the table, the example and the manual page --- */

/* What differs between two runs of one program: pointers. */
static void forget_pointers(struct config *config)
{
	free(config->admission.allow.ranges);
	free(config->admission.deny.ranges);
	free(config->farm.relay_from.ranges);
	config->farm.relay_from.ranges = NULL;
	config->admission.allow.ranges = NULL;
	config->admission.deny.ranges = NULL;
	config->admission.limits.allow = NULL;
	config->admission.limits.deny = NULL;
	for (unsigned i = 0; i < config->listener_count; i++) {
		free(config->listeners[i].proxy_from.ranges);
		config->listeners[i].proxy_from.ranges = NULL;
	}
}

static void the_example_holds_exactly_the_defaults(void **state)
{
	(void)state;
	char *text = read_file("etc/weir.ini");
	struct config *standard = parse_good("[listener smtp]\n[backend mta1]\n"
					     "address = 127.0.0.1:10025\n");
	struct config *as_it_is = parse_good(text);

	/* The other way: each default as if the operator had written it. */
	for (char *line = text; *line != '\0'; line++) {
		if (*line == ';' && (line == text || line[-1] == '\n'))
			*line = ' ';
	}
	struct config *spelled_out = parse_good(text);

	forget_pointers(standard);
	forget_pointers(as_it_is);
	forget_pointers(spelled_out);
	assert_memory_equal(as_it_is, standard, sizeof(*standard));
	assert_memory_equal(spelled_out, standard, sizeof(*standard));
	config_free(&standard);
	config_free(&as_it_is);
	config_free(&spelled_out);
	free(text);
}

/* The line of the example for a key: ";key = value" or "key =". */
static void example_line(const struct config_key_info *key, char *buf,
			 size_t cap)
{
	bool empty = key->standard[0] == '\0';

	(void)snprintf(buf, cap, "\n%s%s =%s%s%s", key->required ? "" : ";",
		       key->name, empty ? "" : " ", key->standard,
		       key->required ? " " : "\n");
}

static void the_example_has_each_key_with_its_default(void **state)
{
	(void)state;
	char *text = read_file("etc/weir.ini");
	const char *at = text;
	char line[256];
	size_t lines = 0;

	/* In the order of the table, within the right section. */
	for (size_t i = 0; i < config_key_count(); i++) {
		struct config_key_info key = config_key_at(i);

		if (i == 0 ||
		    strcmp(key.section, config_key_at(i - 1).section) != 0) {
			(void)snprintf(line, sizeof(line), "\n[%s",
				       key.section);
			at = strstr(at, line);
			assert_non_null(at);
		}
		example_line(&key, line, sizeof(line));
		print_message("  [%s] %s\n", key.section, key.name);
		at = strstr(at, line);
		assert_non_null(at);
		at++;
	}
	/* And nothing else. */
	for (at = text; (at = strstr(at, "\n;")) != NULL; at++)
		lines++;
	assert_int_equal(lines, config_key_count() - 1);
	free(text);
}

/* mdoc: one .It for each key, in the order of the table. */
static void the_manual_has_each_key_with_its_default(void **state)
{
	(void)state;
	char *text = read_file("proxy/weir.ini.5");
	const char *at = text;
	char line[256];
	size_t items = 0;

	for (size_t i = 0; i < config_key_count(); i++) {
		struct config_key_info key = config_key_at(i);

		if (i == 0 ||
		    strcmp(key.section, config_key_at(i - 1).section) != 0) {
			(void)snprintf(line, sizeof(line), "\n.Ss [%s",
				       key.section);
			at = strstr(at, line);
			assert_non_null(at);
		}
		(void)snprintf(line, sizeof(line), "\n.It Ic %s = %s\n",
			       key.name,
			       key.required              ? "(required)"
			       : key.standard[0] == '\0' ? "(empty)"
							 : key.standard);
		print_message("  [%s] %s\n", key.section, key.name);
		at = strstr(at, line);
		assert_non_null(at);
		at++;
	}
	for (at = text; (at = strstr(at, "\n.It Ic ")) != NULL; at++)
		items++;
	assert_int_equal(items, config_key_count());
	free(text);
}

static void the_manual_has_each_class_of_a_busy_rule(void **state)
{
	(void)state;
	char *text = read_file("proxy/weir.ini.5");
	char line[64];

	for (unsigned i = 0; i < BUSY_CLASSES; i++) {
		(void)snprintf(line, sizeof(line), "\n.It Cm %s\n",
			       busy_class_name((enum busy_class)i));
		assert_non_null(strstr(text, line));
	}
	free(text);
}

static void each_key_says_what_it_is_and_what_it_takes(void **state)
{
	(void)state;
	char allowed[CONFIG_ERROR_MAX];

	for (size_t i = 0; i < config_key_count(); i++) {
		struct config_key_info key = config_key_at(i);

		assert_in_range(strlen(key.help), 5, 70);
		assert_in_range(strlen(key.name), 1, 30);
		size_t len = config_key_allowed(i, allowed, sizeof(allowed));

		assert_int_equal(strlen(allowed), len);
		assert_in_range(len, 5, 120);
	}
}

/* --- one backend at run time --- */

struct set_case {
	const char *pair;
	const char *error; /* NULL: taken */
};

static const struct set_case set_cases[] = {
	{ "max_sessions=20", NULL },
	{ "max_sessions=auto", NULL },
	{ "identity=header", NULL },
	{ "reuse=on", NULL },
	{ "reuse=maybe", "reuse = \"maybe\": need off or on (default off)" },
	{ "max_sessions = 21", NULL },
	{ "source=192.0.2.1", NULL },
	{ "source=", NULL },
	{ "tls_pin=", NULL },
	{ "tls_pin=x",
	  "tls_pin = \"x\": need a SHA-256 of 64 hex digits or 44 octets of "
	  "base64 (default empty)" },
	{ "tls_cert=/a /b", NULL },
	{ "tls_cert=/a /b /c", "tls_cert = \"/a /b /c\": need 1 to 2 absolute "
			       "paths: CERT [KEY] (default empty)" },
	{ "tls_cert=", NULL },
	{ "tls_name=mx.example", NULL },
	{ "tls_name=", NULL },
	{ "state=maint", NULL },
	{ "busy_rule=MAIL 452 4.3.1 => busy", NULL },
	{ "weight=0",
	  "weight = \"0\": need a whole number from 1 to 1000 (default 100)" },
	{ "waight=1",
	  "unknown key \"waight\" in [backend]: did you mean \"weight\"?" },
	{ "wait=1", "unknown key \"wait\" in [backend]: it belongs in "
		    "[room]" },
	{ "tries=1", "unknown key \"tries\" in [backend]: it belongs in "
		     "[farm]" },
	{ "weight", "\"weight\": need KEY=VALUE" },
	{ "", "\"\": need KEY=VALUE" },
	{ "address=mx:25",
	  "address = \"mx:25\": need numeric ADDRESS:PORT or [IPV6]:PORT (host "
	  "names are for a later release)" },
	{ "address=",
	  "address = \"\": need numeric ADDRESS:PORT or [IPV6]:PORT (host "
	  "names are for a later release)" },
	{ "state=\x1b[2J",
	  "state = \"\\x1b[2J\": need ready, drain or maint (default ready)" },
};

static void a_backend_is_made_by_pairs(void **state)
{
	(void)state;
	static struct config_backend backend, before;
	char error[CONFIG_ERROR_MAX];

	assert_true(config_backend_init(&backend, "mta9xx", 4, error,
					sizeof(error)));
	assert_string_equal(backend.name, "mta9");
	assert_int_equal(backend.max_sessions, LIMIT_MAX);
	assert_int_equal(backend.weight, 100);
	assert_int_equal(backend.state, CONFIG_BACKEND_READY);
	assert_false(config_backend_check(&backend, error, sizeof(error)));
	assert_string_equal(error, "no address=: need numeric ADDRESS:PORT or "
				   "[IPV6]:PORT (host names are for a later "
				   "release)");
	for (size_t i = 0; i < COUNT(set_cases); i++) {
		const struct set_case *c = &set_cases[i];
		size_t len = strlen(c->pair);

		/* A private copy without NUL. */
		char *pair = malloc(len > 0 ? len : 1);

		assert_non_null(pair);
		memcpy(pair, c->pair, len);
		memcpy(&before, &backend, sizeof(before));
		print_message("  %s\n", c->error == NULL ? c->pair : c->error);
		bool taken = config_backend_set(&backend, pair, len, error,
						sizeof(error));

		free(pair);
		assert_int_equal(taken, c->error == NULL);
		if (taken)
			continue;
		assert_string_equal(error, c->error);
		assert_memory_equal(&backend, &before, sizeof(before));
	}
	assert_int_equal(backend.max_sessions, 21);
	assert_int_equal(backend.identity, CONFIG_IDENTITY_HEADER);
	assert_true(backend.reuse);
	assert_false(backend.source_set);
	assert_int_equal(backend.state, CONFIG_BACKEND_MAINT);
	assert_int_equal(backend.busy_rule_count, 1);
	assert_true(config_backend_set(&backend, "address=[::1]:25", 16, error,
				       sizeof(error)));
	assert_true(config_backend_check(&backend, error, sizeof(error)));
	assert_true(config_backend_set(&backend, "identity=proxy-v2", 17, error,
				       sizeof(error)));
	assert_false(config_backend_check(&backend, error, sizeof(error)));
	assert_string_equal(error, "reuse = on does not go with identity = "
				   "proxy-v1, proxy-v2 or transparent: such a "
				   "connection is one client's");
	assert_true(config_backend_set(&backend, "reuse=off", 9, error,
				       sizeof(error)));
	assert_true(config_backend_check(&backend, error, sizeof(error)));
	assert_true(config_backend_set(&backend, "source=::2", 10, error,
				       sizeof(error)));
	assert_true(config_backend_check(&backend, error, sizeof(error)));
	assert_true(config_backend_set(&backend, "source=192.0.2.1", 16, error,
				       sizeof(error)));
	assert_false(config_backend_check(&backend, error, sizeof(error)));
	assert_string_equal(error, "source and address must both be IPv4, or "
				   "both IPv6");
}

static void a_backend_has_at_most_16_rules(void **state)
{
	(void)state;
	static const char rule[] = "busy_rule=any 450 => busy";
	static struct config_backend backend;
	char error[CONFIG_ERROR_MAX];

	assert_true(
		config_backend_init(&backend, "b", 1, error, sizeof(error)));
	for (unsigned i = 0; i < CONFIG_BUSY_RULES_MAX; i++)
		assert_true(config_backend_set(&backend, rule, strlen(rule),
					       error, sizeof(error)));
	assert_false(config_backend_set(&backend, rule, strlen(rule), error,
					sizeof(error)));
	assert_string_equal(error, "busy_rule = \"any 450 => busy\": a backend "
				   "has at most 16 rules");
}

static void a_backend_s_name_is_checked(void **state)
{
	(void)state;
	static const char *const bad[] = { "", "a b", "a/b", "a=b", "\n" };
	static struct config_backend backend;
	char error[CONFIG_ERROR_MAX];

	for (size_t i = 0; i < COUNT(bad); i++) {
		assert_false(config_backend_init(&backend, bad[i],
						 strlen(bad[i]), error,
						 sizeof(error)));
		assert_non_null(strstr(error, "need 1 to 63 of "));
	}
}

/* --- loops --- */

struct loop_case {
	const char *about;
	const char *listen;
	const char *address;
	bool loop;
	bool loop_if_own; /* the same, if the address is this host's */
};

static const struct loop_case loops[] = {
	{ "the very address", "192.0.2.1:25", "192.0.2.1:25", true, true },
	{ "another port", "192.0.2.1:25", "192.0.2.1:26", false, false },
	{ "another address", "192.0.2.1:25", "192.0.2.2:25", false, false },
	{ "one of several", "192.0.2.1:25, [2001:db8::1]:25",
	  "[2001:db8::1]:25", true, true },
	{ "any address has those of the loopback", "0.0.0.0:25", "127.0.0.1:25",
	  true, true },
	{ "all of them", "0.0.0.0:25", "127.9.9.9:25", true, true },
	{ "and the host's others", "0.0.0.0:25", "192.0.2.1:25", false, true },
	{ "one loopback address is not another", "127.0.0.1:25", "127.0.0.2:25",
	  false, false },
	{ "the same of IPv6", "[::]:25", "[::1]:25", true, true },
	{ "and the host's others", "[::]:25", "[2001:db8::1]:25", false, true },
	{ "any IPv6 address is none of IPv4", "[::]:25", "127.0.0.1:25", false,
	  false },
	{ "nor the other way round", "0.0.0.0:25", "[::1]:25", false, false },
	{ "a connection to any address goes to the loopback", "127.0.0.1:25",
	  "0.0.0.0:25", true, true },
	{ "in IPv6, too", "[::1]:25", "[::]:25", true, true },
	{ "but not to another", "192.0.2.1:25", "0.0.0.0:25", false, false },
	{ "any to any", "0.0.0.0:25", "0.0.0.0:25", true, true },
};

static void a_backend_is_not_weir_itself(void **state)
{
	(void)state;
	static const char *const errors[] = {
		"", "f:4: address of [backend b] is where [listener l] "
		    "listens: mail would go in circles\n"
	};
	char text[256];

	for (size_t i = 0; i < COUNT(loops); i++) {
		const struct loop_case *c = &loops[i];

		print_message("  %s: %s, %s\n", c->about, c->listen,
			      c->address);
		(void)snprintf(text, sizeof(text),
			       "[listener l]\nlisten = %s\n[backend b]\n"
			       "address = %s\n",
			       c->listen, c->address);
		/* What is said of a line is said of the right one. */
		if (c->loop) {
			(void)snprintf(text, sizeof(text),
				       "[backend b]\nweight = 1\n\n"
				       "address = %s\n[listener l]\n"
				       "listen = %s\n",
				       c->address, c->listen);
		}
		check_errors(text, errors[c->loop]);
	}
}

static void what_is_listened_at_is_found(void **state)
{
	(void)state;
	char text[256];

	for (size_t i = 0; i < COUNT(loops); i++) {
		const struct loop_case *c = &loops[i];
		static struct config_backend backend;
		char pair[64], error[CONFIG_ERROR_MAX];
		struct config *config;

		print_message("  %s: %s, %s\n", c->about, c->listen,
			      c->address);
		(void)snprintf(text, sizeof(text),
			       "[listener k]\nlisten = 198.51.100.1:1\n"
			       "[listener l]\nlisten = %s\n"
			       "[backend b]\naddress = 198.51.100.2:1\n",
			       c->listen);
		(void)snprintf(pair, sizeof(pair), "address=%s", c->address);
		config = parse_good(text);
		assert_true(config_backend_init(&backend, "b", 1, error,
						sizeof(error)));
		assert_true(config_backend_set(&backend, pair, strlen(pair),
					       error, sizeof(error)));
		assert_ptr_equal(
			config_find_loop(config, &backend.address, false),
			c->loop ? &config->listeners[1] : NULL);
		assert_ptr_equal(
			config_find_loop(config, &backend.address, true),
			c->loop_if_own ? &config->listeners[1] : NULL);
		config_free(&config);
	}
}

/* --- durations --- */

struct duration_case {
	const char *text;
	int64_t ms;       /* -1: refused */
	const char *back; /* its shortest form */
};

static const struct duration_case durations[] = {
	{ "0", 0, "0" },
	{ "0m", 0, "0" },
	{ "1ms", 1, "1ms" },
	{ "1500ms", 1500, "1500ms" },
	{ "90s", 90000, "90s" },
	{ "60s", 60000, "1m" },
	{ "120m", 7200000, "2h" },
	{ "00010m", 600000, "10m" },
	{ "2562047788015h", INT64_C(9223372036854000000), "2562047788015h" },
	{ "2562047788016h", -1, NULL },
	{ "5124095576031h", -1, NULL },
	{ "99999999999999999999ms", -1, NULL },
	{ "10", -1, NULL },
	{ "", -1, NULL },
	{ "m", -1, NULL },
	{ "10 m", -1, NULL },
	{ " 10m", -1, NULL },
	{ "-10m", -1, NULL },
	{ "10mm", -1, NULL },
	{ "1h30m", -1, NULL },
};

static void durations_are_read_and_written(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(durations); i++) {
		const struct duration_case *c = &durations[i];
		char back[CONFIG_DURATION_TEXT_MAX];
		int64_t ms = -2;

		print_message("  \"%s\"\n", c->text);
		assert_int_equal(
			config_duration_parse(c->text, strlen(c->text), &ms),
			c->ms >= 0);
		assert_int_equal(ms, c->ms >= 0 ? c->ms : -2);
		if (c->ms < 0)
			continue;
		size_t len = config_duration_format(ms, back, sizeof(back));

		assert_string_equal(back, c->back);
		assert_int_equal(len, strlen(c->back));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_files_are_refused_with_every_mistake),
		cmocka_unit_test(bad_sections_are_refused),
		cmocka_unit_test(bad_keys_are_refused),
		cmocka_unit_test(keys_that_contradict_each_other_are_refused),
		cmocka_unit_test(each_value_is_taken_or_refused),
		cmocka_unit_test(
			each_value_of_a_named_section_is_taken_or_refused),
		cmocka_unit_test(values_land_in_their_fields),
		cmocka_unit_test(without_a_name_the_system_s_is_taken),
		cmocka_unit_test(
			a_line_of_197_octets_is_taken_and_one_of_198_named),
		cmocka_unit_test(a_nul_in_a_line_is_named),
		cmocka_unit_test(more_errors_than_are_kept_are_counted),
		cmocka_unit_test(every_prefix_of_the_example_is_judged),
		cmocka_unit_test(networks_are_read_from_files),
		cmocka_unit_test(a_file_is_loaded_by_its_path),
		cmocka_unit_test(the_example_holds_exactly_the_defaults),
		cmocka_unit_test(the_example_has_each_key_with_its_default),
		cmocka_unit_test(the_manual_has_each_key_with_its_default),
		cmocka_unit_test(the_manual_has_each_class_of_a_busy_rule),
		cmocka_unit_test(each_key_says_what_it_is_and_what_it_takes),
		cmocka_unit_test(a_backend_is_made_by_pairs),
		cmocka_unit_test(a_backend_has_at_most_16_rules),
		cmocka_unit_test(a_backend_s_name_is_checked),
		cmocka_unit_test(a_backend_is_not_weir_itself),
		cmocka_unit_test(what_is_listened_at_is_found),
		cmocka_unit_test(durations_are_read_and_written),
	};

	return cmocka_run_group_tests_name("config", tests, setup, teardown);
}
