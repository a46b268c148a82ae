package main

import (
	"github.com/spf13/cobra"

	"isle/internal/spec"
)

func newSchema(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of isle.yaml, for editors",
		Example: `  isle schema > isle.schema.json
  # then, as the first line of isle.yaml:
  # yaml-language-server: $schema=isle.schema.json`,
		Args: args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(spec.Schema())
			return err
		},
	}
}
