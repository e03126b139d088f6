"""slot = body: a slow body holds no slot, and what the client was told stays
true: all of it is delivered once, or nothing and 451."""

import os
import random
import signal
import smtplib
import threading
import time

import backend
import lib
import mail
import mta
import slots
import smtp
import weir
import world
from backend import script

KB = 1 << 10
MB = 1 << 20

# what weir may hold besides: 512 buffers of 4 KB and 64 of 16 KB for each of
# two workers, which are never given back to the system
LEAN = {"workers": 2, "small_buffers": 512, "big_buffers": 64}
BUFFERS = 6 * MB
SESSION = 16 * KB


def begin(client, message, rcpts=("u",)):
    """Everything up to the 354, one command at a time."""
    smtp.expect("MAIL", client.cmd(
        f"MAIL FROM:<{message.ident}@sender.test>"), 250)
    for rcpt in rcpts:
        smtp.expect("RCPT", client.cmd(f"RCPT TO:<{rcpt}@local.test>"), 250)
    smtp.expect("DATA", client.cmd("DATA"), 354)


def slowly(pieces, pause):
    """A way to send: the body in so many pieces, a pause behind each."""
    def way(client, message):
        begin(client, message)
        text = smtp.stuffed(message.data) + b".\r\n"
        size = len(text) // pieces + 1
        for at in range(0, len(text), size):
            client.send(text[at:at + size])
            time.sleep(pause)
        return smtp.expect("end", client.reply(), 250)
    return way


