"""The log of events: whole lines, in the file of one's choice, at no risk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rdzv.events import Joined, Observers
from rdzv_observers import jsonlog
from rdzv_observers.jsonlog import JsonLog, path_of

LONG = 60.0  # seconds; reached only where a test fails


def joined(number: int, run_id: str = "run") -> Joined:
    return Joined(run_id=run_id, node="n0", round=number, at=float(number))


def rounds(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_it_is_off_where_the_variable_is_not_set(monkeypatch, value):
    monkeypatch.delenv(jsonlog.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(jsonlog.VARIABLE, value)
    assert jsonlog.rdzv_observer() is None


def test_events_are_appended_one_a_line(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    path.write_text('{"round": 0}\n')
    monkeypatch.setenv(jsonlog.VARIABLE, str(path))
    observer = jsonlog.rdzv_observer()
    assert observer is not None
    for number in (1, 2):
        observer(joined(number))
    assert rounds(path) == [0, 1, 2]


def test_no_file_is_made_before_there_is_something_to_write(tmp_path):
    JsonLog(str(tmp_path / "events.jsonl"))
    assert not list(tmp_path.iterdir())


def test_a_path_may_name_the_machine_and_the_process(tmp_path):
    host, pid = socket.gethostname(), os.getpid()
    assert path_of("/logs/%h/%p-100%%.jsonl") == Path(f"/logs/{host}/{pid}-100%.jsonl")
    assert path_of("/logs/") == Path(f"/logs/rdzv-{host}-{pid}.jsonl")
    assert path_of(str(tmp_path)) == tmp_path / f"rdzv-{host}-{pid}.jsonl"
    JsonLog(str(tmp_path / "new" / "%p.jsonl"))(joined(1))
    assert rounds(tmp_path / "new" / f"{pid}.jsonl") == [1]


WRITER = """
import sys
from rdzv.events import Failed
from rdzv_observers.jsonlog import JsonLog

log = JsonLog(sys.argv[1])
for number in range(200):
    log(Failed(run_id="run", node=sys.argv[2], round=number, at=0.0, error="x" * 5000))
"""


def test_the_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "events.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait(LONG) for writer in writers] == [0, 0, 0]
    seen: dict[str, list[int]] = {}
    for line in path.read_text().splitlines():
        found = json.loads(line)
        seen.setdefault(found["node"], []).append(found["round"])
    assert seen == {name: list(range(200)) for name in "abc"}


def test_standard_error_is_written_to_as_well():
    code = (
        "from rdzv.events import Joined; from rdzv_observers.jsonlog import JsonLog\n"
        "JsonLog('-')(Joined(run_id='run', node='n0', round=4, at=0.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stderr)["round"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_logged_once_and_hinders_nobody(caplog):
    observers = Observers([("jsonlog", JsonLog("/dev/full"))])
    for number in range(5):
        observers.emit(joined(number))
    observers.close(LONG)
    assert caplog.text.count("observer 'jsonlog' failed") == 1
    assert "No space left" in caplog.text


def test_a_folder_that_is_not_there_yet_is_tried_again_with_each_event(tmp_path):
    blocker = tmp_path / "logs"
    blocker.write_text("a file is in the way")
    log = JsonLog(f"{blocker}/events.jsonl")
    with pytest.raises(OSError, match="logs"):
        log(joined(1))
    blocker.unlink()
    log(joined(2))
    assert rounds(blocker / "events.jsonl") == [2]


def test_a_line_that_was_cut_short_costs_no_other_line(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    log = JsonLog(str(path))
    log(joined(1))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
        with pytest.raises(OSError, match="20 of"):
            log(joined(2))
    log(joined(3))
    first, cut, last = path.read_text().splitlines()
    assert (json.loads(first)["round"], json.loads(last)["round"]) == (1, 3)
    assert len(cut) == 20
