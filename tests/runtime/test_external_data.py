"""The walk over a graph's bytes: every place of onnx.proto that can hold a tensor, and bytes that are no graph.

What a graph names is read from the same bytes by ONNX Runtime's own protobuf parser. Where the two read them
differently, a graph could show one file here and open another there.
"""

import pytest

from runtime import BundleError
from runtime.bundle.external_data import external_data_locations


@pytest.fixture
def locations(tmp_path):
    """Write bytes to a file and walk them."""

    def walk(content):
        (tmp_path / "graph.onnx").write_bytes(content)
        return external_data_locations(tmp_path / "graph.onnx")

    return walk


@pytest.fixture
def assert_refused(locations, refusal):
    """These bytes are no ONNX graph, and the one line says which file it is."""

    def check(content):
        message = refusal(BundleError, locations, content)
        assert "graph.onnx" in message
        assert "ONNX" in message

    return check


def nest(payload, wire, *numbers):
    """The payload inside fields of these numbers, the innermost first."""
    for number in numbers:
        payload = wire.field(number, payload)
    return payload


# field numbers of onnx.proto, from the tensor outwards to the model
PLACES = {
    "initializer": (5, 7),
    "node attribute t": (5, 5, 1, 7),
    "node attribute tensors": (10, 5, 1, 7),
    "sparse initializer's values": (1, 15, 7),
    "sparse initializer's indices": (2, 15, 7),
    "node attribute sparse_tensor": (1, 22, 5, 1, 7),
    "node attribute sparse_tensors": (2, 23, 5, 1, 7),
    "initializer of a graph in a node attribute g": (5, 6, 5, 1, 7),
    "initializer of a graph in a node attribute graphs": (5, 11, 5, 1, 7),
    "attribute of a node in a graph in a node": (5, 5, 1, 6, 5, 1, 7),
    "node of a function": (5, 5, 7, 25),
    "default attribute of a function": (5, 11, 25),
    "initializer of a graph in a node of a function": (5, 6, 5, 7, 25),
    "initialization graph of the training": (5, 1, 20),
    "algorithm graph of the training": (5, 2, 20),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_external_tensor_is_found_as(place, wire, locations):
    assert locations(nest(wire.stored_in("weights.bin"), wire, *PLACES[place])) == {"weights.bin"}


def test_every_location_is_found_once(wire, locations):
    tensors = [wire.stored_in(name) for name in ("a", "b", "a", "../c")]
    graph = b"".join(wire.field(5, tensor) for tensor in tensors)
    assert locations(wire.model(graph)) == {"a", "b", "../c"}


def test_a_graph_that_comes_in_two_pieces_is_read_whole(wire, locations):
    pieces = [wire.field(7, wire.field(5, wire.stored_in(name))) for name in ("a", "b")]
    assert locations(b"".join(pieces)) == {"a", "b"}


def test_only_the_location_is_a_location(wire, locations):
    tensor = wire.tensor(wire.entry("offset", "4096"), wire.entry("location", "w"), wire.entry("length", "8"))
    assert locations(wire.model(wire.field(5, tensor))) == {"w"}


def test_a_value_may_come_before_its_key(wire, locations):
    entry = wire.field(2, b"w") + wire.field(1, b"location")
    assert locations(wire.model(wire.field(5, wire.tensor(entry)))) == {"w"}


def test_the_last_of_two_values_counts(wire, locations):
    entry = wire.entry("location", "first") + wire.field(2, b"last")
    assert locations(wire.model(wire.field(5, wire.tensor(entry)))) == {"last"}


def test_a_graph_with_its_weights_inside_reads_no_file(wire, locations):
    assert locations(wire.model(wire.field(5, wire.tensor()))) == set()


def test_fields_that_are_not_known_are_passed_over(wire, locations):
    unknown = [
        wire.integer(1000, 2**64 - 1),
        wire.tag(1001, 1) + b"8 bytes.",
        wire.field(1002, b"\xff\xff not a message"),
        wire.tag(1003, 5) + b"4 by",
    ]
    initializer = wire.field(5, wire.stored_in("w"))
    for field in unknown:
        assert locations(field + wire.model(field + initializer + field) + field) == {"w"}


@pytest.mark.parametrize(
    "fixed", ["key as 8 bytes", "value as 8 bytes", "key as 4 bytes", "value as 4 bytes"], ids=lambda name: name
)
def test_a_known_number_of_another_wire_type_is_an_unknown_field(fixed, wire, locations):
    """Protobuf passes over it; taken for a string it would hide the location that ONNX Runtime opens."""
    field = {
        "key as 8 bytes": wire.tag(1, 1) + b"checksum",
        "value as 8 bytes": wire.tag(2, 1) + b"harmless",
        "key as 4 bytes": wire.tag(1, 5) + b"hash",
        "value as 4 bytes": wire.tag(2, 5) + b"fine",
    }[fixed]
    entry = wire.entry("location", "../secret") + field
    try:
        found = locations(wire.model(wire.field(5, wire.tensor(entry))))
    except BundleError:
        return  # to refuse such a graph is as good
    assert found == {"../secret"}


@pytest.mark.parametrize("number", [1, 2, 13], ids=["key", "value", "entry"])
def test_a_tag_beyond_32_bits_does_not_hide_a_location(number, wire, locations):
    """Protobuf's C++ parser drops the bits above 32 and so reads the field; a walk that keeps them would not."""
    overflowing = wire.varint(1 << 32 | number << 3 | 2)

    def field(n, payload):
        return (overflowing if n == number else wire.tag(n, 2)) + wire.varint(len(payload)) + payload

    entry = field(1, b"location") + field(2, b"../secret")
    tensor = wire.integer(1, 2) + wire.integer(2, 1) + field(13, entry)
    try:
        found = locations(wire.model(wire.field(5, tensor)))
    except BundleError:
        return  # to refuse such a graph is as good
    assert found == {"../secret"}


def test_nested_graphs_are_walked_to_some_depth(wire, locations):
    graph = wire.field(5, wire.stored_in("w"))
    for _ in range(20):
        graph = nest(graph, wire, 6, 5, 1)
    assert locations(wire.model(graph)) == {"w"}


def test_nesting_without_an_end_is_refused(wire, assert_refused):
    graph = wire.field(5, wire.stored_in("w"))
    for _ in range(3000):
        graph = nest(graph, wire, 6, 5, 1)
    assert_refused(wire.model(graph))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80",  # a tag that goes on
        b"\x08\x80\x80",  # a number that goes on
        b"\x3a\xff",  # a length that goes on
        b"\x3a",  # no length
        b"\x3a\x05abc",  # 5 bytes promised, 3 there
        b"\x3a\xff\xff\xff\xff\x0fabc",  # 4 GiB promised
        b"\x09\x00\x00",  # 8 bytes of a fixed64, 2 there
        b"\x0d\x00\x00",  # 4 bytes of a fixed32, 2 there
        b"\x0b\x0c",  # a group
        b"\x0e",  # wire types that do not exist
        b"\x0f",
        b"this is no graph",
    ],
    ids=repr,
)
def test_bytes_that_are_no_protobuf_are_refused(content, assert_refused):
    assert_refused(content)


