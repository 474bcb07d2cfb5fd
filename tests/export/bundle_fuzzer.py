"""Mutates a bundle, makes its hashes right again, and looks what the runtime does with it.

    python tests/export/bundle_fuzzer.py BUNDLE [--seed 0] [--first 0] [--count 10000] [--processes 2]

A mutation is a seed and a number; `--seed S --first N --count 1` runs one again. Each runs in a process with limits,
and may end in one of these ways only:

- refused: a BundleError of one line;
- equal: what the whole bundle says;
- other: another completion that is well-formed: ids of the vocabulary, a text, and no more tokens than asked for.
  Weights and graphs with right hashes are another model, so their numbers may differ; if they are NaN, the error that
  names them counts as a refusal. A file that nothing reads must leave the completion equal.

Anything else is a failure: another exception, a crash, more than SECONDS of processor time, more than MEGABYTES.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

SECONDS, MEGABYTES, HANGS = 2.0, 200, 60.0  # the last in wall-clock time, which other processes may take
UNREAD = ("README.md", "genai_config.json", "tokenizer_config.json")
PROMPT, LONG = "It was a", "It was a bright cold day. " * 12
PART = 500  # mutations in one process
Random = np.random.Generator


class Outcome(NamedTuple):
    """What became of a mutation; `problem` is empty unless it failed."""

    number: int
    target: str
    ending: str
    problem: str = ""


# mutations of bytes, of JSON, and of graphs


def mutated_bytes(content: bytes, random: Random) -> bytes:
    found = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(0, len(found) + 1))
        end = min(len(found), at + int(random.choice([1, 1, 2, 4, 8, 64])))
        match int(random.integers(0, 7)):
            case 0:
                found[at : at + 1] = bytes([int(random.integers(0, 256))])
            case 1:
                found[at:end] = random.bytes(end - at)
            case 2:
                del found[at:end]
            case 3:
                found[at:at] = found[int(random.integers(0, len(found) + 1)) :][:64]
            case 4:
                found[at:end] = bytes([int(random.choice([0, 0x7F, 0x80, 0xFF]))]) * (end - at)
            case 5:
                del found[at:]
            case 6 if at < len(found):
                found[at] ^= 1 << int(random.integers(0, 8))
    return bytes(found)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e300, 2**31, 2**32, 2**53, 2**63, 10**30, -(2**63)),
    *("", "x", "\0", "..", "../x", "/dev/zero", "onnx/../..", "a" * 5000, "\u202e", "[", "(a+)+$", "é"),
    *([], {}, [[]], [0], [None], {"": 0}, {"type": "Sequence"}, [[[[[[[[]]]]]]]]),
]
PARTS: list[Any] = [
    {"type": "FixedLength", "length": 0},
    {"type": "Precompiled", "precompiled_charsmap": "////fwAA"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""},
    {"type": "Split", "pattern": {"Regex": "(?:a+)+b"}, "behavior": "Isolated", "invert": False},
    {"type": "Strip", "content": " ", "start": 1, "stop": 9},
    {"type": "Prepend", "prepend": "_" * 9},
    {"type": "Digits", "individual_digits": True},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": "ab"},
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "Fuse"},
    {"type": "ByteFallback"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of each value, however deep, the first few of long lists and objects."""
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for number, (key, inner) in enumerate(items):
        if number < 40:
            yield value, key
            yield from places(inner)


DECIDING = ("architecture", "normalizer", "pre_tokenizer", "post_processor", "decoder", "parity", "graphs", "model")


def mutated_json(content: bytes, random: Random) -> bytes:
    found = json.loads(content)
    known = [key for key in DECIDING if key in found]
    if known and random.random() < 0.4:
        key = str(random.choice(known))
        if key in ("architecture", "parity", "graphs", "model"):
            inner = json.loads(mutated_json(json.dumps({"": found[key]}).encode(), random))
            found[key] = inner.popitem()[1] if inner else None  # it may have taken out all there was
        else:
            some = [PARTS[int(random.integers(0, len(PARTS)))] for _ in range(int(random.choice([1, 1, 2, 40])))]
            names = {"pre_tokenizer": "pretokenizers", "post_processor": "processors"}
            found[key] = {"type": "Sequence", names.get(key, f"{key}s"): some} if len(some) > 1 else some[0]
        return json.dumps(found).encode()
    for _ in range(int(random.integers(1, 3))):
        known = list(places(found))
        if not known:
            break
        container, key = known[int(random.integers(0, len(known)))]
        other, other_key = known[int(random.integers(0, len(known)))]
        value = container[key]
        match int(random.integers(0, 7)):
            case 0:
                container[key] = ODD[int(random.integers(0, len(ODD)))]
            case 1 if isinstance(container, dict):
                del container[key]
            case 2 if isinstance(value, int | float):
                container[key] = value * int(random.choice([2, -1, 1000, 2**16])) + int(random.integers(-2, 3))
            case 3:
                container[key] = json.loads(json.dumps(other[other_key]))
            case 4 if isinstance(container, dict):
                container[f"{key}x"] = container.pop(key)
            case 5 if isinstance(value, list) and value:
                container[key] = value * int(random.choice([2, 50]))
            case 6:
                container[key] = PARTS[int(random.integers(0, len(PARTS)))]
    text = json.dumps(found).encode()
    return text.replace(b"{", b'{"twice": 1, "twice": 2, ', 1) if random.integers(0, 50) == 0 else text


