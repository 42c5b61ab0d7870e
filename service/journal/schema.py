"""The tables of journal.db and the migrations from older versions."""

from __future__ import annotations

VERSION = 3

_HOLDS = """
CREATE TABLE holds (
    model TEXT PRIMARY KEY,
    pinned INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0
);
"""
_SIGNATURES = """
ALTER TABLE updates ADD COLUMN signature TEXT;
ALTER TABLE holds ADD COLUMN highest_version INTEGER;
"""
SCHEMA = (
    """
CREATE TABLE updates (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    state TEXT NOT NULL,
    file_name TEXT NOT NULL,
    file_bytes INTEGER NOT NULL,
    sha256 TEXT,
    key TEXT,
    generation INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    code TEXT,
    reason TEXT,
    dropped_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    stages TEXT NOT NULL DEFAULT '{}',
    report TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX updates_model ON updates (model, id);
CREATE INDEX updates_key ON updates (key, id);
CREATE TABLE events (
    update_id INTEGER NOT NULL REFERENCES updates (id),
    at REAL NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX events_update ON events (update_id);
"""
    + _HOLDS
    + _SIGNATURES
)
# By the version that they start from; each migrates to the next version.
MIGRATIONS = {1: _HOLDS, 2: _SIGNATURES}
