"""``rdzv doctor``, the command: what it prints, its exit codes, and what it never prints."""

from __future__ import annotations

import json
import socket

import pytest
from typer.testing import CliRunner

from rdzv import plugins
from rdzv.cli.app import app
from rdzv.cli.doctor import printable
from rdzv.diagnosis import Diagnosis, Finding
from rdzv.specs import BackendSpec, Parameter
from rdzv_redis.server import RedisServer

from .examining import SECRET


@pytest.fixture(scope="module")
def server():
    with RedisServer(password=SECRET) as server:
        yield server


def run(*arguments: str, code: int) -> str:
    done = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == code, done.output
    assert SECRET not in done.output
    return done.output


def test_a_sound_rendezvous_is_exit_code_0_in_80_columns(server):
    text = run("--backend=redis", f"--endpoint={server.endpoint}",
               f"--conf=password={SECRET},ttl=60,keep_alive_interval=6",
               "--tries=3", code=0)  # fmt: skip
    assert "Nothing is wrong." in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.index("Backend and settings") < text.index("Connections") < text.index("Latency")


def test_an_error_is_exit_code_1_with_its_id_and_a_remedy(server):
    text = run("--backend=redis", f"--endpoint={server.endpoint}",
               f"--conf=password=x{SECRET}", code=1)  # fmt: skip
    assert "[login.refused]" in text
    assert "→ " in text
    assert "1 error" in text


def test_json_holds_all_findings(server):
    text = run("--backend=redis", f"--endpoint=redis://default:{SECRET}@{server.endpoint}",
               "--json", "--tries=3", code=0)  # fmt: skip
    found = json.loads(text)
    assert found["errors"] == 0
    assert f"***@{server.endpoint}" in found["endpoint"]
    kinds = {each["id"]: each for each in found["findings"]}
    assert kinds["operation.works"]["level"] == "ok"
    assert set(kinds["operation.works"]) == {"check", "id", "level", "seen", "remedy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--endpoint=127.0.0.1:1"],
        ["--backend=redis", "--peer"],
        ["--backend=redis", f"--conf={SECRET}"],
        ["--backend=redis", "--port=70000"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    run(*arguments, code=2)


def test_what_could_steer_a_terminal_is_made_visible():
    assert printable("a\x1b[2Jb\r\nc\u202ed\x9b") == "a\\u001b[2Jb\\u000d\\u000ac\\u202ed\\u009b"
    assert printable("Grüße, 例え → 100 %") == "Grüße, 例え → 100 %"


# ---------------------------------------------------------------- plugins of others


@pytest.fixture
def plugin(monkeypatch):
    """A plugin that tells the doctor something, and makes a backend that cannot be made."""

    def install(diagnose=None, error: Exception | None = None) -> None:
        def create(params):
            raise error or RuntimeError("\x1b[31mno\x07 backend")

        word = Parameter("word", "str", secret=True)
        spec = BackendSpec("odd", "a test", create, (word,), diagnose=diagnose)
        monkeypatch.setitem(plugins._loaded, "odd", spec)

    return install


def test_a_plugin_that_tells_nothing_is_looked_at_by_its_endpoint(plugin):
    plugin()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = run("--backend=odd", f"--endpoint=odd://u:{SECRET}@127.0.0.1:{port}/x", code=1)
    assert "tells the doctor nothing" in text
    assert f"127.0.0.1:{port} accepts" in text
    assert "\\u001b[31mno\\u0007 backend" in text


def test_what_a_plugin_explains_is_said_instead_of_its_error(plugin):
    finding = Finding("odd.closed", "error", "It is closed on Sundays.", "Come back.")
    plugin(lambda _: Diagnosis(explain=lambda _: finding))
    assert "[odd.closed]" in run("--backend=odd", "--endpoint=x", code=1)


def test_a_plugin_that_fails_to_explain_costs_nothing_else(plugin):
    def explain(_):
        raise KeyError("x")

    plugin(lambda _: Diagnosis(explain=explain))
    assert "[operation.no-connection]" in run("--backend=odd", "--endpoint=x", code=1)


def test_a_plugin_that_fails_to_tell_is_a_finding(plugin):
    def diagnose(_):
        raise KeyError("x")

    plugin(diagnose)
    assert "backend.undiagnosed" in run("--backend=odd", "--endpoint=x", "--json", code=1)


def test_a_package_that_the_backend_lacks_is_named(plugin):
    plugin(lambda _: Diagnosis(), ModuleNotFoundError("No module named 'odd_client'"))
    text = run("--backend=odd", "--endpoint=x", code=1)
    assert "odd_client" in text
    assert "[backend.unavailable]" in text


def test_the_value_of_a_secret_setting_is_hidden_wherever_a_server_repeats_it(plugin):
    plugin(lambda _: Diagnosis(), RuntimeError(f"the word <{SECRET}> is wrong"))
    text = run("--backend=odd", "--endpoint=x", f"--conf=word={SECRET}", code=1)
    assert "<***> is wrong" in text
