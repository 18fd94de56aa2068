"""No prediction knows what came after it, and a comparison chooses on select folds alone and puts test figures on record."""

from __future__ import annotations

import io
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pyspark.sql import SparkSession
from rich.console import Console

from pipeline_runs import ROOT, read_table
from xrec.config import Als, SettingsError, load_settings
from xrec.runs.comparison import compare
from xrec.runs.running import Run
from xrec.runs.search import plan_trials
from xrec.runs.stages import STAGES
from xrec.storage.tables import Tables

pytestmark = [pytest.mark.spark, pytest.mark.delta]

CUT = datetime(2024, 3, 1)
DAYS = 30
SOURCES = ("popularity", "recent", "item_knn")
STAGES_OF_A_FOLD = ("judge", "index", "fold", "balance", "export_sequences", "candidates")
TABLES_OF_A_FOLD = (
    "value_limits",
    "user_categories",
    "interactions",
    "training_events",
    "balance_report",
    "vocabulary",
    "sequences",
    "candidates",
)
Row = tuple[str, str, datetime, str, float]


def purchases(seed: int, *, users: range, items: range, begin: datetime, num: int) -> list[Row]:
    drawn = random.Random(seed)
    rows = []
    for _ in range(num):
        item = items[min(int(drawn.expovariate(0.08)), len(items) - 1)]
        when = begin + timedelta(minutes=drawn.randrange(DAYS * 24 * 60))
        rows.append((f"u{drawn.choice(users)}", f"i{item}", when, "purchase", float(drawn.randint(1, 3))))
    return rows


def history() -> list[Row]:
    months = [CUT - timedelta(days=DAYS * n) for n in (3, 2, 1)]
    return [
        row
        for n, begin in enumerate(months)
        for row in purchases(n, users=range(40), items=range(60), begin=begin, num=260)
    ]


def future() -> list[Row]:
    """What would help to foretell, if it were known: sales that turn everything round, a return, a machine, an outlier."""
    drawn = random.Random(9)
    rare = [(f"u{user}", f"i{drawn.randrange(40, 60)}", CUT + timedelta(days=5), "purchase", 1.0) for user in range(40)]
    new = purchases(7, users=range(30, 55), items=range(50, 75), begin=CUT, num=300)
    machine = [("u3", f"i{n % 60}", CUT + timedelta(days=2, seconds=n * 7), "purchase", 1.0) for n in range(1200)]
    user, item, *_ = history()[-1]
    returned = [(user, item, CUT + timedelta(hours=1), "return", 1.0)]
    outlier = [("u5", "i0", CUT + timedelta(days=3), "purchase", 9000.0)]
    return rare + new + machine + returned + outlier


def write_csv(path: Path, rows: list[Row]) -> None:
    names = ["user", "item", "time", "action", "units"]
    frame = pd.DataFrame(rows, columns=names)
    frame["category"] = [f"c{int(item[1:]) % 6}" for item in frame["item"]]
    frame.to_csv(path, index=False, date_format="%Y-%m-%d %H:%M:%S")


