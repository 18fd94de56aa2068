"""The page of a run: pages of hand-made facts, facts of small tables, and the page in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import load_settings
from xrec.reporting.drawing import canvas, to_svg
from xrec.reporting.facts import Cleaning, Count, Customer, Facts, Flow, Flows, Share, Training
from xrec.reporting.figures import draw_flows
from xrec.reporting.gather import gather
from xrec.reporting.page import render
from xrec.reporting.words import UNSURE, difference, headline, verdict
from xrec.runs.ledger import StageRun, record
from xrec.runs.stage import StageContext
from xrec.sequence.progress import Epoch, Progress, save_progress
from xrec.storage.tables import rows_from

EVIL = "<script>alert('x')</script>"
MADE_AT = datetime(2024, 5, 17)


def metric(model: str, name: str = "ndcg", value: float = 0.05, difference: float | None = None, **changes: Any) -> Row:
    """A row of metrics; the interval of its difference is 0.004 wide on both sides, the adjusted one 0.006."""
    around = (lambda half: [None, None]) if difference is None else lambda half: [difference - half, difference + half]
    (low, high), (adjusted_low, adjusted_high) = around(0.004), around(0.006)
    values: dict[str, Any] = {
        C.RUN_ID: "r1",
        C.FOLD: "test-2024-05-01",
        C.MODEL: model,
        C.SLICE: "touched",
        C.METRIC: name,
        C.K: 10,
        C.VALUE: value,
        C.LOW: value - 0.01,
        C.HIGH: value + 0.01,
        C.DIFFERENCE: difference,
        C.DIFFERENCE_LOW: low,
        C.DIFFERENCE_HIGH: high,
        C.ADJUSTED_LOW: adjusted_low,
        C.ADJUSTED_HIGH: adjusted_high,
        C.NUM_USERS: 1234,
    }
    return Row(**(values | changes))


def serving(model: str, ndcg: float, *, chosen: bool = False, lower: float = 0.001) -> Row:
    """A row of ``serving_models``, compared with als."""
    change = ndcg - 0.055
    return Row(
        fold="test-2024-05-01",
        scope="touched",
        model=model,
        learns=model == "trees",
        chosen=chosen,
        ndcg=ndcg,
        low=ndcg - 0.01,
        high=ndcg + 0.01,
        compared_with="als",
        difference=change,
        adjusted_low=lower,
        adjusted_high=2 * change - lower,
        num_users=9,
        selected_on="select-1",
    )


def make_facts(**changes: Any) -> Facts:
    """A page with every part, whose names from outside are hostile."""
    epochs = [
        Epoch(epoch=n, loss=6 / n, ndcg=0.01 * n, hit_rate=0.02, seconds=3.0, windows_per_second=9.0) for n in (1, 2)
    ]
    flow = Flow(main_category=EVIL, category="$5 & $10_", num_shown=30, num_targets=4, num_hits=2)
    exposed = {C.LOW: None, C.HIGH: None}
    facts = Facts(
        title=EVIL,
        fold="test-2024-05-01",
        fold_text="a backtest",
        is_select=False,
        run_id="r1",
        served="served",
        scope="touched",
        k=10,
        missing={},
        cleaning=Cleaning(
            steps=[Count(name="rows read", num_rows=1000), Count(name="clean", num_rows=900)],
            set_aside=[Count(name=f"quarantined: {EVIL}", num_rows=100)],
        ),
        shares=[
            Share(category=EVIL, num_events=60, before=0.6, after=0.5),
            Share(category="飲料", num_events=40, before=0.4, after=0.5),
        ],
        trainings=[Training(model="gru", fold="test-2024-05-01", best=2, epochs=epochs)],
        metrics=[
            metric("popularity", difference=0.0),
            metric("als", value=0.055, difference=0.005),
            metric("served", value=0.06, difference=0.01),
            metric("popularity", slice="cold_users", difference=0.0),
            metric("popularity", "coverage", 0.1, **exposed),
            metric("served", "coverage", 0.2, **exposed),
        ],
        reliability=[
            Row(model="trees", bin=1, num_rows=99, num_users=9, predicted=0.02, observed=0.01, low=0.0, high=0.03),
            Row(model="trees", bin=2, num_rows=99, num_users=9, predicted=0.05, observed=0.06, low=0.04, high=0.08),
        ],
        flows=Flows(
            model="served",
            slice_name="touched",
            k=10,
            cells=[flow],
            main_categories=[EVIL],
            categories=["$5 & $10_"],
            num_shown={EVIL: 40},
            biggest=[flow],
        ),
        customers=[
            Customer(
                user_id=EVIL,
                num_touched=3,
                heaviest=[(EVIL, 0.7)],
                purchases=[(date(2024, 4, 30), EVIL, EVIL)],
                items=[(1, EVIL, EVIL, f"New for you: {EVIL}")],
            )
        ],
        looks=[
            Row(
                looked_ts=MADE_AT,
                fold="test-2024-05-01",
                run_id="r1",
                code_version="abc123",
                settings_hash="d1",
            )
        ],
        trials=[Row(trial=0, settings=EVIL, selected_on="select-1", k=10, ndcg=0.05, chosen=True)],
        blend=[Row(scope="touched", source="als", weight=0.8, selected_on="select-1")],
        serving=[serving("trees", 0.06, chosen=True), serving("als", 0.055), serving("popularity", 0.05)],
        stages=[
            StageRun(
                run_id="r1",
                stage="ingest",
                started_ts=MADE_AT,
                seconds=1.5,
                settings_hash="d1",
                outputs={"events": 3},
                figures={"rows": EVIL, "_hidden": "no"},
            )
        ],
        versions={"events": 3},
        packages={"xrec": "0.1.0"},
        settings=[("storage.root", EVIL)],
    )
    return replace(facts, **changes)


class Outline(HTMLParser):
    """What a page holds, as a parser that knows nothing of its template sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict[str, int]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "figure":
            self.figures.append({})
        elif "figure" in self._open:
            self.figures[-1][tag] = self.figures[-1].get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_facts(), made_at=MADE_AT)


