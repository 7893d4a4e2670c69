"""Rank policies of extensions: how they are found, and what is said where one is not there."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from torch.distributed import HashStore

from rdzv import (
    BackendSpec,
    DynamicRendezvousHandler,
    RankNode,
    RendezvousParameters,
    get_rendezvous_handler,
    plugins,
)
from rdzv.dynamic_rendezvous import create_handler
from rdzv.dynamic_rendezvous.ranking import BUILT_IN
from rdzv.errors import DuplicateRankPolicyError, PluginError, UnknownRankPolicyError
from rdzv.testing.memory import MemoryBackend, MemoryServer

POLICIES = """
from rdzv import RankPolicy, hookimpl

@hookimpl
def rdzv_rank_policies():
    return [RankPolicy(name, "a test", lambda nodes, leader: nodes) for name in {names!r}]
"""


@pytest.fixture
def offer(fake):
    """Install an extension with policies of these names, or with another source."""

    def offer(who: str, *names: str, source: str = POLICIES) -> None:
        fake.module(f"{who}_module", source.format(names=names))
        fake.add(f"dist-{who}", entries={who: f"{who}_module"}, group=plugins.EXTENSIONS)

    return offer


def make(**settings):
    params = RendezvousParameters("memory", "", "run", 1, 1, "localhost", **settings)
    return create_handler(HashStore(), MemoryBackend(MemoryServer(), "run"), params)


def test_a_policy_of_an_extension_is_chosen_by_its_name(offer):
    offer("mine", "by-price", "by-age")
    assert plugins.load_rank_policy("by-age").name == "by-age"
    handler = make(rank_policy="by-age")
    assert handler.next_rendezvous().rank == 0
    assert handler._driver.machine.document.rank_policy == "by-age"
    handler.shutdown()


def test_the_policies_that_are_built_in_need_no_extension_and_cannot_be_replaced(offer, caplog):
    offer("mine", "topology", source=POLICIES + "\n1 / 0")
    for name in ("sticky", "topology", "scheduler"):
        handler = make(rank_policy=name, labels="rack:r1", node_number="3")
        assert handler.next_rendezvous().rank == 0
        handler.shutdown()


def test_a_node_without_the_policy_is_told_which_there_are_and_what_to_install(offer):
    offer("mine", "by-price")
    with pytest.raises(UnknownRankPolicyError) as caught:
        make(rank_policy="by-prize")
    assert isinstance(caught.value, PluginError)
    remedy = "Install the distribution that offers it on every node"
    known = "by-price, scheduler, sticky, topology"
    for text in ("'by-prize'", known, "mean 'by-price'", remedy, "rdzv.extensions"):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="no rank policy"):
        DynamicRendezvousHandler.from_backend(
            "run", HashStore(), MemoryBackend(MemoryServer(), "run"), 1, 2, rank_policy="nonsense"
        )


def test_an_unknown_policy_is_refused_before_anything_is_connected(fake, registry, monkeypatch):
    def create(params):
        raise AssertionError("connected")

    monkeypatch.setitem(plugins._loaded, "far", BackendSpec("far", "a test", create))
    with pytest.raises(UnknownRankPolicyError):
        get_rendezvous_handler(RendezvousParameters("far", "", "r", 1, 2, rank_policy="nonsense"))
    with pytest.raises(ValueError, match="labels"):
        get_rendezvous_handler(RendezvousParameters("far", "", "r", 1, 2, labels="rack=1"))


def test_the_name_in_an_error_cannot_write_to_a_terminal(fake):
    with pytest.raises(UnknownRankPolicyError) as caught:
        plugins.load_rank_policy("\x1b[2J")
    assert "\x1b" not in str(caught.value)


def test_two_extensions_with_one_name_are_named_and_neither_is_chosen(offer):
    offer("one", "by-price")
    offer("two", "by-price", "by-age")
    with pytest.raises(DuplicateRankPolicyError, match=r"dist-one:one .*dist-two:two|two.*one"):
        plugins.load_rank_policy("by-price")
    assert plugins.load_rank_policy("by-age").name == "by-age"


@pytest.mark.parametrize(
    ("returned", "what"),
    [("1 / 0", "ZeroDivisionError"), ("None", "TypeError"), ("['by-name']", "a str where"),
     ("exit(1)", "SystemExit")],
)  # fmt: skip
def test_an_extension_that_answers_with_something_else_is_logged_and_hinders_no_other(
    offer, caplog, returned, what
):
    offer("good", "by-price")
    offer("bad", source=f"from rdzv import hookimpl\n@hookimpl\n"
                        f"def rdzv_rank_policies(): return {returned}")  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        assert plugins.load_rank_policy("by-price").name == "by-price"
    assert "extension 'dist-bad:bad' are left out" in caplog.text
    assert what in caplog.text


def test_the_example_of_the_page_ranks_as_it_says(fake):
    page = (Path(__file__).parents[2] / "docs" / "rank-policies.md").read_text()
    (source,) = re.findall(r"```python\n# rdzv_bandwidth\.py\n(.*?)```", page, re.DOTALL)
    fake.module("rdzv_bandwidth", source)
    fake.add("dist-b", entries={"bandwidth": "rdzv_bandwidth"}, group=plugins.EXTENSIONS)
    policy = plugins.load_rank_policy("fastest-first")
    labels = [(), (("gbit", "100"),), (("gbit", "400"),), (("gbit", "fast"),)]
    nodes = [RankNode(f"n{n}", "", n, n, each) for n, each in enumerate(labels)]
    nodes.append(RankNode("new", "", -1, 9, (("gbit", "800"),)))
    ranked = [each.node for each in policy.rank(nodes, "n3")]
    assert ranked == ["n2", "n1", "n0", "n3", "new"]
    for name in BUILT_IN:
        assert f"| `{name}`" in page
