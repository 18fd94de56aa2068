"""Settings from YAML files and ``--set key=value``, and how they are described and refused."""

from __future__ import annotations

import argparse
import difflib
from collections import abc
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from xrec.config.base import SettingsError
from xrec.config.settings import Settings

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "conf" / "complete_journey.yaml"
_NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML writes that there is no value."""


def load_settings(files: abc.Sequence[str | Path] = (), overrides: abc.Sequence[str] = ()) -> Settings:
    """Settings from YAML files, later ones over earlier ones, and ``key=value`` overrides over both.

    Without a file the default log's settings (Complete Journey) are used.

    Raises
    ------
    SettingsError
        A file is missing or not YAML, a key is unknown (the nearest known one is named), or a value is out of bounds.
    """
    paths = [Path(file) for file in files or [DEFAULT_CONFIG]]
    # Two logs never meet in one folder because somebody forgot to name it: a file of several may be what shops have in common.
    merged: Any = OmegaConf.create({"storage": {"root": f"warehouse/{paths[0].stem}"} if len(paths) == 1 else {}})
    for path in paths:
        merged = OmegaConf.merge(merged, _read_yaml(path))
    return _overridden(merged, overrides)


def _overridden(merged: Any, overrides: abc.Sequence[str]) -> Settings:
    texts = {}
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise SettingsError(f"--set {override}: found no '=', expected key=value such as als.rank=32")
        texts[key] = text
        try:
            one: Any = OmegaConf.create()
            OmegaConf.update(one, key, _value_of(key, text))
            merged = OmegaConf.merge(merged, one)
        except OmegaConfBaseException as error:
            raise SettingsError(f"--set {override}: {error}") from None
    try:
        return _validated(merged, texts)
    except OmegaConfBaseException as error:
        raise SettingsError(f"settings: {error}") from None


def _value_of(key: str, text: str) -> Any:
    """What YAML makes of an override's text; the text itself where YAML fails or leaves a part out, as of ``|`` or ``a #b``."""
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException):
        if text[:1] in ("[", "{") and len(text) > 1:
            raise SettingsError(
                f"--set {key}: found {text}, expected a list such as [a,b] or keys and values such as {{a: 1}}; a text that begins "
                "like one wants quotes"
            ) from None
        return text
    if isinstance(value, str):
        return value if text.lstrip()[0] in ("'", '"') else text.strip()
    has_comment = isinstance(value, int | float) and "#" in text
    is_lost = text == "-" or (value is None and text not in _NOTHING)
    return text if has_comment or is_lost else value


def _validated(merged: Any, texts: abc.Mapping[str, str]) -> Settings:
    """Settings of the merged values; ``texts`` has what overrides are as they are written.

    A text keeps what YAML would make a number or a truth value of: ``log.delivery_id=0042`` is 0042, not 34.
    """
    try:
        return Settings.model_validate(OmegaConf.to_container(merged, resolve=True))
    except ValidationError as error:
        problems = error.errors()
    as_written = [key for key in map(_key_of, filter(_is_misread, problems)) if key in texts]
    if not as_written:
        raise SettingsError("\n".join(map(_explain, problems)))
    for key in as_written:
        OmegaConf.update(merged, key, texts[key])
    return _validated(merged, {})


def as_yaml(settings: Settings) -> str:
    """Settings as the text of a file that makes the same settings by itself."""
    # Each platform has all keys of its log; one of them as what they have in common would add its own words to theirs.
    values = settings.model_dump(mode="json", exclude={"log"} if settings.platforms else set())
    # In quotes, because OmegaConf takes more plain words for numbers than what wrote them.
    text = yaml.safe_dump(values, sort_keys=False, default_style='"')
    return text.replace("${", r"\\${")


