import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from flows.config import Config, load
from flows.errors import BadInput


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tamis.toml"
    path.write_text('[workload]\nclass = "tiny"\n' + text)
    return path


def test_the_smallest_file_names_only_a_workload(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""))
    assert config.workload.entry == "tiny"
    assert config.workspace == tmp_path / "workspace"
    assert config.name == "tiny"
    assert config.review.mode == "manual"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[training]\nepoch = 3", ("training.epoch: unknown key", "epochs", "zero_stage")),
        ("[workload.extra]\na = 1", ("workload.extra: unknown key", "class", "options")),
        ("[scoring.damping]\nkind = 'absolute'\nvalue = 1\nx = 1", ("scoring.damping.x: unknown key", "kind, value")),
        ("[trainning]\n", ("trainning: unknown key", "training", "guardrail")),
        ("[pruning]\nbudget = 0", ("pruning.budget = 0", "greater than 0")),
        ("[pruning]\nbudget = 1.01", ("pruning.budget = 1.01", "less than or equal to 1")),
        ("[pruning]\ncumulative_budget = nan", ("pruning.cumulative_budget", "nan")),
        ("[pruning]\nclass_budget = 0.0", ("pruning.class_budget = 0.0",)),
        ("[pruning]\nmislabeled_q = 1", ("pruning.mislabeled_q = 1", "less than 1")),
        ("[servers]\nmlflow = 'sqlite:///x'", ("servers.mlflow = 'sqlite:///x'", "http://HOST")),
        ("[servers]\nmlflow = 'http://'", ("servers.mlflow", "http://HOST")),
        ("[servers.ledger]\ncatalog = 'mysql://a/b'\ndata = 'd'", ("servers.ledger.catalog", "postgresql://USER@HOST")),
        ("[servers.ledger]\ncatalog = 'postgresql://a'\ndata = 'd'", ("servers.ledger.catalog", "/DATABASE")),
        ("[servers.ledger]\ncatalog = 'postgresql://a/b'\ndata = 'gs://b'", ("servers.ledger.data", "s3://BUCKET")),
        ("[servers.ledger]\ncatalog = 'postgresql://a/b'\ndata = ''", ("servers.ledger.data", "s3://BUCKET")),
        ("[servers.ledger]\ncatalog = 'postgresql://a/b'\ndata = 'd'\nname = 'X;'", ("servers.ledger.name",)),
        ("[pruning]\npolicies = []", ("pruning.policies = []", "at least one policy")),
        ("[pruning]\npolicies = ['random']", ("pruning.policies.0 = 'random'", "'harmful', 'mislabeled'")),
        ("[pruning]\nz_restore = 1.0", ("pruning.z_restore = 1.0", "greater than 1")),
        ("[pruning]\nagreement = 1.1", ("pruning.agreement = 1.1", "less than or equal to 1")),
        ("[pruning]\nmislabeled_action = 'drop'", ("pruning.mislabeled_action = 'drop'", "'remove' or 'relabel'")),
        ("[training]\nranks = 9999\nbatch_size = 9999", ("training.ranks = 9999", "cores; give at most")),
        ("[scoring]\nranks = 9999", ("scoring.ranks = 9999", "cores; give at most")),
        ("[scoring]\nplacement = 'partitioned'", ("'partitioned' needs probe = 0",)),
        ("[scoring]\nper_block = true\nestimator = 'dual'", ("per_block is for ekfac, kfac and identity",)),
        ("[scoring]\nper_block = true\nplacement = 'split'", ("per_block is for", "no sum over blocks")),
        ("[scoring]\nplacement = 'split'\nestimator = 'dual'", ("'split' is for ekfac, kfac and identity",)),
        (
            "[training]\nturn_over = ['0']\n[scoring]\nplacement = 'partitioned'\nprobe = 0",
            ("turn_over needs scoring.placement = 'replicated'",),
        ),
        ("[launch]\noversubscribe = 3\n[scoring]\nranks = 9999", ("launch.oversubscribe = 3",)),
        ("[training]\nranks = 2\nbatch_size = 63", ("batch_size 63 is not a multiple of ranks 2",)),
        ("[training]\nzero_stage = 4", ("training.zero_stage = 4", "3")),
        ("[training]\ncheckpoints = []", ("checkpoints [] must rise and end at 1.0",)),
        ("[training]\ncheckpoints = [0.5]", ("must rise and end at 1.0",)),
        ("[training]\ncheckpoints = [0.5, 0.5, 1.0]", ("must rise and end at 1.0",)),
        ("[scoring]\ndamping = { kind = 'absolute' }", ("scoring.damping", "'absolute' needs a value")),
        ("[scoring]\ndamping = { kind = 'mean_eig' }", ("'mean_eig' needs a value",)),
        ("[scoring]\nhead_damping = { kind = 'horizon', value = 1.0 }", ("'horizon' takes no value",)),
        ("[scoring]\ndamping = { kind = 'l2', value = 1.0 }", ("scoring.damping.kind = 'l2'", "'horizon'")),
        ("[scoring]\ncompression = { kind = 'mask' }", ("compression needs exact_head = false",)),
        (
            "[scoring]\nexact_head = false\ncompression = { kind = 'sjlt' }",
            ("compression by 'sjlt' leaves ekfac no layers", "take 'mask' or 'logra'"),
        ),
        ("[scoring]\ncompression = { kind = 'pca', ratio = 4 }", ("scoring.compression.kind = 'pca'", "'logra'")),
        ("[scoring]\ncompression = { ratio = 1 }", ("scoring.compression.ratio = 1", "greater than 1")),
        ("[training]\nweight_decay = 0", ("scoring.damping defaults to the weight decay, which is 0",)),
        ("[guardrail]\nseeds = 1", ("guardrail.seeds = 1",)),
        ("[service]\ncron = '0 3 * *'", ("service.cron = '0 3 * *'", "five fields")),
        ("[service]\ncron = '0 3 * * *'\nevery_hours = 6", ("cron or every_hours, not both",)),
        ("[service]\nevery_hours = 0", ("service.every_hours = 0", "greater than 0")),
        ("[service]\ntimezone = 'Lisbon'", ("service.timezone = 'Lisbon'", "Europe/Lisbon")),
        ("[service]\nlate = 'catch up'", ("service.late = 'catch up'", "'run_once' or 'skip'")),
        ("[service]\nnotify = ['curation']", ("'curation' is no block", "TYPE/NAME")),
    ],
)
def test_a_refusal_names_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput) as refused:
        load(written(tmp_path, text))
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


