-- name: due
-- The next envelopes of a stream whose time has come, with those recipients that are due.
SELECT e.id, e.due_at, e.content_id, e.sender, e.subscriber, e.message_id, e.configuration_set,
    e.auth_user, e.size_bytes, e.received_at, r.n, r.address, r.attempts, r.in_doubt
FROM (
    SELECT * FROM envelope
    WHERE state = 0
        AND stream_id = (
            SELECT id FROM stream WHERE upstream = :upstream AND lane = :lane
                AND campaign = :campaign
        )
        AND (due_at, id) > (:after_due_at, :after_id) AND due_at <= :now_ms
    ORDER BY due_at, id LIMIT :limit
) AS e
LEFT JOIN recipient AS r ON r.envelope_id = e.id AND r.state = 0 AND r.due_at <= :now_ms
ORDER BY e.due_at, e.id, r.n;

-- name: due_ids
-- The same envelopes by their index alone, for when a page of the tables is damaged.
SELECT id, due_at FROM envelope INDEXED BY envelope_waiting
WHERE state = 0
    AND stream_id = (
        SELECT id FROM stream WHERE upstream = :upstream AND lane = :lane
            AND campaign = :campaign
    )
    AND (due_at, id) > (:after_due_at, :after_id) AND due_at <= :now_ms
ORDER BY due_at, id LIMIT :limit;

-- name: due_one
-- One of them, in the columns of due.
SELECT e.id, e.due_at, e.content_id, e.sender, e.subscriber, e.message_id, e.configuration_set,
    e.auth_user, e.size_bytes, e.received_at, r.n, r.address, r.attempts, r.in_doubt
FROM envelope AS e
LEFT JOIN recipient AS r ON r.envelope_id = e.id AND r.state = 0 AND r.due_at <= ?
WHERE e.id = ?
ORDER BY r.n;

-- name: parked_by
-- The envelopes of an upstream that wait for one hold, the longest untried first.
SELECT e.id, e.due_at, e.content_id, e.sender, e.subscriber, e.message_id, e.configuration_set,
    e.auth_user, e.size_bytes, e.received_at, r.n, r.address, r.attempts, r.in_doubt,
    e.lane, e.campaign
FROM (
    SELECT envelope.*, s.lane, s.campaign
    FROM envelope JOIN stream AS s ON s.id = envelope.stream_id
    WHERE state = 1 AND hold_key = :hold_key AND s.upstream = :upstream
    ORDER BY envelope.due_at, envelope.id LIMIT :limit
) AS e
LEFT JOIN recipient AS r ON r.envelope_id = e.id AND r.state = 0
ORDER BY e.due_at, e.id, r.n;

-- name: parked_keys
-- The holds that envelopes wait for, read by jumps over all that share one.
WITH RECURSIVE keys (key) AS (
    SELECT min(hold_key) FROM envelope WHERE state = 1
    UNION ALL
    SELECT (SELECT min(hold_key) FROM envelope WHERE state = 1 AND hold_key > keys.key)
    FROM keys WHERE keys.key IS NOT NULL
)
SELECT key FROM keys WHERE key IS NOT NULL;

-- name: oldest
-- When the mail at the head of each stream was received: one look into the index a stream.
SELECT s.upstream, s.lane, s.campaign, (
    SELECT e.received_at FROM envelope AS e
    WHERE e.stream_id = s.id AND e.state = 0 ORDER BY e.due_at, e.id LIMIT 1
) AS oldest_at
FROM stream AS s WHERE oldest_at IS NOT NULL;

-- name: next_due
-- When the next mail of an upstream is due after a moment.
SELECT min((
    SELECT min(e.due_at) FROM envelope AS e
    WHERE e.stream_id = s.id AND e.state = 0 AND e.due_at > :now_ms
)) FROM stream AS s WHERE s.upstream = :upstream;

-- name: content
-- The bytes of a message with what proves them.
SELECT codec, hash, body FROM content WHERE id = ?;

-- name: depth
-- How many recipients each stream has in each state.
SELECT s.upstream, s.lane, s.campaign, e.state, count(*)
FROM envelope AS e
JOIN recipient AS r ON r.envelope_id = e.id
JOIN stream AS s ON s.id = e.stream_id
WHERE r.state = 0
GROUP BY e.stream_id, e.state
UNION ALL
SELECT s.upstream, s.lane, s.campaign, 2, count(*)
FROM envelope AS e
JOIN recipient AS r ON r.envelope_id = e.id
JOIN stream AS s ON s.id = e.stream_id
WHERE r.state = 2
GROUP BY e.stream_id;

-- name: last_id
-- The highest id in use anywhere.
SELECT max(
    coalesce((SELECT max(id) FROM envelope), 0),
    coalesce((SELECT max(envelope_id) FROM outcome), 0),
    coalesce((SELECT max(id) FROM content), 0)
);

-- name: sent_by_time
-- How many recipients an upstream took in each stretch of time; its streams hold weeks more.
SELECT ended_at / :bucket_ms * :bucket_ms AS bucket, count(*)
FROM outcome INDEXED BY outcome_ended
WHERE ended_at >= :since_ms AND outcome = 'sent'
    AND stream_id IN (SELECT id FROM stream WHERE upstream = :upstream)
GROUP BY bucket ORDER BY bucket;

-- name: tally
-- How recipients ended, and after how many attempts.
SELECT outcome, attempts, count(*) FROM outcome GROUP BY outcome, attempts;

-- name: find_ended
-- Outcomes by address, Message-ID, SES id or envelope.
SELECT o.envelope_id, o.n, o.address, o.outcome, o.ended_at, s.upstream, s.lane, s.campaign,
    o.subscriber, o.sender, o.message_id, o.reply, o.code, o.ses_id, o.attempts, o.in_doubt,
    o.received_at
FROM outcome AS o JOIN stream AS s ON s.id = o.stream_id
WHERE o.address = :text
    OR (o.message_id IN (:text, :bracketed) AND o.message_id != '')
    OR (o.ses_id = :text AND o.ses_id != '')
    OR o.envelope_id = :id
ORDER BY o.envelope_id DESC, o.n LIMIT :limit;

-- name: find_queued
-- Recipients on the queue by address, Message-ID or envelope; reads the whole queue.
SELECT e.id, r.n, r.address, e.state, r.due_at, s.upstream, s.lane, s.campaign,
    e.subscriber, e.sender, e.message_id, r.reply, 0, '', r.attempts, r.in_doubt,
    e.received_at
FROM recipient AS r
JOIN envelope AS e ON e.id = r.envelope_id
JOIN stream AS s ON s.id = e.stream_id
WHERE r.state = 0 AND (
    r.address = :text COLLATE NOCASE
    OR e.message_id IN (:text, :bracketed)
    OR e.id = :id
)
ORDER BY e.id DESC, r.n LIMIT :limit;

-- name: holds
-- Every hold, the oldest first.
SELECT key, source, reason, since_at, next_probe_at, probes FROM hold ORDER BY since_at, key;

-- name: state
-- What another room has learned.
SELECT value FROM state WHERE key = ?;
