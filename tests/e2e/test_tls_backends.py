"""TLS to backends: whom weir talks to, and what it does when that is not who
it should be; with real servers and with scripted ones."""

import json
import ssl

import backend
import lib
import mail
import mta
import pki
import smtp
import weir

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NAME = "backend.test"


def good():
    return pki.CA.issue(NAME, "127.0.0.1")


def keys_of(level, mode="starttls", name=NAME):
    keys = {"tls": level, "tls_mode": mode, "tls_name": name}
    return dict(keys, tls_ca=pki.CA.path) if level == "verify" else keys


# What from the start is TLS cannot go without.
WAYS = [(level, mode) for level in ("opportunistic", "required", "verify")
        for mode in ("starttls", "implicit")
        if (level, mode) != ("opportunistic", "implicit")]


class Case(lib.Case):
    def send(self, proxy, ident="m", count=1):
        """`count` messages, each from a client of its own."""
        for number in range(count):
            with smtp.Client(proxy.port) as client:
                client.hello()
                smtp.send_plain(client, mail.Message(f"{ident}{number}"))
                client.quit()

    def refused(self, proxy):
        """MAIL finds no backend."""
        with smtp.Client(proxy.port) as client:
            code, text = client.reply()
            if code == 220:
                client.ehlo()
                code, text = client.cmd("MAIL FROM:<a@sender.test>")
        self.assertIn(code, (421, 451), text)

    def weir_to(self, server, address=None, **keys):
        return self.start(weir.Weir(
            [(server.name, address or server, keys)],
            farm={"linger": "0", "unavailable_after": "100ms"},
            room={"wait": "300ms"}, health={"interval": "500ms"}))

    def is_down(self, proxy, server, why):
        """Its probes fail, for a reason that an operator can read."""
        name = server.name
        lib.wait_until(lambda: proxy.row(name)["probes_failed"] > 1,
                       "its probes fail")
        row, = json.loads(proxy.ctl("show", "health", "json"))["health"]
        self.assertEqual(row["state"], "down")
        self.assertRegex(
            f"{row['probe']}: {row['error']} {row['code']} {row['reply']}",
            why)
        self.refused(proxy)


def scripted(test, made=None, **more):
    """A scripted server with TLS."""
    context = backend.server_context(made or good(), more.pop("ca", None))
    for name in ("maximum_version",):
        if name in more:
            setattr(context, name, more.pop(name))
    server = test.start(backend.Backend(backend.script(tls=context, **more)))
    server.context = context
    return server


