"""PROXY headers: real servers behind weir see the client itself, by the
header that weir writes for them; and weir sees it behind HAProxy."""

import os
import shutil
import socket
import ssl
import subprocess
import unittest

import backend
import lib
import mail
import mta
import smtp
import weir
import world

V1, V2 = "proxy-v1", "proxy-v2"


class Reload(lib.Case):
    def test_a_reload_brings_the_header(self):
        """And no connection of before goes on without one."""
        server = self.start(backend.Backend())
        proxy = self.start(weir.Weir(
            [("a", server, {})], health={"interval": "1h"},
            farm={"linger": "60s"})).up()
        client = smtp.Client(proxy.port, source="127.0.5.7")
        self.addCleanup(client.close)
        client.hello()
        smtp.send_plain(client, mail.Message("m0"))
        smtp.send_plain(client, mail.Message("m1"))
        self.assertEqual(len(server.mails()), 1, "the connection is kept")

        plain = server.play

        def headed(peer):
            peer.line()
            plain(peer)
        server.play = headed
        proxy.backends = [("a", server, {"identity": V1})]
        with open(proxy.path, "w", encoding="utf-8") as file:
            file.write(proxy.text())
        proxy.ctl("reload")
        lib.wait_until(lambda: proxy.log("event=reload", "result="),
                       "it is reloaded")
        smtp.send_plain(client, mail.Message("m2"))
        smtp.send_plain(client, mail.Message("m3"))
        _, after = server.mails()
        port = client.sock.getsockname()[1]
        self.assertEqual(
            after.lines[0],
            f"PROXY TCP4 127.0.5.7 127.0.0.1 {port} {proxy.port}")
        client.quit()


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
        fields = {ident: found[0] for ident, found in
                  mail.received(server).items()}
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


class HAProxy:
    """HAProxy in front of weir, to which it comes from 127.0.6.1."""

    address = "127.0.6.1"

    def __init__(self, to, server="send-proxy-v2", bind=""):
        self.dir = os.path.join(world.work(), f"haproxy-{next(weir.COUNT)}")
        os.makedirs(self.dir)
        self.port = lib.free_port()
        self.text = f"""
            defaults
              mode tcp
              timeout connect 10s
              timeout client 60s
              timeout server 60s
              unique-id-format %{{+X}}o%ci-%cp
            listen front
              bind 127.0.0.1:{self.port} {bind}
              server weir 127.0.0.1:{to} source {self.address} {server}
            """
        self.child = None

    def start(self):
        path = os.path.join(self.dir, "haproxy.cfg")
        with open(path, "w", encoding="ascii") as file:
            file.write(self.text + "\n")
        with open(path + ".out", "wb") as output:
            self.child = subprocess.Popen(
                ["haproxy", "-db", "-f", path], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output)
        lib.wait_until(lambda: lib.connects(self.port) or self.ended(),
                       "HAProxy listens")

    def ended(self):
        if self.child.poll() is None:
            return False
        with open(os.path.join(self.dir, "haproxy.cfg.out"),
                  encoding="utf-8", errors="replace") as output:
            raise AssertionError("HAProxy ended: " + output.read())

    def stop(self):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class In(lib.Case):
    """weir behind a proxy."""

    def weir_behind(self, thing=None, keys=None, listener=None, **sections):
        self.backend = thing or self.start(backend.Backend())
        return self.start(weir.Weir(
            [("a", self.backend, keys or {})],
            listener=dict({"proxy_from": HAProxy.address}, **(listener or {})),
            **sections)).up()

    def sessions(self, proxy, *words, count=1):
        return lib.wait_until(
            lambda: len(lines := proxy.log("event=session", *words)) >= count
            and lines, f"the log has {words}")

    def closes(self, proxy, client, octets, say=b"421 4.3.5"):
        """What a peer from HAProxy's address reads, and the log line."""
        client.send(octets)
        rest = client.rest()
        client.close()
        self.assertEqual(rest[:len(say)], say, rest)
        self.assertEqual(rest.count(b"\r\n"), 1, rest)
        return self.sessions(proxy, "close=proxy")[-1]


