"""The database: the engine and its sessions, tables, migrations, the registry, the two dialects."""
