"""What a search found, as the message that its job shows."""

from google.protobuf.duration_pb2 import Duration

from maas.compression.v1 import search_pb2 as messages
from maas_compression.limits import LimitCheck, Limits
from maas_compression.searching.ranking import pareto_front
from maas_compression.searching.search import Answer, Found, figures_text
from maas_compression.searching.trials import Figures, Record, TrialState

_STATES = {
    TrialState.MEASURED: messages.SEARCH_TRIAL_STATE_MEASURED,
    TrialState.STOPPED: messages.SEARCH_TRIAL_STATE_STOPPED,
    TrialState.FAILED: messages.SEARCH_TRIAL_STATE_FAILED,
}


def found_to_proto(found: Found, limits: Limits) -> messages.SearchReport:
    """Return everything that a search came to."""
    front = pareto_front(found.records)
    return messages.SearchReport(
        source=_figures_to_proto(found.source),
        trials=[
            messages.SearchTrial(
                number=record.number,
                recipe=record.recipe,
                state=_STATES[record.outcome.state],
                reason=record.outcome.reason,
                figures=_figures_to_proto(record.outcome.figures),
                broken_limits=map(_check_to_proto, limits.failures(record.outcome.figures.limited)),
                is_pareto=record.number in front,
                duration=_duration(record.seconds),
            )
            for record in found.records
        ],
        answer=_answer_to_proto(found.answer, found.records),
        duration=_duration(found.seconds),
    )


def verdict(answer: Answer, records: tuple[Record, ...]) -> str:
    """Say what a search came to, in one sentence."""
    tried = f"{len(records)} recipes were tried"
    if answer.record is None:
        reasons = [record.outcome.reason for record in records if record.outcome.reason]
        return f"No recipe made a package; {tried}" + (f", the first ended so: {reasons[0]}." if reasons else ".")
    recipe = ", ".join(answer.record.recipe)
    figures = figures_text(answer.record.outcome.figures).removesuffix(": ")
    judged = "" if answer.judged < 2 else f"; {answer.judged} packages were judged on the split test before it"
    if answer.meets_limits:
        return f"{recipe} keeps to all limits: {figures} ({tried}{judged})."
    assert answer.judgement is not None
    return f"No recipe keeps to all limits ({tried}{judged}). The best was {recipe}: {answer.judgement.refusal}."


def _answer_to_proto(answer: Answer, records: tuple[Record, ...]) -> messages.SearchAnswer:
    return messages.SearchAnswer(
        meets_limits=answer.meets_limits,
        trial=answer.record.number if answer.record else 0,
        recipe=answer.record.recipe if answer.record else (),
        broken_limits=map(_check_to_proto, answer.judgement.failures if answer.judgement else ()),
        judged_count=answer.judged,
        verdict=verdict(answer, records),
    )


def _figures_to_proto(figures: Figures) -> messages.SearchFigures:
    return messages.SearchFigures(
        size_bytes=figures.size_bytes,
        latency_p50_ms=_milliseconds(figures.p50_seconds),
        latency_p99_ms=_milliseconds(figures.p99_seconds),
        throughput_rows=figures.rows_per_second,
        peak_memory_bytes=figures.peak_memory_bytes,
        metric=figures.metric,
        quality=figures.quality,
        quality_loss=figures.quality_loss,
        row_count=figures.rows,
        engine=figures.engine,
    )


def _check_to_proto(check: LimitCheck) -> messages.BrokenLimit:
    return messages.BrokenLimit(limit=check.limit, wanted=check.wanted, found=check.found, sentence=check.sentence)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
