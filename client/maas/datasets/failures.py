"""Why data cannot be taken. Each says the file, and where in it."""

from pathlib import Path
from typing import ClassVar

from maas.errors import InvalidInputError


class DataInvalid(InvalidInputError):
    """Data that cannot be taken; the message says where and what to do."""

    name: ClassVar[str] = "DATA_INVALID"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INVALID_ARGUMENT", reason=type(self).name)


class DataFileInvalid(DataInvalid):
    """A file as a whole cannot be read: not there, empty, of an unknown kind, damaged."""

    name = "DATA_FILE_INVALID"


class EncodingInvalid(DataInvalid):
    """A file is not UTF-8."""

    name = "ENCODING_INVALID"


class ColumnsInvalid(DataInvalid):
    """Columns are missing, there twice, or not those of the other files."""

    name = "COLUMNS_INVALID"


class RowInvalid(DataInvalid):
    """A row does not fit."""

    name = "ROW_INVALID"

    def __init__(self, path: Path, where: str, column: str, problem: str) -> None:
        place = f"{path}, {where}" + (f", column {column}" if column else "")
        super().__init__(f"{place}: {problem}")


class LabelsInvalid(DataInvalid):
    """The labels are no classes: too many, or none."""

    name = "LABELS_INVALID"


class SharesInvalid(DataInvalid):
    """The shares of the splits do not leave each of them rows."""

    name = "SHARES_INVALID"
