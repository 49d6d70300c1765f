"""make bench-compression: each technique and the search on the review models, beside single tools and peers.

    python bench/compression.py --only tools,peers    # some rows; all without
    python bench/compression.py --again minilm-auto   # made anew, though an earlier run made it

What a row makes is kept in the bench's scratch folder. All forms of a model are measured in one run, turn by turn, one
thread each, the reviews of the split `test` sent as texts.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests" / "service"))  # servers of the tests

from compression_entrants import (
    Entrant,
    Failed,
    as_it_is,
    by_maas,
    by_tool,
    from_file,
    neural_compressor,
    nncf_accuracy_aware,
    nncf_int4,
    nncf_post_training,
    onnxruntime_dynamic,
)
from compression_kills import Kills, kill_searches
from compression_models import CompressionModels, prepare_models
from google.protobuf.duration_pb2 import Duration
from job_cluster import job_cluster
from report import FOLDER, add_arguments, machine, publish, say, table

from maas.compression.v1.compression_job_pb2 import CompressionJob, SearchSettings
from maas.compression.v1.compression_job_pb2 import Limits as LimitsMessage
from maas.names import DatasetVersionName, VersionName
from maas.registry.v1 import registry_service_pb2, version_pb2
from maas_compression.limits import Limits
from maas_compression.recipe import parse_recipe
from maas_compression.spec import CompressionSpec, RecipeWork, SearchWork
from maas_engine.host import has_bf16
from maas_engine.measure import Speed, compare_speed
from maas_engine.quality import evaluate

TORCH, EXPORTED, FP32 = "torch eager", "onnxruntime fp32, torch's export", "onnxruntime fp32"
LSTM_ALONE = "LSTM trained alone"
MAX_LOSS = 0.01
LSTM_SECONDS, AUTO_SECONDS, TRAINING_SECONDS = 5 * 60, 10 * 60, 40 * 60
"""What the searches get. The issue allows 15 minutes without training, an hour with it."""
DISTILLED = ['distill(student="lstm-text-classifier", epochs=6)', "int8"]
PRUNED = ["prune(structure=heads, share=0.2)", "prune(structure=channels, share=0.5, recovery_epochs=1)"]
STORED = ["vocabulary", "int4(group_size=64)"]
STORED_WITH_ALL_WORDS = ["int4(parts=matrices, group_size=128)", "codebook(parts=embeddings, bits=3)"]

KILLS = "kills"
_PEER_SECONDS = 300
_KILLS = 10
_TRIALS_OF_A_KILLED_SEARCH = 12
_LONGEST_TO_A_KILL_SECONDS = 20.0
_SECONDS = 8.0
_CALLS_PER_ROUND = 20
_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Measured:
    """One form of a model, measured."""

    entrant: Entrant
    accuracy: float
    p50_seconds: float
    batch_16: float
    batch_32: float


Sizes = dict[str, Measured]
"""By the entrants' names."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the issue asks of a row, what came out, and whether that is enough."""

    what: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One or more entrants of a model, and what they have to reach."""

    model: str
    make: Callable[[CompressionModels, Sizes], list[Entrant | Failed]]
    targets: Callable[[Sizes, str], list[Target]] | None = None


def main() -> None:
    """Make, measure, print, and with --write keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some of {','.join([*ROWS, KILLS])}; all when empty")
    parser.add_argument("--again", default="", help="rows to be made anew")
    add_arguments(parser)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else [*ROWS, KILLS]
    made = prepare_models()
    for name in filter(None, arguments.again.split(",")):
        for folder in (made.folder / "made").glob(f"{name}*"):
            shutil.rmtree(folder)
    texts, numbers = [], {}
    for model in ("lstm", "minilm"):
        rows = {name: row for name, row in ROWS.items() if row.model == model and name in chosen}
        if rows:
            text, found = bench_model(model, rows, made)
            texts.append(text)
            numbers[model] = found
            if arguments.write:
                plot(found, FOLDER / f"compression-{model}.png", model)
    if KILLS in chosen:
        kept = made.folder / "made" / KILLS / "found.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(asdict(kill_lstm_searches(made))))
        killed = Kills(**json.loads(kept.read_text()))
        texts.append(describe_kills(killed))
        numbers[KILLS] = asdict(killed)
    publish("compression", "\n\n".join(texts), numbers, arguments)


