"""Slots of a mail server: how many there are, how many are in use."""

import threading
import time

import lib
import smtp

HOLDS = ("01", "08")  # /proc/net/tcp: ESTABLISHED, CLOSE_WAIT


def held(*ports):
    """Connections that the servers on these ports have accepted, a list of
    counts.  One that waits in the kernel's queue has no inode yet."""
    count = dict.fromkeys(ports, 0)
    with open("/proc/net/tcp", encoding="ascii") as file:
        next(file)
        for line in file:
            field = line.split()
            port = int(field[1].rpartition(":")[2], 16)
            if port in count and field[3] in HOLDS and field[9] != "0":
                count[port] += 1
    return [count[port] for port in ports]


def takes(server, most=60):
    """How many sessions at a time it takes: asked directly, one by one until
    it refuses or says nothing."""
    clients = []
    try:
        while len(clients) < most:
            client = smtp.Client(server.port, patience=3)
            clients.append(client)
            try:
                if client.reply()[0] != 220:
                    break
            except (smtp.Gone, TimeoutError):
                break
        return len(clients) - 1
    finally:
        for client in clients:
            client.close()
        lib.wait_until(lambda: held(server.port) == [0],
                       f"{server.name} has let all go")


class Gauge:
    """Looks five times a second how many of the slots are in use.

    servers: {server: its slots}.
    """

    def __init__(self, servers):
        self.servers = servers
        self.samples = []  # of [in use] by server
        self.halt = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        ports = [server.port for server in self.servers]
        while not self.halt.wait(0.2):
            self.samples.append([
                min(have, most) for have, most in
                zip(held(*ports), self.servers.values())])

    def start(self):
        self.thread.start()

    def stop(self):
        self.halt.set()
        self.thread.join()

    def shares(self):
        """{server's name: share of its slots in use}, "farm" for all."""
        sums = [sum(column) for column in zip(*self.samples)]
        out = {server.name: total / most / len(self.samples)
               for (server, most), total in zip(self.servers.items(), sums)}
        out["farm"] = (sum(sums) / len(self.samples)
                       / sum(self.servers.values()))
        return out


class Holding:
    """A way to send: a pause between RCPT and DATA, so that the slot is held
    for a time that is known, and how long it was held in all."""

    def __init__(self, least, most, random):
        self.least = least
        self.most = most
        self.random = random
        self.lock = threading.Lock()
        self.slowest = 0.0  # seconds from MAIL to its reply: the wait

    def __call__(self, client, message):
        with self.lock:
            pause = self.random.uniform(self.least, self.most)
        began = time.monotonic()
        smtp.envelope(client, message)
        waited = time.monotonic() - began
        with self.lock:
            self.slowest = max(self.slowest, waited)
        time.sleep(pause)
        smtp.expect("DATA", client.cmd("DATA"), 354)
        client.send(smtp.stuffed(message.data) + b".\r\n")
        return smtp.expect("end", client.reply(), 250)
