"""What backends do wrong (rows B of the fault catalogue), with scripted
backends: who was tried, what the client read, who has the message."""

import threading
import time

import backend
import lib
import mail
import smtp
import weir
from backend import CLOSE, RESET, SILENT, script

SHORT = {"backend_connect": "1s", "backend_greeting": "1s",
         "backend_helo": "1s", "backend_mail": "1s", "backend_rcpt": "1s",
         "backend_data": "1s", "backend_final": "1s", "backend_send": "1s"}


class Case(lib.Case):
    """Two backends: `a`, which weir likes much better, goes bad once it has
    been found well; `b` is good."""

    def farm(self, play, timeouts=None, listener=None, **sections):
        self.a = backend.Backend()
        self.b = backend.Backend()
        self.start(self.a)
        self.start(self.b)
        self.weir = self.start(weir.Weir(
            [("a", self.a, {"weight": 1000}), ("b", self.b, {"weight": 1})],
            timeouts=dict(SHORT, **(timeouts or {})), listener=listener,
            farm=sections.pop("farm", {"linger": "0"}),
            health={"interval": "1h"}, **sections)).up()
        lib.wait_until(lambda: self.a.open + self.b.open == 0,
                       "the probes are over")
        self.a.play = play
        self.probes = (len(self.a.peers), len(self.b.peers))

    def client(self):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        client.hello()
        return client

    def tried(self, which):
        return len(which.peers) - self.probes[0 if which is self.a else 1]

    def no_slot_held(self):
        lib.wait_until(lambda: self.a.open + self.b.open == 0,
                       "the slots are given back")

    def table(self, cases, check, **keys):
        for why, play in cases.items():
            with self.subTest(why):
                try:
                    self.farm(play, **keys)
                    check(why)
                finally:
                    self.doCleanups()


