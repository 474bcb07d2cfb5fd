"""Writes a bundle's model card, README.md: its files, sizes and parity table."""

from pathlib import Path

from export.graphs.shortlist import FILE
from export.parity.report import Report, make_markdown
from runtime.bundle.manifest import Kind, Manifest

NAME = "README.md"
CARD = """---
library_name: onnxruntime
pipeline_tag: text-generation
tags: [gpt2, onnx]
---

# {source.id} on ONNX Runtime

{source.id}{revision}{adapter}, {architecture.parameters:,} parameters, exported with gpt2-onnx and checked against
PyTorch.

```python
import runtime  # pip install "gpt2-onnx[cpu]"

model = runtime.load("path/to/this/folder")
print(model.complete("It was a bright cold day", max_new_tokens=32))
```

| | |
|---|---|
| layers, heads, width | {architecture.n_layer}, {architecture.n_head}, {architecture.n_embd} |
| context, vocabulary | {architecture.n_positions:,}, {architecture.vocab_size:,} |
| reference graph | `onnx/model.onnx`: logits, hidden states, attention maps, key/value cache |
| lens graph | `onnx/lens.onnx`: what any layer's hidden states would predict |
| decode graph | `onnx/decode.onnx`: next token and logits, over a preallocated cache |
{ragged}| decode graph for CUDA | `onnx/decode_cuda.onnx`: the same in float32, with state that advances in the graph |
| weights of these graphs | `onnx/model.onnx_data` |
{shortlist}{precisions}
The reference graph also loads in optimum's `ORTModelForCausalLM`, onnxruntime-genai and Transformers.js.

## Parity

The truth is PyTorch in float64 with eager attention. A tensor passes if its error, relative to the norm of the truth,
is at most twice the largest error of PyTorch's own float32 in that tensor over the cases (floor 1e-6; a single position
is compared with the worst single position). Cases: {cases}.

{table}

{lines}

Made with {made_with}.
"""
RAGGED_ROW = "| ragged decode graph | `onnx/ragged.onnx`: the same for any number of new ids in each slot at once |\n"
CACHED_ROW = '| `cache="int8"` | `onnx/int8_cache.onnx`: the same with int8 keys and values |\n'
SHORTLIST_ROW = f"| the decode graph's own | `onnx/{FILE}`: finds the next token without all of `lm_head` |\n"


def write_model_card(manifest: Manifest, report: Report, folder: Path) -> Path:
    revision = f" at revision {manifest.source.revision}" if manifest.source.revision else ""
    text = CARD.format(
        source=manifest.source,
        revision=revision,
        adapter=f" with the adapter {manifest.adapter.id} merged into it" if manifest.adapter else "",
        architecture=manifest.architecture,
        cases=", ".join(report.cases()),
        ragged=ragged_rows(manifest),
        shortlist=SHORTLIST_ROW if f"onnx/{FILE}" in manifest.files else "",
        precisions=precision_rows(manifest),
        table=make_markdown(report),
        lines="\n".join(f"- {line}" for line in report.lines()),
        made_with=", ".join(f"{name} {version}" for name, version in manifest.made_with.items()),
    )
    card = folder / NAME
    card.write_text(text, encoding="utf-8")
    return card


def ragged_rows(manifest: Manifest) -> str:
    """The ragged graph, and the one of float32 with int8 keys and values."""
    rows: dict[Kind, str] = {"ragged": RAGGED_ROW, "int8_cache": CACHED_ROW}
    return "".join(row for kind, row in rows.items() if manifest.has_graph(kind, "fp32"))


def precision_rows(manifest: Manifest) -> str:
    """A row per precision: its files and their size."""
    rows = []
    for precision in dict.fromkeys(graph.precision for graph in manifest.graphs):
        files = {name: file.size for name, file in manifest.files.items() if name.partition(".")[0].endswith(precision)}
        if files:
            names = ", ".join(f"`{name}`" for name in files)
            rows.append(f'| `precision="{precision}"` | {names}: {sum(files.values()) / 1e6:.1f} MB |\n')
    return "".join(rows)
