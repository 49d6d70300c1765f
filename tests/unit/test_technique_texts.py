"""What `maas techniques` says is what the service does."""

from dataclasses import fields

import pytest

from maas.technique_texts import TechniqueText, technique_texts
from maas_compression.recipe import TECHNIQUES


@pytest.mark.parametrize("text", technique_texts(), ids=lambda text: text.name)
def test_each_default_is_the_one_of_the_settings_class(text: TechniqueText) -> None:
    settings = TECHNIQUES[text.name]
    assert [setting.name for setting in text.settings] == [field.name for field in fields(settings)]
    for setting in text.settings:
        value = getattr(settings(), setting.name)
        match value:
            case bool():
                assert setting.default == str(value).lower()
            case int() | float():
                assert float(setting.default) == value
            case str():
                assert setting.default == (value or "empty")
            case tuple():
                assert setting.default == "none"


def test_each_technique_says_what_it_does() -> None:
    assert [text.name for text in technique_texts()] == list(TECHNIQUES)
    for text in technique_texts():
        assert text.summary
        assert text.text
        assert all(setting.text for setting in text.settings)
