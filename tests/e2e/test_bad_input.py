"""What nonsense gets: from clients, in the configuration, on the control
socket."""

import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import threading

import backend
import lib
import mail
import smtp
import weir
import world


class Client(lib.Case):
    """A client's nonsense, with one good backend behind weir."""

    def setUp(self):
        self.backend = self.start(backend.Backend())
        self.weir = self.start(weir.Weir([("a", self.backend, {})])).up()

    def client(self, hello=True):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        if hello:
            client.hello()
        return client

    def still_serves(self):
        message = mail.Message("still-serves")
        with self.client() as client:
            smtp.send_plain(client, message)
        self.assertEqual(self.backend.kept[-1], message.data)

    def nothing_stored(self):
        self.assertEqual(self.backend.kept, [])

    # --- commands ---

    def test_wrong_commands_get_the_code_the_rfc_names(self):
        client = self.client(hello=False)
        client.reply()
        for line, code, why in (
                ("FOO", 500, "not a command"),
                ("", 500, "an empty line"),
                ("EHLO", 501, "no name"),
                ("MAIL FROM:<a@b.test>", 503, "before EHLO"),
                ("EHLO client.test", 250, "at last"),
                ("RCPT TO:<u@local.test>", 503, "before MAIL"),
                ("DATA", 503, "before MAIL"),
                ("BDAT 0 LAST", 503, "before MAIL"),
                ("MAIL FROM:<a@b.test", 501, "no >"),
                ("MAIL FROM:<a@b.test> FOO=1", 555, "unknown parameter"),
                ("MAIL FROM:<a@b.test> SIZE=x", 501, "a size of letters"),
                ("MAIL FROM:<a@b.test>", 250, "right"),
                ("MAIL FROM:<a@b.test>", 503, "nested"),
                ("DATA", 503, "before RCPT"),
                ("RCPT TO:<u@local.test", 501, "no >"),
                ("STARTTLS", 502, "not offered"),
                ("AUTH PLAIN AGEAYg==", 502, "not offered"),
                ("NOOP", 250, "right")):
            with self.subTest(line=line, why=why):
                self.assertEqual(client.cmd(line)[0], code)
        self.assertEqual(client.quit()[0], 221)
        self.nothing_stored()

    def test_a_421_ends_the_session_after_twenty_errors(self):
        client = self.client()
        codes = []
        while not codes or codes[-1] != 421:
            codes.append(client.cmd("FOO")[0])
            self.assertLess(len(codes), 40)
        self.assertEqual(codes[:-1], [500] * 20)
        self.assertEqual(client.rest(), b"")
        self.still_serves()

    def test_every_error_in_one_batch_is_counted_too(self):
        client = self.client()
        client.send(b"FOO\r\n" * 50)
        codes = [client.reply()[0] for _ in range(21)]
        self.assertEqual(codes, [500] * 20 + [421])
        self.assertEqual(client.rest(), b"")

    def test_a_line_too_long_is_one_error_however_long(self):
        for length in (513, 3000, 100_000, 2_000_000):
            with self.subTest(length=length):
                client = self.client()
                client.send(b"NOOP " + b"x" * (length - 7) + b"\r\n")
                self.assertEqual(client.reply()[0], 500)
                # had it been split in two, this would be the second error
                self.assertEqual(client.cmd("NOOP")[0], 250)
                self.assertEqual(client.quit()[0], 221)

    def test_a_command_hidden_behind_a_long_line_is_not_seen(self):
        client = self.client()
        client.send(b"NOOP " + b"x" * 507 + b"MAIL FROM:<a@b.test>\r\n")
        self.assertEqual(client.reply()[0], 500)
        self.assertEqual(client.cmd("RCPT TO:<u@local.test>")[0], 503)

    def test_a_line_that_never_ends_takes_no_memory(self):
        client = self.client()
        before = self.weir.rss()
        for _ in range(320):
            client.send(b"x" * 100_000)
        lib.wait_until(lambda: self.unread(client) == 0, "all is read")
        self.assertLess(self.weir.rss() - before, 4 << 20)
        client.send(b"\r\n")
        self.assertEqual(client.reply()[0], 500)
        self.assertEqual(client.cmd("NOOP")[0], 250)

    @staticmethod
    def unread(client):
        """Octets that weir's kernel has not yet taken."""
        return struct.unpack("i", fcntl.ioctl(
            client.sock, 0x5411, b"\0" * 4))[0]  # SIOCOUTQ

    def test_bare_ends_of_line_and_nul_in_commands_are_errors(self):
        for octets in (b"NOOP\n", b"NOOP\rX\r\n", b"NOOP \0\r\n"):
            with self.subTest(octets=octets):
                client = self.client()
                client.send(octets)
                if not octets.endswith(b"\r\n"):
                    client.send(b"NOOP\r\n")
                self.assertEqual(client.reply()[0], 500)
                self.assertEqual(client.cmd("NOOP")[0], 250)

    def test_xclient_xforward_and_proxy_are_refused(self):
        for line in ("XCLIENT ADDR=127.0.0.1", "xclient NAME=x",
                     "XFORWARD ADDR=127.0.0.1",
                     " XCLIENT ADDR=127.0.0.1"):
            with self.subTest(line=line):
                client = self.client()
                code = client.cmd(line)[0]
                self.assertIn(code, range(500, 560))
                self.assertEqual(client.cmd("MAIL FROM:<a@b.test>")[0], 250)
        lines = [x for peer in self.backend.peers for x in peer.lines]
        self.assertEqual([x for x in lines if x.strip().upper().startswith(
            ("XCLIENT", "XFORWARD", "PROXY"))], [])

    # --- other protocols ---

    def test_binary_tls_http_and_proxy_get_one_500_and_the_end(self):
        hello = bytes.fromhex("16030100a5010000a10303") + b"\xa5" * 160
        for name, octets in (("TLS", hello),
                             ("binary", bytes(range(128, 256)) * 8),
                             ("zeros", b"\0" * 600),
                             ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
                             ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 "
                                       b"4000 25\r\n")):
            with self.subTest(what=name):
                client = self.client(hello=False)
                self.assertEqual(client.reply()[0], 220)
                client.send(octets)
                lines = client.rest().split(b"\r\n")
                self.assertEqual(len(lines), 2, lines)
                self.assertTrue(lines[0].startswith(b"500 "), lines)
                self.assertEqual(lines[1], b"")
        self.still_serves()

    # --- bodies ---

    def body(self, octets):
        """The reply to a body that came in these octets."""
        client = self.client()
        message = mail.Message("bad")
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(octets)
        return client, client.reply()

    def test_a_bare_cr_lf_or_nul_in_a_body_is_refused_whole(self):
        for octets in (b"a\nb\r\n.\r\n", b"a\rb\r\n.\r\n", b"a\0b\r\n.\r\n",
                       b"a\n.\nMAIL FROM:<e@vil.test>\r\n.\r\n",
                       b"a\n.\r\nMAIL FROM:<e@vil.test>\r\n.\r\n",
                       b"a\r\n.\nMAIL FROM:<e@vil.test>\r\n.\r\n",
                       b"a\r\n.\rMAIL FROM:<e@vil.test>\r\n.\r\n",
                       b"a\r.\rMAIL FROM:<e@vil.test>\r\n.\r\n",
                       b"a\r\n\0.\r\nb\r\n.\r\n"):
            with self.subTest(octets=octets):
                client, answer = self.body(octets)
                self.assertEqual(answer[0], 550)
                self.assertTrue(answer[1].startswith("5.6.11"), answer)
                # what stood behind the false end was no command
                self.assertEqual(client.cmd("RCPT TO:<u@local.test>")[0],
                                 503)
        self.nothing_stored()
        self.assertFalse([p for p in self.backend.peers if p.whole])
        self.still_serves()

    def test_a_long_line_in_a_body_passes_unharmed(self):
        line = b"x" * 300_000 + b"\r\n"
        _, answer = self.body(b"\r\n" + line + b".\r\n")
        self.assertEqual(answer[0], 250)
        self.assertEqual(self.backend.kept, [b"\r\n" + line])

    def test_size_said_too_large_is_refused_at_mail(self):
        client = self.client()
        self.assertEqual(client.cmd(
            "MAIL FROM:<a@b.test> SIZE=999999999999")[0], 552)
        self.assertEqual(client.cmd(
            "MAIL FROM:<a@b.test> SIZE=99999999999999999999")[0] // 100, 5)
        self.assertEqual(self.backend.mails(), [])

    def test_bdat_nonsense(self):
        for line, codes, why in (
                ("BDAT", (501,), "no size"),
                ("BDAT x", (501,), "no number"),
                ("BDAT -1", (501,), "negative"),
                ("BDAT 18446744073709551616", (501, 552), "2^64"),
                ("BDAT 99999999999999999999999 LAST", (501, 552), "more"),
                ("BDAT 5 FIRST\r\nabc", (501,), "not LAST")):
            with self.subTest(line=line, why=why):
                client = self.client()
                smtp.envelope(client, mail.Message("bad"))
                self.assertIn(client.cmd(line)[0], codes)
        self.nothing_stored()
        self.still_serves()


class Configuration(lib.Case):
    def run_weir(self, text, *more, preexec=None):
        path = os.path.join(world.work(), "bad.ini")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return self.command(weir.program("weir"), "-c", path, *more,
                            preexec_fn=preexec)

    GOOD = """[weir]
hostname = mx.test
control_socket = {dir}/c.sock
[listener in]
listen = 127.0.0.1:{port}
[backend a]
address = 127.0.0.1:1
"""

    def good(self, port=None):
        return self.GOOD.format(dir=world.work(),
                                port=port or lib.free_port())

    def test_a_good_one_is_found_good(self):
        done = self.run_weir(self.good(), "-t")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_every_error_is_named_at_once_with_its_line(self):
        text = self.good() + """[admission]
max_sessions = lots
max_per_sorce = 20
[timeouts]
command = 5 parsecs
[farm]
tries = 11
"""
        done = self.run_weir(text)
        self.assertEqual(done.returncode, 1)
        first = text[:text.index("max_sessions")].count("\n") + 1
        for line, words in ((first, ("max_sessions", "lots")),
                            (first + 1, ("max_per_sorce",
                                         "max_per_source")),
                            (first + 3, ("command", "5 parsecs")),
                            (first + 5, ("tries", "11"))):
            with self.subTest(line=line):
                said = [x for x in done.stdout.splitlines()
                        if f"bad.ini:{line}:" in x]
                self.assertEqual(len(said), 1, done.stdout)
                for word in words:
                    self.assertIn(word, said[0])

    def test_the_same_errors_are_found_by_t(self):
        text = self.good() + "[admission]\nmax_sessions = 0\nfoo = 1\n"
        at_start, tested = self.run_weir(text), self.run_weir(text, "-t")
        self.assertEqual((at_start.returncode, tested.returncode), (1, 1))
        self.assertEqual(at_start.stdout, tested.stdout)

    def one_line(self, done, *words):
        self.assertEqual(done.returncode, 1, done.stdout)
        lines = [x for x in done.stdout.splitlines() if x]
        self.assertEqual(len(lines), 1, done.stdout)
        for word in words:
            self.assertIn(word, lines[0])

    def test_no_such_file(self):
        done = self.command(weir.program("weir"), "-c", "/nonexistent.ini")
        self.one_line(done, "/nonexistent.ini", "No such file")

    def test_no_backend_is_an_error(self):
        text = self.good()
        done = self.run_weir(text[:text.index("[backend")])
        self.one_line(done, "backend")

    def test_all_that_a_start_lacks_is_told_by_both(self):
        text = self.good().replace("[weir]\n", """[weir]
user = no-such-user
group = no-such-group
log = /nonexistent/weir.log
""").replace(world.work() + "/c.sock", "/never/c.sock")
        at_start, tested = self.run_weir(text), self.run_weir(text, "-t")
        self.assertEqual((at_start.returncode, tested.returncode), (1, 1))
        self.assertEqual(at_start.stdout, tested.stdout)
        said = tested.stdout.splitlines()
        self.assertEqual(len(said), 4, tested.stdout)
        for line, words in zip(said, (("user", "no-such-user"),
                                      ("group", "no-such-group"),
                                      ("log", "/nonexistent"),
                                      ("control_socket", "/never"))):
            for word in words:
                self.assertIn(word, line)

    @lib.needs_root
    def test_what_one_may_not_do_is_told(self):
        def nobody():
            os.setgid(65534)
            os.setuid(65534)
        self.one_line(self.run_weir(self.good(), "-t", preexec=nobody),
                      "control_socket", "Permission denied")
        # a start by root is another matter, and nobody cannot tell
        text = self.good().replace("[weir]\n", "[weir]\nuser = mail\n")
        done = self.run_weir(text, "-t", preexec=nobody)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_two_names_for_one_address_are_a_warning(self):
        text = self.good() + "[backend b]\naddress = 127.0.0.1:1\n"
        done = self.run_weir(text, "-t")
        self.assertEqual(done.returncode, 0, done.stdout)
        said = done.stdout.splitlines()
        self.assertEqual(len(said), 2, done.stdout)
        self.assertTrue(said[0].startswith("warning: "), said[0])
        self.assertIn("[backend a] and [backend b]", said[0])

    def test_weir_is_no_backend_of_its_own(self):
        for listen in ("127.0.0.1", "0.0.0.0"):
            with self.subTest(listen=listen):
                text = self.good(2525).replace("listen = 127.0.0.1",
                                               "listen = " + listen)
                text = text.replace("address = 127.0.0.1:1",
                                    "address = 127.0.0.1:2525")
                self.one_line(self.run_weir(text, "-t"), "[backend a]",
                              "[listener in]", "in circles")

    def test_a_port_in_use(self):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
            self.one_line(self.run_weir(self.good(port)), str(port))

    @lib.needs_root
    def test_no_permission_for_the_port(self):
        def nobody():
            os.setgid(65534)
            os.setuid(65534)
        os.chmod(world.work(), 0o777)  # the control socket goes there
        self.addCleanup(os.chmod, world.work(), 0o755)
        subprocess.run(["sysctl", "-qw",
                        "net.ipv4.ip_unprivileged_port_start=1024"],
                       check=True)
        self.one_line(self.run_weir(self.good(25), preexec=nobody), "25")

    def test_no_permission_for_the_control_socket(self):
        text = self.good().replace(world.work() + "/c.sock",
                                   "/nonexistent/c.sock")
        self.one_line(self.run_weir(text), "/nonexistent/c.sock")

    def test_unknown_argument(self):
        done = self.command(weir.program("weir"), "--frobnicate")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("usage", done.stdout.lower())

    def test_too_few_descriptors(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))
        done = self.run_weir(self.good(), preexec=few)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertTrue(done.stdout.strip())