class Case(lib.Case):
    def weir_with(self, backends, listener=None, **sections):
        sections.setdefault("farm", {"linger": "0"})
        self.weir = self.start(weir.Weir(
            backends, listener=dict({"slot": "body", "body_wait": "100ms"},
                                    **(listener or {})), **sections)).up()
        return self.weir

    def client(self, name="client.test"):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        client.hello(name)
        return client

    def count(self, name):
        return self.weir.info()[name]

    def half(self, message, rcpts=("u",)):
        """A client that has sent half of its body, and lost its slot."""
        before = self.count("parked")
        client = self.client()
        begin(client, message, rcpts)
        text = smtp.stuffed(message.data) + b".\r\n"
        client.send(text[:len(text) // 2])
        client.left = text[len(text) // 2:]
        lib.wait_until(lambda: self.count("parked") > before,
                       "the slot is given back")
        return client

    def good(self, crowd):
        crowd.join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(crowd.acked), len(crowd.messages))


class Scripted(Case):
    def farm(self, *plays, listener=None, **sections):
        """Backends b0, b1, ...; each the better the lower its number."""
        self.backends = [self.start(backend.Backend()) for _ in plays]
        sections.setdefault("health", {"interval": "1h"})
        self.weir_with([(f"b{i}", b, {"weight": max(1, 1000 // 30 ** i)})
                        for i, b in enumerate(self.backends)], listener,
                       **sections)
        self.idle()
        for b, play in zip(self.backends, plays):
            b.play = play

    def idle(self):
        lib.wait_until(lambda: all(b.open == 0 for b in self.backends),
                       "no slot is held")

    def kept(self):
        return [x for b in self.backends for x in b.kept]

    def test_what_is_offered(self):
        self.farm(script())
        offered = self.client().keywords
        self.assertNotIn("CHUNKING", offered)
        self.assertNotIn("BINARYMIME", offered)
        self.assertIn("PIPELINING", offered)
        self.assertIn("8BITMIME", offered)

    def test_a_quick_body_keeps_its_slot(self):
        self.farm(script(), listener={"body_wait": "1m"})
        message = mail.Message("quick", 20 * KB)
        with self.client() as client:
            smtp.send_pipelined(client, message)
            client.quit()
        self.assertEqual(self.kept(), [message.data])
        self.assertEqual(self.count("parked"), 0)
        self.assertEqual(len(self.backends[0].mails()), 1)

    def test_a_slow_one_gives_it_back_and_is_sent_in_one_burst(self):
        self.farm(script())
        message = mail.Message("slow", 20 * KB)
        client = self.half(message, ("u", "v"))
        self.idle()
        self.assertEqual(self.kept(), [])
        client.send(client.left)
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.kept(), [message.data])
        first, second = self.backends[0].mails()
        self.assertNotIn("DATA", first.lines)
        self.assertEqual([line for line in second.lines
                          if line[:4] in ("MAIL", "RCPT", "DATA")],
                         ["MAIL FROM:<slow@sender.test>",
                          "RCPT TO:<u@local.test>",
                          "RCPT TO:<v@local.test>", "DATA"])
        self.assertEqual(self.count("replayed"), 1)
        lines = lib.wait_until(lambda: self.weir.log("event=message"),
                               "it is logged")
        self.assertEqual([x["code"] for x in lines], ["250"])

    def test_recipients_that_were_refused_are_not_said_again(self):
        def judge(peer):
            return ("550 5.1.1 no such user" if "<bad" in peer.lines[-1]
                    else "250 2.1.5 ok")
        self.farm(script(rcpt=judge))
        message = mail.Message("some", 4 * KB)
        client = self.client()
        smtp.expect("MAIL", client.cmd("MAIL FROM:<some@sender.test>"), 250)
        for rcpt, code in (("a", 250), ("bad", 550), ("b", 250)):
            self.assertEqual(client.cmd(f"RCPT TO:<{rcpt}@local.test>")[0],
                             code)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        lib.wait_until(lambda: self.count("parked"), "it is parked")
        client.send(smtp.stuffed(message.data) + b".\r\n")
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual([x for x in self.backends[0].mails()[1].lines
                          if x.startswith("RCPT")],
                         ["RCPT TO:<a@local.test>", "RCPT TO:<b@local.test>"])

    def worse_now(self, play, code=451):
        """Parked at one that takes all; then it is as `play` is."""
        self.farm(script())
        client = self.half(mail.Message("worse", 4 * KB), ("u", "v"))
        self.idle()
        self.backends[0].play = play
        client.send(client.left)
        answer, text = client.reply()
        self.assertEqual(answer, code, text)
        self.assertEqual(self.kept(), [])
        self.assertFalse(any(p.whole for p in self.backends[0].peers))
        # and the session lives on
        self.backends[0].play = script()
        again = mail.Message("again")
        smtp.send_plain(client, again)
        self.assertEqual(self.kept(), [again.data])

    def test_a_reply_that_is_worse_the_second_time(self):
        def second(peer):
            return ("450 4.2.1 not now" if "<v@" in peer.lines[-1]
                    else "250 2.1.5 ok")
        for why, play in {
                "MAIL 5xx": script(mail="550 5.7.1 no more"),
                "MAIL 4xx": script(mail="450 4.7.1 later"),
                "RCPT 4xx": script(rcpt=second),
                "RCPT 5xx": script(rcpt="550 5.1.1 gone"),
                "DATA 4xx": script(data="451 4.3.0 no"),
                "DATA 5xx": script(data="554 5.7.1 no"),
                "it ends at RCPT": script(rcpt=backend.CLOSE),
                "it ends at DATA": script(data=backend.RESET)}.items():
            with self.subTest(why):
                try:
                    self.worse_now(play)
                finally:
                    self.doCleanups()

    def test_the_final_reply_is_the_backends(self):
        self.farm(script())
        client = self.half(mail.Message("spam", 4 * KB))
        self.idle()
        self.backends[0].play = script(end="554 5.7.1 this is spam")
        client.send(client.left)
        self.assertEqual(client.reply(), (554, "5.7.1 this is spam"))
        self.assertEqual(self.kept(), [])

    def test_no_reply_to_the_end_is_never_tried_again(self):
        self.farm(script(end=backend.CLOSE), script())
        message = mail.Message("once", 4 * KB)
        client = self.client()
        begin(client, message)
        client.send(smtp.stuffed(message.data) + b".\r\n")
        code, text = client.reply()
        self.assertEqual((code, text[:5]), (451, "4.4.2"))
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.backends[1].mails(), [])

    def test_busy_at_the_end_is_tried_on_another_once(self):
        busy = script(end="452 4.3.1 insufficient system storage")
        self.farm(busy, script())
        message = mail.Message("moved", 4 * KB)
        client = self.client()
        begin(client, message)
        client.send(smtp.stuffed(message.data) + b".\r\n")
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.backends[1].kept, [message.data])
        self.assertEqual(self.count("final_retries"), 1)

    def test_busy_at_the_end_everywhere(self):
        busy = script(end="452 4.3.1 insufficient system storage")
        self.farm(busy, busy, busy)
        client = self.client()
        begin(client, mail.Message("nowhere", 4 * KB))
        client.send(smtp.stuffed(b"x\r\n") + b".\r\n")
        self.assertEqual(client.reply()[0] // 100, 4)
        self.assertLessEqual(sum(len(b.mails()) for b in self.backends), 2)
        self.assertEqual(self.kept(), [])

    def test_another_backend_may_get_it(self):
        self.farm(script(), script())
        message = mail.Message("elsewhere", 4 * KB)
        client = self.half(message)
        self.idle()
        self.weir.ctl("set", "backend", "b0", "maint")
        self.assertEqual(len(self.backends[0].mails()), 1)
        client.send(client.left)
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.backends[1].kept, [message.data])

    def test_the_client_goes_while_it_is_parked(self):
        self.farm(script())
        for leave in ("close", "reset", "half_close"):
            client = self.half(mail.Message("gone", 4 * KB))
            getattr(client, leave)()
        lib.wait_until(lambda: self.count("open") == 0, "all have left")
        self.idle()
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.count("messages_aborted"), 3)

    def test_larger_than_the_buffer_takes_its_slot_and_streams(self):
        self.farm(script(), listener={"body_buffer": "64K"})
        message = mail.Message("large", 300 * KB)
        text = smtp.stuffed(message.data) + b".\r\n"
        client = self.client()
        begin(client, message)
        client.send(text[:1000])
        lib.wait_until(lambda: self.count("parked") == 1, "it is parked")
        self.idle()
        client.send(text[1000:200 * KB])
        lib.wait_until(lambda: self.backends[0].open == 1,
                       "it has a slot again")
        client.send(text[200 * KB:])
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.kept(), [message.data])
        self.assertEqual(self.count("spilled"), 1)

    def test_a_drain_in_the_middle(self):
        self.farm(script())
        message = mail.Message("drained", 4 * KB)
        client = self.half(message)
        self.weir.child.send_signal(signal.SIGTERM)
        lib.wait_until(lambda: not lib.connects(self.weir.port),
                       "it listens no more")
        client.send(client.left)
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(client.reply()[0], 421)
        self.assertEqual(self.weir.child.wait(lib.PATIENCE), 0)
        self.assertEqual(self.kept(), [message.data])

    def test_a_full_farm_while_it_was_parked(self):
        """Its body is whole, and it waits for a slot as others do."""
        self.farm(script(), listener={"body_wait": "100ms"},
                  room={"wait": "1m"})
        self.weir.ctl("set", "backend", "b0", "max_sessions", "1")
        message = mail.Message("waits", 4 * KB)
        client = self.half(message)
        self.idle()
        other = self.client()
        smtp.envelope(other, message)  # it has the slot now
        client.send(client.left)
        lib.wait_until(lambda: self.weir.room()["waiting"] == 1, "it waits")
        self.assertEqual(other.cmd("RSET")[0], 250)
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.kept(), [message.data])

    def test_memory_is_bounded_and_nobody_is_refused_for_it(self):
        """Where it is full, bodies stream in their slots."""
        self.farm(script(), weir=dict(LEAN, body_memory="1M"),
                  listener={"body_buffer": "256K"})
        before = self.weir.rss()
        crowd = smtp.Crowd(
            self.weir.port, [mail.Message(f"mem{i}", 100 * KB)
                             for i in range(120)], 40, slowly(5, 0.1))
        crowd.start()
        most = 0
        while any(thread.is_alive() for thread in crowd.threads):
            most = max(most, self.weir.rss() - before)
            time.sleep(0.05)
        self.good(crowd)
        self.assertEqual(sorted(mail.digest(x) for x in self.kept()),
                         sorted(mail.digest(m.data) for m in crowd.messages))
        self.assertGreater(self.count("spilled"), 0)
        self.assertLess(most, 1 * MB + BUFFERS + 40 * SESSION)
        print(f"      {most / MB:.1f} MB at most")


