"""An SMTP client that does what it is told, good or bad."""

import re
import socket
import ssl
import threading
import time


class Gone(Exception):
    """The peer ended or broke the connection."""


class Client:
    """One connection.  Replies come as (code, text of all lines)."""

    def __init__(self, port, address="127.0.0.1", source=None, patience=120,
                 rcvbuf=0):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(patience)
        self.buffer = b""
        self.keywords = {}
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if source:
            self.sock.bind((source, 0))
        try:
            self.sock.connect((address, port))
        except OSError as error:
            self.sock.close()
            raise Gone(f"connect: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Leave with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, octets):
        try:
            self.sock.sendall(octets)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise Gone(f"send: {error}") from error

    def fill(self):
        try:
            more = self.sock.recv(65536)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise Gone(f"recv: {error}") from error
        if not more:
            raise Gone("end of stream")
        self.buffer += more

    def line(self):
        while b"\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\n")
        if not line.endswith(b"\r"):
            raise AssertionError(f"a line without CRLF: {line!r}")
        return line[:-1].decode("utf-8", "replace")

    def reply(self):
        lines = []
        while True:
            line = self.line()
            match = re.fullmatch(r"(\d{3})([- ]?)(.*)", line, re.DOTALL)
            if not match:
                raise AssertionError(f"not a reply: {line!r}")
            lines.append(match.group(3))
            if match.group(2) != "-":
                return int(match.group(1)), "\n".join(lines)

    def rest(self):
        """What comes until the peer ends; b'' if it has ended already."""
        try:
            while True:
                self.fill()
        except Gone:
            rest, self.buffer = self.buffer, b""
            return rest

    def cmd(self, line):
        self.send(line.encode("utf-8") + b"\r\n")
        return self.reply()

    def hello(self, name="client.test"):
        """Greeting and EHLO; the keywords offered."""
        code, text = self.reply()
        if code != 220:
            raise Refused(code, text)
        return self.ehlo(name)

    def ehlo(self, name="client.test"):
        code, text = self.cmd("EHLO " + name)
        if code != 250:
            raise Refused(code, text)
        self.keywords = {}
        for line in text.split("\n")[1:]:
            word, _, rest = line.partition(" ")
            self.keywords[word.upper()] = rest
        return self.keywords

    def quit(self):
        answer = self.cmd("QUIT")
        self.close()
        return answer

    def secure(self, context=None, name="mx.test", session=None):
        """The handshake; all later octets go through TLS."""
        try:
            self.sock = (context or trusting()).wrap_socket(
                self.sock, server_hostname=name, session=session)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise Gone(f"handshake: {error}") from error

    def starttls(self, context=None, name="mx.test", session=None):
        expect("STARTTLS", self.cmd("STARTTLS"), 220)
        if self.buffer:
            raise AssertionError(f"behind the 220: {self.buffer!r}")
        self.secure(context, name, session)


def trusting(cafile=None, version=None):
    """A context that takes any certificate, or with cafile only good ones;
    of one version of TLS only, if told."""
    context = ssl.create_default_context(cafile=cafile)
    if not cafile:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = version
    return context


class Secured(Client):
    """A client that uses TLS, by STARTTLS in hello() or from the start."""

    def __init__(self, port, implicit=False, context=None, name="mx.test",
                 session=None, **more):
        super().__init__(port, **more)
        self.implicit = implicit
        self.how = (context, name, session)
        if implicit:
            self.secure(*self.how)

    def hello(self, name="client.test"):
        """Greeting and EHLO, STARTTLS and EHLO; the keywords offered."""
        super().hello(name)
        if not self.implicit:
            self.plain_keywords = self.keywords
            self.starttls(*self.how)
            self.ehlo(name)
        return self.keywords


class Refused(Exception):
    """A reply other than the good one."""

    def __init__(self, code, text, stage=""):
        super().__init__(f"{stage}: {code} {text}")
        self.code = code
        self.text = text
        self.stage = stage


def stuffed(data):
    data = data.replace(b"\r\n.", b"\r\n..")
    return b"." + data if data.startswith(b".") else data


def expect(stage, answer, good):
    if answer[0] != good:
        raise Refused(*answer, stage)
    return answer


def envelope(client, message, options=""):
    """MAIL and RCPT, one at a time."""
    expect("MAIL", client.cmd(
        f"MAIL FROM:<{message.ident}@sender.test>{options}"), 250)
    expect("RCPT", client.cmd("RCPT TO:<u@local.test>"), 250)


def send_plain(client, message):
    """One command at a time; the final reply."""
    envelope(client, message)
    expect("DATA", client.cmd("DATA"), 354)
    client.send(stuffed(message.data) + b".\r\n")
    return expect("end", client.reply(), 250)


