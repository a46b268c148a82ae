package sqlite

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"isle"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/ledger"
	"isle/internal/policy"
)

// TestWhatIsEditedInTheFileIsRefusedAndNamed edits what the log vouches for
// with SQLite's own means, as who can write to the state folder would.
func TestWhatIsEditedInTheFileIsRefusedAndNamed(t *testing.T) {
	root := isle.Actor{Kind: isle.Human, Name: "root"}
	for name, edit := range map[string]string{
		"a key's hash":                         "UPDATE ledger SET body = x'00' WHERE key = 'key/1'",
		"a revocation that is deleted":         "DELETE FROM ledger WHERE key = 'revoked/1'",
		"a revocation and the entry's listing": "DELETE FROM ledger WHERE key = 'revoked/1'; DROP TRIGGER audit_is_never_changed; UPDATE audit SET ledger = '', epoch = 0 WHERE ledger = 'identity' AND epoch = 2",
		"a record that is added":               "INSERT INTO ledger VALUES ('identity', 'key/2', x'01')",
		"a ledger that is added":               "INSERT INTO ledger VALUES ('secret', 'key/2', x'01')",
		"a whole ledger that is taken away":    "DELETE FROM ledger",
		"a binding":                            "DROP TRIGGER policies_are_never_changed; UPDATE policies SET body = x'7b7d'",
		"a version of the policy taken away":   "DROP TRIGGER policies_are_never_removed; DELETE FROM policies WHERE version = 2",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s, err := Open(path, Config{})
			if err != nil {
				t.Fatal(err)
			}
			l, _, err := ledger.Open(t.Context(), s, "identity")
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"key/1", "revoked/1"} {
				e := audit.NewEvent(root, isle.ActionIdentityCreate, isle.Resource{Kind: "identity", Name: "ci"}, isle.Allow, "")
				if err := l.Change(t.Context(), []ledger.Record{{Key: key, Body: []byte("body")}}, nil, e); err != nil {
					t.Fatal(err)
				}
			}
			a, err := authority.Open(t.Context(), authority.Config{Store: s})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Apply(t.Context(), root, authority.Request{Document: policy.Document{Name: "main", Format: policy.YAML, Body: []byte(policy.Default + "\n")}}); err != nil {
				t.Fatal(err)
			}
			if report := verified(t, path); len(report) != 0 {
				t.Fatal(report)
			}
			s.Close()

			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(edit); err != nil {
				t.Fatal(err)
			}
			db.Close()

			if len(verified(t, path)) == 0 {
				t.Error("verify does not name it")
			}
			if strings.Contains(name, "listing") {
				return // its records are those of the change before: only the log as a whole says that there was another
			}
			s, err = Open(path, Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var errs []error
			for _, ledgers := range []string{"identity", "secret"} {
				_, _, err := ledger.Open(t.Context(), s, ledgers)
				errs = append(errs, err)
			}
			_, err = authority.Open(t.Context(), authority.Config{Store: s})
			errs = append(errs, err)
			refused := 0
			for _, err := range errs {
				if isle.CodeOf(err) == isle.Unavailable && strings.Contains(err.Error(), "behind the") {
					refused++
				}
			}
			if refused == 0 {
				t.Errorf("it is used: %v", errs)
			}
			if strings.Contains(name, "policy") || strings.Contains(name, "binding") {
				if _, err = authority.Open(t.Context(), authority.Config{Store: s, Reset: true}); err != nil {
					t.Fatalf("there is no way back: %v", err)
				}
				if _, err = authority.Open(t.Context(), authority.Config{Store: s}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// verified is what `isle audit verify` finds in a file.
func verified(t *testing.T, path string) (findings []string) {
	t.Helper()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := audit.VerifyRows(r.Rows(t.Context(), 0, 1<<62), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Vouched(t.Context(), func(err error) { report.Edited(err) }); err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		findings = append(findings, f.Kind+": "+f.Message)
	}
	return findings
}
