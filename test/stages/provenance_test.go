package stages

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intotov1 "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
	"google.golang.org/protobuf/encoding/protojson"

	"isle/test/lab"
)

// What a server says of how a release was built is verified by what others have
// made, from the outside of the envelope to the last field; and `isle verify` needs
// neither the server nor a network.
func TestProvenanceIsVerifiedByOthersAndWithoutANetwork(t *testing.T) {
	server, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	s := &shop{T: t, Server: server, dir: t.TempDir()}
	for name, text := range map[string]string{"isle.yaml": "name: proven\nservices:\n  one:\n    copy: [{from: app/, to: /app}]\n", "app/word": "one\n"} {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.must("lock")
	commit := s.commit()
	var made struct{ Release struct{ Digest string } }
	s.read(&made, "release", "create")
	var keys []struct{ Key string }
	s.read(&keys, "release", "trust")
	s.must("release", "export", "--layers", made.Release.Digest, "proven.release")
	envelope := []byte(s.must("release", "attestation", made.Release.Digest, "provenance"))
	key := []byte(s.must("release", "trust", "--pem"))
	s.must("server", "stop")

	// The envelope (DSSE), the statement (in-toto v1), the predicate (SLSA v1).
	public, err := signerverifier.LoadKey(key)
	if err != nil {
		t.Fatal(err)
	}
	one, err := signerverifier.NewED25519SignerVerifierFromSSLibKey(public)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := dsse.NewEnvelopeVerifier(one)
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	_, payload, err := verifier.VerifyAndDecode(t.Context(), &e)
	if err != nil || e.PayloadType != "application/vnd.in-toto+json" {
		t.Fatalf("%s, %v", e.PayloadType, err)
	}
	var statement intotov1.Statement
	if err := protojson.Unmarshal(payload, &statement); err != nil {
		t.Fatal(err)
	}
	if err := statement.Validate(); err != nil {
		t.Error(err)
	}
	subject := statement.GetSubject()
	if len(subject) != 1 || "sha256:"+subject[0].GetDigest()["sha256"] != made.Release.Digest || statement.GetPredicateType() != "https://slsa.dev/provenance/v1" {
		t.Errorf("%s of %v", statement.GetPredicateType(), subject)
	}
	body, err := protojson.Marshal(statement.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var predicate provenancev1.Provenance
	if err := protojson.Unmarshal(body, &predicate); err != nil {
		t.Fatal(err)
	}
	if err := predicate.Validate(); err != nil {
		t.Error(err)
	}
	source := predicate.GetBuildDefinition().GetExternalParameters().GetFields()["source"].GetStructValue().GetFields()
	if source["commit"].GetStringValue() != commit || !source["clean"].GetBoolValue() {
		t.Errorf("it is of %v, not of commit %s", source, commit)
	}
	e.Payload = e.Payload[:len(e.Payload)-8] + "AAAA" + e.Payload[len(e.Payload)-4:]
	if _, err := verifier.Verify(t.Context(), &e); err == nil {
		t.Error("what was changed is verified")
	}

	// Without a server, its state, or a network interface that is up.
	path := filepath.Join(s.dir, "proven.release")
	if out, err := s.alone(path, keys[0].Key); err != nil || !strings.Contains(out, "provenance: of commit "+commit) {
		t.Errorf("%v: %s", err, out)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(file, []byte("one\n")) // of the layer
	if at < 0 {
		t.Fatal("the word is not in the file")
	}
	file[at] ^= 1
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := s.alone(path, keys[0].Key); exit(err) != 1 {
		t.Errorf("a byte of a layer was changed: %v: %s", err, out)
	}
}

// commit commits the shop's folder.
func (s *shop) commit() (hash string) {
	s.Helper()
	var out []byte
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-q", "-m", "x"}, {"rev-parse", "HEAD"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = s.dir
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			s.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return strings.TrimSpace(string(out))
}

// alone verifies a file where there is no network.
func (s *shop) alone(path, key string) (string, error) {
	cmd := exec.Command("unshare", "--net", filepath.Join(s.Bin, "isle"), "--state", filepath.Join(s.dir, "nowhere"), "verify", path, "--key", key)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+s.dir, "ISLE_SERVER=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
