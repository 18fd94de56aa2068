"""Whose events changed since a stage last ran, so that a day's delivery costs a day's work."""

from __future__ import annotations

import json

from pyspark.sql import DataFrame

from xrec import columns as C
from xrec.config import Settings
from xrec.logrules.identity import persons_ever, persons_opted_out
from xrec.storage.tables import Tables

_MOST = 0.5
"""Share of the persons beyond which it is cheaper to do everything again."""


def note_of(tables: Tables, settings: Settings) -> str:
    """What the tables of the stage judge note of themselves: the settings and the versions that they were made with."""
    sources = ("events", "identities", "opt_outs")
    versions = {name: tables.read_versions[name] for name in sources if name in tables.read_versions}
    return json.dumps({"settings": _digest(settings), "from": versions}, sort_keys=True)


def touched_persons(tables: Tables, settings: Settings, made: tuple[str, ...]) -> DataFrame | None:
    """The persons (``user_id``) whose events, identity or opt-out changed since the tables in ``made`` were written.

    None: take everybody, because a table is new, was made with other settings or other kinds of sources, because the changes
    are no longer known, or because more than half of the persons are touched. Read the sources before: their versions count.
    """
    notes = [json.loads(tables.note(name) or "{}") for name in made]
    now = json.loads(note_of(tables, settings))
    if any(note.get("settings") != now["settings"] or note["from"].keys() != now["from"].keys() for note in notes):
        return None
    since = {source: min(note["from"][source] for note in notes) for source in now["from"]}
    if any(version > now["from"][source] for source, version in since.items()):
        return None  # a table was restored to an older version
    identities: list[DataFrame | None] = [None]
    if "identities" in since:
        there = tables.read_versions["identities"]
        identities = [tables.read("identities", version=version) for version in {since["identities"], there}]
        tables.read_versions["identities"] = there
    touched: list[DataFrame] = []
    for source, version in since.items():
        users = tables.changed_keys(source, [C.PLATFORM, C.USER_ID], since=version)
        if users is None:
            return None
        meaning = persons_opted_out if source == "opt_outs" else persons_ever
        touched += [meaning(users, table, settings) for table in identities]
    found = touched[0]
    for others in touched[1:]:
        found = found.unionByName(others)
    found = found.distinct()
    num_persons = tables.read("persons").count()
    tables.read_versions.pop("persons")
    return None if found.count() > _MOST * num_persons else found


def _digest(settings: Settings) -> str:
    platforms = ",".join(sorted(source.log.platform for source in settings.sources))
    shared = "shared" if settings.identity.shared_ids else "own"
    return f"{settings.digest('log_rules', 'persons')}-{settings.log.time.unit}-{platforms}-{shared}"