class BeforeMail(Case):
    """B1 to B4, B11, B12: the client never notices."""

    def hidden(self, why):
        message = mail.Message("hidden")
        client = self.client()
        smtp.send_plain(client, message)
        self.assertEqual(client.quit()[0], 221)
        self.assertEqual(self.b.kept, [message.data], why)
        self.assertEqual(self.a.kept, [], why)
        self.assertEqual(self.tried(self.a), 1, "a was tried, once")
        self.assertEqual(self.tried(self.b), 1)
        self.no_slot_held()

    def test_no_greeting(self):
        def drip(peer):
            while True:
                peer.send(b"2")
                time.sleep(0.2)

        def drip_lines(peer):
            while True:
                peer.send("220-still there")
                time.sleep(0.2)
        self.table({
            "silent": script(greeting=SILENT),
            "end of stream": script(greeting=CLOSE),
            "reset": script(greeting=RESET),
            "half a line and the end": script(greeting=[b"220 fa", CLOSE]),
            "one octet at a time, without end": drip,
            "line after line, without end": drip_lines,
        }, self.hidden)

    def test_busy_or_broken_greeting(self):
        self.table({text: script(greeting=[text, CLOSE]) for text in (
            "421 4.3.2 too busy",
            "421 Too many concurrent SMTP connections; "
            "please try again later.",
            "421 4.7.0 mx Error: too many connections from 127.0.0.1",
            "421 4.3.2 All server ports are busy",
            "450 Busy",
            "453 Too Busy",
            "421 4.3.2 The maximum number of concurrent connections has "
            "exceeded a limit, closing transmission channel",
            "421-two lines\r\n421 of it",
            "554 5.7.1 go away",
        )}, self.hidden)

    def test_greetings_that_are_not_smtp(self):
        self.table({
            "codes that change": script(greeting="220-a\r\n250 b"),
            "a bare LF": script(greeting=b"220 hello\n"),
            "NUL": script(greeting=b"220 a\0b\r\n"),
            "no digits": script(greeting="hello world"),
            "a code of two digits": script(greeting="22 hello"),
            "a letter behind the code": script(greeting="220x hello"),
            "a line of 70000 octets": script(
                greeting="220 " + "x" * 70_000),
            "100000 lines": script(greeting="220-x\r\n" * 100_000 + "220 x"),
            "another protocol": script(greeting="SSH-2.0-OpenSSH_9.2"),
        }, self.hidden)

    def test_ehlo_goes_wrong(self):
        self.table({
            "silent": script(ehlo=SILENT),
            "end of stream": script(ehlo=CLOSE),
            "reset": script(ehlo=RESET),
            "busy": script(ehlo="421 4.3.2 too busy"),
            "not SMTP": script(ehlo="250-a\r\n251 b"),
            "100000 lines": script(ehlo="250-X\r\n" * 100_000 + "250 X"),
        }, self.hidden)

    def test_mail_goes_wrong(self):
        self.table({
            "silent": script(mail=SILENT),
            "end of stream": script(mail=CLOSE),
            "reset": script(mail=RESET),
            "disk full": script(mail="452 4.3.1 Insufficient system "
                                     "storage"),
            "busy": script(mail="451 4.3.2 Too busy, try again later"),
            "load": script(mail="421 Too much load; please try again "
                                "later."),
            "shutting down": script(mail=[
                "421 4.3.2 Service shutting down", CLOSE]),
        }, self.hidden)

    def test_strange_but_legal_greetings_are_no_reason(self):
        def taken(why):
            message = mail.Message("legal")
            smtp.send_plain(self.client(), message)
            self.assertEqual(self.a.kept, [message.data], why)
            self.assertEqual(self.tried(self.b), 0)

        def dribbled(peer):
            for octet in b"220-one\r\n220 two\r\n":
                peer.send(bytes([octet]))
                time.sleep(0.005)
            script(greeting="")(peer)
        self.table({
            "no text": script(greeting="220"),
            "a blank and no text": script(greeting="220 "),
            "many lines": script(greeting="220-x\r\n" * 50 + "220 x"),
            "octet by octet": dribbled,
            "a line of 500 octets": script(greeting="220 " + "x" * 500),
        }, taken)

    def test_connect_refused(self):
        self.farm(script())
        self.a.stop()
        message = mail.Message("refused")
        smtp.send_plain(self.client(), message)
        self.assertEqual(self.b.kept, [message.data])

    def test_a_busy_reply_nobody_can_hide_keeps_the_session(self):
        self.farm(script(greeting=["421 4.3.2 too busy", CLOSE]),
                  room={"wait": "1s"})
        self.b.play = self.a.play
        client = self.client()
        code, text = client.cmd("MAIL FROM:<x@sender.test>")
        self.assertEqual((code, text[:5]), (451, "4.3.2"))
        self.a.play = script()

        def again():
            return client.cmd("MAIL FROM:<x@sender.test>")[0] == 250
        lib.wait_until(again, "a takes mail again")
        self.assertEqual(client.cmd("RCPT TO:<u@local.test>")[0], 250)

    def test_tries_are_bounded(self):
        """A fault is tried elsewhere so often; a slot that is refused is
        none."""
        self.farm(script(greeting="SSH-2.0-OpenSSH_9.2"),
                  farm={"tries": 1, "linger": "0"})
        code, _ = self.client().cmd("MAIL FROM:<x@sender.test>")
        self.assertEqual(code, 451)
        self.assertEqual((self.tried(self.a), self.tried(self.b)), (1, 0))


