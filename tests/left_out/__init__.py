"""Estimators that win in no column of docs/estimators.md: what users know from elsewhere, kept to be measured."""
