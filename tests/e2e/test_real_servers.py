"""Postfix, Exim and OpenSMTPD behind weir: what was acknowledged is stored
once and unharmed, whatever happens to the servers meanwhile."""

import concurrent.futures
import os
import random

import lib
import mail
import mta
import smtp
import weir
import world

MB = 1 << 20


def mixed(prefix, count, most=64 << 10):
    """Messages from no body at all to `most` octets, small ones mostly."""
    rand = random.Random(prefix)
    out = [mail.Message(f"{prefix}-{i}", int(most * rand.random() ** 6),
                        eightbit=i % 3 == 0) for i in range(count - 2)]
    return out + [mail.Message(f"{prefix}-empty", 0),
                  mail.Nothing(f"{prefix}-nothing")]


def large(prefix):
    return [mail.Message(f"{prefix}-{size >> 20}M-{i}", size)
            for size, count in ((20 * MB, 3), (5 * MB, 4), (MB, 10))
            for i in range(count)]


def behind(servers, **keys):
    return [(s.name, s, dict({"max_sessions": 40}, **keys)) for s in servers]


@lib.needs_root
class Case(lib.Case):
    def farm(self, *servers):
        return [self.start(s) for s in servers]

    def settle(self, servers):
        for server in servers:
            server.settle()
        return mail.tally(*servers)

    def nobody_refused(self, crowd):
        self.assertEqual(crowd.refused, [])
        self.assertEqual(crowd.broken, [])
        self.assertEqual(len(crowd.acked), len(crowd.messages))


class Delivery(Case):
    def each(self, messages, send, threads=4):
        """send(message, path of its text) for all; who was told 250."""
        folder = os.path.join(world.work(), "out")
        os.makedirs(folder, exist_ok=True)

        def one(message):
            path = os.path.join(folder, message.ident)
            with open(path, "wb") as file:
                file.write(message.data)
            # swaks adds the CRs, and CRLF at the end
            with open(path + ".lf", "wb") as file:
                file.write(message.data.replace(b"\r\n", b"\n")[:-1])
            done = send(message, path)
            os.unlink(path)
            os.unlink(path + ".lf")
            self.assertEqual(done.returncode, 0, done.stdout)
            return message.ident
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, messages))

    def test_plain_and_pipelined_through_all_three(self):
        servers = self.farm(mta.Postfix(), mta.Exim(), mta.OpenSmtpd())
        proxy = self.start(weir.Weir(behind(servers))).up()
        plain = smtp.Crowd(proxy.port, mixed("plain", 700), 6, "plain")
        piped = smtp.Crowd(proxy.port, mixed("piped", 700), 6, "pipelined")
        big = smtp.Crowd(proxy.port, large("big"), 3, "pipelined")
        for crowd in (plain, piped, big):
            crowd.start()
        for crowd in (plain, piped, big):
            self.nobody_refused(crowd.join())

        curl = mixed("curl", 80)[:-1]
        swaks = [mail.Message(f"swaks-{i}", i * 40 + 200)
                 for i in range(100)]
        acked = self.each(curl, lambda message, path: self.command(
            "curl", "-sS", f"smtp://127.0.0.1:{proxy.port}/client.test",
            "--mail-from", message.ident + "@sender.test", "--mail-rcpt",
            "u@local.test", "--upload-file", path))
        acked += self.each(swaks, lambda message, path: self.command(
            "swaks", "--silent", "2", "-s", "127.0.0.1", "-p",
            str(proxy.port), "-h", "client.test", "-f",
            message.ident + "@sender.test", "-t", "u@local.test",
            "--data", "@" + path + ".lf"))

        stored = self.settle(servers)
        sent = curl + swaks
        for crowd in (plain, piped, big):
            sent += crowd.messages
            acked += crowd.acked
        self.assertEqual(len(acked), len(sent))
        mail.compare(self, sent, acked, stored)
        for server in servers:
            self.assertTrue(any(s.server == server.name
                                for copies in stored.values()
                                for s in copies),
                            server.name + " got its share")

    def test_smtp_source_through_all_three(self):
        servers = self.farm(mta.Postfix(), mta.Exim(), mta.OpenSmtpd())
        proxy = self.start(weir.Weir(behind(servers))).up()
        for more in (["-s", "20", "-m", "600"],
                     ["-d", "-s", "10", "-m", "300"]):
            done = self.command("/usr/sbin/smtp-source", *more, "-l", "5120",
                                "-f", "a@sender.test", "-t", "u@local.test",
                                f"127.0.0.1:{proxy.port}")
            self.assertEqual(done.returncode, 0, done.stdout)
        stored = self.settle(servers)
        self.assertEqual(len(stored), 900)
        self.assertEqual([i for i, c in stored.items() if len(c) != 1], [])
        self.assertEqual(len({s.sha for c in stored.values() for s in c}), 1,
                         "smtp-source sends the same body each time")

    def test_bdat_through_postfix_and_exim(self):
        servers = self.farm(mta.Postfix(), mta.Exim())
        proxy = self.start(weir.Weir(behind(servers))).up()
        with smtp.Client(proxy.port) as client:
            self.assertIn("CHUNKING", client.hello())
        rand = random.Random(7)

        def chunked(client, message):
            chunk = rand.choice((80, 1000, 4096, 65536, 1 << 20))
            if len(message.data) // chunk > 90:
                chunk = 1 << 20
            return smtp.send_bdat(client, message, chunk,
                                  pipelined=rand.random() < 0.7)
        messages = mixed("bdat", 600) + large("bdat")
        crowd = smtp.Crowd(proxy.port, messages, 8, chunked).start()
        self.nobody_refused(crowd.join())
        mail.compare(self, messages, crowd.acked, self.settle(servers))

    def test_chunking_is_not_offered_if_one_server_has_none(self):
        servers = self.farm(mta.Postfix(), mta.OpenSmtpd())
        proxy = self.start(weir.Weir(behind(servers))).up()
        with smtp.Client(proxy.port) as client:
            offered = client.hello()
            self.assertNotIn("CHUNKING", offered)
            self.assertNotIn("SMTPUTF8", offered)
            self.assertIn("PIPELINING", offered)
            self.assertEqual(offered["SIZE"], "157286400")
            for word in ("XCLIENT", "XFORWARD", "ETRN", "VRFY",
                         "PIPECONNECT"):
                self.assertNotIn(word, offered)


