# weir: one Makefile, no recursion, no configure.  Debian 12: gcc 12 or clang 14.
#
#   make run              install packages, build, start a farm and send mail
#   make check            install packages, build, every test that CI runs
#
#   make                  hardened release build in build/
#   make install          PREFIX (/usr/local), SYSCONFDIR (/etc), DESTDIR
#   make unit             unit tests;  MODE=asan make unit: with sanitizers
#   make sim SEEDS=1..200 the deterministic simulation
#   make e2e ONLY=word    real servers, real clients, real sockets
#   make fuzz SECONDS=60  every libFuzzer target (clang)
#   make bench            against HAProxy and nginx, in one run
#   make soak             hours of mail, kills and restarts (HOURS=1)
#   make lint             all analyzers;  make purity headers format-check
#
# Objects of different modes and compilers never mix: build/$(CC)-$(MODE).

ifeq ($(origin CC),default)
CC     := gcc
endif
MODE   ?= release
B      ?= build/$(CC)-$(MODE)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)
VERSION := 0.1

STD    := -std=gnu17 -D_GNU_SOURCE -DWEIR_VERSION='"$(VERSION)"' -DWEIR_SYSCONFDIR='"$(SYSCONFDIR)"' -I.
WARN   := -Wall -Wextra -Wpedantic -Werror \
          -Wconversion -Wsign-conversion -Wdouble-promotion \
          -Wshadow -Wundef -Wredundant-decls -Wnested-externs \
          -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition \
          -Wpointer-arith -Wcast-qual -Wwrite-strings -Wnull-dereference \
          -Wformat=2 -Wswitch-enum -Wimplicit-fallthrough -Wvla -Walloca \
          -Wdate-time -Wframe-larger-than=4096
WARN_gcc   := -Warith-conversion -Wcast-align=strict -Wlogical-op \
              -Wduplicated-cond -Wduplicated-branches -Wformat-signedness \
              -Wformat-overflow=2 -Wformat-truncation=2 -Wjump-misses-init \
              -Wtrampolines -Wbidi-chars=any
WARN_clang := -Wcast-align -Wcomma -Wassign-enum -Wbad-function-cast \
              -Wconditional-uninitialized -Wmissing-variable-declarations \
              -Wunreachable-code-aggressive

HARDEN := -D_FORTIFY_SOURCE=3 -fstack-protector-strong \
          -fstack-clash-protection -fcf-protection=full -fPIE
HARDEN_gcc   := -ftrivial-auto-var-init=zero
HARDEN_clang := -ftrivial-auto-var-init=pattern
LD_HARDEN := -pie -Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code,--as-needed

SAN    := -fno-omit-frame-pointer -fno-sanitize-recover=all
OPT_release := -O2 -g $(HARDEN) $(HARDEN_$(CC))
OPT_debug   := -Og -g3
OPT_asan    := -O1 -g $(SAN) -fsanitize=address,undefined
OPT_tsan    := -O1 -g $(SAN) -fsanitize=thread
OPT_fuzz    := -O1 -g $(SAN) -fsanitize=fuzzer-no-link,address,undefined,implicit-conversion,local-bounds

ALL_CFLAGS  = $(STD) $(WARN) $(WARN_$(CC)) -fno-common -fno-strict-aliasing \
              -pthread $(OPT_$(MODE)) -MMD -MP $(CFLAGS)
ALL_LDFLAGS = -pthread $(filter -fsanitize=%,$(OPT_$(MODE):fuzzer-no-link,%=%)) \
              $(if $(filter release,$(MODE)),$(LD_HARDEN)) $(LDFLAGS)

# Decisions: no kernel, no clock, no allocation (checked by `make purity`).
PURE := $(addprefix proxy/,smtp.c session.c session_body.c session_command.c \
          session_hold.c session_reply.c session_auth.c session_tcp.c \
          upstream.c xclient.c \
          admission.c cidr.c timer.c stats.c control.c report.c log.c \
          hold.c trace.c proxyproto.c tcp.c) \
        $(addprefix balancer/,backend.c balancer.c busy.c limit.c room.c) \
        $(addprefix health/,health.c probe.c)
# What performs, on top of io.h: the product and the simulation share it.
CORE := $(PURE) $(wildcard proxy/worker*.c) $(wildcard proxy/config*.c) \
        $(wildcard proxy/tls*.c)
RING := $(addprefix proxy/ring,.c _event.c _pool.c _probe.c _slot.c _socket.c _splice.c)
WEIR := $(CORE) $(RING) $(addprefix proxy/,inspect.c logger.c main.c privilege.c)

