"""The operators that a bundle's graph may have: what shape each gives for the shapes it takes, and what work it is.

They are those that export writes, by either tracer; `tests/export/test_allowed_graphs.py` keeps that so. Small
integers, from which shapes are made, are computed along.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.onnx_model import SMALL, Constant, Node

MICROSOFT = "com.microsoft"
Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """What is known of a tensor: its shape, its numbers if they are few and known, and whether no input decides it."""

    shape: Shape
    value: NDArray[Any] | None = None
    fixed: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Found(NamedTuple):
    """A node's outputs, and its work in multiplications or elements."""

    outputs: Sequence[Tensor]
    work: int = 0


@dataclass(frozen=True)
class Rule:
    """How an operator is understood, and the attributes that it may have."""

    apply: Callable[["Call"], Found | Tensor]
    attributes: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Call:
    """A node with what is known of its inputs; an absent one is None."""

    node: Node
    inputs: Sequence[Tensor | None]

    def __getitem__(self, index: int) -> Tensor:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise ValueError(f"it lacks input {index}")
        return found

    def numbers(self, index: int) -> list[int]:
        """The integers of an input, which decide a shape."""
        value = self[index].value
        if value is None or value.dtype.kind not in "iu" or value.ndim > 1:
            raise ValueError(f"its input {index} decides a shape, and is not known")
        return [int(each) for each in value.ravel()]

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def only(self, *counts: int) -> None:
        """Check that there are as many inputs."""
        if len(self.inputs) not in counts:
            raise ValueError(f"it has {len(self.inputs)} inputs")

    def setting(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def axis(self, rank: int, default: int = 0) -> int:
        return axis_of(self.setting("axis", default), rank)


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is none of {rank}")
    return axis % rank


def need(condition: bool, what: str = "its inputs do not fit each other") -> None:
    if not condition:
        raise ValueError(what)


def broadcast(*shapes: Shape) -> Shape:
    """The shape of all together, by NumPy's rule."""
    return tuple(joined(sizes) for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1))[::-1]


def joined(sizes: Sequence[int]) -> int:
    others = {size for size in sizes if size != 1}
    need(len(others) <= 1)
    return others.pop() if others else 1


def same(call: Call) -> Found | Tensor:
    """Of operators that compute each element, or each row, for itself."""
    call.only(1)
    return call[0]._replace(value=None)


def passed(call: Call) -> Tensor:
    """Of operators that give small integers as they are."""
    call.only(1)
    return call[0]


def cast(call: Call) -> Tensor:
    call.only(1)
    value = call[0].value
    if value is not None and value.dtype.kind == "f":  # shapes are made of integers; a traced 1.0 is one
        value = value.astype(np.int64) if np.isfinite(value).all() and (np.abs(value) < 2**53).all() else None
    return call[0]._replace(value=value)


def each(compute: Callable[..., Any] | None = None) -> Callable[[Call], Tensor]:
    """Of operators over tensors that are broadcast to one shape."""

    def rule(call: Call) -> Tensor:
        given = [call[index] for index in range(len(call.inputs))]
        shape, values = broadcast(*(tensor.shape for tensor in given)), [tensor.value for tensor in given]
        known = compute is not None and math.prod(shape) <= SMALL and all(value is not None for value in values)
        if not known or any(value is not None and value.dtype.kind == "f" for value in values):
            return Tensor(shape)
        with np.errstate(all="ignore"):
            assert compute is not None
            return Tensor(shape, np.asarray(compute(*values)))

    return rule


def divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[Any]:
    need(bool((below != 0).all()), "it divides a shape by 0")
    return np.asarray(np.trunc(above / below), above.dtype)


def matmul(call: Call) -> Found:
    call.only(2)
    left, right = call[0].shape, call[1].shape
    need(len(left) >= 2 and len(right) >= 2 and left[-1] == right[-2])
    shape = (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])
    return Found([Tensor(shape)], math.prod(shape) * left[-1])


