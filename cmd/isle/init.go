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
	"isle/internal/spec"
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
			_, err = f.Write(spec.Init(os.DirFS(abs), filepath.Base(abs)))
			if err := errors.Join(err, f.Close()); err != nil {
				return isle.Errorf(isle.Exhausted, "cannot write %s: %w", name, err)
			}
			if a.output == "json" {
				return a.json(map[string]string{"file": name})
			}
			fmt.Fprintf(a.stdout, "%s is written\n", name)
			fmt.Fprintln(a.stdout, strings.TrimRight("  next: read it, then isle up "+strings.TrimPrefix(dir, "."), " "))
			return nil
		},
	}
}
