"""Measures the operator profile of a model on the device at hand; `python -m collectors.operators --help`.

Runs inside the engine's environment, with servetwin's packages on its path.
"""