def gemm(call: Call) -> Found:
    call.only(2, 3)
    left, right = call[0].shape, call[1].shape
    need(len(left) == len(right) == 2 and not call.setting("transA", 0))
    inner, outer = reversed(right) if call.setting("transB", 0) else right
    need(left[1] == inner)
    shape = (left[0], outer)
    need(not call.has(2) or broadcast(call[2].shape, shape) == shape)
    return Found([Tensor(shape)], left[0] * outer * inner)


def block_product(call: Call) -> Found:
    """MatMulNBits: codes [N, blocks, bytes] with a scale for each block; it packs them when the session is made."""
    call.only(3, 6)
    width, count = call.setting("K", 0), call.setting("N", 0)
    bits, block = call.setting("bits", 4), call.setting("block_size", 0)
    need(bits in (4, 8) and block in (16, 32, 64, 128, 256) and width > 0 and count > 0)
    blocks = -(-width // block)
    need(call[0].shape[-1:] == (width,) and call[1].shape == (count, blocks, block * bits // 8))
    need(call[2].size == count * blocks and not call.has(3) and not call.has(4))
    need(not call.has(5) or call[5].shape == (count,))
    shape = (*call[0].shape[:-1], count)
    return Found([Tensor(shape)], math.prod(shape) * width)


def integer_product(call: Call) -> Found:
    """MatMulIntegerToFloat with one scale for the left, and one or one per column for the right."""
    call.only(5)
    found = matmul(Call(call.node, [call[0], call[1]]))
    columns = call[1].shape[-1]
    need(call[2].size == 1 and call[3].size in (1, columns) and call[4].size == 1)
    return found


def attention(call: Call) -> Found:
    """GroupQueryAttention; which inputs it takes is in the contract."""
    heads = call.setting("num_heads", 0)
    packed, past = call[0].shape, call[3].shape
    need(call.setting("kv_num_heads", 0) == heads > 0 and call.setting("do_rotary", 0) == 0)
    need(len(packed) == 3 and len(past) == 4 and past[:2] == (packed[0], heads))
    width = heads * past[3]
    need(packed[2] == 3 * width and call[4].shape == past and call[5].size == packed[0])
    for index in (12, 13):
        need(not call.has(index) or call[index].size == width)
    work = packed[0] * packed[1] * past[2] * width * 2
    return Found([Tensor((packed[0], packed[1], width)), Tensor(past), Tensor(past)], work)


def norm(call: Call) -> Tensor:
    call.only(2, 3)
    shape = call[0].shape
    need(call.axis(len(shape), -1) == len(shape) - 1)
    need(all(call[index].shape == shape[-1:] for index in range(1, len(call.inputs))))
    return Tensor(shape)


def gather(call: Call) -> Tensor:
    call.only(2)
    data, indices = call[0], call[1]
    axis = call.axis(len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if indices.value is None:
        return Tensor(shape)
    places = indices.value
    need(bool(((places >= -data.shape[axis]) & (places < data.shape[axis])).all()), "an index is out of range")
    return Tensor(shape, None if data.value is None else np.take(data.value, places, axis))


def gather_blocks(call: Call) -> Tensor:
    """GatherBlockQuantized: rows of codes [V, bytes], with a scale for each block of a row."""
    call.only(3)
    bits, block = call.setting("bits", 4), call.setting("block_size", 128)
    need(bits in (4, 8) and block in (16, 32, 64, 128, 256))
    need(call.setting("gather_axis", 0) == 0 and call.setting("quantize_axis", 1) == 1)
    rows, scales = call[0].shape, call[2].shape
    need(len(rows) == len(scales) == 2 and rows[0] == scales[0])
    width = rows[1] * 8 // bits
    need(scales[1] == -(-width // block))
    return Tensor((*call[1].shape, width))


def gather_elements(call: Call) -> Tensor:
    call.only(2)
    data, indices = call[0].shape, call[1].shape
    axis = call.axis(len(data))
    need(len(data) == len(indices))
    need(all(few <= many for n, (few, many) in enumerate(zip(indices, data, strict=True)) if n != axis))
    return Tensor(indices)


def gather_rows(call: Call) -> Tensor:
    """GatherND."""
    call.only(2)
    data, indices = call[0].shape, call[1].shape
    alike = call.setting("batch_dims", 0)
    need(0 <= alike < len(indices) and data[:alike] == indices[:alike])
    need(0 < indices[-1] <= len(data) - alike)
    return Tensor((*indices[:-1], *data[alike + indices[-1] :]))


def scatter_rows(call: Call) -> Tensor:
    """ScatterND."""
    call.only(3)
    data, indices = call[0].shape, call[1].shape
    need(bool(indices) and 0 < indices[-1] <= len(data))
    need(call[2].shape == (*indices[:-1], *data[indices[-1] :]))
    return Tensor(data)


def scatter_elements(call: Call) -> Tensor:
    call.only(3)
    call.axis(len(call[0].shape))
    need(call[1].shape == call[2].shape and len(call[1].shape) == len(call[0].shape))
    return Tensor(call[0].shape)


def scatter_into_cache(call: Call) -> Tensor:
    """TensorScatter of new keys or values [B, H, S, D] into [B, H, capacity, D], at a place for each of B."""
    call.only(3)
    data, new = call[0].shape, call[1].shape
    need(len(data) == len(new) == 4 and data[:2] == new[:2] and data[3] == new[3] and new[2] <= data[2])
    need(call.axis(4, -2) == 2 and call[2].shape == data[:1])
    return Tensor(data)


def reshape(call: Call) -> Tensor:
    call.only(2)
    data, asked = call[0], call.numbers(1)
    zero = call.setting("allowzero", 0)
    shape = [data.shape[n] if size == 0 and not zero else size for n, size in enumerate(asked)]
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        need(rest > 0 and data.size % rest == 0)
        shape[shape.index(-1)] = data.size // rest
    need(all(size >= 0 for size in shape) and math.prod(shape) == data.size)
    return Tensor(tuple(shape), None if data.value is None else data.value.reshape(shape))


def flatten(call: Call) -> Tensor:
    call.only(1)
    shape, axis = call[0].shape, call.setting("axis", 1)
    need(0 <= axis <= len(shape))
    return Tensor((math.prod(shape[:axis]), math.prod(shape[axis:])))


def transpose(call: Call) -> Tensor:
    call.only(1)
    shape = call[0].shape
    order = call.setting("perm", list(range(len(shape)))[::-1])
    need(sorted(order) == list(range(len(shape))))
    return Tensor(tuple(shape[axis] for axis in order))


def unsqueeze(call: Call) -> Tensor:
    call.only(2)
    rank = len(call[0].shape) + len(call.numbers(1))
    axes = {axis_of(axis, rank) for axis in call.numbers(1)}
    need(len(axes) == len(call.numbers(1)))
    sizes = iter(call[0].shape)
    shape = tuple(1 if axis in axes else next(sizes) for axis in range(rank))
    return Tensor(shape, None if call[0].value is None else call[0].value.reshape(shape))


def squeeze(call: Call) -> Tensor:
    call.only(1, 2)
    rank = len(call[0].shape)
    every = [axis for axis, size in enumerate(call[0].shape) if size == 1]
    axes = {axis_of(axis, rank) for axis in (call.numbers(1) if call.has(1) else every)}
    need(all(call[0].shape[axis] == 1 for axis in axes))
    shape = tuple(size for axis, size in enumerate(call[0].shape) if axis not in axes)
    return Tensor(shape, None if call[0].value is None else call[0].value.reshape(shape))


def concat(call: Call) -> Tensor:
    given = [call[index] for index in range(len(call.inputs))]
    first = given[0].shape
    axis = call.axis(len(first))
    for tensor in given:
        need(len(tensor.shape) == len(first))
        need(all(a == b for n, (a, b) in enumerate(zip(tensor.shape, first, strict=True)) if n != axis))
    shape = (*first[:axis], sum(tensor.shape[axis] for tensor in given), *first[axis + 1 :])
    values = [tensor.value for tensor in given]
    known = math.prod(shape) <= SMALL and all(value is not None for value in values)
    return Tensor(shape, np.concatenate([v for v in values if v is not None], axis) if known else None)


def split(call: Call) -> Found:
    call.only(1, 2)
    shape, count = call[0].shape, len(call.node.outputs)
    axis = call.axis(len(shape))
    each_part = -(-shape[axis] // count)
    even = [min(each_part, max(0, shape[axis] - n * each_part)) for n in range(count)]
    sizes = call.numbers(1) if call.has(1) else even
    need(len(sizes) == count == call.setting("num_outputs", count))
    need(sum(sizes) == shape[axis] and min(sizes) >= 0)
    return Found([Tensor((*shape[:axis], size, *shape[axis + 1 :])) for size in sizes])


def slice_of(call: Call) -> Tensor:
    call.only(3, 4, 5)
    data, starts, ends = call[0], call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if call.has(3) else list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    need(len(starts) == len(ends) == len(axes) == len(steps) and 0 not in steps)
    parts = [slice(None)] * len(data.shape)
    for axis, *part in zip(axes, starts, ends, steps, strict=True):
        parts[axis_of(axis, len(parts))] = slice(*part)
    shape = tuple(len(range(*part.indices(size))) for part, size in zip(parts, data.shape, strict=True))
    return Tensor(shape, None if data.value is None else data.value[tuple(parts)])


def shape_of(call: Call) -> Tensor:
    call.only(1)
    shape = call[0].shape[slice(call.setting("start", 0), call.setting("end"))]
    return Tensor((len(shape),), np.array(shape, np.int64))


def expand(call: Call) -> Tensor:
    call.only(2)
    asked = tuple(call.numbers(1))
    need(all(size >= 0 for size in asked) and len(asked) <= 8)
    shape = broadcast(call[0].shape, asked)
    known = call[0].value is not None and math.prod(shape) <= SMALL
    return Tensor(shape, np.broadcast_to(call[0].value, shape) if known and call[0].value is not None else None)


def filled(call: Call) -> Tensor:
    """ConstantOfShape."""
    call.only(1)
    shape, fill = tuple(call.numbers(0)), call.setting("value")
    need(all(size >= 0 for size in shape) and len(shape) <= 8)
    need(fill is None or (isinstance(fill, Constant) and fill.value is not None and fill.value.size == 1))
    value = np.float32(0) if fill is None else fill.value.ravel()[0]
    return Tensor(shape, np.full(shape, value) if math.prod(shape) <= SMALL else None)


def ranged(call: Call) -> Tensor:
    call.only(3)
    (start,), (limit,), (step,) = (call.numbers(index) for index in range(3))
    need(step != 0)
    counted = range(start, limit, step)
    return Tensor((len(counted),), np.array(counted, np.int64) if len(counted) <= SMALL else None)


def constant(call: Call) -> Tensor:
    call.only(0)
    found = call.setting("value")
    need(isinstance(found, Constant) and found.location is None)
    return Tensor(found.shape, found.value)


def reduced(call: Call) -> Tensor:
    call.only(1, 2)
    rank = len(call[0].shape)
    axes = {axis_of(axis, rank) for axis in call.numbers(1)} if call.has(1) else set(range(rank))
    return Tensor(tuple(1 if axis in axes else size for axis, size in enumerate(call[0].shape)))


def arg_reduced(call: Call) -> Tensor:
    call.only(1)
    axis = call.axis(len(call[0].shape))
    kept = call.setting("keepdims", 1)
    return Tensor(tuple(1 if n == axis else size for n, size in enumerate(call[0].shape) if kept or n != axis))


def top(call: Call) -> Found:
    call.only(2)
    (count,) = call.numbers(1)
    shape = call[0].shape
    need(bool(shape) and 0 <= count <= shape[-1], f"its k is {count}, of {list(shape[-1:])}")
    found = Tensor((*shape[:-1], count))
    return Found([found, found], call[0].size * max(1, count).bit_length())


def nonzero(call: Call) -> Tensor:
    """As many places as there can be."""
    call.only(1)
    return Tensor((len(call[0].shape), call[0].size))


def quantize(call: Call) -> Tensor:
    call.only(3)
    shape, scales = call[0].shape, call[1].shape
    axis = call.axis(len(shape), 1)
    need(call[2].shape == scales and (scales == (shape[axis],) or call[1].size == 1))
    return Tensor(shape)


def where(condition: NDArray[Any], yes: NDArray[Any], no: NDArray[Any]) -> NDArray[Any]:
    return np.where(condition.astype(bool), yes, no)


def rules(apply: Callable[[Call], Found | Tensor], *names: str, settings: str = "") -> dict[str, Rule]:
    return {name: Rule(apply, frozenset(settings.split())) for name in names}


STANDARD: Mapping[str, Rule] = {
    **rules(same, "Abs", "Erf", "Neg", "Not", "Relu", "Round", "Sigmoid", "Sqrt", "Tanh"),
    **rules(same, "Softmax", "LogSoftmax", settings="axis"),
    **rules(passed, "Identity"),
    **rules(cast, "Cast", settings="to"),
    **rules(each(), "Pow", "BitwiseXor", "LessOrEqual", "Greater", "GreaterOrEqual"),
    **rules(each(operator.add), "Add"),
    **rules(each(operator.sub), "Sub"),
    **rules(each(operator.mul), "Mul"),
    **rules(each(divide), "Div"),
    **rules(each(np.equal), "Equal"),
    **rules(each(np.logical_and), "And"),
    **rules(each(lambda *given: np.minimum.reduce(np.broadcast_arrays(*given))), "Min"),
    **rules(each(lambda *given: np.maximum.reduce(np.broadcast_arrays(*given))), "Max"),
    **rules(each(where), "Where"),
    **rules(matmul, "MatMul"),
    **rules(gemm, "Gemm", settings="alpha beta transA transB"),
    **rules(norm, "LayerNormalization", settings="axis epsilon stash_type"),
    **rules(gather, "Gather", settings="axis"),
    **rules(gather_elements, "GatherElements", settings="axis"),
    **rules(gather_rows, "GatherND", settings="batch_dims"),
    **rules(scatter_rows, "ScatterND"),
    **rules(scatter_elements, "ScatterElements", settings="axis"),
    **rules(scatter_into_cache, "TensorScatter", settings="axis"),
    **rules(reshape, "Reshape", settings="allowzero"),
    **rules(flatten, "Flatten", settings="axis"),
    **rules(transpose, "Transpose", settings="perm"),
    **rules(unsqueeze, "Unsqueeze"),
    **rules(squeeze, "Squeeze"),
    **rules(concat, "Concat", settings="axis"),
    **rules(split, "Split", settings="axis num_outputs"),
    **rules(slice_of, "Slice"),
    **rules(shape_of, "Shape", settings="start end"),
    **rules(expand, "Expand"),
    **rules(filled, "ConstantOfShape", settings="value"),
    **rules(ranged, "Range"),
    **rules(constant, "Constant", settings="value"),
    **rules(reduced, "ReduceMax", "ReduceMin", "ReduceSum"),
    **rules(arg_reduced, "ArgMax", settings="axis keepdims"),
    **rules(top, "TopK", settings="largest"),
    **rules(nonzero, "NonZero"),
    **rules(quantize, "QuantizeLinear", settings="axis"),
}
OWN: Mapping[str, Rule] = {
    **rules(same, "FastGelu", "Gelu"),
    **rules(same, "QuickGelu", settings="alpha"),
    **rules(
        attention,
        "GroupQueryAttention",
        settings="num_heads kv_num_heads scale do_rotary k_quant_type v_quant_type kv_cache_bit_width",
    ),
    **rules(block_product, "MatMulNBits", settings="K N bits block_size accuracy_level"),
    **rules(gather_blocks, "GatherBlockQuantized", settings="bits block_size gather_axis quantize_axis"),
    **rules(integer_product, "MatMulIntegerToFloat"),
}
RULES: Mapping[str, Mapping[str, Rule]] = {"": STANDARD, MICROSOFT: OWN}
