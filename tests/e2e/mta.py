"""Postfix, Exim and OpenSMTPD on loopback, each with a maildir to count.

Everything for local.test is delivered, everything else refused.  The
servers run from the private packages of world.py.  With tls=PAIR they offer
STARTTLS, and speak TLS from the first octet on a port of its own; the users
of USERS may log in where auth=True.  PostfixOut and EximOut send what they
are given to a port, as a mail server does.
"""

import glob
import os
import pwd
import resource
import shutil
import subprocess

import lib
import world

USERS = {"tester": "sesame-4711"}


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
    """smtpd on `port`, postscreen on `screen`, and each once more behind
    the PROXY protocol; with TLS from the start on `smtps` and
    `smtps_proxy`.  proxy=True puts that before `port` and `screen` too.

    more={key: value} are further lines for main.cf.
    """

    name = "postfix"
    port = 2501
    screen = 2503
    port_proxy = 2502
    screen_proxy = 2504
    smtps = 2505
    smtps_proxy = 2506
    QUEUES = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")

    def start(self):
        set_ = self.settings.get
        entry = pwd.getpwnam("vmail")
        more = dict(self.tls(), **self.sasl(), **set_("more", {}))
        self.configure("main.cf", "etc/main.cf", uid=entry.pw_uid,
                       gid=entry.pw_gid, per_client=set_("per_client", 0),
                       processes=set_("process_limit", 100),
                       screen_access=set_("screen_access", ""),
                       timeout=set_("timeout", "300s"),
                       mynetworks=set_("mynetworks", ""),
                       proxy="haproxy" if set_("proxy") else "",
                       xclient=set_("xclient", ""),
                       domains=set_("domains", "local.test"),
                       relayhost=set_("relayhost", ""),
                       more="\n".join(f"{key} = {value}"
                                      for key, value in more.items()),
                       refused=self.refuse(
                           "check_recipient_access inline:"
                           "{ { @refused@@local.test = 450 4.2.1 not now } },"))
        self.configure("master.cf", "etc/master.cf", smtpd=self.port,
                       screen=self.screen, screened=set_("screened", "-"),
                       processes=set_("smtpd_processes", "-"),
                       services="\n".join(self.services()))
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

    def services(self):
        """The ports that not every test wants."""
        if not self.settings.get("many"):
            return
        header = " -o {name}_upstream_proxy_protocol=haproxy"
        yield (f"127.0.0.1:{self.port_proxy} inet n - n - - smtpd"
               + header.format(name="smtpd"))
        yield (f"127.0.0.1:{self.screen_proxy} inet n - n - 1 postscreen"
               + header.format(name="postscreen")
               + " -o postscreen_cache_map="
               + f"btree:{self.dir}/data/postscreen_cache2")
        if self.settings.get("tls"):
            wrapped = " -o smtpd_tls_wrappermode=yes"
            yield (f"127.0.0.1:{self.smtps} inet n - n - - smtpd" + wrapped)
            yield (f"127.0.0.1:{self.smtps_proxy} inet n - n - - smtpd"
                   + wrapped + header.format(name="smtpd"))

    def tls(self):
        pair = self.settings.get("tls")
        return {"smtpd_tls_security_level": "may",
                "smtpd_tls_chain_files": f"{pair.key} {pair.cert}",
                } if pair else {}

    def sasl(self):
        """Cyrus SASL with a database of its own."""
        if not self.settings.get("auth"):
            return {}
        etc = os.path.join(self.dir, "etc")
        os.makedirs(os.path.join(etc, "sasl"), exist_ok=True)
        base = os.path.join(etc, "sasldb2")
        with open(os.path.join(etc, "sasl", "smtpd.conf"), "w",
                  encoding="ascii") as file:
            file.write("pwcheck_method: auxprop\nauxprop_plugin: sasldb\n"
                       f"sasldb_path: {base}\nmech_list: {self.MECHANISMS}\n")
        for name, secret in USERS.items():
            subprocess.run(
                ("/usr/sbin/saslpasswd2", "-c", "-p", "-f", base, "-u",
                 "pf.mx.test", name), input=secret.encode(), check=True)
        os.chmod(base, 0o644)
        return {"smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_local_domain": "pf.mx.test",
                "smtpd_sasl_security_options": "noanonymous",
                "smtpd_sasl_authenticated_header": "yes"}

    MECHANISMS = "PLAIN LOGIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256"

    def log(self):
        with open(os.path.join(self.dir, "maillog"), encoding="utf-8",
                  errors="replace") as file:
            return file.read()

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


class PostfixOut(Postfix):
    """Takes everything from everybody, and sends it to to_port.

    level: what smtp_tls_security_level may be; wrapped=True: TLS from the
    start; source: the address it comes from.
    """

    name = "postfix-out"
    port = 2531
    screen = 2533

    def __init__(self, to_port, level="encrypt", wrapped=False,
                 source="127.0.3.7", more=None):
        self.source = source
        super().__init__(
            mynetworks="127.0.0.0/8", domains="",
            relayhost=f"[127.0.0.1]:{to_port}",
            more=dict({"smtp_tls_security_level": level,
                       "smtp_tls_wrappermode": "yes" if wrapped else "no",
                       "smtp_bind_address": source,
                       "smtp_helo_name": "postfix-out.test",
                       "smtp_connection_cache_on_demand": "no"},
                      **(more or {})))


