package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"

	"isle"
)

func TestABuildIsAFolderOfTheProject(t *testing.T) {
	parse := func(service string) (File, error) {
		return Parse("isle.yaml", []byte("name: shop\nservices: {web: "+service+"}\n"))
	}
	for text, want := range map[string]Build{
		"{build: .}":             {Context: ".", Dockerfile: "Dockerfile"},
		"{build: sub/}":          {Context: "sub", Dockerfile: "Dockerfile"},
		"{build: {target: app}}": {Context: ".", Dockerfile: "Dockerfile", Target: "app"},
		"{build: {context: a, dockerfile: d/x, args: {A: 1, B: true}}}": {Context: "a", Dockerfile: "d/x", Args: map[string]string{"A": "1", "B": "true"}},
		"{build: {secrets: {a.b: {secret: kept}}}}":                     {Context: ".", Dockerfile: "Dockerfile", Secrets: map[string]string{"a.b": "kept"}},
	} {
		f, err := parse(text)
		if err != nil || f.Services[0].Build == nil || !f.Services[0].Build.Equal(want) || f.Services[0].Suite != "" {
			t.Errorf("%s: %+v, %v", text, f.Services, err)
		}
	}
	for text, want := range map[string]string{
		"{build: ../x}":                         "leads out with ..",
		"{build: /etc}":                         "is absolute",
		"{build: 'https://example.com/x.git'}":  "is elsewhere",
		"{build: {dockerfile: ../Dockerfile}}":  "leads out with ..",
		"{build: {dockerfile: x/}}":             "is a folder",
		"{build: {target: 'a b'}}":              "is no stage",
		"{build: {args: {'a-b': x}}}":           "cannot name a variable",
		"{build: {secrets: x}}":                 "want secrets by id",
		"{build: {secrets: {a: b}}}":            "want a secret that the server keeps",
		"{build: {secrets: {-a: {secret: b}}}}": "is no id of a secret",
		"{build: {secrets: {a: {secret: B_}}}}": "lower-case",
		"{build: ., args: [a], command: [b]}":   "stands beside `command`",
		"{packages: [x], args: [a]}":            "are for the entrypoint of an image",
		"{build: ., args: []}":                  "names no argument",
		"{build: ., args: a}":                   "want a list of arguments",
		"{build: ., image: x}":                  "stands beside `build`",
		"{build: ., packages: [x]}":             "stands beside `build`",
		"{writable: 3GiB}":                      "is more than limits.memory",
		"{writable: 1KiB}":                      "1 MiB",
	} {
		if _, err := parse(text); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), want) && want != "1 MiB" {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestALockPinsABuild(t *testing.T) {
	d := isle.DigestOf([]byte("x"))
	good := func() LockedBuild {
		return LockedBuild{Build: Build{Context: ".", Dockerfile: "Dockerfile"}, Tree: d, File: d, Images: []LockedImage{{Request: "localhost/a", Reference: "localhost/a:latest", Digest: d}}}
	}
	parse := func(s ServiceLock) error {
		l := &Lock{Version: LockVersion, ImageFormat: 1, Architecture: "amd64", Suites: map[string]SuiteLock{}, Services: map[string]ServiceLock{"web": s}}
		_, err := ParseLock("isle.lock", l.Encode())
		return err
	}
	b := good()
	if err := parse(ServiceLock{Build: &b}); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*ServiceLock){
		"a suite":            func(s *ServiceLock) { s.Suite = "bookworm" },
		"a path out":         func(s *ServiceLock) { s.Build.Context = "../x" },
		"no tree":            func(s *ServiceLock) { s.Build.Tree = "" },
		"no Dockerfile":      func(s *ServiceLock) { s.Build.File = "sha256:0" },
		"an image twice":     func(s *ServiceLock) { s.Build.Images = append(s.Build.Images, s.Build.Images[0]) },
		"an unpinned image":  func(s *ServiceLock) { s.Build.Images[0].Digest = "" },
		"an image of a file": func(s *ServiceLock) { s.Build.Images[0].Request = "./x.tar" },
		"another reference":  func(s *ServiceLock) { s.Build.Images[0].Reference = "localhost/b:latest" },
		"an argument":        func(s *ServiceLock) { s.Build.Args = map[string]string{"a=b": "x"} },
		"an image beside":    func(s *ServiceLock) { s.Image = &LockedImage{Request: "a", Reference: "a", Digest: d} },
	} {
		b := good()
		s := ServiceLock{Build: &b}
		change(&s)
		if err := parse(s); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAContextIsWhatItsDockerignoreLeaves(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"ctx/a": "a", "ctx/sub/b.log": "b", "ctx/sub/c": "c", "ctx/gone/x": "x", "ctx/gone/kept/y": "y", "ctx/gone/more/z": "z", "ctx/.git/config": "g", "ctx/isle.lock": "{}", "ctx/own.lock": "{}",
		"ctx/.dockerignore": "# all but\n**/*.log\ngone\n!gone/kept\n../outside\n/etc/passwd\n", "ctx/Dockerfile": "FROM a", "ctx/other": "FROM a", "ctx/other.dockerignore": "*\n!a\n", "outside": "o",
		".isleignore": "a\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	paths := func(b Build) []string {
		t.Helper()
		tree, files, err := HashContext(t.Context(), root, "ctx/own.lock", b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeTree(tree.Encode()); err != nil || len(files) == 0 {
			t.Error(err)
		}
		var out []string
		for _, e := range tree.Entries {
			out = append(out, e.Path)
		}
		return out
	}
	if got, want := paths(Build{Context: "ctx", Dockerfile: "Dockerfile"}), []string{"", ".dockerignore", "Dockerfile", "a", "gone", "gone/kept", "gone/kept/y", "other", "other.dockerignore", "sub", "sub/c"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got, want := paths(Build{Context: "ctx", Dockerfile: "other"}), []string{"", "a"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for name, prepare := range map[string]func() error{
		"a pattern without end": func() error { return os.WriteFile(filepath.Join(root, "ctx/.dockerignore"), []byte("[a\n"), 0o644) },
		"a long one": func() error {
			return os.WriteFile(filepath.Join(root, "ctx/.dockerignore"), make([]byte, 1<<20), 0o644)
		},
		"a link out": func() error {
			os.Remove(filepath.Join(root, "ctx/.dockerignore"))
			return os.Symlink("/etc/passwd", filepath.Join(root, "ctx/.dockerignore"))
		},
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := HashContext(t.Context(), root, "isle.lock", Build{Context: "ctx", Dockerfile: "Dockerfile"}, nil); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		os.Remove(filepath.Join(root, "ctx/.dockerignore"))
	}
	for _, context := range []string{"outside", "none"} {
		if _, _, err := HashContext(t.Context(), root, "isle.lock", Build{Context: context, Dockerfile: "Dockerfile"}, nil); err == nil {
			t.Errorf("%s is no folder", context)
		}
	}
}

func FuzzDockerignore(f *testing.F) {
	for _, s := range []string{"*\n!a\n", "**/x\n[a-z]?\n", "\\\\\n!\n", "../../x\n/etc\n", "a/**/b/**/c/**\n"} {
		f.Add(s, "a/b/c")
	}
	f.Fuzz(func(t *testing.T, patterns, name string) {
		m, err := parseDockerIgnore(".dockerignore", []byte(patterns))
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Errorf("%v is no error of the file", err)
			}
			return
		}
		h := &hasher{docker: m}
		if name != "" && treePath(name) {
			h.leaveOut(name, filepath.Base(name), patternmatcher.MatchInfo{})
		}
	})
}

func TestAPatternLongerThanAnyPathIsRefused(t *testing.T) {
	for _, text := range []string{strings.Repeat("**/", 20_000) + "x\n", "!" + strings.Repeat("?", maxPattern+1) + "\n"} {
		if _, err := parseDockerIgnore(".dockerignore", []byte(text)); isle.CodeOf(err) != isle.Invalid || len(err.Error()) > 400 {
			t.Errorf("%.10s…: %.300v", text, err)
		}
	}
	if _, err := parseDockerIgnore(".dockerignore", []byte(strings.Repeat("a/**/", 100)+"x\n")); err != nil {
		t.Error(err)
	}
}
