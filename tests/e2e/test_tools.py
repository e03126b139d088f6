"""weir-sink and weir-load against each other, without weir between them.

They witness for and against weir in all other tests: here each is the
witness of the other, and Python's own hashing and sockets that of both.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import unittest

import lib
import weir
import world


class Sink:
    """One weir-sink; `mtas` is a list of settings, "name=a,slots=5"."""

    def __init__(self, case, *mtas):
        self.dir = tempfile.mkdtemp(prefix="weir-tools.")
        case.addCleanup(shutil.rmtree, self.dir)
        self.control = os.path.join(self.dir, "control")
        self.journal_path = os.path.join(self.dir, "journal")
        self.store = os.path.join(self.dir, "store")
        argv = [weir.program("weir-sink"), "--control", self.control,
                "--journal", self.journal_path, "--store", self.store]
        for mta in mtas:
            argv += ["--mta", "port=0," + mta]
        self.child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        case.addCleanup(self.kill)
        self.ports = {}
        for line in self.child.stdout:
            if line == "ready\n":
                break
            _, name, _, port = line.split()
            self.ports[name] = int(port)

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.child.stdout.close()

    def say(self, line):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(lib.PATIENCE)
            sock.connect(self.control)
            sock.sendall(line.encode() + b"\n")
            with sock.makefile() as answers:
                return answers.readline().rstrip("\n")

    def stats(self):
        return json.loads(self.say("stats"))

    def mta(self, name):
        return json.loads(self.say("show " + name))

    def journal(self):
        self.stats()  # writes out what is in the buffer
        with open(self.journal_path, encoding="ascii") as file:
            return [json.loads(line) for line in file]

    def settled(self, name):
        """The statistics once nobody is connected any more."""
        return lib.wait_until(
            lambda: (lambda s: s if s["open"] == 0 else None)(self.mta(name)),
            f"no sessions at {name}")

    def stop(self):
        """End it as an operator does; the summary it prints."""
        self.child.send_signal(signal.SIGTERM)
        out, _ = self.child.communicate(timeout=lib.PATIENCE)
        assert self.child.returncode == 0, self.child.returncode
        return json.loads(out)


def load(port, *options):
    """Run weir-load to its end: its report and its exit status."""
    argv = [weir.program("weir-load"), "--json", "-", *options,
            f"127.0.0.1:{port}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False,
                          timeout=lib.PATIENCE * 2)
    assert done.stdout, (argv, done.returncode, done.stderr)
    return json.loads(done.stdout), done.returncode


class Client:
    """A bare SMTP client for what no good client does."""

    def __init__(self, case, port):
        self.sock = socket.create_connection(("127.0.0.1", port),
                                             timeout=lib.PATIENCE)
        case.addCleanup(self.sock.close)
        self.file = self.sock.makefile("rb")
        case.addCleanup(self.file.close)

    def reply(self):
        """The code of the next reply."""
        while True:
            line = self.file.readline()
            if line[3:4] != b"-":
                return line[:3].decode()

    def say(self, data):
        self.sock.sendall(data)
        return self.reply()

    def begin(self):
        assert self.reply() == "220"
        assert self.say(b"EHLO client.test\r\n") == "250"
        return self


class Case(unittest.TestCase):
    """A test of both ends."""

    def agree(self, report, sink):
        stats = sink.stats()
        self.assertEqual(report["acknowledged"], stats["stored"])
        self.assertEqual(stats["distinct"], stats["stored"])
        self.assertEqual(report["combined"], stats["combined"])


class Agree(Case):
    """What load saw acknowledged is what sink stored."""

    def all_arrive(self, mta, *options, messages):
        sink = Sink(self, "name=a" + mta)
        report, status = load(sink.ports["a"], *options)
        self.assertEqual(status, 0, report)
        self.assertEqual(report["acknowledged"], messages)
        self.assertEqual(report["octets"], sink.stats()["octets"])
        self.agree(report, sink)
        errors = sink.settled("a")["errors"]
        return report, errors, sink

    def no_errors(self, errors):
        self.assertEqual(sum(errors.values()), 0, errors)

    def test_pipelined(self):
        report, errors, _ = self.all_arrive(
            "", "-n", "300", "-c", "30", "-m", "3", "-R", "2",
            "--size", "0-50K", messages=900)
        self.no_errors(errors)
        self.assertEqual(report["replies"]["rcpt"], {"250": 1800})

    def test_without_pipelining(self):
        _, errors, _ = self.all_arrive(
            ",pipelining=no", "-n", "100", "-c", "10", "-R", "3",
            "--size", "1-2K", messages=100)
        self.no_errors(errors)

    def test_pipelining_that_was_not_offered_is_noticed(self):
        _, errors, _ = self.all_arrive(
            ",pipelining=no", "-n", "5", "--pipelining", "yes", messages=5)
        self.assertGreater(errors["pipelined"], 0)

    def test_bdat_in_one_chunk(self):
        _, errors, sink = self.all_arrive(
            "", "-n", "50", "-c", "10", "--bdat", "--size", "0-300K",
            messages=50)
        self.no_errors(errors)
        # EHLO, MAIL, RCPT, BDAT, QUIT
        self.assertEqual(sink.mta("a")["commands"], 250)

    def test_bdat_in_many_chunks(self):
        for pipelining in ("yes", "no"):
            with self.subTest(pipelining=pipelining):
                report, errors, _ = self.all_arrive(
                    f",pipelining={pipelining}", "-n", "20", "-c", "5",
                    "--bdat=2K", "--size", "100K", messages=20)
                self.no_errors(errors)
                self.assertEqual(report["phases"]["eod"]["count"], 20)
                self.assertGreater(report["phases"]["body"]["count"], 900)

    def test_bdat_needs_chunking(self):
        report, errors, _ = self.all_arrive(
            ",chunking=no", "-n", "5", "--bdat", messages=5)
        self.no_errors(errors)
        self.assertEqual(report["replies"]["data"], {"354": 5})

    def test_helo(self):
        report, errors, _ = self.all_arrive(
            ",esmtp=no", "-n", "5", "-m", "2", messages=10)
        self.assertEqual(report["replies"]["ehlo"], {"250": 5, "500": 5})
        self.assertEqual(errors["unknown"], 5)

    def test_large_messages(self):
        _, errors, _ = self.all_arrive(
            "", "-n", "6", "-c", "3", "--size", "20M", messages=6)
        self.no_errors(errors)

    def test_dribbled_and_delayed_replies(self):
        _, errors, _ = self.all_arrive(
            ",dribble=1,banner-lines=3,line-pause=20,eod-delay=1-30",
            "-n", "6", "-c", "6", messages=6)
        self.no_errors(errors)

    def test_slow_talkers(self):
        report, errors, _ = self.all_arrive(
            "", "-n", "6", "-c", "6", "--slow", "50:1ms", "--size", "100",
            messages=6)
        self.no_errors(errors)
        self.assertEqual(report["endings"]["complete"], 6)

    def test_a_body_takes_its_time(self):
        report, errors, _ = self.all_arrive(
            "", "-n", "8", "-c", "4", "--size", "20K",
            "--body-time", "200ms-300ms", messages=8)
        self.no_errors(errors)
        times = report["phases"]
        self.assertGreaterEqual(times["session"]["min_us"], 200000)
        self.assertEqual(times["eod"]["count"], 8)

    def test_clients_that_pause(self):
        sink = Sink(self, "name=a")
        report, status = load(sink.ports["a"], "-n", "40", "-c", "4",
                              "--pause", "50ms")
        self.assertEqual(status, 0, report)
        # each comes ten times, and waits nine times
        self.assertGreaterEqual(report["seconds"], 0.45)
        self.agree(report, sink)

    def test_a_second_signal_resets_what_is_open(self):
        sink = Sink(self, "name=a,eod-delay=1h")
        with subprocess.Popen(
                [weir.program("weir-load"), "-c", "3", "-d", "1h", "--json",
                 "-", f"127.0.0.1:{sink.ports['a']}"],
                stdout=subprocess.PIPE, text=True) as child:
            lib.wait_until(lambda: sink.mta("a")["commands"] >= 12 or None,
                           "three messages are begun")
            child.send_signal(signal.SIGINT)
            with self.assertRaises(subprocess.TimeoutExpired):
                child.wait(0.3)  # they are open, and it waits for them
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=lib.PATIENCE)
        report = json.loads(out)
        self.assertEqual(report["endings"]["aborted"], 3)
        self.assertEqual(report["messages"]["unknown"], 3)

    def test_each_source_is_reported(self):
        sink = Sink(self, "name=a,slots=1,busy=421,eod-delay=20ms")
        report, status = load(sink.ports["a"], "-n", "40", "-c", "8",
                              "--sources", "4", "--per-source")
        self.assertEqual(status, 2)
        sources = report["sources"]
        self.assertEqual([s["address"] for s in sources],
                         [f"127.1.0.{n}" for n in range(4)])
        for total, key in ((report["sessions"]["failed"], "failed"),
                           (report["sessions"]["ended"], "ended"),
                           (report["acknowledged"], "acknowledged")):
            self.assertEqual(sum(s[key] for s in sources), total)
        self.assertEqual(max(s["max_us"] for s in sources),
                         report["phases"]["session"]["max_us"])

    def test_time_in_slots(self):
        sink = Sink(self, "name=a,eod-delay=100ms")
        _, status = load(sink.ports["a"], "-n", "10", "-c", "5")
        self.assertEqual(status, 0)
        spent = sink.settled("a")["slot_seconds"]
        self.assertGreaterEqual(spent, 0.9)  # milliseconds are cut off
        client = Client(self, sink.ports["a"]).begin()
        lib.wait_until(lambda: sink.mta("a")["slot_seconds"] > spent,
                       "a slot in use is counted up to now")
        self.assertEqual(client.say(b"QUIT\r\n"), "221")

    def test_think_and_open_loop(self):
        for arrivals in ("poisson", "uniform"):
            with self.subTest(arrivals=arrivals):
                report, _, _ = self.all_arrive(
                    "", "--rate", "500", "--arrivals", arrivals, "-n", "100",
                    "-m", "2", "--think", "1-5", messages=200)
                self.assertEqual(report["sessions"]["started"], 100)

    def test_arrivals_beyond_the_sessions_are_counted(self):
        sink = Sink(self, "name=a,eod-delay=200")
        report, _ = load(sink.ports["a"], "--rate", "5000", "-c", "5",
                         "-n", "200")
        sessions = report["sessions"]
        self.assertLessEqual(sessions["peak"], 5)
        self.assertGreater(sessions["overrun"], 0)
        self.assertEqual(sessions["started"] + sessions["overrun"], 200)

    def test_sources(self):
        for option, first, last in (
                (("--sources", "7"), "127.1.0.0", "127.1.0.6"),
                (("--source-range", "127.9.8.0/30"),
                 "127.9.8.0", "127.9.8.3")):
            with self.subTest(option=option):
                _, _, sink = self.all_arrive("", "-n", "21", *option,
                                             messages=21)
                seen = {line["client"].split()[0] for line in sink.journal()}
                self.assertEqual(min(seen), first)
                self.assertEqual(max(seen), last)

    def test_the_seed_makes_the_messages(self):
        sums = []
        for seed in ("7", "7", "8"):
            report, _, _ = self.all_arrive("", "-n", "9", "--seed", seed,
                                           "--size", "1K-9K", messages=9)
            sums.append(report["combined"])
        self.assertEqual(sums[0], sums[1])
        self.assertNotEqual(sums[0], sums[2])

    def test_journals_and_files_agree_with_python(self):
        sink = Sink(self, "name=a")
        path = os.path.join(sink.dir, "acknowledged")
        report, _ = load(sink.ports["a"], "-n", "40", "-c", "4", "-m", "2",
                         "--size", "0-9K", "--journal", path)
        with open(path, encoding="ascii") as file:
            acknowledged = dict(line.split() for line in file)
        stored, total = {}, 0
        for line in sink.journal():
            self.assertEqual(line["outcome"], "stored")
            stored[line["test_id"]] = line["body_sha256"]
            with open(f"{sink.store}/a-{line['id']}.mail", "rb") as file:
                envelope, _, content = file.read().partition(b"\n\n")
            self.assertIn(b"from: <sender@load.test>", envelope)
            self.assertIn(b"rcpt: <rcpt@load.test>", envelope)
            body = content.partition(b"\r\n\r\n")[2]
            self.assertEqual(hashlib.sha256(content).hexdigest(),
                             line["sha256"])
            digest = hashlib.sha256(body)
            self.assertEqual(digest.hexdigest(), line["body_sha256"])
            mark = hashlib.sha256(line["test_id"].encode() + b"\0" +
                                  digest.digest())
            total += int.from_bytes(mark.digest(), "big")
        self.assertEqual(len(stored), 80)
        self.assertEqual(stored, acknowledged)
        self.assertEqual(f"{total % 2**256:064x}", report["combined"])

    def test_a_lost_message_shows(self):
        """The comparison can fail: a message that only one end knows."""
        sink = Sink(self, "name=a")
        report, _ = load(sink.ports["a"], "-n", "3")
        client = Client(self, sink.ports["a"]).begin()
        self.assertEqual(client.say(b"MAIL FROM:<>\r\n"), "250")
        self.assertEqual(client.say(b"RCPT TO:<x@y>\r\n"), "250")
        self.assertEqual(client.say(b"DATA\r\n"), "354")
        self.assertEqual(client.say(b"X: y\r\n\r\nz\r\n.\r\n"), "250")
        stats = sink.stats()
        self.assertEqual(stats["stored"], report["acknowledged"] + 1)
        self.assertNotEqual(stats["combined"], report["combined"])

    def test_percentiles_rise(self):
        report, _, _ = self.all_arrive("", "-n", "200", "-c", "20",
                                       messages=200)
        self.assertEqual(set(report["phases"]), {
            "connect", "greeting", "ehlo", "mail", "rcpt", "data", "eod",
            "quit", "message", "session"})
        for phase in report["phases"].values():
            self.assertEqual(phase["count"], 200)
            steps = [phase[name] for name in (
                "min_us", "p50_us", "p90_us", "p99_us", "p99.9_us", "max_us")]
            self.assertEqual(steps, sorted(steps))


class Busy(Case):
    """What a client meets when all slots are taken."""

    def held(self, busy):
        """A farm with two slots, both taken by clients that stay."""
        sink = Sink(self, f"name=a,slots=2,busy={busy}")
        for _ in range(2):
            Client(self, sink.ports["a"]).begin()
        return sink

    def check(self, busy, ending, phase, *options):
        sink = self.held(busy)
        report, status = load(sink.ports["a"], "-n", "10", "-c", "5",
                              *options)
        self.assertEqual(status, 2)
        self.assertEqual(report["endings_by_phase"], [
            {"ending": ending, "phase": phase, "count": 10}])
        stats = sink.mta("a")
        self.assertEqual((stats["peak"], stats["state"]), (2, "full"))
        return sink, report, stats

    def test_421(self):
        _, report, stats = self.check("421", "421", "greeting")
        self.assertEqual(stats["refused"], 10)
        self.assertEqual(report["refusals"], [{
            "phase": "greeting", "count": 10,
            "text": "421 4.3.2 The maximum number of concurrent connections "
                    "has exceeded a limit, closing transmission channel"}])

    def test_eof(self):
        self.check("eof", "eof", "greeting")

    def test_silent(self):
        self.check("silent", "timeout", "greeting", "--timeout", "200ms")

    def test_refuse(self):
        sink, _, _ = self.check("refuse", "connect_refused", "connect")
        self.assertEqual(sink.say("set a slots 9"), "ok")
        report, status = load(sink.ports["a"], "-n", "5")
        self.assertEqual(status, 0, report)

    def test_queue(self):
        sink = Sink(self, "name=a,slots=2,busy=queue")
        report, status = load(sink.ports["a"], "-n", "60", "-c", "20")
        self.assertEqual(status, 0, report)
        self.assertEqual(sink.settled("a")["peak"], 2)
        self.agree(report, sink)

    def test_slots_are_exact(self):
        sink = Sink(self, "name=a,slots=7,eod-delay=0-5")
        report, _ = load(sink.ports["a"], "-n", "2000", "-c", "100",
                         "--sources", "50")
        stats = sink.settled("a")
        endings = report["endings"]
        self.assertEqual(stats["peak"], 7)
        self.assertEqual(endings["421"], stats["refused"])
        self.assertEqual(endings["complete"], stats["sessions"])
        self.assertEqual(endings["421"] + endings["complete"], 2000)
        self.agree(report, sink)


class Replies(Case):
    """Replies put in place of the usual ones."""

    def answers(self, settings, *options):
        sink = Sink(self, "name=a," + settings)
        report, _ = load(sink.ports["a"], "-n", "20", "-c", "4", *options)
        self.agree(report, sink)
        return report, sink.settled("a")

    def test_a_refusal_at_each_stage(self):
        text = "452 4.3.1 Insufficient system resources, or so"
        for stage in ("mail", "rcpt", "data", "eod"):
            for options in ((), ("--pipelining", "no"), ("-m", "3")):
                with self.subTest(stage=stage, options=options):
                    report, stats = self.answers(f"{stage}={text}", *options)
                    count = 60 if "-m" in options else 20
                    self.assertEqual(report["messages"]["refused"], count)
                    self.assertEqual(report["replies"][stage]["452"], count)
                    self.assertEqual(report["endings"]["rejected"], 20)
                    self.assertEqual(stats["replaced"][stage], count)
                    self.assertIn({"phase": stage, "count": count,
                                   "text": text}, report["refusals"])

    def test_every_second_time(self):
        report, _ = self.answers("mail=452 4.3.1 full,mail-every=2")
        self.assertEqual(report["messages"]["refused"], 10)
        self.assertEqual(report["acknowledged"], 10)

    def test_at_random(self):
        report, stats = self.answers("eod=451 4.3.0 no,eod-percent=50",
                                     "-m", "10")
        self.assertEqual(report["messages"]["refused"],
                         stats["replaced"]["eod"])
        self.assertTrue(20 < stats["replaced"]["eod"] < 180, stats)

    def test_421_at_each_stage(self):
        for stage in ("greeting", "ehlo", "mail", "rcpt", "data", "eod"):
            with self.subTest(stage=stage):
                report, _ = self.answers(f"{stage}=421 4.3.2 later")
                self.assertEqual(report["endings_by_phase"], [
                    {"ending": "421", "phase": stage, "count": 20}])
                self.assertEqual(report["acknowledged"], 0)

    def test_more_than_one_line(self):
        report, _ = self.answers(r"greeting=421-4.3.2 busy\n421 4.3.2 truly")
        self.assertEqual(report["refusals"][0]["text"], "421 4.3.2 truly")
        self.assertEqual(report["endings"]["421"], 20)

    def test_a_greeting_of_554(self):
        report, _ = self.answers("greeting=554 5.7.1 go away")
        self.assertEqual(report["endings"]["refused"], 20)

    def test_a_reply_that_is_none(self):
        report, _ = self.answers("mail=banana")
        self.assertEqual(report["endings"]["protocol"], 20)

    def test_limits_of_a_session(self):
        report, stats = self.answers("messages=2,rcpts=3", "-m", "3",
                                     "-R", "5")
        self.assertEqual(report["replies"]["rcpt"]["452"], 80)
        self.assertEqual(report["acknowledged"], 40)
        self.assertEqual(report["endings"]["421"], 20)
        self.assertEqual(stats["stored"], 40)

    def test_size(self):
        report, _ = self.answers("size=10K", "--size", "20K")
        self.assertEqual(report["replies"]["mail"], {"552": 20})
        sink = Sink(self, "name=a,size=10K")
        client = Client(self, sink.ports["a"]).begin()
        for line in (b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n"):
            self.assertEqual(client.say(line), "250")
        self.assertEqual(client.say(b"DATA\r\n"), "354")
        self.assertEqual(client.say(b"x\r\n" * 9000 + b".\r\n"), "552")
        self.assertEqual(sink.stats()["rejected"], 1)


class Death(Case):
    """Sessions that die on either side."""

    def test_the_server_dies_at_each_stage(self):
        after = {"connect": "greeting", "greeting": "ehlo", "ehlo": "mail",
                 "mail": "rcpt", "rcpt": "data", "data": "eod",
                 "body": "eod", "dot": "eod", "eod": "quit"}
        for how, ending in (("close", "eof"), ("rst", "reset")):
            for stage, phase in after.items():
                with self.subTest(how=how, stage=stage):
                    sink = Sink(self, f"name=a,die={stage},die-how={how},"
                                      "die-octets=1K")
                    report, status = load(
                        sink.ports["a"], "-n", "10", "-c", "2",
                        "--pipelining", "no", "--size", "100K")
                    self.assertEqual(status, 2)
                    ends = {(e["ending"], e["phase"]): e["count"]
                            for e in report["endings_by_phase"]}
                    self.assertEqual(sum(ends.values()), 10)
                    self.assertLessEqual(
                        set(ends), {("eof", phase), ("reset", phase)}, ends)
                    if stage not in ("data", "body") or how == "rst":
                        # octets that nobody reads turn a close to a reset
                        self.assertLessEqual(set(ends), {
                            (ending, phase), ("reset", phase)})
                    stats = sink.settled("a")
                    self.assertEqual(stats["deaths"], 10)
                    self.agree(report, sink)
                    self.assertEqual(report["acknowledged"],
                                     10 if stage == "eod" else 0)
                    messages = report["messages"]
                    if stage in ("data", "body"):
                        # the kernel may have taken all of it, unread
                        messages["unknown"] += messages["unfinished"]
                    self.assertEqual(
                        messages["unknown"],
                        10 if stage in ("data", "body", "dot") else 0)
                    self.assertEqual(stats["unanswered"],
                                     10 if stage == "dot" else 0)

    def test_the_client_aborts_at_each_stage(self):
        for stage in ("connect", "greeting", "ehlo", "mail", "rcpt", "data",
                      "body", "quit"):
            for options in ((), ("--pipelining", "no")):
                with self.subTest(stage=stage, options=options):
                    sink = Sink(self, "name=a")
                    report, status = load(
                        sink.ports["a"], "-n", "20", "-c", "4",
                        "--abort", f"{stage}:100", "--size", "300K", *options)
                    self.assertEqual(status, 0)
                    self.assertEqual(report["endings"]["aborted"], 20)
                    stats = sink.settled("a")
                    self.agree(report, sink)
                    self.assertEqual(stats["stored"],
                                     20 if stage == "quit" else 0)
                    if stage == "body":
                        self.assertEqual(stats["aborted"], 20)

    def test_some_clients_abort(self):
        sink = Sink(self, "name=a")
        report, status = load(sink.ports["a"], "-n", "300", "-c", "20",
                              "--abort", "data:20", "--abort", "body:20")
        self.assertEqual(status, 0)
        endings = report["endings"]
        self.assertEqual(endings["aborted"] + endings["complete"], 300)
        self.assertTrue(40 < endings["aborted"] < 200, endings)
        sink.settled("a")
        self.agree(report, sink)

    def test_an_abort_after_the_dot_leaves_the_message_unknown(self):
        sink = Sink(self, "name=a")
        report, _ = load(sink.ports["a"], "-n", "20", "--abort", "eod:100")
        stats = sink.settled("a")
        self.assertEqual(report["messages"]["unknown"], 20)
        self.assertEqual(report["acknowledged"], 0)
        # each may have been stored or not: that is what unknown means
        self.assertEqual(stats["stored"] + stats["unanswered"] +
                         stats["aborted"], 20)

    def test_killed_and_started(self):
        sink = Sink(self, "name=a,eod-delay=0-3", "name=b")
        port = sink.ports["a"]
        result = []
        thread = threading.Thread(target=lambda: result.append(
            load(port, "-c", "20", "-d", "1500ms", "-m", "5")))
        thread.start()
        lib.wait_until(lambda: sink.mta("a")["stored"] > 50, "some messages")
        self.assertEqual(sink.say("kill a"), "ok")
        before = sink.mta("a")
        self.assertEqual((before["open"], before["state"]), (0, "down"))
        self.assertFalse(lib.connects(port))
        self.assertTrue(lib.connects(sink.ports["b"]))
        self.assertEqual(sink.say("start a"), "ok")
        lib.wait_until(lambda: sink.mta("a")["stored"] > before["stored"],
                       "messages after the start")
        thread.join()
        report, status = result[0]
        self.assertEqual(status, 2)
        stats = sink.stats()
        # a reply that was in the client's socket buffer is reset with it
        missing = stats["stored"] - report["acknowledged"]
        self.assertTrue(0 <= missing <= report["messages"]["unknown"],
                        (missing, report["messages"]))
        self.assertEqual(stats["distinct"], stats["stored"])

    def scripted(self, script):
        """A server that does `script` to each of ten connections."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve():
            for _ in range(10):
                sock, _ = listener.accept()
                script(sock)
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        report, _ = load(listener.getsockname()[1], "-n", "10")
        thread.join()
        return report

    @staticmethod
    def reset(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack("ii", 1, 0))

    def test_a_421_in_front_of_a_reset_is_read(self):
        """The client says EHLO only later: nothing overtakes the text."""
        def script(sock):
            sock.sendall(b"421 4.3.2 busy\r\n")
            sock.shutdown(socket.SHUT_WR)
            sock.recv(100)
        report = self.scripted(script)
        self.assertEqual(report["endings"]["421"], 10)

    def test_half_a_421_is_cut(self):
        report = self.scripted(lambda sock: sock.sendall(b"421 4.3"))
        self.assertEqual(report["endings"]["cut"], 10)
        report = self.scripted(lambda sock: sock.sendall(b"421-4.3.2 a\r\n"))
        self.assertEqual(report["endings"]["cut"], 10)

    def test_a_reply_nobody_asked_for(self):
        def script(sock):
            sock.sendall(b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n")
            while sock.recv(100):
                pass
        report = self.scripted(script)
        self.assertEqual(report["endings"]["protocol"], 10)
        self.assertEqual(report["acknowledged"], 0)

    def test_a_421_in_mid_body(self):
        def script(sock):
            file = sock.makefile("rb")
            sock.sendall(b"220 a\r\n")
            for answer in (b"250 a", b"250 b", b"250 c", b"354 d"):
                file.readline()
                sock.sendall(answer + b"\r\n")
            file.read(100)
            sock.sendall(b"421 4.3.0 gone\r\n")
            sock.shutdown(socket.SHUT_WR)
            while file.read(65536):
                pass
        report = self.scripted(script)
        self.assertEqual(report["endings"]["421"], 10)
        self.assertEqual(report["acknowledged"], 0)

    def test_nobody_listens(self):
        report, status = load(lib.free_port(), "-n", "5")
        self.assertEqual(status, 2)
        self.assertEqual(report["endings"]["connect_refused"], 5)


class Idle(Case):
    """Clients that say EHLO and stay."""

    def test_they_stay_while_mail_flows(self):
        sink = Sink(self, "name=a")
        report, status = load(sink.ports["a"], "--idle", "300", "-n", "200",
                              "-c", "10", "--sources", "20")
        self.assertEqual(status, 0, report)
        self.assertEqual(report["endings"]["kept_idle"], 300)
        self.assertEqual(report["endings"]["complete"], 200)
        self.assertGreater(sink.mta("a")["peak"], 300)
        self.agree(report, sink)

    def test_only_idle_ones(self):
        sink = Sink(self, "name=a")
        child = subprocess.Popen(
            [weir.program("weir-load"), "--json", "-", "--idle", "50",
             f"127.0.0.1:{sink.ports['a']}"],
            stdout=subprocess.PIPE, text=True)
        lib.wait_until(lambda: sink.mta("a")["commands"] == 50, "50 EHLOs")
        self.assertEqual(sink.say("set a slots 3"), "ok")
        self.assertEqual(sink.mta("a")["open"], 50)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=lib.PATIENCE)
        self.assertEqual(child.returncode, 0)
        self.assertEqual(json.loads(out)["endings"]["kept_idle"], 50)

    def test_those_that_are_cut_are_failures(self):
        sink = Sink(self, "name=a,timeout=300ms")
        report, status = load(sink.ports["a"], "--idle", "20", "-d", "2s")
        self.assertEqual(status, 2)
        self.assertEqual(report["endings"]["421"], 20)
        self.assertEqual(sink.mta("a")["timeouts"], 20)


