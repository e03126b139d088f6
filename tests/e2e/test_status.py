"""What an operator reads: weirctl status, show limits, show room."""

import json
import re

import backend
import lib
import smtp
import test_tools
import weir


class Case(lib.Case):
    def status(self):
        """The screen; out of a terminal each sentence is one line."""
        return self.weir.ctl("status")

    def verdict(self):
        """The first sentence, which is about the farm as a whole."""
        return re.search(r"^\* (.*)", self.status(), re.M).group(1)

    def says(self, text):
        lib.wait_until(lambda: text in self.status(), text)

    def limits(self):
        rows = json.loads(self.weir.ctl("show", "limits", "json"))["limits"]
        return {row["name"]: row for row in rows}

    def client(self):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        client.hello()
        return client

    def mail(self, count):
        """So many clients say MAIL; who waits, is not waited for."""
        out = [self.client() for _ in range(count)]
        for client in out:
            client.send(b"MAIL FROM:<a@b.test>\r\n")
        return out


class HiddenLimits(Case):
    """Servers that take 4, 2 and 4 sessions and told nobody."""

    def setUp(self):
        self.sink = test_tools.Sink(self, *(
            f"name=mx{i},slots={slots}"
            for i, slots in ((1, 4), (2, 2), (3, 4))))
        self.weir = self.start(weir.Weir(
            [(name, f"127.0.0.1:{port}", {"max_sessions": "auto"})
             for name, port in sorted(self.sink.ports.items())],
            health={"interval": "1h"}, room={"wait": "4m"},
            farm={"linger": "0", "retry_max": "500ms"})).up()

    def test_the_bottleneck_is_named(self):
        self.assertTrue(self.verdict().startswith("Room to spare: 0 of "),
                        self.status())
        self.mail(15)
        self.says("All 10 slots that the farm offers are in use and 5 "
                  "sessions wait")
        self.says("add a backend, or raise the limit of mx2, which takes 2 "
                  "sessions while its peers take 4.")
        limits = self.limits()
        self.assertEqual({name: row["limit"] for name, row in limits.items()},
                         {"mx1": 4, "mx2": 2, "mx3": 4})
        for row in limits.values():
            self.assertEqual(row["greeted"] + row["pending"], row["limit"])
            self.assertIsNone(row["max_sessions"])
            self.assertGreater(row["refused"], 0)
            self.assertGreater(row["busy"], 0)
            self.assertEqual(row["alarm"], "no")
            self.assertNotEqual(row["last"], "start")
        room = self.weir.room()
        self.assertEqual((room["waiting"], room["saturated"]), (5, False))
        states = self.weir.ctl("show", "sessions", "csv")
        self.assertEqual(states.count(",waiting,"), 5, states)
        # the bars have one scale: mx2's is half as long
        bars = dict(re.findall(r"^(mx\d) +up +\[(#*)[^\]]*\]", self.status(),
                               re.M))
        self.assertEqual(len(bars["mx1"]), len(bars["mx3"]))
        self.assertEqual(len(bars["mx1"]), 2 * len(bars["mx2"]))

    def test_a_server_that_is_gone_is_to_be_brought_back(self):
        self.mail(6)
        lib.wait_until(lambda: sum(
            row["greeted"] for row in self.limits().values()) == 6,
            "six have a slot")
        for name in ("mx1", "mx2", "mx3"):
            self.sink.say("kill " + name)
        self.weir.ctl("set", "backend", "mx3", "drain")
        self.mail(1)
        self.says("No backend takes mail now, clients are told to come again "
                  "(4xx): repair mx1 (")
        self.says("mx3 is in drain and has no sessions: it can be stopped")


class Ceilings(Case):
    """max_sessions is what stops them, not the servers."""

    def test_max_sessions_is_to_be_raised_and_raising_it_helps(self):
        self.weir = self.start(weir.Weir(
            [(name, self.start(backend.Backend()), {"max_sessions": 1})
             for name in ("a", "b")],
            health={"interval": "1h"}, room={"wait": "4m"},
            farm={"linger": "0"})).up()
        clients = self.mail(3)
        self.says("All 2 slots that the farm offers are in use and 1 session "
                  "waits")
        self.assertIn("raise max_sessions of a and b, which they have "
                      "reached, or add a backend.", self.verdict())
        self.assertIn("may have 3 sessions", self.weir.ctl(
            "set", "backend", "a", "max_sessions", "3"))
        for client in clients:
            self.assertEqual(client.reply()[0], 250)
        self.assertIn("as many sessions as it takes", self.weir.ctl(
            "set", "backend", "b", "max_sessions", "auto"))
        self.assertEqual((self.limits()["a"]["max_sessions"],
                          self.limits()["b"]["max_sessions"]), (3, None))
        # b, of which nothing is known yet, begins at start_sessions
        self.assertEqual(self.verdict(), "Room to spare: 3 of 7 slots in "
                                         "use.")

    def test_observing_is_said(self):
        self.weir = self.start(weir.Weir(
            [("a", self.start(backend.Backend()), {})],
            farm={"busy": "observe"})).up()
        self.says("weir only observes ([farm] busy = observe)")

    def test_without_a_backend_it_says_how_to_add_one(self):
        self.weir = self.start(weir.Weir(
            [("a", self.start(backend.Backend()), {})])).up()
        self.weir.ctl("set", "backend", "a", "maint")
        self.says("No backend takes mail: a (maint) is set so by an "
                  "operator")
        lib.wait_until(lambda: self.weir.ctl(
            "del", "backend", "a", check=False).startswith("ok"), "it is gone")
        self.says("There is no backend: add one by")
