"""Thousands who say EHLO and then nothing."""

import unittest

import backend
import lib
import mail
import smtp
import swarm
import weir

IDLE = 9000
PER_SESSION = 4096  # octets of weir's own memory


class Idle(lib.Case):
    def test_nine_thousand_idle_clients(self):
        if weir.sanitized():
            raise unittest.SkipTest("a sanitizer's memory is not weir's")
        server = self.start(backend.Backend())
        proxy = self.start(weir.Weir(
            [("a", server, {"max_sessions": 20})],
            admission={"max_sessions": 10_000, "stress_high": "0%",
                       "stress_low": "0%"},
            farm={"linger": "0"}, health={"interval": "1h"})).up()

        def mail_flows(prefix):
            crowd = smtp.Crowd(proxy.port, [
                mail.Message(f"{prefix}-{i}", 4000) for i in range(200)], 8)
            crowd.start().join()
            self.assertEqual(len(crowd.acked), 200,
                             crowd.refused + crowd.broken)
        before = proxy.rss()  # nobody was there yet but the probe

        crowd = self.start(swarm.Swarm(proxy.port, swarm.sources(500),
                                       IDLE // 500))
        crowd.pump(lambda: crowd.count(lambda x: x.lines >= 1) == IDLE,
                   "all are greeted")
        crowd.say(b"EHLO client.test\r\n", lambda x: True)
        crowd.pump(lambda: crowd.count(
            lambda x: b"\r\n250 " in x.said) == IDLE, "EHLO is answered")
        self.assertEqual(crowd.count(lambda x: x.ended), 0)
        growth = proxy.rss() - before
        self.assertLessEqual(growth / IDLE, PER_SESSION)
        print(f"      {growth / IDLE:.0f} octets an idle session")
        self.assertEqual(server.open, 0, "no backend slot is held")

        mail_flows("among")
        crowd.say(b"QUIT\r\n", lambda x: True)
        crowd.pump(lambda: crowd.count(lambda x: x.ended == "fin") == IDLE,
                   "all have left")
        lib.wait_until(lambda: proxy.info()["open"] == 0,
                       "nothing is left")
        self.assertEqual(len(server.kept), 200)