class FindLimit(Case):
    """weir-load --find-limit finds what weir-sink hides."""

    def find(self, mta, *options):
        sink = Sink(self, "name=a" + mta)
        report, status = load(sink.ports["a"], "--find-limit",
                              "--step", "200ms", "--band", "20+2s",
                              *options)
        if report["sessions"] > 0:  # nothing is lost on the way
            lib.wait_until(lambda: sink.stats()["stored"] ==
                           report["acknowledged"], "all that was acknowledged")
        return report, status, sink

    def test_refusals(self):
        for busy, text in (("421", "421 4.3.2"), ("eof", "closed")):
            with self.subTest(busy=busy):
                report, status, sink = self.find(
                    f",slots=11,busy={busy},eod-delay=20ms",
                    "--sources", "9")
                self.assertEqual(status, 0, report)
                self.assertEqual(
                    (report["end"], report["sessions"]), ("found", 11))
                self.assertEqual(report["no"]["sessions"], 12)
                self.assertEqual(report["no"]["phase"], "greeting")
                self.assertTrue(report["no"]["text"].startswith(text), report)
                self.assertIn("takes 11 sessions at a time",
                              report["answer"])
                self.assertIn("; at 12 it ", report["answer"])
                self.assertGreater(report["messages_per_second"], 0)
                # a few failures end each step that has any
                stats = sink.settled("a")
                self.assertLess(stats["refused"],
                                16 * len(report["steps"]))

    def test_at_most_twice_the_limit_is_offered(self):
        report, _, _ = self.find(",slots=11,eod-delay=20ms")
        offers = [step["sessions"] for step in report["steps"]]
        self.assertEqual(offers[:5], [1, 2, 4, 8, 16])
        self.assertLessEqual(max(offers), 22)

    def test_those_that_wait_are_slow(self):
        report, status, _ = self.find(
            ",slots=2,busy=queue,eod-delay=50ms", "--band", "2+100ms")
        self.assertEqual(status, 0, report)
        self.assertEqual((report["end"], report["no"]["verdict"]),
                         ("found", "slow"))
        self.assertGreaterEqual(report["sessions"], 2)
        self.assertLess(report["sessions"], 32)
        self.assertIn("it is slow", report["answer"])
        self.assertIn("the others wait", report["answer"])
        self.assertIn(report["at_work"], (1, 2, 3))

    def test_those_that_hang(self):
        report, _, _ = self.find(",slots=3,busy=silent,eod-delay=20ms",
                                 "--band", "2+100ms", "--timeout", "1s")
        self.assertEqual(report["sessions"], 3, report)
        self.assertEqual(report["no"]["sessions"], 4, report)

    def test_a_server_without_a_limit(self):
        report, status, _ = self.find(",eod-delay=5ms",
                                      "--max-sessions", "6")
        self.assertEqual(status, 0)
        self.assertEqual((report["end"], report["sessions"], report["no"]),
                         ("max_sessions", 6, None))
        self.assertIn("perhaps more", report["answer"])

    def test_a_server_that_takes_nothing(self):
        report, status, _ = self.find(",mail=450 4.7.1 Greylisted")
        self.assertEqual(status, 2)
        self.assertEqual(report["sessions"], 0)
        self.assertIn("not take even one session: it refuses: 450 4.7.1 "
                      "Greylisted (at mail)", report["answer"])

    def test_the_time_is_up(self):
        report, _, _ = self.find(",eod-delay=20ms", "--max-time", "1s")
        self.assertEqual((report["end"], report["no"]), ("max_time", None))
        self.assertLess(report["seconds"], 20)

    def test_it_is_told_to_stop(self):
        sink = Sink(self, "name=a,eod-delay=5ms")
        with subprocess.Popen(
                [weir.program("weir-load"), "--find-limit", "--json", "-",
                 f"127.0.0.1:{sink.ports['a']}"],
                stdout=subprocess.PIPE, text=True) as child:
            lib.wait_until(lambda: sink.stats()["stored"] > 0, "mail")
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=lib.PATIENCE)
        self.assertEqual(json.loads(out)["end"], "stopped")

    def test_the_plot(self):
        sink = Sink(self, "name=a,slots=3,eod-delay=20ms")
        for locale, mark in (("C.UTF-8", "\u2588"), ("C", "#")):
            with self.subTest(locale=locale):
                done = subprocess.run(
                    [weir.program("weir-load"), "--find-limit", "--step",
                     "200ms", "--band", "20+2s",
                     f"127.0.0.1:{sink.ports['a']}"],
                    env={**os.environ, "LC_ALL": locale},
                    capture_output=True, check=True,
                    timeout=lib.PATIENCE * 2)
                text = done.stdout.decode(
                    "utf-8" if locale == "C.UTF-8" else "ascii")
                rows = [line for line in text.split("\n") if mark in line]
                self.assertEqual([int(r.split()[0]) for r in rows],
                                 [1, 2, 3], text)
                self.assertLessEqual(max(map(len, rows)), 80)
                self.assertTrue(text.split("\n")[-2].startswith(
                    "This address takes 3 sessions at a time ("), text)

    def test_what_does_not_belong_to_it(self):
        for options in (("--find-limit", "-c", "5"),
                        ("--find-limit", "--duration", "5s"),
                        ("--find-limit", "--idle", "5"),
                        ("--find-limit", "--pause", "5s"),
                        ("--find-limit", "--band", "0.5"),
                        ("--max-sessions", "5"), ("--ascii",)):
            with self.subTest(options=options):
                done = subprocess.run(
                    [weir.program("weir-load"), *options, "127.0.0.1:25"],
                    capture_output=True, check=False, timeout=60)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(done.stdout, b"")


