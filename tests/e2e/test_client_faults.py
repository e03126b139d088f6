"""What clients do wrong (rows C of the fault catalogue)."""

import socket
import threading
import time

import backend
import lib
import mail
import net
import smtp
import weir


class Case(lib.Case):
    def proxy(self, play=None, **more):
        self.backend = self.start(backend.Backend(play))
        more.setdefault("health", {"interval": "1h"})
        more.setdefault("farm", {"linger": "0"})
        self.weir = self.start(weir.Weir([("a", self.backend, {})],
                                         **more)).up()
        return self.weir

    def client(self, hello=True, **more):
        client = smtp.Client(self.weir.port, **more)
        self.addCleanup(client.close)
        if hello:
            client.hello()
        return client

    def all_over(self):
        lib.wait_until(lambda: self.weir.info()["open"] == 0,
                       "the session is over")
        lib.wait_until(lambda: self.backend.open == 0,
                       "the slot is given back")

    def closed(self, reason):
        lib.wait_until(lambda: [x for x in self.weir.log("event=session")
                                if x.get("close") == reason],
                       f"the log says close={reason}")

    def in_body(self, message, octets, **more):
        """A client that has sent so many octets of the body."""
        client = self.client(**more)
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(smtp.stuffed(message.data)[:octets])
        return client

    def peer(self):
        return self.backend.mails()[-1]


class EarlyTalker(Case):
    """C1"""

    def early(self, treatment):
        self.proxy(listener={"greeting_delay": "2s",
                             "early_talkers": treatment})
        client = self.client(hello=False)
        client.send(b"EHLO early.test\r\n")
        return client

    def test_reject(self):
        client = self.early("reject")
        self.assertEqual(client.reply()[0], 554)
        self.assertEqual(client.rest(), b"")
        self.closed("early_talker")
        self.assertEqual(self.weir.info()["early_talkers"], 1)
        self.assertEqual(self.backend.mails(), [])

    def test_log_and_off_let_it_be(self):
        for treatment in ("log", "off"):
            with self.subTest(treatment):
                client = self.early(treatment)
                self.assertEqual(client.reply()[0], 220)
                self.assertEqual(client.reply()[0], 250)
                message = mail.Message("early")
                smtp.send_plain(client, message)
                self.assertEqual(self.backend.kept, [message.data])
                self.doCleanups()

    def test_a_flood_before_the_greeting_is_bounded(self):
        self.proxy(listener={"greeting_delay": "3s",
                             "early_talkers": "log"})
        before = self.weir.rss()
        client = self.client(hello=False)
        client.sock.settimeout(1)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += client.sock.send(b"NOOP\r\n" * 1000)
        except (TimeoutError, OSError):
            pass
        self.assertLess(self.weir.rss() - before, 4 << 20)


