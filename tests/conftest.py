"""For all tests: none depends on a machine's speed; TCPStore asks no name server who connects."""

from __future__ import annotations

import contextlib
import ctypes
import os

from hypothesis import settings

# The same examples every time: what one change breaks is found there, and not by another that
# has nothing to do with it. ``--hypothesis-profile=search`` looks for more, by chance.
settings.register_profile("rdzv", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("rdzv")

# torch's TCPStore looks up the name of everybody who connects, in its only thread. Where the name
# service is slow, each of thousands of connections could take seconds (README, known limits).
# glibc is told to look into /etc/hosts alone, in this process; others are not to wait for long.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).__nss_configure_lookup(b"hosts", b"files")
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
