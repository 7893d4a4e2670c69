"""A process of a gloo group on a store written in Python: RANK WORLD PORT WAY [KIND]."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

LIMIT = timedelta(seconds=60)


def open_store(kind: str, port: int) -> dist.Store:
    if kind == "etcd":
        from rdzv_etcd.client import EtcdClient
        from rdzv_etcd.store import EtcdStore

        return EtcdStore(EtcdClient(f"localhost:{port}"), "gloo", LIMIT)
    import redis

    from rdzv_redis.store import RedisStore

    return RedisStore(redis.Redis(port=port), "gloo:{run}", LIMIT)


def main() -> None:
    rank, world, port = map(int, sys.argv[1:4])
    store = open_store(sys.argv[5] if len(sys.argv) > 5 else "redis", port)
    if sys.argv[4] == "prefixed":
        store = dist.PrefixStore("group", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=LIMIT)
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
