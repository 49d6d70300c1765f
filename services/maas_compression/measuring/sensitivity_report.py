"""What each layer loses, as a message."""

from google.protobuf.duration_pb2 import Duration

from maas.compression.v1 import sensitivity_pb2 as messages
from maas_compression.measuring.sensitivity import LayerLoss, Sensitivity


def sensitivity_to_proto(found: Sensitivity, seconds: float) -> messages.SensitivityReport:
    """Return the message; `seconds` is how long it took."""
    work_duration = Duration()
    work_duration.FromNanoseconds(round(seconds * 1e9))
    return messages.SensitivityReport(
        bits=found.bits,
        metric=found.metric,
        row_count=found.rows,
        layers=map(_layer_to_proto, found.layers),
        all_layers=_layer_to_proto(found.all_layers),
        fewest_to_keep=found.fewest_to_keep,
        work_duration=work_duration,
    )


def summary(found: Sensitivity) -> str:
    """Say in one sentence what was found."""
    worst, together = found.layers[0], found.all_layers
    text = (
        f"with {found.bits} bits all {len(found.layers)} layers lose {together.quality_loss:.4f} of {found.metric} on "
        f"{found.rows} rows, {together.agreement:.2%} same answers; {worst.layer} loses most"
    )
    if found.fewest_to_keep is None:
        return text
    return f"{text}; {found.fewest_to_keep} have to stay as they are"


def _layer_to_proto(layer: LayerLoss) -> messages.LayerSensitivity:
    return messages.LayerSensitivity(
        layer=layer.layer,
        operator=layer.operator,
        weight_count=layer.weights,
        error=layer.error,
        quality_loss=layer.quality_loss,
        agreement=layer.agreement,
    )
