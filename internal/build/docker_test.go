package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// dockered is a file of one service that a Dockerfile makes.
func dockered(b spec.Build) spec.File {
	if b.Context == "" {
		b.Context = "."
	}
	if b.Dockerfile == "" {
		b.Dockerfile = "Dockerfile"
	}
	return spec.File{Name: "dockered", Services: []spec.Service{{Name: "web", Build: &b}}}
}

// docker locks and builds a Dockerfile on files.
func (b *bench) docker(f spec.File, dockerfile string, files map[string]string) (image.Image, error) {
	b.t.Helper()
	lock, err := b.tryLock(f, dockerfile, files)
	if err != nil {
		return image.Image{}, err
	}
	res, err := b.Build(context.Background(), f, lock, Options{}, b.say)
	return res.Images["web"], err
}

// dockerLock locks a Dockerfile on files.
func (b *bench) dockerLock(f spec.File, dockerfile string, files map[string]string) *spec.Lock {
	b.t.Helper()
	lock, err := b.tryLock(f, dockerfile, files)
	if err != nil {
		b.t.Fatal(err)
	}
	return lock
}

func (b *bench) tryLock(f spec.File, dockerfile string, files map[string]string) (*spec.Lock, error) {
	b.t.Helper()
	t := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeFile, Size: int64(len(dockerfile)), Digest: b.blob(dockerfile)}}}
	s := f.Services[0]
	copies := []Copied{{Service: s.Name, From: s.Build.Context, Tree: b.put(files)}, {Service: s.Name, From: s.Build.File(), Tree: b.blob(string(t.Encode()))}}
	ctx := context.Background()
	if need := b.LockNeeds(f, copies); len(need) > 0 {
		b.t.Fatalf("it needs %v, which was sent", need)
	}
	lock, _, err := b.Lock(ctx, f, nil, copies, LockOptions{}, b.say)
	if err != nil {
		return nil, err
	}
	if _, err := spec.ParseLock("isle.lock", lock.Encode()); err != nil {
		b.t.Fatal(err)
	}
	if need := b.Needs(lock); len(need) > 0 {
		b.t.Fatalf("it needs %v, which was sent", need)
	}
	return lock, nil
}

func (b *bench) mustDocker(dockerfile string, files map[string]string) image.Image {
	b.t.Helper()
	m, err := b.docker(dockered(spec.Build{}), dockerfile, files)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// content is a program that writes what it finds in a layer below to /out.
func writing(name, content string) func(context.Context, Step) error {
	return func(_ context.Context, s Step) error {
		return os.WriteFile(filepath.Join(s.Upper, name), []byte(content), 0o644)
	}
}

const twoStages = `FROM scratch AS tools
COPY tools /tools
RUN compile
FROM scratch AS rest
COPY data /data
FROM rest
COPY --from=tools /compiled /app/
COPY main /app/
RUN finish
`

func TestAOneLineChangeMakesOnlyWhatDependsOnItAgain(t *testing.T) {
	b := newBench(t)
	b.sandbox.programs["finish"] = writing("finished", "x")
	files := map[string]string{"tools/a": "1", "data/b": "2", "main": "3"}
	first := b.mustDocker(twoStages, files)
	if n := len(b.started()); n != 6 {
		t.Errorf("%d steps at first", n)
	}
	again := b.mustDocker(twoStages, files)
	if got := b.started(); len(got) != 0 || again.Digest() != first.Digest() {
		t.Errorf("what did not change was made again: %v", got)
	}
	files["main"] = "4"
	b.mustDocker(twoStages, files)
	want := []string{"web Dockerfile:8 COPY main /app/: main changed", "web Dockerfile:9 RUN finish: below it, main changed"}
	if got := b.started(); !slices.Equal(got, want) {
		t.Errorf("made again: %q", got)
	}
	// A step that comes out the same ends what depends on it.
	files["tools/a"] = "5"
	b.mustDocker(twoStages, files)
	want = []string{"web Dockerfile:2 COPY tools /tools: tools/a changed", "web Dockerfile:3 RUN compile: below it, tools/a changed", "web Dockerfile:7 COPY --from=tools /compiled /app/: what is copied from changed: copy --from=tools /compiled"}
	if got := b.started(); !slices.Equal(got, want) {
		t.Errorf("made again: %q", got)
	}
	// A file that nothing copies changes nothing.
	files["README"] = "x"
	b.mustDocker(twoStages, files)
	if got := b.started(); len(got) != 0 {
		t.Errorf("made again: %q", got)
	}
}

func TestTheSameDockerfileGivesTheSameImageAnywhere(t *testing.T) {
	var digests []isle.Digest
	for range 2 {
		b := newBench(t)
		b.sandbox.programs["finish"] = writing("finished", "x")
		digests = append(digests, b.mustDocker(twoStages, map[string]string{"tools/a": "1", "data/b": "2", "main": "3"}).Digest())
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
}

func TestVerifyMakesTheStepsOfADockerfileAgain(t *testing.T) {
	b := newBench(t)
	n := 0
	b.sandbox.programs["steady"] = writing("x", "x")
	b.sandbox.programs["moody"] = func(ctx context.Context, s Step) error {
		n++
		return writing("mood", strings.Repeat("x", n))(ctx, s)
	}
	f := dockered(spec.Build{})
	verify := func(dockerfile string) error {
		if _, err := b.docker(f, dockerfile, map[string]string{"a": "1"}); err != nil {
			t.Fatal(err)
		}
		lock := b.projects()[0].Lock
		_, err := b.Verify(context.Background(), f, lock, Options{}, b.say)
		return err
	}
	if err := verify("FROM scratch\nCOPY a /\nRUN steady\nWORKDIR /w\n"); err != nil {
		t.Error(err)
	}
	err := verify("FROM scratch\nCOPY a /\nRUN moody\n")
	if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "Dockerfile:3 RUN moody: layer") || !strings.Contains(err.Error(), "/mood: 1 bytes, then 2") {
		t.Errorf("%v", err)
	}
	if e := new(isle.Error); !errors.As(err, &e) || !strings.Contains(e.Hint, "a time, a random number") {
		t.Errorf("no cause is named: %v", err)
	}
	// A stage that the image copies from is verified too.
	err = verify("FROM scratch AS tools\nCOPY a /\nRUN moody\nFROM scratch\nCOPY --from=tools /a /\n")
	if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "Dockerfile:3 RUN moody: layer") {
		t.Errorf("%v", err)
	}
}

