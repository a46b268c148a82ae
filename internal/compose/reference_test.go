package compose

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

// What is read is what the reference implementation reads: its loader on one
// side, a draft on the other.

// reference is a folder's Compose files as compose-go loads them.
func reference(t *testing.T, src Source, env map[string]string) *types.Project {
	t.Helper()
	logrus.SetOutput(io.Discard) // it warns of `version`
	details := types.ConfigDetails{WorkingDir: src.Dir, Environment: env}
	for _, name := range append([]string{src.Name}, src.Over...) {
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: filepath.Join(src.Dir, name)})
	}
	p, err := loader.LoadWithContext(t.Context(), details, func(o *loader.Options) {
		o.SetProjectName("reference", true)
		o.Profiles = src.Profiles
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFilesAreReadAsTheReferenceImplementationDoes(t *testing.T) {
	shapes, err := filepath.Glob("../../test/compose/testdata/*")
	if err != nil || len(shapes) < 10 {
		t.Fatalf("%d shapes, %v", len(shapes), err)
	}
	sources := []Source{}
	for _, dir := range shapes {
		if name, over := Find(dir); strings.HasSuffix(name, "ml") {
			sources = append(sources, Source{Dir: dir, Name: name, Over: over, Profiles: []string{"*"}})
		}
	}
	for _, text := range traps() {
		dir := t.TempDir()
		for name, content := range map[string]string{"compose.yaml": text, "a.env": envFile, "other.yaml": otherFile, "x/y": ""} {
			os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sources = append(sources, Source{Dir: dir, Name: "compose.yaml", Profiles: []string{"*"}})
	}
	for _, src := range sources {
		env := map[string]string{"FROM_ENV": "from env", "EMPTY": ""}
		src.Environ = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
		root, err := os.OpenRoot(src.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		r := &reader{root: root, src: src}
		d, err := r.draft()
		if err != nil {
			t.Errorf("%s: %v", src.Dir, err)
			continue
		}
		theirs := maps.Clone(env)
		for k, v := range r.vars.file { // .env is read by the command there, not by the loader
			if _, ok := theirs[k]; !ok {
				theirs[k] = v
			}
		}
		p := reference(t, src, theirs)
		if len(p.Services) != len(d.services) {
			t.Errorf("%s: %d services, and %d by compose-go", src.Dir, len(d.services), len(p.Services))
		}
		for _, s := range d.services {
			compare(t, src.Dir, s, p.Services[s.was])
		}
	}
}

// compare compares a service with what compose-go says of it.
func compare(t *testing.T, dir string, s *service, ref types.ServiceConfig) {
	t.Helper()
	differ := func(what string, ours, theirs any) {
		t.Errorf("%s: %s: %s is %q, and %q by compose-go", dir, s.was, what, ours, theirs)
	}
	env := map[string]string{}
	for k, v := range ref.Environment {
		if v != nil {
			env[k] = *v
		}
	}
	if !maps.Equal(s.env, env) {
		differ("environment", s.env, env)
	}
	for what, list := range map[string][2][]string{
		"entrypoint": {s.entrypoint, ref.Entrypoint}, "command": {s.arguments, ref.Command},
	} {
		if !slices.Equal(list[0], list[1]) {
			differ(what, list[0], list[1])
		}
	}
	if ref.Build == nil && s.image != ref.Image {
		differ("image", s.image, ref.Image)
	}
	if s.user != ref.User && !strings.Contains(ref.User, ":") {
		differ("user", s.user, ref.User)
	}
	var ports, theirs []int
	for _, p := range s.ports {
		ports = append(ports, p.number)
	}
	for _, p := range ref.Ports {
		if !slices.Contains(theirs, int(p.Target)) {
			theirs = append(theirs, int(p.Target))
		}
	}
	slices.Sort(ports)
	slices.Sort(theirs)
	if !slices.Equal(ports, theirs) {
		t.Errorf("%s: %s: ports are %v, and %v by compose-go", dir, s.was, ports, theirs)
	}
	conditions, refs := map[string]string{}, map[string]string{}
	for _, d := range s.depends {
		if _, ok := conditions[d.name]; !ok || d.condition != "service_started" {
			conditions[d.name] = d.condition
		}
	}
	for name, d := range ref.DependsOn {
		refs[name] = d.Condition
	}
	if !maps.Equal(conditions, refs) {
		differ("depends_on", conditions, refs)
	}
	var mounts, refMounts []string
	for _, v := range s.volumes {
		mounts = append(mounts, v.path)
	}
	for _, c := range s.copies {
		mounts = append(mounts, c.to)
	}
	mounts = append(mounts, s.tmpfs...)
	for _, v := range ref.Volumes {
		refMounts = append(refMounts, v.Target)
	}
	for _, c := range ref.Configs {
		if c.Target != "" && s.copied(c.Target) {
			refMounts = append(refMounts, c.Target)
		}
	}
	for _, m := range ref.Tmpfs {
		if path, _, _ := strings.Cut(m, ":"); path != "/tmp" {
			refMounts = append(refMounts, path)
		}
	}
	slices.Sort(mounts)
	slices.Sort(refMounts)
	if !slices.Equal(mounts, refMounts) {
		differ("what is mounted", mounts, refMounts)
	}
	if ref.Build != nil && (s.build.target != ref.Build.Target || filepath.Join(dir, s.build.context) != filepath.Clean(ref.Build.Context)) {
		differ("build", s.build.context, ref.Build.Context)
	}
	if (s.health == nil) != (ref.HealthCheck == nil || ref.HealthCheck.Disable || len(ref.HealthCheck.Test) > 0 && ref.HealthCheck.Test[0] == "NONE") {
		t.Errorf("%s: %s: healthcheck is %v, and %v by compose-go", dir, s.was, s.health, ref.HealthCheck)
	}
	if s.memory != int64(ref.MemLimit) && ref.MemLimit != 0 {
		t.Errorf("%s: %s: memory is %d, and %d by compose-go", dir, s.was, s.memory, ref.MemLimit)
	}
}

func (s *service) copied(to string) bool {
	return slices.ContainsFunc(s.copies, func(c copied) bool { return c.to == to })
}

const envFile = `# a comment
PLAIN=value # and a comment
HASH=a#b
QUOTED="two words" # comment
SINGLE='$PLAIN \n'
ESCAPED="line\nline \"quoted\" $PLAIN"
export EXPORTED=yes
SPACED = around
EMPTY_ONE=
REF=${PLAIN}-${NOPE:-default}
FROM_ENV
LINES="one
two"
`

const otherFile = `services:
  base:
    image: base
    command: [from, base]
    environment: {A: base, B: base}
    ports: ["90:90"]
    volumes: ["data:/data", "./x:/x"]
    depends_on: [db]
    mem_limit: 1g
`

// traps are files in which readers go wrong.
func traps() []string {
	return []string{
		"services: {a: {image: b, env_file: a.env, environment: [FROM_ENV, NOPE, 'X=a=b', 'EMPTY=', PLAIN=over]}}\n",
		"services: {a: {image: b, env_file: [{path: a.env}, {path: none.env, required: false}], environment: {NUM: 1, FLOAT: 1.5, BOOL: true, NOTHING: , TEXT: \"null\"}}}\n",
		"services: {a: {image: b, command: 'sh -c \"echo $$HOME; it''s\"'}, b: {image: c, command: a\\ b \"c d\" 'e f'\"g\"}, c: {image: c, entrypoint: '', command: []}}\n",
		"services: {a: {image: '${FROM_ENV:-x}', user: '${NOPE:-1000}', command: ['${FROM_ENV}', '${NOPE-d}', '${EMPTY-d}', '${EMPTY:-d}', '${FROM_ENV:+set}', '${EMPTY+set}', '${NOPE:-${EMPTY:-deep}}', '$$X', '$FROM_ENV.x']}}\n",
		"services:\n  a: {extends: {file: other.yaml, service: base}, environment: {B: own}, command: own, ports: ['91:91'], volumes: ['./y:/x']}\n  db: {image: d}\nvolumes: {data: }\n",
		"x-a: &a {image: i, environment: &e {A: 1}}\nservices:\n  a: {<<: *a, environment: {<<: *e, B: 2}}\n  b: {<<: [*a], image: own}\n",
		"services: {a: {image: b, ports: [80, '81', '8082:82', '127.0.0.1:8083:83', '84-86', '9000-9001:87-88', '[::1]:89:89', {target: 90, published: '91'}], healthcheck: {disable: true}}}\n",
		"services: {a: {image: b, depends_on: {b: {condition: service_started, required: false}}, links: [c]}, b: {image: x, healthcheck: {test: NONE}}, c: {image: y, healthcheck: {test: [NONE]}}}\n",
		"services: {a: {image: b, mem_limit: 512m}, b: {image: b, mem_limit: 1gb}, c: {image: b, mem_limit: 1048576}, d: {image: b, mem_limit: 1.5g}, e: {image: b, mem_limit: 64k}}\n",
		"services: {a: {image: b, tmpfs: /one, volumes: [/two, {type: tmpfs, target: /three}]}, b: {image: b, tmpfs: [/one, '/two:size=1m']}}\n",
		"name: x\nservices:\n  a:\n    image: b\n    command: |\n      sh\n      -c \"x y\"\n",
	}
}

func TestVariablesAreWhatTheReferenceImplementationMakesOfThem(t *testing.T) {
	env := map[string]string{"A": "a", "EMPTY": "", "B_2": "b $A"}
	for _, text := range expansions() {
		sameExpansion(t, env, text)
	}
}

func expansions() []string {
	return []string{
		"", "$", "$$", "$$$", "$A", "${A}", "$A$B_2", "${B_2}x", "$AB", "$1", "${A:-x}", "${NOPE:-x}", "${NOPE-x}", "${EMPTY-x}", "${EMPTY:-x}", "${A+x}", "${EMPTY+x}", "${EMPTY:+x}", "${NOPE+x}", "${NOPE:?no}",
		"${A:?no}", "${EMPTY?no}", "${EMPTY:?no}", "${", "${}", "${A", "${1}", "${A!}", "${NOPE:-${A}}", "${NOPE:-${NOPE:-${A}x}y}z", "${NOPE:-}", "a$", "$ a", "${NOPE:-a b}", "${NOPE:-$A}", "$$A", "$${A}", "${NOPE:-$$}", "${A:-}}", "${NOPE:-{}}", "${A+{}0}", `${NOPE:-{"a": {"b": 1}}}x`, "${NOPE:-{a}${A}}y",
	}
}

// sameExpansion fails unless a text becomes what compose-go makes of it, or an
// error on both sides.
func sameExpansion(t *testing.T, env map[string]string, text string) {
	t.Helper()
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	ours, err := (&variables{environ: lookup}).expand(text)
	theirs, referr := template.Substitute(text, template.Mapping(lookup))
	if (err == nil) != (referr == nil) || err == nil && ours != theirs {
		t.Errorf("%q is %q (%v), and %q (%v) by compose-go", text, ours, err, theirs, referr)
	}
}

func TestEnvFilesAreWhatTheReferenceImplementationMakesOfThem(t *testing.T) {
	lookup := func(name string) (string, bool) { return "from env", name == "FROM_ENV" }
	for _, text := range []string{envFile, "A=1\r\nB=2\r\n", "A='x'\nB=\"$A\"\nC='$A'\n", "A=a b c\n", "A=\n", "A=1\nA=2\n", "A=\"x\\$y\"\n", "\ufeffA=1\n", "A=b'c'\n", "A=x\\ny\n", "A: 1\n"} {
		pairs, err := readEnv("a.env", []byte(text), lookup, false, nil)
		ours := map[string]string{}
		for _, kv := range pairs {
			ours[kv[0]] = kv[1]
		}
		theirs, referr := dotenv.ParseWithLookup(strings.NewReader(text), lookup)
		if (err == nil) != (referr == nil) || err == nil && !maps.Equal(ours, theirs) {
			t.Errorf("%q is %q (%v), and %q (%v) by compose-go", text, ours, err, theirs, referr)
		}
	}
}
