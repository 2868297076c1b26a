"""The head of the ledger that MLflow keeps, against the ledger: what was cut off or made anew shows there alone."""

from __future__ import annotations

from flows.config import Config
from flows.errors import BadInput
from flows.stores import identity_of, ledger_of, store_uri
from storage.tracking_health import newest_anchor


def check_anchor(config: Config) -> str:
    """Check that the newest head on MLflow is a link of the chain; whether the links hold is not computed here.

    A process that is killed between ledger and MLflow leaves an older head there, which is a link, too.

    Returns:
        A remark; empty where MLflow has no head of this workspace.

    Raises:
        BadInput: It is none.
        storage.errors.StorageError: The store does not answer, or refuses.
    """
    store, identity, ledger = store_uri(config), identity_of(config), ledger_of(config)
    if store is None or (config.servers.mlflow and not identity):
        return ""
    kept = newest_anchor(store, config.name, identity)
    if kept is None:
        return ""
    if not ledger.exists or not ledger.has_link(kept.head):
        raise BadInput(
            f"the head {kept.head[:12]} that cycle {kept.cycle} left on MLflow is no link of the ledger {ledger.path}: "
            "its last rows are gone, it was computed anew, or it is an older copy: `tamis ledger import COPY --head "
            f"{kept.head[:12]}` a copy that has it into a workspace without a ledger; if there is none and the loss is "
            f"accepted, delete the tag tamis.ledger_head of run {kept.run}"
        )
    return f"has the head that cycle {kept.cycle} left on MLflow"
