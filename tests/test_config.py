"""Settings: every key is read, documented and bounded; a bad one is refused by name."""

from __future__ import annotations

import argparse
import ast
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from xrec.config import DEFAULT_CONFIG, Settings, SettingsError, add_arguments, as_yaml, describe, load_settings

ROOT = Path(__file__).resolve().parent.parent


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Field name to its settings class, of the fields that are sections."""
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def classes(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model}.union(*(classes(kind) for kind in sections(model).values()))


CLASSES = {kind.__name__: kind for kind in classes(Settings)}
KEYS = {(kind.__name__, name) for kind in CLASSES.values() for name in kind.model_fields if name not in sections(kind)}


class Reads(ast.NodeVisitor):
    """The (settings class, field) pairs that a module reads: ``settings.als.rank``, or ``als.rank`` where als: Als."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.names: dict[str, str] = {}

    def visit_arg(self, node: ast.arg) -> None:
        for part in ast.walk(node.annotation) if node.annotation else ():
            if isinstance(part, ast.Name) and part.id in CLASSES:
                self.names[node.arg] = part.id

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if (
            isinstance(node.target, ast.Name)
            and isinstance(node.annotation, ast.Name)
            and node.annotation.id in CLASSES
        ):
            self.names[node.target.id] = node.annotation.id
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]
            for left, right in pairs:
                kind = self.kind_of(right)
                if isinstance(left, ast.Name) and kind:
                    self.names[left.id] = kind

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = self.kind_of(node.value)
        if kind and (kind, node.attr) in KEYS:
            self.found.add((kind, node.attr))
        # The mapping of columns is read as a whole, key by key.
        if kind == "LogColumns" and node.attr == "model_dump":
            self.found |= {key for key in KEYS if key[0] == kind}

    def kind_of(self, node: ast.expr) -> str | None:
        """The settings class of an expression, as far as names tell."""
        if isinstance(node, ast.Name):
            return "Settings" if node.id == "settings" and node.id not in self.names else self.names.get(node.id)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in {"load_settings", *CLASSES}:
            return "Settings" if ast.unparse(node.func) == "load_settings" else ast.unparse(node.func).split(".")[0]
        if not isinstance(node, ast.Attribute):
            return None
        base = self.kind_of(node.value)
        if base and node.attr in sections(CLASSES[base]):
            return sections(CLASSES[base])[node.attr].__name__
        if base is None and node.attr == "settings":
            return "Settings"
        return sections(Settings)[node.attr].__name__ if base is None and node.attr in sections(Settings) else None


def reads_of(source: str, *, is_config: bool = False) -> set[tuple[str, str]]:
    """Reads of a module's functions, each with names of its own; of the settings' own module the properties count."""
    reads: set[tuple[str, str]] = set()
    tree = ast.parse(source)
    for owner in ast.walk(tree):
        for node in getattr(owner, "body", []) if isinstance(owner, ast.Module | ast.ClassDef) else []:
            visitor = Reads()
            if is_config:
                is_property = isinstance(node, ast.FunctionDef) and "property" in map(ast.unparse, node.decorator_list)
                if not is_property or owner.name not in CLASSES:
                    continue
                visitor.names["self"] = owner.name
            if not isinstance(node, ast.ClassDef):
                visitor.visit(node)
            reads |= visitor.found
    return reads


def test_two_logs_never_share_a_folder_by_default(tmp_path: Path) -> None:
    for name in ("shop", "market"):
        text = DEFAULT_CONFIG.read_text().split("storage:")[0]
        (tmp_path / f"{name}.yaml").write_text(text)
        settings = load_settings([tmp_path / f"{name}.yaml"])
        assert settings.storage.root == f"warehouse/{name}"
    both = [tmp_path / "shop.yaml", tmp_path / "market.yaml"]
    with pytest.raises(SettingsError, match=r"storage.root: found nothing"):
        load_settings(both)
    assert load_settings(both, ["storage.root=warehouse/eu"]).storage.root == "warehouse/eu"


