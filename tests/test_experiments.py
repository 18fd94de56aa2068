"""Experiments: who is in which arm, what was shown, what came of it, and what may be said; against naive versions."""

from __future__ import annotations

import hashlib
import re
import runpy
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy import stats

from pipeline_runs import ROOT, read_table
from xrec.config import Experiment, Exposures, Settings, describe, load_settings
from xrec.experiments.assignment import arm_of, assigned_arm
from xrec.experiments.effects import (
    HIGHER,
    LOWER,
    MISMATCH,
    NOT_SURE,
    TOO_FEW,
    Sums,
    compare,
    mean_interval,
    results_of,
    srm_p_value,
    welch_interval,
)
from xrec.experiments.exposures import (
    AccountingError,
    check_accounts,
    load_exposures,
    read_exposures,
    require_either,
    write_exposures,
)
from xrec.experiments.outcomes import METRICS
from xrec.experiments.report import ExperimentError, analyse, describe_results
from xrec.ingest.privacy import pseudonym
from xrec.ingest.reader import InputError
from xrec.runs.stage import main
from xrec.schemas import TABLES
from xrec.storage.tables import Tables

pytestmark = pytest.mark.spark

START = datetime(2024, 3, 1, tzinfo=timezone.utc)
KEY = b"0123456789abcdef0123456789abcdef"
ARMS = {"control": 0.3, "lists": 0.5, "other": 0.2}
EXPERIMENT = Experiment(name="spring", salt="s", arms=ARMS, window_days=7)
CATEGORIES = ("tea", "tins", "toys", "fuel")
ITEMS = {f"i{n}": CATEGORIES[n % len(CATEGORIES)] for n in range(12)}
HEADER = "who,what,when,test,group,place"


def settings_of(folder: Path, **sections: Any) -> Settings:
    return Settings.model_validate(raw_settings(folder, **sections))


def raw_settings(folder: Path, **sections: Any) -> dict[str, Any]:
    columns = {"user_id": "who", "item_id": "what", "shown_ts": "when", "experiment": "test", "arm": "group"}
    return {
        "log": {
            "file": {"path": "x.csv", "format": "csv"},
            "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"},
        },
        "catalogue": {"category": ["c"]},
        "storage": {"root": str(folder / "warehouse")},
        "experiment": EXPERIMENT.model_dump(),
        "exposures": {
            "file": {"path": str(folder / "shown.csv"), "format": "csv"},
            "columns": {**columns, "rank": "place"},
        },
        **sections,
    }


# Who is in which arm.


def test_an_arm_follows_from_the_hash_that_the_manual_states(spark: SparkSession) -> None:
    users = ["", "17", "0017", "Zoë", "日本", *[f"u{n}" for n in range(4000)]]
    expected = {}
    for user in users:
        place = int(hashlib.sha256(f"s:spring:{user}".encode()).hexdigest()[:13], 16) / 16**13
        expected[user] = "control" if place < 0.3 else "lists" if place < 0.3 + 0.5 else "other"
    assert {user: arm_of(user, EXPERIMENT) for user in users} == expected
    rows = spark.createDataFrame([(user,) for user in [*users, None]], "user_id string")
    found = rows.select("user_id", assigned_arm(F.col("user_id"), EXPERIMENT).alias("arm")).collect()
    assert {row["user_id"]: row["arm"] for row in found} == {**expected, None: None}
    sizes = Counter(expected.values())
    assert srm_p_value([sizes[arm] for arm in ARMS], list(ARMS.values())) > 0.001


def test_another_experiment_or_salt_divides_the_users_anew() -> None:
    users = [f"u{n}" for n in range(2000)]
    for change in ({"name": "autumn"}, {"salt": "t"}):
        other = Experiment.model_validate({**EXPERIMENT.model_dump(), **change})
        both = Counter((arm_of(user, EXPERIMENT), arm_of(user, other)) for user in users)
        table = [[both[one, two] for two in ARMS] for one in ARMS]
        assert stats.chi2_contingency(table).pvalue > 0.001, "independent of the first one"


def test_a_new_arm_at_the_end_of_a_larger_one_moves_nobody_else() -> None:
    more = EXPERIMENT.model_copy(update={"arms": {"control": 0.3, "lists": 0.5, "other": 0.1, "newest": 0.1}})
    moved = {(arm_of(f"u{n}", EXPERIMENT), arm_of(f"u{n}", more)) for n in range(500)}
    assert {(one, two) for one, two in moved if one != two} == {("other", "newest")}


