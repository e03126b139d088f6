"""The waiting room: who finds every slot taken waits for one, in turn."""

import json
import signal
import threading

import backend
import lib
import mail
import smtp
import swarm
import weir


class Case(lib.Case):
    """A farm with few slots, which the test's own clients hold: a slot is
    taken from the reply to MAIL to that to the end of the message."""

    def farm(self, slots=1, count=1, room=None, **sections):
        self.backends = [self.start(backend.Backend()) for _ in range(count)]
        sections.setdefault("farm", {"linger": "0"})
        sections.setdefault("health", {"interval": "1h"})
        self.weir = self.start(weir.Weir(
            [(f"b{i}", b, {"max_sessions": slots})
             for i, b in enumerate(self.backends)],
            room=dict({"wait": "1m", "reserve": "0%"}, **(room or {})),
            **sections)).up()
        lib.wait_until(lambda: all(b.open == 0 for b in self.backends),
                       "the probes are over")

    def client(self, source=None):
        client = smtp.Client(self.weir.port, source=source)
        self.addCleanup(client.close)
        client.hello()
        return client

    def holder(self, name="holder"):
        client = self.client()
        message = mail.Message(name)
        smtp.envelope(client, message)
        client.message = message
        return client

    def waiter(self, name, source=None):
        """One more that waits for the reply to its MAIL."""
        client = self.client(source)
        client.message = mail.Message(name)
        before = self.waiting()
        client.send(f"MAIL FROM:<{name}@sender.test>\r\n".encode())
        lib.wait_until(lambda: self.waiting() > before, f"{name} waits")
        return client

    def waiting(self):
        return self.weir.room()["waiting"]

    def refused(self, name, source=None):
        client = self.client(source)
        code, text = client.cmd(f"MAIL FROM:<{name}@sender.test>")
        self.assertEqual((code, text[:5]), (451, "4.3.2"), name)
        return client

    def finish(self, client):
        """The rest of a message whose MAIL (or RCPT) was answered; then
        the slot is free."""
        if client.message.ident != "holder":
            smtp.expect("RCPT", client.cmd("RCPT TO:<u@local.test>"), 250)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(smtp.stuffed(client.message.data) + b".\r\n")
        smtp.expect("end", client.reply(), 250)

    def served(self, client):
        """Its slot has come: 250 to MAIL, and the message."""
        self.assertEqual(client.reply()[0], 250)
        self.finish(client)

    def who(self):
        """The senders that the backends read of, in order, of one slot."""
        return [line[len("MAIL FROM:<"):].partition("@")[0]
                for b in self.backends for p in b.peers for line in p.lines
                if line.startswith("MAIL")]

    def kept(self):
        return sorted(mail.digest(x) for b in self.backends for x in b.kept)

    def all_kept(self, *clients):
        self.assertEqual(self.kept(), sorted(
            mail.digest(c.message.data) for c in clients))

    def peaks_hold(self, slots):
        for b in self.backends:
            self.assertLessEqual(b.peak, slots)


