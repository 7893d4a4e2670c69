"""From a name to a handler: by hand, by plugin, and with which settings."""

from __future__ import annotations

import pytest

from rdzv import RendezvousParameters, get_rendezvous_handler
from rdzv.errors import PluginError
from rdzv.registry import check_parameters
from rdzv.specs import BackendSpec, HandlerSpec, Parameter

HANDLER = """
from rdzv import HandlerSpec, Parameter, RendezvousHandler, hookimpl

class Handler(RendezvousHandler):
    def __init__(self, backend, run_id):
        self.backend, self.run_id = backend, run_id
    def get_backend(self): return self.backend
    def next_rendezvous(self): raise NotImplementedError
    def is_closed(self): return False
    def set_closed(self): pass
    def num_nodes_waiting(self): return 0
    def get_run_id(self): return self.run_id
    def shutdown(self): return True

def create(params):
    return Handler(params.get("calls_itself") or params.backend, params.run_id)

@hookimpl
def rdzv_handler(name):
    return HandlerSpec(name, "a test", create, (Parameter("calls_itself", "str"),))
"""


def make(backend="b", **config) -> RendezvousParameters:
    return RendezvousParameters(backend, "host:1", "run", 1, 2, **config)


@pytest.fixture
def fixed(fake):
    fake.module("fixed_plugin", HANDLER)
    fake.add("dist-fixed", entries={"fixed": "fixed_plugin", "steady": "fixed_plugin"})
    return fake


@pytest.mark.usefixtures("fixed", "registry")
def test_a_plugin_makes_the_handler():
    handler = get_rendezvous_handler(make("fixed"))
    assert handler.get_run_id() == "run"
    assert handler.get_backend() == "fixed"


@pytest.mark.usefixtures("fixed")
def test_the_registry_of_the_process_finds_plugins_too(registry):
    assert registry.create_handler(make("steady")).get_backend() == "steady"


@pytest.mark.usefixtures("registry")
def test_a_backend_registered_by_hand_comes_before_a_plugin_of_its_name(fixed, registry):
    from rdzv.plugins import load

    mine = load("steady")
    assert isinstance(mine, HandlerSpec)
    registry.register("fixed", mine.create)
    made = get_rendezvous_handler(make("fixed", anything="goes"))
    assert made.get_backend() == "fixed"


@pytest.mark.usefixtures("fixed", "registry")
def test_a_plugin_whose_handler_calls_itself_otherwise_is_refused():
    with pytest.raises(RuntimeError, match="'fixed' calls itself 'other'"):
        get_rendezvous_handler(make("fixed", calls_itself="other"))


@pytest.mark.usefixtures("fixed", "registry")
def test_an_unknown_setting_stops_the_run_before_a_handler_is_made():
    with pytest.raises(ValueError, match="no setting 'call_itself'. Did you mean 'calls_itself'"):
        get_rendezvous_handler(make("fixed", call_itself="x"))


@pytest.mark.usefixtures("fake", "registry")
def test_an_unknown_backend_is_a_value_error_as_in_torch():
    with pytest.raises(ValueError, match="no rendezvous backend 'nonsense'") as caught:
        get_rendezvous_handler(make("nonsense"))
    assert isinstance(caught.value, PluginError)


def create(params):
    raise NotImplementedError


BACKEND = BackendSpec(
    "b",
    "a test",
    create,
    (
        Parameter("depth", "int", 3),
        Parameter("ratio", "float"),
        Parameter("wait", "seconds", 0.5, aliases=("patience_of_doors",)),
        Parameter("locked", "bool"),
        Parameter("kind", "str", "oak", choices=("oak", "pine")),
        Parameter("phrase", "str", secret=True),
        Parameter("pin", "int", secret=True),
    ),
)


def test_good_settings_are_accepted_as_values_and_as_texts():
    check_parameters(BACKEND, make())
    check_parameters(
        BACKEND, make(depth=4, ratio=0.1, wait=2, locked=True, kind="pine", phrase="x", pin=1)
    )
    check_parameters(
        BACKEND, make(depth="4", ratio="0.1", wait="2.5", locked="no", kind="PINE", pin="1")
    )


def test_what_torchrun_adds_to_every_backend_is_accepted():
    check_parameters(BACKEND, make(timeout=900))
    check_parameters(HandlerSpec("h", "a test", create), make(timeout=900))


def test_none_counts_as_not_given():
    check_parameters(BACKEND, make(depth=None, locked=None, kind=None))


def test_the_settings_of_the_engine_belong_to_backends_and_not_to_whole_handlers():
    params = make(join_timeout=1, heartbeat="0.5", keep_alive_max_attempt=3, patience=1.5)
    check_parameters(BACKEND, params)
    with pytest.raises(ValueError, match="has no setting 'join_timeout'"):
        check_parameters(HandlerSpec("h", "a test", create), params)


@pytest.mark.parametrize(
    ("key", "near"),
    [("dept", "depth"), ("join_timeot", "join_timeout"), ("keepalive_interval", "keep_alive_int")],
)
def test_an_unknown_setting_gives_the_nearest_one_and_the_list(key, near):
    with pytest.raises(ValueError, match=f"no setting '{key}'. Did you mean '{near}") as caught:
        check_parameters(BACKEND, make(**{key: 1}))
    for name in ("depth", "locked", "join_timeout", "heartbeat", "timeout"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": "deep"}, "'depth' of the backend 'b' is 'deep'; it must be a whole number"),
        ({"depth": 1.5}, "'depth' .* 1.5"),
        ({"ratio": "much"}, "'ratio' .* 'much'; it must be a number"),
        ({"wait": "5s"}, "'wait' .* '5s'; it must be a time in seconds; write a number without"),
        ({"join_timeout": "10m"}, "'join_timeout' .* '10m'"),
        ({"heartbeat": -1}, "'heartbeat' .* -1"),
        ({"locked": "maybe"}, "'locked' .* 'maybe'; it must be a truth value"),
        ({"kind": "ash"}, "'kind' .* 'ash'; it must be one of oak, pine"),
        ({"kind": 3}, "'kind' .* 3; it must be one of"),
        ({"phrase": 5}, "'phrase' .* must be of the type 'str'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_wanted(config, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(BACKEND, make(**config))


def test_a_setting_given_under_two_of_its_names_is_refused():
    with pytest.raises(ValueError, match="'heartbeat' and 'heartbeat_timeout' .* are the same"):
        check_parameters(BACKEND, make(heartbeat=1, heartbeat_timeout=2))


def test_a_wrong_value_of_a_secret_is_not_shown():
    with pytest.raises(ValueError, match="'pin'") as caught:
        check_parameters(BACKEND, make(pin="hunter2"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
