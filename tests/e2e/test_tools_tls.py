"""weir-sink and weir-load with TLS, AUTH and XCLIENT, without weir between
them: Python's ssl and smtplib, and swaks, are the witnesses of both."""

import base64
import os
import shutil
import smtplib
import socket
import ssl
import subprocess
import tempfile
import unittest

import lib
import test_tools
import weir


def believing(cert=None):
    """A context that verifies against this certificate, or believes all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cert:
        context.load_verify_locations(cert)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def base64_of(text):
    return base64.b64encode(text).decode()


def new_place(case):
    place = tempfile.mkdtemp(prefix="weir-tools.")
    case.addCleanup(shutil.rmtree, place)
    return place


def made_cert(case, *names):
    path = os.path.join(new_place(case), "cert.pem")
    subprocess.run([weir.program("weir-sink"), "--make-cert",
                    ",".join((path, *names))], check=True)
    return path


class Certificates(unittest.TestCase):
    def test_one_is_made_for_names_and_verifies_for_them(self):
        cert = made_cert(self, "mx.test", "127.0.0.1")
        self.assertEqual(os.stat(cert).st_mode & 0o777, 0o600)
        sink = test_tools.Sink(self, f"name=a,tls=implicit,cert={cert}")
        for name in ("mx.test", "127.0.0.1"):
            with socket.create_connection(
                    ("127.0.0.1", sink.ports["a"]), lib.PATIENCE) as sock:
                with believing(cert).wrap_socket(
                        sock, server_hostname=name) as secure:
                    self.assertTrue(secure.recv(100).startswith(b"220 "))

    def test_it_does_not_verify_for_others(self):
        cert = made_cert(self, "mx.test")
        sink = test_tools.Sink(self, f"name=a,tls=implicit,cert={cert}")
        with socket.create_connection(
                ("127.0.0.1", sink.ports["a"]), lib.PATIENCE) as sock:
            with self.assertRaises(ssl.SSLCertVerificationError):
                believing(cert).wrap_socket(sock, server_hostname="mx2.test")
        self.assertEqual(sink.settled("a")["handshakes"]["failed"], 1)

    def test_a_file_that_is_none_is_told_of(self):
        done = subprocess.run(
            [weir.program("weir-sink"), "-m", "port=0,tls=implicit,"
             "cert=/nonexistent"], capture_output=True, text=True,
            check=False, timeout=lib.PATIENCE)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent", done.stderr)

    def test_one_that_cannot_be_written_is_told_of(self):
        done = subprocess.run(
            [weir.program("weir-sink"), "--make-cert", "/nonexistent/c.pem"],
            capture_output=True, text=True, check=False, timeout=lib.PATIENCE)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent/c.pem", done.stderr)


class Starttls(unittest.TestCase):
    def test_smtplib_sends_by_it_and_the_journal_tells(self):
        sink = test_tools.Sink(self, "name=a,tls=starttls")
        with smtplib.SMTP("127.0.0.1", sink.ports["a"],
                          timeout=lib.PATIENCE) as client:
            self.assertEqual(client.starttls(context=believing())[0], 220)
            client.ehlo("client.test")
            self.assertFalse(client.has_extn("starttls"))
            client.sendmail("a@client.test", ["b@mx.test"],
                            "Subject: x\r\n\r\nx\r\n")
        record, = sink.journal()
        self.assertEqual(record["outcome"], "stored")
        self.assertEqual(record["tls"], "TLSv1.3")
        self.assertNotIn("sni", record)  # of an address there is none
        self.assertFalse(record["resumed"])
        self.assertEqual(sink.settled("a")["handshakes"],
                         {"full": 1, "resumed": 0, "failed": 0})

    def test_required(self):
        sink = test_tools.Sink(
            self, "name=a,tls=required,auth=joe:secret")
        client = test_tools.Client(self, sink.ports["a"]).begin()
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "530")
        self.assertEqual(client.say(b"AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n"),
                         "530")
        self.assertEqual(client.say(b"STARTTLS now\r\n"), "501")
        self.assertEqual(client.say(b"STARTTLS\r\n"), "220")

    def test_what_comes_behind_it_in_the_clear_is_dropped_and_counted(self):
        sink = test_tools.Sink(self, "name=a,tls=starttls")
        client = test_tools.Client(self, sink.ports["a"]).begin()
        self.assertEqual(client.say(b"STARTTLS\r\nEHLO evil.test\r\n"
                                    b"MAIL FROM:<evil@evil.test>\r\n"), "220")
        with believing().wrap_socket(
                client.sock, server_hostname="mx.test") as secure:
            with secure.makefile("rb") as replies:
                secure.sendall(b"RCPT TO:<b@mx.test>\r\n")
                self.assertTrue(replies.readline().startswith(b"503 "))
        self.assertEqual(sink.mta("a")["errors"]["sync"], 1)

    def test_its_reply_can_be_another_or_the_last(self):
        sink = test_tools.Sink(
            self, "name=a,tls=starttls,starttls=454 4.7.0 Not now",
            "name=b,tls=starttls,die=starttls,die-how=close")
        client = test_tools.Client(self, sink.ports["a"]).begin()
        self.assertEqual(client.say(b"STARTTLS\r\n"), "454")
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "250")
        client = test_tools.Client(self, sink.ports["b"]).begin()
        self.assertEqual(client.say(b"STARTTLS\r\n"), "220")
        self.assertEqual(client.sock.recv(1), b"")

    def test_none_is_none(self):
        sink = test_tools.Sink(self, "name=a")
        client = test_tools.Client(self, sink.ports["a"]).begin()
        self.assertEqual(client.say(b"STARTTLS\r\n"), "500")
        report, status = test_tools.load(sink.ports["a"], "--starttls")
        self.assertEqual(status, 2)
        self.assertEqual(report["endings"]["tls_failed"], 1)

    def test_a_busy_server_says_so_by_tls(self):
        sink = test_tools.Sink(self, "name=a,tls=implicit,slots=1")
        with smtplib.SMTP_SSL("127.0.0.1", sink.ports["a"],
                              timeout=lib.PATIENCE, context=believing()):
            with self.assertRaises(smtplib.SMTPConnectError) as caught:
                smtplib.SMTP_SSL("127.0.0.1", sink.ports["a"],
                                 timeout=lib.PATIENCE, context=believing())
            self.assertEqual(caught.exception.smtp_code, 421)

    def test_settings_change_at_run_time(self):
        sink = test_tools.Sink(self, "name=a")
        self.assertEqual(sink.say("set a tls implicit"), "ok")
        with smtplib.SMTP_SSL("127.0.0.1", sink.ports["a"],
                              timeout=lib.PATIENCE, context=believing()):
            pass
        self.assertTrue(sink.say("set a cert /nonexistent").startswith(
            "error: "))

    def test_a_client_shows_its_certificate(self):
        cert = made_cert(self, "client.test")
        sink = test_tools.Sink(self, "name=a,tls=implicit,tls-ask=yes")
        context = believing()
        context.load_cert_chain(cert)
        with smtplib.SMTP_SSL("127.0.0.1", sink.ports["a"],
                              timeout=lib.PATIENCE,
                              context=context) as client:
            client.sendmail("a@client.test", ["b@mx.test"], "x\r\n")
        record, = sink.journal()
        self.assertEqual(record["client_cert"], "/CN=client.test")


class Logins(unittest.TestCase):
    def begin(self, *mtas):
        sink = test_tools.Sink(self, *mtas)
        return sink, test_tools.Client(self, sink.ports["a"]).begin()

    def test_smtplib_logs_in_by_both(self):
        sink = test_tools.Sink(self, "name=a,auth=joe:se:cret")
        for mechanism in ("auth_plain", "auth_login"):
            with smtplib.SMTP("127.0.0.1", sink.ports["a"],
                              timeout=lib.PATIENCE) as client:
                client.ehlo("client.test")
                client.user, client.password = "joe", "se:cret"
                client.auth(mechanism[5:].upper(), getattr(client, mechanism))
                client.sendmail("a@b", ["c@d"], "x\r\n")
        self.assertEqual([r["login"] for r in sink.journal()],
                         ["joe", "joe"])
        self.assertEqual(sink.mta("a")["logins"], 2)

    def test_others_get_535(self):
        sink, client = self.begin("name=a,auth=joe:secret")
        for user, password in ((b"joe", b"Secret"), (b"joe", b"secre"),
                               (b"joe", b"secret2"), (b"jo", b"e:secret"),
                               (b"", b"")):
            text = base64_of(b"\0" + user + b"\0" + password)
            self.assertEqual(
                client.say(f"AUTH PLAIN {text}\r\n".encode()), "535")
        self.assertEqual(sink.mta("a")["login_errors"], 5)

    def test_required_and_cancelled(self):
        _, client = self.begin("name=a,auth=joe:secret,auth-required=yes")
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "530")
        self.assertEqual(client.say(b"AUTH LOGIN\r\n"), "334")
        self.assertEqual(client.say(b"*\r\n"), "501")
        self.assertEqual(client.say(b"AUTH CRAM-MD5\r\n"), "504")
        self.assertEqual(client.say(b"AUTH PLAIN\r\n"), "334")
        self.assertEqual(client.say(b"@@@@\r\n"), "501")
        self.assertEqual(client.say(b"AUTH LOGIN am9l\r\n"), "334")
        self.assertEqual(client.say(b"c2VjcmV0\r\n"), "235")
        self.assertEqual(client.say(b"AUTH LOGIN\r\n"), "503")
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "250")

    def test_load_logs_in(self):
        sink = test_tools.Sink(self, "name=a,tls=required,"
                               "auth=joe:secret,auth-required=yes")
        report, status = test_tools.load(
            sink.ports["a"], "--starttls", "--auth", "joe:secret", "-n", "5")
        self.assertEqual(status, 0, report)
        self.assertEqual(report["replies"]["auth"], {"235": 5})
        report, status = test_tools.load(
            sink.ports["a"], "--starttls", "--auth", "joe:wrong", "-n", "2")
        self.assertEqual(status, 2)
        self.assertEqual(report["replies"]["auth"], {"535": 2})
        self.assertEqual(report["endings"]["refused"], 2)


class Xclient(unittest.TestCase):
    def begin(self):
        sink = test_tools.Sink(self, "name=a,xclient=yes,auth=joe:secret,"
                               "auth-required=yes")
        return sink, test_tools.Client(self, sink.ports["a"]).begin()

    def test_a_client_is_introduced_and_the_session_starts_again(self):
        sink, client = self.begin()
        self.assertEqual(client.say(
            b"XCLIENT NAME=a+2Bb.test ADDR=192.0.2.1 PORT=25 PROTO=ESMTP\r\n"
        ), "220")
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "503")
        self.assertEqual(client.say(b"EHLO x.test\r\n"), "250")
        self.assertEqual(client.say(
            b"XCLIENT ADDR=IPV6:2001:db8::1 LOGIN=ann HELO=[UNAVAILABLE]\r\n"
        ), "220")
        self.assertEqual(client.say(b"EHLO x.test\r\n"), "250")
        self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "250")
        self.assertEqual(client.say(b"XCLIENT PORT=1\r\n"), "503")
        self.assertEqual(client.say(b"RCPT TO:<c@d>\r\n"), "250")
        self.assertEqual(client.say(b"DATA\r\n"), "354")
        self.assertEqual(client.say(b"x\r\n.\r\n"), "250")
        record, = sink.journal()
        self.assertEqual(record["xclient"], {
            "NAME": "a+b.test", "ADDR": "IPV6:2001:db8::1", "PORT": "25",
            "PROTO": "ESMTP", "HELO": "[UNAVAILABLE]", "LOGIN": "ann"})
        self.assertEqual(record["login"], "ann")
        self.assertEqual(sink.mta("a")["xclients"], 2)

    def test_what_is_wrong_gets_501(self):
        _, client = self.begin()
        for line in (b"", b"NAME", b"NAME=", b"FOO=x", b"NAME=a+", b"NAME=+0",
                     b"NAME=+00", b"NAME=+zz", b"NAME=a  ADDR=b",
                     b"NAME=" + b"x" * 256):
            with self.subTest(line=line):
                self.assertEqual(
                    client.say(b"XCLIENT " + line + b"\r\n"), "501")

    def test_swaks_introduces_its_client(self):
        if not shutil.which("swaks"):
            self.skipTest("needs swaks")
        sink = test_tools.Sink(self, "name=a,xclient=yes,tls=starttls")
        done = subprocess.run(
            ["swaks", "--server", f"127.0.0.1:{sink.ports['a']}", "--tls",
             "--xclient-addr", "192.0.2.7", "--xclient-name", "c.test",
             "--from", "a@c.test", "--to", "b@mx.test"],
            capture_output=True, text=True, check=False,
            timeout=lib.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout)
        record, = sink.journal()
        self.assertEqual(record["xclient"],
                         {"NAME": "c.test", "ADDR": "192.0.2.7"})
        self.assertIn("tls", record)


class Relay(unittest.TestCase):
    def test_mail_for_nobody_is_refused_but_by_an_open_relay(self):
        sink = test_tools.Sink(self, "name=a", "name=b,open-relay=yes")
        for name, code in (("a", "550"), ("b", "250")):
            client = test_tools.Client(self, sink.ports[name]).begin()
            self.assertEqual(client.say(b"MAIL FROM:<a@b>\r\n"), "250")
            for rcpt in (b"x@invalid", b"x@relay-check.INVALID"):
                self.assertEqual(
                    client.say(b"RCPT TO:<" + rcpt + b">\r\n"), code)
            self.assertEqual(client.say(b"RCPT TO:<x@notinvalid>\r\n"), "250")


class Load(test_tools.Case):
    """TLS sessions do all that clear ones do."""

    def through(self, mta, *options):
        sink = test_tools.Sink(self, "name=a," + mta)
        report, status = test_tools.load(sink.ports["a"], *options)
        self.assertEqual(status, 0, report)
        self.agree(report, sink)
        self.assertEqual(sum(sink.settled("a")["errors"].values()), 0)
        return report

    def test_large_and_small_messages_on_kept_sessions(self):
        report = self.through("tls=implicit", "--tls", "-n", "12", "-c", "4",
                              "-m", "4", "--size", "0-3M")
        self.assertEqual(report["tls"]["full"], 12)
        self.assertEqual(report["phases"]["message"]["count"], 48)

    def test_chunks(self):
        self.through("tls=starttls", "--starttls", "-n", "6", "-c", "3",
                     "--bdat=4K", "--size", "100K")

    def test_slow_talkers_and_bodies_that_take_their_time(self):
        self.through("tls=starttls", "--starttls", "-n", "4", "-c", "4",
                     "--slow", "50:1ms", "--size", "100")
        self.through("tls=implicit", "--tls", "-n", "4", "-c", "4", "--size",
                     "20K", "--body-time", "100ms-200ms")

    def test_idle_ones(self):
        report = self.through("tls=starttls", "--starttls", "--idle", "5",
                              "-d", "300ms")
        self.assertEqual(report["endings"]["kept_idle"], 5)

    def test_sessions_are_resumed_as_asked(self):
        for version in ("1.2", "1.3"):
            with self.subTest(version=version):
                report = self.through(
                    "tls=implicit", "--tls", "--tls-version", version,
                    "--resume", "-n", "30", "-c", "10", "--size", "100")
                self.assertEqual(report["tls"]["resumed"], 30)
                self.assertEqual(report["tls"]["full"], 0)
                self.assertEqual(report["tls"]["version"], "TLSv" + version)
        report = self.through("tls=implicit", "--tls", "--resume=0",
                              "-n", "10", "--size", "100")
        self.assertEqual(report["tls"]["full"], 10)

    def test_handshakes_alone(self):
        for how in ("starttls", "implicit"):
            with self.subTest(how=how):
                sink = test_tools.Sink(self, f"name=a,tls={how}")
                report, status = test_tools.load(
                    sink.ports["a"], "--handshakes", "40", "--storm",
                    "--tls" if how == "implicit" else "--starttls")
                self.assertEqual(status, 0, report)
                self.assertEqual(report["tls"]["full"], 40)
                self.assertEqual(report["sessions"]["peak"], 40)
                self.assertEqual(report["messages"]["begun"], 0)
                self.assertEqual(report["phases"]["tls"]["count"], 40)

    def test_the_name_that_was_asked_for(self):
        sink = test_tools.Sink(self, "name=a,tls=implicit")
        test_tools.load(sink.ports["a"], "--tls", "--sni", "mx.test")
        record, = sink.journal()
        self.assertEqual(record["sni"], "mx.test")

    def test_they_vanish_in_mid_handshake(self):
        sink = test_tools.Sink(self, "name=a,tls=implicit")
        report, status = test_tools.load(sink.ports["a"], "--tls", "-n", "4",
                                         "--abort", "tls:100")
        self.assertEqual(status, 0, report)
        self.assertEqual(report["endings"]["aborted"], 4)
        self.assertNotIn("tls", report)

    def test_octets_behind_the_220_are_not_believed(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            argv = [weir.program("weir-load"), "--json", "-", "--starttls",
                    f"127.0.0.1:{server.getsockname()[1]}"]
            with subprocess.Popen(argv, stdout=subprocess.PIPE,
                                  text=True) as child:
                conn, _ = server.accept()
                with conn:
                    conn.settimeout(lib.PATIENCE)
                    conn.sendall(b"220 x\r\n")
                    conn.recv(1000)
                    conn.sendall(b"250-x\r\n250 STARTTLS\r\n")
                    conn.recv(1000)
                    conn.sendall(b"220 go\r\n250 injected\r\n")
                    self.assertEqual(conn.recv(1000), b"")
                out, _ = child.communicate(timeout=lib.PATIENCE)
        self.assertIn('"protocol": 1', out)


class Usage(unittest.TestCase):
    def test_what_does_not_go_together(self):
        for options in (("--tls", "--starttls"), ("--resume",), ("--storm",),
                        ("--handshakes", "3"), ("--tls-version", "1.3"),
                        ("--tls", "--tls-version", "1.1"),
                        ("--tls", "--handshakes", "3", "--storm", "-c", "2"),
                        ("--tls", "--handshakes", "3", "--idle", "2"),
                        ("--auth", "joe"), ("--auth", ":x"),
                        ("--tls", "--resume=101")):
            with self.subTest(options=options):
                done = subprocess.run(
                    [weir.program("weir-load"), *options, "127.0.0.1:25"],
                    capture_output=True, text=True, check=False,
                    timeout=lib.PATIENCE)
                self.assertEqual(done.returncode, 1)
                self.assertNotEqual(done.stderr, "")
