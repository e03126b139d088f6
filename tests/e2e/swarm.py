"""Thousands of clients from many addresses, in one thread."""

import collections
import errno
import select
import socket
import time

import lib

IP_BIND_ADDRESS_NO_PORT = 24


def sources(count):
    """Addresses of 127.0.0.0/8, each in a /24 of its own."""
    return [f"127.{1 + i // 250}.{1 + i % 250}.1" for i in range(count)]


class One:
    def __init__(self, sock, source):
        self.sock = sock
        self.source = source
        self.said = b""       # all that weir said
        self.ended = ""       # "fin" or "rst"
        self.sent = 0         # of Swarm.script
        self.connected = False

    @property
    def lines(self):
        return self.said.count(b"\n")


class Swarm:
    """Opens all connections at once; then pump() until something is so."""

    def __init__(self, port, addresses, each):
        self.port = port
        self.epoll = select.epoll()
        self.ones = {}
        self.refused_connects = 0
        for _ in range(each):
            for address in addresses:
                self.open(address)

    def open(self, address):
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((address, 0))
        code = sock.connect_ex(("127.0.0.1", self.port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        self.ones[sock.fileno()] = One(sock, address)
        self.epoll.register(sock, select.EPOLLIN)

    def __len__(self):
        return len(self.ones)

    def pump(self, until, what, patience=lib.PATIENCE * 3):
        end = time.monotonic() + patience
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f"waited {patience} s in vain: {what}")
            for fd, _ in self.epoll.poll(0.5, 2000):
                self.read(self.ones[fd])

    def read(self, one):
        try:
            more = one.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            one.ended = "rst"
        else:
            one.said += more
            if more:
                return
            one.ended = "fin"
        self.epoll.unregister(one.sock)

    def count(self, what):
        return sum(1 for one in self.ones.values() if what(one))

    def per_source(self, what):
        return collections.Counter(one.source for one in self.ones.values()
                                   if what(one))

    def say(self, octets, to):
        for one in self.ones.values():
            if to(one):
                one.sock.sendall(octets)

    def start(self):
        pass

    def stop(self):
        for one in self.ones.values():
            one.sock.close()
        self.epoll.close()
