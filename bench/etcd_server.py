"""The process that hosts an etcd server, and says what the server has counted."""

from __future__ import annotations

import re
import urllib.request

from bench.child import serve
from rdzv_etcd.seam import Get
from rdzv_etcd.server import EtcdServer

_LINE = re.compile(r"^([a-z_]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_METHOD = re.compile(r'grpc_method="(\w+)"')


class Counts:
    """What the server has counted since it was asked to forget."""

    def __init__(self, server: EtcdServer) -> None:
        self._url = f"http://{server.get_endpoint()}/metrics"
        self._before: dict[str, float] = {}

    def _read(self) -> dict[str, float]:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for name, labels, value in _LINE.findall(text):
            key = {
                "etcd_network_client_grpc_received_bytes_total": "in",
                "etcd_network_client_grpc_sent_bytes_total": "out",
                "etcd_mvcc_put_total": "puts",
                "etcd_debugging_mvcc_put_total": "puts",
                "etcd_server_proposals_applied_total": "proposals",
            }.get(name)
            if name in ("grpc_server_started_total", "grpc_server_handled_total"):
                # A stream is counted when it begins: each watch is one request.
                method = _METHOD.search(labels or "")
                streamed = "Watch" in (labels or "")
                if method and streamed == (name == "grpc_server_started_total"):
                    key = f"calls {method[1]}"
            if key is not None:
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def forget(self) -> None:
        self._before = self._read()

    def counted(self) -> dict[str, float]:
        now = self._read()
        return {name: value - self._before.get(name, 0.0) for name, value in now.items()}


if __name__ == "__main__":
    # torch's own backends speak the v2 API, which etcd 3.5 still has where it is asked for it.
    with EtcdServer(enable_v2=True) as server:
        counts = Counts(server)
        client = server.get_client()
        serve(
            {
                "port": server.get_port,
                "forget": counts.forget,
                "counted": counts.counted,
                "revision": lambda: client.range(Get(b"x", count_only=True)).revision,
                "about": lambda: str(client.status().version),
            }
        )
