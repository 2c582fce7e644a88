-- Images that are brought to nodes before anybody asks for them. `job` is what crate::preheat makes of it, as JSON; never a password.
CREATE TABLE preheats (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT    NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    -- Seconds since 1970; NULL while it goes on.
    ended   INTEGER,
    job     TEXT    NOT NULL
) STRICT;

CREATE INDEX preheats_running ON preheats (seq) WHERE ended IS NULL;