@lib.needs_root
class RealServers(Case):
    def behind(self, *servers, each=3, **more):
        for server in servers:
            self.start(server)
        return self.weir_with([(s.name, s, {"max_sessions": each})
                               for s in servers], **more)

    def delivered(self, servers, messages, acked):
        for server in servers:
            server.settle()
        mail.compare(self, messages, acked, mail.tally(*servers))

    def all_three(self):
        return mta.Postfix(), mta.Exim(), mta.OpenSmtpd()

    def test_slow_and_quick_senders_through_few_slots(self):
        servers = self.all_three()
        self.behind(*servers, listener={"body_buffer": "64K"})
        rand = random.Random(5)
        sizes = [int(60 * KB * rand.random() ** 3) for _ in range(120)]
        slow = smtp.Crowd(self.weir.port, [
            mail.Message(f"slow{i}", size, eightbit=i % 2 == 0)
            for i, size in enumerate(sizes)], 60, slowly(8, 0.3), kept=1)
        quick = smtp.Crowd(self.weir.port, [
            mail.Message(f"quick{i}", 3000) for i in range(300)], 4)
        slow.start()
        lib.wait_until(lambda: self.count("parked") >= 30, "they are parked")
        # sixty slow bodies are under way, and no more than nine slots
        self.assertLessEqual(sum(slots.held(*(s.port for s in servers))),
                             3 * 3 + 3)  # and a probe of each
        quick.start()
        self.good(quick)
        self.good(slow)
        self.assertGreater(self.count("replayed"), 60)
        self.delivered(servers, slow.messages + quick.messages,
                       slow.acked + quick.acked)

    def test_large_bodies_stream(self):
        servers = self.all_three()
        self.behind(*servers)
        before = self.weir.rss()
        crowd = smtp.Crowd(self.weir.port, [
            mail.Message(f"large{i}", size) for i, size in
            enumerate([20 * MB] * 3 + [5 * MB] * 4 + [300 * KB] * 10)], 4,
            kept=2).start()
        self.good(crowd)
        self.assertEqual(self.count("spilled"), 17)
        self.assertLess(self.weir.rss() - before, 16 * MB)
        self.delivered(servers, crowd.messages, crowd.acked)

    def test_the_server_is_killed_between_park_and_replay(self):
        for server in self.all_three():
            with self.subTest(server.name):
                try:
                    self.behind(server)
                    message = mail.Message("survivor", 4 * KB)
                    client = self.half(message)
                    server.kill()
                    server.start()
                    self.weir.up()
                    client.send(client.left)
                    self.assertEqual(client.reply()[0], 250)
                    self.delivered([server], [message], [message.ident])
                finally:
                    self.doCleanups()

    def test_another_server_takes_over_from_one_that_is_dead(self):
        servers = mta.Postfix(), mta.Exim()
        self.behind(*servers)
        messages = [mail.Message(f"heir{i}", 4 * KB) for i in range(8)]
        clients = [self.half(message) for message in messages]
        servers[0].kill()
        for client in clients:
            client.send(client.left)
        for client in clients:
            self.assertEqual(client.reply()[0], 250)
        servers[0].start()
        self.delivered(servers, messages, [m.ident for m in messages])

    def test_a_recipient_is_refused_now(self):
        """Restarted with other rules: half of what the client was told is no
        longer true, so nothing of it happens."""
        for server in self.all_three():
            with self.subTest(server.name):
                try:
                    self.behind(server)
                    message = mail.Message("changed", 4 * KB)
                    client = self.half(message, ("u", "v"))
                    server.kill()
                    server.settings["refused"] = "v"
                    server.start()
                    self.weir.up()
                    client.send(client.left)
                    code, text = client.reply()
                    self.assertEqual((code, text[:5]), (451, "4.3.0"))
                    # the one it still takes is delivered when asked for
                    again = mail.Message("again", 4 * KB)
                    smtp.send_plain(client, again)
                    self.delivered([server], [message, again],
                                   [again.ident])
                    self.assertNotIn(message.ident, mail.tally(server))
                finally:
                    self.doCleanups()

    def test_clients_that_other_people_wrote(self):
        servers = self.all_three()
        self.behind(*servers, listener={"body_wait": "10ms"})
        folder = os.path.join(world.work(), "body")
        os.makedirs(folder, exist_ok=True)
        sent = []
        for i, size in enumerate((0, 500, 30 * KB, 200 * KB, MB)):
            message = mail.Message(f"smtplib{i}", size)
            with smtplib.SMTP("127.0.0.1", self.weir.port, "client.test",
                              timeout=lib.PATIENCE) as s:
                s.sendmail(message.ident + "@sender.test", ["u@local.test"],
                           message.data)
            sent.append(message)
            message = mail.Message(f"swaks{i}", max(size, 300))
            path = os.path.join(folder, message.ident)
            with open(path, "wb") as file:
                file.write(message.data.replace(b"\r\n", b"\n")[:-1])
            done = self.command(
                "swaks", "--silent", "2", "-s", "127.0.0.1", "-p",
                str(self.weir.port), "-h", "client.test", "-f",
                message.ident + "@sender.test", "-t", "u@local.test",
                "--data", "@" + path, *(["--pipeline"] if i % 2 else []))
            self.assertEqual(done.returncode, 0, done.stdout)
            sent.append(message)
            message = mail.Message(f"curl{i}", max(size, 300))
            with open(path, "wb") as file:
                file.write(message.data)
            done = self.command(
                "curl", "-sS", "--limit-rate", "400K",
                f"smtp://127.0.0.1:{self.weir.port}/client.test",
                "--mail-from", message.ident + "@sender.test",
                "--mail-rcpt", "u@local.test", "--upload-file", path)
            self.assertEqual(done.returncode, 0, done.stdout)
            sent.append(message)
        self.delivered(servers, sent, [m.ident for m in sent])

    def test_two_hundred_dribble_and_memory_stays_within_bounds(self):
        servers = self.all_three()
        self.behind(*servers, weir=dict(LEAN, body_memory="4M"),
                    room={"wait": "1m"})
        before = self.weir.rss()
        most, halt = [0], threading.Event()

        def watch():
            while not halt.wait(0.1):
                most[0] = max(most[0], self.weir.rss() - before)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        crowd = smtp.Crowd(
            self.weir.port, [mail.Message(f"dribble{i}", 20 * KB)
                             for i in range(400)], 200, slowly(10, 0.3),
            kept=1, sources=[f"127.0.1.{i}" for i in range(1, 41)])
        crowd.start()
        self.good(crowd)
        halt.set()
        watcher.join()
        self.assertLess(most[0], 4 * MB + BUFFERS + 200 * SESSION)
        print(f"      {most[0] / MB:.1f} MB at most, "
              f"{self.count('parked')} parked")
        self.delivered(servers, crowd.messages, crowd.acked)
