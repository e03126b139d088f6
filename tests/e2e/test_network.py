"""What the network does (rows B1, B13, S12), to a second host in a network
namespace of its own."""

import backend
import lib
import mail
import net
import smtp
import weir

SHORT = {"backend_connect": "1s", "backend_greeting": "1s",
         "backend_helo": "1s", "backend_mail": "2s", "backend_rcpt": "2s",
         "backend_data": "2s", "backend_final": "2s", "backend_send": "2s"}


@lib.needs_root
class Network(lib.Case):
    def far(self, v6=False, listen=None, **more):
        """A far backend that weir prefers, and a near one."""
        self.host = self.start(net.Host())
        address = self.host.v6 if v6 else self.host.v4
        sock = self.host.listen(address)
        self.a = self.start(backend.Backend(address=address, listen=sock))
        self.b = self.start(backend.Backend())
        more.setdefault("health", {"interval": "1h"})
        self.weir = self.start(weir.Weir(
            [("a", self.a, {"weight": 1000}), ("b", self.b, {"weight": 1})],
            listen=listen, timeouts=dict(SHORT, **more.pop("timeouts", {})),
            farm=dict({"linger": "0"}, **more.pop("farm", {})),
            **more)).up()

    def client(self, address="127.0.0.1", port=None):
        client = smtp.Client(port or self.weir.port, address)
        self.addCleanup(client.close)
        client.hello()
        return client

    def goes_to_b(self):
        message = mail.Message("hidden")
        smtp.send_plain(self.client(), message)
        self.assertEqual(self.b.kept, [message.data])
        self.assertEqual(self.a.kept, [])

    def slots_in_use(self):
        return sum(int(row["sessions"]) for row in self.weir.rows())

    def all_over(self):
        lib.wait_until(lambda: self.slots_in_use() == 0,
                       "the slots are given back")

    def test_the_far_host_is_used(self):
        self.far()
        message = mail.Message("far")
        smtp.send_plain(self.client(), message)
        self.assertEqual(self.a.kept, [message.data])

    def test_syn_dropped(self):
        self.far()
        self.host.drop_syn(self.a.port)
        self.goes_to_b()

    def test_connect_answered_with_rst(self):
        self.far()
        self.host.rst(self.a.port)
        self.goes_to_b()

    def test_no_route(self):
        self.far()
        net.sh("ip", "route", "replace", "unreachable", self.host.v4)
        self.addCleanup(net.sh, "ip", "route", "del", "unreachable",
                        self.host.v4)
        self.goes_to_b()

    def begun(self, body=False):
        """A message under way to the far host."""
        client, message = self.client(), mail.Message("begun", 4 << 20)
        smtp.envelope(client, message)
        if body:
            smtp.expect("DATA", client.cmd("DATA"), 354)
            client.send(smtp.stuffed(message.data)[:100_000])
        return client, smtp.stuffed(message.data)[100_000:] + b".\r\n"

    def fails(self, work):
        try:
            answer = work()
            self.assertIn(answer[0], (421, 451))
        except smtp.Gone:
            pass
        self.assertEqual(self.a.kept, [])
        self.assertEqual(self.b.mails(), [], "nobody else got it")
        self.all_over()

    def test_silence_between_commands(self):
        self.far()
        client, _ = self.begun()
        self.host.blackhole(self.a.port)
        self.fails(lambda: client.cmd("RCPT TO:<v@local.test>"))

    def test_silence_in_the_body(self):
        self.far()
        client, rest = self.begun(body=True)
        self.host.blackhole(self.a.port)

        def work():
            client.send(rest)
            return client.reply()
        self.fails(work)

    def test_reset_between_commands(self):
        self.far()
        client, _ = self.begun()
        self.host.rst(self.a.port)
        self.fails(lambda: client.cmd("RCPT TO:<v@local.test>"))

    def test_reset_in_the_body(self):
        self.far()
        client, rest = self.begun(body=True)
        self.host.rst(self.a.port)

        def work():
            client.send(rest)
            return client.reply()
        self.fails(work)

    def test_connection_killed_while_idle_in_a_transaction(self):
        self.far()
        client, _ = self.begun()
        self.host.kill_connections(self.a.port)
        self.fails(lambda: client.cmd("RCPT TO:<v@local.test>"))

    def test_lost_packets_only_delay(self):
        # TCP's own patience with a lost packet may outlast the 20 s budget.
        self.far(timeouts={key: "3m" for key in SHORT},
                 farm={"budget": "5m"})
        self.host.lossy(self.a.port, 5)
        messages = [mail.Message(f"lossy-{i}", 30_000) for i in range(60)]
        crowd = smtp.Crowd(self.weir.port, messages, 10).start().join()
        self.assertEqual(crowd.refused + crowd.broken, [])
        self.assertEqual(len(self.a.kept) + len(self.b.kept), 60)
        self.assertEqual(
            sorted(mail.digest(x) for x in self.a.kept + self.b.kept),
            sorted(mail.digest(m.data) for m in messages))
        self.assertTrue(self.a.kept)

    def test_ipv6_and_a_small_mtu(self):
        port = lib.free_port("::1")
        self.far(v6=True, listen=[f"[::1]:{port}"])
        self.host.mtu(1280)
        for size in (0, 1300, 5 << 20):
            message = mail.Message(f"v6-{size}", size)
            client = self.client("::1", port)
            smtp.send_plain(client, message)
            self.assertEqual(mail.digest(self.a.kept[-1]),
                             mail.digest(message.data))
            client.quit()

    def test_probes_find_out_and_find_back(self):
        self.far(health={"interval": "300ms", "down_interval": "300ms",
                         "timeout": "1s", "fall": 2, "rise": 2,
                         "eject": "200ms", "eject_max": "400ms"})
        self.host.blackhole(self.a.port)
        lib.wait_until(lambda: not self.weir.is_up(self.weir.row("a")),
                       "a is found dead")
        self.goes_to_b()
        self.host.clear()
        lib.wait_until(lambda: self.weir.is_up(self.weir.row("a")),
                       "a is found alive")

        def to_a():
            smtp.send_plain(self.client(), mail.Message("again"))
            return self.a.kept
        lib.wait_until(to_a, "a is used again")
