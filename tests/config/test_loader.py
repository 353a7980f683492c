"""Where an option's value comes from, and how each mistake with one is told."""

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
MUST_BE_SET = {
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
    """Section, name and field of every option."""
    for attribute, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options_of(field.annotation, attribute)
        else:
            yield section, field.alias or attribute, field


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes a YAML file and gives its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "job.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# Values and where they come from


@pytest.mark.parametrize("job", JOBS)
def test_every_default_is_valid(job: str) -> None:
    config = load_config(JOBS[job], job, MUST_BE_SET.get(job, []))
    assert JOBS[job].model_validate(config.model_dump(by_alias=True)) == config


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(file: Any) -> None:
    path = file("input: {path: from-file, id_column: key}\nresources: {actors: 3}\n")
    config = summarize("--config", path, "--input.path", "from-option")
    assert (config.input.path, config.input.id_column, config.input.text_column) == ("from-option", "key", "text")
    assert config.resources.actors == 3
    assert summarize("--input.path", "a", "--input.path=b").input.path == "b"


def test_a_file_by_uri(file: Any) -> None:
    assert summarize("--config", "file://" + file("resources: {actors: 3}")).resources.actors == 3
    with pytest.raises(UserError, match=r"cannot read file:///nowhere/a\.yaml: No such file or directory; set --config"):
        summarize("--config", "file:///nowhere/a.yaml")
    with pytest.raises(UserError, match=r"cannot open ftp://host/a\.yaml: .*; set --config"):
        summarize("--config", "ftp://host/a.yaml")


def test_the_words_of_summarize_that_users_script_against() -> None:
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


@pytest.mark.parametrize("words", [["a,b"], ['["a","b"]'], ["a", "b"]])
def test_a_list_is_given_with_commas_as_json_or_word_by_word(words: list[str]) -> None:
    argv = [part for word in words for part in ("--input.keep_columns", word)]
    assert summarize(*argv).input.keep_columns == ["a", "b"]


def test_a_list_on_the_command_line_replaces_that_of_the_file(file: Any) -> None:
    path = file("input: {keep_columns: [a, b]}")
    assert summarize("--config", path).input.keep_columns == ["a", "b"]
    assert summarize("--config", path, "--input.keep_columns", "c").input.keep_columns == ["c"]
    assert summarize("--config", path, "--input.keep_columns", "[]").input.keep_columns == []


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("yes", True), ("0", False), ("null", None)])
def test_booleans(word: str, value: bool | None, file: Any) -> None:
    assert summarize("--resources.use_gpu", word).resources.use_gpu is value
    if word != "0":
        assert summarize("--config", file(f"resources: {{use_gpu: {word}}}")).resources.use_gpu is value


def test_null_unsets_what_the_file_set(file: Any) -> None:
    path = file("resources: {actors: 3}")
    assert summarize("--config", path, "--resources.actors", "null").resources.actors is None
    assert summarize("--config", file("resources: {actors: null}")).resources.actors is None


def test_null_unsets_a_list_that_the_file_set(file: Any) -> None:
    path = file("input: {train: pairs.tsv, columns: [source, target]}\noutput: {path: out}")
    assert load_config(PrepareConfig, "prepare", ["--config", path, "--input.columns", "null"]).input.columns is None


def test_a_value_may_hold_an_equals_sign_or_nothing() -> None:
    assert summarize("--output.path=a=b").output.path == "a=b"
    assert summarize("--input.path", "").input.path == ""


def test_numbers_in_scientific_notation(file: Any) -> None:
    assert train("--training.learning_rate", "1e-2").training.learning_rate == 0.01
    assert train("--config", file("training: {learning_rate: 1e-2}")).training.learning_rate == 0.01


def test_a_section_whose_options_are_all_commented_out(file: Any) -> None:
    assert summarize("--config", file("input:\n  # path: docs\nmodel:\n")) == summarize()
    assert summarize("--config", file("")) == summarize()


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "OUTPUT", "INPUT", "model__path", "OUTPUT__PATH", "path"):
        monkeypatch.setenv(name, '{"path": "from-environment"}')
    assert "environment" not in summarize().model_dump_json()
    assert "environment" not in SummarizeConfig().model_dump_json()


