"""Mail servers that misbehave as told.

A Backend listens and gives each connection to `script`, a function of a
Peer that plays the server's side, in a thread of its own.  It writes down
what it saw, and the messages it took.
"""

import collections
import socket
import ssl
import threading


Secured = collections.namedtuple("Secured", "version resumed cert")


class Peer:
    """The backend's end of one connection."""

    def __init__(self, backend, sock, number):
        self.backend = backend
        self.sock = sock
        self.number = number
        self.buffer = b""
        self.lines = []        # the commands that came
        self.body = b""        # the body that came, unstuffed
        self.whole = False     # its end came too
        self.ended = ""        # "fin", "rst" or "" while it lasts
        self.banner_sent = False
        self.left = False      # no longer one of the open ones
        self.secured = None    # a Secured, after a handshake
        self.clear = []        # the commands that came before TLS

    def send(self, text):
        data = text if isinstance(text, bytes) else text.encode() + b"\r\n"
        self.sock.sendall(data)

    def fill(self):
        try:
            more = self.sock.recv(65536)
        except ConnectionError:
            self.ended = "rst"
            raise
        if not more:
            self.ended = "fin"
            raise EOFError
        self.buffer += more

    def line(self):
        while b"\r\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        text = line.decode("utf-8", "replace")
        self.lines.append(text)
        return text

    def data(self):
        """Read until CRLF.CRLF."""
        took = bytearray(b"\r\n")  # so that a dot line may come first
        seen = 0
        while True:
            took += self.buffer
            self.buffer = b""
            at = took.find(b"\r\n.\r\n", max(seen - 4, 0))
            seen = len(took)
            if at >= 0:
                break
            self.fill()
        body = bytes(took[:at + 2]).replace(b"\r\n..", b"\r\n.")
        self.body = body[2:]
        self.buffer = bytes(took[at + 5:])
        self.whole = True

    def secure(self, context):
        """The server's side of a handshake; what was said is forgotten."""
        self.clear, self.lines = self.lines, []
        self.buffer = b""
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.secured = Secured(self.sock.version(), self.sock.session_reused,
                               self.sock.getpeercert())

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class Wait:
    """A reply that comes only when the test lets it."""

    def __init__(self, event, reply):
        self.event = event
        self.reply = reply


KEYWORDS = ("PIPELINING", "SIZE 157286400", "8BITMIME", "SMTPUTF8", "DSN",
            "ENHANCEDSTATUSCODES", "CHUNKING")

CLOSE = object()   # end the connection
RESET = object()   # end it with an RST
SILENT = object()  # say nothing more, read on


