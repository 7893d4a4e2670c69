"""Fuzz targets: one function each, driven by Hypothesis in the tests and by atheris here."""
