"""Pages of metrics of several processes as one page: each sample tells its process, each family is there once.

Works on the text format, version 0.0.4, and never on numbers, so that a page comes out as exactly as it went in.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from maas_runtime.failures import DataCorrupt

_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?P<labels>(?:\s*[a-zA-Z_][a-zA-Z0-9_]*\s*=\s*"(?:[^"\\]|\\.)*"\s*,?)*)\s*\})?'
    r"\s+(?P<value>\S+)(?P<time>\s+-?\d+)?\s*"
)
_OWN_PROCESS_LABEL = re.compile(r'(^|,)\s*process\s*=(?=\s*")')
_SUFFIXES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


class ExpositionInvalid(DataCorrupt):
    """A page of metrics is not in the text format."""

    reason = "EXPOSITION_INVALID"


@dataclass(slots=True)
class Family:
    """One metric of one or more processes."""

    name: str
    kind: str = "untyped"
    help: str = ""
    samples: list[str] = field(default_factory=list)


def parse(page: str, process: str) -> list[Family]:
    """Return a page's families in order, each sample with the label `process`. Raises ExpositionInvalid.

    A sample's own label of that name becomes `exported_process`, as Prometheus does it.
    """
    families: dict[str, Family] = {}
    current = Family("")

    def family(name: str) -> Family:
        return families.setdefault(name, Family(name))

    for number, line in enumerate(page.split("\n"), 1):
        if line.startswith(("# HELP ", "# TYPE ")):
            _, word, name, rest = (*line.split(" ", 3), "")[:4]
            current = family(name)
            if word == "HELP":
                current.help = rest
            else:
                current.kind = rest
        elif line and not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line)
            if sample is None:
                raise ExpositionInvalid(f"line {number} of the page is not a metric: {line[:80]!r}", name=process)
            if not _belongs(sample["name"], current):
                current = family(sample["name"])
            current.samples.append(_labelled(sample, process))
    return [found for found in families.values() if found.samples]


def merge(pages: Iterable[list[Family]]) -> str:
    """Return one page. Where processes disagree on a family's type, the first one's samples are kept."""
    merged: dict[str, Family] = {}
    for page in pages:
        for family in page:
            known = merged.setdefault(family.name, Family(family.name, family.kind, family.help))
            if known.kind == family.kind:
                known.samples += family.samples
    lines: list[str] = []
    for name in sorted(merged):
        family = merged[name]
        if family.help:
            lines.append(f"# HELP {name} {family.help}")
        lines += [f"# TYPE {name} {family.kind}", *family.samples]
    return "\n".join([*lines, ""])


def _belongs(sample: str, family: Family) -> bool:
    if sample == family.name:
        return True
    return sample.startswith(family.name) and sample[len(family.name) :] in _SUFFIXES.get(family.kind, ())


def _labelled(sample: re.Match[str], process: str) -> str:
    labels = _OWN_PROCESS_LABEL.sub(r"\1exported_process=", (sample["labels"] or "").strip().rstrip(","))
    all_labels = f'process="{process}"' + (f",{labels}" if labels else "")
    return f"{sample['name']}{{{all_labels}}} {sample['value']}{sample['time'] or ''}"