def bench_model(model: str, rows: dict[str, Row], made: CompressionModels) -> tuple[str, dict[str, object]]:
    """Make the rows' entrants and measure all of them together; return Markdown and the numbers."""
    source = getattr(made, model)
    base = [as_it_is(TORCH, source, "torch"), as_it_is(FP32, source, "onnxruntime")]
    if model == "minilm":
        base.append(from_file(EXPORTED, source, made.exported, "onnxruntime"))
    first = measure(base, made)
    found: dict[str, list[Entrant | Failed]] = {name: row.make(made, first) for name, row in rows.items()}
    entrants = [*base, *(one for one in itertools.chain(*found.values()) if isinstance(one, Entrant))]
    measured = measure(entrants, made)
    targets: list[tuple[str, Target]] = []
    for name, row in rows.items():
        if row.targets is None:
            continue
        reached = any(isinstance(one, Entrant) and one.seconds for one in found[name])
        asked = row.targets(measured, name) if reached else [Target("an answer", "none, see above", met=False)]
        targets += [(name, target) for target in asked]
    failed = [one for one in itertools.chain(*found.values()) if isinstance(one, Failed)]
    lines = [f"**{model}**", describe(measured, failed)]
    if targets:
        lines.append(
            table(
                ["row", "target", "measured", "met"],
                [[name, target.what, target.measured, "yes" if target.met else "**no**"] for name, target in targets],
            )
        )
    numbers = {
        "measured": {
            name: {key: value for key, value in asdict(one).items() if key != "entrant"}
            | {
                "size_bytes": one.entrant.size_bytes,
                "seconds": one.entrant.seconds,
                "note": one.entrant.note,
                "engine": one.entrant.servable.engine,
            }
            for name, one in measured.items()
        },
        "failed": [asdict(one) for one in failed],
        "targets": [{"row": name, **asdict(target)} for name, target in targets],
    }
    return "\n\n".join(lines), numbers


def measure(entrants: Sequence[Entrant], made: CompressionModels) -> Sizes:
    """Measure speed turn by turn, and the accuracy of each on `test`."""
    split = made.split("test")
    texts = split.first_texts()
    predictors = [entrant.open() for entrant in entrants]
    try:
        say(f"measuring {len(entrants)}")
        speeds: list[tuple[Speed, ...]] = [
            compare_speed(
                predictors,
                texts,
                rounds=_ROUNDS,
                calls_per_round=_CALLS_PER_ROUND,
                seconds=_SECONDS,
                batch_rows=batch_rows,
            )
            for batch_rows in (16, 32)
        ]
        qualities = [evaluate(one, ((part.texts, part.labels) for part in split.parts())) for one in predictors]
    finally:
        for predictor in predictors:
            predictor.close()
    return {
        entrant.name: Measured(
            entrant, quality.value, min(a.p50_seconds, b.p50_seconds), a.rows_per_second, b.rows_per_second
        )
        for entrant, quality, a, b in zip(entrants, qualities, *speeds, strict=True)
    }


def describe(measured: Sizes, failed: Sequence[Failed]) -> str:
    """Return the Markdown table of all forms of a model."""
    torch, fp32 = measured[TORCH], measured[FP32]
    head = [
        "",
        "accuracy",
        "p50, 1 sentence",
        "x torch / fp32",
        "batch 16",
        "batch 32",
        "x torch / fp32",
        "MB",
        "made in",
        "what",
    ]
    rows = [
        [
            name,
            f"{one.accuracy:.4f}",
            f"{one.p50_seconds * 1000:.2f} ms",
            f"{torch.p50_seconds / one.p50_seconds:.2f} / {fp32.p50_seconds / one.p50_seconds:.2f}",
            f"{one.batch_16:,.0f}/s",
            f"{one.batch_32:,.0f}/s",
            f"{one.batch_32 / torch.batch_32:.2f} / {one.batch_32 / fp32.batch_32:.2f}",
            f"{one.entrant.size_bytes / 1e6:.2f}",
            f"{one.entrant.seconds:,.0f} s" if one.entrant.seconds else "",
            one.entrant.note,
        ]
        for name, one in measured.items()
    ]
    rows += [[one.name, *[""] * (len(head) - 2), one.why] for one in failed]
    return table(head, rows)


