"""A second host, in a network namespace, and faults on the way to it."""

import ctypes
import itertools
import os
import socket
import subprocess
import threading

CLONE_NEWNET = 0x40000000
numbers = itertools.count()


def sh(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


class Host:
    """A namespace joined to ours by a veth pair: we are 10.99.N.1 and
    fd99:N::1, it is .2; its input and output pass nft rules."""

    def __init__(self):
        self.number = next(numbers)
        self.name = f"weir-far-{os.getpid()}-{self.number}"
        self.link = f"w{os.getpid() % 10000}n{self.number}"
        self.v4 = f"10.99.{self.number}.2"
        self.v6 = f"fd99:{self.number}::2"
        self.near4 = f"10.99.{self.number}.1"
        self.near6 = f"fd99:{self.number}::1"

    def start(self):
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name",
           "far0", "netns", self.name)
        for where, dev, v4, v6 in (
                ((), self.link, self.near4, self.near6),
                (("-n", self.name), "far0", self.v4, self.v6)):
            sh("ip", *where, "addr", "add", v4 + "/24", "dev", dev)
            sh("ip", *where, "addr", "add", v6 + "/64", "dev", dev, "nodad")
            sh("ip", *where, "link", "set", dev, "up")
        sh("ip", "-n", self.name, "link", "set", "lo", "up")
        self.nft("add table inet f")
        self.nft("add chain inet f in "
                 "{ type filter hook input priority 0 ; }")
        self.nft("add chain inet f out "
                 "{ type filter hook output priority 0 ; }")

    def stop(self):
        subprocess.run(("ip", "netns", "del", self.name), check=False,
                       stderr=subprocess.DEVNULL)

    def nft(self, rule):
        sh("ip", "netns", "exec", self.name, "nft", rule)

    def listen(self, address, backlog=1024):
        """A socket that listens over there, for a Backend over here."""
        def work():
            sock = socket.socket(socket.AF_INET6 if ":" in address
                                 else socket.AF_INET)
            sock.bind((address, 0))
            sock.listen(backlog)
            return sock
        return self.inside(work)

    def inside(self, work):
        """What work() returns, called over there: its sockets stay."""
        box = []

        def enter():
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open("/run/netns/" + self.name, os.O_RDONLY)
            try:
                if libc.setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            return work()

        def catch():
            try:
                box.append(enter())
            except Exception as error:  # for who waits for us
                box.append(error)
        thread = threading.Thread(target=catch)
        thread.start()
        thread.join()
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    # What can happen to the packets for a port:

    def drop_syn(self, port):
        """A dead host: connects hang."""
        self.nft("add rule inet f in tcp dport "
                 f"{port} tcp flags syn / syn,ack drop")

    def rst(self, port):
        """Each packet is answered with a reset, in mid-session too."""
        self.nft(f"add rule inet f in tcp dport {port} "
                 "reject with tcp reset")

    def blackhole(self, port):
        """Open connections go silent."""
        self.nft(f"add rule inet f in tcp dport {port} drop")
        self.nft(f"add rule inet f out tcp sport {port} drop")

    def lossy(self, port, percent):
        self.nft(f"add rule inet f in tcp dport {port} numgen random "
                 f"mod 100 lt {percent} drop")
        self.nft(f"add rule inet f out tcp sport {port} numgen random "
                 f"mod 100 lt {percent} drop")

    def mtu(self, octets):
        sh("ip", "-n", self.name, "link", "set", "far0", "mtu", str(octets))
        sh("ip", "link", "set", self.link, "mtu", str(octets))

    def kill_connections(self, port):
        sh("ip", "netns", "exec", self.name, "ss", "-K", "state",
           "connected", f"sport = :{port}")

    def clear(self):
        self.nft("flush chain inet f in")
        self.nft("flush chain inet f out")
