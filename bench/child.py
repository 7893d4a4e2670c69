"""A process that does what it is told, one JSON document a line, until nobody tells it more."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["serve"]


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answer commands from the standard input; returns at its end."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # What libraries print is no answer.
        for line in sys.stdin:
            arguments = json.loads(line)
            do = arguments.pop("do")
            try:
                answer = {"answer": commands[do](**arguments)}
            except Exception as exc:  # noqa: BLE001  # The coordinator is to see it.
                answer = {"failed": f"{do}: {type(exc).__name__}: {exc}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    os._exit(0)  # Threads of the last measurement may be anywhere.