def test_a_page_needs_nothing_else(page: str) -> None:
    outline = Outline(page)
    assert not {"script", "link", "img", "image", "iframe", "object"} & {
        tag for tag, attributes in outline.tags if attributes.get("href") != "data:,"
    }
    links = [value for _, attributes in outline.tags for name, value in attributes.items() if name in {"href", "src"}]
    assert all((value or "").startswith(("#", "data:,")) for value in links), "no address leads out of the page"
    assert "url(http" not in page
    assert "@import" not in page
    assert len(page) < 3e6


def test_text_from_outside_does_not_run(page: str) -> None:
    assert EVIL not in page
    assert page.count(html.escape("<script>")) > 10, "as text it is there"
    assert "$5 & $10_" in Outline(page).text, "a dollar is no formula"
    assert "飲料" in page


def test_every_figure_has_a_title_a_drawing_a_caption_and_a_table(page: str) -> None:
    outline = Outline(page)
    assert len(outline.figures) == 10
    for figure in outline.figures:
        assert figure["svg"] == figure["title"] == figure["figcaption"] == figure["details"] == figure["table"] == 1
        assert figure["path"] > 4, "the paper, the axes and two lines are four"
        assert figure["tr"] > 1
    ids = [attributes["id"] for _, attributes in outline.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)), "several drawings on a page do not share names"
    named = {
        attributes.get("aria-labelledby") for tag, attributes in outline.tags if tag in {"figure", "svg", "section"}
    }
    assert named <= set(ids)
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | {v[1:] for _, a in outline.tags if (v := a.get("xlink:href"))}
    assert used <= set(ids), "each drawing finds its own parts"


def test_colours_follow_the_page(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    colours = {colour for drawing in drawings for colour in re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing)}
    assert colours <= {"none", "currentColor"} | {
        colour for colour in colours if colour.startswith(("var(--", "url(#"))
    }
    declared = set(re.findall(r"(--[a-z]+(?:-\d)?):", page))
    assert {colour[4:-1] for colour in colours if colour.startswith("var(")} <= declared


