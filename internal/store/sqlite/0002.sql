-- Every version of every policy document. The one in force is the last of its
-- name. The epoch counts changes of the policy as a whole, without gaps.
CREATE TABLE policies (
	epoch   INTEGER PRIMARY KEY,
	name    TEXT NOT NULL,
	version INTEGER NOT NULL,
	format  TEXT NOT NULL,
	body    BLOB NOT NULL,
	entry   TEXT NOT NULL, -- the audit entry of the change
	UNIQUE (name, version)
) STRICT;

CREATE TRIGGER policies_are_never_changed BEFORE UPDATE ON policies
BEGIN SELECT RAISE(ABORT, 'a version of a policy is never changed'); END;

CREATE TRIGGER policies_are_never_removed BEFORE DELETE ON policies
BEGIN SELECT RAISE(ABORT, 'a version of a policy is never removed'); END;

CREATE TRIGGER policies_have_no_gap BEFORE INSERT ON policies
WHEN NEW.epoch <> (SELECT coalesce(max(epoch), 0) + 1 FROM policies)
BEGIN SELECT RAISE(ABORT, 'epochs have no gaps'); END;
