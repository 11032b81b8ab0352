-- The history, schema 1. Times are milliseconds since 1970 in UTC, durations microseconds, words those of the vocabulary.

-- A probe; or, where `count` is above 1, so many probes in a row that ended alike: the first one's story, and when the
-- last of them began.
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    kind TEXT NOT NULL,
    "trigger" TEXT NOT NULL,
    started INTEGER NOT NULL,
    last INTEGER NOT NULL,
    count INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    slowest_us INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    step TEXT,
    reason TEXT,
    detail TEXT,
    trace_id TEXT NOT NULL,
    facts TEXT NOT NULL,
    version TEXT GENERATED ALWAYS AS (facts ->> '$.version') VIRTUAL
) STRICT;

CREATE INDEX run_by_user ON run (user, kind, id);
CREATE INDEX run_by_outcome ON run (outcome, id);
CREATE INDEX run_by_trace ON run (trace_id);
CREATE INDEX run_by_last ON run (last);
CREATE INDEX run_last_failure ON run (user, kind, last) WHERE outcome = 'failed';

CREATE TABLE step (
    run INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    step TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT,
    detail TEXT,
    duration_us INTEGER NOT NULL,
    PRIMARY KEY (run, position)
) STRICT, WITHOUT ROWID;

-- Since when a user's probes of one kind end as they do. A table of its own, because the run that began it may be
-- older than what is kept.
CREATE TABLE standing (
    user TEXT NOT NULL,
    kind TEXT NOT NULL,
    definite TEXT,
    since INTEGER,
    skipped_since INTEGER,
    last INTEGER NOT NULL,
    PRIMARY KEY (user, kind)
) STRICT, WITHOUT ROWID;

-- Everything that is no probe: real logins, verdicts, upgrades, pauses.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    user TEXT,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX event_by_time ON event (at);
CREATE INDEX event_by_kind ON event (kind, id);
CREATE INDEX event_by_user ON event (user, id);
