"""Octets that come before the handshake, and bodies that end in odd ways:
nothing of the first is obeyed, and no body becomes two messages."""

import concurrent.futures
import os
import ssl
import time

import backend
import lib
import mail
import mta
import pki
import smtp
import weir
import world

NAME = "backend.test"
HELLO = "\r\n".join(["250-fake.test"] + [
    "250-" + word for word in backend.KEYWORDS] + ["250 STARTTLS"])
EVIL = (b"EHLO evil.test\r\nMAIL FROM:<evil@sender.test>\r\n"
        b"RCPT TO:<u@local.test>\r\n")


def vectors():
    """(id, octets, what must become of it) of the vectors of bodies."""
    path = os.path.join(world.TOP, "tests", "data", "smuggling.tsv")
    with open(path, encoding="utf-8") as file:
        for line in file:
            if "V01" <= line[:3] <= "V22":
                name, octets, must = line.rstrip("\n").split("\t")[:3]
                yield (name, octets.encode().decode("unicode_escape")
                       .encode("latin-1"), must)


class Clients(lib.Case):
    """T1, T2, T4 to T8 of clients."""

    def setUp(self):
        made = pki.CA.issue("mx.test")
        self.backend = self.start(backend.Backend())
        self.weir = self.start(weir.Weir(
            [("a", self.backend, {})],
            listener={"tls": "starttls", "tls_cert": made.both,
                      "early_talkers": "log"},
            listeners={"required": {"tls": "required",
                                    "tls_cert": made.both},
                       "implicit": {"tls": "implicit",
                                    "tls_cert": made.both}},
            timeouts={"handshake": "1s"})).up()

    def client(self, hello=True, port=None):
        client = smtp.Client(port or self.weir.port)
        self.addCleanup(client.close)
        if hello:
            client.hello()
        return client

    def obeyed(self):
        """What the backend was told by an intruder."""
        return [line for peer in self.backend.peers for line in peer.lines
                if "evil" in line]

    def is_itself(self, client):
        """Under TLS, from the start: nothing is waiting, no state is."""
        client.secure()
        client.sock.settimeout(0.2)
        with self.assertRaises(TimeoutError):
            client.fill()
        client.sock.settimeout(lib.PATIENCE)
        code, _ = client.cmd("MAIL FROM:<a@sender.test>")
        self.assertEqual(code, 503, "EHLO is forgotten")
        self.assertNotIn("STARTTLS", client.ehlo())
        self.assertEqual(client.cmd("RCPT TO:<u@local.test>")[0], 503)
        smtp.send_plain(client, mail.Message("own"))
        self.assertEqual(client.quit()[0], 221)
        self.assertEqual(self.obeyed(), [])

    def test_t1_behind_starttls_in_one_segment(self):
        for port in (self.weir.port, self.weir.ports["required"]):
            for more in (EVIL, b"RSET\r\n", b"QUIT\r\n", b"x" * 100,
                         b"NOOP\r\n" * 2000, b"MAIL FROM:<evil@b.test>"):
                with self.subTest(more=more[:40], port=port):
                    client = self.client(port=port)
                    client.send(b"STARTTLS\r\n" + more)
                    self.assertEqual(client.reply()[0], 220)
                    if len(more) > 5000:
                        # what still comes after the 220 is no handshake
                        client.rest()
                        self.assertEqual(self.obeyed(), [])
                        continue
                    self.assertEqual(client.buffer, b"")
                    self.is_itself(client)

    def test_t1_in_a_group_of_commands(self):
        client = self.client(hello=False)
        client.send(b"EHLO client.test\r\nSTARTTLS\r\n" + EVIL)
        codes = [client.reply()[0] for _ in range(3)]
        self.assertEqual(codes, [220, 250, 220])
        self.is_itself(client)

    def test_t2_between_the_220_and_the_handshake(self):
        client = self.client()
        smtp.expect("STARTTLS", client.cmd("STARTTLS"), 220)
        client.send(EVIL)
        rest = client.rest()
        self.assertNotIn(b"250", rest)
        self.assertEqual(self.obeyed(), [])

    def test_t4_twice(self):
        client = self.client()
        client.starttls()
        client.ehlo()
        self.assertEqual(client.cmd("STARTTLS")[0], 503)
        smtp.send_plain(client, mail.Message("m"))
        implicit = smtp.Secured(self.weir.ports["implicit"], True)
        self.addCleanup(implicit.close)
        implicit.hello()
        self.assertEqual(implicit.cmd("STARTTLS")[0], 503)

    def test_t5_with_a_parameter(self):
        client = self.client()
        for line in ("STARTTLS now", "STARTTLS  x"):
            self.assertEqual(client.cmd(line)[0], 501)
        client.starttls()
        client.ehlo()

    def test_t6_inside_a_transaction(self):
        client = self.client()
        smtp.envelope(client, mail.Message("m"))
        self.assertEqual(client.cmd("STARTTLS")[0], 503)
        self.assertEqual(client.cmd("RSET")[0], 250)
        client.starttls()
        client.ehlo()

    def test_t7_what_was_said_before_is_forgotten(self):
        client = self.client()
        smtp.send_plain(client, mail.Message("before"))
        client.send(b"STARTTLS\r\n")
        self.assertEqual(client.reply()[0], 220)
        self.is_itself(client)

    def test_t8_the_clients_hello_in_one_segment_with_starttls(self):
        """It dies with what is behind STARTTLS."""
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = smtp.trusting().wrap_bio(into, out)
        with self.assertRaises(ssl.SSLWantReadError):
            hello.do_handshake()
        client = self.client(hello=False)
        client.send(b"EHLO client.test\r\nSTARTTLS\r\n" + out.read())
        codes = [client.reply()[0] for _ in range(3)]
        self.assertEqual(codes, [220, 250, 220])
        self.assertNotIn(b"\x16\x03", client.rest()[:2])
        self.assertEqual(self.backend.mails(), [])

    def test_in_the_clear_again_there_is_no_way(self):
        """After the end of TLS nothing is read."""
        client = self.client()
        client.starttls()
        client.ehlo()
        raw = client.sock.unwrap()
        client.sock = raw
        try:
            client.send(b"NOOP\r\n" + EVIL)
        except smtp.Gone:
            pass
        self.assertNotIn(b"250", client.rest())
        self.assertEqual(self.obeyed(), [])


