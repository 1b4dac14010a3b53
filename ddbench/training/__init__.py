"""Networks trained on images: plans, students in lockstep, unrolled steps, experts."""
