"""The programs that the ranks run."""
