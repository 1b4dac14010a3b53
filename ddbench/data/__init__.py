"""Real data: what is known, what is there, and how its pixels are normalised."""
