package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// connecting is how `isle connect` was asked for.
type connecting struct {
	listen  string // 127.0.0.1:PORT, [::1]:PORT or the path of a unix socket
	stdio   bool
	stage   string
	command []string // after --
}

func newConnect(a *app) *cobra.Command {
	var o connecting
	cmd := &cobra.Command{
		Use:   "connect [CONNECTION [-- COMMAND [ARG…]]]",
		Short: "Open a connection through the gateway, as yourself",
		Long: `Open a connection through the gateway: with psql where it is a PostgreSQL, at a port
of this machine else. Nothing of its credential is needed here, nor seen. Each client
that connects is a session: policy is asked, what is done is recorded, and what needs
a human's approval waits for it. Without a name the connections are listed that you
may open.

What is behind -- runs in place of psql, with PGHOST, PGPORT, PGDATABASE, PGUSER and
PGSSLMODE set for a PostgreSQL, ISLE_CONNECT_ADDRESS and ISLE_CONNECT_URL else; where
it begins with a dash, it is psql's arguments. Its exit code is passed through.

Only your own processes get through: psql and commands have a unix socket in a folder
that is yours alone, and at a port the owner of each client is looked up.`,
		Example: `  isle connect
  isle connect orders-db
  isle connect orders-db -- -c 'select count(*) from orders'
  isle connect orders-db -- pg_dump -t orders
  isle connect orders-db --listen 127.0.0.1:15432
  isle connect payments-api -- sh -c 'curl -sS $ISLE_CONNECT_URL/v1/balance'
  ssh -o ProxyCommand='isle connect build-host --stdio' build-host`,
		RunE: func(cmd *cobra.Command, given []string) error {
			before := given
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				before, o.command = given[:at], given[at:]
			}
			switch {
			case len(given) == 0 && o.listen == "" && !o.stdio && o.stage == "":
				return a.listConnections(cmd.Context())
			case len(before) != 1:
				return usagef("isle connect takes one connection, and a command behind --").WithHint("see `isle connect --help`")
			case o.stdio && (o.listen != "" || len(o.command) > 0):
				return usagef("--stdio stands alone: it is what the caller's own command reads and writes")
			}
			return a.openConnection(cmd.Context(), before[0], o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "", "address of this machine to listen at: 127.0.0.1:PORT, or the path of a unix socket")
	f.BoolVar(&o.stdio, "stdio", false, "carry one session over standard input and output")
	f.StringVar(&o.stage, "stage", "", "fail unless the connection is of this stage")
	return cmd
}

type connectionJSON struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	Stage    string `json:"stage"`
	Address  string `json:"address"`
	Database string `json:"database,omitempty"`
	Decision string `json:"decision"`
}

// listConnections lists those that the caller may open.
func (a *app) listConnections(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Connections.ListConnections(ctx, connect.NewRequest(&islev1.ListConnectionsRequest{}))
	if err != nil {
		return err
	}
	if len(res.Msg.GetConnections()) == 0 && a.output != "json" {
		fmt.Fprintln(a.stdout, "there is no connection that you may open")
		return nil
	}
	view := func(m *islev1.Connection) connectionJSON {
		return connectionJSON{m.GetName(), m.GetKind(), m.GetStage(), m.GetAddress(), m.GetDatabase(), m.GetDecision()}
	}
	return showList(a, res.Msg.GetConnections(), view, "connection\tkind\tstage\taddress\topens", func(m *islev1.Connection) []string {
		opens := "at once"
		if m.GetDecision() == string(isle.Hold) {
			opens = "once a human approves"
		}
		return []string{m.GetName(), m.GetKind(), m.GetStage(), m.GetAddress(), opens}
	})
}

// openConnection finds out now, rather than at the first client, whether the
// caller may open the connection, and then opens it in the way asked for.
func (a *app) openConnection(ctx context.Context, name string, o connecting) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := c.Connections.GetConnection(ctx, connect.NewRequest(&islev1.GetConnectionRequest{Connection: name}))
	if err != nil {
		return err
	}
	conn := res.Msg.GetConnection()
	if o.stage != "" && o.stage != conn.GetStage() {
		return isle.Errorf(isle.Conflict, "connection %s is of stage %s, not of %s", name, conn.GetStage(), o.stage)
	}
	w := &wire{client: c, start: &islev1.ConnectStart{Connection: conn.GetName(), Stage: o.stage}, said: a.stderr}
	switch {
	case o.stdio:
		return w.carry(ctx, stdio{a.stdin, a.stdout})
	case o.listen != "" && len(o.command) == 0:
		return a.listenFor(ctx, w, conn, o.listen)
	case len(o.command) > 0 || conn.GetKind() == "postgres":
		return a.runWith(ctx, w, conn, o)
	}
	return a.listenFor(ctx, w, conn, "127.0.0.1:0")
}

