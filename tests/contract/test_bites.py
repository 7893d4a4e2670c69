"""That each contract test fails on a backend that is wrong in the way that it is about."""

from __future__ import annotations

import pytest
import torch.distributed  # noqa: F401 - so that no limit has to have room for it

from rdzv.testing.contract import BackendContract
from rdzv.testing.contract.harness import Run, background, finished

from .wrong import LIMIT, WRONG


def test_there_is_a_wrong_backend_for_each_contract_test():
    assert set(WRONG) == set(BackendContract.promises())


@pytest.mark.parametrize("test", sorted(WRONG))
def test_a_wrong_backend_is_caught(test):
    wrong = WRONG[test]
    with Run(wrong.deployment()) as run:
        checking = background(lambda: getattr(BackendContract(), test)(run))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - what it says is looked at
            finished(checking, 10 * LIMIT, "the contract test")
    assert "the contract test took longer" not in str(caught.value)
    said = f"{type(caught.value).__name__}: {caught.value}"
    assert any(words in said for words in wrong.says.split(" or "))