class Backends(lib.Case):
    """The same from a backend: what it says before the handshake."""

    def farm(self, play, level="required"):
        """A backend with the trick, of much weight, and an honest one."""
        self.context = backend.server_context(pki.CA.issue(NAME))
        honest = backend.script(tls=self.context)
        self.bad = self.start(backend.Backend(honest))
        self.good = self.start(backend.Backend(honest))
        keys = {"tls": level}
        self.weir = self.start(weir.Weir(
            [("bad", self.bad, dict(keys, weight=1000)),
             ("good", self.good, dict(keys, weight=1))],
            health={"interval": "1h"}, farm={"linger": "0"},
            timeouts={"handshake": "2s"})).up()
        self.bad.play = play

    def send(self, count=3):
        for number in range(count):
            with smtp.Client(self.weir.port) as client:
                client.hello()
                smtp.send_plain(client, mail.Message(f"m{number}"))
                client.quit()

    def trick(self, answer, late=b""):
        def play(peer):
            peer.send("220 fake.test")
            while True:
                verb = peer.line()[:4]
                if verb == "STAR":
                    peer.send(answer)
                    if late:
                        time.sleep(0.1)
                        peer.send(late)
                    peer.secure(self.context)
                elif verb == "EHLO":
                    peer.send(HELLO)
                elif verb == "DATA":
                    peer.send("354 go on")
                    peer.data()
                    peer.backend.keep(peer)
                    peer.send("250 2.0.0 stored")
                else:
                    peer.send("250 2.0.0 ok")
        return play

    def test_t3_replies_behind_the_220(self):
        for answer, late in (
                (b"220 go\r\n250-evil.test\r\n250 CHUNKING\r\n", b""),
                (b"220 go\r\n250 2.0.0 ok\r\n" * 2, b""),
                (b"220 go\r\nx", b""),
                (b"220-go\r\n220 go\r\n250 evil.test\r\n", b""),
                (b"220 go\r\n", b"250 evil.test\r\n250 2.1.0 ok\r\n")):
            with self.subTest(answer=answer, late=late):
                self.farm(self.trick(answer, late))
                self.send()
                self.assertEqual(len(self.good.kept), 3)
                self.assertEqual(self.bad.kept, [])
                self.weir.stop()

    def test_a_reply_that_came_in_pieces_is_no_trick(self):
        self.farm(self.trick(b"220-go\r\n220 go\r\n"))
        self.send()
        self.assertEqual(len(self.bad.kept), 3)

    def test_t4_it_is_not_done_twice(self):
        def play(peer):
            peer.send("220 fake.test")
            while True:
                verb = peer.line()[:4]
                if verb == "STAR" and not peer.secured:
                    peer.send("220 go")
                    peer.secure(self.context)
                elif verb == "EHLO":
                    peer.send(HELLO)
                elif verb == "DATA":
                    peer.send("354 go on")
                    peer.data()
                    peer.backend.keep(peer)
                    peer.send("250 2.0.0 stored")
                else:
                    peer.send("250 2.0.0 ok")
        self.farm(play)
        self.send()
        self.assertEqual(len(self.bad.kept), 3)
        for peer in self.bad.mails():
            self.assertFalse([x for x in peer.lines if x[:4] == "STAR"])

    def test_t7_what_it_offered_before_is_forgotten(self):
        context = backend.server_context(pki.CA.issue(NAME))

        def play(peer):
            peer.send("220 fake.test")
            while True:
                verb = peer.line()[:4]
                if verb == "STAR":
                    peer.send("220 go")
                    peer.secure(context)
                elif verb == "EHLO":
                    peer.send("250-fake.test\r\n250 8BITMIME" if peer.secured
                              else "250-fake.test\r\n250-CHUNKING\r\n"
                              "250-SMTPUTF8\r\n250-DSN\r\n250 STARTTLS")
                else:
                    peer.send("250 2.0.0 ok")
        server = self.start(backend.Backend(play))
        proxy = self.start(weir.Weir(
            [("a", server, {"tls": "required"})])).up()
        with smtp.Client(proxy.port) as client:
            offered = client.hello()
        self.assertIn("8BITMIME", offered)
        for word in ("CHUNKING", "SMTPUTF8", "DSN"):
            self.assertNotIn(word, offered)


