"""Start before stop: which versions of a deployment are held, and which answer, while one set replaces another."""

from collections.abc import Callable
from dataclasses import dataclass

from maas.names import VersionName
from maas_inference.manager.desired import Targets, WeightedVersion


@dataclass(frozen=True, slots=True)
class Plan:
    """`held` is loaded and kept running; `answering` gets requests by its weights."""

    held: tuple[VersionName, ...]
    answering: Targets

    def weighted(self) -> Targets:
        """Return all held versions; one that does not answer yet has weight 0: it can be asked for by number."""
        weights = {target.version: target.weight for target in self.answering}
        return tuple(WeightedVersion(version, weights.get(version, 0)) for version in self.held)


def plan(wanted: Targets, answering: Targets, is_ready: Callable[[VersionName], bool]) -> Plan:
    """Return the next step from `answering` to `wanted`.

    The old versions go on answering until every wanted version with a weight is warm; then they are let go. With
    nothing to fall back on, the wanted versions answer as they become warm.
    """
    all_warm = all(is_ready(target.version) for target in wanted if target.weight > 0)
    if all_warm or not answering or _versions(answering) == _versions(wanted):
        return Plan(_versions(wanted), wanted)
    leaving = tuple(version for version in _versions(answering) if version not in _versions(wanted))
    return Plan((*_versions(wanted), *leaving), answering)


def _versions(targets: Targets) -> tuple[VersionName, ...]:
    return tuple(target.version for target in targets)
