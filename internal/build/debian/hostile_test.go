package debian

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"debug/elf"
	"encoding/binary"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle"
)

// sharedLibrary is one of amd64 with a SONAME and, if asked for, with section
// headers that say its names take a hundred gigabytes.
func sharedLibrary(soname string, bomb bool) string {
	le := binary.LittleEndian
	b := make([]byte, 64+2*56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], uint16(elf.ET_DYN))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64) // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	strings := len(b)
	b = append(b, "\x00"+soname+"\x00"...)
	dynamic := len(b)
	for _, v := range []uint64{uint64(elf.DT_SONAME), 1, uint64(elf.DT_STRTAB), uint64(strings), 0, 0} {
		b = le.AppendUint64(b, v)
	}
	segment := func(h []byte, kind elf.ProgType, offset, size int) {
		le.PutUint32(h, uint32(kind))
		le.PutUint64(h[8:], uint64(offset))
		le.PutUint64(h[16:], uint64(offset))
		le.PutUint64(h[32:], uint64(size))
	}
	segment(b[64:], elf.PT_LOAD, 0, len(b))
	segment(b[120:], elf.PT_DYNAMIC, dynamic, len(b)-dynamic)
	if bomb {
		at := len(b)
		s := make([]byte, 64)
		le.PutUint32(s[4:], uint32(elf.SHT_STRTAB))
		le.PutUint64(s[32:], 100<<30)
		le.PutUint64(b[40:], uint64(at))
		le.PutUint16(b[58:], 64)
		le.PutUint16(b[60:], 2)
		le.PutUint16(b[62:], 1)
		b = append(append(b, make([]byte, 64)...), s...)
	}
	return string(b)
}

