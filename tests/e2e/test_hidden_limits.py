"""Three real servers with limits that nobody told weir, offered twice what
they take: weir finds the limits and keeps the servers full.

WEIR_E2E_STRICT=1: a minute of it, and the bars as they are meant for a
machine that does nothing else.  Otherwise less of both: on two cores that
also run three mail servers, 70 clients and perhaps a compiler, a new
connection takes its time, and no proxy fills that.
"""

import os
import random
import re
import time

import lib
import mail
import mta
import slots
import smtp
import weir

STRICT = os.environ.get("WEIR_E2E_STRICT") == "1"
LEARNING = 10                       # seconds that are not counted
SECONDS = 60 if STRICT else 25      # in all
BUSY = 0.95 if STRICT else 0.85     # of the farm's slots
REFUSALS = 0.5 if STRICT else 1.0   # a second and backend
HOLD = (0.3, 1.0)                   # seconds that a client holds a slot
SOURCES = [f"127.0.1.{i}" for i in range(1, 15)]

REFUSED = re.compile(r"Connection concurrency limit exceeded|"
                     r"too many connections|SMTP connections from")


def refusals(server, proxy):
    """So far: by the server's own log, where it writes them, else weir's."""
    path = {"postfix": "/maillog", "exim": "/log/main"}.get(server.name)
    if not path:
        return len(proxy.log("event=backend_refused",
                             "backend=" + server.name))
    with open(server.dir + path, encoding="utf-8", errors="replace") as file:
        return sum(bool(REFUSED.search(line)) for line in file)


@lib.needs_root
class HiddenLimits(lib.Case):
    def overload(self, *servers, clients=2, workers=2):
        for server in servers:
            self.start(server)
        have = {server: slots.takes(server) for server in servers}
        proxy = self.start(weir.Weir(
            [(s.name, s, {"max_sessions": "auto"}) for s in servers],
            weir={"workers": workers}, health={"interval": "10s"})).up()
        messages = [mail.Message(f"hidden-{i}", 2000)
                    for i in range(200 * SECONDS)]
        way = slots.Holding(*HOLD, random.Random(3))
        crowd = smtp.Crowd(proxy.port, messages,
                           clients * sum(have.values()), way, kept=1,
                           sources=SOURCES).start()
        time.sleep(LEARNING)
        before = {server: refusals(server, proxy) for server in servers}
        acked = len(crowd.acked)
        gauge = slots.Gauge(have)
        gauge.start()
        time.sleep(SECONDS - LEARNING)
        gauge.stop()
        after = {server: refusals(server, proxy) for server in servers}
        acked = len(crowd.acked) - acked
        crowd.stop()
        crowd.join()

        took = SECONDS - LEARNING
        shares = gauge.shares()
        rates = {server.name: (after[server] - before[server]) / took
                 for server in servers}
        print("      slots: " + ", ".join(
            f"{s.name} {most}, {100 * shares[s.name]:.1f} % busy, "
            f"{rates[s.name]:.2f} refusals/s" for s, most in have.items()))
        print(f"      farm: {100 * shares['farm']:.1f} % busy, "
              f"{acked / took:.1f} messages/s, the longest wait "
              f"{way.slowest:.1f} s", flush=True)
        self.assertEqual(crowd.refused, [])
        self.assertEqual(crowd.broken, [])
        for server in servers:
            server.settle()
        mail.compare(self, messages, crowd.acked, mail.tally(*servers))
        self.assertGreaterEqual(shares["farm"], BUSY)
        for name, rate in rates.items():
            self.assertLessEqual(rate, REFUSALS, name)
        return proxy

    def test_of_the_server_as_a_whole(self):
        self.overload(mta.Postfix(process_limit=20, per_client=15),
                      mta.Exim(accept_max=10), mta.OpenSmtpd(descriptors=32))

    def test_of_each_client(self):
        self.overload(mta.Postfix(process_limit=20, per_client=15),
                      mta.Exim(accept_max=10, per_host=8),
                      mta.OpenSmtpd(descriptors=32), workers=1)
