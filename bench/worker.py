"""A worker under torchrun that only says when it began: before any other import, it looks."""
# ruff: noqa: E402

import time

STARTED = time.monotonic()

import os
import sys

path = os.path.join(sys.argv[1], f"{time.time_ns()}-{os.getpid()}")
with open(path + ".new", "w") as file:
    agent, rank, size = os.getppid(), os.environ["RANK"], os.environ["WORLD_SIZE"]
    file.write(f"{STARTED!r} {os.getpid()} {agent} {rank} {size}")
os.rename(path + ".new", path)
time.sleep(120)
