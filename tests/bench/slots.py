#!/usr/bin/env python3
"""What becomes of a farm's slots: weir against HAProxy and nginx, in one run.

    python3 tests/bench/slots.py [--only fairness|slow|churn] [--rounds N]
                                 [--quick] [--json FILE]

README.md beside this file says what is measured and how.  Goals are printed
with what came out; the exit status says whether every message that was
acknowledged arrived, once and unchanged, through every proxy.
"""

import argparse
import datetime
import os
import shutil
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import farm  # noqa: E402
import run  # noqa: E402

NAMES = ("a", "b", "c")

FAIR_SLOTS = 20  # of each MTA
FAIR_SERVICE_MS = 300
FAIR_SOURCES = 200
FAIR_SHARE = 0.95  # of what the farm can do, by the polite ones alone
LOUD_CONNECTIONS = 400

SLOW_SLOTS = 10
SLOW_SERVICE_MS = 50
SLOW_SENDERS = 2000
FAST_SENDERS = 20
BODY_S = 10
BODY_TIME = "8s-12s"  # in step they would all end at once
BODY_OCTETS = "20K"

GREETING_MS = 50
CPU_ROUNDS = 3  # they are short, and the figure moves the most

METRICS = [run.Metric(*metric) for metric in (
    ("fair_share", "%", 2, "fairness: polite messages without a 4xx"),
    ("fair_wait", "ms", 0, "fairness: p99 wait of polite sessions"),
    ("fair_busy", "%", 1, "fairness: slots in use"),
    ("fair_loud", "/s", 1, "fairness: messages of the loud source"),
    ("slow_rate", "/s", 1, "slow senders: messages"),
    ("slow_slot", "s", 3, "slow senders: slot-seconds a message"),
    ("slow_fast_share", "%", 1, "slow senders: fast ones' sessions that "
     "came to QUIT"),
    ("slow_fast_p99", "ms", 0, "slow senders: fast ones' p99 beside them"),
    ("slow_alone_p99", "ms", 0, "slow senders: fast ones' p99 alone"),
    ("churn_connections", "", 3, "churn: backend connections a message"),
    ("churn_cpu", "ms", 4, "churn: CPU a session of one message of 4 KB"),
    ("churn_p50", "ms", 2, "churn: session, backends greet in 50 ms, p50"),
    ("churn_p99", "ms", 2, "churn: session, backends greet in 50 ms, p99"),
)]


