package debian

import (
	"slices"
	"strings"
	"testing"
)

// basePasswd is a base-passwd with a few of its lines.
func basePasswd() testPackage {
	return pkg("base-passwd",
		reg("usr/share/base-passwd/passwd.master", "root:*:0:0:root:/root:/bin/bash\nwww-data:*:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
		reg("usr/share/base-passwd/group.master", "root:*:0:\nshadow:*:42:\nusers:*:100:\nwww-data:*:33:\nnogroup:*:65534:\n"))
}

func TestUsersAreThoseThatScriptsWouldMake(t *testing.T) {
	postgres := pkg("postgresql-common")
	postgres.postinst = "#!/bin/sh\nif [ \"$1\" = configure ]; then\n  adduser --system $quiet --home /var/lib/postgresql --no-create-home \\\n   --shell /bin/bash --group --gecos \"PostgreSQL administrator\" postgres\n  adduser $quiet postgres ssl-cert\nfi\n"
	memcached := pkg("memcached")
	memcached.postinst = "USER=\"custom\"\nGROUP=\"$USER\"\naddgroup --system $GROUP >/dev/null\nadduser --system --ingroup $GROUP --home /nonexistent --shell /bin/false $USER >/dev/null\n# adduser --system commented\necho 'adduser --system quoted'\nadduser --system \"$(cat /etc/who)\"\n"
	sysusers := pkg("s", reg("usr/lib/sysusers.d/s.conf", "u svc - \"A service\" /var/lib/svc\ng grp 300\nm svc grp\n"))
	cert := pkg("ssl-cert")
	got, err := treeOf(t, "system", basePasswd(), postgres, memcached, sysusers, cert)
	if err != nil {
		t.Fatal(err)
	}
	passwd := strings.Split(got["/etc/passwd"], "\n")
	for _, line := range []string{
		"-rw-r--r-- 0:0 root:x:0:0:root:/root:/bin/sh", // no bash here
		"postgres:x:101:101:PostgreSQL administrator:/var/lib/postgresql:/bin/sh",
	} {
		if !slices.Contains(passwd, line) {
			t.Errorf("passwd lacks %q:\n%s", line, got["/etc/passwd"])
		}
	}
	for _, word := range []string{"\nsvc:x:", "\ncustom:x:"} {
		if !strings.Contains(got["/etc/passwd"], word) {
			t.Errorf("passwd lacks %q:\n%s", word, got["/etc/passwd"])
		}
	}
	for _, word := range []string{"commented", "quoted", "cat", "$"} {
		if strings.Contains(got["/etc/passwd"], word) {
			t.Errorf("passwd has %q:\n%s", word, got["/etc/passwd"])
		}
	}
	if !strings.Contains(got["/etc/group"], "\nssl-cert:x:108:postgres\n") || !strings.Contains(got["/etc/group"], "\ngrp:x:300:svc\n") {
		t.Errorf("group:\n%s", got["/etc/group"])
	}
	if !strings.HasPrefix(got["/etc/shadow"], "-rw-r----- 0:42 root:*::") {
		t.Errorf("shadow: %s", got["/etc/shadow"])
	}
	wantEntries(t, got, map[string]string{"/var/lib/postgresql": "drwxr-xr-x 101:101"})

	// Another package changes nobody's id.
	more := pkg("more")
	more.postinst = "useradd -r -d /nonexistent aaa\nuseradd -r zzz\n"
	again, err := treeOf(t, "system", basePasswd(), postgres, memcached, sysusers, cert, more)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range passwd {
		if !strings.Contains(again["/etc/passwd"], line) {
			t.Errorf("%q is gone with another package:\n%s", line, again["/etc/passwd"])
		}
	}
}

func TestAlternativesLeadToTheHighestPriority(t *testing.T) {
	a := pkg("mawk", reg("usr/bin/mawk", "m"))
	a.postinst = "update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n --slave /usr/bin/nawk nawk /usr/bin/mawk\n"
	b := pkg("gawk", reg("usr/bin/gawk", "g"))
	b.postinst = "for i in awk; do update-alternatives --install /usr/bin/$i $i /usr/bin/g$i 10; done\n"
	c := pkg("none")
	c.postinst = "update-alternatives --install /usr/bin/awk awk /usr/bin/gone 99\nupdate-alternatives --install ../x ../y /usr/bin/mawk 100\n"
	got, err := treeOf(t, "system", basePasswd(), a, b, c)
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{
		"/usr/bin/awk": "Lrwxrwxrwx 0:0 -> /etc/alternatives/awk", "/etc/alternatives/awk": "Lrwxrwxrwx 0:0 -> /usr/bin/gawk",
	})
}

func TestSystemLayerKeepsTheDirectoriesItPassesThrough(t *testing.T) {
	root := dir("root/")
	root.Mode = 0o700
	got, err := treeOf(t, "system", basePasswd(), pkg("base-files", root, reg("usr/share/base-files/dot.profile", "p")))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{"/root": "drwx------ 0:0", "/root/.profile": "-rw-r--r-- 0:0 p", "/tmp": "dtrwxrwxrwx 0:0", "/etc/machine-id": "-rw-r--r-- 0:0"})
}

func TestLinkerCacheOrderIsTheLoaders(t *testing.T) {
	order := []string{"libz.so.1", "libc.so.10", "libc.so.9", "libc.so.6", "libc.so", "ld-linux.so.2"}
	for i := range order {
		for j := range order {
			if c := compareLibraries(order[i], order[j]); (c > 0) != (i < j) || (c == 0) != (i == j) {
				t.Errorf("compare %s and %s: %d", order[i], order[j], c)
			}
		}
	}
}
