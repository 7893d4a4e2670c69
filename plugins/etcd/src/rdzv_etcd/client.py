"""EtcdClient: a thin client for etcd's v3 API on grpcio and protobuf."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from rdzv.endpoint import parse_rendezvous_endpoint
from rdzv.options import written_host

from . import seam
from .forks import CLIENTS, GATE, PARENTS
from .options import DEFAULT_PORT
from .seam import Get, Lease, Range, Txn
from .translate import (
    BusyError,
    LeaseExistsError,
    TokenError,
    call_error,
    delete_request,
    get_request,
    put_request,
    range_of,
    result_of,
    txn_request,
)
from .watching import Reader, ReadWatch
from .wire import METHODS, Message, message

__all__ = ["CHANNEL_OPTIONS", "HAS_LEADER", "Connection", "EtcdClient", "Tls"]

CHANNEL_OPTIONS = (
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
    # Two clients in one process must not share a connection: one of them may be closing it, and
    # a forked child must not have its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # Nothing is repeated but what is repeated here. Calls are quicker without, too.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A watch is read by a thread of its own anyway.
    ("SingleThreadedUnaryStream", 1),
)

_RETRY = 0.1
"""Seconds between two attempts while the members elect a leader, or none can be reached."""

_SHORTEST = 0.001
"""Seconds for a call whose time is up: gRPC refuses a timeout that is not positive."""

Metadata = tuple[tuple[str, str], ...]

HAS_LEADER: Metadata = (("hasleader", "true"),)
"""Have a member that is cut off from its leader say so, instead of letting the caller wait."""


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


class Connection:
    """A channel to one member, and the login there.

    Args:
        index: The number of the member's endpoint.
        endpoint: The endpoint, for people.
        channel: The channel.
        close: What ends it; it is called once, also when nobody refers to it any more.
    """

    def __init__(
        self,
        index: int,
        endpoint: str,
        channel: grpc.Channel,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.index = index
        self.endpoint = endpoint
        self.metadata = HAS_LEADER
        self._calls = {
            method: (channel.unary_stream if method == "Watch" else channel.unary_unary)(
                f"/etcdserverpb.{service}/{method}",
                message(request).SerializeToString,
                message(response).FromString,
            )
            for method, (service, request, response) in METHODS.items()
        }
        self.close = weakref.finalize(self, close or channel.close)
        # At the end of the process threads that still call would be told, and print it.
        self.close.atexit = False

    def call(
        self,
        method: str,
        request: Message,
        timeout: float,
        metadata: Metadata = HAS_LEADER,
    ) -> Any:
        """Call a method other than that of a watch."""
        GATE.enter()
        try:
            return self._calls[method](request, timeout=timeout, metadata=metadata)
        finally:
            GATE.leave()

    def watch(self, request: Message, metadata: Metadata) -> Any:
        """Begin a watch: an iterator over what comes. The caller has passed the gate."""
        return self._calls["Watch"](request, metadata=metadata)


class EtcdClient(seam.Client):
    """A client of an etcd cluster, over one connection to one member at a time.

    When that member cannot be reached, does not answer or has lost its leader, the next
    endpoint is taken. What only reads, and what was surely not executed, is then tried
    again within ``timeout``; of a write it may be unknown. Watches go on where they were.
    A forked child gets a connection of its own at its first call; what the parent has under
    way, and its watches, stay the parent's. A client that nobody refers to any more is
    closed, as is a watch.

    Args:
        endpoints: ``host:port`` of each member, ``[address]:port`` for IPv6; one text or
            several.
        tls: The files for TLS; without, it is not spoken.
        username: The user to log in as, if any.
        password: Its password.
        timeout: Seconds within which every call returns. Where there are several endpoints
            half of it is for the first member that is asked to read something.
        connect_timeout: The most seconds that connecting to one member may take; the
            members that are left to try share what is left of ``timeout``.

    Raises:
        ValueError: An endpoint is malformed, or a user is given without a password.
        OSError: A file for TLS cannot be read.
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
        self._endpoints = [
            written_host([parse_rendezvous_endpoint(endpoint, DEFAULT_PORT)])
            for endpoint in endpoints
        ]
        if not self._endpoints:
            raise ValueError("The client of etcd needs an endpoint.")
        if bool(username) != bool(password):
            raise ValueError("The user name and the password of etcd go together.")
        self._credentials = None if tls is None else tls.credentials()
        self._login = (username, password) if username and password else None
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._reset()
        CLIENTS.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Held while a member is looked for, or a login renewed, by one thread for all.
        self._connecting = threading.Lock()
        self._next = 0
        self._connection: Connection | None = None
        self._candidate: Connection | None = None
        self._closed = False
        self._readers: set[Reader] = set()

    def before_fork(self) -> None:
        """Have the watches' threads leave gRPC; they go on after the fork."""
        for reader in list(self._readers):
            reader.interrupt()

    def after_fork(self) -> None:
        """In the child: leave the connection and the watches to the parent."""
        closed = self._closed
        for connection in (self._connection, self._candidate):
            if connection is not None:
                connection.close.detach()
                PARENTS.append(connection)
        for reader in self._readers:
            reader.after_fork()
        self._reset()
        self._closed = closed

    @property
    def where(self) -> str:
        return ", ".join(self._endpoints)

    @property
    def timeout(self) -> float:
        """Seconds within which every call returns."""
        return self._timeout

    @property
    def has_login(self) -> bool:
        """Whether it can log in anew."""
        return self._login is not None

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._closed

    # ------------------------------------------------------------ keys

    def range(self, get: Get) -> Range:
        return range_of(self._call("Range", get_request(get), repeatable=True))

    def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        answer = self._call("Put", put_request(seam.Put(key, value, lease)))
        return int(answer.header.revision)

    def delete(self, key: bytes, end: bytes = b"") -> int:
        return int(self._call("DeleteRange", delete_request(seam.Delete(key, end))).deleted)

    def txn(
        self,
        compare: Sequence[seam.Compare],
        success: Sequence[seam.Op],
        failure: Sequence[seam.Op] = (),
    ) -> Txn:
        reads = all(isinstance(each, Get) for each in (*success, *failure))
        request = txn_request(compare, success, failure)
        answer = self._call("Txn", request, repeatable=reads)
        # An operation's own revision is that of the transaction.
        revision = int(answer.header.revision)
        results = tuple([result_of(each, revision) for each in answer.responses])
        return Txn(answer.succeeded, revision, results)

    # ------------------------------------------------------------ leases

    def lease_grant(self, ttl: int, lease: int = 0) -> Lease:
        request = message("LeaseGrantRequest")(TTL=ttl, ID=lease)
        asked = message("LeaseTimeToLiveRequest")(ID=lease)
        while True:
            try:
                # One that etcd numbers, and nobody then knows of, ends by itself.
                answer = self._call("LeaseGrant", request, repeatable=True)
                return Lease(int(answer.ID), int(answer.TTL))
            except LeaseExistsError:  # noqa: PERF203 - it is the exception
                found = self._call("LeaseTimeToLive", asked, repeatable=True)
                if found.TTL >= 0:
                    return Lease(lease, int(found.grantedTTL))

    def lease_keepalive(self, lease: int) -> int:
        # A stream of one request and one response looks like a plain call on the wire.
        request = message("LeaseKeepAliveRequest")(ID=lease)
        return max(0, int(self._call("LeaseKeepAlive", request, repeatable=True).TTL))

    def lease_revoke(self, lease: int) -> None:
        with contextlib.suppress(seam.LeaseGoneError):
            self._call("LeaseRevoke", message("LeaseRevokeRequest")(ID=lease), repeatable=True)

    # ------------------------------------------------------------ the rest

    def watch(self, key: bytes, end: bytes = b"", start_revision: int = 0) -> seam.Watch:
        until = time.monotonic() + self._timeout
        reader = Reader(self, key, end, start_revision)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._readers.add(reader)
        if start_revision:
            reader.start()
            return ReadWatch(reader)
        try:
            reader.begin(until, others=len(self._endpoints) > 1)
        except BaseException:
            reader.close()
            raise
        return ReadWatch(reader)

    def status(self) -> Message:
        """The connected member's version, size of its database and leader (0 for none)."""
        return self._call("Status", message("StatusRequest")(), repeatable=True)

    def members(self) -> Message:
        """The cluster's members, as the connected one knows them."""
        return self._call("MemberList", message("MemberListRequest")(), repeatable=True)

    def alarms(self) -> Message:
        """The alarms that members have raised, and nobody has disarmed."""
        return self._call("Alarm", message("AlarmRequest")(), repeatable=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections = (self._connection, self._candidate)
            self._connection = None
            readers = list(self._readers)
        for reader in readers:
            reader.close()
        for connection in connections:
            if connection is not None:
                connection.close()

    # ------------------------------------------------------------ calling

    def _call(self, method: str, request: Message, *, repeatable: bool = False) -> Message:
        """Call a method on some member; on another one where that does no harm."""
        until = time.monotonic() + self._timeout
        renewed = False
        failures = 0
        reason: seam.UnavailableError | None = None
        while True:
            connection = None
            try:
                connection = self.connected(until)
                # Whoever is frozen is not to keep the others from being asked.
                share = 2 if repeatable and len(self._endpoints) > 1 else 1
                left = max(_SHORTEST, (until - time.monotonic()) / share)
                metadata = connection.metadata
                try:
                    return connection.call(method, request, left, metadata)
                except (grpc.RpcError, ValueError) as exc:
                    # gRPC's own error says no more, and at length.
                    raise self.failed(connection, exc) from None
            except TokenError:
                if renewed or connection is None or not self.has_login:
                    raise
                renewed = True
                self.renew(connection, metadata, until)
            except seam.UnavailableError as error:
                again = (repeatable or not error.sent) and not self._closed
                if not again or until - time.monotonic() <= _RETRY:
                    if reason is not None and isinstance(error, seam.TimeoutError):
                        # The last attempt had no time to learn why.
                        reason.sent |= error.sent
                        raise reason from None
                    raise
                if not isinstance(error, seam.TimeoutError):
                    reason = error
                if failures:
                    time.sleep(_RETRY)
                failures += 1

    def failed(self, connection: Connection, exc: grpc.RpcError | ValueError) -> seam.EtcdError:
        """The seam's error of a call; the connection is given up where it is the reason."""
        if isinstance(exc, ValueError):
            # Another thread has closed the channel; nothing was sent.
            return seam.UnavailableError(f"etcd at {connection.endpoint}: {exc}", sent=False)
        error = call_error(exc, connection.endpoint, tls=self._credentials is not None)
        if isinstance(error, seam.UnavailableError) and not isinstance(error, BusyError):
            self.drop(connection)
        return error

    def drop(self, connection: Connection) -> None:
        """Use this connection no more; and connect to another member next."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._next = (connection.index + 1) % len(self._endpoints)
        # What others have under way there ends as well: they need not wait for their time.
        connection.close()

    def connected(self, until: float) -> Connection:
        """The connection, made anew if need be (at the next member that answers).

        Raises:
            UnavailableError: No member could be reached until then, or the client was closed.
            AuthError: The login is not accepted.
        """
        connection = self._connection
        if connection is not None:
            return connection
        with self._alone(until):
            connection = self._connection
            if connection is not None:
                return connection
            connection = self._connect(until)
            with self._lock:
                if not self._closed:
                    self._connection = connection
                    return connection
            connection.close()
            raise self._closed_error()

    def renew(self, connection: Connection, refused: Metadata, until: float) -> None:
        """Log in again, once for all threads whose token was refused."""
        with self._alone(until):
            if connection.metadata is refused:
                try:
                    self._log_in(connection, max(_SHORTEST, until - time.monotonic()))
                except (grpc.RpcError, ValueError) as exc:
                    raise self.failed(connection, exc) from None

    @contextlib.contextmanager
    def _alone(self, until: float) -> Iterator[None]:
        if not self._connecting.acquire(timeout=max(0.0, until - time.monotonic())):
            raise seam.TimeoutError(f"etcd at {self.where} does not answer in time.", sent=False)
        try:
            yield
        finally:
            self._connecting.release()

    def _connect(self, until: float) -> Connection:
        errors: list[seam.EtcdError] = []
        for left in range(len(self._endpoints), 0, -1):
            index = self._next
            share = (until - time.monotonic()) / left
            try:
                return self._connect_to(index, max(_SHORTEST, min(self._connect_timeout, share)))
            except (seam.AuthError, seam.UnavailableError) as exc:
                errors.append(exc)
                self._next = (index + 1) % len(self._endpoints)
        refused = next((e for e in errors if isinstance(e, seam.AuthError)), None)
        if refused is not None:
            raise refused
        late = all(isinstance(e, seam.TimeoutError) for e in errors)
        kind = seam.TimeoutError if late else seam.UnavailableError
        raise kind(" ".join(dict.fromkeys(map(str, errors))), sent=False)

    def _connect_to(self, index: int, timeout: float) -> Connection:
        connection = self.open_channel(index)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._candidate = connection
        try:
            if self._login is not None:
                self._log_in(connection, timeout)
            else:
                # Whether it is there and has a leader, before anything is sent that must
                # not be repeated.
                connection.call("Status", message("StatusRequest")(), timeout)
        except (grpc.RpcError, ValueError) as exc:
            raise self.failed(connection, exc) from None
        finally:
            self._candidate = None
        # One that has failed is closed by being forgotten.
        return connection

    def open_channel(self, index: int) -> Connection:
        """A channel to a member, by the number of its endpoint; nobody has looked who is there."""
        endpoint = self._endpoints[index]
        if self._credentials is None:
            channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
        else:
            channel = grpc.secure_channel(endpoint, self._credentials, CHANNEL_OPTIONS)
        return Connection(index, endpoint, channel)

    def _log_in(self, connection: Connection, timeout: float) -> None:
        name, password = self._login or ("", "")
        request = message("AuthenticateRequest")(name=name, password=password)
        try:
            token = connection.call("Authenticate", request, timeout).token
        except grpc.RpcError as exc:
            # Where everybody may do everything, a login is no mistake: etcd's own clients
            # go on as well.
            if "authentication is not enabled" not in (exc.details() or ""):
                raise
        else:
            connection.metadata = (*HAS_LEADER, ("token", token))

    def _closed_error(self) -> seam.UnavailableError:
        text = f"The client of etcd at {self.where} was closed."
        return seam.UnavailableError(text, sent=False)

    def forget(self, reader: Reader) -> None:
        """Have nothing to do with a watch any more."""
        # Without the lock: garbage collection may come here while this thread holds it.
        self._readers.discard(reader)