class Batches(Case):
    """C3"""

    def test_one_reply_each_in_order(self):
        self.proxy()
        client = self.client()
        message = mail.Message("batch")
        client.send(b"NOOP\r\nVRFY x\r\nMAIL FROM:<a@b.test>\r\nNOOP\r\n"
                    b"RCPT TO:<u@local.test>\r\nVRFY y\r\nFOO\r\n"
                    b"RCPT TO:<v@local.test>\r\nHELP\r\nDATA\r\n")
        codes = [client.reply()[0] for _ in range(10)]
        self.assertEqual(codes, [250, 252, 250, 250, 250, 252, 500, 250,
                                 214, 354])
        client.send(smtp.stuffed(message.data) + b".\r\nNOOP\r\nFOO\r\n"
                    b"MAIL FROM:<c@d.test>\r\nRSET\r\nQUIT\r\n")
        codes = [client.reply()[0] for _ in range(6)]
        self.assertEqual(codes, [250, 250, 500, 250, 250, 221])
        self.assertEqual(client.rest(), b"")
        self.assertEqual(self.backend.kept, [message.data])

    def test_a_whole_session_before_the_ehlo_is_answered(self):
        self.proxy()
        client = self.client(hello=False)
        self.assertEqual(client.reply()[0], 220)
        client.send(b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\n"
                    b"RCPT TO:<u@local.test>\r\nDATA\r\n")
        self.assertEqual([client.reply()[0] for _ in range(4)],
                         [250, 250, 250, 354])

    def test_a_thousand_recipients_in_one_batch(self):
        self.proxy(admission={"max_recipients": 900})
        client = self.client()
        client.send(b"MAIL FROM:<a@b.test>\r\n" + b"".join(
            b"RCPT TO:<u%d@local.test>\r\n" % i for i in range(1000)))
        self.assertEqual(client.reply()[0], 250)
        codes = [client.reply() for _ in range(1000)]
        self.assertEqual([c for c, _ in codes], [250] * 900 + [452] * 100)
        self.assertTrue(codes[-1][1].startswith("4.5.3"))
        self.assertEqual(sum(x.upper().startswith("RCPT")
                             for x in self.peer().lines), 900)

    def test_a_body_before_the_354_is_never_a_message(self):
        self.proxy()
        client = self.client()
        client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<u@local.test>\r\n"
                    b"DATA\r\nSubject: x\r\n\r\nRCPT TO:<v@local.test>\r\n"
                    b".\r\n")
        answers = client.rest()
        self.assertNotIn(b"2.0.0 stored", answers)
        self.assertIn(b"\r\n554 ", answers)
        self.all_over()
        self.assertEqual(self.backend.kept, [])
        self.closed("sync")

    def test_ten_thousand_noops(self):
        self.proxy()
        client = self.client()
        thread = threading.Thread(
            target=client.send, args=(b"NOOP\r\n" * 10_000,), daemon=True)
        thread.start()
        self.assertEqual({client.reply()[0] for _ in range(10_000)}, {250})
        thread.join()
        self.assertEqual(client.quit()[0], 221)

    def test_to_a_backend_without_pipelining_one_at_a_time(self):
        wrong = []
        good = backend.script(keywords=("SIZE 1000000", "8BITMIME"))

        def strict(peer):
            line = peer.line

            def alone():
                text = line()
                if peer.buffer:
                    wrong.append((text, peer.buffer))
                return text
            peer.line = alone
            good(peer)
        self.proxy(strict)
        client = self.client()
        for i in range(5):
            smtp.send_pipelined(client, mail.Message(f"strict-{i}"))
        self.assertEqual(wrong, [])
        self.assertEqual(len(self.backend.kept), 5)


class EndOfData(Case):
    """C4: the end of data, cut at every octet."""

    def test_dot_line_split_at_every_place(self):
        self.proxy()
        client = self.client()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = mail.Message("split")
        text = smtp.stuffed(message.data) + b".\r\n"
        tail = text[-20:]
        for cut in range(1, len(tail)):
            smtp.envelope(client, message)
            smtp.expect("DATA", client.cmd("DATA"), 354)
            client.send(text[:-20] + tail[:cut])
            time.sleep(0.02)
            client.send(tail[cut:])
            self.assertEqual(client.reply()[0], 250, cut)
        self.assertEqual(self.backend.kept, [message.data] * 19)

    def test_octet_by_octet(self):
        self.proxy()
        client = self.client()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b"Subject: x\r\n\r\n.\r\n..\r\n.a\r\nb\r\n"
        for octet in (b"MAIL FROM:<a@b.test>\r\nRCPT TO:<u@local.test>\r\n"
                      b"DATA\r\n"):
            client.send(bytes([octet]))
        self.assertEqual([client.reply()[0] for _ in range(3)],
                         [250, 250, 354])
        for octet in smtp.stuffed(data) + b".\r\n":
            client.send(bytes([octet]))
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.backend.kept, [data])


