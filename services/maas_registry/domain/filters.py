"""The language of `filter` and `order_by`: read once into a frozen value, then asked of each resource.

    filter     = term {AND term} | term {OR term}        both in one filter only with parentheses
    term       = [NOT] ( "(" filter ")" | comparison )
    comparison = field operator value                    state = ready, tags.team = "nlp", tags:team
    field      = name {"." name}
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    value      = "text" | number | word

What a resource does not have satisfies no comparison.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TypeAlias

from maas_runtime.failures import FieldViolation, InvalidInput

_MAX_COMPARISONS = 50
_MAX_DEPTH = 10
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<operator><=|>=|!=|=|<|>|:)
      | (?P<parenthesis>[()])
      | (?P<word>[A-Za-z0-9_+-][A-Za-z0-9_.+/@-]*)
    )""",
    re.VERBOSE,
)

Value: TypeAlias = str | float | datetime
ValueOf: TypeAlias = Callable[[str, str], Value | None]
"""Returns what a resource has in a field, and in a map under a key (else empty); None when it has none."""


class FilterInvalid(InvalidInput):
    """A filter cannot be understood; the message says where."""

    reason = "FILTER_INVALID"


class OrderInvalid(InvalidInput):
    """There is no such order."""

    reason = "ORDER_BY_INVALID"


class Kind(Enum):
    """What a field holds."""

    TEXT = "a text"
    NUMBER = "a number"
    TIME = "a time"
    TEXTS_BY_KEY = "texts by key"
    NUMBERS_BY_KEY = "numbers by key"


