-- Who may join, who has joined, who may change things, and what was changed. Times are seconds since 1970, but `before`, which is
-- in microseconds. Of secrets only the SHA-256 is kept.
CREATE TABLE join_tokens (
    id         TEXT    PRIMARY KEY,
    hash       BLOB    NOT NULL CHECK (length(hash) = 32),
    cluster_id TEXT    REFERENCES clusters (id) ON DELETE CASCADE,
    seed       INTEGER NOT NULL CHECK (seed IN (0, 1)),
    expires    INTEGER NOT NULL,
    uses_left  INTEGER NOT NULL CHECK (uses_left >= 0),
    created    INTEGER NOT NULL,
    created_by TEXT    NOT NULL
) STRICT;

-- `key` is the SHA-256 of the public key (SubjectPublicKeyInfo) that the node joined with.
CREATE TABLE members (
    node_id    TEXT    PRIMARY KEY,
    key        BLOB    NOT NULL CHECK (length(key) = 32),
    cluster_id TEXT,
    seed       INTEGER NOT NULL CHECK (seed IN (0, 1)),
    joined_by  TEXT    NOT NULL,
    joined     INTEGER NOT NULL,
    revoked    INTEGER
) STRICT, WITHOUT ROWID;

-- A node's certificates that were issued before that microsecond count no more; forgotten when the last of them is over anyway.
CREATE TABLE voids (
    node_id TEXT    PRIMARY KEY,
    before  INTEGER NOT NULL,
    forget  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE api_tokens (
    id         TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    role       TEXT    NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    -- JSON array of cluster ids; NULL for all.
    clusters   TEXT,
    created    INTEGER NOT NULL,
    expires    INTEGER
) STRICT;

CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    who     TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    -- JSON, or NULL.
    before  TEXT,
    after   TEXT
) STRICT;