def kill_lstm_searches(made: CompressionModels) -> Kills:
    """Kill the service or a trial at random moments of searches on the LSTM."""
    with job_cluster(["registry", "compression"]) as cluster:
        splits = {}
        for name in ("train", "validation", "test"):
            splits[name] = list(made.split(name).rows())
        data = cluster.push("reviews", splits)
        cluster.registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="lstm"), timeout=10)
        version = version_pb2.Version(files=cluster.push_package(made.lstm.folder), dataset_version=data)
        request = registry_service_pb2.CreateVersionRequest(parent="models/lstm", version=version)
        job = CompressionJob(
            source_version=cluster.registry.CreateVersion(request, timeout=30).name,
            search=SearchSettings(most_trials=_TRIALS_OF_A_KILLED_SEARCH, time_budget=Duration(seconds=AUTO_SECONDS)),
            limits=LimitsMessage(max_quality_loss=0.005),
        )
        return kill_searches(cluster, job, kills=_KILLS, longest=_LONGEST_TO_A_KILL_SECONDS, seed=1)


def describe_kills(found: Kills) -> str:
    """Return the Markdown table of what came of the kills."""
    victims = ", ".join(f"{name} {count} times" for name, count in sorted(found.by_victim.items()))
    head = ["killed at random moments", "searches", "ended trials seen before a kill", "run again", "without an answer"]
    row = [victims, str(found.jobs), str(found.finished_before), str(found.run_again), str(found.without_answer)]
    return "**kill -9 during a search (LSTM)**\n\n" + table(head, [row])


