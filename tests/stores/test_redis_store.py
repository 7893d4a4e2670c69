"""What a RedisStore does beyond what stores have in common: pushes, expiry, faults, forks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, QueueEmptyError

from rdzv_redis.server import RedisServer
from rdzv_redis.store import LARGEST_VALUE, RedisStore

LIMIT = 30.0
NO_RETRY = Retry(NoBackoff(), 0)
LONG_RETRY = Retry(ConstantBackoff(0.05), 200)


@pytest.fixture
def store(open_redis):
    return open_redis()


@pytest.fixture
def own():
    """A server that a test may kill, stop or fill."""
    with RedisServer() as server:
        yield server


def eventually(condition) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def blocked(client):
    return client.info("clients")["blocked_clients"]


def calls(client) -> dict[str, int]:
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


def in_thread(function) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(function())
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            answers.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


# Waiting.


def test_one_who_waits_asks_nothing_until_it_is_woken(own):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}", timedelta(seconds=LIMIT))
    store.set("other", "")  # The scripts are loaded now.
    client.config_resetstat()
    with pytest.raises(DistStoreError):
        store.wait(["key"], timedelta(seconds=2))
    counts = calls(client)
    # It looks, sleeps, and looks for a last time (the first time the script is loaded besides).
    assert counts["evalsha"] + counts.get("eval", 0) <= 3
    assert counts["blpop"] == 1


def test_one_who_waits_sleeps_no_shorter_than_it_may(store, monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr(store, "_ask", lambda *command: asked.append(float(command[-1])))
    for left in (0.0, 0.0004, 0.0124, 1.23449):
        store._sleep(SimpleNamespace(left=lambda left=left: left, waiter="w"))
    assert asked == [0.001, 0.001, 0.013, 1.235]


def test_one_who_is_woken_has_asked_twice(own):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}", timedelta(seconds=LIMIT))
    store.set("key", "")
    store.get("key")
    store.delete_key("key")
    assert not store.check(["key"])
    client.config_resetstat()
    thread, answers = in_thread(lambda: store.get("key"))
    eventually(lambda: blocked(client))
    store.set("another", "1")
    store.set("key", "1")
    thread.join(LIMIT)
    assert answers == [b"1"]
    counts = calls(client)
    # get, look, sleep, look, get; and the two writes.
    assert (counts["blpop"], counts["evalsha"]) == (1, 4)


def test_a_push_that_is_lost_is_survived(redis_client, store):
    store._pace = 0.2
    prefix = store._prefix
    thread, answers = in_thread(lambda: store.get("key"))
    eventually(lambda: redis_client.exists(f"{prefix}:waiting:key"))
    pipeline = redis_client.pipeline()
    pipeline.delete(f"{prefix}:waiting:key")
    pipeline.hset(f"{prefix}:values", "key", "1")
    pipeline.execute()
    thread.join(LIMIT)
    assert answers == [b"1"]


def test_who_has_given_up_is_forgotten(redis_client, open_redis):
    store = open_redis(0.1)
    with pytest.raises(DistStoreError):
        store.get("key")
    assert 0 < redis_client.pttl(f"{store._prefix}:waiting:key") <= store._patience
    store.set("key", "1")
    assert not redis_client.exists(f"{store._prefix}:waiting:key")


def test_a_waiting_connection_that_is_killed_is_replaced(own):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}", timedelta(seconds=LIMIT))
    thread, answers = in_thread(lambda: store.get("key"))
    eventually(lambda: blocked(client))
    (waiting,) = [c for c in client.client_list() if c["cmd"] == "blpop"]
    client.client_kill_filter(_id=waiting["id"])
    eventually(lambda: any(c["cmd"] == "blpop" for c in client.client_list()))
    store.set("key", "1")
    thread.join(LIMIT)
    assert answers == [b"1"]


def test_one_that_waits_does_not_hold_up_others_on_the_same_store(store):
    thread, answers = in_thread(lambda: store.queue_pop("queue"))
    workers = [in_thread(lambda: [store.add("n", 1) for _ in range(100)]) for _ in range(8)]
    for worker, _ in workers:
        worker.join(LIMIT)
    assert store.get("n") == b"800"
    seen = sorted(number for _, found in workers for number in found[0])
    assert seen == list(range(1, 801))
    store.queue_push("queue", "x")
    thread.join(LIMIT)
    assert answers == [b"x"]


def test_a_wait_of_no_time_looks_once_and_a_negative_one_is_an_error(store):
    store.set("there", "")
    store.wait(["there"], timedelta(0))
    with pytest.raises(DistStoreError, match="wait timeout after 0ms, keys: /key"):
        store.wait(["key"], timedelta(0))
    with pytest.raises(ValueError, match="-1"):
        store.wait(["key"], timedelta(seconds=-1))
    with pytest.raises(TypeError):
        store.wait(["key"], 1)


# What is on the server.


def test_every_key_has_a_time_to_live_and_begins_with_the_prefix(own):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}", timedelta(seconds=0.05), ttl=100.0)
    store.add("n", 1)
    store.set("a", "1")
    store.append("b", "1")
    store.compare_set("c", "", "1")
    store.multi_set(["d"], ["1"])
    store.queue_push("q", "1")
    store.queue_push("p", "1")
    store.queue_pop("p")
    for missing in ("m", "k"):
        with pytest.raises(DistStoreError):
            store.get(missing)
    store.set("m", "1")
    keys = client.keys()
    assert {key.decode() for key in keys} >= {"x:{y}:values", "x:{y}:queues", "x:{y}:once"}
    for key in keys:
        assert key.startswith(b"x:{y}:")
        assert 0 < client.pttl(key) <= 100_000


@pytest.mark.parametrize("write", ["set", "add", "append", "queue_push"])
def test_data_that_had_expired_has_a_time_to_live_again(own, write):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}")
    for _ in range(2):
        getattr(store, write)("key", 1 if write == "add" else "1")
        assert all(client.ttl(key) > 0 for key in client.scan_iter())
        client.flushall()


def test_using_a_store_extends_the_life_of_all_its_data(own):
    client = own.client()
    store = RedisStore(own.client(), "x:{y}", ttl=100.0)
    store.set("a", "1")
    store.queue_push("q", "1")
    for key in client.scan_iter():
        client.expire(key, 10)
    store.get("a")
    assert client.ttl("x:{y}:values") <= 10  # Not each time.
    store._touch_at = 0.0
    store.get("a")
    assert all(client.ttl(key) > 90 for key in client.scan_iter())
    assert store._touch_at > time.monotonic() + 10


def test_stores_of_other_prefixes_are_other_stores(redis_client):
    one, other = RedisStore(redis_client, "one:{z}"), RedisStore(redis_client, "other:{z}")
    one.set("key", "1")
    assert other.num_keys() == 0


def test_a_prefix_without_a_hash_tag_and_no_time_to_live_are_errors(redis_client):
    for prefix in ("", "run", "run:{}", "run:}x{"):
        with pytest.raises(ValueError, match="hash tag"):
            RedisStore(redis_client, prefix)
    with pytest.raises(ValueError, match="above zero"):
        RedisStore(redis_client, "x:{y}", ttl=0)


def test_a_client_that_decodes_answers_is_as_good(redis_server):
    store = RedisStore(redis_server.client(decode_responses=True), "decoding:{y}")
    store.set("key", b"\xff")
    assert store.get("key") == b"\xff"
    assert store.multi_get(["key"]) == [b"\xff"]
    assert store.list_keys() == ["key"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_will_do(redis_server, protocol):
    store = RedisStore(redis_server.client(protocol=protocol), f"protocol{protocol}:{{y}}")
    store.set("key", "1")
    assert store.compare_set("key", "1", "2") == b"2"
    assert store.list_keys() == ["key"]
    store.queue_push("q", "1")
    assert store.queue_pop("q") == b"1"


def test_a_cluster_will_do():
    with RedisServer(settings={"cluster-enabled": "yes"}) as server:
        client = server.client()
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        eventually(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        store = RedisStore(
            RedisCluster(host=server.host, port=server.port), "x:{y}", timedelta(seconds=LIMIT)
        )
        thread, answers = in_thread(lambda: store.multi_get(["key", "n"]))
        eventually(lambda: blocked(client))
        store.add("n", 4)
        store.set("key", b"\xff")
        thread.join(LIMIT)
        assert answers == [[b"\xff", b"4"]]
        store.queue_push("q", "1")
        assert store.queue_pop("q") == b"1"
        assert sorted(store.list_keys()) == ["key", "n"]
        assert "cluster" in repr(store)


# Errors.


def test_a_value_that_is_too_large_is_a_clear_error(store):
    value = bytes(LARGEST_VALUE + 1)
    with pytest.raises(DistStoreError, match="536870913 bytes"):
        store.set("key", value)


def test_appending_too_much_is_a_clear_error_and_changes_nothing(store, monkeypatch):
    monkeypatch.setattr("rdzv_redis.store.LARGEST_VALUE", 10)
    store.set("key", "12345678")
    with pytest.raises(DistStoreError, match="more than 10 bytes"):
        store.append("key", "901")
    assert store.get("key") == b"12345678"


@pytest.mark.parametrize("value", ["abc", "", " 1", "007", "1.5", "9" * 20])
def test_adding_to_what_is_no_number_is_a_store_error_and_changes_nothing(store, value):
    store.set("n", value)
    with pytest.raises(DistStoreError, match="not an integer"):
        store.add("n", 1)
    assert store.get("n") == value.encode()


def test_adding_beyond_64_bits_is_a_store_error(store):
    store.add("n", 2**63 - 1)
    with pytest.raises(DistStoreError, match="overflow"):
        store.add("n", 1)
    assert store.get("n") == str(2**63 - 1).encode()


def test_a_server_that_is_not_there_is_a_network_error_without_the_password():
    with RedisServer(password="hush-hush") as server:
        store = RedisStore(server.client(retry=NO_RETRY), "x:{y}")
        store.set("key", "1")
    for operation in (lambda: store.set("key", "1"), lambda: store.get("key")):
        with pytest.raises(DistNetworkError, match=f"127.0.0.1:{server.port}") as caught:
            operation()
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        assert "hush-hush" not in "".join(traceback.format_exception(caught.value))
    assert "hush-hush" not in repr(store)


def test_a_server_that_ends_ends_a_wait_with_a_network_error(own):
    store = RedisStore(own.client(retry=NO_RETRY), "x:{y}", timedelta(seconds=LIMIT))
    thread, answers = in_thread(lambda: store.get("key"))
    eventually(lambda: blocked(own.client()))
    own.kill()
    thread.join(LIMIT)
    assert [type(answer) for answer in answers] == [DistNetworkError]


def test_a_server_that_is_full_is_a_store_error(own):
    store = RedisStore(own.client(), "x:{y}")
    store.set("key", "1")
    own.client().config_set("maxmemory", 1)
    with pytest.raises(DistStoreError, match="maxmemory"):
        store.set("key", "2")
    assert store.get("key") == b"1"
    own.client().config_set("maxmemory", 0)
    store.set("key", "2")
    assert store.get("key") == b"2"


def test_a_replica_that_takes_no_writes_is_a_store_error(own):
    with RedisServer(settings={"replicaof": f"127.0.0.1 {own.port}"}) as replica:
        store = RedisStore(replica.client(), "x:{y}")
        with pytest.raises(DistStoreError, match="read only replica"):
            store.set("key", "1")


def test_a_user_who_may_not_run_scripts_is_told_so(own):
    own.client().execute_command("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all", "-@scripting")
    store = RedisStore(own.client(username="eve", password="pw"), "x:{y}")
    with pytest.raises(DistStoreError, match="permission"):
        store.set("key", "1")


# Commands whose answer is lost.


class AnswerLost:
    """A connection that delivers a command and breaks before the answer."""

    def __init__(self, connection) -> None:
        self._connection = connection

    def send_packed_command(self, command, **options) -> None:
        self._connection.send_packed_command(command, **options)

    def read_response(self, **options) -> None:
        self._connection.read_response(**options)
        raise redis.ConnectionError("lost")

    def __getattr__(self, name):
        return getattr(self._connection, name)


@pytest.mark.parametrize(
    ("operation", "arguments", "answer", "value"),
    [
        ("set", ("key", "1"), None, b"1"),
        ("add", ("n", 5), 12, b"12"),
        ("append", ("text", "cd"), None, b"abcd"),
        ("compare_set", ("text", "ab", "x"), b"x", b"x"),
        ("delete_key", ("text",), True, None),
        ("queue_push", ("queue", "three"), None, [b"one", b"two", b"three"]),
        ("queue_pop", ("queue",), b"one", [b"two"]),
        ("multi_set", (["n", "text"], ["1", "2"]), None, b"1"),
    ],
)
def test_what_is_sent_again_takes_effect_once(redis_server, operation, arguments, answer, value):
    with redis_server.client() as client:
        store = RedisStore(client, f"again:{{{operation}}}", timedelta(seconds=1))
        store.set("text", "ab")
        store.add("n", 7)
        store.queue_push("queue", "one")
        store.queue_push("queue", "two")
        (lane,) = store._lanes.idle
        lane.connection = AnswerLost(lane.connection)
        assert getattr(store, operation)(*arguments) == answer
        if operation.startswith("queue"):
            assert [store.queue_pop("queue") for _ in range(len(value))] == value
            with pytest.raises(QueueEmptyError):
                store.queue_pop("queue", False)
        elif value is None:
            assert not store.check(list(arguments))
        else:
            first = arguments[0] if isinstance(arguments[0], str) else arguments[0][0]
            assert store.get(first) == value


def test_what_a_paused_server_received_again_and_again_takes_effect_once(own):
    client = own.client()
    store = RedisStore(own.client(socket_timeout=0.2), "x:{y}", timedelta(seconds=LIMIT))
    store.add("n", 1)
    store.queue_push("queue", "one")
    client.client_pause(1500)
    assert store.add("n", 1) == 2
    client.client_pause(1500)
    assert store.queue_pop("queue") == b"one"
    client.client_pause(1500)
    with pytest.raises(QueueEmptyError):
        store.queue_pop("queue", False)
    store.queue_push("queue", "two")
    assert store.queue_len("queue") == 1
    assert store.get("n") == b"2"


@pytest.mark.parametrize("operation", ["add", "queue_pop", "compare_set"])
def test_what_comes_late_out_of_a_connection_given_up_changes_nothing(redis_server, operation):
    with redis_server.client() as client:
        store = RedisStore(client, f"late:{{{operation}}}", timedelta(seconds=1))
        store.set("key", "1")
        late: list[list[bytes]] = []

        class Held(AnswerLost):
            """The command stays on its way."""

            def send_packed_command(self, command, **options) -> None:
                late.append(command)
                raise redis.TimeoutError

        def take_answer() -> object:
            (lane,) = store._lanes.idle
            lane.connection = Held(client.connection_pool.get_connection())
            if operation == "add":
                return store.add("n", 1)
            if operation == "compare_set":
                return store.compare_set("key", "other", "2")
            with pytest.raises(QueueEmptyError):
                store.queue_pop("queue", False)
            return None

        assert take_answer() == {"add": 1, "compare_set": b"1", "queue_pop": None}[operation]
        # Another connection's changes, after which the late one would succeed.
        other = RedisStore(redis_server.client(), store._prefix)
        other.set("key", "other")
        other.queue_push("queue", "item")
        connection = client.connection_pool.get_connection()
        connection.send_packed_command(late[0])
        connection.read_response()
        store.set("next", "")
        connection.send_packed_command(late[0])
        with pytest.raises(redis.ResponseError, match="too late"):
            connection.read_response()
        assert other.get("key") == b"other"
        assert other.queue_len("queue") == 1
        if operation == "add":
            assert other.get("n") == b"1"


def test_a_script_that_the_server_has_forgotten_is_sent_again(redis_client, store):
    store.set("key", "1")
    redis_client.script_flush()
    assert store.add("n", 1) == 1
    redis_client.script_flush()
    assert store.check(["key", "n"])


# Servers that go and come.


@pytest.mark.parametrize("persistent", [True, False])
def test_a_server_that_was_killed_and_restarted_is_used_on(persistent):
    with RedisServer(persistent=persistent) as server:
        store = RedisStore(server.client(retry=LONG_RETRY), "x:{y}", timedelta(seconds=LIMIT))
        store.set("key", "1")
        store.add("n", 5)
        thread, answers = in_thread(lambda: store.get("later"))
        eventually(lambda: blocked(server.client()))
        server.kill()
        server.restart()
        assert store.check(["key"]) is persistent
        assert store.add("n", 1) == (6 if persistent else 1)
        store.set("later", "x")
        thread.join(LIMIT)
        assert answers == [b"x"]


# Processes.


def test_a_forked_child_goes_on_with_the_store(store):
    store.set("key", "1")
    store.add("n", 1)
    thread, answers = in_thread(lambda: store.get("from child"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert store.get("key") == b"1"
            assert store.add("n", 1) == 2
            store.set("from child", "x")
            store.wait(["from parent"])
            code = 0
        finally:
            os._exit(code)
    thread.join(LIMIT)
    assert answers == [b"x"]
    assert store.add("n", 1) == 3
    store.set("from parent", "x")
    assert os.waitpid(child, 0)[1] == 0
    assert store.add("n", 1) == 4


@pytest.mark.parametrize("way", ["direct", "prefixed"])
def test_a_gloo_group_of_two_processes_forms_on_it(own, way):
    worker = Path(__file__).with_name("gloo_worker.py")
    processes = [
        subprocess.Popen([sys.executable, worker, str(rank), "2", str(own.port), way])
        for rank in range(2)
    ]
    try:
        assert [process.wait(90) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait(LIMIT)


# Through a PrefixStore.


def test_torch_does_not_forward_every_operation_to_a_python_store(store):
    prefixed: Any = PrefixStore("prefix", store)
    for operation in (lambda: prefixed.delete_key("a"), prefixed.num_keys):
        with pytest.raises(RuntimeError, match="pure virtual function"):
            operation()
    for other in (
        prefixed.list_keys,
        lambda: prefixed.queue_push("q", "x"),
        lambda: prefixed.queue_pop("q", False),
        lambda: prefixed.queue_len("q"),
    ):
        with pytest.raises(NotImplementedError):
            other()


def test_a_store_lives_on_under_a_prefix_although_nobody_else_holds_it(open_redis):
    # torch's stubs do not have clone.
    prefixed: Any = PrefixStore("prefix", open_redis())
    clone = prefixed.clone()
    gc.collect()
    prefixed.set("key", "1")
    assert clone.get("key") == b"1"


def test_the_timeout_set_through_a_prefix_is_the_stores(store):
    PrefixStore("prefix", store).set_timeout(timedelta(seconds=3))
    assert store.timeout == timedelta(seconds=3)


def test_a_closed_store_is_freed(open_redis):
    import weakref

    store = open_redis()
    store.set("key", "1")
    store.close()
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