class Dialogue(unittest.TestCase):
    """The sink obeys RFC 5321 and counts its peers' errors."""

    def setUp(self):
        self.sink = Sink(self, "name=a")
        self.client = Client(self, self.sink.ports["a"])

    def counted(self, error):
        return self.sink.mta("a")["errors"][error]

    def envelope(self):
        self.client.begin()
        self.assertEqual(self.client.say(b"MAIL FROM:<a@b>\r\n"), "250")
        self.assertEqual(self.client.say(b"RCPT TO:<c@d>\r\n"), "250")

    def stored(self):
        self.sink.stats()  # the name changes when the 250 has been sent
        paths = glob.glob(self.sink.store + "/*.mail")
        with open(paths[0], "rb") as file:
            return file.read().partition(b"\n\n")[2]

    def test_dots_one_octet_at_a_time(self):
        self.envelope()
        self.assertEqual(self.client.say(b"DATA\r\n"), "354")
        self.client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in (b"X: y\r\n\r\na\n.\r\n.\r.\r\n..\r\n...\r\n.x\r\n"
                      b"\r\n.\n\r\n.\r\n"):
            self.client.sock.sendall(bytes([octet]))
        self.assertEqual(self.client.reply(), "250")
        self.assertEqual(self.stored(),
                         b"X: y\r\n\r\na\n.\r\n\r.\r\n.\r\n..\r\nx\r\n"
                         b"\r\n\n\r\n")
        self.assertEqual(self.counted("bare_lf"), 2)
        self.assertEqual(self.counted("bare_cr"), 1)

    def test_dots_in_one_piece(self):
        self.envelope()
        self.assertEqual(self.client.say(b"DATA\r\n"), "354")
        self.assertEqual(self.client.say(
            b".\r\r\n..\r\n.\r.\r\na\n.\n.\r\n\r\n.\r\n"), "250")
        self.assertEqual(self.stored(),
                         b"\r\r\n.\r\n\r.\r\na\n.\n.\r\n\r\n")

    def test_an_empty_message(self):
        self.envelope()
        self.assertEqual(self.client.say(b"DATA\r\n"), "354")
        self.assertEqual(self.client.say(b".\r\n"), "250")
        self.assertEqual(self.stored(), b"")

    def test_bdat_is_taken_as_it_is(self):
        self.envelope()
        self.assertEqual(self.client.say(b"BDAT 6\r\n\n.\r\n.\x00"), "250")
        self.assertEqual(self.client.say(b"BDAT 0 LAST\r\n"), "250")
        self.assertEqual(self.stored(), b"\n.\r\n.\x00")

    def test_bdat_without_recipients_is_read_over(self):
        self.client.begin()
        self.assertEqual(self.client.say(b"BDAT 6 LAST\r\nQUIT\r\n"), "503")
        self.assertEqual(self.client.say(b"NOOP\r\n"), "250")

    def test_command_lines(self):
        self.client.begin()
        cases = (
            (b"NOOP\n", "500", "bare_lf"),
            (b"NO\rOP\r\n", "500", "bare_cr"),
            (b"NO\0OP\r\n", "500", "nul"),
            (b"X" * 5000 + b"\r\n", "500", "line_too_long"),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", "500", "unknown"),
            (b"XCLIENT ADDR=1.2.3.4\r\n", "500", "unknown"),
            (b"DATA\r\n", "503", "sequence"),
            (b"RCPT TO:<a@b>\r\n", "503", "sequence"),
            (b"MAIL FROM:a@b\r\n", "501", "syntax"),
            (b"MAIL FROM:<a@b> WRONG=1\r\n", "555", "syntax"),
        )
        for line, code, error in cases:
            with self.subTest(line=line[:40]):
                before = self.counted(error)
                self.assertEqual(self.client.say(line), code)
                self.assertEqual(self.counted(error), before + 1)
        self.assertEqual(self.client.say(b"quit\r\n"), "221")

    def test_input_behind_data_is_noticed(self):
        self.envelope()
        self.client.sock.sendall(b"DATA\r\nearly\r\n.\r\n")
        self.assertEqual(self.client.reply(), "354")
        self.assertEqual(self.client.reply(), "250")
        self.assertEqual(self.counted("sync"), 1)

    def test_a_client_that_talks_first(self):
        sink = Sink(self, "name=a,greeting-delay=300ms")
        client = Client(self, sink.ports["a"])
        client.sock.sendall(b"EHLO x\r\n")
        self.assertEqual(client.reply(), "220")
        self.assertEqual(client.reply(), "250")
        self.assertEqual(sink.mta("a")["errors"]["early_talk"], 1)

    def test_too_many_errors(self):
        self.client.begin()
        for _ in range(19):
            self.assertEqual(self.client.say(b"WHAT\r\n"), "500")
        self.assertEqual(self.client.say(b"WHAT\r\n"), "500")
        self.assertEqual(self.client.reply(), "421")
        self.assertEqual(self.client.file.read(), b"")

    def test_a_close_without_quit(self):
        self.client.begin()
        self.client.file.close()
        self.client.sock.close()
        self.sink.settled("a")
        self.assertEqual(self.counted("no_quit"), 1)

    def test_a_message_cut_by_the_client_is_not_stored(self):
        self.envelope()
        self.assertEqual(self.client.say(b"DATA\r\n"), "354")
        self.client.sock.sendall(b"X: y\r\n\r\nhalf\r\n")
        self.client.file.close()
        self.client.sock.close()
        self.assertEqual(self.sink.settled("a")["aborted"], 1)
        self.assertEqual(self.sink.journal()[0]["outcome"], "aborted")
        self.assertEqual(os.listdir(self.sink.store), [])

    def test_a_client_that_ends_its_side_gets_its_reply(self):
        self.envelope()
        self.assertEqual(self.client.say(b"DATA\r\n"), "354")
        self.client.sock.sendall(b"X: y\r\n\r\n.\r\n")
        self.client.sock.shutdown(socket.SHUT_WR)
        self.assertEqual(self.client.reply(), "250")
        self.assertEqual(self.sink.settled("a")["stored"], 1)

    def test_the_summary(self):
        report, _ = load(self.sink.ports["a"], "-n", "7")
        self.sink.child.send_signal(signal.SIGUSR1)
        text = ""
        while not text.endswith("]}\n"):
            text += self.sink.child.stdout.readline()
        self.assertEqual(json.loads(text)["stored"], 7)
        self.assertEqual(self.sink.stop()["combined"], report["combined"])


