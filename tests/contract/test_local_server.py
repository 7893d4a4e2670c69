"""LocalServer, by a server that every machine with Python has."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rdzv.testing.local_server import LocalServer, free_ports, packaged_program, stop_process

from ..local_servers import LIMIT, LocalServerCases
from .web_server import WebServer


class TestWebServer(LocalServerCases):
    def make(self, port=0, **options):
        return WebServer(port, **{"binary": sys.executable, **options})

    def source(self):
        return f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from web_server import WebServer
server = WebServer(binary=sys.executable)
"""


def test_a_paused_one_is_silent():
    with WebServer(binary=sys.executable) as server:
        assert server.ask("/pid") == 200
        server.pause()
        assert server.ask("/pid", timeout=0.1) is None
        server.resume()
        assert server.ask("/pid") == 200


# Its other threads go on for a while after kill() has returned.
MANY_THREADS = """
import threading
for _ in range(50):
    threading.Thread(target=lambda: [i * i for i in iter(int, 1)], daemon=True).start()
print(flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Elsewhere nothing tells whether it does.")
def test_a_process_stands_still_when_stop_process_returns():
    process = subprocess.Popen([sys.executable, "-c", MANY_THREADS], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        threads = list(Path(f"/proc/{process.pid}/task").glob("*/stat"))
        assert len(threads) > 50
        for _ in range(20):
            stop_process(process.pid)
            states = {path.read_text().rpartition(")")[2].split()[0] for path in threads}
            process.send_signal(signal.SIGCONT)
            assert states == {"T"}
    finally:
        process.kill()
        process.communicate()


def test_what_the_environment_names_comes_before_a_package_and_that_before_the_path(
    monkeypatch, tmp_path
):
    monkeypatch.setenv(WebServer.binary_variable, "/bin/true")
    assert WebServer(binary="/mine").binary == "/mine"
    assert WebServer().binary == "/bin/true"
    monkeypatch.setenv(WebServer.binary_variable, "/no-such-program")
    with pytest.raises(FileNotFoundError, match=WebServer.binary_variable):
        WebServer().start()
    monkeypatch.delenv(WebServer.binary_variable)
    assert WebServer().binary == packaged_program("json", "tool.py") != None  # noqa: E711
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python3.*Install Python.*RDZV_WEB_BINARY_PATH"):
        WebServer().start()
    for name in ("python3", "python-that-nobody-has"):
        (tmp_path / name).touch(mode=0o755)
        assert WebServer().binary == str(tmp_path / name)


class Shell(LocalServer):
    """A script that is ready when it says so."""

    binary_variable = "RDZV_SHELL_BINARY_PATH"
    programs = ("sh",)

    def __init__(self, script: str, **options) -> None:
        super().__init__(**options)
        self.script = script

    def command(self):
        return [self.binary, "-c", self.script]

    def is_ready(self):
        return self.log.endswith("ready\n")


def test_a_program_off_the_path_is_found_by_a_pattern_in_its_newest_version(monkeypatch, tmp_path):
    for version in ("9.6", "15", "7"):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "sh").touch(mode=0o755)
    (tmp_path / "16").mkdir()
    (tmp_path / "16" / "sh").touch(mode=0o644)  # No program.
    monkeypatch.setattr(Shell, "programs", ("sh-that-nobody-has", f"{tmp_path}/*/sh"))
    assert Shell("").binary == str(tmp_path / "15" / "sh")


def test_one_that_writes_much_is_not_held_up():
    # More than fits into a pipe, to both outputs.
    script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; echo ready; exec sleep 1000"
    with Shell(script) as server:
        assert len(server.log) > 600_000


def test_an_error_shows_the_first_and_the_last_lines_of_the_log():
    with pytest.raises(RuntimeError, match=r":\n1\n2\n3\n4\n5\n…\n981\n(.|\n)*\n1000$"):
        Shell("seq 1 1000; exit 3").start()
    with pytest.raises(RuntimeError, match=":\n1\n2\n3$"):
        Shell("seq 1 3; exit 3").start()


def test_the_log_begins_anew_with_each_start(tmp_path):
    with Shell("echo $$; echo ready; exec sleep 1000", data_dir=tmp_path) as server:
        for _ in range(2):
            assert server.log == f"{server.pid}\nready\n"
            server.restart()


def test_an_attempt_that_lost_its_ports_leaves_no_data_to_the_next(tmp_path):
    # An etcd that had begun its data, and had not written yet that it is a member, waited for a
    # leader for ever.
    tried, began, mine = (tmp_path / name for name in ("tried", "data/began", "data/mine"))
    script = f"""
if [ -e {began} ]; then echo this was begun before
elif [ -e {tried} ]; then ls {mine} && echo ready
else mkdir {tried} {began}; echo already in use; exit 3
fi
exec sleep 1000
"""
    mine.mkdir(parents=True)
    with Shell(script, data_dir=mine.parent, timeout=LIMIT):
        assert not began.exists()
        assert tried.exists()


def test_the_last_attempt_that_lost_its_ports_leaves_no_data_either(tmp_path):
    tried, began = tmp_path / "tried", tmp_path / "data/began"
    script = f"""
[ -e {tried} ] && [ ! -e {began} ] && echo ready && exec sleep 1000
mkdir {tried} {began}
echo already in use
"""
    server = Shell(script, data_dir=began.parent, timeout=LIMIT)
    server.attempts = 1
    with pytest.raises(RuntimeError, match="already in use"):
        server.start()
    assert list(began.parent.iterdir()) == []
    server.start()
    server.stop()


def test_a_server_has_the_environment_that_it_says(monkeypatch):
    class Told(Shell):
        def environment(self):
            return {**super().environment(), "RDZV_WORD": "told"}

    monkeypatch.setenv("RDZV_OTHER", "inherited")
    with Told('echo "$RDZV_WORD $RDZV_OTHER"; echo ready; exec sleep 1000') as server:
        assert server.log.splitlines()[0] == "told inherited"


def test_free_ports_are_each_another_one_and_none_is_too_high():
    ports = free_ports(20, 60_000)
    assert len(set(ports)) == 20
    assert max(ports) <= 60_000


def test_a_package_that_is_not_there_brings_no_program():
    assert packaged_program("no_such_package", "*") is None
    assert packaged_program("json", "no-such-*") is None
    assert packaged_program("sys", "*") is None
