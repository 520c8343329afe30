"""What happened: requests, outcomes, steps, captures and the metrics computed from them. Knows no other folder."""