def script(greeting="220 fake.test ESMTP", ehlo=None, mail="250 2.1.0 ok",
           rcpt="250 2.1.5 ok", data="354 go on", end="250 2.0.0 stored",
           keywords=KEYWORDS, after_mail=None, tls=None, implicit=False,
           xclient=None):
    """The usual server, with any of its replies replaced.  tls: a context
    for STARTTLS, or, if implicit, for TLS from the start.  xclient: the reply
    to XCLIENT, which it then offers.

    A replacement is text, CLOSE, RESET, SILENT, a Wait, a list of them in
    order, or a function of the Peer that returns one of these.
    """
    def hello(peer):
        offered = list(keywords)
        if tls and not peer.secured:
            offered.append("STARTTLS")
        if xclient:
            offered.append("XCLIENT NAME ADDR PORT HELO")
        return ehlo or "\r\n".join(
            ["250-fake.test"] + ["250-" + k for k in offered[:-1]] +
            ["250 " + offered[-1]])

    def answer(peer, what, keep=False):
        if isinstance(what, list):
            return [answer(peer, x, keep) for x in what][0]
        if isinstance(what, Wait):
            what.event.wait(60)
            what = what.reply
        if callable(what) and what not in (CLOSE, RESET, SILENT):
            what = what(peer)
        if what is CLOSE:
            raise EOFError
        if what is RESET:
            peer.reset()
            raise EOFError
        if what is SILENT:
            while True:
                peer.buffer = b""
                peer.fill()
        if what:
            if keep and what[:3] in ("250", b"250"):
                peer.backend.keep(peer)  # first it stores, then it says so
            peer.send(what)
        return what

    def bdat(peer, line):
        words = line.split()
        want = int(words[1])
        while len(peer.buffer) < want:
            peer.fill()
        peer.body += peer.buffer[:want]
        peer.buffer = peer.buffer[want:]
        if words[-1].upper() != "LAST":
            answer(peer, "250 2.0.0 chunk")
            return
        peer.whole = True
        answer(peer, end, keep=True)
        peer.body, peer.whole = b"", False

    def play(peer):
        if tls and implicit:
            peer.secure(tls)
        answer(peer, greeting)
        peer.banner_sent = True
        while True:
            line = peer.line()
            verb = line[:4].upper()
            if verb in ("EHLO", "HELO"):
                answer(peer, hello)
            elif verb == "MAIL":
                peer.mail_from = line
                peer.body, peer.whole = b"", False
                answer(peer, mail)
                if after_mail:
                    answer(peer, after_mail)
            elif verb == "RCPT":
                answer(peer, rcpt)
            elif verb == "XCLI" and xclient:
                answer(peer, xclient)
            elif verb == "BDAT":
                bdat(peer, line)
            elif verb == "DATA":
                if not str(answer(peer, data)).startswith("354"):
                    continue
                peer.data()
                answer(peer, end, keep=True)
                peer.body, peer.whole = b"", False
            elif verb == "STAR" and tls and not peer.secured:
                peer.send("220 2.0.0 go ahead")
                peer.secure(tls)
            elif verb == "QUIT":
                peer.backend.leave(peer)
                peer.send("221 2.0.0 bye")
                return
            elif verb in ("RSET", "NOOP"):
                peer.send("250 2.0.0 ok")
            else:
                peer.send("500 5.5.2 what?")
    return play


def server_context(pair, ca=None):
    """For tls= of script(); with ca, clients have to show certificates.
    `sni` is a list of the names that clients asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    context.set_ciphers("DEFAULT")
    context.sni = []
    context.sni_callback = lambda _sock, name, _: context.sni.append(name)
    if ca:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Backend:
    """Listens on 127.0.0.1 or where told; `play` may change while it runs."""

    def __init__(self, play=None, name="fake", address="127.0.0.1", port=0,
                 listen=None, backlog=1024):
        self.play = play or script()
        self.name = name
        self.host = address
        self.wanted = port
        self.listen = listen        # a listening socket made elsewhere
        self.backlog = backlog
        self.sock = None
        self.peers = []
        self.kept = []              # bodies that were answered 250
        self.lock = threading.Lock()
        self.open = 0
        self.peak = 0

    def start(self):
        if self.listen:
            self.sock = self.listen
        else:
            family = (socket.AF_INET6 if ":" in self.host
                      else socket.AF_INET)
            self.sock = socket.socket(family)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((self.host, self.wanted))
            self.sock.listen(self.backlog)
        self.port = self.wanted = self.sock.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.sock,),
                         daemon=True).start()

    @property
    def address(self):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                peer = Peer(self, sock, len(self.peers))
                self.peers.append(peer)
                self.open += 1
                self.peak = max(self.peak, self.open)
            threading.Thread(target=self.serve, args=(peer,),
                             daemon=True).start()

    def serve(self, peer):
        try:
            self.play(peer)
        except (EOFError, OSError):
            pass
        finally:
            peer.sock.close()
            self.leave(peer)

    def leave(self, peer):
        """It counts no more: once it reads 221, its place may be taken."""
        with self.lock:
            self.open -= not peer.left
            peer.left = True

    def keep(self, peer):
        with self.lock:
            self.kept.append(peer.body)

    def mails(self):
        """Connections that got as far as MAIL."""
        with self.lock:
            return [p for p in self.peers
                    if any(x.upper().startswith("MAIL") for x in p.lines)]

    def stop(self):
        if self.sock:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.sock.close()
            self.sock = None
        with self.lock:
            peers = list(self.peers)
        for peer in peers:
            try:
                peer.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
