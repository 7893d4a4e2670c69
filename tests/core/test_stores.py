"""What stores written in Python share."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta

import pytest

stores = pytest.importorskip("rdzv.stores", exc_type=ImportError)


def test_text_and_bytes_become_bytes_and_nothing_else():
    assert [stores.name_of(key) for key in ("é", b"\xff", bytearray(b"x"))] == [
        "é".encode(),
        b"\xff",
        b"x",
    ]
    for wrong in (3, None, memoryview(b"x"), "\ud800"):
        with pytest.raises(TypeError, match=r"^A value "):
            stores.value_of(wrong)


def test_one_text_is_no_sequence_of_keys():
    assert stores.names_of(key for key in ("a", b"b")) == [b"a", b"b"]
    for wrong in ("ab", b"ab", bytearray(b"ab"), 3, [3]):
        with pytest.raises(TypeError):
            stores.names_of(wrong)


def test_an_amount_is_a_whole_number_of_64_bits():
    assert stores.amount_of(True) == 1
    assert stores.amount_of(stores.SMALLEST) == -(2**63)
    for wrong in (1.5, "1", None, 2**63, -(2**63) - 1):
        with pytest.raises(TypeError, match="amount"):
            stores.amount_of(wrong)


def test_a_wait_ends_in_torchs_words():
    assert 59 < stores.Wait(timedelta(minutes=1), []).left() <= 60
    assert 0 < stores.Wait(1.5, []).left() <= 1.5
    over = stores.Wait(timedelta(0), [b"a", b"\xff"])
    with pytest.raises(Exception, match="^wait timeout after 0ms, keys: /a, /\ufffd$") as caught:
        over.left()
    assert type(caught.value).__name__ == "DistStoreError"
    with pytest.raises(TypeError):
        stores.Wait(1, [])
    with pytest.raises(ValueError, match="below zero"):
        stores.Wait(timedelta(seconds=-1), [])


def test_a_store_that_is_kept_alive_lives_until_it_is_let_go():
    from torch.distributed import Store

    class Own(Store):
        pass

    store = Own()
    stores.keep_alive(store)
    gone = weakref.ref(store)
    known = store
    del store
    gc.collect()
    assert gone() is known
    stores.let_go(known)
    stores.let_go(known)
    del known
    gc.collect()
    assert gone() is None