def plot(numbers: dict[str, object], path: Path, model: str) -> None:
    """Draw accuracy against rows/s, a dot's area being the size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = numbers["measured"]
    assert isinstance(found, dict)
    figure, axis = pyplot.subplots(figsize=(9, 5.5))
    for name, one in found.items():
        ours = name in ROWS
        size = 12 + 4 * one["size_bytes"] / 1e6
        axis.scatter(one["batch_32"], one["accuracy"], s=size, alpha=0.7, color="#1f6feb" if ours else "#9aa4b2")
        axis.annotate(name, (one["batch_32"], one["accuracy"]), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axis.set_xscale("log")
    axis.set_xlabel("rows/s in batches of 32, one thread")
    axis.set_ylabel("accuracy on test")
    axis.set_title(f"{model}: right and up is better, small dots are small files", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.005, f"{machine().partition(';')[0]}; make bench-compression", fontsize=6.5)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _tools(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    del measured
    source, file = made.minilm, made.exported
    no_bf16 = Failed("openvino bf16", "this processor does not compute in bf16")
    return [
        by_tool("onnxruntime dynamic int8", source, file, made, onnxruntime_dynamic(per_channel=False)),
        by_tool("onnxruntime dynamic int8, per channel", source, file, made, onnxruntime_dynamic(per_channel=True)),
        from_file("openvino fp32", source, file, "openvino"),
        *([] if has_bf16() else [no_bf16]),
        by_tool("NNCF post-training int8", source, file, made, nncf_post_training),
        by_tool("NNCF int4 weights", source, file, made, nncf_int4),
    ]


def _lstm_tools(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    del measured
    file = made.lstm.path(as_it_is(FP32, made.lstm, "onnxruntime").servable.path)
    return [by_tool("lstm onnxruntime dynamic int8", made.lstm, file, made, onnxruntime_dynamic(per_channel=False))]


def _peers(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    del measured
    source, file = made.minilm, made.exported
    return [
        by_tool("NNCF accuracy-aware", source, file, made, nncf_accuracy_aware(MAX_LOSS)),
        by_tool(
            "INC accuracy-aware, dynamic", source, file, made, neural_compressor("dynamic", MAX_LOSS, _PEER_SECONDS)
        ),
        by_tool("INC accuracy-aware, static", source, file, made, neural_compressor("static", MAX_LOSS, _PEER_SECONDS)),
    ]


def _lstm_auto(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    del measured
    work = SearchWork(time_budget_seconds=LSTM_SECONDS)
    return [by_maas("lstm-auto", made.lstm, made, _spec("lstm", work, Limits(max_quality_loss=0.005)))]


def _minilm_latency(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    limits = Limits(
        max_size_bytes=23_000_000, max_p50_seconds=measured[TORCH].p50_seconds / 6, max_quality_loss=MAX_LOSS
    )
    work = SearchWork(time_budget_seconds=AUTO_SECONDS)
    return [by_maas("minilm-auto-latency", made.minilm, made, _spec("minilm", work, limits))]


def _minilm_throughput(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    limits = Limits(min_throughput_rows=3.5 * measured[TORCH].batch_16, max_quality_loss=MAX_LOSS)
    work = SearchWork(time_budget_seconds=AUTO_SECONDS)
    return [by_maas("minilm-auto-throughput", made.minilm, made, _spec("minilm", work, limits))]


def _minilm_training(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    del measured
    work = SearchWork(time_budget_seconds=TRAINING_SECONDS, allow_training=True)
    fp32 = as_it_is(FP32, made.minilm, "onnxruntime")
    limits = Limits(max_size_bytes=fp32.size_bytes // 10, max_quality_loss=0.015)
    return [by_maas("minilm-auto-training", made.minilm, made, _spec("minilm", work, limits))]


def _distilled(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
    lstm = as_it_is(LSTM_ALONE, made.lstm, "onnxruntime")
    return [lstm, *_by_recipe("distilled", DISTILLED)(made, measured)]


def _by_recipe(name: str, recipe: Sequence[str]) -> Callable[[CompressionModels, Sizes], list[Entrant | Failed]]:
    def make(made: CompressionModels, measured: Sizes) -> list[Entrant | Failed]:
        del measured
        return [by_maas(name, made.minilm, made, _spec("minilm", RecipeWork(parse_recipe(recipe)), Limits()))]

    return make


def _spec(model: str, work: SearchWork | RecipeWork, limits: Limits) -> CompressionSpec:
    return CompressionSpec(
        VersionName(model, 1),
        work,
        limits,
        DatasetVersionName("reviews", 1),
        allow_no_gain=isinstance(work, RecipeWork),
    )


# What the issue asks of each row.


def _loss(measured: Sizes, name: str, most: float) -> Target:
    loss = measured[FP32].accuracy - measured[name].accuracy
    return Target(f"loss at most {most * 100:g} points", f"{loss * 100:.2f}", loss <= most + 1e-9)


def _ratio(what: str, least: float, value: float) -> Target:
    return Target(f"{what}: at least {least:g} x", f"{value:.2f} x", value >= least)


def _smaller(measured: Sizes, name: str, least: float) -> Target:
    return _ratio("smaller", least, measured[FP32].entrant.size_bytes / measured[name].entrant.size_bytes)


def _lstm_auto_targets(measured: Sizes, name: str) -> list[Target]:
    torch, ours = measured[TORCH], measured[name]
    return [
        _loss(measured, name, 0.005),
        _smaller(measured, name, 4),
        _ratio("faster than torch at batch 1", 3.5, torch.p50_seconds / ours.p50_seconds),
        _ratio("faster than torch at batch 32", 2.5, ours.batch_32 / torch.batch_32),
    ]


def _latency_targets(measured: Sizes, name: str) -> list[Target]:
    ours = measured[name]
    return [
        _loss(measured, name, MAX_LOSS),
        Target("at most 23 MB", f"{ours.entrant.size_bytes / 1e6:.2f} MB", ours.entrant.size_bytes <= 23_000_000),
        _ratio("p50 faster than torch", 6, measured[TORCH].p50_seconds / ours.p50_seconds),
        _within(ours, 15 * 60),
    ]


def _throughput_targets(measured: Sizes, name: str) -> list[Target]:
    ours = measured[name]
    return [
        _loss(measured, name, MAX_LOSS),
        _ratio("throughput of torch at batch 16", 3.5, ours.batch_16 / measured[TORCH].batch_16),
        _within(ours, 15 * 60),
    ]


def _training_targets(measured: Sizes, name: str) -> list[Target]:
    ours = measured[name]
    return [
        _loss(measured, name, 0.015),
        _smaller(measured, name, 10),
        _ratio("throughput of fp32 at batch 32", 8, ours.batch_32 / measured[FP32].batch_32),
        _within(ours, 60 * 60),
    ]


def _distilled_targets(measured: Sizes, name: str) -> list[Target]:
    gain = measured[name].accuracy - measured[LSTM_ALONE].accuracy
    return [
        Target("at least 3 points over the LSTM alone", f"{gain * 100:.2f}", gain >= 0.03 - 1e-9),
        _smaller(measured, name, 20),
    ]


def _pruned_targets(measured: Sizes, name: str) -> list[Target]:
    return [
        _loss(measured, name, 0.015),
        _ratio("throughput of fp32 at batch 32", 1.5, measured[name].batch_32 / measured[FP32].batch_32),
    ]


def _stored_targets(measured: Sizes, name: str) -> list[Target]:
    return [_loss(measured, name, MAX_LOSS), _smaller(measured, name, 8)]


def _peers_targets(measured: Sizes, name: str) -> list[Target]:
    """Say for each peer whether one of the search's answers is as small and as fast, and keeps to the same limit."""
    del name
    least = measured[FP32].accuracy - MAX_LOSS - 1e-9
    ours = [one for name, one in measured.items() if name.startswith("minilm-auto") and one.accuracy >= least]
    found = []
    for name, peer in measured.items():
        if "accuracy-aware" not in name:
            continue
        beats = [
            one
            for one in ours
            if one.entrant.size_bytes <= peer.entrant.size_bytes
            and one.p50_seconds <= peer.p50_seconds
            and one.batch_32 >= peer.batch_32
        ]
        best = max(beats or ours, key=lambda one: one.batch_32, default=None)
        measured_as = "no answer of ours was measured" if best is None else _beside(best, peer)
        found.append(Target(f"as small and as fast as {name}", measured_as, met=bool(beats)))
    return found


