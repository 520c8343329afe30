"""What a cluster draws: its parts, power over time, and the energy of a run."""