class Levels(Case):
    def secured(self, server):
        self.assertTrue(server.mails())
        return [bool(peer.secured) for peer in server.mails()]

    def test_none_does_not_try(self):
        server = scripted(self)
        self.send(self.weir_to(server).up())
        self.assertEqual(self.secured(server), [False])
        self.assertFalse(any(peer.clear for peer in server.peers))

    def test_each_other_level_uses_it(self):
        for level, mode in WAYS:
            with self.subTest(level=level, mode=mode):
                server = scripted(self, implicit=mode == "implicit")
                proxy = self.weir_to(server, **keys_of(level, mode)).up()
                self.send(proxy, count=3)
                self.assertEqual(self.secured(server), [True] * 3)
                for peer in server.mails():
                    self.assertEqual(
                        [line[:4] for line in peer.clear],
                        ["EHLO", "STAR"] if mode == "starttls" else [])
                    self.assertEqual(peer.lines[0][:4], "EHLO")
                self.assertEqual(set(server.context.sni), {NAME})
                row = proxy.row(server.name)
                self.assertEqual(row["probes_failed"], 0, row)
                proxy.stop()

    def test_from_the_start_cannot_be_opportunistic(self):
        proxy = self.start(weir.Weir([("a", "127.0.0.1:9", {})]))
        said = proxy.ctl("add", "backend", "b", "address=127.0.0.1:10",
                         "tls=opportunistic", "tls_mode=implicit",
                         check=False)
        self.assertIn("cannot be opportunistic", said)

    def test_opportunistic_goes_without_where_it_is_not_offered(self):
        server = self.start(backend.Backend())
        self.send(self.weir_to(server, tls="opportunistic").up())
        self.assertEqual(self.secured(server), [False])

    def test_opportunistic_goes_without_where_it_is_refused(self):
        def play(peer):
            peer.send("220 fake.test")
            while True:
                verb = peer.line()[:4]
                if verb == "EHLO":
                    peer.send("250-fake.test\r\n250 STARTTLS")
                elif verb == "DATA":
                    peer.send("354 go on")
                    peer.data()
                    peer.backend.keep(peer)
                    peer.send("250 2.0.0 stored")
                else:
                    peer.send("454 4.7.0 not now" if verb == "STAR"
                              else "250 2.0.0 ok")
        server = self.start(backend.Backend(play))
        self.send(self.weir_to(server, tls="opportunistic").up())
        self.assertEqual(len(server.kept), 1)
        for level in ("required", "verify"):
            with self.subTest(level=level):
                before = len(server.mails())
                proxy = self.weir_to(server, **keys_of(level))
                self.is_down(proxy, server, "tls.*454.*not now")
                self.assertEqual(len(server.mails()), before)

    def test_opportunistic_takes_any_certificate(self):
        for made in (pki.CA.issue("other.test"), pki.CA.issue(NAME, days=0),
                     pki.STRANGER.issue(NAME)):
            server = scripted(self, made)
            self.send(self.weir_to(server, tls="opportunistic").up())
            self.assertEqual(self.secured(server), [True])

    def test_required_takes_any_certificate_but_never_none(self):
        server = scripted(self, pki.STRANGER.issue("other.test", days=0))
        self.send(self.weir_to(server, tls="required").up())
        self.assertEqual(self.secured(server), [True])
        plain = self.start(backend.Backend(name="plain"))
        self.is_down(self.weir_to(plain, tls="required"), plain,
                     "tls_refused: ")
        self.assertEqual(plain.mails(), [])

    def test_versions_are_those_of_the_rules(self):
        server = scripted(self, maximum_version=TLS12)
        self.send(self.weir_to(server, tls="required").up())
        self.assertEqual([peer.secured.version for peer in server.mails()],
                         ["TLSv1.2"])
        proxy = self.start(weir.Weir(
            [(server.name, server, {"tls": "required"})],
            tls={"min_version": "1.3"}, room={"wait": "300ms"},
            farm={"unavailable_after": "100ms"}))
        self.is_down(proxy, server, "tls_failed: .*(alert|handshake)")

    def test_our_certificate_is_shown_where_one_is_asked_for(self):
        ours = pki.CA.issue("weir.test", use="client")
        server = scripted(self, ca=pki.CA.path, maximum_version=TLS12)
        proxy = self.weir_to(server, tls="required", tls_cert=ours.both).up()
        self.send(proxy)
        self.assertEqual(
            server.mails()[0].secured.cert["subject"],
            ((("commonName", "weir.test"),),))
        proxy.stop()
        self.is_down(self.weir_to(server, tls="required"), server,
                     "tls_failed: .*(alert|handshake)")


class Verify(Case):
    """tls = verify: each mistake keeps the backend from getting mail."""

    def try_one(self, made, why="", **keys):
        server = scripted(self, made)
        proxy = self.weir_to(server, tls="verify", **keys)
        if why:
            self.is_down(proxy, server, "tls_failed: .*" + why)
            self.assertEqual(server.mails(), [])
        else:
            self.send(proxy.up())
            self.assertEqual(len(server.kept), 1)
        proxy.stop()

    def test_the_name(self):
        for made, name, why in (
                (pki.CA.issue(NAME), NAME, ""),
                (pki.CA.issue("*.backend.test"), "mx." + NAME, ""),
                (pki.CA.issue("127.0.0.1"), "", ""),
                (pki.CA.issue("other.test"), NAME,
                 f"is for other.test, not for {NAME}"),
                (pki.CA.issue(NAME), "", f"is for {NAME}, not for 127")):
            with self.subTest(made=made.cert, name=name):
                self.try_one(made, why, tls_ca=pki.CA.path,
                             **({"tls_name": name} if name else {}))

    def test_the_authority(self):
        for made, why in ((pki.STRANGER.issue(NAME), "issuer"),
                          (pki.CA.issue(NAME, days=0), "expired")):
            with self.subTest(why=why):
                self.try_one(made, why, tls_ca=pki.CA.path, tls_name=NAME)
        # the system's authorities know nothing of ours
        self.try_one(pki.CA.issue(NAME), "issuer", tls_ca="system",
                     tls_name=NAME)

    def test_a_pin_in_the_place_of_names_and_authorities(self):
        made, other = pki.STRANGER.issue("any.test"), pki.CA.issue(NAME)
        for pin in (made.pin, made.pin.upper(), made.pin64):
            with self.subTest(pin=pin):
                self.try_one(made, tls_pin=pin)
        self.try_one(made, tls_pin=[other.pin, made.pin])

    def test_the_wrong_pin_whatever_else_is_right(self):
        made, other = pki.CA.issue(NAME), pki.CA.issue("other.test")
        self.try_one(made, "none of those pinned", tls_pin=other.pin,
                     tls_name=NAME)

    def test_a_key_that_changes_stops_the_mail_and_may_come_back(self):
        first, second = pki.CA.issue(NAME), pki.STRANGER.issue(NAME)
        server = scripted(self, first)
        proxy = self.weir_to(server, tls="verify", tls_name=NAME,
                             tls_ca=pki.CA.path).up()
        self.send(proxy)
        play = server.play
        server.play = backend.script(tls=backend.server_context(second))
        lib.wait_until(lambda: proxy.row(server.name)["state"] != "up",
                       "it is down")
        self.refused(proxy)
        server.play = play
        proxy.up()
        self.send(proxy)
        self.assertEqual(len(server.kept), 2)


