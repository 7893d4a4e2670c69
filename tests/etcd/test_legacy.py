"""What torch's legacy handler for etcd offers, on this package's engine."""

from __future__ import annotations

import inspect
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousHandler as TorchsHandler

from rdzv import RendezvousParameters, get_rendezvous_handler
from rdzv.api import RendezvousInfo
from rdzv.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.legacy import (
    EtcdRendezvous,
    EtcdRendezvousHandler,
    create_rdzv_handler,
    read_url,
)
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.store import EtcdStore

from ..local_servers import LIMIT
from .groups import eventually
from .servers import distro


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(binary=distro(), durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Iterator[EtcdClient]:
    client = EtcdClient(server.endpoint, timeout=LIMIT)
    yield client
    client.close()


@pytest.fixture
def run_id() -> str:
    return uuid.uuid4().hex


Make = Callable[..., EtcdRendezvousHandler]


@pytest.fixture
def make(server, run_id) -> Iterator[Make]:
    """Makes handlers of one run, and ends them."""
    made: list[EtcdRendezvousHandler] = []

    def create(least: int = 1, most: int = 3, **settings: Any) -> EtcdRendezvousHandler:
        settings = {"last_call_timeout": 0.3, "timeout": 2 * LIMIT, **settings}
        params = RendezvousParameters(
            "etcd-legacy", server.endpoint, run_id, least, most, "127.0.0.1", **settings
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made.append(create_rdzv_handler(params))
        return made[-1]

    yield create
    for handler in made:
        handler.shutdown()


def joining(*handlers: EtcdRendezvousHandler) -> list[Future[RendezvousInfo]]:
    """Have them join at once."""

    def join(handler: EtcdRendezvousHandler, future: Future[RendezvousInfo]) -> None:
        try:
            future.set_result(handler.next_rendezvous())
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            future.set_exception(exc)

    futures: list[Future[RendezvousInfo]] = [Future() for _ in handlers]
    for handler, future in zip(handlers, futures, strict=True):
        threading.Thread(target=join, args=(handler, future), daemon=True).start()
    return futures


def address_of(info: RendezvousInfo) -> tuple[str, int]:
    """Where the workers' store is."""
    where = info.bootstrap_store_info
    assert where is not None
    return where.master_addr, where.master_port


def joined(*handlers: EtcdRendezvousHandler) -> list[RendezvousInfo]:
    """They join, and are one group."""
    found = [future.result(2 * LIMIT) for future in joining(*handlers)]
    assert {info.world_size for info in found} == {len(handlers)}
    assert sorted(info.rank for info in found) == list(range(len(handlers)))
    return found


# ---------------------------------------------------------------- the interface


def test_the_handler_has_all_that_torchs_has(make):
    handler = make()
    theirs = {name: member for name, member in vars(TorchsHandler).items() if name[0] != "_"}
    assert {"next_rendezvous", "shutdown", "use_agent_store"} <= set(theirs)
    for name, member in theirs.items():
        if callable(member):
            # As many arguments as there, by the same names.
            mine = inspect.signature(getattr(type(handler), name))
            assert list(mine.parameters) == list(inspect.signature(member).parameters)
        else:
            assert isinstance(getattr(handler, name), bool)


def test_the_classes_are_made_with_torchs_arguments(client, run_id):
    rendezvous = EtcdRendezvous(
        client=client,
        prefix="/torchelastic/p2p",
        run_id=run_id,
        num_min_workers=1,
        num_max_workers=2,
        timeout=60,
        last_call_timeout=1,
    )
    with pytest.warns(DeprecationWarning, match="use the backend 'etcd' instead"):
        handler = EtcdRendezvousHandler(rdzv_impl=rendezvous, local_addr="127.0.0.1")
    # As torch's, whoever asks.
    assert handler.get_backend() == "etcd"
    assert handler.get_run_id() == run_id
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    assert address_of(info)[0] == "127.0.0.1"
    assert handler.shutdown()


def test_a_barrier_returns_the_round_the_rank_and_the_size(client, run_id):
    rendezvous = EtcdRendezvous(client, "/old", run_id, 1, 1, LIMIT, 0.1, "127.0.0.1")
    assert rendezvous.rendezvous_barrier() == (1, 0, 1)
    assert rendezvous.rendezvous_barrier() == (2, 0, 1)
    rendezvous.set_closed()
    with pytest.raises(RendezvousClosedError):
        rendezvous.rendezvous_barrier()
    assert rendezvous.handler.shutdown()


def test_the_warning_names_the_replacement_and_whose_fault_it_is(server, run_id, caplog):
    params = RendezvousParameters("etcd-legacy", server.endpoint, run_id, 1, 1)
    with pytest.warns(DeprecationWarning, match="--rdzv-backend=rdzv-etcd"):
        handler = create_rdzv_handler(params)
    assert "use the backend 'etcd' instead" in caplog.text
    handler.shutdown()


def test_it_is_found_by_its_name(server, run_id):
    params = RendezvousParameters(
        "etcd-legacy", server.endpoint, run_id, 1, 1, "127.0.0.1", last_call_timeout=0.1
    )
    with pytest.warns(DeprecationWarning, match="'etcd'"):
        handler = get_rendezvous_handler(params)
    assert handler.get_backend() == "etcd-legacy"
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"run_id": ""}, "run"),
        ({"prefix": "/"}, "path like /rdzv"),
        ({"num_min_workers": 0}, "min_nodes"),
        ({"num_max_workers": 0}, "max_nodes"),
        ({"timeout": 0}, "must be positive"),
        ({"last_call_timeout": -1}, "must be positive"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(client, run_id, arguments, why):
    given: dict[str, Any] = {
        "client": client, "prefix": "/p", "run_id": run_id, "num_min_workers": 1,
        "num_max_workers": 1, "timeout": 60, "last_call_timeout": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=why):
        EtcdRendezvous(**{**given, **arguments})


# ---------------------------------------------------------------- rounds


def test_three_form_rounds_one_after_another_and_each_has_a_store_of_its_own(make):
    handlers = [make(2, 3, last_call_timeout=2) for _ in range(3)]
    for number in ("1", "2", "3"):
        found = joined(*handlers)
        stores = [info.store for info in found]
        assert all(isinstance(store, EtcdStore) for store in stores)
        assert not stores[0].check(["number"])
        stores[0].set("number", number)
        assert {store.get("number") for store in stores} == {number.encode()}
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
    assert len({address_of(info) for info in found}) == 1
    assert address_of(found[0])[0] == "127.0.0.1"


def test_two_go_on_when_the_third_has_left_and_take_it_back(make):
    first, second, third = (make(2, 3, last_call_timeout=2) for _ in range(3))
    joined(first, second, third)
    # As where its agent was told to end.
    third._rdzv_impl.handler.leave()
    eventually(lambda: first.num_nodes_waiting() and second.num_nodes_waiting())
    joined(first, second)
    fourth = make(2, 3)
    waiting = joining(fourth)
    eventually(lambda: first.num_nodes_waiting() and second.num_nodes_waiting())
    found = [future.result(2 * LIMIT) for future in joining(first, second) + waiting]
    assert {info.world_size for info in found} == {3}


def test_two_go_on_when_the_third_has_died(make):
    first, second, third = (make(2, 3, last_call_timeout=2) for _ in range(3))
    joined(first, second, third)
    third._rdzv_impl.handler._driver.stop()
    eventually(lambda: first.num_nodes_waiting() and second.num_nodes_waiting())
    joined(first, second)


def test_shutdown_closes_the_run_for_all(make):
    first, second = make(2, 2), make(2, 2)
    joined(first, second)
    assert not first.is_closed()
    assert first.shutdown()
    eventually(second.is_closed)
    with pytest.raises(RendezvousClosedError):
        second.next_rendezvous()
    with pytest.raises(RendezvousClosedError):
        make(2, 2).next_rendezvous()


def test_a_run_can_be_closed(make):
    handler = make()
    assert not handler.is_closed()
    handler.set_closed()
    assert handler.is_closed()
    assert handler.num_nodes_waiting() == 0


def test_a_round_that_does_not_complete_in_time_is_an_error(make):
    with pytest.raises(RendezvousTimeoutError):
        make(2, 2, timeout=0.5).next_rendezvous()


def test_the_nodes_must_agree_on_the_numbers(make):
    joined(make(1, 3))
    with pytest.raises(RendezvousStateError, match="max_nodes"):
        make(1, 2).next_rendezvous()


def test_all_keys_are_below_the_prefix_and_have_a_lease(make, client, run_id):
    handler = make(1, 1, etcd_prefix="/old/jobs")
    info = handler.next_rendezvous()
    info.store.set("key", "value")
    start = f"/old/jobs/{run_id}/".encode()
    found = client.range(Get(start, prefix_end(start))).kvs
    assert any(b"/rdzv/v_1/kv/" in kv.key for kv in found)
    assert all(kv.lease for kv in found)


# ---------------------------------------------------------------- beside a round's store


def test_extra_data_is_what_was_stored_for_that_round(make):
    first, second = (make(2, 2)._rdzv_impl for _ in range(2))
    values = {"text": "a", "number": 1.5, "list": [1, None, {"b": "ä"}]}
    for name, value in values.items():
        first.store_extra_data(1, name, value)
    first.store_extra_data(2, "text", "other")
    assert {name: second.load_extra_data(1, name) for name in values} == values
    assert second.load_extra_data(2, "text") == "other"
    first.store_extra_data(1, "text", "new")
    assert second.load_extra_data(1, "text", timeout=1) == "new"
    # Nothing of it is in the round's store.
    assert not first.setup_kv_store(1).check(["text"])


def test_extra_data_is_waited_for(make):
    first, second = (make(2, 2)._rdzv_impl for _ in range(2))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(second.load_extra_data(1, "key", LIMIT)))
    thread.start()
    first.store_extra_data(1, "key", "value")
    thread.join(LIMIT)
    assert found == ["value"]


