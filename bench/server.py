"""The process that hosts the store: nothing else runs in it."""

from __future__ import annotations

from torch.distributed import TCPStore

from bench.child import serve

if __name__ == "__main__":
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    serve({"port": lambda: store.port})
