"""What the machine and the operator do (rows S of the fault catalogue)."""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import unittest

import backend
import lib
import mail
import smtp
import weir
import world

LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


class Case(lib.Case):
    def proxy(self, play=None, **more):
        self.backend = self.start(backend.Backend(play))
        more.setdefault("farm", {"linger": "0"})
        self.weir = self.start(weir.Weir([("a", self.backend, {})],
                                         **more)).up()
        return self.weir

    def client(self):
        client = smtp.Client(self.weir.port)
        self.addCleanup(client.close)
        client.hello()
        return client

    def load(self, prefix, count, **more):
        return smtp.Crowd(self.weir.port, [
            mail.Message(f"{prefix}-{i}", 3000) for i in range(count)],
            6, **more).start()

    def all_acked(self, crowd):
        crowd.join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(crowd.acked), len(crowd.messages))

    def kept_once(self, crowd, *more):
        """Acknowledged = kept, none twice, whatever else was lost."""
        kept = [mail.digest(x) for b in (self.backend, *more)
                for x in b.kept]
        self.assertEqual(len(kept), len(set(kept)), "kept twice")
        by_ident = {m.ident: mail.digest(m.data) for m in crowd.messages}
        self.assertEqual([i for i in crowd.acked
                          if by_ident[i] not in kept], [],
                         "acknowledged and lost")


class Descriptors(Case):
    """S1"""

    def test_out_of_descriptors_and_back(self):
        self.proxy(health={"interval": "1h"})
        have = self.weir.descriptors()
        resource.prlimit(self.weir.pid, resource.RLIMIT_NOFILE,
                         (have + 20, have + 20))
        socks = []
        for _ in range(100):
            sock = socket.create_connection(("127.0.0.1", self.weir.port))
            self.addCleanup(sock.close)
            socks.append(sock)
        lib.wait_until(lambda: self.weir.descriptors() >= have + 19,
                       "descriptors have run out")
        time.sleep(1)
        # it waits for one to be free, and does not try in a circle
        with open(f"/proc/{self.weir.pid}/stat", encoding="ascii") as file:
            before = file.read().rpartition(")")[2].split()[11:13]
        time.sleep(2)
        with open(f"/proc/{self.weir.pid}/stat", encoding="ascii") as file:
            after = file.read().rpartition(")")[2].split()[11:13]
        ticks = sum(map(int, after)) - sum(map(int, before))
        self.assertLess(ticks, os.sysconf("SC_CLK_TCK"),
                        "half of one core for nothing")
        for sock in socks:
            sock.close()
        message = mail.Message("after")
        lib.wait_until(lambda: self.sends(message), "mail flows again")

    def sends(self, message):
        try:
            with smtp.Client(self.weir.port, patience=5) as client:
                client.hello()
                smtp.send_plain(client, message)
            return True
        except (smtp.Gone, smtp.Refused, TimeoutError):
            return False

    def test_nothing_is_left_open_after_mail(self):
        self.proxy(health={"interval": "1h"})
        self.all_acked(self.load("warm", 50))
        lib.wait_until(lambda: self.backend.open == 0, "slots are back")
        lib.wait_until(lambda: self.weir.info()["open"] == 0,
                       "sessions are over")
        have = self.weir.descriptors()
        self.all_acked(self.load("more", 300))
        lib.wait_until(lambda: self.weir.descriptors() <= have,
                       "descriptors are given back")


