// Package build_test builds real images: Debian packages from the machine's
// mirror, run steps in the container class's sandbox.
package build_test

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/build"
	"isle/internal/build/debian"
	"isle/internal/driver/local"
	"isle/internal/image"
	"isle/internal/spec"
)

// A bench is a Builder with everything real.
type bench struct {
	*build.Builder
	images *image.Store

	mu     sync.Mutex
	events []build.Event
}

func newBench(t *testing.T, dir string) *bench {
	t.Helper()
	images, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := debian.New(debian.Config{Dir: filepath.Join(dir, "packages"), Blobs: images})
	if err != nil {
		t.Fatal(err)
	}
	driver, err := local.New(local.Config{State: filepath.Join(dir, "driver"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{images: images}
	b.Builder, err = build.New(build.Config{Images: images, Archive: archive, Sandbox: driver, Cache: filepath.Join(dir, "build")})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) say(e build.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// logged returns what steps wrote.
func (b *bench) logged() string {
	var out strings.Builder
	for _, e := range b.events {
		if e.State == "log" {
			out.WriteString(e.Message + "\n")
		}
	}
	return out.String()
}

func (b *bench) put(t *testing.T, content []byte) isle.Digest {
	t.Helper()
	d := isle.DigestOf(content)
	if err := b.images.PutBlob(context.Background(), d, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return d
}

const file = `
name: hello
services:
  web:
    packages: [python3-minimal]
    copy: [{from: app/, to: /app}, {from: tool, to: /bin/tool}]
    run:
      - |
        python3 -m compileall -q .
        id -u; pwd; tool
        rm -r /usr/share/doc/python3-minimal
        ln -s app.py alias
        test ! -e /sys/class/net/eth0
      - stat -c '%a %u:%g' /app/__pycache__ && test ! -e /usr/share/doc/python3-minimal
    workdir: /app
    volumes: {/data: {size: 1GiB}}
    command: [python3, app.py]
`

func TestAnImageOfRealPackagesAndStepsIsTheSameOnTwoMachines(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	f, err := spec.Parse("isle.yaml", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	one := newBench(t, t.TempDir())
	tree := spec.Tree{Entries: []spec.TreeEntry{
		{Type: spec.TypeDir},
		{Path: "app.py", Type: spec.TypeFile, Size: 12, Digest: one.put(t, []byte("print('hi')\n"))},
	}}
	script := []byte("#!/bin/sh\necho tool runs\n")
	tool := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeFile, Exec: true, Size: int64(len(script)), Digest: one.put(t, script)}}}
	copies := []build.Copied{
		{Service: "web", From: f.Services[0].Copy[0].From, To: "/app", Tree: one.put(t, tree.Encode())},
		{Service: "web", From: f.Services[0].Copy[1].From, To: "/bin/tool", Tree: one.put(t, tool.Encode())},
	}
	lock, _, err := one.Lock(ctx, f, nil, copies, build.LockOptions{}, one.say)
	if err != nil {
		t.Fatal(err)
	}
	if lock, err = spec.ParseLock("isle.lock", lock.Encode()); err != nil {
		t.Fatal(err)
	}
	res, err := one.Verify(ctx, f, lock, build.Options{}, one.say)
	if err != nil {
		t.Fatalf("%v\n%s", err, one.logged())
	}
	if log := one.logged(); !strings.Contains(log, "0\n/app\ntool runs\n") || !strings.Contains(log, "755 0:0\n") {
		t.Errorf("the steps said:\n%s", log)
	}

	// Another machine gets the lock and what it names, and no mirror.
	var export bytes.Buffer
	if err := one.Export(ctx, lock, &export); err != nil {
		t.Fatal(err)
	}
	two := newBench(t, t.TempDir())
	if n, _, err := two.Import(ctx, &export); err != nil || n != len(lock.Services["web"].Packages) {
		t.Fatalf("%d packages, %v", n, err)
	}
	again, err := two.Build(ctx, f, lock, build.Options{Mirror: "http://192.0.2.1/debian"}, two.say)
	if err != nil {
		t.Fatalf("%v\n%s", err, two.logged())
	}
	if a, b := res.Images["web"], again.Images["web"]; a.Digest() != b.Digest() {
		t.Errorf("%s on one machine, %s on another", a.Digest(), b.Digest())
	}
	for _, l := range again.Images["web"].Layers {
		t.Logf("%-8s %9d  %s", l.Kind, l.Size, l.Title)
	}
}
