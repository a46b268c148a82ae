package debian

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"isle"
)

// fixedIDs are the uids (and gids of the same name) of well-known system users
// in image format 1. Others get one of 200 to 899 by the hash of their name.
// Neither depends on what else is in the image, so that files in volumes keep
// their owner when packages change.
var fixedIDs = map[string]uint32{
	"messagebus": 135, "postgres": 101, "redis": 102, "mysql": 103, "mongodb": 104, "rabbitmq": 105, "memcache": 106,
	"sshd": 107, "ssl-cert": 108, "nginx": 109, "haproxy": 110, "mosquitto": 111, "bind": 112, "unbound": 113,
	"_ssh": 114, "systemd-network": 115, "systemd-resolve": 116, "systemd-timesync": 117, "systemd-journal": 118,
	"polkitd": 119, "postfix": 120, "postdrop": 121, "rdma": 122, "render": 123, "sgx": 124, "crontab": 125, "netdev": 126,
	"input": 127, "kvm": 128, "influxdb": 129, "elasticsearch": 130, "grafana": 131, "prometheus": 132, "varnish": 133, "tomcat": 134,
}

// packageUsers are users that scripts make in a way that cannot be read.
var packageUsers = map[string][][]string{
	"redis-tools":            {{"adduser", "--system", "--home", "/var/lib/redis", "--group", "redis"}},
	"dbus":                   {{"adduser", "--system", "--home", "/nonexistent", "--group", "messagebus"}},
	"dbus-system-bus-common": {{"adduser", "--system", "--home", "/nonexistent", "--group", "messagebus"}},
	"ssl-cert":               {{"addgroup", "--system", "ssl-cert"}},
	"openssh-client":         {{"addgroup", "--system", "_ssh"}},
	"cron":                   {{"addgroup", "--system", "crontab"}},
}

type account struct {
	name, gecos, home, shell string
	uid, gid                 uint32
	primary                  string // the group's name
}

type accountGroup struct {
	name    string
	gid     uint32
	members []string
}

// accounts is a passwd and group database being made.
type accounts struct {
	users  []*account
	groups []*accountGroup
	fixed  map[string]uint32 // ids that sysusers.d asks for
	joins  [][2]string       // user and group, to be joined when all are known
}

// users makes /etc/passwd, group, shadow and gshadow: base-passwd's, then those
// that the packages' sysusers.d files and scripts would have added, and the
// homes of the latter. No account has a password.
func (s *system) users() error {
	db := &accounts{fixed: map[string]uint32{}}
	db.masters(string(s.t.read("usr/share/base-passwd/passwd.master")), string(s.t.read("usr/share/base-passwd/group.master")))
	base := len(db.users)
	for _, p := range s.t.pkgs {
		for _, c := range packageUsers[p.Name] {
			db.command(c)
		}
		for _, c := range commands(p.control.scripts) {
			db.command(c)
		}
	}
	for _, name := range s.t.list("usr/lib/sysusers.d") {
		if strings.HasSuffix(name, ".conf") {
			db.sysusers(string(s.t.read("usr/lib/sysusers.d/" + name)))
		}
	}
	for _, j := range db.joins {
		db.join(j[0], j[1])
	}
	if err := db.number(); err != nil {
		return err
	}
	for _, u := range db.users[base:] {
		s.home(u)
	}
	s.accountFiles(db)
	return nil
}

// home makes a service's home folder or gives it to it.
func (s *system) home(u *account) {
	if !strings.HasPrefix(u.home, "/var/") && !strings.HasPrefix(u.home, "/srv/") && !strings.HasPrefix(u.home, "/home/") || path.Clean(u.home) != u.home {
		return
	}
	at := s.at(u.home)
	if at == "" || at == "var" || strings.Count(at, "/") < 1 || slices.Contains([]string{"var/lib", "var/cache", "var/log", "var/spool", "var/tmp", "var/mail", "var/run", "var/lock", "var/www"}, at) {
		return
	}
	mode := fs.ModeDir | 0o755
	if n := s.t.nodes[at]; n != nil {
		if !n.mode.IsDir() || n.uid != 0 {
			return
		}
		mode = n.mode
	}
	s.files[at] = made{mode: mode, uid: u.uid, gid: u.gid}
}

func (s *system) accountFiles(db *accounts) {
	var passwd, group, shadow, gshadow strings.Builder
	for _, u := range db.users {
		if u.shell == "/bin/bash" && !s.exists("/bin/bash") {
			u.shell = "/bin/sh"
		}
		fmt.Fprintf(&passwd, "%s:x:%d:%d:%s:%s:%s\n", u.name, u.uid, u.gid, u.gecos, u.home, u.shell)
		fmt.Fprintf(&shadow, "%s:*::0:99999:7:::\n", u.name)
	}
	for _, g := range db.groups {
		fmt.Fprintf(&group, "%s:x:%d:%s\n", g.name, g.gid, strings.Join(g.members, ","))
		fmt.Fprintf(&gshadow, "%s:*::%s\n", g.name, strings.Join(g.members, ","))
	}
	s.file("etc/passwd", passwd.String())
	s.file("etc/group", group.String())
	s.put("etc/shadow", made{mode: 0o640, gid: gidShadow, data: []byte(shadow.String())})
	s.put("etc/gshadow", made{mode: 0o640, gid: gidShadow, data: []byte(gshadow.String())})
}

