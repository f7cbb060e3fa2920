"""Which columns a view takes in, under which names, and which it stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa

from featurestore.definitions import FeatureView
from featurestore.errors import SchemaMismatchError
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.types import FeatureType, Int64, Timestamp


@dataclass(frozen=True)
class Layout:
    """The columns of a view's input: join keys, event time, created time if any, features."""

    view: FeatureView

    @property
    def incoming(self) -> dict[str, FeatureType]:
        """Names and types of the columns that an input may have for the view."""
        columns = dict(self.view.join_keys)
        columns[self.view.timestamp_field] = Timestamp
        if self.view.created_timestamp_field is not None:
            columns[self.view.created_timestamp_field] = Timestamp
        return {**columns, **self.view.types}

    @property
    def stored(self) -> dict[str, FeatureType]:
        """Names and types of the history table's columns, in the order they are written."""
        times = {ARRIVAL: Int64, EVENT: Timestamp, CREATED: Timestamp}
        return {**self.view.join_keys, **times, **self.view.types}

    def stored_name(self, name: str) -> str:
        """The history table's name for an incoming column."""
        if name == self.view.timestamp_field:
            return EVENT
        return CREATED if name == self.view.created_timestamp_field else name

    def writes_as(self, other: Layout) -> bool:
        """Whether the same input becomes the same rows, in the same tables."""
        return (
            self.incoming == other.incoming
            and self.stored == other.stored
            and self.view.online == other.view.online
        )

    def required(self, name: str) -> bool:
        """Whether a value must be there in each row: join keys and the event time."""
        return name in self.view.join_keys or name == self.view.timestamp_field

    def check_present(self, names: Collection[str], where: str) -> None:
        """Raise :class:`SchemaMismatchError` for columns that the input lacks.

        The created time may be missing: the time of the load stands in.
        """
        optional = self.view.created_timestamp_field
        missing = [name for name in self.incoming if name not in names and name != optional]
        if missing:
            raise SchemaMismatchError(
                f"view {self.view.name!r}: {where} lacks {_list(missing)}. It has "
                f"{_list(sorted(names)) or 'no columns'}."
                + (" A field_mapping of the view's source can rename columns." if names else "")
            )

    def locate(
        self,
        schema: pa.Schema,
        mapping: Mapping[str, str],
        where: str,
        folders: Collection[str] = (),
    ) -> dict[str, str]:
        """View column → file column, by ``mapping`` (file column → view column) or by name.

        Those in ``folders`` need not be in the file: the names of its folders say what they are.
        """
        renamed = {target: source for source, target in mapping.items() if source in schema.names}
        # A column that is renamed away no longer stands for its own name.
        found = {name: name for name in schema.names if name not in mapping} | renamed
        self.check_present({*found, *folders}, where)
        for name in self.incoming:
            source = found.get(name)
            if source is not None and len(schema.get_all_field_indices(source)) > 1:
                raise SchemaMismatchError(
                    f"view {self.view.name!r}: {where} has two columns named {source!r}."
                )
        return {name: found[name] for name in self.incoming if name in found}


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" … ({len(names)} in all)" if len(names) > 12 else "")
