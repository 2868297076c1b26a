"""The claims about quality, measured: `make proof`."""
