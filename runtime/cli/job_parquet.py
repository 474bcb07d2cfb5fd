"""Parquet in and out of a batch: a row is the JSON line of its columns, and a record is a row."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from runtime.files import whole_file
from runtime.text.options import CHECKS

NEEDED = "a .parquet file needs pyarrow, which comes with the extra `cluster`: pip install 'gpt2-onnx[cluster]'"
AT_ONCE = 1024  # rows
AS_JSON = {b"gpt2-onnx": b"JSON"}  # the metadata of a column of JSON texts
INDEX = "__index_level_"  # how pandas calls the columns of an index without a name
INT64 = range(-(2**63), 2**63)


def is_parquet(path: str | Path) -> bool:
    return str(path).endswith(".parquet")


def pyarrow() -> Any:
    """The library, with its Parquet; ImportError of one line where it is missing."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(NEEDED) from None
    return arrow


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A Parquet file; ValueError if it is none."""
    arrow = pyarrow()
    with Path(path).open("rb") as file:
        try:
            found = arrow.parquet.ParquetFile(file)
        except arrow.ArrowException as error:
            raise ValueError(f"{path} is not a Parquet file: {error}") from None
        yield found


# in


def rows_of_parquet(path: str) -> int:
    """How many rows a file has."""
    with opened(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def open_rows_of_parquet(path: str, first: int) -> Iterator[Iterator[bytes]]:
    """A file's rows as JSON lines, from one on; ValueError unless its columns are a prompt, an id, and options."""
    with opened(path) as file:
        check_columns(path, file.schema_arrow)
        yield (json.dumps(content(row)).encode() for row in rows_from(file, first))


def check_columns(path: str, schema: Any) -> None:
    types = pyarrow().types
    if "prompt" not in schema.names:
        raise ValueError(f"{path} must have a column 'prompt', got {', '.join(map(repr, schema.names)) or 'none'}")
    for column in schema:
        if column.name not in {"prompt", "id", *CHECKS} and not column.name.startswith(INDEX):
            raise ValueError(
                f"{path} has a column {column.name!r}, which is neither 'prompt' nor 'id' nor an option; leave it out"
            )
        bare = column.type.value_type if types.is_dictionary(column.type) else column.type
        if any(is_such(bare) for is_such in (types.is_binary, types.is_large_binary, types.is_temporal)):
            raise ValueError(f"{path}: column {column.name!r} must have a type that JSON has, got {column.type}")


def rows_from(file: Any, first: int) -> Iterator[dict[str, Any]]:
    """The rows from one on; what lies in row groups before it is not read."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    groups = list(range(file.num_row_groups))
    while groups and first >= sizes[groups[0]]:
        first -= sizes[groups.pop(0)]
    batches = file.iter_batches(AT_ONCE, row_groups=groups, use_threads=False) if groups else ()
    for batch in batches:
        if first < batch.num_rows:
            yield from batch.slice(first).to_pylist(maps_as_pydicts="strict")
        first = max(0, first - batch.num_rows)


def content(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a line would have it: a null is an option that is not given."""
    return {
        name: whole(value) if name in CHECKS else value
        for name, value in row.items()
        if not name.startswith(INDEX) and (value is not None or name == "prompt")
    }


def whole(value: Any) -> Any:
    """`value`, but 3.0 as 3: pandas makes floats of the integers in a column with nulls."""
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if each is not None}
    return int(value) if isinstance(value, float) and value.is_integer() else value


# out


def write_records(path: Path, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
    """Write a file whose rows are the records, which are read twice; it appears whole, or not at all."""
    arrow = pyarrow()
    schema = schema_for(records())
    left = iter(records())
    with whole_file(path) as beside, arrow.parquet.ParquetWriter(beside, schema) as writer:
        while batch := [as_row(record, schema) for record in islice(left, AT_ONCE)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(batch, schema=schema))


def schema_for(records: Iterable[Mapping[str, Any]]) -> Any:
    """The columns: an id has the type of all ids if they are texts or integers, and is JSON otherwise."""
    arrow = pyarrow()
    kinds: set[type] = set()
    names: set[str] = set()
    for record in records:
        kinds.add(kind(record["id"]))
        names.update(record)
    own = {frozenset({str}): arrow.string(), frozenset({int}): arrow.int64()}.get(frozenset(kinds - {type(None)}))
    columns = [
        arrow.field("id", own) if own else arrow.field("id", arrow.string(), metadata=AS_JSON),
        arrow.field("text", arrow.string()),
        arrow.field("token_ids", arrow.list_(arrow.int64())),
        arrow.field("finish_reason", arrow.string()),
        arrow.field("prompt_tokens", arrow.int64()),
        arrow.field("logprobs", arrow.string(), metadata=AS_JSON),
        arrow.field("prompt_logprobs", arrow.string(), metadata=AS_JSON),
        arrow.field("line", arrow.int64()),
        arrow.field("error", arrow.string()),
        arrow.field("digest", arrow.string()),
    ]
    asked = {"logprobs", "prompt_logprobs"} - names
    return arrow.schema([column for column in columns if column.name not in asked])


def kind(value: object) -> type:
    """The type of an id, if a column can have it; object otherwise."""
    if type(value) is int:
        return int if value in INT64 else object
    if type(value) is str:
        return str if value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value) else object
    return type(value) if value is None else object


def as_row(record: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    texts = {column.name for column in schema if column.metadata == AS_JSON}
    return {name: json.dumps(value) if name in texts else value for name, value in record.items()}


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records that `write_records` has written; ValueError if the file is another."""
    with opened(path) as file:
        schema = file.schema_arrow
        if not {"id", "error", "digest"} <= set(schema.names):
            raise ValueError(f"{path} is not an output of this command; choose another --output")
        texts = {column.name for column in schema if column.metadata and AS_JSON.items() <= column.metadata.items()}
        for row in rows_from(file, 0):
            yield {
                name: json.loads(value) if name in texts and value is not None else value
                for name, value in row.items()
                if value is not None or name == "id"
            }
