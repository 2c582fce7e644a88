-- Lists of preheats read neither nodes nor blobs of a job: `short` is the job in short (crate::preheat::Brief), as JSON, and stands before
-- `job`, so that it is read without what comes after it. What lists are filtered by has columns of its own.
CREATE TABLE preheats_in_short (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT    NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    -- Seconds since 1970; NULL while it goes on.
    ended   INTEGER,
    cluster TEXT    NOT NULL,
    -- How it ended; NULL while it goes on.
    outcome TEXT    CHECK (outcome IN ('done', 'failed', 'cancelled')),
    short   TEXT    NOT NULL,
    job     TEXT    NOT NULL,
    CHECK ((ended IS NULL) = (outcome IS NULL))
) STRICT;

INSERT INTO preheats_in_short (seq, id, created, ended, cluster, outcome, short, job)
WITH size AS (
    SELECT seq, coalesce((SELECT sum(value ->> '$.size') FROM json_each(job, '$.blobs')), 0) AS bytes,
        (SELECT count(*) FROM json_each(job, '$.nodes')) AS nodes,
        (SELECT count(*) FROM json_each(job, '$.nodes') WHERE value ->> '$.state' = 'done') AS done,
        (SELECT count(*) FROM json_each(job, '$.nodes') WHERE value ->> '$.state.failed' IS NOT NULL) AS failed
    FROM preheats
), ending AS (
    SELECT seq, CASE
        WHEN ended IS NULL THEN NULL
        WHEN job ->> '$.cancelled' THEN 'cancelled'
        WHEN failed > 0 THEN 'failed'
        ELSE 'done'
    END AS outcome
    FROM preheats JOIN size USING (seq)
)
SELECT seq, id, created, ended, coalesce(job ->> '$.cluster', ''), outcome,
    json_object(
        'id', id,
        'image', json(job -> '$.image'),
        'platforms', json(job -> '$.platforms'),
        'cluster', job ->> '$.cluster',
        'cluster_name', '',
        'target', json(job -> '$.target'),
        'state', json(CASE outcome
            WHEN 'failed' THEN json_object('failed', failed || ' of ' || nodes || ' nodes')
            ELSE json_quote(coalesce(outcome, 'running'))
        END),
        'created', created,
        'created_by', job ->> '$.created_by',
        'ended', ended,
        'version', 1,
        'manifest', job ->> '$.manifest',
        'size', bytes,
        'has', bytes * done,
        'nodes', nodes,
        'done', done,
        'failed', failed
    ),
    job
FROM preheats JOIN size USING (seq) JOIN ending USING (seq)
ORDER BY seq;

DROP TABLE preheats;
ALTER TABLE preheats_in_short RENAME TO preheats;

CREATE INDEX preheats_running ON preheats (seq) WHERE ended IS NULL;