def test_the_search_for_reads_finds_what_it_should() -> None:
    source = """
def f(settings: Als, other: Sequence | None, *, context):
    a, b = context.settings, other.dim
    folds = a.folds
    return settings.rank + folds.num_select + context.settings.log.file.path + unknown.alpha + a.balance.alpha

class K:
    def g(self):
        return self.storage.root
"""
    expected = {("Als", "rank"), ("Sequence", "dim"), ("Folds", "num_select"), ("File", "path"), ("Balance", "alpha")}
    assert reads_of(source) == expected | {("Storage", "root")}


@pytest.mark.parametrize("key", sorted(KEYS), ids=".".join)
def test_every_setting_is_read(key: tuple[str, str]) -> None:
    assert key in all_reads(), "a setting that nothing reads: use it or remove it"


def all_reads(cache: set[tuple[str, str]] = set()) -> set[tuple[str, str]]:  # noqa: B006 - parsed once
    if not cache:
        for folder in ("xrec", "jobs"):
            for file in (ROOT / folder).rglob("*.py"):
                cache |= reads_of(file.read_text(), is_config=file.parent == ROOT / "xrec" / "config")
    return cache


def test_help_lists_every_key_with_type_default_and_meaning() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = parser.format_help()
    lines = list(describe())
    paths = [line.split()[0] for line in lines]
    # A file is one of ten: the log's, the catalogue's, the users', the identities', the opt-outs', the exposures', that of the item
    # vectors and the three of the filters; a time of four.
    repeated = 9 * len(CLASSES["File"].model_fields) + 3 * len(CLASSES["TimeFormat"].model_fields)
    # The platforms' keys are those of log; an attribute's are below a name that the user gives.
    named = ("platforms", "users.attributes", "filters.items.attributes", "filters.users.attributes")
    below = len(CLASSES["Attribute"].model_fields) + len(CLASSES["FilterAttribute"].model_fields)
    assert len(paths) == len(set(paths)) == len(KEYS) + repeated + len(named) - below
    for line in lines:
        assert line in text
        head, meaning = line.split("\n")
        assert ", default " in head or ", required" in head, head
        assert len(meaning.split()) >= 1, f"{head}: no docstring"
    assert "  seed (int, default 20171101)\n      Seed of everything that is drawn; 0 is a seed." in text
    assert "  folds.kind (time | last_out, default time)" in text
    assert "  log.file.path (str, required)" in text


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_file_loads_and_opens_with_its_command(file: Path) -> None:
    load_settings([file])
    head = [line for line in file.read_text().splitlines()[:12] if line.startswith("#")]
    assert any("spark-submit" in line for line in head), "no command in the opening comment"


def test_the_default_is_complete_journey() -> None:
    assert load_settings() == load_settings([DEFAULT_CONFIG])
    assert load_settings().folds.as_of == "2017-11-01"


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("als: {rank: 4, alpha: 2.0}\nseed: 7\n")
    second.write_text("als: {rank: 5}\nevaluation: {ks: [3]}\n")
    settings = load_settings([DEFAULT_CONFIG, first, second], ["als.max_iter=3", "seed=0", "evaluation.ks=[5,10]"])
    assert (settings.als.rank, settings.als.alpha, settings.als.max_iter) == (5, 2.0, 3)
    assert settings.seed == 0, "0 is a seed"
    assert settings.evaluation.ks == (5, 10)
    assert load_settings(overrides=["folds.horizon=PT45M"]).folds.horizon == timedelta(minutes=45)
    assert load_settings(overrides=["folds.as_of=2017-06-01"]).folds.as_of == "2017-06-01"
    assert load_settings(overrides=["log.file.path=a=b.csv"]).log.file.path == "a=b.csv"


def test_a_date_in_yaml_needs_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "date.yaml"
    file.write_text("folds:\n  as_of: 2017-06-01\n")
    assert load_settings([DEFAULT_CONFIG, file]).folds.as_of == "2017-06-01"