@unittest.skipUnless(shutil.which("haproxy"), "needs haproxy")
class BehindHAProxy(In):
    def named(self, server, bind="", wrap=lambda client: None, **more):
        proxy = self.weir_behind(**more)
        front = self.start(HAProxy(proxy.port, server, bind))
        for number in range(1, 4):
            source = f"127.0.5.{number}"
            with smtp.Client(front.port, source=source) as client:
                port = client.sock.getsockname()[1]
                wrap(client)
                client.hello()
                smtp.send_plain(client, mail.Message(f"m{number}"))
                client.quit()
            line = self.sessions(proxy, f"client={source}:{port} ")[0]
            self.assertEqual(line["close"], "quit")
            self.assertEqual(line["messages"], "1")
            self.assertTrue(line["via"].startswith(HAProxy.address + ":"))
        return proxy, line, f"{source}-{port}"

    def test_v1(self):
        self.named("send-proxy")

    def test_v2(self):
        self.named("send-proxy-v2")

    def test_v2_with_a_unique_id_and_a_checksum(self):
        _, line, _ = self.named(
            "send-proxy-v2 proxy-v2-options crc32c,unique-id")
        self.assertGreater(len(line["via_id"]), 3)

    def test_v2_over_tls(self):
        pem = os.path.join(world.work(), "front.pem")
        done = self.command(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes",
            "-subj", "/CN=mx.test", "-days", "2", "-keyout", pem, "-out",
            pem + ".crt")
        self.assertEqual(done.returncode, 0, done.stdout)
        with open(pem, "a", encoding="ascii") as file:
            with open(pem + ".crt", encoding="ascii") as more:
                file.write(more.read())
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def wrap(client):
            client.sock = context.wrap_socket(client.sock)
        _, line, _ = self.named(
            "send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-sig,cert-key",
            f"ssl crt {pem}", wrap)
        self.assertEqual(line["via_tls"], "TLSv1.3")

    def test_health_checks_speak_for_nobody(self):
        proxy = self.weir_behind()
        self.start(HAProxy(proxy.port, "send-proxy-v2 check inter 200ms"))
        line = self.sessions(proxy, "client=" + HAProxy.address, count=3)[-1]
        self.assertNotIn("via", line)
        self.assertNotEqual(line["close"], "proxy")

    def test_limits_are_the_clients_and_not_the_proxys(self):
        proxy = self.weir_behind(admission={"max_per_source": 2})
        front = self.start(HAProxy(proxy.port))
        said = []
        for number in [1, 2, 3, 4, 5] * 3:
            client = smtp.Client(front.port, source=f"127.0.5.{number}")
            self.addCleanup(client.close)
            said.append(client.reply()[0])
        self.assertEqual(said, [220] * 10 + [421] * 5)
        for line in self.sessions(proxy, "close=source_limit", count=5):
            self.assertTrue(line["client"].startswith("127.0.5."))
        self.assertIn("127.0.5.3", proxy.ctl("show", "sources"))

    def test_a_deny_list_is_for_who_is_named(self):
        proxy = self.weir_behind(
            admission={"deny": ["127.0.5.9", HAProxy.address]})
        front = self.start(HAProxy(proxy.port, "send-proxy"))
        with smtp.Client(front.port, source="127.0.5.9") as client:
            self.assertEqual(client.reply()[0], 554)
        with smtp.Client(front.port, source="127.0.5.8") as client:
            self.assertEqual(client.reply()[0], 220)

    @lib.needs_root
    def test_the_client_is_passed_on_to_the_server(self):
        for server, identity in ((mta.Postfix(proxy=True), V2),
                                 (mta.Exim(proxy_from="127.0.0.1"), V1)):
            with self.subTest(server=server.name):
                self.start(server)
                proxy = self.weir_behind(server, {"identity": identity})
                front = self.start(HAProxy(proxy.port, "send-proxy-v2"))
                with smtp.Client(front.port, source="127.0.5.6") as client:
                    client.hello()
                    smtp.send_plain(client, mail.Message("through"))
                    client.quit()
                server.settle()
                self.assertIn("[127.0.5.6]",
                              mail.received(server)["through"][0])


class Headers(In):
    def client(self, proxy, source=HAProxy.address):
        client = smtp.Client(proxy.port, source=source)
        self.addCleanup(client.close)
        return client

    def test_a_stranger_cannot_name_anybody(self):
        proxy = self.weir_behind()
        for octets in (b"PROXY TCP4 127.0.5.1 127.0.0.1 5 25\r\n",
                       b"PROXY UNKNOWN\r\n"):
            client = self.client(proxy, "127.0.6.2")
            self.assertEqual(client.reply()[0], 220)
            client.send(octets)
            self.assertIn(b"500 5.5.2", client.rest())
        line = self.sessions(proxy, "close=foreign", count=2)[-1]
        self.assertTrue(line["client"].startswith("127.0.6.2:"), line)

    def test_a_stranger_is_served_without_a_header(self):
        proxy = self.weir_behind()
        client = self.client(proxy, "127.0.6.2")
        client.hello()
        smtp.send_plain(client, mail.Message("direct"))

    def test_octet_by_octet(self):
        proxy = self.weir_behind()
        client = self.client(proxy)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n":
            client.send(bytes([octet]))
        client.hello()
        client.quit()
        self.sessions(proxy, "client=[2001:db8::7]:4711 ", "close=quit")

    def test_bad_ones(self):
        proxy = self.weir_behind()
        for octets in (b"EHLO client.test\r\n", b"PROXY TCP4 \r\n",
                       b"\r\n\r\n\0\r\nQUIT\n\x22", b"GET / HTTP/1.1\r\n"):
            line = self.closes(proxy, self.client(proxy), octets)
            self.assertTrue(line["client"].startswith(HAProxy.address), line)
            self.assertNotIn("via", line)

    def test_a_late_one(self):
        proxy = self.weir_behind(timeouts={"proxy": "300ms"})
        self.closes(proxy, self.client(proxy), b"")
        self.closes(proxy, self.client(proxy), b"PROXY TCP4 127.0.5.1 ")

    def test_behind_the_header_the_session_begins(self):
        """And who does not wait for the greeting talks early."""
        line = b"PROXY TCP4 127.0.5.1 127.0.0.1 5 25\r\n"
        proxy = self.weir_behind()
        client = self.client(proxy)
        client.send(line + b"EHLO client.test\r\n")
        self.assertEqual(client.reply()[0], 554)
        proxy = self.weir_behind(listener={"early_talkers": "off"})
        client = self.client(proxy)
        client.send(line + b"EHLO client.test\r\nQUIT\r\n")
        self.assertEqual([client.reply()[0] for _ in range(3)],
                         [220, 250, 221])

    def test_a_crowd_without_headers_leaves_room_for_others(self):
        proxy = self.weir_behind(admission={"max_sessions": 50})
        silent = [self.client(proxy) for _ in range(45)]
        other = self.client(proxy, "127.0.6.2")
        other.hello()
        other.quit()
        for client in silent:
            self.closes(proxy, client, b"x")
