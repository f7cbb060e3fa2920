"""featurestore: an asyncio-native feature store on PostgreSQL and SQLite.

Point-in-time training sets, online reads in one round trip, and bulk loads that never block the
event loop. ``import featurestore as fs`` brings the names below; ``fs.sync.FeatureStore`` is the
same store without ``await``, for scripts and notebooks.
"""

from __future__ import annotations

from featurestore import sync
from featurestore.definitions import (
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
)
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    InvalidRow,
    InvalidRowsError,
    MigrationRequiredError,
    NotFoundError,
    OverloadedError,
    SchemaMismatchError,
    SourceError,
    StoreUnavailableError,
)
from featurestore.ingest.progress import Progress
from featurestore.online.cache import Cache
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.reports import (
    CacheStats,
    ExportProgress,
    ExportReport,
    GatherStats,
    IngestReport,
    Load,
    LoadReport,
    MaterializeReport,
    PushReport,
    QuarantinedRow,
    StoreStats,
    StreamReport,
    UndoReport,
)
from featurestore.repository import FeatureRepository
from featurestore.selection import Features
from featurestore.storage.limits import Limits
from featurestore.storage.marks import Mark
from featurestore.storage.planning import Change, Plan
from featurestore.store import FeatureStore, Transaction
from featurestore.training.explain import Candidate, Explanation, OnlineAnswer, Verdict
from featurestore.training.manifest import Manifest
from featurestore.training.read import HistoricalFeatures
from featurestore.training.report import TrainingPlan, TrainingProgress
from featurestore.training.training_set import TrainingSet
from featurestore.types import (
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    FeatureType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    String,
    Timestamp,
)

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Bool",
    "Bytes",
    "Cache",
    "CacheStats",
    "Candidate",
    "Change",
    "Date",
    "Decimal",
    "DefinitionError",
    "Entity",
    "Explanation",
    "ExportProgress",
    "ExportReport",
    "FeatureRepository",
    "FeatureSelection",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureType",
    "FeatureView",
    "Features",
    "Field",
    "Float32",
    "Float64",
    "GatherStats",
    "HistoricalFeatures",
    "IngestReport",
    "Int32",
    "Int64",
    "InvalidRow",
    "InvalidRowsError",
    "Json",
    "Limits",
    "Load",
    "LoadReport",
    "Manifest",
    "Mark",
    "MaterializeReport",
    "MigrationRequiredError",
    "NotFoundError",
    "OnlineAnswer",
    "OnlineFeatures",
    "OverloadedError",
    "ParquetSource",
    "Plan",
    "Progress",
    "PushReport",
    "QuarantinedRow",
    "SchemaMismatchError",
    "SourceError",
    "Status",
    "StoreStats",
    "StoreUnavailableError",
    "StreamReport",
    "String",
    "Timestamp",
    "TrainingPlan",
    "TrainingProgress",
    "TrainingSet",
    "Transaction",
    "UndoReport",
    "Verdict",
    "sync",
]
