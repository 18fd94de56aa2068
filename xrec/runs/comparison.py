"""Compares baselines and models on one log: settings are chosen on select folds, and a test fold is looked at once."""

from __future__ import annotations

from dataclasses import replace

from xrec.config import SettingsError
from xrec.generators.als import MODEL as ALS
from xrec.runs.progress import StageProgress
from xrec.runs.running import Run
from xrec.runs.search import HEADLINE, best_of, search_als
from xrec.runs.stage import new_run_id
from xrec.runs.stages import needed_sources, select_stages
from xrec.runs.summary import print_models

TRAIN_ALS = "train_als"


def compare(
    run: Run, *, sources: str | None, num_folds: int, num_trials: int, is_final: bool, first: str | None
) -> None:
    """Run the stages that the sources need, and print their figures beside popularity.

    Without ``is_final`` on ``num_folds`` select folds, pooled, each source by itself; with it on the test fold, with the blend
    that the select folds choose, and on record in ``looks``.

    Raises
    ------
    SettingsError
        An option that does not go with the others.
    """
    if is_final and num_trials:
        raise SettingsError(
            "--trials: found it beside --final, expected one of them: a test fold never picks a setting"
        )
    purpose = "test" if is_final else "select"
    overrides = [f"folds.purpose={purpose}", f"folds.num_select={num_folds}"]
    if sources:
        overrides.append(f"ranking.sources=[{sources}]")
    run = run.with_overrides(*overrides)
    settings = run.settings
    if num_trials and ALS not in settings.ranking.sources:
        raise SettingsError(f"--trials: found sources {', '.join(settings.ranking.sources)}, expected als among them")
    job = ["jobs/compare.py", "--folds", f"{num_folds}", *(["--final"] if is_final else [])]
    run = replace(run, run_id=run.run_id or new_run_id(settings), job=job)
    if first is None:
        first = "fold" if run.context().tables.exists("users") else "ingest"
    left_out = {"recommend", "publish", "report"}
    if not is_final:
        left_out |= {"blend", "train_rankers", "choose"}
    needed = select_stages(first, None, [], needed_sources(settings))
    stages = [stage for stage in needed if stage.name not in left_out]
    run.console.print(
        f"xrec: {', '.join(settings.ranking.sources)} on the {purpose} fold{'s' if not is_final else ''}, stages "
        f"{', '.join(stage.name for stage in stages)}"
    )
    if num_trials:
        names = [stage.name for stage in stages]
        if TRAIN_ALS not in names:
            raise SettingsError(f"--from {first}: found it beside --trials, expected a stage up to {TRAIN_ALS}")
        num_before = names.index(TRAIN_ALS)
        replace(run, job=[*job, "--trials", f"{num_trials}"]).run(stages[:num_before])
        run, stages = _search(run, num_trials), stages[num_before:]
    run.run(stages)
    print_models(run.console, run.context(), run.run_id)


def _search(run: Run, num_trials: int) -> Run:
    """The run with the best of the settings of ALS that were tried."""
    context = run.context()
    with StageProgress(run.console, run.spark, f"search: {num_trials} settings of ALS on the select folds") as progress:
        context.say = progress.say
        trials = search_als(context, num_trials)
    best, control = best_of(trials), trials[0]
    chosen = " ".join(f"--set {override}" for override in best.overrides)
    run.console.print(
        f"chosen of {len(trials)}: {chosen} ({HEADLINE} {best.ndcg:.5f}; the settings as they were: {control.ndcg:.5f})"
    )
    return run.with_overrides(*best.overrides)
