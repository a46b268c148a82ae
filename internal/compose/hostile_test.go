package compose

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"isle"
)

// Small files that would become gigabytes: each part is within its own bound, and
// it is the sum that counts.
func TestWhatMultipliesIsRefusedAsAWhole(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	big := strings.Repeat("x", 250<<10)
	for name, files := range map[string]map[string]string{
		"a large service that many extend": {
			"compose.yaml": "services:\n  a: {image: a, environment: {" + many(10_000, "A%d: b, ") + "}}\n" + many(2000, "  s%d: {extends: a, environment: {X: y}}\n"),
		},
		"a chain of services": {
			"compose.yaml": "services:\n  s0: {image: a, environment: {" + many(10_000, "A%d: b, ") + "}}\n" + chain(1000),
		},
		"a large file that is laid over itself": {
			"a.yaml":       "services:\n  a: {image: a, environment: {" + many(10_000, "A%d: b, ") + "}}\n",
			"compose.yaml": "include: [{path: [" + strings.Repeat("a.yaml, ", 5000) + "a.yaml]}]\nservices: {web: {image: a}}\n",
		},
		"a variable that is in every value": {".env": "A=" + big + "\n", "compose.yaml": "services: {web: {image: a, command: [" + strings.Repeat("$A, ", 2000) + "x]}}\n"},
		"variables of variables":            {".env": "A0=" + big + "\n" + many(2000, "B%d=$A0\n"), "compose.yaml": "services: {web: {image: a}}\n"},
		"an env_file of variables":          {"e": "A0=" + big + "\n" + many(2000, "B%d=$A0\n"), "compose.yaml": "services: {web: {image: a, env_file: e}}\n"},
		"an env_file that is named often":   {"e": strings.Repeat("# comment\n", 100_000), "compose.yaml": "services: {web: {image: a, env_file: [" + strings.Repeat("e, ", 2000) + "e]}}\n"},
	} {
		c, err := convert(t, files)
		if err == nil {
			err = c.Err()
		}
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), errTooLarge.Error()) {
			t.Errorf("%s: %.300v", name, err)
		}
	}
	folder := "/" + strings.Repeat("x", 250<<10)
	c, err := convert(t, map[string]string{".devcontainer/devcontainer.json": `{"image": "a", "workspaceFolder": "` + folder + `", "containerEnv": {"A": "` + strings.Repeat("${containerWorkspaceFolder}", 2000) + `"}}`}, devcontainer)
	if err == nil {
		err = c.Err()
	}
	if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), errTooLarge.Error()) {
		t.Errorf("a folder that is in every value: %.300v", err)
	}
}

// chain is services each of which extends the one before.
func chain(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  s%d: {extends: s%d, environment: {X: y}}\n", i+1, i)
	}
	return b.String()
}

// What is copied for each comment is copied a quarter of a million times.
func TestAFileOfCommentsTakesLittle(t *testing.T) {
	text := `{"image": "a"` + strings.Repeat("/**/", maxFile/4-100) + "}"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c, err := convert(t, map[string]string{".devcontainer/devcontainer.json": text}, devcontainer)
	runtime.ReadMemStats(&after)
	if err != nil || c.Err() != nil {
		t.Error(err, c.Err())
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<30 {
		t.Errorf("it took %d MiB to read one", took>>20)
	}
}
