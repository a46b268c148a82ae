package build

import (
	"context"
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/spec"
)

func TestALockKeepsPackagesUntilAskedToUpdate(t *testing.T) {
	b := newBench(t)
	tree := b.put(map[string]string{"shop.py": "1"})
	first, changes := b.lock(shop(), nil, tree, LockOptions{})
	if !slices.Equal(changes, []string{"db: new", "web: new"}) {
		t.Errorf("changes %q", changes)
	}
	if _, err := spec.ParseLock("isle.lock", first.Encode()); err != nil {
		t.Errorf("the lock does not parse: %v", err)
	}
	b.archive.version = "2"
	again, changes := b.lock(shop(), first, tree, LockOptions{})
	if len(changes) != 0 || string(again.Encode()) != string(first.Encode()) {
		t.Errorf("it changed: %q", changes)
	}
	tree2 := b.put(map[string]string{"shop.py": "2"})
	again, changes = b.lock(shop(), first, tree2, LockOptions{})
	if !slices.Equal(changes, []string{"web: app/ changed"}) || again.Services["web"].Packages[0].Version != "1" {
		t.Errorf("changes %q", changes)
	}
	f := shop()
	f.Services[0].Packages = []string{"redis-server"}
	f.Services[0].Run = []string{"x"}
	again, changes = b.lock(f, first, tree, LockOptions{})
	want := []string{"db: packages: + redis-server, - python3", "db: base 1 -> 2", "db: + redis-server 2", "db: - python3 1", "db: run changed"}
	if !slices.Equal(changes, want) || again.Services["web"].Packages[0].Version != "1" {
		t.Errorf("changes %q, want %q", changes, want)
	}
	_, changes = b.lock(shop(), first, tree, LockOptions{Update: true})
	if !slices.Contains(changes, "web: python3 1 -> 2") {
		t.Errorf("changes %q", changes)
	}
	f.Services = f.Services[:1]
	if _, changes = b.lock(f, again, tree, LockOptions{}); !slices.Equal(changes, []string{"web: removed"}) {
		t.Errorf("changes %q", changes)
	}
}

func TestLockedRefusesAnyChangeAndAsksNoMirror(t *testing.T) {
	b := newBench(t)
	tree := b.put(map[string]string{"shop.py": "1"})
	lock, _ := b.lock(shop(), nil, tree, LockOptions{})
	b.archive.resolved = 0
	if _, changes := b.lock(shop(), lock, tree, LockOptions{Locked: true}); len(changes) != 0 {
		t.Errorf("changes %q", changes)
	}
	f := shop()
	f.Services[0].Packages = append(f.Services[0].Packages, "redis-server")
	for name, try := range map[string]func() error{
		"+ redis-server": func() error {
			_, _, err := b.Lock(context.Background(), f, lock, copied(f, tree), LockOptions{Locked: true}, nil)
			return err
		},
		"app/ changed": func() error {
			_, _, err := b.Lock(context.Background(), shop(), lock, copied(f, isle.DigestOf(nil)), LockOptions{Locked: true}, nil)
			return err
		},
		"db: new": func() error {
			_, _, err := b.Lock(context.Background(), shop(), nil, copied(f, tree), LockOptions{Locked: true}, nil)
			return err
		},
	} {
		if err := try(); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "isle lock") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if b.archive.resolved != 0 {
		t.Error("the mirror was asked")
	}
}

func TestALockThatDoesNotFitIsRefusedWithTheRemedy(t *testing.T) {
	b := newBench(t)
	tree := b.put(map[string]string{"shop.py": "1"})
	for name, c := range map[string]struct {
		change func(f *spec.File, l *spec.Lock)
		says   string
	}{
		"no service":   {func(f *spec.File, l *spec.Lock) { delete(l.Services, "web") }, "web: it is not in the lock"},
		"suite":        {func(f *spec.File, l *spec.Lock) { f.Services[0].Suite = "trixie" }, "suite is trixie"},
		"packages":     {func(f *spec.File, l *spec.Lock) { f.Services[0].Packages = []string{"x"} }, "+ x"},
		"copy":         {func(f *spec.File, l *spec.Lock) { f.Services[1].Copy[0].To = "/other" }, "copy changed"},
		"run":          {func(f *spec.File, l *spec.Lock) { f.Services[1].Run = nil }, "run changed"},
		"format":       {func(f *spec.File, l *spec.Lock) { l.ImageFormat = 99 }, "isle lock --update"},
		"architecture": {func(f *spec.File, l *spec.Lock) { l.Architecture = "arm64" }, "isle lock --update"},
		"no digest":    {func(f *spec.File, l *spec.Lock) { l.Services["web"].Packages[0].Digest = "" }, "not pinned"},
		"tampered digest": {func(f *spec.File, l *spec.Lock) {
			l.Services["web"].Packages[0].Digest = isle.DigestOf([]byte("tampered"))
		}, "other bytes than the lock"},
	} {
		f := shop()
		lock, _ := b.lock(f, nil, tree, LockOptions{})
		sl := lock.Services["web"]
		sl.Packages = slices.Clone(sl.Packages)
		lock.Services["web"] = sl
		c.change(&f, lock)
		_, err := b.Build(context.Background(), f, lock, Options{}, nil)
		if err == nil || isle.CodeOf(err) == isle.Internal || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", name, err, c.says)
		}
	}
	if _, err := b.Build(context.Background(), shop(), nil, Options{}, nil); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("no lock: %v", err)
	}
	lock, _ := b.lock(shop(), nil, tree, LockOptions{})
	lock.ImageFormat = 99
	if _, _, err := b.Lock(context.Background(), shop(), lock, copied(shop(), tree), LockOptions{}, nil); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "--update") {
		t.Errorf("lock of another format: %v", err)
	}
	if got, _ := b.lock(shop(), lock, tree, LockOptions{Update: true}); got.ImageFormat == 99 {
		t.Error("update kept the format")
	}
}
