package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// A schema is the part of JSON Schema (draft 2020-12) that the table needs.
type schema struct {
	Schema               string             `json:"$schema,omitempty"`
	Title                string             `json:"title,omitempty"`
	Description          string             `json:"description,omitempty"`
	Type                 any                `json:"type,omitempty"` // a word or several
	Enum                 []string           `json:"enum,omitempty"`
	Default              any                `json:"default,omitempty"`
	Pattern              string             `json:"pattern,omitempty"`
	MinLength            int                `json:"minLength,omitempty"`
	Minimum              *float64           `json:"minimum,omitempty"`
	Maximum              *float64           `json:"maximum,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	MinItems             int                `json:"minItems,omitempty"`
	MaxItems             int                `json:"maxItems,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	PropertyNames        *schema            `json:"propertyNames,omitempty"`
	MaxProperties        int                `json:"maxProperties,omitempty"`
	MinProperties        int                `json:"minProperties,omitempty"`
	Required             []string           `json:"required,omitempty"`
	AdditionalProperties *additional        `json:"additionalProperties,omitempty"`
	AnyOf                []*schema          `json:"anyOf,omitempty"`
	OneOf                []*schema          `json:"oneOf,omitempty"`
}

// additional says what other keys may hold; without a schema there are none.
type additional struct{ schema *schema }

// MarshalJSON writes false or the schema.
func (a additional) MarshalJSON() ([]byte, error) {
	if a.schema == nil {
		return []byte("false"), nil
	}
	return json.Marshal(a.schema)
}

// Schema is the JSON Schema (draft 2020-12) of isle.yaml, for editors. It comes
// from the table that Parse reads by. What one value cannot show, such as a
// cycle in depends_on, only Parse finds.
func Schema() []byte {
	s := *fileShape().schema
	s.Schema = "https://json-schema.org/draft/2020-12/schema"
	s.Title = "isle.yaml"
	s.Description = "An environment: services, what they are built from, and what they may use and reach."
	return encodeJSON(s)
}

// encodeJSON is indented JSON with a line break at the end and <, > and & as
// they are.
func encodeJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic(err) // plain data of this package's own types
	}
	return b.Bytes()
}

// plain is documentation without its Markdown.
func plain(s string) string { return strings.ReplaceAll(s, "`", "") }

const referenceHead = `# isle.yaml

An environment file describes a project's services: what each is built from, how it is started, and what the
environment may use and reach. ` + "`isle init`" + ` writes one to start from, ` + "`isle schema`" + ` prints a JSON Schema for editors, and
` + "`isle up`" + ` makes it so. A key that is not listed here is refused with the nearest one that is; every error has line and
column.

This page is generated from the table that the parser reads by.

**Sizes** are bytes, or a number with KiB, MiB, GiB, TiB (or KB, MB, GB, TB): ` + "`512MiB`" + `, ` + "`1.5GiB`" + `.
**Durations** are numbers with d, h, m, s or ms: ` + "`7d`" + `, ` + "`1h30m`" + `. **Names** are lower-case letters, digits and dashes, at most
40, beginning with a letter. **Commands** are a list (a program and its arguments, no shell) or a string (run with
` + "`/bin/sh -c`" + `). YAML aliases (` + "`*name`" + `) work for values; merge keys (` + "`<<`" + `) do not. A file is at most 1 MiB.
`

const referenceTail = `
## What else is checked

- Services share one network: no two may declare the same port, in ` + "`ports`" + ` or as ` + "`healthcheck.tcp`" + `.
- ` + "`depends_on`" + ` names services of the file and has no cycle.
- Volumes and tmpfs lie neither in one another, nor in /proc, /dev, /sys, /isle or /run/isle, nor over what ` + "`copy`" + ` puts there.
- At most 64 services, and 512 packages, 64 copies, 64 run steps, 16 volumes, 32 tmpfs, 64 ports and 256 variables
  each; at most 64 egress destinations and 64 connections.
- A connection under ` + "`uses`" + ` has the name of no service and of no egress host.

## .isleignore

Beside isle.yaml, one pattern a line, names what ` + "`copy`" + ` leaves out. It is a subset of gitignore: ` + "`#`" + ` begins a comment,
` + "`!`" + ` takes back an earlier pattern, a trailing ` + "`/`" + ` matches folders only, a ` + "`/`" + ` at the start or in the middle ties the pattern
to the folder of isle.yaml, ` + "`*`" + `, ` + "`?`" + ` and ` + "`[a-z]`" + ` match within one name and ` + "`**`" + ` any number of folders. What lies in a folder
that is left out cannot be taken back. What a ` + "`from`" + ` itself names is always taken. ` + "`.git`" + ` and ` + "`isle.lock`" + ` are always left
out.
`

// Reference is docs/isle-yaml.md: every key, from the table that Parse reads by.
func Reference() []byte {
	var b bytes.Buffer
	b.WriteString(referenceHead)
	section := func(title string, keys []keyDoc) {
		fmt.Fprintf(&b, "\n## %s\n\n| key | value | default | meaning |\n|---|---|---|---|\n", title)
		for _, k := range keys {
			def := "`" + k.def + "`"
			switch {
			case k.required:
				def = "required"
			case k.def == "" || k.def == "{}":
				def = ""
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, k.words, def, k.doc)
		}
	}
	var walk func(prefix string, keys []keyDoc)
	walk = func(prefix string, keys []keyDoc) {
		for _, k := range keys {
			if len(k.keys) == 0 {
				continue
			}
			where := prefix + k.name + k.in
			section("`"+where+"`", k.keys)
			walk(where+".", k.keys)
		}
	}
	keys := fileShape().keys
	section("The file", keys)
	walk("", keys)
	b.WriteString(referenceTail)
	return b.Bytes()
}
