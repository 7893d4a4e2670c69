"""Where a target takes its choices from, so that one function serves every fuzzer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["FromBytes", "Source"]

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
