package owasp

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The table of docs/security.md has each entry of the Top 10 once and in order,
// and names the entry's test, others that exist, and every test of this package.
func TestTheDocumentNamesEachEntryAndItsTests(t *testing.T) {
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## Non-human identities\n")
	if !ok {
		t.Fatal("docs/security.md has no section of that name")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	known, declared := map[string]bool{}, regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.HasSuffix(path, ".txtar") {
			known[strings.TrimSuffix(d.Name(), ".txtar")] = true
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			known[m[1]] = true
			if filepath.Base(filepath.Dir(path)) == "owasp" && m[1] != t.Name() && m[1] != "TestMain" && !strings.Contains(section, "`"+m[1]+"`") {
				t.Errorf("the section does not name %s", m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	entries := []string{
		"NHI1 Improper Offboarding", "NHI2 Secret Leakage", "NHI3 Vulnerable Third-Party NHI", "NHI4 Insecure Authentication", "NHI5 Overprivileged NHI",
		"NHI6 Insecure Cloud Deployment Configurations", "NHI7 Long-Lived Secrets", "NHI8 Environment Isolation", "NHI9 NHI Reuse", "NHI10 Human Use of NHI",
	}
	named, got := regexp.MustCompile("`(Test\\w+|[a-z]+(?:_[a-z0-9]+){3,})`"), []string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| NHI") {
			continue
		}
		if len(cells) != 4 {
			t.Errorf("a row of %d cells: %s", len(cells), line)
			continue
		}
		entry := strings.TrimSpace(cells[0])
		got = append(got, entry)
		own := "Test" + regexp.MustCompile(`[ -]`).ReplaceAllString(entry, "")
		if !strings.Contains(strings.ToLower(cells[1]), strings.ToLower("`"+own+"`")) {
			t.Errorf("%s does not name %s", entry, own)
		}
		for _, m := range named.FindAllStringSubmatch(cells[1], -1) {
			if !known[m[1]] {
				t.Errorf("%s names %s, and there is no such test", entry, m[1])
			}
		}
		for i, what := range []string{"what Isle does", "what it does not"} {
			if len(strings.TrimSpace(cells[2+i])) < 40 {
				t.Errorf("%s does not say %s", entry, what)
			}
		}
	}
	if !slices.Equal(got, entries) {
		t.Errorf("the entries are %q", got)
	}
}
