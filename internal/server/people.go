package server

import (
	"bufio"
	"os"
	"os/user"
	"slices"
	"strings"

	"isle/internal/api"
)

// reaches says whether a subject of the policy is anybody who may speak to a
// server of the group: a person whom the machine knows, or a group that one is
// in. Of others it knows nothing, and believes them.
func reaches(group string) func(subject string) bool {
	return func(subject string) bool {
		kind, name, _ := strings.Cut(subject, ":")
		switch kind {
		case "human":
			return speaks(name, group)
		case "group":
			return slices.ContainsFunc(membersOf(name), func(person string) bool { return speaks(person, group) })
		}
		return true
	}
}

// speaks says whether a person may speak to the server at all.
func speaks(name, group string) bool {
	if name == api.Root {
		return true
	}
	if _, err := user.Lookup(name); err != nil {
		return false
	}
	return group != "" && slices.Contains(api.GroupsOf(name), group)
}

// membersOf are the users of the machine who are in a group, by the files that
// api.GroupsOf reads (passwd(5), group(5)).
func membersOf(name string) (members []string) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return nil
	}
	eachLine("/etc/group", func(field []string) {
		if len(field) == 4 && field[0] == name {
			members = append(members, strings.Split(field[3], ",")...)
		}
	})
	eachLine("/etc/passwd", func(field []string) {
		if len(field) == 7 && field[3] == g.Gid {
			members = append(members, field[0])
		}
	})
	return slices.DeleteFunc(members, func(m string) bool { return m == "" })
}

// eachLine calls do with the fields of each line. What cannot be read has none.
func eachLine(file string, do func(field []string)) {
	f, err := os.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		do(strings.Split(s.Text(), ":"))
	}
}
