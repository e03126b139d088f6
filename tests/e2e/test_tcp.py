"""mode = tcp: weir carries what client and server say to each other, TLS
from end to end included; it still hides who is busy, counts and logs."""

import os
import threading

import backend
import lib
import mail
import mta
import pki
import smtp
import weir
import world

TCP = {"mode": "tcp"}
BUSY = "421 4.3.2 All server ports are busy"


class Case(lib.Case):
    def farm(self, *servers, **more):
        more.setdefault("listener", TCP)
        return self.start(weir.Weir(
            [(f"b{number}", server, {})
             for number, server in enumerate(servers)], **more)).up()

    def line_of(self, proxy, *words):
        """The last session's line that has these words."""
        return lib.wait_until(lambda: proxy.log("event=session", *words),
                              f"a session's line with {words}")[-1]


class Clear(Case):
    """Servers that do as told, and no TLS."""

    def test_a_message_and_its_line(self):
        server = self.start(backend.Backend(backend.script(
            greeting="220-inner.test\r\n220 says hello")))
        proxy = self.farm(server)
        message = mail.Message("m0", size=40000)
        with smtp.Client(proxy.port) as client:
            self.assertEqual(client.reply(), (220, "inner.test\nsays hello"))
            client.ehlo("one.client.test")
            smtp.send_pipelined(client, message)
            client.quit()
        self.assertEqual(server.kept, [message.data])
        fields = self.line_of(proxy, "mode=tcp")
        self.assertEqual(
            {key: fields[key] for key in ("backend", "opaque", "messages",
                                          "recipients", "helo", "close")},
            {"backend": "b0", "opaque": "no", "messages": "1",
             "recipients": "1", "helo": "one.client.test", "close": "quit"})
        self.assertGreater(int(fields["octets_in"]), 40000)
        self.assertEqual(proxy.row("b0")["messages"], 1)

    def test_a_busy_greeting_is_hidden(self):
        full, good = (self.start(backend.Backend()) for _ in range(2))
        proxy = self.start(weir.Weir(
            [("full", full, {"weight": 1000}), ("good", good, {"weight": 1})],
            listener=TCP, health={"interval": "1h"})).up()
        full.play = backend.script(greeting=BUSY)
        with smtp.Client(proxy.port) as client:
            client.hello()
            smtp.send_plain(client, mail.Message("m0"))
            client.quit()
        self.assertEqual(len(good.kept), 1)
        fields = self.line_of(proxy, "mode=tcp")
        self.assertEqual(fields["backend"], "good")
        self.assertIn("full:GREET:busy", fields["refused"])

    def test_when_nobody_greets_the_client_is_told(self):
        server = self.start(backend.Backend())
        proxy = self.farm(server, farm={"budget": "1s", "tries": 2},
                          room={"size": 0}, health={"interval": "1h"})
        server.play = backend.script(greeting=BUSY)
        with smtp.Client(proxy.port) as client:
            code, text = client.reply()
            self.assertEqual(code, 421)
            self.assertIn("4.3.2", text)
            self.assertEqual(client.rest(), b"")
        self.assertIn("b0:GREET:busy",
                      self.line_of(proxy, "close=unavailable")["refused"])

    def test_a_half_closed_client_reads_all(self):
        proxy = self.farm(self.start(backend.Backend()))
        with smtp.Client(proxy.port) as client:
            client.hello()
            client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
                        b"RSET\r\nQUIT\r\n")
            client.half_close()
            self.assertEqual([client.reply()[0] for _ in range(4)],
                             [250, 250, 250, 221])
            self.assertEqual(client.rest(), b"")
        self.assertEqual(self.line_of(proxy, "mode=tcp")["close"], "quit")

    def test_a_reset_is_passed_on(self):
        server = self.start(backend.Backend())
        proxy = self.farm(server)
        client = smtp.Client(proxy.port)
        client.hello()
        for line, code in (("MAIL FROM:<a@b.test>", 250),
                           ("RCPT TO:<c@d.test>", 250), ("DATA", 354)):
            smtp.expect(line, client.cmd(line), code)
        client.send(b"half of it")
        client.reset()
        self.assertEqual(self.line_of(proxy, "mode=tcp")["close"],
                         "client_reset")
        self.assertEqual(server.kept, [])
        lib.wait_until(lambda: server.mails()[0].ended == "rst",
                       "the server sees a reset, and no end of stream")

    def test_xclient_of_a_client_goes_no_further(self):
        server = self.start(backend.Backend())
        proxy = self.farm(server)
        with smtp.Client(proxy.port) as client:
            client.hello()
            self.assertEqual(client.cmd("XCLIENT ADDR=127.0.0.1")[0], 421)
            self.assertEqual(client.rest(), b"")
        self.assertEqual([line for peer in server.peers
                          for line in peer.lines if "XCLIENT" in line], [])

    def test_a_slot_is_held_for_the_whole_session(self):
        server = self.start(backend.Backend())
        proxy = self.start(weir.Weir(
            [("b0", server, {"max_sessions": 1})], listener=TCP,
            health={"interval": "1h"})).up()
        first = smtp.Client(proxy.port)
        self.addCleanup(first.close)
        first.hello()
        with smtp.Client(proxy.port) as second:
            lib.wait_until(lambda: proxy.room()["waiting"] == 1,
                           "the second one waits")
            self.assertEqual(server.open, 1)
            first.quit()
            second.hello()
            second.quit()
        self.assertEqual(server.peak, 1)


