"""What an outage of a server must not do to a job, and how it is seen to be over."""

from __future__ import annotations

import os
from collections.abc import Callable

from .agents import Job, Round

OUTAGE = 10.0


def goes_on(job: Job, found: Round) -> None:
    """See that the workers of the first round still are at work, for the length of an outage."""
    job.stays(lambda: undisturbed(job, found), "an undisturbed round", OUTAGE)


def undisturbed(job: Job, found: Round) -> bool:
    """Whether the workers of the first round are at work, and no others have been."""
    alive = all(_runs(pid) for pid in found.pids)
    return alive and job.rounds() == 1 and not any(a.ended for a in job.agents.values())


def beats_again(job: Job, asked: Callable[[], int]) -> None:
    """Wait until nodes give signs of life to the server again.

    Args:
        job: The job.
        asked: How many of them the server has had.
    """
    before = asked()
    job.until(lambda: asked() > before + 20, "the beats after the outage")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
