-- name: add_stream
-- Makes sure that a stream has a number.
INSERT INTO stream (upstream, lane, campaign) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- name: stream_id
-- The number of a stream.
SELECT id FROM stream WHERE upstream = ? AND lane = ? AND campaign = ?;

-- name: forget_streams
-- Forgets the streams that neither mail nor outcomes belong to any more.
DELETE FROM stream
WHERE NOT EXISTS (SELECT 1 FROM envelope AS e WHERE e.stream_id = stream.id AND e.state = 0)
    AND NOT EXISTS (SELECT 1 FROM envelope AS e WHERE e.stream_id = stream.id AND e.state > 0)
    AND NOT EXISTS (SELECT 1 FROM outcome AS o WHERE o.stream_id = stream.id);

-- name: add_content
-- Keeps the bytes of a message.
INSERT INTO content (id, codec, hash, body) VALUES (?, ?, ?, ?);

-- name: add_envelope
-- Puts an envelope into its lane.
INSERT INTO envelope (
    id, content_id, shared, stream_id, subscriber, sender, message_id, configuration_set,
    auth_user, size_bytes, received_at, state, due_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?);

-- name: add_recipient
-- Puts one recipient of an envelope on the queue.
INSERT INTO recipient (envelope_id, n, address, state, attempts, due_at, in_doubt)
VALUES (?, ?, ?, 0, ?, ?, ?);

-- name: envelope
-- Where an envelope stands and what its recipients are counted by.
SELECT e.state, e.content_id, e.shared, s.upstream, s.lane, s.campaign
FROM envelope AS e JOIN stream AS s ON s.id = e.stream_id
WHERE e.id = ?;

-- name: recipients
-- Every recipient of an envelope that is still in the spool.
SELECT n, state FROM recipient WHERE envelope_id = ?;

-- name: outcome
-- How a recipient ended, to tell a repeated settlement from a contradicting one.
SELECT outcome, ses_id FROM outcome WHERE envelope_id = ? AND n = ?;

-- name: add_outcome
-- Records how a recipient ended, by what the spool itself knows of it.
INSERT INTO outcome (
    envelope_id, n, address, stream_id, subscriber, sender, message_id, outcome, code, reply,
    ses_id, attempts, in_doubt, received_at, ended_at
)
SELECT e.id, r.n, r.address, e.stream_id, e.subscriber, e.sender, e.message_id, ?, ?, ?,
    ?, ?, ?, e.received_at, ?
FROM envelope AS e JOIN recipient AS r ON r.envelope_id = e.id
WHERE e.id = ? AND r.n = ?;

-- name: remove_recipient
-- Takes a recipient off the queue.
DELETE FROM recipient WHERE envelope_id = ? AND n = ?;

-- name: bury_recipient
-- Takes a recipient off the queue but keeps it, so that it can be revived.
UPDATE recipient SET state = 2, attempts = ?, in_doubt = ?, reply = ?
WHERE envelope_id = ? AND n = ?;

-- name: reschedule
-- Lets a recipient wait for a later time.
UPDATE recipient SET due_at = ?, attempts = ?, in_doubt = ?, reply = ?
WHERE envelope_id = ? AND n = ?;

-- name: refresh_due
-- Makes an envelope due with the first of its waiting recipients.
UPDATE envelope SET due_at = coalesce(
    (SELECT min(r.due_at) FROM recipient AS r WHERE r.envelope_id = envelope.id AND r.state = 0),
    due_at
)
WHERE id = ?;

-- name: due_at
-- When an envelope is due.
SELECT due_at FROM envelope WHERE id = ?;

-- name: set_state
-- Moves an envelope to another state.
UPDATE envelope SET state = ?, hold_key = ?, died_at = ?, reason = ? WHERE id = ?;

-- name: note_reply
-- Notes on the waiting recipients of an envelope why it was parked.
UPDATE recipient SET reply = ? WHERE envelope_id = ? AND state = 0;

-- name: remove_envelope
-- Forgets an envelope that has no recipients left.
DELETE FROM envelope WHERE id = ?;

-- name: remove_content
-- Forgets the bytes of a message.
DELETE FROM content WHERE id = ?;

-- name: content_in_use
-- Whether another envelope of a split message still needs its bytes.
SELECT EXISTS (SELECT 1 FROM envelope WHERE content_id = ? AND shared = 1);

-- name: parked_ids
-- The next envelopes that wait for a hold, the longest untried first.
SELECT id FROM envelope WHERE state = 1 AND hold_key = ? ORDER BY due_at, id LIMIT ?;

-- name: count_parked
-- How many envelopes wait for a hold.
SELECT count(*) FROM envelope WHERE state = 1 AND hold_key = ?;

-- name: join_end
-- Lets the recipients of a released envelope wait at the end of their lane.
UPDATE recipient SET due_at = max(due_at, ?) WHERE envelope_id = ? AND state = 0;

-- name: late_ids
-- The next envelopes that are due later than a moment, in any state that can wait again.
SELECT DISTINCT envelope_id FROM recipient
WHERE state = 0 AND due_at > ? AND envelope_id > ? ORDER BY envelope_id LIMIT ?;

-- name: clamp_recipients
-- Makes waiting recipients due earlier, after a clock that was set back, within two bounds.
UPDATE recipient SET due_at = min(?, max(?, due_at - ?))
WHERE envelope_id = ? AND state = 0 AND due_at > ?;

-- name: dead_ids
-- The next envelopes that died before a moment, the longest dead first.
SELECT id FROM envelope WHERE state = 2 AND died_at < ? ORDER BY died_at LIMIT ?;

-- name: remove_recipients
-- Forgets all recipients of a dead envelope; their outcomes stay.
DELETE FROM recipient WHERE envelope_id = ?;

-- name: purge_outcomes
-- Forgets the oldest outcomes from before a moment.
DELETE FROM outcome WHERE (envelope_id, n) IN (
    SELECT envelope_id, n FROM outcome WHERE ended_at < ? ORDER BY ended_at LIMIT ?
);

-- name: put_hold
-- Keeps a hold of one source.
INSERT INTO hold (key, source, reason, since_at, next_probe_at, probes) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET reason = excluded.reason, since_at = excluded.since_at,
    next_probe_at = excluded.next_probe_at, probes = excluded.probes;

-- name: drop_hold
-- Forgets a hold of one source.
DELETE FROM hold WHERE key = ? AND source = ?;

-- name: put_state
-- Keeps what another room has learned.
INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value;
