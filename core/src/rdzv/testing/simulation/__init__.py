"""Simulated runs: the real engine, without threads, sockets or real time."""

from __future__ import annotations

from .minimise import minimise
from .scenario import Fault, Node, Scenario, generate
from .world import Result, simulate

__all__ = ["Fault", "Node", "Result", "Scenario", "generate", "minimise", "simulate"]
