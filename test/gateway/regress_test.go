package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"isle/test/lab"
)

// everyStatement are the words for what statements do, in rules.
const everyStatement = "select, insert, update, delete, merge, truncate, copy-in, copy-out, ddl, set, show, transaction, explain, call, do, " +
	"listen, notify, lock, prepare, execute, cursor, maintenance, role, large-object, function-call, other"

// PostgreSQL's own regression SQL gives the same output through the gateway as
// directly, but for what testdata/explained.txt lists with its reason. It runs
// as an ordinary role: the gateway refuses a superuser. What needs the test
// library or a superuser fails alike on both sides, which compares as well.
func TestPostgresRegressionSQLGivesTheSameOutputThroughTheGateway(t *testing.T) {
	source := regressionSource(t)
	direct, through := regressionServer(t, source), regressionServer(t, source)
	secret(t, "regression", "regress")
	apply(t, "regression", "connections:\n"+connection("regression", through, "regression", "regress",
		`rules: [{effect: allow, statements: [`+everyStatement+`]}]`, `functions: ["*"]`)+`
roles:
  regression: {actions: [connection:open, postgres:select, postgres:write, postgres:schema, postgres:admin], resources: ["connection:regression"]}
bindings:
  - {role: regression, subjects: [human:root]}
`)
	outs := map[string]string{}
	script, err := filepath.Abs("testdata/regress.sh")
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, cmd *exec.Cmd) func() error {
		outs[name] = t.TempDir()
		return func() error {
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", name, err, out)
			}
			return nil
		}
	}
	one := exec.Command(script, "", source)
	one.Env = append(os.Environ(), "PGHOST="+direct.Dir, "PGPORT="+strconv.Itoa(direct.Port), "PGUSER=regress", "PGDATABASE=regression")
	two := world.Command("connect", "regression", "--", script, "", source)
	runs := []func() error{run("direct", one), run("through", two)}
	one.Args[1] = outs["direct"]
	two.Args[slices.Index(two.Args, script)+1] = outs["through"]
	done := make(chan error)
	for _, r := range runs {
		go func() { done <- r() }()
	}
	for range runs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if !t.Failed() {
		compare(t, outs["direct"], outs["through"])
	}
}

// compare reports every line that differs and is not explained.
func compare(t *testing.T, direct, through string) {
	why := explanations(t)
	used := make([]int, len(why))
	truth := regexp.MustCompile(`^[-+] [tf]$`)
	files, err := os.ReadDir(direct)
	if err != nil {
		t.Fatal(err)
	}
	// Which number a session's schema for temporary tables has, a table's for large
	// values, and a foreign key's trigger, is chance.
	chance := regexp.MustCompile(`\b(pg_temp|pg_toast|pg_toast_temp|RI_ConstraintTrigger_[ac])_[0-9]+\b`)
	same, lines := 0, 0
	for _, f := range files {
		for _, dir := range []string{direct, through} {
			path := filepath.Join(dir, f.Name())
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, chance.ReplaceAll(b, []byte("${1}_N")), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("diff", "-U0", "--label", "direct", "--label", "through", filepath.Join(direct, f.Name()), filepath.Join(through, f.Name())).Output()
		if err == nil {
			same++
			continue
		}
		var odd []string
		for line := range strings.Lines(string(out)) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(line, "@@") || strings.HasPrefix(line, "---") || strings.HasPrefix(line, "+++") {
				continue
			}
			if f.Name() == "stats.out" && truth.MatchString(line) {
				continue // whether a number has grown already: the server writes them when it finds the time
			}
			i := slices.IndexFunc(why, func(e explanation) bool {
				return (e.file == "*" || e.file+".out" == f.Name()) && e.line.MatchString(line)
			})
			if i < 0 {
				odd = append(odd, line)
			} else {
				used[i]++
				lines++
			}
		}
		if len(odd) > 0 {
			t.Errorf("%s: %d lines differ and nothing explains it, the first:\n%s", f.Name(), len(odd), strings.Join(odd[:min(len(odd), 12)], "\n"))
		}
	}
	for i, e := range why {
		if used[i] == 0 {
			t.Errorf("testdata/explained.txt:%d explains what does not differ", e.at)
		}
	}
	if len(files) < 200 {
		t.Errorf("only %d files ran", len(files))
	}
	t.Logf("%d of %d files are the same, %d lines differ and are explained", same, len(files), lines)
}

// An explanation is a pattern of lines of a diff that may differ.
type explanation struct {
	file string
	line *regexp.Regexp
	at   int
}

