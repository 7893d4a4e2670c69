"""EtcdClient: a thin client for etcd's v3 API on grpcio and protobuf."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from rdzv.endpoint import parse_rendezvous_endpoint, redact

from . import seam
from .seam import Compare, Deleted, Event, Get, KeyValue, Lease, Put, PutDone, Range, Txn
from .wire import METHODS, Message, message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEFAULT_PORT", "EtcdClient", "Tls"]

DEFAULT_PORT = 2379
"""The port of an endpoint that names none."""

_OPTIONS = (
    # Notice a server that was frozen, or a network that swallows everything. The last of them
    # is what an idle watch goes by.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # Where a name has several addresses, and the first is nobody's.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two clients in one process must not share a connection: one of them may be closing it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A watch is read by a thread of its own anyway.
    ("SingleThreadedUnaryStream", 1),
)

_RETRY = 0.1
"""Seconds between two attempts while the members elect a leader, or none can be reached."""

_HAS_LEADER = (("hasleader", "true"),)
"""Have a member that is cut off from its leader say so, instead of letting the caller wait."""

_WHAT = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}
_FIELD = ("version", "create_revision", "mod_revision", "value", "lease")
_SIGN = {"=": 0, ">": 1, "<": 2, "!=": 3}
_BY_CREATION = 2
_DELETED = 1

_RANGE, _PUT, _DELETE = (
    message("RangeRequest"),
    message("PutRequest"),
    message("DeleteRangeRequest"),
)
_OP, _COMPARE, _TXN = message("RequestOp"), message("Compare"), message("TxnRequest")
_CREATE, _WATCH = message("WatchCreateRequest"), message("WatchRequest")


@dataclass(frozen=True)
class Tls:
    """Files for TLS, in PEM.

    Attributes:
        ca: Certificates to trust; the system's where it is not given.
        cert: This client's certificate.
        key: Its key; ``cert`` holds both where it is not given.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            OSError: One of them cannot be read.
        """
        ca, cert = self._read(self.ca), self._read(self.cert)
        key = self._read(self.key) or cert
        return grpc.ssl_channel_credentials(ca, key, cert)

    @staticmethod
    def _read(path: str | os.PathLike[str] | None) -> bytes | None:
        if path is None:
            return None
        with open(path, "rb") as file:
            return file.read()


@dataclass
class _Connection:
    """A channel to one member."""

    index: int
    endpoint: str
    channel: grpc.Channel
    token: str = ""
    closed: bool = False
    calls: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for method, (service, request, response) in METHODS.items():
            kind = self.channel.unary_stream if method == "Watch" else self.channel.unary_unary
            self.calls[method] = kind(
                f"/etcdserverpb.{service}/{method}",
                message(request).SerializeToString,
                message(response).FromString,
            )

    def call(self, method: str, request: Message, timeout: float | None) -> Any:
        metadata = (*_HAS_LEADER, ("token", self.token)) if self.token else _HAS_LEADER
        return self.calls[method](request, timeout=timeout, metadata=metadata)

    def close(self) -> None:
        self.closed = True
        self.channel.close()


class EtcdClient(seam.Client):
    """A client of an etcd cluster, over one connection to one member at a time.

    When that member cannot be reached, does not answer or has lost its leader, the next
    endpoint is taken. What only reads, and what was surely not executed, is then tried
    again within ``timeout``; of a write it may be unknown. Watches go on
    where they were. A forked child gets a connection of its own at its first call; what the
    parent has under way stays the parent's.

    Args:
        endpoints: ``host:port`` of each member, ``[address]:port`` for IPv6; one text or
            several.
        tls: The files for TLS; without, it is not spoken.
        username: The user to log in as, if any.
        password: Its password.
        timeout: Seconds within which every call returns.
        connect_timeout: Seconds that connecting to one member may take.

    Raises:
        ValueError: An endpoint is malformed, or a user is given without a password.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        tls: Tls | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 5.0,
        connect_timeout: float = 5.0,
    ) -> None:
        if isinstance(endpoints, str):
            endpoints = endpoints.split(",")
        self._endpoints = [_written(endpoint) for endpoint in endpoints]
        if not self._endpoints:
            raise ValueError("The client of etcd needs an endpoint.")
        if bool(username) != bool(password):
            raise ValueError("The user name and the password of etcd go together.")
        self._credentials = None if tls is None else tls.credentials()
        self._login = (username, password) if username and password else None
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._next = 0
        self._connection: _Connection | None = None
        self._closed = False
        self._watches: set[_Watch] = set()

    @property
    def where(self) -> str:
        return ", ".join(self._endpoints)

    @property
    def timeout(self) -> float:
        """Seconds within which every call returns."""
        return self._timeout

    # ------------------------------------------------------------ keys

    def range(self, get: Get) -> Range:
        return _range(self._call("Range", _get(get), repeatable=True))

    def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        answer = self._call("Put", _PUT(key=key, value=value, lease=lease))
        return int(answer.header.revision)

    def delete(self, key: bytes, end: bytes = b"") -> int:
        return int(self._call("DeleteRange", _DELETE(key=key, range_end=end)).deleted)

    def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[seam.Op],
        failure: Sequence[seam.Op] = (),
    ) -> Txn:
        request = _TXN(
            compare=[_compare(each) for each in compare],
            success=[_op(each) for each in success],
            failure=[_op(each) for each in failure],
        )
        reads = all(isinstance(each, Get) for each in (*success, *failure))
        answer = self._call("Txn", request, repeatable=reads)
        # An operation's own revision is that of the transaction.
        revision = int(answer.header.revision)
        results = tuple(_result(each, revision) for each in answer.responses)
        return Txn(answer.succeeded, revision, results)

    # ------------------------------------------------------------ leases

    def lease_grant(self, ttl: int, lease: int = 0) -> Lease:
        request = message("LeaseGrantRequest")(TTL=ttl, ID=lease)
        try:
            # One that etcd numbers, and nobody then knows of, ends by itself.
            answer = self._call("LeaseGrant", request, repeatable=True)
        except _LeaseExistsError:
            return Lease(lease, ttl)
        return Lease(int(answer.ID), int(answer.TTL))

    def lease_keepalive(self, lease: int) -> int:
        # A stream of one request and one response looks like a plain call on the wire.
        request = message("LeaseKeepAliveRequest")(ID=lease)
        return max(0, int(self._call("LeaseKeepAlive", request, repeatable=True).TTL))

    def lease_revoke(self, lease: int) -> None:
        with contextlib.suppress(seam.LeaseGoneError):
            self._call("LeaseRevoke", message("LeaseRevokeRequest")(ID=lease), repeatable=True)

    # ------------------------------------------------------------ the rest

    def watch(self, key: bytes, end: bytes = b"", start_revision: int = 0) -> seam.Watch:
        if not start_revision:
            start_revision = self.range(Get(key, count_only=True)).revision + 1
        watch = _Watch(self, key, end, start_revision)
        with self._lock:
            self._watches.add(watch)
        watch.start()
        return watch

    def status(self) -> Message:
        """The connected member's version, size of its database and leader (0 for none)."""
        return self._call("Status", message("StatusRequest")(), repeatable=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        if connection is not None and os.getpid() == self._pid:
            connection.close()

    # ------------------------------------------------------------ calling

    def _call(self, method: str, request: Message, *, repeatable: bool = False) -> Message:
        """Call a method on some member; on another one where that does no harm."""
        until = time.monotonic() + self._timeout
        fresh = False
        while True:
            connection = self.connected(until)
            left = max(0.001, until - time.monotonic())
            try:
                return connection.call(method, request, left)
            except grpc.RpcError as exc:
                error = self.failed(connection, exc)
            except ValueError as exc:
                # Another thread has closed the channel; nothing was sent.
                error = seam.UnavailableError(f"etcd at {connection.endpoint}: {exc}", sent=False)
            if isinstance(error, _TokenError) and not fresh:
                fresh = True
                continue
            left = until - time.monotonic()
            again = isinstance(error, seam.UnavailableError) and (repeatable or not error.sent)
            if not again or left <= _RETRY or self._closed:
                raise error
            time.sleep(_RETRY)

    def connected(self, until: float) -> _Connection:
        """The connection, made anew if need be (at the next member that answers)."""
        if os.getpid() != self._pid:
            self._reset()  # gRPC's threads stayed with the parent.
        connection = self._connection
        if connection is not None:
            return connection
        with self._lock:
            if self._closed:
                raise seam.UnavailableError(f"The client of etcd at {self.where} was closed.")
            if self._connection is None:
                self._connection = self._connect(until)
            return self._connection

    def _connect(self, until: float) -> _Connection:
        errors = []
        for _ in self._endpoints:
            index = self._next
            left = min(self._connect_timeout, until - time.monotonic())
            try:
                return self._connect_to(index, max(0.001, left))
            except (seam.AuthError, seam.UnavailableError) as exc:
                errors.append(exc)
                self._next = (index + 1) % len(self._endpoints)
        refused = next((e for e in errors if isinstance(e, seam.AuthError)), None)
        if refused is not None:
            raise refused
        raise seam.UnavailableError("; ".join(dict.fromkeys(map(str, errors))))

    def _connect_to(self, index: int, timeout: float) -> _Connection:
        endpoint = self._endpoints[index]
        options = list(_OPTIONS)
        if self._credentials is None:
            channel = grpc.insecure_channel(endpoint, options)
        else:
            channel = grpc.secure_channel(endpoint, self._credentials, options)
        connection = _Connection(index, endpoint, channel)
        try:
            if self._login is not None:
                self._log_in(connection, timeout)
            else:
                # Whether somebody is there, before anything is sent that must not be repeated.
                connection.call("Status", message("StatusRequest")(), timeout)
        except grpc.RpcError as exc:
            connection.close()
            raise _translated(exc, endpoint) from exc
        return connection

    def _log_in(self, connection: _Connection, timeout: float) -> None:
        name, password = self._login or ("", "")
        request = message("AuthenticateRequest")(name=name, password=password)
        try:
            connection.token = connection.call("Authenticate", request, timeout).token
        except grpc.RpcError as exc:
            # Where everybody may do everything, a login is no mistake: etcd's own clients
            # go on as well.
            if "authentication is not enabled" not in (exc.details() or ""):
                raise

    def failed(self, connection: _Connection, exc: grpc.RpcError) -> seam.EtcdError:
        """The error of a call; the connection is given up where it is the reason."""
        error = _translated(exc, connection.endpoint)
        if isinstance(error, (seam.UnavailableError, _TokenError)):
            self.drop(connection, elsewhere=not isinstance(error, _TokenError))
        return error

    def drop(self, connection: _Connection, *, elsewhere: bool) -> None:
        """Use this connection no more; and connect to another member next."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                if elsewhere:
                    self._next = (connection.index + 1) % len(self._endpoints)
        if not connection.closed:
            connection.close()

    def log_in_again(self) -> None:
        """Have the next call get a new token."""
        connection = self._connection
        if connection is not None:
            self.drop(connection, elsewhere=False)

    def forget(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    @property
    def closed(self) -> bool:
        return self._closed


class _Watch(seam.Watch):
    """A watch, read by a thread of its own that opens it anew wherever it breaks."""

    def __init__(self, client: EtcdClient, key: bytes, end: bytes, revision: int) -> None:
        self._client = client
        self._key, self._end = key, end
        self._revision = revision
        self._changed = threading.Condition()
        self._events: deque[list[Event] | None] = deque()
        self._error: seam.EtcdError | None = None
        self._closed = False
        self._failed = False
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="rdzv-etcd-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self, timeout: float) -> list[Event] | None:
        with self._changed:
            self._changed.wait_for(self._ready, timeout)
            if self._events:
                if self._events[0] is None:
                    return self._events.popleft()
                events: list[Event] = []
                while self._events and self._events[0] is not None:
                    events += self._events.popleft() or ()
                return events
            if self._closed:
                raise seam.EtcdError(f"The watch at {self._client.where} was closed.")
            error = self._error
            if error is None:
                return []
            if not self._failed:
                self._error = None
            raise error

    def _ready(self) -> bool:
        return bool(self._events) or self._closed or self._error is not None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()
        self._client.forget(self)

    def _say(self, events: list[Event] | None) -> None:
        with self._changed:
            self._events.append(events)
            self._error = None
            self._changed.notify_all()

    def _complain(self, error: seam.EtcdError, *, for_good: bool = False) -> None:
        with self._changed:
            self._error, self._failed = error, for_good
            self._changed.notify_all()

    def _run(self) -> None:
        broken_at: float | None = None
        denied = False
        while not self._closed:
            seen = self._revision
            error = self._read()
            if self._closed:
                return
            now = time.monotonic()
            if self._revision != seen:
                broken_at, denied = None, False
            if isinstance(error, seam.CompactedError):
                self._revision = error.revision
                self._say(None)
                continue
            if isinstance(error, seam.AuthError) and not denied:
                # etcd says the same of a token that has expired.
                denied = True
                self._client.log_in_again()
                continue
            if not isinstance(error, seam.UnavailableError) or self._client.closed:
                self._complain(error, for_good=True)
                return
            broken_at = now if broken_at is None else broken_at
            if now - broken_at >= self._client.timeout:
                self._complain(error)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _RETRY)

    def _read(self) -> seam.EtcdError:
        """Take what etcd sends until it ends; returns why."""
        try:
            connection = self._client.connected(time.monotonic() + self._client.timeout)
        except seam.EtcdError as exc:
            return exc
        try:
            for response in self._open(connection):
                if response.canceled:
                    return _canceled(response)
                if response.events:
                    self._revision = response.header.revision + 1
                    self._say([_event(event) for event in response.events])
        except grpc.RpcError as exc:
            return self._client.failed(connection, exc)
        except ValueError as exc:  # Another thread has closed the channel.
            return seam.UnavailableError(f"etcd at {connection.endpoint}: {exc}")
        self._client.drop(connection, elsewhere=True)
        return seam.UnavailableError(f"etcd at {connection.endpoint} has ended a watch.")

    def _open(self, connection: _Connection) -> Any:
        create = _CREATE(key=self._key, range_end=self._end, start_revision=self._revision)
        # etcd goes on after the client has said all that it has to say.
        call = connection.call("Watch", _WATCH(create_request=create), None)
        with self._changed:
            self._call = call
            closed = self._closed
        if closed:
            call.cancel()
        return call


class _TokenError(seam.AuthError):
    """The token of the login has expired: a new one may help."""


class _LeaseExistsError(seam.EtcdError):
    """There is a lease of that number."""


# What etcd says, of some of its errors; the codes alone do not tell them apart.
_SAYINGS: tuple[tuple[str, type[seam.EtcdError]], ...] = (
    ("invalid auth token", _TokenError),
    ("auth: revision in header is old", _TokenError),
    ("auth store is old", _TokenError),
    ("user name is empty", seam.AuthError),
    ("authentication failed", seam.AuthError),
    ("permission denied", seam.AuthError),
    ("required revision has been compacted", seam.CompactedError),
    ("requested lease not found", seam.LeaseGoneError),
    ("lease already exists", _LeaseExistsError),
    ("database space exceeded", seam.NoSpaceError),
    ("request is too large", seam.TooLargeError),
    ("too many operations", seam.TooLargeError),
    ("larger than max", seam.TooLargeError),
)

# Said before anything was done.
_UNDONE = ("no leader", "too many requests", "leader changed before", "not capable")


def _translated(exc: grpc.RpcError, endpoint: str) -> seam.EtcdError:
    details = redact((exc.details() or "").strip().removeprefix("etcdserver: "))
    text = f"etcd at {endpoint}: {details or exc.code().name}"
    for saying, kind in _SAYINGS:
        if saying in details:
            return kind(text)
    codes = grpc.StatusCode
    if exc.code() is codes.DEADLINE_EXCEEDED:
        return seam.TimeoutError(f"etcd at {endpoint} does not answer in time.")
    if exc.code() in (codes.UNAVAILABLE, codes.CANCELLED, codes.UNKNOWN, codes.INTERNAL):
        return seam.UnavailableError(text, sent=not any(saying in details for saying in _UNDONE))
    if exc.code() in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
        return seam.AuthError(text)
    return seam.EtcdError(text)


def _canceled(response: Message) -> seam.EtcdError:
    """Why the server has ended a watch."""
    if response.compact_revision:
        return seam.CompactedError(
            "etcd has compacted what was watched.", response.compact_revision
        )
    text = f"etcd has ended a watch: {response.cancel_reason or 'it does not say why'}"
    if "no leader" in text:
        return seam.UnavailableError(text)
    if "permission denied" in text or "token" in text:
        return seam.AuthError(text)
    return seam.EtcdError(text)


def _written(endpoint: str) -> str:
    """An endpoint as gRPC reads it."""
    host, port = parse_rendezvous_endpoint(endpoint, DEFAULT_PORT)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---------------------------------------------------------------- to and from the wire


def _get(get: Get) -> Message:
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
        return _OP(request_put=_PUT(key=op.key, value=op.value, lease=op.lease))
    if isinstance(op, Get):
        return _OP(request_range=_get(op))
    return _OP(request_delete_range=_DELETE(key=op.key, range_end=op.end))


def _compare(compare: Compare) -> Message:
    target = _WHAT[compare.what]
    return _COMPARE(
        key=compare.key,
        target=target,
        result=_SIGN[compare.sign],
        **{_FIELD[target]: compare.value},
    )


def _kv(kv: Message) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _range(answer: Message, revision: int = 0) -> Range:
    kvs = tuple([_kv(kv) for kv in answer.kvs])
    return Range(revision or answer.header.revision, kvs, answer.count, answer.more)


def _result(op: Message, revision: int) -> seam.Result:
    if op.HasField("response_range"):
        return _range(op.response_range, revision)
    if op.HasField("response_delete_range"):
        return Deleted(op.response_delete_range.deleted)
    return PutDone()


def _event(event: Message) -> Event:
    return Event(_kv(event.kv), event.type == _DELETED)
