#!/usr/bin/env python3
"""End-to-end tests of weir: real servers, real clients, real sockets.

    python3 tests/e2e/run.py [-k WORD]... [--list] [--keep]

One line a test, then `N passed, N failed`.  As root everything runs, in
namespaces of its own (see world.py); without root the tests that need mail
servers or network namespaces are skipped, with the reason.

WEIR, WEIRCTL, WEIR_SINK, WEIR_LOAD name the programs to test, by default
those of build/gcc-release.  WEIR_TRACE=1 prints what weir logs.
"""

import argparse
import glob
import os
import shutil
import sys
import time
import traceback
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import weir  # noqa: E402
import world  # noqa: E402


class Lines(unittest.TestResult):
    """One line a test as it ends, the reasons of failures below it."""

    def __init__(self):
        super().__init__()
        self.passed = 0
        self.began = 0.0

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def line(self, word, test, more=""):
        name = test.id().replace(".", "::", 1)
        took = time.monotonic() - self.began if self.began else 0
        print(f"{word:5} {name} ({took:.1f} s){more}", flush=True)

    def addSuccess(self, test):
        self.passed += 1
        self.line("ok", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line("skip", test, ": " + reason)

    def fail(self, test, err):
        """Where in our own files, and what."""
        self.line("FAIL", test)
        for frame in traceback.extract_tb(err[2]):
            if frame.filename.startswith(world.HERE):
                print(f"      {os.path.basename(frame.filename)}:"
                      f"{frame.lineno}: {frame.line}")
        text = "".join(traceback.format_exception_only(*err[:2])).rstrip()
        print("      " + text[:3000].replace("\n", "\n      "), flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.fail(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self.fail(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.fail(subtest, err)


def tests_of(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def find(words):
    found = []
    for path in sorted(glob.glob(os.path.join(world.HERE, "test_*.py"))):
        name = os.path.basename(path)[:-3]
        suite = unittest.defaultTestLoader.loadTestsFromName(name)
        found += [test for test in tests_of(suite)
                  if not words or any(word in test.id() for word in words)]
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    ap.add_argument("-k", action="append", default=[], metavar="WORD",
                    help="only tests whose name contains WORD")
    ap.add_argument("--list", action="store_true", help="print the names")
    ap.add_argument("--keep", action="store_true",
                    help="keep the files of the run (not as root)")
    ap.add_argument("--again", action="store_true",
                    help="run what failed once more: on a crowded machine "
                    "a real server may be later than any patience")
    args = ap.parse_args()
    if args.list:
        print("\n".join(test.id() for test in find(args.k)))
        return 0
    for name in ("weir", "weirctl"):
        if not os.access(weir.program(name), os.X_OK):
            print(f"{weir.program(name)}: not there; run make first")
            return 1
    if os.geteuid() == 0 and not world.PRIVATE:
        return world.enter()
    if world.PRIVATE:
        world.furnish()
    result = Lines()
    unittest.TestSuite(find(args.k)).run(result)
    passed, bad = result.passed, result.failures + result.errors
    if args.again and bad:
        names = {getattr(test, "test_case", test).id() for test, _ in bad}
        print(f"again, by themselves: {', '.join(sorted(names))}")
        second = Lines()
        unittest.TestSuite(test for test in find([])
                           if test.id() in names).run(second)
        passed, bad = passed + second.passed, second.failures + second.errors
    if not world.PRIVATE and not args.keep and world.WORK:
        shutil.rmtree(world.WORK, ignore_errors=True)
    if result.skipped:
        print(f"{len(result.skipped)} skipped")
    print(f"{passed} passed, {len(bad)} failed")
    return 1 if bad or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