func TestTheUsualCauseIsNamed(t *testing.T) {
	run := inputs{Kind: "run"}
	for _, c := range []struct {
		in        inputs
		file, how string
		want      string
	}{
		{inputs{Kind: "copy"}, "/x", "content", "fault of isle"},
		{run, "/app/__pycache__/x.cpython-311.pyc", "content", "unchecked-hash"},
		{run, "/var/log/dpkg.log", "content", "a log"},
		{run, "/etc/ssh/ssh_host_rsa_key", "content", "an identity"},
		{run, "/srv/site.tar.gz", "content", "gzip -n"},
		{run, "/usr/lib/libx.so.1", "content", "build-id"},
		{run, "/root/.cache/pip/x", "content", "a cache"},
		{run, "/data/app.sqlite", "content", "a database"},
		{run, "/srv/out-1732", "only there the first time", "its name"},
		{run, "/srv/out", "content", "a random number"},
		{inputs{Kind: "run", Mounts: []mountInput{{Type: "cache"}}}, "/x.pyc", "content", "a cache mounted"},
	} {
		if got := usualCause(c.in, c.file, c.how); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.file, got)
		}
	}
}

func TestARunIsToldWhoWhereAndWhat(t *testing.T) {
	b := newBench(t)
	var got Step
	b.sandbox.programs["look"] = func(_ context.Context, s Step) error {
		got = s
		return os.WriteFile(filepath.Join(s.Mounts[0].Folder, "kept"), []byte("1"), 0o644)
	}
	b.mustDocker("FROM scratch\nCOPY etc /etc\nUSER app\nWORKDIR /w\nENV A=1\nRUN --mount=type=cache,target=/c,mode=0700,uid=7 --mount=type=tmpfs,target=t --mount=type=bind,source=etc,target=/b look\n",
		map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:5:6::/home/app:/bin/sh\n", "etc/group": "staff:x:50:app,other\nrest:x:51:other\n"})
	if got.UID != 5 || got.GID != 6 || !slices.Equal(got.Groups, []uint32{50}) || got.Dir != "/w" || !got.Plain {
		t.Errorf("%+v", got)
	}
	for k, v := range map[string]string{"A": "1", "HOME": "/home/app", "SOURCE_DATE_EPOCH": "1577836800"} {
		if got.Env[k] != v {
			t.Errorf("%s=%s", k, got.Env[k])
		}
	}
	cache := got.Mounts[0]
	info, err := os.Stat(cache.Folder)
	if err != nil || info.Mode().Perm() != 0o700 || got.Mounts[1].Target != "/w/t" && got.Mounts[2].Target != "/w/t" {
		t.Errorf("%v %+v", err, got.Mounts)
	}
	// What a step left in a cache is there for the next, of the same project.
	b.mustDocker("FROM scratch\nRUN --mount=type=cache,target=/c look\n", map[string]string{"x": "1"})
	if _, err := os.Stat(filepath.Join(got.Mounts[0].Folder, "kept")); err != nil || got.Mounts[0].Folder != cache.Folder {
		t.Error(err)
	}
}

func TestACopyNeverLeavesItsRoots(t *testing.T) {
	b := newBench(t)
	m := b.mustDocker("FROM scratch\nCOPY dir /dir\nCOPY one /dir/away/x\nCOPY one /dir/loop2\nCOPY ../../one /dot/\nCOPY up /up/\n", map[string]string{
		"dir/away": "-> ../../../../../etc", "dir/abs": "-> /etc/passwd", "one": "1", "up": "-> ../../../one",
	})
	got := b.files(m)
	for path, size := range map[string]int64{"/etc/x": 1, "/dir/loop2": 1, "/dot/one": 1, "/up/up": 1} {
		if f, ok := got[path]; !ok || f.Size != size {
			t.Errorf("%s: %+v in %v", path, f, slices.Sorted(maps.Keys(got)))
		}
	}
	if got["/dir/abs"].Target != "/etc/passwd" {
		t.Errorf("%+v", got["/dir/abs"])
	}
	for name, c := range map[string]struct {
		dockerfile, want string
	}{
		"a link out":         {"FROM scratch\nCOPY out /\n", "there is no out"},
		"a circle":           {"FROM scratch\nCOPY circle /\n", "too many symbolic links"},
		"what is not there":  {"FROM scratch\nCOPY nothing /\n", "Dockerfile:2 COPY nothing /: there is no nothing"},
		"no match":           {"FROM scratch\nCOPY *.none /\n", "nothing matches *.none"},
		"a bad pattern":      {"FROM scratch\nCOPY [a /\n", "is no pattern"},
		"a file over a dir":  {"FROM scratch\nCOPY dir /x/one\nCOPY one /x/\n", "cannot be copied over the folder"},
		"a dir over a file":  {"FROM scratch\nCOPY one /x\nCOPY dir /x\n", "a folder is copied to /x, where there is a file"},
		"below a file":       {"FROM scratch\nCOPY one /x\nCOPY one /x/y/z\n", "/x is a file"},
		"no such user":       {"FROM scratch\nCOPY --chown=nobody one /\n", "there is no user \"nobody\""},
		"no such group":      {"FROM scratch\nCOPY --chown=1:users one /\n", "there is no group \"users\""},
		"an owner too high":  {"FROM scratch\nCOPY --chown=70000 one /\n", "there is no user \"70000\""},
		"no mode":            {"FROM scratch\nCOPY --chmod=99 one /\n", "--chmod=99 is no mode"},
		"a link through one": {"FROM scratch\nCOPY dir /dir\nCOPY --link one /dir/away/x\n", "--link to /dir/away/x"},
		"nothing at all":     {"FROM scratch\n", "has nothing in it"},
		"a stage's nothing":  {"FROM scratch AS a\nCOPY one /\nFROM scratch\nCOPY --from=a /two /\n", "there is no /two"},
		"RUN as nobody":      {"FROM scratch\nCOPY one /\nUSER ghost\nRUN compile\n", "there is no user \"ghost\""},
		"a bind of nothing":  {"FROM scratch\nCOPY one /\nRUN --mount=source=none,target=/m compile\n", "there is no none in the context"},
		"a secret":           {"FROM scratch\nCOPY one /\nRUN --mount=type=secret,id=x,required compile\n", "this build is given no secret x"},
	} {
		_, err := b.docker(dockered(spec.Build{}), c.dockerfile, map[string]string{
			"dir/away": "-> ../../../../../etc", "one": "1", "out": "-> ../../../../etc/shadow", "circle": "-> circle",
		})
		if err == nil || isle.CodeOf(err) == isle.Internal || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnArchiveIsUnpackedInsideTheRoot(t *testing.T) {
	pack := func(headers ...tar.Header) string {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range headers {
			content := "content"
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(content))
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				w.Write([]byte(content))
			}
		}
		w.Close()
		return buf.String()
	}
	b := newBench(t)
	m := b.mustDocker("FROM scratch\nCOPY one /in/.keep\nADD a.tar /in\n", map[string]string{"one": "1", "a.tar": pack(
		tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../../etc", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeReg, Name: "out/x", Mode: 0o4755, Uid: 3, Gid: 4},
		tar.Header{Typeflag: tar.TypeReg, Name: ".wh.one", Mode: 0o600},
		tar.Header{Typeflag: tar.TypeChar, Name: "device", Devmajor: 1},
	)})
	got := b.files(m)
	if f := got["/etc/x"]; f.Mode != 0o755|fs.ModeSetuid || f.UID != 3 || f.GID != 4 {
		t.Errorf("%+v", f)
	}
	if _, ok := got["/in/.wh.one"]; !ok {
		t.Errorf("a name of an archive hid something: %v", slices.Sorted(maps.Keys(got)))
	}
	if _, ok := got["/in/.keep"]; !ok {
		t.Error("what was there is gone")
	}
	if _, err := b.docker(dockered(spec.Build{}), "FROM scratch\nADD a.tar /in\n", map[string]string{"a.tar": pack(tar.Header{Typeflag: tar.TypeReg, Name: "../../x"})}); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Error(err)
	}
}