OPERATORS = ("Loop", "If", "Scan", "ConstantOfShape", "Expand", "Tile", "Range", "RandomNormal", "NonZero", "MatMul")
SIZES = (0, -1, 1, 2, 3, 7, 2**15, 2**30, 2**31, 2**62, -(2**63))


def detoured(graph: onnx.GraphProto, random: Random) -> None:
    """Let an edge between two nodes take something in that is large, slow, or of another kind than export writes."""
    at = int(random.choice([n for n, node in enumerate(graph.node) if node.input]))
    node = graph.node[at]
    edge = int(random.integers(0, len(node.input)))
    size = int(random.choice([1, 2, 1000, 2**20, 2**28, 2**33, 2**62]))
    number, list_of = onnx.TensorProto, onnx.helper.make_tensor
    graph.initializer.append(list_of("evil/size", number.INT64, [1], [size]))
    graph.initializer.append(list_of("evil/one", number.FLOAT, [1, 1], [0.0]))
    make = onnx.helper.make_node
    match int(random.integers(0, 5)):
        case 0:
            added = [make("ConstantOfShape", ["evil/size"], ["evil/0"])]
        case 1:
            added = [make("Expand", ["evil/one", "evil/size"], ["evil/0"])]
        case 2:
            added = [make("Concat", ["evil/one", "evil/one"], ["evil/1"], axis=1)]
            count = int(random.choice([2, 20, 34]))
            added += [make("Concat", [f"evil/{n}"] * 2, [f"evil/{n + 1}"], axis=1) for n in range(1, count)]
            added.append(make("Identity", [f"evil/{count}"], ["evil/0"]))
        case 3:
            added = [make("Transpose", ["transformer.wte.weight"], ["evil/wide"], perm=[1, 0])]
            added.append(make("MatMul", ["transformer.wte.weight", "evil/wide"], ["evil/1"]))
            added += [make("MatMul", [f"evil/{n}"] * 2, [f"evil/{n + 1}"]) for n in range(1, 400)]
            added.append(make("Identity", ["evil/400"], ["evil/0"]))
        case _:
            condition = onnx.helper.make_tensor_value_info("evil/on", number.BOOL, [])
            values = [
                onnx.helper.make_tensor_value_info(name, number.FLOAT, [1, 1]) for name in ("evil/in", "evil/out")
            ]
            counted = onnx.helper.make_tensor_value_info("evil/n", number.INT64, [])
            going = onnx.helper.make_tensor_value_info("evil/goes", number.BOOL, [])
            body = [make("Identity", ["evil/on"], ["evil/goes"]), make("Identity", ["evil/in"], ["evil/out"])]
            loop = onnx.helper.make_graph(body, "body", [counted, condition, values[0]], [going, values[1]])
            graph.initializer.append(list_of("evil/rounds", number.INT64, [], [size]))
            added = [make("Loop", ["evil/rounds", "", "evil/one"], ["evil/0"], body=loop)]
    added += [
        make("ReduceMin", ["evil/0"], ["evil/least"]),
        make("Add", [node.input[edge], "evil/least"], ["evil/sum"]),
    ]
    node.input[edge] = "evil/sum"
    for step in reversed(added):
        graph.node.insert(at, step)


