package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"isle"
	"isle/internal/authority"
	"isle/internal/gateway"
	httpdoor "isle/internal/gateway/http"
	"isle/internal/gateway/postgres"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
	"isle/internal/store/sqlite"
)

// serveGateway is the gateway with what stands around it in a server: policy,
// audit log, sealed secrets and recordings, on a state folder of its own.
// target is where it leads: postgres://HOST:PORT or http://HOST:PORT.
func serveGateway(target string) error {
	kind, address, _ := strings.Cut(target, "://")
	dir, err := os.MkdirTemp("", "isle-bench-gateway-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	store, err := sqlite.Open(filepath.Join(dir, "isle.db"), sqlite.Config{})
	if err != nil {
		return err
	}
	defer store.Close()
	rules, err := authority.Open(ctx, authority.Config{Store: store, Log: quiet})
	if err != nil {
		return err
	}
	root := isle.Actor{Kind: isle.Human, Name: "root"}
	more := `credential: {secret: bench, user: bench}
    database: postgres
    mask: [{column: people.email, show: partial}]`
	if kind == "http" {
		more = `credential: {kind: bearer, secret: bench}`
	}
	text := fmt.Sprintf(`
connections:
  bench:
    kind: %s
    address: %q
    stage: testing
    tls: off
    %s
roles:
  bench: {actions: [connection:open, postgres:select, postgres:write, http:read], resources: ["connection:bench"]}
bindings:
  - {role: bench, subjects: [{project: bench, stage: testing}]}
`, kind, address, more)
	if _, err := rules.Apply(ctx, root, authority.Request{Document: policy.Document{Name: "bench", Format: policy.YAML, Body: []byte(text)}}); err != nil {
		return err
	}
	key, err := secret.UseKey(ctx, secret.KeyConfig{Store: store, Path: filepath.Join(dir, "key"), Log: quiet})
	if err != nil {
		return err
	}
	secrets, err := secret.Open(ctx, secret.Config{Store: store, Sealer: key, Log: store, Slog: quiet})
	if err != nil {
		return err
	}
	if _, err := secrets.Set(ctx, root, "bench", []byte("bench")); err != nil {
		return err
	}
	sessions, err := session.Open(ctx, session.Config{Dir: filepath.Join(dir, "recordings"), Log: store, Sealer: key, Slog: quiet})
	if err != nil {
		return err
	}
	defer sessions.Close()
	words := grammar.New()
	if kind == "postgres" {
		if err := words.Warm(); err != nil {
			return err
		}
	}
	g := gateway.New(gateway.Config{
		Policy: rules, Sessions: sessions, Log: store, Secrets: secrets, Slog: quiet,
		Protocols: map[string]gateway.Protocol{
			"postgres": postgres.New(postgres.Config{Grammar: words, Slog: quiet}),
			"http":     httpdoor.New(httpdoor.Config{}),
		},
	})
	defer g.Close()
	instance := isle.NewID()
	return serveInner(func(client net.Conn) {
		g.Serve(ctx, gateway.Caller{
			Actor: isle.Actor{Kind: isle.Workload, Name: "bench@testing"}, Owner: "human:root",
			Place: policy.Place{Project: "bench", Stage: "testing", Environment: "bench"}, Ref: isle.Ref{Name: "bench", Stage: "testing"}, Instance: instance,
		}, "bench", client)
	})
}
