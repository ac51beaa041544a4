"""What Relay decides, without touching the world: no I/O, no clock, no randomness. Time and draws are arguments."""