@pytest.mark.parametrize(
    ("change", "said"), [(0.007, "higher"), (-0.007, "lower"), (0.005, UNSURE), (-0.005, UNSURE), (0.0, UNSURE)]
)
def test_a_difference_whose_interval_holds_zero_is_none(change: float, said: str) -> None:
    row = metric("served", difference=change)
    assert verdict(row) == said
    facts = make_facts(metrics=[metric("popularity", difference=0.0), row])
    text = " ".join(headline(facts))
    assert ("no sure difference" in text) == (said == UNSURE)
    assert ("higher than" in text, "lower than" in text) == (said == "higher", said == "lower")
    shown = Outline(render(facts, made_at=MADE_AT)).text
    for word in {"higher", "lower", UNSURE} - {said}:
        assert f": {word}" not in shown


def test_the_interval_that_is_shown_is_the_one_that_decides() -> None:
    assert difference(metric("als", value=0.055, difference=0.005)) == f"+10.0 % [-2.0, +22.0]: {UNSURE}"
    assert difference(metric("als", value=0.005, difference=0.005)) == f"+0.0050 [-0.0010, +0.0110]: {UNSURE}"
    assert difference(metric("popularity", difference=0.0)) == "-"
    assert difference(metric("als", "coverage", **{C.ADJUSTED_LOW: None})) == "-"


def test_the_page_says_why_a_model_serves() -> None:
    text = " ".join(headline(make_facts()))
    assert "What serves is trees" in text
    assert "better than the best single source: +9.1 % [+1.8, +16.4] vs als" in text
    single = [serving("als", 0.055, chosen=True), serving("trees", 0.056, lower=-0.01)]
    text = " ".join(headline(make_facts(serving=single)))
    assert "What serves is als" in text
    assert "none of trees is better for sure" in text


def test_a_slice_that_nobody_hits_is_a_sentence_and_no_figure() -> None:
    nothing = [metric(model, value=0.0, slice="touched_cold_items") for model in ("popularity", "als")]
    facts = make_facts()
    page = render(replace(facts, metrics=[*facts.metrics, *nothing]))
    sentence = "items that nobody had before (1,234 users with targets)."
    assert sentence in page
    assert 'id="models-touched-cold-items"' not in page
    assert 'id="models-touched"' in page
    assert sentence not in render(facts)


def test_what_lists_that_serve_will_sell_is_not_said_to_be_nothing() -> None:
    flows = make_facts().flows
    assert flows is not None
    biggest = draw_flows(replace(flows, has_targets=False))[1]
    assert biggest.head == ("main category", "category", "shown")
    assert all(len(row) == 3 for row in biggest.rows)
    assert "bought" not in biggest.caption
    assert draw_flows(flows)[1].head[-2:] == ("targets", "hits")


def test_where_nobody_has_a_target_that_is_said() -> None:
    """The other scope has targets, so that no stage is missing."""
    facts = make_facts()
    others = [row for row in facts.metrics if row["slice"] != facts.scope]
    lines = headline(replace(facts, metrics=others, missing={}))
    assert lines[-1] == "Its accuracy is not known: nobody has a target there."


@pytest.mark.parametrize("name", ["A\x0bB", "\x00", "\x1f", "\ufffe"])
def test_a_name_that_no_page_can_hold_is_drawn_without_it(name: str) -> None:
    with canvas(3, 2) as (figure, [axes]):
        axes.set_title(name)
    assert "<svg" in to_svg(figure, name="x", title="t")


def test_select_folds_are_not_to_be_reported() -> None:
    text = " ".join(headline(make_facts(is_select=True, served="", blend=[], serving=[])))
    assert "Nothing serves" in text
    assert "als: NDCG@10 is 0.0550" in text
    assert "none of the figures is one to report" in text


