"""What every section of the settings shares: bounded types, and a model that is frozen and refuses unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


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
