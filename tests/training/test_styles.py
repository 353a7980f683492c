"""A model of two styles writes each when it is asked for it, in training, evaluation and in a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainings import make_config, run

import pipeline
from pipeline.config.evaluate import MetricsOptions
from pipeline.config.model import DecodingOverrides
from pipeline.config.summarize import SummarizeConfig
from pipeline.data.special_tokens import FIRST_STYLE
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import Evaluator, Summarizer
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.model.bundle import load_bundle
from pipeline.training.dataset import TokenizePairs
from pipeline.training.plan import plan_training

COMMANDS = ["walk", "jump", "look", "run", "turn", "stop"]


@pytest.fixture(scope="module")
def pairs(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands to their actions in the style ``upper``, and to themselves in the style ``lower``, which is more frequent."""
    folder = tmp_path_factory.mktemp("styles")
    rows = [(command, command.upper(), "upper") for command in COMMANDS]
    rows += [(command, command, "lower") for command in COMMANDS] * 2
    sources, targets, styles = zip(*rows, strict=True)
    table = pa.table({"id": [str(row) for row in range(len(rows))], "source": sources, "target": targets, "style": styles})
    for split, copies in (("train", 30), ("dev", 1)):
        (folder / split).mkdir()
        pq.write_table(pa.concat_tables([table] * copies), folder / split / "a.parquet")
    (folder / "tokenizer.model").write_bytes((command_pairs / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="module")
def bundle(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned both styles."""
    folder = tmp_path_factory.mktemp("trained")
    result, _ = run(make_config(pairs, folder, training={"epochs": 12}, scaling={"num_workers": 1}))
    assert result.last["exact_match"] == 100, "each development pair is decoded in its own style"
    return folder / "bundle"


def test_training_finds_the_styles_and_makes_the_most_frequent_the_default(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.model.config.styles == ["lower", "upper"]
    assert loaded.decoding.style == "lower"


def test_evaluation_follows_the_style_of_each_pair_or_the_option(bundle: Path, pairs: Path) -> None:
    loaded, rows = load_bundle(bundle), pq.read_table(pairs / "dev")
    sources, targets, styles = (rows[name].to_pylist() for name in ("source", "target", "style"))
    references = [[target] for target in targets]
    evaluator = Evaluator(Summarizer(loaded, loaded.decoding), MetricsOptions(bootstrap_samples=0))
    assert evaluator.add(sources, references, styles).texts == targets
    assert evaluator.add(sources, references).texts == sources
    upper = DecodingOverrides(style="upper").applied_to(loaded.decoding, loaded.model.config)
    assert Summarizer(loaded, upper).summarize(sources, [None] * len(sources)).texts == [text.upper() for text in sources]


@pytest.mark.parametrize(("style", "summaries"), [(None, COMMANDS), ("upper", [command.upper() for command in COMMANDS])])
def test_run_writes_the_style_that_is_asked_for(bundle: Path, tmp_path: Path, style: str | None, summaries: list[str]) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": COMMANDS, "text": COMMANDS}), tmp_path / "in/a.parquet")
    _, offsets = Tokenizer(load_bundle(bundle).tokenizer_file).encode(COMMANDS)
    lengths = np.diff(offsets).tolist()
    values = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out")},
        "model": {"path": str(bundle)},
        "decoding": {"style": style, "max_source_tokens": max(lengths) + 1},
        "resources": {"actors": 1},
    }
    execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None)
    rows = {row["id"]: row for batch in pipeline.read_summaries(str(tmp_path / "out")) for row in batch.to_pylist()}
    assert [rows[command]["summary"] for command in COMMANDS] == summaries
    assert [rows[command]["source_tokens"] for command in COMMANDS] == lengths, "the style is no text"
    assert not any(row["source_truncated"] for row in rows.values())


def test_unknown_style_names_the_known_ones(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    with pytest.raises(UserError, match=r"'abstract' .*it has: lower, upper"):
        DecodingOverrides(style="abstract").applied_to(loaded.decoding, loaded.model.config)


def test_fine_tuning_keeps_the_styles_of_the_parent_and_adds_new_ones(bundle: Path, pairs: Path, tmp_path: Path) -> None:
    rows = pq.read_table(pairs / "train")
    styles = pa.array(["title"] * len(rows))
    pq.write_table(rows.set_column(rows.schema.get_field_index("style"), "style", styles), tmp_path / "a.parquet")
    data, model = {"train": str(tmp_path)}, {"init_from": str(bundle)}
    config = plan_training(make_config(pairs, tmp_path / "out", data=data, model=model)).config
    assert config.model.styles == ["lower", "upper", "title"]
    assert config.decoding.style == "title"


def test_tokenizer_without_style_tokens_is_refused(pairs: Path, tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "data/format_2/bundle/tokenizer.model"
    assert not Tokenizer(old.read_bytes()).has_styles
    with pytest.raises(UserError, match="no style tokens"):
        run(make_config(pairs, tmp_path, data={"tokenizer": str(old)}))


def write_pairs(folder: Path, style: str | None) -> str:
    """Write the commands as pairs of one style, and return the folder."""
    folder.mkdir()
    columns = {"id": COMMANDS, "source": COMMANDS, "target": COMMANDS}
    table = pa.table({**columns, "style": pa.array([style] * len(COMMANDS), pa.string())})
    pq.write_table(table, folder / "a.parquet")
    return str(folder)


def test_style_that_no_training_pair_has_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--decoding\.style title .* one of lower, upper"):
        plan_training(make_config(pairs, tmp_path / "out", decoding={"style": "title"}))
    dev = write_pairs(tmp_path / "dev", "title")
    with pytest.raises(UserError, match=f"style title of {dev} is not in"):
        run(make_config(pairs, tmp_path / "out", data={"dev": dev}))


def test_pairs_without_a_style_have_the_default_style(pairs: Path) -> None:
    tokenizer_file = (pairs / "tokenizer.model").read_bytes()
    table = pa.table({"source": COMMANDS[:2], "target": COMMANDS[:2], "style": ["upper", None]})
    first = [
        TokenizePairs(tokenizer_file, 9, 9, ("lower", "upper"), style)(table)["source"][1].as_py()[0]
        for style in ("lower", None)
    ]
    assert first[0] == FIRST_STYLE
    assert first[1] > FIRST_STYLE + 8


def test_bundle_whose_style_is_unknown_is_broken(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    file = tmp_path / "bundle/config.json"
    file.write_text(file.read_text().replace('"style": "lower"', '"style": "title"'))
    with pytest.raises(UserError, match="style 'title', which is not one of the model's"):
        load_bundle(tmp_path / "bundle")
