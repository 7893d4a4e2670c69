"""Events as lines of JSON: what is written can be read, and what cannot be is said."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from rdzv import eventlog, events
from rdzv.events import Completed, Event, Failed, Lost, Reopened

COMMON = {"run_id": "run", "node": "n0_1_0", "round": 3, "at": 12.5, "backend": "c10d"}
KINDS = [each for each in vars(events).values() if isinstance(each, type)
         and issubclass(each, Event) and each is not Event]  # fmt: skip


def example(kind: type[Event]) -> Event:
    """An event of a kind, with something in each of its fields."""
    values = {int: 7, float: 0.5, str: "text", bool: True, tuple[str, ...]: ("n1", "n2")}
    types = typing.get_type_hints(kind)
    own = {f.name: values[types[f.name]] for f in dataclasses.fields(kind)
           if f.name not in {*COMMON, "time"}}  # fmt: skip
    return kind(**COMMON, **own)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_event_is_read_as_it_was_written(kind):
    event = example(kind)
    line = eventlog.decode(eventlog.encode(event))
    assert (line.schema, line.event) == (1, kind.__name__)
    for each in dataclasses.fields(event):
        read, written = getattr(line, each.name), getattr(event, each.name)
        if each.name == "time":
            read = read.isoformat(timespec="milliseconds")
        assert read == written, each.name


def test_an_event_of_an_extensions_own_is_written_and_read():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Admitted(Event):
        nodes: int
        step: int

    data = eventlog.encode(Admitted(**COMMON, nodes=2, step=100))  # type: ignore[arg-type]
    assert json.loads(data)["step"] == 100
    assert eventlog.decode(data).event == "Admitted"


@pytest.mark.parametrize("error", ["x" * 10**6, "\udcff\x00\n\"'", "\u202e" * 10**5])
def test_whatever_an_error_says_is_one_line_that_can_be_read(error):
    data = eventlog.encode(Failed(**COMMON, error=error))  # type: ignore[arg-type]
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert eventlog.decode(data).error[:1] in (error[0], "?")


def test_very_many_names_are_cut():
    lost = tuple(f"n{number}" for number in range(10**5))
    data = eventlog.encode(Lost(**COMMON, lost=lost))  # type: ignore[arg-type]
    assert eventlog.decode(data).lost == lost[:200]


def good(**changes: object) -> bytes:
    fields = json.loads(eventlog.encode(Completed(**COMMON, rank=0, world_size=1)))  # type: ignore[arg-type]
    return json.dumps({**fields, **changes}).encode()


def test_fields_of_later_versions_are_passed_over():
    assert eventlog.decode(good(weather="fine")).rank == 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no JSON",
        b"[]",
        b"\xff\xfe",
        b"{" * 60000,
        b'{"a":' * 10000,
        good()[:-1],
        good(schema=2),
        good(at="soon"),
        good(at=1e300),
        good(at=-1),
        good(round=-1),
        good(rank=2**60),
        good(time="yesterday"),
        good(time="2026-01-01T00:00:00"),
        good(lost=[1]),
        good(node=None),
        b" " * (eventlog.MAX_LINE + 1),
    ],
    ids=lambda line: line[:20].decode("latin1"),
)
def test_what_is_no_such_line_is_an_error_that_says_why(line):
    with pytest.raises(ValueError, match=r".{5}"):
        eventlog.decode(line)


def test_a_reopening_counts_nodes_and_a_loss_names_them():
    reopened = Reopened(**COMMON, reason="1 node lost", lost=1)  # type: ignore[arg-type]
    assert eventlog.decode(eventlog.encode(reopened)).lost == 1
    lost = Lost(**COMMON, lost=("n1",), silent=2.5)  # type: ignore[arg-type]
    assert eventlog.decode(eventlog.encode(lost)).lost == ("n1",)