def send_pipelined(client, message):
    """MAIL, RCPT and DATA in one go, as RFC 2920 has it."""
    client.send(f"MAIL FROM:<{message.ident}@sender.test>\r\n"
                "RCPT TO:<u@local.test>\r\nDATA\r\n".encode())
    answers = [client.reply() for _ in range(3)]
    for stage, answer, good in zip(("MAIL", "RCPT", "DATA"), answers,
                                   (250, 250, 354)):
        if answer[0] != good:
            if answers[2][0] == 354:
                client.send(b".\r\n")
                client.reply()
            raise Refused(*answer, stage)
    client.send(stuffed(message.data) + b".\r\n")
    return expect("end", client.reply(), 250)


def send_bdat(client, message, chunk=65536, pipelined=True):
    """BDAT, the chunks sent without waiting where the server pipelines."""
    data = message.data
    if not pipelined:
        envelope(client, message)
        for at in range(0, max(len(data), 1), chunk):
            part = data[at:at + chunk]
            last = " LAST" if at + chunk >= len(data) else ""
            client.send(f"BDAT {len(part)}{last}\r\n".encode() + part)
            answer = expect("BDAT", client.reply(), 250)
        return answer
    client.send(f"MAIL FROM:<{message.ident}@sender.test>\r\n"
                "RCPT TO:<u@local.test>\r\n".encode())
    count = 2
    for at in range(0, max(len(data), 1), chunk):
        part = data[at:at + chunk]
        last = " LAST" if at + chunk >= len(data) else ""
        client.send(f"BDAT {len(part)}{last}\r\n".encode() + part)
        count += 1
    answers = [client.reply() for _ in range(count)]
    for answer in answers:
        expect("BDAT", answer, 250)
    return answers[-1]


WAYS = {"plain": send_plain, "pipelined": send_pipelined, "bdat": send_bdat}


class Crowd:
    """Threads that send messages and write down what they were told.

    A sender takes the next message from the list, sends it on its own
    connection, a few messages on each, and never sends one twice: what it
    was not told 250 for is neither acknowledged nor tried again.
    """

    def __init__(self, port, messages, threads=8, way="pipelined", kept=4,
                 pause=0.0, sources=(None,), kind=Client):
        self.port = port
        self.kind = kind        # makes a Client from a port and a source
        self.sources = sources  # addresses to come from, in turn
        self.messages = list(messages)
        self.todo = list(reversed(self.messages))
        self.way = way if callable(way) else WAYS[way]
        self.kept = kept
        self.pause = pause
        self.acked = []
        self.refused = []     # (ident, stage, code, text)
        self.broken = []      # (ident, why)
        self.lock = threading.Lock()
        self.halt = threading.Event()
        self.threads = [
            threading.Thread(target=self.work, daemon=True,
                             args=(sources[i % len(sources)],))
            for i in range(threads)]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def stop(self):
        self.halt.set()

    def join(self, patience=600):
        end = time.monotonic() + patience
        for thread in self.threads:
            thread.join(max(0.1, end - time.monotonic()))
            if thread.is_alive():
                raise AssertionError("a sender hangs")
        return self

    def take(self):
        with self.lock:
            if self.todo and not self.halt.is_set():
                return self.todo.pop()
            return None

    @property
    def done(self):
        return len(self.acked) + len(self.refused) + len(self.broken)

    def work(self, source):
        message = self.take()
        while message:
            try:
                client = self.kind(self.port, source=source)
            except Gone as error:
                self.note(self.broken, (message.ident, str(error)))
                message = self.take()
                continue
            with client:
                message = self.session(client, message)

    def note(self, where, what):
        with self.lock:
            where.append(what)

    def session(self, client, message):
        """Some messages on one connection; the next message to send."""
        try:
            client.hello()
        except Refused as error:
            self.note(self.refused, (message.ident, "greeting", error.code,
                                     error.text))
            return self.take()
        except (Gone, TimeoutError) as error:
            self.note(self.broken, (message.ident, repr(error)))
            return self.take()
        for _ in range(self.kept):
            try:
                self.way(client, message)
                self.note(self.acked, message.ident)
            except Refused as error:
                self.note(self.refused, (message.ident, error.stage,
                                         error.code, error.text))
                if error.code == 421:
                    return self.take()
                try:
                    client.cmd("RSET")
                except (Gone, TimeoutError):
                    return self.take()
            except (Gone, TimeoutError, AssertionError) as error:
                self.note(self.broken, (message.ident, repr(error)))
                return self.take()
            if self.pause:
                self.halt.wait(self.pause() if callable(self.pause)
                               else self.pause)
            message = self.take()
            if not message:
                break
        try:
            client.quit()
        except (Gone, TimeoutError):
            pass
        return message
