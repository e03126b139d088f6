"""Descriptors run out: operators and those who are in need not care."""

import resource

import backend
import lib
import mail
import smtp
import weir

LIMIT = 256


def few():
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


class Descriptors(lib.Case):
    def test_an_operator_gets_through_when_clients_have_them_all(self):
        fake = self.start(backend.Backend())
        proxy = self.start(weir.Weir([("a", fake, {})], preexec=few)).up()
        first = smtp.Client(proxy.port)
        self.addCleanup(first.close)
        first.hello()
        crowd = []

        def answer(client):
            try:
                return client.reply()[0]
            except smtp.Gone:
                return None
        for _ in range(LIMIT + 50):
            crowd.append(smtp.Client(proxy.port))
            self.addCleanup(crowd[-1].close)
        answers = [answer(client) for client in crowd]
        self.assertEqual(set(answers), {220, None})

        # nobody leaves, and an operator is answered all the same
        info = proxy.info()
        self.assertEqual(info["sessions_now"], answers.count(220) + 1)
        self.assertLess(proxy.descriptors(), LIMIT - 40)
        lib.wait_until(lambda: len(proxy.log("limit=connections"))
                       == answers.count(None), "a line for each turned away")

        # some go: there is room for others, and for a backend
        for client in crowd[:100]:
            client.close()
        lib.wait_until(lambda: proxy.info()["sessions_now"] < 100,
                       "their sessions are over")
        smtp.send_plain(first, mail.Message("after"))
