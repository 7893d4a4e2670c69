"""Finds out why a rendezvous would not work from this machine: what ``rdzv doctor`` does."""

from __future__ import annotations

from .examination import Checked, Examination, examine

__all__ = ["Checked", "Examination", "examine"]
