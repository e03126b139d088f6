"""PROXY headers: real servers behind weir see the client itself, by the
header that weir writes for them."""

import os
import re

import lib
import mail
import mta
import smtp
import weir

V1, V2 = "proxy-v1", "proxy-v2"


def received(server):
    """ident -> the server's own Received field, of all that it stored."""
    out = {}
    for folder, _, files in os.walk(server.mail):
        if os.path.basename(folder) != "new":
            continue
        for name in files:
            path = os.path.join(folder, name)
            ident, _ = mail.read(server.name, path)
            with open(path, encoding="utf-8", errors="replace") as file:
                head = re.sub(r"\n[ \t]+", " ", file.read())
            out[ident] = re.search(r"(?m)^Received: .*$", head).group(0)
    return out


@lib.needs_root
class Out(lib.Case):
    """weir in front of servers that expect a header."""

    def farm(self, server, identity, address=None, **sections):
        self.start(server)
        return self.start(weir.Weir(
            [(server.name, address or server, {"identity": identity})],
            **sections)).up()

    def each_is_named(self, server, identity, address=None):
        """Five clients, three messages each: the second and third go over
        the connection of the first."""
        proxy = self.farm(server, identity, address)
        messages, sources = [], {}
        for number in range(1, 6):
            source = f"127.0.5.{number}"
            with smtp.Client(proxy.port, source=source) as client:
                client.hello(f"c{number}.client.test")
                for count in range(3):
                    message = mail.Message(f"m{number}-{count}")
                    smtp.send_pipelined(client, message)
                    messages.append(message)
                    sources[message.ident] = source
                client.quit()
        server.settle()
        mail.compare(self, messages, list(sources), mail.tally(server))
        fields = received(server)
        for ident, source in sources.items():
            self.assertIn(f"[{source}]", fields[ident])
            self.assertNotIn("[127.0.0.1]", fields[ident])
            self.assertIn(f"c{source[-1]}.client.test", fields[ident])
        row = proxy.row(server.name)
        self.assertEqual(row["tried"], 5, "one connection for each client")
        self.assertEqual(row["probes_failed"], 0)
        self.assertGreater(row["probes_ok"], 0)
        return proxy

    def test_postfix_v1(self):
        self.each_is_named(mta.Postfix(proxy=True), V1)

    def test_postfix_v2(self):
        self.each_is_named(mta.Postfix(proxy=True), V2)

    def test_postscreen_v1(self):
        server = mta.Postfix(proxy=True)
        self.each_is_named(server, V1, server.screen_address)

    def test_postscreen_v2(self):
        server = mta.Postfix(proxy=True)
        self.each_is_named(server, V2, server.screen_address)

    def test_exim_v1(self):
        self.each_is_named(mta.Exim(proxy_from="127.0.0.1"), V1)

    def test_exim_v2(self):
        self.each_is_named(mta.Exim(proxy_from="127.0.0.1"), V2)

    def test_opensmtpd_v2(self):
        self.each_is_named(mta.OpenSmtpd(proxy=True), V2)

    def relays(self, identity, mynetworks):
        proxy = self.farm(mta.Postfix(proxy=identity != "none",
                                      mynetworks=mynetworks), identity)
        with smtp.Client(proxy.port, source="127.0.5.9") as client:
            client.hello()
            smtp.expect("MAIL", client.cmd("MAIL FROM:<a@sender.test>"), 250)
            answer = client.cmd("RCPT TO:<victim@elsewhere.test>")
            client.quit()
        return answer[0]

    def test_a_server_that_trusts_weir_relays_for_strangers(self):
        """What the header is for."""
        self.assertEqual(self.relays("none", "127.0.0.1/32"), 250)

    def test_with_a_header_the_client_has_to_be_trusted(self):
        self.assertEqual(self.relays(V2, "127.0.0.1/32"), 554)

    def test_and_may_be(self):
        self.assertEqual(self.relays(V1, "127.0.5.9/32"), 250)

    def test_a_limit_on_one_client_is_no_limit_on_weir(self):
        proxy = self.farm(mta.Postfix(proxy=True, per_client=2), V2,
                          health={"interval": "1h"}, farm={"linger": "0"})

        def bound(source):
            client = smtp.Client(proxy.port, source=source)
            self.addCleanup(client.close)
            client.hello()
            return client, client.cmd("MAIL FROM:<a@sender.test>")
        held = [bound("127.0.5.1")[1][0] for _ in range(2)]
        self.assertEqual(held, [250, 250])
        third = bound("127.0.5.1")[1]
        self.assertIn(third[0], (421, 451), third)
        others = [bound(f"127.0.5.{n}")[1][0] for n in range(2, 12)]
        self.assertEqual(others, [250] * 10)
        row = proxy.row("postfix")
        self.assertEqual(row["class_cap"] + row["class_busy"]
                         + row["class_maybe_busy"], 0, row)
        self.assertGreater(row["class_policy"], 0)

    def test_no_header_where_one_is_expected_is_not_mail_flow(self):
        """A mistake of configuration shows as one: the probes fail."""
        server = self.start(mta.Postfix(proxy=True))
        proxy = self.start(weir.Weir([("postfix", server, {})]))
        lib.wait_until(lambda: proxy.row("postfix")["probes_failed"] > 0,
                       "a probe fails")
        self.assertNotEqual(proxy.row("postfix")["state"], "up")

    def test_reuse_is_refused_in_words(self):
        proxy = self.start(weir.Weir([("a", "127.0.0.1:9", {})]))
        said = proxy.ctl("add", "backend", "b", "address=127.0.0.1:10",
                         "identity=proxy-v1", "reuse=on", check=False)
        self.assertIn("such a connection is one client's", said)

    def test_a_reload_brings_the_header(self):
        server = mta.Exim(proxy_from="127.0.0.2")  # not yet weir's address
        proxy = self.farm(server, "none")
        proxy.backends = [("exim", server, {"identity": V2})]
        server.stop()
        server.settings["proxy_from"] = "127.0.0.1"
        self.start(server)
        with open(proxy.path, "w", encoding="utf-8") as file:
            file.write(proxy.text())
        proxy.ctl("reload")
        proxy.up()
        message = mail.Message("after")

        def delivered():
            try:
                with smtp.Client(proxy.port, source="127.0.5.7") as client:
                    client.hello()
                    smtp.send_plain(client, message)
                    return True
            except smtp.Refused:
                return False
        lib.wait_until(delivered, "mail goes through")
        server.settle()
        self.assertIn("[127.0.5.7]", received(server)["after"])
