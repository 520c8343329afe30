"""A deployment run: its simulated capture, how sure it is, and what the run drew and cost."""
