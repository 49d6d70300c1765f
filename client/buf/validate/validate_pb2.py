"""buf.validate for stubs of google.protobuf, made from the descriptor that protovalidate carries.

The generated stubs import this module only so that the descriptor of their options is known.
"""

from google.protobuf import (  # noqa: F401  (they put what validate.proto imports into the pool)
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    timestamp_pb2,
)
from protovalidate._gen.buf.validate import validate_pb

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(validate_pb.desc().proto.to_binary())  # type: ignore[no-untyped-call]
