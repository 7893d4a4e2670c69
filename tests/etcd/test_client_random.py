"""Random operations on a real etcd have the results of a model in memory."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import (
    Compare,
    Delete,
    Deleted,
    EtcdError,
    Event,
    Get,
    KeyValue,
    LeaseGoneError,
    Op,
    Put,
    PutDone,
    Range,
    Result,
    Txn,
)
from rdzv_etcd.server import EtcdServer

from .clients import seen
from .servers import KINDS, program

SIGNS = {"=": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt}
FIELDS = {"create": "create_revision", "mod": "mod_revision", "value": "value"}
LEASES = (1, 2)

keys = st.sampled_from([b"a", b"b", b"c", b"d"])
ends = st.sampled_from([b"", b"", b"b", b"d", b"z"])
letters = st.sampled_from([b"", b"x", b"y"])
numbers = st.integers(0, 3)
gets = st.builds(
    Get,
    keys,
    ends,
    limit=st.integers(0, 2),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    by_creation=st.booleans(),
    created_after=numbers,
)
puts = st.builds(Put, keys, letters, st.sampled_from([0, 0, *LEASES]))
deletes = st.builds(Delete, keys, ends)
operations = st.one_of(gets, puts, deletes)
compares = st.one_of(
    st.builds(
        Compare,
        keys,
        st.sampled_from(["create", "mod", "version", "lease"]),
        numbers,
        st.sampled_from(list(SIGNS)),
    ),
    st.builds(Compare, keys, st.just("value"), letters, st.sampled_from(list(SIGNS))),
)
branches = st.lists(operations, max_size=4)


@dataclass(frozen=True)
class Transaction:
    compare: list[Compare]
    success: list[Op]
    failure: list[Op]


@dataclass(frozen=True)
class Grant:
    lease: int


@dataclass(frozen=True)
class Revoke:
    lease: int


@dataclass(frozen=True)
class KeepAlive:
    lease: int


leases = st.sampled_from(LEASES)
steps = st.one_of(
    operations,
    st.builds(Transaction, st.lists(compares, max_size=2), branches, branches),
    st.builds(Grant, leases),
    st.builds(Revoke, leases),
    st.builds(KeepAlive, leases),
)


@dataclass
class Model:
    """etcd, as far as the client uses it. Revisions count from where it began."""

    revision: int = 0
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)

    def holds(self, compare: Compare) -> bool:
        found = self.kvs.get(compare.key)
        if found is None:
            if compare.what == "value":
                return False
            found = KeyValue(compare.key, b"")
        value = getattr(found, FIELDS.get(compare.what, compare.what))
        return bool(SIGNS[compare.sign](value, compare.value))

    def of(self, key: bytes, end: bytes) -> list[KeyValue]:
        return [
            self.kvs[each]
            for each in sorted(self.kvs)
            if (key <= each < end if end else each == key)
        ]

    def do(self, op: Op, revision: int) -> Result:
        """Do it as a part of what has this revision, if it changes anything."""
        if isinstance(op, Put):
            old = self.kvs.get(op.key, KeyValue(op.key, b"", revision))
            new = old._replace(
                value=op.value, mod_revision=revision, version=old.version + 1, lease=op.lease
            )
            self._change(Event(new), revision)
            return PutDone()
        if isinstance(op, Delete):
            gone = self.of(op.key, op.end)
            for kv in gone:
                self._change(Event(KeyValue(kv.key, b"", 0, revision), True), revision)
            return Deleted(len(gone))
        found = self.of(op.key, op.end)
        if op.count_only:
            return Range(self.revision, (), len(found))
        kvs = [kv for kv in found if not op.created_after or kv.create_revision > op.created_after]
        if op.by_creation:
            kvs.sort(key=lambda kv: kv.create_revision)
        more = bool(op.limit) and len(kvs) > op.limit
        kvs = kvs[: op.limit or None]
        if op.keys_only:
            kvs = [kv._replace(value=b"") for kv in kvs]
        return Range(self.revision, tuple(kvs), len(found), more)

    def _change(self, event: Event, revision: int) -> None:
        self.revision = revision
        self.events.append(event)
        if event.deleted:
            del self.kvs[event.kv.key]
        else:
            self.kvs[event.kv.key] = event.kv

    def txn(self, step: Transaction) -> Txn:
        succeeded = all(map(self.holds, step.compare))
        branch = step.success if succeeded else step.failure
        self.check(branch)
        before = self.revision
        results = [self.do(op, before + 1) for op in branch]
        # All that it tells has the revision at its end.
        whole = [
            replace(each, revision=self.revision) if isinstance(each, Range) else each
            for each in results
        ]
        return Txn(succeeded, self.revision, tuple(whole))

    def check(self, branch: list[Op]) -> None:
        for op in branch:
            if isinstance(op, Put) and op.lease and op.lease not in self.leases:
                raise LeaseGoneError

    def revoke(self, lease: int) -> None:
        self.leases.discard(lease)
        revision = self.revision + 1
        for kv in [kv for kv in self.kvs.values() if kv.lease == lease]:
            self.do(Delete(kv.key), revision)


class Translated:
    """A client whose keys begin with a prefix and whose numbers begin at a base."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.prefix = uuid.uuid4().hex.encode()
        self.lease = uuid.uuid4().int >> 70
        self.base = client.range(Get(b"x")).revision

    def number(self, what: str, number: int) -> int:
        offset = {"create": self.base, "mod": self.base, "lease": self.lease}.get(what, 0)
        return number + offset if number else 0

    def op(self, op: Op) -> Op:
        op = replace(op, key=self.prefix + op.key)
        if isinstance(op, Put):
            return replace(op, lease=self.number("lease", op.lease))
        op = replace(op, end=self.prefix + op.end if op.end else b"")
        if isinstance(op, Get):
            return replace(op, created_after=self.number("create", op.created_after))
        return op

    def compare(self, compare: Compare) -> Compare:
        value = compare.value
        if isinstance(value, int):
            value = self.number(compare.what, value)
        return replace(compare, key=self.prefix + compare.key, value=value)

    def kv(self, kv: KeyValue) -> KeyValue:
        return KeyValue(
            kv.key.removeprefix(self.prefix),
            kv.value,
            kv.create_revision and kv.create_revision - self.base,
            kv.mod_revision - self.base,
            kv.version,
            kv.lease and kv.lease - self.lease,
        )

    def result(self, result: Result) -> Result:
        if isinstance(result, Range):
            kvs = tuple(map(self.kv, result.kvs))
            return replace(result, revision=result.revision - self.base, kvs=kvs)
        return result


