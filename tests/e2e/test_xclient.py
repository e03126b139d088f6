"""identity = xclient: Postfix takes the client's name and address from weir,
with all the traps of that; and connections that serve several clients."""

import backend
import lib
import mail
import mta
import pki
import smtp
import weir

ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "REVERSE_NAME",
              "LOGIN", "DESTADDR", "DESTPORT")
OFFER = "XCLIENT " + " ".join(ATTRIBUTES)


def introductions(peer):
    """The XCLIENT lines of a connection, as dicts."""
    return [dict(word.split("=", 1) for word in line.split()[1:])
            for line in peer.lines if line.startswith("XCLIENT")]


def scripted(reply="220 fake.test ESMTP", keywords=(OFFER,), **more):
    """A server that takes XCLIENT, and notes what came behind it too
    soon, and what it forgot."""
    plain = backend.script(keywords=backend.KEYWORDS + tuple(keywords),
                           **more)

    def play(peer):
        read = peer.line
        peer.early = []
        peer.greeted = False

        def line():
            text = read()
            verb = text[:4].upper()
            if verb == "EHLO":
                peer.greeted = True
            elif verb == "MAIL" and not peer.greeted:
                peer.early.append(text)
            elif verb == "XCLI":
                peer.sock.settimeout(0.05)
                try:
                    peer.fill()
                except OSError:
                    pass
                peer.sock.settimeout(None)
                peer.early.append(peer.buffer)
                peer.greeted = False
                said = reply(peer) if callable(reply) else reply
                peer.send(said)
                return line()
            return text
        peer.line = line
        plain(peer)
    return play


class Case(lib.Case):
    def weir_to(self, *backends, **sections):
        sections.setdefault("health", {"interval": "1h"})
        return self.start(weir.Weir(
            [(name, server, dict({"identity": "xclient"}, **keys))
             for name, server, keys in backends], **sections))

    def send(self, proxy, ident, source=None, helo="client.test",
             address="127.0.0.1", port=None):
        with smtp.Client(port or proxy.port, address,
                         source=source) as client:
            client.hello(helo)
            smtp.send_plain(client, mail.Message(ident))
            client.quit()

    def settled(self, proxy):
        lib.wait_until(lambda: proxy.info()["open"] == 0, "they have left")