AUTHENTICATORS = """
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if eq{$auth3}{${lookup{$auth2}lsearch{@users@}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = <| Username: | Password:
  server_condition = ${if eq{$auth2}{${lookup{$auth1}lsearch{@users@}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${lookup{$auth1}lsearch{@users@}{$value}fail}
  server_set_id = $auth1
"""


class Exim(Server):
    """many=True: behind the PROXY protocol on port_proxy too; with TLS,
    from the start on `smtps` and `smtps_proxy`."""

    name = "exim"
    port = 2511
    port_proxy = 2512
    smtps = 2515
    smtps_proxy = 2516
    user = "Debian-exim"

    def start(self):
        for sub in ("spool", "log"):
            self.own(sub, "Debian-exim")
        set_ = self.settings.get
        many = ("${if inlist{$received_port}{"
                f"{self.port_proxy}:{self.smtps_proxy}}}{{127.0.0.1}}}}")
        pair = set_("tls")
        path = self.configure("exim.conf", "exim.conf", ports=self.ports(),
                              accept_max=set_("accept_max", 200),
                              per_host=set_("per_host", 0),
                              hosts_proxy=set_("proxy_from", "") or (
                                  many if set_("many") else ""),
                              receive_timeout=set_("receive_timeout", "5m"),
                              per_connection=set_("per_connection", 1000),
                              tls_hosts="*" if pair else "",
                              tls=self.tls(pair) if pair else "",
                              relay_from=set_("relay_from", ""),
                              relay=self.relay(), out=self.out(),
                              authenticators=self.authenticators(),
                              refused=self.refuse(
                                  "deny local_parts = @refused@"))
        self.launch("/usr/sbin/exim4", "-C", path, "-bdf", "-q2s",
                    "-oP", os.path.join(self.dir, "pid"))

    def ports(self):
        extra = ([self.port_proxy, self.smtps_proxy]
                 if self.settings.get("many") else [])
        extra += [self.smtps] if self.settings.get("tls") else []
        return " : ".join(str(port) for port in [self.port] + extra)

    def tls(self, pair):
        return "\n".join((
            f"tls_certificate = {pair.cert}", f"tls_privatekey = {pair.key}",
            f"tls_on_connect_ports = {self.smtps} : {self.smtps_proxy}"))

    def authenticators(self):
        if not self.settings.get("auth"):
            return ""
        users = os.path.join(self.dir, "users")
        with open(users, "w", encoding="ascii") as file:
            file.writelines(f"{name}: {secret}\n"
                            for name, secret in USERS.items())
        return AUTHENTICATORS.replace("@users@", users)

    def relay(self):
        return ""

    def out(self):
        return ""

    def queued(self):
        return len(glob.glob(self.dir + "/spool/input/**/*-H",
                             recursive=True))

    def log(self):
        path = os.path.join(self.dir, "log", "main")
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


class EximOut(Exim):
    """Takes everything from everybody, and sends it to to_port, over TLS
    only (wrapped=True: from the start; tls=False: never)."""

    name = "exim-out"
    port = 2541

    def __init__(self, to_port, wrapped=False, tls=True, source="127.0.3.8",
                 sni="mx.test"):
        super().__init__(relay_from="127.0.0.0/8")
        self.source = source
        self.to_port = to_port
        self.options = [f"interface = {source}",
                        "helo_data = exim-out.test", "hosts_try_dane ="]
        if wrapped:
            self.options.append("protocol = smtps")
        self.options += ([f"tls_sni = {sni}", "hosts_require_tls = *",
                          "tls_verify_certificates ="]
                         if tls else ["hosts_avoid_tls = *"])

    def relay(self):
        return f"""
away:
  driver = manualroute
  route_list = * 127.0.0.1::{self.to_port} byname
  self = send
  transport = out
"""

    def out(self):
        return "\n  ".join(self.options)


class OpenSmtpd(Server):
    """descriptors=N: it takes about N/2 - 16 sessions, and leaves who comes
    then without a greeting.

    With tls=PAIR it offers STARTTLS, as Debian's does: built against a
    library that it does not know, it fails every handshake.
    """

    name = "opensmtpd"
    port = 2521
    port_proxy = 2522
    bdat = False
    pipelining = False

    def start(self):
        set_ = self.settings.get
        pair = set_("tls")
        key = os.path.join(self.dir, "key.pem")
        if pair:
            shutil.copy(pair.key, key)
            os.chmod(key, 0o600)
        tls = "tls pki os" if pair else ""
        path = self.configure("smtpd.conf", "smtpd.conf", port=self.port,
                              proxy="proxy-v2" if set_("proxy") else "",
                              pki=f'pki os cert "{pair.cert}"\n'
                              f'pki os key "{key}"' if pair else "",
                              tls=tls,
                              listen="listen on 127.0.0.1 port "
                              f"{self.port_proxy} {tls} hostname os.mx.test "
                              "proxy-v2" if set_("many") else "",
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

    def log(self):
        with open(os.path.join(self.dir, "output"), encoding="utf-8",
                  errors="replace") as file:
            return file.read()

    def __init__(self, **settings):
        super().__init__(**settings)
        shutil.rmtree("/var/spool/smtpd", ignore_errors=True)


ALL = (Postfix, Exim, OpenSmtpd)
