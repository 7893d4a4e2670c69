"""The process that hosts a Redis server, and says what the server has counted."""

from __future__ import annotations

from typing import Any

from bench.child import serve
from rdzv_redis import RedisServer


def _counted(client: Any) -> dict[str, Any]:
    stats = client.info("stats")
    calls = {name[8:]: one["calls"] for name, one in client.info("commandstats").items()}
    return {
        "calls": calls,
        "in": stats["total_net_input_bytes"],
        "out": stats["total_net_output_bytes"],
    }


if __name__ == "__main__":
    with RedisServer(settings={"maxclients": 20000}) as server:
        admin = server.client()
        serve(
            {
                "port": lambda: server.port,
                "forget": admin.config_resetstat,
                "counted": lambda: _counted(admin),
                "flush": admin.flushall,
                "about": lambda: (
                    admin.info("server").get("valkey_version")
                    or admin.info("server")["redis_version"]
                ),
            }
        )