class Turns(Case):
    def test_first_come_first_served_and_nobody_overtakes(self):
        self.farm()
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(5)]
        self.finish(holder)
        for client in crowd:
            self.served(client)
        self.assertEqual(self.who(), ["holder"] + [f"w{i}" for i in range(5)])
        self.all_kept(holder, *crowd)
        self.peaks_hold(1)
        room = self.weir.room()
        self.assertEqual((room["entered"], room["served"], room["waiting"]),
                         (5, 5, 0))
        self.assertEqual(self.weir.info()["waited"], 5)

    def test_a_source_with_many_has_one_turn_in_the_round(self):
        self.farm(room={"per_source": 10})
        holder = self.holder()
        loud = [self.waiter(f"loud{i}", "127.0.0.2") for i in range(6)]
        quiet = [self.waiter(f"quiet{i}", f"127.0.0.{i + 3}")
                 for i in range(2)]
        self.finish(holder)
        order = [loud[0], quiet[0], quiet[1]] + loud[1:]
        for client in order:
            self.served(client)
        self.assertEqual(self.who()[1:],
                         [c.message.ident for c in order])
        self.all_kept(holder, *order)

    def test_whoever_leaves_is_passed_over(self):
        self.farm()
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(4)]
        crowd[0].close()
        crowd[2].reset()
        lib.wait_until(lambda: self.waiting() == 2, "two have left")
        self.finish(holder)
        self.served(crowd[1])
        self.served(crowd[3])
        self.assertEqual(self.weir.room()["left"], 2)
        self.assertEqual(self.who(), ["holder", "w1", "w3"])

    def test_pipelined_commands_wait_with_their_session(self):
        self.farm()
        holder = self.holder()
        client = self.client()
        message = mail.Message("piped")
        client.send(b"MAIL FROM:<piped@sender.test>\r\n"
                    b"RCPT TO:<u@local.test>\r\nDATA\r\n")
        lib.wait_until(self.waiting, "it waits")
        self.finish(holder)
        self.assertEqual([client.reply()[0] for _ in range(3)],
                         [250, 250, 354])
        client.send(smtp.stuffed(message.data) + b".\r\n")
        self.assertEqual(client.reply()[0], 250)

    def test_waiters_of_every_worker_share_the_slots(self):
        self.farm(slots=2, weir={"workers": 4})
        holders = [self.holder() for _ in range(2)]
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i % 8 + 2}")
                 for i in range(24)]
        for holder in holders:
            self.finish(holder)
        threads = [threading.Thread(target=self.served, args=(client,))
                   for client in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(lib.PATIENCE)
        self.all_kept(*holders, *crowd)
        self.peaks_hold(2)

    def test_a_crowd_of_three_times_the_slots_is_served(self):
        self.farm(slots=4, count=3)
        crowd = smtp.Crowd(
            self.weir.port,
            [mail.Message(f"crowd{i}", 2000) for i in range(1500)], 36,
            kept=2, sources=[f"127.0.2.{i}" for i in range(1, 10)])
        crowd.start().join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(self.kept(), sorted(
            mail.digest(m.data) for m in crowd.messages))
        self.peaks_hold(4)
        self.assertGreater(self.weir.info()["waited"], 100)


class Bounds(Case):
    def test_per_source(self):
        self.farm(room={"per_source": 2})
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", "127.0.0.2") for i in range(2)]
        third = self.refused("third", "127.0.0.2")
        crowd.append(self.waiter("other", "127.0.0.3"))
        self.assertEqual(self.weir.room()["refused_source"], 1)
        self.finish(holder)
        self.served(crowd[0])
        self.served(crowd[2])
        self.served(crowd[1])
        # who was refused may ask again in the same session
        third.message = mail.Message("third")
        third.send(b"MAIL FROM:<third@sender.test>\r\n")
        self.served(third)

    def test_places_in_all(self):
        self.farm(room={"size": 3, "saturated_after": "1h"})
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(3)]
        self.refused("fourth", "127.0.0.9")
        self.assertEqual(self.weir.room()["refused_full"], 1)
        self.finish(holder)
        for client in crowd:
            self.served(client)

    def test_no_room_at_all(self):
        self.farm(room={"size": 0})
        holder = self.holder()
        client = self.refused("nobody-waits")
        self.finish(holder)
        lib.wait_until(lambda: client.cmd("MAIL FROM:<a@b.test>")[0] == 250,
                       "a slot is free")

    def test_late(self):
        self.farm(room={"wait": "500ms", "high": "100%",
                        "saturated_after": "1h"})
        holder = self.holder()
        client = self.refused("late")
        lib.wait_until(lambda: self.weir.room()["left"] == 1, "it has left")
        self.assertEqual(self.weir.info()["unavailable"], 1)
        self.finish(holder)
        self.assertEqual(client.cmd("MAIL FROM:<again@sender.test>")[0], 250)
        self.assertEqual(client.cmd("RSET")[0], 250)
        self.assertEqual(self.who(), ["holder", "again"])


