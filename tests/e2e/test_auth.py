"""AUTH is relayed and never looked into: submission to servers that check
passwords, by clients that other people wrote."""

import base64
import itertools
import os
import shutil
import smtplib
import socket

import backend
import lib
import mail
import mta
import pki
import smtp
import weir
import world

(USER, SECRET), = mta.USERS.items()
WRONG = "wrong-secret-0815"


def plain(secret=SECRET, user=USER):
    return base64.b64encode(f"\0{user}\0{secret}".encode()).decode()


def b64(text):
    return base64.b64encode(text.encode()).decode()


def traces(secret):
    """All that would give it away: as it is, and in base64 however it lay
    in what was encoded."""
    found = {secret, secret.encode().hex()}
    for before in range(3):
        for after in range(3):
            text = base64.b64encode(b"\0" * before + secret.encode()
                                    + b"\0" * after).decode()
            # the characters that are the secret's alone
            found.add(text[4 * (before > 0):len(text) - 4].rstrip("="))
    return {trace for trace in found if len(trace) > 7}


class Case(lib.Case):
    """weir for submission: 587 with TLS required, 465, one on which TLS is
    as one likes, and one for a trusted network."""

    def serve(self, *servers, keys=None, **sections):
        made = pki.CA.issue("mx.test")
        tls = {"tls_cert": made.both, "auth": "tls"}
        self.weir = self.start(weir.Weir(
            [(server.name if server.name != "fake" else f"fake{number}",
              server, keys or {}) for number, server in enumerate(servers)],
            listeners={
                "submission": dict(tls, tls="required"),
                "submissions": dict(tls, tls="implicit"),
                "starttls": dict(tls, tls="starttls"),
                "inside": {"auth": "always"}},
            weir={"log_level": "debug"}, **sections)).up()
        self.ports = self.weir.ports
        return self.weir

    def client(self, listener="submission", hello=True, source=None):
        if listener in ("inside", "in"):
            client = smtp.Client(self.ports.get(listener, self.weir.port),
                                 source=source)
        else:
            client = smtp.Secured(self.ports[listener],
                                  listener == "submissions", source=source)
        self.addCleanup(client.close)
        if hello:
            client.hello()
        return client

    def sessions(self, *words, count=1):
        return lib.wait_until(
            lambda: len(found := self.weir.log("event=session", *words))
            >= count and found, f"the log has {words}")

    def nothing_given_away(self, *more):
        """Neither by the log, nor by what weirctl has shown."""
        text = "\n".join(self.weir.lines + list(more))
        for secret in (SECRET, WRONG):
            for trace in traces(secret):
                self.assertNotIn(trace, text)


