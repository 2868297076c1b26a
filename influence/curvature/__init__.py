"""Approximations of the Hessian of the mean training loss, under one contract (`base.Curvature`)."""
