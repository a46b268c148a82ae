package spec

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
)

func testLock() *Lock {
	d := isle.DigestOf([]byte("x"))
	return &Lock{
		Version: LockVersion, ImageFormat: image.FormatVersion, Architecture: "amd64",
		Suites: map[string]SuiteLock{"bookworm": {Releases: map[string]isle.Digest{"dists/bookworm/InRelease": d}}},
		Services: map[string]ServiceLock{
			"db": {Suite: "bookworm", Requests: []string{}, Packages: []LockedPackage{}},
			"web": {
				Suite: "bookworm", Requests: []string{"python3"},
				Packages: []LockedPackage{
					{Name: "libc6", Version: "2.36-9+deb12u10", Architecture: "amd64", Path: "pool/main/g/glibc/libc6_2.36-9+deb12u10_amd64.deb", Size: 2757000, Digest: d},
					{Name: "tzdata", Version: "2025b-0+deb12u1", Architecture: "all", Path: "pool/updates/main/t/tzdata_2025b_all.deb", Repository: "security", Size: 1, Digest: d},
				},
				Copy: []LockedCopy{{From: "app/", To: "/app", Tree: d}},
				Run:  []string{"python3 -m compileall /app && echo <done>"},
			},
		},
	}
}

func TestALockSurvivesBeingWritten(t *testing.T) {
	want := testLock()
	b := want.Encode()
	got, err := ParseLock("isle.lock", b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !bytes.Equal(got.Encode(), b) || !bytes.HasSuffix(b, []byte("}\n")) || !bytes.Contains(b, []byte("<done>")) {
		t.Errorf("encoded again it differs:\n%s", b)
	}
	// The order in which it was made means nothing.
	web := want.Services["web"]
	web.Packages = []LockedPackage{web.Packages[1], web.Packages[0]}
	want.Services["web"] = web
	if !bytes.Equal(want.Encode(), b) {
		t.Error("packages in another order give other bytes")
	}
	if _, err := ParseLock("isle.lock", bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		t.Errorf("with the line breaks of another system: %v", err)
	}
}

func TestATamperedLockIsRefused(t *testing.T) {
	digest := string(isle.DigestOf([]byte("x")))
	const hint = " (run `isle lock` to write it again, or take the last good one from version control)"
	for _, c := range []struct{ name, old, new, want string }{
		{"short digest", `"digest": "` + digest, `"digest": "` + digest[:20], "isle.lock: services.web.packages[0].digest: libc6: \"" + digest[:20] + "\" is no sha256 digest"},
		{"path out", `"path": "pool/main`, `"path": "../../pool/main`, `isle.lock: services.web.packages[0].path: libc6: "../../pool/main/g/glibc/libc6_2.36-9+deb12u10_amd64.deb" is no path of a package below the mirror`},
		{"path within out", `pool/main/g`, `pool/../../g`, `isle.lock: services.web.packages[0].path: libc6: "pool/../../g/glibc/libc6_2.36-9+deb12u10_amd64.deb" is no path of a package below the mirror`},
		{"host", `pool/main/g`, `http://evil/g`, `isle.lock: services.web.packages[0].path: libc6: "http://evil/g/glibc/libc6_2.36-9+deb12u10_amd64.deb" is no path of a package below the mirror`},
		{"copy from outside", `"from": "app/"`, `"from": "../app/"`, `isle.lock: services.web.copy[0].from: "../app/" is no path in the project's folder`},
		{"copy to proc", `"to": "/app"`, `"to": "/proc"`, `isle.lock: services.web.copy[0].to: "/proc" is in /proc, which belongs to the system; choose another path`},
		{"tree", `"tree": "sha256`, `"tree": "md5`, `isle.lock: services.web.copy[0].tree: "md5` + digest[6:] + `" is no sha256 digest`},
		{"order", `"name": "libc6"`, `"name": "zlib1g"`, `isle.lock: services.web.packages[1]: "tzdata" is out of order or here a second time`},
		{"architecture", `"architecture": "all"`, `"architecture": "arm64"`, `isle.lock: services.web.packages[1].architecture: tzdata: "arm64" is neither "amd64", the lock's, nor "all"`},
		{"size", `"size": 1,`, `"size": -1,`, `isle.lock: services.web.packages[1].size: tzdata: -1 is no size of a package`},
		{"suite", `"suite": "bookworm"`, `"suite": "sid"`, `isle.lock: services.db.suite: "sid" is not among the lock's suites`},
		{"unknown key", `"architecture": "amd64",`, `"architecture": "amd64", "mirror": "x",`, `isle.lock: unknown field "mirror"`},
		{"key twice", `"suite": "bookworm",`, `"suite": "bookworm", "suite": "bookworm",`, `isle.lock:14:34: key "suite" is here a second time`},
		{"type", `"size": 1,`, `"size": "1",`, `isle.lock:38:21: services.packages.size is a string where a whole number belongs`},
		{"no JSON", `"version": 1,`, `"version": 1`, "isle.lock:3:3: this is not JSON: invalid character '\"' after object key:value pair"},
		{"a merge", `  "version": 1,`, "<<<<<<< HEAD\n  \"version\": 1,\n=======", "isle.lock:2:1: holds the marks of an unfinished merge"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := strings.Replace(string(testLock().Encode()), c.old, c.new, 1)
			l, err := ParseLock("isle.lock", []byte(in))
			if err == nil {
				t.Fatalf("accepted %+v", l)
			}
			if err.Error() != c.want+hint {
				t.Errorf("got:\n%s\nwant:\n%s", err, c.want+hint)
			}
			var e *isle.Error
			if !errors.As(err, &e) || e.Code != isle.Invalid {
				t.Errorf("it unwraps to %v", e)
			}
		})
	}
}

