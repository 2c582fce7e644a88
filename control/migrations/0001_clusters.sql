-- Clusters and their scopes. `seq` is the age that decides ties and is never used twice; `id` is what nodes know.
CREATE TABLE clusters (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    version    INTEGER NOT NULL CHECK (version > 0),
    name       TEXT    NOT NULL UNIQUE,
    is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
    idc        TEXT    NOT NULL,
    location   TEXT    NOT NULL
) STRICT;

CREATE TABLE cluster_cidrs (
    cluster_seq INTEGER NOT NULL REFERENCES clusters (seq) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    cidr        TEXT    NOT NULL,
    PRIMARY KEY (cluster_seq, position)
) STRICT, WITHOUT ROWID;

-- Counts writes of clusters: a write that was decided on an older count is refused, so that rules over the whole set
-- (one network in one cluster, one default) hold without being written in SQL.
CREATE TABLE cluster_generation (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation INTEGER NOT NULL
) STRICT;

INSERT INTO cluster_generation (only_row, generation) VALUES (1, 0);

-- What readiness writes.
CREATE TABLE probe (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    count    INTEGER NOT NULL
) STRICT;

INSERT INTO probe (only_row, count) VALUES (1, 0);
