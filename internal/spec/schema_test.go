package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write docs/isle-yaml.md")

func TestTheReferenceIsUpToDate(t *testing.T) {
	const name = "../../docs/isle-yaml.md"
	if *update {
		if err := os.WriteFile(name, Reference(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, Reference()) {
		t.Errorf("%s differs from the table of keys; run go test ./internal/spec -run Reference -update", name)
	}
}

// violations is as much of a JSON Schema validator as the schema needs.
func violations(s any, v any, at string) (out []string) {
	m, isMap := s.(map[string]any)
	if !isMap {
		return nil
	}
	bad := func(format string, args ...any) { out = append(out, at+": "+fmt.Sprintf(format, args...)) }
	if want, ok := m["type"]; ok {
		words, many := want.([]any)
		if !many {
			words = []any{want}
		}
		if !slices.ContainsFunc(words, func(w any) bool { return isType(w.(string), v) }) {
			bad("is %T, not %v", v, want)
			return out
		}
	}
	if enum, ok := m["enum"].([]any); ok && !slices.Contains(enum, v) {
		bad("%v is not one of %v", v, enum)
	}
	switch v := v.(type) {
	case string:
		if p, ok := m["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
			bad("%q does not match %s", v, p)
		}
		if n, ok := m["minLength"].(float64); ok && utf8.RuneCountInString(v) < int(n) {
			bad("is too short")
		}
	case float64:
		if n, ok := m["minimum"].(float64); ok && v < n {
			bad("is less than %v", n)
		}
		if n, ok := m["maximum"].(float64); ok && v > n {
			bad("is more than %v", n)
		}
	case []any:
		for i, e := range v {
			out = append(out, violations(m["items"], e, fmt.Sprintf("%s[%d]", at, i))...)
		}
		if n, ok := m["minItems"].(float64); ok && len(v) < int(n) {
			bad("has too few entries")
		}
	case map[string]any:
		props, _ := m["properties"].(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, violations(m["propertyNames"], k, at+" key")...)
			if p, ok := props[k]; ok {
				out = append(out, violations(p, v[k], at+"."+k)...)
			} else if m["additionalProperties"] == false {
				bad("unknown key %s", k)
			} else {
				out = append(out, violations(m["additionalProperties"], v[k], at+"."+k)...)
			}
		}
		required, _ := m["required"].([]any)
		for _, k := range required {
			if _, ok := v[k.(string)]; !ok {
				bad("%s is missing", k)
			}
		}
	}
	for word, want := range map[string]func(int) bool{"anyOf": func(n int) bool { return n > 0 }, "oneOf": func(n int) bool { return n == 1 }} {
		if list, ok := m[word].([]any); ok {
			n := 0
			for _, sub := range list {
				if len(violations(sub, v, at)) == 0 {
					n++
				}
			}
			if !want(n) {
				bad("%s: %d match", word, n)
			}
		}
	}
	return out
}

func isType(word string, v any) bool {
	switch v := v.(type) {
	case string:
		return word == "string"
	case float64:
		return word == "number" || word == "integer" && v == float64(int64(v))
	case bool:
		return word == "boolean"
	case []any:
		return word == "array"
	case map[string]any:
		return word == "object"
	}
	return false
}

// asJSON gives a YAML text as JSON values.
func asJSON(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(j, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheSchemaAgreesWithTheParser(t *testing.T) {
	var schema any
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	shop, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../examples/shop/isle.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{
		string(shop), string(example), "name: a\nservices: {s: {}}\n",
		service("{volumes: {/d: {size: 1073741824}}, command: sleep 1, run: make, env: {A: 1, B: true, C: x, D: 1.5}}"),
		service("{user: 1000, workdir: /x, healthcheck: {command: [true], interval: 1m30s, retries: 5}}"),
		service("{user: '0:0', caps: [net_bind_service, CAP_CHOWN], packages: [a1=1.2-3]}") + "egress: [{host: db, port: 1, addresses: [10.0.0.0/8]}]\nlimits: {cpus: 0.5, memory: 1.5GiB}\n",
		service("{env: {A: 1}}") + "uses: [db]\nstages: {values: [env.s.A, uses.db, limits.cpus], checks: [{command: make smoke}, {command: [a, b], service: s, timeout: 90s}]}\n",
	} {
		if _, err := Parse("isle.yaml", []byte(in)); err != nil {
			t.Errorf("the parser refuses: %v\n%s", err, in)
		}
		if v := violations(schema, asJSON(t, []byte(in)), ""); len(v) > 0 {
			t.Errorf("the schema refuses: %v\n%s", v, in)
		}
	}
	for _, in := range []string{
		"services: {s: {}}\n", "name: a\n", "name: A\nservices: {s: {}}\n", "name: a\nservices: {S: {}}\n", "name: a\nisolation: gvisr\nservices: {s: {}}\n",
		service("comand: [x]"), service("command: []"), service("restart: sometimes"), service("healthcheck: {tcp: 1, http: 'http://localhost/'}"),
		service("healthcheck: {http: 'http://example.com/'}"), service("ports: {web: 70000}"), service("volumes: {data: {}}"), service("volumes: {/d: {size: 2G}}"),
		service("env: {'1': x}"), service("copy: [{from: a}]"), service("packages: [A]"), service("packages: a"),
		"name: a\nservices: {s: {}}\nttl: 30\n", "name: a\nservices: {s: {}}\nstages: {values: [ttl]}\n", "name: a\nservices: {s: {}}\nstages: {checks: [{service: s}]}\n", "name: a\nservices: {s: {}}\nlimits: {pids: 1}\n", "name: a\nservices: {s: {}}\negress: ['*.a:1']\n",
	} {
		if _, err := Parse("isle.yaml", []byte(in)); err == nil {
			t.Errorf("the parser accepts:\n%s", in)
		}
		if v := violations(schema, asJSON(t, []byte(in)), ""); len(v) == 0 {
			t.Errorf("the schema accepts:\n%s", in)
		}
	}
}

func TestEveryKeyIsDocumentedAndItsDefaultReads(t *testing.T) {
	reference := string(Reference())
	var walk func(path string, keys []keyDoc)
	walk = func(path string, keys []keyDoc) {
		for _, k := range keys {
			if len(k.doc) < 8 || !strings.HasSuffix(k.doc, ".") {
				t.Errorf("%s%s: documented as %q", path, k.name, k.doc)
			}
			if !strings.Contains(reference, "| `"+k.name+"` | ") {
				t.Errorf("%s%s is not in the reference", path, k.name)
			}
			walk(path+k.name+".", k.keys)
		}
	}
	walk("", fileShape().keys)
	// The defaults go through the parser with every file that leaves keys out.
	if _, err := Parse("isle.yaml", []byte(service("{volumes: {/d: {}}, healthcheck: {tcp: 1}}"))); err != nil {
		t.Error(err)
	}
}
