"""Reads Spark's physical plans: what does not scale is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = {
    "CartesianProduct": "a cross join",
    "BroadcastNestedLoopJoin": "a join without a key",
    "BatchEvalPython": "a Python function that is called for each row",
    "rangepartitioning": "a global sort",
}
_WINDOW = "a window over all rows in one task"
_NODE = re.compile(r"(\w+) \((\d+)\)$")


def faults_of(plan: str) -> set[str]:
    """What a plan in the ``formatted`` mode has that grows worse than the data does."""
    found = {fault for word, fault in FORBIDDEN.items() if word in plan}
    arguments = dict(re.findall(r"^\((\d+)\) \w+[^\n]*\n(?:[^\n]+\n)*?Arguments: ([^\n]*)", plan, re.MULTILINE))
    nodes = [match.groups() for line in plan.splitlines() if (match := _NODE.search(line))]
    for place, (name, _) in enumerate(nodes):
        if name == "Window":
            below = next(((name, number) for name, number in nodes[place:] if name == "Exchange"), None)
            if below and arguments.get(below[1], "").startswith("SinglePartition"):
                found.add(_WINDOW)
    return found


def plans_of(folder: Path) -> Iterator[str]:
    """Every plan in the event logs below a folder, as started and as adapted."""
    for path in folder.rglob("*"):
        if path.is_file():
            for line in path.read_text().splitlines():
                if '"physicalPlanDescription"' in line:
                    yield json.loads(line)["physicalPlanDescription"]
