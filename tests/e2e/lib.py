"""What every test uses: ports, waiting, cleaning up, needing root."""

import os
import signal
import socket
import subprocess
import time
import unittest

import world

PATIENCE = 60  # seconds after which something that must happen has not


def needs_root(test):
    """Decorator: skip a test or class that cannot run without root."""
    return unittest.skipUnless(world.PRIVATE, "needs root")(test)


def wait_until(ask, what, patience=PATIENCE, step=0.02):
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + patience
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience} s in vain: {what}")
        time.sleep(step)


def free_port(address="127.0.0.1"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        return sock.getsockname()[1]


def connects(port, address="127.0.0.1"):
    try:
        socket.create_connection((address, port), timeout=5).close()
        return True
    except OSError:
        return False


def processes():
    """(pid, parent, session) of every living process we can see."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
                field = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if field[0] not in "ZX":
            yield int(pid), int(field[1]), int(field[3])


def session_members(session):
    """Its processes and their children, who may have left for a session of
    their own (OpenSMTPD's deliveries do)."""
    living = list(processes())
    found = {pid for pid, _, sid in living if sid == session}
    while True:
        more = {pid for pid, parent, _ in living if parent in found} - found
        if not more:
            return found
        found |= more


def kill_session(session):
    """kill -9 to every process of a session that one of us started, at one
    instant: all are stopped first, so that none sees another one dead (a
    delivery whose reader has gone takes what it has for the whole)."""
    stopped, calm = set(), 0
    while calm < 3:  # a signal takes a moment, and a fork may slip in
        fresh = session_members(session) - stopped
        calm = 0 if fresh else calm + 1
        for pid in fresh:
            send_signal(pid, signal.SIGSTOP)
        stopped |= fresh
        time.sleep(0.01)
    for pid in stopped:
        send_signal(pid, signal.SIGKILL)


def send_signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Case(unittest.TestCase):
    """A test that stops what it started, last first, even if it fails."""

    def start(self, thing):
        """thing.start() now, thing.stop() at the end of the test."""
        self.addCleanup(thing.stop)
        thing.start()
        return thing

    def command(self, *argv, patience=PATIENCE * 3, **more):
        """Run a program to its end: its CompletedProcess, output as text."""
        return subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=more.pop("stdin", subprocess.DEVNULL), text=True,
            errors="replace", timeout=patience, check=False, **more)
