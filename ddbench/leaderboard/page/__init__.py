"""The board as one page: a file that needs nothing but itself, and asks no network."""