def test_what_is_missing_is_named_with_its_stage() -> None:
    names = ("metrics", "shares", "trainings", "flows", "customers", "cleaning", "looks", "trials")
    missing = {name: f"nothing of {name}; the stage x makes it" for name in names}
    facts = make_facts(
        missing=missing,
        metrics=[],
        reliability=[],
        shares=[],
        trainings=[],
        flows=None,
        customers=[],
        cleaning=None,
        looks=[],
        trials=[],
    )
    outline = Outline(render(facts, made_at=MADE_AT))
    assert not outline.figures
    for line in missing.values():
        assert line in outline.text


# Facts of tables


@pytest.mark.spark
@pytest.mark.delta
def test_facts_are_those_of_the_tables(spark: SparkSession, tmp_path: Path) -> None:
    overrides = [f"storage.root={tmp_path / 'tables'}", "ranking.sources=[popularity,gru]", "folds.as_of=2024-05-01"]
    context = StageContext(spark=spark, settings=load_settings([], overrides), run_id="r1")
    fold = "test-2024-05-01"
    write(context, "judged_events", [event(n, datetime(2024, 2 + n, 1)) for n in range(4)])
    facts = gather(context)
    assert not facts.metrics
    assert "balance" in facts.missing["shares"]
    assert "ingest" in facts.missing["cleaning"]
    assert "recommend" in facts.missing["customers"]
    assert render(facts)

    write(
        context,
        "accounts",
        [account("clean", 4), account("quarantined", 2), account("duplicate", 1), account("bad", 2)],
    )
    shares = [share(f"c{n:02}", n) for n in range(1, 25)]
    write(context, "balance_report", shares)
    write(context, "items", [item(n) for n in range(3)])
    write(context, "users", [{C.USER_ID: f"u{n}", C.USER_IDX: n} for n in range(7)])
    mixes = [mix(fold, user, place, weight) for user in range(7) for place, weight in ((0, 1.0), (1, 3.0))]
    write(context, "user_categories", mixes)
    had = [interaction(fold, user, item) for user in range(7) for item in range(3)]
    write(context, "interactions", had)
    write(context, "recommendations", [listed(fold, user, 1) for user in range(7)])
    rows = [metric("popularity", difference=0.0), metric("served", difference=0.01), metric("served", run_id="r0")]
    rows = [Row(**(row.asDict() | {C.FOLD: "pooled"})) for row in rows] + rows
    rows.append(metric("served", "coverage", 0.2, low=None, high=None))
    write(context, "metrics", [row.asDict() for row in rows if row[C.RUN_ID] == "r1"])
    cells = [flow_row("served", f"c{n % 4:02}", f"d{n:02}", n) for n in range(20)]
    write(context, "category_flow", [*cells, flow_row("gru", "c00", "d00", 999)])
    weights = [
        {
            C.FOLD: fold,
            C.SCOPE: "touched",
            C.SOURCE: "gru",
            C.WEIGHT: 0.7,
            C.SELECTED_ON: "s",
            C.NDCG: 0.1,
            C.NDCG_POPULARITY: 0.1,
        }
    ]
    write(context, "blend_weights", weights)
    write(context, "serving_models", [serving(name, 0.06, chosen=name == "gru").asDict() for name in ("als", "gru")])
    record(
        context.tables,
        StageRun(
            run_id="r1",
            stage="evaluate",
            started_ts=MADE_AT,
            seconds=1.0,
            settings_hash="d",
            outputs={"targets": 7},
            figures={},
        ),
    )
    epoch = Epoch(epoch=1, loss=6.0, ndcg=None, hit_rate=None, seconds=1.0, windows_per_second=1.0)
    save_progress(
        f"{tmp_path}/tables/_artifacts/{fold}/gru/checkpoint", Progress(digest="d", version=0, epochs=[epoch])
    )

    context = StageContext(spark=spark, settings=context.settings, run_id="r2")
    facts = gather(context)
    assert facts.cleaning is not None
    assert [step.num_rows for step in facts.cleaning.steps] == [7, 6, 4, 4, 3]
    assert {(reason.name, reason.num_rows) for reason in facts.cleaning.set_aside} == {
        ("quarantined: bad", 2),
        ("duplicate in its delivery", 1),
        ("does not count: repeat", 1),
    }
    assert [one.category for one in facts.shares] == [f"c{n:02}" for n in range(24, 4, -1)] + ["4 others"]
    assert sum(one.before for one in facts.shares) == pytest.approx(1)
    assert facts.shares[-1].num_events == 1 + 2 + 3 + 4
    assert {(row[C.FOLD], row[C.METRIC]) for row in facts.metrics} == {("pooled", "ndcg"), (fold, "coverage")}
    assert facts.flows is not None
    assert facts.flows.num_shown == {f"c{n:02}": sum(range(n, 20, 4)) for n in range(4)}
    assert [one.num_shown for one in facts.flows.biggest] == list(range(19, 7, -1))
    assert facts.flows.categories == [f"d{n:02}" for n in range(19, 4, -1)]
    assert len(facts.flows.cells) == 15
    assert len(facts.customers) == 5
    first = facts.customers[0]
    assert first.heaviest == [("c01", 0.75), ("c00", 0.25)]
    assert first.purchases == [
        (date(2024, 4, 3), "label 2 (item i2)", "c02"),
        (date(2024, 4, 2), "item i1", "c01"),
    ], "newest first, and what does not count is left out"
    assert first.items == [(1, "item i1", "c01", "why")]
    assert [(one.model, one.best) for one in facts.trainings] == [("gru", 0)]
    assert facts.versions is not None
    assert facts.versions["targets"] == 7
    assert facts.served == "served"
    assert "of several folds together" in " ".join(headline(facts))
    assert ("folds.as_of", "2024-05-01") in facts.settings
    assert len(Outline(render(facts)).figures) == 8


