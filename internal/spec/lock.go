package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"isle"
	"isle/internal/document"
	"isle/internal/image"
	"isle/internal/image/registry"
)

// MaxLockSize bounds a lock in bytes. A thousand packages are about 400 KiB.
const MaxLockSize = 32 << 20

// relock is the hint of every error about a lock.
const relock = "run `isle lock` to write it again, or take the last good one from version control"

// ParseLock reads a lock and checks all of it: a lock that was edited, merged
// or tampered with is refused with what is wrong. name is the file's name for
// messages. Errors are *FileError, as of Parse.
//
// What it cannot see is a digest that was changed into another well-formed one:
// that is found when the bytes that are fetched do not have it.
func ParseLock(name string, b []byte) (*Lock, error) {
	c := &lockChecker{}
	l := c.decode(b)
	if l != nil {
		c.lock(l)
	}
	if len(c.problems) == 0 {
		return l, nil
	}
	hint := relock
	if c.hint != "" {
		hint = c.hint
	}
	return nil, &FileError{File: name, Problems: c.problems, Hint: hint}
}

// Encode is the lock's bytes: sorted, indented, with a line break at the end.
// The same Lock gives the same bytes.
func (l *Lock) Encode() []byte {
	c := *l
	c.Suites = map[string]SuiteLock{}
	for k, s := range l.Suites {
		if s.Releases == nil {
			s.Releases = map[string]isle.Digest{}
		}
		c.Suites[k] = s
	}
	c.Services = map[string]ServiceLock{}
	for k, s := range l.Services {
		s.Requests = append([]string{}, s.Requests...)
		slices.Sort(s.Requests)
		s.Packages = append([]LockedPackage{}, s.Packages...)
		slices.SortFunc(s.Packages, comparePackages)
		c.Services[k] = s
	}
	return encodeJSON(c)
}

func comparePackages(a, b LockedPackage) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Architecture, b.Architecture))
}

// A lockChecker gathers what is wrong with a lock.
type lockChecker struct {
	problems []Problem
	hint     string
}

func (c *lockChecker) problem(where, format string, args ...any) {
	if len(c.problems) < document.MaxProblems {
		c.problems = append(c.problems, Problem{Path: where, Message: fmt.Sprintf(format, args...)})
	}
}

func (c *lockChecker) problemAt(b []byte, offset int64, format string, args ...any) {
	before := b[:min(max(offset, 0), int64(len(b)))]
	c.problems = append(c.problems, Problem{
		Line: 1 + bytes.Count(before, []byte("\n")), Column: max(1, len(before)-bytes.LastIndexByte(before, '\n')-1),
		Message: fmt.Sprintf(format, args...),
	})
}

