package release

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/spec"
)

// A material is something that a lock pins: a Debian package, an image from
// elsewhere, a copied tree, or what a build step was answered.
type material struct {
	debian   *spec.LockedPackage
	name     string
	image    bool
	answer   *spec.Material
	digest   isle.Digest
	services []string // that it is in, sorted
}

// purl is the package's URL (github.com/package-url/purl-spec, type deb).
func (m material) purl() string {
	p := m.debian // which have no spaces: a query's escapes are a path's
	return "pkg:deb/debian/" + url.QueryEscape(p.Name) + "@" + url.QueryEscape(p.Version) + "?arch=" + url.QueryEscape(p.Architecture)
}

// materials are what a lock pins, each digest once, of answers at each address:
// packages by name, then the rest.
func materials(l *spec.Lock) []material {
	type id struct {
		digest  isle.Digest
		address string
	}
	known := map[id]*material{}
	for _, service := range slices.Sorted(maps.Keys(l.Services)) {
		add := func(d isle.Digest, m material) {
			k := id{digest: d}
			if m.answer != nil {
				k.address = m.answer.Key()
			}
			if known[k] == nil {
				m.digest = d
				known[k] = &m
			}
			if s := known[k]; !slices.Contains(s.services, service) {
				s.services = append(s.services, service)
			}
		}
		for _, p := range l.Services[service].Packages {
			add(p.Digest, material{debian: &p, name: p.Name})
		}
		if i := l.Services[service].Image; i != nil {
			d := i.Digest
			if d == "" {
				d = i.Tree
			}
			add(d, material{name: i.Request, image: true})
		}
		if b := l.Services[service].Build; b != nil {
			add(b.File, material{name: b.Build.File()})
			add(b.Tree, material{name: "the context of " + b.Build.File()})
			for _, i := range b.Images {
				add(i.Digest, material{name: i.Request, image: true})
			}
		}
		for _, c := range l.Services[service].Copy {
			add(c.Tree, material{name: c.From})
		}
		for _, step := range l.Services[service].Network {
			for _, a := range step.Materials {
				add(a.Digest, material{name: a.URL, answer: &a})
			}
		}
	}
	out := make([]material, 0, len(known))
	for _, m := range known {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b material) int {
		if (a.debian == nil) != (b.debian == nil) {
			if a.debian != nil {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(string(a.digest), string(b.digest)))
	})
	return out
}

// An spdxDocument is one of SPDX 2.3 (spdx.github.io/spdx-spec/v2.3), as far as it is written
// here.
type (
	spdxDocument struct {
		ID            string         `json:"SPDXID"`
		Version       string         `json:"spdxVersion"`
		License       string         `json:"dataLicense"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []spdxPackage  `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID         string     `json:"SPDXID"`
		Name       string     `json:"name"`
		Version    string     `json:"versionInfo,omitempty"`
		Download   string     `json:"downloadLocation"`
		Analyzed   bool       `json:"filesAnalyzed"`
		Purpose    string     `json:"primaryPackagePurpose,omitempty"`
		Checksums  []checksum `json:"checksums,omitempty"`
		References []external `json:"externalRefs,omitempty"`
		Comment    string     `json:"comment,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	external struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Kind string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// noAssertion is SPDX for that nothing is said.
const noAssertion = "NOASSERTION"

func sums(d isle.Digest) []checksum { return []checksum{{"SHA256", d.Hex()}} }

// bill is what is in a release: its images, and what each was made of by the lock.
func (r *Releases) bill(about subject) (any, string) {
	const root = "SPDXRef-release"
	out := spdxDocument{
		ID: "SPDXRef-DOCUMENT", Version: "SPDX-2.3", License: "CC0-1.0", Name: about.manifest.Project + " " + about.digest.Short(),
		Namespace: r.cfg.Builder + "/release/" + about.digest.Hex() + "/" + string(about.entry),
		Creation:  creation{about.at.Truncate(time.Second).Format(time.RFC3339), []string{"Tool: isle-" + r.cfg.BuilderVersion}},
		Packages: []spdxPackage{{
			ID: root, Name: about.manifest.Project, Version: string(about.digest), Download: noAssertion, Purpose: "APPLICATION", Checksums: sums(about.digest),
		}},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", root}},
	}
	images := map[string]string{}
	for i, s := range about.manifest.Services {
		id := "SPDXRef-image-" + strconv.Itoa(i+1)
		images[s.Name] = id
		out.Packages = append(out.Packages, spdxPackage{
			ID: id, Name: about.manifest.Project + "/" + s.Name, Version: string(s.Digest), Download: noAssertion, Purpose: "CONTAINER", Checksums: sums(s.Digest),
			Comment: "the image of service " + s.Name,
		})
		out.Relationships = append(out.Relationships, relationship{root, "CONTAINS", id})
	}
	for i, m := range materials(about.lock) {
		id := "SPDXRef-material-" + strconv.Itoa(i+1)
		p := spdxPackage{ID: id, Name: m.name, Download: noAssertion, Checksums: sums(m.digest)}
		if m.debian != nil {
			p.Version = m.debian.Version
			p.References = []external{{"PACKAGE-MANAGER", "purl", m.purl()}}
		} else if m.answer != nil {
			p.Download, p.Purpose, p.Comment = m.answer.URL, "FILE", "what a build step was answered over HTTP; the checksum is that of the body"
		} else if m.image {
			p.Purpose, p.Comment = "CONTAINER", "an image that services or stages begin with, copy from or mount"
		} else {
			p.Purpose, p.Comment = "SOURCE", "copied files; the checksum is that of their listing"
		}
		out.Packages = append(out.Packages, p)
		for _, s := range m.services {
			if image, ok := images[s]; ok {
				out.Relationships = append(out.Relationships, relationship{image, "CONTAINS", id})
			}
		}
	}
	return out, Materials
}
