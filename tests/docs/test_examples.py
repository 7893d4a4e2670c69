"""The examples in the documentation are run, or say why not."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from typing import Any

import pytest
import yaml
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

from rdzv import RendezvousParameters
from rdzv.plugins import installed, load
from rdzv.registry import check_parameters
from rdzv.torchrun import torchrun_name
from rdzv_etcd import EtcdServer
from rdzv_redis.server import RedisServer

from .pages import DOCS, PAGES, Block, blocks

# These pages have no blocks without a language but commands of a shell.
SHELL = [DOCS / f"{name}.md" for name in ("install", "start-c10d", "start-redis", "start-etcd",
                                          "cluster", "performance")]  # fmt: skip


def is_file_of_the_kit(block: Block) -> bool:
    """Whether it is a part of the tutorial, which tests/contract/test_docs.py follows."""
    return block.page == "docs/writing-a-backend.md"


PYTHON = list({block.text: block for block in blocks("python")
               if not is_file_of_the_kit(block)}.values())  # fmt: skip


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="module")
def servers():
    """What the names in the examples stand for here."""
    with RedisServer() as redis, EtcdServer(durable=False) as etcd, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        yield {
            '"node0:29400"': f'"localhost:{port}"',
            '"node0:6379"': f'"{redis.endpoint}"',
            'redis.Redis("node0")': f"redis.Redis(port={redis.port})",
            '"node0:2379,node1:2379"': f'"{etcd.endpoint}"',
            # A job of a minute is one of two seconds.
            "range(60)": "range(2)",
        }


@pytest.mark.parametrize("block", [each for each in PYTHON if not each.not_run], ids=named)
def test_an_example_in_python_runs(block, servers, tmp_path):
    text = block.text
    for name, here in servers.items():
        text = text.replace(name, here)
    assert "node0" not in text
    # Each node of an example is a process; a worker that is alone is a job of one.
    told = re.search(r"min_nodes=(\d)", text)
    nodes = int(told[1]) if told else 1
    # The round is full, without a last call.
    text = re.sub(r"max_nodes=\d", f"max_nodes={nodes}", text)
    text = text.replace('"job1"', f'"{block.page}:{block.line}"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
                   "RANK": "0", "WORLD_SIZE": "1"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(nodes)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=90)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * nodes, said
    if nodes > 1:
        places = sorted(re.findall(rf"^(\d) {nodes}\b", "\n".join(said), re.MULTILINE))
        assert places == [str(rank) for rank in range(nodes)], said


@pytest.mark.parametrize("block", [each for each in PYTHON if each.not_run], ids=named)
def test_an_example_that_is_not_run_says_why_and_is_python_all_the_same(block):
    assert len(block.not_run.split()) > 3
    compile(block.text, named(block), "exec")


# ---------------------------------------------------------------- shells


@pytest.mark.parametrize("block", [*blocks("", pages=SHELL), *blocks("bash")], ids=named)
def test_commands_are_ones_that_a_shell_takes(block):
    done = subprocess.run(
        ["bash", "-n"], check=False, input=block.text, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


SERVERS = [block for block in blocks("", pages=SHELL) if "input(f" in block.text]


@pytest.mark.parametrize("block", SERVERS, ids=named)
def test_the_server_of_an_example_starts_and_ends_with_enter(block):
    text = re.sub(r"port=\d+", "port=0", block.text)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", text], check=False, input="\n", text=True, capture_output=True, timeout=60,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"A server at \S+:\d+; Enter ends it\.", done.stdout)


def torchruns() -> list[tuple[str, str]]:
    """Every command of torchrun in the documentation, in one line, and where it stands."""
    found = []
    for block in blocks("", "bash", "yaml", "console", pages=PAGES):
        text = re.sub(r"\\\n *", " ", block.text)
        if block.language == "yaml":
            text = re.sub(r"(?<!\n)\n +(?=--|train.py)", " ", text)
        commands = re.findall(r"torchrun\s+(--.*?train\.py)", text)
        found += [(named(block), each) for each in commands if "rdzv-backend" in each]
    return list(dict.fromkeys(found))


def test_many_commands_of_torchrun_are_found():
    assert len(torchruns()) >= 8


@pytest.mark.parametrize(("where", "command"), torchruns())
def test_torchrun_and_the_backend_take_the_options_of_an_example(where, command):
    # What a scheduler sets, and what stands for any more.
    command = re.sub(r"\$\{?SLURM_JOB_NUM_NODES\}?", "4", command).replace("…", "x=1")
    given = get_args_parser().parse_args(shlex.split(command))
    least, most = parse_min_max_nnodes(given.nnodes)
    assert int(given.max_restarts) >= 1 or "max-restarts" not in command
    backends = {torchrun_name(each.name): each.name for each in installed()}
    assert given.rdzv_backend in backends, where
    settings = _parse_rendezvous_config(given.rdzv_conf)
    settings.pop("x", None)
    params = RendezvousParameters(
        backends[given.rdzv_backend], given.rdzv_endpoint, given.rdzv_id, least, most, **settings
    )
    check_parameters(load(params.backend), params)


# ---------------------------------------------------------------- clusters


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    (block,) = blocks("yaml", pages=[DOCS / "cluster.md"])
    found = list(yaml.safe_load_all(block.text))
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def test_the_job_of_kubernetes_is_indexed_and_its_pods_have_names():
    job = manifests()["Job", "train"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == 4
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    service = manifests()["Service", job["template"]["spec"]["subdomain"]]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": "train"}
    (container,) = job["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert "\n" not in command.strip()
    assert '--local-addr="train-$JOB_COMPLETION_INDEX.train"' in command


def test_the_services_of_kubernetes_select_what_is_there_and_agree_on_the_secret():
    found = manifests()
    deployment = found["Deployment", "rdzv-redis"]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    service = found["Service", "rdzv-redis"]["spec"]
    assert service["selector"] == deployment["selector"]["matchLabels"]
    (port,) = service["ports"]
    job = found["Job", "train"]["spec"]["template"]["spec"]["containers"][0]
    assert f"--rdzv-endpoint=rdzv-redis:{port['port']}" in job["args"][0]
    secrets = [
        each["valueFrom"]["secretKeyRef"]
        for container in (job, deployment["template"]["spec"]["containers"][0])
        for each in container["env"]
        if "secretKeyRef" in each["valueFrom"]
    ]
    assert secrets == [{"name": "rdzv-redis", "key": "password"}] * 2


def test_the_page_says_what_was_not_run():
    assert "were not run on a SLURM or Kubernetes cluster" in (DOCS / "cluster.md").read_text()
