"""What an author sees of the kit: overrides, what was not checked, the report, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from torch.distributed import TCPStore

from rdzv.cli import conformance
from rdzv.testing import report
from rdzv.testing.contract import BackendContract
from rdzv.testing.contract.harness import background
from rdzv.testing.contract.nodes import Gate
from rdzv.testing.report import Outcome

pytest_plugins = ["pytester"]

LIMIT = 60.0

HEAD = """
import pytest
from rdzv.testing import memory
from rdzv.testing.contract import BackendContract, Deployment

class Memory(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(memory.MemoryBackend, limit=1.0)

"""
SOME = "nothing_before or the_out_of_band or a_change_by_another"


@pytest.fixture
def kit(pytester):
    """Runs the contract tests that ``SOME`` names, of classes that are given as source."""

    def run(source: str, *arguments: str, tests: str = SOME):
        pytester.makepyfile(HEAD + source)
        loaded = [] if "rdzv" in installed_plugins() else ["-p", "rdzv.testing.plugin"]
        return pytester.runpytest_inprocess(
            *loaded, "-k", tests, "-p", "no:randomly", "-rA", *arguments
        )

    return run


def outcomes(result) -> dict[str, int]:
    return {what: n for what, n in result.parseoutcomes().items() if what != "deselected"}


def installed_plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group="pytest11")}


def test_what_is_not_offered_or_not_checked_is_no_success(kit):
    result = kit(
        """
class TestMemory(BackendContract):
    @pytest.fixture
    def deployment(self):
        full = memory.deployment(memory.MemoryBackend)
        return Deployment(full.backend)
"""
    )
    text = result.stdout.str()
    assert "1 passed" in text
    assert "1 not checked" in text
    assert "1 not offered" in text
    assert "skipped" not in text
    assert "No out-of-band access: the deployment has no 'read_raw'." in text


SLOW = """
import dataclasses
import time
from rdzv.errors import RendezvousConnectionError

class TestSlowToConnect(BackendContract):
    @pytest.fixture
    def deployment(self):
        server = memory.MemoryServer()
        full = memory.deployment(memory.MemoryBackend, server=server, limit=5.0)
        resets, reset = [], server.reset
        connecting = []

        def counted():
            resets.append(None)
            reset()

        def create(params):
            before = len(resets)
            connecting.append(None)
            time.sleep({alone})
            if len(connecting) > 1:
                time.sleep({together})
            connecting.pop()
            if len(resets) > before:
                raise RendezvousConnectionError("broken before it was made")
            return full.backend.create(params)

        server.reset = counted
        spec = dataclasses.replace(full.backend, create=create)
        yield dataclasses.replace(full, backend=spec)
        assert len(resets) > 1
"""


@pytest.mark.parametrize(("alone", "together"), [(0.05, 0.0), (0.005, 0.05)])
def test_a_backend_that_takes_long_to_connect_is_given_the_time_to_write_something(
    kit, alone, together
):
    source = SLOW.replace("{alone}", str(alone)).replace("{together}", str(together))
    result = kit(source, tests="whatever_breaks")
    assert outcomes(result) == {"passed": 1}


BROKEN_PROMISE = "rdzv.testing.contract.base.BrokenPromiseError"
NAME = "test_nothing_before_the_first_write"


OVERRIDES = {
    "Passes": "def {}(self, run): pass",
    "IsNone": "{} = None",
    "NoReason": "@pytest.mark.xfail\n    def {}(self, run): assert 0",
    "Condition": "@pytest.mark.xfail(True, reason='x')\n    def {}(self, run): assert 0",
    "Skip": "@pytest.mark.skip(reason='x')\n    def {}(self, run): pass",
    "Later": "pass\nTestLater.{} = lambda self: None",
}


def test_an_override_without_a_reason_fails(kit):
    classes = [
        f"class Test{name}(Memory):\n    {override.format(NAME)}\n"
        for name, override in OVERRIDES.items()
    ]
    mixin = f"class Mixin:\n    def {NAME}(self, run): pass\nclass TestMixin(Mixin, Memory): pass\n"
    result = kit("\n".join([*classes, mixin]), tests="nothing_before")
    assert outcomes(result) == {"failed": len(OVERRIDES) + 1}
    refused = result.stdout.str().count(f"E       {BROKEN_PROMISE}: ")
    assert refused == len(OVERRIDES) + 1


def test_an_expected_failure_with_a_reason_is_one_and_has_to_fail(kit, tmp_path):
    source = """
class TestMine(Memory):
    @pytest.mark.xfail(reason="it is known")
    def test_nothing_before_the_first_write(self, run): {}
"""
    folder = f"--rdzv-report={tmp_path}"
    result = kit(source.format("assert 0"), folder, tests="nothing_before")
    assert outcomes(result) == {"xfailed": 1}
    (seen,) = report.load(tmp_path / "memory-get-and-set-alone.json").results
    assert (seen.outcome, seen.why) == (Outcome.EXPECTED, "it is known")
    result = kit(source.format("pass"), folder, tests="nothing_before")
    assert outcomes(result) == {"failed": 1}
    (seen,) = report.load(tmp_path / "memory-get-and-set-alone.json").results
    assert seen.outcome is Outcome.BROKEN


def test_a_backend_that_hangs_is_a_failure_that_says_where(kit):
    result = kit(
        """
import threading

class Hangs(memory.MemoryBackend):
    def get_state(self):
        threading.Event().wait()

class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(Hangs, limit=1.0)
""",
        tests="nothing_before",
    )
    assert outcomes(result) == {"failed": 1}
    assert "in get_state" in result.stdout.str()


def test_a_class_without_a_deployment_says_what_is_missing(kit):
    result = kit("class TestMine(BackendContract): pass", tests="nothing_before")
    assert "Define a fixture 'deployment'" in result.stdout.str()
    other = "class TestMine(BackendContract):\n    deployment = pytest.fixture(lambda self: '')\n"
    result = kit(other, tests="nothing_before")
    assert outcomes(result) == {"errors": 1}
    assert "gives a str, no Deployment" in result.stdout.str()


@pytest.mark.parametrize(
    ("deployment", "says"),
    [
        ('Deployment("no-such-backend", atomic_enter=True)', "UnknownBackendError: "),
        ('Deployment("static")', "TypeError: 'static' is a whole handler"),
    ],
    ids=["not installed", "handler"],
)
def test_where_there_is_no_backend_every_contract_test_fails_and_says_why(
    kit, tmp_path, deployment, says
):
    source = f"""
class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        return {deployment}
"""
    result = kit(source, f"--rdzv-report={tmp_path}", tests="TestMine")
    promises = len(BackendContract.promises())
    assert outcomes(result) == {"failed": promises}
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    (path,) = tmp_path.glob("*.json")
    broken = report.load(path).those(Outcome.BROKEN)
    assert len(broken) == promises
    assert all(each.why.startswith(says) for each in broken)


def test_what_was_not_checked_is_told_by_class_and_names_what_is_missing(kit):
    result = kit(
        """
class Some:
    def cut(self): pass

class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        return Deployment(memory.deployment(memory.MemoryBackend).backend, faults=Some())
""",
        tests="outage_harms or out_of_band or no_connection or breaks",
    )
    assert "4 not checked" in result.stdout.str()
    told = result.stdout.str().partition("promises that were not checked")[2]
    assert "TestMine" in told
    for missing in ("'mend'", "'reset'", "'connections'", "'read_raw'"):
        assert f"no {missing}" in told
    assert "no 'cut'" not in told


def test_create_that_returns_no_store_fails_and_says_so(kit):
    source = """
from rdzv import BackendSpec

class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        server = memory.MemoryServer()
        create = lambda params: memory.MemoryBackend(server, params.run_id)
        return Deployment(BackendSpec("alone", "no store", create))
"""
    result = kit(source, tests="nothing_before or rounds_follow or nodes_form")
    assert set(outcomes(result)) == {"failed"}
    says = "create of 'alone' must return (backend, store); it returned a MemoryBackend"
    assert says in result.stdout.str()


def test_a_backend_may_keep_the_document_of_its_sessions_where_its_state_is(kit):
    result = kit(
        """
class OnePlace(memory.MemoryServer):
    def stored(self, run_id):
        found = super().stored(run_id)
        found.document = found.state
        return found

class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(memory.RosterMemoryBackend, server=OnePlace())
""",
        tests="similar_names or stored_is_there or bytes_that_are_no_state",
    )
    assert outcomes(result) == {"passed": 3}


def test_where_a_ticket_and_its_record_are_one_write_there_are_no_holes_to_check(kit):
    result = kit(
        """
class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        full = memory.deployment(memory.RosterMemoryBackend)
        return Deployment(full.backend, atomic_enter=True)
""",
        tests="a_ticket_without",
    )
    assert "1 not offered" in result.stdout.str()


def test_the_report_has_every_promise_that_was_run(kit, tmp_path):
    kit(
        """
class Leaks(memory.MemoryBackend):
    def get_state(self):
        return super().get_state() or (b"", "v0")

class TestMine(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(Leaks)
""",
        f"--rdzv-report={tmp_path}",
    )
    seen = report.load(tmp_path / "memory-get-and-set-alone.json")
    outcomes = {result.promise: result.outcome for result in seen.results}
    assert outcomes == {
        "state.nothing_before_the_first_write": Outcome.BROKEN,
        "state.the_out_of_band_view_agrees": Outcome.HELD,
        "watch.a_change_by_another_wakes_who_waits": Outcome.NOT_OFFERED,
    }
    (broken,) = seen.those(Outcome.BROKEN)
    assert broken.why == "get_state of a new run returned a state"


def test_every_promise_is_one_sentence():
    promises = BackendContract.promises().values()
    assert len({promise.id for promise in promises}) == len(promises)
    for promise in promises:
        assert promise.sentence.endswith("."), promise
        assert promise.group, promise


# ---------------------------------------------------------------- the command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rdzv.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_the_command_checks_a_live_server(tmp_path):
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    path = tmp_path / "report.json"
    done = command(
        "conformance", "c10d", "--endpoint", f"127.0.0.1:{server.port}",
        "--conf", "is_host=false,read_timeout=5", "--only", "state", "--report", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "11 held, 1 not checked" in done.stdout
    seen = report.load(path)
    assert {result.promise.partition(".")[0] for result in seen.results} == {"state"}


def test_the_command_fails_and_says_why_where_a_promise_is_broken(tmp_path):
    install(tmp_path, BROKEN)
    done = command(
        "conformance", "broken", "--endpoint", "x", "--only", "state", "--only", "watch",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "state.nothing_before_the_first_write: broken" in done.stdout
    assert "get_state of a new run returned a state" in done.stdout
    assert "not offered" in done.stdout


def test_the_command_ends_with_2_where_create_returns_no_store(tmp_path):
    install(tmp_path, BROKEN.replace("spec.create)", "lambda params: spec.create(params)[0])"))
    done = command("conformance", "broken", "--endpoint", "x", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "create of 'broken' must return (backend, store)" in done.stderr
    assert "Traceback" not in done.stderr


def install(folder, source: str) -> None:
    """Install a distribution with the backend ``broken``."""
    (folder / "broken.py").write_text(source)
    metadata = folder / "broken-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[rdzv.backends]\nbroken = broken\n")


BROKEN = """
from rdzv import BackendSpec, hookimpl
from rdzv.testing import memory

class Leaks(memory.MemoryBackend):
    def get_state(self):
        return super().get_state() or (b"", "v0")

@hookimpl
def rdzv_backend(name):
    spec = memory.spec(memory.MemoryServer(), Leaks)
    return BackendSpec("broken", "a wrong one", spec.create)
"""


@pytest.mark.parametrize(
    ("backend", "conf", "only", "words"),
    [
        ("c10", [], [], "Did you mean 'c10d'?"),
        ("static", [], [], "is a whole handler"),
        ("c10d", ["is_hots=1"], [], "Did you mean 'is_host'?"),
        ("c10d", ["is_host"], [], "write k=v"),
        ("c10d", [], ["sate"], "It has: state,"),
    ],
    ids=["unknown", "handler", "setting", "no value", "group"],
)
def test_the_command_says_why_it_cannot_check(backend, conf, only, words):
    with pytest.raises(conformance.Usage) as caught:
        conformance.run(backend, "127.0.0.1:1", conf, None, only, "", 5.0, 0.2)
    assert words in str(caught.value)


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    for path in (tmp_path / "nowhere" / "x.json", tmp_path):
        # Where nothing answers, anything that ran would say so instead.
        with pytest.raises(conformance.Usage, match="report cannot be written"):
            conformance.run("c10d", "127.0.0.1:1", [], path, [], "", 5.0, 0.2)


def test_the_command_ends_with_2_where_there_is_no_server():
    conf = "is_host=false,read_timeout=1"
    done = command("conformance", "c10d", "--endpoint", "127.0.0.1:1", "--conf", conf)
    assert done.returncode == 2
    assert "No store answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("typer", ["conformance", "c10d", "--endpoint", "x"]),
        ("pytest", ["conformance", "c10d", "--endpoint", "x"]),
        ("typer", ["simulate"]),
        ("rich", ["simulate"]),
        ("greenlet", ["simulate"]),
    ],
)
def test_without_the_extras_the_command_says_what_to_install(missing, arguments):
    hide = f"import sys; sys.modules[{missing!r}] = None; from rdzv.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert 'pip install "rdzv[testing,cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_and_the_kit_are_loaded_by_nothing_else():
    code = "import sys, rdzv, rdzv.dynamic_rendezvous; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    names = set(loaded.stdout.split())
    assert not {name for name in names if name.startswith(("rdzv.testing", "rdzv.cli"))}
    assert not {"typer", "rich", "pytest"} & names


def test_a_node_comes_to_rest_between_two_calls_and_not_in_one():
    gate, inside, go_on = Gate(), threading.Event(), threading.Event()
    order = []

    def call():
        inside.set()
        go_on.wait(LIMIT)
        order.append("call")

    calling = background(gate.around(call, waits=False))
    assert inside.wait(LIMIT)

    def rest():
        gate.come_to_rest()
        order.append("rest")

    resting = background(rest)
    go_on.set()
    resting.result(LIMIT)
    assert order == ["call", "rest"]
    later = background(gate.around(lambda: order.append("later"), waits=False))
    gate.open()
    for each in (calling, later):
        each.result(LIMIT)
    assert order == ["call", "rest", "later"]
