"""The known-answer world: a small log in which taste in one category determines taste in another.

300 users x 120 items in six merchandise categories of strongly unequal sizes, and fuel, which is never recommended.
Every user has a hidden taste (a user of trail tents buys gas stoves); every category has items for every taste. A user
buys from two categories first, from a third in the last month before ``as_of`` and from a fourth within the horizon:
which items he buys there follows from his taste, while which items are popular does not depend on it. So a model that
learns the taste from the known categories beats popularity on the cross-category targets, in the ``select`` fold (one
horizon earlier) and in the main one. In the shuffled world the items of all purchases are permuted within their
category: the same counts, the same categories of every user, no taste; popularity is then the best there is.

Also in it, because real logs have them: baskets whose lines share one time, repeat purchases, views (they do not touch
a category), fuel, cold users (first purchase within the horizon), a cold item, item ids that differ in leading zeros
only. The log on disk has dirty rows of every kind that cleaning names.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

CATEGORIES = {"apparel": 44, "footwear": 30, "tents": 20, "stoves": 12, "lamps": 7, "maps": 4, "fuel": 3}
DEPARTMENTS = {"apparel": "wear", "footwear": "wear", "fuel": "station"}
NON_MERCHANDISE = "fuel"
NUM_TASTES = 4
NUM_TWINS = 6
"""Items whose id is another one's without its leading zeros: 7 and 007 are two products."""
START = datetime(2024, 1, 1, tzinfo=timezone.utc)
AS_OF = datetime(2024, 7, 1, tzinfo=timezone.utc)
HORIZON = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class World:
    """A log with a known answer; times are naive UTC in the frames, aware in ``as_of``."""

    log: pd.DataFrame
    """One row is an event: user_id, item_id, event_ts, event_type (purchase, view), quantity, price; unordered."""
    catalogue: pd.DataFrame
    """One row is an item: item_id, department, category, name."""
    tastes: pd.DataFrame
    """One row is a user: user_id, taste (what no model is told)."""
    item_tastes: pd.DataFrame
    """One row is an item: item_id, taste."""
    as_of: datetime = AS_OF
    horizon: timedelta = HORIZON

    def purchases(self) -> pd.DataFrame:
        """One row is a purchase, with its ``category``."""
        bought = self.log[self.log["event_type"] == "purchase"]
        return bought.merge(self.catalogue[["item_id", "category"]], on="item_id", how="left", validate="many_to_one")

    def history(self, as_of: datetime | None = None) -> pd.DataFrame:
        """One row is a purchase before ``as_of`` (the world's own by default), with its ``category``."""
        bought = self.purchases()
        return bought[bought["event_ts"] < _naive(as_of or self.as_of)]

    def targets(self, as_of: datetime | None = None) -> pd.DataFrame:
        """One row is a (user, item) bought within the horizon, in a category that this (not cold) user had never bought."""
        as_of = as_of or self.as_of
        bought = self.purchases()
        start, end = _naive(as_of), _naive(as_of + self.horizon)
        later = bought[(bought["event_ts"] >= start) & (bought["event_ts"] < end)]
        touched = bought[bought["event_ts"] < start][["user_id", "category"]].drop_duplicates()
        pairs = later[["user_id", "item_id", "category"]].drop_duplicates()
        pairs = pairs.merge(touched, on=["user_id", "category"], how="left", indicator=True)
        is_new = (pairs["_merge"] == "left_only") & (pairs["category"] != NON_MERCHANDISE)
        is_new &= pairs["user_id"].isin(touched["user_id"])
        return pairs.loc[is_new, ["user_id", "item_id", "category"]].reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A world on disk, and what a correct ingest makes of it."""

    config: Path
    """YAML for ``--config``."""
    log_file: Path
    catalogue_file: Path
    injected: dict[str, int]
    """Dirty rows of each kind."""
    num_read: int
    num_clean: int
    num_quarantined: int
    num_duplicates: int


def make_world(
    *, seed: int = 0, shuffled: bool = False, num_users: int = 300, noise: float = 0.12, num_cold_users: int = 6
) -> World:
    """A world; the same arguments give the same world.

    Parameters
    ----------
    seed
        Of everything that is drawn.
    shuffled
        Whether the items of the purchases are permuted within their category, so that nothing beats popularity.
    num_users
        Cold users included.
    noise
        Share of the purchases that do not follow the user's taste.
    num_cold_users
        Users whose first purchase lies within the horizon.
    """
    rng = np.random.default_rng(seed)
    catalogue, item_tastes, popularity = _make_items(rng)
    user_ids = np.array([f"{n:05d}" for n in rng.choice(90_000, num_users, replace=False)])
    tastes = rng.permutation(np.arange(num_users) % NUM_TASTES)
    by_category = {name: np.flatnonzero(catalogue["category"] == name) for name in CATEGORIES}
    by_taste = {
        (name, taste): rows[item_tastes[rows] == taste]
        for name, rows in by_category.items()
        for taste in range(NUM_TASTES)
    }

    def draw(category: str, taste: int) -> int:
        follows = rng.random() >= noise and category != NON_MERCHANDISE
        rows = by_taste[category, taste] if follows else by_category[category]
        return int(rng.choice(rows, p=popularity[rows] / popularity[rows].sum()))

    events = []
    for user, taste in enumerate(tastes):
        phases = _phases(rng, is_cold=user < num_cold_users)
        for start, end, categories, num_baskets in phases:
            for _ in range(num_baskets):
                when = start + timedelta(seconds=int(rng.integers((end - start) // timedelta(seconds=1))))
                items = {draw(str(rng.choice(categories)), taste) for _ in range(rng.integers(1, 4))}
                items |= {draw(NON_MERCHANDISE, taste)} if rng.random() < 0.05 else set()
                events += [(user, item, when, "purchase") for item in sorted(items)]
    bought = {(user, item) for user, item, *_ in events}
    for user in range(num_cold_users, num_users):
        for item in rng.choice(len(catalogue), 3, replace=False):
            when = START + timedelta(seconds=int(rng.integers((AS_OF + HORIZON - START) // timedelta(seconds=1))))
            # Whether a view makes an item one that the user "had" is not this world's question.
            if (user, item) not in bought and popularity[item] > 0:
                events.append((user, int(item), when, "view"))

    log = pd.DataFrame(events, columns=["user", "item", "event_ts", "event_type"])
    log = log.drop_duplicates().sample(frac=1, random_state=seed).reset_index(drop=True)
    if shuffled:
        log = _shuffle_labels(log, catalogue["category"].to_numpy(), rng)
    log["event_ts"] = log["event_ts"].dt.tz_localize(None).astype("datetime64[us]")
    log["user_id"], log["item_id"] = user_ids[log["user"]], catalogue["item_id"].to_numpy()[log["item"]]
    log["quantity"] = rng.integers(1, 4, len(log)).astype(float)
    log["price"] = np.round(rng.lognormal(2, 0.6, len(log)) + 0.01, 2)
    return World(
        log=log[["user_id", "item_id", "event_ts", "event_type", "quantity", "price"]],
        catalogue=catalogue,
        tastes=pd.DataFrame({"user_id": user_ids, "taste": tastes}),
        item_tastes=pd.DataFrame({"item_id": catalogue["item_id"], "taste": item_tastes}),
    )


def _make_items(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Catalogue rows in a random order of ids, with each item's taste and popularity (0: never bought)."""
    num_items = sum(CATEGORIES.values())
    numbers = [f"{n:04d}" for n in range(1, num_items - NUM_TWINS + 1)] + [str(n) for n in range(1, NUM_TWINS + 1)]
    categories = np.repeat(list(CATEGORIES), list(CATEGORIES.values()))
    places = np.concatenate([np.arange(size) for size in CATEGORIES.values()])
    popularity = 1.0 / (1 + places // NUM_TASTES) ** 0.7
    popularity[CATEGORIES["apparel"] - 1] = 0.0
    catalogue = pd.DataFrame(
        {
            "item_id": rng.permutation(numbers),
            "department": [DEPARTMENTS.get(name, "camp") for name in categories],
            "category": categories,
            "name": [f"{name} {place + 1}" for name, place in zip(categories, places, strict=True)],
        }
    )
    return catalogue, places % NUM_TASTES, popularity


def _phases(rng: np.random.Generator, *, is_cold: bool) -> list[tuple[datetime, datetime, list[str], int]]:
    """A user's periods: start, end, the categories that he buys from, number of baskets."""
    names = [name for name in CATEGORIES if name != NON_MERCHANDISE]
    # Larger categories come first a little more often; the square root keeps the small ones alive.
    weights = np.sqrt([CATEGORIES[name] for name in names])
    order = [str(name) for name in rng.choice(names, 4, replace=False, p=weights / weights.sum())]
    if is_cold:
        return [(AS_OF, AS_OF + HORIZON, order[:2], 3)]
    before = AS_OF - HORIZON
    first, second = (START, before, order[:2]), (before, AS_OF, order[:3])
    return [
        (*first, int(rng.integers(5, 12))),
        (*second, 2),
        (before, AS_OF, [order[2]], 2),
        (AS_OF, AS_OF + HORIZON, order[:3], 2),
        (AS_OF, AS_OF + HORIZON, [order[3]], int(rng.integers(1, 4))),
    ]


def _shuffle_labels(log: pd.DataFrame, categories: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The log with the items of its purchases permuted within each category; a doubled line of a basket is dropped."""
    log = log.copy()
    for name in CATEGORIES:
        rows = np.flatnonzero((categories[log["item"]] == name) & (log["event_type"] == "purchase"))
        log.loc[rows, "item"] = rng.permutation(log.loc[rows, "item"].to_numpy())
    return log.drop_duplicates(ignore_index=True)


def _naive(when: datetime) -> datetime:
    return when.astimezone(timezone.utc).replace(tzinfo=None)


_HEADER = ["customer", "product", "time", "action", "units", "amount"]
_ACTIONS = {"purchase": "buy", "view": "look"}


def write_world(
    world: World,
    folder: Path,
    *,
    dirty: bool = True,
    compressed: bool = False,
    platforms: bool = False,
    overrides: dict[str, Any] | None = None,
) -> Written:
    """Write log.csv, catalogue.csv and world.yaml, with dirty rows of every kind that cleaning names.

    Parameters
    ----------
    world
        The world.
    folder
        Where to write; made if missing. The tables go to ``folder/warehouse``.
    dirty
        Whether dirty rows are mixed in; each kind has another count.
    compressed
        Whether the log is log.csv.gz.
    platforms
        Whether every user's events are spread over a web shop (log.csv) and a store (store.csv), which knows him by a card;
        persons.csv tells whose.
    overrides
        Settings over the ones written, as nested keys: ``{"als": {"rank": 4}}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        [row.user_id, row.item_id, f"{row.event_ts:%Y-%m-%d %H:%M:%S}", _ACTIONS[row.event_type], f"{row.quantity:g}",
         f"{row.price:.2f}"]
        for row in world.log.itertuples()
    ]  # fmt: skip
    clean = [",".join(line) for line in lines]
    bad, kept, duplicates, injected = _dirty_lines(lines, world) if dirty else ([], [], [], {})
    rows = clean + bad + kept + duplicates
    rows = [rows[n] for n in np.random.default_rng(1).permutation(len(rows))]
    num_read = len(rows)
    log_file = folder / ("log.csv.gz" if compressed else "log.csv")
    settings = overrides or {}
    if platforms:
        settings = _merge(_write_store(folder, log_file, rows), settings)
        rows = [row for row in rows if not _is_of_store(row)]
    text = "\n".join([",".join(_HEADER), *rows]) + "\n"
    with gzip.open(log_file, "wt") if compressed else log_file.open("w") as handle:
        handle.write(text)

    catalogue = world.catalogue
    if dirty:
        catalogue = pd.concat(
            [catalogue, pd.DataFrame([["9999", "camp", "", "no category"]], columns=catalogue.columns)]
        )
    catalogue_file = folder / "catalogue.csv"
    catalogue.to_csv(catalogue_file, index=False)
    config = folder / "world.yaml"
    config.write_text(yaml.safe_dump(_merge(_settings(world, folder, log_file, catalogue_file), settings)))
    return Written(
        config=config,
        log_file=log_file,
        catalogue_file=catalogue_file,
        injected=injected,
        num_read=num_read,
        num_clean=len(clean) + len(kept),
        num_quarantined=len(bad),
        num_duplicates=len(duplicates),
    )


def _dirty_lines(lines: list[list[str]], world: World) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """Lines to quarantine, odd lines to keep, exact duplicates, and the number of each kind; no two lines are equal."""
    as_of = f"{_naive(world.as_of):%Y-%m-%d}"
    # Copies of old purchases: a kept odd line must not be a target.
    patterns = [line for line in lines if line[3] == "buy" and line[2] < as_of]
    customer, product, when, action, units, amount = range(6)
    broken: dict[str, tuple[int, list[str]]] = {
        "missing_user": (customer, ["", ""]),
        "missing_item": (product, ["", "", ""]),
        "bad_date": (when, ["2024-13-45 00:00:00", "yesterday", "", "31/02/2024"]),
        "unknown_event_type": (action, ["teleport", "BUY?", "x", "", "return-ish"]),
        "zero_quantity": (units, ["0", "0.0", "0", "0", "0", "0"]),
        "negative_quantity": (units, ["-1", "-2", "-0.5", "-3", "-4", "-5", "-6"]),
        "letters_in_quantity": (units, ["two", "1x"]),
        "zero_price": (amount, ["0", "0.00", "0.0"]),
        "negative_price": (amount, ["-1.50", "-0.01", "-7", "-8"]),
        "letters_in_price": (amount, ["12.5O", "abc", "EUR 3", "1.2.3", "--"]),
    }
    bad, position = [], 0
    for name, (column, values) in broken.items():
        for value in values:
            line = list(patterns[position])
            line[column] = value
            if name == "negative_quantity":
                line[action] = "look"  # of a purchase it is a return
            bad.append(",".join(line))
            position += 1
    malformed = ["garbage", ";;;;", "00001,0001,2024-02-01 10:00:00,buy,1,2.00,extra,fields"]
    both = [",0001,never,buy,-1,free", "00001,,,nothing,0,0"]
    kept = [[patterns[n][0], f"X{n}", *patterns[n][2:]] for n in range(100, 109)]
    no_category = [[patterns[n][0], "9999", *patterns[n][2:]] for n in range(120, 124)]
    returned = [[patterns[n][0], f"X{n}", *patterns[n][2:units], "2", "9.00"] for n in range(130, 135)]
    returned += [[*line[:when], _later(line[when], days=3), "buy", "-2", "9.00"] for line in returned]
    repeated = [
        [*patterns[n][:when], _later(patterns[n][when], seconds=1), *patterns[n][action:]] for n in range(140, 144)
    ]
    duplicates = [",".join(lines[n]) for n in range(0, 80, 10)] + [",".join(lines[0])]
    injected = {name: len(values) for name, (_, values) in broken.items()}
    injected |= {"malformed": len(malformed), "several_reasons": len(both), "not_in_catalogue": len(kept)}
    injected |= {"returned": len(returned) // 2, "repeated": len(repeated)}
    injected |= {"no_category": len(no_category), "duplicates": len(duplicates)}
    odd = [",".join(line) for line in kept + no_category + returned + repeated]
    return bad + malformed + both, odd, duplicates, injected


def _is_of_store(row: str) -> bool:
    """Half of the well-formed rows; equal rows, which are duplicates, stay together."""
    return row.count(",") == len(_HEADER) - 1 and zlib.crc32(row.encode()) % 2 == 0


def _write_store(folder: Path, log_file: Path, rows: list[str]) -> dict[str, Any]:
    """Write the store's log, with a card for each customer and semicolons, and whose card it is; gives the settings."""
    store = [
        f"K{row}".replace(",", ";") if row[0] != "," else row.replace(",", ";") for row in rows if _is_of_store(row)
    ]
    header = ";".join(["card", *_HEADER[1:]])
    (folder / "store.csv").write_text("\n".join([header, *store]) + "\n")
    customers = sorted({row.split(",")[0] for row in rows} - {""})
    whose = [f"store,K{customer},{customer}" for customer in customers] + [
        f"web,{customer},{customer}" for customer in customers
    ]
    (folder / "persons.csv").write_text("\n".join(["platform,user_id,person_id", *whose]) + "\n")
    own = {"path": str(folder / "store.csv"), "format": "csv", "options": {"sep": ";"}}
    return {
        "platforms": {"web": {"file": {"path": str(log_file)}}, "store": {"file": own, "columns": {"user_id": "card"}}},
        "identity": {"file": {"path": str(folder / "persons.csv"), "format": "csv"}, "platform": "platform"},
    }


def _later(when: str, **step: float) -> str:
    return f"{datetime.fromisoformat(when) + timedelta(**step):%Y-%m-%d %H:%M:%S}"


def _settings(world: World, folder: Path, log_file: Path, catalogue_file: Path) -> dict[str, Any]:
    """Settings that run the world through the whole pipeline, small enough for a test."""
    return {
        "storage": {"root": str(folder / "warehouse")},
        "log": {
            "file": {"path": str(log_file), "format": "csv"},
            "columns": {
                "user_id": "customer",
                "item_id": "product",
                "event_ts": "time",
                "event_type": "action",
                "quantity": "units",
                "price": "amount",
            },
            "time": {"unit": "text", "format": "yyyy-MM-dd HH:mm:ss"},
            "event_types": {"buy": "purchase", "look": "view"},
        },
        "catalogue": {
            "file": {"path": str(catalogue_file), "format": "csv"},
            "item_id": "item_id",
            "category": ["department", "category"],
            "label": ["name"],
        },
        "categories": {"level": 2, "non_merchandise": [NON_MERCHANDISE]},
        "weights": {"event_types": {"purchase": 1.0, "view": 0.1}},
        "folds": {"as_of": f"{world.as_of:%Y-%m-%d}", "horizon": f"P{world.horizon.days}D", "num_select": 2},
        # All that decides how well a model learns is named: tuning a default for real logs must not change the world.
        "als": {"rank": 8, "max_iter": 10, "reg_param": 0.1, "alpha": 5.0, "min_buyers": 1, "num_blocks": 2},
        "sequence": {
            "length": 30,
            "max_windows": 2,
            "min_buyers": 2,
            "num_shards": 4,
            "num_processes": 2,
            "threads": 1,
            "dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "dropout": 0.2,
            "targets": "first",
            "objective": "new_categories",
            "item_vectors": "als",
            "num_negatives": 64,
            "batch_rows": 64,
            "epochs": 24,
            "epochs_more": 8,
            "patience": 24,
            "validation_share": 0.1,
            "learning_rate": 0.01,
        },
        "ranking": {
            "top_k": 10,
            "candidates_per_source": 40,
            "sources": ["popularity", "als", "als_trend", "gru", "transformer"],
        },
        "ranker": {"num_trees": 40, "max_depth": 3, "learning_rate": 0.1, "min_child_weight": 1.0},
        "evaluation": {"ks": [5, 10], "num_bootstrap": 200},
        "num_buckets": 4,
    }


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the nested keys of ``over`` on top; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged
