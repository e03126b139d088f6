"""What testssl.sh and sslscan find on listeners with the default settings:
nothing that they hold to be worse than LOW."""

import concurrent.futures
import json
import os
import re
import shutil
import unittest

import backend
import lib
import pki
import weir
import world

# What testssl.sh could not look at, and why that is nothing of ours.
NOT_LOOKED_AT = {
    "engine_problem": "the host's openssl has no GOST",
    "service": "what it asks HTTP servers, it does not ask us",
    "sessionresumption_ticket": "its openssl may leave before the tickets "
    "come; test_tls_clients looks at them",
}
HARMLESS = ("OK", "INFO", "LOW")


class Case(lib.Case):
    def setUp(self):
        certs = []
        for kind in ("ec", "rsa"):
            made = pki.CA.issue("mx.test", kind=kind)
            certs.append(f"{made.cert} {made.key} {pki.CA.staple(made)}")
        self.weir = self.start(weir.Weir(
            [("a", self.start(backend.Backend()), {})],
            listeners={tls: {"tls": tls, "tls_cert": certs}
                       for tls in ("starttls", "implicit")})).up()


@unittest.skipUnless(world.PRIVATE or shutil.which("testssl"),
                     "needs testssl.sh")
class TestSsl(Case):
    # protocols, standard ciphers, forward secrecy, the server's own order,
    # certificates, and all vulnerabilities
    CHECKS = ("-p", "-s", "-f", "-P", "-S", "-U")

    def scan(self, listener):
        out = os.path.join(self.weir.dir, f"testssl-{listener}.json")
        env = dict(os.environ, ADDITIONAL_CA_FILES=pki.CA.path,
                   # how long it waits for a server's answer to be whole;
                   # this one is near
                   USLEEP_SND="0.02", USLEEP_REC="0.05")
        done = self.command(
            "testssl", "--quiet", "--color", "0", "--warnings", "batch",
            "--nodns", "none", "--openssl-timeout", "10", "--ip",
            "127.0.0.1", "--jsonfile", out, *self.CHECKS,
            *(("--starttls", "smtp") if listener == "starttls" else ()),
            f"mx.test:{self.weir.ports[listener]}", env=env, patience=300)
        with open(out, encoding="utf-8") as file:
            return json.load(file), done.stdout

    def test_finds_nothing_above_low(self):
        listeners = list(self.weir.ports)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            scans = dict(zip(listeners, pool.map(self.scan, listeners)))
        for listener, (found, text) in scans.items():
            with self.subTest(listener=listener):
                worse = [f"{one['severity']} {one['id']}: {one['finding']}"
                         for one in found
                         if one["severity"] not in HARMLESS
                         and not (one["severity"] in ("DEBUG", "WARN")
                                  and one["id"] in NOT_LOOKED_AT)]
                self.assertEqual(worse, [], text)
                # it did look
                seen = {one["id"]: one["finding"] for one in found}
                for ident in ("TLS1_2", "TLS1_3", "heartbleed", "ROBOT",
                              "secure_renego", "SWEET32",
                              "cipherlist_aNULL", "PFS"):
                    self.assertIn(ident, seen)
                self.assertRegex(seen["TLS1_3"], "^offered")
                self.assertRegex(seen["TLS1_1"], "not offered")


@unittest.skipUnless(world.PRIVATE or shutil.which("sslscan"),
                     "needs sslscan")
class SslScan(Case):
    def test_agrees(self):
        for listener, port in self.weir.ports.items():
            with self.subTest(listener=listener):
                done = self.command(
                    "sslscan", "--no-colour", "--show-certificate",
                    "--sni-name=mx.test", *(
                        ("--starttls-smtp",) if listener == "starttls"
                        else ()), f"127.0.0.1:{port}")
                text = done.stdout
                self.assertEqual(done.returncode, 0, text)
                enabled = re.findall(r"(?m)^(\S+)\s+enabled$", text)
                self.assertEqual(enabled, ["TLSv1.2", "TLSv1.3"], text)
                self.assertIn("supports TLS Fallback SCSV", text)
                self.assertRegex(text, r"renegotiation (is )?not supported")
                self.assertNotRegex(text, r"(?<!not )vulnerable")
                ciphers = re.findall(
                    r"(?m)^(?:Preferred|Accepted)\s+(\S+)\s+(\d+) bits\s+"
                    r"(\S+)", text)
                self.assertGreaterEqual(len(ciphers), 6, text)
                for version, bits, name in ciphers:
                    self.assertGreaterEqual(int(bits), 128, name)
                    # forward secret, and authenticated encryption
                    self.assertRegex(name, "GCM|POLY1305")
                    if version == "TLSv1.2":
                        self.assertRegex(name, "^(ECDHE|DHE)-")
