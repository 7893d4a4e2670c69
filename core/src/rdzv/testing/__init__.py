"""What this project and every plugin's author test with; installed with ``rdzv[testing]``.

Nothing of it is imported by ``import rdzv``.
"""
