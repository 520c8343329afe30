"""From a description to engines that can be simulated."""