func TestALockOfAnotherVersionSaysWhatToDo(t *testing.T) {
	for in, want := range map[string]string{
		`{"version": 2, "shards": []}`:        "isle.lock: version: is 2, and this Isle knows up to 1 (use the Isle that wrote it or a newer one, or run `isle lock --update` to write it again with this one)",
		`{"version": 1, "image_format": 999}`: "isle.lock: image_format: is 999, and this Isle writes images of format 1: their digests would differ (use the Isle that wrote the lock, or run `isle lock --update` to move it to this one's format)",
		`{}`:                                  "isle.lock: version: is missing: this is no lock of Isle (" + relock + ")",
		``:                                    "isle.lock:1:1: this is not JSON: unexpected end of JSON input (" + relock + ")",
		`{"version": 1, "image_format": 1`:    "isle.lock:1:32: this is not JSON: unexpected end of JSON input (" + relock + ")",
	} {
		if _, err := ParseLock("isle.lock", []byte(in)); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", in, err, want)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add(testLock().Encode())
	f.Add(recordedLock().Encode())
	f.Add([]byte(`{"version": 1, "image_format": 1, "architecture": "amd64"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLock("isle.lock", b)
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Errorf("code %s", isle.CodeOf(err))
			}
			return
		}
		for _, s := range l.Services {
			for _, step := range s.Network {
				for _, m := range step.Materials {
					if err := m.Check(); err != nil || strings.ContainsAny(m.URL, "\r\n") {
						t.Errorf("accepted %+v: %v", m, err)
					}
				}
			}
			for _, p := range s.Packages {
				if strings.Contains("/"+p.Path+"/", "/../") || strings.HasPrefix(p.Path, "/") || !p.Digest.Valid() {
					t.Errorf("accepted %+v", p)
				}
			}
		}
		enc := l.Encode()
		again, err := ParseLock("isle.lock", enc)
		if err != nil || !bytes.Equal(again.Encode(), enc) {
			t.Errorf("does not survive being written: %v", err)
		}
	})
}
