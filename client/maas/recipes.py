"""Recipes as people write them: techniques from text and YAML, and back.

A line is a technique's name with the settings that differ from its defaults, `int8(mode=static, keep=["output"])`. The
messages of protos/maas/compression/v1/technique.proto decide which names and settings there are; their ranges are
checked by the service.
"""

import ast
import json
import keyword
from collections.abc import Iterable, Mapping

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError

from maas.compression.v1.technique_pb2 import Technique
from maas.errors import InvalidInputError

MAX_RECIPE_CHARACTERS = 65_536
MAX_STEPS = 16
_MOST_DEPTH = 4
"""Of a list of techniques, one, its settings, and a list of names among them."""


class RecipeUnreadable(InvalidInputError):
    """A recipe's text names a technique or a setting that there is not, or is no recipe at all."""


def technique_names() -> list[str]:
    """Return the names of all techniques, in the contract's order."""
    return [field.name for field in Technique.DESCRIPTOR.fields]


def parse_technique(line: str) -> Technique:
    """Read a line, `prune` or `prune(structure=heads, share=0.25)`. Raises RecipeUnreadable."""
    try:
        expression = ast.parse(line.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(f"{line[:200]!r} is not a technique; write one like int8 or prune(share=0.25)") from error
    match expression:
        case ast.Name(name):
            return _technique(name, {})
        case ast.Call(func=ast.Name(name), args=[], keywords=keywords):
            settings = {str(keyword.arg): _value(keyword.value, line) for keyword in keywords}
            if len(settings) != len(keywords):
                raise _unreadable(f"{line[:200]!r} names a setting twice")
            return _technique(name, settings)
    raise _unreadable(f"{line[:200]!r} is not a technique; write one like int8 or prune(share=0.25)")


def technique_line(technique: Technique) -> str:
    """Return the line that `parse_technique` reads: the settings that are given, in the contract's order."""
    name = technique.WhichOneof("technique")
    if name is None:
        raise ValueError("a technique without a choice has no line")
    settings = ", ".join(f"{field.name}={_text(value)}" for field, value in getattr(technique, name).ListFields())
    return f"{name}({settings})" if settings else name


def load_recipe(text: str) -> list[Technique]:
    """Read a recipe in YAML: a list of lines, `int8`, or mappings, `int8: {mode: static}`. Raises RecipeUnreadable."""
    if len(text) > MAX_RECIPE_CHARACTERS:
        raise _unreadable(f"a recipe has at most {MAX_RECIPE_CHARACTERS:,} characters, not {len(text):,}")
    try:
        _check_tokens(text)
        tree = yaml.compose(text, yaml.SafeLoader)
        steps = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _unreadable(f"the recipe is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(steps, list) or not steps:
        raise _unreadable("a recipe is a list of techniques, one a line, each after a hyphen: - int8")
    if len(steps) > MAX_STEPS:
        raise _unreadable(f"a recipe has at most {MAX_STEPS} techniques, not {len(steps):,}")
    assert isinstance(tree, yaml.SequenceNode)
    lines = [node.start_mark.line + 1 for node in tree.value]
    return [
        _step(step, f"step {number} (line {line})")
        for number, (step, line) in enumerate(zip(steps, lines, strict=True), start=1)
    ]


_OPENING = (
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def _check_tokens(text: str) -> None:
    """Refuse what a short text makes large or slow, before anything is built of it."""
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            # It could stand for something that is larger than the text by any factor.
            raise _unreadable("a recipe has no aliases (*name); write the technique out")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        # 60,000 open brackets took 40 s to be refused by the parser.
        if depth > _MOST_DEPTH:
            raise _unreadable("a recipe has lists within lists no deeper than the names of a setting")


def dump_recipe(techniques: Iterable[Technique]) -> str:
    """Return the YAML that `load_recipe` reads."""
    steps = []
    for technique in techniques:
        name = technique.WhichOneof("technique")
        if name is None:
            raise ValueError("a technique without a choice has no YAML")
        settings = {
            field.name: list(value) if field.is_repeated else value
            for field, value in getattr(technique, name).ListFields()
        }
        steps.append({name: settings} if settings else name)
    return yaml.safe_dump(steps, sort_keys=False)


def _step(step: object, where: str) -> Technique:
    try:
        match step:
            case str():
                return parse_technique(step)
            case dict() if len(step) == 1:
                ((name, settings),) = step.items()
                if settings is None or isinstance(settings, dict):
                    return _technique(str(name), settings or {})
        raise _unreadable("is neither a name, like int8, nor a name with settings, like int8: {mode: static}")
    except RecipeUnreadable as error:
        raise _unreadable(f"{where}: {error.message}") from error


def _technique(name: str, settings: Mapping[str, object]) -> Technique:
    field = Technique.DESCRIPTOR.fields_by_name.get(name)
    if field is None or field.message_type is None:
        raise _unreadable(f"there is no technique {name[:100]!r}; there are: {', '.join(technique_names())}")
    known = field.message_type.fields_by_name
    for setting in settings:
        if str(setting) not in known:
            there = f"it has: {', '.join(known)}" if known else "it has none"
            raise _unreadable(f"{name} has no setting {str(setting)[:100]!r}; {there}")
    technique = Technique()
    getattr(technique, name).SetInParent()
    for setting, value in settings.items():
        _check_kind(name, known[setting], value)
        try:
            ParseDict({setting: value}, getattr(technique, name))
        except (ParseError, OverflowError) as error:
            raise _unreadable(f"{name}: {setting} cannot be {value!r}") from error
    return technique


def _check_kind(name: str, field: FieldDescriptor, value: object) -> None:
    """Refuse what the JSON form of protobuf would take for something else: "3" for 3, 1 for true, null for nothing."""
    expected, kinds = _KINDS[field.cpp_type]
    if field.is_repeated:
        right = isinstance(value, list) and all(type(one) in kinds for one in value)
        expected = f"a list of {expected}"
    else:
        right = type(value) in kinds
    if not right:
        raise _unreadable(f"{name}: {field.name} is {expected}, not {str(value)[:100]!r}")


_KINDS: dict[int, tuple[str, tuple[type, ...]]] = {
    FieldDescriptor.CPPTYPE_STRING: ("text", (str,)),
    FieldDescriptor.CPPTYPE_BOOL: ("true or false", (bool,)),
    FieldDescriptor.CPPTYPE_INT32: ("a whole number", (int,)),
    FieldDescriptor.CPPTYPE_DOUBLE: ("a number", (int, float)),
}


def _value(node: ast.expr, line: str) -> object:
    match node:
        case ast.Name("true" | "True"):
            return True
        case ast.Name("false" | "False"):
            return False
        case ast.Name(name):
            return name
        case ast.Constant(bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(elements):
            return [_value(element, line) for element in elements]
    raise _unreadable(f"{ast.unparse(node)[:100]} in {line[:200]!r} is no value; put quotes around text")


def _text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            plain = (
                value.isascii()
                and value.isidentifier()
                and not keyword.iskeyword(value)
                and value not in ("true", "false")
            )
            return value if plain else json.dumps(value, ensure_ascii=False)
        case int():
            return str(value)
        case float():
            short = f"{value:.15g}"  # which makes -0.0 a whole number without a sign
            return short if value and float(short) == value else repr(value)
    assert isinstance(value, Iterable)
    return f"[{', '.join(map(_text, value))}]"


def _unreadable(message: str) -> RecipeUnreadable:
    return RecipeUnreadable(message, reason="RECIPE_UNREADABLE")