class Scripted(Case):
    def served(self, play=None, listeners=None, listen=None, keys=None,
               **sections):
        self.server = self.start(backend.Backend(play or scripted()))
        proxy = self.weir_to(("fake", self.server, keys or {}),
                             listen=listen, listeners=listeners,
                             **sections).up()
        self.probed = len(self.server.peers)
        return proxy

    def test_all_that_is_offered_is_told_and_nothing_else(self):
        for offered in (ATTRIBUTES, ("ADDR", "NAME"),
                        ("NAME", "ADDR", "HELO", "PROTO"),
                        ATTRIBUTES + ("SESSION", "TTL")):
            with self.subTest(offered=offered):
                proxy = self.served(scripted(
                    keywords=("XCLIENT " + " ".join(offered),)))
                with smtp.Client(proxy.port, source="127.0.3.7") as client:
                    port = client.sock.getsockname()[1]
                    client.hello("helo-name.test")
                    smtp.send_plain(client, mail.Message("m"))
                    client.quit()
                peer, = self.server.mails()
                told, = introductions(peer)
                self.assertEqual(set(told), set(offered) & set(ATTRIBUTES))
                want = {"ADDR": "127.0.3.7", "PORT": str(port),
                        "HELO": "helo-name.test", "PROTO": "ESMTP",
                        "DESTADDR": "127.0.0.1",
                        "DESTPORT": str(proxy.port),
                        "NAME": "[UNAVAILABLE]",
                        "REVERSE_NAME": "[UNAVAILABLE]",
                        "LOGIN": "[UNAVAILABLE]"}
                self.assertEqual(told, {key: want[key] for key in told})
                proxy.stop()

    def test_nothing_is_sent_behind_it_until_it_is_answered(self):
        proxy = self.served()
        for number in range(5):
            with smtp.Client(proxy.port) as client:
                client.hello()
                smtp.send_pipelined(client, mail.Message(f"m{number}"))
                client.quit()
        for peer in self.server.peers:
            self.assertEqual([x for x in peer.early if x], [])
        for peer in self.server.mails():
            self.assertEqual([line[:4] for line in peer.lines][:4],
                             ["EHLO", "XCLI", "EHLO", "MAIL"])

    def test_tls_comes_first(self):
        """XCLIENT does not end it; it would be told in the clear."""
        context = backend.server_context(pki.CA.issue("backend.test"))
        proxy = self.served(scripted(tls=context),
                            keys={"tls": "required"})
        self.send(proxy, "m", "127.0.3.7")
        peer, = self.server.mails()
        self.assertEqual([line[:4] for line in peer.clear],
                         ["EHLO", "STAR"])
        self.assertEqual([line[:4] for line in peer.lines][:4],
                         ["EHLO", "XCLI", "EHLO", "MAIL"])
        self.assertEqual(introductions(peer)[0]["ADDR"], "127.0.3.7")

    def test_a_client_under_tls_and_one_that_logged_in(self):
        made = pki.CA.issue("mx.test")
        proxy = self.served(listeners={"tls": {
            "tls": "starttls", "tls_cert": made.both}})
        with smtp.Secured(proxy.ports["tls"], source="127.0.3.7") as client:
            client.hello("helo-name.test")
            smtp.send_plain(client, mail.Message("m"))
            client.quit()
        told, = introductions(self.server.mails()[0])
        self.assertEqual((told["ADDR"], told["HELO"]),
                         ("127.0.3.7", "helo-name.test"))

    def test_ipv6(self):
        port = lib.free_port("::1")
        proxy = self.served(listen=[f"[::1]:{port}"])
        self.send(proxy, "m", address="::1", port=port)
        told, = introductions(self.server.mails()[0])
        self.assertEqual(told["ADDR"].upper(), "IPV6:::1")
        self.assertEqual(told["DESTADDR"].upper(), "IPV6:::1")

    def test_names_are_written_so_that_they_stay_one_word(self):
        proxy = self.served()
        for helo in ("a+b.test", "[127.0.0.1]", "x=y.test", "a" * 255):
            with self.subTest(helo=helo):
                before = len(self.server.mails())
                with smtp.Client(proxy.port) as client:
                    client.reply()
                    code, _ = client.cmd("EHLO " + helo)
                    if code != 250:
                        continue  # weir does not take it for a name
                    smtp.send_plain(client, mail.Message("m"))
                    client.quit()
                peer = self.server.mails()[before]
                line = next(x for x in peer.lines if x[:4] == "XCLI")
                self.assertLessEqual(len(line), 510)
                told, = introductions(peer)
                self.assertEqual(set(told), set(ATTRIBUTES))
                self.assertNotIn("=", told["HELO"])
                if len(helo) < 200:
                    self.assertEqual(
                        told["HELO"].replace("+2B", "\0").replace(
                            "+3D", "=").replace("\0", "+"), helo)

    def refusal(self, reply):
        first = self.start(backend.Backend(scripted()))
        other = self.start(backend.Backend(scripted()))
        proxy = self.weir_to(("first", first, {"weight": 1000}),
                             ("other", other, {"weight": 1})).up()
        first.play = scripted(reply)
        for number in range(3):
            self.send(proxy, f"m{number}")
        self.assertEqual(len(other.kept), 3, "the clients noticed nothing")
        self.assertEqual(first.mails(), [], "no word to who did not take it")
        return proxy

    def test_whatever_is_not_220_ends_the_connection(self):
        for reply in ("250 2.0.0 ok", "501 5.5.4 bad ADDR syntax",
                      "550 5.7.1 insufficient authorization",
                      "503 5.5.1 not now", "220-one\r\n250 other",
                      "421 4.3.2 too busy"):
            with self.subTest(reply=reply):
                if reply.startswith("220-"):
                    reply = "what?"
                self.refusal(reply).stop()

    def test_its_loss_is_hidden(self):
        def gone(peer):
            raise EOFError
        self.refusal(gone)

    def test_a_server_that_does_not_offer_it_gets_no_mail(self):
        server = self.start(backend.Backend())
        proxy = self.weir_to(("fake", server, {}),
                             health={"interval": "300ms"},
                             farm={"unavailable_after": "100ms"})
        lib.wait_until(lambda: proxy.row("fake")["probes_failed"] > 1,
                       "its probes fail")
        self.assertNotEqual(proxy.row("fake")["state"], "up")
        self.assertIn("xclient", (proxy.ctl("show", "health")
                                  + "\n".join(proxy.lines)).lower())

    def test_clients_may_not_say_it(self):
        made = pki.CA.issue("mx.test")
        proxy = self.served(listeners={"tls": {
            "tls": "starttls", "tls_cert": made.both}})
        for client in (smtp.Client(proxy.port),
                       smtp.Secured(proxy.ports["tls"])):
            self.addCleanup(client.close)
            self.assertNotIn("XCLIENT", client.hello())
            for line in ("XCLIENT ADDR=127.0.0.1 NAME=localhost",
                         "XFORWARD ADDR=127.0.0.1"):
                self.assertEqual(client.cmd(line)[0], 550)
            smtp.send_plain(client, mail.Message("m"))
        for peer in self.server.mails():
            self.assertEqual(len(introductions(peer)), 1)


