"""Whether a file is a pickle, found without unpickling: its operations are followed, and none of them is done."""

import pickletools
from io import BytesIO

from maas_package.content import Content

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_IMPORTS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST"})
# What calls something that was imported: an unpickler has done harm by then, whatever comes behind.
_CALLS = frozenset({"INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX"})
# They stand for what a program has registered, and ours register nothing.
_REGISTERED = frozenset({"EXT1", "EXT2", "EXT4"})
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_NUMBERS = (pickletools.decimalnl_short, pickletools.decimalnl_long, pickletools.floatnl)
_MAX_LINE_CHARACTERS = 4096
_MAX_PICKLES = 16
_MAX_OPERATIONS = 10_000
"""Nothing else than a pickle goes on for so long."""
_HIGHEST_PROTOCOL = 5
_FOUND = -1


def is_pickle(content: Content) -> bool:
    """Whether an unpickler would find something in the file.

    That is a stream which reaches an operation that calls something; or one that ends, and has imported something, or
    ends where the file does, or begins with the mark of protocols 2 to 5. Several in a row are followed: torch writes
    such files.
    """
    position = 0
    for _ in range(_MAX_PICKLES):
        end = _end_of_pickle(content, position)
        if end is None:
            return False
        if end in (_FOUND, len(content)) or (content[0] == 0x80 and content[1] >= 2):
            return True
        position = end
    return True


def _end_of_pickle(content: Content, position: int) -> int | None:
    """Return where the pickle at `position` ends; None when there is none; _FOUND when it is harmful, or very long."""
    stack: list[bool] = []  # what is a mark
    has_imported = False
    for _ in range(_MAX_OPERATIONS):
        opcode = _OPCODES.get(content[position]) if position < len(content) else None
        if opcode is None or opcode.name in _REGISTERED or not _follow(opcode, stack):
            return None
        end = _end_of_argument(opcode, content, position + 1)
        if end is None:
            return None
        has_imported = has_imported or opcode.name in _IMPORTS
        if has_imported and (opcode.name in _CALLS or opcode.name == "STOP"):
            return _FOUND
        if opcode.name == "STOP":
            return end
        position = end
    return _FOUND


def _follow(opcode: pickletools.OpcodeInfo, stack: list[bool]) -> bool:
    """Do to the stack what the operation does; False when it cannot be done."""
    taken = opcode.stack_before
    if pickletools.markobject in taken:
        if True not in stack:
            return False
        while not stack.pop():
            pass
        count = taken.index(pickletools.markobject)
    else:
        count = len(taken)
    if opcode.name == "POP" and stack:
        stack.pop()
    elif count:
        if len(stack) < count or True in stack[-count:]:
            return False
        del stack[-count:]
    stack.extend(item is pickletools.markobject for item in opcode.stack_after)
    return True


def _end_of_argument(opcode: pickletools.OpcodeInfo, content: Content, position: int) -> int | None:
    """Return where the operation's argument ends; None when it has not got the form that it must have."""
    argument = opcode.arg
    if argument is None:
        return position
    if argument is pickletools.stringnl_noescape_pair:
        return _end_of_names(content, position)
    if argument.n == pickletools.UP_TO_NEWLINE:
        end = content.find(b"\n", position)
        line = content[position : min(end, position + _MAX_LINE_CHARACTERS)]
        return end + 1 if end >= 0 and _reads(argument, line) else None
    end = position + (argument.n if argument.n >= 0 else _LENGTH_BYTES[argument.n])
    if end > len(content) or (opcode.name == "PROTO" and content[position] > _HIGHEST_PROTOCOL):
        return None
    if argument.n < 0:
        end += int.from_bytes(content[position:end], "little", signed=False)
    return end if end <= len(content) else None


def _end_of_names(content: Content, position: int) -> int | None:
    """Return where the names of a module and of something in it end."""
    for _ in range(2):
        end = content.find(b"\n", position, position + _MAX_LINE_CHARACTERS)
        name = content[position:end].decode("utf-8", "replace") if end >= 0 else ""
        if not name.replace(".", "_").isidentifier():
            return None
        position = end + 1
    return position


def _reads(argument: pickletools.ArgumentDescriptor, line: bytes) -> bool:
    """Whether the argument can be read from a line: a number, or a text in quotes where there have to be some."""
    if argument in _NUMBERS:
        try:
            argument.reader(BytesIO(line + b"\n"))
        except ValueError:
            return False
    return argument is not pickletools.stringnl or (line[:1] in (b"'", b'"') and len(line) > 1)