class Slow(Case):
    """C6, C7"""

    def test_a_command_drips_in(self):
        self.proxy(timeouts={"command": "1s"})
        client = self.client()
        try:
            for octet in b"NOOP" * 200:
                client.send(bytes([octet]))
                time.sleep(0.1)
        except smtp.Gone:
            pass
        else:
            self.fail("dripping kept the session alive")
        self.closed("client_timeout")

    def test_silence_gets_a_421(self):
        self.proxy(timeouts={"command": "1s"})
        for hello in (False, True):
            client = self.client(hello)
            if not hello:
                client.reply()
            code, text = client.reply()
            self.assertEqual((code, text[:5]), (421, "4.4.2"))
            self.assertEqual(client.rest(), b"")

    def test_silence_in_a_body(self):
        self.proxy(timeouts={"data": "1s"})
        client = self.in_body(mail.Message("stops", 10_000), 5000)
        self.assertEqual(client.reply()[0], 421)
        self.all_over()
        self.assertEqual(self.backend.kept, [])
        self.assertFalse(self.peer().whole)

    def test_a_slow_body_is_no_crime(self):
        self.proxy(timeouts={"data": "2s", "command": "1s"})
        message = mail.Message("slow", 3000)
        client = self.in_body(message, 0)
        text = smtp.stuffed(message.data) + b".\r\n"
        for at in range(0, len(text), 100):
            client.send(text[at:at + 100])
            time.sleep(0.1)
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.backend.kept, [message.data])

    def test_a_session_has_its_time(self):
        self.proxy(timeouts={"session": "2s"})
        client = self.client()
        try:
            while client.cmd("NOOP")[0] == 250:
                time.sleep(0.05)
        except smtp.Gone:
            self.fail("no 421")
        self.closed("session_time")

    def test_stress_sheds_the_idle(self):
        self.proxy(admission={"max_sessions": 20, "stress_low": "5%"},
                   timeouts={"stress_command": "1s", "command": "5m"})
        idle = [self.client() for _ in range(19)]
        # Those of every worker, not only of the one that took the last; the
        # log is asked, since a question to weir would wake its workers.
        lib.wait_until(lambda: len(self.weir.log("close=client_timeout"))
                       >= 18, "all are shed but one")
        self.assertGreaterEqual(
            [c.rest()[:3] for c in idle[:18]].count(b"421"), 17)
        message = mail.Message("served")
        smtp.send_plain(self.client(), message)
        self.assertEqual(self.backend.kept, [message.data])

    def test_who_never_reads_is_held_back_and_let_go(self):
        self.proxy(timeouts={"send": "2s"})
        client = self.client(rcvbuf=2048)
        before = self.weir.rss()
        client.sock.settimeout(1)
        try:
            while True:
                client.sock.sendall(b"HELP\r\n" * 1000)
        except (TimeoutError, OSError):
            pass
        self.assertLess(self.weir.rss() - before, 4 << 20)
        self.closed("client_stuck")

    def test_hundreds_who_never_read_do_not_stop_others(self):
        self.proxy(timeouts={"send": "1m"})
        stuck = [self.client(rcvbuf=2048) for _ in range(300)]
        for client in stuck:
            client.sock.setblocking(False)
            try:
                for _ in range(50):
                    client.sock.send(b"HELP\r\n" * 1000)
            except BlockingIOError:
                pass
        messages = [mail.Message(f"others-{i}", 20_000) for i in range(100)]
        crowd = smtp.Crowd(self.weir.port, messages, 4).start().join()
        self.assertEqual(len(crowd.acked), 100,
                         crowd.refused + crowd.broken)