# Mistakes


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
        (["--zzz", "x"], "no option --zzz; --help lists the options"),
        (["rubbish"], "'rubbish' is no option's value"),
        (["--input.path", "x", "y"], "'y' is no option's value"),
        (["-x"], "'-x' is no option's value"),
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
def test_a_wrong_word_on_the_command_line_is_named(argv: list[str], message: str) -> None:
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
        ("input: {path: [x", "is not YAML that can be used"),
        ("input:\n\tpath: x", "is not YAML that can be used"),
        (b"\xff\xfe\x00a", "is not YAML that can be used"),
        ("input: {path: x}\ninput: {id_column: y}", "found 'input' twice"),
        ("input: {path: x, path: y}", "found 'path' twice"),
        ("output: {run_id: 2024-13-45}", "is not YAML that can be used: month must be in 1..12"),
        ("output: {run_id: 2024}", "--output.run_id: input should be a valid string, not 2024"),
        ("input: {keep_columns: a}", "--input.keep_columns: input should be a valid list, not 'a'"),
        ("input: {path: null}", "--input.path: input should be a valid string, not None"),
        ("input: !!python/object:os.system {}", "is not YAML that can be used"),
    ],
)
def test_a_wrong_file_is_told_apart(content: str | bytes, message: str, file: Any) -> None:
    with pytest.raises(UserError) as error:
        summarize("--config", file(content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.yaml: No such file or directory; set --config"):
        summarize("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"cannot read .*: .*irectory.*; set --config"):
        summarize("--config", str(tmp_path))


def test_an_option_that_must_be_set() -> None:
    with pytest.raises(UserError, match=r"^--input\.train must be set$"):
        load_config(PrepareConfig, "prepare", [])


@pytest.mark.parametrize("value", ["0", "inf", "nan", "-3", "-1e-3", "x"])
def test_a_rate_must_be_a_positive_number(value: str) -> None:
    with pytest.raises(UserError, match=r"--training\.learning_rate: "):
        train("--training.learning_rate", value)


def test_copying_needs_attention() -> None:
    with pytest.raises(UserError, match="--model: copy: true needs an attention to copy by"):
        train("--model.attention", "none")
    assert train("--model.attention", "none", "--model.copy", "false").model == ModelConfig(attention="none", copy=False)


def test_decoding_options_must_go_together() -> None:
    with pytest.raises(UserError, match="--decoding: min_target_tokens 5 is over max_target_tokens 4"):
        train("--decoding.max_target_tokens", "4", "--decoding.min_target_tokens", "5")
    assert DecodingOverrides(max_target_tokens=9).applied_to(
        DecodingConfig(no_repeat_ngram=2), ModelConfig()
    ) == DecodingConfig(max_target_tokens=9, no_repeat_ngram=2)
    with pytest.raises(UserError, match="do not go with the model's own: min_target_tokens 5 is over max_target_tokens 4"):
        DecodingOverrides(max_target_tokens=4).applied_to(DecodingConfig(min_target_tokens=5), ModelConfig())


def test_a_coverage_penalty_needs_attention() -> None:
    without = ModelConfig.model_validate({"attention": "none", "copy": False})
    with pytest.raises(UserError, match="coverage_penalty goes by attention, of which"):
        DecodingOverrides(coverage_penalty=0.2).applied_to(DecodingConfig(), without)
    with pytest.raises(UserError, match="coverage_penalty goes by attention, and"):
        train("--decoding.coverage_penalty", "0.2", "--model.attention", "none", "--model.copy", "false")
    with pytest.raises(UserError, match=r"training\.coverage is of attention"):
        train("--training.coverage", "0.2", "--model.attention", "none", "--model.copy", "false")
    assert DecodingOverrides(coverage_penalty=0.2).applied_to(DecodingConfig(), ModelConfig()).coverage_penalty == 0.2


# Help and the files in configs/


@pytest.mark.parametrize("job", JOBS)
def test_help_lists_every_option_with_its_type_default_and_meaning(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        load_config(JOBS[job], job, ["--help"])
    assert done.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for section, name, field in options_of(JOBS[job]):
        assert field.description, name
        default = "unset" if field.default is None else field.default
        end = "(required)" if field.is_required() else f"(default: {default})"
        named = rf"--{section}\.{name} \S+" if section else f"--{name}, --no-{name}"
        assert re.search(rf"{named} {re.escape(f'{field.description} {end}')}", shown), name


FILES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def job_of(name: str) -> str:
    """prepare of prepare.yaml and of prepare.arxiv.yaml."""
    return re.split(r"[._-]", name)[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_configs_can_be_used(name: str) -> None:
    job = job_of(name)
    given = MUST_BE_SET.get(job, []) if name == f"{job}.yaml" else []
    load_config(JOBS[job], job, ["--config", str(CONFIGS / name), *given])


def test_flags_come_from_the_file_or_the_command_line(file: Any) -> None:
    assert (summarize().full, summarize().dry_run) == (False, False)
    assert (summarize("--full").full, summarize("--dry-run").dry_run) == (True, True)
    assert summarize("--config", file("full: true\n")).full
    assert not summarize("--config", file("full: true\n"), "--no-full").full
    with pytest.raises(UserError, match=r"no section 'ful' \(did you mean full\?\)"):
        summarize("--config", file("ful: true\n"))
