"""What a plugin tells ``rdzv doctor`` about its backend, and the findings that come of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from rdzv.api import RendezvousParameters
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

__all__ = ["SCRATCH_EPOCH", "Diagnosis", "Finding", "Level", "Target", "Tls"]

SCRATCH_EPOCH = "doctor"
"""The epoch that the sessions of a scratch run are attached to, for who has to remove it."""

Level = Literal["ok", "note", "warning", "error"]

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do about it.

    Texts are for people. Whatever a server has said may stand in them as it is: who prints a
    finding escapes control characters and hides secrets.

    Attributes:
        id: What kind of finding it is, ``subject.what`` in small letters, digits and hyphens; it
            stays the same over versions.
        level: ``"ok"``; ``"note"``: worth knowing; ``"warning"``: a job may run, and may come to
            harm by it; ``"error"``: a job cannot run like this.
        seen: What was seen, a sentence or two.
        remedy: What to do about it. Every warning and every error has one.

    Raises:
        ValueError: A field is not as described.
    """

    id: str
    level: Level
    seen: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is no id of a finding; it is written subject.what.")
        if self.level not in get_args(Level):
            raise ValueError(f"{self.level!r} is no level; there are {', '.join(get_args(Level))}.")
        if self.level in ("warning", "error") and not self.remedy:
            raise ValueError(f"The {self.level} {self.id} needs a remedy.")


@dataclass(frozen=True)
class Tls:
    """How a client of the backend speaks TLS.

    Attributes:
        ca_cert: A file of certificates to trust; the system's where it is ``None``.
        cert: A file with the client's certificate, if it has one.
        key: The file with its key, if it is not in ``cert``.
        check_hostname: Whether the server's certificate has to name its host.
    """

    ca_cert: str | None = None
    cert: str | None = None
    key: str | None = None
    check_hostname: bool = True


@dataclass(frozen=True)
class Target:
    """A server that a client of the backend connects to.

    Attributes:
        host: A name or an address, without brackets.
        port: Its TCP port.
        tls: How TLS is spoken there; ``None`` where it is not.
        greeting: Bytes that every such server answers at once, without TLS and before any login,
            and that change nothing. By them the doctor tells a server that speaks TLS from one
            that does not; empty where there are none.
    """

    host: str
    port: int
    tls: Tls | None = None
    greeting: bytes = b""


@dataclass(frozen=True)
class Diagnosis:
    """How the doctor is to look at one rendezvous: what ``BackendSpec.diagnose`` returns.

    Attributes:
        targets: The servers that clients connect to; empty where there is no network in it.
        scratch: Parameters that lead to the same place for a run of another id, and with which
            ``create`` harms no run: it must host nothing. Without, the run's own with the id
            replaced.
        hosting: The same where this node is to host the store for that time, which the user has
            asked for; ``None`` where nodes do not host it.
        absent: What it means that nothing listens at any of ``targets``, in place of errors.
        explain: What an error of ``create`` or of an operation means; ``None`` where it knows no
            better than the error's own text.
        examine: Looks at the server's version and settings, with a backend that is connected.
        clean: Removes all that the run of a backend has stored. Without, it is left there.
    """

    targets: tuple[Target, ...] = ()
    scratch: Callable[[str], RendezvousParameters] | None = None
    hosting: Callable[[str], RendezvousParameters] | None = None
    absent: Callable[[], Iterable[Finding]] | None = None
    explain: Callable[[Exception], Finding | None] | None = None
    examine: Callable[[RendezvousBackend], Iterable[Finding]] | None = None
    clean: Callable[[RendezvousBackend], None] | None = None
