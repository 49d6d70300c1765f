"""The model table: what the manager tells each front to serve, as one whole value.

The manager sends a whole table after each change; a front never patches one. A version stays in the table while it
may be asked for; when it is gone from it, a front sends nothing new to its worker, answers what waits, and hangs up.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from maas_inference.counts import FrontCounts

FRONT_SOCKET = "front.sock"
"""The manager's socket for fronts, in the run folder."""

VersionState: TypeAlias = Literal["loading", "ready", "restarting", "failed", "unloaded"]
"""`unloaded`: it has no worker now, and gets one when somebody asks for it or loads it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; -1 in `shape` stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One version of a deployment and the worker that holds it."""

    version: str
    """The registry's number, as text."""
    model: str
    weight: int
    state: VersionState
    message: str = ""
    refusal: str = ""
    """Why no worker comes, whoever asks: a constant; `message` says it in a sentence. Empty: one is there or comes."""
    socket_path: str = ""
    """Where the worker listens; each start of a worker has a path of its own. Empty while there is none."""
    engine: str = ""
    precision: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    labels: tuple[str, ...] = ()
    task: str = "text-classification"
    """The package's: `tensors` have no meaning that could be spelled out."""
    rows_apart: bool = False
    """The rows of a request belong together, so it shares no batch."""
    text_input: str = ""
    """Name of the BYTES tensor that may be sent instead of the inputs; empty when text is not understood."""
    padded_input: str = ""
    """Name of the input [N, T] whose rows may be padded at their end with `padding_id`; empty when there is none."""
    padding_id: int = 0
    max_batch_rows: int = 32
    lanes: int = 1
    """How many batches the worker computes side by side."""
    cost_curve: tuple[tuple[int, float], ...] = ()
    """(rows, seconds) as the worker measured them at warm-up, by ascending rows."""

    @property
    def comes_when_asked(self) -> bool:
        """Whether it has no worker only because nobody asked for it lately."""
        return self.state == "unloaded" and not self.refusal

    @property
    def answers(self) -> bool:
        """Whether a request would be answered: it is warm, or is loaded when it is asked."""
        return self.state == "ready" or self.comes_when_asked

    @property
    def pads_rows(self) -> bool:
        """Whether rows of different lengths can share a batch: no output is as long as the longest of them."""
        return bool(self.padded_input) and all(-1 not in tensor.shape[1:] for tensor in self.outputs)

    @property
    def joins_rows(self) -> bool:
        """Whether requests can share a batch: every tensor's first dimension counts rows."""
        return not self.rows_apart and all(tensor.shape[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How requests to a deployment are queued, where its owner says so. 0 and None: the front decides."""

    max_batch_rows: int = 0
    max_queue_delay_seconds: float | None = None
    """The longest that rows are held back for a larger batch; 0: never."""
    max_queue_rows: int = 0
    cache_bytes: int = 0
    """How much of the front's memory answers may take that are given again to equal requests; 0: none are kept."""


@dataclass(frozen=True, slots=True)
class ServedDeployment:
    """A name that callers use, and the versions that answer under it."""

    deployment: str
    versions: tuple[ServedVersion, ...]
    settings: ServingSettings = ServingSettings()


@dataclass(frozen=True, slots=True)
class ModelTable:
    """All deployments of this replica. `revision` grows with each table that a manager sends."""

    revision: int = 0
    server_version: str = ""
    deployments: tuple[ServedDeployment, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionUse:
    """How a front uses a version."""

    deployment: str
    version: str
    idle_seconds: float = 0.0
    """Since somebody last waited for an answer of it; 0: somebody does now."""
    in_flight_seconds: float = 0.0
    """For how long the oldest batch has been with the worker."""
    waits_for_worker: bool = False
    """Whether somebody asked for it while it was unloaded."""


@dataclass(frozen=True, slots=True)
class FrontReport:
    """What a front tells the manager: the table it obeys, how it uses the versions, and what it has counted.

    `counts` is None where it is as in the report before.
    """

    revision: int
    uses: tuple[VersionUse, ...] = ()
    counts: FrontCounts | None = None
