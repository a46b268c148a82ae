CREATE TABLE environments (
	instance TEXT PRIMARY KEY,
	name     TEXT NOT NULL,
	stage    TEXT NOT NULL,
	created  INTEGER NOT NULL, -- Unix microseconds
	record   BLOB NOT NULL,    -- JSON
	UNIQUE (name, stage)
) STRICT;

CREATE TABLE volumes (
	id      TEXT PRIMARY KEY,
	name    TEXT NOT NULL,
	stage   TEXT NOT NULL,
	created INTEGER NOT NULL,
	record  BLOB NOT NULL
) STRICT;

CREATE TABLE ports (
	name    TEXT NOT NULL,
	stage   TEXT NOT NULL,
	service TEXT NOT NULL,
	port    TEXT NOT NULL, -- its name
	host    INTEGER NOT NULL UNIQUE,
	PRIMARY KEY (name, stage, service, port)
) STRICT;

CREATE TABLE audit (
	seq   INTEGER PRIMARY KEY,
	time  INTEGER NOT NULL, -- Unix microseconds
	id    TEXT NOT NULL UNIQUE,
	entry BLOB NOT NULL     -- the canonical encoding, as appended
) STRICT;

-- Which intents have no outcome yet: an index over audit, not a record.
CREATE TABLE open_intents (
	id  TEXT PRIMARY KEY,
	seq INTEGER NOT NULL
) STRICT;

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_is_never_shortened BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_has_no_gap BEFORE INSERT ON audit
WHEN NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM audit)
	OR NEW.time < (SELECT coalesce(max(time), NEW.time) FROM audit WHERE seq = NEW.seq - 1)
BEGIN SELECT RAISE(ABORT, 'the audit log has no gaps and its time never goes back'); END;
