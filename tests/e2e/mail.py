"""Messages with a name, and the count of what arrived in the mailboxes."""

import collections
import hashlib
import os
import re

Stored = collections.namedtuple("Stored", "server accept_id sha size")

LINE = ("The weir lets through what the mill can take, and holds the rest "
        "back.\r\n").encode()


def digest(body):
    """The mailboxes end lines with LF: so does what is compared."""
    return hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest()


class Message:
    """Header and a body of `size` octets that no other message has.

    Dots and `From ` begin lines, so that wrong stuffing shows.
    """

    def __init__(self, ident, size=300, eightbit=False):
        self.ident = ident
        head = (f"X-Test-Id: {ident}\r\nSubject: test\r\n"
                "From: <a@sender.test>\r\nTo: <u@local.test>\r\n\r\n")
        lines = [f"{ident}\r\n".encode(), b".\r\n", b"..\r\n", b".x\r\n",
                 b"From here\r\n"]
        if eightbit:
            lines.append("gr\u00fc\u00dfe \u2603\r\n".encode())
        body = b"".join(lines) + LINE * (max(size, 0) // len(LINE))
        if size < 200:  # small ones are cut at a line's end, even to nothing
            body = body[:size]
            body = body[:body.rfind(b"\r\n") + 2] if b"\r\n" in body else b""
        self.body = body
        self.data = head.encode() + body

    @property
    def sha(self):
        return digest(self.body)


class Nothing(Message):
    """A message of no octets at all: only its sender's address names it."""

    def __init__(self, ident):
        super().__init__(ident, 0)
        self.body = self.data = b""


def read(server, path):
    """(ident, Stored) of one file of a maildir."""
    with open(path, "rb") as file:
        raw = file.read().replace(b"\r\n", b"\n")
    head, _, body = raw.partition(b"\n\n")
    head = re.sub(rb"\n[ \t]+", b" ", head)
    # the topmost Received is the server's own: its id tells one acceptance
    # from another, so a server that delivers one twice is not blamed on us
    found = re.search(rb"(?mi)^Received:.*?\bid ([^\s;]+)", head)
    accept = found.group(1).decode() if found else path
    for field in (rb"X-Test-Id:[ ]*(\S+)", rb"Message-Id:[ ]*<?([^>\s]+)"):
        found = re.search(rb"(?mi)^" + field, head)
        if found and not (b"mx.test" in found.group(1)):
            break
    else:
        found = re.search(rb"(?mi)^Return-Path:[ ]*<?([^@>\s]+)", head)
    name = found.group(1).decode() if found else "?" + path
    return name, Stored(server, accept, hashlib.sha256(body).hexdigest(),
                        len(body))


def tally(*servers):
    """ident -> set of Stored, one for each time a server accepted it."""
    out = collections.defaultdict(set)
    for server in servers:
        for folder, _, files in os.walk(server.mail):
            if os.path.basename(folder) == "new":
                for name in files:
                    ident, stored = read(server.name,
                                         os.path.join(folder, name))
                    out[ident].add(stored)
    return out


def received(server):
    """ident -> the Received fields of its message, topmost first: the
    server's own, and those that it came with."""
    out = {}
    for folder, _, files in os.walk(server.mail):
        if os.path.basename(folder) != "new":
            continue
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                head = file.read().replace(b"\r\n", b"\n")
            head = re.sub(r"\n[ \t]+", " ", head.partition(b"\n\n")[0]
                          .decode("latin-1"))
            out[read(server.name, path)[0]] = re.findall(
                r"(?m)^Received: *(.*)$", head)
    return out


def compare(test, sent, acked, stored):
    """Promises 1, 2 and 4: `sent` are Messages, `acked` idents.

    Every acknowledged message is there once, unharmed; a message that was
    not acknowledged may be there (its reply may have been lost), but not
    twice, and never harmed.
    """
    lost = [i for i in acked if not stored.get(i)]
    twice = [i for i, copies in stored.items() if len(copies) > 1]
    by_ident = {m.ident: m for m in sent}
    shas = {m.ident: m.sha for m in sent}
    changed = [(i, i in acked, s,
                len(by_ident[i].body) if i in by_ident else None)
               for i, copies in stored.items() for s in copies
               if s.sha != shas.get(i)]
    test.assertEqual(lost, [], "acknowledged and lost")
    test.assertEqual(twice, [], "stored twice")
    test.assertEqual(changed, [], "not as it was sent")
