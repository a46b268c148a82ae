package checkout

import (
	"bufio"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLog bounds, in bytes, what is read of a log of references.
const maxLog = 64 << 20

// Parents are the branches that the present one may have grown from, the most
// likely first: the one that it was created from, as git's logs note it
// (git-reflog(1)), then the default one. There are none of the default branch.
func (c *Checkout) Parents() ([]string, error) {
	if c.Branch == "" || c.Default {
		return nil, nil
	}
	from, err := c.createdFrom()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range append(from, c.defaults()...) {
		if name != c.Branch && !slices.Contains(out, name) && validRef(branches+name) && utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl) {
			out = append(out, name)
		}
	}
	return out, nil
}

// createdFrom is the branch that this one was created from, none where that is
// not noted.
func (c *Checkout) createdFrom() (names []string, err error) {
	var made logLine
	err = eachLog(filepath.Join(c.common, "logs", branches+c.Branch), func(l logLine) bool {
		made = l
		return false
	})
	from, ok := strings.CutPrefix(made.message, "branch: Created from ")
	if err != nil || !ok {
		return nil, err
	}
	if from != "HEAD" {
		return c.named(from), nil
	}
	// What was checked out as it was made: where it was checked out from then.
	err = eachLog(filepath.Join(c.gitdir, "logs/HEAD"), func(l logLine) bool {
		before, found := strings.CutSuffix(l.message, " to "+c.Branch)
		before, moved := strings.CutPrefix(before, "checkout: moving from ")
		if found && moved && l.time >= made.time && l.hash == made.hash {
			names = []string{before}
		}
		return names == nil
	})
	return names, err
}

// named is the branch that is meant by the name of a reference.
func (c *Checkout) named(ref string) []string {
	if name, ok := strings.CutPrefix(ref, branches); ok {
		return []string{name}
	}
	short := strings.TrimPrefix(ref, remotes)
	if _, name, ok := strings.Cut(short, "/"); ok {
		if _, err := c.resolveRef(remotes + short); err == nil {
			return []string{name} // of a remote
		}
	}
	return []string{ref}
}

// defaults are the names that the default branch may have.
func (c *Checkout) defaults() []string {
	if line, err := firstLine(filepath.Join(c.common, remotes+"origin/HEAD")); err == nil {
		if name, ok := strings.CutPrefix(line, "ref: "+remotes+"origin/"); ok {
			return []string{name}
		}
	}
	return []string{"main", "master"}
}

// A logLine is one change of a reference.
type logLine struct {
	hash    string // after it
	time    int64  // Unix seconds
	message string
}

// eachLog calls f for the lines of a log, oldest first, until it returns false.
// A log that is not there has none.
func eachLog(name string, f func(logLine) bool) error {
	file, err := openFile(name)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxLog))
	for lines.Scan() {
		if l, ok := parseLog(lines.Text()); ok && !f(l) {
			return nil
		}
	}
	return lines.Err()
}

// parseLog reads "OLD NEW NAME <MAIL> SECONDS ZONE<tab>MESSAGE".
func parseLog(line string) (l logLine, ok bool) {
	head, message, _ := strings.Cut(line, "\t")
	fields := strings.Fields(head)
	if len(fields) < 4 {
		return l, false
	}
	seconds, err := strconv.ParseInt(fields[len(fields)-2], 10, 64)
	return logLine{fields[1], seconds, message}, err == nil
}