// explanations reads testdata/explained.txt: FILE PATTERN, with the reason above.
func explanations(t *testing.T) (out []explanation) {
	b, err := os.ReadFile("testdata/explained.txt")
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	for at := 1; s.Scan(); at++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		file, pattern, ok := strings.Cut(line, " ")
		re, err := regexp.Compile(strings.TrimSpace(pattern))
		if !ok || err != nil {
			t.Fatalf("testdata/explained.txt:%d: %v", at, err)
		}
		out = append(out, explanation{file, re, at})
	}
	return out
}

// regressionServer is a PostgreSQL with the database that the SQL starts from.
func regressionServer(t *testing.T, source string) *lab.PG {
	// Vacuuming by itself would change plans and numbers by chance.
	pg := lab.Postgres(t, "timezone=America/Los_Angeles", "autovacuum=off")
	pg.Must(t, "postgres", "create role regress login password 'regress'; create database regression owner regress template template0 locale 'C'")
	pg.Must(t, "regression", "alter database regression set lc_messages to 'C'; alter database regression set bytea_output to 'hex'; alter database regression set timezone_abbreviations to 'Default'")
	setup, err := os.Open(filepath.Join(source, "sql", "test_setup.sql"))
	if err != nil {
		t.Fatal(err)
	}
	defer setup.Close()
	cmd := exec.Command("psql", "-X", "-q", "-h", pg.Dir, "-p", strconv.Itoa(pg.Port), "-U", "postgres", "-d", "regression")
	cmd.Env = append(os.Environ(), "PG_ABS_SRCDIR="+source, "PG_LIBDIR=/nonexistent", "PG_DLSUFFIX=.so")
	cmd.Stdin = setup
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("test_setup: %v\n%s", err, out)
	}
	pg.Must(t, "regression", `do $$ declare s text; begin
		for s in select format('alter table %I owner to regress', relname) from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'p')
			union all select 'alter function ' || oid::regprocedure || ' owner to regress' from pg_proc where pronamespace = 'public'::regnamespace
		loop execute s; end loop; end $$`)
	return pg
}

// regressionSource is src/test/regress of the sources of the PostgreSQL that is
// installed, from Debian's source package; it is kept for later runs.
func regressionSource(t *testing.T) string {
	version, err := exec.Command("dpkg-query", "-W", "-f", "${source:Package}=${source:Version}", "postgresql-15").Output()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(lab.Cache("postgresql-source"), strings.NewReplacer("=", "-", ":", "-", "/", "-").Replace(string(version)))
	regress := filepath.Join(cache, "regress")
	if _, err := os.Stat(filepath.Join(regress, "parallel_schedule")); err == nil {
		return readable(t, regress)
	}
	work := t.TempDir()
	if err := os.MkdirAll(filepath.Join(work, "sources"), 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	if err != nil {
		t.Fatal(err)
	}
	// What this machine takes packages from has their sources too.
	types := regexp.MustCompile(`(?m)^Types:.*$`)
	for _, file := range list {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte("debian-archive-keyring")) {
			continue
		}
		if err := os.WriteFile(filepath.Join(work, "sources", filepath.Base(file)), types.ReplaceAll(b, []byte("Types: deb-src")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	apt := func(args ...string) {
		t.Helper()
		cmd := exec.Command("apt-get", append([]string{"-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + work + "/sources",
			"-o", "Dir::State::lists=" + work + "/lists", "-o", "Dir::Cache=" + work + "/cache", "-o", "APT::Sandbox::User=root"}, args...)...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apt-get %v: %v\n%s", args, err, out)
		}
	}
	apt("update")
	apt("source", "--download-only", string(version))
	archive, err := filepath.Glob(filepath.Join(work, "*.orig.tar.*"))
	if err != nil || len(archive) != 1 {
		t.Fatalf("the source package has %v, %v", archive, err)
	}
	if out, err := exec.Command("tar", "-xf", archive[0], "-C", work, "--wildcards", "*/src/test/regress/*").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	found, err := filepath.Glob(filepath.Join(work, "*", "src", "test", "regress"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the sources have %v, %v", found, err)
	}
	os.RemoveAll(cache)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", found[0], regress+".new").CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	if err := os.Rename(regress+".new", regress); err != nil {
		t.Fatal(err)
	}
	return readable(t, regress)
}

// readable is a copy of a folder for whom a cache of root's is closed to: the
// server of a database reads its data from there.
func readable(t *testing.T, from string) string {
	to, err := os.MkdirTemp("", "isle-regress-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(to) })
	for _, args := range [][]string{{"cp", "-r", from + "/.", to}, {"chmod", "-R", "a+rX", to}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return to
}
