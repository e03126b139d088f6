#!/usr/bin/env python3
"""Hours of mail through weir while its farm dies, revives and changes.

    python3 tests/bench/soak.py [--hours H] [--seed N] [--keep]

Each minute loads of every kind run for 45 s while something happens to one of
three test mail servers, or to weir's configuration, every second or two. Then
all is put right, and what must hold is checked.  One line a minute; the
directory with logs and journals is kept if anything failed.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import farm  # noqa: E402

WAVE = 45  # seconds of load in a minute
SETTLED = 3  # minutes after which memory and files may not grow any more
RSS_SLACK = 4 << 20  # and a tenth
FILES_SLACK = 8
ABORTS = ("connect", "greeting", "ehlo", "mail", "rcpt", "data", "body",
          "eod", "quit")
# How a session may not end that was not told to abort, unless the end of its
# data was sent and no reply can be had (RFC 1047).
RUDE = ("cut", "eof", "reset", "connect_refused",
        "connect_failed", "protocol", "timeout")
TROUBLEMAKERS = 2  # deeds at a time

LOADS = {
    "mixed": ("--rate", "15", "-c", "200", "-s", "1K-100K", "-R", "3",
              "--sources", "300"),
    "bdat": ("-c", "4", "-m", "5", "-s", "1K-200K", "--bdat=16K",
             "--think", "50ms-500ms", "--sources", "8"),
    "plain": ("-c", "4", "-m", "4", "-s", "0-20K", "--pipelining", "no",
              "--think", "50ms-500ms", "--sources", "8"),
    "slow": ("-c", "10", "-s", "0-500", "--slow", "100:1ms",
             "--sources", "10"),
    "large": ("-c", "1", "-s", "1M-20M", "--think", "1s"),
    "abort": ("--rate", "10", "-c", "100", "-s", "1K-100K",
              "--sources", "200",
              *(word for stage in ABORTS
                for word in ("--abort", f"{stage}:6"))),
    "idle": ("--rate", "1", "-c", "10", "--idle", "100", "--sources", "100"),
}


class Chaos(threading.Thread):
    """Does something to the farm every second or two, and undoes it."""

    def __init__(self, sink, weir, seed):
        super().__init__(daemon=True)
        self.sink = sink
        self.weir = weir
        self.random = random.Random(seed)
        self.ended = threading.Event()
        self.done = 0
        self.refused = 0
        self.failure = None

    # --- one deed each: returns how to undo it ---

    def kill(self, name):
        self.sink.order(f"kill {name}")
        return [("sink", f"start {name}")]

    def stop_listening(self, name):
        self.sink.order(f"stop {name}")
        return [("sink", f"start {name}")]

    def cut(self, name):
        self.sink.order(f"cut {name}")
        return []

    def set(self, name, key, value, back):
        self.sink.order(f"set {name} {key} {value}")
        return [("sink", f"set {name} {key} {back}")]

    def full(self, name):
        return (self.set(name, "busy", self.random.choice(
                    ["421", "refuse", "silent", "eof", "queue"]), "421") +
                self.set(name, "slots", self.random.randint(1, 6), "0"))

    def busy(self, name):
        stage, reply = self.random.choice([
            ("greeting", "421 4.3.2 Too many connections"),
            ("greeting", "450 Busy"),
            ("ehlo", "421 4.3.2 Service not available"),
            ("mail", "452 4.3.1 Insufficient system resources"),
            ("mail", "421 4.3.2 Shutting down"),
            ("rcpt", "450 4.2.1 Greylisted"),
            ("data", "451 4.3.0 Not now"),
            ("eod", "452 4.3.1 Out of space")])
        undo = self.set(name, stage, reply, "none")
        self.sink.order(f"set {name} {stage}-every "
                        f"{self.random.randint(1, 4)}")
        return undo

    def die(self, name):
        stage = self.random.choice(["connect", "greeting", "ehlo", "mail",
                                    "rcpt", "data", "body", "dot", "eod"])
        self.sink.order(f"set {name} die-percent 30")
        self.sink.order(f"set {name} die-how "
                        f"{self.random.choice(['rst', 'close'])}")
        return self.set(name, "die", stage, "never")

    def slow(self, name):
        return self.random.choice([
            lambda: self.set(name, "eod-delay", "50ms-1s", "0"),
            lambda: self.set(name, "greeting-delay", "100ms-2s", "0"),
            lambda: self.set(name, "dribble", "1ms", "0")])()

    def drain(self, name):
        self.weir.ctl("set", "backend", name,
                      self.random.choice(["drain", "maint"]))
        return [("ctl", ("set", "backend", name, "ready"))]

    def resize(self, name):
        self.weir.ctl("set", "backend", name, *self.random.choice([
            ("weight", str(self.random.randint(1, 1000))),
            ("max_sessions", str(self.random.randint(1, 30)))]))
        return [("ctl", ("set", "backend", name, "max_sessions", "200"))]

    def reload(self, _):
        self.weir.child.send_signal(signal.SIGHUP)
        return []

    def leave(self, name):
        """Out of the configuration, and in again."""
        self.weir.configure(without=name)
        self.weir.child.send_signal(signal.SIGHUP)
        return [("reload", None)]

    def ban(self, _):
        self.weir.ctl("ban", f"127.1.0.{self.random.randint(0, 200)}", "2s")
        return []

    def look(self, _):
        for what in ("info", "stat", "backends", "health", "sessions",
                     "sources", "bans"):
            self.weir.ctl("show", what,
                          *self.random.choice([(), ("csv",), ("json",)]))
        return []

    def undo(self, steps):
        for kind, what in steps:
            if kind == "sink":
                self.sink.order(what)
            elif kind == "ctl":
                self.weir.ctl(*what)
            else:
                self.weir.configure()
                self.weir.child.send_signal(signal.SIGHUP)

    def attempt(self, act, what):
        """A backend that left the configuration may be gone, an MTA may run
        already: to be told so is no failure, to be told nothing is."""
        try:
            return act(what)
        except farm.Trouble as trouble:
            if "error:" not in str(trouble):
                raise
            self.refused += 1
            return None

    def deed(self):
        act = self.random.choice([
            self.kill, self.kill, self.kill, self.stop_listening, self.cut,
            self.full, self.full, self.busy, self.busy, self.die, self.die,
            self.slow, self.drain, self.resize, self.reload, self.leave,
            self.ban, self.look])
        name = self.random.choice(self.sink.mtas)["name"]
        self.done += 1
        steps = self.attempt(act, name)
        self.ended.wait(self.random.uniform(0.2, 5))
        for step in steps or []:
            self.attempt(self.undo, [step])

    def run(self):
        try:
            while not self.ended.wait(self.random.uniform(0.2, 1.5)):
                self.deed()
        except Exception as error:  # the main thread reports it
            self.failure = f"{type(error).__name__}: {error}"


class Soak:
    def __init__(self, options, place):
        self.options = options
        self.place = place
        farm.raise_limits()
        self.sink = farm.Sink(place, [{"name": n} for n in "abc"],
                              journal=True)
        self.weir = farm.Weir(
            place, self.sink, backend="max_sessions = 200",
            weir={"workers": 2},
            admission={"max_sessions": 2000, "max_per_source": 0},
            timeouts={"backend_connect": "2s", "backend_greeting": "3s",
                      "backend_helo": "5s", "backend_mail": "5s",
                      "backend_final": "15s"},
            farm={"budget": "10s"},
            health={"interval": "1s", "down_interval": "500ms", "rise": 1,
                    "timeout": "3s", "eject": "500ms", "eject_max": "2s"})
        self.passed = 0
        self.failed = 0
        self.seen = set()  # hashes of the ids of all messages stored
        self.journal_at = 0
        self.log_at = 0
        self.sessions_logged = 0
        self.before = {}
        self.bounds = None
        self.failures = []

    def check(self, good, why):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(why)
            print(f"    WRONG: {why}", flush=True)

    # --- a minute ---

    def wave(self):
        """Run every load at once; their reports by name, and what they were
        told arrived: id -> SHA-256."""
        running = {}
        for name, more in LOADS.items():
            journal = self.place.file(f"load.{name}")
            argv = farm.load_argv(
                self.weir.port, "--duration", f"{WAVE}s", "--timeout", "40s",
                "--journal", journal, *more)
            out = self.place.file(f"load.{name}.json")
            with open(out, "w", encoding="ascii") as file:
                # pylint: disable-next=consider-using-with
                running[name] = (subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT), out, journal)
        reports, acknowledged = {}, {}
        for name, (child, out, journal) in running.items():
            if child.wait(300) not in (0, 2):
                with open(out, encoding="ascii", errors="replace") as file:
                    raise farm.Trouble(f"weir-load {name}: {file.read()}")
            with open(out, encoding="ascii") as file:
                reports[name] = json.load(file)
            with open(journal, encoding="ascii") as file:
                acknowledged.update(line.split() for line in file)
        return reports, acknowledged

    def put_right(self):
        for mta in self.sink.mtas:
            name = mta["name"]
            for key, value in (("die", "never"), ("slots", "0"),
                               ("busy", "421"), ("eod-delay", "0"),
                               ("greeting-delay", "0"), ("dribble", "0")):
                self.sink.order(f"set {name} {key} {value}")
            for stage in ("greeting", "ehlo", "mail", "rcpt", "data", "eod"):
                self.sink.order(f"set {name} {stage} none")
            if self.sink.mta(name)["state"] != "up":
                self.sink.order(f"start {name}")
        self.weir.configure()
        self.weir.child.send_signal(signal.SIGHUP)

    def backends(self):
        return json.loads(self.weir.ctl("show", "backends",
                                        "json"))["backends"]

    def quiet(self):
        """All loads have ended: all backends come up, all slots are free."""
        def all_up():
            rows = self.backends()
            return (len(rows) == len(self.sink.mtas) and
                    all(r["state"] == "up" and r["sessions"] == 0 and
                        r["admin"] == "ready" for r in rows) and
                    self.info()["open"] == 0)
        try:
            farm.wait_until(all_up, "all backends up, all slots free")
            self.check(True, "")
        except farm.Trouble as trouble:
            self.check(False, f"{trouble}: {self.backends()} "
                       f"open={self.info()['open']}")

    def info(self):
        return json.loads(self.weir.ctl("show", "info", "json"))

    # --- what must hold ---

    def arrived(self):
        """New messages in the sink's journal: (id, SHA-256) of those stored,
        in its order."""
        with open(self.sink.journal, "rb") as file:
            file.seek(self.journal_at)
            part = file.read()
        end = part.rfind(b"\n") + 1
        self.journal_at += end
        for line in part[:end].splitlines():
            entry = json.loads(line)
            if entry["outcome"] == "stored":
                yield entry["test_id"], entry["body_sha256"]

    def check_mail(self, acknowledged, reports, info):
        self.sink.stats()  # its answer comes after the journal is flushed
        stored, twice = {}, []
        for name, sha in self.arrived():
            if name in stored or hash(name) in self.seen:
                twice.append(name)
            stored[name] = sha
        self.seen.update(map(hash, stored))
        lost = [n for n in acknowledged if n not in stored]
        changed = [n for n, sha in acknowledged.items()
                   if stored.get(n, sha) != sha]
        extra = len(stored) - (len(acknowledged) - len(lost))
        unknown = (sum(r["messages"]["unknown"] for r in reports.values()) +
                   info["messages_unknown"] -
                   self.before.get("messages_unknown", 0))
        self.check(not lost, f"{len(lost)} lost, such as {lost[:3]}")
        self.check(not changed, f"{len(changed)} changed: {changed[:3]}")
        self.check(not twice, f"{len(twice)} stored twice: {twice[:3]}")
        self.check(extra <= unknown,
                   f"{extra} stored that nobody was told of, but only "
                   f"{unknown} without a reply")
        return extra

    def check_manners(self, reports):
        """Nobody was left without a reply who could have had one."""
        rude = collections.Counter()
        for name, report in reports.items():
            for entry in report["endings_by_phase"]:
                if entry["ending"] in RUDE and entry["phase"] != "eod":
                    rude[f"{name}: {entry['ending']} at "
                         f"{entry['phase']}"] += entry["count"]
        self.check(not rude, f"sessions ended without a word: {dict(rude)}")

    def check_books(self, info):
        reasons = sum(v for k, v in info.items() if k.startswith("closed_"))
        self.check(info["connections"] == info["closed"] + info["open"] and
                   reasons == info["closed"],
                   f"connections {info['connections']}, closed "
                   f"{info['closed']} ({reasons} by reason), open "
                   f"{info['open']}")
        logged = self.sessions_in_log()
        self.check(logged == info["closed"] or info["log_dropped"] > 0,
                   f"{info['closed']} closed, {logged} lines of sessions")

    def sessions_in_log(self):
        """All its lines so far; then the log begins anew (SIGUSR1)."""
        old = self.weir.log + ".old"
        time.sleep(0.3)  # weir's log is at most 100 ms late
        os.rename(self.weir.log, old)
        self.weir.child.send_signal(signal.SIGUSR1)
        farm.wait_until(lambda: os.path.exists(self.weir.log),
                        "weir begins a new log")
        with open(old, "rb") as file:
            self.sessions_logged += len(
                re.findall(rb"(?m)^\S+ event=session ", file.read()))
        return self.sessions_logged

    def check_growth(self, minute):
        rss, files = self.weir.rss(), self.weir.files()
        if self.bounds is None or minute <= SETTLED:
            most, many = self.bounds or (0, 0)
            self.bounds = max(most, rss), max(many, files)
        most, many = self.bounds
        self.check(rss <= most * 1.1 + RSS_SLACK,
                   f"memory grew from {most >> 10} to {rss >> 10} KiB")
        self.check(files <= many + FILES_SLACK,
                   f"open files grew from {many} to {files}")
        return rss, files

    def check_alive(self):
        words = self.weir.last_words()
        self.check(self.weir.alive() and not re.search(
            r"Assertion|AddressSanitizer|runtime error", words),
            f"weir {'lives' if self.weir.alive() else 'died'}: {words}")

    def minute(self, number):
        began = time.monotonic()
        chaos = [Chaos(self.sink, self.weir,
                       f"{self.options.seed}.{number}.{n}")
                 for n in range(TROUBLEMAKERS)]
        enders = [threading.Timer(WAVE, one.ended.set) for one in chaos]
        for thread in chaos + enders:
            thread.start()
        try:
            reports, acknowledged = self.wave()
        finally:
            for one, ender in zip(chaos, enders):
                one.ended.set()
                one.join(farm.PATIENCE)
                ender.cancel()
        for one in chaos:
            self.check(one.failure is None, f"the farm: {one.failure}")
        self.check_alive()
        if not self.weir.alive():
            raise farm.Trouble("weir is dead")
        self.put_right()
        self.quiet()
        info = self.info()
        extra = self.check_mail(acknowledged, reports, info)
        self.check_manners(reports)
        self.check_books(info)
        rss, files = self.check_growth(minute=number)
        new = {k: info[k] - self.before.get(k, 0) for k in (
            "connections", "failovers", "unavailable", "messages_unknown",
            "no_buffers")}
        self.before = info
        print(f"{number:4} {time.monotonic() - began:5.0f} s  "
              f"{new['connections']} sessions, {len(acknowledged)} "
              f"acknowledged, "
              f"{sum(r['messages']['refused'] for r in reports.values())} "
              f"refused, {new['messages_unknown']} unknown, "
              f"{extra} stored beyond; {new['failovers']} failovers, "
              f"{new['unavailable']} unavailable, {new['no_buffers']} "
              f"without buffer; {sum(one.done for one in chaos)} deeds; "
              f"{rss >> 10} KiB, {files} files; {self.failed} wrong",
              flush=True)
        for text, count in self.refusals(reports).most_common(2):
            print(f"           {count} times {text}")

    @staticmethod
    def refusals(reports):
        """The replies that were read most, of those that say no."""
        count = collections.Counter()
        for report in reports.values():
            for entry in report["refusals"]:
                count[f"{entry['phase']}: {entry['text']}"] += entry["count"]
        return count

    def run(self):
        self.sink.start()
        self.weir.start()
        end = time.monotonic() + self.options.hours * 3600
        number = 0
        while number == 0 or time.monotonic() < end:
            number += 1
            self.minute(number)

    def stop(self):
        if self.weir.alive():
            self.check(self.weir.stop() == 0,
                       f"weir ends with 0: {self.weir.last_words()}")
        self.weir.stop()
        self.sink.stop()


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(
        description="hours of mail, kills and restarts")
    parser.add_argument("--hours", type=float, default=1.0, metavar="H")
    parser.add_argument("--seed", type=int, default=1, metavar="N",
                        help="of what is done to the farm")
    parser.add_argument("--keep", action="store_true",
                        help="keep logs and journals, even if all is well")
    options = parser.parse_args()
    farm.stop_when_told()
    with farm.Place(keep=True) as place:
        soak = None
        try:
            soak = Soak(options, place)
            soak.run()
        except farm.Trouble as trouble:
            print(f"soak: {trouble}")
            if soak:
                soak.failed += 1
        except (KeyboardInterrupt, farm.Stopped):
            print("stopped")
        finally:
            if soak:
                soak.stop()
    if soak is None:
        return 1
    if soak.failed or options.keep:
        print(f"logs and journals: {place.path}")
    else:
        shutil.rmtree(place.path, ignore_errors=True)
    for why in soak.failures[:20]:
        print(f"WRONG: {why[:500]}")
    print(f"{soak.passed} passed, {soak.failed} failed")
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
