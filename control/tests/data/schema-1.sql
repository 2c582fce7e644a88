-- Dump of a database that 0.1.0 wrote (schema 1), by sqlite3's .dump. Three clusters; the second of four was deleted.
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO _sqlx_migrations VALUES(1,'clusters','2026-11-25 03:16:13',1,X'1f2e8eee5f9e68e1aca2c3c1e9c37a0416dc94018386dca73cb581181060a174f8d43ea2313892567c49174e90317b1d',859938);
CREATE TABLE clusters (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    version    INTEGER NOT NULL CHECK (version > 0),
    name       TEXT    NOT NULL UNIQUE,
    is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
    idc        TEXT    NOT NULL,
    location   TEXT    NOT NULL
) STRICT;
INSERT INTO clusters VALUES(1,'b1c55158-a92f-4bcc-835b-2e5775af632e',1,'default',1,'','');
INSERT INTO clusters VALUES(3,'c706d283-a459-4918-97ba-63eef3011757',2,'west',0,'w1|w2','eu|fr');
INSERT INTO clusters VALUES(4,'718592c8-3b13-4ba3-bb18-0036e6183b15',1,'Köln',0,'','eu|de|köln');
CREATE TABLE cluster_cidrs (
    cluster_seq INTEGER NOT NULL REFERENCES clusters (seq) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    cidr        TEXT    NOT NULL,
    PRIMARY KEY (cluster_seq, position)
) STRICT, WITHOUT ROWID;
INSERT INTO cluster_cidrs VALUES(3,0,'10.2.0.0/16');
INSERT INTO cluster_cidrs VALUES(3,1,'fd00:2::/32');
INSERT INTO cluster_cidrs VALUES(4,0,'192.168.7.0/24');
CREATE TABLE cluster_generation (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation INTEGER NOT NULL
) STRICT;
INSERT INTO cluster_generation VALUES(1,6);
CREATE TABLE probe (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    count    INTEGER NOT NULL
) STRICT;
INSERT INTO probe VALUES(1,0);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('clusters',4);
COMMIT;
