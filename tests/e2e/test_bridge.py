"""The bridge into torch, with handlers that only note what is asked of them."""

from __future__ import annotations

import importlib
import os
import signal
from types import SimpleNamespace

import pytest
from torch.distributed.elastic import events as torch_events
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import api as torch_api

from rdzv import api, errors, plugins, registry, torchrun


class Noting(api.RendezvousHandler):
    """Answers as it is told, and notes the calls."""

    node = "10.0.0.7_42_3"
    gone_before_round = 0
    round_broken = False

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._error = error

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self._error is not None:
            raise self._error

    def next_rendezvous(self) -> api.RendezvousInfo:
        self._note("next_rendezvous")
        return api.RendezvousInfo(None, 1, 2, api.RendezvousStoreInfo("host", 1))  # type: ignore[arg-type]

    def is_closed(self) -> bool:
        self._note("is_closed")
        return True

    def set_closed(self) -> None:
        self._note("set_closed")

    def num_nodes_waiting(self) -> int:
        self._note("num_nodes_waiting")
        return 3

    def get_run_id(self) -> str:
        return "run"

    def get_backend(self) -> str:
        return "redis"

    def shutdown(self) -> bool:
        self._note("shutdown")
        return True

    def leave(self) -> bool:
        self._note("leave")
        return False


def bridge(handler: api.RendezvousHandler):
    return torchrun._bridge_class()(handler, "redis")


def parameters(backend: str, **config) -> torch_api.RendezvousParameters:
    return torch_api.RendezvousParameters(
        backend, "127.0.0.1:0", "run", 1, 1, local_addr="127.0.0.1", **config
    )


@pytest.fixture
def recorded(monkeypatch):
    """What torch was given to record."""
    found: list[SimpleNamespace] = []
    monkeypatch.setattr(
        torch_events,
        "construct_and_record_rdzv_event",
        lambda **event: found.append(SimpleNamespace(**event)),
    )
    return found


@pytest.fixture
def torchs_registry(monkeypatch):
    """torch's registry, with none but torch's own names in it."""
    # Brings the names of torch and ours in; it is no attribute of its package.
    module = importlib.import_module("torch.distributed.elastic.rendezvous.registry")
    found = torch_api.rendezvous_handler_registry
    monkeypatch.setattr(found, "_registry", {})
    module._register_default_handlers()
    return found


def install(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(
        plugins, "installed", lambda: [SimpleNamespace(name=name) for name in names]
    )


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("c10d", "rdzv-c10d"),
        ("etcd", "rdzv-etcd"),
        ("etcd-v2", "rdzv-etcd-v2"),
        ("redis", "redis"),
        ("static", None),
    ],
)
def test_names_that_torch_has_given_away_get_a_prefix(backend, name):
    assert torchrun.torchrun_name(backend) == name


def test_all_installed_backends_are_registered_beside_torchs(monkeypatch, torchs_registry):
    theirs = dict(torchs_registry._registry)
    install(monkeypatch, "c10d", "redis", "static")
    torchrun.register()
    assert set(torchs_registry._registry) == {*theirs, "rdzv-c10d", "redis"}
    assert theirs.items() <= torchs_registry._registry.items()


def test_a_name_that_somebody_else_has_registered_gets_a_prefix(monkeypatch, torchs_registry):
    def other(params):
        raise NotImplementedError

    torchs_registry.register("redis", other)
    install(monkeypatch, "redis")
    torchrun.register()
    assert torchs_registry._registry["redis"] is other
    assert "rdzv-redis" in torchs_registry._registry


def test_the_name_of_the_entry_point_explains(monkeypatch, torchs_registry):
    install(monkeypatch, "redis", "c10d", "static")
    explain = torchrun.register()
    with pytest.raises(ValueError, match="one of: rdzv-c10d, redis$"):
        explain(parameters("rdzv"))
    install(monkeypatch)
    with pytest.raises(ValueError, match="pip install rdzv-c10d"):
        explain(parameters("rdzv"))


# ---------------------------------------------------------------- what goes through