class Leaves(Case):
    """C8"""

    def test_in_mid_body_nothing_is_stored(self):
        for how in ("fin", "rst", "half"):
            for size in (5000, 3 << 20):
                with self.subTest(how=how, size=size):
                    self.proxy()
                    message = mail.Message("leaves", size)
                    client = self.in_body(message, size // 2)
                    {"fin": client.close, "rst": client.reset,
                     "half": client.half_close}[how]()
                    self.all_over()
                    self.assertEqual(self.backend.kept, [])
                    self.assertFalse(self.peer().whole)
                    self.doCleanups()

    def test_right_before_the_last_octet(self):
        for left in range(1, 4):
            with self.subTest(left=left):
                self.proxy()
                message = mail.Message("last")
                text = smtp.stuffed(message.data) + b".\r\n"
                client = self.client()
                smtp.envelope(client, message)
                smtp.expect("DATA", client.cmd("DATA"), 354)
                client.send(text[:-left])
                client.half_close()
                client.rest()
                self.all_over()
                self.assertEqual(self.backend.kept, [])
                self.assertFalse(self.peer().whole)
                self.doCleanups()

    def test_in_mid_chunk_nothing_is_stored(self):
        for how in ("fin", "rst", "half"):
            with self.subTest(how):
                self.proxy()
                client = self.client()
                smtp.envelope(client, mail.Message("leaves"))
                client.send(b"BDAT 5000 LAST\r\n" + b"x" * 2500)
                {"fin": client.close, "rst": client.reset,
                 "half": client.half_close}[how]()
                self.all_over()
                self.assertEqual(self.backend.kept, [])
                self.assertFalse(self.peer().whole)
                self.doCleanups()

    def test_between_chunks_nothing_is_stored(self):
        self.proxy()
        client = self.client()
        smtp.envelope(client, mail.Message("leaves"))
        client.send(b"BDAT 5\r\nabc\r\n")
        self.assertEqual(client.reply()[0], 250)
        client.close()
        self.all_over()
        self.assertEqual(self.backend.kept, [])

    def test_half_close_after_the_final_dot_gets_its_reply(self):
        release = threading.Event()
        self.proxy(backend.script(end=backend.Wait(
            release, "250 2.0.0 stored as 4711")))
        message = mail.Message("half")
        client = self.client()
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(smtp.stuffed(message.data) + b".\r\n")
        client.half_close()
        lib.wait_until(lambda: self.peer().whole, "the backend has it all")
        release.set()
        self.assertEqual(client.reply(), (250, "2.0.0 stored as 4711"))
        self.assertEqual(client.rest(), b"")
        self.assertEqual(self.backend.kept, [message.data])
        self.all_over()

    def test_half_close_after_bdat_last_gets_its_reply(self):
        self.proxy()
        message = mail.Message("half")
        client = self.client()
        smtp.envelope(client, message)
        client.send(b"BDAT %d LAST\r\n" % len(message.data) + message.data)
        client.half_close()
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(self.backend.kept, [message.data])
        self.all_over()

    def test_half_close_after_a_batch_gets_every_reply(self):
        self.proxy()
        client = self.client()
        client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<u@local.test>\r\n"
                    b"NOOP\r\nQUIT\r\n")
        client.half_close()
        self.assertEqual([client.reply()[0] for _ in range(4)],
                         [250, 250, 250, 221])
        self.assertEqual(client.rest(), b"")

    def test_at_every_stage_the_slot_comes_back(self):
        steps = ("MAIL FROM:<a@b.test>", "RCPT TO:<u@local.test>", "DATA")
        for count in range(4):
            for how in ("fin", "rst"):
                with self.subTest(after=steps[:count], how=how):
                    self.proxy()
                    client = self.client()
                    for line in steps[:count]:
                        client.cmd(line)
                    client.close() if how == "fin" else client.reset()
                    self.all_over()
                    self.assertEqual(self.backend.kept, [])
                    self.doCleanups()