def test_everything_wrong_is_said_in_one_go(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pruning\.budget = 0.*guardrail\.seeds = 1"):
        load(written(tmp_path, "[pruning]\nbudget = 0\n[guardrail]\nseeds = 1"))


@pytest.mark.parametrize("damping", ["{ kind = 'absolute', value = 0.1 }", "{ kind = 'mean_eig', value = 0.1 }"])
def test_every_kind_of_damping_is_taken(tmp_path: Path, damping: str) -> None:
    config = load(written(tmp_path, f"[scoring]\ndamping = {damping}\nhead_damping = {{ kind = 'horizon' }}"))
    assert config.scoring.damping is not None
    assert config.scoring.damping.kind in damping


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml: no such file; `tamis init"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"a = = 1", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tamis.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not TOML"):
        load(path)


def test_a_file_without_a_workload_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tamis.toml"
    path.write_text("")
    with pytest.raises(BadInput, match="workload: missing, and it has no default"):
        load(path)


def test_the_commented_template_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = files("flows").joinpath("templates/tamis.toml").read_text()
    path = tmp_path / "tamis.toml"
    path.write_text(text)
    shown, defaults = load(path), _defaults(tmp_path)
    keys = tomllib.loads(text)
    every = Config.model_fields.keys() - {"file", "dataset"}  # the data set is named by the workload
    assert keys.keys() == every
    for section in every - {"workspace", "orchestrator", "workload"}:
        unset = {
            "scoring": {"compression"},
            "training": {"early_stopping", "prune_while_learning"},
            "pruning": {"protected_file"},
            "service": {"cron", "every_hours"},
            "review": {"second_person_above", "expires_hours", "remind_hours"},
            "servers": {"ledger"},
        }.get(section, set())  # TOML has no word for none: it stands in a comment
        assert keys[section].keys() | unset == type(getattr(shown, section)).model_fields.keys(), section
        assert all(f"\n# {key} = " in text for key in unset)
        left, right = getattr(shown, section).model_dump(), getattr(defaults, section).model_dump()
        if section == "scoring":  # written out in the template: EK-FAC's damping is the weight decay
            assert left.pop("damping") == {"kind": "absolute", "value": defaults.training.weight_decay}
            assert right.pop("damping") is None
        assert left == right, section
    assert (shown.workspace, shown.orchestrator) == (defaults.workspace, defaults.orchestrator)


def _defaults(folder: Path) -> Config:
    raw: dict[str, Any] = {"workspace": folder / "workspace", "file": folder / "tamis.toml"}
    return Config.model_validate(raw | {"workload": {"class": "tiny"}})


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("mlflow = 'https://geheim@host'", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("mlflow = 'https://ada:geheim@host'", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("ledger = { catalog = 'postgresql://ada:geheim@host/db', data = 'd' }", "PGPASSWORD or PGPASSFILE"),
        ("ledger = { catalog = 'postgresql://host/db?password=geheim', data = 'd' }", "PGPASSWORD or PGPASSFILE"),
    ],
)
def test_a_credential_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str, remedy: str) -> None:
    with pytest.raises(BadInput, match=f"credentials, .* set {remedy}") as error:
        load(written(tmp_path, f"[servers]\n{text}"))
    assert "geheim" not in str(error.value)


def test_the_data_of_a_lake_lie_beside_the_file_or_in_a_bucket(tmp_path: Path) -> None:
    for given, found in (("lake", str(tmp_path / "lake")), ("s3://bucket/a/", "s3://bucket/a")):
        text = f"[servers]\nledger = {{ catalog = 'postgresql://ada@host/db', data = '{given}' }}"
        ledger = load(written(tmp_path, text)).servers.ledger
        assert ledger is not None
        assert (ledger.data, ledger.schema_of("My data")) == (found, "tamis_my_data")
