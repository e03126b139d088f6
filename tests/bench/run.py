#!/usr/bin/env python3
"""weir against HAProxy, in one run, on this machine.

    python3 tests/bench/run.py [--rounds N] [--quick] [--only WORD]
                               [--json FILE]

README.md beside this file says what is measured and how.  What is slow is
printed, not judged: the exit status says whether every message that was
acknowledged arrived, once and unchanged, through every proxy.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import farm  # noqa: E402

MTAS = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
MB, GB = 1e6, 1e9
IDLE_STEP = 100  # so many idle clients come at once

# Which two are put in proportion, and what that says.
PAIRS = (
    ("weir", "haproxy", "as each comes: weir logs, HAProxy does not"),
    ("weir", "haproxy-log", "both log"),
    ("weir-quiet", "haproxy", "neither logs"),
    ("weir", "nginx", "weir logs, nginx does not"),
)


class Metric:
    def __init__(self, name, unit, digits, text):
        self.name = name
        self.unit = unit
        self.digits = digits
        self.text = text


class Goal:
    """A bar, and the number that is held against it."""

    def __init__(self, text, unit, value, bar, at_least):
        self.text = text
        self.unit = unit
        self.value = value
        self.bar = bar
        self.at_least = at_least

    def is_met(self):
        if self.value is None:
            return False
        return (self.value >= self.bar if self.at_least
                else self.value <= self.bar)

    def line(self):
        got = "none" if self.value is None else f"{self.value:.3g}{self.unit}"
        word = "at least" if self.at_least else "at most"
        return (f"    {'met   ' if self.is_met() else 'MISSED'}  {self.text}: "
                f"{got} ({word} {self.bar:g}{self.unit})")


METRICS = [
    Metric("cpu_session", "ms", 4,
           "CPU a session: one message of 4 KB"),
    Metric("cpu_session_plain", "ms", 4,
           "CPU a session, the client does not pipeline"),
    Metric("cpu_kept", "ms", 4,
           "CPU a message of 4 KB, 200 in a session"),
    Metric("cpu_bulk", "s", 3,
           "CPU a GB in messages of 10 MB"),
    Metric("added_p50", "us", 0,
           "latency added to a session, p50"),
    Metric("added_p99", "us", 0,
           "latency added to a session, p99"),
    Metric("idle_octets", "B", 0,
           "memory an idle session"),
    Metric("idle_backend", "", 0,
           "connections to backends for all the idle ones"),
    Metric("rate_session", "/s", 0,
           "sessions a second, 20 at once"),
    Metric("rate_bulk", "MB/s", 0,
           "messages of 10 MB, 4 at once"),
]


class Bench:
    """Loads through all peers, in rounds.  Its heirs have other peers, other
    loads, other metrics."""

    metrics = METRICS
    pairs = PAIRS
    sink_settings = ""
    client = ()  # of every load
    tells_lines = True  # of the log, a session

    def __init__(self, options, place):
        self.options = options
        self.place = place
        self.files = farm.raise_limits()
        self.sink = farm.Sink(place, MTAS, self.sink_settings)
        self.peers = {}
        self.values = {metric.name: {} for metric in self.metrics}
        self.passed = 0
        self.failures = []
        self.sessions = {}
        # the idle clients are one process's, HAProxy has two ends of each
        most = min(4000, (self.files - 500) // 2)
        if options.quick:
            most //= 4
        self.idle = most // IDLE_STEP * IDLE_STEP

    # --- the peers ---

    def make(self, peer, suffix=""):
        name = peer + suffix
        if peer.startswith("haproxy"):
            return farm.Haproxy(self.place, self.sink, name,
                                log=peer == "haproxy-log")
        if peer == "nginx":
            return farm.Nginx(self.place, self.sink, name)
        level = "warning" if peer == "weir-quiet" else "info"
        return farm.Weir(
            self.place, self.sink, name, backend="max_sessions = 2500",
            weir={"workers": 1, "log_level": level},
            admission={"max_sessions": 8000, "max_per_source": 0},
            health={"interval": "1s", "rise": 1})

    def names(self):
        """Of the peers that there are."""
        names = ["weir", "weir-quiet"]
        if shutil.which("haproxy"):
            names += ["haproxy", "haproxy-log"]
        else:
            print("haproxy is not installed: weir alone")
        if farm.Nginx.installed():
            names.append("nginx")
        else:
            print("nginx with its stream module is not installed: "
                  "left out")
        return names

    def start(self):
        names = self.names()
        self.sink.start()
        for name in names:
            self.peers[name] = self.make(name).start()
            self.sessions[name] = 0

    def stop(self):
        for peer in self.peers.values():
            peer.stop()
        self.sink.stop()

    # --- one load through one peer, checked ---

    def check(self, what, good, why):
        if good:
            self.passed += 1
        else:
            self.failures.append(f"{what}: {why}")
            print(f"WRONG {what}: {why}", flush=True)

    def through(self, what, port, *options):
        """weir-load's report; what it was told arrived did arrive."""
        before = self.sink.stats()
        report = farm.load(port, *self.client, *options)
        self.arrived(what, before, report)
        return report

    def arrived(self, what, before, report):
        """All of it, once, and no session failed."""
        self.sink.settle()
        after = self.sink.stats()
        stored = after["stored"] - before["stored"]
        total = (int(after["combined"], 16) -
                 int(before["combined"], 16)) % farm.SUM_RANGE
        self.check(what, stored == report["acknowledged"] and
                   total == farm.combined(report) and
                   after["distinct"] == after["stored"],
                   f"{report['acknowledged']} acknowledged, {stored} stored")
        failed = report["sessions"]["failed"]
        self.check(what, failed == 0, f"{failed} sessions failed: "
                   f"{report['endings']} {report['refusals'][:3]}")

    def measured(self, name, what, *options):
        """CPU seconds of the peer, and weir-load's report."""
        peer = self.peers[name]
        before = peer.cpu_s()
        report = self.through(f"{name}, {what}", peer.port, *options)
        self.sessions[name] += report["sessions"]["ended"]
        return peer.cpu_s() - before, report

    def note(self, metric, name, value):
        self.values[metric].setdefault(name, []).append(value)

    def scaled(self, count):
        return str(max(1, int(count / 5) if self.options.quick else count))

    # --- what is measured ---

    def do_session(self, name):
        cpu, report = self.measured(
            name, "session", "-c", "20", "-n", self.scaled(3000),
            "-s", "4K", "--sources", "50")
        self.note("cpu_session", name, cpu * 1e3 / report["acknowledged"])
        self.note("rate_session", name,
                  report["acknowledged"] / report["seconds"])

    def do_plain(self, name):
        cpu, report = self.measured(
            name, "session without pipelining", "-c", "20",
            "-n", self.scaled(3000), "-s", "4K", "--sources", "50",
            "--pipelining", "no")
        self.note("cpu_session_plain", name,
                  cpu * 1e3 / report["acknowledged"])

    def do_kept(self, name):
        cpu, report = self.measured(
            name, "kept session", "-c", "20", "-n", "20",
            "-m", self.scaled(200), "-s", "4K", "--sources", "50")
        self.note("cpu_kept", name, cpu * 1e3 / report["acknowledged"])

    def do_bulk(self, name):
        cpu, report = self.measured(
            name, "bulk", "-c", "4", "-n", self.scaled(50), "-s", "10M",
            "--sources", "50")
        self.note("cpu_bulk", name, cpu * GB / report["octets"])
        self.note("rate_bulk", name,
                  report["octets"] / MB / report["seconds"])

    def do_latency(self, _):
        """All peers and the farm itself within seconds of each other: their
        differences are what counts."""
        names = [None, *self.peers]
        random.shuffle(names)
        times = {}
        for name in names:
            port = (self.peers[name].port if name
                    else self.sink.mtas[0]["port"])
            report = self.through(
                f"{name or 'no proxy'}, latency", port, "--rate", "100",
                "-n", self.scaled(500), "-s", "4K", "--sources", "50")
            times[name] = report["phases"]["session"]
            if name:
                self.sessions[name] += report["sessions"]["ended"]
        for name in self.peers:
            for point in ("p50", "p99"):
                self.note(f"added_{point}", name,
                          times[name][f"{point}_us"] -
                          times[None][f"{point}_us"])
        for point in ("p50", "p99"):
            self.note(f"added_{point}", "no proxy",
                      times[None][f"{point}_us"])

    def do_idle(self, name):
        """A fresh process, warmed up; then clients that say EHLO and stay."""
        peer = self.make(name, "-idle").start()
        crowd = []
        try:
            self.through(f"{name}, idle", peer.port, "-c", "20", "-n", "200",
                         "-s", "4K", "--sources", "50")
            time.sleep(0.5)
            before, open_before = peer.rss(), self.sink.open()
            while len(crowd) * IDLE_STEP < self.idle:
                self.more_idle(crowd, peer)
            time.sleep(1.5)
            self.note("idle_octets", name, (peer.rss() - before) / self.idle)
            self.note("idle_backend", name,
                      max(0, self.sink.open() - open_before))
        finally:
            for child in crowd:
                child.kill()
                child.wait()
            peer.stop(2)
            self.sink.settle()

    def more_idle(self, crowd, peer):
        # pylint: disable-next=consider-using-with
        crowd.append(subprocess.Popen(
            farm.load_argv(peer.port, *self.client, "--idle", str(IDLE_STEP),
                           "--duration", "10m", "--sources", "200"),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL))
        want = len(crowd) * IDLE_STEP
        farm.wait_until(lambda: farm.established(peer.port) >= want,
                        f"{want} idle clients are connected to {peer.name}")

    def works(self):
        return {"session": self.do_session, "plain": self.do_plain,
                "kept": self.do_kept, "bulk": self.do_bulk,
                "idle": self.do_idle, "latency": self.do_latency}

    def jobs(self):
        for word, work in self.works().items():
            if self.options.only and word not in self.options.only:
                continue
            for name in (self.peers if word != "latency" else ["all"]):
                yield word, name, work

    def notes(self):
        """Lines on what came out: none here."""
        return []

    def goals(self):
        """What came out against what was wanted: nothing here."""
        return []

    def run(self):
        for name, peer in self.peers.items():  # page faults, pools, caches
            self.through(f"{name}, warm-up", peer.port, "-c", "20",
                         "-n", "200", "-m", "2", "-s", "4K-100K",
                         "--sources", "50")
        logged = {n: p.log_lines() for n, p in self.peers.items()}
        for turn in range(self.options.rounds):
            jobs = list(self.jobs())
            random.shuffle(jobs)
            for at, (word, name, work) in enumerate(jobs):
                if sys.stderr.isatty():
                    print(f"\rround {turn + 1} of {self.options.rounds}, "
                          f"{at + 1} of {len(jobs)}: {word} {name}\033[K",
                          end="", file=sys.stderr, flush=True)
                work(name)
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr)
            else:
                print(f"round {turn + 1} of {self.options.rounds} is done",
                      file=sys.stderr, flush=True)
        time.sleep(0.5)
        return {n: (p.log_lines() - logged[n]) / max(1, self.sessions[n])
                for n, p in self.peers.items()}


