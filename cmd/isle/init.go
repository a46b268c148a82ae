package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"isle"
)

func newInit(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a commented isle.yaml for a folder",
		Args:  args(0, 1, "at most one folder"),
		RunE: func(cmd *cobra.Command, given []string) error {
			dir := "."
			if len(given) > 0 {
				dir = given[0]
			}
			abs, err := filepath.Abs(dir)
			if err != nil {
				return isle.Errorf(isle.Invalid, "%s: %w", dir, err)
			}
			name := filepath.Join(dir, fileName)
			f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return isle.Errorf(isle.Conflict, "%s is there already", name).WithHint("edit it, or remove it first")
			}
			if err != nil {
				return isle.Errorf(isle.Unavailable, "cannot write %s: %w", name, cause(err))
			}
			kind := recognize(abs)
			_, err = f.WriteString(kind.file(isle.Slug(filepath.Base(abs))))
			if err := errors.Join(err, f.Close()); err != nil {
				return isle.Errorf(isle.Exhausted, "cannot write %s: %w", name, err)
			}
			if a.output == "json" {
				return a.json(map[string]string{"file": name, "kind": kind.name})
			}
			fmt.Fprintf(a.stdout, "%s is written (%s)\n  next: read it, then isle up %s\n", name, kind.name, strings.TrimSuffix(dir, "."))
			return nil
		},
	}
}

// A kind is what sort of project a folder holds.
type kind struct {
	name     string
	marks    []string // files that say so
	packages string
	command  string
	run      string // build step; "" for none
}

// recognize looks at the names in a folder.
func recognize(dir string) kind {
	kinds := []kind{
		{"Python", []string{"requirements.txt", "pyproject.toml", "setup.py", "*.py"}, "python3", "[python3, -m, http.server, \"8080\"]", "python3 -m compileall -q /app"},
		{"Node.js", []string{"package.json", "*.js"}, "nodejs", "[node, index.js]", ""},
		{"Ruby", []string{"Gemfile", "*.rb"}, "ruby", "[ruby, -run, -e, httpd, ., -p, \"8080\"]", ""},
		{"PHP", []string{"composer.json", "*.php"}, "php-cli", "[php, -S, \"0.0.0.0:8080\"]", ""},
	}
	for _, k := range kinds {
		for _, m := range k.marks {
			if found, _ := filepath.Glob(filepath.Join(dir, m)); len(found) > 0 { // the patterns are well formed
				return k
			}
		}
	}
	return kind{"static files", nil, "python3", "[python3, -m, http.server, \"8080\"]", ""}
}

// file is a commented isle.yaml.
func (k kind) file(name string) string {
	run := "    # run: [\"make\"]                          # build steps: sealed, without network\n"
	if k.run != "" {
		run = fmt.Sprintf("    run: [%s]   # build steps: sealed, without network\n", k.run)
	}
	return fmt.Sprintf(`# An environment of %[1]s. isle up launches it; isle schema describes every key.
name: %[1]s                      # the project

services:
  web:
    packages: [%[2]s]            # Debian packages, locked by hash in isle.lock
    copy: [{from: ./, to: /app}]   # into the image; .isleignore leaves files out
%[3]s    workdir: /app
    command: %[4]s
    ports: {http: 8080}            # published on 127.0.0.1
    healthcheck: {tcp: 8080}       # isle up waits for it
    # user: nobody                 # default: root of a user namespace of its own
    # env: {KEY: value}
    # volumes: {/data: {size: 1GiB}}   # the only things that can be written, beside
    # tmpfs: [/var/cache/app]          # /tmp, /run and /dev/shm
    # depends_on: [db]
    # restart: on-failure

# egress: [api.example.com:443]    # nothing else outside can be reached
limits: {cpus: 1, memory: 512MiB, pids: 256}
ttl: 8h                            # then it is torn down; volumes stay seven days
`, name, k.packages, run, k.command)
}
