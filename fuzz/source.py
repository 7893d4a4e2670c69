"""Where a target takes its choices from, so that one function serves every fuzzer."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["FromBytes", "FromSeed", "Source"]

T = TypeVar("T")


class Source(ABC):
    """Choices that somebody else makes."""

    @abstractmethod
    def number(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both of 63 bits at most."""

    @abstractmethod
    def blob(self, most: int) -> bytes:
        """At most ``most`` bytes."""

    @abstractmethod
    def text(self, most: int) -> str:
        """At most ``most`` characters, lone surrogates among them."""

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.number(0, len(options) - 1)]

    def flag(self) -> bool:
        """Yes or no."""
        return self.number(0, 1) == 1

    def times(self, most: int) -> Iterator[int]:
        """Count up to ``most`` times."""
        yield from range(self.number(0, most))


class FromBytes(Source):
    """Reads the choices out of the bytes that libFuzzer makes up.

    Args:
        provider: An ``atheris.FuzzedDataProvider``.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def number(self, low: int, high: int) -> int:
        found: int = self._provider.ConsumeIntInRange(low, high)
        return found

    def blob(self, most: int) -> bytes:
        found: bytes = self._provider.ConsumeBytes(self.number(0, most))
        return found

    def text(self, most: int) -> str:
        found: str = self._provider.ConsumeUnicode(self.number(0, most))
        return found


class FromSeed(Source):
    """Makes the choices at random, the same ones for a seed on every machine."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def blob(self, most: int) -> bytes:
        return self._random.randbytes(self.number(0, most))

    def text(self, most: int) -> str:
        # Half of ASCII, which most of what is read is made of.
        ends = (0x7F, 0x10FFFF)
        return "".join(chr(self.number(0, self.pick(ends))) for _ in self.times(most))