# The two tools share nothing with the above: they bear witness against it.
TOOLS := $(addprefix tests/,heap.c quantity.c secure.c stretch.c tally.c)
SINK  := $(wildcard tests/sink*.c) tests/cert.c $(TOOLS)
LOAD  := $(wildcard tests/load*.c) tests/histogram.c $(TOOLS)

obj = $(patsubst %.c,$(B)/%.o,$(1))

all: $(B)/weir $(B)/weirctl $(B)/weir-load $(B)/weir-sink

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(B)/weir: $(call obj,$(WEIR))
	$(CC) $(ALL_LDFLAGS) -o $@ $^ -luring -linih -lssl -lcrypto
$(B)/weirctl: $(call obj,$(addprefix proxy/,ctl.c ctl_status.c advice.c))
	$(CC) $(ALL_LDFLAGS) -o $@ $^
$(B)/weir-load: $(call obj,$(LOAD))
	$(CC) $(ALL_LDFLAGS) -o $@ $^ -lssl -lcrypto -lm
$(B)/weir-sink: $(call obj,$(SINK))
	$(CC) $(ALL_LDFLAGS) -o $@ $^ -lssl -lcrypto

# --- tests: tests/unit/test_NAME.c is linked with what NEEDS_NAME lists ---

NEEDS_smtp      := proxy/smtp.c
NEEDS_tcp       := proxy/tcp.c proxy/smtp.c balancer/busy.c
NEEDS_busy      := balancer/busy.c proxy/smtp.c
NEEDS_admission := proxy/admission.c proxy/cidr.c
NEEDS_cidr      := proxy/cidr.c
NEEDS_hold      := proxy/hold.c
NEEDS_room      := balancer/room.c
NEEDS_trace     := proxy/trace.c
NEEDS_proxyproto := proxy/proxyproto.c proxy/cidr.c
NEEDS_advice    := proxy/advice.c
NEEDS_tls       := $(filter-out proxy/tls_store.c,$(wildcard proxy/tls*.c)) \
                   tests/unit/tls_certs.c tests/unit/tls_talk.c
NEEDS_tls_context := $(NEEDS_tls)
NEEDS_tls_store := proxy/tls_store.c proxy/cidr.c $(NEEDS_tls)
NEEDS_config    := $(wildcard proxy/config*.c) proxy/cidr.c proxy/smtp.c balancer/busy.c
NEEDS_inspect   := proxy/inspect.c proxy/privilege.c $(wildcard proxy/tls*.c) \
                   $(NEEDS_config)
NEEDS_ring      := $(RING) proxy/logger.c
NEEDS_logger    := proxy/logger.c
NEEDS_histogram := tests/histogram.c
NEEDS_quantity  := tests/quantity.c
NEEDS_stretch   := tests/stretch.c
NEEDS_load_limit := tests/load_limit.c
NEEDS_load_login := tests/load_login.c
NEEDS_cert      := tests/cert.c
NEEDS_session   := $(addprefix proxy/,session.c session_body.c \
                     session_auth.c session_command.c session_hold.c \
                     session_tcp.c \
                     session_reply.c smtp.c \
                     admission.c cidr.c stats.c) balancer/busy.c \
                   tests/unit/session_model.c
NEEDS_session_tcp := $(NEEDS_session)
NEEDS_session_hold := $(NEEDS_session)
NEEDS_session_tls := $(NEEDS_session)
NEEDS_session_auth := $(NEEDS_session)
NEEDS_session_bdat := $(NEEDS_session)
NEEDS_upstream  := proxy/upstream.c proxy/xclient.c proxy/cidr.c proxy/smtp.c balancer/busy.c
NEEDS_xclient   := proxy/xclient.c proxy/cidr.c proxy/smtp.c
NEEDS_sim_io    := tests/sim/sim_io.c tests/sim/sim_net.c
NEEDS_sim_tls   := $(addprefix tests/sim/,sim_auth.c sim_check.c sim_io.c \
                     sim_net.c sim_talk.c sim_tls.c sim_wire.c) \
                   tests/unit/tls_certs.c
NEEDS_health    := health/health.c
NEEDS_probe     := health/probe.c health/health.c proxy/smtp.c balancer/busy.c \
                   proxy/xclient.c proxy/cidr.c
NEEDS_probe_way := $(NEEDS_probe)
NEEDS_limit     := balancer/limit.c
NEEDS_limit_model := balancer/limit.c
NEEDS_backend   := balancer/backend.c balancer/limit.c health/health.c
NEEDS_balancer  := $(NEEDS_backend) balancer/balancer.c health/probe.c \
                   balancer/busy.c proxy/smtp.c proxy/xclient.c proxy/cidr.c