class Killed(Case):
    def test_each_server_killed_in_turn_under_load(self):
        servers = self.farm(mta.Postfix(), mta.Exim(), mta.OpenSmtpd())
        proxy = self.start(weir.Weir(behind(servers))).up()
        threads = 8
        messages = mixed("killed", 8000, 20 << 10)  # more than it takes
        crowd = smtp.Crowd(proxy.port, messages, threads, pause=0.02).start()

        def flows(count, what):
            before = len(crowd.acked)
            lib.wait_until(lambda: len(crowd.acked) >= before + count, what)
        for server in servers:
            flows(200, "mail flows")
            server.kill()
            flows(100, f"mail flows without {server.name}")
            server.start()
            proxy.up()
        flows(200, "mail flows")
        crowd.stop()
        crowd.join()
        self.assertGreater(len(crowd.acked), 1000)
        mail.compare(self, messages, crowd.acked, self.settle(servers))
        # only what was under way at a killed server may have failed
        failed = crowd.refused + crowd.broken
        self.assertLessEqual(len(failed), threads * len(servers), failed)
        for _, stage, code, text in crowd.refused:
            self.assertIn(code, (421, 451), (stage, text))


class Busy(Case):
    """One server has few places and says so when asked for more; the other
    has room.  No client ever notices."""

    def crowd_through(self, tight, words="", path="", address=None,
                      roomy=None, before=None):
        roomy = roomy or mta.Exim()
        self.farm(tight, roomy)
        proxy = self.start(weir.Weir(
            [("tight", address or tight, {"max_sessions": 40}),
             ("roomy", roomy, {"max_sessions": 40})],
            timeouts={"backend_greeting": "3s"},
            health={"interval": "1h"})).up()
        if before:
            before(proxy)
        messages = mixed("busy", 400, 20 << 10)
        crowd = smtp.Crowd(proxy.port, messages, 16).start()
        self.nobody_refused(crowd.join())
        mail.compare(self, messages, crowd.acked,
                     self.settle([tight, roomy]))
        if words:
            with open(path, encoding="utf-8", errors="replace") as file:
                self.assertIn(words, file.read(), "it never came to that")
        return proxy

    def test_postfix_connection_count_limit(self):
        tight = mta.Postfix(per_client=2)
        self.crowd_through(tight, "Connection concurrency limit exceeded",
                           tight.dir + "/maillog")

    def test_postfix_out_of_processes_says_nothing(self):
        tight = mta.Postfix(smtpd_processes=3)

        def occupy(_):
            for _ in range(3):
                client = smtp.Client(tight.port)
                self.addCleanup(client.close)
                client.hello()
        proxy = self.crowd_through(tight, before=occupy)
        self.assertGreater(proxy.row("tight")["greeting_silent"], 0)

    def test_postscreen_all_server_ports_are_busy(self):
        tight = mta.Postfix(screened=2)
        self.crowd_through(tight, "all server ports busy",
                           tight.dir + "/maillog", tight.screen_address)

    def test_exim_accept_max(self):
        tight = mta.Exim(accept_max=2)
        self.crowd_through(tight, "too many connections",
                           tight.dir + "/log/main", roomy=mta.Postfix())
