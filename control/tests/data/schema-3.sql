-- Dump of a database of schema 3 (before lists had columns and indices of their own), as sqlite3's .dump writes it.
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
INSERT INTO "_sqlx_migrations" VALUES(1,'clusters','2026-11-26 09:12:40',1,X'1F2E8EEE5F9E68E1ACA2C3C1E9C37A0416DC94018386DCA73CB581181060A174F8D43EA2313892567C49174E90317B1D',700000);
INSERT INTO "_sqlx_migrations" VALUES(2,'identity','2026-11-26 09:12:40',1,X'5DABCD6DD6C1404D06F65C8599018E5F37D3243193A530D0F6B6B887A0646F810FBFDAEA506233B698C661E62948327C',700000);
INSERT INTO "_sqlx_migrations" VALUES(3,'preheats','2026-11-26 19:40:11',1,X'153C9DC838DD9F69358993ECBCBB35AD8D1769DF3B215674BF12761F3443D94F399D0673485636F0988898C8468F6F20',700000);
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
INSERT INTO "api_tokens" VALUES('at1','root',X'9A0729517A8FA9B6F613CB89287F4F95DA6845E76DA426CEE8F935776C7F8185','admin',NULL,1795680000,NULL);
INSERT INTO "api_tokens" VALUES('at2','west-viewer',X'D6615A6075332113A0A89F6B57CCBE74962DC34053DB855850A0BE1A2DE39CA2','viewer','["c706d283-a459-4918-97ba-63eef3011757"]',1795680050,4102444800);
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
INSERT INTO "audit" VALUES(1,1795680060,'root','cluster.create','west',NULL,'{"name":"west"}');
INSERT INTO "audit" VALUES(2,1795680400,'root','member.revoke','node-2','{"revoked":null}',NULL);
INSERT INTO "audit" VALUES(3,1795680500,'ci','preheat.create','p-done',NULL,'{"image":"registry.example/team/app:1"}');
CREATE TABLE cluster_cidrs (
    cluster_seq INTEGER NOT NULL REFERENCES clusters (seq) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    cidr        TEXT    NOT NULL,
    PRIMARY KEY (cluster_seq, position)
) STRICT, WITHOUT ROWID;
INSERT INTO "cluster_cidrs" VALUES(2,0,'10.2.0.0/16');
INSERT INTO "cluster_cidrs" VALUES(2,1,'fd00:2::/32');
CREATE TABLE cluster_generation (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation INTEGER NOT NULL
) STRICT;
INSERT INTO "cluster_generation" VALUES(1,4);
CREATE TABLE clusters (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    version    INTEGER NOT NULL CHECK (version > 0),
    name       TEXT    NOT NULL UNIQUE,
    is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
    idc        TEXT    NOT NULL,
    location   TEXT    NOT NULL
) STRICT;
INSERT INTO "clusters" VALUES(1,'b1c55158-a92f-4bcc-835b-2e5775af632e',1,'default',1,'','');
INSERT INTO "clusters" VALUES(2,'c706d283-a459-4918-97ba-63eef3011757',3,'west',0,'w1|w2','eu|fr');
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
INSERT INTO "join_tokens" VALUES('jt1',X'5BDD0A8102B383532A69032B8E4C25F5787044C7D4AB12DC70A208E2B7050AC6','c706d283-a459-4918-97ba-63eef3011757',1,4102444800,7,1795680000,'root');
INSERT INTO "join_tokens" VALUES('jt2',X'578DAB4813F0CF56D0A36ED07B1CFEF8112C7D473B56BA593B5678ACFACAD62A',NULL,0,1795680900,0,1795680100,'root');
CREATE TABLE members (
    node_id    TEXT    PRIMARY KEY,
    key        BLOB    NOT NULL CHECK (length(key) = 32),
    cluster_id TEXT,
    seed       INTEGER NOT NULL CHECK (seed IN (0, 1)),
    joined_by  TEXT    NOT NULL,
    joined     INTEGER NOT NULL,
    revoked    INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO "members" VALUES('node-1',X'E8A987F97B609851A77E10D6D48138EF0E518F46B9F1DA1145BA183AD02F9353','c706d283-a459-4918-97ba-63eef3011757',1,'jt1',1795680200,NULL);
INSERT INTO "members" VALUES('node-2',X'C37EE9C4DF69D2E96C5E9B94C75D7CABC583E7EF6DC65A6C01CA3A8D3F8B7705',NULL,0,'jt2',1795680300,1795680400);
CREATE TABLE preheats (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT    NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    -- Seconds since 1970; NULL while it goes on.
    ended   INTEGER,
    job     TEXT    NOT NULL
) STRICT;
INSERT INTO "preheats" VALUES(1,'p-done',1795690000,1795690009,'{"id":"p-done","image":{"registry":"registry.example","repository":"team/app","reference":"1"},"platforms":["linux/amd64"],"cluster":"c706d283-a459-4918-97ba-63eef3011757","target":{"percent":100},"created":1795690000,"created_by":"root","ended":1795690009,"cancelled":false,"manifest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","blobs":[{"digest":"sha256:0101010101010101010101010101010101010101010101010101010101010101","size":700},{"digest":"sha256:0202020202020202020202020202020202020202020202020202020202020202","size":50}],"nodes":{"node-1":{"name":"a1","attempt":1,"state":"done"},"node-2":{"name":"a2","attempt":1,"state":"done"}}}');
INSERT INTO "preheats" VALUES(2,'p-failed',1795690010,1795690019,'{"id":"p-failed","image":{"registry":"registry.example","repository":"team/app","reference":"2"},"platforms":["linux/amd64"],"cluster":"c706d283-a459-4918-97ba-63eef3011757","target":{"nodes":["a1","a2","a3"]},"created":1795690010,"created_by":"root","ended":1795690019,"cancelled":false,"manifest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","blobs":[{"digest":"sha256:0101010101010101010101010101010101010101010101010101010101010101","size":700},{"digest":"sha256:0202020202020202020202020202020202020202020202020202020202020202","size":50}],"nodes":{"node-1":{"name":"a1","attempt":1,"state":"done"},"node-2":{"name":"a2","attempt":1,"state":{"failed":"disk full"}},"node-3":{"name":"a3","attempt":1,"state":{"failed":"it was away for 60 s"}}}}');
INSERT INTO "preheats" VALUES(3,'p-cancelled',1795690020,1795690021,'{"id":"p-cancelled","image":{"registry":"registry.example","repository":"team/app","reference":"3"},"platforms":[],"cluster":"c706d283-a459-4918-97ba-63eef3011757","target":"seeds","created":1795690020,"created_by":"root","ended":1795690021,"cancelled":true,"manifest":null,"blobs":[],"nodes":{"node-1":{"name":"a1","attempt":1,"state":"cancelled"}}}');
INSERT INTO "preheats" VALUES(4,'p-runs',1795690030,NULL,'{"id":"p-runs","image":{"registry":"registry.example","repository":"team/app","reference":"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"},"platforms":["linux/amd64"],"cluster":"c706d283-a459-4918-97ba-63eef3011757","target":{"percent":100},"created":1795690030,"created_by":"root","ended":null,"cancelled":false,"manifest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","blobs":[{"digest":"sha256:0101010101010101010101010101010101010101010101010101010101010101","size":700},{"digest":"sha256:0202020202020202020202020202020202020202020202020202020202020202","size":50}],"nodes":{"node-1":{"name":"a1","attempt":1,"state":"done"},"node-2":{"name":"a2","attempt":1,"state":"running"}}}');
CREATE TABLE probe (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    count    INTEGER NOT NULL
) STRICT;
INSERT INTO "probe" VALUES(1,0);
CREATE TABLE voids (
    node_id TEXT    PRIMARY KEY,
    before  INTEGER NOT NULL,
    forget  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "voids" VALUES('node-2',1795680400000000,4102444800);
CREATE INDEX preheats_running ON preheats (seq) WHERE ended IS NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('clusters',2);
INSERT INTO "sqlite_sequence" VALUES('audit',3);
INSERT INTO "sqlite_sequence" VALUES('preheats',4);
COMMIT;