class Kept(Case):
    """reuse = on."""

    def served(self, server, **farm):
        return self.weir_to((server.name, server, {"reuse": "on"}),
                            farm=dict({"reuse_share": "100%", "linger": "0",
                                       "reuse_idle": "30s"}, **farm),
                            weir={"workers": 1}).up()

    def test_each_client_is_introduced_and_all_is_told_again(self):
        server = self.start(backend.Backend(scripted()))
        proxy = self.served(server)
        lib.wait_until(lambda: server.open == 0, "the probe is over")
        for number in range(1, 6):
            self.send(proxy, f"m{number}", f"127.0.3.{number}",
                      f"c{number}.client.test")
            self.settled(proxy)
        peer, = server.mails()
        told = introductions(peer)
        self.assertEqual([one["ADDR"] for one in told],
                         [f"127.0.3.{n}" for n in range(1, 6)])
        self.assertEqual([one["HELO"] for one in told],
                         [f"c{n}.client.test" for n in range(1, 6)])
        for one in told:
            self.assertEqual(set(one), set(ATTRIBUTES))
        self.assertEqual(peer.early.count(b""), len(peer.early))

    def test_a_refusal_ends_it_and_another_connection_serves(self):
        """As Postfix refuses it, whose rule the first client does not
        meet."""
        count = [0]

        def once(peer):
            peer.times = getattr(peer, "times", 0) + 1
            count[0] += peer.times > 1
            return ("220 fake.test" if peer.times == 1 else
                    "550 5.7.0 Error: insufficient authorization")
        server = self.start(backend.Backend(scripted(once)))
        proxy = self.served(server)
        for number in range(1, 4):
            self.send(proxy, f"m{number}", f"127.0.3.{number}")
            self.settled(proxy)
        self.assertEqual(len(server.kept), 3)
        self.assertGreater(count[0], 0, "it was tried")
        for peer in server.mails():
            mails = [x for x in peer.lines if x.startswith("MAIL")]
            self.assertEqual(len(mails), 1, peer.lines)

    def test_a_connection_is_given_up_at_the_first_error(self):
        server = self.start(backend.Backend(scripted(
            rcpt=lambda peer: "550 5.1.1 nobody" if "nobody"
            in peer.lines[-1] else "250 2.1.5 ok")))
        proxy = self.served(server)
        with smtp.Client(proxy.port, source="127.0.3.1") as client:
            client.hello()
            client.cmd("MAIL FROM:<a@sender.test>")
            self.assertEqual(client.cmd("RCPT TO:<nobody@local.test>")[0],
                             550)
            client.cmd("RCPT TO:<u@local.test>")
            client.cmd("DATA")
            client.send(b"\r\n.\r\n")
            self.assertEqual(client.reply()[0], 250)
            client.quit()
        self.settled(proxy)
        self.send(proxy, "m", "127.0.3.2")
        self.assertEqual([len(introductions(peer))
                          for peer in server.mails()], [1, 1])