func TestALockPinsEachImageOfADockerfile(t *testing.T) {
	b := newBench(t)
	base := b.mustDocker("FROM scratch\nCOPY one /\nENV A=1\n", map[string]string{"one": "1"})
	f := dockered(spec.Build{})
	dockerfile := "FROM localhost/dockered/web\nCOPY two /\n"
	f.Name = "other"
	m, err := b.docker(f, dockerfile, map[string]string{"two": "2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 2 || m.Layers[0].Digest != base.Layers[0].Digest || m.Config.Variables()["A"] != "1" {
		t.Errorf("%+v", m)
	}
	lock := b.projects()[1].Lock
	if lock.Services["web"].Build == nil {
		lock = b.projects()[0].Lock
	}
	for _, s := range b.projects() {
		if l := s.Lock.Services["web"].Build; len(l.Images) == 1 && l.Images[0].Digest == base.Digest() && l.Images[0].Request == "localhost/dockered/web" {
			return
		}
	}
	t.Errorf("%+v", lock.Services)
}

func TestAStageThatFailsEndsTheOthersAndIsNamed(t *testing.T) {
	b := newBench(t)
	entered := make(chan struct{})
	b.sandbox.programs["wait"] = func(ctx context.Context, _ Step) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}
	b.sandbox.programs["fail"] = func(context.Context, Step) error {
		<-entered
		return isle.Errorf(isle.Failed, "it ended with exit code 7")
	}
	_, err := b.docker(dockered(spec.Build{}), "FROM scratch AS a\nCOPY one /\nRUN wait\nFROM scratch AS b\nCOPY one /\nRUN fail\nFROM scratch\nCOPY --from=a /one /\nCOPY --from=b /one /\n", map[string]string{"one": "1"})
	if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "web: Dockerfile:6 RUN fail: it ended with exit code 7") {
		t.Error(err)
	}
}