# --- what came out ---


def ratios(values, one, other):
    """Of each round.  None at all if a difference of latencies is below
    nothing in one: it is lost in the machine's noise then."""
    pairs = list(zip(values.get(one, []), values.get(other, [])))
    if any(a <= 0 or b <= 0 for a, b in pairs):
        return []
    return [a / b for a, b in pairs]


def middle(values, metric, name):
    """The median of what a peer had, or None."""
    found = values[metric].get(name, [])
    return statistics.median(found) if found else None


def ratio(values, metric, one, other, of=None):
    """The median of the ratios within each round, or None."""
    found = [a / b for a, b in zip(values[metric].get(one, []),
                                   values[of or metric].get(other, []))
             if b > 0]
    return statistics.median(found) if found else None


def number(value, digits):
    return f"{value:.{digits}f}"


def three(numbers, digits):
    return (f"{number(statistics.median(numbers), digits)} "
            f"({number(min(numbers), digits)}-"
            f"{number(max(numbers), digits)})")


def print_values(values, metrics):
    print("\nMedian (least-greatest) of the rounds\n")
    for metric in metrics:
        if not values[metric.name]:
            continue
        print(f"{metric.text}{', ' if metric.unit else ''}{metric.unit}")
        for name, numbers in sorted(values[metric.name].items()):
            print(f"    {name:16} {three(numbers, metric.digits)}")


