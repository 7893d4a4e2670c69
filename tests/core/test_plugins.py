"""Finding and loading plugins, good and broken ones."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading

import pytest

import rdzv
from rdzv import plugins
from rdzv.errors import (
    BrokenPluginError,
    DuplicateBackendError,
    IncompatiblePluginError,
    UnknownBackendError,
)
from rdzv.specs import BackendSpec, HandlerSpec


def names() -> list[str]:
    return [backend.name for backend in plugins.installed()]


def test_what_is_installed_is_listed_from_metadata_and_nothing_is_imported(fake):
    fake.backend("cupboard", "cupboard_plugin", version="2.1", summary="a cupboard")
    (found,) = [backend for backend in plugins.installed() if backend.name == "cupboard"]
    assert found == plugins.InstalledBackend(
        "cupboard", "cupboard_plugin", "dist-cupboard", "2.1", "a cupboard"
    )
    assert not fake.imported("cupboard_plugin")


def test_the_list_is_sorted_by_name(fake):
    for name in ("zoo", "attic", "moor"):
        fake.backend(name, f"plugin_{name}")
    assert names() == sorted(names())
    assert {"attic", "moor", "zoo"} <= set(names())


def test_choosing_a_backend_imports_its_module_and_no_other(fake):
    fake.backend("cupboard", "cupboard_plugin")
    fake.backend("drawer", "drawer_plugin")
    spec = plugins.load("cupboard")
    assert isinstance(spec, BackendSpec)
    assert spec.name == "cupboard"
    assert fake.imported("cupboard_plugin")
    assert not fake.imported("drawer_plugin")


def test_a_backend_is_asked_once_and_the_answer_is_kept(fake):
    fake.backend("cupboard", "cupboard_plugin")
    first = plugins.load("cupboard")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(plugins.load("cupboard"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(result is first for result in results)


def test_a_plugin_may_offer_a_whole_handler(fake):
    fake.module(
        "fixed_plugin",
        """
        from rdzv import HandlerSpec, hookimpl

        @hookimpl
        def rdzv_handler(name):
            return HandlerSpec(name, "ranks by hand", print)
        """,
    )
    fake.add("dist-fixed", entries={"fixed": "fixed_plugin"})
    assert isinstance(plugins.load("fixed"), HandlerSpec)


def test_one_module_may_offer_several_names(fake):
    fake.module(
        "many_plugin",
        """
        from rdzv import BackendSpec, HandlerSpec, hookimpl

        @hookimpl
        def rdzv_backend(name):
            if name in ("shelf", "shelf-v2"):
                return BackendSpec(name, "a shelf", print)

        @hookimpl
        def rdzv_handler(name):
            if name == "shelf-legacy":
                return HandlerSpec(name, "an old shelf", print)
        """,
    )
    fake.add(
        "dist-shelf",
        entries=dict.fromkeys(("shelf", "shelf-v2", "shelf-legacy"), "many_plugin"),
    )
    for name in ("shelf", "shelf-v2", "shelf-legacy"):
        assert plugins.load(name).name == name


def test_an_entry_may_lead_to_an_object_in_a_module(fake):
    fake.module(
        "object_plugin",
        """
        from rdzv import BackendSpec, hookimpl

        class Plugin:
            @hookimpl
            def rdzv_backend(self, name):
                return BackendSpec(name, "an object", print)

        plugin = Plugin()
        """,
    )
    fake.add("dist-object", entries={"object": "object_plugin:plugin"})
    assert plugins.load("object").name == "object"


def test_an_unknown_name_gives_the_installed_ones_and_the_nearest(fake):
    fake.backend("cupboard", "cupboard_plugin")
    with pytest.raises(UnknownBackendError) as caught:
        plugins.load("cupbord")
    message = str(caught.value)
    assert "no rendezvous backend 'cupbord'" in message
    assert "installed: " in message
    assert "cupboard" in message
    assert "Did you mean 'cupboard'?" in message
    assert "pip install" not in message


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("c10d", "rdzv-c10d"),
        ("static", "rdzv-c10d"),
    ],
)
def test_a_name_of_ours_that_is_not_installed_gives_the_command_to_install_it(
    name, distribution, monkeypatch
):
    monkeypatch.setattr(plugins, "_find", lambda group: [])
    monkeypatch.setattr(plugins, "_loaded", {})
    with pytest.raises(UnknownBackendError, match=f"no backend is.*pip install {distribution}$"):
        plugins.load(name)


def test_a_misspelt_name_of_ours_gives_the_command_as_well(monkeypatch):
    monkeypatch.setattr(plugins, "_find", lambda group: [])
    with pytest.raises(UnknownBackendError, match="mean 'c10d'.*pip install rdzv-c10d"):
        plugins.load("C10dd")


def test_a_name_that_is_like_no_other_is_just_unknown(monkeypatch):
    monkeypatch.setattr(plugins, "_find", lambda group: [])
    with pytest.raises(UnknownBackendError) as caught:
        plugins.load("xylophone")
    assert "Did you mean" not in str(caught.value)
    assert "pip install" not in str(caught.value)
    assert "Install the plugin that offers it" in str(caught.value)


def test_a_name_that_two_distributions_offer_is_an_error_with_both(fake):
    fake.backend("cupboard", "cupboard_plugin", version="2.1")
    fake.add("rival", version="0.3", entries={"cupboard": "rival_plugin"})
    assert names().count("cupboard") == 2
    with pytest.raises(DuplicateBackendError) as caught:
        plugins.load("cupboard")
    assert "dist-cupboard 2.1 and rival 0.3" in str(caught.value)
    assert "uninstall" in str(caught.value)
    assert not fake.imported("cupboard_plugin")


def test_a_distribution_that_stands_on_the_path_twice_is_no_duplicate(fake, tmp_path, monkeypatch):
    fake.backend("cupboard", "cupboard_plugin")
    # The same name, spelt otherwise; older, and behind the first on the path.
    fake.add(
        "Dist_Cupboard",
        version="0.9",
        entries={"cupboard": "old_plugin"},
        root=tmp_path / "other",
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "other"), str(fake.root)])
    assert names().count("cupboard") == 1
    assert plugins.load("cupboard").name == "cupboard"


@pytest.mark.parametrize("requirement", ["rdzv<0.1", "rdzv >= 0.2, < 0.3", "RDZV==99"])
def test_a_plugin_for_another_range_of_cores_is_refused_before_it_is_imported(fake, requirement):
    fake.backend("cupboard", "cupboard_plugin", version="2.1", requires=(requirement,))
    with pytest.raises(IncompatiblePluginError) as caught:
        plugins.load("cupboard")
    message = str(caught.value)
    assert "'cupboard' of dist-cupboard 2.1" in message
    assert f"rdzv {rdzv.__version__} is running" in message
    assert "pip install --upgrade dist-cupboard rdzv" in message
    assert not fake.imported("cupboard_plugin")


@pytest.mark.parametrize(
    "requirement",
    [
        "rdzv",
        "rdzv>=0.1,<0.2",
        "rdzv==99; python_version < '3'",
        "rdzv==99; extra == 'future'",
        "rdzv-c10d==99",
        "other==99",
        "what is this",
    ],
)
def test_a_requirement_that_fits_or_does_not_apply_hinders_nothing(fake, requirement):
    fake.backend("cupboard", "cupboard_plugin", requires=(requirement,))
    assert plugins.load("cupboard").name == "cupboard"


def test_a_development_version_of_the_core_is_in_the_range_of_its_release(fake, monkeypatch):
    fake.backend("cupboard", "cupboard_plugin", requires=("rdzv>=0.1,<0.2",))
    monkeypatch.setattr(plugins, "__version__", "0.1.1.dev3")
    assert plugins.load("cupboard").name == "cupboard"


def broken(fake, source: str) -> BrokenPluginError:
    fake.module("broken_plugin", source)
    fake.add("dist-broken", version="2.1", entries={"broken": "broken_plugin"})
    with pytest.raises(BrokenPluginError) as caught:
        plugins.load("broken")
    assert "dist-broken 2.1" in str(caught.value)
    return caught.value


def test_a_plugin_whose_dependency_is_missing_says_which(fake):
    error = broken(fake, "import a_client_library_that_is_not_there")
    assert "cannot be imported" in str(error)
    assert "'a_client_library_that_is_not_there', which dist-broken needs" in str(error)
    assert "pip install --upgrade dist-broken" in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


def test_a_plugin_whose_own_module_is_missing_is_said_to_be_damaged(fake):
    fake.add("dist-gone", version="2.1", entries={"gone": "gone_plugin.plugin"})
    with pytest.raises(BrokenPluginError) as caught:
        plugins.load("gone")
    assert "'gone' of dist-gone 2.1" in str(caught.value)
    assert "its own module 'gone_plugin' is missing" in str(caught.value)
    assert "pip install --force-reinstall --no-deps dist-gone" in str(caught.value)


def test_a_plugin_that_lacks_one_of_its_own_submodules_is_said_to_be_damaged(fake):
    fake.module("half.plugin", "import half.backend")
    fake.add("dist-half", entries={"half": "half.plugin"})
    with pytest.raises(BrokenPluginError, match=r"its own module 'half\.backend' is missing"):
        plugins.load("half")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError"),
        ("from os import no_such_name", "ImportError: cannot import name"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
    ],
)
def test_a_plugin_that_fails_to_import_says_why(fake, source, cause):
    error = broken(fake, source)
    assert f"cannot be imported: {cause}" in str(error)
    assert error.__cause__ is not None


def test_an_entry_that_leads_to_a_missing_object_says_so(fake):
    fake.module("empty_plugin", "")
    fake.add("dist-empty", entries={"empty": "empty_plugin:plugin"})
    with pytest.raises(BrokenPluginError, match="has no attribute 'plugin'"):
        plugins.load("empty")


def test_a_plugin_that_knows_nothing_of_its_name_is_refused(fake):
    error = broken(fake, "from rdzv import hookimpl\n@hookimpl\ndef rdzv_backend(name): pass")
    assert "neither rdzv_backend nor rdzv_handler of 'broken_plugin' knows it" in str(error)


def test_a_plugin_that_forgot_the_marker_is_told_of_it(fake):
    error = broken(fake, "def rdzv_backend(name): return None")
    assert "marked with @rdzv.hookimpl" in str(error)


def test_a_plugin_that_returns_something_else_is_refused(fake):
    error = broken(
        fake, "from rdzv import hookimpl\n@hookimpl\ndef rdzv_backend(name): return {'name': name}"
    )
    assert "returned a dict where a BackendSpec or a HandlerSpec is wanted" in str(error)


def test_a_plugin_that_returns_the_spec_of_another_name_is_refused(fake):
    error = broken(
        fake,
        "from rdzv import BackendSpec, hookimpl\n"
        "@hookimpl\n"
        "def rdzv_backend(name): return BackendSpec('other', 'a test', print)",
    )
    assert "returned the spec of 'other'" in str(error)


def test_a_plugin_whose_hook_raises_is_refused_with_the_cause(fake):
    error = broken(
        fake, "from rdzv import hookimpl\n@hookimpl\ndef rdzv_backend(name): return name.oops"
    )
    assert "failed when it was asked for the backend: AttributeError" in str(error)
    assert isinstance(error.__cause__, AttributeError)


def test_a_plugin_with_a_hook_that_does_not_exist_is_refused(fake):
    error = broken(fake, "from rdzv import hookimpl\n@hookimpl\ndef rdzv_bakend(name): pass")
    assert "rdzv_bakend" in str(error)


def test_a_broken_plugin_does_not_hinder_another(fake):
    broken(fake, "1 / 0")
    fake.backend("cupboard", "cupboard_plugin")
    assert plugins.load("cupboard").name == "cupboard"


def test_a_plugin_that_was_repaired_can_be_loaded(fake):
    broken(fake, "1 / 0")
    fake.module(
        "broken_plugin",
        """
        from rdzv import BackendSpec, hookimpl

        @hookimpl
        def rdzv_backend(name):
            return BackendSpec(name, "mended at last", print)
        """,
    )
    assert plugins.load("broken").summary == "mended at last"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "METADATA").unlink(),
        lambda folder: (folder / "METADATA").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "METADATA").write_text(""),
        lambda folder: (folder / "entry_points.txt").write_text("[rdzv.backends]\nno equals sign"),
        lambda folder: (folder / "entry_points.txt").write_bytes(b"[rdzv.backends]\n\xff = x"),
    ],
)
def test_damaged_metadata_of_one_distribution_hides_no_other(fake, damage):
    fake.backend("cupboard", "cupboard_plugin")
    damage(fake.add("dist-damaged", entries={"damaged": "damaged_plugin"}))
    assert "cupboard" in names()
    assert plugins.load("cupboard").name == "cupboard"


EXTENSION = """
from rdzv import hookimpl