@pytest.mark.parametrize("arms", [{"control": 1.0}, {"control": 0.5, "lists": 0.6}])
def test_arms_that_do_not_divide_the_users_are_refused(arms: dict[str, float]) -> None:
    with pytest.raises(
        ValidationError, match=r"experiment.arms: found .* expected two arms or more whose shares add up to 1"
    ):
        Experiment(arms=arms)


# What may be said.


def test_users_who_are_lost_in_one_arm_are_found() -> None:
    assert srm_p_value([821_588, 815_482], [0.5, 0.5]) == pytest.approx(1.8e-6, rel=0.02), (
        "Kohavi, Tang, Xu 2020, p. 45"
    )
    expected = np.array([300, 500, 200])
    chi = ((np.array([290, 520, 190]) - expected) ** 2 / expected).sum()
    assert srm_p_value([290, 520, 190], [0.3, 0.5, 0.2]) == pytest.approx(float(stats.chi2.sf(chi, 2)))
    assert srm_p_value([0, 0], [0.5, 0.5]) == 1.0
    assert srm_p_value([0, 50], [0.5, 0.5]) < 0.001


def sums_of_values(values: np.ndarray) -> Sums:
    return Sums(
        num_users=len(values), num_active=int((values > 0).sum()), total=values.sum(), squares=(values**2).sum()
    )


@pytest.mark.parametrize("seed", range(3))
def test_intervals_from_sums_are_welch_s_of_the_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.lognormal(1, 1, 60) * rng.integers(0, 2, 60), rng.lognormal(1.2, 1, 35)
    expected = stats.ttest_ind(two, one, equal_var=False)
    found = compare(sums_of_values(two), sums_of_values(one), 0.95, num_compared=4)
    interval, wide = expected.confidence_interval(0.95), expected.confidence_interval(1 - 0.05 / 4)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert (found["adjusted_low"], found["adjusted_high"]) == pytest.approx((wide.low, wide.high))
    assert found["difference"] == pytest.approx(two.mean() - one.mean())
    alone = mean_interval(one.mean(), one.var(ddof=1), len(one), 0.95)
    assert alone == pytest.approx(stats.t.interval(0.95, 59, one.mean(), stats.sem(one)))


def test_the_interval_covers_the_true_effect_and_equal_arms_seldom_win() -> None:
    rng, trials, nums = np.random.default_rng(0), 4000, np.array([[1500.0], [500.0]])
    for rates in ((0.04, 0.06), (0.05, 0.05)):
        active = np.stack([rng.binomial(int(n[0]), rate, trials) for n, rate in zip(nums, rates, strict=True)])
        means = active / nums
        variances = (active - active**2 / nums) / (nums - 1)
        low, high = welch_interval(means, variances, nums, 0.95)
        covered = ((low <= rates[1] - rates[0]) & (rates[1] - rates[0] <= high)).mean()
        assert covered == pytest.approx(0.95, abs=0.015), "1,500 and 500 users who convert at 4 to 6 %"