@lib.needs_root
class Postfix(Case):
    def served(self, *, listen=None, keys=None, farm=None, **settings):
        self.server = self.start(mta.Postfix(
            **dict({"xclient": "127.0.0.1"}, **settings)))
        self.proxy = self.weir_to(
            ("postfix", self.server, keys or {}), listen=listen,
            farm=dict({"linger": "0"}, **(farm or {})),
            weir={"workers": 1}).up()
        return self.proxy

    def kept(self, **settings):
        return self.served(
            keys={"reuse": "on"},
            farm={"reuse_share": "100%", "reuse_idle": "20s"}, **settings)

    def named(self, idents):
        """Each message's own Received field names its client."""
        self.server.settle()
        fields = mail.received(self.server)
        self.assertEqual(set(fields), set(idents))
        for ident, (source, helo) in idents.items():
            self.assertEqual(len(fields[ident]), 1)
            self.assertIn(f"from {helo} (unknown [{source}])",
                          fields[ident][0])

    def connections(self):
        """How often it was connected to for mail: what XCLIENT brings is
        logged as a connect too."""
        return self.proxy.info()["backend_connects"]

    def clients(self, count, proxy):
        told = {}
        for number in range(1, count + 1):
            source, helo = f"127.0.3.{number}", f"c{number}.client.test"
            self.send(proxy, f"m{number}", source, helo)
            told[f"m{number}"] = (source, helo)
            self.settled(proxy)
        return told

    def test_each_message_bears_its_clients_address(self):
        self.named(self.clients(4, self.served()))
        self.assertIn("client=unknown[127.0.3.4]", self.server.log())

    def test_two_clients_over_one_connection_are_each_themselves(self):
        proxy = self.kept(xclient="static:all")
        before = self.connections()
        told = self.clients(5, proxy)
        self.assertEqual(self.connections() - before, 1)
        self.named(told)
        for number in range(1, 6):
            self.assertIn(f"client=unknown[127.0.3.{number}]",
                          self.server.log())

    def test_under_tls_too(self):
        self.server = self.start(mta.Postfix(
            tls=pki.CA.issue("backend.test"), xclient="static:all"))
        self.proxy = self.weir_to(
            ("postfix", self.server, {
                "tls": "verify", "tls_name": "backend.test",
                "tls_ca": pki.CA.path, "reuse": "on"}),
            farm={"linger": "0", "reuse_share": "100%",
                  "reuse_idle": "20s"}, weir={"workers": 1}).up()
        before = self.connections()
        told = self.clients(3, self.proxy)
        self.assertEqual(self.connections() - before, 1)
        self.named(told)
        for fields in mail.received(self.server).values():
            self.assertIn("using TLSv1.3", fields[0])

    def test_where_the_first_client_may_not_say_it_no_second_is_lost(self):
        """Postfix asks again, of the client it was told of, whether that
        one may say XCLIENT."""
        proxy = self.kept(xclient="127.0.0.1")
        self.named(self.clients(4, proxy))
        self.assertEqual(len(proxy.log("event=reuse", "but once")), 1)

    def test_its_rule_about_pipelining_is_met(self):
        proxy = self.kept(
            xclient="static:all",
            more={"smtpd_forbid_unauth_pipelining": "yes"})
        messages = [mail.Message(f"p{number}", 5000 * (number % 5))
                    for number in range(60)]
        crowd = smtp.Crowd(proxy.port, messages, 6, "pipelined",
                           sources=[f"127.0.3.{n}" for n in range(1, 7)])
        crowd.start().join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.server.settle()
        mail.compare(self, messages, crowd.acked, mail.tally(self.server))
        self.assertNotIn("improper command pipelining", self.server.log())

    def test_one_clients_errors_are_not_the_nexts(self):
        """They would be: Postfix counts them on across XCLIENT."""
        proxy = self.kept(xclient="static:all", refused="nobody",
                          more={"smtpd_hard_error_limit": "3",
                                "smtpd_soft_error_limit": "2",
                                "smtpd_error_sleep_time": "0"})
        told = {}
        for number in range(1, 5):
            source, helo = f"127.0.3.{number}", f"c{number}.client.test"
            with smtp.Client(proxy.port, source=source) as client:
                client.hello(helo)
                client.cmd("MAIL FROM:<a@sender.test>")
                for _ in range(2):
                    self.assertEqual(
                        client.cmd("RCPT TO:<nobody@local.test>")[0], 450)
                client.cmd("RSET")
                client.quit()
            self.settled(proxy)
            self.send(proxy, f"m{number}", source, helo)
            self.settled(proxy)
            told[f"m{number}"] = (source, helo)
        self.named(told)
        self.assertNotIn("too many errors", self.server.log())

    def test_an_ipv6_client_is_not_taken_for_us_by_an_ipv4_server(self):
        """It answers 501 to the address, and would go on with ours."""
        port = lib.free_port("::1")
        self.served(listen=[f"[::1]:{port}"])
        with smtp.Client(port, "::1") as client:
            client.hello()
            code, _ = client.cmd("MAIL FROM:<a@sender.test>")
            self.assertIn(code, range(400, 500))
            client.quit()
        self.assertEqual(mail.tally(self.server), {})
        self.assertNotIn("client=localhost", self.server.log())

    def test_an_ipv6_client_goes_to_a_server_that_knows_the_family(self):
        port = lib.free_port("::1")
        self.served(listen=[f"[::1]:{port}"],
                    more={"inet_protocols": "all",
                          "inet_interfaces": "127.0.0.1"})
        with smtp.Client(port, "::1") as client:
            client.hello()
            smtp.send_plain(client, mail.Message("six"))
            client.quit()
        self.server.settle()
        fields = mail.received(self.server)
        self.assertIn("[IPv6:::1]", fields["six"][0])

    def test_the_client_is_who_is_trusted_to_relay(self):
        """What identity is for: the server's own rules meet the client."""
        proxy = self.served(mynetworks="127.0.3.9/32")
        for source, want in (("127.0.3.9", 250), ("127.0.3.8", 554)):
            with smtp.Client(proxy.port, source=source) as client:
                client.hello()
                client.cmd("MAIL FROM:<a@sender.test>")
                self.assertEqual(
                    client.cmd("RCPT TO:<v@elsewhere.test>")[0], want)
                client.quit()