class Verdicts(Case):
    """Promise 7: what a backend says about the message or the client is
    passed on word for word, and nobody else is asked."""

    REPLIES = ("550 5.7.1 <x@sender.test>: Sender address rejected",
               "451 4.7.1 Greylisting in action, please come back later",
               "450-4.1.8 first line\r\n450 4.1.8 Domain not found",
               "553 sorry", "552 5.3.4 Message too big",
               "250 2.1.0 ok, whatever this is \u2713")

    def exactly(self, text):
        want = "\n".join(line[4:] for line in text.split("\r\n"))
        return int(text[:3]), want

    def test_at_mail(self):
        for text in self.REPLIES:
            with self.subTest(text):
                self.farm(script(mail=text))
                got = self.client().cmd("MAIL FROM:<x@sender.test>")
                self.assertEqual(got, self.exactly(text))
                self.assertEqual(self.tried(self.b), 0)
                self.doCleanups()

    def test_at_rcpt_data_and_end(self):
        for stage, verb in (("rcpt", "RCPT"), ("data", "DATA"),
                            ("end", "end")):
            for text in self.REPLIES[:5]:
                with self.subTest(stage=stage, text=text):
                    self.farm(script(**{stage: text}))
                    client = self.client()
                    with self.assertRaises(smtp.Refused) as caught:
                        smtp.send_plain(client, mail.Message("verdict"))
                    self.assertEqual(caught.exception.stage, verb)
                    self.assertEqual(
                        (caught.exception.code, caught.exception.text),
                        self.exactly(text))
                    self.assertEqual(client.cmd("RSET")[0], 250)
                    self.assertEqual(client.quit()[0], 221)
                    self.assertEqual(self.tried(self.b), 0)
                    self.doCleanups()

    def test_one_of_several_recipients(self):
        answers = iter(["250 2.1.5 ok", "550 5.1.1 no such user",
                        "452 4.5.3 too many", "250 2.1.5 ok"])
        self.farm(script(rcpt=lambda peer: next(answers)))
        client = self.client()
        message = mail.Message("some")
        client.send(b"MAIL FROM:<x@sender.test>\r\n" + b"".join(
            b"RCPT TO:<u%d@local.test>\r\n" % i for i in range(4)) +
            b"DATA\r\n")
        self.assertEqual([client.reply()[0] for _ in range(6)],
                         [250, 250, 550, 452, 250, 354])
        client.send(smtp.stuffed(message.data) + b".\r\n")
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.a.kept, [message.data])

    def test_an_operators_rule_decides(self):
        self.a = self.start(backend.Backend())
        self.b = self.start(backend.Backend())
        self.weir = self.start(weir.Weir(
            [("a", self.a, {"weight": 1000, "busy_rule":
                            "MAIL 450 4.2.1 kettle boils => busy"}),
             ("b", self.b, {"weight": 1})],
            health={"interval": "1h"})).up()
        self.a.play = script(mail="450 4.2.1 the kettle boils over")
        message = mail.Message("rule")
        smtp.send_plain(self.client(), message)
        self.assertEqual(self.b.kept, [message.data])


