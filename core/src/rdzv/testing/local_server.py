"""LocalServer: a private server on this machine, for tests and one-machine jobs.

It needs nothing beyond the standard library.
"""

from __future__ import annotations

import abc
import contextlib
import glob
import importlib.util
import io
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, cast

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalServer", "free_ports", "packaged_program", "stop_process"]

_PATIENCE = 5.0
"""Seconds that a process that was asked to end, or to stand still, has for it."""

_PAUSE = 0.1
"""Seconds between two attempts to get back a port that must stay the same."""

_STILL = frozenset("TtZX")
"""The states of a thread in /proc that does nothing more: stopped, traced or ended."""

_GLANCE = 0.001
"""Seconds between two looks at whether a process stands still."""

_FIRST, _LAST = 5, 20
"""How many lines of the log an error shows: the cause is among the first where help follows."""

# Its standard input is a pipe whose other end is this process's: read returns
# when the process has ended, however it did, or has written a word. The server
# is its child, so its number does not come to mean another process meanwhile. $1
# is the folder, or empty where it stays; the rest is the command. PR_SET_PDEATHSIG
# would not do: it fires when the thread ends that started the server. The server
# alone goes on holding the pipe that was the standard output, as descriptor 3: its
# own output may be of any length, and goes to the log.
_SUPERVISOR = """
folder=$1; shift
"$@" </dev/null 3>&1 >&2 &
server=$!
echo $server
exec >/dev/null
read -r word
kill -KILL $server 2>/dev/null
wait $server 2>/dev/null
if [ -n "$folder" ] && [ "$word" != keep ]; then rm -rf "$folder"; fi
"""


