"""Between the seam's plain types and errors and those of the wire."""

from __future__ import annotations

import re
from collections.abc import Sequence

import grpc

from rdzv.endpoint import redact

from . import seam
from .seam import Compare, Deleted, Event, Get, KeyValue, Put, PutDone, Range
from .wire import Message, message

__all__ = [
    "BusyError",
    "LeaseExistsError",
    "TokenError",
    "call_error",
    "canceled_error",
    "delete_request",
    "event_of",
    "get_request",
    "put_request",
    "range_of",
    "result_of",
    "txn_request",
]

_RANGE, _PUT, _DELETE = (
    message("RangeRequest"),
    message("PutRequest"),
    message("DeleteRangeRequest"),
)
_OP, _COMPARE, _TXN = message("RequestOp"), message("Compare"), message("TxnRequest")

_WHAT = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}
_FIELD = ("version", "create_revision", "mod_revision", "value", "lease")
_SIGN = {"=": 0, ">": 1, "<": 2, "!=": 3}
_BY_CREATION = 2
_DELETED = 1


# ---------------------------------------------------------------- errors


class TokenError(seam.AuthError):
    """The token of the login is not known any more: a new one may help."""


class LeaseExistsError(seam.EtcdError):
    """There is a lease of that number."""


class BusyError(seam.UnavailableError):
    """The member has more requests than it takes: it is to be asked again, not left."""


# What etcd says of some of its errors, since their codes alone do not tell them apart; and what
# helps, where that is not plain.
_SAYINGS: tuple[tuple[str, type[seam.EtcdError], str], ...] = (
    ("invalid auth token", TokenError, ""),
    ("revision in header is old", TokenError, ""),
    ("auth store is old", TokenError, ""),
    ("user name is empty", seam.AuthError, "It wants a login: give a user name and a password"),
    ("authentication failed", seam.AuthError, "Check the user name and the password"),
    ("permission denied", seam.AuthError, "The user's roles must permit these keys"),
    ("required revision has been compacted", seam.CompactedError, ""),
    ("requested lease not found", seam.LeaseGoneError, ""),
    ("lease already exists", LeaseExistsError, ""),
    (
        "database space exceeded",
        seam.NoSpaceError,
        "Make room (etcdctl compact, then defrag) and disarm the alarm (etcdctl alarm disarm)",
    ),
    ("request is too large", seam.TooLargeError, ""),
    ("too many operations", seam.TooLargeError, ""),
    ("larger than max", seam.TooLargeError, ""),
)

# Said before anything was done.
_UNDONE = ("no leader", "proposal dropped", "not capable")

# Why there is no connection, in the words of gRPC, and what helps.
_CONNECTING = re.compile(r"failed to connect to all addresses; last error: \w+: (?:ip\S+ )?")
_ENDED = "Perhaps it speaks TLS: then give the file of its CA"
_CERTIFICATE = "It does not accept this client's certificate: give one that its CA vouches for"
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "Its certificate is for another host, or not from the CA that is trusted here",
    ),
    ("ALERT|CERTIFICATE_REQUIRED|TSI_DATA_CORRUPTED", _CERTIFICATE),
    (
        "WRONG_VERSION|Handshake read failed",
        "Perhaps it does not speak TLS: then give no TLS files",
    ),
    ("Socket closed|reset by peer|Broken pipe", _ENDED),
    ("security handshaker", "Check the files of the CA, the certificate and the key"),
    ("SETTINGS|HTTP/2", "What listens there is no etcd: check the port"),
)