class Sizes(Case):
    """C9"""

    def test_size_said_is_not_believed(self):
        self.proxy(listener={"size": "20000"})
        client = self.client()
        self.assertEqual(client.keywords["SIZE"], "20000")
        self.assertEqual(client.cmd("MAIL FROM:<a@b.test> SIZE=20001")[0],
                         552)
        self.assertEqual(client.cmd("MAIL FROM:<a@b.test> SIZE=10")[0], 250)
        self.assertEqual(client.cmd("RCPT TO:<u@local.test>")[0], 250)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 500 +
                    b".\r\n")
        self.assertEqual(client.reply()[0], 552)
        self.assertEqual(self.backend.kept, [])
        self.assertFalse(self.peer().whole)
        message = mail.Message("fits", 5000)
        smtp.send_plain(client, message)
        self.assertEqual(self.backend.kept, [message.data])

    def test_bdat_beyond_the_size_is_refused_and_skipped(self):
        self.proxy(listener={"size": "20000"})
        client = self.client()
        smtp.envelope(client, mail.Message("big"))
        client.send(b"BDAT 15000\r\n" + b"x" * 15000)
        self.assertEqual(client.reply()[0], 250)
        client.send(b"BDAT 15000 LAST\r\n" + b"x" * 15000)
        self.assertEqual(client.reply()[0], 552)
        self.assertEqual(client.cmd("RSET")[0], 250)
        self.all_kept([])

    def test_bdat_of_nothing(self):
        self.proxy()
        client = self.client()
        for chunks in ((b"",), (b"a\r\n", b""), (b"", b"b\r\n", b"", b"")):
            with self.subTest(chunks=chunks):
                smtp.envelope(client, mail.Message("zero"))
                for number, chunk in enumerate(chunks, 1):
                    last = b" LAST" if number == len(chunks) else b""
                    client.send(b"BDAT %d%s\r\n%s" % (len(chunk), last,
                                                      chunk))
                    self.assertEqual(client.reply()[0], 250)
        self.all_kept([b"", b"a\r\n", b"b\r\n"])

    def test_bdat_is_binary(self):
        self.proxy()
        client = self.client()
        octets = bytes(range(256)) * 40 + b"\r\n.\r\nQUIT\r\n\n.\n"
        smtp.envelope(client, mail.Message("binary"))
        for size in (1, 7, 4096):
            client.send(b"BDAT %d\r\n" % size + octets[:size])
            octets = octets[size:]
            self.assertEqual(client.reply()[0], 250)
        client.send(b"BDAT %d LAST\r\n" % len(octets) + octets)
        self.assertEqual(client.reply()[0], 250)
        self.all_kept([bytes(range(256)) * 40 + b"\r\n.\r\nQUIT\r\n\n.\n"])

    def test_data_after_bdat_and_rcpt_after_bdat(self):
        self.proxy()
        client = self.client()
        smtp.envelope(client, mail.Message("mixed"))
        client.send(b"BDAT 3\r\na\r\n")
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(client.cmd("DATA")[0], 503)
        self.assertEqual(client.cmd("RCPT TO:<v@local.test>")[0], 503)
        client.send(b"BDAT 3 LAST\r\nb\r\n")
        self.assertEqual(client.reply()[0], 250)
        self.all_kept([b"a\r\nb\r\n"])

    def all_kept(self, bodies):
        self.assertEqual(self.backend.kept, bodies)


@lib.needs_root
class ManyAddresses(Case):
    """C12: an IPv6 client has 2^64 addresses and is one source."""

    def test_a_v6_slash_64_is_one_source(self):
        net.sh("ip", "-6", "route", "replace", "local", "fd55::/16",
               "dev", "lo")
        net.sh("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
        port = lib.free_port("::1")
        self.backend = self.start(backend.Backend())
        self.weir = self.start(weir.Weir(
            [("a", self.backend, {})], listen=[f"[::1]:{port}"],
            admission={"max_per_source": 5})).up()
        codes = {}
        for net64 in ("fd55:0:0:1", "fd55:0:0:2"):
            for host in range(1, 9):
                client = smtp.Client(port, "::1", source=f"{net64}::{host}")
                self.addCleanup(client.close)
                codes.setdefault(net64, []).append(client.reply()[0])
        self.assertEqual(codes, {"fd55:0:0:1": [220] * 5 + [421] * 3,
                                 "fd55:0:0:2": [220] * 5 + [421] * 3})