class Seen(Case):
    def test_how_long_the_certificate_is_good(self):
        for days in (90, 5):
            server = scripted(self, pki.CA.issue(NAME, days=days))
            proxy = self.weir_to(server, tls="verify", tls_name=NAME,
                                 tls_ca=pki.CA.path).up()
            row, = json.loads(proxy.ctl("show", "health", "json"))["health"]
            self.assertEqual((row["cert_days"], row["verified"]),
                             (days - 1, "yes"))
            said = f"The certificate of fake expires in {days - 1} days"
            (self.assertIn if days < 10 else self.assertNotIn)(
                said, proxy.ctl("status"))
            proxy.stop()

    def test_sessions_are_resumed(self):
        for version in (TLS12, TLS13):
            for implicit in (False, True):
                server = scripted(self, implicit=implicit,
                                  maximum_version=version)
                proxy = self.weir_to(server, **keys_of(
                    "verify", "implicit" if implicit else "starttls")).up()
                self.send(proxy, count=12)
                reused = [peer.secured.resumed
                          for peer in server.mails()]
                # each worker begins with a full handshake
                self.assertGreaterEqual(reused.count(True), 8, reused)
                proxy.stop()


@lib.needs_root
class RealServers(Case):
    def delivers(self, server, proxy, count=3):
        messages = [mail.Message(f"r{n}", 5000 * n) for n in range(count)]
        for message in messages:
            with smtp.Client(proxy.port) as client:
                client.hello()
                smtp.send_pipelined(client, message)
                client.quit()
        server.settle()
        mail.compare(self, messages, [m.ident for m in messages],
                     mail.tally(server))

    def each(self, server, log_says):
        self.start(server)
        addresses = {"starttls": server.address,
                     "implicit": f"127.0.0.1:{server.smtps}"}
        for level, mode in WAYS:
            proxy = self.weir_to(server, addresses[mode],
                                 **keys_of(level, mode)).up()
            self.send(proxy, f"{mode}-{level}")
            proxy.stop()
        for mode, address in addresses.items():
            proxy = self.weir_to(server, address, **keys_of(
                "verify", mode, "wrong.test"))
            self.is_down(proxy, server, "not for wrong.test")
            proxy.stop()
        server.settle()
        self.assertEqual(len(mail.tally(server)), len(WAYS))
        self.assertGreaterEqual(server.log().count(log_says), len(WAYS))

    def test_postfix(self):
        self.each(mta.Postfix(tls=good(), many=True),
                  "TLS connection established from")

    def test_exim(self):
        self.each(mta.Exim(tls=good()), "P=esmtps X=TLS1.3:")

    def test_postscreen(self):
        server = self.start(mta.Postfix(tls=good()))
        proxy = self.weir_to(server, server.screen_address, tls="verify",
                             tls_name=NAME, tls_ca=pki.CA.path).up()
        self.delivers(server, proxy)

    def test_opensmtpd_offers_it_and_fails(self):
        """Debian's: opportunistic goes on without, required does not."""
        server = self.start(mta.OpenSmtpd(tls=good()))
        proxy = self.weir_to(server, tls="opportunistic").up()
        self.delivers(server, proxy)
        self.assertIn("io-error", server.log())
        proxy.stop()
        proxy = self.weir_to(server, tls="required")
        self.is_down(proxy, server, "tls_failed: .*(alert|handshake)")
