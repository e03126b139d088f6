"""Three real servers with limits that nobody told weir, offered twice what
they take: weir finds the limits and keeps the servers full.

WEIR_E2E_STRICT=1: a minute of it, and the bars as they are meant for a
machine that does nothing else.  Otherwise less of both: on two cores that
also run three mail servers, 70 clients and perhaps a compiler, a new
connection takes its time, and no proxy fills that.
"""

import json
import os
import random
import re
import time

import backend
import lib
import mail
import mta
import slots
import smtp
import weir

STRICT = os.environ.get("WEIR_E2E_STRICT") == "1"
LEARNING = 10                       # seconds that are not counted
SECONDS = 60 if STRICT else 20      # in all
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
    def overload(self, *servers, clients=2, workers=2, reuse="off"):
        for server in servers:
            self.start(server)
        have = {server: slots.takes(server) for server in servers}
        proxy = self.start(weir.Weir(
            [(s.name, s, {"max_sessions": "auto", "reuse": reuse})
             for s in servers],
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

    def test_over_kept_connections(self):
        proxy = self.overload(
            mta.Postfix(process_limit=20, per_client=15),
            mta.Exim(accept_max=10), mta.OpenSmtpd(descriptors=32),
            reuse="on")
        self.assertGreater(proxy.info()["reused"], 100)


class Learned(lib.Case):
    """What one backend tells of its limit, and who is told."""

    def crowded(self, slots):
        """A server with so many slots, that says so to whoever comes then."""
        server = backend.Backend()
        good = backend.script()

        def play(peer):
            if server.open <= slots:
                good(peer)
                return
            server.leave(peer)
            peer.send("421 4.3.2 Too many concurrent connections")
        server.play = play
        return self.start(server)

    def weir_with(self, backends, **sections):
        sections.setdefault("health", {"interval": "1h"})
        sections.setdefault("farm", {"linger": "0"})
        self.weir = self.start(weir.Weir(
            [(f"b{i}", b, dict({"max_sessions": "auto"}, **keys))
             for i, (b, keys) in enumerate(backends)], **sections)).up()
        lib.wait_until(lambda: all(b.open == 0 for b, _ in backends),
                       "the probes are over")

    def client(self):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        client.hello()
        return client

    def hold(self, count):
        """So many whose MAIL was answered."""
        clients = [self.client() for _ in range(count)]
        for client in clients:
            smtp.envelope(client, mail.Message("held"))
        return clients

    def limits(self, name="b0"):
        rows = json.loads(self.weir.ctl("show", "limits", "json"))["limits"]
        return next(row for row in rows if row["name"] == name)

    def test_it_grows_to_what_is_taken_and_no_further(self):
        self.weir_with([(self.crowded(9), {})])
        self.assertEqual(self.limits()["limit"], 4)
        clients = self.hold(9)
        late = self.client()
        late.send(b"MAIL FROM:<late@sender.test>\r\n")
        lib.wait_until(lambda: self.limits()["retries_refused"],
                       "it was asked for one more")
        row = self.limits()
        self.assertEqual((row["limit"], row["greeted"]), (9, 9))
        self.assertEqual(self.weir.row("b0")["state"], "up")
        clients[0].quit()
        self.assertEqual(late.reply()[0], 250)
        self.assertEqual(self.limits()["limit"], 9)

    def test_max_sessions_is_the_ceiling(self):
        self.weir_with([(self.crowded(9), {"max_sessions": 6})],
                       room={"wait": "500ms", "saturated_after": "1h"})
        self.hold(6)
        late = self.client()
        code, text = late.cmd("MAIL FROM:<late@sender.test>")
        self.assertEqual((code, text[:5]), (451, "4.3.2"))
        self.assertEqual(self.backends_asked(), 6)
        self.assertEqual(self.limits()["limit"], 6)
        self.weir.ctl("set", "backend", "b0", "max_sessions", "auto")
        self.assertEqual(late.cmd("MAIL FROM:<late@sender.test>")[0], 250)

    def backends_asked(self):
        return sum(len(thing.mails()) for _, thing, _ in self.weir.backends)

    def test_the_log_says_where_it_was_refused_and_where_it_went(self):
        tight = self.crowded(2)
        self.weir_with([(tight, {"max_sessions": 50, "weight": 1000}),
                        (self.start(backend.Backend()), {"max_sessions": 50})])
        clients = self.hold(2)
        self.assertEqual(len(tight.mails()), 2)
        message = mail.Message("moved")
        clients.append(self.client())
        smtp.send_plain(clients[-1], message)
        line = lib.wait_until(lambda: self.weir.log("event=message",
                                                    "moved@"), "it is logged")
        self.assertEqual((line[0]["backend"], line[0]["refused"]),
                         ("b1", "b0:GREET:busy"))
        line = lib.wait_until(lambda: self.weir.log(
            "event=backend_refused", "backend=b0"), "it is logged")
        self.assertEqual(line[0]["code"], "421")

    def test_observe_acts_on_nothing(self):
        tight = self.crowded(2)
        self.weir_with([(tight, {"max_sessions": 50, "weight": 1000}),
                        (self.start(backend.Backend()), {"max_sessions": 50})],
                       farm={"busy": "observe", "linger": "0"})
        self.hold(2)
        for i in range(10):
            with self.client() as client:
                smtp.send_plain(client, mail.Message(f"m{i}"))
                client.quit()
        # it learns, and asks there all the same
        self.assertEqual(self.limits()["limit"], 2)
        self.assertEqual(self.weir.row("b0")["state"], "up")
        lib.wait_until(lambda: len(self.weir.log(
            "event=backend_refused", "backend=b0")) == 10, "it is logged")
