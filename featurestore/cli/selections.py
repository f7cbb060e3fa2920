"""What the words of a command line name: features, the columns that join them, entity rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from featurestore.cli import values

if TYPE_CHECKING:
    from featurestore.definitions import FeatureSelection
    from featurestore.store import FeatureStore
    from featurestore.types import FeatureType


@dataclass(frozen=True)
class Wanted:
    """Features as the store takes them, and the columns that join them."""

    features: list[str] | str
    keys: dict[str, FeatureType]


def split_words(words: Sequence[str]) -> tuple[list[str] | str, list[str]]:
    """``view:feature …`` or a service's name, and the ``key=value`` words among them."""
    pairs = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if not names:
        raise click.UsageError("Name features (view:feature, view:*) or a feature service.")
    if all(":" in name for name in names):
        return names, pairs
    if len(names) > 1:
        plain = [name for name in names if ":" not in name]
        raise click.UsageError(
            f"{' and '.join(plain)}: give either features (view:feature, view:* for all of a "
            f"view) or the name of one feature service."
        )
    return names[0], pairs


async def resolve(store: FeatureStore, features: list[str] | str) -> Wanted:
    """Look the features up, so that text can be given the types of their keys."""
    wanted = Wanted(features, {})
    if isinstance(features, str):
        service = await store.get_service(features)
        # A service has made selections of all that it was given.
        for selection in cast("Sequence[FeatureSelection]", service.features):
            for key, kind in selection.view.join_keys.items():
                wanted.keys.setdefault(selection.join_key_map.get(key, key), kind)
        return wanted
    for name in dict.fromkeys(one.partition(":")[0] for one in features):
        wanted.keys.update((await store.get_view(name)).join_keys)
    return wanted


# --- entity rows --------------------------------------------------------------------------


def entity_rows(
    rows: Sequence[str], pairs: Sequence[str], keys: Mapping[str, FeatureType]
) -> list[dict[str, Any]]:
    """One entity row per ``--entity``, or one of all the ``key=value`` words.

    A row is ``key=value,key=value`` or a JSON object, for values that hold ``,key=``.
    """
    if rows and pairs:
        raise click.UsageError("Give keys either as words (key=value) or by --entity, not both.")
    found = [_row(row, keys) for row in rows]
    if pairs or not keys:
        found.append(_typed([_pair(pair) for pair in pairs], keys))
    if not found:
        example = ",".join(f"{key}=…" for key in keys)
        raise click.UsageError(f"Say of which entity: --entity {example} (may be repeated).")
    return found


def entity_row(pairs: Sequence[str], keys: Mapping[str, FeatureType]) -> dict[str, Any]:
    """The entity row that ``key=value`` words make, where there can be only one."""
    parted = [_pair(pair) for pair in pairs]
    if len(dict(parted)) < len(parted):
        raise click.UsageError("A key stands twice: give one entity at a time.")
    return _typed(parted, keys)


def _row(text: str, keys: Mapping[str, FeatureType]) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return _json_row(text, keys)
    # A comma parts two pairs only where a key follows it: names may hold commas.
    names = "|".join(map(re.escape, keys))
    return _typed([_pair(part) for part in re.split(rf",\s*(?=(?:{names})=)", text)], keys)


def _json_row(text: str, keys: Mapping[str, FeatureType]) -> dict[str, Any]:
    readers = {name: values.json_reader(kind) for name, kind in keys.items()}
    try:
        row = values.read_json_row(values.parse_json(text), readers)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"--entity {text}: no JSON object: {error}.") from None
    except ValueError as error:
        raise click.UsageError(f"--entity {text}: {error}.") from None
    _check_keys(row, keys)
    return row


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r}: write an entity's key as key=value.")
    return name.strip(), value


def _typed(pairs: list[tuple[str, str]], keys: Mapping[str, FeatureType]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(
            f"The key {doubled[0]} stands twice in one entity row: give each row its --entity."
        )
    _check_keys(dict(pairs), keys)
    row = {}
    for name, text in pairs:
        try:
            row[name] = values.key_reader(keys[name])(text)
        except ValueError as error:
            raise click.UsageError(f"{name} is of type {keys[name]}: {error}.") from None
    return row


def _check_keys(row: Mapping[str, Any], keys: Mapping[str, FeatureType]) -> None:
    """A key that is missing or mistyped would read as null: nothing found, and no word why."""
    needed = ", ".join(keys)
    for name in row:
        if not needed:
            raise click.UsageError(
                f"{name!r} is no key: what is asked for is global, without keys. Leave it out."
            )
        if name not in keys:
            raise click.UsageError(f"{name!r} is no key of these features; they have: {needed}.")
    if missing := [name for name in keys if name not in row]:
        raise click.UsageError(f"The entity row lacks {', '.join(missing)}; its keys: {needed}.")
