"""The doctor on stores of torch: hosted by somebody, by nobody, and by itself if it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from datetime import timedelta

from torch.distributed import TCPStore

from .examining import examined, works


def hosted() -> TCPStore:
    return TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_store_that_an_agent_hosts_is_sound_and_keeps_nothing_of_the_scratch_run():
    store = hosted()
    store.set("theirs", "1")
    found = examined("c10d", f"127.0.0.1:{store.port}")
    assert works(found)
    assert "c10d.store" in found
    assert [key for key in store.list_keys() if "doctor" in key] == []
    assert store.get("theirs") == b"1"


def test_a_store_with_another_run_is_told():
    store = hosted()
    store.set("rdzv/job7/document/1", "x")
    assert "'job7'" in examined("c10d", f"127.0.0.1:{store.port}")["c10d.other-runs"].seen


def test_where_nobody_hosts_the_store_this_node_could_and_does_not():
    port = free_port()
    found = examined("c10d", f"127.0.0.1:{port}")
    assert not found.errors
    assert found["c10d.no-host"].level == "note"
    assert "No agent of this run hosts the store (yet)" in found["c10d.no-host"].seen
    assert "c10d.can-host" in found
    assert "operation.works" not in found
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "it must not have become the host"


def test_a_node_that_is_not_to_host_says_that_the_agent_is_not_there():
    found = examined("c10d", f"127.0.0.1:{free_port()}", {"is_host": "false"})
    assert found["c10d.no-host"].level == "warning"
    assert "c10d.can-host" not in found


def test_a_host_that_is_told_to_is_one_for_the_time_of_the_examination():
    port = free_port()
    found = examined("c10d", f"127.0.0.1:{port}", host=True)
    assert works(found)
    assert "store.hosted" in found


def test_a_store_of_a_real_run_is_never_hosted_even_where_is_host_says_so():
    port = free_port()
    found = examined("c10d", f"127.0.0.1:{port}", {"is_host": "true"})
    assert "operation.works" not in found
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_may_not_be_listened_on_is_an_error(monkeypatch):
    real = socket.create_server

    def refuses(address, **options):
        if address[1]:
            raise PermissionError(13, "Permission denied")
        return real(address, **options)

    port = free_port()
    monkeypatch.setattr(socket, "create_server", refuses)
    assert examined("c10d", f"127.0.0.1:{port}").errors == ["c10d.cannot-host"]


def test_something_else_on_the_port_is_no_store():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve():
            # It takes connections and ends them, as a server of something else would.
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    server.accept()[0].close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        found = examined("c10d", f"127.0.0.1:{server.getsockname()[1]}", limit=1.0)
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert found.errors == ["c10d.no-store"]


def test_a_file_is_tried_beside_the_one_of_the_run(tmp_path):
    path = tmp_path / "run"
    assert works(examined("c10d", str(path), {"store_type": "file"}))
    assert list(tmp_path.iterdir()) == []
