"""What all rings have in common: how Hypothesis chooses its examples.

`make test` and CI run the same examples every time: a red test is red again, and a
green one was not lucky. `make test-random` explores with a fresh seed, which it prints;
what that finds becomes an explicit example, in the same commit as its repair. No example
has a time limit: machines are busy.

Tests use raw channels and urllib on this machine, which a proxy of the environment must
not stand between. And they interrupt processes: a shell that starts the tests in the
background has them ignore SIGINT, which their children would inherit.

Engines compute with one thread each: several engines and tests share the cores, and
OpenMP's threads spin while they wait for one another.

A test has the mark of its ring, which is the folder it is in.

A run ends without taking Python apart: native libraries (torch, UCX, gRPC) that crash in that
moment would turn a green run red.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["no_proxy"] = ",".join(
    filter(None, [os.environ.get("no_proxy"), "127.0.0.1,localhost,::1"])
)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "fixed", derandomize=True, max_examples=50, deadline=None, print_blob=True
)
settings.register_profile(
    "random", derandomize=False, max_examples=500, deadline=None, print_blob=True
)
# Command lines may load another: --hypothesis-profile=random.
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is None:
            item.add_marker(item.path.relative_to(Path(__file__).parent).parts[0])


_HAS_FINISHED = pytest.StashKey[pytest.Session]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_HAS_FINISHED] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    session = config.stash.get(_HAS_FINISHED, None)
    if session is None or hasattr(config, "workerinput"):  # pytest-xdist's processes
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(session.exitstatus))
