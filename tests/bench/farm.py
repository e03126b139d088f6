"""The programs that the measurements and the soak start: a farm of test mail
servers, the proxies in front of it, and the load."""

import json
import os
import resource
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(TOP, "build", "gcc-release")
PATIENCE = 30  # seconds after which what must happen has not
QUEUE_S = 15  # HAProxy's queue waits as long as weir's room does
SUM_RANGE = 1 << 256  # "combined" is a sum of SHA-256s


class Trouble(Exception):
    """Something did not start or did not answer: no result is possible."""


class Stopped(Exception):
    """SIGTERM came."""


def stop_when_told():
    """SIGTERM stops what was started, too."""
    def stop(*_):
        raise Stopped
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def program(name):
    """Where a program of ours is: WEIR, WEIRCTL, WEIR_SINK and WEIR_LOAD name
    other ones."""
    path = os.path.abspath(os.environ.get(name.upper().replace("-", "_"),
                                          os.path.join(BUILD, name)))
    if not os.access(path, os.X_OK):
        raise Trouble(f"{path} is not there: run make first")
    return path


def raise_limits():
    """As many open files as the system allows.  Returns how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(ask, what, patience=PATIENCE, step=0.05):
    end = time.monotonic() + patience
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Trouble(f"waited {patience} s in vain: {what}")
        time.sleep(step)


def anybody():
    """A TLS context that believes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def takes_mail(port, tls=False):
    """Whether the server at this port would take a message now; tls: from
    the first octet."""
    try:
        client = (smtplib.SMTP_SSL("127.0.0.1", port, timeout=5,
                                   context=anybody()) if tls
                  else smtplib.SMTP("127.0.0.1", port, timeout=5))
        with client:
            client.ehlo("ready.test")
            taken = client.mail("a@ready.test")[0] == 250
            client.rset()
            return taken
    except (OSError, smtplib.SMTPException):
        return False


def established(port):
    """Connections that clients have to a port of 127.0.0.1 (proc(5))."""
    count = 0
    with open("/proc/net/tcp", encoding="ascii") as file:
        next(file)
        for line in file:
            field = line.split(None, 4)
            count += field[3] == "01" and field[1].endswith(f":{port:04X}")
    return count


