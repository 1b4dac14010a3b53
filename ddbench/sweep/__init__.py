"""Many runs on several workers: the GPUs of one machine, or Slurm."""
