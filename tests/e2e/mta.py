"""Postfix, Exim and OpenSMTPD on loopback, each with a maildir to count.

Everything for local.test is delivered, everything else refused.  The
servers run from the private packages of world.py.
"""

import glob
import os
import pwd
import resource
import shutil
import subprocess

import lib
import world


class Server:
    """start, kill (-9, with all its children), stop; start again at will."""

    name = ""
    port = 0
    bdat = True          # offers CHUNKING
    pipelining = True    # offers PIPELINING
    user = "vmail"

    def __init__(self, **settings):
        self.settings = settings
        self.dir = os.path.join(world.work(), self.name)
        self.child = None
        shutil.rmtree(self.dir, ignore_errors=True)
        for sub in ("mail", "spool", "log"):
            os.makedirs(os.path.join(self.dir, sub))
        self.own("mail", self.user)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def mail(self):
        return os.path.join(self.dir, "mail")

    def own(self, sub, user):
        entry = pwd.getpwnam(user)
        os.chown(os.path.join(self.dir, sub), entry.pw_uid, entry.pw_gid)

    def configure(self, template, target, **words):
        """Fill the @WORDS@ of a file of mta/ in."""
        with open(os.path.join(world.HERE, "mta", template),
                  encoding="ascii") as file:
            text = file.read()
        for word, value in dict(words, dir=self.dir).items():
            text = text.replace(f"@{word}@", str(value))
        path = os.path.join(self.dir, target)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return path

    def refuse(self, rule):
        """The rule, if there is a local part to be refused."""
        name = self.settings.get("refused")
        return rule.replace("@refused@", name, 1) if name else ""

    def launch(self, *argv, **more):
        with open(os.path.join(self.dir, "output"), "ab") as output:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, **more)
        lib.wait_until(lambda: lib.connects(self.port) or self.ended(),
                       f"{self.name} listens on {self.port}")

    def ended(self):
        if self.child.poll() is None:
            return False
        with open(os.path.join(self.dir, "output"),
                  encoding="utf-8", errors="replace") as file:
            raise AssertionError(f"{self.name} ended: " + file.read()[-2000:])

    def members(self):
        return lib.session_members(self.child.pid)

    def kill(self):
        """As a power failure would: no process of it lives on."""
        def none_left():
            lib.kill_session(self.child.pid)
            self.child.poll()
            return not self.members()
        lib.wait_until(none_left, f"{self.name} is dead")

    def stop(self):
        if self.child:
            self.kill()
            self.child.wait()
            self.child = None

    def queued(self):
        """Messages accepted and not yet delivered."""
        raise NotImplementedError

    def settle(self, patience=180):
        lib.wait_until(lambda: not self.queued(),
                       f"{self.name} has delivered all", patience, 0.1)


class Postfix(Server):
    """smtpd on `port`, postscreen on `screen`."""

    name = "postfix"
    port = 2501
    screen = 2503
    QUEUES = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")

    def start(self):
        set_ = self.settings.get
        entry = pwd.getpwnam("vmail")
        self.configure("main.cf", "etc/main.cf", uid=entry.pw_uid,
                       gid=entry.pw_gid, per_client=set_("per_client", 0),
                       processes=set_("process_limit", 100),
                       screen_access=set_("screen_access", ""),
                       timeout=set_("timeout", "300s"),
                       mynetworks=set_("mynetworks", ""),
                       proxy="haproxy" if set_("proxy") else "",
                       refused=self.refuse(
                           "check_recipient_access inline:"
                           "{ { @refused@@local.test = 450 4.2.1 not now } },"))
        self.configure("master.cf", "etc/master.cf", smtpd=self.port,
                       screen=self.screen, screened=set_("screened", "-"),
                       processes=set_("smtpd_processes", "-"))
        etc = os.path.join(self.dir, "etc")
        open(os.path.join(etc, "dynamicmaps.cf"), "a").close()
        # postlogd waits for itself if its file is missing
        open(os.path.join(self.dir, "maillog"), "a").close()
        os.makedirs(os.path.join(self.dir, "data"), exist_ok=True)
        self.own("data", "postfix")
        spool = os.path.join(self.dir, "spool")
        for sub in ("active", "bounce", "corrupt", "defer", "deferred",
                    "flush", "hold", "incoming", "private", "saved", "trace"):
            os.makedirs(os.path.join(spool, sub), exist_ok=True)
            os.chmod(os.path.join(spool, sub), 0o700)
            self.own("spool/" + sub, "postfix")
        os.makedirs(os.path.join(spool, "pid"), exist_ok=True)
        drop = pwd.getpwnam("postdrop").pw_gid
        for sub, mode in (("maildrop", 0o730), ("public", 0o710)):
            path = os.path.join(spool, sub)
            os.makedirs(path, exist_ok=True)
            os.chown(path, pwd.getpwnam("postfix").pw_uid, drop)
            os.chmod(path, mode)
        self.launch("/usr/lib/postfix/sbin/master", "-d", "-c", etc)

    def queued(self):
        """A file without x is one that was not yet whole, so not accepted,
        when Postfix was killed: it lies there for a day and a half."""
        return sum(self.whole(os.path.join(folder, name))
                   for queue in self.QUEUES for folder, _, files in
                   os.walk(os.path.join(self.dir, "spool", queue))
                   for name in files)

    @staticmethod
    def whole(path):
        try:
            return os.stat(path).st_mode & 0o100 != 0
        except FileNotFoundError:
            return False

    @property
    def screen_address(self):
        return f"127.0.0.1:{self.screen}"


class Exim(Server):
    name = "exim"
    port = 2511
    user = "Debian-exim"

    def start(self):
        for sub in ("spool", "log"):
            self.own(sub, "Debian-exim")
        set_ = self.settings.get
        path = self.configure("exim.conf", "exim.conf", port=self.port,
                              accept_max=set_("accept_max", 200),
                              per_host=set_("per_host", 0),
                              hosts_proxy=set_("proxy_from", ""),
                              receive_timeout=set_("receive_timeout", "5m"),
                              per_connection=set_("per_connection", 1000),
                              refused=self.refuse(
                                  "deny local_parts = @refused@"))
        self.launch("/usr/sbin/exim4", "-C", path, "-bdf", "-q2s",
                    "-oP", os.path.join(self.dir, "pid"))

    def queued(self):
        return len(glob.glob(self.dir + "/spool/input/**/*-H",
                             recursive=True))


class OpenSmtpd(Server):
    """descriptors=N: it takes about N/2 - 16 sessions, and leaves who comes
    then without a greeting."""

    name = "opensmtpd"
    port = 2521
    bdat = False
    pipelining = False

    def start(self):
        path = self.configure("smtpd.conf", "smtpd.conf", port=self.port,
                              proxy="proxy-v2" if self.settings.get("proxy")
                              else "",
                              refused=self.refuse(
                                  'match from any for rcpt-to '
                                  '"@refused@@local.test" reject'))
        os.chmod("/var/lib/opensmtpd/empty", 0o711)
        self.launch("/usr/sbin/smtpd", "-d", "-f", path,
                    preexec_fn=self.limit)

    def limit(self):
        most = self.settings.get("descriptors")
        if most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def queued(self):
        return sum(len(files) for queue in ("incoming", "queue")
                   for _, _, files in os.walk("/var/spool/smtpd/" + queue))

    def __init__(self, **settings):
        super().__init__(**settings)
        shutil.rmtree("/var/spool/smtpd", ignore_errors=True)


ALL = (Postfix, Exim, OpenSmtpd)
