-- The first schema. Every time is wall time in milliseconds since the epoch.

-- A stream is named once: the keys of a million envelopes stay small.
CREATE TABLE stream (
    id INTEGER PRIMARY KEY,
    upstream TEXT NOT NULL,
    lane TEXT NOT NULL,
    campaign TEXT NOT NULL,
    UNIQUE (upstream, lane, campaign)
) STRICT;

-- The bytes of a message. The codec stands in each row, so that old rows stay readable.
CREATE TABLE content (
    id INTEGER PRIMARY KEY,
    codec TEXT NOT NULL,
    hash BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

-- state: 0 waiting, 1 parked, 2 dead (content kept), 3 quarantined.
-- due_at: the earliest of its waiting recipients. shared: others may have the same content.
CREATE TABLE envelope (
    id INTEGER PRIMARY KEY,
    content_id INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    stream_id INTEGER NOT NULL,
    subscriber TEXT NOT NULL,
    sender TEXT NOT NULL,
    message_id TEXT NOT NULL,
    configuration_set TEXT NOT NULL,
    auth_user TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    state INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    hold_key TEXT NOT NULL DEFAULT '',
    died_at INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
) STRICT;

-- Ends in the rowid, which is the id: a lane is read in the order of (due_at, id).
CREATE INDEX envelope_waiting ON envelope (stream_id, due_at) WHERE state = 0;
-- The envelopes that a released hold sets free; its probes take the longest untried first.
CREATE INDEX envelope_parked ON envelope (hold_key, due_at) WHERE state = 1;
-- Dead mail, the longest dead first.
CREATE INDEX envelope_dead ON envelope (died_at) WHERE state = 2;
-- Who else has this content; a message for one recipient pays nothing for it.
CREATE INDEX envelope_shared ON envelope (content_id) WHERE shared = 1;
-- What else a stream still has: streams without mail are forgotten.
CREATE INDEX envelope_stream ON envelope (stream_id) WHERE state > 0;

-- state: 0 on the queue, 2 dead (has its outcome, kept with its envelope).
CREATE TABLE recipient (
    envelope_id INTEGER NOT NULL,
    n INTEGER NOT NULL,
    address TEXT NOT NULL,
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    in_doubt INTEGER NOT NULL,
    reply TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (envelope_id, n)
) STRICT, WITHOUT ROWID;

-- One row for each recipient that ended. The key is the promise: one outcome each (P2).
CREATE TABLE outcome (
    envelope_id INTEGER NOT NULL,
    n INTEGER NOT NULL,
    address TEXT NOT NULL COLLATE NOCASE,
    stream_id INTEGER NOT NULL,
    subscriber TEXT NOT NULL,
    sender TEXT NOT NULL,
    message_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    code INTEGER NOT NULL,
    reply TEXT NOT NULL,
    ses_id TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    in_doubt INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (envelope_id, n)
) STRICT, WITHOUT ROWID;

CREATE INDEX outcome_address ON outcome (address);
CREATE INDEX outcome_stream ON outcome (stream_id, outcome);
CREATE INDEX outcome_message_id ON outcome (message_id) WHERE message_id != '';
CREATE INDEX outcome_ses_id ON outcome (ses_id) WHERE ses_id != '';
-- Holds all that the quota ledger asks for, so that it is read without touching the rows.
CREATE INDEX outcome_ended ON outcome (ended_at, outcome, stream_id);

CREATE TABLE hold (
    key TEXT NOT NULL,
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_at INTEGER NOT NULL,
    next_probe_at INTEGER NOT NULL,
    probes INTEGER NOT NULL,
    PRIMARY KEY (key, source)
) STRICT, WITHOUT ROWID;

-- What other rooms have learned; value is JSON.
CREATE TABLE state (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