// listenFor serves the caller's own clients until the program is ended.
func (a *app) listenFor(ctx context.Context, w *wire, conn *islev1.Connection, address string) error {
	l, err := listenOwn(ctx, address)
	if err != nil {
		return err
	}
	defer l.Close()
	at := l.Addr().String()
	url := urlOf(conn, at)
	if a.output == "json" {
		out := map[string]any{"connection": conn.GetName(), "kind": conn.GetKind(), "address": at}
		if url != "" {
			out["url"] = url
		}
		if err := a.json(out); err != nil {
			return err
		}
	} else {
		shown := at
		if url != "" {
			shown = url
		}
		fmt.Fprintf(a.stdout, "%s leads to %s; end with Ctrl-C\n", shown, conn.GetName())
	}
	return w.serve(ctx, l)
}

// urlOf is what a client at an address calls the connection; "" if it has none.
func urlOf(conn *islev1.Connection, address string) string {
	if _, _, err := net.SplitHostPort(address); err != nil || conn.GetKind() != "http" {
		return ""
	}
	return "http://" + address + "/"
}

// A wire opens sessions of one connection.
type wire struct {
	client *api.Client
	start  *islev1.ConnectStart
	said   io.Writer // where it is told why a session ended
}

// serve serves clients until the listener closes or ctx ends.
func (w *wire) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return isle.Errorf(isle.Unavailable, "cannot accept connections: %w", err)
		}
		open.Go(func() {
			defer conn.Close()
			w.tell(ctx, w.carry(ctx, conn))
		})
	}
}

// tell says why a session ended, if it did not just end.
func (w *wire) tell(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	flat := api.Flatten(err)
	fmt.Fprintf(w.said, "isle: %s\n", clean(flat.Message))
	if flat.Hint != "" {
		fmt.Fprintf(w.said, "  next: %s\n", clean(flat.Hint))
	}
}

// carry copies both ways between a client and a session of its own until one side
// ends it. How the server ends it is the error.
func (w *wire) carry(ctx context.Context, client io.ReadWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	stream := w.client.Connections.Connect(ctx)
	defer func() { // a cancelled stream is noticed by who reads it
		cancel()
		stream.CloseRequest()
		stream.CloseResponse()
	}()
	if err := stream.Send(&islev1.ConnectInput{Input: &islev1.ConnectInput_Start{Start: w.start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends when the client is closed, which the caller does
		sendFrom(client, func(b []byte) error {
			return stream.Send(&islev1.ConnectInput{Input: &islev1.ConnectInput_Data{Data: b}})
		})
		stream.CloseRequest() // a request that goes on outlives its context
	}()
	return receiveTo(client, func() ([]byte, error) {
		m, err := stream.Receive()
		return m.GetData(), err
	})
}

// sendFrom sends what a client says until it says no more, or nothing more is taken.
func sendFrom(client io.Reader, send func([]byte) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := client.Read(buf)
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}

// receiveTo tells a client what comes until nothing more does. Of a message that is
// empty it learns that the other side says no more.
func receiveTo(client io.Writer, receive func() ([]byte, error)) error {
	for {
		b, err := receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case len(b) == 0:
			if half, ok := client.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
			continue
		}
		if _, err := client.Write(b); err != nil {
			return nil // it left
		}
	}
}

// stdio is this program's standard input and output as one connection.
type stdio struct {
	io.Reader
	out io.Writer
}

func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// CloseWrite implements the half of a connection's end.
func (s stdio) CloseWrite() error {
	if c, ok := s.out.(*os.File); ok {
		return c.Close()
	}
	return nil
}

// portOf is the port of HOST:PORT, for variables.
func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if _, nerr := strconv.Atoi(port); err != nil || nerr != nil {
		return ""
	}
	return port
}