seen = []

@hookimpl
def rdzv_event(event):
    seen.append(event)
"""


def test_extensions_are_loaded_once(fake):
    fake.module("watcher", EXTENSION)
    fake.add("dist-watcher", entries={"watcher": "watcher"}, group=plugins.EXTENSIONS)
    manager = plugins.extensions()
    assert plugins.extensions() is manager
    assert [each.plugin_name for each in manager.hook.rdzv_event.get_hookimpls()] == [
        "dist-watcher:watcher"
    ]


def test_each_broken_extension_is_left_out_and_logged_once(fake, caplog):
    fake.module("watcher", EXTENSION)
    fake.module("crashing", "1 / 0")
    fake.module("guessing", "from rdzv import hookimpl\n@hookimpl\ndef rdzv_evnt(event): pass")
    for name in ("crashing", "guessing", "missing", "watcher"):
        fake.add(f"dist-{name}", entries={name: name}, group=plugins.EXTENSIONS)
    fake.add(
        "dist-ancient",
        entries={"ancient": "watcher"},
        group=plugins.EXTENSIONS,
        requires=("rdzv<0.1",),
    )
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        manager = plugins.extensions()
        plugins.extensions()
    loaded = [name for name, _ in manager.list_name_plugin()]
    # Beside those of this test, rdzv-observers may be installed.
    assert [name for name in loaded if "dist-" in name] == ["dist-watcher:watcher"]
    for name in ("ancient", "crashing", "guessing", "missing"):
        assert caplog.text.count(f"extension '{name}' of dist-{name} 1.0 is left out") == 1


def test_a_real_distribution_is_listed_without_being_imported_and_then_loaded(tmp_path):
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    (source / "real_plugin").mkdir(parents=True)
    (source / "pyproject.toml").write_text(
        textwrap.dedent(
            """
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"

            [project]
            name = "rdzv-real"
            version = "1.2"
            description = "a real little plugin"
            dependencies = ["rdzv>=0.1,<0.2"]

            [project.entry-points."rdzv.backends"]
            real = "real_plugin"

            [tool.hatch.build.targets.wheel]
            packages = ["real_plugin"]
            """
        )
    )
    (source / "real_plugin" / "__init__.py").write_text(
        textwrap.dedent(
            """
            from rdzv import BackendSpec, hookimpl

            @hookimpl
            def rdzv_backend(name):
                return BackendSpec(name, "a real little plugin", print)
            """
        )
    )
    site = tmp_path / "site"
    install = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
        *("--no-build-isolation", "--target", str(site), str(source)),
    ]
    subprocess.run(install, check=True, timeout=100)
    code = f"""
import sys
sys.path.append({str(site)!r})
from rdzv.plugins import installed, load
(found,) = [each for each in installed() if each.name == "real"]
assert str(found) == "rdzv-real 1.2", found
assert found.summary == "a real little plugin", found
assert "real_plugin" not in sys.modules
assert load("real").summary == "a real little plugin"
assert "real_plugin" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