def test_parameters_are_handed_over(monkeypatch, torchs_registry):
    given: list[api.RendezvousParameters] = []

    def create(params):
        given.append(params)
        return Noting()

    monkeypatch.setattr(registry, "get_rendezvous_handler", create)
    install(monkeypatch, "c10d")
    torchrun.register()
    theirs = parameters("rdzv-c10d", timeout=900, last_call_timeout="0.5")
    made = torchs_registry.create_handler(theirs)
    assert isinstance(made, torch_api.RendezvousHandler)
    assert made.get_backend() == "rdzv-c10d"
    [own] = given
    assert own.backend == "c10d"
    for name in ("endpoint", "run_id", "min_nodes", "max_nodes", "local_addr"):
        assert getattr(own, name) == getattr(theirs, name)
    assert own.config == {"timeout": 900, "last_call_timeout": "0.5"}


def test_answers_are_handed_over(recorded):
    handler = Noting()
    made = bridge(handler)
    info = made.next_rendezvous()
    assert (info.rank, info.world_size) == (1, 2)
    assert made.is_closed() is True
    assert made.num_nodes_waiting() == 3
    assert made.use_agent_store is handler.use_agent_store
    assert made.get_run_id() == "run"
    made.set_closed()
    assert handler.calls == ["next_rendezvous", "is_closed", "num_nodes_waiting", "set_closed"]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (errors.RendezvousClosedError, torch_api.RendezvousClosedError),
        (errors.RendezvousTimeoutError, torch_api.RendezvousTimeoutError),
        (errors.RendezvousConnectionError, torch_api.RendezvousConnectionError),
        (errors.RendezvousStateError, torch_api.RendezvousStateError),
        (errors.RendezvousGracefulExitError, torch_api.RendezvousGracefulExitError),
        (errors.StoreGoneError, torch_api.RendezvousConnectionError),
        (errors.RendezvousError, torch_api.RendezvousError),
    ],
)
@pytest.mark.parametrize(
    "call", ["next_rendezvous", "is_closed", "set_closed", "num_nodes_waiting"]
)
def test_errors_are_torchs_and_ours(recorded, own, theirs, call):
    made = bridge(Noting(own("what went wrong")))
    with pytest.raises(theirs, match="what went wrong") as raised:
        getattr(made, call)()
    assert isinstance(raised.value, own)


def test_other_errors_stay_what_they_are(recorded):
    with pytest.raises(ZeroDivisionError):
        bridge(Noting(ZeroDivisionError())).next_rendezvous()


def test_rounds_and_ends_are_recorded_as_torch_records_its_own(recorded):
    made = bridge(Noting())
    made.next_rendezvous()
    made.shutdown()
    failing = bridge(Noting(errors.RendezvousTimeoutError("too late")))
    with pytest.raises(torch_api.RendezvousTimeoutError):
        failing.next_rendezvous()
    assert [(event.name, event.node_state.name, event.rank) for event in recorded] == [
        ("Noting.next_rendezvous", "RUNNING", None),
        ("Noting.next_rendezvous", "RUNNING", 1),
        ("Noting.shutdown", "SUCCEEDED", None),
        ("Noting.next_rendezvous", "RUNNING", None),
        ("Noting.next_rendezvous", "FAILED", None),
    ]
    for event in recorded:
        assert (event.hostname, event.pid, event.local_id) == ("10.0.0.7", 42, 3)
        assert event.run_id == "run"
    assert "too late" in recorded[-1].message


def test_torch_takes_the_records(monkeypatch):
    taken: list[object] = []
    monkeypatch.setattr(torch_events, "record_rdzv_event", taken.append)
    # torch makes no records while nobody takes them.
    monkeypatch.setattr(torch_events, "get_logging_handler", lambda _: None)
    bridge(Noting()).next_rendezvous()
    assert [(event.run_id, event.rank) for event in taken] == [("run", None), ("run", 1)]  # type: ignore[attr-defined]


# ---------------------------------------------------------------- who closes a run


class DiskFullError(OSError):
    pass


FAILED_FOR_GOOD = ChildFailedError("train", {0: ProcessFailure(0, 1, 1, "none")})