// decode reads the JSON, or notes why it cannot and returns nil.
func (c *lockChecker) decode(b []byte) *Lock {
	if len(b) > MaxLockSize {
		c.problem("", "is %d bytes long; a lock has at most %d", len(b), MaxLockSize)
		return nil
	}
	for _, mark := range []string{"<<<<<<< ", ">>>>>>> "} {
		if i := bytes.Index(b, []byte("\n"+mark)); i >= 0 {
			c.problemAt(b, int64(i+2), "holds the marks of an unfinished merge")
			return nil
		}
	}
	// The version first: a newer lock may have keys that are not known here.
	var v struct {
		Version     *int `json:"version"`
		ImageFormat *int `json:"image_format"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		c.syntax(b, err)
		return nil
	}
	if !c.versions(v.Version, v.ImageFormat) {
		return nil
	}
	if offset, key := duplicateKey(b); key != "" {
		c.problemAt(b, offset, "key %q is here a second time", clip(key))
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var l Lock
	if err := d.Decode(&l); err != nil {
		c.syntax(b, err)
		return nil
	}
	return &l
}

func (c *lockChecker) versions(version, format *int) bool {
	switch {
	case version == nil:
		c.problem("version", "is missing: this is no lock of Isle")
	case *version > LockVersion:
		c.problem("version", "is %d, and this Isle knows up to %d", *version, LockVersion)
		c.hint = "use the Isle that wrote it or a newer one, or run `isle lock --update` to write it again with this one"
	case *version != LockVersion:
		c.problem("version", "is %d, which this Isle does not read", *version)
	case format == nil || *format != image.FormatVersion:
		got := 0
		if format != nil {
			got = *format
		}
		c.problem("image_format", "is %d, and this Isle writes images of format %d: their digests would differ", got, image.FormatVersion)
		c.hint = "use the Isle that wrote the lock, or run `isle lock --update` to move it to this one's format"
	default:
		return true
	}
	return false
}

func (c *lockChecker) syntax(b []byte, err error) {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		c.problemAt(b, syntax.Offset, "this is not JSON: %v", err)
	case errors.As(err, &kind):
		c.problemAt(b, kind.Offset, "%s is a %s where a %s belongs", kind.Field, kind.Value, jsonWord(kind.Type))
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		c.problemAt(b, int64(len(b)), "ends in the middle")
	default:
		c.problem("", "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
}

// jsonWord is what JSON calls the values of a Go type.
func jsonWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return "whole number"
	case reflect.Slice:
		return "list"
	case reflect.Map, reflect.Struct:
		return "mapping"
	}
	return t.Kind().String()
}

// duplicateKey finds a key that stands in one object twice: the decoder would
// take the last and a reviewer may read the first.
func duplicateKey(b []byte) (offset int64, key string) {
	d := json.NewDecoder(bytes.NewReader(b))
	type level struct {
		keys  map[string]bool // nil in a list
		value bool            // the next token is a value
	}
	var stack []level
	for {
		token, err := d.Token()
		if err != nil {
			return 0, ""
		}
		top := len(stack) - 1
		if s, ok := token.(string); ok && top >= 0 && stack[top].keys != nil && !stack[top].value {
			if stack[top].keys[s] {
				return d.InputOffset(), s
			}
			stack[top].keys[s], stack[top].value = true, true
			continue
		}
		if top >= 0 {
			stack[top].value = false
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
		}
	}
}

var (
	architecturePattern = pattern{text: `^[a-z0-9][a-z0-9-]*$`, max: 31}
	versionPattern      = pattern{text: `^[0-9][A-Za-z0-9.+:~-]*$`, max: 256}
	debNamePattern      = pattern{text: `^[a-z0-9][a-z0-9+.-]+$`, max: 128}
	mirrorPathPattern   = pattern{text: `^[A-Za-z0-9][A-Za-z0-9._+~%:@/-]*$`, max: 512}
)

// maxPackageSize bounds one locked package in bytes.
const maxPackageSize = 16 << 30

func (c *lockChecker) lock(l *Lock) {
	if !architecturePattern.matches(l.Architecture) {
		c.problem("architecture", "%q is no Debian architecture", clip(l.Architecture))
	}
	for _, name := range slices.Sorted(maps.Keys(l.Suites)) {
		where := document.Path("suites", name)
		if !suiteRegexp.matches(name) {
			c.problem(where, "%q is no suite", clip(name))
		}
		for _, p := range slices.Sorted(maps.Keys(l.Suites[name].Releases)) {
			if d := l.Suites[name].Releases[p]; !mirrorPath(p) || !d.Valid() {
				c.problem(where+".releases", "%q: %q is no path below the mirror with a sha256 digest", clip(p), clip(string(d)))
			}
		}
	}
	if len(l.Services) > maxServices {
		c.problem("services", "has %d entries; at most %d are possible", len(l.Services), maxServices)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(l.Services)) {
		where := document.Path("services", name)
		if nameError(name) != nil {
			c.problem(where, "%q is no name of a service", clip(name))
		}
		s := l.Services[name]
		if s.Image != nil {
			c.image(where+".image", &s)
		} else if s.Build != nil {
			c.build(where+".build", &s)
		} else if _, ok := l.Suites[s.Suite]; !ok {
			c.problem(where+".suite", "%q is not among the lock's suites", clip(s.Suite))
		}
		c.service(where, &s, l.Architecture)
	}
}

func (c *lockChecker) service(where string, s *ServiceLock, architecture string) {
	if len(s.Requests) > maxPackages || !strictlySorted(s.Requests) {
		c.problem(where+".requests", "is not sorted, or names a package twice")
	}
	for i, q := range s.Requests {
		if _, err := parsePackage(q); err != nil {
			c.problem(fmt.Sprintf("%s.requests[%d]", where, i), "%v", err)
		}
	}
	for i, p := range s.Packages {
		at := fmt.Sprintf("%s.packages[%d]", where, i)
		if i > 0 && comparePackages(s.Packages[i-1], p) >= 0 {
			c.problem(at, "%q is out of order or here a second time", clip(p.Name))
		}
		c.pkg(at, p, architecture)
	}
	if len(s.Copy) > maxCopies || len(s.Run) > maxRuns {
		c.problem(where, "has more copies or run steps than a service can have")
	}
	for i, cp := range s.Copy {
		at := fmt.Sprintf("%s.copy[%d]", where, i)
		if from, err := parseFrom(cp.From); err != nil || from != cp.From {
			c.problem(at+".from", "%q is no path in the project's folder", clip(cp.From))
		}
		if _, err := parseOpenPath(cp.To); err != nil {
			c.problem(at+".to", "%v", err)
		}
		if !cp.Tree.Valid() {
			c.problem(at+".tree", "%q is no sha256 digest", clip(string(cp.Tree)))
		}
	}
	for i, r := range s.Run {
		if _, err := parseCommandText(r); err != nil {
			c.problem(fmt.Sprintf("%s.run[%d]", where, i), "%v", err)
		}
	}
	c.network(where+".network", s.Network)
}

func (c *lockChecker) image(at string, s *ServiceLock) {
	if s.Suite != "" || s.Build != nil || len(s.Requests) > 0 || len(s.Packages) > 0 {
		c.problem(at, "stands beside a build, a suite or packages")
		return
	}
	c.lockedImage(at, s.Image)
}

func (c *lockChecker) lockedImage(at string, i *LockedImage) {
	request, err := parseImage(i.Request)
	_, archive := (Service{Image: i.Request}).ImagePath()
	switch {
	case err != nil || request != i.Request:
		c.problem(at+".request", "%q is no image", clip(i.Request))
	case archive && (!i.Tree.Valid() || i.Digest != "" || i.Reference != ""):
		c.problem(at+".tree", "%q is no sha256 digest of an archive", clip(string(i.Tree)))
	case !archive && (!i.Digest.Valid() || i.Tree != ""):
		c.problem(at+".digest", "%q is no sha256 digest of an image", clip(string(i.Digest)))
	case !archive:
		asked, _ := registry.Parse(i.Request)
		if asked.Digest = ""; asked.String() != i.Reference {
			c.problem(at+".reference", "%q is not what %q means", clip(i.Reference), clip(i.Request))
		}
	}
}

// maxBuildImages is how many images a Dockerfile can begin with and copy from.
const maxBuildImages = 512

func (c *lockChecker) build(at string, s *ServiceLock) {
	b := s.Build
	context, err1 := parseContext(b.Context)
	file, err2 := parseDockerfile(b.Dockerfile)
	_, err3 := parseTarget(b.Target)
	switch {
	case s.Suite != "" || len(s.Requests) > 0 || len(s.Packages) > 0:
		c.problem(at, "stands beside a suite or packages")
	case err1 != nil || context != b.Context:
		c.problem(at+".context", "%q is no path in the project's folder", clip(b.Context))
	case err2 != nil || file != b.Dockerfile:
		c.problem(at+".dockerfile", "%q is no path in the project's folder", clip(b.Dockerfile))
	case b.Target != "" && err3 != nil:
		c.problem(at+".target", "%q is no stage", clip(b.Target))
	case !b.Tree.Valid() || !b.File.Valid():
		c.problem(at+".tree", "the context or the Dockerfile is not pinned by a sha256 digest")
	case len(b.Args) > maxBuildArgs || len(b.Images) > maxBuildImages || len(b.Secrets) > maxBuildSecrets:
		c.problem(at, "has more arguments, images or secrets than a build can have")
	}
	for _, id := range slices.Sorted(maps.Keys(b.Secrets)) {
		if _, err := parseName(b.Secrets[id]); secretIDError(id) != nil || err != nil {
			c.problem(at+".secrets", "%q is no secret", clip(id))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		if _, err := parseText(b.Args[k]); envError(k) != nil || err != nil {
			c.problem(at+".args", "%q is no argument", clip(k))
		}
	}
	for i := range b.Images {
		where := fmt.Sprintf("%s.images[%d]", at, i)
		if i > 0 && b.Images[i-1].Request >= b.Images[i].Request {
			c.problem(where, "%q is out of order or here a second time", clip(b.Images[i].Request))
		}
		if _, archive := (Service{Image: b.Images[i].Request}).ImagePath(); archive {
			c.problem(where, "%q is no reference", clip(b.Images[i].Request))
			continue
		}
		c.lockedImage(where, &b.Images[i])
	}
}

func (c *lockChecker) pkg(at string, p LockedPackage, architecture string) {
	switch {
	case !debNamePattern.matches(p.Name):
		c.problem(at+".name", "%q is no Debian package", clip(p.Name))
	case !versionPattern.matches(p.Version):
		c.problem(at+".version", "%s: %q is no Debian version", p.Name, clip(p.Version))
	case p.Architecture != architecture && p.Architecture != "all":
		c.problem(at+".architecture", "%s: %q is neither %q, the lock's, nor \"all\"", p.Name, clip(p.Architecture), clip(architecture))
	case !mirrorPath(p.Path) || !strings.HasSuffix(p.Path, ".deb"):
		c.problem(at+".path", "%s: %q is no path of a package below the mirror", p.Name, clip(p.Path))
	case p.Repository != "" && !suiteRegexp.matches(p.Repository):
		c.problem(at+".repository", "%s: %q is no repository", p.Name, clip(p.Repository))
	case p.Size <= 0 || p.Size > maxPackageSize:
		c.problem(at+".size", "%s: %d is no size of a package", p.Name, p.Size)
	case !p.Digest.Valid():
		c.problem(at+".digest", "%s: %q is no sha256 digest", p.Name, clip(string(p.Digest)))
	}
}

// mirrorPath reports whether p is a path that stays below a mirror.
func mirrorPath(p string) bool {
	return mirrorPathPattern.matches(p) && path.Clean(p) == p && !slices.Contains(strings.Split(p, "/"), "..")
}

func strictlySorted(s []string) bool {
	for i := 1; i < len(s); i++ {
		if s[i-1] >= s[i] {
			return false
		}
	}
	return true
}