def test_a_text_that_looks_like_a_number_is_taken_as_it_is_written(tmp_path: Path) -> None:
    for text in ("2017", "2024_05_17", "0042", "1e5", "true"):
        assert load_settings(overrides=[f"log.delivery_id={text}"]).log.delivery_id == text
    header = load_settings(overrides=["log.file.options.header=false", "seed=7"])
    assert (header.log.file.options["header"], header.seed) == ("false", 7)
    platforms = tmp_path / "platforms.yaml"
    platforms.write_text("platforms: {web: {file: {path: a}}, store: {file: {path: b}}}\n")
    found = load_settings([DEFAULT_CONFIG, platforms], ["log.delivery_id=0042", "platforms.store.delivery_id=0043"])
    assert [source.log.delivery_id for source in found.sources] == ["0042", "0043"]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("log: {delivery_id: 0042}", [], "log.delivery_id: found 34, expected a text"),
        ("catalogue: {label: [name, 7]}", [], "catalogue.label.1: found 7, expected a text"),
        ("log: {file: {options: {header: false}}}", [], "log.file.options.header: found False, expected a text"),
        ("", ["categories.non_merchandise=[0042,b]"], "categories.non_merchandise.0: found 34, expected a text"),
    ],
)
def test_a_number_that_must_be_a_text_wants_quotes(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    (tmp_path / "more.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings([DEFAULT_CONFIG, tmp_path / "more.yaml"], overrides)
    assert str(error.value) == f"{message}; put it in quotes, because YAML reads 0042 as the number 34"


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.als.rank = 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("als.rnak=3", "als.rnak: unknown key; did you mean als.rank?"),
        ("als.ranks=3", "als.ranks: unknown key; did you mean als.rank?"),
        ("evalution.ks=[3]", "evalution: unknown key; did you mean evaluation?"),
        ("sequence.lenght=3", "sequence.lenght: unknown key; did you mean sequence.length?"),
        ("log.file.pth=x", "log.file.pth: unknown key; did you mean log.file.path?"),
        ("sed=3", "sed: unknown key; did you mean seed?"),
        ("als.rank", "--set als.rank: found no '=', expected key=value such as als.rank=32"),
        ("als.rank=0", "als.rank: found 0, expected: Input should be greater than or equal to 1"),
        ("als.alpha=0", "als.alpha: found 0, expected: Input should be greater than 0"),
        ("balance.alpha=1.5", "balance.alpha: found 1.5, expected: Input should be less than or equal to 1"),
        ("folds.horizon=P0D", "folds.horizon: found 0:00:00, expected: Input should be greater than 0 seconds"),
        ("folds.horizon=14", "folds.horizon: found 14, expected: a duration such as P14D or PT30M"),
        ("folds.horizon='14.5'", "folds.horizon: found '14.5', expected: a duration such as P14D or PT30M"),
        ("als.rank=7 # days", "als.rank: found '7 # days', expected: Input should be a valid integer, unable to parse string as an "
         "integer"),
        (
            "categories.non_merchandise=[FUEL # x]",
            "--set categories.non_merchandise: found [FUEL # x], expected a list such as [a,b] or keys and values such as {a: 1}; "
            "a text that begins like one wants quotes",
        ),
        ("evaluation.confidence=1", "evaluation.confidence: found 1, expected: Input should be less than 1"),
        (
            "evaluation.ks=[]",
            "evaluation.ks: found [], expected: Tuple should have at least 1 item after validation, not 0",
        ),
        ("folds.kind=weekly", "folds.kind: found 'weekly', expected: Input should be 'time' or 'last_out'"),
        ("als.rank=many", "als.rank: found 'many', expected: Input should be a valid integer, unable to parse string as an "
         "integer"),
        ("sequence.num_processes=3", "sequence.num_shards: found 4, expected a multiple of num_processes (3)"),
        ("sequence.batch_rows=63", "sequence.batch_rows: found 63, expected a multiple of num_shards (4)"),
        ("sequence.num_heads=7", "sequence.dim: found 64, expected a multiple of num_heads (7)"),
        (
            "categories.counting_events=[rent]",
            "categories.counting_events: found 'rent', expected one of weights.event_types (purchase)",
        ),
        (
            "log.event_type=view",
            "log.event_type: found 'view', expected one of weights.event_types (purchase, return); to count it, set "
            "weights.event_types={view: 1.0} and categories.counting_events=[view]",
        ),
        ("storage.catalog=main.xrec", "storage.artifacts: found nothing, expected a folder or URL beside storage.catalog"),
        (
            "storage.root=null",
            "storage.root: found nothing, expected a folder or URL (or set storage.catalog); only one --config file alone gives it "
            "a default, because several shops may have one of several files in common",
        ),
        (
            "catalogue.category=[a,b]",
            "catalogue.category: found several columns, expected one with separator, prefix_lengths, list_separator or list_of",
        ),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(override: str, message: str) -> None:
    more = ["catalogue.separator=/"] if override.startswith("catalogue") else []
    with pytest.raises(SettingsError) as error:
        load_settings(overrides=[override, *more])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        *((text, text) for text in ("|", ",", ":", "-", "#", " ", "\t", "'", "[", ">", "a #x", "*.csv", "a\nb", "%Y")),
        *(("'a # b'", "a # b"), ('"\\t"', "\t"), (" a ", "a")),
    ],
)
def test_a_text_that_means_something_to_yaml_is_taken_as_it_is_written(text: str, taken: str) -> None:
    assert load_settings(overrides=[f"log.file.options.sep={text}"]).log.file.options["sep"] == taken


