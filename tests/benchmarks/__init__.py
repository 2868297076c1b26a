"""What is measured, never tested: `make bench`."""
