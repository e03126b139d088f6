"""Clients that other people wrote, each once through weir to each server."""

import os
import smtplib

import lib
import mail
import mta
import weir
import world

PERL = """my $s = Net::SMTP->new("127.0.0.1", Port => $ENV{P},
  Hello => "client.test") or die "connect"; local $/;
open my $f, "<", $ENV{M} or die; binmode $f; my $m = <$f>; $m =~ s/\\r\\n/\\n/g;
$s->mail($ENV{F}) or die "mail"; $s->to("u\\@local.test") or die "rcpt";
$s->data($m) or die "data"; $s->quit or die "quit";"""


@lib.needs_root
class Clients(lib.Case):
    def through(self, server):
        server = self.start(server)
        proxy = self.start(weir.Weir([(server.name, server, {})])).up()
        port = str(proxy.port)
        sent = []
        folder = os.path.join(world.work(), "clients")
        os.makedirs(folder, exist_ok=True)

        def client(name, call):
            with self.subTest(client=name, server=server.name):
                # s-nail writes its own header, so the address names it too
                message = mail.Message(f"{server.name}-{name}", 3000)
                path = os.path.join(folder, message.ident)
                with open(path, "wb") as file:
                    file.write(message.data)
                # swaks adds the CRs, and CRLF at the end
                with open(path + ".lf", "wb") as file:
                    file.write(message.data.replace(b"\r\n", b"\n")[:-1])
                done = call(message, path, message.ident + "@sender.test")
                if done is not None:
                    self.assertEqual(done.returncode, 0, done.stdout)
                sent.append(message)

        def swaks(*more):
            return lambda m, path, sender: self.command(
                "swaks", "--silent", "2", "-s", "127.0.0.1", "-p", port,
                "-h", "client.test", "-f", sender, "-t", "u@local.test",
                "--data", "@" + path + ".lf", *more)

        def by_smtplib(message, _, sender):
            with smtplib.SMTP("127.0.0.1", proxy.port, "client.test",
                              timeout=lib.PATIENCE) as s:
                s.sendmail(sender, ["u@local.test"], message.data,
                           mail_options=["BODY=8BITMIME"])

        def stdin_of(path):
            file = open(path, "rb")
            self.addCleanup(file.close)
            return file

        client("swaks", swaks())
        client("swaks-pipeline", swaks("--pipeline"))
        client("curl", lambda m, path, sender: self.command(
            "curl", "-sS", f"smtp://127.0.0.1:{port}/client.test",
            "--mail-from", sender, "--mail-rcpt", "u@local.test",
            "--upload-file", path))
        client("smtplib", by_smtplib)
        client("msmtp", lambda m, path, sender: self.command(
            "msmtp", "--host=127.0.0.1", "--port=" + port, "--tls=off",
            "--auth=off", "-f", sender, "u@local.test",
            stdin=stdin_of(path)))
        client("perl", lambda m, path, sender: self.command(
            "perl", "-MNet::SMTP", "-e", PERL,
            env=dict(os.environ, P=port, F=sender, M=path)))
        by_name = [m.ident for m in sent]

        nail = f"{server.name}-snail"
        with self.subTest(client="s-nail", server=server.name):
            done = self.command(
                "s-nail", "-:/", "-Sv15-compat", "-Ssmtp-auth=none",
                "-Smta=smtp://127.0.0.1:" + port, "-Sttycharset=utf-8",
                f"-Sfrom={nail}@sender.test", "-C", "X-Test-Id: " + nail,
                "-s", "test", "u@local.test",
                stdin=stdin_of(os.path.join(folder, sent[0].ident)))
            self.assertEqual(done.returncode, 0, done.stdout)
        with self.subTest(client="smtp-source", server=server.name):
            done = self.command(
                "/usr/sbin/smtp-source", "-s", "3", "-m", "9", "-l", "3000",
                "-f", "source@sender.test", "-t", "u@local.test",
                "127.0.0.1:" + port)
            self.assertEqual(done.returncode, 0, done.stdout)

        server.settle()
        stored = mail.tally(server)
        self.assertEqual(len(stored.pop(nail)), 1)
        others = [i for i in stored if i not in by_name]
        self.assertEqual(len(others), 9, "smtp-source's")
        for ident in others:
            self.assertEqual(len(stored.pop(ident)), 1)
        mail.compare(self, sent, by_name, stored)

    def test_to_postfix(self):
        self.through(mta.Postfix())

    def test_to_exim(self):
        self.through(mta.Exim())

    def test_to_opensmtpd(self):
        self.through(mta.OpenSmtpd())
