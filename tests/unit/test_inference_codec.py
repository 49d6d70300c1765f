"""Bytes to values and back: datatypes, worker frames, gRPC frames and headers."""

import contextlib
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest
from maas_inference.datatypes import ELEMENT_SIZES, join_elements, pack, split_elements, unpack
from maas_inference.front.failures import CompressedFlagWrong, EncodingUnsupported, FrameInvalid
from maas_inference.front.grpc_infer import decode_request, frame, parse_timeout
from maas_inference.wire import Batch, FrameMalformed, FrameReader, TensorHeader, decode_batch, frame_head


@given(st.lists(st.binary(max_size=20)))
def test_elements_of_a_bytes_tensor_come_back(elements: list[bytes]) -> None:
    assert split_elements(join_elements(elements)) == elements


@given(st.binary(max_size=40))
def test_a_raw_bytes_tensor_is_split_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert join_elements(split_elements(raw)) == raw


@pytest.mark.parametrize("datatype", ELEMENT_SIZES)
def test_numbers_of_each_datatype_come_back(datatype: str) -> None:
    values = [True, False] if datatype == "BOOL" else [0, 1, 100]
    raw = pack(datatype, values)
    assert len(raw) == len(values) * ELEMENT_SIZES[datatype]
    assert unpack(datatype, raw) == values


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("UINT8", -1), ("INT64", 2**63), ("INT64", 1.5), ("BOOL", 1), ("FP32", "1"), ("FP16", 1e6)],
)
def test_a_value_that_does_not_fit_its_datatype_is_refused(datatype: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"BOOL takes|is no"):
        pack(datatype, [value])


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.binary(max_size=50)), max_size=5),
    st.integers(1, 30),
)
def test_frames_come_back_however_the_stream_is_cut(frames: list[tuple[list[int], bytes]], cut: int) -> None:
    sent = [
        (Batch(number, tuple(rows), (TensorHeader("x", "BYTES", (len(payload),), len(payload)),)), payload)
        for number, (rows, payload) in enumerate(frames)
    ]
    stream = b"".join(frame_head(batch) + payload for batch, payload in sent)
    reader = FrameReader()
    received = []
    for begin in range(0, len(stream), cut):
        received += [
            (decode_batch(header), bytes(payload)) for header, payload in reader.feed(stream[begin : begin + cut])
        ]
    assert received == sent


def test_a_frame_of_absurd_length_ends_the_connection() -> None:
    with pytest.raises(FrameMalformed):
        list(FrameReader().feed(b"\xff" * 8))


@pytest.mark.parametrize(
    ("header", "seconds"), [(b"1S", 1), (b"250m", 0.25), (b"2H", 3600), (b"5u", 5e-6), (b"99999999n", 0.099999999)]
)
def test_a_grpc_timeout_is_seconds_and_at_most_an_hour(header: bytes, seconds: float) -> None:
    assert parse_timeout(header) == pytest.approx(seconds)


@given(st.binary(max_size=12))
def test_any_other_timeout_is_refused(header: bytes) -> None:
    with contextlib.suppress(FrameInvalid):
        assert 0 <= parse_timeout(header) <= 3600


def test_a_compressed_message_is_read_and_an_unknown_compression_refused() -> None:
    message = ModelInferRequest(model_name="reviews").SerializeToString()
    body = bytearray(frame(gzip.compress(message)))
    body[0] = 1
    assert decode_request(bytes(body), b"gzip").model_name == "reviews"
    with pytest.raises(EncodingUnsupported):
        decode_request(bytes(body), b"snappy")
    with pytest.raises(FrameInvalid):
        decode_request(bytes(body[:-3]), b"gzip")
    for without in (b"", b"identity"):
        with pytest.raises(CompressedFlagWrong):
            decode_request(bytes(body), without)


@given(st.binary(max_size=60), st.sampled_from([b"", b"gzip", b"deflate", b"br"]))
def test_any_bytes_are_a_message_or_refused(body: bytes, encoding: bytes) -> None:
    for candidate in (body, frame(body), b"\1" + frame(body)[1:]):
        with contextlib.suppress(FrameInvalid, EncodingUnsupported, CompressedFlagWrong):
            assert isinstance(decode_request(candidate, encoding), ModelInferRequest)