def print_ratios(values, metrics, pairs):
    for one, other, text in pairs:
        rows = [(m, ratios(values[m.name], one, other)) for m in metrics]
        rows = [(m, found) for m, found in rows if found]
        if not rows:
            continue
        print(f"\n{one} / {other}  ({text}; below 1, weir takes less)\n")
        for metric, found in rows:
            text = metric.text
            if metric.name.startswith("rate_"):
                text += " (above 1, weir does more)"
            print(f"    {three(found, 2):22} {text}")


def versions():
    out = {}
    for name, argv in (("weir", [farm.program("weir"), "-V"]),
                       ("haproxy", ["haproxy", "-v"]),
                       ("nginx", ["nginx", "-v"])):
        try:
            done = subprocess.run(argv, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True,
                                  errors="replace", check=False)
            out[name] = (done.stdout.splitlines() or ["?"])[0]
        except OSError:
            continue
    return out


def commit():
    """Which source weir was built of, as far as git knows."""
    if "WEIR" in os.environ:
        return "unknown: " + farm.program("weir")
    try:
        done = subprocess.run(
            ["git", "-C", farm.TOP, "describe", "--always", "--dirty"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine():
    model = "?"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    return {"cpus": len(os.sched_getaffinity(0)), "model": model,
            "kernel": platform.release()}


WORDS = ("session", "plain", "kept", "bulk", "idle", "latency")


def arguments(description="weir against HAProxy, in one run, on this machine",
              words=WORDS):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--quick", action="store_true",
                        help="a fifth of the load, 2 rounds unless told: "
                        "shows that it works, not how fast")
    parser.add_argument("--only", action="append", metavar="WORD",
                        choices=words, help=", ".join(words) +
                        "; may be repeated")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--keep", action="store_true",
                        help="keep configurations and logs")
    options = parser.parse_args()
    if options.quick and "--rounds" not in " ".join(sys.argv):
        options.rounds = 2
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    return options


