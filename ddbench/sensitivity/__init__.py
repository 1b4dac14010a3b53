"""Sets judged under several recipes at equal training, and whether the order of methods survives."""