def test_a_whole_model_cut_anywhere_inside_its_tensor_is_refused(wire, assert_refused):
    model = nest(wire.stored_in("weights.bin"), wire, 5, 7)
    for end in range(1, len(model)):
        assert_refused(model[:end])


def test_a_length_that_runs_out_of_its_message_is_refused(wire, assert_refused):
    tensor = wire.tag(13, 2) + wire.varint(40) + wire.entry("location", "w")
    assert_refused(wire.model(wire.field(5, tensor)) + b"\x12" + wire.varint(60) + bytes(60))


@pytest.mark.parametrize("zeros", [10, 100])
def test_a_number_of_more_than_ten_bytes_is_refused(zeros, assert_refused):
    """Protobuf allows ten. With no limit, megabytes of 0xFF take hours: each byte adds to an ever longer number."""
    assert_refused(b"\x08" + b"\x80" * zeros + b"\x00")


def test_a_location_that_is_no_text_is_refused(wire, assert_refused):
    entry = wire.field(1, b"location") + wire.field(2, b"\xff\xfe")
    assert_refused(wire.model(wire.field(5, wire.tensor(entry))))


def test_a_location_without_a_value_is_refused(wire, assert_refused):
    assert_refused(wire.model(wire.field(5, wire.tensor(wire.field(1, b"location")))))


def test_the_bundles_own_graphs_read_one_weights_file_and_the_shortlist(bundle):
    assert external_data_locations(bundle / "onnx" / "model.onnx") == {"model.onnx_data"}
    assert external_data_locations(bundle / "onnx" / "decode.onnx") == {"model.onnx_data", "decode.onnx_data"}
