"""The targets find what is wrong: a defect each, and each is found."""

from __future__ import annotations

import re

import msgspec
import pytest
from fuzz import nodes, sessions, stored, texts
from fuzz.source import FromSeed

from rdzv import api, plugins
from rdzv.dynamic_rendezvous import document, machine, perform, phases, roster
from rdzv_c10d import session

EXAMPLES = 3000
"""Several times what the worst of them takes with other seeds."""

DEFECTS = {
    "nesting ends the decoder": (
        stored.decoding,
        lambda patch: patch.setattr(document, "RecursionError", KeyError, raising=False),
    ),
    "an error of the decoder is handed on": (
        nodes.over_get_and_set,
        lambda patch: patch.setattr(
            perform, "decode", lambda kind, data, where: msgspec.json.decode(data, type=kind)
        ),
    ),
    "a ticket is looked up where it need not be": (
        stored.document_session,
        lambda patch: patch.setattr(
            roster.DocumentSession,
            "beats",
            lambda self, slots: {s: self._get_roster().beats[s] for s in slots},
        ),
    ),
    "any text is a counter": (
        sessions.hash_store,
        lambda patch: patch.setattr(session, "_COUNTER", re.compile(".*")),
    ),
    "a step is forgotten": (
        nodes.machine,
        lambda patch: patch.delitem(
            phases.TRANSITIONS, (phases.Phase.RANKING, phases.Phase.WAITING)
        ),
    ),
    "the leader is there wherever it is named": (
        nodes.machine,
        lambda patch: patch.setattr(
            machine.Machine, "_check_settings", lambda self, found: self.leading.start(found, 0)
        ),
    ),
    "nothing is hidden": (
        texts.secrets_hidden,
        lambda patch: patch.setattr(texts, "redact", lambda text: text),
    ),
    "any time is a time": (
        texts.settings,
        lambda patch: patch.setattr(api, "_LONGEST", float("inf")),
    ),
    "any marker is evaluated": (
        texts.metadata,
        lambda patch: patch.setattr(
            plugins, "_applies", lambda marker: marker is None or marker.evaluate({"extra": ""})
        ),
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect, monkeypatch):
    target, plant = DEFECTS[defect]
    plant(monkeypatch)
    # Not Hypothesis's examples: it takes constants out of whatever modules are loaded, so which
    # ones they are depends on the tests that ran before.
    source = FromSeed(0)

    def search():
        for _ in range(EXAMPLES):
            target(source)

    with pytest.raises(Exception):  # noqa: B017, PT011 - whichever the defect leads to
        search()
