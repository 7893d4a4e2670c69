"""Logs of runs that never were, whose times are known exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

EPOCH = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


class Made:
    """A run; ``tell`` takes seconds of true time, and writes what the node's clocks show.

    Args:
        run_id: Its name.
        skew: By how many seconds the time of day of some nodes is ahead.
    """

    def __init__(self, run_id: str = "job1", skew: dict[str, float] | None = None) -> None:
        self.run_id = run_id
        self.skew = skew or {}
        self.lines: dict[str, list[str]] = {}

    def tell(self, at: float, node: str, event: str, number: int = 0, **fields: Any) -> None:
        self.lines.setdefault(node, [])
        # Every node's monotonic clock began somewhere else.
        mine = at + 1000.0 + sum(map(ord, node))
        wall = EPOCH + timedelta(seconds=at + self.skew.get(node, 0.0))
        line = {
            "schema": 1,
            "event": event,
            "run_id": self.run_id,
            "node": node,
            "round": number,
            "at": mine,
            "time": wall.isoformat(timespec="milliseconds"),
            "backend": "c10d",
            **fields,
        }
        self.lines[node].append(json.dumps(line))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, lines in enumerate(self.lines.values()):
            path = folder / f"{self.run_id}-{number}.jsonl"
            path.write_text("\n".join(lines) + "\n")
        return folder

    def complete(self, at: float, number: int, nodes: Iterable[str], spread: float = 0.004) -> None:
        """A round is agreed on at ``at``, and all know it ``spread`` later at most."""
        names = list(nodes)
        for rank, node in enumerate(names):
            mine = spread * (rank + 1) / len(names)
            where = {"rank": rank, "world_size": len(names)}
            self.tell(at + mine / 2, node, "Ranked", number, **where)
            self.tell(at + mine, node, "Completed", number, seconds=1.0, **where)


def names(count: int) -> list[str]:
    return [f"10.0.{number // 250}.{number % 250 + 1}_{4000 + number}_0" for number in range(count)]


def story(count: int, skew: dict[str, float] | None = None) -> Made:
    """``count`` nodes form a round; the last one dies, a new one comes, a spare is not needed.

    Round 2: silent from 60 s on, known at 65.5 s, the last one is back at 67.5 s, a last call of
    2 s. Round 3: the new one comes at 100 s, the news takes 0.1 s, the last one is back at 101.6 s.
    """
    made = Made(skew=skew)
    nodes = names(count + 2)
    *first, victim = nodes[:count]
    new, spare = nodes[count:]
    made.tell(0.0, first[0], "Joined")
    made.tell(0.01, first[0], "LeaderChanged", leader=first[0])
    for number, node in enumerate([*first[1:], victim]):
        made.tell(0.5 + 1.5 * number / count, node, "Joined")
    made.complete(2.0, 1, [*first, victim])
    made.tell(65.5, first[0], "Lost", 1, lost=[victim], silent=5.5)
    for number, node in enumerate(first):
        made.tell(65.502, node, "Reopened", 1, reason="1 node lost", lost=1)
        made.tell(66.0 + 1.5 * (number + 1) / len(first), node, "Joined", 1)
    made.tell(67.5, first[0], "LastCall", 1, nodes=len(first), seconds=2.0)
    made.complete(69.5, 2, first)
    made.tell(100.0, new, "Joined")
    made.tell(100.01, new, "Waiting", spare=False)
    for number, node in enumerate(first):
        reason = "1 node waiting to join"
        made.tell(100.1, node, "Reopened", 2, reason=reason, arrived=1)
        made.tell(100.4 + 1.2 * (number + 1) / len(first), node, "Joined", 2)
    made.complete(101.6, 3, [*first, new])
    made.tell(110.0, spare, "Joined")
    made.tell(110.01, spare, "Waiting", spare=True)
    made.tell(160.0, first[0], "Closed", 3)
    made.tell(160.1, spare, "Failed", error="RendezvousGracefulExitError: it was not needed.")
    for node in [*first, new]:
        made.tell(160.2, node, "Left", 3)
    return made