def test_extra_data_that_does_not_come_is_an_error(make):
    rendezvous = make()._rdzv_impl
    with pytest.raises(RendezvousTimeoutError, match="'key' for round 1"):
        rendezvous.load_extra_data(1, "key", timeout=0.1)
    rendezvous.set_closed()
    with pytest.raises(RendezvousClosedError):
        rendezvous.load_extra_data(1, "key", timeout=0.1)


# ---------------------------------------------------------------- the URL


def test_the_url_of_torchs_documentation_is_read():
    params = read_url("etcd://localhost:2379/1234?min_workers=1&max_workers=3")
    assert (params.backend, params.endpoint, params.run_id) == (
        "etcd-legacy",
        "localhost:2379",
        "1234",
    )
    assert (params.min_nodes, params.max_nodes, params.config) == (1, 3, {})


def test_the_url_may_have_all_of_torchs_parameters_and_several_hosts():
    params = read_url(
        "etcd://a:1,b:2/job%2F1?min_workers=2&timeout=60&last_call_timeout=5&etcd_prefix=/p"
    )
    assert (params.endpoint, params.run_id) == ("a:1,b:2", "job/1")
    assert (params.min_nodes, params.max_nodes) == (2, 2)
    assert params.get_as_seconds("timeout", 0.0) == 60
    assert params.config["etcd_prefix"] == "/p"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:2379",
        "http://localhost:2379/1?min_workers=1",
        "etcd://localhost:2379?min_workers=1",
        "etcd:///1?min_workers=1",
        "etcd://localhost/1",
        "etcd://localhost/1?max_workers=1",
        "etcd://localhost/1?min_workers=x",
        "etcd://localhost/1?min_workers",
        "etcd://me:s3cr3t@localhost/1",
    ],
)
def test_what_is_no_such_url_is_refused_with_how_to_write_it(url):
    with pytest.raises(ValueError, match="etcd://host:port/run") as caught:
        read_url(url)
    assert "s3cr3t" not in str(caught.value)


