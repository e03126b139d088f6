"""A machine of our own for the tests.

As root, run.py starts itself again in new mount, network, PID and IPC
namespaces.  There
  - the mail servers and clients of packages.private lie over /usr, /etc and
    /var, unpacked, not installed: they conflict with each other, and nothing
    of them is to stay on the host;
  - lo is ours: every port is free, and so are the addresses in 127.0.0.0/8;
  - everything dies with the first process, whatever a test forgot.

Without root the tests run on the host's own loopback, and those that need
mail servers or network namespaces say so and are skipped.
"""

import ctypes
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
WORK = os.environ.get("WEIR_E2E_WORK", "")
PRIVATE = os.environ.get("WEIR_E2E_PRIVATE") == "1"

USERS = {  # the users that the packages' installation would have made
    "postfix": 970, "postdrop": 971, "Debian-exim": 972,
    "opensmtpd": 973, "opensmtpq": 974, "vmail": 975,
}


def listed(name):
    with open(os.path.join(HERE, name), encoding="ascii") as file:
        return [line.strip() for line in file
                if line.strip() and not line.startswith("#")]


def run(*argv, **more):
    return subprocess.run(argv, check=True, **more)


def fetch(store):
    """Download what packages.private names, and what the host lacks for it,
    into `store`; packages already there are not fetched again."""
    os.makedirs(os.path.join(store, "partial"), exist_ok=True)
    stamp = os.path.join(store, "complete")
    want = " ".join(listed("packages.private"))
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as file:
            if file.read() == want:
                return
    apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    for name in listed("packages.private"):
        argv = apt + ["install", "-y", "--no-install-recommends",
                      "--download-only", "--reinstall",
                      "-o", "Dir::Cache::archives=" + store, name]
        if subprocess.run(argv, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode:
            run(*apt, "update")
            run(*argv, stdout=subprocess.DEVNULL)
    with open(stamp, "w", encoding="ascii") as file:
        file.write(want)


def enter():
    """Run this program again in its own namespaces; its exit status."""
    work = tempfile.mkdtemp(prefix="weir-e2e.")
    store = os.environ.get("MTA_ROOTS") or os.path.join(TOP, "build", "debs")
    fetch(store)
    env = dict(os.environ, WEIR_E2E_PRIVATE="1", WEIR_E2E_WORK=work,
               WEIR_E2E_STORE=store)
    libc = ctypes.CDLL(None)
    # whoever ends us ends the namespaces, and all that runs in them
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return subprocess.call(
            ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork",
             "--kill-child", "--mount-proc", "--propagation", "private",
             # process 1 has to reap what the mail servers leave behind
             "sh", "-c", '"$@"; exit $?', "sh", sys.executable] + sys.argv,
            env=env,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))  # PDEATHSIG
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(work, ignore_errors=True)


def overlay(path, lower, upper):
    """Put `lower` over the host's `path`; writes go to `upper`."""
    layers = ":".join(x for x in (lower, path) if os.path.isdir(x))
    run("mount", "-t", "overlay", "weir-e2e", "-o",
        f"lowerdir={layers},upperdir={upper}/up,workdir={upper}/work", path)


def furnish():
    """Inside the namespaces: unpack and mount, make users, set lo up."""
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "weir-e2e", WORK)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "weir-e2e", "/run")
    tree = os.path.join(WORK, "packages")
    for deb in sorted(glob.glob(os.path.join(
            os.environ["WEIR_E2E_STORE"], "*.deb"))):
        run("dpkg-deb", "-x", deb, tree)
    for name in ("bin", "sbin", "lib"):  # Debian's merged /usr
        if os.path.isdir(os.path.join(tree, name)):
            shutil.copytree(os.path.join(tree, name),
                            os.path.join(tree, "usr", name), symlinks=True,
                            dirs_exist_ok=True)
    for name in ("usr", "etc", "var"):
        upper = os.path.join(WORK, "upper", name)
        os.makedirs(upper + "/up")
        os.makedirs(upper + "/work")
        overlay("/" + name, os.path.join(tree, name), upper)
    with open("/etc/passwd", "a", encoding="ascii") as file:
        for name, number in USERS.items():
            file.write(f"{name}:x:{number}:{number}::/nonexistent:"
                       "/usr/sbin/nologin\n")
    with open("/etc/group", "a", encoding="ascii") as file:
        for name, number in USERS.items():
            file.write(f"{name}:x:{number}:\n")
    with open("/etc/resolv.conf", "w", encoding="ascii") as file:
        file.write("# no name server: nothing here asks one\n")


def work():
    """The folder of this run, on memory when it is ours."""
    global WORK
    if not WORK:
        WORK = tempfile.mkdtemp(prefix="weir-e2e.")
    return WORK
