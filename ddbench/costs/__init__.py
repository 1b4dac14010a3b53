"""What work costs: benchmarks of steps and students, and estimates before a run."""