def test_a_run_can_be_made_from_its_url(server, run_id):
    params = read_url(
        f"etcd://{server.endpoint}/{run_id}?min_workers=1&max_workers=1&last_call_timeout=1"
    )
    with pytest.warns(DeprecationWarning, match="'etcd'"):
        handler = create_rdzv_handler(params)
    assert handler.get_run_id() == run_id
    assert handler.next_rendezvous().world_size == 1
    handler.shutdown()


@pytest.mark.parametrize(
    "form",
    ["etcd://{}/{}?min_workers=1&max_workers=2", "etcd://{}/{}", "etcd://{}", "etcd://{}/"],
)
def test_the_endpoint_may_be_the_url_of_what_stands_beside_it(server, run_id, form):
    endpoint = form.format(server.endpoint, run_id)
    params = RendezvousParameters(
        "etcd-legacy", endpoint, run_id, 1, 2, "127.0.0.1", last_call_timeout=0.1
    )
    with pytest.warns(DeprecationWarning, match="'etcd'"):
        handler = create_rdzv_handler(params)
    assert handler.next_rendezvous().world_size == 1
    handler.shutdown()


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("etcd://{}/other?min_workers=1&max_workers=2", "run id=other"),
        ("etcd://{}/{}?min_workers=2&max_workers=2", "min_workers=2"),
        ("etcd://{}/{}?min_workers=1&max_workers=3", "max_workers=3"),
    ],
)
def test_a_url_that_contradicts_what_stands_beside_it_is_refused(server, run_id, form, why):
    endpoint = form.format(server.endpoint, run_id)
    with pytest.raises(ValueError, match=why):
        create_rdzv_handler(RendezvousParameters("etcd-legacy", endpoint, run_id, 1, 2))


# ---------------------------------------------------------------- TLS by torch's names


def test_torchs_names_for_files_are_understood(certificates, run_id):
    files: dict[str, str | bool] = {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
        "trusted-ca-file": certificates.path("ca.pem"),
        "client-cert-auth": True,
    }
    theirs = {
        "protocol": "https",
        "cacert": certificates.path("ca.pem"),
        "cert": certificates.path("client.pem"),
        "key": certificates.path("client.key"),
    }
    with EtcdServer(durable=False, tls=files) as server:

        def parameters(**settings: Any) -> RendezvousParameters:
            return RendezvousParameters(
                "etcd-legacy", server.endpoint, run_id, 1, 1, "127.0.0.1", **settings
            )

        for create in (create_rdzv_handler, get_rendezvous_handler):
            with pytest.warns(DeprecationWarning, match="'etcd'"):
                handler = create(parameters(**theirs))
            assert handler.num_nodes_waiting() == 0
            handler.shutdown()
        with pytest.raises(RendezvousConnectionError, match="TLS"):
            create_rdzv_handler(parameters(read_timeout=2))
    with pytest.raises(ValueError, match="no such file"):
        create_rdzv_handler(parameters(**{**theirs, "cacert": "/nowhere"}))


def test_the_store_has_the_runs_timeout(make):
    store = make(1, 1, timeout=17).next_rendezvous().store
    assert store.timeout == timedelta(seconds=17)