def launch(made, error: BaseException | None) -> None:
    """End as torch's launcher does."""
    try:
        if error is not None:
            raise error
    finally:
        made.shutdown()


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (None, ["shutdown"]),
        (FAILED_FOR_GOOD, ["shutdown"]),
        (DiskFullError("no space"), ["leave"]),
        (torch_api.RendezvousConnectionError("gone"), ["leave"]),
        (torch_api.RendezvousTimeoutError("nobody there"), ["leave"]),
        (SignalException("ended", signal.SIGTERM), ["leave"]),
        (KeyboardInterrupt(), ["leave"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_a_shutdown_closes_after_the_end_of_the_workers_alone(recorded, error, calls):
    handler = Noting()
    made = bridge(handler)
    if error is None:
        launch(made, error)
    else:
        with pytest.raises(type(error)):
            launch(made, error)
    assert handler.calls == calls
    state = "SUCCEEDED" if calls == ["shutdown"] else "FAILED"
    assert [event.node_state.name for event in recorded] == [state]


def test_an_error_that_the_launchers_caller_handles_is_not_the_agents(recorded):
    handler = Noting()
    try:
        raise DiskFullError("of an earlier try")
    except DiskFullError:
        launch(bridge(handler), None)
    assert handler.calls == ["shutdown"]


def test_a_handler_that_cannot_leave_is_shut_down(recorded):
    handler = Noting()
    whole = SimpleNamespace(
        shutdown=handler.shutdown, get_run_id=handler.get_run_id, node=handler.node
    )
    made = bridge(whole)  # type: ignore[arg-type]
    with pytest.raises(DiskFullError):
        launch(made, DiskFullError())
    assert handler.calls == ["shutdown"]


@pytest.mark.parametrize("in_torchrun", [True, False])
def test_an_unneeded_spare_ends_well_under_torchrun(monkeypatch, recorded, in_torchrun):
    monkeypatch.setattr(torchrun, "_in_torchrun", lambda: in_torchrun)
    handler = Noting(errors.RendezvousGracefulExitError("not needed"))
    made = bridge(handler)
    with pytest.raises(torch_api.RendezvousGracefulExitError):
        made.next_rendezvous()
    handler._error = None
    with pytest.raises(SystemExit if in_torchrun else AttributeError) as raised:
        # What torch's launcher makes of the result of an agent that has none.
        launch(made, AttributeError("is_failed"))
    assert handler.calls == ["next_rendezvous", "leave"]
    if in_torchrun:
        assert raised.value.code == 0  # type: ignore[attr-defined]


# ---------------------------------------------------------------- restarts


class Agent(SimpleElasticAgent):
    """torch's agent, as far as it counts restarts."""

    def __init__(self, made, restarts: int) -> None:
        self._made = made
        self._remaining_restarts = restarts

    def form(self, *, failed: bool) -> int:
        """Form the next round, after failed workers or others; returns what is left."""
        if failed:
            self._remaining_restarts -= 1
        self._made.next_rendezvous()
        return self._remaining_restarts

    def _start_workers(self, *_):
        raise NotImplementedError

    _stop_workers = _monitor_workers = _shutdown = _start_workers


@pytest.mark.parametrize("sign", ["gone_before_round", "round_broken"])
def test_a_restart_is_given_back_where_others_were_the_cause(recorded, sign):
    handler = Noting()
    agent = Agent(bridge(handler), 3)
    assert agent.form(failed=False) == 3
    setattr(handler, sign, 1)
    assert agent.form(failed=True) == 3
    assert agent.form(failed=True) == 3
    # Nothing was charged, so nothing is given back.
    assert agent.form(failed=False) == 3
    setattr(handler, sign, 0)
    assert agent.form(failed=True) == 2
    setattr(handler, sign, 1)
    assert agent.form(failed=False) == 2
    assert agent.form(failed=True) == 2


def test_a_program_without_torchs_agent_has_no_restarts_to_count(recorded):
    handler = Noting()
    handler.gone_before_round = 1
    assert bridge(handler).next_rendezvous().rank == 1


# ---------------------------------------------------------------- signals


def test_sigterm_ends_a_waiting_agent_in_order(recorded, monkeypatch):
    handler = Noting()
    monkeypatch.setattr(
        handler, "next_rendezvous", lambda: os.kill(os.getpid(), signal.SIGTERM), raising=True
    )
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        agent = Agent(bridge(handler), 0)
        with pytest.raises(SignalException, match="SIGTERM"):
            agent.form(failed=False)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_for_sigterm_that_is_there_stays(recorded, monkeypatch):
    handler = Noting()
    seen: list[object] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: seen.append)
    monkeypatch.setattr(signal, "signal", lambda *_: seen.append("changed"))
    Agent(bridge(handler), 0).form(failed=False)
    assert not seen