class LocalServer(abc.ABC):
    """A server of this process's own; a subclass says which.

    It is ready when ``start`` returns, listens on this machine only, and is gone
    with its data when the process ends, even by SIGKILL. A forked child may use it,
    but stops nothing. All of PostgreSQL that a plugin's tests need::

        class PostgresServer(LocalServer):
            kind = "rdzv-postgres"
            binary_variable = "RDZV_POSTGRES_BINARY_PATH"
            programs = ("postgres", "/usr/lib/postgresql/*/bin/postgres")
            advice = "Install one with 'apt install postgresql'."

            def command(self):
                data = self.data_dir / "data"
                if not data.exists():
                    initdb = Path(self.binary).with_name("initdb")
                    subprocess.run([initdb, "-D", data], check=True)
                return [self.binary, "-D", data, "-p", self.port, "-k", self.data_dir]

            def is_ready(self):
                return "ready to accept connections" in self.log

        with PostgresServer() as server:
            psycopg.connect(host=server.host, port=server.port, dbname="postgres")

    The program has to stay in the foreground, and to leave open the descriptors that
    it inherits: by one of them this process knows that it runs. Its output goes to the
    log.

    Args:
        port: The port, or 0 for a free one. It stays the same over restarts.
        binary: The server's program; ``binary`` says where else it is looked for.
        data_dir: The data folder, which then stays; otherwise a temporary one.
        timeout: Seconds within which the server must be ready.

    Attributes:
        ports: All ports of the server, ``port`` first; chosen at the first start.
    """

    kind: ClassVar[str] = "rdzv-server"
    """How temporary folders begin."""

    binary_variable: ClassVar[str]
    """The environment variable that names the program."""

    packaged: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Packages that may bring the program, each with a pattern of its path in there."""

    programs: ClassVar[tuple[str, ...]] = ()
    """Names of the program on the path, or patterns of whole paths; the first that is found."""

    advice: ClassVar[str] = ""
    """How to get the program, for people who have none."""

    port_count: ClassVar[int] = 1
    """How many ports the server listens on, ``port`` being one and the others in ``ports``."""

    highest_port: ClassVar[int] = 65535
    """The highest port that may be chosen."""

    attempts: int = 5
    """How often ports are chosen, since somebody else may take one before the server listens."""

    host: str = "127.0.0.1"
    """The host that clients connect to."""

    def __init__(
        self,
        port: int = 0,
        *,
        binary: str | os.PathLike[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._asked_port = port
        self.ports: tuple[int, ...] = (port,)
        self._binary = None if binary is None else os.fspath(binary)
        self._kept_dir = None if data_dir is None else Path(data_dir).absolute()
        self._timeout = timeout
        self._stderr: int | IO[str] | IO[bytes] | None = None
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._paused = False
        self._owner = os.getpid()

    # ------------------------------------------------------------ what a subclass says

    @abc.abstractmethod
    def command(self) -> Sequence[str | int | os.PathLike[str]]:
        """Say the command line; called at every start, when ``ports`` and ``data_dir`` are known.

        A file that it names, as one with a configuration, is written into ``data_dir`` here.
        """

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Say whether the server answers; called again and again while it starts.

        That another server answers on its port must not count. ``log`` and ``pid`` may help.
        """

    def environment(self) -> Mapping[str, str]:
        """Say the server's environment variables; by default they are this process's."""
        return os.environ

    def clean_up(self) -> None:  # noqa: B027 - there may be nothing to do.
        """Remove what the server leaves outside its data folder; called by ``stop``."""

    # ------------------------------------------------------------ looking

    @property
    def port(self) -> int:
        """The port; 0 before the start where it is the server's to choose."""
        return self.ports[0]

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process, 0 if it does not run."""
        return self._pid

    @property
    def paused(self) -> bool:
        """Whether ``pause`` holds the server up."""
        return self._paused

    @property
    def binary(self) -> str:
        """The server's program, given or else from the environment, a package or the path.

        Raises:
            FileNotFoundError: There is none; the message says how to get one.
        """
        return self._binary or self._find_binary()

    def _find_binary(self) -> str:
        if named := os.environ.get(self.binary_variable):
            if shutil.which(named) is None:
                raise FileNotFoundError(f"{self.binary_variable} names {named!r}, which is no "
                                        "program.")  # fmt: skip
            return named
        for package, pattern in self.packaged:
            if found := packaged_program(package, pattern):
                return found
        for name in self.programs:
            # Distributions keep some servers off the path; of several versions the newest.
            places = [name] if os.sep not in name else sorted(glob.glob(name), key=_natural)[::-1]
            for place in places:
                if found := shutil.which(place):
                    return found
        raise FileNotFoundError(
            f"There is no {' or '.join(self.programs)} on this machine. {self.advice} "
            f"Or name the program in {self.binary_variable}."
        )

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
    def log_path(self) -> Path:
        """The file that the server logs to, anew from each start.

        Raises:
            RuntimeError: The server was not started.
        """
        return self.data_dir / "server.log"

    @property
    def log(self) -> str:
        """What the server has logged since it was started.

        Raises:
            RuntimeError: The server was not started.
        """
        try:
            return self.log_path.read_text(errors="replace")
        except OSError:
            return ""

    # ------------------------------------------------------------ starting

    def start(self) -> None:
        """Start the server; it answers when this returns.

        Raises:
            FileNotFoundError: There is no program to start.
            RuntimeError: It runs already, or did not start; then with lines of its log.
            TimeoutError: It was not ready in time.
        """
        if self._supervisor is not None:
            if not self._has_ended():
                raise RuntimeError(f"The server runs already, on {self.endpoint}.")
            self._end(b"keep\n")
        binary = self.binary
        try:
            self._start(binary, same_ports=False)
        except BaseException:
            self.stop()
            raise

    def _start(self, binary: str, *, same_ports: bool) -> None:
        self._owner = os.getpid()
        if self._folder is None:
            if self._kept_dir is not None:
                self._kept_dir.mkdir(parents=True, exist_ok=True)
                self._folder = self._kept_dir
            else:
                self._folder = Path(tempfile.mkdtemp(prefix=f"{self.kind}-"))
        there = set(self._folder.iterdir())
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while True:
            attempt += 1
            if not self._has_ports() or (attempt > 1 and not same_ports):
                chosen = free_ports(self.port_count, self.highest_port)
                self.ports = (self._asked_port or chosen[0], *chosen[1:])
            self._spawn()
            if self._wait_until_ready(binary, deadline):
                return
            if same_ports:
                # A connection has it, as a rule, as its own end by chance: it is let go again.
                again = time.monotonic() + _PAUSE < deadline
            else:
                others = self.port_count > 1 or not self._asked_port
                again = others and attempt < self.attempts
            taken = "already in use" in self.log
            failure = f"{binary} did not start on {self.endpoint}. {self._log_lines()}"
            if not taken or (same_ports and not again):
                raise RuntimeError(failure)
            self._end(b"keep\n")
            if same_ports:
                time.sleep(_PAUSE)
                continue
            # It may have begun its data and not have come far enough to go on with them.
            _remove(set(self._folder.iterdir()) - there)
            if not again:
                raise RuntimeError(failure)

    def _has_ports(self) -> bool:
        return len(self.ports) == self.port_count and 0 not in self.ports

    def _spawn(self) -> None:
        command = [os.fspath(part) if isinstance(part, os.PathLike) else str(part)
                   for part in self.command()]  # fmt: skip
        temporary = "" if self._kept_dir is not None else str(self.data_dir)
        self.log_path.write_bytes(b"")
        with self.log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(  # noqa: S603 - the caller's program.
                ["/bin/sh", "-c", _SUPERVISOR, self.kind, temporary, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if self._stderr is None else self._stderr,
                env=self.environment(),
                bufsize=0,
                # Out of reach of the signals that a terminal sends to the job.
                start_new_session=True,
            )
        _running.add(self)
        self._pid = int(_out(self._supervisor).readline())

    def _wait_until_ready(self, binary: str, deadline: float) -> bool:
        """Wait until the server answers, or has ended (then False)."""
        while not self._has_ended():
            if self.is_ready():
                return True
            if time.monotonic() >= deadline and not self._has_ended():
                raise TimeoutError(
                    f"{binary} was not ready on {self.endpoint} after {self._timeout} "
                    f"seconds. {self._log_lines()}"
                )
        return False

    def _has_ended(self) -> bool:
        """Look for 10 milliseconds whether the server has ended: it alone holds that pipe then."""
        if self._supervisor is None:
            return True
        poll = select.poll()
        poll.register(_out(self._supervisor), select.POLLIN | select.POLLHUP)
        return bool(poll.poll(10)) and not _out(self._supervisor).read(65536)

    def _log_lines(self) -> str:
        lines = self.log.splitlines()
        if len(lines) > _FIRST + _LAST:
            lines[_FIRST:-_LAST] = ["…"]
        return "\n".join(["Its log:", *lines])

    # ------------------------------------------------------------ ending

    def stop(self) -> None:
        """Stop the server and remove its data, unless the folder was given. May be repeated."""
        if os.getpid() != self._owner:
            return
        self._end(b"\n")
        if self._folder is not None:
            if self._kept_dir is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self.clean_up()

    def kill(self) -> None:
        """Kill the server with SIGKILL; its data folder stays until ``stop``, for ``restart``."""
        if os.getpid() != self._owner:
            return
        if not self._has_ended():
            os.kill(self._pid, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while not self._has_ended() and time.monotonic() < deadline:
            pass  # It looks for a while itself.
        # The supervisor stays, to remove the folder if this process ends before it calls stop.
        self._pid = 0
        self._paused = False

    def pause(self) -> None:
        """Hold the server up with SIGSTOP: its connections stay open, and nobody answers.

        When this returns it stands still.
        """
        if self._may_signal():
            self._paused = True  # Also where it takes its time.
            stop_process(self._pid)

    def resume(self) -> None:
        """Let a paused server go on."""
        if self._may_signal():
            os.kill(self._pid, signal.SIGCONT)
            self._paused = False

    def _may_signal(self) -> bool:
        return os.getpid() == self._owner and bool(self._pid) and not self._has_ended()

    def restart(self) -> None:
        """Start the server anew on its port and data folder, after ``kill`` or while it runs.

        Where that fails the folder stays, as after ``kill``.

        Raises:
            RuntimeError: As for ``start``.
            TimeoutError: As for ``start``.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("Only the process that started the server can restart it.")
        self._end(b"keep\n")
        try:
            self._start(self.binary, same_ports=self._has_ports())
        except BaseException:
            self.kill()
            raise

    def _end(self, word: bytes) -> None:
        """Have the supervisor kill the server, and wait until both have ended."""
        supervisor, self._supervisor = self._supervisor, None
        self._pid = 0
        self._paused = False
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


