"""What hardware costs: models, devices, links and operator tables. Knows traces, not the simulator."""