def ask_unix(path, line, until=b"\n", patience=PATIENCE):
    """Send a line to a UNIX socket, read until the answer ends so."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience)
        sock.connect(path)
        sock.sendall(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(until):
            part = sock.recv(65536)
            if not part:
                break
            answer += part
        return answer.decode(errors="replace")


class Place:
    """A directory that goes away at the end, whatever happens."""

    def __init__(self, keep=False):
        self.keep = keep
        self.path = tempfile.mkdtemp(prefix="weir-bench.")

    def __enter__(self):
        return self

    def __exit__(self, *what):
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)

    def file(self, name):
        return os.path.join(self.path, name)

    def write(self, name, text):
        with open(self.file(name), "w", encoding="ascii") as file:
            file.write(text)
        return self.file(name)


class Process:
    """A program in the foreground; its output goes to a file."""

    name = "?"

    def __init__(self, place):
        self.place = place
        self.child = None

    def argv(self):
        raise NotImplementedError

    def ready(self):
        raise NotImplementedError

    def start(self):
        with open(self.place.file(self.name + ".out"), "ab") as out:
            # pylint: disable-next=consider-using-with
            self.child = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_until(lambda: self.ready() or not self.alive(),
                   f"{self.name} is ready")
        if not self.alive():
            raise Trouble(f"{self.name} ended at once: {self.last_words()}")
        return self

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def stop(self, patience=PATIENCE):
        """End it in good order.  Returns its exit status, or None if it had
        to be killed."""
        if self.child is None:
            return None
        child, self.child = self.child, None
        if child.poll() is None:
            child.terminate()
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return None

    def last_words(self):
        try:
            with open(self.place.file(self.name + ".out"),
                      encoding="utf-8", errors="replace") as file:
                return file.read()[-2000:].strip()
        except OSError:
            return ""

    # --- what it has taken so far ---

    def cpu_s(self):
        """CPU time, user and system, of all threads that it has or had: the
        process's CPU clock (clock_getcpuclockid(3)), in nanoseconds where
        /proc/PID/stat has ticks."""
        return time.clock_gettime((~self.child.pid << 3) | 2)

    def rss(self):
        with open(f"/proc/{self.child.pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise Trouble(f"{self.name} has no VmRSS")

    def files(self):
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))


class Sink(Process):
    """weir-sink with a few MTAs; each is a dict of settings."""

    name = "sink"

    def __init__(self, place, mtas, each="", journal=False):
        super().__init__(place)
        self.mtas = [dict(mta, port=free_port()) for mta in mtas]
        self.each = each
        self.journal = self.place.file("sink.journal") if journal else None
        self.socket = place.file("sink.sock")

    def argv(self):
        argv = [program("weir-sink"), "--quiet", "--control", self.socket]
        if self.journal:
            argv += ["--journal", self.journal]
        if self.each:
            argv += ["--each", self.each]
        for mta in self.mtas:
            argv += ["--mta", ",".join(f"{k}={v}" for k, v in mta.items())]
        return argv

    def ready(self):
        try:
            return self.order("help").startswith("ok")
        except OSError:
            return False

    def order(self, line):
        answer = ask_unix(self.socket, line)
        if answer.startswith("error"):
            raise Trouble(f"sink: {line}: {answer}")
        return answer

    def stats(self):
        return json.loads(self.order("stats"))

    def mta(self, name):
        return json.loads(self.order(f"show {name}"))

    def open(self):
        return sum(mta["open"] for mta in self.stats()["mtas"])

    def slot_seconds(self):
        return sum(mta["slot_seconds"] for mta in self.stats()["mtas"])

    def settle(self):
        """Wait until no session is open, probes aside."""
        wait_until(lambda: self.open() <= len(self.mtas),
                   "sessions at the sink end")


class Weir(Process):
    """weir with one listener, in front of a Sink.  A section is a keyword:
    weir={...}, listener={...}, room={...}; backend: lines of each."""

    def __init__(self, place, sink, name="weir", backend="", **sections):
        super().__init__(place)
        self.name = name
        self.sink = sink
        self.port = free_port()
        self.socket = place.file(name + ".sock")
        self.log = place.file(name + ".log")
        self.backend = backend
        self.sections = sections
        self.tls = sections.get("listener", {}).get("tls") == "implicit"
        self.path = place.file(name + ".ini")

    def configure(self, without=None):
        """Write weir.ini; the MTA named is left out."""
        weir = {"hostname": "mx.test", "control_socket": self.socket,
                "log": self.log, **self.sections.get("weir", {})}
        listener = {"listen": f"127.0.0.1:{self.port}",
                    **self.sections.get("listener", {})}
        parts = [("weir", weir), ("listener in", listener)]
        parts += [(s, k) for s, k in self.sections.items()
                  if s not in ("weir", "listener")]
        text = ""
        for section, keys in parts:
            text += f"[{section}]\n"
            text += "".join(f"{k} = {v}\n" for k, v in keys.items())
        for mta in self.sink.mtas:
            if mta["name"] != without:
                text += (f"[backend {mta['name']}]\naddress = "
                         f"127.0.0.1:{mta['port']}\n{self.backend}\n")
        self.place.write(self.name + ".ini", text)

    def argv(self):
        self.configure()
        return [program("weir"), "-c", self.path]

    def ready(self):
        return takes_mail(self.port, self.tls)

    def ctl(self, *words):
        done = subprocess.run(
            [program("weirctl"), "-s", self.socket, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=PATIENCE, check=False)
        if done.returncode:
            raise Trouble(f"weirctl {' '.join(words)}: {done.stdout}")
        return done.stdout

    def log_lines(self):
        with open(self.log, "rb") as file:
            return sum(part.count(b"\n")
                       for part in iter(lambda: file.read(1 << 20), b""))


# What Mozilla's generator writes for HAProxy, "intermediate": weir's defaults
# come from there too.  With HAProxy's own, X25519 costs another round trip.
INTERMEDIATE = (
    "  ssl-default-bind-curves X25519:prime256v1:secp384r1\n"
    "  ssl-default-bind-ciphers ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:"
    "ECDHE-RSA-CHACHA20-POLY1305\n"
    "  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:"
    "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256\n"
    "  ssl-default-bind-options ssl-min-ver TLSv1.2\n")


class Haproxy(Process):
    """HAProxy, one thread, mode tcp, as one puts it before mail servers.
    With log: one line a session to a datagram socket that is drained.  With
    slots: not more than so many sessions to each server, the others queue.
    With cert: it terminates TLS.  With more: lines of the listener."""

    # pylint: disable-next=too-many-arguments
    def __init__(self, place, sink, name="haproxy", log=False, slots=0,
                 cert=None, more=(), maxconn=8000):
        super().__init__(place)
        self.cert = cert
        self.maxconn = maxconn
        self.more = more
        self.slots = slots
        self.name = name
        self.sink = sink
        self.port = free_port()
        self.drain = Drain(place.file(name + ".log.sock")) if log else None

    def argv(self):
        # Where slots are short its checks would take one more of each.
        how = f"maxconn {self.slots}" if self.slots else "check inter 1s"
        servers = "".join(
            f"  server {m['name']} 127.0.0.1:{m['port']} {how}\n"
            for m in self.sink.mtas)
        queue = f"  timeout queue {QUEUE_S}s\n" if self.slots else ""
        log_to = f"  log {self.drain.path} local0\n" if self.drain else ""
        log_on = "  log global\n  option tcplog\n" if self.drain else ""
        secure = INTERMEDIATE if self.cert else ""
        tls = f" ssl crt {self.cert}" if self.cert else ""
        path = self.place.write(self.name + ".cfg", (
            f"global\n  nbthread 1\n  maxconn {self.maxconn}\n" + secure + log_to +
            "defaults\n  mode tcp\n" + log_on +
            "  timeout connect 5s\n  timeout client 5m\n  timeout server 5m\n"
            + queue +
            f"listen smtp\n  bind 127.0.0.1:{self.port}{tls}\n"
            "  balance leastconn\n  option smtpchk EHLO mx.test\n" +
            "".join(f"  {line}\n" for line in self.more) + servers))
        return [shutil.which("haproxy"), "-db", "-f", path]

    def ready(self):
        return takes_mail(self.port, bool(self.cert))

    def log_lines(self):
        return self.drain.lines if self.drain else 0

    def stop(self, patience=PATIENCE):
        if self.child is not None and self.child.poll() is None:
            self.child.kill()  # it would wait for its clients
        status = super().stop(patience)
        if self.drain:
            self.drain.stop()
        return status


class Drain:
    """A local syslog: reads datagrams and counts them."""

    def __init__(self, path):
        self.path = path
        self.lines = 0
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.sock.bind(path)
        self.sock.settimeout(0.2)
        self.stopping = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping:
            try:
                self.sock.recv(65536)
                self.lines += 1
            except socket.timeout:
                continue

    def stop(self):
        self.stopping = True
        self.thread.join()
        self.sock.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


class Nginx(Process):
    """nginx's stream module, one process.  With slots: not more than so many
    sessions to each server; it closes the others (only the commercial one
    has a queue)."""

    MODULE = os.path.join(os.environ.get(
        "NGINX_MODULES", "/usr/lib/nginx/modules"), "ngx_stream_module.so")

    def __init__(self, place, sink, name="nginx", slots=0):
        super().__init__(place)
        self.slots = slots
        self.name = name
        self.sink = sink
        self.port = free_port()

    @classmethod
    def installed(cls):
        return bool(shutil.which("nginx")) and os.path.exists(cls.MODULE)

    def argv(self):
        limit = f" max_conns={self.slots}" if self.slots else ""
        servers = "".join(f"server 127.0.0.1:{m['port']}{limit} max_fails=0;"
                          for m in self.sink.mtas)
        path = self.place.write(self.name + ".conf", (
            f"load_module {self.MODULE};\ndaemon off;\nmaster_process off;\n"
            f"pid {self.place.file(self.name + '.pid')};\n"
            "error_log stderr crit;\nworker_rlimit_nofile 16000;\n"
            "events { worker_connections 16000; }\n"
            f"stream {{ upstream farm {{ least_conn; {servers} }}\n"
            f"server {{ listen 127.0.0.1:{self.port}; proxy_pass farm; }} }}"
            "\n"))
        return [shutil.which("nginx"), "-e", "stderr", "-c", path]

    def ready(self):
        return takes_mail(self.port)

    def log_lines(self):
        return 0


def favour(nice):
    """Give us, and all that we start, this priority against all others that
    the machine has to do.  Where the kernel groups processes by session (see
    sched(7), autogroup) that of a process counts only within its group.
    False: only root may, and nothing has changed."""
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(nice))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


SEED = int.from_bytes(os.urandom(4), "big")
SEED_LOCK = threading.Lock()


def next_seed():
    """Each load has messages of its own: a seed makes their ids."""
    global SEED  # pylint: disable=global-statement
    with SEED_LOCK:
        SEED += 1
        return SEED


def load_argv(port, *options):
    return [program("weir-load"), "--json", "-", "--seed", str(next_seed()),
            *options, f"127.0.0.1:{port}"]


def load(port, *options, patience=600):
    """Run weir-load to its end.  Returns its report."""
    done = subprocess.run(load_argv(port, *options), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=patience, check=False)
    if done.returncode not in (0, 2):
        raise Trouble(f"weir-load: {done.stderr.strip()}")
    return json.loads(done.stdout)


class Load:
    """A weir-load that runs while something else is done."""

    def __init__(self, port, *options):
        # pylint: disable-next=consider-using-with
        self.child = subprocess.Popen(
            load_argv(port, *options), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def report(self, patience=600):
        """Wait for its end."""
        out, err = self.child.communicate(timeout=patience)
        if self.child.returncode not in (0, 2):
            raise Trouble(f"weir-load: {err.strip()}")
        return json.loads(out)

    def stop(self):
        """Let it begin nothing new; its sessions end as they are."""
        self.child.send_signal(signal.SIGINT)

    def forget(self):
        """Its times shall be those from now on."""
        self.child.send_signal(signal.SIGUSR1)

    def cut(self):
        """End it at once.  Its report."""
        self.stop()
        time.sleep(0.2)
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
        return self.report()

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.communicate()


def combined(report):
    return int(report["combined"], 16)
