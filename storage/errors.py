"""Errors of the storage room. Each message is one line: what was given, what is allowed, what to do."""


class StorageError(Exception):
    """Base of every error that storage raises on purpose."""


class WriteFailed(StorageError):
    """A file could not be written (full disk, no permission); nothing half written is left."""


class ServerUnusable(StorageError):
    """A server does not answer, or refuses."""


class MixedPointIds(StorageError):
    """Point ids of one data set are neither all integers nor all strings."""


class DuplicatePoint(StorageError):
    """A point id occurs more than once in a data set or in its scores."""


class OverlappingSets(StorageError):
    """Two of the train, query and holdout sets hold the same sample."""


class CheckpointExists(StorageError):
    """A step that is already committed would be written again."""


class CheckpointDamaged(StorageError):
    """A committed checkpoint does not match its MANIFEST.json."""


class ScoresInvalid(StorageError):
    """A score table breaks the contract of its columns."""


class ScoresDamaged(StorageError):
    """Finished score shards do not match their MANIFEST.json."""


class ProposalDamaged(StorageError):
    """A proposal on disk does not have the hash it claims."""


class InvalidBudget(StorageError):
    """A removal budget is outside what is allowed."""


class LedgerLocked(StorageError):
    """Another process held the ledger for longer than we wait."""


class LedgerMissing(StorageError):
    """The workspace has no ledger yet."""


class WorkspaceTooNew(StorageError):
    """The ledger was written by a newer version of Tamis."""


class MigrationFailed(StorageError):
    """A schema step could not be run on the ledger, which is as it was."""


class LedgerBroken(StorageError):
    """Rows of a ledger are not what its hash chain says."""


class CycleConflict(StorageError):
    """A cycle is opened out of order or with other data than before."""


class StaleApproval(StorageError):
    """A review does not carry the hash of the open proposal, or it was decided already."""


class NotApproved(StorageError):
    """Removals are applied that no review has approved."""


class UnknownPoint(StorageError):
    """The ledger has never seen this point."""


class NotRemoved(StorageError):
    """A point that the data set holds as it was given is to be restored."""
