"""What every section of the settings shares: bounded types, and a model that is frozen and refuses unknown keys."""

from __future__ import annotations

from datetime import timedelta
from os.path import expanduser
from typing import Annotated, Any, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _has_unit(value: Any) -> Any:
    """Refuse a bare number, which would count as seconds."""
    try:
        float(value)
    except (TypeError, ValueError):
        return value
    raise PydanticCustomError("bare_number", "a duration such as P14D or PT30M")


Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Duration = Annotated[timedelta, Field(gt=timedelta(0)), BeforeValidator(_has_unit)]
Place = Annotated[str, AfterValidator(expanduser)]
"""A path or URL; what begins with ``~`` lies in the user's home, as in a shell, which does not see it behind ``--set key=``."""


class SettingsError(ValueError):
    """Settings that xrec cannot run with; the message names the key, the value and what was expected."""


class Frozen(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = [name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple]
        ones = {name: [values[name]] for name in lists if isinstance(values.get(name), str | int | float)}
        return {**values, **ones}