def change_settings(settings: Settings, overrides: abc.Sequence[str]) -> Settings:
    """The settings with further ``key=value`` overrides; no file is read again."""
    return _overridden(OmegaConf.create(as_yaml(settings)), overrides)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--set``, ``--changed-since`` and a ``--help`` that lists every key with type, default and unit."""
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of settings; repeatable, later ones win",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting; repeatable"
    )
    parser.add_argument(
        "--changed-since",
        action="append",
        type="sequence.changed_since={}".format,
        metavar="TIME",
        dest="overrides",
        help="train no sequence model, encode the users who changed: the same as --set sequence.changed_since=TIME (or =latest)",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        (parser.epilog or "") + "\n\nsettings (--set KEY=VALUE, or in a YAML file):\n" + "\n".join(describe())
    )


def as_arguments(config: abc.Sequence[str], overrides: abc.Sequence[str]) -> list[str]:
    """Files and overrides as a command takes them: ``--config FILE ... --set KEY=VALUE ...``."""
    files = [part for file in config for part in ("--config", file)]
    return [*files, *[part for override in overrides for part in ("--set", override)]]


def describe() -> abc.Iterator[str]:
    """One line a settings key: name, type, default, meaning."""
    for key, kind, default, meaning in _fields(Settings, ""):
        yield f"  {key} ({kind}, {default})\n      {meaning}"


def _fields(model: type[BaseModel], prefix: str, required: str = "required") -> abc.Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        nested = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        section = next((kind for kind in nested if issubclass(kind, BaseModel)), None)
        if section is not None and get_origin(field.annotation) is not dict:
            is_optional = type(None) in get_args(field.annotation)
            yield from _fields(
                section, f"{prefix}{name}.", f"required where {prefix}{name} is used" if is_optional else required
            )
            continue
        default = required if field.is_required() else f"default {field.get_default(call_default_factory=True)}"
        yield f"{prefix}{name}", _type_name(field.annotation), default, " ".join((field.description or "").split())


def _type_name(annotation: Any) -> str:
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    name = getattr(annotation, "__name__", str(annotation))
    if name in {"Union", "UnionType", "Optional", "Annotated"} and arguments:
        return " | ".join(
            _type_name(argument) for argument in arguments if hasattr(argument, "__name__") or get_args(argument)
        )
    return f"{name} of {_type_name(arguments[-1] if name == 'dict' else arguments[0])}" if arguments else name


def _read_yaml(file: Path) -> Any:
    try:
        if not file.is_file():
            raise SettingsError(
                f"--config {file}: no such file; expected a YAML file such as conf/complete_journey.yaml"
            )
        loaded = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {file}: not YAML: {error}") from None
    except OSError as error:  # OmegaConf says with one, too, that the file is a number
        raise SettingsError(
            f"--config {file}: {error.strerror or 'found a single value'}; expected a file of keys and values that can be read"
        ) from None
    if not OmegaConf.is_dict(loaded):
        raise SettingsError(f"--config {file}: found a list, expected keys and values")
    return loaded


def _key_of(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _is_misread(problem: Any) -> bool:
    """Whether YAML made a number or a truth value of what is a text."""
    return problem["type"] == "string_type" and isinstance(problem["input"], int | float)


def _explain(problem: Any) -> str:
    """One validation problem as one sentence: key, value found, what was expected."""
    key = _key_of(problem)
    if problem["type"] == "extra_forbidden":
        known = [name for name, *_ in _fields(Settings, "")]
        known += sorted({name.rsplit(".", depth)[0] for name in known for depth in (1, 2) if name.count(".") >= depth})
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
        return f"{key}: unknown key; did you mean {nearest[0]}?"
    if problem["type"] == "missing":
        return f"{key}: found nothing, expected a value (see conf/ for examples)"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    found = problem["input"]
    if _is_misread(problem):
        return f"{key}: found {found!r}, expected a text; put it in quotes, because YAML reads 0042 as the number 34"
    shown = str(found) if isinstance(found, timedelta) else repr(found)
    return f"{key}: found {shown}, expected: {problem['msg']}"