NEEDS_balancer_slots := $(NEEDS_balancer)
NEEDS_balancer_guard := $(NEEDS_balancer)
UNITS := $(patsubst tests/unit/test_%.c,%,$(wildcard tests/unit/test_*.c))
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
SIM   := $(wildcard tests/sim/*.c) tests/unit/tls_certs.c
# It has no files: tests/sim/sim_tls_load.c.
SIM_CORE := $(filter-out proxy/tls_load.c,$(CORE))
SIM_WRAPS := session_step balancer_release io_buf_put bind_park room_next \
             io_wake io_wake_from limit_greeted malloc calloc realloc \
             cidr_set_has server_detach balancer_reserve
SIM_LDFLAGS := $(SIM_WRAPS:%=-Wl,--wrap=%)
LIBS_ring := -luring
LIBS_config := -linih
LIBS_inspect := -linih -lssl -lcrypto
LIBS_histogram := -lm
LIBS_limit_model := -lm
LIBS_quantity := -lm
LIBS_load_login := -lcrypto
LIBS_cert := -lcrypto
LIBS_tls := -lssl -lcrypto
LIBS_tls_context := $(LIBS_tls)
LIBS_tls_store := $(LIBS_tls)
LIBS_sim_tls := $(LIBS_tls)

.SECONDEXPANSION:
$(UNITS:%=$(B)/test_%): $(B)/test_%: $(B)/tests/unit/test_%.o \
		$$(call obj,$$(or $$(NEEDS_$$*),$(PURE)))
	$(CC) $(ALL_LDFLAGS) -o $@ $^ -lcmocka $(LIBS_$*)

unit: $(UNITS:%=$(B)/test_%)
	@set -e; for t in $^; do ./$$t; done

$(B)/weir-sim: $(call obj,$(SIM) $(SIM_CORE))
	$(CC) $(ALL_LDFLAGS) $(SIM_LDFLAGS) -o $@ $^ -linih -lm -lssl -lcrypto
SEEDS ?= 1..200
sim: $(B)/weir-sim
	$(B)/weir-sim --seeds $(SEEDS)

e2e: all
	python3 tests/e2e/run.py $(ONLY:%=-k %)

# A fuzzer is linked with all that is pure, or with FUZZ_NEEDS_NAME; those of
# session are a whole weir in the simulation, whose scripts the input writes.
FUZZ_NEEDS_config := $(NEEDS_config)
FUZZ_NEEDS_session := $(SIM_CORE) $(wildcard tests/fuzz/session_*.c) \
          $(addprefix tests/sim/,world.c sim_backend.c sim_check.c sim_client.c \
            sim_io.c sim_net.c sim_slots.c sim_step.c sim_backend_who.c \
            sim_auth.c sim_tls.c sim_tls_load.c sim_wire.c) tests/unit/tls_certs.c
FUZZ_LDFLAGS_session := -Wl,--wrap=config_parse_text $(LIBS_tls)
FUZZ_NEEDS_tls := $(NEEDS_tls)
FUZZ_NEEDS_upstream := $(NEEDS_upstream)
FUZZ_NEEDS_tcp := $(NEEDS_tcp)
FUZZ_LDFLAGS_tls := $(LIBS_tls)
$(FUZZERS:%=$(B)/fuzz_%): $(B)/fuzz_%: $(B)/tests/fuzz/fuzz_%.o \
		$$(call obj,$$(or $$(FUZZ_NEEDS_$$*),$(PURE)))
	$(CC) $(ALL_LDFLAGS) $(FUZZ_LDFLAGS_$*) -fsanitize=fuzzer -o $@ $^ -linih
SECONDS ?= 60
fuzzers: $(FUZZERS:%=$(B)/fuzz_%)
fuzz-run: fuzzers
	@for f in $(FUZZERS); do tests/fuzz/run $(B)/fuzz_$$f $(SECONDS) || exit 1; done
fuzz:
	@$(MAKE) --no-print-directory CC=clang MODE=fuzz fuzz-run

bench: all
	python3 tests/bench/run.py
	python3 tests/bench/slots.py
	python3 tests/bench/tls.py
	python3 tests/bench/tcp.py
HOURS ?= 1
soak: all
	python3 tests/bench/soak.py --hours $(HOURS)

# --- the two commands: nothing but Debian is needed ---

BUILD_PACKAGES := gcc make pkg-config liburing-dev libssl-dev libinih-dev libcmocka-dev
TEST_PACKAGES  := $(BUILD_PACKAGES) clang libclang-rt-14-dev clang-format clang-tidy \
                  cppcheck valgrind mandoc haproxy \
                  $(shell sed 's/\#.*//' tests/e2e/packages 2>/dev/null)
apt = @missing=$$(dpkg-query -W -f='$${db:Status-Abbrev}$${Package}\n' $(1) 2>/dev/null | \
	sed -n 's/^ii *//p' | sort >/tmp/weir-have.$$$$; echo $(1) | tr ' ' '\n' | sort -u | \
	comm -23 - /tmp/weir-have.$$$$; rm -f /tmp/weir-have.$$$$); [ -z "$$missing" ] || \
	{ echo "installing:" $$missing; $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

build-packages: ; $(call apt,$(BUILD_PACKAGES))
test-packages:  ; $(call apt,$(TEST_PACKAGES))

run: build-packages
	@$(MAKE) --no-print-directory -s all
	@WEIR_BUILD=$(B) tests/run
check: test-packages
	@tests/check

install: all
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin \
	  $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 \
	  $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(SYSCONFDIR)/weir \
	  $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/share/doc/weir
	install $(B)/weir $(B)/weirctl $(DESTDIR)$(PREFIX)/sbin
	install $(B)/weir-load $(B)/weir-sink $(DESTDIR)$(PREFIX)/bin
	install -m 644 tests/weir-load.1 tests/weir-sink.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 proxy/weir.ini.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 proxy/weir.8 proxy/weirctl.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 etc/weir.ini $(DESTDIR)$(PREFIX)/share/doc/weir
	install -m 644 etc/LICENSE $(DESTDIR)$(PREFIX)/share/doc/weir
	[ -e $(DESTDIR)$(SYSCONFDIR)/weir/weir.ini ] || \
	  install -m 644 etc/weir.ini $(DESTDIR)$(SYSCONFDIR)/weir
	sed 's|@PREFIX@|$(PREFIX)|; s|@SYSCONFDIR@|$(SYSCONFDIR)|' etc/weir.service \
	  >$(DESTDIR)$(PREFIX)/lib/systemd/system/weir.service

# --- the rules of the house ---

PURE_MAY_CALL := memcpy|memmove|memset|memcmp|memchr|memrchr|memmem|strlen|strcmp|strncmp|strnlen|strncasecmp|strcasecmp|strchr|strtoul|snprintf|vsnprintf|__snprintf_chk|__vsnprintf_chk|__assert_fail|__stack_chk_fail|__mem(cpy|set|move)_chk|__ctype_[a-z_]*|pthread_mutex_(init|destroy|lock|unlock)|inet_(pton|ntop)|__popcount[sdt]i2
PURE_OWN := $(subst $(eval) ,|,$(basename $(notdir $(PURE))))
purity: $(call obj,$(PURE) proxy/advice.c)
	@! nm -u $^ | awk 'NF==2 {print $$2}' | sort -u | \
	  grep -vE '^($(PURE_MAY_CALL)|($(PURE_OWN)|farm)_.*|_GLOBAL_OFFSET_TABLE_)$$'
	@echo "purity: $(words $(PURE)) objects need nothing of the kernel"

HEADERS := $(wildcard proxy/*.h balancer/*.h health/*.h tests/*.h tests/*/*.h)
headers:
	@for h in $(HEADERS); do echo "#include \"$$h\"" | \
	  $(CC) $(STD) $(WARN) -x c -fsyntax-only - || exit 1; done
	@echo "headers: $(words $(HEADERS)) stand alone"

SOURCES := $(wildcard proxy/*.[ch] balancer/*.[ch] health/*.[ch] tests/*.[ch] tests/*/*.[ch])
format:       ; clang-format -i $(SOURCES)
format-check: ; clang-format --dry-run -Werror $(SOURCES)

# As STD, but to stand inside the quotes of sh -c.
LINT_STD := -std=gnu17 -D_GNU_SOURCE -DWEIR_VERSION=\"$(VERSION)\" -I.
# One file per process: clang-tidy 14 is wrong about several at once.
TIDY := $(filter-out tests/fuzz/%,$(filter %.c,$(SOURCES)))
lint: headers purity format-check
	@echo $(TIDY) | tr ' ' '\n' | xargs -P $$(nproc) -I{} sh -c \
	  'clang-tidy --quiet {} -- $(LINT_STD) 2>/dev/null || { echo "clang-tidy: {}"; exit 255; }'
	cppcheck --quiet -j $$(nproc) --std=c11 --enable=warning,performance,portability \
	  --inline-suppr --suppress=missingIncludeSystem --error-exitcode=1 -I. proxy balancer health
	@echo $(filter proxy/%.c balancer/%.c health/%.c,$(SOURCES)) | tr ' ' '\n' | \
	  xargs -P $$(nproc) -I{} sh -c 'gcc $(LINT_STD) -O2 -fanalyzer -Wno-analyzer-too-complex \
	  -Werror -c {} -o /dev/null || { echo "gcc -fanalyzer: {}"; exit 255; }'

clean: ; rm -rf build
.PHONY: all unit sim e2e fuzz fuzzers fuzz-run bench soak build-packages test-packages run check \
        install purity headers format format-check lint clean
.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)
