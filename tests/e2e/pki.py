"""Certificates of all kinds, made by the openssl program.

One CA that the tests trust and one that nobody does; under them whatever a
test asks for, as files, made once for all tests.
"""

import base64
import functools
import hashlib
import os
import subprocess
import threading

import world

LOCK = threading.RLock()
KEYS = {"ec": ("EC", "ec_paramgen_curve:P-256"),
        "rsa": ("RSA", "rsa_keygen_bits:2048")}

CONFIG = """
[ca]
default_ca = it
[it]
dir = {dir}
database = {dir}/index
serial = {dir}/serial
new_certs_dir = {dir}/issued
default_md = sha256
unique_subject = no
policy = any
rand_serial = yes
[any]
commonName = supplied
[ca_cert]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
subjectKeyIdentifier = hash
"""


def openssl(*argv, given=None):
    done = subprocess.run(("openssl",) + argv, input=given, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise AssertionError(f"openssl {argv}: {done.stderr.decode()}")
    return done.stdout


class Pair:
    """A certificate, its key, and both in one file; paths."""

    def __init__(self, path):
        self.cert = path + ".crt"
        self.key = path + ".key"
        self.both = path + ".pem"
        self.ocsp = path + ".ocsp"

    @functools.cached_property
    def public(self):
        """SubjectPublicKeyInfo, DER."""
        pem = openssl("x509", "-in", self.cert, "-noout", "-pubkey")
        return openssl("pkey", "-pubin", "-outform", "der", given=pem)

    @property
    def pin(self):
        return hashlib.sha256(self.public).hexdigest()

    @property
    def pin64(self):
        return base64.b64encode(hashlib.sha256(self.public).digest()).decode()

    @functools.cached_property
    def fingerprint(self):
        """SHA-256 of the certificate, in hex."""
        der = openssl("x509", "-in", self.cert, "-outform", "der")
        return hashlib.sha256(der).hexdigest()


class Authority:
    def __init__(self, name):
        self.name = name
        self.dir = os.path.join(world.work(), "pki", name)
        self.conf = os.path.join(self.dir, "conf")
        self.path = os.path.join(self.dir, "ca.crt")
        self.key = os.path.join(self.dir, "ca.key")
        self.made = {}

    def begin(self):
        if os.path.exists(self.path):
            return
        os.makedirs(os.path.join(self.dir, "issued"))
        self.write("conf", CONFIG.format(dir=self.dir))
        self.write("index", "")
        openssl("req", "-x509", "-new", "-newkey", "ec", "-pkeyopt",
                KEYS["ec"][1], "-nodes", "-config", self.conf, "-subj",
                f"/CN=weir test {self.name} CA", "-days", "30",
                "-extensions", "ca_cert", "-keyout", self.key,
                "-out", self.path)
        # the servers' own users have to get through
        for folder in (os.path.dirname(self.dir), self.dir):
            os.chmod(folder, 0o755)

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return path

    def issue(self, *names, kind="ec", days=90, use="server"):
        """A pair for these DNS names or addresses.  days = 0: it was good
        in 2020."""
        key = (names, kind, days, use)
        with LOCK:
            if key not in self.made:
                self.begin()
                self.made[key] = self.make(names, kind, days, use)
            return self.made[key]

    def make(self, names, kind, days, use):
        pair = Pair(os.path.join(self.dir, f"{len(self.made)}-{kind}"))
        algorithm, option = KEYS[kind]
        openssl("genpkey", "-algorithm", algorithm, "-pkeyopt", option,
                "-out", pair.key)
        request = openssl("req", "-new", "-key", pair.key, "-subj",
                          "/CN=" + names[0], "-config", self.conf)
        alternatives = ",".join(
            ("IP:" if name.replace(".", "").isdigit() else "DNS:") + name
            for name in names)
        extensions = self.write("extensions", (
            f"subjectAltName = {alternatives}\nbasicConstraints = CA:FALSE\n"
            f"extendedKeyUsage = {use}Auth\n"
            "keyUsage = digitalSignature\n"
            "authorityInfoAccess = OCSP;URI:http://ocsp.test/\n"
            "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"))
        when = (["-days", str(days)] if days else
                ["-startdate", "20200101000000Z",
                 "-enddate", "20210101000000Z"])
        openssl(
            "ca", "-batch", "-config", self.conf, "-cert", self.path,
            "-keyfile", self.key, "-in", "/dev/stdin", "-notext",
            "-extfile", extensions, *when, "-out", pair.cert, given=request)
        with open(pair.both, "wb") as both:
            for part in (pair.cert, pair.key):
                with open(part, "rb") as file:
                    both.write(file.read())
        for part in (pair.key, pair.both):
            os.chmod(part, 0o644)  # a test's key is no secret
        return pair

    def staple(self, pair):
        """The CA's word that the certificate is good, as pair.ocsp."""
        with LOCK:
            if not os.path.exists(pair.ocsp):
                openssl("ocsp", "-index", os.path.join(self.dir, "index"),
                        "-CA", self.path, "-rsigner", self.path, "-rkey",
                        self.key, "-issuer", self.path, "-cert", pair.cert,
                        "-ndays", "7", "-no_nonce", "-respout", pair.ocsp)
        return pair.ocsp


CA = Authority("good")
STRANGER = Authority("unknown")