class Control(lib.Case):
    def setUp(self):
        fake = self.start(backend.Backend())
        self.weir = self.start(weir.Weir([("alpha", fake, {}),
                                          ("beta", fake, {})])).up()

    def test_a_typo_gets_the_nearest_command(self):
        for words, nearest in ((("shwo", "info"), "show"),
                               (("show", "inof"), "info"),
                               (("show", "backend"), "backends"),
                               (("bann", "192.0.2.0/24"), "ban"),
                               (("set", "backend", "alpha", "drian"),
                                "drain"),
                               (("set", "backend", "alhpa", "drain"),
                                "alpha")):
            with self.subTest(words=words):
                done = self.command(weir.program("weirctl"), "-s",
                                    self.weir.control, *words)
                self.assertNotEqual(done.returncode, 0, done.stdout)
                self.assertIn(nearest, done.stdout)

    def test_wrong_arguments_are_named(self):
        for words, said in (
                (("ban", "300.0.0.0/8"), "network"),
                (("ban", "192.0.2.0/24", "fortnight"), "duration"),
                (("set", "backend", "alpha", "weight", "heavy"), "weight"),
                (("add", "backend", "c", "address=nowhere"), "nowhere"),
                (("add", "backend", "alpha", "address=127.0.0.1:1"),
                 "alpha"),
                (("add", "backend", "c", f"address={self.weir.listen[0]}"),
                 "in circles"),
                (("unban", "192.0.2.0/24"), "192.0.2.0/24")):
            with self.subTest(words=words):
                done = self.command(weir.program("weirctl"), "-s",
                                    self.weir.control, *words)
                self.assertNotEqual(done.returncode, 0, done.stdout)
                self.assertIn(said, done.stdout)

    def test_help_names_every_command(self):
        text = self.weir.ctl("help")
        for words in ("show info", "show stat", "show backends",
                      "show sessions", "show sources", "show health",
                      "set backend", "add backend", "del backend", "ban",
                      "unban", "show bans"):
            self.assertIn(words, text)

    def test_no_weir_there(self):
        done = self.command(weir.program("weirctl"), "-s", "/nonexistent",
                            "show", "info")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent", done.stdout)

    def test_a_reload_warns_of_two_names_for_one_address(self):
        self.weir.child.send_signal(signal.SIGHUP)
        lib.wait_until(lambda: self.weir.log("event=reload", "in force"),
                       "the reload")
        warning, = self.weir.log("event=reload", "warning=")
        self.assertIn("[backend alpha] and [backend beta]",
                      warning["warning"])

    def crowd(self, count):
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX)
            self.addCleanup(sock.close)
            sock.connect(self.weir.control)

    def test_too_many_operators_are_told_so(self):
        self.crowd(16)
        done = self.command(weir.program("weirctl"), "-s", self.weir.control,
                            "show", "info")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stdout, "error: too many connections\n")

    def test_whoever_is_closed_without_a_word_is_told_why(self):
        path = os.path.join(world.work(), "full.sock")
        with socket.socket(socket.AF_UNIX) as full:
            full.bind(path)
            self.addCleanup(os.unlink, path)
            full.listen()

            def close_all(unread):
                # what is not read makes a reset of the end
                for _ in range(2):
                    sock, _ = full.accept()
                    if not unread:
                        sock.recv(4096)
                    sock.close()
            for unread in (True, False):
                thread = threading.Thread(target=close_all, args=(unread,))
                thread.start()
                for words in (("show", "info"), ("status",)):
                    with self.subTest(unread=unread, words=words):
                        done = self.command(weir.program("weirctl"), "-s",
                                            path, *words)
                        self.assertEqual(done.returncode, 1)
                        self.assertIn("too many operators are connected",
                                      done.stdout)
                thread.join()
