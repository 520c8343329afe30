"""Links that transfers share: where they run, how long what crosses them takes."""
