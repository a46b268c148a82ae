-- Ledgers: tables of records that the log vouches for. An entry that is bound
-- to a ledger says what that holds after the change of this epoch; epochs have
-- no gaps.
ALTER TABLE audit ADD COLUMN ledger TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX audit_ledger ON audit (ledger, epoch) WHERE ledger <> '';

CREATE TRIGGER ledgers_have_no_gap BEFORE INSERT ON audit
WHEN NEW.ledger <> '' AND NEW.epoch <> (SELECT coalesce(max(epoch) + 1, NEW.epoch) FROM audit WHERE ledger = NEW.ledger AND ledger <> '')
BEGIN SELECT RAISE(ABORT, 'epochs have no gaps'); END;

-- The log has no gaps in the policy's epochs. Where versions were taken away
-- behind its back, those after them come later.
DROP TRIGGER policies_have_no_gap;
CREATE TRIGGER policies_go_on BEFORE INSERT ON policies
WHEN NEW.epoch <= (SELECT coalesce(max(epoch), 0) FROM policies)
BEGIN SELECT RAISE(ABORT, 'epochs only grow'); END;

CREATE TABLE ledger (
	ledger TEXT NOT NULL,
	key    TEXT NOT NULL,
	body   BLOB NOT NULL,
	PRIMARY KEY (ledger, key)
) STRICT, WITHOUT ROWID;
