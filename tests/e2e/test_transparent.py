"""identity = transparent: the backend sees the client's own address as the
source, on a router between two networks, with the rules that this needs."""

import backend
import lib
import mail
import net
import smtp
import weir

class Rules:
    """What weir(8), IDENTITY, tells an operator to set, on the machine of
    weir: the backend's answers to a client's address are for this machine.
    By where they come from, or by what waits for them."""

    def __init__(self, link="", port=0):
        self.by_mark = not link
        rule = (("fwmark", "0x77") if self.by_mark else
                ("iif", link, "ipproto", "tcp", "sport", str(port)))
        self.routing = [
            words for family, all_ in (("-4", "0.0.0.0/0"), ("-6", "::/0"))
            for words in (
                (family, "rule", "{}", *rule, "lookup", "100", "priority",
                 "100"),
                (family, "route", "{}", "local", all_, "dev", "lo", "table",
                 "100"))]

    def start(self):
        if self.by_mark:
            net.sh("nft", "table inet weir { chain back { "
                   "type filter hook prerouting priority mangle; "
                   "socket transparent 1 meta mark set 0x77; }; }")
        for words in self.routing:
            net.sh("ip", *(word.format("add") for word in words))

    def stop(self):
        for words in self.routing:
            net.sh("ip", *(word.format("del") for word in words))
        if self.by_mark:
            net.sh("nft", "delete table inet weir")


@lib.needs_root
class Transparent(lib.Case):
    """Clients on one side of us, the backend on the other: neither has a
    way to the other but through us."""

    def setUp(self):
        self.clients = self.start(net.Host())
        self.far = self.start(net.Host())
        for host, near4, near6 in (
                (self.clients, self.clients.near4, self.clients.near6),
                (self.far, self.far.near4, self.far.near6)):
            net.sh("ip", "-n", host.name, "route", "add", "default", "via",
                   near4)
            net.sh("ip", "-n", host.name, "-6", "route", "add", "default",
                   "via", near6)

    def server(self, address):
        server = backend.Backend(listen=self.far.listen(address),
                                 address=address)
        plain = server.play

        def play(peer):
            peer.source = peer.sock.getpeername()
            plain(peer)
        server.play = play
        return self.start(server)

    def client(self, source, to, port):
        """A client in its own namespace."""
        client = self.clients.inside(
            lambda: smtp.Client(port, to, source=source))
        self.addCleanup(client.close)
        return client

    def serve(self, server, near, **keys):
        port = lib.free_port()
        host = f"[{near}]" if ":" in near else near
        proxy = weir.Weir(
            [("far", server, dict({"identity": "transparent"}, **keys))],
            listen=[f"{host}:{port}"], farm={"linger": "0"},
            **self.sections)
        proxy.port = port
        return self.start(proxy)

    sections = {}

    def seen(self, source, near, server_address, by_mark=True):
        server = self.server(server_address)
        self.start(Rules() if by_mark
                   else Rules(self.far.link, server.port))
        proxy = self.serve(server, near).up()
        for number in range(3):
            client = self.client(source, near, proxy.port)
            client.hello()
            smtp.send_pipelined(client, mail.Message(f"m{number}", 50_000))
            client.quit()
        self.assertEqual(len(server.kept), 3)
        for peer in server.mails():
            self.assertEqual(peer.source[0], source)
        return proxy, server

    def test_the_backend_sees_the_client(self):
        proxy, server = self.seen(self.clients.v4, self.clients.near4,
                                  self.far.v4)
        # probes come from weir itself
        self.assertIn(self.far.near4,
                      {peer.source[0] for peer in server.peers})
        self.assertEqual(proxy.row("far")["probes_failed"], 0)

    def test_ipv6(self):
        self.seen(self.clients.v6, self.clients.near6, self.far.v6)

    def test_with_a_rule_for_what_comes_from_the_backends(self):
        self.seen(self.clients.v4, self.clients.near4, self.far.v4,
                  by_mark=False)

    def test_ipv6_with_a_rule_for_what_comes_from_the_backends(self):
        self.seen(self.clients.v6, self.clients.near6, self.far.v6,
                  by_mark=False)

    def test_several_addresses_at_once(self):
        for last in range(10, 20):
            net.sh("ip", "-n", self.clients.name, "addr", "add",
                   f"10.99.{self.clients.number}.{last}/24", "dev", "far0")
        self.start(Rules())
        server = self.server(self.far.v4)
        proxy = self.serve(server, self.clients.near4).up()
        clients = {}
        for last in range(10, 20):
            source = f"10.99.{self.clients.number}.{last}"
            client = self.client(source, self.clients.near4, proxy.port)
            client.hello(f"c{last}.client.test")
            smtp.envelope(client, mail.Message(f"m{last}"))
            clients[f"m{last}"] = (source, client)
        for peer in server.mails():
            line = next(x for x in peer.lines if x.startswith("MAIL"))
            ident = line[len("MAIL FROM:<"):].partition("@")[0]
            self.assertEqual(peer.source[0], clients[ident][0])
        for _, client in clients.values():
            smtp.expect("DATA", client.cmd("DATA"), 354)
            client.send(b"\r\n.\r\n")
            self.assertEqual(client.reply()[0], 250)
            client.quit()
        self.assertEqual(len(server.kept), 10)

    def test_without_the_rules_the_client_is_told_to_come_again(self):
        """Its mail waits; it does not go out in weir's own name."""
        server = self.server(self.far.v4)
        self.sections = {"timeouts": {"backend_connect": "300ms"},
                         "room": {"wait": "500ms"}}
        proxy = self.serve(server, self.clients.near4).up()
        client = self.client(self.clients.v4, self.clients.near4, proxy.port)
        client.hello()
        self.assertEqual(client.cmd("MAIL FROM:<a@sender.test>")[0], 451)
        client.quit()
        self.assertEqual(server.mails(), [])

    def test_as_another_user_than_root(self):
        """It keeps the one privilege that this takes, and no other."""
        self.sections = {"weir": {"user": "nobody"}}
        proxy, _ = self.seen(self.clients.v4, self.clients.near4,
                             self.far.v4)
        with open(f"/proc/{proxy.pid}/status", encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
        self.assertNotEqual(status["Uid"].split()[0], "0")
        self.assertEqual(int(status["CapEff"], 16), 1 << 12)  # NET_ADMIN

    def test_a_client_of_the_other_family_is_not_taken(self):
        """An IPv6 client has no address that an IPv4 server could see."""
        self.start(Rules())
        server = self.server(self.far.v4)
        self.sections = {"room": {"wait": "500ms"},
                         "timeouts": {"backend_connect": "300ms"}}
        proxy = self.serve(server, self.clients.near6).up()
        client = self.client(self.clients.v6, self.clients.near6,
                             proxy.port)
        client.hello()
        self.assertEqual(client.cmd("MAIL FROM:<a@sender.test>")[0], 451)
        self.assertEqual(server.mails(), [])
