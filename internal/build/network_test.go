package build

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// A toConn is a connection that a step opened to an address.
type toConn struct {
	net.Conn
	to net.Addr
}

func (c toConn) LocalAddr() net.Addr { return c.to }

// getFrom is what a step's network answers a GET.
func getFrom(t testing.TB, s Step, host, path string) *http.Response {
	t.Helper()
	near, far := net.Pipe()
	s.Network.Serve(toConn{far, &net.TCPAddr{IP: net.IPv4(198, 18, 1, 0), Port: 80}})
	near.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { near.Close() })
	req, err := http.NewRequest(http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(near); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(near), req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// material is an answer as a lock has it, whose body is in the store.
func (b *bench) material(url, body string) spec.Material {
	return spec.Material{URL: url, Status: http.StatusOK, Size: int64(len(body)), Digest: b.blob(body), Time: time.Unix(1, 0).UTC()}
}

// A lock is somebody's file, and what a step makes is found by everybody: so it is
// what the step was answered that it is found by, and not what stood beside it.
func TestAFrozenStepIsFoundByAllThatItWasAnswered(t *testing.T) {
	b := newBench(t)
	b.Dial = func(context.Context, string, int) (net.Conn, error) { return nil, errors.New("there is no network") }
	b.sandbox.programs["install"] = func(_ context.Context, s Step) error {
		res := getFrom(t, s, "packages.example", "/tool")
		defer res.Body.Close()
		body := make([]byte, 64)
		n, _ := res.Body.Read(body)
		return os.WriteFile(filepath.Join(s.Upper, "tool"), body[:n], 0o755)
	}
	file := func(project string) spec.File {
		return spec.File{Name: project, Services: []spec.Service{{Name: "app", Suite: "bookworm", Packages: []string{"curl"}, Run: []string{"install"}, Network: spec.NetworkRecord}}}
	}
	evil := file("attacker")
	lock, _ := b.lock(evil, nil, "", LockOptions{})
	sl := lock.Services["app"]
	sl.Network = []spec.LockedStep{{Step: "run another", Materials: []spec.Material{b.material("http://packages.example/tool", "a backdoor")}}}
	lock.Services["app"] = sl
	res, err := b.Build(context.Background(), evil, lock, Options{Frozen: true}, b.say)
	if err == nil {
		if len(res.Recorded) != 1 || res.Recorded[0].Count != 1 {
			t.Errorf("what the step was answered is told as %v", res.Recorded)
		}
	} else if isle.CodeOf(err) != isle.Conflict {
		t.Fatal(err)
	}

	victim := file("victim")
	lock, _ = b.lock(victim, nil, "", LockOptions{})
	res, err = b.Build(context.Background(), victim, lock, Options{}, b.say)
	if err != nil {
		t.Fatal(err)
	}
	got := b.files(res.Images["app"])["/tool"]
	if got.Digest == isle.DigestOf([]byte("a backdoor")) {
		t.Error("a project gets what another's lock said of the same step")
	}
}

// Whoever may build one project has no hand in the caches of another whose name
// is nearly the same.
func TestProjectsOfSimilarNamesShareNoCacheMounts(t *testing.T) {
	b := newBench(t)
	seen := map[string]string{}
	b.sandbox.programs["look"] = func(_ context.Context, s Step) error {
		for _, m := range s.Mounts {
			if m.Folder != "" {
				had, _ := os.ReadFile(filepath.Join(m.Folder, "poison"))
				seen[m.Folder] = string(had)
				return os.WriteFile(filepath.Join(m.Folder, "poison"), []byte("x"), 0o644)
			}
		}
		return errors.New("there is no cache")
	}
	for _, project := range []string{"a-b", "a--b", "a---b"} {
		f := dockered(spec.Build{})
		f.Name = project
		if _, err := b.docker(f, "FROM scratch\nCOPY x /x\nRUN --mount=type=cache,target=/c look\n", map[string]string{"x": "1"}); err != nil {
			t.Fatal(err)
		}
	}
	for folder, had := range seen {
		if had != "" {
			t.Errorf("%s has what another project left there", folder)
		}
	}
	if len(seen) != 3 {
		t.Errorf("three projects have the folders %v", seen)
	}
	for _, name := range []string{"A-B", "../projects/a-b", "a-b "} {
		if mounts, _, err := b.Caches(name); err != nil || len(mounts) != 0 {
			t.Errorf("%q has the caches %v, %v", name, mounts, err)
		}
	}
	if all, _, err := b.Caches(""); err != nil || len(all) != 3 {
		t.Errorf("all caches are %v, %v", all, err)
	}
}

// An image says where its names are looked up, and leads nowhere with that.
func TestALinkForNamesThatLeadsToTheSandboxsOwnIsRefused(t *testing.T) {
	for _, to := range []string{"/", "/proc/sys/kernel/core_pattern", "/sys", "../dev", "/proc/self/fd/1"} {
		b := newBench(t)
		b.Dial = func(context.Context, string, int) (net.Conn, error) { return nil, errors.New("there is no network") }
		b.sandbox.programs["look"] = writing("x", "x")
		f := dockered(spec.Build{})
		f.Services[0].Network = spec.NetworkRecord
		_, err := b.docker(f, "FROM scratch\nCOPY etc /etc\nRUN look\n", map[string]string{"etc/resolv.conf": "-> " + to})
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "resolv.conf") {
			t.Errorf("to %s: %v", to, err)
		}
	}
}

// A lock may have a hundred thousand answers and a Dockerfile thousands of steps:
// one does not multiply the other.
func TestEachStepDoesNotHoldTheWholeLock(t *testing.T) {
	sl := spec.ServiceLock{Network: []spec.LockedStep{{Step: "another", Materials: make([]spec.Material, spec.MaxMaterials)}}}
	var wires []*wire
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	seen := map[string]int{}
	for range 1000 {
		wires = append(wires, newWire(sl, "", "one", Options{}, seen))
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("%d steps take %d MiB before any has run", len(wires), took>>20)
	}
	if n := len(wires[0].others()); n != spec.MaxMaterials {
		t.Errorf("a step has %d answers of others", n)
	}
}
