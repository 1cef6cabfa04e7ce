"""Sound to two streams of codes: linguistic (1024 at 16.7 Hz) and semantic (4096 at 25 Hz)."""
