"""What outlives a run: manifests, checkpoints, scores, proposals, the ledger, tracking and the report."""
