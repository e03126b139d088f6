"""TLS with clients that other people wrote, on all three kinds of listener;
certificates by name and by key, resumed sessions, and reloads."""

import hashlib
import os
import re
import shutil
import smtplib
import socket
import ssl
import subprocess

import backend
import lib
import mail
import mta
import pki
import smtp
import weir
import world

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
KINDS = ("starttls", "required", "implicit")


def cert(*parts):
    """A value for tls_cert."""
    return " ".join(parts)


def pair(*names, **more):
    return pki.CA.issue(*names, **more)


def fingerprint(sock):
    return hashlib.sha256(sock.getpeercert(True)).hexdigest()


class SClient(smtp.Client):
    """openssl s_client, talked through as if it were the connection."""

    def __init__(self, port, *options, implicit=False):
        ours, its = socket.socketpair()
        ours.settimeout(lib.PATIENCE)
        self.sock, self.buffer, self.keywords = ours, b"", {}
        self.child = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}",
             "-brief", "-ign_eof", *([] if implicit else
                                     ["-starttls", "smtp"]), *options],
            stdin=its, stdout=its, stderr=subprocess.PIPE)
        its.close()

    def close(self):
        super().close()
        self.child.kill()
        self.said = self.child.communicate()[1].decode("utf-8", "replace")


class Case(lib.Case):
    """weir with a listener of each kind, in front of one scripted server."""

    def serve(self, certs=None, keys=None, **sections):
        self.backend = self.start(backend.Backend())
        certs = certs or [self.standard()]
        keys = keys or {}
        self.weir = self.start(weir.Weir(
            [("a", self.backend, {})],
            listeners={kind: dict({"tls": kind, "tls_cert": certs}, **keys)
                       for kind in KINDS}, **sections)).up()
        self.ports = self.weir.ports
        return self.weir

    @staticmethod
    def standard():
        made = pair("mx.test")
        return cert(made.cert, made.key)

    def client(self, kind="starttls", hello=True, **more):
        client = smtp.Secured(self.ports[kind], kind == "implicit", **more)
        self.addCleanup(client.close)
        if hello:
            client.hello()
        return client

    def sessions(self, *words, count=1):
        return lib.wait_until(
            lambda: len(found := self.weir.log("event=session", *words))
            >= count and found, f"the log has {words}")


