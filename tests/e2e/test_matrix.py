"""TLS of the client, TLS to the server, and how the server is told who the
client is: every combination, with every server that knows it."""

import concurrent.futures
import itertools
import re

import lib
import mail
import mta
import pki
import smtp
import weir

CLIENT = "127.0.3.7"
NAME = "backend.test"
CLIENT_TLS = ("none", "starttls", "implicit")
BACKEND_TLS = ("none", "starttls", "implicit")
IDENTITIES = ("none", "header", "xclient", "proxy-v1", "proxy-v2")


class Row:
    """One server, reached in one way, and told in one way."""

    def __init__(self, server, kind, identity, tls, port):
        self.server = server
        self.kind = kind
        self.identity = identity
        self.tls = tls
        self.port = port
        self.said = {}

    def ident(self, client_tls):
        return f"{self.kind}-{self.identity}-{self.tls}-{client_tls}"

    def keys(self):
        if self.tls == "none":
            return {}
        if self.tls == "attempted":  # the server cannot, whatever it offers
            return {"tls": "opportunistic"}
        return {"tls": "verify", "tls_mode": self.tls, "tls_name": NAME,
                "tls_ca": pki.CA.path}

    def weir(self, cert):
        return weir.Weir(
            [(self.kind, f"127.0.0.1:{self.port}",
              dict(self.keys(), identity=self.identity))],
            listeners={tls: {"tls": tls, "tls_cert": cert}
                       for tls in CLIENT_TLS if tls != "none"})

    def send(self, proxy, client_tls):
        """What came of it, in a word."""
        try:
            if client_tls == "none":
                client = smtp.Client(proxy.port, source=CLIENT)
            else:
                client = smtp.Secured(proxy.ports[client_tls],
                                      client_tls == "implicit",
                                      source=CLIENT)
            with client:
                client.hello("helo-name.test")
                smtp.send_pipelined(client,
                                    mail.Message(self.ident(client_tls)))
                client.quit()
            return "sent"
        except (smtp.Refused, smtp.Gone, TimeoutError) as error:
            return repr(error)

    def run(self, cert):
        proxy = self.weir(cert)
        try:
            proxy.start()
            proxy.up()
            for client_tls in CLIENT_TLS:
                self.said[client_tls] = self.send(proxy, client_tls)
            self.sessions = lib.wait_until(
                lambda: len(found := proxy.log("event=session",
                                               "client=" + CLIENT)) == 3
                and found, "each session is logged")
        finally:
            proxy.stop()

    def judge(self, received):
        """After delivery: what do the messages' Received fields say?"""
        for client_tls in CLIENT_TLS:
            if self.said[client_tls] == "sent":
                fields = received.get(self.ident(client_tls))
                self.said[client_tls] = (
                    self.verdict(client_tls, fields[0], fields[1:])
                    if fields else "not stored")
        for line in self.sessions:
            if line["messages"] != "1" or line["close"] != "quit":
                self.said["none"] = f"logged: {line}"

    def verdict(self, client_tls, own, before):
        """`own` is the server's field, `before` are those below."""
        secured = bool(re.search(r"TLSv?1\.[23]", own))
        if secured != (self.tls in ("starttls", "implicit")):
            return "TLS: " + own
        seen = CLIENT if self.identity not in ("none", "header") else \
            "127.0.0.1"
        if f"[{seen}]" not in own:
            return "client: " + own
        if "helo-name.test" not in own:
            return "its name: " + own
        if self.identity == "header":
            with_ = "ESMTP" if client_tls == "none" else "ESMTPS"
            for words in (f"[{CLIENT}]", "helo-name.test", f"with {with_} "):
                if len(before) != 1 or words not in before[0]:
                    return f"no {words}: {before}"
        elif before:
            return f"one field too many: {before}"
        return "ok"


def rows(postfix, exim, opensmtpd):
    for identity, tls in itertools.product(IDENTITIES, BACKEND_TLS):
        header = identity.startswith("proxy")
        yield Row(postfix, "postfix", identity, tls, {
            (False, False): postfix.port, (True, False): postfix.port_proxy,
            (False, True): postfix.smtps, (True, True): postfix.smtps_proxy,
        }[header, tls == "implicit"])
        if tls != "implicit":  # it knows no other TLS
            yield Row(postfix, "postscreen", identity, tls,
                      postfix.screen_proxy if header else postfix.screen)
        if identity != "xclient":  # Debian's knows none
            yield Row(exim, "exim", identity, tls, {
                (False, False): exim.port, (True, False): exim.port_proxy,
                (False, True): exim.smtps, (True, True): exim.smtps_proxy,
            }[header, tls == "implicit"])
        if (identity in ("none", "header", "proxy-v2")
                and tls != "implicit"):
            yield Row(opensmtpd, "opensmtpd", identity,
                      "none" if tls == "none" else "attempted",
                      opensmtpd.port_proxy if header else opensmtpd.port)


def table(all_rows):
    yield (f"{'server':11} {'identity':9} {'TLS to it':10} "
           + " ".join(f"{'client ' + tls:16}" for tls in CLIENT_TLS))
    for row in sorted(all_rows, key=lambda r: (r.kind, IDENTITIES.index(
            r.identity), r.tls)):
        yield (f"{row.kind:11} {row.identity:9} {row.tls:10} "
               + " ".join(f"{row.said.get(tls, '?')[:16]:16}"
                          for tls in CLIENT_TLS))


@lib.needs_root
class Matrix(lib.Case):
    def test_the_server_knows_the_client_in_every_combination(self):
        made = pki.CA.issue(NAME)
        front = pki.CA.issue("mx.test")
        servers = (mta.Postfix(tls=made, many=True, xclient="127.0.0.1",
                               screen_access="static:permit"),
                   mta.Exim(tls=made, many=True),
                   mta.OpenSmtpd(tls=made, many=True))
        for server in servers:
            self.start(server)
        all_rows = list(rows(*servers))
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            errors = list(pool.map(
                lambda row: self.attempt(row, front.both), all_rows))
        for server in servers:
            server.settle()
            received = mail.received(server)
            for row in all_rows:
                if row.server is server and row.said:
                    row.judge(received)
        print("\n".join("      " + line for line in table(all_rows)))
        self.assertEqual([e for e in errors if e], [])
        wrong = [(row.ident(tls), said) for row in all_rows
                 for tls, said in row.said.items() if said != "ok"]
        self.assertEqual(wrong, [])
        self.assertEqual(sum(len(row.said) for row in all_rows),
                         len(all_rows) * len(CLIENT_TLS))

    @staticmethod
    def attempt(row, cert):
        try:
            row.run(cert)
        except AssertionError as error:
            row.said.clear()
            return f"{row.ident('')}: {error}"
        return ""
