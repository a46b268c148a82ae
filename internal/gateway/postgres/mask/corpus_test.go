package mask_test

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"

	"isle"
	"isle/test/lab"
)

// canaries are values of masked columns, and parts that say much of them.
func canaries() []string {
	return []string{"canary", "secret.example", "777123451", "77712345", "87-06-05", "ca4a57c0"}
}

// search looks for what must not leave, in text and in binary.
func search(t *testing.T, what string, sent []byte) {
	t.Helper()
	for _, v := range canaries() {
		for _, form := range lab.Forms(v) {
			if len(form) > 0 && bytes.Contains(sent, form) {
				t.Errorf("%s: what came holds %q as %q: %q", what, v, form, sent)
			}
		}
	}
	for _, raw := range [][]byte{{0x2e, 0x52, 0x15, 0xbb}, {0xca, 0x4a, 0x57, 0xc0}, {0xff, 0xff, 0xed, 0xee}} {
		if bytes.Contains(sent, raw) {
			t.Errorf("%s: what came holds % x: %q", what, raw, sent)
		}
	}
}

func TestTheCorpusOfMaskingHolds(t *testing.T) {
	corpus, err := os.ReadFile("testdata/corpus.txt")
	if err != nil {
		t.Fatal(err)
	}
	db, database, masks := shop(t, all())
	side := connect(t, db, database)
	for i, name := range []string{"text", "binary", "by the text of the statement alone"} {
		format := i % 2
		c := connect(t, db, database)
		c.blind = i == 2
		s := masks.Begin(side.rows)
		t.Run(name, func(t *testing.T) {
			for n, line := range strings.Split(string(corpus), "\n") {
				outcome, sql, ok := strings.Cut(line, ": ")
				if !ok || strings.HasPrefix(line, "#") {
					continue
				}
				if i > 0 && (strings.HasPrefix(sql, "CREATE") || strings.HasPrefix(sql, "ALTER")) && outcome == "passes" {
					continue
				}
				r := c.run(s, sql, false, int16(format))
				search(t, "line "+strconv.Itoa(n+1), r.sent)
				got := "passes"
				switch {
				case r.err != nil:
					got = "refused"
					if c := isle.CodeOf(r.err); c != isle.Refused && c != isle.NotFound {
						t.Errorf("line %d: %s: %v", n+1, sql, r.err)
					}
					if r.raw != nil {
						t.Errorf("line %d: %s: was refused when it had been sent: %v", n+1, sql, r.err)
					}
				case r.failed && r.changed:
					got = "fails"
				case r.failed:
					got = "fails as it is: " + string(r.raw)
				case r.changed:
					got = "masked"
				}
				if got != outcome {
					t.Errorf("line %d: %s: %s, want %s (%v)", n+1, sql, got, outcome, r.err)
				}
			}
		})
	}
}
