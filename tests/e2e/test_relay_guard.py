"""A backend that trusts weir's address relays for the whole world: weir asks
it, says so, and keeps strangers away from it."""

import json

import backend
import lib
import mail
import mta
import smtp
import weir

STRANGER, FRIEND = "127.0.3.7", "127.0.9.1"
OPEN = {"mynetworks": "127.0.0.0/8"}
CHECK = "relay-check.invalid"


class Case(lib.Case):
    def serve(self, *backends, guard="enforce", **farm):
        self.weir = self.start(weir.Weir(
            [(name, server, keys) for name, server, keys in backends],
            farm=dict({"relay_guard": guard, "linger": "0",
                       "relay_from": "127.0.9.0/24"}, **farm),
            room={"wait": "300ms"}, health={"interval": "200ms"})).up()
        return self.weir

    def mail_from(self, source):
        """The first reply that is not good, else that to MAIL."""
        with smtp.Client(self.weir.port, source=source) as client:
            code, text = client.reply()
            if code == 220:
                client.ehlo()
                code, text = client.cmd("MAIL FROM:<a@sender.test>")
            if code == 250:
                client.cmd("RSET")
                client.quit()
        return code, text

    def eventually(self, source, code):
        """Once the guard knows what it wants to know."""
        lib.wait_until(lambda: self.mail_from(source)[0] == code,
                       f"{source} reads {code}", step=0.1)

    def verdict(self, name):
        """What the guard knows of it, once it knows."""
        def row():
            rows = json.loads(self.weir.ctl("show", "health", "json"))
            return next(r for r in rows["health"] if r["name"] == name)
        return lib.wait_until(lambda: row()["relay"],
                              f"{name} is asked", patience=10)

    def is_said(self, name):
        """Wherever an operator looks."""
        lib.wait_until(lambda: self.weir.log("event=relay",
                                             "backend=" + name),
                       "the log says so")
        self.assertRegex(self.weir.ctl("status"), f"{name}.* relay")
        row = next(line for line in self.weir.ctl("show", "health")
                   .splitlines() if line.startswith(name))
        self.assertIn(" open ", row)


class Scripted(Case):
    def test_the_question(self):
        """For nobody, to nobody, once, and then forgotten."""
        server = self.start(backend.Backend(backend.script(
            rcpt=lambda peer: "554 5.7.1 relaying denied" if CHECK in
            peer.lines[-1] else "250 2.1.5 ok")))
        self.serve(("a", server, {}))
        self.eventually(STRANGER, 250)
        asked = [peer for peer in server.peers
                 if any(CHECK in line for line in peer.lines)]
        self.assertEqual(len(asked), 1)
        lines = asked[0].lines
        at = next(i for i, line in enumerate(lines) if CHECK in line)
        self.assertTrue(lines[at - 1].startswith("MAIL FROM:<"), lines)
        self.assertTrue(lines[at].startswith("RCPT TO:<"), lines)
        self.assertNotIn("DATA", lines)
        self.assertIn("RSET", lines[at + 1:])
        before = len(server.peers)
        lib.wait_until(lambda: len(server.peers) > before + 3,
                       "there are further probes")
        again = [peer for peer in server.peers[before:]
                 if any(CHECK in line for line in peer.lines)]
        self.assertEqual(again, [], "only hourly")

    def test_replies(self):
        """2xx is open, 4xx and 5xx are closed."""
        for reply, open_ in (("250 2.1.5 ok", True), ("251 2.1.5 yes", True),
                             ("550 5.7.1 no", False),
                             ("450 4.7.1 not now", False)):
            with self.subTest(reply=reply):
                server = self.start(backend.Backend(backend.script(
                    rcpt=reply)))
                self.serve(("a", server, {}))
                self.eventually(FRIEND, 250)
                if open_:
                    lib.wait_until(
                        lambda: "relay" in self.weir.ctl("status"),
                        "the status says so")
                    self.assertIn(self.mail_from(STRANGER)[0], (421, 451))
                else:
                    self.eventually(STRANGER, 250)
                self.weir.stop()

    def test_no_answer_is_no_leave(self):
        """Asked again at the next probe, and strangers wait for it."""
        refuse = [False]

        def rcpt(peer):
            if CHECK not in peer.lines[-1]:
                return "250 2.1.5 ok"
            return "554 5.7.1 no" if refuse[0] else backend.CLOSE
        server = self.start(backend.Backend(backend.script(rcpt=rcpt)))
        self.serve(("a", server, {}))
        self.assertIn(self.mail_from(STRANGER)[0], (421, 451))
        self.assertEqual(self.mail_from(FRIEND)[0], 250)
        refuse[0] = True
        self.eventually(STRANGER, 250)

    def test_who_knows_the_client_is_not_asked(self):
        base = backend.script()

        def play(peer):
            peer.line()
            base(peer)
        server = self.start(backend.Backend(play))
        self.serve(("a", server, {"identity": "proxy-v1"}))
        self.eventually(STRANGER, 250)
        self.assertFalse([x for peer in server.peers for x in peer.lines
                          if CHECK in x])

    def test_off_asks_nothing(self):
        server = self.start(backend.Backend())
        self.serve(("a", server, {}), guard="off")
        self.eventually(STRANGER, 250)
        self.assertFalse([x for peer in server.peers for x in peer.lines
                          if CHECK in x])

    def test_a_backend_that_an_operator_adds_is_asked_too(self):
        closed = self.start(backend.Backend(backend.script(rcpt="550 no")))
        late = self.start(backend.Backend())
        self.serve(("closed", closed, {}))
        self.eventually(STRANGER, 250)
        self.weir.ctl("add", "backend", "late", f"address={late.address}",
                      "max_sessions=100", "weight=1000")
        self.weir.up(2)
        lib.wait_until(lambda: any(CHECK in line for peer in late.peers
                                   for line in peer.lines), "it is asked")
        for _ in range(10):
            self.assertEqual(self.mail_from(STRANGER)[0], 250)
        self.assertEqual(
            [peer.lines for peer in late.mails()
             if not any(CHECK in line for line in peer.lines)], [])