def write(context: StageContext, name: str, rows: list[dict[str, Any]]) -> None:
    made = rows_from(context.spark, name, rows).withColumn(C.VERSIONS, F.lit(""))
    made.coalesce(1).write.format("delta").save(context.tables.location(name))


def event(number: int, at: datetime) -> dict[str, Any]:
    nothing = dict.fromkeys((C.PLATFORM, C.QUANTITY, C.PRICE, C.VOID_TS, C.SESSION_TS))
    keys = {C.EVENT_ID: f"e{number}", C.USER_ID: "u0", C.ITEM_ID: "i0", C.EVENT_TYPE: "purchase", C.EVENT_TS: at}
    return nothing | keys | {C.USE: "used" if number else "repeat"}


def account(outcome: str, num_rows: int) -> dict[str, Any]:
    return {C.DELIVERY_ID: "d", C.PLATFORM: "main", C.FILE: "f", C.OUTCOME: outcome, C.NUM_ROWS: num_rows}


def share(category: str, num: int) -> dict[str, Any]:
    part = num / 300
    fixed = {C.FOLD: "test-2024-05-01", C.CATEGORY: category, C.NUM_EVENTS: num, C.SHARE: part, C.BALANCED_SHARE: part}
    return fixed | {C.BALANCED_EVENTS: 1.0, C.EFFECTIVE_EVENTS: 1.0, C.NUM_COPIES: 1, C.LARGEST_REPEAT: 1}


def item(number: int) -> dict[str, Any]:
    label = f"label {number}" if number == 2 else None
    names = {C.ITEM_ID: f"i{number}", C.ITEM_IDX: number, C.CATEGORY: f"c{number:02}", C.LABEL: label}
    return names | {C.CATEGORY_PATH: ["a"], C.IN_CATALOGUE: True, C.RECOMMENDABLE: True}


def mix(fold: str, user: int, place: int, weight: float) -> dict[str, Any]:
    names = {C.FOLD: fold, C.USER_IDX: user, C.CATEGORY: f"c{place:02}", C.WEIGHT: weight}
    return names | {C.TOUCHED: True, C.HOME: True, C.LAPSED: False}


