package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
)

// A usageError is a command line that cannot be understood: exit code 2.
type usageError struct{ cause *isle.Error }

func (e usageError) Error() string { return e.cause.Error() }
func (e usageError) Unwrap() error { return e.cause }

// WithHint returns a copy that says what to do next.
func (e usageError) WithHint(format string, args ...any) usageError {
	return usageError{e.cause.WithHint(format, args...)}
}

// usagef makes a usageError.
func usagef(format string, args ...any) usageError {
	return usageError{isle.Errorf(isle.Invalid, format, args...)}
}

// asUsage says that err is the command line's fault.
func asUsage(err error) error {
	if e, ok := errors.AsType[*isle.Error](err); ok {
		return usageError{e}
	}
	return usagef("%v", err)
}

// finish reports err and returns the exit code. The message goes to standard
// error, followed by what to do next; with -o json it is one object there,
// {"error":{"code","message","hint"}}, so that standard output holds results only.
func (a *app) finish(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || isle.CodeOf(err) == isle.Unavailable || isle.CodeOf(err) == isle.Internal) {
		return 128 + 2 // as a shell reports a program ended by SIGINT
	}
	if strings.HasPrefix(err.Error(), "unknown command ") { // cobra has no type for it
		err = usagef("%s", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", " ")).WithHint("see `%s --help`", parentOf(err.Error()))
	}
	flat := api.Flatten(err)
	if a.output == "json" {
		b, _ := json.Marshal(map[string]any{"error": map[string]string{"code": string(flat.Code), "message": flat.Message, "hint": flat.Hint}})
		fmt.Fprintf(a.stderr, "%s\n", b)
	} else {
		fmt.Fprintf(a.stderr, "isle: %s\n", clean(flat.Message))
		if flat.Hint != "" {
			fmt.Fprintf(a.stderr, "  next: %s\n", clean(flat.Hint))
		}
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if flat.Code == isle.Refused {
		return exitRefused
	}
	if flat.Code == isle.Held {
		return exitAwaiting
	}
	return exitFailed
}

// clean takes control characters out of text that may come from inside an
// environment, so that it cannot steer the terminal, nor show itself in another
// order than it has (Unicode's bidirectional controls). Lines and tabs stay.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		if r < 0x20 || r >= 0x7f && r < 0xa0 || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) {
			return '·'
		}
		return r
	}, s)
}

// cleanLine is clean for what has to stay one line: what comes from outside
// begins no line that looks like another entry.
func cleanLine(s string) string {
	return strings.NewReplacer("\n", "·", "\t", " ").Replace(clean(s))
}

// cleanCell is clean for a cell of a table: it ends no row, and begins no column.
func cleanCell(s string) string {
	return strings.NewReplacer("\n", " ", "\t", " ").Replace(clean(s))
}

// args makes a positional-argument check whose failure is a usage error.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if len(given) < least || most >= 0 && len(given) > most {
			return usagef("%s takes %s, not %d arguments", cmd.CommandPath(), what, len(given)).WithHint("see `%s --help`", cmd.CommandPath())
		}
		return nil
	}
}

// parentOf is the command that cobra's message about an unknown one names:
// `unknown command "show" for "isle secret"`.
func parentOf(message string) string {
	line, _, _ := strings.Cut(message, "\n")
	if _, quoted, ok := strings.Cut(line, " for "); ok {
		if name, err := strconv.Unquote(strings.TrimSpace(quoted)); err == nil {
			return name
		}
	}
	return "isle"
}