class Clients(Case):
    """Each sends a message over each kind of listener; it arrives whole."""

    def setUp(self):
        self.serve()
        self.ca = pki.CA.path
        self.folder = os.path.join(world.work(), "tls-clients")
        os.makedirs(self.folder, exist_ok=True)

    def each(self, name, call):
        for kind in KINDS:
            with self.subTest(client=name, listener=kind):
                message = mail.Message(f"{name}-{kind}", 40_000)
                path = os.path.join(self.folder, message.ident)
                with open(path, "wb") as file:
                    file.write(message.data)
                with open(path + ".lf", "wb") as file:
                    file.write(message.data.replace(b"\r\n", b"\n")[:-1])
                done = call(kind, self.ports[kind], message, path)
                if done is not None:
                    self.assertEqual(done.returncode, 0, done.stdout)
                kept = self.backend.kept[-1]
                if name == "msmtp":  # it adds to the header
                    self.assertTrue(kept.endswith(message.body))
                else:
                    self.assertEqual(kept, message.data)
        self.assertEqual(len(self.backend.kept), len(KINDS))
        for line in self.sessions("messages=1", count=len(KINDS)):
            self.assertIn(line["tls"], ("TLSv1.2", "TLSv1.3"))

    def test_swaks(self):
        if self.command("perl", "-MNet::SSLeay", "-e", "1").returncode:
            self.skipTest("needs libnet-ssleay-perl")
        self.each("swaks", lambda kind, port, message, path: self.command(
            "swaks", "--silent", "2", "-s", "127.0.0.1", "-p", str(port),
            "-h", "client.test", "-f", message.ident + "@sender.test",
            "-t", "u@local.test", "--data", "@" + path + ".lf",
            "--tls-on-connect" if kind == "implicit" else "--tls",
            "--tls-sni", "mx.test"))

    def test_curl(self):
        """It checks the certificate's name, as a browser would."""
        self.each("curl", lambda kind, port, message, path: self.command(
            "curl", "-sS", "--ssl-reqd", "--cacert", self.ca,
            "--resolve", f"mx.test:{port}:127.0.0.1",
            f"smtp{'s' if kind == 'implicit' else ''}"
            f"://mx.test:{port}/client.test",
            "--mail-from", message.ident + "@sender.test",
            "--mail-rcpt", "u@local.test", "--upload-file", path))

    def test_smtplib(self):
        def by_smtplib(kind, port, message, _):
            context = smtp.trusting(self.ca)
            context.check_hostname = False  # it connects to an address
            if kind == "implicit":
                client = smtplib.SMTP_SSL("127.0.0.1", port, "client.test",
                                          context=context)
            else:
                client = smtplib.SMTP("127.0.0.1", port, "client.test")
                client.starttls(context=context)
            client.sendmail(message.ident + "@sender.test", ["u@local.test"],
                            message.data)
            client.quit()
        self.each("smtplib", by_smtplib)

    def test_openssl(self):
        def by_openssl(kind, port, message, _):
            client = SClient(port, "-CAfile", self.ca, "-servername",
                             "mx.test", "-verify_hostname", "mx.test",
                             "-verify_return_error",
                             implicit=kind == "implicit")
            with client:
                if kind == "implicit":
                    client.reply()
                client.ehlo()
                smtp.send_pipelined(client, message)
                client.cmd("QUIT")
            self.assertIn("Verification: OK", client.said)
        self.each("openssl", by_openssl)

    def test_msmtp(self):
        def by_msmtp(kind, port, message, path):
            with open(path, "rb") as stdin:
                return self.command(
                    "msmtp", "--host=127.0.0.1", f"--port={port}",
                    "--tls=on", "--auth=off", "--tls-certcheck=on",
                    "--tls-host-override=mx.test",
                    "--tls-trust-file=" + self.ca, "--tls-starttls="
                    + ("off" if kind == "implicit" else "on"),
                    "-f", message.ident + "@sender.test", "u@local.test",
                    stdin=stdin)
        if not shutil.which("msmtp"):
            self.skipTest("needs msmtp")
        self.each("msmtp", by_msmtp)


@lib.needs_root
class SendingServers(Case):
    """Postfix and Exim, as they send to any other mail server."""

    def sends(self, out, ident):
        self.start(out)
        before = len(self.backend.kept)
        message = mail.Message(ident, 30_000)
        with smtp.Client(out.port) as client:
            client.hello()
            smtp.send_plain(client, message)
            client.quit()
        lib.wait_until(lambda: len(self.backend.kept) > before,
                       f"{out.name} has sent it: {out.log()}")
        out.settle()
        kept = self.backend.kept[before:]
        self.assertEqual(len(kept), 1)
        self.assertIn(b"X-Test-Id: " + ident.encode(), kept[0])
        self.assertTrue(kept[0].endswith(b"\r\n\r\n" + message.body),
                        "it is unharmed")
        line = self.sessions("client=" + out.source, "messages=1")[-1]
        self.assertEqual(line["tls"], "TLSv1.3")
        self.assertEqual(line["close"], "quit")
        return out.log()

    def test_postfix_over_starttls_knows_whom_it_talks_to(self):
        self.serve()
        log = self.sends(mta.PostfixOut(
            self.ports["required"], level="secure",
            more={"smtp_tls_CAfile": pki.CA.path,
                  "smtp_tls_secure_cert_match": "mx.test"}), "postfix")
        self.assertIn("Verified TLS connection established", log)

    def test_postfix_over_tls_from_the_start(self):
        self.serve()
        log = self.sends(mta.PostfixOut(self.ports["implicit"],
                                        wrapped=True), "postfix-wrapped")
        self.assertIn("TLS connection established", log)

    def test_exim_over_starttls(self):
        self.serve()
        log = self.sends(mta.EximOut(self.ports["starttls"]), "exim")
        self.assertRegex(log, r'X=TLS1\.3:.* DN="CN=mx\.test"')

    def test_exim_over_tls_from_the_start(self):
        self.serve()
        log = self.sends(mta.EximOut(self.ports["implicit"], wrapped=True),
                         "exim-wrapped")
        self.assertRegex(log, r'X=TLS1\.3:.* DN="CN=mx\.test"')