// masters reads base-passwd's files (passwd(5), group(5)).
func (db *accounts) masters(passwd, group string) {
	for _, line := range strings.Split(passwd, "\n") {
		f := strings.Split(line, ":")
		if len(f) != 7 {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			db.users = append(db.users, &account{name: f[0], uid: uint32(uid), gid: uint32(gid), gecos: f[4], home: f[5], shell: f[6]})
		}
	}
	for _, line := range strings.Split(group, "\n") {
		f := strings.Split(line, ":")
		if len(f) != 4 {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			db.groups = append(db.groups, &accountGroup{name: f[0], gid: uint32(gid), members: strings.FieldsFunc(f[3], func(c rune) bool { return c == ',' })})
		}
	}
}

// unnumbered is the id of what has none yet.
const unnumbered = ^uint32(0)

func (db *accounts) user(name string) *account {
	for _, u := range db.users {
		if u.name == name {
			return u
		}
	}
	return nil
}

func (db *accounts) group(name string) *accountGroup {
	for _, g := range db.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

func (db *accounts) addGroup(name string) {
	if validAccount(name) && db.group(name) == nil {
		db.groups = append(db.groups, &accountGroup{name: name, gid: unnumbered})
	}
}

func (db *accounts) addUser(u account) {
	if !validAccount(u.name) || db.user(u.name) != nil {
		return
	}
	if !known(u.home) || !strings.HasPrefix(u.home, "/") || strings.ContainsAny(u.home, ":\n") {
		u.home = "/nonexistent"
	}
	if !known(u.shell) || !strings.HasPrefix(u.shell, "/") || strings.ContainsAny(u.shell, ":\n") {
		u.shell = "/usr/sbin/nologin"
	}
	if !known(u.gecos) || strings.ContainsAny(u.gecos, ":\n") {
		u.gecos = ""
	}
	u.uid = unnumbered
	db.addGroup(u.primary)
	db.users = append(db.users, &u)
}

func (db *accounts) join(user, group string) {
	if g := db.group(group); g != nil && db.user(user) != nil && !slices.Contains(g.members, user) && db.user(user).primary != group {
		g.members = append(g.members, user)
	}
}

func validAccount(s string) bool {
	if s == "" || len(s) > 32 || s[0] == '-' || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}) < 0
}

// command does what adduser, addgroup, useradd or groupadd would, for system
// users.
func (db *accounts) command(words []string) {
	program := path.Base(words[0])
	switch program {
	case "adduser", "addgroup", "useradd", "groupadd":
	default:
		return
	}
	o, names := options(program, words[1:])
	for _, n := range names {
		if !known(n) {
			return
		}
	}
	_, system := o["system"]
	_, withGroup := o["group"]
	switch {
	case (program == "addgroup" || program == "groupadd" || program == "adduser" && withGroup && !system) && len(names) == 1:
		db.addGroup(names[0])
	case (program == "adduser" || program == "addgroup") && len(names) == 2:
		db.joins = append(db.joins, [2]string{names[0], names[1]})
	case program == "adduser" && system && len(names) == 1:
		primary := "nogroup"
		if withGroup {
			primary = names[0]
		}
		if g := o["ingroup"]; g != "" && known(g) {
			primary = g
		}
		db.addUser(account{name: names[0], gecos: o["gecos"] + o["comment"], home: o["home"], shell: o["shell"], primary: primary})
	case program == "useradd" && system && len(names) == 1:
		primary := names[0]
		if g := o["gid"]; validAccount(g) {
			primary = g
		}
		db.addUser(account{name: names[0], gecos: o["comment"], home: o["home-dir"] + o["home"], shell: o["shell"], primary: primary})
	}
}

// options splits the arguments of adduser(8), useradd(8) and their kin.
func options(program string, args []string) (map[string]string, []string) {
	long := map[string]string{}
	if strings.HasPrefix(program, "user") || strings.HasPrefix(program, "group") {
		long = map[string]string{"-r": "system", "-d": "home-dir", "-s": "shell", "-g": "gid", "-c": "comment", "-u": "uid", "-G": "groups", "-b": "base-dir", "-k": "skel", "-K": "key", "-e": "expiredate", "-f": "inactive", "-p": "password"}
	}
	takes := []string{"home", "home-dir", "shell", "gecos", "comment", "ingroup", "uid", "gid", "firstuid", "lastuid", "firstgid", "lastgid", "conf", "groups", "add_extra_groups", "base-dir", "skel", "key", "expiredate", "inactive", "password"}
	found := map[string]string{}
	var names []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		name, value, has := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		switch l, short := long[a]; {
		case strings.HasPrefix(a, "$"): // an unknown variable that stands alone is an option
			continue
		case short:
			name, has = l, false
		case !strings.HasPrefix(a, "--"):
			if strings.HasPrefix(a, "-") {
				continue
			}
			if strings.HasPrefix(a, "/") || isNumber(a) { // what is left of a redirection
				continue
			}
			names = append(names, a)
			continue
		}
		if !has && slices.Contains(takes, name) && i+1 < len(args) {
			i++
			value = args[i]
		}
		found[name] = value
	}
	return found, names
}

