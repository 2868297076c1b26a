"""`tamis validate`: whether predicted removals are what really happens, by retraining many small models."""