class Rules(Case):
    def test_required_means_no_mail_in_the_clear(self):
        self.serve()
        client = smtp.Client(self.ports["required"])
        self.addCleanup(client.close)
        self.assertIn("STARTTLS", client.hello())
        for line in ("MAIL FROM:<a@sender.test>", "mail from:<>"):
            code, text = client.cmd(line)
            self.assertEqual(code, 530)
            self.assertTrue(text.startswith("5.7.0 "), text)
        for line, good in (("NOOP", 250), ("RSET", 250),
                           ("RCPT TO:<u@local.test>", 503), ("DATA", 503)):
            code, _ = client.cmd(line)
            self.assertIn(code, (good, 530), line)
        self.assertEqual(self.backend.mails(), [])
        client.starttls()
        client.ehlo()
        smtp.send_plain(client, mail.Message("secured"))
        client.quit()

    def test_starttls_is_for_those_who_want_it(self):
        self.serve()
        with smtp.Client(self.ports["starttls"]) as client:
            self.assertIn("STARTTLS", client.hello())
            smtp.send_plain(client, mail.Message("clear"))
            client.quit()
        secured = self.client()
        self.assertIn("STARTTLS", secured.plain_keywords)
        self.assertNotIn("STARTTLS", secured.keywords)
        implicit = self.client("implicit")
        self.assertNotIn("STARTTLS", implicit.keywords)
        self.assertEqual(set(secured.keywords), set(implicit.keywords))

    def test_both_versions_and_none_older(self):
        self.serve()
        for version in (TLS12, TLS13):
            for kind in KINDS:
                client = self.client(
                    kind, context=smtp.trusting(version=version))
                smtp.send_plain(client, mail.Message("m"))
                client.quit()
        for option in ("-tls1_1", "-tls1"):
            done = self.command(
                "openssl", "s_client", "-connect",
                f"127.0.0.1:{self.ports['implicit']}", option, "-cipher",
                "DEFAULT@SECLEVEL=0")
            self.assertIn("alert protocol version", done.stdout)
        self.weir.stop()

    def test_versions_may_be_narrowed(self):
        self.serve(tls={"max_version": "1.2"})
        client = self.client()
        self.assertEqual(client.sock.version(), "TLSv1.2")
        with self.assertRaises(smtp.Gone):
            self.client(context=smtp.trusting(version=TLS13))

    def test_a_peer_that_speaks_no_tls_is_let_go_and_logged(self):
        self.serve()
        for kind in ("implicit", "starttls"):
            client = smtp.Client(self.ports[kind])
            if kind == "starttls":
                client.hello()
                smtp.expect("STARTTLS", client.cmd("STARTTLS"), 220)
            client.send(b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\n")
            rest = client.rest()
            self.assertNotIn(b"250", rest)
            client.close()
        self.assertEqual(self.backend.mails(), [])
        self.sessions("close=tls", count=2)

    def test_a_handshake_that_never_ends_is_ended(self):
        self.serve(timeouts={"handshake": "300ms"})
        for kind in ("implicit", "starttls"):
            client = smtp.Client(self.ports[kind])
            if kind == "starttls":
                client.hello()
                smtp.expect("STARTTLS", client.cmd("STARTTLS"), 220)
            client.send(b"\x16\x03\x01\x02")
            client.rest()
            client.close()
        self.sessions("close=tls", count=2)


class Certificates(Case):
    def shown(self, name="mx.test", kind="starttls", context=None):
        client = self.client(kind, name=name, context=context)
        seen = fingerprint(client.sock)
        client.quit()
        return seen

    def test_the_name_chooses(self):
        first, second = pair("mx.test"), pair("other.test", "third.test")
        wild = pair("*.wild.test")
        self.serve([cert(first.cert, first.key), second.both,
                    cert(wild.cert, wild.key)])
        for kind in KINDS:
            for name, want in (("mx.test", first), ("other.test", second),
                               ("third.test", second), ("OTHER.test", second),
                               ("a.wild.test", wild),
                               ("a.b.wild.test", first),
                               ("nobody.test", first), (None, first)):
                with self.subTest(name=name, kind=kind):
                    self.assertEqual(self.shown(name, kind),
                                     want.fingerprint)

    def test_the_key_is_of_a_kind_that_the_client_knows(self):
        ec, rsa = pair("mx.test"), pair("mx.test", kind="rsa")
        self.serve([ec.both, rsa.both])
        for cipher, want in (("ECDHE-RSA-AES128-GCM-SHA256", rsa),
                             ("ECDHE-ECDSA-AES128-GCM-SHA256", ec)):
            context = smtp.trusting(version=TLS12)
            context.set_ciphers(cipher)
            self.assertEqual(self.shown(context=context), want.fingerprint)
        for kinds, want in (("rsa_pss_rsae_sha256", "rsaEncryption|RSA"),
                            ("ecdsa_secp256r1_sha256", "ECDSA|EC")):
            with SClient(self.ports["starttls"], "-tls1_3", "-sigalgs",
                         kinds) as client:
                client.ehlo()
            self.assertRegex(client.said, f"Signature type: .*({want})")

    def test_the_ocsp_response_is_stapled(self):
        ec, rsa = pair("mx.test"), pair("mx.test", kind="rsa")
        self.serve([cert(ec.cert, ec.key, pki.CA.staple(ec)),
                    cert(rsa.cert, rsa.key, pki.CA.staple(rsa))])
        for more in (["-starttls", "smtp", "-connect",
                      f"127.0.0.1:{self.ports['starttls']}"],
                     ["-connect", f"127.0.0.1:{self.ports['implicit']}"],
                     ["-connect", f"127.0.0.1:{self.ports['implicit']}",
                      "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]):
            done = self.command("openssl", "s_client", "-status", "-CAfile",
                                pki.CA.path, "-servername", "mx.test", *more)
            self.assertIn("OCSP Response Status: successful", done.stdout)
            self.assertIn("Cert Status: good", done.stdout)

    def test_without_a_response_none_is_stapled(self):
        self.serve()
        done = self.command("openssl", "s_client", "-status", "-connect",
                            f"127.0.0.1:{self.ports['implicit']}")
        self.assertIn("OCSP response: no response sent", done.stdout)


class ClientCertificates(Case):
    def context(self, made=None):
        context = smtp.trusting()
        if made:
            context.load_cert_chain(made.cert, made.key)
        return context

    def greeted(self, kind, made=None, version=None):
        """TLS 1.3 tells the client of a refusal after its handshake."""
        context = self.context(made)
        if version:
            context.maximum_version = version
        try:
            self.client(kind, context=context).quit()
        except (smtp.Gone, ConnectionError):
            return False
        return True

    def test_are_logged_whoever_made_them(self):
        self.serve(keys={"tls_client_cert": "log"})
        known = pki.CA.issue("client.test", use="client")
        unknown = pki.STRANGER.issue("liar.test", use="client")
        for made in (known, unknown):
            for kind in KINDS:
                self.assertTrue(self.greeted(kind, made))
            self.sessions(made.fingerprint, count=3)
        self.assertTrue(self.greeted("starttls"))

    def test_are_not_asked_for_by_default(self):
        self.serve()
        made = pki.CA.issue("client.test", use="client")
        self.assertTrue(self.greeted("starttls", made))
        self.sessions("close=quit")
        self.assertEqual(self.weir.log(made.fingerprint), [])

    def test_may_be_required(self):
        self.serve(keys={"tls_client_cert": "require",
                         "tls_ca": pki.CA.path})
        good = pki.CA.issue("client.test", use="client")
        late = pki.CA.issue("client.test", use="client", days=0)
        bad = pki.STRANGER.issue("liar.test", use="client")
        for version in (TLS12, TLS13):
            for kind in KINDS:
                with self.subTest(version=version, kind=kind):
                    self.assertTrue(self.greeted(kind, good, version))
                    self.assertFalse(self.greeted(kind, None, version))
                    self.assertFalse(self.greeted(kind, bad, version))
                    self.assertFalse(self.greeted(kind, late, version))


class Resumption(Case):
    def again(self, version, **sections):
        self.serve(**sections)
        context = smtp.trusting(version=version)
        first = self.client("implicit", context=context)
        smtp.send_plain(first, mail.Message("first"))
        session = first.sock.session
        first.quit()
        reused = []
        for number in range(24):
            client = self.client("implicit" if number % 2 else "starttls",
                                 context=context, session=session)
            reused.append(client.sock.session_reused)
            smtp.send_plain(client, mail.Message(f"m{number}"))
            client.quit()
        return reused

    def test_a_ticket_is_good_for_all_workers(self):
        for version in (TLS12, TLS13):
            with self.subTest(version=version):
                self.assertEqual(self.again(version), [True] * 24)
                # the first half of an id is the worker's
                workers = {line["id"].partition("-")[0] for line in
                           self.sessions("close=quit", count=25)}
                self.assertEqual(len(workers), 2)

    def test_no_tickets_if_so_told(self):
        for version in (TLS12, TLS13):
            with self.subTest(version=version):
                self.assertEqual(
                    self.again(version, tls={"ticket_lifetime": "0"}),
                    [False] * 24)

    def test_a_ticket_outlives_a_reload(self):
        self.serve()
        context = smtp.trusting(version=TLS13)
        first = self.client("starttls", context=context)
        session = first.sock.session
        first.quit()
        self.weir.reload()
        client = self.client("starttls", context=context, session=session)
        self.assertTrue(client.sock.session_reused)


class Reload(Case):
    def setUp(self):
        self.old = pair("mx.test")
        self.new = pair("mx.test", "renewed.test")
        self.path = os.path.join(world.work(), "renewed.pem")
        shutil.copy(self.old.both, self.path)
        self.serve([self.path])

    def shown(self, kind="starttls"):
        client = self.client(kind)
        seen = fingerprint(client.sock)
        client.quit()
        return seen

    def test_under_load_no_session_is_dropped(self):
        held = [self.client(kind) for kind in KINDS]
        crowds = [smtp.Crowd(
            self.ports[kind], [mail.Message(f"{kind}-{n}", 20_000)
                               for n in range(4000)], 2, pause=0.005,
            kind=lambda port, source, kind=kind: smtp.Secured(
                port, kind == "implicit", source=source)).start()
            for kind in KINDS]

        def flows():
            want = sum(len(crowd.acked) for crowd in crowds) + 60
            lib.wait_until(lambda: sum(len(crowd.acked) for crowd in crowds)
                           >= want, "mail flows")
        for made in (self.new, self.old, self.new):
            flows()
            shutil.copy(made.both, self.path)
            self.weir.reload()
            for kind in KINDS:
                self.assertEqual(self.shown(kind), made.fingerprint)
        flows()
        for crowd in crowds:
            crowd.stop()
            crowd.join()
            self.assertEqual(crowd.refused + crowd.broken, [])
        for client in held:
            smtp.send_plain(client, mail.Message("held"))
            self.assertEqual(fingerprint(client.sock), self.old.fingerprint)
            client.quit()

    def reload_is_refused(self):
        """Of the certificate, for a reason that names the file."""
        before = len(self.weir.lines)
        self.weir.reload()
        said = "\n".join(line for line in self.weir.lines[before:]
                         if "event=tls" in line)
        self.assertRegex(said, "refused=.*" + re.escape(self.path))
        self.assertIn("what was in force before serves on", said)

    def test_a_bad_one_is_refused_and_the_old_serves_on(self):
        with open(self.new.cert, encoding="ascii") as file:
            halves = file.read()
        expired = pair("mx.test", days=0)
        with open(self.old.key, encoding="ascii") as file:
            wrong_key = halves + file.read()
        with open(expired.both, encoding="ascii") as file:
            late = file.read()
        for what, octets in (("no certificate at all", "what?\n"),
                             ("empty", ""), ("without its key", halves),
                             ("another one's key", wrong_key),
                             ("out of date", late)):
            with self.subTest(what=what):
                with open(self.path, "w", encoding="ascii") as file:
                    file.write(octets)
                self.reload_is_refused()
                for kind in KINDS:
                    self.assertEqual(self.shown(kind), self.old.fingerprint)
        os.unlink(self.path)
        self.reload_is_refused()
        self.assertEqual(self.shown(), self.old.fingerprint)
        shutil.copy(self.new.both, self.path)
        self.assertIn("in force", self.weir.reload()["result"])
        self.assertEqual(self.shown(), self.new.fingerprint)

    def test_at_the_start_a_bad_one_is_an_error_with_its_file(self):
        with open(self.path, "w", encoding="ascii") as file:
            file.write("what?\n")
        for words in ((), ("-t",)):
            done = self.command(weir.program("weir"), *words, "-c",
                                self.weir.path)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(self.path, done.stdout)