_running: weakref.WeakSet[LocalServer] = weakref.WeakSet()


def _after_fork() -> None:
    for server in list(_running):
        server._let_go()  # noqa: SLF001 - of this module.


os.register_at_fork(after_in_child=_after_fork)


def _out(supervisor: subprocess.Popen[bytes]) -> io.FileIO:
    return cast("io.FileIO", supervisor.stdout)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts by the numbers in a path: 9 before 15."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path)]


def stop_process(pid: int) -> None:
    """Send SIGSTOP to a process, and return once all of its threads stand still.

    A signal is sent at once and heeded later: on a busy machine a process answers once more, and
    who was to see it frozen does not. Without ``/proc`` (not Linux) nothing tells, and this
    returns at once.

    Args:
        pid: The process.

    Raises:
        ProcessLookupError: There is none.
        TimeoutError: It goes on for seconds.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _PATIENCE
    while any(state not in _STILL for state in _states(pid)):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"The process {pid} does not stand still {_PATIENCE:g} s later.")
        time.sleep(_GLANCE)


def _states(pid: int) -> Iterator[str]:
    """What Linux says of each thread of a process; nothing of one that has ended."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # It ends meanwhile.
            # The name before it may hold anything, spaces and brackets included.
            yield path.read_text(errors="replace").rpartition(")")[2].split()[0]


def packaged_program(package: str, pattern: str) -> str | None:
    """Find a program that an installed package brings, without importing the package.

    Args:
        package: The package, of top level.
        pattern: Where the program is in the package's folder; may have wildcards.

    Returns:
        The program's path; None where the package or the program is missing.
    """
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob(pattern):
            return str(path)
    return None


def free_ports(count: int = 1, highest: int = 65535) -> list[int]:
    """Find ports of 127.0.0.1 that are free now; nobody keeps them so.

    Args:
        count: How many, each another one.
        highest: The highest that will do.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as listeners:
        while len(ports) < count:
            # All stay open, also those that do not fit, so that each is another one.
            listener = listeners.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            if port <= highest:
                ports.append(port)
    return ports
