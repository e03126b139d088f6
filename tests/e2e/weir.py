"""weir under test: its configuration, its life, its log, its control."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading

import lib
import world

BUILD = os.path.join(world.TOP, "build", "gcc-release")


def program(name):
    return os.path.abspath(os.environ.get(name.upper().replace("-", "_"),
                                          os.path.join(BUILD, name)))


@functools.cache
def sanitized():
    """Is weir built with AddressSanitizer?  Its memory is not weir's, and
    it must be the first library."""
    with open(program("weir"), "rb") as file:
        return b"__asan_init" in file.read()


COUNT = itertools.count(1)
TROUBLE = re.compile(r"AddressSanitizer|LeakSanitizer|runtime error:|"
                     r"ThreadSanitizer|Assertion .* failed|core dumped")

STANDARD = {
    "weir": {"hostname": "mx.test", "workers": 2, "log": "stderr",
             "log_format": "kv"},
    # a test that is about limits sets them; no other one is to meet them
    "admission": {"max_sessions": 5000, "max_per_source": 0,
                  "max_per_aggregate": 0, "max_percent_per_source": "0%",
                  "tarpit": "0"},
    "timeouts": {},
    "tls": {},
    # the servers here store whatever they are sent
    "farm": {"relay_guard": "off"},
    # nearly all clients come from one address
    "room": {"per_source": 1000},
    "health": {"interval": "1s", "down_interval": "100ms", "rise": 1,
               "eject": "500ms", "eject_max": "1s"},
}


def fields(line):
    """key=value, value as it is or in quotes with \\-escapes, to a dict;
    words without a value are under ""."""
    out = {"": []}
    for match in re.finditer(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|\S*)|(\S+)', line):
        key, value, word = match.groups()
        if key is None:
            out[""].append(word)
        else:
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            out[key] = value
    return out


class Weir:
    """One weir.  `backends` is a list of (name, thing with .address or
    "host:port", {keys}); sections are given by name: farm={"tries": 1}.
    `listeners` are further ones, name -> {keys}; ports[name] is where."""

    def __init__(self, backends, listen=None, listener=None, wrap=(),
                 preexec=None, env=None, stderr=None, listeners=None,
                 **sections):
        self.dir = os.path.join(world.work(), f"weir-{next(COUNT)}")
        os.makedirs(self.dir)
        self.control = os.path.join(self.dir, "control.sock")
        self.port = lib.free_port()
        self.listen = listen or [f"127.0.0.1:{self.port}"]
        self.listener = listener or {}
        self.listeners = listeners or {}
        self.ports = {name: lib.free_port() for name in self.listeners}
        self.backends = backends
        self.sections = sections
        self.wrap = list(wrap)
        self.preexec = preexec
        self.env = dict(os.environ, **(env or {}))
        self.stderr = stderr
        self.child = None
        self.reader = None
        self.lines = []
        self.path = os.path.join(self.dir, "weir.ini")

    # --- configuration ---

    def text(self):
        sections = {name: dict(keys) for name, keys in STANDARD.items()}
        for name, keys in self.sections.items():
            sections[name].update(keys)
        sections["weir"].setdefault("control_socket", self.control)
        out = []

        def section(title, keys):
            out.append(f"[{title}]")
            for key, value in keys.items():
                values = value if isinstance(value, list) else [value]
                out.extend(f"{key} = {one}" for one in values)
            out.append("")

        for name, keys in sections.items():
            section(name, keys)
        section("listener in", dict(self.listener, listen=self.listen))
        for name, keys in self.listeners.items():
            section("listener " + name, dict(
                {"listen": f"127.0.0.1:{self.ports[name]}"}, **keys))
        for name, thing, keys in self.backends:
            section("backend " + name,
                    dict({"address": getattr(thing, "address", thing),
                          "max_sessions": 100}, **keys))
        return "\n".join(out)

    # --- life ---

    def write(self):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(self.text())

    def reload(self):
        """With the configuration as it is now; what the log says of it."""
        self.write()
        before = len(self.log("event=reload", "result="))
        self.ctl("reload")
        return lib.wait_until(
            lambda: self.log("event=reload", "result=")[before:],
            "weir says what came of the reload")[-1]

    def launch(self):
        self.write()
        self.child = subprocess.Popen(
            self.wrap + [program("weir"), "-c", self.path],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.stderr if self.stderr is not None
            else subprocess.PIPE, env=self.env, preexec_fn=self.preexec,
            start_new_session=True)
        if self.stderr is None:
            self.reader = threading.Thread(target=self.read, daemon=True)
            self.reader.start()

    def read(self):
        for raw in self.child.stderr:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self.lines.append(line)
            if os.environ.get("WEIR_TRACE"):
                print("weir: " + line, flush=True)

    def start(self):
        self.launch()
        lib.wait_until(self.answers, "weir's control socket answers")
        return self

    def answers(self):
        if self.child.poll() is not None:
            self.reader.join(10)
            raise AssertionError(f"weir ended with {self.child.returncode}: "
                                 + "\n".join(self.lines[-20:]))
        # To connect is not enough: the ring of a weir that was killed may
        # outlive it for a moment, and with it the socket.
        return "state: " in self.ctl("show", "info", check=False)

    def up(self, count=None):
        """Wait until the probes have found `count` backends well."""
        want = len(self.backends) if count is None else count

        def ready():
            return sum(self.is_up(row) for row in self.rows()) >= want
        lib.wait_until(ready, f"{want} backends are up")
        return self

    @staticmethod
    def is_up(row):
        return row["state"] == "up"

    def stop(self, expect=0, patience=60):
        """SIGTERM, and it must end well."""
        if not self.child:
            return
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(patience)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError("weir did not end on SIGTERM") from None
        self.finish()
        if code != expect:
            raise AssertionError(f"weir ended with {code}: "
                                 + "\n".join(self.lines[-20:]))

    def finish(self):
        """After its end: nothing in the log may be a fault of its own."""
        if self.reader:
            self.reader.join(30)
            self.child.stderr.close()
        self.child = None
        bad = [line for line in self.lines if TROUBLE.search(line)]
        if bad:
            raise AssertionError("\n".join(self.lines[-60:]))
        shutil.rmtree(self.dir, ignore_errors=True)

    def kill(self):
        self.child.kill()
        self.child.wait()
        self.finish()

    @property
    def pid(self):
        return self.child.pid

    def rss(self):
        """Resident memory, octets; of no use with a sanitizer, then 0."""
        if sanitized():
            return 0
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # --- control ---

    def ctl(self, *words, check=True):
        done = subprocess.run(
            [program("weirctl"), "-s", self.control, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=60, check=False)
        if check and done.returncode:
            raise AssertionError(f"weirctl {words}: {done.stdout}")
        return done.stdout

    def info(self):
        """`show info` as a dict; numbers as int."""
        out = {}
        for line in self.ctl("show", "info").splitlines():
            match = re.match(r"([\w.]+)\s*[:=\s]\s*(\S.*)?$", line.strip())
            if match:
                value = (match.group(2) or "").split(" ")[0]
                out[match.group(1)] = (int(value) if value.isdigit()
                                       else match.group(2))
        return out

    def room(self):
        """`show room json`: who waits for a slot."""
        room = json.loads(self.ctl("show", "room", "json"))
        return dict(room, saturated=room["saturated"] == "yes")

    def rows(self):
        """`show backends json`: one dict for each backend."""
        answer = json.loads(self.ctl("show", "backends", "json"))
        return answer["backends"]

    def row(self, name):
        return next(row for row in self.rows() if row.get("name") == name)

    # --- log ---

    def log(self, *words):
        """The log lines, as dicts, that contain all the words."""
        return [fields(line) for line in list(self.lines)
                if all(word in line for word in words)]