def mutated_graph(content: bytes, random: Random) -> bytes:
    model = onnx.load_from_string(content)
    graph = model.graph
    if random.random() < 0.2:
        detoured(graph, random)
        return model.SerializeToString()
    names = [name for node in graph.node for name in (*node.input, *node.output)] + [t.name for t in graph.initializer]

    def one(values: Any) -> Any:
        return values[int(random.integers(0, len(values)))]

    for _ in range(int(random.integers(1, 3))):
        node, tensor = one(graph.node), one(graph.initializer)
        value = one([*graph.input, *graph.output])
        match int(random.integers(0, 13)):
            case 0 if node.input:
                node.input[int(random.integers(0, len(node.input)))] = one(names)
            case 1:
                node.op_type = one([*OPERATORS, *(other.op_type for other in graph.node)])
            case 2 if node.attribute:
                attribute = one(node.attribute)
                attribute.i, attribute.f = int(one(SIZES)), float(one([0.0, -1.0, 1e30, float("nan")]))
            case 3:
                graph.node.remove(node)
            case 4:
                graph.node.add().CopyFrom(node)
            case 5 if tensor.dims:
                tensor.dims[int(random.integers(0, len(tensor.dims)))] = int(one(SIZES))
            case 6:
                tensor.data_type = int(random.integers(0, 24))
            case 7:
                tensor.raw_data = mutated_bytes(tensor.raw_data, random) if tensor.raw_data else random.bytes(8)
            case 8 if tensor.external_data:
                entry = one(tensor.external_data)
                entry.value = str(one([*SIZES, "../x", "/etc/passwd", "model.onnx_data", "decode_int8.onnx_data"]))
            case 9:
                value.type.tensor_type.elem_type = int(random.integers(0, 24))
            case 10 if value.type.tensor_type.shape.dim:
                one(value.type.tensor_type.shape.dim).dim_value = int(one(SIZES))
            case 11:
                node.output[0] = one(names)
            case 12:
                other = one(graph.initializer)
                tensor.name, other.name = other.name, tensor.name
    return model.SerializeToString()


