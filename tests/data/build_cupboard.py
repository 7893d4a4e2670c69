"""Build the wheel of ``cupboard/`` beside this file: ``python tests/data/build_cupboard.py``.

The wheel is kept as it was built at a release, so that later cores are tested with a
plugin of that release. Build one with another version beside it rather than this one
anew, unless the release has not been made yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Build it, from the same files always the same bytes."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", HERE,
         HERE / "cupboard"],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1735689600"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