def test_few_conversions_are_no_win() -> None:
    """Between equal arms of 9 to 1 and few conversions the plain interval wins too often; the verdict does not."""
    rng, nums, trials = np.random.default_rng(1), (9000, 1000), 3000
    for rate, most in ((0.002, 0.0), (0.012, 0.09)):
        wins = plain = 0
        for _ in range(trials // 10):
            control, arm = (Sums(num_users=n, num_active=k, total=float(k), squares=float(k))
                            for n, k in zip(nums, (int(rng.binomial(n, rate)) for n in nums), strict=True))  # fmt: skip
            found = compare(arm, control, 0.95, num_compared=1)
            wins += found["verdict"] in {HIGHER, LOWER}
            plain += bool(float(found["difference_low"]) > 0 or float(found["difference_high"]) < 0)
        assert wins / (trials // 10) <= most
        assert plain / (trials // 10) > 0.03
    one = Sums(num_users=1)
    assert compare(one, one, 0.95, num_compared=1) == {"verdict": TOO_FEW}


def results(sizes: tuple[int, int], active: tuple[int, int]) -> list[dict[str, Any]]:
    arms = ("control", "lists")
    sums = {
        (arm, kind, kind if kind == "all" else "tea", "conversion"): Sums(num_users=n, num_active=k, total=k, squares=k)
        for arm, n, k in zip(arms, sizes, active, strict=True)
        for kind in ("all", "category")
    }
    num_users = {(arm, "all", "all"): n for arm, n in zip(arms, sizes, strict=True)}
    shares = {"control": 0.5, "lists": 0.5}
    return results_of(sums, num_users, shares=shares, metrics=["conversion"], confidence=0.95)


@pytest.mark.parametrize(
    ("sizes", "active", "figures", "verdict"),
    [
        ((1000, 1000), (50, 100), "0.1 A to the control +0.05 B (+100.0%)", HIGHER),
        ((1000, 1000), (60, 58), "0.058 A to the control -0.002 B (-3.3%)", NOT_SURE),
        ((1000, 1000), (3, 12), "0.012 A to the control +0.009 B (+300.0%)", TOO_FEW),
        ((1000, 1300), (50, 130), "0.1 A", MISMATCH),
    ],
)
def test_what_is_printed(sizes: tuple[int, int], active: tuple[int, int], figures: str, verdict: str) -> None:
    values = [np.repeat([1.0, 0.0], [k, n - k]) for n, k in zip(sizes, active, strict=True)]
    alone = stats.t.interval(0.95, sizes[1] - 1, values[1].mean(), stats.sem(values[1]))
    welch = stats.ttest_ind(values[1], values[0], equal_var=False).confidence_interval(0.95)
    said = figures.replace("A", f"[{alone[0]:.4g}, {alone[1]:.4g}] a user;")
    said = said.replace("B", f"[{welch.low:+.4g}, {welch.high:+.4g}]")
    said = f"{said} {verdict}" if verdict == MISMATCH else f"{said}: {verdict}"
    rows = results(sizes, active)
    shown = describe_results(rows, {"control": 0.5, "lists": 0.5})
    assert shown["conversion lists"] == said
    if sizes[1] == 1300:
        assert {row["verdict"] for row in rows if row["arm"] == "lists"} == {MISMATCH}
        assert shown["sample ratio"].startswith(
            "SAMPLE-RATIO MISMATCH (p = 4.0e-10, below 0.001): the arms are not what"
        )
        assert shown["arm lists"] == "1,300 users, 1,150 expected of a share of 0.5"
    else:
        assert shown["sample ratio"] == "as the shares say (p = 1)"
        assert shown["conversion lists in tea"] == said


# What was shown.


def load(
    spark: SparkSession, folder: Path, lines: list[str], key: bytes | None = None, **sections: Any
) -> dict[str, str]:
    (folder / "shown.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    settings = settings_of(folder, **sections)
    assert settings.exposures is not None
    return write_exposures(Tables(spark, settings.storage), settings, settings.exposures, key)


def table_of(spark: SparkSession, folder: Path, name: str) -> DataFrame:
    return Tables(spark, settings_of(folder).storage).read(name)


BAD_LINES = [
    "u1,i1,2024-03-01 10:00:00,spring,lists,1",
    "u1,i1,2024-03-01 10:00:00,spring,lists,1",
    "u1,i1,2024-03-01 10:00:01,spring,,",
    "u2,,2024-03-01 10:00:00,spring,control,",
    ",i1,2024-03-01 10:00:00,spring,lists,1",
    "u1,i1,,spring,lists,1",
    "u1,i1,yesterday,spring,lists,1",
    "u1,i1,2199-03-01 10:00:00,spring,lists,1",
    "u1,i1,2024-03-01 10:00:00,,lists,1",
    "u1,i1,2024-03-01 10:00:00,spring,lists,first",
    "u1,i1,2024-03-01 10:00:00,spring,lists,0",
    "u1,i1,2024-03-01 10:00:00,spring,lists,20240517120000",
    "gone,i1,2024-03-01 10:00:00,spring,lists,0",
    "gone,i1,2024-03-01 10:00:00,spring,lists,1",
    "one column too,many,2024-03-01 10:00:00,spring,lists,1,1",
]


def test_every_row_is_accounted_for_and_a_delivery_replaces_itself(spark: SparkSession, tmp_path: Path) -> None:
    tables = Tables(spark, settings_of(tmp_path).storage)
    tables.write("opt_outs", spark.createDataFrame([("", "gone")], "platform string, user_id string"))
    figures = load(spark, tmp_path, BAD_LINES)
    assert figures == {
        "exposures": "15 read, 3 kept, 11 rejected, 1 duplicate",
        "rejected_rank_unparsable": "4",
        "rejected_experiment_missing": "1",
        "rejected_opted_out": "1",
        "rejected_row_malformed": "1",
        "rejected_shown_ts_missing": "1",
        "rejected_shown_ts_too_late": "1",
        "rejected_shown_ts_unparsable": "1",
        "rejected_user_id_missing": "1",
    }
    first = table_of(spark, tmp_path, "exposures").drop("versions").collect()
    assert "gone" not in {row["user_id"] for row in first}
    assert load(spark, tmp_path, BAD_LINES) == figures
    assert set(table_of(spark, tmp_path, "exposures").drop("versions").collect()) == set(first)
    with pytest.raises(
        InputError, match=r"exposures.file.path: none of the 1 rows of .*shown.csv can be used: user_id_missing"
    ):
        load(spark, tmp_path, [",i1,2024-03-01 10:00:00,spring,lists,1"])


def test_users_stay_the_platforms_and_are_persons_when_read(spark: SparkSession, tmp_path: Path) -> None:
    """Who he is may change after the load, and so may that he is left out."""
    sections = raw_settings(tmp_path)
    columns = {"user_id": "who", "item_id": "what", "shown_ts": "when", "experiment": "test", "arm": "group"}
    sections["exposures"]["columns"] = {**columns, "platform": "place"}
    sections["platforms"] = {name: {"file": {"path": f"{name}.csv", "format": "csv"}} for name in ("web", "store")}
    settings = Settings.model_validate(sections)
    tables = Tables(spark, settings.storage)
    since = datetime(2023, 1, 1, tzinfo=timezone.utc)
    schema = "platform string, user_id string, person_id string, valid_from_ts timestamp"
    tables.write("identities", spark.createDataFrame([("web", "17", "p7", since)], schema))
    (tmp_path / "shown.csv").write_text(
        f"{HEADER}\n17,i1,2024-03-01 10:00:00,spring,lists,web\n18,i1,2024-03-01 10:00:00,spring,lists,store\n"
    )
    assert settings.exposures is not None
    write_exposures(tables, settings, settings.exposures, None)

    def users(rows: DataFrame) -> set[tuple[str, ...]]:
        return {tuple(row) for row in rows.collect()}

    assert users(tables.read("exposures").select("platform", "user_id")) == {("web", "17"), ("store", "18")}
    assert users(read_exposures(tables, settings).select("user_id")) == {("p7",), ("store:18",)}
    tables.write("opt_outs", spark.createDataFrame([("web", "17")], "platform string, user_id string"))
    assert users(read_exposures(tables, settings).where("opted_out").select("user_id")) == {("p7",)}


def test_lost_rows_are_an_error() -> None:
    check_accounts(10, 5, {"a": 3}, 2)
    with pytest.raises(AccountingError, match=r"found 10, expected 4 kept \+ 3 rejected \+ 2 duplicates = 9"):
        check_accounts(10, 4, {"a": 3}, 2)


@pytest.mark.parametrize(("is_pseudonym", "expected"), [(False, pseudonym("u1", KEY)), (True, "u1")])
def test_users_are_the_pseudonyms_that_the_events_have(
    spark: SparkSession, tmp_path: Path, is_pseudonym: bool, expected: str
) -> None:
    (tmp_path / "shown.csv").write_text(f"{HEADER}\n{BAD_LINES[0]}\n")
    exposures = {**raw_settings(tmp_path)["exposures"], "pseudonymised": is_pseudonym}
    settings = settings_of(tmp_path, exposures=exposures)
    assert settings.exposures is not None
    rows = load_exposures(spark, settings, settings.exposures, KEY).collect()
    assert [row["user_id"] for row in rows] == [expected]


def test_a_missing_column_names_its_key(spark: SparkSession, tmp_path: Path) -> None:
    exposures = raw_settings(tmp_path)["exposures"]
    exposures["columns"]["rank"] = "rank"
    with pytest.raises(InputError, match=r"exposures.columns.rank: found 'rank'.*did you mean 'when'"):
        load(spark, tmp_path, BAD_LINES, exposures=exposures)


def test_windows_need_a_clock(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"exposures.time.unit: found order, expected text, s, ms, us or ns"):
        Exposures.model_validate({**raw_settings(tmp_path)["exposures"], "time": {"unit": "order"}})
    log = {**raw_settings(tmp_path)["log"], "time": {"unit": "order"}}
    with pytest.raises(ValidationError, match=r"exposures, feedback: found them beside log.time.unit: order"):
        settings_of(tmp_path, log=log)


def test_the_exposures_of_the_example_are_as_it_states(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = ROOT / "conf" / "example_experiment.yaml"
    settings = load_settings([config])
    assert settings.exposures is not None
    rows = load_exposures(spark, settings, settings.exposures, None).collect()
    kept = {row["exposure_id"]: row for row in rows if row["reason"] is None}
    rejected = [row for row in rows if row["reason"] is not None]
    assert settings.experiment is not None
    wrong = [row for row in kept.values() if row["arm"] != arm_of(row["user_id"], settings.experiment)]
    said = f"{len(rows)} read, {len(kept)} kept, {len(rejected)} rejected, {len(rows) - len(kept) - len(rejected)} duplicate"
    assert f"exposures {said}, and of those kept {len(wrong)}" in config.read_text()


# What came of it.


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A random log and what was shown, as rows and as tables; times are minutes after START."""

    folder: Path
    bought: list[tuple[str, str, int, float | None, str]]
    """user, item, minute, price, use"""
    shown: list[tuple[str, str | None, int, str]]
    """user, item, minute, arm"""
    tiers: dict[str, str]

    @property
    def log_end(self) -> int:
        return max(minute for _, _, minute, *_ in self.bought)


DAY = 24 * 60
WINDOW = 7 * DAY


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(5)
    users = [f"u{n}" for n in range(80)]
    bought = [
        (str(rng.choice(users)), str(rng.choice(list(ITEMS))), int(rng.integers(0, 40 * DAY)),
         None if rng.random() < 0.2 else float(rng.integers(1, 20)), "returned" if rng.random() < 0.1 else "used")
        for _ in range(900)
    ]  # fmt: skip
    shown: list[tuple[str, str | None, int, str]] = []
    for user in users[:70]:
        arm = arm_of(user, EXPERIMENT)
        shown += [
            (user, str(rng.choice(list(ITEMS))), int(rng.integers(10 * DAY, 36 * DAY)), arm)
            for _ in range(rng.integers(0, 8))
        ]
        shown += [(user, None, 12 * DAY, arm)] if rng.random() < 0.3 else []
    # The edges of a window: at the moment of showing, just after, its last moment, and just after that.
    for n, after in enumerate((0, 1, WINDOW, WINDOW + 1)):
        user = f"edge{n}"
        shown.append((user, "i1", 20 * DAY, arm_of(user, EXPERIMENT)))
        bought.append((user, "i1", 20 * DAY + after, 3.0, "used"))
    wrong = next(arm for arm in ARMS if arm != arm_of("u75", EXPERIMENT))
    shown += [("u75", "i1", 20 * DAY, wrong), ("u76", "i1", 20 * DAY, "whatever"), ("robot", "i1", 20 * DAY, "")]
    bought.append(("robot", "i1", 20 * DAY + 5, 1.0, "used"))
    tiers = {user: str(rng.choice(["gold", "silver"])) for user in users[:60]}
    made = Shop(folder=folder, bought=bought, shown=shown, tiers=tiers)
    write_shop(spark, made)
    return made


def write_shop(spark: SparkSession, shop: Shop) -> None:
    tables = Tables(spark, settings_of(shop.folder).storage)

    def write(name: str, rows: list[tuple[Any, ...]], **owned: str) -> None:
        schema = TABLES[name].schema
        tables.write(name, spark.createDataFrame(rows, type(schema)(schema.fields[:-1])), **owned)

    users = sorted({user for user, *_ in shop.bought} | {user for user, *_ in shop.shown})
    write("users", [(user, n) for n, user in enumerate(users)])
    write(
        "items",
        [(item, n, name, [name], item, True, name != "fuel") for n, (item, name) in enumerate(ITEMS.items())],
    )
    events = [
        (f"e{n}", "main", user, item, "purchase", at(minute), 1.0, price, use,
         at(minute + 3 * DAY) if use == "returned" else None, at(minute))
        for n, (user, item, minute, price, use) in enumerate(shop.bought)
    ]  # fmt: skip
    views = [("v", "main", "edge0", "i1", "view", at(20 * DAY + 9), None, None, "used", None, at(0))]
    write("judged_events", [*events, *views])
    write("persons", [("robot", 1, 1, 1, 1, 1, None, at(30 * DAY), ["many"])])
    write("user_attributes", [("", user, "tier", tier) for user, tier in shop.tiers.items()])
    lines = [
        f"{user},{item or ''},{at(minute):%Y-%m-%d %H:%M:%S},spring,{arm},1" for user, item, minute, arm in shop.shown
    ]
    lines += ["u1,i1,2024-03-20 00:00:00,autumn,whatever,1"]
    (shop.folder / "shown.csv").write_text("\n".join([HEADER, *dict.fromkeys(lines)]) + "\n")


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def naive_values(shop: Shop) -> dict[tuple[str, str, str], dict[str, float]]:
    """(kind, slice, metric) to each counted user's value, as the definitions read; users without one are 0."""
    kept = [(user, item, minute, price) for user, item, minute, price, use in shop.bought if use == "used"]
    shown = [
        (user, item, minute)
        for user, item, minute, arm in shop.shown
        if minute + WINDOW <= shop.log_end and arm == arm_of(user, EXPERIMENT)
    ]
    users = {user for user, *_ in shown}
    values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(sorted(users), 0.0))
    for user in users:
        mine = [row[1:] for row in kept if row[0] == user]
        first = min(minute for other, _, minute in shown if other == user)
        later = [row for row in mine if first < row[1] <= first + WINDOW]
        found: dict[str, dict[str, float]] = {metric: defaultdict(float) for metric in METRICS}
        for _, item, minute in (row for row in shown if row[0] == user):
            if any(bought == item and minute < when <= minute + WINDOW for bought, when, _ in mine):
                assert item is not None
                found["conversion"][ITEMS[item]] = 1.0
        for item, _, price in later:
            category = ITEMS[item]
            found["purchases"][category] += 1
            found["spend"][category] += price or 0.0
            was_there = any(ITEMS[other] == category and when <= first for other, when, _ in mine)
            if not was_there and category != "fuel":
                found["cross_conversion"][category] = 1.0
        for metric, by_category in found.items():
            whole = sum(by_category.values())
            whole = min(whole, 1.0) if "conversion" in metric else whole
            values["all", "all", metric][user] = whole
            if user in shop.tiers:
                values["segment", f"tier={shop.tiers[user]}", metric][user] = whole
            for category, value in by_category.items():
                values["category", category, metric][user] = value
    for (kind, name, _), of_user in values.items():
        if kind == "segment":
            for user in [user for user in of_user if shop.tiers.get(user) != name.removeprefix("tier=")]:
                del of_user[user]
    return dict(values)


def indexed(tables: Tables) -> DataFrame:
    items = tables.read("items").select("item_id", "item_idx", "category", "recommendable")
    return tables.read("judged_events").drop("versions").join(items, "item_id", how="inner")


def test_results_equal_a_naive_computation(spark: SparkSession, shop: Shop) -> None:
    settings = settings_of(shop.folder)
    tables = Tables(spark, settings.storage)
    assert settings.exposures is not None
    write_exposures(tables, settings, settings.exposures, None)
    rows, uses = analyse(tables, indexed(tables), settings, EXPERIMENT)
    expected = naive_values(shop)
    slices = {(row["kind"], row["slice"], row["metric"]) for row in rows}
    assert set(expected) <= slices
    assert {kind for kind, *_ in slices} == {"all", "category", "segment"}
    users = expected["all", "all", "conversion"]
    for row in rows:
        name = (row["kind"], row["slice"], row["metric"])
        of_arm = {
            arm: np.array(
                [value for user, value in expected.get(name, dict.fromkeys(users, 0.0)).items()
                 if arm_of(user, EXPERIMENT) == arm]
            )
            for arm in ("control", row["arm"])
        }  # fmt: skip
        mine = of_arm[row["arm"]]
        assert row["num_users"] == len(mine), name
        assert row["num_active"] == (mine > 0).sum(), name
        assert row["value"] == pytest.approx(mine.mean()), name
        if row["arm"] == "control":
            assert row["difference"] is None
        elif mine.std() + of_arm["control"].std() > 0:
            welch = stats.ttest_ind(mine, of_arm["control"], equal_var=False).confidence_interval(0.95)
            assert (row["difference_low"], row["difference_high"]) == pytest.approx((welch.low, welch.high)), name
            # Bonferroni: two arms beside the control, every metric, every slice of the kind.
            num_compared = 2 * len(METRICS) * {"all": 1, "category": len(CATEGORIES), "segment": 2}[row["kind"]]
            wide = stats.ttest_ind(mine, of_arm["control"], equal_var=False).confidence_interval(
                1 - 0.05 / num_compared
            )
            assert (row["adjusted_low"], row["adjusted_high"]) == pytest.approx((wide.low, wide.high)), name
    assert sum(value for value in users.values()) > 0
    edges = {user: users[user] for user in (f"edge{n}" for n in range(4))}
    assert edges == {"edge0": 0.0, "edge1": 1.0, "edge2": 1.0, "edge3": 0.0}
    assert (uses["exposures_wrong_arm"], uses["exposures_arm_unknown"]) == ("1", "1")
    assert (uses["exposures_no_person"], uses["exposures_other_experiment"]) == ("1", "1")
    assert int(uses["exposures_window_open"]) > 0
    assert sum(int(count) for count in uses.values()) == tables.read("exposures").count()


def test_other_arms_than_those_assigned_stop_with_what_became_of_the_rows(spark: SparkSession, shop: Shop) -> None:
    settings = settings_of(shop.folder)
    tables = Tables(spark, settings.storage)
    summer = EXPERIMENT.model_copy(update={"name": "summer"})
    with pytest.raises(
        ExperimentError, match=r"experiment 'summer': found none of the \d+ exposures to be used \(\d+ other_"
    ):
        analyse(tables, indexed(tables), settings, summer)
    patient = EXPERIMENT.model_copy(update={"window_days": 100.0})
    rows, figures = analyse(tables, indexed(tables), settings, patient)
    assert rows == []
    assert figures["results"].startswith("none yet: the log ends 2024-04-0")
    empty = settings_of(shop.folder / "nothing")
    with pytest.raises(InputError, match=r"table 'exposures' not found.*run ./spark-submit.sh jobs/read_experiment.py"):
        analyse(Tables(spark, empty.storage), indexed(tables), empty, EXPERIMENT)


def test_the_job_prints_and_writes_the_results(
    spark: SparkSession, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shop.folder / "shop.yaml"
    config.write_text(yaml.safe_dump(raw_settings(shop.folder)))
    job = runpy.run_path(str(ROOT / "jobs" / "read_experiment.py"))
    main("read_experiment", job["run"], ["--config", str(config)])
    output = capsys.readouterr().out
    found = read_table(shop.folder / "warehouse", "experiment_results")
    assert set(found["experiment"]) == {"spring"}
    overall = found[(found["kind"] == "all") & (found["metric"] == "conversion")].set_index("arm")
    values = naive_values(shop)["all", "all", "conversion"]
    for arm in ARMS:
        of_arm = [value for user, value in values.items() if arm_of(user, EXPERIMENT) == arm]
        assert overall.loc[arm, "value"] == pytest.approx(np.mean(of_arm))
        assert re.search(rf"arm {arm}: {len(of_arm)} users, [\d,]+ expected of a share", output)
    with pytest.raises(InputError, match="exposures, experiment: found neither, expected one of them"):
        require_either(settings_of(shop.folder, exposures=None, experiment=None))
    assert re.search(r"sample ratio: as the shares say \(p = 0\.\d+\)", output), output
    assert set(overall["verdict"]) <= {"control", TOO_FEW, NOT_SURE}, "the arms are alike"


def test_the_manual_of_the_job_has_examples_and_the_settings() -> None:
    job = (ROOT / "jobs" / "read_experiment.py").read_text()
    assert "./spark-submit.sh jobs/read_experiment.py --config" in job
    assert any("experiment.arms (" in line and "control" in line for line in describe())
