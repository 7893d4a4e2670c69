"""What the tests of this folder take for a round."""

from __future__ import annotations

import json
from pathlib import Path

from .agents import Job


def test_a_round_that_is_waited_for_is_later_than_those_that_were_formed(tmp_path: Path) -> None:
    job = Job(tmp_path, port=1)

    def works(name: str, *agents: str) -> None:
        with (tmp_path / "events.jsonl").open("a") as events:
            for rank, agent in enumerate(agents):
                told = {"kind": "worker", "agent": agent, "round": name, "rank": rank, "pid": rank}
                counts = {"world": len(agents), "group_world": len(agents)}
                print(json.dumps({**told, **counts}), file=events)

    # It was the first to come, and had a round of its own before the others came.
    works("host:1", "a")
    works("host:2", "a", "b", "c")
    assert job.formed("a", "b", "c").name == "host:2"
    works("host:3", "a")
    assert job.formed("a").name == "host:3"
