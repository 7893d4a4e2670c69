"""What a node asks of a store, counted in simulations: a table, and a picture of it.

python bench/simulated.py [--picture FILE.svg] [NODES ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rdzv.testing.simulation.costs import Cost, as_table, count


def draw(costs: list[Cost], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rdzv"
    from matplotlib import pyplot as plt

    nodes = [cost.nodes for cost in costs]
    figure, (asked, size) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    asked.plot(nodes, [c.requests for c in costs], "o-", label="a round, a node")
    asked.plot(nodes, [c.leader for c in costs], "s-", label="a round, the leader")
    asked.plot(nodes, [c.healthy for c in costs], "^-", label="a second, healthy")
    asked.axhline(8, color="grey", linestyle=":", label="at most, a round")
    asked.set(xscale="log", ylim=(0, 13), xlabel="nodes", ylabel="requests", title="Requests")
    size.plot(nodes, [c.received for c in costs], "o-", label="read by a node, a round")
    size.plot(nodes, [c.store for c in costs], "s-", label="in the store")
    size.set(xscale="log", yscale="log", xlabel="nodes", ylabel="bytes", title="Bytes")
    for axes in (asked, size):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", type=int, default=[10, 100, 1000, 10_000])
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    costs = [count(nodes) for nodes in arguments.nodes]
    print(as_table(costs))
    if arguments.picture is not None:
        draw(costs, arguments.picture)


if __name__ == "__main__":
    main()
