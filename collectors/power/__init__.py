"""Power of devices and hosts over time: sensors, a recorder, and what is derived from a recording."""
