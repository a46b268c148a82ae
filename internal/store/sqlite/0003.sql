-- The Merkle tree over the log (RFC 6962): beside each entry the hashes that it
-- completes, its own first and then those of the perfect subtrees that end with
-- it, upwards, 32 bytes each. The entry's link has a column of its own, so that
-- an outcome is found from its intent.
DROP TRIGGER audit_is_never_changed;

ALTER TABLE audit ADD COLUMN hashes BLOB NOT NULL DEFAULT x'';
ALTER TABLE audit ADD COLUMN link TEXT NOT NULL DEFAULT '';

-- step: fillHashes

CREATE INDEX audit_link ON audit (link) WHERE link <> '';

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_has_its_hashes BEFORE INSERT ON audit
WHEN length(NEW.hashes) < 32 OR length(NEW.hashes) % 32 <> 0
BEGIN SELECT RAISE(ABORT, 'an audit entry has its hashes beside it'); END;

-- One tree instead of two: it is written with every intent.
CREATE TABLE open_intents_2 (
	id  TEXT PRIMARY KEY,
	seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO open_intents_2 SELECT id, seq FROM open_intents;
DROP TABLE open_intents;
ALTER TABLE open_intents_2 RENAME TO open_intents;
