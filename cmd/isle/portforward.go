package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newPortForward(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "port-forward ENV [LOCAL:]PORT",
		Short: "Reach a port inside from 127.0.0.1, published or not",
		Example: `  isle port-forward shop 5432 -s db
  isle port-forward shop 15432:5432 -s db`,
		Args: args(2, 2, "an environment and a port"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			local, inside, err := portPair(given[1])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if err := checkService(cmd.Context(), c, ref, service); err != nil {
				return err
			}
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(local)))
			if err != nil {
				return isle.Errorf(isle.Conflict, "cannot listen on 127.0.0.1:%d: %w", local, err).
					WithHint("choose another port: isle port-forward %s LOCAL:%d, or 0 for any", ref, inside)
			}
			stop := context.AfterFunc(cmd.Context(), func() { l.Close() })
			defer stop()
			port := l.Addr().(*net.TCPAddr).Port
			if a.output == "json" {
				if err := a.json(map[string]int{"local": port, "port": inside}); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(a.stdout, "127.0.0.1:%d leads to port %d of %s; end with Ctrl-C\n", port, inside, ref)
			}
			return a.forward(cmd.Context(), c, l, &islev1.PortStart{Environment: ref.String(), Service: service, Port: int32(inside)})
		},
	}
	cmd.Flags().StringVarP(&service, "service", "s", "", "service (default: the first declared; all share one network)")
	return cmd
}

// checkService fails now, rather than at the first connection, where there is no
// such environment or service.
func checkService(ctx context.Context, c *api.Client, ref isle.Ref, service string) error {
	res, err := c.Environments.Get(ctx, connect.NewRequest(&islev1.GetRequest{Environment: ref.String()}))
	if err != nil || service == "" {
		return err
	}
	var names []string
	for _, s := range res.Msg.GetEnvironment().GetServices() {
		if s.GetName() == service {
			return nil
		}
		names = append(names, s.GetName())
	}
	return isle.Errorf(isle.NotFound, "environment %s has no service %s", ref, service).WithHint("it has: %s", strings.Join(names, ", "))
}

// portPair reads [LOCAL:]PORT.
func portPair(s string) (local, inside int, err error) {
	l, r, ok := strings.Cut(s, ":")
	if !ok {
		r = l
	}
	local, lerr := strconv.Atoi(l)
	inside, rerr := strconv.Atoi(r)
	if lerr != nil || rerr != nil || local < 0 || local > 65535 || inside < 1 || inside > 65535 {
		return 0, 0, usagef("%q: want PORT or LOCAL:PORT, for example 15432:5432", s)
	}
	return local, inside, nil
}

// forward serves connections until the listener closes.
func (a *app) forward(ctx context.Context, c *api.Client, l net.Listener, start *islev1.PortStart) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return isle.Errorf(isle.Unavailable, "cannot accept connections: %w", err)
		}
		open.Go(func() {
			defer conn.Close()
			if err := carry(ctx, c, conn, start); err != nil && ctx.Err() == nil {
				flat := api.Flatten(err)
				fmt.Fprintf(a.stderr, "isle: %s\n", clean(flat.Message))
			}
		})
	}
}

// carry copies both ways between conn and a port inside until one side ends.
func carry(ctx context.Context, c *api.Client, conn net.Conn, start *islev1.PortStart) error {
	ctx, cancel := context.WithCancel(ctx)
	stream := c.Environments.PortForward(ctx)
	defer func() { // a cancelled stream is noticed by who reads it
		cancel()
		stream.CloseRequest()
		stream.CloseResponse()
	}()
	if err := stream.Send(&islev1.PortInput{Input: &islev1.PortInput_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends when conn is closed, which the caller does
		sendFrom(conn, func(b []byte) error { return stream.Send(&islev1.PortInput{Input: &islev1.PortInput_Data{Data: b}}) })
		stream.CloseRequest() // a request that goes on outlives its context
	}()
	return receiveTo(conn, func() ([]byte, error) {
		m, err := stream.Receive()
		return m.GetData(), err
	})
}
