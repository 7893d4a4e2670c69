"""What can happen to a simulated run: one function a kind of fault."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES

from .scenario import Fault, Node

if TYPE_CHECKING:
    from .agents import Agent
    from .world import World

__all__ = ["add_node", "apply", "break_store"]


def apply(world: World, fault: Fault) -> None:
    """Make a fault happen, now."""
    place = fault.node
    agent = world.agents[place] if 0 <= place < len(world.agents) else None
    world.checker.note("FAULT", f"{fault.kind} {_details(fault)}")
    _FAULTS[fault.kind](world, fault, agent)


def _details(fault: Fault) -> str:
    parts = [f"n{fault.node}"] if fault.node >= 0 else []
    if fault.seconds:
        parts.append(f"for {fault.seconds:g} s")
    return " ".join([*parts, f"({fault.value:.3g})"])


def add_node(world: World) -> Agent:
    """Have one more node arrive, now."""
    return world.launch(world.add(Node(0.0, world.chance.uniform(0, 1e5), delay=0.002, poll=0.3)))


def break_store(world: World, seconds: float) -> None:
    """Have the store gone for some time."""
    _troubled(world, "", seconds)
    world.server.fail(seconds)


def _crash(_world: World, _: Fault, agent: Agent | None) -> None:
    if agent is not None:
        agent.process.kill()


def _restart(world: World, fault: Fault, agent: Agent | None) -> None:
    _crash(world, fault, agent)
    if 0 <= fault.node < len(world.places):
        world.launch(fault.node)


def _pause(world: World, fault: Fault, agent: Agent | None) -> None:
    if agent is None or agent.process.paused:
        return
    process, started = agent.process, world.hub.now
    process.pause()

    def resume() -> None:
        agent.paused_for += world.hub.now - started
        process.resume()
        world.checker.note(process.name, "goes on")

    world.hub.after(fault.seconds, resume)


def _partition(world: World, fault: Fault, agent: Agent | None) -> None:
    if agent is not None:
        name = agent.process.name
        _troubled(world, name, fault.seconds)
        world.links[name].block(fault.seconds, out=fault.value != 2, back=fault.value != 1)


def _lose_messages(world: World, fault: Fault, agent: Agent | None) -> None:
    names = list(world.links) if agent is None else [agent.process.name]
    for name in names:
        _troubled(world, name, fault.seconds + 3.0)
        world.links[name].lossy_until = world.hub.now + fault.seconds
        world.links[name].loss = fault.value


def _clock(_world: World, fault: Fault, agent: Agent | None) -> None:
    if agent is not None:
        agent.process.ahead += fault.value


def _outage(world: World, fault: Fault, _: Agent | None) -> None:
    break_store(world, fault.seconds)


def _freeze(world: World, fault: Fault, _: Agent | None) -> None:
    _troubled(world, "", fault.seconds)
    world.server.frozen_until = max(world.server.frozen_until, world.hub.now + fault.seconds)


def _slow(world: World, fault: Fault, _: Agent | None) -> None:
    _troubled(world, "", fault.seconds)
    world.server.slow_until = world.hub.now + fault.seconds
    world.server.slowness = fault.value


def _corrupt(world: World, fault: Fault, _: Agent | None) -> None:
    keys = sorted(world.server.data, key=str)
    if not keys:
        return
    world.checker.spoilt = True
    key = keys[int(fault.value * len(keys)) % len(keys)]
    noise = random.Random(f"noise {fault.value}")
    size = MAX_STATE_BYTES + 1 if fault.kind == "oversize" else noise.randrange(64)
    data = b"{" * size if fault.kind == "oversize" else noise.randbytes(size)
    found = world.server.data[key]
    if isinstance(found, tuple):
        world.server.put(key, (data, found[1]))
    elif isinstance(found, bytes):
        world.server.put(key, data)
    else:
        world.server.put(key, noise.randrange(1000))


def _join(world: World, _: Fault, __: Agent | None) -> None:
    add_node(world)


def _order(_world: World, fault: Fault, agent: Agent | None) -> None:
    if agent is not None and not agent.process.paused:
        agent.command(fault.kind)


def _lost_ticket(world: World, _: Fault, __: Agent | None) -> None:
    document = world.checker.run.document
    if document is not None and world.scenario.roster and not world.scenario.atomic:
        key = ("tail", document.epoch)
        world.server.put(key, (world.server.get(key) or 0) + 1)


def _operate(world: World, fault: Fault, _: Agent | None) -> None:
    world.operate(fault)


def _troubled(world: World, name: str, seconds: float) -> None:
    now = world.hub.now
    world.checker.trouble.setdefault(name, []).append((now, now + seconds))


_FAULTS = {
    "crash": _crash,
    "restart": _restart,
    "pause": _pause,
    "partition": _partition,
    "loss": _lose_messages,
    "clock": _clock,
    "outage": _outage,
    "freeze": _freeze,
    "slow": _slow,
    "corrupt": _corrupt,
    "oversize": _corrupt,
    "join": _join,
    "leave": _order,
    "quit": _order,
    "close": _order,
    "scale": _operate,
    "reset": _operate,
    "end": _operate,
    "lost ticket": _lost_ticket,
}
