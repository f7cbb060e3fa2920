"""Features resolved: the work of it, which is done on the event loop, grows as their number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

import featurestore as fs
from featurestore.online.plan import OnlinePlans
from featurestore.selection import Features, resolve
from featurestore.storage.registry import Catalog, RegisteredView

DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})


class Counted(str):
    """A name that counts how often names are hashed and compared, as every look-up does."""

    __slots__ = ()
    uses = 0

    def __hash__(self) -> int:
        Counted.uses += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.uses += 1
        return super().__eq__(other)


def catalog_of(count: int) -> Catalog:
    view = fs.FeatureView(
        "wide",
        entities=[DRIVER],
        fields=[fs.Field(Counted(f"f{number}"), fs.Float64) for number in range(count)],
        timestamp_field="event_timestamp",
    )
    table = sa.Table("wide", sa.MetaData())
    return Catalog("default", views={"wide": RegisteredView(1, view, table, table)})


def whole(catalog: Catalog) -> Features:
    return "wide:*"


def single(catalog: Catalog) -> Features:
    return [f"wide:{name}" for name in catalog.view("wide").view.types]


def selections(catalog: Catalog) -> Features:
    view = catalog.view("wide").view
    return [fs.FeatureSelection(view, (name,), "wide") for name in view.types]


def resolved(features: Features, catalog: Catalog) -> None:
    request = resolve(features, catalog, full_feature_names=True)
    assert [len(join.types()) for join in request.joins] == [len(request.outputs)]


def planned(features: Features, catalog: Catalog) -> None:
    OnlinePlans().get(features, catalog, full_feature_names=True)


@pytest.mark.parametrize("read", [resolved, planned])
@pytest.mark.parametrize("of", [whole, single, selections])
def test_the_work_grows_as_the_number_of_features(
    of: Callable[[Catalog], Features], read: Callable[[Features, Catalog], None]
):
    def uses(count: int) -> int:
        catalog = catalog_of(count)
        features = of(catalog)
        before = Counted.uses
        read(features, catalog)
        return Counted.uses - before

    few, many = uses(100), uses(1_000)
    assert few >= 100
    assert many <= 15 * few


def test_the_hash_of_a_view_does_not_go_through_its_fields():
    one, two = (catalog_of(1_000).view("wide").view for _ in range(2))
    before = Counted.uses
    assert hash(one) == hash(two)
    assert Counted.uses == before