def body_of(name, octets, end):
    """What is sent behind the 354, with a second message in it unless the
    octets end the first."""
    head = f"X-Test-Id: {name}\r\n\r\nbody".encode()
    tail = b"" if end else (
        b"MAIL FROM:<smuggled@sender.test>\r\n"
        b"RCPT TO:<u@local.test>\r\nDATA\r\n"
        + f"X-Test-Id: smuggled-{name}\r\n\r\nevil".encode()
        + b"\r\n.\r\n")
    return head, tail


class Chunks(lib.Case):
    def test_a_body_with_bare_newlines_arrives_octet_for_octet(self):
        server = self.start(backend.Backend())
        proxy = self.start(weir.Weir(
            [("a", server, {})],
            listener={"bare_newline": "bdat"})).up()
        for name, octets, must in vectors():
            with self.subTest(vector=name):
                head, tail = body_of(name, octets, must.startswith("end"))
                data = head + octets + tail
                with smtp.Client(proxy.port) as client:
                    client.hello()
                    smtp.envelope(client, mail.Message(name))
                    smtp.expect("DATA", client.cmd("DATA"), 354)
                    client.send(data)
                    self.assertEqual(client.reply()[0], 250)
                body = data[:data.index(b"\r\n.\r\n") + 2]
                self.assertEqual(server.kept[-1],
                                 body.replace(b"\r\n.", b"\r\n"))
        self.assertEqual(len(server.kept), 22)


@lib.needs_root
class Smuggling(lib.Case):
    """Each vector through each listener to each server, behind it a second
    message; it arrives nowhere as one."""

    LISTENERS = [f"{tls}-{bare}" for tls in ("clear", "tls")
                 for bare in ("reject", "bdat")]

    def send(self, proxy, listener, ident, octets, end):
        """The reply to the body; `end`: these octets do end it."""
        port = proxy.ports[listener]
        secured = listener.startswith("tls")
        with (smtp.Secured(port) if secured else
              smtp.Client(port)) as client:
            client.hello()
            try:
                smtp.envelope(client, mail.Message(ident))
            except smtp.Refused as refused:
                return refused.code
            smtp.expect("DATA", client.cmd("DATA"), 354)
            head, tail = body_of(ident, octets, end)
            if secured:  # a record for each octet, and all in one
                client.send(head)
                for octet in octets:
                    client.send(bytes([octet]))
                client.send(tail)
            else:
                client.send(head + octets + tail)
            answer = client.reply()
            try:
                client.cmd("RSET")
                client.quit()
            except smtp.Gone:
                pass
            return answer[0]

    def through(self, server, address=None, chunking=True):
        self.start(server)
        made = pki.CA.issue("mx.test")
        address = address or server.address
        weirs = {tls: self.start(weir.Weir(
            [(server.name, address, {"tls": level})],
            listeners={f"{tls}-{bare}": dict(
                {"bare_newline": bare},
                **({"tls": "starttls", "tls_cert": made.both}
                   if tls == "tls" else {}))
                for bare in ("reject", "bdat")})).up()
            for tls, level in (("clear", "none"), ("tls", "opportunistic"))}
        cases = [(listener, name, octets, must)
                 for listener in self.LISTENERS
                 for name, octets, must in vectors()]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(
                lambda case: self.send(
                    weirs[case[0].partition("-")[0]], case[0],
                    f"{case[0]}-{case[1]}", case[2],
                    case[3].startswith("end")), cases))
        server.settle()
        stored = mail.tally(server)
        for (listener, name, octets, must), code in zip(cases, codes):
            ident = f"{listener}-{name}"
            harmless = "refuse" not in must
            bdat = listener.endswith("bdat")
            taken = chunking if bdat else harmless
            with self.subTest(vector=name, listener=listener, octets=octets):
                # who takes no chunks is no server for such a listener
                self.assertEqual(code, 250 if taken else
                                 451 if bdat else 550)
                self.assertEqual(len(stored.pop(ident, ())), int(taken))
        self.assertEqual(dict(stored), {}, "nothing else arrived")

    def test_vectors_are_all_there(self):
        self.assertEqual(len(list(vectors())), 22)

    def test_postfix(self):
        self.through(mta.Postfix(tls=pki.CA.issue(NAME)))

    def test_postscreen(self):
        server = mta.Postfix(tls=pki.CA.issue(NAME),
                             screen_access="static:permit")
        self.through(server, server.screen_address)

    def test_exim(self):
        self.through(mta.Exim(tls=pki.CA.issue(NAME)))

    def test_opensmtpd(self):
        self.through(mta.OpenSmtpd(), chunking=False)
