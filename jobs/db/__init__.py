"""The database: engine, tables' base, the writer lock of SQLite and the watchdog of PostgreSQL."""
