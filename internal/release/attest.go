package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"isle"
	"isle/internal/seal"
	"isle/internal/spec"
)

// The kinds of attestation.
const (
	Provenance = "provenance" // how it was built: SLSA provenance v1
	Materials  = "sbom"       // what is in it: SPDX 2.3
)

// Bounds of what lies with a release.
const (
	maxAttestations   = 100
	maxAttestation    = 32 << 20  // bytes of one envelope
	maxAttested       = 256 << 20 // bytes of all of a release that comes in a file
	prefixAttestation = "attestation-"
)

// An Attestation is a signed statement about a release that lies with it.
type Attestation struct {
	Kind   string      `json:"kind"`
	Digest isle.Digest `json:"digest"` // of the envelope's bytes
	Added  time.Time   `json:"added"`
	Source Source      `json:"source,omitzero"` // that a provenance names
}

func (a Attestation) file() string { return prefixAttestation + a.Digest.Hex() + ".json" }

// A subject is what a statement is about, and what it says it from.
type subject struct {
	digest   isle.Digest
	manifest Manifest
	lock     *spec.Lock
	source   Source
	actor    isle.Actor
	entry    isle.ID // the audit entry of the making
	at       time.Time
}

// The types of in-toto's statements and their predicates
// (github.com/in-toto/attestation, slsa.dev/spec/v1.0/provenance).
const (
	payloadType   = "application/vnd.in-toto+json"
	statementType = "https://in-toto.io/Statement/v1"
)

// predicateTypes are the types of what each kind of attestation says.
func predicateType(kind string) string {
	if kind == Materials {
		return "https://spdx.dev/Document/v2.3"
	}
	return "https://slsa.dev/provenance/v1"
}

// A descriptor is in-toto's ResourceDescriptor.
type descriptor struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// A statement is in-toto's Statement v1.
type statement struct {
	Type          string       `json:"_type"`
	Subject       []descriptor `json:"subject"`
	PredicateType string       `json:"predicateType"`
	Predicate     any          `json:"predicate"`
}

// An envelope is DSSE's (github.com/secure-systems-lab/dsse, v1.0.2).
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 (RFC 4648) in JSON
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// attest is a signed statement about a release, as an envelope's JSON.
func (r *Releases) attest(about subject, kind string, predicate any) ([]byte, error) {
	payload, err := encode(statement{
		Type: statementType, PredicateType: predicateType(kind), Predicate: predicate,
		Subject: []descriptor{{Name: about.manifest.Project, Digest: map[string]string{"sha256": about.digest.Hex()}}},
	})
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot encode the %s of a release: %w", kind, err)
	}
	e := envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{{
		KeyID: keyID(r.cfg.Key.Public()), Sig: r.cfg.Key.SignBytes(preAuthentication(payloadType, payload)),
	}}}
	b, err := encode(e)
	if err == nil && len(b) > maxAttestation {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot encode the %s of a release: %w", kind, err)
	}
	return b, nil
}

// preAuthentication is what DSSE signs of a payload: its PAE.
func preAuthentication(kind string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(payload), payload)
}

// A definition is SLSA's BuildDefinition, details its RunDetails.
type (
	provenance struct {
		Definition definition `json:"buildDefinition"`
		Details    details    `json:"runDetails"`
	}
	definition struct {
		Type         string         `json:"buildType"`
		External     map[string]any `json:"externalParameters"`
		Internal     map[string]any `json:"internalParameters,omitempty"`
		Dependencies []descriptor   `json:"resolvedDependencies"`
	}
	details struct {
		Builder  builder  `json:"builder"`
		Metadata metadata `json:"metadata"`
	}
	builder struct {
		ID      string            `json:"id"`
		Version map[string]string `json:"version,omitempty"`
	}
	metadata struct {
		Invocation string    `json:"invocationId"`
		Finished   time.Time `json:"finishedOn"`
	}
)

// BuildType is the URI of what a provenance means by its parameters: docs/releases.md
// tells it.
const BuildType = "urn:isle:build:v1"

