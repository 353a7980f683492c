"""Sources of option values, and messages for invalid options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config.base import JobConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.loader import load_config
from pipeline.config.model import DecodingConfig, DecodingOverrides, ModelConfig
from pipeline.config.prepare import PrepareConfig
from pipeline.config.runs import CompactConfig, StatusConfig, VerifyConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.tables import DeliverConfig, FetchConfig
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError

JOBS: dict[str, type[JobConfig]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "summarize": SummarizeConfig,
    "verify": VerifyConfig,
    "status": StatusConfig,
    "compact": CompactConfig,
    "fetch": FetchConfig,
    "deliver": DeliverConfig,
}
REQUIRED_OPTIONS = {
    "prepare": ["--input.train", "pairs.tsv"],
    "fetch": ["--input.kind", "delta", "--input.table", "t"],
    "deliver": ["--output.kind", "delta", "--output.table", "t"],
}
CONFIGS = Path(__file__).parents[2] / "configs"


def summarize(*argv: str) -> SummarizeConfig:
    return load_config(SummarizeConfig, "summarize", argv)


def train(*argv: str) -> TrainConfig:
    return load_config(TrainConfig, "train", argv)


def options_of(cls: type[BaseModel], section: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the section, name and field of every option."""
    for attribute, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options_of(field.annotation, attribute)
        else:
            yield section, field.alias or attribute, field


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """A function that writes a YAML file and returns its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "job.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# Sources of values


@pytest.mark.parametrize("job", JOBS)
def test_defaults_are_valid(job: str) -> None:
    config = load_config(JOBS[job], job, REQUIRED_OPTIONS.get(job, []))
    assert JOBS[job].model_validate(config.model_dump(by_alias=True)) == config


def test_command_line_overrides_file_and_file_overrides_defaults(file: Any) -> None:
    path = file("input: {path: from-file, id_column: key}\nresources: {actors: 3}\n")
    config = summarize("--config", path, "--input.path", "from-option")
    assert (config.input.path, config.input.id_column, config.input.text_column) == ("from-option", "key", "text")
    assert config.resources.actors == 3
    assert summarize("--input.path", "a", "--input.path=b").input.path == "b"


def test_config_file_by_uri(file: Any) -> None:
    assert summarize("--config", "file://" + file("resources: {actors: 3}")).resources.actors == 3
    with pytest.raises(UserError, match=r"file:///nowhere/a\.yaml: No such file or directory.*--config"):
        summarize("--config", "file:///nowhere/a.yaml")
    with pytest.raises(UserError, match=r"ftp://host/a\.yaml.*--config"):
        summarize("--config", "ftp://host/a.yaml")


def test_option_names_of_summarize_that_scripts_use() -> None:
    config = summarize(
        *("--input.path", "s3://b/in", "--input.id_column", "key", "--input.text_column", "body"),
        *("--input.keep_columns", "a,b", "--output.path", "s3://b/out", "--output.run_id", "monday"),
        *("--model.path", "m", "--resources.actors", "4"),
    )
    assert config.model_dump(exclude_unset=True) == {
        "input": {"path": "s3://b/in", "id_column": "key", "text_column": "body", "keep_columns": ["a", "b"]},
        "output": {"path": "s3://b/out", "run_id": "monday"},
        "model": {"path": "m"},
        "decoding": {},
        "resources": {"actors": 4},
        "watch": {},
    }


@pytest.mark.parametrize("arguments", [["a,b"], ['["a","b"]'], ["a", "b"]])
def test_list_option_accepts_commas_json_or_repetition(arguments: list[str]) -> None:
    argv = [word for argument in arguments for word in ("--input.keep_columns", argument)]
    assert summarize(*argv).input.keep_columns == ["a", "b"]


def test_list_on_the_command_line_replaces_the_list_of_the_file(file: Any) -> None:
    path = file("input: {keep_columns: [a, b]}")
    assert summarize("--config", path).input.keep_columns == ["a", "b"]
    assert summarize("--config", path, "--input.keep_columns", "c").input.keep_columns == ["c"]
    assert summarize("--config", path, "--input.keep_columns", "[]").input.keep_columns == []


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("yes", True), ("0", False), ("null", None)])
def test_booleans(text: str, value: bool | None, file: Any) -> None:
    assert summarize("--resources.use_gpu", text).resources.use_gpu is value
    if text != "0":
        assert summarize("--config", file(f"resources: {{use_gpu: {text}}}")).resources.use_gpu is value


def test_null_unsets_an_option_of_the_file(file: Any) -> None:
    path = file("resources: {actors: 3}")
    assert summarize("--config", path, "--resources.actors", "null").resources.actors is None
    assert summarize("--config", file("resources: {actors: null}")).resources.actors is None


def test_null_unsets_a_list_of_the_file(file: Any) -> None:
    path = file("input: {train: pairs.tsv, columns: [source, target]}\noutput: {path: out}")
    assert load_config(PrepareConfig, "prepare", ["--config", path, "--input.columns", "null"]).input.columns is None


def test_value_may_contain_an_equals_sign_or_be_empty() -> None:
    assert summarize("--output.path=a=b").output.path == "a=b"
    assert summarize("--input.path", "").input.path == ""


def test_numbers_in_scientific_notation(file: Any) -> None:
    assert train("--training.learning_rate", "1e-2").training.learning_rate == 0.01
    assert train("--config", file("training: {learning_rate: 1e-2}")).training.learning_rate == 0.01


def test_section_without_options_keeps_the_defaults(file: Any) -> None:
    assert summarize("--config", file("input:\n  # path: docs\nmodel:\n")) == summarize()
    assert summarize("--config", file("")) == summarize()


def test_environment_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "OUTPUT", "INPUT", "model__path", "OUTPUT__PATH", "path"):
        monkeypatch.setenv(name, '{"path": "from-environment"}')
    assert "environment" not in summarize().model_dump_json()
    assert "environment" not in SummarizeConfig().model_dump_json()


# Invalid options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input.pth", "x"], "no option --input.pth (did you mean --input.path?)"),
        (["--input.pth=x"], "no option --input.pth (did you mean --input.path?)"),
        (["--input.keep-columns", "x"], "no option --input.keep-columns (did you mean --input.keep_columns?)"),
        (["--run_id", "x"], "no option --run_id (did you mean --output.run_id?)"),
        (["--out.path", "x"], "no option --out.path (did you mean --output.path?)"),
        (["--inputs.path", "x"], "no option --inputs.path (did you mean --input.path?)"),
        (["--resources.actor", "1"], "no option --resources.actor (did you mean --resources.actors?)"),
        (["--input", "x"], "no option --input (did you mean --input.path?)"),
        (["--input", '{"path": "x"}'], "no option --input (did you mean --input.path?)"),
        (["--zzz", "x"], "no option --zzz; --help"),
        (["rubbish"], "'rubbish'"),
        (["--input.path", "x", "y"], "'y'"),
        (["-x"], "'-x'"),
        (["--input.path"], "argument --input.path: expected one argument"),
        (["--input.path", "--output.path", "x"], "argument --input.path: expected one argument"),
        (["--config"], "argument --config: expected one argument"),
        (["--resources.actors", "two"], "--resources.actors: input should be a valid integer"),
        (["--resources.actors", "2.5"], "--resources.actors: input should be a valid integer"),
        (["--resources.actors", "-1"], "--resources.actors: input should be greater than 0, not '-1'"),
        (["--resources.actors=-1"], "--resources.actors: input should be greater than 0, not '-1'"),
        (["--resources.use_gpu", "perhaps"], "--resources.use_gpu: input should be a valid boolean"),
        (["--resources.precision", "fp16"], "--resources.precision: input should be 'auto', 'float32'"),
        (["--input.keep_columns", '["a"'], "input.keep_columns"),
        (["--resources.actors", "0", "--input.max_chars", "x"], "--input.max_chars: input should be a valid integer"),
    ],
)
def test_invalid_argument_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        summarize(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inptu: {path: x}", "no section 'inptu' (did you mean input?)"),
        ("zzz: 1", "no section 'zzz' (did you mean input or output or model or decoding or resources or watch?)"),
        ("5: {}", "no section 5"),
        ("input: {pth: x}", "no option --input.pth (did you mean --input.path?)"),
        ("path: x", "no section 'path'"),
        ("input: x", "--input: input should be a valid dictionary"),
        ("input: [path]", "--input: input should be a valid dictionary"),
        ("- input", "must hold sections such as 'input:', not a list"),
        ("input", "must hold sections such as 'input:', not a str"),
        ("input: {path: [x", "is not valid YAML"),
        ("input:\n\tpath: x", "is not valid YAML"),
        (b"\xff\xfe\x00a", "is not valid YAML"),
        ("input: {path: x}\ninput: {id_column: y}", "key 'input' appears twice"),
        ("input: {path: x, path: y}", "key 'path' appears twice"),
        ("output: {run_id: 2024-13-45}", "month must be in 1..12"),
        ("output: {run_id: 2024}", "--output.run_id: input should be a valid string, not 2024"),
        ("input: {keep_columns: a}", "--input.keep_columns: input should be a valid list, not 'a'"),
        ("input: {path: null}", "--input.path: input should be a valid string, not None"),
        ("input: !!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_invalid_config_file(content: str | bytes, message: str, file: Any) -> None:
    with pytest.raises(UserError) as error:
        summarize("--config", file(content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_config_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file or directory.*--config"):
        summarize("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"irectory.*--config"):
        summarize("--config", str(tmp_path))


def test_required_option() -> None:
    with pytest.raises(UserError, match=r"^--input\.train must be set$"):
        load_config(PrepareConfig, "prepare", [])


@pytest.mark.parametrize("value", ["0", "inf", "nan", "-3", "-1e-3", "x"])
def test_learning_rate_must_be_a_positive_number(value: str) -> None:
    with pytest.raises(UserError, match=r"--training\.learning_rate: "):
        train("--training.learning_rate", value)


def test_copy_needs_attention() -> None:
    with pytest.raises(UserError, match=r"--model: copy.* attention"):
        train("--model.attention", "none")
    assert train("--model.attention", "none", "--model.copy", "false").model.network == ModelConfig(
        attention="none", copy=False
    )


def test_conflicting_decoding_options() -> None:
    with pytest.raises(UserError, match=r"--decoding: min_target_tokens 5 .*max_target_tokens 4"):
        train("--decoding.max_target_tokens", "4", "--decoding.min_target_tokens", "5")
    assert DecodingOverrides(max_target_tokens=9).applied_to(
        DecodingConfig(no_repeat_ngram=2), ModelConfig()
    ) == DecodingConfig(max_target_tokens=9, no_repeat_ngram=2)
    with pytest.raises(UserError, match=r"--decoding .*min_target_tokens 5 .*max_target_tokens 4"):
        DecodingOverrides(max_target_tokens=4).applied_to(DecodingConfig(min_target_tokens=5), ModelConfig())


def test_coverage_needs_attention() -> None:
    no_attention = ModelConfig.model_validate({"attention": "none", "copy": False})
    with pytest.raises(UserError, match="coverage_penalty needs attention"):
        DecodingOverrides(coverage_penalty=0.2).applied_to(DecodingConfig(), no_attention)
    with pytest.raises(UserError, match=r"coverage_penalty needs attention.* model\.attention"):
        train("--decoding.coverage_penalty", "0.2", "--model.attention", "none", "--model.copy", "false")
    with pytest.raises(UserError, match=r"training\.coverage needs attention"):
        train("--training.coverage", "0.2", "--model.attention", "none", "--model.copy", "false")
    assert DecodingOverrides(coverage_penalty=0.2).applied_to(DecodingConfig(), ModelConfig()).coverage_penalty == 0.2


# --help and configs/


@pytest.mark.parametrize("job", JOBS)
def test_help_lists_every_option_with_type_default_and_description(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        load_config(JOBS[job], job, ["--help"])
    assert done.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for section, name, field in options_of(JOBS[job]):
        assert field.description, name
        default = "unset" if field.default is None else field.default
        end = "(required)" if field.is_required() else f"(default: {default})"
        option = rf"--{section}\.{name} \S+" if section else f"--{name}, --no-{name}"
        assert re.search(rf"{option} {re.escape(f'{field.description} {end}')}", shown), name


FILES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def job_of(name: str) -> str:
    """Return the job of a file such as prepare.yaml or prepare.arxiv.yaml."""
    return re.split(r"[._-]", name)[0]


@pytest.mark.parametrize("name", FILES)
def test_shipped_config_is_valid(name: str) -> None:
    job = job_of(name)
    required = REQUIRED_OPTIONS.get(job, []) if name == f"{job}.yaml" else []
    load_config(JOBS[job], job, ["--config", str(CONFIGS / name), *required])


def test_flags_in_the_file_or_on_the_command_line(file: Any) -> None:
    assert (summarize().full, summarize().dry_run) == (False, False)
    assert (summarize("--full").full, summarize("--dry-run").dry_run) == (True, True)
    assert summarize("--config", file("full: true\n")).full
    assert not summarize("--config", file("full: true\n"), "--no-full").full
    with pytest.raises(UserError, match=r"no section 'ful' \(did you mean full\?\)"):
        summarize("--config", file("ful: true\n"))