def call_error(exc: grpc.RpcError, endpoint: str, *, tls: bool = False) -> seam.EtcdError:
    """What the seam calls the error of a call."""
    details = redact((exc.details() or "").strip().removeprefix("etcdserver: "))
    text = f"etcd at {endpoint}: {details or exc.code().name}."
    for saying, kind, advice in _SAYINGS:
        if saying in details:
            return kind(f"{text} {advice}." if advice else text)
    if "too many requests" in details:
        return BusyError(text, sent=False)
    codes = grpc.StatusCode
    if exc.code() is codes.DEADLINE_EXCEEDED:
        return seam.TimeoutError(f"etcd at {endpoint} does not answer in time.")
    if exc.code() in (
        codes.UNAVAILABLE,
        codes.CANCELLED,
        codes.UNKNOWN,
        codes.INTERNAL,
        codes.RESOURCE_EXHAUSTED,
    ):
        reason, connecting = _CONNECTING.subn("", details)
        if connecting:
            text = f"etcd at {endpoint} cannot be reached: {reason}."
            for pattern, advice in _ADVICE:
                if re.search(pattern, reason):
                    # Who misses a certificate may say so, or just end the connection.
                    text += f" {_CERTIFICATE if tls and advice is _ENDED else advice}."
                    break
        sent = not connecting and not any(saying in details for saying in _UNDONE)
        return seam.UnavailableError(text, sent=sent)
    if exc.code() in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
        return seam.AuthError(text)
    return seam.EtcdError(text)


def canceled_error(response: Message, endpoint: str) -> seam.EtcdError:
    """Why the server has ended a watch."""
    if response.compact_revision:
        return seam.CompactedError(
            f"etcd at {endpoint} has compacted what was watched.", response.compact_revision
        )
    reason = redact(response.cancel_reason) or "it does not say why"
    text = f"etcd at {endpoint} has ended a watch: {reason}."
    if "no leader" in text:
        return seam.UnavailableError(text)
    if any(saying in text for saying, kind, _ in _SAYINGS if issubclass(kind, seam.AuthError)):
        return seam.AuthError(text)
    return seam.EtcdError(text)


# ---------------------------------------------------------------- requests


def put_request(put: Put) -> Message:
    """What asks for a ``Put``."""
    return _PUT(key=put.key, value=put.value, lease=put.lease)


def delete_request(delete: seam.Delete) -> Message:
    """What asks for a ``Delete``."""
    return _DELETE(key=delete.key, range_end=delete.end)


def txn_request(
    compare: Sequence[Compare], success: Sequence[seam.Op], failure: Sequence[seam.Op]
) -> Message:
    """What asks for a transaction."""
    return _TXN(
        compare=[_compare(each) for each in compare],
        success=[_op(each) for each in success],
        failure=[_op(each) for each in failure],
    )


def get_request(get: Get) -> Message:
    """What asks for a ``Get``."""
    request = _RANGE(key=get.key)
    if get.end:
        request.range_end = get.end
    if get.limit:
        request.limit = get.limit
    if get.keys_only:
        request.keys_only = True
    if get.count_only:
        request.count_only = True
    if get.by_creation:
        request.sort_target = _BY_CREATION
        request.sort_order = 1
    if get.created_after:
        request.min_create_revision = get.created_after + 1
    return request


def _op(op: seam.Op) -> Message:
    if isinstance(op, Put):
        return _OP(request_put=put_request(op))
    if isinstance(op, Get):
        return _OP(request_range=get_request(op))
    return _OP(request_delete_range=delete_request(op))


def _compare(compare: Compare) -> Message:
    target = _WHAT[compare.what]
    return _COMPARE(
        key=compare.key,
        target=target,
        result=_SIGN[compare.sign],
        **{_FIELD[target]: compare.value},
    )


# ---------------------------------------------------------------- answers


def _kv(kv: Message) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def range_of(answer: Message, revision: int = 0) -> Range:
    """The answer to a ``Get``, at a revision where it does not say so itself."""
    kvs = tuple([_kv(kv) for kv in answer.kvs])
    return Range(revision or answer.header.revision, kvs, answer.count, answer.more)


def result_of(op: Message, revision: int) -> seam.Result:
    """What came of one operation of a transaction."""
    if op.HasField("response_range"):
        return range_of(op.response_range, revision)
    if op.HasField("response_delete_range"):
        return Deleted(op.response_delete_range.deleted)
    return PutDone()


def event_of(event: Message) -> Event:
    """What a watch has seen."""
    return Event(_kv(event.kv), event.type == _DELETED)
