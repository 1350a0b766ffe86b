"""SQLite as an engine: one file, one process, exact deduplication at a cost that hardly grows. See DESIGN.md."""
