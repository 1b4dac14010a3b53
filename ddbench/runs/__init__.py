"""One run from its options to its record, and several one after another."""
