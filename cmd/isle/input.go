package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"isle"
)

// read reads a file that a command names, "-" for standard input: max bytes of
// it at most, and one more where there are more.
func (a *app) read(file string, max int64) ([]byte, error) {
	in := io.Reader(a.stdin)
	if file != "-" {
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			return nil, isle.Errorf(isle.NotFound, "there is no file %s", file)
		}
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot read %s: %w", file, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, max+1))
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read %s: %w", file, err)
	}
	return b, nil
}

// typed says whether somebody at a terminal answers.
func (a *app) typed() bool { return term.IsTerminal(int(a.stdin.Fd())) }

// askUnseen asks at the terminal for a line that it does not show. The terminal
// shows again what is typed when it returns, also where it is interrupted. An
// error that is no *isle.Error says that nothing was typed.
func (a *app) askUnseen(ctx context.Context, question string) ([]byte, error) {
	fd := int(a.stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot turn off the terminal's echo: %w", err)
	}
	fmt.Fprint(a.stderr, question)
	defer fmt.Fprintln(a.stderr)
	b, err := await(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		term.Restore(fd, before)
		return nil, ctx.Err()
	}
	return b, err
}

// readLine reads a line from standard input.
func (a *app) readLine(ctx context.Context) (string, error) {
	return await(ctx, func() (string, error) { return bufio.NewReaderSize(a.stdin, 16).ReadString('\n') })
}

// await returns what f does, or when ctx ends. What f waits for then, it waits
// for until the process ends.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	got := make(chan answer, 1)
	go func() { // ends with f, or the process
		v, err := f()
		got <- answer{v, err}
	}()
	select {
	case x := <-got:
		return x.v, x.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
