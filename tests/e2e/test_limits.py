"""Limits hold exactly, and who is refused reads why."""

import collections
import threading

import backend
import lib
import smtp
import swarm
import weir

REFUSED = {
    b"421 4.7.0": "source_limit",
    b"421 4.3.2": "full",
}


def admitted(one):
    return one.said.startswith(b"220 ")


def refused(one):
    return one.said[:9] in REFUSED


def answered(one):
    """Greeted, or refused and let go."""
    return (admitted(one) and one.lines) or one.ended


class Limits(lib.Case):
    def weir_with(self, **admission):
        self.backend = self.start(backend.Backend())
        return self.start(weir.Weir(
            [("a", self.backend, {})],
            admission=dict(admission, max_percent_per_source="0%"))).up()

    def ended_lines(self, proxy, count):
        """The log lines of `count` ended connections, no more, no less."""
        def lines():
            return [x for x in proxy.log("event=session") if "close" in x]
        lib.wait_until(lambda: len(lines()) >= count, "all is logged")
        return lines()

    def test_ten_thousand_connections_from_five_hundred_sources(self):
        proxy = self.weir_with(max_sessions=3000, max_per_source=10)
        crowd = self.start(swarm.Swarm(proxy.port, swarm.sources(500), 20))
        self.assertEqual(len(crowd), 10_000)
        crowd.pump(lambda: crowd.count(answered) == 10_000,
                   "everybody has an answer")
        said = collections.Counter((one.said[:9], one.ended)
                                   for one in crowd.ones.values())
        self.assertEqual(crowd.count(admitted), 3000, said)
        self.assertLessEqual(max(crowd.per_source(admitted).values()), 10)
        self.assertEqual(crowd.count(refused), 7000)
        for one in crowd.ones.values():
            if not admitted(one):
                self.assertEqual(one.ended, "fin", one.said)
                self.assertEqual(one.said.count(b"\r\n"), 1, one.said)
                self.assertTrue(one.said.endswith(b"\r\n"), one.said)
        told = collections.Counter(
            REFUSED[one.said[:9]] for one in crowd.ones.values()
            if refused(one))

        info = proxy.info()
        self.assertEqual(info["connections"], 10_000)
        self.assertEqual(info["sessions"], 3000)
        self.assertEqual(info["refused"], 7000)
        self.assertEqual(info["sessions_now"], 3000)

        crowd.say(b"QUIT\r\n", admitted)
        crowd.pump(lambda: crowd.count(lambda x: x.ended) == 10_000,
                   "all have ended")
        self.assertEqual(crowd.count(lambda x: x.ended == "fin"), 10_000)
        logged = collections.Counter(
            x["close"] for x in self.ended_lines(proxy, 10_000))
        self.assertEqual(logged, {"quit": 3000, **told})
        info = proxy.info()
        self.assertEqual(info["sessions_now"], 0)
        self.assertEqual(info["connections"], 10_000)
        for reason, count in logged.items():
            self.assertEqual(info["closed_" + reason], count)
        self.assertEqual(info.get("log_dropped", 0), 0)

    def test_the_global_limit_under_coming_and_going(self):
        """Between a client's 220 and its QUIT weir must count it, so no more
        than the limit are ever in that state at the same time."""
        limit, most, lock = 40, [0, 0], threading.Lock()
        proxy = self.weir_with(max_sessions=limit)
        wrong = []

        def one_client():
            for _ in range(60):
                with smtp.Client(proxy.port) as client:
                    code, text = client.reply()
                    if code == 421:
                        if client.rest() != b"":
                            wrong.append(text)
                        continue
                    with lock:
                        most[0] += 1
                        most[1] = max(most)
                    client.cmd("EHLO client.test")
                    with lock:
                        most[0] -= 1
                    client.quit()

        threads = [threading.Thread(target=one_client) for _ in range(80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertLessEqual(most[1], limit)
        self.assertEqual(len(self.ended_lines(proxy, 80 * 60)), 80 * 60)
        lib.wait_until(lambda: proxy.info()["sessions_now"] == 0,
                       "nothing is left")

    def test_a_limit_of_one_source_leaves_others_alone(self):
        proxy = self.weir_with(max_per_source=3)
        held = []
        for _ in range(3):
            client = smtp.Client(proxy.port, source="127.0.0.5")
            self.addCleanup(client.close)
            client.hello()
            held.append(client)
        with smtp.Client(proxy.port, source="127.0.0.5") as client:
            code, text = client.reply()
            self.assertEqual((code, text[:5]), (421, "4.7.0"))
            self.assertEqual(client.rest(), b"")
        with smtp.Client(proxy.port, source="127.0.0.6") as client:
            client.hello()
            client.quit()
        held.pop().quit()
        with smtp.Client(proxy.port, source="127.0.0.5") as client:
            client.hello()
            client.quit()

    def test_backend_slots_are_never_exceeded(self):
        slots = 5
        self.backend = self.start(backend.Backend())
        proxy = self.start(weir.Weir(
            [("a", self.backend, {"max_sessions": slots})],
            farm={"linger": "0"}, health={"interval": "1h"},
            room={"wait": "200ms"})).up()
        held = []
        for _ in range(slots):
            client = smtp.Client(proxy.port)
            self.addCleanup(client.close)
            client.hello()
            held.append(client)
            self.assertEqual(client.cmd("MAIL FROM:<a@b.test>")[0], 250)
        with smtp.Client(proxy.port) as client:
            client.hello()
            code, text = client.cmd("MAIL FROM:<a@b.test>")
            self.assertEqual((code, text[:5]), (451, "4.3.2"))
            # the session lives on, and gets a slot once there is one
            held.pop().quit()
            lib.wait_until(lambda: client.cmd("MAIL FROM:<a@b.test>")[0]
                           == 250, "a slot is free")
        self.assertLessEqual(self.backend.peak, slots)

    def test_message_and_recipient_rates(self):
        proxy = self.weir_with(message_rate="3/h", recipient_rate="5/h")
        with smtp.Client(proxy.port) as client:
            client.hello()
            codes = []
            for _ in range(4):
                codes.append(client.cmd("MAIL FROM:<a@b.test>")[0])
                client.cmd("RSET")
            self.assertEqual(codes, [250, 250, 250, 450])
            client.quit()
        with smtp.Client(proxy.port, source="127.0.0.9") as client:
            client.hello()
            client.cmd("MAIL FROM:<a@b.test>")
            codes = [client.cmd(f"RCPT TO:<u{i}@local.test>")[0]
                     for i in range(7)]
            self.assertEqual(codes, [250] * 5 + [450] * 2)

    def test_lists_and_bans(self):
        proxy = self.weir_with(deny="127.0.3.0/24", allow="127.0.3.7",
                               max_per_source=1)

        def code(source):
            with smtp.Client(proxy.port, source=source) as client:
                return client.reply()[0]
        self.assertEqual(code("127.0.3.1"), 554)
        self.assertEqual(code("127.0.3.7"), 220)
        self.assertEqual(code("127.0.4.1"), 220)
        proxy.ctl("ban", "127.0.4.0/24", "1h")
        self.assertIn("127.0.4.0/24", proxy.ctl("show", "bans"))
        self.assertEqual(code("127.0.4.1"), 554)
        proxy.ctl("unban", "127.0.4.0/24")
        self.assertEqual(code("127.0.4.1"), 220)