class AfterMail(Case):
    """B5 to B10: nothing is tried twice, no 250 that a backend did not
    say."""

    def fails(self, why, code=None):
        """The message fails with a 4xx or a lost connection; nobody else
        gets it; the next one passes."""
        message = mail.Message("fails")
        client = self.client()
        try:
            smtp.send_plain(client, message)
            self.fail(f"acknowledged: {why}")
        except smtp.Refused as error:
            self.assertIn(error.code, (code,) if code else
                          (421, 451, 452, 554), why)
        except smtp.Gone:
            pass
        self.assertEqual(self.tried(self.b), 0, why)
        self.assertEqual(self.b.kept, [])
        self.a.play = script()
        again = mail.Message("next")

        def passes():
            try:
                smtp.send_plain(self.client(), again)
            except smtp.Refused as error:
                self.assertEqual(error.code // 100, 4)
                return False
            return True
        lib.wait_until(passes, "the next message passes")
        self.assertIn(again.data, self.a.kept + self.b.kept)
        self.no_slot_held()

    def test_dies_at_rcpt(self):
        self.table({"end of stream": script(rcpt=CLOSE),
                    "reset": script(rcpt=RESET),
                    "silent": script(rcpt=SILENT),
                    "not SMTP": script(rcpt="250-a\r\n354 b"),
                    "421": script(rcpt=["421 4.3.0 going down", CLOSE])},
                   self.fails)

    def test_dies_between_commands(self):
        self.table({"end of stream": script(after_mail=CLOSE),
                    "reset": script(after_mail=RESET),
                    "421": script(after_mail=["421 4.3.2 bye", CLOSE]),
                    "421, and it stays": script(after_mail="421 4.3.2 bye"),
                    "a reply too many": script(after_mail="250 2.0.0 ok")},
                   self.fails)

    def test_dies_at_data(self):
        self.table({"end of stream": script(data=CLOSE),
                    "reset": script(data=RESET),
                    "silent": script(data=SILENT),
                    "421": script(data=["421 4.3.0 going down", CLOSE])},
                   self.fails)

    def test_dies_in_the_body(self):
        def dies_in_body(how):
            def play(peer):
                peer.send("354 go on")
                peer.fill()
                return how
            return script(data=play)
        for how in (CLOSE, RESET):
            with self.subTest(how=how):
                self.farm(dies_in_body(how))
                client = self.client()
                message = mail.Message("body", 2 << 20)
                with self.assertRaises((smtp.Refused, smtp.Gone)) as caught:
                    smtp.send_plain(client, message)
                if isinstance(caught.exception, smtp.Refused):
                    self.assertIn(caught.exception.code, (421, 451))
                self.assertEqual(self.tried(self.b), 0)
                self.doCleanups()

    def test_dies_in_a_chunk(self):
        good = script()

        def play(peer):
            line = peer.line

            def until_bdat():
                text = line()
                if text.upper().startswith("BDAT"):
                    raise EOFError
                return text
            peer.line = until_bdat
            good(peer)
        self.farm(play)
        client = self.client()
        with self.assertRaises((smtp.Refused, smtp.Gone)):
            smtp.send_bdat(client, mail.Message("chunk", 1 << 20), 65536)
        self.assertEqual(self.tried(self.b), 0)

    def test_dies_after_the_end_of_data(self):
        self.table({"end of stream": script(end=CLOSE),
                    "reset": script(end=RESET),
                    "silent": script(end=SILENT),
                    "half a reply": script(end=[b"250 2.0", CLOSE]),
                    "the first of two lines": script(
                        end=[b"250-2.0.0 stored\r\n", CLOSE]),
                    "not SMTP": script(end="250-a\r\n451 b")},
                   self.fails)

    def test_a_reply_before_the_data_ends(self):
        for text in ("452 4.3.1 disk full", "552 5.2.2 quota",
                     "250 2.0.0 stored", "354 again"):
            with self.subTest(text):
                # in one piece: sent later, it might come behind the end
                self.farm(script(data="354 go on\r\n" + text))
                client = self.client()
                with self.assertRaises((smtp.Refused, smtp.Gone)) as caught:
                    smtp.send_plain(client, mail.Message("early", 1 << 20))
                if isinstance(caught.exception, smtp.Refused):
                    self.assertIn(caught.exception.code, (421, 451, 452, 552))
                    # in step: one command, one reply
                    if caught.exception.code != 421:
                        self.assertEqual(client.cmd("VRFY x")[0], 252)
                        self.assertEqual(client.quit()[0], 221)
                self.assertEqual(self.tried(self.b), 0)
                self.doCleanups()

    def test_a_reply_too_many_never_becomes_an_acknowledgement(self):
        for stage, text in (("mail", "250 ok\r\n250 ok"),
                            ("rcpt", "250 ok\r\n250 ok"),
                            ("rcpt", "250 ok\r\n354 go\r\n250 stored"),
                            ("data", "354 go\r\n250 stored")):
            with self.subTest(stage=stage, text=text):
                self.farm(script(**{stage: text}))
                client = self.client()
                message = mail.Message("shifted")
                try:
                    smtp.send_pipelined(client, message)
                    acked = [message.data]
                except (smtp.Refused, smtp.Gone):
                    acked = []
                kept = self.a.kept + self.b.kept
                self.assertLessEqual(len(acked), len(kept))
                self.assertLessEqual(len(kept), 1)
                self.doCleanups()

    def test_the_client_is_gone_when_the_250_comes(self):
        release = threading.Event()
        self.farm(script(end=backend.Wait(release, "250 2.0.0 stored")),
                  timeouts={"backend_final": "1m"})
        client = self.client()
        message = mail.Message("unread")
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(smtp.stuffed(message.data) + b".\r\n")
        lib.wait_until(lambda: any(p.whole for p in self.a.peers),
                       "the backend has it all")
        client.reset()
        release.set()
        lib.wait_until(lambda: self.a.kept, "it is stored")
        self.no_slot_held()
        self.assertEqual(self.a.kept, [message.data])
        self.assertEqual(self.tried(self.b), 0)
        lib.wait_until(lambda: self.weir.info()["open"] == 0,
                       "the session is over")

    def test_a_later_mail_of_a_session_may_go_elsewhere(self):
        self.farm(script(), farm={"linger": "1m"})
        client = self.client()
        first, second = mail.Message("first"), mail.Message("second")
        smtp.send_plain(client, first)
        peer = self.a.mails()[-1]
        self.a.play = script(greeting=CLOSE)
        peer.reset()
        smtp.send_plain(client, second)
        self.assertEqual(self.a.kept, [first.data])
        self.assertEqual(self.b.kept, [second.data])


class Flow(Case):
    """B14: a hundred megabytes in constant memory."""

    def test_slow_backend_holds_the_client_back(self):
        release = threading.Event()

        self.farm(self.reader(release),
                  timeouts={"backend_send": "2m", "backend_final": "2m",
                            "data": "2m"})
        message = mail.Message("large", 100 << 20)
        before = self.weir.rss()
        most = [0]
        crowd = smtp.Crowd(self.weir.port, [message], 1).start()
        lib.wait_until(lambda: self.a.mails(), "the message has begun")
        still = [0, 0]

        def stalled():
            most[0] = max(most[0], self.weir.rss())
            octets = self.weir.info().get("octets_in", 0)
            still[0] = still[0] + 1 if octets == still[1] else 0
            still[1] = octets
            return still[0] > 10
        lib.wait_until(stalled, "weir reads no more", step=0.05)
        self.assertLess(still[1], 32 << 20, "most of it is still outside")
        release.set()
        while any(t.is_alive() for t in crowd.threads):
            most[0] = max(most[0], self.weir.rss())
            time.sleep(0.05)
        self.assertEqual(crowd.acked, ["large"],
                         crowd.refused + crowd.broken)
        self.assertEqual(mail.digest(self.a.kept[0]),
                         mail.digest(message.data))
        self.assertLess(most[0] - before, 8 << 20)

    @staticmethod
    def reader(release):
        """A backend that reads the body only when it is let."""
        good = script()

        def play(peer):
            data = peer.data

            def later():
                release.wait(120)
                data()
            peer.data = later
            good(peer)
        return play


class Farm(Case):
    """B15, B17: what is offered, and who is in the farm."""

    def test_only_what_all_offer_is_offered(self):
        a = self.start(backend.Backend(script(keywords=(
            "SIZE 5000000", "8BITMIME", "CHUNKING", "XCLIENT NAME ADDR",
            "PIPECONNECT", "X-OWN", "ETRN"))))
        b = self.start(backend.Backend(script(keywords=(
            "PIPELINING", "SIZE 9000000", "8BITMIME", "SMTPUTF8", "DSN"))))
        self.weir = self.start(weir.Weir([("a", a, {}), ("b", b, {})])).up()
        offered = self.client().keywords
        self.assertEqual(offered.pop("SIZE"), "5000000")
        self.assertEqual(sorted(offered), ["8BITMIME", "ENHANCEDSTATUSCODES",
                                           "PIPELINING"])

    def test_all_down_and_back(self):
        self.a = self.start(backend.Backend())
        self.weir = self.start(weir.Weir(
            [("a", self.a, {})], timeouts=SHORT, room={"wait": "1s"},
            farm={"linger": "0", "unavailable_after": "1s"},
            health={"interval": "200ms", "down_interval": "200ms",
                    "timeout": "1s", "rise": 1, "eject": "200ms",
                    "eject_max": "400ms"})).up()
        self.a.stop()
        client = self.client()
        self.assertEqual(client.cmd("MAIL FROM:<x@sender.test>")[0], 451)

        def greeting():
            with smtp.Client(self.weir.port) as client:
                return client.reply()
        lib.wait_until(lambda: greeting()[0] == 421,
                       "clients are refused at once")
        code, text = greeting()
        self.assertEqual((code, text[:5]), (421, "4.3.2"))
        self.a.start()
        lib.wait_until(lambda: greeting()[0] == 220, "and let in again")
        message = mail.Message("back")
        lib.wait_until(lambda: self.sends(message), "mail flows again")
        self.assertEqual(self.a.kept, [message.data])

    def sends(self, message):
        try:
            smtp.send_plain(self.client(), message)
        except (smtp.Refused, smtp.Gone):
            return False
        return True

    def test_flapping_backend_loses_nothing(self):
        self.farm(script())
        crowd = smtp.Crowd(self.weir.port, [
            mail.Message(f"flap-{i}") for i in range(400)], 6,
            pause=0.005).start()
        while any(t.is_alive() for t in crowd.threads):
            self.a.play = script(greeting=CLOSE)
            time.sleep(0.1)
            self.a.play = script()
            time.sleep(0.1)
        crowd.join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(self.a.kept) + len(self.b.kept), 400)

    def test_drain_maint_and_ready(self):
        self.farm(script())
        open_one = self.client()
        message = mail.Message("through-a")
        smtp.envelope(open_one, message)
        self.weir.ctl("set", "backend", "a", "drain")
        other = mail.Message("to-b")
        smtp.send_plain(self.client(), other)
        self.assertEqual(self.b.kept, [other.data])
        smtp.expect("DATA", open_one.cmd("DATA"), 354)
        open_one.send(smtp.stuffed(message.data) + b".\r\n")
        self.assertEqual(open_one.reply()[0], 250)
        self.assertEqual(self.a.kept, [message.data])
        self.weir.ctl("set", "backend", "b", "maint")
        self.assertEqual(
            self.client().cmd("MAIL FROM:<x@sender.test>")[0], 451)
        self.weir.ctl("set", "backend", "a", "ready")
        last = mail.Message("to-a-again")
        lib.wait_until(lambda: self.sends(last), "a is used again")
        self.assertIn(last.data, self.a.kept)

    def test_add_and_delete_under_load(self):
        self.farm(script())
        c = self.start(backend.Backend())
        crowd = smtp.Crowd(self.weir.port, [
            mail.Message(f"change-{i}") for i in range(600)], 6,
            pause=0.005).start()
        self.weir.ctl("add", "backend", "c", "address=" + c.address,
                      "weight=1000", "max_sessions=50")
        lib.wait_until(lambda: c.kept, "c takes its share")
        self.weir.ctl("set", "backend", "c", "drain")
        lib.wait_until(lambda: c.open == 0, "c is drained")
        self.weir.ctl("del", "backend", "c")
        self.assertNotIn(" c ", self.weir.ctl("show", "backends"))
        crowd.join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(self.a.kept + self.b.kept + c.kept), 600)

    def test_new_slots_and_weight_hold_at_once(self):
        self.farm(script())
        self.weir.ctl("set", "backend", "a", "max_sessions", "1")
        first = self.client()
        self.assertEqual(first.cmd("MAIL FROM:<x@sender.test>")[0], 250)
        second = self.client()
        self.assertEqual(second.cmd("MAIL FROM:<x@sender.test>")[0], 250)
        self.assertEqual((self.tried(self.a), self.tried(self.b)), (1, 1))