def interaction(fold: str, user: int, item: int) -> dict[str, Any]:
    nothing = dict.fromkeys((C.UNITS, C.SPEND, C.NUM_OUTLIERS))
    at = datetime(2024, 4, 1 + item)
    keys = {C.FOLD: fold, C.USER_IDX: user, C.ITEM_IDX: item, C.WEIGHT: 1.0, C.NUM_EVENTS: 1, C.LAST_TS: at}
    return nothing | keys | {C.COUNTING: item > 0}


def listed(fold: str, user: int, rank: int) -> dict[str, Any]:
    keys = {C.RUN_DATE: date(2024, 5, 1), C.USER_ID: f"u{user}", C.RANK: rank, C.ITEM_ID: "i1", C.CATEGORY: "c01"}
    made = {C.SCORE: 1.0, C.REASON: "why", C.SOURCE: "blend", C.DATA_VERSION: 0, C.FOLD: fold, C.MODEL_VERSION: "m"}
    return keys | made


def flow_row(model: str, main: str, category: str, num: int) -> dict[str, Any]:
    keys = {C.RUN_ID: "r1", C.FOLD: "test-2024-05-01", C.MODEL: model, C.SLICE: "touched", C.K: 10}
    counts = {C.NUM_SHOWN: num, C.NUM_TARGETS: 1, C.NUM_HITS: 0}
    return keys | {C.MAIN_CATEGORY: main, C.CATEGORY: category} | counts


# The page in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WATCH = """
<script>
const frame = document.querySelector("iframe"), began = performance.now();
addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement, seen = {};
  for (const figure of page.querySelectorAll("figure")) {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    seen[figure.id] = [svg.querySelectorAll("path").length, box.width, box.height];
  }
  const told = {wide: root.scrollWidth, seen, alerted: window.alerted || false, milliseconds: performance.now() - began,
    ink: getComputedStyle(root).color, paper: getComputedStyle(root).backgroundColor, resources: frame.contentWindow
    .performance.getEntriesByType("resource").map(entry => entry.name)};
  document.body.insertAdjacentHTML("beforeend", "<pre id=told></pre>");
  document.querySelector("#told").textContent = JSON.stringify(told);
});
</script>
"""


def browse(folder: Path, page: str, *, width: int, dark: bool = False) -> tuple[dict[str, Any], str]:
    """What a script in the page around it sees of the page, and what the browser says on its console."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: Debian's package is called chromium")
    (folder / "page.html").write_text(page)
    frame = f'<iframe src="page.html" style="width: {width}px; height: 2000px; border: 0"></iframe>'
    (folder / "watch.html").write_text(f"<!DOCTYPE html><body>{frame}{_WATCH}")
    command = [CHROMIUM, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, f"file://{folder / 'watch.html'}"], capture_output=True, text=True, check=True, timeout=120
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr
    return json.loads(html.unescape(told[1])), done.stderr


@pytest.mark.parametrize(("width", "dark"), [(375, False), (1280, True)], ids=["phone", "wide and dark"])
def test_a_browser_shows_every_figure_without_a_complaint(tmp_path: Path, page: str, width: int, dark: bool) -> None:
    told, said = browse(tmp_path, page, width=width, dark=dark)
    assert "CONSOLE" not in said, said
    assert told["wide"] <= width, "wide things scroll within their own box"
    assert not told["resources"], "the page asks for nothing"
    assert set(told["seen"]) >= {
        "models-touched",
        "heat",
        "flows",
        "funnel",
        "shares",
        "training-gru",
        "beyond-coverage",
    }
    for name, (num_paths, wide, high) in told["seen"].items():
        assert num_paths > 4, name
        assert wide > 250, name
        assert high > 50, name
    assert told["milliseconds"] < 2000
    ink, paper = (sum(map(int, re.findall(r"\d+", told[name])[:3])) for name in ("ink", "paper"))
    assert (ink > paper) == dark


def test_the_browser_does_complain_where_there_is_reason(tmp_path: Path, page: str) -> None:
    told, said = browse(
        tmp_path, page.replace("<main>", "<main><script>alert(1)</script><p style='width: 999px'>wide</p>"), width=375
    )
    assert "CONSOLE" in said, "a script is refused, aloud"
    assert told["wide"] > 375
