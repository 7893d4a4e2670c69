"""The targets stand in ``fuzz/``, beside the tests; here Hypothesis makes their choices."""

from __future__ import annotations

import sys
from pathlib import Path

# Not a package of any distribution: found from the top of the tree.
sys.path.insert(0, str(Path(__file__).parents[2]))
