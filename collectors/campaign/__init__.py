"""Everything worth measuring on a device that is there for a while only."""
