#!/usr/bin/env python3
"""What TLS costs: weir against HAProxy, both terminating it, in one run.

    python3 tests/bench/tls.py [--only full|resumed|bulk|idle|storm]
                               [--rounds N] [--quick] [--json FILE]

README.md beside this file says what is measured and how.  Goals are printed
with what came out; the exit status says whether every message that was
acknowledged arrived, once and unchanged, and whether both proxies did the
same handshakes with the same cipher.
"""

import os
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import farm  # noqa: E402
import run  # noqa: E402

STORM = 2000  # handshakes at once
STORMS = 3  # of each kind in a round: they are short, and move the most
NICE = 10  # of the storm's clients: elsewhere they have machines of their own
FAVOUR = -15  # of all that is measured, against the machine's other work
STEADY = ("-c", "20", "-m", "1000000", "-s", "4K", "--think", "10ms-50ms",
          "--sources", "50")

METRICS = [run.Metric(*metric) for metric in (
    ("cpu_full", "ms", 4, "CPU a full handshake, with greeting and QUIT"),
    ("cpu_resumed", "ms", 4, "CPU a resumed one, with greeting and QUIT"),
    ("cpu_bulk", "s", 3, "CPU a GB in messages of 10 MB"),
    ("idle_octets", "B", 0, "memory an idle TLS session"),
    ("idle_backend", "", 0, "connections to backends for all the idle ones"),
    ("storm_alone", "ms", 2, "a kept session's message, p99, no storm"),
    ("storm_full", "ms", 2,
     f"the same while {STORM} come at once, full handshakes"),
    ("storm_resumed", "ms", 2, "the same, resumed ones"),
    ("storm_full_rate", "/s", 0, "that storm's handshakes, full"),
    ("storm_resumed_rate", "/s", 0, "that storm's handshakes, resumed"),
    ("rate_bulk", "MB/s", 0, "messages of 10 MB, 4 at once"),
)]


class Tls(run.Bench):
    metrics = METRICS
    pairs = (("weir", "haproxy", "as each comes: weir logs, HAProxy does not"),
             ("weir-quiet", "haproxy", "neither logs"))
    client = ("--tls",)
    tells_lines = False  # kept sessions have thousands, for their messages

    def __init__(self, options, place):
        super().__init__(options, place)
        self.cert = place.file("cert.pem")
        self.ciphers = set()
        self.favoured = farm.favour(FAVOUR)
        subprocess.run([farm.program("weir-sink"), "--make-cert",
                        f"{self.cert},mx.test"], check=True)

    def stop(self):
        super().stop()
        farm.favour(0)  # the shell may be in our group

    def make(self, peer, suffix=""):
        name = peer + suffix
        if peer == "haproxy":
            return farm.Haproxy(self.place, self.sink, name, cert=self.cert)
        level = "warning" if peer == "weir-quiet" else "info"
        return farm.Weir(
            self.place, self.sink, name, backend="max_sessions = 2500",
            weir={"workers": 1, "log_level": level},
            listener={"tls": "implicit", "tls_cert": self.cert},
            admission={"max_sessions": 8000, "max_per_source": 0},
            health={"interval": "1s", "rise": 1})

    def names(self):
        if shutil.which("haproxy"):
            return ["weir", "weir-quiet", "haproxy"]
        print("haproxy is not installed: weir alone")
        return ["weir", "weir-quiet"]

    def same(self, what, report, kind):
        """The handshakes were those that were asked for."""
        tls = report["tls"]
        self.ciphers.add(" ".join(tls[k] for k in ("version", "cipher",
                                                   "group")))
        done = tls["full"] + tls["resumed"]
        self.check(what, tls[kind] == done and len(self.ciphers) == 1,
                   f"{tls} where {kind} ones were asked for; ciphers so far: "
                   f"{sorted(self.ciphers)}")

    # --- what is measured ---

    def handshakes(self, name, kind):
        how = ["--resume"] if kind == "resumed" else []
        cpu, report = self.measured(
            name, kind, "--handshakes", self.scaled(3000), "-c", "20",
            "--sources", "50", *how)
        self.same(f"{name}, {kind}", report, kind)
        self.note(f"cpu_{kind}", name, cpu * 1e3 /
                  (report["tls"]["full"] + report["tls"]["resumed"]))

    def do_full(self, name):
        self.handshakes(name, "full")

    def do_resumed(self, name):
        self.handshakes(name, "resumed")

    def do_storm(self, name):
        """Mail that flows on established sessions, while others shake
        hands, or nobody does."""
        for _ in range(STORMS):
            for kind in ("alone", "full", "resumed"):
                self.storm(name, kind)

    def storm(self, name, kind):
        peer, before = self.peers[name], self.sink.stats()
        steady = farm.Load(peer.port, *self.client, *STEADY, "-d", "10m")
        try:
            time.sleep(1)
            steady.forget()
            if kind == "alone":
                time.sleep(3)
            else:
                self.note(f"storm_{kind}_rate", name,
                          self.crowd(name, peer, kind))
            steady.stop()
            report = steady.report()
        finally:
            steady.kill()
        self.arrived(f"{name}, storm, {kind}", before, report)
        self.note(f"storm_{kind}", name,
                  report["phases"]["message"]["p99_us"] / 1e3)

    def crowd(self, name, peer, kind):
        """Handshakes a second of 2 000 at once."""
        how = ["--resume"] if kind == "resumed" else []
        done = subprocess.run(
            ["nice", "-n", str(NICE), *farm.load_argv(
                peer.port, *self.client, "--handshakes", self.scaled(STORM),
                "--storm", "--sources", "200", *how)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        report = farm.json.loads(done.stdout)
        failed = report["sessions"]["failed"]
        self.check(f"{name}, storm, {kind}", failed == 0,
                   f"{failed} sessions failed: {report['endings']} "
                   f"{report['refusals'][:3]}")
        self.same(f"{name}, storm, {kind}", report, kind)
        return ((report["tls"]["full"] + report["tls"]["resumed"]) /
                report["seconds"])

    def works(self):
        return {"full": self.do_full, "resumed": self.do_resumed,
                "bulk": self.do_bulk, "idle": self.do_idle,
                "storm": self.do_storm}

    def notes(self):
        if self.favoured or not self.values["storm_alone"]:
            return []
        return ["not root: whatever else runs here is in the p99 of the "
                "storms"]

    def goals(self):
        def against(text, metric, bar):
            return run.Goal(f"{text}, weir / haproxy", " x",
                            run.ratio(self.values, metric, "weir", "haproxy"),
                            bar, False)

        def beside(kind, name):
            # Of the medians: what is alone moves as much as the storms.
            there = run.middle(self.values, f"storm_{kind}", name)
            before = run.middle(self.values, "storm_alone", name)
            return run.Goal(
                f"storm of {kind} handshakes: a message's p99 in it / "
                f"before, {name}", " x",
                there and before and there / before, 3, False)
        goals = [against("CPU a full handshake", "cpu_full", 1),
                 against("CPU a resumed handshake", "cpu_resumed", 1),
                 against("CPU a GB", "cpu_bulk", 1),
                 against("memory an idle session", "idle_octets", 1)]
        goals += [beside(kind, name) for kind in ("full", "resumed")
                  for name in ("weir", "haproxy")]
        return [goal for goal in goals if goal.value is not None]


if __name__ == "__main__":
    sys.exit(run.run(
        run.arguments("what TLS costs: weir against HAProxy, in one run",
                      ("full", "resumed", "bulk", "idle", "storm")),
        lambda options: run.measure(options, Tls)))