class Opaque(Case):
    """TLS from end to end, over spliced sockets."""

    def secret(self, **more):
        pair = pki.CA.issue("inner.test")
        return self.start(backend.Backend(backend.script(
            tls=backend.server_context(pair), **more)))

    def context(self):
        return smtp.trusting(pki.CA.path)

    def test_starttls_and_much_mail(self):
        server = self.secret()
        proxy = self.farm(server)
        before = proxy.descriptors()
        messages = [mail.Message(f"m{n}", size=600000) for n in range(6)]

        def send(message):
            with smtp.Secured(proxy.port, context=self.context(),
                              name="inner.test") as client:
                client.hello()
                smtp.send_plain(client, message)
                client.quit()
        threads = [threading.Thread(target=send, args=(m,)) for m in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(server.kept),
                         sorted(message.data for message in messages))
        fields = self.line_of(proxy, "opaque=starttls")
        self.assertEqual(fields["messages"], "0", "nobody can look inside")
        self.assertGreater(int(fields["octets_in"]), 600000)
        # Each worker may keep four empty pipes; of sessions nothing stays.
        lib.wait_until(lambda: proxy.descriptors() <= before + 16,
                       "descriptors come back")

    def test_the_certificate_is_the_server_s_own(self):
        proxy = self.farm(self.secret())
        done = self.command(
            "openssl", "s_client", "-starttls", "smtp", "-connect",
            f"127.0.0.1:{proxy.port}", "-servername", "inner.test",
            "-CAfile", pki.CA.path, "-verify_return_error", "-brief")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("CN = inner.test", done.stdout)

    def test_implicit_tls_needs_no_greeting(self):
        """Neither does the client have to be waited for, nor the server."""
        server = self.secret(implicit=True)
        for keys in ({"tls": "required", "tls_mode": "implicit"}, {}):
            proxy = self.start(weir.Weir(
                [("b0", server, keys)], listener=TCP,
                health={} if keys else {"probe": "off"}))
            if keys:
                proxy.up()
            with smtp.Secured(proxy.port, implicit=True,
                              context=self.context(),
                              name="inner.test") as client:
                client.hello()
                smtp.send_plain(client, mail.Message("m0"))
                client.quit()
            self.assertEqual(self.line_of(proxy, "mode=tcp")["opaque"], "tls")
        self.assertEqual(len(server.kept), 2)

    def test_each_side_ends_by_itself(self):
        """Behind the 220 it need not be TLS: octets and FINs come through."""
        up, down = os.urandom(2000000), os.urandom(3000000)
        got = []

        def play(peer):
            peer.send("220 x")
            peer.line()
            peer.send("220 go")
            try:
                while True:
                    peer.fill()
            except EOFError:
                got.append(peer.buffer)
            peer.sock.sendall(down)
        server = self.start(backend.Backend(play))
        proxy = self.start(weir.Weir(
            [("b0", server, {})], listener=TCP, health={"probe": "off"}))
        with smtp.Client(proxy.port) as client:
            client.reply()
            self.assertEqual(client.cmd("STARTTLS")[0], 220)
            client.send(up)
            client.half_close()
            self.assertEqual(client.rest(), down)
        self.assertEqual(got, [up])
        self.assertEqual(self.line_of(proxy, "mode=tcp")["close"],
                         "client_closed")

    def test_who_moves_nothing_is_let_go(self):
        proxy = self.farm(self.secret(), timeouts={"command": "1s"})
        with smtp.Secured(proxy.port, context=self.context(),
                          name="inner.test") as client:
            client.hello()
            self.assertEqual(client.rest(), b"")
        self.assertEqual(self.line_of(proxy, "mode=tcp")["close"],
                         "client_timeout")

    def test_a_drain_lets_it_finish(self):
        server = self.secret()
        proxy = self.farm(server)
        with smtp.Secured(proxy.port, context=self.context(),
                          name="inner.test") as client:
            client.hello()
            proxy.child.terminate()
            lib.wait_until(lambda: proxy.log("event=drain"), "it drains")
            smtp.send_plain(client, mail.Message("m0"))
            client.quit()
        proxy.stop()
        self.assertEqual(len(server.kept), 1)