Fields: TypeAlias = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison. `key` is empty unless the field is a map."""

    field: str
    key: str
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class Not:
    """What the term does not say."""

    term: "Filter"


@dataclass(frozen=True, slots=True)
class All:
    """What all terms say; without terms, everything."""

    terms: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Any:
    """What at least one term says."""

    terms: "tuple[Filter, ...]"


Filter: TypeAlias = Comparison | Not | All | Any
EVERYTHING = All(())


@dataclass(frozen=True, slots=True)
class Order:
    """A field to order by."""

    field: str
    key: str = ""
    descending: bool = False


def parse_filter(text: str, fields: Fields) -> Filter:
    """Return the filter; an empty text lets everything through. Raises FilterInvalid."""
    return _Parser(text, fields).parse() if text.strip() else EVERYTHING


def parse_order(text: str, fields: Fields, default: Order) -> Order:
    """Return the order. Raises OrderInvalid."""
    words = text.split()
    if not words:
        return default
    found = _split_field(words[0], fields)
    if found is None or len(words) > 2 or words[1:] not in ([], ["desc"], ["asc"]):
        names = ", ".join(_shown_fields(fields))
        message = f"is none: write one of {names}, and desc behind it to turn it round"
        raise OrderInvalid(f"order_by {message}", violations=(FieldViolation("order_by", message),))
    return Order(*found, descending=words[1:] == ["desc"])


def matches(wanted: Filter, value_of: ValueOf) -> bool:
    """Whether a resource is one of those that the filter lets through."""
    match wanted:
        case Comparison():
            found = value_of(wanted.field, wanted.key)
            return found is not None and _compare(found, wanted.operator, wanted.value)
        case Not(term):
            return not matches(term, value_of)
        case All(terms):
            return all(matches(term, value_of) for term in terms)
        case Any(terms):
            return any(matches(term, value_of) for term in terms)


def required_texts(wanted: Filter) -> dict[str, str]:
    """Return texts that every resource has which the filter lets through, by field: a store may look for them alone."""
    terms = wanted.terms if isinstance(wanted, All) else (wanted,)
    return {
        term.field: term.value
        for term in terms
        if isinstance(term, Comparison) and term.operator == "=" and not term.key and isinstance(term.value, str)
    }


def _compare(found: Value, operator: str, wanted: Value) -> bool:
    if operator == ":":
        return isinstance(found, str) and isinstance(wanted, str) and wanted in found
    # The parser made the wanted value of the field's own kind.
    match operator:
        case "=":
            return found == wanted
        case "!=":
            return found != wanted
        case "<":
            return found < wanted  # type: ignore[operator]
        case "<=":
            return found <= wanted  # type: ignore[operator]
        case ">":
            return found > wanted  # type: ignore[operator]
        case _:
            return found >= wanted  # type: ignore[operator]


def _shown_fields(fields: Fields) -> list[str]:
    by_key = (Kind.TEXTS_BY_KEY, Kind.NUMBERS_BY_KEY)
    return [f"{name}.KEY" if kind in by_key else name for name, kind in fields.items()]


def _split_field(text: str, fields: Fields) -> tuple[str, str] | None:
    name, dot, key = text.partition(".")
    match fields.get(name):
        case None:
            return None
        case Kind.TEXTS_BY_KEY | Kind.NUMBERS_BY_KEY:
            return (name, key) if key else None
        case _:
            return None if dot else (name, "")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    def __init__(self, text: str, fields: Fields) -> None:
        self._text = text
        self._fields = fields
        self._tokens = self._split()
        self._next = 0
        self._comparisons = 0

    def parse(self) -> Filter:
        found = self._terms(0)
        if (token := self._peek()).kind != "end":
            raise self._wrong(token, "expected AND, OR or the end")
        return found

    def _terms(self, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            raise self._wrong(self._peek(), f"has parentheses deeper than {_MAX_DEPTH}")
        terms = [self._term(depth)]
        joined = ""
        while (token := self._peek()).text in ("AND", "OR"):
            if joined and token.text != joined:
                raise self._wrong(token, "mixes AND with OR: say with parentheses what belongs together")
            joined = self._take().text
            terms.append(self._term(depth))
        if len(terms) == 1:
            return terms[0]
        return Any(tuple(terms)) if joined == "OR" else All(tuple(terms))

    def _term(self, depth: int) -> Filter:
        if self._peek().text == "NOT":
            self._take()
            return Not(self._primary(depth))
        return self._primary(depth)

    def _primary(self, depth: int) -> Filter:
        if self._peek().text != "(":
            return self._comparison()
        self._take()
        found = self._terms(depth + 1)
        if (token := self._take()).text != ")":
            raise self._wrong(token, "expected )")
        return found

    def _comparison(self) -> Comparison:
        name = self._take()
        self._comparisons += 1
        if self._comparisons > _MAX_COMPARISONS:
            raise self._wrong(name, f"has more than {_MAX_COMPARISONS} comparisons")
        operator = self._take()
        if name.kind != "word" or operator.kind != "operator":
            wrong = name if name.kind != "word" else operator
            raise self._wrong(wrong, "expected FIELD OPERATOR VALUE")
        value = self._take()
        if value.kind not in ("text", "word"):
            raise self._wrong(value, "expected a value")
        if operator.text == ":" and self._fields.get(name.text) is Kind.TEXTS_BY_KEY:
            return Comparison(name.text, self._text_of(value), ":", "")
        found = _split_field(name.text, self._fields)
        if found is None:
            raise self._wrong(name, f"there is no such field: use {', '.join(_shown_fields(self._fields))}")
        return Comparison(*found, operator.text, self._value(self._fields[found[0]], operator, value))

    def _value(self, kind: Kind, operator: _Token, token: _Token) -> Value:
        text = self._text_of(token)
        if kind in (Kind.TEXT, Kind.TEXTS_BY_KEY):
            return text
        if operator.text == ":":
            raise self._wrong(operator, f"a text contains a text, and this is {kind.value}")
        try:
            return _time(text) if kind is Kind.TIME else float(text)
        except ValueError:
            wanted = "a time like 2026-03-01T00:00:00Z" if kind is Kind.TIME else "a number"
            raise self._wrong(token, f"expected {wanted}") from None

    def _text_of(self, token: _Token) -> str:
        return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "text" else token.text

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        position = 0
        end = len(self._text.rstrip())
        while position < end:
            found = _TOKEN.match(self._text, position)
            if found is None or found.lastgroup is None:
                at = position + len(self._text[position:]) - len(self._text[position:].lstrip())
                raise self._wrong(_Token("", "", at), "cannot be read")
            tokens.append(_Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            position = found.end()
        return [*tokens, _Token("end", "", end)]

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token

    def _wrong(self, token: _Token, problem: str) -> FilterInvalid:
        shown = f" ({token.text[:40]})" if token.text else ""
        message = f"at character {token.position + 1}{shown}: {problem}"
        return FilterInvalid(f"filter, {message}", violations=(FieldViolation("filter", message),))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
