"""Learned limits, the room, held bodies and kept connections at once, with
real servers that are killed and clients that leave: what was acknowledged is
stored once and unharmed."""

import random
import signal
import threading
import time

import lib
import mail
import mta
import slots
import smtp
import weir

SOURCES = [f"127.0.1.{i}" for i in range(1, 15)]
LISTENER = {"slot": "body", "body_wait": "200ms", "body_buffer": "32K"}


def slowly(rand):
    """A way to send: a body in pieces, with pauses."""
    def way(client, message):
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        text = smtp.stuffed(message.data) + b".\r\n"
        size = len(text) // rand.randint(2, 6) + 1
        for at in range(0, len(text), size):
            client.send(text[at:at + size])
            time.sleep(rand.uniform(0, 0.4))
        return smtp.expect("end", client.reply(), 250)
    return way


def leaves(rand):
    """One that leaves somewhere, and has sent no message's end."""
    def way(client, message):
        stage = rand.randrange(4)
        client.send(f"MAIL FROM:<{message.ident}@sender.test>\r\n".encode())
        if stage > 0:
            client.reply()
        if stage > 1:
            client.cmd("RCPT TO:<u@local.test>")
            smtp.expect("DATA", client.cmd("DATA"), 354)
            text = smtp.stuffed(message.data)
            client.send(text[:rand.randrange(len(text))])
        time.sleep(rand.uniform(0, 0.3))
        if stage % 2:
            client.reset()
        else:
            client.close()
        raise smtp.Gone("left")
    return way


@lib.needs_root
class Together(lib.Case):
    def farm(self):
        self.servers = (mta.Postfix(process_limit=20, per_client=15),
                        mta.Exim(accept_max=10, per_connection=20),
                        mta.OpenSmtpd(descriptors=32))
        for server in self.servers:
            self.start(server)

    def proxy(self, **more):
        return self.start(weir.Weir(
            [(s.name, s, {"max_sessions": "auto", "reuse": "on",
                          "identity": "header"}) for s in self.servers],
            listener=LISTENER, room={"per_source": 10}, **more)).up()

    def crowds(self, proxy, prefix, leavers=6):
        """Slow ones, quick ones, and some that leave."""
        rand = random.Random(prefix)

        def crowd(name, count, threads, way, kept=1):
            return smtp.Crowd(proxy.port, [
                mail.Message(f"{prefix}-{name}-{i}",
                             int(60_000 * rand.random() ** 4),
                             eightbit=i % 3 == 0) for i in range(count)],
                threads, way, kept, sources=SOURCES).start()
        self.mailing = [crowd("slow", 4000, 40, slowly(rand)),
                        crowd("plain", 20000, 10, "plain", 2),
                        crowd("piped", 20000, 10, "pipelined")]
        self.leaving = [crowd("left", 4000, leavers, leaves(rand))]

    def flows(self, count, what):
        acked = [len(crowd.acked) for crowd in self.mailing]
        lib.wait_until(lambda: all(
            len(crowd.acked) >= before + count
            for crowd, before in zip(self.mailing, acked)), what)

    def stop_all(self):
        for crowd in self.mailing + self.leaving:
            crowd.stop()
        for crowd in self.mailing + self.leaving:
            crowd.join()
        for server in self.servers:
            server.settle()
        mail.compare(self, [m for c in self.mailing + self.leaving
                            for m in c.messages],
                     [i for c in self.mailing for i in c.acked],
                     mail.tally(*self.servers))
        left = [i for c in self.leaving for i in c.acked]
        self.assertEqual(left, [])

    def failed(self):
        return [x for c in self.mailing for x in c.refused + c.broken]

    def nothing_is_left(self, proxy):
        lib.wait_until(lambda: proxy.info()["open"] == 0, "all have left")
        self.assertEqual(proxy.room()["waiting"], 0)
        lib.wait_until(lambda: sum(slots.held(
            *(s.port for s in self.servers))) == 0, "no slot is held")

    def test_nobody_notices_anything(self):
        self.farm()
        proxy = self.proxy()
        self.crowds(proxy, "calm")
        self.flows(100, "mail flows")
        self.stop_all()
        self.assertEqual(self.failed(), [])
        self.nothing_is_left(proxy)

    def test_servers_killed_and_a_reload(self):
        self.farm()
        proxy = self.proxy()
        self.crowds(proxy, "killed")
        for server in self.servers:
            self.flows(30, "mail flows")
            server.kill()
            self.flows(10, f"mail flows without {server.name}")
            server.start()
            proxy.up()
            proxy.child.send_signal(signal.SIGHUP)
        self.flows(30, "mail flows")
        self.stop_all()
        # what was under way at a killed server, no more than it has slots
        failed = self.failed()
        self.assertLessEqual(len(failed), 15 + 10 + 10, failed)
        for crowd in self.mailing:
            for _, stage, code, text in crowd.refused:
                self.assertIn(code, (421, 451), (stage, text))
        self.nothing_is_left(proxy)

    def test_two_of_us_before_one_farm(self):
        self.farm()
        first, second = self.proxy(), self.proxy()
        self.crowds(first, "first")
        mailing, leaving = self.mailing, self.leaving
        self.crowds(second, "second")
        self.mailing, self.leaving = (self.mailing + mailing,
                                      self.leaving + leaving)
        self.flows(50, "mail flows through both")
        self.stop_all()
        self.assertEqual(self.failed(), [])
        self.nothing_is_left(first)
        self.nothing_is_left(second)

    def test_sigterm_in_the_middle(self):
        self.farm()
        for turn in range(2):
            proxy = self.proxy()
            self.crowds(proxy, f"term{turn}")
            self.flows(20, "mail flows")
            stopper = threading.Timer(0.5, lambda: [
                c.stop() for c in self.mailing + self.leaving])
            stopper.start()
            proxy.stop()
            stopper.join()
            for crowd in self.mailing + self.leaving:
                crowd.stop()
                crowd.join()
            for crowd in self.mailing:
                for _, stage, code, text in crowd.refused:
                    self.assertIn((code, text[:5]), ((421, "4.3.2"),
                                                     (451, "4.3.2")), stage)
            for server in self.servers:
                server.settle()
            stored = mail.tally(*self.servers)
            mine = {m.ident for c in self.mailing + self.leaving
                    for m in c.messages}
            mail.compare(self, [m for c in self.mailing + self.leaving
                                for m in c.messages],
                         [i for c in self.mailing for i in c.acked],
                         {i: s for i, s in stored.items() if i in mine})
