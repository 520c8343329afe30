"""The gate: a suite of scenarios with tolerances, checked in CI."""
