"""What authors of methods need for their own tests."""
