"""Read the rows of an input one at a time, whatever its format: text files, Parquet, or Hugging Face data sets.

It deals with formats and columns only. A row that cannot be read becomes a ``RowError``, and reading continues; an
input that cannot be read raises UserError. Memory holds one line, or one batch of a Parquet file.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipeline.config.prepare import PairsInput
from pipeline.data.arrow import to_values
from pipeline.data.pairs import REFERENCES, pair_schema
from pipeline.errors import UserError, describe_error
from pipeline.io.secrets import refuse_secrets
from pipeline.prepare.files import FORMATS, READ_BYTES, Role, as_user_error, file_extension, find_files
from pipeline.prepare.rows import MAX_LISTED, RowStream, check_pair_columns, configured_columns, refuse_missing
from pipeline.prepare.text_formats import line_parser, read_lines

_ARCHIVES = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tbz": "tar", ".txz": "tar"}
_DATA_SET = re.compile(r"(?P<name>[^:@]+)(?::(?!:|//)(?P<subset>.+?))?(?:@(?P<split>\w[\w+.-]*))?")
_BUILDERS = frozenset({"arrow", "csv", "json", "parquet", "text", "webdataset", "xml"})
_SHARD_COLUMNS = [pair_schema(references=True, style=style).names for style in (False, True)]
_ROLE_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read_rows(path: str, role: Role, options: PairsInput) -> RowStream:
    """Yield the rows of an input. JSON rows may lack columns; ``get_value`` returns None for those.

    Raises:
        UserError: nothing is at ``path``, it cannot be read, its format is unknown, or no row has a configured column.
    """
    for link in path.split("::"):
        refuse_secrets(link, f"--input.{role}")
    file_format = _detect_format(path, role, options)
    if file_format == "datasets":
        rows = _dataset_rows(path, role)
    elif file_format == "parquet":
        rows = _parquet_rows(path, role, options)
    else:
        parse = line_parser(file_format, path, options)
        files = find_files(path, role, file_format)
        rows = (row for name, file in files for row in parse(read_lines(name, file, path, role)))
    return check_pair_columns(itertools.islice(rows, options.max_rows), path, options, is_table=file_format in ("tsv", "csv"))


def _detect_format(path: str, role: Role, options: PairsInput) -> str:
    """Return the configured format, or the one that the path suggests."""
    extension = file_extension(path.partition("::")[0].rstrip("*"))
    data_set = _DATA_SET.fullmatch(path)
    if options.format != "datasets" and extension in _ARCHIVES and "::" not in path:
        _refuse_archive(path, role, _ARCHIVES[extension])
    if options.format != "auto":
        return options.format
    if data_set and Path(data_set["name"]).is_dir():
        return "parquet" if path == data_set["name"] and any(Path(path).rglob("*.parquet")) else "datasets"
    if data_set and data_set["name"] in _BUILDERS:
        return "datasets"
    if extension in FORMATS:
        return FORMATS[extension]
    if options.pattern:
        return "lines"
    if options.columns:
        return "tsv"
    if data_set and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data_set["name"]) and not Path(path).exists():
        return "datasets"
    raise UserError(
        f"the format of {path} is unknown; set --input.format to tsv, csv, jsonl, parquet, lines or datasets "
        "(--input.pattern implies lines, --input.columns implies tsv)"
    )


def _refuse_archive(path: str, role: Role, protocol: str) -> None:
    with as_user_error(path, role):
        members = fsspec.filesystem(protocol, fo=path).find("") or ["FILE"]
        raise UserError(
            f"{path} is an archive; set --input.{role} to a file in it, such as {protocol}://{members[-1]}::{path} "
            f"(it has: {', '.join(members[:MAX_LISTED])})"
        )


def _parquet_rows(path: str, role: Role, options: PairsInput) -> RowStream:
    for name, file in find_files(path, role, "parquet"):
        with as_user_error(path, role), file as opened, pq.ParquetFile(opened, buffer_size=READ_BYTES) as parquet:
            names = parquet.schema_arrow.names
            columns = configured_columns(options)
            top_level = {column: column if column in names else column.partition(".")[0] for column in columns.values()}
            missing = {option: column for option, column in columns.items() if top_level[column] not in names}
            refuse_missing(name, missing, names)
            # Development and test shards of jobs.prepare hold all targets of a source in the column references.
            has_references = names in _SHARD_COLUMNS and options.target_column == "target"
            optional = ("score", "finish_reason", *([REFERENCES] * has_references))
            wanted = {*top_level.values(), *(name for name in optional if name in names)}
            numbers = itertools.count()
            for batch in parquet.iter_batches(256, columns=sorted(wanted)):
                for values in zip(*map(to_values, batch.columns), strict=True):
                    row = dict(zip(batch.schema.names, values, strict=True))
                    if has_references and (references := row.pop(REFERENCES)):
                        row["target"] = references
                    yield f"{name} row {next(numbers)}", row


def _dataset_rows(path: str, role: Role) -> RowStream:
    """Stream the rows of a data set with the ``datasets`` package.

    Args:
        path: ``NAME[:CONFIG][@SPLIT]`` with a name on the hub or a folder (also one written by ``save_to_disk``), or
            ``BUILDER:FILES`` such as ``json:data/*.json``. Without a split, the role decides.
    """
    parts = _DATA_SET.fullmatch(path)
    if parts is None:
        raise UserError(f"{path} is not NAME[:CONFIG][@SPLIT]; set --input.{role}")
    try:
        for number, row in enumerate(_load_dataset(parts["name"], parts["subset"], parts["split"], role)):
            yield f"{path} row {number}", dict(row)
    except UserError:
        raise
    except Exception as error:  # the package passes on errors of loaders, parsers and the hub: no common base class
        raise UserError(f"the datasets package cannot read {path}: {describe_error(error)}; set --input.{role}") from None


def _load_dataset(name: str, subset: str | None, split: str | None, role: Role) -> Any:
    import datasets  # takes seconds, and most inputs do not need it

    datasets.disable_progress_bars()
    if Path(name, "state.json").exists():
        if split is not None:
            raise UserError(f"{name} has no splits; set --input.{role} to it without @{split}")
        return datasets.load_from_disk(name)
    if Path(name, "dataset_dict.json").exists():
        splits = datasets.load_from_disk(name)
        split = split or _ROLE_SPLITS[role]
        if split not in splits:
            raise UserError(f"{name} has no split {split} (it has: {', '.join(splits)}); set --input.{role} {name}@SPLIT")
        return splits[split]
    if name in _BUILDERS and subset:
        return datasets.load_dataset(name, data_files=subset, split=split or "train", streaming=True)
    return datasets.load_dataset(name, subset, split=split or _ROLE_SPLITS[role], streaming=True)
