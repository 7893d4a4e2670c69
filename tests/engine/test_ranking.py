"""Rank policies: what those that are built in give, and that the engine is safe from any other."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from rdzv import (
    DynamicRendezvousHandler,
    RankNode,
    RankPolicy,
    RendezvousStateError,
    RendezvousTimeout,
)
from rdzv.dynamic_rendezvous import messages as msg
from rdzv.dynamic_rendezvous.document import Document, Record, decode, encode
from rdzv.dynamic_rendezvous.leadership import Entry, Standing, assign_ranks
from rdzv.dynamic_rendezvous.ranking import BUILT_IN, STICKY, Ranking, checked
from rdzv.ranks import parse_labels
from rdzv.testing.simulation.policies import HOSTILE, split_group

from .memory import Memory, MemoryBackend
from .test_handler import background
from .world import World, members, rejoin

TOPOLOGY, SCHEDULER = BUILT_IN["topology"], BUILT_IN["scheduler"]


def node(name: str, rank: int = -1, labels: str = "", number: int | None = None) -> RankNode:
    return RankNode(name, "", rank, sum(name.encode()), parse_labels(labels), number)


def names(nodes) -> str:
    return "".join(each.node for each in nodes)


# ---------------------------------------------------------------- those that are built in

racks = st.sampled_from(["", "rack:r1", "rack:r2", "rack:r1/nvlink:d1", "rack:r2/nvlink:d1",
                         "rack:r1/nvlink:d2", "zone:r1"])  # fmt: skip


@st.composite
def rounds(draw) -> tuple[list[RankNode], str]:
    """The nodes that are about to form a round in any order, and their leader."""
    size = draw(st.integers(1, 12))
    old = draw(st.permutations([*range(12), *[-1] * 12]))
    made = [
        RankNode(f"n{n}", f"host{n}", old[n], n + 1, parse_labels(draw(racks)),
                 draw(st.none() | st.integers(0, 5)))
        for n in range(size)
    ]  # fmt: skip
    leader = draw(st.sampled_from([*(each.node for each in made), "elsewhere"]))
    return draw(st.permutations(made)), leader


def again(ranked) -> list[RankNode]:
    """The same nodes, as they come back for the next round in another order of arrival."""
    return [
        dataclasses.replace(each, rank=rank, ticket=100 - rank) for rank, each in enumerate(ranked)
    ]


@pytest.mark.parametrize("policy", BUILT_IN.values(), ids=BUILT_IN)
@given(formed=rounds())
def test_every_node_gets_one_rank_whatever_the_order_they_are_told_in(policy, formed):
    nodes, leader = formed
    ranked = policy.rank(nodes, leader)
    assert sorted(each.node for each in ranked) == sorted(each.node for each in nodes)
    assert ranked == policy.rank(nodes[::-1], leader)


@pytest.mark.parametrize("policy", BUILT_IN.values(), ids=BUILT_IN)
@given(formed=rounds(), other=st.integers(0, 20))
def test_where_nobody_came_or_went_nobody_moves_whoever_leads(policy, formed, other):
    ranked = again(policy.rank(*formed))
    leader = ranked[other % len(ranked)].node
    assert policy.rank(ranked[::-1], leader) == ranked


@pytest.mark.parametrize("policy", [STICKY, TOPOLOGY], ids=lambda policy: policy.name)
@given(formed=rounds())
def test_rank_0_is_the_first_of_those_that_stay_or_else_the_leader(policy, formed):
    nodes, leader = formed
    first = policy.rank(nodes, leader)[0]
    staying = [each for each in nodes if each.rank >= 0]
    if staying:
        assert first == min(staying, key=lambda each: each.rank)
    elif leader != "elsewhere":
        assert first.node == leader


@given(rounds())
def test_topology_puts_nodes_with_the_same_labels_side_by_side_at_every_depth(formed):
    ranked = TOPOLOGY.rank(*formed)
    ranks = {each.node: rank for rank, each in enumerate(ranked)}
    assert split_group(ranks, {each.node: each.labels for each in ranked}) == ""


@given(rounds(), rounds(), st.sets(st.integers(0, 11)))
def test_topology_keeps_the_order_of_groups_and_of_the_nodes_that_stay(formed, arrived, gone):
    ranked = again(TOPOLOGY.rank(*formed))
    staying = [each for each in ranked if each.rank not in gone]
    new = [
        dataclasses.replace(each, node=f"new{each.node}", rank=-1, ticket=200 + each.ticket)
        for each in arrived[0]
    ]
    after = TOPOLOGY.rank([*new, *staying], "newn0")

    def order(nodes, which) -> list[str]:
        outer = [each.labels[:1] or each.node for each in nodes if each.node in which]
        return list(dict.fromkeys(map(str, outer)))

    before = {each.node for each in staying}
    assert order(after, before) == order(staying, before)
    # Nobody goes before a group that was there.
    groups = order(after, {each.node for each in after})
    assert groups[: len(order(staying, before))] == order(staying, before)


def test_topology_by_an_example():
    first = [
        node("a", labels="rack:r1/nvlink:d1"),
        node("b", labels="rack:r2"),
        node("c", labels="rack:r1/nvlink:d2"),
        node("d"),
        node("e", labels="rack:r1/nvlink:d1"),
        node("f", labels="rack:r2"),
    ]
    ranked = TOPOLOGY.rank(first, "b")
    assert names(ranked) == "bfaecd"
    # b dies: f, of its rack, is rank 0. A node for the rack r1 comes into its place there.
    staying = [each for each in again(ranked) if each.node != "b"]
    after = TOPOLOGY.rank([node("g", labels="rack:r1/nvlink:d2"), *staying], "f")
    assert names(after) == "faecgd"


def test_scheduler_goes_by_the_numbers_and_puts_nodes_without_one_last():
    nodes = [node("a"), node("b", number=7), node("c", 0), node("d", number=2), node("e", 1)]
    assert names(SCHEDULER.rank(nodes, "a")) == "dbcea"
    # A replacement with the lowest number is rank 0 at once.
    assert names(SCHEDULER.rank([*nodes, node("f", number=0)], "a")) == "fdbcea"


def test_scheduler_orders_equal_numbers_as_they_were_before():
    nodes = [node("a", 1, number=3), node("b", 0, number=3), node("c", number=3)]
    assert names(SCHEDULER.rank(nodes, "c")) == "bac"


# ---------------------------------------------------------------- any policy, made safe


def entry(name: str, rank: int = -1, ticket: int = 1, **more: Any) -> Entry:
    record = Record("enter", name, f"host-{name}", 1, 0, 1.0, "id", **more)
    return Entry(ticket, rank, record, Standing.NEW)


ENTRIES = [entry("a", 1, 4), entry("b", 0, 3), entry("c", ticket=5)]


def fake(rank: Any) -> RankPolicy:
    return RankPolicy("fake", "a test", rank)


def raises(error: BaseException):
    def rank(nodes, leader):
        raise error

    return rank


def mine(*, node: str) -> RankNode:
    return RankNode(node, "", -1, 0)


WRONG = {
    "nothing": lambda nodes, leader: None,
    "too few": lambda nodes, leader: nodes[1:],
    "too many": lambda nodes, leader: [*nodes, nodes[0]],
    "one twice": lambda nodes, leader: [nodes[0], nodes[0], nodes[1]],
    "a stranger": lambda nodes, leader: [mine(node="x"), *nodes[1:]],
    "names": lambda nodes, leader: [each.node for each in nodes],
    "what cannot be hashed": lambda nodes, leader: [mine(node=[])] * 3,  # type: ignore[arg-type]
    "no end": lambda nodes, leader: itertools.cycle(nodes),
    "an error": raises(RuntimeError("no")),
    "an exit": raises(SystemExit(3)),
    "other arguments": lambda nodes: nodes,
}


@pytest.mark.parametrize("rank", WRONG.values(), ids=WRONG)
def test_where_a_policy_fails_ranks_are_sticky_and_it_is_said_once(rank, caplog):
    assign = checked(fake(rank))
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        for _ in range(3):
            assert assign(ENTRIES, "c") == assign_ranks(ENTRIES, "c")
    assert caplog.text.count("The rank policy 'fake'") == 1
    assert "'sticky'" in caplog.text


def test_a_policy_sees_what_the_nodes_have_told_and_may_return_any_sequence():
    seen = []

    def rank(nodes, leader):
        seen.append((*nodes, leader))
        return (each for each in reversed(nodes))

    told = entry("a", 2, 9, labels=(("rack", "r1"),), node_number=4)
    assert checked(fake(rank))([told, entry("b")], "b") == [entry("b"), told]
    assert seen == [
        (
            RankNode("a", "host-a", 2, 9, (("rack", "r1"),), 4),
            RankNode("b", "host-b", -1, 1, (), None),
            "b",
        )
    ]


@given(st.integers(1, 8), st.integers(0, 40))
def test_no_hostile_policy_gives_a_rank_twice_or_not_at_all(size, shift):
    entries = [entry(f"n{n}", n, n + shift) for n in range(size)]
    ranked = checked(HOSTILE)(entries, "n0")
    assert sorted(each.rank for each in ranked) == list(range(size))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"name": ""}, "name"),
        ({"name": "by rack"}, "by rack"),
        ({"name": "x" * 65}, "name"),
        ({"summary": ""}, "summary"),
        ({"summary": "two\nlines"}, "summary"),
        ({"rank": None}, "cannot be called"),
    ],
)
def test_a_policy_that_is_described_wrongly_is_refused(fields, what):
    with pytest.raises(ValueError, match=what):
        RankPolicy(**{"name": "x", "summary": "a test", "rank": print, **fields})


# ---------------------------------------------------------------- what a node is told

LABEL = st.from_regex(r"[0-9A-Za-z._-]{1,32}", fullmatch=True)


@given(st.dictionaries(LABEL, LABEL, max_size=4))
def test_labels_are_read_as_they_are_written(labels):
    text = "/".join(f"{name}:{value}" for name, value in labels.items())
    assert parse_labels(text) == tuple(labels.items())


@pytest.mark.parametrize(
    "text",
    ["rack", "rack:", ":r1", "rack=r1", "rack:r1/", "rack:r1,nvlink:d1", "rack:r 1", "rack:r1\n2",
     "räck:r1", "a:1/a:2", "a:1/b:2/c:3/d:4/e:5", "a" * 33 + ":1", "a:" + "1" * 64, "a:1:2",
     "rack:r1\x1b[2J"],
)  # fmt: skip
def test_labels_that_are_written_otherwise_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="rack:r1/nvlink:d3") as caught:
        parse_labels(text)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, -1),
        ({"SLURM_NODEID": "3"}, 3),
        ({"SLURM_NODEID": "1", "SLURM_PROCID": "3"}, 3),
        ({"JOB_COMPLETION_INDEX": "0", "SLURM_PROCID": ""}, 0),
    ],
)
def test_the_number_comes_from_the_scheduler_where_it_is_not_given(environment, number):
    assert Ranking.made("scheduler", None, None, environment).number == number
    assert Ranking.made("scheduler", None, 9, environment).number == 9


def test_labels_come_from_the_environment_where_they_are_not_given():
    environment = {"RDZV_LABELS": "rack:r1"}
    assert Ranking.made("topology", None, None, environment).labels == (("rack", "r1"),)
    assert Ranking.made("topology", "zone:z", None, environment).labels == (("zone", "z"),)
    assert Ranking.made("topology", "", None, environment).labels == ()


def test_sticky_tells_nothing_of_where_a_node_stands_and_is_the_default():
    environment = {"RDZV_LABELS": "rack:r1", "SLURM_PROCID": "no number"}
    assert Ranking.made(None, "rack:r2", 4, environment) == Ranking()
    assert Ranking.made("sticky", None, None, environment).recorded == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "what"),
    [
        (("sticky", "rack", None), {}, "labels of this node"),
        (("topology", None, None), {"RDZV_LABELS": "rack"}, "in RDZV_LABELS"),
        (("topology", ["rack"], None), {}, "must be a text"),
        (("scheduler", None, -1), {}, "node_number is -1"),
        (("scheduler", None, None), {"SLURM_PROCID": "x1"}, "SLURM_PROCID is 'x1'.*node_number"),
        (("scheduler", None, None), {"SLURM_NODEID": "9" * 5000}, "SLURM_NODEID"),
        ((["topology"], None, None), {}, "must be a name"),
    ],
)
def test_what_a_node_is_told_wrongly_is_refused(arguments, environment, what):
    name, labels, number = arguments
    with pytest.raises(ValueError, match=what):
        Ranking.made(name, labels, number, environment)


# ---------------------------------------------------------------- what is stored


def test_records_and_documents_of_runs_without_a_policy_are_as_they_always_were():
    record = Record("enter", "n", "host", 1, 0, 1.0, "id", slot=2)
    assert encode(record) == (
        b'{"kind":"enter","node":"n","addr":"host","pid":1,"local_id":0,"interval":1.0,"id":"id",'
        b'"slot":2}'
    )
    document = Document(1, "e", 1, "w", 2, 4)
    assert encode(document) == (
        b'{"schema":1,"epoch":"e","version":1,"write":"w","min_nodes":2,"max_nodes":4}'
    )


@given(st.dictionaries(LABEL, LABEL, max_size=4), st.integers(-1, 10**6))
def test_what_a_node_was_told_survives_being_stored(labels, number):
    record = Record("enter", "n", "host", 1, 0, 1.0, "id",
                    labels=tuple(labels.items()), node_number=number)  # fmt: skip
    assert decode(Record, encode(record), "here") == record


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": [["a", "1"]] * 5},
        {"labels": [["a"]]},
        {"labels": [["a" * 33, "1"]]},
        {"labels": [["a", "1" * 64]]},
        {"labels": [["a", "1\n"]]},
        {"labels": [["a", "\x1b"]]},
        {"labels": "rack"},
        {"node_number": -2},
        {"node_number": 10**6 + 1},
        {"node_number": "1"},
    ],
)
def test_labels_and_numbers_that_no_node_writes_are_a_state_error(fields):
    record = msgspec.to_builtins(Record("enter", "n", "host", 1, 0, 1.0, "id"))
    with pytest.raises(RendezvousStateError):
        decode(Record, msgspec.json.encode({**record, **fields}), "here")


@pytest.mark.parametrize("name", ["x" * 65, "a policy", "\x1b[2J", 7])
def test_a_policy_that_no_node_can_have_is_a_state_error(name):
    document = msgspec.to_builtins(Document(1, "e", 1, "w", 2, 4))
    with pytest.raises(RendezvousStateError):
        decode(Document, msgspec.json.encode({**document, "rank_policy": name}), "here")


# ---------------------------------------------------------------- in a run


class Racks(World):
    """Nodes in two racks by turns."""

    def __init__(self, count: int, low: int, high: int, policy: RankPolicy = TOPOLOGY) -> None:
        self.policy = policy
        super().__init__(0, low, high, last_call=5.0)
        self.settings = dataclasses.replace(
            self.settings, rank_policy=policy.name, assign=checked(policy)
        )
        for number in range(count):
            self.add_to(f"rack:r{number % 2}")

    def add_to(self, labels: str):
        added = self.add()
        machine = added.machine
        machine._me = msgspec.structs.replace(machine._me, labels=parse_labels(labels))
        return added


def formed_in_racks(count: int, low: int, high: int, policy: RankPolicy = TOPOLOGY) -> Racks:
    world = Racks(count, low, high, policy)
    world.join()
    world.advance(world.settings.last_call + 0.1)
    return world


def test_a_policy_ranks_the_rounds_of_a_run_whoever_leads_it():
    world = formed_in_racks(4, 2, 5)
    assert world.document.rank_policy == "topology"
    assert members(world) == [0, 2, 1, 3]
    world.nodes[0].kill()
    world.advance(12.0)
    rejoin(world)
    world.advance(6.0)
    assert members(world) == [2, 1, 3]
    late = world.add_to("rack:r0")
    world.join(late)
    world.advance(1.0)
    rejoin(world)
    world.advance(6.0)
    assert members(world) == [2, 4, 1, 3]
    assert world.leader is not world.nodes[0]
    assert world.document.rank_policy == "topology"


def test_a_round_completes_where_the_policy_fails():
    world = formed_in_racks(3, 2, 3, fake(raises(RuntimeError("no"))))
    assert members(world) == [0, 1, 2]


def test_rank_0_need_not_be_the_leader_where_a_policy_says_so():
    last_first = fake(lambda nodes, leader: sorted(nodes, key=lambda each: -each.ticket))
    world = formed_in_racks(3, 2, 3, last_first)
    assert members(world) == [2, 1, 0]
    assert world.leader is world.nodes[0]
    assert world.document.master.host == "host2"


@pytest.mark.parametrize(("theirs", "mine"), [("topology", ""), ("", "topology")])
def test_nodes_that_disagree_about_the_policy_are_told_both(theirs, mine):
    world = World(0, 2, 4)
    world.settings = dataclasses.replace(world.settings, rank_policy=theirs)
    world.add()
    world.join()
    other = world.add(dataclasses.replace(world.settings, rank_policy=mine))
    with pytest.raises(RendezvousStateError) as caught:
        other.tell(msg.Join())
    for text in (f"rank_policy={mine or 'sticky'}", f"rank_policy={theirs or 'sticky'}", "run id"):
        assert text in str(caught.value)
    assert world.tail == 1


def test_handlers_with_labels_get_neighbouring_ranks_with_the_roster_inside_the_state():
    memory = Memory()
    quick = RendezvousTimeout()
    handlers = {
        rack: DynamicRendezvousHandler.from_backend(
            "run", HashStore(), MemoryBackend(memory), 4, 4, "localhost", quick,
            rank_policy="topology", labels=f"rack:{rack[0]}",
        )
        for rack in ("x1", "y1", "x2", "y2")
    }  # fmt: skip
    waiting = {rack: background(handler.next_rendezvous) for rack, handler in handlers.items()}
    ranks = {rack: future.result(90).rank for rack, future in waiting.items()}
    order = "".join(rack[0] for rack in sorted(ranks, key=lambda rack: ranks[rack]))
    assert order in ("xxyy", "yyxx")
    other = DynamicRendezvousHandler.from_backend(
        "run", HashStore(), MemoryBackend(memory), 4, 4, "localhost", quick
    )
    with pytest.raises(RendezvousStateError, match="rank_policy=sticky.*rank_policy=topology"):
        other.next_rendezvous()
    for handler in [*handlers.values(), other]:
        handler.shutdown()
