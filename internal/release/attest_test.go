package release

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intotov1 "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
	spdxjson "github.com/spdx/tools-golang/json"
	"google.golang.org/protobuf/encoding/protojson"

	"isle"
	"isle/internal/seal"
)

// publicVerifier is a DSSE verifier of others' making for a key as isle shows it.
func publicVerifier(t *testing.T, key *seal.Key) *dsse.EnvelopeVerifier {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := signerverifier.LoadKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	if loaded.KeyID != keyID(key.Public()) {
		t.Errorf("the key is called %s there and %s here", loaded.KeyID, keyID(key.Public()))
	}
	one, err := signerverifier.NewED25519SignerVerifierFromSSLibKey(loaded)
	if err != nil {
		t.Fatal(err)
	}
	v, err := dsse.NewEnvelopeVerifier(one)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// statementOf is an attestation as others read it.
func statementOf(t *testing.T, w *world, rel Release, i int) (*intotov1.Statement, []byte) {
	t.Helper()
	b, err := w.Statement(rel.Digest, rel.Attestations[i])
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	_, payload, err := publicVerifier(t, w.config.Key).VerifyAndDecode(t.Context(), &e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publicVerifier(t, keyOf(t, "other")).Verify(t.Context(), &e); err == nil {
		t.Error("another key has signed it too")
	}
	s := &intotov1.Statement{}
	if err := protojson.Unmarshal(payload, s); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	if len(s.GetSubject()) != 1 || s.GetSubject()[0].GetDigest()["sha256"] != rel.Digest.Hex() {
		t.Errorf("it is of %v", s.GetSubject())
	}
	return s, payload
}

func TestProvenanceIsVerifiedByAPublicVerifier(t *testing.T) {
	w := newWorld(t, "here")
	req := shop(t, "")
	rel := w.create(req)
	s, _ := statementOf(t, w, rel, 0)
	if s.GetPredicateType() != "https://slsa.dev/provenance/v1" {
		t.Error(s.GetPredicateType())
	}
	b, err := protojson.Marshal(s.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var p provenancev1.Provenance
	if err := protojson.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if p.GetRunDetails().GetBuilder().GetId() != "spiffe://here" {
		t.Error(p.GetRunDetails())
	}
	source := p.GetBuildDefinition().GetExternalParameters().GetFields()["source"].GetStructValue().GetFields()
	if source["commit"].GetStringValue() != req.Source.Commit || !source["clean"].GetBoolValue() {
		t.Error(source)
	}
	named := map[string]string{}
	for _, d := range p.GetBuildDefinition().GetResolvedDependencies() {
		named[d.GetName()+d.GetUri()] = d.GetDigest()["sha256"] + d.GetDigest()["gitCommit"]
	}
	for name, want := range map[string]string{
		"source": req.Source.Commit, "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64": isle.DigestOf([]byte("libc6")).Hex(), "tree of app/": isle.DigestOf([]byte("app")).Hex(),
	} {
		if named[name] != want {
			t.Errorf("%s is %q in %v", name, named[name], named)
		}
	}
	// It is bound to the log, which names the statement's hash in turn.
	last := w.store.Entries()
	e := last[len(last)-1]
	if p.GetRunDetails().GetMetadata().GetInvocationId() != string(e.ID) || e.Details[Provenance] != string(rel.Attestations[0].Digest) || e.Release != rel.Digest {
		t.Errorf("the log says %v", e)
	}
}

func TestProvenanceSaysWhenTheTreeWasNotClean(t *testing.T) {
	w := newWorld(t, "here")
	for _, source := range []Source{{Commit: strings.Repeat("1", 40), Dirty: true}, {}} {
		req := shop(t, "")
		req.Source = source
		rel := w.create(req)
		s, _ := statementOf(t, w, rel, len(rel.Attestations)-1)
		if s.GetPredicateType() != predicateType(Provenance) { // the first time the bill comes last
			s, _ = statementOf(t, w, rel, 0)
		}
		got := s.GetPredicate().GetFields()["buildDefinition"].GetStructValue().GetFields()["externalParameters"].GetStructValue().GetFields()["source"].GetStructValue().GetFields()
		if got["clean"].GetBoolValue() || got["commit"].GetStringValue() != source.Commit {
			t.Error(got)
		}
	}
}

func TestTheBillOfMaterialsIsReadBySPDXsOwnTools(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	s, _ := statementOf(t, w, rel, 1)
	if s.GetPredicateType() != "https://spdx.dev/Document/v2.3" {
		t.Error(s.GetPredicateType())
	}
	b, err := protojson.Marshal(s.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	contains := 0
	for _, r := range doc.Relationships {
		if r.Relationship == "CONTAINS" {
			contains++
		}
	}
	// The release, two images, a package that both have, a tree.
	if len(doc.Packages) != 5 || contains != 2+2+1 {
		t.Errorf("%d packages, %d contained", len(doc.Packages), contains)
	}
	found := false
	for _, p := range doc.Packages {
		if p.PackageName == "libc6" {
			found = p.PackageVersion == "2.36-9+deb12u1" && len(p.PackageExternalReferences) == 1 && p.PackageChecksums[0].Value == isle.DigestOf([]byte("libc6")).Hex()
		}
	}
	if !found {
		t.Errorf("no libc6 in %+v", doc.Packages)
	}
}

func TestAStatementOfAnotherReleaseIsNotTakenForIts(t *testing.T) {
	w := newWorld(t, "here")
	a := w.create(shop(t, ""))
	req := shop(t, "")
	req.Spec.Limits.PIDs++
	b := w.create(req)
	keys := publics(w.shelf.Ring().Keys())
	for _, x := range a.Attestations {
		raw, err := w.Statement(a.Digest, x)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifyStatement(raw, x.Kind, a.Digest, "shop", keys); err != nil {
			t.Error(err)
		}
		for name, err := range map[string]error{
			"another release": verifyStatement(raw, x.Kind, b.Digest, "shop", keys),
			"another project": verifyStatement(raw, x.Kind, a.Digest, "bank", keys),
			"another key":     verifyStatement(raw, x.Kind, a.Digest, "shop", publics([]seal.TrustedKey{{Key: keyOf(t, "other").Verifier()}})),
			"no key":          verifyStatement(raw, x.Kind, a.Digest, "shop", nil),
			"another kind":    verifyStatement(raw, map[string]string{Provenance: Materials, Materials: Provenance}[x.Kind], a.Digest, "shop", keys),
		} {
			if code(err) != isle.Untrusted {
				t.Errorf("%s of %s: %v", x.Kind, name, err)
			}
		}
	}
	if name := filepath.Base(a.Attestations[0].file()); strings.ContainsAny(name, "/:") {
		t.Error(name)
	}
}

func FuzzVerifyStatement(f *testing.F) {
	w := newWorld(f, "here")
	rel := w.create(shop(f, ""))
	for _, a := range rel.Attestations {
		b, err := w.Statement(rel.Digest, a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"bnVsbA==","signatures":[{}]}`))
	keys := publics(w.shelf.Ring().Keys())
	f.Fuzz(func(t *testing.T, b []byte) {
		if verifyStatement(b, Provenance, rel.Digest, "shop", keys) == nil {
			e, _, err := decodeEnvelope(b)
			if err != nil || len(e.Signatures) == 0 {
				t.Errorf("%q counts", b)
			}
		}
	})
}
