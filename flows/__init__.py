"""What happens, in order, and who is asked: the flows of Tamis."""