class Usage(unittest.TestCase):
    """What a person types wrong."""

    def wrong(self, name, *argv):
        done = subprocess.run([weir.program(name), *argv], text=True,
                              capture_output=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 1, done)
        self.assertEqual(done.stdout, "")
        self.assertIn(name, done.stderr)
        return done.stderr

    def test_help(self):
        for name in ("weir-sink", "weir-load"):
            done = subprocess.run([weir.program(name), "-h"], text=True,
                                  capture_output=True, check=True, timeout=60)
            self.assertIn("usage: " + name, done.stdout)
            self.assertLessEqual(max(map(len, done.stdout.split("\n"))), 80)

    def test_every_option_and_setting_is_in_the_manual(self):
        for name in ("weir-sink", "weir-load"):
            text = subprocess.run([weir.program(name), "-h"], text=True,
                                  capture_output=True, check=True,
                                  timeout=60).stdout
            path = os.path.join(world.TOP, "tests", name + ".1")
            with open(path, encoding="ascii") as file:
                words = set(re.findall(r"[\w-]+", file.read()))
            options = set(re.findall(r"^ .*?--([\w-]+)(?:[ =\[]|$)", text, re.M))
            settings = text.partition("Settings, their")[2]
            keys = set(re.findall(r"^  ([\w-]+)  ", settings, re.M))
            self.assertGreater(len(options), 9)
            names = {name for name in options | keys
                     if not name.startswith("STAGE")}
            self.assertEqual(names - words, set())

    def test_sink(self):
        self.wrong("weir-sink")
        self.wrong("weir-sink", "--bogus")
        for setting, word in (("bogus=1", "bogus"), ("slots=x", "slots"),
                              ("busy=maybe", "refuse"), ("nonsense", "KEY"),
                              ("mail-every=0", "mail-every"),
                              ("mail-delay=9-1", "mail-delay"),
                              ("name=a/b", "name"), ("port=70000", "65535"),
                              ("address=nowhere,port=0", "nowhere")):
            with self.subTest(setting=setting):
                self.assertIn(word, self.wrong("weir-sink", "-m", setting))
        self.wrong("weir-sink", "-m", "name=a,port=0", "-m", "name=a,port=0")

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            self.assertIn("in use", self.wrong("weir-sink", "-m",
                                               f"port={port}"))

    def test_load(self):
        self.wrong("weir-load")
        self.wrong("weir-load", "127.0.0.1")
        for option in ("--sessions=0", "--rate=-1", "--size=9K-1K",
                       "--abort=nowhere:5", "--abort=data", "--slow=101",
                       "--sources=0", "--source-range=127.0.0.0/33",
                       "--pipelining=perhaps", "--bdat=1", "--from=a b",
                       "--to=<x>", "--arrivals=late", "--timeout=soon",
                       "--pause=long", "--body-time=2s-1s", "--per-source"):
            with self.subTest(option=option):
                self.assertIn(option.split("=")[0], self.wrong(
                    "weir-load", option, "127.0.0.1:25"))

    def test_control(self):
        sink = Sink(self, "name=a")
        for line, word in (("bogus", "commands are"), ("kill", "arguments"),
                           ("kill b", "no MTA"), ("set a port 1", "fixed"),
                           ("set a slots many", "allowed"),
                           ("set a nothing 1", "unknown")):
            with self.subTest(line=line):
                answer = sink.say(line)
                self.assertTrue(answer.startswith("error: "), answer)
                self.assertIn(word, answer)
        self.assertTrue(sink.say("help").startswith("ok"))


if __name__ == "__main__":
    unittest.main()