class Saturated(Case):
    SIZE = 10

    def full(self, **more):
        self.farm(room={"size": self.SIZE, "saturated_after": "500ms",
                        "high": "90%", "low": "50%"}, **more)
        self.good = self.holder()
        self.finish(self.good)  # 127.0.0.1 is a source known as good
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}")
                 for i in range(self.SIZE)]
        lib.wait_until(lambda: self.weir.room()["saturated"] is True,
                       "the room is saturated")
        return holder, crowd

    def greeting(self, source):
        with smtp.Client(self.weir.port, source=source) as client:
            code, text = client.reply()
            if code == 421:
                self.assertEqual(client.rest(), b"")
            return code, text[:5]

    def test_newcomers_are_turned_away_at_the_greeting(self):
        holder, crowd = self.full(admission={"allow": "127.0.5.0/24"})
        self.assertEqual(self.greeting("127.0.4.1"), (421, "4.3.2"))
        self.assertEqual(self.greeting("127.0.5.1")[0], 220, "allow-listed")
        self.assertEqual(self.greeting("127.0.0.1")[0], 220, "known as good")
        self.assertEqual(self.weir.info()["closed_saturated"], 1)
        self.assertEqual(self.weir.info()["saturated"], 1)
        lib.wait_until(lambda: self.weir.log("event=session",
                                             "close=saturated"),
                       "the session's line says so")
        self.assertEqual(len(self.weir.log("event=room")), 1,
                         self.weir.log("event=room"))
        # those who were here are served, and then all is as before
        self.finish(holder)
        for client in crowd:
            self.served(client)
        lib.wait_until(lambda: self.greeting("127.0.4.1")[0] == 220,
                       "newcomers are greeted again")
        room = self.weir.room()
        self.assertEqual((room["saturated"], room["saturations"],
                          room["served"]), (False, 1, self.SIZE))
        lib.wait_until(lambda: len(self.weir.log("event=room")) == 2,
                       "its end is logged")

    def test_it_does_not_flap_between_the_marks(self):
        holder, crowd = self.full()
        self.finish(holder)
        for client in crowd[:3]:  # then six wait: above the low mark
            self.served(client)
        self.assertTrue(self.weir.room()["saturated"])
        for client in crowd[3:]:
            self.served(client)
        lib.wait_until(lambda: not self.weir.room()["saturated"],
                       "it is over")
        self.assertEqual(self.weir.room()["saturations"], 1)

    def test_the_last_places_are_for_good_sources(self):
        self.farm(room={"size": self.SIZE, "reserve": "20%", "high": "100%",
                        "saturated_after": "1h"},
                  admission={"allow": "127.0.5.0/24"})
        first = self.holder()
        self.finish(first)
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(8)]
        self.refused("unknown", "127.0.4.1")
        crowd.append(self.waiter("allowed", "127.0.5.1"))
        crowd.append(self.waiter("known", "127.0.0.1"))
        self.finish(holder)
        for client in crowd:
            self.served(client)