class Clock(Case):
    """S6"""

    def test_the_clock_jumps_a_day(self):
        if not os.path.exists(LIBFAKETIME):
            raise unittest.SkipTest("needs root: libfaketime is unpacked")
        if weir.sanitized():
            raise unittest.SkipTest("ASan must be the first library")
        path = os.path.join(world.work(), "clock")

        def set_clock(text):
            with open(path + ".new", "w", encoding="ascii") as file:
                file.write(text)
            os.rename(path + ".new", path)
        set_clock("+0")
        self.proxy(env={"LD_PRELOAD": LIBFAKETIME,
                        "FAKETIME_TIMESTAMP_FILE": path,
                        "FAKETIME_NO_CACHE": "1",
                        "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
                   health={"interval": "200ms"})
        idle = self.client()
        for jump in ("+1d", "-1d", "+400d", "+0"):
            set_clock(jump)
            time.sleep(0.5)
            self.all_acked(self.load("jump" + jump, 30))
        self.assertEqual(idle.cmd("NOOP")[0], 250)
        self.assertEqual(self.weir.log("event=backend", "to=down"), [])


class Reload(Case):
    """S7"""

    def reload(self, text):
        with open(self.weir.path, "w", encoding="utf-8") as file:
            file.write(text)
        before = len(self.weir.log("event=reload", "result="))
        self.weir.child.send_signal(signal.SIGHUP)
        lib.wait_until(lambda: len(self.weir.log(
            "event=reload", "result=")) > before, "it says what came of it")

    def test_a_bad_one_changes_nothing(self):
        self.proxy()
        crowd = self.load("reload", 300, pause=0.005)
        self.reload(self.weir.text() + "\n[farm]\ntries = many\n")
        self.assertTrue(any("many" in x for x in self.weir.lines))
        self.all_acked(crowd)

    def test_under_load_with_a_backend_less_and_new_limits(self):
        other = self.start(backend.Backend())
        self.proxy()
        text = self.weir.text()
        crowd = self.load("reload", 600, pause=0.005)
        self.reload(text + f"\n[backend b]\naddress = {other.address}\n"
                    "max_sessions = 100\n")
        lib.wait_until(lambda: other.kept, "the new one is used")
        self.reload(text)
        self.all_acked(crowd)
        self.kept_once(crowd, other)
        lib.wait_until(lambda: len(self.weir.rows()) == 1, "b is gone")
        self.reload(text.replace("max_per_source = 0", "max_per_source = 1"))
        first = self.client()
        with smtp.Client(self.weir.port) as second:
            self.assertEqual(second.reply()[0], 421)
        self.assertEqual(first.cmd("NOOP")[0], 250)


class Ends(Case):
    """S8"""

    def test_sigterm_under_load_loses_nothing(self):
        for number in range(3):
            self.proxy()
            crowd = self.load(f"drain{number}", 2000)
            lib.wait_until(lambda c=crowd: len(c.acked) > 100 * number + 20,
                           "mail flows")
            self.weir.stop()
            crowd.stop()
            crowd.join()
            self.kept_once(crowd)
            # who was told anything at a boundary was told 421
            for _, stage, code, text in crowd.refused:
                self.assertEqual((code, text[:5]), (421, "4.3.2"), stage)
            self.doCleanups()

    def test_a_drain_waits_for_the_message_under_way(self):
        self.proxy(timeouts={"drain": "1m"})
        client, idle = self.client(), self.client()
        message = mail.Message("under-way", 10_000)
        smtp.envelope(client, message)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        text = smtp.stuffed(message.data) + b".\r\n"
        client.send(text[:5000])
        child = self.weir.child
        child.send_signal(signal.SIGTERM)
        code, words = idle.reply()
        self.assertEqual((code, words[:5]), (421, "4.3.2"))
        self.assertEqual(idle.rest(), b"")
        lib.wait_until(lambda: not lib.connects(self.weir.port),
                       "it listens no more", 30)
        self.assertIsNone(child.poll())
        client.send(text[5000:])
        self.assertEqual(client.reply()[0], 250)
        self.assertEqual(client.reply()[0], 421)
        self.assertEqual(self.backend.kept, [message.data])
        self.assertEqual(child.wait(60), 0)

    def test_a_drain_ends_at_its_time(self):
        self.proxy(timeouts={"drain": "1s"})
        client = self.client()
        smtp.envelope(client, mail.Message("never"))
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(b"half of it\r\n")
        self.weir.stop()
        self.assertEqual(self.backend.kept, [])

    def test_a_second_sigterm_ends_it_at_once(self):
        self.proxy(timeouts={"drain": "1h"})
        client = self.client()
        smtp.envelope(client, mail.Message("never"))
        self.weir.child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        self.weir.stop()

    def test_kill_9_loses_nothing_that_was_acknowledged(self):
        self.proxy()
        crowd = self.load("kill9", 2000)
        lib.wait_until(lambda: len(crowd.acked) > 100, "mail flows")
        self.weir.kill()
        crowd.stop()
        crowd.join()
        self.kept_once(crowd)

    def test_a_control_socket_left_behind_is_no_hindrance(self):
        self.proxy()
        control = self.weir.control
        self.weir.child.kill()
        self.weir.child.wait()
        self.assertTrue(os.path.exists(control))
        self.weir.reader.join(10)
        self.weir.child.stderr.close()
        self.weir.start()
        self.weir.up()


class Logs(Case):
    """S9"""

    def pipe(self, **more):
        read, write = os.pipe()
        self.proxy(stderr=write, **more)
        os.close(write)
        return read

    def test_nobody_reads_the_log(self):
        read = self.pipe()
        self.addCleanup(os.close, read)
        self.all_acked(self.load("blocked", 3000, kept=1))
        # 3000 sessions are some 1.5 MB of lines: more than any pipe
        os.set_blocking(read, False)
        threading.Thread(target=self.drain, args=(read,),
                         daemon=True).start()

    @staticmethod
    def drain(read):
        """Let the end of weir not wait for a log that nobody reads."""
        while True:
            try:
                select.select([read], [], [], 60)
                if not os.read(read, 65536):
                    return
            except OSError:
                return

    def test_lines_that_find_no_place_are_counted(self):
        read = self.pipe(weir={"log_level": "debug"})
        self.addCleanup(os.close, read)
        noise = smtp.Client(self.weir.port)
        self.addCleanup(noise.close)
        noise.close()

        def dropped():
            stop = time.monotonic() + 2
            while time.monotonic() < stop:
                # the shortest session there is: one line of log
                socks = [socket.create_connection(
                    ("127.0.0.1", self.weir.port)) for _ in range(200)]
                for sock in socks:
                    sock.close()
            return self.weir.info()["log_dropped"]
        lib.wait_until(dropped, "lines are dropped", 180)
        self.all_acked(self.load("while", 50))
        text = []

        def collect():
            try:
                while True:
                    octets = os.read(read, 65536)
                    if not octets:
                        return
                    text.append(octets)
            except OSError:
                return
        threading.Thread(target=collect, daemon=True).start()
        lib.wait_until(lambda: any(b"dropped" in x for x in text),
                       "the log says so itself")

    def test_the_logs_reader_is_gone(self):
        read = self.pipe()
        os.close(read)
        self.all_acked(self.load("closed", 300))

    def test_stderr_is_closed(self):
        self.proxy(stderr=subprocess.DEVNULL,
                   preexec=lambda: os.close(2))
        self.all_acked(self.load("none", 50))

    def test_the_disk_is_full(self):
        self.proxy(weir={"log": "/dev/full"})
        self.all_acked(self.load("full", 300))

    def test_what_a_client_says_cannot_break_a_line(self):
        self.proxy()
        with smtp.Client(self.weir.port) as client:
            client.reply()
            client.cmd("EHLO [x\" close=quit \\ \u00e9\x1b]")
            client.cmd("EHLO a.test")
            client.cmd("MAIL FROM:<\"a\\\" b=c\\\\\"@sender.test>")
            client.quit()
        lib.wait_until(lambda: self.weir.log("event=session"), "it is logged")
        for line in self.weir.lines:
            self.assertTrue(all(32 <= ord(c) < 127 for c in line), line)

    def test_json(self):
        self.proxy(weir={"log_format": "json"})
        with self.client() as client:
            smtp.send_plain(client, mail.Message("json"))
            client.quit()

        def sessions():
            out = [json.loads(x) for x in self.weir.lines if x[:1] == "{"]
            return [x for x in out if x.get("event") == "session"]
        lines = lib.wait_until(sessions, "it is logged")
        self.assertEqual((lines[0]["close"], lines[0]["messages"]),
                         ("quit", 1))

    def test_a_message_is_one_line_with_all_that_is_known(self):
        self.proxy(backend.script(end="250 2.0.0 Ok: queued as 4XyZ12"))
        message = mail.Message("logged", 3000)
        with self.client() as client:
            smtp.send_plain(client, message)
            client.quit()
        line = lib.wait_until(lambda: self.weir.log("event=message"),
                              "it is logged")[0]
        self.assertEqual(
            {key: line[key] for key in ("from", "rcpts", "rcpts_ok",
                                        "backend", "code", "queue_id",
                                        "tries", "listener")},
            {"from": "logged@sender.test", "rcpts": "1", "rcpts_ok": "1",
             "backend": "a", "code": "250", "queue_id": "4XyZ12",
             "tries": "1", "listener": "in"})


class ControlSocket(Case):
    """S10"""

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(lib.PATIENCE)
        sock.connect(self.weir.control)
        self.addCleanup(sock.close)
        return sock

    def still_good(self):
        self.assertIn("connections", self.weir.info())
        self.all_acked(self.load("control", 20))

    def test_garbage(self):
        self.proxy()
        for octets in (b"\0" * 5000 + b"\n", bytes(range(256)) * 20,
                       b"\n" * 1000, b"show\0info\n", b"\r\n\r\n",
                       b"show info" + b" x" * 500 + b"\n"):
            with self.subTest(octets=octets[:20]):
                sock = self.connect()
                try:
                    sock.sendall(octets)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        self.still_good()

    def test_a_line_of_a_megabyte(self):
        self.proxy()
        before = self.weir.rss()
        sock = self.connect()
        try:
            sock.sendall(b"x" * (1 << 20) + b"\n")
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.assertLess(self.weir.rss() - before, 2 << 20)
        self.still_good()

    def test_a_thousand_at_once(self):
        self.proxy()
        socks = []
        for _ in range(1000):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            self.addCleanup(sock.close)
            try:
                sock.connect(self.weir.control)
            except BlockingIOError:
                pass  # weir need not take them all
            socks.append(sock)
        self.all_acked(self.load("control", 20))
        for sock in socks:
            sock.close()
        lib.wait_until(lambda: self.weir.ctl("show", "info", check=False)
                       .count("\n") > 3, "the control socket answers")

    def test_who_does_not_read_stops_nobody(self):
        self.proxy()
        for _ in range(8):
            sock = self.connect()
            sock.setblocking(False)
            try:
                for _ in range(200):
                    sock.send(b"show stat json\nshow sessions\nhelp\n" * 50)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
        self.all_acked(self.load("control", 100))

    def test_mode_and_owner(self):
        self.proxy(weir={"control_mode": "0600"})
        mode = os.stat(self.weir.control).st_mode
        self.assertTrue(stat.S_ISSOCK(mode))
        self.assertEqual(stat.S_IMODE(mode), 0o600)

    @lib.needs_root
    def test_who_may_not_is_told(self):
        self.proxy(weir={"control_mode": "0600"})

        def nobody():
            os.setgid(65534)
            os.setuid(65534)
        done = self.command(weir.program("weirctl"), "-s",
                            self.weir.control, "show", "info",
                            preexec_fn=nobody)
        self.assertEqual(done.returncode, 1)
        self.assertIn("ermission denied", done.stdout)

    def test_another_weirs_socket_is_not_taken(self):
        self.proxy()
        other = weir.Weir([("a", self.backend, {})],
                          weir={"control_socket": self.weir.control})
        other.launch()
        self.addCleanup(other.stop, expect=1)
        self.assertEqual(other.child.wait(lib.PATIENCE), 1)
        other.reader.join(10)
        self.assertIn(self.weir.control, "\n".join(other.lines))
        self.still_good()


def forbid_io_uring(error):
    """For preexec_fn: io_uring_setup fails with this error from now on, as
    it does in most containers."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = [(0x20, 0, 0, 0),            # A = system call number
            (0x15, 0, 1, 425),          # io_uring_setup?
            (0x06, 0, 0, 0x00050000 | error),
            (0x06, 0, 0, 0x7fff0000)]   # allow
    program = b"".join(struct.pack("HBBI", *one) for one in code)
    buffer = ctypes.create_string_buffer(program)

    class Prog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    prog = Prog(len(code), ctypes.addressof(buffer))

    def forbid():
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2,
                                                    ctypes.byref(prog)):
            os._exit(99)
    forbid.keep = (buffer, prog)
    return forbid


class IoUring(Case):
    """S11, and S2 where it begins: no ring, no weir, and it says why."""

    def refused(self, **more):
        server = self.start(backend.Backend())
        proxy = weir.Weir([("a", server, {})], **more)
        proxy.launch()
        self.addCleanup(proxy.stop, expect=1)
        self.assertEqual(proxy.child.wait(lib.PATIENCE), 1)
        proxy.reader.join(10)
        self.assertEqual(len(proxy.lines), 1, proxy.lines)
        self.assertIn("io_uring", proxy.lines[0])
        return proxy.lines[0]

    def test_forbidden(self):
        self.refused(preexec=forbid_io_uring(1))  # EPERM

    def test_absent(self):
        self.refused(preexec=forbid_io_uring(38))  # ENOSYS

    @lib.needs_root
    def test_no_memory_to_lock(self):
        def poor():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
            os.setgid(65534)
            os.setuid(65534)
        server = self.start(backend.Backend())
        proxy = weir.Weir([("a", server, {})], preexec=poor)
        os.chmod(proxy.dir, 0o777)
        proxy.launch()
        self.addCleanup(lambda: proxy.child and proxy.child.poll() is None
                        and proxy.stop())
        lib.wait_until(lambda: proxy.child.poll() is not None or
                       os.path.exists(proxy.control), "it starts or ends")
        time.sleep(0.5)
        if proxy.child.poll() is None:
            return  # it can do without
        proxy.reader.join(10)
        self.assertEqual(proxy.child.returncode, 1, proxy.lines)
        self.assertEqual(len(proxy.lines), 1, proxy.lines)
        self.assertIn("MEMLOCK", proxy.lines[0].upper())