func isNumber(s string) bool { _, err := strconv.ParseUint(s, 10, 32); return err == nil }

// sysusers reads a sysusers.d(5) file.
func (db *accounts) sysusers(text string) {
	for _, line := range strings.Split(text, "\n") {
		f := fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		for len(f) < 6 {
			f = append(f, "")
		}
		for i := range f {
			if f[i] == "-" {
				f[i] = ""
			}
		}
		id, _, _ := strings.Cut(f[2], ":")
		switch strings.TrimRight(f[0], "!-+") {
		case "g":
			db.addGroup(f[1])
			db.wish(f[1], id)
		case "u":
			primary := f[1]
			if _, group, ok := strings.Cut(f[2], ":"); ok && validAccount(group) {
				primary = group
			}
			db.addUser(account{name: f[1], gecos: f[3], home: orRoot(f[4]), shell: f[5], primary: primary})
			db.wish(f[1], id)
		case "m":
			db.addGroup(f[2])
			db.addUser(account{name: f[1], primary: f[1]})
			db.joins = append(db.joins, [2]string{f[1], f[2]})
		}
	}
}

func orRoot(home string) string {
	if home == "" {
		return "/"
	}
	return home
}

// fields splits at blanks, with quotes as in sysusers.d.
func fields(line string) (out []string) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			var w string
			w, line, _ = strings.Cut(line[1:], `"`)
			out = append(out, w)
			continue
		}
		n := strings.IndexAny(line, " \t")
		if n < 0 {
			n = len(line)
		}
		out, line = append(out, line[:n]), line[n:]
	}
	return out
}

func (db *accounts) wish(name, id string) {
	if n, err := strconv.ParseUint(id, 10, 32); err == nil && n > 0 && n < 1000 {
		db.fixed[name] = uint32(n)
	}
}

// number gives every user and group without an id one: the fixed one, or the
// one of the name's hash. A user and a group of the same name share it.
func (db *accounts) number() error {
	taken := map[uint32]string{}
	names := map[string]bool{}
	for _, u := range db.users {
		if u.uid == unnumbered {
			names[u.name] = true
		} else {
			taken[u.uid] = u.name
		}
	}
	for _, g := range db.groups {
		if g.gid == unnumbered {
			names[g.name] = true
		} else {
			taken[g.gid] = g.name
		}
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	ids := map[string]uint32{}
	for _, source := range []map[string]uint32{fixedIDs, db.fixed} {
		for _, n := range sorted {
			id, ok := source[n]
			if _, numbered := ids[n]; ok && !numbered && (taken[id] == "" || taken[id] == n) {
				ids[n], taken[id] = id, n
			}
		}
	}
	for _, n := range sorted {
		if _, ok := ids[n]; ok {
			continue
		}
		h := fnv.New32a()
		h.Write([]byte(n))
		id, tries := 200+h.Sum32()%700, 0
		for ; taken[id] != ""; id = 200 + (id-199)%700 {
			if tries++; tries > 700 {
				return isle.Errorf(isle.Exhausted, "the packages need more than 700 system users")
			}
		}
		ids[n], taken[id] = id, n
	}
	for _, g := range db.groups {
		if g.gid == unnumbered {
			g.gid = ids[g.name]
		}
		sort.Strings(g.members)
	}
	for _, u := range db.users {
		if u.uid == unnumbered {
			u.uid = ids[u.name]
			u.gid = gidNogroup
			if g := db.group(u.primary); g != nil {
				u.gid = g.gid
			}
		}
	}
	db.order()
	return nil
}

// order puts what was added behind what base-passwd has, by name.
func (db *accounts) order() {
	fresh := func(id uint32) bool { return id >= 100 && id < 1000 }
	sort.SliceStable(db.users, func(i, j int) bool {
		a, b := db.users[i], db.users[j]
		return !fresh(a.uid) && fresh(b.uid) || fresh(a.uid) && fresh(b.uid) && a.name < b.name
	})
	sort.SliceStable(db.groups, func(i, j int) bool {
		a, b := db.groups[i], db.groups[j]
		return !fresh(a.gid) && fresh(b.gid) || fresh(a.gid) && fresh(b.gid) && a.name < b.name
	})
}
