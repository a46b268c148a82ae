package debian

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAptConfigIsReadAsAptDoes(t *testing.T) {
	c := aptConfig{}
	parseAptConfig(`// a comment; with "quotes"
Acquire::http::Proxy "http://127.0.0.1:3142"; # more
Acquire { https { Proxy "DIRECT"; }; /* hidden
 Check-Valid-Until "true"; */ Check-Valid-Until "false"; }
APT::NeverAutoRemove { "^linux"; };`, c)
	if c["acquire::http::proxy"] != "http://127.0.0.1:3142" || c["acquire::https::proxy"] != "DIRECT" || !c.off("acquire::check-valid-until") {
		t.Errorf("read: %v", c)
	}
}

func TestSourcesAreReadInBothFormats(t *testing.T) {
	root := t.TempDir()
	writeFile(t, root, "etc/apt/sources.list", "deb [arch=amd64 signed-by=/k.gpg] http://a.test/debian/ trial main contrib # c\ndeb-src http://a.test/debian trial main\ndeb [arch=arm64] http://b.test/debian trial main\ndeb cdrom:[x]/ trial main\n")
	writeFile(t, root, "etc/apt/mirrors/list", "http://m1.test/debian priority:1\n# no\nhttp://m2.test/debian\n")
	writeFile(t, root, "etc/apt/sources.list.d/x.sources", "Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/list\nSuites: trial trial-updates\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n\nTypes: deb\nEnabled: no\nURIs: http://no.test/debian\nSuites: trial\nComponents: main\n")
	writeFile(t, root, "etc/apt/sources.list.d/x.sources.bak", "Types: deb\nURIs: http://no.test/debian\nSuites: trial\nComponents: main\n")
	got := readSources(root, "amd64")
	want := []source{
		{bases: []string{"http://a.test/debian"}, suites: []string{"trial"}, components: []string{"main", "contrib"}, signedBy: []string{"/k.gpg"}},
		{bases: []string{"http://m1.test/debian", "http://m2.test/debian"}, suites: []string{"trial", "trial-updates"}, components: []string{"main"},
			inlineKey: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----"},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(source{}), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

func TestSecurityArchiveBesideAMirror(t *testing.T) {
	for base, want := range map[string]string{
		"http://a.test/debian":                "http://a.test/debian-security",
		"http://a.test/archive/debian/2026Z":  "http://a.test/archive/debian-security/2026Z",
		"http://a.test/mirror":                "http://a.test/mirror-security",
		"http://debian.a.test/archive/debian": "http://debian.a.test/archive/debian-security",
	} {
		if got := securityBeside(base); len(got) != 1 || got[0] != want {
			t.Errorf("beside %s: %v, want %s", base, got, want)
		}
	}
}

func TestSubjectHashIsOpenSSLs(t *testing.T) {
	// Checked against `openssl x509 -subject_hash` in the integration test, for all authorities;
	// here the canonical form of one awkward name: blanks, case, two strings of different types.
	name := tlv(0x31, tlv(0x30, append([]byte{0x06, 3, 0x55, 4, 10}, tlv(0x13, []byte("  Big   CORP "))...)))
	got, ok := canonicalName(name)
	want := tlv(0x31, tlv(0x30, append([]byte{0x06, 3, 0x55, 4, 10}, tlv(0x0c, []byte("big corp"))...)))
	if !ok || !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("Package: a\nVersion: 1\nDepends: b (>= 2) | c:any [amd64] <!x>, d\nProvides: v (= 1)\n\n")
	f.Add(`Acquire { http { Proxy "x"; }; }; // c`)
	f.Add("deb [arch=amd64] http://a.test/d s main\n")
	f.Add("for i in a b; do adduser --system $i; done\nX='y'\nupdate-alternatives --install /a b /c 1 --slave")
	f.Add("u x - \"g\" /h\nm x y\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseAptConfig(s, aptConfig{})
		parseListSources(s, "amd64")
		parseDeb822Sources(s, "amd64")
		x, err := openIndex(buildIndex(strings.NewReader(s), "amd64"))
		if err != nil {
			t.Fatal("an index that was just built is damaged")
		}
		for i := range len(x.records)/4 - 1 {
			x.named(string(x.nameAt(i)), "amd64", "")
		}
		openIndex([]byte(s))
		db := &accounts{fixed: map[string]uint32{}}
		db.masters(s, s)
		for _, c := range commands(s) {
			db.command(c)
			parseAlternative(c)
		}
		db.sysusers(s)
		for _, u := range db.users {
			if strings.ContainsAny(u.name+u.gecos+u.home+u.shell, "\n") {
				t.Fatalf("a line break in %+v", u)
			}
		}
		(&release{repo: repository{suite: "s"}}).parse("", []byte(s), now, true)
		verifyRelease("", []byte(s), nil, nil, now)
		subjectHash([]byte(s))
	})
}