def _beside(ours: Measured, peer: Measured) -> str:
    return (
        f"{ours.entrant.name}: {ours.entrant.size_bytes / 1e6:.1f} MB beside {peer.entrant.size_bytes / 1e6:.1f}, "
        f"p50 {ours.p50_seconds * 1000:.2f} ms beside {peer.p50_seconds * 1000:.2f}, batch 32 {ours.batch_32:,.0f}/s "
        f"beside {peer.batch_32:,.0f}, accuracy {ours.accuracy:.4f} beside {peer.accuracy:.4f}"
    )


def _within(ours: Measured, seconds: float) -> Target:
    return Target(
        f"within {seconds / 60:g} minutes", f"{ours.entrant.seconds / 60:.1f}", ours.entrant.seconds <= seconds
    )


ROWS = {
    "lstm-tools": Row("lstm", _lstm_tools),
    "lstm-auto": Row("lstm", _lstm_auto, _lstm_auto_targets),
    "tools": Row("minilm", _tools),
    "peers": Row("minilm", _peers, _peers_targets),
    "minilm-auto-latency": Row("minilm", _minilm_latency, _latency_targets),
    "minilm-auto-throughput": Row("minilm", _minilm_throughput, _throughput_targets),
    "minilm-auto-training": Row("minilm", _minilm_training, _training_targets),
    "distilled": Row("minilm", _distilled, _distilled_targets),
    "pruned": Row("minilm", _by_recipe("pruned", PRUNED), _pruned_targets),
    "stored": Row("minilm", _by_recipe("stored", STORED), _stored_targets),
    "stored-all-words": Row("minilm", _by_recipe("stored-all-words", STORED_WITH_ALL_WORDS), _stored_targets),
}


if __name__ == "__main__":
    main()
