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
	"isle/internal/compose"
	"isle/internal/problem"
)

func newConvert(a *app) *cobra.Command {
	var out string
	var profiles []string
	cmd := &cobra.Command{
		Use:   "convert [DIR|FILE]",
		Short: "Write the isle.yaml that a Compose file or devcontainer.json means",
		Long: `Write the isle.yaml that a Compose file or a devcontainer.json means. What is done in
another way, left out or missing is at its top, as comments, and on standard error,
each with its line, the reason and what to do: a start to go on from.

isle up, run, build and lock take such a file as it is, unless something is refused.`,
		Example: `  isle convert                           to standard output
  isle convert compose.yaml -w isle.yaml
  isle up compose.yaml`,
		Args: args(0, 1, "at most one folder or file"),
		RunE: func(cmd *cobra.Command, given []string) error {
			file, over, err := findConverted(first(given))
			if err != nil {
				return err
			}
			c, dir, err := convertFile(file, over, profiles)
			if err != nil {
				return err
			}
			for _, s := range c.Secrets {
				c.Notes = append(c.Notes, compose.Note{
					Kind: compose.Differs, File: file, Service: s.Service, Key: "build.secrets", Reason: s.ID + " (" + s.From + ") is in no isle.yaml: whoever builds gives it",
					Do: "isle up --secret id=" + s.ID + ",src=FILE, or env=NAME; or keep it in the server, and name it under build: secrets",
				})
			}
			return a.showConversion(c, dir, out)
		},
	}
	cmd.Flags().StringVarP(&out, "write", "w", "", "write this file, which must not be there, in place of standard output")
	addProfiles(cmd, &profiles)
	return cmd
}

// addProfiles adds --profile.
func addProfiles(cmd *cobra.Command, profiles *[]string) {
	cmd.Flags().StringSliceVar(profiles, "profile", nil, "services of a Compose file with this profile too (COMPOSE_PROFILES); * is all")
}

// findConverted is the file that [DIR|FILE] names, and what is laid over it.
func findConverted(arg string) (file string, over []string, err error) {
	if arg == "" {
		arg = "."
	}
	st, err := os.Stat(arg)
	if err != nil {
		return "", nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", arg, cause(err)).WithHint("name a Compose file or a devcontainer.json, or the folder of one")
	}
	if !st.IsDir() {
		return arg, nil, nil
	}
	name, over := compose.Find(arg)
	if name == "" {
		return "", nil, isle.Errorf(isle.NotFound, "there is no Compose file and no devcontainer.json in %s", arg).WithHint("name one; `isle init` writes an isle.yaml to start from")
	}
	return filepath.Join(arg, filepath.FromSlash(name)), over, nil
}

// convertFile reads a file of another tool's.
func convertFile(file string, over, profiles []string) (c compose.Conversion, dir string, err error) {
	if v := os.Getenv("COMPOSE_PROFILES"); v != "" && len(profiles) == 0 {
		profiles = strings.Split(v, ",")
	}
	dir, name := compose.Folder(file)
	c, err = compose.Convert(compose.Source{Dir: dir, Name: name, Over: over, Profiles: profiles, Environ: os.LookupEnv})
	// Places are told as they are found from here.
	if fe, ok := errors.AsType[*problem.FileError](err); ok {
		fe.File = filepath.Join(dir, filepath.FromSlash(fe.File))
	}
	for i, n := range c.Notes {
		c.Notes[i].File = filepath.Join(dir, filepath.FromSlash(n.File))
	}
	return c, dir, err
}

// readConverted is the project of a file of another tool's.
func readConverted(file string, over, profiles []string) (*project, error) {
	c, dir, err := convertFile(file, over, profiles)
	if err == nil {
		err = c.Err()
	}
	if err != nil {
		return nil, err
	}
	base := filepath.Base(file)
	p := &project{
		path: file, dir: dir, data: c.YAML, file: c.File, laid: over, profiles: profiles, notes: c.Notes, ofFile: c.Secrets,
		// In the project's folder, whereever the file is: a build's context may
		// be that folder, and the lock there is no part of it.
		lockPath: filepath.Join(dir, strings.TrimPrefix(strings.TrimSuffix(base, filepath.Ext(base)), ".")+".lock"),
	}
	for _, name := range c.Reads {
		p.reads = append(p.reads, filepath.Join(dir, filepath.FromSlash(name)))
	}
	return p, nil
}

// tell says on standard error what of another tool's file is done in another
// way or left out.
func (a *app) tell(p *project) {
	if a.output != "json" {
		a.tellNotes(p.notes)
	}
}

func (a *app) tellNotes(notes []compose.Note) {
	for _, n := range notes {
		fmt.Fprintf(a.stderr, "%s: %s\n", n.Kind, cleanLine(n.String()))
	}
}

type conversionJSON struct {
	File  string         `json:"file,omitempty"` // that was written
	YAML  string         `json:"yaml"`
	Notes []compose.Note `json:"notes"`
}

func (a *app) showConversion(c compose.Conversion, dir, out string) error {
	text := c.Commented()
	if out != "" {
		if err := writeNew(out, text); err != nil {
			return err
		}
	}
	if a.output == "json" {
		if c.Notes == nil {
			c.Notes = []compose.Note{}
		}
		return a.json(conversionJSON{out, string(text), c.Notes})
	}
	a.tellNotes(c.Notes)
	if out == "" {
		_, err := a.stdout.Write(text)
		return err
	}
	fmt.Fprintf(a.stdout, "%s is written\n", out)
	if abs, err := filepath.Abs(filepath.Dir(out)); err == nil {
		if from, err := filepath.Abs(dir); err == nil && from != abs {
			fmt.Fprintf(a.stdout, "  its paths are relative to %s: keep it there\n", dir)
		}
	}
	return nil
}

// writeNew writes a file that is not there yet.
func writeNew(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return isle.Errorf(isle.Conflict, "%s is there already", name).WithHint("remove it first, or name another file")
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot write %s: %w", name, cause(err))
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return isle.Errorf(isle.Exhausted, "cannot write %s: %w", name, err)
	}
	return nil
}