class Slots:
    def __init__(self, options, place):
        self.options = options
        self.place = place
        farm.raise_limits()
        self.values = {metric.name: {} for metric in METRICS}
        self.passed = 0
        self.failures = []
        self.peers = ["haproxy"] if shutil.which("haproxy") else []
        if not self.peers:
            print("haproxy is not installed: weir alone "
                  "(apt-get install haproxy)")
        self.nginx = farm.Nginx.installed()
        if not self.nginx:
            print("nginx's stream module is not installed: left out "
                  "(apt-get install nginx-light libnginx-mod-stream)")

    # --- the farm and the peers ---

    def sink(self, **settings):
        each = ",".join(f"{key.replace('_', '-')}={value}"
                        for key, value in settings.items())
        return farm.Sink(self.place, [{"name": n} for n in NAMES], each)

    def wanted(self, peers):
        """Those of --peer."""
        return {name: peer for name, peer in peers.items()
                if not self.options.peer or name in self.options.peer}

    def weir(self, sink, name, backend, **sections):
        return farm.Weir(
            self.place, sink, name, backend=backend,
            weir={"workers": 1},
            admission={"max_sessions": 8000, "max_per_source": 0},
            health={"interval": "1s", "rise": 1}, **sections)

    # --- checks ---

    def check(self, what, good, why):
        if good:
            self.passed += 1
            return
        self.failures.append(f"{what}: {why}")
        print(f"WRONG {what}: {why}", flush=True)

    def arrived(self, what, sink, before, *reports):
        """All that was acknowledged was stored, nothing twice.  Sessions that
        were cut may have left messages whose reply nobody read."""
        sink.settle()
        after = sink.stats()
        stored = after["stored"] - before["stored"]
        told = sum(r["acknowledged"] for r in reports)
        unknown = sum(r["messages"]["unknown"] for r in reports)
        total = (int(after["combined"], 16) -
                 int(before["combined"], 16)) % farm.SUM_RANGE
        same = total == sum(map(farm.combined, reports)) % farm.SUM_RANGE
        self.check(what, told <= stored <= told + unknown and
                   after["distinct"] == after["stored"] and
                   (same or stored > told),
                   f"{told} acknowledged, {unknown} unknown, {stored} stored, "
                   f"{after['distinct']} of {after['stored']} distinct")

    def note(self, metric, name, value):
        if value is not None:
            self.values[metric].setdefault(name, []).append(value)

    def seconds(self, usual):
        return usual / 4 if self.options.quick else usual

    @staticmethod
    def say(text):
        print(f"    {text}", file=sys.stderr, flush=True)

    # --- fairness ---

    def fairness(self):
        sink = self.sink(slots=FAIR_SLOTS, eod_delay=f"{FAIR_SERVICE_MS}ms")
        sink.start()
        try:
            makers = {
                "weir": lambda: self.weir(sink, "weir-fair",
                                          f"max_sessions = {FAIR_SLOTS}"),
                "weir-auto": lambda: self.weir(sink, "weir-fair-auto",
                                               "max_sessions = auto")}
            if self.peers:
                makers["haproxy"] = lambda: farm.Haproxy(
                    self.place, sink, "haproxy-fair", slots=FAIR_SLOTS)
            for name, make in self.wanted(makers).items():
                peer = make().start()
                try:
                    self.fair_run(name, sink, peer)
                finally:
                    peer.stop(2)
                    sink.settle()
        finally:
            sink.stop()

    def fair_run(self, name, sink, peer):
        slots = FAIR_SLOTS * len(NAMES)
        before = sink.stats()
        alone = farm.load(peer.port, "-c", "20", "-d", "3s", "-s", "4K",
                          "--sources", str(FAIR_SOURCES))
        self.arrived(f"fairness, {name}, alone", sink, before, alone)
        usual_us = alone["phases"]["session"]["p50_us"]
        rate = FAIR_SHARE * slots / (usual_us / 1e6)
        duration = self.seconds(40)
        before = sink.stats()
        loud = farm.Load(peer.port, "-c", str(LOUD_CONNECTIONS),
                         "-d", "10m", "-s", "4K", "--pause", "500ms",
                         "--source-range", "127.9.9.9/32")
        try:
            time.sleep(3)
            loud_stored = sink.stats()["stored"]
            used, start = sink.slot_seconds(), time.monotonic()
            polite = farm.load(peer.port, "--rate", f"{rate:.1f}",
                               "-n", f"{rate * duration:.0f}", "-s", "4K",
                               "--sources", str(FAIR_SOURCES))
            took = time.monotonic() - start
            used = sink.slot_seconds() - used
            loud_stored = (sink.stats()["stored"] - loud_stored -
                           polite["acknowledged"])
            noise = loud.cut()
        finally:
            loud.kill()
        self.arrived(f"fairness, {name}", sink, before, polite, noise)
        session = polite["phases"].get("session")
        self.note("fair_share", name, 100 * polite["acknowledged"] /
                  polite["sessions"]["started"])
        self.note("fair_wait", name,
                  session and max(0, session["p99_us"] - usual_us) / 1e3)
        self.note("fair_busy", name, 100 * used / took / slots)
        self.note("fair_loud", name, loud_stored / took)
        self.say(f"fairness {name}: {rate:.0f} polite messages/s; "
                 f"{polite['endings']['complete']} of "
                 f"{polite['sessions']['started']} complete; refusals: "
                 f"{[(r['count'], r['text']) for r in polite['refusals'][:3]]}")

    # --- slow senders ---

    def slow(self):
        sink = self.sink(slots=SLOW_SLOTS, eod_delay=f"{SLOW_SERVICE_MS}ms")
        sink.start()
        limit = f"max_sessions = {SLOW_SLOTS}"
        try:
            makers = {
                "weir-body": lambda: self.weir(
                    sink, "weir-body", limit, listener={"slot": "body"}),
                "weir-transaction": lambda: self.weir(
                    sink, "weir-transaction", limit)}
            if self.peers:
                makers["haproxy"] = lambda: farm.Haproxy(
                    self.place, sink, "haproxy-slow", slots=SLOW_SLOTS)
            if self.nginx:
                makers["nginx"] = lambda: farm.Nginx(
                    self.place, sink, "nginx-slow", slots=SLOW_SLOTS)
            for name, make in self.wanted(makers).items():
                peer = make().start()
                try:
                    self.slow_run(name, sink, peer)
                finally:
                    peer.stop(2)
                    sink.settle()
        finally:
            sink.stop()

    def slow_run(self, name, sink, peer):
        fast_options = ("-c", str(FAST_SENDERS), "-s", "4K",
                        "--pause", "200ms", "--source-range", "127.9.8.0/27",
                        "-d", f"{self.seconds(30):.0f}s")
        before = sink.stats()
        alone = farm.load(peer.port, *fast_options)
        # A steady crowd: each takes BODY_S, a new one comes for each that ends
        slow = farm.Load(peer.port, "--rate", str(SLOW_SENDERS // BODY_S),
                         "-c", str(SLOW_SENDERS), "-d", "10m",
                         "-s", BODY_OCTETS, "--body-time", BODY_TIME,
                         "--sources", str(SLOW_SENDERS))
        try:
            time.sleep(BODY_S + self.seconds(5))
            first, start = sink.stats(), time.monotonic()
            used = sink.slot_seconds()
            fast = farm.load(peer.port, *fast_options)
            last, took = sink.stats(), time.monotonic() - start
            used = sink.slot_seconds() - used
            crowd = slow.cut()
        finally:
            slow.kill()
        self.arrived(f"slow senders, {name}", sink, before, alone, fast, crowd)
        stored = last["stored"] - first["stored"]
        times, alone_times = fast["phases"], alone["phases"]
        self.note("slow_rate", name, stored / took)
        self.note("slow_slot", name, used / stored if stored else None)
        self.note("slow_fast_share", name, 100 - 100 *
                  fast["sessions"]["failed"] /
                  max(1, fast["sessions"]["ended"]))
        if "session" in times:
            self.note("slow_fast_p99", name, times["session"]["p99_us"] / 1e3)
        if "session" in alone_times:
            self.note("slow_alone_p99", name,
                      alone_times["session"]["p99_us"] / 1e3)
        self.say(f"slow {name}: {stored} messages in {took:.0f} s, "
                 f"{crowd['sessions']['peak']} slow senders at most; "
                 f"fast: {fast['acknowledged']} of "
                 f"{fast['sessions']['ended']}; refusals of slow ones: "
                 f"{[(r['count'], r['text']) for r in crowd['refusals'][:3]]}")

    # --- churn ---

    def churn(self):
        self.churn_greeting()
        self.churn_cpu()

    def churn_peers(self, sink, suffix):
        slots = "max_sessions = 200"
        peers = {
            "weir-reuse": self.weir(sink, "weir-reuse" + suffix,
                                    slots + "\nreuse = on"),
            "weir": self.weir(sink, "weir-churn" + suffix, slots)}
        if self.peers:
            peers["haproxy"] = farm.Haproxy(self.place, sink,
                                            "haproxy-churn" + suffix)
        if self.nginx:
            peers["nginx"] = farm.Nginx(self.place, sink,
                                        "nginx-churn" + suffix)
        return self.wanted(peers)

    def churn_load(self, what, sink, port, *options):
        before = sink.stats()
        report = farm.load(port, "-s", "4K", "--sources", "50", *options)
        self.arrived(what, sink, before, report)
        failed = report["sessions"]["failed"]
        self.check(what, failed == 0, f"{failed} sessions failed: "
                   f"{report['refusals'][:3]}")
        return report

    def count(self, usual):
        return str(usual // 5 if self.options.quick else usual)

    def churn_greeting(self):
        """One-message sessions before backends that take 50 ms to greet."""
        sink = self.sink(greeting_delay=f"{GREETING_MS}ms")
        sink.start()
        peers = self.churn_peers(sink, "-greeting")
        try:
            for peer in peers.values():
                peer.start()
                self.churn_load(f"churn, {peer.name}, warm-up", sink,
                                peer.port, "-c", "20", "-n", "200")
            for _ in range(self.options.rounds):
                for name, peer in peers.items():
                    before = sink.stats()
                    self.churn_load(f"churn, {name}", sink, peer.port,
                                    "-c", "20", "-n", self.count(3000))
                    after = sink.stats()
                    self.note("churn_connections", name,
                              (after["accepted"] - before["accepted"]) /
                              (after["stored"] - before["stored"]))
                for name in ["direct", *peers]:
                    port = (peers[name].port if name in peers
                            else sink.mtas[0]["port"])
                    report = self.churn_load(
                        f"churn, {name}, latency", sink, port,
                        "--rate", "100", "-n", self.count(600))
                    times = report["phases"]["session"]
                    self.note("churn_p50", name, times["p50_us"] / 1e3)
                    self.note("churn_p99", name, times["p99_us"] / 1e3)
        finally:
            for peer in peers.values():
                peer.stop(2)
            sink.stop()

    def churn_cpu(self):
        """The same before backends that greet at once, for the CPU."""
        sink = self.sink()
        sink.start()
        peers = self.churn_peers(sink, "-cpu")
        try:
            for peer in peers.values():
                peer.start()
                self.churn_load(f"churn, {peer.name}, warm-up", sink,
                                peer.port, "-c", "20", "-n", "200")
            for _ in range(CPU_ROUNDS * self.options.rounds):
                for name, peer in peers.items():
                    before = peer.cpu_s()
                    report = self.churn_load(f"churn, {name}, CPU", sink,
                                             peer.port, "-c", "20",
                                             "-n", self.count(3000))
                    self.note("churn_cpu", name, 1e3 *
                              (peer.cpu_s() - before) /
                              report["acknowledged"])
        finally:
            for peer in peers.values():
                peer.stop(2)
            sink.stop()

    # --- what came out ---

    def middle(self, metric, name):
        return run.middle(self.values, metric, name)

    def ratio(self, metric, one, other, of=None):
        return run.ratio(self.values, metric, one, other, of)

    def goals(self):
        goals = []
        if "fairness" in self.options.only:
            for name in ("weir", "weir-auto"):
                wait = self.middle("fair_wait", name)
                goals += [
                    run.Goal(f"fairness, {name}: polite messages without a "
                             "4xx", " %", self.middle("fair_share", name),
                             99, True),
                    run.Goal(f"fairness, {name}: p99 wait", " s",
                             wait if wait is None else wait / 1e3, 2, False)]
        if "slow" in self.options.only:
            goals += [
                run.Goal("slow senders: messages, weir-body / haproxy", " x",
                         self.ratio("slow_rate", "weir-body", "haproxy"), 20,
                         True),
                run.Goal("slow senders: fast ones' p99, weir-body, beside "
                         "them / alone", " x",
                         self.ratio("slow_fast_p99", "weir-body", "weir-body",
                                    "slow_alone_p99"), 2, False)]
        if "churn" in self.options.only:
            goals += [
                run.Goal("churn: backend connections a message, weir-reuse",
                         "", self.middle("churn_connections", "weir-reuse"),
                         0.1, False),
                run.Goal("churn: CPU a session, weir-reuse / haproxy", " x",
                         self.ratio("churn_cpu", "weir-reuse", "haproxy"),
                         0.6, False),
                run.Goal("churn: session's p50, weir-reuse / direct", " x",
                         self.ratio("churn_p50", "weir-reuse", "direct"), 1,
                         False),
                run.Goal("churn: session's p99, weir-reuse / direct", " x",
                         self.ratio("churn_p99", "weir-reuse", "direct"), 1,
                         False)]
        # With --peer there may be nothing to compare with.
        return [g for g in goals
                if g.value is not None or not self.options.peer]

    def run(self):
        if "churn" in self.options.only:
            self.churn()  # has rounds of its own: its peers stay
        for turn in range(self.options.long_rounds):
            if "fairness" in self.options.only:
                self.fairness()
            if "slow" in self.options.only:
                self.slow()
            print(f"round {turn + 1} of {self.options.long_rounds} is done",
                  file=sys.stderr, flush=True)


WORDS = ("fairness", "slow", "churn")


def arguments():
    parser = argparse.ArgumentParser(
        description="what becomes of a farm's slots: weir against HAProxy "
        "and nginx, in one run")
    parser.add_argument("--rounds", type=int, default=3, metavar="N",
                        help="of churn (3)")
    parser.add_argument("--long-rounds", type=int, default=1, metavar="N",
                        help="of fairness and slow, 7 minutes each (1)")
    parser.add_argument("--quick", action="store_true",
                        help="a fraction of the load, 1 round: shows that it "
                        "works, not how well")
    parser.add_argument("--only", action="append", metavar="WORD",
                        choices=WORDS, help="fairness, slow or churn; may be "
                        "repeated")
    parser.add_argument("--peer", action="append", metavar="NAME",
                        help="weir, weir-auto, weir-body, weir-transaction, "
                        "weir-reuse, haproxy or nginx; may be repeated")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--keep", action="store_true",
                        help="keep configurations and logs")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.long_rounds = 1
    if options.rounds < 1 or options.long_rounds < 1:
        parser.error("--rounds, --long-rounds: 1 or more")
    options.only = options.only or list(WORDS)
    return options


def measure(options):
    facts = {"date": datetime.datetime.now(datetime.timezone.utc)
             .strftime("%Y-%m-%d %H:%M UTC"),
             "machine": run.machine(), "versions": run.versions(),
             "commit": run.commit(), "quick": options.quick,
             "load_average": os.getloadavg()[0]}
    print(f"{facts['date']}: {facts['machine']['cpus']} CPUs "
          f"({facts['machine']['model']}), Linux "
          f"{facts['machine']['kernel']}, load average "
          f"{facts['load_average']:.1f}")
    print(f"    source {facts['commit']}")
    for line in facts["versions"].values():
        print("   ", line)
    with farm.Place(options.keep) as place:
        if options.keep:
            print("    kept in", place.path)
        bench = Slots(options, place)
        bench.run()
    facts.update(
        metrics={m.name: {"text": m.text, "unit": m.unit,
                          "values": bench.values[m.name]} for m in METRICS},
        goals=[{"text": g.text, "value": g.value, "bar": g.bar,
                "met": g.is_met()} for g in bench.goals()],
        load_average_after=os.getloadavg()[0],
        passed=bench.passed, failures=bench.failures)
    run.print_values(bench.values, METRICS)
    print("\nGoals, of the medians\n")
    for goal in bench.goals():
        print(goal.line())
    return facts


if __name__ == "__main__":
    sys.exit(run.run(arguments(), measure))
