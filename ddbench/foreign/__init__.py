"""Sets that others made: read, diagnose, complete and write them. Nothing in a foreign file is ever executed."""