class Scripted(Case):
    """Servers whose every word we know."""

    MECHANISMS = "AUTH PLAIN LOGIN CRAM-MD5 XOAUTH2 OAUTHBEARER " \
        "SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-256-PLUS NTLM GSSAPI"

    def script(self, *talk, offer=MECHANISMS):
        """talk: what the server answers to AUTH and each line behind it."""
        base = backend.script(keywords=backend.KEYWORDS + (offer,))

        def play(peer):
            read = peer.line
            peer.credentials = []

            def line():
                text = read()
                while text[:4].upper() == "AUTH":
                    for answer in talk:
                        peer.credentials.append(text)
                        if answer is backend.CLOSE:
                            raise EOFError
                        peer.send(answer)
                        if answer[0] != "3":
                            break
                        text = read()
                    text = read()
                return text
            peer.line = line
            base(peer)
        return play

    def farm(self, *talk, count=1, **more):
        self.servers = [self.start(backend.Backend(
            self.script(*talk, **more))) for _ in range(count)]
        self.serve(*self.servers)

    def logged_in(self, client, command=None):
        code, text = client.cmd(command or "AUTH PLAIN " + plain())
        self.assertEqual(code, 235, text)

    def test_it_is_offered_where_the_listener_says_so(self):
        self.farm("235 2.7.0 ok")
        want = {"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER",
                "SCRAM-SHA-1", "SCRAM-SHA-256"}
        for listener in ("submission", "submissions", "starttls", "inside"):
            client = self.client(listener)
            self.assertEqual(set(client.keywords["AUTH"].split()), want)
            if listener in ("submission", "starttls"):
                self.assertNotIn("AUTH", client.plain_keywords)
        self.assertNotIn("AUTH", self.client("in").keywords)

    def test_it_is_not_taken_where_it_is_not_offered(self):
        self.farm("235 2.7.0 ok")
        for port, codes in ((self.weir.port, (502, 503)),
                            (self.ports["submission"], (530,)),
                            (self.ports["starttls"], (502, 503, 530, 538))):
            with smtp.Client(port) as client:
                client.hello()
                code, text = client.cmd("AUTH PLAIN " + plain())
                self.assertIn(code, codes, text)
                client.quit()
        self.assertFalse([peer for server in self.servers
                          for peer in server.peers if peer.credentials])
        self.nothing_given_away()

    def test_what_all_servers_offer_is_offered(self):
        self.servers = [self.start(backend.Backend(self.script(
            "235 2.7.0 ok", offer="AUTH " + offer))) for offer in
            ("PLAIN LOGIN SCRAM-SHA-256", "LOGIN PLAIN", "PLAIN LOGIN XYZ")]
        self.serve(*self.servers)
        self.assertEqual(set(self.client().keywords["AUTH"].split()),
                         {"PLAIN", "LOGIN"})

    def test_none_is_offered_if_one_server_has_none(self):
        self.servers = [self.start(backend.Backend(self.script(
            "235 2.7.0 ok"))), self.start(backend.Backend())]
        self.serve(*self.servers)
        client = self.client()
        self.assertNotIn("AUTH", client.keywords)
        self.assertIn(client.cmd("AUTH PLAIN " + plain())[0], (502, 503, 504))

    def test_each_line_reaches_the_server_as_it_is(self):
        for command, lines in (
                ("AUTH PLAIN " + plain(), []),
                ("AUTH PLAIN", [plain()]),
                ("auth login", [b64(USER), b64(SECRET)]),
                ("AUTH LOGIN " + b64(USER), [b64(SECRET)]),
                ("AUTH XOAUTH2 " + b64("user=u\1auth=Bearer t\1\1"), []),
                ("AUTH OAUTHBEARER", ["=", b64("x" * 3000)]),
                ("AUTH SCRAM-SHA-256 =", [b64("n,,n=u,r=1"), ""]),
                ("AUTH PLAIN " + b64("y" * 8000), [])):
            with self.subTest(command=command[:30]):
                challenges = [f"334 {b64('say ' + str(n))}"
                              for n in range(len(lines))]
                self.farm(*challenges, "235 2.7.0 ok")
                client = self.client()
                code, text = client.cmd(command)
                for challenge, line in zip(challenges, lines):
                    self.assertEqual(f"{code} {text}", challenge)
                    code, text = client.cmd(line)
                self.assertEqual((code, text), (235, "2.7.0 ok"))
                peer, = [p for p in self.servers[0].peers if p.credentials]
                self.assertEqual(peer.credentials, [command] + lines)
                smtp.send_plain(client, mail.Message("m"))
                client.quit()
                self.weir.stop()

    def test_a_session_that_logged_in_stays_with_its_server(self):
        self.farm("235 2.7.0 ok", count=3)
        for number in range(6):
            client = self.client()
            self.logged_in(client)
            for count in range(3):
                smtp.send_plain(client,
                                mail.Message(f"m{number}-{count}"))
            client.quit()
        peers = [peer for server in self.servers for peer in server.mails()]
        self.assertEqual(len(peers), 6)
        for peer in peers:
            self.assertEqual(len(peer.credentials), 1)
            self.assertEqual(
                len([x for x in peer.lines if x.startswith("MAIL")]), 3)

    def test_its_servers_end_is_its_end(self):
        """Nobody else knows who the client is."""
        self.farm("235 2.7.0 ok", count=2)
        client = self.client()
        self.logged_in(client)
        smtp.send_plain(client, mail.Message("m"))
        mine, = [peer for server in self.servers for peer in server.mails()]
        mine.sock.shutdown(socket.SHUT_RDWR)
        rest = client.rest()
        self.assertTrue(rest.startswith(b"421 4.4.2 "), rest)
        self.assertEqual(rest.count(b"\r\n"), 1, rest)

    def test_once_is_enough_and_not_in_a_transaction(self):
        self.farm("235 2.7.0 ok")
        client = self.client()
        smtp.envelope(client, mail.Message("m"))
        self.assertEqual(client.cmd("AUTH PLAIN " + plain())[0], 503)
        self.assertEqual(client.cmd("RSET")[0], 250)
        self.logged_in(client)
        self.assertEqual(client.cmd("AUTH PLAIN " + plain())[0], 503)
        smtp.send_plain(client, mail.Message("m"))

    def test_a_client_may_give_up(self):
        self.farm("334 VXNlcm5hbWU6", "501 5.7.0 cancelled")
        client = self.client()
        self.assertEqual(client.cmd("AUTH LOGIN")[0], 334)
        self.assertEqual(client.cmd("*"), (501, "5.7.0 cancelled"))
        smtp.send_plain(client, mail.Message("m"))

    def test_what_is_no_mechanism_of_the_farm_is_refused(self):
        self.farm("235 2.7.0 ok")
        client = self.client()
        for line, codes in (("AUTH NTLM", (504,)), ("AUTH", (501,)),
                            ("AUTH SCRAM-SHA-256-PLUS", (504,)),
                            ("AUTH ?", (501, 504)),
                            ("AUTH PLAIN a b", (501,))):
            with self.subTest(line=line):
                self.assertIn(client.cmd(line)[0], codes)
        self.assertFalse(any(p.credentials for p in self.servers[0].peers))

    def test_a_temporary_failure_is_one_for_the_client(self):
        self.farm("454 4.7.0 try later")
        client = self.client()
        self.assertEqual(client.cmd("AUTH PLAIN " + plain())[0], 454)
        smtp.send_plain(client, mail.Message("m"))

    def test_secrets_are_nowhere(self):
        """Not in the log at its most talkative, not in what weirctl shows
        while the client is at it; nor when the server goes in the midst."""
        self.farm("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6",
                  "535 5.7.8 wrong")
        shown = []
        client = self.client()
        client.cmd("AUTH LOGIN")
        client.cmd(b64(USER))
        client.send(b64(SECRET)[:5].encode())
        shown += [self.weir.ctl("show", "sessions"),
                  self.weir.ctl("show", "events", check=False)]
        client.send(b64(SECRET)[5:].encode() + b"\r\n")
        self.assertEqual(client.reply()[0], 535)
        for play in (self.script(backend.CLOSE),
                     self.script("334 ", backend.CLOSE),
                     self.script("x" * 5000), self.script("999 what?"),
                     self.script("334 ", "535 5.7.8 wrong: " + SECRET[:3])):
            self.servers[0].play = play
            client = self.client()
            try:
                client.cmd("AUTH PLAIN " + plain(WRONG))
                client.cmd(plain(SECRET))
                client.quit()
            except smtp.Gone:
                pass
            shown.append(self.weir.ctl("show", "sessions"))
        # lines that are too long, or not what they should be
        client = self.client()
        client.send(b"AUTH PLAIN " + (plain() * 1000).encode() + b"\r\n")
        self.assertEqual(client.reply()[0] // 100, 5)
        self.weir.stop()
        self.nothing_given_away(*shown)


@lib.needs_root
class Failed(Case):
    """Failed logins, counted per source."""

    def setUp(self):
        server = self.start(mta.Exim(auth=True))
        self.serve(server, admission={"failed_logins": "3/h burst 3"})

    def attempt(self, source, secret):
        with self.client(source=source) as client:
            answer = client.cmd("AUTH PLAIN " + plain(secret))
            client.quit()
        return answer

    def test_too_many_close_the_door_to_the_source(self):
        codes = []
        for _ in range(6):
            answer = self.attempt("127.0.3.1", WRONG)
            codes.append(answer[0])
        refusals = codes.index(454)
        self.assertIn(refusals, (3, 4), codes)
        self.assertEqual(codes, [535] * refusals + [454] * (6 - refusals))
        self.assertTrue(answer[1].startswith("4.7.0 "), answer)
        # nor with the right one now: who guesses, learns nothing
        self.assertEqual(self.attempt("127.0.3.1", SECRET)[0], 454)
        self.assertEqual(self.attempt("127.0.3.2", SECRET)[0], 235)
        with self.client(source="127.0.3.1") as client:
            smtp.send_plain(client, mail.Message("without"))
            client.quit()
        self.nothing_given_away()

    def test_good_ones_are_not_counted(self):
        codes = [self.attempt("127.0.3.1", SECRET)[0] for _ in range(8)]
        self.assertEqual(codes, [235] * 8)


@lib.needs_root
class RealServers(Case):
    def each(self, server, mechanisms):
        """Each mechanism with each client, on both ports, right and
        wrong."""
        self.server = self.start(server)
        self.serve(server)
        path = os.path.join(world.work(), "submitted.eml")
        message = mail.Message("submitted")
        with open(path, "wb") as file:
            file.write(message.data)
        expected = 0
        for client, mechanism, listener in itertools.product(
                (self.swaks, self.curl, self.smtplib, self.msmtp),
                mechanisms, ("submission", "submissions")):
            good, bad = (client(mechanism, listener, path, secret)
                         for secret in (SECRET, WRONG))
            if good is None:
                continue  # it does not know the mechanism
            with self.subTest(client=client.__name__, mechanism=mechanism,
                              listener=listener):
                self.assertTrue(good, "with the right secret")
                self.assertFalse(bad, "with a wrong one")
            expected += 1
        server.settle()
        copies = mail.tally(server)["submitted"]
        self.assertEqual(len(copies), expected)
        self.assertGreaterEqual(expected, 3 * 2 * len(mechanisms) - 6)
        self.weir.stop()
        self.nothing_given_away()

    def ran(self, done):
        return done.returncode == 0

    def swaks(self, mechanism, listener, path, secret):
        if mechanism.startswith("SCRAM"):
            return None
        return self.ran(self.command(
            "swaks", "--silent", "2", "-s", "127.0.0.1", "-p",
            str(self.ports[listener]), "-h", "client.test", "-f",
            "a@sender.test", "-t", "u@local.test", "--data", "@" + path,
            "--tls-on-connect" if listener == "submissions" else "--tls",
            "--auth", mechanism, "--auth-user", USER,
            "--auth-password", secret))

    def curl(self, mechanism, listener, path, secret):
        if mechanism.startswith("SCRAM"):
            return None
        scheme = "smtps" if listener == "submissions" else "smtp"
        return self.ran(self.command(
            "curl", "-sS", "--ssl-reqd", "-k",
            f"{scheme}://127.0.0.1:{self.ports[listener]}/client.test",
            "--mail-from", "a@sender.test", "--mail-rcpt", "u@local.test",
            "--upload-file", path, "--user", f"{USER}:{secret}",
            "--login-options", "AUTH=" + mechanism))

    def smtplib(self, mechanism, listener, path, secret):
        name = "auth_" + mechanism.lower().replace("-", "_")
        if not hasattr(smtplib.SMTP, name):
            return None
        context = smtp.trusting()
        port = self.ports[listener]
        if listener == "submissions":
            client = smtplib.SMTP_SSL("127.0.0.1", port, "client.test",
                                      context=context)
        else:
            client = smtplib.SMTP("127.0.0.1", port, "client.test")
            client.starttls(context=context)
        with client:
            client.ehlo()
            client.user, client.password = USER, secret
            try:
                client.auth(mechanism, getattr(client, name))
            except smtplib.SMTPAuthenticationError as error:
                self.assertEqual(error.smtp_code, 535)
                return False
            with open(path, "rb") as file:
                client.sendmail("a@sender.test", ["u@local.test"],
                                file.read())
        return True

    def msmtp(self, mechanism, listener, path, secret):
        if not shutil.which("msmtp"):
            return None
        with open(path, "rb") as stdin:
            return self.ran(self.command(
                "msmtp", "--host=127.0.0.1",
                f"--port={self.ports[listener]}", "--tls=on",
                "--tls-certcheck=off", "--tls-starttls="
                + ("off" if listener == "submissions" else "on"),
                "--auth=" + mechanism.lower(), "--user=" + USER,
                "--passwordeval=echo " + secret, "-f", "a@sender.test",
                "u@local.test", stdin=stdin))

    def test_exim(self):
        self.each(mta.Exim(auth=True), ("PLAIN", "LOGIN", "CRAM-MD5"))
        self.assertIn("A=login:tester", self.server.log())

    def test_postfix(self):
        self.each(mta.Postfix(auth=True),
                  ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1",
                   "SCRAM-SHA-256"))
        self.assertIn("sasl_method=SCRAM-SHA-256, sasl_username=tester",
                      self.server.log())

    def test_over_tls_to_the_server_and_with_the_clients_name(self):
        """The whole way of submission: the server relays for who logged
        in, knows where he is, and for nobody else."""
        server = self.start(mta.Postfix(
            auth=True, tls=pki.CA.issue("backend.test"),
            xclient="127.0.0.1",
            more={"smtpd_tls_auth_only": "yes"}))
        self.serve(server, keys={
            "tls": "verify", "tls_name": "backend.test",
            "tls_ca": pki.CA.path, "identity": "xclient"})
        client = self.client(source="127.0.3.7")
        client.cmd("MAIL FROM:<a@sender.test>")
        self.assertEqual(client.cmd("RCPT TO:<v@elsewhere.test>")[0], 554)
        client.cmd("RSET")
        self.assertEqual(client.cmd("AUTH PLAIN " + plain(WRONG))[0], 535)
        self.assertEqual(client.cmd("AUTH PLAIN " + plain())[0], 235)
        client.cmd("MAIL FROM:<a@sender.test>")
        self.assertEqual(client.cmd("RCPT TO:<v@elsewhere.test>")[0], 250)
        client.cmd("RSET")
        smtp.send_plain(client, mail.Message("m"))
        client.quit()
        server.settle()
        field = mail.received(server)["m"][0]
        self.assertIn("[127.0.3.7]", field)
        self.assertIn("Authenticated sender: tester", field)
        self.weir.stop()
        self.nothing_given_away()
