"""What the profile leaves over, fitted on measured steps or requests."""