def measure(options, kind=Bench):
    facts = {"date": datetime.datetime.now(datetime.timezone.utc)
             .strftime("%Y-%m-%d %H:%M UTC"),
             "machine": machine(), "versions": versions(),
             "commit": commit(), "rounds": options.rounds,
             "quick": options.quick,
             "load_average": os.getloadavg()[0]}
    print(f"{facts['date']}: {facts['machine']['cpus']} CPUs "
          f"({facts['machine']['model']}), Linux "
          f"{facts['machine']['kernel']}, load average "
          f"{facts['load_average']:.1f}")
    print(f"    source {facts['commit']}")
    for line in facts["versions"].values():
        print("   ", line)
    with farm.Place(options.keep) as place:
        bench = kind(options, place)
        try:
            bench.start()
            facts["log_lines_a_session"] = bench.run()
        finally:
            bench.stop()
    facts.update(
        metrics={m.name: {"text": m.text, "unit": m.unit,
                          "values": bench.values[m.name]}
                 for m in kind.metrics},
        ratios={f"{a}/{b}": {m.name: ratios(bench.values[m.name], a, b)
                             for m in kind.metrics}
                for a, b, _ in kind.pairs},
        goals=[{"text": g.text, "value": g.value, "bar": g.bar,
                "met": g.is_met()} for g in bench.goals()],
        idle_clients=bench.idle, load_average_after=os.getloadavg()[0],
        passed=bench.passed, failures=bench.failures)
    show(facts, bench)
    return facts


def run(options, take):
    """Measure and show by take(options); write the facts down.  The status."""
    sys.stdout.reconfigure(line_buffering=True)
    farm.stop_when_told()
    try:
        facts = take(options)
    except farm.Trouble as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, farm.Stopped):
        print("stopped", file=sys.stderr)
        return 1
    if options.json:
        with open(options.json, "w", encoding="ascii") as file:
            json.dump(facts, file, indent=1)
            file.write("\n")
    print(f"\nmessages acknowledged = messages stored, by hash: "
          f"{facts['passed']} passed, {len(facts['failures'])} failed; load "
          f"average now {facts['load_average_after']:.1f}")
    return 1 if facts["failures"] else 0


def show(facts, bench):
    print_values(bench.values, bench.metrics)
    if bench.tells_lines:
        print("\nlog lines a session: " +
              ", ".join(f"{name} {lines:.2f}" for name, lines in
                        facts["log_lines_a_session"].items()))
    if bench.values.get("idle_octets"):
        print(f"\nidle clients: {facts['idle_clients']}")
    print_ratios(bench.values, bench.metrics, bench.pairs)
    goals = bench.goals()
    if goals:
        print("\nGoals, of the medians\n")
    for goal in goals:
        print(goal.line())
    for line in bench.notes():
        print(f"\n{line}")


if __name__ == "__main__":
    sys.exit(run(arguments(), measure))