@lib.needs_root
class Real(Case):
    """Postfix behind, real clients in front."""

    def serve(self):
        self.server = self.start(mta.Postfix(tls=pki.CA.issue("mx.test")))
        self.proxy = self.farm(self.server)

    def sent(self, *messages):
        self.server.settle()
        mail.compare(self, messages, [m.ident for m in messages],
                     mail.tally(self.server))
        self.assertEqual(self.line_of(self.proxy, "mode=tcp")["opaque"],
                         "starttls")

    def test_swaks(self):
        if self.command("perl", "-MNet::SSLeay", "-e", "1").returncode:
            self.skipTest("needs libnet-ssleay-perl")
        self.serve()
        message = mail.Message("m0")
        path = os.path.join(world.work(), "tcp-swaks")
        with open(path, "wb") as file:
            file.write(message.data.replace(b"\r\n", b"\n")[:-1])
        done = self.command(
            "swaks", "--silent", "2", "-s", "127.0.0.1", "-p",
            str(self.proxy.port), "-h", "client.test", "-f",
            "m0@sender.test", "-t", "u@local.test", "--data", "@" + path,
            "--tls")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.sent(message)

    def test_many_messages_through_one_stream(self):
        self.serve()
        messages = [mail.Message(f"m{n}", size=50000) for n in range(8)]
        with smtp.Secured(self.proxy.port,
                          context=smtp.trusting(pki.CA.path)) as client:
            client.hello()
            for message in messages:
                smtp.send_pipelined(client, message)
            client.quit()
        self.sent(*messages)

    def test_postfix_sends_through_it_and_knows_the_server(self):
        self.serve()
        sender = self.start(mta.PostfixOut(
            self.proxy.port, level="secure",
            more={"smtp_tls_CAfile": pki.CA.path,
                  "smtp_tls_secure_cert_match": "mx.test"}))
        messages = [mail.Message(f"m{n}") for n in range(3)]
        for message in messages:
            with smtp.Client(sender.port) as client:
                client.hello()
                smtp.send_plain(client, message)
                client.quit()
        sender.settle()
        self.sent(*messages)
        with open(os.path.join(sender.dir, "maillog"),
                  encoding="utf-8") as file:
            self.assertIn("Verified TLS connection established", file.read())
