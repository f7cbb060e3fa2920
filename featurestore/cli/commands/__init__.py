"""The commands, in the order in which they are used."""

from __future__ import annotations

import click

from featurestore.cli.commands.demo import demo
from featurestore.cli.commands.explaining import explain
from featurestore.cli.commands.export import export
from featurestore.cli.commands.ingest import ingest
from featurestore.cli.commands.keys import keys
from featurestore.cli.commands.ledger import loads, status, undo
from featurestore.cli.commands.reading import online
from featurestore.cli.commands.serving import serve
from featurestore.cli.commands.setup import apply, init, migrate, plan
from featurestore.cli.commands.training import mark, replay, training_set
from featurestore.cli.commands.writing import materialize, push

COMMANDS: tuple[click.Command, ...] = (
    init,
    migrate,
    plan,
    apply,
    ingest,
    push,
    materialize,
    online,
    training_set,
    replay,
    mark,
    explain,
    export,
    loads,
    undo,
    status,
    serve,
    keys,
    demo,
)