class Shop:
    """A log in two deliveries, with the stages in this process."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.folder, self.root, self.output = folder, folder / "warehouse", io.StringIO()
        write_csv(folder / "past.csv", history())
        write_csv(folder / "future.csv", future())
        columns = {
            "user_id": "user",
            "item_id": "item",
            "event_ts": "time",
            "event_type": "action",
            "quantity": "units",
        }
        settings: dict[str, Any] = {
            "storage": {"root": str(self.root)},
            "log": {"file": {"path": str(folder / "past.csv"), "format": "csv"}, "columns": columns},
            "catalogue": {"category": "category"},
            "folds": {"horizon": f"P{DAYS}D", "num_select": 1},
            "ranking": {"sources": list(SOURCES), "top_k": 5, "candidates_per_source": 10, "recent_days": DAYS},
            # ALS sums in another order where the files of its rows are others; what is left is the same to the bit.
            "sequence": {"length": 8, "min_buyers": 3, "item_vectors": None},
            "evaluation": {"ks": [5], "num_bootstrap": 20, "scopes": ["touched"]},
            "als": {"rank": 4, "max_iter": 2, "num_blocks": 2},
            "tracking": {"enabled": False},
            "num_buckets": 2,
        }
        (folder / "shop.yaml").write_text(yaml.safe_dump(settings))
        self.run = Run(
            spark=spark,
            console=Console(file=self.output, width=200),
            run_id="run",
            settings=load_settings([folder / "shop.yaml"]),
            config=[str(folder / "shop.yaml")],
            overrides=[],
        )

    def stages(self, *names: str, overrides: tuple[str, ...] = ()) -> None:
        self.run.with_overrides(*overrides).run([stage for stage in STAGES if stage.name in names])

    def fold(self, fold: str) -> dict[str, pd.DataFrame]:
        """All that was derived for a fold."""
        tables = {}
        for name in TABLES_OF_A_FOLD:
            frame = Tables(self.run.spark, self.run.settings.storage).read(name, fold=fold).drop("fold", "versions")
            rows = pd.DataFrame([row.asDict() for row in frame.collect()], columns=frame.columns)
            rows = rows.map(lambda value: tuple(value) if isinstance(value, list) else value)
            tables[name] = rows.sort_values(list(rows.columns), ignore_index=True)
        return tables


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        yield Shop(spark, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def before_and_after(shop: Shop) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    cut = ("folds.purpose=serve", f"folds.as_of={CUT:%Y-%m-%d}", "folds.num_select=0")
    shop.stages("ingest", *STAGES_OF_A_FOLD, overrides=cut)
    before = shop.fold(f"serve-{CUT:%Y-%m-%d}")
    later = (f"folds.as_of={CUT + timedelta(days=DAYS):%Y-%m-%d}",)
    late = (f"log.file.path={shop.folder / 'future.csv'}", "log.delivery_id=future")
    shop.stages("ingest", overrides=late)
    shop.stages(*STAGES_OF_A_FOLD, overrides=(*later, "folds.purpose=serve"))
    return before, shop.fold(f"select-{CUT:%Y-%m-%d}")


@pytest.mark.parametrize("name", TABLES_OF_A_FOLD)
def test_neither_a_later_cut_nor_later_rows_change_what_was_known(before_and_after: Any, name: str) -> None:
    before, after = (tables[name] for tables in before_and_after)
    assert len(before) > 5
    pd.testing.assert_frame_equal(before, after)


def test_the_future_would_have_changed_it(shop: Shop, before_and_after: Any) -> None:
    """Else the test above could not fail."""
    events = read_table(shop.root, "judged_events")
    assert (events["event_ts"] >= CUT).sum() > 400
    assert events["void_ts"].notna().any()
    assert read_table(shop.root, "persons")["flagged_ts"].notna().any()
    now = shop.fold(f"serve-{CUT + timedelta(days=DAYS):%Y-%m-%d}")
    for name in ("user_categories", "interactions", "candidates", "vocabulary"):
        assert not now[name].equals(before_and_after[0][name])


def test_a_comparison_searches_on_select_folds_and_pools_them(shop: Shop, before_and_after: Any) -> None:
    run = shop.run.with_overrides(f"folds.as_of={CUT:%Y-%m-%d}")
    compare(run, sources="popularity,als", num_folds=2, num_trials=2, is_final=False, first="fold")
    trials = read_table(shop.root, "trials").sort_values("trial")
    assert trials["trial"].tolist() == [0, 1]
    assert trials["settings"][trials["trial"] == 0].str.contains("als.rank=4 ").all()
    assert trials["chosen"].sum() == 1
    assert trials["ndcg"][trials["chosen"]].item() == trials["ndcg"].max()
    assert (trials["selected_on"] == "select-2024-01-01 select-2024-01-31").all()
    metrics = read_table(shop.root, "metrics").query("metric == 'ndcg' and slice == 'touched'")
    assert set(metrics["fold"]) == {"select-2024-01-01", "select-2024-01-31", "pooled"}
    assert set(metrics["model"]) == {"popularity", "item_knn", "als"}
    pooled = metrics[metrics["fold"] == "pooled"].set_index("model")["value"]
    assert pooled["als"] == pytest.approx(trials["ndcg"].max(), rel=1e-3), "the lists are not those of the best trial"
    assert not (shop.root / "looks").exists(), "nothing was looked at"
    assert "chosen of 2: --set als.rank=" in shop.output.getvalue()


@pytest.mark.slow  # test_pipeline asks the same of one look
def test_a_final_comparison_looks_once_and_says_how_often_it_was(shop: Shop, before_and_after: Any) -> None:
    run = shop.run.with_overrides(f"folds.as_of={CUT:%Y-%m-%d}")
    for number in (1, 2):
        again = {"first": "evaluate"} if number == 2 else {"first": "fold"}
        named = Run(**{**vars(run), "run_id": f"look-{number}"})
        compare(named, sources="popularity,recent", num_folds=1, num_trials=0, is_final=True, **again)
    looks = read_table(shop.root, "looks").sort_values("looked_ts")
    assert looks["run_id"].tolist() == ["look-1", "look-2"]
    assert (looks["fold"] == f"test-{CUT:%Y-%m-%d}").all()
    assert looks["settings"].str.contains('"purpose":"test"').all()
    assert all(len(version) >= 5 for version in looks["code_version"])
    metrics = read_table(shop.root, "metrics").query("run_id == 'look-1' and metric == 'ndcg' and slice == 'touched'")
    learned = {"logistic", "trees", "ensemble"}
    assert set(metrics["model"]) == {"popularity", "recent", "item_knn", "fusion", "blend", "served", *learned}
    figures = dict(looks["figures"].iloc[0])
    assert figures["ndcg@5 touched blend"].startswith(f"{metrics.set_index('model')['value']['blend']:.4f} [")


def test_what_does_not_go_together_is_refused(shop: Shop) -> None:
    options: dict[str, Any] = {"sources": None, "num_folds": 1, "num_trials": 2, "is_final": False, "first": None}
    with pytest.raises(SettingsError, match="--trials: found sources popularity, recent, item_knn, expected als among"):
        compare(shop.run, **options)
    with pytest.raises(SettingsError, match="a test fold never picks a setting"):
        compare(shop.run, **{**options, "is_final": True})
    with pytest.raises(SettingsError, match="--from candidates: found it beside --trials"):
        compare(shop.run, **{**options, "sources": "als", "first": "candidates"})


def test_trials_begin_with_the_settings_as_they_are_and_never_repeat() -> None:
    trials = plan_trials(Als(rank=32, reg_param=0.1, alpha=0.3, min_buyers=1), 1000, seed=0)
    assert trials[0] == Als(rank=32, reg_param=0.1, alpha=0.3, min_buyers=1)
    assert len(trials) == 3 * 5 * 5 * 2 == len({trial.model_dump_json() for trial in trials})
    assert trials[:20] == plan_trials(trials[0], 20, seed=0) != plan_trials(trials[0], 20, seed=1)