def expected(model: Model, step: object) -> object:
    """What the step does to the model."""
    if isinstance(step, Transaction):
        return model.txn(step)
    if isinstance(step, Grant):
        model.leases.add(step.lease)
        return 60
    if isinstance(step, Revoke):
        model.revoke(step.lease)
        return None
    if isinstance(step, KeepAlive):
        return 60 if step.lease in model.leases else 0
    assert isinstance(step, (Get, Put, Delete))
    model.check([step])
    result = model.do(step, model.revision + 1)
    if isinstance(step, Put):
        return model.revision
    return result.count if isinstance(step, Delete) and isinstance(result, Deleted) else result


def actual(real: Translated, step: object) -> object:
    """What the step does to etcd."""
    client = real.client
    if isinstance(step, Transaction):
        found = client.txn(
            [real.compare(each) for each in step.compare],
            [real.op(each) for each in step.success],
            [real.op(each) for each in step.failure],
        )
        results = tuple(map(real.result, found.results))
        return Txn(found.succeeded, found.revision - real.base, results)
    if isinstance(step, Grant):
        return client.lease_grant(60, real.lease + step.lease).ttl
    if isinstance(step, Revoke):
        client.lease_revoke(real.lease + step.lease)
        return None
    if isinstance(step, KeepAlive):
        return client.lease_keepalive(real.lease + step.lease)
    assert isinstance(step, (Get, Put, Delete))
    op = real.op(step)
    if isinstance(op, Put):
        return client.put(op.key, op.value, op.lease) - real.base
    if isinstance(op, Delete):
        return client.delete(op.key, op.end)
    return real.result(client.range(op))


def outcome(do, *arguments: object) -> object:
    """The result, or the kind of the error."""
    try:
        return do(*arguments)
    except EtcdError as error:
        return type(error)


@pytest.fixture(scope="module", params=KINDS)
def client(request) -> Iterator[EtcdClient]:
    with EtcdServer(binary=program(request.param), durable=False) as server:
        client = EtcdClient(server.endpoint)
        yield client
        client.close()


def is_refused_as_a_whole(step: object) -> bool:
    """Whether a transaction changes a key twice, which etcd refuses before it looks further."""
    if not isinstance(step, Transaction):
        return False
    for branch in (step.success, step.failure):
        put = [op.key for op in branch if isinstance(op, Put)]
        gone = [op for op in branch if isinstance(op, Delete)]
        covered = [k for k in put for d in gone if (d.key <= k < d.end if d.end else k == d.key)]
        if len(set(put)) < len(put) or covered:
            return True
    return False


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=st.lists(steps.filter(lambda step: not is_refused_as_a_whole(step)), max_size=25))
def test_random_operations_have_the_results_of_the_model(client, plan):
    real, model = Translated(client), Model()
    watch = client.watch(real.prefix, real.prefix + b"\xff", start_revision=real.base + 1)
    for step in plan:
        assert outcome(actual, real, step) == outcome(expected, model, step), step
    wanted = model.events
    found = seen(watch, lambda found: len(found) >= len(wanted))
    told = [Event(real.kv(event.kv), event.deleted) for event in found if event is not None]
    # Within one revision the order of what is deleted is etcd's.
    assert sorted(map(repr, told)) == sorted(map(repr, wanted))
    assert [event.kv.mod_revision for event in told] == [e.kv.mod_revision for e in wanted]
    watch.close()
    for lease in LEASES:
        client.lease_revoke(real.lease + lease)
