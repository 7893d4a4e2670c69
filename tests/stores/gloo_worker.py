"""A process of a gloo group whose store is a RedisStore: RANK WORLD PORT WAY."""

from __future__ import annotations

import sys
from datetime import timedelta

import redis
import torch
import torch.distributed as dist

from rdzv_redis.store import RedisStore


def main() -> None:
    rank, world, port = map(int, sys.argv[1:4])
    limit = timedelta(seconds=60)
    store: dist.Store = RedisStore(redis.Redis(port=port), "gloo:{run}", limit)
    if sys.argv[4] == "prefixed":
        store = dist.PrefixStore("group", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    numbers = torch.tensor([rank + 1.0])
    dist.all_reduce(numbers)
    assert numbers.item() == world * (world + 1) / 2
    group = dist.new_group(list(range(world)))
    dist.barrier(group)
    gathered: list[object] = [None] * world
    dist.all_gather_object(gathered, rank)
    assert gathered == list(range(world))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
