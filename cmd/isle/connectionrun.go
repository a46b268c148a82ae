package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// postgresSocket is the name that clients of PostgreSQL give a socket in a folder
// that PGHOST names, for the port that PGPORT names (libpq's manual, "host").
const postgresSocket = ".s.PGSQL.5432"

// runWith runs a program that finds the connection by its variables, and passes
// its exit code on.
func (a *app) runWith(ctx context.Context, w *wire, conn *islev1.Connection, o connecting) error {
	command := o.command
	postgres := conn.GetKind() == "postgres"
	switch {
	case len(command) == 0:
		command = []string{"psql"}
	case strings.HasPrefix(command[0], "-"):
		if !postgres {
			return usagef("%s is no PostgreSQL: what is behind -- is a command", conn.GetName())
		}
		command = append([]string{"psql"}, command...)
	}
	program, err := exec.LookPath(command[0])
	if err != nil {
		e := isle.Errorf(isle.NotFound, "there is no %s on this machine", command[0])
		if command[0] == "psql" {
			return e.WithHint("install it (Debian: postgresql-client), or use another client with `isle connect %s --listen 127.0.0.1:0`", conn.GetName())
		}
		return e
	}
	address, end, err := a.place(postgres, o.listen)
	if err != nil {
		return err
	}
	defer end()
	l, err := listenOwn(ctx, address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // an interrupt is the program's
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		w.serve(ctx, l)
	}()
	defer func() {
		cancel()
		<-done
	}()
	return a.runChild(program, command, append(clientVariables(os.Environ(), postgres), variablesOf(conn, l.Addr().String())...))
}

// place is where a program finds the connection, and what removes it again: for
// PostgreSQL a socket in a folder of the caller's own, else any free port.
func (a *app) place(postgres bool, listen string) (address string, end func(), err error) {
	switch {
	case listen != "":
		return listen, func() {}, nil
	case !postgres:
		return "127.0.0.1:0", func() {}, nil
	}
	dir, err := os.MkdirTemp("", "isle-connect-") // 0700
	if err != nil {
		return "", nil, isle.Errorf(isle.Unavailable, "cannot make a folder for the socket: %w", err)
	}
	return filepath.Join(dir, postgresSocket), func() { os.RemoveAll(dir) }, nil
}

// runChild runs a program in place of this one. A terminal's signals reach both:
// what an interrupt means is the program's to say, as psql's end of a statement.
func (a *app) runChild(program string, command, environ []string) error {
	cmd := &exec.Cmd{Path: program, Args: command, Env: environ, Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return isle.Errorf(isle.Failed, "cannot run %s: %w", command[0], err)
	}
	ended := make(chan struct{})
	forwarded := make(chan struct{})
	go func() { // ends with the program
		defer close(forwarded)
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGTERM || s == syscall.SIGHUP { // a terminal sends the others to it as well
					cmd.Process.Signal(s)
				}
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-forwarded
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return exitError(128 + int(s.Signal()))
		}
		return exitError(exit.ExitCode())
	}
	return err
}

// clientVariables are the caller's own, without those that would lead a client of
// PostgreSQL elsewhere or have it ask for what a local socket has not.
func clientVariables(environ []string, postgres bool) (out []string) {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGREQUIRESSL",
			"PGREQUIREAUTH", "PGREQUIREPEER", "PGCHANNELBINDING", "PGSSLNEGOTIATION", "PGGSSENCMODE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS":
			if postgres {
				continue
			}
		default:
			if postgres && strings.HasPrefix(name, "PGSSL") {
				continue
			}
		}
		out = append(out, kv)
	}
	return out
}

// variablesOf say where a connection is. Who the user is the gateway knows.
func variablesOf(conn *islev1.Connection, address string) []string {
	out := []string{"ISLE_CONNECT_ADDRESS=" + address}
	switch conn.GetKind() {
	case "postgres":
		host, port := filepath.Dir(address), "5432"
		if p := portOf(address); p != "" {
			host, port = strings.Trim(strings.TrimSuffix(address, ":"+p), "[]"), p
		}
		database := conn.GetDatabase()
		if database == "" {
			database = conn.GetName()
		}
		out = append(out, "PGHOST="+host, "PGPORT="+port, "PGDATABASE="+database, "PGUSER=isle", "PGSSLMODE=disable", "PGGSSENCMODE=disable")
	case "http":
		out = append(out, "ISLE_CONNECT_URL="+strings.TrimSuffix(urlOf(conn, address), "/"))
	}
	return out
}