def mutated_weights(content: bytes, random: Random) -> bytes:
    found = np.frombuffer(bytearray(content[: len(content) // 4 * 4]), np.float32).copy()
    start = int(random.integers(0, len(found)))
    stop = start + int(random.choice([1, 100, len(found)]))
    found[start:stop] = random.choice(np.array([np.nan, np.inf, -np.inf, 1e38, -1e38, 0, 1e-40], np.float32))
    return found.tobytes() + content[len(content) // 4 * 4 :]


def mutate(name: str, content: bytes, random: Random) -> bytes:
    structure: Callable[[bytes, Random], bytes] = mutated_bytes
    for suffix, kind in ((".json", mutated_json), (".onnx", mutated_graph), (".onnx_data", mutated_weights)):
        structure = kind if name.endswith(suffix) else structure
    return (structure if random.random() < 0.7 else mutated_bytes)(content, random)


# one mutation


class Bundle:
    """The whole bundle, in memory, and a folder in which mutations of it appear."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.manifest = json.loads(self.files["manifest.json"])
        graphs = [graph["path"] for graph in self.manifest["graphs"]]
        weights = [name for name in self.files if name.endswith("_data")]
        self.targets = [*["manifest.json"] * 6, *["tokenizer.json"] * 6, *graphs, *graphs, *weights]
        self.targets += ["config.json", "generation_config.json", *UNREAD]

    def write(self, folder: Path, target: str, content: bytes, random: Random) -> None:
        """The bundle with another content of a file, recorded in the manifest."""
        for name, whole in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.write_bytes(content if name == target else whole)
        if target == "manifest.json":
            return
        record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files = {**self.manifest["files"], target: record}
        if random.integers(0, 100) == 0:
            (folder / target).unlink()
            (folder / target).symlink_to(str(random.choice(["/dev/zero", "/dev/null", "/etc/passwd", ".."])))
        (folder / "manifest.json").write_text(json.dumps({**self.manifest, "files": files}))

    def uses(self, target: str) -> list[tuple[str, dict[str, Any]]]:
        """What to do with it, so that the changed file is read: names and options of `runtime.load`."""
        for graph in self.manifest["graphs"]:
            if graph["path"] == target:
                options = {"precision": graph["precision"]}
                if graph["kind"] == "int8_cache":
                    return [("complete", {**options, "cache": "int8"})]
                if graph["kind"] in ("reference", "lens"):
                    return [("inspect", {})]
                return [("prove", {}) if graph["kind"] in ("decode", "decode_cuda") else ("complete", options)]
        for precision in ("fp16", "int8", "int4"):
            if target.endswith(f"_{precision}.onnx_data"):
                return [("complete", {"precision": precision})]
        return [("complete", {}), ("inspect", {}), ("prove", {})] if target == "manifest.json" else [("complete", {})]


def use(folder: Path, name: str, options: dict[str, Any]) -> Any:
    """Load the bundle and use it; what it says."""
    import runtime
    from runtime.bundle.bundle import open_bundle
    from runtime.ort.placement import CPU
    from runtime.proof.graphs import prove

    if name == "prove":
        bundle = open_bundle(folder)
        return [str(prove(bundle, "fp32", placement)) for placement in (CPU, CPU.as_on_device())]
    model = runtime.load(folder, device="cpu", threads=1, slots=2, **options)
    if name == "inspect":
        found, lens = model.inspect(PROMPT), model.lens(PROMPT)
        return [found.logits.shape, found.attentions.shape, lens.ranks.shape]
    plain = [model.complete(text, max_new_tokens=3, ignore_eos=True) for text in (PROMPT, LONG)]
    drawn = model.complete(PROMPT, max_new_tokens=3, temperature=0.9, top_p=0.9, seed=1, logprobs=1)
    for completion in (*plain, drawn):
        size = model.bundle.manifest.architecture.vocab_size
        assert all(type(token) is int and 0 <= token < size for token in completion.token_ids), completion
        assert isinstance(completion.text, str), completion
        assert len(completion.token_ids) <= 3, completion
    return [(each.token_ids, each.text) for each in (*plain, drawn)]


def try_one(bundle: Bundle, folder: Path, seed: int, number: int, whole: dict[str, Any]) -> Outcome:
    """Make one mutation, use it, and judge what happened."""
    from runtime import BundleError

    random = np.random.default_rng([seed, number])
    target = str(random.choice(bundle.targets))
    content = mutate(target, bundle.files[target], random)
    bundle.write(folder, target, content, random)
    started, before = time.process_time(), peak_memory(reset=True)
    ending, problem = "equal", ""
    uses = bundle.uses(target)
    for name, options in [uses[number % len(uses)]]:
        try:
            said = use(folder, name, options)
            key = repr((name, options))
            ending = ending if repr(said) == whole[key] else "other"
        except BundleError as error:
            ending = "refused"
            problem = "" if len(str(error).splitlines()) == 1 and len(str(error)) < 3000 else f"said {error!r}"
        except ValueError as error:
            ending, told = "refused", str(error)
            meant = "logits must be finite" in told or "prompt must" in told  # a shorter context is another model's
            problem = problem if meant else f"{name}: {type(error).__name__}: {told}"
        except BaseException as error:
            ending, problem = "raised", f"{name}: {type(error).__name__}: {error}"
    took, grew = time.process_time() - started, peak_memory() - before
    if target in UNREAD and ending == "other":
        problem = "a file that nothing reads changed the completion"
    if took > SECONDS or grew > MEGABYTES:
        problem = problem or f"took {took:.1f} s and {grew:.0f} MB"
    return Outcome(number, target, ending, " ".join(problem.split())[:400])


def peak_memory(*, reset: bool = False) -> float:
    """The most megabytes that this process had resident, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# many, in processes with limits


def work(folder: Path, seed: int, numbers: range, results: Any) -> None:
    """Try some mutations in this process, and send each outcome."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # panics and ONNX Runtime print there
    bundle = Bundle(folder)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        place = Path(scratch, "bundle")
        shutil.copytree(folder, place)
        uses = {repr(each): each for name in bundle.targets for each in bundle.uses(name)}
        whole = {key: repr(use(place, *each)) for key, each in uses.items()}
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, size + 2**31))
        for number in numbers:
            results.send(Outcome(number, "", "begun"))
            results.send(try_one(bundle, place, seed, number, whole))


def fuzz(folder: Path, seed: int, numbers: range, processes: int, *, hangs: float = HANGS) -> Iterator[Outcome]:
    """Outcomes of mutations, in processes side by side; one that dies or hangs fails its mutation, and is replaced."""
    context = multiprocessing.get_context("fork")
    waiting = [numbers[start : start + PART] for start in range(0, len(numbers), PART)][::-1]
    running: dict[Any, list[Any]] = {}  # receiving end -> [process, numbers left, the last one begun, when]
    while waiting or running:
        while waiting and len(running) < processes:
            part = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(folder, seed, part, sender), daemon=True)
            process.start()
            sender.close()
            running[receiver] = [process, part, None, time.monotonic()]
        for receiver in multiprocessing.connection.wait(list(running), timeout=1.0):
            state = running[receiver]
            try:
                outcome = receiver.recv()
            except EOFError:
                state[0].join()
                del running[receiver]
                if state[2] is not None:
                    yield Outcome(state[2], "?", "died", f"the process ended with {state[0].exitcode}")
                if rest := state[1][(state[1].index(state[2]) + 1 if state[2] is not None else len(state[1])) :]:
                    waiting.append(rest)
                continue
            state[3] = time.monotonic()
            if outcome.ending == "begun":
                state[2] = outcome.number
                continue
            state[1], state[2] = state[1][state[1].index(outcome.number) + 1 :], None
            yield outcome
        for process, _, number, since in running.values():
            if number is not None and time.monotonic() - since > hangs:
                process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutate a bundle and look what the runtime does with it.")
    parser.add_argument("bundle", type=Path)
    for name, default in (("seed", 0), ("first", 0), ("count", 10_000), ("processes", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    tally, failed = collections.Counter[str](), 0
    for outcome in fuzz(asked.bundle, asked.seed, range(asked.first, asked.first + asked.count), asked.processes):
        tally[outcome.ending] += 1
        if outcome.problem:
            failed += 1
            print(f"--seed {asked.seed} --first {outcome.number} --count 1: {outcome}", flush=True)
    print(dict(tally))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