@lib.needs_root
class Postfix(Case):
    def test_an_open_one_gets_no_strangers(self):
        server = self.start(mta.Postfix(**OPEN))
        self.serve(("postfix", server, {}))
        self.assertEqual(self.verdict("postfix"), "open")
        code, text = self.mail_from(STRANGER)
        self.assertIn(code, (421, 451), text)
        self.assertEqual(self.mail_from(FRIEND)[0], 250)
        self.is_said("postfix")
        with smtp.Client(self.weir.port, source=FRIEND) as client:
            client.hello()
            smtp.send_plain(client, mail.Message("friend"))
            client.quit()
        server.settle()
        self.assertEqual(set(mail.tally(server)), {"friend"})

    def test_once_it_is_mended_it_is_asked_again(self):
        server = self.start(mta.Postfix(**OPEN))
        self.serve(("postfix", server, {}))
        self.assertEqual(self.verdict("postfix"), "open")
        server.stop()
        server.settings.clear()
        server.start()
        self.weir.ctl("set", "backend", "postfix", "ready")
        self.eventually(STRANGER, 250)
        self.assertEqual(self.verdict("postfix"), "closed")

    def test_a_header_in_the_message_does_not_help(self):
        server = self.start(mta.Postfix(**OPEN))
        self.serve(("postfix", server, {"identity": "header"}))
        self.assertEqual(self.verdict("postfix"), "open")
        self.assertIn(self.mail_from(STRANGER)[0], (421, 451))

    def test_warn_says_it_and_lets_them_in(self):
        server = self.start(mta.Postfix(**OPEN))
        self.serve(("postfix", server, {}), guard="warn")
        self.assertEqual(self.verdict("postfix"), "open")
        lib.wait_until(lambda: "relay" in self.weir.ctl("status"),
                       "the status says so")
        self.assertEqual(self.mail_from(STRANGER)[0], 250)
        self.is_said("postfix")

    def test_a_closed_one_serves_everybody(self):
        server = self.start(mta.Postfix())
        self.serve(("postfix", server, {}))
        self.eventually(STRANGER, 250)
        self.assertEqual(self.mail_from(FRIEND)[0], 250)
        self.assertNotIn("relay", self.weir.ctl("status").lower())
        with smtp.Client(self.weir.port, source=STRANGER) as client:
            client.hello()
            client.cmd("MAIL FROM:<a@sender.test>")
            self.assertEqual(client.cmd("RCPT TO:<v@elsewhere.test>")[0],
                             554)

    def test_strangers_go_to_the_closed_one(self):
        server = self.start(mta.Postfix(**OPEN))
        closed = self.start(mta.Exim())
        self.serve(("postfix", server, {"weight": 1000}),
                   ("exim", closed, {"weight": 1}))
        self.assertEqual([self.verdict("postfix"), self.verdict("exim")],
                         ["open", "closed"])
        sent = [mail.Message(f"m{number}") for number in range(8)]
        for message in sent:
            with smtp.Client(self.weir.port, source=STRANGER) as client:
                client.hello()
                smtp.send_plain(client, message)
                client.quit()
        closed.settle()
        self.assertEqual(len(mail.tally(closed)), 8)
        self.assertEqual(mail.tally(server), {})
