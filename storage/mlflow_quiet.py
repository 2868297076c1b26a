"""MLflow's switches: it sends nothing, and a command's output is its own. Import this before anything of MLflow's."""

import logging
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow when it is imported
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the errors that it raises
logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # it announces its start and end
