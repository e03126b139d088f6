"""reuse = on: a backend connection that has served one client's message takes
the next client's; identity = header: the message says who that client is."""

import random
import re
import threading

import backend
import lib
import mail
import mta
import slots
import smtp
import weir
from backend import script

# RFC 5321, section 4.4, as weir writes it
FIELD = re.compile(r"from (\S+) \(\[([0-9a-fA-F.:]+)\]\)\s+by (\S+)\s+with "
                   r"(\S+)\s+id ([\w-]+);\s+\w{3}, \d+ \w{3} \d{4} [\d:]+ "
                   r"[+-]\d{4}")


class Case(lib.Case):
    def weir_with(self, backends, **sections):
        farm = dict({"reuse_share": "100%", "linger": "0"},
                    **sections.pop("farm", {}))
        self.weir = self.start(weir.Weir(
            [(name, thing, dict({"reuse": "on"}, **keys))
             for name, thing, keys in backends],
            farm=farm, **sections)).up()
        return self.weir

    def send(self, message, way=smtp.send_plain, source=None,
             name="client.test"):
        """One session with one message."""
        with smtp.Client(self.weir.port, source=source) as client:
            client.hello(name)
            way(client, message)
            client.quit()

    def good(self, crowd):
        crowd.join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(crowd.acked), len(crowd.messages))

    def connects(self):
        return self.weir.info()["backend_connects"]


