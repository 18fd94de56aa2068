"""kill -9 inside every stage while it writes, and run on: the tables equal those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline_runs import PipelineRun, read_table
from world import World, make_world, write_world
from xrec.runs.stages import STAGES

EXACT_TABLES = {
    "events": ["event_id"],
    "events_quarantine": ["row_id"],
    "accounts": ["file", "outcome"],
    "catalogue": ["item_id"],
    "persons": ["user_id"],
    "judged_events": ["event_id"],
    "items": ["item_id"],
    "users": ["user_id"],
    "user_categories": ["fold", "user_idx", "category"],
    "interactions": ["fold", "user_idx", "item_idx"],
    "targets": ["fold", "user_idx", "item_idx"],
    "training_events": ["fold", "event_id"],
    "balance_report": ["fold", "category"],
    "vocabulary": ["fold", "token"],
}


def assert_same_result(disturbed: Path, undisturbed: Path) -> None:
    """The same rows; scores within 1e-4 relative, where near-ties may swap."""
    for name, key in EXACT_TABLES.items():
        left, right = (
            read_table(root, name)
            .drop(columns=["versions", "weight"], errors="ignore")
            .sort_values(key, ignore_index=True)
            for root in (disturbed, undisturbed)
        )
        pd.testing.assert_frame_equal(left, right)
    left, right = (
        read_table(root, "recommendations").set_index(["user_id", "rank"]) for root in (disturbed, undisturbed)
    )
    assert left.index.is_unique
    assert set(left.index) == set(right.index)
    both = left.join(right, lsuffix="_left", rsuffix="_right")
    assert (both["item_id_left"] == both["item_id_right"]).mean() > 0.97
    assert ((both["score_left"] - both["score_right"]).abs() <= 1e-2 * both["score_right"].abs() + 1e-9).mean() > 0.97


@pytest.mark.slow
@pytest.mark.horovod
@pytest.mark.delta
def test_a_kill_in_every_stage_changes_nothing(tmp_path: Path) -> None:
    world = make_world(seed=3)
    calm = write_world(world, tmp_path / "calm", platforms=True)
    run = PipelineRun(calm.config)
    assert run.finish() == 0, run.output

    folds = set(read_table(calm.config.parent / "warehouse", "targets")["fold"])

    stormy = write_world(world, tmp_path / "stormy", platforms=True)
    root = stormy.config.parent / "warehouse"
    resume_from = STAGES[0].name
    for stage in [stage for stage in STAGES if stage.name != "report"]:  # which writes no table
        run = PipelineRun(stormy.config, "--from", resume_from)
        folders = [root / name for name in stage.writes]
        if stage.own_application:  # its checkpoints
            folders = [root / "_artifacts" / fold / stage.name.removeprefix("train_") for fold in folds]
        run.kill_when_writing(folders, stage.name)
        resume_from = stage.name
    run = PipelineRun(stormy.config, "--from", resume_from)
    assert run.finish() == 0, run.output
    assert_same_result(root, calm.config.parent / "warehouse")
    assert_one_person_on_both_platforms(root, world)


def assert_one_person_on_both_platforms(root: Path, world: World) -> None:
    """What somebody bought in the store is known on the web: nothing of its categories is in his list."""
    events = read_table(root, "events")
    on = events.assign(person=events["user_id"].str.removeprefix("K")).groupby("person")["platform"].nunique()
    assert (on == 2).mean() > 0.95
    assert events.loc[events["platform"] == "store", "user_id"].str.startswith("K").all()
    lists = read_table(root, "recommendations")
    assert set(read_table(root, "users")["user_id"]) == set(world.tastes["user_id"])
    assert set(lists["user_id"]) <= set(world.tastes["user_id"])
    touched = world.history()[["user_id", "category"]].drop_duplicates()
    assert lists.merge(touched, on=["user_id", "category"]).empty
