"""What models come in from elsewhere, and go out as; `maas_formats` reads and writes them."""

from enum import StrEnum


class SourceKind(StrEnum):
    """What `maas models import` takes."""

    ONNX = "onnx"
    HUGGING_FACE = "hugging-face"
    SAVED_MODEL = "saved-model"
    OCI = "oci"
    PACKAGE = "package"


class TargetFormat(StrEnum):
    """What `maas models export` writes."""

    PACKAGE = "package"
    ONNX = "onnx"
    TRITON = "triton"
    OCI = "oci"