class Scripted(Case):
    def farm(self, *plays, keys=None, **sections):
        self.backends = [self.start(backend.Backend()) for _ in plays or [0]]
        sections.setdefault("health", {"interval": "1h"})
        sections.setdefault("weir", {"workers": 1})
        self.weir_with([(f"b{i}", b, dict(
            {"weight": max(1, 1000 // 30 ** i)}, **(keys or {})))
            for i, b in enumerate(self.backends)], **sections)
        lib.wait_until(lambda: all(b.open == 0 for b in self.backends),
                       "the probes are over")
        for b, play in zip(self.backends, plays):
            b.play = play

    def mails(self, number=0):
        """Of each connection, the senders that it read."""
        return [[line[len("MAIL FROM:<"):].partition("@")[0]
                 for line in peer.lines if line.startswith("MAIL")]
                for peer in self.backends[number].mails()]

    def settled(self):
        """The client's reply to QUIT may be sooner than the backend's place
        among the idle."""
        lib.wait_until(lambda: self.weir.info()["open"] == 0, "it has left")

    def several(self, count, prefix="m", **more):
        for i in range(count):
            self.send(mail.Message(f"{prefix}{i}"), **more)
            self.settled()

    def test_many_clients_one_connection(self):
        self.farm()
        sent = [mail.Message(f"m{i}", 2000) for i in range(20)]
        for i, message in enumerate(sent):
            way = (smtp.send_plain, smtp.send_pipelined,
                   smtp.send_bdat)[i % 3]
            self.send(message, way, name=f"client{i}.test")
            self.settled()
        self.assertEqual(self.mails(), [[m.ident for m in sent]])
        self.assertEqual(self.backends[0].kept, [m.data for m in sent])
        lines = self.backends[0].mails()[0].lines
        self.assertEqual([x for x in lines if x[:4] in ("EHLO", "HELO")],
                         ["EHLO mx.test"])
        self.assertNotIn("QUIT", lines)
        self.assertEqual(self.connects(), 1)
        self.assertEqual(self.weir.info()["reused"], 19)

    def test_off_is_off(self):
        self.farm(keys={"reuse": "off"})
        self.several(3)
        self.assertEqual(self.mails(), [["m0"], ["m1"], ["m2"]])

    def test_reuse_max(self):
        self.farm(farm={"reuse_max": 3})
        self.several(7)
        self.assertEqual(self.mails(), [["m0", "m1", "m2"],
                                        ["m3", "m4", "m5"], ["m6"]])

    def test_reuse_idle(self):
        self.farm(farm={"reuse_idle": "200ms"})
        self.several(1)
        lib.wait_until(lambda: self.backends[0].open == 0, "it is let go")
        self.assertEqual(self.backends[0].mails()[0].lines[-1], "QUIT")

    def told(self, refusal):
        """Clients are told of by XCLIENT; that of bad.test is refused."""
        greeting = "220 fake.test ESMTP"

        def xclient(peer):
            return (refusal(peer) if "HELO=bad.test" in peer.lines[-1]
                    else greeting)
        # Its probes are to be good, too.
        self.backends = [self.start(backend.Backend(script(xclient=xclient)))]
        self.weir_with([("b0", self.backends[0], {"identity": "xclient"})],
                       health={"interval": "1h"}, weir={"workers": 1})
        self.several(1)

    def test_a_client_refused_at_xclient_ends_no_reuse(self):
        # Postfix with smtpd_delay_reject = no
        self.told(lambda peer: "554 5.7.1 <bad.test[127.0.0.1]>: Client host "
                               "rejected: Access denied")
        with self.assertRaises(smtp.Refused):
            self.send(mail.Message("bad"), name="bad.test")
        self.several(2, "n")
        self.assertEqual(self.mails(), [["m0"], ["n0", "n1"]])

    def test_who_takes_xclient_but_once_is_not_asked_again(self):
        self.told(lambda peer: "550 5.7.0 Error: insufficient authorization"
                  if any(line[:4] == "MAIL" for line in peer.lines)
                  else "220 fake.test ESMTP")
        self.send(mail.Message("bad"), name="bad.test")
        self.several(2, "n")
        self.assertEqual(self.mails(), [["m0"], ["bad"], ["n0"], ["n1"]])

    def test_never_after_an_error_reply(self):
        for why, keys in {"MAIL": {"mail": "550 5.7.1 no"},
                          "RCPT": {"rcpt": "550 5.1.1 no"},
                          "DATA": {"data": "451 4.3.0 no"},
                          "end": {"end": "554 5.7.1 no"}}.items():
            with self.subTest(why):
                try:
                    self.farm(script(**keys))
                    with self.assertRaises(smtp.Refused):
                        self.send(mail.Message("bad"))
                    lib.wait_until(lambda: self.backends[0].open == 0,
                                   "it is let go")
                    self.backends[0].play = script()
                    self.several(1)
                    self.assertEqual(self.mails(), [["bad"], ["m0"]])
                finally:
                    self.doCleanups()

    def test_a_client_that_leaves_in_the_middle_leaves_nothing(self):
        self.farm()
        for leave in ("close", "reset"):
            client = smtp.Client(self.weir.port)
            client.hello()
            smtp.envelope(client, mail.Message("left"))
            getattr(client, leave)()
            self.settled()
        with smtp.Client(self.weir.port) as client:
            client.hello()
            smtp.envelope(client, mail.Message("left"))
            client.quit()
        self.settled()
        message = mail.Message("whole")
        self.send(message)
        self.assertEqual(self.backends[0].kept, [message.data])
        rcpts = 0
        for line in next(p.lines for p in self.backends[0].mails()
                         if p.whole or "DATA" in p.lines):
            if line.startswith(("MAIL", "RSET")):
                rcpts = 0
            rcpts += line.startswith("RCPT")
            if line == "DATA":
                self.assertEqual(rcpts, 1)

    def idle_ends(self, play, **more):
        """The kept connection ends as `play` says, once the second message
        is to go over it; nobody notices."""
        self.farm(play, **more)
        self.several(3)
        self.assertEqual(len(self.backends[0].kept), 3)
        self.assertEqual(self.weir.log("event=message", "code=4"), [])

    @staticmethod
    def once(end, after):
        """A server that takes one message on each connection; `end` then."""
        def play(peer):
            count = [0]

            def stored(_):
                count[0] += 1
                return "250 2.0.0 stored"

            def mail_again(_):
                return end if count[0] else "250 2.1.0 ok"
            if after == "mail":
                script(mail=mail_again, end=stored)(peer)
            else:
                script(end=[stored])(peer)
        return play

    def test_its_end_at_the_next_mail_is_hidden(self):
        for why, end in {
                "end of stream": backend.CLOSE, "reset": backend.RESET,
                "421 idle": "421 4.4.2 mx Error: timeout exceeded",
                "too many messages":
                    "421 too many messages in this connection",
                "452 of OpenSMTPD": "452 4.5.3 Too many messages sent",
                "nonsense": "250-"}.items():
            if why == "nonsense":
                end = b"what?\r\n"
            with self.subTest(why):
                try:
                    self.idle_ends(self.once(end, "mail"))
                finally:
                    self.doCleanups()

    def test_it_ends_while_it_is_idle(self):
        self.farm()
        self.several(1)
        for peer in self.backends[0].mails():
            peer.send("421 4.4.2 mx.test Error: timeout exceeded")
            peer.sock.shutdown(2)
        lib.wait_until(lambda: self.backends[0].open == 0, "it has ended")
        self.several(1, "n")
        self.assertEqual(self.mails(), [["m0"], ["n0"]])
        self.assertEqual(self.weir.row("b0")["state"], "up")

    def test_idle_ones_give_way_to_whoever_wants_a_slot(self):
        """Two workers, one slot: it is idle at one, and wanted at both."""
        self.farm(keys={"max_sessions": 1}, weir={"workers": 2},
                  farm={"reuse_idle": "1m"})
        crowd = smtp.Crowd(self.weir.port, [mail.Message(f"m{i}")
                                            for i in range(200)], 6, kept=1)
        crowd.start()
        self.good(crowd)
        self.assertEqual(self.backends[0].peak, 1)
        self.assertGreater(self.weir.info()["reused"], 0)

    def test_the_share_that_may_be_idle(self):
        gate = threading.Event()
        self.farm(script(end=backend.Wait(gate, "250 2.0.0 stored")),
                  keys={"max_sessions": 20},
                  farm={"reuse_share": "10%", "reuse_idle": "1m"})
        crowd = smtp.Crowd(self.weir.port, [mail.Message(f"m{i}")
                                            for i in range(12)], 12, kept=1)
        crowd.start()
        lib.wait_until(lambda: self.backends[0].open == 12, "all are there")
        gate.set()
        self.good(crowd)
        lib.wait_until(lambda: self.backends[0].open <= 2, "two may stay")
        self.assertEqual(self.backends[0].open, 2)

    def test_drain_closes_idle_ones(self):
        self.farm(farm={"reuse_idle": "5m"})
        self.several(2)
        self.assertEqual(self.backends[0].open, 1)
        self.weir.ctl("set", "backend", "b0", "drain")
        lib.wait_until(lambda: self.backends[0].open == 0, "it is let go")
        self.weir.ctl("set", "backend", "b0", "ready")
        self.several(1, "n")
        self.weir.stop()
        lib.wait_until(lambda: self.backends[0].open == 0, "it is let go")

    def test_the_field_is_in_front_of_the_message(self):
        self.farm(keys={"identity": "header"})
        for i, way in enumerate((smtp.send_plain, smtp.send_pipelined,
                                 smtp.send_bdat)):
            message = mail.Message(f"m{i}", 3000)
            self.send(message, way, source=f"127.0.0.{i + 5}",
                      name=f"client{i}.test")
            self.settled()
            kept = self.backends[0].kept[-1]
            self.assertTrue(kept.endswith(message.data))
            field = kept[:len(kept) - len(message.data)].decode()
            self.assertTrue(field.startswith("Received: "), field)
            self.assertEqual(field.count("Received:"), 1)
            match = FIELD.fullmatch(re.sub(r"\r\n[ \t]+", " ",
                                           field[len("Received: "):-2]))
            self.assertTrue(match, field)
            self.assertEqual(match.groups()[:4], (
                f"client{i}.test", f"127.0.0.{i + 5}", "mx.test", "ESMTP"))
            sessions = lib.wait_until(lambda i=i: [
                x for x in self.weir.log("event=session")
                if x["client"].startswith(f"127.0.0.{i + 5}")], "its line")
            self.assertTrue(match[5].startswith(sessions[0]["id"]),
                            (match[5], sessions[0]))
        self.assertEqual(self.connects(), 1)

    def test_a_client_cannot_forge_the_field(self):
        self.farm(keys={"identity": "header"})
        for helo in ("evil.test\tby other.test", "a(b)c.test", "x;y.test",
                     "[127.0.0.1])by", "a.test\x0b"):
            with smtp.Client(self.weir.port) as client:
                client.reply()
                code, _ = client.cmd("EHLO " + helo)
                if code != 250:
                    self.assertEqual(client.cmd("EHLO ok.test")[0], 250)
                smtp.send_plain(client, mail.Message("forged"))
                client.quit()
            field = self.backends[0].kept[-1].partition(b"X-Test-Id")[0]
            self.assertEqual(field.count(b"Received:"), 1, field)
            self.assertTrue(FIELD.match(re.sub(
                r"\r\n[ \t]+", " ", field.decode()[len("Received: "):])),
                field)

    def test_a_body_of_many_chunks_has_it_once(self):
        self.farm(keys={"identity": "header"})
        message = mail.Message("chunks", 50_000)
        self.send(message, lambda client, m: smtp.send_bdat(client, m, 700))
        kept = self.backends[0].kept[-1]
        self.assertTrue(kept.endswith(message.data))
        self.assertEqual(kept.count(b"Received:"), 1)

    def test_with_a_body_that_was_held_and_parked(self):
        self.farm(keys={"identity": "header"},
                  listener={"slot": "body", "body_wait": "50ms"})
        message = mail.Message("parked", 5000)
        with smtp.Client(self.weir.port) as client:
            client.hello()
            smtp.envelope(client, message)
            smtp.expect("DATA", client.cmd("DATA"), 354)
            lib.wait_until(lambda: self.weir.info()["parked"], "it is parked")
            client.send(smtp.stuffed(message.data) + b".\r\n")
            self.assertEqual(client.reply()[0], 250)
        kept = self.backends[0].kept[-1]
        self.assertTrue(kept.endswith(message.data))
        self.assertEqual(kept.count(b"Received:"), 1)


@lib.needs_root
class RealServers(Case):
    def behind(self, *servers, keys=None, **more):
        for server in servers:
            self.start(server)
        more.setdefault("farm", {"reuse_idle": "30s"})
        return self.weir_with([(s.name, s, dict({"max_sessions": 40},
                                                **(keys or {})))
                               for s in servers], **more)

    def all_three(self):
        return mta.Postfix(), mta.Exim(), mta.OpenSmtpd()

    def delivered(self, servers, messages, acked):
        for server in servers:
            server.settle()
        mail.compare(self, messages, acked, mail.tally(*servers))

    def crowd(self, prefix, count, way="pipelined", threads=8, **more):
        rand = random.Random(prefix)
        return smtp.Crowd(self.weir.port, [
            mail.Message(f"{prefix}-{i}", int(40_000 * rand.random() ** 5),
                         eightbit=i % 3 == 0) for i in range(count)],
            threads, way, kept=1, **more).start()

    def few_connections(self, identity):
        servers = self.all_three()
        self.behind(*servers, keys={"identity": identity})
        crowds = [self.crowd(way, 400, way, 4) for way in ("plain",
                                                           "pipelined")]
        for crowd in crowds:
            self.good(crowd)
        share = self.connects() / 800
        print(f"      {share:.3f} connections a message")
        self.assertLess(share, 0.25)
        self.delivered(servers, sum((c.messages for c in crowds), []),
                       sum((c.acked for c in crowds), []))
        return servers

    def test_one_message_sessions_over_few_connections(self):
        self.few_connections("none")

    def test_one_message_sessions_with_the_field(self):
        for server in self.few_connections("header"):
            for ident, fields in mail.received(server).items():
                self.assertEqual(len(fields), 2, (ident, fields))
                match = FIELD.match(fields[1])
                self.assertTrue(match, fields[1])
                self.assertEqual(match.groups()[:4], (
                    "client.test", "127.0.0.1", "mx.test", "ESMTP"))

    def test_the_field_tells_the_clients_apart(self):
        """Each with a name and an address of its own, with DATA and BDAT,
        to each server."""
        for server in self.all_three():
            with self.subTest(server.name):
                try:
                    self.tell_apart(server)
                finally:
                    self.doCleanups()

    def tell_apart(self, server):
        self.behind(server, keys={"identity": "header"})
        ways = [smtp.send_plain, smtp.send_pipelined]
        if server.bdat:
            ways += [lambda c, m: smtp.send_bdat(c, m, 500),
                     lambda c, m: smtp.send_bdat(c, m, 100_000, False)]
        sent = [mail.Message(f"from{i}", 200 + 300 * i) for i in range(24)]

        def clients(first):
            for i in range(first, len(sent), 4):
                self.send(sent[i], ways[i % len(ways)],
                          f"127.0.3.{i + 1}", f"host{i}.test")
        threads = [threading.Thread(target=clients, args=(i,))
                   for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(lib.PATIENCE)
        self.delivered([server], sent, [m.ident for m in sent])
        fields = mail.received(server)
        ids = set()
        for i, message in enumerate(sent):
            match = FIELD.match(fields[message.ident][1])
            self.assertTrue(match, fields[message.ident])
            self.assertEqual(match.groups()[:2],
                             (f"host{i}.test", f"127.0.3.{i + 1}"))
            ids.add(match[5])
        self.assertEqual(len(ids), len(sent), "ids are unique")
        self.assertLess(self.connects(), len(sent))

    def test_each_server_restarted_while_connections_are_idle(self):
        for server in self.all_three():
            with self.subTest(server.name):
                try:
                    self.behind(server)
                    sent = [mail.Message(f"m{i}") for i in range(6)]
                    for message in sent[:3]:
                        self.send(message)
                    server.kill()
                    server.start()
                    self.weir.up()
                    for message in sent[3:]:
                        self.send(message)
                    self.delivered([server], sent, [m.ident for m in sent])
                finally:
                    self.doCleanups()

    def test_each_server_killed_under_load(self):
        servers = self.all_three()
        self.behind(*servers, keys={"identity": "header"})
        threads = 8
        crowd = self.crowd("killed", 8000, threads=threads, pause=0.02)

        def flows(count, what):
            before = len(crowd.acked)
            lib.wait_until(lambda: len(crowd.acked) >= before + count, what)
        for server in servers:
            flows(100, "mail flows")
            server.kill()
            flows(100, f"mail flows without {server.name}")
            server.start()
            self.weir.up()
        flows(100, "mail flows")
        crowd.stop()
        crowd.join()
        self.delivered(servers, crowd.messages, crowd.acked)
        failed = crowd.refused + crowd.broken
        self.assertLessEqual(len(failed), threads * len(servers), failed)
        for _, stage, code, text in crowd.refused:
            self.assertIn(code, (421, 451), (stage, text))

    def test_a_server_that_ends_idle_connections(self):
        """Its time is up while clients come now and then: as often as not
        at the same moment."""
        for server in (mta.Postfix(timeout="1s"),
                       mta.Exim(receive_timeout="1s")):
            with self.subTest(server.name):
                try:
                    self.behind(server)
                    self.now_and_then(server)
                finally:
                    self.doCleanups()

    def now_and_then(self, server):
        rand = random.Random(server.name)
        crowd = self.crowd("idle", 60, threads=6,
                           pause=lambda: rand.uniform(0.9, 1.1))
        self.good(crowd)
        self.delivered([server], crowd.messages, crowd.acked)
        last, late = mail.Message("last"), mail.Message("late")
        self.send(last)
        lib.wait_until(lambda: slots.held(server.port) == [0],
                       "it has ended all that was idle", 30)
        self.send(late)
        self.assertEqual(self.weir.row(server.name)["state"], "up")

    def test_a_server_that_counts_the_messages_of_a_connection(self):
        """OpenSMTPD takes 100 of them, Exim here 7: nobody is to see that."""
        for server, count in ((mta.Exim(per_connection=7), 60),
                              (mta.OpenSmtpd(), 260)):
            with self.subTest(server.name):
                try:
                    self.behind(server, farm={"reuse_max": 100000,
                                              "reuse_idle": "30s"})
                    crowd = self.crowd("count", count, threads=2)
                    self.good(crowd)
                    self.delivered([server], crowd.messages, crowd.acked)
                finally:
                    self.doCleanups()
