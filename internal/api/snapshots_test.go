package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/ledger/ledgertest"
	"isle/internal/policy"
	"isle/internal/release"
	"isle/internal/seal"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// plainVolumes are volumes in plain files.
type plainVolumes struct{ dir string }

func (v plainVolumes) Path(id isle.ID) string { return filepath.Join(v.dir, string(id)) }
func (v plainVolumes) Create(_ context.Context, id isle.ID, size int64) error {
	if err := os.WriteFile(v.Path(id), nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(v.Path(id), size)
}
func (v plainVolumes) Fill(ctx context.Context, id isle.ID, dir string) error {
	out, err := exec.CommandContext(ctx, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-I", "256", "-d", dir, v.Path(id)).CombinedOutput()
	if err != nil {
		return isle.Errorf(isle.Failed, "mke2fs: %s: %w", out, err)
	}
	return nil
}
func (v plainVolumes) Delete(_ context.Context, id isle.ID) error { return os.Remove(v.Path(id)) }
func (v plainVolumes) Used(isle.ID) (int64, error)                { return 1, nil }

// A gallery is a server's snapshots: of the volume of shop, in two stages.
type gallery struct {
	*snapshot.Snapshots
	volumes plainVolumes
}

func newGallery(t *testing.T, name string) *gallery {
	t.Helper()
	dir := t.TempDir()
	seed := sha256.Sum256([]byte(name))
	key, err := seal.NewKey(name, seed[:])
	if err != nil {
		t.Fatal(err)
	}
	g := &gallery{volumes: plainVolumes{filepath.Join(dir, "v")}}
	if err := os.Mkdir(g.volumes.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	g.Snapshots, err = snapshot.Open(t.Context(), snapshot.Config{Dir: filepath.Join(dir, "s"), Volumes: g.volumes, Store: ledgertest.New(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

var oneImage = image.Image{Format: image.FormatVersion, Architecture: "amd64", Layers: []image.Layer{{Digest: isle.DigestOf(nil), Kind: "packages", Title: "busybox"}}}

// take makes a snapshot of shop in a stage, with one file in its volume.
func (g *gallery) take(t *testing.T, stage, text string, tags ...string) snapshot.Snapshot {
	t.Helper()
	d, err := g.Draft()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data/file"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	id := d.Volume("web", "/data")
	if err := g.volumes.Create(t.Context(), id, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := g.volumes.Fill(t.Context(), id, dir); err != nil {
		t.Fatal(err)
	}
	s, err := d.Seal(t.Context(), isle.Actor{Kind: isle.Human, Name: Root}, snapshot.Manifest{
		Ref: isle.Ref{Name: "shop", Stage: stage}, Project: "shop", Instance: isle.NewID(), Isolation: "container",
		Spec: spec.File{Name: "shop", Isolation: "container", Limits: spec.Limits{CPUs: 1, Memory: 1 << 30, PIDs: 99}, Services: []spec.Service{
			{Name: "web", Suite: "bookworm", Restart: "no", Volumes: []spec.Volume{{Path: "/data", Size: 8 << 20}}},
		}},
		Services: []snapshot.Service{{Name: "web", Image: oneImage, Launch: isle.NewID()}},
	}, tags...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveGallery serves the snapshots as the server does, to root.
func serveGallery(t *testing.T, r *rooms, g *gallery, p Policy) *Client {
	t.Helper()
	if r.envs == nil {
		r.envs = map[isle.Ref]environment.Environment{}
	}
	releases, err := release.Open(t.Context(), release.Config{Dir: filepath.Join(t.TempDir(), "releases"), Store: ledgertest.New()})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ConnContext: ConnContext(""), Protocols: new(http.Protocols), Handler: New(Config{
		Environments: r, Builder: r, Blobs: r, Audit: r, Signer: signer(t), Host: r, Policy: p, Log: slog.New(slog.DiscardHandler), Snapshots: g, Releases: releases,
		Capture: func(_ context.Context, _ isle.Actor, ref isle.Ref, req environment.SnapshotRequest) (snapshot.Snapshot, error) {
			r.reach("Capture")
			return g.take(t, ref.Stage, "captured", req.Tag), nil
		},
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

// snapshotCalls makes every call of the SnapshotService, on what is tagged so.
func snapshotCalls(ctx context.Context, c *Client, tag string, file []byte) map[string]func() error {
	stream := func(receive func() bool, err func() error) error {
		for receive() {
		}
		return err()
	}
	return map[string]func() error{
		"CreateSnapshot": func() error {
			s, err := c.Snapshots.CreateSnapshot(ctx, connect.NewRequest(&islev1.CreateSnapshotRequest{Environment: "shop", Tag: "created"}))
			if err != nil {
				return err
			}
			return stream(s.Receive, s.Err)
		},
		"ListSnapshots": func() error {
			_, err := c.Snapshots.ListSnapshots(ctx, connect.NewRequest(&islev1.ListSnapshotsRequest{}))
			return err
		},
		"GetSnapshot": func() error {
			_, err := c.Snapshots.GetSnapshot(ctx, connect.NewRequest(&islev1.GetSnapshotRequest{Snapshot: tag}))
			return err
		},
		"TagSnapshot": func() error {
			_, err := c.Snapshots.TagSnapshot(ctx, connect.NewRequest(&islev1.TagSnapshotRequest{Snapshot: tag, Tag: "another"}))
			return err
		},
		"UntagSnapshot": func() error {
			_, err := c.Snapshots.UntagSnapshot(ctx, connect.NewRequest(&islev1.UntagSnapshotRequest{Tag: tag}))
			return err
		},
		"RemoveSnapshot": func() error {
			_, err := c.Snapshots.RemoveSnapshot(ctx, connect.NewRequest(&islev1.RemoveSnapshotRequest{Snapshot: tag}))
			return err
		},
		"VerifySnapshot": func() error {
			s, err := c.Snapshots.VerifySnapshot(ctx, connect.NewRequest(&islev1.VerifySnapshotRequest{Snapshot: tag}))
			if err != nil {
				return err
			}
			return stream(s.Receive, s.Err)
		},
		"ExportSnapshot": func() error {
			s, err := c.Snapshots.ExportSnapshot(ctx, connect.NewRequest(&islev1.ExportSnapshotRequest{Snapshot: tag}))
			if err != nil {
				return err
			}
			return stream(s.Receive, s.Err)
		},
		"ImportSnapshot": func() error {
			s := c.Snapshots.ImportSnapshot(ctx)
			s.Send(&islev1.Chunk{Data: file})
			_, err := s.CloseAndReceive()
			return err
		},
		"Compare": func() error {
			s, err := c.Snapshots.Compare(ctx, connect.NewRequest(&islev1.CompareRequest{From: tag, To: tag}))
			if err != nil {
				return err
			}
			return stream(s.Receive, s.Err)
		},
		"ListKeys": func() error {
			_, err := c.Snapshots.ListKeys(ctx, connect.NewRequest(&islev1.ListKeysRequest{}))
			return err
		},
		"TrustKey": func() error {
			_, err := c.Snapshots.TrustKey(ctx, connect.NewRequest(&islev1.TrustKeyRequest{Key: "x"}))
			return err
		},
	}
}

func TestEveryCallOfSnapshotsIsAuthorizedFirst(t *testing.T) {
	g := newGallery(t, "own")
	before := g.take(t, "testing", "one", "held")
	r := &rooms{}
	c := serveGallery(t, r, g, &decider{newPolicy(t), func(policy.Query) policy.Answer {
		return policy.Answer{Decision: isle.Deny, Rule: "nobody may do anything"}
	}})
	methods := islev1.File_isle_v1_snapshots_proto.Services().Get(0).Methods()
	all := snapshotCalls(t.Context(), c, "held", nil)
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		call, ok := all[name]
		if !ok {
			t.Errorf("%s is not tried here: add it", name)
		} else if err := call(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "nobody may do anything") {
			t.Errorf("%s answers %v where it must be refused", name, err)
		}
	}
	if r.seen("Capture") || len(r.entries) != methods.Len() {
		t.Errorf("reached %v, and left %d entries", r.reached, len(r.entries))
	}
	if s, err := g.Get("held"); err != nil || s.Digest != before.Digest || len(s.Tags) != 1 {
		t.Error(s, err)
	}
}

// A snapshot is of the stage that its environment was of, whatever it is asked by,
// and whatever file brings it.
func TestASnapshotIsOfItsStage(t *testing.T) {
	g, elsewhere := newGallery(t, "own"), newGallery(t, "other")
	g.take(t, "testing", "one", "here")
	g.take(t, "production", "two", "there")
	var files [2]bytes.Buffer
	for i, stage := range []string{"testing", "production"} {
		s := elsewhere.take(t, stage, "file")
		if err := elsewhere.Export(t.Context(), s.Digest.Hex(), &files[i]); err != nil {
			t.Fatal(err)
		}
	}
	base := newPolicy(t)
	c := serveGallery(t, &rooms{}, g, &decider{base, func(q policy.Query) policy.Answer {
		if q.Resource.Stage == "production" {
			return policy.Answer{Decision: isle.Deny, Rule: "not there"}
		}
		return policy.Answer{Decision: isle.Allow, Rule: "anything here"}
	}})
	refused := snapshotCalls(t.Context(), c, "there", files[1].Bytes())
	for _, name := range []string{"GetSnapshot", "TagSnapshot", "UntagSnapshot", "RemoveSnapshot", "VerifySnapshot", "ExportSnapshot", "ImportSnapshot", "Compare"} {
		if err := refused[name](); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "not there") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Snapshots.TagSnapshot(t.Context(), connect.NewRequest(&islev1.TagSnapshotRequest{Snapshot: "here", Tag: "there", Move: true})); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a tag is taken from a snapshot of another stage: %v", err)
	}
	if s, err := c.Snapshots.Compare(t.Context(), connect.NewRequest(&islev1.CompareRequest{From: "here", To: "there"})); err == nil {
		s.Receive()
		if isle.CodeOf(s.Err()) != isle.Refused {
			t.Errorf("compared with one of another stage: %v", s.Err())
		}
	}
	list, err := c.Snapshots.ListSnapshots(t.Context(), connect.NewRequest(&islev1.ListSnapshotsRequest{}))
	if err != nil || len(list.Msg.GetSnapshots()) != 1 || list.Msg.GetSnapshots()[0].GetStage() != "testing" {
		t.Errorf("%v %v", list, err)
	}
	allowed := snapshotCalls(t.Context(), c, "here", files[0].Bytes())
	for _, name := range []string{"CreateSnapshot", "GetSnapshot", "TagSnapshot", "VerifySnapshot", "ExportSnapshot", "ImportSnapshot", "Compare", "UntagSnapshot"} {
		if err := allowed[name](); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := g.List(); err != nil || len(all) != 4 { // here, there, created, imported
		t.Errorf("%d snapshots, %v", len(all), err)
	}
}

func TestWhatDiffersBetweenAnEnvironmentAndASnapshotIsSaid(t *testing.T) {
	g := newGallery(t, "own")
	snap := g.take(t, "testing", "one", "held")
	ref := isle.Ref{Name: "shop", Stage: "testing"}
	now := snap.Manifest.Spec
	now.Limits.PIDs = 100
	other := oneImage
	other.Layers = []image.Layer{{Digest: isle.DigestOf(nil), Kind: "packages", Title: "toybox"}}
	r := &rooms{
		envs: map[isle.Ref]environment.Environment{ref: {Ref: ref, Project: "shop", Spec: now, Services: []environment.Service{{Name: "web", Image: other}}}},
		files: map[isle.Ref]map[string]spec.Tree{ref: {"web:/data": {Entries: []spec.TreeEntry{
			{Type: spec.TypeDir}, {Path: "file", Type: spec.TypeFile, Size: 3, Digest: isle.DigestOf([]byte("one"))}, {Path: "new", Type: spec.TypeLink, Target: "file"},
		}}}},
	}
	c := serveGallery(t, r, g, newPolicy(t))
	s, err := c.Snapshots.Compare(t.Context(), connect.NewRequest(&islev1.CompareRequest{From: "held", To: "shop"}))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	d := s.Msg()
	var got []string
	for _, f := range d.GetFiles() {
		got = append(got, f.GetKind()+" "+f.GetService()+":"+f.GetVolume()+"/"+f.GetPath())
	}
	for _, p := range d.GetPackages() {
		got = append(got, p.GetService()+" "+p.GetName()+" "+p.GetFrom()+">"+p.GetTo())
	}
	for _, x := range d.GetConfiguration() {
		got = append(got, x.GetKey()+" "+x.GetFrom()+">"+x.GetTo())
	}
	if want := []string{"added web:/data/new", "web busybox 1>", "web toybox >1", "limits.pids 99>100"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, name := range []string{"nothing", "snapshot:shop"} {
		s, err := c.Snapshots.Compare(t.Context(), connect.NewRequest(&islev1.CompareRequest{From: name, To: "shop"}))
		if err == nil {
			s.Receive()
			err = s.Err()
		}
		if isle.CodeOf(err) != isle.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}