// provenance is how a release came about. The entry of the audit log that says so
// is its invocation: the log holds the hash of this statement in turn.
func (r *Releases) provenance(about subject) (any, string) {
	external := map[string]any{"project": about.manifest.Project, "source": sourceOf(about.source)}
	var images []map[string]any
	for _, s := range about.manifest.Services {
		images = append(images, map[string]any{"service": s.Name, "image": string(s.Digest)})
	}
	return provenance{
		Definition: definition{
			Type: BuildType, External: external,
			Internal:     map[string]any{"requestedBy": about.actor.String(), "images": images, "imageFormat": about.lock.ImageFormat, "architecture": about.lock.Architecture},
			Dependencies: dependencies(about),
		},
		Details: details{
			Builder:  builder{ID: r.cfg.Builder, Version: map[string]string{"isle": r.cfg.BuilderVersion}},
			Metadata: metadata{Invocation: string(about.entry), Finished: about.at.Truncate(time.Second)},
		},
	}, Provenance
}

// sourceOf says which commit the files are of, and whether they are known to be.
func sourceOf(s Source) map[string]any {
	return map[string]any{"commit": s.Commit, "branch": s.Branch, "repository": s.Repository, "clean": s.Commit != "" && !s.Dirty}
}

// dependencies are what went into a release: the commit, the lock, and what that
// names, each once.
func dependencies(about subject) (out []descriptor) {
	if c := about.source.Commit; c != "" {
		out = append(out, descriptor{Name: "source", Digest: map[string]string{"gitCommit": c}, Annotations: map[string]any{"clean": !about.source.Dirty}})
	}
	out = append(out, descriptor{Name: fileLock, Digest: map[string]string{"sha256": isle.DigestOf(about.lock.Encode()).Hex()}})
	for _, m := range materials(about.lock) {
		if m.debian != nil {
			out = append(out, descriptor{URI: m.purl(), Digest: map[string]string{"sha256": m.digest.Hex()}})
		} else if a := m.answer; a != nil {
			out = append(out, descriptor{URI: a.URL, Digest: map[string]string{"sha256": m.digest.Hex()}, Annotations: map[string]any{"status": a.Status, "time": a.Time}})
		} else if m.image {
			out = append(out, descriptor{Name: "image " + m.name, Digest: map[string]string{"sha256": m.digest.Hex()}})
		} else {
			out = append(out, descriptor{Name: "tree of " + m.name, Digest: map[string]string{"sha256": m.digest.Hex()}})
		}
	}
	return out
}

// Statement returns an attestation's envelope. It fails with Untrusted where it is
// not what it was.
func (r *Releases) Statement(d isle.Digest, a Attestation) ([]byte, error) {
	b, err := seal.Read(filepath.Join(r.dir(d), a.file()), maxAttestation)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, isle.Errorf(isle.Untrusted, "the %s of release %s is gone: %w", a.Kind, d.Short(), err).WithHint("put its folder back from a backup")
	case err != nil:
		return nil, isle.Errorf(isle.CodeOf(err), "the %s of release %s cannot be read: %w", a.Kind, d.Short(), err)
	case isle.DigestOf(b) != a.Digest:
		return nil, isle.Errorf(isle.Untrusted, "the %s of release %s was changed on disk", a.Kind, d.Short()).WithHint("find out who wrote to %s", r.dir(d))
	}
	return b, nil
}

// keyID is what a key of DSSE is called, as securesystemslib counts it: SHA-256 of
// the canonical JSON of the key's metadata.
func keyID(public []byte) string {
	return isle.DigestOf(fmt.Appendf(nil, `{"keyid_hash_algorithms":["sha256","sha512"],"keytype":"ed25519","keyval":{"public":"%x"},"scheme":"ed25519"}`, public)).Hex()
}

// decodeEnvelope reads an envelope of one statement, whose predicate stays as it is.
func decodeEnvelope(b []byte) (e envelope, s statement, err error) {
	if len(b) > maxAttestation {
		return e, s, errors.New("it is too large")
	}
	if err = json.Unmarshal(b, &e); err != nil {
		return e, s, err
	}
	if e.PayloadType != payloadType {
		return e, s, fmt.Errorf("its payload is %q and no statement", clip(e.PayloadType))
	}
	raw := json.RawMessage{}
	s.Predicate = &raw
	if err = json.Unmarshal(e.Payload, &s); err == nil && s.Type != statementType {
		err = fmt.Errorf("%q is no statement of in-toto's", clip(s.Type))
	}
	return e, s, err
}
