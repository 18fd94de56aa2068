"""Users without their names: pseudonyms of their keys, and those who opted out.

A pseudonym is the HMAC-SHA-256 (RFC 2104) of the user's key as the source has it, trimmed, in 64 hexadecimal digits. The
secret lies in an environment variable or a file and travels to the executors in the closure of an Arrow function: never in
a SQL expression, a plan, a Spark setting, a table or a message.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import pandas as pd
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from xrec import columns as C
from xrec.config import Privacy, Settings
from xrec.ingest.mapping import DAMAGE, require_columns, text_of
from xrec.ingest.reader import InputError, read_raw, reading

WITHHELD = "(withheld: privacy.pseudonymise)"
"""Stands for the text of a malformed line, in which nobody knows where the user is."""

_SHORTEST_KEY = 32
_KEY = "privacy.opt_outs.file"
KEY_FIGURE, NO_KEY = "pseudonyms", "none"
"""The figure of ingest that tells the key's fingerprint, and its value where users keep their names."""


def read_key(privacy: Privacy) -> bytes | None:
    """The secret that ``privacy.key`` names; None where users keep their names.

    Raises
    ------
    InputError
        It is not there or too short; the message never shows it.
    """
    if not privacy.pseudonymise:
        return None
    place, _, name = privacy.key.partition(":")
    remedy = (
        'make one with: python -c "import secrets; print(secrets.token_hex(32))", keep it where the tables are not, and give '
        "every run the same"
    )
    if place == "env":
        found = os.environ.get(name, "")
        where = f"the environment variable {name}"
    else:
        where = f"the file {name}"
        try:
            found = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"privacy.key: cannot read {where} ({type(error).__name__}), expected the secret; {remedy}"
            ) from None
    key = found.strip().encode()
    if len(key) < _SHORTEST_KEY:
        raise InputError(
            f"privacy.key: found {len(key)} characters in {where}, expected at least {_SHORTEST_KEY}; {remedy}"
        )
    return key


def pseudonym(text: str, key: bytes) -> str:
    """A user's pseudonym.

    Examples
    --------
    >>> pseudonym("0017", b"0123456789abcdef0123456789abcdef")[:16]
    '6092242b7e893b6b'
    """
    return hmac.digest(key, text.encode(), "sha256").hex()


def pseudonyms_of(texts: Column, key: bytes) -> Column:
    """The texts' pseudonyms, null where they are null, by Arrow batches."""

    def hide(batch: pd.Series) -> pd.Series:
        return batch.map(lambda text: pseudonym(text, key), na_action="ignore")

    column: Column = pandas_udf(hide, "string")(texts)  # type: ignore[call-overload]
    return column


def hidden(texts: Column, key: bytes | None) -> Column:
    """Users' keys as the tables have them: themselves, or with a ``key`` their pseudonyms."""
    return texts if key is None else pseudonyms_of(texts, key)


def fingerprint(key: bytes | None) -> str:
    """Tells keys apart without giving them away, so that one log never mixes the pseudonyms of two."""
    return NO_KEY if key is None else pseudonym("fingerprint of an xrec key", key)[:12]


def check_same_key(key: bytes | None, earlier: str | None) -> None:
    """Raise InputError where the tables hold users of another key; ``earlier`` is its fingerprint, None where there are none."""
    now = fingerprint(key)
    if earlier is None or now == earlier:
        return
    found, expected = (
        "with their names" if name == NO_KEY else f"pseudonymised (key {name})" for name in (now, earlier)
    )
    raise InputError(
        f"privacy: found users {found}, expected {expected} as in the tables events and users: the same person would become two, "
        "and the table users keeps whom it knows (a key is shown by its fingerprint); use the key and settings of before, or "
        "another storage.root and load all deliveries again"
    )


def load_opt_outs(spark: SparkSession, settings: Settings, key: bytes | None) -> DataFrame | None:
    """The users of ``privacy.opt_outs``, once a platform, as the events name them; None where no file is named.

    Without a column of the platform a key may be the person's (no platform) or the user's on any of them: it is each of these.

    Raises
    ------
    InputError
        The file cannot be read or lacks a column, or a row has no user or a damaged one; an empty list is no error.
    """
    opt_outs = settings.privacy.opt_outs
    if opt_outs is None:
        return None
    file, name = opt_outs.file, opt_outs.user_id
    raw = read_raw(spark, file, key=_KEY)
    wanted = {"privacy.opt_outs.user_id": name}
    wanted |= {"privacy.opt_outs.platform": opt_outs.platform} if opt_outs.platform else {}
    require_columns(raw, wanted, file, hide_names=key is not None)
    user = text_of(name)
    lacks_user = F.col(C.MALFORMED).isNotNull() | user.isNull()
    with reading(file, key=_KEY):
        counts = raw.agg(F.count_if(lacks_user), F.count_if(user.rlike(DAMAGE))).first()
    expected = (
        f"without a user in column '{name}', expected one in each",
        f"with control or replacement characters in column '{name}', expected keys as in the log (see encoding in {_KEY}.options)",
    )
    for fault, count in zip(expected, counts or (), strict=True):
        if count:
            raise InputError(
                f"{_KEY}.path: found {count} rows of {file.path} {fault}: a person who must be left out would be missed; "
                "mend the file"
            )
    platforms = ["", *(source.log.platform for source in settings.sources)]
    platform = F.explode(F.array(*map(F.lit, platforms)))
    if opt_outs.platform is not None:
        platform = F.coalesce(text_of(opt_outs.platform), F.lit(""))
    return raw.select(platform.alias(C.PLATFORM), hidden(user, key).alias(C.USER_ID)).distinct()
