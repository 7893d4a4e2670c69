"""The plugin API: its version, hooks that go out of use, and a plugin of the last release."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import rdzv
from rdzv import hookspecs, plugins
from rdzv.errors import BrokenPluginError, IncompatiblePluginError

WHEELS = sorted((Path(__file__).parents[1] / "data").glob("rdzv_cupboard-*.whl"))

PLUGIN = """
from rdzv import BackendSpec, hookimpl
{says}

class Plugin:
    {says_inside}

    @staticmethod
    @hookimpl
    def rdzv_backend(name):
        return BackendSpec(name, "a test", print)

rdzv_backend = Plugin.rdzv_backend
"""


def install(fake, says: str = "", inside: str = "pass", where: str = "made_plugin") -> None:
    fake.module("made_plugin", PLUGIN.format(says=says, says_inside=inside))
    fake.add("dist-made", entries={"made": where})


@pytest.mark.parametrize("says", ["", f"rdzv_api = {rdzv.API_VERSION}"])
def test_a_plugin_made_for_this_api_or_that_says_nothing_is_loaded(fake, says):
    install(fake, says)
    assert plugins.load("made").name == "made"


def test_a_plugin_made_for_a_newer_api_is_refused_with_both_and_the_remedy(fake, monkeypatch):
    monkeypatch.setattr(plugins, "API_VERSION", 3)
    install(fake, "rdzv_api = 4")
    with pytest.raises(IncompatiblePluginError) as caught:
        plugins.load("made")
    for text in ("'made' of dist-made 1.0", "version 4", f"rdzv {rdzv.__version__}",
                 "versions 1 to 3", "pip install --upgrade rdzv"):  # fmt: skip
        assert text in str(caught.value)


def test_a_plugin_made_for_an_older_api_is_loaded_as_long_as_that_is_supported(fake, monkeypatch):
    monkeypatch.setattr(plugins, "API_VERSION", 3)
    install(fake, "rdzv_api = 2")
    monkeypatch.setattr(plugins, "OLDEST_API_VERSION", 3)
    with pytest.raises(IncompatiblePluginError, match="pip install --upgrade dist-made"):
        plugins.load("made")
    monkeypatch.setattr(plugins, "OLDEST_API_VERSION", 2)
    assert plugins.load("made").name == "made"


def test_an_entry_that_leads_to_an_object_may_say_it_there_or_in_its_module(fake):
    install(fake, "rdzv_api = 9", f"rdzv_api = {rdzv.API_VERSION}", "made_plugin:Plugin")
    assert plugins.load("made").name == "made"
    fake.add("dist-other", entries={"other": "made_plugin"})
    with pytest.raises(IncompatiblePluginError, match="version 9"):
        plugins.load("other")


@pytest.mark.parametrize("says", ["'1'", "None", "True", "0", "-1", "1.0"])
def test_what_is_no_version_is_the_authors_mistake(fake, says):
    install(fake, f"rdzv_api = {says}")
    with pytest.raises(BrokenPluginError, match="no version of the plugin API.*authors"):
        plugins.load("made")


def test_an_extension_made_for_a_newer_api_is_left_out_and_logged(fake, caplog):
    fake.module("newer", "rdzv_api = 99")
    fake.add("dist-newer", entries={"newer": "newer"}, group=plugins.EXTENSIONS)
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        loaded = [name for name, _ in plugins.extensions().list_name_plugin()]
    assert not [name for name in loaded if "dist-" in name]
    assert "'newer' of dist-newer 1.0 is left out" in caplog.text
    assert "version 99" in caplog.text


# ---------------------------------------------------------------- hooks that go out of use


@pytest.fixture
def later_core(monkeypatch):
    """The hooks as in a later core, where one hook and one argument are on their way out."""
    later = ModuleType("later")
    vars(later).update(vars(hookspecs))

    @hookspecs.hookspec(
        firstresult=True,
        warn_on_impl_args={"name": DeprecationWarning("rdzv_backend: 'name' ends with rdzv 0.4")},
    )
    def rdzv_backend(name):
        pass

    @hookspecs.hookspec(warn_on_impl=DeprecationWarning("rdzv_old ends with rdzv 0.4"))
    def rdzv_old():
        pass

    vars(later).update(rdzv_backend=rdzv_backend, rdzv_old=rdzv_old)
    monkeypatch.setattr(plugins, "hookspecs", later)


BODY = "    return BackendSpec('made', 'a test', print)\n"
OLD = "from rdzv import BackendSpec, hookimpl\n@hookimpl\ndef rdzv_old(): pass\n"


def test_a_plugin_that_uses_a_hook_that_ends_still_works_and_warns(fake, later_core):
    fake.module("made_plugin", OLD + "@hookimpl\ndef rdzv_backend():\n" + BODY)
    fake.add("dist-made", entries={"made": "made_plugin"})
    with pytest.warns(DeprecationWarning, match="rdzv_old ends with rdzv 0.4") as told:
        assert plugins.load("made").name == "made"
    assert [Path(each.filename).name for each in told] == ["made_plugin.py"]


def test_a_plugin_that_uses_an_argument_that_ends_still_works_and_warns(fake, later_core):
    install(fake)
    with pytest.warns(DeprecationWarning, match="'name' ends with rdzv 0.4"):
        assert plugins.load("made").name == "made"


def test_a_plugin_that_uses_neither_is_not_warned(fake, later_core):
    source = "from rdzv import BackendSpec, hookimpl\n@hookimpl\ndef rdzv_backend():\n"
    fake.module("made_plugin", source + BODY)
    fake.add("dist-made", entries={"made": "made_plugin"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plugins.load("made").name == "made"


def test_a_hook_that_this_core_does_not_have_yet_may_be_marked_as_optional(fake):
    fake.module(
        "made_plugin",
        PLUGIN.format(says="", says_inside="pass")
        + "\n@hookimpl(optionalhook=True)\ndef rdzv_of_later(): pass\n",
    )
    fake.add("dist-made", entries={"made": "made_plugin"})
    assert plugins.load("made").name == "made"


# ---------------------------------------------------------------- a plugin of an earlier release

NODE = """
import sys
from rdzv import RendezvousParameters, get_rendezvous_handler

params = RendezvousParameters(
    "cupboard", sys.argv[1], "run", 2, 2, "127.0.0.1", rank_policy="cupboard-reversed"
)
handler = get_rendezvous_handler(params)
info = handler.next_rendezvous()
info.store.set(f"from {info.rank}", b"here")
info.store.wait([f"from {1 - info.rank}"])
print(info.rank, info.world_size, flush=True)
sys.stdin.read()
handler.leave()
"""


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
def test_two_nodes_form_a_round_with_the_plugin_of_a_release_that_is_past(wheel, tmp_path):
    site, folder, log = tmp_path / "site", tmp_path / "folder", tmp_path / "log"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target",
         site, wheel],
        check=True, timeout=100,
    )  # fmt: skip
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "RDZV_CUPBOARD_LOG": str(log)
    }  # fmt: skip
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        told = sorted(node.stdout.readline() for node in nodes if node.stdout is not None)
        assert told == ["0 2\n", "1 2\n"]
        # One end for both: who leaves first does not make the other begin another round.
        for node in nodes:
            assert node.stdin is not None
            node.stdin.close()
        assert [node.wait(60) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert sorted(log.read_text().splitlines()) == [
        "run round 1: 0 of 2",
        "run round 1: 1 of 2",
    ]
    state = (folder / "run" / "state").read_text()
    assert "cupboard-reversed" in state


def test_there_is_a_plugin_of_a_release_that_is_past():
    assert WHEELS
