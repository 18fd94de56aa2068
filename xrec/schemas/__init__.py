"""The table contracts: what one row is, its columns, its key, its partitions, and the job that makes it."""

from __future__ import annotations

from xrec.schemas.contract import ContractError, Table, check_rows, check_types
from xrec.schemas.learning import LEARNING
from xrec.schemas.log import LOG
from xrec.schemas.results import RESULTS
from xrec.schemas.serving import SERVING

__all__ = ["TABLES", "ContractError", "Table", "check_rows", "check_types"]

TABLES: dict[str, Table] = {table.name: table for table in (*LOG, *LEARNING, *SERVING, *RESULTS)}
