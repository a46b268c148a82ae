package sqlite

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/identity"
)

// TestARegistryThatWasEditedInTheFileIsRefused edits machines and keys with
// SQLite's own means, as who can write to the state folder would.
func TestARegistryThatWasEditedInTheFileIsRefused(t *testing.T) {
	root := isle.Actor{Kind: isle.Human, Name: "root"}
	for name, edit := range map[string]string{
		"a key's hash":                    `UPDATE ledger SET body = CAST(replace(CAST(body AS TEXT), substr(CAST(body AS TEXT), instr(CAST(body AS TEXT), 'sha256:'), 71), 'sha256:' || hex(zeroblob(32))) AS BLOB) WHERE key LIKE 'key/%'`,
		"a revocation":                    `UPDATE ledger SET body = CAST(json_remove(CAST(body AS TEXT), '$.revoked') AS BLOB) WHERE key LIKE '%/%'`,
		"a machine's stage":               `UPDATE ledger SET body = CAST(replace(CAST(body AS TEXT), '"testing"', '"staging"') AS BLOB) WHERE key = 'machine/ci'`,
		"a machine's end":                 `UPDATE ledger SET body = CAST(json_set(CAST(body AS TEXT), '$.expires', '2999-01-01T00:00:00Z') AS BLOB) WHERE key = 'machine/ci'`,
		"a key's holder":                  `UPDATE ledger SET body = CAST(replace(CAST(body AS TEXT), '"name":"old"', '"name":"ci"') AS BLOB) WHERE key LIKE 'key/%'`,
		"a machine that is taken away":    `DELETE FROM ledger WHERE key = 'machine/old'`,
		"the version before a revocation": `UPDATE ledger SET body = (SELECT body FROM before WHERE before.key = ledger.key) WHERE key IN (SELECT key FROM before)`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s, err := Open(path, Config{})
			if err != nil {
				t.Fatal(err)
			}
			cfg := identity.RegistryConfig{Store: s, Log: s}
			r, err := identity.OpenRegistry(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			var secrets []string
			for _, m := range []string{"old", "ci"} {
				_, k, err := r.Create(t.Context(), root, identity.NewMachine{Name: m, Owner: root, Purpose: "builds", Stage: "testing", Expires: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				secrets = append(secrets, k.Secret)
			}
			if _, err := r.Authenticate(t.Context(), secrets[1], "192.0.2.1"); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec("CREATE TABLE before AS SELECT * FROM ledger"); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Revoke(t.Context(), root, "old", "left"); err != nil {
				t.Fatal(err)
			}
			if r, err = identity.OpenRegistry(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Authenticate(t.Context(), secrets[0], "192.0.2.1"); isle.CodeOf(err) != isle.Refused {
				t.Fatal(err)
			}
			if _, err := r.Authenticate(t.Context(), secrets[1], "192.0.2.1"); err != nil {
				t.Fatal(err)
			}
			s.Close()

			if res, err := db.Exec(edit); err != nil {
				t.Fatal(err)
			} else if n, _ := res.RowsAffected(); n == 0 {
				t.Fatal("nothing was edited")
			}
			if _, err := db.Exec("DROP TABLE before"); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(path, Config{}); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			cfg.Store, cfg.Log = s, s
			if _, err := identity.OpenRegistry(t.Context(), cfg); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "behind the log") {
				t.Errorf("it is used: %v", err)
			}
			if len(verified(t, path)) == 0 {
				t.Error("verify does not name it")
			}
		})
	}
}
