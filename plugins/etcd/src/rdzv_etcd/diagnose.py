"""What ``rdzv doctor`` is told about ``etcd``: its members, its errors, the cluster's state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rdzv.diagnosis import Diagnosis, Finding, Target, Tls
from rdzv.endpoint import parse_rendezvous_endpoint

from . import seam
from .options import DEFAULT_PORT, read_options

if TYPE_CHECKING:
    from rdzv.api import RendezvousParameters
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

    from .backend import EtcdRendezvousBackend
    from .client import EtcdClient
    from .options import Options

__all__ = ["diagnose"]

_GREETING = b"GET /health HTTP/1.0\r\n\r\n"

_QUOTA = 2 * 1024**3
"""Bytes of etcd's quota where nothing else was set; before etcd 3.6 it does not tell."""

_FULL = 0.8
"""The part of the quota from which on a database is worth a warning."""

_LOSES_WRITES = {"3.5": 3}
"""Of minor versions the patch that mends etcd's issue 13766; others have never had it."""

_DEFECTS = (
    (
        {"3.4": 31, "3.5": 13},
        "a member that was frozen while it led may revoke living leases as it wakes (issue 15247)",
    ),
    (
        {"3.4": 23, "3.5": 7},
        "a member may end when a client's time is over while it reads (issues 14110 and 14891)",
    ),
)
"""What else versions do that a job notices, each with the patches that mend it."""

# Of so many digits Python makes a number, whatever a server says.
_VERSION = re.compile(r"(\d+\.\d+)\.(\d{1,9})", re.ASCII)

_ALARMS = {1: "NOSPACE", 2: "CORRUPT"}

_LOGIN = "Give username and password_file, or RDZV_ETCD_USERNAME and RDZV_ETCD_PASSWORD."


def diagnose(params: RendezvousParameters) -> Diagnosis:
    """How the doctor is to look at a rendezvous on etcd.

    Raises:
        ValueError: A setting or the endpoint is malformed.
    """
    options = read_options(params)
    tls = Tls(options.ca_cert, options.ssl_cert, options.ssl_cert_key) if options.tls else None
    places = [parse_rendezvous_endpoint(each, DEFAULT_PORT) for each in options.endpoints]
    return Diagnosis(
        tuple(Target(host, port, tls, _GREETING) for host, port in places),
        explain=partial(_explain, options),
        examine=_examine,
        clean=_clean,
    )


def _clean(backend: RendezvousBackend) -> None:
    run = cast("EtcdRendezvousBackend", backend).run
    root = f"{run.root()}/".encode()
    run.client.delete(root, seam.prefix_end(root))
    # Nobody else has one of its number.
    run.client.lease_revoke(run.lease)


def _explain(options: Options, exc: Exception) -> Finding | None:
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, seam.EtcdError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    said = str(cause)
    if isinstance(cause, seam.AuthError):
        if "permission denied" in said:
            return Finding(
                "permission.missing",
                "error",
                f"etcd does not permit its user what a run needs: {said}",
                f"An administrator may permit it: etcdctl role grant-permission <role> --prefix "
                f"readwrite {options.prefix}/, and etcdctl user grant-role <user> <role>; or give "
                "another prefix.",
            )
        if "user name is empty" in said:
            seen = f"etcd wants a login, and none is given: {said}"
            return Finding("login.missing", "error", seen, _LOGIN)
        seen = f"etcd does not accept the login: {said}"
        return Finding("login.refused", "error", seen, f"Check them. {_LOGIN}")
    if isinstance(cause, seam.NoSpaceError):
        return _full(said)
    if "no leader" in said:
        return _leaderless(said)
    return None


def _full(seen: str) -> Finding:
    return Finding(
        "etcd.full",
        "error",
        seen,
        "Make room (etcdctl compact, then defrag), or raise --quota-backend-bytes; then etcdctl "
        "alarm disarm.",
    )


def _leaderless(seen: str) -> Finding:
    return Finding(
        "etcd.no-leader",
        "error",
        seen,
        "A majority of the members has to be up and to reach each other: see their logs, and "
        "etcdctl endpoint status --cluster.",
    )


def _examine(backend: RendezvousBackend) -> Iterator[Finding]:
    client = cast("EtcdClient", cast("EtcdRendezvousBackend", backend).run.client)
    status: Any = client.status()
    yield from _version(status.version)
    if not status.leader:
        yield _leaderless("The member that answers knows no leader.")
    yield from _size(status)
    for look in (_members, _alarms):
        yield from _permitted(partial(look, client))


def _version(version: str) -> Iterator[Finding]:
    yield Finding("etcd.version", "ok", f"etcd {version}.")
    if _lacks(version, _LOSES_WRITES):
        yield Finding(
            "etcd.loses-writes",
            "warning",
            f"A member of etcd {version} that is killed may lose what it has acknowledged, and "
            "differ from the others for ever (etcd's issue 13766).",
            "Upgrade it: no version from 3.5.0 to 3.5.2 is for production.",
        )
    if found := [text for mended, text in _DEFECTS if _lacks(version, mended)]:
        yield Finding(
            "etcd.old",
            "note",
            f"etcd {version} has defects that a job may notice: {'; '.join(found)}.",
            "The newest 3.4, 3.5 and later have none of them.",
        )


def _lacks(version: str, mended: Mapping[str, int]) -> bool:
    """Whether a version is older than the patch of its minor version that mends something."""
    read = _VERSION.match(version)
    return read is not None and int(read[2]) < mended.get(read[1], 0)


def _permitted(look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except seam.EtcdError as exc:
        return [Finding("etcd.unknown", "note", f"etcd does not tell this user: {exc}")]


def _size(status: Any) -> Iterator[Finding]:
    quota = status.dbSizeQuota or _QUOTA
    told = "" if status.dbSizeQuota else " unless it was set (this version does not tell)"
    part = status.dbSize / quota
    text = f"The database has {status.dbSize / 1e6:.1f} MB of {quota / 1e6:.0f} MB{told}."
    if part > _FULL:
        yield Finding(
            "etcd.nearly-full",
            "warning",
            text,
            "Make room (etcdctl compact, then defrag), or raise --quota-backend-bytes: a full one "
            "refuses all writes.",
        )
    else:
        yield Finding("etcd.size", "ok", text)


def _members(client: EtcdClient) -> list[Finding]:
    members = [each for each in client.members().members if not each.isLearner]
    names = ", ".join(each.name or "(not started)" for each in members)
    count = len(members)
    if count > 1 and count % 2 == 0:
        return [
            Finding(
                "etcd.even",
                "warning",
                f"The cluster has {count} members ({names}): it stands the loss of "
                f"{count // 2 - 1}, as one with {count - 1} would.",
                "Add one, or remove one.",
            )
        ]
    stands = f"stands the loss of {(count - 1) // 2}" if count > 1 else "stands the loss of none"
    return [
        Finding(
            "etcd.members",
            "ok" if count > 1 else "note",
            f"The cluster has {count} {'members' if count > 1 else 'member'} ({names}): it "
            f"{stands}.",
        )
    ]


def _alarms(client: EtcdClient) -> list[Finding]:
    kinds = sorted({int(each.alarm) for each in client.alarms().alarms})
    findings = []
    for kind in kinds:
        name = _ALARMS.get(kind, str(kind))
        if name == "NOSPACE":
            findings.append(_full("A member has raised the alarm NOSPACE: etcd refuses writes."))
        else:
            findings.append(
                Finding(
                    "etcd.alarm",
                    "error",
                    f"A member has raised the alarm {name}.",
                    "See etcdctl alarm list, and the manual on the corruption of data.",
                )
            )
    return findings