func TestTooManyLayersAreRefused(t *testing.T) {
	b := newBench(t)
	b.mustDocker("FROM scratch\n"+strings.Repeat("COPY a /\n", maxLayers), map[string]string{"a": "1"})
	_, err := b.docker(dockered(spec.Build{}), "FROM scratch\n"+strings.Repeat("COPY a /\n", maxLayers+1), map[string]string{"a": "1"})
	if isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
}

func TestModesAreReadAsChmodReadsThem(t *testing.T) {
	for s, want := range map[string][2]fs.FileMode{ // of a file 0644, and a folder 0755
		"":            {0o644, 0o755},
		"600":         {0o600, 0o600},
		"4755":        {0o755 | fs.ModeSetuid, 0o755 | fs.ModeSetuid},
		"u+x":         {0o744, 0o755},
		"a+X":         {0o644, 0o755},
		"u=rwX,go=rX": {0o644, 0o755},
		"+x":          {0o755, 0o755},
		"go-r":        {0o600, 0o711},
		"g=u":         {0o664, 0o775},
		"o=":          {0o640, 0o750},
		"u+s,+t":      {0o644 | fs.ModeSetuid | fs.ModeSticky, 0o755 | fs.ModeSetuid | fs.ModeSticky},
		"a=r,u+w":     {0o644, 0o644},
	} {
		change, err := parseMode(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if change == nil {
			continue
		}
		if file, dir := change(0o644), change(fs.ModeDir|0o755); file != want[0] || dir != want[1]|fs.ModeDir {
			t.Errorf("%s: %v and %v", s, file, dir)
		}
	}
	for _, s := range []string{"8", "77777", "u", "x+u", "u+q", "u+x,", "a=ug", "-1", "0x7"} {
		if _, err := parseMode(s); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", s, err)
		}
	}
}