func TestLibrariesHaveTheNamesThatElfToolsGiveThem(t *testing.T) {
	for name, want := range map[string]string{"libx.so.1": "libx.so.1", "": "", "a/b": "", strings.Repeat("x", 256): ""} {
		if got := readSoname(strings.NewReader(sharedLibrary(name, false)), elf.EM_X86_64, elf.ELFCLASS64); got != want {
			t.Errorf("%.20q has the name %q", name, got)
		}
	}
	if got := readSoname(strings.NewReader(sharedLibrary("libx.so.1", true)), elf.EM_X86_64, elf.ELFCLASS64); got != "libx.so.1" {
		t.Errorf("sections matter: %q", got)
	}
	m := multiarch[hostArchitecture()]
	files, _ := filepath.Glob("/usr/lib/" + m.triplet + "/lib*.so*")
	compared := 0
	for _, name := range files {
		e, err := elf.Open(name)
		if err != nil {
			continue
		}
		names, err := e.DynString(elf.DT_SONAME)
		e.Close()
		if err != nil || len(names) != 1 {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := readSoname(f, m.machine, m.class); got != names[0] {
			t.Errorf("%s has the name %q, and not %q", name, got, names[0])
		}
		f.Close()
		compared++
	}
	t.Log(compared, "libraries of this machine")
}

func FuzzReadSoname(f *testing.F) {
	f.Add([]byte(sharedLibrary("libx.so.1", true)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := readSoname(bytes.NewReader(b), elf.EM_X86_64, elf.ELFCLASS64); len(s) > maxSoname {
			t.Errorf("a name of %d bytes", len(s))
		}
	})
}

func TestALibraryInTheRootFolderDoesNotEndTheServer(t *testing.T) {
	got, err := treeOf(t, "system", pkg("evil", reg("etc/ld.so.conf", "/\n"), reg("libx.so", sharedLibrary("libx.so.1", false))))
	if err != nil {
		t.Fatal(err)
	}
	if got["/libx.so.1"] == "" {
		t.Error("its name is not there")
	}
}

func TestAScriptCannotMakeItsWordsGrowForEver(t *testing.T) {
	script := "A=0123456789abcdef\n" + strings.Repeat("A=$A$A\n", 60) + "adduser --system $A\n"
	for _, words := range commands(script) {
		for _, w := range words {
			if len(w) > 2*maxWord {
				t.Fatalf("a word of %d bytes", len(w))
			}
		}
	}
	// Nor is an unended ${ looked for to the end of the script each time.
	done := make(chan struct{})
	go func() { commands(strings.Repeat("${", 1<<19)); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it takes for ever")
	}
}

func TestPackagesCannotTakeMoreThanAnyImageHas(t *testing.T) {
	left := newAllowance(1000, 1<<20)
	if err := left.take(600, 1<<19); err != nil {
		t.Fatal(err)
	}
	if err := left.take(600, 0); err == nil {
		t.Error("memory without end")
	}
	left = newAllowance(1000, 1<<20)
	if err := left.take(1, 1<<62); err == nil {
		t.Error("a file without end")
	}
}

func TestAPanicInAPackageIsAnError(t *testing.T) {
	if err := protect(func() error { panic("a hostile package found a way") }); err == nil {
		t.Error("it is none")
	}
}

// What stands between an honest release file and its index may send anything.
func TestAnIndexIsNotUnpackedBeforeItsHashIsRight(t *testing.T) {
	a := newArchive(t)
	a.publishAll()
	f := "/debian/dists/trial/main/binary-amd64/Packages.gz"
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	record := "Package: x\nVersion: 1\nArchitecture: amd64\nDescription: " + strings.Repeat("x", 1<<20) + "\n\n"
	for range 64 {
		z.Write([]byte(record))
	}
	z.Close()
	signed := make([]byte, bomb.Len()) // a real one has ten megabytes
	rand.Read(signed)
	a.put(f, signed)
	a.sign("/debian", "trial", f)
	a.put(f, bomb.Bytes())
	d, _ := a.open(a.machine(testSources))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := d.Resolve(context.Background(), "trial", nil, ResolveOptions{}, nil)
	runtime.ReadMemStats(&after)
	wantError(t, err, isle.Unavailable, "not the file that the signed release names")
	if got := after.TotalAlloc - before.TotalAlloc; got > 32<<20 {
		t.Errorf("%d MiB were taken for %d KiB", got>>20, bomb.Len()>>10)
	}
}

// sign writes a release file for the one index, whatever is in it.
func (a *archive) sign(base, suite, index string) {
	data := a.files[index]
	text := "Suite: " + suite + "\nCodename: " + suite + "\nArchitectures: amd64\nSHA256:\n " + isle.DigestOf(data).Hex() + " " + strconv.Itoa(len(data)) + " main/binary-amd64/Packages.gz\n"
	a.put(base+"/dists/"+suite+"/InRelease", sign(a.t, text, a.key))
}

func TestAnOlderReleaseThanTheLastIsNotGoneBackTo(t *testing.T) {
	a := newArchive(t)
	publish := func(version, date string) {
		a.publish("/debian", "trial", "Date: "+date+"\n", a.key, append(basePackages(), testPackage{name: "web", version: version})...)
	}
	a.publishAll()
	publish("1.0", "Sat, 30 May 2026 00:00:00 UTC")
	vulnerable := a.files["/debian/dists/trial/InRelease"]
	index := a.files["/debian/dists/trial/main/binary-amd64/Packages.gz"]
	publish("1.1", "Sun, 31 May 2026 00:00:00 UTC")
	d, _ := a.open(a.machine(testSources))
	chosen := func() string {
		t.Helper()
		pkgs, _, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{Refresh: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return versions(pkgs)["web"]
	}
	if v := chosen(); v != "1.1" {
		t.Fatal(v)
	}
	a.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if data != nil {
			w.Write(data) // whatever the client knows already
		}
		return data != nil
	}
	a.put("/debian/dists/trial/InRelease", vulnerable) // signed, and not expired
	a.put("/debian/dists/trial/main/binary-amd64/Packages.gz", index)
	for range 2 {
		if v := chosen(); v != "1.1" {
			t.Errorf("version %s was chosen, which was replaced", v)
		}
	}
	publish("1.2", "Mon, 01 Jun 2026 00:00:00 UTC")
	if v := chosen(); v != "1.2" {
		t.Errorf("version %s was chosen, and not the newest", v)
	}
	// What cannot be trusted takes nothing away.
	a.put("/debian/dists/trial/InRelease", []byte("<html>log in</html>"))
	if _, _, err := d.Resolve(context.Background(), "trial", []string{"web"}, ResolveOptions{Refresh: true}, nil); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("%v", err)
	}
	a.put("/debian/dists/trial/InRelease", vulnerable)
	if v := chosen(); v != "1.2" {
		t.Errorf("version %s was chosen after a broken answer", v)
	}
}

func TestAPasswordInAMirrorsAddressIsNotSaid(t *testing.T) {
	a := newArchive(t)
	a.publishAll()
	mirror := strings.Replace(a.server.URL, "http://", "http://me:hidden@", 1) + "/debian"
	d, _ := a.open(a.machine(testSources))
	for _, suite := range []string{"nosuch", "other", "trial"} {
		switch suite {
		case "other":
			a.put("/debian/dists/other/InRelease", a.files["/debian/dists/trial/InRelease"])
		case "trial":
			a.put("/debian/dists/trial/InRelease", []byte("<html>"))
		}
		_, _, err := d.Resolve(context.Background(), suite, nil, ResolveOptions{Mirror: mirror}, nil)
		if err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", suite, err)
		}
	}
}