def test_lists_and_nothing_are_what_yaml_reads() -> None:
    found = load_settings(
        overrides=["categories.non_merchandise=['a #1', b] # two", "ranking.weight_parts=~", "filters="]
    )
    assert found.categories.non_merchandise == ("a #1", "b")
    assert (found.ranking.weight_parts, found.filters) == (None, None)


def test_a_place_in_the_home_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = load_settings(overrides=["storage.root=~/x", "storage.artifacts=~/y", "log.file.path=~/log.csv"])
    assert (found.storage.tables_root, found.storage.artifacts_root) == ("/home/me/x", "/home/me/y")
    assert found.log.file.path == "/home/me/log.csv"


def test_an_override_that_cannot_be_merged_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^--set log.delivery_id=\$\{: "):
        load_settings(overrides=["seed=3", "log.delivery_id=${"])


def test_one_value_is_a_list_of_one() -> None:
    found = load_settings(overrides=["categories.non_merchandise=FUEL", "evaluation.ks=10", "catalogue.label=[a,b]"])
    assert (found.categories.non_merchandise, found.evaluation.ks) == (("FUEL",), (10,))
    assert found.catalogue.label == ("a", "b")


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(overrides=["als.rank=0", "sed=1"])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected a YAML file such as conf/complete_journey.yaml"),
        ("a: [1", "not YAML"),
        ("- a\n- b\n", "found a list, expected keys and values"),
        ("just words\n", "just words: unknown key"),
        ("42\n", "bad.yaml: found a single value; expected a file of keys and values that can be read"),
        ("als: {rank: 4}\n", "log: found nothing, expected a value"),
        ("als: 5\n", "als: found 5, expected"),
        ("", "log: found nothing, expected a value"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings([file])


def test_the_digest_changes_with_the_sections_that_it_covers() -> None:
    base, other = load_settings(), load_settings(overrides=["als.rank=8"])
    assert base.digest() != other.digest()
    assert base.digest("als") != other.digest("als")
    assert base.digest("folds", "log") == other.digest("folds", "log")
    assert base.digest() == load_settings().digest()


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda file: file.name)
def test_settings_as_text_make_the_same_settings(tmp_path: Path, file: Path) -> None:
    overrides = ['log.event_types={"1e5": "1_0"}', "log.file.path=\\${x}", "als.reg_param=1e-7", "log.delivery_id=0042"]
    settings = load_settings([file], [*overrides, 'log.file.options.sep="\\t\\U0001F600"'])
    (tmp_path / "all.yaml").write_text(as_yaml(settings))
    again = load_settings([tmp_path / "all.yaml"])
    assert (again, again.digest()) == (settings, settings.digest())


def test_the_defaults_keep_their_own_bounds() -> None:
    values: dict[str, Any] = load_settings().model_dump()
    assert Settings.model_validate(values) == load_settings()
