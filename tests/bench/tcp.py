#!/usr/bin/env python3
"""A listener with mode = tcp: weir against HAProxy, in one run.

    python3 tests/bench/tcp.py [--only session|bulk|opaque] [--rounds N]
                               [--quick] [--json FILE]

README.md beside this file says what is measured and how.  Goals are printed
with what came out; the exit status says whether every message that was
acknowledged arrived, once and unchanged, through every proxy.
"""

import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import farm  # noqa: E402
import run  # noqa: E402

METRICS = [run.Metric(*metric) for metric in (
    ("cpu_session", "ms", 4, "CPU a session: one message of 4 KB"),
    ("cpu_bulk", "s", 3, "CPU a GB in messages of 10 MB"),
    ("cpu_opaque", "s", 3,
     "CPU a GB in messages of 10 MB, STARTTLS end to end"),
    ("rate_session", "/s", 0, "sessions a second, 20 at once"),
    ("rate_bulk", "MB/s", 0, "messages of 10 MB, 4 at once"),
    ("rate_opaque", "MB/s", 0, "the same, STARTTLS end to end"),
)]


class Tcp(run.Bench):
    metrics = METRICS
    pairs = (("weir", "haproxy", "as each comes: weir logs, HAProxy does not"),
             ("weir-quiet", "haproxy", "neither logs"),
             ("weir-quiet", "haproxy-splice", "neither logs, both splice"))
    sink_settings = "tls=starttls"

    def make(self, peer, suffix=""):
        name = peer + suffix
        if peer.startswith("haproxy"):
            more = (["option splice-auto"] if peer == "haproxy-splice"
                    else [])
            # To splice takes pipes, two more descriptors each.
            return farm.Haproxy(self.place, self.sink, name, more=more,
                                maxconn=4000)
        level = "warning" if peer == "weir-quiet" else "info"
        return farm.Weir(
            self.place, self.sink, name, backend="max_sessions = 2500",
            weir={"workers": 1, "log_level": level},
            listener={"mode": "tcp"},
            admission={"max_sessions": 8000, "max_per_source": 0},
            health={"interval": "1s", "rise": 1})

    def names(self):
        names = ["weir", "weir-quiet"]
        if shutil.which("haproxy"):
            return names + ["haproxy", "haproxy-splice"]
        print("haproxy is not installed: weir alone")
        return names

    def do_opaque(self, name):
        cpu, report = self.measured(
            name, "opaque", "-c", "4", "-n", self.scaled(50), "-s", "10M",
            "--sources", "50", "--starttls")
        self.note("cpu_opaque", name, cpu * run.GB / report["octets"])
        self.note("rate_opaque", name,
                  report["octets"] / run.MB / report["seconds"])

    def works(self):
        return {"session": self.do_session, "bulk": self.do_bulk,
                "opaque": self.do_opaque}

    def goals(self):
        goals = [run.Goal(f"{text}, weir / {other}", " x",
                          run.ratio(self.values, metric, "weir", other), 0.9,
                          False)
                 for text, metric in (("CPU a session", "cpu_session"),
                                      ("CPU a GB", "cpu_bulk"),
                                      ("CPU an opaque GB", "cpu_opaque"))
                 for other in ("haproxy", "haproxy-splice")]
        return [goal for goal in goals if goal.value is not None]


if __name__ == "__main__":
    sys.exit(run.run(
        run.arguments("mode = tcp: weir against HAProxy, in one run",
                      ("session", "bulk", "opaque")),
        lambda options: run.measure(options, Tcp)))