class Changes(Case):
    """What the operator does while sessions wait."""

    def reload(self, text):
        with open(self.weir.path, "w", encoding="utf-8") as file:
            file.write(text)
        before = len(self.weir.log("event=reload", "result="))
        self.weir.child.send_signal(signal.SIGHUP)
        lib.wait_until(lambda: len(self.weir.log(
            "event=reload", "result=")) > before, "it says what came of it")

    def test_a_reload_brings_slots(self):
        self.farm()
        self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(3)]
        self.reload(self.weir.text().replace("max_sessions = 1\n",
                                             "max_sessions = 3\n"))
        for client in crowd:
            self.served(client)
        self.all_kept(*crowd)
        self.peaks_hold(3)

    def test_a_reload_brings_a_backend(self):
        self.farm()
        self.holder()
        client = self.waiter("w")
        other = self.start(backend.Backend())
        self.reload(self.weir.text()
                    + f"\n[backend new]\naddress = {other.address}\n")
        self.served(client)
        self.assertEqual(other.kept, [client.message.data])

    def test_a_reload_with_a_smaller_room_turns_nobody_out(self):
        self.farm(room={"size": 10})
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(4)]
        self.reload(self.weir.text().replace("size = 10\n", "size = 2\n"))
        self.assertEqual(self.waiting(), 4)
        self.refused("fifth", "127.0.0.9")
        self.finish(holder)
        for client in crowd:
            self.served(client)

    def test_the_only_backend_is_taken_out_of_service_and_comes_back(self):
        self.farm()
        holder = self.holder()
        crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}") for i in range(2)]
        self.weir.ctl("set", "backend", "b0", "drain")
        self.finish(holder)
        self.weir.ctl("set", "backend", "b0", "ready")
        for client in crowd:
            self.served(client)
        self.all_kept(holder, *crowd)

    def sigterm(self, **room):
        self.farm(slots=2, room=room)
        self.holders = [self.holder() for _ in range(2)]
        self.crowd = [self.waiter(f"w{i}", f"127.0.0.{i + 2}")
                      for i in range(6)]
        self.weir.child.send_signal(signal.SIGTERM)
        lib.wait_until(lambda: not lib.connects(self.weir.port),
                       "it listens no more")

    def gone(self, client):
        code, text = client.reply()
        self.assertEqual((code, text[:5]), (421, "4.3.2"))
        self.assertEqual(client.rest(), b"")

    def test_sigterm_and_all_are_served(self):
        self.sigterm()
        for client in self.holders:
            self.finish(client)
            self.gone(client)
        for client in self.crowd:
            self.served(client)
            self.gone(client)
        self.assertEqual(self.weir.child.wait(lib.PATIENCE), 0)
        self.all_kept(*self.holders, *self.crowd)

    def test_sigterm_and_their_time_is_up(self):
        self.sigterm(wait="1s", saturated_after="1h")
        for client in self.crowd:
            code, text = client.reply()
            self.assertEqual((code, text[:5]), (451, "4.3.2"))
            self.gone(client)
        for client in self.holders:
            self.finish(client)
        self.assertEqual(self.weir.child.wait(lib.PATIENCE), 0)
        self.all_kept(*self.holders)

    def test_kill_while_it_waits(self):
        self.farm()
        holder = self.holder()
        first = self.waiter("first", "127.0.0.2")
        second = self.waiter("second", "127.0.0.3")
        rows = json.loads(self.weir.ctl("show", "sessions", "json"))
        killed = [row["id"] for row in rows["sessions"]
                  if row["client"].startswith("127.0.0.2")]
        self.weir.ctl("kill", "session", killed[0])
        first.rest()
        lib.wait_until(lambda: self.waiting() == 1, "one waits")
        self.finish(holder)
        self.served(second)


class Many(Case):
    def test_a_room_full_of_a_thousand(self):
        self.farm(slots=5, room={"size": 1000, "high": "100%",
                                 "saturated_after": "1h"},
                  weir={"workers": 2})
        holders = [self.holder() for _ in range(5)]
        crowd = self.start(swarm.Swarm(self.weir.port, swarm.sources(200), 5))
        crowd.pump(lambda: crowd.count(lambda x: x.lines) == 1000,
                   "all are greeted")
        crowd.say(b"EHLO client.test\r\n", lambda x: True)
        crowd.pump(lambda: crowd.count(
            lambda x: b"\r\n250 " in x.said) == 1000, "EHLO is answered")
        for one in crowd.ones.values():
            one.said = b""
        crowd.say(b"MAIL FROM:<a@sender.test>\r\n", lambda x: True)
        lib.wait_until(lambda: self.waiting() == 1000, "a thousand wait")
        # each served one leaves at once, so that the next has its slot
        for holder in holders:
            self.finish(holder)
        done = set()

        def all_served():
            for one in crowd.ones.values():
                if one.lines and one not in done:
                    done.add(one)
                    one.sock.sendall(b"QUIT\r\n")
            return len(done) == 1000
        crowd.pump(all_served, "all are served")
        self.assertEqual(crowd.count(
            lambda x: not x.said.startswith(b"250 ")), 0)
        self.peaks_hold(5)
